//! The node itself: what the machine has, the Node object, the lease that says it is alive.

pub mod lease;
pub mod machine;
pub mod object;
pub mod register;
