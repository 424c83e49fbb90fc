//! Port-forward: connections to ports of a pod's loopback, each as a stream of data and a stream of errors.
//!
//! Over SPDY, bare or in a WebSocket, the client opens a pair of streams for each connection; over a WebSocket
//! of channels there is one connection for each port that the query names.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use client::Body;
use cri::{Duplex, RuntimeService};
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::channel::{Inbound, Outbound};
use super::idle::Activity;
use super::negotiate::{self, Kind};
use super::options;
use super::spdy::{Connection, Stream};
use super::websocket::{self, Channels, Codec};
use super::{Session, upgraded};

/// How long the second stream of a pair may take.
const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes taken from a pod at once.
const READ_LEN: usize = 32 << 10;
/// How long a client may take to end its direction once the pod has ended its own, as in containerd.
const CLIENT_END_WAIT: Duration = Duration::from_secs(1);
/// Longest request id taken; clients count.
const REQUEST_ID_LEN_MAX: usize = 256;

/// What a WebSocket carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carried {
    /// Channels.
    Channels(Codec),
    /// SPDY, byte for byte.
    Spdy,
}

const WEBSOCKET_PROTOCOLS: &[(&str, Carried)] = &[
    ("SPDY/3.1+portforward.k8s.io", Carried::Spdy),
    ("v4.channel.k8s.io", Carried::Channels(Codec::Binary)),
    ("v4.base64.channel.k8s.io", Carried::Channels(Codec::Base64)),
];
const SPDY_PROTOCOLS: &[(&str, ())] = &[("portforward.k8s.io", ())];

/// Whose ports.
#[derive(Clone)]
struct Target {
    runtime: Arc<dyn RuntimeService>,
    sandbox_id: String,
}

/// Answers port-forward.
pub(super) fn answer(mut session: Session, permit: OwnedSemaphorePermit) -> Response<Body> {
    let target = Target { runtime: session.runtime.clone(), sandbox_id: session.sandbox_id.clone() };
    let headers = session.request.headers();
    match negotiate::kind(headers) {
        None => negotiate::upgrade_required(),
        Some(Kind::Spdy) => match negotiate::spdy(headers, SPDY_PROTOCOLS) {
            Err(refusal) => *refusal,
            Ok((response, ())) => {
                upgraded(&mut session.request, permit, move |io| pairs(io, target));
                response
            }
        },
        Some(Kind::WebSocket) => {
            let default = Carried::Channels(Codec::Binary);
            match negotiate::websocket(headers, WEBSOCKET_PROTOCOLS, default) {
                Err(refusal) => *refusal,
                Ok((response, Carried::Spdy)) => {
                    upgraded(&mut session.request, permit, move |io| async move {
                        pairs(websocket::tunnel(io).await, target).await;
                    });
                    response
                }
                Ok((response, Carried::Channels(codec))) => {
                    match options::ports(session.request.uri().query().unwrap_or_default()) {
                        Err(error) => negotiate::text(http::StatusCode::BAD_REQUEST, error.to_string()),
                        Ok(ports) => {
                            upgraded(&mut session.request, permit, move |io| {
                                channels(io, target, codec, ports)
                            });
                            response
                        }
                    }
                }
            }
        }
    }
}

/// Serves a WebSocket of channels: an even one for the data of a port and the next for its errors.
async fn channels(io: Box<dyn Duplex>, target: Target, codec: Codec, ports: Vec<u16>) {
    let activity = Arc::new(Activity::new());
    // There are at most 127 ports, so a number fits.
    let numbered = || ports.iter().enumerate().map(|(i, port)| (2 * i as u8, *port));
    let readable = numbered().map(|(channel, _)| channel);
    let mut socket = Channels::new(io, codec, readable, false, activity.clone()).await;
    let gone = socket.gone();
    let mut forwards = Vec::with_capacity(ports.len());
    for (channel, port) in numbered() {
        let Some(inbound) = socket.take(channel) else { continue };
        let data = Outbound::WebSocket(socket.sender(channel));
        let errors = Outbound::WebSocket(socket.sender(channel + 1));
        let target = target.clone();
        forwards.push(async move {
            let number = Bytes::copy_from_slice(&port.to_le_bytes());
            if data.send(number.clone()).await.is_err() || errors.send(number).await.is_err() {
                return;
            }
            forward(&target, port, inbound, data, errors).await;
        });
    }
    tokio::select! {
        () = gone.cancelled() => {}
        () = activity.idle() => {}
        _ = join_all(forwards) => {}
    }
    socket.close().await;
}

/// What the headers of a stream say.
#[derive(Debug, PartialEq, Eq)]
struct Half {
    is_data: bool,
    port: u16,
    request: String,
}

/// Reads a stream's headers; an error says why it is refused.
fn half(stream: u32, header: impl Fn(&str) -> String) -> Result<Half, String> {
    let port = header("port");
    if port.is_empty() {
        return Err("\"port\" header is required".into());
    }
    let port = options::port(&port).map_err(|error| error.to_string())?;
    let is_data = match header("streamtype").as_str() {
        "data" => true,
        "error" => false,
        "" => return Err("\"streamtype\" header is required".into()),
        other => return Err(format!("invalid stream type {other:?}")),
    };
    let request = match header("requestid") {
        // Clients before request ids open the error stream first, and the data stream right after it.
        id if id.is_empty() => if is_data { stream.saturating_sub(2) } else { stream }.to_string(),
        id if id.len() > REQUEST_ID_LEN_MAX => return Err("\"requestid\" header is too long".into()),
        id => id,
    };
    Ok(Half { is_data, port, request })
}

/// A stream that waits for its other half.
struct Waiting {
    stream: Stream,
    is_data: bool,
    until: Instant,
}

/// Serves SPDY: pairs of streams, until the client leaves.
async fn pairs(io: Box<dyn Duplex>, target: Target) {
    let activity = Arc::new(Activity::new());
    let mut connection = match Connection::new(io, activity.clone()) {
        Ok(connection) => connection,
        Err(error) => return tracing::warn!(%error, "SPDY is not available"),
    };
    let gone = connection.gone();
    let mut waiting: HashMap<String, Waiting> = HashMap::new();
    let mut forwards: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    loop {
        let next_timeout = waiting.values().map(|half| half.until).min();
        let timeout = async {
            match next_timeout {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            Some(()) = forwards.next() => continue,
            () = timeout => {
                let now = Instant::now();
                for (_, late) in waiting.extract_if(|_, half| half.until <= now) {
                    forwards.push(give_up(late).boxed());
                }
                continue;
            }
            () = activity.idle() => None,
            () = gone.cancelled() => None,
        };
        let Some(stream) = stream else { break };
        let half = match half(stream.id, |name| stream.headers.get(name).to_owned()) {
            Ok(half) => half,
            Err(error) => {
                tracing::debug!(error, "a port-forward stream was refused");
                stream.refuse().await;
                continue;
            }
        };
        match waiting.remove(&half.request) {
            Some(other) if other.is_data == half.is_data => {
                let kind = if half.is_data { "data" } else { "error" };
                tracing::debug!("{kind} stream already assigned");
                waiting.insert(half.request, other);
                stream.refuse().await;
            }
            Some(other) => {
                let (data, errors) =
                    if half.is_data { (stream, other.stream) } else { (other.stream, stream) };
                let (accepted, target) =
                    (if half.is_data { &data } else { &errors }.accept().await, target.clone());
                if accepted.is_ok() {
                    forwards.push(forward_pair(target, half.port, data, errors).boxed());
                }
            }
            None => {
                if stream.accept().await.is_ok() {
                    let until = Instant::now() + STREAM_CREATION_TIMEOUT;
                    waiting.insert(half.request, Waiting { stream, is_data: half.is_data, until });
                }
            }
        }
    }
    // Pods are let go before the goodbye.
    drop((forwards, waiting));
    connection.close().await;
}

/// Tells a client that its pair was never complete.
async fn give_up(late: Waiting) {
    let Waiting { stream, is_data, .. } = late;
    if !is_data {
        let _ = stream.outbound.send(Bytes::from_static(b"timed out waiting for streams")).await;
    }
    stream.outbound.finish().await;
    stream.outbound.release();
}

async fn forward_pair(target: Target, port: u16, data: Stream, errors: Stream) {
    let Stream { inbound, outbound, reset, .. } = data;
    let senders = [outbound, errors.outbound];
    let [data, errors] = senders.clone().map(Outbound::Spdy);
    tokio::select! {
        () = forward(&target, port, inbound, data, errors.clone()) => {}
        // Dropping the connection to the pod tells it.
        () = reset.cancelled() => errors.finish().await,
    }
    for sender in senders {
        sender.release();
    }
}

/// Forwards one connection until both directions have ended.
async fn forward(target: &Target, port: u16, inbound: Inbound, data: Outbound, errors: Outbound) {
    let outcome = match target.runtime.port_forward(&target.sandbox_id, port).await {
        Ok(connection) => exchange(connection, inbound, &data).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = outcome {
        let message = format!(
            "error forwarding port {port} to pod {}, uid : {}",
            target.sandbox_id,
            in_upstream_words(&error)
        );
        tracing::debug!(message, "a port could not be forwarded");
        let _ = errors.send(message.into()).await;
    }
    data.finish().await;
    errors.finish().await;
}

/// Copies both ways. The client's end is passed on, and the pod may go on talking; the pod's end leaves the
/// client little time, for old clients wait for ours before they say theirs.
async fn exchange(connection: Box<dyn Duplex>, mut inbound: Inbound, data: &Outbound) -> std::io::Result<()> {
    let (mut from_pod, mut to_pod) = tokio::io::split(connection);
    let inward = async move {
        while let Some(piece) = inbound.next().await {
            // The pod takes no more; what it has to say may still come.
            if to_pod.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to_pod.shutdown().await;
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_LEN);
            if from_pod.read_buf(&mut buffer).await? == 0 || data.send(buffer.split().freeze()).await.is_err()
            {
                break;
            }
        }
        data.finish().await;
        Ok(())
    };
    tokio::pin!(inward, outward);
    tokio::select! {
        () = &mut inward => outward.await,
        outcome = &mut outward => {
            let _ = tokio::time::timeout(CLIENT_END_WAIT, inward).await;
            outcome
        }
    }
}

/// A system error as clients know it: `Connection refused (os error 111)` is `connection refused`.
fn in_upstream_words(error: &str) -> String {
    let Some((text, code)) = error.rsplit_once(" (os error ") else { return error.to_owned() };
    if !code.ends_with(')') {
        return error.to_owned();
    }
    let begin = text.rfind(": ").map_or(0, |at| at + 2);
    let (head, last) = text.split_at(begin);
    format!("{head}{}", last.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_pair() {
        let read = |id, lines: &[(&str, &str)]| {
            half(id, |name| {
                lines.iter().find(|(n, _)| *n == name).map_or(String::new(), |(_, v)| (*v).into())
            })
        };
        let with_id = [("port", "80"), ("streamtype", "data"), ("requestid", "7")];
        assert_eq!(read(3, &with_id), Ok(Half { is_data: true, port: 80, request: "7".into() }));
        let first = read(5, &[("port", "80"), ("streamtype", "error")]).unwrap();
        let second = read(7, &[("port", "80"), ("streamtype", "data")]).unwrap();
        assert_eq!((first.request.as_str(), second.request.as_str()), ("5", "5"));
        let table: [(&[(&str, &str)], &str); 5] = [
            (&[("streamtype", "data")], "\"port\" header is required"),
            (&[("port", "0"), ("streamtype", "data")], "port \"0\" must be > 0"),
            (&[("port", "x"), ("streamtype", "data")], "unable to parse \"x\" as a port"),
            (&[("port", "1")], "\"streamtype\" header is required"),
            (&[("port", "1"), ("streamtype", "x")], "invalid stream type \"x\""),
        ];
        for (lines, want) in table {
            assert_eq!(read(1, lines).unwrap_err(), want);
        }
    }

    #[test]
    fn errors_in_upstream_words() {
        let ours = "failed to connect to localhost:80 inside namespace: Connection refused (os error 111)";
        let theirs = "failed to connect to localhost:80 inside namespace: connection refused";
        assert_eq!(in_upstream_words(ours), theirs);
        assert_eq!(in_upstream_words("as it is"), "as it is");
    }
}
