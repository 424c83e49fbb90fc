//! `NodeResourcesFit`: a node must have what a pod asks for; of those that have, emptier ones are better
//! (`LeastAllocated`).

use std::borrow::Cow;

use crate::cache::Cache;
use crate::framework::{Changes, CycleState, Plugin, Refusal, SCORE_MAX};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// The row.
pub const PLUGIN: Plugin = Plugin {
    filter: Some(filter),
    score: Some(score),
    weight: 1,
    ..Plugin::named(
        "NodeResourcesFit",
        Changes::NODE_ADDED.and(Changes::NODE_ALLOCATABLE).and(Changes::POD_REMOVED),
    )
};

/// What a node lacks for a pod, in upstream's words.
fn missing(state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Refusal {
    let mut refusal = Refusal { reasons: Vec::new(), resolvable: true, fatal: false };
    if node.pods.len() as i64 + 1 > node.allocatable.pods {
        refusal.reasons.push("Too many pods".into());
    }
    let wanted = &pod.requests;
    if wanted.is_zero() {
        return refusal;
    }
    let mut check = |name: Cow<'static, str>, wanted: i64, used: i64, offered: i64| {
        if wanted > 0 && wanted > offered - used {
            refusal.reasons.push(name);
            // A pod that asks for more than the whole node is not helped by emptying it.
            refusal.resolvable &= wanted <= offered;
        }
    };
    let (used, offered) = (&node.requested, &node.allocatable);
    check("Insufficient cpu".into(), wanted.milli_cpu, used.milli_cpu, offered.milli_cpu);
    check("Insufficient memory".into(), wanted.memory, used.memory, offered.memory);
    let storage = (wanted.ephemeral_storage, used.ephemeral_storage, offered.ephemeral_storage);
    check("Insufficient ephemeral-storage".into(), storage.0, storage.1, storage.2);
    for (name, wanted) in &wanted.scalar {
        let amount = |of: &crate::resources::Resources| of.scalar.get(name).copied().unwrap_or(0);
        if state.devices.stands_behind(name, amount(offered)) {
            continue;
        }
        check(format!("Insufficient {name}").into(), *wanted, amount(used), amount(offered));
    }
    refusal
}

fn filter(state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    let refusal = missing(state, pod, node);
    if refusal.reasons.is_empty() { Ok(()) } else { Err(refusal) }
}

/// Mean of the shares of CPU and memory that would still be free.
fn score(_: &CycleState, pod: &PodInfo, node: &NodeInfo, _: &Cache) -> i64 {
    let free = |used: i64, offered: i64| {
        if offered == 0 || used > offered { 0 } else { (offered - used) * SCORE_MAX / offered }
    };
    let offered = &node.allocatable;
    let parts = [
        (node.weights.0 + pod.weights.0, offered.milli_cpu),
        (node.weights.1 + pod.weights.1, offered.memory),
    ];
    let counted: Vec<_> = parts.into_iter().filter(|(_, offered)| *offered > 0).collect();
    if counted.is_empty() {
        return 0;
    }
    counted.iter().map(|(used, offered)| free(*used, *offered)).sum::<i64>() / counted.len() as i64
}
