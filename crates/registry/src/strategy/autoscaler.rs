//! What an autoscaler may go by and how it may behave, in the words of upstream's validation.

use meta::{FieldError, Quantity, names};
use serde_json::Value;

/// Types of metrics with the member that tells about each, in the order in which they are looked at.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];
/// Longest look back, and longest period of a policy, in seconds (upstream's).
const WINDOW_MAX: i64 = 3600;
const PERIOD_MAX: i64 = 1800;

/// Everything that is wrong with a spec, beside the declared rules.
pub fn check(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    segments(&spec["scaleTargetRef"], "spec.scaleTargetRef", &mut errors);
    for (i, metric) in spec["metrics"].as_array().into_iter().flatten().enumerate() {
        source(metric, &format!("spec.metrics[{i}]"), &mut errors);
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = &spec["behavior"][direction];
        if !rules.is_null() {
            behavior(rules, &format!("spec.behavior.{direction}"), &mut errors);
        }
    }
    errors
}

/// Kind and name as parts of a URL; that they are there is a declared rule.
fn segments(reference: &Value, at: &str, errors: &mut Vec<FieldError>) {
    for key in ["kind", "name"] {
        let text = reference[key].as_str().unwrap_or_default();
        if let Some(why) = names::path_segment_problem(text).filter(|_| !text.is_empty()) {
            errors.push(FieldError::invalid(format!("{at}.{key}"), &text.into(), &why));
        }
    }
}

fn source(metric: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let ty = metric["type"].as_str().unwrap_or_default();
    let expected = SOURCES.iter().find(|(t, _)| *t == ty).map(|(_, member)| *member);
    if let Some(member) = expected.filter(|m| metric[*m].is_null()) {
        let why = "must populate information for the given metric source";
        errors.push(FieldError::required(format!("{at}.{member}"), why));
    }
    let present = SOURCES.iter().map(|(_, member)| *member).filter(|m| !metric[*m].is_null());
    for (i, member) in present.enumerate() {
        let (there, at) = (&metric[member], format!("{at}.{member}"));
        if expected.is_some_and(|e| e != member) {
            errors.push(FieldError::forbidden(&*at, "must populate the given metric source only"));
        }
        // Of several only the first is looked into.
        match member {
            _ if i > 0 => {}
            "resource" | "containerResource" => resource(there, member, &at, errors),
            _ => measured(there, member, &at, errors),
        }
    }
}

fn resource(value: &Value, member: &str, at: &str, errors: &mut Vec<FieldError>) {
    let missing = |key: &str| value[key].as_str().unwrap_or_default().is_empty();
    if member == "containerResource" {
        if missing("name") {
            errors.push(FieldError::required(format!("{at}.name"), "must specify a resource name"));
        }
        if missing("container") {
            errors.push(FieldError::required(format!("{at}.container"), "must specify a container"));
        }
    }
    let at = format!("{at}.target");
    let wanted = &value["target"];
    target(wanted, &at, errors);
    match (wanted["averageUtilization"].is_null(), wanted["averageValue"].is_null()) {
        (true, true) => {
            let why = "must set either a target raw value or a target utilization";
            errors.push(FieldError::required(format!("{at}.averageUtilization"), why));
        }
        (false, false) => {
            let why = "may not set both a target raw value and a target utilization";
            errors.push(FieldError::forbidden(format!("{at}.averageValue"), why));
        }
        _ => {}
    }
}

/// Metrics with a name: of pods, of an object, from outside.
fn measured(value: &Value, member: &str, at: &str, errors: &mut Vec<FieldError>) {
    if member == "object" {
        let (described, at) = (&value["describedObject"], format!("{at}.describedObject"));
        for key in ["kind", "name"] {
            if described[key].as_str().unwrap_or_default().is_empty() {
                errors.push(FieldError::required(format!("{at}.{key}"), ""));
            }
        }
        segments(described, &at, errors);
    }
    let (name, at_name) = (value["metric"]["name"].as_str().unwrap_or_default(), format!("{at}.metric.name"));
    match names::path_segment_problem(name) {
        _ if name.is_empty() => errors.push(FieldError::required(at_name, "must specify a metric name")),
        Some(why) => errors.push(FieldError::invalid(at_name, &name.into(), &why)),
        None => {}
    }
    let (wanted, at) = (&value["target"], format!("{at}.target"));
    target(wanted, &at, errors);
    let (whole, average) = (!wanted["value"].is_null(), &wanted["averageValue"]);
    let why = match member {
        "pods" if !is_positive(average) => "must specify a positive target averageValue",
        "object" if !whole && average.is_null() => "must set either a target value or averageValue",
        "external" if !whole && average.is_null() => {
            "must set either a target value for metric or a per-pod target"
        }
        "external" if whole && !average.is_null() => {
            let why = "may not set both a target value for metric and a per-pod target";
            return errors.push(FieldError::forbidden(format!("{at}.value"), why));
        }
        _ => return,
    };
    errors.push(FieldError::required(format!("{at}.averageValue"), why));
}

fn quantity(value: &Value) -> Option<Quantity> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Quantity::parse(&text).ok()
}

fn is_positive(value: &Value) -> bool {
    quantity(value).zip(Quantity::parse("0").ok()).is_some_and(|(q, zero)| q > zero)
}

fn target(value: &Value, at: &str, errors: &mut Vec<FieldError>) {
    match value["type"].as_str().unwrap_or_default() {
        "Utilization" | "Value" | "AverageValue" => {}
        "" => errors.push(FieldError::required(format!("{at}.type"), "must specify a metric target type")),
        _ => {
            let why = "must be either Utilization, Value, or AverageValue";
            errors.push(FieldError::invalid(format!("{at}.type"), &value["type"], why));
        }
    }
    for key in ["value", "averageValue"] {
        if !value[key].is_null() && !is_positive(&value[key]) {
            errors.push(FieldError::invalid(format!("{at}.{key}"), &value[key], "must be positive"));
        }
    }
    if value["averageUtilization"].as_i64().is_some_and(|n| n < 1) {
        let why = "must be greater than 0";
        errors.push(FieldError::invalid(
            format!("{at}.averageUtilization"),
            &value["averageUtilization"],
            why,
        ));
    }
}

fn behavior(rules: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let (window, at_window) =
        (&rules["stabilizationWindowSeconds"], format!("{at}.stabilizationWindowSeconds"));
    match window.as_i64() {
        Some(n) if n < 0 => {
            errors.push(FieldError::invalid(at_window, window, "must be greater than or equal to zero"));
        }
        Some(n) if n > WINDOW_MAX => {
            let why = format!("must be less than or equal to {WINDOW_MAX}");
            errors.push(FieldError::invalid(at_window, window, &why));
        }
        _ => {}
    }
    let tolerance = &rules["tolerance"];
    if quantity(tolerance).zip(Quantity::parse("0").ok()).is_some_and(|(q, zero)| q < zero) {
        let why = "must be greater or equal to zero";
        errors.push(FieldError::invalid(format!("{at}.tolerance"), tolerance, why));
    }
    let policies = rules["policies"].as_array().map_or(&[][..], Vec::as_slice);
    if policies.is_empty() {
        errors.push(FieldError::required(format!("{at}.policies"), "must specify at least one Policy"));
    }
    for (i, policy) in policies.iter().enumerate() {
        let at = format!("{at}.policies[{i}]");
        for key in ["value", "periodSeconds"] {
            if policy[key].as_i64().unwrap_or(0) <= 0 {
                let why = "must be greater than zero";
                errors.push(FieldError::invalid(format!("{at}.{key}"), &policy[key], why));
            }
        }
        if policy["periodSeconds"].as_i64().is_some_and(|n| n > PERIOD_MAX) {
            let why = format!("must be less than or equal to {PERIOD_MAX}");
            errors.push(FieldError::invalid(format!("{at}.periodSeconds"), &policy["periodSeconds"], &why));
        }
    }
}
