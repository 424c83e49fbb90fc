//! Calls to webhooks: JSON over HTTPS to a URL or a Service, verified against a CA bundle.
//!
//! Connections are kept per address and CA, so that a busy webhook is not shaken hands with at every
//! request. A Service is resolved to a ready endpoint; the certificate must be for `name.namespace.svc`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::server::Server;

/// Largest answer that is read: a conversion returns whole lists.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Idle connections kept per webhook.
const IDLE_MAX: usize = 8;
/// Webhooks whose TLS settings and connections are kept; beyond that everything starts afresh.
const TARGETS_MAX: usize = 256;
/// Port of a Service that names none.
const SERVICE_PORT: u16 = 443;
/// Where distributions keep the certificates that are trusted without a CA bundle.
const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Where a webhook is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A URL.
    Url(String),
    /// A Service of this cluster.
    Service {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// Path, with a slash in front; may be empty.
        path: String,
        /// Port of the Service.
        port: u16,
    },
}

/// How to call a webhook (admissionregistration and apiextensions WebhookClientConfig).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// Where it is.
    pub destination: Destination,
    /// PEM of the authorities that may have signed its certificate; empty for the system's.
    pub ca_bundle: Vec<u8>,
}

/// A webhook could not be called.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The configuration names neither a URL nor a Service, or cannot be read.
    #[error("{0}")]
    Config(String),
    /// No answer came. The text is what Go's client says.
    #[error("Post \"{url}\": {why}")]
    Failed {
        /// The URL asked.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// The answer was no success.
    #[error("{0}")]
    Refused(String),
}

impl ClientConfig {
    /// Reads a `clientConfig`.
    pub fn from_json(value: &Value) -> Result<ClientConfig, WebhookError> {
        use base64::Engine;
        let ca = value.get("caBundle").and_then(Value::as_str).unwrap_or_default();
        let ca_bundle = base64::engine::general_purpose::STANDARD
            .decode(ca)
            .map_err(|e| WebhookError::Config(format!("unable to load root certificates: {e}")))?;
        let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let destination = match (value.get("url").and_then(Value::as_str), value.get("service")) {
            (Some(url), _) => Destination::Url(url.to_owned()),
            (None, Some(service)) if service.is_object() => Destination::Service {
                namespace: text(service, "namespace"),
                name: text(service, "name"),
                path: text(service, "path"),
                port: (service.get("port").and_then(Value::as_u64))
                    .and_then(|p| u16::try_from(p).ok())
                    .unwrap_or(SERVICE_PORT),
            },
            _ => {
                return Err(WebhookError::Config(
                    "webhook configuration must have either service or URL".into(),
                ));
            }
        };
        Ok(ClientConfig { destination, ca_bundle })
    }

    /// The URL as errors name it.
    fn url(&self, timeout: Duration) -> String {
        let base = match &self.destination {
            Destination::Url(url) => url.clone(),
            Destination::Service { namespace, name, path, port } => {
                let slash = if path.starts_with('/') { "" } else { "/" };
                format!("https://{name}.{namespace}.svc:{port}{slash}{path}")
            }
        };
        let join = if base.contains('?') { '&' } else { '?' };
        format!("{base}{join}timeout={}s", timeout.as_secs())
    }
}

type Sender = http1::SendRequest<Full<Bytes>>;
/// Host, port, name on the certificate, CA.
type Key = (String, u16, String, Vec<u8>);

struct Target {
    tls: Arc<rustls::ClientConfig>,
    idle: Vec<Sender>,
}

/// Connections to webhooks.
#[derive(Default)]
pub struct Pool(Mutex<HashMap<Key, Target>>);

impl Pool {
    fn tls(&self, key: &Key) -> Result<Arc<rustls::ClientConfig>, String> {
        if let Some(target) = self.0.lock().get(key) {
            return Ok(target.tls.clone());
        }
        let tls = tls_config(&key.3)?;
        let mut targets = self.0.lock();
        if targets.len() >= TARGETS_MAX {
            targets.clear();
        }
        Ok(targets.entry(key.clone()).or_insert(Target { tls, idle: Vec::new() }).tls.clone())
    }

    fn take(&self, key: &Key) -> Option<Sender> {
        let mut targets = self.0.lock();
        let idle = &mut targets.get_mut(key)?.idle;
        idle.retain(|s| !s.is_closed());
        idle.pop()
    }

    fn give_back(&self, key: &Key, sender: Sender) {
        if let Some(target) = self.0.lock().get_mut(key).filter(|t| t.idle.len() < IDLE_MAX) {
            target.idle.push(sender);
        }
    }
}

fn tls_config(ca: &[u8]) -> Result<Arc<rustls::ClientConfig>, String> {
    let system;
    let pem = if ca.is_empty() {
        system = SYSTEM_BUNDLES.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
        &system[..]
    } else {
        ca
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Posts `body` to a webhook and returns what it answers.
pub async fn call(
    server: &Server,
    config: &ClientConfig,
    timeout: Duration,
    body: Bytes,
) -> Result<Bytes, WebhookError> {
    let url = config.url(timeout);
    let failed = |why: String| WebhookError::Failed { url: url.clone(), why };
    let uri: Uri = url.parse().map_err(|e| failed(format!("invalid URL: {e}")))?;
    if uri.scheme_str() != Some("https") {
        return Err(failed("unsupported protocol scheme".into()));
    }
    let (host, port, name) = address(server, config, &uri).map_err(&failed)?;
    let key = (host, port, name, config.ca_bundle.clone());
    let exchange = exchange(&server.webhooks, &key, &uri, body);
    match tokio::time::timeout(timeout, exchange).await {
        Err(_) => Err(failed("context deadline exceeded".into())),
        Ok(Err(why)) => Err(failed(why)),
        Ok(Ok((StatusCode::OK | StatusCode::CREATED | StatusCode::ACCEPTED, bytes))) => Ok(bytes),
        Ok(Ok((code, bytes))) => Err(WebhookError::Refused(refusal(code, &bytes))),
    }
}

/// What Go's REST client says of an answer that is no success.
fn refusal(code: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    match code.as_u16() {
        400 => "the server rejected our request for an unknown reason".into(),
        401 => "the server has asked for the client to provide credentials".into(),
        403 if text.is_empty() => "forbidden".into(),
        403 => text.to_owned(),
        404 => "the server could not find the requested resource".into(),
        405 => "the server does not allow this method on the requested resource".into(),
        406 => "the server was unable to respond with a content type that the client supports".into(),
        409 => "the server reported a conflict".into(),
        415 => "the server was unable to process the request body content type".into(),
        422 => "the server rejected our request due to an error in our request".into(),
        429 => "the server has received too many requests and has asked us to try again later".into(),
        503 => "the server is currently unable to handle the request".into(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the request".into(),
        500.. => format!("an error on the server ({:?}) has prevented the request from succeeding", if text.is_empty() { "unknown" } else { text }),
        other => format!("the server responded with the status code {other} but did not return more information"),
    }
}

/// Host and port to dial and the name that the certificate must have.
fn address(server: &Server, config: &ClientConfig, uri: &Uri) -> Result<(String, u16, String), String> {
    match &config.destination {
        Destination::Url(_) => {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            Ok((host.clone(), uri.port_u16().unwrap_or(SERVICE_PORT), host))
        }
        Destination::Service { namespace, name, port, .. } => {
            let (host, port) = endpoint(server, namespace, name, *port)?;
            Ok((host, port, format!("{name}.{namespace}.svc")))
        }
    }
}

/// A ready endpoint of a Service's port.
pub(crate) fn endpoint(
    server: &Server,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<(String, u16), String> {
    let table = server.registry.table();
    let (services, slices) =
        match (table.find("", "v1", "services"), table.find("discovery.k8s.io", "v1", "endpointslices")) {
            (Some(services), Some(slices)) => (services, slices),
            _ => return Err("services are not served".into()),
        };
    let service = server.registry.current(services, namespace, name);
    let service = service.ok_or_else(|| format!("service {name:?} not found"))?.to_value();
    if service["spec"]["type"] == "ExternalName" {
        let host = service["spec"]["externalName"].as_str().unwrap_or_default();
        return Ok((host.to_owned(), port));
    }
    let ports = service["spec"]["ports"].as_array();
    let found = ports.into_iter().flatten().find(|p| p["port"].as_u64() == Some(port.into()));
    let found = found.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let wanted = found["name"].as_str().unwrap_or_default();
    let all = server.registry.cacher().kind(&slices.storage_prefix()).snapshot(Some(namespace));
    for slice in all.iter().filter(|s| s.label("kubernetes.io/service-name") == Some(name)) {
        let slice = slice.to_value();
        let ports = slice["ports"].as_array();
        let number = ports.into_iter().flatten().find(|p| p["name"].as_str().unwrap_or_default() == wanted);
        let number = number.and_then(|p| p["port"].as_u64()).and_then(|p| u16::try_from(p).ok());
        let endpoints = slice["endpoints"].as_array();
        let ready = endpoints.into_iter().flatten().find(|e| e["conditions"]["ready"] != false);
        if let (Some(number), Some(host)) = (number, ready.and_then(|e| e["addresses"][0].as_str())) {
            return Ok((host.to_owned(), number));
        }
    }
    Err(format!("no endpoints available for service {name:?}"))
}

/// One request over an idle connection, or over a new one if that turns out to be dead.
async fn exchange(pool: &Pool, key: &Key, uri: &Uri, body: Bytes) -> Result<(StatusCode, Bytes), String> {
    if let Some(sender) = pool.take(key)
        && let Ok(answer) = send(pool, key, uri, body.clone(), sender).await
    {
        return Ok(answer);
    }
    let sender = connect(pool, key).await?;
    send(pool, key, uri, body, sender).await
}

async fn connect(pool: &Pool, key: &Key) -> Result<Sender, String> {
    let (host, port, name, _) = key;
    let tls = pool.tls(key)?;
    let dial = |e: std::io::Error| format!("dial tcp {host}:{port}: connect: {}", plain(&e));
    let tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(dial)?;
    tcp.set_nodelay(true).ok();
    let server_name = match name.parse::<IpAddr>() {
        Ok(ip) => ServerName::IpAddress(ip.into()),
        Err(_) => ServerName::try_from(name.clone()).map_err(|e| e.to_string())?,
    };
    let connector = tokio_rustls::TlsConnector::from(tls);
    let stream = connector.connect(server_name, tcp).await.map_err(|e| tls_problem(&e, name))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a webhook ended");
        }
    });
    Ok(sender)
}

/// The system's words without Rust's number behind them, in Go's lower case.
pub(crate) fn plain(e: &std::io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

pub(crate) fn tls_problem(e: &std::io::Error, name: &str) -> String {
    let text = e.to_string();
    let why = if text.contains("UnknownIssuer") {
        "x509: certificate signed by unknown authority".to_owned()
    } else if text.contains("NotValidForName") || text.contains("not valid for name") {
        format!("x509: certificate is not valid for {name}")
    } else if text.contains("Expired") || text.contains("expired") {
        "x509: certificate has expired or is not yet valid".to_owned()
    } else {
        text
    };
    format!("tls: failed to verify certificate: {why}")
}

async fn send(
    pool: &Pool,
    key: &Key,
    uri: &Uri,
    body: Bytes,
    mut sender: Sender,
) -> Result<(StatusCode, Bytes), String> {
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let authority = uri.authority().map_or("", |a| a.as_str());
    let request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, */*")
        .header(header::USER_AGENT, "kube-apiserver-admission")
        .body(Full::new(body))
        .map_err(|e| e.to_string())?;
    sender.ready().await.map_err(|e| e.to_string())?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|e| if e.is_incomplete_message() { "EOF".to_owned() } else { e.to_string() })?;
    let (parts, mut incoming) = answer.into_parts();
    let mut out = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|e| e.to_string())?;
        let Ok(data) = frame.into_data() else { continue };
        if out.len() + data.len() > ANSWER_BYTES_MAX {
            return Err(format!("the answer is larger than {ANSWER_BYTES_MAX} bytes"));
        }
        out.extend_from_slice(&data);
    }
    pool.give_back(key, sender);
    Ok((parts.status, out.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn configurations_and_their_urls() {
        let timeout = Duration::from_secs(10);
        for (value, url) in [
            (json!({"url": "https://h:1/x"}), "https://h:1/x?timeout=10s"),
            (json!({"url": "https://h/x?a=b"}), "https://h/x?a=b&timeout=10s"),
            (
                json!({"service": {"namespace": "n", "name": "s", "path": "/c"}}),
                "https://s.n.svc:443/c?timeout=10s",
            ),
            (
                json!({"service": {"namespace": "n", "name": "s", "port": 8443}}),
                "https://s.n.svc:8443/?timeout=10s",
            ),
        ] {
            assert_eq!(ClientConfig::from_json(&value).unwrap().url(timeout), url);
        }
        assert!(ClientConfig::from_json(&json!({})).is_err());
        assert!(ClientConfig::from_json(&json!({"url": "https://h", "caBundle": "%"})).is_err());
    }

    #[test]
    fn refusals_are_go_clients_sentences() {
        let text = refusal(StatusCode::INTERNAL_SERVER_ERROR, b"boom\n");
        assert_eq!(text, "an error on the server (\"boom\") has prevented the request from succeeding");
        assert_eq!(refusal(StatusCode::NOT_FOUND, b""), "the server could not find the requested resource");
    }
}
