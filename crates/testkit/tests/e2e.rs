//! One application from end to end on a real cluster: deployed, served, rolled without a lost request, and
//! still there (the same processes) after the server has been killed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::Cluster;
use testkit::cluster::Scope;
use testkit::pods::container;

/// Times the server is killed.
const KILLS: usize = 3;
/// Longest wait for one answer of the application.
const ANSWER_MAX: Duration = Duration::from_secs(5);

fn application() -> Value {
    let mut web =
        container("web", "httpd -p 80 -h /cfg; trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done");
    let fields = json!({
        "ports": [{"containerPort": 80, "name": "http"}],
        "env": [{"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "words", "key": "one"}}}],
        "resources": {"requests": {"cpu": "20m", "memory": "8Mi"}, "limits": {"memory": "64Mi"}},
        "readinessProbe": {"httpGet": {"path": "/page", "port": "http"}, "periodSeconds": 1},
        "livenessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 5},
        "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
        "volumeMounts": [{"name": "cfg", "mountPath": "/cfg"}],
    });
    for (key, value) in fields.as_object().into_iter().flatten() {
        web[key] = value.clone();
    }
    json!({"kind": "Deployment", "metadata": {"name": "app"}, "spec": {
        "replicas": 3, "selector": {"matchLabels": {"app": "app"}},
        "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {"metadata": {"labels": {"app": "app"}}, "spec": {
            "terminationGracePeriodSeconds": 10, "containers": [web],
            "volumes": [{"name": "cfg", "configMap": {"name": "pages"}}]}}}})
}

/// The body of `/page` at an address, or why there is none.
fn page(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(format!("not a page: {answer:?}"))),
    }
}

/// Name, container and kernel start time of the first process of every pod: what must not change.
fn processes(scope: &Scope<'_>) -> anyhow::Result<Vec<(String, String, String)>> {
    let mut out = Vec::new();
    for pod in scope.list("pods", "app=app")? {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let status = &pod["status"]["containerStatuses"][0];
        let stat = scope.kubectl(&["exec", &name, "--", "cat", "/proc/1/stat"])?;
        let started = stat.split(' ').nth(21).unwrap_or_default().to_owned();
        out.push((name, format!("{} {}", status["containerID"], status["restartCount"]), started));
    }
    out.sort();
    Ok(out)
}

#[test]
fn an_application_survives_rollouts_and_kills() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let namespace = {
        let scope = cluster.namespace("e2e")?;
        scope.create("configmaps", json!({"metadata": {"name": "pages"}, "data": {"page": "one\n"}}))?;
        scope.create("secrets", json!({"metadata": {"name": "words"}, "stringData": {"one": "two"}}))?;
        scope.create("deployments", application())?;
        scope.kubectl(&["rollout", "status", "deployment/app", "--timeout=60s"])?;
        scope.kubectl(&["expose", "deployment", "app", "--port=80"])?;
        // A token request may leave everything to the server, its spec included.
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/default/token", scope.namespace);
        let answer = scope.send(http::Method::POST, &path, &json!({}))?;
        assert_eq!(answer["spec"]["expirationSeconds"], 3600);
        assert!(answer["status"]["token"].is_string());
        scope.namespace.clone()
    };
    let service = cluster.scope(&namespace).get("services", "app")?;
    let ip = service["spec"]["clusterIP"].as_str().unwrap_or_default();
    let address: SocketAddr = format!("{ip}:80").parse()?;
    for _ in 0..50 {
        if page(address).is_ok() {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert_eq!(page(address)?, "one\n");

    // A rolling update under load: threads started now are in the cluster's namespace.
    let (stop, lost, served) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::default());
    let load = {
        let (stop, lost, served): (_, Arc<AtomicU32>, Arc<AtomicU32>) =
            (stop.clone(), Arc::clone(&lost), Arc::clone(&served));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let counter = if page(address).is_ok() { &served } else { &lost };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let scope = cluster.scope(&namespace);
    scope.kubectl(&["rollout", "restart", "deployment/app"])?;
    scope.kubectl(&["rollout", "status", "deployment/app", "--timeout=120s"])?;
    stop.store(true, Ordering::Relaxed);
    load.join().map_err(|_| anyhow::anyhow!("the load ended early"))?;
    assert_eq!(lost.load(Ordering::Relaxed), 0, "of {} requests", served.load(Ordering::Relaxed));
    assert!(served.load(Ordering::Relaxed) > 0);
    for pod in scope.list("pods", "app=app")? {
        if pod["metadata"]["deletionTimestamp"].is_string() {
            scope.wait_gone("pods", pod["metadata"]["name"].as_str().unwrap_or_default())?;
        }
    }

    let before = processes(&scope)?;
    assert_eq!(before.len(), 3);
    for kill in 0..KILLS {
        let name = format!("kept-{kill}");
        cluster.scope(&namespace).create("configmaps", json!({"metadata": {"name": name}}))?;
        cluster.crash_and_restart()?;
        let scope = cluster.scope(&namespace);
        scope.get("configmaps", &name)?;
        assert_eq!(page(address)?, "one\n");
        assert_eq!(processes(&scope)?, before);
    }
    Ok(())
}

#[test]
fn huge_pages_are_off_for_ferry_and_as_they_were_for_containers() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let scope = cluster.namespace("huge")?;
    let enabled = |status: &str| status.lines().any(|l| l.split_whitespace().eq(["THP_enabled:", "1"]));
    let own = std::fs::read_to_string(format!("/proc/{}/status", cluster.pid().unwrap_or_default()))?;
    assert!(own.contains("THP_enabled:") && !enabled(&own), "{own}");
    let theirs = scope.script("status", "cat /proc/self/status")?;
    assert!(enabled(&theirs), "{theirs}");
    Ok(())
}
