//! The watch stream: frames of a response body, cut anywhere, back into events.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::Stream;
use http_body::Body as _;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::body::Body;
use crate::error::Error;
use crate::transport::TransportError;

/// Longest event accepted: far over the largest object the API stores (about 1.5 MiB, 3 MiB in a request).
pub const MAX_EVENT_BYTES: usize = 16 * 1024 * 1024;

/// What happened to an object (meta/v1 WatchEvent).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It appeared, or began to match the selector.
    Added,
    /// It changed.
    Modified,
    /// It went, or no longer matches the selector.
    Deleted,
    /// Nothing, but everything up to the object's resource version has been delivered.
    Bookmark,
}

/// One event of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEvent {
    /// What happened.
    pub kind: EventKind,
    /// The object as JSON.
    pub object: Bytes,
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Cuts a byte stream into lines and lines into events. No IO: bytes in, events out.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: BytesMut,
    /// How much of `buffer` is known to hold no line break.
    searched: usize,
}

impl Parser {
    /// Takes in the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete event, or `None` until more bytes have come. An `ERROR` event is an `Err`.
    pub fn next_event(&mut self) -> Option<Result<WatchEvent, Error>> {
        loop {
            let Some(at) = self.buffer[self.searched..].iter().position(|&b| b == b'\n') else {
                self.searched = self.buffer.len();
                if self.searched > MAX_EVENT_BYTES {
                    self.buffer.clear();
                    self.searched = 0;
                    return Some(Err(Error::Decode("watch event over the size limit".into())));
                }
                return None;
            };
            let line = self.buffer.split_to(self.searched + at).freeze();
            self.buffer.advance(1);
            self.searched = 0;
            if !line.trim_ascii().is_empty() {
                return Some(decode(&line));
            }
        }
    }

    /// What is left when the stream has ended: a last event without a line break, if it is whole.
    pub fn finish(&mut self) -> Option<Result<WatchEvent, Error>> {
        self.searched = 0;
        let rest = std::mem::take(&mut self.buffer).freeze();
        if rest.trim_ascii().is_empty() { None } else { Some(decode(&rest)) }
    }
}

/// Reads one line. The object shares the line's memory.
fn decode(line: &Bytes) -> Result<WatchEvent, Error> {
    let frame: Frame<'_> = serde_json::from_slice(line)?;
    let object = line.slice_ref(frame.object.get().as_bytes());
    let kind = match frame.kind {
        "ADDED" => EventKind::Added,
        "MODIFIED" => EventKind::Modified,
        "DELETED" => EventKind::Deleted,
        "BOOKMARK" => EventKind::Bookmark,
        "ERROR" => return Err(serde_json::from_slice::<meta::Status>(&object)?.into()),
        other => return Err(Error::Decode(format!("unknown watch event type {other:?}").into())),
    };
    Ok(WatchEvent { kind, object })
}

/// The events of a running watch. Dropping it ends the watch.
pub struct WatchStream {
    body: Body,
    parser: Parser,
    ended: bool,
}

impl WatchStream {
    /// Reads events from a response body.
    pub fn new(body: Body) -> Self {
        WatchStream { body, parser: Parser::default(), ended: false }
    }

    /// The next event; `None` when the server has closed the watch.
    pub async fn next(&mut self) -> Option<Result<WatchEvent, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for WatchStream {
    type Item = Result<WatchEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.parser.next_event() {
                return Poll::Ready(Some(event));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.parser.push(data);
                    }
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(TransportError::Body(error).into())));
                }
                None => {
                    self.ended = true;
                    return Poll::Ready(self.parser.finish());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        "{\"type\":\"ADDED\",\"object\":{\"a\":1}}\n\n",
        "{\"type\":\"MODIFIED\",\"object\":{\"a\":\"x\\ny\"}}\n",
        "{\"type\":\"BOOKMARK\",\"object\":{}}\n",
        "{\"type\":\"DELETED\",\"object\":{\"b\":[2]}}"
    );

    fn parse_in_pieces(size: usize) -> Vec<(EventKind, String)> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in STREAM.as_bytes().chunks(size) {
            parser.push(piece);
            while let Some(event) = parser.next_event() {
                events.push(event);
            }
        }
        events.extend(parser.finish());
        events
            .into_iter()
            .map(|e| e.map(|e| (e.kind, String::from_utf8_lossy(&e.object).into_owned())).unwrap())
            .collect()
    }

    #[test]
    fn frames_may_be_cut_anywhere() {
        let whole = parse_in_pieces(STREAM.len());
        assert_eq!(whole.len(), 4);
        assert_eq!(whole[1], (EventKind::Modified, "{\"a\":\"x\\ny\"}".to_owned()));
        assert_eq!(whole[3], (EventKind::Deleted, "{\"b\":[2]}".to_owned()));
        for size in 1..40 {
            assert_eq!(parse_in_pieces(size), whole, "pieces of {size}");
        }
    }

    #[test]
    fn errors_are_statuses() {
        let mut parser = Parser::default();
        parser.push(b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410,\"reason\":\"Expired\",\"message\":\"too old\"}}\n");
        let error = parser.next_event().unwrap().unwrap_err();
        assert!(error.is_expired(), "{error}");
        parser.push(b"nonsense\n");
        assert!(matches!(parser.next_event(), Some(Err(Error::Decode(_)))));
    }

    #[test]
    fn endless_lines_are_refused() {
        let mut parser = Parser::default();
        parser.push(&vec![b'x'; MAX_EVENT_BYTES + 1]);
        assert!(matches!(parser.next_event(), Some(Err(Error::Decode(_)))));
        assert!(parser.next_event().is_none());
    }
}
