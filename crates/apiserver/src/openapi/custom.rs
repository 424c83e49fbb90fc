//! Definitions of custom resources: the schema as its author wrote it, with the fields that every object has;
//! for v2 without what its readers stumble over.

use registry::ResourceDef;
use registry::custom::Custom;
use schema::structural::types::open_api_name;
use serde_json::{Map, Value, json};

use super::definitions::{Builder, Version};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
/// A kind whose descriptions of the common fields serve for all.
const EXAMPLE: &str = "io.k8s.api.core.v1.ConfigMap";
const EXAMPLE_LIST: &str = "io.k8s.api.core.v1.ConfigMapList";
const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";

/// Adds the definitions of a row and of its list.
pub fn add(builder: &mut Builder<'_>, def: &ResourceDef, custom: &Custom) {
    let name = open_api_name(&def.group, &def.version, &def.kind);
    let kind = |k: &str| json!([{"group": &*def.group, "version": &*def.version, "kind": k}]);
    let mut item = custom.open_api.clone();
    let loose = builder.version == Version::V2 && item[PRESERVE] == true;
    if !item.is_object() || loose {
        // With any property named, readers of v2 would refuse all others.
        item = json!({"type": "object"});
    } else {
        if builder.version == Version::V2 {
            simplify(&mut item);
        }
        embedded(builder, &mut item, true);
    }
    item["x-kubernetes-group-version-kind"] = kind(&def.kind);
    if !def.selectable.is_empty() {
        let fields = def.selectable.iter().map(|f| json!({"fieldPath": &**f}));
        item["x-kubernetes-selectable-fields"] = fields.collect();
    }
    let reference = builder.version.reference(&name);
    let mut properties = type_meta(builder, EXAMPLE_LIST);
    properties.insert("metadata".into(), described(builder, LIST_META, EXAMPLE_LIST, "metadata"));
    let text = format!(
        "List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md",
        def.resource
    );
    properties.insert("items".into(), json!({"type": "array", "items": reference, "description": text}));
    let list = json!({
        "type": "object", "description": format!("{} is a list of {}", def.list_kind, def.kind),
        "required": ["items"], "properties": properties, "x-kubernetes-group-version-kind": kind(&def.list_kind),
    });
    builder.insert(name.clone(), item);
    builder.insert(format!("{name}List"), list);
}

fn type_meta(builder: &Builder<'_>, example: &str) -> Map<String, Value> {
    let mut out = Map::new();
    for key in ["apiVersion", "kind"] {
        let mut property = json!({"type": "string"});
        if let Some(text) = builder.description(example, key) {
            property["description"] = text.into();
        }
        out.insert(key.into(), property);
    }
    out
}

/// A reference with a description; v3 allows nothing beside a reference.
fn described(builder: &mut Builder<'_>, ty: &str, example: &str, key: &str) -> Value {
    let reference = builder.refer(ty);
    let text = builder.description(example, key).unwrap_or_default();
    match builder.version {
        Version::V2 => json!({"$ref": reference["$ref"], "description": text}),
        Version::V3 => json!({"allOf": [reference], "description": text}),
    }
}

/// Gives whole objects the fields that they all have.
fn embedded(builder: &mut Builder<'_>, schema: &mut Value, root: bool) {
    if root || schema["x-kubernetes-embedded-resource"] == true {
        let loose = !root && builder.version == Version::V2 && schema[PRESERVE] == true;
        if let Value::Object(map) = &mut *schema
            && !loose
        {
            let properties = map.entry("properties").or_insert_with(|| json!({}));
            if let Value::Object(properties) = properties {
                properties.extend(type_meta(builder, EXAMPLE));
                properties.insert("metadata".into(), described(builder, OBJECT_META, EXAMPLE, "metadata"));
            }
        }
    }
    children(schema, &mut |child| embedded(builder, child, false));
}

fn children(schema: &mut Value, visit: &mut dyn FnMut(&mut Value)) {
    let Value::Object(map) = schema else { return };
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        // What was just put here refers to definitions of its own.
        properties.iter_mut().filter(|(name, _)| *name != "metadata").for_each(|(_, p)| visit(p));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child @ Value::Object(_)) = map.get_mut(key) {
            visit(child);
        }
    }
}

/// Takes away what v2 cannot say, and what kubectl's reader of v2 misunderstands.
fn simplify(schema: &mut Value) {
    let nullable = |v: &Value| v["nullable"] == true;
    let optional: Vec<String> = (schema["properties"].as_object().into_iter().flatten())
        .filter(|(_, p)| nullable(p))
        .map(|(name, _)| name.clone())
        .collect();
    let no_required = nullable(&schema["additionalProperties"]);
    children(schema, &mut simplify);
    let Value::Object(map) = schema else { return };
    for key in ["allOf", "oneOf", "anyOf", "not", "default"] {
        map.remove(key);
    }
    let is = |map: &Map<String, Value>, key: &str, wanted: Value| map.get(key) == Some(&wanted);
    let unknown = is(map, PRESERVE, true.into());
    if is(map, "nullable", true.into()) {
        for key in ["nullable", "type", "items", "properties"] {
            map.remove(key);
        }
    }
    if unknown {
        map.remove("items");
        map.remove("properties");
    }
    let bare_array = is(map, "type", "array".into()) && !map.contains_key("items");
    let either = is(map, "x-kubernetes-int-or-string", true.into());
    if bare_array || either || (unknown && is(map, "type", "object".into())) {
        map.remove("type");
    }
    if no_required {
        map.remove("required");
    }
    if let Some(Value::Array(required)) = map.get_mut("required") {
        required.retain(|r| !optional.iter().any(|o| *r == **o));
        if required.is_empty() {
            map.remove("required");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_has_no_alternatives_and_no_nullable_fields() {
        let mut schema = json!({"type": "object", "required": ["a", "b"], "properties": {
            "a": {"type": "string", "nullable": true}, "b": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "c": {"type": "object", PRESERVE: true, "properties": {"x": {"type": "string"}}}}});
        simplify(&mut schema);
        assert_eq!(
            schema,
            json!({"type": "object", "required": ["b"], "properties": {
                "a": {}, "b": {"x-kubernetes-int-or-string": true}, "c": {PRESERVE: true}}})
        );
    }
}
