//! Arithmetic, order, sizes, optionals, insertion into maps.

use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

use crate::compare::{equal, order, same_keys};
use crate::error::EvalError;
use crate::eval::Outcome;
use crate::library::{Impl, text};
use crate::types::ListKind;
use crate::value::{List, Map, Value};

pub(super) const TABLE: &[(&str, Impl)] = &[
    ("!_", not),
    ("_+_", add),
    ("_-_", subtract),
    ("_*_", multiply),
    ("_/_", divide),
    ("_%_", modulo),
    ("-_", negate),
    ("_<_", |a| compare(a, Ordering::is_lt)),
    ("_<=_", |a| compare(a, Ordering::is_le)),
    ("_>_", |a| compare(a, Ordering::is_gt)),
    ("_>=_", |a| compare(a, Ordering::is_ge)),
    ("size", size),
    ("type", |a| match a {
        [v] => Ok(Value::Type(Arc::from(&*v.type_name()))),
        _ => Err(EvalError::no_overload()),
    }),
    ("dyn", |a| a.first().cloned().ok_or_else(EvalError::no_overload)),
    ("optional.of", |a| a.first().cloned().map(Value::some).ok_or_else(EvalError::no_overload)),
    ("optional.ofNonZeroValue", of_non_zero),
    ("optional.none", |_| Ok(Value::Optional(None))),
    ("value", |a| match a {
        [Value::Optional(Some(v))] => Ok((**v).clone()),
        [Value::Optional(None)] => Err(EvalError::failed("optional.none() dereference")),
        _ => Err(EvalError::no_overload()),
    }),
    ("hasValue", |a| match a {
        [Value::Optional(v)] => Ok(Value::Bool(v.is_some())),
        _ => Err(EvalError::no_overload()),
    }),
    ("cel.@mapInsert", map_insert),
];

fn overflow() -> EvalError {
    EvalError::failed("integer overflow")
}

fn not<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::Bool(b)] => Ok(Value::Bool(!b)),
        _ => Err(EvalError::no_overload()),
    }
}

fn shifted<'a>(t: &jiff::Timestamp, nanos: i64) -> Outcome<'a> {
    t.checked_add(jiff::SignedDuration::from_nanos(nanos))
        .map(Value::Timestamp)
        .map_err(|_| EvalError::failed("timestamp overflow"))
}

fn add<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::Int(a), Value::Int(b)] => a.checked_add(*b).map(Value::Int).ok_or_else(overflow),
        [Value::Uint(a), Value::Uint(b)] => {
            a.checked_add(*b).map(Value::Uint).ok_or_else(|| EvalError::failed("unsigned integer overflow"))
        }
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a + b)),
        [Value::String(a), Value::String(b)] => Ok(text(format!("{}{}", &**a, &**b))),
        [Value::Bytes(a), Value::Bytes(b)] => Ok(Value::Bytes([&a[..], &b[..]].concat().into())),
        [Value::Duration(a), Value::Duration(b)] => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(overflow)
        }
        [Value::Timestamp(t), Value::Duration(d)] | [Value::Duration(d), Value::Timestamp(t)] => {
            shifted(t, *d)
        }
        [Value::List(a), Value::List(b)] => Ok(Value::list(joined(a, b))),
        _ => Err(EvalError::no_overload()),
    }
}

/// Lists one after the other; sets and maps take in what they do not have, and maps replace what they have.
fn joined<'a>(a: &List<'a>, b: &List<'a>) -> Vec<Value<'a>> {
    let mut out: Vec<Value<'a>> = a.iter().collect();
    for item in b.iter() {
        let found = match a.kind() {
            ListKind::Atomic => None,
            ListKind::Set => out.iter().position(|v| equal(v, &item)),
            ListKind::Map(keys) => out.iter().position(|v| same_keys(v, &item, keys)),
        };
        match found.and_then(|i| out.get_mut(i)) {
            Some(place) => *place = item,
            None => out.push(item),
        }
    }
    out
}

fn subtract<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::Int(a), Value::Int(b)] => a.checked_sub(*b).map(Value::Int).ok_or_else(overflow),
        [Value::Uint(a), Value::Uint(b)] => {
            a.checked_sub(*b).map(Value::Uint).ok_or_else(|| EvalError::failed("unsigned integer overflow"))
        }
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a - b)),
        [Value::Duration(a), Value::Duration(b)] => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(overflow)
        }
        [Value::Timestamp(t), Value::Duration(d)] => shifted(t, d.checked_neg().ok_or_else(overflow)?),
        [Value::Timestamp(a), Value::Timestamp(b)] => {
            let nanos = a.as_nanosecond() - b.as_nanosecond();
            i64::try_from(nanos).map(Value::Duration).map_err(|_| overflow())
        }
        _ => Err(EvalError::no_overload()),
    }
}

fn multiply<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::Int(a), Value::Int(b)] => a.checked_mul(*b).map(Value::Int).ok_or_else(overflow),
        [Value::Uint(a), Value::Uint(b)] => {
            a.checked_mul(*b).map(Value::Uint).ok_or_else(|| EvalError::failed("unsigned integer overflow"))
        }
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a * b)),
        _ => Err(EvalError::no_overload()),
    }
}

fn divide<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(EvalError::failed("division by zero"))
        }
        [Value::Int(a), Value::Int(b)] => a.checked_div(*b).map(Value::Int).ok_or_else(overflow),
        [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(a / b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a / b)),
        _ => Err(EvalError::no_overload()),
    }
}

fn modulo<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(EvalError::failed("modulus by zero"))
        }
        [Value::Int(a), Value::Int(b)] => a.checked_rem(*b).map(Value::Int).ok_or_else(overflow),
        [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(a % b)),
        _ => Err(EvalError::no_overload()),
    }
}

fn negate<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::Int(n)] => n.checked_neg().map(Value::Int).ok_or_else(overflow),
        [Value::Double(n)] => Ok(Value::Double(-n)),
        [Value::Duration(n)] => n.checked_neg().map(Value::Duration).ok_or_else(overflow),
        _ => Err(EvalError::no_overload()),
    }
}

fn compare<'a>(a: &[Value<'a>], fits: fn(Ordering) -> bool) -> Outcome<'a> {
    match a {
        [a, b] => match order(a, b) {
            Some(Some(o)) => Ok(Value::Bool(fits(o))),
            Some(None) => Err(EvalError::failed("NaN values cannot be ordered")),
            None => Err(EvalError::no_overload()),
        },
        _ => Err(EvalError::no_overload()),
    }
}

fn size<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [v @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))] => {
            Ok(Value::Int(v.size() as i64))
        }
        _ => Err(EvalError::no_overload()),
    }
}

fn of_non_zero<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let [v] = a else { return Err(EvalError::no_overload()) };
    let zero = match v {
        Value::Null | Value::Bool(false) | Value::Int(0) | Value::Uint(0) | Value::Duration(0) => true,
        Value::Double(d) => *d == 0.0,
        Value::String(s) => s.is_empty(),
        Value::Bytes(b) => b.is_empty(),
        Value::List(l) => l.is_empty(),
        Value::Map(m) => m.is_empty(),
        Value::Optional(o) => o.is_none(),
        _ => false,
    };
    Ok(if zero { Value::Optional(None) } else { Value::some(v.clone()) })
}

fn map_insert<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let (map, added): (&Map<'a>, Vec<(Value<'a>, Value<'a>)>) = match a {
        [Value::Map(map), key, value] => (map, vec![(key.clone(), value.clone())]),
        [Value::Map(map), Value::Map(more)] => (map, more.iter().collect()),
        _ => return Err(EvalError::no_overload()),
    };
    let mut out = std::collections::BTreeMap::new();
    for (key, value) in map.iter().chain(added) {
        let key = crate::value::Key::of(&key).ok_or_else(|| EvalError::failed("unsupported key type"))?;
        if out.insert(key.clone(), value).is_some() {
            let shown = crate::eval::show_key(&key);
            return Err(EvalError::failed(format!("insert failed: key {shown} already exists")));
        }
    }
    Ok(Value::Map(Map::Made(Rc::new(out))))
}
