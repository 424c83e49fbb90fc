//! The last step of an answer: handlers write JSON; here it becomes what the client asked for (protobuf,
//! YAML, indented, compressed). Streams pass untouched: they know their own form.

use std::io::Write;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use serde::Deserialize;

use crate::body::{Answer, Body, Finite, full};
use crate::negotiate::{self, Media, Offer};
use crate::path::Query;

/// Answers above this size are compressed for clients that can read it (upstream's threshold).
const COMPRESS_BYTES_MIN: usize = 128 * 1024;

/// Answers above this size are compressed while they are sent.
const STREAM_BYTES_MIN: u64 = 1 << 20;

/// What a request says about the form of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Form {
    media: Media,
    pretty: bool,
    gzip: bool,
    /// The answer has no body, only its head.
    head: bool,
}

impl Form {
    /// Reads it from a request.
    pub fn of(request: &Request<Body>, query: &Query) -> Form {
        let headers = request.headers();
        // What cannot be served is refused elsewhere, in JSON.
        let wanted = negotiate::wanted(headers, Offer::ALL).ok();
        Form {
            media: wanted.map_or(Media::Json, |w| w.media),
            pretty: wanted.is_some_and(|w| w.pretty) || is_pretty(headers, query),
            gzip: takes_gzip(headers),
            head: *request.method() == Method::HEAD,
        }
    }
}

/// `pretty` in the query decides; without it people's tools get indented answers.
fn is_pretty(headers: &HeaderMap, query: &Query) -> bool {
    match query.get("pretty") {
        "" => {
            let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
            ["curl", "Wget", "Mozilla/5.0"].iter().any(|a| agent.starts_with(a))
        }
        value => matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"),
    }
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|v| {
        let v = v.trim();
        v == "gzip" || v.starts_with("gzip;")
    })
}

/// Gives an answer its form.
pub async fn finish(answer: Answer, form: Form) -> Answer {
    let content = answer.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let is_json = content == Some(b"application/json");
    let unknown = answer.extensions().get::<Finite>().map(|_| u64::MAX);
    let Some(size) = answer.body().size_hint().exact().or(unknown) else { return without_body(answer, form) };
    let transcodes = is_json && size > 0 && (form.media != Media::Json || form.pretty);
    let compresses = form.gzip && size > COMPRESS_BYTES_MIN as u64;
    if !transcodes && !compresses {
        return without_body(answer, form);
    }
    let (mut parts, body) = answer.into_parts();
    if compresses && !transcodes && size > STREAM_BYTES_MIN && !form.head {
        parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        return Answer::from_parts(parts, compressed(body));
    }
    // A short body is in memory already, or it is one that only people ask for (YAML, indented).
    let Ok(collected) = body.collect().await else {
        return Answer::from_parts(parts, full(Bytes::new()));
    };
    let mut bytes = collected.to_bytes();
    if transcodes {
        let (content_type, transcoded) = transcode(&bytes, form);
        parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        bytes = transcoded.unwrap_or(bytes);
    }
    if form.gzip && bytes.len() > COMPRESS_BYTES_MIN {
        let plain = bytes.clone();
        // Megabytes take milliseconds to compress: not on a thread that serves others.
        if let Ok(Some(compressed)) = tokio::task::spawn_blocking(move || gzip(&plain)).await {
            bytes = compressed.into();
            parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
    }
    without_body(Answer::from_parts(parts, full(bytes)), form)
}

/// The answer of a HEAD request says how long its body would be, and has none.
fn without_body(answer: Answer, form: Form) -> Answer {
    if !form.head {
        return answer;
    }
    let (mut parts, body) = answer.into_parts();
    if let Some(size) = body.size_hint().exact()
        && let Ok(size) = HeaderValue::from_str(&size.to_string())
    {
        parts.headers.insert(header::CONTENT_LENGTH, size);
    }
    Answer::from_parts(parts, full(Bytes::new()))
}

/// A long body, compressed piece by piece as it is read: it never stands in memory as a whole.
fn compressed(body: Body) -> Body {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let stream = futures_util::stream::unfold(Some((body, encoder)), |state| async move {
        let (mut body, mut encoder) = state?;
        while let Some(frame) = body.frame().await {
            let written = match frame {
                Ok(frame) => {
                    frame.into_data().map_or(Ok(()), |data| encoder.write_all(&data)).map_err(Into::into)
                }
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                return Some((Err(error), None));
            }
            let out = std::mem::take(encoder.get_mut());
            // Others may run between two pieces.
            tokio::task::yield_now().await;
            if !out.is_empty() {
                return Some((Ok(http_body::Frame::data(Bytes::from(out))), Some((body, encoder))));
            }
        }
        match encoder.finish() {
            Ok(out) => Some((Ok(http_body::Frame::data(Bytes::from(out))), None)),
            Err(error) => Some((Err(error.into()), None)),
        }
    });
    http_body_util::StreamBody::new(stream).boxed_unsync()
}

fn gzip(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).ok()?;
    out.finish().ok()
}

/// Content type and bytes; no bytes where the JSON stays as it is.
fn transcode(json: &Bytes, form: Form) -> (&'static str, Option<Bytes>) {
    match form.media {
        Media::Protobuf => match protobuf(json) {
            Some(bytes) => (negotiate::PROTOBUF, Some(bytes.into())),
            None => ("application/json", None),
        },
        Media::Yaml => match yaml(json) {
            Some(text) => ("application/yaml", Some(text.into())),
            None => ("application/json", None),
        },
        Media::Json => ("application/json", Some(indented(json).into())),
    }
}

#[derive(Deserialize)]
struct TypeMeta {
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

/// An object in its envelope; `None` for what has no protobuf form.
pub fn protobuf(json: &[u8]) -> Option<Vec<u8>> {
    let head: TypeMeta = serde_json::from_slice(json).ok()?;
    let schema = schema::Schema::builtin();
    let (group, version) = meta::gvk::split_api_version(&head.api_version);
    let version = if version.is_empty() { "v1" } else { version };
    let ty = schema.kind(group, version, &head.kind)?;
    if !schema.has_numbers(ty) {
        return None;
    }
    let message = schema::encode::message(schema, ty, json).ok()?;
    let api_version = if head.api_version.is_empty() { "v1" } else { &head.api_version };
    Some(schema::encode::envelope(api_version, &head.kind, &message))
}

fn yaml(json: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(json).ok()?;
    serde_saphyr::to_string(&value).ok()
}

/// JSON with two spaces per level, members in their order.
fn indented(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() * 2);
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    let newline = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.resize(out.len() + 2 * depth, b' ');
    };
    let mut bytes = json.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if quoted {
            out.push(byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => {
                quoted = true;
                out.push(byte);
            }
            b'{' | b'[' => {
                out.push(byte);
                let closing = if byte == b'{' { b'}' } else { b']' };
                if bytes.next_if_eq(&closing).is_some() {
                    out.push(closing);
                } else {
                    depth += 1;
                    newline(&mut out, depth);
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                newline(&mut out, depth);
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                newline(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            b' ' | b'\n' | b'\r' | b'\t' => {}
            byte => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indentation_keeps_the_order_and_the_strings() {
        let text = indented(br#"{"b":[1,{"c":"x: {,}\"["}],"a":{},"d":[]}"#);
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "{\n  \"b\": [\n    1,\n    {\n      \"c\": \"x: {,}\\\"[\"\n    }\n  ],\n  \"a\": {},\n  \"d\": []\n}"
        );
    }

    #[test]
    fn objects_lists_and_failures_have_a_protobuf_form() {
        for json in [
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}"#,
            r#"{"apiVersion":"apps/v1","kind":"DeploymentList","metadata":{},"items":[]}"#,
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"code":404}"#,
            r#"{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"v1","resources":[{"name":"pods","verbs":["get"]}]}"#,
            r#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"a"}}"#,
        ] {
            let bytes = protobuf(json.as_bytes()).unwrap_or_else(|| panic!("{json}"));
            let open = schema::protobuf::open(&bytes).unwrap();
            assert!(!open.kind.is_empty() && !open.api_version.is_empty());
        }
        assert!(protobuf(br#"{"apiVersion":"example.com/v1","kind":"Widget"}"#).is_none());
    }
}
