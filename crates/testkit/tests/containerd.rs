//! The kubelet on containerd: streams both ways, pods that outlive the death of Ferry and of containerd, and a
//! node that says when its runtime is down.

use std::io::Write;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::Cluster;
use testkit::cluster::{Runtime, Scope};
use testkit::pods::{condition, container, has, pod};

/// Longest wait for what is looked at again and again.
const WAIT_MAX: Duration = Duration::from_secs(60);

fn ready_condition(node: &Value) -> Option<&Value> {
    node["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Ready")
}

fn server(name: &str) -> Value {
    pod(name, "", |spec| {
        let script =
            "echo page > /tmp/index.html; httpd -p 80 -h /tmp; until [ -e /tmp/stop ]; do sleep 0.1; done";
        spec["containers"] = json!([container("main", script)]);
        spec["containers"][0]["readinessProbe"] =
            json!({"exec": {"command": ["cat", "/tmp/index.html"]}, "periodSeconds": 1});
        spec["restartPolicy"] = "Always".into();
    })
}

fn container_of(s: &Scope<'_>, name: &str) -> Value {
    s.get("pods", name).unwrap()["status"]["containerStatuses"][0].clone()
}

/// `kubectl exec`, again where kubectl drops what comes before it has made its streams: this version does, and
/// says so.
fn exec(s: &Scope<'_>, arguments: &[&str]) -> Output {
    let mut output = s.kubectl_raw(arguments).unwrap();
    while String::from_utf8_lossy(&output.stderr).contains("Unknown stream id") {
        output = s.kubectl_raw(arguments).unwrap();
    }
    output
}

fn streams(s: &Scope<'_>) {
    let node = s.list("nodes", "").unwrap().remove(0);
    let version = node["status"]["nodeInfo"]["containerRuntimeVersion"].as_str().unwrap_or_default();
    assert!(version.starts_with("containerd://"), "{version}");
    s.ready(server("web")).unwrap();
    let failed = exec(s, &["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!(failed.status.code(), Some(3));
    let said = [&failed.stdout, &failed.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(said[0] == "out\n" && said[1].starts_with("err\n"), "{said:?}");
    let missing = exec(s, &["exec", "web", "--", "/no/such/program"]);
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    has(&text, &["error executing command in container", "no such file or directory"]).unwrap();
    assert_eq!(text.matches("Internal error occurred").count(), 1, "{text}");

    let mut cat = s.kubectl_command(&["exec", "-i", "web", "--", "cat"]);
    let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let sent = vec![b'x'; 3 << 20];
    let mut stdin = cat.stdin.take().unwrap();
    let writing = std::thread::spawn({
        let sent = sent.clone();
        move || stdin.write_all(&sent)
    });
    let output = cat.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    assert!(output.status.success() && output.stdout == sent, "{} bytes came back", output.stdout.len());
    let address = s.get("pods", "web").unwrap()["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    let page = s.script("client", &format!("wget -qO- http://{address}/")).unwrap();
    assert_eq!(page, "page\n");
}

/// Bad commands and images are told in containerd's words.
fn failures(s: &Scope<'_>) {
    let mut bad = pod("bad", "", |spec| spec["restartPolicy"] = "Never".into());
    bad["spec"]["containers"][0]["command"] = json!(["/no/such/program"]);
    s.create("pods", bad).unwrap();
    let ended = s.pod_ended("bad").unwrap();
    let state = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&state["reason"], &state["exitCode"]), (&json!("StartError"), &json!(128)), "{state}");
    has(state["message"].as_str().unwrap_or_default(), &["no such file or directory"]).unwrap();
    let mut unknown = pod("unknown", "", |_| ());
    unknown["spec"]["containers"][0]["image"] = "127.0.0.1:1/nothing:1".into();
    s.create("pods", unknown).unwrap();
    let waiting =
        |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImagePull";
    s.wait_any("pods", "unknown", "ErrImagePull", waiting).unwrap();
    s.delete("pods", "unknown", &client::DeleteParams::default()).unwrap();
}

#[test]
fn the_kubelet_on_containerd() {
    let mut cluster = Cluster::start_on(Runtime::Containerd, &[]).unwrap();
    let name = {
        let s = cluster.namespace("on").unwrap();
        streams(&s);
        failures(&s);
        s.namespace.clone()
    };
    let before = container_of(&cluster.scope(&name), "web");
    assert!(before["containerID"].as_str().unwrap_or_default().starts_with("containerd://"), "{before}");

    cluster.crash_and_restart().unwrap();
    cluster.scope(&name).pod_ready("web").unwrap();
    assert_eq!(container_of(&cluster.scope(&name), "web")["containerID"], before["containerID"]);

    cluster.containerd().unwrap().interrupt().unwrap();
    let down = cluster
        .scope("")
        .wait_any("nodes", "", "a runtime that is down", |node| {
            ready_condition(node).is_some_and(|c| c["status"] == "False")
        })
        .unwrap();
    let ready = ready_condition(&down).unwrap();
    assert_eq!(
        (&ready["reason"], &ready["message"]),
        (&json!("KubeletNotReady"), &json!("container runtime is down"))
    );
    cluster.containerd().unwrap().resume().unwrap();
    cluster
        .scope("")
        .wait_any("nodes", "", "a runtime that is back", |node| condition(node, "Ready"))
        .unwrap();
    let s = cluster.scope(&name);
    let after = container_of(&s, "web");
    assert_eq!((&after["containerID"], &after["restartCount"]), (&before["containerID"], &json!(0)));
    // Ends are noticed again, and what ended is started again.
    s.kubectl(&["exec", "web", "--", "touch", "/tmp/stop"]).unwrap();
    let until = Instant::now() + WAIT_MAX;
    while container_of(&s, "web")["restartCount"] != 1 {
        assert!(Instant::now() < until, "{}", container_of(&s, "web"));
        s.pause(Duration::from_millis(200));
    }
    s.pod_ready("web").unwrap();
    s.delete("pods", "web", &client::DeleteParams::default()).unwrap();
    s.wait_gone("pods", "web").unwrap();
}
