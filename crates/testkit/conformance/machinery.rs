//! \[sig-api-machinery\]: flow control, other servers behind this one, discovery, namespaces, garbage.

use std::sync::{Arc, Mutex};

use anyhow::{Context, ensure};
use client::{DeleteParams, Propagation};
use http::Method;
use serde_json::{Value, json};
use testkit::Case;
use testkit::cluster::Scope;
use testkit::hook::{Handler, Hook};
use testkit::image::BUSYBOX;
use testkit::pods::has;

use crate::crd::{anything, definition, establish, eventually, version};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const FLOW: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

/// A deployment and the one ReplicaSet that it makes.
fn deployment(s: &Scope<'_>) -> anyhow::Result<String> {
    s.create(
        "deployments",
        json!({"kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": BUSYBOX, "command": ["sleep", "600"]}]}}}}),
    )?;
    let set = s.wait_any("replicasets", "", "a ReplicaSet", |_| true)?;
    Ok(set["metadata"]["name"].as_str().unwrap_or_default().to_owned())
}

fn orphans(s: &Scope<'_>) -> anyhow::Result<()> {
    let set = deployment(s)?;
    s.delete("deployments", "web", &DeleteParams::propagating(Propagation::Orphan))?;
    s.wait_gone("deployments", "web")?;
    s.wait_any("replicasets", &set, "no owner", |r| r["metadata"].get("ownerReferences").is_none())?;
    Ok(())
}

/// Discovery in one document, as raw request and for a custom resource.
fn aggregated(s: &Scope<'_>, path: &str) -> anyhow::Result<Value> {
    let (code, headers, bytes) = s.raw(Method::GET, path, &[("accept", AGGREGATED)], "")?;
    ensure!(code == 200 && headers["content-type"] == AGGREGATED, "{code} {headers:?}");
    Ok(serde_json::from_slice(&bytes)?)
}

fn finds(document: &Value, group: &str, version: &str, resource: &str) -> anyhow::Result<Value> {
    let groups = document["items"].as_array().into_iter().flatten();
    let group = groups.into_iter().find(|g| g["metadata"]["name"].as_str().unwrap_or_default() == group);
    let versions = group.context("no such group")?["versions"].as_array().cloned().unwrap_or_default();
    let version = versions.into_iter().find(|v| v["version"] == version).context("no such version")?;
    ensure!(version["freshness"] == "Current", "{}", version["freshness"]);
    let resources = version["resources"].as_array().cloned().unwrap_or_default();
    resources.into_iter().find(|r| r["resource"] == resource).context("no such resource")
}

fn built_in(s: &Scope<'_>) -> anyhow::Result<()> {
    let (core, groups) = (aggregated(s, "/api")?, aggregated(s, "/apis")?);
    for (document, group, resource) in [
        (&core, "", "namespaces"),
        (&core, "", "pods"),
        (&groups, "apps", "deployments"),
        (&groups, "batch", "jobs"),
        (&groups, "admissionregistration.k8s.io", "validatingwebhookconfigurations"),
        (&groups, "apiextensions.k8s.io", "customresourcedefinitions"),
        (&groups, "apiregistration.k8s.io", "apiservices"),
    ] {
        finds(document, group, "v1", resource)?;
    }
    Ok(())
}

fn custom(s: &Scope<'_>) -> anyhow::Result<()> {
    establish(s, &definition(s, json!([version("v1", true, anything())])))?;
    let group = format!("{}.example.com", s.namespace);
    eventually("the resource is in the document", || finds(&aggregated(s, "/apis")?, &group, "v1", "foos"))?;
    s.wait_local_api(&format!("v1.{group}"))
}

trait Apis {
    fn wait_local_api(&self, name: &str) -> anyhow::Result<()>;
}

impl Apis for Scope<'_> {
    /// The APIService that is made for what is served here.
    fn wait_local_api(&self, name: &str) -> anyhow::Result<()> {
        eventually("a local APIService", || {
            let api = self.path(&format!("/apis/apiregistration.k8s.io/v1/apiservices/{name}"))?;
            ensure!(api["status"]["conditions"][0]["reason"] == "Local", "{api}");
            Ok(())
        })
    }
}

fn every_group(s: &Scope<'_>) -> anyhow::Result<()> {
    let groups = s.path("/apis")?;
    for group in groups["groups"].as_array().into_iter().flatten() {
        for version in group["versions"].as_array().into_iter().flatten() {
            let wanted = version["groupVersion"].as_str().unwrap_or_default();
            let list = s.path(&format!("/apis/{wanted}"))?;
            ensure!(list["groupVersion"] == wanted, "{list}");
            ensure!(list["resources"].as_array().is_some_and(|r| !r.is_empty()), "{wanted} has nothing");
        }
    }
    Ok(())
}

fn namespace_finalizer(s: &Scope<'_>) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{}", s.namespace);
    let mut namespace = s.path(&path)?;
    let finalizers = namespace["spec"]["finalizers"].as_array().cloned().unwrap_or_default();
    let mut more = finalizers.clone();
    more.push("e2e.example.com/fakeFinalizer".into());
    namespace["spec"]["finalizers"] = more.into();
    let with = s.send(Method::PUT, &format!("{path}/finalize"), &namespace)?;
    has(&with["spec"].to_string(), &["fakeFinalizer"])?;
    let mut without = with;
    without["spec"]["finalizers"] = finalizers.into();
    let without = s.send(Method::PUT, &format!("{path}/finalize"), &without)?;
    ensure!(!without["spec"].to_string().contains("fakeFinalizer"), "{without}");
    Ok(())
}

fn namespace_update(s: &Scope<'_>) -> anyhow::Result<()> {
    let mut namespace = s.get("namespaces", &s.namespace)?;
    namespace["metadata"]["labels"][&s.namespace] = "updated".into();
    let updated = s.update("namespaces", &namespace)?;
    ensure!(updated["metadata"]["labels"][&s.namespace] == "updated", "{updated}");
    Ok(())
}

fn namespace_status(s: &Scope<'_>) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{}/status", s.namespace);
    ensure!(s.path(&path)?["status"]["phase"] == "Active");
    let condition =
        |ty: &str| json!({"type": ty, "status": "False", "reason": "E2E", "message": "set from an e2e test"});
    let patched = s.merge(
        "namespaces",
        &s.namespace,
        "status",
        json!({"status": {"conditions": [condition("StatusPatch")]}}),
    )?;
    has(&patched["status"].to_string(), &["StatusPatch"])?;
    let mut namespace = s.path(&path)?;
    namespace["status"]["conditions"] = json!([condition("StatusPatch"), condition("StatusUpdate")]);
    let updated = s.send(Method::PUT, &path, &namespace)?;
    has(&updated["status"].to_string(), &["StatusPatch", "StatusUpdate"])
}

/// A namespace with a pod that is held: other objects stay, and the conditions say what is in the way.
fn ordered(s: &Scope<'_>) -> anyhow::Result<()> {
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}, "spec": {
        "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": BUSYBOX, "command": ["sleep", "600"]}]}});
    s.create("pods", held)?;
    s.create("configmaps", json!({"metadata": {"name": "kept"}}))?;
    s.delete("namespaces", &s.namespace, &DeleteParams::default())?;
    let namespace = s.wait_any("namespaces", &s.namespace, "conditions", |n| {
        let conditions = n["status"]["conditions"].as_array();
        conditions.is_some_and(|c| {
            c.iter().any(|c| c["type"] == "NamespaceFinalizersRemaining" && c["status"] == "True")
        })
    })?;
    has(
        &namespace["status"].to_string(),
        &[
            "Some resources are remaining: pods. has 1 resource instances",
            "example.com/hold in 1 resource instances",
        ],
    )?;
    ensure!(s.get("configmaps", "kept")?["metadata"].get("deletionTimestamp").is_none());
    s.merge("pods", "held", "", json!({"metadata": {"finalizers": null}}))?;
    s.wait_gone("namespaces", &s.namespace)
}

fn classified(s: &Scope<'_>) -> anyhow::Result<()> {
    let name = &s.namespace;
    let level = s.send(Method::POST, &format!("{FLOW}/prioritylevelconfigurations"), &json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration", "metadata": {"name": name},
        "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 1, "limitResponse": {"type": "Reject"}}}}))?;
    let schema = s.send(
        Method::POST,
        &format!("{FLOW}/flowschemas"),
        &json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": name},
        "spec": {"matchingPrecedence": 1000, "priorityLevelConfiguration": {"name": name}, "rules": [{
            "subjects": [{"kind": "User", "user": {"name": name}}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]}}),
    )?;
    let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let asked = |user: &str| -> anyhow::Result<[String; 2]> {
        let headers = [("impersonate-user", user), ("impersonate-group", "system:authenticated")];
        let (_, headers, _) = s.raw(Method::GET, "/version", &headers, "")?;
        let names = ["x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"];
        Ok(names.map(|n| headers.get(n).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()))
    };
    eventually("the request is of the new schema", || {
        ensure!(asked(name)? == [uid(&schema), uid(&level)]);
        Ok(())
    })?;
    ensure!(asked("somebody-else")? != [uid(&schema), uid(&level)]);
    s.send(Method::DELETE, &format!("{FLOW}/flowschemas/{name}"), &json!({}))?;
    s.send(Method::DELETE, &format!("{FLOW}/prioritylevelconfigurations/{name}"), &json!({}))?;
    Ok(())
}

/// A server of a group of its own, behind an APIService: used through discovery, with the caller's name.
fn another_server(s: &Scope<'_>) -> anyhow::Result<()> {
    let group = format!("wardle-{}.example.com", s.namespace);
    let dns = format!("sample.{}.svc", s.namespace);
    let seen = Arc::new(Mutex::new(Vec::<String>::new()));
    let (log, of) = (seen.clone(), group.clone());
    let handler: Handler = Arc::new(move |path, body| {
        log.lock().map(|mut l| l.push(path.to_owned())).ok();
        let own = format!("{of}/v1alpha1");
        match path {
            p if p.ends_with("/v1alpha1") => {
                json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": own,
                "resources": [{"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
                    "verbs": ["create", "delete", "get", "list"]}]})
            }
            p if p.ends_with("/flunders") && body.is_null() => {
                json!({"kind": "FlunderList", "apiVersion": own,
                "metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "rose"}}]})
            }
            p if p.ends_with("/flunders") => body,
            p if p.ends_with("/flunders/rose") => {
                json!({"kind": "Flunder", "apiVersion": own, "metadata": {"name": "rose"}})
            }
            "/openapi/v2" => {
                json!({"swagger": "2.0", "info": {"title": "wardle", "version": "v0"}, "paths": {
                format!("/apis/{own}/flunders"): {"get": {"responses": {"200": {"description": "OK",
                    "schema": {"$ref": "#/definitions/com.example.Flunder"}}}}}, "/version/": {}},
                "definitions": {"com.example.Flunder": {"type": "object", "description": "a flunder of wardle",
                    "properties": {"metadata": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.Status"}},
                    "x-kubernetes-group-version-kind": [{"group": of, "version": "v1alpha1", "kind": "Flunder"}]},
                    "io.k8s.apimachinery.pkg.apis.meta.v1.Status": {"type": "object", "description": "another"}}})
            }
            _ => json!({"kind": "Status", "code": 404}),
        }
    });
    let hook = Hook::start(&[&dns], handler)?;
    let name = format!("v1alpha1.{group}");
    let api = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": name},
        "spec": {"group": group, "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
            "caBundle": hook.ca_bundle, "service": {"namespace": s.namespace, "name": "sample", "port": 7443}}});
    let apis = "/apis/apiregistration.k8s.io/v1/apiservices";
    s.send(Method::POST, apis, &api)?;
    let condition = |reason: &str| {
        eventually(reason, || {
            let api = s.path(&format!("{apis}/{name}"))?;
            ensure!(api["status"]["conditions"][0]["reason"] == reason, "{}", api["status"]);
            Ok(())
        })
    };
    condition("ServiceNotFound")?;
    let (code, _, body) = s.raw(Method::GET, &format!("/apis/{group}/v1alpha1"), &[], "")?;
    ensure!(code == 503 && body.starts_with(b"service unavailable"), "{code} {body:?}");
    s.create("services", json!({"metadata": {"name": "sample"}, "spec": {"ports": [{"name": "https", "port": 7443, "targetPort": hook.port}]}}))?;
    condition("EndpointsNotFound")?;
    let mine = s.path("/api/v1/nodes")?["items"][0]["status"]["addresses"][0]["address"].clone();
    let mine = if mine == "127.0.0.1" { json!("10.42.0.1") } else { mine };
    s.create("endpointslices", json!({
        "metadata": {"name": "sample", "labels": {"kubernetes.io/service-name": "sample"}}, "addressType": "IPv4",
        "ports": [{"name": "https", "port": hook.port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [mine], "conditions": {"ready": true}}]}))?;
    condition("Passed")?;
    finds(&aggregated(s, "/apis")?, &group, "v1alpha1", "flunders")?;
    let of_group = s.path(&format!("/apis/{group}"))?;
    ensure!(of_group["preferredVersion"]["version"] == "v1alpha1", "{of_group}");
    let flunders = format!("/apis/{group}/v1alpha1/namespaces/{}/flunders", s.namespace);
    let made = s.send(Method::POST, &flunders, &json!({"metadata": {"name": "rose"}}))?;
    ensure!(made["metadata"]["name"] == "rose", "{made}");
    has(&s.kubectl(&["get", &format!("flunders.{group}"), "-o", "name"])?, &["rose"])?;
    let seen = seen.lock().map(|l| l.clone()).unwrap_or_default();
    ensure!(seen.contains(&flunders), "{seen:?}");
    let flunder = "/definitions/com.example.Flunder";
    let swagger = s.path("/openapi/v2")?;
    let renamed = "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.Status_v2";
    let of_flunder = swagger.pointer(flunder).cloned().unwrap_or_default();
    ensure!(of_flunder["properties"]["metadata"]["$ref"] == renamed, "{of_flunder}");
    ensure!(swagger["paths"][format!("/apis/{group}/v1alpha1/flunders")].is_object());
    // As kubectl asks for it.
    let accept = [("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")];
    let (code, _, bytes) = s.raw(Method::GET, "/openapi/v2", &accept, "")?;
    let text = b"a flunder of wardle";
    ensure!(code == 200 && bytes.windows(text.len()).any(|w| w == text), "{code}");
    s.send(Method::DELETE, &format!("{apis}/{name}"), &json!({}))?;
    eventually("its documentation is gone", || {
        ensure!(s.path("/openapi/v2")?.pointer(flunder).is_none());
        Ok(())
    })?;
    eventually("the group is gone", || {
        ensure!(s.path(&format!("/apis/{group}")).is_err());
        Ok(())
    })
}

/// What takes two intervals of compaction.
fn patiently<T>(what: &str, mut look: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    (eventually(what, &mut look).or_else(|_| eventually(what, &mut look)))
        .or_else(|_| eventually(what, &mut look))
}

/// A list whose snapshot is compacted away goes on with what is there; run with a short compaction interval.
fn compacted(s: &Scope<'_>) -> anyhow::Result<()> {
    for i in 0..40 {
        s.create("configmaps", json!({"metadata": {"name": format!("c-{i:02}")}}))?;
    }
    let path = format!("/api/v1/namespaces/{}/configmaps?limit=10", s.namespace);
    let first = s.path(&path)?;
    let token = first["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    ensure!(
        !token.is_empty() && first["metadata"]["remainingItemCount"].as_u64() >= Some(30),
        "{}",
        first["metadata"]
    );
    let mut changes = 0;
    let expired = patiently("the snapshot is compacted away", || {
        // Only what changes is compacted.
        changes += 1;
        s.merge("configmaps", "c-00", "", json!({"data": {"n": changes.to_string()}}))?;
        let (code, _, body) = s.raw(Method::GET, &format!("{path}&continue={token}"), &[], "")?;
        ensure!(code == 410, "{code}");
        Ok(serde_json::from_slice::<Value>(&body)?)
    })?;
    has(
        &expired["message"].to_string(),
        &["continue parameter is too old", "use the continue token in this response"],
    )?;
    ensure!(expired["reason"] == "Expired", "{expired}");
    let mut token = expired["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    let (mut names, mut versions) = (Vec::new(), Vec::new());
    while !token.is_empty() {
        let page = s.path(&format!("{path}&continue={token}"))?;
        names.extend(
            page["items"].as_array().into_iter().flatten().map(|i| i["metadata"]["name"].to_string()),
        );
        versions.push(page["metadata"]["resourceVersion"].clone());
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    }
    versions.dedup();
    ensure!(names.len() >= 30 && versions.len() == 1, "{} items in {versions:?}", names.len());
    ensure!(versions[0] != first["metadata"]["resourceVersion"], "the list is the old one");
    Ok(())
}

const COMPACTED: &str = "[sig-api-machinery] Servers with support for API chunking should support continue listing from the last key if the original version has been compacted away, though the list is inconsistent [Slow] [Conformance]";

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] AggregatedDiscovery should support aggregated discovery interface [Conformance]",
            run: |s| {
                built_in(s)?;
                // kubectl's client asks for the one document.
                has(
                    &s.kubectl(&["api-resources", "--api-group=apps", "-o", "name"])?,
                    &["deployments.apps", "daemonsets.apps"],
                )
            },
        },
        Case {
            name: "[sig-api-machinery] AggregatedDiscovery should support aggregated discovery interface for CRDs [Conformance]",
            run: custom,
        },
        Case {
            name: "[sig-api-machinery] AggregatedDiscovery should support raw aggregated discovery endpoint Accept headers [Conformance]",
            run: built_in,
        },
        Case {
            name: "[sig-api-machinery] AggregatedDiscovery should support raw aggregated discovery request for CRDs [Conformance]",
            run: custom,
        },
        Case {
            name: "[sig-api-machinery] Aggregator Should be able to support the 1.17 Sample API Server using the current Aggregator [LinuxOnly] [Conformance]",
            run: another_server,
        },
        Case {
            name: "[sig-api-machinery] API priority and fairness should ensure that requests can be classified by adding FlowSchema and PriorityLevelConfiguration",
            run: classified,
        },
        Case {
            name: "[sig-api-machinery] Discovery should locate the groupVersion and a resource within each APIGroup [Conformance]",
            run: every_group,
        },
        Case {
            name: "[sig-api-machinery] Garbage collector should orphan RS created by deployment when deleteOptions.PropagationPolicy is Orphan [Conformance]",
            run: orphans,
        },
        Case {
            name: "[sig-api-machinery] Namespaces [Serial] should apply a finalizer to a Namespace [Conformance]",
            run: namespace_finalizer,
        },
        Case {
            name: "[sig-api-machinery] Namespaces [Serial] should apply an update to a Namespace [Conformance]",
            run: namespace_update,
        },
        Case {
            name: "[sig-api-machinery] Namespaces [Serial] should apply changes to a namespace status [Conformance]",
            run: namespace_status,
        },
        Case {
            name: "[sig-api-machinery] OrderedNamespaceDeletion namespace deletion should delete pod first [Conformance]",
            run: ordered,
        },
        Case { name: COMPACTED, run: compacted },
    ]
}
