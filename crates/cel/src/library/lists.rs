//! Functions of lists and sets.

use std::cmp::Ordering;

use crate::compare::{equal, order};
use crate::error::EvalError;
use crate::eval::Outcome;
use crate::library::Impl;
use crate::value::{List, Value};

pub(super) const TABLE: &[(&str, Impl)] = &[
    ("isSorted", is_sorted),
    ("sum", sum),
    ("min", |a| extreme(a, "min", Ordering::is_lt)),
    ("max", |a| extreme(a, "max", Ordering::is_gt)),
    ("includes", includes),
    ("slice", slice),
    ("flatten", flatten),
    ("lists.range", range),
    ("reverse", |a| Ok(Value::list(list(a)?.iter().rev().collect()))),
    ("distinct", |a| Ok(Value::list(distinct(list(a)?)))),
    ("sort", |a| {
        let items: Vec<Value<'_>> = list(a)?.iter().collect();
        sorted(items.iter().cloned().zip(items.clone()).collect())
    }),
    ("@sortByAssociatedKeys", |a| match a {
        [Value::List(items), Value::List(keys)] => sorted(keys.iter().zip(items.iter()).collect()),
        _ => Err(EvalError::no_overload()),
    }),
    ("sets.contains", |a| two(a, contains)),
    ("sets.equivalent", |a| two(a, |a, b| contains(a, b) && contains(b, a))),
    ("sets.intersects", |a| two(a, |a, b| a.iter().any(|v| has(b, &v)))),
];

/// Longest list that `lists.range` makes.
const RANGE_MAX: i64 = 1_000_000;
/// Most levels that `flatten` goes down.
const FLATTEN_MAX: i64 = 100;

fn list<'l, 'a>(a: &'l [Value<'a>]) -> Result<&'l List<'a>, EvalError> {
    match a {
        [Value::List(list), ..] => Ok(list),
        _ => Err(EvalError::no_overload()),
    }
}

fn has(list: &List<'_>, value: &Value<'_>) -> bool {
    list.iter().any(|v| equal(&v, value))
}

fn contains(list: &List<'_>, all: &List<'_>) -> bool {
    all.iter().all(|v| has(list, &v))
}

fn two<'a>(a: &[Value<'a>], fits: fn(&List<'a>, &List<'a>) -> bool) -> Outcome<'a> {
    match a {
        [Value::List(a), Value::List(b)] => Ok(Value::Bool(fits(a, b))),
        _ => Err(EvalError::no_overload()),
    }
}

fn compare(a: &Value<'_>, b: &Value<'_>) -> Result<Ordering, EvalError> {
    order(a, b).flatten().ok_or_else(EvalError::no_overload)
}

fn is_sorted<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let items: Vec<Value<'a>> = list(a)?.iter().collect();
    for pair in items.windows(2) {
        if let [a, b] = pair
            && compare(a, b)?.is_gt()
        {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let add = super::implementation("_+_").ok_or_else(EvalError::no_overload)?;
    let mut items = list(a)?.iter();
    let Some(mut total) = items.next() else { return Ok(Value::Int(0)) };
    for item in items {
        total = add(&[total, item])?;
    }
    Ok(total)
}

fn extreme<'a>(a: &[Value<'a>], name: &str, better: fn(Ordering) -> bool) -> Outcome<'a> {
    let mut items = list(a)?.iter();
    let Some(mut best) = items.next() else {
        return Err(EvalError::failed(format!("{name} called on empty list")));
    };
    for item in items {
        if better(compare(&item, &best)?) {
            best = item;
        }
    }
    Ok(best)
}

fn includes<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::List(list), value] => Ok(Value::Bool(has(list, value))),
        _ => Err(EvalError::no_overload()),
    }
}

fn slice<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let [Value::List(list), Value::Int(from), Value::Int(to)] = a else {
        return Err(EvalError::no_overload());
    };
    let len = list.len() as i64;
    let cannot = |why: &str| Err(EvalError::failed(format!("cannot slice({from}, {to}), {why}")));
    if *from < 0 || *to < 0 {
        return cannot("negative indexes not supported");
    }
    if from > to {
        return cannot("start index must be less than or equal to end index");
    }
    if *to > len {
        return cannot(&format!("list is length {len}"));
    }
    Ok(Value::list(list.iter().skip(*from as usize).take((to - from) as usize).collect()))
}

fn flatten<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let depth = match a {
        [_] => 1,
        [_, Value::Int(depth)] if *depth < 0 => return Err(EvalError::failed("level must be non-negative")),
        [_, Value::Int(depth)] => (*depth).min(FLATTEN_MAX),
        _ => return Err(EvalError::no_overload()),
    };
    fn into<'a>(list: &List<'a>, depth: i64, out: &mut Vec<Value<'a>>) {
        for item in list.iter() {
            match &item {
                Value::List(inner) if depth > 0 => into(inner, depth - 1, out),
                _ => out.push(item),
            }
        }
    }
    let mut out = Vec::new();
    into(list(a)?, depth, &mut out);
    Ok(Value::list(out))
}

fn range<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::Int(n)] if *n > RANGE_MAX => {
            Err(EvalError::failed(format!("lists.range() size {n} exceeds limit of {RANGE_MAX}")))
        }
        [Value::Int(n)] => Ok(Value::list((0..*n).map(Value::Int).collect())),
        _ => Err(EvalError::no_overload()),
    }
}

fn distinct<'a>(list: &List<'a>) -> Vec<Value<'a>> {
    let mut out: Vec<Value<'a>> = Vec::new();
    for item in list.iter() {
        if !out.iter().any(|v| equal(v, &item)) {
            out.push(item);
        }
    }
    out
}

/// The second parts in the order of the first.
fn sorted<'a>(mut pairs: Vec<(Value<'a>, Value<'a>)>) -> Outcome<'a> {
    let mut failed = None;
    pairs.sort_by(|(a, _), (b, _)| {
        compare(a, b).unwrap_or_else(|e| {
            failed = Some(e);
            Ordering::Equal
        })
    });
    match failed {
        Some(e) => Err(e),
        None => Ok(Value::list(pairs.into_iter().map(|p| p.1).collect())),
    }
}
