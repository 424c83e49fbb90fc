//! Pieces that the rules of several kinds are made of.

use cel::device::{COST_MAX, LENGTH_MAX, Selector};
use meta::{FieldError, names};
use serde_json::Value;

/// Most selectors of a request or a class.
const SELECTORS_MAX: usize = 32;
/// Most tolerations of a request.
const TOLERATIONS_MAX: usize = 16;
/// Longest name of a driver.
const DRIVER_MAX: usize = 63;
/// Longest name within a domain.
const ID_MAX: usize = 32;
/// Most bytes of a driver's parameters.
const PARAMETERS_BYTES_MAX: usize = 10 * 1024;

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A name, which must be there, judged by a rule.
pub(super) fn name(value: &Value, at: &str, rule: fn(&str) -> Option<String>) -> Option<FieldError> {
    match text(value) {
        "" => Some(FieldError::required(at, "")),
        name => rule(name).map(|why| FieldError::invalid(at, value, &why)),
    }
}

/// A driver's name.
pub(super) fn driver(value: &Value, at: &str) -> Option<FieldError> {
    if text(value).len() > DRIVER_MAX {
        return Some(FieldError::too_long(at, DRIVER_MAX));
    }
    name(value, at, |name| names::subdomain_problem(&name.to_lowercase()))
}

/// Selectors: they are there, compile, and do not cost too much.
pub(super) fn selectors(value: &Value, at: &str) -> Vec<FieldError> {
    let all = list(value);
    if let Some(error) = FieldError::too_many(at, all.len(), SELECTORS_MAX) {
        return vec![error];
    }
    let one = |(i, selector): (usize, &Value)| {
        if selector["cel"].is_null() {
            return Some(FieldError::required(format!("{at}[{i}].cel"), ""));
        }
        let (at, source) = (format!("{at}[{i}].cel.expression"), text(&selector["cel"]["expression"]));
        if source.len() > LENGTH_MAX {
            return Some(FieldError::too_long(at, LENGTH_MAX));
        }
        match Selector::compile(source) {
            Err(why) => Some(FieldError::invalid(at, &source.into(), &why)),
            Ok(selector) if selector.cost() > COST_MAX => {
                Some(FieldError::forbidden(at, "too complex, exceeds cost limit"))
            }
            Ok(_) => None,
        }
    };
    all.iter().enumerate().filter_map(one).collect()
}

/// Configuration for a driver.
pub(super) fn opaque(value: &Value, at: &str) -> Vec<FieldError> {
    let opaque = &value["opaque"];
    if opaque.is_null() {
        return vec![FieldError::required(format!("{at}.opaque"), "")];
    }
    let mut errors: Vec<FieldError> =
        driver(&opaque["driver"], &format!("{at}.opaque.driver")).into_iter().collect();
    let (parameters, at) = (&opaque["parameters"], format!("{at}.opaque.parameters"));
    match parameters {
        Value::Null => errors.push(FieldError::required(at, "")),
        Value::Object(_) if parameters.to_string().len() > PARAMETERS_BYTES_MAX => {
            errors.push(FieldError::too_long(at, PARAMETERS_BYTES_MAX));
        }
        Value::Object(_) => {}
        _ => errors.push(FieldError::invalid(at, &"<value omitted>".into(), "must be a valid JSON object")),
    }
    errors
}

/// Tolerations of taints.
pub(super) fn tolerations(value: &Value, at: &str) -> Vec<FieldError> {
    let all = list(value);
    if let Some(error) = FieldError::too_many(at, all.len(), TOLERATIONS_MAX) {
        return vec![error];
    }
    let mut errors = Vec::new();
    for (i, toleration) in all.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let (key, value) = (&toleration["key"], &toleration["value"]);
        if !text(key).is_empty()
            && let Some(why) = names::qualified_name_problem(text(key))
        {
            errors.push(FieldError::invalid(format!("{at}.key"), key, &why));
        }
        match text(&toleration["operator"]) {
            "" => errors.push(FieldError::required(format!("{at}.operator"), "")),
            "Exists" if !text(value).is_empty() => {
                let why = "must be empty for operator `Exists`";
                errors.push(FieldError::invalid(format!("{at}.value"), value, why));
            }
            "Equal" => {
                let why = names::label_value_problem(text(value));
                errors.extend(why.map(|why| FieldError::invalid(format!("{at}.value"), value, &why)));
            }
            "Exists" => {}
            _ => errors.push(FieldError::not_supported(
                format!("{at}.operator"),
                &toleration["operator"],
                &["Equal", "Exists"],
            )),
        }
        errors.extend(effect(&toleration["effect"], &format!("{at}.effect"), true));
    }
    errors
}

/// What a taint does.
pub(super) fn effect(value: &Value, at: &str, optional: bool) -> Option<FieldError> {
    match text(value) {
        "" if optional => None,
        "" => Some(FieldError::required(at, "")),
        "NoExecute" | "NoSchedule" | "None" => None,
        _ => Some(FieldError::not_supported(at, value, &["NoExecute", "NoSchedule", "None"])),
    }
}

fn identifier(id: &str, at: &str) -> Option<FieldError> {
    if id.len() > ID_MAX {
        return Some(FieldError::too_long(at, ID_MAX));
    }
    let first = id.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let fits = first && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let why = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";
    (!fits).then(|| FieldError::invalid(at, &id.into(), why))
}

/// The name of an attribute or a capacity. `full`: it needs a domain.
pub(super) fn qualified(full_name: &str, at: &str, full: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let parts: Vec<&str> = full_name.split('/').collect();
    match parts.as_slice() {
        [id] => errors.extend(identifier(id, at)),
        [domain, id] => {
            match *domain {
                "" => errors.push(FieldError::invalid(at, &"".into(), "the domain must not be empty")),
                domain => errors.extend(driver(&domain.into(), at)),
            }
            match *id {
                "" => errors.push(FieldError::invalid(at, &"".into(), "the name must not be empty")),
                id => errors.extend(identifier(id, at)),
            }
        }
        _ => errors.push(FieldError::invalid(at, &full_name.into(), "must not contain more than one slash")),
    }
    if full && !full_name.contains('/') {
        let why = "a fully qualified name must be a domain and a name separated by a slash";
        errors.push(FieldError::invalid(at, &full_name.into(), why));
    }
    errors
}

/// Whether a resource's name is one that clusters may add.
pub(super) fn is_extended_resource(name: &str) -> bool {
    let Some((domain, _)) = name.split_once('/') else { return false };
    let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    !own && !name.starts_with("requests.")
        && names::qualified_name_problem(&format!("requests.{name}")).is_none()
}
