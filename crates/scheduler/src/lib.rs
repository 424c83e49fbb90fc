//! Assigns pods to nodes: snapshot, queue, framework, one module per plugin, preemption.
//!
//! The flow of a pod: informer -> [`queue`] (active, back-off, unschedulable, gated) -> [`cycle`]: filters
//! and scores of the plugin table over the [`cache`] of nodes -> assumed on a node -> bound through the API,
//! in the background. Pods that fit nowhere may make room by [`preemption`] and otherwise wait for an event
//! that one of the plugins that refused them has asked for.
//!
//! Everything but [`run`] is pure: values in, decisions out.

pub mod cache;
pub mod cycle;
pub mod devices;
pub mod framework;
pub mod labels;
pub mod node_info;
pub mod plugins;
pub mod pod_info;
pub mod preemption;
pub mod queue;
pub mod resources;
pub mod run;
mod run_devices;
mod run_volumes;
pub mod state;
pub mod storage;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_devices;

pub use run::{SCHEDULER_NAME, run};
