//! What claims have already.

use std::collections::{BTreeMap, HashMap, HashSet};

use api::k8s_openapi::api::resource::v1::AllocationResult;
use meta::Quantity;

use crate::DeviceId;

/// Devices that are allocated, and what is consumed of those that are shared.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// Devices that one claim has.
    pub(crate) whole: HashSet<DeviceId>,
    /// Capacity consumed of shared devices.
    pub(crate) capacity: HashMap<DeviceId, BTreeMap<String, Quantity>>,
}

impl Taken {
    /// Adds what one claim has. Administrative access takes nothing.
    pub fn add(&mut self, allocation: &AllocationResult) {
        let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
        for result in results.filter(|result| result.admin_access != Some(true)) {
            let id = DeviceId::new(&result.driver, &result.pool, &result.device);
            if result.share_id.is_none() {
                self.whole.insert(id);
                continue;
            }
            let consumed = self.capacity.entry(id).or_default();
            for (name, amount) in result.consumed_capacity.iter().flatten() {
                let amount = Quantity::parse(&amount.0).unwrap_or_else(|_| Quantity::from_units(0));
                let sum = consumed.get(name).map_or(amount, |before| before.plus(amount));
                consumed.insert(name.clone(), sum);
            }
        }
    }

    /// Whether anybody has the device, or a part of it.
    pub(crate) fn any(&self, id: &DeviceId) -> bool {
        self.whole.contains(id) || self.capacity.contains_key(id)
    }
}
