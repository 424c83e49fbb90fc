//! Starting a container: image, environment, mounts, creation, start, postStart hook.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use jiff::{SignedDuration, Timestamp};
use reconcile::EventType;

use super::stop::{run_hook, stop};
use super::{Context, Worker};
use crate::env;
use crate::make::{self, Parts};
use crate::observed::{Observed, Waiting};
use crate::plan::Start;
use crate::security;
use crate::spec::{self, PodDirs, Role};
use crate::volume::payload::{config_map_data, secret_data};
use crate::volume::{Mounted, Source, mount};

/// Wait before a container whose configuration is wrong is tried again; a change of what it refers to
/// wakes the worker sooner.
const CONFIG_RETRY: Duration = Duration::from_secs(10);

/// One container being started.
struct Job {
    context: Context,
    pod: Arc<Pod>,
    start: Start,
    sandbox: cri::PodSandboxStatus,
    mounted: Arc<Mounted>,
    dirs: PodDirs,
    superseded: Vec<String>,
    target: Option<String>,
}

/// Why a container did not start.
struct Failure {
    waiting: Waiting,
    retry_at: Option<Timestamp>,
}

/// ConfigMaps and Secrets that an environment refers to, read beforehand.
#[derive(Default)]
struct Read {
    config_maps: HashMap<String, BTreeMap<String, Vec<u8>>>,
    secrets: HashMap<String, BTreeMap<String, Vec<u8>>>,
}

impl env::Objects for Read {
    fn config_map(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        self.config_maps.get(name).cloned()
    }
    fn secret(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        self.secrets.get(name).cloned()
    }
}

impl Worker {
    /// Starts a container in a task; the worker is woken when it runs or has failed to.
    pub(super) fn spawn_start(&mut self, pod: &Arc<Pod>, observed: &Observed, start: Start) {
        let (Some(sandbox), Some(mounted)) = (observed.ready_sandbox(), &self.mounted) else { return };
        {
            let mut memories = self.context.memories.lock();
            let memory = memories.entry(start.name.clone()).or_default();
            if memory.busy {
                return;
            }
            memory.busy = true;
        }
        let target = spec::ephemeral_target(pod, &start.name)
            .and_then(|target| observed.latest(target))
            .map(|container| container.id.clone());
        let job = Job {
            context: self.context.clone(),
            pod: pod.clone(),
            sandbox: sandbox.clone(),
            mounted: mounted.clone(),
            dirs: self.dirs.clone(),
            superseded: Self::superseded(observed, &start.name),
            target,
            start,
        };
        let key = job.start.name.clone();
        let task = tokio::spawn(job.run());
        self.ops.insert(key, task.abort_handle());
    }
}

impl Job {
    async fn run(self) {
        let outcome = match spec::find(&self.pod, &self.start.name) {
            Some((_, container)) => self.start(&container).await,
            None => Ok(()),
        };
        {
            let mut memories = self.context.memories.lock();
            let memory = memories.entry(self.start.name.clone()).or_default();
            memory.ended();
            match outcome {
                Ok(()) => {
                    memory.waiting = None;
                    memory.retry_at = None;
                }
                Err(failure) => {
                    memory.waiting = Some(failure.waiting);
                    memory.retry_at = failure.retry_at;
                }
            }
        }
        self.context.kick.notify_one();
    }

    fn warn(&self, reason: &str, message: impl Into<String>) {
        let about = spec::container_reference(&self.pod, self.start.role, &self.start.name);
        self.context.agent.recorder.record(about, EventType::Warning, reason, message);
    }

    fn say(&self, reason: &str, message: &str) {
        let about = spec::container_reference(&self.pod, self.start.role, &self.start.name);
        self.context.agent.recorder.record(about, EventType::Normal, reason, message);
    }

    /// A failure that says itself in an event.
    fn failed(&self, reason: &str, message: String, retry: Duration) -> Failure {
        self.warn("Failed", format!("Error: {message}"));
        let retry_at = self.context.agent.clock.now() + SignedDuration::try_from(retry).unwrap_or_default();
        Failure { waiting: Waiting::new(reason, message), retry_at: Some(retry_at) }
    }

    async fn start(&self, container: &Container) -> Result<(), Failure> {
        let agent = self.context.agent.clone();
        let config_error = |message: String| self.failed("CreateContainerConfigError", message, CONFIG_RETRY);
        let secrets = self.pull_secrets().await;
        let image =
            agent.images.ensure(&self.pod, self.start.role, container, &secrets, &agent.recorder).await;
        let image = image
            .map_err(|missing| Failure { waiting: missing.waiting, retry_at: Some(missing.retry_at) })?;
        self.pull_image_volumes(container, &secrets).await?;
        security::check_non_root(&self.pod, container, image.image.uid, &image.image.username)
            .map_err(config_error)?;
        let envs = self.environment(container).await.map_err(config_error)?;
        let sub_paths = self.sub_paths(container, &envs).map_err(config_error)?;
        let message_file = self.message_file().map_err(config_error)?;
        let cpus = agent.cpus.of(self.pod.uid(), &self.start.name);
        let config = make::container(Parts {
            pod: &self.pod,
            role: self.start.role,
            container,
            restart_count: self.start.restart_count,
            envs,
            volumes: &self.mounted.sources,
            sub_paths: &sub_paths,
            message_file,
            target: self.target.clone(),
            dirs: &self.dirs,
            memory_capacity: agent.memory_capacity(),
            seccomp_dir: &agent.config.seccomp_dir,
            recursive_readonly: agent.runtime_info.recursive_readonly_mounts,
            log_rotation: agent.config.log_rotation,
            swap: agent.swap,
            cpus: cpus.clone(),
            memory_nodes: agent.memory.nodes(self.pod.uid(), &self.start.name),
        });
        let mut config = config.map_err(config_error)?;
        let sizes = agent.machine.huge_pages.iter().map(|(size, _)| *size);
        let huge = &mut config.resources.hugepage_limits;
        *huge = crate::resources::huge_page_limits(huge, sizes);
        config.security.namespaces.user_ids = agent.users.of(self.pod.uid());
        agent.devices.fit(self.pod.uid(), &mut config);
        agent.dra.fit(&self.pod, container, &mut config).map_err(config_error)?;
        let ready = agent.devices.before_start(self.pod.uid(), &self.start.name).await;
        ready.map_err(|why| self.failed("PreStartContainerError", why, CONFIG_RETRY))?;
        let kind = match self.start.role {
            Role::Init => "init_container",
            Role::Ephemeral => "ephemeral_container",
            Role::Regular | Role::Sidecar => "container",
        };
        let created = agent.runtime.create_container(&self.sandbox.id, config).await;
        let id = created.map_err(|error| {
            let reason = match error.reason() {
                "CreateContainerConfigError" => "CreateContainerConfigError",
                _ => "CreateContainerError",
            };
            agent.counters.container_started(kind, Some(reason));
            self.failed(reason, error.to_string(), CONFIG_RETRY)
        })?;
        self.say("Created", "Container created");
        if let Some(memory) = self.context.memories.lock().get_mut(&self.start.name) {
            memory.backoff = self.start.backoff;
        }
        if let Err(error) = agent.runtime.start_container(&id).await {
            agent.counters.container_started(kind, Some("RunContainerError"));
            let mut failure = self.failed("RunContainerError", error.to_string(), Duration::ZERO);
            // What is left is a container that has ended: restart policy and back-off decide from here.
            failure.retry_at = None;
            let restarts = spec::spec(&self.pod).restart_policy.as_deref() != Some("Never");
            return if restarts { Err(failure) } else { Ok(()) };
        }
        agent.counters.container_started(kind, None);
        self.say("Started", "Container started");
        if agent.cpus.of(self.pod.uid(), &self.start.name) != cpus {
            agent.shared_changed.notify_one();
        }
        self.prune().await;
        self.post_start(container, &id).await
    }

    /// Removes containers that this one has superseded.
    async fn prune(&self) {
        for id in &self.superseded {
            if let Err(error) = self.context.agent.runtime.remove_container(id).await {
                tracing::debug!(id, %error, "an old container could not be removed");
            }
        }
    }

    async fn post_start(&self, container: &Container, id: &str) -> Result<(), Failure> {
        let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref())
        else {
            return Ok(());
        };
        let host = match spec::spec(&self.pod).host_network {
            Some(true) => self.context.agent.host_ips().first(),
            _ => self.sandbox.ips.first(),
        };
        let host = host.map(|ip| ip.to_string()).unwrap_or_default();
        let Err(error) = run_hook(&self.context, hook, container, id, &host).await else { return Ok(()) };
        tracing::debug!(
            pod = spec::describe(&self.pod),
            container = container.name,
            error,
            "postStart hook failed"
        );
        self.warn("FailedPostStartHook", "PostStartHook failed");
        self.say("Killing", "FailedPostStartHook");
        stop(&self.context, &self.pod, &container.name, id, spec::grace_period_seconds(&self.pod)).await;
        Ok(())
    }

    async fn pull_secrets(&self) -> Vec<Arc<Secret>> {
        let spec = spec::spec(&self.pod);
        let mut secrets = Vec::new();
        for reference in spec.image_pull_secrets.iter().flatten() {
            match self.context.agent.references.secret(&self.pod, &reference.name).await {
                Ok(Some(secret)) => secrets.push(secret),
                Ok(None) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        reference.name
                    );
                    self.context.agent.recorder.warning(
                        &*self.pod,
                        "FailedToRetrieveImagePullSecret",
                        message,
                    );
                }
                Err(error) => tracing::warn!(%error, "a pull secret could not be read"),
            }
        }
        secrets
    }

    /// Image volumes need their images too.
    async fn pull_image_volumes(
        &self,
        container: &Container,
        secrets: &[Arc<Secret>],
    ) -> Result<(), Failure> {
        let agent = &self.context.agent;
        for mount in container.volume_mounts.iter().flatten() {
            let Some(Source::Image { reference, policy }) = self.mounted.sources.get(&mount.name) else {
                continue;
            };
            let stand_in = Container {
                name: container.name.clone(),
                image: Some(reference.clone()),
                image_pull_policy: Some(policy.clone()),
                ..Container::default()
            };
            let pulled =
                agent.images.ensure(&self.pod, self.start.role, &stand_in, secrets, &agent.recorder).await;
            pulled
                .map_err(|missing| Failure { waiting: missing.waiting, retry_at: Some(missing.retry_at) })?;
        }
        Ok(())
    }

    async fn environment(&self, container: &Container) -> Result<Vec<cri::EnvVar>, String> {
        let agent = &self.context.agent;
        let mut read = Read::default();
        let mut maps: Vec<&str> = Vec::new();
        let mut secrets: Vec<&str> = Vec::new();
        for from in container.env_from.iter().flatten() {
            maps.extend(from.config_map_ref.as_ref().map(|reference| reference.name.as_str()));
            secrets.extend(from.secret_ref.as_ref().map(|reference| reference.name.as_str()));
        }
        for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            maps.extend(source.config_map_key_ref.as_ref().map(|selector| selector.name.as_str()));
            secrets.extend(source.secret_key_ref.as_ref().map(|selector| selector.name.as_str()));
        }
        for name in maps {
            let found =
                agent.references.config_map(&self.pod, name).await.map_err(|error| error.to_string())?;
            read.config_maps.extend(found.map(|object| (name.to_owned(), config_map_data(&object))));
        }
        for name in secrets {
            let found = agent.references.secret(&self.pod, name).await.map_err(|error| error.to_string())?;
            read.secrets.extend(found.map(|object| (name.to_owned(), secret_data(&object))));
        }
        agent.services.synced().await;
        let links = spec::spec(&self.pod).enable_service_links.unwrap_or(true);
        let services = env::service_variables(&agent.services.store().list(), self.pod.namespace(), links);
        let facts = agent.facts(self.sandbox.ips.clone());
        env::environment(&self.pod, container, &services, &facts, &read).map_err(|error| error.to_string())
    }

    /// Bind-mounts the parts of volumes that mounts name.
    fn sub_paths(
        &self,
        container: &Container,
        envs: &[cri::EnvVar],
    ) -> Result<HashMap<usize, PathBuf>, String> {
        let mut made = HashMap::new();
        for (index, wanted) in container.volume_mounts.iter().flatten().enumerate() {
            let Some(part) = make::sub_path(wanted, envs) else { continue };
            let Some(Source::Path(volume)) = self.mounted.sources.get(&wanted.name) else { continue };
            let below = PathBuf::from(&part);
            let escapes =
                below.is_absolute() || below.components().any(|c| c == std::path::Component::ParentDir);
            if escapes {
                return Err(format!("subPath {part:?} must stay within the volume"));
            }
            let target = self.dirs.root.join("volume-subpaths").join(&wanted.name).join(&container.name);
            let target = target.join(format!("{index}-{}", self.start.restart_count));
            mount::bind_sub_path(volume, &part, &target).map_err(|error| {
                format!(
                    "failed to prepare subPath for volumeMount {:?} of container {:?}: {error}",
                    wanted.name, container.name
                )
            })?;
            made.insert(index, target);
        }
        Ok(made)
    }

    /// The file a container writes its last words to; world-writable, as any user may be the container's.
    fn message_file(&self) -> Result<PathBuf, String> {
        use std::os::unix::fs::PermissionsExt;
        let directory = self.dirs.container(&self.start.name);
        let path = directory.join(format!("message-{}", self.start.restart_count));
        let make = || -> std::io::Result<()> {
            std::fs::create_dir_all(&directory)?;
            std::fs::create_dir_all(self.dirs.logs.join(&self.start.name))?;
            std::fs::write(&path, "")?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))
        };
        make().map_err(|error| format!("error making termination message file: {error}"))?;
        Ok(path)
    }
}
