//! `NodeResourcesBalancedAllocation`: nodes are better where CPU and memory are used in like proportion.

use crate::cache::Cache;
use crate::framework::{Changes, CycleState, Plugin, Prepared, SCORE_MAX};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// The row.
pub const PLUGIN: Plugin = Plugin {
    prepare_score: Some(prepare_score),
    score: Some(score),
    weight: 1,
    ..Plugin::named("NodeResourcesBalancedAllocation", Changes::NONE)
};

fn prepare_score(pod: &PodInfo, _: &Cache, _: &[usize], _: &mut CycleState) -> Prepared {
    if pod.requests.is_zero() { Prepared::Skip } else { Prepared::Run }
}

fn score(_: &CycleState, pod: &PodInfo, node: &NodeInfo, _: &Cache) -> i64 {
    let share = |used: i64, offered: i64| {
        if offered == 0 { 1.0 } else { (used as f64 / offered as f64).min(1.0) }
    };
    let (used, offered) = (&node.requested, &node.allocatable);
    let cpu = share(used.milli_cpu + pod.requests.milli_cpu, offered.milli_cpu);
    let memory = share(used.memory + pod.requests.memory, offered.memory);
    // The standard deviation of two numbers is half their difference.
    ((1.0 - (cpu - memory).abs() / 2.0) * SCORE_MAX as f64) as i64
}
