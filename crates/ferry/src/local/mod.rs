//! The local socket of a running instance: `ferry image ...` reaches the node's image store through it, so
//! that one process owns the store. Only root can open it (the data directory is 0700).

pub mod building;
mod call;
mod store;

pub use call::{Source, call, document as body, receive, source};

use std::convert::Infallible;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use apiserver::path::Query;
use bytes::Bytes;
use cri::ImageService;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use image::ImportOptions;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::cni;
use crate::runtime::Embedded;

/// Pieces of an archive read ahead of the importer.
const UPLOAD_QUEUE: usize = 16;
/// Size of the pieces an archive is sent in.
const PIECE_BYTES: usize = 256 * 1024;

/// Lines of progress on their way to a client; when it reads too slowly, further ones are dropped.
const PROGRESS_QUEUE: usize = 64;

/// Longest request of the network plugin.
const NETWORK_REQUEST_MAX: usize = 1 << 20;

/// What the socket gives access to.
#[derive(Clone)]
pub struct Shared {
    /// The node's images.
    pub images: Arc<dyn ImageService>,
    /// The embedded store and its builder, where the images are in that.
    pub embedded: Option<Embedded>,
    /// The pod network, for the plugin.
    pub network: Arc<dyn cri::NetworkProvider>,
}

/// Largest document that a request carries.
const DOCUMENT_BYTES_MAX: usize = 64 << 20;

type Answer = Response<BoxBody<Bytes, std::io::Error>>;

fn answer(code: StatusCode, value: &Value) -> Answer {
    let mut answer =
        Response::new(Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed());
    *answer.status_mut() = code;
    answer
}

/// An answer in lines: one of JSON for each step of progress, and at last, without a line's end, the outcome.
struct Lines(tokio::sync::mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>);

impl Lines {
    /// The way to the client, and the answer that carries it.
    fn open() -> (Lines, Answer) {
        let (lines, queue) = tokio::sync::mpsc::channel(PROGRESS_QUEUE);
        let stream =
            futures_util::stream::unfold(
                queue,
                |mut queue| async move { Some((queue.recv().await?, queue)) },
            );
        (Lines(lines), Response::new(BodyExt::boxed(StreamBody::new(stream))))
    }

    /// Tells progress; a slow client misses a step.
    fn progress(&self) -> cri::PullProgressFn {
        let told = self.0.clone();
        Arc::new(move |progress| {
            let line = format!("{}\n", progress_value(progress));
            let _ = told.try_send(Ok(Frame::data(Bytes::from(line))));
        })
    }

    /// Tells a step that must not be missed; false when nobody listens any more.
    async fn step(&self, value: &Value) -> bool {
        self.0.send(Ok(Frame::data(Bytes::from(format!("{value}\n"))))).await.is_ok()
    }

    /// Tells the outcome.
    async fn end(self, outcome: anyhow::Result<Value>) {
        let outcome = outcome.unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
        // A client that has gone does not want to know.
        let _ = self.0.send(Ok(Frame::data(Bytes::from(outcome.to_string())))).await;
    }
}

/// Reads a request's document.
async fn document<T: serde::de::DeserializeOwned>(body: Incoming) -> anyhow::Result<T> {
    let body = http_body_util::Limited::new(body, DOCUMENT_BYTES_MAX).collect().await;
    let bytes = body.map_err(|e| anyhow::anyhow!("cannot read the request: {e}"))?.to_bytes();
    serde_json::from_slice(&bytes).context("cannot understand the request")
}

fn progress_value(progress: cri::PullProgress) -> Value {
    use cri::PullProgress::{Done, Downloading, Resolved, Unpacking};
    match progress {
        Resolved { digest, layers } => json!({"resolved": digest, "layers": layers.len()}),
        Downloading { layer, current, total } => json!({"layer": layer, "bytes": current, "of": total}),
        Unpacking { layer } => json!({"layer": layer, "unpacking": true}),
        Done { layer } => json!({"layer": layer, "done": true}),
    }
}

/// Serves the socket until `cancel`.
pub async fn serve(path: PathBuf, shared: Shared, cancel: CancellationToken) -> anyhow::Result<()> {
    // A socket file of an earlier process is in the way; the store's lock says that none is running.
    let _ = std::fs::remove_file(&path);
    let listener =
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            () = cancel.cancelled() => break,
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = shared.clone();
                async move {
                    let result = handle(request, shared).await;
                    Ok::<_, Infallible>(result.unwrap_or_else(|e| {
                        answer(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": format!("{e:#}")}))
                    }))
                }
            });
            let server = hyper::server::conn::http1::Builder::new();
            if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "local connection ended");
            }
        });
    }
    let _ = std::fs::remove_file(&path);
    Ok(())
}

async fn handle(request: Request<Incoming>, shared: Shared) -> anyhow::Result<Answer> {
    let Shared { images, embedded, network } = shared;
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let name = query.get("name").to_owned();
    match (request.method().clone(), request.uri().path()) {
        (Method::POST, path @ (cni::ATTACH | cni::DETACH)) => {
            let path = path.to_owned();
            let body = Limited::new(request.into_body(), NETWORK_REQUEST_MAX).collect().await;
            let body = body.map_err(anyhow::Error::from_boxed).context("cannot read the request")?.to_bytes();
            Ok(answer(StatusCode::OK, &cni::serve(&*network, &path, &body).await?))
        }
        (Method::POST, "/images/pull") => Ok(store::pull(images, document(request.into_body()).await?)),
        (Method::GET, "/images") => {
            let list: Vec<Value> = images
                .list()
                .await?
                .iter()
                .map(|i| json!({"id": i.id, "names": i.repo_tags, "digests": i.repo_digests, "size": i.size_bytes}))
                .collect();
            Ok(answer(StatusCode::OK, &json!(list)))
        }
        (Method::DELETE, "/images") => {
            let removed = match embedded {
                Some(embedded) => embedded.store.remove_reference(&name)?,
                None => {
                    let present = images.status(&name).await?.is_some();
                    images.remove(&name).await?;
                    present
                }
            };
            Ok(answer(StatusCode::OK, &json!({"removed": removed})))
        }
        _ => match embedded {
            Some(embedded) => handle_embedded(request, embedded, &query).await,
            None => anyhow::bail!("the node's images are in another runtime: use its own tool for this"),
        },
    }
}

/// Operations that only the embedded store has.
async fn handle_embedded(
    request: Request<Incoming>,
    embedded: Embedded,
    query: &Query,
) -> anyhow::Result<Answer> {
    let Embedded { store: images, builder } = embedded;
    let name = query.get("name").to_owned();
    match (request.method().clone(), request.uri().path()) {
        (Method::POST, "/images/import") => {
            let options = ImportOptions { name: (!name.is_empty()).then_some(name) };
            let (upload, pieces) = Upload::open(request.into_body());
            let (fed, imported) = tokio::join!(upload.feed(), images.import(pieces, options));
            fed?;
            let imported: Vec<Value> =
                imported?.iter().map(|i| json!({"id": i.id.to_string(), "names": i.names})).collect();
            Ok(answer(StatusCode::OK, &json!(imported)))
        }
        (Method::POST, "/images/build") => building::build(builder, images, request.into_body()).await,
        (Method::POST, "/images/push") => Ok(store::push(images, document(request.into_body()).await?)),
        (Method::POST, "/images/save") => store::save(images, document(request.into_body()).await?).await,
        (Method::POST, "/images/tag") => {
            let tagged = images.add_name(&name, query.get("to"))?;
            Ok(answer(StatusCode::OK, &json!({"name": tagged})))
        }
        (Method::POST, "/images/prune") => {
            store::prune(images, query.get("all") == "true", query.get("cache") == "true").await
        }
        (Method::GET, "/images/inspect") => Ok(answer(StatusCode::OK, &images.inspect(&name)?)),
        _ => Ok(answer(StatusCode::NOT_FOUND, &json!({"error": "no such operation"}))),
    }
}

/// A request's body on its way to a blocking reader.
struct Upload {
    body: Incoming,
    sender: tokio::sync::mpsc::Sender<Bytes>,
}

impl Upload {
    fn open(body: Incoming) -> (Upload, Pieces) {
        let (sender, receiver) = tokio::sync::mpsc::channel(UPLOAD_QUEUE);
        (Upload { body, sender }, Pieces { receiver, piece: Bytes::new() })
    }

    async fn feed(mut self) -> anyhow::Result<()> {
        while let Some(frame) = self.body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if self.sender.send(data).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Reads the pieces of an upload from a blocking thread.
struct Pieces {
    receiver: tokio::sync::mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.piece.len());
        buffer[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}
