//! Pulling: resolve the manifest, fetch configuration and layers, unpack, then write the reference.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use stdx::Backoff;

use crate::archive::check_layers;
use crate::config::{Descriptor, ImageDocument, Manifest, ManifestOrIndex, Platform};
use crate::content::DOCUMENT_LEN_MAX;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::pins::ImageHold;
use crate::reference::Reference;
use crate::registry::Session;
use crate::store::{ImageStore, blocking};

/// Layers of one image that are fetched at once, as in Docker and containerd.
const PARALLEL_LAYERS: usize = 3;
/// How often one request is tried before the pull fails; the kubelet tries the whole pull again later.
const ATTEMPTS: u32 = 3;
/// Pauses between attempts.
const RETRY: Backoff = Backoff { initial: Duration::from_millis(250), max: Duration::from_secs(2) };
/// Largest layer accepted.
const LAYER_LEN_MAX: u64 = 32 << 30;

/// What a pull carries along.
struct Pull {
    session: Session,
    hold: ImageHold,
    progress: Option<cri::PullProgressFn>,
}

impl Pull {
    fn tell(&self, progress: cri::PullProgress) {
        if let Some(tell) = &self.progress {
            tell(progress);
        }
    }
}

/// Tries again what may pass.
pub(crate) async fn with_retries<'a, T>(
    mut attempt: impl FnMut() -> BoxFuture<'a, Result<T>> + Send,
) -> Result<T> {
    let mut failures = 0;
    loop {
        match attempt().await {
            Err(e) if e.is_transient() && failures + 1 < ATTEMPTS => {
                failures += 1;
                tracing::debug!(error = %e, failures, "image request failed, trying again");
                tokio::time::sleep(RETRY.delay(failures)).await;
            }
            result => return result,
        }
    }
}

impl ImageStore {
    /// Pulls an image. Concurrent pulls of one reference run one after the other, and the later ones find the
    /// content there.
    pub(crate) async fn pull_image(self: Arc<Self>, request: cri::PullRequest) -> Result<cri::PullResult> {
        let reference: Reference = request.image.parse()?;
        let _one = self.lock(&reference.to_string()).await;
        let mut sessions = self.registry.sessions(&reference, request.auth.as_ref()).into_iter().peekable();
        while let Some(session) = sessions.next() {
            let pull = Pull { session, hold: self.pins.hold(), progress: request.progress.clone() };
            match self.pull_from(&reference, Arc::new(pull)).await {
                Err(e) if sessions.peek().is_some() => {
                    tracing::info!(%reference, error = %e, "mirror cannot serve the image, trying the next");
                }
                result => return result.map_err(|error| error.about_store(self.content.root())),
            }
        }
        Err(Error::NotFound(reference.to_string()))
    }

    async fn pull_from(self: &Arc<Self>, reference: &Reference, pull: Arc<Pull>) -> Result<cri::PullResult> {
        let (digest, manifest, top) = self.fetch_manifest(reference, &pull).await?;
        let config_digest = manifest.config.digest.clone();
        pull.hold.add(&config_digest);
        if !self.content.has(&config_digest) {
            with_retries(|| {
                Box::pin(pull.session.blob(&self.content, &config_digest, DOCUMENT_LEN_MAX, &|_| {}))
            })
            .await?;
        }
        let document = ImageDocument::parse(&self.content.read_document(&config_digest)?)?;
        let diff_ids = document.rootfs.diff_ids;
        check_layers(&manifest.layers, &diff_ids)?;
        let layers = manifest.layers.iter().map(|l| (l.digest.to_string(), l.size)).collect();
        pull.tell(cri::PullProgress::Resolved { digest: digest.to_string(), layers });
        let fetches: Vec<_> = manifest
            .layers
            .iter()
            .zip(diff_ids)
            .map(|(layer, diff_id)| self.clone().fetch_layer(pull.clone(), layer.clone(), diff_id))
            .collect();
        stream::iter(fetches).buffer_unordered(PARALLEL_LAYERS).try_collect::<Vec<()>>().await?;
        // The digest users see is that of what the tag points at, which for many images is an index.
        let repo_digest = reference.with_digest(&top);
        let mut names = vec![repo_digest.clone()];
        if reference.tag().is_some() && reference.digest().is_none() {
            names.push(reference.to_string());
        }
        self.tag(&names, &digest, &config_digest, false)?;
        let size_bytes = manifest.layers.iter().map(|l| l.size).sum::<u64>() + manifest.config.size;
        Ok(cri::PullResult { image_id: config_digest.to_string(), repo_digest, size_bytes })
    }

    /// The image's manifest for this machine, its digest, and the digest of the document first fetched.
    async fn fetch_manifest(&self, reference: &Reference, pull: &Pull) -> Result<(Digest, Manifest, Digest)> {
        let session = &pull.session;
        let first =
            with_retries(|| Box::pin(session.manifest(reference.manifest_selector(), reference.digest())));
        let bytes = first.await?;
        let top = Digest::of(&bytes);
        let (bytes, manifest) = match ManifestOrIndex::parse(&bytes)? {
            ManifestOrIndex::Manifest(manifest) => (bytes, manifest),
            ManifestOrIndex::Index(index) => {
                let platform = Platform::host();
                let chosen =
                    index.select(&platform).ok_or_else(|| Error::NoPlatform(reference.to_string()))?;
                let digest = &chosen.digest;
                let bytes =
                    with_retries(|| Box::pin(session.manifest(digest.as_str(), Some(digest)))).await?;
                match ManifestOrIndex::parse(&bytes)? {
                    ManifestOrIndex::Manifest(manifest) => (bytes, manifest),
                    ManifestOrIndex::Index(_) => {
                        return Err(Error::Malformed("index within an index".into()));
                    }
                }
            }
        };
        pull.hold.add(&Digest::of(&bytes));
        let digest = self.content.write_document(&bytes)?;
        Ok((digest, manifest, top))
    }

    async fn fetch_layer(self: Arc<Self>, pull: Arc<Pull>, layer: Descriptor, diff_id: Digest) -> Result<()> {
        let name = layer.digest.to_string();
        pull.hold.add(&layer.digest);
        pull.hold.add(&diff_id);
        // Another image's pull may be fetching the same layer.
        let _one = self.lock(layer.digest.as_str()).await;
        if !self.content.has(&layer.digest) {
            let progress = |current| {
                let (layer, total) = (name.clone(), layer.size);
                pull.tell(cri::PullProgress::Downloading { layer, current, total });
            };
            let session = &pull.session;
            with_retries(|| Box::pin(session.blob(&self.content, &layer.digest, LAYER_LEN_MAX, &progress)))
                .await?;
        }
        pull.tell(cri::PullProgress::Unpacking { layer: name.clone() });
        let store = self.clone();
        blocking(move || store.unpack(&layer, &diff_id)).await?;
        pull.tell(cri::PullProgress::Done { layer: name });
        Ok(())
    }
}
