//! `taint-eviction-controller`: deletes pods from nodes with `NoExecute` taints they do not tolerate, or no
//! longer.
//!
//! Flow: pod and node events -> key of the pod -> [`plan::leave_at`] -> a timer or a deletion.

pub mod plan;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams, Patch};
use jiff::Timestamp;
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Key, Reconcile, Recorder,
    WorkQueue,
};
use serde_json::json;
use stdx::Clock;

use crate::nodelifecycle::plan::until;
use crate::pods;

pub(crate) use crate::nodelifecycle::BY_NODE;
const WORKERS: usize = 8;
const NAME: &str = "taint-eviction-controller";
/// The account that acts: upstream kept the one from before the loop was on its own, and so its rights.
const ACCOUNT: &str = "node-controller";

/// The row of `taint-eviction-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    /// Pods that have to leave, since when that is known. Tells a cancellation from nothing to do.
    leaving: Mutex<HashMap<Key, Timestamp>>,
    queue: Arc<WorkQueue>,
}

fn build(context: &Context) -> Controller {
    let this = Arc::new(Loop {
        client: context.client_of(ACCOUNT),
        recorder: context.events.recorder(context.client_of(ACCOUNT), NAME, ""),
        clock: context.clock.clone(),
        nodes: context.informers.get::<Node>(),
        pods: context.informers.get::<Pod>(),
        leaving: Mutex::default(),
        queue: WorkQueue::new(),
    });
    this.pods.store().add_index(BY_NODE, pods::index_by_node);
    let it = this.clone();
    this.pods.on_event(move |event| {
        let pod = event.object();
        let same = |old: &Pod| {
            let tolerations = |p: &Pod| p.spec.as_ref().and_then(|s| s.tolerations.clone());
            pods::node_name(old) == pods::node_name(pod) && tolerations(old) == tolerations(pod)
        };
        let relevant = match event {
            Event::Updated { old, .. } => !same(old),
            Event::Added(_) => !pods::node_name(pod).is_empty(),
            Event::Deleted(_) => true,
        };
        if relevant {
            it.queue.add(pod.key());
        }
    });
    let it = this.clone();
    this.nodes.on_event(move |event| {
        let node = event.object();
        let taints = |node: &Node| node.spec.as_ref().and_then(|s| s.taints.clone());
        let relevant = match event {
            Event::Updated { old, new } => taints(old) != taints(new),
            _ => taints(node).is_some(),
        };
        if relevant {
            it.pods.store().by_index(BY_NODE, node.name()).iter().for_each(|pod| it.queue.add(pod.key()));
        }
    });
    Controller::new(this.queue.clone(), this.clone(), WORKERS).after(&this.nodes).after(&this.pods)
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let now = self.clock.now();
        let at = self.pods.store().get(key).and_then(|pod| Some((self.leave_at(key, &pod, now)?, pod)));
        let Some((at, pod)) = at else {
            self.settle(key);
            return Ok(Action::Wait);
        };
        if at > now {
            return Ok(Action::RequeueAfter(until(at, now)));
        }
        let message = format!("Marking for deletion Pod {key}");
        self.recorder.normal(&*pod, "TaintManagerEviction", message);
        self.evict(&pod, now).await?;
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        Ok(Action::Wait)
    }

    /// When a pod has to leave its node, noting that it has to.
    fn leave_at(&self, key: &str, pod: &Pod, now: Timestamp) -> Option<Timestamp> {
        let node = self.nodes.store().get(pods::node_name(pod))?;
        let taints = node.spec.as_ref()?.taints.as_ref()?;
        if pod.is_terminating() || pods::is_finished(pod) {
            return None;
        }
        let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        let since = leaving.get(key).copied().unwrap_or(now);
        let at = plan::leave_at(tolerations, taints, since)?;
        leaving.insert(key.into(), since);
        Some(at)
    }

    /// The pod need not leave, or is gone.
    fn settle(&self, key: &str) {
        let had_to = self.leaving.lock().unwrap_or_else(PoisonError::into_inner).remove(key).is_some();
        let Some(pod) = self.pods.store().get(key).filter(|pod| had_to && !pod.is_terminating()) else {
            return;
        };
        let message = format!("Cancelling deletion of Pod {key}");
        self.recorder.normal(&*pod, "TaintManagerEviction", message);
    }

    async fn evict(&self, pod: &Pod, now: Timestamp) -> Result<(), ControlError> {
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": Time(now),
        });
        let patch = Patch::Strategic(json!({
            "metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}
        }));
        match self.client.patch(&Pod::GVR, pod.namespace(), pod.name(), "status", &patch).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
        let params = DeleteParams::only_uid(pod.uid());
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
