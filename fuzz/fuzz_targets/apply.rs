//! Server-side apply: anything applied to a Pod, a Pod applied to anything, and both again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::Schema;
use schema::apply::{Writer, apply};

fuzz_target!(|input: &[u8]| {
    let schema = Schema::builtin();
    let Some(ty) = schema.kind("", "v1", "Pod") else { return };
    let writer =
        |manager| Writer { manager, api_version: "v1", subresource: "", now: "2026-01-02T03:04:05Z" };
    let Ok(decoded) = schema::decode::decode(schema, ty, input) else { return };
    let _ = apply(schema, ty, Some(&fuzz::pod()), &decoded.value, &writer("m"), false);
    let _ = apply(schema, ty, Some(&decoded.value), &fuzz::pod(), &writer("m"), true);
    let _ = apply(schema, ty, Some(&fuzz::pod()), &decoded.value, &writer("other"), true);
});
