//! Other shapes of an answer: `Table` for people, `PartialObjectMetadata` for those who need no more.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::resource::ResourceDef;

/// How much of the object a table row carries (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

/// The definitions of a kind's columns.
pub fn column_definitions(def: &ResourceDef) -> Value {
    let define = |c: &crate::columns::Column| json!({"name": &*c.name, "type": &*c.ty, "format": &*c.format, "description": &*c.description, "priority": c.priority});
    Value::Array(def.columns.iter().map(define).collect())
}

/// One row, of an object in the version of `def`.
pub fn row(def: &ResourceDef, value: Value, include: IncludeObject, now: Timestamp) -> Value {
    let cells: Vec<Value> = def.columns.iter().map(|c| c.cell(&value, now)).collect();
    let mut row = json!({"cells": cells});
    match include {
        IncludeObject::None => {}
        IncludeObject::Metadata => row["object"] = partial(value),
        IncludeObject::Object => row["object"] = value,
    }
    row
}

/// The part of an object that everybody may see, without a look at the rest.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

/// The bytes of an object reduced to its metadata.
pub fn partial_bytes(object: &[u8]) -> Vec<u8> {
    let head = serde_json::from_slice::<Head<'_>>(object).ok().and_then(|head| head.metadata);
    let metadata = head.map_or("{}", RawValue::get);
    let start = r#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":"#;
    [start, metadata, "}"].concat().into_bytes()
}

/// Writes one row, of the bytes of an object in the version of `def`.
pub fn write_row(
    out: &mut Vec<u8>,
    def: &ResourceDef,
    object: &[u8],
    include: IncludeObject,
    now: Timestamp,
) {
    let value: Value = serde_json::from_slice(object).unwrap_or_default();
    let cells: Vec<Value> = def.columns.iter().map(|c| c.cell(&value, now)).collect();
    out.extend_from_slice(b"{\"cells\":");
    // Writing JSON into memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, &cells);
    match include {
        IncludeObject::None => {}
        IncludeObject::Metadata => {
            out.extend_from_slice(b",\"object\":");
            out.extend_from_slice(&partial_bytes(object));
        }
        IncludeObject::Object => {
            out.extend_from_slice(b",\"object\":");
            out.extend_from_slice(object);
        }
    }
    out.push(b'}');
}

/// An object reduced to its metadata.
pub fn partial(mut object: Value) -> Value {
    let metadata = object.get_mut("metadata").map(Value::take).unwrap_or_default();
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

/// A table of rows; `columns` is left out in later events of a watch.
pub fn table(columns: Option<Value>, rows: Vec<Value>, list_metadata: Value) -> Value {
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}
