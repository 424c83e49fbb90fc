//! The node agent: pod workers, probes, volumes, status, eviction and the node's own server.
//!
//! [`Kubelet::run`] registers the node, renews its lease and gives every pod bound to the node a worker
//! (`worker`). A worker observes the runtime, asks `plan` what to do, does it, and reports what `status`
//! makes of it. Decisions are pure functions; everything that waits is a task that wakes its worker.
//!
//! **Invariant:** talks to the runtime through `cri` only, and to nobody but the API server.

pub mod admit;
pub mod agent;
pub mod cgroup;
pub mod config;
pub mod configuration;
pub mod container_gc;
pub mod counters;
pub mod cpu;
pub mod credentials;
pub mod csi;
pub mod devices;
pub mod dra;
pub mod duration;
pub mod env;
pub mod eviction;
pub mod image_gc;
pub mod images;
mod kubelet;
pub mod make;
pub mod measured;
pub mod memory;
pub mod node;
pub mod numa;
pub mod observed;
mod orphans;
pub mod plan;
pub mod plugins;
pub mod probe;
pub mod pulled;
pub mod references;
pub mod resize;
pub mod resources;
pub mod security;
pub mod server;
pub mod shutdown;
pub mod spec;
pub mod status;
pub mod swap;
pub mod sysctl;
pub mod topology;
pub mod userns;
pub mod volume;
mod worker;

pub use config::{Config, PeerCheck, ServerConfig};
pub use kubelet::{Error, Kubelet};
pub use streaming;
