//! The way into an API server in the same process: a function call, no sockets and no TLS.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::body::{self, Body};
use crate::transport::{BoxFuture, Io, Transport, TransportError};

/// The API server's whole filter chain as a function.
pub type Handler = Arc<dyn Fn(Request<Body>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// Buffer of an upgraded in-process connection: what one side may be ahead of the other.
const UPGRADE_BUFFER_BYTES: usize = 64 * 1024;

/// Calls the API server's handler directly.
#[derive(Clone)]
pub struct InProcess(Handler);

impl InProcess {
    /// A transport into `handler`.
    pub fn new(handler: Handler) -> Self {
        InProcess(handler)
    }
}

impl Transport for InProcess {
    fn send(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Body>, TransportError>> {
        let answer = (self.0)(request.map(body::full));
        Box::pin(async move { Ok(answer.await) })
    }

    // Upgrades need a real HTTP/1.1 connection under them, so one is spoken over a pipe in memory.
    fn upgrade(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'_, Result<(Response<Body>, Option<Box<dyn Io>>), TransportError>> {
        let handler = self.0.clone();
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(UPGRADE_BUFFER_BYTES);
            let identity = request.extensions().get::<meta::UserInfo>().cloned();
            let service = service_fn(move |mut incoming: Request<hyper::body::Incoming>| {
                if let Some(user) = &identity {
                    incoming.extensions_mut().insert(user.clone());
                }
                let answer = handler(incoming.map(|b| b.map_err(Into::into).boxed_unsync()));
                async move { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(async move {
                let server = hyper::server::conn::http1::Builder::new();
                if let Err(error) = server.serve_connection(TokioIo::new(far), service).with_upgrades().await
                {
                    tracing::debug!(%error, "in-process upgraded connection ended");
                }
            });
            upgrade_over(near, request).await
        })
    }
}

/// Speaks HTTP/1.1 over `io` for one request that asks for an upgrade.
pub(crate) async fn upgrade_over(
    io: impl Io + 'static,
    mut request: Request<Bytes>,
) -> Result<(Response<Body>, Option<Box<dyn Io>>), TransportError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection for an upgrade ended");
        }
    });
    if !request.headers().contains_key(http::header::HOST) {
        request
            .headers_mut()
            .insert(http::header::HOST, http::HeaderValue::from_static("kubernetes.default.svc"));
    }
    let mut response = sender.send_request(request.map(body::full)).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok((response.map(|b| b.map_err(Into::into).boxed_unsync()), None));
    }
    let upgraded = hyper::upgrade::on(&mut response).await?;
    Ok((response.map(|_| body::empty()), Some(Box::new(TokioIo::new(upgraded)))))
}
