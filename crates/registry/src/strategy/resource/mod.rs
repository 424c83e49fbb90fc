//! Kinds of `resource.k8s.io`: what claims may ask for, what slices may publish, and what allocations may say.

mod claim;
mod fields;
mod slice;
mod status;

#[cfg(test)]
mod tests;

use meta::{FieldError, Status};
use serde_json::{Map, Value};

use super::{Context, Object, Strategy};
use crate::allocate::Reservation;

/// Members of features that are off: they are dropped unless the object has them already.
const OFF: [&str; 9] = [
    "derivedAttributes",
    "skipNodeOperations",
    "nodeAllocatableResources",
    "compatibilityGroups",
    "partitionTypeAttribute",
    "bools",
    "ints",
    "strings",
    "versions",
];

fn part<'a>(object: &'a Object, name: &str) -> &'a Value {
    object.get(name).unwrap_or(&Value::Null)
}

/// Maps whose keys are users' and drivers' words.
const MAPS: [&str; 5] = ["attributes", "capacity", "counters", "labels", "annotations"];
/// What is passed on as it is.
const OPAQUE: [&str; 2] = ["opaque", "data"];

/// Drops members of features that are off. `within` is the member that the value is of.
fn drop_off(within: &str, value: &mut Value, old: &Value) {
    match value {
        Value::Object(members) => {
            if !MAPS.contains(&within) {
                members.retain(|name, _| !OFF.contains(&name.as_str()) || !old[name.as_str()].is_null());
            }
            for (name, member) in members.iter_mut().filter(|(name, _)| !OPAQUE.contains(&name.as_str())) {
                // An entry of a map is an ordinary value, whatever its key.
                let within = if MAPS.contains(&within) { "" } else { name.as_str() };
                drop_off(within, member, &old[name.as_str()]);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                drop_off("", item, &old[i]);
            }
        }
        _ => {}
    }
}

fn drop_disabled(object: &mut Object, old: Option<&Object>) {
    let none = Map::new();
    for name in ["spec", "status"] {
        if let Some(value) = object.get_mut(name) {
            drop_off(name, value, part(old.unwrap_or(&none), name));
        }
    }
}

/// Strategy of ResourceClaims.
pub struct Claim;

impl Strategy for Claim {
    fn default(&self, object: &mut Object) {
        if let Some(devices) = object.get_mut("spec").and_then(|spec| spec.get_mut("devices")) {
            claim::default(devices);
        }
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Object) -> Result<Option<Reservation>, Status> {
        drop_disabled(object, None);
        Ok(None)
    }

    fn prepare_update(
        &self,
        _: &Context<'_>,
        subresource: &str,
        new: &mut Object,
        old: &Object,
    ) -> Result<Option<Reservation>, Status> {
        drop_disabled(new, Some(old));
        if subresource == "status" {
            status::drop_deallocated(new, old);
        }
        Ok(None)
    }

    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        claim::check(&part(object, "spec")["devices"], "spec.devices")
    }

    fn validate_status(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        status::check(new, old)
    }
}

/// Strategy of ResourceClaimTemplates.
pub struct Template;

impl Strategy for Template {
    fn default(&self, object: &mut Object) {
        let spec = object.get_mut("spec").and_then(|spec| spec.get_mut("spec"));
        if let Some(devices) = spec.and_then(|spec| spec.get_mut("devices")) {
            claim::default(devices);
        }
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Object) -> Result<Option<Reservation>, Status> {
        drop_disabled(object, None);
        Ok(None)
    }

    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        claim::check(&part(object, "spec")["spec"]["devices"], "spec.spec.devices")
    }
}

/// Strategy of DeviceClasses.
pub struct Class;

impl Strategy for Class {
    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        let spec = part(object, "spec");
        let mut errors = fields::selectors(&spec["selectors"], "spec.selectors");
        for (i, config) in spec["config"].as_array().into_iter().flatten().enumerate() {
            errors.extend(fields::opaque(config, &format!("spec.config[{i}]")));
        }
        let name = &spec["extendedResourceName"];
        if name.as_str().is_some_and(|name| !fields::is_extended_resource(name)) {
            let why = "must be a valid extended resource name";
            errors.push(FieldError::invalid("spec.extendedResourceName", name, why));
        }
        errors
    }
}

/// Strategy of ResourceSlices.
pub struct Slice;

impl Strategy for Slice {
    fn prepare_create(
        &self,
        context: &Context<'_>,
        object: &mut Object,
    ) -> Result<Option<Reservation>, Status> {
        drop_disabled(object, None);
        slice::date(object, context.now);
        Ok(None)
    }

    fn prepare_update(
        &self,
        context: &Context<'_>,
        _: &str,
        new: &mut Object,
        old: &Object,
    ) -> Result<Option<Reservation>, Status> {
        drop_disabled(new, Some(old));
        slice::date(new, context.now);
        Ok(None)
    }

    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        slice::check(part(object, "spec"))
    }
}
