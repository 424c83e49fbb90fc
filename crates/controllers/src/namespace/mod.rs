//! `namespace-controller`: empties a namespace that is being deleted, pods first (KEP-5080), and then takes
//! its finalizer away.
//!
//! Which resources there are comes from discovery, so that custom ones are emptied too.

pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use client::{ApiResource, BoxFuture, Client, DeleteParams, ListParams, Propagation, RestMapper};
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
/// How soon to look again where only the disappearance of finalizers is awaited, which no event tells us.
const FINALIZER_CHECK: Duration = Duration::from_millis(500);

/// The row of `namespace-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    clock: Arc<dyn Clock>,
    namespaces: Arc<Informer<Namespace>>,
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        clock: context.clock.clone(),
        namespaces: context.informers.get::<Namespace>(),
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
    deletion_grace_period_seconds: Option<u64>,
}

/// What one resource has left.
struct Left {
    grace: Duration,
    count: usize,
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
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
        let (report, wait) = self.empty(key).await?;
        let status = namespace.status.get_or_insert_default();
        let old = status.conditions.clone().unwrap_or_default();
        let conditions = plan::conditions(&old, &report, &Time(self.clock.now()));
        // A namespace that goes at once needs no conditions: one write less.
        if conditions != old && !report.is_clean() {
            status.conditions = Some(conditions);
            namespace = self.client.update_status_typed(&namespace).await?;
        }
        if !report.is_clean() {
            return Ok(Action::RequeueAfter(wait));
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

    /// One round of deletion: what is left, and how long to wait before the next.
    async fn empty(&self, namespace: &str) -> client::Result<(Report, Duration)> {
        let mapper = RestMapper::discover(&self.client).await?;
        let mut report = Report { discovery_failures: mapper.failed_groups.clone(), ..Default::default() };
        let (first, rest): (Vec<&ApiResource>, Vec<_>) = mapper
            .preferred()
            .filter(|r| r.namespaced && r.can("delete") && r.can("list"))
            .partition(|r| r.gvr == Pod::GVR);
        for stage in [first, rest] {
            let mut wait = FINALIZER_CHECK;
            for resource in stage {
                match self.empty_resource(namespace, resource, &mut report).await {
                    Ok(left) if left.count > 0 => wait = wait.max(left.grace / 2 + FINALIZER_CHECK),
                    Ok(_) => {}
                    Err(error) => report.deletion_failures.push(error.to_string()),
                }
            }
            // Others stay until the pods that may use them are gone.
            if !report.remaining.is_empty() || !report.deletion_failures.is_empty() {
                return Ok((report, wait));
            }
        }
        Ok((report, FINALIZER_CHECK))
    }

    async fn empty_resource(
        &self,
        namespace: &str,
        resource: &ApiResource,
        report: &mut Report,
    ) -> client::Result<Left> {
        let before = self.leftovers(namespace, resource).await?;
        if before.is_empty() {
            return Ok(Left { grace: Duration::ZERO, count: 0 });
        }
        let params = DeleteParams::propagating(Propagation::Background);
        if resource.can("deletecollection") {
            self.client.delete_collection(&resource.gvr, namespace, &params, &ListParams::default()).await?;
        } else {
            for leftover in &before {
                match self.client.delete(&resource.gvr, namespace, &leftover.metadata.name, &params).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        let after = self.leftovers(namespace, resource).await?;
        if !after.is_empty() {
            let name = format!("{}.{}", resource.gvr.resource, resource.gvr.group);
            report.remaining.insert(name, after.len());
            for finalizer in after.iter().flat_map(|left| &left.metadata.finalizers) {
                *report.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
        }
        let grace = after.iter().filter_map(|left| left.metadata.deletion_grace_period_seconds).max();
        Ok(Left { grace: Duration::from_secs(grace.unwrap_or(0)), count: after.len() })
    }

    async fn leftovers(&self, namespace: &str, resource: &ApiResource) -> client::Result<Vec<Leftover>> {
        let params = ListParams { metadata_only: true, ..Default::default() };
        let list = match self.client.list(&resource.gvr, namespace, &params).await {
            // The resource went away since discovery, and its objects with it.
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            list => list?,
        };
        Ok(list.items.iter().map(|item| serde_json::from_slice(item)).collect::<Result<_, _>>()?)
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
