//! Pulls from registries that go silent, break off or lie.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri::{ImageService, PullRequest};
use image::{Digest, ImageStore, StoreConfig};
use support::{Layer, config_json};

/// What is wrong with the answer to the n-th request for the layer; nothing where this has no n-th.
#[derive(Clone, Copy)]
enum Wrong {
    /// Half of it, then silence.
    Stalls,
    /// Half of it, then the end of the connection.
    BreaksOff,
    /// Nothing of it, for ever.
    Silent,
    /// Other bytes of the same length.
    Lies,
}

struct Registry {
    port: u16,
    layer: String,
    asked: Arc<AtomicUsize>,
    ranges: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    fn start(wrong: &'static [Wrong]) -> Registry {
        let layer = Layer::new().file("f", &[7; 300_000]).done();
        let digest = Digest::of(&layer);
        let config = config_json(std::slice::from_ref(&digest), "{}");
        let part = |kind: &str, bytes: &[u8]| {
            format!(r#"{{"mediaType":"{kind}","digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len())
        };
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
            part("application/vnd.oci.image.config.v1+json", config.as_bytes()),
            part("application/vnd.oci.image.layer.v1.tar", &layer)
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, ranges) = (Arc::new(AtomicUsize::new(0)), Arc::<Mutex<Vec<String>>>::default());
        let registry =
            Registry { port, layer: digest.to_string(), asked: asked.clone(), ranges: ranges.clone() };
        std::thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                let (path, range) = request(&tcp);
                if !path.ends_with(&digest.to_string()) {
                    let body =
                        if path.contains("/manifests/") { manifest.as_bytes() } else { config.as_bytes() };
                    answer(&tcp, "200 OK", body.len(), body);
                    continue;
                }
                let from =
                    range.strip_prefix("bytes=").and_then(|r| r.trim_end_matches('-').parse::<usize>().ok());
                ranges.lock().unwrap().push(range.clone());
                let (code, rest) = match from {
                    Some(from) => ("206 Partial Content", &layer[from..]),
                    None => ("200 OK", &layer[..]),
                };
                match wrong.get(asked.fetch_add(1, Ordering::Relaxed)) {
                    None => answer(&tcp, code, rest.len(), rest),
                    Some(Wrong::Lies) => answer(&tcp, code, rest.len(), &vec![1; rest.len()]),
                    Some(Wrong::BreaksOff) => answer(&tcp, code, rest.len(), &rest[..rest.len() / 2]),
                    Some(Wrong::Stalls) => {
                        answer(&tcp, code, rest.len(), &rest[..rest.len() / 2]);
                        // It stays open, as at a registry that hangs.
                        std::mem::forget(tcp);
                    }
                    Some(Wrong::Silent) => std::mem::forget(tcp),
                }
            }
        });
        registry
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn request(tcp: &TcpStream) -> (String, String) {
    let (mut path, mut range) = (String::new(), String::new());
    for line in BufReader::new(tcp).lines().map_while(Result::ok) {
        if line.is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("GET ") {
            path = rest.split(' ').next().unwrap_or_default().to_owned();
        }
        if let Some(("range", value)) = line
            .split_once(": ")
            .map(|(k, v)| (k.to_ascii_lowercase(), v))
            .as_ref()
            .map(|(k, v)| (k.as_str(), *v))
        {
            range = value.to_owned();
        }
    }
    (path, range)
}

fn answer(mut tcp: &TcpStream, code: &str, len: usize, body: &[u8]) {
    let head = format!("HTTP/1.1 {code}\r\ncontent-type: {MANIFEST}\r\ncontent-length: {len}\r\n\r\n");
    // A client that has gone away has had enough.
    let _ = tcp.write_all(head.as_bytes()).and_then(|()| tcp.write_all(body));
}

/// A store that takes a third of a second of silence for death.
fn open(root: &std::path::Path) -> Arc<ImageStore> {
    ImageStore::open(StoreConfig {
        root: root.to_owned(),
        insecure_registries: Vec::new(),
        registries: Default::default(),
        ca_file: None,
        silence_max: Duration::from_millis(300),
        clock: stdx::SystemClock::shared(),
    })
    .unwrap()
}

async fn pull(registry: &Registry, store: &ImageStore) -> Result<(), cri::Error> {
    let image = format!("127.0.0.1:{}/app:1", registry.port);
    store.pull(PullRequest { image, ..PullRequest::default() }).await.map(drop)
}

#[tokio::test]
async fn a_stream_that_ends_early_goes_on_where_it_was() {
    let registry = Registry::start(&[Wrong::Stalls, Wrong::BreaksOff]);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    pull(&registry, &store).await.unwrap();
    let ranges = registry.ranges.lock().unwrap().clone();
    assert!(ranges.len() == 3 && ranges[0].is_empty(), "{ranges:?}");
    assert!(ranges[1..].iter().all(|r| r.starts_with("bytes=") && r != "bytes=0-"), "{ranges:?}");
    let image = store.resolve(&format!("127.0.0.1:{}/app:1", registry.port)).unwrap().unwrap();
    assert_eq!(fs::read(image.layers[0].join("f")).unwrap(), [7; 300_000]);
}

#[tokio::test]
async fn silence_ends_with_a_message_that_names_the_layer() {
    let registry = Registry::start(&[Wrong::Silent; 64]);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = pull(&registry, &store).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&format!("127.0.0.1:{}", registry.port)) && text.contains(&registry.layer),
        "{text}"
    );
    assert!(text.contains("no answer in time"), "{text}");
    assert!(registry.asked.load(Ordering::Relaxed) < 10, "it was asked for ever");
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lie_is_found_and_told_by_both_digests() {
    let registry = Registry::start(&[Wrong::Lies; 64]);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let text = pull(&registry, &store).await.unwrap_err().to_string();
    assert!(
        text.contains(&registry.layer) && text.contains(&format!("127.0.0.1:{}", registry.port)),
        "{text}"
    );
    // Nothing of it is kept, and an honest answer afterwards is taken.
    let honest = Registry::start(&[]);
    pull(&honest, &store).await.unwrap();
}
