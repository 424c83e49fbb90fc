//! `NodeAffinity`: node selectors, and required and preferred affinity to nodes.

use crate::cache::Cache;
use crate::framework::{Changes, CycleState, Plugin, Prepared, Refusal, normalize_up};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// The row.
pub const PLUGIN: Plugin = Plugin {
    prepare_filter: Some(prepare_filter),
    filter: Some(filter),
    prepare_score: Some(prepare_score),
    score: Some(score),
    normalize: Some(normalize_up),
    weight: 2,
    ..Plugin::named("NodeAffinity", Changes::NODE_ADDED.and(Changes::NODE_LABELS))
};

fn prepare_filter(pod: &PodInfo, _: &Cache, _: &mut CycleState) -> Prepared {
    if pod.node_selector.is_empty() && pod.node_terms.is_none() { Prepared::Skip } else { Prepared::Run }
}

fn filter(_: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    if pod.allows_node(&node.node) {
        return Ok(());
    }
    Err(Refusal::lasting("node(s) didn't match Pod's node affinity/selector"))
}

fn prepare_score(pod: &PodInfo, _: &Cache, _: &[usize], _: &mut CycleState) -> Prepared {
    if pod.preferred_nodes.is_empty() { Prepared::Skip } else { Prepared::Run }
}

fn score(_: &CycleState, pod: &PodInfo, node: &NodeInfo, _: &Cache) -> i64 {
    pod.preferred_nodes.iter().filter(|(_, term)| term.matches(&node.node)).map(|(weight, _)| weight).sum()
}
