//! Slices as they are published, found by node and by pool, and the rules that taint their devices.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::k8s_openapi::api::resource::v1::Device;
use api::prelude::*;

/// Driver and pool.
type PoolKey = (String, String);
/// Slices by name.
type ByName = BTreeMap<String, Arc<ResourceSlice>>;

/// All slices and taint rules of a cluster.
#[derive(Debug, Clone, Default)]
pub struct Slices {
    by_node: HashMap<String, ByName>,
    shared: ByName,
    by_pool: HashMap<PoolKey, ByName>,
    known: HashMap<String, Arc<ResourceSlice>>,
    rules: BTreeMap<String, Arc<DeviceTaintRule>>,
}

fn pool_of(slice: &ResourceSlice) -> PoolKey {
    (slice.spec.driver.clone(), slice.spec.pool.name.clone())
}

impl Slices {
    /// A slice is new or has changed.
    pub fn set(&mut self, slice: Arc<ResourceSlice>) {
        let name = slice.name().to_owned();
        self.remove(&name);
        let near = match slice.spec.node_name.as_deref().unwrap_or_default() {
            "" => &mut self.shared,
            node => self.by_node.entry(node.to_owned()).or_default(),
        };
        near.insert(name.clone(), slice.clone());
        self.by_pool.entry(pool_of(&slice)).or_default().insert(name.clone(), slice.clone());
        self.known.insert(name, slice);
    }

    /// A slice is gone.
    pub fn remove(&mut self, name: &str) {
        let Some(old) = self.known.remove(name) else { return };
        self.shared.remove(name);
        let node = old.spec.node_name.as_deref().unwrap_or_default();
        if let Some(near) = self.by_node.get_mut(node) {
            near.remove(name);
            if near.is_empty() {
                self.by_node.remove(node);
            }
        }
        let pool = pool_of(&old);
        if let Some(own) = self.by_pool.get_mut(&pool) {
            own.remove(name);
            if own.is_empty() {
                self.by_pool.remove(&pool);
            }
        }
    }

    /// A rule is new or has changed.
    pub fn set_rule(&mut self, rule: Arc<DeviceTaintRule>) {
        self.rules.insert(rule.name().to_owned(), rule);
    }

    /// A rule is gone.
    pub fn remove_rule(&mut self, name: &str) {
        self.rules.remove(name);
    }

    /// Slices that may have devices for a node.
    pub(crate) fn near<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a ResourceSlice> {
        let own = self.by_node.get(node).into_iter().flat_map(BTreeMap::values);
        own.chain(self.shared.values()).map(|slice| &**slice)
    }

    /// All slices of a pool.
    pub(crate) fn of_pool<'a>(&'a self, driver: &str, pool: &str) -> impl Iterator<Item = &'a ResourceSlice> {
        let found = self.by_pool.get(&(driver.to_owned(), pool.to_owned()));
        found.into_iter().flat_map(BTreeMap::values).map(|slice| &**slice)
    }

    /// A device as its pool's newest generation has it.
    pub(crate) fn device(&self, driver: &str, pool: &str, device: &str) -> Option<&Device> {
        self.newest(driver, pool).find(|found| found.name == device)
    }

    /// Every device of the newest generations: driver, pool and name.
    pub(crate) fn devices(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.by_pool.keys().flat_map(|(driver, pool)| {
            self.newest(driver, pool).map(|device| (driver.as_str(), pool.as_str(), device.name.as_str()))
        })
    }

    fn newest<'a>(&'a self, driver: &str, pool: &str) -> impl Iterator<Item = &'a Device> {
        let generation = self.of_pool(driver, pool).map(|slice| slice.spec.pool.generation).max();
        let current = self.of_pool(driver, pool).filter(move |s| Some(s.spec.pool.generation) == generation);
        current.flat_map(|slice| slice.spec.devices.iter().flatten())
    }

    /// The rules.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &DeviceTaintRule> {
        self.rules.values().map(|rule| &**rule)
    }
}
