//! Rules for Jobs: counts, indexes, and the policies of failure and success.

use meta::{FieldError, names};
use serde_json::{Map, Value, json};

use super::pod::{list, text};
use super::{not_negative, one_of, pod};

type Object = Map<String, Value>;

/// Most rules of a policy, and most patterns of a rule.
const RULES_MAX: usize = 20;
/// Most exit codes of a rule.
const EXIT_CODES_MAX: usize = 255;
/// Longest list of indexes of a success policy.
const INDEXES_BYTES_MAX: usize = 64 * 1024;
/// Most pods at a time, and most failed indexes, of an Indexed Job: what its status can tell.
const INDEXED_MAX: i64 = 100_000;
/// The same where there are more completions than that and failures are limited per index.
const INDEXED_MANY_MAX: i64 = 10_000;
/// Longest name of who manages a Job.
const MANAGED_BY_MAX: usize = 63;

fn spec(object: &Object) -> &Value {
    object.get("spec").unwrap_or(&Value::Null)
}

fn quoted(allowed: &[&str]) -> String {
    format!("valid values: {}", allowed.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(", "))
}

fn listed(allowed: &[&str]) -> String {
    format!("valid values: [{}]", allowed.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(" "))
}

/// The spec of a Job.
pub fn job(spec: Option<&Value>, at: &str) -> Vec<FieldError> {
    let spec = spec.unwrap_or(&Value::Null);
    let mut errors = Vec::new();
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        errors.extend(not_negative(&spec[field], &format!("{at}.{field}")));
    }
    if spec["backoffLimitPerIndex"].is_null() && !spec["maxFailedIndexes"].is_null() {
        let field = format!("{at}.backoffLimitPerIndex");
        errors.push(FieldError::required(field, "when maxFailedIndexes is specified"));
    }
    errors.extend(managed_by(&spec["managedBy"], &format!("{at}.managedBy")));
    let mode = format!("{at}.completionMode");
    errors.extend(one_of(&spec["completionMode"], &mode, &["NonIndexed", "Indexed"]));
    match text(spec, "completionMode") {
        "Indexed" => indexed(spec, at, &mut errors),
        _ => {
            for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
                if !spec[field].is_null() {
                    let field_at = format!("{at}.{field}");
                    errors.push(FieldError::invalid(
                        field_at,
                        &spec[field],
                        "requires indexed completion mode",
                    ));
                }
            }
        }
    }
    failure_policy(spec, at, &mut errors);
    success_policy(spec, at, &mut errors);
    let replacement = format!("{at}.podReplacementPolicy");
    let allowed: &[&str] =
        if spec["podFailurePolicy"].is_null() { &["Failed", "TerminatingOrFailed"] } else { &["Failed"] };
    errors.extend(one_of(&spec["podReplacementPolicy"], &replacement, allowed));
    let template = format!("{at}.template");
    errors.extend(pod::template(spec.get("template"), &template, &["Always", "OnFailure", "Never"]));
    let restart = &spec["template"]["spec"]["restartPolicy"];
    let field = format!("{template}.spec.restartPolicy");
    match restart.as_str().unwrap_or_default() {
        "" | "Always" => errors.push(FieldError::required(field, &quoted(&["OnFailure", "Never"]))),
        "OnFailure" if !spec["podFailurePolicy"].is_null() => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(FieldError::invalid(field, restart, why));
        }
        _ => {}
    }
    errors
}

fn managed_by(value: &Value, at: &str) -> Vec<FieldError> {
    let Some(name) = value.as_str() else { return Vec::new() };
    let mut errors = Vec::new();
    if let Some(why) = names::domain_prefixed_path_problem(name) {
        errors.push(FieldError::invalid(at, value, &why));
    }
    if name.len() > MANAGED_BY_MAX {
        errors.push(FieldError::too_long(at, MANAGED_BY_MAX));
    }
    errors
}

fn indexed(spec: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let number = |field: &str| spec[field].as_i64();
    let mut limit = |field: &str, max: i64, why: String| {
        if number(field).is_some_and(|n| n > max) {
            errors.push(FieldError::invalid(format!("{at}.{field}"), &spec[field], &why));
        }
    };
    let completions = number("completions");
    let below = format!("must be less than or equal to {INDEXED_MAX}");
    limit("parallelism", INDEXED_MAX, format!("{below} when completion mode is Indexed"));
    let all = completions.unwrap_or(i64::MAX);
    limit("maxFailedIndexes", all, "must be less than or equal to completions".into());
    limit("maxFailedIndexes", INDEXED_MAX, below);
    if !spec["backoffLimitPerIndex"].is_null() && completions.is_some_and(|n| n > INDEXED_MAX) {
        let why = format!(
            "must be less than or equal to {INDEXED_MANY_MAX} when completions are above {INDEXED_MAX} and used with backoff limit per index"
        );
        limit("parallelism", INDEXED_MANY_MAX, why.clone());
        limit("maxFailedIndexes", INDEXED_MANY_MAX, why);
        if spec["maxFailedIndexes"].is_null() {
            let why = format!("must be specified when completions is above {INDEXED_MAX}");
            errors.push(FieldError::required(format!("{at}.maxFailedIndexes"), &why));
        }
    }
    if completions.is_none() {
        let why = "when completion mode is Indexed";
        errors.push(FieldError::required(format!("{at}.completions"), why));
    }
}

fn failure_policy(spec: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let at = format!("{at}.podFailurePolicy.rules");
    let rules = list(&spec["podFailurePolicy"], "rules");
    errors.extend(FieldError::too_many(&at, rules.len(), RULES_MAX));
    for (place, rule) in rules.iter().enumerate() {
        failure_rule(spec, rule, &format!("{at}[{place}]"), errors);
    }
}

fn failure_rule(spec: &Value, rule: &Value, at: &str, errors: &mut Vec<FieldError>) {
    const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
    let action = format!("{at}.action");
    match text(rule, "action") {
        "" => errors.push(FieldError::required(action, &listed(ACTIONS))),
        "FailIndex" if spec["backoffLimitPerIndex"].is_null() => {
            let why = "requires the backoffLimitPerIndex to be set";
            errors.push(FieldError::invalid(action, &rule["action"], why));
        }
        _ => errors.extend(one_of(&rule["action"], &action, ACTIONS)),
    }
    let (codes, conditions) = (&rule["onExitCodes"], list(rule, "onPodConditions"));
    if !codes.is_null() {
        exit_codes(spec, codes, &format!("{at}.onExitCodes"), errors);
    }
    let patterns = format!("{at}.onPodConditions");
    errors.extend(FieldError::too_many(&patterns, conditions.len(), RULES_MAX));
    for (place, pattern) in conditions.iter().enumerate() {
        const STATUSES: &[&str] = &["False", "True", "Unknown"];
        if let Some(why) = names::qualified_name_problem(text(pattern, "type")) {
            let field = format!("{patterns}[{place}].type");
            errors.push(FieldError::invalid(field, &json!(text(pattern, "type")), &why));
        }
        let field = format!("{patterns}[{place}].status");
        match text(pattern, "status") {
            "" => errors.push(FieldError::required(field, &listed(STATUSES))),
            _ => errors.extend(one_of(&pattern["status"], &field, STATUSES)),
        }
    }
    match (codes.is_null(), conditions.is_empty()) {
        (false, false) => errors.push(FieldError::invalid_at(
            at,
            "specifying both OnExitCodes and OnPodConditions is not supported",
        )),
        (true, true) => errors.push(FieldError::invalid_at(
            at,
            "specifying one of OnExitCodes and OnPodConditions is required",
        )),
        _ => {}
    }
}

fn exit_codes(spec: &Value, codes: &Value, at: &str, errors: &mut Vec<FieldError>) {
    const OPERATORS: &[&str] = &["In", "NotIn"];
    let operator = format!("{at}.operator");
    match text(codes, "operator") {
        "" => errors.push(FieldError::required(operator, &listed(OPERATORS))),
        _ => errors.extend(one_of(&codes["operator"], &operator, OPERATORS)),
    }
    if let Some(name) = codes["containerName"].as_str() {
        let pod = &spec["template"]["spec"];
        let mut containers = list(pod, "containers").iter().chain(list(pod, "initContainers"));
        if !containers.any(|c| text(c, "name") == name) {
            let why = "must be one of the container or initContainer names in the pod template";
            errors.push(FieldError::invalid(format!("{at}.containerName"), &codes["containerName"], why));
        }
    }
    let field = format!("{at}.values");
    let values: Vec<i64> = list(codes, "values").iter().filter_map(Value::as_i64).collect();
    if values.is_empty() {
        errors.push(FieldError::invalid(&field, &json!(values), "at least one value is required"));
    }
    errors.extend(FieldError::too_many(&field, values.len(), EXIT_CODES_MAX));
    for (place, value) in values.iter().enumerate() {
        let field = format!("{field}[{place}]");
        if *value == 0 && text(codes, "operator") == "In" {
            errors.push(FieldError::invalid(&field, &json!(value), "must not be 0 for the In operator"));
        }
        if values.iter().take(place).any(|before| before == value) {
            errors.push(FieldError::duplicate(&field, &json!(value)));
        }
    }
    if !values.is_sorted() {
        errors.push(FieldError::invalid(&field, &json!(values), "must be ordered"));
    }
}

fn success_policy(spec: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let (policy, at) = (&spec["successPolicy"], format!("{at}.successPolicy"));
    if policy.is_null() {
        return;
    }
    if text(spec, "completionMode") != "Indexed" {
        errors.push(FieldError::invalid(at, policy, "requires indexed completion mode"));
        return;
    }
    let rules = list(policy, "rules");
    let at = format!("{at}.rules");
    if rules.is_empty() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        errors.push(FieldError::required(&at, why));
    }
    errors.extend(FieldError::too_many(&at, rules.len(), RULES_MAX));
    let completions = spec["completions"].as_i64().unwrap_or(0);
    for (place, rule) in rules.iter().enumerate() {
        success_rule(rule, completions, &format!("{at}[{place}]"), errors);
    }
}

fn success_rule(rule: &Value, completions: i64, at: &str, errors: &mut Vec<FieldError>) {
    let (indexes, count) = (&rule["succeededIndexes"], &rule["succeededCount"]);
    if indexes.is_null() && count.is_null() {
        let why = "at least one of succeededCount or succeededIndexes must be specified";
        errors.push(FieldError::required(at, why));
    }
    let mut total = 0;
    if let Some(text) = indexes.as_str() {
        let field = format!("{at}.succeededIndexes");
        if text.len() > INDEXES_BYTES_MAX {
            errors.push(FieldError::too_long(&field, INDEXES_BYTES_MAX));
        }
        match indexes_of(text, completions) {
            Ok(found) => total = found,
            Err(why) => {
                let why = format!("error parsing succeededIndexes: {why}");
                errors.push(FieldError::invalid(&field, indexes, &why));
            }
        }
    }
    let Some(wanted) = count.as_i64() else { return };
    let field = format!("{at}.succeededCount");
    errors.extend(not_negative(count, &field));
    if wanted > completions {
        let why =
            format!("must be less than or equal to {completions} (the number of specified completions)");
        errors.push(FieldError::invalid(&field, count, &why));
    }
    if !indexes.is_null() && wanted > total {
        let why = format!(
            "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
        );
        errors.push(FieldError::invalid(&field, count, &why));
    }
}

/// How many indexes a text such as `0-2,5` names.
fn indexes_of(text: &str, completions: i64) -> Result<i64, String> {
    let (mut total, mut last) = (0, None);
    let out_of_order =
        |before: i64, now: i64| format!("non-increasing order, previous: {before}, current: {now}");
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let read = |text: &str| match text.parse::<i64>() {
            Err(_) => Err(format!("cannot convert string to integer for index: {text:?}")),
            Ok(index) if index >= completions => Err(format!("too large index: {text:?}")),
            Ok(index) => Ok(index),
        };
        let mut limits = part.split('-');
        let from = limits.next().unwrap_or_default();
        let (to, more) = (limits.next(), limits.next());
        if more.is_some() {
            return Err(format!(
                "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
            ));
        }
        let from = read(from)?;
        let to = to.map(read).transpose()?;
        if let Some(to) = to.filter(|to| from >= *to) {
            return Err(out_of_order(from, to));
        }
        if let Some(before) = last.filter(|before| *before >= from) {
            return Err(out_of_order(before, from));
        }
        let to = to.unwrap_or(from);
        total += to - from + 1;
        last = Some(to);
    }
    Ok(total)
}

/// What may change in a Job.
pub fn job_update(new: &Object, old: &Object) -> Vec<FieldError> {
    let (new, old) = (spec(new), spec(old));
    let mut errors = Vec::new();
    let mut keep = |field: &str| {
        if new[field] != old[field] {
            errors.push(FieldError::invalid(format!("spec.{field}"), &new[field], "field is immutable"));
        }
    };
    let elastic = text(new, "completionMode") == "Indexed" && !old["completions"].is_null();
    if !elastic {
        keep("completions");
    }
    for field in [
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        keep(field);
    }
    if old["suspend"] != true {
        keep("template");
    }
    if elastic && new["completions"] != old["completions"] {
        let field = "spec.completions";
        if new["completions"].is_null() {
            errors.push(FieldError::required(field, "when completion mode is Indexed"));
        } else if new["completions"] != new["parallelism"] {
            let why = "can only be modified in tandem with spec.parallelism";
            errors.push(FieldError::invalid(field, &new["completions"], why));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(change: Value) -> Vec<String> {
        let mut spec = json!({"completionMode": "Indexed", "completions": 5, "template": {"spec": {
            "restartPolicy": "Never", "dnsPolicy": "ClusterFirst", "containers": [{"name": "c", "image": "i",
            "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}]}}});
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
        job(Some(&spec), "spec").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn words_for_every_mistake() {
        let rules = |rules: Value| json!({"podFailurePolicy": {"rules": rules}});
        let success = |rule: Value| json!({"successPolicy": {"rules": [rule]}});
        let codes = |codes: Value| rules(json!([{"action": "Ignore", "onExitCodes": codes}]));
        for (change, wanted) in [
            (json!({}), ""),
            (
                json!({"completions": null}),
                "spec.completions: Required value: when completion mode is Indexed",
            ),
            (
                json!({"maxFailedIndexes": 1}),
                "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
            ),
            (
                json!({"maxFailedIndexes": 6, "backoffLimitPerIndex": 1}),
                "spec.maxFailedIndexes: Invalid value: 6: must be less than or equal to completions",
            ),
            (
                json!({"completionMode": "NonIndexed", "backoffLimitPerIndex": 1}),
                "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
            ),
            (
                json!({"completions": 100_001, "backoffLimitPerIndex": 1}),
                "spec.maxFailedIndexes: Required value: must be specified when completions is above 100000",
            ),
            (
                json!({"completions": 100_001, "backoffLimitPerIndex": 1, "maxFailedIndexes": 1, "parallelism": 50_000}),
                "spec.parallelism: Invalid value: 50000: must be less than or equal to 10000 when completions are above 100000 and used with backoff limit per index",
            ),
            (
                rules(json!([{"action": "FailIndex", "onPodConditions": [{"type": "A", "status": "True"}]}])),
                "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
            ),
            (
                rules(json!([{"action": "", "onPodConditions": [{"type": "A", "status": "True"}]}])),
                "spec.podFailurePolicy.rules[0].action: Required value: valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
            ),
            (
                rules(json!([{"action": "Count"}])),
                "spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
            ),
            (
                codes(json!({"operator": "In", "values": [0]})),
                "spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator",
            ),
            (
                codes(json!({"operator": "In", "values": [3, 1]})),
                "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [3,1]: must be ordered",
            ),
            (
                codes(json!({"operator": "In", "values": [3], "containerName": "x"})),
                "spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: \"x\": must be one of the container or initContainer names in the pod template",
            ),
            (
                success(json!({})),
                "spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified",
            ),
            (
                success(json!({"succeededCount": 6})),
                "spec.successPolicy.rules[0].succeededCount: Invalid value: 6: must be less than or equal to 5 (the number of specified completions)",
            ),
            (
                success(json!({"succeededIndexes": "0-2", "succeededCount": 4})),
                "spec.successPolicy.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 3 (the number of indexes in the specified succeededIndexes field)",
            ),
            (
                success(json!({"succeededIndexes": "0-9"})),
                "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"0-9\": error parsing succeededIndexes: too large index: \"9\"",
            ),
            (
                success(json!({"succeededIndexes": "3,1"})),
                "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"3,1\": error parsing succeededIndexes: non-increasing order, previous: 3, current: 1",
            ),
            (
                json!({"podReplacementPolicy": "X"}),
                "spec.podReplacementPolicy: Unsupported value: \"X\": supported values: \"Failed\", \"TerminatingOrFailed\"",
            ),
            (
                json!({"managedBy": "x"}),
                "spec.managedBy: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
        ] {
            assert_eq!(texts(change.clone()).join("; "), wanted, "{change}");
        }
    }

    #[test]
    fn what_may_change() {
        let object = |spec: Value| json!({"spec": spec}).as_object().unwrap().clone();
        let indexed = |completions: i64, parallelism: i64| {
            object(
                json!({"completionMode": "Indexed", "completions": completions, "parallelism": parallelism}),
            )
        };
        let texts = |new: &Object, old: &Object| -> Vec<String> {
            job_update(new, old).iter().map(ToString::to_string).collect()
        };
        assert!(texts(&indexed(3, 3), &indexed(2, 2)).is_empty());
        let tandem =
            "spec.completions: Invalid value: 3: can only be modified in tandem with spec.parallelism";
        assert_eq!(texts(&indexed(3, 2), &indexed(2, 2)), [tandem]);
        let plain = |completions: i64| object(json!({"completions": completions}));
        let fixed = "spec.completions: Invalid value: 3: field is immutable";
        assert_eq!(texts(&plain(3), &plain(2)), [fixed]);
    }
}
