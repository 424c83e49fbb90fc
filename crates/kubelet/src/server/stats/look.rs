//! One look at what the node and its pods use.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use cri::{
    ContainerFilter, ContainerStats, ContainerStatus, InterfaceStats, PodSandboxFilter, PodSandboxStats,
};
use jiff::Timestamp;
use parking_lot::Mutex;

use crate::agent::Agent;
use crate::cgroup;
use crate::eviction::observe;
use crate::spec::{PodDirs, mark};
use crate::volume::figures::OfClaim;

/// Shortest time over which a rate is worth anything.
const RATE_NS_MIN: i64 = 100_000_000;
/// How long the second look comes after the first, where there was none before.
const SECOND_LOOK: Duration = Duration::from_millis(150);
/// Readings remembered: several times the containers of a full node.
const READINGS_MAX: usize = 4096;

/// What was read of a counter last, and the rate since the time before.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Timestamp,
    ns: u64,
    rate: Option<u64>,
}

/// Rates of processor time, by container id; the empty id is the node.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<String, Reading>>);

impl Rates {
    /// Notes a counter; the rate in nanoseconds of processor time per second, once it is known.
    pub fn note(&self, id: &str, at: Timestamp, ns: u64) -> Option<u64> {
        let mut readings = self.0.lock();
        if readings.len() > READINGS_MAX {
            readings.clear();
        }
        let Some(last) = readings.get_mut(id) else {
            readings.insert(id.to_owned(), Reading { at, ns, rate: None });
            return None;
        };
        let elapsed = i64::try_from(at.duration_since(last.at).as_nanos()).unwrap_or(0);
        if elapsed >= RATE_NS_MIN {
            let used = u128::from(ns.saturating_sub(last.ns));
            let rate = u64::try_from(used * 1_000_000_000 / u128::from(elapsed.unsigned_abs())).ok();
            *last = Reading { at, ns, rate };
        }
        last.rate
    }
}

/// A container and what it uses.
pub(super) struct ContainerUse {
    pub stats: ContainerStats,
    pub status: Option<ContainerStatus>,
    pub rate: Option<u64>,
    pub log_bytes: i64,
    pub log_files: i64,
}

/// A pod and what it uses.
pub(super) struct PodUse {
    pub pod: Arc<Pod>,
    pub containers: Vec<ContainerUse>,
    pub sandbox: Option<PodSandboxStats>,
    /// Name, bytes and files.
    pub volumes: Vec<(String, i64, i64)>,
    /// Volumes that claims stand behind.
    pub claims: Vec<OfClaim>,
}

/// A file system.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Disk {
    pub available: u64,
    pub capacity: u64,
    pub used: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// The node and its pods.
pub(super) struct Seen {
    pub at: Timestamp,
    pub pods: Vec<PodUse>,
    pub cpu_ns: u64,
    pub cpu_rate: Option<u64>,
    pub memory_total: u64,
    pub memory_available: u64,
    pub memory_rss: u64,
    pub memory_usage: u64,
    pub page_faults: (u64, u64),
    pub swap: (u64, u64),
    pub disk: Disk,
    pub images: Option<cri::FsInfo>,
    pub interfaces: Vec<InterfaceStats>,
    pub process_ids: Option<(u64, u64)>,
    pub booted: Option<Timestamp>,
    /// Limit and working set of all pods' memory.
    pub all_pods: Option<(u64, u64)>,
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Nanoseconds that the machine's processors have worked.
fn worked(stat: &str) -> u64 {
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, then idle and iowait, which are not use; 100 ticks a second.
    let used: u64 = ticks.iter().take(3).chain(ticks.iter().skip(5).take(3)).sum();
    used.saturating_mul(10_000_000)
}

/// Counters of interfaces that are no pod's.
fn interfaces(table: &str) -> Vec<InterfaceStats> {
    let lines = table.lines().filter_map(|line| {
        let (name, counters) = line.split_once(':')?;
        let name = name.trim();
        let n: Vec<u64> = counters.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        (name != "lo" && !name.starts_with("veth")).then_some(())?;
        Some(InterfaceStats {
            name: name.to_owned(),
            rx_bytes: *n.first()?,
            rx_errors: *n.get(2)?,
            tx_bytes: *n.get(8)?,
            tx_errors: *n.get(10)?,
        })
    });
    lines.collect()
}

fn disk(path: &Path) -> Disk {
    let Ok(stat) = rustix::fs::statvfs(observe::existing(path)) else { return Disk::default() };
    let blocks = |count: u64| count.saturating_mul(stat.f_frsize);
    Disk {
        available: blocks(stat.f_bavail),
        capacity: blocks(stat.f_blocks),
        used: blocks(stat.f_blocks.saturating_sub(stat.f_bfree)),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
    }
}

/// Containers of pods that have a worker, by pod.
async fn grouped(agent: &Agent) -> cri::Result<Vec<(Arc<Pod>, Vec<ContainerUse>)>> {
    let all = agent.runtime.list_containers(&ContainerFilter::default()).await?;
    let stats = agent.runtime.list_container_stats(&ContainerFilter::default()).await?;
    let statuses: HashMap<String, ContainerStatus> = all.into_iter().map(|c| (c.id.clone(), c)).collect();
    let mut grouped: BTreeMap<String, Vec<ContainerUse>> = BTreeMap::new();
    for stats in stats {
        let status = statuses.get(&stats.id).cloned();
        let Some(uid) = status.as_ref().and_then(|status| status.labels.get(mark::POD_UID)).cloned() else {
            continue;
        };
        let rate = agent.rates.note(&stats.id, stats.timestamp, stats.cpu_usage_ns);
        let own = ContainerUse { stats, status, rate, log_bytes: 0, log_files: 0 };
        grouped.entry(uid).or_default().push(own);
    }
    let workers = agent.workers.0.lock();
    let pod = |uid: &str| Some(workers.get(uid)?.desired.borrow().pod.clone());
    Ok(grouped.into_iter().filter_map(|(uid, containers)| Some((pod(&uid)?, containers))).collect())
}

async fn pods(agent: &Agent, files: bool) -> cri::Result<Vec<PodUse>> {
    let sandboxes = agent.runtime.list_pod_sandboxes(&PodSandboxFilter::default()).await?;
    let mut pods = Vec::new();
    for (pod, mut containers) in grouped(agent).await? {
        let own = sandboxes.iter().find(|s| s.uid == pod.uid() && s.state == cri::PodSandboxState::Ready);
        let sandbox = match own {
            Some(sandbox) => agent.runtime.pod_sandbox_stats(&sandbox.id).await.ok(),
            None => None,
        };
        let mut volumes = Vec::new();
        let mut claims = Vec::new();
        if files {
            claims = agent.volumes.figures(&pod).await;
            let dirs = PodDirs::new(&agent.config.root_dir, &agent.config.log_dir, &pod);
            let logs: Vec<_> = containers
                .iter()
                .map(|c| c.status.as_ref().and_then(|s| s.log_path.parent().map(Path::to_owned)))
                .collect();
            let measured = pod.clone();
            let measuring = tokio::task::spawn_blocking(move || {
                let logs: Vec<_> =
                    logs.iter().map(|path| path.as_deref().map_or((0, 0), observe::usage)).collect();
                (crate::eviction::volumes(&measured, &dirs), logs)
            });
            let (found, logs) = measuring.await.unwrap_or_default();
            volumes = found;
            for (container, (bytes, files)) in containers.iter_mut().zip(logs) {
                (container.log_bytes, container.log_files) = (bytes, files);
            }
        }
        pods.push(PodUse { pod, containers, sandbox, volumes, claims });
    }
    pods.sort_by_key(|used| used.pod.key());
    Ok(pods)
}

/// Looks; with `files` also at what pods' files take, which may take long.
pub(super) async fn take(agent: &Agent, files: bool) -> cri::Result<Seen> {
    let mut used = pods(agent, files).await?;
    let stat = text("/proc/stat");
    let mut at = agent.clock.now();
    let mut cpu_ns = worked(&stat);
    let mut cpu_rate = agent.rates.note("", at, cpu_ns);
    // Nobody has looked before: a rate needs two looks.
    if cpu_rate.is_none() || used.iter().flat_map(|pod| &pod.containers).any(|c| c.rate.is_none()) {
        tokio::time::sleep(SECOND_LOOK).await;
        at = agent.clock.now();
        for container in used.iter_mut().flat_map(|pod| &mut pod.containers) {
            if let Ok(stats) = agent.runtime.container_stats(&container.stats.id).await {
                container.rate = agent.rates.note(&stats.id, stats.timestamp, stats.cpu_usage_ns);
                container.stats = stats;
            }
        }
        cpu_ns = worked(&text("/proc/stat"));
        cpu_rate = agent.rates.note("", at, cpu_ns);
    }
    let table = text("/proc/meminfo");
    let line = |name: &str| observe::memory_line(&table, name).unwrap_or(0);
    let faults = text("/proc/vmstat");
    let fault = |name: &str| {
        let found = faults.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        found.unwrap_or(0)
    };
    let booted = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
    let images = if files { agent.images.service().fs_info().await.ok() } else { None };
    let root = &agent.config.cgroup_root;
    Ok(Seen {
        at,
        pods: used,
        cpu_ns,
        cpu_rate,
        memory_total: line("MemTotal"),
        memory_available: line("MemAvailable"),
        memory_rss: line("AnonPages"),
        memory_usage: line("MemTotal").saturating_sub(line("MemFree")),
        page_faults: (fault("pgfault "), fault("pgmajfault ")),
        swap: (line("SwapTotal"), line("SwapFree")),
        disk: disk(&agent.config.root_dir),
        images,
        interfaces: interfaces(&text("/proc/net/dev")),
        process_ids: observe::process_ids(),
        booted: booted.and_then(|seconds| Timestamp::from_second(seconds).ok()),
        all_pods: cgroup::memory(Path::new(cgroup::MOUNT), &format!("{root}/kubepods")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let rates = Rates::default();
        let at = |millisecond: i64| Timestamp::from_millisecond(millisecond).unwrap();
        assert_eq!(rates.note("a", at(0), 1_000), None);
        assert_eq!(rates.note("a", at(50), 2_000), None, "too soon");
        assert_eq!(rates.note("a", at(2000), 1_000_001_000), Some(500_000_000));
        assert_eq!(rates.note("a", at(2010), 9_000_000_000), Some(500_000_000));
        // A counter that began anew.
        assert_eq!(rates.note("a", at(3000), 0), Some(0));
    }

    #[test]
    fn tables() {
        assert_eq!(worked("cpu  1 2 3 100 100 4 5 6 0 0\ncpu0 1"), 21 * 10_000_000);
        let table = "Inter-|\n face |\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12\n  vethx: 1 2 3 4 5 6 7 8 9 10 11 12\n\
            \x20 eth0: 10 2 3 4 5 6 7 8 90 10 11 12 13 14 15 16\n";
        let found = interfaces(table);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].rx_bytes, found[0].tx_bytes, found[0].tx_errors), (10, 90, 11));
    }
}
