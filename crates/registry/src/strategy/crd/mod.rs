//! CustomResourceDefinition: defaults, what only the server sets, and every rule of a definition.

mod expressions;
mod names;
mod schema;
mod structural;
#[cfg(test)]
mod tests;

use ::schema::structural::Props;
use meta::{FieldError, Status};
use serde_json::{Value, json};

use super::{Context, Object, Strategy, child, set_default, text};
use crate::allocate::Reservation;
use crate::write::meta_text;

/// Finalizer under which all objects of a definition are deleted before it goes.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Annotation that says who approved an API in a group of the Kubernetes project.
pub const APPROVAL: &str = "api-approved.kubernetes.io";
/// Port of a conversion webhook's Service that names none.
const WEBHOOK_PORT: u16 = 443;

/// The strategy.
pub struct Definition;

/// The versions of a definition.
pub fn versions(crd: &Object) -> impl Iterator<Item = &Value> {
    crd.get("spec").and_then(|s| s.get("versions")).and_then(Value::as_array).into_iter().flatten()
}

/// The condition of a type.
pub fn condition<'a>(crd: &'a Object, ty: &str) -> Option<&'a Value> {
    let list = crd.get("status")?.get("conditions")?.as_array()?;
    list.iter().find(|c| c.get("type").and_then(Value::as_str) == Some(ty))
}

/// Whether a condition is true.
pub fn is_true(crd: &Object, ty: &str) -> bool {
    condition(crd, ty).is_some_and(|c| c.get("status").and_then(Value::as_str) == Some("True"))
}

/// Sets a condition; the time changes with the status only.
pub fn set_condition(crd: &mut Object, ty: &str, status: &str, reason: &str, message: &str, now: &str) {
    let list = child(crd, "status").entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    let found = list.iter_mut().find(|c| c.get("type").and_then(Value::as_str) == Some(ty));
    let Some(Value::Object(old)) = found else {
        list.push(json!({"type": ty, "status": status, "reason": reason, "message": message, "lastTransitionTime": now}));
        return;
    };
    if text(old, "status") != status {
        old.insert("lastTransitionTime".into(), now.into());
    }
    for (key, value) in [("status", status), ("reason", reason), ("message", message)] {
        old.insert(key.into(), value.into());
    }
}

/// Whether a group belongs to the Kubernetes project, so that its APIs need approval.
pub fn is_protected_group(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|g| group == *g || group.strip_suffix(g).is_some_and(|p| p.ends_with('.')))
}

/// State of the approval (the reason of its condition) and a sentence on it.
pub fn approval(crd: &Object) -> (&'static str, String) {
    let annotations = crd.get("metadata").and_then(|m| m.get("annotations"));
    let value = annotations.and_then(|a| a.get(APPROVAL)).and_then(Value::as_str).unwrap_or_default();
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    let must = format!("protected groups must have approval annotation {APPROVAL:?}");
    let host = value
        .split_once("://")
        .map(|(scheme, rest)| !scheme.is_empty() && !rest.split('/').next().unwrap_or_default().is_empty());
    match value {
        "" => ("MissingAnnotation", format!("{must}, {see}")),
        v if v.starts_with("unapproved") => ("UnapprovedAnnotation", format!("not approved: {v:?}")),
        v if host == Some(true) => ("ApprovedAnnotation", format!("approved in {v}")),
        _ => {
            let either = "with either a URL or a reason starting with \"unapproved\"";
            ("InvalidAnnotation", format!("{must} {either}, {see}"))
        }
    }
}

/// Adds the storage version to those that objects may be stored in.
fn record_storage_version(crd: &mut Object) {
    let storage =
        versions(crd).find(|v| v["storage"] == true).and_then(|v| v["name"].as_str()).map(String::from);
    let Some(storage) = storage else { return };
    let list = child(crd, "status").entry("storedVersions").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut().filter(|l| !l.iter().any(|v| *v == *storage)) {
        list.push(storage.into());
    }
}

impl Strategy for Definition {
    fn default(&self, crd: &mut Object) {
        let Some(Value::Object(spec)) = crd.get_mut("spec") else { return };
        let names = child(spec, "names");
        let kind = text(names, "kind").to_owned();
        if !kind.is_empty() {
            set_default(names, "singular", kind.to_lowercase());
            set_default(names, "listKind", format!("{kind}List"));
        }
        let conversion = child(spec, "conversion");
        if conversion.is_empty() {
            conversion.insert("strategy".into(), "None".into());
        }
        if let Some(service) =
            conversion.get_mut("webhook").and_then(|w| w.pointer_mut("/clientConfig/service"))
            && let Value::Object(service) = service
        {
            set_default(service, "port", WEBHOOK_PORT);
        }
    }

    fn prepare_create(&self, _: &Context<'_>, crd: &mut Object) -> Result<Option<Reservation>, Status> {
        crd.insert("status".into(), json!({}));
        record_storage_version(crd);
        // The shape that clients of the typed API decode.
        let status = child(crd, "status");
        status.insert("conditions".into(), json!([]));
        status.insert("acceptedNames".into(), json!({"plural": "", "kind": ""}));
        Ok(None)
    }

    fn prepare_update(
        &self,
        _: &Context<'_>,
        subresource: &str,
        new: &mut Object,
        _: &Object,
    ) -> Result<Option<Reservation>, Status> {
        if subresource.is_empty() {
            record_storage_version(new);
        }
        Ok(None)
    }

    fn validate_create(&self, crd: &Object) -> Option<Vec<FieldError>> {
        let mut errors = names::object_name(crd);
        errors.extend(names::spec(crd, None));
        errors.extend(names::approval_rules(crd, None));
        Some(errors)
    }

    fn validate(&self, _: &Object) -> Option<Vec<FieldError>> {
        Some(Vec::new())
    }

    fn validate_update(&self, _: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = names::spec(new, Some(old));
        errors.extend(names::immutable(new, old));
        errors.extend(names::stored_versions(new));
        errors.extend(names::approval_rules(new, Some(old)));
        errors
    }

    fn validate_status(&self, new: &Object, _: &Object) -> Vec<FieldError> {
        names::stored_versions(new)
    }

    fn warnings(&self, crd: &Object) -> Vec<String> {
        let mut out = std::collections::BTreeSet::new();
        for version in versions(crd) {
            let props = Props::parse(&version["schema"]["openAPIV3Schema"]);
            let found = std::cell::RefCell::new(&mut out);
            props.any(&|p: &Props| {
                let scalar = p.items.as_ref().is_none_or(|i| !matches!(&*i.ty, "object" | "array"));
                if p.list_type.as_deref() == Some("set") && !scalar {
                    let ty = p.items.as_ref().map_or("", |i| &*i.ty);
                    found.borrow_mut().insert(format!("x-kubernetes-list-type: set for items of type {ty:?} is not supported by server-side apply or CEL validation rules"));
                }
                if !p.format.is_empty() && ::schema::structural::format::effective(p).is_empty() {
                    found.borrow_mut().insert(format!("unrecognized format {:?}", &*p.format));
                }
                false
            });
        }
        out.into_iter().collect()
    }

    fn begin_deletion(&self, crd: &mut Object) {
        if condition(crd, "Terminating").is_some() {
            return;
        }
        let now = meta_text(crd, "deletionTimestamp").to_owned();
        let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
        set_condition(crd, "Terminating", "True", "InstanceDeletionPending", message, &now);
        let finalizers = crate::write::metadata(crd).entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = finalizers.as_array_mut().filter(|l| !l.iter().any(|f| f == CLEANUP_FINALIZER)) {
            list.push(CLEANUP_FINALIZER.into());
        }
    }
}
