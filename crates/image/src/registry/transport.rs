//! HTTP and HTTPS GET and POST over hyper and rustls, with redirects and time limits.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::error::{Error, Result};

/// How long connecting and the TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a server may be silent before its answer or between parts of it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest chain of redirects; blobs usually need one.
const REDIRECTS_MAX: usize = 5;
/// Where distributions keep the system's certificate authorities.
const CA_FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Makes connections. A connection serves one request: pulls are few and long.
pub(crate) struct Transport {
    ca_file: Option<PathBuf>,
    /// Built at the first HTTPS request: reading all authorities costs memory and time.
    tls: Mutex<Option<Arc<ClientConfig>>>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("ca_file", &self.ca_file).finish_non_exhaustive()
    }
}

/// An answer whose body is still to be read.
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
}

impl Response {
    /// The next part of the body.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let frame = tokio::time::timeout(IDLE_TIMEOUT, self.body.frame());
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
    pub(crate) fn new(ca_file: Option<PathBuf>) -> Transport {
        Transport { ca_file, tls: Mutex::new(None) }
    }

    /// GET, following redirects. Credentials stay with the host they were meant for.
    pub(crate) async fn get(&self, url: &str, mut headers: HeaderMap) -> Result<Response> {
        let mut uri = parse(url)?;
        for _ in 0..=REDIRECTS_MAX {
            let response = self.once(Method::GET, &uri, headers.clone(), Bytes::new()).await?;
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
        self.once(Method::POST, &parse(url)?, headers, form.into()).await
    }

    async fn once(&self, method: Method, uri: &Uri, headers: HeaderMap, body: Bytes) -> Result<Response> {
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
            return exchange(tcp, request).await.map_err(failed);
        }
        let name = ServerName::try_from(bare_host.to_owned()).map_err(|e| failed(e.to_string()))?;
        let connector = tokio_rustls::TlsConnector::from(self.tls_config()?);
        let handshake =
            tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(name, tcp)).await.map_err(timeout)?;
        let tls = handshake.map_err(|e| failed(format!("tls: {e}")))?;
        exchange(tls, request).await.map_err(failed)
    }

    fn tls_config(&self) -> Result<Arc<ClientConfig>> {
        let mut slot = self.tls.lock();
        if let Some(config) = &*slot {
            return Ok(config.clone());
        }
        let mut roots = RootCertStore::empty();
        let file = self.ca_file.as_deref().or_else(|| CA_FILES.iter().map(Path::new).find(|p| p.exists()));
        if let Some(file) = file {
            let context = format!("read certificate authorities {}", file.display());
            let bytes = std::fs::read(file).map_err(Error::io(context))?;
            // Authorities that rustls cannot parse are left out, as its own loader does.
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::Malformed(format!("tls: {e}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(slot.insert(Arc::new(config)).clone())
    }
}

fn request(method: Method, uri: &Uri, headers: HeaderMap, body: Bytes) -> Result<Request<Full<Bytes>>> {
    let target = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut builder = Request::builder().method(method).uri(target);
    if let Some(all) = builder.headers_mut() {
        *all = headers;
    }
    builder
        .header(header::HOST, uri.authority().map_or("", |a| a.as_str()))
        .header(header::USER_AGENT, concat!("ferry/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(body))
        .map_err(|e| protocol(&uri.to_string(), &e.to_string()))
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| with_causes(&e))?;
    // Ends when the body was read or dropped.
    tokio::spawn(connection);
    let answer = tokio::time::timeout(IDLE_TIMEOUT, sender.send_request(request)).await;
    let answer = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|e| with_causes(&e))?;
    let (parts, body) = answer.into_parts();
    Ok(Response { status: parts.status, headers: parts.headers, body })
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
