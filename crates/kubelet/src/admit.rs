//! Admission to the node: does the pod fit, as upstream's kubelet checks it before anything is made.

use std::collections::BTreeMap;

use api::k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Taint};
use api::prelude::*;

use crate::resources::{self, Amounts};
use crate::spec;
use crate::status::Verdict;

/// The node a pod wants to be on.
#[derive(Debug, Clone, Default)]
pub struct NodeView {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Allocatable resources, `pods` included.
    pub allocatable: Amounts,
    /// Whether the runtime keeps to `supplementalGroupsPolicy: Strict`.
    pub supplemental_groups_policy: bool,
}

fn rejected(reason: impl Into<String>, message: impl AsRef<str>) -> Verdict {
    Verdict {
        reason: reason.into(),
        message: format!("Pod was rejected: {}", message.as_ref()),
        ..Verdict::default()
    }
}

/// Judges a pod; `others` are the pods that are on the node already and have not ended.
pub fn admit(pod: &Pod, node: &NodeView, others: &[&Pod]) -> Result<(), Verdict> {
    resources_fit(pod, node, others)?;
    let spec = spec::spec(pod);
    let selector = spec.node_selector.as_ref();
    let selected = selector.into_iter().flatten().all(|(key, value)| node.labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let matching = required
        .is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)));
    if !selected || !matching {
        return Err(rejected(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ));
    }
    if let Some(os) = &spec.os
        && os.name != "linux"
    {
        return Err(rejected(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ));
    }
    let policy = spec.security_context.as_ref().and_then(|s| s.supplemental_groups_policy.as_deref());
    if policy == Some("Strict") && !node.supplemental_groups_policy {
        return Err(rejected(
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        ));
    }
    tolerates(pod, node)?;
    ports_free(pod, others)
}

fn resources_fit(pod: &Pod, node: &NodeView, others: &[&Pod]) -> Result<(), Verdict> {
    let mut used = Amounts::new();
    for other in others {
        for (name, value) in resources::pod_total(other, resources::requests) {
            *used.entry(name).or_insert(0) += value;
        }
    }
    let short = |name: &str, requested: i64, used: i64, capacity: i64| {
        let message = format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        rejected(format!("OutOf{name}"), message)
    };
    if let Some(capacity) = node.allocatable.get("pods")
        && others.len() as i64 + 1 > *capacity
    {
        return Err(short("pods", 1, others.len() as i64, *capacity));
    }
    for (name, requested) in resources::pod_total(pod, resources::requests) {
        if requested == 0 {
            continue;
        }
        let used = used.get(&name).copied().unwrap_or(0);
        match node.allocatable.get(&name) {
            Some(capacity) if used + requested > *capacity => {
                return Err(short(&name, requested, used, *capacity));
            }
            Some(_) => {}
            // Extended resources the node does not know are not its to refuse.
            None if name.contains('/') => {}
            None => return Err(short(&name, requested, used, 0)),
        }
    }
    Ok(())
}

fn term_matches(term: &NodeSelectorTerm, node: &NodeView) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // A term without requirements matches nothing.
    (!expressions.is_empty() || !fields.is_empty())
        && expressions
            .iter()
            .all(|requirement| requirement_holds(requirement, node.labels.get(&requirement.key)))
        && fields.iter().all(|requirement| {
            let value = (requirement.key == "metadata.name").then_some(&node.name);
            requirement_holds(requirement, value)
        })
}

fn requirement_holds(requirement: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let compare = |holds: fn(i64, i64) -> bool| {
        let have = value.and_then(|value| value.parse().ok());
        let wanted = values.first().and_then(|value| value.parse().ok());
        have.zip(wanted).is_some_and(|(have, wanted)| holds(have, wanted))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|have, wanted| have > wanted),
        "Lt" => compare(|have, wanted| have < wanted),
        _ => false,
    }
}

/// A kubelet refuses only for `NoExecute` taints: the scheduler has judged the rest.
fn tolerates(pod: &Pod, node: &NodeView) -> Result<(), Verdict> {
    let spec = spec::spec(pod);
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    for taint in node.taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let tolerated = tolerations.iter().any(|toleration| {
            let effect = toleration.effect.as_deref().unwrap_or_default();
            let key = toleration.key.as_deref().unwrap_or_default();
            let exists = toleration.operator.as_deref() == Some("Exists");
            (effect.is_empty() || effect == taint.effect)
                && (key == taint.key || (key.is_empty() && exists))
                && (exists
                    || toleration.value.as_deref().unwrap_or_default()
                        == taint.value.as_deref().unwrap_or_default())
        });
        if !tolerated {
            return Err(rejected(
                "TaintToleration",
                "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
            ));
        }
    }
    Ok(())
}

/// Ports of the node that a pod wants: address (empty for all), protocol, number.
fn host_ports(pod: &Pod) -> Vec<(String, String, i32)> {
    let host_network = spec::spec(pod).host_network == Some(true);
    let all = spec::containers(pod);
    let ports = all.iter().flat_map(|(_, container)| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number =
                port.host_port.filter(|port| *port > 0).or(host_network.then_some(port.container_port))?;
            let ip = port.host_ip.clone().filter(|ip| ip != "0.0.0.0" && ip != "::").unwrap_or_default();
            Some((ip, port.protocol.clone().unwrap_or("TCP".into()), number))
        })
        .collect()
}

fn ports_free(pod: &Pod, others: &[&Pod]) -> Result<(), Verdict> {
    let wanted = host_ports(pod);
    let taken = others.iter().flat_map(|other| host_ports(other)).any(|(ip, protocol, number)| {
        wanted.iter().any(|(wanted_ip, wanted_protocol, wanted_number)| {
            number == *wanted_number
                && protocol == *wanted_protocol
                && (ip.is_empty() || wanted_ip.is_empty() || ip == *wanted_ip)
        })
    });
    match taken {
        true => Err(rejected(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})).unwrap()
    }

    fn node() -> NodeView {
        NodeView {
            name: "n1".into(),
            labels: BTreeMap::from([("zone".into(), "a".into()), ("n".into(), "5".into())]),
            taints: vec![Taint { key: "t".into(), effect: "NoExecute".into(), ..Taint::default() }],
            allocatable: Amounts::from([
                ("cpu".into(), 1000),
                ("memory".into(), 1 << 30),
                ("pods".into(), 2),
            ]),
            supplemental_groups_policy: false,
        }
    }

    #[test]
    fn reasons() {
        let tolerant = json!([{"operator": "Exists"}]);
        let with = |extra: Value| {
            let mut spec = json!({"tolerations": tolerant, "containers": [{"name": "c"}]});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            pod(spec)
        };
        let cpu =
            |amount: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]});
        let affinity = |operator: &str, value: &str| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms":
                [{"matchExpressions": [{"key": "n", "operator": operator, "values": [value]}]}]}}}})
        };
        let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}]});
        let cases = [
            (with(json!({})), None),
            (with(cpu("500m")), None),
            (with(cpu("600m")), Some("OutOfcpu")),
            (with(json!({"nodeSelector": {"zone": "a"}})), None),
            (with(json!({"nodeSelector": {"zone": "b"}})), Some("NodeAffinity")),
            (with(affinity("Gt", "4")), None),
            (with(affinity("Gt", "5")), Some("NodeAffinity")),
            (with(json!({"tolerations": []})), Some("TaintToleration")),
            (with(port.clone()), Some("NodePorts")),
            (
                with(json!({"securityContext": {"supplementalGroupsPolicy": "Strict"}})),
                Some("SupplementalGroupsPolicyNotSupported"),
            ),
        ];
        let mut other = with(port);
        other.spec.as_mut().unwrap().containers[0].resources =
            with(cpu("500m")).spec.unwrap().containers[0].resources.clone();
        for (pod, expected) in cases {
            let verdict = admit(&pod, &node(), &[&other]).err();
            assert_eq!(verdict.as_ref().map(|v| v.reason.as_str()), expected, "{:?}", pod.spec);
        }
        let verdict = admit(&with(cpu("600m")), &node(), &[&other]).unwrap_err();
        assert_eq!(
            verdict.message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 600, used: 500, capacity: 1000"
        );
        assert_eq!(admit(&with(json!({})), &node(), &[&other, &other]).unwrap_err().reason, "OutOfpods");
    }
}
