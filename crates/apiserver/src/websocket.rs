//! Logs and watches over WebSockets: a long answer leaves in messages instead of chunks, for clients that
//! cannot read a body while it arrives, such as browsers.
//!
//! The request runs as any other; what it answers is then carried over. A refusal stays a plain answer.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::header::{ACCEPT_ENCODING, CONNECTION, CONTENT_TYPE, HeaderName, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::body::{self, Answer, Body};
use crate::path::RequestInfo;

const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");

/// What a browser says its token in, for want of headers; no protocol of its own.
const BEARER: &str = "base64url.bearer.authorization.k8s.io.";
/// How long the client may take to answer our goodbye: then it has read everything.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// How an answer is cut into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// Bytes as they come.
    Binary,
    /// The same in base64, as text.
    Base64,
    /// An event of JSON each, which is a line.
    Lines,
    /// An event of protobuf each, which has its length in front.
    Sized,
}

/// A request that wants its answer over a WebSocket.
pub(crate) struct Asked {
    upgrade: OnUpgrade,
    headers: HeaderMap,
    watch: bool,
}

/// Whether a request is about to become a WebSocket.
fn is_websocket(headers: &HeaderMap) -> bool {
    let has = |name: &HeaderName, wanted: &str| {
        let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).any(|word| word.trim().eq_ignore_ascii_case(wanted))
    };
    has(&CONNECTION, "upgrade") && has(&UPGRADE, "websocket")
}

/// The protocols that are offered, best first.
fn offered(headers: &HeaderMap) -> Vec<&str> {
    let lines = headers.get_all(PROTOCOL).iter().filter_map(|line| line.to_str().ok());
    let words = lines.flat_map(|line| line.split(',')).map(str::trim);
    words.filter(|word| !word.is_empty() && !word.starts_with(BEARER)).collect()
}

/// The protocol to agree to, and how a log is framed in it.
fn log_protocol(headers: &HeaderMap) -> Result<(Option<&str>, Framing), String> {
    let offered = offered(headers);
    let known = |name: &&str| match *name {
        "binary.k8s.io" => Some((Some("binary.k8s.io"), Framing::Binary)),
        "base64.binary.k8s.io" => Some((Some("base64.binary.k8s.io"), Framing::Base64)),
        _ => None,
    };
    if offered.is_empty() {
        return Ok((None, Framing::Binary));
    }
    offered.iter().find_map(known).ok_or_else(|| {
        let offered = offered.join(" ");
        format!("requested protocol(s) are not supported: [{offered}]; supports [ base64.binary.k8s.io binary.k8s.io]")
    })
}

fn refusal(status: StatusCode, why: &str) -> Answer {
    let mut answer = Response::new(body::full(why.to_owned()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

impl Asked {
    /// Notes that a log or a watch is wanted over a WebSocket; from then on the request is a plain one.
    pub(crate) fn take(request: &mut Request<Body>, info: &RequestInfo) -> Option<Asked> {
        let log = info.resource == "pods" && info.subresource == "log" && info.verb == "get";
        if !(log || info.verb == "watch") || !is_websocket(request.headers()) {
            return None;
        }
        let upgrade = hyper::upgrade::on(&mut *request);
        let headers = request.headers().clone();
        for name in [UPGRADE, CONNECTION, ACCEPT_ENCODING] {
            request.headers_mut().remove(name);
        }
        Some(Asked { upgrade, headers, watch: info.verb == "watch" })
    }

    /// Sends the body of `answer` in messages.
    pub(crate) fn answer(self, answer: Answer) -> Answer {
        if !answer.status().is_success() {
            return answer;
        }
        let agreed = match self.watch {
            true => {
                let is_protobuf = answer
                    .headers()
                    .get(CONTENT_TYPE)
                    .is_some_and(|kind| kind.as_bytes().starts_with(b"application/vnd.kubernetes.protobuf"));
                let framing = if is_protobuf { Framing::Sized } else { Framing::Lines };
                Ok((offered(&self.headers).first().copied(), framing))
            }
            false => log_protocol(&self.headers),
        };
        let (protocol, framing) = match agreed {
            Ok(agreed) => agreed,
            Err(why) => return refusal(StatusCode::FORBIDDEN, &why),
        };
        if self.headers.get(VERSION).is_none_or(|version| version != "13") {
            let mut answer = refusal(StatusCode::BAD_REQUEST, "missing or bad WebSocket Version");
            answer.headers_mut().insert(VERSION, HeaderValue::from_static("13"));
            return answer;
        }
        let accept = self.headers.get(KEY).map(|key| derive_accept_key(key.as_bytes()));
        let Some(accept) = accept.and_then(|accept| HeaderValue::try_from(accept).ok()) else {
            return refusal(StatusCode::BAD_REQUEST, "mismatch challenge/response");
        };
        let mut switched = Response::new(body::full(""));
        *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = switched.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(ACCEPT, accept);
        if let Some(protocol) = protocol.and_then(|protocol| HeaderValue::from_str(protocol).ok()) {
            headers.insert(PROTOCOL, protocol);
        }
        for name in ["audit-id", "warning"] {
            answer.headers().get_all(name).iter().for_each(|value| {
                headers.append(name, value.clone());
            });
        }
        let upgrade = self.upgrade;
        tokio::spawn(async move {
            match upgrade.await {
                Ok(io) => {
                    let socket = WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await;
                    if let Err(error) = carry(socket, answer.into_body(), framing).await {
                        tracing::debug!(%error, "a WebSocket broke");
                    }
                }
                Err(error) => tracing::debug!(%error, "an upgrade failed"),
            }
        });
        switched
    }
}

/// Cuts what has arrived into messages; what is not whole yet stays in `buffer`.
fn messages(framing: Framing, buffer: &mut BytesMut) -> Vec<Message> {
    let mut out = Vec::new();
    match framing {
        Framing::Binary => out.push(Message::Binary(buffer.split().freeze())),
        Framing::Base64 => out.push(Message::text(STANDARD.encode(buffer.split()))),
        Framing::Lines => {
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1);
                out.push(Message::text(String::from_utf8_lossy(&line).into_owned()));
            }
        }
        Framing::Sized => {
            while let Some((length, rest)) = buffer.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if rest.len() < length {
                    break;
                }
                buffer.advance(4);
                out.push(Message::Binary(buffer.split_to(length).freeze()));
            }
        }
    }
    out
}

async fn carry(
    socket: WebSocketStream<TokioIo<Upgraded>>,
    mut body: Body,
    framing: Framing,
) -> Result<(), tungstenite::Error> {
    let (mut sink, mut stream) = socket.split();
    let outward = async {
        let mut buffer = BytesMut::new();
        while let Some(Ok(frame)) = body.frame().await {
            let data: Bytes = frame.into_data().unwrap_or_default();
            if data.is_empty() {
                continue;
            }
            buffer.extend_from_slice(&data);
            for message in messages(framing, &mut buffer) {
                sink.send(message).await?;
            }
        }
        let goodbye = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        sink.send(Message::Close(Some(goodbye))).await
    };
    // What the client says is of no interest, except that it leaves.
    let inward = async { while let Some(Ok(_)) = stream.next().await {} };
    tokio::pin!(outward, inward);
    tokio::select! {
        outcome = &mut outward => {
            outcome?;
            let _ = tokio::time::timeout(CLOSE_WAIT, inward).await;
        }
        () = &mut inward => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn who_asks_for_one() {
        assert!(is_websocket(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")])));
        assert!(!is_websocket(&headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")])));
        assert!(!is_websocket(&headers(&[("upgrade", "websocket")])));
    }

    #[test]
    fn protocols_of_logs() {
        let of = |line: &'static str| {
            let headers = headers(&[("sec-websocket-protocol", line)]);
            log_protocol(&headers).map(|(name, framing)| (name.map(String::from), framing))
        };
        assert_eq!(log_protocol(&HeaderMap::new()), Ok((None, Framing::Binary)));
        assert_eq!(of("base64url.bearer.authorization.k8s.io.abc"), Ok((None, Framing::Binary)));
        assert_eq!(of("x, base64.binary.k8s.io"), Ok((Some("base64.binary.k8s.io".into()), Framing::Base64)));
        assert_eq!(of("binary.k8s.io"), Ok((Some("binary.k8s.io".into()), Framing::Binary)));
        assert!(of("channel.k8s.io").is_err_and(|why| why.contains("[channel.k8s.io]")));
    }

    #[test]
    fn answers_are_cut() {
        let mut buffer = BytesMut::from(&b"{1}\n{2}\n{3"[..]);
        let cut = messages(Framing::Lines, &mut buffer);
        assert_eq!(cut, [Message::text("{1}\n"), Message::text("{2}\n")]);
        assert_eq!(&buffer[..], b"{3");
        let mut buffer = BytesMut::from(&b"\0\0\0\x02ab\0\0\0\x03c"[..]);
        assert_eq!(messages(Framing::Sized, &mut buffer), [Message::Binary(Bytes::from_static(b"ab"))]);
        assert_eq!(buffer.len(), 5);
        let mut buffer = BytesMut::from(&b"hi\n"[..]);
        assert_eq!(messages(Framing::Base64, &mut buffer), [Message::text("aGkK")]);
        assert!(buffer.is_empty());
    }
}
