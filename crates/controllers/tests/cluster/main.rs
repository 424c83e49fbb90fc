//! Controllers and scheduler against a real API server in the same process: no nodes, no network.

mod lifecycle;
mod remote;
mod rollout;
mod server;
