//! How to reach registries: mirrors, credentials, TLS. The shape is that of k3s' `registries.yaml`, which
//! people have already. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::reference::Reference;

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    /// By registry host; `*` is for all that have none.
    pub mirrors: BTreeMap<String, Mirror>,
    /// By host (and port) that is spoken to.
    pub configs: BTreeMap<String, HostConfig>,
}

/// Where else to look.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mirror {
    /// Base URLs, tried in order before the registry itself.
    pub endpoint: Vec<String>,
    /// Regular expressions over repository names and what they become (`$1`) at the mirrors.
    pub rewrite: BTreeMap<String, String>,
}

/// How to speak to one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// Credentials.
    pub auth: Option<HostAuth>,
    /// TLS.
    pub tls: Option<HostTls>,
}

/// Credentials of one host.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostAuth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Both, joined by `:` and in base64.
    pub auth: String,
    /// Refresh token.
    pub identity_token: String,
}

impl std::fmt::Debug for HostAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostAuth").field("username", &self.username).finish_non_exhaustive()
    }
}

/// TLS of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostTls {
    /// Authorities to trust.
    pub ca_file: Option<PathBuf>,
    /// Own certificate.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// Trust anybody.
    pub insecure_skip_verify: bool,
}

/// What is wrong with the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistriesError {
    /// An endpoint that is no URL.
    #[error("mirrors.{host}.endpoint: {endpoint:?} is not a URL that begins with http:// or https://")]
    Endpoint {
        /// The registry.
        host: String,
        /// The endpoint.
        endpoint: String,
    },
    /// A rewrite that is no regular expression.
    #[error("mirrors.{host}.rewrite: {pattern:?}: {message}")]
    Rewrite {
        /// The registry.
        host: String,
        /// The expression.
        pattern: String,
        /// Why.
        message: String,
    },
}

/// One place to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Base URL, without `/v2`.
    pub(crate) base: String,
    /// Repository there.
    pub(crate) repository: String,
    /// Host and port, for credentials and TLS.
    pub(crate) host: String,
    pub(crate) mirror: bool,
}

impl Registries {
    /// Checks what a parser cannot.
    pub fn check(&self) -> Result<(), RegistriesError> {
        for (host, mirror) in &self.mirrors {
            if let Some(bad) = mirror.endpoint.iter().find(|e| host_of(e).is_none()) {
                return Err(RegistriesError::Endpoint { host: host.clone(), endpoint: bad.clone() });
            }
            for pattern in mirror.rewrite.keys() {
                regex::Regex::new(pattern).map_err(|e| RegistriesError::Rewrite {
                    host: host.clone(),
                    pattern: pattern.clone(),
                    message: e.to_string(),
                })?;
            }
        }
        Ok(())
    }

    /// The mirrors of an image, in order.
    pub(crate) fn mirrors_of(&self, reference: &Reference) -> Vec<Place> {
        let Some(mirror) = self.mirrors.get(reference.host()).or_else(|| self.mirrors.get("*")) else {
            return Vec::new();
        };
        let repository = rewritten(&mirror.rewrite, reference.repository());
        let places = mirror.endpoint.iter().filter_map(|endpoint| {
            let trimmed = endpoint.trim_end_matches('/');
            let base = trimmed.strip_suffix("/v2").unwrap_or(trimmed).to_owned();
            Some(Place { host: host_of(endpoint)?, base, repository: repository.clone(), mirror: true })
        });
        places.collect()
    }

    /// Credentials for a host.
    pub(crate) fn auth_of(&self, host: &str) -> Option<cri::ImageAuth> {
        let auth = self.configs.get(host)?.auth.as_ref()?;
        let mut found = cri::ImageAuth {
            username: auth.username.clone(),
            password: auth.password.clone(),
            identity_token: auth.identity_token.clone(),
            registry_token: String::new(),
        };
        if found.username.is_empty() {
            use base64::Engine;
            let text = base64::engine::general_purpose::STANDARD.decode(&auth.auth).ok()?;
            if let Some((username, password)) = String::from_utf8(text).ok()?.split_once(':') {
                (found.username, found.password) = (username.to_owned(), password.to_owned());
            }
        }
        Some(found)
    }

    /// TLS for a host.
    pub(crate) fn tls_of(&self, host: &str) -> HostTls {
        self.configs.get(host).and_then(|c| c.tls.clone()).unwrap_or_default()
    }
}

/// The first expression that fits decides.
fn rewritten(rewrites: &BTreeMap<String, String>, repository: &str) -> String {
    for (pattern, to) in rewrites {
        if let Ok(pattern) = regex::Regex::new(pattern)
            && pattern.is_match(repository)
        {
            return pattern.replace_all(repository, to.as_str()).into_owned();
        }
    }
    repository.to_owned()
}

/// Host and port of a URL.
fn host_of(url: &str) -> Option<String> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let host = rest.split('/').next()?;
    (!host.is_empty()).then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Registries {
        serde_json::from_value(serde_json::json!({
            "mirrors": {
                "docker.io": {"endpoint": ["https://mirror.local:5000/v2", "http://other"],
                    "rewrite": {"^library/(.*)": "mirrored/$1"}},
                "*": {"endpoint": ["https://all.local"]}},
            "configs": {
                "mirror.local:5000": {"auth": {"username": "u", "password": "p"},
                    "tls": {"ca_file": "/ca", "insecure_skip_verify": true}},
                "all.local": {"auth": {"auth": "YTpi"}}}}))
        .unwrap()
    }

    #[test]
    fn mirrors_and_their_settings() {
        let registries = example();
        registries.check().unwrap();
        let places = registries.mirrors_of(&"busybox:1".parse().unwrap());
        let got: Vec<_> =
            places.iter().map(|p| (p.base.as_str(), p.repository.as_str(), p.host.as_str())).collect();
        let want = [
            ("https://mirror.local:5000", "mirrored/busybox", "mirror.local:5000"),
            ("http://other", "mirrored/busybox", "other"),
        ];
        assert_eq!(got, want);
        assert_eq!(registries.mirrors_of(&"quay.io/a/b".parse().unwrap())[0].base, "https://all.local");
        assert_eq!(registries.auth_of("mirror.local:5000").unwrap().username, "u");
        assert_eq!(registries.auth_of("all.local").unwrap().password, "b");
        assert!(registries.auth_of("other").is_none());
        assert!(registries.tls_of("mirror.local:5000").insecure_skip_verify);
    }

    #[test]
    fn mistakes() {
        let mut registries = example();
        registries.mirrors.entry("x".into()).or_default().endpoint.push("mirror".into());
        let want = "mirrors.x.endpoint: \"mirror\" is not a URL that begins with http:// or https://";
        assert_eq!(registries.check().unwrap_err().to_string(), want);
        let mut registries = example();
        registries.mirrors.entry("x".into()).or_default().rewrite.insert("(".into(), String::new());
        assert!(registries.check().unwrap_err().to_string().starts_with("mirrors.x.rewrite: \"(\": "));
        assert!(serde_json::from_str::<Registries>(r#"{"mirror": {}}"#).is_err());
    }
}
