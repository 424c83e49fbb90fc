//! Cgroups of pods and of QoS classes: made and weighed before a pod's containers, removed after them.
//!
//! Containers' own cgroups below are the runtime's. cgroup v1 has a hierarchy per controller, v2 one for all.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where cgroups are mounted.
pub const MOUNT: &str = "/sys/fs/cgroup";

/// Values of a pod's or class's cgroup; 0 leaves a limit out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Values {
    /// Weight in shares, 2 to 262144.
    pub cpu_shares: u64,
    /// CFS quota in a period of 100 ms, microseconds.
    pub cpu_quota_us: i64,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// Processes.
    pub pids: i64,
}

fn is_v2(mount: &Path) -> bool {
    mount.join("cgroup.controllers").exists()
}

/// Hierarchies of cgroup v1, or the one of v2.
fn roots(mount: &Path) -> Vec<PathBuf> {
    if is_v2(mount) {
        return vec![mount.to_owned()];
    }
    let entries = fs::read_dir(mount).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Shares of v1 as a weight of v2, by the kernel's and upstream's formula.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// Makes the cgroup `path` (below the mount) and sets its values.
pub fn apply(mount: &Path, path: &str, values: Values) -> io::Result<()> {
    let relative = path.trim_matches('/');
    if is_v2(mount) {
        let mut at = mount.to_owned();
        for part in relative.split('/') {
            for controller in ["+cpu", "+memory", "+pids", "+cpuset", "+io", "+hugetlb"] {
                // One by one: a controller that is missing must not keep the others out.
                let _ = fs::write(at.join("cgroup.subtree_control"), controller);
            }
            at.push(part);
            make(&at)?;
        }
        let quota = if values.cpu_quota_us > 0 { values.cpu_quota_us.to_string() } else { "max".into() };
        let memory = if values.memory_bytes > 0 { values.memory_bytes.to_string() } else { "max".into() };
        fs::write(at.join("cpu.weight"), weight(values.cpu_shares).to_string())?;
        fs::write(at.join("cpu.max"), format!("{quota} 100000"))?;
        if values.pids > 0 {
            fs::write(at.join("pids.max"), values.pids.to_string())?;
        }
        return fs::write(at.join("memory.max"), memory);
    }
    let within = |controller: &str| mount.join(controller).join(relative);
    let cpu = within("cpu");
    fs::create_dir_all(&cpu)?;
    fs::write(cpu.join("cpu.shares"), values.cpu_shares.to_string())?;
    // -1 stands for no limit; where there never was one nothing has to be written.
    let limit = |file: PathBuf, value: i64| match (value > 0, file.exists()) {
        (true, _) => fs::write(file, value.to_string()),
        (false, true) => fs::write(file, "-1"),
        (false, false) => Ok(()),
    };
    limit(cpu.join("cpu.cfs_quota_us"), values.cpu_quota_us)?;
    let memory = within("memory");
    if values.memory_bytes > 0 {
        fs::create_dir_all(&memory)?;
    }
    if values.pids > 0 {
        let pids = within("pids");
        fs::create_dir_all(&pids)?;
        fs::write(pids.join("pids.max"), values.pids.to_string())?;
    }
    limit(memory.join("memory.limit_in_bytes"), values.memory_bytes)
}

/// Limits huge pages of the cgroup `path`; kernels and machines without that controller have nothing to limit.
pub fn limit_huge_pages(mount: &Path, path: &str, limits: &[cri::HugepageLimit]) -> io::Result<()> {
    let relative = path.trim_matches('/');
    let (at, end) = match is_v2(mount) {
        true => (mount.join(relative), "max"),
        false if mount.join("hugetlb").exists() => {
            let at = mount.join("hugetlb").join(relative);
            fs::create_dir_all(&at)?;
            (at, "limit_in_bytes")
        }
        false => return Ok(()),
    };
    for limit in limits {
        let file = at.join(format!("hugetlb.{}.{end}", limit.page_size));
        if file.exists() {
            fs::write(file, limit.limit_bytes.to_string())?;
        }
    }
    Ok(())
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Limit and working set of a cgroup's memory, in bytes; `None` where it is not limited.
pub fn memory(mount: &Path, path: &str) -> Option<(u64, u64)> {
    let relative = path.trim_matches('/');
    let (at, limit, usage, inactive) = match is_v2(mount) {
        true => (mount.join(relative), "memory.max", "memory.current", "inactive_file"),
        false => (
            mount.join("memory").join(relative),
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    };
    // Without a limit v1 shows a number near the largest that it can count to.
    let limit = number(&at.join(limit)).filter(|bytes| *bytes < 1 << 62)?;
    let stat = fs::read_to_string(at.join("memory.stat")).unwrap_or_default();
    let inactive = stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse::<u64>().ok());
    Some((limit, number(&at.join(usage))?.saturating_sub(inactive.unwrap_or(0))))
}

/// Removes the cgroup `path` and what is below it, in every hierarchy. Cgroups with processes stay.
pub fn remove(mount: &Path, path: &str) {
    let relative = path.trim_matches('/');
    if relative.is_empty() {
        return;
    }
    for root in roots(mount) {
        remove_below(&root.join(relative));
    }
}

/// Cgroups of pods below the kubelet's own, by the pods' uids.
pub fn pods(mount: &Path, root: &str) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    // Without a root of our own these would be another kubelet's.
    if root.is_empty() {
        return found;
    }
    for class in ["", "/burstable", "/besteffort"] {
        let below = format!("{}/kubepods{class}", root.trim_end_matches('/'));
        for hierarchy in roots(mount) {
            let at = hierarchy.join(below.trim_start_matches('/'));
            for entry in fs::read_dir(at).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if let Some(uid) = name.strip_prefix("pod") {
                    found.insert((uid.to_owned(), format!("{below}/{name}")));
                }
            }
        }
    }
    found
}

fn remove_below(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: Values = Values { cpu_shares: 512, cpu_quota_us: 50_000, memory_bytes: 1 << 20, pids: 7 };

    #[test]
    fn weights() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
    }

    #[test]
    fn version_two_and_its_removal() {
        let mount = tempfile::tempdir().unwrap();
        fs::write(mount.path().join("cgroup.controllers"), "cpu memory").unwrap();
        apply(mount.path(), "/a/podx", VALUES).unwrap();
        let pod = mount.path().join("a/podx");
        let read = |file: &str| fs::read_to_string(pod.join(file)).unwrap();
        assert_eq!((read("cpu.weight").as_str(), read("cpu.max").as_str()), ("20", "50000 100000"));
        assert_eq!((read("memory.max").as_str(), read("pids.max").as_str()), ("1048576", "7"));
        fs::create_dir_all(mount.path().join("b/empty/below")).unwrap();
        remove(mount.path(), "/b/empty");
        assert!(mount.path().join("b").exists() && !mount.path().join("b/empty").exists());
        remove(mount.path(), "/");
        assert!(mount.path().exists());
    }

    #[test]
    fn huge_pages() {
        let limits = [cri::HugepageLimit { page_size: "2MB".into(), limit_bytes: 4 }];
        for (marker, place, file) in [
            ("cgroup.controllers", "a", "hugetlb.2MB.max"),
            ("hugetlb/.keep", "hugetlb/a", "hugetlb.2MB.limit_in_bytes"),
        ] {
            let mount = tempfile::tempdir().unwrap();
            let place = mount.path().join(place);
            fs::create_dir_all(&place).unwrap();
            fs::write(mount.path().join(marker), "").unwrap();
            fs::write(place.join(file), "").unwrap();
            limit_huge_pages(mount.path(), "/a", &limits).unwrap();
            assert_eq!(fs::read_to_string(place.join(file)).unwrap(), "4");
        }
        // Nothing there to write to.
        limit_huge_pages(tempfile::tempdir().unwrap().path(), "/a", &limits).unwrap();
    }

    #[test]
    fn version_one() {
        let mount = tempfile::tempdir().unwrap();
        for controller in ["cpu", "memory", "pids"] {
            fs::create_dir(mount.path().join(controller)).unwrap();
        }
        apply(mount.path(), "/a/podx", VALUES).unwrap();
        let read = |file: &str| fs::read_to_string(mount.path().join(file)).unwrap();
        assert_eq!(
            (read("cpu/a/podx/cpu.shares").as_str(), read("cpu/a/podx/cpu.cfs_quota_us").as_str()),
            ("512", "50000")
        );
        assert_eq!(read("memory/a/podx/memory.limit_in_bytes"), "1048576");
        assert_eq!(read("pids/a/podx/pids.max"), "7");
        assert_eq!(roots(mount.path()).len(), 3);
        fs::create_dir_all(mount.path().join("cpu/f/kubepods/burstable/podu1/c")).unwrap();
        fs::create_dir_all(mount.path().join("pids/f/kubepods/podu2")).unwrap();
        let pair = |uid: &str, path: &str| (uid.to_owned(), path.to_owned());
        let expected = [pair("u1", "/f/kubepods/burstable/podu1"), pair("u2", "/f/kubepods/podu2")];
        assert_eq!(pods(mount.path(), "/f"), BTreeSet::from(expected));
        assert_eq!(pods(mount.path(), ""), BTreeSet::new());
    }
}
