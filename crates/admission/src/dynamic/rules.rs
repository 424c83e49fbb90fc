//! Which requests a webhook or policy is about.

use meta::{LabelSelector, Status};
use serde_json::{Map, Value};

use super::{Resource, Subject, World, items, text};

/// One rule: operations, resources, scope, and names if it names any.
#[derive(Debug, Clone)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
    names: Vec<String>,
}

/// Rules and selectors together.
#[derive(Debug, Clone)]
pub struct Matcher {
    rules: Vec<Rule>,
    exclude: Vec<Rule>,
    equivalent: bool,
    namespaces: LabelSelector,
    objects: LabelSelector,
    /// Without rules: whether everything matches.
    any: bool,
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    items(value, key).iter().filter_map(|v| v.as_str().map(String::from)).collect()
}

impl Rule {
    fn from_json(v: &Value) -> Rule {
        Rule {
            operations: strings(v, "operations"),
            groups: strings(v, "apiGroups"),
            versions: strings(v, "apiVersions"),
            resources: strings(v, "resources"),
            scope: text(v, "scope").to_owned(),
            names: strings(v, "resourceNames"),
        }
    }

    fn matches(&self, subject: &Subject<'_>, resource: &Resource<'_>) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|v| v == "*" || v == wanted);
        has(&self.operations, subject.operation)
            && has(&self.groups, resource.group)
            && has(&self.versions, resource.version)
            && self.resources.iter().any(|r| names_resource(r, resource.resource, subject.subresource))
            && self.fits_scope(subject)
            && (self.names.is_empty() || self.names.iter().any(|n| n == subject.name))
    }

    fn fits_scope(&self, subject: &Subject<'_>) -> bool {
        // A namespace is its own namespace, but lives in none.
        match self.scope.as_str() {
            "Namespaced" => subject.namespaced,
            "Cluster" => !subject.namespaced,
            _ => true,
        }
    }
}

/// `pods`, `pods/status`, `pods/*`, `*/scale`, `*` (no subresources) and `*/*`.
fn names_resource(rule: &str, resource: &str, subresource: &str) -> bool {
    let (wanted, sub) = rule.split_once('/').unwrap_or((rule, ""));
    (wanted == "*" || wanted == resource) && (sub == "*" || sub == subresource)
}

impl Matcher {
    /// Of a webhook.
    pub fn webhook(v: &Value) -> Matcher {
        Matcher::new(v, "rules")
    }

    /// Of a policy's `matchConstraints` or a binding's `matchResources`.
    pub fn policy(v: &Value) -> Matcher {
        Matcher::new(v, "resourceRules")
    }

    /// A binding that restricts nothing.
    pub fn everything() -> Matcher {
        let mut all = Matcher::new(&Value::Null, "");
        all.any = true;
        all
    }

    /// Of a binding: without rules of its own only its selectors restrict.
    pub fn binding(v: &Value) -> Matcher {
        let mut matcher = Matcher::policy(v);
        matcher.any = matcher.rules.is_empty();
        matcher
    }

    fn new(v: &Value, rules: &str) -> Matcher {
        let selector =
            |key: &str| v.get(key).and_then(|s| LabelSelector::from_json(s).ok()).unwrap_or_default();
        Matcher {
            rules: items(v, rules).iter().map(Rule::from_json).collect(),
            exclude: items(v, "excludeResourceRules").iter().map(Rule::from_json).collect(),
            equivalent: text(v, "matchPolicy") != "Exact",
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
            any: false,
        }
    }

    /// Whether the request is meant, and as which version of its resource.
    pub fn matches<'a>(
        &self,
        subject: &Subject<'a>,
        world: &dyn World,
    ) -> Result<Option<Resource<'a>>, Status> {
        let Some(found) = self.resource(subject) else { return Ok(None) };
        if self.excluded(subject) || !self.objects_match(subject) {
            return Ok(None);
        }
        Ok(self.namespace_matches(subject, world)?.then_some(found))
    }

    fn resource<'a>(&self, subject: &Subject<'a>) -> Option<Resource<'a>> {
        if self.any {
            return Some(subject.asked);
        }
        let find = |rules: &[Rule], r: &Resource<'a>| rules.iter().any(|rule| rule.matches(subject, r));
        if find(&self.rules, &subject.asked) {
            return Some(subject.asked);
        }
        if !self.equivalent {
            return None;
        }
        subject.equivalents.iter().copied().find(|r| find(&self.rules, r))
    }

    fn excluded(&self, subject: &Subject<'_>) -> bool {
        let others = if self.equivalent { subject.equivalents } else { &[] };
        let mut candidates = std::iter::once(&subject.asked).chain(others);
        candidates.any(|r| self.exclude.iter().any(|rule| rule.matches(subject, r)))
    }

    fn objects_match(&self, subject: &Subject<'_>) -> bool {
        if self.objects.is_everything() {
            return true;
        }
        let fits = |object: Option<&Map<String, Value>>| {
            object.is_some_and(|o| o.contains_key("metadata") && self.objects.matches_with(|k| label(o, k)))
        };
        fits(subject.object) || fits(subject.old)
    }

    fn namespace_matches(&self, subject: &Subject<'_>, world: &dyn World) -> Result<bool, Status> {
        if self.namespaces.is_everything() {
            return Ok(true);
        }
        let is_namespace = subject.asked.resource == "namespaces" && subject.asked.group.is_empty();
        if is_namespace && subject.subresource.is_empty() {
            let own = subject.object.or(subject.old);
            return Ok(own.is_some_and(|o| self.namespaces.matches_with(|k| label(o, k))));
        }
        if subject.namespace.is_empty() {
            return Ok(true);
        }
        let Some(namespace) = world.namespace(subject.namespace) else {
            return Err(Status::not_found("", "namespaces", subject.namespace));
        };
        let labels = &namespace["metadata"]["labels"];
        Ok(self.namespaces.matches_with(|k| labels.get(k).and_then(Value::as_str)))
    }
}

fn label<'o>(object: &'o Map<String, Value>, key: &str) -> Option<&'o str> {
    object.get("metadata")?.get("labels")?.get(key)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_and_subresources() {
        for (rule, resource, sub, expected) in [
            ("pods", "pods", "", true),
            ("pods", "pods", "status", false),
            ("pods/*", "pods", "status", true),
            ("pods/*", "pods", "", true),
            ("*", "pods", "", true),
            ("*", "pods", "exec", false),
            ("*/*", "pods", "exec", true),
            ("*/scale", "deployments", "scale", true),
            ("pods/exec", "pods", "exec", true),
        ] {
            assert_eq!(names_resource(rule, resource, sub), expected, "{rule} {resource}/{sub}");
        }
    }
}
