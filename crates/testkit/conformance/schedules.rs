//! \[sig-apps\] CronJobs.

use std::time::Duration;

use anyhow::ensure;
use client::{DeleteParams, EventKind, Patch, WatchParams};
use serde_json::{Value, json};
use testkit::pods::container;
use testkit::{Case, Scope};

fn cron(name: &str, schedule: &str, policy: &str, seconds: u32) -> Value {
    let script = format!("sleep {seconds}");
    json!({"kind": "CronJob", "metadata": {"name": name, "labels": {"special-label": name}}, "spec": {
        "schedule": schedule, "concurrencyPolicy": policy,
        "jobTemplate": {"spec": {"parallelism": 1, "completions": 1, "template": {"spec": {
            "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 0,
            "containers": [container("c", &script)]}}}}}})
}

fn active(s: &Scope<'_>, name: &str, n: usize) -> anyhow::Result<Value> {
    s.wait_any("cronjobs", name, &format!("{n} active jobs"), |v| {
        v["status"]["active"].as_array().map_or(0, Vec::len) == n
    })
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-apps] CronJob should schedule multiple jobs concurrently [Conformance]",
            run: |s| {
                s.create("cronjobs", cron("concurrent", "*/1 * * * ?", "Allow", 300))?;
                active(s, "concurrent", 1)?;
                active(s, "concurrent", 2)?;
                let jobs = s.list("jobs", "")?;
                ensure!(jobs.iter().filter(|j| j["status"]["completionTime"].is_null()).count() == 2);
                let stamp =
                    &jobs[0]["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"];
                ensure!(stamp.as_str().is_some_and(|t| t.ends_with(":00Z")), "{stamp}");
                s.delete("cronjobs", "concurrent", &DeleteParams::default())?;
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] CronJob should not schedule jobs when suspended [Slow] [Conformance]",
            run: |s| {
                let mut suspended = cron("suspended", "*/1 * * * ?", "Allow", 300);
                suspended["spec"]["suspend"] = true.into();
                s.create("cronjobs", suspended)?;
                // A full minute passes without a run.
                std::thread::park_timeout(Duration::from_secs(62));
                ensure!(s.list("jobs", "")?.is_empty());
                s.delete("cronjobs", "suspended", &DeleteParams::default())?;
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] CronJob should not schedule new jobs when ForbidConcurrent [Slow] [Conformance]",
            run: |s| {
                s.create("cronjobs", cron("forbid", "*/1 * * * ?", "Forbid", 300))?;
                let running = active(s, "forbid", 1)?;
                s.wait_any("events", "", "the refusal", |e| e["reason"] == "JobAlreadyActive")?;
                let later = s.get("cronjobs", "forbid")?;
                ensure!(later["status"]["active"] == running["status"]["active"]);
                ensure!(s.list("jobs", "")?.len() == 1);
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] CronJob should replace jobs when ReplaceConcurrent [Conformance]",
            run: |s| {
                s.create("cronjobs", cron("replace", "*/1 * * * ?", "Replace", 300))?;
                let first = active(s, "replace", 1)?["status"]["active"][0]["name"].clone();
                s.wait_any("cronjobs", "replace", "the next job", |v| {
                    v["status"]["active"].as_array().is_some_and(|a| a.len() == 1 && a[0]["name"] != first)
                })?;
                s.wait_gone("jobs", first.as_str().unwrap_or_default())
            },
        },
        Case {
            name: "[sig-apps] CronJob should support CronJob API operations [Conformance]",
            run: |s| operations(s),
        },
    ]
}

fn operations(s: &Scope<'_>) -> anyhow::Result<()> {
    // Once a year: nothing runs meanwhile.
    let template = |name: &str| cron(name, "0 0 1 1 *", "Allow", 1);
    let created = s.create("cronjobs", template("a"))?;
    s.create("cronjobs", template("b"))?;
    let mut other = template("c");
    other["metadata"]["labels"]["special-label"] = "a".into();
    s.create("cronjobs", other)?;
    let all = s.path("/apis/batch/v1/cronjobs")?;
    ensure!(all["items"].as_array().is_some_and(|items| items.len() >= 3));
    ensure!(s.list("cronjobs", "special-label=a")?.len() == 2);
    let version = created["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let mut watch = s.watch(
        "cronjobs",
        &WatchParams {
            field_selector: "metadata.name=a".into(),
            resource_version: version,
            ..Default::default()
        },
    )?;
    let patched = s.patch(
        "cronjobs",
        "a",
        "",
        &Patch::Merge(json!({"metadata": {"annotations": {"patched": "true"}}})),
    )?;
    ensure!(patched["metadata"]["annotations"]["patched"] == "true");
    let mut object = s.get("cronjobs", "a")?;
    object["metadata"]["annotations"]["updated"] = "true".into();
    s.update("cronjobs", &object)?;
    for expected in ["patched", "updated"] {
        let (kind, seen) = s.next(&mut watch)?;
        ensure!(kind == EventKind::Modified && seen["metadata"]["annotations"][expected] == "true", "{seen}");
    }
    let path = format!("/apis/batch/v1/namespaces/{}/cronjobs/a/status", s.namespace);
    let when = "2026-01-02T03:04:05Z";
    let patch =
        json!({"metadata": {"annotations": {"patchedstatus": "true"}}, "status": {"lastScheduleTime": when}});
    let status = s.merge("cronjobs", "a", "status", patch)?;
    ensure!(
        status["status"]["lastScheduleTime"] == when
            && status["metadata"]["annotations"]["patchedstatus"] == "true"
    );
    let mut status = s.path(&path)?;
    let later = "2026-01-03T03:04:05Z";
    status["status"]["lastScheduleTime"] = later.into();
    let put = s.send(http::Method::PUT, &path, &status)?;
    ensure!(put["status"]["lastScheduleTime"] == later, "{put}");
    s.delete("cronjobs", "a", &DeleteParams::default())?;
    s.wait_gone("cronjobs", "a")?;
    s.delete_all("cronjobs", "special-label=a")?;
    s.wait_gone("cronjobs", "c")?;
    ensure!(s.list("cronjobs", "")?.len() == 1);
    Ok(())
}
