//! Pushes to a real registry, and pulls from one that breaks off.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Cursor, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri::{ImageService, PullRequest};
use image::{ArchiveFormat, Digest, ImportOptions, PushRequest};
use support::{Layer, config_json, docker_archive, gzip, open};

/// A registry that ends with the test.
struct Registry(Child, u16, #[allow(dead_code)] tempfile::TempDir);

impl Registry {
    async fn start(auth: bool) -> Registry {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            dir.path().join("data").display()
        );
        if auth {
            // bcrypt of "secret"
            let line = "user:$2b$04$u6RqdhYJ4AXO..0hf9bK9uQAQAa3l/oHpz9wiZKv.1RfdrMjwbeqC";
            fs::write(dir.path().join("htpasswd"), line).unwrap();
            let path = dir.path().join("htpasswd");
            text.push_str(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display()));
        }
        let config = dir.path().join("config.yml");
        fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        let child =
            command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let registry = Registry(child, port, dir);
        for _ in 0..400 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return registry;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("no registry");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(next).collect()
}

#[tokio::test]
async fn pushed_in_pieces_with_credentials_and_pulled_back_the_same() {
    let registry = Registry::start(true).await;
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("a"));
    // The first layer is larger than goes in one piece; the same empty one comes twice.
    let empty = Layer::new().done();
    let layers = [
        Layer::new().file("big", &noise(40 << 20)).done(),
        empty.clone(),
        Layer::new().file("x", b"x").done(),
        empty,
    ];
    let archive = docker_archive(&[(&["app:1"], &layers, "{}")]);
    store.clone().import(Cursor::new(archive), ImportOptions::default()).await.unwrap();
    assert_eq!(store.resolve("app:1").unwrap().unwrap().layers.len(), 3);
    let name = format!("127.0.0.1:{}/team/app:1", registry.1);
    let request =
        PushRequest { image: "app:1".into(), destination: Some(name.clone()), ..PushRequest::default() };
    let denied = store.push(request.clone()).await.unwrap_err();
    assert!(denied.to_string().contains("access denied"), "{denied}");
    let auth = cri::ImageAuth { username: "user".into(), password: "secret".into(), ..Default::default() };
    let request = PushRequest { auth: Some(auth.clone()), ..request };
    let pushed = store.push(request.clone()).await.unwrap();
    assert!(pushed.sent >= 4, "{pushed:?}");
    let again = store.push(request).await.unwrap();
    assert_eq!((again.sent, &again.digest), (0, &pushed.digest));
    let other = open(&dir.path().join("b"));
    let pulled =
        other.pull(PullRequest { image: name.clone(), auth: Some(auth), progress: None }).await.unwrap();
    assert!(pulled.repo_digest.ends_with(&pushed.digest));
    // Archives carry the same manifest.
    let mut bytes = Vec::new();
    let export = other.export(std::slice::from_ref(&name), ArchiveFormat::Oci).unwrap();
    other.write_archive(&export, &mut bytes).unwrap();
    let third = open(&dir.path().join("c"));
    third.clone().import(Cursor::new(bytes), ImportOptions::default()).await.unwrap();
    assert_eq!(third.inspect(&name).unwrap()["digest"], pushed.digest.as_str());
    let missing = other.export(&["none".into()], ArchiveFormat::Oci).unwrap_err();
    assert_eq!(missing.to_string(), "image \"none\" not found");
}

/// Serves one image, but of the layer no more than `piece` bytes at a time.
fn stingy_registry(layer: Vec<u8>, diff_id: Digest, piece: usize, ranges: Arc<Mutex<Vec<String>>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = config_json(&[diff_id], "{}").into_bytes();
    let (layer_digest, config_digest) = (Digest::of(&layer), Digest::of(&config));
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"{config_digest}","size":{}}},"layers":[{{"digest":"{layer_digest}","size":{}}}]}}"#,
        config.len(),
        layer.len()
    );
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) <= 2 {
                    break;
                }
                head.push(line.trim().to_ascii_lowercase());
            }
            let Some(path) = head.first().cloned() else { continue };
            if !path.contains(layer_digest.as_str()) {
                let body = if path.contains("/manifests/") { manifest.as_bytes() } else { &config };
                let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(body);
                continue;
            }
            let range = head.iter().find_map(|l| l.strip_prefix("range: bytes="));
            ranges.lock().unwrap().push(range.unwrap_or("").to_owned());
            let from: usize = range.and_then(|r| r.trim_end_matches('-').parse().ok()).unwrap_or(0);
            let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
            let rest = &layer[from..];
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", rest.len());
            // Promises all, and goes away in the middle.
            let _ = stream.write_all(&rest[..rest.len().min(piece)]);
            let _ = stream.flush();
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = reader.read(&mut [0]);
        }
    });
    port
}

#[tokio::test]
async fn a_layer_that_breaks_off_goes_on_where_it_was() {
    let tar = Layer::new().file("f", &noise(300_000)).done();
    let layer = gzip(&tar);
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let port = stingy_registry(layer, Digest::of(&tar), 100_000, ranges.clone());
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let image = format!("127.0.0.1:{port}/x:1");
    store.pull(PullRequest { image: image.clone(), ..Default::default() }).await.unwrap();
    assert_eq!(fs::read(store.resolve(&image).unwrap().unwrap().layers[0].join("f")).unwrap().len(), 300_000);
    let ranges = ranges.lock().unwrap().clone();
    assert_eq!(ranges.len(), 4, "{ranges:?}");
    assert_eq!(&ranges[..3], ["", "100000-", "200000-"]);
}
