//! What the machine has: processors, memory, disk, kernel. Read once at start.

use std::fs;
use std::path::Path;

use api::k8s_openapi::api::core::v1::NodeSystemInfo;

use crate::config::Config;
use crate::resources::Amounts;

/// The machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Machine {
    /// Processors, in thousandths.
    pub cpu_milli: i64,
    /// Memory, in bytes.
    pub memory_bytes: i64,
    /// Size of the file system of pods, in bytes.
    pub disk_bytes: i64,
    /// Huge pages: size in bytes and how many bytes of them.
    pub huge_pages: Vec<(i64, i64)>,
    /// Kernel, operating system, ids.
    pub info: NodeSystemInfo,
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// A line `Name:  123 kB` of the kernel's memory table, in bytes.
fn memory_line(table: &str, name: &str) -> Option<i64> {
    let line = table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches("kB").trim().parse::<i64>().ok().map(|kib| kib * 1024)
}

/// A value of `/etc/os-release`.
fn os_release(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(line.trim_matches('"').to_owned())
}

/// Go's name of this architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn huge_pages() -> Vec<(i64, i64)> {
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let mut pages: Vec<(i64, i64)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<i64>().ok()? * 1024;
            let count =
                fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse::<i64>().ok()?;
            Some((size, size * count))
        })
        .collect();
    pages.sort_unstable();
    pages
}

impl Machine {
    /// Reads the machine; `runtime` is the runtime's name and version as `name://version`.
    pub fn read(config: &Config, runtime: &str) -> Machine {
        let memory = read("/proc/meminfo");
        let release = read("/etc/os-release");
        let disk = rustix::fs::statvfs(existing(&config.root_dir)).ok();
        let machine_id = read("/etc/machine-id");
        let system_uuid = read("/sys/class/dmi/id/product_uuid").to_lowercase();
        Machine {
            cpu_milli: std::thread::available_parallelism().map_or(1, |n| n.get() as i64) * 1000,
            memory_bytes: memory_line(&memory, "MemTotal").unwrap_or(0),
            disk_bytes: disk.map_or(0, |disk| (disk.f_blocks * disk.f_frsize) as i64),
            huge_pages: huge_pages(),
            info: NodeSystemInfo {
                architecture: architecture().into(),
                boot_id: read("/proc/sys/kernel/random/boot_id"),
                container_runtime_version: runtime.to_owned(),
                kernel_version: read("/proc/sys/kernel/osrelease"),
                kube_proxy_version: String::new(),
                kubelet_version: config.version.clone(),
                operating_system: "linux".into(),
                os_image: os_release(&release, "PRETTY_NAME").unwrap_or("Linux".into()),
                system_uuid: if system_uuid.is_empty() { machine_id.clone() } else { system_uuid },
                machine_id,
                ..NodeSystemInfo::default()
            },
        }
    }

    /// Everything the machine has, as resources.
    pub fn capacity(&self, config: &Config) -> Amounts {
        let mut capacity = Amounts::from([
            ("cpu".to_owned(), self.cpu_milli),
            ("memory".to_owned(), self.memory_bytes),
            ("ephemeral-storage".to_owned(), self.disk_bytes),
            ("pods".to_owned(), config.max_pods),
        ]);
        for (size, total) in &self.huge_pages {
            capacity.insert(format!("hugepages-{}", binary(*size)), *total);
        }
        capacity
    }

    /// What pods may use of it.
    pub fn allocatable(&self, config: &Config) -> Amounts {
        let mut amounts = self.capacity(config);
        let huge: i64 = self.huge_pages.iter().map(|(_, total)| total).sum();
        let mut take = |name: &str, amount: i64| {
            if let Some(value) = amounts.get_mut(name) {
                *value = (*value - amount).max(0);
            }
        };
        take("cpu", config.reserved_cpu_milli);
        let hard = &config.eviction_hard;
        let kept = |bound: crate::thresholds::Bound, capacity: i64| bound.of(capacity.max(0) as u64) as i64;
        let memory = kept(hard.memory_available, self.memory_bytes);
        take("memory", config.reserved_memory_bytes + huge + memory);
        take("ephemeral-storage", kept(hard.nodefs_available, self.disk_bytes));
        amounts
    }
}

/// Bytes with the largest binary suffix that fits.
fn binary(bytes: i64) -> String {
    match bytes {
        b if b % (1 << 30) == 0 => format!("{}Gi", b >> 30),
        b if b % (1 << 20) == 0 => format!("{}Mi", b >> 20),
        b => format!("{}Ki", b >> 10),
    }
}

/// The nearest directory above that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// Memory that is free or can be freed at once, in bytes.
pub fn memory_available() -> i64 {
    memory_line(&read("/proc/meminfo"), "MemAvailable").unwrap_or(0)
}

/// Pressure the node is under.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Little memory is left.
    pub memory: bool,
    /// Little disk is left.
    pub disk: bool,
    /// Few process ids are left.
    pub pid: bool,
}

impl Pressure {
    /// Looks now.
    pub fn read(config: &Config) -> Pressure {
        let hard = &config.eviction_hard;
        let memory = read("/proc/meminfo");
        let memory = memory_line(&memory, "MemAvailable").zip(memory_line(&memory, "MemTotal"));
        let disk = rustix::fs::statvfs(existing(&config.root_dir)).ok();
        let pids: Option<(u64, u64)> = read("/proc/loadavg")
            .split_whitespace()
            .nth(3)
            .and_then(|tasks| tasks.split_once('/')?.1.parse().ok())
            .zip(read("/proc/sys/kernel/pid_max").parse().ok());
        let short =
            |bound: crate::thresholds::Bound, available: u64, capacity: u64| available < bound.of(capacity);
        Pressure {
            memory: memory.is_some_and(|(available, total)| {
                short(hard.memory_available, available.max(0) as u64, total.max(0) as u64)
            }),
            disk: disk.is_some_and(|disk| {
                let (free, all) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
                // Some file systems have no fixed number of inodes.
                let inodes = disk.f_files > 0 && short(hard.nodefs_inodes_free, disk.f_favail, disk.f_files);
                short(hard.nodefs_available, free, all) || inodes
            }),
            pid: pids.is_some_and(|(used, max)| short(hard.pid_available, max.saturating_sub(used), max)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        assert_eq!(memory_line("MemTotal:       16 kB\nMemFree: 2 kB\n", "MemTotal"), Some(16 << 10));
        assert_eq!(
            os_release("NAME=x\nPRETTY_NAME=\"Linux 1\"\n", "PRETTY_NAME").as_deref(),
            Some("Linux 1")
        );
        assert_eq!(binary(2 << 20), "2Mi");
    }

    #[test]
    fn allocatable_leaves_room() {
        let config = Config { reserved_cpu_milli: 100, ..Config::new("n", "/".into()) };
        let machine = Machine {
            cpu_milli: 2000,
            memory_bytes: 1 << 30,
            disk_bytes: 1000,
            huge_pages: vec![(2 << 20, 4 << 20)],
            ..Machine::default()
        };
        let amounts = machine.allocatable(&config);
        assert_eq!(amounts["cpu"], 1900);
        assert_eq!(amounts["memory"], (1 << 30) - (100 << 20) - (4 << 20));
        assert_eq!(
            (amounts["ephemeral-storage"], amounts["pods"], amounts["hugepages-2Mi"]),
            (900, 110, 4 << 20)
        );
    }
}
