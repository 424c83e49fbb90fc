//! Bodies in protobuf: bare messages and Kubernetes' envelope.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::{Schema, encode, protobuf};
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
    let _ = protobuf::open(input);
    let Some((ty, input)) = fuzz::kind(input) else { return };
    let schema = Schema::builtin();
    let Ok(object) = protobuf::to_json(schema, ty, input) else { return };
    let text = Value::Object(object).to_string();
    let Ok(decoded) = schema::decode::decode(schema, ty, text.as_bytes()) else { return };
    let text = Value::Object(decoded.value).to_string();
    let message = encode::message(schema, ty, text.as_bytes()).expect("decoded from a message");
    protobuf::to_json(schema, ty, &message).expect("our own message");
});
