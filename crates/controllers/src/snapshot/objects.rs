//! Snapshots and their contents as JSON: their kinds are custom resources, so there are no structs for them.

use api::DecodeError;
use api::prelude::ObjectReference;
use meta::Gvr;
use reconcile::Cached;
use serde_json::{Value, json};

/// `VolumeSnapshot`s.
pub static SNAPSHOTS: Gvr = Gvr::new(GROUP, "v1", "volumesnapshots");
/// `VolumeSnapshotContent`s.
pub static CONTENTS: Gvr = Gvr::new(GROUP, "v1", "volumesnapshotcontents");
/// `VolumeSnapshotClass`es.
pub static CLASSES: Gvr = Gvr::new(GROUP, "v1", "volumesnapshotclasses");
/// Their group.
pub const GROUP: &str = "snapshot.storage.k8s.io";

/// Keeps a content until the data behind it is dealt with.
pub const CONTENT_FINALIZER: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
/// Keeps a snapshot while its content is there.
pub const BOUND_FINALIZER: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
/// Keeps a snapshot while volumes are being restored from it.
pub const SOURCE_FINALIZER: &str = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection";
/// Keeps a claim while a snapshot of it is being taken.
pub const CLAIM_FINALIZER: &str = "snapshot.storage.kubernetes.io/pvc-as-source-protection";
/// Says to the driver's side that a content's snapshot is going.
pub const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";
/// Marks a default class of a driver.
pub const DEFAULT_CLASS: &str = "snapshot.storage.kubernetes.io/is-default-class";

/// An object of a kind that has no struct.
#[derive(Debug, Clone, PartialEq)]
pub struct Dynamic(pub Value);

impl Cached for Dynamic {
    fn decode_cached(json: &[u8]) -> Result<Self, DecodeError> {
        let value = serde_json::from_slice(json).map_err(|source| DecodeError { kind: "object", source })?;
        Ok(Dynamic(value))
    }
    fn cache_key(&self) -> String {
        match self.namespace() {
            "" => self.name().to_owned(),
            namespace => format!("{namespace}/{}", self.name()),
        }
    }
    fn cache_version(&self) -> &str {
        self.text("/metadata/resourceVersion")
    }
}

impl Dynamic {
    /// The text at a pointer; empty where there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// Name.
    pub fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    /// Namespace.
    pub fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }

    /// Uid.
    pub fn uid(&self) -> &str {
        self.text("/metadata/uid")
    }

    /// Whether it is being deleted.
    pub fn is_terminating(&self) -> bool {
        !self.text("/metadata/deletionTimestamp").is_empty()
    }

    /// Its finalizers.
    pub fn finalizers(&self) -> Vec<String> {
        let all = self.0.pointer("/metadata/finalizers").and_then(Value::as_array).into_iter().flatten();
        all.filter_map(|f| f.as_str().map(String::from)).collect()
    }

    /// An annotation.
    pub fn annotation(&self, name: &str) -> &str {
        let all = self.0.pointer("/metadata/annotations");
        all.and_then(|all| all.get(name)).and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether a volume can be restored from it.
    pub fn is_ready(&self) -> bool {
        self.0.pointer("/status/readyToUse") == Some(&Value::Bool(true))
    }

    /// What events refer to it by.
    pub fn reference(&self) -> ObjectReference {
        let text = |pointer: &str| Some(self.text(pointer).to_owned()).filter(|text| !text.is_empty());
        ObjectReference {
            api_version: text("/apiVersion"),
            kind: text("/kind"),
            name: text("/metadata/name"),
            namespace: text("/metadata/namespace"),
            uid: text("/metadata/uid"),
            resource_version: text("/metadata/resourceVersion"),
            ..ObjectReference::default()
        }
    }

    /// A merge patch that brings finalizers to this list, if nothing else has changed.
    pub fn finalizers_patch(&self, finalizers: &[String]) -> Value {
        json!({"metadata": {"finalizers": finalizers, "resourceVersion": self.cache_version()}})
    }
}
