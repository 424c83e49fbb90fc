//! Writing images out: a docker-archive that `docker load` reads, or an OCI image layout, as one tar.
//!
//! A docker-archive written here is an OCI layout at the same time, as Docker's own are since version 25.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use serde_json::{Value, json};

use crate::config::Manifest;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::pins::ImageHold;
use crate::store::{Found, ImageStore, find, hold_image};

/// Forms of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// What `docker save` writes.
    Docker,
    /// An OCI image layout.
    Oci,
}

/// What is written, held meanwhile.
#[derive(Debug)]
pub struct Export {
    images: Vec<(String, Found, Manifest)>,
    format: ArchiveFormat,
    _hold: ImageHold,
}

impl ImageStore {
    /// Looks the images up and holds them, so that a mistake shows before anything is written.
    pub fn export(&self, images: &[String], format: ArchiveFormat) -> Result<Export> {
        let hold = self.pins.hold();
        let refs = self.refs.read();
        let mut found = Vec::new();
        for image in images {
            let one = find(refs.all(), image).ok_or_else(|| Error::NotFound(image.clone()))?;
            let (manifest, document) = self.documents(&one.target)?;
            hold_image(&hold, &one.target, &manifest, &document);
            if let Some(missing) = manifest.layers.iter().find(|l| !self.content.has(&l.digest)) {
                let message =
                    format!("blob {} of {image} is not in the store: pull the image again", missing.digest);
                return Err(Error::Malformed(message));
            }
            found.push((image.clone(), one, manifest));
        }
        Ok(Export { images: found, format, _hold: hold })
    }

    /// Writes the archive. Blocking.
    pub fn write_archive(&self, export: &Export, out: impl Write) -> Result<()> {
        let mut tar = tar::Builder::new(out);
        let mut blobs = BTreeSet::new();
        for (_, found, manifest) in &export.images {
            blobs.extend([found.target.manifest.clone(), manifest.config.digest.clone()]);
            blobs.extend(manifest.layers.iter().map(|l| l.digest.clone()));
        }
        for digest in &blobs {
            self.append_blob(&mut tar, digest)?;
        }
        let index: Vec<Value> =
            export.images.iter().flat_map(|(name, f, m)| self.entries(name, f, m)).collect();
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": index});
        append(&mut tar, "index.json", index.to_string().as_bytes())?;
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        if export.format == ArchiveFormat::Docker {
            let list: Vec<Value> =
                export.images.iter().map(|(name, f, m)| docker_entry(name, f, m)).collect();
            append(&mut tar, "manifest.json", json!(list).to_string().as_bytes())?;
        }
        tar.into_inner().and_then(|mut out| out.flush()).map_err(Error::io("write archive"))
    }

    fn append_blob<W: Write>(&self, tar: &mut tar::Builder<W>, digest: &Digest) -> Result<()> {
        let len = self.content.size(digest).ok_or_else(|| Error::NotFound(digest.to_string()))?;
        let mut header = header(len);
        let path = format!("blobs/sha256/{}", digest.hex());
        tar.append_data(&mut header, path, self.content.open_blob(digest)?)
            .map_err(Error::io("write archive"))
    }

    fn entries(&self, asked: &str, found: &Found, manifest: &Manifest) -> Vec<Value> {
        let media_type = match manifest.media_type.as_str() {
            "" => "application/vnd.oci.image.manifest.v1+json",
            given => given,
        };
        let size = self.content.size(&found.target.manifest).unwrap_or(0);
        let names = names(asked, found);
        let entry = |annotations: BTreeMap<&str, String>| json!({"mediaType": media_type, "digest": found.target.manifest, "size": size, "annotations": annotations});
        if names.is_empty() {
            return vec![entry(BTreeMap::new())];
        }
        let named = names.into_iter().map(|name| {
            let tag = name.rsplit(':').next().unwrap_or_default().to_owned();
            entry(BTreeMap::from([
                ("io.containerd.image.name", name),
                ("org.opencontainers.image.ref.name", tag),
            ]))
        });
        named.collect()
    }
}

/// The names that go along: the one asked for, or all tags where an id was given.
fn names(asked: &str, found: &Found) -> Vec<String> {
    let normal = asked.parse::<crate::Reference>().map(|r| r.to_string()).unwrap_or_default();
    match found.repo_tags.contains(&normal) {
        true => vec![normal],
        false => found.repo_tags.clone(),
    }
}

fn docker_entry(asked: &str, found: &Found, manifest: &Manifest) -> Value {
    let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    // Docker shows its own names without the host.
    let short = |name: String| {
        let name =
            name.strip_prefix("docker.io/library/").or(name.strip_prefix("docker.io/")).unwrap_or(&name);
        name.to_owned()
    };
    let tags: Vec<String> = names(asked, found).into_iter().map(short).collect();
    let layers: Vec<String> = manifest.layers.iter().map(|l| path(&l.digest)).collect();
    json!({"Config": path(&manifest.config.digest), "RepoTags": tags, "Layers": layers})
}

fn header(len: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(len);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> Result<()> {
    tar.append_data(&mut header(bytes.len() as u64), path, bytes).map_err(Error::io("write archive"))
}
