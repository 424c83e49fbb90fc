//! Sets of fields: who owns what under server-side apply (`fieldsV1`).
//!
//! A set is a trie. Edges are written as `fieldsV1` writes them: `f:NAME` for a field or map key,
//! `k:{..}` for an item of a keyed list, `v:VALUE` for an item of a set.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::types::{ListKind, Schema, Shape, TypeId};

/// A set of field paths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSet {
    /// Whether the path that leads here is itself a member.
    pub member: bool,
    /// Longer paths.
    pub children: BTreeMap<Box<str>, FieldSet>,
}

impl FieldSet {
    /// The set that has just the path leading here.
    pub fn leaf() -> Self {
        FieldSet { member: true, children: BTreeMap::new() }
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(FieldSet::is_empty)
    }

    /// Adds everything in `other`.
    pub fn union(&mut self, other: &FieldSet) {
        self.member |= other.member;
        for (edge, child) in &other.children {
            self.children.entry(edge.clone()).or_default().union(child);
        }
    }

    /// Removes everything in `other`.
    pub fn subtract(&mut self, other: &FieldSet) {
        if other.member {
            self.member = false;
        }
        for (edge, child) in &other.children {
            if let Some(mine) = self.children.get_mut(edge) {
                mine.subtract(child);
                if mine.is_empty() {
                    self.children.remove(edge);
                }
            }
        }
    }

    /// Removes the paths in `gone` and everything below them.
    pub fn subtract_below(&mut self, gone: &FieldSet) {
        for (edge, child) in &gone.children {
            if child.member {
                self.children.remove(edge);
            } else if let Some(mine) = self.children.get_mut(edge) {
                mine.subtract_below(child);
                if mine.is_empty() {
                    self.children.remove(edge);
                }
            }
        }
    }

    /// What is in both.
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let children = (self.children.iter())
            .filter_map(|(edge, mine)| Some((edge.clone(), mine.intersection(other.children.get(edge)?))))
            .filter(|(_, both)| !both.is_empty())
            .collect();
        FieldSet { member: self.member && other.member, children }
    }

    /// The child at `edge`, made if absent.
    pub fn at(&mut self, edge: &str) -> &mut FieldSet {
        self.children.entry(edge.into()).or_default()
    }

    /// Inserts `child` below `edge` unless it is empty.
    pub fn attach(&mut self, edge: Box<str>, child: FieldSet) {
        if !child.is_empty() {
            self.children.entry(edge).or_default().union(&child);
        }
    }

    /// As `fieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        if self.member && !self.children.is_empty() {
            out.insert(".".into(), Value::Object(Map::new()));
        }
        for (edge, child) in &self.children {
            out.insert(edge.to_string(), child.to_json());
        }
        Value::Object(out)
    }

    /// From `fieldsV1`. `None` if an edge has no known form.
    pub fn from_json(value: &Value) -> Option<FieldSet> {
        let object = value.as_object()?;
        let mut set = FieldSet::default();
        for (edge, child) in object {
            if edge == "." {
                set.member = true;
                continue;
            }
            if !matches!(edge.split_once(':'), Some(("f" | "k" | "v" | "i", _))) {
                return None;
            }
            let mut child = FieldSet::from_json(child)?;
            if child.children.is_empty() {
                child.member = true;
            }
            set.children.insert(edge.as_str().into(), child);
        }
        Some(set)
    }

    /// Every member as a path for people: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect_paths(&mut String::new(), &mut out);
        out
    }

    fn collect_paths(&self, prefix: &mut String, out: &mut Vec<String>) {
        if self.member {
            out.push(prefix.clone());
        }
        for (edge, child) in &self.children {
            let len = prefix.len();
            prefix.push_str(&edge_for_people(edge));
            child.collect_paths(prefix, out);
            prefix.truncate(len);
        }
    }
}

fn edge_for_people(edge: &str) -> String {
    match edge.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("v", value)) => format!("[={value}]"),
        Some(("i", index)) => format!("[{index}]"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let parts: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", parts.join(","))
        }
        _ => edge.to_owned(),
    }
}

/// The edge of a field or map key.
pub fn field_edge(name: &str) -> Box<str> {
    format!("f:{name}").into()
}

/// The edge of an item of a keyed list; absent keys count with their default. `None` without any key.
pub fn keyed_edge(schema: &Schema, item_ty: TypeId, keys: &[Box<str>], item: &Value) -> Option<Box<str>> {
    let object = item.as_object()?;
    let mut edge = String::from("k:{");
    let mut any = false;
    for key in keys {
        let default = || schema.as_struct(item_ty)?.field(key)?.default.as_ref();
        let Some(value) = object.get(&**key).or_else(default) else { continue };
        if any {
            edge.push(',');
        }
        any = true;
        edge.push_str(&Value::from(&**key).to_string());
        edge.push(':');
        edge.push_str(&value.to_string());
    }
    edge.push('}');
    any.then(|| edge.into())
}

/// The edge of an item of a set.
pub fn value_edge(item: &Value) -> Box<str> {
    format!("v:{item}").into()
}

/// How a value is owned: as a whole, field by field, or item by item.
pub enum Ownership<'a> {
    /// As a whole.
    Whole,
    /// Each field on its own; the type of a field, and whether the field name is a map key.
    Fields(Box<dyn Fn(&str) -> Option<(TypeId, bool)> + 'a>),
    /// Each item of a keyed list.
    Keyed(TypeId, &'a [Box<str>]),
    /// Each item of a set.
    Set,
}

/// How values of type `ty` are owned.
pub fn ownership(schema: &Schema, ty: TypeId) -> Ownership<'_> {
    match schema.shape(ty) {
        Shape::Struct(at) => {
            let s = schema.struct_at(*at);
            if s.atomic {
                return Ownership::Whole;
            }
            Ownership::Fields(Box::new(move |name| s.field_type(name)))
        }
        Shape::Free => Ownership::Fields(Box::new(move |_| Some((ty, true)))),
        Shape::Map { item, atomic: false } => Ownership::Fields(Box::new(move |_| Some((*item, true)))),
        Shape::List { item, kind: ListKind::Map(keys) } => Ownership::Keyed(*item, keys),
        Shape::List { kind: ListKind::Set, .. } => Ownership::Set,
        _ => Ownership::Whole,
    }
}

/// Every field that `value` sets.
pub fn of_value(schema: &Schema, ty: TypeId, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    match (ownership(schema, ty), value) {
        (_, Value::Null) => return FieldSet::leaf(),
        (Ownership::Fields(field), Value::Object(object)) => {
            if object.is_empty() {
                return FieldSet::leaf();
            }
            for (name, v) in object {
                if let Some((ty, is_item)) = field(name) {
                    let mut child = of_value(schema, ty, v);
                    child.member |= is_item;
                    set.attach(field_edge(name), child);
                }
            }
        }
        (Ownership::Keyed(item, keys), Value::Array(items)) => {
            for v in items {
                if let Some(edge) = keyed_edge(schema, item, keys, v) {
                    let mut child = of_value(schema, item, v);
                    child.member = true;
                    set.attach(edge, child);
                }
            }
        }
        (Ownership::Set, Value::Array(items)) => {
            items.iter().for_each(|v| set.attach(value_edge(v), FieldSet::leaf()));
        }
        _ => return FieldSet::leaf(),
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sets_of_objects() {
        let schema = Schema::builtin();
        let ty = schema.kind("", "v1", "Pod").unwrap();
        let pod = json!({"metadata": {"labels": {"app": "x"}, "finalizers": ["f"]},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}], "nodeSelector": {"a": "b"}}});
        let set = of_value(schema, ty, &pod);
        assert_eq!(
            set.to_json(),
            json!({
            "f:metadata": {"f:labels": {"f:app": {}}, "f:finalizers": {"v:\"f\"": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:ports": {
                "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}},
                "f:nodeSelector": {}}})
        );
        assert_eq!(FieldSet::from_json(&set.to_json()).unwrap(), set);
        assert!(set.paths().contains(&".spec.containers[name=\"c\"].name".to_owned()));
    }

    #[test]
    fn algebra() {
        let parse = |v: Value| FieldSet::from_json(&v).unwrap();
        let mut a = parse(json!({"f:a": {}, "f:b": {"f:c": {}}}));
        let b = parse(json!({"f:b": {"f:c": {}, "f:d": {}}}));
        assert_eq!(a.intersection(&b).to_json(), json!({"f:b": {"f:c": {}}}));
        a.subtract(&b);
        assert_eq!(a.to_json(), json!({"f:a": {}}));
        a.union(&b);
        assert_eq!(a.paths(), [".a", ".b.c", ".b.d"]);
    }
}
