//! The runtime half.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use cri::{
    AttachRequest, ContainerConfig, ContainerFilter, ContainerResources, ContainerState, ContainerStats,
    ContainerStatus, Duplex, EventKind, EventStream, ExecOutput, ExecRequest, PodSandboxConfig,
    PodSandboxFilter, PodSandboxStats, PodSandboxStatus, Result, RuntimeHandler, RuntimeInfo, RuntimeService,
    StreamSession,
};
use futures_util::future::{BoxFuture, try_join_all};
use rpc::cri as pb;
use streaming::dial;

use super::records::Made;
use super::{CALL_MAX, Remote, answer};
use crate::convert::error::Call;
use crate::convert::{container, sandbox, stats};

/// Making a sandbox includes its network and, on a slow day, pulling the runtime's own pause image.
const SANDBOX_MAX: Duration = Duration::from_secs(240);

/// How often the removal of a sandbox is tried again: containerd refuses while a container of it is starting.
const REMOVALS_MAX: u32 = 20;
/// Between two such attempts.
const REMOVAL_RETRY: Duration = Duration::from_millis(250);

/// Whole seconds, rounded up: the protocol knows no parts.
fn seconds(time: Duration) -> i64 {
    let whole = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i64::try_from(whole).unwrap_or(i64::MAX)
}

/// Notes a failure to write a record: the runtime has done its part already.
fn recorded(outcome: std::io::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "what a container was made with could not be recorded");
    }
}

fn handler_from(told: &pb::RuntimeHandler) -> RuntimeHandler {
    let features = told.features.unwrap_or_default();
    RuntimeHandler {
        name: told.name.clone(),
        recursive_readonly_mounts: features.recursive_read_only_mounts,
        user_namespaces: features.user_namespaces,
    }
}

impl Remote {
    async fn list_items(&self, filter: &ContainerFilter) -> Result<Vec<pb::Container>> {
        let mut filter = container::filter_to(filter);
        self.own(&mut filter.label_selector);
        let message = pb::ListContainersRequest { filter: Some(filter) };
        let call = async { self.runtime.clone().list_containers(message).await };
        Ok(answer(CALL_MAX, Call::Other, call).await?.containers)
    }

    /// The states of all sandboxes and containers, for whoever compares them.
    pub(super) async fn survey(&self) -> Result<(Vec<pb::PodSandbox>, Vec<pb::Container>)> {
        let every = self.own_sandboxes(&PodSandboxFilter::default());
        let sandboxes = async { self.runtime.clone().list_pod_sandbox(every).await };
        let all = ContainerFilter::default();
        let (sandboxes, containers) =
            tokio::try_join!(answer(CALL_MAX, Call::Other, sandboxes), self.list_items(&all))?;
        Ok((sandboxes.items, containers))
    }

    fn own_sandboxes(&self, filter: &PodSandboxFilter) -> pb::ListPodSandboxRequest {
        let mut filter = sandbox::filter_to(filter);
        self.own(&mut filter.label_selector);
        pb::ListPodSandboxRequest { filter: Some(filter) }
    }

    async fn sandbox_of(&self, id: &str) -> Result<String> {
        if let Some(known) = self.cache.sandbox_of(id) {
            return Ok(known);
        }
        let items =
            self.list_items(&ContainerFilter { id: Some(id.to_owned()), ..Default::default() }).await?;
        let found = items.into_iter().next().map(|item| item.pod_sandbox_id);
        found.ok_or_else(|| cri::Error::ContainerNotFound { id: id.to_owned() })
    }

    async fn fetch_container(&self, id: &str, sandbox_id: &str) -> Result<ContainerStatus> {
        let message = pb::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let call = async { self.runtime.clone().container_status(message).await };
        let status = answer(CALL_MAX, Call::Container(id), call).await?.status.unwrap_or_default();
        let (mut status, told) = container::status_from(status, sandbox_id);
        if !told && let Some(made) = self.records.container(sandbox_id, id) {
            status.resources = made.resources;
        }
        self.cache.keep_container(&status);
        Ok(status)
    }

    async fn fetch_sandbox(&self, id: &str) -> Result<PodSandboxStatus> {
        let message = pb::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let call = async { self.runtime.clone().pod_sandbox_status(message).await };
        let status = answer(CALL_MAX, Call::Sandbox(id), call).await?.status.unwrap_or_default();
        let status = sandbox::status_from(status);
        self.cache.keep_sandbox(&status);
        Ok(status)
    }

    /// The status of a container in a list; `None` if it is gone meanwhile.
    fn listed_container(&self, item: pb::Container) -> BoxFuture<'_, Result<Option<ContainerStatus>>> {
        Box::pin(async move {
            if let Some(known) = self.cache.container(&item.id, container::state_from(item.state())) {
                return Ok(Some(known));
            }
            match self.fetch_container(&item.id, &item.pod_sandbox_id).await {
                Err(error) if error.is_not_found() => Ok(None),
                other => other.map(Some),
            }
        })
    }

    fn listed_sandbox(&self, item: pb::PodSandbox) -> BoxFuture<'_, Result<Option<PodSandboxStatus>>> {
        Box::pin(async move {
            if let Some(known) = self.cache.sandbox(&item.id, sandbox::state_from(item.state())) {
                return Ok(Some(known));
            }
            match self.fetch_sandbox(&item.id).await {
                Err(error) if error.is_not_found() => Ok(None),
                other => other.map(Some),
            }
        })
    }

    async fn stats_items(&self, filter: pb::ContainerStatsFilter) -> Result<Vec<pb::ContainerStats>> {
        let message = pb::ListContainerStatsRequest { filter: Some(filter) };
        let call = async { self.runtime.clone().list_container_stats(message).await };
        Ok(answer(CALL_MAX, Call::Other, call).await?.stats)
    }
}

#[async_trait]
impl RuntimeService for Remote {
    async fn info(&self) -> Result<RuntimeInfo> {
        let version =
            async { self.runtime.clone().version(pb::VersionRequest { version: "0.1.0".into() }).await };
        let status = async { self.runtime.clone().status(pb::StatusRequest { verbose: false }).await };
        let (version, answered) =
            tokio::try_join!(answer(CALL_MAX, Call::Other, version), answer(CALL_MAX, Call::Other, status))?;
        let conditions = answered.status.unwrap_or_default().conditions;
        let condition = |kind: &str| conditions.iter().find(|condition| condition.r#type == kind);
        let holds = |kind| condition(kind).is_some_and(|condition| condition.status);
        let unmet = ["RuntimeReady", "NetworkReady"].into_iter().filter_map(condition).find(|c| !c.status);
        let handler = answered.runtime_handlers.iter().find(|handler| handler.name.is_empty());
        let features = handler.and_then(|handler| handler.features).unwrap_or_default();
        Ok(RuntimeInfo {
            name: version.runtime_name,
            version: version.runtime_version,
            runtime_ready: holds("RuntimeReady"),
            network_ready: holds("NetworkReady"),
            message: unmet.map(|condition| condition.message.clone()).unwrap_or_default(),
            cgroup_v2: super::exists(Path::new("/sys/fs/cgroup/cgroup.controllers")),
            user_namespaces: features.user_namespaces,
            recursive_readonly_mounts: features.recursive_read_only_mounts,
            supplemental_groups_policy: answered.features.is_some_and(|f| f.supplemental_groups_policy),
            handlers: answered.runtime_handlers.iter().map(handler_from).collect(),
        })
    }

    async fn run_pod_sandbox(&self, mut config: PodSandboxConfig) -> Result<String> {
        self.own(&mut config.labels);
        if !config.log_directory.as_os_str().is_empty() {
            // The kubelet's part with any runtime.
            std::fs::create_dir_all(&config.log_directory)
                .map_err(|error| cri::Error::io("create the pod's log directory", error))?;
        }
        let message = pb::RunPodSandboxRequest {
            config: Some(sandbox::config_to(&config)),
            runtime_handler: config.runtime_handler.clone(),
        };
        let call = async { self.runtime.clone().run_pod_sandbox(message).await };
        let id = answer(SANDBOX_MAX, Call::RunSandbox, call).await?.pod_sandbox_id;
        let uid = config.uid.clone();
        recorded(self.records.sandbox_made(&id, config));
        self.tell_sandbox(&id, &uid, EventKind::SandboxStarted);
        Ok(id)
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        let message = pb::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let call = async { self.runtime.clone().stop_pod_sandbox(message).await };
        match answer(SANDBOX_MAX, Call::Sandbox(id), call).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => {
                let uid = self.cache.uid_of(id).unwrap_or_default();
                self.tell_sandbox(id, &uid, EventKind::SandboxStopped);
                Ok(())
            }
        }
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        self.stop_pod_sandbox(id).await?;
        let mut attempt = 0;
        loop {
            let message = pb::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
            let call = async { self.runtime.clone().remove_pod_sandbox(message).await };
            match answer(SANDBOX_MAX, Call::Sandbox(id), call).await {
                Err(error) if error.is_not_found() => break,
                Err(error) if attempt == REMOVALS_MAX => return Err(error),
                Err(error) => tracing::debug!(sandbox = id, %error, "not yet removed"),
                Ok(_) => break,
            }
            attempt += 1;
            tokio::time::sleep(REMOVAL_RETRY).await;
        }
        let uid = self.cache.uid_of(id).unwrap_or_default();
        self.cache.forget_sandbox(id);
        recorded(self.records.sandbox_gone(id));
        self.tell_sandbox(id, &uid, EventKind::SandboxDeleted);
        Ok(())
    }

    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        self.fetch_sandbox(id).await
    }

    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> Result<Vec<PodSandboxStatus>> {
        let message = self.own_sandboxes(filter);
        let call = async { self.runtime.clone().list_pod_sandbox(message).await };
        let items = answer(CALL_MAX, Call::Other, call).await?.items;
        let statuses = try_join_all(items.into_iter().map(|item| self.listed_sandbox(item))).await?;
        Ok(statuses.into_iter().flatten().collect())
    }

    async fn pod_sandbox_stats(&self, id: &str) -> Result<PodSandboxStats> {
        let message = pb::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
        let call = async { self.runtime.clone().pod_sandbox_stats(message).await };
        let told = answer(CALL_MAX, Call::Sandbox(id), call).await?.stats.unwrap_or_default();
        Ok(stats::sandbox_from(told))
    }

    async fn create_container(&self, sandbox_id: &str, mut config: ContainerConfig) -> Result<String> {
        self.own(&mut config.labels);
        let of = self.records.sandbox(sandbox_id);
        let of = of.ok_or_else(|| cri::Error::SandboxNotFound { id: sandbox_id.to_owned() })?;
        let log = of.log_directory.join(&config.log_path);
        if let Some(directory) = log.parent().filter(|_| !config.log_path.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory)
                .map_err(|error| cri::Error::io("create the container's log directory", error))?;
        }
        let message = pb::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(container::config_to(&config)),
            sandbox_config: Some(sandbox::config_to(&of)),
        };
        // Boxed: the message holds the whole of both configurations.
        let call = Box::pin(async { self.runtime.clone().create_container(message).await });
        let id = answer(CALL_MAX, Call::Create, call).await?.container_id;
        let made = Made { resources: config.resources, log_rotation: config.log_rotation };
        recorded(self.records.container_made(sandbox_id, &id, made));
        self.tell_container(sandbox_id, &of.uid, &id, EventKind::ContainerCreated);
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let message = pb::StartContainerRequest { container_id: id.to_owned() };
        let call = async { self.runtime.clone().start_container(message).await };
        answer(CALL_MAX, Call::Start, call).await?;
        self.changed(id, EventKind::ContainerStarted).await;
        Ok(())
    }

    async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()> {
        let message = pb::StopContainerRequest { container_id: id.to_owned(), timeout: seconds(timeout) };
        let call = async { self.runtime.clone().stop_container(message).await };
        match answer(timeout.saturating_add(CALL_MAX), Call::Container(id), call).await {
            Err(error) if error.is_not_found() => return Ok(()),
            outcome => outcome?,
        };
        self.announce(id).await;
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let sandbox = self.sandbox_of(id).await.ok();
        // The protocol leaves it open whether a running container can be removed; stopping first always works.
        if let Ok(status) = self.container_status(id).await
            && status.state == ContainerState::Running
        {
            self.stop_container(id, Duration::ZERO).await?;
        }
        let message = pb::RemoveContainerRequest { container_id: id.to_owned() };
        let call = async { self.runtime.clone().remove_container(message).await };
        match answer(CALL_MAX, Call::Container(id), call).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        self.cache.forget_container(id);
        recorded(self.records.container_gone(id));
        if let Some(sandbox) = sandbox {
            let uid = self.cache.uid_of(&sandbox).unwrap_or_default();
            self.tell_container(&sandbox, &uid, id, EventKind::ContainerDeleted);
        }
        Ok(())
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let sandbox = self.sandbox_of(id).await?;
        self.fetch_container(id, &sandbox).await
    }

    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStatus>> {
        let items = self.list_items(filter).await?;
        let statuses = try_join_all(items.into_iter().map(|item| self.listed_container(item))).await?;
        Ok(statuses.into_iter().flatten().collect())
    }

    async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        let sandbox = self.sandbox_of(id).await?;
        let message = pb::ContainerStatsRequest { container_id: id.to_owned() };
        let call = async { self.runtime.clone().container_stats(message).await };
        let told = answer(CALL_MAX, Call::Container(id), call).await?.stats.unwrap_or_default();
        Ok(stats::container_from(told, &sandbox))
    }

    async fn list_container_stats(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        let mut message = pb::ContainerStatsFilter {
            id: filter.id.clone().unwrap_or_default(),
            pod_sandbox_id: filter.sandbox_id.clone().unwrap_or_default(),
            label_selector: filter.labels.clone(),
        };
        self.own(&mut message.label_selector);
        let running = ContainerFilter { state: Some(ContainerState::Running), ..filter.clone() };
        let (told, running) = tokio::try_join!(self.stats_items(message), self.list_items(&running))?;
        let sandbox = |id: &str| running.iter().find(|item| item.id == id).map(|item| &item.pod_sandbox_id);
        let one = |told: pb::ContainerStats| {
            let sandbox = sandbox(&told.attributes.as_ref()?.id)?.clone();
            Some(stats::container_from(told, &sandbox))
        };
        Ok(told.into_iter().filter_map(one).collect())
    }

    async fn update_container_resources(&self, id: &str, resources: &ContainerResources) -> Result<()> {
        let message = pb::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(container::resources_to(resources)),
            ..Default::default()
        };
        let call = async { self.runtime.clone().update_container_resources(message).await };
        answer(CALL_MAX, Call::Container(id), call).await?;
        if let Ok(sandbox) = self.sandbox_of(id).await {
            let mut made = self.records.container(&sandbox, id).unwrap_or_default();
            made.resources = resources.clone();
            recorded(self.records.container_made(&sandbox, id, made));
        }
        self.cache.forget_container(id);
        Ok(())
    }

    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let message = pb::ReopenContainerLogRequest { container_id: id.to_owned() };
        let call = async { self.runtime.clone().reopen_container_log(message).await };
        answer(CALL_MAX, Call::Container(id), call).await?;
        Ok(())
    }

    fn events(&self) -> EventStream {
        self.listen()
    }

    async fn exec_sync(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        let message = pb::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: seconds(timeout),
        };
        let call = async { self.runtime.clone().exec_sync(message).await };
        // The runtime keeps the time; ours is for one that does not answer at all.
        let limit = match timeout.is_zero() {
            true => Duration::MAX,
            false => timeout.saturating_add(CALL_MAX),
        };
        let output = answer(limit, Call::Exec(command, timeout), call).await?;
        Ok(ExecOutput { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
    }

    async fn exec(&self, request: ExecRequest) -> Result<StreamSession> {
        let ExecRequest { container_id, command, tty, stdin, stdout, stderr } = request;
        let about = container_id.clone();
        let message =
            pb::ExecRequest { container_id, cmd: command, tty, stdin, stdout, stderr: stderr && !tty };
        let call = async { self.runtime.clone().exec(message).await };
        let url = answer(CALL_MAX, Call::Container(&about), call).await?.url;
        dial::remote(&url, dial::Streams { stdin, stdout, stderr, tty }).await
    }

    async fn attach(&self, request: AttachRequest) -> Result<StreamSession> {
        let AttachRequest { container_id, tty, stdin, stdout, stderr } = request;
        let about = container_id.clone();
        let message = pb::AttachRequest { container_id, stdin, tty, stdout, stderr: stderr && !tty };
        let call = async { self.runtime.clone().attach(message).await };
        let url = answer(CALL_MAX, Call::Container(&about), call).await?.url;
        dial::remote(&url, dial::Streams { stdin, stdout, stderr, tty }).await
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<Box<dyn Duplex>> {
        let message =
            pb::PortForwardRequest { pod_sandbox_id: sandbox_id.to_owned(), port: vec![i32::from(port)] };
        let call = async { self.runtime.clone().port_forward(message).await };
        let url = answer(CALL_MAX, Call::Sandbox(sandbox_id), call).await?.url;
        dial::forward(&url, port).await
    }
}
