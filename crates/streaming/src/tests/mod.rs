//! The whole way from a client's bytes to a scripted runtime and back, over an in-memory connection.

mod forward;
mod remote;
mod runtime;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::BytesMut;
use cri::Duplex;
use futures_util::{SinkExt, StreamExt};
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use self::runtime::Scripted;
use super::spdy::frame::{Decoder, Encoder, Frame, Headers};
use super::{Operation, Session, handler};

/// A node's server that answers one connection, and the client's end of it.
fn connect(operation: Operation, runtime: Arc<Scripted>) -> DuplexStream {
    let (near, far) = tokio::io::duplex(64 << 10);
    let handler = handler();
    let service = service_fn(move |request: Request<Incoming>| {
        let session = Session {
            operation,
            sandbox_id: "sandbox".into(),
            container_id: (operation != Operation::PortForward).then(|| "container".into()),
            container_tty: false,
            runtime: runtime.clone(),
            request,
        };
        let answer = handler(session);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    tokio::spawn(async move {
        let server = hyper::server::conn::http1::Builder::new();
        // Clients that leave are part of the tests.
        let _ = server.serve_connection(TokioIo::new(far), service).with_upgrades().await;
    });
    near
}

/// Sends a request and reads the head of its answer.
async fn ask(io: &mut DuplexStream, method: &str, query: &str, headers: &[(&str, &str)]) -> String {
    let mut request = format!("{method} /x?{query} HTTP/1.1\r\nHost: node\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    io.write_all(format!("{request}\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A WebSocket with the protocol of this name.
async fn websocket(
    operation: Operation,
    runtime: &Arc<Scripted>,
    query: &str,
    protocol: &str,
) -> WebSocketStream<DuplexStream> {
    let mut io = connect(operation, runtime.clone());
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", protocol),
    ];
    let head = ask(&mut io, "GET", query, &headers).await.to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains(&format!("sec-websocket-protocol: {}\r\n", protocol.to_lowercase())), "{head}");
    WebSocketStream::from_raw_socket(io, Role::Client, None).await
}

/// The next message of a WebSocket that is not a pong; `None` at its orderly end.
async fn message(socket: &mut WebSocketStream<DuplexStream>) -> Option<Vec<u8>> {
    loop {
        match socket.next().await?.unwrap() {
            Message::Binary(data) => return Some(data.to_vec()),
            Message::Text(text) => return Some(text.as_bytes().to_vec()),
            Message::Close(frame) => {
                assert_eq!(frame.unwrap().code, 1000.into());
                return None;
            }
            _ => {}
        }
    }
}

async fn say(socket: &mut WebSocketStream<DuplexStream>, data: impl Into<Vec<u8>>) {
    socket.send(Message::binary(data.into())).await.unwrap();
}

/// A SPDY client that sees every frame.
struct Spdy<T> {
    io: T,
    encoder: Encoder,
    decoder: Decoder,
    buffer: BytesMut,
}

impl<T: Duplex> Spdy<T> {
    fn new(io: T) -> Self {
        Spdy { io, encoder: Encoder::new().unwrap(), decoder: Decoder::new(), buffer: BytesMut::new() }
    }

    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes).unwrap();
        self.io.write_all(&bytes).await.unwrap();
        self.io.flush().await.unwrap();
    }

    async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let headers = Headers(headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect());
        let (associated, priority, fin, unidirectional) = (0, 0, false, false);
        self.send(Frame::SynStream { stream, associated, priority, fin, unidirectional, headers }).await;
    }

    async fn data(&mut self, stream: u32, data: &'static [u8], fin: bool) {
        self.send(Frame::Data { stream, fin, data: data.into() }).await;
    }

    /// The next frame; `None` at the end.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.buffer).await.unwrap() == 0 {
                return None;
            }
        }
    }

    /// All data of the given streams until each has ended.
    async fn until_end<const N: usize>(&mut self, streams: [u32; N]) -> [String; N] {
        let mut texts = [const { Vec::new() }; N];
        let mut open = N;
        while open > 0 {
            let frame = self.next().await.expect("streams end before the connection");
            let Frame::Data { stream, fin, data } = frame else { continue };
            let place = streams.iter().position(|wanted| *wanted == stream).expect("a wanted stream");
            texts[place].extend_from_slice(&data);
            open -= usize::from(fin);
        }
        texts.map(|text| String::from_utf8(text).unwrap())
    }
}

/// A SPDY connection with this stream protocol.
async fn spdy(
    operation: Operation,
    runtime: &Arc<Scripted>,
    query: &str,
    protocol: &str,
) -> Spdy<DuplexStream> {
    let mut io = connect(operation, runtime.clone());
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", protocol),
        ("Content-Length", "0"),
    ];
    let head = ask(&mut io, "POST", query, &headers).await.to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains(&format!("x-stream-protocol-version: {protocol}\r\n")), "{head}");
    Spdy::new(io)
}
