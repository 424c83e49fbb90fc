//! Which container runtime the node uses: the embedded one, or somebody else's behind a socket.
//!
//! With somebody else's, Ferry still gives pods their network unless another CNI plugin is configured (`cni`),
//! and `ferry down` still removes what was made: the endpoint is noted in the data directory, and the client's
//! records name the sandboxes that are ours.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use container::Runtime;
use cri::{ImageService, PodSandboxFilter, RuntimeService};
use cri_socket::client::{self, Remote, endpoint};
use cri_socket::server::Server;
use futures_util::future::try_join_all;
use image::ImageStore;
use serde_json::{Value, json};

use crate::control::Environment;
use crate::{cni, local, node};

/// File in the data directory that says which runtime is in use, if it is not the embedded one.
const NOTE: &str = "runtime.json";
/// Name of the socket that offers the embedded runtime.
const SOCKET: &str = "cri.sock";

/// Options about the container runtime.
#[derive(Debug, Clone, Args)]
pub struct RuntimeOptions {
    /// Use the container runtime behind this socket (`unix:///run/containerd/containerd.sock`) instead of the
    /// embedded one. It must speak CRI v1 and use the cgroupfs driver.
    #[arg(long, value_name = "URL")]
    pub container_runtime_endpoint: Option<String>,
    /// Where images are pulled, if not at the runtime's endpoint.
    #[arg(long, value_name = "URL", requires = "container_runtime_endpoint")]
    pub image_service_endpoint: Option<String>,
    /// Directory of the runtime's network configurations. Where it has none, Ferry writes its own.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Directory of the runtime's network plugins, for Ferry's own.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// Where the embedded runtime is offered to `crictl` and others; `cri.sock` in the data directory by default.
    #[arg(long, value_name = "PATH")]
    pub cri_socket: Option<PathBuf>,
}

/// A runtime, ready for a kubelet.
pub struct Opened {
    /// Sandboxes and containers.
    pub runtime: Arc<dyn RuntimeService>,
    /// Images.
    pub images: Arc<dyn ImageService>,
    /// What only the embedded runtime has.
    pub embedded: Option<Embedded>,
}

/// The parts of the embedded runtime that others work on directly.
#[derive(Clone)]
pub struct Embedded {
    /// Images on this machine.
    pub store: Arc<ImageStore>,
    /// Who builds new ones.
    pub builder: Arc<build::Builder>,
}

/// Where the runtime keeps what containers change.
#[derive(Debug)]
struct RuntimeChanges(Arc<Runtime>);

impl build::Changes for RuntimeChanges {
    fn upper(&self, container: &str) -> Option<std::path::PathBuf> {
        self.0.changes_of(container)
    }
}

/// The cgroup below which everything of this cluster is.
pub fn cgroup_root(env: &Environment) -> String {
    format!("/ferry-{}", env.paths.cluster_id)
}

fn options(env: &Environment, runtime: &str, images: Option<&str>) -> anyhow::Result<client::Options> {
    let path = |text: &str| endpoint(text).map_err(anyhow::Error::msg);
    let runtime = path(runtime)?;
    let images = images.map_or_else(|| Ok(runtime.clone()), path)?;
    Ok(client::Options {
        runtime,
        images,
        state: env.paths.root.join("cri"),
        owner: env.paths.cluster_id.clone(),
    })
}

/// Opens the runtime that the options name.
pub async fn open(
    env: &Environment,
    network: Option<Arc<dyn cri::NetworkProvider>>,
) -> anyhow::Result<Opened> {
    let given = &env.options.runtime;
    let note = env.paths.root.join(NOTE);
    let Some(url) = &given.container_runtime_endpoint else {
        anyhow::ensure!(
            !note.exists(),
            "this cluster's pods are in another runtime: give --container-runtime-endpoint, or remove the cluster \
             with `ferry down`"
        );
        let store = node::open_images(env)?;
        let runtime = node::open_runtime(env, store.clone(), network).await?;
        let changes = Arc::new(RuntimeChanges(runtime.clone()));
        let builder = build::Builder::new(store.clone(), runtime.clone(), changes);
        builder.clean_up().await.context("cannot remove what earlier builds have left")?;
        return Ok(Opened { runtime, images: store.clone(), embedded: Some(Embedded { store, builder }) });
    };
    let options = options(env, url, given.image_service_endpoint.as_deref())?;
    let configuration = cni::configuration_file(env);
    let noted = json!({"endpoint": url, "network": configuration});
    auth::pki::write(&note, &noted.to_string()).context("cannot note the runtime's endpoint")?;
    if network.is_some() {
        cni::install(env, &configuration).context("cannot install the network plugin")?;
    }
    let remote = Remote::open(&options).context("cannot use the runtime's state directory")?;
    Ok(Opened { runtime: remote.clone(), images: remote, embedded: None })
}

/// Removes what a cluster has in somebody else's runtime; false if it used the embedded one.
pub async fn remove(env: &Environment) -> anyhow::Result<bool> {
    let note = env.paths.root.join(NOTE);
    let Ok(text) = std::fs::read_to_string(&note) else { return Ok(false) };
    let noted: Value = serde_json::from_str(&text).context("cannot understand the note of the runtime")?;
    let word =
        |name: &str| noted.get(name).and_then(Value::as_str).context("the note of the runtime is damaged");
    let url = word("endpoint")?;
    let options = options(env, url, None)?;
    let remote = Remote::open(&options).context("cannot read the runtime's records")?;
    // Listed rather than recorded alone: one may have come to be while its maker was killed.
    let listed = match remote.list_pod_sandboxes(&PodSandboxFilter::default()).await {
        // Nothing is known to be there: then nobody need be there to remove it.
        Err(_) if remote.recorded().is_empty() => Vec::new(),
        listed => listed.with_context(|| format!("the pods are in the runtime at {url}; is it running?"))?,
    };
    let sandboxes: BTreeSet<String> =
        listed.into_iter().map(|sandbox| sandbox.id).chain(remote.recorded()).collect();
    if !sandboxes.is_empty() {
        // The runtime asks our plugin to take the networks back, and that asks us.
        let network = crate::network::open(env).await?;
        let shared = local::Shared { images: remote.clone(), embedded: None, network };
        let serving = tokio::spawn(local::serve(env.paths.socket(), shared, env.cancel.clone()));
        let removed = try_join_all(sandboxes.iter().map(|id| remote.remove_pod_sandbox(id))).await;
        env.cancel.cancel();
        serving.await??;
        removed.with_context(|| format!("cannot remove the pods from the runtime at {url}"))?;
    }
    cni::uninstall(Path::new(word("network")?))?;
    kubelet::cgroup::remove(Path::new(kubelet::cgroup::MOUNT), &cgroup_root(env));
    std::fs::remove_file(&note).context("cannot remove the note of the runtime's endpoint")?;
    Ok(true)
}

/// Offers the embedded runtime on its socket, to `crictl` and others.
pub async fn offer(env: Environment, runtime: Arc<dyn RuntimeService>, images: Arc<dyn ImageService>) {
    let socket = env.options.runtime.cri_socket.clone().unwrap_or_else(|| env.paths.root.join(SOCKET));
    let served = Server::new(runtime, images).serve(&socket, env.cancel.clone().cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(socket = %socket.display(), %error, "the runtime is not offered to others");
    }
}
