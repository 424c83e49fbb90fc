//! PersistentVolumes and their claims: the phase they start in, and what of them never changes.

use meta::{FieldError, Quantity, Status};
use serde_json::{Map, Value, json};

use super::{Context, Object, Strategy};
use crate::allocate::Reservation;

/// Members of a volume's spec that say where it is.
const SOURCES: [&str; 22] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

fn spec(object: &Object) -> &Value {
    object.get("spec").unwrap_or(&Value::Null)
}

/// The members of a spec that name its source.
fn source(object: &Object) -> Map<String, Value> {
    let members = spec(object).as_object().into_iter().flatten();
    members.filter(|(k, _)| SOURCES.contains(&k.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Strategy of PersistentVolumes.
pub struct Volume;

impl Strategy for Volume {
    fn prepare_create(&self, _: &Context<'_>, object: &mut Object) -> Result<Option<Reservation>, Status> {
        object.insert("status".into(), json!({"phase": "Pending"}));
        Ok(None)
    }

    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        let (mut errors, source) = (Vec::new(), source(object));
        if source.is_empty() {
            errors.push(FieldError::required("spec", "must specify a volume type"));
        }
        for name in source.keys().skip(1) {
            errors.push(FieldError::forbidden(
                format!("spec.{name}"),
                "may not specify more than 1 volume type",
            ));
        }
        let recycled = spec(object)["persistentVolumeReclaimPolicy"] == "Recycle";
        if recycled && spec(object)["hostPath"]["path"] == "/" {
            let why = "may not be 'recycle' for a hostPath mount of '/'";
            errors.push(FieldError::forbidden("spec.persistentVolumeReclaimPolicy", why));
        }
        errors
    }

    fn validate_update(&self, _: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if source(new) != source(old) {
            let why = "spec.persistentvolumesource is immutable after creation";
            errors.push(FieldError::forbidden("spec.persistentvolumesource", why));
        }
        let (now, before) = (&spec(new)["nodeAffinity"], &spec(old)["nodeAffinity"]);
        if !before.is_null() && now != before {
            let why = "field is immutable, except for updating from beta label to GA";
            errors.push(FieldError::invalid("spec.nodeAffinity", now, why));
        }
        errors
    }
}

/// Strategy of PersistentVolumeClaims.
pub struct Claim;

impl Strategy for Claim {
    fn prepare_create(&self, _: &Context<'_>, object: &mut Object) -> Result<Option<Reservation>, Status> {
        object.insert("status".into(), json!({"phase": "Pending"}));
        Ok(None)
    }

    fn validate(&self, object: &Object) -> Option<Vec<FieldError>> {
        let spec = spec(object);
        let mut errors = Vec::new();
        let modes = spec["accessModes"].as_array();
        if modes.is_none_or(|m| m.is_empty()) {
            errors.push(FieldError::required("spec.accessModes", "at least 1 access mode is required"));
        }
        if modes.is_some_and(|m| m.len() > 1 && m.iter().any(|m| m == "ReadWriteOncePod")) {
            let why = "may not use ReadWriteOncePod with other access modes";
            errors.push(FieldError::forbidden("spec.accessModes", why));
        }
        if spec["resources"]["requests"]["storage"].is_null() {
            errors.push(FieldError::required("spec.resources[storage]", ""));
        }
        Some(errors)
    }

    fn validate_update(&self, _: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        let (mut now, mut before) = (spec(new).clone(), spec(old).clone());
        let mut errors = Vec::new();
        let bound = old.get("status").is_some_and(|s| s["phase"] == "Bound");
        for value in [&mut now, &mut before] {
            if let Some(spec) = value.as_object_mut().filter(|_| bound) {
                spec.remove("volumeAttributesClassName");
                if let Some(resources) = spec.get_mut("resources").and_then(Value::as_object_mut) {
                    resources.remove("requests");
                }
            }
        }
        // Binding names the volume once; a class may be chosen for a claim that has none.
        for member in ["volumeName", "storageClassName"] {
            let unset = before[member].is_null() || before[member] == "";
            if let (true, Some(spec)) = (unset && now[member].is_string(), before.as_object_mut()) {
                spec.insert(member.into(), now[member].clone());
            }
        }
        if now != before {
            let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
            errors.push(FieldError::forbidden("spec", why));
        }
        let size = |value: &Value| value.as_str().and_then(|s| Quantity::parse(s).ok());
        let asked = size(&spec(new)["resources"]["requests"]["storage"]);
        let had = old.get("status").and_then(|s| size(&s["capacity"]["storage"]));
        let was = size(&spec(old)["resources"]["requests"]["storage"]);
        if bound && asked < was && asked.zip(had).is_some_and(|(asked, had)| asked <= had) {
            let why = "field can not be less than status.capacity";
            errors.push(FieldError::forbidden("spec.resources.requests.storage", why));
        }
        errors
    }
}
