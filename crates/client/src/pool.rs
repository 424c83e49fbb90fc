//! Connections to one server: HTTP/2 ones shared by many requests, HTTP/1.1 ones lent to one at a time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;

use crate::body::{self, Body, BoxError};
use crate::https::Endpoint;
use crate::transport::TransportError;

/// Streams per HTTP/2 connection before another is opened: servers allow 100 to 250, and watches stay.
const STREAMS_PER_CONNECTION: usize = 96;
/// Idle HTTP/1.1 connections kept for reuse.
const IDLE_HTTP1_MAX: usize = 16;
/// A connection that does not answer a ping for this long is dead, so that watches notice a lost server.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Flow-control windows: large enough that a big list is not throttled by round trips.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<Body>,
    in_flight: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Idle {
    http2: Vec<Shared>,
    http1: Vec<http1::SendRequest<Body>>,
}

/// The connections.
#[derive(Default)]
pub(crate) struct Pool {
    idle: Arc<Mutex<Idle>>,
    /// Held while connecting, so that a burst of requests opens one connection and not one each.
    connecting: tokio::sync::Mutex<()>,
}

/// Something held for one request until its answer has been read to the end.
enum Lease {
    Http2(Arc<AtomicUsize>),
    Http1 { sender: Option<http1::SendRequest<Body>>, idle: Arc<Mutex<Idle>> },
}

impl Drop for Lease {
    fn drop(&mut self) {
        match self {
            Lease::Http2(in_flight) => {
                in_flight.fetch_sub(1, Ordering::Relaxed);
            }
            // A connection whose answer was not read to the end is not ready and gets closed on drop.
            Lease::Http1 { sender, idle } => {
                if let Some(sender) = sender.take().filter(|s| !s.is_closed()) {
                    let mut idle = idle.lock();
                    if idle.http1.len() < IDLE_HTTP1_MAX {
                        idle.http1.push(sender);
                    }
                }
            }
        }
    }
}

/// A connection to send one request on.
pub(crate) struct Connection {
    http2: Option<http2::SendRequest<Body>>,
    lease: Lease,
}

impl Pool {
    /// A connection with room for one more request: a pooled one, or a new one.
    pub(crate) async fn acquire(&self, endpoint: &Endpoint) -> Result<Connection, TransportError> {
        if let Some(connection) = self.pooled() {
            return Ok(connection);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(connection) = self.pooled() {
            return Ok(connection);
        }
        let (io, is_http2) = endpoint.connect(false).await?;
        if is_http2 {
            let (sender, driver) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .handshake(TokioIo::new(io))
                .await?;
            tokio::spawn(async move {
                if let Err(error) = driver.await {
                    tracing::debug!(%error, "connection to the API server ended");
                }
            });
            let shared = Shared { sender: sender.clone(), in_flight: Arc::new(AtomicUsize::new(1)) };
            let lease = Lease::Http2(shared.in_flight.clone());
            self.idle.lock().http2.push(shared);
            return Ok(Connection { http2: Some(sender), lease });
        }
        let (sender, driver) = http1::handshake(TokioIo::new(io)).await?;
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "connection to the API server ended");
            }
        });
        Ok(Connection { http2: None, lease: Lease::Http1 { sender: Some(sender), idle: self.idle.clone() } })
    }

    fn pooled(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        idle.http2.retain(|shared| !shared.sender.is_closed());
        let free = |shared: &&Shared| shared.in_flight.load(Ordering::Relaxed) < STREAMS_PER_CONNECTION;
        if let Some(shared) = idle.http2.iter().find(free) {
            shared.in_flight.fetch_add(1, Ordering::Relaxed);
            let lease = Lease::Http2(shared.in_flight.clone());
            return Some(Connection { http2: Some(shared.sender.clone()), lease });
        }
        idle.http1.retain(|sender| !sender.is_closed());
        let ready = idle.http1.iter().position(http1::SendRequest::is_ready)?;
        let sender = idle.http1.swap_remove(ready);
        Some(Connection {
            http2: None,
            lease: Lease::Http1 { sender: Some(sender), idle: self.idle.clone() },
        })
    }
}

impl Connection {
    /// Whether requests need an absolute URL (HTTP/2) instead of a path and `Host`.
    pub(crate) fn is_http2(&self) -> bool {
        self.http2.is_some()
    }

    /// Sends the request; the connection is given back when the answer's body has been dropped.
    pub(crate) async fn send(mut self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let request = request.map(body::full);
        let response = match (&mut self.http2, &mut self.lease) {
            (Some(sender), _) => sender.send_request(request).await?,
            (None, Lease::Http1 { sender: Some(sender), .. }) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            // Leases are only taken apart on drop.
            (None, _) => return Err(TransportError::Body("connection without a sender".into())),
        };
        let lease = self.lease;
        Ok(response.map(|inner| Leased { inner, _lease: lease }.boxed_unsync()))
    }
}

/// A body that gives its connection back when dropped.
struct Leased {
    inner: hyper::body::Incoming,
    _lease: Lease,
}

impl http_body::Body for Leased {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.inner).poll_frame(cx).map_err(Into::into)
    }
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
