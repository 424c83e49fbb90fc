//! A certificate for a request, put together byte by byte: subject, key and alternative names come through
//! exactly as they were asked for, whatever their kinds and number.

use certificate::der::{self, constructed, tag, value};
use certificate::{Request, pem};
use jiff::Timestamp;
use rcgen::{KeyPair, SigningKey};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::pki::Error;

/// Under which terms a certificate is issued.
pub struct Terms<'a> {
    /// Usages by the API's names.
    pub usages: &'a [&'a str],
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
}

/// ecdsa-with-SHA256: the authority's keys are of P-256.
const ECDSA_SHA256: [u64; 7] = [1, 2, 840, 10045, 4, 3, 2];
/// First year that is written in four digits (RFC 5280, 4.1.2.5).
const GENERALIZED_FROM: i16 = 2050;
/// Bits of the key usage extension by the API's names.
const KEY_USAGES: [(&str, u8); 10] = [
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
];
/// Identifiers of extended usages below 1.3.6.1.5.5.7.3 by the API's names.
const PURPOSES: [(&str, u64); 10] = [
    ("server auth", 1),
    ("client auth", 2),
    ("code signing", 3),
    ("email protection", 4),
    ("s/mime", 4),
    ("ipsec end system", 5),
    ("ipsec tunnel", 6),
    ("ipsec user", 7),
    ("timestamping", 8),
    ("ocsp signing", 9),
];
/// Extended usages that have identifiers elsewhere.
const OTHER_PURPOSES: [(&str, &[u64]); 3] = [
    ("any", &[2, 5, 29, 37, 0]),
    ("microsoft sgc", &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
    ("netscape sgc", &[2, 16, 840, 1, 113_730, 4, 1]),
];

/// The certificate for a request as PEM, signed with the authority's key.
pub fn issue(request: &Request, terms: &Terms<'_>, ca_der: &[u8], key: &KeyPair) -> Result<String, Error> {
    let (_, ca) = X509Certificate::from_der(ca_der).map_err(|e| Error::Pem(e.to_string()))?;
    let algorithm = constructed(tag::SEQUENCE, &[der::oid(&ECDSA_SHA256)]);
    let body = constructed(
        tag::SEQUENCE,
        &[
            // Version 3.
            constructed(0xa0, &[der::integer(&[2])]),
            der::integer(uuid::Uuid::new_v4().as_bytes()),
            algorithm.clone(),
            ca.subject().as_raw().to_vec(),
            constructed(tag::SEQUENCE, &[time(terms.not_before), time(terms.not_after)]),
            request.subject.clone(),
            request.public_key.clone(),
            constructed(0xa3, &[constructed(tag::SEQUENCE, &extensions(request, terms, &ca))]),
        ],
    );
    let signature = key.sign(&body)?;
    let whole = constructed(tag::SEQUENCE, &[body, algorithm, der::bits(&signature)]);
    Ok(pem::encode("CERTIFICATE", &whole))
}

fn extensions(request: &Request, terms: &Terms<'_>, ca: &X509Certificate<'_>) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let bits: Vec<u8> =
        KEY_USAGES.iter().filter(|(name, _)| terms.usages.contains(name)).map(|(_, bit)| *bit).collect();
    if !bits.is_empty() {
        all.push(extension(&[2, 5, 29, 15], true, &der::named_bits(&bits)));
    }
    let mut purposes: Vec<Vec<u8>> = (PURPOSES.iter().filter(|(name, _)| terms.usages.contains(name)))
        .map(|(_, last)| der::oid(&[1, 3, 6, 1, 5, 5, 7, 3, *last]))
        .collect();
    let others = OTHER_PURPOSES.iter().filter(|(name, _)| terms.usages.contains(name));
    purposes.extend(others.map(|(_, arcs)| der::oid(arcs)));
    purposes.dedup();
    if !purposes.is_empty() {
        all.push(extension(&[2, 5, 29, 37], false, &constructed(tag::SEQUENCE, &purposes)));
    }
    all.push(extension(&[2, 5, 29, 19], true, &constructed(tag::SEQUENCE, &[])));
    let id = ca.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    if let Some(id) = id {
        all.push(extension(&[2, 5, 29, 35], false, &constructed(tag::SEQUENCE, &[value(0x80, &id)])));
    }
    if let Some(names) = &request.alternative_names {
        // Critical where there is no subject to go by (RFC 5280, 4.2.1.6).
        let nameless = request.subject == constructed(tag::SEQUENCE, &[]);
        all.push(extension(&[2, 5, 29, 17], nameless, names));
    }
    all
}

fn extension(id: &[u64], critical: bool, content: &[u8]) -> Vec<u8> {
    let mut parts = vec![der::oid(id)];
    if critical {
        parts.push(value(tag::BOOLEAN, &[0xff]));
    }
    parts.push(value(tag::OCTET_STRING, content));
    constructed(tag::SEQUENCE, &parts)
}

fn time(at: Timestamp) -> Vec<u8> {
    let utc = at.to_zoned(jiff::tz::TimeZone::UTC);
    match utc.year() < GENERALIZED_FROM {
        true => value(tag::UTC_TIME, utc.strftime("%y%m%d%H%M%SZ").to_string().as_bytes()),
        false => value(tag::GENERALIZED_TIME, utc.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, CustomExtension, DnType, KeyPair};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, UnixTime};
    use stdx::FakeClock;

    use super::*;
    use crate::pki::Pki;

    #[test]
    fn what_is_issued_is_what_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let clock = FakeClock::at("2026-06-01T00:00:00Z".parse().unwrap());
        let pki = Pki::open_or_create(directory.path(), clock.clone()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["h.example".into(), "10.0.0.1".into()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "dev");
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 10]), "ops");
        params.distinguished_name.push(DnType::CommonName, "ann");
        // An extension that nobody knows is no reason to refuse.
        params.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]));
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let day = Duration::from_secs(86_400);
        let signed = pki.sign_request(&request, &["client auth", "digital signature"], day).unwrap();
        let der = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(parsed.subject().iter_organization().count(), 2);
        assert_eq!(parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 2);
        assert_eq!(parsed.validity().not_after.timestamp(), 1_780_272_000 + 86_400);
        let verifier = crate::tls::client_verifier(pki.ca_der()).unwrap();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(1_780_272_000));
        verifier.verify_client_cert(&der, &[], at).unwrap();
        let serving = pki.sign_request(&request, &["server auth"], day).unwrap();
        let serving = CertificateDer::from_pem_slice(serving.as_bytes()).unwrap();
        assert!(verifier.verify_client_cert(&serving, &[], at).is_err(), "no certificate for clients");
    }
}
