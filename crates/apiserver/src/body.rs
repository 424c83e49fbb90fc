//! Bodies and answers: the shapes every handler returns.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use meta::{Reason, Status};
use serde_json::Value;

/// Why a body ended early.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A request or response body.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// An answer.
pub type Answer = Response<Body>;

/// Largest request body, as upstream limits it.
pub const REQUEST_BYTES_MAX: usize = 3 * 1024 * 1024;

/// A body of one piece.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Bytes that leave a long body at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Writes one item of a long body.
pub type Each = Box<dyn FnMut(&Bytes, &mut Vec<u8>) + Send>;

/// A long body that is made piece by piece, as it is sent.
struct Pieced {
    head: Bytes,
    items: std::vec::IntoIter<Bytes>,
    each: Each,
    tail: Bytes,
    /// Bytes to come, where that is known.
    exact: Option<u64>,
    done: bool,
}

/// A body of `head`, what `each` makes of the items, and `tail`. `exact` is the length of it all, if known.
pub fn pieced(head: Bytes, items: Vec<Bytes>, each: Each, tail: Bytes, exact: Option<u64>) -> Body {
    Pieced { head, items: items.into_iter(), each, tail, exact, done: false }.boxed_unsync()
}

/// Marks answers whose length is not known although they end by themselves, unlike a watch.
#[derive(Clone, Copy)]
pub struct Finite;

/// An answer with a body that ends by itself.
pub fn finite(body: Body) -> Answer {
    let mut answer = Response::new(body);
    answer.extensions_mut().insert(Finite);
    answer
}

impl http_body::Body for Pieced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let this = &mut *self;
        let size = this.exact.map_or(PIECE_BYTES, |left| usize::try_from(left).unwrap_or(PIECE_BYTES));
        let mut piece = Vec::with_capacity(PIECE_BYTES.min(size));
        piece.extend_from_slice(&std::mem::take(&mut this.head));
        while piece.len() < PIECE_BYTES {
            let Some(item) = this.items.next() else {
                piece.extend_from_slice(&std::mem::take(&mut this.tail));
                this.done = true;
                break;
            };
            (this.each)(&item, &mut piece);
        }
        this.exact = this.exact.map(|left| left.saturating_sub(piece.len() as u64));
        Poll::Ready(Some(Ok(http_body::Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.exact.map_or_else(http_body::SizeHint::default, http_body::SizeHint::with_exact)
    }
}

/// Longest time a request body may take to arrive (upstream's limit of a whole request).
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);

/// Reads a request body whole, within the limits of size and time. A body of one frame is not copied.
pub async fn read(body: Body) -> Result<Bytes, Status> {
    match tokio::time::timeout(REQUEST_TIME_MAX, read_up_to(body, REQUEST_BYTES_MAX)).await {
        Ok(read) => read,
        Err(_) => Err(Status::timeout("Timeout: request did not complete within the allotted timeout")),
    }
}

/// Reads a body whole, up to a size.
pub async fn read_up_to(mut body: Body, bytes_max: usize) -> Result<Bytes, Status> {
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|e| Status::bad_request(format!("the request body could not be read: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + rest.len() + data.len() > bytes_max {
            let message = format!("Request entity too large: limit is {bytes_max}");
            return Err(Status::new(413, Reason::RequestEntityTooLarge, message));
        }
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&std::mem::take(&mut first));
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// JSON with a status code.
pub fn json_bytes(code: u16, bytes: impl Into<Bytes>) -> Answer {
    typed(code, "application/json", bytes)
}

/// JSON with a status code.
pub fn json(code: u16, value: &Value) -> Answer {
    json_bytes(code, value.to_string())
}

/// Plain text.
pub fn text(code: u16, text: impl Into<Bytes>) -> Answer {
    typed(code, "text/plain; charset=utf-8", text)
}

/// Any content type known at compile time.
pub fn typed(code: u16, content_type: &'static str, bytes: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(full(bytes));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// A failure.
pub fn failure(status: &Status) -> Answer {
    let mut answer = json(status.code, &status.to_json());
    let retry = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if retry > 0
        && let Ok(value) = HeaderValue::from_str(&retry.to_string())
    {
        answer.headers_mut().insert(header::RETRY_AFTER, value);
    }
    answer
}

/// Adds `Warning` headers (RFC 7234, code 299).
pub fn warn(answer: &mut Answer, warnings: &[String]) {
    for text in warnings {
        let quoted: String = text
            .chars()
            .filter(|c| !c.is_control())
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                c => vec![c],
            })
            .collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            answer.headers_mut().append(header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::StreamBody;

    #[tokio::test(start_paused = true)]
    async fn slow_and_large_bodies_are_refused() {
        let never = StreamBody::new(stream::pending::<Result<http_body::Frame<Bytes>, BoxError>>());
        assert_eq!(read(never.boxed_unsync()).await.unwrap_err().code, 504);
        let status = read(full(vec![b' '; REQUEST_BYTES_MAX + 1])).await.unwrap_err();
        assert_eq!((status.code, &*status.message), (413, "Request entity too large: limit is 3145728"));
        assert_eq!(read(full(vec![b' '; REQUEST_BYTES_MAX])).await.unwrap().len(), REQUEST_BYTES_MAX);
    }
}
