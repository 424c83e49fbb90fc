//! Defaulting: fills in absent fields that have an unconditional default, all the way down.

use serde_json::{Map, Value};

use crate::types::{Schema, Shape, TypeId};

/// Fills in the defaults of `ty` and of everything inside it.
pub fn apply(schema: &Schema, ty: TypeId, object: &mut Map<String, Value>) {
    if let Some(custom) = schema.custom(ty) {
        return crate::structural::prune::default(&custom.props, object);
    }
    let Some(s) = schema.as_struct(ty) else { return };
    for field in &s.fields {
        if let Some(default) = &field.default
            && !object.contains_key(&*field.name)
        {
            object.insert(field.name.to_string(), default.clone());
        }
        if let Some(value) = object.get_mut(&*field.name) {
            apply_value(schema, field.ty, value);
        }
    }
}

fn apply_value(schema: &Schema, ty: TypeId, value: &mut Value) {
    match (schema.shape(ty), value) {
        (Shape::Struct(_), Value::Object(object)) => apply(schema, ty, object),
        (Shape::List { item, .. }, Value::Array(items)) => {
            items.iter_mut().for_each(|v| apply_value(schema, *item, v));
        }
        (Shape::Map { item, .. }, Value::Object(items)) => {
            items.values_mut().for_each(|v| apply_value(schema, *item, v));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nested_defaults() {
        let schema = Schema::builtin();
        let mut v = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1}]}]}}}});
        apply(schema, schema.kind("apps", "v1", "Deployment").unwrap(), v.as_object_mut().unwrap());
        assert_eq!(v["spec"]["replicas"], 1);
        assert_eq!(v["spec"]["strategy"]["type"], "RollingUpdate");
        assert_eq!(v["spec"]["template"]["spec"]["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(v["spec"]["template"]["spec"]["dnsPolicy"], "ClusterFirst");
    }
}
