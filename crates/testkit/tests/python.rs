//! Unmodified Python clients: the official one, an operator written with kopf, and kr8s.

use client::DeleteParams;
use serde_json::{Value, json};
use testkit::Cluster;

#[test]
fn the_official_client_works() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let out = cluster.namespace("python")?.python("python_client.py")?;
    assert_eq!(out, "ok typed\nok watches\nok pods\nok dynamic_client\nok scales\n");
    Ok(())
}

#[test]
fn kr8s_works() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    assert_eq!(cluster.namespace("kr8s")?.python("kr8s_client.py")?, "ok\n");
    Ok(())
}

#[test]
fn a_kopf_operator_works() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let scope = cluster.namespace("kopf")?;
    let spec = json!({"type": "object", "properties": {"size": {"type": "integer"}}});
    let status = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let schema = json!({"type": "object", "properties": {"spec": spec, "status": status}});
    scope.create(
        "customresourcedefinitions",
        json!({"kind": "CustomResourceDefinition", "metadata": {"name": "ponds.test.example.com"}, "spec": {
            "group": "test.example.com", "scope": "Namespaced",
            "names": {"plural": "ponds", "singular": "pond", "kind": "Pond", "listKind": "PondList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": schema}}]}}),
    )?;
    scope.wait_any("customresourcedefinitions", "ponds.test.example.com", "its establishment", |c| {
        testkit::pods::condition(c, "Established")
    })?;
    let operator = scope.kopf("kopf_operator.py")?;
    let path = format!("/apis/test.example.com/v1/namespaces/{}/ponds", scope.namespace);
    let pond = json!({"apiVersion": "test.example.com/v1", "kind": "Pond", "metadata": {"name": "p"}, "spec": {"size": 1}});
    scope.send(http::Method::POST, &path, &pond)?;
    let child = scope.wait_any("configmaps", "p", "a child", |_| true)?;
    assert_eq!(child["metadata"]["ownerReferences"][0]["kind"], "Pond");
    scope.kubectl(&["wait", "pond/p", "--for=jsonpath={.status.ticks}=3", "--timeout=60s"])?;
    scope.kubectl(&["patch", "pond", "p", "--type=merge", "-p", r#"{"spec":{"size":5}}"#])?;
    scope.wait_any("configmaps", "p", "the new size", |c| c["data"]["size"] == "5")?;
    let pond: Value = scope.path(&format!("{path}/p"))?;
    assert_eq!(pond["metadata"]["finalizers"], json!(["test.example.com/kopf"]));
    assert_eq!(pond["status"]["create"]["made"], "p");
    scope.wait_any("events", "", "an event of the operator", |e| {
        e["reason"] == "Made" && e["involvedObject"]["kind"] == "Pond"
    })?;
    scope.kubectl(&["delete", "pond", "p", "--timeout=60s"])?;
    scope.get("configmaps", "p-deleted")?;
    scope.wait_gone("configmaps", "p")?;
    operator.stop()?;
    scope.delete("customresourcedefinitions", "ponds.test.example.com", &DeleteParams::default())?;
    Ok(())
}
