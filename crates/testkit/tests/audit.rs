//! The audit webhook: events reach a real HTTPS server, together or one by one while requests wait.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use http::Method;
use serde_json::{Value, json};
use testkit::Cluster;
use testkit::cluster::Scope;
use testkit::hook::{Hook, Identity};

/// Port of the webhook in the cluster's network namespace, where nobody else is.
const PORT: u16 = 7693;
/// An event of a batch has to be there within this.
const ARRIVAL_MAX: Duration = Duration::from_secs(10);

/// Events that have come, by the lists that they came in.
type Seen = Arc<Mutex<Vec<Vec<Value>>>>;

/// Writes policy and kubeconfig; gives the options.
fn options(directory: &Path, ca: &str, mode: &str) -> Vec<String> {
    let (policy, config) = (directory.join("policy"), directory.join("webhook"));
    let rules = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- {level: RequestResponse, namespaces: [audited]}\n";
    std::fs::write(&policy, rules).unwrap();
    let ca = base64::engine::general_purpose::STANDARD.encode(ca);
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: w\n  cluster: {{server: \"https://127.0.0.1:{PORT}/events?k=v\", certificate-authority-data: {ca}}}\n\
         contexts:\n- name: w\n  context: {{cluster: w, user: w}}\ncurrent-context: w\nusers:\n- name: w\n  user: {{}}\n"
    );
    std::fs::write(&config, text).unwrap();
    let path = |p: &Path| p.to_str().unwrap().to_owned();
    [
        "--audit-policy-file",
        &path(&policy),
        "--audit-webhook-config-file",
        &path(&config),
        "--audit-webhook-mode",
        mode,
        "--audit-webhook-batch-max-wait",
        "300ms",
        "--audit-webhook-initial-backoff",
        "10ms",
    ]
    .map(String::from)
    .to_vec()
}

fn hook(identity: Identity, seen: Seen) -> Hook {
    let handler = move |path: &str, list: Value| {
        assert_eq!(path.split('?').next(), Some("/events"));
        assert_eq!(
            (list["kind"].as_str(), list["apiVersion"].as_str()),
            (Some("EventList"), Some("audit.k8s.io/v1"))
        );
        // Who is slow is waited for.
        std::thread::park_timeout(Duration::from_millis(20));
        seen.lock().unwrap().push(list["items"].as_array().unwrap().clone());
        json!({})
    };
    Hook::start_at(PORT, identity, Arc::new(handler)).unwrap()
}

fn stages(seen: &Seen, name: &str) -> Vec<String> {
    let all = seen.lock().unwrap();
    let about = all.iter().flatten().filter(|e| e["objectRef"]["name"] == name);
    about.map(|e| format!("{} {}", e["verb"].as_str().unwrap(), e["stage"].as_str().unwrap())).collect()
}

fn counter(s: &Scope<'_>, name: &str) -> u64 {
    let (_, _, body) = s.raw(Method::GET, "/metrics", &[], "").unwrap();
    let text = String::from_utf8(body).unwrap();
    let found = text.lines().find(|l| l.starts_with(name)).and_then(|l| l.rsplit(' ').next());
    found.and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn cluster(directory: &Path, mode: &str) -> (Cluster, Identity) {
    let identity = Identity::new(&["127.0.0.1"]).unwrap();
    let options = options(directory, &identity.ca, mode);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let cluster = Cluster::start_with(&options).unwrap();
    let s = cluster.scope("");
    s.create("namespaces", json!({"metadata": {"name": "audited"}})).unwrap();
    (cluster, identity)
}

fn make(s: &Scope<'_>, name: &str) -> client::Result<Value> {
    s.create("configmaps", json!({"metadata": {"name": name}, "data": {"a": "b"}}))
}

#[test]
fn requests_wait_for_a_blocking_webhook() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, identity) = cluster(directory.path(), "blocking-strict");
    let seen = Seen::default();
    let s = cluster.scope("audited");
    // Nobody listens yet: the request is refused before it has done anything.
    let refused = make(&s, "early").unwrap_err().to_string();
    assert!(refused.contains("failed to store audit event"), "{refused}");
    let hook = hook(identity, seen.clone());
    assert!(s.get("configmaps", "early").unwrap_err().is_not_found());
    make(&s, "one").unwrap();
    // No waiting here: the answer came after the events had been told.
    let lists = seen.lock().unwrap().clone();
    let created =
        lists.iter().flatten().rfind(|e| e["objectRef"]["resource"] == "configmaps").unwrap().clone();
    assert_eq!(
        (&created["stage"], &created["responseStatus"]["code"]),
        (&json!("ResponseComplete"), &json!(201))
    );
    assert_eq!(created["requestObject"]["metadata"]["name"], "one");
    assert_eq!(created["responseObject"]["data"]["a"], "b");
    assert!(lists.iter().all(|l| l.len() == 1), "one by one");
    s.get("configmaps", "one").unwrap();
    let got = stages(&seen, "one");
    assert!(got.ends_with(&["get RequestReceived".to_owned(), "get ResponseComplete".to_owned()]), "{got:?}");
    assert!(counter(&s, "apiserver_audit_event_total ") >= 4);
    assert!(counter(&s, "apiserver_audit_error_total{") >= 1);
    assert!(
        counter(
            &s,
            "apiserver_admission_controller_admission_duration_seconds_count{name=\"NamespaceLifecycle\",operation=\"CREATE\",rejected=\"false\",type=\"admit\"}"
        ) >= 1
    );
    drop(hook);
}

#[test]
fn batches_reach_the_webhook() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, identity) = cluster(directory.path(), "batch");
    let seen = Seen::default();
    let _hook = hook(identity, seen.clone());
    let s = cluster.scope("audited");
    for i in 0..20 {
        make(&s, &format!("c-{i}")).unwrap();
    }
    s.get("configmaps", "c-19").unwrap();
    let started = Instant::now();
    while !stages(&seen, "c-19").contains(&"get ResponseComplete".to_owned()) {
        assert!(started.elapsed() < ARRIVAL_MAX, "{}", cluster.log());
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let lists = seen.lock().unwrap().clone();
    assert!(
        lists.iter().any(|l| l.len() > 10),
        "together: {:?}",
        lists.iter().map(Vec::len).collect::<Vec<_>>()
    );
}
