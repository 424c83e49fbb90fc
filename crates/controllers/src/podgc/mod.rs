//! `pod-garbage-collector`: removes pods of nodes that are gone, pods deleted before they were bound, and
//! finished pods beyond a limit.

pub mod plan;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams, Patch};
use jiff::{SignedDuration, Timestamp};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, WorkQueue,
};
use serde_json::json;
use stdx::Clock;

use self::plan::Why;
use crate::nodelifecycle::BY_NODE;
use crate::pods;

const WORKERS: usize = 4;
const NAME: &str = "pod-garbage-collector";
/// A node must have been missing for this long: it may only be late in a cache.
const QUARANTINE: SignedDuration = SignedDuration::from_secs(40);
/// The key under which the number of finished pods is looked at; no pod is called so.
const SURPLUS: &str = "/finished";

/// The row of `pod-garbage-collector`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    clock: Arc<dyn Clock>,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    /// Since when nodes that pods are bound to have been missing.
    missing: Mutex<HashMap<String, Timestamp>>,
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        clock: context.clock.clone(),
        nodes: context.informers.get::<Node>(),
        pods: context.informers.get::<Pod>(),
        missing: Mutex::default(),
    });
    this.pods.store().add_index(BY_NODE, pods::index_by_node);
    let (it, to) = (this.clone(), queue.clone());
    this.pods.on_event(move |event| {
        let pod = event.object();
        if matches!(event, Event::Deleted(_)) {
            return;
        }
        if plan::verdict(pod, it.nodes.store().get(pods::node_name(pod)).as_deref()).is_some() {
            to.add(pod.key());
        }
        if pods::is_finished(pod) && it.pods.store().len() > plan::TERMINATED_MAX {
            to.add(SURPLUS);
        }
    });
    let (it, to) = (this.clone(), queue.clone());
    this.nodes.on_event(move |event| {
        let node = event.object();
        if matches!(event, Event::Added(_)) {
            it.missing.lock().unwrap_or_else(PoisonError::into_inner).remove(node.name());
            return;
        }
        let present = if matches!(event, Event::Deleted(_)) { None } else { Some(&**node) };
        for pod in it.pods.store().by_index(BY_NODE, node.name()) {
            if plan::verdict(&pod, present).is_some() {
                to.add(pod.key());
            }
        }
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.nodes).after(&this.pods)
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        if key == SURPLUS {
            for pod in plan::surplus(&self.pods.store().list(), plan::TERMINATED_MAX) {
                self.delete(&pod, None).await?;
            }
            return Ok(Action::Wait);
        }
        let Some(pod) = self.pods.store().get(key) else { return Ok(Action::Wait) };
        let node = self.nodes.store().get(pods::node_name(&pod));
        let Some(why) = plan::verdict(&pod, node.as_deref()) else { return Ok(Action::Wait) };
        if why == Why::Orphaned {
            let name = pods::node_name(&pod);
            if let Some(left) = self.quarantine(name) {
                return Ok(Action::RequeueAfter(left));
            }
            // Asked for each node that is gone, not for each pod of a node that is there.
            match self.client.get_metadata(&Node::GVR, "", name).await {
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(Action::Wait),
            }
        }
        self.delete(&pod, Some(why)).await?;
        Ok(Action::Wait)
    }

    /// How long a missing node's pods are still spared.
    fn quarantine(&self, node: &str) -> Option<Duration> {
        let now = self.clock.now();
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *missing.entry(node.to_owned()).or_insert(now);
        let left = QUARANTINE - now.duration_since(since);
        Duration::try_from(left).ok().filter(|left| !left.is_zero())
    }

    async fn delete(&self, pod: &Pod, why: Option<Why>) -> Result<(), ControlError> {
        if let Some(message) = why.and_then(Why::message)
            && !pods::is_finished(pod)
        {
            let condition = json!({
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": message, "lastTransitionTime": Time(self.clock.now()),
            });
            let patch = Patch::Strategic(json!({
                "metadata": {"uid": pod.uid()}, "status": {"phase": "Failed", "conditions": [condition]}
            }));
            match self.client.patch(&Pod::GVR, pod.namespace(), pod.name(), "status", &patch).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::only_uid(pod.uid()) };
        match self.client.delete_typed::<Pod>(pod.namespace(), pod.name(), &params).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
