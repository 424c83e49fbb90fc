//! Registry client: the pull half of the OCI distribution protocol.
//!
//! A [`Session`] is one pull's view of one repository: it remembers the credentials that worked. Requests go to
//! the configured mirrors first, then to the registry itself.

mod auth;
mod tls;
pub(crate) mod transport;
mod upload;

pub(crate) use upload::Uploaded;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use parking_lot::Mutex;

use self::auth::{Challenge, authorization};
use self::transport::{Body, Response, Transport};
use crate::config::MANIFEST_TYPES;
use crate::content::{BlobWriter, Content, DOCUMENT_LEN_MAX};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::registries::{HostTls, Place, Registries};

/// How often one blob's stream is taken up again.
const RESUMES_MAX: u32 = 10;
/// Longest error body that is read for its message.
const ERROR_BODY_LEN_MAX: usize = 16 << 10;

/// How to reach registries.
#[derive(Debug)]
pub(crate) struct Registry {
    insecure: BTreeSet<String>,
    registries: Registries,
    ca_file: Option<PathBuf>,
    /// PEM of authorities that stand instead of all others.
    ca: Option<Vec<u8>>,
    /// Whether any certificate, and none at all, will do.
    careless: bool,
    silence_max: Duration,
    transports: Mutex<BTreeMap<HostTls, Arc<Transport>>>,
}

impl Registry {
    pub(crate) fn new(
        insecure: Vec<String>,
        registries: Registries,
        ca_file: Option<PathBuf>,
        silence_max: Duration,
    ) -> Registry {
        Registry {
            insecure: insecure.into_iter().collect(),
            registries,
            ca_file,
            ca: None,
            careless: false,
            silence_max,
            transports: Mutex::default(),
        }
    }

    /// The same with other trust, for one push.
    pub(crate) fn with(&self, careless: bool, ca: Option<&[u8]>) -> Registry {
        Registry {
            insecure: self.insecure.clone(),
            registries: self.registries.clone(),
            ca_file: self.ca_file.clone(),
            ca: ca.map(<[u8]>::to_vec),
            careless,
            silence_max: self.silence_max,
            transports: Mutex::default(),
        }
    }

    /// Connections to a host; hosts with the same TLS share them.
    fn transport(&self, host: &str) -> Arc<Transport> {
        let mut tls = self.registries.tls_of(host);
        if tls.ca_file.is_none() {
            tls.ca_file.clone_from(&self.ca_file);
        }
        tls.insecure_skip_verify |= self.careless;
        let make = || Arc::new(Transport::new(tls.clone(), self.ca.clone(), self.silence_max));
        self.transports.lock().entry(tls.clone()).or_insert_with(make).clone()
    }

    /// GET of any URL; an answer that is no success is an error.
    pub(crate) async fn fetch(&self, url: &str, headers: HeaderMap) -> Result<Response> {
        let response = self.transport("").get(url, headers).await?;
        match response.status.is_success() {
            true => Ok(response),
            false => Err(Error::Protocol { url: url.to_owned(), message: response.status.to_string() }),
        }
    }

    /// The places to ask for `reference`, in order.
    pub(crate) fn sessions(&self, reference: &Reference, auth: Option<&cri::ImageAuth>) -> Vec<Session> {
        let mut places = self.registries.mirrors_of(reference);
        places.push(self.own_place(reference));
        places.into_iter().map(|place| self.session(place, reference, auth, "pull")).collect()
    }

    /// Where to push to: the registry itself, never a mirror.
    pub(crate) async fn push_session(&self, reference: &Reference, auth: Option<&cri::ImageAuth>) -> Session {
        let mut place = self.own_place(reference);
        if self.careless && place.base.starts_with("https://") {
            let probe =
                self.transport(&place.host).get(&format!("{}/v2/", place.base), HeaderMap::new()).await;
            if probe.is_err() {
                place.base = place.base.replacen("https://", "http://", 1);
            }
        }
        self.session(place, reference, auth, "pull,push")
    }

    fn own_place(&self, reference: &Reference) -> Place {
        let scheme = if self.is_plain(reference.api_host()) { "http" } else { "https" };
        Place {
            base: format!("{scheme}://{}", reference.api_host()),
            repository: reference.repository().to_owned(),
            host: reference.host().to_owned(),
            mirror: false,
        }
    }

    fn session(
        &self,
        place: Place,
        reference: &Reference,
        auth: Option<&cri::ImageAuth>,
        actions: &str,
    ) -> Session {
        let own = self.registries.auth_of(&place.host);
        // What was given for the registry is none of its mirrors' business.
        let auth = if place.mirror { own } else { auth.cloned().or(own) };
        Session {
            base: format!("{}/v2/{}", place.base, place.repository),
            scope: format!("repository:{}:{actions}", place.repository),
            reference: reference.to_string(),
            auth,
            authorization: Mutex::new(None),
            transport: self.transport(&place.host),
        }
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
    /// What a token has to allow, where the registry does not say.
    scope: String,
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

    /// Streams a blob into the content store and checks it; `progress` hears the bytes so far. A stream that
    /// breaks off goes on where it was.
    pub(crate) async fn blob(
        &self,
        content: &Content,
        digest: &Digest,
        len_max: u64,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<()> {
        let url = format!("{}/blobs/{digest}", self.base);
        let mut writer: BlobWriter<'_> = content.writer()?;
        let mut resumed = 0;
        loop {
            let mut headers = HeaderMap::new();
            if writer.len > 0 {
                let range = format!("bytes={}-", writer.len);
                headers.insert(header::RANGE, HeaderValue::try_from(range).map_err(upload::bad_header)?);
            }
            let mut response = self.get(&url, headers).await?;
            if writer.len > 0 && response.status != StatusCode::PARTIAL_CONTENT {
                // It sends all of it again.
                writer = content.writer()?;
            }
            let before = writer.len;
            let broken = loop {
                match response.chunk().await {
                    // Disk writes of a network chunk go to the page cache; the sync at the end is the slow part.
                    Ok(Some(chunk)) => writer.write(&chunk)?,
                    Ok(None) => break None,
                    Err(message) => break Some(message),
                }
                if writer.len > len_max {
                    return Err(Error::TooLarge { what: format!("blob {digest}"), limit: len_max });
                }
                progress(writer.len);
            };
            match broken {
                None => break,
                Some(message) if resumed >= RESUMES_MAX || writer.len == before => {
                    return Err(unavailable(&url, message));
                }
                Some(message) => {
                    resumed += 1;
                    tracing::debug!(url, message, at = writer.len, "a layer's stream broke off, going on");
                }
            }
        }
        writer.commit(Some(digest)).map(drop).map_err(|e| match e {
            Error::DigestMismatch { expected, actual } => Error::LyingBlob { url, expected, actual },
            e => e,
        })
    }

    async fn get(&self, url: &str, headers: HeaderMap) -> Result<Response> {
        let response = self.request(Method::GET, url, headers, Body::Empty).await?;
        self.check(url, response).await
    }

    /// One request; where the registry asks for credentials, again with them.
    async fn request(&self, method: Method, url: &str, headers: HeaderMap, body: Body) -> Result<Response> {
        let known = self.authorization.lock().clone();
        let response = self.send(&method, url, &headers, body.clone(), known.as_ref()).await?;
        if response.status != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges = response.headers.get_all(header::WWW_AUTHENTICATE);
        let challenge = challenges.iter().filter_map(|v| Challenge::parse(v.to_str().ok()?)).next();
        let Some(challenge) = challenge else { return Ok(response) };
        let granted = authorization(&self.transport, &challenge, self.auth.as_ref(), &self.scope).await;
        let granted = granted.map_err(|e| e.for_reference(&self.reference))?;
        let Some(granted) = granted else { return Ok(response) };
        let response = self.send(&method, url, &headers, body, Some(&granted)).await?;
        if response.status != StatusCode::UNAUTHORIZED {
            *self.authorization.lock() = Some(granted);
        }
        Ok(response)
    }

    async fn send(
        &self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
        body: Body,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response> {
        let mut headers = headers.clone();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
        match *method {
            Method::GET => self.transport.get(url, headers).await,
            _ => self.transport.send(method.clone(), url, headers, body).await,
        }
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
        let registry = Registry::new(
            vec!["registry.local:5000".into()],
            Registries::default(),
            None,
            crate::StoreConfig::SILENCE_MAX,
        );
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
        let registries = r#"{"mirrors": {"docker.io": {"endpoint": ["http://mirror:5000/"]}}}"#;
        let registry = Registry::new(
            Vec::new(),
            serde_json::from_str(registries).unwrap(),
            None,
            crate::StoreConfig::SILENCE_MAX,
        );
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
