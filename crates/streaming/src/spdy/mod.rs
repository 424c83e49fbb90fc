//! SPDY/3.1, as far as Kubernetes speaks it: framing ([`frame`]), its header compression ([`dictionary`])
//! and one connection's streams ([`connection`]).
//!
//! Clients older than WebSockets use it directly for all of exec, attach and port-forward; current ones carry
//! it inside a WebSocket for port-forward.

mod connection;
mod dictionary;
pub(super) mod frame;

pub(super) use connection::{Connection, Stream, StreamSender};
