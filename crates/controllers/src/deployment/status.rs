//! The status of a Deployment: counts from its ReplicaSets, and the conditions by which people and
//! `kubectl rollout status` see how a rollout goes.

use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};
use api::prelude::*;
use jiff::{SignedDuration, Timestamp};

use super::sizes;

/// Progressing: everything is up to date and available.
pub const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
/// Progressing: no progress within the deadline.
pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const FAILURE: &str = "ReplicaFailure";

/// What this reconcile did that the Progressing condition should tell.
#[derive(Debug, Clone, PartialEq)]
pub enum Milestone {
    /// Nothing.
    None,
    /// The ReplicaSet of this name was created.
    Created(String),
    /// The ReplicaSet of this name was there already.
    Found(String),
    /// The new ReplicaSet could not be created.
    CreateFailed(String),
}

fn find<'a>(conditions: &'a [DeploymentCondition], kind: &str) -> Option<&'a DeploymentCondition> {
    conditions.iter().find(|c| c.type_.as_deref() == Some(kind))
}

fn is(condition: Option<&DeploymentCondition>, reason: &str) -> bool {
    condition.is_some_and(|c| c.reason.as_deref() == Some(reason))
}

fn new_condition(kind: &str, status: &str, reason: &str, message: &str, now: &Time) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(kind.into()),
        status: Some(status.into()),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    }
}

/// Sets a condition. One of equal status and reason stays as it is; one of equal status keeps its
/// transition time.
fn set(conditions: &mut Vec<DeploymentCondition>, mut condition: DeploymentCondition) {
    if let Some(old) = find(conditions, condition.type_.as_deref().unwrap_or_default()) {
        if old.status == condition.status && old.reason == condition.reason {
            return;
        }
        if old.status == condition.status {
            condition.last_transition_time = old.last_transition_time.clone();
        }
    }
    conditions.retain(|c| c.type_ != condition.type_);
    conditions.push(condition);
}

/// Whether a rollout has a time limit: the largest number means none.
fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.progress_deadline_seconds?;
    if seconds == i32::MAX { None } else { u64::try_from(seconds).ok().map(Duration::from_secs) }
}

fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.paused == Some(true)
}

fn count(value: Option<i32>) -> i32 {
    value.unwrap_or(0)
}

/// Whether the rollout is over: all pods updated, no others left, all available, and the status recent.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = sizes::replicas_of(deployment);
    count(status.updated_replicas) == wanted
        && count(status.replicas) == wanted
        && count(status.available_replicas) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let outdated = |s: &DeploymentStatus| count(s.replicas) - count(s.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

fn has_timed_out(deployment: &Deployment, old: &DeploymentStatus, now: Timestamp) -> bool {
    let conditions = old.conditions.as_deref().unwrap_or_default();
    let Some(condition) = find(conditions, PROGRESSING) else { return false };
    match condition.reason.as_deref() {
        Some(NEW_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => match (deadline(deployment), &condition.last_update_time) {
            (Some(deadline), Some(since)) => {
                now.duration_since(since.0)
                    > SignedDuration::try_from(deadline).unwrap_or(SignedDuration::MAX)
            }
            _ => false,
        },
    }
}

/// The status of a Deployment as its ReplicaSets are now.
pub fn compute(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old_sets: &[Arc<ReplicaSet>],
    milestone: &Milestone,
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let bounds = sizes::bounds(deployment);
    let all = || old_sets.iter().chain(new).filter_map(|set| set.status.as_ref());
    let replicas: i32 = all().map(|s| s.replicas).sum();
    let available: i32 = all().map(|s| count(s.available_replicas)).sum();
    let wanted: i32 = old_sets.iter().chain(new).map(|set| sizes::size(set)).sum();
    let present = |n: i32| Some(n).filter(|n| *n != 0);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: present(replicas),
        updated_replicas: present(new.and_then(|set| set.status.as_ref()).map_or(0, |s| s.replicas)),
        ready_replicas: present(all().map(|s| count(s.ready_replicas)).sum()),
        available_replicas: present(available),
        unavailable_replicas: present((wanted - available).max(0)),
        terminating_replicas: Some(all().map(|s| count(s.terminating_replicas)).sum()),
        collision_count: old.collision_count,
        conditions: None,
    };
    let at = Time(now);
    let mut conditions = old.conditions.clone().unwrap_or_default();
    if available >= bounds.replicas - bounds.unavailable {
        let message = "Deployment has minimum availability.";
        set(&mut conditions, new_condition(AVAILABLE, "True", "MinimumReplicasAvailable", message, &at));
    } else {
        let message = "Deployment does not have minimum availability.";
        set(&mut conditions, new_condition(AVAILABLE, "False", "MinimumReplicasUnavailable", message, &at));
    }
    progressing(deployment, new, &old, &status, &mut conditions, milestone, now);
    replica_failure(new, old_sets, &mut conditions);
    status.conditions = Some(conditions);
    status
}

/// Brings the Progressing condition up to date.
fn progressing(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    milestone: &Milestone,
    now: Timestamp,
) {
    let at = Time(now);
    if deployment.spec.progress_deadline_seconds.is_none() {
        conditions.retain(|c| c.type_.as_deref() != Some(PROGRESSING));
        return;
    }
    let known = || find(old.conditions.as_deref().unwrap_or_default(), PROGRESSING);
    if is_paused(deployment) {
        if !is(known(), "DeploymentPaused") && !is(known(), TIMED_OUT) {
            let message = "Deployment is paused";
            set(conditions, new_condition(PROGRESSING, "Unknown", "DeploymentPaused", message, &at));
        }
        return;
    }
    if is(known(), "DeploymentPaused") {
        let message = "Deployment is resumed";
        set(conditions, new_condition(PROGRESSING, "Unknown", "DeploymentResumed", message, &at));
        return;
    }
    let made = match milestone {
        Milestone::Created(name) => {
            Some(("True", "NewReplicaSetCreated", format!("Created new replica set \"{name}\"")))
        }
        Milestone::Found(name) if known().is_none() => {
            Some(("True", "FoundNewReplicaSet", format!("Found new replica set \"{name}\"")))
        }
        Milestone::CreateFailed(error) => Some(("False", "ReplicaSetCreateError", error.clone())),
        _ => None,
    };
    if let Some((state, reason, message)) = made {
        set(conditions, new_condition(PROGRESSING, state, reason, &message, &at));
        return;
    }
    let settled = count(status.replicas) == count(status.updated_replicas) && is(known(), NEW_AVAILABLE);
    if deadline(deployment).is_none() || settled {
        return;
    }
    let subject = match new {
        Some(set) => format!("ReplicaSet \"{}\"", set.name()),
        None => format!("Deployment \"{}\"", deployment.name()),
    };
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set(conditions, new_condition(PROGRESSING, "True", NEW_AVAILABLE, &message, &at));
    } else if has_progressed(old, status) {
        let message = format!("{subject} is progressing.");
        let mut condition = new_condition(PROGRESSING, "True", "ReplicaSetUpdated", &message, &at);
        if let Some(known) = known().filter(|c| c.status.as_deref() == Some("True")) {
            condition.last_transition_time = known.last_transition_time.clone();
        }
        // Progress renews the time of the last update even where nothing else changes.
        conditions.retain(|c| c.type_.as_deref() != Some(PROGRESSING));
        conditions.push(condition);
    } else if has_timed_out(deployment, old, now) {
        let message = format!("{subject} has timed out progressing.");
        set(conditions, new_condition(PROGRESSING, "False", TIMED_OUT, &message, &at));
    }
}

/// Passes on the failure of a ReplicaSet to create or delete pods; the new one's counts first.
fn replica_failure(
    new: Option<&Arc<ReplicaSet>>,
    old_sets: &[Arc<ReplicaSet>],
    conditions: &mut Vec<DeploymentCondition>,
) {
    let failures = new.into_iter().chain(old_sets).filter_map(|set| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|c| c.type_.as_deref() == Some(FAILURE) && c.status.as_deref() == Some("True"))
    });
    match failures.into_iter().next() {
        None => conditions.retain(|c| c.type_.as_deref() != Some(FAILURE)),
        Some(failure) => {
            let reason = failure.reason.as_deref().unwrap_or_default();
            let message = failure.message.as_deref().unwrap_or_default();
            let at = failure.last_transition_time.clone().unwrap_or(Time(Timestamp::UNIX_EPOCH));
            set(conditions, new_condition(FAILURE, "True", reason, message, &at));
        }
    }
}

/// When to look at a rollout again if nothing happens: when its time limit has passed.
pub fn next_check(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let deadline = deadline(deployment)?;
    let condition = find(status.conditions.as_deref().unwrap_or_default(), PROGRESSING)?;
    if is_paused(deployment)
        || is_complete(deployment, status)
        || is(Some(condition), NEW_AVAILABLE)
        || is(Some(condition), TIMED_OUT)
    {
        return None;
    }
    let since = condition.last_update_time.as_ref()?.0;
    let elapsed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    // Times have whole seconds, so one more is needed to be past the limit.
    Some(deadline.saturating_sub(elapsed) + Duration::from_secs(1))
}
