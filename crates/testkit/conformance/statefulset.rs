//! \[sig-apps\] StatefulSets: order, storage-less identity, updates, and what the API answers.

use anyhow::ensure;
use client::{DeleteParams, Patch};
use serde_json::{Value, json};
use testkit::pods::{condition, container};
use testkit::{Case, Scope};

/// A set whose pods are ready while `/tmp/ready` is there.
fn set(name: &str, replicas: u32, change: impl FnOnce(&mut Value)) -> Value {
    let mut main = container("main", "touch /tmp/ready; trap 'exit 0' TERM; while :; do sleep 1; done");
    main["readinessProbe"] = json!({"exec": {"command": ["test", "-f", "/tmp/ready"]}, "periodSeconds": 1,
        "successThreshold": 1, "failureThreshold": 1});
    let mut set = json!({"kind": "StatefulSet", "metadata": {"name": name, "labels": {"app": name}}, "spec": {
        "replicas": replicas, "serviceName": "test", "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "terminationGracePeriodSeconds": 1, "containers": [main]}}}});
    change(&mut set["spec"]);
    set
}

fn ready(s: &Scope<'_>, name: &str, n: u32) -> anyhow::Result<Value> {
    s.wait_any("statefulsets", name, &format!("{n} ready replicas"), |v| {
        v["status"]["replicas"] == n
            && v["status"]["readyReplicas"].as_u64().unwrap_or(0) == u64::from(n)
            && v["status"]["observedGeneration"] == v["metadata"]["generation"]
    })
}

fn scale(s: &Scope<'_>, name: &str, n: u32) -> client::Result<Value> {
    s.merge("statefulsets", name, "scale", json!({"spec": {"replicas": n}}))
}

fn readiness(s: &Scope<'_>, pod: &str, on: bool) -> anyhow::Result<()> {
    let command = if on { "touch" } else { "rm" };
    s.kubectl(&["exec", pod, "--", command, "/tmp/ready"])?;
    s.wait_any("pods", pod, "its new readiness", |p| condition(p, "Ready") == on)?;
    Ok(())
}

fn image(s: &Scope<'_>, name: &str, value: &str) -> anyhow::Result<Value> {
    let env = json!([{"name": "main", "env": [{"name": "V", "value": value}]}]);
    let patch = json!({"spec": {"template": {"spec": {"containers": env}}}});
    Ok(s.patch("statefulsets", name, "", &Patch::Strategic(patch))?)
}

fn revisions(set: &Value) -> (&str, &str) {
    let text = |field: &str| set["status"][field].as_str().unwrap_or_default();
    (text("currentRevision"), text("updateRevision"))
}

/// The revisions of the pods, by ordinal.
fn pod_revisions(s: &Scope<'_>, name: &str) -> anyhow::Result<Vec<String>> {
    let mut pods = s.list("pods", &format!("app={name}"))?;
    pods.sort_by_key(|p| p["metadata"]["name"].to_string());
    Ok(pods
        .iter()
        .map(|p| p["metadata"]["labels"]["controller-revision-hash"].as_str().unwrap_or_default().to_owned())
        .collect())
}

fn updated(s: &Scope<'_>, name: &str, n: u32) -> anyhow::Result<Value> {
    s.wait_any("statefulsets", name, "the update's end", |v| {
        v["status"]["observedGeneration"] == v["metadata"]["generation"]
            && v["status"]["updatedReplicas"] == n
            && v["status"]["readyReplicas"] == n
            && v["status"]["replicas"] == n
            && v["status"]["currentRevision"] == v["status"]["updateRevision"]
    })
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [running(), api()].concat()
}

fn running() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] Scaling should happen in predictable order and halt if any stateful pod is unhealthy [Slow] [Conformance]",
            run: |s| {
                s.create("statefulsets", set("ss", 1, |_| ()))?;
                ready(s, "ss", 1)?;
                readiness(s, "ss-0", false)?;
                scale(s, "ss", 3)?;
                s.wait_any("statefulsets", "ss", "a look", |v| {
                    v["status"]["observedGeneration"] == v["metadata"]["generation"]
                })?;
                ensure!(s.list("pods", "app=ss")?.len() == 1, "an unhealthy pod holds up the next");
                readiness(s, "ss-0", true)?;
                ready(s, "ss", 3)?;
                let starts: Vec<String> = ["ss-0", "ss-1", "ss-2"]
                    .iter()
                    .map(|name| Ok(s.get("pods", name)?["metadata"]["creationTimestamp"].to_string()))
                    .collect::<anyhow::Result<_>>()?;
                ensure!(starts.is_sorted(), "{starts:?}");
                readiness(s, "ss-0", false)?;
                scale(s, "ss", 0)?;
                s.wait_any("statefulsets", "ss", "a look", |v| {
                    v["status"]["observedGeneration"] == v["metadata"]["generation"]
                })?;
                ensure!(s.list("pods", "app=ss")?.len() == 3, "an unhealthy pod holds up scaling down");
                readiness(s, "ss-0", true)?;
                s.wait_gone("pods", "ss-2")?;
                s.wait_gone("pods", "ss-1")?;
                s.wait_gone("pods", "ss-0")
            },
        },
        Case {
            name: "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] Burst scaling should run to completion even with unhealthy pods [Slow] [Conformance]",
            run: |s| {
                s.create(
                    "statefulsets",
                    set("ss", 1, |spec| spec["podManagementPolicy"] = "Parallel".into()),
                )?;
                ready(s, "ss", 1)?;
                readiness(s, "ss-0", false)?;
                scale(s, "ss", 3)?;
                s.pod_ready("ss-2")?;
                s.pod_ready("ss-1")?;
                readiness(s, "ss-0", true)?;
                ready(s, "ss", 3)?;
                readiness(s, "ss-0", false)?;
                scale(s, "ss", 0)?;
                ["ss-0", "ss-1", "ss-2"].iter().try_for_each(|pod| s.wait_gone("pods", pod))
            },
        },
        Case {
            name: "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should perform rolling updates and roll backs of template modifications [Conformance]",
            run: |s| {
                s.create("statefulsets", set("ss2", 3, |_| ()))?;
                let first = ready(s, "ss2", 3)?;
                let (old, same) = revisions(&first);
                ensure!(old == same && !old.is_empty());
                ensure!(pod_revisions(s, "ss2")?.iter().all(|r| r == old));
                image(s, "ss2", "two")?;
                let second = updated(s, "ss2", 3)?;
                let (new, _) = revisions(&second);
                ensure!(new != old && pod_revisions(s, "ss2")?.iter().all(|r| r == new));
                let patch =
                    json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "env": null}]}}}});
                s.patch("statefulsets", "ss2", "", &Patch::Strategic(patch))?;
                s.wait_any("statefulsets", "ss2", "the way back", |v| revisions(v).1 == old)?;
                let third = updated(s, "ss2", 3)?;
                ensure!(revisions(&third).0 == old, "rolling back makes no new revision");
                ensure!(s.list("controllerrevisions", "app=ss2")?.len() == 2);
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should perform canary updates and phased rolling updates of template modifications [Conformance]",
            run: |s| canary(s),
        },
        Case {
            name: "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] Should recreate evicted statefulset [Conformance]",
            run: |s| {
                let node = s.cluster.scope("").list("nodes", "")?;
                let node = node.first().map(|n| n["metadata"]["name"].clone()).unwrap_or_default();
                let port = json!([{"containerPort": 21017, "hostPort": 21017}]);
                let holder = testkit::pods::pod("holder", "sleep 600", |spec| {
                    spec["nodeName"] = node.clone();
                    spec["containers"][0]["ports"] = port.clone();
                });
                s.ready(holder)?;
                s.create(
                    "statefulsets",
                    set("ss", 1, |spec| {
                        spec["template"]["spec"]["nodeName"] = node.clone();
                        spec["template"]["spec"]["containers"][0]["ports"] = port.clone();
                    }),
                )?;
                let failed =
                    s.wait_any("pods", "ss-0", "its refusal", |p| p["status"]["phase"] == "Failed")?;
                s.wait_any("pods", "ss-0", "another try", |p| {
                    p["metadata"]["uid"] != failed["metadata"]["uid"]
                })?;
                s.delete("pods", "holder", &DeleteParams::default())?;
                s.wait_any("pods", "ss-0", "a run", |p| p["status"]["phase"] == "Running").map(drop)
            },
        },
    ]
}

fn canary(s: &Scope<'_>) -> anyhow::Result<()> {
    let partition = |n: u32| json!({"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": n}}}});
    s.create(
        "statefulsets",
        set("ss2", 3, |spec| {
            spec["updateStrategy"] = partition(3)["spec"]["updateStrategy"].clone();
        }),
    )?;
    let first = ready(s, "ss2", 3)?;
    let old = revisions(&first).0.to_owned();
    image(s, "ss2", "two")?;
    let seen = s.wait_any("statefulsets", "ss2", "the new revision", |v| revisions(v).1 != old)?;
    let new = revisions(&seen).1.to_owned();
    ensure!(pod_revisions(s, "ss2")?.iter().all(|r| *r == old), "beyond the partition nothing changes");
    // A canary: the last pod only.
    s.merge("statefulsets", "ss2", "", partition(2))?;
    s.wait_any("pods", "ss2-2", "the new revision", |p| {
        p["metadata"]["labels"]["controller-revision-hash"] == *new && condition(p, "Ready")
    })?;
    ensure!(pod_revisions(s, "ss2")? == [old.as_str(), &old, &new]);
    // Deleted pods come back as they were.
    for (name, revision) in [("ss2-0", &old), ("ss2-2", &new)] {
        let before = s.get("pods", name)?;
        s.delete("pods", name, &DeleteParams::default())?;
        let again = s.wait_any("pods", name, "its return", |p| {
            p["metadata"]["uid"] != before["metadata"]["uid"] && condition(p, "Ready")
        })?;
        ensure!(again["metadata"]["labels"]["controller-revision-hash"] == **revision, "{again}");
    }
    s.merge("statefulsets", "ss2", "", partition(0))?;
    let done = updated(s, "ss2", 3)?;
    ensure!(revisions(&done).0 == new && pod_revisions(s, "ss2")?.iter().all(|r| *r == new));
    Ok(())
}

fn api() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should have a working scale subresource [Conformance]",
            run: |s| {
                s.create("statefulsets", set("ss", 1, |_| ()))?;
                ready(s, "ss", 1)?;
                let path = format!("/apis/apps/v1/namespaces/{}/statefulsets/ss/scale", s.namespace);
                let mut scale = s.path(&path)?;
                ensure!(scale["spec"]["replicas"] == 1 && scale["status"]["replicas"] == 1, "{scale}");
                scale["spec"]["replicas"] = 2.into();
                scale["metadata"].as_object_mut().map(|m| m.remove("resourceVersion"));
                let put = s.send(http::Method::PUT, &path, &scale)?;
                ensure!(put["spec"]["replicas"] == 2, "{put}");
                let patched = s.merge("statefulsets", "ss", "scale", json!({"spec": {"replicas": 4}}))?;
                ensure!(patched["kind"] == "Scale" && patched["spec"]["replicas"] == 4, "{patched}");
                ensure!(s.get("statefulsets", "ss")?["spec"]["replicas"] == 4);
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should list, patch and delete a collection of StatefulSets [Conformance]",
            run: |s| {
                s.create("statefulsets", set("test-ss", 1, |_| ()))?;
                ready(s, "test-ss", 1)?;
                let patch = json!({"metadata": {"labels": {"test-ss": "patched"}}, "spec": {"replicas": 2,
                    "template": {"spec": {"terminationGracePeriodSeconds": 2, "containers": [{"name": "main", "env": [{"name": "A", "value": "b"}]}]}}}});
                let patched = s.patch("statefulsets", "test-ss", "", &Patch::Strategic(patch))?;
                ensure!(
                    patched["spec"]["replicas"] == 2 && patched["metadata"]["labels"]["test-ss"] == "patched"
                );
                ensure!(patched["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 2);
                ready(s, "test-ss", 2)?;
                ensure!(s.list("statefulsets", "test-ss=patched")?.len() == 1);
                s.delete_all("statefulsets", "test-ss=patched")?;
                s.wait_gone("statefulsets", "test-ss")
            },
        },
        Case {
            name: "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should validate Statefulset Status endpoints [Conformance]",
            run: |s| {
                s.create("statefulsets", set("ss", 1, |_| ()))?;
                ready(s, "ss", 1)?;
                let path = format!("/apis/apps/v1/namespaces/{}/statefulsets/ss/status", s.namespace);
                let update = json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set from e2e test"});
                let mut object = s.path(&path)?;
                object["metadata"].as_object_mut().map(|m| m.remove("resourceVersion"));
                object["status"]["conditions"] = json!([update]);
                s.send(http::Method::PUT, &path, &object)?;
                s.wait_any("statefulsets", "ss", "the condition", |v| condition(v, "StatusUpdate"))?;
                let patch = json!({"status": {"conditions": [{"type": "StatusPatched", "status": "True"}]}});
                s.merge("statefulsets", "ss", "status", patch)?;
                s.wait_any("statefulsets", "ss", "the patched condition", |v| condition(v, "StatusPatched"))?;
                s.delete("statefulsets", "ss", &DeleteParams::default())?;
                Ok(())
            },
        },
    ]
}
