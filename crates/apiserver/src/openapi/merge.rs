//! OpenAPI v2 of several servers as one document: paths that are new come in, with the definitions and parameters
//! that they use; a name that means something else already gets another (`_v2`, `_v3`, ...).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// What other servers may add: the only paths that requests are handed on for.
const SERVED: &str = "/apis/";
/// Parts of a document that references point into.
const SECTIONS: [&str; 2] = ["definitions", "parameters"];
/// The kinds that a definition stands for; several servers may share it for kinds of their own.
const KINDS: &str = "x-kubernetes-group-version-kind";

/// A section and a name in it.
type Place = (&'static str, String);

/// Where a reference points to.
fn place(reference: &str) -> Option<Place> {
    let (section, name) = reference.strip_prefix("#/")?.split_once('/')?;
    let section = SECTIONS.into_iter().find(|s| *s == section)?;
    Some((section, name.to_owned()))
}

/// Everything that `value` refers to.
fn references(value: &Value, found: &mut Vec<Place>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str).and_then(place));
            map.values().for_each(|v| references(v, found));
        }
        Value::Array(all) => all.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

/// Gives references their new names.
fn rename(value: &mut Value, names: &BTreeMap<Place, String>) {
    match value {
        Value::Object(map) => {
            let new = map.get("$ref").and_then(Value::as_str).and_then(place).and_then(|(section, name)| {
                let new = names.get(&(section, name))?;
                Some(format!("#/{section}/{new}"))
            });
            if let Some(new) = new {
                map.insert("$ref".into(), new.into());
            }
            map.values_mut().for_each(|v| rename(v, names));
        }
        Value::Array(all) => all.iter_mut().for_each(|v| rename(v, names)),
        _ => {}
    }
}

/// Whether two definitions are the same but for the kinds that they stand for.
fn same(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    let rest = |m: &Map<String, Value>| m.len() - usize::from(m.contains_key(KINDS));
    rest(a) == rest(b) && a.iter().all(|(k, v)| k == KINDS || b.get(k) == Some(v))
}

fn entry<'a>(document: &'a Value, section: &str, name: &str) -> Option<&'a Value> {
    document.get(section)?.get(name)
}

/// The name that `value` gets in `into`; `taken` are names given to others of the same document.
fn free_name(
    into: &Value,
    from: &Value,
    (section, name): (&str, &str),
    value: &Value,
    taken: &BTreeSet<Place>,
) -> String {
    let mut candidate = name.to_owned();
    for i in 2.. {
        match entry(into, section, &candidate) {
            Some(there) if same(there, value) => break,
            None if candidate == name => break,
            None if entry(from, section, &candidate).is_none() && !is_taken(taken, section, &candidate) => {
                break;
            }
            _ => candidate = format!("{name}_v{i}"),
        }
    }
    candidate
}

fn is_taken(taken: &BTreeSet<Place>, section: &str, name: &str) -> bool {
    taken.iter().any(|(s, n)| *s == section && n == name)
}

/// Adds to a definition's kinds those that another one of the same content has.
fn add_kinds(there: &mut Value, value: &Value) {
    let Some(more) = value.get(KINDS).and_then(Value::as_array) else { return };
    let Some(there) = there.as_object_mut() else { return };
    let mut all = there.get(KINDS).and_then(Value::as_array).cloned().unwrap_or_default();
    let before = all.len();
    for kind in more {
        if !all.contains(kind) {
            all.push(kind.clone());
        }
    }
    if all.len() > before {
        let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        all.sort_by_cached_key(|k| (text(k, "group"), text(k, "version"), text(k, "kind")));
        there.insert(KINDS.into(), all.into());
    }
}

fn section<'a>(document: &'a mut Value, name: &str) -> Option<&'a mut Map<String, Value>> {
    document.as_object_mut()?.entry(name).or_insert_with(|| Map::new().into()).as_object_mut()
}

/// Adds to `into` what it has not got of `from`. A path that is there already stays as it is.
pub fn merge(into: &mut Value, from: &Value) {
    let paths = from.get("paths").and_then(Value::as_object);
    let new: Vec<(&String, &Value)> = paths
        .into_iter()
        .flatten()
        .filter(|(path, _)| path.starts_with(SERVED) && entry(into, "paths", path).is_none())
        .collect();
    let mut open = Vec::new();
    new.iter().for_each(|(_, item)| references(item, &mut open));
    let mut used: BTreeMap<Place, &Value> = BTreeMap::new();
    while let Some(place) = open.pop() {
        if used.contains_key(&place) {
            continue;
        }
        let Some(value) = entry(from, place.0, &place.1) else { continue };
        references(value, &mut open);
        used.insert(place, value);
    }
    let (mut names, mut taken) = (BTreeMap::new(), BTreeSet::new());
    for ((section, name), value) in &used {
        let free = free_name(into, from, (section, name), value, &taken);
        if free != *name {
            taken.insert((*section, free.clone()));
            names.insert((*section, name.clone()), free);
        }
    }
    for ((part, name), value) in &used {
        let key = names.get(&(*part, name.clone())).unwrap_or(name);
        let Some(all) = section(into, part) else { continue };
        match all.get_mut(key) {
            Some(there) => add_kinds(there, value),
            None => {
                let mut value = (*value).clone();
                rename(&mut value, &names);
                all.insert(key.clone(), value);
            }
        }
    }
    if let Some(all) = section(into, "paths") {
        for (path, item) in new {
            let mut item = item.clone();
            rename(&mut item, &names);
            all.insert(path.clone(), item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn own() -> Value {
        json!({"swagger": "2.0", "paths": {"/apis/apps/": {"get": {}}, "/apis/both/": {"get": {"description": "own"}}},
        "definitions": {
            "Meta": {"type": "object"},
            "Spec": {"type": "string"},
            "Opt": {"type": "object", KINDS: [{"group": "apps", "version": "v1", "kind": "Opt"}]},
        }})
    }

    #[test]
    fn what_is_new_comes_in_with_what_it_uses() {
        let mut into = own();
        let from = json!({"paths": {
            "/apis/x/v1/things": {"parameters": [{"$ref": "#/parameters/pretty"}],
                "get": {"responses": {"200": {"schema": {"$ref": "#/definitions/Thing"}}}}},
            "/apis/both/": {"get": {"description": "theirs", "schema": {"$ref": "#/definitions/Lost"}}},
            "/healthz": {"get": {}}},
        "parameters": {"pretty": {"name": "pretty", "in": "query"}, "unused": {}},
        "definitions": {
            "Thing": {"properties": {"meta": {"$ref": "#/definitions/Meta"}, "spec": {"$ref": "#/definitions/Spec"},
                "opt": {"$ref": "#/definitions/Opt"}, "me": {"$ref": "#/definitions/Thing"}}},
            "Meta": {"type": "object"},
            "Spec": {"type": "integer"},
            "Opt": {"type": "object", KINDS: [{"group": "a", "version": "v1", "kind": "Opt"}]},
            "Lost": {"type": "object"}, "Unused": {}}});
        merge(&mut into, &from);
        assert_eq!(into["paths"]["/apis/both/"]["get"]["description"], "own");
        assert!(into["paths"].get("/healthz").is_none());
        assert_eq!(into["parameters"], json!({"pretty": {"name": "pretty", "in": "query"}}));
        let names: Vec<&String> = into["definitions"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["Meta", "Opt", "Spec", "Spec_v2", "Thing"]);
        let thing = &into["definitions"]["Thing"]["properties"];
        assert_eq!(thing["spec"]["$ref"], "#/definitions/Spec_v2");
        assert_eq!(thing["meta"]["$ref"], "#/definitions/Meta");
        assert_eq!(into["definitions"]["Spec_v2"]["type"], "integer");
        let kinds = into["definitions"]["Opt"][KINDS].as_array().unwrap();
        assert_eq!((kinds.len(), &kinds[0]["group"]), (2, &json!("a")));
    }

    #[test]
    fn a_third_meaning_gets_a_third_name_and_a_second_is_used_again() {
        let of = |group: &str, ty: &str| {
            json!({"paths": {format!("/apis/{group}/"): {"schema": {"$ref": "#/definitions/Spec"}}},
            "definitions": {"Spec": {"type": ty}}})
        };
        let mut into = own();
        for (group, ty, name) in [
            ("a", "integer", "Spec_v2"),
            ("b", "boolean", "Spec_v3"),
            ("c", "integer", "Spec_v2"),
            ("d", "string", "Spec"),
        ] {
            merge(&mut into, &of(group, ty));
            let reference = &into["paths"][format!("/apis/{group}/")]["schema"]["$ref"];
            assert_eq!(*reference, format!("#/definitions/{name}"), "{group}");
        }
        assert_eq!(into["definitions"].as_object().unwrap().len(), 5);
    }

    #[test]
    fn a_new_name_is_none_that_the_document_has_itself() {
        let mut into = own();
        let from = json!({"paths": {"/apis/a/": {"x": [{"$ref": "#/definitions/Spec"}, {"$ref": "#/definitions/Spec_v2"}]}},
            "definitions": {"Spec": {"type": "integer"}, "Spec_v2": {"type": "boolean"}}});
        merge(&mut into, &from);
        assert_eq!(into["paths"]["/apis/a/"]["x"][0]["$ref"], "#/definitions/Spec_v3");
        assert_eq!(into["definitions"]["Spec_v2"]["type"], "boolean");
        for junk in [
            json!(null),
            json!({"paths": []}),
            json!({"paths": {"/apis/q/": {"$ref": "#/definitions/None"}}}),
        ] {
            merge(&mut into, &junk);
        }
        assert!(into["paths"].get("/apis/q/").is_some());
    }
}
