//! The audit policy: how much is written down about which requests (`audit.k8s.io/v1` Policy).

use meta::UserInfo;
use serde::Deserialize;

use crate::path::RequestInfo;

/// How much is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    /// Nothing.
    None,
    /// Who did what and when.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

impl Level {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }
}

/// When it is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// The request is there.
    RequestReceived,
    /// The answer of a long-running request begins.
    ResponseStarted,
    /// The answer is complete.
    ResponseComplete,
    /// The handler failed.
    Panic,
}

impl Stage {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    paths: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

/// A policy.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde_json::Value,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

/// A policy that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is no policy.
    #[error("failed decoding: {0}")]
    Decode(String),
    /// It is of another kind.
    #[error("unknown group version field {0:?} in policy")]
    Version(String),
    /// It says nothing.
    #[error("loaded illegal policy with 0 rules")]
    Empty,
    /// A rule is about objects and about paths.
    #[error(
        "rules[{0}].nonResourceURLs: Invalid value: rules cannot apply to both regular resources and non-resource URLs"
    )]
    Both(usize),
    /// A path has a wildcard in the middle.
    #[error(
        "rules[{0}].nonResourceURLs: Invalid value: {1:?}: non-resource URL wildcards '*' must be the final character of the rule"
    )]
    Wildcard(usize, String),
}

/// What a policy says of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// How much.
    pub level: Level,
    /// When not.
    pub omit: Vec<Stage>,
    /// Whether field managers are left out of objects.
    pub omit_managed_fields: bool,
}

fn has(list: &[String], text: &str) -> bool {
    list.iter().any(|t| t == text)
}

impl Policy {
    /// Reads a policy in YAML or JSON.
    pub fn parse(text: &str) -> Result<Policy, PolicyError> {
        let policy: Policy = serde_saphyr::from_str(text).map_err(|e| PolicyError::Decode(e.to_string()))?;
        if policy.api_version != "audit.k8s.io/v1" || policy.kind != "Policy" {
            return Err(PolicyError::Version(format!("{}, Kind={}", policy.api_version, policy.kind)));
        }
        if policy.rules.is_empty() {
            return Err(PolicyError::Empty);
        }
        for (i, rule) in policy.rules.iter().enumerate() {
            if !rule.paths.is_empty() && !(rule.resources.is_empty() && rule.namespaces.is_empty()) {
                return Err(PolicyError::Both(i));
            }
            let middle = |p: &&String| p.find('*').is_some_and(|at| at + 1 < p.len());
            if let Some(path) = rule.paths.iter().find(middle) {
                return Err(PolicyError::Wildcard(i, path.clone()));
            }
        }
        Ok(policy)
    }

    /// What is written down about a request; nothing if no rule is about it.
    pub fn decide(&self, user: Option<&UserInfo>, info: &RequestInfo, path: &str) -> Option<Decision> {
        let rule = self.rules.iter().find(|r| r.matches(user, info, path))?;
        let omit = self.omit_stages.iter().chain(&rule.omit_stages).copied().collect();
        let omit_managed_fields = rule.omit_managed_fields.unwrap_or(self.omit_managed_fields);
        (rule.level > Level::None).then_some(Decision { level: rule.level, omit, omit_managed_fields })
    }
}

impl Rule {
    fn matches(&self, user: Option<&UserInfo>, info: &RequestInfo, path: &str) -> bool {
        if !self.users.is_empty() && !user.is_some_and(|u| has(&self.users, &u.username)) {
            return false;
        }
        if !self.user_groups.is_empty()
            && !user.is_some_and(|u| u.groups.iter().any(|g| has(&self.user_groups, g)))
        {
            return false;
        }
        if !self.verbs.is_empty() && !has(&self.verbs, info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource && self.is_about(info);
        }
        self.paths.is_empty()
            || (!info.is_resource
                && self
                    .paths
                    .iter()
                    .any(|p| p == path || p.strip_suffix('*').is_some_and(|p| path.starts_with(p))))
    }

    fn is_about(&self, info: &RequestInfo) -> bool {
        if !self.namespaces.is_empty() && !has(&self.namespaces, &info.namespace) {
            return false;
        }
        let matches = |pattern: &String| match (pattern.split_once('/'), info.subresource.is_empty()) {
            _ if pattern == "*" => true,
            (None, empty) => empty && *pattern == info.resource,
            (Some(_), true) => false,
            (Some((resource, sub)), false) => {
                (resource == "*" || resource == info.resource) && (sub == "*" || sub == info.subresource)
            }
        };
        self.resources.is_empty()
            || self.resources.iter().any(|r| {
                r.group == info.group
                    && (r.resources.is_empty()
                        || (r.resources.iter().any(matches)
                            && (r.resource_names.is_empty() || has(&r.resource_names, &info.name))))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::{Query, parse};

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- {level: None, users: ["system:kube-proxy"], verbs: [watch]}
- {level: None, nonResourceURLs: ["/healthz*", "/version"]}
- {level: None, userGroups: ["system:nodes"]}
- level: Metadata
  resources: [{group: "", resources: [secrets, "serviceaccounts/*", "*/status"]}]
- {level: Request, namespaces: [a], omitManagedFields: false, omitStages: [Panic]}
- {level: RequestResponse, resources: [{group: "", resources: [configmaps], resourceNames: [x]}, {group: apps}]}
"#;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = Policy::parse(POLICY).unwrap();
        let level = |user: &str, groups: &[&str], method: &str, url: &str| {
            let user = UserInfo::authenticated(user, groups);
            let (path, query) = url.split_once('?').unwrap_or((url, ""));
            let info = parse(&method.parse().unwrap(), path, &Query::parse(query));
            policy.decide(Some(&user), &info, path).map_or("None", |d| d.level.as_str())
        };
        for (user, groups, method, url, wanted) in [
            ("system:kube-proxy", &[][..], "GET", "/api/v1/services?watch=1", "None"),
            ("jane", &[], "GET", "/healthz/ping", "None"),
            ("jane", &["system:nodes"], "GET", "/api/v1/secrets", "None"),
            ("jane", &[], "GET", "/api/v1/secrets", "Metadata"),
            ("jane", &[], "POST", "/api/v1/namespaces/b/serviceaccounts/x/token", "Metadata"),
            ("jane", &[], "PUT", "/api/v1/namespaces/b/pods/x/status", "Metadata"),
            ("jane", &[], "PUT", "/api/v1/namespaces/a/pods/x", "Request"),
            ("jane", &[], "GET", "/api/v1/namespaces/b/configmaps/x", "RequestResponse"),
            ("jane", &[], "GET", "/api/v1/namespaces/b/configmaps/y", "None"),
            ("jane", &[], "GET", "/apis/apps/v1/deployments", "RequestResponse"),
            ("jane", &[], "GET", "/apis", "None"),
        ] {
            assert_eq!(level(user, groups, method, url), wanted, "{user} {method} {url}");
        }
        let info = parse(&http::Method::GET, "/api/v1/namespaces/a/pods", &Query::default());
        let decision = policy.decide(None, &info, "/api/v1/namespaces/a/pods").unwrap();
        assert_eq!(decision.omit, [Stage::RequestReceived, Stage::Panic]);
        assert!(!decision.omit_managed_fields);
    }

    #[test]
    fn policies_that_cannot_be_meant() {
        let told = |rules: &str| {
            let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: {rules}");
            Policy::parse(&text).unwrap_err().to_string()
        };
        assert_eq!(told("[]"), "loaded illegal policy with 0 rules");
        assert!(told("[{level: Some}]").starts_with("failed decoding"));
        assert!(told("[{level: None, colour: red}]").starts_with("failed decoding"));
        assert!(
            told("[{level: None, namespaces: [a], nonResourceURLs: [/x]}]")
                .contains("both regular resources")
        );
        assert!(told("[{level: None, nonResourceURLs: ['/x*y']}]").contains("must be the final character"));
    }
}
