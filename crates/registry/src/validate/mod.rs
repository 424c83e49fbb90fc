//! Rules for fields: metadata of every kind, and the pieces that kinds' rules are made of.

pub mod job;
mod placement;
pub mod pod;
pub mod rules;
mod users;
pub mod warnings;
pub mod workload;

use meta::{FieldError, names};
use serde_json::{Map, Value};

use crate::resource::ResourceDef;
use crate::write::meta_text;

/// Most bytes of all annotations together.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// Every rule that the metadata of a new object breaks.
pub fn metadata(def: &ResourceDef, object: &Map<String, Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = meta_text(object, "name");
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else if let Some(problem) = def.strategy.name_problem(name) {
        errors.push(FieldError::invalid("metadata.name", &name.into(), &problem));
    }
    let generate = meta_text(object, "generateName");
    if !generate.is_empty() {
        // A trailing dash is where the suffix will go.
        let base = generate.strip_suffix('-').unwrap_or(generate);
        if let Some(problem) = def.strategy.name_problem(base) {
            errors.push(FieldError::invalid("metadata.generateName", &generate.into(), &problem));
        }
    }
    if def.namespaced {
        let namespace = meta_text(object, "namespace");
        if namespace.is_empty() {
            errors.push(FieldError::required("metadata.namespace", ""));
        } else if let Some(problem) = names::label_problem(namespace) {
            errors.push(FieldError::invalid("metadata.namespace", &namespace.into(), &problem));
        }
    }
    errors.extend(common_metadata(def, object));
    errors
}

fn common_metadata(def: &ResourceDef, object: &Map<String, Value>) -> Vec<FieldError> {
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    let mut errors = labels(&metadata["labels"], "metadata.labels");
    errors.extend(annotations(&metadata["annotations"], "metadata.annotations"));
    for (i, finalizer) in metadata["finalizers"].as_array().into_iter().flatten().enumerate() {
        let text = finalizer.as_str().unwrap_or_default();
        let problem = names::qualified_name_problem(text);
        let standard = matches!(text, "orphan" | "foregroundDeletion" | "kubernetes");
        if let Some(problem) = problem {
            errors.push(FieldError::invalid(format!("metadata.finalizers[{i}]"), finalizer, &problem));
        } else if !standard && !text.contains('/') && def.custom.is_none() {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(format!("metadata.finalizers[{i}]"), finalizer, why));
        }
    }
    errors.extend(owners(&metadata["ownerReferences"]));
    errors
}

fn owners(list: &Value) -> Vec<FieldError> {
    let (mut errors, mut controllers) = (Vec::new(), 0);
    for (i, owner) in list.as_array().into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                let why =
                    if field == "apiVersion" { "version must not be empty" } else { "must not be empty" };
                errors.push(FieldError::invalid(
                    format!("metadata.ownerReferences[{i}].{field}"),
                    &owner[field],
                    why,
                ));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        let why = "Only one reference can have Controller set to true";
        errors.push(FieldError::invalid("metadata.ownerReferences", &Value::Null, why));
    }
    errors
}

/// Every rule that a change of metadata breaks.
pub fn metadata_update(
    def: &ResourceDef,
    new: &Map<String, Value>,
    old: &Map<String, Value>,
) -> Vec<FieldError> {
    let mut errors = common_metadata(def, new);
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        if key == "namespace" && !def.namespaced {
            continue;
        }
        if meta_text(new, key) != meta_text(old, key) {
            errors.push(FieldError::invalid(
                format!("metadata.{key}"),
                &meta_text(new, key).into(),
                "field is immutable",
            ));
        }
    }
    let list = |o: &Map<String, Value>| {
        o.get("metadata").and_then(|m| m["finalizers"].as_array().cloned()).unwrap_or_default()
    };
    if old.get("metadata").is_some_and(|m| m.get("deletionTimestamp").is_some()) {
        let before = list(old);
        let added: Vec<String> = (list(new).iter().filter(|f| !before.contains(f)))
            .filter_map(|f| f.as_str().map(String::from))
            .collect();
        if !added.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            errors.push(FieldError::forbidden("metadata.finalizers", &why));
        }
    }
    errors
}

/// Rules for labels (or a map selector).
pub fn labels(map: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in map.as_object().into_iter().flatten() {
        if let Some(problem) = names::qualified_name_problem(key) {
            errors.push(FieldError::invalid(at, &key.as_str().into(), &problem));
        }
        if let Some(problem) = names::label_value_problem(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(at, value, &problem));
        }
    }
    errors
}

fn annotations(map: &Value, at: &str) -> Vec<FieldError> {
    let (mut errors, mut total) = (Vec::new(), 0);
    for (key, value) in map.as_object().into_iter().flatten() {
        if let Some(problem) = names::qualified_name_problem(&key.to_lowercase()) {
            errors.push(FieldError::invalid(at, &key.as_str().into(), &problem));
        }
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long(at, ANNOTATIONS_BYTES_MAX));
    }
    errors
}

/// A value that, if set, must be one of these.
pub fn one_of(value: &Value, at: &str, allowed: &[&str]) -> Option<FieldError> {
    match value.as_str() {
        None | Some("") => None,
        Some(v) if allowed.contains(&v) => None,
        Some(_) => Some(FieldError::not_supported(at, value, allowed)),
    }
}

/// A value that must be set, to one of these.
pub fn required_one_of(value: &Value, at: &str, allowed: &[&str]) -> Option<FieldError> {
    match value.as_str() {
        None | Some("") => Some(FieldError::required(at, "")),
        Some(_) => one_of(value, at, allowed),
    }
}

/// A port number, if set.
pub fn port_number(value: &Value, at: &str) -> Option<FieldError> {
    let number = value.as_i64()?;
    (!(1..=65_535).contains(&number))
        .then(|| FieldError::invalid(at, value, "must be between 1 and 65535, inclusive"))
}

/// A number that, if set, may not be negative.
pub fn not_negative(value: &Value, at: &str) -> Option<FieldError> {
    let number = value.as_i64()?;
    (number < 0).then(|| FieldError::invalid(at, value, "must be greater than or equal to 0"))
}

/// A number that, if set, must be positive.
pub fn positive(value: &Value, at: &str) -> Option<FieldError> {
    let number = value.as_i64()?;
    (number <= 0).then(|| FieldError::invalid(at, value, "must be greater than 0"))
}
