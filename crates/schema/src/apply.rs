//! Server-side apply: structured merge, ownership and conflicts (KEP-555), and the bookkeeping of
//! `managedFields` for ordinary writes.

use meta::status::{Cause, Details};
use meta::{Reason, Status};
use serde_json::{Map, Value, json};

use crate::fieldset::{self, FieldSet, Ownership, field_edge, keyed_edge, ownership, value_edge};
use crate::types::{Schema, TypeId};

/// Most entries by updaters that are kept before the oldest are joined into one (upstream's limit).
pub const UPDATERS_MAX: usize = 10;
/// Longest field manager name, in bytes.
pub const MANAGER_NAME_MAX: usize = 128;
/// Fields that nobody owns: identity and what the server itself sets.
const UNOWNED_METADATA: [&str; 9] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
    "deletionTimestamp",
];

/// Who writes, for `managedFields`.
#[derive(Debug, Clone)]
pub struct Writer<'a> {
    /// Field manager.
    pub manager: &'a str,
    /// `apiVersion` of the request.
    pub api_version: &'a str,
    /// Subresource, empty for the object itself.
    pub subresource: &'a str,
    /// Time of the write, RFC 3339 in seconds.
    pub now: &'a str,
}

/// One entry of `managedFields`.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: String,
    apply: bool,
    api_version: String,
    subresource: String,
    time: String,
    fields: FieldSet,
}

impl Entry {
    fn new(writer: &Writer<'_>, apply: bool) -> Self {
        Entry {
            manager: writer.manager.to_owned(),
            apply,
            api_version: writer.api_version.to_owned(),
            subresource: writer.subresource.to_owned(),
            time: writer.now.to_owned(),
            fields: FieldSet::default(),
        }
    }

    /// Appliers are one per name and subresource; updaters also per version.
    fn is(&self, writer: &Writer<'_>, apply: bool) -> bool {
        self.apply == apply
            && self.manager == writer.manager
            && self.subresource == writer.subresource
            && (apply || self.api_version == writer.api_version)
    }

    fn from_json(value: &Value) -> Option<Entry> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Entry {
            manager: text("manager"),
            apply: match value.get("operation").and_then(Value::as_str)? {
                "Apply" => true,
                "Update" => false,
                _ => return None,
            },
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields: FieldSet::from_json(value.get("fieldsV1")?)?,
        })
    }

    fn to_json(&self) -> Value {
        let mut out = json!({
            "manager": self.manager,
            "operation": if self.apply { "Apply" } else { "Update" },
            "apiVersion": self.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_json(),
        });
        if !self.subresource.is_empty() {
            out["subresource"] = self.subresource.as_str().into();
        }
        out
    }
}

fn read_entries(object: &Map<String, Value>) -> Option<Vec<Entry>> {
    object.get("metadata")?.get("managedFields")?.as_array()?.iter().map(Entry::from_json).collect()
}

fn write_entries(object: &mut Map<String, Value>, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.fields.is_empty());
    // Upstream's order: appliers first, then by time, then by name.
    entries.sort_by(|a, b| (!a.apply, &a.time, &a.manager).cmp(&(!b.apply, &b.time, &b.manager)));
    cap_updaters(&mut entries);
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        if !entries.is_empty() {
            let list = entries.iter().map(Entry::to_json).collect();
            metadata.insert("managedFields".into(), Value::Array(list));
        }
    }
}

/// Joins the oldest updaters of one version into `ancient-changes` while there are too many.
fn cap_updaters(entries: &mut Vec<Entry>) {
    while entries.iter().filter(|e| !e.apply).count() > UPDATERS_MAX {
        let mut oldest = (0..entries.len()).filter(|i| !entries[*i].apply);
        let (Some(first), Some(second)) = (oldest.next(), oldest.next()) else { return };
        let joined = entries.remove(second);
        entries[first].manager = "ancient-changes".into();
        entries[first].time = joined.time;
        entries[first].fields.union(&joined.fields);
    }
}

/// Records an ordinary write of `new` over `live` (`None` for a create) in `new`'s `managedFields`.
pub fn track_update(
    schema: &Schema,
    ty: TypeId,
    live: Option<&Map<String, Value>>,
    new: &mut Map<String, Value>,
    writer: &Writer<'_>,
) {
    let sent = new.get("metadata").and_then(|m| m.get("managedFields")).is_some();
    // A client may send the entries back changed; what it sends is taken if it can be read.
    let entries = if sent { read_entries(new) } else { live.and_then(read_entries) };
    let mut entries = entries.or_else(|| live.and_then(read_entries)).unwrap_or_default();
    let (mut changed, mut removed) = (FieldSet::default(), FieldSet::default());
    compare_objects(schema, ty, live, Some(new), &mut changed, &mut removed);
    for entry in &mut entries {
        if !entry.is(writer, false) {
            entry.fields.subtract(&changed);
        }
        entry.fields.subtract_below(&removed);
    }
    if !changed.is_empty() {
        let at = match entries.iter().position(|e| e.is(writer, false)) {
            Some(at) => at,
            None => {
                entries.push(Entry::new(writer, false));
                entries.len() - 1
            }
        };
        let entry = &mut entries[at];
        entry.fields.union(&changed);
        entry.time = writer.now.to_owned();
    }
    write_entries(new, entries);
}

/// Applies `config` over `live` (`None` for a create) and returns the new object with its
/// `managedFields`, or the conflicts as a 409.
pub fn apply(
    schema: &Schema,
    ty: TypeId,
    live: Option<&Map<String, Value>>,
    config: &Map<String, Value>,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Map<String, Value>, Status> {
    let mut entries = live.and_then(read_entries).unwrap_or_default();
    let empty = Map::new();
    let live_object = live.unwrap_or(&empty);
    let mut merged = merge_maps(schema, ty, live_object, config);
    let mut config_set = owned_fields(schema, ty, config);

    let (mut changed, mut removed) = (FieldSet::default(), FieldSet::default());
    compare_objects(schema, ty, Some(live_object), Some(&merged), &mut changed, &mut removed);
    let conflicts: Vec<(usize, FieldSet)> = (entries.iter().enumerate())
        .filter(|(_, e)| !e.is(writer, true))
        .map(|(i, e)| (i, e.fields.intersection(&changed)))
        .filter(|(_, both)| !both.is_empty())
        .collect();
    if !force && !conflicts.is_empty() {
        return Err(conflict_status(conflicts.iter().map(|(i, f)| (&entries[*i], f)).collect()));
    }
    for (i, both) in conflicts {
        entries[i].fields.subtract(&both);
    }

    let at = entries.iter().position(|e| e.is(writer, true));
    if let Some(at) = at {
        let mut gone = entries[at].fields.clone();
        gone.subtract(&config_set);
        let mut others = FieldSet::default();
        entries.iter().enumerate().filter(|(i, _)| *i != at).for_each(|(_, e)| others.union(&e.fields));
        remove_fields(schema, ty, &mut merged, &gone, &others);
    }
    let entry = match at {
        Some(at) => &mut entries[at],
        None => {
            entries.push(Entry::new(writer, true));
            let last = entries.len() - 1;
            &mut entries[last]
        }
    };
    std::mem::swap(&mut entry.fields, &mut config_set);
    if config_set != entry.fields || entry.api_version != writer.api_version {
        entry.time = writer.now.to_owned();
    }
    entry.api_version = writer.api_version.to_owned();
    write_entries(&mut merged, entries);
    Ok(merged)
}

fn conflict_status(conflicts: Vec<(&Entry, &FieldSet)>) -> Status {
    let describe = |e: &Entry| {
        let mut text = format!("{:?}", e.manager);
        if !e.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", e.subresource));
        }
        if !e.apply {
            text.push_str(&format!(" using {}", e.api_version));
            if !e.time.is_empty() {
                text.push_str(&format!(" at {}", e.time));
            }
        }
        text
    };
    let (mut causes, mut lines) = (Vec::new(), Vec::new());
    for (entry, fields) in conflicts {
        let who = describe(entry);
        let paths = fields.paths();
        match paths.as_slice() {
            [one] => lines.push(format!("conflict with {who}: {one}")),
            many => lines.push(format!("conflicts with {who}:\n- {}", many.join("\n- "))),
        }
        causes.extend(paths.into_iter().map(|field| Cause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {who}"),
            field,
        }));
    }
    let count = causes.len();
    let message = format!(
        "Apply failed with {count} conflict{}: {}",
        if count == 1 { "" } else { "s" },
        lines.join("\n")
    );
    let details = Details { causes, ..Default::default() };
    Status { code: 409, reason: Reason::Conflict, message, details: Some(Box::new(details)) }
}

/// The fields of `object` that can be owned.
fn owned_fields(schema: &Schema, ty: TypeId, object: &Map<String, Value>) -> FieldSet {
    let mut set = FieldSet::default();
    let Some(s) = schema.as_struct(ty) else { return set };
    for (name, value) in ownable(object) {
        if let Some((ty, is_item)) = s.field_type(name) {
            let mut child = if name == "metadata" {
                metadata_fields(schema, ty, value)
            } else {
                fieldset::of_value(schema, ty, value)
            };
            child.member |= is_item;
            set.attach(field_edge(name), child);
        }
    }
    set
}

fn ownable(object: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    object.iter().filter(|(k, _)| !matches!(k.as_str(), "apiVersion" | "kind"))
}

fn metadata_fields(schema: &Schema, ty: TypeId, metadata: &Value) -> FieldSet {
    let Value::Object(metadata) = metadata else { return FieldSet::default() };
    let kept: Map<String, Value> = (metadata.iter())
        .filter(|(k, _)| !UNOWNED_METADATA.contains(&k.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    if kept.is_empty() { FieldSet::default() } else { fieldset::of_value(schema, ty, &Value::Object(kept)) }
}

fn compare_objects(
    schema: &Schema,
    ty: TypeId,
    old: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
    changed: &mut FieldSet,
    removed: &mut FieldSet,
) {
    let Some(s) = schema.as_struct(ty) else { return };
    let empty = Map::new();
    let (old, new) = (old.unwrap_or(&empty), new.unwrap_or(&empty));
    let names = old.keys().chain(new.keys().filter(|k| !old.contains_key(*k)));
    for name in names.filter(|n| !matches!(n.as_str(), "apiVersion" | "kind")) {
        let Some((ty, is_item)) = s.field_type(name) else { continue };
        let (a, b) = (old.get(name), new.get(name));
        let (mut c, mut r) = (FieldSet::default(), FieldSet::default());
        if name == "metadata" {
            compare_metadata(schema, ty, a, b, &mut c, &mut r);
        } else {
            compare(schema, ty, a, b, &mut c, &mut r);
        }
        c.member |= is_item && a.is_none();
        changed.attach(field_edge(name), c);
        removed.attach(field_edge(name), r);
    }
}

fn compare_metadata<'v>(
    schema: &Schema,
    ty: TypeId,
    old: Option<&'v Value>,
    new: Option<&'v Value>,
    changed: &mut FieldSet,
    removed: &mut FieldSet,
) {
    let Some(s) = schema.as_struct(ty) else { return };
    for field in s.fields.iter().filter(|f| !UNOWNED_METADATA.contains(&&*f.name)) {
        let (mut c, mut r) = (FieldSet::default(), FieldSet::default());
        let get = |metadata: Option<&'v Value>| metadata.and_then(|m| m.get(&*field.name));
        compare(schema, field.ty, get(old), get(new), &mut c, &mut r);
        changed.attach(field_edge(&field.name), c);
        removed.attach(field_edge(&field.name), r);
    }
}

/// What `new` adds or changes, and what it no longer has.
fn compare(
    schema: &Schema,
    ty: TypeId,
    old: Option<&Value>,
    new: Option<&Value>,
    changed: &mut FieldSet,
    removed: &mut FieldSet,
) {
    if old == new {
        return;
    }
    match (ownership(schema, ty), old, new) {
        (_, Some(_), None) => removed.member = true,
        (_, None, Some(new)) => {
            let mut added = fieldset::of_value(schema, ty, new);
            // A new map is owned itself, so that emptying it later is seen.
            added.member |= matches!((schema.shape(ty), new), (crate::Shape::Map { .. }, Value::Object(_)));
            changed.union(&added);
        }
        (Ownership::Fields(field), Some(Value::Object(a)), Some(Value::Object(b))) => {
            let names = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
            for name in names {
                let Some((ty, is_item)) = field(name) else { continue };
                let (mut c, mut r) = (FieldSet::default(), FieldSet::default());
                compare(schema, ty, a.get(name), b.get(name), &mut c, &mut r);
                c.member |= is_item && !a.contains_key(name);
                changed.attach(field_edge(name), c);
                removed.attach(field_edge(name), r);
            }
        }
        (Ownership::Keyed(item, keys), Some(Value::Array(a)), Some(Value::Array(b))) => {
            let find = |list: &[Value], edge: &str| {
                list.iter().position(|v| keyed_edge(schema, item, keys, v).as_deref() == Some(edge))
            };
            for v in b {
                let Some(edge) = keyed_edge(schema, item, keys, v) else { continue };
                let before = find(a, &edge).map(|i| &a[i]);
                let (mut c, mut r) = (FieldSet::default(), FieldSet::default());
                compare(schema, item, before, Some(v), &mut c, &mut r);
                c.member |= before.is_none();
                changed.attach(edge.clone(), c);
                removed.attach(edge, r);
            }
            for edge in a.iter().filter_map(|v| keyed_edge(schema, item, keys, v)) {
                if find(b, &edge).is_none() {
                    removed.attach(edge, FieldSet::leaf());
                }
            }
        }
        (Ownership::Set, Some(Value::Array(a)), Some(Value::Array(b))) => {
            b.iter().filter(|v| !a.contains(v)).for_each(|v| changed.attach(value_edge(v), FieldSet::leaf()));
            a.iter().filter(|v| !b.contains(v)).for_each(|v| removed.attach(value_edge(v), FieldSet::leaf()));
        }
        _ => changed.member = true,
    }
}

fn merge_maps(
    schema: &Schema,
    ty: TypeId,
    live: &Map<String, Value>,
    config: &Map<String, Value>,
) -> Map<String, Value> {
    let mut out = live.clone();
    let field = match ownership(schema, ty) {
        Ownership::Fields(field) => field,
        _ => return config.clone(),
    };
    for (name, value) in config {
        let merged = match (field(name), live.get(name)) {
            (Some((ty, _)), Some(before)) => merge(schema, ty, before, value),
            _ => value.clone(),
        };
        out.insert(name.clone(), merged);
    }
    out
}

fn merge(schema: &Schema, ty: TypeId, live: &Value, config: &Value) -> Value {
    match (ownership(schema, ty), live, config) {
        (Ownership::Fields(_), Value::Object(a), Value::Object(b)) => {
            Value::Object(merge_maps(schema, ty, a, b))
        }
        (Ownership::Keyed(item, keys), Value::Array(a), Value::Array(b)) => {
            let edge = |v: &Value| keyed_edge(schema, item, keys, v);
            let merged = (b.iter())
                .map(|v| match a.iter().find(|l| edge(l).is_some() && edge(l) == edge(v)) {
                    Some(l) => merge(schema, item, l, v),
                    None => v.clone(),
                })
                .collect();
            let kept = a.iter().filter(|l| !b.iter().any(|v| edge(l) == edge(v))).cloned().collect();
            Value::Array(crate::strategic::interleave(merged, kept, |v| {
                a.iter().position(|l| edge(l) == edge(v))
            }))
        }
        (Ownership::Set, Value::Array(a), Value::Array(b)) => {
            let kept = a.iter().filter(|l| !b.contains(l)).cloned().collect();
            Value::Array(crate::strategic::interleave(b.clone(), kept, |v| a.iter().position(|l| l == v)))
        }
        _ => config.clone(),
    }
}

/// Removes the fields in `gone` that nobody in `others` owns, and containers that become empty by it.
fn remove_fields(
    schema: &Schema,
    ty: TypeId,
    object: &mut Map<String, Value>,
    gone: &FieldSet,
    others: &FieldSet,
) {
    let none = FieldSet::default();
    let Ownership::Fields(field) = ownership(schema, ty) else { return };
    for (edge, child) in &gone.children {
        let Some(name) = edge.strip_prefix("f:") else { continue };
        let kept = others.children.get(edge).unwrap_or(&none);
        let Some((ty, _)) = field(name) else { continue };
        let Some(value) = object.get_mut(name) else { continue };
        if remove_value(schema, ty, value, child, kept) {
            object.remove(name);
        }
    }
}

/// Whether the value itself is to be removed.
fn remove_value(schema: &Schema, ty: TypeId, value: &mut Value, gone: &FieldSet, others: &FieldSet) -> bool {
    if gone.member && others.is_empty() {
        return true;
    }
    let none = FieldSet::default();
    match (ownership(schema, ty), value) {
        (Ownership::Fields(_), Value::Object(object)) => {
            remove_fields(schema, ty, object, gone, others);
            object.is_empty()
        }
        (Ownership::Keyed(item, keys), Value::Array(items)) => {
            items.retain_mut(|v| {
                let Some(edge) = keyed_edge(schema, item, keys, v) else { return true };
                let Some(child) = gone.children.get(&edge) else { return true };
                let kept = others.children.get(&edge).unwrap_or(&none);
                let mut child = child.clone();
                if !(child.member && kept.is_empty()) {
                    // The keys are the item's identity: they go only with the item.
                    keys.iter().for_each(|k| drop(child.children.remove(&field_edge(k))));
                }
                !remove_value(schema, item, v, &child, kept)
            });
            items.is_empty()
        }
        (Ownership::Set, Value::Array(items)) => {
            items.retain(|v| {
                let edge = value_edge(v);
                !gone.children.contains_key(&edge) || others.children.contains_key(&edge)
            });
            items.is_empty()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
