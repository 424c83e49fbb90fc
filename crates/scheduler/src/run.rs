//! The shell: informers feed the state, decisions go out through the API.
//!
//! One task runs cycles; binding and reporting happen in tasks of their own, a bounded number at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use api::prelude::*;
use client::{Client, DeleteParams, Patch};
use meta::UserInfo;
use parking_lot::Mutex;
use reconcile::{Context, Event, EventType, Informer, Recorder, object_reference};
use serde_json::{Value, json};
use stdx::{Clock, Random};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::plugins::dynamic_resources;
use crate::pod_info::PodInfo;
use crate::preemption::{Budget, Room};
use crate::queue::Queued;
use crate::run_devices::Written;
use crate::state::{Decision, State};

/// Name by which pods choose this scheduler (`spec.schedulerName`).
pub const SCHEDULER_NAME: &str = "default-scheduler";
/// Requests in flight at once: enough to fill the store's group commits, and well below the number of
/// writes the server takes at once from everybody.
const IN_FLIGHT_MAX: usize = 64;
/// Cycles run for this long before events and bindings get their turn.
const TURN: Duration = Duration::from_millis(2);

pub(crate) struct Shell {
    pub(crate) client: Client,
    recorder: Recorder,
    pub(crate) clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    pub(crate) state: Mutex<State>,
    pub(crate) wake: Notify,
    /// Something has happened to claims, or a pod that waits for them is gone.
    pub(crate) bound: Notify,
    pub(crate) claims: Arc<Informer<PersistentVolumeClaim>>,
    pub(crate) device_claims: Arc<Informer<ResourceClaim>>,
    pods: Arc<Informer<Pod>>,
    budgets: Arc<Informer<PodDisruptionBudget>>,
    in_flight: Arc<Semaphore>,
}

/// Schedules pods until the context is cancelled.
pub async fn run(context: &Context) {
    let user = UserInfo::authenticated("system:kube-scheduler", &[]);
    let client = context.client.as_user(user).with_user_agent("ferry/kube-scheduler");
    let shell = Arc::new(Shell {
        recorder: context.events.recorder(client.clone(), SCHEDULER_NAME, ""),
        client,
        clock: context.clock.clone(),
        random: context.random.clone(),
        state: Mutex::default(),
        wake: Notify::new(),
        bound: Notify::new(),
        claims: context.informers.get::<PersistentVolumeClaim>(),
        device_claims: context.informers.get::<ResourceClaim>(),
        pods: context.informers.get::<Pod>(),
        budgets: context.informers.get::<PodDisruptionBudget>(),
        in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
    });
    let work = async {
        shell.follow(context).await;
        shell.cycles().await;
    };
    tokio::select! {
        () = context.cancel.cancelled() => {}
        () = work => {}
    }
}

impl Shell {
    /// Connects the informers and waits for their first lists.
    async fn follow(self: &Arc<Self>, context: &Context) {
        let nodes = context.informers.get::<Node>();
        let namespaces = context.informers.get::<Namespace>();
        let it = self.clone();
        nodes.on_event(move |event| {
            let now = it.clock.instant();
            let mut state = it.state.lock();
            match event {
                Event::Added(node) => state.node_changed(None, node, now),
                Event::Updated { old, new } => state.node_changed(Some(old), new, now),
                Event::Deleted(node) => state.node_gone(node.name(), now),
            }
            it.wake.notify_one();
        });
        let it = self.clone();
        namespaces.on_event(move |event| {
            it.state.lock().namespace_changed(event.object(), it.clock.instant());
            it.wake.notify_one();
        });
        self.follow_storage(context).await;
        self.follow_devices(context).await;
        // Nodes first: otherwise the first pods would find none and wait.
        nodes.synced().await;
        let it = self.clone();
        self.pods.on_event(move |event| it.on_pod(event));
        self.pods.synced().await;
        self.budgets.synced().await;
    }

    fn on_pod(self: &Arc<Self>, event: &Event<'_, Pod>) {
        let now = self.clock.instant();
        let gated = {
            let mut state = self.state.lock();
            match event {
                Event::Added(pod) => state.pod_changed(None, pod, SCHEDULER_NAME, now),
                Event::Updated { old, new } => state.pod_changed(Some(old), new, SCHEDULER_NAME, now),
                Event::Deleted(pod) => {
                    state.pod_gone(pod, now);
                    self.bound.notify_waiters();
                    None
                }
            }
        };
        self.wake.notify_one();
        let known =
            |pod: &Pod| condition(pod).is_some_and(|c| c.reason.as_deref() == Some("SchedulingGated"));
        if gated.is_some() && !known(event.object()) {
            let (it, pod) = (self.clone(), event.object().clone());
            tokio::spawn(async move {
                let message = "Scheduling is blocked due to non-empty scheduling gates";
                it.set_condition(&pod, "SchedulingGated", message, None).await;
            });
        }
    }

    /// Runs cycles while there are pods to try, and sleeps otherwise.
    async fn cycles(self: &Arc<Self>) {
        loop {
            let notified = self.wake.notified();
            let (decisions, next) = self.turn();
            if decisions.is_empty() {
                match next {
                    Some(due) => {
                        let pause = due.saturating_duration_since(self.clock.instant());
                        tokio::select! { () = notified => {}, () = tokio::time::sleep(pause) => {} }
                    }
                    None => notified.await,
                }
                continue;
            }
            for decision in decisions {
                // Waiting here holds further cycles back when the API is slow.
                let Ok(permit) = self.in_flight.clone().acquire_owned().await else { return };
                tokio::spawn(self.clone().carry_out(decision, permit));
            }
            tokio::task::yield_now().await;
        }
    }

    /// Runs cycles for one turn. Returns what came of them, and when a waiting pod is due.
    fn turn(&self) -> (Vec<Decision>, Option<Instant>) {
        let budgets: Vec<Budget> = if self.budgets.store().is_empty() {
            Vec::new()
        } else {
            self.budgets.store().list().iter().filter_map(|pdb| Budget::new(pdb)).collect()
        };
        let started = self.clock.instant();
        let mut decisions = Vec::new();
        let mut state = self.state.lock();
        while decisions.len() < IN_FLIGHT_MAX {
            let now = self.clock.instant();
            match state.cycle(&budgets, now, &*self.random) {
                Some(decision) if now.saturating_duration_since(started) < TURN => decisions.push(decision),
                Some(decision) => {
                    decisions.push(decision);
                    break;
                }
                None => break,
            }
        }
        (decisions, state.queue.next_due())
    }

    async fn carry_out(self: Arc<Self>, decision: Decision, permit: OwnedSemaphorePermit) {
        match decision {
            Decision::Bind { pod, node, volumes, devices } if volumes.is_empty() && devices.is_empty() => {
                self.bind(pod, &node, Vec::new()).await;
            }
            Decision::Bind { pod, node, volumes, devices } => {
                // Making volumes takes long, and others are not to wait for that.
                drop(permit);
                if let Err(why) = self.bind_volumes(&pod.info, &node, &volumes).await {
                    return self.refuse(pod, "VolumeBinding", &why);
                }
                match self.bind_claims(&pod.info, &devices).await {
                    Ok(written) => self.bind(pod, &node, written).await,
                    Err(why) => self.refuse(pod, dynamic_resources::NAME, &why),
                }
            }
            Decision::Report { pod, message, room, cleanup, failed } => {
                let reason = if failed { "SchedulerError" } else { "Unschedulable" };
                self.report(&pod, reason, &message, room).await;
                if let Some(cleanup) = cleanup {
                    self.clean_up(&cleanup).await;
                }
            }
        }
    }

    /// Something that has to be done before binding could not be.
    fn refuse(&self, pod: Queued, plugin: &str, why: &str) {
        let message = format!("running PreBind plugin {plugin:?}: {why}");
        self.recorder.warning(&*pod.info.pod, "FailedScheduling", message);
        self.give_back(pod);
    }

    async fn bind(&self, queued: Queued, node: &str, written: Written) {
        let info = &queued.info;
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"namespace": info.pod.namespace(), "name": info.pod.name(), "uid": &*info.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let path = format!("/api/v1/namespaces/{}/pods/{}/binding", info.pod.namespace(), info.pod.name());
        let outcome = self.client.write_bytes(client::Method::POST, &path, binding.to_string().into()).await;
        let now = self.clock.instant();
        match outcome {
            Ok(_) => {
                self.state.lock().bound(info, now);
                let message = format!("Successfully assigned {} to {node}", info.key);
                self.recorder.normal(&*info.pod, "Scheduled", message);
            }
            Err(error) => {
                tracing::debug!(pod = &*info.key, node, %error, "binding failed");
                self.unbind_claims(info, written).await;
                self.give_back(queued);
            }
        }
        self.wake.notify_one();
    }

    /// Whether a pod is there and has no node.
    pub(crate) fn is_wanted(&self, info: &PodInfo) -> bool {
        self.pods.store().get(&info.key).is_some_and(|pod| {
            let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
            pod.uid() == &*info.uid && !bound && !pod.is_terminating()
        })
    }

    /// A pod does not get the node it was to have.
    fn give_back(&self, queued: Queued) {
        let wanted = self.is_wanted(&queued.info);
        let mut state = self.state.lock();
        if wanted {
            state.bind_failed(queued, self.clock.instant());
        } else {
            state.cache.forget(&queued.info.uid);
            state.cache.storage.settle(&queued.info.uid);
            state.devices_settled(&queued.info.uid, self.clock.instant());
        }
        drop(state);
        self.wake.notify_one();
    }

    async fn report(&self, info: &PodInfo, reason: &str, message: &str, room: Option<Room>) {
        self.recorder.warning(&*info.pod, "FailedScheduling", message);
        let node = room.as_ref().map(|room| room.node.as_str());
        let current = self.pods.store().get(&info.key).filter(|pod| pod.uid() == &*info.uid);
        let known = |pod: &Pod| condition(pod).is_some_and(|c| c.message.as_deref() == Some(message));
        if let Some(pod) = current.filter(|pod| node.is_some() || !known(pod)) {
            self.set_condition(&pod, reason, message, node).await;
        }
        if let Some(room) = room {
            for victim in &room.victims {
                self.preempt(info, victim, &room.node).await;
            }
        }
    }

    /// Writes that a pod is not scheduled, and where room is being made for it.
    async fn set_condition(&self, pod: &Pod, reason: &str, message: &str, node: Option<&str>) {
        let since =
            condition(pod).filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "lastProbeTime": Value::Null,
            "lastTransitionTime": since.unwrap_or(Time(self.clock.now())),
            "observedGeneration": pod.metadata.generation,
        });
        let mut status = json!({"conditions": [condition]});
        if let Some(node) = node {
            status["nominatedNodeName"] = node.into();
        }
        self.patch_status(pod, status).await;
    }

    async fn patch_status(&self, pod: &Pod, status: Value) {
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid()}, "status": status}));
        let outcome = self.client.patch(&Pod::GVR, pod.namespace(), pod.name(), "status", &patch).await;
        if let Err(error) = outcome
            && !error.is_not_found()
        {
            tracing::debug!(pod = pod.key(), %error, "the status of a pod could not be written");
        }
    }

    /// Makes a pod leave its node for another.
    async fn preempt(&self, preemptor: &PodInfo, victim: &PodInfo, node: &str) {
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": format!("{SCHEDULER_NAME}: preempting to accommodate a higher priority pod"),
            "lastTransitionTime": Time(self.clock.now()),
        });
        self.patch_status(&victim.pod, json!({"conditions": [condition]})).await;
        let params = DeleteParams::only_uid(&victim.uid);
        let pod = &victim.pod;
        match self.client.delete_typed::<Pod>(pod.namespace(), pod.name(), &params).await {
            Ok(()) => {
                let message = format!("Preempted by pod {} on node {node}", preemptor.uid);
                self.recorder.record(object_reference(&**pod), EventType::Normal, "Preempted", message);
            }
            Err(error) => tracing::debug!(pod = &*victim.key, %error, "a victim could not be deleted"),
        }
    }
}

/// The pod's PodScheduled condition.
fn condition(pod: &Pod) -> Option<&api::k8s_openapi::api::core::v1::PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "PodScheduled")
}
