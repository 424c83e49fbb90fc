//! When a CronJob runs next, whether it runs now, and which of its Jobs are old enough to go.

use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::batch::v1::{CronJob, CronJobStatus};
use api::prelude::*;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use meta::cron::Schedule;
use reconcile::{EventType, object_reference};

/// When a scheduled time was in the CronJob's own zone.
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Missed times beyond which a warning is due: a clock that jumped, or a schedule that never could be kept.
const MISSED_MAX: u64 = 100;
/// Times looked at one by one between two runs; more are counted by dividing.
const STEPPED_MAX: u64 = 1000;
/// Added to the time of the next look, so that clocks that differ a little agree that it has come.
const SLACK: Duration = Duration::from_millis(100);

/// An event to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note(pub EventType, pub &'static str, pub String);

/// One round.
#[derive(Debug, Default)]
pub struct Plan {
    /// Events, in order.
    pub notes: Vec<Note>,
    /// The status before anything is started.
    pub status: CronJobStatus,
    /// Finished Jobs beyond the history limits.
    pub expire: Vec<Arc<Job>>,
    /// Running Jobs that make place for the next.
    pub replace: Vec<ObjectReference>,
    /// The time a Job is to be started for.
    pub start: Option<Timestamp>,
    /// Time until the next look.
    pub wait: Option<Duration>,
}

/// `Complete` or `Failed`, if the Job has ended.
pub fn end_of(job: &Job) -> Option<&'static str> {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.filter(|c| c.status == "True").find_map(|c| match c.type_.as_str() {
        "Complete" => Some("Complete"),
        "Failed" => Some("Failed"),
        _ => None,
    })
}

/// The status after a look at the Jobs.
fn observe(cron: &CronJob, jobs: &[Arc<Job>], plan: &mut Plan) {
    let mut active = plan.status.active.take().unwrap_or_default();
    let listed = |active: &[ObjectReference], uid: &str| active.iter().any(|a| a.uid.as_deref() == Some(uid));
    for job in jobs {
        let Some(end) = end_of(job) else {
            if !listed(&active, job.uid()) {
                let text = format!("Saw a job that the controller did not create or forgot: {}", job.name());
                plan.notes.push(Note(EventType::Warning, "UnexpectedJob", text));
            }
            continue;
        };
        if listed(&active, job.uid()) {
            active.retain(|a| a.uid.as_deref() != Some(job.uid()));
            let text = format!("Saw completed job: {}, condition: {end}", job.name());
            plan.notes.push(Note(EventType::Normal, "SawCompletedJob", text));
        }
        let completed = job.status.as_ref().and_then(|s| s.completion_time.clone());
        if end == "Complete"
            && let Some(completed) = completed
        {
            let last = plan.status.last_successful_time.get_or_insert_with(|| completed.clone());
            if completed.0 > last.0 {
                *last = completed;
            }
        }
    }
    active.retain(|reference| {
        let there = jobs.iter().any(|job| Some(job.uid()) == reference.uid.as_deref());
        if !there {
            let text = format!("Active job went missing: {}", reference.name.as_deref().unwrap_or_default());
            plan.notes.push(Note(EventType::Normal, "MissingJob", text));
        }
        there
    });
    for (end, limit) in [
        ("Complete", cron.spec.successful_jobs_history_limit),
        ("Failed", cron.spec.failed_jobs_history_limit),
    ] {
        let mut ended: Vec<&Arc<Job>> = jobs.iter().filter(|job| end_of(job) == Some(end)).collect();
        let started = |job: &Job| job.status.as_ref().and_then(|s| s.start_time.as_ref().map(|t| t.0));
        ended.sort_by(|a, b| started(a).cmp(&started(b)).then_with(|| a.name().cmp(b.name())));
        let keep = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(0));
        let excess = ended.len().saturating_sub(keep);
        plan.expire.extend(ended.into_iter().take(excess).filter(|j| !j.is_terminating()).cloned());
    }
    plan.status.active = Some(active).filter(|a| !a.is_empty());
}

/// The schedule in its zone, or the event that says what is wrong with it.
fn schedule_of(cron: &CronJob) -> Result<(Schedule, TimeZone), Note> {
    let named = cron.spec.time_zone.as_deref();
    let zone = named.map(meta::cron::time_zone).transpose().map_err(|error| {
        let text = format!("invalid timeZone: {:?}: {error}", named.unwrap_or_default());
        Note(EventType::Warning, "UnknownTimeZone", text)
    })?;
    let (schedule, own) = meta::cron::parse(&cron.spec.schedule).map_err(|error| {
        let text = format!("unparseable schedule: {:?} : {error}", cron.spec.schedule);
        Note(EventType::Warning, "UnparseableSchedule", text)
    })?;
    Ok((schedule, zone.or(own).unwrap_or(TimeZone::UTC)))
}

/// The most recent time that has passed without a run, and how many there were.
fn most_recent(
    schedule: &Schedule,
    zone: &TimeZone,
    earliest: Timestamp,
    now: Timestamp,
) -> Option<(Timestamp, u64)> {
    let first = schedule.next(earliest, zone).filter(|first| *first <= now)?;
    let (mut latest, mut count) = (first, 1);
    while let Some(next) = schedule.next(latest, zone).filter(|next| *next <= now) {
        count += 1;
        if count > STEPPED_MAX {
            // Too many to count one by one: jump close to the end by their average distance.
            let apart = next.duration_since(first) / i32::try_from(count - 1).unwrap_or(i32::MAX);
            let near = now.checked_sub(apart * 10).unwrap_or(next).max(next);
            let mut latest = schedule.next(near, zone).filter(|t| *t <= now).unwrap_or(next);
            while let Some(next) = schedule.next(latest, zone).filter(|next| *next <= now) {
                latest = next;
            }
            return Some((latest, count));
        }
        latest = next;
    }
    Some((latest, count))
}

fn since(cron: &CronJob, now: Timestamp, with_deadline: bool) -> Timestamp {
    let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref()).map(|t| t.0);
    let earliest = last.unwrap_or(created);
    match cron.spec.starting_deadline_seconds.filter(|_| with_deadline) {
        Some(deadline) => {
            earliest.max(now.checked_sub(SignedDuration::from_secs(deadline)).unwrap_or(earliest))
        }
        None => earliest,
    }
}

/// Plans one round.
pub fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let mut plan = Plan { status: cron.status.clone().unwrap_or_default(), ..Default::default() };
    observe(cron, jobs, &mut plan);
    if cron.is_terminating() || cron.spec.suspend == Some(true) {
        return plan;
    }
    let (schedule, zone) = match schedule_of(cron) {
        Ok(found) => found,
        Err(note) => {
            plan.notes.push(note);
            return plan;
        }
    };
    let next = schedule.next(now, &zone);
    let wait = next.map(|next| Duration::try_from(next.duration_since(now)).unwrap_or_default() + SLACK);
    plan.wait = wait;
    let Some((scheduled, missed)) = most_recent(&schedule, &zone, since(cron, now, true), now) else {
        return plan;
    };
    if missed > MISSED_MAX {
        let text =
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.notes.push(Note(EventType::Warning, "TooManyMissedTimes", text.into()));
    }
    decide(cron, scheduled, now, &mut plan);
    plan
}

/// Whether a Job is started for a time that has come.
fn decide(cron: &CronJob, scheduled: Timestamp, now: Timestamp, plan: &mut Plan) {
    let late = now.duration_since(scheduled);
    if cron.spec.starting_deadline_seconds.is_some_and(|limit| late > SignedDuration::from_secs(limit)) {
        let when = scheduled.strftime("%a, %d %b %Y %H:%M:%S +0000");
        let text = format!("Missed scheduled time to start a job: {when}");
        plan.notes.push(Note(EventType::Warning, "MissSchedule", text));
        return;
    }
    let active = plan.status.active.clone().unwrap_or_default();
    let name = job_name(cron, scheduled);
    let started = plan.status.last_schedule_time.as_ref().map(|t| t.0) == Some(scheduled);
    if started || active.iter().any(|a| a.name.as_deref() == Some(&name)) {
        return;
    }
    match cron.spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.notes.push(Note(EventType::Normal, "JobAlreadyActive", text.into()));
            return;
        }
        Some("Replace") => plan.replace = active,
        _ => {}
    }
    plan.start = Some(scheduled);
}

/// The name of the Job for a time: the same however often it is tried.
pub fn job_name(cron: &CronJob, scheduled: Timestamp) -> String {
    format!("{}-{}", cron.name(), scheduled.as_second() / 60)
}

/// The Job for a time.
pub fn job(cron: &CronJob, scheduled: Timestamp) -> Job {
    let template = cron.spec.job_template.clone();
    let source = template.metadata.unwrap_or_default();
    let mut annotations = source.annotations.unwrap_or_default();
    let zone = cron.spec.time_zone.as_deref().and_then(|name| meta::cron::time_zone(name).ok());
    let local = scheduled.to_zoned(zone.unwrap_or(TimeZone::UTC));
    let shown = if local.offset().is_zero() {
        local.strftime("%Y-%m-%dT%H:%M:%SZ")
    } else {
        local.strftime("%Y-%m-%dT%H:%M:%S%:z")
    };
    annotations.insert(SCHEDULED_AT.into(), shown.to_string());
    let metadata = ObjectMeta {
        name: Some(job_name(cron, scheduled)),
        namespace: cron.metadata.namespace.clone(),
        labels: source.labels,
        annotations: Some(annotations),
        owner_references: Some(vec![crate::owners::controller_reference(&CronJob::GVK, &cron.metadata)]),
        ..Default::default()
    };
    Job { metadata, spec: template.spec, status: None }
}

/// How the status names a Job.
pub fn reference(job: &Job) -> ObjectReference {
    object_reference(job)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn cron(change: Value, status: Value) -> CronJob {
        let mut spec = json!({"schedule": "0 * * * *", "jobTemplate": {"metadata": {"labels": {"a": "b"}}},
            "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0});
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let metadata =
            json!({"name": "c", "namespace": "n", "uid": "c", "creationTimestamp": "2026-01-01T00:30:00Z"});
        CronJob::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
    }

    fn job_of(name: &str, end: &str, started: &str) -> Arc<Job> {
        let conditions = if end.is_empty() { json!([]) } else { json!([{"type": end, "status": "True"}]) };
        let done = (end == "Complete").then_some(started);
        Arc::new(
            Job::from_value(json!({"metadata": {"name": name, "uid": name}, "status": {
                "conditions": conditions, "startTime": started, "completionTime": done}}))
            .unwrap(),
        )
    }

    fn reasons(plan: &Plan) -> Vec<&str> {
        plan.notes.iter().map(|n| n.1).collect()
    }

    #[test]
    fn times_come() {
        let before = plan(&cron(json!({}), json!({})), &[], at("2026-01-01T00:59:00Z"));
        assert_eq!((before.start, before.wait), (None, Some(Duration::from_millis(60_100))));
        let due = plan(&cron(json!({}), json!({})), &[], at("2026-01-01T01:00:00Z"));
        assert_eq!(due.start, Some(at("2026-01-01T01:00:00Z")));
        let done = json!({"lastScheduleTime": "2026-01-01T01:00:00Z"});
        assert_eq!(plan(&cron(json!({}), done), &[], at("2026-01-01T01:00:05Z")).start, None);
        let late =
            plan(&cron(json!({"startingDeadlineSeconds": 10}), json!({})), &[], at("2026-01-01T01:00:20Z"));
        assert_eq!((late.start, reasons(&late).len()), (None, 0), "outside of the window nothing was missed");
        let many = plan(&cron(json!({}), json!({})), &[], at("2026-02-01T00:10:00Z"));
        assert_eq!(
            (many.start, reasons(&many)),
            (Some(at("2026-02-01T00:00:00Z")), vec!["TooManyMissedTimes"])
        );
        let ages = plan(&cron(json!({"schedule": "* * * * *"}), json!({})), &[], at("2036-02-01T00:10:00Z"));
        assert_eq!(ages.start, Some(at("2036-02-01T00:10:00Z")));
        let suspended = plan(&cron(json!({"suspend": true}), json!({})), &[], at("2026-01-01T01:00:00Z"));
        assert_eq!((suspended.start, suspended.wait), (None, None));
        let bad = plan(&cron(json!({"timeZone": "X"}), json!({})), &[], at("2026-01-01T01:00:00Z"));
        assert_eq!(bad.notes[0].2, "invalid timeZone: \"X\": unknown time zone X");
    }

    #[test]
    fn policies() {
        let status = json!({"active": [{"name": "c-1", "uid": "c-1"}]});
        let running = [job_of("c-1", "", "2026-01-01T00:00:00Z")];
        let due = |policy: &str| {
            plan(
                &cron(json!({"concurrencyPolicy": policy}), status.clone()),
                &running,
                at("2026-01-01T01:00:00Z"),
            )
        };
        assert!(due("Allow").start.is_some());
        assert_eq!((due("Forbid").start, reasons(&due("Forbid"))), (None, vec!["JobAlreadyActive"]));
        assert_eq!(due("Replace").replace.len(), 1);
    }

    #[test]
    fn jobs_are_observed_and_expire() {
        let status = json!({"active": [{"name": "x", "uid": "x"}, {"name": "gone", "uid": "gone"}]});
        let jobs = [
            job_of("x", "Complete", "2026-01-01T00:10:00Z"),
            job_of("y", "Complete", "2026-01-01T00:20:00Z"),
            job_of("z", "Failed", "2026-01-01T00:20:00Z"),
            job_of("w", "", "2026-01-01T00:20:00Z"),
        ];
        let plan = plan(&cron(json!({}), status), &jobs, at("2026-01-01T00:40:00Z"));
        assert_eq!(reasons(&plan), ["SawCompletedJob", "UnexpectedJob", "MissingJob"]);
        assert_eq!(plan.expire.iter().map(|j| j.name()).collect::<Vec<_>>(), ["x", "z"]);
        assert_eq!(plan.status.active, None);
        assert_eq!(plan.status.last_successful_time, Some(Time(at("2026-01-01T00:20:00Z"))));
    }

    #[test]
    fn jobs_know_their_time() {
        let job = job(&cron(json!({"timeZone": "Asia/Kolkata"}), json!({})), at("2026-01-01T01:00:00Z"));
        assert_eq!(job.name(), "c-29453820");
        assert_eq!(job.metadata.annotations.unwrap()[SCHEDULED_AT], "2026-01-01T06:30:00+05:30");
        assert_eq!(job.metadata.labels.unwrap()["a"], "b");
    }
}
