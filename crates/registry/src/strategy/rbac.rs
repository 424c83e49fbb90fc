//! Roles and their bindings.

use meta::{FieldError, Status};
use serde_json::{Value, json};

use super::{Context, Object, Strategy, child, set_default, text};
use crate::allocate::Reservation;
use crate::validate;

/// API group of roles and of users and groups in bindings.
const GROUP: &str = "rbac.authorization.k8s.io";

/// Strategy of Roles and ClusterRoles.
pub struct Role;

impl Strategy for Role {
    fn allows_create_on_update(&self) -> bool {
        true
    }

    fn prepare_create(&self, _: &Context<'_>, role: &mut Object) -> Result<Option<Reservation>, Status> {
        role.entry("rules").or_insert(Value::Null);
        Ok(None)
    }

    fn validate(&self, role: &Object) -> Option<Vec<FieldError>> {
        let cluster = text(role, "kind") == "ClusterRole";
        let mut errors = Vec::new();
        let rules = role.get("rules").and_then(Value::as_array);
        for (i, rule) in rules.into_iter().flatten().enumerate() {
            let at = |field: &str| format!("rules[{i}].{field}");
            let filled = |field: &str| rule[field].as_array().is_some_and(|a| !a.is_empty());
            if !filled("verbs") {
                errors.push(FieldError::required(at("verbs"), "verbs must contain at least one value"));
            }
            if filled("nonResourceURLs") {
                if !cluster {
                    errors.push(FieldError::invalid(
                        at("nonResourceURLs"),
                        &rule["nonResourceURLs"],
                        "namespaced rules cannot apply to non-resource URLs",
                    ));
                }
                if filled("apiGroups") || filled("resources") || filled("resourceNames") {
                    errors.push(FieldError::invalid(
                        at("nonResourceURLs"),
                        &rule["nonResourceURLs"],
                        "rules cannot apply to both regular resources and non-resource URLs",
                    ));
                }
                continue;
            }
            if !filled("apiGroups") {
                errors.push(FieldError::required(
                    at("apiGroups"),
                    "resource rules must supply at least one api group",
                ));
            }
            if !filled("resources") {
                errors.push(FieldError::required(
                    at("resources"),
                    "resource rules must supply at least one resource",
                ));
            }
        }
        Some(errors)
    }

    fn name_problem(&self, name: &str) -> Option<String> {
        meta::names::path_segment_problem(name)
    }
}

/// Strategy of RoleBindings and ClusterRoleBindings.
pub struct Binding;

impl Strategy for Binding {
    fn allows_create_on_update(&self) -> bool {
        true
    }

    fn default(&self, binding: &mut Object) {
        set_default(child(binding, "roleRef"), "apiGroup", GROUP);
        for subject in binding.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Value::Object(subject) = subject
                && matches!(text(subject, "kind"), "User" | "Group")
            {
                set_default(subject, "apiGroup", GROUP);
            }
        }
    }

    fn validate(&self, binding: &Object) -> Option<Vec<FieldError>> {
        let cluster = text(binding, "kind") == "ClusterRoleBinding";
        let role = binding.get("roleRef").unwrap_or(&Value::Null);
        let mut errors = Vec::new();
        if role["apiGroup"] != GROUP {
            errors.push(FieldError::not_supported("roleRef.apiGroup", &role["apiGroup"], &[GROUP]));
        }
        let kinds: &[&str] = if cluster { &["ClusterRole"] } else { &["Role", "ClusterRole"] };
        errors.extend(validate::required_one_of(&role["kind"], "roleRef.kind", kinds));
        match role["name"].as_str().unwrap_or_default() {
            "" => errors.push(FieldError::required("roleRef.name", "")),
            name => {
                if let Some(problem) = meta::names::path_segment_problem(name) {
                    errors.push(FieldError::invalid("roleRef.name", &json!(name), &problem));
                }
            }
        }
        for (i, subject) in
            binding.get("subjects").and_then(Value::as_array).into_iter().flatten().enumerate()
        {
            errors.extend(subject_errors(subject, &format!("subjects[{i}]")));
        }
        Some(errors)
    }

    fn validate_update(&self, _: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        if new.get("roleRef") == old.get("roleRef") {
            return Vec::new();
        }
        vec![FieldError::invalid(
            "roleRef",
            &new.get("roleRef").cloned().unwrap_or_default(),
            "cannot change roleRef",
        )]
    }

    fn name_problem(&self, name: &str) -> Option<String> {
        meta::names::path_segment_problem(name)
    }
}

fn subject_errors(subject: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = subject["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        errors.push(FieldError::required(format!("{at}.name"), ""));
    }
    let group = subject["apiGroup"].as_str().unwrap_or_default();
    match subject["kind"].as_str().unwrap_or_default() {
        "ServiceAccount" => {
            if !group.is_empty() {
                errors.push(FieldError::not_supported(format!("{at}.apiGroup"), &subject["apiGroup"], &[""]));
            }
            if subject["namespace"].as_str().unwrap_or_default().is_empty() {
                errors.push(FieldError::required(format!("{at}.namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.push(FieldError::not_supported(
                    format!("{at}.apiGroup"),
                    &subject["apiGroup"],
                    &[GROUP],
                ));
            }
        }
        _ => errors.push(FieldError::not_supported(
            format!("{at}.kind"),
            &subject["kind"],
            &["ServiceAccount", "User", "Group"],
        )),
    }
    errors
}
