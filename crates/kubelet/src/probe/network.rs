//! HTTP, TCP and gRPC tries, for probes and lifecycle hooks. Certificates are not checked: the pod is asked
//! whether it is well, not who it is.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::core::v1::HTTPGetAction;
use api::prelude::*;
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::spec;

/// Bytes of a command's output or an answer's body that a failure quotes (upstream's limit).
const QUOTE_BYTES_MAX: usize = 10 << 10;
/// Redirects followed within the same host.
const REDIRECTS_MAX: usize = 10;

/// What upstream calls its prober.
const USER_AGENT: &str = "kube-probe/1.37";

/// Output as a failure quotes it.
pub fn shorten(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(QUOTE_BYTES_MAX)]).into_owned()
}

/// `host:port`, addresses of IPv6 in brackets.
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A connection failure in Go's words.
fn dial_error(address: &str, error: &io::Error) -> String {
    let cause = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {address}: {cause}")
}

/// Connects.
pub async fn tcp(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let address = authority(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(dial_error(&address, &error)),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

/// An HTTP request to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    tls: bool,
    host: String,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
}

impl HttpProbe {
    /// The request an action describes, for a pod at `host`.
    pub fn new(action: &HTTPGetAction, container: &Container, host: &str) -> Result<Self, String> {
        let path = action.path.clone().filter(|path| !path.is_empty()).unwrap_or("/".into());
        Ok(HttpProbe {
            tls: action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
            host: action.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| host.to_owned()),
            port: spec::resolve_port(&action.port, container)?,
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            headers: action
                .http_headers
                .iter()
                .flatten()
                .map(|h| (h.name.clone(), h.value.clone()))
                .collect(),
        })
    }

    fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", authority(&self.host, self.port), self.path)
    }
}

/// Sends the request and follows redirects on the same host; an error is a sentence. Success is 200 to 399.
pub async fn http(probe: &HttpProbe, timeout: Duration) -> Result<(), String> {
    let url = probe.url();
    let attempt = async {
        let mut probe = probe.clone();
        for _ in 0..REDIRECTS_MAX {
            let response = get(&probe).await.map_err(|error| format!("Get {url:?}: {error}"))?;
            let status = response.status();
            if status.is_redirection()
                && let Some(next) = redirect(&probe, &response)
            {
                probe = next;
                continue;
            }
            return match status.as_u16() {
                200..400 => Ok(()),
                code => Err(format!("HTTP probe failed with statuscode: {code}")),
            };
        }
        Err(format!("Get {url:?}: stopped after {REDIRECTS_MAX} redirects"))
    };
    tokio::time::timeout(timeout, attempt).await.unwrap_or_else(|_| {
        Err(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        ))
    })
}

/// Where a redirect leads, if it stays on the same host.
fn redirect(probe: &HttpProbe, response: &Response<Incoming>) -> Option<HttpProbe> {
    let location: Uri = response.headers().get(http::header::LOCATION)?.to_str().ok()?.parse().ok()?;
    let path = location.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    match location.host() {
        None => Some(HttpProbe { path, ..probe.clone() }),
        Some(host) if host.trim_matches(['[', ']']) == probe.host => {
            let tls = location.scheme_str() == Some("https");
            let port = location.port_u16().unwrap_or(if tls { 443 } else { 80 });
            Some(HttpProbe { tls, port, path, ..probe.clone() })
        }
        Some(_) => None,
    }
}

async fn get(probe: &HttpProbe) -> Result<Response<Incoming>, String> {
    let address = authority(&probe.host, probe.port);
    let stream = TcpStream::connect(&address).await.map_err(|error| dial_error(&address, &error))?;
    let request = request(probe)?;
    if probe.tls {
        let name = ServerName::try_from(probe.host.clone()).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(tls_config()?).connect(name, stream).await;
        exchange(TokioIo::new(stream.map_err(|error| error.to_string())?), request).await
    } else {
        exchange(TokioIo::new(stream), request).await
    }
}

/// The request with the headers that upstream's prober sends unless the probe sets them.
fn request(probe: &HttpProbe) -> Result<Request<Full<Bytes>>, String> {
    let set = |name: &str| probe.headers.iter().any(|(header, _)| header.eq_ignore_ascii_case(name));
    let mut builder = Request::builder().uri(&probe.path).header("Connection", "close");
    for (name, default) in
        [("Host", authority(&probe.host, probe.port).as_str()), ("User-Agent", USER_AGENT), ("Accept", "*/*")]
    {
        if !set(name) {
            builder = builder.header(name, default);
        }
    }
    for (name, value) in &probe.headers {
        builder = builder.header(name, value);
    }
    builder.body(Full::default()).map_err(|error| error.to_string())
}

async fn exchange<IO>(io: IO, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String>
where
    IO: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    // Ends when the response has been dropped.
    tokio::spawn(async move { drop(connection.await) });
    sender.send_request(request).await.map_err(|error| match error.is_incomplete_message() {
        true => "EOF".to_owned(),
        false => error.to_string(),
    })
}

/// Accepts every certificate.
#[derive(Debug)]
struct Unchecked(Vec<SignatureScheme>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

fn tls_config() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unchecked(schemes)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Asks the gRPC health service (`grpc.health.v1.Health/Check`).
pub async fn grpc(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    let address = authority(host, port);
    let late = || {
        format!(
            "timeout: failed to connect service {address:?} within {}s: context deadline exceeded",
            timeout.as_secs()
        )
    };
    match tokio::time::timeout(timeout, check_health(host, port, service, timeout)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(late()),
    }
}

async fn check_health(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    let address = authority(host, port);
    let stream = tcp(host, port, timeout).await.map_err(|error| {
        format!("error: this server does not implement the grpc health protocol ({error})")
    })?;
    let http2 = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = http2.handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move { drop(connection.await) });
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", format!("{USER_AGENT} grpc-rust"))
        .body(Full::<Bytes>::from(health_request(service)))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = |headers: &http::HeaderMap| {
        headers.get("grpc-status").and_then(|v| v.to_str().ok()?.parse::<u32>().ok())
    };
    let early = status(response.headers());
    let body =
        Limited::new(response.into_body(), QUOTE_BYTES_MAX).collect().await.map_err(|e| e.to_string())?;
    let code = early.or_else(|| body.trailers().and_then(status)).unwrap_or(0);
    match code {
        0 => match health_status(&body.to_bytes()) {
            Some(1) => Ok(()),
            other => Err(format!("service unhealthy (responded with {:?})", health_name(other))),
        },
        12 => {
            Err("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                .into())
        }
        code => Err(format!("error: health rpc probe failed: rpc error: code = {code}")),
    }
}

/// `HealthCheckRequest{service}` in a gRPC frame.
fn health_request(service: &str) -> Vec<u8> {
    // Names of services are short: one byte of length is enough for 127 characters.
    let service = &service.as_bytes()[..service.len().min(127)];
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend([0x0a, service.len() as u8]);
        message.extend_from_slice(service);
    }
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    frame
}

/// `HealthCheckResponse.status` of a gRPC frame; absent fields are 0.
fn health_status(frame: &[u8]) -> Option<u8> {
    match frame.get(5..)? {
        [] => Some(0),
        [0x08, status, ..] => Some(*status),
        _ => None,
    }
}

fn health_name(status: Option<u8>) -> &'static str {
    match status {
        Some(1) => "SERVING",
        Some(2) => "NOT_SERVING",
        Some(3) => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers each connection with the next text.
    async fn serve(answers: Vec<&'static str>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    fn probe(port: u16) -> HttpProbe {
        HttpProbe { tls: false, host: "127.0.0.1".into(), port, path: "/x".into(), headers: vec![] }
    }

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn statuses_and_redirects() {
        let cases: [(Vec<&'static str>, Result<(), &str>); 4] = [
            (vec!["HTTP/1.1 204 No\r\n\r\n"], Ok(())),
            (vec!["HTTP/1.1 500 No\r\n\r\n"], Err("HTTP probe failed with statuscode: 500")),
            (
                vec!["HTTP/1.1 302 No\r\nLocation: /y\r\n\r\n", "HTTP/1.1 404 No\r\n\r\n"],
                Err("HTTP probe failed with statuscode: 404"),
            ),
            (vec!["HTTP/1.1 302 No\r\nLocation: http://elsewhere.test/\r\n\r\n"], Ok(())),
        ];
        for (answers, expected) in cases {
            let port = serve(answers.clone()).await;
            assert_eq!(http(&probe(port), LONG).await, expected.map_err(str::to_owned), "{answers:?}");
        }
    }

    #[tokio::test]
    async fn refused_and_late() {
        let port = serve(vec![]).await;
        tokio::task::yield_now().await;
        let free = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().port()
        };
        let refused = format!("dial tcp 127.0.0.1:{free}: connect: connection refused");
        assert_eq!(tcp("127.0.0.1", free, LONG).await.unwrap_err(), refused);
        let error = http(&probe(free), LONG).await.unwrap_err();
        assert_eq!(error, format!("Get \"http://127.0.0.1:{free}/x\": {refused}"));
        let _ = port;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let late =
            http(&probe(silent.local_addr().unwrap().port()), Duration::from_millis(20)).await.unwrap_err();
        assert!(
            late.ends_with("context deadline exceeded (Client.Timeout exceeded while awaiting headers)"),
            "{late}"
        );
    }

    #[test]
    fn health_frames() {
        assert_eq!(health_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(health_status(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(health_status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(health_status(&[0]), None);
    }

    #[test]
    fn own_headers_win() {
        let mut with = probe(80);
        with.headers = vec![("host".into(), "me".into()), ("X".into(), "1".into())];
        let request = request(&with).unwrap();
        assert_eq!(request.headers()["host"], "me");
        assert_eq!(
            (&request.headers()["x"], &request.headers()["accept"]),
            (&"1".parse().unwrap(), &"*/*".parse().unwrap())
        );
    }
}
