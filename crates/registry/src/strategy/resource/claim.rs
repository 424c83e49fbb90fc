//! What a claim may ask for.

use meta::{FieldError, names};
use serde_json::Value;

use super::fields::{self, list, text};

/// Most alternatives of a request.
const ALTERNATIVES_MAX: usize = 8;

/// What is left open has the usual meaning: one device, an equal value.
pub(super) fn default(devices: &mut Value) {
    let Some(requests) = devices.get_mut("requests").and_then(Value::as_array_mut) else { return };
    for request in requests {
        if let Some(exact) = request.get_mut("exactly") {
            default_request(exact);
        } else if request["deviceClassName"].is_string() {
            // The first beta has what is asked for in the request itself.
            default_request(request);
        }
        for sub in request.get_mut("firstAvailable").and_then(Value::as_array_mut).into_iter().flatten() {
            default_request(sub);
        }
    }
}

fn default_request(request: &mut Value) {
    let Some(request) = request.as_object_mut() else { return };
    super::super::set_default(request, "allocationMode", "ExactCount");
    let exact = request.get("allocationMode").is_some_and(|mode| mode == "ExactCount");
    if exact && request.get("count").is_none_or(|count| count.is_null() || *count == 0) {
        request.insert("count".into(), 1.into());
    }
    for toleration in request.get_mut("tolerations").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(toleration) = toleration.as_object_mut() {
            super::super::set_default(toleration, "operator", "Equal");
        }
    }
}

/// Every rule that what is asked for breaks, beside the declared ones.
pub(super) fn check(devices: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, request) in list(&devices["requests"]).iter().enumerate() {
        errors.extend(check_request(request, &format!("{at}.requests[{i}]")));
    }
    let names = request_names(devices);
    for (i, constraint) in list(&devices["constraints"]).iter().enumerate() {
        let at = format!("{at}.constraints[{i}]");
        errors.extend(references(&constraint["requests"], &format!("{at}.requests"), &names));
        let (same, distinct) = (&constraint["matchAttribute"], &constraint["distinctAttribute"]);
        match (same.as_str(), distinct.as_str()) {
            (Some(name), _) => errors.extend(fields::qualified(name, &format!("{at}.matchAttribute"), true)),
            (None, Some(name)) => {
                errors.extend(fields::qualified(name, &format!("{at}.distinctAttribute"), true));
            }
            (None, None) => {
                let why = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
                errors.push(FieldError::required(at, why));
            }
        }
    }
    for (i, config) in list(&devices["config"]).iter().enumerate() {
        let at = format!("{at}.config[{i}]");
        errors.extend(references(&config["requests"], &format!("{at}.requests"), &names));
        errors.extend(fields::opaque(config, &at));
    }
    errors
}

fn check_request(request: &Value, at: &str) -> Vec<FieldError> {
    // The first beta has what is asked for in the request itself.
    let exact = if request["deviceClassName"].is_string() { request } else { &request["exactly"] };
    let alternatives = list(&request["firstAvailable"]);
    match (exact.is_null(), alternatives.is_empty()) {
        (true, true) => {
            vec![FieldError::required(at, "exactly one of `exactly` or `firstAvailable` is required")]
        }
        (false, false) => {
            let why = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            vec![FieldError::invalid(at, &Value::Null, why)]
        }
        (false, true) => {
            let at = if std::ptr::eq(exact, request) { at.to_owned() } else { format!("{at}.exactly") };
            check_exact(exact, &at)
        }
        (true, false) => {
            let at = format!("{at}.firstAvailable");
            if let Some(error) = FieldError::too_many(&at, alternatives.len(), ALTERNATIVES_MAX) {
                return vec![error];
            }
            let (mut errors, mut seen) = (Vec::new(), Vec::new());
            for (i, sub) in alternatives.iter().enumerate() {
                let at = format!("{at}[{i}]");
                errors.extend(fields::name(&sub["name"], &format!("{at}.name"), names::label_problem));
                errors.extend(check_exact(sub, &at));
                if seen.contains(&text(&sub["name"])) {
                    errors.push(FieldError::duplicate(at, &sub["name"]));
                }
                seen.push(text(&sub["name"]));
            }
            errors
        }
    }
}

fn check_exact(request: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let class = &request["deviceClassName"];
    errors.extend(fields::name(class, &format!("{at}.deviceClassName"), names::subdomain_problem));
    errors.extend(fields::selectors(&request["selectors"], &format!("{at}.selectors")));
    let (mode, count) = (&request["allocationMode"], request["count"].as_i64().unwrap_or(0));
    let at_count = format!("{at}.count");
    match text(mode) {
        "All" if count != 0 => {
            let why = "must not be specified when allocationMode is 'All'";
            errors.push(FieldError::invalid(at_count, &count.into(), why));
        }
        "ExactCount" if count <= 0 => {
            errors.push(FieldError::invalid(at_count, &count.into(), "must be greater than zero"));
        }
        "All" | "ExactCount" => {}
        _ => errors.push(FieldError::not_supported(
            format!("{at}.allocationMode"),
            mode,
            &["All", "ExactCount"],
        )),
    }
    errors.extend(fields::tolerations(&request["tolerations"], &format!("{at}.tolerations")));
    errors
}

/// Names by which requests may be referred to: their own, and with those of their alternatives.
pub(super) fn request_names(devices: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for request in list(&devices["requests"]) {
        let name = text(&request["name"]);
        names.push(name.to_owned());
        let subs = list(&request["firstAvailable"]).iter();
        names.extend(subs.map(|sub| format!("{name}/{}", text(&sub["name"]))));
    }
    names
}

/// References to requests.
fn references(value: &Value, at: &str, names: &[String]) -> Vec<FieldError> {
    let (mut errors, mut seen) = (Vec::new(), Vec::new());
    for (i, reference) in list(value).iter().enumerate() {
        let at = format!("{at}[{i}]");
        errors.extend(self::reference(reference, &at, names));
        if seen.contains(&reference) {
            errors.push(FieldError::duplicate(at, reference));
        }
        seen.push(reference);
    }
    errors
}

/// A reference to a request.
pub(super) fn reference(value: &Value, at: &str, names: &[String]) -> Option<FieldError> {
    let why = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    (!names.iter().any(|name| name == text(value))).then(|| FieldError::invalid(at, value, why))
}
