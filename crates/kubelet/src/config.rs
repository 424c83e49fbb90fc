//! What a kubelet is told when it is made.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::Taint;

/// Decides whether a peer may use the node's server, from the DER of its client certificate. Only the API
/// server's own identity should pass.
pub type PeerCheck = Arc<dyn Fn(Option<&[u8]>) -> bool + Send + Sync>;

/// The node's HTTPS server.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where it listens. Port 0 takes a free one, which the Node object then tells.
    pub listen: SocketAddr,
    /// Certificate and protocols.
    pub tls: Arc<rustls::ServerConfig>,
    /// Who may call.
    pub may_call: PeerCheck,
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
    /// When the node is short of something.
    pub eviction_hard: crate::thresholds::Thresholds,
    /// When unused images go.
    pub image_gc: crate::image_gc::Policy,
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
            eviction_hard: crate::thresholds::Thresholds::default(),
            image_gc: crate::image_gc::Policy::default(),
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
