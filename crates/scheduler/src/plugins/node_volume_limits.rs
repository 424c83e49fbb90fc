//! `NodeVolumeLimits`: a node takes no more volumes of a driver than the driver says it can.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api::prelude::*;

use crate::cache::Cache;
use crate::framework::{Changes, CycleState, Plugin, Prepared, Refusal};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::storage::Storage;

/// The row.
pub const PLUGIN: Plugin = Plugin {
    prepare_filter: Some(prepare_filter),
    filter: Some(filter),
    ..Plugin::named("NodeVolumeLimits", Changes::STORAGE.and(Changes::POD_REMOVED).and(Changes::NODE_ADDED))
};

const FULL: &str = "node(s) exceed max volume count";

/// A driver's volume: the driver and a name that is the volume's alone.
type Volume = (String, String);

/// What the pod brings, and what nodes have and can have.
#[derive(Debug, Clone, Default)]
pub struct State {
    wanted: HashSet<Volume>,
    nodes: Arc<HashMap<String, Room>>,
}

/// A node's volumes of drivers that have limits.
#[derive(Debug, Default)]
struct Room {
    limits: HashMap<String, usize>,
    taken: HashSet<Volume>,
}

/// The driver's volume behind a claim, if it is one. A claim without a volume counts for its class' driver.
fn of_claim(storage: &Storage, key: &str) -> Option<Volume> {
    let claim = storage.claims.get(key)?;
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    match storage.volumes.get(named) {
        Some(volume) => {
            let source = volume.spec.as_ref()?.csi.as_ref()?;
            Some((source.driver.clone(), source.volume_handle.clone()))
        }
        None => {
            let class = storage.class_of(claim)?;
            Some((class.provisioner.clone(), format!("claim {}", claim.uid())))
        }
    }
}

fn limits_of(node: &CSINode) -> HashMap<String, usize> {
    let limit = |driver: &api::k8s_openapi::api::storage::v1::CSINodeDriver| {
        let count = driver.allocatable.as_ref()?.count?;
        Some((driver.name.clone(), usize::try_from(count).unwrap_or(0)))
    };
    node.spec.drivers.iter().filter_map(limit).collect()
}

fn prepare_filter(pod: &PodInfo, cache: &Cache, state: &mut CycleState) -> Prepared {
    let storage = &cache.storage;
    let limited: HashSet<&str> = (storage.drivers.values())
        .flat_map(|node| node.spec.drivers.iter())
        .filter(|driver| driver.allocatable.as_ref().is_some_and(|a| a.count.is_some()))
        .map(|driver| driver.name.as_str())
        .collect();
    if limited.is_empty() || pod.claims.is_empty() {
        return Prepared::Skip;
    }
    let of_pod = |pod: &PodInfo| -> HashSet<Volume> {
        let all = pod.claims.iter().filter_map(|(key, _)| of_claim(storage, key));
        all.filter(|(driver, _)| limited.contains(driver.as_str())).collect()
    };
    let wanted = of_pod(pod);
    if wanted.is_empty() {
        return Prepared::Skip;
    }
    let mut nodes: HashMap<String, Room> = HashMap::new();
    for node in &cache.nodes {
        let limits = storage.drivers.get(node.name()).map(|node| limits_of(node)).unwrap_or_default();
        let taken = node.pods.iter().flat_map(|placed| of_pod(&placed.info)).collect();
        nodes.insert(node.name().to_owned(), Room { limits, taken });
    }
    // What is still attached takes room, whoever has it.
    for attachment in storage.attachments.values() {
        let named = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
        let source = storage.volumes.get(named).and_then(|v| v.spec.as_ref()?.csi.as_ref());
        if let (Some(source), Some(room)) = (source, nodes.get_mut(&attachment.spec.node_name)) {
            room.taken.insert((source.driver.clone(), source.volume_handle.clone()));
        }
    }
    state.limits = State { wanted, nodes: Arc::new(nodes) };
    Prepared::Run
}

fn filter(state: &CycleState, _: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    let State { wanted, nodes } = &state.limits;
    let Some(room) = nodes.get(node.name()) else { return Ok(()) };
    for (driver, limit) in &room.limits {
        let of_driver = |volume: &&Volume| volume.0 == *driver;
        let new = wanted.difference(&room.taken).filter(of_driver).count();
        let taken = room.taken.iter().filter(of_driver).count();
        if new > 0 && taken + new > *limit {
            return Err(Refusal::resolvable(FULL));
        }
    }
    Ok(())
}
