//! \[sig-apps\] Policies of Jobs; updates of DaemonSets and Deployments that take turns.

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};
use testkit::image::BUSYBOX;
use testkit::pods::{condition, container};
use testkit::{Case, Scope};

fn job(s: &Scope<'_>, script: &str, spec: Value) -> anyhow::Result<()> {
    let mut job = json!({"kind": "Job", "metadata": {"name": "j"}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container("c", script)]}}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        job["spec"][key] = value.clone();
    }
    s.create("jobs", job)?;
    Ok(())
}

/// Waits for the end of the Job and looks why.
fn ends(s: &Scope<'_>, kind: &str, reason: &str) -> anyhow::Result<Value> {
    let job = s.wait_any("jobs", "j", kind, |j| condition(j, kind))?;
    let of = |kind: &str| {
        let mut all = job["status"]["conditions"].as_array().into_iter().flatten();
        all.find(|c| c["type"] == kind && c["status"] == "True").map(|c| c["reason"].clone())
    };
    let interim = if kind == "Complete" { "SuccessCriteriaMet" } else { "FailureTarget" };
    ensure!(of(kind) == Some(reason.into()) && of(interim) == Some(reason.into()), "{}", job["status"]);
    Ok(job["status"].clone())
}

fn exit_code(s: &Scope<'_>) -> anyhow::Result<()> {
    let rule =
        json!({"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [42]}});
    let spec =
        json!({"parallelism": 1, "completions": 2, "backoffLimit": 6, "podFailurePolicy": {"rules": [rule]}});
    job(s, "exit 42", spec)?;
    let status = ends(s, "Failed", "PodFailurePolicy")?;
    ensure!(status["failed"] == 1, "{status}");
    let job = s.get("jobs", "j")?;
    let told = job["status"]["conditions"].to_string();
    ensure!(told.contains("failed with exit code 42 matching FailJob rule at index 0"), "{told}");
    ensure!(job["spec"]["podReplacementPolicy"] == "Failed", "{job}");
    Ok(())
}

/// A pod that is evicted leaves no trace in the counts, though one failure would end the Job.
fn disruption(s: &Scope<'_>) -> anyhow::Result<()> {
    let rule =
        json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]});
    let spec =
        json!({"parallelism": 1, "completions": 1, "backoffLimit": 0, "podFailurePolicy": {"rules": [rule]}});
    job(s, "trap 'exit 1' TERM; sleep 600 & wait", spec)?;
    let first = s.wait_any("pods", "", "a ready pod", |p| condition(p, "Ready"))?;
    let name = first["metadata"]["name"].as_str().context("a name")?;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": s.namespace}});
    s.send(Method::POST, &format!("/api/v1/namespaces/{}/pods/{name}/eviction", s.namespace), &eviction)?;
    s.wait_gone("pods", name)?;
    let next = s.wait_any("pods", "", "its successor", |p| condition(p, "Ready"))?;
    ensure!(next["metadata"]["uid"] != first["metadata"]["uid"]);
    let job = s.get("jobs", "j")?;
    ensure!(job["status"]["failed"].is_null() && !condition(&job, "FailureTarget"), "{job}");
    Ok(())
}

const EVEN_FAILS: &str = "exit $((1 - JOB_COMPLETION_INDEX % 2))";

fn per_index(s: &Scope<'_>) -> anyhow::Result<()> {
    let spec =
        json!({"parallelism": 2, "completions": 4, "completionMode": "Indexed", "backoffLimitPerIndex": 1});
    job(s, EVEN_FAILS, spec)?;
    let status = ends(s, "Failed", "FailedIndexes")?;
    ensure!(status["failedIndexes"] == "0,2" && status["completedIndexes"] == "1,3", "{status}");
    ensure!(status["failed"] == 4 && status["succeeded"] == 2, "{status}");
    Ok(())
}

fn too_many_indexes(s: &Scope<'_>) -> anyhow::Result<()> {
    let spec = json!({"parallelism": 4, "completions": 4, "completionMode": "Indexed", "backoffLimitPerIndex": 0,
        "maxFailedIndexes": 1});
    job(s, "exit 1", spec)?;
    let status = ends(s, "Failed", "MaxFailedIndexesExceeded")?;
    ensure!(
        status["succeeded"].is_null() && status["failedIndexes"].as_str().is_some_and(|t| t.len() >= 3),
        "{status}"
    );
    Ok(())
}

fn fail_index(s: &Scope<'_>) -> anyhow::Result<()> {
    let rule = json!({"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1]}});
    let spec = json!({"parallelism": 2, "completions": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 3,
        "podFailurePolicy": {"rules": [rule]}});
    job(s, EVEN_FAILS, spec)?;
    let status = ends(s, "Failed", "FailedIndexes")?;
    ensure!(status["failedIndexes"] == "0" && status["failed"] == 1 && status["succeeded"] == 1, "{status}");
    Ok(())
}

fn success(s: &Scope<'_>, script: &str, rule: Value, indexes: &str) -> anyhow::Result<()> {
    let spec = json!({"parallelism": 2, "completions": 2, "completionMode": "Indexed",
        "successPolicy": {"rules": [rule]}});
    job(s, script, spec)?;
    let status = ends(s, "Complete", "SuccessPolicy")?;
    ensure!(status["completedIndexes"] == indexes && status["ready"] == 0, "{status}");
    Ok(())
}

const FIRST_ENDS: &str = "test $JOB_COMPLETION_INDEX = 0 || sleep 600";

fn workload(kind: &str, name: &str, image: &str) -> Value {
    let labels = json!({"app": name});
    json!({"kind": kind, "metadata": {"name": name}, "spec": {"selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": image, "command": ["sleep", "600"]}]}}}})
}

fn image(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [
        {"name": "c", "image": image, "command": ["sleep", "600"]}]}}}})
}

/// An update to an image that is not there is undone; the pod that served all along is not restarted.
fn rollback(s: &Scope<'_>) -> anyhow::Result<()> {
    let mut set = workload("DaemonSet", "ds", BUSYBOX);
    set["spec"]["updateStrategy"] =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
    s.create("daemonsets", set)?;
    s.wait_any("daemonsets", "ds", "an available pod", |d| d["status"]["numberAvailable"] == 1)?;
    let first = s.list("pods", "app=ds")?;
    s.merge("daemonsets", "ds", "", image("none.invalid/x:1"))?;
    s.wait_any("pods", "", "a pod of the new template", |p| {
        p["metadata"]["labels"]["app"] == "ds" && p["spec"]["containers"][0]["image"] == "none.invalid/x:1"
    })?;
    s.kubectl(&["rollout", "undo", "daemonset/ds"])?;
    s.kubectl(&["rollout", "status", "daemonset/ds", "--timeout=60s"])?;
    let left = s.list("pods", "app=ds")?;
    let old = left.iter().find(|p| p["metadata"]["uid"] == first[0]["metadata"]["uid"]);
    let old = old.context("the pod that served is gone")?;
    ensure!(old["status"]["containerStatuses"][0]["restartCount"] == 0 && condition(old, "Ready"), "{old}");
    Ok(())
}

/// While an update is stuck, a change of the size goes to both ReplicaSets in proportion.
fn proportional(s: &Scope<'_>) -> anyhow::Result<()> {
    let mut deployment = workload("Deployment", "d", BUSYBOX);
    deployment["spec"]["replicas"] = 10.into();
    deployment["spec"]["strategy"] =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}});
    s.create("deployments", deployment)?;
    s.wait_any("deployments", "d", "ten pods", |d| d["status"]["availableReplicas"] == 10)?;
    s.merge("deployments", "d", "", image("none.invalid/x:1"))?;
    let sizes = |wanted: [u64; 2]| {
        crate::crd::eventually("sizes of both sets", || {
            let mut found: Vec<u64> = s
                .list("replicasets", "app=d")?
                .iter()
                .filter_map(|r| r["spec"]["replicas"].as_u64())
                .collect();
            found.sort_unstable();
            ensure!(found == wanted, "{found:?}");
            Ok(())
        })
    };
    sizes([5, 8])?;
    s.merge("deployments", "d", "scale", json!({"spec": {"replicas": 30}}))?;
    // 33 pods may be: twenty more, of which the larger set gets its larger share.
    sizes([13, 20])
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-apps] Job should allow to use the pod failure policy on exit code to fail the job early [Conformance]",
            run: exit_code,
        },
        Case {
            name: "[sig-apps] Job should allow to use a pod failure policy to ignore failure matching on DisruptionTarget condition [Conformance]",
            run: disruption,
        },
        Case {
            name: "[sig-apps] Job should execute all indexes despite some failing when using backoffLimitPerIndex [Conformance]",
            run: per_index,
        },
        Case {
            name: "[sig-apps] Job should mark indexes as failed when the FailIndex action is matched in podFailurePolicy [Conformance]",
            run: fail_index,
        },
        Case {
            name: "[sig-apps] Job should terminate job execution when the number of failed indexes exceeds maxFailedIndexes [Conformance]",
            run: too_many_indexes,
        },
        Case {
            name: "[sig-apps] Job with successPolicy should succeeded when all indexes succeeded [Conformance]",
            run: |s| success(s, "true", json!({"succeededIndexes": "0-1"}), "0,1"),
        },
        Case {
            name: "[sig-apps] Job with successPolicy succeededCount rule should succeeded even when some indexes remain pending [Conformance]",
            run: |s| success(s, FIRST_ENDS, json!({"succeededCount": 1}), "0"),
        },
        Case {
            name: "[sig-apps] Job with successPolicy succeededIndexes rule should succeeded even when some indexes remain pending [Conformance]",
            run: |s| success(s, FIRST_ENDS, json!({"succeededIndexes": "0"}), "0"),
        },
        Case {
            name: "[sig-apps] Daemon set [Serial] should rollback without unnecessary restarts [Conformance]",
            run: rollback,
        },
        Case {
            name: "[sig-apps] Deployment deployment should support proportional scaling [Conformance]",
            run: proportional,
        },
    ]
}
