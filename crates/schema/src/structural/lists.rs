//! What lists and embedded objects promise: sets and maps hold nothing twice, embedded resources say what
//! they are.

use meta::{FieldError, names};
use serde_json::{Map, Value};

use super::{Object, Props};

/// Every item that a list of type `set` or `map` holds twice.
pub fn duplicates(schema: &Props, object: &Object) -> Vec<FieldError> {
    let mut errors = Vec::new();
    fields(schema, object, "", &mut errors);
    errors
}

fn fields(schema: &Props, object: &Object, path: &str, errors: &mut Vec<FieldError>) {
    for (name, value) in object {
        let is_property = schema.properties.contains_key(name.as_str());
        if let Some(field) = schema.field(name) {
            walk(field, value, &join(path, name, is_property), errors);
        }
    }
}

/// A field's path: properties with dots, map keys in brackets.
fn join(path: &str, name: &str, is_property: bool) -> String {
    match (is_property, path.is_empty()) {
        (true, true) => name.to_owned(),
        (true, false) => format!("{path}.{name}"),
        (false, _) => format!("{path}[{name}]"),
    }
}

fn walk(schema: &Props, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(object) => fields(schema, object, path, errors),
        Value::Array(list) => {
            match schema.list_type.as_deref() {
                Some("set") => {
                    let twice = repeated(list.iter().collect());
                    errors.extend(
                        twice.into_iter().map(|i| FieldError::duplicate(format!("{path}[{i}]"), &list[i])),
                    );
                }
                Some("map") => errors.extend(repeated_keys(schema, list, path)),
                _ => {}
            }
            if let Some(items) = &schema.items {
                for (i, item) in list.iter().enumerate() {
                    walk(items, item, &format!("{path}[{i}]"), errors);
                }
            }
        }
        _ => {}
    }
}

/// Indexes at which a value appears for the second time.
fn repeated(values: Vec<&Value>) -> Vec<usize> {
    let mut seen: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    let mut out = Vec::new();
    for (i, value) in values.into_iter().enumerate() {
        let times = seen.entry(value.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            out.push(i);
        }
    }
    out
}

fn repeated_keys(schema: &Props, list: &[Value], path: &str) -> Vec<FieldError> {
    if let Some(i) = list.iter().position(|v| !v.is_object() && !v.is_null()) {
        let why = "must be an object for an array of list-type map";
        return vec![FieldError::invalid(format!("{path}[{i}]"), &list[i], why)];
    }
    let keys: Vec<Value> = list.iter().map(|item| Value::Object(keys_of(schema, item))).collect();
    let twice = repeated(keys.iter().collect());
    twice.into_iter().map(|i| FieldError::duplicate(format!("{path}[{i}]"), &keys[i])).collect()
}

/// The keys that identify an item of a list of type `map`.
pub(super) fn keys_of(schema: &Props, item: &Value) -> Map<String, Value> {
    let keys = schema.list_keys.iter();
    keys.filter_map(|key| Some((key.to_string(), item.get(&**key)?.clone()))).collect()
}

/// Every rule that embedded resources break.
pub fn embedded(schema: &Props, object: &Object) -> Vec<FieldError> {
    let mut errors = Vec::new();
    embedded_fields(schema, object, "", &mut errors);
    errors
}

fn embedded_fields(schema: &Props, object: &Object, path: &str, errors: &mut Vec<FieldError>) {
    for (name, value) in object {
        let is_property = schema.properties.contains_key(name.as_str());
        if let Some(field) = schema.field(name) {
            embedded_walk(field, value, &join(path, name, is_property), errors);
        }
    }
}

fn embedded_walk(schema: &Props, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(object) => {
            if schema.embedded {
                type_meta(object, path, errors);
            }
            embedded_fields(schema, object, path, errors);
        }
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                for (i, item) in list.iter().enumerate() {
                    embedded_walk(items, item, &format!("{path}[{i}]"), errors);
                }
            }
        }
        _ => {}
    }
}

fn type_meta(object: &Object, path: &str, errors: &mut Vec<FieldError>) {
    for key in ["apiVersion", "kind"] {
        let at = format!("{path}.{key}");
        match object.get(key) {
            None => errors.push(FieldError::required(at, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid(at, &"".into(), "must not be empty"));
            }
            Some(value @ Value::String(text)) if key == "kind" => {
                if let Some(problem) = names::label_1035_problem(&text.to_lowercase()) {
                    let why = format!("may have mixed case, but should otherwise match: {problem}");
                    errors.push(FieldError::invalid(at, value, &why));
                }
            }
            Some(value @ Value::String(text)) => {
                if text.matches('/').count() > 1 {
                    let why = format!("unexpected GroupVersion string: {text}");
                    errors.push(FieldError::invalid(at, value, &why));
                }
            }
            Some(other) => errors.push(FieldError::invalid(at, other, "must be a string")),
        }
    }
    let name = object.get("metadata").and_then(|m| m.get("name"));
    if let Some(name) = name
        && let Some(problem) = names::path_segment_problem(name.as_str().unwrap_or_default())
    {
        errors.push(FieldError::invalid(format!("{path}.metadata.name"), name, &problem));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_and_embedded_objects() {
        let schema = Props::parse(&json!({"type": "object", "properties": {
            "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
            "e": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
        }}));
        let object =
            json!({"s": ["a", "b", "a", "a"], "m": [{"k": "x"}, {"k": "x", "v": 1}], "e": {"kind": "-"}});
        let all = |errors: Vec<FieldError>| errors.iter().map(|e| e.to_string()).collect::<Vec<_>>();
        assert_eq!(
            all(duplicates(&schema, object.as_object().unwrap())),
            ["m[1]: Duplicate value: {\"k\":\"x\"}", "s[2]: Duplicate value: \"a\""]
        );
        let found = all(embedded(&schema, object.as_object().unwrap()));
        assert_eq!(found[0], "e.apiVersion: Required value");
        assert!(found[1].starts_with("e.kind: Invalid value: \"-\": may have mixed case"), "{found:?}");
    }
}
