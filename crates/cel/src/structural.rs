//! Types and sizes from the structural schema of a custom resource.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::escape::{escape, unescape};
use crate::estimate::Sizes;
use crate::types::{ListKind, ObjectType, Type};

/// Largest request, which bounds what has no bound of its own.
const REQUEST_BYTES_MAX: u64 = 3 * 1024 * 1024;

/// The type of what a schema describes; `None` for what expressions cannot see. `root` adds the fields that
/// the root of every resource has.
pub fn type_of(schema: &Json, root: bool) -> Option<Type> {
    if schema["x-kubernetes-int-or-string"] == true {
        return Some(Type::Dyn);
    }
    let embedded = |s: &Json| s["x-kubernetes-embedded-resource"] == true;
    match schema["type"].as_str()? {
        "array" => {
            let items = &schema["items"];
            let item = type_of(items, embedded(items))?;
            let kind = match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => ListKind::Set,
                Some("map") => {
                    let keys = schema["x-kubernetes-list-map-keys"].as_array();
                    let keys = keys.into_iter().flatten().filter_map(|k| k.as_str().map(String::from));
                    ListKind::Map(keys.collect())
                }
                _ => ListKind::Atomic,
            };
            Some(Type::List(Arc::new(item), kind))
        }
        "object" if schema["additionalProperties"].is_object() => {
            let values = &schema["additionalProperties"];
            Some(Type::map(Type::String, type_of(values, embedded(values))?))
        }
        "object" => {
            let mut fields = BTreeMap::new();
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                if let (Some(ty), Some(name)) = (type_of(property, embedded(property)), escape(name)) {
                    fields.insert(name.into_owned(), ty);
                }
            }
            if root {
                for name in ["apiVersion", "kind"] {
                    fields.insert(name.into(), Type::String);
                }
                let names = [("name", Type::String), ("generateName", Type::String)];
                fields.insert("metadata".into(), Type::object("object", names));
            }
            Some(Type::Object(ObjectType { name: "object".into(), fields: Arc::new(fields) }))
        }
        "string" => Some(match schema["format"].as_str() {
            Some("byte") => Type::Bytes,
            Some("duration") => Type::Duration,
            Some("date" | "date-time") => Type::Timestamp,
            _ => Type::String,
        }),
        "boolean" => Some(Type::Bool),
        "number" => Some(Type::Double),
        "integer" => Some(Type::Int),
        _ => None,
    }
}

/// Sizes of what `self` and `oldSelf` lead to under a schema.
#[derive(Debug, Clone, Copy)]
pub struct SchemaSizes<'a>(
    /// The schema of `self`.
    pub &'a Json,
);

impl Sizes for SchemaSizes<'_> {
    fn max(&self, path: &[String]) -> Option<u64> {
        if !matches!(path.first()?.as_str(), "self" | "oldSelf") {
            return None;
        }
        let mut at = self.0;
        for part in &path[1..] {
            at = match part.as_str() {
                "@items" => at.get("items")?,
                "@values" => at.get("additionalProperties")?,
                // Keys are strings without a bound.
                "@keys" => return at.get("additionalProperties").map(|_| 0),
                "@indices" => return None,
                field => at.get("properties")?.get(&*unescape(field)?)?,
            };
        }
        Some(max_elements(at))
    }
}

/// The most elements, characters or entries that fit.
pub fn max_elements(schema: &Json) -> u64 {
    let bound = |key: &str| schema[key].as_i64().map(|n| n.max(0) as u64);
    if schema["x-kubernetes-int-or-string"] == true {
        return bound("maxLength").map_or(REQUEST_BYTES_MAX - 2, |n| n.saturating_mul(4));
    }
    match schema["type"].as_str() {
        Some("array") => bound("maxItems")
            .unwrap_or_else(|| (REQUEST_BYTES_MAX - 2) / (min_serialized(&schema["items"]) + 1)),
        Some("object") if schema["additionalProperties"].is_object() => bound("maxProperties")
            .unwrap_or_else(|| {
                (REQUEST_BYTES_MAX - 2) / (min_serialized(&schema["additionalProperties"]) + 6)
            }),
        Some("string") => match schema["format"].as_str() {
            Some("duration" | "date-time") => 32,
            Some("date") => 12,
            Some("byte") => bound("maxLength").unwrap_or(REQUEST_BYTES_MAX - 2),
            _ => match (bound("maxLength"), schema["enum"].as_array()) {
                (Some(n), _) => n.saturating_mul(4),
                (None, Some(values)) if !values.is_empty() => {
                    values.iter().filter_map(|v| v.as_str().map(|s| s.len() as u64)).max().unwrap_or(0)
                }
                _ => REQUEST_BYTES_MAX - 2,
            },
        },
        _ => 0,
    }
}

/// The fewest bytes of JSON that a value takes.
fn min_serialized(schema: &Json) -> u64 {
    if schema["x-kubernetes-int-or-string"] == true {
        return 1;
    }
    match schema["type"].as_str() {
        Some("boolean") => 4,
        Some("integer" | "number") => 1,
        Some("string") => match schema["format"].as_str() {
            Some("duration") => 3,
            Some("date") => 12,
            Some("date-time") => 21,
            _ => 2,
        },
        Some("object") if schema["properties"].is_object() => {
            let required: Vec<&str> =
                schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
            let mut total = 2;
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                if required.contains(&name.as_str()) && property.get("default").is_none() {
                    total += name.len() as u64 + min_serialized(property) + 4;
                }
            }
            total
        }
        _ => 2,
    }
}
