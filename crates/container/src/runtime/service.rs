//! The runtime as a [`cri::RuntimeService`].

use std::time::Duration;

use async_trait::async_trait;
use cri::{
    AttachRequest, ContainerConfig, ContainerEvent, ContainerFilter, ContainerResources, ContainerState,
    ContainerStats, ContainerStatus, Duplex, EventKind, EventStream, ExecOutput, ExecRequest,
    PodSandboxConfig, PodSandboxFilter, PodSandboxState, PodSandboxStats, PodSandboxStatus, Result,
    RuntimeHandler, RuntimeInfo, RuntimeService, StreamSession,
};
use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;

use super::lifecycle::CONTAINER_FILE;
use super::sandbox::{HANDLERS, tell};
use super::{Container, Runtime, Sandbox, exit_info, timestamp};
use crate::signals;
use crate::spec::{ContainerRecord, write_json};
use crate::wire::Request;

fn sandbox_status(sandbox: &Sandbox) -> PodSandboxStatus {
    let state = sandbox.state.read();
    let config = &state.config;
    PodSandboxStatus {
        id: sandbox.id.clone(),
        name: config.name.clone(),
        namespace: config.namespace.clone(),
        uid: config.uid.clone(),
        attempt: config.attempt,
        state: if state.ready { PodSandboxState::Ready } else { PodSandboxState::NotReady },
        created_at: timestamp(state.created_at),
        ips: state.network.as_ref().map(|n| n.ips.clone()).unwrap_or_default(),
        namespaces: config.security.namespaces.clone(),
        runtime_handler: config.runtime_handler.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

/// Whether this kernel can have user namespaces; idmapped layers of overlays came after all else.
fn user_namespaces() -> bool {
    let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let some = most.trim().parse::<u64>().is_ok_and(|most| most > 0);
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    some && kernel_is_at_least(&release, (6, 3))
}

/// Whether a kernel's release such as `6.18.44-x` is this one or a later one.
fn kernel_is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) >= wanted)
}

fn handler(name: &str) -> RuntimeHandler {
    RuntimeHandler {
        name: name.to_owned(),
        recursive_readonly_mounts: true,
        user_namespaces: user_namespaces(),
    }
}

fn state_of(record: &ContainerRecord) -> ContainerState {
    match (&record.exit, record.pid) {
        (Some(_), _) => ContainerState::Exited,
        (None, 0) => ContainerState::Created,
        (None, _) => ContainerState::Running,
    }
}

fn container_status(container: &Container) -> ContainerStatus {
    let file = container.file.read();
    let record = container.record.borrow().clone();
    let process = &container.process;
    ContainerStatus {
        id: container.id.clone(),
        sandbox_id: file.sandbox_id.clone(),
        name: file.config.name.clone(),
        attempt: file.config.attempt,
        // From the same record as the rest: another look could see a later one.
        state: state_of(&record),
        created_at: timestamp(file.created_at),
        started_at: (record.started_at != 0).then(|| timestamp(record.started_at)),
        exit: record.exit.as_ref().map(exit_info),
        pid: if record.exit.is_none() { u32::try_from(record.pid).ok().filter(|p| *p != 0) } else { None },
        image: file.config.image.clone(),
        image_id: file.image_id.clone(),
        image_ref: file.image_ref.clone(),
        user: Some((process.uid, process.gid, process.groups.clone())),
        labels: file.config.labels.clone(),
        annotations: file.config.annotations.clone(),
        log_path: container.log_path.clone(),
        resources: file.config.resources.clone(),
        stop_signal: signals::name(file.stop_signal),
    }
}

fn has_labels(
    labels: &std::collections::BTreeMap<String, String>,
    wanted: &std::collections::BTreeMap<String, String>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Takes over the fields that are set.
fn merge(old: &mut ContainerResources, new: &ContainerResources) {
    fn set<T: PartialEq + Default + Clone>(old: &mut T, new: &T) {
        if *new != T::default() {
            old.clone_from(new);
        }
    }
    set(&mut old.cpu_period_us, &new.cpu_period_us);
    set(&mut old.cpu_quota_us, &new.cpu_quota_us);
    set(&mut old.cpu_shares, &new.cpu_shares);
    set(&mut old.memory_limit_bytes, &new.memory_limit_bytes);
    set(&mut old.memory_swap_limit_bytes, &new.memory_swap_limit_bytes);
    set(&mut old.oom_score_adj, &new.oom_score_adj);
    set(&mut old.cpuset_cpus, &new.cpuset_cpus);
    set(&mut old.cpuset_mems, &new.cpuset_mems);
    set(&mut old.pids_limit, &new.pids_limit);
    set(&mut old.hugepage_limits, &new.hugepage_limits);
    old.unified.extend(new.unified.clone());
}

impl Runtime {
    fn select(&self, filter: &ContainerFilter) -> Vec<std::sync::Arc<Container>> {
        let passes = |c: &Container| {
            let file = c.file.read();
            filter.id.as_ref().is_none_or(|id| *id == c.id)
                && filter.sandbox_id.as_ref().is_none_or(|id| *id == file.sandbox_id)
                && filter.state.is_none_or(|state| state == state_of(&c.record.borrow()))
                && has_labels(&file.config.labels, &filter.labels)
        };
        self.containers.read().values().filter(|c| passes(c)).cloned().collect()
    }
}

#[async_trait]
impl RuntimeService for Runtime {
    async fn info(&self) -> Result<RuntimeInfo> {
        Ok(RuntimeInfo {
            name: "ferry".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            runtime_ready: true,
            network_ready: self.config.network.is_some(),
            message: String::new(),
            cgroup_v2: self.cgroups.is_v2(),
            user_namespaces: user_namespaces(),
            recursive_readonly_mounts: true,
            supplemental_groups_policy: true,
            handlers: HANDLERS.iter().map(|name| handler(name)).collect(),
        })
    }

    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String> {
        self.run_sandbox(config).await
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        self.stop_sandbox(id).await
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        self.remove_sandbox(id).await
    }

    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        Ok(sandbox_status(&*self.sandbox(id)?))
    }

    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> Result<Vec<PodSandboxStatus>> {
        let passes = |s: &PodSandboxStatus| {
            filter.id.as_ref().is_none_or(|id| *id == s.id)
                && filter.state.is_none_or(|state| state == s.state)
                && has_labels(&s.labels, &filter.labels)
        };
        let all = self.sandboxes.read();
        Ok(all.values().map(|s| sandbox_status(s)).filter(passes).collect())
    }

    async fn pod_sandbox_stats(&self, id: &str) -> Result<PodSandboxStats> {
        self.sandbox_stats(id)
    }

    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        self.create(sandbox_id, config).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.start(id).await
    }

    async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()> {
        self.stop(id, timeout).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        match self.container(id) {
            Ok(container) => self.remove_container_now(&container).await,
            Err(_) => Ok(()),
        }
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        Ok(container_status(&*self.container(id)?))
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStatus>> {
        Ok(self.select(filter).iter().map(|c| container_status(c)).collect())
    }

    async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        self.stats_of(self.container(id)?).await
    }

    async fn list_container_stats(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        let running = ContainerFilter { state: Some(ContainerState::Running), ..filter.clone() };
        let mut all = Vec::new();
        for container in self.select(&running) {
            all.push(self.stats_of(container).await?);
        }
        Ok(all)
    }

    async fn update_container_resources(&self, id: &str, resources: &ContainerResources) -> Result<()> {
        let container = self.container(id)?;
        let cgroup = container.file.read().cgroup.clone();
        self.cgroups
            .apply(&cgroup, resources)
            .map_err(|e| cri::Error::Internal { message: format!("failed to update resources: {e}") })?;
        let file = {
            let mut file = container.file.write();
            merge(&mut file.config.resources, resources);
            file.clone()
        };
        write_json(&container.dir.join(CONTAINER_FILE), &file)
            .map_err(|e| cri::Error::io("record resources", e))
    }

    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        tell(&container.sandbox.dir, &Request::Reopen { container: id.to_owned() }).await
    }

    fn events(&self) -> EventStream {
        let receiver = self.events.subscribe();
        futures_util::stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(RecvError::Lagged(missed)) => {
                    let event = ContainerEvent {
                        sandbox_id: String::new(),
                        pod_uid: String::new(),
                        container_id: None,
                        at: Timestamp::UNIX_EPOCH,
                        kind: EventKind::Lagged(missed),
                    };
                    Some((event, receiver))
                }
                Err(RecvError::Closed) => None,
            }
        })
        .boxed()
    }

    async fn exec_sync(
        &self,
        container_id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput> {
        self.exec_and_wait(container_id, command, timeout).await
    }

    async fn exec(&self, request: ExecRequest) -> Result<StreamSession> {
        self.exec_session(request).await
    }

    async fn attach(&self, request: AttachRequest) -> Result<StreamSession> {
        self.attach_session(request).await
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn Duplex>> {
        self.dial(sandbox_id, port).await
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn kernels() {
        for (release, holds) in
            [("6.18.44-fc", true), ("6.3.0", true), ("6.2.9", false), ("5.19", false), ("x", false)]
        {
            assert_eq!(super::kernel_is_at_least(release, (6, 3)), holds, "{release}");
        }
    }
}
