//! Volumes of drivers when the node's agent dies and comes back: what pods have stays, what is left of pods that are
//! gone is taken away, as soon as its driver is there again.

use std::path::Path;
use std::time::{Duration, Instant};

use client::DeleteParams;
use serde_json::json;
use testkit::census::census;
use testkit::csi::Driver;
use testkit::pods::pod;
use testkit::{Cluster, Scope};

fn wait(s: &Scope<'_>, what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(40);
    while !done() {
        assert!(Instant::now() < until, "{what}");
        s.pause(Duration::from_millis(50));
    }
}

fn claimed(s: &Scope<'_>, driver: &str, handle: &str) -> anyhow::Result<()> {
    s.create(
        "persistentvolumes",
        json!({"metadata": {"name": handle}, "spec": {"capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"], "storageClassName": "", "claimRef": {"namespace": s.namespace, "name": handle},
            "csi": {"driver": driver, "volumeHandle": handle}}}),
    )?;
    s.create(
        "persistentvolumeclaims",
        json!({"metadata": {"name": handle}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}}}}),
    )?;
    s.wait_any("persistentvolumeclaims", handle, "a binding", |c| c["status"]["phase"] == "Bound").map(drop)
}

#[test]
fn volumes_outlive_the_kubelet_and_orphans_do_not() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let data = cluster.data();
    let state = data.join("driver");
    let name = "restart.csi.example.com";
    let driver = Driver::start(name, &state, &data.join("kubelet"))?;
    std::fs::create_dir_all(state.join("disk"))?;
    std::fs::create_dir_all(state.join("orphan"))?;
    let namespace = {
        let s = cluster.namespace("volumes")?;
        s.create("csidrivers", json!({"metadata": {"name": name}, "spec": {"attachRequired": false}}))?;
        claimed(&s, name, "disk")?;
        let script = "while true; do date +%s >> /data/beats; sleep 0.2; done";
        s.ready(pod("kept", script, |spec| {
            spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "disk"}}]);
            spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        }))?;
        s.namespace.clone()
    };
    // What is left of a pod that went while nobody looked: a mount, and the note of it.
    let own = data.join("kubelet/pods/00000000-0000-0000-0000-00000000dead/volumes/kubernetes.io~csi/orphan");
    let target = own.join("mount");
    std::fs::create_dir_all(&target)?;
    let note = json!({"driverName": name, "volumeHandle": "orphan", "specVolID": "orphan",
        "volumeLifecycleMode": "Persistent"});
    std::fs::write(own.join("vol_data.json"), note.to_string())?;
    let mounted = std::process::Command::new("mount")
        .arg("--bind")
        .args([state.join("orphan"), target.clone()])
        .status()?;
    assert!(mounted.success());
    // The driver is away when the kubelet comes back.
    drop(driver);
    cluster.crash_and_restart()?;
    let s = cluster.scope(&namespace);
    s.pause(Duration::from_secs(1));
    assert!(own.join("vol_data.json").exists(), "nothing is forgotten before the driver has undone it");
    let driver = Driver::start(name, &state, &data.join("kubelet"))?;
    wait(&s, "the orphan's volume is left", || {
        driver.calls_about("orphan") == ["unpublish", "unstage"]
            && !data.join("kubelet/pods/00000000-0000-0000-0000-00000000dead").exists()
    });
    assert!(state.join("orphan").is_dir(), "only the mount goes, not the data");

    let found = s.pod_ready("kept")?;
    assert_eq!(found["status"]["containerStatuses"][0]["restartCount"], 0);
    assert!(!driver.calls_about("disk").iter().any(|call| call.starts_with("un")), "{:?}", driver.calls());
    let beats = || std::fs::read_to_string(state.join("disk/beats")).unwrap_or_default().lines().count();
    let before = beats();
    wait(&s, "the pod writes no more", || beats() > before);
    s.delete("pods", "kept", &DeleteParams::default())?;
    s.wait_gone("pods", "kept")?;
    wait(&s, "the volume is left", || {
        let calls = driver.calls_about("disk");
        calls.ends_with(&["unpublish".to_owned(), "unstage".to_owned()])
    });
    let staged = data.join("kubelet/plugins/kubernetes.io/csi").join(name);
    let left = std::fs::read_dir(&staged).into_iter().flatten().count();
    assert!(left == 0 || !Path::new(&staged).exists(), "{left} volumes are staged still");
    Ok(())
}

/// A pod that has a file as a device `/dev/xvda`, through a claim on a volume of the default class or one of its own.
fn device_user(name: &str, claim: &str) -> serde_json::Value {
    pod(name, "test -b /dev/xvda && echo here > /dev/xvda; sync; sleep 1000", |spec| {
        spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
        spec["containers"][0]["volumeDevices"] = json!([{"name": "data", "devicePath": "/dev/xvda"}]);
    })
}

/// The loop devices of a file, as `losetup` sees them.
fn devices_of(file: &Path) -> anyhow::Result<String> {
    let output = std::process::Command::new("losetup").arg("--associated").arg(file).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Devices of pods that run when the cluster goes: after a crash too, and whether their files are its own or not.
#[test]
fn loop_devices_go_with_the_cluster() -> anyhow::Result<()> {
    if !Path::new("/dev/loop-control").exists() {
        return Ok(());
    }
    for crash in [false, true] {
        let elsewhere = tempfile::tempdir()?;
        let file = elsewhere.path().join("disk");
        std::fs::File::create(&file)?.set_len(1 << 20)?;
        let cluster = Cluster::start()?;
        let (id, data) = (cluster.id()?, cluster.data());
        let s = cluster.namespace("devices")?;
        for (name, class) in [("own", json!({})), ("else", json!({"storageClassName": ""}))] {
            let mut spec = json!({"accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
                "resources": {"requests": {"storage": "1Mi"}}});
            for (key, value) in class.as_object().into_iter().flatten() {
                spec[key] = value.clone();
            }
            s.create("persistentvolumeclaims", json!({"metadata": {"name": name}, "spec": spec}))?;
        }
        let node = s.list("nodes", "")?[0]["metadata"]["name"].clone();
        let terms = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]);
        s.create(
            "persistentvolumes",
            json!({"metadata": {"name": "else"}, "spec": {"capacity": {"storage": "1Mi"}, "storageClassName": "",
                "accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "local": {"path": file},
                "claimRef": {"namespace": s.namespace, "name": "else"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}}),
        )?;
        s.ready(device_user("own", "own"))?;
        s.ready(device_user("else", "else"))?;
        let held = census(&id, &data)?.into_iter().filter(|line| line.starts_with("device ")).count();
        assert_eq!(held, 1, "the census sees the device whose file is in the data directory");
        assert!(!devices_of(&file)?.is_empty());
        if crash {
            cluster.crash()?;
        }
        drop(s);
        // Its end takes a census too.
        drop(cluster);
        assert_eq!(devices_of(&file)?, "");
        assert!(std::fs::read(&file)?.starts_with(b"here"), "the file's data stays");
    }
    Ok(())
}
