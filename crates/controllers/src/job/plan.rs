//! What a Job needs next: counters, conditions, pods to create and to delete.
//!
//! Every pod is counted exactly once (KEP-2307): a finished pod keeps a finalizer until its uid has been
//! noted in the status, and leaves that note for a counter once the finalizer is gone. Succeeded pods of an
//! Indexed Job need no note: their index says it all. A failed pod whose index may be tried again keeps its
//! finalizer until its successor is there, because the successor inherits its count of failures.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use api::prelude::*;
use jiff::{SignedDuration, Timestamp};

use super::backoff;
use super::indexes::Indexes;
use super::policy::{self, Verdict};
use crate::pods;

/// Finalizer of pods that have not been counted.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label of a pod's index in an Indexed Job.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Finished pods noted per round, so that the status stays small.
const UNCOUNTED_MAX: usize = 500;
/// Pods created or deleted per round.
const BURST_MAX: usize = 500;

/// A pod to create.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewPod {
    /// Its index in an Indexed Job.
    pub index: Option<i32>,
    /// How many pods of its index have failed before, counted and ignored, where the Job limits that.
    pub failures: Option<(i32, i32)>,
}

/// Something people are told about a Job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whether it is bad news.
    pub warning: bool,
    /// Why, as an identifier.
    pub reason: String,
    /// Why, in words.
    pub message: String,
}

/// One round.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// The new status; to be stored before anything else is done.
    pub status: JobStatus,
    /// Pods to create.
    pub create: Vec<NewPod>,
    /// Pods to delete, by name.
    pub delete: Vec<String>,
    /// Pods whose finalizer can go once the status is stored, by name.
    pub release: Vec<String>,
    /// When to look again.
    pub wait: Option<Duration>,
    /// What has become of the Job in this round.
    pub notices: Vec<Notice>,
}

impl Plan {
    fn notice(&mut self, warning: bool, reason: &str, message: &str) {
        self.notices.push(Notice { warning, reason: reason.into(), message: message.into() });
    }

    fn look_again_in(&mut self, pause: Duration) {
        self.wait = Some(self.wait.map_or(pause, |wait| wait.min(pause)));
    }
}

/// Whether a pod waits to be counted.
pub fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == TRACKING)
}

/// The index of a pod in an Indexed Job.
pub fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok().filter(|index| *index >= 0)
}

/// Whether a condition of a Job is true.
pub fn is(status: &JobStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True")
}

/// Whether the Job has come to its end.
pub fn is_finished(status: &JobStatus) -> bool {
    is(status, "Complete") || is(status, "Failed")
}

/// Sets a condition; tells whether that changed anything.
fn set(status: &mut JobStatus, kind: &str, value: &str, reason: &str, message: &str, now: Timestamp) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    let same = |c: &JobCondition| c.status == value && c.reason.as_deref() == Some(reason);
    let place = conditions.iter().position(|c| c.type_ == kind);
    if place.is_some_and(|place| same(&conditions[place])) {
        return false;
    }
    let condition = JobCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    match place {
        Some(place) => conditions[place] = condition,
        None => conditions.push(condition),
    }
    true
}

/// A Job and its pods at one moment.
struct Round<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    owned: &'a [Arc<Pod>],
    now: Timestamp,
    /// The number of indexes of an Indexed Job.
    indexes: Option<i32>,
    per_index: bool,
    /// Whether pods are replaced only once they have ended, rather than as soon as they are being deleted.
    only_failed: bool,
    active: Vec<&'a Arc<Pod>>,
    leaving: usize,
}

impl<'a> Round<'a> {
    fn new(job: &'a Job, spec: &'a JobSpec, owned: &'a [Arc<Pod>], now: Timestamp) -> Round<'a> {
        let indexed = spec.completion_mode.as_deref() == Some("Indexed");
        Round {
            job,
            spec,
            owned,
            now,
            indexes: indexed.then(|| spec.completions.unwrap_or(0)),
            per_index: indexed && spec.backoff_limit_per_index.is_some(),
            only_failed: spec.pod_replacement_policy.as_deref() == Some("Failed"),
            active: owned.iter().filter(|pod| pods::is_active(pod)).collect(),
            leaving: owned.iter().filter(|pod| pod.is_terminating() && !pods::is_finished(pod)).count(),
        }
    }

    fn has_failed(&self, pod: &Pod) -> bool {
        match pods::phase(pod) {
            "Failed" => true,
            "Succeeded" => false,
            // Pods that nobody runs any more never come to a phase.
            _ => pod.is_terminating() && !self.only_failed,
        }
    }

    /// The index of a pod, if it is one of the Job's.
    fn index(&self, pod: &Pod) -> Option<i32> {
        index_of(pod).filter(|index| self.indexes.is_some_and(|completions| *index < completions))
    }

    /// Whether what becomes of a pod is counted.
    fn counts(&self, pod: &Pod) -> bool {
        self.indexes.is_none() || self.index(pod).is_some()
    }

    fn verdict(&self, pod: &Pod) -> Verdict {
        policy::judge(self.spec.pod_failure_policy.as_ref(), self.per_index, pod)
    }

    fn tracked(&self) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.owned.iter().filter(|pod| is_tracked(pod))
    }

    /// Whether a failed pod ends its index.
    fn fails_index(&self, pod: &Pod) -> bool {
        let limit = self.spec.backoff_limit_per_index.unwrap_or(i32::MAX);
        self.has_failed(pod)
            && match self.verdict(pod) {
                Verdict::Ignore => false,
                Verdict::FailIndex => true,
                Verdict::Count | Verdict::FailJob(_) => backoff::failures_of(pod).0 >= limit,
            }
    }
}

/// What the pods come to.
struct Tally<'a> {
    succeeded: i32,
    failed: i32,
    done: Indexes,
    lost: Option<Indexes>,
    /// By index, the failed pod that waits for its successor.
    waiting: BTreeMap<i32, &'a Arc<Pod>>,
}

fn noted(list: &Option<Vec<String>>, pod: &Pod) -> bool {
    list.iter().flatten().any(|uid| uid == pod.uid())
}

fn length(list: &Option<Vec<String>>) -> i32 {
    list.as_ref().map_or(0, |list| i32::try_from(list.len()).unwrap_or(i32::MAX))
}

fn tally<'a>(round: &Round<'a>, status: &JobStatus, notes: &UncountedTerminatedPods) -> Tally<'a> {
    let fresh =
        |pod: &&&Arc<Pod>| round.counts(pod) && !noted(&notes.succeeded, pod) && !noted(&notes.failed, pod);
    let won = |pod: &&&Arc<Pod>| pods::phase(pod) == "Succeeded";
    let lost = |pod: &&&Arc<Pod>| round.has_failed(pod) && round.verdict(pod) != Verdict::Ignore;
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let new_won = count(round.tracked().filter(|p| fresh(&p) && won(&p)).count());
    let new_lost = count(round.tracked().filter(|p| fresh(&p) && lost(&p)).count());
    let mut tally = Tally {
        succeeded: status.succeeded.unwrap_or(0) + length(&notes.succeeded) + new_won,
        failed: status.failed.unwrap_or(0) + length(&notes.failed) + new_lost,
        done: Indexes::default(),
        lost: None,
        waiting: BTreeMap::new(),
    };
    let Some(completions) = round.indexes else { return tally };
    tally.done = Indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), completions);
    tally.done.extend(round.tracked().filter(won_index).filter_map(|pod| round.index(pod)));
    tally.succeeded = tally.done.len();
    if round.per_index {
        let mut failed = Indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), completions);
        failed
            .extend(round.tracked().filter(|pod| round.fails_index(pod)).filter_map(|pod| round.index(pod)));
        tally.waiting = waiting(round, &tally.done, &failed);
        tally.lost = Some(failed);
    }
    tally
}

fn won_index(pod: &&Arc<Pod>) -> bool {
    pods::phase(pod) == "Succeeded"
}

/// Of each index that may be tried again, the pod that failed last.
fn waiting<'a>(round: &Round<'a>, done: &Indexes, lost: &Indexes) -> BTreeMap<i32, &'a Arc<Pod>> {
    let taken: BTreeSet<i32> = round.active.iter().filter_map(|pod| round.index(pod)).collect();
    let mut waiting: BTreeMap<i32, &Arc<Pod>> = BTreeMap::new();
    for pod in round.tracked().filter(|pod| round.has_failed(pod)) {
        let Some(index) = round.index(pod) else { continue };
        if done.contains(index) || lost.contains(index) || taken.contains(&index) {
            continue;
        }
        let rank = |pod: &Pod| {
            let (counted, ignored) = backoff::failures_of(pod);
            (counted.saturating_add(ignored), backoff::ended_at(pod))
        };
        if waiting.get(&index).is_none_or(|last| rank(last) <= rank(pod)) {
            waiting.insert(index, pod);
        }
    }
    waiting
}

/// Plans one round for a Job with these pods. Where the cache does not show yet what the last round has
/// done, it is not to be `trusted`: nothing is created, and nothing ends.
pub fn plan(job: &Job, owned: &[Arc<Pod>], trusted: bool, now: Timestamp) -> Plan {
    let mut plan = Plan { status: job.status.clone().unwrap_or_default(), ..Default::default() };
    let spec = job.spec.clone().unwrap_or_default();
    let round = Round::new(job, &spec, owned, now);
    if is_finished(&plan.status) {
        plan.release = round.tracked().map(|pod| pod.name().to_owned()).collect();
        return plan;
    }
    let mut notes = plan.status.uncounted_terminated_pods.take().unwrap_or_default();
    settle(&round, &mut plan.status, &mut notes);
    let tally = tally(&round, &plan.status, &notes);
    let suspended = spec.suspend == Some(true);
    if !suspended {
        plan.status.start_time.get_or_insert(Time(now));
    }
    let fate = decide(&round, &tally, &mut plan);
    if fate.is_some() {
        plan.delete = round.active.iter().map(|pod| pod.name().to_owned()).collect();
    } else if trusted && !job.is_terminating() {
        suspension(&mut plan, suspended, now);
        manage(&round, &tally, &mut plan);
    }
    let all_noted = note(&round, &tally, fate.as_ref(), &mut plan, &mut notes);
    let status = &mut plan.status;
    if round.indexes.is_some() {
        status.succeeded = Some(tally.done.len());
        status.completed_indexes = Some(tally.done.to_string()).filter(|text| !text.is_empty());
        status.failed_indexes = tally.lost.as_ref().map(Indexes::to_string);
    }
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    status.active = Some(count(round.active.len())).filter(|n| *n != 0);
    status.terminating = Some(count(round.leaving));
    status.ready = Some(count(round.active.iter().filter(|pod| pods::is_ready(pod)).count()));
    status.succeeded = status.succeeded.filter(|n| *n != 0);
    status.failed = status.failed.filter(|n| *n != 0);
    let quiet = trusted && round.active.is_empty() && round.leaving == 0 && round.tracked().next().is_none();
    let counted = all_noted && notes == UncountedTerminatedPods::default();
    status.uncounted_terminated_pods = Some(notes);
    if let Some(fate) = fate.filter(|_| quiet && counted) {
        finish(&mut plan, &fate, now);
    }
    plan
}

/// Moves notes of pods whose finalizer is gone into the counters.
fn settle(round: &Round<'_>, status: &mut JobStatus, notes: &mut UncountedTerminatedPods) {
    let tracked: BTreeSet<&str> = round.tracked().map(|pod| pod.uid()).collect();
    let gone = |list: &mut Option<Vec<String>>| {
        let (keep, done): (Vec<_>, Vec<_>) =
            list.take().unwrap_or_default().into_iter().partition(|uid| tracked.contains(uid.as_str()));
        *list = Some(keep).filter(|keep| !keep.is_empty());
        i32::try_from(done.len()).unwrap_or(i32::MAX)
    };
    let succeeded = gone(&mut notes.succeeded);
    status.succeeded = Some(status.succeeded.unwrap_or(0).saturating_add(succeeded));
    status.failed = Some(status.failed.unwrap_or(0).saturating_add(gone(&mut notes.failed)));
}

/// How a Job ends: the condition that says so while its pods are still there, and why.
#[derive(Debug, Clone, PartialEq)]
struct Fate {
    won: bool,
    reason: String,
    message: String,
}

impl Fate {
    fn of(won: bool, reason: &str, message: impl Into<String>) -> Fate {
        Fate { won, reason: reason.into(), message: message.into() }
    }
}

/// Decides whether the Job has succeeded or failed, and notes that in its conditions.
fn decide(round: &Round<'_>, tally: &Tally<'_>, plan: &mut Plan) -> Option<Fate> {
    for (kind, won) in [("SuccessCriteriaMet", true), ("FailureTarget", false)] {
        let mut conditions = plan.status.conditions.iter().flatten();
        if let Some(c) = conditions.find(|c| c.type_ == kind && c.status == "True") {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            return Some(Fate { won, reason: text(&c.reason), message: text(&c.message) });
        }
    }
    let fate = failure(round, tally, plan).or_else(|| success(round, tally))?;
    let kind = if fate.won { "SuccessCriteriaMet" } else { "FailureTarget" };
    set(&mut plan.status, kind, "True", &fate.reason, &fate.message, round.now);
    Some(fate)
}

fn failure(round: &Round<'_>, tally: &Tally<'_>, plan: &mut Plan) -> Option<Fate> {
    let spec = round.spec;
    let ends =
        round.owned.iter().filter(|pod| round.has_failed(pod)).find_map(|pod| match round.verdict(pod) {
            Verdict::FailJob(why) => Some(why),
            _ => None,
        });
    if let Some(why) = ends {
        return Some(Fate::of(false, "PodFailurePolicy", why));
    }
    let unlimited = if round.per_index { i32::MAX } else { 6 };
    let limit = spec.backoff_limit.unwrap_or(unlimited);
    if tally.failed > limit || restarted_too_often(round, limit) {
        let message = "Job has reached the specified backoff limit";
        return Some(Fate::of(false, "BackoffLimitExceeded", message));
    }
    let running = plan.status.start_time.as_ref().filter(|_| spec.suspend != Some(true));
    let deadline = spec.active_deadline_seconds.map(SignedDuration::from_secs);
    if let Some((since, deadline)) = running.zip(deadline) {
        let left = deadline - round.now.duration_since(since.0);
        if left <= SignedDuration::ZERO {
            let message = "Job was active longer than specified deadline";
            return Some(Fate::of(false, "DeadlineExceeded", message));
        }
        plan.look_again_in(Duration::try_from(left).unwrap_or_default());
    }
    let lost = tally.lost.as_ref().map_or(0, Indexes::len);
    if lost > spec.max_failed_indexes.unwrap_or(i32::MAX) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return Some(Fate::of(false, "MaxFailedIndexesExceeded", message));
    }
    let all = round.indexes.is_some_and(|all| lost.saturating_add(tally.done.len()) >= all);
    (lost > 0 && all).then(|| Fate::of(false, "FailedIndexes", "Job has failed indexes"))
}

/// Whether containers that are restarted in place have been so more often than allowed.
fn restarted_too_often(round: &Round<'_>, limit: i32) -> bool {
    let template = round.spec.template.spec.as_ref();
    if template.and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let alive = round.owned.iter().filter(|pod| matches!(pods::phase(pod), "Running" | "Pending"));
    let statuses = alive.filter_map(|pod| pod.status.as_ref()).flat_map(|status| {
        let main = status.container_statuses.iter().flatten();
        main.chain(status.init_container_statuses.iter().flatten())
    });
    let restarts = statuses.map(|c| c.restart_count).fold(0, i32::saturating_add);
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

fn success(round: &Round<'_>, tally: &Tally<'_>) -> Option<Fate> {
    if let Some(completions) = round.indexes
        && let Some(message) = policy::succeeded(round.spec.success_policy.as_ref(), completions, &tally.done)
    {
        return Some(Fate::of(true, "SuccessPolicy", message));
    }
    let done = match round.spec.completions {
        Some(wanted) => tally.succeeded >= wanted,
        // Without a number, the first success ends it as soon as the others have ended too.
        None => tally.succeeded > 0 && round.active.is_empty(),
    };
    done.then(|| Fate::of(true, "CompletionsReached", "Reached expected number of succeeded pods"))
}

fn suspension(plan: &mut Plan, suspended: bool, now: Timestamp) {
    if suspended {
        if set(&mut plan.status, "Suspended", "True", "JobSuspended", "Job suspended", now) {
            plan.notice(false, "Suspended", "Job suspended");
        }
    } else if is(&plan.status, "Suspended") {
        set(&mut plan.status, "Suspended", "False", "JobResumed", "Job resumed", now);
        plan.notice(false, "Resumed", "Job resumed");
        // The deadline is for the time a Job runs without a pause.
        plan.status.start_time = Some(Time(now));
    }
}

/// Brings the number of active pods to what it should be.
fn manage(round: &Round<'_>, tally: &Tally<'_>, plan: &mut Plan) {
    let spec = round.spec;
    let active = round.active.len();
    let parallelism = spec.parallelism.unwrap_or(1).max(0);
    let wanted = match spec.completions {
        _ if spec.suspend == Some(true) => 0,
        Some(completions) => (completions - tally.succeeded).clamp(0, parallelism) as usize,
        None if tally.succeeded > 0 => active,
        None => parallelism as usize,
    };
    let mut surplus = surplus(round, active.saturating_sub(wanted));
    surplus.truncate(BURST_MAX);
    if !surplus.is_empty() {
        // What is taken away is neither a success nor a failure.
        plan.delete = surplus.iter().map(|pod| pod.name().to_owned()).collect();
        plan.release = surplus.iter().filter(|p| is_tracked(p)).map(|pod| pod.name().to_owned()).collect();
        return;
    }
    let leaving = if round.only_failed { round.leaving } else { 0 };
    let missing = wanted.saturating_sub(active + leaving).min(BURST_MAX);
    if missing == 0 {
        return;
    }
    if !round.per_index
        && let Some(pause) = backoff::after_failures(round.owned, |pod| round.has_failed(pod), round.now)
    {
        plan.look_again_in(pause);
        return;
    }
    let Some(completions) = round.indexes else {
        plan.create = vec![NewPod::default(); missing];
        return;
    };
    let mut taken = tally.done.clone();
    let present = round.owned.iter().filter(|pod| {
        pods::is_active(pod) || (round.only_failed && pod.is_terminating() && !pods::is_finished(pod))
    });
    taken.extend(present.filter_map(|pod| round.index(pod)));
    let lost = tally.lost.clone().unwrap_or_default();
    let free = taken.merged(&lost).first_missing(missing, completions);
    if !round.per_index {
        plan.create = free.into_iter().map(|i| NewPod { index: Some(i), failures: None }).collect();
        return;
    }
    for index in free {
        let last = tally.waiting.get(&index);
        match last.and_then(|pod| backoff::after_index(pod, round.now)) {
            Some(pause) => plan.look_again_in(pause),
            None => {
                let failures = last.map_or((0, 0), |pod| {
                    let ignored = round.verdict(pod) == Verdict::Ignore;
                    let (counted, skipped) = backoff::failures_of(pod);
                    (counted + i32::from(!ignored), skipped + i32::from(ignored))
                });
                plan.create.push(NewPod { index: Some(index), failures: Some(failures) });
            }
        }
    }
}

/// Active pods to take away: at least so many, and whoever has no index or somebody else's. Those that have
/// come least far go first.
fn surplus<'a>(round: &Round<'a>, at_least: usize) -> Vec<&'a Arc<Pod>> {
    let mut sorted = round.active.clone();
    sorted.sort_by_key(|pod| {
        (pods::is_ready(pod), pods::phase(pod) == "Running", !pods::node_name(pod).is_empty())
    });
    let (mut out, mut left) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for pod in sorted.into_iter().rev() {
        let fits = round.indexes.is_none() || round.index(pod).is_some_and(|index| seen.insert(index));
        if fits { left.push(pod) } else { out.push(pod) }
    }
    let more = at_least.saturating_sub(out.len());
    out.extend(left.into_iter().rev().take(more));
    out
}

/// Notes pods that have ended, and says whose finalizer can go. False where there were too many for one
/// round.
fn note(
    round: &Round<'_>,
    tally: &Tally<'_>,
    fate: Option<&Fate>,
    plan: &mut Plan,
    notes: &mut UncountedTerminatedPods,
) -> bool {
    let dissolve = fate.is_some() || round.job.is_terminating();
    for pod in round.tracked() {
        if noted(&notes.succeeded, pod) || noted(&notes.failed, pod) {
            plan.release.push(pod.name().to_owned());
            continue;
        }
        let (won, failed) = (pods::phase(pod) == "Succeeded", round.has_failed(pod));
        let awaited = round.index(pod).and_then(|index| tally.waiting.get(&index));
        let held = awaited.is_some_and(|last| last.uid() == pod.uid());
        if !dissolve && !won && (!failed || held) {
            continue;
        }
        if length(&notes.succeeded) + length(&notes.failed) >= UNCOUNTED_MAX as i32 {
            return false;
        }
        plan.release.push(pod.name().to_owned());
        if !round.counts(pod) {
            continue;
        }
        if won {
            if round.indexes.is_none() {
                notes.succeeded.get_or_insert_default().push(pod.uid().to_owned());
            }
        } else if (failed || fate.is_some_and(|fate| !fate.won)) && round.verdict(pod) != Verdict::Ignore {
            // A Job that has failed takes whoever is left with it.
            notes.failed.get_or_insert_default().push(pod.uid().to_owned());
        }
    }
    true
}

/// Ends a Job whose fate is decided and whose pods have ended and are counted.
fn finish(plan: &mut Plan, fate: &Fate, now: Timestamp) {
    let kind = if fate.won { "Complete" } else { "Failed" };
    set(&mut plan.status, kind, "True", &fate.reason, &fate.message, now);
    if fate.won {
        plan.status.completion_time = Some(Time(now));
        plan.notice(false, "Completed", "Job completed");
    } else {
        plan.notice(true, &fate.reason, &fate.message);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
