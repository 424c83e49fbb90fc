//! What a node's silence means for its conditions and taints.

use std::time::Duration;

use api::k8s_openapi::api::core::v1::{NodeCondition, Taint};
use api::prelude::*;
use jiff::{SignedDuration, Timestamp};

/// A node that has not been heard of for this long is unknown (`--node-monitor-grace-period`).
pub const GRACE: SignedDuration = SignedDuration::from_secs(50);
/// A node that has never reported gets this long from its creation (`--node-startup-grace-period`).
pub const STARTUP_GRACE: SignedDuration = SignedDuration::from_secs(60);

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that become unknown together with a node.
const HEARTBEAT_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Conditions that keep pods away while they have the given status.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

/// A condition of a node.
pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Status of the Ready condition; `Unknown` without one.
pub fn ready_status(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |c| c.status.as_str())
}

/// When a node's silence will have lasted too long. `heard` is when this process last saw a sign of life,
/// by its own clock: clocks of nodes are not trusted.
pub fn deadline(node: &Node, heard: Timestamp) -> Timestamp {
    if condition(node, "Ready").is_some() {
        return heard.checked_add(GRACE).unwrap_or(Timestamp::MAX);
    }
    let created = node.metadata.creation_timestamp.as_ref().map_or(heard, |t| t.0);
    created.checked_add(STARTUP_GRACE).unwrap_or(Timestamp::MAX)
}

/// The conditions of a node that has been silent for too long, or `None` if they say so already.
pub fn unknown_conditions(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut conditions = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let before = conditions.clone();
    for kind in HEARTBEAT_CONDITIONS {
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(known) if known.status == "Unknown" => {}
            Some(known) => {
                known.status = "Unknown".into();
                known.reason = Some("NodeStatusUnknown".into());
                known.message = Some("Kubelet stopped posting node status.".into());
                known.last_transition_time = Some(Time(now));
            }
            None => conditions.push(NodeCondition {
                type_: kind.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    (conditions != before).then_some(conditions)
}

/// The taints a node should have, or `None` if it has them. With `evict`, pods that do not tolerate a node
/// that is not ready have to leave it; not so when every node is in trouble, for then it is the network.
pub fn taints(node: &Node, evict: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, key) in CONDITION_TAINTS {
        if condition(node, kind).is_some_and(|c| c.status == status) {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    if evict {
        match condition(node, "Ready").map(|c| c.status.as_str()) {
            Some("False") => wanted.push((NOT_READY, "NoExecute")),
            Some("Unknown") => wanted.push((UNREACHABLE, "NoExecute")),
            _ => {}
        }
    }
    let have = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let ours = |taint: &Taint| {
        let execute = [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) && taint.effect == "NoExecute";
        let keys = CONDITION_TAINTS.iter().map(|row| row.2).chain([UNSCHEDULABLE]);
        execute || (taint.effect == "NoSchedule" && keys.into_iter().any(|key| key == taint.key))
    };
    let is = |taint: &Taint, (key, effect): (&str, &str)| taint.key == key && taint.effect == effect;
    let mut taints: Vec<Taint> =
        have.iter().filter(|t| !ours(t) || wanted.iter().any(|w| is(t, *w))).cloned().collect();
    for pair in wanted {
        if !taints.iter().any(|taint| is(taint, pair)) {
            taints.push(Taint {
                key: pair.0.into(),
                effect: pair.1.into(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    (taints != have).then_some(taints)
}

/// How long until `deadline`.
pub fn until(deadline: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(now)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(ready: Option<&str>, taints: serde_json::Value) -> Node {
        let conditions = ready.map(|status| json!([{"type": "Ready", "status": status}]));
        Node::from_value(json!({"metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"taints": taints}, "status": {"conditions": conditions}}))
        .unwrap()
    }

    fn texts(taints: Vec<Taint>) -> Vec<String> {
        taints.iter().map(|t| format!("{}:{}", t.key.rsplit('/').next().unwrap(), t.effect)).collect()
    }

    #[test]
    fn taints_follow_conditions() {
        let now = Timestamp::UNIX_EPOCH;
        let of = |node: &Node, evict| texts(taints(node, evict, now).unwrap());
        assert_eq!(
            of(&node(Some("False"), json!([])), true),
            ["not-ready:NoSchedule", "not-ready:NoExecute"]
        );
        assert_eq!(of(&node(Some("Unknown"), json!([])), false), ["unreachable:NoSchedule"]);
        let mine = json!([{"key": "mine", "effect": "NoExecute"},
            {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]);
        assert_eq!(of(&node(Some("True"), mine), true), ["mine:NoExecute"]);
        assert!(taints(&node(Some("True"), json!([])), true, now).is_none());
    }

    #[test]
    fn silence() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let silent = node(Some("True"), json!([]));
        assert_eq!(until(deadline(&silent, now), now).as_secs(), 50);
        let conditions = unknown_conditions(&silent, now).unwrap();
        assert_eq!(conditions[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(conditions[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
        assert!(
            until(deadline(&node(None, json!([])), now), now).is_zero(),
            "never reported since its creation"
        );
    }
}
