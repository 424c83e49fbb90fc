//! A custom resource's schema as types: what server-side apply, ownership and decoding go by.

use super::{Additional, Props};
use crate::types::{Field, ListKind, Schema, Shape, Strategic, Struct, TypeId};

/// OpenAPI name of the metadata of every object.
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The types of a kind that `props` describes, and the kind's own type.
pub fn build(props: Props, group: &str, version: &str, kind: &str) -> (Schema, TypeId) {
    let mut schema = Schema::default();
    let builtin = Schema::builtin();
    let metadata = builtin.named(OBJECT_META).map(|ty| schema.import(builtin, ty));
    let mut builder = Builder { any: schema.intern(Shape::Any), free: schema.free(), schema, metadata };
    let name = open_api_name(group, version, kind);
    let mut root = builder.object(&props, true);
    root.name = name.into();
    root.gvk = Some((group.into(), version.into(), kind.into()));
    let ty = builder.schema.add(root);
    let mut schema = builder.schema;
    schema.describe(ty, metadata, props);
    (schema, ty)
}

/// The name of a kind's type in OpenAPI: the group backwards, as for built-in types.
pub fn open_api_name(group: &str, version: &str, kind: &str) -> String {
    let parts: Vec<&str> = group.split('.').rev().collect();
    format!("{}.{version}.{kind}", parts.join("."))
}

struct Builder {
    schema: Schema,
    metadata: Option<TypeId>,
    any: TypeId,
    /// Whatever it is: objects field by field, everything else as a whole.
    free: TypeId,
}

impl Builder {
    fn of(&mut self, props: &Props) -> TypeId {
        if props.int_or_string {
            return self.any;
        }
        match &*props.ty {
            "object" => self.map_or_struct(props),
            "array" => {
                let item = match &props.items {
                    Some(items) => self.of(items),
                    None => self.free,
                };
                let kind = match props.list_type.as_deref() {
                    Some("set") => ListKind::Set,
                    Some("map") => ListKind::Map(props.list_keys.iter().cloned().collect()),
                    _ => ListKind::Atomic,
                };
                self.schema.intern(Shape::List { item, kind })
            }
            "" if props.preserve => self.free,
            _ => self.any,
        }
    }

    fn map_or_struct(&mut self, props: &Props) -> TypeId {
        let atomic = props.is_atomic_map();
        if props.properties.is_empty() && !props.embedded {
            let item = match &props.additional {
                Some(Additional::Of(item)) => Some(self.of(item)),
                Some(Additional::Allowed(true)) => Some(self.free),
                _ => props.preserve.then_some(self.free),
            };
            if let Some(item) = item {
                return self.schema.intern(Shape::Map { item, atomic });
            }
        }
        let object = self.object(props, props.embedded);
        self.schema.add(object)
    }

    fn object(&mut self, props: &Props, resource: bool) -> Struct {
        let mut fields: Vec<Field> = Vec::new();
        for (name, property) in &props.properties {
            if !(resource && super::prune::TYPE_META.contains(&&**name)) {
                let ty = self.of(property);
                let required = props.required.contains(name);
                fields.push(field(name, ty, required, property.default.clone()));
            }
        }
        if resource {
            fields.push(field("apiVersion", self.any, false, None));
            fields.push(field("kind", self.any, false, None));
            fields.push(field("metadata", self.metadata.unwrap_or(self.free), false, None));
        }
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let rest = match &props.additional {
            Some(Additional::Of(item)) => Some(self.of(item)),
            Some(Additional::Allowed(true)) => Some(self.free),
            _ => props.preserve.then_some(self.free),
        };
        Struct { name: "".into(), fields, atomic: props.is_atomic_map(), gvk: None, rest }
    }
}

fn field(name: &str, ty: TypeId, required: bool, default: Option<serde_json::Value>) -> Field {
    Field {
        name: name.into(),
        ty,
        required,
        strategic: Strategic::default(),
        default,
        pointer: true,
        tag: (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fieldset;
    use serde_json::json;

    #[test]
    fn ownership_follows_the_schema() {
        let props = Props::parse(
            &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}},
            "atomic": {"type": "array", "items": {"type": "string"}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}),
        );
        let (schema, ty) = build(props, "example.com", "v1", "Foo");
        let object = json!({"metadata": {"labels": {"l": "1"}}, "spec": {"set": ["a"], "map": [{"k": "x", "v": 1}], "atomic": ["a"],
            "labels": {"a": "b"}, "whole": {"a": "b"}, "free": {"deep": {"er": [1]}}}});
        assert_eq!(
            fieldset::of_value(&schema, ty, &object).to_json(),
            json!({"f:metadata": {"f:labels": {"f:l": {}}}, "f:spec": {
                "f:atomic": {}, "f:free": {"f:deep": {".": {}, "f:er": {}}}, "f:labels": {"f:a": {}},
                "f:map": {"k:{\"k\":\"x\"}": {".": {}, "f:k": {}, "f:v": {}}}, "f:set": {"v:\"a\"": {}}, "f:whole": {}}})
        );
    }
}
