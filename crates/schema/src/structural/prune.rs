//! Pruning, nulls and defaults: what the schema does to an object before anybody looks at it.

use serde_json::Value;

use super::{Object, Props};
use crate::decode::PROBLEMS_MAX;

/// Fields that every object has.
pub(super) const TYPE_META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Removes what the schema of a whole object does not know, and names it: `spec.list[0].x`.
pub fn prune(schema: &Props, object: &mut Object) -> Vec<String> {
    let mut unknown = Vec::new();
    fields(schema, object, true, &mut String::new(), &mut unknown);
    unknown.sort();
    unknown
}

fn fields(schema: &Props, object: &mut Object, root: bool, path: &mut String, unknown: &mut Vec<String>) {
    let is_resource = root || schema.embedded;
    object.retain(|name, value| {
        if is_resource && TYPE_META.contains(&name.as_str()) {
            return true;
        }
        let len = path.len();
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
        let kept = schema.keeps(name);
        if kept {
            match schema.field(name) {
                Some(field) => walk(field, value, path, unknown),
                // `additionalProperties: true` says nothing about what is inside, so nothing is known.
                None if !schema.preserve => walk(&Props::default(), value, path, unknown),
                None => {}
            }
        } else if unknown.len() < PROBLEMS_MAX {
            unknown.push(path.clone());
        }
        path.truncate(len);
        kept
    });
}

fn walk(schema: &Props, value: &mut Value, path: &mut String, unknown: &mut Vec<String>) {
    match value {
        Value::Object(object) => fields(schema, object, false, path, unknown),
        Value::Array(list) => {
            let nothing = Props::default();
            let items = match &schema.items {
                Some(items) => items,
                None if schema.preserve => return,
                None => &nothing,
            };
            for (i, item) in list.iter_mut().enumerate() {
                let len = path.len();
                path.push_str(&format!("[{i}]"));
                walk(items, item, path, unknown);
                path.truncate(len);
            }
        }
        _ => {}
    }
}

/// Removes nulls that the schema neither allows nor has a default for, then fills in defaults.
pub fn default(schema: &Props, object: &mut Object) {
    prune_nulls(schema, object);
    fill(schema, object);
}

/// Whether a null must give way: to the default or to absence.
fn unwanted_null(schema: &Props, value: &Value) -> bool {
    value.is_null() && !schema.nullable
}

fn prune_nulls(schema: &Props, object: &mut Object) {
    object.retain(|name, value| match schema.field(name) {
        Some(field) if unwanted_null(field, value) && field.default.is_none() => false,
        Some(field) => {
            prune_nulls_in(field, value);
            true
        }
        None => true,
    });
}

fn prune_nulls_in(schema: &Props, value: &mut Value) {
    match value {
        Value::Object(object) => prune_nulls(schema, object),
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                list.iter_mut().for_each(|v| prune_nulls_in(items, v));
            }
        }
        _ => {}
    }
}

fn fill(schema: &Props, object: &mut Object) {
    for (name, field) in &schema.properties {
        if let Some(default) = &field.default
            && object.get(&**name).is_none_or(|v| unwanted_null(field, v))
        {
            object.insert(name.to_string(), default.clone());
        }
    }
    for (name, value) in object.iter_mut() {
        if let Some(field) = schema.field(name) {
            fill_value(field, value);
        }
    }
}

fn fill_value(schema: &Props, value: &mut Value) {
    if unwanted_null(schema, value)
        && let Some(default) = &schema.default
    {
        *value = default.clone();
    }
    match value {
        Value::Object(object) => fill(schema, object),
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                list.iter_mut().for_each(|v| fill_value(items, v));
            }
        }
        _ => {}
    }
}

/// Fills in the defaults of one value, as the validation of defaults needs it.
pub fn default_value(schema: &Props, value: &mut Value) {
    fill_value(schema, value);
}

/// Removes what is unknown from one value below a field, and names it.
pub fn prune_value(schema: &Props, value: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    walk(schema, value, &mut String::new(), &mut unknown);
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Props {
        Props::parse(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "a": {"type": "string", "default": "x"},
                "n": {"type": "string", "nullable": true},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {"strict": {"type": "object", "properties": {"k": {"type": "string"}}}}},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"k": {"type": "string"}}}},
                "list": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "integer", "default": 1}}}},
                "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
            }},
        }}))
    }

    #[test]
    fn prunes_and_names() {
        let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"x": 1}, "top": 1, "spec": {
            "b": 1, "free": {"anything": {"goes": 1}, "strict": {"k": "v", "z": 1}},
            "map": {"one": {"k": "v", "z": 1}}, "list": [{"k": 2}, {"z": 1}],
            "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "n"}, "spec": {"z": 1}, "z": 1}}});
        let unknown = prune(&schema(), object.as_object_mut().unwrap());
        assert_eq!(
            unknown,
            [
                "spec.b",
                "spec.free.strict.z",
                "spec.list[1].z",
                "spec.map.one.z",
                "spec.pod.spec.z",
                "spec.pod.z",
                "top"
            ]
        );
        assert_eq!(
            object,
            json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"x": 1}, "spec": {
                "free": {"anything": {"goes": 1}, "strict": {"k": "v"}}, "map": {"one": {"k": "v"}},
                "list": [{"k": 2}, {}], "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "n"}, "spec": {}}}})
        );
    }

    #[test]
    fn defaults_and_nulls() {
        for (given, wanted) in [
            (json!({"spec": {}}), json!({"spec": {"a": "x"}})),
            (json!({"spec": {"a": null, "n": null}}), json!({"spec": {"a": "x", "n": null}})),
            (
                json!({"spec": {"a": "y", "list": [{}, {"k": null}]}}),
                json!({"spec": {"a": "y", "list": [{"k": 1}, {"k": 1}]}}),
            ),
            (json!({"spec": {"map": {"one": {"k": null}}}}), json!({"spec": {"a": "x", "map": {"one": {}}}})),
            (json!({"spec": null}), json!({})),
            (json!({}), json!({})),
        ] {
            let mut object = given;
            default(&schema(), object.as_object_mut().unwrap());
            assert_eq!(object, wanted);
        }
    }
}
