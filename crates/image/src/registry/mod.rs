//! Registry client: the pull half of the OCI distribution protocol.
//!
//! A [`Session`] is one pull's view of one repository: it remembers the credentials that worked. Requests go to
//! the configured mirrors first, then to the registry itself.

mod auth;
pub(crate) mod transport;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use parking_lot::Mutex;

use self::auth::{Challenge, authorization};
use self::transport::{Response, Transport};
use crate::config::MANIFEST_TYPES;
use crate::content::{BlobWriter, Content, DOCUMENT_LEN_MAX};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;

/// Longest error body that is read for its message.
const ERROR_BODY_LEN_MAX: usize = 16 << 10;

/// How to reach registries.
#[derive(Debug)]
pub(crate) struct Registry {
    insecure: BTreeSet<String>,
    mirrors: BTreeMap<String, Vec<String>>,
    transport: Arc<Transport>,
}

impl Registry {
    pub(crate) fn new(
        insecure: Vec<String>,
        mirrors: BTreeMap<String, Vec<String>>,
        ca_file: Option<PathBuf>,
    ) -> Registry {
        let transport = Arc::new(Transport::new(ca_file));
        Registry { insecure: insecure.into_iter().collect(), mirrors, transport }
    }

    /// GET of any URL; an answer that is no success is an error.
    pub(crate) async fn fetch(&self, url: &str, headers: HeaderMap) -> Result<Response> {
        let response = self.transport.get(url, headers).await?;
        match response.status.is_success() {
            true => Ok(response),
            false => Err(Error::Protocol { url: url.to_owned(), message: response.status.to_string() }),
        }
    }

    /// The places to ask for `reference`, in order.
    pub(crate) fn sessions(&self, reference: &Reference, auth: Option<&cri::ImageAuth>) -> Vec<Session> {
        let mirrors = self.mirrors.get(reference.host()).into_iter().flatten();
        let mirrors = mirrors.map(|base| (base.trim_end_matches('/').to_owned(), None));
        let scheme = if self.is_plain(reference.api_host()) { "http" } else { "https" };
        let own = (format!("{scheme}://{}", reference.api_host()), auth.cloned());
        mirrors
            .chain([own])
            .map(|(base, auth)| Session {
                base: format!("{base}/v2/{}", reference.repository()),
                repository: reference.repository().to_owned(),
                reference: reference.to_string(),
                auth,
                authorization: Mutex::new(None),
                transport: self.transport.clone(),
            })
            .collect()
    }

    /// Whether TLS is left out: loopback, as Docker does, and hosts configured so.
    fn is_plain(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => name,
            _ => host,
        };
        let literal = name.trim_start_matches('[').trim_end_matches(']');
        let loopback = literal.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        loopback || name == "localhost" || self.insecure.contains(host) || self.insecure.contains(name)
    }
}

/// One repository at one place.
pub(crate) struct Session {
    base: String,
    repository: String,
    reference: String,
    auth: Option<cri::ImageAuth>,
    /// The `Authorization` header that was accepted last.
    authorization: Mutex<Option<HeaderValue>>,
    transport: Arc<Transport>,
}

impl Session {
    /// Fetches a manifest or index and checks it against the digest, if one is given.
    pub(crate) async fn manifest(&self, selector: &str, expected: Option<&Digest>) -> Result<Vec<u8>> {
        let mut accept = HeaderMap::new();
        for media_type in MANIFEST_TYPES {
            accept.append(header::ACCEPT, HeaderValue::from_static(media_type));
        }
        let url = format!("{}/manifests/{selector}", self.base);
        let bytes = read_limited(self.get(&url, accept).await?, &url, DOCUMENT_LEN_MAX).await?;
        let actual = Digest::of(&bytes);
        match expected {
            Some(expected) if *expected != actual => {
                Err(Error::DigestMismatch { expected: expected.to_string(), actual: actual.to_string() })
            }
            _ => Ok(bytes),
        }
    }

    /// Streams a blob into the content store and checks it; `progress` hears the bytes so far.
    pub(crate) async fn blob(
        &self,
        content: &Content,
        digest: &Digest,
        len_max: u64,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<()> {
        let url = format!("{}/blobs/{digest}", self.base);
        let mut response = self.get(&url, HeaderMap::new()).await?;
        let mut writer: BlobWriter<'_> = content.writer()?;
        while let Some(chunk) = response.chunk().await.map_err(|message| unavailable(&url, message))? {
            // Disk writes of a network chunk go to the page cache; the sync at the end is the slow part.
            writer.write(&chunk)?;
            if writer.len > len_max {
                return Err(Error::TooLarge { what: format!("blob {digest}"), limit: len_max });
            }
            progress(writer.len);
        }
        writer.commit(Some(digest)).map(drop)
    }

    async fn get(&self, url: &str, headers: HeaderMap) -> Result<Response> {
        let known = self.authorization.lock().clone();
        let response = self.send(url, &headers, known.as_ref()).await?;
        if response.status != StatusCode::UNAUTHORIZED {
            return self.check(url, response).await;
        }
        let challenges = response.headers.get_all(header::WWW_AUTHENTICATE);
        let challenge = challenges.iter().filter_map(|v| Challenge::parse(v.to_str().ok()?)).next();
        let Some(challenge) = challenge else { return self.check(url, response).await };
        let granted = authorization(&self.transport, &challenge, self.auth.as_ref(), &self.repository).await;
        let granted = granted.map_err(|e| e.for_reference(&self.reference))?;
        let Some(granted) = granted else { return self.check(url, response).await };
        let response = self.send(url, &headers, Some(&granted)).await?;
        let response = self.check(url, response).await?;
        *self.authorization.lock() = Some(granted);
        Ok(response)
    }

    async fn send(
        &self,
        url: &str,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response> {
        let mut headers = headers.clone();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
        self.transport.get(url, headers).await
    }

    async fn check(&self, url: &str, response: Response) -> Result<Response> {
        let status = response.status;
        if status.is_success() {
            return Ok(response);
        }
        let message = error_message(response).await.unwrap_or_else(|| status.to_string());
        Err(match status {
            StatusCode::NOT_FOUND => Error::RemoteNotFound { reference: self.reference.clone() },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Error::Denied { reference: self.reference.clone(), message }
            }
            StatusCode::TOO_MANY_REQUESTS => unavailable(url, format!("429 Too Many Requests - {message}")),
            _ if status.is_server_error() => unavailable(url, format!("{status}: {message}")),
            _ => Error::Protocol { url: url.to_owned(), message: format!("{status}: {message}") },
        })
    }
}

fn unavailable(url: &str, message: impl Into<String>) -> Error {
    Error::Unavailable { url: url.to_owned(), message: message.into() }
}

/// The first message of a registry's error document.
async fn error_message(mut response: Response) -> Option<String> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > ERROR_BODY_LEN_MAX {
            return None;
        }
    }
    let document: serde_json::Value = serde_json::from_slice(&body).ok()?;
    let first = document.get("errors")?.get(0)?;
    let text = |key: &str| first.get(key).and_then(|v| v.as_str()).unwrap_or("");
    Some(format!("{}: {}", text("code").to_lowercase(), text("message")))
}

async fn read_limited(mut response: Response, url: &str, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|message| unavailable(url, message))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge { what: url.to_owned(), limit });
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_only_on_loopback_or_when_told() {
        let registry = Registry::new(vec!["registry.local:5000".into()], BTreeMap::new(), None);
        let plain = [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.1.2.3",
            "[::1]:5000",
            "registry.local:5000",
        ];
        for host in plain {
            assert!(registry.is_plain(host), "{host}");
        }
        for host in ["registry-1.docker.io", "localhost.example", "registry.local:5001", "10.0.0.1:5000"] {
            assert!(!registry.is_plain(host), "{host}");
        }
    }

    #[test]
    fn mirrors_come_first_and_get_no_credentials() {
        let mirrors = BTreeMap::from([("docker.io".to_owned(), vec!["http://mirror:5000/".to_owned()])]);
        let registry = Registry::new(Vec::new(), mirrors, None);
        let auth = cri::ImageAuth { username: "u".into(), ..Default::default() };
        let sessions = registry.sessions(&"busybox".parse().unwrap(), Some(&auth));
        let bases: Vec<_> = sessions.iter().map(|s| (s.base.as_str(), s.auth.is_some())).collect();
        let want = [
            ("http://mirror:5000/v2/library/busybox", false),
            ("https://registry-1.docker.io/v2/library/busybox", true),
        ];
        assert_eq!(bases, want);
    }
}
