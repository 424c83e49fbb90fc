//! JSON patches, merge patches and strategic merge patches on a Pod.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::Schema;
use serde_json::{Map, Value};

fuzz_target!(|input: &[u8]| {
    let Some((how, patch)) = input.split_first() else { return };
    let mut value = Value::Object(fuzz::pod());
    match how % 3 {
        0 => drop(meta::patch::json_patch(&mut value, patch)),
        1 => drop(meta::patch::merge_patch(&mut value, patch)),
        _ => {
            let schema = Schema::builtin();
            let Some(ty) = schema.kind("", "v1", "Pod") else { return };
            let Ok(patch) = serde_json::from_slice::<Map<String, Value>>(patch) else { return };
            let mut object = fuzz::pod();
            let _ = schema::strategic::apply(schema, ty, &mut object, &patch);
        }
    }
});
