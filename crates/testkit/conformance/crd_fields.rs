//! \[sig-api-machinery\]: unknown and duplicate fields of custom resources.

use anyhow::ensure;
use http::Method;
use serde_json::{Value, json};
use testkit::Case;
use testkit::cluster::Scope;

use crate::crd::{anything, definition, establish, foo, foos, version};

/// The answer to an apply under `fieldValidation=Strict`: code and message.
fn apply(s: &Scope<'_>, name: &str, body: &str) -> anyhow::Result<(u16, String)> {
    let path = format!("{}/{name}?fieldManager=mgr&fieldValidation=Strict", foos(s, "v1"));
    let kind = [("content-type", "application/apply-patch+yaml")];
    let (code, _, body) = s.raw(Method::PATCH, &path, &kind, body.to_owned())?;
    let answer: Value = serde_json::from_slice(&body)?;
    Ok((code, answer["message"].as_str().unwrap_or_default().to_owned()))
}

/// The answer to a create under `fieldValidation=Strict`.
fn create(s: &Scope<'_>, body: &str) -> anyhow::Result<(u16, String)> {
    let path = format!("{}?fieldValidation=Strict", foos(s, "v1"));
    let kind = [("content-type", "application/json")];
    let (code, _, body) = s.raw(Method::POST, &path, &kind, body.to_owned())?;
    let answer: Value = serde_json::from_slice(&body)?;
    Ok((code, answer["message"].as_str().unwrap_or_default().to_owned()))
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "cronSpec": {"type": "string"}, "foo": {"type": "string"},
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["containerPort", "protocol"],
            "items": {"type": "object", "required": ["containerPort", "protocol"],
                "properties": {"containerPort": {"type": "integer"}, "protocol": {"type": "string"}, "name": {"type": "string"}}}},
        "embeddedObj": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"kind": {"type": "string"}, "apiVersion": {"type": "string"}}},
    }}}})
}

fn valid() -> Value {
    json!({"cronSpec": "* * * * */5", "ports": [{"name": "x", "containerPort": 80, "protocol": "TCP"}]})
}

fn accepts(s: &Scope<'_>, schema: Value, spec: Value) -> anyhow::Result<()> {
    establish(s, &definition(s, json!([version("v1", true, schema)])))?;
    let object = foo(s, "v1", "a", json!({"spec": spec}));
    let (code, message) = apply(s, "a", &object.to_string())?;
    ensure!(code == 201, "{code}: {message}");
    let mut other = object;
    other["metadata"]["name"] = "b".into();
    let (code, message) = create(s, &other.to_string())?;
    ensure!(code == 201, "{code}: {message}");
    Ok(())
}

fn refuses_unknown(s: &Scope<'_>) -> anyhow::Result<()> {
    establish(s, &definition(s, json!([version("v1", true, schema())])))?;
    let mut spec = valid();
    spec["unknown"] = 1.into();
    let (code, message) = apply(s, "a", &foo(s, "v1", "a", json!({"spec": spec})).to_string())?;
    ensure!(code == 500 || code == 400, "{code}: {message}");
    ensure!(
        message.contains("field not declared in schema")
            || message.contains("unknown field \"spec.unknown\""),
        "{message}"
    );
    let (code, message) = create(s, &foo(s, "v1", "a", json!({"spec": spec})).to_string())?;
    ensure!(
        code == 400 && message.contains("strict decoding error: unknown field \"spec.unknown\""),
        "{code}: {message}"
    );
    Ok(())
}

fn duplicates(s: &Scope<'_>) -> anyhow::Result<()> {
    establish(s, &definition(s, json!([version("v1", true, anything())])))?;
    let api = format!("{}.example.com/v1", s.namespace);
    let body = format!(
        r#"{{"apiVersion":"{api}","kind":"Foo","metadata":{{"name":"a"}},"spec":{{"foo":"foo1","foo":"foo2","unknown":1}}}}"#
    );
    let (code, message) = create(s, &body)?;
    ensure!(code == 400 && message.contains("duplicate field \"spec.foo\""), "{code}: {message}");
    ensure!(!message.contains("unknown field"), "{message}");
    Ok(())
}

fn metadata(s: &Scope<'_>) -> anyhow::Result<()> {
    establish(s, &definition(s, json!([version("v1", true, schema())])))?;
    let mut spec = valid();
    spec["embeddedObj"] =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "unknownSubMeta": "x"}});
    let mut object = foo(s, "v1", "a", json!({"spec": spec}));
    object["metadata"]["unknownMeta"] = "x".into();
    let (code, message) = create(s, &object.to_string())?;
    ensure!(code == 400, "{code}: {message}");
    for wanted in [
        "unknown field \"metadata.unknownMeta\"",
        "unknown field \"spec.embeddedObj.metadata.unknownSubMeta\"",
    ] {
        ensure!(message.contains(wanted), "{message}");
    }
    Ok(())
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] FieldValidation should create/apply a CR with unknown fields for CRD with no validation schema [Conformance]",
            run: |s| accepts(s, anything(), json!({"unknown": "uk1", "cronSpec": "* * * * */5"})),
        },
        Case {
            name: "[sig-api-machinery] FieldValidation should create/apply a valid CR for CRD with validation schema [Conformance]",
            run: |s| accepts(s, schema(), valid()),
        },
        Case {
            name: "[sig-api-machinery] FieldValidation should create/apply an invalid CR with extra properties for CRD with validation schema [Conformance]",
            run: refuses_unknown,
        },
        Case {
            name: "[sig-api-machinery] FieldValidation should detect duplicates in a CR when preserving unknown fields [Conformance]",
            run: duplicates,
        },
        Case {
            name: "[sig-api-machinery] FieldValidation should detect unknown metadata fields in both the root and embedded object of a CR [Conformance]",
            run: metadata,
        },
    ]
}
