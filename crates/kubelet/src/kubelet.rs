//! The kubelet as a whole: wires the parts, feeds pods to their workers, cleans up what nobody wants.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use client::{Client, Patch};
use cri::{EventKind, ImageService, RuntimeService};
use futures_util::StreamExt;
use parking_lot::Mutex;
use reconcile::{Event, EventSink, EventType, Informer, Informers, Scope};
use serde_json::json;
use stdx::{Clock, Random};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, Desired, Workers};
use crate::config::Config;
use crate::csi::volume::CsiVolumes;
use crate::dra::plugins::{Drivers, Registrar};
use crate::images::Images;
use crate::node::machine::Machine;
use crate::node::{lease, register};
use crate::orphans;
use crate::plugins::{self, Handlers};
use crate::pulled::Pulled;
use crate::references::{Changed, References};
use crate::server::Server;
use crate::volume::certificate::Certificates;
use crate::volume::trust::TrustBundles;
use crate::volume::{self, Volumes};
use crate::worker;

/// Pauses between tries to report the volumes in use.
const REPORT_RETRY: stdx::Backoff =
    stdx::Backoff { initial: Duration::from_millis(500), max: Duration::from_secs(30) };

/// The kubelet could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory could not be made.
    #[error("cannot make {path}: {source}")]
    Directory {
        /// The directory.
        path: std::path::PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The node's server could not be bound.
    #[error("cannot listen for the API server: {0}")]
    Listen(#[source] std::io::Error),
    /// Resources cannot be aligned on this machine.
    #[error("{0}")]
    Topology(String),
    /// The runtime does not answer.
    #[error("the container runtime does not answer: {0}")]
    Runtime(#[from] cri::Error),
}

/// A node agent.
pub struct Kubelet {
    config: Config,
    client: Client,
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    streaming: Option<streaming::Handler>,
    shutdown: crate::shutdown::Signal,
}

impl Kubelet {
    /// An agent for the node that `config` names, speaking to the API server as `client` (whose identity
    /// should be the node's, `system:node:NAME`) and to the runtime through `runtime` and `images`.
    pub fn new(
        config: Config,
        client: Client,
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let random = Arc::new(stdx::ThreadRandom);
        Kubelet {
            config,
            client,
            runtime,
            images,
            clock,
            random,
            streaming: None,
            shutdown: Default::default(),
        }
    }

    /// Lets `signal` tell that the machine goes down.
    pub fn with_shutdown(mut self, signal: crate::shutdown::Signal) -> Self {
        self.shutdown = signal;
        self
    }

    /// Lets `handler` answer exec, attach and port-forward.
    pub fn with_streaming(mut self, handler: streaming::Handler) -> Self {
        self.streaming = Some(handler);
        self
    }

    /// Runs the node until `cancel`. Containers go on when it ends.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), Error> {
        for path in [&self.config.root_dir, &self.config.log_dir] {
            let made = std::fs::create_dir_all(path);
            made.map_err(|source| Error::Directory { path: path.clone(), source })?;
        }
        // Ends everything below when this function does, however it does.
        let cancel = cancel.child_token();
        let _guard = cancel.clone().drop_guard();
        let (agent, pods) = self.wire(&cancel).await?;
        limit_pods(&agent);
        agent.images.recover().await;
        agent.recorder.record(
            register::reference(&agent.config.node_name),
            EventType::Normal,
            "Starting",
            "Starting kubelet.",
        );
        let mut port = agent.config.server_port;
        if let Some(config) = agent.config.server.clone() {
            let server =
                Server::bind(config, agent.clone(), self.streaming.clone()).await.map_err(Error::Listen)?;
            port = server.address().map_err(Error::Listen)?.port();
            tokio::spawn(server.serve(cancel.clone()));
        }
        let drivers = agent.volumes.csi.drivers.clone();
        let devices = agent.dra.drivers.clone();
        let directory = agent.config.root_dir.join("plugins_registry");
        let (registered, known) = tokio::sync::oneshot::channel();
        spawn(&cancel, register::keep(agent.clone(), port, registered));
        let (client, name, clock) =
            (agent.client.clone(), agent.config.node_name.clone(), agent.clock.clone());
        spawn(&cancel, async move {
            // The lease is owned by the node, which has to exist first.
            if known.await.is_ok() {
                // So are the drivers of the node.
                if let Err(error) = drivers.publish().await {
                    tracing::warn!(%error, "the CSINode object could not be made");
                }
                // Drivers of devices have to come again, and publish what they have.
                let wiping = devices.clone();
                tokio::spawn(async move { wiping.wipe("").await });
                let handlers: Handlers = [
                    ("CSIPlugin", drivers as Arc<dyn plugins::Handler>),
                    ("DRAPlugin", Arc::new(Registrar(devices))),
                ]
                .into();
                let watch = plugins::watch(directory, Arc::new(handlers));
                tokio::join!(lease::keep(client, name, clock), watch);
            }
        });
        spawn(&cancel, follow_runtime(agent.clone()));
        spawn(&cancel, crate::shutdown::follow(agent.clone(), agent.shutdown.clone()));
        spawn(&cancel, crate::eviction::watch(agent.clone()));
        spawn(&cancel, crate::cpu::follow::keep(agent.clone()));
        tokio::spawn(crate::devices::serve(agent.clone(), cancel.clone()));
        spawn(&cancel, crate::image_gc::keep(agent.clone()));
        let feeding = agent.clone();
        pods.on_event(move |event| {
            let gone = matches!(event, Event::Deleted(_));
            worker::dispatch(&feeding, Desired { pod: event.object().clone(), gone });
        });
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = pods.synced() => {}
        }
        orphans::remove(&agent, &pods).await;
        cancel.cancelled().await;
        Ok(())
    }

    /// Builds the shared parts and the informer of this node's pods.
    async fn wire(&self, cancel: &CancellationToken) -> Result<(Arc<Agent>, Arc<Informer<Pod>>), Error> {
        let info = self.runtime.info().await?;
        let runtime_version = format!("{}://{}", info.name, info.version);
        let informers = Informers::new(self.client.clone(), self.random.clone(), cancel.clone());
        let name = &self.config.node_name;
        let node = informers.get_scoped::<Node>(Scope {
            field_selector: format!("metadata.name={name}"),
            ..Scope::default()
        });
        let pods = informers
            .get_scoped::<Pod>(Scope { field_selector: format!("spec.nodeName={name}"), ..Scope::default() });
        let workers = Arc::new(Workers::default());
        let woken = workers.clone();
        let changed: Changed = Arc::new(move |uid: &str| woken.kick_stale(uid));
        let references = Arc::new(References::new(
            self.client.clone(),
            self.random.clone(),
            changed.clone(),
            cancel.clone(),
        ));
        let numa = crate::numa::read();
        if let Some(problem) =
            crate::topology::too_large(self.config.topology_policy, &numa, self.config.numa_nodes_max)
        {
            return Err(Error::Topology(problem));
        }
        let counters = Arc::new(crate::counters::Counters::default());
        let runtime = Arc::new(crate::measured::Measured::new(self.runtime.clone(), counters.clone()));
        let woken = workers.clone();
        let drivers = Arc::new(Drivers::new(self.client.clone(), name, move || woken.retry_all()));
        let sink = EventSink::start(self.clock.clone(), cancel.clone());
        let recorder = sink.recorder(self.client.clone(), "kubelet", name);
        let attachments = follow_attachments(&self.client, name, &node, cancel);
        let (client, clock, root) = (self.client.clone(), self.clock.clone(), &self.config.root_dir);
        let csi = CsiVolumes::new(client, name, root, clock.clone(), recorder.clone(), attachments);
        csi.reconstruct();
        let (client, all) = (self.client.clone(), informers.clone());
        let certificates = Certificates::new(client.clone(), name, clock.clone(), all, changed.clone());
        let volumes = Volumes::new(volume::Parts {
            client,
            root: root.clone(),
            references: references.clone(),
            certificates,
            trust: TrustBundles::new(informers.clone(), changed),
            csi,
            clock,
            counters: counters.clone(),
        });
        let agent = Arc::new(Agent {
            dra: Arc::new(crate::dra::Manager::new(self.client.clone(), root, drivers)),
            runtime_info: info,
            machine: Machine::read(&self.config, &runtime_version),
            recorder,
            volumes,
            images: Images::new(
                self.images.clone(),
                self.clock.clone(),
                self.config.parallel_pulls,
                self.config.credential_providers.clone(),
                counters.clone(),
                Pulled::new(&self.config.root_dir, self.config.image_verification.clone()),
            ),
            services: informers.get::<Service>(),
            config: self.config.clone(),
            client: self.client.clone(),
            runtime,
            clock: self.clock.clone(),
            references,
            node,
            workers,
            admitted: Mutex::default(),
            deferred: Mutex::default(),
            discharged: tokio::sync::Notify::new(),
            changed: tokio::sync::Notify::new(),
            pressure: Mutex::default(),
            images_seen: tokio::sync::Mutex::default(),
            counters: counters.clone(),
            cpus: crate::cpu::Manager::new(&self.config, crate::cpu::read()),
            memory: crate::memory::Manager::new(&self.config, &numa),
            numa,
            ended: Mutex::default(),
            ended_changed: tokio::sync::Notify::new(),
            shutdown: self.shutdown.clone(),
            users: crate::userns::Manager::new(&self.config),
            apportioning: tokio::sync::Mutex::default(),
            gate: crate::server::Gate::default(),
            probes: Mutex::default(),
            rates: crate::server::Rates::default(),
            shared_changed: tokio::sync::Notify::new(),
            devices: Arc::new(crate::devices::Manager::new(
                self.config.device_plugin_dir.clone(),
                self.clock.clone(),
            )),
            swap: crate::swap::Swap::read(self.config.limited_swap),
        });
        Ok((agent, pods))
    }
}

/// Limits the cgroup of all pods to what is kept for them. Where cgroups cannot be made, pods run unlimited.
fn limit_pods(agent: &Agent) {
    let root = &agent.config.cgroup_root;
    if root.is_empty() || !agent.config.enforce_pods {
        return;
    }
    let values = crate::resources::all_pods_values(&agent.machine, &agent.config);
    let path = format!("{root}/kubepods");
    if let Err(error) = crate::cgroup::apply(std::path::Path::new(crate::cgroup::MOUNT), &path, values) {
        tracing::warn!(%error, "the cgroup of all pods could not be set up");
    }
}

/// Runs a task until `cancel`.
fn spawn(cancel: &CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
    let cancel = cancel.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = task => {}
        }
    });
}

/// The volumes that the node's status says are attached, as they change; and the way to say which ones are in use,
/// which is kept in the status by a task.
fn follow_attachments(
    client: &Client,
    name: &str,
    node: &Informer<Node>,
    cancel: &CancellationToken,
) -> (watch::Receiver<BTreeSet<String>>, watch::Sender<BTreeSet<String>>) {
    let (tell, attached) = watch::channel(BTreeSet::new());
    node.on_event(move |event| {
        let listed = event.object().status.as_ref().and_then(|s| s.volumes_attached.clone());
        let names: BTreeSet<String> = listed.unwrap_or_default().into_iter().map(|v| v.name).collect();
        tell.send_if_modified(|known| std::mem::replace(known, names.clone()) != names);
    });
    let (in_use, mut changes) = watch::channel(BTreeSet::new());
    let (client, name) = (client.clone(), name.to_owned());
    spawn(cancel, async move {
        let mut failures = 0;
        while failures > 0 || changes.changed().await.is_ok() {
            let names = changes.borrow_and_update().clone();
            let patch = Patch::Merge(json!({"status": {"volumesInUse": names}}));
            match client.patch(&Node::GVR, "", &name, "status", &patch).await {
                Ok(_) => failures = 0,
                Err(error) => {
                    tracing::warn!(%error, "the volumes in use could not be reported");
                    failures += 1;
                    tokio::time::sleep(REPORT_RETRY.delay(failures)).await;
                }
            }
        }
    });
    (attached, in_use)
}

/// Wakes the worker of whatever pod something happens to.
async fn follow_runtime(agent: Arc<Agent>) {
    let mut events = agent.runtime.events();
    // What happened before this moment was not heard.
    agent.workers.kick_all();
    while let Some(event) = events.next().await {
        match event.kind {
            EventKind::Lagged(_) => agent.workers.kick_all(),
            _ => agent.workers.kick(&event.pod_uid),
        }
    }
}
