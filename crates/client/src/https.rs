//! The way to an API server over the network: HTTP/2 over TLS, few connections, each of many streams.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Request, Response, Uri};
use meta::UserInfo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::body::Body;
use crate::in_process::upgrade_over;
use crate::pool::Pool;
use crate::tls::{self, KeyPair, Trust};
use crate::transport::{BoxFuture, Io, Transport, TransportError};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a token read from a file is used: projected tokens are rotated well before they expire.
const TOKEN_FILE_TTL: Duration = Duration::from_secs(60);

/// Gives the bearer token of the next request.
pub trait TokenSource: Send + Sync {
    /// The token, if there is one now.
    fn token(&self) -> Option<String>;
}

/// A token that never changes.
pub struct StaticToken(pub String);

impl TokenSource for StaticToken {
    fn token(&self) -> Option<String> {
        Some(self.0.clone())
    }
}

/// A token in a file, read anew every minute.
pub struct FileToken {
    path: PathBuf,
    cached: Mutex<Option<(Instant, String)>>,
}

impl FileToken {
    /// The token in the file at `path`.
    pub fn new(path: PathBuf) -> Self {
        FileToken { path, cached: Mutex::new(None) }
    }
}

impl TokenSource for FileToken {
    fn token(&self) -> Option<String> {
        let mut cached = self.cached.lock();
        let stale = cached.as_ref().is_none_or(|(read_at, _)| read_at.elapsed() > TOKEN_FILE_TTL);
        if stale {
            match std::fs::read_to_string(&self.path) {
                Ok(text) => *cached = Some((Instant::now(), text.trim().to_owned())),
                // The old token may still be good; the server will say.
                Err(error) => tracing::warn!(path = %self.path.display(), %error, "cannot read the token"),
            }
        }
        cached.as_ref().map(|(_, token)| token.clone())
    }
}

/// Where the server is and how to talk to it.
#[derive(Clone)]
pub struct HttpsConfig {
    /// URL of the server; a path in it is a prefix of every request.
    pub server: Uri,
    /// Whom to trust.
    pub trust: Trust,
    /// Client certificate.
    pub certificate: Option<KeyPair>,
    /// Bearer token.
    pub token: Option<Arc<dyn TokenSource>>,
    /// Name to expect in the server's certificate instead of the host.
    pub server_name: Option<String>,
    /// Whom to impersonate in every request.
    pub impersonate: Option<UserInfo>,
}

impl HttpsConfig {
    /// Talks to `server`, trusting the system's certificates, without credentials.
    pub fn new(server: Uri) -> Self {
        HttpsConfig {
            server,
            trust: Trust::System,
            certificate: None,
            token: None,
            server_name: None,
            impersonate: None,
        }
    }
}

/// How to make a connection.
pub(crate) struct Endpoint {
    authority: Authority,
    host: String,
    port: u16,
    name: Option<ServerName<'static>>,
    tls: Option<Arc<ClientConfig>>,
    tls_http1: Option<Arc<ClientConfig>>,
}

impl Endpoint {
    async fn connect_tcp(&self) -> Result<TcpStream, TransportError> {
        let address = || format!("{}:{}", self.host, self.port);
        let connect = TcpStream::connect((self.host.as_str(), self.port));
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => return Err(TransportError::Connect { address: address(), source }),
            Err(_) => {
                let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
                return Err(TransportError::Connect { address: address(), source });
            }
        };
        // Requests are written whole; waiting to fill packets only adds latency.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// Makes a connection; says whether the server agreed to HTTP/2.
    pub(crate) async fn connect(&self, http1_only: bool) -> Result<(Box<dyn Io>, bool), TransportError> {
        let config = if http1_only { &self.tls_http1 } else { &self.tls };
        let tcp = self.connect_tcp().await?;
        let (Some(config), Some(name)) = (config, &self.name) else { return Ok((Box::new(tcp), false)) };
        let handshake = TlsConnector::from(config.clone()).connect(name.clone(), tcp);
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
            Ok(stream) => stream.map_err(|e| TransportError::Tls(e.into()))?,
            Err(_) => return Err(TransportError::Timeout(CONNECT_TIMEOUT)),
        };
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok((Box::new(stream), http2))
    }
}

/// Sends requests over TLS. Share it: connections are pooled inside.
pub struct Https {
    endpoint: Arc<Endpoint>,
    prefix: String,
    token: Option<Arc<dyn TokenSource>>,
    impersonate: Option<UserInfo>,
    pool: Pool,
}

impl Https {
    /// A transport to the server of `config`. Does not connect yet.
    ///
    /// # Errors
    /// When the URL names no host or certificates cannot be read.
    pub fn new(config: &HttpsConfig) -> Result<Self, TransportError> {
        let plain = config.server.scheme_str() == Some("http");
        let authority = config
            .server
            .authority()
            .cloned()
            .ok_or_else(|| TransportError::Tls(format!("no host in {}", config.server).into()))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if plain { 80 } else { 443 });
        let (mut name, mut tls, mut tls_http1) = (None, None, None);
        if !plain {
            let expected = config.server_name.clone().unwrap_or_else(|| host.clone());
            name = Some(ServerName::try_from(expected).map_err(|e| TransportError::Tls(e.into()))?);
            let pair = config.certificate.as_ref();
            tls = Some(tls::client_config(&config.trust, pair, &[b"h2", b"http/1.1"])?);
            tls_http1 = Some(tls::client_config(&config.trust, pair, &[b"http/1.1"])?);
        }
        Ok(Https {
            endpoint: Arc::new(Endpoint { authority, host, port, name, tls, tls_http1 }),
            prefix: config.server.path().trim_end_matches('/').to_owned(),
            token: config.token.clone(),
            impersonate: config.impersonate.clone(),
            pool: Pool::default(),
        })
    }

    /// Adds credentials, impersonation and the server's address to a request.
    fn prepare(&self, request: Request<Bytes>, absolute: bool) -> Result<Request<Bytes>, TransportError> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
        let path = format!("{}{path}", self.prefix);
        head.uri = if absolute {
            let scheme = if self.endpoint.tls.is_some() { "https" } else { "http" };
            Uri::builder()
                .scheme(scheme)
                .authority(self.endpoint.authority.clone())
                .path_and_query(path)
                .build()?
        } else {
            Uri::builder().path_and_query(path).build()?
        };
        if !absolute {
            let host = HeaderValue::from_str(self.endpoint.authority.as_str()).map_err(http::Error::from)?;
            head.headers.insert(HOST, host);
        }
        if let Some(token) = self.token.as_ref().and_then(|source| source.token()) {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(http::Error::from)?;
            value.set_sensitive(true);
            head.headers.insert(AUTHORIZATION, value);
        }
        if let Some(user) = head.extensions.remove::<UserInfo>().or_else(|| self.impersonate.clone()) {
            impersonate(&mut head.headers, &user)?;
        }
        Ok(Request::from_parts(head, body))
    }
}

/// Writes `user` into the headers of impersonation.
fn impersonate(headers: &mut http::HeaderMap, user: &UserInfo) -> Result<(), TransportError> {
    let value = |text: &str| HeaderValue::from_str(text).map_err(http::Error::from);
    headers.insert("impersonate-user", value(&user.username)?);
    if !user.uid.is_empty() {
        headers.insert("impersonate-uid", value(&user.uid)?);
    }
    for group in &user.groups {
        headers.append("impersonate-group", value(group)?);
    }
    for (key, values) in &user.extra {
        let mut escaped = String::from("impersonate-extra-");
        crate::params::escape_into(&mut escaped, key);
        let name =
            HeaderName::from_bytes(escaped.to_ascii_lowercase().as_bytes()).map_err(http::Error::from)?;
        for text in values {
            headers.append(name.clone(), value(text)?);
        }
    }
    Ok(())
}

impl Transport for Https {
    fn send(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Body>, TransportError>> {
        Box::pin(async move {
            let connection = self.pool.acquire(&self.endpoint).await?;
            let request = self.prepare(request, connection.is_http2())?;
            connection.send(request).await
        })
    }

    fn upgrade(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'_, Result<(Response<Body>, Option<Box<dyn Io>>), TransportError>> {
        Box::pin(async move {
            let request = self.prepare(request, false)?;
            let (io, _) = self.endpoint.connect(true).await?;
            upgrade_over(io, request).await
        })
    }
}
