//! Which protocol a client wants, and the answer that agrees to it: pure functions over headers.

use client::{Body, body};
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const WEBSOCKET_PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const WEBSOCKET_VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// An answer that refuses the upgrade.
pub(super) type Refusal = Box<Response<Body>>;

/// What the connection becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// RFC 6455.
    WebSocket,
    /// SPDY/3.1.
    Spdy,
}

/// An answer of plain text.
pub(super) fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(body::full(text.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// The comma-separated words of all headers of a name.
fn words(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    let words = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty());
    words.map(String::from).collect()
}

/// What the client wants the connection to become.
pub(super) fn kind(headers: &HeaderMap) -> Option<Kind> {
    let has = |name: &HeaderName, wanted: &str| {
        words(headers, name).iter().any(|word| word.eq_ignore_ascii_case(wanted))
    };
    if !has(&CONNECTION, "upgrade") {
        return None;
    }
    if has(&UPGRADE, "websocket") {
        return Some(Kind::WebSocket);
    }
    has(&UPGRADE, "SPDY/3.1").then_some(Kind::Spdy)
}

/// The answer to a request that cannot be streamed because it does not ask for an upgrade.
pub(super) fn upgrade_required() -> Response<Body> {
    text(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request")
}

/// The first protocol of `offered` that is in `known`, as the client's order is its preference.
fn first_known<'a, T>(offered: &[String], known: &'a [(&'static str, T)]) -> Option<&'a (&'static str, T)> {
    offered.iter().find_map(|word| known.iter().find(|(name, _)| name == word))
}

fn switching(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// Agrees to a WebSocket. A client that names no protocol gets `default`; one that names only unknown ones
/// is refused, as is a request that breaks RFC 6455.
pub(super) fn websocket<T: Copy>(
    headers: &HeaderMap,
    known: &[(&'static str, T)],
    default: T,
) -> Result<(Response<Body>, T), Refusal> {
    let refuse = |why: &str| Box::new(text(StatusCode::BAD_REQUEST, format!("unable to upgrade: {why}")));
    if headers.get(WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let mut response = refuse("WebSocket version 13 is required");
        response.headers_mut().insert(WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(response);
    }
    let key = headers.get(WEBSOCKET_KEY).ok_or_else(|| refuse("Sec-WebSocket-Key is required"))?;
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    let accept = accept.map_err(|_| refuse("Sec-WebSocket-Key is invalid"))?;
    let offered = words(headers, &WEBSOCKET_PROTOCOL);
    let chosen = first_known(&offered, known);
    if chosen.is_none() && !offered.is_empty() {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {names:?}"
        );
        return Err(Box::new(text(StatusCode::FORBIDDEN, message)));
    }
    let mut response = switching("websocket");
    response.headers_mut().insert(WEBSOCKET_ACCEPT, accept);
    if let Some((name, _)) = chosen {
        response.headers_mut().insert(WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((response, chosen.map_or(default, |(_, value)| *value)))
}

/// Agrees to SPDY with one of the protocols that are `known`.
pub(super) fn spdy<T: Copy>(
    headers: &HeaderMap,
    known: &[(&'static str, T)],
) -> Result<(Response<Body>, T), Refusal> {
    let offered = words(headers, &STREAM_PROTOCOL);
    if offered.is_empty() {
        let message = "unable to upgrade: X-Stream-Protocol-Version is required";
        return Err(Box::new(text(StatusCode::BAD_REQUEST, message)));
    }
    let Some((name, value)) = first_known(&offered, known) else {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
            offered.join(" "),
            names.join(" ")
        );
        let mut response = text(StatusCode::FORBIDDEN, message);
        for name in names {
            response.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
        }
        return Err(Box::new(response));
    };
    let mut response = switching("SPDY/3.1");
    response.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
    Ok((response, *value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[(&str, u8)] = &[("v5.channel.k8s.io", 5), ("v4.channel.k8s.io", 4)];

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn kinds() {
        let table = [
            (&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")][..], Some(Kind::WebSocket)),
            (&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")], Some(Kind::Spdy)),
            (&[("connection", "Upgrade"), ("upgrade", "h2c")], None),
            (&[("upgrade", "websocket")], None),
        ];
        for (lines, want) in table {
            assert_eq!(kind(&headers(lines)), want);
        }
    }

    #[test]
    fn websockets() {
        let ask = |protocols: &'static str| {
            let mut all = headers(&[
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ]);
            if !protocols.is_empty() {
                all.insert(WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
            }
            websocket(&all, KNOWN, 1)
        };
        let (response, version) = ask("x, v4.channel.k8s.io, v5.channel.k8s.io").unwrap();
        assert_eq!((response.status(), version), (StatusCode::SWITCHING_PROTOCOLS, 4));
        // RFC 6455's own example.
        assert_eq!(response.headers()[WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()[WEBSOCKET_PROTOCOL], "v4.channel.k8s.io");
        let (response, version) = ask("").unwrap();
        assert_eq!((version, response.headers().get(WEBSOCKET_PROTOCOL)), (1, None));
        assert_eq!(ask("v9.channel.k8s.io").unwrap_err().status(), StatusCode::FORBIDDEN);
        let old = headers(&[("sec-websocket-version", "8"), ("sec-websocket-key", "x")]);
        assert_eq!(websocket(&old, KNOWN, 1).unwrap_err().status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn spdy_protocols() {
        let (response, version) =
            spdy(&headers(&[("x-stream-protocol-version", "v4.channel.k8s.io")]), KNOWN).unwrap();
        assert_eq!((response.headers()[UPGRADE].to_str().unwrap(), version), ("SPDY/3.1", 4));
        assert_eq!(spdy(&HeaderMap::new(), KNOWN).unwrap_err().status(), StatusCode::BAD_REQUEST);
        let refused = spdy(&headers(&[("x-stream-protocol-version", "v9")]), KNOWN).unwrap_err();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert_eq!(refused.headers().get_all(ACCEPTED_PROTOCOLS).iter().count(), 2);
    }
}
