//! Fetching a single file from a URL, for ADD.

use std::path::PathBuf;

use http::HeaderMap;

use crate::content::ignore_missing;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::store::ImageStore;

/// Largest file fetched.
const DOWNLOAD_LEN_MAX: u64 = 8 << 30;

/// A fetched file; dropped, it is removed.
#[derive(Debug)]
pub struct Download {
    /// Where it is.
    pub path: PathBuf,
    /// The last part of its URL's path.
    pub name: String,
    /// Digest of its content.
    pub digest: Digest,
}

impl ImageStore {
    /// Fetches a file. It lies among unfinished content, which goes when the store is next opened.
    pub async fn download(&self, url: &str) -> Result<Download> {
        let mut response = self.registry.fetch(url, HeaderMap::new()).await?;
        let path = self.content.temp_path();
        let mut file = tokio::fs::File::create_new(&path).await.map_err(Error::io("create download"))?;
        let mut hasher = Hasher::default();
        let mut len = 0;
        let result = async {
            let failed = |message| Error::Unavailable { url: url.to_owned(), message };
            while let Some(chunk) = response.chunk().await.map_err(failed)? {
                len += chunk.len() as u64;
                if len > DOWNLOAD_LEN_MAX {
                    return Err(Error::TooLarge { what: url.to_owned(), limit: DOWNLOAD_LEN_MAX });
                }
                hasher.update(&chunk);
                tokio::io::AsyncWriteExt::write_all(&mut file, &chunk)
                    .await
                    .map_err(Error::io("write download"))?;
            }
            tokio::io::AsyncWriteExt::flush(&mut file).await.map_err(Error::io("write download"))
        };
        if let Err(e) = result.await {
            let _ = ignore_missing(std::fs::remove_file(&path));
            return Err(e);
        }
        let bare = url.split(['?', '#']).next().unwrap_or_default();
        let name =
            bare.rsplit('/').next().filter(|n| !n.is_empty() && !bare.ends_with("://")).unwrap_or("download");
        Ok(Download { path, name: name.to_owned(), digest: hasher.finish() })
    }
}
