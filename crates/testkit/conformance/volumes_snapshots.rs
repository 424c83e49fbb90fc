//! Snapshots, and what else the default class can: block volumes, and the word on sizes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use client::DeleteParams;
use serde_json::{Value, json};
use testkit::pods::has;
use testkit::{Case, Scope};

use crate::volumes_block::{READ, WRITE, block_claim, device_user};
use crate::volumes_claims::{bound, claim, told, user};

fn snapshot(name: &str, source: Value, class: Option<&str>) -> Value {
    let mut spec = json!({"source": source});
    if let Some(class) = class {
        spec["volumeSnapshotClassName"] = class.into();
    }
    json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name}, "spec": spec})
}

fn of_claim(name: &str, claim: &str) -> Value {
    snapshot(name, json!({"persistentVolumeClaimName": claim}), None)
}

fn ready(s: &Scope<'_>, name: &str) -> anyhow::Result<Value> {
    s.wait_any("volumesnapshots", name, "readiness", |v| v["status"]["readyToUse"] == true)
}

fn from_snapshot(name: &str, snapshot: &str, size: &str) -> Value {
    claim(name, size, |c| {
        c["spec"]["dataSource"] =
            json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": snapshot});
    })
}

/// A snapshot of the default class: taken, restored, and gone with its data.
fn dynamic(s: &Scope<'_>) -> anyhow::Result<()> {
    s.create("persistentvolumeclaims", claim("c", "1Gi", |_| ()))?;
    // Not before there is something to take.
    s.create("volumesnapshots", of_claim("snap", "c"))?;
    has(
        &told(s, "snap", "SnapshotContentCreationFailed")?,
        &["the PVC c is not yet bound to a PV, will not attempt to take a snapshot"],
    )?;
    s.delete("volumesnapshots", "snap", &DeleteParams::default())?;
    s.wait_gone("volumesnapshots", "snap")?;
    s.output(user("writer", "c", "mkdir /data/sub; echo then > /data/sub/file"))?;
    s.create("volumesnapshots", of_claim("snap", "c"))?;
    let taken = ready(s, "snap")?;
    let uid = taken["metadata"]["uid"].as_str().unwrap_or_default();
    let content_name = format!("snapcontent-{uid}");
    ensure!(
        taken["status"]["boundVolumeSnapshotContentName"] == *content_name
            && taken["status"]["restoreSize"] == "1Gi"
            && taken["status"]["creationTime"].is_string()
            && taken["spec"]["volumeSnapshotClassName"] == "local-path",
        "{taken}"
    );
    let content = s.get("volumesnapshotcontents", &content_name)?;
    ensure!(
        content["spec"]["driver"] == "local.ferry.dev"
            && content["spec"]["volumeSnapshotRef"]["uid"] == *uid
            && content["spec"]["sourceVolumeMode"] == "Filesystem",
        "{content}"
    );
    told(s, "snap", "SnapshotReady")?;
    let table = s.kubectl(&["get", "volumesnapshots", "snap"])?;
    has(&table, &["READYTOUSE", "SOURCEPVC", "true", "1Gi", "local-path", &content_name])?;
    s.output(user("changer", "c", "echo now > /data/sub/file"))?;
    s.create("persistentvolumeclaims", from_snapshot("restored", "snap", "2Gi"))?;
    let text = s.output(user("reader", "restored", "cat /data/sub/file"))?;
    ensure!(text.trim() == "then", "{text:?}");
    s.create("persistentvolumeclaims", from_snapshot("small", "snap", "1Mi"))?;
    s.create("pods", user("never", "small", "true"))?;
    has(&told(s, "small", "ProvisioningFailed")?, &["is less than the size", "for the source snapshot"])?;
    // While somebody wants to restore from it the snapshot stays.
    s.delete("volumesnapshots", "snap", &DeleteParams::default())?;
    told(s, "snap", "SnapshotDeletePending")?;
    s.delete("pods", "never", &DeleteParams::default())?;
    s.delete("persistentvolumeclaims", "small", &DeleteParams::default())?;
    s.wait_gone("volumesnapshots", "snap")?;
    s.wait_gone("volumesnapshotcontents", &content_name)?;
    let left = s.data().join("volumes/.snapshots").join(&content_name);
    ensure!(!left.exists(), "{} is still there", left.display());
    let claimed = s.get("persistentvolumeclaims", "c")?;
    ensure!(!claimed["metadata"]["finalizers"].to_string().contains("as-source"), "{claimed}");
    Ok(())
}

/// A content that is kept is bound to another snapshot by hand.
fn by_hand(s: &Scope<'_>) -> anyhow::Result<()> {
    let class = format!("keep-{}", s.namespace);
    s.create(
        "volumesnapshotclasses",
        json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "metadata": {"name": class},
            "driver": "local.ferry.dev", "deletionPolicy": "Retain"}),
    )?;
    s.create("persistentvolumeclaims", claim("c", "1Mi", |_| ()))?;
    s.output(user("writer", "c", "echo kept > /data/file"))?;
    s.create("volumesnapshots", snapshot("first", json!({"persistentVolumeClaimName": "c"}), Some(&class)))?;
    let taken = ready(s, "first")?;
    let name = taken["status"]["boundVolumeSnapshotContentName"].as_str().context("not bound")?.to_owned();
    let content = s.get("volumesnapshotcontents", &name)?;
    let handle = content["status"]["snapshotHandle"].as_str().context("no handle")?.to_owned();
    s.delete("volumesnapshots", "first", &DeleteParams::default())?;
    s.wait_gone("volumesnapshots", "first")?;
    s.get("volumesnapshotcontents", &name)?;
    let given = format!("given-{}", s.namespace);
    let spec = json!({"driver": "local.ferry.dev", "deletionPolicy": "Delete", "source": {"snapshotHandle": handle},
        "volumeSnapshotRef": {"name": "second", "namespace": s.namespace}});
    s.create(
        "volumesnapshotcontents",
        json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": {"name": given}, "spec": spec}),
    )?;
    s.create("volumesnapshots", snapshot("second", json!({"volumeSnapshotContentName": given}), None))?;
    let second = ready(s, "second")?;
    ensure!(second["status"]["boundVolumeSnapshotContentName"] == *given, "{second}");
    s.create("persistentvolumeclaims", from_snapshot("restored", "second", "1Mi"))?;
    ensure!(s.output(user("reader", "restored", "cat /data/file"))?.trim() == "kept", "the data is lost");
    s.create("volumesnapshots", snapshot("thief", json!({"volumeSnapshotContentName": given}), None))?;
    let said = told(s, "thief", "SnapshotContentMisbound")?;
    ensure!(said == format!("VolumeSnapshotContent [{given}] is bound to a different snapshot"), "{said}");
    s.delete("volumesnapshots", "thief", &DeleteParams::default())?;
    s.delete("volumesnapshots", "second", &DeleteParams::default())?;
    s.wait_gone("volumesnapshotcontents", &given)?;
    ensure!(!s.data().join("volumes/.snapshots").join(&handle).exists(), "the data is still there");
    // The first one's content stays until a person deletes it.
    s.delete("volumesnapshotcontents", &name, &DeleteParams::default())?;
    s.wait_gone("volumesnapshotcontents", &name)?;
    s.delete("volumesnapshotclasses", &class, &DeleteParams::default())?;
    Ok(())
}

/// What the kinds of snapshots refuse.
fn rules(s: &Scope<'_>) -> anyhow::Result<()> {
    let both = json!({"persistentVolumeClaimName": "c", "volumeSnapshotContentName": "v"});
    let refused = s.create("volumesnapshots", snapshot("bad", both, None)).unwrap_err().to_string();
    has(&refused, &["spec.source"])?;
    let refused =
        s.create("volumesnapshots", snapshot("bad", json!({"persistentVolumeClaimName": "c"}), Some("")));
    has(
        &refused.unwrap_err().to_string(),
        &["volumeSnapshotClassName must not be the empty string when set"],
    )?;
    s.create("volumesnapshots", of_claim("fine", "none"))?;
    let change = json!({"spec": {"source": {"persistentVolumeClaimName": "other"}}});
    let refused = s.merge("volumesnapshots", "fine", "", change).unwrap_err().to_string();
    has(&refused, &["persistentVolumeClaimName is immutable"])?;
    s.delete("volumesnapshots", "fine", &DeleteParams::default())?;
    s.wait_gone("volumesnapshots", "fine")
}

/// Block volumes of the default class: devices on files, with growth, copies and snapshots.
fn block(s: &Scope<'_>) -> anyhow::Result<()> {
    s.create("persistentvolumeclaims", block_claim("c", "local-path"))?;
    s.ready(device_user("one", "c", &format!("{WRITE}; sync; sleep 1000")))?;
    let size = |pod: &str| s.kubectl(&["exec", pod, "--", "sh", "-c", "wc -c < /dev/xvda"]);
    ensure!(size("one")?.trim() == "1048576", "{}", size("one")?);
    let claimed = bound(s, "c")?;
    let volume = s.get("persistentvolumes", claimed["spec"]["volumeName"].as_str().unwrap_or_default())?;
    ensure!(
        volume["spec"]["volumeMode"] == "Block"
            && volume["metadata"]["annotations"]["local.ferry.dev/size-enforced"] == "true",
        "{volume}"
    );
    s.create("volumesnapshots", of_claim("snap", "c"))?;
    ready(s, "snap")?;
    let mut restored = from_snapshot("restored", "snap", "2Mi");
    restored["spec"]["volumeMode"] = "Block".into();
    s.create("persistentvolumeclaims", restored)?;
    s.ready(device_user("two", "restored", "sleep 1000"))?;
    ensure!(s.kubectl(&["exec", "two", "--", "sh", "-c", READ])? == "hello", "not what was written");
    ensure!(size("two")?.trim() == "2097152", "{}", size("two")?);
    s.create("persistentvolumeclaims", from_snapshot("other", "snap", "2Mi"))?;
    s.create("pods", user("never", "other", "true"))?;
    has(&told(s, "other", "ProvisioningFailed")?, &["modifies the mode of the source snapshot"])?;
    let more = json!({"spec": {"resources": {"requests": {"storage": "3Mi"}}}});
    s.merge("persistentvolumeclaims", "c", "", more)?;
    s.wait_any("persistentvolumeclaims", "c", "more", |c| c["status"]["capacity"]["storage"] == "3Mi")?;
    let path = volume["spec"]["local"]["path"].as_str().context("no path")?.to_owned();
    ensure!(std::fs::metadata(&path)?.len() == 3 << 20, "the file is as it was");
    for pod in ["one", "two", "never"] {
        s.delete("pods", pod, &DeleteParams::default())?;
        s.wait_gone("pods", pod)?;
    }
    let loops = std::process::Command::new("losetup").args(["--associated", &path]).output()?;
    ensure!(loops.stdout.is_empty(), "{}", String::from_utf8_lossy(&loops.stdout));
    s.delete("persistentvolumeclaims", "other", &DeleteParams::default())?;
    s.delete("volumesnapshots", "snap", &DeleteParams::default())?;
    s.delete("persistentvolumeclaims", "c", &DeleteParams::default())?;
    s.wait_gone("persistentvolumes", volume["metadata"]["name"].as_str().unwrap_or_default())?;
    ensure!(!Path::new(&path).exists(), "{path} is still there");
    Ok(())
}

/// What the disk cannot hold is refused; what it does not enforce is said.
fn sizes(s: &Scope<'_>) -> anyhow::Result<()> {
    s.create("persistentvolumeclaims", claim("huge", "900Ti", |_| ()))?;
    s.create("pods", user("never", "huge", "true"))?;
    has(&told(s, "huge", "ProvisioningFailed")?, &["bytes are asked for, but the disk of node"])?;
    s.create("persistentvolumeclaims", claim("c", "1Mi", |_| ()))?;
    s.output(user("p", "c", "true"))?;
    let claimed = bound(s, "c")?;
    let volume = s.get("persistentvolumes", claimed["spec"]["volumeName"].as_str().unwrap_or_default())?;
    let said =
        volume["metadata"]["annotations"]["local.ferry.dev/size-enforced"].as_str().unwrap_or_default();
    ensure!(said == "true" || said.starts_with("false: "), "{volume}");
    s.pause(Duration::from_millis(10));
    Ok(())
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "Ferry: snapshots of the default class are taken, restored and deleted", run: dynamic },
        Case { name: "Ferry: snapshots that are kept, and contents bound by hand", run: by_hand },
        Case { name: "Ferry: what the kinds of snapshots refuse", run: rules },
        Case { name: "Ferry: block volumes of the default class", run: block },
        Case { name: "Ferry: sizes of the default class's volumes", run: sizes },
    ]
}
