//! What an evaluation costs while it runs, in upstream's units: about 50 ns of work each.

use crate::error::EvalError;
use crate::library::Opaque;
use crate::value::{Map, Value};

/// Cost of looking at one character.
pub(crate) const TRAVERSAL: f64 = 0.1;
/// Cost of one character of a regular expression.
pub(crate) const REGEX: f64 = 0.25;
/// Cost of making a list, a map, a struct.
pub(crate) const LIST: u64 = 10;
pub(crate) const MAP: u64 = 30;
pub(crate) const STRUCT: u64 = 40;
/// Cost of one authorization check: an expression may make two.
pub(crate) const AUTHORIZATION: u64 = 350_000;

/// Counts the cost of an evaluation against its budget.
#[derive(Debug, Clone)]
pub struct Meter {
    used: u64,
    limit: u64,
}

impl Meter {
    /// A meter with a budget.
    pub fn new(limit: u64) -> Meter {
        Meter { used: 0, limit }
    }
    /// What was used up.
    pub fn used(&self) -> u64 {
        self.used
    }
    /// Uses up some.
    pub fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        self.used = self.used.saturating_add(cost);
        if self.used > self.limit { Err(EvalError::CostExceeded) } else { Ok(()) }
    }
}

/// `n * factor`, rounded up.
pub(crate) fn factor(n: u64, factor: f64) -> u64 {
    (n as f64 * factor).ceil() as u64
}

/// The cost of a call, without that of its arguments.
pub(crate) fn call(function: &str, overload: &str, args: &[Value<'_>], result: Option<&Value<'_>>) -> u64 {
    let size = |i: usize| args.get(i).map_or(0, Value::size);
    match function {
        "check" => AUTHORIZATION,
        "serviceAccount"
        | "path"
        | "group"
        | "resource"
        | "subresource"
        | "namespace"
        | "name"
        | "allowed"
        | "reason"
        | "error"
        | "errored"
        | "format.named"
        | "sign"
        | "asInteger"
        | "isInteger"
        | "asApproximateFloat"
        | "isGreaterThan"
        | "isLessThan"
        | "compareTo"
        | "add"
        | "sub"
        | "major"
        | "minor"
        | "patch"
        | "getScheme"
        | "getHostname"
        | "getHost"
        | "getPort"
        | "getEscapedPath"
        | "getQuery"
        | "masked"
        | "prefixLength"
        | "family"
        | "isUnspecified"
        | "isLoopback"
        | "isLinkLocalMulticast"
        | "isLinkLocalUnicast"
        | "isGlobalUnicast" => 1,
        "fieldSelector" | "labelSelector" => {
            let requirements = factor(size(1), 0.5);
            LIST + factor(size(1), TRAVERSAL) + requirements * (LIST + STRUCT)
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes" => {
            args.first().map_or(0, traversal)
        }
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver" => factor(size(0), TRAVERSAL),
        "ip" if overload == "cidr_ip" => 1,
        "ip" => factor(size(0), TRAVERSAL),
        "replace" | "split" | "ip.isCanonical" => factor(size(0), 2.0 * TRAVERSAL),
        "join" => factor(result.map_or(0, Value::size), 2.0 * TRAVERSAL),
        "find" | "findAll" => regex(size(0), size(1)),
        "containsIP" => {
            let parse = if overload == "cidr_contains_ip_string" { factor(size(1), TRAVERSAL) } else { 0 };
            factor(2 * size(0), TRAVERSAL) + parse
        }
        "containsCIDR" => {
            let parse = if overload == "cidr_contains_cidr_string" { factor(size(1), TRAVERSAL) } else { 0 };
            factor(2 * size(0), TRAVERSAL) + factor(size(0), TRAVERSAL) + 1 + parse
        }
        "validate" => match args.first() {
            Some(Value::Opaque(Opaque::Format(format))) => regex(size(1), format.regex_size()),
            _ => 1,
        },
        "sets.contains" | "sets.intersects" => size(0).saturating_mul(size(1)).max(1),
        "sets.equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2).max(1),
        "lists.range" | "distinct" | "sort" | "@sortByAssociatedKeys" | "reverse" | "slice" | "flatten" => {
            result.map_or(1, |r| r.size().max(1))
        }
        _ => standard(overload, args),
    }
}

fn regex(text: u64, pattern: u64) -> u64 {
    factor(text + 1, TRAVERSAL).saturating_mul(factor(pattern, REGEX))
}

/// Functions of the language itself; what is not named takes constant time.
fn standard(overload: &str, args: &[Value<'_>]) -> u64 {
    let size = |i: usize| args.get(i).map_or(0, Value::size);
    match overload {
        "starts_with_string" | "ends_with_string" | "string_to_bytes" | "bytes_to_string"
        | "strings_quote" | "string_format" => factor(size(0), TRAVERSAL),
        "in_list" => size(1),
        "equals" | "not_equals" if matches!(args.first(), Some(Value::Opaque(_))) => 1,
        "less_string"
        | "greater_string"
        | "less_equals_string"
        | "greater_equals_string"
        | "less_bytes"
        | "greater_bytes"
        | "less_equals_bytes"
        | "greater_equals_bytes"
        | "equals"
        | "not_equals" => factor(size(0).min(size(1)), TRAVERSAL),
        "add_string" | "add_bytes" => factor(size(0) + size(1), TRAVERSAL),
        "matches_string" | "matches" => regex(size(0), size(1)),
        "contains_string" => factor(size(0), TRAVERSAL).saturating_mul(factor(size(1), TRAVERSAL)),
        _ => 1,
    }
}

/// The cost of looking at everything in a value.
fn traversal(value: &Value<'_>) -> u64 {
    match value {
        Value::String(s) => (s.len() as f64 * TRAVERSAL) as u64,
        Value::Bytes(b) => (b.len() as f64 * TRAVERSAL) as u64,
        Value::List(list) => list.iter().map(|v| traversal(&v)).sum(),
        Value::Map(Map::Struct(..)) => 1,
        Value::Map(map) => map.iter().map(|(k, v)| traversal(&k) + traversal(&v)).sum(),
        _ => 1,
    }
}
