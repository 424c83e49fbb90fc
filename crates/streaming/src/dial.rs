//! The client's end: joins what a runtime's streaming server offers at a URL, over SPDY.
//!
//! SPDY, because every runtime's server speaks it, and because it can say that the input has ended, which
//! WebSockets learnt late.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cri::{BoxRead, BoxWrite, Duplex, StreamSession, TerminalSize};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::channel::{Gone, Inbound};
use crate::spdy::frame::Headers;
use crate::spdy::{Connection, Stream, StreamSender};

/// How long a streaming server on this host may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes between a stream and who uses it.
const PIPE_LEN: usize = 64 << 10;
/// Bytes taken from a pipe at once.
const READ_LEN: usize = 32 << 10;
/// Longest text of an error, on its stream or as the answer of a server that refuses.
const ERROR_LEN_MAX: usize = 16 << 10;
/// Terminal sizes on their way.
const SIZES_MAX: usize = 4;

/// Versions of the remote command protocol, best first.
const REMOTE_PROTOCOLS: &[&str] =
    &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const FORWARD_PROTOCOLS: &[&str] = &["portforward.k8s.io"];

/// Which streams are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error; without effect with a terminal.
    pub stderr: bool,
    /// A terminal, whose size can be told.
    pub tty: bool,
}

fn failed(message: impl std::fmt::Display) -> cri::Error {
    cri::Error::Internal { message: message.to_string() }
}

impl From<Gone> for cri::Error {
    fn from(_: Gone) -> Self {
        failed("the runtime's streaming server has closed the connection")
    }
}

/// Joins an exec or attach session.
///
/// # Errors
/// When the server cannot be reached or refuses.
pub async fn remote(url: &str, streams: Streams) -> cri::Result<StreamSession> {
    let (connection, protocol) = connect(url, REMOTE_PROTOCOLS).await?;
    let connection = Arc::new(connection);
    let open = async |kind: &str| connection.open(headers(&[("streamtype", kind)])).await;
    let errors = open("error").await?;
    let stdin = if streams.stdin { Some(open("stdin").await?) } else { None };
    let stdout = if streams.stdout { Some(open("stdout").await?) } else { None };
    let stderr = if streams.stderr && !streams.tty { Some(open("stderr").await?) } else { None };
    let sizes = streams.tty && matches!(protocol.as_str(), "v4.channel.k8s.io" | "v3.channel.k8s.io");
    let resize = if sizes { Some(open("resize").await?) } else { None };
    let held = connection.clone();
    Ok(StreamSession {
        stdin: stdin.map(|stream| writer(stream, connection.clone())),
        stdout: stdout.map(|stream| reader(stream, connection.clone())),
        stderr: stderr.map(|stream| reader(stream, connection.clone())),
        resize: resize.map(|stream| resizer(stream, connection.clone())),
        exit: Box::pin(async move {
            let outcome = outcome(errors, &held).await;
            drop(held);
            outcome
        }),
    })
}

/// Connects to a port through a port-forward session.
///
/// # Errors
/// When the server cannot be reached or refuses. A port that nobody listens on shows as an error when reading.
pub async fn forward(url: &str, port: u16) -> cri::Result<Box<dyn Duplex>> {
    let (connection, _) = connect(url, FORWARD_PROTOCOLS).await?;
    let connection = Arc::new(connection);
    let port = port.to_string();
    let open = async |kind: &str| {
        connection.open(headers(&[("streamtype", kind), ("port", &port), ("requestid", "0")])).await
    };
    let errors = open("error").await?;
    errors.outbound.finish().await;
    let data = open("data").await?;
    let (ours, theirs) = tokio::io::duplex(PIPE_LEN);
    tokio::spawn(async move {
        let (read, mut write) = tokio::io::split(theirs);
        let outbound = data.outbound.clone();
        let inward = pump_out(read, outbound);
        let outward = async {
            pump_in(data.inbound, &mut write).await;
            // An error reaches the reader as the end: all that a byte stream can say.
            let said = tokio::time::timeout(Duration::from_secs(1), text(errors.inbound)).await;
            if let Ok(said) = said
                && !said.is_empty()
            {
                tracing::debug!(error = %String::from_utf8_lossy(&said), "a port could not be forwarded");
            }
            let _ = write.shutdown().await;
        };
        tokio::join!(inward, outward);
        drop(connection);
    });
    Ok(Box::new(ours))
}

fn headers(pairs: &[(&str, &str)]) -> Headers {
    Headers(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

/// Connects, asks for SPDY and one of `protocols`, and returns the one that the server chose.
async fn connect(url: &str, protocols: &[&str]) -> cri::Result<(Connection, String)> {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, upgrade(url, protocols));
    let (io, protocol) = connecting.await.map_err(|_| cri::Error::Timeout {
        what: format!("connecting to {url}"),
        after: CONNECT_TIMEOUT,
    })??;
    let connection = Connection::client(io).map_err(failed)?;
    Ok((connection, protocol))
}

async fn upgrade(url: &str, protocols: &[&str]) -> cri::Result<(Box<dyn Duplex>, String)> {
    let uri: Uri = url.parse().map_err(|error| failed(format!("the runtime's URL {url:?}: {error}")))?;
    if uri.scheme_str() != Some("http") {
        let message = format!("the runtime streams from {url:?}; only http:// is supported");
        return Err(cri::Error::Unsupported { message });
    }
    let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
    let io = TcpStream::connect((host.trim_matches(['[', ']']), port))
        .await
        .map_err(|error| cri::Error::io(format!("connect to the runtime's streaming server {url}"), error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
    tokio::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().map_err(failed)?;
    let headers = request.headers_mut();
    let authority = uri.authority().map_or("localhost", |authority| authority.as_str());
    headers.insert("host", HeaderValue::from_str(authority).map_err(failed)?);
    headers.insert("connection", HeaderValue::from_static("Upgrade"));
    headers.insert("upgrade", HeaderValue::from_static("SPDY/3.1"));
    for protocol in protocols {
        headers.append("x-stream-protocol-version", HeaderValue::from_str(protocol).map_err(failed)?);
    }
    let mut response = sender.send_request(request).await.map_err(failed)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let body = Limited::new(response.into_body(), ERROR_LEN_MAX).collect().await;
        let text = body.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(failed(format!(
            "unable to upgrade connection: {status}: {}",
            String::from_utf8_lossy(&text).trim()
        )));
    }
    let chosen = response.headers().get("x-stream-protocol-version");
    let chosen = chosen.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(failed)?;
    Ok((Box::new(TokioIo::new(upgraded)), chosen))
}

/// What comes on a stream, as something to read.
fn reader(stream: Stream, connection: Arc<Connection>) -> BoxRead {
    let (ours, mut theirs) = tokio::io::duplex(PIPE_LEN);
    tokio::spawn(async move {
        stream.outbound.finish().await;
        pump_in(stream.inbound, &mut theirs).await;
        drop(connection);
    });
    Box::new(ours)
}

/// Something to write to, whose end is the end of the stream.
fn writer(stream: Stream, connection: Arc<Connection>) -> BoxWrite {
    let (ours, theirs) = tokio::io::duplex(PIPE_LEN);
    tokio::spawn(async move {
        pump_out(theirs, stream.outbound).await;
        drop(connection);
    });
    Box::new(ours)
}

fn resizer(stream: Stream, connection: Arc<Connection>) -> mpsc::Sender<TerminalSize> {
    let (sender, mut sizes) = mpsc::channel::<TerminalSize>(SIZES_MAX);
    tokio::spawn(async move {
        while let Some(size) = sizes.recv().await {
            let text = json!({"Width": size.width, "Height": size.height}).to_string();
            if stream.outbound.send(text.into()).await.is_err() {
                break;
            }
        }
        stream.outbound.finish().await;
        drop(connection);
    });
    sender
}

async fn pump_in(mut from: Inbound, to: &mut (impl AsyncWriteExt + Unpin)) {
    while let Some(data) = from.next().await {
        if to.write_all(&data).await.is_err() {
            return;
        }
    }
}

async fn pump_out(mut from: impl AsyncReadExt + Unpin, to: StreamSender) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_LEN);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) if to.send(buffer.split().freeze()).await.is_err() => break,
            Ok(_) => {}
        }
    }
    to.finish().await;
}

async fn text(mut from: Inbound) -> Vec<u8> {
    let mut text = Vec::new();
    while let Some(data) = from.next().await {
        let room = ERROR_LEN_MAX.saturating_sub(text.len()).min(data.len());
        text.extend_from_slice(data.get(..room).unwrap_or_default());
    }
    text
}

/// Waits for the word on how the command ended.
async fn outcome(errors: Stream, connection: &Connection) -> cri::Result<i32> {
    errors.outbound.finish().await;
    let said = text(errors.inbound).await;
    if said.is_empty() && connection.gone().is_cancelled() {
        return Err(Gone.into());
    }
    exit_code(&said)
}

/// A failure without the words that say it is one: whoever passes it on says them again.
fn bare(message: &str) -> &str {
    let words = [
        "Internal error occurred: ",
        "error executing command in container: ",
        "error attaching to container: ",
    ];
    words.iter().fold(message, |message, words| message.strip_prefix(words).unwrap_or(message))
}

/// Reads the last word: an object, or from old servers a text that only failures have.
fn exit_code(said: &[u8]) -> cri::Result<i32> {
    if said.is_empty() {
        return Ok(0);
    }
    let plain = || String::from_utf8_lossy(said).into_owned();
    let Ok(status) = serde_json::from_slice::<Value>(said) else {
        let text = plain();
        let code = text.rsplit("exit code ").next().and_then(|code| code.trim().parse().ok());
        return code.ok_or_else(|| failed(text));
    };
    if status.get("status").and_then(Value::as_str) == Some("Success") {
        return Ok(0);
    }
    let causes = status.pointer("/details/causes").and_then(Value::as_array);
    let code = causes.into_iter().flatten().find(|cause| {
        cause.get("reason").or_else(|| cause.get("type")).and_then(Value::as_str) == Some("ExitCode")
    });
    let code = code.and_then(|cause| cause.get("message")?.as_str()?.parse().ok());
    let message = status.get("message").and_then(Value::as_str);
    code.ok_or_else(|| failed(message.map_or_else(plain, |message| bare(message).to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words() {
        let code = |text: &str| exit_code(text.as_bytes()).map_err(|error| error.to_string());
        let object = r#"{"metadata":{},"status":"Failure","message":"command terminated with exit code 3",
            "reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
        assert_eq!(code(r#"{"metadata":{},"status":"Success"}"#), Ok(0));
        assert_eq!(code(object), Ok(3));
        assert_eq!(code(""), Ok(0));
        assert_eq!(code("command terminated with exit code 42"), Ok(42));
        assert_eq!(
            code(r#"{"status":"Failure","message":"no such container"}"#),
            Err("no such container".into())
        );
        let wrapped =
            r#"{"status":"Failure","message":"Internal error occurred: error attaching to container: x"}"#;
        assert_eq!(code(wrapped), Err("x".into()));
        assert_eq!(code("broken"), Err("broken".into()));
    }
}
