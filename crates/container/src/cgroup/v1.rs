//! Cgroup v1: a tree per controller (or per group of them).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{CgroupError, CgroupStats, DeviceRule, UNLIMITED, flat, number, read, write};

/// Controllers that containers are put into.
const USED: [&str; 8] = ["cpu", "cpuacct", "memory", "pids", "devices", "cpuset", "hugetlb", "freezer"];

/// Where each controller's tree is mounted.
#[derive(Debug, Clone, Default)]
pub(super) struct Hierarchies(BTreeMap<String, PathBuf>);

impl Hierarchies {
    pub(super) fn from_mounts(table: &str) -> Hierarchies {
        let mut found = BTreeMap::new();
        for line in table.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount_point) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            if right.next() != Some("cgroup") {
                continue;
            }
            for option in right.nth(1).unwrap_or("").split(',').filter(|o| USED.contains(o)) {
                found.insert(option.to_owned(), PathBuf::from(mount_point));
            }
        }
        Hierarchies(found)
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.0.contains_key(controller)
    }

    pub(super) fn dir(&self, controller: &str, path: &Path) -> Option<PathBuf> {
        self.0.get(controller).map(|root| root.join(path))
    }

    /// Each tree once, also where two controllers share one.
    pub(super) fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        let mut roots: Vec<&PathBuf> = self.0.values().collect();
        roots.sort();
        roots.dedup();
        roots.into_iter()
    }

    pub(super) fn create(&self, path: &Path) -> Result<(), CgroupError> {
        for root in self.roots() {
            let dir = root.join(path);
            fs::create_dir_all(&dir).map_err(CgroupError::io(format!("create {}", dir.display())))?;
        }
        if let Some(root) = self.0.get("cpuset") {
            // A new cpuset is empty and takes no process: fill it from above, all the way down.
            let mut dir = root.clone();
            for part in path.components() {
                let above = dir.clone();
                dir.push(part);
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if read(&dir.join(file)).trim().is_empty() {
                        write(&dir.join(file), read(&above.join(file)).trim())?;
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn join(&self, path: &Path) -> Result<(), CgroupError> {
        self.roots().try_for_each(|root| write(&root.join(path).join("cgroup.procs"), "0"))
    }

    fn set(&self, controller: &str, path: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
        match self.dir(controller, path) {
            Some(dir) => write(&dir.join(file), value),
            None => Ok(()),
        }
    }

    pub(super) fn apply(&self, path: &Path, r: &cri::ContainerResources) -> Result<(), CgroupError> {
        if r.cpu_shares > 0 {
            self.set("cpu", path, "cpu.shares", &r.cpu_shares.to_string())?;
        }
        if r.cpu_period_us > 0 {
            self.set("cpu", path, "cpu.cfs_period_us", &r.cpu_period_us.to_string())?;
        }
        if r.cpu_quota_us != 0 {
            self.set("cpu", path, "cpu.cfs_quota_us", &r.cpu_quota_us.max(-1).to_string())?;
        }
        self.apply_memory(path, r)?;
        if r.pids_limit != 0 {
            let value = if r.pids_limit < 0 { "max".to_owned() } else { r.pids_limit.to_string() };
            self.set("pids", path, "pids.max", &value)?;
        }
        for (file, value) in [("cpuset.cpus", &r.cpuset_cpus), ("cpuset.mems", &r.cpuset_mems)] {
            if !value.is_empty() {
                self.set("cpuset", path, file, value)?;
            }
        }
        for limit in &r.hugepage_limits {
            let file = format!("hugetlb.{}.limit_in_bytes", limit.page_size);
            self.set("hugetlb", path, &file, &limit.limit_bytes.to_string())?;
        }
        Ok(())
    }

    fn apply_memory(&self, path: &Path, r: &cri::ContainerResources) -> Result<(), CgroupError> {
        let value = |limit: i64| if limit < 0 { "-1".to_owned() } else { limit.to_string() };
        let memory = || match r.memory_limit_bytes {
            0 => Ok(()),
            limit => self.set("memory", path, "memory.limit_in_bytes", &value(limit)),
        };
        let swap = || match r.memory_swap_limit_bytes {
            0 => Ok(()),
            limit => match self.set("memory", path, "memory.memsw.limit_in_bytes", &value(limit)) {
                // The kernel may be built or booted without swap accounting.
                Err(CgroupError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            },
        };
        // The one may never be above the other: growing starts with the sum, shrinking with the part.
        if swap().is_ok() {
            return memory();
        }
        memory()?;
        swap()
    }

    pub(super) fn allow_devices(&self, path: &Path, rules: Option<&[DeviceRule]>) -> Result<(), CgroupError> {
        let Some(rules) = rules else { return self.set("devices", path, "devices.allow", "a") };
        self.set("devices", path, "devices.deny", "a")?;
        rules.iter().try_for_each(|rule| self.set("devices", path, "devices.allow", &rule.to_string()))
    }

    pub(super) fn stats(&self, path: &Path) -> CgroupStats {
        let file = |controller: &str, name: &str| self.dir(controller, path).unwrap_or_default().join(name);
        let memory = read(&file("memory", "memory.stat"));
        let usage = number(&file("memory", "memory.usage_in_bytes"));
        let limit = number(&file("memory", "memory.limit_in_bytes"));
        CgroupStats {
            cpu_usage_ns: number(&file("cpuacct", "cpuacct.usage")),
            memory_usage: usage,
            memory_working_set: usage.saturating_sub(flat(&memory, "total_inactive_file")),
            memory_rss: flat(&memory, "total_rss"),
            memory_limit: Some(limit).filter(|l| (1..UNLIMITED).contains(l)),
            page_faults: flat(&memory, "total_pgfault"),
            major_page_faults: flat(&memory, "total_pgmajfault"),
            pids: number(&file("pids", "pids.current")),
        }
    }
}
