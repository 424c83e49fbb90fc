//! Looking at the machine: what is left of memory, disks and process ids, and what pods' files take.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::state::{Observation, Observations};
use super::threshold::Signal;

/// Most files that are counted below one directory; one with more shows this many.
const FILES_MAX: i64 = 1_000_000;

fn read(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// A line `Name:  123 kB` of the kernel's memory table, in bytes.
pub(crate) fn memory_line(table: &str, name: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn memory() -> Option<Observation> {
    let table = read("/proc/meminfo");
    Some(Observation {
        available: memory_line(&table, "MemAvailable")?,
        capacity: memory_line(&table, "MemTotal")?,
    })
}

/// Most process ids, and how many are taken.
pub fn process_ids() -> Option<(u64, u64)> {
    let load = read("/proc/loadavg");
    let taken = load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    let bound = |path: &str| read(path).parse::<u64>().ok();
    let most = bound("/proc/sys/kernel/pid_max")?;
    Some((most.min(bound("/proc/sys/kernel/threads-max").unwrap_or(most)), taken))
}

/// The nearest directory above that exists.
pub(crate) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// Bytes and files left on the file system of a path.
fn disk(path: &Path) -> Option<(Observation, Option<Observation>)> {
    let disk = rustix::fs::statvfs(existing(path)).ok()?;
    let bytes = Observation {
        available: disk.f_bavail.saturating_mul(disk.f_frsize),
        capacity: disk.f_blocks.saturating_mul(disk.f_frsize),
    };
    // Some file systems have no fixed number of inodes.
    let files = Observation { available: disk.f_favail, capacity: disk.f_files };
    Some((bytes, Some(files).filter(|files| files.capacity > 0)))
}

/// All signals; `pods` is what pods' cgroup still has, where it is limited.
pub fn observe(node: &Path, images: &Path, pods: Option<Observation>) -> Observations {
    let mut all = Observations::new();
    let mut put = |signal, seen: Option<Observation>| {
        if let Some(seen) = seen {
            all.insert(signal, seen);
        }
    };
    put(Signal::MemoryAvailable, memory());
    put(Signal::AllocatableMemoryAvailable, pods);
    if let Some((bytes, files)) = disk(node) {
        put(Signal::NodeFsAvailable, Some(bytes));
        put(Signal::NodeFsInodesFree, files);
    }
    if let Some((bytes, files)) = disk(images) {
        for signal in [Signal::ImageFsAvailable, Signal::ContainerFsAvailable] {
            put(signal, Some(bytes));
        }
        for signal in [Signal::ImageFsInodesFree, Signal::ContainerFsInodesFree] {
            put(signal, files);
        }
    }
    put(
        Signal::PidAvailable,
        process_ids()
            .map(|(most, taken)| Observation { available: most.saturating_sub(taken), capacity: most }),
    );
    all
}

/// Bytes and files below a directory, without other file systems that are mounted there.
pub fn usage(root: &Path) -> (i64, i64) {
    let Ok(top) = fs::symlink_metadata(root) else { return (0, 0) };
    let (mut bytes, mut files) = (0, 0);
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != top.dev() {
                continue;
            }
            // Blocks, not length: holes take no room.
            bytes += metadata.blocks() as i64 * 512;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_seen() {
        assert_eq!(memory_line("MemTotal:       16 kB\nMemFree: 2 kB\n", "MemTotal"), Some(16 << 10));
        let all = observe(Path::new("/nonexistent/below"), Path::new("/"), None);
        for signal in [Signal::MemoryAvailable, Signal::NodeFsAvailable, Signal::PidAvailable] {
            let seen = all[&signal];
            assert!(seen.capacity > 0 && seen.available <= seen.capacity, "{signal:?} {seen:?}");
        }
        assert!(!all.contains_key(&Signal::AllocatableMemoryAvailable));
    }

    #[test]
    fn files_are_counted_in_blocks() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("below")).unwrap();
        fs::write(directory.path().join("below/file"), vec![1; 100_000]).unwrap();
        let hole = fs::File::create(directory.path().join("hole")).unwrap();
        hole.set_len(1 << 40).unwrap();
        let (bytes, files) = usage(directory.path());
        assert_eq!(files, 3);
        assert!((100_000..1_000_000).contains(&bytes), "{bytes}");
    }
}
