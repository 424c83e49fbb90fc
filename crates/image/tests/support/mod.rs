//! Builds small images for tests, byte by byte.
#![allow(dead_code)]

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use image::{Digest, ImageStore, StoreConfig};
use tar::{Builder, EntryType, Header};

/// A layer as an uncompressed tar.
pub struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Layer {
        Layer(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, mode: u32, len: usize) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_600_000_000);
        header.set_size(len as u64);
        header
    }

    /// Writes the name as it is: the builder's own setters refuse `..`.
    fn raw(mut self, mut header: Header, path: &str, data: &[u8]) -> Layer {
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub fn file(self, path: &str, data: &[u8]) -> Layer {
        self.raw(Self::header(EntryType::Regular, 0o644, data.len()), path, data)
    }

    pub fn file_mode(self, path: &str, mode: u32, data: &[u8]) -> Layer {
        self.raw(Self::header(EntryType::Regular, mode, data.len()), path, data)
    }

    pub fn dir(self, path: &str, mode: u32) -> Layer {
        self.raw(Self::header(EntryType::Directory, mode, 0), path, b"")
    }

    pub fn link(self, kind: EntryType, path: &str, target: &str) -> Layer {
        let mut header = Self::header(kind, 0o777, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.raw(header, path, b"")
    }

    pub fn xattr(mut self, path: &str, key: &str, value: &[u8]) -> Layer {
        let key = format!("SCHILY.xattr.{key}");
        self.0.append_pax_extensions([(key.as_str(), value)]).unwrap();
        self.file(path, b"x")
    }

    pub fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn config_json(diff_ids: &[Digest], config: &str) -> String {
    let ids: Vec<String> = diff_ids.iter().map(|d| format!("\"{d}\"")).collect();
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{config},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    )
}

/// A docker-archive of images given as tags and layers.
pub fn docker_archive(images: &[(&[&str], &[Vec<u8>], &str)]) -> Vec<u8> {
    let mut archive = Layer::new();
    let mut manifest = Vec::new();
    for (n, (tags, layers, config)) in images.iter().enumerate() {
        let diff_ids: Vec<Digest> = layers.iter().map(|l| Digest::of(l)).collect();
        let mut names = Vec::new();
        for (i, layer) in layers.iter().enumerate() {
            names.push(format!("\"{n}-{i}/layer.tar\""));
            archive = archive.file(&format!("{n}-{i}/layer.tar"), layer);
        }
        archive = archive.file(&format!("{n}.json"), config_json(&diff_ids, config).as_bytes());
        let tags: Vec<String> = tags.iter().map(|t| format!("\"{t}\"")).collect();
        manifest.push(format!(
            r#"{{"Config":"{n}.json","RepoTags":[{}],"Layers":[{}]}}"#,
            tags.join(","),
            names.join(",")
        ));
    }
    archive.file("manifest.json", format!("[{}]", manifest.join(",")).as_bytes()).done()
}

pub fn open(root: &Path) -> Arc<ImageStore> {
    ImageStore::open(StoreConfig {
        root: root.to_owned(),
        insecure_registries: Vec::new(),
        registries: Default::default(),
        ca_file: None,
        silence_max: StoreConfig::SILENCE_MAX,
        clock: stdx::SystemClock::shared(),
    })
    .unwrap()
}
