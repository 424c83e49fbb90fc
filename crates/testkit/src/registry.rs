//! A registry with one image, inside the test process: plain HTTP on the cluster's loopback address.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;

use crate::image::{digest, tar};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A running registry; it ends with the value.
pub struct Registry {
    /// What pods ask for.
    pub reference: String,
    asked: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

struct Content {
    manifest: Bytes,
    blobs: [Bytes; 2],
    asked: Arc<AtomicUsize>,
    /// The header that is asked for, if any.
    authorization: Option<String>,
}

impl Registry {
    /// Serves an image of one layer with these files.
    pub fn start(name: &str, files: &[(&str, &[u8])]) -> anyhow::Result<Registry> {
        Self::serve(name, files, None)
    }

    /// The same for those only who know the password of the user `puller`.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn start_guarded(name: &str, files: &[(&str, &[u8])], password: &str) -> anyhow::Result<Registry> {
        let basic = format!("Basic {}", STANDARD.encode(format!("puller:{password}")));
        Self::serve(name, files, Some(basic))
    }

    fn serve(name: &str, files: &[(&str, &[u8])], authorization: Option<String>) -> anyhow::Result<Registry> {
        let layer = tar(files);
        let config = json!({"architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}});
        let config = config.to_string().into_bytes();
        let part = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": part(CONFIG, &config),
            "layers": [part(LAYER, &layer)]});
        let asked = Arc::new(AtomicUsize::new(0));
        let content = Arc::new(Content {
            manifest: manifest.to_string().into(),
            blobs: [config.into(), layer.into()],
            asked: asked.clone(),
            authorization,
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let reference = format!("{}/{name}:1.8", listener.local_addr()?);
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let content = content.clone();
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    std::future::ready(answer(&request, &content))
                });
                let server = hyper::server::conn::http1::Builder::new();
                let connection = server.serve_connection(TokioIo::new(tcp), service);
                // A client that goes away ends the connection; that is no failure.
                tokio::spawn(async move { drop(connection.await) });
            }
        });
        Ok(Registry { reference, asked, _runtime: runtime })
    }

    /// How often somebody asked what the tag means now.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn answer(request: &Request<Incoming>, content: &Content) -> http::Result<Response<Full<Bytes>>> {
    let shown = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if content.authorization.is_some() && content.authorization.as_deref() != shown {
        return Response::builder()
            .status(StatusCode::UNAUTHORIZED)
            .header("www-authenticate", "Basic realm=\"tests\"")
            .body(Full::default());
    }
    let path = request.uri().path();
    let wanted = path.rsplit('/').next().unwrap_or_default();
    let (kind, bytes) = if path == "/v2/" {
        ("application/json", Some(Bytes::from_static(b"{}")))
    } else if path.contains("/manifests/") {
        if wanted == "1.8" {
            content.asked.fetch_add(1, Ordering::Relaxed);
        }
        let known = wanted == "1.8" || wanted == digest(&content.manifest);
        (MANIFEST, known.then(|| content.manifest.clone()))
    } else {
        let blob = content.blobs.iter().find(|blob| digest(blob) == wanted);
        ("application/octet-stream", blob.cloned())
    };
    let Some(bytes) = bytes else {
        return Response::builder().status(StatusCode::NOT_FOUND).body(Full::default());
    };
    let head = Response::builder()
        .header("content-type", kind)
        .header("content-length", bytes.len())
        .header("docker-content-digest", digest(&bytes));
    head.body(Full::new(if request.method() == Method::HEAD { Bytes::new() } else { bytes }))
}
