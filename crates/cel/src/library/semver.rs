//! Semantic versions.

use std::cmp::Ordering;
use std::rc::Rc;

use crate::error::EvalError;
use crate::eval::Outcome;
use crate::library::{Impl, Opaque};
use crate::value::Value;

/// A version.
#[derive(Debug, Clone)]
pub struct Semver {
    major: u64,
    minor: u64,
    patch: u64,
    pre: Vec<Identifier>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Identifier {
    Number(u64),
    Text(String),
}

pub(super) const TABLE: &[(&str, Impl)] = &[
    ("semver", |a| Ok(Value::Opaque(Opaque::Semver(Rc::new(parse(a)?.map_err(EvalError::failed)?))))),
    ("isSemver", |a| Ok(Value::Bool(parse(a)?.is_ok()))),
    ("major", |a| part(a, |v| v.major)),
    ("minor", |a| part(a, |v| v.minor)),
    ("patch", |a| part(a, |v| v.patch)),
];

fn part<'a>(a: &[Value<'a>], f: fn(&Semver) -> u64) -> Outcome<'a> {
    match a {
        [Value::Opaque(Opaque::Semver(v))] => Ok(Value::Int(f(v) as i64)),
        _ => Err(EvalError::no_overload()),
    }
}

fn parse(a: &[Value<'_>]) -> Result<Result<Semver, String>, EvalError> {
    match a {
        [Value::String(s)] | [Value::String(s), Value::Bool(false)] => Ok(Semver::parse(s)),
        [Value::String(s), Value::Bool(true)] => Ok(normalized(s).and_then(|s| Semver::parse(&s))),
        _ => Err(EvalError::no_overload()),
    }
}

/// Without a `v`, with all three numbers and no zeros before them.
fn normalized(s: &str) -> Result<String, String> {
    let mut parts: Vec<String> = s.strip_prefix('v').unwrap_or(s).splitn(3, '.').map(String::from).collect();
    for part in parts.iter_mut().filter(|p| p.len() > 1) {
        let trimmed = part.trim_start_matches('0');
        *part = if trimmed.starts_with(|c: char| c.is_ascii_digit()) {
            trimmed.to_owned()
        } else {
            format!("0{trimmed}")
        };
    }
    if parts.len() < 3 && parts.last().is_some_and(|p| p.contains(['+', '-'])) {
        return Err("short version cannot contain PreRelease/Build meta data".into());
    }
    parts.resize(3, "0".into());
    Ok(parts.join("."))
}

impl Semver {
    pub(crate) fn parse(s: &str) -> Result<Semver, String> {
        if s.is_empty() {
            return Err("Version string empty".into());
        }
        let mut parts = s.splitn(3, '.');
        let (Some(major), Some(minor), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("No Major.Minor.Patch elements found".into());
        };
        let (rest, build) = match rest.split_once('+') {
            Some((rest, build)) => (rest, Some(build)),
            None => (rest, None),
        };
        let (patch, pre) = match rest.split_once('-') {
            Some((patch, pre)) => (patch, Some(pre)),
            None => (rest, None),
        };
        let number = |what: &str, s: &str| -> Result<u64, String> {
            if s.is_empty() || !s.bytes().all(|b| b.is_ascii_digit()) {
                return Err(format!("Invalid character(s) found in {what} number {s:?}"));
            }
            if s.len() > 1 && s.starts_with('0') {
                return Err(format!("{what} number must not contain leading zeroes {s:?}"));
            }
            s.parse().map_err(|_| format!("{what} number {s:?} is out of range"))
        };
        let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let mut identifiers = Vec::new();
        for part in pre.into_iter().flat_map(|p| p.split('.')) {
            identifiers.push(if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
                Identifier::Number(number("Numeric PreRelease version", part)?)
            } else if word(part) {
                Identifier::Text(part.into())
            } else {
                return Err(format!("Invalid character(s) found in prerelease {part:?}"));
            });
        }
        if build.is_some_and(|b| b.split('.').any(|p| !word(p))) {
            return Err("Invalid character(s) found in build meta data".into());
        }
        Ok(Semver {
            major: number("major", major)?,
            minor: number("minor", minor)?,
            patch: number("patch", patch)?,
            pre: identifiers,
        })
    }

    /// Precedence; build data does not count, and a pre-release comes before its release.
    pub(crate) fn cmp(&self, other: &Semver) -> Ordering {
        let numbers = |v: &Semver| (v.major, v.minor, v.patch);
        numbers(self).cmp(&numbers(other)).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => self.pre.cmp(&other.pre),
        })
    }
}
