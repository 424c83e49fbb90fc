//! The embedded runtime through its socket, as `crictl` and the suite of runtimes' tests use it: sandboxes,
//! containers, images, commands, streams, confinement, mounts, logs, statistics, events.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rpc::Channel;
use rpc::cri as pb;
use rpc::cri::image_service_client::ImageServiceClient;
use rpc::cri::runtime_service_client::RuntimeServiceClient;
use rpc::tonic::Code;
use testkit::Cluster;
use testkit::image::BUSYBOX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest wait for a state: several times what the slowest step needs.
const WAIT_MAX: Duration = Duration::from_secs(30);

type Runtime = RuntimeServiceClient<Channel>;

/// A client, and a directory for logs and mounts.
#[derive(Clone)]
struct Suite {
    runtime: Runtime,
    images: ImageServiceClient<Channel>,
    directory: PathBuf,
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn shell(script: &str) -> Vec<String> {
    words(&["sh", "-c", script])
}

impl Suite {
    fn sandbox_config(&self, name: &str) -> pb::PodSandboxConfig {
        pb::PodSandboxConfig {
            metadata: Some(pb::PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "suite".into(),
                attempt: 1,
            }),
            hostname: name.into(),
            log_directory: self.directory.join("logs").join(name).display().to_string(),
            labels: BTreeMap::from([("suite".to_owned(), name.to_owned())]),
            linux: Some(pb::LinuxPodSandboxConfig::default()),
            ..Default::default()
        }
    }

    async fn sandbox(&self, config: pb::PodSandboxConfig) -> String {
        let request = pb::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        self.runtime.clone().run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
    }

    fn container_config(&self, name: &str, script: &str) -> pb::ContainerConfig {
        pb::ContainerConfig {
            metadata: Some(pb::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(pb::ImageSpec { image: BUSYBOX.into(), ..Default::default() }),
            command: shell(script),
            labels: BTreeMap::from([("part".to_owned(), name.to_owned())]),
            log_path: format!("{name}.log"),
            linux: Some(pb::LinuxContainerConfig::default()),
            ..Default::default()
        }
    }

    async fn create(&self, sandbox: &str, config: pb::ContainerConfig) -> String {
        let pod_sandbox_id = sandbox.to_owned();
        let request =
            pb::CreateContainerRequest { pod_sandbox_id, config: Some(config), sandbox_config: None };
        self.runtime.clone().create_container(request).await.unwrap().into_inner().container_id
    }

    async fn start(&self, sandbox: &str, config: pb::ContainerConfig) -> String {
        let container_id = self.create(sandbox, config).await;
        let request = pb::StartContainerRequest { container_id: container_id.clone() };
        self.runtime.clone().start_container(request).await.unwrap();
        container_id
    }

    async fn status(&self, id: &str) -> pb::ContainerStatus {
        let request = pb::ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.runtime.clone().container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    async fn ended(&self, id: &str) -> pb::ContainerStatus {
        let wait = async {
            loop {
                let status = self.status(id).await;
                if status.state() == pb::ContainerState::ContainerExited {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(WAIT_MAX, wait).await.expect("the container does not end")
    }

    async fn exec(&self, id: &str, script: &str) -> pb::ExecSyncResponse {
        let request = pb::ExecSyncRequest { container_id: id.into(), cmd: shell(script), timeout: 10 };
        self.runtime.clone().exec_sync(request).await.unwrap().into_inner()
    }

    async fn said(&self, id: &str, script: &str) -> String {
        let output = self.exec(id, script).await;
        assert_eq!(output.exit_code, 0, "{script}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    async fn remove(&self, sandbox: &str) {
        let pod_sandbox_id = sandbox.to_owned();
        self.runtime
            .clone()
            .stop_pod_sandbox(pb::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() })
            .await
            .unwrap();
        self.runtime
            .clone()
            .remove_pod_sandbox(pb::RemovePodSandboxRequest { pod_sandbox_id })
            .await
            .unwrap();
    }

    /// The log of a container: stream, tag and text of each line.
    fn log(&self, pod: &str, name: &str) -> Vec<String> {
        let path = self.directory.join("logs").join(pod).join(format!("{name}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| line.split_once(' ').map(|(_, rest)| rest.to_owned())).collect()
    }
}

async fn about_the_runtime(suite: &Suite) {
    let mut runtime = suite.runtime.clone();
    let version = runtime.version(pb::VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((version.version.as_str(), version.runtime_name.as_str()), ("0.1.0", "ferry"));
    assert_eq!(version.runtime_api_version, "v1");
    let status = runtime.status(pb::StatusRequest { verbose: true }).await.unwrap().into_inner();
    let ready =
        status.status.unwrap().conditions.iter().map(|c| (c.r#type.clone(), c.status)).collect::<Vec<_>>();
    assert_eq!(ready, [("RuntimeReady".into(), true), ("NetworkReady".into(), true)]);
    assert!(status.info["config"].contains("cgroupfs"));
    let config = runtime.runtime_config(pb::RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(config.linux.unwrap().cgroup_driver(), pb::CgroupDriver::Cgroupfs);
    runtime.update_runtime_config(pb::UpdateRuntimeConfigRequest::default()).await.unwrap();
    let refused = runtime.checkpoint_container(pb::CheckpointContainerRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

async fn images(suite: &Suite) {
    let mut images = suite.images.clone();
    let image = |name: &str| Some(pb::ImageSpec { image: name.into(), ..Default::default() });
    let of = |name: &str| pb::ImageStatusRequest { image: image(name), verbose: true };
    let found = images.image_status(of(BUSYBOX)).await.unwrap().into_inner();
    let (status, info) = (found.image.unwrap(), &found.info["info"]);
    assert!(status.id.starts_with("sha256:") && status.size > 0, "{status:?}");
    assert_eq!(status.repo_tags, [BUSYBOX]);
    assert!(info.contains("image default"), "{info}");
    assert!(images.image_status(of("nowhere/nothing:1")).await.unwrap().into_inner().image.is_none());
    let list = images.list_images(pb::ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert!(list.iter().any(|one| one.id == status.id));
    let filter = Some(pb::ImageFilter { image: image("nowhere/nothing:1") });
    assert!(
        images.list_images(pb::ListImagesRequest { filter }).await.unwrap().into_inner().images.is_empty()
    );
    let pull = |name: &str| pb::PullImageRequest { image: image(name), ..Default::default() };
    assert_eq!(images.pull_image(pull("")).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(images.pull_image(pull("Not A Name")).await.unwrap_err().code(), Code::InvalidArgument);
    let refused = images.pull_image(pull("127.0.0.1:1/nothing:1")).await.unwrap_err();
    assert!(matches!(refused.code(), Code::Unavailable | Code::Unknown), "{refused:?}");
    images.remove_image(pb::RemoveImageRequest { image: image("nowhere/nothing:1") }).await.unwrap();
    let usage = images.image_fs_info(pb::ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert!(usage.image_filesystems[0].used_bytes.unwrap().value > 0);
}

async fn sandboxes(suite: &Suite) {
    let mut runtime = suite.runtime.clone();
    let config = suite.sandbox_config("boxes");
    let id = suite.sandbox(config.clone()).await;
    let about = |id: &str| pb::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: true };
    let short = id.get(..13).unwrap();
    let answer = runtime.pod_sandbox_status(about(short)).await.unwrap().into_inner();
    let status = answer.status.unwrap();
    assert_eq!((status.id.as_str(), status.state()), (id.as_str(), pb::PodSandboxState::SandboxReady));
    assert!(status.network.unwrap().ip.starts_with("10.42."));
    assert!(answer.info["info"].contains("runtimeHandler"));
    let twice = pb::RunPodSandboxRequest { config: Some(config), ..Default::default() };
    let twice = runtime.run_pod_sandbox(twice).await.unwrap_err();
    assert!(twice.message().contains("is reserved for"), "{twice:?}");
    let handler = pb::RunPodSandboxRequest {
        config: Some(suite.sandbox_config("other")),
        runtime_handler: "kata".into(),
    };
    let handler = runtime.run_pod_sandbox(handler).await.unwrap_err();
    assert_eq!(handler.message(), "no runtime for \"kata\" is configured");
    let bare = runtime.run_pod_sandbox(pb::RunPodSandboxRequest::default()).await.unwrap_err();
    assert_eq!(bare.code(), Code::InvalidArgument);

    let list = |labels: &[(&str, &str)], state: Option<pb::PodSandboxState>| pb::ListPodSandboxRequest {
        filter: Some(pb::PodSandboxFilter {
            id: String::new(),
            state: state.map(|state| pb::PodSandboxStateValue { state: state.into() }),
            label_selector: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }),
    };
    let mut count = async |request| runtime.list_pod_sandbox(request).await.unwrap().into_inner().items.len();
    let ready = Some(pb::PodSandboxState::SandboxReady);
    assert_eq!(count(list(&[("suite", "boxes")], ready)).await, 1);
    assert_eq!(count(list(&[("suite", "nobody")], None)).await, 0);
    suite.remove(&id).await;
    suite.remove(&id).await;
    let gone = runtime.pod_sandbox_status(about(&id)).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

async fn containers(suite: &Suite) {
    let mut runtime = suite.runtime.clone();
    let sandbox = suite.sandbox(suite.sandbox_config("life")).await;
    let id =
        suite.create(&sandbox, suite.container_config("main", "echo out; echo err >&2; sleep 1000")).await;
    assert_eq!(suite.status(&id).await.state(), pb::ContainerState::ContainerCreated);
    let exec = |seconds, script: &str| pb::ExecSyncRequest {
        container_id: id.clone(),
        cmd: shell(script),
        timeout: seconds,
    };
    let early = runtime.exec_sync(exec(1, "true")).await.unwrap_err();
    assert!(early.message().contains("container is in CONTAINER_CREATED state"), "{early:?}");
    let again = pb::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(suite.container_config("main", "true")),
        sandbox_config: None,
    };
    assert!(runtime.create_container(again).await.unwrap_err().message().contains("is reserved for"));
    runtime.start_container(pb::StartContainerRequest { container_id: id.clone() }).await.unwrap();
    let status = suite.status(&id).await;
    assert_eq!(status.state(), pb::ContainerState::ContainerRunning);
    assert!(status.started_at >= status.created_at && status.image_id.starts_with("sha256:"), "{status:?}");

    let output = suite.exec(&id, "echo a; echo b >&2; exit 7").await;
    assert_eq!((&output.stdout[..], &output.stderr[..], output.exit_code), (&b"a\n"[..], &b"b\n"[..], 7));
    let late = runtime.exec_sync(exec(1, "sleep 100")).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");

    let log = suite.directory.join("logs/life/main.log");
    let wait = async {
        while suite.log("life", "main").len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WAIT_MAX, wait).await.expect("nothing in the log");
    let mut lines = suite.log("life", "main");
    lines.sort();
    assert_eq!(lines, ["stderr F err", "stdout F out"]);
    std::fs::rename(&log, log.with_extension("old")).unwrap();
    runtime.reopen_container_log(pb::ReopenContainerLogRequest { container_id: id.clone() }).await.unwrap();
    assert!(log.exists(), "the log was not opened anew");

    let stop = pb::StopContainerRequest { container_id: id.clone(), timeout: 0 };
    runtime.stop_container(stop.clone()).await.unwrap();
    runtime.stop_container(stop).await.unwrap();
    let ended = suite.ended(&id).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "Error"));
    let failing = suite.start(&sandbox, suite.container_config("failing", "exit 5")).await;
    assert_eq!(suite.ended(&failing).await.exit_code, 5);
    let mut missing = suite.container_config("missing", "");
    missing.command = words(&["/no/such/program"]);
    let missing = suite.create(&sandbox, missing).await;
    let refused = runtime
        .start_container(pb::StartContainerRequest { container_id: missing.clone() })
        .await
        .unwrap_err();
    assert!(refused.message().contains("no such file or directory"), "{refused:?}");

    let filter = Some(pb::ContainerFilter { pod_sandbox_id: sandbox.clone(), ..Default::default() });
    let list =
        runtime.list_containers(pb::ListContainersRequest { filter }).await.unwrap().into_inner().containers;
    assert_eq!(list.len(), 3);
    let remove = pb::RemoveContainerRequest { container_id: id.clone() };
    runtime.remove_container(remove.clone()).await.unwrap();
    runtime.remove_container(remove).await.unwrap();
    let about = pb::ContainerStatusRequest { container_id: id, verbose: false };
    assert_eq!(runtime.container_status(about).await.unwrap_err().code(), Code::NotFound);
    suite.remove(&sandbox).await;
}

async fn streams(suite: &Suite) {
    let mut runtime = suite.runtime.clone();
    let sandbox = suite.sandbox(suite.sandbox_config("streams")).await;
    let script = "mkdir /web; echo page > /web/index.html; httpd -p 80 -h /web; exec cat";
    let config = pb::ContainerConfig { stdin: true, ..suite.container_config("main", script) };
    let id = suite.start(&sandbox, config).await;
    let exec = pb::ExecRequest {
        container_id: id.clone(),
        cmd: words(&["cat"]),
        stdin: true,
        stdout: true,
        ..Default::default()
    };
    let nothing = pb::ExecRequest { stdin: false, stdout: false, ..exec.clone() };
    assert_eq!(runtime.exec(nothing).await.unwrap_err().code(), Code::InvalidArgument);
    let url = runtime.exec(exec).await.unwrap().into_inner().url;
    let wanted = streaming::dial::Streams { stdin: true, stdout: true, ..Default::default() };
    let mut session = streaming::dial::remote(&url, wanted).await.unwrap();
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    stdin.write_all(b"through the socket").await.unwrap();
    stdin.shutdown().await.unwrap();
    let mut text = String::new();
    stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!((text.as_str(), session.exit.await.unwrap()), ("through the socket", 0));
    assert!(streaming::dial::remote(&url, wanted).await.is_err(), "a URL is good once");

    let exec = pb::ExecRequest {
        container_id: id.clone(),
        cmd: shell("stty size; exit 3"),
        tty: true,
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let url = runtime.exec(exec).await.unwrap().into_inner().url;
    let wanted = streaming::dial::Streams { tty: true, ..wanted };
    let session = streaming::dial::remote(&url, wanted).await.unwrap();
    assert!(session.resize.is_some() && session.stderr.is_none());
    assert_eq!(session.exit.await.unwrap(), 3);

    let attach =
        pb::AttachRequest { container_id: id.clone(), stdin: true, stdout: true, ..Default::default() };
    let url = runtime.attach(attach).await.unwrap().into_inner().url;
    let wanted = streaming::dial::Streams { stdin: true, stdout: true, ..Default::default() };
    let mut session = streaming::dial::remote(&url, wanted).await.unwrap();
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    stdin.write_all(b"attached\n").await.unwrap();
    let mut read = [0; 9];
    stdout.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"attached\n");

    let forward = pb::PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![80] };
    let url = runtime.port_forward(forward).await.unwrap().into_inner().url;
    let mut connection = streaming::dial::forward(&url, 80).await.unwrap();
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut page = String::new();
    connection.read_to_string(&mut page).await.unwrap();
    assert!(page.ends_with("page\n"), "{page}");
    suite.remove(&sandbox).await;
}

async fn confinement(suite: &Suite) {
    let mut config = suite.sandbox_config("confined");
    let linux = config.linux.get_or_insert_default();
    linux.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "77".into());
    let sandbox = suite.sandbox(config).await;
    let with = |name: &str, security: pb::LinuxContainerSecurityContext| {
        let mut config = suite.container_config(name, "sleep 1000");
        config.linux.get_or_insert_default().security_context = Some(security);
        config
    };
    let user = pb::LinuxContainerSecurityContext {
        run_as_user: Some(pb::Int64Value { value: 1234 }),
        run_as_group: Some(pb::Int64Value { value: 567 }),
        supplemental_groups: vec![89],
        readonly_rootfs: true,
        no_new_privs: true,
        ..Default::default()
    };
    let id = suite.start(&sandbox, with("user", user)).await;
    assert_eq!(suite.said(&id, "id -u; id -g; id -G").await, "1234\n567\n567 89");
    assert_ne!(suite.exec(&id, "touch /x").await.exit_code, 0);
    assert_eq!(suite.said(&id, "grep NoNewPrivs /proc/self/status | cut -f2").await, "1");
    assert_eq!(
        suite.said(&id, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; hostname").await,
        "77\nconfined"
    );

    let bare = pb::LinuxContainerSecurityContext {
        capabilities: Some(pb::Capability { drop_capabilities: words(&["ALL"]), ..Default::default() }),
        seccomp: Some(pb::SecurityProfile {
            profile_type: pb::security_profile::ProfileType::RuntimeDefault.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let id = suite.start(&sandbox, with("bare", bare)).await;
    assert_eq!(suite.said(&id, "grep CapEff /proc/self/status | cut -f2").await, "0000000000000000");
    assert_eq!(suite.said(&id, "grep Seccomp: /proc/self/status | cut -f2").await, "2");
    let named = pb::LinuxContainerSecurityContext { run_as_username: "nobody".into(), ..Default::default() };
    let id = suite.start(&sandbox, with("named", named)).await;
    assert_eq!(suite.said(&id, "id -u").await, "65534");
    let privileged = pb::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
    let id = suite.start(&sandbox, with("privileged", privileged)).await;
    assert_eq!(suite.said(&id, "mount -t tmpfs x /tmp && echo mounted").await, "mounted");

    let (kept, fixed) = (suite.directory.join("kept"), suite.directory.join("fixed"));
    for directory in [&kept, &fixed] {
        std::fs::create_dir_all(directory).unwrap();
    }
    let mount = |path: &Path, readonly| pb::Mount {
        container_path: format!("/{}", path.file_name().unwrap().to_string_lossy()),
        host_path: path.display().to_string(),
        readonly,
        ..Default::default()
    };
    let mut config = suite.container_config("mounts", "sleep 1000");
    config.mounts = vec![mount(&kept, false), mount(&fixed, true)];
    config.envs = vec![pb::KeyValue { key: "WORD".into(), value: "said".into() }];
    config.working_dir = "/kept".into();
    let id = suite.start(&sandbox, config).await;
    assert_eq!(suite.said(&id, "echo $WORD > file; cat /kept/file").await, "said");
    assert_eq!(std::fs::read_to_string(kept.join("file")).unwrap(), "said\n");
    assert_ne!(suite.exec(&id, "touch /fixed/file").await.exit_code, 0);
    suite.remove(&sandbox).await;
}

async fn usage(suite: &Suite) {
    let mut runtime = suite.runtime.clone();
    let mut events = runtime.get_container_events(pb::GetEventsRequest {}).await.unwrap().into_inner();
    let sandbox = suite.sandbox(suite.sandbox_config("usage")).await;
    let mut config = suite.container_config("main", "sleep 1000");
    let limits = pb::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_shares: 512,
        ..Default::default()
    };
    config.linux.get_or_insert_default().resources = Some(limits);
    let id = suite.start(&sandbox, config).await;
    let request = pb::ContainerStatsRequest { container_id: id.clone() };
    let stats = suite.runtime.clone().container_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    assert_eq!(stats.attributes.unwrap().labels["part"], "main");
    let request = pb::PodSandboxStatsRequest { pod_sandbox_id: sandbox.clone() };
    let stats = suite.runtime.clone().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
    let linux = stats.linux.unwrap();
    assert_eq!(linux.network.unwrap().default_interface.unwrap().name, "eth0");
    assert_eq!(linux.containers.len(), 1);
    let all =
        suite.runtime.clone().list_pod_sandbox_metrics(pb::ListPodSandboxMetricsRequest {}).await.unwrap();
    let ours = all.into_inner().pod_metrics.into_iter().find(|of| of.pod_sandbox_id == sandbox).unwrap();
    assert!(ours.container_metrics[0].metrics.iter().any(|m| m.name == "container_memory_working_set_bytes"));

    let limits = pb::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
    let update = pb::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(limits),
        ..Default::default()
    };
    suite.runtime.clone().update_container_resources(update).await.unwrap();
    let linux = suite.status(&id).await.resources.unwrap().linux.unwrap();
    assert_eq!((linux.memory_limit_in_bytes, linux.cpu_shares), (96 << 20, 512));
    suite.remove(&sandbox).await;
    let mut seen = Vec::new();
    let ours = async {
        while let Some(event) = events.message().await.unwrap() {
            if event.container_id == id {
                seen.push(event.container_event_type());
            }
            if event.container_event_type() == pb::ContainerEventType::ContainerDeletedEvent
                && event.container_id == sandbox
            {
                break;
            }
        }
    };
    tokio::time::timeout(WAIT_MAX, ours).await.expect("the events do not end");
    use pb::ContainerEventType::*;
    assert_eq!(
        seen,
        [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent]
    );
}

#[test]
fn a_runtime_for_others() {
    let cluster = Cluster::start().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let executor =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let suite = executor.block_on(async {
        let channel = Channel::new(cluster.data().join("cri.sock"));
        let suite = Suite {
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
            directory: directory.path().to_owned(),
        };
        Box::pin(about_the_runtime(&suite)).await;
        Box::pin(images(&suite)).await;
        Box::pin(sandboxes(&suite)).await;
        Box::pin(containers(&suite)).await;
        Box::pin(streams(&suite)).await;
        Box::pin(confinement(&suite)).await;
        Box::pin(usage(&suite)).await;
        suite
    });
    // Others' pods are none of the cluster's business: they live on when it is started anew.
    let (sandbox, id) = executor.block_on(async {
        let sandbox = suite.sandbox(suite.sandbox_config("stays")).await;
        let id = suite.start(&sandbox, suite.container_config("main", "sleep 1000")).await;
        (sandbox, id)
    });
    cluster.crash_and_restart().unwrap();
    executor.block_on(async {
        assert_eq!(suite.status(&id).await.state(), pb::ContainerState::ContainerRunning);
        suite.remove(&sandbox).await;
    });
}
