//! Resource use.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::{Container, Runtime, blocking};

/// Most files of a writable layer that are counted; a container with more shows this many.
const FILES_MAX: u64 = 1_000_000;

/// Bytes and files below a directory.
fn usage(dir: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut files) = (0, 0);
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            // Blocks, not length: holes take no room.
            bytes += metadata.blocks() * 512;
            files += 1;
            if files >= FILES_MAX {
                return (bytes, files);
            }
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    (bytes, files)
}

/// Counters from the text of `/proc/<pid>/net/dev`.
fn interfaces(text: &str) -> Vec<cri::InterfaceStats> {
    text.lines()
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let n: Vec<u64> = counters.split_whitespace().filter_map(|c| c.parse().ok()).collect();
            let name = name.trim();
            (name != "lo" && n.len() >= 16).then(|| cri::InterfaceStats {
                name: name.to_owned(),
                rx_bytes: n[0],
                rx_errors: n[2],
                tx_bytes: n[8],
                tx_errors: n[10],
            })
        })
        .collect()
}

impl Runtime {
    pub(super) async fn stats_of(&self, container: Arc<Container>) -> cri::Result<cri::ContainerStats> {
        let (cgroups, timestamp) = (self.cgroups.clone(), self.config.clock.now());
        blocking(move || {
            let file = container.file.read().clone();
            let s =
                cgroups.stats(&file.cgroup).map_err(|e| cri::Error::Internal { message: e.to_string() })?;
            let (writable_layer_bytes, writable_layer_inodes) = usage(&container.dir.join("upper"));
            Ok(cri::ContainerStats {
                id: container.id.clone(),
                sandbox_id: file.sandbox_id,
                name: file.config.name,
                timestamp,
                cpu_usage_ns: s.cpu_usage_ns,
                memory_usage_bytes: s.memory_usage,
                memory_working_set_bytes: s.memory_working_set,
                memory_rss_bytes: s.memory_rss,
                memory_available_bytes: s.memory_limit.map(|l| l.saturating_sub(s.memory_working_set)),
                page_faults: s.page_faults,
                major_page_faults: s.major_page_faults,
                pids: s.pids,
                writable_layer_bytes,
                writable_layer_inodes,
            })
        })
        .await
    }

    pub(super) fn sandbox_stats(&self, id: &str) -> cri::Result<cri::PodSandboxStats> {
        let sandbox = self.sandbox(id)?;
        let config = sandbox.state.read().config.clone();
        let cgroup = match config.cgroup_parent.as_str() {
            "" => self.cgroup_root().join(id),
            parent => parent.into(),
        };
        let s = self.cgroups.stats(&cgroup).map_err(|e| cri::Error::Internal { message: e.to_string() })?;
        let pid = *sandbox.shim_pid.borrow();
        let own_network = config.security.namespaces.network == cri::NamespaceMode::Pod && pid != 0;
        let table = if own_network { fs::read_to_string(format!("/proc/{pid}/net/dev")).ok() } else { None };
        Ok(cri::PodSandboxStats {
            id: id.to_owned(),
            timestamp: self.config.clock.now(),
            cpu_usage_ns: s.cpu_usage_ns,
            memory_usage_bytes: s.memory_usage,
            memory_working_set_bytes: s.memory_working_set,
            memory_rss_bytes: s.memory_rss,
            pids: s.pids,
            interfaces: interfaces(&table.unwrap_or_default()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_interface_counters() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop\n\
            \x20   lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  eth0: 10 2 3 4 5 6 7 8 90 10 11 12 13 14 15 16\n";
        let want = cri::InterfaceStats {
            name: "eth0".into(),
            rx_bytes: 10,
            rx_errors: 3,
            tx_bytes: 90,
            tx_errors: 11,
        };
        assert_eq!(interfaces(text), [want]);
    }
}
