//! Custom resources: follows the definitions, serves what they define, and writes their status.
//!
//! Flow: a definition changes -> [`names::plan`] (pure) gives every definition its names and conditions ->
//! [`rows::build`] makes rows of the resource table -> the statuses are written -> [`cleanup`] empties the
//! definitions that are being deleted. Nothing polls: every change of a definition wakes the one task.

pub mod cleanup;
pub mod conversion;
pub mod names;
pub mod rows;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use meta::{Status, UserInfo};
use registry::write::meta_text;
use registry::{FieldValidation, ResourceDef, Target, WriteOptions};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use crate::server::Server;

/// Who writes the status.
pub(crate) const MANAGER: &str = "kube-apiserver";
/// Pause before trying again what failed.
const RETRY: std::time::Duration = std::time::Duration::from_millis(500);

/// A definition.
pub type Definition = Map<String, Value>;

/// The rows that a definition had when it looked so.
type Built = HashMap<String, (String, Vec<Arc<ResourceDef>>)>;

/// The row of the definitions themselves.
pub(crate) fn definitions(server: &Server) -> Option<Arc<ResourceDef>> {
    server.registry.table().find("apiextensions.k8s.io", "v1", "customresourcedefinitions").cloned()
}

/// Every definition as the cache has it, by name.
fn current(server: &Server) -> BTreeMap<String, Definition> {
    let Some(def) = definitions(server) else { return BTreeMap::new() };
    let all = server.registry.cacher().kind(&def.storage_prefix()).snapshot(None);
    all.iter()
        .filter_map(|o| match o.to_value() {
            Value::Object(crd) => Some((o.name.to_string(), crd)),
            _ => None,
        })
        .collect()
}

/// Serves what the definitions in the store define, then follows them for as long as the server runs.
pub async fn run(server: &Server) -> Result<(), Status> {
    let changed = Arc::new(Notify::new());
    if let Some(def) = definitions(server) {
        let wake = changed.clone();
        server.registry.cacher().kind(&def.storage_prefix()).observe(move |_| wake.notify_one());
    }
    let mut built = Built::new();
    serve(server, &current(server), &mut built).await?;
    let server = server.clone();
    tokio::spawn(async move {
        let mut cleaning = HashSet::new();
        let stop = server.shutdown.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = changed.notified() => {}
            }
            if let Err(error) = turn(&server, &mut built, &mut cleaning, &changed).await {
                tracing::warn!(%error, "custom resources");
                let again = changed.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(RETRY).await;
                    again.notify_one();
                });
            }
        }
    });
    Ok(())
}

/// One look at everything.
async fn turn(
    server: &Server,
    built: &mut Built,
    cleaning: &mut HashSet<String>,
    changed: &Arc<Notify>,
) -> Result<(), Status> {
    let found = current(server);
    let now = schema::time::seconds(server.registry.clock().now());
    let planned = names::plan(&found, &now);
    // Served first: who sees a definition established may use it at once.
    serve(server, &planned, built).await?;
    for (name, crd) in &planned {
        if found.get(name).is_some_and(|old| old.get("status") != crd.get("status")) {
            write_status(server, name, crd).await?;
        }
    }
    cleaning.retain(|uid| planned.values().any(|crd| meta_text(crd, "uid") == uid));
    for (name, crd) in planned.iter().filter(|(_, crd)| cleanup::is_due(crd)) {
        if cleaning.insert(meta_text(crd, "uid").to_owned()) {
            cleanup::spawn(server.clone(), name.clone(), crd.clone(), changed.clone());
        }
    }
    Ok(())
}

/// Puts the rows of all established definitions into the table.
async fn serve(server: &Server, all: &BTreeMap<String, Definition>, built: &mut Built) -> Result<(), Status> {
    let mut next = Built::new();
    for (name, crd) in all.iter().filter(|(_, crd)| registry::strategy::crd::is_true(crd, "Established")) {
        // What rows are made from; a change of a label makes no new ones.
        let terminating = crd.get("metadata").is_some_and(|m| m.get("deletionTimestamp").is_some());
        let accepted = crd.get("status").map(|s| s["acceptedNames"].clone());
        let print = json!([meta_text(crd, "uid"), crd.get("spec"), accepted, terminating]).to_string();
        let rows = match built.remove(name) {
            Some((old, rows)) if old == print => rows,
            _ => rows::build(server, crd),
        };
        next.insert(name.clone(), (print, rows));
    }
    *built = next;
    let mut rows: Vec<Arc<ResourceDef>> = built.values().flat_map(|(_, rows)| rows.iter().cloned()).collect();
    rows.sort_by(|a, b| {
        let versions = || rows::compare_versions(&b.version, &a.version);
        a.group.cmp(&b.group).then_with(versions).then_with(|| a.resource.cmp(&b.resource))
    });
    let old = server.registry.table();
    let before: Vec<&Arc<ResourceDef>> = old.rows().iter().filter(|r| r.custom.is_some()).collect();
    if before.len() == rows.len() && before.iter().zip(&rows).all(|(a, b)| Arc::ptr_eq(a, b)) {
        return Ok(());
    }
    server.registry.set_custom(rows).await
}

/// Writes the status of a definition, unless it has changed meanwhile: then there will be another look.
pub(crate) async fn write_status(server: &Server, name: &str, crd: &Definition) -> Result<(), Status> {
    write(server, name, "status", crd.clone()).await
}

/// Writes a definition (or its status) as the server.
pub(crate) async fn write(
    server: &Server,
    name: &str,
    subresource: &str,
    crd: Definition,
) -> Result<(), Status> {
    let Some(def) = definitions(server) else { return Ok(()) };
    let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
    let options = WriteOptions {
        user: &user,
        dry_run: false,
        field_manager: MANAGER.into(),
        field_validation: FieldValidation::Ignore,
        force: false,
    };
    let target = Target { def: &def, namespace: "", name, subresource };
    let admission = server.admission();
    match server.registry.update(target, crd, &options, &admission, Vec::new()).await {
        Ok(_) => Ok(()),
        Err(e) if e.is_conflict() || e.is_not_found() => Ok(()),
        Err(e) => Err(e),
    }
}
