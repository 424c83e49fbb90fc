//! Pod sandboxes: what the kubelet asks for and what the runtime reports.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Everything a runtime needs to make the sandbox of a pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSandboxConfig {
    /// Name of the pod.
    pub name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// UID of the pod.
    pub uid: String,
    /// How many sandboxes of this pod came before.
    pub attempt: u32,
    /// Host name inside the sandbox; empty for the node's (host network).
    pub hostname: String,
    /// Directory under which containers' `log_path`s lie.
    pub log_directory: PathBuf,
    /// What goes into `/etc/resolv.conf`; `None` takes the node's file.
    pub dns: Option<DnsConfig>,
    /// Ports published on the node.
    pub port_mappings: Vec<PortMapping>,
    /// Labels to select sandboxes by.
    pub labels: BTreeMap<String, String>,
    /// Free data, given back unchanged.
    pub annotations: BTreeMap<String, String>,
    /// Parent of the containers' cgroups, such as `/ferry-ab12/burstable/pod<uid>`. Empty: the runtime's own.
    pub cgroup_parent: String,
    /// Namespaced kernel parameters.
    pub sysctls: BTreeMap<String, String>,
    /// Which of the runtime's ways to run containers is wanted (RuntimeClass); empty for its default.
    pub runtime_handler: String,
    /// Identity and confinement shared by the pod's containers.
    pub security: PodSandboxSecurityContext,
}

/// Resolver configuration of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the pod published on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct PortMapping {
    /// Protocol.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the node; 0 publishes nothing.
    pub host_port: u16,
    /// Address of the node to listen on; `None` for all.
    pub host_ip: Option<IpAddr>,
}

/// Whose namespace is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// One for the pod.
    #[default]
    Pod,
    /// One for each container (PID); for the network of a sandbox, one with nothing but loopback.
    Container,
    /// The node's.
    Node,
    /// That of the container with this id (only PID, ephemeral containers).
    Target(String),
}

/// Namespaces of a sandbox or container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamespaceOptions {
    /// Network: `Pod`, `Node`, or `Container` for loopback alone.
    pub network: NamespaceMode,
    /// Processes: `Container` (Kubernetes' default), `Pod` (shareProcessNamespace), `Node` or `Target`.
    pub pid: NamespaceMode,
    /// System V IPC and POSIX queues: `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// Whether user ids are those of the node (`hostUsers`, true by default).
    pub host_users: bool,
    /// Where the pod's ids lie on the node, for users and groups alike, where they are its own.
    pub user_ids: Option<IdMapping>,
}

/// Ids of a pod and the node's that stand behind them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// The first one in the pod.
    pub container_id: u32,
    /// The one it is on the node.
    pub host_id: u32,
    /// How many.
    pub length: u32,
}

impl Default for NamespaceOptions {
    fn default() -> Self {
        NamespaceOptions {
            network: NamespaceMode::Pod,
            pid: NamespaceMode::Container,
            ipc: NamespaceMode::Pod,
            host_users: true,
            user_ids: None,
        }
    }
}

/// Which system calls a process may make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompProfile {
    /// All (Kubernetes' default unless `seccompDefault` is on).
    #[default]
    Unconfined,
    /// The runtime's list.
    RuntimeDefault,
    /// The profile in this file of the node.
    Localhost(PathBuf),
}

/// Identity and confinement of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSandboxSecurityContext {
    /// Namespaces.
    pub namespaces: NamespaceOptions,
    /// User of the sandbox's own process, where there is one.
    pub run_as_user: Option<u32>,
    /// Group of the sandbox's own process.
    pub run_as_group: Option<u32>,
    /// Whether the sandbox's own root is read-only.
    pub readonly_rootfs: bool,
    /// Further groups.
    pub supplemental_groups: Vec<u32>,
    /// Whether any container of the pod is privileged.
    pub privileged: bool,
    /// System call filter of the sandbox's own process.
    pub seccomp: SeccompProfile,
}

/// Whether containers can be started in a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodSandboxState {
    /// It is up.
    Ready,
    /// It was stopped or has died.
    NotReady,
}

/// A sandbox as the runtime sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct PodSandboxStatus {
    /// Id given by the runtime.
    pub id: String,
    /// Name of the pod.
    pub name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// UID of the pod.
    pub uid: String,
    /// As configured.
    pub attempt: u32,
    /// Whether it is up.
    pub state: PodSandboxState,
    /// When it was made.
    pub created_at: Timestamp,
    /// The pod's addresses, primary first; empty with host network.
    pub ips: Vec<IpAddr>,
    /// As configured.
    pub namespaces: NamespaceOptions,
    /// As configured.
    pub runtime_handler: String,
    /// As configured.
    pub labels: BTreeMap<String, String>,
    /// As configured.
    pub annotations: BTreeMap<String, String>,
}

/// Selects sandboxes; empty selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodSandboxFilter {
    /// This one only.
    pub id: Option<String>,
    /// In this state only.
    pub state: Option<PodSandboxState>,
    /// Bearing all these labels.
    pub labels: BTreeMap<String, String>,
}

/// Counters of one network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    /// Name inside the pod, `eth0`.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Send errors.
    pub tx_errors: u64,
}

/// Resource use of a sandbox beyond its containers.
#[derive(Debug, Clone, PartialEq)]
pub struct PodSandboxStats {
    /// Id of the sandbox.
    pub id: String,
    /// When it was measured.
    pub timestamp: Timestamp,
    /// CPU time used by the pod's cgroup, nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory charged to the pod's cgroup, bytes.
    pub memory_usage_bytes: u64,
    /// The part of it that cannot be reclaimed at once, bytes.
    pub memory_working_set_bytes: u64,
    /// Anonymous memory, bytes.
    pub memory_rss_bytes: u64,
    /// Number of processes and threads.
    pub pids: u64,
    /// Interfaces of the pod; empty with host network.
    pub interfaces: Vec<InterfaceStats>,
}
