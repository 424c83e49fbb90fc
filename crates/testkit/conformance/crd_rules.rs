//! \[sig-api-machinery\]: rules of custom resources in CEL, owners among custom resources, and an operator's day.

use std::io::Write;

use anyhow::ensure;
use http::Method;
use serde_json::{Value, json};
use testkit::Case;
use testkit::cluster::Scope;
use testkit::pods::has;

use crate::crd::{anything, definition, establish, eventually, foo, foos, version};

fn ruled(rules: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-validations": rules, "properties": {
        "x": {"type": "integer"}, "y": {"type": "integer"}, "limit": {"type": "integer"},
        "num": {"type": "integer", "x-kubernetes-validations": [{"rule": "oldSelf == self || self > oldSelf"}]}}}}})
}

/// The refusal of a definition whose `spec` has one rule.
fn refused(s: &Scope<'_>, rule: &str, wanted: &str) -> anyhow::Result<()> {
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let bad = definition(s, json!([version("v1", true, ruled(json!([{"rule": rule}])))]));
    let Err(error) = s.send(Method::POST, path, &bad) else { anyhow::bail!("it was accepted") };
    has(&error.to_string(), &[wanted])
}

fn creates(s: &Scope<'_>) -> anyhow::Result<()> {
    establish(
        s,
        &definition(s, json!([version("v1", true, ruled(json!([{"rule": "self.x + self.y > 0"}])))])),
    )?;
    s.send(
        Method::POST,
        &foos(s, "v1"),
        &foo(s, "v1", "a", json!({"spec": {"x": 1, "y": 0, "limit": 123}})),
    )?;
    let bad = foo(s, "v1", "b", json!({"spec": {"x": -1, "y": 0}}));
    let Err(error) = s.send(Method::POST, &foos(s, "v1"), &bad) else { anyhow::bail!("it was accepted") };
    has(&error.to_string(), &["failed rule: self.x + self.y > 0"])
}

fn transitions(s: &Scope<'_>) -> anyhow::Result<()> {
    establish(s, &definition(s, json!([version("v1", true, ruled(json!([])))])))?;
    let made = s.send(Method::POST, &foos(s, "v1"), &foo(s, "v1", "a", json!({"spec": {"num": 10}})))?;
    let path = format!("{}/a", foos(s, "v1"));
    let mut next = made;
    next["spec"]["num"] = 11.into();
    let mut next = s.send(Method::PUT, &path, &next)?;
    next["spec"]["num"] = 9.into();
    let Err(error) = s.send(Method::PUT, &path, &next) else { anyhow::bail!("it was accepted") };
    has(&error.to_string(), &["spec.num", "failed rule: oldSelf == self || self > oldSelf"])
}

/// An owner and a dependent, both custom; what becomes of the dependent under a propagation policy.
fn owned(s: &Scope<'_>, policy: &str) -> anyhow::Result<()> {
    establish(s, &definition(s, json!([version("v1", true, anything())])))?;
    let owner = s.send(Method::POST, &foos(s, "v1"), &foo(s, "v1", "owner", json!({})))?;
    let mut dependent = foo(s, "v1", "dependent", json!({}));
    dependent["metadata"]["ownerReferences"] = json!([{"apiVersion": owner["apiVersion"], "kind": "Foo", "name": "owner", "uid": owner["metadata"]["uid"]}]);
    s.send(Method::POST, &foos(s, "v1"), &dependent)?;
    s.send(Method::DELETE, &format!("{}/owner", foos(s, "v1")), &json!({"propagationPolicy": policy}))?;
    let path = format!("{}/dependent", foos(s, "v1"));
    eventually("the owner is gone and the dependent follows the policy", || {
        ensure!(s.path(&format!("{}/owner", foos(s, "v1"))).is_err(), "the owner is there");
        match (policy, s.path(&path)) {
            ("Orphan", Ok(found)) => ensure!(found["metadata"].get("ownerReferences").is_none(), "{found}"),
            ("Orphan", Err(e)) => return Err(e),
            (_, found) => ensure!(found.is_err(), "the dependent is there"),
        }
        Ok(())
    })
}

fn kubectl_apply(s: &Scope<'_>, object: &Value) -> anyhow::Result<String> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(object.to_string().as_bytes())?;
    s.kubectl(&["apply", "-f", &file.path().to_string_lossy()])
}

/// What people and operators do with a custom resource, through kubectl.
fn operator(s: &Scope<'_>) -> anyhow::Result<()> {
    let mut one = version(
        "v1",
        true,
        json!({"type": "object", "properties": {
        "spec": {"type": "object", "description": "What is wanted.", "properties": {"replicas": {"type": "integer", "default": 1, "minimum": 0, "maximum": 9}}},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}}}}),
    );
    one["subresources"] = json!({"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}});
    one["additionalPrinterColumns"] = json!([{"name": "Wanted", "type": "integer", "jsonPath": ".spec.replicas"}, {"name": "There", "type": "integer", "jsonPath": ".status.replicas"}]);
    let definition = definition(s, json!([one]));
    kubectl_apply(s, &definition)?;
    let resource = format!("foos.{}.example.com", s.namespace);
    s.kubectl(&["wait", "--for=condition=Established", &format!("crd/{resource}"), "--timeout=20s"])?;
    kubectl_apply(s, &foo(s, "v1", "a", json!({"spec": {}})))?;
    // Applying twice changes nothing, applying something else merges.
    has(&kubectl_apply(s, &foo(s, "v1", "a", json!({"spec": {}})))?, &["unchanged"])?;
    eventually("explained", || {
        has(&s.kubectl(&["explain", &format!("{resource}.spec")])?, &["What is wanted.", "replicas"])
    })?;
    s.kubectl(&["scale", &format!("{resource}/a"), "--replicas=3"])?;
    let patch = r#"{"status":{"replicas":2,"selector":"app=a"}}"#;
    s.kubectl(&["patch", &resource, "a", "--subresource=status", "--type=merge", "-p", patch])?;
    let table = s.kubectl(&["get", &resource])?;
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    ensure!(rows == [["NAME", "WANTED", "THERE"], ["a", "3", "2"]], "{table}");
    let scale = s.path(&format!("{}/a/scale", foos(s, "v1")))?;
    ensure!(
        scale["spec"]["replicas"] == 3 && scale["status"] == json!({"replicas": 2, "selector": "app=a"}),
        "{scale}"
    );
    let found = s.path(&format!("{}/a", foos(s, "v1")))?;
    ensure!(found["metadata"]["generation"] == 2, "{found}");
    let output = s.kubectl_raw(&["scale", &format!("{resource}/a"), "--replicas=20"])?;
    has(
        &String::from_utf8_lossy(&output.stderr),
        &["spec.replicas in body should be less than or equal to 9"],
    )
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] CustomResourceValidationRules [Privileged:ClusterAdmin] MUST fail validation for create of a custom resource that does not satisfy the x-kubernetes-validations rules",
            run: creates,
        },
        Case {
            name: "[sig-api-machinery] CustomResourceValidationRules [Privileged:ClusterAdmin] MUST fail create of a custom resource definition that contains a x-kubernetes-validations rule that refers to a property that do not exist",
            run: |s| refused(s, "self.z == 1", "undefined field 'z'"),
        },
        Case {
            name: "[sig-api-machinery] CustomResourceValidationRules [Privileged:ClusterAdmin] MUST fail create of a custom resource definition that contains an x-kubernetes-validations rule that contains a syntax error",
            run: |s| refused(s, "self = 42", "Syntax error"),
        },
        Case {
            name: "[sig-api-machinery] CustomResourceValidationRules [Privileged:ClusterAdmin] MUST fail update of a custom resource that does not satisfy a x-kubernetes-validations transition rule",
            run: transitions,
        },
        Case {
            name: "[sig-api-machinery] Garbage collector should support cascading deletion of custom resources",
            run: |s| owned(s, "Background"),
        },
        Case {
            name: "[sig-api-machinery] Garbage collector should support orphan deletion of custom resources",
            run: |s| owned(s, "Orphan"),
        },
        Case { name: "Ferry: an operator's resource through kubectl", run: operator },
    ]
}
