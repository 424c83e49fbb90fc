//! The local socket of a running instance: `ferry image ...` reaches the node's image store through it, so
//! that one process owns the store. Only root can open it (the data directory is 0700).

use std::convert::Infallible;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use cri::ImageService;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use image::{ImageStore, ImportOptions};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::cni;

/// Pieces of an archive read ahead of the importer.
const UPLOAD_QUEUE: usize = 16;
/// Size of the pieces an archive is sent in.
const PIECE_BYTES: usize = 256 * 1024;

/// Longest request of the network plugin.
const NETWORK_REQUEST_MAX: usize = 1 << 20;

/// Lines of progress on their way to a client; when it reads too slowly, further ones are dropped.
const PROGRESS_QUEUE: usize = 64;

/// What the socket gives access to.
#[derive(Clone)]
pub struct Shared {
    /// The node's images.
    pub images: Arc<dyn ImageService>,
    /// The embedded store, where the images are in that.
    pub store: Option<Arc<ImageStore>>,
    /// The pod network, for the plugin.
    pub network: Arc<dyn cri::NetworkProvider>,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn answer(code: StatusCode, value: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(value.to_string())).boxed());
    *answer.status_mut() = code;
    answer
}

/// Pulls an image. The answer is a line of JSON for each step of progress, and at last, without a line's end,
/// the outcome.
fn pull(images: Arc<dyn ImageService>, image: String) -> Answer {
    let (lines, queue) = tokio::sync::mpsc::channel(PROGRESS_QUEUE);
    tokio::spawn(async move {
        let told = lines.clone();
        let tell = move |progress| {
            let line = format!("{}\n", progress_value(progress));
            // A slow client misses a step.
            let _ = told.try_send(Ok(Frame::data(Bytes::from(line))));
        };
        let request = cri::PullRequest { image, progress: Some(Arc::new(tell)), ..Default::default() };
        let outcome = match images.pull(request).await {
            Ok(pulled) => json!({"id": pulled.image_id}),
            Err(error) => json!({"error": format!("{:#}", anyhow::Error::from(error))}),
        };
        // A client that has gone does not want to know.
        let _ = lines.send(Ok(Frame::data(Bytes::from(outcome.to_string())))).await;
    });
    let stream =
        futures_util::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
    Response::new(BodyExt::boxed(StreamBody::new(stream)))
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
    let Shared { images, store, network } = shared;
    let query = apiserver::path::Query::parse(request.uri().query().unwrap_or_default());
    let name = query.get("name").to_owned();
    match (request.method().clone(), request.uri().path()) {
        (Method::POST, path @ (cni::ATTACH | cni::DETACH)) => {
            let path = path.to_owned();
            let body = Limited::new(request.into_body(), NETWORK_REQUEST_MAX).collect().await;
            let body = body.map_err(anyhow::Error::from_boxed).context("cannot read the request")?.to_bytes();
            Ok(answer(StatusCode::OK, &cni::serve(&*network, &path, &body).await?))
        }
        (Method::POST, "/images/import") => {
            let images =
                store.context("the node's images are in another runtime: import them with its own tool")?;
            let options = ImportOptions { name: (!name.is_empty()).then_some(name) };
            let (sender, receiver) = tokio::sync::mpsc::channel(UPLOAD_QUEUE);
            let mut body = request.into_body();
            let feed = async move {
                while let Some(frame) = body.frame().await {
                    let Ok(data) = frame?.into_data() else { continue };
                    if sender.send(data).await.is_err() {
                        break;
                    }
                }
                anyhow::Ok(())
            };
            let (fed, imported) =
                tokio::join!(feed, images.import(Pieces { receiver, piece: Bytes::new() }, options));
            fed?;
            let imported: Vec<Value> =
                imported?.iter().map(|i| json!({"id": i.id.to_string(), "names": i.names})).collect();
            Ok(answer(StatusCode::OK, &json!(imported)))
        }
        (Method::POST, "/images/pull") => Ok(pull(images, name)),
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
            let removed = match store {
                Some(store) => store.remove_reference(&name)?,
                None => {
                    let present = images.status(&name).await?.is_some();
                    images.remove(&name).await?;
                    present
                }
            };
            Ok(answer(StatusCode::OK, &json!({"removed": removed})))
        }
        _ => Ok(answer(StatusCode::NOT_FOUND, &json!({"error": "no such operation"}))),
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

/// Sends a request to the instance that owns `socket`; the body, if any, is streamed from `file`.
pub async fn call(socket: &Path, method: Method, path: &str, file: Option<&Path>) -> anyhow::Result<Value> {
    call_with_progress(socket, method, path, file, |_| ()).await
}

/// [`call`] with a body from memory.
pub async fn call_with_body(
    socket: &Path,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> anyhow::Result<Value> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("no instance answers at {}", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "local");
    let answer = sender.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
    let code = answer.status();
    let received = answer.into_body().collect().await?.to_bytes();
    let value: Value =
        serde_json::from_slice(&received).context("the instance gave an answer that is no JSON")?;
    if let Some(error) = value.get("error").and_then(Value::as_str) {
        bail!("{error}");
    }
    ensure!(code.is_success(), "the instance refused with status {code}");
    Ok(value)
}

/// [`call`] for an operation that tells its progress: a line each before the outcome.
pub async fn call_with_progress(
    socket: &Path,
    method: Method,
    path: &str,
    file: Option<&Path>,
    mut progress: impl FnMut(&Value),
) -> anyhow::Result<Value> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "no running instance answers at {}; start one with `ferry up`, or give its --data-dir",
            socket.display()
        )
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (frames, queue) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(UPLOAD_QUEUE);
    if let Some(file) = file {
        let mut source: Box<dyn Read + Send> = match file.as_os_str() == "-" {
            true => Box::new(std::io::stdin()),
            false => Box::new(
                std::fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?,
            ),
        };
        tokio::task::spawn_blocking(move || {
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let next = match source.read(&mut piece) {
                    Ok(0) => return,
                    Ok(n) => {
                        piece.truncate(n);
                        Ok(Frame::data(Bytes::from(piece)))
                    }
                    Err(e) => Err(e),
                };
                if frames.blocking_send(next).is_err() {
                    return;
                }
            }
        });
    } else {
        drop(frames);
    }
    let stream =
        futures_util::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
    let request =
        Request::builder().method(method).uri(path).header("host", "local").body(StreamBody::new(stream))?;
    let answer = sender.send_request(request).await?;
    let code = answer.status();
    let mut body = answer.into_body();
    let mut received = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the instance went away")?.into_data() else { continue };
        received.extend_from_slice(&data);
        while let Some(end) = received.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = received.drain(..=end).collect();
            progress(&serde_json::from_slice(&line).unwrap_or_default());
        }
    }
    let value: Value =
        serde_json::from_slice(&received).context("the instance gave an answer that is no JSON")?;
    if let Some(error) = value.get("error").and_then(Value::as_str) {
        bail!("{error}");
    }
    if !code.is_success() {
        bail!("the instance refused with status {code}");
    }
    Ok(value)
}
