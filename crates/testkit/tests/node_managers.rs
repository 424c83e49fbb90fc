//! The node's managers in a cluster: memory and topology, huge pages, security modules, users of pods' own over a
//! restart, the node's logs and figures, and its end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use client::{DeleteParams, WatchParams};
use rpc::Channel;
use rpc::podresources::pod_resources_lister_client::PodResourcesListerClient;
use rpc::podresources::{AllocatableResourcesRequest, GetPodResourcesRequest};
use serde_json::{Value, json};
use testkit::Cluster;
use testkit::cluster::Scope;
use testkit::pods::{has, pod};

/// What is kept for the node, and with it what the memory manager may not promise: 50 MiB and 10 MiB for evictions.
const CONFIGURATION: &str = "
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cpuManagerPolicy: static
memoryManagerPolicy: Static
topologyManagerPolicy: single-numa-node
topologyManagerScope: pod
kubeReserved: {cpu: 100m, memory: 50Mi}
reservedMemory: [{numaNode: 0, limits: {memory: 60Mi}}]
evictionHard: {memory.available: 10Mi}
enableSystemLogQuery: true
shutdownGracePeriod: 20s
shutdownGracePeriodCriticalPods: 10s
";
const HUGE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Huge pages for the time of a test; `None` where the kernel gives none.
struct HugePages(String);

impl HugePages {
    fn reserve(count: u32) -> Option<HugePages> {
        let before = std::fs::read_to_string(HUGE).ok()?.trim().to_owned();
        let wanted = before.parse::<u32>().ok()? + count;
        std::fs::write(HUGE, wanted.to_string()).ok()?;
        let reserved = HugePages(before);
        let now = std::fs::read_to_string(HUGE).ok()?.trim().parse::<u32>().ok()?;
        (now == wanted).then_some(reserved)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(HUGE, &self.0);
    }
}

/// What a pod has said, once it has said something.
fn said(s: &Scope<'_>, name: &str, lines: usize) -> String {
    let began = Instant::now();
    loop {
        let log = s.logs(name, "main").unwrap();
        if log.lines().count() >= lines {
            return log;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{name} says no more than {log:?}");
        s.pause(Duration::from_millis(50));
    }
}

fn memory(s: &Scope<'_>, data: &Path) {
    let script = "grep -E '^(Cpus|Mems)_allowed_list' /proc/self/status | tr -d '\\t '; sleep 1000";
    let own = pod("own", script, |spec| {
        spec["containers"][0]["resources"] = json!({"limits": {"cpu": "1", "memory": "64Mi"}});
    });
    s.ready(own).unwrap();
    has(&said(s, "own", 2), &["Mems_allowed_list:0\n"]).unwrap();
    let block = json!({"numaAffinity": [0], "type": "memory", "size": 64 << 20});
    let state = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(data.join("kubelet").join(name)).unwrap()).unwrap()
    };
    let saved = state("memory_manager_state");
    assert_eq!((&saved["policyName"], saved["checksum"].is_u64()), (&json!("Static"), true));
    let uid = s.get("pods", "own").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    assert_eq!(saved["entries"][&uid]["main"], json!([block]));
    let row = &saved["machineState"]["0"]["memoryMap"]["memory"];
    assert_eq!((&row["systemReserved"], &row["reserved"]), (&json!(60 << 20), &json!(64 << 20)));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut lister =
            PodResourcesListerClient::new(Channel::new(data.join("kubelet/pod-resources/kubelet.sock")));
        let request = GetPodResourcesRequest { pod_name: "own".into(), pod_namespace: s.namespace.clone() };
        let found = lister.get(request).await.unwrap().into_inner().pod_resources.unwrap();
        let memory = &found.containers[0].memory[0];
        assert_eq!((memory.memory_type.as_str(), memory.size), ("memory", 64 << 20));
        assert_eq!(memory.topology.as_ref().unwrap().nodes[0].id, 0);
        let all =
            lister.get_allocatable_resources(AllocatableResourcesRequest {}).await.unwrap().into_inner();
        assert!(all.memory.iter().any(|block| block.memory_type == "memory" && block.size > 64 << 20));
    });
    s.delete("pods", "own", &DeleteParams::default()).unwrap();
    s.wait_gone("pods", "own").unwrap();
    let began = Instant::now();
    while state("memory_manager_state")["entries"] != json!({}) {
        assert!(began.elapsed() < Duration::from_secs(30), "the memory is never given back");
        s.pause(Duration::from_millis(50));
    }
}

fn huge_pages(s: &Scope<'_>) {
    let node = s.list("nodes", "").unwrap().remove(0);
    let capacity = &node["status"]["capacity"]["hugepages-2Mi"];
    assert!(capacity.as_str().is_some_and(|c| c.ends_with("Mi") || c.ends_with("Gi")), "{node}");
    let script = "grep ' /huge ' /proc/mounts | cut -d' ' -f3; echo $(stat -f -c %S /huge)";
    let out = s.output(pod("huge", script, |spec| {
        spec["containers"][0]["resources"] =
            json!({"limits": {"hugepages-2Mi": "4Mi", "memory": "32Mi", "cpu": "100m"}});
        spec["containers"][0]["volumeMounts"] = json!([{"name": "huge", "mountPath": "/huge"}]);
        spec["volumes"] = json!([{"name": "huge", "emptyDir": {"medium": "HugePages"}}]);
    }));
    assert_eq!(out.unwrap(), "hugetlbfs\n2097152\n");
}

fn refusals(s: &Scope<'_>) {
    if !Path::new("/sys/module/apparmor").exists() {
        let mut confined = pod("confined", "true", |spec| {
            spec["securityContext"] = json!({"appArmorProfile": {"type": "RuntimeDefault"}});
        });
        s.create("pods", confined.take()).unwrap();
        let refused = s.pod_ended("confined").unwrap();
        let status = &refused["status"];
        assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("AppArmor")));
        assert_eq!(
            status["message"],
            "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host"
        );
    }
    let table = [
        (json!({"hostNetwork": true}), "spec.hostNetwork: Forbidden: when `pod.Spec.HostUsers` is false"),
        (json!({"hostPID": true}), "spec.HostPID: Forbidden: when `pod.Spec.HostUsers` is false"),
        (json!({"hostIPC": true}), "spec.HostIPC: Forbidden: when `pod.Spec.HostUsers` is false"),
    ];
    for (more, message) in table {
        let wrong = pod("wrong", "true", |spec| {
            spec["hostUsers"] = false.into();
            for (key, value) in more.as_object().unwrap() {
                spec[key] = value.clone();
            }
        });
        has(&s.create("pods", wrong).unwrap_err().to_string(), &[message]).unwrap();
    }
    let unmasked = |host_users: bool| {
        pod("unmasked", "grep -c ' /proc/' /proc/mounts || true", |spec| {
            spec["hostUsers"] = host_users.into();
            spec["containers"][0]["securityContext"] = json!({"procMount": "Unmasked"});
        })
    };
    let error = s.create("pods", unmasked(true)).unwrap_err().to_string();
    has(&error, &["procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`"])
        .unwrap();
    assert_eq!(s.output(unmasked(false)).unwrap(), "0\n");
}

fn http(s: &Scope<'_>) {
    let node = s.list("nodes", "").unwrap().remove(0);
    let base = format!("/api/v1/nodes/{}/proxy", node["metadata"]["name"].as_str().unwrap());
    let call = |method: http::Method, path: &str, body: &'static str| {
        let (code, _, bytes) = s.raw(method, &format!("{base}{path}"), &[], body).unwrap();
        (code, String::from_utf8_lossy(&bytes).into_owned())
    };
    let get = |path: &str| call(http::Method::GET, path, "");
    let name = format!("ferry-test-{}", std::process::id());
    let file = PathBuf::from(format!("/var/log/{name}.log"));
    std::fs::write(&file, "a line\n").unwrap();
    let (listing, direct, asked) =
        (get("/logs/"), get(&format!("/logs/{name}.log")), get(&format!("/logs/?query={name}")));
    std::fs::remove_file(&file).unwrap();
    has(&listing.1, &[&format!("<a href=\"{name}.log\">{name}.log</a>")]).unwrap();
    assert_eq!((direct.1.as_str(), asked.1.as_str()), ("a line\n", "a line\n"));
    assert_eq!(get("/logs/?tailLines=1").0, 400);
    s.ready(pod("runs", "sleep 1000", |_| ())).unwrap();
    let (_, running) = get("/runningpods/");
    let running: Value = serde_json::from_str(&running).unwrap();
    let items = running["items"].as_array().unwrap();
    let found = items.iter().find(|item| item["metadata"]["name"] == "runs").unwrap();
    assert_eq!(found["spec"]["containers"][0]["name"], "main");
    let checkpoint = format!("/checkpoint/{}/runs/main", s.namespace);
    let (code, why) = call(http::Method::POST, &checkpoint, "");
    assert_eq!(code, 500);
    has(&why, &["checkpointing of", "/runs/main failed", "Unimplemented"]).unwrap();
    let set = call(http::Method::PUT, "/debug/flags/v", "4");
    assert_eq!(set, (200, "successfully set klog.logging.verbosity to 4".to_owned()));
    assert_eq!(call(http::Method::PUT, "/debug/flags/v", "much").0, 400);
    let (_, metrics) = get("/metrics");
    has(
        &metrics,
        &[
            "kubelet_runtime_operations_total{operation_type=\"run_podsandbox\"}",
            "kubelet_runtime_operations_duration_seconds_bucket{operation_type=\"start_container\",le=",
            "kubelet_run_podsandbox_duration_seconds_count{runtime_handler=\"\"}",
            "kubelet_pod_worker_duration_seconds_count{operation_type=\"sync\"}",
            "kubelet_pod_start_sli_duration_seconds_count ",
            "kubelet_pod_start_total_duration_seconds_count ",
            "kubelet_pleg_relist_duration_seconds_count ",
            "kubelet_pleg_last_seen_seconds ",
            "kubelet_started_pods_total ",
            "kubelet_memory_manager_pinning_requests_total ",
            "kubelet_topology_manager_admission_requests_total ",
            "storage_operation_duration_seconds_count{migrated=\"false\",operation_name=\"volume_mount\",status=\"success\",volume_plugin=\"kubernetes.io/projected\"}",
        ],
    )
    .unwrap();
}

/// A pod keeps its users while the server is away, and nobody else gets them.
fn users_over_a_restart(cluster: &mut Cluster) {
    let map =
        |s: &Scope<'_>, name: &str| s.kubectl(&["exec", name, "--", "cat", "/proc/self/uid_map"]).unwrap();
    let with = |name: &str| pod(name, "sleep 1000", |spec| spec["hostUsers"] = false.into());
    let (namespace, before) = {
        let s = cluster.namespace("users").unwrap();
        s.ready(with("old")).unwrap();
        (s.namespace.clone(), map(&s, "old"))
    };
    cluster.crash_and_restart().unwrap();
    let s = cluster.scope(&namespace);
    s.ready(with("new")).unwrap();
    assert_eq!(map(&s, "old"), before);
    assert_ne!(map(&s, "new"), before);
}

/// The machine goes down: pods end in order, and are told why.
fn shutdown(cluster: &Cluster) {
    let s = cluster.namespace("shutdown").unwrap();
    let script = |what: &str| {
        format!("trap 'echo {what} ends; sleep 1; exit 0' TERM; echo up; while :; do sleep 0.1; done")
    };
    s.ready(pod("plain", &script("plain"), |spec| spec["restartPolicy"] = "Always".into())).unwrap();
    s.ready(pod("critical", &script("critical"), |spec| {
        spec["priorityClassName"] = "system-node-critical".into();
    }))
    .unwrap();
    let mut pods = s.watch("pods", &WatchParams::default()).unwrap();
    let pid = nix::unistd::Pid::from_raw(cluster.pid().unwrap().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGPWR).unwrap();
    let mut ended: Vec<String> = Vec::new();
    let began = Instant::now();
    while ended.len() < 2 {
        assert!(began.elapsed() < Duration::from_secs(30), "only {ended:?} have ended");
        let (_, object) = s.next(&mut pods).unwrap();
        let status = &object["status"];
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if status["phase"] != "Failed" || ended.contains(&name) {
            continue;
        }
        assert_eq!(status["reason"], "Terminated", "{status}");
        assert_eq!(status["message"], "Pod was terminated in response to imminent node shutdown.");
        let conditions = status["conditions"].as_array().unwrap();
        let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
        assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("TerminationByKubelet")));
        ended.push(name);
    }
    assert_eq!(ended, ["plain", "critical"]);
}

#[test]
fn the_nodes_managers() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), CONFIGURATION).unwrap();
    let pages = HugePages::reserve(4);
    let path = file.path().to_str().unwrap();
    let mut cluster = Cluster::start_with(&["--kubelet-config", path]).unwrap();
    let data = cluster.data();
    memory(&cluster.namespace("memory").unwrap(), &data);
    if pages.is_some() {
        huge_pages(&cluster.namespace("huge").unwrap());
    }
    refusals(&cluster.namespace("refusals").unwrap());
    http(&cluster.namespace("http").unwrap());
    users_over_a_restart(&mut cluster);
    shutdown(&cluster);
    // What has ended for the machine's sake is not started again.
    cluster.crash_and_restart().unwrap();
    let scope = cluster.scope("");
    let all = scope.list("pods", "").unwrap();
    assert!(all.iter().filter(|pod| pod["status"]["reason"] == "Terminated").count() >= 2, "{all:?}");
}
