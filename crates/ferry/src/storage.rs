//! Storage that works out of the box: the class `local-path`, where its volumes are, and the kinds that snapshots are
//! asked for with.

use client::Client;
use meta::Gvr;
use serde_json::json;

use crate::config::Part;
use crate::control::Environment;

/// The definitions of the kinds of snapshots.
const SNAPSHOT_KINDS: &str = include_str!("../data/snapshots.json");

static DEFINITIONS: Gvr = Gvr::new("apiextensions.k8s.io", "v1", "customresourcedefinitions");
static SNAPSHOT_CLASSES: Gvr = Gvr::new("snapshot.storage.k8s.io", "v1", "volumesnapshotclasses");
/// How often the class of snapshots is tried: its kind is served a moment after it was defined.
const TRIES_MAX: u32 = 20;
const TRY: stdx::Backoff =
    stdx::Backoff { initial: std::time::Duration::from_millis(50), max: std::time::Duration::from_secs(2) };

static CLASSES: Gvr = Gvr::new("storage.k8s.io", "v1", "storageclasses");

/// Where this node makes volumes, if it does.
pub fn place(env: &Environment) -> Option<controllers::local_path::Place> {
    let here = env.options.enabled(Part::LocalStorage) && env.options.enabled(Part::Node);
    here.then(|| controllers::local_path::Place { root: env.paths.volumes(), node: env.node_name.clone() })
}

/// Makes the class, unless there is one of the name: what people have made of it stays.
pub async fn publish(client: &Client) {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "local-path", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "local.ferry.dev", "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true,
    });
    match client.create(&CLASSES, "", &class).await {
        Err(error) if !error.is_already_exists() => {
            tracing::warn!(%error, "the default storage class could not be made");
        }
        _ => {}
    }
    publish_snapshots(client).await;
}

/// Makes the kinds of snapshots and the default class. What is there already stays as it is.
async fn publish_snapshots(client: &Client) {
    let kinds: Vec<serde_json::Value> = match serde_json::from_str(SNAPSHOT_KINDS) {
        Ok(kinds) => kinds,
        Err(error) => return tracing::error!(%error, "the kinds of snapshots cannot be read"),
    };
    for kind in &kinds {
        match client.create(&DEFINITIONS, "", kind).await {
            Err(error) if !error.is_already_exists() => {
                return tracing::warn!(%error, "a kind of snapshots could not be defined");
            }
            _ => {}
        }
    }
    let class = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass",
        "metadata": {"name": "local-path", "annotations": {"snapshot.storage.kubernetes.io/is-default-class": "true"}},
        "driver": "local.ferry.dev", "deletionPolicy": "Delete",
    });
    for attempt in 1..=TRIES_MAX {
        match client.create(&SNAPSHOT_CLASSES, "", &class).await {
            Err(error) if error.is_not_found() && attempt < TRIES_MAX => {
                tokio::time::sleep(TRY.delay(attempt)).await;
            }
            Err(error) if !error.is_already_exists() => {
                return tracing::warn!(%error, "the class of snapshots could not be made");
            }
            _ => return,
        }
    }
}
