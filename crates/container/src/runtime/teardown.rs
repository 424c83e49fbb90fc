//! Removing what the runtime has made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Runtime;

/// Where mounts below `dir` are, innermost first, from the text of `mountinfo`.
fn mounts_below(table: &str, dir: &Path) -> Vec<PathBuf> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    below.sort();
    below.reverse();
    below
}

/// The kernel writes spaces and the like as octal numbers.
pub(super) fn unescape(text: &str) -> PathBuf {
    let mut plain = text.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(code, character);
    }
    PathBuf::from(plain)
}

/// Detaches all mounts below a directory of ours.
fn detach_mounts(dir: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    for point in mounts_below(&table, dir) {
        rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Removes a sandbox's or container's directory, mounts included.
pub(super) fn remove_directory(dir: &Path) -> cri::Result<()> {
    let context = || format!("remove {}", dir.display());
    detach_mounts(dir).map_err(|e| cri::Error::io(context(), e))?;
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(cri::Error::io(context(), e)),
        _ => Ok(()),
    }
}

impl Runtime {
    /// Removes every sandbox and container with all their processes, mounts, namespaces, cgroups and files.
    pub async fn destroy_all(&self) -> cri::Result<()> {
        let ids: Vec<String> = self.sandboxes.read().keys().cloned().collect();
        let removals = ids.iter().map(|id| self.remove_sandbox(id));
        let results = futures_util::future::join_all(removals).await;
        let root = self.cgroup_root();
        let _ = self.cgroups.kill(&root);
        self.remove_cgroup(root).await?;
        let run_dir = self.run_dir.clone();
        super::blocking(move || remove_directory(&run_dir)).await?;
        results.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_mounts_innermost_first() {
        let table = "1 0 0:1 / /data/run/a rw - tmpfs shm rw\n2 0 0:1 / /data/run/a/b\\040c rw - tmpfs shm rw\n\
            3 0 0:1 / /data/runner rw - tmpfs x rw\n";
        let want = [PathBuf::from("/data/run/a/b c"), PathBuf::from("/data/run/a")];
        assert_eq!(mounts_below(table, Path::new("/data/run")), want);
    }
}
