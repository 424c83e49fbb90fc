//! Structural validation: fields that OpenAPI marks as required must be there.
//!
//! Kinds with full validation of their own do not need it; for the others it keeps objects from being
//! stored that no controller could read. `status` is left out: clients send it half-filled.

use meta::FieldError;
use serde_json::{Map, Value};

use crate::types::{Schema, Shape, TypeId};

/// Every required field that is absent, with its path.
pub fn missing(schema: &Schema, ty: TypeId, object: &Map<String, Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk(schema, ty, object, "", &mut errors);
    errors
}

fn walk(schema: &Schema, ty: TypeId, object: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    let Some(s) = schema.as_struct(ty) else { return };
    for field in &s.fields {
        let top = path.is_empty();
        if top && matches!(&*field.name, "status" | "metadata") {
            continue;
        }
        let at = if top { field.name.to_string() } else { format!("{path}.{}", field.name) };
        match object.get(&*field.name) {
            None if field.required => errors.push(FieldError::required(at, "")),
            None => {}
            Some(value) => walk_value(schema, field.ty, value, &at, errors),
        }
    }
}

fn walk_value(schema: &Schema, ty: TypeId, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match (schema.shape(ty), value) {
        (Shape::Struct(_), Value::Object(object)) => walk(schema, ty, object, path, errors),
        (Shape::List { item, .. }, Value::Array(items)) => {
            for (i, v) in items.iter().enumerate() {
                walk_value(schema, *item, v, &format!("{path}[{i}]"), errors);
            }
        }
        (Shape::Map { item, .. }, Value::Object(items)) => {
            for (k, v) in items {
                walk_value(schema, *item, v, &format!("{path}[{k}]"), errors);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_every_missing_field() {
        let schema = Schema::builtin();
        let v = json!({"spec": {"ingress": [{"from": [{"ipBlock": {}}]}], "podSelector": {}}, "status": {"conditions": [{}]}});
        let errors = missing(
            schema,
            schema.kind("networking.k8s.io", "v1", "NetworkPolicy").unwrap(),
            v.as_object().unwrap(),
        );
        let paths: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(paths, ["spec.ingress[0].from[0].ipBlock.cidr"]);
    }
}
