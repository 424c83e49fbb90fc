//! Which nodes need a pod of a DaemonSet, which pods have to go, and how an update proceeds.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::k8s_openapi::api::apps::v1::DaemonSetStatus;
use api::k8s_openapi::api::core::v1::{NodeSelectorTerm, Toleration};
use api::prelude::*;
use jiff::Timestamp;

use crate::pods;
use crate::tainteviction::plan::tolerates;

/// Label that tells the pods of one template from those of another.
pub const HASH_LABEL: &str = "controller-revision-hash";
/// Pods created or deleted per round.
const BURST_MAX: usize = 250;

/// Taints that daemon pods tolerate whatever their template says: key and effect.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// The template with the tolerations every daemon pod has.
pub fn with_tolerations(mut template: PodTemplateSpec) -> PodTemplateSpec {
    let spec = template.spec.get_or_insert_default();
    let host_network =
        (spec.host_network == Some(true)).then_some(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(host_network) {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Default::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    template
}

fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let holds = |value: Option<&str>, operator: &str, values: &[String]| {
        let number = |text: &str| text.parse::<i64>().ok();
        let limit = values.first().and_then(|v| number(v));
        match operator {
            "In" => value.is_some_and(|v| values.iter().any(|w| w == v)),
            "NotIn" => !value.is_some_and(|v| values.iter().any(|w| w == v)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => value.and_then(number).zip(limit).is_some_and(|(v, l)| v > l),
            "Lt" => value.and_then(number).zip(limit).is_some_and(|(v, l)| v < l),
            _ => false,
        }
    };
    let values = |v: &Option<Vec<String>>| v.clone().unwrap_or_default();
    let expressions = term.match_expressions.iter().flatten();
    let fields = term.match_fields.iter().flatten();
    let empty = expressions.clone().next().is_none() && fields.clone().next().is_none();
    !empty
        && expressions.into_iter().all(|r| {
            let value = labels.and_then(|l| l.get(&r.key)).map(String::as_str);
            holds(value, &r.operator, &values(&r.values))
        })
        && fields.into_iter().all(|r| {
            let value = (r.key == "metadata.name").then(|| node.name());
            holds(value, &r.operator, &values(&r.values))
        })
}

/// Whether a pod of the template should run on a node, and whether one that runs there may stay.
pub fn fits(template: &PodTemplateSpec, node: &Node) -> (bool, bool) {
    let spec = template.spec.clone().unwrap_or_default();
    let labels = node.metadata.labels.as_ref();
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v));
    let affinity = spec.affinity.and_then(|a| a.node_affinity);
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution);
    let allowed = required.is_none_or(|r| r.node_selector_terms.iter().any(|term| matches_term(term, node)));
    let named = spec.node_name.as_deref().is_none_or(|name| name.is_empty() || name == node.name());
    if !(selected && allowed && named) {
        return (false, false);
    }
    let tolerations = spec.tolerations.unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let untolerated = |effect: &str| {
        taints.iter().filter(|t| t.effect == effect).any(|t| !tolerations.iter().any(|own| tolerates(own, t)))
    };
    let evicted = untolerated("NoExecute");
    (!evicted && !untolerated("NoSchedule"), !evicted)
}

/// The node a daemon pod is meant for: bound, or by the affinity its controller gave it.
pub fn target_node(pod: &Pod) -> Option<String> {
    let bound = pods::node_name(pod);
    if !bound.is_empty() {
        return Some(bound.to_owned());
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    fields.filter(|f| f.key == "metadata.name").find_map(|f| f.values.as_ref()?.first().cloned())
}

/// One round.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    /// Pods that go, by name, with the reason for people where they failed.
    pub delete: Vec<String>,
    /// Pods that failed and go, by name; counted among `delete`.
    pub failed: Vec<String>,
    /// The new status.
    pub status: DaemonSetStatus,
}

fn count_of(value: Option<&IntOrString>, of: usize, default: usize) -> usize {
    match value {
        None => default,
        Some(IntOrString::Int(n)) => usize::try_from(*n).unwrap_or(0),
        Some(IntOrString::String(text)) => {
            let percent: usize = text.trim_end_matches('%').parse().unwrap_or(0);
            (percent * of).div_ceil(100)
        }
    }
}

/// The pods of one node that have not ended, and what a round makes of them.
struct Seat<'a> {
    node: &'a str,
    /// In order of age.
    pods: Vec<&'a Arc<Pod>>,
}

/// Whether a pod is of the present template.
fn is_new(pod: &Pod, hash: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|l| l.get(HASH_LABEL)).is_some_and(|own| own == hash)
}

/// Plans one round. `hash` is that of the present template.
pub fn plan(set: &DaemonSet, nodes: &[Arc<Node>], owned: &[Arc<Pod>], hash: &str, now: Timestamp) -> Plan {
    let template = with_tolerations(set.spec.template.clone());
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let mut by_node: BTreeMap<String, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in owned {
        by_node.entry(target_node(pod).unwrap_or_default()).or_default().push(pod);
    }
    let mut plan = Plan::default();
    let mut status = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: set.status.as_ref().and_then(|s| s.collision_count),
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
        ..Default::default()
    };
    let (mut updated, mut available) = (0, 0);
    let mut seats: Vec<Seat<'_>> = Vec::new();
    let mut down = 0;
    for node in nodes {
        let (wanted, may_stay) = fits(&template, node);
        let mut here = by_node.remove(node.name()).unwrap_or_default();
        here.sort_by_key(|pod| {
            (pod.metadata.creation_timestamp.as_ref().map(|t| t.0), pod.name().to_owned())
        });
        if !wanted {
            status.number_misscheduled += i32::from(!here.is_empty());
            if !may_stay {
                plan.delete.extend(here.iter().filter(|p| !p.is_terminating()).map(|p| p.name().to_owned()));
            }
            continue;
        }
        status.desired_number_scheduled += 1;
        let (finished, running): (Vec<_>, Vec<_>) = here.into_iter().partition(|pod| pods::is_finished(pod));
        for pod in finished.iter().filter(|pod| !pod.is_terminating()) {
            plan.delete.push(pod.name().to_owned());
            plan.failed.push(pod.name().to_owned());
        }
        let Some(first) = running.first() else {
            down += 1;
            if finished.is_empty() {
                plan.create.push(node.name().to_owned());
            }
            continue;
        };
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(pods::is_ready(first));
        let up = pods::is_available(first, min_ready, now) && !first.is_terminating();
        available += i32::from(up);
        down += usize::from(!up);
        updated += i32::from(is_new(first, hash));
        seats.push(Seat { node: node.name(), pods: running });
    }
    // Pods of nodes that are gone are the pod garbage collector's.
    let desired = usize::try_from(status.desired_number_scheduled).unwrap_or(0);
    let serves = |pod: &Pod| pods::is_available(pod, min_ready, now);
    match surge_of(set, desired) {
        0 => roll(set, &mut plan, seats, hash, (desired, down), serves),
        surge => surge_onto(&mut plan, seats, hash, surge, serves),
    }
    plan.create.truncate(BURST_MAX);
    plan.delete.truncate(BURST_MAX);
    status.updated_number_scheduled = Some(updated).filter(|n| *n != 0);
    status.number_available = Some(available).filter(|n| *n != 0);
    status.number_unavailable = Some(status.desired_number_scheduled - available).filter(|n| *n != 0);
    plan.status = status;
    plan
}

/// How many nodes may have a pod of the old and one of the new template at a time.
fn surge_of(set: &DaemonSet, desired: usize) -> usize {
    let strategy = set.spec.update_strategy.as_ref();
    let rolling = strategy.filter(|s| s.type_.as_deref() != Some("OnDelete"));
    let surge = rolling.and_then(|s| s.rolling_update.as_ref()?.max_surge.as_ref());
    count_of(surge, desired, 0)
}

/// An update that starts the new pod before the old one goes: on as many nodes at a time as may surge, and on
/// those whose old pod does not serve anyway.
fn surge_onto(
    plan: &mut Plan,
    seats: Vec<Seat<'_>>,
    hash: &str,
    surge: usize,
    serves: impl Fn(&Pod) -> bool,
) {
    let mut budget = surge;
    let mut candidates = Vec::new();
    for seat in seats {
        let (mut new, mut old) = (None, None);
        for pod in seat.pods.into_iter().filter(|pod| !pod.is_terminating()) {
            let place = if is_new(pod, hash) { &mut new } else { &mut old };
            match place {
                // Of several the oldest stays.
                Some(_) => plan.delete.push(pod.name().to_owned()),
                None => *place = Some(pod),
            }
        }
        match (new, old) {
            (Some(new), Some(old)) if !pods::is_ready(old) || serves(new) => {
                plan.delete.push(old.name().to_owned());
            }
            (Some(_), Some(_)) => budget = budget.saturating_sub(1),
            (None, Some(old)) if !serves(old) => plan.create.push(seat.node.to_owned()),
            (None, Some(_)) => candidates.push(seat.node.to_owned()),
            (_, None) => {}
        }
    }
    plan.create.extend(candidates.into_iter().take(budget));
}

/// Deletes outdated pods as far as the update strategy allows: those that do not serve at once, others while
/// no more than the allowed number is down.
fn roll(
    set: &DaemonSet,
    plan: &mut Plan,
    seats: Vec<Seat<'_>>,
    hash: &str,
    (desired, down): (usize, usize),
    serves: impl Fn(&Pod) -> bool,
) {
    let strategy = set.spec.update_strategy.clone().unwrap_or_default();
    let by_hand = strategy.type_.as_deref() == Some("OnDelete");
    let allowed = strategy.rolling_update.as_ref().and_then(|r| r.max_unavailable.as_ref());
    let mut budget = count_of(allowed, desired, 1).max(1).saturating_sub(down);
    for seat in seats {
        let mut pods = seat.pods.into_iter().filter(|pod| !pod.is_terminating());
        let Some(first) = pods.next() else { continue };
        // Of several pods on one node the oldest stays.
        plan.delete.extend(pods.map(|pod| pod.name().to_owned()));
        if by_hand || is_new(first, hash) {
            continue;
        }
        let serves = serves(first);
        if !serves || budget > 0 {
            budget -= usize::from(serves);
            plan.delete.push(first.name().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(name: &str, spec: Value) -> Arc<Node> {
        let labels = json!({"os": "linux"});
        Arc::new(
            Node::from_value(json!({"metadata": {"name": name, "labels": labels}, "spec": spec})).unwrap(),
        )
    }

    fn set(selector: Value) -> DaemonSet {
        DaemonSet::from_value(json!({"metadata": {"name": "d", "namespace": "n", "uid": "u"},
            "spec": {"selector": {}, "template": {"spec": {"nodeSelector": selector, "containers": []}}}}))
        .unwrap()
    }

    fn pod(name: &str, node: &str, hash: &str, phase: &str) -> Arc<Pod> {
        Arc::new(
            Pod::from_value(json!({"metadata": {"name": name, "uid": name, "labels": {HASH_LABEL: hash}},
                "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase,
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
            .unwrap(),
        )
    }

    fn at() -> Timestamp {
        "2026-02-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn one_pod_per_node_that_fits() {
        let taint = |key: &str, effect: &str| json!({"taints": [{"key": key, "effect": effect}]});
        let nodes = [
            node("a", json!({})),
            node("b", taint("node.kubernetes.io/unschedulable", "NoSchedule")),
            node("c", taint("mine", "NoSchedule")),
            node("d", taint("mine", "NoExecute")),
        ];
        let owned = [pod("c1", "c", "h", "Running"), pod("d1", "d", "h", "Running")];
        let round = plan(&set(json!({})), &nodes, &owned, "h", at());
        assert_eq!((round.create, round.delete), (vec!["a".to_owned(), "b".into()], vec!["d1".to_owned()]));
        assert_eq!((round.status.desired_number_scheduled, round.status.number_misscheduled), (2, 2));
        let nowhere = plan(&set(json!({"os": "plan9"})), &nodes, &[], "h", at());
        assert!(nowhere.create.is_empty());
    }

    #[test]
    fn updates_go_one_by_one() {
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let owned = [pod("a1", "a", "old", "Running"), pod("b1", "b", "old", "Running")];
        let round = plan(&set(json!({})), &nodes, &owned, "new", at());
        assert_eq!(round.delete, ["a1"]);
        let next = plan(&set(json!({})), &nodes, &owned[1..], "new", at());
        assert_eq!((next.create, next.delete), (vec!["a".to_owned()], Vec::<String>::new()));
    }

    #[test]
    fn a_surge_starts_the_new_before_the_old_goes() {
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let mut set = set(json!({}));
        let strategy =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        set.spec.update_strategy = Some(serde_json::from_value(strategy).unwrap());
        let old = [pod("a1", "a", "old", "Running"), pod("b1", "b", "old", "Running")];
        let round = |more: &[Arc<Pod>]| {
            let round = plan(&set, &nodes, &[&old, more].concat(), "new", at());
            (round.create.join(","), round.delete.join(","))
        };
        assert_eq!(round(&[]), ("a".into(), String::new()));
        let mut fresh = Pod::clone(&pod("a2", "a", "new", "Running"));
        assert_eq!(round(&[Arc::new(fresh.clone())]), ("b".into(), "a1".into()));
        fresh.status = None;
        assert_eq!(round(&[Arc::new(fresh)]), (String::new(), String::new()), "it does not serve yet");
        // Back to the old template: the pod that came for the new one goes.
        let stray = [&old[..1], &[pod("a2", "a", "new", "Pending")]].concat();
        let back = plan(&set, &nodes[..1], &stray, "old", at());
        assert_eq!((back.create.len(), back.delete), (0, vec!["a2".to_owned()]));
    }

    #[test]
    fn failed_and_surplus_pods_go() {
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let owned =
            [pod("a1", "a", "h", "Failed"), pod("b1", "b", "h", "Running"), pod("b2", "b", "h", "Running")];
        let round = plan(&set(json!({})), &nodes, &owned, "h", at());
        assert_eq!(
            (round.create.len(), round.delete, round.failed.len()),
            (0, vec!["a1".to_owned(), "b2".into()], 1)
        );
    }
}
