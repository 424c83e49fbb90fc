//! Protobuf to JSON, driven by the type table (`application/vnd.kubernetes.protobuf`).
//!
//! Kubernetes' protobuf is proto2 generated from Go structs: every field that is no pointer is on the wire
//! even when it is zero, so zero values of such fields are dropped here as Go's JSON encoder drops them.
//! The result goes through the same strict decoding as JSON.

use base64::Engine;
use serde_json::{Map, Value, json};

use crate::types::{Field, INNER_SHIFT, Schema, Shape, TypeId};

/// The first bytes of every message: four bytes, then a `runtime.Unknown`.
pub const MAGIC: &[u8] = b"k8s\0";

/// Deepest nesting accepted.
const DEPTH_MAX: usize = 100;

/// The bytes are not a message of the expected type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("protobuf: {0}")]
pub struct ProtobufError(&'static str);

/// A message taken out of its envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// `apiVersion` of the object.
    pub api_version: &'a str,
    /// Kind of the object.
    pub kind: &'a str,
    /// The object itself.
    pub raw: &'a [u8],
}

/// Opens the envelope.
pub fn open(bytes: &[u8]) -> Result<Envelope<'_>, ProtobufError> {
    let rest =
        bytes.strip_prefix(MAGIC).ok_or(ProtobufError("the body does not begin with the expected prefix"))?;
    let mut out = Envelope { api_version: "", kind: "", raw: &[] };
    for field in Reader(rest) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Reader(meta) {
                    match field? {
                        (1, Wire::Bytes(b)) => out.api_version = utf8(b)?,
                        (2, Wire::Bytes(b)) => out.kind = utf8(b)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(raw)) => out.raw = raw,
            _ => {}
        }
    }
    Ok(out)
}

/// Decodes a message of type `ty` into JSON.
pub fn to_json(schema: &Schema, ty: TypeId, message: &[u8]) -> Result<Map<String, Value>, ProtobufError> {
    let mut out = Map::new();
    object(schema, ty, 0, message, &mut out, 0)?;
    Ok(out)
}

enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Reads the fields of a message one by one.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(ProtobufError("the message ends early"))?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(ProtobufError("a number is too long"))
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], ProtobufError> {
        let n = usize::try_from(n)
            .ok()
            .filter(|n| *n <= self.0.len())
            .ok_or(ProtobufError("the message ends early"))?;
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        Ok(head)
    }

    fn field(&mut self) -> Result<(u32, Wire<'a>), ProtobufError> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).map_err(|_| ProtobufError("a field number is too large"))?;
        let wire = match key & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(self.take(8)?.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))),
            2 => {
                let n = self.varint()?;
                Wire::Bytes(self.take(n)?)
            }
            5 => Wire::Number(self.take(4)?.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))),
            _ => return Err(ProtobufError("a field has an unknown wire type")),
        };
        Ok((number, wire))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u32, Wire<'a>), ProtobufError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, ProtobufError> {
    std::str::from_utf8(bytes).map_err(|_| ProtobufError("a string is not UTF-8"))
}

/// Reads the fields of a struct; `outer` selects those inside one embedded message (0: those outside any).
fn object(
    schema: &Schema,
    ty: TypeId,
    outer: u32,
    message: &[u8],
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > DEPTH_MAX {
        return Err(ProtobufError("the message is nested too deep"));
    }
    let Some(s) = schema.as_struct(ty) else { return Err(ProtobufError("not a message type")) };
    for field in Reader(message) {
        let (number, wire) = field?;
        let known = s.fields.iter().find(|f| f.tag == (outer, number));
        match (known, wire) {
            (Some(field), wire) => read_field(schema, field, wire, out, depth)?,
            (None, Wire::Bytes(inner)) => {
                let embedded = match outer {
                    0 => number,
                    _ => outer.saturating_add(number.saturating_mul(1 << INNER_SHIFT)),
                };
                let own_bits = if outer == 0 { (1 << INNER_SHIFT) - 1 } else { u32::MAX };
                if s.fields.iter().any(|f| f.tag.0 & own_bits == embedded) {
                    object(schema, ty, embedded, inner, out, depth + 1)?;
                }
            }
            (None, Wire::Number(_)) => {}
        }
    }
    Ok(())
}

fn read_field(
    schema: &Schema,
    field: &Field,
    wire: Wire<'_>,
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    let name = field.name.to_string();
    match schema.shape(field.ty) {
        Shape::List { item, .. } => {
            let value = value(schema, *item, wire, depth)?;
            if let Value::Array(list) = out.entry(name).or_insert_with(|| json!([])) {
                list.push(value);
            }
        }
        Shape::Map { item, .. } => {
            let Wire::Bytes(entry) = wire else { return Err(ProtobufError("a map entry is not a message")) };
            let (mut key, mut found) = (String::new(), None);
            for field in Reader(entry) {
                match field? {
                    (1, Wire::Bytes(b)) => key = utf8(b)?.to_owned(),
                    (2, wire) => found = Some(value(schema, *item, wire, depth)?),
                    _ => {}
                }
            }
            if let Value::Object(map) = out.entry(name).or_insert_with(|| json!({})) {
                map.insert(key, found.unwrap_or_else(|| json!("")));
            }
        }
        _ => {
            let value = value(schema, field.ty, wire, depth)?;
            if field.pointer || !is_zero(&value) {
                out.insert(name, value);
            }
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

fn value(schema: &Schema, ty: TypeId, wire: Wire<'_>, depth: usize) -> Result<Value, ProtobufError> {
    let mismatch = ProtobufError("a field has the wrong wire type");
    Ok(match (schema.shape(ty), wire) {
        (Shape::Bool, Wire::Number(n)) => json!(n != 0),
        // Numbers are two's complement on the wire: truncation is the decoding.
        (Shape::Int32, Wire::Number(n)) => json!(n as i32),
        (Shape::Int64, Wire::Number(n)) => json!(n as i64),
        (Shape::Double, Wire::Number(n)) => json!(f64::from_bits(n)),
        (Shape::String, Wire::Bytes(b)) => json!(utf8(b)?),
        (Shape::Bytes, Wire::Bytes(b)) => json!(base64::engine::general_purpose::STANDARD.encode(b)),
        (Shape::Quantity, Wire::Bytes(b)) => match inner_bytes(b, 1)? {
            Some(text) => json!(utf8(text)?),
            None => json!("0"),
        },
        (Shape::IntOrString, Wire::Bytes(b)) => int_or_string(b)?,
        (shape @ (Shape::Time | Shape::MicroTime), Wire::Bytes(b)) => time(b, *shape == Shape::MicroTime)?,
        (Shape::Any, Wire::Bytes(b)) => match inner_bytes(b, 1)? {
            Some(raw) => {
                serde_json::from_slice(raw).map_err(|_| ProtobufError("an embedded object is not JSON"))?
            }
            None => Value::Null,
        },
        // A list inside a map is a message with the items as field 1.
        (Shape::List { item, .. }, Wire::Bytes(b)) => {
            let mut list = Vec::new();
            for field in Reader(b) {
                if let (1, wire) = field? {
                    list.push(value(schema, *item, wire, depth + 1)?);
                }
            }
            Value::Array(list)
        }
        (Shape::Struct(_), Wire::Bytes(b)) => {
            let mut out = Map::new();
            object(schema, ty, 0, b, &mut out, depth + 1)?;
            Value::Object(out)
        }
        _ => return Err(mismatch),
    })
}

fn inner_bytes(message: &[u8], number: u32) -> Result<Option<&[u8]>, ProtobufError> {
    for field in Reader(message) {
        if let (n, Wire::Bytes(b)) = field?
            && n == number
        {
            return Ok(Some(b));
        }
    }
    Ok(None)
}

fn int_or_string(message: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_string, mut number, mut text) = (false, 0, "");
    for field in Reader(message) {
        match field? {
            (1, Wire::Number(n)) => is_string = n == 1,
            (2, Wire::Number(n)) => number = n as i32,
            (3, Wire::Bytes(b)) => text = utf8(b)?,
            _ => {}
        }
    }
    Ok(if is_string { json!(text) } else { json!(number) })
}

fn time(message: &[u8], micros: bool) -> Result<Value, ProtobufError> {
    let (mut seconds, mut nanos) = (0i64, 0i32);
    let mut any = false;
    for field in Reader(message) {
        any = true;
        match field? {
            (1, Wire::Number(n)) => seconds = n as i64,
            (2, Wire::Number(n)) => nanos = n as i32,
            _ => {}
        }
    }
    // An empty message is Go's zero time, which JSON shows as null.
    if !any {
        return Ok(Value::Null);
    }
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| ProtobufError("a time is out of range"))?;
    Ok(json!(if micros { crate::time::micros(time) } else { crate::time::seconds(time) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![(number << 3 | 2) as u8, bytes.len() as u8];
        out.extend_from_slice(bytes);
        out
    }

    fn varint(number: u32, value: u8) -> Vec<u8> {
        vec![(number << 3) as u8, value]
    }

    #[test]
    fn envelopes_and_fields() {
        let metadata =
            [field(1, b"web"), field(3, b""), field(11, &[field(1, b"app"), field(2, b"x")].concat())]
                .concat();
        let spec = [varint(1, 0), varint(5, 0)].concat();
        let raw = [field(1, &metadata), field(2, &spec)].concat();
        let meta = [field(1, b"apps/v1"), field(2, b"Deployment")].concat();
        let body = [MAGIC.to_vec(), field(1, &meta), field(2, &raw)].concat();
        let envelope = open(&body).unwrap();
        assert_eq!((envelope.api_version, envelope.kind), ("apps/v1", "Deployment"));
        let schema = Schema::builtin();
        let value = to_json(schema, schema.kind("apps", "v1", "Deployment").unwrap(), envelope.raw).unwrap();
        // replicas is a pointer and keeps its zero; minReadySeconds is not and loses it.
        assert_eq!(
            Value::Object(value),
            json!({"metadata": {"name": "web", "labels": {"app": "x"}}, "spec": {"replicas": 0}})
        );
    }

    #[test]
    fn embedded_messages_are_flattened() {
        let http = [field(1, b"/x"), field(2, &varint(2, 80))].concat();
        let probe = [field(1, &field(2, &http)), varint(4, 3)].concat();
        let schema = Schema::builtin();
        let value = to_json(schema, schema.named("io.k8s.api.core.v1.Probe").unwrap(), &probe).unwrap();
        assert_eq!(Value::Object(value), json!({"httpGet": {"path": "/x", "port": 80}, "periodSeconds": 3}));
    }

    #[test]
    fn damaged_messages_are_refused() {
        assert!(open(b"{}").is_err());
        let schema = Schema::builtin();
        let pod = schema.kind("", "v1", "Pod").unwrap();
        for bad in [&[0x0a, 0xff][..], &[0x0a, 5, 1], &[0x0b], &[0x80; 20]] {
            assert!(to_json(schema, pod, bad).is_err(), "{bad:?}");
        }
    }
}
