//! FlowSchemas and PriorityLevelConfigurations as the chain reads them, and which schema a request matches.

use meta::UserInfo;
use serde_json::Value;

use super::queues::{HAND_MAX, Mode, Queuing};
use crate::path::RequestInfo;

/// What a priority level is entitled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Share of the server's seats, relative to the others'.
    pub shares: u32,
    /// Part that others may have while it is not wanted.
    pub lendable_percent: u32,
    /// Most that it takes from others, by what it is entitled to; absent for all there is.
    pub borrowing_percent: Option<u32>,
}

/// A priority level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LevelConfig {
    /// Name.
    pub name: String,
    /// Unique id; empty for one that exists only here.
    pub uid: String,
    /// Seats.
    pub limits: Limits,
    /// What happens to those over the limit.
    pub mode: Mode,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn texts(value: &Value, key: &str) -> Vec<String> {
    let list = value.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
}

/// Most queues of a level (validation has the same limit).
const QUEUES_MAX: usize = 10_000;

impl LevelConfig {
    /// Reads a PriorityLevelConfiguration.
    pub fn from_json(object: &Value) -> LevelConfig {
        let spec = &object["spec"];
        let exempt = text(spec, "type") == "Exempt";
        let part = if exempt { &spec["exempt"] } else { &spec["limited"] };
        let number =
            |v: &Value, key: &str| v.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        // Without a number of its own, a limited level has the default's shares.
        let shares = number(part, "nominalConcurrencyShares").unwrap_or(if exempt { 0 } else { 30 });
        let response = &part["limitResponse"];
        let queuing = &response["queuing"];
        let size = |key: &str, default: usize, most: usize| {
            let found = queuing.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
            found.unwrap_or(default).clamp(1, most)
        };
        let mode = match (exempt, text(response, "type")) {
            (true, _) => Mode::Exempt,
            (false, "Queue") => Mode::Queue(Queuing {
                queues: size("queues", 64, QUEUES_MAX),
                hand: size("handSize", 8, HAND_MAX),
                length: size("queueLengthLimit", 50, usize::MAX),
            }),
            _ => Mode::Reject,
        };
        LevelConfig {
            name: text(&object["metadata"], "name").into(),
            uid: text(&object["metadata"], "uid").into(),
            limits: Limits {
                shares,
                lendable_percent: number(part, "lendablePercent").unwrap_or(0).min(100),
                borrowing_percent: number(part, "borrowingLimitPercent"),
            },
            mode,
        }
    }
}

/// How the requests of a schema are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distinguisher {
    None,
    User,
    Namespace,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
    Account { namespace: String, name: String },
}

/// `*` or one of several.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Names(Option<Vec<String>>);

impl Names {
    fn read(value: &Value, key: &str) -> Names {
        let list = texts(value, key);
        Names((list != ["*"]).then_some(list))
    }

    fn has(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|list| list.iter().any(|n| n == name))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ResourceRule {
    verbs: Names,
    groups: Names,
    resources: Names,
    namespaces: Names,
    cluster: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PathRule {
    verbs: Names,
    paths: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

/// A FlowSchema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaConfig {
    /// Name.
    pub name: String,
    /// Unique id; empty for one that exists only here.
    pub uid: String,
    /// The lower, the earlier it is asked.
    pub precedence: u64,
    /// Name of its priority level.
    pub level: String,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

fn subject(value: &Value) -> Option<Subject> {
    Some(match text(value, "kind") {
        "User" => Subject::User(text(value.get("user")?, "name").into()),
        "Group" => Subject::Group(text(value.get("group")?, "name").into()),
        "ServiceAccount" => {
            let account = value.get("serviceAccount")?;
            Subject::Account {
                namespace: text(account, "namespace").into(),
                name: text(account, "name").into(),
            }
        }
        _ => return None,
    })
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// Precedence of a schema that names none.
const PRECEDENCE: u64 = 1000;

impl SchemaConfig {
    /// Reads a FlowSchema.
    pub fn from_json(object: &Value) -> SchemaConfig {
        let spec = &object["spec"];
        let rule = |r: &Value| Rule {
            subjects: list(r, "subjects").filter_map(subject).collect(),
            resources: list(r, "resourceRules")
                .map(|r| ResourceRule {
                    verbs: Names::read(r, "verbs"),
                    groups: Names::read(r, "apiGroups"),
                    resources: Names::read(r, "resources"),
                    namespaces: Names::read(r, "namespaces"),
                    cluster: r["clusterScope"] == true,
                })
                .collect(),
            paths: list(r, "nonResourceRules")
                .map(|r| PathRule { verbs: Names::read(r, "verbs"), paths: texts(r, "nonResourceURLs") })
                .collect(),
        };
        SchemaConfig {
            name: text(&object["metadata"], "name").into(),
            uid: text(&object["metadata"], "uid").into(),
            precedence: spec["matchingPrecedence"].as_u64().unwrap_or(PRECEDENCE),
            level: text(&spec["priorityLevelConfiguration"], "name").into(),
            distinguisher: match text(&spec["distinguisherMethod"], "type") {
                "ByUser" => Distinguisher::User,
                "ByNamespace" => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: list(spec, "rules").map(rule).collect(),
        }
    }

    /// What tells the flows of this schema apart, for a request.
    pub fn distinguisher<'a>(&self, info: &'a RequestInfo, user: &'a UserInfo) -> &'a str {
        match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => &user.username,
            Distinguisher::Namespace => &info.namespace,
        }
    }

    /// Whether a request belongs to it.
    pub fn matches(&self, info: &RequestInfo, path: &str, user: &UserInfo) -> bool {
        self.rules.iter().any(|rule| {
            rule.subjects.iter().any(|s| s.is(user))
                && match info.is_resource {
                    true => rule.resources.iter().any(|r| r.matches(info)),
                    false => rule.paths.iter().any(|p| p.matches(info.verb, path)),
                }
        })
    }
}

impl Subject {
    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(name) => name == "*" || *name == user.username,
            Subject::Group(name) => name == "*" || user.in_group(name),
            Subject::Account { namespace, name } => {
                let rest = user.username.strip_prefix("system:serviceaccount:");
                let rest = rest.and_then(|r| r.strip_prefix(&**namespace)).and_then(|r| r.strip_prefix(':'));
                rest.is_some_and(|found| name == "*" || found == name)
            }
        }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = || match info.subresource.is_empty() {
            true => self.resources.has(&info.resource),
            false => self.resources.has(&format!("{}/{}", info.resource, info.subresource)),
        };
        let place =
            || if info.namespace.is_empty() { self.cluster } else { self.namespaces.has(&info.namespace) };
        self.verbs.has(info.verb) && self.groups.has(&info.group) && resource() && place()
    }
}

impl PathRule {
    fn matches(&self, verb: &str, path: &str) -> bool {
        self.verbs.has(verb)
            && self.paths.iter().any(|p| {
                let prefix = p.strip_suffix('*').unwrap_or(p).trim_end_matches('/');
                p == "*" || p == path || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::{Query, parse};

    fn matched(user: &UserInfo, method: &str, url: &str) -> String {
        let mut schemas: Vec<SchemaConfig> =
            super::super::defaults::schemas().iter().map(|d| SchemaConfig::from_json(&d.object)).collect();
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let info = parse(&method.parse().unwrap(), path, &Query::parse(query));
        schemas.iter().find(|s| s.matches(&info, path, user)).map(|s| s.name.clone()).unwrap_or_default()
    }

    #[test]
    fn requests_find_upstreams_schemas() {
        let user = |name: &str| UserInfo::authenticated(name, &[]);
        let node = UserInfo::authenticated("system:node:a", &["system:nodes"]);
        let account = |ns: &str, name: &str| UserInfo::service_account(ns, name);
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/a";
        for (user, method, url, wanted) in [
            (UserInfo::authenticated("a", &["system:masters"]), "GET", "/api/v1/pods", "exempt"),
            (UserInfo::anonymous(), "GET", "/healthz", "probes"),
            (UserInfo::anonymous(), "GET", "/livez/ping", "probes"),
            (UserInfo::anonymous(), "GET", "/healthzz", "global-default"),
            (user("jane"), "GET", "/api/v1/pods", "global-default"),
            (user("system:kube-scheduler"), "GET", "/api/v1/pods", "kube-scheduler"),
            (user("system:kube-scheduler"), "PUT", lease, "system-leader-election"),
            (user("system:kube-scheduler"), "DELETE", lease, "kube-scheduler"),
            (node.clone(), "PUT", lease, "system-node-high"),
            (node.clone(), "PATCH", "/api/v1/nodes/a/status", "system-node-high"),
            (node.clone(), "GET", "/api/v1/pods", "system-nodes"),
            (account("kube-system", "job-controller"), "GET", "/api/v1/pods", "kube-system-service-accounts"),
            (account("kube-systemx", "y"), "GET", "/api/v1/pods", "service-accounts"),
            (account("default", "default"), "GET", "/version", "service-accounts"),
            (UserInfo { username: "x".into(), ..Default::default() }, "GET", "/version", ""),
        ] {
            assert_eq!(matched(&user, method, url), wanted, "{} {method} {url}", user.username);
        }
    }
}
