//! Real clusters for tests: a Ferry of its own per test, with its own data directory and network namespace.
//!
//! [`Cluster::start`] moves the calling thread into a new network namespace, starts the real binary there and
//! waits for a ready node. Threads and processes started from that thread afterwards inherit the namespace, so
//! `kubectl`, the API client and anything else reach the cluster, and clusters of other threads do not meet.
//!
//! **Invariant:** talks to the cluster as a user does: its command line, HTTPS and the admin kubeconfig.

pub mod census;
pub mod clients;
pub mod cluster;
pub mod containerd;
pub mod csi;
pub mod dra;
pub mod hook;
pub mod image;
pub mod kinds;
pub mod pods;
pub mod process;
pub mod registry;
pub mod runner;
pub mod webhook;

pub use cluster::{Cluster, Scope, binary};
pub use runner::Case;
