//! Containers: what the kubelet asks for and what the runtime reports.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::sandbox::{NamespaceOptions, SeccompProfile};

/// Everything a runtime needs to make a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerConfig {
    /// Name within the pod.
    pub name: String,
    /// How many containers of this name came before in the sandbox.
    pub attempt: u32,
    /// Image reference or id, present in the store.
    pub image: String,
    /// Replaces the image's entrypoint; empty keeps it.
    pub command: Vec<String>,
    /// Replaces the image's command (and drops it where `command` is set); empty keeps it.
    pub args: Vec<String>,
    /// Replaces the image's working directory; empty keeps it.
    pub working_dir: String,
    /// Added to the image's environment.
    pub envs: Vec<EnvVar>,
    /// Files and directories of the node.
    pub mounts: Vec<Mount>,
    /// Device nodes of the node.
    pub devices: Vec<Device>,
    /// Full names of devices of the Container Device Interface, such as `vendor.com/class=device`.
    pub cdi_devices: Vec<String>,
    /// Labels to select containers by.
    pub labels: BTreeMap<String, String>,
    /// Free data, given back unchanged.
    pub annotations: BTreeMap<String, String>,
    /// Log file, relative to the sandbox's `log_directory`. Empty: no log is written.
    pub log_path: PathBuf,
    /// When the runtime itself starts a new log file; `None` leaves rotation to the caller and `reopen_log`.
    pub log_rotation: Option<LogRotation>,
    /// Whether standard input stays open for attach.
    pub stdin: bool,
    /// Whether standard input closes after the first attach.
    pub stdin_once: bool,
    /// Whether the process has a terminal.
    pub tty: bool,
    /// Signal that stops it (`SIGTERM`, `15`); `None` takes the image's, then SIGTERM.
    pub stop_signal: Option<String>,
    /// Limits.
    pub resources: ContainerResources,
    /// Identity and confinement.
    pub security: ContainerSecurityContext,
    /// Process limits; empty inherits.
    pub ulimits: Ulimits,
}

/// Process limits of a container.
pub type Ulimits = Vec<Rlimit>;

/// One process limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and so on.
    pub kind: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// One variable of the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// Size limits of a container's log (`containerLogMaxSize`, `containerLogMaxFiles`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRotation {
    /// A file that has grown to this size is renamed and a new one begun.
    pub max_bytes: u64,
    /// How many files are kept, the current one included; at least 2.
    pub max_files: u32,
}

/// Whether mounts made later are seen on the other side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    /// Neither way (`None`).
    #[default]
    Private,
    /// The node's in the container (`HostToContainer`).
    HostToContainer,
    /// Both ways (`Bidirectional`, privileged containers only).
    Bidirectional,
}

/// A file or directory of the node, or of an image, inside the container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Where it appears.
    pub container_path: PathBuf,
    /// What is mounted; must exist. Unused where `image` is set.
    pub host_path: PathBuf,
    /// Whether writing is refused.
    pub readonly: bool,
    /// Whether writing is refused on mounts below too; without kernel support creation fails.
    pub recursive_readonly: bool,
    /// Propagation.
    pub propagation: MountPropagation,
    /// An image volume: the file tree of this image (reference or id), read-only.
    pub image: Option<String>,
    /// The part of the image volume to mount; empty for all.
    pub image_sub_path: String,
}

/// A device node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Where it appears.
    pub container_path: PathBuf,
    /// The node's device.
    pub host_path: PathBuf,
    /// Any of `r`, `w`, `m`.
    pub permissions: String,
}

/// A limit on huge pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// `2MB`, `1GB`, as in cgroup file names.
    pub page_size: String,
    /// Bytes.
    pub limit_bytes: u64,
}

/// Limits of a container. 0 or empty means: not set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerResources {
    /// CFS period, microseconds.
    pub cpu_period_us: u64,
    /// CFS quota, microseconds; negative for none.
    pub cpu_quota_us: i64,
    /// Weight, 2 to 262144.
    pub cpu_shares: u64,
    /// Memory limit, bytes; negative for none.
    pub memory_limit_bytes: i64,
    /// Memory and swap together, bytes; 0 leaves it, negative for none.
    pub memory_swap_limit_bytes: i64,
    /// `oom_score_adj` of the process.
    pub oom_score_adj: i32,
    /// CPUs it may use, `0-2,7`.
    pub cpuset_cpus: String,
    /// Memory nodes it may use.
    pub cpuset_mems: String,
    /// Most processes and threads.
    pub pids_limit: i64,
    /// Huge pages.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Files of cgroup v2 and their values (`memory.min`, `memory.high`).
    pub unified: BTreeMap<String, String>,
}

/// Changes to the default set of capabilities. Names without `CAP_`, or `ALL`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Added.
    pub add: Vec<String>,
    /// Dropped; applied before `add` only where it is `ALL`.
    pub drop: Vec<String>,
}

/// Identity and confinement of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSecurityContext {
    /// Capabilities.
    pub capabilities: Capabilities,
    /// All capabilities, all devices, nothing masked.
    pub privileged: bool,
    /// Namespaces; only `pid` may differ from the sandbox.
    pub namespaces: NamespaceOptions,
    /// User id; wins over `run_as_username`.
    pub run_as_user: Option<u32>,
    /// Group id; needs a user.
    pub run_as_group: Option<u32>,
    /// User name in the image's `/etc/passwd`.
    pub run_as_username: String,
    /// Whether the root file system is read-only.
    pub readonly_rootfs: bool,
    /// Further groups (`fsGroup`, `supplementalGroups`).
    pub supplemental_groups: Vec<u32>,
    /// Whether groups of the image's `/etc/group` are left out (`supplementalGroupsPolicy: Strict`).
    pub strict_supplemental_groups: bool,
    /// Whether executing set-user-id programs gives nothing (`allowPrivilegeEscalation: false`).
    pub no_new_privs: bool,
    /// Paths hidden; unused where privileged.
    pub masked_paths: Vec<PathBuf>,
    /// Paths made read-only; unused where privileged.
    pub readonly_paths: Vec<PathBuf>,
    /// System call filter; unused where privileged.
    pub seccomp: SeccompProfile,
    /// AppArmor profile; `None` leaves it to the runtime.
    pub apparmor: Option<ApparmorProfile>,
    /// SELinux label; `None` leaves it to the runtime.
    pub selinux: Option<SelinuxOptions>,
}

/// An AppArmor profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApparmorProfile {
    /// The runtime's.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// One that is loaded on the node.
    Localhost(String),
}

/// The parts of an SELinux label; empty ones are the runtime's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelinuxOptions {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    pub kind: String,
    /// Level.
    pub level: String,
}

impl Default for ContainerSecurityContext {
    fn default() -> Self {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect();
        ContainerSecurityContext {
            capabilities: Capabilities::default(),
            privileged: false,
            namespaces: NamespaceOptions::default(),
            run_as_user: None,
            run_as_group: None,
            run_as_username: String::new(),
            readonly_rootfs: false,
            supplemental_groups: Vec::new(),
            strict_supplemental_groups: false,
            no_new_privs: false,
            masked_paths: paths(&[
                "/proc/asound",
                "/proc/acpi",
                "/proc/interrupts",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/proc/scsi",
                "/sys/firmware",
                "/sys/devices/virtual/powercap",
            ]),
            readonly_paths: paths(&[
                "/proc/bus",
                "/proc/fs",
                "/proc/irq",
                "/proc/sys",
                "/proc/sysrq-trigger",
            ]),
            seccomp: SeccompProfile::default(),
            apparmor: None,
            selinux: None,
        }
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its first process runs.
    Running,
    /// Its first process has ended, or could not be started.
    Exited,
    /// The runtime lost it.
    Unknown,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitInfo {
    /// Exit code; 128 + number for a signal.
    pub code: i32,
    /// Whether the kernel killed it for memory.
    pub oom_killed: bool,
    /// When.
    pub finished_at: Timestamp,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// More words, such as why it could not start.
    pub message: String,
}

/// A container as the runtime sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStatus {
    /// Id given by the runtime.
    pub id: String,
    /// Sandbox it belongs to.
    pub sandbox_id: String,
    /// As configured.
    pub name: String,
    /// As configured.
    pub attempt: u32,
    /// Where it is in its life.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was started.
    pub started_at: Option<Timestamp>,
    /// How it ended, once it has.
    pub exit: Option<ExitInfo>,
    /// Process id on the node while running.
    pub pid: Option<u32>,
    /// Image reference as configured.
    pub image: String,
    /// Image id, `sha256:...`.
    pub image_id: String,
    /// `name@sha256:...` of the image, or its id where it has no digest.
    pub image_ref: String,
    /// The user it runs as: uid, gid, supplementary groups.
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// As configured.
    pub labels: BTreeMap<String, String>,
    /// As configured.
    pub annotations: BTreeMap<String, String>,
    /// Absolute path of the log.
    pub log_path: PathBuf,
    /// Present limits.
    pub resources: ContainerResources,
    /// Signal that stops it, `SIGTERM`.
    pub stop_signal: String,
}

/// Selects containers; empty selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerFilter {
    /// This one only.
    pub id: Option<String>,
    /// Of this sandbox only.
    pub sandbox_id: Option<String>,
    /// In this state only.
    pub state: Option<ContainerState>,
    /// Bearing all these labels.
    pub labels: BTreeMap<String, String>,
}

/// Resource use of a container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStats {
    /// Id.
    pub id: String,
    /// Sandbox it belongs to.
    pub sandbox_id: String,
    /// Name within the pod.
    pub name: String,
    /// When it was measured.
    pub timestamp: Timestamp,
    /// CPU time used, nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory charged, bytes.
    pub memory_usage_bytes: u64,
    /// The part of it that cannot be reclaimed at once, bytes.
    pub memory_working_set_bytes: u64,
    /// Anonymous memory, bytes.
    pub memory_rss_bytes: u64,
    /// Memory left below the limit, bytes; `None` without a limit.
    pub memory_available_bytes: Option<u64>,
    /// Page faults, minor and major together.
    pub page_faults: u64,
    /// Major page faults.
    pub major_page_faults: u64,
    /// Number of processes and threads.
    pub pids: u64,
    /// Bytes in the writable layer.
    pub writable_layer_bytes: u64,
    /// Files in the writable layer.
    pub writable_layer_inodes: u64,
}
