//! One object in every form that clients ask for: JSON, YAML, protobuf, tables, bare metadata, compressed,
//! indented; lists and watches too; what is sent in protobuf and YAML is understood.

use anyhow::{Context, ensure};
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use testkit::Cluster;
use testkit::cluster::Scope;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const PARTIAL: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
/// The beginning of every protobuf message.
const MAGIC: &[u8] = b"k8s\0";

fn get(s: &Scope<'_>, path: &str, headers: &[(&str, &str)]) -> anyhow::Result<(u16, HeaderMap, Vec<u8>)> {
    s.raw(Method::GET, path, headers, "")
}

fn content_type(headers: &HeaderMap) -> &str {
    headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default()
}

fn has(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

fn forms_of_one(s: &Scope<'_>) -> anyhow::Result<()> {
    let one = format!("/api/v1/namespaces/{}/configmaps/one", s.namespace);
    let (code, headers, body) = get(s, &one, &[("accept", PROTOBUF)])?;
    ensure!(code == 200 && content_type(&headers) == PROTOBUF, "{code} {headers:?}");
    ensure!(body.starts_with(MAGIC) && has(&body, b"\x0a\x02v1\x12\x09ConfigMap"), "{body:?}");
    // What was read in protobuf can be written back.
    let (code, _, answer) = s.raw(Method::PUT, &one, &[("content-type", PROTOBUF)], body)?;
    let back: Value = serde_json::from_slice(&answer)?;
    ensure!(code == 200 && back["data"]["key"] == "value", "{code}: {back}");
    let (_, headers, body) = get(s, &one, &[("accept", PARTIAL)])?;
    ensure!(content_type(&headers) == PROTOBUF && has(&body, b"PartialObjectMetadata"), "{headers:?}");
    ensure!(!has(&body, b"value"), "the data is in the metadata");
    let (_, headers, body) = get(s, &one, &[("accept", "application/yaml")])?;
    let text = String::from_utf8(body)?;
    ensure!(content_type(&headers) == "application/yaml", "{headers:?}");
    ensure!(text.contains("kind: ConfigMap\n") && text.contains("\n  key: value\n"), "{text}");
    let (_, _, body) = get(s, &format!("{one}?pretty=true"), &[])?;
    let text = String::from_utf8(body)?;
    ensure!(text.contains("\n  \"kind\": \"ConfigMap\""), "{text}");
    let (_, _, body) = get(s, &one, &[("user-agent", "curl/8")])?;
    ensure!(has(&body, b"\n  \"metadata\": {\n"), "curl gets no indentation");
    let (code, headers, body) = s.raw(Method::HEAD, &one, &[], "")?;
    ensure!(code == 200 && body.is_empty() && headers.contains_key("content-length"), "{code} {headers:?}");
    // Failures have the form too.
    let missing = format!("/api/v1/namespaces/{}/configmaps/none", s.namespace);
    let (code, headers, body) = get(s, &missing, &[("accept", PROTOBUF)])?;
    ensure!(code == 404 && content_type(&headers) == PROTOBUF && has(&body, b"\x12\x06Status"), "{code}");
    Ok(())
}

fn lists_and_tables(s: &Scope<'_>) -> anyhow::Result<()> {
    let all = format!("/api/v1/namespaces/{}/configmaps", s.namespace);
    let (_, headers, body) = get(s, &all, &[("accept", PROTOBUF)])?;
    ensure!(content_type(&headers) == PROTOBUF && has(&body, b"ConfigMapList"), "{headers:?}");
    for (include, object) in
        [("None", Value::Null), ("Metadata", json!("PartialObjectMetadata")), ("Object", json!("ConfigMap"))]
    {
        let path = format!("{all}?includeObject={include}&fieldSelector=metadata.name%3Done");
        let (_, _, body) = get(s, &path, &[("accept", TABLE)])?;
        let table: Value = serde_json::from_slice(&body)?;
        ensure!(table["kind"] == "Table" && table["rows"][0]["cells"][0] == "one", "{table}");
        ensure!(table["rows"][0]["object"]["kind"] == object, "{include}: {}", table["rows"][0]);
    }
    let (code, _, body) = get(s, &all, &[("accept", "application/xml")])?;
    let status: Value = serde_json::from_slice(&body)?;
    let wanted = "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf";
    ensure!(code == 406 && status["message"] == wanted, "{status}");
    s.create("configmaps", json!({"metadata": {"name": "large"}, "data": {"a": "x".repeat(300_000)}}))?;
    let (_, headers, body) = get(s, &all, &[("accept-encoding", "gzip")])?;
    ensure!(headers.get("content-encoding").is_some_and(|v| v == "gzip"), "{headers:?}");
    ensure!(body.starts_with(&[0x1f, 0x8b]) && body.len() < 10_000, "{} bytes", body.len());
    let (_, headers, _) = get(s, &all, &[])?;
    ensure!(!headers.contains_key("content-encoding"), "compressed without being asked");
    Ok(())
}

fn watches(s: &Scope<'_>) -> anyhow::Result<()> {
    let watch = format!(
        "/api/v1/namespaces/{}/configmaps?watch=true&timeoutSeconds=5&fieldSelector=metadata.name%3Done",
        s.namespace
    );
    let accept = format!("{PROTOBUF};stream=watch");
    let (code, headers, body) = get(s, &watch, &[("accept", &accept)])?;
    ensure!(code == 200 && content_type(&headers) == accept, "{code} {headers:?}");
    let (length, event) = body.split_first_chunk::<4>().context("no frame")?;
    let event = event.get(..u32::from_be_bytes(*length) as usize).context("a frame ends early")?;
    ensure!(event.starts_with(b"\x0a\x05ADDED\x12"), "{event:?}");
    ensure!(has(event, MAGIC) && has(event, b"\x12\x09ConfigMap"), "{event:?}");
    let (_, _, body) = get(s, &watch, &[("accept", TABLE)])?;
    let event: Value = serde_json::from_slice(body.split(|b| *b == b'\n').next().unwrap_or_default())?;
    ensure!(event["object"]["kind"] == "Table" && event["object"]["rows"][0]["cells"][0] == "one", "{event}");
    let (code, _, body) = get(s, &watch, &[("accept", "application/yaml")])?;
    ensure!(code == 406 && has(&body, b"application/json;stream=watch"), "{code}");
    Ok(())
}

fn documents(s: &Scope<'_>) -> anyhow::Result<()> {
    let asked = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let (code, headers, body) = get(s, "/openapi/v2", &[("accept", asked)])?;
    ensure!(code == 200 && content_type(&headers).starts_with("application/com.github"), "{headers:?}");
    ensure!(has(&body, b"io.k8s.api.core.v1.Pod") && body.len() > 500_000, "{} bytes", body.len());
    let etag = headers.get("etag").context("no etag")?.to_str()?.to_owned();
    let (code, _, body) = get(s, "/openapi/v2", &[("accept", asked), ("if-none-match", &etag)])?;
    ensure!(code == 304 && body.is_empty(), "{code}");
    let index = s.path("/openapi/v3")?;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().context("no URL")?.to_owned();
    let (code, headers, _) = get(s, &url, &[])?;
    let cached = headers.get("cache-control").is_some_and(|v| v == "public, immutable");
    ensure!(code == 200 && cached, "{code} {headers:?}");
    let (code, headers, _) = get(s, "/openapi/v3/apis/apps/v1?hash=OLD", &[])?;
    ensure!(code == 301 && headers.get("location").is_some_and(|v| v == url.as_str()), "{code} {headers:?}");
    // The real reader of these documents.
    let explained = s.kubectl(&["explain", "deployment.spec.replicas"])?;
    ensure!(explained.contains("FIELD: replicas <integer>"), "{explained}");
    Ok(())
}

#[test]
fn every_form_of_an_object() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let scope = cluster.namespace("wire")?;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: one\ndata:\n  key: value\n";
    let all = format!("/api/v1/namespaces/{}/configmaps", scope.namespace);
    let (code, _, answer) = scope.raw(Method::POST, &all, &[("content-type", "application/yaml")], yaml)?;
    ensure!(code == 201, "{code}: {}", String::from_utf8_lossy(&answer));
    forms_of_one(&scope)?;
    lists_and_tables(&scope)?;
    watches(&scope)?;
    documents(&scope)
}
