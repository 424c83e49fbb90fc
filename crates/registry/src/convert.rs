//! Versions: objects are stored in one version per kind and shown in the version that was asked for.
//!
//! Most versions of a kind differ only in `apiVersion`; what differs more has a pair of functions here.
//! Custom resources are converted by their authors' webhooks, or by name only.

use std::sync::Arc;

use bytes::Bytes;
use meta::{FieldSelector, Object, Status};
use serde_json::{Map, Value, json};

use crate::resource::ResourceDef;
use crate::write::into_map;

/// Whether encoded bytes are of an object in a version.
pub fn has_version(bytes: &[u8], api_version: &str) -> bool {
    // `encode` puts the version first.
    let rest = bytes.strip_prefix(b"{\"apiVersion\":\"").and_then(|r| r.strip_prefix(api_version.as_bytes()));
    rest.is_some_and(|r| r.starts_with(b"\""))
}

/// Whether stored bytes can be shown in the version of `def` as they are.
pub fn shows_as_is(def: &ResourceDef, bytes: &[u8]) -> bool {
    match &def.custom {
        Some(custom) => has_version(bytes, &custom.api_version),
        None => def.stored_as.is_none(),
    }
}

/// From the request's version to the stored one.
pub async fn to_storage(def: &ResourceDef, object: Map<String, Value>) -> Result<Map<String, Value>, Status> {
    match &def.custom {
        Some(custom) => custom.to_storage(object).await,
        None => Ok(builtin_to_storage(def, object)),
    }
}

/// From the stored version to the request's.
pub async fn from_storage(
    def: &ResourceDef,
    object: Map<String, Value>,
) -> Result<Map<String, Value>, Status> {
    match &def.custom {
        Some(custom) => {
            custom.from_storage(vec![object]).await?.pop().ok_or_else(|| Status::internal("no object"))
        }
        None => Ok(builtin_from_storage(def, object)),
    }
}

/// Bytes of a stored object in the version of `def`.
pub async fn shown(def: &ResourceDef, bytes: Bytes) -> Result<Bytes, Status> {
    shown_all(def, vec![bytes]).await?.pop().ok_or_else(|| Status::internal("no object"))
}

/// Bytes of stored objects in the version of `def`; what needs conversion is converted at once.
pub async fn shown_all(def: &ResourceDef, mut all: Vec<Bytes>) -> Result<Vec<Bytes>, Status> {
    let differ: Vec<usize> = (0..all.len()).filter(|i| !shows_as_is(def, &all[*i])).collect();
    if differ.is_empty() {
        return Ok(all);
    }
    let Some(custom) = &def.custom else {
        return Ok(all.into_iter().map(|b| builtin_bytes(def, b)).collect());
    };
    let parse = |i: &usize| into_map(serde_json::from_slice(&all[*i]).unwrap_or_default());
    let objects = custom.from_storage(differ.iter().map(parse).collect()).await?;
    for (i, object) in differ.into_iter().zip(objects) {
        all[i] = encoded(&object);
    }
    Ok(all)
}

/// Which objects have the selected fields in the version of `def`.
pub async fn selected(
    def: &ResourceDef,
    fields: &FieldSelector,
    objects: &[Arc<Object>],
) -> Result<Vec<bool>, Status> {
    let all = shown_all(def, objects.iter().map(|o| o.bytes.clone()).collect()).await?;
    let matches = |bytes: &Bytes| {
        let tree: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let values: Vec<(&str, String)> =
            def.selectable.iter().map(|f| (&**f, meta::object::field_text(&tree, f))).collect();
        fields.matches_with(|f| values.iter().find(|(name, _)| *name == f).map(|(_, v)| v.as_str()))
    };
    Ok(all.iter().map(matches).collect())
}

/// An object with the resource version that it carries.
fn encoded(object: &Map<String, Value>) -> Bytes {
    let revision = crate::write::meta_text(object, "resourceVersion").parse().ok();
    let encoded = meta::object::encode(object);
    revision.and_then(|r| meta::object::with_revision(&encoded, r)).unwrap_or(encoded)
}

fn builtin_to_storage(def: &ResourceDef, mut object: Map<String, Value>) -> Map<String, Value> {
    let Some((group, version, _)) = &def.stored_as else { return object };
    match (&*def.group, &*def.version, &*def.kind) {
        ("events.k8s.io", _, "Event") => rename(&mut object, EVENT, false),
        ("autoscaling", "v1", _) => autoscaler_to_v2(&mut object),
        _ => {}
    }
    object.insert("apiVersion".into(), meta::gvk::join_api_version(group, version).into());
    object
}

fn builtin_from_storage(def: &ResourceDef, mut object: Map<String, Value>) -> Map<String, Value> {
    if def.stored_as.is_none() {
        return object;
    }
    match (&*def.group, &*def.version, &*def.kind) {
        ("events.k8s.io", _, "Event") => rename(&mut object, EVENT, true),
        ("autoscaling", "v1", _) => autoscaler_to_v1(&mut object),
        _ => {}
    }
    object.insert("apiVersion".into(), def.api_version().into());
    object
}

fn builtin_bytes(def: &ResourceDef, bytes: Bytes) -> Bytes {
    encoded(&builtin_from_storage(def, into_map(serde_json::from_slice(&bytes).unwrap_or_default())))
}

/// Fields of core/v1 Event and what events.k8s.io/v1 calls them.
const EVENT: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// What a field of the version of `def` is called in what is stored: selectors are judged there.
pub fn stored_field(def: &ResourceDef, field: &str) -> String {
    let (first, rest) = field.split_once('.').map_or((field, None), |(first, rest)| (first, Some(rest)));
    let renamed = match (def.stored_as.is_some(), &*def.group, &*def.kind) {
        (true, "events.k8s.io", "Event") => EVENT.iter().find(|(_, shown)| *shown == first),
        _ => None,
    };
    match (renamed, rest) {
        (None, _) => field.to_owned(),
        (Some((stored, _)), None) => (*stored).to_owned(),
        (Some((stored, _)), Some(rest)) => format!("{stored}.{rest}"),
    }
}

fn rename(object: &mut Map<String, Value>, names: &[(&str, &str)], forward: bool) {
    for (stored, shown) in names {
        let (from, to) = if forward { (*stored, *shown) } else { (*shown, *stored) };
        if let Some(value) = object.remove(from) {
            object.insert(to.to_owned(), value);
        }
    }
}

fn autoscaler_to_v2(object: &mut Map<String, Value>) {
    if let Some(Value::Object(spec)) = object.get_mut("spec")
        && let Some(percent) = spec.remove("targetCPUUtilizationPercentage")
    {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        spec.insert(
            "metrics".into(),
            json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]),
        );
    }
    if let Some(Value::Object(status)) = object.get_mut("status")
        && let Some(percent) = status.remove("currentCPUUtilizationPercentage")
    {
        let current = json!({"averageUtilization": percent});
        let metric = json!([{"type": "Resource", "resource": {"name": "cpu", "current": current}}]);
        status.insert("currentMetrics".into(), metric);
    }
}

fn autoscaler_to_v1(object: &mut Map<String, Value>) {
    let cpu = |list: Option<Value>, pointer: &str| {
        (list.as_ref().and_then(Value::as_array).into_iter().flatten())
            .find(|m| m["resource"]["name"] == "cpu")
            .and_then(|m| m.pointer(pointer).cloned())
    };
    if let Some(Value::Object(spec)) = object.get_mut("spec") {
        let metrics = spec.remove("metrics");
        spec.remove("behavior");
        if let Some(percent) = cpu(metrics, "/resource/target/averageUtilization") {
            spec.insert("targetCPUUtilizationPercentage".into(), percent);
        }
    }
    if let Some(Value::Object(status)) = object.get_mut("status") {
        let metrics = status.remove("currentMetrics");
        status.remove("conditions");
        if let Some(percent) = cpu(metrics, "/resource/current/averageUtilization") {
            status.insert("currentCPUUtilizationPercentage".into(), percent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ResourceTable;

    #[test]
    fn events_change_names_and_come_back() {
        let table = ResourceTable::builtin().unwrap();
        let def = table.find("events.k8s.io", "v1", "events").unwrap();
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"name": "p"}});
        let stored = builtin_to_storage(def, into_map(event.clone()));
        assert_eq!(stored["message"], "n");
        assert_eq!(stored_field(def, "regarding.name"), "involvedObject.name");
        assert_eq!(stored_field(def, "reportingController"), "reportingComponent");
        assert_eq!(stored_field(def, "reason"), "reason");
        assert_eq!(stored["apiVersion"], "v1");
        assert_eq!(Value::Object(builtin_from_storage(def, stored)), event);
    }
}
