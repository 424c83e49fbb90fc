//! Parts of timestamps and durations.

use jiff::Zoned;

use crate::error::EvalError;
use crate::eval::Outcome;
use crate::library::Impl;
use crate::time::{SECOND, zone};
use crate::value::Value;

pub(super) const TABLE: &[(&str, Impl)] = &[
    ("getFullYear", |a| part(a, |z| i64::from(z.year()), None)),
    ("getMonth", |a| part(a, |z| i64::from(z.month()) - 1, None)),
    ("getDayOfYear", |a| part(a, |z| i64::from(z.day_of_year()) - 1, None)),
    ("getDayOfMonth", |a| part(a, |z| i64::from(z.day()) - 1, None)),
    ("getDate", |a| part(a, |z| i64::from(z.day()), None)),
    ("getDayOfWeek", |a| part(a, |z| i64::from(z.weekday().to_sunday_zero_offset()), None)),
    ("getHours", |a| part(a, |z| i64::from(z.hour()), Some(3600 * SECOND))),
    ("getMinutes", |a| part(a, |z| i64::from(z.minute()), Some(60 * SECOND))),
    ("getSeconds", |a| part(a, |z| i64::from(z.second()), Some(SECOND))),
    ("getMilliseconds", milliseconds),
];

/// A part of a time in a zone (UTC unless named), or a duration in a unit.
fn part<'a>(a: &[Value<'a>], get: fn(&Zoned) -> i64, unit: Option<i64>) -> Outcome<'a> {
    match (a, unit) {
        ([Value::Timestamp(t)], _) => Ok(Value::Int(get(&t.to_zoned(jiff::tz::TimeZone::UTC)))),
        ([Value::Timestamp(t), Value::String(name)], _) => match zone(name) {
            Some(zone) => Ok(Value::Int(get(&t.to_zoned(zone)))),
            None => Err(EvalError::failed(format!("unknown time zone {}", &**name))),
        },
        ([Value::Duration(n)], Some(unit)) => Ok(Value::Int(n / unit)),
        _ => Err(EvalError::no_overload()),
    }
}

/// Milliseconds within the second of a time; of a duration, within its last second too.
fn milliseconds<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    match a {
        [Value::Duration(n)] => Ok(Value::Int(n / 1_000_000)),
        _ => part(a, |z| i64::from(z.millisecond()), None),
    }
}
