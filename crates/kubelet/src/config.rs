//! What a kubelet is told when it is made.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::Taint;

/// Who a peer of the node's server is, from the DER of its client certificate. Only the API server's own identity
/// should be taken for it.
pub type PeerCheck = Arc<dyn Fn(Option<&[u8]>) -> crate::server::Peer + Send + Sync>;

/// Sets how much is logged, on klog's scale; an error is a sentence.
pub type SetVerbosity = Arc<dyn Fn(i32) -> Result<(), String> + Send + Sync>;

/// The node's HTTPS server.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where it listens. Port 0 takes a free one, which the Node object then tells.
    pub listen: SocketAddr,
    /// Certificate and protocols.
    pub tls: Arc<rustls::ServerConfig>,
    /// Who calls.
    pub peer: PeerCheck,
}

/// How processors are given to containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CpuPolicy {
    /// All containers share all of them.
    #[default]
    None,
    /// Guaranteed containers that ask for whole ones get them for themselves.
    Static(StaticCpus),
}

/// Options of the static policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StaticCpus {
    /// Only whole cores are given.
    pub full_cores_only: bool,
    /// Reserved ones are not shared either.
    pub strict_reservation: bool,
    /// Those of a socket are as near as those of a NUMA node.
    pub by_socket: bool,
    /// Which ones are taken.
    pub choice: crate::cpu::Options,
}

/// How processors and devices of a container have to lie to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TopologyPolicy {
    /// Any way.
    #[default]
    None,
    /// Together where possible.
    BestEffort,
    /// Together as well as the machine allows, or the pod is refused.
    Restricted,
    /// On one NUMA node, or the pod is refused.
    SingleNumaNode,
}

/// Configuration of a kubelet.
#[derive(Clone)]
pub struct Config {
    /// Name of the Node object.
    pub node_name: String,
    /// Host name, for the address of that type and the label.
    pub hostname: String,
    /// Addresses of the node, primary first.
    pub node_ips: Vec<IpAddr>,
    /// Directory of pods' files.
    pub root_dir: PathBuf,
    /// Directory of pods' logs.
    pub log_dir: PathBuf,
    /// Directory of seccomp profiles (`type: Localhost`).
    pub seccomp_dir: PathBuf,
    /// Cgroup below which pods' cgroups are made; empty leaves them to the runtime's defaults.
    pub cgroup_root: String,
    /// Addresses of the cluster's DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain, `cluster.local`.
    pub cluster_domain: String,
    /// The node's resolver configuration.
    pub resolv_conf: PathBuf,
    /// Most pods.
    pub max_pods: i64,
    /// CPU kept from pods, in thousandths.
    pub reserved_cpu_milli: i64,
    /// Memory kept from pods, in bytes.
    pub reserved_memory_bytes: i64,
    /// Disk kept from pods, in bytes.
    pub reserved_storage_bytes: i64,
    /// Process ids kept from pods.
    pub reserved_pids: i64,
    /// Processors kept from containers that want some of their own.
    pub reserved_cpus: crate::cpu::Set,
    /// How processors are given to containers.
    pub cpu_policy: CpuPolicy,
    /// How processors and devices of a container have to lie to each other.
    pub topology_policy: TopologyPolicy,
    /// What is aligned is whole pods, not each container.
    pub topology_of_pods: bool,
    /// Most NUMA nodes of a machine whose resources are aligned.
    pub numa_nodes_max: i64,
    /// NUMA nodes that are near to each other are better.
    pub prefer_closest_nodes: bool,
    /// Guaranteed containers are promised memory of NUMA nodes.
    pub static_memory: bool,
    /// Memory that is kept from promises, by NUMA node and kind.
    pub reserved_memory: BTreeMap<u32, BTreeMap<String, u64>>,
    /// The cgroup of all pods is limited to what is kept for them.
    pub enforce_pods: bool,
    /// Most pods for each processor; 0 for no such limit.
    pub pods_per_core: i64,
    /// Most processes of a pod; negative for no limit.
    pub pod_pids_limit: i64,
    /// Rotation of containers' logs.
    pub log_rotation: cri::LogRotation,
    /// Sysctls beyond the safe ones that pods may set; a name may end in `*`.
    pub allowed_sysctls: Vec<String>,
    /// How long pods may take when the machine goes down; empty leaves them alone.
    pub shutdown_periods: Vec<crate::shutdown::Period>,
    /// User ids of each pod whose users are its own.
    pub ids_per_pod: u32,
    /// Burstable pods may swap in proportion to their memory requests.
    pub limited_swap: bool,
    /// Directory of device plugins' sockets.
    pub device_plugin_dir: PathBuf,
    /// Sets how much is logged (klog's scale); `None` where nobody can.
    pub verbosity: Option<SetVerbosity>,
    /// Exec, attach, port-forward and logs are served.
    pub debugging_handlers: bool,
    /// The node's own logs are served.
    pub system_logs: bool,
    /// The node's services' logs are served.
    pub system_log_query: bool,
    /// The configuration file with all defaults; empty where there was none.
    pub configuration: serde_json::Map<String, serde_json::Value>,
    /// When the node is short of something.
    pub eviction: crate::eviction::threshold::Eviction,
    /// When unused images go.
    pub image_gc: crate::image_gc::Policy,
    /// When a pod's credentials count for images that are there.
    pub image_verification: crate::pulled::Verification,
    /// Programs that give credentials for registries.
    pub credential_providers: Arc<crate::credentials::Providers>,
    /// Pulls at once; at least one.
    pub parallel_pulls: usize,
    /// Labels to register with.
    pub node_labels: BTreeMap<String, String>,
    /// Taints to register with.
    pub register_taints: Vec<Taint>,
    /// `spec.providerID`.
    pub provider_id: Option<String>,
    /// Version reported in `nodeInfo`, with a leading `v`.
    pub version: String,
    /// Port of the node's server where it is served by somebody else; 0 with [`Config::server`].
    pub server_port: u16,
    /// The node's server; `None` to leave it out.
    pub server: Option<ServerConfig>,
}

impl Config {
    /// A configuration for a node called `node_name` whose files lie below `data_dir`.
    pub fn new(node_name: &str, data_dir: PathBuf) -> Self {
        Config {
            node_name: node_name.to_owned(),
            hostname: node_name.to_owned(),
            node_ips: Vec::new(),
            root_dir: data_dir.join("kubelet"),
            log_dir: data_dir.join("pod-logs"),
            seccomp_dir: data_dir.join("seccomp"),
            cgroup_root: String::new(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            max_pods: 110,
            reserved_cpu_milli: 0,
            reserved_memory_bytes: 0,
            reserved_storage_bytes: 0,
            reserved_pids: 0,
            reserved_cpus: crate::cpu::Set::new(),
            cpu_policy: CpuPolicy::None,
            topology_policy: TopologyPolicy::None,
            topology_of_pods: false,
            numa_nodes_max: crate::topology::NODES_MAX_DEFAULT,
            prefer_closest_nodes: false,
            static_memory: false,
            reserved_memory: BTreeMap::new(),
            enforce_pods: true,
            pods_per_core: 0,
            pod_pids_limit: -1,
            log_rotation: cri::LogRotation { max_bytes: 10 << 20, max_files: 5 },
            allowed_sysctls: Vec::new(),
            shutdown_periods: Vec::new(),
            ids_per_pod: crate::userns::UNIT,
            limited_swap: false,
            device_plugin_dir: data_dir.join("kubelet").join("device-plugins"),
            verbosity: None,
            debugging_handlers: true,
            system_logs: true,
            system_log_query: false,
            configuration: serde_json::Map::new(),
            eviction: crate::eviction::threshold::Eviction::default(),
            image_gc: crate::image_gc::Policy::default(),
            image_verification: crate::pulled::Verification::default(),
            credential_providers: Arc::default(),
            parallel_pulls: crate::images::PULLS_AT_ONCE,
            node_labels: BTreeMap::new(),
            register_taints: Vec::new(),
            provider_id: None,
            version: "v1.37.0".into(),
            server_port: 0,
            server: None,
        }
    }
}
