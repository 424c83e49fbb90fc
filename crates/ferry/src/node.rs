//! The node: image store, embedded runtime and kubelet, speaking to the API server as the node itself.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use auth::authenticate::Authenticator;
use auth::pki::{Names, Pki};
use auth::tls::Rotator;
use container::Runtime;
use image::{ImageStore, StoreConfig};
use kubelet::configuration::Configuration;
use kubelet::server::Peer;
use kubelet::{Kubelet, ServerConfig};
use meta::UserInfo;
use meta::user::GROUP_NODES;
use tokio::task::JoinSet;

use crate::control::{ControlPlane, Environment};
use crate::runtime::{self, Opened};

/// Common name of the certificate that the API server shows to kubelets.
pub const API_SERVER_CLIENT: &str = "kube-apiserver-kubelet-client";

/// Between two attempts to reach a runtime that is not there yet.
const RUNTIME_RETRY: Duration = Duration::from_secs(1);

/// A running node.
pub struct Node {
    /// Its runtime and images.
    pub opened: Opened,
    /// Tells it that the machine goes down.
    pub shutdown: kubelet::shutdown::Signal,
    /// How long that may take.
    pub shutdown_time: Duration,
}

/// Reads `registries.yaml` of the data directory, if there is one.
fn registries(env: &Environment) -> anyhow::Result<image::Registries> {
    let path = env.paths.root.join("registries.yaml");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(image::Registries::default()),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    let unusable = || format!("cannot use {}", path.display());
    let registries: image::Registries = serde_saphyr::from_str(&text).with_context(unusable)?;
    registries.check().with_context(unusable)?;
    Ok(registries)
}

/// Opens the image store of a data directory.
pub fn open_images(env: &Environment) -> anyhow::Result<Arc<ImageStore>> {
    let config = StoreConfig {
        root: env.paths.images(),
        insecure_registries: env.options.insecure_registry.clone(),
        registries: registries(env)?,
        ca_file: None,
        silence_max: StoreConfig::SILENCE_MAX,
        clock: env.clock.clone(),
    };
    ImageStore::open(config).context("cannot open the image store")
}

/// Opens the runtime of a data directory, finding again what runs already.
pub async fn open_runtime(
    env: &Environment,
    images: Arc<ImageStore>,
    network: Option<Arc<dyn cri::NetworkProvider>>,
) -> anyhow::Result<Arc<Runtime>> {
    let config = container::Config {
        data_dir: env.paths.root.clone(),
        cluster_id: env.paths.cluster_id.clone(),
        images,
        network,
        clock: env.clock.clone(),
        random: env.random.clone(),
        cgroup_v2_root: None,
        self_exe: "/proc/self/exe".into(),
        cdi: cdi::Registry::new(env.options.cdi_spec_dirs.iter().cloned()),
    };
    Runtime::open(config).await.context("cannot open the container runtime")
}

impl Node {
    /// Starts the node beside the control plane.
    pub async fn start(
        env: &Environment,
        plane: &ControlPlane,
        network: Option<Arc<dyn cri::NetworkProvider>>,
        verbosity: kubelet::config::SetVerbosity,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<Node> {
        let opened = runtime::open(env, network).await?;
        let mut config = kubelet::Config::new(&env.node_name, env.paths.root.clone());
        config.eviction = kubelet::eviction::threshold::Eviction::from_list(&env.options.eviction_hard)
            .context("--eviction-hard")?;
        config.image_gc = env.options.images.policy()?;
        config.credential_providers = env.options.images.providers()?;
        config.parallel_pulls = env.options.images.parallel_pulls();
        config.node_ips = vec![env.node_ip];
        config.verbosity = Some(verbosity);
        config.cgroup_root = runtime::cgroup_root(env);
        config.cluster_dns = vec![env.options.cluster_dns];
        config.cluster_domain = env.options.cluster_domain.clone();
        let file = env.options.kubelet_config.as_deref().map(kubelet_config).transpose()?;
        config.version = apiserver::endpoints::GIT_VERSION.into();
        let authenticator = plane.server.authenticator.clone();
        config.server = Some(server(env, &plane.pki, authenticator, tasks)?);
        if let Some(directory) = &env.options.device_plugin_dir {
            config.device_plugin_dir = directory.clone();
        }
        if let Some(file) = file {
            for field in &file.idle {
                eprintln!("KubeletConfiguration: {field} has no effect on a node of Ferry");
            }
            file.apply(&mut config);
        }
        let user = UserInfo::authenticated(&format!("system:node:{}", env.node_name), &[GROUP_NODES]);
        let client = plane.client.as_user(user).with_user_agent("kubelet/ferry");
        let (runtime, images) = (opened.runtime.clone(), opened.images.clone());
        let shutdown = kubelet::shutdown::Signal::default();
        let shutdown_time = kubelet::shutdown::total(&config.shutdown_periods);
        let kubelet = Kubelet::new(config, client, runtime, images, env.clock.clone())
            .with_shutdown(shutdown.clone())
            .with_streaming(kubelet::streaming::handler());
        let cancel = env.cancel.clone();
        let runtime = opened.runtime.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = answers(&*runtime) => {}
            }
            if let Err(error) = kubelet.run(cancel.clone()).await {
                tracing::error!(%error, "the kubelet ended");
                cancel.cancel();
            }
        });
        Ok(Node { opened, shutdown, shutdown_time })
    }
}

/// Reads a KubeletConfiguration.
pub fn kubelet_config(path: &Path) -> anyhow::Result<Configuration> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "failed to load kubelet config file, path: {shown}, error: failed to read kubelet config file"
        )
    })?;
    let document = serde_saphyr::from_str(&text).with_context(|| {
        format!("failed to load kubelet config file, path: {shown}, error: failed to decode")
    })?;
    let read = Configuration::decode(document).map_err(|error| {
        anyhow::anyhow!("failed to load kubelet config file, path: {shown}, error: {error}")
    })?;
    Ok(read)
}

/// Waits until the runtime answers: one of somebody else's may be started after us.
async fn answers(runtime: &dyn cri::RuntimeService) {
    let mut told = false;
    while let Err(error) = runtime.info().await {
        if !std::mem::replace(&mut told, true) {
            eprintln!("waiting for the container runtime: {error}");
        }
        tokio::time::sleep(RUNTIME_RETRY).await;
    }
}

/// The node's HTTPS server: its own certificate, renewed while it runs. The API server may call, and whom it lets.
fn server(
    env: &Environment,
    pki: &Arc<Pki>,
    authenticator: Arc<Authenticator>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<ServerConfig> {
    let names = Names { dns: vec![env.node_name.clone()], ips: vec![env.node_ip] };
    let rotator =
        Rotator::new(pki.clone(), "kubelet-server", &format!("system:node:{}", env.node_name), names)?;
    let verifier = auth::tls::client_verifier(pki.ca_der())?;
    let tls = auth::tls::server_config(rotator.serving(), verifier)?;
    let cancel = env.cancel.clone();
    tasks.spawn(async move {
        tokio::select! { () = cancel.cancelled() => {}, () = rotator.run() => {} }
    });
    let port = free_port_or(env.options.kubelet_port);
    Ok(ServerConfig {
        listen: SocketAddr::new(env.options.bind_address, port),
        tls,
        // The handshake lets any certificate through; the authenticator judges its chain.
        peer: Arc::new(move |leaf| {
            let user = leaf.and_then(|leaf| authenticator.authenticate_certificate(leaf).ok().flatten());
            match user {
                Some(user) if user.username == API_SERVER_CLIENT => Peer::ApiServer,
                Some(user) => Peer::User(user),
                None => Peer::Nobody,
            }
        }),
    })
}

/// The port, or 0 (any) when another instance on this host has it: the Node object tells which it became.
fn free_port_or(port: u16) -> u16 {
    match std::net::TcpListener::bind(("0.0.0.0", port)) {
        Ok(_) => port,
        Err(_) => 0,
    }
}
