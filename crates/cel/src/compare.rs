//! Equality and order of values.

use std::cmp::Ordering;

use crate::types::ListKind;
use crate::value::{Key, List, Map, Value};

/// Equality: numbers by value whatever their type, other types only among themselves.
pub(crate) fn equal(a: &Value<'_>, b: &Value<'_>) -> bool {
    match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::String(a), Value::String(b)) => **a == **b,
        (Value::Bytes(a), Value::Bytes(b)) => a == b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Type(a), Value::Type(b)) => a == b,
        (Value::Optional(a), Value::Optional(b)) => match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => equal(a, b),
            _ => false,
        },
        (Value::List(a), Value::List(b)) => lists(a, b),
        (Value::Map(a), Value::Map(b)) => maps(a, b),
        (Value::Opaque(a), Value::Opaque(b)) => a == b,
        _ => numbers(a, b) == Some(Ordering::Equal),
    }
}

fn lists(a: &List<'_>, b: &List<'_>) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let kind = if *a.kind() == ListKind::Atomic { b.kind() } else { a.kind() };
    match kind {
        ListKind::Atomic => a.iter().zip(b.iter()).all(|(a, b)| equal(&a, &b)),
        ListKind::Set => a.iter().all(|a| b.iter().any(|b| equal(&a, &b))),
        ListKind::Map(keys) => a.iter().all(|a| b.iter().any(|b| same_keys(&a, &b, keys) && equal(&a, &b))),
    }
}

/// Whether two objects agree in these fields.
pub(crate) fn same_keys(a: &Value<'_>, b: &Value<'_>, keys: &[String]) -> bool {
    let (Value::Map(a), Value::Map(b)) = (a, b) else { return false };
    keys.iter().all(|k| match (a.field(k), b.field(k)) {
        (Some(a), Some(b)) => equal(&a, &b),
        (None, None) => true,
        _ => false,
    })
}

fn maps(a: &Map<'_>, b: &Map<'_>) -> bool {
    if let (Map::Struct(a, _), Map::Struct(b, _)) = (a, b)
        && a != b
    {
        return false;
    }
    a.len() == b.len()
        && a.iter().all(|(k, v)| Key::of(&k).and_then(|k| b.get(&k)).is_some_and(|w| equal(&v, &w)))
}

/// Order of two numbers; `None` when one is no number or not a number.
fn numbers(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Uint(b)) => Some(u64::try_from(*a).map_or(Ordering::Less, |a| a.cmp(b))),
        (Value::Uint(_), Value::Int(_)) => numbers(b, a).map(Ordering::reverse),
        (Value::Int(a), Value::Double(b)) => with_double(i128::from(*a), *b),
        (Value::Uint(a), Value::Double(b)) => with_double(i128::from(*a), *b),
        (Value::Double(_), Value::Int(_) | Value::Uint(_)) => numbers(b, a).map(Ordering::reverse),
        _ => None,
    }
}

fn with_double(a: i128, b: f64) -> Option<Ordering> {
    if b.is_nan() {
        return None;
    }
    // Beyond 2^65 no 64-bit number lives.
    if b.abs() > 3.7e19 {
        return Some(if b > 0.0 { Ordering::Less } else { Ordering::Greater });
    }
    Some(a.cmp(&(b.trunc() as i128)).then_with(|| 0.0.partial_cmp(&b.fract()).unwrap_or(Ordering::Equal)))
}

/// Order, where the types have one. `Some(None)`: comparable, but not a number is in it.
pub(crate) fn order(a: &Value<'_>, b: &Value<'_>) -> Option<Option<Ordering>> {
    Some(Some(match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::String(a), Value::String(b)) => (**a).cmp(b),
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
        (Value::Duration(a), Value::Duration(b)) => a.cmp(b),
        (
            Value::Int(_) | Value::Uint(_) | Value::Double(_),
            Value::Int(_) | Value::Uint(_) | Value::Double(_),
        ) => {
            return Some(numbers(a, b));
        }
        _ => return None,
    }))
}
