//! Expressions: compiled, estimated, and run under a budget.
#![no_main]

use cel::{Env, Meter, Type, Value};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// Enough to run anything interesting, little enough to be quick.
const BUDGET: u64 = 20_000;

fuzz_target!(|text: &str| {
    let env = Env::new()
        .variable("self", Type::Dyn)
        .variable("n", Type::Int)
        .variable("words", Type::list(Type::String))
        .variable("labels", Type::map(Type::String, Type::String));
    let Ok(program) = env.compile(text) else { return };
    let object =
        json!({"metadata": {"name": "n", "labels": {"a/b": "c"}}, "n": 7, "list": [{"k": 1}, {"k": 2}]});
    let (words, labels) = (json!(["b", "a"]), json!({"app": "x", "tier": "y"}));
    let variables = vec![
        ("self", Value::json(&object, &Type::Dyn)),
        ("n", Value::Int(3)),
        ("words", Value::json(&words, &Type::list(Type::String))),
        ("labels", Value::json(&labels, &Type::map(Type::String, Type::String))),
    ];
    let mut meter = Meter::new(BUDGET);
    let _ = program.evaluate(&variables, &mut meter);
});
