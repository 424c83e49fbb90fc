//! `generic-garbage-collector`: deletes what has lost its owners, lets owners wait for their dependents
//! (foreground), and releases dependents (orphan).
//!
//! Flow: discovery -> a metadata-only informer per resource -> [`graph::Graph`] -> uids worth a look ->
//! [`graph::judge`] -> patch or delete. New resources are found when CRDs or API services change.

mod graph;

use std::sync::Arc;
use std::time::Duration;

use api::prelude::DecodeError;
use client::{ApiResource, BoxFuture, Client, DeleteParams, Patch, Propagation, RestMapper};
use graph::{FOREGROUND, Graph, Item, Node, ORPHAN, Owner, Standing, Uid, Verdict};
use meta::{Gvk, Gvr};
use reconcile::{
    Action, Cached, Context, ControlError, Controller, Descriptor, Event, Informers, Reconcile, Scope,
    WorkQueue,
};
use serde_json::{Value, json};
use stdx::Backoff;
use tokio::sync::{Notify, watch};

const NAME: &str = "generic-garbage-collector";
/// Objects in work at once (upstream's default is 20).
const WORKERS: usize = 20;
/// How long to wait for the caches of a resource; one that cannot be listed must not stop the others.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);
/// CRDs often come in bunches: discover once for all of a bunch.
const DISCOVERY_PAUSE: Duration = Duration::from_millis(500);
const DISCOVERY_RETRY: Backoff =
    Backoff { initial: Duration::from_millis(200), max: Duration::from_secs(30) };

/// The row of `generic-garbage-collector`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    graph: std::sync::Mutex<Graph>,
    mapper: std::sync::RwLock<Arc<RestMapper>>,
    queue: Arc<WorkQueue>,
}

fn build(context: &Context) -> Controller {
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        graph: std::sync::Mutex::default(),
        mapper: std::sync::RwLock::default(),
        queue: WorkQueue::new(),
    });
    let ready = watch::Sender::new(false);
    let mut is_ready = ready.subscribe();
    let task = follow_discovery(this.clone(), context.informers.clone(), ready);
    let mut controller = Controller::new(this.queue.clone(), this, WORKERS).with_task(task);
    controller.synced.push(Box::pin(async move {
        // Fails only if the task has ended, and then everything has.
        let _ = is_ready.wait_for(|ready| *ready).await;
    }));
    controller
}

/// Whether the collector looks after a resource. Events are many, short-lived and never owned.
fn is_collectable(resource: &ApiResource) -> bool {
    ["list", "watch", "delete"].iter().all(|verb| resource.can(verb)) && resource.gvr.resource != "events"
}

/// Keeps an informer for every resource there is.
async fn follow_discovery(this: Arc<Loop>, informers: Arc<Informers>, ready: watch::Sender<bool>) {
    let changed = Arc::new(Notify::new());
    let mut followed: Vec<Gvr> = Vec::new();
    let mut failures = 0;
    loop {
        let mapper = match RestMapper::discover(&this.client).await {
            Ok(mapper) => mapper,
            Err(error) => {
                failures += 1;
                tracing::debug!(%error, "the garbage collector cannot discover resources yet");
                tokio::time::sleep(DISCOVERY_RETRY.delay(failures)).await;
                continue;
            }
        };
        failures = 0;
        let wanted: Vec<Gvr> =
            mapper.preferred().filter(|r| is_collectable(r)).map(|r| r.gvr.clone()).collect();
        let incomplete = !mapper.failed_groups.is_empty();
        if let Ok(mut slot) = this.mapper.write() {
            *slot = Arc::new(mapper);
        }
        let mut syncing = Vec::new();
        for gvr in wanted.iter().filter(|gvr| !followed.contains(gvr)) {
            syncing.push(this.follow(&informers, gvr, &changed));
        }
        for gvr in followed.iter().filter(|gvr| !incomplete && !wanted.contains(gvr)) {
            informers.stop::<Item>(gvr);
        }
        followed = wanted;
        let all = futures_util::future::join_all(syncing);
        if tokio::time::timeout(SYNC_TIMEOUT, all).await.is_err() {
            tracing::warn!("the garbage collector goes on without the caches of some resources");
        }
        ready.send_replace(true);
        changed.notified().await;
        tokio::time::sleep(DISCOVERY_PAUSE).await;
    }
}

impl Loop {
    /// Follows one resource; the future resolves when its cache is filled.
    fn follow(
        self: &Arc<Self>,
        informers: &Informers,
        gvr: &Gvr,
        changed: &Arc<Notify>,
    ) -> impl Future<Output = ()> + use<> {
        let informer = informers.get_dynamic::<Item>(gvr.clone(), Scope::default(), true);
        let defines_resources =
            matches!(&*gvr.resource, "customresourcedefinitions" | "apiservices").then(|| changed.clone());
        let (this, gvr) = (self.clone(), Arc::new(gvr.clone()));
        informer.on_event(move |event: &Event<'_, Item>| {
            let look = {
                // A poisoned lock means a bug in the graph; going on with it is better than stopping.
                let mut graph = this.graph.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                match event {
                    Event::Added(item) | Event::Updated { new: item, .. } => {
                        graph.upsert(&gvr, (*item).clone())
                    }
                    Event::Deleted(item) => graph.remove(&item.uid),
                }
            };
            look.into_iter().for_each(|uid: Uid| this.queue.add(uid));
            if let Some(changed) = &defines_resources {
                changed.notify_one();
            }
        });
        async move { informer.synced().await }
    }

    fn with_graph<T>(&self, read: impl FnOnce(&Graph) -> T) -> T {
        read(&self.graph.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn resource_of(&self, owner: &Owner) -> Option<ApiResource> {
        let mapper = self.mapper.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        mapper.by_kind(&Gvk::from_type_meta(&owner.api_version, &owner.kind)).cloned()
    }

    async fn sync(&self, uid: &str) -> Result<Action, ControlError> {
        let Some(node) = self.with_graph(|graph| graph.get(uid).cloned()) else { return Ok(Action::Wait) };
        if node.item.deleting {
            if node.item.orphaning {
                self.orphan_dependents(&node).await?;
            } else if node.item.foreground {
                self.finish_foreground(&node).await?;
            }
            return Ok(Action::Wait);
        }
        // The cache may lag; nothing is deleted on hearsay.
        let Some(live) = self.live(&node).await? else { return Ok(Action::Wait) };
        if live.deleting {
            return Ok(Action::Wait);
        }
        let mut standings = Vec::with_capacity(live.owners.len());
        for owner in &live.owners {
            let known = self.with_graph(|graph| graph.standing(&live, owner));
            standings.push(match known {
                Some(standing) => standing,
                None => self.ask(&live, owner).await?,
            });
        }
        let dependents = self.with_graph(|graph| graph.dependents(uid));
        match graph::judge(&live, &standings, !dependents.is_empty()) {
            Verdict::Keep => {}
            Verdict::Disown(owners) => self.disown(&node, &owners).await?,
            Verdict::Delete { foreground } => {
                // Owner and dependent that wait for each other would wait for ever.
                if foreground && dependents.iter().any(|d| d.item.waits_for_dependents()) {
                    self.unblock_owners(&node).await?;
                }
                self.delete(&node, &live, foreground).await?;
            }
        }
        Ok(Action::Wait)
    }

    /// The object as the API has it now; `None` if it is gone or another has its name.
    async fn live(&self, node: &Node) -> Result<Option<Item>, ControlError> {
        Ok(self.live_value(node).await?.map(|(item, _)| item))
    }

    async fn live_value(&self, node: &Node) -> Result<Option<(Item, Value)>, ControlError> {
        let value = match self.client.get_metadata(&node.gvr, &node.item.namespace, &node.item.name).await {
            Err(error) if error.is_not_found() => return Ok(None),
            value => value?,
        };
        let item = decode(&value)?;
        Ok((item.uid == node.item.uid).then_some((item, value)))
    }

    /// Asks the API for an owner that the graph does not have.
    async fn ask(&self, dependent: &Item, owner: &Owner) -> Result<Standing, ControlError> {
        let Some(resource) = self.resource_of(owner) else {
            // The kind may come back; an object is never deleted because its owner's kind is unknown.
            tracing::debug!(kind = owner.kind, api_version = owner.api_version, "owner of an unknown kind");
            return Ok(Standing::Solid);
        };
        if resource.namespaced && dependent.namespace.is_empty() {
            // A cluster-scoped object cannot be owned by a namespaced one: a mistake, not an order to delete.
            return Ok(Standing::Solid);
        }
        let namespace = if resource.namespaced { &*dependent.namespace } else { "" };
        match self.client.get_metadata(&resource.gvr, namespace, &owner.name).await {
            Err(error) if error.is_not_found() => Ok(Standing::Absent),
            Err(error) => Err(error.into()),
            Ok(value) => {
                let item = decode(&value)?;
                Ok(match *item.uid == *owner.uid {
                    false => Standing::Absent,
                    true if item.waits_for_dependents() => Standing::Waiting,
                    true => Standing::Solid,
                })
            }
        }
    }

    async fn delete(&self, node: &Node, live: &Item, foreground: bool) -> Result<(), ControlError> {
        let propagation = match foreground {
            true => Propagation::Foreground,
            false if live.orphaning => Propagation::Orphan,
            false => Propagation::Background,
        };
        let params = DeleteParams {
            propagation: Some(propagation),
            uid: Some(live.uid.to_string()),
            ..Default::default()
        };
        tracing::debug!(resource = %node.gvr, object = live.cache_key(), ?propagation, "collecting garbage");
        ignore_gone(self.client.delete(&node.gvr, &live.namespace, &live.name, &params).await)
    }

    /// Takes owners out of an object's references.
    async fn disown(&self, node: &Node, owners: &[String]) -> Result<(), ControlError> {
        let is_loose = |r: &Value| owners.iter().any(|uid| r["uid"] == uid.as_str());
        self.change_owners(node, |references| references.retain(|r| !is_loose(r))).await
    }

    /// No owner waits for this object any more.
    async fn unblock_owners(&self, node: &Node) -> Result<(), ControlError> {
        let unblock = |reference: &mut Value| {
            if let Some(blocks) = reference.get_mut("blockOwnerDeletion") {
                *blocks = false.into();
            }
        };
        self.change_owners(node, |references| references.iter_mut().for_each(unblock)).await
    }

    async fn change_owners(
        &self,
        node: &Node,
        change: impl FnOnce(&mut Vec<Value>),
    ) -> Result<(), ControlError> {
        let Some((live, value)) = self.live_value(node).await? else { return Ok(()) };
        let mut references = value["metadata"]["ownerReferences"].clone();
        if let Some(list) = references.as_array_mut() {
            change(list);
        }
        forget_empty(&mut references);
        let patch = Patch::Merge(json!({"metadata": {
            "uid": &*live.uid, "resourceVersion": &*live.version, "ownerReferences": references,
        }}));
        ignore_gone(self.client.patch(&node.gvr, &live.namespace, &live.name, "", &patch).await)
    }

    /// Releases all dependents of an object that is being deleted, then takes its finalizer away.
    async fn orphan_dependents(&self, node: &Node) -> Result<(), ControlError> {
        let owner = [node.item.uid.to_string()];
        for dependent in self.with_graph(|graph| graph.dependents(&node.item.uid)) {
            self.disown(&dependent, &owner).await?;
        }
        self.remove_finalizer(node, ORPHAN).await
    }

    /// Takes the finalizer of an object away when nothing is left for which it has to wait.
    async fn finish_foreground(&self, node: &Node) -> Result<(), ControlError> {
        let blocking = self.with_graph(|graph| graph.blocking(&node.item.uid));
        if blocking.is_empty() {
            return self.remove_finalizer(node, FOREGROUND).await;
        }
        blocking.iter().filter(|d| !d.item.deleting).for_each(|d| self.queue.add(d.item.uid.clone()));
        Ok(())
    }

    async fn remove_finalizer(&self, node: &Node, finalizer: &str) -> Result<(), ControlError> {
        let Some((live, value)) = self.live_value(node).await? else { return Ok(()) };
        let mut finalizers = value["metadata"]["finalizers"].clone();
        if let Some(list) = finalizers.as_array_mut() {
            list.retain(|f| f != finalizer);
        }
        forget_empty(&mut finalizers);
        let patch = Patch::Merge(json!({"metadata": {
            "uid": &*live.uid, "resourceVersion": &*live.version, "finalizers": finalizers,
        }}));
        ignore_gone(self.client.patch(&node.gvr, &live.namespace, &live.name, "", &patch).await)
    }
}

/// A list without anything in it is not there, as typed clients write it.
fn forget_empty(list: &mut Value) {
    if list.as_array().is_some_and(Vec::is_empty) {
        *list = Value::Null;
    }
}

fn decode(value: &Value) -> Result<Item, ControlError> {
    let bytes =
        serde_json::to_vec(value).map_err(|source| DecodeError { kind: "PartialObjectMetadata", source })?;
    Ok(Item::decode_cached(&bytes)?)
}

fn ignore_gone(outcome: client::Result<Value>) -> Result<(), ControlError> {
    match outcome {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
