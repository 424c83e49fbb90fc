//! JSON to protobuf, driven by the type table: one pass over the text, without a tree in between.
//!
//! The input is an object of ours: decoded strictly when it was written, so a value that does not fit its
//! type is left out rather than reported. Fields come out in the order of the JSON; readers do not mind.

use std::fmt;

use base64::Engine;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::protobuf::MAGIC;
use crate::types::{Field, INNER_SHIFT, Schema, Shape, TypeId};
use crate::wire;

/// The text is not the JSON of an object.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode as protobuf: {0}")]
pub struct EncodeError(#[from] serde_json::Error);

/// Puts a message into the envelope that names its type.
pub fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + api_version.len() + kind.len() + 24);
    out.extend_from_slice(MAGIC);
    unknown(&mut out, api_version, kind, raw);
    out
}

/// The `runtime.Unknown` of an envelope.
fn unknown(out: &mut Vec<u8>, api_version: &str, kind: &str, raw: &[u8]) {
    wire::message(out, 1, |out| {
        wire::bytes(out, 1, api_version.as_bytes());
        wire::bytes(out, 2, kind.as_bytes());
    });
    wire::bytes(out, 2, raw);
    // contentEncoding and contentType: always there, always empty.
    wire::bytes(out, 3, b"");
    wire::bytes(out, 4, b"");
}

/// What stands around the items of a list in its envelope, whose length protobuf wants to know beforehand.
#[derive(Debug)]
pub struct ListEnvelope {
    /// Everything before the first item.
    pub head: Vec<u8>,
    /// Everything behind the last.
    pub tail: Vec<u8>,
    /// Bytes of the whole, items included.
    pub total_bytes: u64,
}

impl ListEnvelope {
    /// The envelope of a list whose items have messages of these lengths; `metadata` is the list's message with
    /// nothing but its metadata.
    pub fn new(
        api_version: &str,
        kind: &str,
        metadata: &[u8],
        lengths: impl Iterator<Item = usize>,
    ) -> ListEnvelope {
        let items: usize = lengths.map(|n| 1 + wire::varint_bytes(n as u64) + n).sum();
        let mut head = MAGIC.to_vec();
        wire::message(&mut head, 1, |out| {
            wire::bytes(out, 1, api_version.as_bytes());
            wire::bytes(out, 2, kind.as_bytes());
        });
        wire::varint(&mut head, 2 << 3 | 2);
        wire::varint(&mut head, (metadata.len() + items) as u64);
        head.extend_from_slice(metadata);
        let mut tail = Vec::new();
        wire::bytes(&mut tail, 3, b"");
        wire::bytes(&mut tail, 4, b"");
        let total_bytes = (head.len() + items + tail.len()) as u64;
        ListEnvelope { head, tail, total_bytes }
    }
}

/// Writes an item of a list: every list has them in its second field.
pub fn list_item(out: &mut Vec<u8>, message: &[u8]) {
    wire::bytes(out, 2, message);
}

/// One event of a watch as a frame: four bytes of length, then a bare `WatchEvent` whose object is an envelope.
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + 24);
    out.extend_from_slice(&[0; 4]);
    wire::bytes(&mut out, 1, event.as_bytes());
    wire::message(&mut out, 2, |out| wire::bytes(out, 1, object));
    let length = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

/// Encodes the JSON of an object of type `ty` as a message.
pub fn message(schema: &Schema, ty: TypeId, json: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::with_capacity(json.len());
    let mut input = serde_json::Deserializer::from_slice(json);
    Members { schema, ty, out: &mut out }.deserialize(&mut input)?;
    Ok(out)
}

/// The members of a struct, as fields of the message under way.
struct Members<'a> {
    schema: &'a Schema,
    ty: TypeId,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut input: A) -> Result<(), A::Error> {
        let Members { schema, ty, out } = self;
        let known = schema.as_struct(ty);
        while let Some(name) = input.next_key::<String>()? {
            match known.and_then(|s| s.field(&name)).filter(|f| f.tag.1 > 0) {
                Some(field) => field_of(schema, field, &mut input, out)?,
                None => drop(input.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// One field; inside the embedded message that the type table names, where it does.
fn field_of<'de, A: MapAccess<'de>>(
    schema: &Schema,
    field: &Field,
    input: &mut A,
    out: &mut Vec<u8>,
) -> Result<(), A::Error> {
    let (outer, number) = field.tag;
    if outer == 0 {
        return input.next_value_seed(Single { schema, ty: field.ty, number, out });
    }
    // Readers merge the occurrences of an embedded message, so each field may come in one of its own.
    let mut inner = Vec::new();
    input.next_value_seed(Single { schema, ty: field.ty, number, out: &mut inner })?;
    if inner.is_empty() {
        return Ok(());
    }
    match outer >> INNER_SHIFT {
        0 => wire::bytes(out, outer, &inner),
        within => {
            wire::message(out, outer & ((1 << INNER_SHIFT) - 1), |out| wire::bytes(out, within, &inner))
        }
    }
    Ok(())
}

/// A value as the field `number`.
struct Single<'a> {
    schema: &'a Schema,
    ty: TypeId,
    number: u32,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Single<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        if matches!(self.schema.shape(self.ty), Shape::Any) {
            let raw = Box::<RawValue>::deserialize(input)?;
            if raw.get() != "null" {
                wire::message(self.out, self.number, |out| wire::bytes(out, 1, raw.get().as_bytes()));
            }
            return Ok(());
        }
        input.deserialize_any(self)
    }
}

impl Single<'_> {
    fn text(self, text: &str) {
        let Single { schema, ty, number, out } = self;
        match schema.shape(ty) {
            Shape::String => wire::bytes(out, number, text.as_bytes()),
            Shape::Bytes => {
                let clean: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
                if let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(clean) {
                    wire::bytes(out, number, &bytes);
                }
            }
            Shape::Quantity => wire::message(out, number, |out| wire::bytes(out, 1, text.as_bytes())),
            Shape::IntOrString => wire::message(out, number, |out| {
                wire::number(out, 1, 1);
                wire::number(out, 2, 0);
                wire::bytes(out, 3, text.as_bytes());
            }),
            Shape::Time | Shape::MicroTime => {
                if let Ok(time) = text.parse::<jiff::Timestamp>() {
                    wire::message(out, number, |out| {
                        let seconds = time.as_second();
                        let nanos = time.subsec_nanosecond();
                        // The parts of a time before the epoch: whole seconds below, nanoseconds above.
                        let (seconds, nanos) =
                            if nanos < 0 { (seconds - 1, nanos + 1_000_000_000) } else { (seconds, nanos) };
                        wire::number(out, 1, seconds as u64);
                        wire::number(out, 2, nanos as u64);
                    });
                }
            }
            _ => {}
        }
    }

    fn integer(self, n: i64) {
        let Single { schema, ty, number, out } = self;
        match schema.shape(ty) {
            // Negative numbers are ten bytes of two's complement, for 32 bits too.
            Shape::Int32 | Shape::Int64 => wire::number(out, number, n as u64),
            Shape::Double => wire::double(out, number, n as f64),
            Shape::IntOrString => wire::message(out, number, |out| {
                wire::number(out, 1, 0);
                wire::number(out, 2, n as u64);
                wire::bytes(out, 3, b"");
            }),
            Shape::Quantity => {
                wire::message(out, number, |out| wire::bytes(out, 1, n.to_string().as_bytes()));
            }
            _ => {}
        }
    }
}

impl<'de> Visitor<'de> for Single<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, b: bool) -> Result<(), E> {
        if matches!(self.schema.shape(self.ty), Shape::Bool) {
            wire::number(self.out, self.number, u64::from(b));
        }
        Ok(())
    }
    fn visit_i64<E>(self, n: i64) -> Result<(), E> {
        self.integer(n);
        Ok(())
    }
    fn visit_u64<E>(self, n: u64) -> Result<(), E> {
        self.integer(n as i64);
        Ok(())
    }
    fn visit_f64<E>(self, n: f64) -> Result<(), E> {
        if matches!(self.schema.shape(self.ty), Shape::Double) {
            wire::double(self.out, self.number, n);
        }
        Ok(())
    }
    fn visit_str<E>(self, s: &str) -> Result<(), E> {
        self.text(s);
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut input: A) -> Result<(), A::Error> {
        let Single { schema, ty, number, out } = self;
        match schema.shape(ty) {
            Shape::Struct(_) => {
                wire::message(out, number, |out| Members { schema, ty, out }.visit_map(input))
            }
            Shape::Map { item, .. } => {
                while let Some(key) = input.next_key::<String>()? {
                    wire::message(out, number, |out| {
                        wire::bytes(out, 1, key.as_bytes());
                        input.next_value_seed(Item { schema, ty: *item, number: 2, out })
                    })?;
                }
                Ok(())
            }
            _ => {
                while input.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(())
            }
        }
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut input: A) -> Result<(), A::Error> {
        let Single { schema, ty, number, out } = self;
        let Shape::List { item, .. } = schema.shape(ty) else {
            while input.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        while input.next_element_seed(Item { schema, ty: *item, number, out })?.is_some() {}
        Ok(())
    }
}

/// A member of a list or map: a list inside is a message with the items as field 1.
struct Item<'a> {
    schema: &'a Schema,
    ty: TypeId,
    number: u32,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Item<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        let Item { schema, ty, number, out } = self;
        if matches!(schema.shape(ty), Shape::List { .. }) {
            return wire::message(out, number, |out| {
                Single { schema, ty, number: 1, out }.deserialize(input)
            });
        }
        Single { schema, ty, number, out }.deserialize(input)
    }
}
