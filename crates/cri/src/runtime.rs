//! The runtime half of CRI.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;

use crate::container::{
    ContainerConfig, ContainerFilter, ContainerResources, ContainerStats, ContainerStatus,
};
use crate::error::Result;
use crate::event::EventStream;
use crate::sandbox::{PodSandboxConfig, PodSandboxFilter, PodSandboxStats, PodSandboxStatus};
use crate::stream::{AttachRequest, Duplex, ExecOutput, ExecRequest, StreamSession};

/// Who the runtime is and whether it works.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeInfo {
    /// Name, such as `ferry`.
    pub name: String,
    /// Version.
    pub version: String,
    /// Whether containers can be run.
    pub runtime_ready: bool,
    /// Whether pods get a network.
    pub network_ready: bool,
    /// Why not, where something is not ready.
    pub message: String,
    /// Whether cgroup v2 is in use.
    pub cgroup_v2: bool,
    /// Whether `hostUsers: false` works.
    pub user_namespaces: bool,
    /// Whether read-only mounts can be recursive.
    pub recursive_readonly_mounts: bool,
    /// Whether `supplementalGroupsPolicy: Strict` is kept.
    pub supplemental_groups_policy: bool,
    /// What RuntimeClasses can name; the default one has an empty name. Empty where the runtime does not tell.
    pub handlers: Vec<RuntimeHandler>,
}

/// One of a runtime's ways to run containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeHandler {
    /// Its name.
    pub name: String,
    /// Whether read-only mounts can be recursive.
    pub recursive_readonly_mounts: bool,
    /// Whether `hostUsers: false` works.
    pub user_namespaces: bool,
}

/// Sandboxes and containers. Object-safe; all calls may run concurrently.
#[async_trait]
pub trait RuntimeService: Send + Sync + Debug {
    /// Who the runtime is and whether it works.
    async fn info(&self) -> Result<RuntimeInfo>;

    /// Makes and starts a sandbox, network included, and returns its id.
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String>;
    /// Kills all containers of the sandbox and takes its network away. Idempotent; an unknown id is a success.
    async fn stop_pod_sandbox(&self, id: &str) -> Result<()>;
    /// Removes the sandbox and its containers, stopping it first if need be. Idempotent.
    async fn remove_pod_sandbox(&self, id: &str) -> Result<()>;
    /// One sandbox.
    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus>;
    /// All sandboxes that pass the filter.
    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> Result<Vec<PodSandboxStatus>>;
    /// Resource use of a sandbox as a whole.
    async fn pod_sandbox_stats(&self, id: &str) -> Result<PodSandboxStats>;

    /// Makes a container in a ready sandbox and returns its id. The image must be present.
    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String>;
    /// Starts a created container.
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Sends the stop signal, waits up to `timeout`, then kills; returns when it has ended. Idempotent.
    async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()>;
    /// Removes a container, killing it if need be. Its log stays. Idempotent.
    async fn remove_container(&self, id: &str) -> Result<()>;
    /// One container.
    async fn container_status(&self, id: &str) -> Result<ContainerStatus>;
    /// All containers that pass the filter.
    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStatus>>;
    /// Resource use of one container.
    async fn container_stats(&self, id: &str) -> Result<ContainerStats>;
    /// Resource use of all running containers that pass the filter.
    async fn list_container_stats(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>>;
    /// Changes the limits of a container in place. Unset fields stay as they are.
    async fn update_container_resources(&self, id: &str, resources: &ContainerResources) -> Result<()>;
    /// Opens the log file anew after the caller has renamed it.
    async fn reopen_container_log(&self, id: &str) -> Result<()>;

    /// Events from now on, for as many listeners as call.
    fn events(&self) -> EventStream;

    /// Runs a short command and returns what it said. A zero `timeout` means none. When the time is over the
    /// command is killed and the error is [`crate::Error::Timeout`].
    async fn exec_sync(
        &self,
        container_id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput>;
    /// Runs a command with live streams.
    async fn exec(&self, request: ExecRequest) -> Result<StreamSession>;
    /// Joins the streams of a container's first process. Several may be attached at once.
    async fn attach(&self, request: AttachRequest) -> Result<StreamSession>;
    /// Connects to a TCP port on the sandbox's loopback.
    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn Duplex>>;
}
