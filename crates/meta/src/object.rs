//! `Object`: one immutable version of one API object, as JSON bytes with the parsed metadata beside it.
//!
//! The bytes are encoded once and then shared by every GET, LIST and WATCH. The store keeps objects
//! without a resource version (it is only known at commit), so [`encode`] leaves a place right behind
//! `"metadata":{` where [`Object::at_revision`] writes it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

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
    /// Length of its protobuf message, once somebody has measured it.
    pub message_bytes: OnceLock<u32>,
    /// Labels, sorted by key.
    labels: Labels,
    /// The kind's selectable fields other than name and namespace, and their values, which [`SEPARATOR`] divides.
    selectable: Arc<[Arc<str>]>,
    values: Box<str>,
    /// Whether the store holds it in another form than it is shown in (an older version, absent defaults).
    pub reshaped: bool,
}

/// Divides values of selectable fields. In a value it is replaced: no selector asks for control characters.
const SEPARATOR: char = '\0';

/// Where a text lies in an object's bytes.
#[derive(Debug, Clone, Copy)]
struct Span {
    at: u32,
    len: u32,
}

impl Span {
    fn of(text: &str, stored: &[u8], shift: usize) -> Option<Span> {
        let at = (text.as_ptr() as usize).checked_sub(stored.as_ptr() as usize)?;
        Some(Span { at: u32::try_from(at + shift).ok()?, len: u32::try_from(text.len()).ok()? })
    }

    fn text(self, bytes: &[u8]) -> &str {
        let text = bytes.get(self.at as usize..self.at as usize + self.len as usize).unwrap_or_default();
        std::str::from_utf8(text).unwrap_or_default()
    }
}

/// Labels of an object: hundreds of thousands of them are in memory, so they are looked up where they lie.
#[derive(Debug, Clone)]
enum Labels {
    Spans(Box<[(Span, Span)]>),
    /// Texts that JSON has to escape. No valid label is one.
    Texts(Box<[(Box<str>, Box<str>)]>),
}

impl Labels {
    fn new(labels: &BTreeMap<Text<'_>, Text<'_>>, stored: &[u8], shift: usize) -> Labels {
        let span = |text: &Text<'_>| match &text.0 {
            Cow::Borrowed(text) => Span::of(text, stored, shift),
            Cow::Owned(_) => None,
        };
        let spans: Option<Box<[_]>> = labels.iter().map(|(k, v)| Some((span(k)?, span(v)?))).collect();
        let text = |text: &Text<'_>| text.0.clone().into_owned().into_boxed_str();
        match spans {
            Some(spans) => Labels::Spans(spans),
            None => Labels::Texts(labels.iter().map(|(k, v)| (text(k), text(v))).collect()),
        }
    }

    fn get<'a>(&'a self, key: &str, bytes: &'a [u8]) -> Option<&'a str> {
        match self {
            Labels::Spans(spans) => {
                let at = spans.binary_search_by(|(k, _)| k.text(bytes).cmp(key)).ok()?;
                Some(spans.get(at)?.1.text(bytes))
            }
            Labels::Texts(texts) => {
                let at = texts.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
                Some(&texts.get(at)?.1)
            }
        }
    }
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
    name: Cow<'a, str>,
    #[serde(default, borrow)]
    namespace: Cow<'a, str>,
    #[serde(default, borrow)]
    labels: BTreeMap<Text<'a>, Text<'a>>,
}

/// A text that is borrowed where it can be: maps do not borrow a bare `Cow`.
#[derive(serde::Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Object {
    /// The version of a stored object that was committed at `revision`. `selectable` are the paths whose
    /// values field selectors may ask for. `None` if the bytes are not an object of ours.
    pub fn at_revision(stored: &[u8], revision: u64, selectable: &Arc<[Arc<str>]>) -> Option<Object> {
        let head: Head<'_> = serde_json::from_slice(stored).ok()?;
        let mut values = String::new();
        if !selectable.is_empty() {
            let tree: Value = serde_json::from_slice(stored).ok()?;
            for path in selectable.iter() {
                values.push_str(&field_text(&tree, path).replace(SEPARATOR, "\u{fffd}"));
                values.push(SEPARATOR);
            }
        }
        let bytes = with_revision(stored, revision)?;
        let shift = bytes.len() - stored.len();
        Some(Object {
            labels: Labels::new(&head.metadata.labels, stored, shift),
            bytes,
            revision,
            namespace: head.metadata.namespace.into_owned().into_boxed_str(),
            name: head.metadata.name.into_owned().into_boxed_str(),
            selectable: selectable.clone(),
            values: values.into_boxed_str(),
            reshaped: false,
            message_bytes: OnceLock::new(),
        })
    }

    /// Value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key, &self.bytes)
    }

    /// Value of a selectable field.
    pub fn field(&self, path: &str) -> Option<&str> {
        match path {
            "metadata.name" => Some(&self.name),
            "metadata.namespace" => Some(&self.namespace),
            _ => {
                let at = self.selectable.iter().position(|p| **p == *path)?;
                self.values.split(SEPARATOR).nth(at)
            }
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
        let object =
            Object::at_revision(&stored, 42, &[Arc::from("data.a"), Arc::from("kind")].into()).unwrap();
        let tree = object.to_value();
        assert_eq!(tree["metadata"]["resourceVersion"], "42");
        assert_eq!(tree["data"], value["data"]);
        assert_eq!((object.label("a"), object.label("c")), (Some("1"), None));
        assert_eq!(object.field("data.a"), Some("\"metadata\":{"));
        assert_eq!(object.field("kind"), Some("ConfigMap"));
        assert_eq!(object.field("data.b"), None);
        assert_eq!(object.field("metadata.name"), Some("n"));
        let odd =
            json!({"metadata": {"name": "n", "labels": {"a": "x\ny", "b": "z"}}, "data": {"a": "p\0q"}});
        let object =
            Object::at_revision(&encode(odd.as_object().unwrap()), 7, &[Arc::from("data.a")].into()).unwrap();
        assert_eq!((object.label("a"), object.label("b")), (Some("x\ny"), Some("z")));
        assert_eq!(object.field("data.a"), Some("p\u{fffd}q"));
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
