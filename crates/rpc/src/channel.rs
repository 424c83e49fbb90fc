//! The client's end: one HTTP/2 connection to a Unix socket, shared by all calls and made anew when it breaks.
//!
//! A call that finds no connection tries once to make one, and fails with `UNAVAILABLE` where nobody listens:
//! whoever calls decides whether to try again. Nothing runs in the background while no call is made, apart from
//! the connection itself.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::uri::{Authority, PathAndQuery, Scheme};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, watch};
use tonic::body::Body;

/// Largest message taken from a server: what upstream's kubelet allows its runtime.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Window of a connection and its streams: lists of some megabytes should come in one round trip.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// A connection to the socket at a path. Clones share it.
#[derive(Clone)]
pub struct Channel {
    inner: Arc<Inner>,
}

/// A connection, and who hears of its end.
#[derive(Clone)]
struct Connection {
    sender: SendRequest<Body>,
    open: watch::Receiver<()>,
}

struct Inner {
    path: PathBuf,
    sender: Mutex<Option<Connection>>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("path", &self.inner.path).finish()
    }
}

impl Channel {
    /// A channel to the socket at `path`; the first call connects.
    pub fn new(path: impl Into<PathBuf>) -> Channel {
        Channel { inner: Arc::new(Inner { path: path.into(), sender: Mutex::new(None) }) }
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Connects, unless it is connected. What is given back ends with the connection.
    pub async fn connected(&self) -> Result<impl Future<Output = ()> + use<>, tonic::Status> {
        let mut open = self.connection().await?.open;
        Ok(async move { while open.changed().await.is_ok() {} })
    }

    async fn connection(&self) -> Result<Connection, tonic::Status> {
        let mut held = self.inner.sender.lock().await;
        if let Some(connection) = held.as_ref().filter(|c| !c.sender.is_closed()) {
            return Ok(connection.clone());
        }
        let connected = connect(&self.inner.path).await.map_err(|error| {
            let path = self.inner.path.display();
            // The words of Go's client, which people search for.
            tonic::Status::unavailable(format!(
                "connection error: desc = \"transport: Error while dialing: dial unix {path}: connect: {error}\""
            ))
        })?;
        *held = Some(connected.clone());
        Ok(connected)
    }

    async fn send(self, mut request: http::Request<Body>) -> Result<http::Response<Incoming>, tonic::Status> {
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(Authority::from_static("localhost"));
        parts.path_and_query = Some(path);
        *request.uri_mut() = http::Uri::from_parts(parts)
            .map_err(|error| tonic::Status::internal(format!("malformed method: {error}")))?;
        let mut sender = self.connection().await?.sender;
        let lost = |error: hyper::Error| tonic::Status::unavailable(format!("transport is closing: {error}"));
        sender.ready().await.map_err(lost)?;
        sender.send_request(request).await.map_err(lost)
    }
}

async fn connect(path: &Path) -> std::io::Result<Connection> {
    let stream = UnixStream::connect(path).await.map_err(plain)?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(std::io::Error::other)?;
    let (end, open) = watch::channel(());
    tokio::spawn(async move {
        // Dropped with the connection.
        let _end = end;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a socket ended");
        }
    });
    Ok(Connection { sender, open })
}

/// The system's words without the number that Rust adds.
fn plain(error: std::io::Error) -> std::io::Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => std::io::Error::new(error.kind(), "no such file or directory"),
        std::io::ErrorKind::ConnectionRefused => std::io::Error::new(error.kind(), "connection refused"),
        _ => error,
    }
}

impl tonic::codegen::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = tonic::Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}
