//! \[sig-apps\] CronJobs.

use std::time::Duration;

use anyhow::ensure;
use client::DeleteParams;
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
    ]
}
