//! How requests reach the API server: the seam between [`crate::Client`] and the two ways there.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::body::{Body, BoxError};

/// A boxed future, as object-safe async methods return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A two-way byte stream, as an upgraded connection is one.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The request or its answer did not get through.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection could be made.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Host and port.
        address: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The server's certificate or the client's was refused, or TLS is misconfigured.
    #[error("TLS: {0}")]
    Tls(#[source] BoxError),
    /// The connection broke.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// The body broke, or grew over its limit.
    #[error("{0}")]
    Body(#[source] BoxError),
    /// No answer within the time limit of the request.
    #[error("no answer within {0:?}")]
    Timeout(std::time::Duration),
    /// The URL or a header cannot be sent.
    #[error("{0}")]
    Invalid(#[from] http::Error),
    /// The server answered an upgrade with something else.
    #[error("the server did not upgrade the connection: {0}")]
    NotUpgraded(http::StatusCode),
}

/// Carries requests to the API server.
///
/// Requests have a path and query only; the transport knows the server. The caller's identity is a
/// [`meta::UserInfo`] among the request's extensions where it differs from the transport's own.
pub trait Transport: Send + Sync {
    /// Sends a request and returns the answer as soon as its head is there; the body streams.
    fn send(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Body>, TransportError>>;

    /// Sends a request that asks for `Upgrade` and returns the connection after 101. Any other answer is
    /// returned without a connection.
    fn upgrade(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'_, Result<(Response<Body>, Option<Box<dyn Io>>), TransportError>>;
}
