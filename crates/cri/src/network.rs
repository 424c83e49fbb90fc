//! The seam between the runtime and whoever gives pods their network.

use std::fmt::Debug;
use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::sandbox::PortMapping;

/// The sandbox that wants a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkRequest {
    /// Id of the sandbox.
    pub sandbox_id: String,
    /// Path that opens the sandbox's network namespace. It is valid at least until the sandbox is stopped.
    pub netns: PathBuf,
    /// Name of the pod.
    pub pod_name: String,
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Ports to publish on the node.
    pub port_mappings: Vec<PortMapping>,
    /// Annotations of the sandbox (`kubernetes.io/ingress-bandwidth` and the like).
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// What the sandbox got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodNetwork {
    /// Addresses, primary first.
    pub ips: Vec<IpAddr>,
    /// Default gateway of the primary family.
    pub gateway: Option<IpAddr>,
    /// Name of the interface inside, `eth0`.
    pub interface: String,
    /// Its hardware address.
    pub mac: String,
    /// Its largest packet, bytes.
    pub mtu: u32,
}

/// Gives sandboxes a network. Sandboxes on the node's network never come here.
#[async_trait]
pub trait NetworkProvider: Send + Sync + Debug {
    /// Makes interface, addresses, routes and published ports; `lo` is brought up by the runtime. Calling it
    /// again for the same sandbox gives the same addresses.
    async fn attach(&self, request: &NetworkRequest) -> Result<PodNetwork>;

    /// Removes all of it. Idempotent: an unknown sandbox is a success, and so is a namespace that is gone.
    async fn detach(&self, sandbox_id: &str) -> Result<()>;
}
