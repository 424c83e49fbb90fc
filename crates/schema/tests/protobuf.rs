//! Every kind there and back: random objects made from the type table keep everything on the way through
//! protobuf.

use schema::types::{Schema, Shape, TypeId};
use schema::{encode, protobuf};
use serde_json::{Map, Value, json};

/// Objects per kind.
const ROUNDS: u64 = 4;
/// Deepest nesting that is made.
const DEPTH_MAX: usize = 7;

/// A small generator: the same seed makes the same objects everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn word(&mut self) -> String {
        let letters = ["a", "Zz", "0-9", "ß", "日本", "\u{1F600}", "_.x", "\"\\\n"];
        (0..=self.below(3)).map(|_| letters[self.below(letters.len() as u64) as usize]).collect()
    }
}

/// A value of a type that is not the zero value; `None` where nothing fits any more.
fn value(schema: &Schema, ty: TypeId, r: &mut Random, depth: usize) -> Option<Value> {
    Some(match schema.shape(ty) {
        Shape::String => json!(r.word()),
        Shape::Bool => json!(true),
        Shape::Int32 => json!([1, -1, i32::MAX, i32::MIN][r.below(4) as usize]),
        Shape::Int64 => json!([1, -1, i64::MAX, i64::MIN][r.below(4) as usize]),
        Shape::Double => json!([0.5, -2.25, 1e300][r.below(3) as usize]),
        Shape::Bytes => json!(["AA==", "AQID", "/+8="][r.below(3) as usize]),
        Shape::Quantity => json!(["1", "500m", "1Gi", "-3"][r.below(4) as usize]),
        Shape::IntOrString => {
            [json!(8080), json!(-1), json!("http"), json!("25%")][r.below(4) as usize].clone()
        }
        Shape::Time => json!(["2026-01-02T03:04:05Z", "1965-01-02T03:04:05Z"][r.below(2) as usize]),
        Shape::MicroTime => {
            json!(["2026-01-02T03:04:05.000006Z", "1965-01-02T03:04:05.600000Z"][r.below(2) as usize])
        }
        Shape::Any | Shape::Free => [json!({"f:a": {}}), json!([1, "x"]), json!({"b": {"c": [null, 1.5]}})]
            [r.below(3) as usize]
            .clone(),
        Shape::List { item, .. } => {
            let items: Vec<Value> =
                (0..=r.below(2)).filter_map(|_| value(schema, *item, r, depth + 1)).collect();
            if items.is_empty() {
                return None;
            }
            Value::Array(items)
        }
        Shape::Map { item, .. } => {
            let mut map = Map::new();
            for _ in 0..=r.below(2) {
                map.insert(r.word(), value(schema, *item, r, depth + 1)?);
            }
            Value::Object(map)
        }
        Shape::Struct(_) => {
            let object = object(schema, ty, r, depth + 1);
            if object.is_empty() {
                return None;
            }
            Value::Object(object)
        }
    })
}

fn object(schema: &Schema, ty: TypeId, r: &mut Random, depth: usize) -> Map<String, Value> {
    let mut out = Map::new();
    let Some(s) = schema.as_struct(ty) else { return out };
    for field in s.fields.iter().filter(|f| f.tag.1 > 0) {
        // Everything near the top, less further down, so that objects stay small.
        if depth > DEPTH_MAX || (depth > 2 && r.below(3) > 0) {
            continue;
        }
        if let Some(value) = value(schema, field.ty, r, depth) {
            out.insert(field.name.to_string(), value);
        }
    }
    out
}

#[test]
fn every_kind_survives_the_way_there_and_back() {
    let schema = Schema::builtin();
    let mut kinds = 0;
    for s in schema.structs().iter().filter(|s| s.gvk.is_some()) {
        let ty = schema.named(&s.name).unwrap();
        if !schema.has_numbers(ty) {
            continue;
        }
        kinds += 1;
        for round in 0..ROUNDS {
            let mut r = Random(0x9E37_79B9_7F4A_7C15 ^ (kinds << 8) ^ round);
            let first = object(schema, ty, &mut r, 0);
            let text = Value::Object(first.clone()).to_string();
            let encoded = encode::message(schema, ty, text.as_bytes()).unwrap();
            let second = protobuf::to_json(schema, ty, &encoded)
                .unwrap_or_else(|e| panic!("{} round {round}: {e}\n{text}", s.name));
            assert_eq!(Value::Object(second.clone()), Value::Object(first), "{} round {round}", s.name);
            let again = encode::message(schema, ty, Value::Object(second).to_string().as_bytes()).unwrap();
            assert_eq!(again, encoded, "{} round {round}", s.name);
        }
    }
    assert!(kinds > 150, "only {kinds} kinds have field numbers");
}

#[test]
fn a_known_message_byte_by_byte() {
    let schema = Schema::builtin();
    let ty = schema.kind("", "v1", "ConfigMap").unwrap();
    let text = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":"v"}}"#;
    let message = encode::message(schema, ty, text.as_bytes()).unwrap();
    assert_eq!(message, b"\x0a\x03\x0a\x01a\x12\x06\x0a\x01k\x12\x01v");
    let envelope = encode::envelope("v1", "ConfigMap", &message);
    let want: &[u8] = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x0d\x0a\x03\x0a\x01a\x12\x06\x0a\x01k\x12\x01v\x1a\x00\x22\x00";
    assert_eq!(envelope, want);
    let frame = encode::watch_frame("ADDED", &envelope);
    let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
    assert_eq!(length, frame.len() - 4);
    let object = [&[0x12, envelope.len() as u8 + 2, 0x0a, envelope.len() as u8][..], &envelope].concat();
    assert_eq!(frame[4..], [b"\x0a\x05ADDED".as_slice(), &object].concat());
}
