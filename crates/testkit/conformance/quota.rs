//! \[sig-api-machinery\] ResourceQuota and \[sig-scheduling\] LimitRange.

use anyhow::ensure;
use client::DeleteParams;
use serde_json::{Value, json};
use testkit::pods::pod;
use testkit::{Case, Scope};

/// Waits until a quota says that this much is used.
fn used(s: &Scope<'_>, quota: &str, expect: Value) -> anyhow::Result<()> {
    s.wait_any("resourcequotas", quota, &format!("usage {expect}"), |q| {
        let fits = |(name, amount): (&String, &Value)| q["status"]["used"][name] == *amount;
        expect.as_object().is_some_and(|e| e.iter().all(fits))
    })?;
    Ok(())
}

fn quota(s: &Scope<'_>, name: &str, hard: Value, extra: Value) -> anyhow::Result<()> {
    let mut spec = json!({"hard": hard});
    for (key, value) in extra.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    s.create("resourcequotas", json!({"kind": "ResourceQuota", "metadata": {"name": name}, "spec": spec}))?;
    s.wait_any("resourcequotas", name, "status", |q| !q["status"]["hard"].is_null())?;
    Ok(())
}

fn requests(name: &str, resources: Value) -> Value {
    pod(name, "sleep 600", |spec| spec["containers"][0]["resources"] = resources)
}

/// The request is refused because of a quota.
fn refused(outcome: client::Result<Value>) -> anyhow::Result<()> {
    let error = outcome.err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(error.contains("exceeded quota"), "not refused: {error:?}");
    Ok(())
}

fn gone(s: &Scope<'_>, resource: &str, name: &str) -> anyhow::Result<()> {
    let now = DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
    s.delete(resource, name, &now)?;
    s.wait_gone(resource, name)
}

/// One object of a resource is counted while it is there.
fn lifecycle(s: &Scope<'_>, resource: &str, object: Value, counted: &[&str]) -> anyhow::Result<()> {
    let all =
        |n: &str| counted.iter().map(|c| ((*c).to_owned(), n.into())).collect::<serde_json::Map<_, Value>>();
    // The namespace's own ConfigMap and ServiceAccount objects are there already.
    let before = s.list(resource, "")?.len();
    quota(s, "test-quota", all("20").into(), json!({}))?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    used(s, "test-quota", all(&before.to_string()).into())?;
    s.create(resource, object)?;
    used(s, "test-quota", all(&(before + 1).to_string()).into())?;
    gone(s, resource, &name)?;
    used(s, "test-quota", all(&before.to_string()).into())
}

/// Two quotas, of which only one counts a pod.
fn scopes(s: &Scope<'_>, [one, other]: [&str; 2], counted: Value, uncounted: Value) -> anyhow::Result<()> {
    quota(s, "one", json!({"pods": "5"}), json!({"scopes": [one]}))?;
    quota(s, "other", json!({"pods": "5"}), json!({"scopes": [other]}))?;
    for (mut object, counts) in [(counted, ["1", "0"]), (uncounted, ["0", "1"])] {
        object["metadata"]["name"] = "scoped".into();
        s.create("pods", object)?;
        used(s, "one", json!({"pods": counts[0]}))?;
        used(s, "other", json!({"pods": counts[1]}))?;
        gone(s, "pods", "scoped")?;
        used(s, "one", json!({"pods": "0"}))?;
        used(s, "other", json!({"pods": "0"}))?;
    }
    Ok(())
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [of_objects(), of_pods(), of_quotas()].concat()
}

fn of_objects() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a configMap. [Conformance]",
            run: |s| {
                s.wait_any("configmaps", "kube-root-ca.crt", "there", |_| true)?;
                let object = json!({"metadata": {"name": "c"}, "data": {"a": "b"}});
                lifecycle(s, "configmaps", object, &["configmaps", "count/configmaps"])
            },
        },
        Case {
            name: "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a secret. [Conformance]",
            run: |s| {
                let object = json!({"metadata": {"name": "c"}, "stringData": {"a": "b"}});
                lifecycle(s, "secrets", object, &["secrets"])
            },
        },
        Case {
            name: "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a replication controller. [Conformance]",
            run: |s| {
                let object = json!({"metadata": {"name": "rc"}, "spec": {"replicas": 0, "selector": {"a": "b"},
                    "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
                lifecycle(s, "replicationcontrollers", object, &["replicationcontrollers"])
            },
        },
        Case {
            name: "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a replica set. [Conformance]",
            run: |s| {
                let object = json!({"metadata": {"name": "rs"}, "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}},
                    "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
                lifecycle(s, "replicasets", object, &["count/replicasets.apps"])
            },
        },
        Case {
            name: "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a service. [Conformance]",
            run: |s| {
                quota(
                    s,
                    "q",
                    json!({"services": "2", "services.nodeports": "1", "services.loadbalancers": "0"}),
                    json!({}),
                )?;
                let service = |name: &str, kind: &str| json!({"metadata": {"name": name}, "spec": {"type": kind, "ports": [{"port": 80}]}});
                s.create("services", service("plain", "ClusterIP"))?;
                s.create("services", service("node", "NodePort"))?;
                refused(s.create("services", service("more", "LoadBalancer")))?;
                used(s, "q", json!({"services": "2", "services.nodeports": "1"}))?;
                gone(s, "services", "plain")?;
                gone(s, "services", "node")?;
                used(s, "q", json!({"services": "0", "services.nodeports": "0"}))
            },
        },
    ]
}

fn of_pods() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a pod. [Conformance]",
            run: |s| {
                quota(
                    s,
                    "q",
                    json!({"pods": "5", "cpu": "1", "memory": "500Mi", "requests.example.com/dongle": "3"}),
                    json!({}),
                )?;
                let fits = json!({"requests": {"cpu": "500m", "memory": "252Mi", "example.com/dongle": "2"},
                    "limits": {"example.com/dongle": "2"}});
                s.create("pods", requests("fits", fits))?;
                let full = json!({"pods": "1", "cpu": "500m", "memory": "252Mi", "requests.example.com/dongle": "2"});
                used(s, "q", full.clone())?;
                refused(s.create(
                    "pods",
                    requests("cpu", json!({"requests": {"cpu": "600m", "memory": "100Mi"}})),
                ))?;
                let device = json!({"requests": {"cpu": "1m", "memory": "1Mi", "example.com/dongle": "2"},
                    "limits": {"example.com/dongle": "2"}});
                refused(s.create("pods", requests("device", device)))?;
                s.merge("pods", "fits", "", json!({"metadata": {"labels": {"changed": "yes"}}}))?;
                used(s, "q", full)?;
                gone(s, "pods", "fits")?;
                used(
                    s,
                    "q",
                    json!({"pods": "0", "cpu": "0", "memory": "0", "requests.example.com/dongle": "0"}),
                )
            },
        },
        Case {
            name: "[sig-api-machinery] ResourceQuota should verify ResourceQuota with terminating scopes. [Conformance]",
            run: |s| {
                let ends = pod("p", "sleep 600", |spec| spec["activeDeadlineSeconds"] = json!(3600));
                scopes(s, ["Terminating", "NotTerminating"], ends, pod("p", "sleep 600", |_| ()))
            },
        },
        Case {
            name: "[sig-api-machinery] ResourceQuota should verify ResourceQuota with best effort scope. [Conformance]",
            run: |s| {
                let guaranteed = requests("p", json!({"requests": {"cpu": "10m"}}));
                scopes(s, ["BestEffort", "NotBestEffort"], pod("p", "sleep 600", |_| ()), guaranteed)
            },
        },
        Case {
            name: "[sig-scheduling] LimitRange should create a LimitRange with defaults and ensure pod has those defaults applied. [Conformance]",
            run: |s| {
                s.create(
                    "limitranges",
                    json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container",
                    "min": {"cpu": "50m", "memory": "100Mi", "ephemeral-storage": "100Gi"},
                    "max": {"cpu": "500m", "memory": "500Mi", "ephemeral-storage": "500Gi"},
                    "default": {"cpu": "500m", "memory": "500Mi", "ephemeral-storage": "500Gi"},
                    "defaultRequest": {"cpu": "100m", "memory": "200Mi", "ephemeral-storage": "200Gi"}}]}}),
                )?;
                let made = s.create("pods", pod("bare", "sleep 600", |_| ()))?;
                let resources = &made["spec"]["containers"][0]["resources"];
                ensure!(
                    resources["requests"]["cpu"] == "100m" && resources["limits"]["memory"] == "500Mi",
                    "{made}"
                );
                let some = json!({"requests": {"cpu": "300m"}, "limits": {"cpu": "300m"}});
                let made = s.create("pods", requests("some", some))?;
                let resources = &made["spec"]["containers"][0]["resources"];
                ensure!(
                    resources["requests"]["cpu"] == "300m" && resources["requests"]["memory"] == "200Mi",
                    "{made}"
                );
                for (name, cpu) in [("less", "10m"), ("more", "600m")] {
                    let outside = json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu}});
                    let error = s.create("pods", requests(name, outside)).err().map(|e| e.to_string());
                    ensure!(
                        error.as_ref().is_some_and(|e| e.contains("cpu usage per Container is")),
                        "{error:?}"
                    );
                }
                s.merge(
                    "limitranges",
                    "l",
                    "",
                    json!({"spec": {"limits": [{"type": "Container", "min": {"cpu": "9m"}}]}}),
                )?;
                s.create(
                    "pods",
                    requests("less", json!({"requests": {"cpu": "10m"}, "limits": {"cpu": "10m"}})),
                )?;
                gone(s, "limitranges", "l")
            },
        },
    ]
}

fn of_quotas() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] ResourceQuota should create a ResourceQuota and ensure its status is promptly calculated. [Conformance]",
            run: |s| {
                quota(
                    s,
                    "q",
                    json!({"pods": "5", "services": "10", "requests.storage": "10Gi", "count/replicasets.apps": "5"}),
                    json!({}),
                )?;
                used(
                    s,
                    "q",
                    json!({"pods": "0", "services": "0", "requests.storage": "0", "count/replicasets.apps": "0"}),
                )
            },
        },
        Case {
            name: "[sig-api-machinery] ResourceQuota should be able to update and delete ResourceQuota. [Conformance]",
            run: |s| {
                quota(s, "q", json!({"cpu": "1", "memory": "500Mi"}), json!({}))?;
                let mut found = s.get("resourcequotas", "q")?;
                found["spec"]["hard"] = json!({"cpu": "2", "memory": "1Gi"});
                let updated = s.update("resourcequotas", &found)?;
                ensure!(updated["spec"]["hard"] == json!({"cpu": "2", "memory": "1Gi"}), "{updated}");
                s.wait_any("resourcequotas", "q", "new limits", |q| q["status"]["hard"]["cpu"] == "2")?;
                gone(s, "resourcequotas", "q")
            },
        },
        Case {
            name: "[sig-api-machinery] ResourceQuota should manage the lifecycle of a ResourceQuota [Conformance]",
            run: |s| {
                let labelled = json!({"metadata": {"name": "q", "labels": {"e2e": "q"}}, "spec": {"hard": {"cpu": "500m", "memory": "500Mi"}}});
                s.create("resourcequotas", labelled)?;
                ensure!(s.list("resourcequotas", "e2e=q")?.len() == 1);
                let patched = s.merge(
                    "resourcequotas",
                    "q",
                    "",
                    json!({"metadata": {"labels": {"q": "patched"}}, "spec": {"hard": {"memory": "750Mi"}}}),
                )?;
                ensure!(
                    patched["spec"]["hard"]["memory"] == "750Mi"
                        && patched["metadata"]["labels"]["q"] == "patched"
                );
                s.delete_all("resourcequotas", "e2e=q")?;
                s.wait_gone("resourcequotas", "q")
            },
        },
        Case {
            name: "[sig-api-machinery] ResourceQuota should apply changes to a resourcequota status [Conformance]",
            run: |s| {
                quota(s, "q", json!({"cpu": "500m", "memory": "500Mi"}), json!({}))?;
                let mut found = s.get("resourcequotas", "q")?;
                found["status"]["hard"] = json!({"cpu": "250m", "memory": "250Mi"});
                // Either the change is seen, or the controller has put the spec's limits back already.
                let path = format!("/api/v1/namespaces/{}/resourcequotas/q/status", s.namespace);
                found["metadata"]["resourceVersion"] = Value::Null;
                let updated = s.send(http::Method::PUT, &path, &found)?;
                ensure!(updated["status"]["hard"]["cpu"] == "250m", "{updated}");
                s.wait_any("resourcequotas", "q", "the spec's limits again", |q| {
                    q["status"]["hard"] == q["spec"]["hard"]
                })?;
                let patched = s.merge(
                    "resourcequotas",
                    "q",
                    "status",
                    json!({"metadata": {"annotations": {"by": "status"}}}),
                )?;
                ensure!(patched["metadata"]["annotations"]["by"] == "status", "{patched}");
                let read = s.path(&path)?;
                ensure!(read["spec"]["hard"]["cpu"] == "500m", "{read}");
                Ok(())
            },
        },
    ]
}
