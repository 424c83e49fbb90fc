//! `VolumeRestrictions`: a claim that one pod at a time may use is not given to a second.

use std::collections::HashSet;

use crate::cache::Cache;
use crate::framework::{Changes, CycleState, Plugin, Prepared, Refusal};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// The row.
pub const PLUGIN: Plugin = Plugin {
    prepare_filter: Some(prepare_filter),
    filter: Some(filter),
    ..Plugin::named("VolumeRestrictions", Changes::POD_REMOVED.and(Changes::STORAGE))
};

/// Claims for one pod at a time.
#[derive(Debug, Clone, Default)]
pub struct State {
    claims: HashSet<String>,
    /// Nodes with pods that use them.
    nodes: HashSet<String>,
}

impl State {
    fn is_used_on(&self, node: &NodeInfo) -> bool {
        node.pods.iter().any(|p| p.info.claims.iter().any(|(key, _)| self.claims.contains(key)))
    }
}

fn prepare_filter(pod: &PodInfo, cache: &Cache, state: &mut CycleState) -> Prepared {
    let exclusive = |key: &String| {
        let claim = cache.storage.claims.get(key);
        let modes = claim.and_then(|c| c.spec.as_ref()?.access_modes.clone()).unwrap_or_default();
        modes.iter().any(|mode| mode == "ReadWriteOncePod")
    };
    let claims: HashSet<String> = pod.claims.iter().map(|(key, _)| key.clone()).filter(exclusive).collect();
    if claims.is_empty() {
        return Prepared::Skip;
    }
    let mut found = State { claims, nodes: HashSet::new() };
    found.nodes = cache.nodes.iter().filter(|n| found.is_used_on(n)).map(|n| n.name().to_owned()).collect();
    state.exclusive = found;
    Prepared::Run
}

fn filter(state: &CycleState, _: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    let elsewhere = state.exclusive.nodes.iter().any(|name| name != node.name());
    if !elsewhere && !state.exclusive.is_used_on(node) {
        return Ok(());
    }
    let why = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    Err(if elsewhere { Refusal::lasting(why) } else { Refusal::resolvable(why) })
}
