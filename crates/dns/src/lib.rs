//! Cluster DNS: authoritative for the cluster domain, forwarding and caching for the rest.
//!
//! A query is parsed, answered from the [`directory`] of Services if it is in the cluster's zone or is the
//! reverse name of one of its addresses ([`zone`], pure), and otherwise from the [`cache`] or by one of the
//! host's resolvers ([`forward`]). [`server`] does UDP and TCP.
//!
//! Follows the Kubernetes DNS-Based Service Discovery specification 1.1.

pub mod cache;
pub mod directory;
pub mod forward;
pub mod server;
pub mod zone;

pub use server::{Config, Error, run};
