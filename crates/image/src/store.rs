//! The image store: content, references and layers under one directory; the image half of CRI.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use stdx::Clock;

use crate::assemble::Staging;
use crate::cache::Cache;
use crate::config::{Descriptor, ImageDocument, Manifest, ManifestOrIndex};
use crate::content::{Content, ignore_missing, sync_dir, write_atomically};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::pins::{ImageHold, Pins};
use crate::reference::Reference;
use crate::refs::{RefTarget, Refs};
use crate::registry::Registry;
use crate::unpack::{LayerUsage, unpack_layer};

/// Digits of a diff id that name a layer's directory: short, so that mount options stay below a page with
/// 127 layers, and still 128 bits.
const LAYER_NAME_LEN: usize = 32;
/// Largest `/etc/passwd` or `/etc/group` read from an image.
const ACCOUNT_FILE_LEN_MAX: u64 = 4 << 20;

/// How to open a store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Directory of the store, `<data-dir>/images`.
    pub root: PathBuf,
    /// Registry hosts (with port) that are spoken to without TLS, besides those on loopback.
    pub insecure_registries: Vec<String>,
    /// Mirrors, credentials and TLS of registries.
    pub registries: crate::registries::Registries,
    /// PEM file of certificate authorities; `None` takes the system's.
    pub ca_file: Option<PathBuf>,
    /// How long a registry may be silent before its answer or between parts of it.
    pub silence_max: Duration,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl StoreConfig {
    /// A minute of silence: slow registries speak now and then, dead ones never do.
    pub const SILENCE_MAX: Duration = Duration::from_secs(60);
}

/// Images on this machine.
#[derive(Debug)]
pub struct ImageStore {
    pub(crate) content: Content,
    pub(crate) refs: RwLock<Refs>,
    pub(crate) pins: Arc<Pins>,
    pub(crate) registry: Registry,
    pub(crate) clock: Arc<dyn Clock>,
    /// The store itself, for work that outlives a call.
    this: Weak<ImageStore>,
    /// One at a time per reference or layer: the second finds the work done.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    pub(crate) staging: Staging,
    pub(crate) cache: Mutex<Cache>,
    /// Layers made here that are not synced yet.
    pub(crate) unsynced: Mutex<Vec<Digest>>,
}

/// An image ready to make containers from.
#[derive(Debug)]
pub struct ResolvedImage {
    /// Image id.
    pub id: Digest,
    /// `name@digest`, or the id where the image was imported without a name.
    pub repo_digest: String,
    /// What it says of containers.
    pub config: cri::ImageConfig,
    /// Layer directories, lowest first.
    pub layers: Vec<PathBuf>,
    /// Keeps the layers on disk.
    pub hold: ImageHold,
}

impl ImageStore {
    /// Opens (or makes) the store.
    pub fn open(config: StoreConfig) -> Result<Arc<ImageStore>> {
        let content = Content::open(&config.root)?;
        let refs = RwLock::new(Refs::open(&config.root)?);
        let registry =
            Registry::new(config.insecure_registries, config.registries, config.ca_file, config.silence_max);
        let store = Arc::new_cyclic(|this| ImageStore {
            this: this.clone(),
            content,
            refs,
            pins: Arc::default(),
            registry,
            clock: config.clock,
            locks: Mutex::default(),
            staging: Staging::default(),
            cache: Mutex::new(Cache::open(&config.root)),
            unsynced: Mutex::default(),
        });
        store.drop_unsynced()?;
        store.drop_damaged()?;
        // A crash between removing a reference and removing its content leaves orphans.
        store.collect_garbage()?;
        Ok(store)
    }

    /// Forgets references whose documents cannot be read: pulling again repairs them, while keeping them would
    /// keep the store from opening.
    fn drop_damaged(&self) -> Result<()> {
        let mut refs = self.refs.write();
        let readable = |name: &str, target: &RefTarget| match self.documents(target) {
            Ok(_) => true,
            Err(e) => {
                tracing::warn!(image = name, error = %e, "dropping a damaged image");
                false
            }
        };
        refs.update(&self.content.temp_path(), |map| map.retain(|name, target| readable(name, target)))
    }

    /// The image of this reference or id, with its layers held on disk.
    pub fn resolve(&self, image: &str) -> Result<Option<ResolvedImage>> {
        if let Some(staged) = self.resolve_staged(image) {
            return Ok(Some(staged));
        }
        let hold = self.pins.hold();
        // Hold before looking at the layers, under the lock that removal takes.
        let refs = self.refs.read();
        let Some(found) = find(refs.all(), image) else { return Ok(None) };
        let (manifest, document) = self.documents(&found.target)?;
        hold_image(&hold, &found.target, &manifest, &document);
        drop(refs);
        let layers = distinct(document.rootfs.diff_ids.iter().map(|d| self.layer_dir(d)).collect());
        if let Some(missing) = layers.iter().find(|dir| !dir.is_dir()) {
            return Err(Error::Malformed(format!("layer {} of image {image} is missing", missing.display())));
        }
        let repo_digest =
            found.repo_digests.into_iter().next().unwrap_or_else(|| found.target.image.to_string());
        Ok(Some(ResolvedImage {
            id: found.target.image,
            repo_digest,
            config: document.to_cri(),
            layers,
            hold,
        }))
    }

    /// All references and the ids of their images.
    pub fn references(&self) -> Vec<(String, Digest)> {
        self.refs.read().all().iter().map(|(name, target)| (name.clone(), target.image.clone())).collect()
    }

    /// Removes one reference (`untag`) or, given an id, the whole image; content goes with its last reference.
    /// Tells whether anything was there.
    pub fn remove_reference(&self, image: &str) -> Result<bool> {
        let mut refs = self.refs.write();
        let Some(found) = find(refs.all(), image) else { return Ok(false) };
        let exact =
            image.parse::<Reference>().ok().map(|r| r.to_string()).filter(|r| refs.all().contains_key(r));
        let tagged_elsewhere = refs.all().iter().any(|(name, target)| {
            target.image == found.target.image && Some(name) != exact.as_ref() && !name.contains("@sha256:")
        });
        refs.update(&self.content.temp_path(), |map| match exact {
            Some(name) if tagged_elsewhere => {
                map.remove(&name);
            }
            _ => map.retain(|_, target| target.image != found.target.image),
        })?;
        drop(refs);
        self.collect_garbage()?;
        Ok(true)
    }

    /// The text of a file of the image (top layer first), such as `/etc/passwd`; empty where it has none.
    pub fn read_text(layers: &[PathBuf], path: &Path) -> Result<String> {
        for layer in layers.iter().rev() {
            match read_in_layer(layer, path)? {
                Lookup::Found(text) => return Ok(text),
                Lookup::Hidden => break,
                Lookup::Below => {}
            }
        }
        Ok(String::new())
    }

    pub(crate) fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.content.root().join("layers").join(&diff_id.hex()[..LAYER_NAME_LEN])
    }

    pub(crate) fn usage_path(&self, diff_id: &Digest) -> PathBuf {
        self.layer_dir(diff_id).with_extension("json")
    }

    /// One at a time per `key`.
    pub(crate) async fn lock(&self, key: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock();
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(key.to_owned()).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// Unpacks a layer, unless that was done before. Blocking.
    pub(crate) fn unpack(&self, layer: &Descriptor, diff_id: &Digest) -> Result<()> {
        let dir = self.layer_dir(diff_id);
        if dir.is_dir() {
            return Ok(());
        }
        let temp = self.content.temp_path();
        let result =
            unpack_layer(self.content.open_blob(&layer.digest)?, &temp).and_then(|(actual, usage)| {
                if actual != *diff_id {
                    let (expected, actual) = (diff_id.to_string(), actual.to_string());
                    return Err(Error::DigestMismatch { expected, actual });
                }
                let text = serde_json::to_vec(&usage).unwrap_or_default();
                write_atomically(&self.usage_path(diff_id), &self.content.temp_path(), &text)?;
                match fs::rename(&temp, &dir) {
                    // An import has unpacked the same layer meanwhile.
                    Err(_) if dir.is_dir() => {
                        fs::remove_dir_all(&temp).map_err(Error::io("drop second layer"))?
                    }
                    renamed => renamed.map_err(Error::io("commit layer"))?,
                }
                sync_dir(&self.content.root().join("layers"))
            });
        if result.is_err() {
            let _ = fs::remove_dir_all(&temp);
        }
        result
    }

    /// Writes references to an image whose content is complete.
    ///
    /// `local` ones (imported, built) are kept by garbage collection as long as they have a name.
    pub(crate) fn tag(&self, names: &[String], manifest: &Digest, image: &Digest, local: bool) -> Result<()> {
        let target = RefTarget {
            manifest: manifest.clone(),
            image: image.clone(),
            added_at: self.clock.now().as_second(),
            local,
        };
        self.refs.write().update(&self.content.temp_path(), |map| {
            for name in names {
                match map.get_mut(name) {
                    Some(old) if old.manifest == target.manifest => {}
                    _ => {
                        map.insert(name.clone(), target.clone());
                    }
                }
            }
        })
    }

    pub(crate) fn documents(&self, target: &RefTarget) -> Result<(Manifest, ImageDocument)> {
        let ManifestOrIndex::Manifest(manifest) =
            ManifestOrIndex::parse(&self.content.read_document(&target.manifest)?)?
        else {
            return Err(Error::Malformed(format!("{} is not an image manifest", target.manifest)));
        };
        let document = ImageDocument::parse(&self.content.read_document(&manifest.config.digest)?)?;
        Ok((manifest, document))
    }

    /// Removes content that no reference needs and nobody holds.
    pub(crate) fn collect_garbage(&self) -> Result<()> {
        let refs = self.refs.write();
        let (mut blobs, mut layers) = (HashSet::new(), HashSet::new());
        for target in refs.all().values() {
            let (manifest, document) = self.documents(target)?;
            blobs.extend([target.manifest.clone(), manifest.config.digest]);
            blobs.extend(manifest.layers.into_iter().map(|l| l.digest));
            layers.extend(document.rootfs.diff_ids.iter().map(|d| self.layer_dir(d)));
        }
        for record in self.cache.lock().records.values() {
            blobs.extend(record.blob.clone());
            layers.extend(record.layer.iter().map(|d| self.layer_dir(d)));
        }
        for blob in self.content.list()? {
            if !blobs.contains(&blob) && !self.pins.is_pinned(&blob) {
                self.content.remove(&blob)?;
            }
        }
        for entry in fs::read_dir(self.content.root().join("layers")).map_err(Error::io("list layers"))? {
            let path = entry.map_err(Error::io("list layers"))?.path();
            let dir = path.with_extension("");
            // Asked anew for each: what is being made now was held before it could be seen here.
            if layers.contains(&dir) || self.pins.all().iter().any(|d| self.layer_dir(d) == dir) {
                continue;
            }
            if path == dir {
                // Out of sight first: half a layer must never be seen under its name.
                let temp = self.content.temp_path();
                fs::rename(&path, &temp).map_err(Error::io("remove layer"))?;
                fs::remove_dir_all(&temp).map_err(Error::io("remove layer"))?;
            } else {
                ignore_missing(fs::remove_file(&path)).map_err(Error::io("remove layer"))?;
            }
        }
        Ok(())
    }

    fn describe(&self, found: &Found) -> Result<(cri::Image, ImageDocument)> {
        let (manifest, document) = self.documents(&found.target)?;
        let config = document.to_cri();
        let user = config.user.split(':').next().unwrap_or("");
        let uid = user.parse().ok();
        let image = cri::Image {
            id: found.target.image.to_string(),
            repo_tags: found.repo_tags.clone(),
            repo_digests: found.repo_digests.clone(),
            size_bytes: manifest.layers.iter().map(|l| l.size).sum::<u64>() + manifest.config.size,
            uid,
            username: if uid.is_some() { String::new() } else { user.to_owned() },
            pinned: found.pinned,
            added_at: found.target.added(),
        };
        Ok((image, document))
    }

    pub(crate) fn usage(&self) -> Result<LayerUsage> {
        let mut sum = LayerUsage::default();
        for blob in self.content.list()? {
            sum.bytes += self.content.size(&blob).unwrap_or(0);
            sum.inodes += 1;
        }
        for entry in fs::read_dir(self.content.root().join("layers")).map_err(Error::io("list layers"))? {
            let path = entry.map_err(Error::io("list layers"))?.path();
            if path.extension().is_some_and(|e| e == "json")
                && let Ok(bytes) = fs::read(&path)
                && let Ok(usage) = serde_json::from_slice::<LayerUsage>(&bytes)
            {
                sum.bytes += usage.bytes;
                sum.inodes += usage.inodes;
            }
        }
        Ok(sum)
    }
}

/// Leaves each layer where it comes last: overlayfs takes none twice, and what the upper one has, the lower one
/// cannot add to. Empty layers come several times in many images.
pub(crate) fn distinct(layers: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    let mut kept: Vec<PathBuf> = layers.into_iter().rev().filter(|l| seen.insert(l.clone())).collect();
    kept.reverse();
    kept
}

/// Holds everything an image consists of.
pub(crate) fn hold_image(
    hold: &ImageHold,
    target: &RefTarget,
    manifest: &Manifest,
    document: &ImageDocument,
) {
    hold.add(&target.manifest);
    hold.add(&manifest.config.digest);
    manifest.layers.iter().for_each(|l| hold.add(&l.digest));
    document.rootfs.diff_ids.iter().for_each(|d| hold.add(d));
}

/// An image and all its names.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) target: RefTarget,
    pub(crate) repo_tags: Vec<String>,
    pub(crate) repo_digests: Vec<String>,
    /// It has a name and came from no registry.
    pub(crate) pinned: bool,
}

/// Finds by reference, or by id: whole, or the beginning of its digits.
pub(crate) fn find(refs: &BTreeMap<String, RefTarget>, image: &str) -> Option<Found> {
    let hex = image.strip_prefix("sha256:").unwrap_or(image);
    let by_id = || {
        let digits = hex.len() >= 8 && hex.len() <= 64 && hex.bytes().all(|c| c.is_ascii_hexdigit());
        digits.then(|| refs.values().find(|t| t.image.hex().starts_with(hex))).flatten()
    };
    let by_name = || {
        let reference = image.parse::<Reference>().ok()?;
        // With both a tag and a digest, the digest decides.
        let by_digest = reference.digest().and_then(|digest| refs.get(&reference.with_digest(digest)));
        by_digest.or_else(|| refs.get(&reference.to_string()))
    };
    let target = if image.starts_with("sha256:") { by_id() } else { by_name().or_else(by_id) }?.clone();
    Some(names_of(refs, target))
}

fn names_of(refs: &BTreeMap<String, RefTarget>, target: RefTarget) -> Found {
    let names = refs.iter().filter(|(_, t)| t.image == target.image).map(|(name, _)| name.clone());
    // An image imported without a name is known by its id alone, which is no reference.
    let (repo_digests, repo_tags): (Vec<_>, Vec<_>) =
        names.filter(|n| !n.starts_with("sha256:")).partition(|name| name.contains("@sha256:"));
    let pinned =
        refs.iter().any(|(name, t)| t.image == target.image && t.local && !name.contains("@sha256:"));
    Found { target, repo_tags, repo_digests, pinned }
}

enum Lookup {
    Found(String),
    /// A whiteout or an opaque directory: lower layers do not show.
    Hidden,
    Below,
}

fn read_in_layer(layer: &Path, path: &Path) -> Result<Lookup> {
    let io = |e: rustix::io::Errno| Error::io(format!("read {} of image", path.display()))(e.into());
    let dir = rustix::fs::open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(io)?;
    let open = |path: &Path, flags| {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(dir.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    };
    let is_whiteout = |fd: &rustix::fd::OwnedFd| {
        rustix::fs::fstat(fd).is_ok_and(|s| {
            rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::CharacterDevice
                && s.st_rdev == 0
        })
    };
    // PATH first: opening a whiteout device would fail, opening a fifo would hang.
    match open(path, OFlags::PATH) {
        Ok(fd) if is_whiteout(&fd) => return Ok(Lookup::Hidden),
        Ok(_) => {
            let file = fs::File::from(open(path, OFlags::RDONLY | OFlags::NONBLOCK).map_err(io)?);
            let mut text = Vec::new();
            let context = format!("read {} of image", path.display());
            std::io::Read::read_to_end(&mut std::io::Read::take(file, ACCOUNT_FILE_LEN_MAX), &mut text)
                .map_err(Error::io(context))?;
            return Ok(Lookup::Found(String::from_utf8_lossy(&text).into_owned()));
        }
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
        Err(e) => return Err(io(e)),
    }
    for above in path.ancestors().skip(1) {
        let Ok(fd) = open(above, OFlags::PATH) else { continue };
        let mut value = [0u8; 1];
        let proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let opaque =
            rustix::fs::getxattr(proc, "trusted.overlay.opaque", &mut value).is_ok() && value == *b"y";
        if opaque || is_whiteout(&fd) {
            return Ok(Lookup::Hidden);
        }
    }
    Ok(Lookup::Below)
}

/// Runs blocking work of the store on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::Malformed(format!("image task failed: {e}"))),
    }
}

#[async_trait]
impl cri::ImageService for ImageStore {
    async fn pull(&self, request: cri::PullRequest) -> cri::Result<cri::PullResult> {
        let image = request.image.clone();
        self.handle()?.pull_image(request).await.map_err(|e| e.into_pull_error(&image))
    }

    async fn status(&self, image: &str) -> cri::Result<Option<cri::ImageStatus>> {
        let found = find(self.refs.read().all(), image);
        let Some(found) = found else { return Ok(None) };
        let (image, document) = self.describe(&found)?;
        Ok(Some(cri::ImageStatus { image, config: document.to_cri() }))
    }

    async fn list(&self) -> cri::Result<Vec<cri::Image>> {
        let by_id: BTreeMap<Digest, Found> = {
            let refs = self.refs.read();
            refs.all().values().map(|t| (t.image.clone(), names_of(refs.all(), t.clone()))).collect()
        };
        Ok(by_id.values().map(|f| Ok(self.describe(f)?.0)).collect::<Result<_>>()?)
    }

    async fn remove(&self, image: &str) -> cri::Result<()> {
        let (store, image) = (self.handle()?, image.to_owned());
        Ok(blocking(move || store.remove_image(&image)).await?)
    }

    async fn fs_info(&self) -> cri::Result<cri::FsInfo> {
        let store = self.handle()?;
        Ok(blocking(move || store.fs_info_now()).await?)
    }
}

impl ImageStore {
    /// A strong reference to this store; it exists while `self` is borrowed from one.
    fn handle(&self) -> Result<Arc<ImageStore>> {
        self.this.upgrade().ok_or_else(|| Error::Malformed("the image store is closed".into()))
    }

    fn remove_image(&self, image: &str) -> Result<()> {
        {
            let mut refs = self.refs.write();
            let Some(found) = find(refs.all(), image) else { return Ok(()) };
            refs.update(&self.content.temp_path(), |map| map.retain(|_, t| t.image != found.target.image))?;
        }
        self.collect_garbage()
    }

    fn fs_info_now(&self) -> Result<cri::FsInfo> {
        let usage = self.usage()?;
        let root = self.content.root();
        let stat =
            rustix::fs::statvfs(root).map_err(|e| Error::io("statvfs of the image store")(e.into()))?;
        Ok(cri::FsInfo {
            timestamp: self.clock.now(),
            mountpoint: root.to_owned(),
            used_bytes: usage.bytes,
            inodes_used: usage.inodes,
            capacity_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            inodes: stat.f_files,
            inodes_free: stat.f_ffree,
        })
    }
}
