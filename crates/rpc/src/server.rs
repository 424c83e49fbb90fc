//! The server's end: services by name, on a Unix socket.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;

/// Most connections at a time: clients on one host are few, and each keeps one.
const CONNECTIONS_MAX: usize = 256;
/// Most calls at a time on one connection.
const STREAMS_MAX: u32 = 1024;
/// Window of a connection and its streams.
const WINDOW_BYTES: u32 = 1024 * 1024;

type Handler = Arc<dyn Fn(http::Request<Incoming>) -> BoxFuture<'static, http::Response<Body>> + Send + Sync>;

/// Services by name.
#[derive(Clone, Default)]
pub struct Routes {
    services: BTreeMap<&'static str, Handler>,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.services.keys()).finish()
    }
}

impl Routes {
    /// No services.
    pub fn new() -> Routes {
        Routes::default()
    }

    /// Adds a generated server.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Routes
    where
        S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| {
            let call = service.clone().call(request);
            Box::pin(async move {
                match call.await {
                    Ok(answer) => answer,
                    Err(never) => match never {},
                }
            })
        });
        self.services.insert(S::NAME, handler);
        self
    }

    fn handler(&self, path: &str) -> Result<Handler, tonic::Status> {
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let (Some(service), Some(_)) = (parts.next(), parts.next()) else {
            return Err(tonic::Status::unimplemented(format!("malformed method name: {path:?}")));
        };
        let found = self.services.get(service).cloned();
        found.ok_or_else(|| tonic::Status::unimplemented(format!("unknown service {service}")))
    }
}

/// Serves `routes` on a socket at `path` until `stop` is ready, then closes every connection and removes the
/// socket. A file left there by an earlier process is replaced. Only the owner may connect.
pub async fn serve(
    path: &Path,
    routes: Routes,
    stop: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => { connections.spawn(connection(TokioIo::new(stream), routes.clone())); }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on a socket");
                    // Out of descriptors, most likely: turning at once would only burn CPU.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
        }
    }
    connections.shutdown().await;
    // Somebody else may have removed it with its directory.
    let _ = std::fs::remove_file(path);
    Ok(())
}

async fn connection(stream: TokioIo<tokio::net::UnixStream>, routes: Routes) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let handler = routes.handler(request.uri().path());
        async move {
            Ok::<_, Infallible>(match handler {
                Ok(handler) => handler(request).await,
                Err(status) => status.into_http(),
            })
        }
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .serve_connection(stream, service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of a socket ended");
    }
}
