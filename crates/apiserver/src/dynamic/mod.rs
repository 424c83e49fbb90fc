//! Webhooks and policies in the server: their compiled configurations follow the watch cache by event, and the
//! chain asks them about each request.

mod call;
mod mutate;
pub mod typecheck;
mod validate;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

use admission::dynamic::policy::{Binding, Policy};
use admission::dynamic::webhook::Hook;
use admission::dynamic::{mutation, policy::Report};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use registry::{Change, Registry};
use serde_json::Value;

pub use mutate::mutate;
pub use validate::validate;

const GROUP: &str = "admissionregistration.k8s.io";

/// Compiled configurations of one kind, by name.
struct Index<T> {
    parts: Mutex<BTreeMap<String, Arc<T>>>,
    all: ArcSwap<Vec<Arc<T>>>,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Index { parts: Mutex::default(), all: ArcSwap::default() }
    }
}

impl<T: Send + Sync + 'static> Index<T> {
    fn set(&self, name: &str, value: Option<T>) {
        let mut parts = self.parts.lock();
        match value {
            Some(value) => parts.insert(name.to_owned(), Arc::new(value)),
            None => parts.remove(name),
        };
        self.all.store(Arc::new(parts.values().cloned().collect()));
    }

    /// Keeps the index in step with a resource.
    fn follow(self: &Arc<Self>, registry: &Registry, resource: &str, compile: fn(&Value) -> T) {
        let table = registry.table();
        let Some(def) = table.find(GROUP, "v1", resource) else { return };
        let index = self.clone();
        registry.cacher().kind(&def.storage_prefix()).observe(move |event| {
            let object = &event.object;
            let value = (event.change != Change::Deleted).then(|| compile(&object.to_value()));
            index.set(&object.name, value);
        });
    }
}

/// Everything configured.
#[derive(Default)]
pub struct Dynamic {
    validating: Arc<Index<Vec<Hook>>>,
    mutating: Arc<Index<Vec<Hook>>>,
    policies: Arc<Index<Policy>>,
    bindings: Arc<Index<Binding>>,
    mutations: Arc<Index<mutation::Policy>>,
    mutation_bindings: Arc<Index<Binding>>,
}

impl Dynamic {
    /// Follows a registry.
    pub fn new(registry: &Registry) -> Dynamic {
        let dynamic = Dynamic::default();
        dynamic.validating.follow(registry, "validatingwebhookconfigurations", Hook::all);
        dynamic.mutating.follow(registry, "mutatingwebhookconfigurations", Hook::all);
        dynamic.policies.follow(registry, "validatingadmissionpolicies", Policy::compile);
        dynamic.bindings.follow(registry, "validatingadmissionpolicybindings", Binding::from_json);
        dynamic.mutations.follow(registry, "mutatingadmissionpolicies", mutation::Policy::compile);
        dynamic.mutation_bindings.follow(registry, "mutatingadmissionpolicybindings", Binding::from_json);
        dynamic
    }
}

/// What webhooks and policies said besides yes, collected over one request.
#[derive(Default)]
pub struct Collected(Mutex<Report>);

/// Most warnings taken from one request's webhooks and policies.
const WARNINGS_MAX: usize = 64;

impl Collected {
    pub(crate) fn add(&self, report: Report) {
        let mut all = self.0.lock();
        for warning in report.warnings {
            // An update that is tried again asks again.
            if all.warnings.len() < WARNINGS_MAX && !all.warnings.contains(&warning) {
                all.warnings.push(warning);
            }
        }
        for (key, value) in &report.annotations {
            tracing::debug!(key, value, "audit annotation");
            crate::audit::annotate(key, value);
        }
        all.annotations.extend(report.annotations);
    }

    /// Takes the warnings out.
    pub fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().warnings)
    }
}
