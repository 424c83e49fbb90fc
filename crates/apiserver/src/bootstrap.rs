//! What every cluster starts with: namespaces, RBAC's default policy, priority classes, the address of the
//! API server as a Service. Written through the registry like everything else, and put right at each start.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use auth::bootstrap::objects;
use meta::{Status, UserInfo};
use registry::admit::AdmitAll;
use registry::{FieldValidation, Target, WriteOptions};
use serde_json::{Map, Value, json};

use crate::server::Server;

/// Namespaces every cluster has.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Annotation of policy objects that are put right at each start unless it says `false`.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Addresses of the API server.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Address of the Service `kubernetes`: the first of the service range.
    pub service: IpAddr,
    /// Where the server listens, as pods can reach it.
    pub advertise: IpAddr,
    /// Its port.
    pub port: u16,
}

/// Writes what is missing, then declares the server ready.
pub async fn run(server: &Server, addresses: &Addresses) -> Result<(), Status> {
    let at = std::net::SocketAddr::new(addresses.advertise, addresses.port);
    server.address.get_or_init(|| at.to_string());
    crate::custom::run(server).await?;
    for name in NAMESPACES {
        ensure(server, "", "namespaces", json!({"metadata": {"name": name}})).await?;
    }
    let policy = objects();
    let group = "rbac.authorization.k8s.io";
    for (resource, list) in [
        ("clusterroles", policy.cluster_roles),
        ("clusterrolebindings", policy.cluster_role_bindings),
        ("roles", policy.roles),
        ("rolebindings", policy.role_bindings),
    ] {
        for object in list {
            ensure_policy(server, group, resource, object).await?;
        }
    }
    for (name, value, text) in [
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ] {
        let class = json!({"metadata": {"name": name}, "value": value, "description": text, "preemptionPolicy": "PreemptLowerPriority"});
        ensure(server, "scheduling.k8s.io", "priorityclasses", class).await?;
    }
    ensure(server, "apiextensions.k8s.io", "customresourcedefinitions", revocations()).await?;
    let since = json!({"metadata": {"name": TRACKING, "namespace": "kube-system"},
        "data": {"since": server.registry.clock().now().strftime("%Y-%m-%d").to_string()}});
    ensure(server, "", "configmaps", since).await?;
    own_service(server, addresses).await?;
    crate::flow::run(server).await?;
    crate::aggregate::run(server).await?;
    crate::dynamic::typecheck::run(server);
    server.ready.store(true, Ordering::Release);
    Ok(())
}

/// ConfigMap that says since when the use of tokens in Secrets is noted.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";

/// The definition of `CertificateRevocation`, the list of client certificates that are no longer accepted.
fn revocations() -> Value {
    let user = json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 1024, "description": "Common name of the certificates."},
        "issuedBefore": {"type": "string", "format": "date-time",
            "description": "Certificates issued before this moment are revoked; all of the user's if absent."}}});
    let spec = json!({"type": "object", "properties": {
        "serialNumbers": {"type": "array", "maxItems": 4096, "description": "Serial numbers in hexadecimal.",
            "items": {"type": "string", "pattern": "^(0x)?[0-9A-Fa-f:]+$", "maxLength": 128}},
        "users": {"type": "array", "maxItems": 4096, "items": user, "description": "Users whose certificates are revoked."},
        "reason": {"type": "string", "maxLength": 1024, "description": "Why, as refused clients are told."}},
        "x-kubernetes-validations": [{"rule": "has(self.serialNumbers) || has(self.users)",
            "message": "serialNumbers or users must be given"}]});
    let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": spec},
        "description": "CertificateRevocation names client certificates that are refused from now on."});
    json!({"metadata": {"name": "certificaterevocations.auth.ferry.dev"}, "spec": {
        "group": "auth.ferry.dev", "scope": "Cluster",
        "names": {"plural": "certificaterevocations", "singular": "certificaterevocation",
            "kind": "CertificateRevocation", "listKind": "CertificateRevocationList", "shortNames": ["crev"]},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
            "additionalPrinterColumns": [
                {"name": "Serials", "type": "string", "jsonPath": ".spec.serialNumbers"},
                {"name": "Users", "type": "string", "jsonPath": ".spec.users[*].name"},
                {"name": "Reason", "type": "string", "jsonPath": ".spec.reason"},
                {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]}]}})
}

fn place(object: &Value) -> (String, String) {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// Creates an object unless it is there. Returns the one that was there.
pub(crate) async fn ensure(
    server: &Server,
    group: &str,
    resource: &str,
    object: Value,
) -> Result<Option<Value>, Status> {
    let table = server.registry.table();
    let def = table.find(group, "v1", resource).ok_or_else(Status::path_not_found)?;
    let (namespace, name) = place(&object);
    if let Some(found) = server.registry.current(def, &namespace, &name) {
        return Ok(Some(found.to_value()));
    }
    let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
    let options = WriteOptions {
        user: &user,
        dry_run: false,
        field_manager: "ferry".into(),
        field_validation: FieldValidation::Ignore,
        force: false,
    };
    let text = object.to_string();
    let decoded =
        registry::decode::decode_body(def, text.as_bytes(), FieldValidation::Ignore, &mut Vec::new())?;
    let target = Target { def, namespace: &namespace, name: "", subresource: "" };
    match server.registry.create(target, decoded, &options, &AdmitAll, Vec::new()).await {
        Ok(_) => Ok(None),
        Err(e) if e.is_already_exists() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Deletes an object as the server.
pub(crate) async fn remove(
    server: &Server,
    def: &registry::ResourceDef,
    namespace: &str,
    name: &str,
) -> Result<(), Status> {
    let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
    let options = WriteOptions {
        user: &user,
        dry_run: false,
        field_manager: "ferry".into(),
        field_validation: FieldValidation::Ignore,
        force: false,
    };
    let target = Target { def, namespace, name, subresource: "" };
    match server.registry.delete(target, &registry::DeleteOptions::default(), &options, &AdmitAll).await {
        Err(e) if !e.is_not_found() => Err(e),
        _ => Ok(()),
    }
}

/// Creates a policy object, or gives it back the rules and subjects it has lost (never takes any away).
async fn ensure_policy(server: &Server, group: &str, resource: &str, object: Value) -> Result<(), Status> {
    let Some(found) = ensure(server, group, resource, object.clone()).await? else { return Ok(()) };
    if found["metadata"]["annotations"][AUTOUPDATE] == "false" || found["aggregationRule"].is_object() {
        return Ok(());
    }
    let lacks = |key: &str| {
        let have = found[key].as_array().cloned().unwrap_or_default();
        let wanted = object[key].as_array().cloned().unwrap_or_default();
        wanted.into_iter().filter(|w| !have.contains(w)).collect::<Vec<Value>>()
    };
    let (rules, subjects) = (lacks("rules"), lacks("subjects"));
    if rules.is_empty() && subjects.is_empty() {
        return Ok(());
    }
    let table = server.registry.table();
    let def = table.find(group, "v1", resource).ok_or_else(Status::path_not_found)?;
    let (namespace, name) = place(&object);
    let change = |current: &mut Map<String, Value>| {
        for (key, missing) in [("rules", &rules), ("subjects", &subjects)] {
            if !missing.is_empty() {
                let mut list = current.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
                list.extend(missing.iter().cloned());
                current.insert(key.into(), Value::Array(list));
            }
        }
        Ok(true)
    };
    server.registry.modify(def, &namespace, &name, &change).await.map(drop)
}

/// The Service `kubernetes` with its endpoints: how pods find the API.
async fn own_service(server: &Server, addresses: &Addresses) -> Result<(), Status> {
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let metadata = json!({"name": "kubernetes", "namespace": "default", "labels": labels});
    let service = json!({"metadata": metadata, "spec": {
        "clusterIP": addresses.service.to_string(), "type": "ClusterIP", "sessionAffinity": "None",
        "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": addresses.port}]}});
    ensure(server, "", "services", service).await?;
    let slice_labels = json!({"kubernetes.io/service-name": "kubernetes"});
    let slice = json!({"metadata": {"name": "kubernetes", "namespace": "default", "labels": slice_labels},
        "addressType": "IPv4", "ports": [{"name": "https", "port": addresses.port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [addresses.advertise.to_string()], "conditions": {"ready": true}}]});
    let mirror = json!({"metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": addresses.advertise.to_string()}],
            "ports": [{"name": "https", "port": addresses.port, "protocol": "TCP"}]}]});
    // The address may have changed since the last start.
    for (group, resource, wanted, keys) in [
        ("discovery.k8s.io", "endpointslices", slice, &["ports", "endpoints"][..]),
        ("", "endpoints", mirror, &["subsets"]),
    ] {
        let Some(_) = ensure(server, group, resource, wanted.clone()).await? else { continue };
        let table = server.registry.table();
        let def = table.find(group, "v1", resource).ok_or_else(Status::path_not_found)?;
        let change = |current: &mut Map<String, Value>| {
            let differs = keys.iter().any(|k| current.get(*k) != wanted.get(*k));
            keys.iter().for_each(|k| drop(current.insert((*k).into(), wanted[*k].clone())));
            Ok(differs)
        };
        server.registry.modify(def, "default", "kubernetes", &change).await?;
    }
    Ok(())
}
