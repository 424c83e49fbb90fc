//! \[sig-api-machinery\]: definitions of custom resources, their defaults, conversion and field selectors.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use client::{DeleteParams, EventKind, WatchParams};
use http::Method;
use serde_json::{Value, json};
use testkit::Case;
use testkit::cluster::Scope;
use testkit::hook::{Handler, Hook};

/// Where definitions are.
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// Longest wait for something that follows from a change of a definition.
const SOON: Duration = Duration::from_secs(20);

/// Looks again and again until something holds: what a change of a definition brings about has no event.
#[allow(clippy::disallowed_methods, reason = "the caller's thread has nothing else to do")]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let until = Instant::now() + SOON;
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > until => return Err(error.context(format!("never: {what}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A definition in a group of the case's own, with one version and a schema.
pub fn definition(s: &Scope<'_>, versions: Value) -> Value {
    let group = format!("{}.example.com", s.namespace);
    let names = json!({"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("foos.{group}"), "labels": {"case": s.namespace}},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": versions},
    })
}

/// A served version; the first one is stored.
pub fn version(name: &str, storage: bool, schema: Value) -> Value {
    json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema}})
}

/// A schema that knows nothing and keeps everything.
pub fn anything() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// Creates a definition and waits until it is established and served.
pub fn establish(s: &Scope<'_>, definition: &Value) -> anyhow::Result<String> {
    s.send(Method::POST, DEFINITIONS, definition)?;
    let name = definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    eventually("established", || {
        let found = s.path(&format!("{DEFINITIONS}/{name}"))?;
        let list = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        ensure!(list.iter().any(|c| c["type"] == "Established" && c["status"] == "True"), "{list:?}");
        Ok(())
    })?;
    Ok(name)
}

/// The collection of `foos` in the case's namespace.
pub fn foos(s: &Scope<'_>, version: &str) -> String {
    format!("/apis/{0}.example.com/{version}/namespaces/{0}/foos", s.namespace)
}

/// A `Foo`.
pub fn foo(s: &Scope<'_>, version: &str, name: &str, more: Value) -> Value {
    let mut object = json!({"apiVersion": format!("{}.example.com/{version}", s.namespace), "kind": "Foo", "metadata": {"name": name}});
    if let (Some(object), Some(more)) = (object.as_object_mut(), more.as_object()) {
        object.extend(more.clone());
    }
    object
}

fn delete(s: &Scope<'_>, name: &str) -> anyhow::Result<()> {
    s.send(Method::DELETE, &format!("{DEFINITIONS}/{name}"), &json!({}))?;
    eventually("the definition is gone", || {
        ensure!(s.path(&format!("{DEFINITIONS}/{name}")).is_err(), "still there");
        Ok(())
    })
}

fn listing(s: &Scope<'_>) -> anyhow::Result<()> {
    let mut one = definition(s, json!([version("v1", true, anything())]));
    for i in 0..10 {
        let plural = format!("foos{i}");
        one["metadata"]["name"] = format!("{plural}.{}.example.com", s.namespace).into();
        one["spec"]["names"] = json!({"plural": plural, "kind": format!("Foo{i}")});
        establish(s, &one)?;
    }
    let selected = format!("{DEFINITIONS}?labelSelector=case%3D{}", s.namespace);
    ensure!(s.path(&selected)?["items"].as_array().map(Vec::len) == Some(10));
    let others = s.path(DEFINITIONS)?["items"].as_array().map_or(0, Vec::len);
    s.send(Method::DELETE, &selected, &json!({}))?;
    eventually("only the selected ones are gone", || {
        ensure!(s.path(&selected)?["items"].as_array().map(Vec::len) == Some(0));
        Ok(())
    })?;
    ensure!(others >= 10);
    Ok(())
}

fn status(s: &Scope<'_>) -> anyhow::Result<()> {
    let name = establish(s, &definition(s, json!([version("v1", true, anything())])))?;
    let path = format!("{DEFINITIONS}/{name}/status");
    let condition =
        |ty: &str| json!({"type": ty, "status": "True", "reason": "E2E", "message": "set by a test"});
    let mut found = s.path(&path)?;
    ensure!(found["kind"] == "CustomResourceDefinition");
    if let Some(list) = found["status"]["conditions"].as_array_mut() {
        list.push(condition("StatusUpdate"));
    }
    s.send(Method::PUT, &path, &found)?;
    let has = |ty: &str| -> anyhow::Result<bool> {
        let found = s.path(&path)?;
        Ok(found["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == ty))
    };
    ensure!(has("StatusUpdate")?);
    let mut conditions = s.path(&path)?["status"]["conditions"].clone();
    if let Some(list) = conditions.as_array_mut() {
        list.push(condition("StatusPatched"));
    }
    let patch =
        json!({"metadata": {"annotations": {"patchedstatus": "true"}}, "status": {"conditions": conditions}});
    let json_patch = [("content-type", "application/merge-patch+json")];
    let (code, _, _) = s.raw(Method::PATCH, &path, &json_patch, patch.to_string())?;
    ensure!(code == 200 && has("StatusPatched")?);
    delete(s, &name)
}

fn watch(s: &Scope<'_>) -> anyhow::Result<()> {
    let schema = json!({"type": "object", "properties": {"content": {"type": "object", "properties": {"key": {"type": "string"}}}}});
    let name = establish(s, &definition(s, json!([version("v1", true, schema)])))?;
    let base = foos(s, "v1");
    let list = s.path(&base)?;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    s.send(Method::POST, &base, &foo(s, "v1", "a", json!({})))?;
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = json!({"content": {"key": "value"}}).to_string();
    s.raw(Method::PATCH, &format!("{base}/a"), &merge, patch)?;
    s.send(Method::DELETE, &format!("{base}/a"), &json!({}))?;
    let url = format!("{base}?watch=true&timeoutSeconds=1&resourceVersion={from}");
    let body = s.kubectl(&["get", "--raw", &url])?;
    let kinds: Vec<String> = body
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok())
        .filter_map(|e| e["type"].as_str().map(String::from))
        .collect();
    ensure!(kinds == ["ADDED", "MODIFIED", "DELETED"], "{kinds:?}");
    delete(s, &name)
}

fn defaulting(s: &Scope<'_>) -> anyhow::Result<()> {
    let schema = |a: Option<&str>, b: Option<&str>| {
        let field = |default: Option<&str>| match default {
            Some(text) => json!({"type": "string", "default": text}),
            None => json!({"type": "string"}),
        };
        json!({"type": "object", "properties": {"a": field(a), "b": field(b)}})
    };
    let name = establish(s, &definition(s, json!([version("v1", true, schema(None, None))])))?;
    let (base, path) = (foos(s, "v1"), format!("{DEFINITIONS}/{name}"));
    let first = s.send(Method::POST, &base, &foo(s, "v1", "first", json!({})))?;
    ensure!(first.get("a").is_none());
    let change = |a, b| -> anyhow::Result<()> {
        let patch = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": schema(a, b)}]);
        let kind = [("content-type", "application/json-patch+json")];
        let (code, _, body) = s.raw(Method::PATCH, &path, &kind, patch.to_string())?;
        ensure!(code == 200, "{}", String::from_utf8_lossy(&body));
        Ok(())
    };
    change(Some("A"), None)?;
    let read = |name: &str, key: &str, wanted: Option<&str>| {
        eventually(&format!("{name} has {key}={wanted:?}"), || {
            let found = s.path(&format!("{base}/{name}"))?;
            ensure!(found.get(key).and_then(Value::as_str) == wanted, "{found}");
            Ok(())
        })
    };
    read("first", "a", Some("A"))?;
    let second = s.send(Method::POST, &base, &foo(s, "v1", "second", json!({})))?;
    ensure!(second["a"] == "A", "{second}");
    change(None, Some("B"))?;
    read("second", "b", Some("B"))?;
    // What was written stays; what was only shown goes.
    read("second", "a", Some("A"))?;
    read("first", "a", None)?;
    delete(s, &name)
}

fn discovery(s: &Scope<'_>) -> anyhow::Result<()> {
    let groups = s.path("/apis")?;
    let group =
        groups["groups"].as_array().into_iter().flatten().find(|g| g["name"] == "apiextensions.k8s.io");
    let version = json!({"groupVersion": "apiextensions.k8s.io/v1", "version": "v1"});
    ensure!(group.context("no group")?["versions"].as_array().is_some_and(|v| v.contains(&version)));
    let group = s.path("/apis/apiextensions.k8s.io")?;
    ensure!(group["versions"].as_array().is_some_and(|v| v.contains(&version)));
    let resources = s.path("/apis/apiextensions.k8s.io/v1")?;
    let names = resources["resources"].as_array().into_iter().flatten();
    ensure!(names.into_iter().any(|r| r["name"] == "customresourcedefinitions"));
    Ok(())
}

/// `host` and `port` of v2 are `hostPort` of v1.
fn convert(review: &Value) -> Value {
    let to = review["request"]["desiredAPIVersion"].as_str().unwrap_or_default();
    let objects = review["request"]["objects"].as_array().cloned().unwrap_or_default();
    let one = |mut object: Value| {
        object["apiVersion"] = to.into();
        if let Value::Object(map) = &mut object {
            if to.ends_with("/v1") {
                let text =
                    |v: Option<Value>| v.and_then(|v| v.as_str().map(String::from)).unwrap_or_default();
                let joined = format!("{}:{}", text(map.remove("host")), text(map.remove("port")));
                map.insert("hostPort".into(), joined.into());
            } else if let Some(Value::String(joined)) = map.remove("hostPort") {
                let (host, port) = joined.split_once(':').unwrap_or((&joined, ""));
                map.insert("host".into(), host.into());
                map.insert("port".into(), port.into());
            }
        }
        object
    };
    let converted: Vec<Value> = objects.into_iter().map(one).collect();
    json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview", "response": {
        "uid": review["request"]["uid"], "result": {"status": "Success"}, "convertedObjects": converted}})
}

/// A definition with two versions and a webhook behind a Service that converts between them.
fn converted(s: &Scope<'_>) -> anyhow::Result<(Value, Hook)> {
    let dns = format!("hook.{}.svc", s.namespace);
    let handler: Handler = Arc::new(|_, review| convert(&review));
    let hook = Hook::start(&[&dns], handler)?;
    let meta = json!({"name": "hook"});
    s.create("services", json!({"metadata": meta, "spec": {"ports": [{"name": "https", "port": 9443, "targetPort": hook.port}]}}))?;
    let mine = s.path("/api/v1/nodes")?["items"][0]["status"]["addresses"][0]["address"].clone();
    s.create("endpointslices", json!({
        "metadata": {"name": "hook", "labels": {"kubernetes.io/service-name": "hook"}}, "addressType": "IPv4",
        "ports": [{"name": "https", "port": hook.port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [if mine == "127.0.0.1" { json!("10.42.0.1") } else { mine }], "conditions": {"ready": true}}]}))?;
    let text = || json!({"type": "string"});
    let mut first = version("v1", true, json!({"type": "object", "properties": {"hostPort": text()}}));
    first["selectableFields"] = json!([{"jsonPath": ".hostPort"}]);
    let mut second =
        version("v2", false, json!({"type": "object", "properties": {"host": text(), "port": text()}}));
    second["selectableFields"] = json!([{"jsonPath": ".host"}, {"jsonPath": ".port"}]);
    let mut out = definition(s, json!([first, second]));
    out["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1", "v1beta1"],
        "clientConfig": {"caBundle": hook.ca_bundle, "service": {"namespace": s.namespace, "name": "hook", "path": "/crdconvert", "port": 9443}}}});
    Ok((out, hook))
}

fn convert_one(s: &Scope<'_>) -> anyhow::Result<()> {
    let (definition, _hook) = converted(s)?;
    let name = establish(s, &definition)?;
    let made =
        s.send(Method::POST, &foos(s, "v1"), &foo(s, "v1", "a", json!({"hostPort": "localhost:8080"})))?;
    ensure!(made["hostPort"] == "localhost:8080");
    let read = s.path(&format!("{}/a", foos(s, "v2")))?;
    ensure!(
        read["host"] == "localhost" && read["port"] == "8080" && read.get("hostPort").is_none(),
        "{read}"
    );
    ensure!(read["metadata"]["uid"] == made["metadata"]["uid"]);
    delete(s, &name)
}

fn convert_list(s: &Scope<'_>) -> anyhow::Result<()> {
    let (definition, _hook) = converted(s)?;
    let name = establish(s, &definition)?;
    s.send(Method::POST, &foos(s, "v1"), &foo(s, "v1", "a", json!({"hostPort": "localhost:8080"})))?;
    let patch = json!([{"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]);
    let kind = [("content-type", "application/json-patch+json")];
    let (code, _, body) = s.raw(Method::PATCH, &format!("{DEFINITIONS}/{name}"), &kind, patch.to_string())?;
    ensure!(code == 200, "{}", String::from_utf8_lossy(&body));
    let found: Value = serde_json::from_slice(&body)?;
    ensure!(found["status"]["storedVersions"] == json!(["v1", "v2"]), "{}", found["status"]);
    s.send(Method::POST, &foos(s, "v2"), &foo(s, "v2", "b", json!({"host": "other", "port": "1"})))?;
    for (version, keys) in [("v1", &["hostPort"][..]), ("v2", &["host", "port"])] {
        let list = s.path(&foos(s, version))?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        ensure!(items.len() == 2, "{list}");
        ensure!(items.iter().all(|i| keys.iter().all(|k| i[*k].is_string())), "{list}");
    }
    delete(s, &name)
}

fn field_selectors(s: &Scope<'_>) -> anyhow::Result<()> {
    let (definition, _hook) = converted(s)?;
    let name = establish(s, &definition)?;
    for (object, value) in [("a", "host1:80"), ("b", "host2:80"), ("c", "host1:8080")] {
        s.send(Method::POST, &foos(s, "v1"), &foo(s, "v1", object, json!({"hostPort": value})))?;
    }
    let names = |version: &str, selector: &str| -> anyhow::Result<Vec<String>> {
        let list = s.path(&format!("{}?fieldSelector={selector}", foos(s, version)))?;
        let items = list["items"].as_array().into_iter().flatten();
        Ok(items.filter_map(|i| i["metadata"]["name"].as_str().map(String::from)).collect())
    };
    ensure!(names("v1", "hostPort%3Dhost1:80")? == ["a"]);
    ensure!(names("v2", "host%3Dhost1")? == ["a", "c"]);
    ensure!(names("v2", "host%3Dhost1,port%3D80")? == ["a"]);
    ensure!(names("v1", "host%3Dhost1").is_err(), "v1 has no such field");
    let from = s.path(&foos(s, "v2"))?["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    s.send(Method::DELETE, &format!("{}?fieldSelector=host%3Dhost2", foos(s, "v2")), &json!({}))?;
    let merge = [("content-type", "application/merge-patch+json")];
    s.raw(Method::PATCH, &format!("{}/a", foos(s, "v2")), &merge, json!({"host": "moved"}).to_string())?;
    ensure!(names("v2", "")? == ["a", "c"] && names("v2", "host%3Dhost1")? == ["c"]);
    let url = format!(
        "{}?watch=true&timeoutSeconds=1&fieldSelector=host%3Dhost1&resourceVersion={from}",
        foos(s, "v2")
    );
    let body = s.kubectl(&["get", "--raw", &url])?;
    let events: Vec<Value> = body.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let seen: Vec<(&str, &str)> = (events.iter())
        .map(|e| {
            (
                e["type"].as_str().unwrap_or_default(),
                e["object"]["metadata"]["name"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    ensure!(seen == [("DELETED", "a")], "{events:?}");
    delete(s, &name)
}

fn watch_definitions(s: &Scope<'_>) -> anyhow::Result<()> {
    // The same through the client's own watch, as informers use it.
    let list = s.path(DEFINITIONS)?;
    let resource_version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let name = establish(s, &definition(s, json!([version("v1", true, anything())])))?;
    let field_selector = format!("metadata.name={name}");
    let params = WatchParams { field_selector, resource_version, ..Default::default() };
    let mut stream = s.watch("customresourcedefinitions", &params)?;
    s.delete("customresourcedefinitions", &name, &DeleteParams::default())?;
    let mut kinds = Vec::new();
    while kinds.last() != Some(&EventKind::Deleted) {
        kinds.push(s.next(&mut stream)?.0);
    }
    ensure!(kinds[0] == EventKind::Added && kinds.contains(&EventKind::Modified), "{kinds:?}");
    Ok(())
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] CustomResourceDefinition Watch [Privileged:ClusterAdmin] CustomResourceDefinition Watch watch on custom resource definition objects [Conformance]",
            run: |s| watch(s).and_then(|()| watch_definitions(s)),
        },
        Case {
            name: "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] Simple CustomResourceDefinition creating/deleting custom resource definition objects works [Conformance]",
            run: |s| delete(s, &establish(s, &definition(s, json!([version("v1", true, anything())])))?),
        },
        Case {
            name: "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] Simple CustomResourceDefinition getting/updating/patching custom resource definition status sub-resource works [Conformance]",
            run: status,
        },
        Case {
            name: "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] Simple CustomResourceDefinition listing custom resource definition objects works [Conformance]",
            run: listing,
        },
        Case {
            name: "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] custom resource defaulting for requests and from storage works [Conformance]",
            run: defaulting,
        },
        Case {
            name: "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] should include custom resource definition resources in discovery documents [Conformance]",
            run: discovery,
        },
        Case {
            name: "[sig-api-machinery] CustomResourceConversionWebhook [Privileged:ClusterAdmin] should be able to convert from CR v1 to CR v2 [Conformance]",
            run: convert_one,
        },
        Case {
            name: "[sig-api-machinery] CustomResourceConversionWebhook [Privileged:ClusterAdmin] should be able to convert a non homogeneous list of CRs [Conformance]",
            run: convert_list,
        },
        Case {
            name: "[sig-api-machinery] CustomResourceFieldSelectors [Privileged:ClusterAdmin] CustomResourceFieldSelectors MUST list and watch custom resources matching the field selector [Conformance]",
            run: field_selectors,
        },
    ]
}
