//! Volumes of mode Block, how full volumes are, and drivers that hang, fail or have no room.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use client::DeleteParams;
use serde_json::{Value, json};
use testkit::csi::Driver;
use testkit::pods::{has, pod};
use testkit::{Case, Scope};

use crate::volumes_claims::{bound, claim, told, told_that, user};
use crate::volumes_csi::{asked, driver};

/// A loop device on a file of a case's own; it goes with the value.
struct Disk {
    file: PathBuf,
    device: String,
}

impl Disk {
    fn new(s: &Scope<'_>) -> anyhow::Result<Disk> {
        let file = s.data().join(format!("{}.disk", s.namespace));
        std::fs::File::create(&file)?.set_len(1 << 20)?;
        let output = Command::new("losetup").args(["--find", "--show"]).arg(&file).output()?;
        ensure!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Disk { file, device: String::from_utf8_lossy(&output.stdout).trim().to_owned() })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

/// A pod that has a claim as the device `/dev/xvda`.
pub(crate) fn device_user(name: &str, claim: &str, script: &str) -> Value {
    pod(name, script, |spec| {
        spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
        spec["containers"][0]["volumeDevices"] = json!([{"name": "data", "devicePath": "/dev/xvda"}]);
    })
}

pub(crate) fn block_claim(name: &str, class: &str) -> Value {
    claim(name, "1Mi", |c| {
        c["spec"]["storageClassName"] = class.into();
        c["spec"]["volumeMode"] = "Block".into();
    })
}

/// A volume of mode Block for the claim `c`.
fn block_volume(s: &Scope<'_>, source: Value) -> anyhow::Result<String> {
    let name = format!("{}-block", s.namespace);
    let mut spec = json!({"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
        "volumeMode": "Block", "claimRef": {"namespace": s.namespace, "name": "c"}});
    for (key, value) in source.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    s.create("persistentvolumes", json!({"metadata": {"name": name}, "spec": spec}))?;
    s.create("persistentvolumeclaims", block_claim("c", ""))?;
    bound(s, "c")?;
    Ok(name)
}

fn local(s: &Scope<'_>, path: &str) -> anyhow::Result<Value> {
    let node = s.list("nodes", "")?[0]["metadata"]["name"].clone();
    let on =
        json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]});
    Ok(json!({"local": {"path": path}, "nodeAffinity": {"required": {"nodeSelectorTerms": [on]}}}))
}

pub(crate) const WRITE: &str = "test -b /dev/xvda && printf hello | dd of=/dev/xvda conv=notrunc 2>/dev/null";
pub(crate) const READ: &str = "dd if=/dev/xvda bs=5 count=1 2>/dev/null";

/// The links and mounts of a block volume on the node.
fn traces(s: &Scope<'_>, volume: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let pods = std::fs::read_dir(s.data().join("kubelet/pods")).into_iter().flatten().flatten();
    for pod in pods {
        let plugins = std::fs::read_dir(pod.path().join("volumeDevices")).into_iter().flatten().flatten();
        found.extend(
            plugins.map(|plugin| plugin.path().join(volume)).filter(|p| p.symlink_metadata().is_ok()),
        );
    }
    found
}

fn one_pod(s: &Scope<'_>) -> anyhow::Result<()> {
    let disk = Disk::new(s)?;
    let volume = block_volume(s, local(s, &disk.device)?)?;
    s.ready(device_user("one", "c", &format!("{WRITE}; sync; sleep 1000")))?;
    ensure!(s.kubectl(&["exec", "one", "--", "sh", "-c", READ])? == "hello", "not what was written");
    let links = traces(s, &volume);
    ensure!(links.len() == 1 && links[0].read_link()? == Path::new(&disk.device), "{links:?}");
    let uid = links[0].ancestors().nth(3).and_then(Path::file_name).context("no uid")?.to_owned();
    let kept = s.data().join("kubelet/plugins/kubernetes.io/local-volume/volumeDevices").join(&volume);
    ensure!(kept.join(uid).exists(), "nothing in {}", kept.display());
    s.delete("pods", "one", &DeleteParams::default())?;
    s.wait_gone("pods", "one")?;
    ensure!(traces(s, &volume).is_empty() && !kept.exists(), "left: {:?}", traces(s, &volume));
    ensure!(std::fs::read(&disk.file)?.starts_with(b"hello"), "the data is lost");
    s.delete("persistentvolumes", &volume, &DeleteParams::default())?;
    Ok(())
}

fn two_pods(s: &Scope<'_>) -> anyhow::Result<()> {
    let disk = Disk::new(s)?;
    block_volume(s, local(s, &disk.device)?)?;
    s.ready(device_user("one", "c", &format!("{WRITE}; sleep 1000")))?;
    let mut read_only = device_user("two", "c", &format!("{READ}; printf x | dd of=/dev/xvda 2>&1; true"));
    read_only["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = true.into();
    let said = s.output(read_only)?;
    has(&said, &["hello", "Operation not permitted"])?;
    ensure!(s.kubectl(&["exec", "one", "--", "sh", "-c", READ])? == "hello", "the other pod took it away");
    Ok(())
}

/// Containers that use volumes the wrong way, and those that have them as devices without being given them.
fn wrong_ways(s: &Scope<'_>) -> anyhow::Result<()> {
    let disk = Disk::new(s)?;
    block_volume(s, local(s, &disk.device)?)?;
    s.create("persistentvolumeclaims", claim("files", "1Mi", |_| ()))?;
    s.create("pods", user("mounts", "c", "true"))?;
    let expected = "Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process \
                    volumes=[data]: volume data has volumeMode Block, but is specified in volumeMounts";
    let said = told(s, "mounts", "FailedMount")?;
    ensure!(said == expected, "{said}");
    s.create("pods", device_user("maps", "files", "true"))?;
    let expected = "volume data has volumeMode Filesystem, but is specified in volumeDevices";
    told_that(s, "maps", "FailedMount", expected)
}

/// Block volumes of a driver.
fn of_a_driver(s: &Scope<'_>) -> anyhow::Result<()> {
    let (driver, state) = driver(s, json!({"attachRequired": false, "podInfoOnMount": true}))?;
    std::fs::File::create(state.join("disk"))?.set_len(1 << 20)?;
    let volume = block_volume(s, json!({"csi": {"driver": driver.name, "volumeHandle": "disk"}}))?;
    s.ready(device_user("one", "c", &format!("{WRITE}; sleep 1000")))?;
    s.ready(device_user("two", "c", "sleep 1000"))?;
    ensure!(s.kubectl(&["exec", "two", "--", "sh", "-c", READ])? == "hello", "not what was written");
    let calls = driver.calls();
    let published = calls.iter().find(|c| c["call"] == "publish").context("not published")?;
    let own = s.data().join("kubelet/plugins/kubernetes.io/csi/volumeDevices");
    let at = |kind: &str| own.join(kind).join(&volume).display().to_string();
    ensure!(published["block"] == true && published["staging"] == at("staging"), "{published}");
    ensure!(published["target"].as_str().is_some_and(|t| t.starts_with(&at("publish"))), "{published}");
    ensure!(own.join(&volume).join("data/vol_data.json").exists(), "no note");
    for pod in ["one", "two"] {
        s.delete("pods", pod, &DeleteParams::default())?;
        s.wait_gone("pods", pod)?;
    }
    asked(s, &driver, "disk", &["stage", "publish", "publish", "unpublish", "unpublish", "unstage"])?;
    ensure!(!own.join(&volume).exists() && !Path::new(&at("publish")).exists(), "something is left");
    ensure!(std::fs::read(state.join("disk"))?.starts_with(b"hello"), "the data is lost");
    s.delete("persistentvolumes", &volume, &DeleteParams::default())?;
    Ok(())
}

/// A volume of a driver for a claim of the same name.
fn of(s: &Scope<'_>, driver: &Driver, handle: &str) -> anyhow::Result<String> {
    let name = format!("{}-{handle}", s.namespace);
    s.create(
        "persistentvolumes",
        json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"], "storageClassName": "", "claimRef": {"namespace": s.namespace, "name": handle},
            "csi": {"driver": driver.name, "volumeHandle": handle}}}),
    )?;
    s.create("persistentvolumeclaims", claim(handle, "1Gi", |c| c["spec"]["storageClassName"] = "".into()))?;
    bound(s, handle)?;
    Ok(name)
}

/// What drivers say of their volumes is in the node's statistics.
fn figures(s: &Scope<'_>) -> anyhow::Result<()> {
    let (driver, state) = driver(s, json!({"attachRequired": false}))?;
    std::fs::create_dir_all(state.join("disk"))?;
    of(s, &driver, "disk")?;
    s.ready(user("p", "disk", "sleep 1000"))?;
    let node = s.list("nodes", "")?[0]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let summary = s.path(&format!("/api/v1/nodes/{node}/proxy/stats/summary"))?;
    let pods = summary["pods"].as_array().context("no pods")?;
    let own = pods.iter().find(|p| p["podRef"]["namespace"] == *s.namespace).context("not there")?;
    let volumes = own["volume"].as_array().context("no volumes")?;
    let data = volumes.iter().find(|v| v["name"] == "data").context("no such volume")?;
    ensure!(
        data["pvcRef"] == json!({"name": "disk", "namespace": s.namespace})
            && data["capacityBytes"] == 4096
            && data["availableBytes"] == 1024
            && data["inodesUsed"] == 32
            && data["volumeHealthStats"]["abnormal"] == true,
        "{data}"
    );
    let metrics = s.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics")])?;
    let labels = format!("{{namespace={:?},persistentvolumeclaim=\"disk\"}}", s.namespace);
    has(
        &metrics,
        &[
            &format!("kubelet_volume_stats_capacity_bytes{labels} 4096"),
            &format!("kubelet_volume_stats_health_status_abnormal{labels} 1"),
        ],
    )
}

/// A driver that hangs holds up its own volume's pods only.
fn hanging(s: &Scope<'_>) -> anyhow::Result<()> {
    let (driver, state) = driver(s, json!({"attachRequired": false}))?;
    for handle in ["hang", "fine"] {
        std::fs::create_dir_all(state.join(handle))?;
        of(s, &driver, handle)?;
    }
    s.ready(user("good", "fine", "sleep 1000"))?;
    s.create("pods", user("bad", "hang", "true"))?;
    asked(s, &driver, "hang", &["stage", "publish"])?;
    s.ready(user("better", "fine", "sleep 1000"))?;
    let started = Instant::now();
    for pod in ["good", "better"] {
        s.delete("pods", pod, &DeleteParams::default())?;
        s.wait_gone("pods", pod)?;
    }
    ensure!(started.elapsed() < Duration::from_secs(30), "held up for {:?}", started.elapsed());
    asked(s, &driver, "fine", &["stage", "publish", "publish", "unpublish", "unpublish", "unstage"])
}

/// A node that cannot make a volume as large as was asked for says so in the claim, and its pods run.
fn infeasible(s: &Scope<'_>) -> anyhow::Result<()> {
    let (driver, state) = driver(s, json!({"attachRequired": false}))?;
    std::fs::create_dir_all(state.join("small"))?;
    let volume = of(s, &driver, "small")?;
    s.merge("persistentvolumes", &volume, "", json!({"spec": {"capacity": {"storage": "2Gi"}}}))?;
    let state = json!({"allocatedResourceStatuses": {"storage": "NodeResizePending"}});
    s.merge("persistentvolumeclaims", "small", "status", json!({"status": state}))?;
    s.ready(user("p", "small", "sleep 1000"))?;
    let found = s.get("persistentvolumeclaims", "small")?;
    ensure!(
        found["status"]["allocatedResourceStatuses"]["storage"] == "NodeResizeInfeasible"
            && found["status"]["capacity"]["storage"] == "1Gi",
        "{found}"
    );
    let condition = &found["status"]["conditions"][0];
    ensure!(
        condition["type"] == "NodeResizeError"
            && condition["message"] == "rpc error: code = OutOfRange desc = no larger",
        "{condition}"
    );
    let said = told(s, "small", "VolumeResizeFailed")?;
    has(&said, &["NodeExpandVolume failed for volume", "no larger"])
}

/// A driver's word on how many volumes a node can have is kept.
fn limits(s: &Scope<'_>) -> anyhow::Result<()> {
    let (driver, state) = driver(s, json!({"attachRequired": false}))?;
    // The driver of tests has room for seven.
    let handles: Vec<String> = (1..=8).map(|n| format!("disk{n}")).collect();
    for handle in &handles {
        std::fs::create_dir_all(state.join(handle))?;
        of(s, &driver, handle)?;
    }
    let many = |name: &str, handles: &[String]| {
        pod(name, "sleep 1000", |spec| {
            let volume = |h: &String| json!({"name": h, "persistentVolumeClaim": {"claimName": h}});
            let mount = |h: &String| json!({"name": h, "mountPath": format!("/{h}")});
            spec["volumes"] = handles.iter().map(volume).collect();
            spec["containers"][0]["volumeMounts"] = handles.iter().map(mount).collect();
        })
    };
    s.ready(many("seven", &handles[..7]))?;
    s.create("pods", user("eighth", "disk8", "sleep 1000"))?;
    told_that(s, "eighth", "FailedScheduling", "1 node(s) exceed max volume count")?;
    s.delete("pods", "seven", &DeleteParams::default())?;
    s.pod_ready("eighth").map(drop)
}

/// Volumes that no container uses are not made.
fn unused(s: &Scope<'_>) -> anyhow::Result<()> {
    let said = s.output(pod("p", "echo ran", |spec| {
        spec["volumes"] = json!([{"name": "nothing", "secret": {"secretName": "does-not-exist"}}]);
    }))?;
    ensure!(said.trim() == "ran", "{said}");
    Ok(())
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-storage] PersistentVolumes-local [Volume type: block] One pod requesting one prebound PVC should be able to mount volume and write from pod1",
            run: one_pod,
        },
        Case {
            name: "[sig-storage] PersistentVolumes-local [Volume type: block] Two pods mounting a local volume at the same time should be able to write from pod1 and read from pod2",
            run: two_pods,
        },
        Case { name: "Ferry: volumes are used in the mode they have", run: wrong_ways },
        Case { name: "Ferry: a driver's block volume, from staging to unstaging", run: of_a_driver },
        Case { name: "Ferry: drivers' figures of volumes are in the node's statistics", run: figures },
        Case { name: "Ferry: a driver that hangs holds up its own volume only", run: hanging },
        Case { name: "Ferry: growth that a node cannot carry out is said in the claim", run: infeasible },
        Case { name: "Ferry: a node takes as many volumes as its driver can", run: limits },
        Case { name: "Ferry: volumes that no container uses are not made", run: unused },
    ]
}
