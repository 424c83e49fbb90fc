//! Snapshots of volumes on this node's disk: the driver's side of VolumeSnapshotContents. A snapshot is a copy beside
//! the volumes, which shares its blocks with the volume where the file system can.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::prelude::*;
use client::{BoxFuture, Client, Patch};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, EventType, Informer, Reconcile, Recorder, Scope,
    WorkQueue,
};
use serde_json::{Value, json};
use stdx::Clock;
use volumes::{LOCAL_PROVISIONER, storage};

use super::{Place, files, is_ours, plan};
use crate::snapshot::objects::{BEING_DELETED, CONTENT_FINALIZER, CONTENTS, Dynamic};

const NAME: &str = "local-path-snapshotter";
/// Whose rights it acts with.
const ACCOUNT: &str = "local-path-provisioner";
const WORKERS: usize = 2;
/// Directory of snapshots beside the volumes.
const DIRECTORY: &str = ".snapshots";

/// The row of the driver's side.
pub fn descriptor(place: Place) -> Descriptor {
    Descriptor::new(NAME, move |context| build(context, place.clone()))
}

/// Where a snapshot lies; nothing for a handle that is no name.
pub fn path(root: &Path, handle: &str) -> Option<PathBuf> {
    let plain = !handle.is_empty() && !handle.contains('/') && !handle.starts_with('.');
    plain.then(|| root.join(DIRECTORY).join(handle))
}

/// What is to be done about a content.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Rest,
    /// Takes a snapshot of this volume.
    Take(String),
    /// Looks whether this snapshot is there.
    Find(String),
    /// Removes this snapshot, then lets the content go.
    Remove(String),
    /// Lets the content go.
    Release,
}

fn step(content: &Dynamic) -> Step {
    if content.text("/spec/driver") != LOCAL_PROVISIONER {
        return Step::Rest;
    }
    let given = content.text("/spec/source/snapshotHandle");
    let made = content.text("/status/snapshotHandle");
    let handle = if given.is_empty() { made } else { given };
    if content.is_terminating() {
        if !content.finalizers().iter().any(|f| f == CONTENT_FINALIZER) {
            return Step::Rest;
        }
        let bound = !content.text("/spec/volumeSnapshotRef/uid").is_empty();
        let told = content.annotation(BEING_DELETED) == "yes";
        return match content.text("/spec/deletionPolicy") {
            "Delete" if !handle.is_empty() && (told || !bound) => Step::Remove(handle.to_owned()),
            // Deleted by hand under its snapshot: the snapshot goes first.
            "Delete" if bound && !told => Step::Rest,
            _ => Step::Release,
        };
    }
    match (made.is_empty(), given.is_empty()) {
        (false, _) => Step::Rest,
        (true, false) => Step::Find(given.to_owned()),
        (true, true) => Step::Take(content.text("/spec/source/volumeHandle").to_owned()),
    }
}

struct Loop {
    client: Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    place: Place,
    contents: Arc<Informer<Dynamic>>,
    volumes: Arc<Informer<PersistentVolume>>,
}

fn build(context: &Context, place: Place) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(ACCOUNT),
        recorder: context.events.recorder(context.client_of(ACCOUNT), LOCAL_PROVISIONER, ""),
        clock: context.clock.clone(),
        place,
        contents: context.informers.get_dynamic(CONTENTS.clone(), Scope::default(), false),
        volumes: context.informers.get::<PersistentVolume>(),
    });
    let to = queue.clone();
    this.contents.on_event(move |event| {
        if step(event.object()) != Step::Rest {
            to.add(event.object().name());
        }
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.contents).after(&this.volumes)
}

impl Loop {
    async fn sync(&self, name: &str) -> Result<(), ControlError> {
        let Some(content) = self.contents.store().get(name) else { return Ok(()) };
        match step(&content) {
            Step::Rest => Ok(()),
            Step::Take(volume) => match self.take(&content, &volume).await {
                Ok(status) => self.status(&content, status).await,
                Err(why) => self.fail(&content, "SnapshotCreationFailed", why).await,
            },
            Step::Find(handle) => {
                let found = path(&self.place.root, &handle).filter(|path| path.exists());
                match found {
                    Some(_) => {
                        self.status(&content, json!({"snapshotHandle": handle, "readyToUse": true})).await
                    }
                    None => {
                        let why = format!("there is no snapshot {handle:?} on this node");
                        self.fail(&content, "SnapshotContentCheckandUpdateFailed", why).await
                    }
                }
            }
            Step::Remove(handle) => {
                if let Some(path) = path(&self.place.root, &handle) {
                    let removed = tokio::task::spawn_blocking(move || files::remove(&path)).await;
                    if let Err(error) = removed.map_err(std::io::Error::other).and_then(|outcome| outcome) {
                        return self.fail(&content, "SnapshotDeleteError", error.to_string()).await;
                    }
                }
                self.release(&content).await
            }
            Step::Release => self.release(&content).await,
        }
    }

    /// Takes a snapshot; answers the content's status.
    async fn take(&self, content: &Dynamic, volume: &str) -> Result<Value, String> {
        let found = self.volumes.store().get(volume).filter(|v| is_ours(v));
        let found = found.ok_or_else(|| format!("there is no volume {volume:?} on this node"))?;
        let source = plan::path(&found).ok_or("the volume has no directory")?.to_owned();
        if source.parent() != Some(&self.place.root) {
            return Err(format!("volume {volume:?} is not on this node"));
        }
        let handle = content.name().to_owned();
        let target = path(&self.place.root, &handle).ok_or("the snapshot has no name")?;
        let taking = tokio::task::spawn_blocking(move || files::take(&source, &target));
        taking.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let size = found.spec.as_ref().and_then(|s| storage(s.capacity.as_ref())).map(|s| s.value());
        let at = i64::try_from(self.clock.now().as_nanosecond()).unwrap_or_default();
        Ok(json!({"snapshotHandle": handle, "readyToUse": true, "creationTime": at, "restoreSize": size}))
    }

    async fn status(&self, content: &Dynamic, mut status: Value) -> Result<(), ControlError> {
        if let Some(map) = status.as_object_mut() {
            map.insert("error".into(), Value::Null);
        }
        let patch = Patch::Merge(json!({"status": status}));
        self.client.patch(&CONTENTS, "", content.name(), "status", &patch).await?;
        Ok(())
    }

    async fn fail(&self, content: &Dynamic, reason: &str, why: String) -> Result<(), ControlError> {
        let message = match reason {
            "SnapshotCreationFailed" => {
                format!("Failed to create snapshot: failed to take snapshot of the volume: {why:?}")
            }
            _ => why,
        };
        if content.text("/status/error/message") != message {
            self.recorder.record(content.reference(), EventType::Warning, reason, message.clone());
            let now = jiff::Timestamp::from_second(self.clock.now().as_second()).unwrap_or_default();
            let error = json!({"message": message, "time": now.to_string()});
            let patch = Patch::Merge(json!({"status": {"error": error, "readyToUse": false}}));
            self.client.patch(&CONTENTS, "", content.name(), "status", &patch).await?;
        }
        Err(ControlError::Unfinished(message))
    }

    async fn release(&self, content: &Dynamic) -> Result<(), ControlError> {
        let mut left = content.finalizers();
        left.retain(|f| f != CONTENT_FINALIZER);
        let patch = Patch::Merge(content.finalizers_patch(&left));
        self.client.patch(&CONTENTS, "", content.name(), "", &patch).await?;
        Ok(())
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(async move {
            match self.sync(key).await {
                Err(error) if error.api().is_some_and(client::Error::is_not_found) => Ok(Action::Wait),
                other => other.map(|()| Action::Wait),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps() {
        let with = |spec: Value, status: Value, metadata: Value| {
            let mut object = json!({"metadata": {"name": "c"}, "spec": {"driver": LOCAL_PROVISIONER,
                "deletionPolicy": "Delete", "source": {"volumeHandle": "v"}, "volumeSnapshotRef": {"uid": "u"}}});
            json_patch(&mut object["spec"], spec);
            object["status"] = status;
            json_patch(&mut object["metadata"], metadata);
            step(&Dynamic(object))
        };
        let going = |told: bool| {
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [CONTENT_FINALIZER],
                "annotations": {BEING_DELETED: if told { "yes" } else { "" }}})
        };
        let done = json!({"snapshotHandle": "h"});
        for (spec, status, metadata, expected) in [
            (json!({}), json!({}), json!({}), Step::Take("v".into())),
            (json!({"driver": "other"}), json!({}), json!({}), Step::Rest),
            (json!({}), done.clone(), json!({}), Step::Rest),
            (json!({"source": {"snapshotHandle": "x"}}), json!({}), json!({}), Step::Find("x".into())),
            (json!({}), done.clone(), going(true), Step::Remove("h".into())),
            (json!({}), done.clone(), going(false), Step::Rest),
            (json!({"deletionPolicy": "Retain"}), done, going(false), Step::Release),
            (json!({}), json!({}), going(true), Step::Release),
        ] {
            assert_eq!(with(spec.clone(), status, metadata), expected, "{spec}");
        }
    }

    fn json_patch(target: &mut Value, change: Value) {
        for (key, value) in change.as_object().unwrap() {
            target[key] = value.clone();
        }
    }

    #[test]
    fn handles_are_names() {
        let root = Path::new("/d");
        assert_eq!(path(root, "a"), Some("/d/.snapshots/a".into()));
        assert!(path(root, "../a").is_none() && path(root, "").is_none() && path(root, "..").is_none());
    }
}
