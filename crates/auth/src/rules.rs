//! RBAC rules as values: matching a request, covering another rule, aggregation.
//!
//! The semantics are those of rbac.authorization.k8s.io/v1 `PolicyRule`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Matches everything.
const ALL: &str = "*";

/// One rule of a role (rbac/v1 PolicyRule).
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Verbs; `*` is all.
    #[serde(deserialize_with = "nullable")]
    pub verbs: Vec<String>,
    /// API groups; empty string is the core group, `*` is all.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// Resources as `pods`, `pods/log`, `*`, `*/scale`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Names the rule is limited to; empty means any.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths, the last character may be `*`.
    #[serde(
        rename = "nonResourceURLs",
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub non_resource_urls: Vec<String>,
}

/// Reads `null` as empty: Go encodes empty slices so.
fn nullable<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default())
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == ALL || item == wanted)
}

fn has_all(list: &[String], wanted: &[String]) -> bool {
    list.iter().any(|item| item == ALL) || wanted.iter().all(|item| list.contains(item))
}

/// Whether a path pattern matches a path.
fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

impl Rule {
    /// Whether the rule allows `verb` on a resource; `subresource` and `name` may be empty.
    pub fn allows_resource(
        &self,
        verb: &str,
        group: &str,
        resource: &str,
        subresource: &str,
        name: &str,
    ) -> bool {
        has(&self.verbs, verb)
            && has(&self.api_groups, group)
            && self.resources.iter().any(|rule| resource_matches(rule, resource, subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|allowed| allowed == name))
    }

    /// Whether the rule allows `verb` on a path.
    pub fn allows_path(&self, verb: &str, path: &str) -> bool {
        has(&self.verbs, verb) && self.non_resource_urls.iter().any(|pattern| path_matches(pattern, path))
    }

    /// Whether everything `wanted` allows, this rule allows too.
    pub fn covers(&self, wanted: &Rule) -> bool {
        let resources = self.resources.iter().any(|resource| resource == ALL)
            || wanted.resources.iter().all(|resource| {
                self.resources.contains(resource)
                    || resource
                        .split_once('/')
                        .is_some_and(|(_, sub)| self.resources.iter().any(|r| *r == format!("*/{sub}")))
            });
        let names = self.resource_names.is_empty()
            || (!wanted.resource_names.is_empty() && has_all(&self.resource_names, &wanted.resource_names));
        let paths = wanted.non_resource_urls.iter().all(|wanted| {
            self.non_resource_urls.iter().any(|have| {
                have == wanted || have == ALL || (have.ends_with('*') && path_matches(have, wanted))
            })
        });
        has_all(&self.verbs, &wanted.verbs)
            && has_all(&self.api_groups, &wanted.api_groups)
            && resources
            && names
            && paths
    }

    /// The same permissions as rules of one verb, group, resource, name or path each.
    fn breakdown(&self) -> Vec<Rule> {
        let one = |verb: &String| Rule { verbs: vec![verb.clone()], ..Rule::default() };
        let mut simple = Vec::new();
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    let rule = Rule {
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..one(verb)
                    };
                    if self.resource_names.is_empty() {
                        simple.push(rule);
                    } else {
                        simple.extend(
                            self.resource_names
                                .iter()
                                .map(|name| Rule { resource_names: vec![name.clone()], ..rule.clone() }),
                        );
                    }
                }
            }
            simple.extend(
                self.non_resource_urls
                    .iter()
                    .map(|url| Rule { non_resource_urls: vec![url.clone()], ..one(verb) }),
            );
        }
        simple
    }

    /// The rule in the short notation of upstream's messages.
    pub fn describe(&self) -> String {
        let list = |items: &[String]| {
            let quoted: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
            format!("[{}]", quoted.join(" "))
        };
        let mut parts = Vec::new();
        for (label, items) in [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ] {
            if !items.is_empty() {
                parts.push(format!("{label}:{}", list(items)));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }
}

/// Whether a rule's resource matches a requested one.
fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == ALL {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((first, second)) => {
            !subresource.is_empty() && second == subresource && (first == ALL || first == resource)
        }
    }
}

/// What `wanted` allows and `held` does not; empty when everything is covered. Verbs of the same target are
/// put together again.
pub fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut uncovered: Vec<Rule> = Vec::new();
    for rule in wanted.iter().flat_map(Rule::breakdown) {
        if held.iter().any(|have| have.covers(&rule)) {
            continue;
        }
        let same_target = |other: &&mut Rule| {
            other.api_groups == rule.api_groups
                && other.resources == rule.resources
                && other.resource_names == rule.resource_names
                && other.non_resource_urls == rule.non_resource_urls
        };
        match uncovered.iter_mut().find(same_target) {
            Some(other) if other.verbs.contains(&rule.verbs[0]) => {}
            Some(other) => other.verbs.extend(rule.verbs),
            None => uncovered.push(rule),
        }
    }
    uncovered
}

/// Upstream's refusal to grant what the granter does not hold.
pub fn escalation_message(username: &str, groups: &[String], missing: &[Rule]) -> String {
    let groups: Vec<String> = groups.iter().map(|group| format!("{group:?}")).collect();
    let mut lines: Vec<String> = missing.iter().map(Rule::describe).collect();
    lines.sort();
    format!(
        "user {username:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        groups.join(" "),
        lines.join("\n")
    )
}

/// The rules of a role object; what does not parse allows nothing.
pub fn rules_of(role: &Value) -> Vec<Rule> {
    match role.get("rules") {
        Some(Value::Array(rules)) => rules.iter().filter_map(|rule| Rule::deserialize(rule).ok()).collect(),
        _ => Vec::new(),
    }
}

/// What the rules of an aggregating ClusterRole should be: those of every role its selectors match, in order
/// of name and without repetition. `None` when the role does not aggregate.
pub fn aggregated_rules<'a>(role: &Value, all: impl IntoIterator<Item = &'a Value>) -> Option<Vec<Rule>> {
    let selectors = role.pointer("/aggregationRule/clusterRoleSelectors")?.as_array()?;
    let own_name = role.pointer("/metadata/name");
    let mut sources: Vec<&Value> = all
        .into_iter()
        .filter(|source| source.pointer("/metadata/name") != own_name)
        .filter(|source| selectors.iter().any(|selector| selects(selector, source)))
        .collect();
    sources
        .sort_by_key(|source| source.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default());
    let mut rules: Vec<Rule> = Vec::new();
    for rule in sources.into_iter().flat_map(rules_of) {
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    Some(rules)
}

/// Whether a label selector matches an object's labels (meta/v1 LabelSelector).
fn selects(selector: &Value, object: &Value) -> bool {
    let label = |key: &str| object.pointer("/metadata/labels").and_then(|labels| labels.get(key)?.as_str());
    let equal = selector.get("matchLabels").and_then(Value::as_object).is_none_or(|wanted| {
        wanted.iter().all(|(key, value)| label(key).is_some() && label(key) == value.as_str())
    });
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    equal
        && expressions.into_iter().flatten().all(|expression| {
            let found = expression.get("key").and_then(Value::as_str).and_then(label);
            let listed = expression
                .get("values")
                .and_then(Value::as_array)
                .is_some_and(|values| values.iter().any(|value| value.as_str() == found && found.is_some()));
            match expression.get("operator").and_then(Value::as_str) {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("Exists") => found.is_some(),
                Some("DoesNotExist") => found.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Rule {
        let owned = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        Rule {
            verbs: owned(verbs),
            api_groups: owned(groups),
            resources: owned(resources),
            resource_names: owned(names),
            non_resource_urls: vec![],
        }
    }

    #[test]
    fn matching() {
        let cases = [
            ("*", "pods", "", true),
            ("*", "pods", "log", true),
            ("pods", "pods", "", true),
            ("pods", "pods", "log", false),
            ("pods/log", "pods", "log", true),
            ("pods/log", "pods", "", false),
            ("*/scale", "deployments", "scale", true),
            ("*/scale", "deployments", "status", false),
            ("*/scale", "deployments", "", false),
        ];
        for (pattern, resource, sub, expected) in cases {
            assert_eq!(resource_matches(pattern, resource, sub), expected, "{pattern} {resource} {sub}");
        }
        let named = rule(&["get"], &[""], &["pods"], &["a"]);
        assert!(named.allows_resource("get", "", "pods", "", "a"));
        assert!(!named.allows_resource("get", "", "pods", "", "b"));
        assert!(!named.allows_resource("get", "", "pods", "", ""));
        let paths =
            Rule { non_resource_urls: vec!["/api/*".into(), "/x".into()], ..rule(&["get"], &[], &[], &[]) };
        assert!(paths.allows_path("get", "/api/v1") && paths.allows_path("get", "/x"));
        assert!(!paths.allows_path("get", "/api") && !paths.allows_path("put", "/x"));
    }

    #[test]
    fn covering() {
        let all = rule(&["*"], &["*"], &["*"], &[]);
        let pods = rule(&["get", "list"], &[""], &["pods"], &[]);
        let one = rule(&["get"], &[""], &["pods"], &["a"]);
        assert!(all.covers(&pods) && pods.covers(&one));
        assert!(!pods.covers(&all) && !one.covers(&pods));
        assert!(rule(&["get"], &["*"], &["*/scale"], &[]).covers(&rule(&["get"], &["a"], &["d/scale"], &[])));
        assert_eq!(missing(&[one.clone(), pods.clone()], std::slice::from_ref(&pods)), []);
        let wanted = rule(&["get", "list", "watch", "create"], &[""], &["pods"], &[]);
        assert_eq!(missing(&[pods], &[wanted]), [rule(&["watch", "create"], &[""], &["pods"], &[])]);
    }

    #[test]
    fn escalation_wording() {
        let lacking = [rule(&["get"], &[""], &["pods"], &[])];
        assert_eq!(
            escalation_message("u", &["g".into()], &lacking),
            "user \"u\" (groups=[\"g\"]) is attempting to grant RBAC permissions not currently held:\n\
             {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\"]}"
        );
    }

    #[test]
    fn aggregation_is_ordered_and_unique() {
        let aggregating = json!({"metadata": {"name": "view"}, "aggregationRule": {"clusterRoleSelectors":
            [{"matchLabels": {"to-view": "true"}}, {"matchExpressions": [{"key": "also", "operator": "Exists"}]}]}});
        let source = |name: &str, label: &str, verb: &str| {
            json!({"metadata": {"name": name, "labels": {label: "true"}},
                   "rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]})
        };
        let all = [
            source("b", "to-view", "list"),
            source("a", "also", "get"),
            source("c", "to-view", "get"),
            source("d", "other", "delete"),
        ];
        let rules = aggregated_rules(&aggregating, &all).unwrap();
        let verbs: Vec<_> = rules.iter().map(|rule| rule.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["get", "list"]);
        assert_eq!(aggregated_rules(&all[0], &all), None);
    }
}
