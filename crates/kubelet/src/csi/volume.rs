//! Volumes of drivers in pods: attached, staged, published.
//!
//! What was published is noted beside the mount, so that a kubelet that starts anew knows whom to ask to undo it.
//! A volume is unstaged when the last note of it on this node is gone (`undo`).

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
use reconcile::Recorder;
use rpc::csi::node_service_capability::rpc::Type;
use rpc::csi::volume_capability::access_mode::Mode;
use rpc::csi::{NodePublishVolumeRequest, NodeStageVolumeRequest, VolumeCapability};
use rpc::tonic;
use serde_json::json;
use stdx::Clock;
use tokio::sync::watch;

use super::request::{self, NOTE, Note};
use super::{CALL_MAX, Driver, Drivers, PLUGIN};
use crate::security;
use crate::spec::{self, PodDirs};
use crate::volume::problem::Problem;
use crate::volume::token::Tokens;
use crate::volume::{device, mount};

/// Longest wait for an attachment before the pod's worker looks around again.
const ATTACH_MAX: Duration = Duration::from_secs(5);
/// How often volumes of drivers that ask for it are published again.
const REPUBLISH: SignedDuration = SignedDuration::from_secs(60);
/// How often volumes that could grow are looked at: nodes may read single claims, but not watch them.
const GROWTH_LOOK: SignedDuration = SignedDuration::from_secs(60);
/// Life of a token when a driver names none, in seconds.
const TOKEN_SECONDS_DEFAULT: i64 = 3600;
/// gRPC's code for a node that is full.
const RESOURCE_EXHAUSTED: i32 = 8;

/// Makes and unmakes volumes of drivers.
pub struct CsiVolumes {
    pub(super) client: Client,
    pub(super) node: String,
    pub(super) root: PathBuf,
    pub(super) recorder: Recorder,
    clock: Arc<dyn Clock>,
    /// The node's drivers.
    pub drivers: Arc<Drivers>,
    /// Volumes that the cluster says are attached here.
    attached: watch::Receiver<BTreeSet<String>>,
    /// Attachable volumes in use here.
    pub(super) in_use: watch::Sender<BTreeSet<String>>,
    /// Mounts that were published in this life, by target.
    pub(super) published: Mutex<HashSet<PathBuf>>,
    /// Where volumes were staged in this life.
    pub(super) staged: Mutex<HashSet<PathBuf>>,
    /// Staging and unstaging of a volume exclude everything else about it; what pods do with a volume that is staged
    /// does not hold up other pods.
    locks: Mutex<HashMap<String, Arc<tokio::sync::RwLock<()>>>>,
    /// One operation at a time per pod and volume.
    targets: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
}

/// A volume that is ready, and when it has to be looked at again.
pub struct Ready {
    /// Where it is.
    pub path: PathBuf,
    /// It is a device; whether read-only.
    pub device: Option<bool>,
    /// When to look at it again.
    pub refresh_at: Option<Timestamp>,
}

/// A claim's volume that a pod wants.
pub struct Wanted<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its directories.
    pub dirs: &'a PodDirs,
    /// The volume.
    pub volume: &'a PersistentVolume,
    /// Its claim.
    pub claim: &'a PersistentVolumeClaim,
    /// Nobody is to write to it.
    pub read_only: bool,
}

/// What a volume's publishing needs to know.
pub(super) struct Publish<'a> {
    pub wanted: &'a Wanted<'a>,
    pub source: &'a CSIPersistentVolumeSource,
    pub object: Option<&'a CSIDriver>,
    pub driver: &'a Driver,
    pub capability: &'a VolumeCapability,
    pub staging: PathBuf,
    pub target: PathBuf,
    pub block: bool,
}

/// Asks a driver, with a limit; errors in the words of Go's client.
pub(super) async fn ask<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, tonic::Status> {
    match tokio::time::timeout(CALL_MAX, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(tonic::Status::deadline_exceeded("context deadline exceeded")),
    }
}

/// The lock of a key; those that nobody holds or waits for any more are let go.
fn lock_of<K: Eq + std::hash::Hash, L: Default>(locks: &Mutex<HashMap<K, Arc<L>>>, key: K) -> Arc<L> {
    let mut locks = locks.lock();
    locks.retain(|_, lock| Arc::strong_count(lock) > 1);
    locks.entry(key).or_default().clone()
}

impl CsiVolumes {
    /// With the node's drivers; `attached` follows the node's status, `in_use` is told what to say there.
    pub fn new(
        client: Client,
        node: &str,
        root: &Path,
        clock: Arc<dyn Clock>,
        recorder: Recorder,
        (attached, in_use): (watch::Receiver<BTreeSet<String>>, watch::Sender<BTreeSet<String>>),
    ) -> Self {
        CsiVolumes {
            drivers: Arc::new(Drivers::new(client.clone(), node)),
            client,
            node: node.to_owned(),
            root: root.to_owned(),
            recorder,
            clock,
            attached,
            in_use,
            published: Mutex::default(),
            staged: Mutex::default(),
            locks: Mutex::default(),
            targets: Mutex::default(),
        }
    }

    pub(super) fn volume_lock(&self, driver: &str, handle: &str) -> Arc<tokio::sync::RwLock<()>> {
        lock_of(&self.locks, request::unique_name(driver, handle))
    }

    pub(super) async fn target_lock(&self, target: &Path) -> tokio::sync::OwnedMutexGuard<()> {
        lock_of(&self.targets, target.to_owned()).lock_owned().await
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

    pub(super) async fn secrets(
        &self,
        reference: Option<&SecretReference>,
        what: &str,
    ) -> Result<BTreeMap<String, String>, String> {
        let Some(reference) = reference else { return Ok(BTreeMap::new()) };
        let (namespace, name) = (
            reference.namespace.as_deref().unwrap_or_default(),
            reference.name.as_deref().unwrap_or_default(),
        );
        let found = self.client.get_typed::<Secret>(namespace, name).await;
        let found = found.map_err(|e| format!("fetching {what} {namespace}/{name} failed: {e}"))?;
        Ok(request::credentials(&found))
    }

    /// What the driver gets to know of the pod: context, and secrets for drivers that want tokens there.
    async fn about(
        &self,
        pod: &Pod,
        object: Option<&CSIDriver>,
        ephemeral: bool,
        tokens: &Tokens,
    ) -> Result<(BTreeMap<String, String>, BTreeMap<String, String>), String> {
        let (mut context, mut secrets) = (BTreeMap::new(), BTreeMap::new());
        let Some(spec) = object.map(|o| &o.spec) else { return Ok((context, secrets)) };
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
            let to =
                if spec.service_account_token_in_secrets == Some(true) { &mut secrets } else { &mut context };
            to.insert("csi.storage.k8s.io/serviceAccount.tokens".into(), text);
        }
        Ok((context, secrets))
    }

    /// Waits until the volume is attached; what the attacher has to say comes back.
    async fn attachment(
        &self,
        volume: &str,
        source: &CSIPersistentVolumeSource,
    ) -> Result<BTreeMap<String, String>, Problem> {
        let unique = request::unique_name(&source.driver, &source.volume_handle);
        // Said before anything is done with it: it is not to be detached from now on.
        self.in_use.send_if_modified(|all| all.insert(unique.clone()));
        let mut attached = self.attached.clone();
        let wait = attached.wait_for(|all| all.contains(&unique));
        let there = matches!(tokio::time::timeout(ATTACH_MAX, wait).await, Ok(Ok(_)));
        let name = request::attachment(&source.volume_handle, &source.driver, &self.node);
        let found = match self.client.get_typed::<VolumeAttachment>("", &name).await {
            Ok(found) => found,
            Err(_) if !there => return Err(Problem::Unattached),
            Err(error) => return Err(Problem::mount(volume, error)),
        };
        let status = found.status.unwrap_or_default();
        let full = status.attach_error.as_ref().and_then(|e| e.error_code) == Some(RESOURCE_EXHAUSTED);
        match (there && status.attached, full) {
            (true, _) => Ok(status.attachment_metadata.unwrap_or_default()),
            (false, true) => {
                // What the node said of its room was wrong: it is asked again.
                self.drivers.look_again(&source.driver);
                Err(Problem::Exhausted)
            }
            (false, false) => Err(Problem::Unattached),
        }
    }

    /// Makes a claim's volume ready for a pod.
    pub async fn set_up(&self, wanted: &Wanted<'_>, tokens: &Tokens) -> Result<Ready, Problem> {
        let name = wanted.volume.name();
        let failed = |why: String| Problem::mount(name, why);
        let spec = wanted.volume.spec.clone().unwrap_or_default();
        let Some(source) = &spec.csi else {
            return Err(failed("volume source not found in volume.Spec".into()));
        };
        let block = spec.volume_mode.as_deref() == Some("Block");
        let read_only = wanted.read_only || source.read_only == Some(true);
        let target = match block {
            true => request::block_target(&self.root, name, wanted.pod.uid()),
            false => wanted.dirs.volume(PLUGIN, name).join("mount"),
        };
        let object = self.object(&source.driver).await.map_err(failed)?;
        let object = object.as_ref();
        let republish = object.is_some_and(|o| o.spec.requires_republish == Some(true)) && !block;
        let _one = self.target_lock(&target).await;
        let driver = self.driver(&source.driver).map_err(failed)?;
        let grows = driver.can(Type::ExpandVolume);
        let refresh_at = match (republish, grows) {
            (true, _) => Some(self.clock.now() + REPUBLISH),
            (false, true) => Some(self.clock.now() + GROWTH_LOOK),
            (false, false) => None,
        };
        let group = security::fs_group(wanted.pod).filter(|_| !block);
        let fs_type = source.fs_type.clone().unwrap_or_default();
        let capability = request::capability(&spec, &fs_type, &driver, group);
        let staging = match (driver.can(Type::StageUnstageVolume), block) {
            (false, _) => PathBuf::new(),
            (true, true) => request::block_staging(&self.root, name),
            (true, false) => request::staging(&self.root, &source.driver, &source.volume_handle),
        };
        let publish = Publish {
            wanted,
            source,
            object,
            driver: &driver,
            capability: &capability,
            staging,
            target: target.clone(),
            block,
        };
        let ready = || Ready {
            path: if block { wanted.dirs.device(PLUGIN, name) } else { target.clone() },
            device: block.then_some(read_only),
            refresh_at,
        };
        let done = self.published.lock().contains(&target);
        if republish || !done {
            self.publish(&publish, read_only, tokens).await?;
        }
        if grows && let Err(why) = self.expand(&publish).await {
            // A volume that is there is of use as it is.
            tracing::warn!(volume = name, ?why, "a volume could not be made larger");
            if !done {
                return Err(why);
            }
        }
        self.published.lock().insert(target.clone());
        Ok(ready())
    }

    /// Stages where that is to be done, publishes, and gives the volume to the pod's group.
    async fn publish(&self, publish: &Publish<'_>, read_only: bool, tokens: &Tokens) -> Result<(), Problem> {
        let Publish { wanted, source, object, driver, capability, staging, target, block } = publish;
        let (name, pod) = (wanted.volume.name(), wanted.pod);
        let step = if *block { "MapVolume.MapPodDevice" } else { "MountVolume.SetUp" };
        let reason = if *block { "FailedMapVolume" } else { "FailedMount" };
        let failed = |why: String| Problem::during(reason, step, name, why);
        let attach = object.is_none_or(|o| o.spec.attach_required != Some(false));
        let publish_context = if attach { self.attachment(name, source).await? } else { BTreeMap::new() };
        let note = Note::of(source, name, "Persistent");
        let lock = self.volume_lock(&source.driver, &source.volume_handle);
        let _shared = loop {
            let shared = lock.clone().read_owned().await;
            self.note(publish, &note).map_err(failed)?;
            if staging.as_os_str().is_empty() || self.staged.lock().contains(staging) {
                break shared;
            }
            drop(shared);
            let _alone = lock.clone().write_owned().await;
            self.stage(publish, &publish_context).await.map_err(|error| {
                let step = if *block { "MapVolume.SetUpDevice" } else { "MountVolume.MountDevice" };
                Problem::during(reason, step, name, error)
            })?;
        };
        let mut volume_context = source.volume_attributes.clone().unwrap_or_default();
        let (context, token_secrets) = self.about(pod, *object, false, tokens).await.map_err(failed)?;
        volume_context.extend(context);
        let mut secrets = self
            .secrets(source.node_publish_secret_ref.as_ref(), "NodePublishSecretRef")
            .await
            .map_err(failed)?;
        secrets.extend(token_secrets);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|error| failed(error.to_string()))?;
        }
        let asked = NodePublishVolumeRequest {
            volume_id: source.volume_handle.clone(),
            publish_context,
            staging_target_path: staging.display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some((*capability).clone()),
            readonly: read_only,
            secrets,
            volume_context,
        };
        let answer = ask(driver.node().node_publish_volume(asked)).await;
        answer.map_err(|status| failed(request::say(&status)))?;
        if *block {
            let (root, dirs) = (self.root.clone(), wanted.dirs.clone());
            let (volume, uid, from) = (name.to_owned(), pod.uid().to_owned(), target.clone());
            let mapping =
                tokio::task::spawn_blocking(move || device::map(&root, &dirs, PLUGIN, &volume, &uid, &from));
            let mapped = mapping.await.map_err(|e| e.to_string()).and_then(|m| m.map_err(|e| e.to_string()));
            let failed = |why| Problem::during("FailedMapVolume", "MapVolume.MapBlockVolume", name, why);
            return mapped.map(drop).map_err(failed);
        }
        self.give_to_group(publish, read_only).await.map_err(failed)
    }

    async fn give_to_group(&self, publish: &Publish<'_>, read_only: bool) -> Result<(), String> {
        let Publish { wanted, source, object, driver, target, .. } = publish;
        let policy = object.and_then(|o| o.spec.fs_group_policy.as_deref());
        let fs_type = source.fs_type.clone().unwrap_or_default();
        let modes = wanted.volume.spec.as_ref().and_then(|s| s.access_modes.as_deref());
        let group = security::fs_group(wanted.pod)
            .filter(|_| !driver.can(Type::VolumeMountGroup))
            .filter(|_| request::gives_group(policy, &fs_type, modes, read_only));
        let Some(group) = group else { return Ok(()) };
        let context = spec::spec(wanted.pod).security_context.clone().unwrap_or_default();
        let lazy = context.fs_group_change_policy.as_deref() == Some("OnRootMismatch");
        let at = target.clone();
        let giving = tokio::task::spawn_blocking(move || mount::set_group(&at, group, lazy));
        let given = giving.await.map_err(|e| e.to_string())?;
        given.map_err(|e| format!("applyFSGroup failed for vol {}: {e}", source.volume_handle))
    }

    /// Stages a volume, once for all pods. Nobody else may be at it.
    async fn stage(
        &self,
        publish: &Publish<'_>,
        publish_context: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let Publish { source, driver, capability, staging, .. } = publish;
        if self.staged.lock().contains(staging) {
            return Ok(());
        }
        fs::create_dir_all(staging).map_err(|error| error.to_string())?;
        let stage = NodeStageVolumeRequest {
            volume_id: source.volume_handle.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some((*capability).clone()),
            secrets: self.secrets(source.node_stage_secret_ref.as_ref(), "NodeStageSecretRef").await?,
            volume_context: source.volume_attributes.clone().unwrap_or_default(),
        };
        ask(driver.node().node_stage_volume(stage)).await.map_err(|status| request::say(&status))?;
        self.staged.lock().insert(staging.clone());
        Ok(())
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
        let _one = self.target_lock(&target).await;
        if !republish && self.published.lock().contains(&target) {
            return Ok(Ready { path: target, device: None, refresh_at });
        }
        let driver = self.driver(&source.driver)?;
        let note = Note {
            driver_name: source.driver.clone(),
            volume_handle: handle.clone(),
            spec_volume: name.to_owned(),
            volume_lifecycle_mode: "Ephemeral".into(),
        };
        if let Some(parent) = target.parent() {
            write_note(parent, &note)?;
        }
        let secret = source.node_publish_secret_ref.as_ref().map(|r| SecretReference {
            name: Some(r.name.clone()),
            namespace: Some(pod.namespace().to_owned()),
        });
        let fs_type = source.fs_type.clone().unwrap_or_default();
        let group = security::fs_group(pod);
        let read_only = source.read_only == Some(true);
        let mut volume_context = source.volume_attributes.clone().unwrap_or_default();
        let (context, token_secrets) = self.about(pod, object.as_ref(), true, tokens).await?;
        volume_context.extend(context);
        let mut secrets = self.secrets(secret.as_ref(), "NodePublishSecretRef").await?;
        secrets.extend(token_secrets);
        let told = group.filter(|_| driver.can(Type::VolumeMountGroup));
        let publish = NodePublishVolumeRequest {
            volume_id: handle,
            target_path: target.display().to_string(),
            volume_capability: Some(request::mounted(Mode::SingleNodeWriter, &fs_type, Vec::new(), told)),
            readonly: read_only,
            secrets,
            volume_context,
            ..NodePublishVolumeRequest::default()
        };
        ask(driver.node().node_publish_volume(publish)).await.map_err(|status| request::say(&status))?;
        let policy = object.as_ref().and_then(|o| o.spec.fs_group_policy.as_deref());
        if let Some(group) = group.filter(|_| policy == Some("File") && !read_only && told.is_none()) {
            mount::set_group(&target, group, false).map_err(|error| error.to_string())?;
        }
        self.published.lock().insert(target.clone());
        Ok(Ready { path: target, device: None, refresh_at })
    }

    /// Remembers what is about to be published.
    fn note(&self, publish: &Publish<'_>, note: &Note) -> Result<(), String> {
        let name = publish.wanted.volume.name();
        if !publish.block {
            return publish.target.parent().map_or(Ok(()), |parent| write_note(parent, note));
        }
        // Whose it is says the pod's link; what it is says the volume's note.
        write_note(&request::block_data(&self.root, name), note)?;
        let link = publish.wanted.dirs.device(PLUGIN, name);
        let linked = fs::symlink_metadata(&link).is_ok();
        let made = link.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| match linked {
            true => Ok(()),
            false => std::os::unix::fs::symlink(&publish.target, &link),
        });
        made.map_err(|error| format!("failed to save volume info data: {error}"))
    }
}

fn write_note(directory: &Path, note: &Note) -> Result<(), String> {
    let text = serde_json::to_string(note).map_err(|error| error.to_string())?;
    let written = fs::create_dir_all(directory).and_then(|()| fs::write(directory.join(NOTE), text));
    written.map_err(|error| format!("failed to save volume info data: {error}"))
}
