//! What is to become of snapshots and their contents, as functions over values.

use api::prelude::*;
use jiff::Timestamp;
use serde_json::{Value, json};
use volumes::{LOCAL_PROVISIONER, annotated, annotation};

use super::objects::{BEING_DELETED, CONTENT_FINALIZER, DEFAULT_CLASS, Dynamic};

/// Name of the content that is made for a snapshot.
pub fn content_name(snapshot: &Dynamic) -> String {
    format!("snapcontent-{}", snapshot.uid())
}

/// The driver of a volume and its name for it.
pub fn handle(volume: &PersistentVolume) -> Option<(String, String)> {
    let source = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    if let Some(source) = source {
        return Some((source.driver.clone(), source.volume_handle.clone()));
    }
    let local = annotated(&volume.metadata, annotation::PROVISIONED_BY) == Some(LOCAL_PROVISIONER);
    local.then(|| (LOCAL_PROVISIONER.to_owned(), volume.name().to_owned()))
}

/// The class of a snapshot: the one it names, else the one default class of the driver.
pub fn class<'a>(
    snapshot: &Dynamic,
    classes: &'a [std::sync::Arc<Dynamic>],
    driver: &str,
) -> Result<&'a Dynamic, String> {
    let named = snapshot.text("/spec/volumeSnapshotClassName");
    if !named.is_empty() {
        let found = classes.iter().find(|class| class.name() == named);
        return found.map(|class| &**class).ok_or_else(|| {
            format!("failed to retrieve snapshot class {named} from the informer: \"volumesnapshotclass.snapshot.storage.k8s.io {named:?} not found\"")
        });
    }
    let is_default = |class: &&std::sync::Arc<Dynamic>| {
        class.annotation(DEFAULT_CLASS) == "true" && class.text("/driver") == driver
    };
    let defaults: Vec<_> = classes.iter().filter(is_default).collect();
    match defaults.as_slice() {
        [one] => Ok(one),
        [] => Err("cannot find default snapshot class".into()),
        many => Err(format!("{} default snapshot classes were found", many.len())),
    }
}

/// The content of a snapshot that is to be taken.
pub fn content(
    snapshot: &Dynamic,
    class: &Dynamic,
    volume: &PersistentVolume,
    (driver, handle): (&str, &str),
) -> Value {
    let mode = volume.spec.as_ref().and_then(|s| s.volume_mode.clone()).unwrap_or("Filesystem".into());
    let parameter = |name: &str| class.0.pointer("/parameters").and_then(|p| p.get(name)?.as_str());
    let mut annotations = json!({});
    for (from, to) in [
        ("csi.storage.k8s.io/snapshotter-secret-name", "snapshot.storage.kubernetes.io/deletion-secret-name"),
        (
            "csi.storage.k8s.io/snapshotter-secret-namespace",
            "snapshot.storage.kubernetes.io/deletion-secret-namespace",
        ),
    ] {
        if let (Some(value), Some(map)) = (parameter(from), annotations.as_object_mut()) {
            map.insert(to.into(), value.into());
        }
    }
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
        "metadata": {"name": content_name(snapshot), "finalizers": [CONTENT_FINALIZER], "annotations": annotations},
        "spec": {
            "deletionPolicy": class.text("/deletionPolicy"), "driver": driver, "sourceVolumeMode": mode,
            "source": {"volumeHandle": handle}, "volumeSnapshotClassName": class.name(),
            "volumeSnapshotRef": {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
                "name": snapshot.name(), "namespace": snapshot.namespace(), "uid": snapshot.uid(),
                "resourceVersion": snapshot.text("/metadata/resourceVersion")},
        },
    })
}

/// Whether a content is promised to a snapshot, by name or already by uid.
pub fn is_for(content: &Dynamic, snapshot: &Dynamic) -> bool {
    let of = |field: &str| content.text(&format!("/spec/volumeSnapshotRef/{field}"));
    let uid = of("uid");
    of("name") == snapshot.name()
        && of("namespace") == snapshot.namespace()
        && (uid.is_empty() || uid == snapshot.uid())
}

/// The status of a snapshot by its content's.
pub fn status(snapshot: &Dynamic, content: &Dynamic) -> Value {
    let mut status = snapshot.0.get("status").cloned().unwrap_or_else(|| json!({}));
    let Some(map) = status.as_object_mut() else { return status };
    map.insert("boundVolumeSnapshotContentName".into(), content.name().into());
    map.insert("readyToUse".into(), content.is_ready().into());
    let of = |field: &str| content.0.get("status").and_then(|status| status.get(field));
    let taken = of("creationTime").and_then(Value::as_i64);
    if let Some(at) = taken.and_then(|ns| Timestamp::from_nanosecond(i128::from(ns)).ok()) {
        let second = Timestamp::from_second(at.as_second()).unwrap_or(at);
        map.insert("creationTime".into(), second.to_string().into());
    }
    if let Some(bytes) = of("restoreSize").and_then(Value::as_i64) {
        map.insert("restoreSize".into(), shown(bytes).into());
    }
    match of("error") {
        Some(error) if !error.is_null() => drop(map.insert("error".into(), error.clone())),
        _ => drop(map.remove("error")),
    }
    status
}

/// Bytes as a quantity, in the largest binary unit that they are whole in.
pub fn shown(bytes: i64) -> String {
    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let whole = units.iter().find(|(_, shift)| bytes > 0 && bytes % (1i64 << shift) == 0);
    whole.map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

/// What is to be done with a content when its snapshot is going or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It stays, without its snapshot.
    Keep,
    /// Its driver is told, and it goes.
    Delete,
    /// It is going already.
    Wait,
}

/// The end of a content.
pub fn end(content: &Dynamic) -> End {
    match content.text("/spec/deletionPolicy") {
        "Delete" if content.is_terminating() && content.annotation(BEING_DELETED) == "yes" => End::Wait,
        "Delete" => End::Delete,
        _ => End::Keep,
    }
}

/// Whether a claim is still being made from a snapshot.
pub fn is_restored_by(claim: &PersistentVolumeClaim, snapshot: &Dynamic) -> bool {
    let pending = claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending") == "Pending";
    let spec = claim.spec.clone().unwrap_or_default();
    let by_source = spec.data_source.is_some_and(|s| s.kind == "VolumeSnapshot" && s.name == snapshot.name());
    let by_reference = spec.data_source_ref.is_some_and(|s| {
        let namespace = s.namespace.as_deref().unwrap_or(claim.namespace());
        s.kind == "VolumeSnapshot" && s.name == snapshot.name() && namespace == snapshot.namespace()
    });
    pending && (by_reference || (by_source && claim.namespace() == snapshot.namespace()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn snapshot(class: Option<&str>) -> Dynamic {
        Dynamic(json!({"metadata": {"name": "s", "namespace": "n", "uid": "u"},
            "spec": {"source": {"persistentVolumeClaimName": "c"}, "volumeSnapshotClassName": class}}))
    }

    #[test]
    fn classes() {
        let class_of = |name: &str, driver: &str, default: bool| {
            Arc::new(Dynamic(
                json!({"metadata": {"name": name, "annotations": {DEFAULT_CLASS: default.to_string()}},
                "driver": driver, "deletionPolicy": "Delete"}),
            ))
        };
        let all = [
            class_of("a", "d", true),
            class_of("b", "e", true),
            class_of("c", "f", true),
            class_of("g", "f", true),
        ];
        for (named, driver, expected) in [
            (None, "d", Ok("a")),
            (Some("b"), "d", Ok("b")),
            (None, "x", Err("cannot find default snapshot class".to_owned())),
            (None, "f", Err("2 default snapshot classes were found".to_owned())),
        ] {
            assert_eq!(class(&snapshot(named), &all, driver).map(Dynamic::name), expected);
        }
        assert!(class(&snapshot(Some("none")), &all, "d").unwrap_err().contains("not found"));
    }

    #[test]
    fn contents_and_their_snapshots() {
        let class = Dynamic(json!({"metadata": {"name": "k"}, "driver": "d", "deletionPolicy": "Retain",
            "parameters": {"csi.storage.k8s.io/snapshotter-secret-name": "secret"}}));
        let volume = PersistentVolume::from_value(
            json!({"metadata": {"name": "v"}, "spec": {"csi": {"driver": "d", "volumeHandle": "h"}}}),
        )
        .unwrap();
        assert_eq!(handle(&volume), Some(("d".into(), "h".into())));
        let taken = snapshot(None);
        let made = Dynamic(content(&taken, &class, &volume, ("d", "h")));
        assert!(is_for(&made, &taken) && made.name() == "snapcontent-u");
        assert_eq!(made.annotation("snapshot.storage.kubernetes.io/deletion-secret-name"), "secret");
        assert_eq!(end(&made), End::Keep);
        let other = Dynamic(json!({"metadata": {"name": "s", "namespace": "n", "uid": "x"}}));
        assert!(!is_for(&made, &other));

        let mut ready = made;
        ready.0["status"] = json!({"readyToUse": true, "restoreSize": 2i64 << 30, "creationTime": 1_700_000_000_500_000_000i64});
        let told = status(&taken, &ready);
        assert_eq!(
            told,
            json!({"boundVolumeSnapshotContentName": "snapcontent-u", "readyToUse": true, "restoreSize": "2Gi",
                "creationTime": "2023-11-14T22:13:20Z"})
        );
        assert_eq!(shown(1500), "1500");
    }

    #[test]
    fn the_end_of_contents() {
        let with = |policy: &str, deleted: bool, told: bool| {
            let mut object = json!({"metadata": {"name": "c"}, "spec": {"deletionPolicy": policy}});
            if deleted {
                object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            if told {
                object["metadata"]["annotations"] = json!({BEING_DELETED: "yes"});
            }
            end(&Dynamic(object))
        };
        assert_eq!(with("Delete", false, false), End::Delete);
        assert_eq!(with("Delete", true, false), End::Delete);
        assert_eq!(with("Delete", true, true), End::Wait);
        assert_eq!(with("Retain", true, false), End::Keep);
    }
}
