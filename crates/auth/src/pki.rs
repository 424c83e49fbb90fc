//! The cluster's certificate authority and what it issues: serving and client certificates, kubeconfigs, the
//! service account key. Files live under one directory, readable by the owner only.
//!
//! Everything is ECDSA P-256. The CA lives ten years and is kept; what it issues lives one year and is
//! renewed when a third of that is left.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use stdx::Clock;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Life of the CA.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Life of what it issues.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// Certificates begin this much in the past: clocks of other machines differ.
const BACKDATE: Duration = Duration::from_secs(300);
/// Requested lives below this include the backdating (upstream's eight hours).
const SHORT_SECONDS: i64 = 8 * 3600;

/// A certificate or key could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Making a certificate failed.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A name is not a DNS name.
    #[error("{0:?} is not a DNS name")]
    Name(String),
    /// More organizations than a certificate is made with.
    #[error("a certificate takes at most two organizations, not {0}")]
    Organizations(usize),
    /// A certificate request cannot be read.
    #[error("{0}")]
    Request(#[source] certificate::Error),
    /// PEM text does not parse.
    #[error("PEM: {0}")]
    Pem(String),
    /// TLS refuses the certificate or key.
    #[error("TLS: {0}")]
    Tls(#[source] rustls::Error),
}

/// Alternative names of a serving certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
}

/// A certificate with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// Certificate as PEM.
    pub cert_pem: String,
    /// Private key as PEM (PKCS #8).
    pub key_pem: String,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("Issued").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// The cluster's CA and the directory it keeps its files in.
pub struct Pki {
    directory: PathBuf,
    clock: Arc<dyn Clock>,
    ca_pem: String,
    ca_key_pem: String,
    ca_der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Opens the CA in `directory` (`ca.crt`, `ca.key`), making both on first use.
    pub fn open_or_create(directory: &Path, clock: Arc<dyn Clock>) -> Result<Pki, Error> {
        let at = |source| Error::File { path: directory.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(at)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(at)?;
        let (cert_path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
        let (ca_pem, ca_key_pem) = match (read(&cert_path)?, read(&key_path)?) {
            (Some(cert), Some(key)) => (cert, key),
            _ => {
                let (cert, key) = make_ca(clock.now())?;
                // The key first: a certificate without a key would be taken for a damaged CA.
                write(&key_path, &key)?;
                write(&cert_path, &cert)?;
                (cert, key)
            }
        };
        let ca_der =
            CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| Error::Pem(e.to_string()))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, KeyPair::from_pem(&ca_key_pem)?)?;
        Ok(Pki {
            directory: directory.to_owned(),
            clock,
            ca_der: ca_der.to_vec(),
            ca_pem,
            ca_key_pem,
            issuer,
        })
    }

    /// The CA certificate as PEM: the trust bundle of the cluster.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The CA's private key as PEM, for a second server that joins the control plane.
    pub fn ca_key_pem(&self) -> &str {
        &self.ca_key_pem
    }

    /// The CA certificate as DER.
    pub fn ca_der(&self) -> &[u8] {
        &self.ca_der
    }

    /// A client certificate: `common_name` is the user, every organization (at most two) a group.
    pub fn issue_client(&self, common_name: &str, organizations: &[&str]) -> Result<Issued, Error> {
        let mut params = self.leaf(common_name, organizations)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// A serving certificate.
    pub fn issue_server(&self, common_name: &str, names: &Names) -> Result<Issued, Error> {
        let mut params = self.leaf(common_name, &[])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in &names.dns {
            let dns = name.as_str().try_into().map_err(|_| Error::Name(name.clone()))?;
            params.subject_alt_names.push(SanType::DnsName(dns));
        }
        params.subject_alt_names.extend(names.ips.iter().map(|ip| SanType::IpAddress(*ip)));
        self.sign(params)
    }

    /// The client certificate kept as `file`.crt and `file`.key, issued or renewed if need be.
    pub fn stored_client(
        &self,
        file: &str,
        common_name: &str,
        organizations: &[&str],
    ) -> Result<Issued, Error> {
        match self.stored(file, common_name, &Names::default())? {
            Some(issued) => Ok(issued),
            None => self.store(file, self.issue_client(common_name, organizations)?),
        }
    }

    /// The serving certificate kept as `file`.crt and `file`.key, issued anew when it is due or does not
    /// have all the names.
    pub fn stored_server(&self, file: &str, common_name: &str, names: &Names) -> Result<Issued, Error> {
        match self.stored(file, common_name, names)? {
            Some(issued) => Ok(issued),
            None => self.store(file, self.issue_server(common_name, names)?),
        }
    }

    /// Signs a request (PKCS #10, PEM) as a CertificateSigningRequest's signer does. Subject, key and names are
    /// the request's, byte for byte; usages are those of the API (`client auth`, `server auth`).
    pub fn sign_request(&self, request_pem: &str, usages: &[&str], life: Duration) -> Result<String, Error> {
        let request = certificate::Request::from_pem(request_pem).map_err(Error::Request)?;
        let now = self.clock.now();
        let life = i64::try_from(life.min(CERTIFICATE_LIFE).as_secs()).unwrap_or(0);
        let backdate = i64::try_from(BACKDATE.as_secs()).unwrap_or(0);
        // A short life is counted from the backdated start, as upstream's signer counts.
        let end = if life < SHORT_SECONDS { life - backdate } else { life };
        let at = |seconds: i64| Timestamp::from_second(now.as_second() + seconds).unwrap_or(Timestamp::MAX);
        let terms = crate::issue::Terms { usages, not_before: at(-backdate), not_after: at(end) };
        crate::issue::issue(&request, &terms, &self.ca_der, self.issuer.key())
    }

    /// The key that signs ServiceAccount tokens (`sa.key`, its public half in `sa.pub`), made on first use.
    pub fn service_account_key(&self) -> Result<KeyPair, Error> {
        let path = self.directory.join("sa.key");
        let key = match read(&path)? {
            Some(pem) => return Ok(KeyPair::from_pem(&pem)?),
            None => KeyPair::generate()?,
        };
        write(&self.directory.join("sa.pub"), &key.public_key_pem())?;
        write(&path, &key.serialize_pem())?;
        Ok(key)
    }

    /// How long until a certificate should be renewed: when a third of its life is left.
    pub fn renewal_due_in(&self, issued: &Issued) -> Duration {
        let life = issued.not_after.as_second() - issued.not_before.as_second();
        let due = issued.not_after.as_second() - life / 3;
        Duration::from_secs(u64::try_from(due - self.clock.now().as_second()).unwrap_or(0))
    }

    fn leaf(&self, common_name: &str, organizations: &[&str]) -> Result<CertificateParams, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // The certificate library keeps one value per attribute type; the second organization goes in under
        // the same identifier spelled out. Nobody is in more groups by certificate here.
        const ORGANIZATION: [u64; 4] = [2, 5, 4, 10];
        let kinds = [DnType::OrganizationName, DnType::CustomDnType(ORGANIZATION.to_vec())];
        if organizations.len() > kinds.len() {
            return Err(Error::Organizations(organizations.len()));
        }
        for (kind, organization) in kinds.into_iter().zip(organizations) {
            params.distinguished_name.push(kind, *organization);
        }
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        set_validity(&mut params, self.clock.now(), CERTIFICATE_LIFE);
        Ok(params)
    }

    fn sign(&self, params: CertificateParams) -> Result<Issued, Error> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let seconds = |time: i64| Timestamp::from_second(time).unwrap_or(Timestamp::MAX);
        Ok(Issued {
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            not_before: seconds(params.not_before.unix_timestamp()),
            not_after: seconds(params.not_after.unix_timestamp()),
        })
    }

    /// Reads a kept certificate; `None` when there is none that still serves.
    fn stored(&self, file: &str, common_name: &str, names: &Names) -> Result<Option<Issued>, Error> {
        let cert = read(&self.directory.join(format!("{file}.crt")))?;
        let key = read(&self.directory.join(format!("{file}.key")))?;
        let (Some(cert_pem), Some(key_pem)) = (cert, key) else { return Ok(None) };
        let Some(issued) = inspect(cert_pem, key_pem, common_name, names, &self.ca_der) else {
            return Ok(None);
        };
        let due = self.renewal_due_in(&issued).is_zero();
        Ok((!due).then_some(issued))
    }

    fn store(&self, file: &str, issued: Issued) -> Result<Issued, Error> {
        write(&self.directory.join(format!("{file}.key")), &issued.key_pem)?;
        write(&self.directory.join(format!("{file}.crt")), &issued.cert_pem)?;
        Ok(issued)
    }
}

/// Whether a kept certificate is what is wanted: our CA's, of this name, with these alternative names, and
/// belonging to the key beside it (a crash may have come between the two files).
fn inspect(cert_pem: String, key_pem: String, common_name: &str, names: &Names, ca: &[u8]) -> Option<Issued> {
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&der).ok()?;
    let (_, ca) = x509_parser::certificate::X509Certificate::from_der(ca).ok()?;
    let authority = certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.clone(),
        _ => None,
    });
    let ca_id = ca.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.clone()),
        _ => None,
    });
    if authority.is_none() || authority != ca_id {
        return None;
    }
    let key = KeyPair::from_pem(&key_pem).ok()?;
    if certificate.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return None;
    }
    if certificate.subject().iter_common_name().next()?.as_str().ok()? != common_name {
        return None;
    }
    let alternatives = certificate.subject_alternative_name().ok()?;
    let present = |wanted: &GeneralName<'_>| {
        alternatives.as_ref().is_some_and(|extension| extension.value.general_names.contains(wanted))
    };
    let dns = names.dns.iter().all(|name| present(&GeneralName::DNSName(name)));
    let ips = names.ips.iter().all(|ip| match ip {
        IpAddr::V4(ip) => present(&GeneralName::IPAddress(&ip.octets())),
        IpAddr::V6(ip) => present(&GeneralName::IPAddress(&ip.octets())),
    });
    let validity = certificate.validity();
    let not_before = Timestamp::from_second(validity.not_before.timestamp()).ok()?;
    let not_after = Timestamp::from_second(validity.not_after.timestamp()).ok()?;
    (dns && ips).then_some(Issued { cert_pem, key_pem, not_before, not_after })
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let epoch = date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0));
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now + life;
}

fn make_ca(now: Timestamp) -> Result<(String, String), Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    set_validity(&mut params, now, CA_LIFE);
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// A private key from PEM.
pub fn key_from_pem(pem: &str) -> Result<KeyPair, Error> {
    Ok(KeyPair::from_pem(pem)?)
}

/// A kubeconfig with the credentials embedded.
pub fn kubeconfig(server_url: &str, ca_pem: &str, cert_pem: &str, key_pem: &str, context: &str) -> String {
    let b64 = |text: &str| STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {context}\n  cluster:\n    \
         certificate-authority-data: {}\n    server: {server_url}\ncontexts:\n- name: {context}\n  context:\n    \
         cluster: {context}\n    user: {context}\ncurrent-context: {context}\npreferences: {{}}\nusers:\n- name: \
         {context}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        b64(ca_pem),
        b64(cert_pem),
        b64(key_pem)
    )
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

/// Replaces a file at once, readable by the owner only: a reader sees the old text or the new one.
pub fn write(path: &Path, text: &str) -> Result<(), Error> {
    let at = |source| Error::File { path: path.to_owned(), source };
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let mut options = fs::OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(&temporary).map_err(at)?;
    file.write_all(text.as_bytes()).map_err(at)?;
    file.sync_all().map_err(at)?;
    fs::rename(&temporary, path).map_err(at)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(parent).and_then(|directory| directory.sync_all()).map_err(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stdx::FakeClock;

    fn setup() -> (tempfile::TempDir, Arc<FakeClock>, Pki) {
        let directory = tempfile::tempdir().unwrap();
        let clock = FakeClock::at("2026-06-01T00:00:00Z".parse().unwrap());
        let pki = Pki::open_or_create(&directory.path().join("pki"), clock.clone()).unwrap();
        (directory, clock, pki)
    }

    #[test]
    fn the_authority_and_its_keys_are_kept_and_private() {
        let (directory, clock, pki) = setup();
        let again = Pki::open_or_create(&directory.path().join("pki"), clock).unwrap();
        assert_eq!(pki.ca_pem(), again.ca_pem());
        let key = pki.service_account_key().unwrap();
        assert_eq!(key.public_key_raw(), again.service_account_key().unwrap().public_key_raw());
        for (file, mode) in [("", 0o40700), ("ca.key", 0o100600), ("sa.key", 0o100600)] {
            let path = directory.path().join("pki").join(file);
            assert_eq!(fs::metadata(path).unwrap().permissions().mode(), mode, "{file}");
        }
    }

    #[test]
    fn kept_until_due_or_until_names_change() {
        let (_directory, clock, pki) = setup();
        let names = Names { dns: vec!["kubernetes".into()], ips: vec!["10.43.0.1".parse().unwrap()] };
        let first = pki.stored_server("apiserver", "kube-apiserver", &names).unwrap();
        assert_eq!(
            pki.stored_server("apiserver", "kube-apiserver", &names).unwrap().cert_pem,
            first.cert_pem
        );
        let more = Names { ips: vec!["10.43.0.1".parse().unwrap(), "::1".parse().unwrap()], ..names.clone() };
        let second = pki.stored_server("apiserver", "kube-apiserver", &more).unwrap();
        assert_ne!(first.cert_pem, second.cert_pem);
        // Fewer names are no reason to issue another.
        assert_eq!(
            pki.stored_server("apiserver", "kube-apiserver", &names).unwrap().cert_pem,
            second.cert_pem
        );
        let due = pki.renewal_due_in(&second);
        assert!(
            due > Duration::from_secs(240 * 86_400) && due < Duration::from_secs(245 * 86_400),
            "{due:?}"
        );
        clock.advance(due);
        let third = pki.stored_server("apiserver", "kube-apiserver", &names).unwrap();
        assert_ne!(second.cert_pem, third.cert_pem);
    }

    #[test]
    fn requests_are_signed_with_their_own_subject() {
        let (_directory, _clock, pki) = setup();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "system:node:n1");
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let signed = pki.sign_request(&request, &["client auth"], Duration::from_secs(3600)).unwrap();
        let issued = inspect(signed, key.serialize_pem(), "system:node:n1", &Names::default(), pki.ca_der());
        let issued = issued.unwrap();
        assert_eq!(issued.not_after.as_second() - issued.not_before.as_second(), 3600);
    }

    #[test]
    fn kubeconfig_is_well_formed() {
        let text = kubeconfig("https://127.0.0.1:6443", "CA", "CERT", "KEY", "ferry");
        assert!(text.contains("    server: https://127.0.0.1:6443\n"));
        assert!(text.contains("    certificate-authority-data: Q0E=\n"));
        assert!(text.contains("- name: ferry\n  user:\n    client-certificate-data: Q0VSVA==\n"));
        assert!(text.contains("current-context: ferry\n"));
    }
}
