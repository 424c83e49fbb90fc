//! A webhook for tests: a small HTTPS server inside the test process, with an authority of its own.

use std::sync::Arc;

use anyhow::Context;
use base64::Engine;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;

/// From the path and the body of a request to the answer.
pub type Handler = Arc<dyn Fn(&str, Value) -> Value + Send + Sync>;

/// A running webhook; it ends with the value.
pub struct Hook {
    /// Port on every address of the cluster's host.
    pub port: u16,
    /// `caBundle` of its authority.
    pub ca_bundle: String,
    _runtime: tokio::runtime::Runtime,
}

/// A certificate with its authority, made before the server: configurations may have to name it.
pub struct Identity {
    /// PEM of the authority.
    pub ca: String,
    config: rustls::ServerConfig,
}

impl Identity {
    /// For `names` (DNS names and addresses).
    pub fn new(names: &[&str]) -> anyhow::Result<Identity> {
        let (ca, config) = certificates(names)?;
        Ok(Identity { ca, config })
    }
}

impl Hook {
    /// Serves `handler` under a certificate for `names` (DNS names and addresses).
    pub fn start(names: &[&str], handler: Handler) -> anyhow::Result<Hook> {
        Hook::start_at(0, Identity::new(names)?, handler)
    }

    /// Serves `handler` at a port.
    pub fn start_at(port: u16, identity: Identity, handler: Handler) -> anyhow::Result<Hook> {
        let Identity { ca, config } = identity;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = std::net::TcpListener::bind(("0.0.0.0", port)).context("cannot listen")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        runtime.spawn(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, handler) = (acceptor.clone(), handler.clone());
                tokio::spawn(async move {
                    if let Ok(tls) = acceptor.accept(tcp).await {
                        let service = hyper::service::service_fn(move |r| answer(r, handler.clone()));
                        let connection = hyper::server::conn::http1::Builder::new();
                        // A client that goes away ends the connection; that is no failure.
                        connection.serve_connection(TokioIo::new(tls), service).await.ok();
                    }
                });
            }
        });
        let ca_bundle = base64::engine::general_purpose::STANDARD.encode(ca);
        Ok(Hook { port, ca_bundle, _runtime: runtime })
    }
}

async fn answer(
    request: http::Request<hyper::body::Incoming>,
    handler: Handler,
) -> Result<http::Response<Full<bytes::Bytes>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let answer = handler(&path, serde_json::from_slice(&body).unwrap_or_default());
    Ok(http::Response::new(Full::new(answer.to_string().into())))
}

/// An authority's PEM, and a server's configuration under it.
fn certificates(names: &[&str]) -> anyhow::Result<(String, rustls::ServerConfig)> {
    let mut authority = rcgen::CertificateParams::new(Vec::new())?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "webhook-tests");
    let authority_key = rcgen::KeyPair::generate()?;
    let pem = authority.self_signed(&authority_key)?.pem();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)?;
    Ok((pem, config))
}
