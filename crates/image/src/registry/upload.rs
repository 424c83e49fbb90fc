//! The push half of the OCI distribution protocol: blobs that are missing, then the manifest.

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::transport::{Body, Response};
use super::{Session, unavailable};
use crate::content::Content;
use crate::digest::Digest;
use crate::error::{Error, Result};

/// Largest piece of a chunked upload: registries behind proxies refuse much more.
const CHUNK_LEN: u64 = 32 << 20;
/// Blobs up to this size go in one request.
const MONOLITHIC_LEN_MAX: u64 = 32 << 20;

/// How a blob got to the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Uploaded {
    /// It was there.
    Present,
    /// The registry took it from another of its repositories.
    Mounted,
    /// It was sent.
    Sent,
}

impl Session {
    /// Whether the registry has a blob.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let url = format!("{}/blobs/{digest}", self.base);
        let response = self.request(Method::HEAD, &url, HeaderMap::new(), Body::Empty).await?;
        match response.status {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => self.check(&url, response).await.map(|_| true),
        }
    }

    /// Brings a blob there, unless it is; `mount_from` are repositories of this registry that may have it.
    pub(crate) async fn put_blob(
        &self,
        content: &Content,
        digest: &Digest,
        mount_from: &[String],
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Uploaded> {
        if self.has_blob(digest).await? {
            return Ok(Uploaded::Present);
        }
        let uploads = format!("{}/blobs/uploads/", self.base);
        let mut location = None;
        for from in mount_from {
            let url = format!("{uploads}?mount={digest}&from={from}");
            let response = self.request(Method::POST, &url, HeaderMap::new(), Body::Empty).await?;
            match response.status {
                StatusCode::CREATED => return Ok(Uploaded::Mounted),
                // It will not, and has begun an upload instead.
                StatusCode::ACCEPTED => {
                    location = Some(location_of(&response, &uploads)?);
                    break;
                }
                _ => {}
            }
        }
        let location = match location {
            Some(location) => location,
            None => {
                let response = self.request(Method::POST, &uploads, HeaderMap::new(), Body::Empty).await?;
                location_of(&self.check(&uploads, response).await?, &uploads)?
            }
        };
        let len = content.size(digest).ok_or_else(|| Error::NotFound(digest.to_string()))?;
        self.send_blob(content, digest, len, location, progress).await?;
        Ok(Uploaded::Sent)
    }

    async fn send_blob(
        &self,
        content: &Content,
        digest: &Digest,
        len: u64,
        mut location: String,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<()> {
        let path = content.blob_path(digest);
        let mut at = 0;
        while len > MONOLITHIC_LEN_MAX && at < len {
            let end = len.min(at + CHUNK_LEN);
            let mut headers = octets();
            let range = format!("{at}-{}", end - 1);
            headers.insert(header::CONTENT_RANGE, HeaderValue::try_from(range).map_err(bad_header)?);
            let body = Body::File { path: path.clone(), offset: at, len: end - at };
            let response = self.request(Method::PATCH, &location, headers, body).await?;
            if response.status == StatusCode::RANGE_NOT_SATISFIABLE {
                // A piece got lost or came twice: the registry says what it has.
                let had = received(&response).filter(|had| *had <= len && *had != at);
                at = had.ok_or_else(|| unavailable(&location, "the registry lost track of an upload"))?;
                continue;
            }
            location = location_of(&self.check(&location, response).await?, &location)?;
            at = end;
            progress(at);
        }
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={digest}");
        let body = match at < len || len == 0 {
            true => Body::File { path, offset: 0, len },
            false => Body::Empty,
        };
        let response = self.request(Method::PUT, &url, octets(), body).await?;
        self.check(&url, response).await?;
        progress(len);
        Ok(())
    }

    /// Writes a manifest under a tag or its digest.
    pub(crate) async fn put_manifest(&self, selector: &str, media_type: &str, bytes: &[u8]) -> Result<()> {
        let url = format!("{}/manifests/{selector}", self.base);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::try_from(media_type).map_err(bad_header)?);
        let response = self.request(Method::PUT, &url, headers, Body::Bytes(bytes.to_vec().into())).await?;
        self.check(&url, response).await.map(drop)
    }
}

pub(super) fn bad_header(error: http::header::InvalidHeaderValue) -> Error {
    Error::Malformed(format!("header: {error}"))
}

fn octets() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers
}

/// Where an upload goes on: absolute, or a path on the same host.
fn location_of(response: &Response, base: &str) -> Result<String> {
    let text = response.headers.get(header::LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if text.starts_with("http://") || text.starts_with("https://") {
        return Ok(text.to_owned());
    }
    let origin = base.match_indices('/').nth(2).and_then(|(at, _)| base.get(..at));
    match (text.starts_with('/'), origin) {
        (true, Some(origin)) => Ok(format!("{origin}{text}")),
        _ => Err(Error::Protocol { url: base.to_owned(), message: "upload without a location".into() }),
    }
}

/// `Range: 0-99` of an upload: how many bytes have come.
fn received(response: &Response) -> Option<u64> {
    let text = response.headers.get(header::RANGE)?.to_str().ok()?;
    let (_, last) = text.trim_start_matches("bytes=").split_once('-')?;
    Some(last.parse::<u64>().ok()? + 1)
}
