//! Rules as data: the checks of `data/rules.txt`, applied to every kind that has some.
//!
//! A rule looks at one field and at most at its neighbours. What needs more is code of the kind's strategy.

use std::collections::HashMap;
use std::sync::OnceLock;

use meta::{FieldError, Quantity, names};
use serde_json::{Map, Value};

use crate::resource::ResourceDef;

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Member(&'static str),
    Items,
    Values,
}

#[derive(Debug)]
struct Rule {
    path: Vec<Step>,
    name: &'static str,
    arguments: &'static str,
}

/// The rules of each group and kind.
type Rules = HashMap<(&'static str, &'static str), Vec<Rule>>;

fn rules() -> &'static Rules {
    static RULES: OnceLock<Rules> = OnceLock::new();
    RULES.get_or_init(|| parse(include_str!("../../data/rules.txt")))
}

fn parse(text: &'static str) -> Rules {
    let (mut out, mut current) = (Rules::new(), ("", ""));
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        match line.strip_prefix("  ") {
            None => {
                let (group, kind) = line.split_once('/').unwrap_or(("", line));
                current = (if group == "-" { "" } else { group }, kind);
            }
            Some(rule) => {
                let (path, rest) = rule.split_once(' ').unwrap_or((rule, ""));
                let (name, arguments) = rest.split_once(' ').unwrap_or((rest, ""));
                out.entry(current).or_default().push(Rule { path: steps(path), name, arguments });
            }
        }
    }
    out
}

fn steps(path: &'static str) -> Vec<Step> {
    let mut out = Vec::new();
    for part in path.split('.').filter(|p| !p.is_empty()) {
        let name = part.trim_end_matches("[*]").trim_end_matches("{*}");
        out.push(Step::Member(name));
        if part.ends_with("[*]") {
            out.push(Step::Items);
        } else if part.ends_with("{*}") {
            out.push(Step::Values);
        }
    }
    out
}

/// Every declared rule that an object breaks.
pub fn check(def: &ResourceDef, object: &Map<String, Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let root = Value::Object(object.clone());
    for rule in rules().get(&(&*def.group, &*def.kind)).into_iter().flatten() {
        if !matches!(rule.name, "immutable" | "forbid-change") {
            visit(&root, &rule.path, String::new(), None, rule, &mut errors);
        }
    }
    // A field that is required twice, by its type and by a rule, is missing once.
    errors.dedup();
    errors
}

/// Every declared rule that a change breaks.
pub fn check_change(
    def: &ResourceDef,
    new: &Map<String, Value>,
    old: &Map<String, Value>,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for rule in rules().get(&(&*def.group, &*def.kind)).into_iter().flatten() {
        let (now, before) = (at(new, &rule.path), at(old, &rule.path));
        if now == before {
            continue;
        }
        let path = shown(&rule.path);
        match rule.name {
            "immutable" => {
                errors.push(FieldError::invalid(path, now.unwrap_or(&Value::Null), "field is immutable"))
            }
            "forbid-change" => errors.push(FieldError::forbidden(path, rule.arguments)),
            _ => {}
        }
    }
    errors
}

fn at<'a>(object: &'a Map<String, Value>, path: &[Step]) -> Option<&'a Value> {
    let mut steps = path.iter().map(|s| match s {
        Step::Member(name) => Some(*name),
        _ => None,
    });
    let mut value = object.get(steps.next()??)?;
    for step in steps {
        value = value.get(step?)?;
    }
    Some(value).filter(|v| !is_empty(v))
}

fn shown(path: &[Step]) -> String {
    let names: Vec<&str> =
        path.iter().filter_map(|s| if let Step::Member(n) = s { Some(*n) } else { None }).collect();
    names.join(".")
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// Goes along the path and applies the rule at its end. What is absent on the way has no fields to miss.
fn visit(
    value: &Value,
    path: &[Step],
    place: String,
    owner: Option<&Value>,
    rule: &Rule,
    errors: &mut Vec<FieldError>,
) {
    let Some((step, rest)) = path.split_first() else {
        return apply(rule, value, &place, owner.unwrap_or(&Value::Null), errors);
    };
    match step {
        Step::Member(name) => {
            let place = if place.is_empty() { (*name).to_owned() } else { format!("{place}.{name}") };
            match value.get(*name) {
                Some(found) => visit(found, rest, place, Some(value), rule, errors),
                None if rest.is_empty() && value.is_object() => {
                    visit(&Value::Null, rest, place, Some(value), rule, errors);
                }
                None => {}
            }
        }
        Step::Items => {
            for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                visit(item, rest, format!("{place}[{i}]"), Some(value), rule, errors);
            }
        }
        Step::Values => {
            for (key, item) in value.as_object().into_iter().flatten() {
                visit(item, rest, format!("{place}[{key}]"), Some(value), rule, errors);
            }
        }
    }
}

fn apply(rule: &Rule, value: &Value, place: &str, owner: &Value, errors: &mut Vec<FieldError>) {
    let found = match rule.name {
        "required" => is_empty(value).then(|| FieldError::required(place, rule.arguments)),
        "exactly-one" | "at-most-one" | "some-of" | "required-one" => presence(rule, value, place),
        // The other rules are about values that are there.
        _ if value.is_null() => None,
        "min-max" => return min_max(value, place, errors),
        "unique" => return unique(value, place, rule.arguments, errors),
        _ => of_value(rule, value, place, owner),
    };
    errors.extend(found);
}

/// Rules about which of several members are there.
fn presence(rule: &Rule, value: &Value, place: &str) -> Option<FieldError> {
    let (members, text) = rule.arguments.split_once(' ').unwrap_or((rule.arguments, ""));
    if !value.is_object() {
        return None;
    }
    let there = |m: &&str| match rule.name {
        "some-of" => value.get(*m).is_some_and(|v| v.is_object() || !is_empty(v)),
        // An empty selector is a selector.
        _ => value.get(*m).is_some_and(|v| !v.is_null() && v != "" && v != 0),
    };
    let n = members.split(',').filter(there).count();
    match rule.name {
        "exactly-one" if n != 1 => Some(FieldError::invalid(place, value, text)),
        "at-most-one" if n > 1 => Some(FieldError::invalid(place, value, text)),
        "some-of" if n == 0 => Some(FieldError::invalid(place, &Value::Null, text)),
        "required-one" if n == 0 => Some(FieldError::required(place, text)),
        _ => None,
    }
}

fn unique(value: &Value, place: &str, field: &str, errors: &mut Vec<FieldError>) {
    let mut seen = Vec::new();
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        let key = &item[field];
        if seen.contains(&key) {
            errors.push(FieldError::duplicate(format!("{place}[{i}].{field}"), key));
        }
        seen.push(key);
    }
}

/// Limits of a LimitRange: the smallest may not exceed the largest.
fn min_max(value: &Value, place: &str, errors: &mut Vec<FieldError>) {
    let quantity = |v: &Value| v.as_str().and_then(|s| Quantity::parse(s).ok());
    let pairs = [
        ("min", "max"),
        ("min", "default"),
        ("min", "defaultRequest"),
        ("defaultRequest", "default"),
        ("defaultRequest", "max"),
        ("default", "max"),
    ];
    let words = |name: &str| match name {
        "defaultRequest" => "default request".to_owned(),
        other => other.to_owned(),
    };
    for (small, large) in pairs {
        for (resource, low) in value[small].as_object().into_iter().flatten() {
            let high = &value[large][resource];
            let (Some(a), Some(b)) = (quantity(low), quantity(high)) else { continue };
            if a > b {
                let why = format!(
                    "{} value {} is greater than {} value {}",
                    words(small),
                    low.as_str().unwrap_or_default(),
                    words(large),
                    high.as_str().unwrap_or_default()
                );
                errors.push(FieldError::invalid(format!("{place}.{small}[{resource}]"), low, &why));
            }
        }
    }
}

/// Rules about one value that is there.
fn of_value(rule: &Rule, value: &Value, place: &str, owner: &Value) -> Option<FieldError> {
    let invalid = |why: &str| Some(FieldError::invalid(place, value, why));
    let problem = |why: Option<String>| why.and_then(|w| invalid(&w));
    let number = value.as_i64();
    let text = value.as_str().unwrap_or_default();
    let limit = || rule.arguments.parse::<i64>().unwrap_or(0);
    let length = || value.as_array().map_or(0, Vec::len) as i64;
    match rule.name {
        "enum" if !text.is_empty() => {
            let allowed: Vec<&str> = rule.arguments.split(',').collect();
            (!allowed.contains(&text)).then(|| FieldError::not_supported(place, value, &allowed))
        }
        "enum-or-qualified" if !text.is_empty() => {
            let standard = rule.arguments.split(',').any(|a| a == text);
            match names::qualified_name_problem(text) {
                _ if standard => None,
                Some(why) => invalid(&why),
                None if text.contains('/') => None,
                None => invalid("must be a standard limit type or fully qualified"),
            }
        }
        "positive" if number.is_some_and(|n| n <= 0) => invalid("must be greater than 0"),
        "not-negative" if number.is_some_and(|n| n < 0) => invalid("must be greater than or equal to 0"),
        "at-least" if number.is_some_and(|n| n < limit()) => {
            invalid(&format!("must be greater than or equal to {}", limit()))
        }
        "between" => {
            let (low, high) = rule.arguments.split_once(' ').unwrap_or(("0", "0"));
            let (low, high) = (low.parse().unwrap_or(0), high.parse().unwrap_or(0));
            let outside = number.is_some_and(|n| n < low || n > high);
            outside.then(|| {
                FieldError::invalid(place, value, &format!("must be between {low} and {high}, inclusive"))
            })
        }
        "not-below" => {
            let (own, other) = (number?, owner.get(rule.arguments)?.as_i64()?);
            let why = format!("must be greater than or equal to `{}`", rule.arguments);
            (own < other).then(|| FieldError::invalid(place, value, &why))
        }
        "max-items" if length() > limit() => {
            let message = format!("Too many: {}: must have at most {} items", length(), limit());
            Some(FieldError { reason: "FieldValueTooMany", field: place.to_owned(), message })
        }
        "max-length" if text.len() as i64 > limit() => Some(FieldError::too_long(place, limit() as usize)),
        "port" if number.is_some_and(|n| !(1..=65_535).contains(&n)) => {
            invalid("must be between 1 and 65535, inclusive")
        }
        "port-name" if !text.is_empty() => problem(names::port_name_problem(text).map(String::from)),
        "port-or-name" => match number {
            Some(n) if !(1..=65_535).contains(&n) => invalid("must be between 1 and 65535, inclusive"),
            Some(_) => None,
            None => problem(names::port_name_problem(text).map(String::from)),
        },
        "count-or-percent" => count_or_percent(value).and_then(invalid),
        "quantity-positive" | "quantity-not-negative" => {
            let quantity = Quantity::parse(text).ok()?;
            let zero = Quantity::parse("0").ok()?;
            match rule.name {
                "quantity-positive" if quantity <= zero => invalid("must be greater than zero"),
                "quantity-not-negative" if quantity < zero => invalid("must be greater than or equal to 0"),
                _ => None,
            }
        }
        _ if text.is_empty() => None,
        "label" => problem(names::label_problem(text)),
        "subdomain" => problem(names::subdomain_problem(text)),
        "qualified" => problem(names::qualified_name_problem(&text.to_lowercase())),
        "host" => host_problem(text).and_then(|w| invalid(&w)),
        "absolute-path" if !text.starts_with('/') && owner["pathType"] != "ImplementationSpecific" => {
            invalid("must be an absolute path")
        }
        "prefixed-path" => problem(names::domain_prefixed_path_problem(text)),
        "cidr" if !is_cidr(text) => {
            invalid("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
        }
        _ => None,
    }
}

fn host_problem(host: &str) -> Option<String> {
    if host.parse::<std::net::IpAddr>().is_ok() {
        return Some("must be a DNS name, not an IP address".into());
    }
    match host.strip_prefix("*.") {
        Some(rest) => names::subdomain_problem(rest),
        None => names::subdomain_problem(host),
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let Ok(address) = address.parse::<std::net::IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    bits.parse::<u8>().is_ok_and(|b| b <= most)
}

fn count_or_percent(value: &Value) -> Option<&'static str> {
    match value {
        Value::Number(n) => (n.as_i64()? < 0).then_some("must be greater than or equal to 0"),
        Value::String(s) => {
            let digits =
                s.strip_suffix('%').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
            let percent = digits.map(|d| d.parse::<u32>().unwrap_or(u32::MAX));
            match percent {
                None => Some(
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                ),
                Some(p) if p > 100 => Some("must not be greater than 100%"),
                Some(_) => None,
            }
        }
        _ => None,
    }
}
