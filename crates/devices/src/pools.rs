//! Pools as one node sees them: the newest generation of each, whether all of its slices are there, and whether
//! they make sense.

use std::collections::{BTreeMap, BTreeSet};

use api::k8s_openapi::api::core::v1::NodeSelector;
use api::k8s_openapi::api::resource::v1::{CounterSet, Device};
use api::prelude::*;
use volumes::NodeTerm;

use crate::Slices;

/// A pool with what of it a node can use.
#[derive(Debug, Default)]
pub(crate) struct Pool<'a> {
    /// Its driver.
    pub driver: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Slices are missing: its driver is at work on it.
    pub incomplete: bool,
    /// It contradicts itself.
    pub invalid: bool,
    /// Slices with devices for the node, by name.
    pub slices: Vec<&'a ResourceSlice>,
    /// Slices whose devices are for other nodes: they count for counters.
    pub elsewhere: Vec<&'a ResourceSlice>,
    /// Counters that its devices share.
    pub counters: BTreeMap<&'a str, &'a CounterSet>,
}

/// Whether a node is among those named, selected, or all.
pub(crate) fn reaches(
    node: &Node,
    name: Option<&str>,
    all: Option<bool>,
    selector: Option<&NodeSelector>,
) -> bool {
    match (name.filter(|name| !name.is_empty()), all, selector) {
        (Some(name), ..) => name == node.name(),
        (None, Some(true), _) => true,
        (None, _, Some(selector)) => matches(selector, node),
        _ => false,
    }
}

/// Whether a node is selected.
pub(crate) fn matches(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| NodeTerm::compile(term).matches(node))
}

/// Whether a device of a slice that says so per device is for a node.
pub(crate) fn device_reaches(device: &Device, node: &Node) -> bool {
    reaches(node, device.node_name.as_deref(), device.all_nodes, device.node_selector.as_ref())
}

fn is_relevant(slice: &ResourceSlice, node: &Node) -> bool {
    let spec = &slice.spec;
    if spec.per_device_node_selection == Some(true) {
        return spec.devices.iter().flatten().any(|device| device_reaches(device, node));
    }
    reaches(node, spec.node_name.as_deref(), spec.all_nodes, spec.node_selector.as_ref())
}

/// The pools that a node can use. Those with devices that have to become ready first come last.
pub(crate) fn gather<'a>(slices: &'a Slices, node: &Node) -> Vec<Pool<'a>> {
    let mut found: BTreeMap<(&str, &str), Vec<&'a ResourceSlice>> = BTreeMap::new();
    for slice in slices.near(node.name()).filter(|slice| is_relevant(slice, node)) {
        let own = found.entry((&slice.spec.driver, &slice.spec.pool.name)).or_default();
        let known = own.first().map_or(i64::MIN, |first| first.spec.pool.generation);
        let generation = slice.spec.pool.generation;
        if generation > known {
            own.clear();
        }
        if generation >= known {
            own.push(slice);
        }
    }
    let mut pools: Vec<Pool<'a>> = Vec::new();
    for ((driver, name), own) in found {
        let Some(first) = own.first().map(|slice| &slice.spec.pool) else { continue };
        let all: Vec<&ResourceSlice> = slices.of_pool(driver, name).collect();
        if all.iter().any(|slice| slice.spec.pool.generation > first.generation) {
            // The newer generation has nothing for this node.
            continue;
        }
        let current = all.iter().filter(|slice| slice.spec.pool.generation == first.generation);
        let current: Vec<&ResourceSlice> = current.copied().collect();
        let complete = i64::try_from(current.len()).is_ok_and(|count| count == first.resource_slice_count);
        pools.push(match complete {
            true => build(driver, name, own, &current),
            false => Pool { driver, name, incomplete: true, ..Pool::default() },
        });
    }
    let waits = |pool: &Pool<'_>| {
        let mut devices = pool.slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
        devices.any(|device| device.binding_conditions.is_some())
    };
    pools.sort_by_key(waits);
    pools
}

fn build<'a>(
    driver: &'a str,
    name: &'a str,
    own: Vec<&'a ResourceSlice>,
    all: &[&'a ResourceSlice],
) -> Pool<'a> {
    let counts = |slice: &&ResourceSlice| slice.spec.shared_counters.as_ref().is_some_and(|c| !c.is_empty());
    let mut pool = Pool { driver, name, ..Pool::default() };
    let here: BTreeSet<&str> = own.iter().map(|slice| slice.name()).collect();
    pool.elsewhere = all.iter().filter(|s| !counts(s) && !here.contains(s.name())).copied().collect();
    pool.slices = own.into_iter().filter(|slice| !counts(slice)).collect();
    pool.slices.sort_by(|a, b| a.name().cmp(b.name()));
    for set in all.iter().flat_map(|slice| slice.spec.shared_counters.iter().flatten()) {
        pool.invalid |= pool.counters.insert(&set.name, set).is_some();
    }
    let mut names = BTreeSet::new();
    let devices = |slices: &[&'a ResourceSlice]| -> Vec<&'a Device> {
        slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten()).collect()
    };
    pool.invalid |= devices(&pool.slices).iter().any(|device| !names.insert(device.name.as_str()));
    let unknown = |device: &&Device| {
        device.consumes_counters.iter().flatten().any(|consumed| {
            let set = pool.counters.get(consumed.counter_set.as_str());
            set.is_none_or(|set| consumed.counters.keys().any(|name| !set.counters.contains_key(name)))
        })
    };
    let strange = devices(&pool.slices).iter().any(unknown) || devices(&pool.elsewhere).iter().any(unknown);
    pool.invalid |= strange;
    pool
}
