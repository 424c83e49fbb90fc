//! `ferry up --demo`: a small application whose image is made from this very binary, so nothing is downloaded.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use api::prelude::*;
use image::{ImageStore, ImportOptions};
use meta::Gvr;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::control::ControlPlane;

/// Name of the application and of its image.
const NAME: &str = "ferry-demo";
const IMAGE: &str = "localhost/ferry-demo:1";
const PORT: u16 = 8080;
/// Longest request head that the demo server reads.
const HEAD_BYTES_MAX: usize = 8192;

/// The server inside the demo's pods: one page that tells which pod answered.
pub fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).context("the demo server cannot listen")?;
    let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut head = [0; HEAD_BYTES_MAX];
        if stream.read(&mut head).is_err() {
            continue;
        }
        let page = format!("Hello from {host}, a pod of your Ferry cluster.\n");
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
            page.len()
        );
        // A client that has gone away is no concern of the server.
        let _ = stream.write_all(answer.as_bytes());
    }
    Ok(())
}

/// Deploys the application and returns its URL once it answers.
pub async fn deploy(
    plane: &ControlPlane,
    images: Arc<ImageStore>,
    node_ip: std::net::IpAddr,
) -> anyhow::Result<String> {
    let archive = tokio::task::spawn_blocking(archive).await??;
    images
        .import(std::io::Cursor::new(archive), ImportOptions::default())
        .await
        .context("cannot import the demo's image")?;
    let labels = json!({"app": NAME});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME, "namespace": "default"},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1, "containers": [{
                "name": "web", "image": IMAGE, "ports": [{"containerPort": PORT}],
                "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1}}]}}}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME, "namespace": "default"},
        "spec": {"type": "NodePort", "selector": labels, "ports": [{"port": 80, "targetPort": PORT}]}});
    let apply = |gvr: Gvr, object: Value| async move {
        let patch = client::Patch::Apply { object, manager: NAME.into(), force: true };
        plane.client.patch(&gvr, "default", NAME, "", &patch).await.context("cannot deploy the demo")
    };
    apply(Gvr::new("apps", "v1", "deployments"), deployment).await?;
    let service = apply(Gvr::new("", "v1", "services"), service).await?;
    available(plane).await;
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().unwrap_or_default();
    Ok(format!("http://{node_ip}:{port}/"))
}

/// Waits until every pod of the demo is available.
async fn available(plane: &ControlPlane) {
    let (woken, deployments) = (Arc::new(Notify::new()), plane.context.informers.get::<Deployment>());
    let wake = woken.clone();
    deployments.on_event(move |_| wake.notify_one());
    loop {
        let found = deployments.store().get(&format!("default/{NAME}"));
        let status = found.as_ref().and_then(|d| d.status.as_ref());
        if status.and_then(|s| s.available_replicas).unwrap_or(0) >= 2 {
            return;
        }
        woken.notified().await;
    }
}

/// A docker-archive of one layer: this binary and the libraries that are mapped into it.
fn archive() -> anyhow::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    let exe = std::env::current_exe()?;
    put(&mut layer, Path::new("ferry"), &std::fs::read(&exe).context("cannot read this binary")?)?;
    let mut directories = BTreeSet::new();
    for library in libraries()? {
        let bytes = std::fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
        put(&mut layer, library.strip_prefix("/").unwrap_or(&library), &bytes)?;
        directories.extend(library.parent().map(|p| p.display().to_string()));
        let name = library.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("ld-linux") {
            // The path that is written into every dynamic binary of the architecture.
            let place = if name.contains("aarch64") { "lib" } else { "lib64" };
            put(&mut layer, &Path::new(place).join(&name), &bytes)?;
        }
    }
    let layer = layer.into_inner()?;
    let sum: String = Sha256::digest(&layer).iter().map(|b| format!("{b:02x}")).collect();
    let path: Vec<String> = directories.into_iter().collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"architecture": architecture, "os": "linux",
        "config": {"Entrypoint": ["/ferry", "demo-server"], "Env": [format!("LD_LIBRARY_PATH={}", path.join(":"))]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]}});
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    let mut image = tar::Builder::new(Vec::new());
    put(&mut image, Path::new("config.json"), config.to_string().as_bytes())?;
    put(&mut image, Path::new("manifest.json"), manifest.to_string().as_bytes())?;
    put(&mut image, Path::new("layer.tar"), &layer)?;
    Ok(image.into_inner()?)
}

fn put(tar: &mut tar::Builder<Vec<u8>>, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o755);
    Ok(tar.append_data(&mut header, path, bytes)?)
}

/// Shared libraries of this process; none for a static binary.
fn libraries() -> anyhow::Result<BTreeSet<PathBuf>> {
    let maps = std::fs::read_to_string("/proc/self/maps").context("cannot read this process's mappings")?;
    let files =
        maps.lines().filter_map(|line| line.split_whitespace().nth(5)).filter(|path| path.contains(".so"));
    Ok(files.map(PathBuf::from).collect())
}
