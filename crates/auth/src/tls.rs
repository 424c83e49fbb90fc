//! TLS for the servers: optional client certificates, and a serving certificate that changes without restart.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};

use crate::pki::{Error, Issued, Names, Pki};

/// Longest wait of the rotation timer: a clock that jumps is noticed within a day.
const ROTATION_CHECK_MAX: Duration = Duration::from_secs(24 * 3600);
/// Wait after a failed renewal.
const ROTATION_RETRY: Duration = Duration::from_secs(60);

/// Verifies client certificates against a CA. The authenticator uses it after the handshake.
pub fn client_verifier(ca: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    client_verifier_of(vec![CertificateDer::from(ca.to_vec())])
}

/// The authorities of a PEM file.
pub fn authorities(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|error| Error::Pem(error.to_string()))?;
    if all.is_empty() { Err(Error::Pem("no certificates".into())) } else { Ok(all) }
}

/// Verifies client certificates against several CAs.
pub fn client_verifier_of(
    authorities: Vec<CertificateDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(Error::Tls)?;
    }
    WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::new(aws_lc_rs::default_provider()))
        .build()
        .map_err(|error| Error::Tls(rustls::Error::General(error.to_string())))
}

/// Asks for a client certificate and checks that the client holds its key, but leaves the judgement to the
/// authenticator: a bad certificate is to end in 401, not in a broken connection.
#[derive(Debug)]
struct AskForCertificate(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AskForCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }
    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A serving certificate that can be exchanged while connections are served.
#[derive(Debug)]
pub struct ServingCertificate(ArcSwap<CertifiedKey>);

impl ServingCertificate {
    /// Serves `issued`.
    pub fn new(issued: &Issued) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(ServingCertificate(ArcSwap::from_pointee(certified_key(issued)?))))
    }

    /// Serves `issued` to every later handshake.
    pub fn replace(&self, issued: &Issued) -> Result<(), Error> {
        self.0.store(Arc::new(certified_key(issued)?));
        Ok(())
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certified_key(issued: &Issued) -> Result<CertifiedKey, Error> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes()).collect();
    let chain = chain.map_err(|error| Error::Pem(error.to_string()))?;
    let key =
        PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).map_err(|e| Error::Pem(e.to_string()))?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(Error::Tls)
}

/// The configuration of an HTTPS server: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1, session tickets, client
/// certificates optional.
pub fn server_config(
    certificate: Arc<ServingCertificate>,
    clients: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_client_cert_verifier(Arc::new(AskForCertificate(clients)))
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(Error::Tls)?;
    Ok(Arc::new(config))
}

/// Keeps a serving certificate fresh: re-issues it when a third of its life is left.
pub struct Rotator {
    pki: Arc<Pki>,
    file: String,
    common_name: String,
    names: Names,
    serving: Arc<ServingCertificate>,
}

impl Rotator {
    /// Loads or issues the serving certificate stored as `file`.crt and .key and keeps it for [`Self::serving`].
    pub fn new(pki: Arc<Pki>, file: &str, common_name: &str, names: Names) -> Result<Self, Error> {
        let issued = pki.stored_server(file, common_name, &names)?;
        let serving = ServingCertificate::new(&issued)?;
        Ok(Rotator { pki, file: file.into(), common_name: common_name.into(), names, serving })
    }

    /// What to serve.
    pub fn serving(&self) -> Arc<ServingCertificate> {
        self.serving.clone()
    }

    /// Renews if it is due. Returns how long to wait for the next look.
    pub fn turn(&self) -> Result<Duration, Error> {
        let issued = self.pki.stored_server(&self.file, &self.common_name, &self.names)?;
        self.serving.replace(&issued)?;
        Ok(self.pki.renewal_due_in(&issued).min(ROTATION_CHECK_MAX))
    }

    /// Renews at every due moment, forever. Drop the future to stop.
    pub async fn run(self) {
        loop {
            let wait = self.turn().unwrap_or_else(|error| {
                tracing::error!(%error, file = self.file, "the serving certificate could not be renewed");
                ROTATION_RETRY
            });
            tokio::time::sleep(wait.max(Duration::from_secs(1))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, ServerConnection};
    use std::net::{IpAddr, Ipv4Addr};
    use stdx::FakeClock;

    /// Shakes hands in memory; returns the server's view of the client certificate and the protocol.
    fn handshake(
        server: Arc<ServerConfig>,
        client: ClientConfig,
    ) -> Result<(Option<Vec<u8>>, Vec<u8>), String> {
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
        let mut client = ClientConnection::new(client.into(), name).map_err(|e| e.to_string())?;
        let mut server = ServerConnection::new(server).map_err(|e| e.to_string())?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets().map_err(|e| e.to_string())?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &wire[..]).unwrap();
            client.process_new_packets().map_err(|e| e.to_string())?;
        }
        let peer = server.peer_certificates().map(|chain| chain[0].to_vec());
        Ok((peer, server.alpn_protocol().unwrap_or_default().to_vec()))
    }

    fn client(pki: &Pki, identity: Option<&Issued>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(pki.ca_der().to_vec())).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(issued) => {
                let cert = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    #[test]
    fn handshakes_with_and_without_certificate_and_rotation() {
        let directory = tempfile::tempdir().unwrap();
        // The TLS client checks validity by the real clock.
        let clock = FakeClock::at(jiff::Timestamp::now());
        let pki = Arc::new(Pki::open_or_create(directory.path(), clock.clone()).unwrap());
        let names = Names { dns: vec![], ips: vec![Ipv4Addr::LOCALHOST.into()] };
        let rotator = Rotator::new(pki.clone(), "apiserver", "kube-apiserver", names).unwrap();
        let config = server_config(rotator.serving(), client_verifier(pki.ca_der()).unwrap()).unwrap();

        let (peer, protocol) = handshake(config.clone(), client(&pki, None)).unwrap();
        assert_eq!((peer, protocol), (None, b"h2".to_vec()));
        let ann = pki.issue_client("ann", &[]).unwrap();
        let (peer, _) = handshake(config.clone(), client(&pki, Some(&ann))).unwrap();
        assert_eq!(peer.unwrap(), CertificateDer::from_pem_slice(ann.cert_pem.as_bytes()).unwrap().to_vec());

        let before = rotator.serving.0.load_full();
        let wait = rotator.turn().unwrap();
        assert_eq!(wait, ROTATION_CHECK_MAX);
        assert_eq!(before.cert, rotator.serving.0.load().cert, "not due yet");
        clock.advance(Duration::from_secs(250 * 86_400));
        rotator.turn().unwrap();
        assert_ne!(before.cert, rotator.serving.0.load().cert, "renewed with a third of its life left");
    }
}
