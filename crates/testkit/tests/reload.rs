//! Configuration that changes under a running server: authentication, authorization, encryption; and the proxies that
//! speak for others. With a real cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use client::tls::KeyPair;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use testkit::Cluster;
use testkit::cluster::Scope;

/// A new file has to take effect within this.
const EFFECT_MAX: Duration = Duration::from_secs(5);

/// Asks with a certificate, or none, and headers; code and answer.
fn ask(
    cluster: &Cluster,
    certificate: Option<KeyPair>,
    request: Request<bytes::Bytes>,
) -> (StatusCode, Value) {
    let config = client::Kubeconfig::load(&cluster.data().join("admin.kubeconfig")).unwrap();
    let https = config.https_config(None, &cluster.data()).unwrap();
    let https = client::HttpsConfig { certificate, ..https };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use http_body_util::BodyExt;
        let client = client::Client::new(Arc::new(client::Https::new(&https).unwrap()), "nobody");
        let answer = client.raw(request).await.unwrap();
        let code = answer.status();
        let bytes = answer.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        (code, serde_json::from_slice(&bytes).unwrap_or_default())
    })
}

fn nobody(cluster: &Cluster, path: &str) -> u16 {
    ask(cluster, None, Request::get(path).body(bytes::Bytes::new()).unwrap()).0.as_u16()
}

fn soon(what: &str, mut look: impl FnMut() -> bool) {
    let started = Instant::now();
    while !look() {
        assert!(started.elapsed() < EFFECT_MAX, "{what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn metrics(s: &Scope<'_>) -> String {
    let (_, _, body) = s.raw(Method::GET, "/metrics", &[], "").unwrap();
    String::from_utf8(body).unwrap()
}

/// The value of a reload counter.
fn reloads(s: &Scope<'_>, kind: &str, status: &str) -> u64 {
    let name = format!("apiserver_{kind}_config_controller_automatic_reloads_total{{");
    let text = metrics(s);
    let found = text.lines().find(|l| l.starts_with(&name) && l.contains(&format!("status=\"{status}\"")));
    found.and_then(|l| l.rsplit(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn authentication(paths: &[&str]) -> String {
    let conditions: String = paths.iter().map(|p| format!("  - path: {p}\n")).collect();
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous:\n  enabled: true\n  conditions:\n{conditions}"
    )
}

fn authorization(types: &[&str]) -> String {
    let all: String =
        types.iter().map(|t| format!("- {{type: {t}, name: a{}}}\n", t.to_lowercase())).collect();
    format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n{all}")
}

fn encryption(providers: &str) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n{providers}"
    )
}

const PLAIN: &str = "  - identity: {}\n";
const SEALED: &str = "  - aesgcm: {keys: [{name: k1, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}\n  - identity: {}\n";

#[test]
fn configuration_takes_effect_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
    let file = |name: &str| path(name).to_str().unwrap().to_owned();
    write("authentication", &authentication(&["/livez"]));
    write("authorization", &authorization(&["Node", "RBAC"]));
    write("encryption", &encryption(PLAIN));
    let cluster = Cluster::start_with(&[
        "--authentication-config",
        &file("authentication"),
        "--authorization-config",
        &file("authorization"),
        "--encryption-provider-config",
        &file("encryption"),
        "--encryption-provider-config-automatic-reload",
    ])
    .unwrap();
    let s = cluster.scope("default");

    assert_eq!((nobody(&cluster, "/livez"), nobody(&cluster, "/readyz")), (200, 401));
    write("authentication", &authentication(&["/readyz"]));
    soon("anonymous access follows the file", || nobody(&cluster, "/readyz") == 200);
    assert_eq!(nobody(&cluster, "/livez"), 401);
    write("authentication", "kind: Nonsense\n");
    soon("a broken file is counted", || reloads(&s, "authentication", "failure") == 1);
    assert_eq!((nobody(&cluster, "/readyz"), reloads(&s, "authentication", "success")), (200, 1));

    let eve =
        |arguments: &[&str]| s.kubectl_raw(&[arguments, &["--as=eve"]].concat()).unwrap().status.success();
    assert!(!eve(&["get", "secrets"]));
    write("authorization", &authorization(&["AlwaysAllow"]));
    soon("the authorizers follow the file", || eve(&["get", "secrets"]));
    write("authorization", &authorization(&["Node", "RBAC"]));
    soon("and back", || !eve(&["get", "secrets"]));
    assert_eq!(reloads(&s, "authorization", "success"), 2);

    let stored = |name: &str| {
        s.create(
            "secrets",
            json!({"metadata": {"name": name}, "stringData": {"a": format!("secret of {name}")}}),
        )
        .unwrap();
        let needle = format!("secret of {name}");
        let coded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &needle);
        on_disk(&cluster.data().join("store"), coded.as_bytes())
    };
    assert!(stored("before"), "without encryption it is there to read");
    write("encryption", &encryption(SEALED));
    soon("encryption follows the file", || reloads(&s, "encryption", "success") == 1);
    assert!(!stored("after"), "it is sealed now");
    assert!(s.get("secrets", "before").is_ok() && s.get("secrets", "after").is_ok());
    assert!(
        metrics(&s)
            .contains("apiserver_encryption_config_controller_last_config_info{apiserver_id_hash=\"sha256:")
    );
    proxies(&s);
}

/// Whether some file below a directory contains bytes.
fn on_disk(directory: &std::path::Path, needle: &[u8]) -> bool {
    std::fs::read_dir(directory).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        match path.is_dir() {
            true => on_disk(&path, needle),
            false => std::fs::read(&path).is_ok_and(|b| b.windows(needle.len()).any(|w| w == needle)),
        }
    })
}

/// Who has the certificate of a proxy speaks for others; nobody else does.
fn proxies(s: &Scope<'_>) {
    let cluster = s.cluster;
    let pki = cluster.data().join("pki/front-proxy");
    let front = || KeyPair {
        certificates: std::fs::read(pki.join("front-proxy-client.crt")).unwrap(),
        key: std::fs::read(pki.join("front-proxy-client.key")).unwrap(),
    };
    let review = |headers: &[(&str, &str)]| {
        let mut request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        request.body(bytes::Bytes::from(body.to_string())).unwrap()
    };
    let said = [
        ("x-remote-user", "ann"),
        ("x-remote-uid", "u-1"),
        ("x-remote-group", "dev"),
        ("x-remote-group", "ops"),
        ("x-remote-extra-example.com%2fteam", "blue"),
    ];
    let (code, who) = ask(cluster, Some(front()), review(&said));
    assert_eq!(code, 201, "{who}");
    assert_eq!(
        who["status"]["userInfo"],
        json!({"username": "ann", "uid": "u-1", "groups": ["dev", "ops", "system:authenticated"],
            "extra": {"example.com/team": ["blue"]}})
    );
    assert_eq!(ask(cluster, Some(front()), review(&[])).0, 401, "a proxy is nobody itself");
    assert_eq!(ask(cluster, None, review(&said)).0, 401, "headers alone are nothing");
    let system = s.cluster.scope("kube-system");
    let published = system.get("configmaps", "extension-apiserver-authentication").unwrap();
    assert_eq!(published["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    assert_eq!(published["data"]["requestheader-uid-headers"], "[\"X-Remote-Uid\"]");
    assert!(published["data"]["requestheader-client-ca-file"].as_str().unwrap().starts_with("-----BEGIN"));
}
