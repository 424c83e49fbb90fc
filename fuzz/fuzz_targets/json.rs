//! Bodies in JSON: what is accepted can be decoded again, to the same, and survives protobuf.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::{Schema, encode, protobuf};
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
    let Some((ty, input)) = fuzz::kind(input) else { return };
    let schema = Schema::builtin();
    let Ok(first) = schema::decode::decode(schema, ty, input) else { return };
    let text = Value::Object(first.value.clone()).to_string();
    let again = schema::decode::decode(schema, ty, text.as_bytes()).expect("decoded before");
    assert_eq!(first.value, again.value);
    let Ok(message) = encode::message(schema, ty, text.as_bytes()) else { return };
    // The first way back adds the empty fields that a struct of Go always has; then nothing changes any more.
    let back = protobuf::to_json(schema, ty, &message).expect("our own message");
    let text = Value::Object(back.clone()).to_string();
    let message = encode::message(schema, ty, text.as_bytes()).expect("decoded from a message");
    assert_eq!(protobuf::to_json(schema, ty, &message).expect("our own message"), back);
});
