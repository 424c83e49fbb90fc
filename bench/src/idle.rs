//! What a cluster with DNS and no work costs: proportional memory and CPU time of all its processes.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use crate::Options;
use crate::instance::Home;
use crate::report::{Table, Target};

/// Start-up work is over after this.
const SETTLE: Duration = Duration::from_secs(5);

/// Measures and prints.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let mut home = Home::new(options)?;
    let instance = home.start().await?;
    instance.node_ready().await?;
    tokio::time::sleep(SETTLE).await;
    let before = cpu_seconds(&processes(instance.pid(), &instance.home().binary()));
    tokio::time::sleep(Duration::from_secs(options.idle_seconds)).await;
    let found = processes(instance.pid(), &instance.home().binary());
    let cpu = cpu_seconds(&found) - before;
    let mib = |field| found.iter().map(|pid| rollup_kib(*pid, field)).sum::<u64>() as f64 / 1024.0;
    let (memory, private) = (mib("Pss"), mib("Pss_Anon"));
    let main = rollup_kib(instance.pid(), "Pss") as f64 / 1024.0;
    let mut table = Table::new(&format!(
        "idle: {} processes over {} s, node Ready, DNS serving, no pods",
        found.len(),
        options.idle_seconds
    ));
    table.row("memory (PSS)", memory, "MiB", None, Target::AtMost(80.0));
    table.row("  of it in the main process", main, "MiB", None, Target::None);
    table.row("  of it not backed by the binary", private, "MiB", None, Target::None);
    table.row("CPU", cpu / options.idle_seconds as f64 * 100.0, "% core", None, Target::None);
    table.print();
    Ok(())
}

/// The instance's processes: its descendants, and those of the same executable (a pod's shim outlives its
/// parent on purpose).
pub fn processes(root: u32, binary: &Path) -> Vec<u32> {
    let mut parents: HashMap<u32, u32> = HashMap::new();
    let mut found = HashSet::from([root]);
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == binary) {
            found.insert(pid);
        }
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            parents.insert(pid, parent);
        }
    }
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return found.into_iter().collect();
        }
        found.extend(more);
    }
}

/// The fields of `/proc/PID/stat` after the name, which may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(String::from).collect())
}

/// User and system time used so far.
pub fn cpu_seconds(pids: &[u32]) -> f64 {
    // SAFETY: sysconf only reads a constant.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let ticks = |pid: &u32| {
        let fields = stat(*pid)?;
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    pids.iter().filter_map(ticks).sum::<u64>() as f64 / per_second
}

/// A field of `/proc/PID/smaps_rollup`; 0 when the process is gone.
pub fn rollup_kib(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let value = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        (name == field).then(|| rest.split_whitespace().next()?.parse().ok()).flatten()
    };
    text.lines().find_map(value).unwrap_or(0)
}
