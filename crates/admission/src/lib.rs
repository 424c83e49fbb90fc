//! Ordered admission plugins that change or refuse a request before it reaches the registry.
//!
//! A plugin is a pure function of the request and of what [`Cluster`] tells it. [`PLUGINS`] is the whole
//! chain in upstream's order; the API server calls [`mutate`] before validation and [`validate`] after it.
//!
//! **Invariant:** knows nothing of the registry or of HTTP.

mod certificates;
mod configuration;
mod devices;
pub mod dynamic;
mod limit_ranger;
mod namespace;
mod node;
mod pod_security;
mod priority;
mod runtime_class;
mod service_account;
mod storage;
mod tolerations;

use std::time::{Duration, Instant};

use meta::{Status, UserInfo};
use serde_json::{Map, Value};

/// An object as plugins see it.
pub type Object = Map<String, Value>;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// API group.
    pub group: &'a str,
    /// Plural resource.
    pub resource: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Subresource or empty.
    pub subresource: &'a str,
    /// Namespace or empty.
    pub namespace: &'a str,
    /// Name; empty for a create with `generateName`.
    pub name: &'a str,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
}

impl Request<'_> {
    /// Whether this creates a pod.
    pub fn creates_pod(&self) -> bool {
        self.creates("", "pods")
    }

    /// Whether this creates an object of a resource.
    pub fn creates(&self, group: &str, resource: &str) -> bool {
        (self.group, self.resource, self.subresource, self.operation) == (group, resource, "", "CREATE")
    }

    /// 403 in the name of this request.
    pub fn forbid(&self, why: &str) -> Status {
        Status::forbidden(self.group, self.resource, self.name, why)
    }
}

/// What a plugin asks the authorizer about the one who makes the request: a verb on a cluster-wide resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission<'a> {
    /// Verb.
    pub verb: &'a str,
    /// API group.
    pub group: &'a str,
    /// Plural resource.
    pub resource: &'a str,
    /// Subresource or empty.
    pub subresource: &'a str,
    /// Namespace or empty.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
}

/// Who may do what.
pub trait Authorizer: Send + Sync {
    /// Whether `user` has a permission.
    fn permits(&self, user: &UserInfo, permission: &Permission<'_>) -> bool;
}

/// What plugins may look up: a consistent view of objects by group, resource, namespace and name, and rights.
pub trait Cluster: Send + Sync {
    /// Who may do what.
    fn authorizer(&self) -> &dyn Authorizer;
    /// One object.
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value>;
    /// All objects of a cluster-scoped resource.
    fn all(&self, group: &str, resource: &str) -> Vec<Value>;
    /// All objects of a resource in a namespace.
    fn within(&self, group: &str, resource: &str, namespace: &str) -> Vec<Value>;
}

/// What a plugin does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It may change it.
    Mutate,
    /// It may refuse it.
    Validate,
}

/// Hears of every plugin that has run: its name, whether it refused, and how long it took.
pub type Observe<'a> = &'a dyn Fn(&'static str, bool, Duration);

/// One admission plugin. Takes part in the steps that it names.
pub trait Plugin: Sync {
    /// Upstream's name.
    fn name(&self) -> &'static str;
    /// The steps it takes part in.
    fn steps(&self) -> &'static [Step];
    /// May change the object.
    fn mutate(
        &self,
        _: &Request<'_>,
        _: &mut Object,
        _: Option<&Object>,
        _: &dyn Cluster,
    ) -> Result<(), Status> {
        Ok(())
    }
    /// May refuse the request; `object` is absent for deletions.
    fn validate(
        &self,
        _: &Request<'_>,
        _: Option<&Object>,
        _: Option<&Object>,
        _: &dyn Cluster,
    ) -> Result<(), Status> {
        Ok(())
    }
    /// What the client should know of a request that is admitted.
    fn warnings(&self, _: &Request<'_>, _: &Object, _: Option<&Object>, _: &dyn Cluster) -> Vec<String> {
        Vec::new()
    }
}

/// The chain.
pub const PLUGINS: &[&dyn Plugin] = &[
    &namespace::Lifecycle,
    &limit_ranger::LimitRanger,
    &node::TaintByCondition,
    &service_account::Accounts,
    &pod_security::PodSecurity,
    &priority::Priority,
    &tolerations::DefaultSeconds,
    &storage::DefaultStorageClass,
    &storage::InUseProtection,
    &storage::ClaimResize,
    &runtime_class::RuntimeClass,
    &storage::DefaultIngressClass,
    &certificates::Approval,
    &certificates::Signing,
    &certificates::BundleAttest,
    &certificates::SubjectRestriction,
    &configuration::Rules,
    &devices::AdminAccess,
];

/// Runs the changing half of the chain.
pub fn mutate(
    request: &Request<'_>,
    object: &mut Object,
    old: Option<&Object>,
    cluster: &dyn Cluster,
    observe: Observe<'_>,
) -> Result<(), Status> {
    each(Step::Mutate, observe, |p| p.mutate(request, object, old, cluster))
}

/// Runs the plugins of a step until one refuses.
fn each(
    step: Step,
    observe: Observe<'_>,
    mut run: impl FnMut(&dyn Plugin) -> Result<(), Status>,
) -> Result<(), Status> {
    for plugin in PLUGINS.iter().filter(|p| p.steps().contains(&step)) {
        let began = Instant::now();
        let done = run(*plugin);
        observe(plugin.name(), done.is_err(), began.elapsed());
        done?;
    }
    Ok(())
}

/// Runs the refusing half of the chain.
pub fn validate(
    request: &Request<'_>,
    object: Option<&Object>,
    old: Option<&Object>,
    cluster: &dyn Cluster,
    observe: Observe<'_>,
) -> Result<(), Status> {
    each(Step::Validate, observe, |p| p.validate(request, object, old, cluster))
}

/// What the chain has to say of a request that is admitted.
pub fn warnings(
    request: &Request<'_>,
    object: &Object,
    old: Option<&Object>,
    cluster: &dyn Cluster,
) -> Vec<String> {
    PLUGINS.iter().flat_map(|p| p.warnings(request, object, old, cluster)).collect()
}

/// The object under a key, made if absent.
fn child<'a>(object: &'a mut Object, key: &str) -> &'a mut Object {
    let entry = object.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if !entry.is_object() {
        *entry = Value::Object(Map::new());
    }
    match entry {
        Value::Object(map) => map,
        _ => unreachable!("an object was just put here"),
    }
}

/// The list under a key, made if absent.
fn list<'a>(object: &'a mut Object, key: &str) -> &'a mut Vec<Value> {
    let entry = object.entry(key).or_insert_with(|| Value::Array(Vec::new()));
    if !entry.is_array() {
        *entry = Value::Array(Vec::new());
    }
    match entry {
        Value::Array(list) => list,
        _ => unreachable!("a list was just put here"),
    }
}

#[cfg(test)]
mod testing {
    use super::*;

    /// A cluster of a few objects.
    #[derive(Default)]
    pub struct Fixed(pub Vec<(&'static str, &'static str, &'static str, Value)>);

    /// Lets the user `trusted` do everything.
    impl Authorizer for Fixed {
        fn permits(&self, user: &UserInfo, permission: &Permission<'_>) -> bool {
            user.username == "trusted" || user.username == format!("{}:{}", permission.verb, permission.name)
        }
    }

    impl Cluster for Fixed {
        fn authorizer(&self) -> &dyn Authorizer {
            self
        }
        fn get(&self, _: &str, resource: &str, namespace: &str, name: &str) -> Option<Value> {
            self.0
                .iter()
                .find(|(r, ns, n, _)| (*r, *ns, *n) == (resource, namespace, name))
                .map(|o| o.3.clone())
        }
        fn all(&self, _: &str, resource: &str) -> Vec<Value> {
            self.0.iter().filter(|o| o.0 == resource).map(|o| o.3.clone()).collect()
        }
        fn within(&self, _: &str, resource: &str, namespace: &str) -> Vec<Value> {
            self.0.iter().filter(|o| (o.0, o.1) == (resource, namespace)).map(|o| o.3.clone()).collect()
        }
    }

    /// A request to create something.
    pub fn create<'a>(resource: &'a str, namespace: &'a str, user: &'a UserInfo) -> Request<'a> {
        Request {
            group: "",
            resource,
            kind: "",
            subresource: "",
            namespace,
            name: "x",
            operation: "CREATE",
            user,
        }
    }
}
