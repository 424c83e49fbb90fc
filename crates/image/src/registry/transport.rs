//! HTTP and HTTPS GET and POST over hyper and rustls, with redirects and time limits.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::error::{Error, Result};
use crate::registries::HostTls;

/// How long connecting and the TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest chain of redirects; blobs usually need one.
const REDIRECTS_MAX: usize = 5;
/// Makes connections to hosts with the same TLS. A connection serves one request: pulls are few and long.
pub(crate) struct Transport {
    settings: HostTls,
    ca: Option<Vec<u8>>,
    silence_max: Duration,
    /// Built at the first HTTPS request: reading all authorities costs memory and time.
    tls: Mutex<Option<Arc<ClientConfig>>>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What a request carries.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    /// Nothing.
    Empty,
    /// These bytes.
    Bytes(Bytes),
    /// A part of a file.
    File {
        /// Which.
        path: PathBuf,
        /// Where the part begins.
        offset: u64,
        /// Its length.
        len: u64,
    },
}

/// Size of the pieces that a file is sent in.
const PIECE_LEN: usize = 256 << 10;
/// Pieces read ahead of the network.
const PIECES_MAX: usize = 4;

impl Body {
    fn len(&self) -> u64 {
        match self {
            Body::Empty => 0,
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { len, .. } => *len,
        }
    }

    fn into_stream(self) -> BoxBody<Bytes, std::io::Error> {
        let bytes = match self {
            Body::Empty => Bytes::new(),
            Body::Bytes(bytes) => bytes,
            Body::File { path, offset, len } => return file_stream(path, offset, len),
        };
        Full::new(bytes).map_err(|never| match never {}).boxed()
    }
}

fn file_stream(path: PathBuf, offset: u64, len: u64) -> BoxBody<Bytes, std::io::Error> {
    use std::io::{Read, Seek};
    let (pieces, queue) = tokio::sync::mpsc::channel(PIECES_MAX);
    tokio::task::spawn_blocking(move || {
        let send = || -> std::io::Result<()> {
            let mut file = std::fs::File::open(&path)?;
            file.seek(std::io::SeekFrom::Start(offset))?;
            let mut rest = file.take(len);
            loop {
                let mut piece = vec![0; PIECE_LEN];
                let n = rest.read(&mut piece)?;
                piece.truncate(n);
                if n == 0 || pieces.blocking_send(Ok(Frame::data(Bytes::from(piece)))).is_err() {
                    return Ok(());
                }
            }
        };
        if let Err(error) = send() {
            // Nobody waits for the rest of a request that was given up.
            let _ = pieces.blocking_send(Err(error));
        }
    });
    let stream =
        futures_util::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
    BodyExt::boxed(StreamBody::new(stream))
}

/// An answer whose body is still to be read.
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    silence_max: Duration,
}

impl Response {
    /// The next part of the body.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let frame = tokio::time::timeout(self.silence_max, self.body.frame());
            match frame.await.map_err(|_| "the server went silent".to_owned())? {
                None => return Ok(None),
                Some(Err(e)) => return Err(with_causes(&e)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

impl Transport {
    /// `ca` is the PEM of authorities that stand instead of all others.
    pub(crate) fn new(settings: HostTls, ca: Option<Vec<u8>>, silence_max: Duration) -> Transport {
        Transport { settings, ca, silence_max, tls: Mutex::new(None) }
    }

    /// GET, following redirects. Credentials stay with the host they were meant for.
    pub(crate) async fn get(&self, url: &str, mut headers: HeaderMap) -> Result<Response> {
        let mut uri = parse(url)?;
        for _ in 0..=REDIRECTS_MAX {
            let response = self.once(Method::GET, &uri, headers.clone(), Body::Empty).await?;
            if !response.status.is_redirection() || response.status == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            let next = response.headers.get(header::LOCATION).and_then(|v| v.to_str().ok());
            let next = resolve(&uri, next.unwrap_or(""))?;
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(protocol(url, "redirected from https to http"));
            }
            if next.authority() != uri.authority() {
                headers.remove(header::AUTHORIZATION);
            }
            uri = next;
        }
        Err(protocol(url, "too many redirects"))
    }

    /// POST of a form.
    pub(crate) async fn post_form(&self, url: &str, form: String) -> Result<Response> {
        let mut headers = HeaderMap::new();
        let kind = header::HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(header::CONTENT_TYPE, kind);
        self.once(Method::POST, &parse(url)?, headers, Body::Bytes(form.into())).await
    }

    /// One request of any method; redirects are the caller's.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Response> {
        self.once(method, &parse(url)?, headers, body).await
    }

    async fn once(&self, method: Method, uri: &Uri, headers: HeaderMap, body: Body) -> Result<Response> {
        let failed = |message: String| Error::Unavailable { url: uri.to_string(), message };
        let timeout = |_| failed("timed out".into());
        let host = uri.host().ok_or_else(|| protocol(&uri.to_string(), "no host"))?;
        let bare_host = host.trim_start_matches('[').trim_end_matches(']');
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let connect = TcpStream::connect((bare_host, port));
        let tcp = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(timeout)?;
        let tcp = tcp.map_err(|e| failed(format!("dial tcp {host}:{port}: {e}")))?;
        let _ = tcp.set_nodelay(true);
        let request = request(method, uri, headers, body)?;
        if !secure {
            return exchange(tcp, request, self.silence_max).await.map_err(failed);
        }
        let name = ServerName::try_from(bare_host.to_owned()).map_err(|e| failed(e.to_string()))?;
        let connector = tokio_rustls::TlsConnector::from(self.tls_config()?);
        let handshake =
            tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(name, tcp)).await.map_err(timeout)?;
        let tls = handshake.map_err(|e| failed(format!("tls: {e}")))?;
        exchange(tls, request, self.silence_max).await.map_err(failed)
    }

    fn tls_config(&self) -> Result<Arc<ClientConfig>> {
        let mut slot = self.tls.lock();
        if let Some(config) = &*slot {
            return Ok(config.clone());
        }
        let config = super::tls::client_config(&self.settings, self.ca.as_deref())?;
        Ok(slot.insert(Arc::new(config)).clone())
    }
}

type Outgoing = Request<BoxBody<Bytes, std::io::Error>>;

fn request(method: Method, uri: &Uri, headers: HeaderMap, body: Body) -> Result<Outgoing> {
    let target = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut builder = Request::builder().method(method).uri(target);
    if let Some(all) = builder.headers_mut() {
        *all = headers;
    }
    builder
        .header(header::HOST, uri.authority().map_or("", |a| a.as_str()))
        .header(header::USER_AGENT, concat!("ferry/", env!("CARGO_PKG_VERSION")))
        .header(header::CONTENT_LENGTH, body.len())
        .body(body.into_stream())
        .map_err(|e| protocol(&uri.to_string(), &e.to_string()))
}

async fn exchange<S>(stream: S, request: Outgoing, silence_max: Duration) -> Result<Response, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| with_causes(&e))?;
    // Ends when the body was read or dropped.
    tokio::spawn(connection);
    let answer = tokio::time::timeout(silence_max, sender.send_request(request)).await;
    let answer = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|e| with_causes(&e))?;
    let (parts, body) = answer.into_parts();
    Ok(Response { status: parts.status, headers: parts.headers, body, silence_max })
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

fn protocol(url: &str, message: &str) -> Error {
    Error::Protocol { url: url.to_owned(), message: message.to_owned() }
}

fn parse(url: &str) -> Result<Uri> {
    let uri: Uri = url.parse().map_err(|e| protocol(url, &format!("{e}")))?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.authority().is_some() => Ok(uri),
        _ => Err(protocol(url, "not an http URL")),
    }
}

/// A redirect's target: absolute, or a path on the same host.
fn resolve(base: &Uri, location: &str) -> Result<Uri> {
    if location.starts_with('/') && !location.starts_with("//") {
        let scheme = base.scheme_str().unwrap_or("https");
        let authority = base.authority().map_or("", |a| a.as_str());
        return parse(&format!("{scheme}://{authority}{location}"));
    }
    parse(location)
}
