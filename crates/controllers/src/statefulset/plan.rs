//! What a StatefulSet does next: which pod to make, mend or delete, in order or all at once, and how an
//! update proceeds from the highest ordinal down.

use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::apps::v1::{RollingUpdateStatefulSetStrategy, StatefulSetStatus};
use api::prelude::*;
use jiff::Timestamp;

use super::{pod, retention};
use crate::deployment::sizes::scaled;
use crate::pods;

/// Names of the revision the set had and of the one it is to have.
#[derive(Debug, Clone, Copy)]
pub struct Revisions<'a> {
    /// Before the update.
    pub current: &'a str,
    /// After it; the same when there is none.
    pub update: &'a str,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Make the pod with this ordinal, claims first; of the updated revision or else of the current one.
    Create {
        /// Its place.
        ordinal: i32,
        /// Whether from the new template.
        updated: bool,
    },
    /// Make the claims that a pod waits for.
    Claims(i32),
    /// Delete a pod.
    Delete(Arc<Pod>),
    /// Delete a pod that has ended, so that it can be made again.
    Replace(Arc<Pod>),
    /// Give a pod the labels of its place.
    Mend(Box<Pod>),
    /// Give a claim other owners.
    Own(Box<PersistentVolumeClaim>),
}

/// What to do now, the status, and when to look again at the latest.
#[derive(Debug, Default)]
pub struct Plan {
    /// Things to do, independent of each other.
    pub steps: Vec<Step>,
    /// The status as observed.
    pub status: StatefulSetStatus,
    /// Time until the next pod has been ready for long enough.
    pub wait: Option<Duration>,
}

/// Looks up a claim by its name.
pub type Claims<'a> = &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>;

struct View<'a> {
    set: &'a StatefulSet,
    revisions: Revisions<'a>,
    claims: Claims<'a>,
    now: Timestamp,
    ordered: bool,
}

fn is_running_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

fn is_healthy(pod: &Pod) -> bool {
    is_running_ready(pod) && !pod.is_terminating()
}

impl View<'_> {
    fn is_available(&self, pod: &Pod) -> bool {
        is_running_ready(pod)
            && pods::is_available(pod, self.set.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn rolling(&self) -> Option<&RollingUpdateStatefulSetStrategy> {
        self.set.spec.update_strategy.as_ref()?.rolling_update.as_ref()
    }

    fn is_on_delete(&self) -> bool {
        let strategy = self.set.spec.update_strategy.as_ref();
        strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete")
    }

    fn partition(&self) -> i32 {
        self.rolling().and_then(|r| r.partition).unwrap_or(0)
    }

    /// Whether a new pod is of the new revision: those below the partition are not.
    fn is_updated(&self, ordinal: i32) -> bool {
        if self.is_on_delete() {
            return true;
        }
        let first = match self.rolling() {
            Some(rolling) => rolling.partition.unwrap_or(0),
            None => self.set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0),
        };
        ordinal >= pod::start(self.set).saturating_add(first)
    }
}

/// Plans one round for the pods of a set.
pub fn plan(
    set: &StatefulSet,
    owned: &[Arc<Pod>],
    revisions: Revisions<'_>,
    claims: Claims<'_>,
    now: Timestamp,
) -> Plan {
    let ordered = set.spec.pod_management_policy.as_deref() != Some("Parallel");
    let view = View { set, revisions, claims, now, ordered };
    let (start, size) = (pod::start(set), set.spec.replicas.unwrap_or(1).max(0));
    let mut replicas: Vec<Option<&Arc<Pod>>> = vec![None; usize::try_from(size).unwrap_or(0)];
    let mut condemned: Vec<(i32, &Arc<Pod>)> = Vec::new();
    for owned in owned {
        let Some(ordinal) = pod::ordinal(set, owned) else { continue };
        let place = usize::try_from(i64::from(ordinal) - i64::from(start)).ok();
        match place.and_then(|place| replicas.get_mut(place)) {
            Some(slot) => *slot = Some(owned),
            None => condemned.push((ordinal, owned)),
        }
    }
    condemned.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
    let mut plan = Plan { status: status(&view, owned), ..Default::default() };
    plan.wait = next_available(&view, owned);
    if set.is_terminating() {
        return plan;
    }
    let settled =
        fill(&view, &replicas, &mut plan.steps) && shrink(&view, &replicas, &condemned, &mut plan.steps);
    if settled && !view.is_on_delete() {
        roll(&view, &replicas, &mut plan.steps);
    }
    plan
}

/// Brings every place to a running, ready and mended pod; says whether that is so (in parallel: begun).
fn fill(view: &View<'_>, replicas: &[Option<&Arc<Pod>>], steps: &mut Vec<Step>) -> bool {
    let mut settled = true;
    for (place, present) in replicas.iter().enumerate() {
        let ordinal = pod::start(view.set).saturating_add(i32::try_from(place).unwrap_or(i32::MAX));
        let goes_on = one(view, ordinal, *present, steps);
        settled &= goes_on;
        if !goes_on && view.ordered {
            return false;
        }
    }
    settled
}

/// One place; says whether the next may follow.
fn one(view: &View<'_>, ordinal: i32, present: Option<&Arc<Pod>>, steps: &mut Vec<Step>) -> bool {
    let wanted = pod::claims(view.set, ordinal);
    let Some(present) = present else {
        let name = pod::name(view.set, ordinal);
        let stale = |claim: &PersistentVolumeClaim| {
            (view.claims)(claim.name()).is_some_and(|c| retention::is_stale(&c, &name))
        };
        if wanted.iter().any(stale) {
            return false;
        }
        steps.push(Step::Create { ordinal, updated: view.is_updated(ordinal) });
        return !view.ordered;
    };
    if pods::is_finished(present) {
        if !present.is_terminating() {
            steps.push(Step::Replace(present.clone()));
        }
        return false;
    }
    if pods::phase(present) == "Pending" && wanted.iter().any(|c| (view.claims)(c.name()).is_none()) {
        steps.push(Step::Claims(ordinal));
    }
    if view.ordered && (!is_healthy(present) || !view.is_available(present)) {
        return false;
    }
    steps.extend(pod::identified(view.set, present, ordinal).map(|pod| Step::Mend(Box::new(pod))));
    own(view, present, &wanted, false, steps);
    true
}

/// Brings the owners of a pod's claims in line with the retention policy.
fn own(view: &View<'_>, pod: &Pod, wanted: &[PersistentVolumeClaim], condemned: bool, steps: &mut Vec<Step>) {
    if !retention::applies(view.set) {
        return;
    }
    let present = wanted.iter().filter_map(|claim| (view.claims)(claim.name()));
    let adjusted = present.filter_map(|claim| retention::adjusted(view.set, Some(pod), &claim, condemned));
    steps.extend(adjusted.map(|claim| Step::Own(Box::new(claim))));
}

/// Deletes pods that are too many, from the highest ordinal down; says whether an update may go on.
fn shrink(
    view: &View<'_>,
    replicas: &[Option<&Arc<Pod>>],
    condemned: &[(i32, &Arc<Pod>)],
    steps: &mut Vec<Step>,
) -> bool {
    let unhealthy = replicas.iter().copied().flatten().chain(condemned.iter().rev().map(|(_, pod)| *pod));
    let first_unhealthy = unhealthy.into_iter().find(|pod| !is_healthy(pod)).map(|pod| pod.uid());
    // Whoever goes takes the claims along first: deleting the pod starts their deletion.
    let before = steps.len();
    for (ordinal, pod) in condemned {
        own(view, pod, &pod::claims(view.set, *ordinal), true, steps);
    }
    if steps.len() > before {
        return false;
    }
    for (_, pod) in condemned {
        if pod.is_terminating() {
            if view.ordered {
                return false;
            }
            continue;
        }
        let blocked = !view.is_available(pod) && first_unhealthy != Some(pod.uid());
        if view.ordered && blocked {
            return false;
        }
        steps.push(Step::Delete((*pod).clone()));
        if view.ordered {
            return false;
        }
    }
    true
}

/// Deletes pods of the old revision, from the highest ordinal down to the partition, while no more than the
/// allowed number is unavailable. Those that do not serve anyway cost nothing.
fn roll(view: &View<'_>, replicas: &[Option<&Arc<Pod>>], steps: &mut Vec<Step>) {
    let size = i32::try_from(replicas.len()).unwrap_or(i32::MAX);
    let allowed = view.rolling().and_then(|r| r.max_unavailable.as_ref());
    let allowed = allowed.map_or(1, |value| scaled(Some(value), size, false)).max(1);
    let serves = |pod: &Pod| is_healthy(pod) && view.is_available(pod);
    let down = replicas.iter().filter(|r| !r.is_some_and(|pod| serves(pod))).count();
    let mut budget = allowed.saturating_sub(i32::try_from(down).unwrap_or(i32::MAX));
    let first = usize::try_from(view.partition()).unwrap_or(0);
    for pod in replicas.iter().skip(first).rev().copied().flatten() {
        if pod::revision(pod) == view.revisions.update || pod.is_terminating() {
            continue;
        }
        if serves(pod) {
            if budget <= 0 {
                continue;
            }
            budget -= 1;
        }
        steps.push(Step::Delete(pod.clone()));
    }
}

fn status(view: &View<'_>, owned: &[Arc<Pod>]) -> StatefulSetStatus {
    let old = view.set.status.clone().unwrap_or_default();
    let (mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0);
    for pod in owned {
        ready += i32::from(is_running_ready(pod));
        available += i32::from(view.is_available(pod));
        if !pod.is_terminating() {
            current += i32::from(pod::revision(pod) == view.revisions.current);
            updated += i32::from(pod::revision(pod) == view.revisions.update);
        }
    }
    let replicas = i32::try_from(owned.len()).unwrap_or(i32::MAX);
    let mut current_revision = view.revisions.current;
    let done = !view.is_on_delete() && updated == replicas && ready == replicas;
    if done && view.set.spec.replicas.unwrap_or(1) == replicas {
        current_revision = view.revisions.update;
        current = updated;
    }
    let some = |count: i32| Some(count).filter(|n| *n != 0);
    StatefulSetStatus {
        observed_generation: view.set.metadata.generation,
        replicas,
        ready_replicas: some(ready),
        // Always there: scripts wait for it.
        available_replicas: Some(available),
        current_replicas: some(current),
        updated_replicas: some(updated),
        current_revision: Some(current_revision.to_owned()),
        update_revision: Some(view.revisions.update.to_owned()),
        collision_count: old.collision_count,
        conditions: old.conditions,
    }
}

fn next_available(view: &View<'_>, owned: &[Arc<Pod>]) -> Option<Duration> {
    let needed = Duration::from_secs(u64::try_from(view.set.spec.min_ready_seconds.unwrap_or(0)).ok()?);
    let waits = owned.iter().filter(|pod| is_running_ready(pod)).filter_map(|pod| {
        let age = Duration::try_from(view.now.duration_since(pods::ready_since(pod)??)).unwrap_or_default();
        Some(needed.saturating_sub(age))
    });
    // A millisecond more, so that the comparison falls on the right side.
    waits.filter(|wait| !wait.is_zero()).min().map(|wait| wait + Duration::from_millis(1))
}
