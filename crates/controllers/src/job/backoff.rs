//! How long a Job waits before it replaces failed pods: ten seconds after the first failure, then twice as long
//! each time, up to ten minutes; for all its pods together or index by index.

use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use jiff::{SignedDuration, Timestamp};

use crate::pods;

/// Annotation of a pod: how many pods of its index have failed before it.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Annotation of a pod: how many of those failures were ignored by the Job's policy.
pub const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

const SHAPE: stdx::Backoff =
    stdx::Backoff { initial: Duration::from_secs(10), max: Duration::from_secs(600) };

/// How many pods of the index have failed before this one: counted and ignored.
pub fn failures_of(pod: &Pod) -> (i32, i32) {
    let read = |key: &str| {
        let text = pod.metadata.annotations.as_ref().and_then(|a| a.get(key));
        text.and_then(|text| text.parse::<i32>().ok()).filter(|n| *n >= 0 && *n < i32::MAX).unwrap_or(0)
    };
    (read(FAILURES), read(IGNORED))
}

/// When a pod ended: with its last container, else when it ceased to be ready or was deleted.
pub fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let ends: Option<Vec<Timestamp>> =
        statuses.map(|s| Some(s.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0)).collect();
    let unready = || {
        let ready = pods::condition(pod, "Ready").filter(|c| c.status == "False")?;
        ready.last_transition_time.as_ref().map(|t| t.0)
    };
    let deleted = || {
        let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
        pod.metadata.deletion_timestamp.as_ref().and_then(|t| t.0.checked_sub(grace).ok())
    };
    ends.and_then(|ends| ends.into_iter().max())
        .or_else(unready)
        .or_else(deleted)
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
}

fn left(failures: usize, last: Timestamp, now: Timestamp) -> Option<Duration> {
    let pause = SHAPE.delay(u32::try_from(failures).unwrap_or(u32::MAX));
    let passed = Duration::try_from(now.duration_since(last)).unwrap_or_default();
    Some(pause.saturating_sub(passed)).filter(|left| !left.is_zero())
}

/// How long to wait after the failures since the last success.
pub fn after_failures(
    owned: &[Arc<Pod>],
    has_failed: impl Fn(&Pod) -> bool,
    now: Timestamp,
) -> Option<Duration> {
    let won = owned.iter().filter(|pod| pods::phase(pod) == "Succeeded");
    let last_success = won.filter_map(|pod| ended_at(pod)).max();
    let lost = owned.iter().filter(|pod| has_failed(pod)).filter_map(|pod| ended_at(pod));
    let failures: Vec<_> = lost.filter(|at| last_success.is_none_or(|success| *at > success)).collect();
    left(failures.len(), *failures.iter().max()?, now)
}

/// How long to wait before the index of a failed pod is tried again.
pub fn after_index(failed: &Pod, now: Timestamp) -> Option<Duration> {
    let (counted, ignored) = failures_of(failed);
    let failures = usize::try_from(counted.saturating_add(ignored)).unwrap_or(0) + 1;
    left(failures, ended_at(failed)?, now)
}
