//! `daemon-set-controller`: one pod on every node that fits, updated node by node, with a ControllerRevision
//! per template.
//!
//! Flow: DaemonSet, node and pod events -> key -> claim pods -> [`plan::plan`] -> create (with an affinity to
//! the node, so that the scheduler binds), delete -> status.

pub mod plan;

use std::sync::Arc;

use api::k8s_openapi::api::apps::v1::ControllerRevision;
use api::k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, Recorder, WorkQueue,
};
use stdx::Clock;

use self::plan::{HASH_LABEL, Plan};
use crate::follow::Follow;
use crate::{history, owners};

const NAME: &str = "daemon-set-controller";
/// Sets in work at once (upstream's default is 2).
const WORKERS: usize = 2;

/// The row of `daemon-set-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    sets: Arc<Informer<DaemonSet>>,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    revisions: Arc<Informer<ControllerRevision>>,
    follow: Arc<Follow<DaemonSet>>,
}

fn build(context: &Context) -> Controller {
    let (queue, sets, pods) =
        (WorkQueue::new(), context.informers.get::<DaemonSet>(), context.informers.get::<Pod>());
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.recorder_of(NAME),
        clock: context.clock.clone(),
        nodes: context.informers.get::<Node>(),
        revisions: context.informers.get::<ControllerRevision>(),
        follow: Follow::start(&sets, &pods, &queue, |set| owners::compile(&set.spec.selector)),
        sets,
        pods,
    });
    owners::add_indexes(&this.revisions);
    let (it, to) = (this.clone(), queue.clone());
    this.nodes.on_event(move |event| {
        let gates = |n: &Node| (n.metadata.labels.clone(), n.spec.as_ref().and_then(|s| s.taints.clone()));
        // Heartbeats change nothing here.
        let relevant = match event {
            Event::Updated { old, new } => gates(old) != gates(new),
            _ => true,
        };
        if relevant {
            it.sets.store().keys().into_iter().for_each(|key| to.add(key));
        }
    });
    Controller::new(queue, this.clone(), WORKERS)
        .after(&this.sets)
        .after(&this.nodes)
        .after(&this.pods)
        .after(&this.revisions)
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(set) = self.sets.store().get(key) else { return Ok(Action::Wait) };
        let selector = owners::compile(&set.spec.selector)?;
        if selector.is_everything() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*set, "SelectingAll", message);
            return Ok(Action::Wait);
        }
        if set.is_terminating() {
            return Ok(Action::Wait);
        }
        let trusted = self.follow.expectations.satisfied(key, self.clock.instant());
        let (hash, collisions) = self.revision(&set, &selector).await?;
        let owned =
            owners::claim(&self.client, &self.pods, &DaemonSet::GVK, &set.metadata, &selector, None).await?;
        let mut plan = plan::plan(&set, &self.nodes.store().list(), &owned, &hash, self.clock.now());
        plan.status.collision_count = collisions;
        if set.status.as_ref() != Some(&plan.status) {
            let updated = DaemonSet { status: Some(plan.status.clone()), ..DaemonSet::clone(&set) };
            match self.client.update_status_typed(&updated).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        if trusted {
            self.execute(key, &set, &owned, plan, &hash).await?;
        }
        Ok(Action::Wait)
    }

    /// Keeps a ControllerRevision of the present template; returns its hash and the count of collisions.
    async fn revision(
        &self,
        set: &DaemonSet,
        selector: &meta::LabelSelector,
    ) -> Result<(String, Option<i32>), ControlError> {
        let known =
            history::claim(&self.client, &self.revisions, &DaemonSet::GVK, &set.metadata, selector).await?;
        let owner = history::Owner {
            gvk: DaemonSet::GVK,
            meta: &set.metadata,
            template: &set.spec.template,
            collisions: set.status.as_ref().and_then(|s| s.collision_count),
            hash_label: HASH_LABEL,
        };
        let latest = history::latest(&self.client, &known, &owner).await?;
        let hash = |meta: &ObjectMeta| meta.labels.as_ref().and_then(|l| l.get(HASH_LABEL)).cloned();
        let pods = self.pods.store().by_index(owners::CONTROLLER, set.uid());
        let in_use = |r: &ControllerRevision| {
            r.name() == latest.revision.name()
                || pods.iter().any(|pod| hash(&pod.metadata) == hash(&r.metadata))
        };
        history::expire(&self.client, &known, in_use, set.spec.revision_history_limit).await?;
        Ok((hash(&latest.revision.metadata).unwrap_or_default(), latest.collisions))
    }

    async fn execute(
        &self,
        key: &str,
        set: &DaemonSet,
        owned: &[Arc<Pod>],
        plan: Plan,
        hash: &str,
    ) -> Result<(), ControlError> {
        for name in &plan.failed {
            let message = format!("Found failed daemon pod {}/{name}, will try to kill it", set.namespace());
            self.recorder.warning(set, "FailedDaemonPod", message);
        }
        let now = self.clock.instant();
        if plan.create.is_empty() && plan.delete.is_empty() {
            return Ok(());
        }
        let doomed: Vec<_> = owned.iter().filter(|pod| plan.delete.iter().any(|n| n == pod.name())).collect();
        if plan.create.is_empty() {
            self.follow.expectations.expect_deletions(key, doomed.iter().map(|p| p.uid().to_owned()), now);
        } else {
            self.follow.expectations.expect_creations(key, plan.create.len(), now);
        }
        for pod in doomed {
            let outcome = self
                .client
                .delete_typed::<Pod>(pod.namespace(), pod.name(), &DeleteParams::only_uid(pod.uid()))
                .await;
            match outcome {
                Ok(()) => {
                    self.recorder.normal(set, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()))
                }
                Err(error) => {
                    self.follow.expectations.deletion_observed(key, pod.uid());
                    if !error.is_not_found() {
                        return Err(error.into());
                    }
                }
            }
        }
        for (done, node) in plan.create.iter().enumerate() {
            match self.client.create_typed(&pod_for(set, node, hash)).await {
                Ok(pod) => {
                    self.recorder.normal(set, "SuccessfulCreate", format!("Created pod: {}", pod.name()));
                }
                Err(error) => {
                    (done..plan.create.len()).for_each(|_| self.follow.expectations.creation_observed(key));
                    if error.is_namespace_terminating() {
                        return Ok(());
                    }
                    self.recorder.warning(set, "FailedCreate", format!("Error creating: {error}"));
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }
}

/// A pod of the set that only fits one node.
fn pod_for(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let owner = owners::controller_reference(&DaemonSet::GVK, &set.metadata);
    let template = plan::with_tolerations(set.spec.template.clone());
    let mut pod = crate::replicaset::plan::pod_from_template(&template, set.namespace(), set.name(), owner);
    pod.metadata.labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.to_owned());
    let only = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let spec = pod.spec.get_or_insert_default();
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    // Other terms name other nodes or none: this one alone says where the pod belongs.
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm { match_fields: Some(vec![only]), ..Default::default() }],
    });
    pod
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
