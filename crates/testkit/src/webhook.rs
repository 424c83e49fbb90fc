//! A webhook in the test's own process: HTTPS with a certificate of its own authority.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// Largest request that is read.
const REQUEST_BYTES_MAX: usize = 8 << 20;

/// What a webhook answers to the `request` of a review: the `response` without its uid.
pub type Handler = fn(&Value) -> Value;

/// A running webhook. It ends with the process: its thread waits for connections only.
pub struct Webhook {
    /// Its `clientConfig`.
    pub client_config: Value,
}

impl Webhook {
    /// Starts one on the loopback of the calling thread's network namespace, where the cluster is too.
    pub fn start(handler: Handler) -> anyhow::Result<Webhook> {
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate()?;
        let ca_certificate = ca.self_signed(&ca_key)?;
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &issuer)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)?;
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
        let port = listener.local_addr()?.port();
        let config = Arc::new(config);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let config = config.clone();
                std::thread::spawn(move || {
                    if let Err(error) = serve(stream, config, handler) {
                        eprintln!("webhook: {error:#}");
                    }
                });
            }
        });
        use base64::Engine;
        let bundle = base64::engine::general_purpose::STANDARD.encode(ca_certificate.pem());
        Ok(Webhook {
            client_config: json!({"url": format!("https://127.0.0.1:{port}/"), "caBundle": bundle}),
        })
    }
}

/// Answers one request and closes the connection.
fn serve(stream: TcpStream, config: Arc<ServerConfig>, handler: Handler) -> anyhow::Result<()> {
    let mut tls = StreamOwned::new(ServerConnection::new(config)?, stream);
    let (mut read, mut chunk) = (Vec::new(), [0; 16_384]);
    let body = loop {
        let n = tls.read(&mut chunk)?;
        anyhow::ensure!(n > 0 && read.len() < REQUEST_BYTES_MAX, "the request is cut off");
        read.extend_from_slice(&chunk[..n]);
        let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
        let length =
            head.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let wanted = end + 4 + length.context("the request has no length")?;
        if read.len() >= wanted {
            break read.get(end + 4..wanted).unwrap_or_default().to_vec();
        }
    };
    let review: Value = serde_json::from_slice(&body)?;
    let mut response = handler(&review["request"]);
    response["uid"] = review["request"]["uid"].clone();
    let answer = json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response});
    let answer = answer.to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        answer.len()
    );
    tls.write_all(head.as_bytes())?;
    tls.write_all(answer.as_bytes())?;
    tls.conn.send_close_notify();
    tls.flush()?;
    Ok(())
}

/// An answer that changes the object.
pub fn patching(patch: &Value) -> Value {
    use base64::Engine;
    let patch = base64::engine::general_purpose::STANDARD.encode(patch.to_string());
    json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
}
