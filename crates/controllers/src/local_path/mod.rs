//! The provisioner `local.ferry.dev`: volumes that are directories of this node's disk, for the class `local-path`.
//!
//! Flow: a claim that names this provisioner and this node -> a directory -> a volume bound to the claim, usable from
//! this node only. A claim that asks for more gets it; a released volume goes with its directory. A claim whose
//! source is another one starts with a copy of that one's files.
//!
//! Sizes are what claims asked for. They are enforced where the file system has project quotas, and by the length of
//! the file behind a volume of mode Block; an annotation of the volume says whether they are.

mod files;
pub mod plan;
mod quota;
pub mod snapshots;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams, Patch};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, Recorder, Scope, WorkQueue,
};
use serde_json::json;
use volumes::{LOCAL_PROVISIONER, annotated, annotation};

use crate::persistentvolume::expand::wants_more;
use crate::persistentvolume::is_asked;
use crate::snapshot::objects::{CONTENTS, Dynamic, SNAPSHOTS};
use crate::snapshot::plan::is_for;

const NAME: &str = "local-path-provisioner";
const WORKERS: usize = 4;
const CLAIM: &str = "claim:";
const VOLUME: &str = "volume:";

/// Annotation of a volume: whether its size is enforced, or why not.
const SIZE_ENFORCED: &str = "local.ferry.dev/size-enforced";

/// Where volumes are made.
#[derive(Debug, Clone)]
pub struct Place {
    /// Directory of the volumes' directories.
    pub root: PathBuf,
    /// The node whose disk that is.
    pub node: String,
}

/// The row of the provisioner.
pub fn descriptor(place: Place) -> Descriptor {
    Descriptor::new(NAME, move |context| build(context, place.clone()))
}

struct Loop {
    client: Client,
    recorder: Recorder,
    place: Place,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
    nodes: Arc<Informer<Node>>,
    snapshots: Arc<Informer<Dynamic>>,
    contents: Arc<Informer<Dynamic>>,
}

fn is_ours(volume: &PersistentVolume) -> bool {
    annotated(&volume.metadata, annotation::PROVISIONED_BY) == Some(LOCAL_PROVISIONER)
}

fn build(context: &Context, place: Place) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.events.recorder(context.client_of(NAME), LOCAL_PROVISIONER, ""),
        place,
        claims: context.informers.get::<PersistentVolumeClaim>(),
        volumes: context.informers.get::<PersistentVolume>(),
        classes: context.informers.get::<StorageClass>(),
        nodes: context.informers.get::<Node>(),
        snapshots: context.informers.get_dynamic(SNAPSHOTS.clone(), Scope::default(), false),
        contents: context.informers.get_dynamic(CONTENTS.clone(), Scope::default(), false),
    });
    let to = queue.clone();
    this.claims.on_event(move |event| {
        let claim = event.object();
        if is_asked(claim, LOCAL_PROVISIONER) || wants_more(claim) {
            to.add(format!("{CLAIM}{}", claim.key()));
        }
    });
    let to = queue.clone();
    this.volumes.on_event(move |event| {
        if is_ours(event.object()) && plan::end(event.object()).is_some() {
            to.add(format!("{VOLUME}{}", event.object().name()));
        }
    });
    Controller::new(queue, this.clone(), WORKERS)
        .after(&this.claims)
        .after(&this.volumes)
        .after(&this.classes)
        .after(&this.nodes)
}

impl Loop {
    async fn sync_claim(&self, key: &str) -> Result<(), ControlError> {
        let Some(claim) = self.claims.store().get(key) else { return Ok(()) };
        if wants_more(&claim) {
            return self.expand(&claim).await;
        }
        if !is_asked(&claim, LOCAL_PROVISIONER) {
            return Ok(());
        }
        let node = annotated(&claim.metadata, annotation::SELECTED_NODE).unwrap_or(&self.place.node);
        if node != self.place.node || self.volumes.store().get(&plan::name(&claim)).is_some() {
            return Ok(());
        }
        let class = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()).unwrap_or_default();
        let message = format!("External provisioner is provisioning volume for claim {key:?}");
        self.recorder.normal(&*claim, "Provisioning", message);
        match self.provision(&claim, class).await {
            Ok(name) => {
                let message = format!("Successfully provisioned volume {name}");
                self.recorder.normal(&*claim, "ProvisioningSucceeded", message);
                Ok(())
            }
            Err(problem) => {
                let message =
                    format!("failed to provision volume with StorageClass {class:?}: {}", problem.why);
                self.recorder.warning(&*claim, "ProvisioningFailed", message.clone());
                // A claim that can never be met is looked at again when it changes.
                if problem.lasting { Ok(()) } else { Err(ControlError::Unfinished(message)) }
            }
        }
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, class: &str) -> Result<String, plan::Problem> {
        let found = self.classes.store().get(class);
        let class =
            found.ok_or_else(|| plan::Problem::lasting(format!("storageclass {class:?} not found")))?;
        let node = self.nodes.store().get(&self.place.node);
        let host =
            node.as_ref().and_then(|n| n.metadata.labels.as_ref()?.get("kubernetes.io/hostname").cloned());
        plan::check_size(claim, quota::capacity(&self.place.root), &self.place.node)?;
        let directory = plan::directory(&self.place.root, claim);
        let source = match plan::source(claim)? {
            Some(plan::Source::Claim(name)) => Some(self.source(claim, &name)?),
            Some(plan::Source::Snapshot(name)) => Some(self.snapshot(claim, &name)?),
            None => None,
        };
        let host = host.as_deref().unwrap_or(&self.place.node);
        let mut volume = plan::volume(claim, &class, &directory, host)?;
        let (form, project, bytes) = (plan::form(claim), quota::project(volume.name()), plan::bytes(claim));
        let at = directory.clone();
        let making = tokio::task::spawn_blocking(move || {
            // Before anything is in it: what is made below inherits the limit.
            files::make(&at, form, source.as_deref(), |empty| {
                let _ = quota::limit(empty, project, bytes);
                Ok(())
            })?;
            Ok::<_, std::io::Error>(enforced(&at, form, project, bytes))
        });
        let made = making.await.map_err(|error| plan::Problem::passing(error.to_string()))?;
        let said = made.map_err(|error| plan::Problem::passing(error.to_string()))?;
        volumes::annotate(&mut volume.metadata, SIZE_ENFORCED, &said);
        match self.client.create_typed(&volume).await {
            Ok(_) => {}
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(plan::Problem::passing(error.to_string())),
        }
        Ok(volume.name().to_owned())
    }

    /// The copy that a snapshot is, if the two point at each other.
    fn snapshot(&self, claim: &PersistentVolumeClaim, name: &str) -> Result<PathBuf, plan::Problem> {
        let wait = |why: String| {
            plan::Problem::passing(format!(
                "error getting handle for DataSource Type VolumeSnapshot by Name {name}: {why}"
            ))
        };
        let found = self.snapshots.store().get_in(claim.namespace(), name);
        let found = found.filter(|s| !s.is_terminating()).ok_or_else(|| {
            wait(format!("error getting snapshot {name} from api server: volumesnapshots.snapshot.storage.k8s.io {name:?} not found"))
        })?;
        let content = self.contents.store().get(found.text("/status/boundVolumeSnapshotContentName"));
        let content = content.filter(|content| found.is_ready() && is_for(content, &found));
        let content = content.ok_or_else(|| wait(format!("snapshot {name} is not Ready")))?;
        let size = content.0.pointer("/status/restoreSize").and_then(serde_json::Value::as_i64);
        plan::check_restore(claim, size, content.text("/spec/sourceVolumeMode"))?;
        let path = snapshots::path(&self.place.root, content.text("/status/snapshotHandle"));
        path.filter(|path| path.exists()).ok_or_else(|| wait("the snapshot is not on this node".into()))
    }

    /// The directory of the claim that another one is to start as a copy of.
    fn source(&self, claim: &PersistentVolumeClaim, name: &str) -> Result<PathBuf, plan::Problem> {
        let found = self.claims.store().get_in(claim.namespace(), name);
        let found = found.ok_or_else(|| {
            plan::Problem::passing(format!(
                "error getting PVC {name} (namespace {:?}) from api server: not found",
                claim.namespace()
            ))
        })?;
        let volume = found.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
        let volume = self.volumes.store().get(volume).filter(|v| is_ours(v) && self.is_here(v));
        let volume = volume.ok_or_else(|| {
            plan::Problem::passing(format!(
                "the source PVC {name} has no volume of {LOCAL_PROVISIONER} on this node"
            ))
        })?;
        plan::check_clone(claim, &found)?;
        let path = plan::path(&volume)
            .ok_or_else(|| plan::Problem::lasting("the source has no directory".into()))?;
        Ok(path.to_owned())
    }

    fn is_here(&self, volume: &PersistentVolume) -> bool {
        plan::path(volume).is_some_and(|path| path.parent() == Some(&self.place.root))
    }

    async fn expand(&self, claim: &PersistentVolumeClaim) -> Result<(), ControlError> {
        let name = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
        let Some(volume) = self.volumes.store().get(name).filter(|v| is_ours(v) && self.is_here(v)) else {
            return Ok(());
        };
        let asked = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"));
        let Some(asked) = asked else { return Ok(()) };
        self.recorder.normal(claim, "Resizing", format!("External resizer is resizing volume {name}"));
        if let Err(problem) = plan::check_size(claim, quota::capacity(&self.place.root), &self.place.node) {
            let message =
                format!("resize volume {name:?} by resizer {LOCAL_PROVISIONER:?} failed: {}", problem.why);
            self.recorder.warning(claim, "VolumeResizeFailed", message);
            return Ok(());
        }
        if let Some(path) = plan::path(&volume).map(Path::to_owned) {
            let (form, project, bytes) =
                (plan::form(claim), quota::project(volume.name()), plan::bytes(claim));
            let growing = tokio::task::spawn_blocking(move || {
                if let files::Form::Disk(bytes) = form {
                    files::grow(&path, bytes)?;
                }
                Ok::<_, std::io::Error>(enforced(&path, form, project, bytes))
            });
            let grown = growing.await.map_err(std::io::Error::other).and_then(|grown| grown);
            grown.map_err(|error| ControlError::Unfinished(error.to_string()))?;
        }
        let patch = Patch::Merge(json!({"spec": {"capacity": {"storage": asked}}}));
        self.client.patch(&PersistentVolume::GVR, "", volume.name(), "", &patch).await?;
        let mut larger = claim.clone();
        let status = larger.status.get_or_insert_default();
        status.capacity.get_or_insert_default().insert("storage".into(), asked.clone());
        status.conditions = None;
        status.allocated_resources = None;
        status.allocated_resource_statuses = None;
        self.client.update_status_typed(&larger).await?;
        self.recorder.normal(claim, "VolumeResizeSuccessful", "Resize volume succeeded");
        Ok(())
    }

    async fn sync_volume(&self, name: &str) -> Result<(), ControlError> {
        let volume = self.volumes.store().get(name);
        let Some(volume) = volume.filter(|v| is_ours(v) && self.is_here(v)) else { return Ok(()) };
        let Some(end) = plan::end(&volume) else { return Ok(()) };
        if let (plan::End::Everything, Some(path)) = (end, plan::path(&volume).map(Path::to_owned)) {
            let removed = tokio::task::spawn_blocking(move || files::remove(&path)).await;
            if let Err(error) = removed.map_err(std::io::Error::other).and_then(|outcome| outcome) {
                self.recorder.warning(&*volume, "VolumeFailedDelete", error.to_string());
                return Err(ControlError::Unfinished(error.to_string()));
            }
        }
        let mut free = PersistentVolume::clone(&volume);
        free.metadata.finalizers.iter_mut().for_each(|all| all.retain(|f| f != plan::FINALIZER));
        if free.metadata.finalizers != volume.metadata.finalizers {
            self.client.update_typed(&free).await?;
        }
        let params = DeleteParams::only_uid(volume.uid());
        self.client.delete_typed::<PersistentVolume>("", name, &params).await?;
        Ok(())
    }
}

/// Has the file system keep a volume to its size; says whether it does.
fn enforced(path: &Path, form: files::Form, project: u32, bytes: u64) -> String {
    if form != files::Form::Directory {
        return "true".into();
    }
    match quota::limit(path, project, bytes) {
        Ok(()) => "true".into(),
        Err(error) => format!("false: {}", quota::why_not(&error)),
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(async move {
            let outcome = match (key.strip_prefix(CLAIM), key.strip_prefix(VOLUME)) {
                (Some(key), _) => self.sync_claim(key).await,
                (_, Some(name)) => self.sync_volume(name).await,
                _ => Ok(()),
            };
            match outcome {
                Err(error) if error.api().is_some_and(client::Error::is_not_found) => Ok(Action::Wait),
                other => other.map(|()| Action::Wait),
            }
        })
    }
}
