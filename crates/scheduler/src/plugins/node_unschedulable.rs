//! `NodeUnschedulable`: cordoned nodes take only pods that tolerate that.

use api::k8s_openapi::api::core::v1::Taint;

use crate::framework::{Changes, CycleState, Plugin, Refusal};
use crate::node_info::NodeInfo;
use crate::pod_info::{PodInfo, tolerates};

/// The row.
pub const PLUGIN: Plugin = Plugin {
    filter: Some(filter),
    ..Plugin::named("NodeUnschedulable", Changes::NODE_ADDED.and(Changes::NODE_TAINTS))
};

fn filter(_: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    if node.node.spec.as_ref().and_then(|s| s.unschedulable) != Some(true) {
        return Ok(());
    }
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Default::default()
    };
    if pod.tolerations().iter().any(|t| tolerates(t, &taint)) {
        return Ok(());
    }
    Err(Refusal::lasting("node(s) were unschedulable"))
}
