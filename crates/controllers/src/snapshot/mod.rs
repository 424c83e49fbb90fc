//! `snapshot-controller`: the part of volume snapshots that is the same for every driver. It binds VolumeSnapshots to
//! VolumeSnapshotContents; taking and deleting the data is up to the driver's side (`csi-snapshotter` beside a driver,
//! `local_path::snapshots` for this node's disk).
//!
//! Flow: snapshot, content, class and claim events -> key -> [`plan`] -> contents, statuses, finalizers, events.

pub mod objects;
pub mod plan;

use std::sync::Arc;

use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams, Patch};
use reconcile::{
    Action, Cached as _, Context, ControlError, Controller, Descriptor, EventType, Informer, Reconcile,
    Recorder, Scope, WorkQueue,
};
use serde_json::{Value, json};
use stdx::Clock;

use self::objects::{
    BEING_DELETED, BOUND_FINALIZER, CLAIM_FINALIZER, CLASSES, CONTENT_FINALIZER, CONTENTS, Dynamic,
    SNAPSHOTS, SOURCE_FINALIZER,
};
use self::plan::End;

const NAME: &str = "snapshot-controller";
const WORKERS: usize = 4;
const SNAPSHOT: &str = "snapshot:";
const CONTENT: &str = "content:";

/// The row of the controller.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    snapshots: Arc<Informer<Dynamic>>,
    contents: Arc<Informer<Dynamic>>,
    classes: Arc<Informer<Dynamic>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    clock: Arc<dyn Clock>,
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let dynamic = |gvr: &meta::Gvr| context.informers.get_dynamic(gvr.clone(), Scope::default(), false);
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.events.recorder(context.client_of(NAME), NAME, ""),
        snapshots: dynamic(&SNAPSHOTS),
        contents: dynamic(&CONTENTS),
        classes: dynamic(&CLASSES),
        claims: context.informers.get::<PersistentVolumeClaim>(),
        volumes: context.informers.get::<PersistentVolume>(),
        clock: context.clock.clone(),
    });
    let to = queue.clone();
    this.snapshots.on_event(move |event| to.add(format!("{SNAPSHOT}{}", event.object().cache_key())));
    let to = queue.clone();
    this.contents.on_event(move |event| {
        let content = event.object();
        to.add(format!("{CONTENT}{}", content.name()));
        let of = |field: &str| content.text(&format!("/spec/volumeSnapshotRef/{field}")).to_owned();
        to.add(format!("{SNAPSHOT}{}/{}", of("namespace"), of("name")));
    });
    let (to, it) = (queue.clone(), this.clone());
    this.classes.on_event(move |_| {
        for snapshot in it.snapshots.store().list() {
            if snapshot.text("/status/boundVolumeSnapshotContentName").is_empty() {
                to.add(format!("{SNAPSHOT}{}", snapshot.cache_key()));
            }
        }
    });
    let (to, it) = (queue.clone(), this.clone());
    this.claims.on_event(move |event| {
        // Of a claim's phases the snapshots that wait for it are told; and those that it is made from.
        let claim = event.object();
        let is_about = |snapshot: &Arc<Dynamic>| {
            let source = snapshot.text("/spec/source/persistentVolumeClaimName");
            (snapshot.namespace() == claim.namespace() && source == claim.name() && !snapshot.is_ready())
                || snapshot.is_terminating()
        };
        for snapshot in it.snapshots.store().list().iter().filter(|s| is_about(s)) {
            to.add(format!("{SNAPSHOT}{}", snapshot.cache_key()));
        }
    });
    Controller::new(queue, this.clone(), WORKERS)
        .after(&this.snapshots)
        .after(&this.contents)
        .after(&this.classes)
        .after(&this.claims)
        .after(&this.volumes)
}

impl Loop {
    fn say(&self, about: &Dynamic, kind: EventType, reason: &str, message: String) {
        self.recorder.record(about.reference(), kind, reason, message);
    }

    async fn patch(
        &self,
        gvr: &meta::Gvr,
        object: &Dynamic,
        part: &str,
        patch: Value,
    ) -> Result<Dynamic, ControlError> {
        let patch = Patch::Merge(patch);
        Ok(Dynamic(self.client.patch(gvr, object.namespace(), object.name(), part, &patch).await?))
    }

    /// Brings an object's finalizers to what they should be.
    async fn finalizers(
        &self,
        gvr: &meta::Gvr,
        object: &Dynamic,
        change: impl FnOnce(&mut Vec<String>),
    ) -> Result<(), ControlError> {
        let before = object.finalizers();
        let mut after = before.clone();
        change(&mut after);
        if before != after {
            self.patch(gvr, object, "", object.finalizers_patch(&after)).await?;
        }
        Ok(())
    }

    async fn sync_snapshot(&self, key: &str) -> Result<(), ControlError> {
        let Some(snapshot) = self.snapshots.store().get(key) else { return Ok(()) };
        if snapshot.is_terminating() {
            return self.end_snapshot(&snapshot).await;
        }
        let missing = |all: &Vec<String>| {
            [SOURCE_FINALIZER, BOUND_FINALIZER].iter().any(|f| !all.iter().any(|a| a == f))
        };
        if missing(&snapshot.finalizers()) {
            // What follows comes with the change's own event.
            return self
                .finalizers(&SNAPSHOTS, &snapshot, |all| {
                    for finalizer in [SOURCE_FINALIZER, BOUND_FINALIZER] {
                        if !all.iter().any(|f| f == finalizer) {
                            all.push(finalizer.into());
                        }
                    }
                })
                .await;
        }
        let named = snapshot.text("/spec/source/volumeSnapshotContentName").to_owned();
        let content = match named.is_empty() {
            false => self.find(&snapshot, &named).await?,
            true => self.take(&snapshot).await?,
        };
        let Some(content) = content else { return Ok(()) };
        self.report(&snapshot, &content).await
    }

    /// The status follows the content's.
    async fn report(&self, snapshot: &Dynamic, content: &Dynamic) -> Result<(), ControlError> {
        let status = plan::status(snapshot, content);
        let before = snapshot.0.get("status").cloned().unwrap_or_default();
        if status != before {
            self.client
                .update_status(&SNAPSHOTS, snapshot.namespace(), snapshot.name(), &{
                    let mut object = snapshot.0.clone();
                    if let Some(map) = object.as_object_mut() {
                        map.insert("status".into(), status.clone());
                    }
                    object
                })
                .await?;
            let key = snapshot.cache_key();
            if before.get("creationTime").is_none() && status.get("creationTime").is_some() {
                let message = format!("Snapshot {key} was successfully created by the CSI driver.");
                self.say(snapshot, EventType::Normal, "SnapshotCreated", message);
            }
            if content.is_ready() && !snapshot.is_ready() {
                self.say(
                    snapshot,
                    EventType::Normal,
                    "SnapshotReady",
                    format!("Snapshot {key} is ready to use."),
                );
            }
        }
        if content.is_ready() { self.release_claim(snapshot).await } else { Ok(()) }
    }

    async fn fail(&self, snapshot: &Dynamic, reason: &str, message: String) -> Result<(), ControlError> {
        if snapshot.text("/status/error/message") != message {
            self.say(snapshot, EventType::Warning, reason, message.clone());
            let now = jiff::Timestamp::from_second(self.clock.now().as_second()).unwrap_or_default();
            let error = json!({"message": message, "time": now.to_string()});
            self.patch(
                &SNAPSHOTS,
                snapshot,
                "status",
                json!({"status": {"error": error, "readyToUse": false}}),
            )
            .await?;
        }
        Ok(())
    }

    /// The content that exists already, bound to the snapshot.
    async fn find(&self, snapshot: &Dynamic, name: &str) -> Result<Option<Dynamic>, ControlError> {
        let Some(content) = self.contents.store().get(name) else {
            self.fail(snapshot, "SnapshotContentMissing", "VolumeSnapshotContent is missing".into()).await?;
            return Ok(None);
        };
        if content.text("/spec/source/snapshotHandle").is_empty() {
            let message =
                "VolumeSnapshotContent is dynamically provisioned while expecting a pre-provisioned one";
            self.fail(snapshot, "SnapshotContentMismatch", message.into()).await?;
            return Ok(None);
        }
        if !plan::is_for(&content, snapshot) {
            let message = format!("VolumeSnapshotContent [{name}] is bound to a different snapshot");
            self.fail(snapshot, "SnapshotContentMisbound", message).await?;
            return Ok(None);
        }
        if !content.text("/spec/volumeSnapshotRef/uid").is_empty() {
            return Ok(Some((*content).clone()));
        }
        let patch = json!({"metadata": {"resourceVersion": content.cache_version()},
            "spec": {"volumeSnapshotRef": {"uid": snapshot.uid()}}});
        self.patch(&CONTENTS, &content, "", patch).await.map(Some)
    }

    /// The content of a snapshot of a claim, made if there is none.
    async fn take(&self, snapshot: &Dynamic) -> Result<Option<Dynamic>, ControlError> {
        if let Some(content) = self.contents.store().get(&plan::content_name(snapshot)) {
            return Ok(Some((*content).clone()));
        }
        let failed = |why: &str| format!("Failed to create snapshot content with error {why}");
        let reason = "SnapshotContentCreationFailed";
        let name = snapshot.text("/spec/source/persistentVolumeClaimName");
        let Some(claim) = self.claims.store().get_in(snapshot.namespace(), name) else {
            let why = format!(
                "snapshot controller failed to update {} on API server: cannot get claim from snapshot",
                snapshot.name()
            );
            self.fail(snapshot, reason, failed(&why)).await?;
            return Ok(None);
        };
        let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let volume = self.volumes.store().get(named).filter(|_| bound);
        let Some(volume) = volume else {
            let why = format!("the PVC {name} is not yet bound to a PV, will not attempt to take a snapshot");
            self.fail(snapshot, reason, failed(&why)).await?;
            return Ok(None);
        };
        let Some((driver, handle)) = plan::handle(&volume) else {
            let why = format!("cannot find CSI PersistentVolumeSource for volume {named}");
            self.fail(snapshot, reason, failed(&why)).await?;
            return Ok(None);
        };
        let classes = self.classes.store().list();
        let class = match plan::class(snapshot, &classes, &driver) {
            Ok(class) => class,
            Err(why) => {
                let message = format!("Failed to set default snapshot class with error {why}");
                let named = !snapshot.text("/spec/volumeSnapshotClassName").is_empty();
                let (reason, message) = if named {
                    ("GetSnapshotClassFailed", failed(&why))
                } else {
                    ("SetDefaultSnapshotClassFailed", message)
                };
                self.fail(snapshot, reason, message).await?;
                return Ok(None);
            }
        };
        if class.text("/driver") != driver {
            let why = format!("VolumeSnapshotClass {} is of another driver than the volume", class.name());
            self.fail(snapshot, reason, failed(&why)).await?;
            return Ok(None);
        }
        if snapshot.text("/spec/volumeSnapshotClassName").is_empty() {
            let patch = json!({"spec": {"volumeSnapshotClassName": class.name()}});
            self.patch(&SNAPSHOTS, snapshot, "", patch).await?;
        }
        self.hold_claim(&claim).await?;
        let content = plan::content(snapshot, class, &volume, (&driver, &handle));
        match self.client.create(&CONTENTS, "", &content).await {
            Err(error) if error.is_already_exists() => return Ok(None),
            other => drop(other?),
        }
        let message =
            format!("Waiting for a snapshot {} to be created by the CSI driver.", snapshot.cache_key());
        self.say(snapshot, EventType::Normal, "CreatingSnapshot", message);
        // The snapshot has a newer version by now: its event brings what follows.
        Ok(None)
    }

    async fn hold_claim(&self, claim: &PersistentVolumeClaim) -> Result<(), ControlError> {
        let mut held = claim.clone();
        let finalizers = held.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == CLAIM_FINALIZER) {
            finalizers.push(CLAIM_FINALIZER.into());
            self.client.update_typed(&held).await?;
        }
        Ok(())
    }

    /// A claim is held no longer when no snapshot of it is being taken.
    async fn release_claim(&self, snapshot: &Dynamic) -> Result<(), ControlError> {
        let name = snapshot.text("/spec/source/persistentVolumeClaimName");
        let Some(claim) = self.claims.store().get_in(snapshot.namespace(), name) else { return Ok(()) };
        let held = claim.metadata.finalizers.iter().flatten().any(|f| f == CLAIM_FINALIZER);
        let taken = self.snapshots.store().list().iter().any(|other| {
            other.uid() != snapshot.uid()
                && other.namespace() == snapshot.namespace()
                && other.text("/spec/source/persistentVolumeClaimName") == name
                && !other.is_ready()
                && other.text("/status/error/message").is_empty()
        });
        if !held || taken {
            return Ok(());
        }
        let mut free = (*claim).clone();
        free.metadata.finalizers.iter_mut().for_each(|all| all.retain(|f| f != CLAIM_FINALIZER));
        self.client.update_typed(&free).await?;
        Ok(())
    }

    async fn end_snapshot(&self, snapshot: &Dynamic) -> Result<(), ControlError> {
        if snapshot.finalizers().iter().all(|f| f != SOURCE_FINALIZER && f != BOUND_FINALIZER) {
            return Ok(());
        }
        if self.claims.store().list().iter().any(|claim| plan::is_restored_by(claim, snapshot)) {
            let message = "Snapshot is being used to restore a PVC".to_owned();
            self.say(snapshot, EventType::Warning, "SnapshotDeletePending", message);
            return Ok(());
        }
        let named = match snapshot.text("/spec/source/volumeSnapshotContentName") {
            "" => plan::content_name(snapshot),
            named => named.to_owned(),
        };
        let content = self.contents.store().get(&named).filter(|content| plan::is_for(content, snapshot));
        if let Some(content) = content {
            match plan::end(&content) {
                End::Wait => return Ok(()),
                End::Delete => return self.delete_content(&content).await,
                End::Keep => {}
            }
        }
        self.release_claim(snapshot).await?;
        self.finalizers(&SNAPSHOTS, snapshot, |all| {
            all.retain(|f| f != SOURCE_FINALIZER && f != BOUND_FINALIZER);
        })
        .await
    }

    /// Tells the driver's side that the data is to go, and deletes the content.
    async fn delete_content(&self, content: &Dynamic) -> Result<(), ControlError> {
        if content.annotation(BEING_DELETED) != "yes" {
            let patch = json!({"metadata": {"annotations": {BEING_DELETED: "yes"}}});
            self.patch(&CONTENTS, content, "", patch).await?;
        }
        self.client.delete(&CONTENTS, "", content.name(), &DeleteParams::only_uid(content.uid())).await?;
        Ok(())
    }

    async fn sync_content(&self, name: &str) -> Result<(), ControlError> {
        let Some(content) = self.contents.store().get(name) else { return Ok(()) };
        if !content.is_terminating() && !content.finalizers().iter().any(|f| f == CONTENT_FINALIZER) {
            return self.finalizers(&CONTENTS, &content, |all| all.push(CONTENT_FINALIZER.into())).await;
        }
        let of = |field: &str| content.text(&format!("/spec/volumeSnapshotRef/{field}"));
        if of("uid").is_empty() || plan::end(&content) != End::Delete {
            return Ok(());
        }
        // Nothing is deleted on the word of a cache that may be behind.
        let gone = match self.client.get(&SNAPSHOTS, of("namespace"), of("name")).await {
            Ok(found) => Dynamic(found).uid() != of("uid"),
            Err(error) if error.is_not_found() => true,
            Err(error) => return Err(error.into()),
        };
        if gone { self.delete_content(&content).await } else { Ok(()) }
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(async move {
            let outcome = match (key.strip_prefix(SNAPSHOT), key.strip_prefix(CONTENT)) {
                (Some(key), _) => self.sync_snapshot(key).await,
                (_, Some(name)) => self.sync_content(name).await,
                _ => Ok(()),
            };
            match outcome {
                Err(error) if error.api().is_some_and(client::Error::is_not_found) => Ok(Action::Wait),
                other => other.map(|()| Action::Wait),
            }
        })
    }
}
