//! Rules for where a pod may run: tolerations, affinity, topology spread.

use meta::{FieldError, names};
use serde_json::Value;

use super::pod::{list, text};
use super::{one_of, required_one_of};

/// Rules for tolerations.
pub fn tolerations(spec: &Value, at: &str, errors: &mut Vec<FieldError>) {
    for (i, t) in list(spec, "tolerations").iter().enumerate() {
        let at = format!("{at}.tolerations[{i}]");
        let key = text(t, "key");
        let exists = text(t, "operator") == "Exists";
        if !key.is_empty()
            && let Some(problem) = names::qualified_name_problem(key)
        {
            errors.push(FieldError::invalid(format!("{at}.key"), &t["key"], &problem));
        }
        if key.is_empty() && !exists {
            errors.push(FieldError::invalid(
                format!("{at}.operator"),
                &t["operator"],
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if exists && !text(t, "value").is_empty() {
            errors.push(FieldError::invalid(
                format!("{at}.operator"),
                t,
                "value must be empty when `operator` is 'Exists'",
            ));
        }
        errors.extend(one_of(&t["operator"], &format!("{at}.operator"), &["Equal", "Exists", "Gt", "Lt"]));
        errors.extend(one_of(
            &t["effect"],
            &format!("{at}.effect"),
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
        ));
        if t.get("tolerationSeconds").is_some() && text(t, "effect") != "NoExecute" {
            errors.push(FieldError::invalid(
                format!("{at}.effect"),
                &t["effect"],
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
    }
}

/// Rules for affinity.
pub fn affinity(a: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let required = &a["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let at_node = format!("{at}.nodeAffinity");
    if required.is_object() {
        let at = format!("{at_node}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
        let terms = list(required, "nodeSelectorTerms");
        if terms.is_empty() {
            errors.push(FieldError::required(&at, "must have at least one node selector term"));
        }
        for (i, term) in terms.iter().enumerate() {
            node_term(term, &format!("{at}[{i}]"), errors);
        }
    }
    for (i, p) in
        list(&a["nodeAffinity"], "preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate()
    {
        let at = format!("{at_node}.preferredDuringSchedulingIgnoredDuringExecution[{i}]");
        weight(&p["weight"], &format!("{at}.weight"), errors);
        node_term(&p["preference"], &format!("{at}.preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (i, term) in list(&a[kind], "requiredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            pod_term(
                term,
                &format!("{at}.{kind}.requiredDuringSchedulingIgnoredDuringExecution[{i}]"),
                errors,
            );
        }
        for (i, p) in list(&a[kind], "preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            let at = format!("{at}.{kind}.preferredDuringSchedulingIgnoredDuringExecution[{i}]");
            weight(&p["weight"], &format!("{at}.weight"), errors);
            pod_term(&p["podAffinityTerm"], &format!("{at}.podAffinityTerm"), errors);
        }
    }
}

fn weight(value: &Value, at: &str, errors: &mut Vec<FieldError>) {
    if !(1..=100).contains(&value.as_i64().unwrap_or(0)) {
        errors.push(FieldError::invalid(at, value, "must be in the range 1-100"));
    }
}

fn node_term(term: &Value, at: &str, errors: &mut Vec<FieldError>) {
    for (i, e) in list(term, "matchExpressions").iter().enumerate() {
        let at = format!("{at}.matchExpressions[{i}]");
        let values = list(e, "values").len();
        match text(e, "operator") {
            "In" | "NotIn" if values == 0 => {
                errors.push(FieldError::required(
                    format!("{at}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                ));
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                errors.push(FieldError::forbidden(
                    format!("{at}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ));
            }
            "Gt" | "Lt" if values != 1 => {
                errors.push(FieldError::required(
                    format!("{at}.values"),
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                ));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => errors.push(FieldError::invalid(
                format!("{at}.operator"),
                &e["operator"],
                "not a valid selector operator",
            )),
        }
        if let Some(problem) = names::qualified_name_problem(text(e, "key")) {
            errors.push(FieldError::invalid(format!("{at}.key"), &e["key"], &problem));
        }
    }
}

fn pod_term(term: &Value, at: &str, errors: &mut Vec<FieldError>) {
    if text(term, "topologyKey").is_empty() {
        errors.push(FieldError::required(format!("{at}.topologyKey"), "can not be empty"));
    }
    errors.extend(super::workload::selector_errors(&term["labelSelector"], &format!("{at}.labelSelector")));
}

/// Rules for topology spread constraints.
pub fn topology(spec: &Value, at: &str, errors: &mut Vec<FieldError>) {
    for (i, c) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let at = format!("{at}.topologySpreadConstraints[{i}]");
        if c["maxSkew"].as_i64().unwrap_or(0) <= 0 {
            errors.push(FieldError::invalid(
                format!("{at}.maxSkew"),
                &c["maxSkew"],
                "must be greater than zero",
            ));
        }
        if text(c, "topologyKey").is_empty() {
            errors.push(FieldError::required(format!("{at}.topologyKey"), "can not be empty"));
        }
        errors.extend(required_one_of(
            &c["whenUnsatisfiable"],
            &format!("{at}.whenUnsatisfiable"),
            &["DoNotSchedule", "ScheduleAnyway"],
        ));
    }
}
