//! The client's half of the local socket.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::{PIECE_BYTES, UPLOAD_QUEUE};

/// What a request carries.
pub type Source = Box<dyn Read + Send>;

/// Opens a file to be sent; `-` is standard input.
pub fn source(file: &Path) -> anyhow::Result<Source> {
    Ok(match file.as_os_str() == "-" {
        true => Box::new(std::io::stdin()),
        false => {
            Box::new(std::fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?)
        }
    })
}

/// A document to be sent.
pub fn document(value: &Value) -> Source {
    Box::new(std::io::Cursor::new(value.to_string().into_bytes()))
}

async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Source>,
) -> anyhow::Result<Response<Incoming>> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "no running instance answers at {}; start one with `ferry up`, or give its --data-dir",
            socket.display()
        )
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (frames, queue) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(UPLOAD_QUEUE);
    if let Some(mut source) = body {
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
    Ok(sender.send_request(request).await?)
}

/// Sends a request to the instance that owns `socket`. `progress` hears the lines that come before the outcome.
pub async fn call(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Source>,
    mut progress: impl FnMut(&Value),
) -> anyhow::Result<Value> {
    let answer = send(socket, method, path, body).await?;
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

/// Writes the answer to `out`. An archive that breaks off is an error.
pub async fn receive(
    socket: &Path,
    path: &str,
    body: Source,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<u64> {
    let answer = send(socket, Method::POST, path, Some(body)).await?;
    let code = answer.status();
    let mut body = answer.into_body();
    if !code.is_success() {
        let bytes = body.collect().await?.to_bytes();
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        bail!("{}", value["error"].as_str().unwrap_or("the instance refused"));
    }
    let mut written = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the archive broke off")?.into_data() else { continue };
        out.write_all(&data).context("cannot write the archive")?;
        written += data.len() as u64;
    }
    out.flush().context("cannot write the archive")?;
    Ok(written)
}
