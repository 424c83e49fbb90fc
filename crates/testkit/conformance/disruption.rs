//! \[sig-apps\] Disruption budgets and evictions.

use anyhow::ensure;
use client::DeleteParams;
use serde_json::{Value, json};
use testkit::image::BUSYBOX;
use testkit::pods::{condition, pod};
use testkit::{Case, Scope};

fn budget(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["selector"] = json!({"matchLabels": {"foo": "bar"}});
    json!({"kind": "PodDisruptionBudget", "metadata": {"name": name, "labels": {"set": "s"}}, "spec": spec})
}

fn foo(name: &str) -> Value {
    let mut pod = pod(name, "sleep 600", |_| ());
    pod["metadata"]["labels"]["foo"] = "bar".into();
    pod
}

fn observed(s: &Scope<'_>, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    s.wait_any("poddisruptionbudgets", name, what, |b| {
        b["status"]["observedGeneration"] == b["metadata"]["generation"] && is(&b["status"])
    })
}

fn evict(s: &Scope<'_>, pod: &str) -> client::Result<Value> {
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", s.namespace);
    let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": s.namespace}});
    s.send(http::Method::POST, &path, &body)
}

fn refused(s: &Scope<'_>, pod: &str) -> anyhow::Result<()> {
    match evict(s, pod) {
        Ok(_) => anyhow::bail!("{pod} was evicted"),
        Err(error) => {
            let status = error.status().cloned();
            ensure!(status.is_some_and(|status| {
                status.code == 429
                    && status.message == "Cannot evict pod as it would violate the pod's disruption budget."
            }));
            Ok(())
        }
    }
}

fn set(replicas: u32) -> Value {
    json!({"kind": "ReplicaSet", "metadata": {"name": "rs"}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"foo": "bar"}}, "template": {"metadata": {"labels": {"foo": "bar"}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                {"name": "c", "image": BUSYBOX, "command": ["sleep", "600"]}]}}}})
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-apps] DisruptionController should create a PodDisruptionBudget [Conformance]",
            run: |s| {
                s.create("poddisruptionbudgets", budget("foo", json!({"minAvailable": "1%"})))?;
                observed(s, "foo", "its first look", |_| true)?;
                let mut updated = s.get("poddisruptionbudgets", "foo")?;
                updated["spec"]["minAvailable"] = "2%".into();
                s.update("poddisruptionbudgets", &updated)?;
                observed(s, "foo", "its second look", |_| true)?;
                let patch = json!({"spec": {"minAvailable": "3%"}});
                let patched = s.merge("poddisruptionbudgets", "foo", "", patch)?;
                ensure!(patched["spec"]["minAvailable"] == "3%");
                observed(s, "foo", "its third look", |_| true)?;
                s.delete("poddisruptionbudgets", "foo", &DeleteParams::default())?;
                s.wait_gone("poddisruptionbudgets", "foo")
            },
        },
        Case {
            name: "[sig-apps] DisruptionController should observe PodDisruptionBudget status updated [Conformance]",
            run: |s| {
                s.create("poddisruptionbudgets", budget("foo", json!({"minAvailable": 1})))?;
                for name in ["a", "b", "c"] {
                    s.ready(foo(name))?;
                }
                observed(s, "foo", "two disruptions", |status| {
                    status["disruptionsAllowed"] == 2
                        && status["currentHealthy"] == 3
                        && status["expectedPods"] == 3
                })
                .map(drop)
            },
        },
        Case {
            name: "[sig-apps] DisruptionController should update/patch PodDisruptionBudget status [Conformance]",
            run: |s| {
                s.create("poddisruptionbudgets", budget("foo", json!({"minAvailable": 1})))?;
                s.ready(foo("a"))?;
                observed(s, "foo", "a healthy pod", |status| status["currentHealthy"] == 1)?;
                let path =
                    format!("/apis/policy/v1/namespaces/{}/poddisruptionbudgets/foo/status", s.namespace);
                let mut object = s.path(&path)?;
                object["status"]["disruptedPods"] = json!({"a": "2126-01-01T00:00:00Z"});
                let put = s.send(http::Method::PUT, &path, &object)?;
                ensure!(put["status"]["disruptedPods"]["a"] == "2126-01-01T00:00:00Z", "{put}");
                let patch = json!({"status": {"disruptedPods": {"a": null}}});
                let patched = s.merge("poddisruptionbudgets", "foo", "status", patch)?;
                ensure!(
                    patched["status"].get("disruptedPods").is_none_or(|p| p.get("a").is_none()),
                    "{patched}"
                );
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] DisruptionController should block an eviction until the PDB is updated to allow it [Conformance]",
            run: |s| {
                s.create("replicasets", set(3))?;
                s.wait_any("replicasets", "rs", "three ready pods", |v| v["status"]["readyReplicas"] == 3)?;
                s.create("poddisruptionbudgets", budget("foo", json!({"minAvailable": 3})))?;
                observed(s, "foo", "its pods", |status| status["currentHealthy"] == 3)?;
                let pods = s.list("pods", "foo=bar")?;
                let name = pods[0]["metadata"]["name"].as_str().unwrap_or_default();
                refused(s, name)?;
                s.merge("poddisruptionbudgets", "foo", "", json!({"spec": {"minAvailable": 2}}))?;
                observed(s, "foo", "room for one", |status| status["disruptionsAllowed"] == 1)?;
                evict(s, name)?;
                s.wait_gone("pods", name)?;
                s.wait_any("replicasets", "rs", "another pod", |v| v["status"]["readyReplicas"] == 3)?;
                // Whoever wants all of a controller's pods lets none go.
                let patch = json!({"spec": {"minAvailable": null, "maxUnavailable": 0}});
                s.merge("poddisruptionbudgets", "foo", "", patch)?;
                observed(s, "foo", "no room", |status| {
                    status["disruptionsAllowed"] == 0
                        && status["expectedPods"] == 3
                        && status["desiredHealthy"] == 3
                })?;
                // One that runs: those that do not yet may always be evicted.
                let left = s.list("pods", "foo=bar")?;
                let running = left
                    .iter()
                    .find(|p| p["metadata"]["deletionTimestamp"].is_null() && condition(p, "Ready"));
                refused(s, running.and_then(|p| p["metadata"]["name"].as_str()).unwrap_or_default())
            },
        },
    ]
}
