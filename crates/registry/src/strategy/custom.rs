//! The strategy of every custom resource: its schema's rules, scale and generation.

use std::sync::Arc;

use meta::FieldError;
use meta::Status;
use schema::structural::{Props, lists, value};
use serde_json::Value;

use super::{Context, Object, Strategy};
use crate::allocate::Reservation;
use crate::custom::Scale;
use crate::write::metadata;

/// What a definition says about one version of its kind.
pub struct CustomStrategy {
    /// Schema.
    pub props: Arc<Props>,
    /// The scale subresource.
    pub scale: Option<Scale>,
    /// CEL rules.
    pub rules: Option<super::rules::Rules>,
}

impl CustomStrategy {
    /// Rules that hold for the whole object, new or changed.
    fn common(&self, object: &Object) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if let Some(scale) = &self.scale {
            errors.extend(replicas(object, &scale.spec));
            errors.extend(scale_status(object, scale));
        }
        errors.extend(lists::embedded(&self.props, object));
        errors
    }

    fn expressions(&self, object: &Object, old: Option<&Object>, errors: &mut Vec<FieldError>) {
        if let Some(rules) = &self.rules {
            let old = old.cloned().map(Value::Object);
            rules.check(&Value::Object(object.clone()), old.as_ref(), errors);
        }
    }

    fn rules(&self, object: &Object, old: Option<&Object>) -> Vec<FieldError> {
        let new = Value::Object(object.clone());
        let old = old.cloned().map(Value::Object);
        value::validate(&self.props, &new, old.as_ref())
    }
}

impl Strategy for CustomStrategy {
    fn validate_create(&self, object: &Object) -> Option<Vec<FieldError>> {
        let mut errors = self.rules(object, None);
        errors.extend(self.common(object));
        errors.extend(lists::duplicates(&self.props, object));
        self.expressions(object, None, &mut errors);
        Some(errors)
    }

    fn validate(&self, _: &Object) -> Option<Vec<FieldError>> {
        // A change is judged together with what was there before.
        Some(Vec::new())
    }

    fn validate_update(&self, _: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = self.rules(new, Some(old));
        errors.extend(self.common(new));
        if lists::duplicates(&self.props, old).is_empty() {
            errors.extend(lists::duplicates(&self.props, new));
        }
        self.expressions(new, Some(old), &mut errors);
        errors
    }

    fn validate_status(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if let (Some(status), Some(schema)) = (new.get("status"), self.props.properties.get("status")) {
            errors.extend(value::below(schema, status, old.get("status"), "status"));
        }
        if let Some(scale) = &self.scale {
            errors.extend(scale_status(new, scale));
        }
        self.expressions(new, Some(old), &mut errors);
        errors
    }

    fn prepare_update(
        &self,
        _: &Context<'_>,
        subresource: &str,
        new: &mut Object,
        old: &Object,
    ) -> Result<Option<Reservation>, Status> {
        if subresource == "status" {
            // The status alone: labels and annotations belong to the main resource.
            for key in ["labels", "annotations", "finalizers", "ownerReferences"] {
                match old.get("metadata").and_then(|m| m.get(key)) {
                    Some(value) => drop(metadata(new).insert(key.into(), value.clone())),
                    None => drop(metadata(new).remove(key)),
                }
            }
        }
        Ok(None)
    }

    fn warnings(&self, object: &Object) -> Vec<String> {
        let list = object.get("metadata").and_then(|m| m.get("finalizers")).and_then(Value::as_array);
        let unqualified =
            list.into_iter().flatten().filter_map(Value::as_str).filter(|f| {
                !f.contains('/') && !matches!(*f, "orphan" | "foregroundDeletion" | "kubernetes")
            });
        let warn = |f: &str| {
            let path = if f.contains('.') { " including a path (/)" } else { "" };
            format!(
                "metadata.finalizers: {f:?}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
            )
        };
        unqualified.map(warn).collect()
    }
}

/// The value at a simple path such as `.spec.replicas`.
pub fn at_path<'a>(object: &'a Object, path: &str) -> Option<&'a Value> {
    let mut parts = path.trim_start_matches('.').split('.');
    let first = object.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

fn replicas(object: &Object, path: &str) -> Option<FieldError> {
    let value = at_path(object, path)?;
    let Some(n) = value.as_i64() else {
        let kind = if value.is_string() { "string" } else { "float64" };
        let why = format!("{path} accessor error: {value} is of the type {kind}, expected int64");
        return Some(FieldError::invalid(path, &0.into(), &why));
    };
    let why = match n {
        n if n < 0 => "should be a non-negative integer".to_owned(),
        n if n > i64::from(i32::MAX) => format!("should be less than or equal to {}", i32::MAX),
        _ => return None,
    };
    Some(FieldError::invalid(path, value, &why))
}

fn scale_status(object: &Object, scale: &Scale) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = replicas(object, &scale.status).into_iter().collect();
    if let Some(path) = &scale.selector
        && let Some(value) = at_path(object, path).filter(|v| !v.is_string())
    {
        let why = format!("{path} accessor error: {value} is of the wrong type, expected string");
        errors.push(FieldError::invalid(&**path, &"".into(), &why));
    }
    errors
}
