//! The listener: TLS, HTTP/1.1 and HTTP/2, and a drain with a time limit at the end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::audit::PeerAddress;
use crate::server::{PeerCertificate, Server};

/// Longest TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Longest time the head of a request may take to arrive (upstream's limit).
const HEADERS_MAX: Duration = Duration::from_secs(32);
/// Most bytes of the head of a request (upstream's limit): selectors may be long.
const HEADERS_BYTES_MAX: u32 = 1 << 20;
/// A silent HTTP/2 connection is asked this often whether anybody is there (upstream's interval).
const PING_EVERY: Duration = Duration::from_secs(30);
/// Longest wait for the answer to that.
const PING_MAX: Duration = Duration::from_secs(15);
/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 8192;
/// Streams of one HTTP/2 connection at once (upstream's limit).
const STREAMS_MAX: u32 = 100;
/// Longest wait for requests to end when the server stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Pause after the kernel refuses to hand out a connection (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the server's shutdown token fires, then drains.
pub async fn listen(server: Server, listener: TcpListener, tls: Arc<ServerConfig>) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let drain = GracefulShutdown::new();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .adaptive_window(true)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX);
    let builder = Arc::new(builder);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.shutdown.cancelled() => break,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (server, acceptor, builder) = (server.clone(), acceptor.clone(), builder.clone());
        let watcher = drain.watcher();
        tokio::spawn(async move {
            let _place = place;
            serve_connection(server, acceptor, builder, watcher, (tcp, peer)).await;
        });
    }
    if tokio::time::timeout(DRAIN_MAX, drain.shutdown()).await.is_err() {
        tracing::info!("some connections did not end in time and are closed");
    }
}

async fn serve_connection(
    server: Server,
    acceptor: TlsAcceptor,
    builder: Arc<auto::Builder<TokioExecutor>>,
    watcher: hyper_util::server::graceful::Watcher,
    (tcp, peer): (TcpStream, std::net::SocketAddr),
) {
    tcp.set_nodelay(true).ok();
    let tls = match tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake timed out"),
    };
    let leaf = tls.get_ref().1.peer_certificates().and_then(|c| c.first());
    let certificate = leaf.map(|c| PeerCertificate(Arc::from(c.as_ref())));
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        let server = server.clone();
        request.extensions_mut().insert(PeerAddress(peer.ip()));
        if let Some(certificate) = &certificate {
            request.extensions_mut().insert(certificate.clone());
        }
        async move {
            let request = request.map(|b| b.map_err(Into::into).boxed_unsync());
            Ok::<_, Infallible>(server.handle(request).await)
        }
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "connection ended");
    }
}
