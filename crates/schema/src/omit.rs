//! Zero values that upstream's types cannot tell from absence: they are not stored and not shown.
//!
//! A field whose absence means something of its own (a pointer in Go) keeps its zero; so do required fields
//! and those whose default is the zero value itself.

use serde_json::{Map, Value};

use crate::types::{Field, Schema, Shape, TypeId};

/// Takes out every field of `object` that says nothing. Of a custom resource only the metadata is of a type
/// that does so.
pub fn zeroes(schema: &Schema, ty: TypeId, object: &mut Map<String, Value>) {
    if let Some(custom) = schema.custom(ty) {
        if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
            zeroes(schema, custom.metadata, metadata);
        }
        return;
    }
    let Some(fields) = schema.as_struct(ty) else { return };
    object.retain(|name, value| {
        let Some(field) = fields.field(name) else { return true };
        if says_nothing(schema, field, value) {
            return false;
        }
        inside(schema, field.ty, value);
        true
    });
}

fn says_nothing(schema: &Schema, field: &Field, value: &Value) -> bool {
    let zero = match (schema.shape(field.ty), value) {
        (Shape::List { .. }, Value::Array(items)) => items.is_empty(),
        (Shape::Map { .. }, Value::Object(map)) => map.is_empty(),
        (Shape::String | Shape::Bytes, Value::String(text)) => text.is_empty(),
        (Shape::Int32 | Shape::Int64 | Shape::Double, Value::Number(n)) => n.as_f64() == Some(0.0),
        (Shape::Bool, Value::Bool(set)) => !set,
        _ => false,
    };
    zero && !field.required && !field.pointer && field.default.as_ref() != Some(value)
}

fn inside(schema: &Schema, ty: TypeId, value: &mut Value) {
    match (schema.shape(ty), value) {
        (Shape::Struct(_), Value::Object(object)) => zeroes(schema, ty, object),
        (Shape::List { item, .. }, Value::Array(items)) => {
            items.iter_mut().for_each(|value| inside(schema, *item, value));
        }
        (Shape::Map { item, .. }, Value::Object(map)) => {
            map.values_mut().for_each(|value| inside(schema, *item, value));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn after(group: &str, kind: &str, mut object: Value) -> Value {
        let schema = Schema::builtin();
        zeroes(schema, schema.kind(group, "v1", kind).unwrap(), object.as_object_mut().unwrap());
        object
    }

    #[test]
    fn what_says_nothing_goes() {
        let pod = json!({"metadata": {"name": "p", "finalizers": [], "ownerReferences": [], "labels": {}},
            "spec": {"hostNetwork": false, "nodeSelector": {}, "securityContext": {}, "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0, "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "c", "image": "", "env": [{"name": "E", "value": ""}], "resources": {"limits": {}}}]}});
        let left = json!({"metadata": {"name": "p"},
            "spec": {"securityContext": {}, "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0, "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "c", "env": [{"name": "E"}], "resources": {}}]}});
        assert_eq!(after("", "Pod", pod), left);
    }

    #[test]
    fn zeroes_with_a_meaning_stay() {
        let set = json!({"spec": {"replicas": 0, "minReadySeconds": 0, "selector": {}},
            "status": {"replicas": 0, "readyReplicas": 0, "terminatingReplicas": 0}});
        let left = json!({"spec": {"replicas": 0, "selector": {}}, "status": {"replicas": 0, "terminatingReplicas": 0}});
        assert_eq!(after("apps", "ReplicaSet", set), left);
        let set = json!({"status": {"replicas": 0, "availableReplicas": 0, "readyReplicas": 0}});
        assert_eq!(
            after("apps", "StatefulSet", set),
            json!({"status": {"replicas": 0, "availableReplicas": 0}})
        );
        let role = json!({"rules": [{"verbs": [], "resources": []}]});
        assert_eq!(after("rbac.authorization.k8s.io", "Role", role), json!({"rules": [{"verbs": []}]}));
    }
}
