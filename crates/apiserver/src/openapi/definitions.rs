//! Definitions: the types that a document refers to, from the type table, with the descriptions of the
//! typed structs.

use std::collections::{BTreeSet, HashMap};

use schema::types::{Field, ListKind};
use schema::{Schema, Shape, TypeId};
use serde_json::{Map, Value, json};

/// Version of OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Swagger 2.0.
    V2,
    /// OpenAPI 3.0.
    V3,
}

impl Version {
    /// A reference to a definition.
    pub fn reference(self, name: &str) -> Value {
        let root = match self {
            Version::V2 => "#/definitions/",
            Version::V3 => "#/components/schemas/",
        };
        json!({"$ref": format!("{root}{name}")})
    }
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const WATCH_EVENT: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent";

/// Collects the definitions that a document needs.
pub struct Builder<'a> {
    /// Version of the document.
    pub version: Version,
    schema: &'a Schema,
    described: HashMap<String, api::descriptions::Described>,
    wanted: BTreeSet<String>,
    done: Map<String, Value>,
}

impl<'a> Builder<'a> {
    /// A builder without definitions.
    pub fn new(version: Version, schema: &'a Schema) -> Self {
        Builder {
            version,
            schema,
            described: api::descriptions::load(),
            wanted: BTreeSet::new(),
            done: Map::new(),
        }
    }

    /// A reference, whose definition will be in the document.
    pub fn refer(&mut self, name: &str) -> Value {
        if !self.done.contains_key(name) {
            self.wanted.insert(name.to_owned());
        }
        self.version.reference(name)
    }

    /// Adds a definition that comes from elsewhere.
    pub fn insert(&mut self, name: String, definition: Value) {
        self.wanted.remove(&name);
        self.done.insert(name, definition);
    }

    /// The description of a field of a built-in type.
    pub fn description(&self, ty: &str, field: &str) -> Option<String> {
        self.described.get(ty)?.fields.get(field).cloned()
    }

    /// Definitions of everything referred to, and of what those refer to.
    pub fn finish(mut self) -> Map<String, Value> {
        while let Some(name) = self.wanted.pop_first() {
            let definition = self.definition(&name);
            self.done.insert(name, definition);
        }
        self.done
    }

    fn definition(&mut self, name: &str) -> Value {
        let described = self.described.get(name).cloned();
        let text = described.as_ref().and_then(|d| d.text.clone());
        let scalar = match name {
            QUANTITY | INT_OR_STRING if self.version == Version::V3 => {
                let mut out = json!({"oneOf": [{"type": "string"}, {"type": "number"}]});
                if name == INT_OR_STRING {
                    out = json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]});
                }
                Some(out)
            }
            QUANTITY => Some(json!({"type": "string"})),
            INT_OR_STRING => Some(json!({"type": "string", "format": "int-or-string"})),
            TIME | MICRO_TIME => Some(json!({"type": "string", "format": "date-time"})),
            PATCH => Some(json!({"type": "object"})),
            _ => None,
        };
        let known = self.schema.named(name).and_then(|ty| self.schema.as_struct(ty));
        let (mut out, s) = match (scalar, known) {
            (None, Some(s)) => (json!({"type": "object"}), s),
            (scalar, _) => {
                let mut out = scalar.unwrap_or_else(|| json!({"type": "object"}));
                if let Some(text) = text {
                    out["description"] = text.into();
                }
                return out;
            }
        };
        self.done.insert(name.to_owned(), Value::Null);
        let mut properties = Map::new();
        for field in &s.fields {
            let mut property = self.property(name, field);
            if let Some(text) = described.as_ref().and_then(|d| d.fields.get(&*field.name)) {
                property["description"] = text.as_str().into();
            }
            properties.insert(field.name.to_string(), property);
        }
        if let Some(text) = text {
            out["description"] = text.into();
        }
        if !properties.is_empty() {
            out["properties"] = Value::Object(properties);
        }
        let required: Vec<&str> = s.fields.iter().filter(|f| f.required).map(|f| &*f.name).collect();
        if !required.is_empty() {
            out["required"] = json!(required);
        }
        if s.atomic {
            out["x-kubernetes-map-type"] = "atomic".into();
        }
        if let Some((g, v, k)) = &s.gvk {
            out["x-kubernetes-group-version-kind"] = json!([{"group": g, "version": v, "kind": k}]);
        }
        if matches!(name, DELETE_OPTIONS | WATCH_EVENT) {
            out["x-kubernetes-group-version-kind"] = self.in_every_group(name);
        }
        for (_, key, value) in extras(name, "") {
            out[*key] = serde_json::from_str(value).unwrap_or_default();
        }
        out
    }

    /// Options and events have a kind in every group.
    fn in_every_group(&self, name: &str) -> Value {
        let kind = name.rsplit('.').next().unwrap_or_default();
        let mut all: BTreeSet<(&str, &str)> = BTreeSet::from([("", "v1")]);
        for (g, v, _) in self.schema.structs().iter().filter_map(|s| s.gvk.as_ref()) {
            if &**g == "meta.k8s.io" {
                continue;
            }
            all.insert((g, v));
        }
        all.into_iter().map(|(g, v)| json!({"group": g, "version": v, "kind": kind})).collect()
    }

    fn property(&mut self, owner: &str, field: &Field) -> Value {
        let mut out = self.of_type(field.ty);
        if self.version == Version::V3
            && let Some(reference) = out.as_object_mut().and_then(|o| o.remove("$ref"))
        {
            // Nothing may stand beside a reference in v3.
            out["allOf"] = json!([{"$ref": reference}]);
            if !field.pointer && matches!(self.schema.shape(field.ty), Shape::Struct(_)) {
                out["default"] = json!({});
            }
        }
        match self.schema.shape(field.ty) {
            Shape::List { kind, .. } => match kind {
                ListKind::Atomic => out["x-kubernetes-list-type"] = "atomic".into(),
                ListKind::Set => out["x-kubernetes-list-type"] = "set".into(),
                ListKind::Map(keys) => {
                    out["x-kubernetes-list-type"] = "map".into();
                    out["x-kubernetes-list-map-keys"] = json!(keys);
                }
            },
            Shape::Map { atomic: true, .. } => out["x-kubernetes-map-type"] = "atomic".into(),
            _ => {}
        }
        let strategic = &field.strategic;
        let names: Vec<&str> = [(strategic.merge, "merge"), (strategic.retain_keys, "retainKeys")]
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, n)| *n)
            .collect();
        if !names.is_empty() {
            out["x-kubernetes-patch-strategy"] = names.join(",").into();
            if let Some(key) = &strategic.merge_key {
                out["x-kubernetes-patch-merge-key"] = (**key).into();
            }
        }
        for (_, key, value) in extras(owner, &field.name) {
            out[*key] = serde_json::from_str(value).unwrap_or_default();
        }
        // v2 describes no defaults.
        if let Some(default) = field.default.as_ref().filter(|_| self.version == Version::V3) {
            out["default"] = default.clone();
        }
        out
    }

    fn of_type(&mut self, ty: TypeId) -> Value {
        match self.schema.shape(ty) {
            Shape::String => json!({"type": "string"}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Double => json!({"type": "number", "format": "double"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Quantity => self.refer(QUANTITY),
            Shape::IntOrString => self.refer(INT_OR_STRING),
            Shape::Time => self.refer(TIME),
            Shape::MicroTime => self.refer(MICRO_TIME),
            Shape::Any | Shape::Free => json!({"type": "object"}),
            Shape::List { item, .. } => {
                json!({"type": "array", "items": self.of_item(*item)})
            }
            Shape::Map { item, .. } => {
                json!({"type": "object", "additionalProperties": self.of_item(*item)})
            }
            Shape::Struct(at) => {
                let name = self.schema.struct_at(*at).name.to_string();
                self.refer(&name)
            }
        }
    }

    /// The type of a member of a list or map; v3 names what an absent one stands for.
    fn of_item(&mut self, ty: TypeId) -> Value {
        let mut out = self.of_type(ty);
        if self.version == Version::V2 {
            return out;
        }
        let zero = match self.schema.shape(ty) {
            Shape::String => json!(""),
            Shape::Int32 | Shape::Int64 | Shape::Double => json!(0),
            Shape::Bool => json!(false),
            Shape::Struct(_) => json!({}),
            _ => Value::Null,
        };
        if let Some(reference) = out.as_object_mut().and_then(|o| o.remove("$ref")) {
            out["allOf"] = json!([{"$ref": reference}]);
        }
        if !zero.is_null() {
            out["default"] = zero;
        }
        out
    }
}

/// Extensions of single types and fields that the type table has no column for: (type, field or empty),
/// extension, value.
type Extra = ((&'static str, &'static str), &'static str, &'static str);

const UNIONS: &str = "x-kubernetes-unions";
const LOCALHOST: &str =
    r#"[{"discriminator": "type", "fields-to-discriminateBy": {"localhostProfile": "LocalhostProfile"}}]"#;
const GANG: &str = r#"[{"fields-to-discriminateBy": {"basic": "Basic", "gang": "Gang"}}]"#;
const DISRUPTION: &str = r#"[{"fields-to-discriminateBy": {"all": "All", "single": "Single"}}]"#;
const POD: &str = r#"[{"fields-to-discriminateBy": {"pod": "Pod"}}]"#;

const EXTRAS: &[Extra] = &[
    (("io.k8s.api.core.v1.AppArmorProfile", ""), UNIONS, LOCALHOST),
    (("io.k8s.api.core.v1.SeccompProfile", ""), UNIONS, LOCALHOST),
    (
        ("io.k8s.api.core.v1.PodSchedulingGroup", ""),
        UNIONS,
        r#"[{"fields-to-discriminateBy": {"podGroupName": "PodGroupName"}}]"#,
    ),
    (
        ("io.k8s.api.flowcontrol.v1.LimitResponse", ""),
        UNIONS,
        r#"[{"discriminator": "type", "fields-to-discriminateBy": {"queuing": "Queuing"}}]"#,
    ),
    (
        ("io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationSpec", ""),
        UNIONS,
        r#"[{"discriminator": "type", "fields-to-discriminateBy": {"exempt": "Exempt", "limited": "Limited"}}]"#,
    ),
    (
        ("io.k8s.api.flowcontrol.v1.Subject", ""),
        UNIONS,
        r#"[{"discriminator": "kind", "fields-to-discriminateBy": {"group": "Group", "serviceAccount": "ServiceAccount", "user": "User"}}]"#,
    ),
    (("io.k8s.api.lifecycle.v1alpha1.EvictionRequestTarget", ""), UNIONS, POD),
    (("io.k8s.api.lifecycle.v1alpha1.EvictionTarget", ""), UNIONS, POD),
    (("io.k8s.api.scheduling.v1alpha3.CompositeDisruptionMode", ""), UNIONS, DISRUPTION),
    (("io.k8s.api.scheduling.v1alpha3.CompositePodGroupSchedulingPolicy", ""), UNIONS, GANG),
    (("io.k8s.api.scheduling.v1alpha3.DisruptionMode", ""), UNIONS, DISRUPTION),
    (("io.k8s.api.scheduling.v1alpha3.PodGroupSchedulingPolicy", ""), UNIONS, GANG),
    (("io.k8s.api.scheduling.v1alpha3.WorkloadPodGroupDisruptionMode", ""), UNIONS, DISRUPTION),
    (("io.k8s.api.scheduling.v1alpha3.WorkloadPodGroupSchedulingPolicy", ""), UNIONS, GANG),
    (("io.k8s.api.scheduling.v1beta1.CompositeDisruptionMode", ""), UNIONS, DISRUPTION),
    (("io.k8s.api.scheduling.v1beta1.CompositePodGroupSchedulingPolicy", ""), UNIONS, GANG),
    (("io.k8s.api.scheduling.v1beta1.DisruptionMode", ""), UNIONS, DISRUPTION),
    (("io.k8s.api.scheduling.v1beta1.PodGroupSchedulingPolicy", ""), UNIONS, GANG),
    (
        ("io.k8s.api.core.v1.PersistentVolumeClaimStatus", "allocatedResourceStatuses"),
        "x-kubernetes-map-type",
        "\"granular\"",
    ),
    (("io.k8s.api.core.v1.PersistentVolumeSpec", "claimRef"), "x-kubernetes-map-type", "\"granular\""),
    (
        ("io.k8s.api.policy.v1.PodDisruptionBudgetSpec", "selector"),
        "x-kubernetes-patch-strategy",
        "\"replace\"",
    ),
];

fn extras<'a>(ty: &'a str, field: &'a str) -> impl Iterator<Item = &'static Extra> + use<'a> {
    EXTRAS.iter().filter(move |(at, ..)| *at == (ty, field))
}
