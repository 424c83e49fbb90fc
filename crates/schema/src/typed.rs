//! Whether an applied configuration is an object of its type: what server-side apply refuses before it looks
//! at anything else, in the words of upstream's structured merge.
//!
//! Unlike [`crate::decode`], which drops what it does not know, this tells of every field that is not the
//! type's, every value of another type, and every item that occurs twice in a list whose items have identities.

use std::collections::HashSet;
use std::fmt::{self, Write};

use serde_json::Value;

use crate::decode::{DEPTH_MAX, PROBLEMS_MAX};
use crate::types::{ListKind, Schema, Shape, TypeId};

/// What keeps a value from being one of its type; one line each, and a head where there are several.
pub fn problem(schema: &Schema, ty: TypeId, value: &Value) -> Option<String> {
    let mut walk = Walk { schema, path: String::new(), found: Vec::new(), depth: 0 };
    walk.value(ty, value);
    match walk.found.len() {
        0 => None,
        1 => walk.found.pop(),
        _ => Some(format!("errors:\n  {}", walk.found.join("\n  "))),
    }
}

struct Walk<'a> {
    schema: &'a Schema,
    path: String,
    found: Vec<String>,
    depth: usize,
}

impl Walk<'_> {
    fn report(&mut self, what: fmt::Arguments<'_>) {
        if self.found.len() < PROBLEMS_MAX {
            self.found.push(format!("{}: {what}", self.path));
        }
    }

    fn within(&mut self, part: fmt::Arguments<'_>, look: impl FnOnce(&mut Self)) {
        let len = self.path.len();
        // Writing to a String cannot fail.
        let _ = self.path.write_fmt(part);
        self.depth += 1;
        if self.depth <= DEPTH_MAX {
            look(self);
        }
        self.depth -= 1;
        self.path.truncate(len);
    }

    fn value(&mut self, ty: TypeId, value: &Value) {
        if value.is_null() {
            return;
        }
        let schema = self.schema;
        match schema.shape(ty) {
            Shape::Any | Shape::Free => {}
            Shape::Int32 | Shape::Int64 | Shape::Double if !value.is_number() => {
                self.report(format_args!("expected numeric (int or float), got {}", go_type(value)));
            }
            Shape::String | Shape::Bytes if !value.is_string() => {
                self.report(format_args!(
                    "expected string, got &value.valueUnstructured{{Value:{}}}",
                    Go(value, true)
                ));
            }
            Shape::Bool if !value.is_boolean() => {
                self.report(format_args!("expected boolean, got &{{{}}}", Go(value, false)));
            }
            Shape::Quantity | Shape::IntOrString | Shape::Time | Shape::MicroTime
                if value.is_object() || value.is_array() =>
            {
                self.report(format_args!("expected any scalar, got &{{{}}}", Go(value, false)));
            }
            Shape::List { item, kind } => match value {
                Value::Array(items) => self.items(*item, kind, items),
                _ => self.report(format_args!("expected list, got &{{{}}}", Go(value, false))),
            },
            Shape::Map { item, .. } => match value {
                Value::Object(map) => {
                    map.iter().for_each(|(k, v)| self.within(format_args!(".{k}"), |w| w.value(*item, v)));
                }
                _ => self.report(format_args!("expected map, got &{{{}}}", Go(value, false))),
            },
            Shape::Struct(at) => {
                let Value::Object(map) = value else {
                    return self.report(format_args!("expected map, got &{{{}}}", Go(value, false)));
                };
                let fields = schema.struct_at(*at);
                for (name, value) in map {
                    self.within(format_args!(".{name}"), |walk| match fields.field_type(name) {
                        Some((ty, _)) => walk.value(ty, value),
                        None => walk.report(format_args!("field not declared in schema")),
                    });
                }
            }
            _ => {}
        }
    }

    fn items(&mut self, ty: TypeId, kind: &ListKind, items: &[Value]) {
        let mut seen = HashSet::new();
        for (place, item) in items.iter().enumerate() {
            let identity = match kind {
                ListKind::Atomic => {
                    self.within(format_args!("[{place}]"), |walk| walk.value(ty, item));
                    continue;
                }
                ListKind::Set => format!("[={item}]"),
                ListKind::Map(keys) => match self.identity(ty, keys, item) {
                    Ok(identity) => identity,
                    Err(why) => {
                        self.report(format_args!("element {place}: {why}"));
                        continue;
                    }
                },
            };
            self.within(format_args!("{identity}"), |walk| walk.value(ty, item));
            if !seen.insert(identity.clone()) {
                self.report(format_args!("duplicate entries for key {identity}"));
            }
        }
    }

    /// `[name="x"]` for an item of a keyed list.
    fn identity(&self, ty: TypeId, keys: &[Box<str>], item: &Value) -> Result<String, String> {
        let Some(object) = item.as_object() else {
            return Err("associative list with keys may not have non-map elements".into());
        };
        let fields = self.schema.as_struct(ty);
        let mut known: Vec<(&str, &Value)> = Vec::new();
        for key in keys {
            let default = || fields?.field(key)?.default.as_ref();
            known.extend(object.get(&**key).or_else(default).map(|value| (&**key, value)));
        }
        known.sort_by_key(|(key, _)| *key);
        match keys.first() {
            Some(first) if known.is_empty() => Err(format!(
                "associative list with keys has an element that omits key field {first:?} (and doesn't have default value)"
            )),
            _ => {
                let parts: Vec<_> = known.iter().map(|(key, value)| format!("{key}={value}")).collect();
                Ok(format!("[{}]", parts.join(",")))
            }
        }
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A value as Go prints it: `%#v` if the flag is set, else `%v`.
struct Go<'a>(&'a Value, bool);

impl fmt::Display for Go<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Go(value, sharp) = *self;
        let (open, close) = if sharp { ("{", "}") } else { ("[", "]") };
        match value {
            Value::Null => f.write_str("<nil>"),
            Value::String(text) if sharp => write!(f, "{text:?}"),
            Value::String(text) => f.write_str(text),
            Value::Array(items) => {
                f.write_str(if sharp { go_type(value) } else { "" })?;
                f.write_str(open)?;
                for (place, item) in items.iter().enumerate() {
                    let gap = if sharp { ", " } else { " " };
                    write!(f, "{}{}", if place == 0 { "" } else { gap }, Go(item, sharp))?;
                }
                f.write_str(close)
            }
            Value::Object(map) => {
                f.write_str(if sharp { go_type(value) } else { "map" })?;
                f.write_str(open)?;
                let mut sorted: Vec<_> = map.iter().collect();
                sorted.sort_by_key(|(key, _)| *key);
                for (place, (key, item)) in sorted.into_iter().enumerate() {
                    let gap = if sharp { ", " } else { " " };
                    f.write_str(if place == 0 { "" } else { gap })?;
                    if sharp {
                        write!(f, "{key:?}:")?
                    } else {
                        write!(f, "{key}:")?
                    }
                    write!(f, "{}", Go(item, sharp))?;
                }
                f.write_str(close)
            }
            other => write!(f, "{other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(spec: Value) -> String {
        let schema = Schema::builtin();
        let ty = schema.kind("", "v1", "Pod").unwrap();
        problem(schema, ty, &json!({"metadata": {"name": "p"}, "spec": spec})).unwrap_or_default()
    }

    #[test]
    fn every_mistake_has_its_words() {
        let container = |more: Value| json!({"containers": [{"name": "a", "env": more}]});
        for (spec, wanted) in [
            (json!({"containers": [{"name": "a", "image": "b"}], "nodeSelector": {"a": "b"}}), ""),
            (json!({"containers": null}), ""),
            (json!({"foo": 1}), ".spec.foo: field not declared in schema"),
            (
                json!({"a": 1, "b": 2}),
                "errors:\n  .spec.a: field not declared in schema\n  .spec.b: field not declared in schema",
            ),
            (json!({"priority": "x"}), ".spec.priority: expected numeric (int or float), got string"),
            (json!({"hostNetwork": "no"}), ".spec.hostNetwork: expected boolean, got &{no}"),
            (
                json!({"containers": {"name": "a", "b": [1]}}),
                ".spec.containers: expected list, got &{map[b:[1] name:a]}",
            ),
            (json!({"nodeSelector": [1]}), ".spec.nodeSelector: expected map, got &{[1]}"),
            (
                container(json!([{"name": "x", "value": 8080}])),
                ".spec.containers[name=\"a\"].env[name=\"x\"].value: expected string, got &value.valueUnstructured{Value:8080}",
            ),
            (
                container(json!([{"name": "x"}, {"name": "x"}])),
                ".spec.containers[name=\"a\"].env: duplicate entries for key [name=\"x\"]",
            ),
            (
                json!({"containers": [{"image": "i"}]}),
                ".spec.containers: element 0: associative list with keys has an element that omits key field \"name\" (and doesn't have default value)",
            ),
            (
                json!({"containers": [{"name": "a", "ports": [{"containerPort": 1, "x": 2}]}]}),
                ".spec.containers[name=\"a\"].ports[containerPort=1,protocol=\"TCP\"].x: field not declared in schema",
            ),
            (
                json!({"tolerations": [{"key": "a"}, {"key": 1}]}),
                ".spec.tolerations[1].key: expected string, got &value.valueUnstructured{Value:1}",
            ),
        ] {
            assert_eq!(told(spec.clone()), wanted, "{spec}");
        }
    }
}
