//! A request and the cluster as the rules see them.

use std::sync::Arc;

use admission::dynamic::policy::Versioned;
use admission::dynamic::{Resource, Subject, World};
use auth::rbac::{Attributes as Question, Decision};
use futures_util::FutureExt;
use meta::UserInfo;
use registry::admit::Attributes;
use registry::{ResourceDef, ResourceTable};
use serde_json::{Map, Value};

use crate::server::Server;

/// The rows of the table that a request is about: as it was asked for, and as others know it.
pub struct View<'a> {
    server: &'a Server,
    attributes: &'a Attributes<'a>,
    /// Kind of the body if it is not the resource's own.
    kind: Option<(&'a str, &'a str, &'a str)>,
    others: Vec<Arc<ResourceDef>>,
    table: Arc<ResourceTable>,
    questions: Questions<'a>,
}

impl<'a> View<'a> {
    /// Of a request. `body` names the kind of what is sent where the table does not, as `CONNECT` needs.
    pub fn new(
        server: &'a Server,
        attributes: &'a Attributes<'a>,
        body: Option<(&'a str, &'a str, &'a str)>,
    ) -> View<'a> {
        let table = server.registry.table();
        let prefix = attributes.def.storage_prefix();
        let same = |row: &&Arc<ResourceDef>| {
            row.is_stored()
                && row.storage_prefix() == prefix
                && (&row.group, &row.version) != (&attributes.def.group, &attributes.def.version)
        };
        let others = table.rows().iter().filter(same).cloned().collect();
        let declared = attributes.def.subresource(attributes.subresource).and_then(|s| s.kind.as_ref());
        let kind = body.or(declared.map(|(g, v, k)| (&**g, &**v, &**k)));
        let questions = Questions { server, user: attributes.user };
        View { server, attributes, kind, others, table, questions }
    }

    fn resource<'r>(&self, def: &'r ResourceDef) -> Resource<'r>
    where
        'a: 'r,
    {
        Resource {
            group: &def.group,
            version: &def.version,
            resource: &def.resource,
            kind: self.kind.unwrap_or((&def.group, &def.version, &def.kind)),
        }
    }

    /// The other versions of the resource.
    pub fn equivalents(&self) -> Vec<Resource<'_>> {
        self.others.iter().map(|d| self.resource(d)).collect()
    }

    /// The request.
    pub fn subject<'s>(
        &'s self,
        equivalents: &'s [Resource<'s>],
        object: Option<&'s Map<String, Value>>,
        old: Option<&'s Map<String, Value>>,
    ) -> Subject<'s> {
        let a = self.attributes;
        let is_namespace = &*a.def.resource == "namespaces" && a.def.group.is_empty();
        Subject {
            asked: self.resource(a.def),
            equivalents,
            subresource: a.subresource,
            namespaced: a.def.namespaced,
            namespace: if is_namespace { a.name } else { a.namespace },
            name: a.name,
            operation: a.operation,
            user: a.user,
            dry_run: a.dry_run,
            object,
            old,
        }
    }

    fn def(&self, resource: &Resource<'_>) -> &ResourceDef {
        let found =
            self.others.iter().find(|d| (&*d.group, &*d.version) == (resource.group, resource.version));
        found.map_or(self.attributes.def, |d| d)
    }

    /// Objects in the version of a resource.
    pub fn versioned(
        &self,
        resource: &Resource<'_>,
        object: Option<&Map<String, Value>>,
        old: Option<&Map<String, Value>>,
    ) -> Versioned {
        let to = self.def(resource);
        if self.is_scale() {
            let scale = |o: &Map<String, Value>| {
                let shown = crate::subresource::scale_of(self.attributes.def, &Value::Object(o.clone()));
                shown.ok().and_then(|s| s.as_object().cloned()).unwrap_or_default()
            };
            return (object.map(scale), old.map(scale));
        }
        let convert =
            |o: &Map<String, Value>| match std::ptr::eq(to, self.attributes.def) || self.kind.is_some() {
                true => o.clone(),
                false => converted(self.attributes.def, to, o.clone()),
            };
        let mut shown = (object.map(convert), old.map(convert));
        // Those who are asked can rely on the type being there.
        for o in [&mut shown.0, &mut shown.1].into_iter().flatten() {
            if self.kind.is_none() {
                o.insert("apiVersion".into(), to.api_version().into());
                o.insert("kind".into(), (*to.kind).into());
            }
        }
        shown
    }

    /// Whether the request is about a `scale`: inside the server that is the workload itself.
    fn is_scale(&self) -> bool {
        self.kind == Some(("autoscaling", "v1", "Scale"))
    }

    /// An object in another version back in the request's; `before` is what it was made from.
    pub fn back(
        &self,
        resource: &Resource<'_>,
        object: Map<String, Value>,
        before: &Map<String, Value>,
    ) -> Map<String, Value> {
        if self.is_scale() {
            let replicas = object.get("spec").and_then(|s| s.get("replicas")).cloned();
            let replicas = replicas.unwrap_or_else(|| 0.into());
            let custom = self.attributes.def.custom.as_ref().and_then(|c| c.scale.as_ref());
            let path = custom.map_or(".spec.replicas", |s| &*s.spec);
            let change = crate::subresource::nested(path, replicas).to_string();
            let mut out = Value::Object(before.clone());
            if let Err(error) = meta::patch::merge_patch(&mut out, change.as_bytes()) {
                tracing::error!(%error, "a scale cannot be put back");
            }
            return match out {
                Value::Object(map) => map,
                _ => Map::new(),
            };
        }
        let from = self.def(resource);
        if std::ptr::eq(from, self.attributes.def) || self.kind.is_some() {
            return object;
        }
        converted(from, self.attributes.def, object)
    }
}

/// An object of one version in another.
fn converted(from: &ResourceDef, to: &ResourceDef, object: Map<String, Value>) -> Map<String, Value> {
    let stored = at_once(object.clone(), registry::convert::to_storage(from, object));
    at_once(stored.clone(), registry::convert::from_storage(to, stored))
}

/// The outcome of a conversion that needs nobody else. One that has to ask a webhook cannot be waited for while
/// expressions are evaluated; then the object is shown as it is.
fn at_once(
    object: Map<String, Value>,
    conversion: impl Future<Output = Result<Map<String, Value>, meta::Status>>,
) -> Map<String, Value> {
    match conversion.now_or_never() {
        Some(Ok(converted)) => converted,
        _ => object,
    }
}

impl World for View<'_> {
    fn namespace(&self, name: &str) -> Option<Value> {
        let def = self.table.find("", "v1", "namespaces")?;
        self.server.registry.current(def, "", name).map(|o| o.to_value())
    }

    fn scope(&self, api_version: &str, kind: &str) -> Option<bool> {
        let (group, version) = meta::gvk::split_api_version(api_version);
        self.table.find_kind(group, version, kind).map(|d| d.namespaced)
    }

    fn params(&self, api_version: &str, kind: &str, namespace: &str, name: Option<&str>) -> Vec<Value> {
        let (group, version) = meta::gvk::split_api_version(api_version);
        let Some(def) = self.table.find_kind(group, version, kind) else { return Vec::new() };
        let shown = |o: Arc<meta::Object>| match o.to_value() {
            Value::Object(map) => {
                let mut map = at_once(map.clone(), registry::convert::from_storage(def, map));
                map.insert("apiVersion".into(), def.api_version().into());
                map.insert("kind".into(), (*def.kind).into());
                Value::Object(map)
            }
            other => other,
        };
        match name {
            Some(name) => self.server.registry.current(def, namespace, name).map(shown).into_iter().collect(),
            None => {
                let within = (!namespace.is_empty()).then_some(namespace);
                let kind = self.server.registry.cacher().kind(&def.storage_prefix());
                kind.snapshot(within).iter().cloned().map(shown).collect()
            }
        }
    }

    fn authorizer(&self) -> &dyn cel::Authorizer {
        &self.questions
    }
}

/// The authorizer as expressions ask it.
struct Questions<'a> {
    server: &'a Server,
    user: &'a UserInfo,
}

impl cel::Authorizer for Questions<'_> {
    fn authorize(&self, request: &cel::AuthorizationRequest) -> cel::Decision {
        let account = request.service_account.as_ref().map(|(ns, name)| UserInfo::service_account(ns, name));
        let question = Question {
            user: account.as_ref().unwrap_or(self.user),
            verb: &request.verb,
            api_group: &request.group,
            api_version: "*",
            resource: &request.resource,
            subresource: &request.subresource,
            name: &request.name,
            namespace: &request.namespace,
            path: &request.path,
            resource_request: !request.resource.is_empty(),
            field_selector: None,
            label_selector: None,
        };
        match self.server.decide(&question) {
            Decision::Allow(reason) => {
                cel::Decision { allowed: true, reason: reason.to_string(), error: String::new() }
            }
            Decision::NoOpinion(reason) | Decision::Deny(reason) => {
                cel::Decision { allowed: false, reason: reason.to_string(), error: String::new() }
            }
        }
    }
}
