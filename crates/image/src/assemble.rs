//! Making images here: layers from directories, file trees that are not images yet, and new manifests.
//!
//! A build's layers go to their place at once but are synced together at its end; a marker beside each says that
//! it is not safe yet, and a store that opens after a crash drops what is marked.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value, json};

use crate::cache::CacheRecord;
use crate::config::{Descriptor, ImageDocument, LAYERS_MAX, Manifest};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::pack::pack_layer;
use crate::pins::ImageHold;
use crate::reference::Reference;
use crate::store::{ImageStore, ResolvedImage, distinct};
use crate::unpack::{LayerUsage, unpack_layer};

/// Extension of the marker beside a layer that is not synced yet.
pub(crate) const UNSYNCED: &str = "unsynced";
/// Layers compressed at once: more only fight for the processors.
const COMPRESS_AT_ONCE: usize = 4;
/// Media types of what is made here.
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A layer and, where it came with one, its blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRef {
    /// Digest of its tar.
    pub diff_id: Digest,
    pub(crate) blob: Option<Descriptor>,
}

impl LayerRef {
    /// A layer that was made here.
    pub fn made(diff_id: Digest) -> LayerRef {
        LayerRef { diff_id, blob: None }
    }
}

/// An image to build on.
#[derive(Debug)]
pub struct BaseImage {
    /// Image id.
    pub id: Digest,
    /// Its layers, lowest first.
    pub layers: Vec<LayerRef>,
    /// Its whole configuration document.
    pub document: Map<String, Value>,
    /// Keeps it on disk.
    pub hold: ImageHold,
}

/// An image to be made.
#[derive(Debug)]
pub struct NewImage {
    /// The configuration document without `rootfs`.
    pub document: Map<String, Value>,
    /// Layers, lowest first.
    pub layers: Vec<LayerRef>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Names to give it.
    pub names: Vec<Reference>,
}

/// An image that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeImage {
    /// Image id.
    pub id: Digest,
    /// Digest of its manifest.
    pub manifest: Digest,
}

/// File trees under construction, by the names that containers are made from.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    next: AtomicU64,
    trees: parking_lot::Mutex<HashMap<String, (Vec<PathBuf>, cri::ImageConfig)>>,
}

/// A name that stands for a file tree until it is dropped.
#[derive(Debug)]
pub struct StagedTree {
    name: String,
    store: Arc<ImageStore>,
}

impl StagedTree {
    /// What to give as a container's image.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for StagedTree {
    fn drop(&mut self) {
        self.store.staging.trees.lock().remove(&self.name);
    }
}

impl ImageStore {
    /// The image of this name, to build on.
    pub fn base(&self, image: &str) -> Result<Option<BaseImage>> {
        let Some(resolved) = self.resolve(image)? else { return Ok(None) };
        let refs = self.refs.read();
        let Some(target) = refs.all().values().find(|t| t.image == resolved.id).cloned() else {
            return Ok(None);
        };
        drop(refs);
        let (manifest, document) = self.documents(&target)?;
        let bytes = self.content.read_document(&manifest.config.digest)?;
        let raw = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Malformed(format!("invalid image configuration: {e}")))?;
        let layers = manifest.layers.into_iter().zip(document.rootfs.diff_ids);
        Ok(Some(BaseImage {
            id: resolved.id,
            layers: layers.map(|(blob, diff_id)| LayerRef { diff_id, blob: Some(blob) }).collect(),
            document: raw,
            hold: resolved.hold,
        }))
    }

    /// Directories of layers, lowest first, each once.
    pub fn layer_paths(&self, layers: &[Digest]) -> Vec<PathBuf> {
        distinct(layers.iter().map(|l| self.layer_dir(l)).collect())
    }

    /// A new directory for work; it goes when the store is next opened, if nobody removes it.
    pub fn work_dir(&self) -> Result<PathBuf> {
        let path = self.content.temp_path();
        fs::create_dir(&path).map_err(Error::io("create work directory"))?;
        Ok(path)
    }

    /// Directory of what builds keep besides layers.
    pub fn mounts_dir(&self) -> PathBuf {
        self.content.root().join("build-mounts")
    }

    /// A hold to be extended.
    pub fn hold(&self) -> ImageHold {
        self.pins.hold()
    }

    /// Keeps a layer on disk, if it is there.
    pub fn hold_layer(&self, hold: &ImageHold, diff_id: &Digest) -> bool {
        hold.add(diff_id);
        self.layer_dir(diff_id).is_dir()
    }

    /// Makes the directory a layer and takes it away from where it is. Blocking.
    pub fn add_layer(&self, from: &Path, hold: &ImageHold) -> Result<(Digest, u64)> {
        let mut hasher = Hasher::default();
        let usage = pack_layer(from, &mut hasher)?;
        let diff_id = hasher.finish();
        hold.add(&diff_id);
        let dir = self.layer_dir(&diff_id);
        if dir.is_dir() {
            fs::remove_dir_all(from).map_err(Error::io("drop second layer"))?;
            return Ok((diff_id, usage.bytes));
        }
        fs::write(dir.with_extension(UNSYNCED), b"").map_err(Error::io("mark layer"))?;
        self.unsynced.lock().push(diff_id.clone());
        let text = serde_json::to_vec(&usage).unwrap_or_default();
        fs::write(self.usage_path(&diff_id), text).map_err(Error::io("write size of layer"))?;
        match fs::rename(from, &dir) {
            Ok(()) => {}
            Err(_) if dir.is_dir() => fs::remove_dir_all(from).map_err(Error::io("drop second layer"))?,
            Err(e) if e.kind() == std::io::ErrorKind::CrossesDevices => self.move_layer(from, &dir)?,
            Err(e) => return Err(Error::io("commit layer")(e)),
        }
        Ok((diff_id, usage.bytes))
    }

    /// Containers may lie on another file system than images.
    fn move_layer(&self, from: &Path, dir: &Path) -> Result<()> {
        let (spool, temp) = (self.content.temp_path(), self.content.temp_path());
        let copy = || {
            let mut file = File::create_new(&spool).map_err(Error::io("create layer"))?;
            pack_layer(from, &mut file)?;
            let file = File::open(&spool).map_err(Error::io("open layer"))?;
            unpack_layer(std::io::BufReader::new(file), &temp)?;
            fs::rename(&temp, dir).map_err(Error::io("commit layer"))?;
            fs::remove_dir_all(from).map_err(Error::io("remove layer"))
        };
        let result = copy();
        let _ = fs::remove_file(&spool);
        let _ = fs::remove_dir_all(&temp);
        result
    }

    /// Makes the layers added so far safe. Blocking.
    pub fn sync_layers(&self) -> Result<()> {
        let layers = std::mem::take(&mut *self.unsynced.lock());
        if layers.is_empty() {
            return Ok(());
        }
        let dir = File::open(self.content.root()).map_err(Error::io("open image store"))?;
        rustix::fs::syncfs(&dir).map_err(|e| Error::io("sync layers")(e.into()))?;
        for diff_id in layers {
            let marker = self.layer_dir(&diff_id).with_extension(UNSYNCED);
            crate::content::ignore_missing(fs::remove_file(marker)).map_err(Error::io("unmark layer"))?;
        }
        Ok(())
    }

    /// Drops layers that were not synced before the machine went down.
    pub(crate) fn drop_unsynced(&self) -> Result<()> {
        for entry in fs::read_dir(self.content.root().join("layers")).map_err(Error::io("list layers"))? {
            let marker = entry.map_err(Error::io("list layers"))?.path();
            if marker.extension().is_some_and(|e| e == UNSYNCED) {
                let dir = marker.with_extension("");
                if dir.is_dir() {
                    fs::remove_dir_all(&dir).map_err(Error::io("remove layer"))?;
                }
                fs::remove_file(&marker).map_err(Error::io("remove layer"))?;
            }
        }
        Ok(())
    }

    /// Gives layers a name that containers can be made from. The caller holds the layers.
    pub fn stage(self: Arc<Self>, layers: &[Digest], config: cri::ImageConfig) -> Result<StagedTree> {
        let number = self.staging.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("staged://{number}");
        let mut paths = self.layer_paths(layers);
        if paths.is_empty() {
            paths.push(self.empty_dir()?);
        }
        self.staging.trees.lock().insert(name.clone(), (paths, config));
        Ok(StagedTree { name, store: self })
    }

    /// A directory with nothing in it, to stand below where there is no layer.
    pub fn empty_dir(&self) -> Result<PathBuf> {
        let path = self.content.root().join("empty");
        fs::create_dir_all(&path).map_err(Error::io("create empty directory"))?;
        Ok(path)
    }

    pub(crate) fn resolve_staged(&self, name: &str) -> Option<ResolvedImage> {
        let (layers, config) = self.staging.trees.lock().get(name)?.clone();
        let id = Digest::of(name.as_bytes());
        Some(ResolvedImage { repo_digest: id.to_string(), id, config, layers, hold: self.pins.hold() })
    }

    /// Makes an image of layers that are there; compresses those that have no blob yet. Blocking.
    pub fn make_image(&self, new: NewImage, hold: &ImageHold) -> Result<MadeImage> {
        if new.layers.len() > LAYERS_MAX {
            return Err(Error::TooLarge { what: "list of layers".into(), limit: LAYERS_MAX as u64 });
        }
        let layers = self.blobs_of(&new.layers, hold)?;
        let mut document = new.document;
        let diff_ids: Vec<&str> = new.layers.iter().map(|l| l.diff_id.as_str()).collect();
        document.insert("rootfs".into(), json!({"type": "layers", "diff_ids": diff_ids}));
        let bytes = serde_json::to_vec(&document)
            .map_err(|e| Error::Malformed(format!("encode image configuration: {e}")))?;
        ImageDocument::parse(&bytes)?;
        let id = self.write_held(&bytes, hold)?;
        let config = Descriptor {
            media_type: CONFIG_TYPE.into(),
            digest: id.clone(),
            size: bytes.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST_TYPE.into(),
            config,
            layers,
            annotations: new.annotations,
        };
        let bytes =
            serde_json::to_vec(&manifest).map_err(|e| Error::Malformed(format!("encode manifest: {e}")))?;
        let manifest = self.write_held(&bytes, hold)?;
        self.sync_layers()?;
        let mut names = Vec::new();
        for reference in &new.names {
            names.extend([reference.to_string(), reference.with_digest(&manifest)]);
        }
        if names.is_empty() {
            names.push(id.to_string());
        }
        self.tag(&names, &manifest, &id)?;
        Ok(MadeImage { id, manifest })
    }

    fn write_held(&self, bytes: &[u8], hold: &ImageHold) -> Result<Digest> {
        let digest = Digest::of(bytes);
        hold.add(&digest);
        if self.content.has(&digest) { Ok(digest) } else { self.content.write_document(bytes) }
    }

    fn blobs_of(&self, layers: &[LayerRef], hold: &ImageHold) -> Result<Vec<Descriptor>> {
        let mut found: Vec<Option<Descriptor>> = layers.iter().map(|l| self.known_blob(l, hold)).collect();
        let missing: Vec<usize> =
            (0..layers.len()).filter(|n| found.get(*n).is_some_and(Option::is_none)).collect();
        for group in missing.chunks(COMPRESS_AT_ONCE) {
            let made: Vec<(usize, Result<Descriptor>)> = std::thread::scope(|scope| {
                let threads: Vec<_> = group
                    .iter()
                    .filter_map(|n| Some((*n, layers.get(*n)?)))
                    .map(|(n, layer)| (n, scope.spawn(|| self.compress(&layer.diff_id, hold))))
                    .collect();
                let gone = || Err(Error::Malformed("compressing a layer failed".into()));
                threads.into_iter().map(|(n, t)| (n, t.join().unwrap_or_else(|_| gone()))).collect()
            });
            for (n, descriptor) in made {
                if let Some(slot) = found.get_mut(n) {
                    *slot = Some(descriptor?);
                }
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    fn known_blob(&self, layer: &LayerRef, hold: &ImageHold) -> Option<Descriptor> {
        let descriptor = match &layer.blob {
            Some(blob) => blob.clone(),
            None => {
                let record = self.cached(&blob_key(&layer.diff_id))?;
                layer_descriptor(record.blob?, record.blob_size)
            }
        };
        hold.add(&descriptor.digest);
        (layer.blob.is_some() || self.content.has(&descriptor.digest)).then_some(descriptor)
    }

    fn compress(&self, diff_id: &Digest, hold: &ImageHold) -> Result<Descriptor> {
        let mut writer = self.content.writer()?;
        let mut hasher = Hasher::default();
        let mut gzip =
            flate2::GzBuilder::new().mtime(0).write(Sink(&mut writer), flate2::Compression::fast());
        let usage = pack_layer(&self.layer_dir(diff_id), &mut Tee(&mut gzip, &mut hasher))?;
        gzip.finish().map_err(Error::io("compress layer"))?;
        let actual = hasher.finish();
        if actual != *diff_id {
            let (expected, actual) = (diff_id.to_string(), actual.to_string());
            return Err(Error::DigestMismatch { expected, actual });
        }
        let size = writer.len;
        let blob = writer.commit(None)?;
        hold.add(&blob);
        self.remember_blob(diff_id, &blob, size, &usage);
        Ok(layer_descriptor(blob, size))
    }

    fn remember_blob(&self, diff_id: &Digest, blob: &Digest, size: u64, usage: &LayerUsage) {
        let record = CacheRecord {
            layer: None,
            value: String::new(),
            blob: Some(blob.clone()),
            blob_size: size,
            size: usage.bytes,
            created_at: self.now(),
            used_at: self.now(),
            what: "layer".into(),
        };
        self.remember(blob_key(diff_id), record);
    }

    pub(crate) fn now(&self) -> i64 {
        self.clock.now().as_second()
    }

    /// The result of an earlier step with this key.
    pub fn cached(&self, key: &str) -> Option<CacheRecord> {
        self.cache.lock().get(key, self.now())
    }

    /// Keeps the result of a step.
    pub fn remember(&self, key: String, record: CacheRecord) {
        self.cache.lock().put(key, record);
    }

    /// A record of a layer (or a value) made now.
    pub fn record(&self, layer: Option<Digest>, value: String, size: u64, what: &str) -> CacheRecord {
        let now = self.now();
        CacheRecord {
            layer,
            value,
            blob: None,
            blob_size: 0,
            size,
            created_at: now,
            used_at: now,
            what: what.to_owned(),
        }
    }

    /// Writes the cache down.
    pub fn save_cache(&self) -> Result<()> {
        self.cache.lock().save(&self.content.temp_path())
    }

    /// Forgets what builds have kept and was not used since `before` (seconds since 1970); all of it without.
    pub fn prune_cache(&self, before: Option<i64>) -> Result<u64> {
        let kept = self.usage()?.bytes;
        self.cache.lock().retain(|_, record| before.is_some_and(|at| record.used_at >= at));
        self.save_cache()?;
        if before.is_none() && self.mounts_dir().exists() {
            fs::remove_dir_all(self.mounts_dir()).map_err(Error::io("remove cache mounts"))?;
        }
        self.collect_garbage()?;
        Ok(kept.saturating_sub(self.usage()?.bytes))
    }
}

fn blob_key(diff_id: &Digest) -> String {
    format!("blob:{}", diff_id.hex())
}

fn layer_descriptor(digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type: LAYER_TYPE.into(), digest, size, platform: None, annotations: BTreeMap::new() }
}

/// A blob being written, as a writer.
struct Sink<'a, 'b>(&'a mut crate::content::BlobWriter<'b>);

impl Write for Sink<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes to both.
struct Tee<'a, A: Write, B: Write>(&'a mut A, &'a mut B);

impl<A: Write, B: Write> Write for Tee<'_, A, B> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(bytes)?;
        self.1.write_all(bytes)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
