//! Admission by rules that users write: webhooks, and policies in the expression language.
//!
//! Configurations are compiled when they change ([`webhook::Hook`], [`policy::Policy`]); a request is matched
//! against them by [`rules::Matcher`], and expressions see it through [`scope::Scope`].

pub mod conditions;
pub mod mutation;
pub mod policy;
pub mod review;
pub mod rules;
pub mod scope;
pub mod webhook;

use meta::{Status, UserInfo};
use serde_json::{Map, Value};

/// A resource and the kind of its objects, in one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource<'a> {
    /// API group.
    pub group: &'a str,
    /// Version.
    pub version: &'a str,
    /// Plural name.
    pub resource: &'a str,
    /// Kind of what is sent, which for a subresource may be another than the resource's.
    pub kind: (&'a str, &'a str, &'a str),
}

/// A request as rules and expressions see it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The resource as it was asked for.
    pub asked: Resource<'a>,
    /// The same in the other versions it is served in.
    pub equivalents: &'a [Resource<'a>],
    /// Subresource or empty.
    pub subresource: &'a str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Namespace or empty; a namespace is in itself.
    pub namespace: &'a str,
    /// Name; empty for a create with `generateName`.
    pub name: &'a str,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// Whether nothing will be stored.
    pub dry_run: bool,
    /// The object as it would be; absent for deletions.
    pub object: Option<&'a Map<String, Value>>,
    /// The object as it is; absent for creations.
    pub old: Option<&'a Map<String, Value>>,
}

impl Subject<'_> {
    /// Whether the request configures webhooks, which no webhook may prevent.
    pub fn configures_webhooks(&self) -> bool {
        self.asked.group == "admissionregistration.k8s.io"
            && matches!(
                self.asked.resource,
                "validatingwebhookconfigurations" | "mutatingwebhookconfigurations"
            )
    }

    /// Whether the request configures policies, which no policy may prevent, or asks about rights.
    pub fn beyond_policies(&self) -> bool {
        match self.asked.group {
            "admissionregistration.k8s.io" => self.asked.resource.contains("admissionpolic"),
            "authentication.k8s.io" => matches!(self.asked.resource, "selfsubjectreviews" | "tokenreviews"),
            "authorization.k8s.io" => self.asked.resource.ends_with("reviews"),
            _ => false,
        }
    }

    /// 403 in the name of this request.
    pub fn forbid(&self, why: &str) -> Status {
        Status::forbidden(self.asked.group, self.asked.resource, self.name, why)
    }
}

/// What the rules may look up.
pub trait World {
    /// A namespace.
    fn namespace(&self, name: &str) -> Option<Value>;
    /// Whether a kind is served, and whether its objects live in namespaces.
    fn scope(&self, api_version: &str, kind: &str) -> Option<bool>;
    /// Objects of a kind in a namespace (empty for cluster scope): one by name, or all.
    fn params(&self, api_version: &str, kind: &str, namespace: &str, name: Option<&str>) -> Vec<Value>;
    /// Who decides about rights.
    fn authorizer(&self) -> &dyn cel::Authorizer;
}

/// A text of a JSON object, empty if absent.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The items of a list, none if absent.
pub(crate) fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
