//! The table of the configuration's fields and what it does to a document: strict decoding and defaults. Pure.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Int,
    Float,
    String,
    Duration,
    Strings,
    /// Strings by name.
    Map,
    /// Anything: what is not Ferry's to judge.
    Any,
    /// Fields of its own.
    Object,
    /// A list of objects.
    List,
}

/// A field.
#[derive(Debug)]
struct Field {
    kind: Kind,
    /// Whether anything of Ferry's depends on it.
    used: bool,
    default: Option<Value>,
    below: BTreeMap<&'static str, Field>,
}

impl Field {
    fn inner(kind: Kind) -> Field {
        Field { kind, used: true, default: None, below: BTreeMap::new() }
    }
}

static ROOT: LazyLock<Field> = LazyLock::new(|| read(include_str!("../../data/configuration.txt")));

fn read(text: &'static str) -> Field {
    let mut root = Field::inner(Kind::Object);
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let mut words = line.splitn(3, ' ');
        let (Some(path), Some(kind)) = (words.next(), words.next()) else { continue };
        let used = !kind.ends_with('!');
        let kind = match kind.trim_end_matches('!') {
            "bool" => Kind::Bool,
            "int" => Kind::Int,
            "float" => Kind::Float,
            "string" => Kind::String,
            "duration" => Kind::Duration,
            "strings" => Kind::Strings,
            "map" => Kind::Map,
            _ => Kind::Any,
        };
        let default = words.next().map(|text| match kind {
            Kind::Bool => Value::Bool(text == "true"),
            Kind::Int | Kind::Float => text.parse().map_or(Value::Null, Value::Number),
            Kind::Strings => json!([text]),
            _ => Value::String(text.to_owned()),
        });
        let mut at = &mut root;
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            let leaf = parts.peek().is_none();
            let (name, above) = match part.strip_suffix("[]") {
                Some(name) => (name, Kind::List),
                None => (part, Kind::Object),
            };
            at = at.below.entry(name).or_insert_with(|| Field::inner(above));
            if leaf {
                (at.kind, at.used) = (kind, used);
                at.default.clone_from(&default);
            }
        }
    }
    root
}

/// Go's name of a value's type, as its decoder complains of it.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What is wrong with a document.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Problems {
    /// Values of wrong types: the document cannot be read.
    pub wrong: Vec<String>,
    /// Fields that do not exist.
    pub unknown: Vec<String>,
    /// Fields nothing depends on.
    pub idle: Vec<String>,
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn check(field: &Field, value: &Value, path: &str, problems: &mut Problems) {
    let mut expect = |holds: bool, wanted: &str| {
        if !holds {
            problems.wrong.push(format!(
                "json: cannot unmarshal {} into Go struct field KubeletConfiguration.{path} of type {wanted}",
                type_of(value)
            ));
        }
    };
    if value.is_null() {
        return;
    }
    match field.kind {
        Kind::Bool => expect(value.is_boolean(), "bool"),
        Kind::Int => expect(value.is_i64(), "int32"),
        Kind::Float => expect(value.is_number(), "float64"),
        Kind::String => expect(value.is_string(), "string"),
        Kind::Duration => match value.as_str() {
            None => expect(false, "string"),
            Some(text) if crate::duration::parse(text.trim_start_matches('-')).is_none() => {
                problems.wrong.push(format!("time: invalid duration {text:?}"));
            }
            Some(_) => {}
        },
        Kind::Strings => {
            let all = value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
            expect(all, "[]string");
        }
        Kind::Map => {
            let all = value.as_object().is_some_and(|map| map.values().all(Value::is_string));
            expect(all, "map[string]string");
        }
        Kind::Any => {}
        Kind::Object => match value.as_object() {
            Some(map) => check_object(field, map, path, problems),
            None => expect(false, "object"),
        },
        Kind::List => match value.as_array() {
            Some(list) => {
                for (index, item) in list.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    match item.as_object() {
                        Some(map) => check_object(field, map, &path, problems),
                        None => problems.wrong.push(format!(
                            "json: cannot unmarshal {} into Go struct field KubeletConfiguration.{path} of type \
                             object",
                            type_of(item)
                        )),
                    }
                }
            }
            None => expect(false, "array"),
        },
    }
}

fn check_object(field: &Field, map: &Map<String, Value>, path: &str, problems: &mut Problems) {
    for (name, value) in map {
        if path.is_empty() && matches!(name.as_str(), "kind" | "apiVersion" | "metadata") {
            continue;
        }
        let path = join(path, name);
        match field.below.get(name.as_str()) {
            Some(below) => {
                if !below.used && !value.is_null() {
                    problems.idle.push(path.clone());
                }
                check(below, value, &path, problems);
            }
            None => problems.unknown.push(format!("unknown field {path:?}")),
        }
    }
}

/// Looks for what is wrong with a document.
pub(super) fn judge(document: &Map<String, Value>) -> Problems {
    let mut problems = Problems::default();
    check_object(&ROOT, document, "", &mut problems);
    problems
}

fn fill(field: &Field, map: &mut Map<String, Value>) {
    for (name, below) in &field.below {
        match below.kind {
            Kind::Object => {
                let entry = map.entry(*name).or_insert_with(|| json!({}));
                if let Some(inner) = entry.as_object_mut() {
                    fill(below, inner);
                }
            }
            _ => {
                // What is empty or zero in Go's eyes is as good as not there, where a default is something else.
                let absent = match map.get(*name) {
                    None | Some(Value::Null) => true,
                    Some(Value::String(text)) => text.is_empty(),
                    Some(_) => false,
                };
                if let (true, Some(default)) = (absent, &below.default) {
                    map.insert((*name).to_owned(), default.clone());
                }
            }
        }
    }
}

/// The document with all defaults.
pub(super) fn complete(mut document: Map<String, Value>) -> Map<String, Value> {
    fill(&ROOT, &mut document);
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(document: Value) -> Problems {
        judge(document.as_object().unwrap())
    }

    #[test]
    fn strictly() {
        let problems = judged(json!({"kind": "KubeletConfiguration", "maxPods": "many", "maxPod": 1,
            "authentication": {"webhook": {"enable": true}}, "evictionHard": {"a": 1}, "readOnlyPort": 10255,
            "syncFrequency": "1", "registerWithTaints": [{"key": "a", "operator": "x"}], "clusterDNS": null}));
        assert_eq!(
            problems.unknown,
            [
                "unknown field \"authentication.webhook.enable\"",
                "unknown field \"maxPod\"",
                "unknown field \"registerWithTaints[0].operator\""
            ]
        );
        assert_eq!(
            problems.wrong,
            [
                "json: cannot unmarshal object into Go struct field KubeletConfiguration.evictionHard of type \
                 map[string]string",
                "json: cannot unmarshal string into Go struct field KubeletConfiguration.maxPods of type int32",
                "time: invalid duration \"1\"",
            ]
        );
        assert_eq!(problems.idle, ["readOnlyPort", "syncFrequency"]);
    }

    #[test]
    fn defaults() {
        let given = json!({"maxPods": 5, "evictionHard": {"pid.available": "1%"}, "containerLogMaxSize": ""});
        let complete = complete(given.as_object().unwrap().clone());
        assert_eq!(complete["maxPods"], 5);
        assert_eq!(complete["containerLogMaxSize"], "10Mi");
        assert_eq!(complete["evictionHard"], json!({"pid.available": "1%"}));
        assert_eq!(complete["authentication"]["webhook"], json!({"enabled": true, "cacheTTL": "2m0s"}));
        assert_eq!(complete["enforceNodeAllocatable"], json!(["pods"]));
        assert_eq!(complete["memoryThrottlingFactor"], 0.9);
        assert!(!complete.contains_key("registerWithTaints"));
        assert_eq!(judge(&complete).wrong, Vec::<String>::new());
    }
}
