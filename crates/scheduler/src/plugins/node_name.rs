//! `NodeName`: a pod that names its node goes there or nowhere.

use crate::framework::{Changes, CycleState, Plugin, Refusal};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// The row.
pub const PLUGIN: Plugin = Plugin { filter: Some(filter), ..Plugin::named("NodeName", Changes::NODE_ADDED) };

fn filter(_: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    let wanted = pod.pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
    if wanted.is_empty() || wanted == node.name() {
        return Ok(());
    }
    Err(Refusal::lasting("node(s) didn't match the requested node name"))
}
