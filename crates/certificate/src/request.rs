//! What a certificate request (PKCS #10) asks for.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Error, pem};

/// A request, read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Common name; the last one where there are several.
    pub common_name: String,
    /// Organizations.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// Mail addresses.
    pub emails: Vec<String>,
    /// URIs.
    pub uris: Vec<String>,
    /// The subject as it stands in the request (DER).
    pub subject: Vec<u8>,
    /// The public key as it stands in the request (DER of the SubjectPublicKeyInfo).
    pub public_key: Vec<u8>,
    /// The alternative names as they stand in the request (DER of the extension's value).
    pub alternative_names: Option<Vec<u8>>,
}

/// Object identifier of the extension with alternative names.
const ALTERNATIVE_NAMES: &str = "2.5.29.17";

impl Request {
    /// Reads a request from the base64 of its PEM, as it stands in `spec.request`.
    pub fn from_base64(text: &str) -> Result<Request, Error> {
        let bytes = STANDARD.decode(text).map_err(|_| Error::NoRequest)?;
        Request::from_pem(&String::from_utf8_lossy(&bytes))
    }

    /// Reads a request from PEM.
    pub fn from_pem(text: &str) -> Result<Request, Error> {
        let block = pem::blocks(text).into_iter().next().filter(|b| b.label == "CERTIFICATE REQUEST");
        Request::from_der(&block.ok_or(Error::NoRequest)?.der)
    }

    /// Reads a request; its signature must be right.
    pub fn from_der(der: &[u8]) -> Result<Request, Error> {
        let malformed = |e: &dyn std::fmt::Display| Error::Malformed(format!("asn1: structure error: {e}"));
        let (rest, parsed) = X509CertificationRequest::from_der(der).map_err(|e| malformed(&e))?;
        if !rest.is_empty() {
            return Err(Error::Malformed("asn1: syntax error: trailing data".into()));
        }
        parsed.verify_signature().map_err(|_| Error::Signature)?;
        let info = &parsed.certification_request_info;
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().map(str::to_owned).ok();
        let mut request = Request {
            common_name: info.subject.iter_common_name().filter_map(text).last().unwrap_or_default(),
            organizations: info.subject.iter_organization().filter_map(text).collect(),
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            ..Request::default()
        };
        for attribute in info.iter_attributes() {
            use x509_parser::cri_attributes::ParsedCriAttribute::ExtensionRequest;
            let ExtensionRequest(requested) = attribute.parsed_attribute() else { continue };
            for extension in &requested.extensions {
                if extension.oid.to_id_string() == ALTERNATIVE_NAMES {
                    request.alternative_names = Some(extension.value.to_vec());
                }
                if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
                    names.general_names.iter().for_each(|name| request.add(name));
                }
            }
        }
        Ok(request)
    }

    fn add(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.dns.push((*name).to_owned()),
            GeneralName::RFC822Name(mail) => self.emails.push((*mail).to_owned()),
            GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let sixteen = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
                self.ips.extend(four.or(sixteen));
            }
            _ => {}
        }
    }
}

/// What is wrong with the base64 of a PEM chain of certificates; nothing when it is empty.
pub fn chain_problem(base64: &str) -> Option<String> {
    if base64.is_empty() {
        return None;
    }
    let text = STANDARD.decode(base64).unwrap_or_default();
    let blocks = pem::blocks(&String::from_utf8_lossy(&text));
    if blocks.is_empty() {
        return Some("must contain at least one CERTIFICATE PEM block".into());
    }
    blocks.iter().find_map(|block| {
        if block.label != "CERTIFICATE" {
            return Some(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label));
        }
        if block.has_headers {
            return Some("no PEM block headers are permitted".into());
        }
        X509Certificate::from_der(&block.der).err().map(|e| format!("x509: malformed certificate: {e}"))
    })
}

/// What is wrong with the PEM of a trust bundle: each block an authority's certificate, none twice.
pub fn trust_bundle_problem(text: &str) -> Option<String> {
    let blocks = pem::blocks(text);
    if blocks.is_empty() {
        return Some("at least one trust anchor must be provided".into());
    }
    for (i, block) in blocks.iter().enumerate() {
        if block.label != "CERTIFICATE" {
            return Some(format!("entry {i} has bad block type: {}", block.label));
        }
        if block.has_headers {
            return Some(format!("entry {i} has PEM block headers"));
        }
        let Ok((_, certificate)) = X509Certificate::from_der(&block.der) else {
            return Some(format!("entry {i} does not parse as X.509"));
        };
        if !certificate.is_ca() {
            return Some(format!("entry {i} does not have the CA bit set"));
        }
        if let Some(first) = blocks.iter().position(|other| other.der == block.der).filter(|first| *first < i)
        {
            return Some(format!("duplicate trust anchor (indices {first} and {i})"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

    #[test]
    fn requests_say_what_they_ask_for() {
        let names = ["a.example".to_owned(), "10.0.0.1".to_owned(), "fd00::1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "ann");
        params.distinguished_name.push(DnType::OrganizationName, "dev");
        let key = KeyPair::generate().unwrap();
        let made = params.serialize_request(&key).unwrap();
        let request = Request::from_pem(&made.pem().unwrap()).unwrap();
        assert_eq!((request.common_name.as_str(), &*request.organizations), ("ann", &["dev".to_owned()][..]));
        assert_eq!(request.dns, ["a.example"]);
        assert_eq!(request.ips.len(), 2);
        assert!(request.alternative_names.is_some());
        let mut forged = made.der().to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert_eq!(Request::from_der(&forged), Err(Error::Signature));
        assert_eq!(Request::from_pem("nothing"), Err(Error::NoRequest));
        assert!(matches!(Request::from_der(&[0x30, 3, 1]), Err(Error::Malformed(_))));
    }

    #[test]
    fn chains_and_bundles() {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::default().self_signed(&key).unwrap().pem();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem();
        let other = leaf.replace("CERTIFICATE", "KEY");
        for (chain, problem) in [
            (leaf.as_str(), None),
            ("x", Some("must contain at least one CERTIFICATE PEM block")),
            (&other, Some("only CERTIFICATE PEM blocks are allowed, found \"KEY\"")),
        ] {
            assert_eq!(chain_problem(&STANDARD.encode(chain)).as_deref(), problem);
        }
        for (bundle, problem) in [
            (ca.clone(), None),
            (leaf.clone(), Some("entry 0 does not have the CA bit set")),
            (format!("{ca}{ca}"), Some("duplicate trust anchor (indices 0 and 1)")),
            (other, Some("entry 0 has bad block type: KEY")),
            (String::new(), Some("at least one trust anchor must be provided")),
        ] {
            assert_eq!(trust_bundle_problem(&bundle).as_deref(), problem);
        }
    }
}
