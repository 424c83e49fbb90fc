//! Containers: creating, starting, stopping, removing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri::{ContainerConfig, EventKind};
use image::{ImageStore, ResolvedImage};
use tokio::sync::watch;

use super::plan::{self, Inputs, Plan};
use super::propagation;
use super::sandbox::{hostname_of, tell};
use super::{Container, ContainerFile, Runtime, Sandbox, blocking, hooks, lost};
use crate::hooks::Hooks;
use crate::spec::{
    ContainerRecord, DeviceSpec, ExitRecord, ImageMountSpec, SECCOMP_FILE, SPEC_FILE, write_json,
};
use crate::wire::{Reply, Request};
use cdi::Edits;

use super::edits;

/// File with what the runtime itself knows of a container.
pub(super) const CONTAINER_FILE: &str = "container.json";
/// How long a killed container may take to end; longer means that the kernel holds it (a dead disk).
const KILL_TIMEOUT: Duration = Duration::from_secs(60);
/// How often removing a cgroup is tried: the kernel keeps it busy for moments after its last process.
const CGROUP_ATTEMPTS: u32 = 20;
/// Pause between those attempts.
const CGROUP_PAUSE: Duration = Duration::from_millis(10);
/// Most device nodes given to a privileged container.
const DEVICES_MAX: usize = 4096;

fn config_error(message: impl Into<String>) -> cri::Error {
    cri::Error::CreateContainerConfig { message: message.into() }
}

fn create_error(message: impl std::fmt::Display) -> cri::Error {
    cri::Error::CreateContainer { message: message.to_string() }
}

/// What creation needs besides the configuration, gathered where blocking is allowed.
struct Gathered {
    image: ResolvedImage,
    volumes: Vec<(ImageMountSpec, ResolvedImage)>,
    passwd: String,
    group: String,
    devices: Vec<DeviceSpec>,
}

impl Runtime {
    pub(super) async fn create(&self, sandbox_id: &str, config: ContainerConfig) -> cri::Result<String> {
        let sandbox = self.sandbox(sandbox_id)?;
        if !sandbox.is_ready() {
            let message = format!("sandbox container {sandbox_id:?} is not running");
            return Err(cri::Error::InvalidState { message });
        }
        let (runtime, id) = (self.handle()?, self.new_id());
        let container = blocking(move || {
            let dir = sandbox.dir.join("c").join(&id);
            let made = runtime.create_in(&sandbox, &id, &dir, config);
            if made.is_err() {
                let _ = fs::remove_dir_all(&dir);
            }
            made
        })
        .await?;
        let id = container.id.clone();
        let at = super::timestamp(container.file.read().created_at);
        self.containers.write().insert(id.clone(), container.clone());
        self.emit(&container.sandbox, Some(&id), at, EventKind::ContainerCreated);
        Ok(id)
    }

    fn create_in(
        &self,
        sandbox: &Arc<Sandbox>,
        id: &str,
        dir: &Path,
        config: ContainerConfig,
    ) -> cri::Result<Arc<Container>> {
        let sandbox_config = sandbox.state.read().config.clone();
        let edits = self.config.cdi.edits(&config.cdi_devices).map_err(create_error)?;
        let edited = edits::apply(&config, &edits);
        let gathered = gather(&self.config.images, &edited, &edits)?;
        let parent = match sandbox_config.cgroup_parent.as_str() {
            "" => self.cgroup_root().join(&sandbox.id),
            parent => PathBuf::from(parent),
        };
        let cgroup = parent.join(id);
        let mut plan = plan::plan(Inputs {
            sandbox: &sandbox_config,
            sandbox_dir: &sandbox.dir,
            config: &edited,
            image: &gathered.image.config,
            layers: gathered.image.layers.clone(),
            passwd: &gathered.passwd,
            group: &gathered.group,
            cgroup: cgroup.clone(),
            hostname: &hostname_of(&sandbox_config),
            devices: gathered.devices,
            image_mounts: gathered.volumes.iter().map(|(spec, _)| spec.clone()).collect(),
        })
        .map_err(config_error)?;
        if let Some(missing) = plan.spec.mounts.iter().find(|m| !m.source.exists()) {
            let path = missing.source.display();
            return Err(create_error(format!(
                "failed to stat {path:?}: stat {path}: no such file or directory"
            )));
        }
        check_propagation(&plan)?;
        let annotations = hooks::annotations(&sandbox.id, &sandbox_config, &config);
        plan.spec.hooks = Hooks::of(&edits.hooks, id, dir, annotations);
        let filter = self.filter(&plan.seccomp, &plan.spec.process.capabilities).map_err(config_error)?;
        for name in ["upper", "work", "root"] {
            fs::create_dir_all(dir.join(name)).map_err(|e| create_error(format!("create {name}: {e}")))?;
        }
        if let Some(filter) = filter {
            fs::write(dir.join(SECCOMP_FILE), filter)
                .map_err(|e| create_error(format!("write filter: {e}")))?;
        }
        self.prepare_cgroup(&cgroup, &config, &plan)?;
        let file = ContainerFile {
            sandbox_id: sandbox.id.clone(),
            image_id: gathered.image.id.to_string(),
            image_ref: gathered.image.repo_digest.clone(),
            created_at: self.now_ns(),
            cgroup,
            stop_signal: plan.stop_signal,
            config,
        };
        if !edits.hooks.is_empty() {
            hooks::write_bundle(dir, &plan.spec).map_err(|e| create_error(format!("write bundle: {e}")))?;
        }
        let recorded = write_json(&dir.join(SPEC_FILE), &plan.spec)
            .and_then(|()| write_json(&dir.join(CONTAINER_FILE), &file));
        recorded.map_err(|e| create_error(format!("record container: {e}")))?;
        Ok(Arc::new(Container {
            id: id.to_owned(),
            sandbox: sandbox.clone(),
            dir: dir.to_owned(),
            file: parking_lot::RwLock::new(file),
            process: plan.spec.process,
            log_path: plan.spec.log_path,
            hooks: Arc::new(plan.spec.hooks),
            record: watch::channel(ContainerRecord::default()).0,
            _images: gathered.volumes.into_iter().map(|(_, v)| v.hold).chain([gathered.image.hold]).collect(),
        }))
    }

    fn prepare_cgroup(&self, cgroup: &Path, config: &ContainerConfig, plan: &Plan) -> cri::Result<()> {
        let made = self
            .cgroups
            .create(cgroup)
            .and_then(|()| self.cgroups.apply(cgroup, &config.resources))
            .and_then(|()| self.cgroups.allow_devices(cgroup, plan.device_rules.as_deref()));
        made.map_err(|e| {
            let _ = self.cgroups.remove(cgroup);
            create_error(format!("failed to set up cgroup: {e}"))
        })
    }

    pub(super) async fn start(&self, id: &str) -> cri::Result<()> {
        let container = self.container(id)?;
        {
            let record = container.record.borrow();
            if record.pid != 0 || record.exit.is_some() {
                let state = if record.exit.is_some() { "CONTAINER_EXITED" } else { "CONTAINER_RUNNING" };
                return Err(cri::Error::InvalidState {
                    message: format!("container {id:?} is in {state} state"),
                });
            }
        }
        let reply = hooks::start(&container).await.map_err(lost("start container"))?;
        match reply {
            Reply::Started { record } => {
                let pid = record.pid;
                self.observe(&container, record);
                self.started(&container, pid).await
            }
            Reply::Failed { failure } => {
                let exit = ExitRecord {
                    code: failure.code,
                    oom_killed: false,
                    finished_at: self.now_ns(),
                    reason: "StartError".into(),
                    message: failure.message.clone(),
                };
                self.observe(&container, ContainerRecord { pid: 0, started_at: 0, exit: Some(exit) });
                Err(cri::Error::RunContainer { message: failure.message, exit_code: failure.code })
            }
            other => Err(cri::Error::Internal { message: format!("unexpected answer of shim: {other:?}") }),
        }
    }

    /// What follows when a container's program runs.
    async fn started(&self, container: &Container, pid: i32) -> cri::Result<()> {
        let Err(failure) = hooks::after_start(container, pid).await else { return Ok(()) };
        let request = Request::Fail { container: container.id.clone(), failure: failure.clone() };
        // A shim that is gone has taken the container with it.
        let _ = tell(&container.sandbox.dir, &request).await;
        Self::wait_exit(container, KILL_TIMEOUT).await;
        Err(cri::Error::RunContainer { message: failure.message, exit_code: failure.code })
    }

    /// Waits for the end of a started container, at most `limit`; tells whether it came.
    async fn wait_exit(container: &Container, limit: Duration) -> bool {
        let mut record = container.record.subscribe();
        let ended = record.wait_for(|r| r.exit.is_some());
        tokio::time::timeout(limit, ended).await.is_ok()
    }

    fn is_running(container: &Container) -> bool {
        let record = container.record.borrow();
        record.pid != 0 && record.exit.is_none()
    }

    async fn send_signal(container: &Container, signal: i32) -> cri::Result<()> {
        let request = Request::Signal { container: container.id.clone(), signal };
        match tell(&container.sandbox.dir, &request).await {
            // Its shim went meanwhile, and the container with it.
            Err(_) if !Self::is_running(container) => Ok(()),
            result => result,
        }
    }

    pub(super) async fn stop(&self, id: &str, timeout: Duration) -> cri::Result<()> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        if !Self::is_running(&container) {
            return Ok(());
        }
        if !timeout.is_zero() {
            let signal = container.file.read().stop_signal;
            Self::send_signal(&container, signal).await?;
            if Self::wait_exit(&container, timeout).await {
                return Ok(());
            }
        }
        self.kill_container(&container).await
    }

    pub(super) async fn kill_container(&self, container: &Container) -> cri::Result<()> {
        if !Self::is_running(container) {
            return Ok(());
        }
        Self::send_signal(container, libc::SIGKILL).await?;
        if Self::wait_exit(container, KILL_TIMEOUT).await {
            return Ok(());
        }
        Err(cri::Error::Timeout {
            what: format!("killing container {:?}", container.id),
            after: KILL_TIMEOUT,
        })
    }

    pub(super) async fn remove_container_now(&self, container: &Arc<Container>) -> cri::Result<()> {
        self.kill_container(container).await?;
        if *container.sandbox.shim_pid.borrow() != 0 {
            let forget = Request::Forget { container: container.id.clone() };
            // If the shim has just gone there is nothing to forget.
            let _ = tell(&container.sandbox.dir, &forget).await;
        }
        let cgroup = container.file.read().cgroup.clone();
        self.remove_cgroup(cgroup).await?;
        hooks::stopped(container).await;
        let dir = container.dir.clone();
        blocking(move || super::teardown::remove_directory(&dir)).await?;
        if self.containers.write().remove(&container.id).is_some() {
            let at = self.config.clock.now();
            self.emit(&container.sandbox, Some(&container.id), at, EventKind::ContainerDeleted);
        }
        Ok(())
    }

    pub(super) async fn remove_cgroup(&self, cgroup: PathBuf) -> cri::Result<()> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.cgroups.remove(&cgroup) {
                Ok(()) => return Ok(()),
                Err(e) if attempts >= CGROUP_ATTEMPTS => {
                    return Err(cri::Error::Internal { message: format!("remove cgroup: {e}") });
                }
                Err(_) => {
                    // Strays of a dead shim may still be in it.
                    let _ = self.cgroups.kill(&cgroup);
                    tokio::time::sleep(CGROUP_PAUSE).await;
                }
            }
        }
    }
}

fn check_propagation(plan: &Plan) -> cri::Result<()> {
    let mut volumes =
        plan.spec.mounts.iter().filter(|m| m.propagation != cri::MountPropagation::Private).peekable();
    if volumes.peek().is_none() {
        return Ok(());
    }
    let table =
        fs::read_to_string("/proc/self/mountinfo").map_err(|e| cri::Error::io("read mount table", e))?;
    for volume in volumes {
        let source =
            volume.source.canonicalize().map_err(|e| create_error(format!("resolve volume: {e}")))?;
        propagation::check(&table, &source, volume.propagation)
            .map_err(|message| create_error(format!("failed to generate spec: {message}")))?;
    }
    Ok(())
}

fn gather(images: &ImageStore, config: &ContainerConfig, edits: &Edits) -> cri::Result<Gathered> {
    let image = resolve(images, &config.image)?;
    let mut volumes = Vec::new();
    for mount in &config.mounts {
        let Some(name) = &mount.image else { continue };
        let volume = resolve(images, name)?;
        let spec = ImageMountSpec {
            layers: volume.layers.clone(),
            sub_path: mount.image_sub_path.trim_start_matches('/').into(),
            target: mount.container_path.clone(),
        };
        volumes.push((spec, volume));
    }
    let read = |path: &str| ImageStore::read_text(&image.layers, Path::new(path));
    let (passwd, group) = (read("etc/passwd")?, read("etc/group")?);
    let mut devices = Vec::new();
    if config.security.privileged {
        devices_below(Path::new("/dev"), &mut devices);
    }
    for device in &config.devices {
        let mut spec = device_at(&device.host_path).ok_or_else(|| {
            config_error(format!("{:?} is not a device node", device.host_path.display().to_string()))
        })?;
        spec.path.clone_from(&device.container_path);
        spec.access.clone_from(&device.permissions);
        devices.push(spec);
    }
    for node in &edits.devices {
        devices.push(edits::device(node).map_err(create_error)?);
    }
    Ok(Gathered { volumes, passwd, group, devices, image })
}

fn resolve(images: &ImageStore, name: &str) -> cri::Result<ResolvedImage> {
    images.resolve(name)?.ok_or_else(|| create_error(format!("failed to resolve image {name:?}: not found")))
}

pub(super) fn device_at(path: &Path) -> Option<DeviceSpec> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
    let metadata = fs::metadata(path).ok()?;
    let kind = metadata.file_type();
    (kind.is_block_device() || kind.is_char_device()).then(|| DeviceSpec {
        path: path.to_owned(),
        block: kind.is_block_device(),
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.permissions().mode() & 0o777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: "rwm".to_owned(),
    })
}

/// The node's devices, for privileged containers; terminals and the like are each container's own.
fn devices_below(dir: &Path, found: &mut Vec<DeviceSpec>) {
    const OWN: [&str; 8] = ["pts", "shm", "fd", "mqueue", "console", "ptmx", "core", ".udev"];
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if found.len() >= DEVICES_MAX || OWN.iter().any(|own| entry.file_name() == *own) {
            continue;
        }
        if kind.is_dir() {
            devices_below(&entry.path(), found);
        } else if !kind.is_symlink() {
            found.extend(device_at(&entry.path()));
        }
    }
}
