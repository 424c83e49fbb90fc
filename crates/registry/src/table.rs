//! Other shapes of an answer: `Table` for people, `PartialObjectMetadata` for those who need no more.

use jiff::Timestamp;
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
