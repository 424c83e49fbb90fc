//! Pushing: every blob that the registry lacks, several at once, then the manifest under its tag.

use std::sync::Arc;

use cri::PullProgress;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::config::{Descriptor, ManifestOrIndex};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::pull::with_retries;
use crate::reference::Reference;
use crate::registry::Session;
use crate::store::{ImageStore, find, hold_image};

/// Blobs sent at once, as Docker does.
const PARALLEL_BLOBS: usize = 5;

/// What to push, and where to.
#[derive(Clone, Default)]
pub struct PushRequest {
    /// Image in the store.
    pub image: String,
    /// Another name to push it under.
    pub destination: Option<String>,
    /// Credentials.
    pub auth: Option<cri::ImageAuth>,
    /// Whether plain HTTP and unknown authorities will do.
    pub insecure: bool,
    /// PEM of authorities to trust instead of the configured ones.
    pub ca: Option<Vec<u8>>,
    /// Where progress goes.
    pub progress: Option<cri::PullProgressFn>,
}

impl std::fmt::Debug for PushRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushRequest").field("image", &self.image).finish_non_exhaustive()
    }
}

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushResult {
    /// Where to.
    pub reference: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Blobs that were sent.
    pub sent: u64,
    /// Blobs that were there, or that the registry had elsewhere.
    pub present: u64,
}

impl ImageStore {
    /// Pushes an image.
    pub async fn push(self: &Arc<Self>, request: PushRequest) -> Result<PushResult> {
        let destination: Reference = request.destination.as_deref().unwrap_or(&request.image).parse()?;
        let hold = self.pins.hold();
        let (target, manifest, mount_from) = {
            let refs = self.refs.read();
            let found =
                find(refs.all(), &request.image).ok_or_else(|| Error::NotFound(request.image.clone()))?;
            let (manifest, document) = self.documents(&found.target)?;
            hold_image(&hold, &found.target, &manifest, &document);
            (found.target, manifest, self.neighbours(refs.all().keys(), &destination))
        };
        let bytes = self.content.read_document(&target.manifest)?;
        let missing = manifest.layers.iter().find(|l| !self.content.has(&l.digest) && !is_foreign(l));
        if let Some(missing) = missing {
            let message = format!(
                "blob {} of {} is not in the store: pull the image again",
                missing.digest, request.image
            );
            return Err(Error::Malformed(message));
        }
        let tell = |progress| {
            if let Some(tell) = &request.progress {
                tell(progress);
            }
        };
        let layers = manifest.layers.iter().map(|l| (l.digest.to_string(), l.size)).collect();
        tell(PullProgress::Resolved { digest: target.manifest.to_string(), layers });
        let registry = self.registry.with(request.insecure, request.ca.as_deref());
        let session = registry.push_session(&destination, request.auth.as_ref()).await;
        let blobs = manifest.layers.iter().filter(|l| !is_foreign(l)).chain([&manifest.config]).cloned();
        let mut sends: Vec<BoxFuture<'_, Result<bool>>> = Vec::new();
        for blob in blobs {
            sends.push(Box::pin(self.push_blob(&session, blob, &mount_from, &tell)));
        }
        let outcomes: Vec<bool> = stream::iter(sends).buffer_unordered(PARALLEL_BLOBS).try_collect().await?;
        let media_type = media_type_of(&bytes)?;
        let digest = target.manifest.as_str();
        let selector = destination.tag().unwrap_or(digest);
        with_retries(|| Box::pin(session.put_manifest(selector, &media_type, &bytes))).await?;
        let sent = outcomes.iter().filter(|sent| **sent).count() as u64;
        Ok(PushResult {
            reference: destination.to_string(),
            digest: digest.to_owned(),
            sent,
            present: outcomes.len() as u64 - sent,
        })
    }

    async fn push_blob(
        &self,
        session: &Session,
        blob: Descriptor,
        mount_from: &[String],
        tell: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<bool> {
        let name = blob.digest.to_string();
        let progress = |current| {
            tell(PullProgress::Downloading { layer: name.clone(), current, total: blob.size });
        };
        let uploaded =
            with_retries(|| Box::pin(session.put_blob(&self.content, &blob.digest, mount_from, &progress)))
                .await?;
        tell(PullProgress::Done { layer: name.clone() });
        Ok(uploaded == crate::registry::Uploaded::Sent)
    }

    /// Repositories of the same registry that images here came from: it may take blobs from them.
    fn neighbours<'a>(&self, names: impl Iterator<Item = &'a String>, to: &Reference) -> Vec<String> {
        let parsed = names.filter_map(|name| name.parse::<Reference>().ok());
        let same = parsed.filter(|r| r.host() == to.host() && r.repository() != to.repository());
        let mut found: Vec<String> = same.map(|r| r.repository().to_owned()).collect();
        found.sort();
        found.dedup();
        found
    }
}

/// Layers that must not be distributed stay where they are.
fn is_foreign(layer: &Descriptor) -> bool {
    layer.media_type.contains("foreign") || layer.media_type.contains("nondistributable")
}

fn media_type_of(manifest: &[u8]) -> Result<String> {
    let ManifestOrIndex::Manifest(parsed) = ManifestOrIndex::parse(manifest)? else {
        return Err(Error::Malformed("not an image manifest".into()));
    };
    Ok(match parsed.media_type.as_str() {
        "" => "application/vnd.oci.image.manifest.v1+json".to_owned(),
        given => given.to_owned(),
    })
}

impl ImageStore {
    /// Gives an image another name.
    pub fn add_name(&self, image: &str, name: &str) -> Result<String> {
        let reference: Reference = name.parse()?;
        if reference.digest().is_some() {
            return Err(Error::InvalidReference(format!("{name} (a tag has no digest)")));
        }
        let target = {
            let refs = self.refs.read();
            find(refs.all(), image).ok_or_else(|| Error::NotFound(image.to_owned()))?.target
        };
        let names = [reference.to_string(), reference.with_digest(&target.manifest)];
        self.tag(&names, &target.manifest, &target.image)?;
        Ok(reference.to_string())
    }

    /// Everything known of an image: names, manifest, configuration, layers.
    pub fn inspect(&self, image: &str) -> Result<serde_json::Value> {
        let refs = self.refs.read();
        let found = find(refs.all(), image).ok_or_else(|| Error::NotFound(image.to_owned()))?;
        drop(refs);
        let (manifest, document) = self.documents(&found.target)?;
        let json = |digest: &Digest| -> Result<serde_json::Value> {
            let bytes = self.content.read_document(digest)?;
            serde_json::from_slice(&bytes).map_err(|e| Error::Malformed(format!("{digest}: {e}")))
        };
        let sizes: Vec<serde_json::Value> = manifest
            .layers
            .iter()
            .zip(&document.rootfs.diff_ids)
            .map(|(layer, diff_id)| {
                let unpacked = std::fs::read(self.usage_path(diff_id)).ok();
                let unpacked: Option<crate::unpack::LayerUsage> = unpacked.and_then(|b| serde_json::from_slice(&b).ok());
                serde_json::json!({
                    "digest": layer.digest, "diffId": diff_id, "size": layer.size, "mediaType": layer.media_type,
                    "unpackedSize": unpacked.map(|u| u.bytes),
                })
            })
            .collect();
        Ok(serde_json::json!({
            "id": found.target.image,
            "digest": found.target.manifest,
            "names": found.repo_tags,
            "digests": found.repo_digests,
            "addedAt": found.target.added().map(|t| t.to_string()),
            "size": manifest.layers.iter().map(|l| l.size).sum::<u64>() + manifest.config.size,
            "layers": sizes,
            "manifest": json(&found.target.manifest)?,
            "config": json(&manifest.config.digest)?,
        }))
    }

    /// Removes images without a tag, and with `all` those with one too, but for what is in use. Returns the
    /// names or ids that went and the bytes that came free.
    pub fn prune(&self, all: bool) -> Result<(Vec<String>, u64)> {
        let before = self.usage()?.bytes;
        let mut gone = Vec::new();
        {
            let mut refs = self.refs.write();
            let tagged: std::collections::HashSet<Digest> = refs
                .all()
                .iter()
                .filter(|(name, _)| !name.contains("@sha256:") && !name.starts_with("sha256:"))
                .map(|(_, t)| t.manifest.clone())
                .collect();
            let goes =
                |manifest: &Digest| !self.pins.is_pinned(manifest) && (all || !tagged.contains(manifest));
            refs.update(&self.content.temp_path(), |map| {
                map.retain(|name, target| {
                    let keep = !goes(&target.manifest);
                    if !keep {
                        gone.push(name.clone());
                    }
                    keep
                });
            })?;
        }
        self.collect_garbage()?;
        Ok((gone, before.saturating_sub(self.usage()?.bytes)))
    }
}
