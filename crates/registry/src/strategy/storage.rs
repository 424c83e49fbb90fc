//! PersistentVolumes and their claims: the phase they start in.

use meta::{FieldError, Status};
use serde_json::{Value, json};

use super::{Context, Object, Strategy};
use crate::allocate::Reservation;

/// Strategy of PersistentVolumes.
pub struct Volume;

impl Strategy for Volume {
    fn prepare_create(&self, _: &Context<'_>, object: &mut Object) -> Result<Option<Reservation>, Status> {
        object.insert("status".into(), json!({"phase": "Pending"}));
        Ok(None)
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
        let spec = object.get("spec").unwrap_or(&Value::Null);
        let mut errors = Vec::new();
        if spec["accessModes"].as_array().is_none_or(|m| m.is_empty()) {
            errors.push(FieldError::required("spec.accessModes", "at least 1 access mode is required"));
        }
        if spec["resources"]["requests"]["storage"].is_null() {
            errors.push(FieldError::required("spec.resources[storage]", ""));
        }
        Some(errors)
    }
}
