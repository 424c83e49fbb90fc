//! A pod with everything the plugins need of it, computed once.

use std::sync::Arc;

use api::k8s_openapi::api::core::v1::{PodAffinityTerm, Toleration, TopologySpreadConstraint};
use api::prelude::*;
use jiff::Timestamp;
use meta::selector::{LabelSelector, Op, Requirement};

pub use volumes::NodeTerm;

use crate::labels::LabelSet;
use crate::resources::{self, Resources};

/// A port of the node that a pod takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Address; `0.0.0.0` for all.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Number.
    pub port: i32,
}

impl HostPort {
    /// Whether two pods cannot both have theirs on one node.
    pub fn conflicts(&self, other: &HostPort) -> bool {
        let any = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == any || other.ip == any)
    }
}

/// A selector of the API, compiled. None and a malformed one match nothing.
fn selector(source: Option<&api::prelude::LabelSelector>) -> Option<LabelSelector> {
    LabelSelector::from_json(&serde_json::to_value(source?).ok()?).ok()
}

/// A term of pod affinity or anti-affinity, compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct PodTerm {
    selector: Option<LabelSelector>,
    namespaces: Vec<String>,
    namespace_selector: Option<LabelSelector>,
    /// Node label whose equal values make nodes one place.
    pub topology_key: String,
    /// Weight of a preferred term; 0 for required ones.
    pub weight: i64,
}

/// Labels of a namespace by its name.
pub type NamespaceLabels<'a> = &'a dyn Fn(&str) -> Option<Arc<Namespace>>;

impl PodTerm {
    fn compile(term: &PodAffinityTerm, pod: &Pod, weight: i32) -> PodTerm {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(pod.namespace().to_owned());
        }
        let mut compiled = selector(term.label_selector.as_ref());
        if let Some(LabelSelector(requirements)) = &mut compiled {
            let own = |key: &String| pod.metadata.labels.as_ref().and_then(|l| l.get(key)).cloned();
            for key in term.match_label_keys.iter().flatten() {
                requirements.extend(own(key).map(|v| Requirement { key: key.clone(), op: Op::In(vec![v]) }));
            }
            for key in term.mismatch_label_keys.iter().flatten() {
                requirements
                    .extend(own(key).map(|v| Requirement { key: key.clone(), op: Op::NotIn(vec![v]) }));
            }
        }
        PodTerm {
            selector: compiled,
            namespaces,
            namespace_selector: selector(term.namespace_selector.as_ref()),
            topology_key: term.topology_key.clone(),
            weight: i64::from(weight),
        }
    }

    /// Whether pods with these labels match.
    pub fn matches(&self, set: &LabelSet, namespace_labels: NamespaceLabels<'_>) -> bool {
        let Some(selector) = &self.selector else { return false };
        if !selector.matches_with(|key| set.labels.get(key).map(String::as_str)) {
            return false;
        }
        self.namespaces.contains(&set.namespace)
            || self.namespace_selector.as_ref().is_some_and(|wanted| {
                let namespace = namespace_labels(&set.namespace);
                let labels = namespace.as_ref().and_then(|n| n.metadata.labels.as_ref());
                wanted.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
            })
    }
}

/// A spread constraint, compiled.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    /// Largest difference in numbers of pods.
    pub max_skew: i64,
    /// Node label whose equal values make nodes one place.
    pub topology_key: String,
    /// Whether a violation forbids a node (`DoNotSchedule`) or only makes it worse.
    pub required: bool,
    /// Fewest places; with fewer the emptiest counts as empty.
    pub min_domains: usize,
    /// Only nodes that match the pod's affinity count as places.
    pub honor_affinity: bool,
    /// Only nodes whose taints the pod tolerates count as places.
    pub honor_taints: bool,
    selector: Option<LabelSelector>,
}

impl Spread {
    fn compile(source: &TopologySpreadConstraint, pod: &Pod) -> Spread {
        let mut compiled = selector(source.label_selector.as_ref());
        let labels = pod.metadata.labels.as_ref();
        if let Some(LabelSelector(requirements)) = &mut compiled {
            for key in source.match_label_keys.iter().flatten() {
                let value = labels.and_then(|l| l.get(key)).cloned();
                requirements.extend(value.map(|v| Requirement { key: key.clone(), op: Op::In(vec![v]) }));
            }
        }
        Spread {
            max_skew: i64::from(source.max_skew),
            topology_key: source.topology_key.clone(),
            required: source.when_unsatisfiable == "DoNotSchedule",
            min_domains: usize::try_from(source.min_domains.unwrap_or(1)).unwrap_or(1).max(1),
            honor_affinity: source.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: source.node_taints_policy.as_deref() == Some("Honor"),
            selector: compiled,
        }
    }

    /// Whether pods with these labels count, for a pod of `namespace`.
    pub fn counts(&self, set: &LabelSet, namespace: &str) -> bool {
        set.namespace == namespace
            && (self.selector.as_ref())
                .is_some_and(|s| s.matches_with(|key| set.labels.get(key).map(String::as_str)))
    }
}

/// A pod, ready for scheduling.
#[derive(Debug, Clone)]
pub struct PodInfo {
    /// The pod.
    pub pod: Arc<Pod>,
    /// `namespace/name`.
    pub key: Arc<str>,
    /// Uid.
    pub uid: Arc<str>,
    /// Namespace and labels.
    pub labels: LabelSet,
    /// Priority.
    pub priority: i32,
    /// When it was created.
    pub created: Timestamp,
    /// What it asks for.
    pub requests: Resources,
    /// CPU (thousandths) and memory (bytes) it counts for when nodes are compared.
    pub weights: (i64, i64),
    /// Ports of the node it takes.
    pub host_ports: Vec<HostPort>,
    /// Labels its node must have.
    pub node_selector: Vec<(String, String)>,
    /// Required node affinity: one of these, if any.
    pub node_terms: Option<Vec<NodeTerm>>,
    /// Preferred node affinity with weights.
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    /// Required affinity to pods.
    pub affinity: Vec<PodTerm>,
    /// Required anti-affinity to pods.
    pub anti_affinity: Vec<PodTerm>,
    /// Preferred affinity to pods (positive weights) and anti-affinity (negative weights).
    pub preferred_pods: Vec<PodTerm>,
    /// Spread constraints.
    pub spread: Vec<Spread>,
    /// Keys of the claims it uses, and whether each is made for it.
    pub claims: Vec<(String, bool)>,
    /// Uid of its controller.
    pub controller: Option<Arc<str>>,
}

impl PodInfo {
    /// Computes what the plugins need.
    pub fn new(pod: Arc<Pod>) -> PodInfo {
        let spec = pod.spec.clone().unwrap_or_default();
        let affinity = spec.affinity.unwrap_or_default();
        let node = affinity.node_affinity.unwrap_or_default();
        let near = affinity.pod_affinity.unwrap_or_default();
        let far = affinity.pod_anti_affinity.unwrap_or_default();
        let required = |terms: Option<Vec<PodAffinityTerm>>| {
            terms.iter().flatten().map(|term| PodTerm::compile(term, &pod, 0)).collect::<Vec<_>>()
        };
        let preferred_near = near.preferred_during_scheduling_ignored_during_execution.into_iter().flatten();
        let preferred_far = far.preferred_during_scheduling_ignored_during_execution.into_iter().flatten();
        let preferred_pods = preferred_near
            .map(|w| PodTerm::compile(&w.pod_affinity_term, &pod, w.weight))
            .chain(preferred_far.map(|w| PodTerm::compile(&w.pod_affinity_term, &pod, -w.weight)))
            .collect();
        let controller = pod.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        PodInfo {
            key: pod.key().into(),
            uid: pod.uid().into(),
            labels: LabelSet {
                namespace: pod.namespace().to_owned(),
                labels: pod.metadata.labels.clone().unwrap_or_default(),
            },
            priority: spec.priority.unwrap_or(0),
            created: pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
            requests: resources::pod_requests(&pod),
            weights: resources::pod_weights(&pod),
            host_ports: host_ports(&pod),
            node_selector: spec.node_selector.into_iter().flatten().collect(),
            node_terms: node
                .required_during_scheduling_ignored_during_execution
                .map(|s| s.node_selector_terms.iter().map(NodeTerm::compile).collect()),
            preferred_nodes: (node.preferred_during_scheduling_ignored_during_execution.iter().flatten())
                .map(|p| (i64::from(p.weight), NodeTerm::compile(&p.preference)))
                .collect(),
            affinity: required(near.required_during_scheduling_ignored_during_execution),
            anti_affinity: required(far.required_during_scheduling_ignored_during_execution),
            preferred_pods,
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|c| Spread::compile(c, &pod))
                .collect(),
            claims: volumes::claim_names(&pod)
                .into_iter()
                .map(|(name, own)| (format!("{}/{name}", pod.namespace()), own))
                .collect(),
            controller: controller.map(|o| o.uid.as_str().into()),
            pod,
        }
    }

    /// The pod's tolerations.
    pub fn tolerations(&self) -> &[Toleration] {
        self.pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
    }

    /// Whether the pod's node selector and required affinity allow a node.
    pub fn allows_node(&self, node: &Node) -> bool {
        let labels = node.metadata.labels.as_ref();
        self.node_selector.iter().all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
            && self.node_terms.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(node)))
    }

    /// Whether it has terms that other pods' scheduling must look at.
    pub fn has_pod_terms(&self) -> bool {
        !self.affinity.is_empty() || !self.anti_affinity.is_empty() || !self.preferred_pods.is_empty()
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let host = spec.host_network == Some(true);
    ports
        .filter_map(|p| {
            let port = p.host_port.filter(|n| *n > 0).or(host.then_some(p.container_port))?;
            Some(HostPort {
                ip: p.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0".into()),
                protocol: p.protocol.clone().unwrap_or("TCP".into()),
                port,
            })
        })
        .collect()
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &api::k8s_openapi::api::core::v1::Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    let (ours, theirs) = (text(&toleration.value), text(&taint.value));
    let compare = |holds: fn(i64, i64) -> bool| match (theirs.parse(), ours.parse()) {
        (Ok(taint), Ok(limit)) => holds(taint, limit),
        _ => false,
    };
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "" | "Equal" => ours == theirs,
        "Lt" => compare(|taint, limit| taint < limit),
        "Gt" => compare(|taint, limit| taint > limit),
        _ => false,
    }
}
