//! The node's half of the runtime: what exists, who is told, and the calls of `cri`.
//!
//! Everything that must outlive this process is on disk or in the shims; [`Runtime::open`] puts the picture
//! together again. In memory there is one [`Sandbox`] per pod and one [`Container`] per container, kept current
//! by one task per shim that reads its events.

mod adopt;
mod connection;
mod edits;
mod hooks;
mod lifecycle;
mod plan;
mod propagation;
mod sandbox;
mod service;
mod stats;
mod streams;
mod teardown;
mod zygote;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use cri::{ContainerEvent, EventKind, NetworkProvider};
use image::ImageStore;
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use stdx::{Clock, Random};
use tokio::sync::{broadcast, watch};

use self::zygote::Zygote;
use crate::cgroup::Cgroups;
use crate::hooks::Hooks;
use crate::seccomp;
use crate::spec::{ContainerRecord, ExitRecord, ProcessSpec};

/// Events kept for a slow listener before it is told to list anew.
const EVENTS_MAX: usize = 4096;

/// How to open the runtime.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's data directory; the runtime's files go to `<data_dir>/run`.
    pub data_dir: PathBuf,
    /// Distinguishes this cluster's cgroups from others on the machine.
    pub cluster_id: String,
    /// Where images come from.
    pub images: Arc<ImageStore>,
    /// Who gives pods their network; without one, pods only have loopback.
    pub network: Option<Arc<dyn NetworkProvider>>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness, for ids.
    pub random: Arc<dyn Random>,
    /// A cgroup v2 tree to use instead of what the machine has by default; for hybrid machines.
    pub cgroup_v2_root: Option<PathBuf>,
    /// The program that calls [`crate::intercept`] first thing: usually `/proc/self/exe`.
    pub self_exe: PathBuf,
    /// Devices of the Container Device Interface.
    pub cdi: cdi::Registry,
}

/// The embedded runtime.
#[derive(Debug)]
pub struct Runtime {
    config: Config,
    run_dir: PathBuf,
    cgroups: Cgroups,
    sandboxes: RwLock<BTreeMap<String, Arc<Sandbox>>>,
    containers: RwLock<BTreeMap<String, Arc<Container>>>,
    events: broadcast::Sender<ContainerEvent>,
    zygote: Zygote,
    /// Compiled default filters by capabilities: most containers share one.
    filters: Mutex<HashMap<Vec<u8>, Arc<[u8]>>>,
    this: Weak<Runtime>,
}

/// What is on disk of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SandboxFile {
    config: cri::PodSandboxConfig,
    /// Nanoseconds since 1970.
    created_at: i64,
    ready: bool,
    network: Option<cri::PodNetwork>,
}

/// A sandbox of this node.
#[derive(Debug)]
struct Sandbox {
    id: String,
    dir: PathBuf,
    state: RwLock<SandboxFile>,
    /// The shim; 0 once it is gone.
    shim_pid: watch::Sender<i32>,
    /// One stop at a time.
    stopping: tokio::sync::Mutex<()>,
}

/// What is on disk of a container, besides its specification.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ContainerFile {
    sandbox_id: String,
    config: cri::ContainerConfig,
    created_at: i64,
    image_id: String,
    image_ref: String,
    cgroup: PathBuf,
    stop_signal: i32,
}

/// A container of this node.
#[derive(Debug)]
struct Container {
    id: String,
    sandbox: Arc<Sandbox>,
    dir: PathBuf,
    file: RwLock<ContainerFile>,
    /// The first process, from which further ones take their settings.
    process: ProcessSpec,
    log_path: PathBuf,
    /// Programs to be run at moments of its life.
    hooks: Arc<Hooks>,
    record: watch::Sender<ContainerRecord>,
    /// Keep the layers of its image and image volumes on disk.
    _images: Vec<image::ImageHold>,
}

impl Sandbox {
    fn uid(&self) -> String {
        self.state.read().config.uid.clone()
    }

    fn is_ready(&self) -> bool {
        self.state.read().ready
    }
}

fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn exit_info(exit: &ExitRecord) -> cri::ExitInfo {
    cri::ExitInfo {
        code: exit.code,
        oom_killed: exit.oom_killed,
        finished_at: timestamp(exit.finished_at),
        reason: exit.reason.clone(),
        message: exit.message.clone(),
    }
}

/// Runs blocking work on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> cri::Result<T> + Send + 'static,
) -> cri::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(cri::Error::Internal { message: format!("runtime task failed: {e}") }),
    }
}

impl Runtime {
    /// Opens the runtime: finds the shims of an earlier process again and takes note of what ended meanwhile.
    pub async fn open(config: Config) -> cri::Result<Arc<Runtime>> {
        let run_dir = config.data_dir.join("run");
        std::fs::create_dir_all(&run_dir).map_err(|e| cri::Error::io("create run directory", e))?;
        // Specifications hold pods' secrets.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&run_dir, private)
            .map_err(|e| cri::Error::io("protect run directory", e))?;
        let run_dir = run_dir.canonicalize().map_err(|e| cri::Error::io("resolve run directory", e))?;
        let cgroups = Cgroups::open_at(config.cgroup_v2_root.as_deref())
            .map_err(|e| cri::Error::Unsupported { message: e.to_string() })?;
        let runtime = Arc::new_cyclic(|this| Runtime {
            zygote: Zygote::new(config.self_exe.clone()),
            config,
            run_dir,
            cgroups,
            sandboxes: RwLock::default(),
            containers: RwLock::default(),
            events: broadcast::channel(EVENTS_MAX).0,
            filters: Mutex::default(),
            this: this.clone(),
        });
        runtime.zygote.warm_up().await.map_err(|e| cri::Error::io("start shim zygote", e))?;
        runtime.adopt().await?;
        Ok(runtime)
    }

    /// The cgroup hierarchies that containers are put into; the kubelet makes pods' cgroups through them.
    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// Top of this cluster's cgroups, `/ferry-<cluster id>`.
    pub fn cgroup_root(&self) -> PathBuf {
        PathBuf::from(format!("/ferry-{}", self.config.cluster_id))
    }

    /// The directory of what a container has changed in its file tree, until it is removed. Whoever takes it away
    /// must do so after the container's end.
    pub fn changes_of(&self, container: &str) -> Option<PathBuf> {
        Some(self.container(container).ok()?.dir.join("upper"))
    }

    fn handle(&self) -> cri::Result<Arc<Runtime>> {
        self.this.upgrade().ok_or_else(|| cri::Error::Internal { message: "the runtime is closed".into() })
    }

    fn now_ns(&self) -> i64 {
        i64::try_from(self.config.clock.now().as_nanosecond()).unwrap_or(i64::MAX)
    }

    /// 64 hexadecimal digits, as containerd's ids.
    fn new_id(&self) -> String {
        (0..4).map(|_| format!("{:016x}", self.config.random.below(u64::MAX))).collect()
    }

    fn sandbox(&self, id: &str) -> cri::Result<Arc<Sandbox>> {
        let found = self.sandboxes.read().get(id).cloned();
        found.ok_or_else(|| cri::Error::SandboxNotFound { id: id.to_owned() })
    }

    fn container(&self, id: &str) -> cri::Result<Arc<Container>> {
        let found = self.containers.read().get(id).cloned();
        found.ok_or_else(|| cri::Error::ContainerNotFound { id: id.to_owned() })
    }

    fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.containers.read().values().filter(|c| c.sandbox.id == sandbox).cloned().collect()
    }

    fn emit(&self, sandbox: &Sandbox, container: Option<&str>, at: Timestamp, kind: EventKind) {
        let event = ContainerEvent {
            sandbox_id: sandbox.id.clone(),
            pod_uid: sandbox.uid(),
            container_id: container.map(str::to_owned),
            at,
            kind,
        };
        // Without listeners there is nobody to miss it.
        let _ = self.events.send(event);
    }

    /// Takes over what a shim says of a container; tells listeners what is new.
    fn observe(&self, container: &Container, record: ContainerRecord) {
        let (mut started, mut ended) = (None, None);
        container.record.send_if_modified(|old| {
            // Reply and event race; neither may undo what the other has told.
            if old.exit.is_some() {
                return false;
            }
            if old.started_at == 0 && record.started_at != 0 {
                started = Some(record.started_at);
            }
            ended = record.exit.clone();
            let changed = *old != record;
            *old = record;
            changed
        });
        if let Some(at) = started {
            self.emit(&container.sandbox, Some(&container.id), timestamp(at), EventKind::ContainerStarted);
        }
        if let Some(exit) = ended {
            let info = exit_info(&exit);
            self.emit(
                &container.sandbox,
                Some(&container.id),
                info.finished_at,
                EventKind::ContainerStopped(info),
            );
        }
    }

    /// The filter of a container, compiled; `None` for none.
    fn filter(
        &self,
        profile: &cri::SeccompProfile,
        capabilities: &[u8],
    ) -> Result<Option<Arc<[u8]>>, String> {
        let has = |name: &str| capabilities.iter().any(|c| crate::capabilities::full_name(*c) == name);
        let compiled = |profile: &seccomp::Profile| {
            let program = seccomp::compile(profile, &has).map_err(|e| e.to_string())?;
            Ok::<Arc<[u8]>, String>(seccomp::encode(&program).into())
        };
        match profile {
            cri::SeccompProfile::Unconfined => Ok(None),
            cri::SeccompProfile::RuntimeDefault => {
                if let Some(known) = self.filters.lock().get(capabilities) {
                    return Ok(Some(known.clone()));
                }
                let filter = compiled(&seccomp::default_profile())?;
                self.filters.lock().insert(capabilities.to_vec(), filter.clone());
                Ok(Some(filter))
            }
            cri::SeccompProfile::Localhost(path) => {
                let bytes = std::fs::read(path).map_err(|e| {
                    format!("cannot load seccomp profile {:?}: {e}", path.display().to_string())
                })?;
                let profile = seccomp::Profile::parse(&bytes).map_err(|e| e.to_string())?;
                compiled(&profile).map(Some)
            }
        }
    }
}

/// A shim that cannot be reached.
fn lost(context: &str) -> impl FnOnce(io::Error) -> cri::Error {
    let context = format!("{context}: shim");
    move |e| cri::Error::io(context, e)
}
