//! `namespace-controller`: empties a namespace that is being deleted, pods first (KEP-5080), and then takes
//! its finalizer away.
//!
//! Which resources there are comes from discovery, so that custom ones are emptied too.

pub mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use client::{
    ApiResource, BoxFuture, Client, DeleteParams, ListParams, Propagation, RestMapper, WatchParams,
};
use meta::Gvr;
use parking_lot::Mutex;
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, WorkQueue,
};
use serde::Deserialize;
use stdx::Clock;

use self::plan::Report;

const NAME: &str = "namespace-controller";
/// Namespaces emptied at once (upstream's default is 10).
const WORKERS: usize = 10;
/// The finalizer that is ours.
const FINALIZER: &str = "kubernetes";
/// Longest wait for an event of what is left; then everything is looked at anew, as a watch may have ended.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Pause before looking again at what could not be watched.
const WATCH_RETRY: Duration = Duration::from_secs(5);
/// Most resources that are watched for a namespace at once.
const WATCHES_MAX: usize = 32;

/// The row of `namespace-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    clock: Arc<dyn Clock>,
    namespaces: Arc<Informer<Namespace>>,
    queue: Arc<WorkQueue>,
    /// Those who wait for something to go, by namespace.
    waiting: Mutex<HashMap<String, AbortOnDrop>>,
}

/// A task that ends with this value.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        clock: context.clock.clone(),
        namespaces: context.informers.get::<Namespace>(),
        queue: queue.clone(),
        waiting: Mutex::default(),
    });
    let to = queue.clone();
    this.namespaces.on_event(move |event| {
        if event.object().is_terminating() && !matches!(event, Event::Deleted(_)) {
            to.add(event.object().key());
        }
    });
    // Pods take the longest to go; the last one wakes us.
    let (to, it) = (queue.clone(), this.clone());
    context.informers.get::<Pod>().on_event(move |event| {
        if let Event::Deleted(pod) = event
            && it.namespaces.store().get(pod.namespace()).is_some_and(|n| n.is_terminating())
        {
            to.add(pod.namespace());
        }
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.namespaces)
}

#[derive(Deserialize, Default)]
struct Leftover {
    #[serde(default)]
    metadata: LeftoverMeta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct LeftoverMeta {
    #[serde(default)]
    name: String,
    #[serde(default)]
    finalizers: Vec<String>,
    deletion_timestamp: Option<String>,
}

/// A resource that is left, and the version of the list that says so.
struct Left {
    gvr: Gvr,
    resource_version: String,
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        self.waiting.lock().remove(key);
        let mut namespace = match self.client.get_typed::<Namespace>("", key).await {
            Err(error) if error.is_not_found() => return Ok(Action::Wait),
            namespace => namespace?,
        };
        if !namespace.is_terminating() {
            return Ok(Action::Wait);
        }
        if namespace.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating") {
            namespace.status.get_or_insert_default().phase = Some("Terminating".into());
            namespace = self.client.update_status_typed(&namespace).await?;
        }
        let ours = |f: &String| f == FINALIZER;
        if !namespace.spec.iter().flat_map(|s| s.finalizers.iter().flatten()).any(ours) {
            return Ok(Action::Wait);
        }
        let (report, left) = self.empty(key).await?;
        let status = namespace.status.get_or_insert_default();
        let old = status.conditions.clone().unwrap_or_default();
        let conditions = plan::conditions(&old, &report, &Time(self.clock.now()));
        // A namespace that goes at once needs no conditions: one write less.
        if conditions != old && !report.is_clean() {
            status.conditions = Some(conditions);
            namespace = self.client.update_status_typed(&namespace).await?;
        }
        if !report.is_clean() {
            return self.wait(key, &report, left);
        }
        if let Some(finalizers) = namespace.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
            finalizers.retain(|f| f != FINALIZER);
        }
        let body = namespace.encode();
        match self.client.update_subresource(&Namespace::GVR, "", key, "finalize", &body).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Action::Wait),
        }
    }

    /// Waits for what is left to go: each of its resources is watched, and the first event wakes us.
    fn wait(&self, namespace: &str, report: &Report, left: Vec<Left>) -> Result<Action, ControlError> {
        if left.is_empty() {
            let troubles = report.discovery_failures.iter().chain(&report.deletion_failures);
            let text: Vec<&str> = troubles.map(String::as_str).collect();
            return Err(ControlError::Unfinished(format!("namespace {namespace}: {}", text.join(", "))));
        }
        let (client, queue, key) = (self.client.clone(), self.queue.clone(), namespace.to_owned());
        let task = tokio::spawn(async move {
            {
                let watches = left.into_iter().take(WATCHES_MAX).map(|l| Box::pin(gone(&client, &key, l)));
                let first = futures_util::future::select_all(watches);
                let _ = tokio::time::timeout(LOOK_AGAIN, first).await;
            }
            queue.add(key);
        });
        self.waiting.lock().insert(namespace.to_owned(), AbortOnDrop(task));
        Ok(Action::Wait)
    }

    /// One round of deletion: what has come of it, and what is left.
    async fn empty(&self, namespace: &str) -> client::Result<(Report, Vec<Left>)> {
        let mapper = RestMapper::discover(&self.client).await?;
        let mut report = Report { discovery_failures: mapper.failed_groups.clone(), ..Default::default() };
        let (first, rest): (Vec<&ApiResource>, Vec<_>) = mapper
            .preferred()
            .filter(|r| r.namespaced && r.can("delete") && r.can("list"))
            .partition(|r| r.gvr == Pod::GVR);
        let mut left = Vec::new();
        for stage in [first, rest] {
            for resource in stage {
                match self.empty_resource(namespace, resource, &mut report).await {
                    Ok(found) => left.extend(found.filter(|_| resource.can("watch"))),
                    Err(error) => report.deletion_failures.push(error.to_string()),
                }
            }
            // Others stay until the pods that may use them are gone.
            if !report.remaining.is_empty() || !report.deletion_failures.is_empty() {
                break;
            }
        }
        Ok((report, left))
    }

    async fn empty_resource(
        &self,
        namespace: &str,
        resource: &ApiResource,
        report: &mut Report,
    ) -> client::Result<Option<Left>> {
        let (before, _) = self.leftovers(namespace, resource).await?;
        if before.is_empty() {
            return Ok(None);
        }
        let params = DeleteParams::propagating(Propagation::Background);
        // What is on its way out already needs no second push.
        let all_leave = before.iter().all(|left| left.metadata.deletion_timestamp.is_some());
        if !all_leave && resource.can("deletecollection") {
            self.client.delete_collection(&resource.gvr, namespace, &params, &ListParams::default()).await?;
        } else if !all_leave {
            for leftover in &before {
                match self.client.delete(&resource.gvr, namespace, &leftover.metadata.name, &params).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        let (after, resource_version) = self.leftovers(namespace, resource).await?;
        if after.is_empty() {
            return Ok(None);
        }
        let name = format!("{}.{}", resource.gvr.resource, resource.gvr.group);
        report.remaining.insert(name, after.len());
        for finalizer in after.iter().flat_map(|left| &left.metadata.finalizers) {
            *report.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        Ok(Some(Left { gvr: resource.gvr.clone(), resource_version }))
    }

    async fn leftovers(
        &self,
        namespace: &str,
        resource: &ApiResource,
    ) -> client::Result<(Vec<Leftover>, String)> {
        let params = ListParams { metadata_only: true, ..Default::default() };
        let list = match self.client.list(&resource.gvr, namespace, &params).await {
            // The resource went away since discovery, and its objects with it.
            Err(error) if error.is_not_found() => return Ok((Vec::new(), String::new())),
            list => list?,
        };
        let items = list.items.iter().map(|item| serde_json::from_slice(item)).collect::<Result<_, _>>()?;
        Ok((items, list.resource_version))
    }
}

/// Ends when an object of a resource goes or changes, or when it cannot be watched any more.
async fn gone(client: &Client, namespace: &str, left: Left) {
    let Left { gvr, resource_version } = left;
    let params = WatchParams { resource_version, metadata_only: true, ..Default::default() };
    match client.watch(&gvr, namespace, &params).await {
        Ok(mut events) => drop(events.next().await),
        Err(error) => {
            tracing::debug!(%error, resource = %gvr.resource, "cannot watch what is left");
            tokio::time::sleep(WATCH_RETRY).await;
        }
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
