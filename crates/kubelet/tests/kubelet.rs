//! A whole kubelet against a runtime and an API server on paper.

mod support;

use std::sync::Arc;

use kubelet::{Config, Kubelet};
use serde_json::{Value, json};
use support::{FakeApi, FakeRuntime};
use tokio_util::sync::CancellationToken;

const POD: &str = "/api/v1/namespaces/default/pods/p";

struct Node {
    api: Arc<FakeApi>,
    runtime: Arc<FakeRuntime>,
    directory: tempfile::TempDir,
    cancel: CancellationToken,
}

impl Node {
    fn new() -> Self {
        let node = Node {
            api: FakeApi::new(),
            runtime: FakeRuntime::new(),
            directory: tempfile::tempdir().unwrap(),
            cancel: CancellationToken::new(),
        };
        node.start();
        node
    }

    fn start(&self) {
        let mut config = Config::new("n1", self.directory.path().to_owned());
        // What else is on the disk of the machine must not decide about tests.
        config.eviction.thresholds.clear();
        config.node_ips = vec!["192.0.2.1".parse().unwrap()];
        let kubelet = Kubelet::new(
            config,
            self.api.client(),
            self.runtime.clone(),
            self.runtime.clone(),
            stdx::SystemClock::shared(),
        );
        let cancel = self.cancel.clone();
        tokio::spawn(async move { kubelet.run(cancel).await.unwrap() });
    }

    fn create(&self, spec: Value) {
        let mut spec = spec;
        spec["nodeName"] = "n1".into();
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u1", "generation": 1},
            "spec": spec, "status": {"phase": "Pending"}});
        self.api.put(POD, pod);
    }

    async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.api.until(POD, what, |pod| pod.is_some_and(&holds)).await.unwrap()
    }

    /// Deletes as the API server does: the kubelet has the last word.
    async fn delete(&self) {
        let mut pod = self.api.get(POD).unwrap();
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = 5.into();
        self.api.put(POD, pod);
        self.api.until(POD, "deleted", |pod| pod.is_none()).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn condition(pod: &Value, kind: &str) -> String {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    found.map_or_else(String::new, |condition| condition["status"].as_str().unwrap_or_default().to_owned())
}

fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let list = pod["status"]["containerStatuses"].as_array();
    list.and_then(|list| list.iter().find(|status| status["name"] == name)).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn a_pod_runs_becomes_ready_and_goes() {
    let node = Node::new();
    node.create(json!({"serviceAccountName": "default", "containers": [{"name": "a", "image": "i:1",
        "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "volumeMounts": [{"name": "token", "mountPath": "/t"}]}],
        "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}}]}));
    let pod = node.until("ready", |pod| condition(pod, "Ready") == "True").await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "127.0.0.1");
    assert_eq!(pod["status"]["hostIP"], "192.0.2.1");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    assert!(container(&pod, "a")["containerID"].as_str().unwrap().starts_with("fake://container"));
    let config = node.runtime.config("a").unwrap();
    assert!(config.envs.iter().any(|env| env.name == "IP" && env.value == "127.0.0.1"));
    let volume = &config.mounts[0].host_path;
    assert_eq!(std::fs::read_to_string(volume.join("token")).unwrap(), "the-token");
    assert_eq!(std::fs::read_to_string(volume.join("name")).unwrap(), "p");
    node.delete().await;
    assert_eq!(node.runtime.stopped(), ["a"]);
    assert_eq!(node.runtime.left(), (0, 0));
    assert!(!node.directory.path().join("kubelet/pods/u1").exists());
    assert_eq!(node.api.events("Started"), ["Container started"]);
    assert_eq!(node.api.events("Killing"), ["Stopping container a"]);
}

#[tokio::test]
async fn a_crash_is_restarted_then_backs_off() {
    let node = Node::new();
    node.create(json!({"containers": [{"name": "a", "image": "i:1"}]}));
    node.until("running", |pod| condition(pod, "Ready") == "True").await;
    node.runtime.exit("a", 3);
    node.until("restarted", |pod| {
        container(pod, "a")["restartCount"] == 1 && condition(pod, "Ready") == "True"
    })
    .await;
    node.runtime.exit("a", 3);
    let pod = node
        .until("in a crash loop", |pod| {
            container(pod, "a")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    let a = container(&pod, "a");
    assert_eq!(
        a["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=a pod=p_default(u1)"
    );
    assert_eq!(a["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!((&pod["status"]["phase"], condition(&pod, "Ready")), (&json!("Running"), "False".to_owned()));
    node.delete().await;
}

#[tokio::test]
async fn init_containers_and_sidecars_frame_a_job() {
    let node = Node::new();
    node.create(json!({"restartPolicy": "Never",
        "initContainers": [{"name": "init", "image": "i:1"}, {"name": "side", "image": "i:1", "restartPolicy": "Always"}],
        "containers": [{"name": "job", "image": "i:1"}]}));
    node.until("initialising", |pod| {
        pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object()
    })
    .await;
    node.runtime.exit("init", 0);
    node.until("running", |pod| condition(pod, "Ready") == "True").await;
    node.runtime.exit("job", 0);
    let pod = node.until("over", |pod| pod["status"]["phase"] == "Succeeded").await;
    assert_eq!(node.runtime.stopped(), ["side"]);
    assert_eq!(container(&pod, "job")["state"]["terminated"]["reason"], "Completed");
    assert_eq!(condition(&pod, "Initialized"), "True");
    node.delete().await;
    assert_eq!(node.runtime.left(), (0, 0));
}

#[tokio::test]
async fn what_is_missing_is_waited_for() {
    let node = Node::new();
    node.create(
        json!({"containers": [{"name": "a", "image": "i:1", "envFrom": [{"configMapRef": {"name": "cm"}}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "configMap": {"name": "cm"}}]}),
    );
    let mount_failed = || node.api.events("FailedMount");
    node.until("pending", |pod| container(pod, "a")["state"]["waiting"]["reason"] == "ContainerCreating")
        .await;
    let path = "/api/v1/namespaces/default/configmaps/cm";
    let map = |value: &str| json!({"metadata": {"name": "cm", "namespace": "default"}, "data": {"K": value}});
    node.api.put(path, map("1"));
    node.until("ready", |pod| condition(pod, "Ready") == "True").await;
    assert_eq!(mount_failed(), ["MountVolume.SetUp failed for volume \"v\" : configmap \"cm\" not found"]);
    let config = node.runtime.config("a").unwrap();
    assert!(config.envs.iter().any(|env| env.name == "K" && env.value == "1"));
    // A change reaches the running container's volume.
    let file = config.mounts[0].host_path.join("K");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1");
    node.api.put(path, map("2"));
    let seen = async {
        while std::fs::read_to_string(&file).unwrap() != "2" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), seen).await.expect("the change arrives");
    node.delete().await;
}

#[tokio::test]
async fn images_that_cannot_be_pulled() {
    let node = Node::new();
    node.create(json!({"containers": [{"name": "a", "image": "missing:1"}]}));
    node.until("refused", |pod| container(pod, "a")["state"]["waiting"]["reason"] == "ErrImagePull").await;
    let pod = node
        .until("backing off", |pod| container(pod, "a")["state"]["waiting"]["reason"] == "ImagePullBackOff")
        .await;
    assert_eq!(pod["status"]["phase"], "Pending");
    node.delete().await;
}

#[tokio::test]
async fn a_pod_that_does_not_fit_is_refused() {
    let node = Node::new();
    node.create(json!({"containers": [{"name": "a", "image": "i:1",
        "resources": {"requests": {"cpu": "100k"}}}]}));
    let pod = node.until("refused", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(pod["status"]["reason"], "OutOfcpu");
    assert!(
        pod["status"]["message"]
            .as_str()
            .unwrap()
            .starts_with("Pod was rejected: Node didn't have enough resource: cpu")
    );
    assert_eq!(node.runtime.left(), (0, 0));
    node.delete().await;
}

#[tokio::test]
async fn a_deadline_ends_a_pod() {
    let node = Node::new();
    node.create(json!({"activeDeadlineSeconds": 1, "containers": [{"name": "a", "image": "i:1"}]}));
    let pod = node
        .until("ended", |pod| {
            pod["status"]["phase"] == "Failed" && container(pod, "a")["state"]["terminated"].is_object()
        })
        .await;
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
    assert_eq!(
        (container(&pod, "a")["ready"].clone(), condition(&pod, "Ready")),
        (json!(false), "False".to_owned())
    );
    node.delete().await;
    assert_eq!(node.runtime.left(), (0, 0));
}

#[tokio::test]
async fn failing_liveness_restarts_and_readiness_gates() {
    let node = Node::new();
    let probe = |code: &str| json!({"exec": {"command": [code]}, "periodSeconds": 1, "failureThreshold": 1});
    node.create(json!({"containers": [
        {"name": "sick", "image": "i:1", "livenessProbe": probe("1")},
        {"name": "busy", "image": "i:1", "readinessProbe": probe("1")},
        {"name": "well", "image": "i:1", "startupProbe": probe("0"), "readinessProbe": probe("0")}]}));
    let pod = node
        .until("restarted", |pod| {
            container(pod, "sick")["restartCount"].as_i64() >= Some(1)
                && container(pod, "well")["ready"] == true
        })
        .await;
    assert_eq!(container(&pod, "busy")["ready"], false);
    assert_eq!(condition(&pod, "Ready"), "False");
    assert!(
        node.api
            .events("Killing")
            .contains(&"Container sick failed liveness probe, will be restarted".to_owned())
    );
    assert!(node.api.events("Unhealthy").contains(&"Readiness probe failed: said".to_owned()));
    node.delete().await;
}

#[tokio::test]
async fn running_pods_are_adopted_and_orphans_removed() {
    let mut node = Node::new();
    let path = "/api/v1/namespaces/default/configmaps/cm";
    let map = |value: &str| json!({"metadata": {"name": "cm", "namespace": "default"}, "data": {"K": value}});
    node.api.put(path, map("1"));
    node.create(json!({"containers": [{"name": "a", "image": "i:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "configMap": {"name": "cm"}}]}));
    let before = node.until("ready", |pod| condition(pod, "Ready") == "True").await;
    node.cancel.cancel();
    node.cancel = CancellationToken::new();
    node.start();
    node.api
        .until("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", "leased", |lease| {
            lease.is_some()
        })
        .await;
    let after = node.until("still ready", |pod| condition(pod, "Ready") == "True").await;
    assert_eq!(container(&before, "a")["containerID"], container(&after, "a")["containerID"]);
    assert_eq!(node.runtime.left(), (1, 1));
    // Its volumes are looked after as before.
    let file = node.runtime.config("a").unwrap().mounts[0].host_path.join("K");
    node.api.put(path, map("2"));
    let seen = async {
        while std::fs::read_to_string(&file).unwrap() != "2" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), seen).await.expect("the change arrives");
    // Gone while nobody looked.
    node.cancel.cancel();
    node.api.delete(POD);
    node.cancel = CancellationToken::new();
    node.start();
    let gone = async {
        while node.runtime.left() != (0, 0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), gone).await.expect("orphans are removed");
}

#[tokio::test]
async fn the_node_registers() {
    let node = Node::new();
    let object = node.api.until("/api/v1/nodes/n1", "registered", |node| node.is_some()).await.unwrap();
    let status = &object["status"];
    assert_eq!(condition(&object, "Ready"), "True");
    assert_eq!(status["capacity"]["pods"], "110");
    assert_eq!(object["metadata"]["labels"]["kubernetes.io/os"], "linux");
    let addresses =
        json!([{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}]);
    assert_eq!(status["addresses"], addresses);
    assert!(status["nodeInfo"]["containerRuntimeVersion"] == "fake://1");
}
