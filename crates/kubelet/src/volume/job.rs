//! One volume being made.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use api::k8s_openapi::api::core::v1::{KeyToPath, Volume};
use api::prelude::*;
use jiff::Timestamp;

use super::atomic::{self, Payload};
use super::medium::{self, Medium};
use super::payload::{DEFAULT_MODE, config_map_data, of_data, of_downward, secret_data};
use super::problem::Problem;
use super::{Claimed, Source, Volumes, message, mount, nfs};
use crate::csi::volume::Ready;
use crate::env::Facts;
use crate::security;
use crate::spec::PodDirs;

/// One volume being made.
pub(super) struct Job<'a> {
    pub volumes: &'a Volumes,
    pub pod: &'a Pod,
    pub dirs: &'a PodDirs,
    pub facts: &'a Facts,
    /// A container has it as a device.
    pub as_device: bool,
    /// A container mounts it.
    pub as_mount: bool,
    pub refresh_at: Option<Timestamp>,
    pub claimed: Option<Claimed>,
}

impl Job<'_> {
    /// Makes it; `before` is where it was when it was made last.
    pub(super) async fn make(&mut self, volume: &Volume, before: Option<&Source>) -> Result<Source, Problem> {
        let name = &volume.name;
        if let Some(source) = &volume.persistent_volume_claim {
            let read_only = source.read_only == Some(true);
            return self.claim(name, &source.claim_name, read_only, false, before).await;
        }
        if volume.ephemeral.is_some() {
            let claim = format!("{}-{name}", self.pod.name());
            return self.claim(name, &claim, false, true, before).await;
        }
        if self.as_device {
            let why = format!("volume {name} has volumeMode Filesystem, but is specified in volumeDevices");
            return Err(Problem::Process(why));
        }
        if let Some(source) = &volume.csi {
            let volumes = self.volumes;
            let ready =
                volumes.csi.set_up_ephemeral(self.pod, self.dirs, name, source, &volumes.tokens).await?;
            return Ok(self.ready(ready));
        }
        if let Some(source) = &volume.nfs {
            let target = self.dirs.volume(nfs::PLUGIN, name);
            nfs::mount(&source.server, &source.path, &[], source.read_only == Some(true), &target).await?;
            return Ok(Source::Path(target));
        }
        Ok(self.plain(volume).await?)
    }

    /// Volumes that need nobody else.
    async fn plain(&mut self, volume: &Volume) -> Result<Source, String> {
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
            let payload = self.projected(name, source).await?;
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
        if volume.iscsi.is_some() || volume.fc.is_some() || volume.flex_volume.is_some() {
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

    pub(super) async fn config_map(
        &self,
        name: &str,
        items: &[KeyToPath],
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

    pub(super) async fn secret(
        &self,
        name: &str,
        items: &[KeyToPath],
        mode: i32,
        optional: bool,
    ) -> Result<Payload, String> {
        match self.volumes.references.secret(self.pod, name).await.map_err(message)? {
            Some(object) => of_data("secret", &secret_data(&object), items, mode, optional).map_err(message),
            None if optional => Ok(Payload::new()),
            None => Err(format!("secret {name:?} not found")),
        }
    }

    /// Has the volumes looked at again at a time, if not before.
    pub(super) fn look_again(&mut self, at: Timestamp) {
        self.refresh_at = Some(self.refresh_at.map_or(at, |before| before.min(at)));
    }

    pub(super) fn ready(&mut self, ready: Ready) -> Source {
        if let Some(at) = ready.refresh_at {
            self.look_again(at);
        }
        match ready.device {
            Some(read_only) => Source::Device { path: ready.path, read_only },
            None => Source::Path(ready.path),
        }
    }
}
