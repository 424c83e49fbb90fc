//! Rounds of Jobs, one after the other.

use super::*;
use serde_json::{Value, json};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn job(spec: Value) -> Job {
    Job::from_value(json!({"metadata": {"name": "j"}, "spec": spec})).unwrap()
}

/// A pod by name, phase and index; tracked unless told otherwise.
fn pod_with(name: &str, phase: &str, index: i32, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
    let mut pod = json!({"metadata": {"name": name, "uid": name, "finalizers": [TRACKING],
        "annotations": {INDEX: index.to_string()}}, "status": {"phase": phase, "conditions": [
        {"type": "Ready", "status": "False", "lastTransitionTime": at(0).to_string()}]}});
    change(&mut pod);
    Arc::new(Pod::from_value(pod).unwrap())
}

fn pod(name: &str, phase: &str, index: i32) -> Arc<Pod> {
    pod_with(name, phase, index, |_| ())
}

fn free(name: &str, phase: &str, index: i32) -> Arc<Pod> {
    pod_with(name, phase, index, |pod| pod["metadata"]["finalizers"] = json!([]))
}

fn next(job: &mut Job, owned: &[Arc<Pod>], seconds: i64) -> Plan {
    let plan = plan(job, owned, true, at(seconds));
    job.status = Some(plan.status.clone());
    plan
}

fn indexes(plan: &Plan) -> Vec<i32> {
    plan.create.iter().filter_map(|new| new.index).collect()
}

fn reason(plan: &Plan, kind: &str) -> String {
    let found = plan.status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True");
    found.and_then(|c| c.reason.clone()).unwrap_or_default()
}

fn failed_with(name: &str, code: i32, index: i32, failures: i32) -> Arc<Pod> {
    pod_with(name, "Failed", index, |pod| {
        pod["metadata"]["annotations"][backoff::FAILURES] = failures.to_string().into();
        pod["status"]["containerStatuses"] = json!([{"name": "c", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": code, "finishedAt": at(0).to_string()}}}]);
    })
}

#[test]
fn a_job_runs_to_completion() {
    let mut j = job(json!({"completions": 2, "parallelism": 1, "template": {}}));
    assert_eq!(next(&mut j, &[], 0).create, [NewPod::default()]);
    assert!(next(&mut j, &[pod("a", "Running", 0)], 1).create.is_empty());
    let noted = next(&mut j, &[pod("a", "Succeeded", 0)], 2);
    assert_eq!(noted.create.len(), 1, "the next may start while the first is being counted");
    assert_eq!(noted.release, ["a"]);
    assert_eq!(j.status.as_ref().unwrap().succeeded, None, "not before the finalizer is gone");
    let both = [free("a", "Succeeded", 0), pod("b", "Succeeded", 0)];
    assert!(next(&mut j, &both, 4).create.is_empty());
    let status = j.status.clone().unwrap();
    assert_eq!(status.succeeded, Some(1));
    assert!(is(&status, "SuccessCriteriaMet") && !is_finished(&status));
    let last = next(&mut j, &[], 5);
    assert!(is(&last.status, "Complete") && last.status.succeeded == Some(2));
    assert_eq!(last.notices[0].reason, "Completed");
    assert!(next(&mut j, &[], 6).notices.is_empty());
}

#[test]
fn nothing_ends_on_what_is_not_seen_yet() {
    let mut j = job(json!({"completions": 1, "activeDeadlineSeconds": 5, "template": {}}));
    next(&mut j, &[], 0);
    let late = plan(&j, &[], false, at(6));
    assert!(is(&late.status, "FailureTarget") && !is_finished(&late.status));
    assert!(is(&next(&mut j, &[], 7).status, "Failed"));
}

#[test]
fn failures_pause_and_end() {
    let mut j = job(json!({"completions": 1, "backoffLimit": 1, "template": {}}));
    let paused = next(&mut j, &[pod("a", "Failed", 0)], 4);
    assert_eq!((paused.create.len(), paused.wait), (0, Some(Duration::from_secs(6))));
    let two = [free("a", "Failed", 0), pod("b", "Failed", 0)];
    assert!(is(&next(&mut j, &two, 20).status, "FailureTarget"));
    let failed = next(&mut j, &[], 21);
    let message = "Job has reached the specified backoff limit".to_owned();
    assert_eq!(failed.notices, [Notice { warning: true, reason: "BackoffLimitExceeded".into(), message }]);
}

#[test]
fn indexes_and_deadlines() {
    let mut j = job(json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed",
        "activeDeadlineSeconds": 30, "template": {}}));
    assert_eq!(indexes(&next(&mut j, &[], 0)), [0, 1, 2]);
    let owned = [pod("a", "Succeeded", 1), pod("b", "Running", 0)];
    let round = next(&mut j, &owned, 1);
    assert_eq!((indexes(&round), round.status.completed_indexes.as_deref()), (vec![2], Some("1")));
    assert_eq!(round.wait, Some(Duration::from_secs(29)));
    let late = next(&mut j, &owned[1..], 30);
    assert_eq!(reason(&late, "FailureTarget"), "DeadlineExceeded");
    assert_eq!((late.delete, late.release), (vec!["b".to_owned()], vec!["b".to_owned()]));
    assert_eq!(next(&mut j, &[], 31).status.failed, Some(1), "who was left failed with the Job");
}

#[test]
fn what_is_taken_away_is_not_counted() {
    let mut j = job(json!({"parallelism": 1, "completions": 4, "template": {}}));
    let owned = [pod("a", "Pending", 0), pod("b", "Running", 0)];
    let fewer = next(&mut j, &owned, 0);
    assert_eq!((&fewer.delete, &fewer.release), (&vec!["a".to_owned()], &vec!["a".to_owned()]));
    j.spec.as_mut().unwrap().suspend = Some(true);
    let paused = next(&mut j, &owned, 1);
    assert_eq!((paused.delete.len(), paused.notices[0].reason.as_str()), (2, "Suspended"));
    assert_eq!(next(&mut j, &[], 2).status.failed, None);
    j.spec.as_mut().unwrap().suspend = Some(false);
    let resumed = next(&mut j, &[], 50);
    assert_eq!(resumed.notices[0].reason, "Resumed");
    assert_eq!((resumed.status.start_time, resumed.create.len()), (Some(Time(at(50))), 1));
}

#[test]
fn pods_are_replaced_when_the_policy_says() {
    let leaving = |name: &str| {
        pod_with(name, "Running", 0, |pod| {
            pod["metadata"]["deletionTimestamp"] = at(0).to_string().into();
        })
    };
    let mut eager = job(json!({"completions": 1, "parallelism": 1, "template": {}}));
    let round = next(&mut eager, &[leaving("a")], 30);
    assert_eq!(
        (round.create.len(), round.status.uncounted_terminated_pods.unwrap().failed),
        (1, Some(vec!["a".into()]))
    );
    let mut patient =
        job(json!({"completions": 1, "parallelism": 1, "podReplacementPolicy": "Failed", "template": {}}));
    let round = next(&mut patient, &[leaving("a")], 30);
    assert_eq!((round.create.len(), round.release.len(), round.status.terminating), (0, 0, Some(1)));
    let ended = next(&mut patient, &[pod("a", "Failed", 0)], 31);
    assert_eq!((ended.create.len(), ended.release), (1, vec!["a".to_owned()]));
}

#[test]
fn a_policy_ends_the_job_or_ignores() {
    let policy = |action: &str| {
        json!({"completions": 1, "backoffLimit": 0, "template": {}, "podFailurePolicy": {"rules": [
        {"action": action, "onExitCodes": {"operator": "In", "values": [42]}}]}})
    };
    let mut j = job(policy("FailJob"));
    let owned = [failed_with("a", 42, 0, 0), pod("b", "Running", 0)];
    let failing = next(&mut j, &owned, 1);
    assert_eq!(reason(&failing, "FailureTarget"), "PodFailurePolicy");
    assert_eq!((failing.delete, failing.release.len()), (vec!["b".to_owned()], 2));
    let failed = next(&mut j, &[], 2);
    assert_eq!((reason(&failed, "Failed").as_str(), failed.status.failed), ("PodFailurePolicy", Some(2)));
    let mut j = job(policy("Ignore"));
    let ignored = next(&mut j, &[failed_with("a", 42, 0, 0)], 60);
    assert_eq!(
        (ignored.create.len(), ignored.release.len(), reason(&ignored, "FailureTarget").as_str()),
        (1, 1, "")
    );
    assert_eq!(next(&mut j, &[], 61).status.failed, None);
}

#[test]
fn indexes_fail_one_by_one() {
    let spec = json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1,
        "template": {}});
    let mut j = job(spec.clone());
    let first = [failed_with("a", 1, 0, 0), pod("b", "Running", 1)];
    let pausing = next(&mut j, &first, 1);
    assert_eq!(
        (pausing.wait, pausing.release.len()),
        (Some(Duration::from_secs(9)), 0),
        "its successor inherits"
    );
    let again = next(&mut j, &first, 11);
    assert_eq!(again.create, [NewPod { index: Some(0), failures: Some((1, 0)) }]);
    let replaced = next(&mut j, &[first[0].clone(), pod("c", "Running", 0), pod("b", "Succeeded", 1)], 12);
    assert_eq!(replaced.release, ["a", "b"]);
    let lost = next(&mut j, &[failed_with("c", 1, 0, 1)], 13);
    assert_eq!(lost.status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(reason(&lost, "FailureTarget"), "FailedIndexes");
    let end = next(&mut j, &[], 14);
    assert_eq!((end.status.failed, end.status.succeeded), (Some(2), Some(1)));
    assert!(is(&end.status, "Failed"));

    let mut limited = job(spec);
    let spec = limited.spec.as_mut().unwrap();
    (spec.completions, spec.max_failed_indexes) = (Some(4), Some(0));
    let over = next(&mut limited, &[failed_with("c", 1, 0, 1)], 13);
    assert_eq!(reason(&over, "FailureTarget"), "MaxFailedIndexesExceeded");
}

#[test]
fn a_success_policy_ends_it_early() {
    let mut j = job(json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "template": {},
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]}}));
    let met = next(&mut j, &[pod("a", "Succeeded", 0), pod("b", "Running", 1), pod("c", "Pending", 2)], 1);
    assert_eq!(reason(&met, "SuccessCriteriaMet"), "SuccessPolicy");
    assert_eq!((met.delete.len(), met.release.len()), (2, 3));
    let end = next(&mut j, &[], 2);
    assert_eq!(
        (reason(&end, "Complete").as_str(), end.status.failed, end.status.succeeded),
        ("SuccessPolicy", None, Some(1))
    );
}

#[test]
fn restarts_in_place_count_too() {
    let mut j = job(json!({"completions": 1, "backoffLimit": 2,
        "template": {"spec": {"restartPolicy": "OnFailure", "containers": []}}}));
    let restarted = |n: i32| {
        pod_with("a", "Running", 0, |pod| {
            pod["status"]["containerStatuses"] =
                json!([{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": n}]);
        })
    };
    assert_eq!(reason(&next(&mut j, &[restarted(1)], 1), "FailureTarget"), "");
    assert_eq!(reason(&next(&mut j, &[restarted(2)], 1), "FailureTarget"), "BackoffLimitExceeded");
}

#[test]
fn a_job_that_goes_lets_its_pods_go() {
    let mut j = job(json!({"completions": 2, "parallelism": 2, "template": {}}));
    j.metadata.deletion_timestamp = Some(Time(at(0)));
    let round = next(&mut j, &[pod("a", "Running", 0)], 1);
    assert_eq!((round.create.len(), round.delete.len(), round.release), (0, 0, vec!["a".to_owned()]));
}

#[test]
fn doubles_and_strangers_among_indexes_go() {
    let mut j = job(json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "template": {}}));
    let owned =
        [pod("a", "Running", 0), pod("b", "Pending", 0), pod("c", "Running", 7), pod("d", "Running", 1)];
    let mut gone = next(&mut j, &owned, 0).delete;
    gone.sort();
    assert_eq!(gone, ["b", "c"]);
}
