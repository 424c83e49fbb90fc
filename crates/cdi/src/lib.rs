//! The Container Device Interface: files that say what a container needs that is given a device (variables, device
//! nodes, mounts, groups), and devices known by names such as `vendor.com/class=device`.
//!
//! The directories are read when a container asks for a device: drivers write their files just before, and a cache
//! would have to be told of every one of them.
//!
//! **Invariant:** knows nothing of pods; what it finds it gives back as edits, and the runtime applies them.

mod registry;
mod spec;

pub use registry::{Error, Registry};
pub use spec::{DeviceNode, Edits, Hook, Moment};

/// Where files of devices are, the later directory over the earlier.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
