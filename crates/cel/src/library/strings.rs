//! Functions of strings and regular expressions.

use std::cell::RefCell;
use std::rc::Rc;

use regex::Regex;

use crate::compare::equal;
use crate::error::EvalError;
use crate::eval::Outcome;
use crate::library::{Impl, text};
use crate::value::Value;

pub(super) const TABLE: &[(&str, Impl)] = &[
    ("contains", |a| test(a, |s, t| s.contains(t))),
    ("startsWith", |a| test(a, |s, t| s.starts_with(t))),
    ("endsWith", |a| test(a, |s, t| s.ends_with(t))),
    ("matches", matches),
    ("charAt", char_at),
    ("indexOf", index_of),
    ("lastIndexOf", last_index_of),
    ("lowerAscii", |a| map(a, |s| s.to_ascii_lowercase())),
    ("upperAscii", |a| map(a, |s| s.to_ascii_uppercase())),
    ("trim", |a| map(a, |s| s.trim().to_owned())),
    ("replace", replace),
    ("split", split),
    ("substring", substring),
    ("join", join),
    ("find", find),
    ("findAll", find_all),
    ("strings.quote", |a| map(a, quote)),
    ("jsonpatch.escapeKey", |a| map(a, |s| s.replace('~', "~0").replace('/', "~1"))),
];

fn test<'a>(a: &[Value<'a>], fits: fn(&str, &str) -> bool) -> Outcome<'a> {
    match a {
        [Value::String(s), Value::String(t)] => Ok(Value::Bool(fits(s, t))),
        _ => Err(EvalError::no_overload()),
    }
}

fn map<'a>(a: &[Value<'a>], f: impl Fn(&str) -> String) -> Outcome<'a> {
    match a {
        [Value::String(s)] => Ok(text(f(s))),
        _ => Err(EvalError::no_overload()),
    }
}

/// Patterns a thread keeps: an expression uses the same few for every element of a list.
const PATTERNS_MAX: usize = 32;

/// A compiled pattern.
fn pattern(source: &str) -> Result<Regex, EvalError> {
    type Patterns = Vec<(Rc<str>, Regex)>;
    thread_local! {
        static KEPT: RefCell<Patterns> = const { RefCell::new(Vec::new()) };
    }
    KEPT.with_borrow_mut(|kept| {
        if let Some((_, found)) = kept.iter().find(|(s, _)| **s == *source) {
            return Ok(found.clone());
        }
        let made = Regex::new(source)
            .map_err(|_| EvalError::failed(format!("error parsing regexp: invalid pattern: `{source}`")))?;
        if kept.len() >= PATTERNS_MAX {
            kept.remove(0);
        }
        kept.push((source.into(), made.clone()));
        Ok(made)
    })
}

fn matches<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::String(s), Value::String(p)] => Ok(Value::Bool(pattern(p)?.is_match(s))),
        _ => Err(EvalError::no_overload()),
    }
}

fn out_of_range(index: i64) -> EvalError {
    EvalError::failed(format!("index out of range: {index}"))
}

fn char_at<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s), Value::Int(i)] = a else { return Err(EvalError::no_overload()) };
    let count = s.chars().count();
    match usize::try_from(*i) {
        Ok(at) if at <= count => Ok(text(s.chars().nth(at).map(String::from).unwrap_or_default())),
        _ => Err(out_of_range(*i)),
    }
}

/// Position of the first occurrence at or after `from`, in code points.
fn index_of<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::List(list), item] => {
            let at = list.iter().position(|v| equal(&v, item));
            Ok(Value::Int(at.map_or(-1, |i| i as i64)))
        }
        [Value::String(s), Value::String(t)] => Ok(Value::Int(first(s, t, 0))),
        [Value::String(s), Value::String(t), Value::Int(from)] => {
            let count = s.chars().count();
            match usize::try_from(*from) {
                Ok(from) if from <= count => Ok(Value::Int(first(s, t, from))),
                _ => Err(out_of_range(*from)),
            }
        }
        _ => Err(EvalError::no_overload()),
    }
}

fn first(s: &str, t: &str, from: usize) -> i64 {
    let start = s.char_indices().nth(from).map_or(s.len(), |(i, _)| i);
    match s[start..].find(t) {
        Some(at) => (from + s[start..start + at].chars().count()) as i64,
        None => -1,
    }
}

fn last_index_of<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::List(list), item] => {
            let at = (0..list.len()).rev().find(|i| list.get(*i).is_some_and(|v| equal(&v, item)));
            Ok(Value::Int(at.map_or(-1, |i| i as i64)))
        }
        [Value::String(s), Value::String(t)] => Ok(Value::Int(last(s, t, usize::MAX))),
        [Value::String(s), Value::String(t), Value::Int(from)] => {
            let count = s.chars().count();
            match usize::try_from(*from) {
                Ok(from) if from <= count => Ok(Value::Int(last(s, t, from))),
                _ => Err(out_of_range(*from)),
            }
        }
        _ => Err(EvalError::no_overload()),
    }
}

fn last(s: &str, t: &str, from: usize) -> i64 {
    let positions: Vec<usize> = s.char_indices().map(|(i, _)| i).chain([s.len()]).collect();
    let from = from.min(positions.len() - 1);
    (0..=from).rev().find(|i| s[positions[*i]..].starts_with(t)).map_or(-1, |i| i as i64)
}

fn replace<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::String(s), Value::String(from), Value::String(to)] => Ok(text(s.replace(&**from, to))),
        [Value::String(s), Value::String(from), Value::String(to), Value::Int(n)] => {
            Ok(text(match usize::try_from(*n) {
                Ok(n) => s.replacen(&**from, to, n),
                Err(_) => s.replace(&**from, to),
            }))
        }
        _ => Err(EvalError::no_overload()),
    }
}

fn split<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let (s, by, limit) = match a {
        [Value::String(s), Value::String(by)] => (s, by, -1),
        [Value::String(s), Value::String(by), Value::Int(n)] => (s, by, *n),
        _ => return Err(EvalError::no_overload()),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let parts: Vec<String> = match (limit, by.is_empty()) {
        (0, _) => Vec::new(),
        (_, false) => s.splitn(limit, &**by).map(String::from).collect(),
        (_, true) => {
            let mut parts: Vec<String> = s.chars().map(String::from).collect();
            if parts.len() > limit {
                let rest = parts.split_off(limit - 1).concat();
                parts.push(rest);
            }
            parts
        }
    };
    Ok(Value::list(parts.into_iter().map(text).collect()))
}

fn substring<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let (s, from, to) = match a {
        [Value::String(s), Value::Int(from)] => (s, *from, None),
        [Value::String(s), Value::Int(from), Value::Int(to)] => (s, *from, Some(*to)),
        _ => return Err(EvalError::no_overload()),
    };
    let count = s.chars().count() as i64;
    let end = to.unwrap_or(count);
    if to.is_some_and(|to| from > to) {
        return Err(EvalError::failed(format!("invalid substring range. start: {from}, end: {end}")));
    }
    if let Some(bad) = [from, end].into_iter().find(|i| *i < 0 || *i > count) {
        return Err(out_of_range(bad));
    }
    let taken: String = s.chars().skip(from as usize).take((end - from) as usize).collect();
    Ok(text(taken))
}

fn join<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let (list, separator) = match a {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(s)] => (list, &**s),
        _ => return Err(EvalError::no_overload()),
    };
    let mut out = String::new();
    for (i, item) in list.iter().enumerate() {
        let Value::String(s) = item else { return Err(EvalError::no_overload()) };
        if i > 0 {
            out.push_str(separator);
        }
        out.push_str(&s);
    }
    Ok(text(out))
}

fn find<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(s), Value::String(p)] = a else { return Err(EvalError::no_overload()) };
    Ok(text(pattern(p)?.find(s).map_or("", |m| m.as_str())))
}

fn find_all<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let (s, p, limit) = match a {
        [Value::String(s), Value::String(p)] => (s, p, -1),
        [Value::String(s), Value::String(p), Value::Int(n)] => (s, p, *n),
        _ => return Err(EvalError::no_overload()),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let found = pattern(p)?.find_iter(s).take(limit).map(|m| text(m.as_str())).collect();
    Ok(Value::list(found))
}

fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
