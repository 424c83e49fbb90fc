//! Cgroup v2: one tree with all controllers.

use std::fs;
use std::path::{Path, PathBuf};

use super::{CgroupError, CgroupStats, flat, number, read, write};

/// Controllers handed down the tree.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

/// Where the tree is mounted.
pub(super) fn mount_point(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Makes `root/path`, handing every available controller down to it.
pub(super) fn create(root: &Path, path: &Path) -> Result<(), CgroupError> {
    let mut dir = root.to_owned();
    for part in path.components() {
        enable_controllers(&dir)?;
        dir.push(part);
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(CgroupError::io(format!("create {}", dir.display()))(e));
            }
            _ => {}
        }
    }
    Ok(())
}

fn enable_controllers(dir: &Path) -> Result<(), CgroupError> {
    let (available, enabled) =
        (read(&dir.join("cgroup.controllers")), read(&dir.join("cgroup.subtree_control")));
    let has = |text: &str, name: &str| text.split_whitespace().any(|word| word == name);
    for controller in CONTROLLERS {
        if has(&available, controller) && !has(&enabled, controller) {
            write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"))?;
        }
    }
    Ok(())
}

/// Weight for v1's shares, as current runc and crun compute it: 2 -> 1, 1024 -> 100, 262144 -> 10000.
fn cpu_weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let l = (shares as f64).log2();
            10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

pub(super) fn apply(dir: &Path, r: &cri::ContainerResources) -> Result<(), CgroupError> {
    let set = |file: &str, value: &str| write(&dir.join(file), value);
    if r.cpu_shares > 0 {
        set("cpu.weight", &cpu_weight(r.cpu_shares).to_string())?;
    }
    if r.cpu_quota_us != 0 || r.cpu_period_us > 0 {
        let quota = if r.cpu_quota_us > 0 { r.cpu_quota_us.to_string() } else { "max".to_owned() };
        let period = if r.cpu_period_us > 0 { r.cpu_period_us } else { 100_000 };
        set("cpu.max", &format!("{quota} {period}"))?;
    }
    let limit = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    if r.memory_limit_bytes != 0 {
        set("memory.max", &limit(r.memory_limit_bytes))?;
    }
    if r.memory_swap_limit_bytes != 0 && dir.join("memory.swap.max").exists() {
        let swap = match r.memory_swap_limit_bytes {
            both if both < 0 => both,
            both => (both - r.memory_limit_bytes.max(0)).max(0),
        };
        set("memory.swap.max", &limit(swap))?;
    }
    if r.pids_limit != 0 {
        set("pids.max", &limit(r.pids_limit))?;
    }
    for (file, value) in [("cpuset.cpus", &r.cpuset_cpus), ("cpuset.mems", &r.cpuset_mems)] {
        if !value.is_empty() {
            set(file, value)?;
        }
    }
    for page in &r.hugepage_limits {
        let file = format!("hugetlb.{}.max", page.page_size);
        if dir.join(&file).exists() {
            set(&file, &page.limit_bytes.to_string())?;
        }
    }
    for (file, value) in &r.unified {
        if file.contains('/') || file.starts_with("cgroup.") {
            return Err(CgroupError::BadFile(file.clone()));
        }
        set(file, value)?;
    }
    Ok(())
}

pub(super) fn stats(dir: &Path) -> CgroupStats {
    let memory = read(&dir.join("memory.stat"));
    let usage = number(&dir.join("memory.current"));
    CgroupStats {
        cpu_usage_ns: flat(&read(&dir.join("cpu.stat")), "usage_usec").saturating_mul(1000),
        memory_usage: usage,
        memory_working_set: usage.saturating_sub(flat(&memory, "inactive_file")),
        memory_rss: flat(&memory, "anon"),
        memory_limit: read(&dir.join("memory.max")).trim().parse().ok(),
        page_faults: flat(&memory, "pgfault"),
        major_page_faults: flat(&memory, "pgmajfault"),
        pids: number(&dir.join("pids.current")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights() {
        for (shares, weight) in [(2, 1), (1024, 100), (262_144, 10_000), (1, 1), (10_000_000, 10_000)] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
    }
}
