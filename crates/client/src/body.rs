//! The body type that both transports share, so that a response can be forwarded without a copy.

use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};

/// Any error a body can end with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A stream of frames.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body without content.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body of one frame.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Reads a body whole, up to `limit` bytes. A body of one frame is returned without a copy.
///
/// # Errors
/// The body's own error, or one that says that the limit was passed.
pub async fn collect(mut body: Body, limit: usize) -> Result<Bytes, BoxError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if first.len() + rest.len() + data.len() > limit {
            return Err(format!("body over the limit of {limit} bytes").into());
        }
        match (first.is_empty(), rest.is_empty()) {
            (true, true) => first = data,
            (_, true) => {
                rest.extend_from_slice(&std::mem::take(&mut first));
                rest.extend_from_slice(&data);
            }
            (_, false) => rest.extend_from_slice(&data),
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::StreamBody;

    fn frames(frames: &[&'static str]) -> Body {
        let frames: Vec<_> =
            frames.iter().map(|f| Ok(http_body::Frame::data(Bytes::from_static(f.as_bytes())))).collect();
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    }

    #[tokio::test]
    async fn frames_are_joined_up_to_the_limit() {
        assert_eq!(&collect(frames(&["ab", "", "cd", "e"]), 5).await.unwrap()[..], b"abcde");
        assert_eq!(&collect(empty(), 0).await.unwrap()[..], b"");
        assert!(collect(frames(&["ab", "cd"]), 3).await.is_err());
    }
}
