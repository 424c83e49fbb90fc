//! What a Job needs next: counters, conditions, pods to create and to delete.
//!
//! Every pod is counted exactly once (KEP-2307): a finished pod keeps a finalizer until its uid has been
//! noted in the status, and leaves that note for a counter once the finalizer is gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::batch::v1::{JobCondition, JobStatus, UncountedTerminatedPods};
use api::prelude::*;
use jiff::{SignedDuration, Timestamp};

use crate::pods;

/// Finalizer of pods that have not been counted.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label of a pod's index in an Indexed Job.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Finished pods noted per round, so that the status stays small.
const UNCOUNTED_MAX: usize = 500;
/// Pods created or deleted per round.
const BURST_MAX: usize = 500;

/// One round.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// The new status.
    pub status: JobStatus,
    /// Pods to create, with their indexes in an Indexed Job.
    pub create: Vec<Option<i32>>,
    /// Pods to delete, by name.
    pub delete: Vec<String>,
    /// Pods that are noted and whose finalizer can go, by name.
    pub release: Vec<String>,
    /// When to look again.
    pub wait: Option<Duration>,
    /// Reason and message of what has become of the Job in this round.
    pub event: Option<(&'static str, String)>,
}

fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == TRACKING)
}

/// The index of a pod in an Indexed Job.
pub fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

/// Whether a condition of a Job is true.
pub fn is(status: &JobStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True")
}

/// Whether the Job has come to its end.
pub fn is_finished(status: &JobStatus) -> bool {
    is(status, "Complete") || is(status, "Failed")
}

fn set(status: &mut JobStatus, kind: &str, value: &str, reason: &str, message: &str, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let same = |c: &JobCondition| c.type_ == kind && c.status == value && c.reason.as_deref() == Some(reason);
    if conditions.iter().any(same) {
        return;
    }
    conditions.retain(|c| c.type_ != kind);
    conditions.push(JobCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
}

/// Reads indexes such as `0-2,5`.
pub fn parse_indexes(text: &str) -> BTreeSet<i32> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    let ranges = parts.filter_map(|part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(from.parse::<i32>().ok()?..=to.parse().ok()?)
    });
    ranges.flatten().collect()
}

/// Writes indexes such as `0-2,5`.
pub fn format_indexes(indexes: &BTreeSet<i32>) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((_, to)) if *to + 1 == *index => *to = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let show = |(from, to): &(i32, i32)| match to - from {
        0 => from.to_string(),
        1 => format!("{from},{to}"),
        _ => format!("{from}-{to}"),
    };
    ranges.iter().map(show).collect::<Vec<_>>().join(",")
}

/// Moves finished pods through the notes of the status into its counters.
fn count(status: &mut JobStatus, owned: &[Arc<Pod>], indexed: bool, release: &mut Vec<String>) {
    let mut notes = status.uncounted_terminated_pods.take().unwrap_or_default();
    let waiting = |uid: &String| owned.iter().any(|pod| pod.uid() == uid && has_finalizer(pod));
    let settle = |list: &mut Option<Vec<String>>| {
        let (keep, done): (Vec<_>, Vec<_>) = list.take().unwrap_or_default().into_iter().partition(&waiting);
        *list = Some(keep).filter(|keep| !keep.is_empty());
        i32::try_from(done.len()).unwrap_or(i32::MAX)
    };
    let succeeded = settle(&mut notes.succeeded);
    if !indexed {
        status.succeeded = Some(status.succeeded.unwrap_or(0).saturating_add(succeeded));
    }
    status.failed = Some(status.failed.unwrap_or(0).saturating_add(settle(&mut notes.failed)));
    let mut indexes = parse_indexes(status.completed_indexes.as_deref().unwrap_or_default());
    for pod in owned.iter().filter(|pod| has_finalizer(pod)) {
        let noted = |list: &Option<Vec<String>>| list.iter().flatten().any(|uid| uid == pod.uid());
        if noted(&notes.succeeded) || noted(&notes.failed) {
            release.push(pod.name().to_owned());
            continue;
        }
        let total =
            [&notes.succeeded, &notes.failed].map(|l| l.as_ref().map_or(0, Vec::len)).iter().sum::<usize>();
        // A pod that is deleted before it has ended did not succeed.
        let ended = pods::is_finished(pod) || pod.is_terminating();
        if !ended || total >= UNCOUNTED_MAX {
            continue;
        }
        if pods::phase(pod) == "Succeeded" {
            notes.succeeded.get_or_insert_default().push(pod.uid().to_owned());
            indexes.extend(index_of(pod).filter(|_| indexed));
        } else {
            notes.failed.get_or_insert_default().push(pod.uid().to_owned());
        }
    }
    if indexed {
        status.succeeded = i32::try_from(indexes.len()).ok();
        status.completed_indexes = Some(format_indexes(&indexes)).filter(|text| !text.is_empty());
    }
    status.uncounted_terminated_pods = Some(notes).filter(|n| *n != UncountedTerminatedPods::default());
}

/// Plans one round for a Job with these pods.
pub fn plan(job: &Job, owned: &[Arc<Pod>], now: Timestamp) -> Plan {
    let spec = job.spec.clone().unwrap_or_default();
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let mut plan = Plan { status: job.status.clone().unwrap_or_default(), ..Default::default() };
    count(&mut plan.status, owned, indexed, &mut plan.release);
    let active: Vec<&Arc<Pod>> = owned.iter().filter(|pod| pods::is_active(pod)).collect();
    let leaving = owned.iter().filter(|pod| pod.is_terminating() && !pods::is_finished(pod)).count();
    let notes = plan.status.uncounted_terminated_pods.clone().unwrap_or_default();
    let noted = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len) as i32;
    let succeeded = plan.status.succeeded.unwrap_or(0) + if indexed { 0 } else { noted(&notes.succeeded) };
    let failed = plan.status.failed.unwrap_or(0) + noted(&notes.failed);
    let suspended = spec.suspend == Some(true);
    if !is_finished(&plan.status) {
        if suspended {
            set(&mut plan.status, "Suspended", "True", "JobSuspended", "Job suspended", now);
            plan.status.start_time = None;
        } else {
            if is(&plan.status, "Suspended") {
                set(&mut plan.status, "Suspended", "False", "JobResumed", "Job resumed", now);
            }
            plan.status.start_time.get_or_insert(Time(now));
            judge(job, &mut plan, succeeded, failed, active.len(), now);
        }
    }
    let doomed = suspended || is(&plan.status, "SuccessCriteriaMet") || is(&plan.status, "FailureTarget");
    if is_finished(&plan.status) || doomed {
        plan.delete.extend(active.iter().map(|pod| pod.name().to_owned()));
    } else {
        manage(job, &mut plan, &active, owned, succeeded, indexed, now);
    }
    finish(&mut plan, active.is_empty() && leaving == 0, now);
    plan.status.active = i32::try_from(active.len()).ok().filter(|n| *n != 0);
    plan.status.terminating = i32::try_from(leaving).ok();
    plan.status.ready = i32::try_from(active.iter().filter(|pod| pods::is_ready(pod)).count()).ok();
    plan.status.succeeded = plan.status.succeeded.filter(|n| *n != 0);
    plan.status.failed = plan.status.failed.filter(|n| *n != 0);
    plan
}

/// Decides whether the Job has succeeded or failed.
fn judge(job: &Job, plan: &mut Plan, succeeded: i32, failed: i32, active: usize, now: Timestamp) {
    let spec = job.spec.clone().unwrap_or_default();
    if is(&plan.status, "SuccessCriteriaMet") || is(&plan.status, "FailureTarget") {
        return;
    }
    let started = plan.status.start_time.as_ref().map_or(now, |t| t.0);
    let deadline = spec.active_deadline_seconds.map(SignedDuration::from_secs);
    let left = deadline.map(|deadline| deadline - now.duration_since(started));
    let done = match spec.completions {
        Some(wanted) => succeeded >= wanted,
        // Without a number, the first success ends it as soon as the others have ended too.
        None => succeeded > 0 && active == 0,
    };
    if failed > spec.backoff_limit.unwrap_or(6) {
        let message = "Job has reached the specified backoff limit";
        set(&mut plan.status, "FailureTarget", "True", "BackoffLimitExceeded", message, now);
    } else if left.is_some_and(|left| left <= SignedDuration::ZERO) {
        let message = "Job was active longer than specified deadline";
        set(&mut plan.status, "FailureTarget", "True", "DeadlineExceeded", message, now);
    } else if done {
        let message = "Reached expected number of succeeded pods";
        set(&mut plan.status, "SuccessCriteriaMet", "True", "CompletionsReached", message, now);
    } else {
        plan.wait = left.and_then(|left| Duration::try_from(left).ok());
    }
}

/// Brings the number of active pods to what it should be.
fn manage(
    job: &Job,
    plan: &mut Plan,
    active: &[&Arc<Pod>],
    owned: &[Arc<Pod>],
    succeeded: i32,
    indexed: bool,
    now: Timestamp,
) {
    let spec = job.spec.clone().unwrap_or_default();
    let parallelism = spec.parallelism.unwrap_or(1).max(0);
    let wanted = match spec.completions {
        Some(completions) => (completions - succeeded).clamp(0, parallelism),
        None if succeeded > 0 => parallelism.min(active.len() as i32),
        None => parallelism,
    } as usize;
    if active.len() > wanted {
        // Those that have come least far go first.
        let mut sorted = active.to_vec();
        sorted.sort_by_key(|pod| (pods::is_ready(pod), pods::phase(pod) == "Running"));
        plan.delete.extend(sorted[..active.len() - wanted].iter().map(|pod| pod.name().to_owned()));
        return;
    }
    let missing = (wanted - active.len()).min(BURST_MAX);
    if missing == 0 {
        return;
    }
    if let Some(pause) = pause_after_failures(owned, now) {
        plan.wait = Some(plan.wait.map_or(pause, |wait| wait.min(pause)));
        return;
    }
    if !indexed {
        plan.create = vec![None; missing];
        return;
    }
    let done = parse_indexes(plan.status.completed_indexes.as_deref().unwrap_or_default());
    let taken: BTreeSet<i32> = active.iter().filter_map(|pod| index_of(pod)).collect();
    let free = (0..spec.completions.unwrap_or(0)).filter(|i| !done.contains(i) && !taken.contains(i));
    plan.create = free.take(missing).map(Some).collect();
}

/// How long to wait before replacing failed pods: ten seconds after the first, then twice as long each
/// time, up to ten minutes; from the last failure on.
fn pause_after_failures(owned: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let ended = |pod: &Pod| {
        let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        let ends = statuses.filter_map(|s| s.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
        ends.map(|t| t.0).max().or_else(|| {
            let ready = pods::condition(pod, "Ready")?;
            ready.last_transition_time.as_ref().map(|t| t.0)
        })
    };
    let last_success = owned.iter().filter(|p| pods::phase(p) == "Succeeded").filter_map(|p| ended(p)).max();
    let failures: Vec<Timestamp> = owned
        .iter()
        .filter(|pod| pods::phase(pod) == "Failed")
        .filter_map(|pod| ended(pod))
        .filter(|at| last_success.is_none_or(|success| *at > success))
        .collect();
    let last = failures.iter().max()?;
    let shape = stdx::Backoff { initial: Duration::from_secs(10), max: Duration::from_secs(600) };
    let pause = shape.delay(u32::try_from(failures.len()).unwrap_or(u32::MAX));
    let passed = Duration::try_from(now.duration_since(*last)).unwrap_or_default();
    Some(pause.saturating_sub(passed)).filter(|left| !left.is_zero())
}

/// Ends a Job whose fate is decided once all its pods have ended and are counted.
fn finish(plan: &mut Plan, quiet: bool, now: Timestamp) {
    let counted = plan.status.uncounted_terminated_pods.is_none();
    if is_finished(&plan.status) || !quiet || !counted {
        return;
    }
    let fate = |kind: &str| {
        let found = plan.status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True");
        found.map(|c| (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default()))
    };
    if let Some((reason, message)) = fate("SuccessCriteriaMet") {
        set(&mut plan.status, "Complete", "True", &reason, &message, now);
        plan.status.completion_time = Some(Time(now));
        plan.event = Some(("Completed", "Job completed".into()));
    } else if let Some((reason, message)) = fate("FailureTarget") {
        set(&mut plan.status, "Failed", "True", &reason, &message, now);
        let reason = if reason == "DeadlineExceeded" { "DeadlineExceeded" } else { "BackoffLimitExceeded" };
        plan.event = Some((reason, message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn job(spec: Value) -> Job {
        Job::from_value(json!({"metadata": {"name": "j"}, "spec": spec})).unwrap()
    }

    fn pod(name: &str, phase: &str, tracked: bool, index: i32) -> Arc<Pod> {
        let finalizers = if tracked { json!([TRACKING]) } else { json!([]) };
        Arc::new(
            Pod::from_value(json!({"metadata": {"name": name, "uid": name, "finalizers": finalizers,
                "annotations": {INDEX: index.to_string()}}, "status": {"phase": phase, "conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": at(0).to_string()}]}}))
            .unwrap(),
        )
    }

    fn next(job: &mut Job, owned: &[Arc<Pod>], seconds: i64) -> Plan {
        let plan = plan(job, owned, at(seconds));
        job.status = Some(plan.status.clone());
        plan
    }

    #[test]
    fn a_job_runs_to_completion() {
        let template = json!({"spec": {"containers": []}});
        let mut j = job(json!({"completions": 2, "parallelism": 1, "template": template}));
        assert_eq!(next(&mut j, &[], 0).create, [None]);
        assert!(next(&mut j, &[pod("a", "Running", true, 0)], 1).create.is_empty());
        let noted = next(&mut j, &[pod("a", "Succeeded", true, 0)], 2);
        assert_eq!(noted.create.len(), 1, "the next may start while the first is being counted");
        let released = next(&mut j, &[pod("a", "Succeeded", true, 0)], 3);
        assert_eq!(released.release, ["a"]);
        let both = [pod("a", "Succeeded", false, 0), pod("b", "Succeeded", true, 0)];
        assert!(next(&mut j, &both, 4).create.is_empty());
        assert_eq!(j.status.as_ref().unwrap().succeeded, Some(1));
        assert!(
            is(j.status.as_ref().unwrap(), "SuccessCriteriaMet") && !is_finished(j.status.as_ref().unwrap())
        );
        let last = next(&mut j, &[], 5);
        assert!(is(&last.status, "Complete") && last.status.succeeded == Some(2));
        assert_eq!(last.event.unwrap().0, "Completed");
        assert_eq!(next(&mut j, &[], 6).event, None);
    }

    #[test]
    fn failures_pause_and_end() {
        let mut j = job(json!({"completions": 1, "backoffLimit": 1, "template": {}}));
        let one = [pod("a", "Failed", true, 0)];
        let paused = next(&mut j, &one, 4);
        assert_eq!((paused.create.len(), paused.wait), (0, Some(Duration::from_secs(6))));
        let two = [pod("a", "Failed", false, 0), pod("b", "Failed", true, 0)];
        assert!(is(&next(&mut j, &two, 20).status, "FailureTarget"));
        let failed = next(&mut j, &[], 21);
        assert_eq!(
            failed.event.unwrap(),
            ("BackoffLimitExceeded", "Job has reached the specified backoff limit".into())
        );
    }

    #[test]
    fn indexes_and_deadlines() {
        let mut j = job(json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed",
            "activeDeadlineSeconds": 30, "template": {}}));
        assert_eq!(next(&mut j, &[], 0).create, [Some(0), Some(1), Some(2)]);
        let owned = [pod("a", "Succeeded", true, 1), pod("b", "Running", true, 0)];
        let plan = next(&mut j, &owned, 1);
        assert_eq!((plan.create, plan.status.completed_indexes.as_deref()), (vec![Some(2)], Some("1")));
        assert_eq!(plan.wait, Some(Duration::from_secs(29)));
        let late = next(&mut j, &owned, 30);
        assert!(is(&late.status, "FailureTarget"));
        assert_eq!(late.delete, ["b"]);
        assert_eq!(format_indexes(&parse_indexes("0-2,5,7,8")), "0-2,5,7,8");
    }
}
