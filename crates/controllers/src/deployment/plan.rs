//! What a Deployment needs next, as a value: one round of upstream's reconciliation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::apps::v1::DeploymentStatus;
use api::prelude::*;
use jiff::Timestamp;

use super::status::Milestone;
use super::{revision, sizes, status};

/// A change of a ReplicaSet.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Which.
    pub set: Arc<ReplicaSet>,
    /// New size, if it changes.
    pub replicas: Option<i32>,
    /// Annotations to set.
    pub annotations: BTreeMap<String, String>,
    /// New `minReadySeconds`, if it changes.
    pub min_ready_seconds: Option<i32>,
}

impl Change {
    /// The event to record for a change of size, in upstream's words.
    pub fn event(&self) -> Option<String> {
        let (from, to) = (sizes::size(&self.set), self.replicas?);
        let direction = if to > from { "up" } else { "down" };
        Some(format!("Scaled {direction} replica set {} from {from} to {to}", self.set.name()))
    }
}

/// One round.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// The ReplicaSet of the present template, if it has to be created.
    pub create: Option<Box<ReplicaSet>>,
    /// Changes of ReplicaSets, in order.
    pub changes: Vec<Change>,
    /// ReplicaSets to delete, by name.
    pub delete: Vec<String>,
    /// Revision to note on the Deployment, if it changes.
    pub revision: Option<String>,
}

/// Decides one round. `old_pods_running` says whether pods of old ReplicaSets still run, terminating ones
/// included; only asked for Recreate.
pub fn plan(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    old_pods_running: impl FnOnce(&[Arc<ReplicaSet>]) -> bool,
) -> Plan {
    let mut plan = Plan::default();
    if deployment.is_terminating() {
        return plan;
    }
    let (new, old) = revision::split(deployment, sets);
    let bounds = sizes::bounds(deployment);
    let new_revision = old.iter().map(|set| revision::revision_of(set)).max().unwrap_or(0) + 1;
    let paused = deployment.spec.paused == Some(true);
    let resizing = sizes::was_resized(deployment, sets);
    let mut resizes = Vec::new();
    if paused || resizing {
        resizes = sizes::resized(deployment, new.as_ref(), &old);
    } else if sizes::is_recreate(deployment) {
        resizes = old.iter().filter(|set| sizes::size(set) > 0).map(|set| (set.clone(), 0)).collect();
        if resizes.is_empty() && !old_pods_running(&old) {
            match &new {
                None => {
                    plan.create = Some(Box::new(create(deployment, bounds, bounds.replicas, new_revision)))
                }
                Some(set) if sizes::size(set) != bounds.replicas => {
                    resizes.push((set.clone(), bounds.replicas));
                }
                Some(_) => {}
            }
        }
    } else {
        let wanted = sizes::new_size(bounds, new.as_ref(), &old);
        match &new {
            None => plan.create = Some(Box::new(create(deployment, bounds, wanted, new_revision))),
            Some(set) if sizes::size(set) != wanted => resizes.push((set.clone(), wanted)),
            Some(set) => resizes = sizes::old_sizes(bounds, set, &old),
        }
    }
    plan.changes = changes(deployment, bounds, new.as_ref(), &old, resizes, new_revision);
    if let Some(set) = &new {
        let noted = plan.changes.iter().find(|c| Arc::ptr_eq(&c.set, set));
        let noted = noted.and_then(|c| c.annotations.get(revision::REVISION).cloned());
        let current =
            noted.or_else(|| revision::annotation(&set.metadata, revision::REVISION).map(String::from));
        let known = revision::annotation(&deployment.metadata, revision::REVISION);
        plan.revision = current.filter(|current| known != Some(current.as_str()));
    } else if let Some(set) = &plan.create {
        plan.revision = revision::annotation(&set.metadata, revision::REVISION).map(String::from);
    }
    let reported = deployment.status.clone().unwrap_or_default();
    if plan.create.is_none() && !resizing && (paused || status::is_complete(deployment, &reported)) {
        plan.delete = revision::expired(deployment, &old);
    }
    plan
}

fn create(deployment: &Deployment, bounds: sizes::Bounds, replicas: i32, new_revision: i64) -> ReplicaSet {
    revision::new_replica_set(deployment, replicas, bounds.surge, new_revision)
}

/// Joins new sizes with the annotations that are due anyway.
fn changes(
    deployment: &Deployment,
    bounds: sizes::Bounds,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    resizes: Vec<sizes::Resize>,
    new_revision: i64,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for set in new.into_iter().chain(old) {
        let is_new = new.is_some_and(|new| Arc::ptr_eq(new, set));
        let resize = resizes.iter().find(|(other, _)| Arc::ptr_eq(other, set)).map(|(_, size)| *size);
        let mut change = Change {
            set: set.clone(),
            replicas: resize.filter(|size| *size != sizes::size(set)),
            annotations: BTreeMap::new(),
            min_ready_seconds: None,
        };
        if is_new {
            change.annotations = revision::missing_annotations(deployment, Some(set), new_revision);
            let wanted = deployment.spec.min_ready_seconds.unwrap_or(0);
            let have = set.spec.min_ready_seconds.unwrap_or(0);
            change.min_ready_seconds = Some(wanted).filter(|wanted| *wanted != have);
        }
        // Sizes are noted on every ReplicaSet that has or gets pods: a stale note would look like a resize.
        if resize.is_some() || is_new || sizes::size(set) > 0 {
            let noted = revision::size_annotations(bounds.replicas, bounds.surge);
            let stale = |(key, value): &(String, String)| {
                revision::annotation(&set.metadata, key) != Some(value.as_str())
            };
            // While a resize is shared out, the note must change together with the size.
            if noted.iter().any(stale) {
                change.annotations.extend(noted);
            }
        }
        if change.replicas.is_some() || !change.annotations.is_empty() || change.min_ready_seconds.is_some() {
            changes.push(change);
        }
    }
    changes
}

/// The status after a round and when to look again.
pub fn status_after(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    milestone: &Milestone,
    now: Timestamp,
) -> (Option<DeploymentStatus>, Option<Duration>) {
    let (new, old) = revision::split(deployment, sets);
    let milestone = match (milestone, &new) {
        (Milestone::None, Some(set)) => Milestone::Found(set.name().to_owned()),
        _ => milestone.clone(),
    };
    let computed = status::compute(deployment, new.as_ref(), &old, &milestone, now);
    let next = status::next_check(deployment, &computed, now);
    (Some(computed).filter(|s| Some(s) != deployment.status.as_ref()), next)
}
