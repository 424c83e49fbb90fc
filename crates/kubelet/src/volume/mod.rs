//! Volumes of pods: made before the sandbox, kept current while the pod runs, taken away at its end.

pub mod atomic;
pub mod medium;
pub mod mount;
pub mod payload;
pub mod token;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::{PersistentVolume, ProjectedVolumeSource, Volume, VolumeProjection};
use api::prelude::*;
use client::Client;
use jiff::Timestamp;
use stdx::Clock;

use self::atomic::{File, Payload};
use self::medium::Medium;
use self::payload::{DEFAULT_MODE, config_map_data, of_data, of_downward, secret_data};
use self::token::Tokens;
use crate::counters::Counters;
use crate::csi::volume::{CsiVolumes, Ready};
use crate::env::Facts;
use crate::references::References;
use crate::security;
use crate::spec::{self, PodDirs};

/// Life of a projected token when the volume names none, in seconds.
const TOKEN_SECONDS_DEFAULT: i64 = 3600;

/// Where a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory or file of the node.
    Path(PathBuf),
    /// The files of an image.
    Image {
        /// Reference.
        reference: String,
        /// Pull policy.
        policy: String,
    },
}

/// A volume could not be made.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {message}")]
pub struct Error {
    /// Name of the volume.
    pub volume: String,
    /// What went wrong.
    pub message: String,
}

/// Volumes of a pod by name.
#[derive(Debug, Clone, Default)]
pub struct Mounted {
    /// Where they are.
    pub sources: HashMap<String, Source>,
    /// When they have to be looked at again although nothing changes: a token is due.
    pub refresh_at: Option<Timestamp>,
}

/// Makes volumes.
pub struct Volumes {
    client: Client,
    references: Arc<References>,
    tokens: Tokens,
    /// Volumes of drivers.
    pub csi: CsiVolumes,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
}

/// One volume being made.
struct Job<'a> {
    volumes: &'a Volumes,
    pod: &'a Pod,
    dirs: &'a PodDirs,
    facts: &'a Facts,
    refresh_at: Option<Timestamp>,
}

impl Volumes {
    /// A maker of volumes.
    pub fn new(
        client: Client,
        references: Arc<References>,
        clock: Arc<dyn Clock>,
        csi: CsiVolumes,
        counters: Arc<Counters>,
    ) -> Self {
        let tokens = Tokens::new(client.clone(), clock.clone());
        Volumes { csi, tokens, client, references, clock, counters }
    }

    /// Makes every volume of a pod, or brings it up to date.
    pub async fn set_up(&self, pod: &Pod, dirs: &PodDirs, facts: &Facts) -> Result<Mounted, Error> {
        let mut mounted = Mounted::default();
        let spec = spec::spec(pod);
        for volume in spec.volumes.iter().flatten() {
            let mut job = Job { volumes: self, pod, dirs, facts, refresh_at: None };
            let began = self.clock.instant();
            let source = job.make(volume).await;
            let took = self.clock.instant().duration_since(began);
            self.counters.mounted(plugin_of(volume), took, source.is_err());
            let source = source.map_err(|message| Error { volume: volume.name.clone(), message })?;
            mounted.sources.insert(volume.name.clone(), source);
            mounted.refresh_at = match (mounted.refresh_at, job.refresh_at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        Ok(mounted)
    }

    /// Has drivers take away what they published for a pod: before anything else of it goes.
    pub async fn unpublish(&self, dirs: &PodDirs) -> Result<(), String> {
        self.csi.tear_down(dirs).await
    }

    /// Takes away what was made for a pod. Blocks.
    pub fn tear_down(&self, pod_uid: &str, dirs: &PodDirs) -> std::io::Result<()> {
        self.references.release(pod_uid);
        self.tokens.release(pod_uid);
        mount::remove_tree(&dirs.root)
    }
}

/// Name of the plugin that makes a volume.
fn plugin_of(volume: &Volume) -> &'static str {
    let sources = [
        (volume.config_map.is_some(), "kubernetes.io/configmap"),
        (volume.secret.is_some(), "kubernetes.io/secret"),
        (volume.downward_api.is_some(), "kubernetes.io/downward-api"),
        (volume.projected.is_some(), "kubernetes.io/projected"),
        (volume.host_path.is_some(), "kubernetes.io/host-path"),
        (volume.image.is_some(), "kubernetes.io/image"),
        (volume.csi.is_some(), "kubernetes.io/csi"),
        (
            volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some(),
            "kubernetes.io/persistent-claim",
        ),
    ];
    sources.into_iter().find(|(is, _)| *is).map_or("kubernetes.io/empty-dir", |(_, name)| name)
}

fn message(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Job<'_> {
    async fn make(&mut self, volume: &Volume) -> Result<Source, String> {
        let name = &volume.name;
        if let Some(source) = &volume.config_map {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            let items = source.items.as_deref().unwrap_or_default();
            let payload = self.config_map(&source.name, items, mode, source.optional == Some(true)).await?;
            return self.write("kubernetes.io/configmap", name, payload, false);
        }
        if let Some(source) = &volume.secret {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            let items = source.items.as_deref().unwrap_or_default();
            let secret = source.secret_name.as_deref().unwrap_or_default();
            let payload = self.secret(secret, items, mode, source.optional == Some(true)).await?;
            return self.write("kubernetes.io/secret", name, payload, true);
        }
        if let Some(source) = &volume.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            let payload = of_downward(self.pod, items, mode, self.facts).map_err(message)?;
            return self.write("kubernetes.io/downward-api", name, payload, true);
        }
        if let Some(source) = &volume.projected {
            let payload = self.projected(source).await?;
            return self.write("kubernetes.io/projected", name, payload, true);
        }
        if let Some(source) = &volume.host_path {
            let path = PathBuf::from(&source.path);
            mount::host_path(&path, source.type_.as_deref().unwrap_or_default())?;
            return Ok(Source::Path(path));
        }
        if let Some(source) = &volume.image {
            let reference = source.reference.clone().unwrap_or_default();
            let policy = source.pull_policy.clone().unwrap_or("IfNotPresent".into());
            return Ok(Source::Image { reference, policy });
        }
        if let Some(source) = &volume.persistent_volume_claim {
            return self.claim(name, &source.claim_name, source.read_only == Some(true)).await;
        }
        if volume.ephemeral.is_some() {
            return self.claim(name, &format!("{}-{name}", self.pod.name()), false).await;
        }
        if let Some(source) = &volume.csi {
            let volumes = self.volumes;
            let ready =
                volumes.csi.set_up_ephemeral(self.pod, self.dirs, name, source, &volumes.tokens).await?;
            return Ok(self.ready(ready));
        }
        if volume.nfs.is_some()
            || volume.iscsi.is_some()
            || volume.fc.is_some()
            || volume.flex_volume.is_some()
        {
            return Err(format!("no volume plugin matched for volume {name:?}"));
        }
        // No source at all is an emptyDir (the API's default).
        let empty = volume.empty_dir.clone().unwrap_or_default();
        self.empty_dir(name, empty.medium.as_deref(), empty.size_limit.as_ref(), empty.mode)
    }

    fn empty_dir(
        &self,
        name: &str,
        medium: Option<&str>,
        limit: Option<&Quantity>,
        mode: Option<i32>,
    ) -> Result<Source, String> {
        let medium = medium::medium(self.pod, medium.unwrap_or_default(), limit, &self.facts.allocatable)?;
        let path = self.dirs.volume("kubernetes.io/empty-dir", name);
        let fresh = !path.exists();
        fs::create_dir_all(&path).map_err(message)?;
        match medium {
            Medium::Disk => {}
            Medium::Memory(bytes) => mount::tmpfs(&path, bytes).map_err(message)?,
            Medium::HugePages(size) => mount::huge_pages(&path, size).map_err(message)?,
        }
        if fresh {
            let mode = mode.map_or(0o777, |mode| mode as u32 & 0o7777);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(message)?;
            if let Some(group) = security::fs_group(self.pod) {
                mount::set_group(&path, group, false).map_err(message)?;
            }
        }
        Ok(Source::Path(path))
    }

    /// Writes files; secret ones never reach a disk where the node can mount memory.
    fn write(&self, plugin: &str, name: &str, payload: Payload, secret: bool) -> Result<Source, String> {
        let path = self.dirs.volume(plugin, name);
        fs::create_dir_all(&path).map_err(message)?;
        if secret && let Err(error) = mount::tmpfs(&path, 0) {
            // Without the privilege to mount, a directory readable by root only has to do.
            tracing::debug!(%error, path = %path.display(), "no memory file system for a secret volume");
        }
        let group = security::fs_group(self.pod);
        let changed = atomic::write(&path, &payload, group, self.volumes.clock.now()).map_err(message)?;
        if changed {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(message)?;
        }
        Ok(Source::Path(path))
    }

    async fn config_map(
        &self,
        name: &str,
        items: &[api::k8s_openapi::api::core::v1::KeyToPath],
        mode: i32,
        optional: bool,
    ) -> Result<Payload, String> {
        match self.volumes.references.config_map(self.pod, name).await.map_err(message)? {
            Some(object) => of_data("config", &config_map_data(&object), items, mode, optional)
                .map_err(|error| format!("configmap {error}")),
            None if optional => Ok(Payload::new()),
            None => Err(format!("configmap {name:?} not found")),
        }
    }

    async fn secret(
        &self,
        name: &str,
        items: &[api::k8s_openapi::api::core::v1::KeyToPath],
        mode: i32,
        optional: bool,
    ) -> Result<Payload, String> {
        match self.volumes.references.secret(self.pod, name).await.map_err(message)? {
            Some(object) => of_data("secret", &secret_data(&object), items, mode, optional).map_err(message),
            None if optional => Ok(Payload::new()),
            None => Err(format!("secret {name:?} not found")),
        }
    }

    async fn projected(&mut self, source: &ProjectedVolumeSource) -> Result<Payload, String> {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let mut payload = Payload::new();
        for part in source.sources.iter().flatten() {
            payload.extend(self.projection(part, mode).await?);
        }
        Ok(payload)
    }

    async fn projection(&mut self, part: &VolumeProjection, mode: i32) -> Result<Payload, String> {
        if let Some(source) = &part.config_map {
            let items = source.items.as_deref().unwrap_or_default();
            return self.config_map(&source.name, items, mode, source.optional == Some(true)).await;
        }
        if let Some(source) = &part.secret {
            let items = source.items.as_deref().unwrap_or_default();
            return self.secret(&source.name, items, mode, source.optional == Some(true)).await;
        }
        if let Some(source) = &part.downward_api {
            return of_downward(self.pod, source.items.as_deref().unwrap_or_default(), mode, self.facts)
                .map_err(message);
        }
        if let Some(source) = &part.service_account_token {
            let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT);
            let audience = source.audience.as_deref().unwrap_or_default();
            let token = self.volumes.tokens.get(self.pod, audience, seconds).await;
            let token = token.map_err(|error| format!("failed to fetch token: {error}"))?;
            self.refresh_at = Some(self.refresh_at.map_or(token.refresh_at, |at| at.min(token.refresh_at)));
            // A token is its owner's only, unless a group or another user has to read it.
            let context = spec::spec(self.pod).security_context.clone().unwrap_or_default();
            let shared = context.fs_group.is_some();
            let mode = if shared { 0o600 } else { token_mode(self.pod, mode) };
            let file = File { content: token.text.into_bytes(), mode };
            return Ok(Payload::from([(source.path.clone(), file)]));
        }
        Err("this kind of projected source is not supported on this node".into())
    }

    fn ready(&mut self, ready: Ready) -> Source {
        if let Some(at) = ready.refresh_at {
            self.refresh_at = Some(self.refresh_at.map_or(at, |before| before.min(at)));
        }
        Source::Path(ready.path)
    }

    /// A claim: bound to a volume that lies on this node.
    async fn claim(&mut self, volume: &str, claim: &str, read_only: bool) -> Result<Source, String> {
        let client = &self.volumes.client;
        let found = client.get_typed::<PersistentVolumeClaim>(self.pod.namespace(), claim).await;
        let found = found.map_err(message)?;
        let bound = found.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let name = found.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|_| bound);
        let Some(name) = name else { return Err(format!("persistentvolumeclaim {claim:?} is not bound")) };
        let persistent = client.get_typed::<PersistentVolume>("", &name).await.map_err(message)?;
        if persistent.spec.as_ref().is_some_and(|spec| spec.csi.is_some()) {
            let volumes = self.volumes;
            let ready = volumes
                .csi
                .set_up(self.pod, self.dirs, &persistent, &found, read_only, &volumes.tokens)
                .await?;
            return Ok(self.ready(ready));
        }
        let source = persistent.spec.unwrap_or_default();
        let path = if let Some(source) = source.host_path {
            mount::host_path(source.path.as_ref(), source.type_.as_deref().unwrap_or_default())?;
            PathBuf::from(source.path)
        } else if let Some(source) = source.local {
            let path = PathBuf::from(source.path);
            mount::host_path(&path, "Directory")?;
            path
        } else {
            return Err(format!(
                "no volume plugin matched for volume {volume:?} of persistent volume {name:?}"
            ));
        };
        if let Some(group) = security::fs_group(self.pod) {
            let context = spec::spec(self.pod).security_context.clone().unwrap_or_default();
            let lazy = context.fs_group_change_policy.as_deref() == Some("OnRootMismatch");
            mount::set_group(&path, group, lazy).map_err(message)?;
        }
        Ok(Source::Path(path))
    }
}

/// Mode of a token without fsGroup: the file is root's, so others may read it only if every container runs
/// as somebody else.
fn token_mode(pod: &Pod, mode: i32) -> u32 {
    let of_pod = spec::spec(pod).security_context.as_ref().and_then(|context| context.run_as_user);
    let as_root = spec::containers(pod).iter().all(|(_, container)| {
        let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
        own.or(of_pod) == Some(0)
    });
    if as_root { 0o600 } else { mode as u32 & 0o777 }
}
