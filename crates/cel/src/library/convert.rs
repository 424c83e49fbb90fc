//! Conversions between types.

use crate::error::EvalError;
use crate::eval::Outcome;
use crate::library::{Impl, Opaque, quoted, text};
use crate::time;
use crate::value::Value;

pub(super) const TABLE: &[(&str, Impl)] = &[
    ("bool", to_bool),
    ("bytes", to_bytes),
    ("double", to_double),
    ("duration", to_duration),
    ("int", to_int),
    ("string", to_string),
    ("timestamp", to_timestamp),
    ("uint", to_uint),
];

fn to_bool<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::Bool(b)] => Ok(Value::Bool(*b)),
        [Value::String(s)] => match &**s {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            s => Err(EvalError::failed(format!("strconv.ParseBool: parsing {}: invalid syntax", quoted(s)))),
        },
        _ => Err(EvalError::no_overload()),
    }
}

fn to_bytes<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [v @ Value::Bytes(_)] => Ok(v.clone()),
        [Value::String(s)] => Ok(Value::Bytes(s.as_bytes().into())),
        _ => Err(EvalError::no_overload()),
    }
}

fn to_double<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::Double(d)] => Ok(Value::Double(*d)),
        [Value::Int(n)] => Ok(Value::Double(*n as f64)),
        [Value::Uint(n)] => Ok(Value::Double(*n as f64)),
        [Value::String(s)] => s.parse().map(Value::Double).map_err(|_| {
            EvalError::failed(format!("strconv.ParseFloat: parsing {}: invalid syntax", quoted(s)))
        }),
        _ => Err(EvalError::no_overload()),
    }
}

fn to_duration<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [v @ Value::Duration(_)] => Ok(v.clone()),
        [Value::String(s)] => time::parse_duration(s)
            .map(Value::Duration)
            .ok_or_else(|| EvalError::failed(format!("time: invalid duration {}", quoted(s)))),
        _ => Err(EvalError::no_overload()),
    }
}

fn range_error() -> EvalError {
    EvalError::failed("integer overflow")
}

fn number_error(function: &str, s: &str) -> EvalError {
    let digits = s.trim_start_matches(['+', '-']);
    let whole = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let why = if whole { "value out of range" } else { "invalid syntax" };
    EvalError::failed(format!("strconv.{function}: parsing {}: {why}", quoted(s)))
}

fn to_int<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::Int(n)] => Ok(Value::Int(*n)),
        [Value::Uint(n)] => i64::try_from(*n).map(Value::Int).map_err(|_| range_error()),
        [Value::Double(d)] if d.is_finite() && *d > -9.3e18 && *d < 9.3e18 => {
            let whole = d.trunc() as i128;
            i64::try_from(whole).map(Value::Int).map_err(|_| range_error())
        }
        [Value::Double(_)] => Err(range_error()),
        [Value::Duration(n)] => Ok(Value::Int(*n)),
        [Value::Timestamp(t)] => Ok(Value::Int(t.as_second())),
        [Value::String(s)] => s.parse().map(Value::Int).map_err(|_| number_error("ParseInt", s)),
        _ => Err(EvalError::no_overload()),
    }
}

fn to_uint<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let overflow = || EvalError::failed("unsigned integer overflow");
    match a {
        [Value::Uint(n)] => Ok(Value::Uint(*n)),
        [Value::Int(n)] => u64::try_from(*n).map(Value::Uint).map_err(|_| overflow()),
        [Value::Double(d)] if *d >= 0.0 && *d < 18_446_744_073_709_551_615.0 => Ok(Value::Uint(*d as u64)),
        [Value::Double(_)] => Err(overflow()),
        [Value::String(s)] => s.parse().map(Value::Uint).map_err(|_| number_error("ParseUint", s)),
        _ => Err(EvalError::no_overload()),
    }
}

fn to_string<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    Ok(match a {
        [v @ Value::String(_)] => v.clone(),
        [Value::Bool(b)] => text(b.to_string()),
        [Value::Int(n)] => text(n.to_string()),
        [Value::Uint(n)] => text(n.to_string()),
        [Value::Double(d)] => text(go_float(*d)),
        [Value::Bytes(b)] => match std::str::from_utf8(b) {
            Ok(s) => text(s),
            Err(_) => {
                return Err(EvalError::failed("invalid UTF-8 in bytes, cannot convert to string"));
            }
        },
        [Value::Timestamp(t)] => text(time::show_timestamp(*t)),
        [Value::Duration(d)] => text(time::show_duration(*d)),
        [Value::Opaque(Opaque::Ip(ip))] => text(ip.to_string()),
        [Value::Opaque(Opaque::Cidr(cidr))] => text(cidr.to_string()),
        _ => return Err(EvalError::no_overload()),
    })
}

fn to_timestamp<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [v @ Value::Timestamp(_)] => Ok(v.clone()),
        [Value::Int(n)] => jiff::Timestamp::from_second(*n)
            .map(Value::Timestamp)
            .map_err(|_| EvalError::failed("timestamp overflow")),
        [Value::String(s)] => time::parse_timestamp(s).map(Value::Timestamp).ok_or_else(|| {
            let s = quoted(s);
            EvalError::failed(format!(
                "parsing time {s} as \"2006-01-02T15:04:05Z07:00\": cannot parse {s} as \"2006\""
            ))
        }),
        _ => Err(EvalError::no_overload()),
    }
}

/// A double as Go's `%g` with the fewest digits that read back.
pub(crate) fn go_float(d: f64) -> String {
    if d.is_nan() {
        return "NaN".into();
    }
    if d.is_infinite() {
        return if d > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let scientific = format!("{d:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..21).contains(&exponent) {
        return d.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}
