//! \[sig-api-machinery\]: strict fields of built-in types, garbage of ReplicationControllers, webhooks on custom
//! resources whose stored version changes.

use anyhow::{Context, ensure};
use client::{DeleteParams, Propagation};
use http::Method;
use serde_json::{Value, json};
use testkit::Case;
use testkit::cluster::Scope;
use testkit::image::BUSYBOX;
use testkit::pods::has;
use testkit::webhook::{Webhook, patching};

use crate::crd::{anything, definition, establish, eventually, foo, foos, version};

fn answer(s: &Scope<'_>, method: Method, path: &str, kind: &str, body: &str) -> anyhow::Result<(u16, Value)> {
    let (code, _, body) = s.raw(method, path, &[("content-type", kind)], body.to_owned())?;
    Ok((code, serde_json::from_slice(&body)?))
}

fn deployments(s: &Scope<'_>, rest: &str) -> String {
    format!("/apis/apps/v1/namespaces/{}/deployments{rest}", s.namespace)
}

/// A Deployment as text, with more members of its spec, of its pods' containers and of its metadata.
fn deployment(spec: &str, container: &str, metadata: &str) -> String {
    format!(
        r#"{{"apiVersion":"apps/v1","kind":"Deployment","metadata":{{"name":"d"{metadata},"labels":{{"app":"nginx"}}}},
        "spec":{{{spec}"selector":{{"matchLabels":{{"app":"nginx"}}}},"template":{{"metadata":{{"labels":{{"app":"nginx"}}}},
        "spec":{{"containers":[{{"name":"nginx","image":"nginx:latest"{container}}}]}}}}}}}}"#
    )
}

fn unknown_and_duplicate(s: &Scope<'_>) -> anyhow::Result<()> {
    let body = deployment(
        r#""unknown1":"val1","unknownDupe":"a","unknownDupe":"b","paused":true,"paused":false,"#,
        r#","unknownNested":"val1","imagePullPolicy":"Always","imagePullPolicy":"Never""#,
        "",
    );
    let wanted = [
        "unknown field \"spec.unknown1\"",
        "unknown field \"spec.unknownDupe\"",
        "duplicate field \"spec.paused\"",
        "unknown field \"spec.template.spec.containers[0].unknownNested\"",
        "duplicate field \"spec.template.spec.containers[0].imagePullPolicy\"",
    ];
    let strict = deployments(s, "?fieldValidation=Strict");
    let (code, refused) = answer(s, Method::POST, &strict, "application/json", &body)?;
    ensure!(code == 400, "{refused}");
    has(refused["message"].as_str().unwrap_or_default(), &wanted)?;
    has(refused["message"].as_str().unwrap_or_default(), &["strict decoding error: "])?;
    let (code, headers, _) =
        s.raw(Method::POST, &deployments(s, ""), &[("content-type", "application/json")], body)?;
    ensure!(code == 201, "{code}");
    let warnings: Vec<_> = headers.get_all("warning").iter().filter_map(|w| w.to_str().ok()).collect();
    ensure!(warnings.len() == wanted.len(), "{warnings:?}");
    let apply = deployments(s, "/d?fieldManager=m&fieldValidation=Strict&force=true");
    let body = deployment(r#""unknown1":"val1","#, "", "");
    let (code, refused) = answer(s, Method::PATCH, &apply, "application/apply-patch+yaml", &body)?;
    let message = "failed to create typed patch object (/d; apps/v1, Kind=Deployment): .spec.unknown1: field not declared in schema";
    ensure!(code == 500 && refused["message"] == message, "{refused}");
    Ok(())
}

fn unknown_metadata(s: &Scope<'_>) -> anyhow::Result<()> {
    let root = deployment("", "", r#","unknownMeta":"x""#);
    let inner = deployment("", "", "").replacen(
        r#""template":{"metadata":{"#,
        r#""template":{"metadata":{"unknownMeta":"x","#,
        1,
    );
    for (body, path) in [(root, "metadata"), (inner, "spec.template.metadata")] {
        let strict = deployments(s, "?fieldValidation=Strict");
        let (code, refused) = answer(s, Method::POST, &strict, "application/json", &body)?;
        let wanted = format!("strict decoding error: unknown field \"{path}.unknownMeta\"");
        ensure!(code == 400, "{refused}");
        has(refused["message"].as_str().unwrap_or_default(), &[&wanted])?;
        let apply = deployments(s, "/d?fieldManager=m&fieldValidation=Strict");
        let (code, refused) = answer(s, Method::PATCH, &apply, "application/apply-patch+yaml", &body)?;
        let wanted = format!(".{path}.unknownMeta: field not declared in schema");
        ensure!(code == 500, "{refused}");
        has(refused["message"].as_str().unwrap_or_default(), &[&wanted])?;
    }
    Ok(())
}

fn controller(s: &Scope<'_>, name: &str, replicas: u32) -> anyhow::Result<Vec<Value>> {
    let pods = json!({"metadata": {"labels": {"app": name}}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": BUSYBOX, "command": ["sleep", "600"]}]}});
    let spec = json!({"replicas": replicas, "selector": {"app": name}, "template": pods});
    let rc = json!({"kind": "ReplicationController", "metadata": {"name": name}, "spec": spec});
    s.create("replicationcontrollers", rc)?;
    s.wait_any("replicationcontrollers", name, "its pods", |rc| {
        rc["status"]["replicas"].as_u64().unwrap_or(0) == u64::from(replicas)
    })?;
    s.list("pods", &format!("app={name}"))
}

fn remove(s: &Scope<'_>, name: &str, how: Propagation) -> anyhow::Result<()> {
    s.delete("replicationcontrollers", name, &DeleteParams::propagating(how))?;
    Ok(())
}

fn collected(s: &Scope<'_>) -> anyhow::Result<()> {
    controller(s, "rc", 2)?;
    remove(s, "rc", Propagation::Background)?;
    s.wait_gone("replicationcontrollers", "rc")?;
    eventually("no pods", || {
        ensure!(s.list("pods", "app=rc")?.is_empty());
        Ok(())
    })
}

fn foreground(s: &Scope<'_>) -> anyhow::Result<()> {
    let pods = controller(s, "rc", 2)?;
    // A pod that stays for a while shows that its controller waits for it.
    let name = pods[0]["metadata"]["name"].as_str().context("a name")?;
    s.merge("pods", name, "", json!({"metadata": {"finalizers": ["example.com/hold"]}}))?;
    remove(s, "rc", Propagation::Foreground)?;
    s.wait_any("pods", name, "its deletion", |p| p["metadata"]["deletionTimestamp"].is_string())?;
    let rc = s.get("replicationcontrollers", "rc")?;
    ensure!(rc["metadata"]["finalizers"] == json!(["foregroundDeletion"]), "{rc}");
    s.merge("pods", name, "", json!({"metadata": {"finalizers": null}}))?;
    s.wait_gone("replicationcontrollers", "rc")?;
    ensure!(s.list("pods", "app=rc")?.is_empty());
    Ok(())
}

fn orphaned(s: &Scope<'_>) -> anyhow::Result<()> {
    let pods = controller(s, "rc", 2)?;
    remove(s, "rc", Propagation::Orphan)?;
    s.wait_gone("replicationcontrollers", "rc")?;
    let left = s.list("pods", "app=rc")?;
    ensure!(left.len() == pods.len(), "{left:?}");
    for pod in left {
        ensure!(pod["metadata"]["deletionTimestamp"].is_null(), "{pod}");
        ensure!(pod["metadata"].get("ownerReferences").is_none(), "{pod}");
    }
    Ok(())
}

/// Pods with a second owner that stays outlive the first.
fn two_owners(s: &Scope<'_>) -> anyhow::Result<()> {
    let pods = controller(s, "doomed", 4)?;
    controller(s, "stays", 0)?;
    let other = s.get("replicationcontrollers", "stays")?;
    let second = json!({"apiVersion": "v1", "kind": "ReplicationController", "name": "stays", "uid": other["metadata"]["uid"]});
    let names: Vec<_> = pods.iter().filter_map(|p| p["metadata"]["name"].as_str()).collect();
    for name in names.iter().take(2) {
        // The kubelet writes statuses meanwhile.
        let patch = json!({"metadata": {"ownerReferences": [second]}});
        s.patch("pods", name, "", &client::Patch::Strategic(patch))?;
    }
    remove(s, "doomed", Propagation::Foreground)?;
    s.wait_gone("replicationcontrollers", "doomed")?;
    let mut left: Vec<Value> = s.list("pods", "app=doomed")?;
    left.retain(|p| p["metadata"]["deletionTimestamp"].is_null());
    ensure!(left.len() == 2, "{left:?}");
    for pod in left {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        ensure!(names.iter().take(2).any(|n| *n == name), "{name}");
        eventually("only the owner that stays", || {
            let owners = s.get("pods", name)?["metadata"]["ownerReferences"].clone();
            ensure!(owners.as_array().is_some_and(|o| o.len() == 1 && o[0]["name"] == "stays"), "{owners}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A webhook goes on to mutate when the stored version changes from v1 to v2.
fn other_stored_version(s: &Scope<'_>) -> anyhow::Result<()> {
    let (v1, v2) = (version("v1", true, anything()), version("v2", false, anything()));
    let crd = definition(s, json!([v1, v2]));
    establish(s, &crd)?;
    let webhook = Webhook::start(|request| {
        let stage = if request["operation"] == "CREATE" { "created" } else { "updated" };
        patching(&json!([{"op": "add", "path": format!("/data/{stage}"), "value": "yes"}]))
    })?;
    let group = format!("{}.example.com", s.namespace);
    let rule = json!({"operations": ["CREATE", "UPDATE"], "apiGroups": [group], "apiVersions": ["*"], "resources": ["foos"]});
    let hook = json!({"name": "custom.example.com", "clientConfig": webhook.client_config, "rules": [rule],
        "sideEffects": "None", "admissionReviewVersions": ["v1"]});
    let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    let name = format!("stored-{}", s.namespace);
    let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name}, "webhooks": [hook]});
    s.send(Method::POST, path, &configuration)?;
    let made = eventually("a mutated object", || {
        let object = foo(s, "v1", "a", json!({"data": {"start": "yes"}}));
        let made = s.send(Method::POST, &foos(s, "v1"), &object)?;
        if made["data"]["created"] != "yes" {
            s.send(Method::DELETE, &format!("{}/a", foos(s, "v1")), &json!({}))?;
        }
        ensure!(made["data"]["created"] == "yes", "{made}");
        Ok(made)
    })?;
    ensure!(made["data"]["start"] == "yes", "{made}");
    let (v1, v2) = (version("v1", false, anything()), version("v2", true, anything()));
    let definition = crd["metadata"]["name"].as_str().context("a name")?;
    s.merge("customresourcedefinitions", definition, "", json!({"spec": {"versions": [v1, v2]}}))?;
    let patched = eventually("the new stored version takes writes", || {
        let patch = json!({"data": {"patched": "yes"}}).to_string();
        let kind = "application/merge-patch+json";
        let (code, patched) = answer(s, Method::PATCH, &format!("{}/a", foos(s, "v1")), kind, &patch)?;
        ensure!(code == 200, "{patched}");
        Ok(patched)
    })?;
    for key in ["start", "created", "updated", "patched"] {
        ensure!(patched["data"][key] == "yes", "{patched}");
    }
    s.send(Method::DELETE, &format!("{path}/{name}"), &json!({}))?;
    Ok(())
}

/// Of many who race for what is left of a quota, exactly as many win as there is room.
fn race(s: &Scope<'_>) -> anyhow::Result<()> {
    s.create(
        "resourcequotas",
        json!({"kind": "ResourceQuota", "metadata": {"name": "q"},
        "spec": {"hard": {"count/configmaps": "10"}}}),
    )?;
    // Every namespace gets a ConfigMap of its own.
    s.wait_any("resourcequotas", "q", "its status", |q| q["status"]["used"]["count/configmaps"] == "1")?;
    let free = 10 - s.list("configmaps", "")?.len();
    let path = format!("/api/v1/namespaces/{}/configmaps", s.namespace);
    let won = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..RACERS)
            .map(|i| {
                let path = &path;
                scope.spawn(move || {
                    s.send(Method::POST, path, &json!({"metadata": {"name": format!("r{i}")}}))
                })
            })
            .collect();
        racers.into_iter().filter_map(|racer| racer.join().ok()).filter(Result::is_ok).count()
    });
    ensure!(won == free, "{won} of {RACERS} won where {free} had room");
    ensure!(s.list("configmaps", "")?.len() == 10);
    Ok(())
}

/// Requests at the same time.
const RACERS: usize = 50;

fn components(s: &Scope<'_>) -> anyhow::Result<()> {
    let shown = s.kubectl(&["get", "componentstatuses"])?;
    let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(rows.first().is_some_and(|r| *r == ["NAME", "STATUS", "MESSAGE", "ERROR"]), "{shown}");
    for name in ["controller-manager", "etcd-0", "scheduler"] {
        ensure!(rows.iter().any(|r| *r == [name, "Healthy", "ok"]), "{shown}");
    }
    // Hashes that upstream's own servers show.
    for (path, resource, hash) in
        [("/api/v1", "pods", "xPOwRZ+Yhw8="), ("/apis/events.k8s.io/v1", "events", "r2yiGXH7wu8=")]
    {
        let list = s.path(path)?;
        let mut all = list["resources"].as_array().into_iter().flatten();
        let found = all.find(|r| r["name"] == resource).context("no such resource")?;
        ensure!(found["storageVersionHash"] == hash, "{found}");
    }
    let addresses = s.path("/api")?["serverAddressByClientCIDRs"].clone();
    ensure!(addresses[0]["clientCIDR"] == "0.0.0.0/0", "{addresses}");
    Ok(())
}

/// The page of metrics tells of queues, the store and webhooks under upstream's names.
fn metrics(s: &Scope<'_>) -> anyhow::Result<()> {
    let (code, _, page) = s.raw(Method::GET, "/metrics", &[], "")?;
    let page = String::from_utf8(page.to_vec())?;
    ensure!(code == 200, "{code}");
    for line in [
        "workqueue_depth{name=\"deployment\"} ",
        "workqueue_work_duration_seconds_count{name=\"namespace\"} ",
        "etcd_requests_total{group=\"\",operation=\"create\",resource=\"namespaces\"} ",
        "etcd_request_duration_seconds_bucket{group=\"\",operation=\"update\",resource=\"nodes\",le=\"0.005\"} ",
    ] {
        ensure!(page.lines().any(|l| l.starts_with(line)), "{line} is missing");
    }
    Ok(())
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] FieldValidation should detect unknown and duplicate fields of a typed object [Conformance]",
            run: unknown_and_duplicate,
        },
        Case {
            name: "[sig-api-machinery] FieldValidation should detect unknown metadata fields of a typed object [Conformance]",
            run: unknown_metadata,
        },
        Case {
            name: "[sig-api-machinery] Garbage collector should delete pods created by rc when not orphaning [Conformance]",
            run: collected,
        },
        Case {
            name: "[sig-api-machinery] Garbage collector should keep the rc around until all its pods are deleted if the deleteOptions says so [Serial] [Conformance]",
            run: foreground,
        },
        Case {
            name: "[sig-api-machinery] Garbage collector should orphan pods created by rc if delete options say so [Serial] [Conformance]",
            run: orphaned,
        },
        Case {
            name: "[sig-api-machinery] Garbage collector should not delete dependents that have both valid owner and owner that's waiting for dependents to be deleted [Serial] [Conformance]",
            run: two_owners,
        },
        Case { name: "Ferry: component statuses and what discovery says beside resources", run: components },
        Case { name: "Ferry: metrics of queues and of the store", run: metrics },
        Case { name: "Ferry: a quota is never exceeded by those who race for it", run: race },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should mutate custom resource with different stored version [Conformance]",
            run: other_stored_version,
        },
    ]
}
