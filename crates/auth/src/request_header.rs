//! Identities that a proxy in front of the server vouches for: the proxy shows a certificate of an authority of its
//! own, the caller's identity is in headers.

use std::sync::Arc;
use std::time::Duration;

use meta::UserInfo;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use stdx::Clock;
use x509_parser::prelude::FromDer;

/// Which proxies are believed, and where they say what.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Common names of the proxies; empty for whoever the authority has signed.
    pub allowed_names: Vec<String>,
    /// Headers of the user's name; the first that is there counts.
    pub username: Vec<String>,
    /// Headers of the user's id; the first that is there counts.
    pub uid: Vec<String>,
    /// Headers of groups, one value each.
    pub group: Vec<String>,
    /// How headers of further attributes begin; the rest of the name is the attribute's.
    pub extra_prefix: Vec<String>,
}

/// Believes proxies.
pub struct RequestHeaders {
    rules: Rules,
    proxies: Arc<dyn ClientCertVerifier>,
    clock: Arc<dyn Clock>,
}

fn starts_with(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

impl Rules {
    /// What the headers say of the caller; `None` if they name nobody.
    fn identity(&self, headers: &[(&str, &str)]) -> Option<UserInfo> {
        let first = |names: &[String]| {
            let mut found = names.iter().filter_map(|name| {
                headers.iter().find(|(n, v)| n.eq_ignore_ascii_case(name) && !v.is_empty()).map(|(_, v)| *v)
            });
            found.next().map(str::to_owned)
        };
        let mut user = UserInfo { username: first(&self.username)?, ..UserInfo::default() };
        user.uid = first(&self.uid).unwrap_or_default();
        for name in &self.group {
            let said = headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
            user.groups.extend(said.map(|(_, v)| (*v).to_owned()));
        }
        for prefix in &self.extra_prefix {
            for (name, value) in headers.iter().filter(|(n, _)| starts_with(n, prefix)) {
                let key = unescape(&name.get(prefix.len()..).unwrap_or_default().to_ascii_lowercase());
                user.extra.entry(key).or_default().push((*value).to_owned());
            }
        }
        Some(user)
    }

    /// Whether a header says who the caller is.
    pub fn is_about_identity(&self, name: &str) -> bool {
        let mut names = self.username.iter().chain(&self.uid).chain(&self.group);
        names.any(|n| n.eq_ignore_ascii_case(name)) || self.extra_prefix.iter().any(|p| starts_with(name, p))
    }
}

impl RequestHeaders {
    /// Believes the proxies that `proxies` accepts.
    pub fn new(rules: Rules, proxies: Arc<dyn ClientCertVerifier>, clock: Arc<dyn Clock>) -> RequestHeaders {
        RequestHeaders { rules, proxies, clock }
    }

    /// What is believed.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The caller, by the headers of a proxy with this certificate (DER); `None` if they say nothing, or if it is
    /// nobody who is believed.
    pub fn authenticate(&self, certificate: &[u8], headers: &[(&str, &str)]) -> Option<UserInfo> {
        let mut user = self.rules.identity(headers)?;
        let seconds = u64::try_from(self.clock.now().as_second()).unwrap_or(0);
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        if let Err(error) = self.proxies.verify_client_cert(&CertificateDer::from(certificate), &[], time) {
            tracing::debug!(%error, "not the certificate of a proxy");
            return None;
        }
        let name = common_name(certificate)?;
        if !self.rules.allowed_names.is_empty() && !self.rules.allowed_names.contains(&name) {
            tracing::warn!(name, "x509: subject with cn={name} is not in the allowed list");
            return None;
        }
        if !user.in_group(meta::user::GROUP_AUTHENTICATED)
            && !user.in_group(meta::user::GROUP_UNAUTHENTICATED)
        {
            user.groups.push(meta::user::GROUP_AUTHENTICATED.into());
        }
        Some(user)
    }
}

fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let mut names = certificate.subject().iter_common_name();
    names.find_map(|name| name.as_str().ok()).map(str::to_owned)
}

/// Takes `%2F` and the like back; what is no escape leaves the whole as it is.
fn unescape(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let digit =
            |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        let (Some(high), Some(low)) = (digit(bytes.next()), digit(bytes.next())) else {
            return text.to_owned();
        };
        out.push(high << 4 | low);
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Pki;
    use rustls::pki_types::pem::PemObject;
    use stdx::FakeClock;

    fn rules(allowed: &[&str]) -> Rules {
        let all = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        Rules {
            allowed_names: all(allowed),
            username: all(&["X-Remote-User", "X-Other-User"]),
            uid: all(&["X-Remote-Uid"]),
            group: all(&["X-Remote-Group"]),
            extra_prefix: all(&["X-Remote-Extra-"]),
        }
    }

    #[test]
    fn headers_say_who_it_is() {
        let rules = rules(&[]);
        let user = rules.identity(&[
            ("x-remote-user", ""),
            ("x-other-user", "ann"),
            ("x-remote-uid", "7"),
            ("x-remote-group", "dev"),
            ("x-remote-group", "ops"),
            ("x-remote-extra-example.com%2Fteam", "a"),
            ("X-Remote-Extra-Example.com%2fTeam", "b"),
            ("x-remote-extra-bad%zz", "c"),
            ("accept", "*/*"),
        ]);
        let user = user.unwrap();
        assert_eq!((&*user.username, &*user.uid), ("ann", "7"));
        assert_eq!(user.groups, ["dev", "ops"]);
        assert_eq!(user.extra["example.com/team"], ["a", "b"]);
        assert_eq!(user.extra["bad%zz"], ["c"]);
        assert!(rules.identity(&[("x-remote-group", "system:masters")]).is_none());
        for (name, about) in [("X-Remote-UID", true), ("x-remote-extra-a", true), ("x-remote", false)] {
            assert_eq!(rules.is_about_identity(name), about, "{name}");
        }
    }

    #[test]
    fn only_proxies_are_believed() {
        let clock = FakeClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let proxies = Pki::open_or_create(here.path(), clock.clone()).unwrap();
        let others = Pki::open_or_create(there.path(), clock.clone()).unwrap();
        let certificate = |pki: &Pki, name: &str| {
            let issued = pki.issue_client(name, &[]).unwrap();
            CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap().to_vec()
        };
        let believed = |allowed: &[&str], certificate: &[u8], headers: &[(&str, &str)]| {
            let verifier = crate::tls::client_verifier(proxies.ca_der()).unwrap();
            RequestHeaders::new(rules(allowed), verifier, clock.clone()).authenticate(certificate, headers)
        };
        let ann = [("x-remote-user", "ann")];
        let front = certificate(&proxies, "front-proxy-client");
        assert_eq!(believed(&["front-proxy-client"], &front, &ann).unwrap().groups, ["system:authenticated"]);
        assert!(believed(&[], &front, &ann).is_some(), "no names, all names");
        assert!(believed(&["somebody"], &front, &ann).is_none());
        assert!(believed(&[], &front, &[]).is_none());
        assert!(believed(&[], &certificate(&others, "front-proxy-client"), &ann).is_none());
        clock.advance(Duration::from_secs(400 * 86_400));
        assert!(believed(&[], &front, &ann).is_none(), "it has expired");
    }
}
