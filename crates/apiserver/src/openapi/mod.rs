//! OpenAPI v2 and v3: what is served, derived from the resource table and the type table.
//!
//! Operations are values ([`operations`]), types come from [`definitions`]; here they become documents. A
//! document is made when first asked for and kept, with its hash, until the table changes.

mod custom;
pub mod definitions;
mod gnostic;
mod merge;
pub mod operations;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use meta::{Reason, Status};
use registry::ResourceTable;
use schema::Schema;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use self::definitions::{Builder, Version};
use self::operations::{Answers, Operation, Parameter};
use crate::body::{self, Answer};
use crate::path::Query;
use crate::server::Server;

/// What clients ask for, in the order of preference, and what the answer is called.
const V2_MEDIA: [(&str, &str); 2] = [
    ("application/json", "application/json"),
    (
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
    ),
];
const V3_MEDIA: [(&str, &str); 2] = [
    ("application/json", "application/json"),
    (
        "application/com.github.proto-openapi.spec.v3@v1.0+protobuf",
        "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
    ),
];

/// Parameters with which a path item begins: those that its path names.
const PLACES: &[Parameter] = &[
    Parameter { name: "logpath", ty: "string", place: "path", text: "path to the log" },
    Parameter { name: "name", ty: "string", place: "path", text: "name of the object" },
    Parameter {
        name: "namespace",
        ty: "string",
        place: "path",
        text: "object name and auth scope, such as for teams and projects",
    },
    Parameter { name: "path", ty: "string", place: "path", text: "path to the resource" },
];

fn parameter(version: Version, p: &Parameter) -> Value {
    let mut out = json!({"name": p.name, "in": p.place, "description": p.text});
    match version {
        Version::V2 => {
            out["type"] = p.ty.into();
            out["uniqueItems"] = true.into();
        }
        Version::V3 => out["schema"] = json!({"type": p.ty, "uniqueItems": true}),
    }
    if p.place == "path" {
        out["required"] = true.into();
    }
    out
}

/// One operation of a document, without the parameters that its path item has.
fn operation(builder: &mut Builder<'_>, o: &Operation, shared: &[Parameter]) -> Value {
    let version = builder.version;
    let mut out = json!({"operationId": o.id, "tags": [o.tag], "description": o.text});
    if !o.action.is_empty() {
        out["x-kubernetes-action"] = o.action.into();
    }
    if let Some((g, v, k)) = &o.kind {
        out["x-kubernetes-group-version-kind"] = json!({"group": g, "version": v, "kind": k});
    }
    let own = o.query.iter().filter(|p| !shared.contains(p));
    let mut parameters: Vec<Value> = own.map(|p| parameter(version, p)).collect();
    if let Some(body) = &o.body {
        let schema = builder.refer(&body.ty);
        match version {
            Version::V2 => {
                let mut carried = json!({"name": "body", "in": "body", "schema": schema});
                if body.required {
                    carried["required"] = true.into();
                }
                parameters.insert(0, carried);
            }
            Version::V3 => {
                let content: Map<String, Value> =
                    o.consumes.iter().map(|m| ((*m).to_owned(), json!({"schema": schema}))).collect();
                out["requestBody"] = json!({"content": content});
                if body.required {
                    out["requestBody"]["required"] = true.into();
                }
            }
        }
    }
    if !parameters.is_empty() {
        out["parameters"] = Value::Array(parameters);
    }
    let mut responses = Map::new();
    for (code, answer) in &o.answers {
        responses.insert(code.to_string(), response(builder, *code, answer, o.produces));
    }
    responses.insert("401".into(), json!({"description": "Unauthorized"}));
    out["responses"] = Value::Object(responses);
    if version == Version::V2 {
        out["schemes"] = json!(["https"]);
        if !o.consumes.is_empty() {
            out["consumes"] = json!(o.consumes);
        }
        if !o.produces.is_empty() {
            out["produces"] = json!(o.produces);
        }
    }
    out
}

fn response(builder: &mut Builder<'_>, code: u16, answer: &Answers, produces: &[&str]) -> Value {
    let text = match code {
        200 => "OK",
        201 => "Created",
        _ => "Accepted",
    };
    let schema = match answer {
        Answers::Type(name) => builder.refer(name),
        Answers::Text => json!({"type": "string"}),
        Answers::Nothing => return json!({"description": text}),
    };
    match builder.version {
        Version::V2 => json!({"description": text, "schema": schema}),
        Version::V3 => {
            let content: Map<String, Value> =
                produces.iter().map(|m| ((*m).to_owned(), json!({"schema": schema}))).collect();
            json!({"description": text, "content": content})
        }
    }
}

/// A document of some operations; `table` defines the custom resources among their types.
fn document(version: Version, table: &ResourceTable, operations: &[Operation]) -> Value {
    let mut builder = Builder::new(version, Schema::builtin());
    for row in table.rows() {
        let api = format!("/apis/{}/{}/", row.group, row.version);
        if let Some(definition) =
            row.custom.as_ref().filter(|_| operations.iter().any(|o| o.path.starts_with(&api)))
        {
            custom::add(&mut builder, row, definition);
        }
    }
    let mut by_path: std::collections::BTreeMap<&str, Vec<&Operation>> = Default::default();
    for operation in operations {
        by_path.entry(&operation.path).or_default().push(operation);
    }
    let mut paths = Map::new();
    for (path, all) in by_path {
        // What every operation of a path takes stands once, beside them.
        let mut shared: Vec<Parameter> =
            all.first().into_iter().flat_map(|o| o.query.iter().copied()).collect();
        shared.retain(|p| all.iter().all(|o| o.query.contains(p)));
        let mut item = Map::new();
        for o in all {
            item.insert(o.method.to_owned(), operation(&mut builder, o, &shared));
        }
        let named = PLACES.iter().filter(|p| path.contains(&format!("{{{}}}", p.name)));
        let mut parameters: Vec<&Parameter> = named.chain(shared.iter()).collect();
        parameters.sort_by_key(|p| p.name);
        if !parameters.is_empty() {
            item.insert("parameters".into(), parameters.iter().map(|p| parameter(version, p)).collect());
        }
        paths.insert(path.to_owned(), Value::Object(item));
    }
    let definitions = Value::Object(builder.finish());
    let info = json!({"title": "Kubernetes", "version": crate::endpoints::GIT_VERSION});
    let token = json!({"type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"});
    match version {
        Version::V2 => json!({
            "swagger": "2.0", "info": info, "paths": paths, "definitions": definitions,
            "security": [{"BearerToken": []}], "securityDefinitions": {"BearerToken": token},
        }),
        Version::V3 => json!({
            "openapi": "3.0.0", "info": info, "paths": paths,
            "components": {"schemas": definitions, "securitySchemes": {"BearerToken": token}},
        }),
    }
}

/// The operations of one part of the v3 documentation: `api/v1`, `apis/apps`, `version`, ...
fn part(table: &ResourceTable, path: &str) -> Option<Vec<Operation>> {
    if let Some((_, operation)) = operations::of_server().into_iter().find(|(p, _)| *p == path) {
        return Some(vec![operation]);
    }
    let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
        ["api", version] => ("", *version),
        ["apis", group] => {
            return table.groups().iter().any(|(g, _)| g == group).then(|| vec![operations::of_group(group)]);
        }
        ["apis", group, version] => (*group, *version),
        _ => return None,
    };
    let rows = table.rows().iter().filter(|r| *r.group == *group && *r.version == *version);
    let mut all: Vec<Operation> = rows.flat_map(|r| operations::of_row(r)).collect();
    if all.is_empty() {
        return None;
    }
    all.push(operations::of_version(group, version));
    Some(all)
}

/// Every part of the v3 documentation.
fn parts(table: &ResourceTable) -> Vec<String> {
    let mut out: Vec<String> = operations::of_server().iter().map(|(p, _)| (*p).to_owned()).collect();
    for (group, versions) in table.groups() {
        if !group.is_empty() {
            out.push(format!("apis/{group}"));
        }
        for version in versions {
            out.push(if group.is_empty() {
                format!("api/{version}")
            } else {
                format!("apis/{group}/{version}")
            });
        }
    }
    out.sort();
    out
}

/// A hash of a document, as an entity tag.
pub(crate) fn hash(bytes: &[u8]) -> String {
    Sha512::digest(bytes).iter().map(|b| format!("{b:02X}")).collect()
}

/// The media type of the answer: which of `served` the client takes.
fn media(headers: &HeaderMap, served: &[(&'static str, &'static str)]) -> Result<usize, Status> {
    let values: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    if values.is_empty() {
        return Ok(0);
    }
    for clause in values.iter().flat_map(|v| v.split(',')) {
        let media = clause.split(';').next().unwrap_or_default().trim();
        if matches!(media, "*/*" | "application/*") {
            return Ok(0);
        }
        if let Some(at) = served.iter().position(|(name, answer)| media == *name || media == *answer) {
            return Ok(at);
        }
    }
    Err(Status::new(406, Reason::NotAcceptable, "406 page not acceptable"))
}

/// A document with the headers that let clients keep it; nothing but those when they have it already.
pub(crate) fn kept(headers: &HeaderMap, content_type: &'static str, document: Bytes, etag: &str) -> Answer {
    let quoted = format!("\"{etag}\"");
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    let known = known.flat_map(|v| v.split(',')).any(|v| {
        let v = v.trim();
        v == "*" || v.strip_prefix("W/").unwrap_or(v) == quoted
    });
    let mut answer = if known {
        body::typed(StatusCode::NOT_MODIFIED.as_u16(), content_type, Bytes::new())
    } else {
        body::typed(200, content_type, document)
    };
    if let Ok(value) = HeaderValue::from_str(&quoted) {
        answer.headers_mut().insert(header::ETAG, value);
    }
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    answer
}

/// One form of a document, and its hash, which is that of the JSON in every form.
fn form(server: &Server, path: &str, media: usize, make: impl Fn() -> Value) -> (Bytes, String) {
    let table = server.registry.table();
    let generation = server.aggregate.remotes().generation;
    let json = server.discovery.get(&table, generation, path, || make().to_string().into());
    let key = format!("{path}#hash");
    let etag = server.discovery.get(&table, generation, &key, || hash(&json).into());
    let etag = String::from_utf8_lossy(&etag).into_owned();
    if media == 0 {
        return (json, etag);
    }
    let encoded = server.discovery.get(&table, generation, &format!("{path}#protobuf"), || {
        let document = serde_json::from_slice(&json).unwrap_or_default();
        if path == "openapi/v2" { gnostic::v2(&document) } else { gnostic::v3(&document) }.into()
    });
    (encoded, etag)
}

/// `/openapi/v2`.
pub fn v2(server: &Server, headers: &HeaderMap) -> Result<Answer, Status> {
    let at = media(headers, &V2_MEDIA)?;
    let table = server.registry.table();
    let make = || {
        let mut own = document(Version::V2, &table, &operations::all(&table));
        server.aggregate.remotes().swaggers().iter().for_each(|theirs| merge::merge(&mut own, theirs));
        own
    };
    let (bytes, etag) = form(server, "openapi/v2", at, make);
    Ok(kept(headers, V2_MEDIA[at].1, bytes, &etag))
}

fn v3_document(server: &Server, path: &str, at: usize) -> Option<(Bytes, String)> {
    let table = server.registry.table();
    let operations = part(&table, path)?;
    Some(form(server, &format!("openapi/v3/{path}"), at, || document(Version::V3, &table, &operations)))
}

/// `/openapi/v3`: one entry per part, with a hash that changes with the document.
pub fn index(server: &Server, headers: &HeaderMap) -> Answer {
    let (table, remotes) = (server.registry.table(), server.aggregate.remotes());
    let make = || {
        let mut paths = Map::new();
        for path in parts(&table) {
            let Some((_, etag)) = v3_document(server, &path, 0) else { continue };
            let url = format!("/openapi/v3/{path}?hash={etag}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
        paths.extend(remotes.open_api());
        json!({"paths": paths}).to_string().into()
    };
    let document = server.discovery.get(&table, remotes.generation, "openapi/v3", make);
    let etag = hash(&document);
    kept(headers, "application/json", document, &etag)
}

/// `/openapi/v3/api/v1`, `/openapi/v3/apis/G/V`, ...
pub fn v3(server: &Server, path: &str, headers: &HeaderMap, query: &Query) -> Result<Answer, Status> {
    let at = media(headers, &V3_MEDIA)?;
    let (bytes, etag) = v3_document(server, path, at).ok_or_else(Status::path_not_found)?;
    let asked = query.get("hash");
    if !asked.is_empty() && asked != etag {
        // An old hash: the client is sent to the document as it is now.
        let mut answer = body::text(StatusCode::MOVED_PERMANENTLY.as_u16(), Bytes::new());
        if let Ok(value) = HeaderValue::from_str(&format!("/openapi/v3/{path}?hash={etag}")) {
            answer.headers_mut().insert(header::LOCATION, value);
        }
        return Ok(answer);
    }
    let mut answer = kept(headers, V3_MEDIA[at].1, bytes, &etag);
    if !asked.is_empty() {
        let forever = HeaderValue::from_static("public, immutable");
        answer.headers_mut().insert(header::CACHE_CONTROL, forever);
    }
    Ok(answer)
}
