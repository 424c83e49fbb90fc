//! The end of a definition: all its objects are deleted, then its finalizer goes.

use std::sync::Arc;

use meta::{Status, UserInfo};
use registry::cache::{Filter, Start};
use registry::read::ListOptions;
use registry::strategy::crd::{CLEANUP_FINALIZER, is_true, set_condition};
use registry::write::meta_text;
use registry::{DeleteOptions, FieldValidation, ResourceDef, Target, WriteOptions};
use serde_json::Value;
use tokio::sync::Notify;

use super::{Definition, MANAGER};
use crate::server::Server;

/// Pause before a failed deletion is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);
/// How often objects that do not go are asked to go again.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

/// Whether a definition waits for its objects to be deleted.
pub fn is_due(crd: &Definition) -> bool {
    let finalizers = crd.get("metadata").and_then(|m| m.get("finalizers")).and_then(Value::as_array);
    let ours = finalizers.is_some_and(|f| f.iter().any(|f| f == CLEANUP_FINALIZER));
    ours && !meta_text(crd, "deletionTimestamp").is_empty()
}

/// Empties a definition in the background.
pub fn spawn(server: Server, name: String, crd: Definition, changed: Arc<Notify>) {
    tokio::spawn(async move {
        let stop = server.shutdown.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = run(&server, &name, &crd) => changed.notify_one(),
        }
    });
}

async fn run(server: &Server, name: &str, crd: &Definition) {
    let uid = meta_text(crd, "uid");
    let (reason, message) = if is_true(crd, "Established") {
        let message = "CustomResource deletion is in progress";
        while let Err(error) =
            terminating(server, name, uid, "True", "InstanceDeletionInProgress", message).await
        {
            tracing::warn!(%error, name, "cannot say that a definition is being emptied");
            tokio::time::sleep(RETRY).await;
        }
        while let Err(error) = delete_all(server, name).await {
            tracing::warn!(%error, name, "cannot delete all objects of a definition");
            let why = format!("could not issue all deletes: {error}");
            terminating(server, name, uid, "True", "InstanceDeletionFailed", &why).await.ok();
            tokio::time::sleep(RETRY).await;
        }
        ("InstanceDeletionCompleted", "removed all instances")
    } else {
        ("NeverEstablished", "resource was never established")
    };
    while let Err(error) = finish(server, name, uid, reason, message).await {
        tracing::warn!(%error, name, "cannot let a definition go");
        tokio::time::sleep(RETRY).await;
    }
}

/// Sets the condition of a definition that is still the one meant.
async fn terminating(
    server: &Server,
    name: &str,
    uid: &str,
    status: &str,
    reason: &str,
    message: &str,
) -> Result<(), Status> {
    change(server, name, uid, &|crd, now| set_condition(crd, "Terminating", status, reason, message, now))
        .await
}

async fn finish(server: &Server, name: &str, uid: &str, reason: &str, message: &str) -> Result<(), Status> {
    change(server, name, uid, &|crd, now| {
        set_condition(crd, "Terminating", "False", reason, message, now);
        let finalizers = crd.get_mut("metadata").and_then(|m| m.get_mut("finalizers"));
        if let Some(list) = finalizers.and_then(Value::as_array_mut) {
            list.retain(|f| f != CLEANUP_FINALIZER);
        }
    })
    .await
}

async fn change(
    server: &Server,
    name: &str,
    uid: &str,
    apply: &(dyn Fn(&mut Definition, &str) + Sync),
) -> Result<(), Status> {
    let Some(def) = super::definitions(server) else { return Ok(()) };
    let now = schema::time::seconds(server.registry.clock().now());
    let next = |crd: &mut Definition| {
        if meta_text(crd, "uid") != uid {
            return Ok(false);
        }
        apply(crd, &now);
        Ok(true)
    };
    match server.registry.modify(&def, "", name, &next).await {
        Err(e) if !e.is_not_found() => Err(e),
        _ => Ok(()),
    }
}

/// Deletes every object, and waits until the last one is gone: finalizers may hold them.
async fn delete_all(server: &Server, name: &str) -> Result<(), Status> {
    let table = server.registry.table();
    let row =
        table.rows().iter().find(|r| r.custom.as_ref().is_some_and(|c| *c.definition == *name)).cloned();
    let Some(row) = row else { return Ok(()) };
    let prefix = row.storage_prefix();
    loop {
        let revision = server.registry.cacher().fresh().await?;
        delete_once(server, &row).await?;
        if server.registry.cacher().kind(&prefix).is_empty() {
            return Ok(());
        }
        // What came after the deletion began is in the watch, so nothing is missed.
        let mut watch =
            server.registry.cacher().watch(&prefix, Filter::default(), Start::After(revision)).await?;
        let gone = async {
            while !server.registry.cacher().kind(&prefix).is_empty() {
                if watch.events.recv().await.is_none() {
                    return;
                }
            }
        };
        tokio::time::timeout(AGAIN, gone).await.ok();
    }
}

async fn delete_once(server: &Server, row: &ResourceDef) -> Result<(), Status> {
    let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
    let options = WriteOptions {
        user: &user,
        dry_run: false,
        field_manager: MANAGER.into(),
        field_validation: FieldValidation::Ignore,
        force: false,
    };
    let target = Target { def: row, namespace: "", name: "", subresource: "" };
    let (list, delete) = (ListOptions::default(), DeleteOptions::default());
    let admission = server.admission();
    server.registry.delete_collection(target, &list, &delete, &options, &admission).await.map(drop)
}
