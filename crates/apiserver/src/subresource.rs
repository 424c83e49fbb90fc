//! Subresources: status and its like through the generic verbs, scale as a view, and the few that do
//! something of their own (binding, eviction, token, finalize, approval, and what goes to kubelets).

use std::sync::Arc;

use auth::token::{KubernetesClaims, ObjectRef};
use http::Request;
use meta::{FieldError, Status, UserInfo};
use registry::write::{meta_text, metadata};
use registry::{ResourceDef, Target};
use serde_json::{Map, Value, json};

use crate::body::{self, Answer, Body};
use crate::negotiate;
use crate::path::{Query, RequestInfo};
use crate::server::{Server, method_not_allowed};
use crate::verbs::Call;

/// Shortest and longest life of a requested token, in seconds.
const TOKEN_SECONDS: std::ops::RangeInclusive<i64> = 600..=(1 << 32);
/// Life of a requested token that names none.
const TOKEN_SECONDS_DEFAULT: i64 = 3600;

/// Answers a request for a subresource.
pub async fn serve(
    server: &Server,
    request: Request<Body>,
    info: &RequestInfo,
    query: &Query,
    user: &UserInfo,
    def: &Arc<ResourceDef>,
) -> Result<Answer, Status> {
    let Some(sub) = def.subresource(&info.subresource) else { return Err(Status::path_not_found()) };
    let method = request.method().as_str().to_ascii_lowercase();
    if !sub.methods.iter().any(|m| **m == *method) && method != "head" {
        return Err(method_not_allowed(def));
    }
    if matches!(&*sub.name, "log" | "exec" | "attach" | "portforward" | "proxy") {
        if &*sub.name != "log" {
            connect(server, info, query, user, def).await?;
        }
        return crate::kubelet::serve(server, request, info, query, def).await;
    }
    let (parts, body) = request.into_parts();
    let call = Call { info, query, headers: &parts.headers, user, def };
    let body = body::read(body).await?;
    match (&*sub.name, method.as_str()) {
        ("scale", _) => scale(server, &call, &method, body).await,
        ("binding", "post") => {
            let object = decode_as("", "v1", "Binding", &call, &body)?;
            let object = admit(server, &call, ("", "v1", "Binding"), object).await?;
            bind(server, &call, &info.name, &object).await
        }
        ("eviction", "post") => crate::eviction::evict(server, &call, body).await,
        ("token", "post") => token(server, &call, body).await,
        (_, "get") => server.get(&call).await,
        (_, "put") => server.update(&call, body).await,
        (_, "patch") => server.patch(&call, body).await,
        _ => Err(method_not_allowed(def)),
    }
}

/// Asks admission about a connection.
async fn connect(
    server: &Server,
    info: &RequestInfo,
    query: &Query,
    user: &UserInfo,
    def: &ResourceDef,
) -> Result<(), Status> {
    let kind = match (&*def.resource, info.subresource.as_str()) {
        ("pods", "exec") => "PodExecOptions",
        ("pods", "attach") => "PodAttachOptions",
        ("pods", "portforward") => "PodPortForwardOptions",
        ("pods", _) => "PodProxyOptions",
        ("services", _) => "ServiceProxyOptions",
        _ => "NodeProxyOptions",
    };
    let mut options = Map::new();
    options.insert("kind".into(), kind.into());
    options.insert("apiVersion".into(), "v1".into());
    if matches!(kind, "PodExecOptions" | "PodAttachOptions") {
        for key in ["stdin", "stdout", "stderr", "tty"] {
            if query.has(key) {
                options.insert(key.into(), query.flag(key).into());
            }
        }
        let container = query.get("container");
        if !container.is_empty() {
            options.insert("container".into(), container.into());
        }
        let command: Vec<&str> = query.all("command").collect();
        if kind == "PodExecOptions" && !command.is_empty() {
            options.insert("command".into(), json!(command));
        }
    } else if kind.ends_with("ProxyOptions") {
        options.insert("path".into(), info.rest.as_str().into());
    }
    let attributes = registry::admit::Attributes {
        def,
        subresource: &info.subresource,
        namespace: if def.namespaced { &info.namespace } else { "" },
        name: &info.name,
        operation: "CONNECT",
        user,
        dry_run: false,
    };
    server.admission().connect(&attributes, ("", "v1", kind), options).await.map(drop)
}

/// Asks admission about something posted to a subresource, and gives back what it has made of it.
pub(crate) async fn admit(
    server: &Server,
    call: &Call<'_>,
    kind: (&str, &str, &str),
    object: Map<String, Value>,
) -> Result<Map<String, Value>, Status> {
    let attributes = registry::admit::Attributes {
        def: call.def,
        subresource: &call.info.subresource,
        namespace: &call.info.namespace,
        name: &call.info.name,
        operation: "CREATE",
        user: call.user,
        dry_run: !call.query.get("dryRun").is_empty(),
    };
    server.admission().connect(&attributes, kind, object).await
}

/// Decodes a body of a kind that is no resource of its own.
pub(crate) fn decode_as(
    group: &str,
    version: &str,
    kind: &str,
    call: &Call<'_>,
    body: &bytes::Bytes,
) -> Result<Map<String, Value>, Status> {
    let json = negotiate::body_as_json(call.headers, body.clone())?;
    let schema = schema::Schema::builtin();
    let ty = schema.kind(group, version, kind).ok_or_else(Status::path_not_found)?;
    schema::decode::decode(schema, ty, &json).map(|d| d.value).map_err(|e| {
        Status::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {e}"))
    })
}

/// Binds a pod to a node: what the scheduler does.
pub async fn bind(
    server: &Server,
    call: &Call<'_>,
    name: &str,
    binding: &Map<String, Value>,
) -> Result<Answer, Status> {
    let target = binding.get("target").cloned().unwrap_or_default();
    let node = target["name"].as_str().unwrap_or_default().to_owned();
    let kind = target["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        let e = FieldError::not_supported("target.kind", &target["kind"], &["Node", "<empty>"]);
        return Err(Status::invalid("", "Binding", name, &[e]));
    }
    if node.is_empty() {
        return Err(Status::invalid("", "Binding", name, &[FieldError::required("target.name", "")]));
    }
    let table = server.registry.table();
    let pods = table.find("", "v1", "pods").ok_or_else(Status::path_not_found)?;
    let wanted_uid = meta_text(binding, "uid").to_owned();
    let annotations = binding.get("metadata").and_then(|m| m.get("annotations")).cloned();
    let now = schema::time::seconds(server.registry.clock().now());
    let conflict = |why: &str| Status::conflict("", "pods/binding", name, why);
    let change = |pod: &mut Map<String, Value>| {
        if !wanted_uid.is_empty() && meta_text(pod, "uid") != wanted_uid {
            return Err(conflict(&format!(
                "Precondition failed: UID in precondition: {wanted_uid}, UID in object meta: {}",
                meta_text(pod, "uid")
            )));
        }
        if !meta_text(pod, "deletionTimestamp").is_empty() {
            return Err(conflict(&format!("pod {name} is being deleted, cannot be assigned to a host")));
        }
        let spec = pod.get("spec").cloned().unwrap_or_default();
        match spec["nodeName"].as_str().unwrap_or_default() {
            "" => {}
            bound => return Err(conflict(&format!("pod {name} is already assigned to node \"{bound}\""))),
        }
        if spec["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
            return Err(conflict(&format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        pod["spec"]["nodeName"] = node.as_str().into();
        for (key, value) in annotations.as_ref().and_then(Value::as_object).into_iter().flatten() {
            metadata(pod).entry("annotations").or_insert_with(|| json!({}))[key] = value.clone();
        }
        let conditions = pod.entry("status").or_insert_with(|| json!({}));
        let list = conditions["conditions"].as_array().cloned().unwrap_or_default();
        let mut list: Vec<Value> = list.into_iter().filter(|c| c["type"] != "PodScheduled").collect();
        list.push(json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": now, "lastProbeTime": null}));
        conditions["conditions"] = json!(list);
        Ok(true)
    };
    if call.query.get("dryRun").is_empty() {
        server.registry.modify(pods, &call.info.namespace, name, &change).await?;
    }
    Ok(body::json(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// Issues a token for a ServiceAccount (TokenRequest).
async fn token(server: &Server, call: &Call<'_>, body: bytes::Bytes) -> Result<Answer, Status> {
    let mut request = decode_as("authentication.k8s.io", "v1", "TokenRequest", call, &body)?;
    let namespace = call.info.namespace.clone();
    let account = server.registry.get(call.def, &namespace, &call.info.name, "").await?.to_value();
    let uid = |v: &Value| v["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let spec = request.entry("spec").or_insert_with(|| json!({})).clone();
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(TOKEN_SECONDS_DEFAULT);
    if !TOKEN_SECONDS.contains(&seconds) {
        let why = if seconds < *TOKEN_SECONDS.start() {
            "may not specify a duration less than 10 minutes"
        } else {
            "may not specify a duration larger than 2^32 seconds"
        };
        let e = FieldError::invalid("spec.expirationSeconds", &seconds.into(), why);
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &[e]));
    }
    let mut claims = KubernetesClaims {
        namespace: namespace.clone(),
        serviceaccount: ObjectRef { name: call.info.name.clone(), uid: uid(&account) },
        ..Default::default()
    };
    let bound = &spec["boundObjectRef"];
    let mut bound_pod = None;
    if bound.is_object() {
        let name = bound["name"].as_str().unwrap_or_default();
        let (kind, resource, scope) = match bound["kind"].as_str() {
            Some("Pod") => ("Pod", "pods", namespace.as_str()),
            Some("Secret") => ("Secret", "secrets", namespace.as_str()),
            Some("Node") => ("Node", "nodes", ""),
            _ => {
                let e = FieldError::not_supported(
                    "spec.boundObjectRef.kind",
                    &bound["kind"],
                    &["Node", "Pod", "Secret"],
                );
                return Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &[e]));
            }
        };
        let table = server.registry.table();
        let def = table.find("", "v1", resource).ok_or_else(Status::path_not_found)?;
        let object = server.registry.get(def, scope, name, "").await?.to_value();
        let wanted = bound["uid"].as_str().unwrap_or_default();
        if !wanted.is_empty() && wanted != uid(&object) {
            return Err(Status::conflict(
                "",
                resource,
                name,
                &format!(
                    "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
                ),
            ));
        }
        let reference = Some(ObjectRef { name: name.to_owned(), uid: uid(&object) });
        match kind {
            "Pod" => {
                if object["spec"]["serviceAccountName"] != *call.info.name {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        call.info.name
                    )));
                }
                claims.pod = reference;
                let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
                if let Some(node_def) = table.find("", "v1", "nodes").filter(|_| !node.is_empty())
                    && let Some(found) = server.registry.current(node_def, "", node)
                {
                    claims.node = Some(ObjectRef { name: node.to_owned(), uid: uid(&found.to_value()) });
                }
                bound_pod = Some(object);
            }
            "Secret" => claims.secret = reference,
            _ => claims.node = reference,
        }
    }
    restrict_node(call, &request, bound_pod.as_ref())?;
    let audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(String::from))
        .collect();
    let (token, expires) = server.tokens.issue(claims, &audiences, seconds).map_err(Status::internal)?;
    let shown = if audiences.is_empty() { server.authenticator.audiences().to_vec() } else { audiences };
    request.insert("apiVersion".into(), "authentication.k8s.io/v1".into());
    request.insert("kind".into(), "TokenRequest".into());
    request["spec"]["audiences"] = json!(shown);
    request["spec"]["expirationSeconds"] = seconds.into();
    metadata(&mut request).insert("name".into(), call.info.name.as_str().into());
    metadata(&mut request).insert("namespace".into(), namespace.into());
    request.insert(
        "status".into(),
        json!({"token": token, "expirationTimestamp": schema::time::seconds(expires)}),
    );
    Ok(body::json(201, &Value::Object(request)))
}

/// A node gets tokens only for the pods that run on it.
fn restrict_node(call: &Call<'_>, request: &Map<String, Value>, pod: Option<&Value>) -> Result<(), Status> {
    let object = Value::Object(request.clone());
    let write = auth::restriction::Write {
        operation: "create",
        api_group: "",
        resource: "serviceaccounts",
        subresource: "token",
        namespace: &call.info.namespace,
        name: &call.info.name,
        object: Some(&object),
        old: None,
    };
    auth::restriction::check(call.user, &write, pod)
        .map_err(|why| Status::forbidden("", "serviceaccounts", &call.info.name, &why))
}

/// The scale of a workload: replicas as an object of its own.
async fn scale(server: &Server, call: &Call<'_>, method: &str, body: bytes::Bytes) -> Result<Answer, Status> {
    let target = Target { subresource: "", ..call.target() };
    let namespace = if call.def.namespaced { call.info.namespace.as_str() } else { "" };
    let current = server.registry.get(call.def, namespace, &call.info.name, "").await?;
    let bytes = registry::convert::shown(call.def, current.bytes.clone()).await?;
    let current: Value = serde_json::from_slice(&bytes).map_err(Status::internal)?;
    if method == "get" {
        return Ok(body::json(200, &scale_of(call.def, &current)?));
    }
    let wanted = if method == "put" {
        Value::Object(decode_as("autoscaling", "v1", "Scale", call, &body)?)
    } else {
        let mut scale = scale_of(call.def, &current)?;
        match negotiate::content_type(call.headers).as_str() {
            "application/json-patch+json" => meta::patch::json_patch(&mut scale, &body)?,
            "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
                meta::patch::merge_patch(&mut scale, &body)?
            }
            "application/apply-patch+yaml" => {
                meta::patch::merge_patch(&mut scale, &negotiate::yaml_to_json(&body)?)?
            }
            _ => {
                return Err(negotiate::unsupported(&[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                ]));
            }
        }
        scale
    };
    let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let e = FieldError::invalid("spec.replicas", &replicas.into(), "must be greater than or equal to 0");
        return Err(Status::invalid("autoscaling", "Scale", &call.info.name, &[e]));
    }
    let mut patch = match call.def.custom.as_ref().and_then(|c| c.scale.as_ref()) {
        None => json!({"spec": {"replicas": replicas}}),
        Some(scale) => nested(&scale.spec, replicas.into()),
    };
    let version = wanted["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if !version.is_empty() && method == "put" {
        patch["metadata"] = json!({"resourceVersion": version});
    }
    let options = call.write_options()?;
    let text = patch.to_string();
    let merge = registry::Patch::Merge(text.as_bytes());
    let written = server.registry.patch(target, merge, &options, &server.admission()).await?;
    let object: Value = serde_json::from_slice(&written.bytes).map_err(Status::internal)?;
    Ok(body::json(200, &scale_of(call.def, &object)?))
}

/// An object that holds a value at a simple path.
pub(crate) fn nested(path: &str, value: Value) -> Value {
    path.trim_start_matches('.').rsplit('.').fold(value, |inner, part| json!({part: inner}))
}

/// The scale of an object: where a custom resource keeps its numbers is up to its author.
pub(crate) fn scale_of(def: &ResourceDef, object: &Value) -> Result<Value, Status> {
    let Some(scale) = def.custom.as_ref().and_then(|c| c.scale.as_ref()) else {
        return Ok(builtin_scale(object));
    };
    let at = |path: &str| object.pointer(&path.replace('.', "/"));
    let Some(replicas) = at(&scale.spec).and_then(Value::as_i64) else {
        let why = format!("the spec replicas field {:?} does not exist", &*scale.spec);
        return Err(Status::internal(why));
    };
    let mut out = builtin_scale(object);
    out["spec"]["replicas"] = replicas.into();
    out["status"] = json!({"replicas": at(&scale.status).and_then(Value::as_i64).unwrap_or(0)});
    let selector = scale.selector.as_ref().and_then(|p| at(p)).and_then(Value::as_str).unwrap_or_default();
    if !selector.is_empty() {
        out["status"]["selector"] = selector.into();
    }
    Ok(out)
}

fn builtin_scale(object: &Value) -> Value {
    let selector = &object["spec"]["selector"];
    let text = match registry::cells::selector_text(selector).as_str() {
        "<none>" => String::new(),
        text => text.to_owned(),
    };
    let m = &object["metadata"];
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": m["name"], "namespace": m["namespace"], "uid": m["uid"],
            "resourceVersion": m["resourceVersion"], "creationTimestamp": m["creationTimestamp"]},
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0), "selector": text},
    })
}
