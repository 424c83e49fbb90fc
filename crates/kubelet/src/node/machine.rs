//! What the machine has: processors, memory, disk, kernel. Read once at start.

use std::fs;

use api::k8s_openapi::api::core::v1::NodeSystemInfo;

use crate::config::Config;
use crate::eviction::observe::{existing, memory_line};
use crate::eviction::threshold::Signal;
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
            memory_bytes: memory_line(&memory, "MemTotal").map_or(0, |bytes| bytes as i64),
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
            ("pods".to_owned(), self.pods(config)),
        ]);
        for (size, total) in &self.huge_pages {
            capacity.insert(format!("hugepages-{}", binary(*size)), *total);
        }
        capacity
    }

    /// Most pods.
    fn pods(&self, config: &Config) -> i64 {
        match config.pods_per_core {
            0 => config.max_pods,
            each => config.max_pods.min(each.saturating_mul(self.cpu_milli / 1000)),
        }
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
        let kept = |signal, capacity| config.eviction.kept(signal, capacity);
        let memory = kept(Signal::MemoryAvailable, self.memory_bytes);
        take("memory", config.reserved_memory_bytes + huge + memory);
        let disk = kept(Signal::NodeFsAvailable, self.disk_bytes);
        take("ephemeral-storage", config.reserved_storage_bytes + disk);
        amounts
    }
}

/// Bytes with the largest binary suffix that fits.
pub(crate) fn binary(bytes: i64) -> String {
    match bytes {
        b if b % (1 << 30) == 0 => format!("{}Gi", b >> 30),
        b if b % (1 << 20) == 0 => format!("{}Mi", b >> 20),
        b => format!("{}Ki", b >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
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
