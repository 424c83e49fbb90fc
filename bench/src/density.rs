//! A full node: many pods asked for at once until all are Ready, and what each of them costs in memory beyond
//! its own processes.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::WatchParams;
use serde_json::Value;

use crate::containerd::Peer;
use crate::idle::{processes, rollup_kib};
use crate::instance::{Home, Instance, PODS};
use crate::pods::{NAMESPACE, pod, start_one};
use crate::report::{Table, Target, median_ms};
use crate::{Options, floors};

/// Pods at once; a node takes 110 by default.
const PODS_AT_ONCE: usize = 100;
/// Longest wait for all of them.
const PATIENCE: Duration = Duration::from_secs(180);
/// What a start allocates for a moment is given back after this.
const SETTLE: Duration = Duration::from_secs(5);
/// What the pods themselves run: not ours to count.
const OWN: &str = "sleep";

/// What one node did.
struct Figures {
    all_ready: Duration,
    /// Per pod, in MB: proportional memory of everything but the pods' own processes, and what the machine as a
    /// whole had less.
    memory: (f64, f64),
}

/// Measures and prints.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let floor = median_ms(&floors::processes(true)?) / 1e3 * PODS_AT_ONCE as f64;
    let ours = figures(options, None).await?;
    let mut table = Table::new(&format!(
        "density: {PODS_AT_ONCE} pods at once on one node (floor: as many fork+exec in five namespaces, one by one)"
    ));
    let seconds = ours.all_ready.as_secs_f64();
    table.row("until all are Ready", seconds, "s", Some(floor), Target::AtMost(5.0));
    let peer = match Peer::start(options)? {
        Some(peer) => Some(figures(options, Some(&peer)).await?),
        None => None,
    };
    table.row("memory per pod beyond its own (PSS)", ours.memory.0, "MB", None, Target::AtMost(1.5));
    table.row("memory per pod, whole machine, kernel too", ours.memory.1, "MB", None, Target::None);
    if let Some(peer) = peer {
        table.row(
            "on containerd, until all are Ready",
            peer.all_ready.as_secs_f64(),
            "s",
            None,
            Target::None,
        );
        table.row("on containerd, memory per pod (PSS)", peer.memory.0, "MB", None, Target::None);
        table.row("on containerd, memory per pod, whole machine", peer.memory.1, "MB", None, Target::None);
    }
    table.print();
    Ok(())
}

async fn figures(options: &Options, peer: Option<&Peer>) -> anyhow::Result<Figures> {
    let mut home = Home::new(options)?.with_arguments(peer.map(Peer::arguments).unwrap_or_default());
    let instance = home.start().await?;
    instance.node_ready().await?;
    if peer.is_none() {
        instance.import_image().await?;
    }
    start_one(&instance, "warm-up").await?;
    tokio::time::sleep(SETTLE).await;
    let before = memory(&instance, peer)?;
    let all_ready = all_ready(&instance).await?;
    tokio::time::sleep(SETTLE).await;
    let after = memory(&instance, peer)?;
    let per_pod =
        |before: u64, after: u64| (after as f64 - before as f64) * 1024.0 / 1e6 / PODS_AT_ONCE as f64;
    // The machine's figure is what is left, so it goes down.
    Ok(Figures { all_ready, memory: (per_pod(before.0, after.0), per_pod(after.1, before.1)) })
}

/// Proportional memory of what serves the pods, and what the machine has left, in KiB.
fn memory(instance: &Instance<'_>, peer: Option<&Peer>) -> anyhow::Result<(u64, u64)> {
    let mut pids: HashSet<u32> = processes(instance.pid(), &instance.home().binary()).into_iter().collect();
    if let Some(peer) = peer {
        for shim in of_directory(peer.path()) {
            pids.extend(processes(shim, Path::new("/nonexistent")));
        }
    }
    let own = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == OWN);
    let used = pids.iter().filter(|pid| !own(pid)).map(|pid| rollup_kib(*pid, "Pss")).sum();
    let machine = std::fs::read_to_string("/proc/meminfo")?;
    let left = machine
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse().ok());
    Ok((used, left.context("no MemAvailable")?))
}

/// Processes whose command line names a directory.
fn of_directory(directory: &Path) -> Vec<u32> {
    let name = directory.to_string_lossy();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(&*name).then_some(pid)
    })
    .collect()
}

/// Creates the pods and waits until each is Ready; how long that took from the first request.
async fn all_ready(instance: &Instance<'_>) -> anyhow::Result<Duration> {
    let client = instance.client()?;
    let mut events = client.watch(&PODS, NAMESPACE, &WatchParams::default()).await?;
    let started = Instant::now();
    let creating = async {
        let names = (0..PODS_AT_ONCE).map(|n| format!("dense-{n}"));
        let creates = names.map(|name| async move { client.create(&PODS, NAMESPACE, &pod(&name)).await });
        for created in futures_util::future::join_all(creates).await {
            created?;
        }
        anyhow::Ok(())
    };
    let mut ready = HashSet::new();
    let watching = async {
        while ready.len() < PODS_AT_ONCE {
            let Some(event) = events.next().await else { bail!("the watch ended") };
            let pod: Value = serde_json::from_slice(&event?.object)?;
            let conditions = pod["status"]["conditions"].as_array();
            let is = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
            match pod["metadata"]["name"].as_str() {
                Some(name) if is && name.starts_with("dense-") => ready.insert(name.to_owned()),
                _ => false,
            };
        }
        Ok(())
    };
    let both = futures_util::future::try_join(creating, watching);
    let done = tokio::time::timeout(PATIENCE, both).await;
    match done {
        Ok(result) => result?,
        Err(_) => bail!("only {} of {PODS_AT_ONCE} pods are Ready:\n{}", ready.len(), instance.log_tail()),
    };
    Ok(started.elapsed())
}
