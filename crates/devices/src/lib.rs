//! Which devices claims get (`resource.k8s.io`, KEP-4381): pools of slices, selectors, constraints, counters, shared
//! capacity, and the search for an allocation on one node. Functions over values, shared by the scheduler that
//! allocates, the controller that makes claims and the kubelet that prepares them.
//!
//! **Invariant:** no clients, no caches of the API, no clock.

mod capacity;
pub mod claims;
mod constraint;
mod eviction;
mod extended;
mod outcome;
mod pools;
mod search;
mod selectors;
mod slices;
mod taints;
mod taken;

#[cfg(test)]
mod tests;

pub use eviction::{Eviction, eviction, results, selected};
pub use extended::{EXTENDED_CLAIM, Mapping, extended_requests, implicit_name};
pub use search::{Failure, Inventory, allocate};
pub use selectors::Selectors;
pub use slices::Slices;
pub use taints::tolerates;
pub use taken::Taken;

/// Keeps a claim for as long as devices are allocated for it.
pub const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Annotation of a claim made from a template: the name the pod has for it.
pub const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Most devices of one allocation.
pub const RESULTS_MAX: usize = 32;
/// Most users of a claim at once.
pub const RESERVED_FOR_MAX: usize = 256;

/// A device: its driver, its pool, its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// Name of the driver.
    pub driver: String,
    /// Name of the pool.
    pub pool: String,
    /// Name in the pool.
    pub device: String,
}

impl DeviceId {
    /// From its parts.
    pub fn new(driver: &str, pool: &str, device: &str) -> DeviceId {
        DeviceId { driver: driver.to_owned(), pool: pool.to_owned(), device: device.to_owned() }
    }
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.driver, self.pool, self.device)
    }
}
