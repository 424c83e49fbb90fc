//! From one version of an object to the next: what the URL decides, what only the server changes, and what
//! a subresource may not touch.

use meta::Status;
use serde_json::{Map, Value};

use crate::resource::ResourceDef;
use crate::strategy::Context;
use crate::write::{Target, metadata};

/// Puts the object where the URL says it is, or refuses.
pub fn place(target: &Target<'_>, object: &mut Map<String, Value>) -> Result<(), Status> {
    let metadata = metadata(object);
    let text =
        |m: &Map<String, Value>, key: &str| m.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    if target.def.namespaced {
        match text(metadata, "namespace").as_str() {
            ns if ns == target.namespace => {}
            "" => drop(metadata.insert("namespace".into(), target.namespace.into())),
            _ => {
                return Err(Status::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
        }
    } else {
        metadata.remove("namespace");
    }
    let name = text(metadata, "name");
    if !target.name.is_empty() && name != target.name {
        if name.is_empty() {
            metadata.insert("name".into(), target.name.into());
        } else {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                target.name
            )));
        }
    }
    Ok(())
}

/// What every new object gets.
pub fn prepare_new_metadata(def: &ResourceDef, object: &mut Map<String, Value>, context: &Context<'_>) {
    let counts = def.counts_generation;
    let metadata = metadata(object);
    for key in
        ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion", "generation"]
    {
        metadata.remove(key);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), schema::time::seconds(context.now).into());
    if counts {
        metadata.insert("generation".into(), 1.into());
    }
}

/// Metadata that only the server changes.
pub fn keep_system_metadata(old: &Map<String, Value>, new: &mut Map<String, Value>) {
    let old = old.get("metadata");
    let metadata = metadata(new);
    for key in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
        "generateName",
    ] {
        match old.and_then(|m| m.get(key)) {
            Some(value) => drop(metadata.insert(key.into(), value.clone())),
            None => drop(metadata.remove(key)),
        }
    }
    metadata.remove("resourceVersion");
    if !metadata.contains_key("managedFields")
        && let Some(fields) = old.and_then(|m| m.get("managedFields"))
    {
        metadata.insert("managedFields".into(), fields.clone());
    }
}

/// The main resource cannot change the status; a subresource cannot change anything but its part.
pub fn restrict_to_subresource(
    def: &ResourceDef,
    subresource: &str,
    old: &Map<String, Value>,
    new: &mut Map<String, Value>,
) {
    match subresource {
        "" if def.subresource("status").is_some() && def.strategy.resets_status() => {
            copy_member(old, new, "status")
        }
        "status" => {
            let status = new.remove("status");
            let sent = std::mem::take(metadata(new));
            *new = old.clone();
            match status {
                Some(status) => drop(new.insert("status".into(), status)),
                None => drop(new.remove("status")),
            }
            let metadata = metadata(new);
            for key in ["labels", "annotations", "managedFields"] {
                match sent.get(key) {
                    Some(v) => drop(metadata.insert(key.into(), v.clone())),
                    None if key != "managedFields" => drop(metadata.remove(key)),
                    None => {}
                }
            }
        }
        _ => {}
    }
}

fn copy_member(from: &Map<String, Value>, to: &mut Map<String, Value>, key: &str) {
    match from.get(key) {
        Some(value) => drop(to.insert(key.to_owned(), value.clone())),
        None => drop(to.remove(key)),
    }
}

/// Whether anything but metadata and status differs.
pub fn spec_changed(def: &ResourceDef, old: &Map<String, Value>, new: &Map<String, Value>) -> bool {
    // A custom resource without the subresource has no status: a field of that name is like any other.
    let status_counts = def.custom.is_some();
    let relevant = |k: &&String| match k.as_str() {
        "metadata" | "apiVersion" | "kind" => false,
        "status" => status_counts,
        _ => true,
    };
    old.keys().chain(new.keys()).filter(relevant).any(|k| old.get(k) != new.get(k))
}

/// Whether deletion has begun and nothing holds the object any more.
pub fn is_finished(object: &Map<String, Value>) -> bool {
    let Some(metadata) = object.get("metadata").and_then(Value::as_object) else { return false };
    let held = metadata.get("finalizers").and_then(Value::as_array).is_some_and(|f| !f.is_empty());
    let held_by_spec =
        object.get("spec").and_then(|s| s.get("finalizers")).and_then(Value::as_array).is_some_and(|f| {
            !f.is_empty() && object.get("kind").and_then(Value::as_str) == Some("Namespace")
        });
    let waiting = metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) > 0;
    metadata.contains_key("deletionTimestamp") && !held && !held_by_spec && !waiting
}
