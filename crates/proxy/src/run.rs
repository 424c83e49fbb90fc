//! The shell: informers tell which Services have changed, the ruleset is brought up to date, and what differs
//! goes to the kernel in one transaction.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::prelude::*;
use client::BoxFuture;
use reconcile::{Context, Event, Informer};
use stdx::Backoff;
use tokio::sync::Notify;

use crate::compile::{Place, compile};
use crate::ruleset::{Change, Ruleset};

/// Changes that come together go together: a rollout changes one Service many times.
const GATHER: Duration = Duration::from_millis(5);
const RETRY: Backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(30) };
/// Index of slices by `namespace/service`.
const BY_SERVICE: &str = "proxy-service";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Any error of a programmer.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Puts rules into the kernel.
pub trait Programmer: Send + Sync {
    /// Makes the kernel's rules exactly `rules`, whatever they were: at the start, and after a failure.
    fn replace<'a>(&'a self, rules: &'a Ruleset) -> BoxFuture<'a, Result<(), BoxError>>;
    /// Applies changes in one transaction. `old` and `new` are the rulesets before and after.
    fn apply<'a>(
        &'a self,
        changes: &'a [Change],
        old: &'a Ruleset,
        new: &'a Ruleset,
    ) -> BoxFuture<'a, Result<(), BoxError>>;
}

struct Proxy {
    place: Mutex<Place>,
    services: Arc<Informer<Service>>,
    slices: Arc<Informer<EndpointSlice>>,
    /// Keys of Services that may have changed.
    dirty: Mutex<BTreeSet<String>>,
    wake: Notify,
}

fn service_key(slice: &EndpointSlice) -> Vec<String> {
    let name = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME));
    name.map(|name| format!("{}/{name}", slice.namespace())).into_iter().collect()
}

/// Keeps the kernel's rules of the node `node` in step with Services until the context is cancelled.
pub async fn run(context: &Context, node: &str, programmer: Arc<dyn Programmer>) {
    let proxy = Arc::new(Proxy {
        place: Mutex::new(Place { node: node.to_owned(), zone: String::new() }),
        services: context.informers.get::<Service>(),
        slices: context.informers.get::<EndpointSlice>(),
        dirty: Mutex::default(),
        wake: Notify::new(),
    });
    let nodes = context.informers.get::<Node>();
    let it = proxy.clone();
    nodes.on_event(move |event| it.on_node(event.object()));
    proxy.slices.store().add_index(BY_SERVICE, service_key);
    let it = proxy.clone();
    proxy.services.on_event(move |event| it.mark([event.object().key()]));
    let it = proxy.clone();
    proxy.slices.on_event(move |event| {
        it.mark(service_key(event.object()));
        if let Event::Updated { old, .. } = event {
            it.mark(service_key(old));
        }
    });
    let work = async {
        nodes.synced().await;
        proxy.services.synced().await;
        proxy.slices.synced().await;
        proxy.keep(&*programmer).await;
    };
    tokio::select! {
        () = context.cancel.cancelled() => {}
        () = work => {}
    }
}

impl Proxy {
    fn mark(&self, keys: impl IntoIterator<Item = String>) {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
        self.wake.notify_one();
    }

    /// The zone of our own node decides which endpoints are near.
    fn on_node(&self, node: &Node) {
        let zone = node.metadata.labels.as_ref().and_then(|l| l.get(ZONE)).cloned().unwrap_or_default();
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if node.name() == place.node && zone != place.zone {
            place.zone = zone;
            drop(place);
            self.mark(self.services.store().keys().iter().map(ToString::to_string));
        }
    }

    /// Brings parts of Services up to date and the kernel with them.
    async fn keep(&self, programmer: &dyn Programmer) {
        let mut parts: HashMap<String, Ruleset> = HashMap::new();
        let mut current = Ruleset::default();
        let mut failures = 0;
        let mut replace = true;
        loop {
            let notified = self.wake.notified();
            let dirty = std::mem::take(&mut *self.dirty.lock().unwrap_or_else(PoisonError::into_inner));
            if dirty.is_empty() && !replace {
                notified.await;
                tokio::time::sleep(GATHER).await;
                continue;
            }
            let mut next = current.clone();
            let place = self.place.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for key in dirty {
                let mut part = Ruleset::default();
                if let Some(service) = self.services.store().get(&key) {
                    compile(&service, &self.slices.store().by_index(BY_SERVICE, &key), &place, &mut part);
                }
                let old = parts.remove(&key).unwrap_or_default();
                exchange(&mut next, &old, &part);
                if part != Ruleset::default() {
                    parts.insert(key, part);
                }
            }
            let changes = next.diff(&current);
            let outcome = match (replace, changes.is_empty()) {
                (true, _) => programmer.replace(&next).await,
                (false, true) => Ok(()),
                (false, false) => programmer.apply(&changes, &current, &next).await,
            };
            current = next;
            replace = outcome.is_err();
            match outcome {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "service rules could not be written and will be written anew");
                    tokio::time::sleep(RETRY.delay(failures)).await;
                }
            }
        }
    }
}

/// Takes the old part of a Service out of the whole and puts the new one in.
fn exchange(whole: &mut Ruleset, old: &Ruleset, new: &Ruleset) {
    for (key, rule) in &old.frontends {
        // Two Services may claim one external address; the one that is there keeps it.
        if whole.frontends.get(key).is_some_and(|r| r.origin == rule.origin) {
            whole.frontends.remove(key);
        }
    }
    old.node_ports.keys().for_each(|key| drop(whole.node_ports.remove(key)));
    old.health_checks.keys().for_each(|key| drop(whole.health_checks.remove(key)));
    for (key, rule) in &new.frontends {
        whole.frontends.entry(*key).or_insert_with(|| rule.clone());
    }
    whole.node_ports.extend(new.node_ports.clone());
    whole.health_checks.extend(new.health_checks.clone());
}
