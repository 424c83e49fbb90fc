//! Quantities.

use std::cmp::Ordering;

use meta::Quantity;

use crate::error::EvalError;
use crate::eval::Outcome;
use crate::library::{Impl, Opaque};
use crate::value::Value;

pub(super) const TABLE: &[(&str, Impl)] = &[
    ("quantity", |a| match a {
        [Value::String(s)] => match Quantity::parse(s) {
            Ok(q) => Ok(Value::Opaque(Opaque::Quantity(q))),
            Err(e) => Err(EvalError::failed(e.to_string())),
        },
        _ => Err(EvalError::no_overload()),
    }),
    ("isQuantity", |a| match a {
        [Value::String(s)] => Ok(Value::Bool(Quantity::parse(s).is_ok())),
        _ => Err(EvalError::no_overload()),
    }),
    ("sign", |a| {
        let q = one(a)?;
        Ok(Value::Int(if q.is_zero() { 0 } else { 1 - 2 * i64::from(q.is_negative()) }))
    }),
    ("isInteger", |a| Ok(Value::Bool(whole(one(a)?).is_some()))),
    ("asInteger", |a| match whole(one(a)?) {
        Some(n) => Ok(Value::Int(n)),
        None => Err(EvalError::failed("cannot convert value to integer")),
    }),
    ("asApproximateFloat", |a| Ok(Value::Double(one(a)?.to_f64()))),
    ("add", |a| combine(a, |a, b| a.plus(b))),
    ("sub", |a| combine(a, |a, b| a.minus(b))),
    ("isGreaterThan", |a| order(a).map(|o| Value::Bool(o.is_gt()))),
    ("isLessThan", |a| order(a).map(|o| Value::Bool(o.is_lt()))),
    ("compareTo", |a| order(a).map(|o| Value::Int(o as i64))),
];

fn one(a: &[Value<'_>]) -> Result<Quantity, EvalError> {
    match a {
        [Value::Opaque(Opaque::Quantity(q))] => Ok(*q),
        _ => Err(EvalError::no_overload()),
    }
}

fn whole(q: Quantity) -> Option<i64> {
    // The ends are where larger values were cut off.
    let n = q.value();
    (q.is_integer() && n > i64::MIN && n < i64::MAX).then_some(n)
}

fn combine<'a>(a: &[Value<'a>], f: fn(Quantity, Quantity) -> Quantity) -> Outcome<'a> {
    let (a, b) = match a {
        [Value::Opaque(Opaque::Quantity(a)), Value::Opaque(Opaque::Quantity(b))] => (*a, *b),
        [Value::Opaque(Opaque::Quantity(a)), Value::Int(n)] => (*a, Quantity::from_units(*n)),
        _ => return Err(EvalError::no_overload()),
    };
    Ok(Value::Opaque(Opaque::Quantity(f(a, b))))
}

/// Order of quantities and of versions, which share the names of their functions.
fn order(a: &[Value<'_>]) -> Result<Ordering, EvalError> {
    match a {
        [Value::Opaque(Opaque::Quantity(a)), Value::Opaque(Opaque::Quantity(b))] => Ok(a.cmp(b)),
        [Value::Opaque(Opaque::Semver(a)), Value::Opaque(Opaque::Semver(b))] => Ok(a.cmp(b)),
        _ => Err(EvalError::no_overload()),
    }
}
