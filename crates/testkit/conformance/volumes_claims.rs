//! Claims: bound to volumes that are there, or to volumes of the default class, made on the node's disk.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use client::DeleteParams;
use serde_json::{Value, json};
use testkit::pods::{container, has, pod};
use testkit::{Case, Scope};

pub(crate) fn claim(name: &str, size: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut claim = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}}}});
    change(&mut claim);
    claim
}

/// A pod that has a claim at `/data`.
pub(crate) fn user(name: &str, claim: &str, script: &str) -> Value {
    pod(name, script, |spec| {
        spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    })
}

pub(crate) fn bound(s: &Scope<'_>, name: &str) -> anyhow::Result<Value> {
    s.wait_any("persistentvolumeclaims", name, "a binding", |c| c["status"]["phase"] == "Bound")
}

/// Waits for an event about an object and answers its message.
pub(crate) fn told(s: &Scope<'_>, about: &str, reason: &str) -> anyhow::Result<String> {
    let event = s.wait_any("events", "", &format!("event {reason}"), |e| {
        e["involvedObject"]["name"] == about && e["reason"] == reason
    })?;
    Ok(event["message"].as_str().unwrap_or_default().to_owned())
}

/// Waits until an event about an object says something; there may be others about it.
pub(crate) fn told_that(s: &Scope<'_>, about: &str, reason: &str, text: &str) -> anyhow::Result<()> {
    let says = |e: &Value| e["message"].as_str().is_some_and(|message| message.contains(text));
    s.wait_any("events", "", &format!("event {reason} with {text:?}"), |e| {
        e["involvedObject"]["name"] == about && e["reason"] == reason && says(e)
    })?;
    Ok(())
}

fn volume_of(s: &Scope<'_>, claim: &str) -> anyhow::Result<Value> {
    let claim = bound(s, claim)?;
    let name = claim["spec"]["volumeName"].as_str().context("no volume")?;
    Ok(s.get("persistentvolumes", name)?)
}

/// The default class, what claims of it wait for, and what becomes of their volumes.
fn default_class(s: &Scope<'_>) -> anyhow::Result<()> {
    let class = s.get("storageclasses", "local-path")?;
    ensure!(
        class["volumeBindingMode"] == "WaitForFirstConsumer" && class["allowVolumeExpansion"] == true,
        "{class}"
    );
    s.create("persistentvolumeclaims", claim("c", "1Gi", |_| ()))?;
    let said = told(s, "c", "WaitForFirstConsumer")?;
    ensure!(said == "waiting for first consumer to be created before binding", "{said}");
    let waiting = s.get("persistentvolumeclaims", "c")?;
    ensure!(
        waiting["spec"]["storageClassName"] == "local-path" && waiting["status"]["phase"] == "Pending",
        "{waiting}"
    );
    s.output(user("writer", "c", "echo kept > /data/file"))?;
    ensure!(s.output(user("reader", "c", "cat /data/file"))?.trim() == "kept", "the data is lost");
    let made = bound(s, "c")?;
    ensure!(made["status"]["capacity"]["storage"] == "1Gi", "{made}");
    let uid = made["metadata"]["uid"].as_str().unwrap_or_default();
    ensure!(made["spec"]["volumeName"] == format!("pvc-{uid}"), "{made}");
    told(s, "c", "ProvisioningSucceeded")?;
    let volume = volume_of(s, "c")?;
    ensure!(volume["status"]["phase"] == "Bound" && volume["spec"]["nodeAffinity"].is_object(), "{volume}");
    ensure!(
        volume["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"] == "local.ferry.dev",
        "{volume}"
    );
    let path = volume["spec"]["local"]["path"].as_str().context("no path")?.to_owned();
    ensure!(Path::new(&path).join("file").exists(), "nothing in {path}");
    let table = s.kubectl(&["get", "pvc", "c"])?;
    has(&table, &["Bound", "1Gi", "RWO", "local-path"])?;
    // In use: deletion waits for the users.
    s.ready(user("holder", "c", "sleep 1000"))?;
    s.delete("persistentvolumeclaims", "c", &DeleteParams::default())?;
    s.pause(Duration::from_millis(300));
    ensure!(
        s.get("persistentvolumeclaims", "c")?["metadata"]["deletionTimestamp"].is_string(),
        "gone at once"
    );
    for user in ["holder", "writer", "reader"] {
        s.delete("pods", user, &DeleteParams::default())?;
    }
    s.wait_gone("persistentvolumeclaims", "c")?;
    s.wait_gone("persistentvolumes", volume["metadata"]["name"].as_str().unwrap_or_default())?;
    ensure!(!Path::new(&path).exists(), "{path} is still there");
    Ok(())
}

/// A StatefulSet's claims stay while its pods come and go.
fn stateful(s: &Scope<'_>) -> anyhow::Result<()> {
    let mut main = container("main", "echo $HOSTNAME >> /data/starts; sleep 1000");
    main["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let template = json!({"metadata": {"labels": {"app": "db"}},
        "spec": {"containers": [main], "terminationGracePeriodSeconds": 0}});
    s.create(
        "statefulsets",
        json!({"metadata": {"name": "db"}, "spec": {"replicas": 2, "serviceName": "db",
        "selector": {"matchLabels": {"app": "db"}}, "template": template,
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "10Mi"}}}}]}}),
    )?;
    s.pod_ready("db-1")?;
    let first = s.get("pods", "db-0")?;
    s.delete("pods", "db-0", &DeleteParams::default())?;
    s.wait_any("pods", "db-0", "a successor", |p| {
        p["metadata"]["uid"] != first["metadata"]["uid"] && testkit::pods::condition(p, "Ready")
    })?;
    let starts = s.kubectl(&["exec", "db-0", "--", "cat", "/data/starts"])?;
    ensure!(starts == "db-0\ndb-0\n", "{starts:?}");
    let other = s.kubectl(&["exec", "db-1", "--", "cat", "/data/starts"])?;
    ensure!(other == "db-1\n", "{other:?}");
    Ok(())
}

/// A claim asks for more while it is in use.
fn expansion(s: &Scope<'_>) -> anyhow::Result<()> {
    s.create("persistentvolumeclaims", claim("c", "1Gi", |_| ()))?;
    s.ready(user("holder", "c", "sleep 1000"))?;
    bound(s, "c")?;
    s.merge(
        "persistentvolumeclaims",
        "c",
        "",
        json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}}),
    )?;
    s.wait_any("persistentvolumeclaims", "c", "more", |c| c["status"]["capacity"]["storage"] == "3Gi")?;
    ensure!(volume_of(s, "c")?["spec"]["capacity"]["storage"] == "3Gi", "the volume is as it was");
    ensure!(told(s, "c", "VolumeResizeSuccessful")? == "Resize volume succeeded", "wrong words");
    let less = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    let refused = s.merge("persistentvolumeclaims", "c", "", less).unwrap_err().to_string();
    has(&refused, &["field can not be less than status.capacity"])
}

/// A claim that starts as a copy of another.
fn copies(s: &Scope<'_>) -> anyhow::Result<()> {
    s.create("persistentvolumeclaims", claim("source", "1Gi", |_| ()))?;
    s.output(user(
        "writer",
        "source",
        "mkdir /data/sub; echo one > /data/sub/file; ln -s sub/file /data/link",
    ))?;
    let from = json!({"kind": "PersistentVolumeClaim", "name": "source"});
    s.create("persistentvolumeclaims", claim("copy", "2Gi", |c| c["spec"]["dataSource"] = from.clone()))?;
    let text = s.output(user("reader", "copy", "cat /data/link; echo two > /data/sub/file"))?;
    ensure!(text.trim() == "one", "{text:?}");
    ensure!(s.output(user("again", "source", "cat /data/link"))?.trim() == "one", "the source has changed");
    s.create("persistentvolumeclaims", claim("small", "1Mi", |c| c["spec"]["dataSource"] = from))?;
    s.create("pods", user("never", "small", "true"))?;
    has(&told(s, "small", "ProvisioningFailed")?, &["must be greater than or equal in size"])
}

/// Generic ephemeral volumes: a claim that lives as long as its pod.
fn ephemeral(s: &Scope<'_>) -> anyhow::Result<()> {
    let template = json!({"metadata": {"labels": {"for": "scratch"}}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Mi"}}}});
    let made = s.ready(pod("p", "echo x > /scratch/x; sleep 1000", |spec| {
        spec["volumes"] = json!([{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/scratch"}]);
    }))?;
    let claim = bound(s, "p-scratch")?;
    ensure!(claim["metadata"]["labels"]["for"] == "scratch", "{claim}");
    let owner = &claim["metadata"]["ownerReferences"][0];
    ensure!(owner["uid"] == made["metadata"]["uid"] && owner["controller"] == true, "{claim}");
    let volume = volume_of(s, "p-scratch")?;
    s.delete("pods", "p", &DeleteParams::default())?;
    s.wait_gone("persistentvolumeclaims", "p-scratch")?;
    s.wait_gone("persistentvolumes", volume["metadata"]["name"].as_str().unwrap_or_default())
}

/// Volumes that people made: the smallest that fits, one asked for by name, one kept for a claim; and what is left
/// of them.
fn by_hand(s: &Scope<'_>) -> anyhow::Result<()> {
    let unique = s.namespace.clone();
    let class = format!("by-hand-{unique}");
    let name = |short: &str| format!("{unique}-{short}");
    let volume = |short: &str, size: &str, more: Value| {
        let mut spec = json!({"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
            "storageClassName": class, "hostPath": {"path": format!("/tmp/{unique}-{short}")}});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        s.create("persistentvolumes", json!({"metadata": {"name": name(short)}, "spec": spec}))
    };
    let wants = |claim_name: &str, more: Value| {
        let claimed = claim(claim_name, "2Gi", |c| {
            c["spec"]["storageClassName"] = class.clone().into();
            for (key, value) in more.as_object().into_iter().flatten() {
                c["spec"][key] = value.clone();
            }
        });
        s.create("persistentvolumeclaims", claimed)
    };
    volume("small", "1Gi", json!({}))?;
    volume("right", "3Gi", json!({}))?;
    volume("large", "9Gi", json!({}))?;
    volume("kept", "2Gi", json!({"claimRef": {"namespace": unique, "name": "kept"}}))?;
    let available = |v: &Value| v["status"]["phase"] == "Available";
    for short in ["small", "right", "large", "kept"] {
        s.wait_any("persistentvolumes", &name(short), "availability", available)?;
    }
    wants("any", json!({}))?;
    let any = bound(s, "any")?;
    ensure!(
        any["spec"]["volumeName"] == name("right") && any["status"]["capacity"]["storage"] == "3Gi",
        "{any}"
    );
    ensure!(any["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] == "yes", "{any}");
    wants("kept", json!({}))?;
    ensure!(bound(s, "kept")?["spec"]["volumeName"] == name("kept"), "not the one that was kept");
    wants("named", json!({"volumeName": name("small")}))?;
    let said = told(s, "named", "VolumeMismatch")?;
    ensure!(said.contains("requested PV is too small"), "{said}");
    wants("none", json!({"accessModes": ["ReadWriteMany"]}))?;
    has(
        &told(s, "none", "ProvisioningFailed")?,
        &[&format!("storageclass.storage.k8s.io {class:?} not found")],
    )?;
    s.create("pods", user("stuck", "none", "true"))?;
    let said = told(s, "stuck", "FailedScheduling")?;
    let preemption = "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    let expected =
        format!("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. {preemption}");
    ensure!(said == expected, "{said}");
    // The claim goes: its volume is kept as it is, for people to look after.
    s.delete("persistentvolumeclaims", "any", &DeleteParams::default())?;
    let released = |v: &Value| v["status"]["phase"] == "Released";
    s.wait_any("persistentvolumes", &name("right"), "release", released)?;
    // The volume goes under its claim.
    s.delete("persistentvolumes", &name("kept"), &DeleteParams::default())?;
    s.merge("persistentvolumes", &name("kept"), "", json!({"metadata": {"finalizers": null}}))?;
    s.wait_any("persistentvolumeclaims", "kept", "loss", |c| c["status"]["phase"] == "Lost")?;
    let said = told(s, "kept", "ClaimLost")?;
    ensure!(said == "Bound claim has lost its PersistentVolume. Data on the volume is lost!", "{said}");
    for short in ["small", "right", "large"] {
        s.delete("persistentvolumes", &name(short), &DeleteParams::default())?;
    }
    Ok(())
}

/// A claim for one pod at a time.
fn exclusive(s: &Scope<'_>) -> anyhow::Result<()> {
    let once = |c: &mut Value| c["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
    s.create("persistentvolumeclaims", claim("c", "1Mi", once))?;
    s.ready(user("first", "c", "sleep 1000"))?;
    s.create("pods", user("second", "c", "true"))?;
    let why = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    has(&told(s, "second", "FailedScheduling")?, &[why])?;
    s.delete("pods", "first", &DeleteParams::default())?;
    s.pod_ended("second").map(drop)
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "Ferry: volumes of the default class, from claim to reclaim", run: default_class },
        Case { name: "Ferry: a StatefulSet's claims of the default class survive its pods", run: stateful },
        Case { name: "Ferry: a claim of the default class grows while it is in use", run: expansion },
        Case { name: "Ferry: a claim may start as a copy of another", run: copies },
        Case { name: "Ferry: generic ephemeral volumes live as long as their pods", run: ephemeral },
        Case { name: "Ferry: claims find volumes that people made", run: by_hand },
        Case { name: "Ferry: ReadWriteOncePod is one pod at a time", run: exclusive },
    ]
}
