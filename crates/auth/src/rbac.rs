//! The RBAC authorizer: an index of roles and bindings by subject, and the decision over it.
//!
//! The index is fed object by object from a watch and answers without touching storage. It allows or has
//! no opinion; it never denies.

use std::collections::HashMap;
use std::sync::Arc;

use meta::UserInfo;
use meta::user::GROUP_MASTERS;
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::Value;

use crate::rules::{Rule, rules_of};

/// What a request wants to do.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// Who.
    pub user: &'a UserInfo,
    /// API verb (`get`, `list`, `create`, ...), or the HTTP method in lower case for paths.
    pub verb: &'a str,
    /// API group.
    pub api_group: &'a str,
    /// API version.
    pub api_version: &'a str,
    /// Plural resource.
    pub resource: &'a str,
    /// Subresource or empty.
    pub subresource: &'a str,
    /// Name or empty.
    pub name: &'a str,
    /// Namespace or empty.
    pub namespace: &'a str,
    /// Path of the request, for what is not a resource.
    pub path: &'a str,
    /// Whether it is about a resource.
    pub resource_request: bool,
    /// Requirements of the field selector of a list, as SubjectAccessReview shows them.
    pub field_selector: Option<&'a Value>,
    /// Requirements of the label selector of a list, as SubjectAccessReview shows them.
    pub label_selector: Option<&'a Value>,
}

/// What an authorizer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Go ahead.
    Allow(String),
    /// Ask the next authorizer; a request nobody allows is refused.
    NoOpinion(String),
    /// Refused, whatever the next authorizer would say.
    Deny(String),
}

impl Decision {
    /// Whether it is allowed.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allow(_))
    }
}

impl<'a> Attributes<'a> {
    /// Nothing yet, by `user`.
    pub fn of(user: &'a UserInfo) -> Attributes<'a> {
        Attributes {
            user,
            verb: "",
            api_group: "",
            api_version: "",
            resource: "",
            subresource: "",
            name: "",
            namespace: "",
            path: "",
            resource_request: false,
            field_selector: None,
            label_selector: None,
        }
    }
}

impl Attributes<'_> {
    /// `resource` or `resource/subresource`.
    pub fn qualified_resource(&self) -> String {
        match self.subresource {
            "" => self.resource.to_owned(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }

    /// Upstream's sentence for a refused request, as it stands after `forbidden: `.
    pub fn refusal(&self) -> String {
        let user = &self.user.username;
        let verb = self.verb;
        if !self.resource_request {
            return format!("User {user:?} cannot {verb} path {:?}", self.path);
        }
        let scope = match self.namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        let resource = self.qualified_resource();
        format!("User {user:?} cannot {verb} resource {resource:?} in API group {:?} {scope}", self.api_group)
    }

    /// The 403 for this request.
    pub fn forbidden(&self, reason: &str) -> meta::Status {
        let mut why = self.refusal();
        if !reason.is_empty() {
            why = format!("{why}: {reason}");
        }
        if self.resource_request {
            meta::Status::forbidden(self.api_group, self.resource, self.name, &why)
        } else {
            meta::Status::forbidden("", "", "", &why)
        }
    }

    fn matches(&self, rule: &Rule) -> bool {
        if self.resource_request {
            rule.allows_resource(self.verb, self.api_group, self.resource, self.subresource, self.name)
        } else {
            rule.allows_path(self.verb, self.path)
        }
    }
}

/// Kinds of objects the index is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are Kubernetes' own and say it all")]
pub enum Kind {
    Role,
    ClusterRole,
    RoleBinding,
    ClusterRoleBinding,
}

impl Kind {
    /// The kind with this plural resource name.
    pub fn from_resource(resource: &str) -> Option<Kind> {
        Some(match resource {
            "roles" => Kind::Role,
            "clusterroles" => Kind::ClusterRole,
            "rolebindings" => Kind::RoleBinding,
            "clusterrolebindings" => Kind::ClusterRoleBinding,
            _ => return None,
        })
    }
}

/// The object is not a role or binding.
#[derive(Debug, thiserror::Error)]
#[error("not an RBAC object: {0}")]
pub struct InvalidObject(#[from] serde_json::Error);

#[derive(Debug, Clone, Deserialize)]
struct Subject {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Debug, Clone, Deserialize)]
struct RoleRef {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
}

/// Metadata that the index needs.
#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BindingObject {
    role_ref: RoleRef,
    #[serde(default)]
    subjects: Option<Vec<Subject>>,
}

/// A binding: in a namespace, or everywhere when `namespace` is empty.
#[derive(Debug)]
struct Binding {
    name: String,
    namespace: String,
    role: RoleRef,
    subjects: Vec<Subject>,
}

/// Whom a binding names, as the index looks it up. Service accounts are users by their user name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum SubjectKey {
    User(String),
    Group(String),
}

impl Subject {
    fn key(&self, binding_namespace: &str) -> Option<SubjectKey> {
        Some(match self.kind.as_str() {
            "User" => SubjectKey::User(self.name.clone()),
            "Group" => SubjectKey::Group(self.name.clone()),
            "ServiceAccount" => {
                let namespace =
                    if self.namespace.is_empty() { binding_namespace } else { self.namespace.as_str() };
                SubjectKey::User(format!("system:serviceaccount:{namespace}:{}", self.name))
            }
            _ => return None,
        })
    }

    fn describe(&self) -> String {
        match self.kind.as_str() {
            "ServiceAccount" => format!("ServiceAccount {:?}", format!("{}/{}", self.name, self.namespace)),
            kind => format!("{kind} {:?}", self.name),
        }
    }
}

/// `(namespace, name)`, the namespace empty for cluster scope.
type Key = (String, String);

#[derive(Debug, Default)]
struct Tables {
    roles: HashMap<Key, Arc<[Rule]>>,
    bindings: HashMap<Key, Arc<Binding>>,
    /// Namespace (empty: everywhere) -> subject -> bindings.
    by_subject: HashMap<String, HashMap<SubjectKey, Vec<Arc<Binding>>>>,
}

/// Roles and bindings, ready to decide.
#[derive(Debug, Default)]
pub struct RbacIndex {
    tables: RwLock<Tables>,
}

/// The rules that apply to a user, with what could not be resolved.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct UserRules {
    /// Rules of every role bound to the user.
    pub rules: Vec<Rule>,
    /// Roles that are bound but do not exist.
    pub errors: Vec<String>,
}

impl RbacIndex {
    /// An empty index: allows nothing but what `system:masters` does.
    pub fn new() -> Self {
        RbacIndex::default()
    }

    /// Adds or replaces an object from its JSON bytes.
    pub fn upsert(&self, kind: Kind, json: &[u8]) -> Result<(), InvalidObject> {
        self.upsert_value(kind, &serde_json::from_slice(json)?)
    }

    /// Adds or replaces an object.
    pub fn upsert_value(&self, kind: Kind, object: &Value) -> Result<(), InvalidObject> {
        let metadata = match object.get("metadata") {
            Some(metadata) => Metadata::deserialize(metadata)?,
            None => Metadata::default(),
        };
        let key = (metadata.namespace, metadata.name);
        match kind {
            Kind::Role | Kind::ClusterRole => {
                let rules = rules_of(object).into();
                self.tables.write().roles.insert(key, rules);
            }
            Kind::RoleBinding | Kind::ClusterRoleBinding => {
                let parsed = BindingObject::deserialize(object)?;
                let binding = Arc::new(Binding {
                    name: key.1.clone(),
                    namespace: key.0.clone(),
                    role: parsed.role_ref,
                    subjects: parsed.subjects.unwrap_or_default(),
                });
                let mut tables = self.tables.write();
                tables.unbind(&key);
                tables.bind(key, binding);
            }
        }
        Ok(())
    }

    /// Removes an object; `namespace` is empty for cluster scope.
    pub fn remove(&self, kind: Kind, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut tables = self.tables.write();
        match kind {
            Kind::Role | Kind::ClusterRole => {
                tables.roles.remove(&key);
            }
            Kind::RoleBinding | Kind::ClusterRoleBinding => tables.unbind(&key),
        }
    }

    /// The decision. Members of `system:masters` may do everything, whatever is bound.
    pub fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.in_group(GROUP_MASTERS) {
            return Decision::Allow(String::new());
        }
        let tables = self.tables.read();
        let mut missing_roles = Vec::new();
        for (binding, subject) in tables.bindings_of(attributes.user, attributes.namespace) {
            match tables.role(binding) {
                Some(rules) if rules.iter().any(|rule| attributes.matches(rule)) => {
                    return Decision::Allow(describe_grant(binding, subject));
                }
                Some(_) => {}
                None => missing_roles.push(describe_missing_role(binding)),
            }
        }
        match missing_roles.is_empty() {
            true => Decision::NoOpinion(String::new()),
            false => Decision::NoOpinion(format!("RBAC: {}", join_errors(missing_roles))),
        }
    }

    /// Every rule that applies to `user` in `namespace` (empty: at cluster scope), for
    /// SelfSubjectRulesReview and escalation checks.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> UserRules {
        let tables = self.tables.read();
        let mut found = UserRules::default();
        if user.in_group(GROUP_MASTERS) {
            let all = || vec!["*".to_owned()];
            found.rules.push(Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() });
            found.rules.push(Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() });
        }
        for (binding, _) in tables.bindings_of(user, namespace) {
            match tables.role(binding) {
                Some(rules) => found.rules.extend(rules.iter().cloned()),
                None => found.errors.push(describe_missing_role(binding)),
            }
        }
        found
    }

    /// The rules of the role that a `roleRef` in `namespace` names; `None` when it does not exist.
    pub fn role_rules(&self, kind: Kind, namespace: &str, name: &str) -> Option<Vec<Rule>> {
        let namespace = if kind == Kind::ClusterRole { "" } else { namespace };
        self.tables.read().roles.get(&(namespace.to_owned(), name.to_owned())).map(|rules| rules.to_vec())
    }
}

impl Tables {
    fn bind(&mut self, key: Key, binding: Arc<Binding>) {
        let by_subject = self.by_subject.entry(key.0.clone()).or_default();
        for subject in &binding.subjects {
            if let Some(subject) = subject.key(&binding.namespace) {
                by_subject.entry(subject).or_default().push(binding.clone());
            }
        }
        self.bindings.insert(key, binding);
    }

    fn unbind(&mut self, key: &Key) {
        let Some(binding) = self.bindings.remove(key) else { return };
        let Some(by_subject) = self.by_subject.get_mut(&key.0) else { return };
        for subject in &binding.subjects {
            let Some(subject) = subject.key(&binding.namespace) else { continue };
            if let Some(bindings) = by_subject.get_mut(&subject) {
                bindings.retain(|other| !Arc::ptr_eq(other, &binding));
                if bindings.is_empty() {
                    by_subject.remove(&subject);
                }
            }
        }
        if by_subject.is_empty() {
            self.by_subject.remove(&key.0);
        }
    }

    /// Bindings that name the user or one of its groups: cluster-wide ones first, then the namespace's.
    fn bindings_of<'t>(&'t self, user: &UserInfo, namespace: &str) -> Vec<(&'t Binding, SubjectKey)> {
        let mut found = Vec::new();
        let scopes: &[&str] = if namespace.is_empty() { &[""] } else { &["", namespace] };
        let keys = std::iter::once(SubjectKey::User(user.username.clone()))
            .chain(user.groups.iter().cloned().map(SubjectKey::Group));
        let keys: Vec<SubjectKey> = keys.collect();
        for scope in scopes {
            let Some(by_subject) = self.by_subject.get(*scope) else { continue };
            for key in &keys {
                let bindings = by_subject.get(key).into_iter().flatten();
                found.extend(bindings.map(|binding| (&**binding, key.clone())));
            }
        }
        found
    }

    fn role(&self, binding: &Binding) -> Option<&Arc<[Rule]>> {
        let namespace = if binding.role.kind == "ClusterRole" { "" } else { binding.namespace.as_str() };
        self.roles.get(&(namespace.to_owned(), binding.role.name.clone()))
    }
}

/// Upstream's words for why a request is allowed, as audit logs show them.
fn describe_grant(binding: &Binding, subject: SubjectKey) -> String {
    let named = binding.subjects.iter().find(|s| s.key(&binding.namespace).as_ref() == Some(&subject));
    let whom = named.map(Subject::describe).unwrap_or_default();
    let (kind, name) = match binding.namespace.as_str() {
        "" => ("ClusterRoleBinding", binding.name.clone()),
        namespace => ("RoleBinding", format!("{}/{namespace}", binding.name)),
    };
    format!("RBAC: allowed by {kind} {name:?} of {} {:?} to {whom}", binding.role.kind, binding.role.name)
}

fn describe_missing_role(binding: &Binding) -> String {
    let resource = if binding.role.kind == "ClusterRole" { "clusterrole" } else { "role" };
    format!("{resource}.rbac.authorization.k8s.io {:?} not found", binding.role.name)
}

/// Several errors as one, in the notation of upstream's aggregates.
fn join_errors(mut errors: Vec<String>) -> String {
    errors.dedup();
    if errors.len() == 1 { errors.remove(0) } else { format!("[{}]", errors.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn index() -> RbacIndex {
        let index = RbacIndex::new();
        let objects = [
            (
                Kind::ClusterRole,
                json!({"metadata": {"name": "reader"}, "rules":
                    [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]},
                     {"verbs": ["get"], "nonResourceURLs": ["/metrics"]}]}),
            ),
            (
                Kind::Role,
                json!({"metadata": {"name": "writer", "namespace": "a"}, "rules":
                    [{"verbs": ["*"], "apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["d"]}]}),
            ),
            (
                Kind::ClusterRoleBinding,
                json!({"metadata": {"name": "readers"}, "roleRef": {"kind": "ClusterRole", "name": "reader"},
                    "subjects": [{"kind": "Group", "name": "ops"}]}),
            ),
            (
                Kind::RoleBinding,
                json!({"metadata": {"name": "writers", "namespace": "a"}, "roleRef": {"kind": "Role", "name": "writer"},
                    "subjects": [{"kind": "ServiceAccount", "name": "bot", "namespace": "b"}]}),
            ),
            (
                Kind::RoleBinding,
                json!({"metadata": {"name": "local", "namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": "reader"},
                    "subjects": [{"kind": "User", "name": "eve"}]}),
            ),
            (
                Kind::RoleBinding,
                json!({"metadata": {"name": "dangling", "namespace": "a"}, "roleRef": {"kind": "Role", "name": "gone"},
                    "subjects": [{"kind": "User", "name": "max"}]}),
            ),
        ];
        for (kind, object) in objects {
            index.upsert(kind, object.to_string().as_bytes()).unwrap();
        }
        index
    }

    fn ask<'a>(
        user: &'a UserInfo,
        verb: &'a str,
        what: &'a str,
        namespace: &'a str,
        name: &'a str,
    ) -> Attributes<'a> {
        let (group, resource) = what.split_once(':').unwrap();
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            user,
            verb,
            api_group: group,
            api_version: "v1",
            resource,
            subresource,
            name,
            namespace,
            path: "",
            resource_request: true,
            field_selector: None,
            label_selector: None,
        }
    }

    #[test]
    fn decisions() {
        let index = index();
        let ops = UserInfo::authenticated("ann", &["ops"]);
        let eve = UserInfo::authenticated("eve", &[]);
        let bot = UserInfo::service_account("b", "bot");
        let root = UserInfo::authenticated("root", &["system:masters"]);
        let cases = [
            (&ops, "get", ":pods", "x", "p", true),
            (&ops, "list", ":pods", "", "", true),
            (&ops, "get", ":pods/log", "x", "p", true),
            (&ops, "get", ":pods/exec", "x", "p", false),
            (&ops, "delete", ":pods", "x", "p", false),
            (&eve, "get", ":pods", "a", "p", true),
            (&eve, "get", ":pods", "b", "p", false),
            (&eve, "list", ":pods", "", "", false),
            (&bot, "delete", "apps:deployments", "a", "d", true),
            (&bot, "delete", "apps:deployments", "a", "e", false),
            (&bot, "delete", "apps:deployments", "b", "d", false),
            (&root, "delete", "any:thing", "", "", true),
        ];
        for (user, verb, what, namespace, name, expected) in cases {
            let decision = index.authorize(&ask(user, verb, what, namespace, name));
            assert_eq!(decision.is_allowed(), expected, "{} {verb} {what} {namespace} {name}", user.username);
        }
        let path = Attributes { path: "/metrics", resource_request: false, ..ask(&ops, "get", ":", "", "") };
        assert!(index.authorize(&path).is_allowed());
    }

    #[test]
    fn words_of_grants_and_refusals() {
        let index = index();
        let bot = UserInfo::service_account("b", "bot");
        assert_eq!(
            index.authorize(&ask(&bot, "get", "apps:deployments", "a", "d")),
            Decision::Allow(
                "RBAC: allowed by RoleBinding \"writers/a\" of Role \"writer\" to ServiceAccount \"bot/b\""
                    .into()
            )
        );
        let max = UserInfo::authenticated("max", &[]);
        let asked = ask(&max, "list", ":pods", "a", "");
        let Decision::NoOpinion(reason) = index.authorize(&asked) else { panic!() };
        assert_eq!(reason, "RBAC: role.rbac.authorization.k8s.io \"gone\" not found");
        assert_eq!(
            asked.forbidden("").message,
            "pods is forbidden: User \"max\" cannot list resource \"pods\" in API group \"\" in the namespace \"a\""
        );
        assert_eq!(
            ask(&max, "get", ":nodes", "", "n").forbidden("").message,
            "nodes \"n\" is forbidden: User \"max\" cannot get resource \"nodes\" in API group \"\" at the cluster scope"
        );
        let path = Attributes { path: "/foo", resource_request: false, ..asked };
        assert_eq!(
            Attributes { verb: "get", ..path }.forbidden("").message,
            "forbidden: User \"max\" cannot get path \"/foo\""
        );
    }

    #[test]
    fn the_index_follows_changes() {
        let index = index();
        let ops = UserInfo::authenticated("ann", &["ops"]);
        let rebound = json!({"metadata": {"name": "readers"}, "roleRef": {"kind": "ClusterRole", "name": "reader"},
            "subjects": [{"kind": "User", "name": "bob"}]});
        index.upsert_value(Kind::ClusterRoleBinding, &rebound).unwrap();
        assert!(!index.authorize(&ask(&ops, "get", ":pods", "x", "p")).is_allowed());
        let bob = UserInfo::authenticated("bob", &[]);
        assert!(index.authorize(&ask(&bob, "get", ":pods", "x", "p")).is_allowed());
        assert_eq!(index.rules_for(&bob, "").rules.len(), 2);
        index.remove(Kind::ClusterRole, "", "reader");
        assert!(!index.authorize(&ask(&bob, "get", ":pods", "x", "p")).is_allowed());
        assert_eq!(index.rules_for(&bob, "").errors.len(), 1);
        index.remove(Kind::ClusterRoleBinding, "", "readers");
        assert_eq!(index.rules_for(&bob, ""), UserRules::default());
    }
}
