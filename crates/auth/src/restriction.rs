//! NodeRestriction: what the objects that a node writes may contain. Pure rules, in upstream's wording.
//!
//! The node authorizer has already judged verb and name; admission calls [`check`] with the objects.

use std::collections::BTreeSet;

use meta::UserInfo;
use serde_json::Value;

use crate::node::{NODE_LEASE_NAMESPACE, node_name};

/// Annotation that marks a mirror pod.
const MIRROR_ANNOTATION: &str = "/metadata/annotations/kubernetes.io~1config.mirror";

/// A write by a node, as admission sees it.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// `create`, `update` or `delete` (a patch is an update).
    pub operation: &'a str,
    /// API group.
    pub api_group: &'a str,
    /// Plural resource.
    pub resource: &'a str,
    /// Subresource or empty.
    pub subresource: &'a str,
    /// Namespace or empty.
    pub namespace: &'a str,
    /// Name of the object.
    pub name: &'a str,
    /// The object to be stored; for subresources their own kind.
    pub object: Option<&'a Value>,
    /// The object as it is; for `pods/eviction` and `serviceaccounts/token` see [`check`].
    pub old: Option<&'a Value>,
}

/// Judges a write. Users that are no nodes pass. For `pods/eviction`, `serviceaccounts/token` and the
/// deletion of pods, `pod` is the pod concerned as the API server has it (for a token: the bound pod).
pub fn check(user: &UserInfo, write: &Write<'_>, pod: Option<&Value>) -> Result<(), String> {
    let Some(node) = node_name(user) else { return Ok(()) };
    match (write.api_group, write.resource, write.subresource) {
        ("", "pods", "") => pods(node, write, pod),
        ("", "pods", "status") => pod_status(node, write),
        ("", "pods", "eviction") => eviction(node, write, pod),
        ("", "pods", other) => {
            Err(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
        }
        ("", "nodes", _) => nodes(node, write),
        ("", "serviceaccounts", "token") => token(node, write, pod),
        ("", "persistentvolumeclaims", _) => claims(node, write),
        ("coordination.k8s.io", "leases", _) => leases(node, write),
        ("storage.k8s.io", "csinodes", _) => csi_nodes(node, write),
        ("resource.k8s.io", "resourceslices", _) => resource_slices(node, write),
        ("certificates.k8s.io", "podcertificaterequests", _) => certificate_requests(node, write),
        _ => Ok(()),
    }
}

/// A node asks for certificates of its own pods only.
fn certificate_requests(node: &str, write: &Write<'_>) -> Result<(), String> {
    if write.operation != "create" {
        return Err(format!(
            "unexpected operation {:?}, node {node:?} can only create podcertificaterequests",
            write.operation.to_uppercase()
        ));
    }
    let named = text(write.object, "/spec/nodeName");
    if named == node {
        return Ok(());
    }
    Err(format!("PodCertificateRequest.Spec.NodeName={named:?}, which is not the requesting node {node:?}"))
}

fn text<'a>(value: Option<&'a Value>, pointer: &str) -> &'a str {
    value.and_then(|value| value.pointer(pointer)).and_then(Value::as_str).unwrap_or_default()
}

fn bound_elsewhere(node: &str, pod: Option<&Value>) -> bool {
    text(pod, "/spec/nodeName") != node
}

fn pods(node: &str, write: &Write<'_>, pod: Option<&Value>) -> Result<(), String> {
    match write.operation {
        "create" => mirror_pod(node, write.object),
        "delete" if bound_elsewhere(node, pod.or(write.old)) => {
            Err(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        "delete" => Ok(()),
        other => Err(format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            other.to_uppercase()
        )),
    }
}

/// A node may create mirror pods only, bound to and owned by itself, that open nothing.
fn mirror_pod(node: &str, object: Option<&Value>) -> Result<(), String> {
    let Some(pod) = object else { return Err("unexpected type".into()) };
    if pod.pointer(MIRROR_ANNOTATION).is_none() {
        return Err(format!(
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
        ));
    }
    if bound_elsewhere(node, Some(pod)) {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    match owners.map(Vec::as_slice) {
        Some([owner]) => {
            let of_node = text(Some(owner), "/apiVersion") == "v1" && text(Some(owner), "/kind") == "Node";
            if !of_node || text(Some(owner), "/name") != node {
                return Err(format!(
                    "node {node:?} can only create pods with an owner reference set to itself"
                ));
            }
            if owner.get("controller").and_then(Value::as_bool) != Some(true) {
                return Err(format!(
                    "node {node:?} can only create pods with a controller owner reference set to itself"
                ));
            }
        }
        Some(owners) if owners.len() > 1 => {
            return Err(format!(
                "node {node:?} can only create pods with a single owner reference set to itself"
            ));
        }
        _ => return Err(format!("node {node:?} can only create pods with an owner reference set to itself")),
    }
    if !text(Some(pod), "/spec/serviceAccountName").is_empty() {
        return Err(format!("node {node:?} can not create pods that reference a service account"));
    }
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
    for volume in volumes {
        for (field, what) in [
            ("secret", "secrets"),
            ("configMap", "configmaps"),
            ("persistentVolumeClaim", "persistentvolumeclaims"),
        ] {
            if volume.get(field).is_some() {
                return Err(format!("node {node:?} can not create pods that reference {what}"));
            }
        }
    }
    Ok(())
}

fn pod_status(node: &str, write: &Write<'_>) -> Result<(), String> {
    if write.operation != "update" {
        return Err(format!("unexpected operation {:?}", write.operation.to_uppercase()));
    }
    if bound_elsewhere(node, write.old) {
        return Err(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    let labels = |object: Option<&Value>| object.and_then(|o| o.pointer("/metadata/labels")).cloned();
    if write.object.is_some() && labels(write.old) != labels(write.object) {
        return Err(format!("node {node:?} cannot update labels through pod status"));
    }
    Ok(())
}

fn eviction(node: &str, write: &Write<'_>, pod: Option<&Value>) -> Result<(), String> {
    if write.operation != "create" {
        return Err(format!("unexpected operation {:?}", write.operation.to_uppercase()));
    }
    if bound_elsewhere(node, pod) {
        return Err(format!("node {node:?} can only evict pods with spec.nodeName set to itself"));
    }
    Ok(())
}

fn nodes(node: &str, write: &Write<'_>) -> Result<(), String> {
    let object_name = text(write.object, "/metadata/name");
    let requested = if write.name.is_empty() { object_name } else { write.name };
    if requested != node {
        return Err(format!("node {node:?} is not allowed to modify node {requested:?}"));
    }
    match write.operation {
        "create" => {
            if write.object.and_then(|o| o.pointer("/spec/configSource")).is_some_and(|s| !s.is_null()) {
                return Err(format!(
                    "node {node:?} is not allowed to create pods with a non-nil configSource"
                ));
            }
            forbidden_labels(node, write.object, None).map_or(Ok(()), |labels| {
                Err(format!("node {node:?} is not allowed to set the following labels: {labels}"))
            })
        }
        "update" => update_node(node, write),
        "delete" => Err(format!("node {node:?} is not allowed to delete node {requested:?}")),
        _ => Ok(()),
    }
}

fn update_node(node: &str, write: &Write<'_>) -> Result<(), String> {
    let field = |object: Option<&Value>, pointer: &str| object.and_then(|o| o.pointer(pointer)).cloned();
    let (new, old) = (write.object, write.old);
    if field(new, "/metadata/ownerReferences") != field(old, "/metadata/ownerReferences") {
        return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    let taints =
        |object| field(object, "/spec/taints").filter(|t| t.as_array().is_none_or(|a| !a.is_empty()));
    if taints(new) != taints(old) {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    if let Some(labels) = forbidden_labels(node, new, old) {
        return Err(format!("is not allowed to modify labels: {labels}"));
    }
    Ok(())
}

/// Labels a node may not set on itself: those of Kubernetes' own domains that are not on the list below.
/// Returns them joined when some changed.
fn forbidden_labels(_node: &str, new: Option<&Value>, old: Option<&Value>) -> Option<String> {
    let labels = |object: Option<&Value>| {
        object
            .and_then(|o| o.pointer("/metadata/labels"))
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    };
    let (new, old) = (labels(new), labels(old));
    let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    let changed = keys.into_iter().filter(|key| new.get(*key) != old.get(*key));
    let forbidden: Vec<&str> = changed.map(String::as_str).filter(|key| !node_may_set_label(key)).collect();
    (!forbidden.is_empty()).then(|| forbidden.join(", "))
}

/// Labels of Kubernetes' domains that a kubelet sets about itself.
const KUBELET_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "kubernetes.io/os",
    "kubernetes.io/arch",
];

/// Whether NodeRestriction lets a node set this label on itself.
pub fn node_may_set_label(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let under = |parent: &str| {
        domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
    };
    if under("node-restriction.kubernetes.io") {
        return false;
    }
    if KUBELET_LABELS.contains(&key) || under("kubelet.kubernetes.io") || under("node.kubernetes.io") {
        return true;
    }
    !under("kubernetes.io") && !under("k8s.io")
}

/// A node may ask for tokens bound to its own pods only.
fn token(node: &str, write: &Write<'_>, pod: Option<&Value>) -> Result<(), String> {
    if write.operation != "create" {
        return Err(format!("unexpected operation {:?}", write.operation.to_uppercase()));
    }
    let reference = write.object.and_then(|o| o.pointer("/spec/boundObjectRef"));
    let of_pod = text(reference, "/apiVersion") == "v1" && text(reference, "/kind") == "Pod";
    if !of_pod || text(reference, "/name").is_empty() {
        return Err("node requested token not bound to a pod".into());
    }
    let uid = text(reference, "/uid");
    if uid.is_empty() {
        return Err("node requested token with a pod binding without a uid".into());
    }
    let Some(pod) = pod else { return Err(format!("pod {:?} not found", text(reference, "/name"))) };
    if text(Some(pod), "/metadata/uid") != uid {
        return Err(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        ));
    }
    if bound_elsewhere(node, Some(pod)) {
        return Err("node requested token bound to a pod scheduled on a different node".into());
    }
    Ok(())
}

fn claims(node: &str, write: &Write<'_>) -> Result<(), String> {
    if write.operation != "update" {
        return Err(format!("unexpected operation {:?}", write.operation.to_uppercase()));
    }
    if write.subresource != "status" {
        return Err(format!("unexpected pvc subresource {:?}", write.subresource));
    }
    let strip = |object: Option<&Value>| {
        let mut object = object.cloned().unwrap_or_default();
        for field in [
            "capacity",
            "conditions",
            "allocatedResources",
            "allocatedResourceStatuses",
            "resizeStatus",
            "currentVolumeAttributesClassName",
            "modifyVolumeStatus",
        ] {
            if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
                status.remove(field);
            }
        }
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
            metadata.remove("resourceVersion");
        }
        object
    };
    if strip(write.object) != strip(write.old) {
        return Err(format!(
            "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
        ));
    }
    Ok(())
}

fn leases(node: &str, write: &Write<'_>) -> Result<(), String> {
    if write.namespace != NODE_LEASE_NAMESPACE {
        return Err(format!("can only access leases in the {NODE_LEASE_NAMESPACE:?} system namespace"));
    }
    let name = if write.operation == "create" { text(write.object, "/metadata/name") } else { write.name };
    if name != node {
        return Err("can only access node lease with the same name as the requesting node".into());
    }
    Ok(())
}

fn csi_nodes(node: &str, write: &Write<'_>) -> Result<(), String> {
    let name = if write.operation == "create" { text(write.object, "/metadata/name") } else { write.name };
    if name != node {
        return Err("can only access CSINode with the same name as the requesting node".into());
    }
    Ok(())
}

fn resource_slices(node: &str, write: &Write<'_>) -> Result<(), String> {
    let object = if write.operation == "delete" { write.old } else { write.object };
    if text(object, "/spec/nodeName") != node {
        let doing = if write.operation == "delete" { "delete" } else { "create" };
        return Err(format!("can only {doing} ResourceSlice with the same NodeName as the requesting node"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judge(operation: &str, what: &str, object: Value, old: Value, pod: Value) -> Result<(), String> {
        let user = UserInfo::authenticated("system:node:n1", &["system:nodes"]);
        let (group, resource) = what.split_once(':').unwrap();
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let some = |value: Value| Some(value).filter(|value| !value.is_null());
        let (object, old, pod) = (some(object), some(old), some(pod));
        let name = text(old.as_ref().or(object.as_ref()), "/metadata/name").to_owned();
        let write = Write {
            operation,
            api_group: group,
            resource,
            subresource,
            namespace: "kube-node-lease",
            name: &name,
            object: object.as_ref(),
            old: old.as_ref(),
        };
        check(&user, &write, pod.as_ref())
    }

    #[test]
    fn pods_of_others_are_out_of_reach() {
        let mine = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"nodeName": "n1"}});
        let other = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"nodeName": "n2"}});
        assert!(judge("update", ":pods/status", mine.clone(), mine.clone(), Value::Null).is_ok());
        assert_eq!(
            judge("update", ":pods/status", other.clone(), other.clone(), Value::Null).unwrap_err(),
            "node \"n1\" can only update pod status for pods with spec.nodeName set to itself"
        );
        assert!(judge("delete", ":pods", Value::Null, mine.clone(), Value::Null).is_ok());
        assert!(judge("delete", ":pods", Value::Null, other.clone(), Value::Null).is_err());
        assert!(judge("create", ":pods/eviction", Value::Null, Value::Null, other.clone()).is_err());
        assert!(judge("create", ":pods", mine.clone(), Value::Null, Value::Null).is_err());
        let reference = |uid: &str| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}}});
        assert!(judge("create", ":serviceaccounts/token", reference("u"), Value::Null, mine.clone()).is_ok());
        assert!(judge("create", ":serviceaccounts/token", reference("x"), Value::Null, mine).is_err());
        assert!(judge("create", ":serviceaccounts/token", reference("u"), Value::Null, other).is_err());
        assert!(
            judge("create", ":serviceaccounts/token", json!({"spec": {}}), Value::Null, Value::Null).is_err()
        );
    }

    #[test]
    fn mirror_pods() {
        let mirror = json!({"metadata": {"name": "m", "annotations": {"kubernetes.io/config.mirror": "h"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "controller": true}]},
            "spec": {"nodeName": "n1"}});
        assert_eq!(judge("create", ":pods", mirror.clone(), Value::Null, Value::Null), Ok(()));
        for (pointer, value) in [
            ("/spec", json!({"nodeName": "n1", "serviceAccountName": "s"})),
            ("/spec", json!({"nodeName": "n1", "volumes": [{"secret": {}}]})),
            ("/metadata/ownerReferences", json!([])),
        ] {
            let mut bad = mirror.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            assert!(judge("create", ":pods", bad, Value::Null, Value::Null).is_err());
        }
    }

    #[test]
    fn its_own_node_with_limits() {
        let node = |name: &str, labels: Value, taints: Value| json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}});
        let plain = node("n1", json!({"kubernetes.io/os": "linux", "x": "y"}), json!([]));
        assert!(judge("create", ":nodes", plain.clone(), Value::Null, Value::Null).is_ok());
        let alien = node("n2", json!({}), json!([]));
        assert_eq!(
            judge("create", ":nodes", alien, Value::Null, Value::Null).unwrap_err(),
            "node \"n1\" is not allowed to modify node \"n2\""
        );
        let tainted = node("n1", json!({"kubernetes.io/os": "linux", "x": "y"}), json!([{"key": "k"}]));
        assert!(
            judge("update", ":nodes", tainted, plain.clone(), Value::Null).unwrap_err().contains("taints")
        );
        let labelled = node(
            "n1",
            json!({"kubernetes.io/os": "linux", "x": "y", "node-restriction.kubernetes.io/a": "b"}),
            json!([]),
        );
        assert!(judge("update", ":nodes", labelled, plain.clone(), Value::Null).is_err());
        assert!(judge("update", ":nodes/status", plain.clone(), plain, Value::Null).is_ok());
    }

    #[test]
    fn labels() {
        let cases = [
            ("x", true),
            ("example.com/x", true),
            ("kubernetes.io/hostname", true),
            ("node.kubernetes.io/anything", true),
            ("foo.kubelet.kubernetes.io/x", true),
            ("node-restriction.kubernetes.io/x", false),
            ("a.node-restriction.kubernetes.io/x", false),
            ("kubernetes.io/other", false),
            ("node-role.kubernetes.io/control-plane", false),
            ("k8s.io/x", false),
            ("notkubernetes.io/x", true),
        ];
        for (key, allowed) in cases {
            assert_eq!(node_may_set_label(key), allowed, "{key}");
        }
    }

    #[test]
    fn leases_and_csi_nodes() {
        let named = |name: &str| json!({"metadata": {"name": name}});
        for what in ["coordination.k8s.io:leases", "storage.k8s.io:csinodes"] {
            assert!(judge("create", what, named("n1"), Value::Null, Value::Null).is_ok());
            assert!(judge("create", what, named("n2"), Value::Null, Value::Null).is_err());
            assert!(judge("update", what, named("n2"), named("n2"), Value::Null).is_err());
        }
        let user = UserInfo::authenticated("admin", &[]);
        let write = Write {
            operation: "delete",
            api_group: "",
            resource: "nodes",
            subresource: "",
            namespace: "",
            name: "n2",
            object: None,
            old: None,
        };
        assert_eq!(check(&user, &write, None), Ok(()));
    }
}
