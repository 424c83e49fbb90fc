//! Imports images from tar archives: `docker save` (docker-archive) and OCI image layouts, plain or compressed,
//! one or many images, in one pass over the stream.
//!
//! The documents that say what the files are may come last, so every file goes into the content store as it
//! passes by; what turns out to be needed by no image is collected afterwards.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use crate::config::{Descriptor, ImageDocument, Index, LAYERS_MAX, Manifest, ManifestOrIndex, Platform};
use crate::content::Content;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::pins::ImageHold;
use crate::reference::Reference;
use crate::store::{ImageStore, blocking};
use crate::unpack::decompress;

/// Most files in an archive.
const FILES_MAX: usize = 100_000;
/// Longest chain of indices in an OCI layout.
const INDEX_DEPTH_MAX: usize = 3;
/// Longest chain of links between files of a docker-archive.
const LINK_DEPTH_MAX: usize = 8;

/// How to import.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Name for images that bring none (or only a tag).
    pub name: Option<String>,
}

/// An image that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedImage {
    /// Image id.
    pub id: Digest,
    /// Its references.
    pub names: Vec<String>,
}

/// The files of an archive, in the content store.
#[derive(Default)]
struct Files {
    blobs: HashMap<PathBuf, (Digest, u64)>,
    links: HashMap<PathBuf, PathBuf>,
}

impl Files {
    fn get(&self, path: &str) -> Result<&(Digest, u64)> {
        let mut at = normalise(std::path::Path::new(path));
        for _ in 0..LINK_DEPTH_MAX {
            if let Some(found) = self.blobs.get(&at) {
                return Ok(found);
            }
            match self.links.get(&at) {
                Some(target) => at = target.clone(),
                None => break,
            }
        }
        Err(Error::Malformed(format!("archive has no file {path:?}")))
    }

    fn has(&self, path: &str) -> bool {
        self.get(path).is_ok()
    }
}

/// Resolves `.` and `..` textually; these paths are only keys of a map.
fn normalise(path: &std::path::Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

/// One entry of docker-archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// An image found in an archive, before its layers are unpacked.
struct Candidate {
    manifest: Digest,
    document: Manifest,
    names: Vec<String>,
}

impl ImageStore {
    /// Imports every image of the archive that fits this machine.
    pub async fn import(
        self: Arc<Self>,
        reader: impl Read + Send + 'static,
        options: ImportOptions,
    ) -> Result<Vec<ImportedImage>> {
        let store = self.clone();
        blocking(move || store.import_blocking(Box::new(reader), &options)).await
    }

    fn import_blocking(
        &self,
        reader: Box<dyn Read + Send>,
        options: &ImportOptions,
    ) -> Result<Vec<ImportedImage>> {
        let hold = self.pins.hold();
        let result = self.import_held(BufReader::new(reader), options, &hold);
        drop(hold);
        self.collect_garbage()?;
        result
    }

    fn import_held<R: BufRead>(
        &self,
        reader: R,
        options: &ImportOptions,
        hold: &ImageHold,
    ) -> Result<Vec<ImportedImage>> {
        let files = spool(&self.content, decompress(reader)?, hold)?;
        let candidates = if files.has("index.json") && files.has("oci-layout") {
            self.oci_images(&files, options)?
        } else if files.has("manifest.json") {
            self.docker_images(&files, options, hold)?
        } else {
            return Err(Error::Malformed("neither an OCI image layout nor a docker archive".into()));
        };
        if candidates.is_empty() {
            return Err(Error::NoPlatform("the archive holds no image for this platform".into()));
        }
        candidates.into_iter().map(|c| self.finish_import(c, hold)).collect()
    }

    fn finish_import(&self, candidate: Candidate, hold: &ImageHold) -> Result<ImportedImage> {
        let config = candidate.document.config.digest.clone();
        let document = ImageDocument::parse(&self.content.read_document(&config)?)?;
        let diff_ids = &document.rootfs.diff_ids;
        check_layers(&candidate.document.layers, diff_ids)?;
        for (layer, diff_id) in candidate.document.layers.iter().zip(diff_ids) {
            hold.add(diff_id);
            self.unpack(layer, diff_id)?;
        }
        let mut names = Vec::new();
        for name in &candidate.names {
            let reference: Reference = name.parse()?;
            names.extend([reference.to_string(), reference.with_digest(&candidate.manifest)]);
        }
        // Without any name the image is still there under its id.
        let keys = if names.is_empty() { vec![config.to_string()] } else { names.clone() };
        self.tag(&keys, &candidate.manifest, &config)?;
        names.retain(|n| !n.contains('@'));
        Ok(ImportedImage { id: config, names })
    }

    fn docker_images(
        &self,
        files: &Files,
        options: &ImportOptions,
        hold: &ImageHold,
    ) -> Result<Vec<Candidate>> {
        let bytes = self.content.read_document(&files.get("manifest.json")?.0)?;
        let saved: Vec<SavedImage> = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Malformed(format!("invalid manifest.json: {e}")))?;
        let mut candidates = Vec::new();
        for image in saved {
            if image.layers.len() > LAYERS_MAX {
                return Err(Error::TooLarge { what: "list of layers".into(), limit: LAYERS_MAX as u64 });
            }
            let describe = |path: &str, media_type: &str| {
                let (digest, size) = files.get(path)?.clone();
                let media_type = media_type.to_owned();
                Ok(Descriptor { media_type, digest, size, platform: None, annotations: BTreeMap::new() })
            };
            let layers = image.layers.iter().map(|path| {
                let mut layer = describe(path, "application/vnd.oci.image.layer.v1.tar")?;
                if self
                    .content
                    .open_blob(&layer.digest)?
                    .fill_buf()
                    .is_ok_and(|b| b.starts_with(&[0x1f, 0x8b]))
                {
                    layer.media_type.push_str("+gzip");
                }
                Ok(layer)
            });
            let document = Manifest {
                schema_version: 2,
                media_type: "application/vnd.oci.image.manifest.v1+json".into(),
                layers: layers.collect::<Result<_>>()?,
                config: describe(&image.config, "application/vnd.oci.image.config.v1+json")?,
                annotations: BTreeMap::new(),
            };
            let bytes = serde_json::to_vec(&document)
                .map_err(|e| Error::Malformed(format!("encode manifest: {e}")))?;
            let manifest = self.content.write_document(&bytes)?;
            hold.add(&manifest);
            let mut names = image.repo_tags.unwrap_or_default();
            if names.is_empty() {
                names.extend(options.name.clone());
            }
            candidates.push(Candidate { manifest, document, names });
        }
        Ok(candidates)
    }

    fn oci_images(&self, files: &Files, options: &ImportOptions) -> Result<Vec<Candidate>> {
        let bytes = self.content.read_document(&files.get("index.json")?.0)?;
        let ManifestOrIndex::Index(index) = ManifestOrIndex::parse(&bytes)? else {
            return Err(Error::Malformed("index.json is not an index".into()));
        };
        let mut by_manifest: BTreeMap<Digest, Candidate> = BTreeMap::new();
        for entry in &index.manifests {
            let Some((manifest, document)) = self.follow(entry, INDEX_DEPTH_MAX)? else { continue };
            let names = layout_name(entry, options.name.as_deref());
            by_manifest
                .entry(manifest.clone())
                .or_insert_with(|| Candidate { manifest, document, names: Vec::new() })
                .names
                .extend(names);
        }
        Ok(by_manifest.into_values().collect())
    }

    /// Follows a descriptor through indices to the image for this machine; `None` where there is none.
    fn follow(&self, entry: &Descriptor, depth: usize) -> Result<Option<(Digest, Manifest)>> {
        if !self.content.has(&entry.digest) {
            return Ok(None);
        }
        match ManifestOrIndex::parse(&self.content.read_document(&entry.digest)?)? {
            ManifestOrIndex::Manifest(manifest) => {
                let present = self.content.has(&manifest.config.digest)
                    && manifest.layers.iter().all(|l| self.content.has(&l.digest));
                Ok(present.then(|| (entry.digest.clone(), manifest)))
            }
            ManifestOrIndex::Index(_) if depth == 0 => {
                Err(Error::Malformed("indices are nested too deep".into()))
            }
            ManifestOrIndex::Index(index) => self.follow_index(&index, depth - 1),
        }
    }

    fn follow_index(&self, index: &Index, depth: usize) -> Result<Option<(Digest, Manifest)>> {
        match index.select(&Platform::host()) {
            Some(chosen) => self.follow(chosen, depth),
            None => Ok(None),
        }
    }
}

/// The reference that an entry of an OCI layout's index gives its image.
fn layout_name(entry: &Descriptor, fallback: Option<&str>) -> Option<String> {
    let annotation = |key: &str| entry.annotations.get(key).cloned();
    if let Some(full) = annotation("io.containerd.image.name") {
        return Some(full);
    }
    match (annotation("org.opencontainers.image.ref.name"), fallback) {
        (Some(name), _) if name.contains([':', '/']) => Some(name),
        // The specification means a tag here; the name has to come from the caller.
        (Some(tag), Some(base)) if !base.rsplit('/').next().unwrap_or(base).contains(':') => {
            Some(format!("{base}:{tag}"))
        }
        (_, base) => base.map(str::to_owned),
    }
}

/// Every layer has its diff id.
pub(crate) fn check_layers(layers: &[Descriptor], diff_ids: &[Digest]) -> Result<()> {
    if layers.len() == diff_ids.len() {
        return Ok(());
    }
    Err(Error::Malformed(format!("image has {} layers but {} diff ids", layers.len(), diff_ids.len())))
}

/// Brings every regular file of a tar into the content store.
fn spool(content: &Content, tar: impl Read, hold: &ImageHold) -> Result<Files> {
    let mut files = Files::default();
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().map_err(Error::io("read archive"))? {
        let mut entry = entry.map_err(Error::io("read archive"))?;
        let path = normalise(&entry.path().map_err(Error::io("read archive"))?);
        let kind = entry.header().entry_type();
        if kind.is_file() {
            let (digest, len) = content.ingest(&mut entry)?;
            hold.add(&digest);
            files.blobs.insert(path, (digest, len));
        } else if (kind.is_symlink() || kind.is_hard_link())
            && let Some(target) = entry.link_name().map_err(Error::io("read archive"))?
        {
            let base = path.parent().filter(|_| kind.is_symlink()).unwrap_or(std::path::Path::new(""));
            files.links.insert(path.clone(), normalise(&base.join(target)));
        }
        if files.blobs.len() + files.links.len() > FILES_MAX {
            return Err(Error::TooLarge {
                what: "number of files in an archive".into(),
                limit: FILES_MAX as u64,
            });
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_layout_entries() {
        let entry = |key: &str, value: &str| Descriptor {
            media_type: String::new(),
            digest: Digest::of(b""),
            size: 0,
            platform: None,
            annotations: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        };
        let oci = "org.opencontainers.image.ref.name";
        let table = [
            (entry("io.containerd.image.name", "docker.io/library/a:1"), None, Some("docker.io/library/a:1")),
            (entry(oci, "docker.io/library/a:1"), Some("b"), Some("docker.io/library/a:1")),
            (entry(oci, "v2"), Some("team/app"), Some("team/app:v2")),
            (entry(oci, "v2"), Some("localhost:5000/app"), Some("localhost:5000/app:v2")),
            (entry(oci, "v2"), Some("team/app:v3"), Some("team/app:v3")),
            (entry(oci, "v2"), None, None),
            (entry("x", "y"), None, None),
        ];
        for (entry, base, want) in table {
            assert_eq!(layout_name(&entry, base).as_deref(), want);
        }
    }
}
