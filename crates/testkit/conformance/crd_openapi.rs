//! \[sig-api-machinery\]: what OpenAPI says of custom resources, and what kubectl makes of it.

use std::io::Write;

use anyhow::ensure;
use http::Method;
use serde_json::{Value, json};
use testkit::Case;
use testkit::cluster::Scope;
use testkit::pods::has;

use crate::crd::{anything, definition, establish, eventually, foo, version};

/// The definition of a kind in OpenAPI v2.
fn published(s: &Scope<'_>, group: &str, version: &str, kind: &str) -> anyhow::Result<Value> {
    let document = s.path("/openapi/v2")?;
    let name = format!("{}.{version}.{kind}", group.split('.').rev().collect::<Vec<_>>().join("."));
    let found = document["definitions"][&name].clone();
    ensure!(found.is_object(), "no definition {name}");
    let v3 = s.path(&format!("/openapi/v3/apis/{group}/{version}"))?;
    ensure!(v3["components"]["schemas"][&name].is_object(), "v3 has no {name}");
    Ok(found)
}

fn group(s: &Scope<'_>) -> String {
    format!("{}.example.com", s.namespace)
}

/// `kubectl VERB -f` of an object; whether it succeeded, and everything it said.
fn feed(s: &Scope<'_>, verb: &str, object: &Value) -> anyhow::Result<(bool, String)> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(object.to_string().as_bytes())?;
    let path = file.path().to_string_lossy().into_owned();
    let output = s.kubectl_raw(&[verb, "-f", &path])?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ok((output.status.success(), text))
}

fn explain(s: &Scope<'_>, what: &str, wanted: &[&str]) -> anyhow::Result<()> {
    let api = format!("--api-version={}/v1", group(s));
    let what = what.to_owned();
    eventually("explained", || has(&s.kubectl(&["explain", &what, &api])?, wanted))
}

fn bars() -> Value {
    json!({"type": "object", "description": "Foo CRD for Testing", "properties": {
        "spec": {"type": "object", "description": "Specification of Foo", "required": ["bars"], "properties": {
            "bars": {"type": "array", "description": "List of Bars and their specs.", "items": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string", "description": "Name of Bar."}, "age": {"type": "string", "description": "Age of Bar."},
                "feeling": {"type": "string", "enum": ["Great", "Down"]},
                "bazs": {"type": "array", "items": {"type": "string"}, "description": "List of Bazs."}}}}}},
        "status": {"type": "object", "description": "Status of Foo"}}})
}

fn with_schema(s: &Scope<'_>) -> anyhow::Result<()> {
    establish(s, &definition(s, json!([version("v1", true, bars())])))?;
    published(s, &group(s), "v1", "Foo")?;
    let mut good = foo(s, "v1", "test-foo", json!({"spec": {"bars": [{"name": "test-bar"}]}}));
    let (fine, text) = feed(s, "create", &good)?;
    ensure!(fine, "{text}");
    feed(s, "delete", &good)?;
    let (fine, text) = feed(s, "apply", &good)?;
    ensure!(fine, "{text}");
    good["spec"]["bars"][0]["age"] = "10".into();
    let (fine, text) = feed(s, "apply", &good)?;
    ensure!(fine, "{text}");
    for (bad, wanted) in [
        (json!({"bars": [{"name": "b", "foo": "x"}]}), "unknown field \"spec.bars[0].foo\""),
        (json!({}), "spec.bars: Required value"),
        (json!({"bars": [{"name": "b", "feeling": "Odd"}]}), "Unsupported value: \"Odd\""),
    ] {
        let (fine, text) = feed(s, "create", &foo(s, "v1", "bad", json!({"spec": bad})))?;
        ensure!(!fine && text.contains(wanted), "{text}");
    }
    explain(s, "foos", &["Foo CRD for Testing", "Specification of Foo", "KIND:       Foo"])?;
    explain(s, "foos.metadata", &["KIND:       Foo", "creationTimestamp"])?;
    explain(s, "foos.spec", &["bars", "List of Bars and their specs."])?;
    explain(s, "foos.spec.bars", &["name", "-required-", "age", "feeling"])?;
    let unknown = s.kubectl_raw(&["explain", "foos.spec.bars2"])?;
    ensure!(!unknown.status.success());
    Ok(())
}

fn preserving(s: &Scope<'_>, schema: Value, explained: (&str, &[&str])) -> anyhow::Result<()> {
    establish(s, &definition(s, json!([version("v1", true, schema)])))?;
    let object =
        foo(s, "v1", "test-cr", json!({"spec": {"a": null, "b": [{"c": "d"}]}, "unknown": {"x": 1}}));
    let known = foo(s, "v1", "test-cr", json!({"spec": {"b": [{"c": "d"}]}}));
    let object = if explained.0 == "foos.spec" { known } else { object };
    for verb in ["create", "delete", "apply", "delete"] {
        let (fine, text) = feed(s, verb, &object)?;
        ensure!(fine, "{verb}: {text}");
    }
    explain(s, explained.0, explained.1)
}

fn many(
    s: &Scope<'_>,
    name: &str,
    groups: [&str; 2],
    versions: [&str; 2],
    kinds: [&str; 2],
) -> anyhow::Result<()> {
    for i in 0..2 {
        let group = format!("{}{}.{}.example.com", groups[i], name, s.namespace);
        let plural = format!("{}s", kinds[i].to_lowercase());
        let mut one = definition(s, json!([version(versions[i], true, bars())]));
        one["metadata"]["name"] = format!("{plural}.{group}").into();
        one["spec"]["group"] = group.as_str().into();
        one["spec"]["names"] = json!({"plural": plural, "kind": kinds[i]});
        establish(s, &one)?;
        let found = published(s, &group, versions[i], kinds[i])?;
        ensure!(found["properties"]["spec"]["description"] == "Specification of Foo", "{found}");
        ensure!(found["properties"]["metadata"]["$ref"].is_string(), "{found}");
        let gvk = json!([{"group": group, "version": versions[i], "kind": kinds[i]}]);
        ensure!(found["x-kubernetes-group-version-kind"] == gvk, "{found}");
    }
    Ok(())
}

fn two_versions(s: &Scope<'_>) -> anyhow::Result<String> {
    let name =
        establish(s, &definition(s, json!([version("v2", true, bars()), version("v3", false, bars())])))?;
    published(s, &group(s), "v2", "Foo")?;
    published(s, &group(s), "v3", "Foo")?;
    Ok(name)
}

fn change(s: &Scope<'_>, name: &str, patch: Value) -> anyhow::Result<()> {
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
    let kind = [("content-type", "application/json-patch+json")];
    let (code, _, body) = s.raw(Method::PATCH, &path, &kind, patch.to_string())?;
    ensure!(code == 200, "{}", String::from_utf8_lossy(&body));
    Ok(())
}

fn stop_serving(s: &Scope<'_>) -> anyhow::Result<()> {
    let name = two_versions(s)?;
    change(
        s,
        &name,
        json!([{"op": "test", "path": "/spec/versions/1/name", "value": "v3"}, {"op": "replace", "path": "/spec/versions/1/served", "value": false}]),
    )?;
    eventually("v3 is not published", || {
        ensure!(published(s, &group(s), "v3", "Foo").is_err(), "it is");
        Ok(())
    })?;
    published(s, &group(s), "v2", "Foo").map(drop)
}

fn rename(s: &Scope<'_>) -> anyhow::Result<()> {
    let name = two_versions(s)?;
    change(
        s,
        &name,
        json!([{"op": "test", "path": "/spec/versions/1/name", "value": "v3"}, {"op": "replace", "path": "/spec/versions/1/name", "value": "v4"}]),
    )?;
    eventually("v4 is published", || published(s, &group(s), "v4", "Foo").map(drop))?;
    ensure!(published(s, &group(s), "v3", "Foo").is_err());
    published(s, &group(s), "v2", "Foo").map(drop)
}

macro_rules! case {
    ($what:literal, $run:expr) => {
        Case {
            name: concat!(
                "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] ",
                $what,
                " [Conformance]"
            ),
            run: $run,
        }
    };
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        case!("works for CRD with validation schema", with_schema),
        case!("works for CRD without validation schema", |s| preserving(
            s,
            anything(),
            ("foos", &["KIND:       Foo", "DESCRIPTION:"])
        )),
        case!("works for CRD preserving unknown fields at the schema root", |s| preserving(
            s,
            anything(),
            ("foos", &["KIND:       Foo"])
        )),
        case!("works for CRD preserving unknown fields in an embedded object", |s| {
            let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "description": "preserve-unknown-properties in nested field for Testing",
                "x-kubernetes-preserve-unknown-fields": true}}});
            preserving(s, schema, ("foos.spec", &["preserve-unknown-properties in nested field for Testing"]))
        }),
        case!("works for multiple CRDs of different groups", |s| many(
            s,
            "g",
            ["one", "two"],
            ["v4", "v4"],
            ["Foo", "Waldo"]
        )),
        case!("works for multiple CRDs of same group and version but different kinds", |s| many(
            s,
            "k",
            ["one", "one"],
            ["v6", "v6"],
            ["Bar", "Baz"]
        )),
        case!("works for multiple CRDs of same group but different versions", |s| many(
            s,
            "v",
            ["one", "one"],
            ["v2", "v3"],
            ["Foo", "Waldo"]
        )),
        case!("removes definition from spec when one version gets changed to not be served", stop_serving),
        case!("updates the published spec when one version gets renamed", rename),
    ]
}
