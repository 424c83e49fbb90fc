//! `statefulset-controller`: pods with a name, an order and storage of their own, made one after the other
//! and updated from the last to the first.
//!
//! Flow: set and pod events -> key -> claim revisions and pods -> [`plan::plan`] -> claims, pods -> status ->
//! old revisions go.

pub mod plan;
pub mod pod;
pub mod retention;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::k8s_openapi::api::apps::v1::ControllerRevision;
use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams};
use futures_util::future::join_all;
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, Recorder, WorkQueue,
};
use stdx::Clock;

use self::plan::{Plan, Revisions, Step};
use crate::follow::Follow;
use crate::replicaset::plan::slow_start_batches;
use crate::{history, owners};

const NAME: &str = "statefulset-controller";
/// Sets in work at once (upstream's default is 5).
const WORKERS: usize = 5;
/// Label that carries the hash of a revision's template.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

/// The row of `statefulset-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    sets: Arc<Informer<StatefulSet>>,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    revisions: Arc<Informer<ControllerRevision>>,
    /// Keeps the handlers' state alive; names are deterministic, so nothing is expected.
    _follow: Arc<Follow<StatefulSet>>,
}

fn build(context: &Context) -> Controller {
    let (queue, sets, pods) =
        (WorkQueue::new(), context.informers.get::<StatefulSet>(), context.informers.get::<Pod>());
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.recorder_of(NAME),
        clock: context.clock.clone(),
        claims: context.informers.get::<PersistentVolumeClaim>(),
        revisions: context.informers.get::<ControllerRevision>(),
        _follow: Follow::start(&sets, &pods, &queue, |set| owners::compile(&set.spec.selector)),
        sets,
        pods,
    });
    owners::add_indexes(&this.revisions);
    let (it, to) = (this.clone(), queue.clone());
    // A claim that is gone may be what a pod waits for.
    this.claims.on_event(move |event| {
        if let reconcile::Event::Deleted(claim) = event {
            let claims_of = |set: &StatefulSet| {
                set.spec.volume_claim_templates.iter().flatten().any(|t| {
                    let prefix = format!("{}-{}-", t.name(), set.name());
                    claim.name().starts_with(&prefix)
                })
            };
            let sets = it.sets.store().by_index("namespace", claim.namespace());
            sets.iter().filter(|set| claims_of(set)).for_each(|set| to.add(set.key()));
        }
    });
    Controller::new(queue, this.clone(), WORKERS)
        .after(&this.sets)
        .after(&this.pods)
        .after(&this.claims)
        .after(&this.revisions)
}

/// The two templates of a set under update.
struct Templates {
    current: (Arc<ControllerRevision>, PodTemplateSpec),
    update: (Arc<ControllerRevision>, PodTemplateSpec),
    collisions: Option<i32>,
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(set) = self.sets.store().get(key) else { return Ok(Action::Wait) };
        let selector = owners::compile(&set.spec.selector)?;
        let (gvk, meta) = (StatefulSet::GVK, &set.metadata);
        let known = history::claim(&self.client, &self.revisions, &gvk, meta, &selector).await?;
        let mut owned = owners::claim(&self.client, &self.pods, &gvk, meta, &selector, None).await?;
        // Whoever has our labels but not one of our names is not a member.
        owned.retain(|pod| pod::ordinal(&set, pod).is_some());
        let templates = self.templates(&set, &known).await?;
        let revisions = Revisions { current: templates.current.0.name(), update: templates.update.0.name() };
        let find = |name: &str| self.claims.store().get_in(set.namespace(), name);
        let Plan { steps, mut status, wait } = plan::plan(&set, &owned, revisions, &find, self.clock.now());
        let outcome = self.execute(&set, &templates, steps).await;
        status.collision_count = templates.collisions;
        if set.status.as_ref() != Some(&status) {
            let updated = StatefulSet { status: Some(status), ..StatefulSet::clone(&set) };
            match self.client.update_status_typed(&updated).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        outcome?;
        if !set.is_terminating() {
            let in_use = |r: &ControllerRevision| {
                [revisions.current, revisions.update].contains(&r.name())
                    || owned.iter().any(|pod| pod::revision(pod) == r.name())
            };
            history::expire(&self.client, &known, in_use, set.spec.revision_history_limit).await?;
        }
        Ok(wait.map_or(Action::Wait, Action::RequeueAfter))
    }

    async fn templates(
        &self,
        set: &StatefulSet,
        known: &[Arc<ControllerRevision>],
    ) -> Result<Templates, ControlError> {
        let status = set.status.as_ref();
        let owner = history::Owner {
            gvk: StatefulSet::GVK,
            meta: &set.metadata,
            template: &set.spec.template,
            collisions: status.and_then(|s| s.collision_count),
            hash_label: HASH_LABEL,
        };
        let latest = history::latest(&self.client, known, &owner).await?;
        let wanted = status.and_then(|s| s.current_revision.as_deref()).unwrap_or_default();
        let current = known.iter().find(|r| r.name() == wanted).unwrap_or(&latest.revision).clone();
        // A revision nobody can read counts as the present one.
        let template = history::template_of(&current).unwrap_or_else(|| set.spec.template.clone());
        Ok(Templates {
            current: (current, template),
            update: (latest.revision, set.spec.template.clone()),
            collisions: latest.collisions,
        })
    }

    /// Does the steps, first one, then twice as many each time while all goes well.
    async fn execute(
        &self,
        set: &StatefulSet,
        templates: &Templates,
        steps: Vec<Step>,
    ) -> Result<(), ControlError> {
        let mut rest = steps.as_slice();
        for batch in slow_start_batches(steps.len()) {
            let (now, later) = rest.split_at(batch.min(rest.len()));
            rest = later;
            let outcomes = join_all(now.iter().map(|step| self.step(set, templates, step))).await;
            outcomes.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(())
    }

    async fn step(&self, set: &StatefulSet, templates: &Templates, step: &Step) -> Result<(), ControlError> {
        match step {
            Step::Create { ordinal, updated } => {
                let (revision, template) = if *updated { &templates.update } else { &templates.current };
                self.create(set, template, revision.name(), *ordinal).await
            }
            Step::Claims(ordinal) => self.create_claims(set, *ordinal).await,
            Step::Delete(pod) => self.delete(set, pod).await,
            Step::Replace(pod) => {
                let text = |state| {
                    format!(
                        "StatefulSet {}/{} is recreating {state} Pod {}",
                        set.namespace(),
                        set.name(),
                        pod.name()
                    )
                };
                if crate::pods::phase(pod) == "Failed" {
                    self.recorder.warning(set, "RecreatingFailedPod", text("failed"));
                } else {
                    self.recorder.normal(set, "RecreatingTerminatedPod", text("terminated"));
                }
                self.delete(set, pod).await
            }
            Step::Mend(pod) => {
                let outcome = self.client.update_typed(&**pod).await;
                self.report(set, "Update", pod.name(), outcome.map(drop))
            }
            Step::Own(claim) => Ok(self.client.update_typed(&**claim).await.map(drop)?),
        }
    }

    async fn create(
        &self,
        set: &StatefulSet,
        template: &PodTemplateSpec,
        revision: &str,
        ordinal: i32,
    ) -> Result<(), ControlError> {
        self.create_claims(set, ordinal).await?;
        let pod = pod::new(set, template, revision, ordinal);
        match self.client.create_typed(&pod).await {
            // Everything in the namespace goes; nothing is missing here.
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) if error.is_already_exists() => Err(error.into()),
            outcome => self.report(set, "Create", pod.name(), outcome.map(drop)),
        }
    }

    async fn create_claims(&self, set: &StatefulSet, ordinal: i32) -> Result<(), ControlError> {
        let pod = pod::name(set, ordinal);
        for claim in pod::claims(set, ordinal) {
            if self.claims.store().get_in(set.namespace(), claim.name()).is_some() {
                continue;
            }
            let claim = retention::adjusted(set, None, &claim, false).unwrap_or(claim);
            let about =
                |what: &str| format!("create Claim {} {what} in StatefulSet {}", claim.name(), set.name());
            match self.client.create_typed(&claim).await {
                Ok(_) => {
                    let message = about(&format!("Pod {pod}")) + " success";
                    self.recorder.normal(set, "SuccessfulCreate", message);
                }
                Err(error) if error.is_already_exists() || error.is_namespace_terminating() => {}
                Err(error) => {
                    let message = about(&format!("for Pod {pod}")) + &format!(" failed error: {error}");
                    self.recorder.warning(set, "FailedCreate", message);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    async fn delete(&self, set: &StatefulSet, pod: &Pod) -> Result<(), ControlError> {
        let params = DeleteParams::only_uid(pod.uid());
        match self.client.delete_typed::<Pod>(pod.namespace(), pod.name(), &params).await {
            // Another pod has its name already: the cache is behind.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            outcome => self.report(set, "Delete", pod.name(), outcome),
        }
    }

    fn report(
        &self,
        set: &StatefulSet,
        verb: &str,
        pod: &str,
        outcome: client::Result<()>,
    ) -> Result<(), ControlError> {
        let about = format!("{} Pod {pod} in StatefulSet {}", verb.to_lowercase(), set.name());
        let reason = |how: &str| format!("{how}{verb}");
        match outcome {
            Ok(()) => self.recorder.normal(set, &reason("Successful"), format!("{about} successful")),
            Err(error) => {
                self.recorder.warning(set, &reason("Failed"), format!("{about} failed error: {error}"));
                return Err(error.into());
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
