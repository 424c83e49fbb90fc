//! The runtime half: each call finds what it is about, asks the runtime and puts the answer in the protocol's
//! words.

use std::time::Duration;

use cri::{ContainerFilter, ContainerState, ContainerStatus, EventKind, PodSandboxState, PodSandboxStatus};
use futures_util::StreamExt;
use rpc::cri as pb;
use rpc::cri::runtime_service_server::RuntimeService;
use rpc::tonic::{Request, Response, Status, async_trait};

use super::images::{Chunks, chunks};
use super::stream::Ticket;
use super::{Answer, Server, info, metrics, ok, select, told};
use crate::convert::{container, nanoseconds, sandbox, stats};

/// Version of the protocol that `Version` has always answered with.
const PROTOCOL_VERSION: &str = "0.1.0";
/// Longest limits in seconds: more than any process runs, and far from overflow.
const SECONDS_MAX: i64 = 1 << 40;

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(seconds.clamp(0, SECONDS_MAX).cast_unsigned())
}

fn missing(what: &str) -> Status {
    Status::invalid_argument(format!("{what} must be given"))
}

impl Server {
    async fn usage(&self, filter: ContainerFilter) -> Result<Vec<pb::ContainerStats>, Status> {
        let mountpoint = told(self.images.fs_info().await)?.mountpoint.to_string_lossy().into_owned();
        let mut out = Vec::new();
        for status in
            self.containers(ContainerFilter { state: Some(ContainerState::Running), ..filter }).await?
        {
            // One that ends meanwhile has no use any more.
            if let Ok(used) = self.runtime.container_stats(&status.id).await {
                out.push(stats::container_to(&used, &status, &mountpoint));
            }
        }
        Ok(out)
    }

    async fn sandbox_usage(&self, status: &PodSandboxStatus) -> Result<pb::PodSandboxStats, Status> {
        let used = told(self.runtime.pod_sandbox_stats(&status.id).await)?;
        let of = ContainerFilter { sandbox_id: Some(status.id.clone()), ..Default::default() };
        Ok(stats::sandbox_to(&used, status, self.usage(of).await?))
    }

    async fn sandbox_usages(
        &self,
        filter: Option<pb::PodSandboxStatsFilter>,
    ) -> Result<Vec<pb::PodSandboxStats>, Status> {
        let filter = filter.unwrap_or_default();
        let filter = cri::PodSandboxFilter {
            id: crate::convert::some_text(&filter.id),
            state: Some(PodSandboxState::Ready),
            labels: filter.label_selector,
        };
        let mut out = Vec::new();
        for status in self.sandboxes(filter).await? {
            if let Ok(used) = self.sandbox_usage(&status).await {
                out.push(used);
            }
        }
        Ok(out)
    }

    async fn sandbox_metrics(&self) -> Result<Vec<pb::PodSandboxMetrics>, Status> {
        let ready = cri::PodSandboxFilter { state: Some(PodSandboxState::Ready), ..Default::default() };
        let mut out = Vec::new();
        for status in self.sandboxes(ready).await? {
            let Ok(used) = self.runtime.pod_sandbox_stats(&status.id).await else { continue };
            let mut containers = Vec::new();
            for one in self.containers_of(&status.id).await? {
                if let (ContainerState::Running, Ok(used)) =
                    (one.state, self.runtime.container_stats(&one.id).await)
                {
                    containers.push(metrics::container(&used, &one));
                }
            }
            out.push(metrics::sandbox(&used, containers));
        }
        Ok(out)
    }

    /// A container that runs: others cannot be joined.
    async fn running(&self, given: &str) -> Result<ContainerStatus, Status> {
        let status = told(self.runtime.container_status(&self.container_id(given).await?).await)?;
        match status.state {
            ContainerState::Running => Ok(status),
            state => {
                let state = container::state_to(state).as_str_name();
                Err(Status::failed_precondition(format!("container is in {state} state")))
            }
        }
    }

    /// An event with what it is about, as it is now.
    async fn event(&self, event: cri::ContainerEvent) -> Option<Result<pb::ContainerEventResponse, Status>> {
        use pb::ContainerEventType::{
            ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
        };
        let kind = match event.kind {
            EventKind::SandboxStarted | EventKind::ContainerStarted => ContainerStartedEvent,
            EventKind::SandboxStopped | EventKind::ContainerStopped(_) => ContainerStoppedEvent,
            EventKind::SandboxDeleted | EventKind::ContainerDeleted => ContainerDeletedEvent,
            EventKind::ContainerCreated => ContainerCreatedEvent,
            EventKind::Lagged(missed) => {
                return Some(Err(Status::data_loss(format!("{missed} events were missed: list everything"))));
            }
        };
        let of = self.runtime.pod_sandbox_status(&event.sandbox_id).await.ok();
        let metadata = pb::PodSandboxMetadata { uid: event.pod_uid, ..Default::default() };
        let gone = || pb::PodSandboxStatus {
            id: event.sandbox_id.clone(),
            metadata: Some(metadata),
            state: pb::PodSandboxState::SandboxNotready.into(),
            ..Default::default()
        };
        let containers = self.containers_of(&event.sandbox_id).await.unwrap_or_default();
        Some(Ok(pb::ContainerEventResponse {
            container_id: event.container_id.unwrap_or_else(|| event.sandbox_id.clone()),
            container_event_type: kind.into(),
            created_at: nanoseconds(event.at),
            pod_sandbox_status: Some(of.as_ref().map(sandbox::status_to).unwrap_or_else(gone)),
            containers_statuses: containers.iter().map(|status| container::status_to(status, &[])).collect(),
        }))
    }

    /// Sandboxes have names, and two of one name would be one pod twice.
    async fn check_name(&self, config: &cri::PodSandboxConfig) -> Result<(), Status> {
        let same = |status: &PodSandboxStatus| {
            status.name == config.name
                && status.namespace == config.namespace
                && status.uid == config.uid
                && status.attempt == config.attempt
        };
        let all = self.sandboxes(Default::default()).await?;
        match all.iter().find(|status| same(status)) {
            None => Ok(()),
            Some(other) => {
                let name = format!("{}_{}_{}_{}", config.name, config.namespace, config.uid, config.attempt);
                Err(Status::already_exists(format!(
                    "failed to reserve sandbox name {name:?}: name {name:?} is reserved for {:?}",
                    other.id
                )))
            }
        }
    }
}

#[async_trait]
impl RuntimeService for Server {
    async fn version(&self, _: Request<pb::VersionRequest>) -> Answer<pb::VersionResponse> {
        let info = told(self.runtime.info().await)?;
        ok(pb::VersionResponse {
            version: PROTOCOL_VERSION.into(),
            runtime_name: info.name,
            runtime_version: info.version,
            runtime_api_version: "v1".into(),
        })
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<pb::RunPodSandboxRequest>,
    ) -> Answer<pb::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| missing("the sandbox's configuration"))?;
        if config.metadata.is_none() {
            return Err(Status::invalid_argument("sandbox config must include metadata"));
        }
        let config = sandbox::config_from(&config, &request.runtime_handler);
        self.check_name(&config).await?;
        if !config.log_directory.as_os_str().is_empty() {
            std::fs::create_dir_all(&config.log_directory)
                .map_err(|error| Status::unknown(format!("cannot create the log directory: {error}")))?;
        }
        ok(pb::RunPodSandboxResponse { pod_sandbox_id: told(self.runtime.run_pod_sandbox(config).await)? })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<pb::StopPodSandboxRequest>,
    ) -> Answer<pb::StopPodSandboxResponse> {
        let id = self.sandbox_id(&request.into_inner().pod_sandbox_id).await?;
        told(self.runtime.stop_pod_sandbox(&id).await)?;
        ok(pb::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<pb::RemovePodSandboxRequest>,
    ) -> Answer<pb::RemovePodSandboxResponse> {
        let id = self.sandbox_id(&request.into_inner().pod_sandbox_id).await?;
        told(self.runtime.remove_pod_sandbox(&id).await)?;
        ok(pb::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<pb::PodSandboxStatusRequest>,
    ) -> Answer<pb::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let status =
            told(self.runtime.pod_sandbox_status(&self.sandbox_id(&request.pod_sandbox_id).await?).await)?;
        let containers = self.containers_of(&status.id).await?;
        ok(pb::PodSandboxStatusResponse {
            info: if request.verbose { info::sandbox(&status) } else { Default::default() },
            status: Some(sandbox::status_to(&status)),
            containers_statuses: containers.iter().map(|status| container::status_to(status, &[])).collect(),
            timestamp: nanoseconds(jiff::Timestamp::now()),
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<pb::ListPodSandboxRequest>,
    ) -> Answer<pb::ListPodSandboxResponse> {
        let found = self.sandboxes(sandbox::filter_from(request.into_inner().filter)).await?;
        ok(pb::ListPodSandboxResponse { items: found.iter().map(sandbox::item_to).collect() })
    }

    type StreamPodSandboxesStream = Chunks<pb::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<pb::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let found = self.sandboxes(sandbox::filter_from(request.into_inner().filter)).await?;
        let items: Vec<_> = found.iter().map(sandbox::item_to).collect();
        Ok(chunks(&items, |pod_sandboxes| pb::StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn create_container(
        &self,
        request: Request<pb::CreateContainerRequest>,
    ) -> Answer<pb::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| missing("the container's configuration"))?;
        if config.metadata.is_none() {
            return Err(Status::invalid_argument("container config must include metadata"));
        }
        let config = container::config_from(&config);
        let sandbox = self.sandbox_id(&request.pod_sandbox_id).await?;
        let of = told(self.runtime.pod_sandbox_status(&sandbox).await)?;
        if of.state != PodSandboxState::Ready {
            return Err(Status::failed_precondition("sandbox container is not running"));
        }
        let others = self.containers_of(&sandbox).await?;
        if let Some(other) = others.iter().find(|c| c.name == config.name && c.attempt == config.attempt) {
            let name = format!("{}_{}_{}_{}_{}", config.name, of.name, of.namespace, of.uid, config.attempt);
            return Err(Status::already_exists(format!(
                "failed to reserve container name {name:?}: name {name:?} is reserved for {:?}",
                other.id
            )));
        }
        ok(pb::CreateContainerResponse {
            container_id: told(self.runtime.create_container(&sandbox, config).await)?,
        })
    }

    async fn start_container(
        &self,
        request: Request<pb::StartContainerRequest>,
    ) -> Answer<pb::StartContainerResponse> {
        let id = self.container_id(&request.into_inner().container_id).await?;
        told(self.runtime.start_container(&id).await)?;
        ok(pb::StartContainerResponse {})
    }

    async fn stop_container(
        &self,
        request: Request<pb::StopContainerRequest>,
    ) -> Answer<pb::StopContainerResponse> {
        let request = request.into_inner();
        let id = self.container_id(&request.container_id).await?;
        match self.runtime.stop_container(&id, seconds(request.timeout)).await {
            // What is not there does not run.
            Err(error) if !error.is_not_found() => told(Err(error)),
            _ => ok(pb::StopContainerResponse {}),
        }
    }

    async fn remove_container(
        &self,
        request: Request<pb::RemoveContainerRequest>,
    ) -> Answer<pb::RemoveContainerResponse> {
        let id = self.container_id(&request.into_inner().container_id).await?;
        told(self.runtime.remove_container(&id).await)?;
        ok(pb::RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<pb::ListContainersRequest>,
    ) -> Answer<pb::ListContainersResponse> {
        let found = self.containers(container::filter_from(request.into_inner().filter)).await?;
        ok(pb::ListContainersResponse { containers: found.iter().map(container::item_to).collect() })
    }

    type StreamContainersStream = Chunks<pb::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<pb::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let found = self.containers(container::filter_from(request.into_inner().filter)).await?;
        let items: Vec<_> = found.iter().map(container::item_to).collect();
        Ok(chunks(&items, |containers| pb::StreamContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<pb::ContainerStatusRequest>,
    ) -> Answer<pb::ContainerStatusResponse> {
        let request = request.into_inner();
        let status =
            told(self.runtime.container_status(&self.container_id(&request.container_id).await?).await)?;
        ok(pb::ContainerStatusResponse {
            info: if request.verbose { info::container(&status) } else { Default::default() },
            status: Some(container::status_to(&status, &[])),
        })
    }

    async fn update_container_resources(
        &self,
        request: Request<pb::UpdateContainerResourcesRequest>,
    ) -> Answer<pb::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let id = self.container_id(&request.container_id).await?;
        if let Some(linux) = &request.linux {
            told(self.runtime.update_container_resources(&id, &container::resources_from(linux)).await)?;
        }
        ok(pb::UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: Request<pb::ReopenContainerLogRequest>,
    ) -> Answer<pb::ReopenContainerLogResponse> {
        let status = self.running(&request.into_inner().container_id).await?;
        told(self.runtime.reopen_container_log(&status.id).await)?;
        ok(pb::ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: Request<pb::ExecSyncRequest>) -> Answer<pb::ExecSyncResponse> {
        let request = request.into_inner();
        let status = self.running(&request.container_id).await?;
        let output = told(self.runtime.exec_sync(&status.id, &request.cmd, seconds(request.timeout)).await)?;
        ok(pb::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
    }

    async fn exec(&self, request: Request<pb::ExecRequest>) -> Answer<pb::ExecResponse> {
        let request = request.into_inner();
        let status = self.running(&request.container_id).await?;
        ok(pb::ExecResponse { url: self.streamer.url(Ticket::exec(&request, status.id)?).await? })
    }

    async fn attach(&self, request: Request<pb::AttachRequest>) -> Answer<pb::AttachResponse> {
        let request = request.into_inner();
        let status = self.running(&request.container_id).await?;
        ok(pb::AttachResponse { url: self.streamer.url(Ticket::attach(&request, status.id)?).await? })
    }

    async fn port_forward(
        &self,
        request: Request<pb::PortForwardRequest>,
    ) -> Answer<pb::PortForwardResponse> {
        let request = request.into_inner();
        let status =
            told(self.runtime.pod_sandbox_status(&self.sandbox_id(&request.pod_sandbox_id).await?).await)?;
        if status.state != PodSandboxState::Ready {
            return Err(Status::failed_precondition("sandbox container is not running"));
        }
        ok(pb::PortForwardResponse { url: self.streamer.url(Ticket::forward(&request, status.id)).await? })
    }

    async fn container_stats(
        &self,
        request: Request<pb::ContainerStatsRequest>,
    ) -> Answer<pb::ContainerStatsResponse> {
        let status = told(
            self.runtime
                .container_status(&self.container_id(&request.into_inner().container_id).await?)
                .await,
        )?;
        let used = told(self.runtime.container_stats(&status.id).await)?;
        let mountpoint = told(self.images.fs_info().await)?.mountpoint.to_string_lossy().into_owned();
        ok(pb::ContainerStatsResponse { stats: Some(stats::container_to(&used, &status, &mountpoint)) })
    }

    async fn list_container_stats(
        &self,
        request: Request<pb::ListContainerStatsRequest>,
    ) -> Answer<pb::ListContainerStatsResponse> {
        let of = request.into_inner().filter.unwrap_or_default();
        let filter = select::of_stats(&of.id, &of.pod_sandbox_id, of.label_selector, None);
        ok(pb::ListContainerStatsResponse { stats: self.usage(filter).await? })
    }

    type StreamContainerStatsStream = Chunks<pb::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<pb::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let of = request.into_inner().filter.unwrap_or_default();
        let used = self.usage(select::of_stats(&of.id, &of.pod_sandbox_id, of.label_selector, None)).await?;
        Ok(chunks(&used, |container_stats| pb::StreamContainerStatsResponse { container_stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<pb::PodSandboxStatsRequest>,
    ) -> Answer<pb::PodSandboxStatsResponse> {
        let id = self.sandbox_id(&request.into_inner().pod_sandbox_id).await?;
        let status = told(self.runtime.pod_sandbox_status(&id).await)?;
        ok(pb::PodSandboxStatsResponse { stats: Some(self.sandbox_usage(&status).await?) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<pb::ListPodSandboxStatsRequest>,
    ) -> Answer<pb::ListPodSandboxStatsResponse> {
        ok(pb::ListPodSandboxStatsResponse { stats: self.sandbox_usages(request.into_inner().filter).await? })
    }

    type StreamPodSandboxStatsStream = Chunks<pb::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<pb::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let used = self.sandbox_usages(request.into_inner().filter).await?;
        Ok(chunks(&used, |pod_sandbox_stats| pb::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn update_runtime_config(
        &self,
        _: Request<pb::UpdateRuntimeConfigRequest>,
    ) -> Answer<pb::UpdateRuntimeConfigResponse> {
        // The pods' range is the network's, which is not configured from here.
        ok(pb::UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        let about = told(self.runtime.info().await)?;
        let condition = |kind: &str, status: bool, reason: &str| pb::RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: if status { String::new() } else { reason.into() },
            message: if status { String::new() } else { about.message.clone() },
        };
        let handler = |of: &cri::RuntimeHandler| pb::RuntimeHandler {
            name: of.name.clone(),
            features: Some(pb::RuntimeHandlerFeatures {
                recursive_read_only_mounts: of.recursive_readonly_mounts,
                user_namespaces: of.user_namespaces,
            }),
        };
        let supplemental_groups_policy = about.supplemental_groups_policy;
        ok(pb::StatusResponse {
            info: if request.into_inner().verbose { info::runtime(&about) } else { Default::default() },
            runtime_handlers: about.handlers.iter().map(handler).collect(),
            features: Some(pb::RuntimeFeatures { supplemental_groups_policy, ..Default::default() }),
            status: Some(pb::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", about.runtime_ready, "RuntimeNotReady"),
                    condition("NetworkReady", about.network_ready, "NetworkPluginNotReady"),
                ],
            }),
        })
    }

    async fn checkpoint_container(
        &self,
        _: Request<pb::CheckpointContainerRequest>,
    ) -> Answer<pb::CheckpointContainerResponse> {
        Err(Status::unimplemented("this runtime cannot checkpoint containers: it has no CRIU"))
    }

    async fn checkpoint_pod(
        &self,
        _: Request<pb::CheckpointPodRequest>,
    ) -> Answer<pb::CheckpointPodResponse> {
        Err(Status::unimplemented("this runtime cannot checkpoint pods: it has no CRIU"))
    }

    async fn restore_pod(&self, _: Request<pb::RestorePodRequest>) -> Answer<pb::RestorePodResponse> {
        Err(Status::unimplemented("this runtime cannot restore pods: it has no CRIU"))
    }

    type GetContainerEventsStream = Chunks<pb::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<pb::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let server = self.clone();
        let events = self.runtime.events().filter_map(move |event| {
            let server = server.clone();
            async move { server.event(event).await }
        });
        Ok(Response::new(events.boxed()))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<pb::ListMetricDescriptorsRequest>,
    ) -> Answer<pb::ListMetricDescriptorsResponse> {
        ok(pb::ListMetricDescriptorsResponse { descriptors: metrics::descriptors() })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<pb::ListPodSandboxMetricsRequest>,
    ) -> Answer<pb::ListPodSandboxMetricsResponse> {
        ok(pb::ListPodSandboxMetricsResponse { pod_metrics: self.sandbox_metrics().await? })
    }

    type StreamPodSandboxMetricsStream = Chunks<pb::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<pb::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let all = self.sandbox_metrics().await?;
        Ok(chunks(&all, |pod_sandbox_metrics| pb::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    async fn runtime_config(
        &self,
        _: Request<pb::RuntimeConfigRequest>,
    ) -> Answer<pb::RuntimeConfigResponse> {
        let linux = pb::LinuxRuntimeConfiguration { cgroup_driver: pb::CgroupDriver::Cgroupfs.into() };
        ok(pb::RuntimeConfigResponse { linux: Some(linux) })
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<pb::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<pb::UpdatePodSandboxResourcesResponse> {
        // The pod's own cgroup is the caller's; there is nothing beside it to change, but the pod must be there.
        let id = self.sandbox_id(&request.into_inner().pod_sandbox_id).await?;
        told(self.runtime.pod_sandbox_status(&id).await)?;
        ok(pb::UpdatePodSandboxResourcesResponse {})
    }
}
