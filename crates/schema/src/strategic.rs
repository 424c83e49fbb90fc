//! Strategic merge patch: JSON merge that knows which lists are keyed.
//!
//! Directives: `$patch: replace|delete|merge`, `$retainKeys`, `$deleteFromPrimitiveList/FIELD`,
//! `$setElementOrder/FIELD`. See the API conventions on strategic merge patch.

use serde_json::{Map, Value};

use crate::types::{Schema, Shape, Strategic, TypeId};

/// The patch breaks the rules of strategic merge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatchError(pub String);

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Applies `patch` to `target`, an object of type `ty`.
pub fn apply(
    schema: &Schema,
    ty: TypeId,
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), PatchError> {
    match patch.get(PATCH).and_then(Value::as_str) {
        Some("replace") => {
            *target = without_directives(patch);
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(PatchError(format!("Unknown patch type found: {other}"))),
    }
    if let Some(Value::Array(keys)) = patch.get(RETAIN_KEYS) {
        target.retain(|k, _| keys.iter().any(|key| key.as_str() == Some(k)));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_PRIMITIVES) {
            delete_primitives(target, field, value)?;
        } else if let Some(field) = key.strip_prefix(ELEMENT_ORDER)
            && !patch.contains_key(field)
        {
            let strategic = strategy_of(schema, ty, field);
            if let (Some(Value::Array(live)), Value::Array(order)) = (target.get_mut(field), value) {
                let old = live.clone();
                reorder(live, order, &old, strategic.merge_key.as_deref());
            }
        }
    }
    for (key, value) in patch {
        if key.starts_with('$') {
            continue;
        }
        if value.is_null() {
            target.remove(key);
            continue;
        }
        let order = patch.get(&format!("{ELEMENT_ORDER}{key}")).and_then(Value::as_array);
        merge_field(schema, ty, target, key, value, order)?;
    }
    Ok(())
}

fn field_type(schema: &Schema, ty: TypeId, key: &str) -> Option<TypeId> {
    match schema.shape(ty) {
        Shape::Struct(at) => schema.struct_at(*at).field(key).map(|f| f.ty),
        Shape::Map { item, .. } => Some(*item),
        Shape::Any => Some(ty),
        _ => None,
    }
}

fn strategy_of<'a>(schema: &'a Schema, ty: TypeId, key: &str) -> &'a Strategic {
    static REPLACE: Strategic = Strategic { merge: false, retain_keys: false, merge_key: None };
    schema.as_struct(ty).and_then(|s| s.field(key)).map_or(&REPLACE, |f| &f.strategic)
}

fn merge_field(
    schema: &Schema,
    ty: TypeId,
    target: &mut Map<String, Value>,
    key: &str,
    value: &Value,
    order: Option<&Vec<Value>>,
) -> Result<(), PatchError> {
    let field = field_type(schema, ty, key);
    match (value, field) {
        (Value::Object(patch), Some(field)) => {
            let entry = target.entry(key).or_insert_with(|| Value::Object(Map::new()));
            if !entry.is_object() {
                *entry = Value::Object(Map::new());
            }
            if let Value::Object(inner) = entry {
                apply(schema, field, inner, patch)?;
            }
            if patch.get(PATCH).and_then(Value::as_str) == Some("delete") {
                target.remove(key);
            }
        }
        (Value::Array(patch), Some(field)) => {
            let strategic = strategy_of(schema, ty, key);
            let Shape::List { item, .. } = schema.shape(field) else {
                target.insert(key.to_owned(), value.clone());
                return Ok(());
            };
            let live = match target.get_mut(key) {
                Some(Value::Array(live)) => std::mem::take(live),
                _ => Vec::new(),
            };
            let merged = match (strategic.merge, &strategic.merge_key) {
                (true, Some(merge_key)) => merge_keyed(schema, *item, live, patch, merge_key, order)?,
                (true, None) => merge_primitives(live, patch, order),
                (false, _) => patch.clone(),
            };
            target.insert(key.to_owned(), Value::Array(merged));
        }
        _ => {
            target.insert(key.to_owned(), value.clone());
        }
    }
    Ok(())
}

fn delete_primitives(target: &mut Map<String, Value>, field: &str, gone: &Value) -> Result<(), PatchError> {
    let Value::Array(gone) = gone else {
        return Err(PatchError(format!("{DELETE_PRIMITIVES}{field} must be a list")));
    };
    if let Some(Value::Array(items)) = target.get_mut(field) {
        items.retain(|v| !gone.contains(v));
    }
    Ok(())
}

fn merge_primitives(mut live: Vec<Value>, patch: &[Value], order: Option<&Vec<Value>>) -> Vec<Value> {
    let old = live.clone();
    for v in patch {
        if !live.contains(v) {
            live.push(v.clone());
        }
    }
    if let Some(order) = order {
        reorder(&mut live, order, &old, None);
    }
    live
}

fn merge_keyed(
    schema: &Schema,
    item: TypeId,
    mut live: Vec<Value>,
    patch: &[Value],
    key: &str,
    order: Option<&Vec<Value>>,
) -> Result<Vec<Value>, PatchError> {
    let old = live.clone();
    if patch.iter().any(|p| p.get(PATCH).and_then(Value::as_str) == Some("replace") && p.get(key).is_none()) {
        return Ok(patch
            .iter()
            .filter(|p| p.get(PATCH).is_none())
            .filter_map(|p| p.as_object())
            .map(|p| Value::Object(without_directives(p)))
            .collect());
    }
    for p in patch {
        let Value::Object(p) = p else {
            return Err(PatchError("expected objects in a list that merges by key".into()));
        };
        let id = p.get(key).ok_or_else(|| {
            PatchError(format!(
                "map: {} does not contain declared merge key: {key}",
                Value::Object(p.clone())
            ))
        })?;
        let at = live.iter().position(|v| v.get(key) == Some(id));
        match (p.get(PATCH).and_then(Value::as_str), at) {
            (Some("delete"), _) => live.retain(|v| v.get(key) != Some(id)),
            (_, Some(at)) => {
                if let Value::Object(target) = &mut live[at] {
                    apply(schema, item, target, p)?;
                }
            }
            (_, None) => {
                let mut fresh = Map::new();
                apply(schema, item, &mut fresh, p)?;
                live.push(Value::Object(fresh));
            }
        }
    }
    if let Some(order) = order {
        reorder(&mut live, order, &old, Some(key));
    }
    Ok(live)
}

/// Puts the items that `order` names into its order; the others keep their place relative to `old`.
fn reorder(items: &mut Vec<Value>, order: &[Value], old: &[Value], key: Option<&str>) {
    let id = |v: &Value| key.map_or_else(|| Some(v.clone()), |k| v.get(k).cloned());
    let ids: Vec<Value> = order.iter().filter_map(id).collect();
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        items.drain(..).partition(|v| id(v).is_some_and(|i| ids.contains(&i)));
    named.sort_by_key(|v| id(v).and_then(|i| ids.iter().position(|x| *x == i)));
    let old_ids: Vec<Option<Value>> = old.iter().map(id).collect();
    *items = interleave(named, others, |v| old_ids.iter().position(|o| *o == id(v)));
}

/// Merges two sequences, each keeping its own order; `old_position` decides between their heads.
pub(crate) fn interleave<T>(
    first: Vec<T>,
    second: Vec<T>,
    old_position: impl Fn(&T) -> Option<usize>,
) -> Vec<T> {
    let mut out = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter().peekable(), second.into_iter().peekable());
    loop {
        match (first.peek(), second.peek()) {
            (Some(a), Some(b)) => {
                let a_first = match (old_position(a), old_position(b)) {
                    (Some(a), Some(b)) => a < b,
                    (None, _) => true,
                    (Some(_), None) => false,
                };
                out.extend(if a_first { first.next() } else { second.next() });
            }
            (Some(_), None) => out.extend(first.by_ref()),
            (None, Some(_)) => out.extend(second.by_ref()),
            (None, None) => return out,
        }
    }
}

fn without_directives(object: &Map<String, Value>) -> Map<String, Value> {
    object
        .iter()
        .filter(|(k, v)| !k.starts_with('$') && !v.is_null())
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(live: Value, patch: Value) -> Value {
        let schema = Schema::builtin();
        let ty = schema.kind("apps", "v1", "Deployment").unwrap();
        let mut live = live.as_object().unwrap().clone();
        apply(schema, ty, &mut live, patch.as_object().unwrap()).unwrap();
        Value::Object(live)
    }

    fn containers(items: Value) -> Value {
        json!({"spec": {"template": {"spec": {"containers": items}}}})
    }

    #[test]
    fn keyed_lists_merge_and_delete() {
        let live = containers(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]));
        let patch = containers(
            json!([{"name": "b", "image": "2"}, {"name": "c", "image": "3"}, {"name": "a", "$patch": "delete"}]),
        );
        assert_eq!(
            patched(live, patch),
            containers(json!([{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]))
        );
    }

    #[test]
    fn element_order_is_kept() {
        let live = containers(json!([{"name": "a"}, {"name": "server"}, {"name": "b"}]));
        let mut patch = containers(json!([{"name": "c"}]));
        patch["spec"]["template"]["spec"]["$setElementOrder/containers"] =
            json!([{"name": "b"}, {"name": "c"}, {"name": "a"}]);
        let names: Vec<String> = patched(live, patch)["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["server", "b", "c", "a"]);
    }

    #[test]
    fn directives() {
        let live = json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}},
            "spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"], "labels": {"x": null, "z": "3"}},
            "spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(
            patched(live.clone(), patch),
            json!({"metadata": {"finalizers": ["b", "c"], "labels": {"y": "2", "z": "3"}},
            "spec": {"strategy": {"type": "Recreate"}}})
        );
        assert_eq!(
            patched(live, json!({"metadata": {"labels": {"$patch": "replace", "q": "1"}}}))["metadata"]["labels"],
            json!({"q": "1"})
        );
        let replaced = patched(
            containers(json!([{"name": "a"}])),
            containers(json!([{"$patch": "replace"}, {"name": "z"}])),
        );
        assert_eq!(replaced, containers(json!([{"name": "z"}])));
    }

    #[test]
    fn a_missing_merge_key_is_refused() {
        let schema = Schema::builtin();
        let ty = schema.kind("apps", "v1", "Deployment").unwrap();
        let patch = containers(json!([{"image": "2"}]));
        let e = apply(schema, ty, &mut Map::new(), patch.as_object().unwrap()).unwrap_err();
        assert!(e.0.contains("does not contain declared merge key: name"), "{e}");
    }
}
