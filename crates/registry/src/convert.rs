//! Versions: objects are stored in one version per kind and shown in the version that was asked for.
//!
//! Most versions of a kind differ only in `apiVersion`; what differs more has a pair of functions here.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::resource::ResourceDef;
use crate::write::into_map;

/// From the request's version to the stored one.
pub fn to_storage(def: &ResourceDef, mut object: Map<String, Value>) -> Map<String, Value> {
    let Some((group, version, _)) = &def.stored_as else { return object };
    match (&*def.group, &*def.version, &*def.kind) {
        ("events.k8s.io", _, "Event") => rename(&mut object, EVENT, false),
        ("autoscaling", "v1", _) => autoscaler_to_v2(&mut object),
        _ => {}
    }
    object.insert("apiVersion".into(), meta::gvk::join_api_version(group, version).into());
    object
}

/// From the stored version to the request's.
pub fn from_storage(def: &ResourceDef, mut object: Map<String, Value>) -> Map<String, Value> {
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

/// The same over bytes; without another version the bytes pass through untouched.
pub fn bytes_from_storage(def: &ResourceDef, bytes: Bytes) -> Bytes {
    if def.stored_as.is_none() {
        return bytes;
    }
    let object = from_storage(def, into_map(serde_json::from_slice(&bytes).unwrap_or_default()));
    let revision = crate::write::meta_text(&object, "resourceVersion").parse().ok();
    let encoded = meta::object::encode(&object);
    revision.and_then(|r| meta::object::with_revision(&encoded, r)).unwrap_or(encoded)
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
        let stored = to_storage(def, into_map(event.clone()));
        assert_eq!(stored["message"], "n");
        assert_eq!(stored["apiVersion"], "v1");
        assert_eq!(Value::Object(from_storage(def, stored)), event);
    }
}
