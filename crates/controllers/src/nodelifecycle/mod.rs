//! `node-lifecycle-controller`: notices nodes that have fallen silent, by their Leases, and marks and taints
//! them so that the scheduler avoids them and `taint-eviction-controller` empties them.
//!
//! Flow: Lease and Node events note signs of life; one timer per node wakes when it has been silent for too
//! long.

pub mod plan;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::prelude::*;
use client::{BoxFuture, Client, Patch};
use jiff::Timestamp;
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, EventType, Informer, Reconcile, Recorder,
    Scope, WorkQueue,
};
use serde_json::json;
use stdx::Clock;

use crate::pods;

/// Nodes in work at once (upstream's update workers are 8).
const WORKERS: usize = 8;
const NAME: &str = "node-controller";
const LEASES: &str = "kube-node-lease";
/// Index of pods by node.
pub(crate) const BY_NODE: &str = "node";

/// The row of `node-lifecycle-controller`; its ServiceAccount is `node-controller`, as upstream's.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    /// When each node was last heard of, by our clock.
    heard: Mutex<HashMap<String, Timestamp>>,
    queue: Arc<WorkQueue>,
}

fn build(context: &Context) -> Controller {
    let leases = Scope { namespace: LEASES.into(), ..Default::default() };
    let leases = context.informers.get_scoped::<Lease>(leases);
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.recorder_of(NAME),
        clock: context.clock.clone(),
        nodes: context.informers.get::<Node>(),
        pods: context.informers.get::<Pod>(),
        heard: Mutex::default(),
        queue: WorkQueue::new(),
    });
    this.pods.store().add_index(BY_NODE, pods::index_by_node);
    let it = this.clone();
    leases.on_event(move |event| {
        let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|s| s.renew_time.clone());
        match event {
            Event::Updated { old, new } if renewed(old) == renewed(new) => {}
            Event::Deleted(_) => {}
            _ => it.hear(event.object().name()),
        }
    });
    let it = this.clone();
    this.nodes.on_event(move |event| it.on_node(event));
    Controller::new(this.queue.clone(), this.clone(), WORKERS)
        .after(&this.nodes)
        .after(&leases)
        .after(&this.pods)
}

impl Loop {
    fn hear(&self, node: &str) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.insert(node.to_owned(), self.clock.now());
    }

    fn on_node(&self, event: &Event<'_, Node>) {
        let node = event.object();
        let heartbeat =
            |node: &Node| plan::condition(node, "Ready").and_then(|c| c.last_heartbeat_time.clone());
        match event {
            Event::Added(_) => self.hear(node.name()),
            Event::Updated { old, new } if heartbeat(old) != heartbeat(new) => self.hear(node.name()),
            Event::Updated { .. } => {}
            Event::Deleted(_) => {
                self.heard.lock().unwrap_or_else(PoisonError::into_inner).remove(node.name());
            }
        }
        self.queue.add(node.key());
        // Whether pods are evicted anywhere depends on whether any node is well.
        let changed = match event {
            Event::Updated { old, new } => plan::ready_status(old) != plan::ready_status(new),
            _ => true,
        };
        if changed {
            let in_trouble = |n: &Arc<Node>| plan::ready_status(n) != "True";
            self.nodes.store().list().iter().filter(|n| in_trouble(n)).for_each(|n| self.queue.add(n.key()));
        }
    }

    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(mut node) = self.nodes.store().get(key) else { return Ok(Action::Wait) };
        let now = self.clock.now();
        let heard =
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied().unwrap_or(now);
        let deadline = plan::deadline(&node, heard);
        let silent = deadline <= now;
        if silent && let Some(conditions) = plan::unknown_conditions(&node, now) {
            let was_ready = plan::ready_status(&node) == "True";
            let patch = Patch::Strategic(json!({
                "metadata": {"resourceVersion": node.resource_version()}, "status": {"conditions": conditions}
            }));
            node = Arc::new(self.client.patch_typed("", key, "status", &patch).await?);
            if was_ready {
                self.announce(&node);
            }
        }
        self.taint(&node, now).await?;
        if plan::condition(&node, "Ready").is_some_and(|c| c.status != "True") {
            self.mark_pods_not_ready(key, now).await?;
        }
        if silent { Ok(Action::Wait) } else { Ok(Action::RequeueAfter(plan::until(deadline, now))) }
    }

    /// Records that a node is no longer ready. Events about nodes carry the name as uid, as upstream's do.
    fn announce(&self, node: &Node) {
        let reference = ObjectReference {
            kind: Some("Node".into()),
            name: node.metadata.name.clone(),
            uid: node.metadata.uid.clone(),
            api_version: Some("v1".into()),
            ..Default::default()
        };
        let message = format!("Node {} status is now: NodeNotReady", node.name());
        self.recorder.record(reference, EventType::Normal, "NodeNotReady", message);
    }

    async fn taint(&self, node: &Node, now: Timestamp) -> Result<(), ControlError> {
        let any_well = self.nodes.store().list().iter().any(|n| plan::ready_status(n) == "True");
        let Some(taints) = plan::taints(node, any_well, now) else { return Ok(()) };
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": node.resource_version()}, "spec": {"taints": taints}
        }));
        match self.client.patch(&Node::GVR, "", node.name(), "", &patch).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Takes the pods of a node that is not ready out of their Services.
    async fn mark_pods_not_ready(&self, node: &str, now: Timestamp) -> Result<(), ControlError> {
        for pod in self.pods.store().by_index(BY_NODE, node) {
            let Some(ready) = pods::condition(&pod, "Ready").filter(|c| c.status == "True") else { continue };
            let mut ready = ready.clone();
            ready.status = "False".into();
            ready.last_transition_time = Some(Time(now));
            let patch = Patch::Strategic(json!({
                "metadata": {"uid": pod.uid()}, "status": {"conditions": [ready]}
            }));
            match self.client.patch(&Pod::GVR, pod.namespace(), pod.name(), "status", &patch).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => self.recorder.warning(&*pod, "NodeNotReady", "Node is not ready"),
            }
        }
        Ok(())
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
