//! Which pods nobody else will clean away.

use std::collections::HashSet;
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::Taint;
use api::prelude::*;

use crate::pods;

/// Finished pods kept cluster-wide (`--terminated-pod-gc-threshold`).
pub const TERMINATED_MAX: usize = 12_500;

/// Why a pod is cleaned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its node does not exist.
    Orphaned,
    /// It is being deleted and was never bound to a node, so no kubelet will finish that.
    Unscheduled,
    /// It is being deleted on a node that is out of service.
    OutOfService,
}

impl Why {
    /// Message of the pod's DisruptionTarget condition; none where the pod had not begun to work.
    pub fn message(self) -> Option<&'static str> {
        match self {
            Why::Orphaned => Some("PodGC: node no longer exists"),
            Why::OutOfService => Some("PodGC: node is out of service"),
            Why::Unscheduled => None,
        }
    }
}

fn is_out_of_service(node: &Node) -> bool {
    let tainted = |taint: &Taint| taint.key == "node.kubernetes.io/out-of-service";
    let ready = crate::nodelifecycle::plan::ready_status(node) == "True";
    !ready && node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(tainted)
}

/// Decides about one pod; `node` is its node, if it exists.
pub fn verdict(pod: &Pod, node: Option<&Node>) -> Option<Why> {
    match (pods::node_name(pod), node) {
        ("", _) => pod.is_terminating().then_some(Why::Unscheduled),
        (_, None) => Some(Why::Orphaned),
        (_, Some(node)) => (pod.is_terminating() && is_out_of_service(node)).then_some(Why::OutOfService),
    }
}

/// Finished pods beyond the threshold, evicted ones first, then the oldest.
pub fn surplus(all: &[Arc<Pod>], threshold: usize) -> Vec<Arc<Pod>> {
    let mut finished: Vec<&Arc<Pod>> = all.iter().filter(|pod| pods::is_finished(pod)).collect();
    let excess = finished.len().saturating_sub(threshold);
    let evicted = |pod: &Pod| pod.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    finished.sort_by(|a, b| {
        evicted(b).cmp(&evicted(a)).then(created(a).cmp(&created(b))).then(a.name().cmp(b.name()))
    });
    let mut seen = HashSet::new();
    finished.into_iter().take(excess).filter(|pod| seen.insert(pod.key())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, node: &str, phase: &str, leaving: bool) -> Arc<Pod> {
        let mut value = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase}});
        if leaving {
            value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        Arc::new(Pod::from_value(value).unwrap())
    }

    #[test]
    fn verdicts() {
        let node = Node::default();
        let out = Node::from_value(json!({"metadata": {"name": "n"},
            "spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]}}))
        .unwrap();
        for (pod, node, why) in [
            (pod("a", "", "Pending", false), None, None),
            (pod("a", "", "Pending", true), None, Some(Why::Unscheduled)),
            (pod("a", "n", "Running", false), None, Some(Why::Orphaned)),
            (pod("a", "n", "Running", true), Some(&node), None),
            (pod("a", "n", "Running", true), Some(&out), Some(Why::OutOfService)),
            (pod("a", "n", "Running", false), Some(&out), None),
        ] {
            assert_eq!(verdict(&pod, node), why, "{pod:?}");
        }
    }

    #[test]
    fn the_surplus_is_finished_pods_only() {
        let all = [
            pod("b", "n", "Failed", false),
            pod("a", "n", "Succeeded", false),
            pod("c", "n", "Running", false),
        ];
        let names: Vec<_> = surplus(&all, 1).iter().map(|p| p.name().to_owned()).collect();
        assert_eq!(names, ["a"]);
        assert!(surplus(&all, 2).is_empty());
    }
}
