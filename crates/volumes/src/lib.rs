//! How claims and volumes find each other: annotations, matching, binding. Functions over values, shared by the
//! controller that binds, the scheduler that chooses where, and those who make volumes.
//!
//! **Invariant:** no clients, no caches, no clock.

mod binding;
mod matching;
mod node_selector;

pub use binding::{bind_claim, bind_volume, claim_names, claim_of, is_delayed, unbind_volume};
pub use matching::{allows_node, best_match, check, is_bound_to, quantity, storage};
pub use node_selector::NodeTerm;

/// The class of volumes made on the node's own disk.
pub const LOCAL_CLASS: &str = "local-path";
/// Provisioner of [`LOCAL_CLASS`].
pub const LOCAL_PROVISIONER: &str = "local.ferry.dev";

/// Annotations of claims and volumes.
pub mod annotation {
    /// The claim has been bound, completely, once.
    pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
    /// The binding was the controller's choice, so it may be undone.
    pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
    /// Who made a volume.
    pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
    /// The node that a claim's volume is to be reachable from.
    pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
    /// Who is to make a claim's volume.
    pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
    /// The same under its older name, which provisioners still read.
    pub const STORAGE_PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
    /// Who is to make a claim's volume larger.
    pub const STORAGE_RESIZER: &str = "volume.kubernetes.io/storage-resizer";
}

/// An annotation's value, if it is there.
pub fn annotated<'a>(metadata: &'a api::prelude::ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Sets an annotation. True if it was another before.
pub fn annotate(metadata: &mut api::prelude::ObjectMeta, name: &str, value: &str) -> bool {
    let all = metadata.annotations.get_or_insert_default();
    all.insert(name.to_owned(), value.to_owned()).as_deref() != Some(value)
}
