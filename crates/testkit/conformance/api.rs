//! \[sig-api-machinery\], \[sig-apps\] and \[sig-auth\]: watches, garbage, namespaces, workloads, accounts.

use anyhow::ensure;
use client::{DeleteParams, EventKind, Propagation, WatchParams};
use serde_json::{Value, json};
use testkit::image::BUSYBOX;
use testkit::pods::pod;
use testkit::{Case, Scope};

fn workload(kind: &str, replicas: u32) -> Value {
    json!({"kind": kind, "metadata": {"name": "web"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "c", "image": BUSYBOX, "command": ["sleep", "600"]}]}}}})
}

fn config(s: &Scope<'_>, name: &str, label: &str) -> client::Result<Value> {
    s.create("configmaps", json!({"metadata": {"name": name, "labels": {"w": label}}, "data": {"n": "0"}}))
}

fn available(s: &Scope<'_>, resource: &str, n: u32) -> anyhow::Result<Value> {
    s.wait_any(resource, "web", "available replicas", |d| d["status"]["availableReplicas"] == n)
}

fn watching(s: &Scope<'_>, resource_version: &str) -> client::Result<client::WatchStream> {
    let resource_version = resource_version.to_owned();
    s.watch(
        "configmaps",
        &WatchParams { label_selector: "w=a".into(), resource_version, ..Default::default() },
    )
}

fn version(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default()
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [from_server(), from_watchers(), from_deployment()].concat()
}

fn from_server() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] server version should find the server version [Conformance]",
            run: |s| {
                let v = s.path("/version")?;
                ensure!(v["major"] == "1" && v["minor"].as_str().is_some_and(|m| m.starts_with("37")), "{v}");
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] Discovery should validate PreferredVersion for each APIGroup [Conformance]",
            run: |s| {
                let groups = s.path("/apis")?;
                for group in groups["groups"].as_array().into_iter().flatten() {
                    let path = format!("/apis/{}", group["name"].as_str().unwrap_or_default());
                    let one = s.path(&path)?;
                    ensure!(
                        one["preferredVersion"] == group["preferredVersion"]
                            && one["versions"]
                                .as_array()
                                .is_some_and(|v| v.contains(&one["preferredVersion"])),
                        "{one}"
                    );
                }
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] Watchers should observe add, update, and delete watch notifications on configmaps [Conformance]",
            run: |s| {
                let mut w = watching(s, "")?;
                config(s, "x", "a")?;
                s.merge("configmaps", "x", "", json!({"data": {"n": "1"}}))?;
                s.delete("configmaps", "x", &DeleteParams::default())?;
                for kind in [EventKind::Added, EventKind::Modified, EventKind::Deleted] {
                    ensure!(s.next(&mut w)?.0 == kind);
                }
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] Watchers should be able to start watching from a specific resource version [Conformance]",
            run: |s| {
                config(s, "x", "a")?;
                let first = s.merge("configmaps", "x", "", json!({"data": {"n": "1"}}))?;
                s.merge("configmaps", "x", "", json!({"data": {"n": "2"}}))?;
                s.delete("configmaps", "x", &DeleteParams::default())?;
                let mut w = watching(s, version(&first))?;
                let (kind, object) = s.next(&mut w)?;
                ensure!(kind == EventKind::Modified && object["data"]["n"] == "2", "{object}");
                ensure!(s.next(&mut w)?.0 == EventKind::Deleted);
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] Watchers should be able to restart watching from the last resource version observed by the previous watch [Conformance]",
            run: |s| {
                let mut w = watching(s, "")?;
                config(s, "x", "a")?;
                let (_, seen) = s.next(&mut w)?;
                drop(w);
                s.merge("configmaps", "x", "", json!({"data": {"n": "1"}}))?;
                s.delete("configmaps", "x", &DeleteParams::default())?;
                let mut w = watching(s, version(&seen))?;
                ensure!(s.next(&mut w)?.0 == EventKind::Modified && s.next(&mut w)?.0 == EventKind::Deleted);
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] Watchers should observe an object deletion if it stops meeting the requirements of the selector [Conformance]",
            run: |s| {
                let mut w = watching(s, "")?;
                config(s, "x", "a")?;
                s.merge("configmaps", "x", "", json!({"metadata": {"labels": {"w": "b"}}}))?;
                s.merge("configmaps", "x", "", json!({"metadata": {"labels": {"w": "a"}}}))?;
                for kind in [EventKind::Added, EventKind::Deleted, EventKind::Added] {
                    ensure!(s.next(&mut w)?.0 == kind);
                }
                Ok(())
            },
        },
    ]
}

fn from_watchers() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] Watchers should receive events on concurrent watches in same order [Conformance]",
            run: |s| {
                let start = config(s, "start", "b")?;
                let mut watches =
                    (0..5).map(|_| watching(s, version(&start))).collect::<client::Result<Vec<_>>>()?;
                for n in 0..10 {
                    config(s, &format!("x{n}"), "a")?;
                }
                let mut orders = Vec::new();
                for w in &mut watches {
                    orders.push(
                        (0..10)
                            .map(|_| Ok(version(&s.next(w)?.1).to_owned()))
                            .collect::<anyhow::Result<Vec<_>>>()?,
                    );
                }
                ensure!(orders.windows(2).all(|p| p[0] == p[1]), "{orders:?}");
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] Garbage collector should not be blocked by dependency circle [Conformance]",
            run: |s| {
                let names = ["pod1", "pod2", "pod3"];
                for name in names {
                    s.create("pods", pod(name, "sleep 600", |_| {}))?;
                }
                for (dependent, owner) in [("pod1", "pod3"), ("pod2", "pod1"), ("pod3", "pod2")] {
                    let uid = s.get("pods", owner)?["metadata"]["uid"].clone();
                    let reference = json!({"apiVersion": "v1", "kind": "Pod", "name": owner, "uid": uid,
                        "controller": true, "blockOwnerDeletion": true});
                    s.merge("pods", dependent, "", json!({"metadata": {"ownerReferences": [reference]}}))?;
                }
                let foreground =
                    DeleteParams { propagation: Some(Propagation::Foreground), ..Default::default() };
                s.delete("pods", "pod1", &foreground)?;
                names.iter().try_for_each(|name| s.wait_gone("pods", name))
            },
        },
        Case {
            name: "[sig-api-machinery] Garbage collector should delete RS created by deployment when not orphaning [Conformance]",
            run: |s| {
                s.create("deployments", workload("Deployment", 1))?;
                let rs = s.wait_any("replicasets", "", "a ReplicaSet", |_| true)?;
                s.delete("deployments", "web", &DeleteParams::propagating(Propagation::Background))?;
                s.wait_gone("replicasets", rs["metadata"]["name"].as_str().unwrap_or_default())
            },
        },
        Case {
            name: "[sig-api-machinery] Namespaces [Serial] should patch a Namespace [Conformance]",
            run: |s| {
                let ns = s.merge(
                    "namespaces",
                    &s.namespace,
                    "",
                    json!({"metadata": {"labels": {"testLabel": "testValue"}}}),
                )?;
                ensure!(ns["metadata"]["labels"]["testLabel"] == "testValue", "{ns}");
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] Namespaces [Serial] should ensure that all pods are removed when a namespace is deleted [Conformance]",
            run: |s| {
                let inner = s.cluster.namespace("inner")?;
                inner.ready(pod("p", "sleep 600", |_| ()))?;
                inner.delete("namespaces", &inner.namespace, &DeleteParams::default())?;
                inner.wait_gone("namespaces", &inner.namespace)?;
                ensure!(inner.list("pods", "")?.is_empty());
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] Namespaces [Serial] should ensure that all services are removed when a namespace is deleted [Conformance]",
            run: |s| {
                let inner = s.cluster.namespace("inner")?;
                inner.create(
                    "services",
                    json!({"metadata": {"name": "svc"}, "spec": {"ports": [{"port": 80}]}}),
                )?;
                inner.delete("namespaces", &inner.namespace, &DeleteParams::default())?;
                inner.wait_gone("namespaces", &inner.namespace)?;
                ensure!(inner.list("services", "")?.is_empty());
                Ok(())
            },
        },
    ]
}

fn from_deployment() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-apps] Deployment RollingUpdateDeployment should delete old pods and create new ones [Conformance]",
            run: |s| {
                s.create("deployments", workload("Deployment", 1))?;
                available(s, "deployments", 1)?;
                let old = s.list("replicasets", "app=web")?;
                s.merge(
                    "deployments",
                    "web",
                    "",
                    json!({"spec": {"template": {"metadata": {"annotations": {"v": "2"}}}}}),
                )?;
                let name = old[0]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                s.wait_any("replicasets", &name, "no replicas", |r| r["status"]["replicas"] == 0)?;
                available(s, "deployments", 1)?;
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] ReplicaSet Replicaset should have a working scale subresource [Conformance]",
            run: |s| {
                s.create("replicasets", workload("ReplicaSet", 1))?;
                available(s, "replicasets", 1)?;
                s.merge("replicasets", "web", "scale", json!({"spec": {"replicas": 2}}))?;
                available(s, "replicasets", 2)?;
                Ok(())
            },
        },
        Case {
            name: "[sig-apps] ReplicaSet should serve a basic image on each replica with a public image [Conformance]",
            run: |s| {
                s.create("replicasets", workload("ReplicaSet", 2))?;
                available(s, "replicasets", 2)?;
                Ok(())
            },
        },
        Case {
            name: "[sig-auth] ServiceAccounts should guarantee kube-root-ca.crt exist in any namespace [Conformance]",
            run: |s| {
                s.wait_any("configmaps", "kube-root-ca.crt", "a certificate", |c| {
                    c["data"]["ca.crt"].is_string()
                })?;
                s.delete("configmaps", "kube-root-ca.crt", &DeleteParams::default())?;
                s.wait_any("configmaps", "kube-root-ca.crt", "a certificate", |c| {
                    c["data"]["ca.crt"].is_string()
                })?;
                Ok(())
            },
        },
        Case {
            name: "[sig-auth] ServiceAccounts should mount an API token into pods [Conformance]",
            run: |s| {
                testkit::pods::has(&s.script("token", "cd /var/run/secrets/kubernetes.io/serviceaccount; cat namespace ca.crt; [ -s token ] && echo token")?, &[&s.namespace, "BEGIN CERTIFICATE", "token"])
            },
        },
    ]
}
