//! `Object`: one immutable version of one API object, as JSON bytes with the parsed metadata beside it.
//!
//! The bytes are encoded once and then shared by every GET, LIST and WATCH. The store keeps objects
//! without a resource version (it is only known at commit), so [`encode`] leaves a place right behind
//! `"metadata":{` where [`Object::at_revision`] writes it.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};

/// One version of an object.
#[derive(Debug, Clone)]
pub struct Object {
    /// The complete object as JSON, resource version included.
    pub bytes: Bytes,
    /// Revision of the commit that wrote this version.
    pub revision: u64,
    /// Namespace; empty for cluster scope.
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// Labels, sorted by key.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the kind's selectable fields other than name and namespace.
    pub fields: Box<[(Arc<str>, Box<str>)]>,
    /// Whether the store holds it in another form than it is shown in (an older version, absent defaults).
    pub reshaped: bool,
}

/// What stands before the place of the resource version.
const METADATA: &[u8] = b"\"metadata\":{";

/// Encodes an object for the store: `apiVersion`, `kind` and `metadata` first, no resource version.
pub fn encode(object: &Map<String, Value>) -> Bytes {
    let mut out = Vec::with_capacity(512);
    out.push(b'{');
    for key in ["apiVersion", "kind"] {
        if let Some(value) = object.get(key) {
            write_member(&mut out, key, value);
            out.push(b',');
        }
    }
    out.extend_from_slice(METADATA);
    let empty = Map::new();
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    write_members(&mut out, metadata.iter().filter(|(k, _)| *k != "resourceVersion"));
    out.push(b'}');
    for (key, value) in object {
        if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
            out.push(b',');
            write_member(&mut out, key, value);
        }
    }
    out.push(b'}');
    Bytes::from(out)
}

fn write_members<'a>(out: &mut Vec<u8>, members: impl Iterator<Item = (&'a String, &'a Value)>) {
    for (i, (key, value)) in members.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_member(out, key, value);
    }
}

fn write_member(out: &mut Vec<u8>, key: &str, value: &Value) {
    // Writing JSON into memory cannot fail: keys are strings and there is no IO.
    let _ = serde_json::to_writer(&mut *out, key);
    out.push(b':');
    let _ = serde_json::to_writer(&mut *out, value);
}

/// Writes the resource version into the stored form. `None` if the bytes are not an object of ours.
pub fn with_revision(stored: &[u8], revision: u64) -> Option<Bytes> {
    // The prefix is `{"apiVersion":"..","kind":"..",` with values that need no escapes, so the first
    // occurrence is the object's own metadata.
    let at = stored.windows(METADATA.len()).position(|w| w == METADATA)? + METADATA.len();
    let (head, tail) = stored.split_at(at);
    let mut out = BytesMut::with_capacity(stored.len() + 42);
    out.put_slice(head);
    out.put_slice(b"\"resourceVersion\":\"");
    let mut digits = [0u8; 20];
    out.put_slice(decimal(revision, &mut digits));
    out.put_slice(b"\"");
    if !tail.starts_with(b"}") {
        out.put_slice(b",");
    }
    out.put_slice(tail);
    Some(out.freeze())
}

fn decimal(mut n: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return &buffer[at..];
        }
    }
}

/// The parts of an object that the watch cache indexes, read without building the whole tree.
#[derive(serde::Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    metadata: HeadMeta<'a>,
}

#[derive(serde::Deserialize, Default)]
struct HeadMeta<'a> {
    #[serde(default, borrow)]
    name: std::borrow::Cow<'a, str>,
    #[serde(default, borrow)]
    namespace: std::borrow::Cow<'a, str>,
    #[serde(default)]
    labels: std::collections::BTreeMap<Box<str>, Box<str>>,
}

impl Object {
    /// The version of a stored object that was committed at `revision`. `selectable` are the paths whose
    /// values field selectors may ask for. `None` if the bytes are not an object of ours.
    pub fn at_revision(stored: &[u8], revision: u64, selectable: &[Arc<str>]) -> Option<Object> {
        let head: Head<'_> = serde_json::from_slice(stored).ok()?;
        let fields = if selectable.is_empty() {
            Box::default()
        } else {
            let tree: Value = serde_json::from_slice(stored).ok()?;
            selectable.iter().map(|path| (path.clone(), field_text(&tree, path).into_boxed_str())).collect()
        };
        Some(Object {
            bytes: with_revision(stored, revision)?,
            revision,
            namespace: head.metadata.namespace.into_owned().into_boxed_str(),
            name: head.metadata.name.into_owned().into_boxed_str(),
            labels: head.metadata.labels.into_iter().collect(),
            fields,
            reshaped: false,
        })
    }

    /// Value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.labels[at].1)
    }

    /// Value of a selectable field.
    pub fn field(&self, path: &str) -> Option<&str> {
        match path {
            "metadata.name" => Some(&self.name),
            "metadata.namespace" => Some(&self.namespace),
            _ => self.fields.iter().find(|(p, _)| **p == *path).map(|(_, v)| &**v),
        }
    }

    /// The object as a tree.
    pub fn to_value(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }
}

/// The value at a dotted path as selectors compare it: scalars as text, absent as empty.
pub fn field_text(object: &Value, path: &str) -> String {
    let mut at = object;
    for part in path.split('.') {
        match at.get(part) {
            Some(next) => at = next,
            None => return String::new(),
        }
    }
    match at {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn revision_is_spliced_in() {
        let value = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "\"metadata\":{"},
            "metadata": {"name": "n", "namespace": "s", "labels": {"b": "2", "a": "1"}, "resourceVersion": "7"}});
        let stored = encode(value.as_object().unwrap());
        let object = Object::at_revision(&stored, 42, &["data.a".into()]).unwrap();
        let tree = object.to_value();
        assert_eq!(tree["metadata"]["resourceVersion"], "42");
        assert_eq!(tree["data"], value["data"]);
        assert_eq!((object.label("a"), object.label("c")), (Some("1"), None));
        assert_eq!(object.field("data.a"), Some("\"metadata\":{"));
        assert_eq!(object.field("metadata.name"), Some("n"));
    }

    #[test]
    fn empty_metadata_has_no_stray_comma() {
        let stored = encode(json!({"kind": "X", "apiVersion": "v1"}).as_object().unwrap());
        assert_eq!(
            &with_revision(&stored, 1).unwrap()[..],
            br#"{"apiVersion":"v1","kind":"X","metadata":{"resourceVersion":"1"}}"#
        );
    }
}
