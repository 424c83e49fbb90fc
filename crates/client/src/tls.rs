//! TLS settings from PEM: whom to trust, how to identify ourselves.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::transport::TransportError;

/// Where distributions keep the system's trusted certificates.
const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Whom to trust.
#[derive(Debug, Clone)]
pub enum Trust {
    /// The certificates in this PEM.
    Ca(Vec<u8>),
    /// The system's certificates.
    System,
    /// Anybody: for debugging only (`insecure-skip-tls-verify`).
    Anybody,
}

/// A certificate chain and its key, in PEM.
#[derive(Clone)]
pub struct KeyPair {
    /// Chain, leaf first.
    pub certificates: Vec<u8>,
    /// Private key.
    pub key: Vec<u8>,
}

fn tls(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TransportError {
    TransportError::Tls(error.into())
}

/// Builds the configuration of TLS connections offering `alpn`.
pub fn client_config(
    trust: &Trust,
    identity: Option<&KeyPair>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TransportError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(tls)?;
    let builder = match trust {
        Trust::Anybody => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnybody(provider)))
        }
        Trust::Ca(pem) => builder.with_webpki_verifier(verifier(pem, provider)?),
        Trust::System => {
            let pem = SYSTEM_BUNDLES.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
            builder.with_webpki_verifier(verifier(&pem, provider)?)
        }
    };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain: Vec<_> =
                CertificateDer::pem_slice_iter(&pair.certificates).collect::<Result<_, _>>().map_err(tls)?;
            let key = PrivateKeyDer::from_pem_slice(&pair.key).map_err(tls)?;
            builder.with_client_auth_cert(chain, key).map_err(tls)?
        }
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

fn verifier(pem: &[u8], provider: Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, TransportError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(tls)?).map_err(tls)?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(tls)
}

/// Accepts any certificate, but still insists that the server holds its key.
#[derive(Debug)]
struct TrustAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
