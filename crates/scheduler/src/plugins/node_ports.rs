//! `NodePorts`: two pods cannot have the same port of a node.

use crate::cache::Cache;
use crate::framework::{Changes, CycleState, Plugin, Prepared, Refusal};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// The row.
pub const PLUGIN: Plugin = Plugin {
    prepare_filter: Some(prepare_filter),
    filter: Some(filter),
    ..Plugin::named("NodePorts", Changes::NODE_ADDED.and(Changes::POD_REMOVED))
};

fn prepare_filter(pod: &PodInfo, _: &Cache, _: &mut CycleState) -> Prepared {
    if pod.host_ports.is_empty() { Prepared::Skip } else { Prepared::Run }
}

fn filter(_: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    if pod.host_ports.iter().any(|port| node.ports.iter().any(|taken| port.conflicts(taken))) {
        return Err(Refusal::resolvable("node(s) didn't have free ports for the requested pod ports"));
    }
    Ok(())
}
