//! The front door: filter chain, content negotiation, discovery, OpenAPI, verbs to registry, upgrades to kubelets.
//!
//! [`server::Server::handle`] is the whole API as one function; [`serve`] puts it behind TLS, in-process
//! callers get it as it is. Every route derives from the resource table.
//!
//! **Invariant:** knows nothing of controllers, and has no handler for a single kind except the reviews and
//! subresources that have no storage of their own.

pub mod aggregate;
pub mod audit;
pub mod authorize;
pub mod body;
pub mod bootstrap;
pub mod chain;
pub mod custom;
pub mod discovery;
mod dynamic;
pub mod endpoints;
pub mod escalation;
mod eviction;
pub mod flow;
pub mod follow;
mod impersonate;
pub mod kubelet;
mod listing;
pub mod lookup;
pub mod metrics;
mod negotiate;
pub mod openapi;
pub mod path;
pub mod quota;
pub mod reviews;
pub mod serve;
pub mod server;
pub mod subresource;
pub mod timeout;
pub mod transcode;
mod usage;
pub mod verbs;
pub mod watch;
pub mod webhook;
mod websocket;

pub use server::{Config, Server};
