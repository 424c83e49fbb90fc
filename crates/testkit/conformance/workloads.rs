//! \[sig-apps\] Deployments, ReplicaSets, ReplicationControllers, DaemonSets, ControllerRevisions and Jobs.

use anyhow::ensure;
use client::{DeleteParams, Patch};
use serde_json::{Value, json};
use testkit::image::BUSYBOX;
use testkit::pods::{condition, container, pod};
use testkit::{Case, Scope};

/// A workload of a kind with pods that sleep.
fn workload(kind: &str, name: &str, replicas: Option<u32>) -> Value {
    let labels = json!({"app": name});
    let selector =
        if kind == "ReplicationController" { labels.clone() } else { json!({"matchLabels": labels}) };
    let mut out = json!({"kind": kind, "metadata": {"name": name, "labels": labels}, "spec": {
        "selector": selector, "template": {"metadata": {"labels": labels}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": BUSYBOX, "command": ["sleep", "600"]}]}}}});
    if let Some(replicas) = replicas {
        out["spec"]["replicas"] = replicas.into();
    }
    out
}

fn ready(s: &Scope<'_>, resource: &str, name: &str, n: u32) -> anyhow::Result<Value> {
    s.wait_any(resource, name, "ready replicas", |v| {
        v["status"]["readyReplicas"].as_u64().unwrap_or(0) == u64::from(n)
            && v["status"]["replicas"].as_u64().unwrap_or(0) == u64::from(n)
            && v["status"]["observedGeneration"] == v["metadata"]["generation"]
    })
}

fn env(value: &str) -> Patch {
    let containers = json!([{"name": "c", "env": [{"name": "V", "value": value}]}]);
    Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": containers}}}}))
}

/// Reads, puts and patches the status of an object with conditions.
fn status_endpoints(s: &Scope<'_>, group: &str, resource: &str, name: &str) -> anyhow::Result<()> {
    let path = format!("/{group}/namespaces/{}/{resource}/{name}/status", s.namespace);
    let mut object = s.path(&path)?;
    object["metadata"].as_object_mut().map(|m| m.remove("resourceVersion"));
    object["status"]["conditions"] =
        json!([{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set from e2e test"}]);
    s.send(http::Method::PUT, &path, &object)?;
    s.wait_any(resource, name, "the condition", |v| condition(v, "StatusUpdate"))?;
    let patch = json!({"status": {"conditions": [{"type": "StatusPatched", "status": "True"}]}});
    s.merge(resource, name, "status", patch)?;
    s.wait_any(resource, name, "the patched condition", |v| condition(v, "StatusPatched"))?;
    Ok(())
}

fn scale(s: &Scope<'_>, resource: &str, name: &str) -> anyhow::Result<()> {
    let group = if resource == "replicationcontrollers" { "api/v1" } else { "apis/apps/v1" };
    let path = format!("/{group}/namespaces/{}/{resource}/{name}/scale", s.namespace);
    let mut scale = s.path(&path)?;
    scale["spec"]["replicas"] = 2.into();
    scale["metadata"].as_object_mut().map(|m| m.remove("resourceVersion"));
    ensure!(s.send(http::Method::PUT, &path, &scale)?["spec"]["replicas"] == 2);
    ensure!(s.get(resource, name)?["spec"]["replicas"] == 2);
    let patched = s.merge(resource, name, "scale", json!({"spec": {"replicas": 3}}))?;
    ensure!(patched["spec"]["replicas"] == 3 && patched["kind"] == "Scale");
    ensure!(s.get(resource, name)?["spec"]["replicas"] == 3);
    Ok(())
}

fn owner_kind(pod: &Value) -> &str {
    pod["metadata"]["ownerReferences"][0]["kind"].as_str().unwrap_or_default()
}

/// An orphan that matches is adopted, and let go when it no longer does.
fn adopts(s: &Scope<'_>, kind: &str, resource: &str) -> anyhow::Result<()> {
    let mut orphan = pod("orphan", "sleep 600", |_| ());
    orphan["metadata"]["labels"]["app"] = "adopter".into();
    s.ready(orphan)?;
    s.create(resource, workload(kind, "adopter", Some(1)))?;
    s.wait_any("pods", "orphan", "its adoption", |p| owner_kind(p) == kind)?;
    ensure!(s.list("pods", "app=adopter")?.len() == 1);
    s.merge("pods", "orphan", "", json!({"metadata": {"labels": {"app": "stray"}}}))?;
    s.wait_any("pods", "orphan", "its release", |p| owner_kind(p).is_empty())?;
    ready(s, resource, "adopter", 1).map(drop)
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [deployments(), sets(), controllers(), daemons(), daemon_objects(), jobs()].concat()
}

fn deployments() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-apps] Deployment Deployment should have a working scale subresource [Conformance]",
            run: |s| {
                s.create("deployments", workload("Deployment", "d", Some(1)))?;
                ready(s, "deployments", "d", 1)?;
                scale(s, "deployments", "d")
            },
        },
        Case {
            name: "[sig-apps] Deployment RecreateDeployment should delete old pods and create new ones [Conformance]",
            run: |s| {
                let mut d = workload("Deployment", "d", Some(1));
                d["spec"]["strategy"] = json!({"type": "Recreate"});
                s.create("deployments", d)?;
                ready(s, "deployments", "d", 1)?;
                let old = s.list("pods", "app=d")?;
                let old = old[0]["metadata"]["name"].as_str().unwrap_or_default();
                s.patch("deployments", "d", "", &env("two"))?;
                s.wait_gone("pods", old)?;
                // The status may still be that of the old pod.
                s.wait_any("deployments", "d", "the new pod", |d| {
                    d["status"]["updatedReplicas"] == 1 && d["status"]["availableReplicas"] == 1
                })?;
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] Deployment deployment should delete old replica sets [Conformance]",
            run: |s| {
                let mut d = workload("Deployment", "d", Some(1));
                d["spec"]["revisionHistoryLimit"] = 0.into();
                s.create("deployments", d)?;
                ready(s, "deployments", "d", 1)?;
                let old = s.list("replicasets", "app=d")?;
                s.patch("deployments", "d", "", &env("two"))?;
                s.wait_gone("replicasets", old[0]["metadata"]["name"].as_str().unwrap_or_default())
            },
        },
        Case {
            name: "[sig-apps] Deployment deployment should support rollover [Conformance]",
            run: |s| {
                s.create("deployments", workload("Deployment", "d", Some(1)))?;
                ready(s, "deployments", "d", 1)?;
                let bad = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "none.invalid/x:1"}]}}}});
                s.patch("deployments", "d", "", &Patch::Strategic(bad))?;
                s.wait_any("deployments", "d", "an update under way", |d| {
                    d["status"]["updatedReplicas"] == 1
                })?;
                let good = json!({"spec": {"template": {"metadata": {"labels": {"v": "3"}}, "spec": {"containers": [{"name": "c", "image": BUSYBOX}]}}}});
                s.patch("deployments", "d", "", &Patch::Strategic(good))?;
                s.wait_any("deployments", "d", "the last update", |d| {
                    d["status"]["updatedReplicas"] == 1
                        && d["status"]["availableReplicas"] == 1
                        && d["status"]["replicas"] == 1
                        && d["status"]["observedGeneration"] == d["metadata"]["generation"]
                })?;
                for set in s.list("replicasets", "app=d")? {
                    let newest = set["spec"]["template"]["metadata"]["labels"]["v"] == "3";
                    ensure!(set["spec"]["replicas"] == u32::from(newest), "{set}");
                }
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] Deployment should run the lifecycle of a Deployment [Conformance]",
            run: |s| {
                s.create("deployments", workload("Deployment", "d", Some(2)))?;
                ready(s, "deployments", "d", 2)?;
                s.patch("deployments", "d", "", &env("two"))?;
                let patch =
                    json!({"metadata": {"labels": {"test-deployment": "patched"}}, "spec": {"replicas": 1}});
                s.patch("deployments", "d", "", &Patch::Strategic(patch))?;
                ready(s, "deployments", "d", 1)?;
                let everywhere =
                    s.path("/apis/apps/v1/deployments?labelSelector=test-deployment%3Dpatched")?;
                ensure!(everywhere["items"].as_array().is_some_and(|items| items.len() == 1));
                let read =
                    s.path(&format!("/apis/apps/v1/namespaces/{}/deployments/d/status", s.namespace))?;
                ensure!(read["status"]["readyReplicas"] == 1);
                s.delete_all("deployments", "test-deployment=patched")?;
                s.wait_gone("deployments", "d")
            },
        },
        Case {
            name: "[sig-apps] Deployment should validate Deployment Status endpoints [Conformance]",
            run: |s| {
                s.create("deployments", workload("Deployment", "d", Some(1)))?;
                ready(s, "deployments", "d", 1)?;
                status_endpoints(s, "apis/apps/v1", "deployments", "d")
            },
        },
    ]
}

fn sets() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-apps] ReplicaSet Replace and Patch tests [Conformance]",
            run: |s| {
                s.create("replicasets", workload("ReplicaSet", "rs", Some(1)))?;
                ready(s, "replicasets", "rs", 1)?;
                s.merge("replicasets", "rs", "scale", json!({"spec": {"replicas": 3}}))?;
                ready(s, "replicasets", "rs", 3)?;
                let patch = json!({"metadata": {"labels": {"test-rs": "patched"}}, "spec": {"replicas": 2,
                    "template": {"spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "b"}]}]}}}});
                let patched = s.patch("replicasets", "rs", "", &Patch::Strategic(patch))?;
                ensure!(patched["metadata"]["labels"]["test-rs"] == "patched");
                ready(s, "replicasets", "rs", 2)?;
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] ReplicaSet should adopt matching pods on creation and release no longer matching pods [Conformance]",
            run: |s| adopts(s, "ReplicaSet", "replicasets"),
        },
        Case {
            name: "[sig-apps] ReplicaSet should list and delete a collection of ReplicaSets [Conformance]",
            run: |s| {
                s.create("replicasets", workload("ReplicaSet", "rs", Some(3)))?;
                ready(s, "replicasets", "rs", 3)?;
                ensure!(s.list("replicasets", "app=rs")?.len() == 1);
                s.delete_all("replicasets", "app=rs")?;
                s.wait_gone("replicasets", "rs")
            },
        },
        Case {
            name: "[sig-apps] ReplicaSet should validate Replicaset Status endpoints [Conformance]",
            run: |s| {
                s.create("replicasets", workload("ReplicaSet", "rs", Some(1)))?;
                ready(s, "replicasets", "rs", 1)?;
                status_endpoints(s, "apis/apps/v1", "replicasets", "rs")
            },
        },
    ]
}

fn controllers() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-apps] ReplicationController should adopt matching pods on creation [Conformance]",
            run: |s| {
                let mut orphan = pod("orphan", "sleep 600", |_| ());
                orphan["metadata"]["labels"]["app"] = "rc".into();
                s.ready(orphan)?;
                s.create("replicationcontrollers", workload("ReplicationController", "rc", Some(1)))?;
                s.wait_any("pods", "orphan", "its adoption", |p| owner_kind(p) == "ReplicationController")
                    .map(drop)
            },
        },
        Case {
            name: "[sig-apps] ReplicationController should release no longer matching pods [Conformance]",
            run: |s| adopts(s, "ReplicationController", "replicationcontrollers"),
        },
        Case {
            name: "[sig-apps] ReplicationController should get and update a ReplicationController scale [Conformance]",
            run: |s| {
                s.create("replicationcontrollers", workload("ReplicationController", "rc", Some(1)))?;
                ready(s, "replicationcontrollers", "rc", 1)?;
                scale(s, "replicationcontrollers", "rc")?;
                ready(s, "replicationcontrollers", "rc", 3).map(drop)
            },
        },
        Case {
            name: "[sig-apps] ReplicationController should serve a basic image on each replica with a public image [Conformance]",
            run: |s| {
                let mut rc = workload("ReplicationController", "rc", Some(1));
                rc["spec"]["template"]["spec"]["containers"][0] =
                    container("c", "hostname > /tmp/index.html; exec httpd -f -p 9376 -h /tmp");
                s.create("replicationcontrollers", rc)?;
                ready(s, "replicationcontrollers", "rc", 1)?;
                let pods = s.list("pods", "app=rc")?;
                let (name, ip) = (&pods[0]["metadata"]["name"], &pods[0]["status"]["podIP"]);
                let script = format!(
                    "until wget -qO- http://{}:9376/; do sleep 0.1; done",
                    ip.as_str().unwrap_or_default()
                );
                ensure!(s.script("probe", &script)?.trim() == name.as_str().unwrap_or_default());
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] ReplicationController should surface a failure condition on a common issue like exceeded quota [Conformance]",
            run: |s| {
                s.create("resourcequotas", json!({"kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "2"}}}))?;
                s.wait_any("resourcequotas", "q", "its status", |q| q["status"]["hard"]["pods"] == "2")?;
                s.create("replicationcontrollers", workload("ReplicationController", "rc", Some(3)))?;
                s.wait_any("replicationcontrollers", "rc", "a failure", |rc| {
                    condition(rc, "ReplicaFailure")
                })?;
                s.merge("replicationcontrollers", "rc", "scale", json!({"spec": {"replicas": 2}}))?;
                s.wait_any("replicationcontrollers", "rc", "no failure", |rc| {
                    !condition(rc, "ReplicaFailure")
                })
                .map(drop)
            },
        },
        Case {
            name: "[sig-apps] ReplicationController should test the lifecycle of a ReplicationController [Conformance]",
            run: |s| {
                s.create("replicationcontrollers", workload("ReplicationController", "rc", Some(1)))?;
                ready(s, "replicationcontrollers", "rc", 1)?;
                s.merge(
                    "replicationcontrollers",
                    "rc",
                    "",
                    json!({"metadata": {"labels": {"test-rc": "patched"}}}),
                )?;
                let patch = json!({"metadata": {"annotations": {"a": "b"}}, "status": {"readyReplicas": 0}});
                let patched = s.merge("replicationcontrollers", "rc", "status", patch)?;
                ensure!(patched["status"]["readyReplicas"].as_u64().unwrap_or(0) == 0, "{patched}");
                s.merge("replicationcontrollers", "rc", "scale", json!({"spec": {"replicas": 2}}))?;
                let mut rc = ready(s, "replicationcontrollers", "rc", 2)?;
                rc["metadata"].as_object_mut().map(|m| m.remove("resourceVersion"));
                rc["spec"]["replicas"] = 1.into();
                s.update("replicationcontrollers", &rc)?;
                ready(s, "replicationcontrollers", "rc", 1)?;
                s.delete_all("replicationcontrollers", "test-rc=patched")?;
                s.wait_gone("replicationcontrollers", "rc")
            },
        },
    ]
}

fn daemon(s: &Scope<'_>, change: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
    let mut set = workload("DaemonSet", "ds", None);
    change(&mut set["spec"]);
    s.create("daemonsets", set)?;
    Ok(())
}

fn on_all(s: &Scope<'_>) -> anyhow::Result<Value> {
    s.wait_any("daemonsets", "ds", "a pod on every node", |d| {
        let status = &d["status"];
        status["desiredNumberScheduled"] == 1
            && status["numberAvailable"] == 1
            && status["updatedNumberScheduled"] == 1
            && status["observedGeneration"] == d["metadata"]["generation"]
    })
}

fn daemons() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-apps] Daemon set [Serial] should run and stop simple daemon [Conformance]",
            run: |s| {
                daemon(s, |_| ())?;
                on_all(s)?;
                let pods = s.list("pods", "app=ds")?;
                let name = pods[0]["metadata"]["name"].as_str().unwrap_or_default();
                s.delete("pods", name, &DeleteParams::default())?;
                s.wait_gone("pods", name)?;
                s.wait_any("pods", "", "its successor", |p| {
                    p["metadata"]["labels"]["app"] == "ds" && condition(p, "Ready")
                })
                .map(drop)
            },
        },
        Case {
            name: "[sig-apps] Daemon set [Serial] should run and stop complex daemon [Conformance]",
            run: |s| {
                let key = format!("color-{}", s.namespace);
                daemon(s, |spec| spec["template"]["spec"]["nodeSelector"] = json!({key.clone(): "blue"}))?;
                s.wait_any("daemonsets", "ds", "no node", |d| d["status"]["observedGeneration"] == 1)?;
                ensure!(s.list("pods", "app=ds")?.is_empty());
                let node =
                    s.list("nodes", "")?[0]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let color = |c: Value| json!({"metadata": {"labels": {key.clone(): c}}});
                s.merge("nodes", &node, "", color("blue".into()))?;
                on_all(s)?;
                let running = s.list("pods", "app=ds")?;
                s.merge("nodes", &node, "", color("green".into()))?;
                s.wait_gone("pods", running[0]["metadata"]["name"].as_str().unwrap_or_default())?;
                let patch = json!({"spec": {"template": {"spec": {"nodeSelector": {key.clone(): "green"}}}}});
                s.merge("daemonsets", "ds", "", patch)?;
                on_all(s)?;
                s.merge("nodes", &node, "", color(Value::Null))?;
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] Daemon set [Serial] should retry creating failed daemon pods [Conformance]",
            run: |s| {
                daemon(s, |_| ())?;
                on_all(s)?;
                let pods = s.list("pods", "app=ds")?;
                let name = pods[0]["metadata"]["name"].as_str().unwrap_or_default();
                s.merge("pods", name, "status", json!({"status": {"phase": "Failed"}}))?;
                s.wait_gone("pods", name)?;
                s.wait_any("pods", "", "its successor", |p| {
                    p["metadata"]["labels"]["app"] == "ds" && condition(p, "Ready")
                })
                .map(drop)
            },
        },
        Case {
            name: "[sig-apps] Daemon set [Serial] should update pod when spec was updated and update strategy is RollingUpdate [Conformance]",
            run: |s| {
                daemon(s, |_| ())?;
                on_all(s)?;
                s.patch("daemonsets", "ds", "", &env("two"))?;
                on_all(s)?;
                ensure!(s.list("controllerrevisions", "app=ds")?.len() == 2);
                Ok(())
            },
        },
    ]
}

fn daemon_objects() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-apps] Daemon set [Serial] should list and delete a collection of DaemonSets [Conformance]",
            run: |s| {
                daemon(s, |_| ())?;
                on_all(s)?;
                ensure!(s.list("daemonsets", "app=ds")?.len() == 1);
                s.delete_all("daemonsets", "app=ds")?;
                s.wait_gone("daemonsets", "ds")
            },
        },
        Case {
            name: "[sig-apps] Daemon set [Serial] should verify changes to a daemon set status [Conformance]",
            run: |s| {
                daemon(s, |_| ())?;
                on_all(s)?;
                status_endpoints(s, "apis/apps/v1", "daemonsets", "ds")
            },
        },
        Case {
            name: "[sig-apps] ControllerRevision [Serial] should manage the lifecycle of a ControllerRevision [Conformance]",
            run: |s| {
                daemon(s, |_| ())?;
                on_all(s)?;
                let first = s.list("controllerrevisions", "app=ds")?;
                ensure!(first.len() == 1);
                let name = first[0]["metadata"]["name"].as_str().unwrap_or_default();
                let label = json!({"metadata": {"labels": {name: "patched"}}});
                s.merge("controllerrevisions", name, "", label)?;
                let mut second = first[0].clone();
                second["metadata"] = json!({"name": format!("{name}-x"), "labels": first[0]["metadata"]["labels"],
                    "ownerReferences": first[0]["metadata"]["ownerReferences"]});
                second["revision"] = 2.into();
                s.create("controllerrevisions", second)?;
                ensure!(s.list("controllerrevisions", "app=ds")?.len() == 2);
                s.delete("controllerrevisions", name, &DeleteParams::default())?;
                s.wait_gone("controllerrevisions", name)?;
                let mut left = s.list("controllerrevisions", "app=ds")?;
                ensure!(left.len() == 1);
                left[0]["metadata"]["labels"]["updated"] = "yes".into();
                s.update("controllerrevisions", &left[0])?;
                ensure!(s.list("controllerrevisions", "updated=yes")?.len() == 1);
                s.patch("daemonsets", "ds", "", &env("two"))?;
                on_all(s)?;
                ensure!(s.list("controllerrevisions", "app=ds")?.len() == 2);
                s.delete_all("controllerrevisions", "updated=yes")?;
                let left = s.list("controllerrevisions", "app=ds")?;
                ensure!(left.len() == 1 && left[0]["revision"] == 3, "{left:?}");
                Ok(())
            },
        },
    ]
}

fn job(script: &str, spec: Value) -> Value {
    let mut job = json!({"kind": "Job", "metadata": {"name": "j", "labels": {"app": "j"}}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container("c", script)]}}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        job["spec"][key] = value.clone();
    }
    job
}

fn jobs() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-apps] Job should adopt matching orphans and release non-matching pods [Conformance]",
            run: |s| {
                s.create("jobs", job("sleep 600", json!({"parallelism": 2, "completions": 2})))?;
                s.wait_any("jobs", "j", "active pods", |j| j["status"]["ready"] == 2)?;
                let pods = s.list("pods", "job-name=j")?;
                let name = pods[0]["metadata"]["name"].as_str().unwrap_or_default();
                s.merge("pods", name, "", json!({"metadata": {"ownerReferences": null}}))?;
                s.wait_any("pods", name, "its adoption", |p| owner_kind(p) == "Job")?;
                let labels = json!({"job-name": null, "controller-uid": null, "batch.kubernetes.io/job-name": null, "batch.kubernetes.io/controller-uid": null});
                s.merge("pods", name, "", json!({"metadata": {"labels": labels}}))?;
                s.wait_any("pods", name, "its release", |p| owner_kind(p).is_empty())?;
                s.delete("pods", name, &DeleteParams::default())?;
                s.wait_gone("pods", name)
            },
        },
        Case {
            name: "[sig-apps] Job should delete a job [Conformance]",
            run: |s| {
                s.create("jobs", job("sleep 600", json!({"parallelism": 2, "completions": 4})))?;
                s.wait_any("jobs", "j", "active pods", |j| j["status"]["ready"] == 2)?;
                s.kubectl(&["delete", "job", "j", "--timeout=60s"])?;
                s.kubectl(&["wait", "--for=delete", "pods", "-l", "job-name=j", "--timeout=60s"])?;
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] Job should apply changes to a job status [Conformance]",
            run: |s| {
                s.create("jobs", job("sleep 600", json!({"parallelism": 1, "completions": 1})))?;
                s.wait_any("jobs", "j", "an active pod", |j| j["status"]["active"] == 1)?;
                let patch = json!({"metadata": {"annotations": {"patchedstatus": "true"}}});
                let patched = s.merge("jobs", "j", "status", patch)?;
                ensure!(patched["metadata"]["annotations"]["patchedstatus"] == "true");
                let path = format!("/apis/batch/v1/namespaces/{}/jobs/j/status", s.namespace);
                let mut read = s.path(&path)?;
                read["metadata"].as_object_mut().map(|m| m.remove("resourceVersion"));
                read["status"]["startTime"] = s.get("jobs", "j")?["metadata"]["creationTimestamp"].clone();
                ensure!(s.send(http::Method::PUT, &path, &read)?["status"]["startTime"].is_string());
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] Job should create pods for an Indexed job with completion indexes and specified hostname [Conformance]",
            run: |s| {
                let spec = json!({"parallelism": 2, "completions": 4, "completionMode": "Indexed"});
                s.create("jobs", job("echo $JOB_COMPLETION_INDEX $(hostname)", spec))?;
                let done = s.wait_any("jobs", "j", "completion", |j| condition(j, "Complete"))?;
                ensure!(
                    done["status"]["completedIndexes"] == "0-3" && done["status"]["succeeded"] == 4,
                    "{done}"
                );
                for pod in s.list("pods", "job-name=j")? {
                    let index = &pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"];
                    let index = index.as_str().unwrap_or_default();
                    ensure!(pod["spec"]["hostname"] == format!("j-{index}").as_str());
                    let log = s.logs(pod["metadata"]["name"].as_str().unwrap_or_default(), "c")?;
                    ensure!(log.trim() == format!("{index} j-{index}"), "{log}");
                }
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] Job should manage the lifecycle of a job [Conformance]",
            run: |s| {
                s.create("jobs", job("true", json!({"suspend": true, "parallelism": 1, "completions": 1})))?;
                s.wait_any("jobs", "j", "its suspension", |j| condition(j, "Suspended"))?;
                let labels = json!({"metadata": {"labels": {"j": "patched"}}, "spec": {"suspend": false}});
                s.merge("jobs", "j", "", labels)?;
                let mut current = s.get("jobs", "j")?;
                current["metadata"].as_object_mut().map(|m| m.remove("resourceVersion"));
                current["metadata"]["annotations"]["updated"] = "true".into();
                s.update("jobs", &current)?;
                s.wait_any("jobs", "j", "completion", |j| condition(j, "Complete"))?;
                ensure!(s.list("jobs", "j=patched")?.len() == 1);
                s.delete_all("jobs", "j=patched")?;
                s.wait_gone("jobs", "j")
            },
        },
        Case {
            name: "[sig-apps] Job should run a job to completion when tasks sometimes fail and are locally restarted [Conformance]",
            run: |s| {
                let mut failing = job(
                    "test -e /data/seen || { touch /data/seen; exit 1; }",
                    json!({"parallelism": 2, "completions": 4}),
                );
                let pod = &mut failing["spec"]["template"]["spec"];
                pod["restartPolicy"] = "OnFailure".into();
                pod["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
                pod["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
                s.create("jobs", failing)?;
                let done = s.wait_any("jobs", "j", "completion", |j| condition(j, "Complete"))?;
                ensure!(done["status"]["succeeded"] == 4);
                Ok(())
            },
        },
    ]
}
