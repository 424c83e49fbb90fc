//! Exec, attach and port-forward: a server hands requests for them over as they are ([`Session`]),
//! and [`handler`] answers them with the protocol that the client asks for. [`dial`] is the other end, for
//! runtimes that give a URL to stream from.
//!
//! A connection becomes channels (`channel`), carried by WebSocket messages (`websocket`) or SPDY streams
//! (`spdy`); what is done with them does not know which (`remote`, `port_forward`).
//!
//! **Invariant:** knows containers and sandboxes by their ids, and nothing of pods.

mod channel;
pub mod dial;
mod idle;
mod negotiate;
mod options;
mod port_forward;
mod remote;
mod spdy;
#[cfg(test)]
mod tests;
mod websocket;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use client::Body;
use cri::{Duplex, RuntimeService};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Sessions of this node at once: each has some tasks and up to some hundred KiB of buffers.
const SESSIONS_MAX: usize = 1024;

/// What is wanted of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Run a command: `/exec/NAMESPACE/POD/CONTAINER`.
    Exec,
    /// Join the first process: `/attach/NAMESPACE/POD/CONTAINER`.
    Attach,
    /// Connect to ports: `/portForward/NAMESPACE/POD`.
    PortForward,
}

/// A request that the server has routed: the pod was found, and the container is running.
pub struct Session {
    /// What is wanted.
    pub operation: Operation,
    /// The pod's sandbox.
    pub sandbox_id: String,
    /// The container's id; `None` for port-forward.
    pub container_id: Option<String>,
    /// Whether the container was made with a terminal.
    pub container_tty: bool,
    /// The runtime.
    pub runtime: Arc<dyn RuntimeService>,
    /// The request, not yet upgraded: its query has the options (`command`, `input`, `output`, `error`,
    /// `tty`, `port`), its headers the protocols. Upgrade it with `hyper::upgrade::on`.
    pub request: Request<Incoming>,
}

/// Answers a session: 101 with the chosen protocol after arranging the upgrade, or an error response.
pub type Handler = Arc<dyn Fn(Session) -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> + Send + Sync>;

/// The handler of all three operations. Its sessions share one limit.
pub fn handler() -> Handler {
    let places = Arc::new(Semaphore::new(SESSIONS_MAX));
    Arc::new(move |session| {
        let response = match places.clone().try_acquire_owned() {
            Ok(permit) if session.operation == Operation::PortForward => {
                port_forward::answer(session, permit)
            }
            Ok(permit) => remote::answer(session, permit),
            Err(_) => negotiate::text(
                StatusCode::SERVICE_UNAVAILABLE,
                "unable to upgrade: too many streaming sessions on this node",
            ),
        };
        Box::pin(std::future::ready(response))
    })
}

/// Serves the connection once the answer has been sent and it is the client's and ours.
fn upgraded<F: Future<Output = ()> + Send>(
    request: &mut Request<Incoming>,
    permit: OwnedSemaphorePermit,
    serve: impl FnOnce(Box<dyn Duplex>) -> F + Send + 'static,
) {
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let _permit = permit;
        match upgrade.await {
            Ok(io) => serve(Box::new(TokioIo::new(io))).await,
            Err(error) => tracing::debug!(%error, "unable to upgrade"),
        }
    });
}
