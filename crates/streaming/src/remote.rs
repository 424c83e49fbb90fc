//! Exec and attach: a process's streams on one side, a client's channels on the other, and at the end a word
//! about how it went.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use client::Body;
use cri::{
    AttachRequest, BoxRead, BoxWrite, Duplex, ExecRequest, RuntimeService, StreamSession, TerminalSize,
};
use futures_util::future::join;
use http::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::channel::{Inbound, Outbound};
use super::idle::Activity;
use super::negotiate::{self, Kind};
use super::options::{self, Remote};
use super::spdy::{Connection, Stream};
use super::websocket::{Channels, Codec};
use super::{Operation, Session, upgraded};

/// How long a SPDY client may take to open its streams.
const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of output taken from a process at once.
const READ_LEN: usize = 32 << 10;
/// How long the output may be silent after the process has ended before it counts as complete: a child may
/// hold the pipe forever.
const DRAIN_QUIET: Duration = Duration::from_millis(500);
/// Longest text of terminal sizes that is not a whole one yet.
const RESIZE_LEN_MAX: usize = 1024;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

/// Version of the remote command protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    /// The status is a text, and only of a failure.
    V1,
    /// As the first, with its streams in any order.
    V2,
    /// With terminal sizes.
    V3,
    /// The status is an object, also of a success.
    V4,
    /// Single channels can be closed, so that the process sees the end of its input.
    V5,
}

const SPDY_PROTOCOLS: &[(&str, Version)] = &[
    ("v4.channel.k8s.io", Version::V4),
    ("v3.channel.k8s.io", Version::V3),
    ("v2.channel.k8s.io", Version::V2),
    ("channel.k8s.io", Version::V1),
];

const WEBSOCKET_PROTOCOLS: &[(&str, (Version, Codec))] = &[
    ("v5.channel.k8s.io", (Version::V5, Codec::Binary)),
    ("v4.channel.k8s.io", (Version::V4, Codec::Binary)),
    ("v4.base64.channel.k8s.io", (Version::V4, Codec::Base64)),
    ("v3.channel.k8s.io", (Version::V3, Codec::Binary)),
    ("v2.channel.k8s.io", (Version::V2, Codec::Binary)),
    ("v1.channel.k8s.io", (Version::V1, Codec::Binary)),
    ("channel.k8s.io", (Version::V1, Codec::Binary)),
    ("base64.channel.k8s.io", (Version::V1, Codec::Base64)),
];

/// What is to be run or joined.
struct Target {
    operation: Operation,
    container_id: String,
    container_tty: bool,
    runtime: Arc<dyn RuntimeService>,
    options: Remote,
}

/// The client's side.
struct Client {
    stdin: Option<Inbound>,
    stdout: Option<Outbound>,
    stderr: Option<Outbound>,
    status: Outbound,
    resize: Option<Inbound>,
    gone: CancellationToken,
    version: Version,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Well.
    Success,
    /// The command said otherwise.
    ExitCode(i32),
    /// It could not be run or joined.
    Failed(String),
}

impl End {
    /// What goes on the status channel.
    fn status(&self, version: Version) -> Option<Bytes> {
        let message = match self {
            End::Success => String::new(),
            End::ExitCode(code) => format!("command terminated with exit code {code}"),
            End::Failed(why) => format!("Internal error occurred: {why}"),
        };
        if version < Version::V4 {
            return (*self != End::Success).then(|| message.into());
        }
        let status: Value = match self {
            End::Success => json!({"metadata": {}, "status": "Success"}),
            End::ExitCode(code) => json!({
                "metadata": {}, "status": "Failure", "message": message, "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            End::Failed(why) => json!({
                "metadata": {}, "status": "Failure", "message": message, "reason": "InternalError",
                "details": {"causes": [{"message": why}]}, "code": 500,
            }),
        };
        Some(status.to_string().into())
    }
}

/// Answers exec and attach.
pub(super) fn answer(mut session: Session, permit: OwnedSemaphorePermit) -> Response<Body> {
    let query = session.request.uri().query().unwrap_or_default();
    let options = match options::remote(query, session.operation == Operation::Exec) {
        Ok(options) => options,
        Err(error) => return negotiate::text(http::StatusCode::BAD_REQUEST, error.to_string()),
    };
    let Some(container_id) = session.container_id.take() else {
        return negotiate::text(http::StatusCode::BAD_REQUEST, "a container must be specified");
    };
    let headers = session.request.headers();
    let target = |options| Target {
        operation: session.operation,
        container_id,
        container_tty: session.container_tty,
        runtime: session.runtime.clone(),
        options,
    };
    match negotiate::kind(headers) {
        None => negotiate::upgrade_required(),
        Some(Kind::WebSocket) => {
            let default = (Version::V1, Codec::Binary);
            match negotiate::websocket(headers, WEBSOCKET_PROTOCOLS, default) {
                Err(refusal) => *refusal,
                Ok((response, (version, codec))) => {
                    let target = target(options);
                    upgraded(&mut session.request, permit, move |io| websocket(io, target, version, codec));
                    response
                }
            }
        }
        Some(Kind::Spdy) => match negotiate::spdy(headers, SPDY_PROTOCOLS) {
            Err(refusal) => *refusal,
            Ok((response, version)) => {
                let target = target(options);
                upgraded(&mut session.request, permit, move |io| spdy(io, target, version));
                response
            }
        },
    }
}

/// Serves a client that speaks WebSocket.
async fn websocket(io: Box<dyn Duplex>, target: Target, version: Version, codec: Codec) {
    let options = &target.options;
    let activity = Arc::new(Activity::new());
    let readable = [(STDIN, options.stdin), (RESIZE, options.tty)];
    let readable = readable.into_iter().filter_map(|(channel, wanted)| wanted.then_some(channel));
    let closes = version >= Version::V5;
    let mut channels = Channels::new(io, codec, readable, closes, activity.clone()).await;
    let out = |channel| Outbound::WebSocket(channels.sender(channel));
    let status = out(STATUS);
    let stdout = options.stdout.then(|| out(STDOUT));
    let stderr = options.stderr.then(|| out(STDERR));
    // An empty message on the lowest channel that is written says that the connection stands.
    let lowest = stdout.as_ref().or(stderr.as_ref()).unwrap_or(&status);
    if lowest.send(Bytes::new()).await.is_err() {
        return;
    }
    let gone = channels.gone();
    let (stdin, resize) = (channels.take(STDIN), channels.take(RESIZE));
    let client = Client { stdin, stdout, stderr, status, resize, gone, version };
    serve(target, client, &activity).await;
    channels.close().await;
}

/// Serves a client that speaks SPDY.
async fn spdy(io: Box<dyn Duplex>, target: Target, version: Version) {
    let activity = Arc::new(Activity::new());
    let mut connection = match Connection::new(io, activity.clone()) {
        Ok(connection) => connection,
        Err(error) => return tracing::warn!(%error, "SPDY is not available"),
    };
    let streams = streams(&mut connection, &target.options, version);
    let client = match tokio::time::timeout(STREAM_CREATION_TIMEOUT, streams).await {
        Ok(Some(client)) => client,
        Ok(None) => return,
        Err(_) => {
            tracing::debug!("timed out waiting for client to create streams");
            return connection.close().await;
        }
    };
    serve(target, client, &activity).await;
    connection.close().await;
}

/// Waits for the streams that the client opens; `None` when it leaves before.
async fn streams(connection: &mut Connection, options: &Remote, version: Version) -> Option<Client> {
    let resizes = options.tty && version >= Version::V3;
    let wanted = [
        ("error", true),
        ("stdin", options.stdin),
        ("stdout", options.stdout),
        ("stderr", options.stderr),
        ("resize", resizes),
    ];
    let mut found: [Option<Stream>; 5] = [const { None }; 5];
    while wanted.iter().zip(&found).any(|((_, wanted), stream)| *wanted && stream.is_none()) {
        let stream = connection.accept().await?;
        let kind = stream.headers.get("streamtype");
        let place = wanted.iter().position(|(name, wanted)| *wanted && *name == kind);
        match place.filter(|place| found[*place].is_none()) {
            Some(place) => {
                stream.accept().await.ok()?;
                found[place] = Some(stream);
            }
            None => stream.refuse().await,
        }
    }
    let [status, stdin, stdout, stderr, resize] = found;
    let out = |stream: Stream| Outbound::Spdy(stream.outbound);
    Some(Client {
        stdin: stdin.map(|stream| stream.inbound),
        stdout: stdout.map(out),
        stderr: stderr.map(out),
        status: out(status?),
        resize: resize.map(|stream| stream.inbound),
        gone: connection.gone(),
        version,
    })
}

/// Runs or joins, copies until the end, and tells the client about it. A client that leaves or falls silent
/// for hours takes the process's streams with it: its input ends and its output breaks.
async fn serve(target: Target, client: Client, activity: &Activity) {
    let Client { stdin, stdout, stderr, status, resize, gone, version } = client;
    let work = async {
        let end = match start(&target).await {
            Ok(session) => {
                let outputs = (stdout.clone(), stderr.clone());
                copy(session, (stdin, resize), outputs, target.operation).await
            }
            Err(error) => failed(target.operation, &error),
        };
        for output in [&stdout, &stderr].into_iter().flatten() {
            output.finish().await;
        }
        if let Some(text) = end.status(version) {
            // Who has left does not hear it.
            let _ = status.send(text).await;
        }
        status.finish().await;
    };
    tokio::select! {
        () = gone.cancelled() => tracing::debug!("the client of a remote command has left"),
        () = activity.idle() => tracing::debug!("the client of a remote command was idle for too long"),
        () = work => {}
    }
}

async fn start(target: &Target) -> cri::Result<StreamSession> {
    let Remote { stdin, stdout, stderr, tty, command } = target.options.clone();
    let container_id = target.container_id.clone();
    if target.operation == Operation::Exec {
        target.runtime.exec(ExecRequest { container_id, command, tty, stdin, stdout, stderr }).await
    } else {
        let tty = target.container_tty;
        let stderr = stderr && !tty;
        target.runtime.attach(AttachRequest { container_id, tty, stdin, stdout, stderr }).await
    }
}

/// How a failure to run or join is told.
fn failed(operation: Operation, error: &cri::Error) -> End {
    End::Failed(match operation {
        Operation::Exec => format!("error executing command in container: {error}"),
        _ => format!("error attaching to container: {error}"),
    })
}

/// Copies in all directions until the process has ended and its output was sent.
async fn copy(
    session: StreamSession,
    (stdin, sizes): (Option<Inbound>, Option<Inbound>),
    (stdout, stderr): (Option<Outbound>, Option<Outbound>),
    operation: Operation,
) -> End {
    let exited = CancellationToken::new();
    let exit = async {
        let code = session.exit.await;
        exited.cancel();
        code
    };
    let outputs = join(copy_out(session.stdout, stdout, &exited), copy_out(session.stderr, stderr, &exited));
    let inputs = async {
        join(copy_in(stdin, session.stdin), copy_sizes(sizes, session.resize)).await;
        std::future::pending::<Infallible>().await
    };
    let code = tokio::select! {
        (code, _) = join(exit, outputs) => code,
        never = inputs => match never {},
    };
    match code {
        Ok(code) if code != 0 && operation == Operation::Exec => End::ExitCode(code),
        Ok(_) => End::Success,
        Err(error) => failed(operation, &error),
    }
}

/// Copies output until its end, or until the process has ended and the output is silent.
async fn copy_out(from: Option<BoxRead>, to: Option<Outbound>, exited: &CancellationToken) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_LEN);
        let quiet = async {
            exited.cancelled().await;
            tokio::time::sleep(DRAIN_QUIET).await;
        };
        let read = tokio::select! {
            biased;
            read = from.read_buf(&mut buffer) => read,
            () = quiet => return,
        };
        // A terminal without a process reads as an error: that is its end.
        if matches!(read, Ok(0) | Err(_)) || to.send(buffer.split().freeze()).await.is_err() {
            return;
        }
    }
}

/// Copies input; its end is the end of the process's.
async fn copy_in(from: Option<Inbound>, to: Option<BoxWrite>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    while let Some(data) = from.next().await {
        // The process has closed its input: the rest is of no interest.
        if to.write_all(&data).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Terminal sizes as clients write them.
#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width", alias = "width", default)]
    width: u16,
    #[serde(rename = "Height", alias = "height", default)]
    height: u16,
}

async fn copy_sizes(from: Option<Inbound>, to: Option<mpsc::Sender<TerminalSize>>) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let mut text = BytesMut::new();
    while let Some(data) = from.next().await {
        text.extend_from_slice(&data);
        for size in take_sizes(&mut text) {
            if to.send(size).await.is_err() {
                return;
            }
        }
    }
}

/// Takes whole sizes out of `text`; what is not JSON is dropped.
fn take_sizes(text: &mut BytesMut) -> Vec<TerminalSize> {
    let mut sizes = Vec::new();
    let mut parser = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let mut damaged = false;
    for size in parser.by_ref() {
        match size {
            Ok(Size { width, height }) => sizes.push(TerminalSize { width, height }),
            // The parser must not be asked again: it would move its offset past what is not whole yet.
            Err(error) => {
                damaged = !error.is_eof();
                break;
            }
        }
    }
    let read = parser.byte_offset().min(text.len());
    let rest = text.split_off(read);
    *text = if damaged || rest.len() > RESIZE_LEN_MAX { BytesMut::new() } else { rest };
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_about_the_end() {
        let text =
            |end: End, version| end.status(version).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
        let object = |end: End| serde_json::from_str::<Value>(&text(end, Version::V5).unwrap()).unwrap();
        assert_eq!(object(End::Success), json!({"metadata": {}, "status": "Success"}));
        assert_eq!(
            object(End::ExitCode(3)),
            json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                   "message": "command terminated with exit code 3",
                   "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}})
        );
        assert_eq!(object(End::Failed("no".into()))["message"], "Internal error occurred: no");
        assert_eq!(text(End::Success, Version::V1), None);
        assert_eq!(text(End::ExitCode(3), Version::V3).unwrap(), "command terminated with exit code 3");
    }

    #[test]
    fn sizes_in_pieces() {
        let mut text = BytesMut::from(r#"{"Width":80,"Height":24}"#.as_bytes());
        text.extend_from_slice(b"\n{\"Width\":1");
        assert_eq!(take_sizes(&mut text), [TerminalSize { width: 80, height: 24 }]);
        text.extend_from_slice(b"00,\"Height\":50}");
        assert_eq!(take_sizes(&mut text), [TerminalSize { width: 100, height: 50 }]);
        text.extend_from_slice(b"nonsense");
        assert_eq!(take_sizes(&mut text), []);
        assert!(text.is_empty(), "nonsense does not pile up");
        text.extend_from_slice(&[b' '; 2 * RESIZE_LEN_MAX]);
        assert_eq!(take_sizes(&mut text), []);
        assert!(text.len() <= RESIZE_LEN_MAX);
    }
}
