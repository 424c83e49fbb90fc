//! Following pods on behalf of those who control them: events of pods become keys of their owners, and what
//! an owner expects to see is ticked off.
//!
//! Every loop that makes pods (ReplicaSets, DaemonSets, Jobs, StatefulSets) hangs on one of these.

use std::sync::Arc;

use api::prelude::*;
use meta::LabelSelector;
use reconcile::{ControlError, Event, Expectations, Informer, WorkQueue};

use crate::owners;

/// Name of the index of owners by their namespace.
const NAMESPACE: &str = "namespace";

/// What a kind of owner selects its pods by.
pub type SelectorOf<T> = fn(&T) -> Result<LabelSelector, ControlError>;

/// The pods of one kind of owner.
pub struct Follow<T> {
    /// Created and deleted pods that the cache has yet to show, by the owner's key.
    pub expectations: Expectations,
    owners: Arc<Informer<T>>,
    queue: Arc<WorkQueue>,
    selector: SelectorOf<T>,
}

impl<T: Typed> Follow<T> {
    /// Registers handlers: from now on `queue` gets the key of every owner that changes or whose pods do.
    pub fn start(
        owners: &Arc<Informer<T>>,
        pods: &Informer<Pod>,
        queue: &Arc<WorkQueue>,
        selector: SelectorOf<T>,
    ) -> Arc<Follow<T>> {
        let this = Arc::new(Follow {
            expectations: Expectations::default(),
            owners: owners.clone(),
            queue: queue.clone(),
            selector,
        });
        owners::add_indexes(pods);
        owners.store().add_index(NAMESPACE, reconcile::index_by_namespace::<T>);
        let it = this.clone();
        owners.on_event(move |event| {
            if let Event::Deleted(owner) = event {
                it.expectations.forget(&owner.key());
            }
            it.queue.add(event.object().key());
        });
        let it = this.clone();
        pods.on_event(move |event| it.on_pod(event));
        this
    }

    /// The key of the owner that controls a pod, if it is of our kind.
    fn controlling_key(&self, pod: &Pod) -> Option<String> {
        let owner = owners::controller_of(&pod.metadata)?;
        let ours = owner.kind == T::GVK.kind && owner.api_version == T::GVK.api_version();
        ours.then(|| format!("{}/{}", pod.namespace(), owner.name))
    }

    fn on_pod(&self, event: &Event<'_, Pod>) {
        match event {
            Event::Added(pod) if pod.is_terminating() => self.leaving(pod),
            Event::Added(pod) => match self.controlling_key(pod) {
                Some(key) => {
                    self.expectations.creation_observed(&key);
                    self.queue.add(key);
                }
                None => self.offer_orphan(pod),
            },
            Event::Updated { old, new } => {
                if new.is_terminating() {
                    self.leaving(new);
                }
                let (before, after) = (self.controlling_key(old), self.controlling_key(new));
                if before != after
                    && let Some(key) = before
                {
                    self.queue.add(key);
                }
                match after {
                    Some(key) => self.queue.add(key),
                    None => self.offer_orphan(new),
                }
            }
            Event::Deleted(pod) => self.leaving(pod),
        }
    }

    fn leaving(&self, pod: &Pod) {
        if let Some(key) = self.controlling_key(pod) {
            self.expectations.deletion_observed(&key, pod.uid());
            self.queue.add(key);
        }
    }

    /// A pod without a controller may be somebody's.
    fn offer_orphan(&self, pod: &Pod) {
        if owners::controller_of(&pod.metadata).is_some() || pod.is_terminating() {
            return;
        }
        for owner in self.owners.store().by_index(NAMESPACE, pod.namespace()) {
            let selector = (self.selector)(&owner);
            if selector.is_ok_and(|s| !s.is_everything() && owners::matches(&s, &pod.metadata)) {
                self.queue.add(owner.key());
            }
        }
    }
}
