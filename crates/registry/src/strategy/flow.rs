//! Flow control: FlowSchemas and PriorityLevelConfigurations. Two of each are in every cluster and stay as they are.

use meta::{FieldError, names};
use serde_json::{Value, json};

use super::{Object, Strategy};
use crate::write::meta_text;

/// Largest precedence, and the one that only the schema `exempt` may have.
const PRECEDENCE_MAX: i64 = 10_000;
const PRECEDENCE_EXEMPT: i64 = 1;
/// Most queues of a level (upstream's).
const QUEUES_MAX: i64 = 10_000_000;
/// Bits of the hash that hands are dealt from.
const HASH_BITS_MAX: i64 = 60;
/// What rules may name; `*` is all of them.
const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
/// The names that exist in every cluster.
const EXEMPT: &str = "exempt";
const CATCH_ALL: &str = "catch-all";

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn items(value: &Value) -> impl Iterator<Item = (usize, &Value)> {
    value.as_array().into_iter().flatten().enumerate()
}

/// A value without what is as good as absent.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().map(|(k, v)| (k.clone(), plain(v))).filter(|(_, v)| !is_absent(v));
            Value::Object(kept.collect())
        }
        Value::Array(all) => all.iter().map(plain).collect(),
        other => other.clone(),
    }
}

fn is_absent(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        _ => false,
    }
}

/// Strategy of FlowSchemas.
pub struct FlowSchema;

impl Strategy for FlowSchema {
    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        let (name, spec) = (meta_text(object, "name"), object.get("spec").unwrap_or(&Value::Null));
        let mut errors = Vec::new();
        let precedence = &spec["matchingPrecedence"];
        match precedence.as_i64().unwrap_or(0) {
            n if n <= 0 => {
                errors.push(FieldError::invalid(
                    "spec.matchingPrecedence",
                    precedence,
                    "must be a positive value",
                ));
            }
            n if n > PRECEDENCE_MAX => {
                let why = format!("must not be greater than {PRECEDENCE_MAX}");
                errors.push(FieldError::invalid("spec.matchingPrecedence", precedence, &why));
            }
            PRECEDENCE_EXEMPT if name != EXEMPT => {
                let why = "only the schema named 'exempt' may have matchingPrecedence 1";
                errors.push(FieldError::invalid("spec.matchingPrecedence", precedence, why));
            }
            _ => {}
        }
        let level = spec["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
        let at = "spec.priorityLevelConfiguration.name";
        match names::subdomain_problem(level) {
            _ if level.is_empty() => errors.push(FieldError::required(at, "must reference a priority level")),
            Some(why) => errors.push(FieldError::invalid(at, &level.into(), &why)),
            None => {}
        }
        for (i, rule) in items(&spec["rules"]) {
            schema_rule(rule, &format!("spec.rules[{i}]"), &mut errors);
        }
        if mandatory_schema(name).is_some_and(|wanted| plain(&wanted) != plain(spec)) {
            let why = format!("spec of '{name}' must equal the fixed value");
            errors.push(FieldError::invalid("spec", spec, &why));
        }
        errors
    }
}

fn schema_rule(rule: &Value, at: &str, errors: &mut Vec<FieldError>) {
    if items(&rule["subjects"]).next().is_none() {
        let why = "subjects must contain at least one value";
        errors.push(FieldError::required(format!("{at}.subjects"), why));
    }
    for (i, one) in items(&rule["subjects"]) {
        subject(one, &format!("{at}.subjects[{i}]"), errors);
    }
    let (resources, paths) = (&rule["resourceRules"], &rule["nonResourceRules"]);
    if items(resources).next().is_none() && items(paths).next().is_none() {
        let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(FieldError::required(at, why));
    }
    for (i, one) in items(resources) {
        resource_rule(one, &format!("{at}.resourceRules[{i}]"), errors);
    }
    for (i, one) in items(paths) {
        path_rule(one, &format!("{at}.nonResourceRules[{i}]"), errors);
    }
}

/// Kinds of subjects, and the member that says which.
const SUBJECTS: [(&str, &str); 3] =
    [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];

fn subject(value: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let kind = value["kind"].as_str().unwrap_or_default();
    if !SUBJECTS.iter().any(|(k, _)| *k == kind) {
        let allowed = SUBJECTS.map(|(k, _)| k);
        return errors.push(FieldError::not_supported(format!("{at}.kind"), &value["kind"], &allowed));
    }
    for (of, member) in SUBJECTS {
        let (there, at) = (&value[member], format!("{at}.{member}"));
        match (of == kind, there.is_null()) {
            (true, true) => {
                let why = format!("{member} is required when subject kind is '{of}'");
                errors.push(FieldError::required(at, &why));
            }
            (true, false) => subject_name(member, there, &at, errors),
            (false, false) => {
                let why = format!("{member} is forbidden when subject kind is not '{of}'");
                errors.push(FieldError::forbidden(at, &why));
            }
            (false, true) => {}
        }
    }
}

fn subject_name(member: &str, value: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let name = value["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        errors.push(FieldError::required(format!("{at}.name"), ""));
    }
    if member != "serviceAccount" {
        return;
    }
    if !matches!(name, "" | "*")
        && let Some(why) = names::subdomain_problem(name)
    {
        errors.push(FieldError::invalid(format!("{at}.name"), &name.into(), &why));
    }
    let (namespace, at) = (value["namespace"].as_str().unwrap_or_default(), format!("{at}.namespace"));
    match names::label_problem(namespace) {
        _ if namespace.is_empty() => {
            errors.push(FieldError::required(at, "must specify namespace for service account"));
        }
        Some(why) => errors.push(FieldError::invalid(at, &namespace.into(), &why)),
        None => {}
    }
}

/// A list that is `*` alone or names things; `empty` and `others` say what is wrong with none, and with more beside
/// the `*`. Whether it names things.
fn wildcard(value: &Value, at: &str, empty: &str, others: &str, errors: &mut Vec<FieldError>) -> bool {
    let all = texts(value);
    if all.is_empty() {
        errors.push(FieldError::required(at, empty));
    } else if all.contains(&"*") {
        if all.len() > 1 {
            errors.push(FieldError::invalid(
                at,
                value,
                &format!("if '*' is present, must not specify other {others}"),
            ));
        }
        return false;
    }
    !all.is_empty()
}

fn verbs(rule: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let (value, at) = (&rule["verbs"], format!("{at}.verbs"));
    let named = wildcard(value, &at, "verbs must contain at least one value", "verbs", errors);
    if named && !texts(value).iter().all(|v| VERBS.contains(v)) {
        errors.push(FieldError::not_supported(at, value, &VERBS));
    }
}

fn resource_rule(rule: &Value, at: &str, errors: &mut Vec<FieldError>) {
    verbs(rule, at, errors);
    let why = "resource rules must supply at least one api group";
    wildcard(&rule["apiGroups"], &format!("{at}.apiGroups"), why, "api groups", errors);
    let why = "resource rules must supply at least one resource";
    wildcard(&rule["resources"], &format!("{at}.resources"), why, "resources", errors);
    let at = format!("{at}.namespaces");
    if texts(&rule["namespaces"]).is_empty() && rule["clusterScope"] == true {
        return;
    }
    let why = "resource rules that are not cluster scoped must supply at least one namespace";
    if wildcard(&rule["namespaces"], &at, why, "namespaces", errors) {
        for (i, namespace) in items(&rule["namespaces"]) {
            if let Some(why) = names::label_problem(namespace.as_str().unwrap_or_default()) {
                let why = format!("each member of this list must be '*' or a DNS-1123 label; {why}");
                errors.push(FieldError::invalid(format!("{at}[{i}]"), namespace, &why));
            }
        }
    }
}

fn path_rule(rule: &Value, at: &str, errors: &mut Vec<FieldError>) {
    verbs(rule, at, errors);
    let (value, at) = (&rule["nonResourceURLs"], format!("{at}.nonResourceURLs"));
    let why = "nonResourceURLs must contain at least one value";
    if wildcard(value, &at, why, "non-resource URLs", errors) {
        for (i, path) in items(value) {
            if let Some(why) = path_problem(path.as_str().unwrap_or_default()) {
                errors.push(FieldError::invalid(format!("{at}[{i}]"), path, why));
            }
        }
    }
}

fn path_problem(path: &str) -> Option<&'static str> {
    let stars = path.matches('*').count();
    match () {
        () if path.is_empty() => Some("must not be empty"),
        () if path == "/" => None,
        () if !path.starts_with('/') => Some("must start with slash"),
        () if path.contains(' ') => Some("must not contain white-space"),
        () if path.contains("//") => Some("must not contain double slash"),
        () if stars > 1 || (stars == 1 && !path.ends_with('*')) => {
            Some("wildcard can only do suffix matching")
        }
        () => None,
    }
}

/// The spec of a schema that is in every cluster.
fn mandatory_schema(name: &str) -> Option<Value> {
    let groups: &[&str] = match name {
        EXEMPT => &["system:masters"],
        CATCH_ALL => &["system:unauthenticated", "system:authenticated"],
        _ => return None,
    };
    let subjects: Vec<Value> =
        groups.iter().map(|g| json!({"kind": "Group", "group": {"name": g}})).collect();
    let all = ["*"];
    let rule = json!({"subjects": subjects,
        "resourceRules": [{"verbs": all, "apiGroups": all, "resources": all, "namespaces": all, "clusterScope": true}],
        "nonResourceRules": [{"verbs": all, "nonResourceURLs": all}]});
    Some(match name {
        EXEMPT => {
            json!({"priorityLevelConfiguration": {"name": EXEMPT}, "matchingPrecedence": 1, "rules": [rule]})
        }
        _ => json!({"priorityLevelConfiguration": {"name": CATCH_ALL}, "matchingPrecedence": PRECEDENCE_MAX,
            "distinguisherMethod": {"type": "ByUser"}, "rules": [rule]}),
    })
}

/// Strategy of PriorityLevelConfigurations.
pub struct PriorityLevel;

impl Strategy for PriorityLevel {
    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        let (name, spec) = (meta_text(object, "name"), object.get("spec").unwrap_or(&Value::Null));
        let mut errors = Vec::new();
        let ty = spec["type"].as_str().unwrap_or_default();
        if (name == EXEMPT) != (ty == "Exempt") {
            let why = "type must be 'Exempt' if and only if name is 'exempt'";
            errors.push(FieldError::invalid("spec.type", &spec["type"], why));
        }
        match ty {
            "Exempt" => {
                if !spec["limited"].is_null() {
                    let why = "must be nil if the type is not Limited";
                    errors.push(FieldError::forbidden("spec.limited", why));
                }
                if !spec["exempt"].is_null() {
                    shares(&spec["exempt"], "spec.exempt", &mut errors);
                }
            }
            "Limited" => {
                if !spec["exempt"].is_null() {
                    errors.push(FieldError::forbidden("spec.exempt", "must be nil if the type is Limited"));
                }
                match &spec["limited"] {
                    Value::Null => {
                        let why = "must not be empty when type is Limited";
                        errors.push(FieldError::required("spec.limited", why));
                    }
                    limited => limits(limited, &mut errors),
                }
            }
            _ => errors.push(FieldError::not_supported("spec.type", &spec["type"], &["Exempt", "Limited"])),
        }
        if name == CATCH_ALL && !is_catch_all(spec) {
            let why = format!("spec of '{name}' must equal the fixed value");
            errors.push(FieldError::invalid("spec", spec, &why));
        }
        errors
    }
}

fn is_catch_all(spec: &Value) -> bool {
    let fixed = json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0,
        "limitResponse": {"type": "Reject"}}});
    let mut spec = plain(spec);
    if let Some(limited) = spec.get_mut("limited").and_then(Value::as_object_mut) {
        limited.entry("lendablePercent").or_insert_with(|| 0.into());
    }
    spec == fixed
}

/// What limited and exempt levels have in common.
fn shares(value: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let (shares, lendable) = (&value["nominalConcurrencyShares"], &value["lendablePercent"]);
    if shares.as_i64().is_some_and(|n| n < 0) {
        let why = "must be a non-negative integer";
        errors.push(FieldError::invalid(format!("{at}.nominalConcurrencyShares"), shares, why));
    }
    if lendable.as_i64().is_some_and(|n| !(0..=100).contains(&n)) {
        let why = "must be between 0 and 100, inclusive";
        errors.push(FieldError::invalid(format!("{at}.lendablePercent"), lendable, why));
    }
}

fn limits(limited: &Value, errors: &mut Vec<FieldError>) {
    shares(limited, "spec.limited", errors);
    let borrowing = &limited["borrowingLimitPercent"];
    if borrowing.as_i64().is_some_and(|n| n < 0) {
        let why = "if specified, must be a non-negative integer";
        errors.push(FieldError::invalid("spec.limited.borrowingLimitPercent", borrowing, why));
    }
    let (response, at) = (&limited["limitResponse"], "spec.limited.limitResponse");
    let queuing = &response["queuing"];
    match (response["type"].as_str().unwrap_or_default(), queuing.is_null()) {
        ("Reject", false) => {
            let why = "must be nil if limited.limitResponse.type is not Limited";
            errors.push(FieldError::forbidden(format!("{at}.queuing"), why));
        }
        ("Queue", true) => {
            let why = "must not be empty if limited.limitResponse.type is Limited";
            errors.push(FieldError::required(format!("{at}.queuing"), why));
        }
        ("Queue", false) => queues(queuing, &format!("{at}.queuing"), errors),
        ("Reject", true) => {}
        _ => errors.push(FieldError::not_supported(
            format!("{at}.type"),
            &response["type"],
            &["Queue", "Reject"],
        )),
    }
}

fn queues(queuing: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let number = |key: &str| queuing[key].as_i64().unwrap_or(0);
    let mut invalid = |key: &str, why: &str| {
        errors.push(FieldError::invalid(format!("{at}.{key}"), &number(key).into(), why));
    };
    let (queues, hand) = (number("queues"), number("handSize"));
    if number("queueLengthLimit") <= 0 {
        invalid("queueLengthLimit", "must be positive");
    }
    match queues {
        n if n <= 0 => invalid("queues", "must be positive"),
        n if n > QUEUES_MAX => invalid("queues", &format!("must not be greater than {QUEUES_MAX}")),
        _ => {}
    }
    if hand <= 0 {
        invalid("handSize", "must be positive");
    } else if hand > queues {
        invalid("handSize", &format!("should not be greater than queues ({queues})"));
    } else if entropy_bits(queues, hand) > HASH_BITS_MAX {
        let why = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS_MAX}"
        );
        invalid("handSize", &why);
    }
}

/// Bits that dealing a hand takes, as upstream reckons: each card as if from the whole deck.
fn entropy_bits(deck: i64, hand: i64) -> i64 {
    ((deck.max(1) as f64).log2() * hand as f64).ceil() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_hands() {
        for (path, problem) in [
            ("/", None),
            ("/healthz/*", None),
            ("", Some("must not be empty")),
            ("healthz", Some("must start with slash")),
            ("/a b", Some("must not contain white-space")),
            ("/a//b", Some("must not contain double slash")),
            ("/*/b", Some("wildcard can only do suffix matching")),
            ("/a**", Some("wildcard can only do suffix matching")),
        ] {
            assert_eq!(path_problem(path), problem, "{path}");
        }
        for (deck, hand, bits) in [(1024, 6, 60), (512, 8, 72), (32, 8, 40), (32, 12, 60), (128, 6, 42)] {
            assert_eq!(entropy_bits(deck, hand), bits, "{hand} of {deck}");
        }
    }
}
