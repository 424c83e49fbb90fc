//! `deployment-controller`: rolls the pods of a Deployment from one template to the next by sizing
//! ReplicaSets, one per template.
//!
//! Flow: Deployment, ReplicaSet and pod events -> key -> claim ReplicaSets -> [`plan::plan`] -> create,
//! resize, delete -> status. Each reconcile does one round; what it changes brings the next.

pub mod plan;
mod revision;
pub mod sizes;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams, Patch};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, Recorder, WorkQueue,
};
use serde_json::json;
use stdx::Clock;

pub(crate) use self::revision::template_hash;

use self::plan::{Change, Plan};
use self::status::Milestone;
use crate::{owners, pods};

/// Deployments in work at once.
const WORKERS: usize = 8;
const NAME: &str = "deployment-controller";

/// The row of `deployment-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    deployments: Arc<Informer<Deployment>>,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue>,
}

fn build(context: &Context) -> Controller {
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.recorder_of(NAME),
        clock: context.clock.clone(),
        deployments: context.informers.get::<Deployment>(),
        sets: context.informers.get::<ReplicaSet>(),
        pods: context.informers.get::<Pod>(),
        queue: WorkQueue::new(),
    });
    owners::add_indexes(&this.sets);
    owners::add_indexes(&this.pods);
    this.deployments.store().add_index("namespace", reconcile::index_by_namespace::<Deployment>);
    let queue = this.queue.clone();
    this.deployments.on_event(move |event| queue.add(event.object().key()));
    let it = this.clone();
    this.sets.on_event(move |event| it.on_set(event));
    let it = this.clone();
    this.pods.on_event(move |event| it.on_pod(event));
    Controller::new(this.queue.clone(), this.clone(), WORKERS)
        .after(&this.deployments)
        .after(&this.sets)
        .after(&this.pods)
}

/// The key of the Deployment that controls a ReplicaSet.
fn controlling_key(set: &ReplicaSet) -> Option<String> {
    let owner = owners::controller_of(&set.metadata)?;
    (owner.kind == "Deployment").then(|| format!("{}/{}", set.namespace(), owner.name))
}

impl Loop {
    fn on_set(&self, event: &Event<'_, ReplicaSet>) {
        let set = event.object();
        if let Event::Updated { old, .. } = event
            && let Some(key) = controlling_key(old)
            && controlling_key(set).as_ref() != Some(&key)
        {
            self.queue.add(key);
        }
        if let Some(key) = controlling_key(set) {
            return self.queue.add(key);
        }
        if owners::controller_of(&set.metadata).is_some() || set.is_terminating() {
            return;
        }
        for deployment in self.deployments.store().by_index("namespace", set.namespace()) {
            let selector = Some(owners::compile(&deployment.spec.selector));
            if let Some(Ok(selector)) = selector
                && owners::matches(&selector, &set.metadata)
            {
                self.queue.add(deployment.key());
            }
        }
    }

    /// The last pod of an old revision is what Recreate waits for.
    fn on_pod(&self, event: &Event<'_, Pod>) {
        let ended = match event {
            Event::Added(_) => false,
            Event::Updated { old, new } => !pods::is_finished(old) && pods::is_finished(new),
            Event::Deleted(_) => true,
        };
        let pod = event.object();
        let Some(owner) = owners::controller_of(&pod.metadata).filter(|o| ended && o.kind == "ReplicaSet")
        else {
            return;
        };
        let set = self.sets.store().get_in(pod.namespace(), &owner.name);
        if let Some(key) = set.as_deref().and_then(controlling_key)
            && self.deployments.store().get(&key).is_some_and(|d| sizes::is_recreate(&d))
        {
            self.queue.add(key);
        }
    }

    fn any_pod_running(&self, sets: &[Arc<ReplicaSet>]) -> bool {
        sets.iter()
            .flat_map(|set| self.pods.store().by_index(owners::CONTROLLER, set.uid()))
            .any(|pod| !pods::is_finished(&pod))
    }

    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(deployment) = self.deployments.store().get(key) else { return Ok(Action::Wait) };
        let selector = owners::compile(&deployment.spec.selector)?;
        if selector.is_everything() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*deployment, "SelectingAll", message);
            return Ok(Action::Wait);
        }
        let meta = &deployment.metadata;
        let sets = owners::claim(&self.client, &self.sets, &Deployment::GVK, meta, &selector, None).await?;
        let mut plan = plan::plan(&deployment, &sets, |old| self.any_pod_running(old));
        let revision = plan.revision.take();
        let outcome = self.execute(&deployment, plan).await;
        let milestone = match &outcome {
            Ok(milestone) => milestone.clone(),
            Err(error) if error.api().is_some_and(client::Error::is_conflict) => Milestone::None,
            Err(error) => Milestone::CreateFailed(error.to_string()),
        };
        let deployment = match revision.filter(|_| outcome.is_ok()) {
            Some(revision) => Arc::new(self.note_revision(&deployment, revision).await?),
            None => deployment,
        };
        let (status, next) = plan::status_after(&deployment, &sets, &milestone, self.clock.now());
        if let Some(status) = status {
            let patch = Deployment { status: Some(status), ..Deployment::clone(&deployment) };
            match self.client.update_status_typed(&patch).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        outcome?;
        Ok(next.map_or(Action::Wait, Action::RequeueAfter))
    }

    /// Carries out one round.
    async fn execute(&self, deployment: &Deployment, plan: Plan) -> Result<Milestone, ControlError> {
        let mut milestone = Milestone::None;
        if let Some(set) = plan.create {
            milestone = self.create(deployment, &set).await?;
        }
        for change in &plan.changes {
            self.change(deployment, change).await?;
        }
        for name in &plan.delete {
            match self
                .client
                .delete_typed::<ReplicaSet>(deployment.namespace(), name, &DeleteParams::default())
                .await
            {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(milestone)
    }

    /// Notes on the Deployment which revision it is at.
    async fn note_revision(&self, deployment: &Deployment, revision: String) -> client::Result<Deployment> {
        let mut noted = deployment.clone();
        noted.metadata.annotations.get_or_insert_default().insert(revision::REVISION.into(), revision);
        self.client.update_typed(&noted).await
    }

    async fn create(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<Milestone, ControlError> {
        let error = match self.client.create_typed(set).await {
            Ok(_) => {
                let size = sizes::size(set);
                if size > 0 {
                    let message = format!("Scaled up replica set {} from 0 to {size}", set.name());
                    self.recorder.normal(deployment, "ScalingReplicaSet", message);
                }
                return Ok(Milestone::Created(set.name().to_owned()));
            }
            Err(error) => error,
        };
        if error.is_namespace_terminating() {
            return Ok(Milestone::None);
        }
        if !error.is_already_exists() {
            let message = format!("Failed to create new replica set \"{}\": {error}", set.name());
            self.recorder.warning(deployment, "ReplicaSetCreateError", message);
            return Err(error.into());
        }
        let present: ReplicaSet = self.client.get_typed(set.namespace(), set.name()).await?;
        if owners::is_controlled_by(&present.metadata, deployment.uid())
            && revision::has_template_of(&present, deployment)
        {
            // Ours, only the cache did not have it yet; it will wake us.
            return Ok(Milestone::Found(present.name().to_owned()));
        }
        let mut collided = deployment.clone();
        let count = collided.status.get_or_insert_default().collision_count.get_or_insert(0);
        *count = count.saturating_add(1);
        self.client.update_status_typed(&collided).await?;
        // The change of status brings the next round, which tries another name.
        Ok(Milestone::None)
    }

    async fn change(&self, deployment: &Deployment, change: &Change) -> Result<(), ControlError> {
        let set = &change.set;
        let mut patch = json!({"metadata": {"resourceVersion": set.resource_version()}});
        if !change.annotations.is_empty() {
            patch["metadata"]["annotations"] = json!(change.annotations);
        }
        if let Some(replicas) = change.replicas {
            patch["spec"]["replicas"] = replicas.into();
        }
        if let Some(seconds) = change.min_ready_seconds {
            patch["spec"]["minReadySeconds"] = seconds.into();
        }
        self.client.patch(&ReplicaSet::GVR, set.namespace(), set.name(), "", &Patch::Merge(patch)).await?;
        if let Some(message) = change.event() {
            self.recorder.normal(deployment, "ScalingReplicaSet", message);
        }
        Ok(())
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
