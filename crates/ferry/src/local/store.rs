//! Pulls, pushes, archives and pruning, as the local socket serves them.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use cri::ImageService;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use image::{ArchiveFormat, ImageStore, PushRequest, Reference};
use serde::Deserialize;
use serde_json::json;

use super::{Answer, Lines, PIECE_BYTES, UPLOAD_QUEUE, answer};

/// An image to pull.
#[derive(Deserialize)]
pub struct Pull {
    image: String,
    /// Text of a Docker configuration.
    #[serde(default)]
    credentials: String,
}

/// An image to push.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub struct Push {
    image: String,
    destination: Option<String>,
    credentials: String,
    insecure: bool,
    ca: Option<String>,
}

/// Images to save.
#[derive(Deserialize)]
pub struct Save {
    images: Vec<String>,
    oci: bool,
}

fn auth(credentials: &str, name: &str) -> Option<cri::ImageAuth> {
    image::credentials(credentials, &name.parse::<Reference>().ok()?)
}

pub(super) fn pull(images: Arc<dyn ImageService>, pull: Pull) -> Answer {
    let (lines, answer) = Lines::open();
    tokio::spawn(async move {
        let auth = auth(&pull.credentials, &pull.image);
        let request = cri::PullRequest { image: pull.image, auth, progress: Some(lines.progress()) };
        let pulled = images.pull(request).await;
        let outcome =
            pulled.map(|p| json!({"id": p.image_id, "digest": p.repo_digest, "size": p.size_bytes}));
        lines.end(outcome.map_err(Into::into)).await;
    });
    answer
}

pub(super) fn push(images: Arc<ImageStore>, push: Push) -> Answer {
    let (lines, answer) = Lines::open();
    tokio::spawn(async move {
        let auth = auth(&push.credentials, push.destination.as_deref().unwrap_or(&push.image));
        let request = PushRequest {
            image: push.image,
            destination: push.destination,
            auth,
            insecure: push.insecure,
            ca: push.ca.map(String::into_bytes),
            progress: Some(lines.progress()),
        };
        let pushed = images.push(request).await;
        let outcome = pushed.map(
            |p| json!({"reference": p.reference, "digest": p.digest, "sent": p.sent, "present": p.present}),
        );
        lines.end(outcome.map_err(Into::into)).await;
    });
    answer
}

/// A writer whose pieces are an answer's body.
struct Pieces {
    sender: tokio::sync::mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        self.sender.blocking_send(Ok(Frame::data(piece))).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
}

/// An archive as the answer's body. What fails on the way breaks the body off.
pub(super) async fn save(images: Arc<ImageStore>, save: Save) -> anyhow::Result<Answer> {
    let format = if save.oci { ArchiveFormat::Oci } else { ArchiveFormat::Docker };
    let export = images.export(&save.images, format)?;
    let (sender, queue) = tokio::sync::mpsc::channel(UPLOAD_QUEUE);
    tokio::task::spawn_blocking(move || {
        let pieces = Pieces { sender: sender.clone(), piece: Vec::new() };
        if let Err(error) = images.write_archive(&export, pieces) {
            tracing::warn!(%error, "cannot write an archive of images");
            let _ = sender.blocking_send(Err(std::io::Error::other(error.to_string())));
        }
    });
    let stream =
        futures_util::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
    Ok(Response::new(BodyExt::boxed(StreamBody::new(stream))))
}

pub(super) async fn prune(images: Arc<ImageStore>, all: bool, cache: bool) -> anyhow::Result<Answer> {
    let pruned = tokio::task::spawn_blocking(move || -> image::Result<_> {
        match cache {
            true => Ok((Vec::new(), images.prune_cache(None)?)),
            false => images.prune(all),
        }
    });
    let (removed, bytes) = pruned.await??;
    Ok(answer(StatusCode::OK, &json!({"removed": removed, "bytes": bytes})))
}
