//! Namespaces and Nodes.

use meta::{FieldError, Status};
use serde_json::{Value, json};

use super::{Context, Object, Strategy, child};
use crate::allocate::Reservation;
use crate::write::meta_text;

/// Label that carries a namespace's own name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Strategy of Namespaces: held by `spec.finalizers` until the namespace controller has emptied them.
pub struct Namespace;

impl Strategy for Namespace {
    fn default(&self, object: &mut Object) {
        let name = meta_text(object, "name").to_owned();
        if !name.is_empty() {
            child(child(object, "metadata"), "labels").insert(NAME_LABEL.into(), name.into());
        }
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Object) -> Result<Option<Reservation>, Status> {
        // A generated name is known only now.
        self.default(object);
        object.insert("status".into(), json!({"phase": "Active"}));
        let finalizers = child(object, "spec").entry("finalizers").or_insert_with(|| json!([]));
        if let Value::Array(list) = finalizers
            && !list.iter().any(|f| f == "kubernetes")
        {
            list.push("kubernetes".into());
        }
        Ok(None)
    }

    fn prepare_update(
        &self,
        _: &Context<'_>,
        subresource: &str,
        new: &mut Object,
        old: &Object,
    ) -> Result<Option<Reservation>, Status> {
        if subresource != "finalize" {
            match old.get("spec") {
                Some(spec) => drop(new.insert("spec".into(), spec.clone())),
                None => drop(new.remove("spec")),
            }
        }
        Ok(None)
    }

    fn validate(&self, _: &Object) -> Option<Vec<FieldError>> {
        Some(Vec::new())
    }

    fn begin_deletion(&self, object: &mut Object) {
        child(object, "status").insert("phase".into(), "Terminating".into());
    }

    fn name_problem(&self, name: &str) -> Option<String> {
        meta::names::label_problem(name)
    }
}

/// Strategy of Nodes.
pub struct Node;

impl Strategy for Node {
    /// A kubelet registers its node with status in one request.
    fn keeps_status_at_creation(&self) -> bool {
        true
    }

    fn validate(&self, node: &Object) -> Option<Vec<FieldError>> {
        let mut errors = Vec::new();
        let spec = node.get("spec").unwrap_or(&Value::Null);
        for (i, taint) in spec["taints"].as_array().into_iter().flatten().enumerate() {
            let at = |field: &str| format!("spec.taints[{i}].{field}");
            if let Some(problem) =
                meta::names::qualified_name_problem(taint["key"].as_str().unwrap_or_default())
            {
                errors.push(FieldError::invalid(at("key"), &taint["key"], &problem));
            }
            if let Some(problem) =
                meta::names::label_value_problem(taint["value"].as_str().unwrap_or_default())
            {
                errors.push(FieldError::invalid(at("value"), &taint["value"], &problem));
            }
            let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            errors.extend(crate::validate::required_one_of(&taint["effect"], &at("effect"), &effects));
        }
        Some(errors)
    }

    fn validate_update(&self, _: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        let cidrs = |o: &Object| o.get("spec").map(|s| s["podCIDRs"].clone()).unwrap_or_default();
        if !cidrs(old).is_null() && cidrs(new) != cidrs(old) {
            return vec![FieldError::forbidden(
                "spec.podCIDRs",
                "node updates may not change podCIDR except from \"\" to valid",
            )];
        }
        let provider = |o: &Object| o.get("spec").map(|s| s["providerID"].clone()).unwrap_or_default();
        if provider(old).is_string() && provider(new) != provider(old) {
            return vec![FieldError::forbidden(
                "spec.providerID",
                "node updates may not change providerID except from \"\" to valid",
            )];
        }
        Vec::new()
    }
}
