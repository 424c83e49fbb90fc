//! APIServices kept in step with what is served: the local ones are made from the resource table, the remote
//! ones are asked whether they answer, and say so in their condition. Changes of APIServices, Services and
//! EndpointSlices wake the one task; while there are remote ones it also looks again from time to time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Request, header};
use meta::Status;
use registry::ResourceDef;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{CUSTOM_PRIORITY, FrontProxy, Remote, Swagger, proxy};
use crate::body;
use crate::server::Server;

const GROUP: &str = "apiregistration.k8s.io";
/// Label of the APIServices that are made here.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Time between two looks at remote servers that answer (upstream's resync).
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// First pause before asking again who did not answer; it doubles up to [`LOOK_EVERY`].
const RETRY: Duration = Duration::from_millis(500);
/// Longest wait for an answer (upstream's).
const PROBE_MAX: Duration = Duration::from_secs(5);
/// Largest OpenAPI v2 document that is taken: some times that of the cluster itself.
const SWAGGER_BYTES_MAX: usize = 16 << 20;

/// Priorities of the groups that every cluster has, as upstream gives them.
const PRIORITIES: [(&str, u64); 22] = [
    ("", 18_000),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("storagemigration.k8s.io", 16_800),
    ("apiextensions.k8s.io", 16_700),
    ("admissionregistration.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
    ("internal.apiserver.k8s.io", 16_000),
    ("resource.k8s.io", 15_900),
];

/// Priority of a group that is served here.
pub(super) fn group_priority(group: &str) -> u64 {
    PRIORITIES.iter().find(|(g, _)| *g == group).map_or(CUSTOM_PRIORITY, |(_, p)| *p)
}

/// Priority of a version that is served here.
pub(super) fn version_priority(group: &str, version: &str) -> u64 {
    match (group, version) {
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io", "v1") => 21,
        (g, _) if group_priority(g) == CUSTOM_PRIORITY => 100,
        (_, v) if v.contains("alpha") => 9,
        (_, v) if v.contains("beta") => 12,
        _ => 15,
    }
}

fn row(server: &Server) -> Option<Arc<ResourceDef>> {
    server.registry.table().find(GROUP, "v1", "apiservices").cloned()
}

/// Makes the local APIServices and follows all of them for as long as the server runs.
pub async fn run(server: &Server) -> Result<(), Status> {
    let Some(def) = row(server) else { return Ok(()) };
    if let Some(proxy) = &server.front_proxy {
        trust(server, proxy).await?;
    }
    let changed = Arc::new(Notify::new());
    for (group, resource) in [
        (GROUP, "apiservices"),
        ("", "services"),
        ("discovery.k8s.io", "endpointslices"),
        ("apiextensions.k8s.io", "customresourcedefinitions"),
    ] {
        let table = server.registry.table();
        let Some(followed) = table.find(group, "v1", resource) else { continue };
        let (wake, of) = (changed.clone(), server.downgrade());
        let always = group == GROUP || group == "apiextensions.k8s.io";
        server.registry.cacher().kind(&followed.storage_prefix()).observe(move |_| {
            // Services matter only to those who are behind one.
            let any = || of.upgrade().is_some_and(|s| !s.aggregate.remotes.load().all.is_empty());
            if always || any() {
                wake.notify_one();
            }
        });
    }
    turn(server, &def).await?;
    let (server, stop) = (server.clone(), server.shutdown.clone());
    tokio::spawn(follow(server, def, changed, stop));
    Ok(())
}

/// Looks again whenever something changed, and from time to time while there are remote servers.
async fn follow(server: Server, def: Arc<ResourceDef>, changed: Arc<Notify>, stop: CancellationToken) {
    let mut pause = RETRY;
    loop {
        let any = !server.aggregate.remotes().all.is_empty();
        let all_fine = server.aggregate.remotes().all.values().all(|r| r.available);
        pause = if all_fine { RETRY } else { (pause * 2).min(LOOK_EVERY) };
        let wait = if all_fine { LOOK_EVERY } else { pause };
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed.notified() => {}
            () = tokio::time::sleep(wait), if any => {}
        }
        if let Err(error) = turn(&server, &def).await {
            tracing::warn!(%error, "APIServices");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => changed.notify_one(),
            }
        }
    }
}

/// Publishes whom the servers behind this one may trust.
async fn trust(server: &Server, proxy: &FrontProxy) -> Result<(), Status> {
    let (rules, list) = (&proxy.rules, |all: &[String]| json!(all).to_string());
    let data = json!({
        "client-ca-file": proxy.client_ca_pem,
        "requestheader-allowed-names": list(&rules.allowed_names),
        "requestheader-client-ca-file": proxy.ca_pem,
        "requestheader-extra-headers-prefix": list(&rules.extra_prefix),
        "requestheader-group-headers": list(&rules.group),
        "requestheader-uid-headers": list(&rules.uid),
        "requestheader-username-headers": list(&rules.username),
    });
    let (namespace, name) = ("kube-system", "extension-apiserver-authentication");
    let object = json!({"metadata": {"name": name, "namespace": namespace}, "data": data});
    if crate::bootstrap::ensure(server, "", "configmaps", object).await?.is_none() {
        return Ok(());
    }
    let table = server.registry.table();
    let def = table.find("", "v1", "configmaps").ok_or_else(Status::path_not_found)?;
    let change = |current: &mut Map<String, Value>| {
        let differs = current.get("data") != Some(&data);
        current.insert("data".into(), data.clone());
        Ok(differs)
    };
    server.registry.modify(def, namespace, name, &change).await.map(drop)
}

/// One look at everything. Boxed, so that those who wait for it need not know its type.
fn turn<'a>(server: &'a Server, def: &'a ResourceDef) -> BoxFuture<'a, Result<(), Status>> {
    Box::pin(look(server, def))
}

async fn look(server: &Server, def: &ResourceDef) -> Result<(), Status> {
    local(server, def).await?;
    let objects = server.registry.cacher().kind(&def.storage_prefix()).snapshot(None);
    let (before, mut next) = (server.aggregate.remotes(), BTreeMap::new());
    let mut changed = false;
    for object in &objects {
        let object = object.to_value();
        if !object["spec"]["service"].is_object() {
            report(server, def, &object, ("True", "Local", "Local APIServices are always available")).await?;
            continue;
        }
        let mut remote = remote(server, &object);
        let key = (remote.group.clone(), remote.version.clone());
        let old = before.all.get(&key).filter(|old| old.print == remote.print);
        remote.swagger = old.and_then(|o| o.swagger.clone());
        let (reason, message) = match judge(server, &remote).await {
            Ok((discovery, open_api)) => {
                (remote.discovery, remote.open_api, remote.available) = (Some(discovery), open_api, true);
                // One server may be behind several APIServices: its document is asked for once.
                let twin = next.values().find(|r: &&Arc<Remote>| r.is_same_server(&remote));
                remote.swagger = match twin.and_then(|t| t.swagger.clone()) {
                    Some(document) => Some(document),
                    None => swagger(server, &remote).await.or(remote.swagger),
                };
                ("Passed", "all checks passed".to_owned())
            }
            Err((reason, message)) => {
                remote.discovery = old.and_then(|o| o.discovery.clone());
                remote.open_api = old.and_then(|o| o.open_api.clone());
                (reason, message)
            }
        };
        let status = if remote.available { "True" } else { "False" };
        let same = old.filter(|o| {
            let swagger = (o.swagger.as_ref().map(Arc::as_ptr), remote.swagger.as_ref().map(Arc::as_ptr));
            (o.available, &o.discovery, &o.open_api)
                == (remote.available, &remote.discovery, &remote.open_api)
                && swagger.0 == swagger.1
        });
        changed |= same.is_none();
        next.insert(key, same.cloned().unwrap_or_else(|| Arc::new(remote)));
        if changed {
            // Who sees it available may use it at once.
            let mut now = server.aggregate.remotes().all.clone();
            now.extend(next.clone());
            server.aggregate.set(now);
        }
        report(server, def, &object, (status, reason, &message)).await?;
    }
    if changed || before.all.len() != next.len() {
        server.aggregate.set(next);
    }
    Ok(())
}

/// Makes the APIServices of what is served here, and removes those of what is not served any more.
async fn local(server: &Server, def: &ResourceDef) -> Result<(), Status> {
    let table = server.registry.table();
    let custom: BTreeSet<&str> =
        table.rows().iter().filter(|r| r.custom.is_some()).map(|r| &*r.group).collect();
    let mut served = BTreeSet::new();
    for (group, versions) in table.groups() {
        for version in versions {
            if group == GROUP {
                continue;
            }
            let name = format!("{version}.{group}");
            let by = if custom.contains(group) { "true" } else { "onstart" };
            let spec = json!({"group": group, "version": version, "groupPriorityMinimum": group_priority(group),
                "versionPriority": version_priority(group, version)});
            let object = json!({"metadata": {"name": name, "labels": {MANAGED: by}}, "spec": spec});
            crate::bootstrap::ensure(server, GROUP, "apiservices", object).await?;
            served.insert(name);
        }
    }
    for object in server.registry.cacher().kind(&def.storage_prefix()).snapshot(None) {
        if object.label(MANAGED).is_some() && !served.contains(&*object.name) {
            crate::bootstrap::remove(server, def, "", &object.name).await?;
        }
    }
    Ok(())
}

fn remote(server: &Server, object: &Value) -> Remote {
    let spec = &object["spec"];
    let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let service = &spec["service"];
    let tls = match &server.front_proxy {
        None => Err("the server has no certificate as a proxy".to_owned()),
        Some(proxy) => {
            use base64::Engine;
            let ca = base64::engine::general_purpose::STANDARD.decode(text(spec, "caBundle"));
            let ca = ca.map_err(|e| format!("unable to load root certificates: {e}"));
            ca.and_then(|ca| (proxy.tls)(&ca, spec["insecureSkipTLSVerify"] == true))
        }
    };
    Remote {
        name: text(&object["metadata"], "name"),
        group: text(spec, "group"),
        version: text(spec, "version"),
        namespace: text(service, "namespace"),
        service: text(service, "name"),
        port: service["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
        group_priority: spec["groupPriorityMinimum"].as_u64().unwrap_or(0),
        version_priority: spec["versionPriority"].as_u64().unwrap_or(0),
        print: spec.to_string(),
        tls,
        available: false,
        discovery: None,
        open_api: None,
        swagger: None,
    }
}

/// Reason and message of a remote that is not available.
type Trouble = (&'static str, String);

/// Whether a remote server can be used: its Service, its endpoints, its answer. Also gives its part of discovery
/// and of OpenAPI.
async fn judge(server: &Server, remote: &Remote) -> Result<(Value, Option<Value>), Trouble> {
    let host = reachable(server, remote)?;
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    let failing = |why: String| {
        ("FailedDiscoveryCheck", format!("failing or missing response from https://{host}{path}: {why}"))
    };
    let (code, resources) = get(server, remote, &path, "application/json").await.map_err(failing)?;
    if !(200..300).contains(&code) {
        return Err(failing(format!("bad status from https://{host}{path}: {code}")));
    }
    let open_api =
        get(server, remote, "/openapi/v3", "application/json").await.ok().and_then(|(_, index)| {
            index["paths"].get(format!("apis/{}/{}", remote.group, remote.version)).cloned()
        });
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    if let Ok((200, found)) = get(server, remote, "/apis", accept).await
        && found["kind"] == "APIGroupDiscoveryList"
    {
        let groups = found["items"].as_array().into_iter().flatten();
        let mut versions = groups
            .filter(|g| g["metadata"]["name"] == *remote.group)
            .flat_map(|g| g["versions"].as_array().into_iter().flatten());
        if let Some(version) = versions.find(|v| v["version"] == *remote.version) {
            return Ok((version.clone(), open_api));
        }
    }
    Ok((from_list(&resources, &remote.group, &remote.version), open_api))
}

/// Whether there is a Service with endpoints on the right port; names the address that is asked.
fn reachable(server: &Server, remote: &Remote) -> Result<String, Trouble> {
    let table = server.registry.table();
    let (namespace, name, port) = (&remote.namespace, &remote.service, remote.port);
    let service =
        table.find("", "v1", "services").and_then(|def| server.registry.current(def, namespace, name));
    let Some(service) = service.map(|s| s.to_value()) else {
        return Err(("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
    };
    if service["spec"]["type"] == "ExternalName" {
        return Ok(format!("{}:{port}", service["spec"]["externalName"].as_str().unwrap_or_default()));
    }
    let ports = service["spec"]["ports"].as_array();
    let Some(found) = ports.into_iter().flatten().find(|p| p["port"].as_u64() == Some(port.into())) else {
        return Err((
            "ServicePortError",
            format!("service/{name} in {namespace:?} is not listening on port {port}"),
        ));
    };
    let port_name = found["name"].as_str().unwrap_or_default();
    let slices = table.find("discovery.k8s.io", "v1", "endpointslices");
    let slices = slices.map(|d| server.registry.cacher().kind(&d.storage_prefix()).snapshot(Some(namespace)));
    let any = slices.into_iter().flatten().any(|s| s.label("kubernetes.io/service-name") == Some(name));
    if !any {
        return Err((
            "EndpointsNotFound",
            format!("cannot find endpointslices for service/{name} in {namespace:?}"),
        ));
    }
    match crate::webhook::endpoint(server, namespace, name, port) {
        Ok((host, port)) => Ok(format!("{host}:{port}")),
        Err(_) => Err((
            "MissingEndpoints",
            format!(
                "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
            ),
        )),
    }
}

/// GET as the server itself.
async fn get(server: &Server, remote: &Remote, path: &str, accept: &str) -> Result<(u16, Value), String> {
    let request = asking(path, accept).body(body::full("")).map_err(|e| e.to_string())?;
    let asked = async {
        let answer = proxy::exchange(server, remote, request).await?;
        let code = answer.status().as_u16();
        let bytes = body::read(answer.into_body()).await.map_err(|status| status.message)?;
        Ok((code, serde_json::from_slice(&bytes).unwrap_or_default()))
    };
    let late = || Err(format!("Get \"{path}\": context deadline exceeded"));
    tokio::time::timeout(PROBE_MAX, asked).await.unwrap_or_else(|_| late())
}

/// The server's OpenAPI v2: the one that is known already unless there is a newer one; `None` if it has none.
async fn swagger(server: &Server, remote: &Remote) -> Option<Arc<Swagger>> {
    let mut request = asking("/openapi/v2", "application/json");
    if let Some(known) = remote.swagger.as_ref().filter(|s| !s.etag.is_empty()) {
        request = request.header(header::IF_NONE_MATCH, &known.etag);
    }
    let request = request.body(body::full("")).ok()?;
    let asked = async {
        let answer = proxy::exchange(server, remote, request).await.ok()?;
        if answer.status() == http::StatusCode::NOT_MODIFIED {
            return remote.swagger.clone();
        }
        if !answer.status().is_success() {
            return None;
        }
        let etag = answer.headers().get(header::ETAG).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let etag = etag.to_owned();
        let bytes = body::read_up_to(answer.into_body(), SWAGGER_BYTES_MAX).await.ok()?;
        let document: Value = serde_json::from_slice(&bytes).ok()?;
        if !document.get("paths").is_some_and(Value::is_object) {
            return None;
        }
        match &remote.swagger {
            Some(known) if known.document == document => Some(known.clone()),
            _ => Some(Arc::new(Swagger { etag, document })),
        }
    };
    tokio::time::timeout(PROBE_MAX, asked).await.unwrap_or_else(|_| {
        tracing::debug!(name = remote.name, "OpenAPI v2 took too long");
        None
    })
}

/// A GET as the server itself.
fn asking(path: &str, accept: &str) -> http::request::Builder {
    Request::get(path)
        .header(header::ACCEPT, accept)
        .header("x-remote-user", "system:kube-aggregator")
        .header("x-remote-group", "system:masters")
}

/// An APIResourceList as a version of the aggregated document.
fn from_list(list: &Value, group: &str, version: &str) -> Value {
    let all: Vec<&Value> = list["resources"].as_array().into_iter().flatten().collect();
    let text = |v: &Value, key: &str, default: &str| match v.get(key).and_then(Value::as_str) {
        Some(found) if !found.is_empty() => found.to_owned(),
        _ => default.to_owned(),
    };
    let kind = |r: &Value| json!({"group": text(r, "group", group), "version": text(r, "version", version), "kind": r["kind"]});
    let mut out = Vec::new();
    for resource in all.iter().filter(|r| !text(r, "name", "").contains('/')) {
        let name = text(resource, "name", "");
        let mut entry = json!({"resource": name, "responseKind": kind(resource), "verbs": resource["verbs"],
            "scope": if resource["namespaced"] == true { "Namespaced" } else { "Cluster" },
            "singularResource": text(resource, "singularName", "")});
        for key in ["shortNames", "categories"] {
            if resource[key].is_array() {
                entry[key] = resource[key].clone();
            }
        }
        let of = |r: &&&Value| text(r, "name", "").split_once('/').is_some_and(|(parent, _)| parent == name);
        let subs: Vec<Value> = all
            .iter()
            .filter(of)
            .map(|r| json!({"subresource": text(r, "name", "").split_once('/').map(|p| p.1.to_owned()), "responseKind": kind(r), "verbs": r["verbs"]}))
            .collect();
        if !subs.is_empty() {
            entry["subresources"] = subs.into();
        }
        out.push(entry);
    }
    json!({"version": version, "resources": out})
}

/// Writes the condition `Available`, if it says something else.
async fn report(
    server: &Server,
    def: &ResourceDef,
    object: &Value,
    (status, reason, message): (&str, &str, &str),
) -> Result<(), Status> {
    let conditions = object["status"]["conditions"].as_array();
    let known = conditions.into_iter().flatten().find(|c| c["type"] == "Available");
    if known.is_some_and(|c| c["status"] == status && c["reason"] == reason && c["message"] == message) {
        return Ok(());
    }
    let now = schema::time::seconds(server.registry.clock().now());
    let since = known.filter(|c| c["status"] == status).and_then(|c| c["lastTransitionTime"].as_str());
    let condition = json!({"type": "Available", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since.unwrap_or(&now)});
    let change = |current: &mut Map<String, Value>| {
        let conditions = current.get("status").and_then(|s| s.get("conditions")).and_then(Value::as_array);
        let mut conditions = conditions.cloned().unwrap_or_default();
        conditions.retain(|c| c["type"] != "Available");
        conditions.push(condition.clone());
        current.insert("status".into(), json!({"conditions": conditions}));
        Ok(true)
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match server.registry.modify(def, "", name, &change).await {
        Err(e) if !e.is_not_found() => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_aggregated_documents() {
        let list = json!({"resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            {"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["update"]}]});
        let kind = json!({"group": "wardle.example.com", "version": "v1", "kind": "Flunder"});
        assert_eq!(
            from_list(&list, "wardle.example.com", "v1"),
            json!({"version": "v1", "resources": [
            {"resource": "flunders", "responseKind": kind, "scope": "Namespaced", "singularResource": "flunder", "verbs": ["get"],
             "subresources": [{"subresource": "status", "responseKind": kind, "verbs": ["update"]}]}]})
        );
    }

    #[test]
    fn priorities_are_upstreams() {
        assert_eq!((group_priority("apps"), version_priority("apps", "v1")), (17_800, 15));
        assert_eq!((group_priority("x.example.com"), version_priority("x.example.com", "v1")), (1000, 100));
        assert_eq!(version_priority("autoscaling", "v2"), 30);
    }
}
