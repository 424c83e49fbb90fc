//! What is particular to a kind: defaults with conditions, what clients may not set, rules, deletion.
//!
//! A strategy is small; everything else is the generic verbs' business. Kinds without an entry here get
//! [`Plain`]: structural validation and nothing special.

mod autoscaler;
mod certificates;
mod config;
pub mod crd;
pub mod custom;
mod flow;
mod job;
mod namespace;
mod network;
mod platform;
pub(crate) mod pod;
mod rbac;
mod resource;
pub mod rules;
mod service;
mod storage;
mod workload;

use std::sync::Arc;

use jiff::Timestamp;
use meta::{FieldError, Status, UserInfo};
use serde_json::{Map, Value};
use stdx::Random;

use crate::allocate::{Allocators, Reservation};

/// An object as strategies see it.
pub type Object = Map<String, Value>;

/// What a strategy may use while it prepares an object.
pub struct Context<'a> {
    /// Time of the request.
    pub now: Timestamp,
    /// Randomness.
    pub random: &'a dyn Random,
    /// Addresses and ports of Services.
    pub allocators: &'a Arc<Allocators>,
    /// Who asks.
    pub user: &'a UserInfo,
    /// Whether nothing will be stored.
    pub dry_run: bool,
}

/// What is particular to a kind. Every method has the behaviour of an ordinary kind as its default.
pub trait Strategy: Send + Sync {
    /// Defaults that depend on other fields; the unconditional ones are data of `schema`.
    fn default(&self, _object: &mut Object) {}

    /// Defaults that an update takes from the version before.
    fn default_update(&self, _new: &mut Object, _old: &Object) {}

    /// Whether writes to the main resource leave the status alone.
    fn resets_status(&self) -> bool {
        true
    }

    /// Whether a new object may come with a status.
    fn keeps_status_at_creation(&self) -> bool {
        !self.resets_status()
    }

    /// Whether `managedFields` is kept.
    fn tracks_owners(&self) -> bool {
        true
    }

    /// Whether PUT may create.
    fn allows_create_on_update(&self) -> bool {
        false
    }

    /// Sets what the server sets at creation.
    fn prepare_create(&self, _: &Context<'_>, _object: &mut Object) -> Result<Option<Reservation>, Status> {
        Ok(None)
    }

    /// Sets what the server sets at an update, and puts back what this request may not change.
    fn prepare_update(
        &self,
        _: &Context<'_>,
        _subresource: &str,
        _new: &mut Object,
        _old: &Object,
    ) -> Result<Option<Reservation>, Status> {
        Ok(None)
    }

    /// Every rule the object breaks; `None` asks for structural validation instead.
    fn validate(&self, _object: &Object) -> Option<Vec<FieldError>> {
        None
    }

    /// Rules between fields, beside structural validation and the declared rules.
    fn validate_also(&self, _object: &Object) -> Vec<FieldError> {
        Vec::new()
    }

    /// Every rule a new object breaks; by default those of every version.
    fn validate_create(&self, object: &Object) -> Option<Vec<FieldError>> {
        self.validate(object)
    }

    /// Every rule the change breaks.
    fn validate_update(&self, _subresource: &str, _new: &Object, _old: &Object) -> Vec<FieldError> {
        Vec::new()
    }

    /// Every rule the change of the status breaks.
    fn validate_status(&self, _new: &Object, _old: &Object) -> Vec<FieldError> {
        Vec::new()
    }

    /// Deprecations and doubts worth telling the client.
    fn warnings(&self, _object: &Object) -> Vec<String> {
        Vec::new()
    }

    /// Seconds between the request to delete and the end, given what was asked for.
    fn grace_period(&self, _object: &Object, _asked: Option<i64>) -> i64 {
        0
    }

    /// What else changes when deletion begins.
    fn begin_deletion(&self, _object: &mut Object) {}

    /// What is wrong with a name.
    fn name_problem(&self, name: &str) -> Option<String> {
        meta::names::subdomain_problem(name)
    }
}

/// A built-in strategy, or that of a custom resource.
pub enum StrategyRef {
    /// Compiled in.
    Builtin(&'static dyn Strategy),
    /// Made from a definition.
    Custom(Box<custom::CustomStrategy>),
}

impl std::ops::Deref for StrategyRef {
    type Target = dyn Strategy;
    fn deref(&self) -> &Self::Target {
        match self {
            StrategyRef::Builtin(strategy) => *strategy,
            StrategyRef::Custom(strategy) => &**strategy,
        }
    }
}

/// An ordinary kind.
pub struct Plain;

impl Strategy for Plain {}

/// A plain kind that PUT may create.
pub struct Upsert;

impl Strategy for Upsert {
    fn allows_create_on_update(&self) -> bool {
        true
    }
}

/// The strategy of a built-in kind.
pub fn of(group: &str, kind: &str) -> &'static dyn Strategy {
    match (group, kind) {
        ("", "Pod") => &pod::PodStrategy,
        ("", "PodTemplate") => &workload::PodTemplate,
        ("", "ReplicationController") => &workload::ReplicationController,
        ("apps", "Deployment") => &workload::Deployment,
        ("apps", "ReplicaSet") => &workload::ReplicaSet,
        ("apps", "DaemonSet") => &workload::DaemonSet,
        ("apps", "StatefulSet") => &workload::StatefulSet,
        ("batch", "Job") => &job::Job,
        ("batch", "CronJob") => &job::CronJob,
        ("", "Service") => &service::Service,
        ("", "Namespace") => &namespace::Namespace,
        ("", "Node") => &namespace::Node,
        ("", "ConfigMap") => &config::ConfigMap,
        ("", "Secret") => &config::Secret,
        ("", "ServiceAccount") => &config::ServiceAccount,
        ("", "Event") | ("events.k8s.io", "Event") => &config::Event,
        ("coordination.k8s.io", "Lease") => &config::Lease,
        ("discovery.k8s.io", "EndpointSlice") => &config::EndpointSlice,
        ("scheduling.k8s.io", "PriorityClass") => &platform::PriorityClass,
        ("autoscaling", "HorizontalPodAutoscaler") => &platform::Autoscaler,
        ("certificates.k8s.io", "CertificateSigningRequest") => &certificates::SigningRequest,
        ("certificates.k8s.io", "ClusterTrustBundle") => &certificates::TrustBundle,
        ("certificates.k8s.io", "PodCertificateRequest") => &certificates::PodRequest,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => &flow::FlowSchema,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => &flow::PriorityLevel,
        ("networking.k8s.io", "NetworkPolicy") => &network::NetworkPolicy,
        ("apiregistration.k8s.io", "APIService") => &platform::RegisteredApi,
        ("networking.k8s.io", "Ingress") => &platform::Ingress,
        ("", "Endpoints") | ("", "LimitRange") => &Upsert,
        ("", "PersistentVolume") => &storage::Volume,
        ("", "PersistentVolumeClaim") => &storage::Claim,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => &crd::Definition,
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => &rbac::Role,
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => &rbac::Binding,
        ("resource.k8s.io", "ResourceClaim") => &resource::Claim,
        ("resource.k8s.io", "ResourceClaimTemplate") => &resource::Template,
        ("resource.k8s.io", "DeviceClass") => &resource::Class,
        ("resource.k8s.io", "ResourceSlice") => &resource::Slice,
        _ => &Plain,
    }
}

/// The object under a key, made if absent.
pub fn child<'a>(object: &'a mut Object, key: &str) -> &'a mut Object {
    let entry = object.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if !entry.is_object() {
        *entry = Value::Object(Map::new());
    }
    match entry {
        Value::Object(map) => map,
        _ => unreachable!("an object was just put here"),
    }
}

/// Sets a member that is absent (or an empty string).
pub(crate) fn set_default(object: &mut Object, key: &str, value: impl Into<Value>) {
    let absent = match object.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(_) => false,
    };
    if absent {
        object.insert(key.to_owned(), value.into());
    }
}

/// A string at a key; empty when absent.
pub(crate) fn text<'a>(object: &'a Object, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}
