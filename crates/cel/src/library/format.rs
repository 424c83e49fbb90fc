//! `'...'.format([...])`.

use std::fmt::Write;

use crate::error::EvalError;
use crate::eval::Outcome;
use crate::library::convert::go_float;
use crate::library::{Impl, text};
use crate::time;
use crate::value::Value;

pub(super) const TABLE: &[(&str, Impl)] = &[("format", format)];

/// Most digits behind the point.
const PRECISION_MAX: usize = 200;

fn format<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(template), Value::List(args)] = a else { return Err(EvalError::no_overload()) };
    let mut out = String::new();
    let (mut rest, mut used) = (&**template, 0);
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let mut precision = None;
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            let digits = after[..end].parse().unwrap_or(usize::MAX);
            if digits > PRECISION_MAX {
                return Err(EvalError::failed("error during formatting: precision is out of range"));
            }
            precision = Some(digits);
            rest = &after[end..];
        }
        let Some(verb) = rest.chars().next() else {
            return Err(EvalError::failed("could not parse formatting clause: unexpected end of string"));
        };
        rest = &rest[verb.len_utf8()..];
        let Some(value) = args.get(used) else {
            return Err(EvalError::failed(format!("index {used} out of range")));
        };
        used += 1;
        clause(&mut out, verb, precision, &value)?;
    }
    out.push_str(rest);
    Ok(text(out))
}

fn clause(
    out: &mut String,
    verb: char,
    precision: Option<usize>,
    value: &Value<'_>,
) -> Result<(), EvalError> {
    let wrong = |wanted: &str| {
        EvalError::failed(format!(
            "error during formatting: {wanted} clause cannot be used on {}",
            value.type_name()
        ))
    };
    // Writing to a String cannot fail.
    let _ = match (verb, value) {
        ('s', value) => {
            show(out, value)?;
            Ok(())
        }
        ('d', Value::Int(n)) => write!(out, "{n}"),
        ('d', Value::Uint(n)) => write!(out, "{n}"),
        ('d', Value::Double(d)) if !d.is_finite() => write!(out, "{}", go_float(*d)),
        ('d', _) => return Err(wrong("integer")),
        ('f', Value::Double(d)) => write!(out, "{:.*}", precision.unwrap_or(6), d),
        ('f', Value::Int(n)) => write!(out, "{:.*}", precision.unwrap_or(6), *n as f64),
        ('f', Value::Uint(n)) => write!(out, "{:.*}", precision.unwrap_or(6), *n as f64),
        ('f', _) => return Err(wrong("fixed-point")),
        ('e', Value::Double(d)) => write!(out, "{}", scientific(*d, precision.unwrap_or(6))),
        ('e', _) => return Err(wrong("scientific")),
        ('b', Value::Int(n)) => write!(out, "{}{:b}", sign(*n), n.unsigned_abs()),
        ('b', Value::Uint(n)) => write!(out, "{n:b}"),
        ('b', Value::Bool(b)) => write!(out, "{}", u8::from(*b)),
        ('b', _) => return Err(wrong("binary")),
        ('o', Value::Int(n)) => write!(out, "{}{:o}", sign(*n), n.unsigned_abs()),
        ('o', Value::Uint(n)) => write!(out, "{n:o}"),
        ('o', _) => return Err(wrong("octal")),
        ('x' | 'X', value) => {
            let hex = match value {
                Value::Int(n) => format!("{}{:x}", sign(*n), n.unsigned_abs()),
                Value::Uint(n) => format!("{n:x}"),
                Value::String(s) => s.bytes().map(|b| format!("{b:02x}")).collect(),
                Value::Bytes(b) => b.iter().map(|b| format!("{b:02x}")).collect(),
                _ => return Err(wrong("hex")),
            };
            out.push_str(&if verb == 'X' { hex.to_uppercase() } else { hex });
            Ok(())
        }
        (other, _) => {
            return Err(EvalError::failed(format!(
                "could not parse formatting clause: unrecognized formatting clause \"{other}\""
            )));
        }
    };
    Ok(())
}

fn sign(n: i64) -> &'static str {
    if n < 0 { "-" } else { "" }
}

fn scientific(d: f64, precision: usize) -> String {
    let shown = format!("{d:.precision$e}");
    match shown.split_once('e') {
        Some((mantissa, exponent)) => {
            let exponent: i32 = exponent.parse().unwrap_or(0);
            format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        None => go_float(d),
    }
}

/// A value as `%s` shows it.
fn show(out: &mut String, value: &Value<'_>) -> Result<(), EvalError> {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Int(n) => out.push_str(&n.to_string()),
        Value::Uint(n) => out.push_str(&n.to_string()),
        Value::Double(d) => out.push_str(&go_float(*d)),
        Value::String(s) => out.push_str(s),
        Value::Bytes(b) => out.push_str(&String::from_utf8_lossy(b)),
        Value::Timestamp(t) => out.push_str(&time::show_timestamp(*t)),
        Value::Duration(d) => out.push_str(&time::show_duration(*d)),
        Value::Type(name) => out.push_str(name),
        Value::List(list) => {
            out.push('[');
            for (i, item) in list.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                show(out, &item)?;
            }
            out.push(']');
        }
        Value::Map(map) => {
            let mut entries = Vec::new();
            for (key, value) in map.iter() {
                let mut entry = String::new();
                show(&mut entry, &key)?;
                entry.push_str(": ");
                show(&mut entry, &value)?;
                entries.push(entry);
            }
            entries.sort();
            let _ = write!(out, "{{{}}}", entries.join(", "));
        }
        other => {
            let why = "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps";
            let kind = other.type_name();
            return Err(EvalError::failed(format!("error during formatting: {why}, was given {kind}")));
        }
    }
    Ok(())
}
