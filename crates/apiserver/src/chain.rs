//! The admission chain in the server: built-in plugins over the watch cache, then what nodes may write.

use async_trait::async_trait;
use auth::restriction;
use meta::Status;
use registry::admit::{Admit, Attributes};
use serde_json::{Map, Value};

use admission::dynamic::policy::Report;

use crate::dynamic::{self, Collected};
use crate::server::Server;

/// The chain.
pub struct Admission(Server, Collected);

impl Admission {
    /// The chain of a server.
    pub fn new(server: Server) -> Self {
        Admission(server, Collected::default())
    }

    /// What webhooks and policies have to say to the client.
    pub fn warnings(&self) -> Vec<String> {
        self.1.warnings()
    }

    /// Asks about what is no object of its own (connections, evictions, bindings); `body` is the kind of `options`,
    /// which come back as admission has left them.
    pub async fn connect(
        &self,
        attributes: &Attributes<'_>,
        body: (&str, &str, &str),
        mut options: Map<String, Value>,
    ) -> Result<Map<String, Value>, Status> {
        dynamic::mutate(&self.0, attributes, Some(body), &mut options, None, &self.1).await?;
        dynamic::validate(&self.0, attributes, Some(body), Some(&options), None, &self.1).await?;
        Ok(options)
    }
}

/// Looks things up in the watch cache.
struct Objects<'a>(&'a Server);

impl Objects<'_> {
    fn snapshot(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Value> {
        let table = self.0.registry.table();
        let Some(def) = table.find(group, "v1", resource) else { return Vec::new() };
        let kind = self.0.registry.cacher().kind(&def.storage_prefix());
        kind.snapshot(namespace).iter().map(|o| o.to_value()).collect()
    }
}

impl admission::Authorizer for Objects<'_> {
    fn permits(&self, user: &meta::UserInfo, permission: &admission::Permission<'_>) -> bool {
        let question = auth::rbac::Attributes {
            user,
            verb: permission.verb,
            api_group: permission.group,
            api_version: "*",
            resource: permission.resource,
            subresource: permission.subresource,
            name: permission.name,
            namespace: permission.namespace,
            path: "",
            resource_request: true,
            field_selector: None,
            label_selector: None,
        };
        self.0.decide(&question).is_allowed()
    }
}

impl admission::Cluster for Objects<'_> {
    fn authorizer(&self) -> &dyn admission::Authorizer {
        self
    }

    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let table = self.0.registry.table();
        let def = table.find(group, "v1", resource)?;
        self.0.registry.current(def, namespace, name).map(|o| o.to_value())
    }

    fn all(&self, group: &str, resource: &str) -> Vec<Value> {
        self.snapshot(group, resource, None)
    }

    fn within(&self, group: &str, resource: &str, namespace: &str) -> Vec<Value> {
        self.snapshot(group, resource, Some(namespace))
    }
}

fn request<'a>(a: &Attributes<'a>) -> admission::Request<'a> {
    admission::Request {
        group: &a.def.group,
        resource: &a.def.resource,
        kind: &a.def.kind,
        subresource: a.subresource,
        namespace: a.namespace,
        name: a.name,
        operation: a.operation,
        user: a.user,
    }
}

#[async_trait]
impl Admit for Admission {
    async fn mutate(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Map<String, Value>,
        old: Option<&Map<String, Value>>,
    ) -> Result<(), Status> {
        let began = std::time::Instant::now();
        let mut done = self.0.check_escalation(attributes, object, old).await;
        if done.is_ok() {
            let observe = |name: &'static str, rejected, took| {
                self.0.metrics.plugins.observe(name, "admit", attributes.operation, rejected, took);
            };
            done = admission::mutate(&request(attributes), object, old, &Objects(&self.0), &observe);
        }
        if done.is_ok() {
            done = dynamic::mutate(&self.0, attributes, None, object, old, &self.1).await;
        }
        self.0.metrics.admission("admit", attributes.operation, done.is_err(), began.elapsed());
        done
    }

    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Map<String, Value>>,
        old: Option<&Map<String, Value>>,
    ) -> Result<(), Status> {
        let began = std::time::Instant::now();
        let done = self.judge(attributes, object, old).await;
        self.0.metrics.admission("validate", attributes.operation, done.is_err(), began.elapsed());
        done
    }
}

impl Admission {
    /// Everything that may refuse a write.
    async fn judge(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Map<String, Value>>,
        old: Option<&Map<String, Value>>,
    ) -> Result<(), Status> {
        let observe = |name: &'static str, rejected, took| {
            self.0.metrics.plugins.observe(name, "validate", attributes.operation, rejected, took);
        };
        admission::validate(&request(attributes), object, old, &Objects(&self.0), &observe)?;
        let began = std::time::Instant::now();
        let done = self.restrict_node(attributes, object, old);
        observe("NodeRestriction", done.is_err(), began.elapsed());
        done?;
        if let Some(object) = object {
            let warnings = admission::warnings(&request(attributes), object, old, &Objects(&self.0));
            self.1.add(Report { warnings, ..Default::default() });
        }
        dynamic::validate(&self.0, attributes, None, object, old, &self.1).await?;
        let began = std::time::Instant::now();
        let done = crate::quota::charge(&self.0, attributes, object, old).await;
        observe("ResourceQuota", done.is_err(), began.elapsed());
        done
    }
}

impl Admission {
    /// What a node may write.
    fn restrict_node(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Map<String, Value>>,
        old: Option<&Map<String, Value>>,
    ) -> Result<(), Status> {
        if auth::node::node_name(attributes.user).is_none() {
            return Ok(());
        }
        let (object, old) = (object.cloned().map(Value::Object), old.cloned().map(Value::Object));
        let is_pod = &*attributes.def.resource == "pods" && attributes.def.group.is_empty();
        let pod = is_pod.then_some(()).and(old.as_ref());
        let write = restriction::Write {
            operation: match attributes.operation {
                "CREATE" => "create",
                "DELETE" => "delete",
                _ => "update",
            },
            api_group: &attributes.def.group,
            resource: &attributes.def.resource,
            subresource: attributes.subresource,
            namespace: attributes.namespace,
            name: attributes.name,
            object: object.as_ref(),
            old: old.as_ref(),
        };
        restriction::check(attributes.user, &write, pod).map_err(|why| {
            Status::forbidden(&attributes.def.group, &attributes.def.resource, attributes.name, &why)
        })
    }
}
