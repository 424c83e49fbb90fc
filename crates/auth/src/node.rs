//! The node authorizer: a node may read what the pods bound to it need, and write what is its own.
//!
//! The graph is fed from pods, persistent volumes and volume attachments; the decision is a function of
//! the graph and the request. What it does not allow, RBAC may still (the role `system:node` is bound to
//! nobody by default).

use std::collections::{BTreeSet, HashMap, HashSet};

use meta::UserInfo;
use meta::user::GROUP_NODES;
use parking_lot::RwLock;
use serde_json::Value;

use crate::rbac::{Attributes, Decision, RbacIndex};

/// User names of nodes begin with this.
pub const NODE_USER_PREFIX: &str = "system:node:";
/// Namespace of the nodes' heartbeats.
pub const NODE_LEASE_NAMESPACE: &str = "kube-node-lease";

/// The node a user is, if it is one: named `system:node:NAME` and in the group `system:nodes`.
pub fn node_name(user: &UserInfo) -> Option<&str> {
    let name = user.username.strip_prefix(NODE_USER_PREFIX)?;
    (!name.is_empty() && user.in_group(GROUP_NODES)).then_some(name)
}

/// Something a node may need for its pods.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are Kubernetes' own and say it all")]
pub enum Vertex {
    Secret { namespace: String, name: String },
    ConfigMap { namespace: String, name: String },
    ServiceAccount { namespace: String, name: String },
    PersistentVolumeClaim { namespace: String, name: String },
    ResourceClaim { namespace: String, name: String },
    PersistentVolume { name: String },
    VolumeAttachment { name: String },
}

/// What the authorizer asks of the cluster's state.
pub trait Graph: Send + Sync {
    /// Whether a pod bound to `node` (or an attachment to it) needs `vertex`.
    fn needs(&self, node: &str, vertex: &Vertex) -> bool;
}

/// `(namespace, name)`
type PodKey = (String, String);

#[derive(Debug, Default)]
struct Tables {
    pods: HashMap<PodKey, (String, BTreeSet<Vertex>)>,
    /// Vertex -> node -> how many pods of the node need it.
    needed: HashMap<Vertex, HashMap<String, usize>>,
    /// Volume -> its claim and the secrets it is mounted with.
    volumes: HashMap<String, (Option<Vertex>, BTreeSet<Vertex>)>,
    /// Claim or secret -> the volumes that lead to it.
    volumes_by: HashMap<Vertex, HashSet<String>>,
    attachments: HashMap<String, String>,
}

/// The graph kept from watch events.
#[derive(Debug, Default)]
pub struct NodeGraph {
    tables: RwLock<Tables>,
}

impl NodeGraph {
    /// An empty graph: no node needs anything.
    pub fn new() -> Self {
        NodeGraph::default()
    }

    /// Adds or replaces a pod. A pod that is not bound, or has ended, needs nothing.
    pub fn upsert_pod(&self, pod: &Value) {
        let key = key_of(pod);
        let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
        let mut tables = self.tables.write();
        tables.remove_pod(&key);
        if node.is_empty() || has_ended(pod) {
            return;
        }
        let needs = needs_of_pod(pod, &key.0, &key.1);
        for vertex in &needs {
            *tables.needed.entry(vertex.clone()).or_default().entry(node.to_owned()).or_default() += 1;
        }
        tables.pods.insert(key, (node.to_owned(), needs));
    }

    /// Removes a pod.
    pub fn remove_pod(&self, namespace: &str, name: &str) {
        self.tables.write().remove_pod(&(namespace.to_owned(), name.to_owned()));
    }

    /// Adds or replaces a persistent volume.
    pub fn upsert_volume(&self, volume: &Value) {
        let name = key_of(volume).1;
        let claim = volume.pointer("/spec/claimRef").map(|claim| {
            let (namespace, name) = (text(claim, "namespace"), text(claim, "name"));
            Vertex::PersistentVolumeClaim { namespace, name }
        });
        let secrets = secrets_of_volume(volume);
        let mut tables = self.tables.write();
        tables.remove_volume(&name);
        for vertex in claim.iter().chain(&secrets) {
            tables.volumes_by.entry(vertex.clone()).or_default().insert(name.clone());
        }
        tables.volumes.insert(name, (claim, secrets));
    }

    /// Removes a persistent volume.
    pub fn remove_volume(&self, name: &str) {
        self.tables.write().remove_volume(name);
    }

    /// Adds or replaces a volume attachment.
    pub fn upsert_attachment(&self, attachment: &Value) {
        let node = attachment.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
        self.tables.write().attachments.insert(key_of(attachment).1, node.to_owned());
    }

    /// Removes a volume attachment.
    pub fn remove_attachment(&self, name: &str) {
        self.tables.write().attachments.remove(name);
    }
}

impl Tables {
    fn remove_pod(&mut self, key: &PodKey) {
        let Some((node, needs)) = self.pods.remove(key) else { return };
        for vertex in needs {
            let Some(nodes) = self.needed.get_mut(&vertex) else { continue };
            if let Some(count) = nodes.get_mut(&node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&node);
                }
            }
            if nodes.is_empty() {
                self.needed.remove(&vertex);
            }
        }
    }

    fn remove_volume(&mut self, name: &str) {
        let Some((claim, secrets)) = self.volumes.remove(name) else { return };
        for vertex in claim.iter().chain(&secrets) {
            if let Some(volumes) = self.volumes_by.get_mut(vertex) {
                volumes.remove(name);
                if volumes.is_empty() {
                    self.volumes_by.remove(vertex);
                }
            }
        }
    }

    fn pod_needs(&self, node: &str, vertex: &Vertex) -> bool {
        self.needed.get(vertex).is_some_and(|nodes| nodes.contains_key(node))
    }

    /// Whether a pod of the node claims the volume.
    fn volume_needed(&self, node: &str, volume: &str) -> bool {
        let claim = self.volumes.get(volume).and_then(|(claim, _)| claim.as_ref());
        claim.is_some_and(|claim| self.pod_needs(node, claim))
    }
}

impl Graph for NodeGraph {
    fn needs(&self, node: &str, vertex: &Vertex) -> bool {
        let tables = self.tables.read();
        if tables.pod_needs(node, vertex) {
            return true;
        }
        match vertex {
            Vertex::PersistentVolume { name } => tables.volume_needed(node, name),
            Vertex::Secret { .. } => tables
                .volumes_by
                .get(vertex)
                .is_some_and(|volumes| volumes.iter().any(|volume| tables.volume_needed(node, volume))),
            Vertex::VolumeAttachment { name } => tables.attachments.get(name).is_some_and(|at| at == node),
            _ => false,
        }
    }
}

fn text(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn key_of(object: &Value) -> (String, String) {
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    (text(metadata, "namespace"), text(metadata, "name"))
}

fn has_ended(pod: &Value) -> bool {
    matches!(pod.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"))
}

fn array<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// Everything a pod refers to.
fn needs_of_pod(pod: &Value, namespace: &str, pod_name: &str) -> BTreeSet<Vertex> {
    let mut needs = BTreeSet::new();
    let namespace = || namespace.to_owned();
    let secret = |name: String| Vertex::Secret { namespace: namespace(), name };
    let config_map = |name: String| Vertex::ConfigMap { namespace: namespace(), name };
    // A mirror pod stands for a file on the node: it may not open anything.
    if pod.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_some() {
        return needs;
    }
    if let Some(name) = pod.pointer("/spec/serviceAccountName").and_then(Value::as_str) {
        needs.insert(Vertex::ServiceAccount { namespace: namespace(), name: name.to_owned() });
    }
    needs.extend(array(pod, "/spec/imagePullSecrets").map(|reference| secret(text(reference, "name"))));
    for list in ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"] {
        for container in array(pod, list) {
            for from in array(container, "/envFrom") {
                needs.extend(from.get("secretRef").map(|reference| secret(text(reference, "name"))));
                needs.extend(from.get("configMapRef").map(|reference| config_map(text(reference, "name"))));
            }
            for variable in array(container, "/env") {
                let reference = |field| variable.pointer(&format!("/valueFrom/{field}"));
                needs.extend(reference("secretKeyRef").map(|reference| secret(text(reference, "name"))));
                needs.extend(
                    reference("configMapKeyRef").map(|reference| config_map(text(reference, "name"))),
                );
            }
        }
    }
    for volume in array(pod, "/spec/volumes") {
        needs.extend(volume.get("secret").map(|source| secret(text(source, "secretName"))));
        needs.extend(volume.get("configMap").map(|source| config_map(text(source, "name"))));
        for source in array(volume, "/projected/sources") {
            needs.extend(source.get("secret").map(|source| secret(text(source, "name"))));
            needs.extend(source.get("configMap").map(|source| config_map(text(source, "name"))));
        }
        let claim =
            volume.pointer("/persistentVolumeClaim/claimName").and_then(Value::as_str).map(str::to_owned);
        let ephemeral = volume.get("ephemeral").map(|_| format!("{pod_name}-{}", text(volume, "name")));
        let claims = claim.into_iter().chain(ephemeral);
        needs.extend(claims.map(|name| Vertex::PersistentVolumeClaim { namespace: namespace(), name }));
        for (driver, field) in INLINE_SECRET_REFS {
            let reference = volume.pointer(&format!("/{driver}/{field}/name")).and_then(Value::as_str);
            needs.extend(reference.map(|name| secret(name.to_owned())));
        }
    }
    let claims = array(pod, "/spec/resourceClaims").filter_map(|claim| claim.get("resourceClaimName"));
    let generated =
        array(pod, "/status/resourceClaimStatuses").filter_map(|claim| claim.get("resourceClaimName"));
    let extended = pod.pointer("/status/extendedResourceClaimStatus/resourceClaimName");
    for name in claims.chain(generated).chain(extended).filter_map(Value::as_str) {
        needs.insert(Vertex::ResourceClaim { namespace: namespace(), name: name.to_owned() });
    }
    needs.retain(|vertex| !matches!(vertex, Vertex::Secret { name, .. } | Vertex::ConfigMap { name, .. } if name.is_empty()));
    needs
}

/// Volume sources of pods that name a secret of the pod's namespace.
const INLINE_SECRET_REFS: &[(&str, &str)] = &[
    ("cephfs", "secretRef"),
    ("cinder", "secretRef"),
    ("csi", "nodePublishSecretRef"),
    ("flexVolume", "secretRef"),
    ("iscsi", "secretRef"),
    ("rbd", "secretRef"),
    ("scaleIO", "secretRef"),
    ("storageos", "secretRef"),
];

/// Secrets a persistent volume is staged, published and expanded with on the node.
fn secrets_of_volume(volume: &Value) -> BTreeSet<Vertex> {
    let claim_namespace =
        volume.pointer("/spec/claimRef/namespace").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut secrets = BTreeSet::new();
    for path in [
        "csi/nodePublishSecretRef",
        "csi/nodeStageSecretRef",
        "csi/nodeExpandSecretRef",
        "csi/controllerPublishSecretRef",
        "cephfs/secretRef",
        "cinder/secretRef",
        "flexVolume/secretRef",
        "iscsi/secretRef",
        "rbd/secretRef",
        "scaleIO/secretRef",
        "storageos/secretRef",
    ] {
        let Some(reference) = volume.pointer(&format!("/spec/{path}")) else { continue };
        let mut namespace = text(reference, "namespace");
        if namespace.is_empty() {
            namespace = claim_namespace.clone();
        }
        secrets.insert(Vertex::Secret { namespace, name: text(reference, "name") });
    }
    secrets
}

/// The decision. `rules` are those of the role `system:node`, which hold for every node; the graph narrows
/// the resources that belong to pods.
pub fn authorize(attributes: &Attributes<'_>, graph: &dyn Graph, node_rules: &RbacIndex) -> Decision {
    let Some(node) = node_name(attributes.user) else {
        return match attributes.user.in_group(GROUP_NODES) {
            true => no_opinion(format!("unknown node for user {:?}", attributes.user.username)),
            false => Decision::NoOpinion(String::new()),
        };
    };
    if attributes.resource_request {
        let namespace = attributes.namespace.to_owned();
        let name = attributes.name.to_owned();
        match (attributes.api_group, attributes.resource) {
            ("", "secrets") => {
                return read_namespaced(attributes, node, graph, Vertex::Secret { namespace, name });
            }
            ("", "configmaps") => {
                return read_namespaced(attributes, node, graph, Vertex::ConfigMap { namespace, name });
            }
            ("", "persistentvolumeclaims") if attributes.subresource == "status" => {
                return update_claim_status(attributes, node, graph);
            }
            ("", "persistentvolumeclaims") => {
                return get(attributes, node, graph, Vertex::PersistentVolumeClaim { namespace, name });
            }
            ("", "persistentvolumes") => {
                return get(attributes, node, graph, Vertex::PersistentVolume { name });
            }
            ("resource.k8s.io", "resourceclaims") => {
                return get(attributes, node, graph, Vertex::ResourceClaim { namespace, name });
            }
            ("storage.k8s.io", "volumeattachments") => {
                return get(attributes, node, graph, Vertex::VolumeAttachment { name });
            }
            ("", "serviceaccounts") => return create_token(attributes, node, graph),
            ("coordination.k8s.io", "leases") => return own_lease(attributes, node),
            ("storage.k8s.io", "csinodes") => return own_csi_node(attributes, node),
            ("certificates.k8s.io", "podcertificaterequests") => {
                return own_certificate_requests(attributes, node);
            }
            ("", "nodes") => return own_node(attributes, node),
            ("", "pods") => return own_pods(attributes, node_rules),
            _ => {}
        }
    }
    by_node_rules(attributes, node_rules)
}

/// What every node may do, whatever is bound to it.
fn by_node_rules(attributes: &Attributes<'_>, node_rules: &RbacIndex) -> Decision {
    let rules = node_rules.role_rules(crate::rbac::Kind::ClusterRole, "", "system:node").unwrap_or_default();
    let allowed = rules.iter().any(|rule| match attributes.resource_request {
        true => rule.allows_resource(
            attributes.verb,
            attributes.api_group,
            attributes.resource,
            attributes.subresource,
            attributes.name,
        ),
        false => rule.allows_path(attributes.verb, attributes.path),
    });
    if allowed { Decision::Allow(String::new()) } else { Decision::NoOpinion(String::new()) }
}

fn no_opinion(reason: impl Into<String>) -> Decision {
    Decision::NoOpinion(reason.into())
}

fn need(node: &str, graph: &dyn Graph, vertex: &Vertex) -> Decision {
    match graph.needs(node, vertex) {
        true => Decision::Allow(String::new()),
        false => no_opinion(format!("no relationship found between node '{node}' and this object")),
    }
}

/// `get`, and `list` and `watch` of a single named object.
fn read_namespaced(attributes: &Attributes<'_>, node: &str, graph: &dyn Graph, vertex: Vertex) -> Decision {
    if !matches!(attributes.verb, "get" | "list" | "watch") {
        return no_opinion("can only read resources of this type");
    }
    if attributes.name.is_empty() {
        return no_opinion("No Object name found");
    }
    if !attributes.subresource.is_empty() {
        return no_opinion("cannot read subresource");
    }
    need(node, graph, &vertex)
}

fn get(attributes: &Attributes<'_>, node: &str, graph: &dyn Graph, vertex: Vertex) -> Decision {
    if attributes.verb != "get" {
        return no_opinion("can only get individual resources of this type");
    }
    if !attributes.subresource.is_empty() {
        return no_opinion("cannot get subresource");
    }
    if attributes.name.is_empty() {
        return no_opinion("No Object name found");
    }
    need(node, graph, &vertex)
}

fn update_claim_status(attributes: &Attributes<'_>, node: &str, graph: &dyn Graph) -> Decision {
    if !matches!(attributes.verb, "update" | "patch") {
        return no_opinion("can only update PVC status");
    }
    let vertex = Vertex::PersistentVolumeClaim {
        namespace: attributes.namespace.to_owned(),
        name: attributes.name.to_owned(),
    };
    need(node, graph, &vertex)
}

fn create_token(attributes: &Attributes<'_>, node: &str, graph: &dyn Graph) -> Decision {
    let vertex = Vertex::ServiceAccount {
        namespace: attributes.namespace.to_owned(),
        name: attributes.name.to_owned(),
    };
    match (attributes.verb, attributes.subresource) {
        ("create", "token") => need(node, graph, &vertex),
        ("get", "") => need(node, graph, &vertex),
        _ => no_opinion("can only create tokens for individual service accounts"),
    }
}

/// Requests for certificates of its own pods: a node may make them and follow them. What it asks for is judged by
/// the restriction of nodes.
fn own_certificate_requests(attributes: &Attributes<'_>, node: &str) -> Decision {
    if !attributes.subresource.is_empty() {
        return no_opinion("nodes may not access the subresources of podcertificaterequests");
    }
    let is_own = |requirement: &serde_json::Value| {
        requirement["key"] == "spec.nodeName"
            && requirement["operator"] == "In"
            && requirement["values"] == serde_json::json!([node])
    };
    let mut selected = attributes.field_selector.and_then(serde_json::Value::as_array).into_iter().flatten();
    match attributes.verb {
        "create" => Decision::Allow(String::new()),
        "list" | "watch" if selected.any(is_own) => Decision::Allow(String::new()),
        "list" | "watch" => no_opinion("can only list and watch podcertificaterequests of itself"),
        _ => no_opinion("can only create, list and watch podcertificaterequests"),
    }
}

fn own_lease(attributes: &Attributes<'_>, node: &str) -> Decision {
    let lease_verb = matches!(attributes.verb, "get" | "create" | "update" | "patch" | "delete");
    if !lease_verb {
        return no_opinion("can only get, create, update, patch, or delete a node lease");
    }
    if attributes.namespace != NODE_LEASE_NAMESPACE {
        return no_opinion(format!(
            "can only access leases in the {NODE_LEASE_NAMESPACE:?} system namespace"
        ));
    }
    // A create may not carry the name yet; NodeRestriction checks it in the object.
    if attributes.name != node && !(attributes.verb == "create" && attributes.name.is_empty()) {
        return no_opinion("can only access node lease with the same name as the requesting node");
    }
    Decision::Allow(String::new())
}

fn own_csi_node(attributes: &Attributes<'_>, node: &str) -> Decision {
    if !matches!(attributes.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no_opinion("can only get, create, update, patch, or delete a CSINode");
    }
    if !attributes.subresource.is_empty() {
        return no_opinion("cannot authorize CSINode subresources");
    }
    if attributes.name != node && !(attributes.verb == "create" && attributes.name.is_empty()) {
        return no_opinion("can only access CSINode with the same name as the requesting node");
    }
    Decision::Allow(String::new())
}

/// Its own node object. Listing is allowed for the one name, and for all: the informers of proxies in the
/// node process list nodes, as the role `system:node` has always allowed.
fn own_node(attributes: &Attributes<'_>, node: &str) -> Decision {
    let own = attributes.name == node || attributes.name.is_empty();
    match (attributes.verb, attributes.subresource) {
        ("create", "") if own => Decision::Allow(String::new()),
        ("get" | "list" | "watch", "") => Decision::Allow(String::new()),
        ("update" | "patch", "" | "status") if attributes.name == node => Decision::Allow(String::new()),
        ("get" | "list" | "watch" | "create" | "update" | "patch", _) => {
            no_opinion(format!("node '{node}' cannot access node '{}'", attributes.name))
        }
        _ => no_opinion("can only create, get, list, watch, update, or patch nodes"),
    }
}

/// Pods: what the role says; NodeRestriction narrows writes to pods bound to the node.
fn own_pods(attributes: &Attributes<'_>, node_rules: &RbacIndex) -> Decision {
    by_node_rules(attributes, node_rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn graph() -> NodeGraph {
        let graph = NodeGraph::new();
        graph.upsert_pod(&json!({"metadata": {"namespace": "a", "name": "p"}, "spec": {
            "nodeName": "n1", "serviceAccountName": "bot",
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"envFrom": [{"configMapRef": {"name": "env"}}],
                "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "key"}}}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "e", "ephemeral": {}},
                {"name": "pr", "projected": {"sources": [{"configMap": {"name": "root-ca"}}]}}]}}));
        graph.upsert_volume(&json!({"metadata": {"name": "pv1"}, "spec": {
            "claimRef": {"namespace": "a", "name": "claim"},
            "csi": {"nodeStageSecretRef": {"namespace": "kube-system", "name": "stage"}}}}));
        graph.upsert_attachment(&json!({"metadata": {"name": "att"}, "spec": {"nodeName": "n1"}}));
        graph
    }

    fn ask(graph: &NodeGraph, node: &str, verb: &str, what: &str, namespace: &str, name: &str) -> bool {
        let rules = RbacIndex::new();
        for role in crate::bootstrap::objects().cluster_roles {
            rules.upsert_value(crate::rbac::Kind::ClusterRole, &role).unwrap();
        }
        let user = UserInfo::authenticated(&format!("system:node:{node}"), &[GROUP_NODES]);
        let (group, resource) = what.split_once(':').unwrap();
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let attributes = Attributes {
            user: &user,
            verb,
            api_group: group,
            api_version: "v1",
            resource,
            subresource,
            name,
            namespace,
            path: "",
            resource_request: true,
            field_selector: None,
            label_selector: None,
        };
        authorize(&attributes, graph, &rules).is_allowed()
    }

    #[test]
    fn a_node_sees_only_what_its_pods_need() {
        let graph = graph();
        let cases = [
            ("get", ":secrets", "a", "pull", true),
            ("watch", ":secrets", "a", "key", true),
            ("get", ":secrets", "b", "pull", false),
            ("get", ":secrets", "a", "other", false),
            ("list", ":secrets", "a", "", false),
            ("delete", ":secrets", "a", "pull", false),
            ("get", ":secrets", "kube-system", "stage", true),
            ("get", ":configmaps", "a", "env", true),
            ("get", ":configmaps", "a", "root-ca", true),
            ("get", ":persistentvolumeclaims", "a", "claim", true),
            ("get", ":persistentvolumeclaims", "a", "p-e", true),
            ("patch", ":persistentvolumeclaims/status", "a", "claim", true),
            ("get", ":persistentvolumes", "", "pv1", true),
            ("get", "storage.k8s.io:volumeattachments", "", "att", true),
            ("create", ":serviceaccounts/token", "a", "bot", true),
            ("create", ":serviceaccounts/token", "a", "admin", false),
            ("get", ":nodes", "", "n1", true),
            ("patch", ":nodes/status", "", "n1", true),
            ("patch", ":nodes/status", "", "n2", false),
            ("update", "coordination.k8s.io:leases", "kube-node-lease", "n1", true),
            ("update", "coordination.k8s.io:leases", "kube-node-lease", "n2", false),
            ("update", "coordination.k8s.io:leases", "kube-system", "n1", false),
            ("create", "storage.k8s.io:csinodes", "", "n1", true),
            ("watch", ":pods", "", "", true),
            ("patch", ":pods/status", "a", "p", true),
            ("create", ":events", "a", "", true),
            ("list", ":services", "", "", true),
            ("create", "apps:deployments", "a", "", false),
        ];
        for (verb, what, namespace, name, expected) in cases {
            assert_eq!(
                ask(&graph, "n1", verb, what, namespace, name),
                expected,
                "{verb} {what} {namespace}/{name}"
            );
        }
        for (verb, what, namespace, name, _) in &cases[..14] {
            assert!(!ask(&graph, "n2", verb, what, namespace, name), "n2 {verb} {what} {namespace}/{name}");
        }
    }

    #[test]
    fn needs_end_with_the_pod() {
        let graph = graph();
        let pod = |name: &str, phase: &str| {
            json!({"metadata": {"namespace": "a", "name": name}, "status": {"phase": phase},
                   "spec": {"nodeName": "n1", "imagePullSecrets": [{"name": "pull"}]}})
        };
        graph.upsert_pod(&pod("q", "Running"));
        graph.remove_pod("a", "p");
        assert!(ask(&graph, "n1", "get", ":secrets", "a", "pull"));
        assert!(!ask(&graph, "n1", "get", ":persistentvolumes", "", "pv1"));
        graph.upsert_pod(&pod("q", "Succeeded"));
        assert!(!ask(&graph, "n1", "get", ":secrets", "a", "pull"));
        assert!(graph.tables.read().needed.is_empty());
    }

    #[test]
    fn who_is_a_node() {
        let node = UserInfo::authenticated("system:node:n1", &[GROUP_NODES]);
        assert_eq!(node_name(&node), Some("n1"));
        assert_eq!(node_name(&UserInfo::authenticated("system:node:n1", &[])), None);
        assert_eq!(node_name(&UserInfo::authenticated("system:node:", &[GROUP_NODES])), None);
    }
}
