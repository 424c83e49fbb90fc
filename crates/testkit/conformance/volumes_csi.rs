//! Volumes of storage drivers: registration, attachment, staging, publishing, and all of it undone.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use client::DeleteParams;
use serde_json::{Value, json};
use testkit::csi::Driver;
use testkit::pods::pod;
use testkit::{Case, Scope};

use crate::volumes_claims::{bound, claim, told, user};

/// A driver of a case's own, registered.
pub(crate) fn driver(s: &Scope<'_>, spec: Value) -> anyhow::Result<(Driver, std::path::PathBuf)> {
    let name = format!("{}.csi.example.com", s.namespace);
    let state = s.data().join(format!("drivers/{}", s.namespace));
    s.create("csidrivers", json!({"metadata": {"name": name}, "spec": spec}))?;
    let driver = Driver::start(&name, &state, &s.data().join("kubelet"))?;
    let has =
        |n: &Value| n["spec"]["drivers"].as_array().is_some_and(|all| all.iter().any(|d| d["name"] == *name));
    s.wait_any("csinodes", "", "the driver", has)?;
    Ok((driver, state))
}

fn volume(s: &Scope<'_>, driver: &Driver, handle: &str) -> anyhow::Result<String> {
    let name = format!("{}-{handle}", s.namespace);
    s.create("persistentvolumes", json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "storageClassName": "", "mountOptions": ["noatime", "x-own=1"], "claimRef": {"namespace": s.namespace, "name": "c"},
        "csi": {"driver": driver.name, "volumeHandle": handle, "fsType": "ext4", "volumeAttributes": {"colour": "red"}}}}))?;
    s.create("persistentvolumeclaims", claim("c", "1Gi", |c| c["spec"]["storageClassName"] = "".into()))?;
    bound(s, "c")?;
    Ok(name)
}

/// Waits until a driver was asked all of this about a volume, and nothing else.
pub(crate) fn asked(s: &Scope<'_>, driver: &Driver, volume: &str, expected: &[&str]) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let calls = driver.calls_about(volume);
        if calls == expected {
            return Ok(());
        }
        ensure!(Instant::now() < until, "asked {calls:?} instead of {expected:?}");
        s.pause(Duration::from_millis(50));
    }
}

fn life(s: &Scope<'_>) -> anyhow::Result<()> {
    let spec = json!({"attachRequired": true, "podInfoOnMount": true, "fsGroupPolicy": "File"});
    let (driver, state) = driver(s, spec)?;
    let registered = driver.calls().into_iter().find(|c| c["call"] == "registered");
    let registered = registered.or_else(|| {
        s.pause(Duration::from_secs(1));
        driver.calls().into_iter().find(|c| c["call"] == "registered")
    });
    ensure!(registered.is_some_and(|c| c["ok"] == true), "{:?}", driver.calls());
    let csi_nodes = s.list("csinodes", "")?;
    let own = csi_nodes[0]["spec"]["drivers"].as_array().context("no drivers")?;
    let own = own.iter().find(|d| d["name"] == *driver.name).context("the driver is not there")?;
    ensure!(own["nodeID"] == "the-node" && own["allocatable"]["count"] == 7, "{own}");
    let node = &s.list("nodes", "")?[0];
    ensure!(node["metadata"]["labels"][format!("topology.{}/node", driver.name)] == "here", "{node}");

    std::fs::create_dir_all(state.join("disk"))?;
    let persistent = volume(s, &driver, "disk")?;
    for name in ["one", "two"] {
        let mut made = user(name, "c", "echo $HOSTNAME >> /data/file; sleep 1000");
        made["spec"]["securityContext"] = json!({"fsGroup": 1234});
        s.create("pods", made)?;
    }
    let attachment = s.wait_any("volumeattachments", "", "an attachment", |a| {
        a["spec"]["source"]["persistentVolumeName"] == *persistent
    })?;
    ensure!(attachment["spec"]["attacher"] == *driver.name, "{attachment}");
    s.pause(Duration::from_millis(300));
    ensure!(driver.calls_about("disk").is_empty(), "nothing is staged before it is attached");
    let name = attachment["metadata"]["name"].as_str().unwrap_or_default();
    let metadata = json!({"devicePath": "/dev/disk"});
    s.merge(
        "volumeattachments",
        name,
        "status",
        json!({"status": {"attached": true, "attachmentMetadata": metadata}}),
    )?;
    s.pod_ready("one")?;
    s.pod_ready("two")?;
    let said = told(s, "one", "SuccessfulAttachVolume")?;
    ensure!(said == format!("AttachVolume.Attach succeeded for volume {persistent:?} "), "{said}");
    asked(s, &driver, "disk", &["stage", "publish", "publish"])?;
    let calls = driver.calls();
    let staged = calls.iter().find(|c| c["call"] == "stage").context("not staged")?;
    ensure!(staged["publish"] == metadata && staged["context"] == json!({"colour": "red"}), "{staged}");
    let published = calls.iter().find(|c| c["call"] == "publish").context("not published")?;
    for call in [staged, published] {
        ensure!(call["flags"] == json!(["noatime", "x-own=1"]), "{call}");
    }
    let context = &published["context"];
    ensure!(
        context["csi.storage.k8s.io/pod.namespace"] == *s.namespace && context["colour"] == "red",
        "{context}"
    );
    let group = s.kubectl(&["exec", "one", "--", "stat", "-c", "%g", "/data"])?;
    ensure!(group.trim() == "1234", "{group}");
    let unique = format!("kubernetes.io/csi/{}^disk", driver.name);
    s.wait_any("nodes", "", "the volume in its status", |n| {
        let lists = [&n["status"]["volumesInUse"], &n["status"]["volumesAttached"]];
        lists.iter().all(|list| list.to_string().contains(&unique))
    })?;

    s.delete("pods", "one", &DeleteParams::default())?;
    asked(s, &driver, "disk", &["stage", "publish", "publish", "unpublish"])?;
    s.delete("pods", "two", &DeleteParams::default())?;
    asked(s, &driver, "disk", &["stage", "publish", "publish", "unpublish", "unpublish", "unstage"])?;
    s.wait_gone("volumeattachments", name)?;
    ensure!(std::fs::read_to_string(state.join("disk/file"))?.lines().count() == 2, "the data is lost");
    s.delete("persistentvolumeclaims", "c", &DeleteParams::default())?;
    s.delete("persistentvolumes", &persistent, &DeleteParams::default())?;
    s.delete("csidrivers", &driver.name, &DeleteParams::default())?;
    drop(driver);
    s.wait_any("csinodes", "", "the driver's end", |n| {
        !n["spec"]["drivers"].to_string().contains(&format!("{}.csi", s.namespace))
    })
    .map(drop)
}

/// A claim grows: what the driver's resizer has begun, the node ends.
fn growth(s: &Scope<'_>) -> anyhow::Result<()> {
    let (driver, state) = driver(s, json!({"attachRequired": false}))?;
    std::fs::create_dir_all(state.join("disk"))?;
    let persistent = volume(s, &driver, "disk")?;
    s.merge("persistentvolumes", &persistent, "", json!({"spec": {"capacity": {"storage": "2Gi"}}}))?;
    let pending = json!([{"type": "FileSystemResizePending", "status": "True"}]);
    s.merge("persistentvolumeclaims", "c", "status", json!({"status": {"conditions": pending}}))?;
    s.ready(user("holder", "c", "sleep 1000"))?;
    let grown = s.get("persistentvolumeclaims", "c")?;
    ensure!(
        grown["status"]["capacity"]["storage"] == "2Gi" && grown["status"]["conditions"].is_null(),
        "{grown}"
    );
    let calls = driver.calls();
    ensure!(calls.iter().any(|c| c["call"] == "expand" && c["bytes"] == 2u64 << 30), "{calls:?}");
    ensure!(
        s.list("volumeattachments", "")?.iter().all(|a| a["spec"]["attacher"] != *driver.name),
        "attached"
    );
    s.delete("pods", "holder", &DeleteParams::default())?;
    s.wait_gone("pods", "holder")
}

fn inline(s: &Scope<'_>) -> anyhow::Result<()> {
    let spec = json!({"attachRequired": false, "podInfoOnMount": true, "volumeLifecycleModes": ["Ephemeral"],
        "tokenRequests": [{"audience": "vault"}]});
    let (driver, _) = driver(s, spec)?;
    let inline = |name: &str, driver: &str| {
        pod(name, "cat /data/greeting", |spec| {
            spec["volumes"] = json!([{"name": "data", "csi": {"driver": driver, "volumeAttributes": {"greeting": "hello"}}}]);
            spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        })
    };
    ensure!(s.output(inline("p", &driver.name))?.trim() == "hello", "no greeting");
    let published = driver.calls().into_iter().find(|c| c["call"] == "publish").context("not published")?;
    let context = &published["context"];
    ensure!(context["csi.storage.k8s.io/ephemeral"] == "true", "{context}");
    let tokens = context["csi.storage.k8s.io/serviceAccount.tokens"].as_str().unwrap_or_default();
    let tokens: Value = serde_json::from_str(tokens)?;
    ensure!(
        tokens["vault"]["token"].is_string() && tokens["vault"]["expirationTimestamp"].is_string(),
        "{tokens}"
    );
    s.delete("pods", "p", &DeleteParams::default())?;
    s.wait_gone("pods", "p")?;
    let handle = published["volume"].as_str().unwrap_or_default();
    asked(s, &driver, handle, &["publish", "unpublish"])?;
    s.create(
        "csidrivers",
        json!({"metadata": {"name": format!("gone-{}", driver.name)},
        "spec": {"volumeLifecycleModes": ["Ephemeral"]}}),
    )?;
    s.create("pods", inline("stuck", &format!("gone-{}", driver.name)))?;
    let said = told(s, "stuck", "FailedMount")?;
    let expected =
        format!("driver name gone-{} not found in the list of registered CSI drivers", driver.name);
    ensure!(
        said.starts_with("MountVolume.SetUp failed for volume \"data\" : ") && said.contains(&expected),
        "{said}"
    );
    Ok(())
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "Ferry: a driver's volume is attached, staged, published, and all of it undone",
            run: life,
        },
        Case { name: "Ferry: a driver's volume grows when it is mounted", run: growth },
        Case { name: "Ferry: a driver's volume may live with its pod", run: inline },
    ]
}
