//! What a cluster holds of its machine: mounts, links, firewall tables, control groups, processes, loop
//! devices, directories.
//!
//! Two of these tell whether something was left behind: of a cluster that is gone nothing may be found, and one
//! whose pods are gone has what it had before them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::succeed;

/// Directories of a cluster's state that hold one entry per pod, sandbox, log or address.
const PER_POD: [&str; 4] = ["kubelet/pods", "run", "pod-logs", "network"];

/// Everything on the host that bears the id or the directory of a cluster, a line each.
///
/// # Errors
/// When `/proc`, `ip` or `nft` can't be read.
pub fn census(id: &str, data: &Path) -> anyhow::Result<BTreeSet<String>> {
    let directory = data.to_string_lossy();
    let bears = |text: &str| text.contains(&*directory) || text.contains(id);
    let mut found = BTreeSet::new();
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    found.extend(mounts.lines().filter(|l| bears(l)).map(|l| format!("mount {l}")));
    for command in [&["ip", "-o", "link"][..], &["nft", "list", "tables"][..]] {
        let out = succeed(Command::new(command[0]).args(&command[1..]))?;
        // Of a link what comes before its flags and state, which change.
        let name = |line: &str| line.split('<').next().unwrap_or_default().to_owned();
        found.extend(out.lines().filter(|l| l.contains(id)).map(name));
    }
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        if is_of(&entry.path(), &bears) {
            let line = read(&entry.path().join("cmdline")).replace('\0', " ");
            found.insert(format!("process {} {line}", name.to_string_lossy()));
        }
    }
    for entry in std::fs::read_dir("/sys/block")?.flatten() {
        let file = read(&entry.path().join("loop/backing_file"));
        if bears(&file) {
            found.insert(format!("device {} {}", entry.file_name().to_string_lossy(), file.trim_end()));
        }
    }
    found.extend(cgroups(id).into_iter().map(|path| format!("cgroup {}", path.display())));
    Ok(found)
}

/// Entries of a running cluster's directories that come with pods and must go with them.
pub fn directories(data: &Path) -> BTreeSet<String> {
    let entries = PER_POD.iter().flat_map(|part| std::fs::read_dir(data.join(part)).into_iter().flatten());
    entries.flatten().map(|e| format!("entry {}", e.path().display())).collect()
}

/// Control groups of a cluster in every hierarchy.
pub fn cgroups(id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                if entry.path().to_string_lossy().contains(id) {
                    found.push(entry.path());
                }
                directories.push(entry.path());
            }
        }
    }
    found
}

/// The processes of a pod, by its uid, and the shim they belong to.
pub fn of_pod(uid: &str) -> (Vec<u32>, Option<u32>) {
    let mut processes = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if read(&entry.path().join("cgroup")).contains(uid) {
            processes.push(pid);
        }
    }
    let parent = |pid: &u32| {
        let stat = read(&Path::new("/proc").join(pid.to_string()).join("stat"));
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let is_shim =
        |pid: &u32| read(&Path::new("/proc").join(pid.to_string()).join("comm")).trim() == "ferry-shim";
    let shim = processes.iter().filter_map(parent).find(is_shim);
    (processes, shim)
}

/// Whether a process is of a cluster: by its command line, its control group, or, for a shim, which has
/// neither, by the socket it listens on.
fn is_of(process: &Path, bears: &dyn Fn(&str) -> bool) -> bool {
    if bears(&read(&process.join("cmdline"))) || bears(&read(&process.join("cgroup"))) {
        return true;
    }
    read(&process.join("comm")).trim() == "ferry-shim" && bears(&read(&process.join("net/unix")))
}

/// A file of a process or a device, empty when there is none.
fn read(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
