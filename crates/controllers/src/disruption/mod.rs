//! `disruption-controller`: keeps in every PodDisruptionBudget's status how many of its pods may be evicted.
//!
//! Flow: budget, pod and controller events -> key of the budget -> sizes of the pods' controllers
//! ([`scale`]) -> [`plan::status`] -> status. A pod that was to be evicted and stays loses the condition that
//! says so.

pub mod plan;
pub mod scale;

use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::core::v1::ReplicationController;
use api::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use api::prelude::*;
use client::{BoxFuture, Client, Patch};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, Recorder, WorkQueue,
};
use serde_json::json;
use stdx::Clock;

use self::scale::Scales;
use crate::{owners, pods};

const NAME: &str = "disruption-controller";
/// Budgets in work at once.
const WORKERS: usize = 2;
/// Marks the keys of pods in the queue; no namespace begins like that.
const POD: &str = "pod:";

/// The row of `disruption-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    budgets: Arc<Informer<PodDisruptionBudget>>,
    pods: Arc<Informer<Pod>>,
    scales: Arc<Scales>,
    queue: Arc<WorkQueue>,
}

fn build(context: &Context) -> Controller {
    let client = context.client_of(NAME);
    let this = Arc::new(Loop {
        recorder: context.recorder_of(NAME),
        clock: context.clock.clone(),
        budgets: context.informers.get::<PodDisruptionBudget>(),
        pods: context.informers.get::<Pod>(),
        scales: Arc::new(Scales::new(client.clone(), &context.informers)),
        queue: WorkQueue::new(),
        client,
    });
    this.budgets.store().add_index("namespace", reconcile::index_by_namespace::<PodDisruptionBudget>);
    this.pods.store().add_index("namespace", reconcile::index_by_namespace::<Pod>);
    let queue = this.queue.clone();
    this.budgets.on_event(move |event| queue.add(event.object().key()));
    let it = this.clone();
    this.pods.on_event(move |event| {
        it.touch(event.object());
        if let Event::Updated { old, .. } = event {
            it.touch(old);
        }
        if disrupted_since(event.object()).is_some() {
            it.queue.add(format!("{POD}{}", event.object().key()));
        }
    });
    follow::<Deployment>(&this, context, |d| d.spec.replicas);
    follow::<ReplicaSet>(&this, context, |s| s.spec.replicas);
    follow::<StatefulSet>(&this, context, |s| s.spec.replicas);
    follow::<ReplicationController>(&this, context, |c| c.spec.as_ref().and_then(|s| s.replicas));
    let scales = this.scales.clone();
    let mut controller =
        Controller::new(this.queue.clone(), this.clone(), WORKERS).after(&this.budgets).after(&this.pods);
    controller.synced.push(Box::pin(scales.synced()));
    controller
}

/// A controller of another size changes what is expected in its namespace.
fn follow<T: Typed>(this: &Arc<Loop>, context: &Context, size: fn(&T) -> Option<i32>) {
    let it = this.clone();
    context.informers.get::<T>().on_event(move |event| {
        let resized = match event {
            Event::Updated { old, new } => size(old) != size(new),
            _ => true,
        };
        if resized {
            let budgets = it.budgets.store().by_index("namespace", event.object().namespace());
            budgets.iter().for_each(|budget| it.queue.add(budget.key()));
        }
    });
}

/// Since when a pod is about to be disrupted, as its condition says.
fn disrupted_since(pod: &Pod) -> Option<jiff::Timestamp> {
    let condition = pods::condition(pod, "DisruptionTarget").filter(|c| c.status == "True")?;
    let at = condition.last_transition_time.as_ref().map(|t| t.0)?;
    (pod.metadata.deletion_timestamp.is_none() && !pods::is_finished(pod)).then_some(at)
}

impl Loop {
    /// Puts the budgets of a pod in line.
    fn touch(&self, pod: &Pod) {
        for budget in self.budgets.store().by_index("namespace", pod.namespace()) {
            if selects(&budget, pod) {
                self.queue.add(budget.key());
            }
        }
    }

    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        if let Some(pod) = key.strip_prefix(POD) {
            return self.sync_pod(pod).await;
        }
        let Some(budget) = self.budgets.store().get(key) else { return Ok(Action::Wait) };
        let mut selected = self.pods.store().by_index("namespace", budget.namespace());
        selected.retain(|pod| selects(&budget, pod) && !pods::is_finished(pod));
        if selected.is_empty() {
            self.recorder.normal(&*budget, "NoPods", "No matching pods found");
        }
        let now = self.clock.now();
        let scale = match plan::needs_scale(&budget) {
            false => Ok(scale::Total::default()),
            true => self.scales.total(&selected).await,
        };
        let (status, wait, outcome) = match scale {
            Ok(total) => {
                if !total.unmanaged.is_empty() {
                    self.recorder.warning(&*budget, "UnmanagedPods", unmanaged(&budget));
                }
                let (status, wait) = plan::status(&budget, &selected, total.pods, now);
                (status, wait, Ok(()))
            }
            Err(why) => {
                let text = format!("Failed to calculate the number of expected pods: {why}");
                self.recorder.warning(&*budget, "CalculateExpectedPodCountFailed", text);
                (plan::failed(&budget, &why, now), None, Err(why))
            }
        };
        if budget.status.as_ref() != Some(&status) {
            let updated = PodDisruptionBudget { status: Some(status), ..PodDisruptionBudget::clone(&budget) };
            match self.client.update_status_typed(&updated).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        if outcome.is_err() {
            // Kinds and scales come without an event of ours.
            return Ok(Action::RequeueAfter(RETRY));
        }
        Ok(wait.map_or(Action::Wait, Action::RequeueAfter))
    }

    /// Takes the condition off a pod that was to be disrupted and was not.
    async fn sync_pod(&self, key: &str) -> Result<Action, ControlError> {
        let Some(pod) = self.pods.store().get(key) else { return Ok(Action::Wait) };
        let Some(since) = disrupted_since(&pod) else { return Ok(Action::Wait) };
        let passed = self.clock.now().duration_since(since);
        if passed < plan::DELETION_TIMEOUT {
            let left = plan::DELETION_TIMEOUT - passed;
            return Ok(Action::RequeueAfter(Duration::try_from(left).unwrap_or_default()));
        }
        let condition = json!({"type": "DisruptionTarget", "status": "False",
            "lastTransitionTime": Time(self.clock.now())});
        let patch =
            Patch::Strategic(json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}}));
        match self.client.patch(&Pod::GVR, pod.namespace(), pod.name(), "status", &patch).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
            _ => Ok(Action::Wait),
        }
    }
}

/// How soon to count again when a controller's size could not be learnt.
const RETRY: Duration = Duration::from_secs(30);

/// Whether a budget covers a pod: an empty selector covers all, none covers nothing.
fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| owners::compile(s).is_ok_and(|s| owners::matches(&s, &pod.metadata)))
}

fn unmanaged(budget: &PodDisruptionBudget) -> String {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.clone());
    let shown = selector.map(|s| json!(s).to_string()).unwrap_or_default();
    format!(
        "Pods selected by this PodDisruptionBudget (selector: {shown}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
    )
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
