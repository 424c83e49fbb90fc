//! Rules for kinds with a pod template.

use meta::{FieldError, LabelSelector};
use serde_json::{Map, Value};

use super::{labels, not_negative, one_of, pod};

type Object = Map<String, Value>;

fn spec(object: &Object) -> &Value {
    object.get("spec").unwrap_or(&Value::Null)
}

/// Selector and template: the selector must be there and pick the template's pods.
fn selector_and_template(spec: &Value, at: &str, kind: &str, restart: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let selector = &spec["selector"];
    let field = format!("{at}.selector");
    if selector.is_null() {
        errors.push(FieldError::required(&field, ""));
    } else {
        errors.extend(selector_errors(selector, &field));
        let empty = selector["matchLabels"].as_object().is_none_or(|m| m.is_empty())
            && selector["matchExpressions"].as_array().is_none_or(|m| m.is_empty());
        if empty {
            errors.push(FieldError::invalid(
                &field,
                selector,
                &format!("empty selector is invalid for {kind}"),
            ));
        } else if let Ok(parsed) = LabelSelector::from_json(selector) {
            let template_labels = &spec["template"]["metadata"]["labels"];
            if !parsed.matches_with(|k| template_labels[k].as_str()) {
                errors.push(FieldError::invalid(
                    format!("{at}.template.metadata.labels"),
                    template_labels,
                    "`selector` does not match template `labels`",
                ));
            }
        }
    }
    errors.extend(pod::template(spec.get("template"), &format!("{at}.template"), restart));
    errors
}

/// Rules for a label selector object.
pub fn selector_errors(selector: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = labels(&selector["matchLabels"], &format!("{at}.matchLabels"));
    for (i, e) in selector["matchExpressions"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}.matchExpressions[{i}]");
        let filled = e["values"].as_array().is_some_and(|v| !v.is_empty());
        match e["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if !filled => {
                errors.push(FieldError::required(
                    format!("{at}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                ));
            }
            "Exists" | "DoesNotExist" if filled => {
                errors.push(FieldError::forbidden(
                    format!("{at}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.push(FieldError::invalid(
                format!("{at}.operator"),
                &e["operator"],
                "not a valid selector operator",
            )),
        }
        if let Some(problem) = meta::names::qualified_name_problem(e["key"].as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(format!("{at}.key"), &e["key"], &problem));
        }
    }
    errors
}

const ALWAYS: &[&str] = &["Always"];

/// A count or a percentage.
fn int_or_percent(value: &Value, at: &str) -> Option<FieldError> {
    match value {
        Value::Number(n) if n.as_i64().unwrap_or(0) < 0 => {
            Some(FieldError::invalid(at, value, "must be greater than or equal to 0"))
        }
        Value::String(s) => {
            let fine =
                s.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()));
            (!fine).then(|| FieldError::invalid(at, value, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"))
        }
        _ => None,
    }
}

fn is_zero(value: &Value) -> bool {
    value.as_i64() == Some(0) || value.as_str().is_some_and(|s| s.trim_end_matches('%').parse() == Ok(0))
}

/// Deployment.
pub fn deployment(object: &Object) -> Vec<FieldError> {
    let spec = spec(object);
    let mut errors = selector_and_template(spec, "spec", "deployment", ALWAYS);
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        errors.extend(not_negative(&spec[field], &format!("spec.{field}")));
    }
    let strategy = &spec["strategy"];
    errors.extend(super::required_one_of(
        &strategy["type"],
        "spec.strategy.type",
        &["Recreate", "RollingUpdate"],
    ));
    let rolling = &strategy["rollingUpdate"];
    if strategy["type"] == "Recreate" && !rolling.is_null() {
        errors.push(FieldError::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        ));
    }
    for field in ["maxUnavailable", "maxSurge"] {
        errors.extend(int_or_percent(&rolling[field], &format!("spec.strategy.rollingUpdate.{field}")));
    }
    if rolling.is_object() && is_zero(&rolling["maxUnavailable"]) && is_zero(&rolling["maxSurge"]) {
        errors.push(FieldError::invalid(
            "spec.strategy.rollingUpdate.maxUnavailable",
            &rolling["maxUnavailable"],
            "may not be 0 when `maxSurge` is 0",
        ));
    }
    let (deadline, ready) =
        (spec["progressDeadlineSeconds"].as_i64(), spec["minReadySeconds"].as_i64().unwrap_or(0));
    if deadline.is_some_and(|d| d <= ready) {
        errors.push(FieldError::invalid(
            "spec.progressDeadlineSeconds",
            &spec["progressDeadlineSeconds"],
            "must be greater than minReadySeconds",
        ));
    }
    errors
}

/// ReplicaSet.
pub fn replica_set(object: &Object) -> Vec<FieldError> {
    let spec = spec(object);
    let mut errors = selector_and_template(spec, "spec", "ReplicaSet", ALWAYS);
    for field in ["replicas", "minReadySeconds"] {
        errors.extend(not_negative(&spec[field], &format!("spec.{field}")));
    }
    errors
}

/// DaemonSet.
pub fn daemon_set(object: &Object) -> Vec<FieldError> {
    let spec = spec(object);
    let mut errors = selector_and_template(spec, "spec", "daemonset", ALWAYS);
    errors.extend(not_negative(&spec["minReadySeconds"], "spec.minReadySeconds"));
    errors.extend(one_of(
        &spec["updateStrategy"]["type"],
        "spec.updateStrategy",
        &["RollingUpdate", "OnDelete"],
    ));
    errors
}

/// The spec with a volume for every claim template: that is what mounts find in the pods.
fn with_claims(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let claims = spec["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
    let Some(pod) = spec.pointer_mut("/template/spec").and_then(Value::as_object_mut) else { return spec };
    let volumes = pod.entry("volumes").or_insert_with(|| Value::Array(Vec::new()));
    if volumes.is_null() {
        *volumes = Value::Array(Vec::new());
    }
    let Some(volumes) = volumes.as_array_mut() else { return spec };
    for claim in &claims {
        let name = &claim["metadata"]["name"];
        if name.is_string() && !volumes.iter().any(|volume| volume["name"] == *name) {
            volumes.push(serde_json::json!({"name": name, "emptyDir": {}}));
        }
    }
    spec
}

/// StatefulSet.
pub fn stateful_set(object: &Object) -> Vec<FieldError> {
    let spec = spec(object);
    let mut errors = selector_and_template(&with_claims(spec), "spec", "statefulset", ALWAYS);
    for field in ["replicas", "minReadySeconds"] {
        errors.extend(not_negative(&spec[field], &format!("spec.{field}")));
    }
    errors.extend(one_of(
        &spec["podManagementPolicy"],
        "spec.podManagementPolicy",
        &["OrderedReady", "Parallel"],
    ));
    errors.extend(one_of(
        &spec["updateStrategy"]["type"],
        "spec.updateStrategy",
        &["RollingUpdate", "OnDelete"],
    ));
    errors
}

/// What may change in a StatefulSet.
pub fn stateful_set_update(new: &Object, old: &Object) -> Vec<FieldError> {
    let fixed = |o: &Object| {
        let mut spec = spec(o).as_object().cloned().unwrap_or_default();
        for free in [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
        ] {
            spec.remove(free);
        }
        spec
    };
    if fixed(new) == fixed(old) {
        return Vec::new();
    }
    vec![FieldError::forbidden(
        "spec",
        "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
    )]
}

/// The selector is the identity of a workload.
pub fn selector_update(new: &Object, old: &Object) -> Vec<FieldError> {
    let selector = |o: &Object| spec(o)["selector"].clone();
    if selector(new) == selector(old) {
        return Vec::new();
    }
    vec![FieldError::invalid("spec.selector", &selector(new), "field is immutable")]
}

/// ReplicationController: its selector is a plain map.
pub fn replication_controller(object: &Object) -> Vec<FieldError> {
    let spec = spec(object);
    let mut errors = labels(&spec["selector"], "spec.selector");
    errors.extend(not_negative(&spec["replicas"], "spec.replicas"));
    let template_labels = &spec["template"]["metadata"]["labels"];
    match spec["selector"].as_object() {
        None => errors.push(FieldError::required("spec.selector", "")),
        Some(map) if map.is_empty() => errors.push(FieldError::required("spec.selector", "")),
        Some(map) if map.iter().any(|(k, v)| template_labels.get(k) != Some(v)) => {
            errors.push(FieldError::invalid(
                "spec.template.metadata.labels",
                template_labels,
                "`selector` does not match template `labels`",
            ));
        }
        Some(_) => {}
    }
    errors.extend(pod::template(spec.get("template"), "spec.template", ALWAYS));
    errors
}
