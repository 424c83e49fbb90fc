//! Control groups: limits and accounting, v1 (each controller its own tree) and v2 (one tree).
//!
//! A cgroup is named by its path from the root of the hierarchies, the same in all of them. Which version counts
//! is found out once: where the memory controller is in a v1 hierarchy ("hybrid"), v1 it is.

mod devices;
mod v1;
mod v2;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use devices::DeviceRule;

/// Failures with cgroups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No usable hierarchy is mounted.
    #[error("no cgroup hierarchy with a memory controller is mounted")]
    NoHierarchy,
    /// A path that would leave the hierarchy.
    #[error("invalid cgroup path {0:?}")]
    BadPath(PathBuf),
    /// A file of `unified` that is no plain name, or that v1 does not have.
    #[error("invalid cgroup file {0:?}")]
    BadFile(String),
    /// The kernel refused.
    #[error("failed to write {value:?} to {path:?}: {source}")]
    Write {
        /// File.
        path: PathBuf,
        /// Value.
        value: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another operating system error.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl CgroupError {
    fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> CgroupError {
        let context = context.into();
        move |source| CgroupError::Io { context, source }
    }
}

/// What a cgroup has used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupStats {
    /// CPU time, nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory charged, bytes.
    pub memory_usage: u64,
    /// Memory charged less inactive file cache, bytes.
    pub memory_working_set: u64,
    /// Anonymous memory, bytes.
    pub memory_rss: u64,
    /// Limit, bytes; `None` for none.
    pub memory_limit: Option<u64>,
    /// All page faults.
    pub page_faults: u64,
    /// Page faults that needed the disk.
    pub major_page_faults: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// The hierarchies of this machine.
#[derive(Debug, Clone)]
pub struct Cgroups(Version);

#[derive(Debug, Clone)]
enum Version {
    One(v1::Hierarchies),
    Two(PathBuf),
}

/// Limits above this mean "no limit" in v1 (a page-rounded `i64::MAX`).
const UNLIMITED: u64 = 1 << 62;

impl Cgroups {
    /// Finds the hierarchies from the mount table.
    pub fn detect() -> Result<Cgroups, CgroupError> {
        let table =
            fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::io("read mount table"))?;
        Self::from_mounts(&table).ok_or(CgroupError::NoHierarchy)
    }

    /// The v2 tree mounted at `root`, whatever else there is: on hybrid machines the second tree.
    pub fn at_v2(root: &Path) -> Cgroups {
        Cgroups(Version::Two(root.to_owned()))
    }

    /// The v2 tree at `root` if given, else what the machine has.
    pub(crate) fn open_at(root: Option<&Path>) -> Result<Cgroups, CgroupError> {
        root.map_or_else(Cgroups::detect, |root| Ok(Cgroups::at_v2(root)))
    }

    fn from_mounts(table: &str) -> Option<Cgroups> {
        let hierarchies = v1::Hierarchies::from_mounts(table);
        if hierarchies.has("memory") {
            return Some(Cgroups(Version::One(hierarchies)));
        }
        v2::mount_point(table).map(|root| Cgroups(Version::Two(root)))
    }

    /// Whether v2 is in use.
    pub fn is_v2(&self) -> bool {
        matches!(self.0, Version::Two(_))
    }

    /// Makes a cgroup and those above it.
    pub fn create(&self, path: &Path) -> Result<(), CgroupError> {
        let path = relative(path)?;
        match &self.0 {
            Version::One(h) => h.create(&path),
            Version::Two(root) => v2::create(root, &path),
        }
    }

    /// Sets limits; what is unset stays.
    pub fn apply(&self, path: &Path, resources: &cri::ContainerResources) -> Result<(), CgroupError> {
        let path = relative(path)?;
        match &self.0 {
            Version::One(h) => h.apply(&path, resources),
            Version::Two(root) => v2::apply(&root.join(path), resources),
        }
    }

    /// Denies all devices but these. `None` allows all.
    pub fn allow_devices(&self, path: &Path, rules: Option<&[DeviceRule]>) -> Result<(), CgroupError> {
        let path = relative(path)?;
        match &self.0 {
            Version::One(h) => h.allow_devices(&path, rules),
            Version::Two(root) => match rules {
                Some(rules) => {
                    devices::attach(&root.join(path), rules).map_err(CgroupError::io("device filter"))
                }
                None => Ok(()),
            },
        }
    }

    /// Moves the calling process into the cgroup (v1; with v2 processes are born into it).
    pub(crate) fn join(&self, path: &Path) -> Result<(), CgroupError> {
        let path = relative(path)?;
        match &self.0 {
            Version::One(h) => h.join(&path),
            Version::Two(root) => write(&root.join(path).join("cgroup.procs"), "0"),
        }
    }

    /// Makes joins cheap for the next moments.
    ///
    /// Moving a process between v1 cgroups first waits for all readers of a kernel-wide lock (an RCU grace
    /// period, 5-20 ms), but moves that follow shortly do not wait again. So one is made ahead of need: this
    /// process, to where it is already. Blocks for that time; failing does no harm. v2 needs none of it, as
    /// processes are born into their cgroups there.
    pub(crate) fn warm_up(&self) {
        let Version::One(h) = &self.0 else { return };
        let table = read(Path::new("/proc/self/cgroup"));
        let own = table.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|c| c == "pids").then_some(path)
        });
        let Some(dir) = own.and_then(|path| h.dir("pids", Path::new(path.trim_start_matches('/')))) else {
            return;
        };
        let _ = write(&dir.join("cgroup.procs"), "0");
    }

    /// The directory to clone into (v2 only).
    pub(crate) fn open(&self, path: &Path) -> Result<Option<OwnedFd>, CgroupError> {
        let Version::Two(root) = &self.0 else { return Ok(None) };
        let dir = root.join(relative(path)?);
        let file = fs::File::open(&dir).map_err(CgroupError::io(format!("open {}", dir.display())))?;
        Ok(Some(file.into()))
    }

    /// Processes of the cgroup itself.
    pub fn processes(&self, path: &Path) -> Result<Vec<i32>, CgroupError> {
        let file = self.main_dir(path)?.join("cgroup.procs");
        match fs::read_to_string(&file) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(CgroupError::io(format!("read {}", file.display()))(e)),
        }
    }

    /// Kills every process of the cgroup and of those below it.
    pub fn kill(&self, path: &Path) -> Result<(), CgroupError> {
        let dir = self.main_dir(path)?;
        if self.is_v2() && write(&dir.join("cgroup.kill"), "1").is_ok() {
            return Ok(());
        }
        for below in subdirectories(&dir) {
            self.kill(&path.join(below.file_name().unwrap_or_default()))?;
        }
        for pid in self.processes(path)? {
            crate::sys::kill(pid, libc::SIGKILL).map_err(CgroupError::io("kill"))?;
        }
        Ok(())
    }

    /// How often the kernel has killed a process here for memory.
    pub fn oom_kills(&self, path: &Path) -> u64 {
        let Ok(dir) = self.main_dir(path) else { return 0 };
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        flat(&read(&dir.join(file)), "oom_kill")
    }

    /// What it has used.
    pub fn stats(&self, path: &Path) -> Result<CgroupStats, CgroupError> {
        let path = relative(path)?;
        match &self.0 {
            Version::One(h) => Ok(h.stats(&path)),
            Version::Two(root) => Ok(v2::stats(&root.join(path))),
        }
    }

    /// Removes the cgroup and those below it; no process may be left. Idempotent.
    pub fn remove(&self, path: &Path) -> Result<(), CgroupError> {
        for dir in self.directories(path)? {
            remove_tree(&dir).map_err(CgroupError::io(format!("remove {}", dir.display())))?;
        }
        Ok(())
    }

    /// The cgroup's directory in every hierarchy, and the controllers' names.
    pub(crate) fn directories(&self, path: &Path) -> Result<Vec<PathBuf>, CgroupError> {
        let path = relative(path)?;
        Ok(match &self.0 {
            Version::One(h) => h.roots().map(|root| root.join(&path)).collect(),
            Version::Two(root) => vec![root.join(path)],
        })
    }

    /// v1: name of each hierarchy's directory under `/sys/fs/cgroup` and the cgroup's directory in it.
    pub(crate) fn views(&self, path: &Path) -> Result<Vec<(String, PathBuf)>, CgroupError> {
        let path = relative(path)?;
        Ok(match &self.0 {
            Version::One(h) => h
                .roots()
                .filter_map(|root| Some((root.file_name()?.to_str()?.to_owned(), root.join(&path))))
                .collect(),
            Version::Two(_) => Vec::new(),
        })
    }

    /// The directory whose `cgroup.procs` and memory counters count.
    fn main_dir(&self, path: &Path) -> Result<PathBuf, CgroupError> {
        let path = relative(path)?;
        Ok(match &self.0 {
            Version::One(h) => h.dir("memory", &path).ok_or(CgroupError::NoHierarchy)?,
            Version::Two(root) => root.join(path),
        })
    }
}

fn relative(path: &Path) -> Result<PathBuf, CgroupError> {
    use std::path::Component;
    let stripped = path.strip_prefix("/").unwrap_or(path);
    let plain = stripped.components().all(|c| matches!(c, Component::Normal(_)));
    // The root itself belongs to the machine.
    if !plain || stripped.as_os_str().is_empty() {
        return Err(CgroupError::BadPath(path.to_owned()));
    }
    Ok(stripped.to_owned())
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for below in subdirectories(dir) {
        remove_tree(&below)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let result = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut f| io::Write::write_all(&mut f, value.as_bytes()));
    result.map_err(|source| CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source })
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &Path) -> u64 {
    read(path).trim().parse().unwrap_or(0)
}

/// The value of `key` in a file of `key value` lines.
fn flat(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_from_mounts() {
        let v2 = "31 23 0:28 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert!(Cgroups::from_mounts(v2).unwrap().is_v2());
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert!(!Cgroups::from_mounts(hybrid).unwrap().is_v2());
        assert!(Cgroups::from_mounts("22 27 0:21 / /proc rw - proc proc rw\n").is_none());
    }

    #[test]
    fn paths_stay_inside() {
        assert_eq!(relative(Path::new("/a/b")).unwrap(), Path::new("a/b"));
        for bad in ["/", "", "/a/../b", ".."] {
            assert!(relative(Path::new(bad)).is_err(), "{bad}");
        }
    }

    /// Where a v2 tree is mounted, if anywhere.
    fn some_v2() -> Option<PathBuf> {
        v2::mount_point(&fs::read_to_string("/proc/self/mountinfo").unwrap())
    }

    #[test]
    fn v2_denies_devices_and_kills() {
        let Some(root) = some_v2() else { return };
        let cgroups = Cgroups::at_v2(&root);
        let path = PathBuf::from(format!("/ferry-unit-{}/c", std::process::id()));
        cgroups.create(&path).unwrap();
        cgroups.allow_devices(&path, Some(&DeviceRule::defaults())).unwrap();
        let procs = root.join(path.strip_prefix("/").unwrap()).join("cgroup.procs");
        let script = format!(
            "echo $$ > {}; head -c1 /dev/zero | wc -c; head -c1 /dev/kmsg 2>&1; echo; exec sleep 1000",
            procs.display()
        );
        let mut child = std::process::Command::new("sh")
            .args(["-c", &script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = io::BufRead::lines(io::BufReader::new(child.stdout.take().unwrap()));
        assert_eq!(lines.next().unwrap().unwrap().trim(), "1");
        assert!(lines.next().unwrap().unwrap().contains("Operation not permitted"));
        assert!(cgroups.processes(&path).unwrap().contains(&(child.id() as i32)));
        cgroups.kill(&path).unwrap();
        assert!(!child.wait().unwrap().success());
        // The kernel keeps it busy for moments after its last process.
        let mut attempts = 0;
        while let Err(e) = cgroups.remove(path.parent().unwrap()) {
            attempts += 1;
            assert!(attempts < 1_000_000, "{e}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn flat_files() {
        assert_eq!(flat("low 0\noom 3\noom_kill 2\n", "oom_kill"), 2);
        assert_eq!(flat("", "oom_kill"), 0);
    }
}
