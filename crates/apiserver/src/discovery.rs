//! Discovery: which groups, versions, resources and verbs are served; the old documents and the aggregated
//! one (KEP-3352). All of it derives from the table, and is kept until the table changes.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use meta::Status;
use parking_lot::Mutex;
use registry::resource::subresource_verbs;
use registry::{ResourceDef, ResourceTable};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::aggregate::Remotes;
use crate::body::{self, Answer};
use crate::negotiate::Shape;
use crate::server::Server;

/// Content type of the aggregated document.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Documents made from the table, by path.
#[derive(Default)]
pub struct Cache(Mutex<CacheState>);

#[derive(Default)]
struct CacheState {
    table: Option<Arc<ResourceTable>>,
    generation: u64,
    documents: std::collections::HashMap<String, Bytes>,
}

impl Cache {
    /// The document at `path`, made by `make` when the table, or what other servers serve (`generation`), is newer
    /// than the copy.
    pub fn get(
        &self,
        table: &Arc<ResourceTable>,
        generation: u64,
        path: &str,
        make: impl FnOnce() -> Bytes,
    ) -> Bytes {
        {
            let mut state = self.0.lock();
            let same = state.table.as_ref().is_some_and(|t| Arc::ptr_eq(t, table));
            if !same || state.generation != generation {
                state.documents.clear();
                state.table = Some(table.clone());
                state.generation = generation;
            }
            if let Some(document) = state.documents.get(path) {
                return document.clone();
            }
        }
        let document = make();
        self.0.lock().documents.insert(path.to_owned(), document.clone());
        document
    }
}

/// Answers `/api...` and `/apis...`.
pub fn serve(
    server: &Server,
    parts: &[&str],
    shape: Shape,
    headers: &http::HeaderMap,
) -> Result<Answer, Status> {
    let table = server.registry.table();
    let remotes = server.aggregate.remotes();
    let path = parts.join("/");
    if shape == Shape::Discovery && parts.len() == 1 {
        let make = || aggregated(&table, &remotes, parts[0] == "api").to_string().into();
        let document = server.discovery.get(&table, remotes.generation, &format!("{path}?aggregated"), make);
        let etag = crate::openapi::hash(&document);
        return Ok(crate::openapi::kept(headers, AGGREGATED, document, &etag));
    }
    let value = match parts {
        ["api"] => {
            let address = server.address.get().map(String::as_str).unwrap_or_default();
            json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [
                {"clientCIDR": "0.0.0.0/0", "serverAddress": address}]})
        }
        ["apis"] => {
            let groups: Vec<Value> = remotes
                .groups(&table)
                .iter()
                .filter(|(g, _)| !g.is_empty())
                .map(|(g, v)| group(g, v))
                .collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", name] => {
            let groups = remotes.groups(&table);
            let (g, versions) =
                groups.iter().find(|(g, _)| g == name && !g.is_empty()).ok_or_else(Status::path_not_found)?;
            let mut value = group(g, versions);
            value["kind"] = "APIGroup".into();
            value["apiVersion"] = "v1".into();
            value
        }
        ["api", version] => resources(&table, "", version)?,
        ["apis", name, version] => resources(&table, name, version)?,
        _ => return Err(Status::path_not_found()),
    };
    Ok(body::json(200, &value))
}

fn group(name: &str, versions: &[&str]) -> Value {
    let version = |v: &&str| json!({"groupVersion": format!("{name}/{v}"), "version": v});
    let all: Vec<Value> = versions.iter().map(version).collect();
    json!({"name": name, "versions": all, "preferredVersion": all[0]})
}

fn resources(table: &ResourceTable, group: &str, version: &str) -> Result<Value, Status> {
    let rows: Vec<&Arc<ResourceDef>> =
        table.rows().iter().filter(|r| &*r.group == group && &*r.version == version).collect();
    if rows.is_empty() {
        return Err(Status::path_not_found());
    }
    let mut list = Vec::new();
    for row in rows {
        let mut entry = json!({"name": &*row.resource, "singularName": &*row.singular, "namespaced": row.namespaced,
            "kind": &*row.kind, "verbs": row.verbs()});
        if !row.short_names.is_empty() {
            entry["shortNames"] = json!(row.short_names);
        }
        if !row.categories.is_empty() {
            entry["categories"] = json!(row.categories);
        }
        if let Some(hash) = storage_version_hash(table, row) {
            entry["storageVersionHash"] = hash.into();
        }
        list.push(entry);
        for sub in &row.subresources {
            let (g, v, k) = kind_of(row, sub);
            let mut entry = json!({"name": format!("{}/{}", row.resource, sub.name), "singularName": "",
                "namespaced": row.namespaced, "kind": k, "verbs": subresource_verbs(sub)});
            // Only what belongs to another group says so.
            if (g, v) != (&*row.group, &*row.version) {
                entry["group"] = g.into();
                entry["version"] = v.into();
            }
            list.push(entry);
        }
    }
    let group_version = meta::gvk::join_api_version(group, version);
    Ok(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    )
}

/// What changes when objects of a resource are stored in another version: a hash of that version.
fn storage_version_hash(table: &ResourceTable, row: &ResourceDef) -> Option<String> {
    // Component statuses are read but nowhere stored: nobody can write them.
    if !row.methods.iter().any(|m| &**m == "get") || !row.methods.iter().any(|m| &**m == "put") {
        return None;
    }
    let stored =
        row.stored_as.as_ref().and_then(|(group, version, resource)| table.find(group, version, resource));
    let api_version = match (&row.custom, stored) {
        (Some(custom), _) => custom.storage_api_version.clone(),
        (None, stored) => {
            let row = stored.map_or(row, |stored| &**stored);
            format!("{}/{}", row.group, row.version)
        }
    };
    let digest = Sha256::digest(format!("{api_version}/{}", row.kind));
    Some(STANDARD.encode(digest.get(..8)?))
}

fn kind_of<'a>(row: &'a ResourceDef, sub: &'a registry::Subresource) -> (&'a str, &'a str, &'a str) {
    match &sub.kind {
        Some((g, v, k)) => (g, v, k),
        None => (&row.group, &row.version, &row.kind),
    }
}

fn aggregated(table: &ResourceTable, remotes: &Remotes, core: bool) -> Value {
    let groups = remotes.groups(table);
    let items: Vec<Value> = groups
        .iter()
        .filter(|(g, _)| g.is_empty() == core)
        .map(|(g, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|v| {
                    if let Some(remote) = remotes.version(g, v) {
                        return remote;
                    }
                    let rows = table.rows().iter().filter(|r| &*r.group == *g && &*r.version == *v);
                    let resources: Vec<Value> = rows.map(|r| aggregated_resource(r)).collect();
                    json!({"version": v, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if g.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": g, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_resource(row: &ResourceDef) -> Value {
    let kind = |(g, v, k): (&str, &str, &str)| json!({"group": g, "version": v, "kind": k});
    let mut entry = json!({
        "resource": &*row.resource,
        "responseKind": kind((&row.group, &row.version, &row.kind)),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": &*row.singular,
        "verbs": row.verbs(),
    });
    if !row.short_names.is_empty() {
        entry["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        entry["categories"] = json!(row.categories);
    }
    let subs: Vec<Value> = row
        .subresources
        .iter()
        .map(|s| json!({"subresource": &*s.name, "responseKind": kind(kind_of(row, s)), "verbs": subresource_verbs(s)}))
        .collect();
    if !subs.is_empty() {
        entry["subresources"] = json!(subs);
    }
    entry
}

/// Every path of the root document.
pub fn paths(server: &Server) -> Vec<String> {
    let table = server.registry.table();
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(String::from)
    .to_vec();
    let remotes = server.aggregate.remotes();
    for (group, versions) in remotes.groups(&table).into_iter().filter(|(g, _)| !g.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|v| format!("/apis/{group}/{v}")));
    }
    paths.sort();
    paths
}
