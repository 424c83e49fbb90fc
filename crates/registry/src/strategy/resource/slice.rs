//! What a slice may publish.

use jiff::Timestamp;
use meta::{FieldError, Quantity, names};
use serde_json::Value;

use super::Object;
use super::fields::{self, list, text};
use super::status::{binding_conditions, pool_name};

/// Most attributes and capacities of a device.
const ENTRIES_MAX: usize = 32;
/// Most taints of a device.
const TAINTS_MAX: usize = 16;
/// Most devices of a slice with taints or counters.
const ADVANCED_MAX: usize = 64;
/// Longest value of an attribute.
const VALUE_MAX: usize = 64;
/// Most counter sets of a slice.
const COUNTER_SETS_MAX: usize = 8;
/// Most counter sets that a device uses.
const CONSUMED_SETS_MAX: usize = 2;
/// Most counters of a set.
const COUNTERS_MAX: usize = 32;
/// Most values that a policy allows.
const VALUES_MAX: usize = 10;

/// Dates the taints of devices.
pub(super) fn date(object: &mut Object, now: Timestamp) {
    let devices =
        object.get_mut("spec").and_then(|spec| spec.get_mut("devices")).and_then(Value::as_array_mut);
    for device in devices.into_iter().flatten() {
        let taints = device.get_mut("taints").and_then(Value::as_array_mut);
        for taint in taints.into_iter().flatten().filter_map(Value::as_object_mut) {
            let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            super::super::set_default(taint, "timeAdded", now);
        }
    }
}

/// The ways in which nodes are chosen. Errors are those of the ways themselves.
fn chosen(value: &Value, at: &str, per_device: bool, errors: &mut Vec<FieldError>) -> Vec<&'static str> {
    let mut ways = Vec::new();
    let empty =
        if per_device { "must be either unset or set to a non-empty string" } else { "must not be empty" };
    match value["nodeName"].as_str() {
        None => {}
        Some("") => errors.push(FieldError::invalid(format!("{at}.nodeName"), &value["nodeName"], empty)),
        Some(name) => {
            ways.push("`nodeName`");
            let why = names::subdomain_problem(name);
            errors.extend(why.map(|why| FieldError::invalid(format!("{at}.nodeName"), &name.into(), &why)));
        }
    }
    if value["nodeSelector"].is_object() {
        ways.push("`nodeSelector`");
        let terms = &value["nodeSelector"]["nodeSelectorTerms"];
        if list(terms).len() != 1 {
            let why = "must have exactly one node selector term";
            errors.push(FieldError::invalid(format!("{at}.nodeSelector.nodeSelectorTerms"), terms, why));
        }
    }
    let flags: &[(&str, &str)] = match per_device {
        true => &[("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")],
        false => &[("allNodes", "`allNodes`")],
    };
    for (field, shown) in flags {
        match value[*field].as_bool() {
            None => {}
            Some(true) => ways.push(shown),
            Some(false) => {
                let why = "must be either unset or set to true";
                errors.push(FieldError::invalid(format!("{at}.{field}"), &false.into(), why));
            }
        }
    }
    ways
}

/// Every rule that a slice breaks, beside the declared ones.
pub(super) fn check(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    errors.extend(
        pool_name(&spec["pool"]["name"], "spec.pool.name")
            .filter(|_| !text(&spec["pool"]["name"]).is_empty()),
    );
    let ways = chosen(spec, "spec", true, &mut errors);
    let why = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match ways.len() {
        0 => errors.push(FieldError::required("spec", why)),
        1 => {}
        _ => {
            let shown = format!("{{{}}}", ways.join(", "));
            let why = format!("{why}, but multiple fields are set");
            errors.push(FieldError::invalid("spec", &shown.into(), &why));
        }
    }
    if spec["sharedCounters"].is_array() && spec["devices"].is_array() {
        let why = "only one of `sharedCounters` or `devices` is allowed";
        errors.push(FieldError::invalid("spec", &"".into(), why));
    }
    let devices = list(&spec["devices"]);
    let advanced = |d: &Value| !list(&d["taints"]).is_empty() || !list(&d["consumesCounters"]).is_empty();
    if devices.iter().any(advanced) {
        errors.extend(FieldError::too_many("spec.devices", devices.len(), ADVANCED_MAX));
    }
    let per_device = spec["perDeviceNodeSelection"] == true;
    for (i, device) in devices.iter().enumerate() {
        errors.extend(check_device(device, &format!("spec.devices[{i}]"), per_device));
    }
    let sets = list(&spec["sharedCounters"]);
    errors.extend(FieldError::too_many("spec.sharedCounters", sets.len(), COUNTER_SETS_MAX));
    errors.extend(counter_sets(sets, "spec.sharedCounters", "name"));
    errors
}

/// Sets of counters: named, once each, and not empty.
fn counter_sets(sets: &[Value], at: &str, key: &str) -> Vec<FieldError> {
    let (mut errors, mut seen) = (Vec::new(), Vec::new());
    for (i, set) in sets.iter().enumerate() {
        let at = format!("{at}[{i}]");
        errors.extend(fields::name(&set[key], &format!("{at}.{key}"), names::label_problem));
        let counters = set["counters"].as_object();
        let at_counters = format!("{at}.counters");
        match counters.map_or(0, |counters| counters.len()) {
            0 => errors.push(FieldError::required(at_counters, "")),
            n => {
                errors.extend(FieldError::too_many(&at_counters, n, COUNTERS_MAX));
                for name in counters.into_iter().flatten().map(|(name, _)| name) {
                    let why = names::label_problem(name);
                    errors.extend(
                        why.map(|why| FieldError::invalid(&at_counters, &name.as_str().into(), &why)),
                    );
                }
            }
        }
        if seen.contains(&text(&set[key])) {
            errors.push(FieldError::duplicate(at, &set[key]));
        }
        seen.push(text(&set[key]));
    }
    errors
}

fn check_device(device: &Value, at: &str, per_device: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let members = |field: &str| device[field].as_object().into_iter().flatten();
    let entries = members("attributes").count() + members("capacity").count();
    if entries > ENTRIES_MAX {
        let why = format!("the total number of attributes and capacities must not exceed {ENTRIES_MAX}");
        errors.push(FieldError::invalid(at, &entries.into(), &why));
    }
    for (name, value) in members("attributes") {
        errors.extend(fields::qualified(name, &format!("{at}.attributes"), false));
        errors.extend(attribute(value, &format!("{at}.attributes[{name}]")));
    }
    let shared = device["allowMultipleAllocations"] == true;
    for (name, value) in members("capacity") {
        errors.extend(fields::qualified(name, &format!("{at}.capacity"), false));
        let (policy, at) = (&value["requestPolicy"], format!("{at}.capacity[{name}].requestPolicy"));
        match (policy.is_object(), shared) {
            (true, false) => errors.push(FieldError::forbidden(at, "allowMultipleAllocations must be true")),
            (true, true) => errors.extend(check_policy(policy, &value["value"], &at)),
            _ => {}
        }
    }
    let taints = list(&device["taints"]);
    errors.extend(FieldError::too_many(format!("{at}.taints"), taints.len(), TAINTS_MAX));
    for (i, taint) in taints.iter().enumerate() {
        let at = format!("{at}.taints[{i}]");
        errors.extend(fields::name(&taint["key"], &format!("{at}.key"), names::qualified_name_problem));
        let why = names::label_value_problem(text(&taint["value"]));
        errors.extend(why.map(|why| FieldError::invalid(format!("{at}.value"), &taint["value"], &why)));
        errors.extend(fields::effect(&taint["effect"], &format!("{at}.effect"), false));
    }
    let consumed = list(&device["consumesCounters"]);
    let at_counters = format!("{at}.consumesCounters");
    errors.extend(FieldError::too_many(&at_counters, consumed.len(), CONSUMED_SETS_MAX));
    errors.extend(counter_sets(consumed, &at_counters, "counterSet"));
    errors.extend(places(device, at, per_device));
    errors.extend(binding_conditions(device, at));
    errors
}

fn places(device: &Value, at: &str, per_device: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !per_device {
        let any = ["nodeName", "nodeSelector", "allNodes"].iter().any(|field| !device[*field].is_null());
        if any {
            let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
            errors.push(FieldError::invalid(at, &Value::Null, why));
        }
        return errors;
    }
    let ways = chosen(device, at, false, &mut errors);
    let why = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    match ways.len() {
        0 => errors.push(FieldError::required(at, why)),
        1 => {}
        _ => errors.push(FieldError::invalid(at, &format!("{{{}}}", ways.join(", ")).into(), why)),
    }
    errors
}

fn attribute(value: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let set = ["bool", "int", "string", "version"].iter().filter(|kind| !value[**kind].is_null()).count();
    for kind in ["string", "version"] {
        if text(&value[kind]).len() > VALUE_MAX {
            errors.push(FieldError::too_long(format!("{at}.{kind}"), VALUE_MAX));
        }
    }
    if let Some(version) = value["version"].as_str().filter(|version| !is_version(version)) {
        let why = "must be a string compatible with semver.org spec 2.0.0";
        errors.push(FieldError::invalid(format!("{at}.version"), &version.into(), why));
    }
    if set != 1 {
        let shown = if set == 0 { Value::from("") } else { value.clone() };
        errors.push(FieldError::invalid(at, &shown, "exactly one value must be specified"));
    }
    errors
}

/// Whether a text is a semantic version, 2.0.0.
fn is_version(text: &str) -> bool {
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
    let number =
        |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) && (s == "0" || !s.starts_with('0'));
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let numbers: Vec<&str> = core.split('.').collect();
    let label = |s: &str| word(s) && (number(s) || !s.bytes().all(|b| b.is_ascii_digit()));
    numbers.len() == 3
        && numbers.into_iter().all(number)
        && pre.is_none_or(|pre| pre.split('.').all(label))
        && build.is_none_or(|build| build.split('.').all(word))
}

fn quantity(value: &Value) -> Option<Quantity> {
    Quantity::parse(value.as_str()?).ok()
}

/// How much of a shared capacity may be asked for.
fn check_policy(policy: &Value, capacity: &Value, at: &str) -> Vec<FieldError> {
    let (values, range) = (list(&policy["validValues"]), &policy["validRange"]);
    if !values.is_empty() && range.is_object() {
        let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
        return vec![FieldError::forbidden(at, why)];
    }
    let Some(most) = quantity(capacity) else { return Vec::new() };
    let usual = quantity(&policy["default"]);
    if !values.is_empty() {
        let Some(usual) = usual else {
            return vec![FieldError::required(
                format!("{at}.default"),
                "required when validValues is defined",
            )];
        };
        return allowed_values(values, usual, most, &format!("{at}.validValues"));
    }
    if range.is_object() {
        let Some(usual) = usual else {
            return vec![FieldError::required(
                format!("{at}.default"),
                "required when validRange is defined",
            )];
        };
        return allowed_range(range, usual, most, &format!("{at}.validRange"));
    }
    Vec::new()
}

fn allowed_values(values: &[Value], usual: Quantity, most: Quantity, at: &str) -> Vec<FieldError> {
    if let Some(error) = FieldError::too_many(at, values.len(), VALUES_MAX) {
        return vec![error];
    }
    let parsed: Vec<Quantity> = values.iter().filter_map(quantity).collect();
    let mut errors = Vec::new();
    for (i, value) in parsed.iter().enumerate() {
        let (at, shown) = (format!("{at}[{i}]"), Value::from(value.to_string()));
        let before = i.checked_sub(1).and_then(|i| parsed.get(i));
        if before.is_some_and(|before| before > value) {
            errors.push(FieldError::invalid(&at, &shown, "values must be sorted in ascending order"));
        }
        if *value > most {
            errors.push(FieldError::invalid(
                &at,
                &shown,
                &format!("option is larger than capacity value: {most}"),
            ));
        }
    }
    if !parsed.contains(&usual) {
        let why = "default value is not valid according to the requestPolicy";
        errors.push(FieldError::invalid(at, &usual.to_string().into(), why));
    }
    errors
}

fn allowed_range(range: &Value, usual: Quantity, most: Quantity, at: &str) -> Vec<FieldError> {
    let Some(least) = quantity(&range["min"]) else {
        return vec![FieldError::required(format!("{at}.min"), "required when validRange is defined")];
    };
    let mut errors = Vec::new();
    let mut say = |field: &str, value: Quantity, why: String| {
        errors.push(FieldError::invalid(format!("{at}.{field}"), &value.to_string().into(), &why));
    };
    if least > most {
        say("min", least, format!("min is larger than capacity value: {most}"));
    }
    if usual < least {
        say("default", usual, format!("default is less than min: {least}"));
    }
    let top = quantity(&range["max"]);
    if let Some(top) = top {
        if least > top {
            say("max", least, format!("min is larger than max: {top}"));
        }
        if top > most {
            say("max", top, format!("max is larger than capacity value: {most}"));
        }
        if usual > top {
            say("default", usual, format!("default is more than max: {top}"));
        }
    }
    let Some(step) = quantity(&range["step"]) else { return errors };
    if step.is_zero() || step.is_negative() {
        say("step", step, "must be greater than zero".into());
        return errors;
    }
    let one = least.plus(step);
    if one > most {
        say("step", step, format!("one step {one} is larger than capacity value: {most}"));
    }
    for value in [Some(usual), top].into_iter().flatten() {
        if value.stepped_up(least, step) != value {
            say("step", value, format!("value is not a multiple of a given step ({step}) from ({least})"));
        }
    }
    errors
}
