//! The runtime, measured: how often it was asked for what, how long that took and how often it failed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cri::{
    AttachRequest, ContainerConfig, ContainerFilter, ContainerResources, ContainerStats, ContainerStatus,
    Duplex, EventStream, ExecOutput, ExecRequest, PodSandboxConfig, PodSandboxFilter, PodSandboxStats,
    PodSandboxStatus, Result, RuntimeInfo, RuntimeService, StreamSession,
};

use crate::counters::Counters;

/// A runtime whose calls are counted.
#[derive(Debug)]
pub struct Measured {
    inner: Arc<dyn RuntimeService>,
    counters: Arc<Counters>,
}

impl Measured {
    /// Counts calls of `inner`.
    pub fn new(inner: Arc<dyn RuntimeService>, counters: Arc<Counters>) -> Self {
        Measured { inner, counters }
    }

    async fn count<T>(&self, operation: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let began = Instant::now();
        let result = call.await;
        self.counters.runtime_asked(operation, began.elapsed(), result.is_err());
        result
    }
}

#[async_trait]
impl RuntimeService for Measured {
    async fn info(&self) -> Result<RuntimeInfo> {
        self.count("status", self.inner.info()).await
    }
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String> {
        let began = Instant::now();
        let handler = config.runtime_handler.clone();
        let result = self.count("run_podsandbox", self.inner.run_pod_sandbox(config)).await;
        self.counters.sandbox_run(&handler, began.elapsed(), result.is_err());
        result
    }
    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        self.count("stop_podsandbox", self.inner.stop_pod_sandbox(id)).await
    }
    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        self.count("remove_podsandbox", self.inner.remove_pod_sandbox(id)).await
    }
    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        self.count("podsandbox_status", self.inner.pod_sandbox_status(id)).await
    }
    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> Result<Vec<PodSandboxStatus>> {
        self.count("list_podsandbox", self.inner.list_pod_sandboxes(filter)).await
    }
    async fn pod_sandbox_stats(&self, id: &str) -> Result<PodSandboxStats> {
        self.count("podsandbox_stats", self.inner.pod_sandbox_stats(id)).await
    }
    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        self.count("create_container", self.inner.create_container(sandbox_id, config)).await
    }
    async fn start_container(&self, id: &str) -> Result<()> {
        self.count("start_container", self.inner.start_container(id)).await
    }
    async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()> {
        self.count("stop_container", self.inner.stop_container(id, timeout)).await
    }
    async fn remove_container(&self, id: &str) -> Result<()> {
        self.count("remove_container", self.inner.remove_container(id)).await
    }
    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        self.count("container_status", self.inner.container_status(id)).await
    }
    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStatus>> {
        self.count("list_containers", self.inner.list_containers(filter)).await
    }
    async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        self.count("container_stats", self.inner.container_stats(id)).await
    }
    async fn list_container_stats(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        self.count("list_container_stats", self.inner.list_container_stats(filter)).await
    }
    async fn update_container_resources(&self, id: &str, resources: &ContainerResources) -> Result<()> {
        self.count("update_container", self.inner.update_container_resources(id, resources)).await
    }
    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        self.count("reopen_container_log", self.inner.reopen_container_log(id)).await
    }
    fn events(&self) -> EventStream {
        self.inner.events()
    }
    async fn exec_sync(
        &self,
        container_id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput> {
        self.count("exec_sync", self.inner.exec_sync(container_id, command, timeout)).await
    }
    async fn exec(&self, request: ExecRequest) -> Result<StreamSession> {
        self.count("exec", self.inner.exec(request)).await
    }
    async fn attach(&self, request: AttachRequest) -> Result<StreamSession> {
        self.count("attach", self.inner.attach(request)).await
    }
    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn Duplex>> {
        self.count("port_forward", self.inner.port_forward(sandbox_id, port)).await
    }
}
