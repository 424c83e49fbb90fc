//! Pulls from a real registry on loopback, filled by skopeo.

mod support;

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri::{ImageService, PullProgress, PullRequest};
use image::ImportOptions;
use support::{Layer, docker_archive, open};

/// A registry that ends with the test.
struct Registry {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Registry {
    async fn start(auth: bool) -> Registry {
        Registry::start_with(auth, None).await
    }

    /// With TLS if a certificate and key are given.
    async fn start_with(auth: bool, tls: Option<(String, String)>) -> Registry {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let root = dir.path().join("data");
            let mut text = format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
                root.display()
            );
            if let Some((certificate, key)) = &tls {
                let path = |name: &str| dir.path().join(name).display().to_string();
                fs::write(path("tls.crt"), certificate).unwrap();
                fs::write(path("tls.key"), key).unwrap();
                text.push_str(&format!(
                    "  tls:\n    certificate: {}\n    key: {}\n",
                    path("tls.crt"),
                    path("tls.key")
                ));
            }
            if auth {
                // bcrypt of "secret"
                let line = "user:$2b$04$u6RqdhYJ4AXO..0hf9bK9uQAQAa3l/oHpz9wiZKv.1RfdrMjwbeqC";
                fs::write(dir.path().join("htpasswd"), line).unwrap();
                let path = dir.path().join("htpasswd");
                text.push_str(&format!(
                    "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                    path.display()
                ));
            }
            let config = dir.path().join("config.yml");
            fs::write(&config, text).unwrap();
            let mut child = Command::new("docker-registry")
                .args(["serve".as_ref(), config.as_os_str()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            for _ in 0..200 {
                if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                    return Registry { child, port, dir };
                }
                if child.try_wait().unwrap().is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("no registry");
    }

    fn push(&self, archive: &Path, name: &str, extra: &[&str]) {
        let status = Command::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false"])
            .args(extra)
            .arg(format!("docker-archive:{}", archive.display()))
            .arg(format!("docker://127.0.0.1:{}/{name}", self.port))
            .env("TMPDIR", self.dir.path())
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn archive(&self, layers: &[Vec<u8>]) -> PathBuf {
        let path = self.dir.path().join("image.tar");
        fs::write(&path, docker_archive(&[(&["x:1"], layers, r#"{"Cmd":["/x"]}"#)])).unwrap();
        path
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(image: String) -> PullRequest {
    PullRequest { image, ..PullRequest::default() }
}

#[tokio::test]
async fn pulls_layers_in_parallel_and_tells_progress() {
    let registry = Registry::start(false).await;
    let layers: Vec<_> =
        (0..5).map(|n| Layer::new().file(&format!("f{n}"), &vec![n; 200_000]).done()).collect();
    registry.push(&registry.archive(&layers), "team/app:1", &[]);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = heard.clone();
    let name = format!("127.0.0.1:{}/team/app:1", registry.port);
    let mut pull = request(name.clone());
    pull.progress = Some(Arc::new(move |p| sink.lock().unwrap().push(p)));
    let (first, second) = tokio::join!(store.pull(pull), store.pull(request(name.clone())));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first, second);
    let image = store.resolve(&name).unwrap().unwrap();
    assert_eq!(image.layers.len(), 5);
    for (n, layer) in image.layers.iter().enumerate() {
        assert_eq!(fs::read(layer.join(format!("f{n}"))).unwrap().len(), 200_000);
    }
    assert_eq!(image.repo_digest, first.repo_digest);
    let heard = heard.lock().unwrap().clone();
    assert!(matches!(&heard[0], PullProgress::Resolved { layers, .. } if layers.len() == 5));
    assert_eq!(heard.iter().filter(|p| matches!(p, PullProgress::Done { .. })).count(), 5);
    // By digest, from the store alone.
    assert!(store.status(&first.repo_digest).await.unwrap().is_some());
}

#[tokio::test]
async fn failures_have_kubernetes_reasons() {
    let registry = Registry::start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let missing = store.pull(request(format!("127.0.0.1:{}/no/such", registry.port))).await.unwrap_err();
    assert_eq!(missing.reason(), "ErrImagePull");
    assert!(missing.to_string().contains("not found"), "{missing}");
    let invalid = store.pull(request("UPPER CASE".into())).await.unwrap_err();
    assert_eq!(invalid.reason(), "InvalidImageName");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let refused = store.pull(request(format!("127.0.0.1:{port}/x"))).await.unwrap_err();
    assert_eq!(refused.reason(), "RegistryUnavailable");
}

#[tokio::test]
async fn damaged_layers_are_refused() {
    let registry = Registry::start(false).await;
    registry.push(&registry.archive(&[Layer::new().file("f", b"content").done()]), "app:1", &[]);
    // Damage every blob of the registry that looks like gzip, keeping its length.
    let blobs = registry.dir.path().join("data/docker/registry/v2/blobs/sha256");
    let mut damaged = 0;
    for group in fs::read_dir(blobs).unwrap() {
        for blob in fs::read_dir(group.unwrap().path()).unwrap() {
            let path = blob.unwrap().path().join("data");
            let mut bytes = fs::read(&path).unwrap();
            if bytes.starts_with(&[0x1f, 0x8b]) {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                fs::write(&path, bytes).unwrap();
                damaged += 1;
            }
        }
    }
    assert_eq!(damaged, 1);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = store.pull(request(format!("localhost:{}/app:1", registry.port))).await.unwrap_err();
    assert_eq!(error.reason(), "ErrImagePull");
    assert!(error.to_string().contains("unexpected commit digest"), "{error}");
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn credentials_are_needed_and_used() {
    let registry = Registry::start(true).await;
    let layers = [Layer::new().file("f", b"x").done()];
    registry.push(&registry.archive(&layers), "private:1", &["--dest-creds", "user:secret"]);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let name = format!("127.0.0.1:{}/private:1", registry.port);
    let denied = store.pull(request(name.clone())).await.unwrap_err();
    assert_eq!(denied.reason(), "ErrImagePull");
    assert!(denied.to_string().contains("pull access denied"), "{denied}");
    let auth = cri::ImageAuth { username: "user".into(), password: "secret".into(), ..Default::default() };
    let mut pull = request(name);
    pull.auth = Some(auth);
    store.pull(pull).await.unwrap();
}

#[tokio::test]
async fn oci_layouts_of_skopeo_are_imported() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("docker.tar");
    let layers = [Layer::new().file("f", b"one").done(), Layer::new().file("g", b"two").done()];
    fs::write(&archive, docker_archive(&[(&["x:1"], &layers, "{}")])).unwrap();
    let oci = dir.path().join("oci.tar");
    let status = Command::new("skopeo")
        .args(["copy", "--quiet"])
        .arg(format!("docker-archive:{}", archive.display()))
        .arg(format!("oci-archive:{}:v7", oci.display()))
        .env("TMPDIR", dir.path())
        .status()
        .unwrap();
    assert!(status.success());
    let store = open(&dir.path().join("store"));
    let options = ImportOptions { name: Some("team/app".into()) };
    let images = store.clone().import(Cursor::new(fs::read(&oci).unwrap()), options).await.unwrap();
    assert_eq!(images[0].names, ["docker.io/team/app:v7"]);
    let image = store.resolve("team/app:v7").unwrap().unwrap();
    assert_eq!(fs::read(image.layers[1].join("g")).unwrap(), b"two");
}

#[tokio::test]
async fn https_with_a_private_authority_through_a_mirror() {
    let issued = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (issued.cert.pem(), issued.signing_key.serialize_pem());
    let registry = Registry::start_with(false, Some((certificate.clone(), key))).await;
    registry.push(&registry.archive(&[Layer::new().file("f", b"x").done()]), "team/app:1", &[]);
    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    fs::write(&ca_file, certificate).unwrap();
    let config = |root: &str, ca_file: Option<PathBuf>| image::StoreConfig {
        root: dir.path().join(root),
        insecure_registries: Vec::new(),
        registries: serde_json::from_value(serde_json::json!({"mirrors": {"127.0.0.1:1":
            {"endpoint": [format!("https://127.0.0.1:{}", registry.port)]}}}))
        .unwrap(),
        ca_file,
        silence_max: image::StoreConfig::SILENCE_MAX,
        clock: stdx::SystemClock::shared(),
    };
    // The registry itself does not exist: only the mirror can serve.
    let trusting = image::ImageStore::open(config("a", Some(ca_file))).unwrap();
    let pulled = trusting.pull(request("127.0.0.1:1/team/app:1".into())).await.unwrap();
    assert!(pulled.repo_digest.starts_with("127.0.0.1:1/team/app@sha256:"));
    let wary = image::ImageStore::open(config("b", None)).unwrap();
    assert_eq!(
        wary.pull(request("127.0.0.1:1/team/app:1".into())).await.unwrap_err().reason(),
        "RegistryUnavailable"
    );
}
