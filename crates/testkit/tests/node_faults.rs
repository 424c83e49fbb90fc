//! A node under faults: five hundred pods that are killed, starved, forbidden and forgotten while Ferry itself
//! is killed again and again, after which nothing of them is left on the machine.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use client::DeleteParams;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use testkit::Cluster;
use testkit::census::{census, directories, of_pod};
use testkit::cluster::Scope;
use testkit::pods::{condition, container, has, pod};
use testkit::registry::Registry;

/// Pods in all.
const PODS: usize = 500;
/// Pods at a time.
const WORKERS: usize = 8;
/// Ferry is killed each time that so many pods have ended.
const PODS_PER_CRASH: usize = 60;
/// Longest that anything may take, restarts of Ferry included.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often what nobody tells of is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Descriptors that may be open more than before: connections that are kept for the next call.
const DESCRIPTORS_SLACK: usize = 40;

/// One kind of trouble: how its pod is, and what must be seen of it before it is deleted.
struct Fault {
    name: &'static str,
    make: fn(&str) -> Value,
    seen: fn(&Scope<'_>, &str) -> anyhow::Result<()>,
    /// Seconds that the deletion gives it; 0 is by force.
    grace: u32,
}

const FAULTS: [Fault; 11] = [
    Fault { name: "ends", make: |n| pod(n, "echo done", |_| ()), seen: succeeds, grace: 1 },
    Fault { name: "deaf", make: deaf, seen: runs, grace: 1 },
    Fault { name: "oom", make: oom, seen: killed_for_memory, grace: 1 },
    Fault { name: "bomb", make: bomb, seen: out_of_processes, grace: 1 },
    Fault { name: "volume", make: without_volume, seen: waits_for_volume, grace: 1 },
    Fault { name: "image", make: without_image, seen: waits_for_image, grace: 1 },
    Fault { name: "shim", make: server, seen: outlives_its_shim, grace: 1 },
    Fault { name: "process", make: server, seen: outlives_its_process, grace: 1 },
    Fault { name: "hasty", make: server, seen: |_, _| Ok(()), grace: 1 },
    Fault { name: "forced", make: server, seen: runs, grace: 0 },
    Fault { name: "busy", make: busy, seen: runs, grace: 1 },
];

fn deaf(name: &str) -> Value {
    pod(name, "trap '' TERM INT HUP; while :; do sleep 1; done", |_| ())
}

fn oom(name: &str) -> Value {
    pod(name, "tail /dev/zero", |spec| {
        spec["containers"][0]["resources"] = json!({"limits": {"memory": "24Mi"}});
    })
}

/// Bounded, should the limit not hold.
fn bomb(name: &str) -> Value {
    pod(name, "for n in $(seq 200); do sleep 600 & done; wait", |_| ())
}

fn without_volume(name: &str) -> Value {
    pod(name, "sleep 600", |spec| {
        spec["volumes"] = json!([{"name": "v", "configMap": {"name": "nowhere"}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    })
}

fn without_image(name: &str) -> Value {
    // The discard port: nobody listens, so the registry can't be reached at once.
    pod(name, "", |spec| spec["containers"][0]["image"] = "127.0.0.1:9/none:1".into())
}

/// Runs until it is told to end, and again when something else ends it.
fn server(name: &str) -> Value {
    pod(name, "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done", |spec| {
        spec["restartPolicy"] = "Always".into()
    })
}

/// Everything that a pod can have more of: containers, volumes, a process namespace of its own, hooks.
fn busy(name: &str) -> Value {
    pod(name, "", |spec| {
        let work = "mkfifo /a/f$HOSTNAME 2>/dev/null; dd if=/dev/zero of=/a/big bs=1M count=4 2>/dev/null; sleep 600";
        spec["volumes"] = json!([{"name": "a", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory"}},
            {"name": "d", "downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}]);
        let mounts = json!([{"name": "a", "mountPath": "/a", "subPath": "x/y"}, {"name": "m", "mountPath": "/m"},
            {"name": "d", "mountPath": "/d"}]);
        spec["initContainers"] = json!([container("first", "echo first > /a/first")]);
        spec["containers"] = json!([container("one", work), container("two", work)]);
        spec["containers"][0]["lifecycle"] = json!({"postStart": {"exec": {"command": ["true"]}},
            "preStop": {"exec": {"command": ["sleep", "30"]}}});
        spec["shareProcessNamespace"] = true.into();
        for part in ["/initContainers/0", "/containers/0", "/containers/1"] {
            if let Some(container) = spec.pointer_mut(part) {
                container["volumeMounts"] = mounts.clone();
            }
        }
    })
}

fn succeeds(s: &Scope<'_>, name: &str) -> anyhow::Result<()> {
    let ended =
        wait(s, name, "an end", |p| p["status"]["phase"] == "Succeeded" || p["status"]["phase"] == "Failed")?;
    ensure!(ended["status"]["phase"] == "Succeeded", "{}", ended["status"]);
    Ok(())
}

fn runs(s: &Scope<'_>, name: &str) -> anyhow::Result<()> {
    wait(s, name, "readiness", |p| condition(p, "Ready")).map(drop)
}

fn killed_for_memory(s: &Scope<'_>, name: &str) -> anyhow::Result<()> {
    let ended = wait(s, name, "an end", |p| p["status"]["phase"] == "Failed")?;
    let state = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(state["reason"] == "OOMKilled" && state["exitCode"] == 137, "{}", ended["status"]);
    Ok(())
}

fn out_of_processes(s: &Scope<'_>, name: &str) -> anyhow::Result<()> {
    let ended = wait(s, name, "an end", |p| p["status"]["phase"] == "Failed")?;
    let state = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(state["reason"] == "Error" && state["exitCode"] == 2, "{}", ended["status"]);
    Ok(())
}

fn waits_for_volume(s: &Scope<'_>, name: &str) -> anyhow::Result<()> {
    let waiting =
        |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ContainerCreating";
    let pod = wait(s, name, "waiting", waiting)?;
    event(s, &pod, "FailedMount", "configmap \"nowhere\" not found")
}

fn waits_for_image(s: &Scope<'_>, name: &str) -> anyhow::Result<()> {
    let reason = |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    let pod =
        wait(s, name, "a failed pull", |p| reason(p) == "ErrImagePull" || reason(p) == "ImagePullBackOff")?;
    event(s, &pod, "Failed", "127.0.0.1:9")
}

fn outlives_its_shim(s: &Scope<'_>, name: &str) -> anyhow::Result<()> {
    let pod = wait(s, name, "readiness", |p| condition(p, "Ready"))?;
    let shim = of_pod(uid(&pod)).1.with_context(|| format!("{name} has no shim"))?;
    strike(shim)?;
    runs_again(s, name, &pod)
}

fn outlives_its_process(s: &Scope<'_>, name: &str) -> anyhow::Result<()> {
    let pod = wait(s, name, "readiness", |p| condition(p, "Ready"))?;
    let processes = of_pod(uid(&pod)).0;
    ensure!(!processes.is_empty(), "{name} has no process");
    processes.into_iter().try_for_each(strike)?;
    runs_again(s, name, &pod)
}

fn runs_again(s: &Scope<'_>, name: &str, before: &Value) -> anyhow::Result<()> {
    let id = |p: &Value| p["status"]["containerStatuses"][0]["containerID"].clone();
    let old = id(before);
    let again = |p: &Value| condition(p, "Ready") && id(p) != old;
    let pod = wait(s, name, "another container", again)?;
    let status = &pod["status"]["containerStatuses"][0];
    ensure!(status["restartCount"].as_u64() >= Some(1), "{status}");
    ensure!(status["lastState"]["terminated"]["reason"].is_string(), "nothing says how it ended: {status}");
    Ok(())
}

fn uid(pod: &Value) -> &str {
    pod["metadata"]["uid"].as_str().unwrap_or_default()
}

/// Kills a process; one that has just ended by itself is no less gone.
fn strike(pid: u32) -> anyhow::Result<()> {
    match kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Waits for a state of a pod through any number of dead servers.
fn wait(s: &Scope<'_>, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let until = Instant::now() + PATIENCE;
    loop {
        match s.wait_any("pods", name, what, &is) {
            Ok(pod) => return Ok(pod),
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => s.pause(LOOK),
        }
    }
}

/// Waits for an event of a pod.
fn event(s: &Scope<'_>, pod: &Value, reason: &str, part: &str) -> anyhow::Result<()> {
    let is = |event: &Value| {
        let about = event["involvedObject"]["uid"] == pod["metadata"]["uid"] && event["reason"] == reason;
        about && event["message"].as_str().is_some_and(|m| m.contains(part))
    };
    patiently(s, || {
        let events = s.list("events", "")?;
        ensure!(events.iter().any(is), "no event {reason} with {part:?}");
        Ok(())
    })
}

/// Tries something until it works: the server is dead now and then.
fn patiently<T>(s: &Scope<'_>, mut attempt: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => s.pause(LOOK),
        }
    }
}

fn code(error: &client::Error) -> Option<u16> {
    error.status().map(|s| s.code)
}

/// The whole life of one pod.
fn live(s: &Scope<'_>, fault: &Fault, number: usize) -> anyhow::Result<()> {
    let name = format!("{}-{number}", fault.name);
    patiently(s, || match s.create("pods", (fault.make)(&name)) {
        // The answer to the first try was lost with the server.
        Err(error) if code(&error) == Some(409) => Ok(()),
        other => Ok(other.map(drop)?),
    })?;
    (fault.seen)(s, &name).with_context(|| name.clone())?;
    let grace = DeleteParams { grace_period_seconds: Some(fault.grace.into()), ..Default::default() };
    patiently(s, || match s.delete("pods", &name, &grace) {
        Err(error) if code(&error) == Some(404) => Ok(()),
        other => Ok(other?),
    })?;
    patiently(s, || s.wait_gone("pods", &name)).with_context(|| format!("{name} does not go"))
}

/// All pods, a few at a time, while Ferry is killed; answers what went wrong.
fn storm(cluster: &Cluster, s: &Scope<'_>) -> Vec<anyhow::Error> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|threads| {
        let work = || {
            let mut failed = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= PODS {
                    return failed;
                }
                failed.extend(live(s, &FAULTS[number % FAULTS.len()], number).err());
                done.fetch_add(1, Ordering::Relaxed);
            }
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| threads.spawn(work)).collect();
        let mut failed = Vec::new();
        for crash in 1..PODS / PODS_PER_CRASH {
            while done.load(Ordering::Relaxed) < crash * PODS_PER_CRASH {
                s.pause(LOOK);
            }
            failed.extend(cluster.crash_and_restart().err());
        }
        failed.extend(workers.into_iter().flat_map(|w| w.join().unwrap_or_default()));
        failed
    })
}

/// What the cluster holds, and how many descriptors its server has open.
fn holdings(cluster: &Cluster) -> anyhow::Result<(BTreeSet<String>, usize)> {
    let mut all = census(&cluster.id()?, &cluster.data())?;
    // The server itself is another process after each crash.
    all.retain(|line| !(line.starts_with("process") && line.contains(" up --")));
    all.extend(directories(&cluster.data()));
    let pid = cluster.pid().context("no server")?;
    Ok((all, std::fs::read_dir(format!("/proc/{pid}/fd"))?.count()))
}

fn kubelet_configuration(directory: &Path) -> anyhow::Result<PathBuf> {
    let file = directory.join("kubelet.yaml");
    std::fs::write(
        &file,
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\npodPidsLimit: 40\n",
    )?;
    Ok(file)
}

#[test]
fn five_hundred_pods_with_faults_leave_nothing() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = kubelet_configuration(directory.path())?;
    let cluster = Cluster::start_with(&["--kubelet-config", &file.to_string_lossy()])?;
    let s = cluster.namespace("faults")?;
    // What is made once for all pods is there after the first.
    for (number, fault) in FAULTS.iter().enumerate() {
        live(&s, fault, PODS + number)?;
    }
    let (before, descriptors) = holdings(&cluster)?;
    let failed = storm(&cluster, &s);
    ensure!(
        failed.is_empty(),
        "{} pods failed:\n{}",
        failed.len(),
        failed.iter().map(|e| format!("{e:#}\n")).collect::<String>()
    );
    // The last containers go a moment after their pods.
    let until = Instant::now() + PATIENCE;
    loop {
        let (after, open) = holdings(&cluster)?;
        let more: Vec<&String> = after.difference(&before).collect();
        if more.is_empty() && open <= descriptors + DESCRIPTORS_SLACK {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("left of {PODS} pods: {more:#?}; descriptors {descriptors} -> {open}");
        }
        s.pause(LOOK);
    }
}

/// Room of a small disk, and what of it is taken away: all.
const DISK: u64 = 192 << 20;

#[test]
fn a_full_disk_stops_writing_until_there_is_room() -> anyhow::Result<()> {
    let cluster = Cluster::start_on_disk(DISK)?;
    // From here on its port is among its arguments, so that it is found again where it was.
    cluster.crash_and_restart()?;
    let s = cluster.namespace("full")?;
    let before = s.ready(server("before"))?;
    let filler = cluster.data().join("filler");
    let mut file = std::fs::File::create(&filler)?;
    let full = loop {
        if let Err(error) = file.write_all(&[1; 4096]) {
            break error;
        }
    };
    ensure!(full.kind() == std::io::ErrorKind::StorageFull, "{full}");
    // Some pages may still be free within the store's files: larger objects find out.
    let map = |name: &str| json!({"metadata": {"name": name}, "data": {"bytes": "x".repeat(100_000)}});
    let mut acknowledged = Vec::new();
    let refused = loop {
        let name = format!("map-{}", acknowledged.len());
        match s.create("configmaps", map(&name)) {
            Ok(_) => acknowledged.push(name),
            Err(error) => break error,
        }
        ensure!(acknowledged.len() < 10_000, "the disk is never full");
    };
    let status = refused.status().context("no Status")?;
    ensure!(status.code == 500, "{status:?}");
    has(&status.message, &["no space is left for the cluster's store", "free some on its disk"])?;
    // What is there can be read, and runs.
    ensure!(s.get("pods", "before")?["metadata"]["uid"] == before["metadata"]["uid"]);
    ensure!(!of_pod(uid(&before)).0.is_empty(), "the pod's processes are gone");
    ensure!(s.create("configmaps", map("still-full")).is_err());
    drop(file);
    std::fs::remove_file(&filler)?;
    patiently(&s, || match s.create("configmaps", map("after")) {
        Err(error) if code(&error) == Some(409) => Ok(()),
        other => Ok(other.map(drop)?),
    })?;
    for name in &acknowledged {
        s.get("configmaps", name).with_context(|| format!("{name} was acknowledged"))?;
    }
    let after = patiently(&s, || s.pod_ready("before"))?;
    ensure!(
        after["status"]["containerStatuses"][0]["containerID"]
            == before["status"]["containerStatuses"][0]["containerID"],
        "{}",
        after["status"]
    );
    patiently(&s, || s.ready(server("later")))?;
    Ok(())
}

#[test]
fn a_read_only_image_store_serves_what_it_has() -> anyhow::Result<()> {
    let cluster = Cluster::start_with_image_disk(DISK)?;
    let registry = Registry::start("kitten", &[("data", b"meow")])?;
    let s = cluster.namespace("frozen")?;
    let before = s.ready(server("before"))?;
    cluster.remount_disk(true)?;
    // What is there can be used, by one that runs and by new ones.
    s.ready(server("after"))?;
    let reader = pod("reader", "cat /volume/data", |spec| {
        spec["volumes"] = json!([{"name": "v", "image": {"reference": registry.reference}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/volume"}]);
    });
    s.create("pods", reader)?;
    let waiting = |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let refused =
        s.wait_any("pods", "reader", "a failed pull", |p| waiting(p)["reason"] == "ErrImagePull")?;
    let images = cluster.data().join("images");
    let expected =
        format!("cannot write to the image store {}: it is on a read-only file system", images.display());
    has(waiting(&refused)["message"].as_str().unwrap_or_default(), &[&expected])?;
    // So it is after a crash, and the pods have not noticed.
    cluster.crash_and_restart()?;
    let still = patiently(&s, || s.pod_ready("before"))?;
    let id = |p: &Value| p["status"]["containerStatuses"][0]["containerID"].clone();
    ensure!(id(&still) == id(&before), "{}", still["status"]);
    patiently(&s, || s.ready(server("later")))?;
    ensure!(condition(&s.list("nodes", "")?[0], "Ready"), "the node is not ready");
    cluster.remount_disk(false)?;
    let read = s.wait_any("pods", "reader", "an end", |p| p["status"]["phase"] == "Succeeded")?;
    ensure!(s.logs("reader", "main")? == "meow", "{}", read["status"]);
    Ok(())
}
