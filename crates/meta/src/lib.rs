//! The vocabulary of every Kubernetes object: names of kinds, `Object`, selectors, quantities, `Status`, patches.
//!
//! **Invariant:** knows nothing of HTTP, storage or any one kind.

pub mod cron;
pub mod gvk;
pub mod names;
pub mod object;
pub mod patch;
pub mod quantity;
pub mod selector;
pub mod status;
pub mod user;

pub use gvk::{Gvk, Gvr};
pub use object::Object;
pub use quantity::Quantity;
pub use selector::{FieldSelector, LabelSelector};
pub use status::{FieldError, Reason, Status};
pub use user::UserInfo;
