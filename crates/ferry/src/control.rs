//! The control plane: store, identity, registry, API server, and the loops that speak to it in-process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apiserver::Server;
use apiserver::bootstrap::Addresses;
use apiserver::kubelet::KubeletClient;
use auth::pki::{Names, Pki};
use auth::tls::Rotator;
use client::{Client, InProcess};
use meta::UserInfo;
use registry::Registry;
use stdx::{Clock, Random};
use store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{Part, UpOptions};
use crate::paths::Paths;
use crate::reload::Followed;

/// Ports of NodePort Services.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// A running control plane.
pub struct ControlPlane {
    /// The API server.
    pub server: Server,
    /// A client with all rights, in-process.
    pub client: Client,
    /// The cluster's certificates.
    pub pki: Arc<Pki>,
    /// What everything is kept in, to hear of its failure.
    pub disk: Arc<store::disk::DiskStore>,
    /// Where the API server listens.
    pub address: SocketAddr,
    /// Shared caches and clients of the loops.
    pub context: reconcile::Context,
    /// Tasks to wait for at the end.
    pub tasks: tokio::task::JoinSet<()>,
}

/// What the control plane shares with the node.
#[derive(Clone)]
pub struct Environment {
    /// Options.
    pub options: Arc<UpOptions>,
    /// Files.
    pub paths: Paths,
    /// Name of this node.
    pub node_name: String,
    /// Address of this node.
    pub node_ip: IpAddr,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Ends everything.
    pub cancel: CancellationToken,
}

/// The `n`th address of a network.
pub fn nth_address(cidr: &str, n: u32) -> anyhow::Result<IpAddr> {
    let base = cidr.split('/').next().unwrap_or_default();
    let base: Ipv4Addr = base.parse().with_context(|| format!("{cidr} is no IPv4 network"))?;
    Ok(IpAddr::V4(Ipv4Addr::from(u32::from(base) + n)))
}

impl ControlPlane {
    /// Starts everything and returns when the API answers.
    pub async fn start(env: &Environment) -> anyhow::Result<ControlPlane> {
        let options = &env.options;
        let pki = Arc::new(Pki::open_or_create(&env.paths.pki(), env.clock.clone())?);
        let store_path = env.paths.store();
        let opened = tokio::task::spawn_blocking(move || {
            store::disk::DiskStore::open(&store_path, store::disk::Options::default())
        });
        let disk = Arc::new(opened.await?.context("cannot open the store")?);
        let engine: Arc<dyn Store> = disk.clone();
        let measured = store::measured::Measured::new(engine.clone());
        let stored = measured.meters().clone();
        let (store, keyring, encryption) = sealed(env, Arc::new(measured))?;
        let config = registry::Config {
            service_cidr: options.service_cidr.clone(),
            node_ports: NODE_PORTS,
            runtime: registry::RuntimeConfig::parse(&options.runtime_config.join(","))
                .context("--runtime-config")?,
        };
        let registry = Registry::start(store.clone(), &config, env.clock.clone(), env.random.clone()).await?;

        let identity = &options.identity;
        let tokens = crate::identity::tokens(identity, &options.cluster_domain, &pki, env.clock.clone())?;
        let tokens = Arc::new(tokens);
        let front = crate::front::front(env, &pki)?;
        let (authenticator, authentication) =
            crate::identity::authenticator(identity, &pki, &tokens, &registry, &env.clock, front.headers)?;
        let server = Server::new(apiserver::Config {
            authorizers: Vec::new(),
            registry,
            authenticator,
            tokens,
            kubelets: KubeletClient::new(kubelet_tls(&pki)?),
            random: env.random.clone(),
            shutdown: env.cancel.child_token(),
            limits: options.serving.limits(),
            audit: options.serving.audit(&env.clock)?,
            front_proxy: Some(front.proxy),
        });
        server.more_metrics.write().push(Box::new(move |out| stored.render(out)));
        let mut followed: Vec<_> = authentication.into_iter().chain(encryption).collect();
        followed.extend(crate::identity::authorization(identity, &server, &env.clock)?);

        let listener = TcpListener::bind((options.bind_address, options.https_port))
            .await
            .with_context(|| format!("cannot listen on port {}", options.https_port))?;
        let address = listener.local_addr()?;
        let service = nth_address(&options.service_cidr, 1)?;
        let rotator = Rotator::new(pki.clone(), "apiserver", "kube-apiserver", server_names(env, service)?)?;
        let tls = auth::tls::server_config(rotator.serving(), front.clients)?;
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(apiserver::serve::listen(server.clone(), listener, tls));
        for (file, text) in followed {
            let reloads = crate::reload::Reloads::new(file.kind, &env.node_name, &text);
            let shown = reloads.clone();
            server.more_metrics.write().push(Box::new(move |out| shown.render(out)));
            let (cancel, clock) = (env.cancel.clone(), env.clock.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = crate::reload::follow(file, text, reloads, clock) => {}
                }
            });
        }
        let advertise =
            if env.node_ip.is_loopback() { nth_address(&options.cluster_cidr, 1)? } else { env.node_ip };
        let addresses = Addresses { service, advertise, port: address.port() };
        apiserver::bootstrap::run(&server, &addresses)
            .await
            .context("cannot write the cluster's first objects")?;

        let handler_server = server.clone();
        let transport = InProcess::new(Arc::new(move |request| handler_server.handle(request)));
        let admin = UserInfo::authenticated("system:apiserver", &["system:masters"]);
        let client = Client::new(Arc::new(transport), "ferry").as_user(admin);
        let context = reconcile::Context::new(
            client.clone(),
            env.clock.clone(),
            env.random.clone(),
            env.cancel.clone(),
        );
        let mut plane = ControlPlane { server, client, pki, address, disk, context, tasks };
        plane.spawn_loops(env, engine.clone(), rotator);
        if let Some(keyring) = keyring {
            let cancel = env.cancel.clone();
            plane.tasks.spawn(async move {
                tokio::select! { () = cancel.cancelled() => {}, () = keyring.keep(engine) => {} }
            });
        }
        Ok(plane)
    }

    fn spawn_loops(&mut self, env: &Environment, store: Arc<dyn Store>, rotator: Rotator) {
        let cancel = env.cancel.clone();
        let every = env.options.serving.etcd_compaction_interval;
        if !every.is_zero() {
            self.tasks.spawn(async move {
                tokio::select! { () = cancel.cancelled() => {}, () = compact(store, every) => {} }
            });
        }
        let (cancel, kubelets, pki) = (env.cancel.clone(), self.server.kubelets.clone(), self.pki.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = rotate(rotator, kubelets, pki) => {}
            }
        });
        let context = reconcile::Context::new(
            self.client.clone(),
            env.clock.clone(),
            env.random.clone(),
            env.cancel.clone(),
        );
        let queues = context.queues.clone();
        self.server.more_metrics.write().push(Box::new(move |out| queues.render(out)));
        if env.options.enabled(Part::Scheduler) {
            let context = context.clone();
            self.tasks.spawn(async move { scheduler::run(&context).await });
        }
        if env.options.enabled(Part::Controllers) {
            let (pki, tokens) = (self.pki.clone(), self.server.tokens.clone());
            let authority = Arc::new(crate::identity::Authority { pki, tokens });
            let options = controllers::Options {
                root_ca: Some(self.pki.ca_pem().into()),
                signer: Some(authority.clone()),
                tokens: Some(authority),
                local_storage: crate::storage::place(env),
            };
            if options.local_storage.is_some() {
                let client = self.client.clone();
                self.tasks.spawn(async move { crate::storage::publish(&client).await });
            }
            let context = context.clone();
            self.tasks.spawn(async move {
                if let Err(error) = reconcile::run_all(controllers::descriptors(&options), context).await {
                    tracing::warn!(%error, "controllers did not end cleanly");
                }
            });
        }
    }
}

/// A store with encryption, its keys of our own, and the file that is followed.
type SealedStore = (Arc<dyn Store>, Option<encryption::keyring::Keyring>, Option<(Followed, String)>);

/// The store with encryption: as `--encryption-provider-config` says, or with keys of our own, which somebody has
/// to keep fresh. A file may have to be followed.
fn sealed(env: &Environment, engine: Arc<dyn Store>) -> anyhow::Result<SealedStore> {
    let mut file = None;
    let (rules, keyring) = match &env.options.encryption_provider_config {
        Some(path) => {
            let unusable = || format!("cannot use {}", path.display());
            let parse = |text: &str| -> anyhow::Result<encryption::Rules> {
                Ok(encryption::config::parse(serde_saphyr::from_str(text)?)?)
            };
            let text = std::fs::read_to_string(path).with_context(unusable)?;
            let rules = Arc::new(arc_swap::ArcSwap::from_pointee(parse(&text).with_context(unusable)?));
            if env.options.encryption_provider_config_automatic_reload {
                let followed = rules.clone();
                let apply: crate::reload::Apply = Box::new(move |text| {
                    followed.store(Arc::new(parse(text)?));
                    Ok(())
                });
                let followed = Followed { kind: "encryption", path: path.clone(), apply };
                file = Some((followed, text));
            }
            (rules, None)
        }
        None => {
            let path = env.paths.pki().join("encryption.json");
            let ring = encryption::keyring::Keyring::open_or_create(&path, env.clock.clone())?;
            (ring.rules(), Some(ring))
        }
    };
    Ok((Arc::new(encryption::Sealed::new(engine, rules)), keyring, file))
}

/// TLS towards kubelets, with the API server's own client certificate.
fn kubelet_tls(pki: &Pki) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let issued =
        pki.stored_client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", &["system:masters"])?;
    let identity =
        client::tls::KeyPair { certificates: issued.cert_pem.into_bytes(), key: issued.key_pem.into_bytes() };
    let trust = client::tls::Trust::Ca(pki.ca_pem().as_bytes().to_vec());
    Ok(client::tls::client_config(&trust, Some(&identity), &[])?)
}

fn server_names(env: &Environment, service: IpAddr) -> anyhow::Result<Names> {
    let domain = &env.options.cluster_domain;
    let dns =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", env.node_name.as_str()]
            .map(String::from)
            .into_iter()
            .chain([format!("kubernetes.default.svc.{domain}")])
            .collect();
    let gateway = nth_address(&env.options.cluster_cidr, 1)?;
    let mut ips = vec![service, IpAddr::V4(Ipv4Addr::LOCALHOST), gateway];
    for ip in [env.node_ip, env.options.bind_address] {
        if !ip.is_unspecified() && !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    Ok(Names { dns, ips })
}

/// Gives up history that is older than one interval, as long as there is any.
async fn compact(store: Arc<dyn Store>, every: Duration) {
    let mut last = None;
    loop {
        tokio::time::sleep(every).await;
        let Ok(now) = store.revision().await else { return };
        if let Some(then) = last.filter(|then| *then < now)
            && let Err(error) = store.compact(then).await
        {
            tracing::warn!(%error, "compaction failed");
        }
        last = Some(now);
    }
}

/// Renews the serving certificate and the certificate shown to kubelets, each when it is due.
async fn rotate(rotator: Rotator, kubelets: KubeletClient, pki: Arc<Pki>) {
    loop {
        let wait = match rotator.turn() {
            Ok(wait) => wait,
            Err(error) => {
                tracing::error!(%error, "cannot renew the serving certificate");
                Duration::from_secs(60)
            }
        };
        tokio::time::sleep(wait.max(Duration::from_secs(1))).await;
        match kubelet_tls(&pki) {
            Ok(config) => kubelets.replace(config),
            Err(error) => tracing::error!(%error, "cannot renew the certificate shown to kubelets"),
        }
    }
}
