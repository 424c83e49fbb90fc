//! The node's resources, as a KubeletConfiguration has them: processors set apart, process ids, local storage,
//! sysctls, and devices of a plugin.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rpc::deviceplugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use rpc::deviceplugin::registration_client::RegistrationClient;
use rpc::deviceplugin::*;
use rpc::podresources::ListPodResourcesRequest;
use rpc::podresources::pod_resources_lister_client::PodResourcesListerClient;
use rpc::tonic::codegen::tokio_stream::Stream;
use rpc::tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use rpc::tonic::{Request, Response, Status, async_trait};
use rpc::{Channel, Routes};
use serde_json::{Value, json};
use testkit::Cluster;
use testkit::cluster::{Scope, binary};
use testkit::pods::{condition, has, pod};
use tokio::sync::watch;

const CONFIGURATION: &str = "
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cpuManagerPolicy: static
kubeReserved: {cpu: 500m, memory: 50Mi}
podPidsLimit: 40
maxPods: 50
evictionHard: {memory.available: 10Mi}
allowedUnsafeSysctls: ['kernel.msg*']
containerLogMaxSize: 1Mi
";
const RESOURCE: &str = "example.com/widget";

/// A plugin whose devices are what the test says.
struct Widgets {
    devices: watch::Receiver<Vec<Device>>,
}

fn devices(list: &[(&str, bool)]) -> Vec<Device> {
    let health = |good: bool| if good { "Healthy" } else { "Unhealthy" }.to_owned();
    list.iter()
        .map(|(id, good)| Device { id: (*id).to_owned(), health: health(*good), topology: None })
        .collect()
}

#[async_trait]
impl DevicePlugin for Widgets {
    type ListAndWatchStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let mut devices = self.devices.clone();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let now = devices.borrow_and_update().clone();
                let sent = sender.send(Ok(ListAndWatchResponse { devices: now })).await;
                if sent.is_err() || devices.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        // The last ones, so that it shows.
        let answer = |wanted: ContainerPreferredAllocationRequest| {
            let count = usize::try_from(wanted.allocation_size).unwrap();
            let last = wanted.available_device_i_ds.into_iter().rev().take(count);
            ContainerPreferredAllocationResponse { device_i_ds: last.collect() }
        };
        let container_responses = request.into_inner().container_requests.into_iter().map(answer).collect();
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let answer = |wanted: ContainerAllocateRequest| ContainerAllocateResponse {
            envs: [("WIDGETS".to_owned(), wanted.devices_ids.join(","))].into(),
            devices: vec![DeviceSpec {
                container_path: "/dev/widget".into(),
                host_path: "/dev/null".into(),
                permissions: "rw".into(),
            }],
            mounts: vec![Mount {
                container_path: "/etc/widget".into(),
                host_path: "/etc/hostname".into(),
                read_only: true,
            }],
            ..Default::default()
        };
        let container_responses = request.into_inner().container_requests.into_iter().map(answer).collect();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

/// Serves the plugin and registers it; it goes when what is answered is dropped.
async fn plug(directory: &Path, devices: watch::Receiver<Vec<Device>>) -> tokio::task::JoinHandle<()> {
    let socket = directory.join("widget.sock");
    let served = socket.clone();
    let task = tokio::spawn(async move {
        let routes = Routes::new().with(DevicePluginServer::new(Widgets { devices }));
        rpc::serve(&served, routes, std::future::pending()).await.unwrap();
    });
    while !socket.exists() {
        tokio::task::yield_now().await;
    }
    let mut kubelet = RegistrationClient::new(Channel::new(directory.join("kubelet.sock")));
    let request = |version: &str, name: &str| RegisterRequest {
        version: version.into(),
        endpoint: "widget.sock".into(),
        resource_name: name.into(),
        options: Some(DevicePluginOptions {
            pre_start_required: true,
            get_preferred_allocation_available: true,
        }),
    };
    let old = kubelet.register(request("v1alpha1", RESOURCE)).await.unwrap_err();
    let text =
        "requested API version \"v1alpha1\" is not supported by kubelet. Supported version is [\"v1beta1\"]";
    assert_eq!(old.message(), text);
    let bad = kubelet.register(request("v1beta1", "cpu")).await.unwrap_err();
    assert_eq!(bad.message(), "the ResourceName \"cpu\" is invalid");
    kubelet.register(request("v1beta1", RESOURCE)).await.unwrap();
    task
}

fn amounts(node: &Value) -> (&str, &str) {
    let of = |list: &str| node["status"][list][RESOURCE].as_str().unwrap_or_default().to_owned();
    let (all, usable) = (of("capacity"), of("allocatable"));
    // Small numbers only.
    let keep = |text: String| ["0", "1", "2", "3"].into_iter().find(|n| *n == text).unwrap_or("");
    (keep(all), keep(usable))
}

fn wait_amounts(s: &Scope<'_>, wanted: (&str, &str)) {
    s.wait_any("nodes", "", &format!("{wanted:?} widgets"), |node| amounts(node) == wanted).unwrap();
}

fn wants(name: &str, script: &str, count: &str) -> Value {
    pod(name, script, |spec| spec["containers"][0]["resources"] = json!({"limits": {RESOURCE: count}}))
}

fn device_plugin(s: &Scope<'_>, data: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let directory = data.join("kubelet/device-plugins");
    let (told, heard) = watch::channel(devices(&[("a", true), ("b", true), ("c", false)]));
    let task = runtime.block_on(plug(&directory, heard.clone()));
    wait_amounts(s, ("3", "2"));
    let script =
        "echo $WIDGETS; ls -l /dev/widget | cut -c1; echo x > /dev/widget && cat /etc/widget && sleep 1000";
    s.create("pods", wants("one", script, "1")).unwrap();
    s.pod_ready("one").unwrap();
    let name = std::fs::read_to_string("/etc/hostname").unwrap();
    let said = || s.logs("one", "main").unwrap();
    while said().lines().count() < 3 {
        s.pause(Duration::from_millis(50));
    }
    // The plugin prefers the last one that can be used.
    assert_eq!(said(), format!("b\nc\n{}\n", name.trim()));
    runtime.block_on(async {
        let socket = data.join("kubelet/pod-resources/kubelet.sock");
        let mut lister = PodResourcesListerClient::new(Channel::new(socket));
        let all = lister.list(ListPodResourcesRequest {}).await.unwrap().into_inner().pod_resources;
        let one = all.iter().find(|pod| pod.name == "one").unwrap();
        let own = &one.containers[0].devices[0];
        assert_eq!((own.resource_name.as_str(), &own.device_ids[..]), (RESOURCE, &["b".to_owned()][..]));
    });
    // One that gets well is told of; then all are given, and no more fit.
    told.send(devices(&[("a", true), ("b", true), ("c", true)])).unwrap();
    wait_amounts(s, ("3", "3"));
    let out = s.output(wants("two", "echo $WIDGETS", "2")).unwrap();
    assert_eq!(out, "a,c\n");
    let mut bound = wants("three", "true", "3");
    bound["spec"]["nodeName"] = s.list("nodes", "").unwrap()[0]["metadata"]["name"].clone();
    s.create("pods", bound).unwrap();
    let refused = s.pod_ended("three").unwrap();
    assert_eq!(refused["status"]["reason"], format!("OutOf{RESOURCE}"), "{}", refused["status"]);
    // A plugin that goes takes its health with it; one that comes back finds its devices given still.
    task.abort();
    wait_amounts(s, ("3", "0"));
    let task = runtime.block_on(plug(&directory, heard));
    wait_amounts(s, ("3", "3"));
    let record = std::fs::read_to_string(directory.join("kubelet_internal_checkpoint")).unwrap();
    has(&record, &["PodDeviceEntries", "\"ResourceName\":\"example.com/widget\"", "{\"-1\":[\"b\"]}"])
        .unwrap();
    task.abort();
}

fn processors(s: &Scope<'_>) {
    let script = "grep Cpus_allowed_list /proc/self/status | tr -d '\\t '; sleep 1000";
    let shared = pod("shared", "while sleep 0.2; do grep Cpus_allowed_list /proc/self/status; done", |_| ());
    s.ready(shared).unwrap();
    let own = pod("own", script, |spec| {
        spec["containers"][0]["resources"] = json!({"limits": {"cpu": "1", "memory": "50Mi"}});
    });
    s.ready(own).unwrap();
    while s.logs("own", "main").unwrap().is_empty() {
        s.pause(Duration::from_millis(50));
    }
    let line = s.logs("own", "main").unwrap();
    let cpu = line.trim().strip_prefix("Cpus_allowed_list:").unwrap().to_owned();
    assert!(cpu.parse::<u32>().is_ok(), "one processor: {line}");
    let last = |s: &Scope<'_>| {
        let log = s.logs("shared", "main").unwrap();
        log.lines().last().unwrap_or_default().split_whitespace().last().unwrap_or_default().to_owned()
    };
    // Who runs already leaves the processor that is now another's.
    let before = std::time::Instant::now();
    while last(s).is_empty() || last(s).contains('-') && last(s).ends_with(&cpu) || last(s) == cpu {
        assert!(before.elapsed() < Duration::from_secs(30), "shared still has {}", last(s));
        s.pause(Duration::from_millis(200));
    }
    let without = last(s);
    s.delete("pods", "own", &client::DeleteParams::default()).unwrap();
    s.wait_gone("pods", "own").unwrap();
    while last(s) == without {
        assert!(before.elapsed() < Duration::from_secs(60), "shared never gets {cpu} back");
        s.pause(Duration::from_millis(200));
    }
}

fn limits(s: &Scope<'_>) {
    let script = "i=0; while [ $i -lt 100 ]; do sleep 5 & i=$((i+1)); done 2>&1; echo all";
    s.create("pods", pod("bomb", script, |_| ())).unwrap();
    s.pod_ended("bomb").unwrap();
    let log = s.logs("bomb", "main").unwrap();
    assert!(log.contains("fork") && !log.contains("all"), "{log}");

    s.create(
        "pods",
        pod("glutton", "head -c 5000000 /dev/zero > /v/file; sleep 1000", |spec| {
            spec["volumes"] = json!([{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]);
            spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        }),
    )
    .unwrap();
    let ended = s.pod_ended("glutton").unwrap();
    let status = &ended["status"];
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("Evicted")));
    assert_eq!(status["message"], "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
    assert!(!condition(&ended, "DisruptionTarget"));
    let events = s.kubectl(&["get", "events", "--field-selector", "involvedObject.name=glutton"]).unwrap();
    has(&events, &["Evicted", "exceeds the limit"]).unwrap();

    let sysctl = |name: &str, value: &str| {
        pod("sysctl", "cat /proc/sys/kernel/msgmax", |spec| {
            spec["securityContext"] = json!({"sysctls": [{"name": name, "value": value}]});
        })
    };
    assert_eq!(s.output(sysctl("kernel.msgmax", "12345")).unwrap(), "12345\n");
    s.delete("pods", "sysctl", &client::DeleteParams::default()).unwrap();
    s.wait_gone("pods", "sysctl").unwrap();
    s.create("pods", sysctl("kernel.sem", "1 1 1 1")).unwrap();
    let refused = s.pod_ended("sysctl").unwrap();
    assert_eq!(refused["status"]["reason"], "SysctlForbidden");
    assert_eq!(
        refused["status"]["message"],
        "Pod was rejected: forbidden sysctl: \"kernel.sem\" not allowlisted"
    );
}

fn configuration(s: &Scope<'_>) {
    let node = s.list("nodes", "").unwrap().remove(0);
    let name = node["metadata"]["name"].as_str().unwrap();
    assert_eq!(node["status"]["capacity"]["pods"], "50");
    let shown = s.path(&format!("/api/v1/nodes/{name}/proxy/configz")).unwrap();
    let shown = &shown["kubeletconfig"];
    assert_eq!(shown["evictionHard"], json!({"memory.available": "10Mi"}));
    assert_eq!((&shown["podPidsLimit"], &shown["cpuManagerPolicy"]), (&json!(40), &json!("static")));
    assert_eq!(shown["nodeStatusUpdateFrequency"], "10s");
    let (_, _, metrics) =
        s.raw(http::Method::GET, &format!("/api/v1/nodes/{name}/proxy/metrics"), &[], "").unwrap();
    let metrics = String::from_utf8_lossy(&metrics).into_owned();
    has(
        &metrics,
        &[
            "kubelet_evictions{eviction_signal=\"ephemeralpodfs.limit\"} 1",
            "kubelet_device_plugin_registration_total{resource_name=\"example.com/widget\"} 2",
            "kubelet_admission_rejections_total{reason=\"SysctlForbidden\"} 1",
            "kubelet_cpu_manager_pinning_requests_total 1",
        ],
    )
    .unwrap();
}

/// What `curl` with this token gets of the node's own port: code and body.
fn call(s: &Scope<'_>, token: &str, path: &str) -> (String, String) {
    let node = s.list("nodes", "").unwrap().remove(0);
    let port = &node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"];
    let mut command = Command::new("curl");
    command.args(["-sk", "-w", "\n%{http_code}"]);
    if !token.is_empty() {
        command.args(["-H", &format!("Authorization: Bearer {token}")]);
    }
    let out = command.arg(format!("https://127.0.0.1:{port}{path}")).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap();
    (code.to_owned(), body.to_owned())
}

fn others_calls(s: &Scope<'_>) {
    assert_eq!(call(s, "", "/pods"), ("401".into(), "Unauthorized".into()));
    assert_eq!(call(s, "nonsense", "/pods").0, "401");
    s.kubectl(&["create", "serviceaccount", "monitor"]).unwrap();
    let token = s.kubectl(&["create", "token", "monitor"]).unwrap().trim().to_owned();
    let (code, body) = call(s, &token, "/pods");
    assert_eq!(code, "403");
    has(
        &body,
        &[
            "Forbidden (user=system:serviceaccount:",
            ":monitor, verb=get, resource=nodes, subresource(s)=[pods proxy])",
        ],
    )
    .unwrap();
    s.kubectl(&["create", "clusterrole", "monitor", "--verb=get", "--resource=nodes/metrics"]).unwrap();
    let account = format!("{}:monitor", s.namespace);
    s.kubectl(&[
        "create",
        "clusterrolebinding",
        "monitor",
        "--clusterrole=monitor",
        "--serviceaccount",
        &account,
    ])
    .unwrap();
    let (code, body) = call(s, &token, "/metrics/resource");
    assert_eq!(code, "200", "{body}");
    has(&body, &["node_memory_working_set_bytes ", "resource_scrape_error 0"]).unwrap();
    assert_eq!(call(s, &token, "/stats/summary").0, "403");
}

fn statistics(s: &Scope<'_>) {
    s.ready(pod("busy", "while :; do :; done", |spec| {
        spec["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
        spec["containers"][0]["resources"] = json!({"limits": {"cpu": "200m", "memory": "50Mi"}});
        spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    }))
    .unwrap();
    let node = s.list("nodes", "").unwrap().remove(0);
    let base = format!("/api/v1/nodes/{}/proxy", node["metadata"]["name"].as_str().unwrap());
    let summary = s.path(&format!("{base}/stats/summary")).unwrap();
    let of_node = &summary["node"];
    for path in [
        "/cpu/usageNanoCores",
        "/memory/workingSetBytes",
        "/fs/capacityBytes",
        "/fs/inodesUsed",
        "/network/rxBytes",
        "/runtime/imageFs/usedBytes",
        "/runtime/containerFs/capacityBytes",
        "/rlimit/maxpid",
        "/systemContainers/0/memory/workingSetBytes",
    ] {
        assert!(of_node.pointer(path).is_some_and(|value| value.as_u64().is_some()), "{path}: {of_node}");
    }
    let pods = summary["pods"].as_array().unwrap();
    let busy = pods.iter().find(|pod| pod["podRef"]["name"] == "busy").unwrap();
    let cores = busy["cpu"]["usageNanoCores"].as_u64().unwrap();
    assert!((50_000_000..400_000_000).contains(&cores), "a fifth of a processor: {busy}");
    assert!(busy["network"]["name"] == "eth0" && busy["process_stats"]["process_count"].as_u64() >= Some(1));
    let volumes = busy["volume"].as_array().unwrap();
    assert!(volumes.iter().any(|volume| volume["name"] == "v"), "{busy}");
    assert!(busy["ephemeral-storage"]["usedBytes"].as_u64().is_some(), "{busy}");
    let text = |path: &str| {
        let (code, _, body) = s.raw(http::Method::GET, &format!("{base}{path}"), &[], "").unwrap();
        assert_eq!(code, 200, "{path}");
        String::from_utf8_lossy(&body).into_owned()
    };
    let about = format!("namespace=\"{}\",pod=\"busy\"", s.namespace);
    let lines = [
        ("/metrics/cadvisor", "container_cpu_usage_seconds_total{container=\"main\",cpu=\"total\",id=\""),
        ("/metrics/cadvisor", "container_network_receive_bytes_total{container=\"\",id=\""),
        ("/metrics/cadvisor", "machine_cpu_cores{boot_id="),
        ("/metrics/probes", "probe_type=\"Readiness\",result=\"successful\",pod_uid=\""),
        ("/metrics/resource", "container_start_time_seconds{container=\"main\","),
    ];
    for (path, wanted) in lines {
        let body = text(path);
        has(&body, &[wanted]).unwrap();
        assert!(body.contains(&about) || wanted.starts_with("machine"), "{path}\n{body}");
    }
}

fn refused(directory: &Path) {
    let table = [
        ("foo: 1", "failed to decode: strict decoding error: unknown field \"foo\""),
        ("maxPods: -1", "invalid configuration: maxPods (--max-pods) -1 must not be a negative number"),
    ];
    for (more, wanted) in table {
        let file = directory.join("bad.yaml");
        let text = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{more}\n");
        std::fs::write(&file, text).unwrap();
        let data: PathBuf = directory.join("bad");
        let out = Command::new(binary().unwrap())
            .args(["up", "--https-port", "0", "--data-dir"])
            .arg(&data)
            .arg("--kubelet-config")
            .arg(&file)
            .output()
            .unwrap();
        assert!(!out.status.success());
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        has(&text, &["failed to load kubelet config file, path: ", wanted]).unwrap();
        Command::new(binary().unwrap()).args(["down", "--data-dir"]).arg(&data).status().unwrap();
    }
}

#[test]
fn the_node_keeps_to_its_configuration() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("kubelet.yaml");
    std::fs::write(&file, CONFIGURATION)?;
    let cluster = Cluster::start_with(&["--kubelet-config", file.to_str().unwrap_or_default()])?;
    let s = cluster.namespace("resources")?;
    device_plugin(&s, &cluster.data());
    processors(&s);
    limits(&s);
    configuration(&s);
    statistics(&s);
    others_calls(&s);
    refused(directory.path());
    Ok(())
}
