//! Volumes of drivers in pods: attached, staged, published, and all of that undone.
//!
//! What was published is noted beside the mount, so that a kubelet that starts anew knows whom to ask to undo it.
//! A volume is unstaged when the last note of it on this node is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, CSIVolumeSource, SecretReference};
use api::prelude::*;
use client::Client;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rpc::csi::node_service_capability::rpc::Type;
use rpc::csi::volume_capability::access_mode::Mode;
use rpc::csi::{
    CapacityRange, NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
};
use rpc::tonic;
use serde_json::json;
use stdx::Clock;
use tokio::sync::watch;

use super::request::{self, NOTE, Note};
use super::{CALL_MAX, Driver, Drivers};
use crate::security;
use crate::spec::{self, PodDirs};
use crate::volume::mount;
use crate::volume::token::Tokens;

/// The plugin's name in pods' directories.
const PLUGIN: &str = "kubernetes.io/csi";
/// Longest wait for an attachment before the pod's worker looks around again.
const ATTACH_MAX: Duration = Duration::from_secs(5);
/// How often volumes of drivers that ask for it are published again.
const REPUBLISH: SignedDuration = SignedDuration::from_secs(60);
/// Life of a token when a driver names none, in seconds.
const TOKEN_SECONDS_DEFAULT: i64 = 3600;

/// Makes and unmakes volumes of drivers.
pub struct CsiVolumes {
    client: Client,
    node: String,
    root: PathBuf,
    clock: Arc<dyn Clock>,
    /// The node's drivers.
    pub drivers: Arc<Drivers>,
    /// Volumes that the cluster says are attached here.
    attached: watch::Receiver<BTreeSet<String>>,
    /// Attachable volumes in use here.
    in_use: watch::Sender<BTreeSet<String>>,
    /// Mounts that were published in this life, by target.
    published: Mutex<HashSet<PathBuf>>,
    /// Where volumes were staged in this life.
    staged: Mutex<HashSet<PathBuf>>,
    /// One operation at a time per volume.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// A volume that is ready, and when it has to be looked at again.
pub struct Ready {
    /// Where it is mounted.
    pub path: PathBuf,
    /// When to publish it again.
    pub refresh_at: Option<Timestamp>,
}

/// Asks a driver, with a limit; errors in the words of Go's client.
async fn ask<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, String> {
    match tokio::time::timeout(CALL_MAX, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(request::say(&status)),
        Err(_) => Err("rpc error: code = DeadlineExceeded desc = context deadline exceeded".into()),
    }
}

impl CsiVolumes {
    /// With the node's drivers; `attached` follows the node's status, `in_use` is told what to say there.
    pub fn new(
        client: Client,
        node: &str,
        root: &Path,
        clock: Arc<dyn Clock>,
        attached: watch::Receiver<BTreeSet<String>>,
        in_use: watch::Sender<BTreeSet<String>>,
    ) -> Self {
        CsiVolumes {
            drivers: Arc::new(Drivers::new(client.clone(), node)),
            client,
            node: node.to_owned(),
            root: root.to_owned(),
            clock,
            attached,
            in_use,
            published: Mutex::default(),
            staged: Mutex::default(),
            locks: Mutex::default(),
        }
    }

    async fn lock(&self, driver: &str, handle: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock();
            // Those that nobody holds or waits for any more.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(request::unique_name(driver, handle)).or_default().clone()
        };
        lock.lock_owned().await
    }

    fn driver(&self, name: &str) -> Result<Driver, String> {
        let found = self.drivers.get(name);
        found.map_err(|why| format!("kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: {why}"))
    }

    /// The driver's object, if it has one.
    async fn object(&self, driver: &str) -> Result<Option<CSIDriver>, String> {
        match self.client.get_typed::<CSIDriver>("", driver).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn secrets(&self, reference: Option<&SecretReference>) -> Result<BTreeMap<String, String>, String> {
        let Some(reference) = reference else { return Ok(BTreeMap::new()) };
        let (namespace, name) = (
            reference.namespace.as_deref().unwrap_or_default(),
            reference.name.as_deref().unwrap_or_default(),
        );
        let found = self.client.get_typed::<Secret>(namespace, name).await;
        let found =
            found.map_err(|e| format!("fetching NodePublishSecretRef {namespace}/{name} failed: {e}"))?;
        Ok(request::credentials(&found))
    }

    /// What the driver gets to know of the pod.
    async fn about(
        &self,
        pod: &Pod,
        object: Option<&CSIDriver>,
        ephemeral: bool,
        tokens: &Tokens,
    ) -> Result<BTreeMap<String, String>, String> {
        let Some(spec) = object.map(|o| &o.spec) else { return Ok(BTreeMap::new()) };
        let mut context = BTreeMap::new();
        if spec.pod_info_on_mount == Some(true) {
            context.extend(request::pod_info(pod, ephemeral));
        }
        let mut issued = serde_json::Map::new();
        for wanted in spec.token_requests.iter().flatten() {
            let seconds = wanted.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT);
            let token = tokens.get(pod, &wanted.audience, seconds).await;
            let token = token.map_err(|error| format!("failed to fetch token: {error}"))?;
            let status = json!({"token": token.text, "expirationTimestamp": Time(token.expires_at)});
            issued.insert(wanted.audience.clone(), status);
        }
        if !issued.is_empty() {
            let text = serde_json::Value::Object(issued).to_string();
            context.insert("csi.storage.k8s.io/serviceAccount.tokens".into(), text);
        }
        Ok(context)
    }

    /// Waits until the volume is attached; what the attacher has to say comes back.
    async fn attachment(
        &self,
        volume: &str,
        source: &CSIPersistentVolumeSource,
    ) -> Result<BTreeMap<String, String>, String> {
        let unique = request::unique_name(&source.driver, &source.volume_handle);
        // Said before anything is done with it: it is not to be detached from now on.
        self.in_use.send_if_modified(|all| all.insert(unique.clone()));
        let mut attached = self.attached.clone();
        let wait = attached.wait_for(|all| all.contains(&unique));
        if !matches!(tokio::time::timeout(ATTACH_MAX, wait).await, Ok(Ok(_))) {
            return Err(format!(
                "volume {volume:?} is not attached to the node yet: timed out waiting for external-attacher of {} CSI driver to attach volume {}",
                source.driver, source.volume_handle
            ));
        }
        let name = request::attachment(&source.volume_handle, &source.driver, &self.node);
        let found =
            self.client.get_typed::<VolumeAttachment>("", &name).await.map_err(|error| error.to_string())?;
        let status = found.status.unwrap_or_default();
        match status.attached {
            true => Ok(status.attachment_metadata.unwrap_or_default()),
            false => Err(format!("attachment {name} of volume {volume:?} is not attached")),
        }
    }

    /// Makes a claim's volume ready for a pod.
    pub async fn set_up(
        &self,
        pod: &Pod,
        dirs: &PodDirs,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
        read_only: bool,
        tokens: &Tokens,
    ) -> Result<Ready, String> {
        let spec = volume.spec.clone().unwrap_or_default();
        let Some(source) = &spec.csi else { return Err("volume source not found in volume.Spec".into()) };
        if spec.volume_mode.as_deref() == Some("Block") {
            return Err("volumes of mode Block are not supported on this node".into());
        }
        let target = dirs.volume(PLUGIN, volume.name()).join("mount");
        let object = self.object(&source.driver).await?;
        let republish = object.as_ref().is_some_and(|o| o.spec.requires_republish == Some(true));
        let refresh_at = republish.then(|| self.clock.now() + REPUBLISH);
        let _one = self.lock(&source.driver, &source.volume_handle).await;
        if !republish && self.published.lock().contains(&target) {
            return Ok(Ready { path: target, refresh_at });
        }
        let driver = self.driver(&source.driver)?;
        let attach = object.as_ref().is_none_or(|o| o.spec.attach_required != Some(false));
        let publish_context =
            if attach { self.attachment(volume.name(), source).await? } else { BTreeMap::new() };
        let fs_type = source.fs_type.clone().unwrap_or_default();
        let group = security::fs_group(pod);
        let capability = request::capability(&spec, &fs_type, &driver, group);
        let read_only = read_only || source.read_only == Some(true);
        self.note(&target, volume.name(), &source.driver, &source.volume_handle, "Persistent")?;
        let mut staging = PathBuf::new();
        if driver.can(Type::StageUnstageVolume) {
            staging = request::staging(&self.root, &source.driver, &source.volume_handle);
            let staged = self.stage(&driver, source, &staging, &publish_context, &capability).await;
            staged.map_err(|error| {
                format!("MountVolume.MountDevice failed for volume {:?} : {error}", volume.name())
            })?;
        }
        let mut volume_context = source.volume_attributes.clone().unwrap_or_default();
        volume_context.extend(self.about(pod, object.as_ref(), false, tokens).await?);
        let publish = NodePublishVolumeRequest {
            volume_id: source.volume_handle.clone(),
            publish_context,
            staging_target_path: staging.display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some(capability.clone()),
            readonly: read_only,
            secrets: self.secrets(source.node_publish_secret_ref.as_ref()).await?,
            volume_context,
        };
        ask(driver.node().node_publish_volume(publish)).await?;
        let policy = object.as_ref().and_then(|o| o.spec.fs_group_policy.as_deref());
        if let Some(group) = group.filter(|_| !driver.can(Type::VolumeMountGroup))
            && request::gives_group(policy, &fs_type, spec.access_modes.as_deref(), read_only)
        {
            let context = spec::spec(pod).security_context.clone().unwrap_or_default();
            let lazy = context.fs_group_change_policy.as_deref() == Some("OnRootMismatch");
            let given = mount::set_group(&target, group, lazy);
            given.map_err(|e| format!("applyFSGroup failed for vol {}: {e}", source.volume_handle))?;
        }
        if driver.can(Type::ExpandVolume) {
            let path = target.display().to_string();
            self.expand(&driver, source, volume, claim, (&path, &staging), capability).await?;
        }
        self.published.lock().insert(target.clone());
        Ok(Ready { path: target, refresh_at })
    }

    /// Stages a volume, once for all pods.
    async fn stage(
        &self,
        driver: &Driver,
        source: &CSIPersistentVolumeSource,
        staging: &Path,
        publish_context: &BTreeMap<String, String>,
        capability: &rpc::csi::VolumeCapability,
    ) -> Result<(), String> {
        if self.staged.lock().contains(staging) {
            return Ok(());
        }
        fs::create_dir_all(staging).map_err(|error| error.to_string())?;
        let stage = NodeStageVolumeRequest {
            volume_id: source.volume_handle.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(capability.clone()),
            secrets: self.secrets(source.node_stage_secret_ref.as_ref()).await?,
            volume_context: source.volume_attributes.clone().unwrap_or_default(),
        };
        ask(driver.node().node_stage_volume(stage)).await?;
        self.staged.lock().insert(staging.to_owned());
        Ok(())
    }

    /// Lets the driver make a file system as large as its volume has become.
    async fn expand(
        &self,
        driver: &Driver,
        source: &CSIPersistentVolumeSource,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
        (path, staging): (&str, &Path),
        capability: rpc::csi::VolumeCapability,
    ) -> Result<(), String> {
        let status = claim.status.clone().unwrap_or_default();
        let pending = |c: &api::k8s_openapi::api::core::v1::PersistentVolumeClaimCondition| {
            c.type_ == "FileSystemResizePending" && c.status == "True"
        };
        let capacity = volume.spec.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage"));
        let Some(capacity) = capacity.filter(|_| status.conditions.iter().flatten().any(pending)) else {
            return Ok(());
        };
        let expand = NodeExpandVolumeRequest {
            volume_id: source.volume_handle.clone(),
            volume_path: path.to_owned(),
            capacity_range: Some(CapacityRange {
                required_bytes: volumes::quantity(capacity).value(),
                ..CapacityRange::default()
            }),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(capability),
            secrets: self.secrets(source.node_expand_secret_ref.as_ref()).await?,
        };
        let expanded = ask(driver.node().node_expand_volume(expand)).await;
        expanded.map_err(|error| {
            format!("MountVolume.resizeFileSystem failed for volume {:?}: {error}", volume.name())
        })?;
        let mut grown = claim.clone();
        let status = grown.status.get_or_insert_default();
        status.capacity.get_or_insert_default().insert("storage".into(), capacity.clone());
        status.conditions = None;
        status.allocated_resource_statuses = None;
        self.client.update_status_typed(&grown).await.map_err(|error| error.to_string()).map(drop)
    }

    /// Makes a volume that lives with its pod.
    pub async fn set_up_ephemeral(
        &self,
        pod: &Pod,
        dirs: &PodDirs,
        name: &str,
        source: &CSIVolumeSource,
        tokens: &Tokens,
    ) -> Result<Ready, String> {
        let target = dirs.volume(PLUGIN, name).join("mount");
        let handle = request::ephemeral_handle(pod, name);
        let object = self.object(&source.driver).await?;
        let modes = object.as_ref().and_then(|o| o.spec.volume_lifecycle_modes.clone());
        let modes = modes.unwrap_or_else(|| vec!["Persistent".into()]);
        if !modes.iter().any(|mode| mode == "Ephemeral") {
            return Err(format!(
                "kubernetes.io/csi: mounter.SetUpAt failed to check volume lifecycle mode: volume mode \"Ephemeral\" not supported by driver {} (only supports {modes:?})",
                source.driver
            ));
        }
        let republish = object.as_ref().is_some_and(|o| o.spec.requires_republish == Some(true));
        let refresh_at = republish.then(|| self.clock.now() + REPUBLISH);
        let _one = self.lock(&source.driver, &handle).await;
        if !republish && self.published.lock().contains(&target) {
            return Ok(Ready { path: target, refresh_at });
        }
        let driver = self.driver(&source.driver)?;
        self.note(&target, name, &source.driver, &handle, "Ephemeral")?;
        let secret = source.node_publish_secret_ref.as_ref().map(|r| SecretReference {
            name: Some(r.name.clone()),
            namespace: Some(pod.namespace().to_owned()),
        });
        let fs_type = source.fs_type.clone().unwrap_or_default();
        let group = security::fs_group(pod);
        let read_only = source.read_only == Some(true);
        let mut volume_context = source.volume_attributes.clone().unwrap_or_default();
        volume_context.extend(self.about(pod, object.as_ref(), true, tokens).await?);
        let told = group.filter(|_| driver.can(Type::VolumeMountGroup));
        let publish = NodePublishVolumeRequest {
            volume_id: handle,
            target_path: target.display().to_string(),
            volume_capability: Some(request::mounted(Mode::SingleNodeWriter, &fs_type, Vec::new(), told)),
            readonly: read_only,
            secrets: self.secrets(secret.as_ref()).await?,
            volume_context,
            ..NodePublishVolumeRequest::default()
        };
        ask(driver.node().node_publish_volume(publish)).await?;
        let policy = object.as_ref().and_then(|o| o.spec.fs_group_policy.as_deref());
        if let Some(group) = group.filter(|_| policy == Some("File") && !read_only && told.is_none()) {
            mount::set_group(&target, group, false).map_err(|error| error.to_string())?;
        }
        self.published.lock().insert(target.clone());
        Ok(Ready { path: target, refresh_at })
    }

    /// Remembers what is about to be published.
    fn note(
        &self,
        target: &Path,
        volume: &str,
        driver: &str,
        handle: &str,
        mode: &str,
    ) -> Result<(), String> {
        let Some(parent) = target.parent() else { return Ok(()) };
        let note = Note {
            driver_name: driver.to_owned(),
            volume_handle: handle.to_owned(),
            spec_volume: volume.to_owned(),
            volume_lifecycle_mode: mode.to_owned(),
        };
        let text = serde_json::to_string(&note).map_err(|error| error.to_string())?;
        let written = fs::create_dir_all(parent).and_then(|()| fs::write(parent.join(NOTE), text));
        written.map_err(|error| format!("failed to save volume info data: {error}"))
    }

    /// Takes everything away that was published for a pod.
    pub async fn tear_down(&self, dirs: &PodDirs) -> Result<(), String> {
        for (directory, note) in notes(dirs) {
            self.unpublish(&directory, &note).await?;
        }
        Ok(())
    }

    async fn unpublish(&self, directory: &Path, note: &Note) -> Result<(), String> {
        let target = directory.join("mount");
        let _one = self.lock(&note.driver_name, &note.volume_handle).await;
        let failed = |error: String| {
            format!("UnmountVolume.TearDown failed for volume {:?} : {error}", note.spec_volume)
        };
        let driver = self.drivers.get(&note.driver_name).map_err(failed)?;
        let unpublish = NodeUnpublishVolumeRequest {
            volume_id: note.volume_handle.clone(),
            target_path: target.display().to_string(),
        };
        ask(driver.node().node_unpublish_volume(unpublish)).await.map_err(failed)?;
        self.published.lock().remove(&target);
        let persistent = note.volume_lifecycle_mode == "Persistent";
        let last = persistent && !self.is_noted_elsewhere(directory, note);
        if last && driver.can(Type::StageUnstageVolume) {
            let staging = request::staging(&self.root, &note.driver_name, &note.volume_handle);
            let unstage = NodeUnstageVolumeRequest {
                volume_id: note.volume_handle.clone(),
                staging_target_path: staging.display().to_string(),
            };
            let failed =
                |error: String| format!("UnmountDevice failed for volume {:?} : {error}", note.spec_volume);
            ask(driver.node().node_unstage_volume(unstage)).await.map_err(failed)?;
            self.staged.lock().remove(&staging);
            if let Some(own) = staging.parent() {
                // What is still mounted there is not ours to remove.
                let _ = fs::remove_dir(&staging);
                let _ = fs::remove_dir(own);
            }
        }
        fs::remove_file(directory.join(NOTE)).map_err(|error| failed(error.to_string()))?;
        // The driver may have removed the directory, as the protocol lets it.
        let _ = fs::remove_dir(&target);
        if last {
            let unique = request::unique_name(&note.driver_name, &note.volume_handle);
            self.in_use.send_if_modified(|all| all.remove(&unique));
        }
        Ok(())
    }

    /// Whether another pod here has the volume.
    fn is_noted_elsewhere(&self, own: &Path, note: &Note) -> bool {
        all_notes(&self.root).into_iter().any(|(directory, other)| {
            directory != own
                && other.driver_name == note.driver_name
                && other.volume_handle == note.volume_handle
        })
    }

    /// What an earlier life of this kubelet published and not yet took away: it is in use.
    pub fn reconstruct(&self) {
        let persistent =
            all_notes(&self.root).into_iter().filter(|(_, n)| n.volume_lifecycle_mode == "Persistent");
        let names: BTreeSet<String> =
            persistent.map(|(_, n)| request::unique_name(&n.driver_name, &n.volume_handle)).collect();
        self.in_use.send_if_modified(|all| {
            all.extend(names);
            !all.is_empty()
        });
    }
}

/// The notes of a pod, with the directories they are in.
fn notes(dirs: &PodDirs) -> Vec<(PathBuf, Note)> {
    let below = dirs.volume(PLUGIN, "");
    let entries = fs::read_dir(below).into_iter().flatten().flatten();
    let read = |directory: PathBuf| {
        let text = fs::read_to_string(directory.join(NOTE)).ok()?;
        match serde_json::from_str(&text) {
            Ok(note) => Some((directory, note)),
            Err(error) => {
                tracing::warn!(directory = %directory.display(), %error, "the note of a volume is damaged");
                None
            }
        }
    };
    entries.map(|entry| entry.path()).filter_map(read).collect()
}

/// The notes of all pods.
fn all_notes(root: &Path) -> Vec<(PathBuf, Note)> {
    let pods = fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    pods.flat_map(|pod| notes(&PodDirs { root: pod.path(), logs: PathBuf::new() })).collect()
}
