//! From a layer's directory to its tar: the other direction of `unpack`.
//!
//! The same directory always gives the same bytes: names are sorted, times are whole seconds, owners are
//! numbers. What overlayfs uses to hide files becomes whiteouts again.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};

use crate::error::{Error, Result};
use crate::unpack::LayerUsage;

/// Bytes of a tar record.
const RECORD_LEN: u64 = 512;
/// Longest list of extended attributes of one file, as in the kernel.
const XATTR_LIST_LEN_MAX: usize = 64 << 10;
/// Size of copy buffers.
const COPY_LEN: usize = 128 << 10;
/// Longest name and link in a plain header.
const NAME_LEN: usize = 100;
/// Largest user and group id in a plain header.
const ID_MAX: u64 = 0o7_777_777;

struct Packer<'a> {
    root: &'a Path,
    out: &'a mut dyn Write,
    /// Names of files that have further links, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    usage: LayerUsage,
    buffer: Vec<u8>,
}

/// Writes the layer in `root` as a tar.
pub(crate) fn pack_layer(root: &Path, out: &mut dyn Write) -> Result<LayerUsage> {
    let mut packer =
        Packer { root, out, links: HashMap::new(), usage: LayerUsage::default(), buffer: vec![0; COPY_LEN] };
    packer.directory(Path::new(""))?;
    packer.write(&[0; 2 * RECORD_LEN as usize])?;
    Ok(packer.usage)
}

fn at(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    Error::io(format!("{what} {}", path.display()))
}

impl Packer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::io("write layer"))
    }

    fn directory(&mut self, relative: &Path) -> Result<()> {
        let full = self.root.join(relative);
        let mut names = Vec::new();
        for entry in fs::read_dir(&full).map_err(at("list", &full))? {
            names.push(entry.map_err(at("list", &full))?.file_name());
        }
        names.sort();
        for name in names {
            let path = relative.join(&name);
            let full = self.root.join(&path);
            let metadata = fs::symlink_metadata(&full).map_err(at("stat", &full))?;
            self.usage.inodes += 1;
            let kind = metadata.file_type();
            if kind.is_char_device() && metadata.rdev() == 0 {
                self.whiteout(relative, name.as_bytes(), &metadata)?;
            } else if kind.is_dir() {
                self.entry(&path, &full, &metadata, EntryType::Directory)?;
                if xattr(&full, "trusted.overlay.opaque")?.is_some_and(|v| v == b"y") {
                    self.whiteout(&path, b".wh..opq", &metadata)?;
                }
                self.directory(&path)?;
            } else if !kind.is_socket() {
                self.other(&path, &full, &metadata)?;
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, dir: &Path, hidden: &[u8], metadata: &Metadata) -> Result<()> {
        let mut name = b".wh.".to_vec();
        name.extend_from_slice(hidden);
        let path = dir.join(std::ffi::OsStr::from_bytes(&name));
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_size(0);
        self.put(header, path.as_os_str().as_bytes(), b"", Vec::new())
    }

    fn other(&mut self, path: &Path, full: &Path, metadata: &Metadata) -> Result<()> {
        let kind = metadata.file_type();
        if metadata.nlink() > 1 {
            let key = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&key).cloned() {
                let mut header = plain_header(metadata, EntryType::Link);
                header.set_size(0);
                return self.put(
                    header,
                    path.as_os_str().as_bytes(),
                    first.as_os_str().as_bytes(),
                    Vec::new(),
                );
            }
            self.links.insert(key, path.to_owned());
        }
        let kind = match () {
            () if kind.is_symlink() => EntryType::Symlink,
            () if kind.is_char_device() => EntryType::Char,
            () if kind.is_block_device() => EntryType::Block,
            () if kind.is_fifo() => EntryType::Fifo,
            () => EntryType::Regular,
        };
        self.entry(path, full, metadata, kind)
    }

    fn entry(&mut self, path: &Path, full: &Path, metadata: &Metadata, kind: EntryType) -> Result<()> {
        let mut header = plain_header(metadata, kind);
        let mut extensions = Vec::new();
        let mut target = Vec::new();
        match kind {
            EntryType::Symlink => {
                target =
                    fs::read_link(full).map_err(at("read link", full))?.into_os_string().into_encoded_bytes();
            }
            EntryType::Char | EntryType::Block => {
                let number = |e: io::Error| Error::Malformed(format!("{}: {e}", path.display()));
                header.set_device_major(rustix::fs::major(metadata.rdev())).map_err(number)?;
                header.set_device_minor(rustix::fs::minor(metadata.rdev())).map_err(number)?;
            }
            _ => {}
        }
        if kind != EntryType::Symlink {
            for (name, value) in xattrs(full)? {
                extensions.push((format!("SCHILY.xattr.{name}"), value));
            }
        }
        for (key, id) in [("uid", metadata.uid()), ("gid", metadata.gid())] {
            if u64::from(id) > ID_MAX {
                extensions.push((key.to_owned(), id.to_string().into_bytes()));
            }
        }
        let mut name = path.as_os_str().as_bytes().to_vec();
        if kind == EntryType::Directory {
            name.push(b'/');
        }
        self.put(header, &name, &target, extensions)?;
        if kind == EntryType::Regular {
            self.content(full, metadata.len())?;
        }
        Ok(())
    }

    /// Writes one header, and before it what does not fit into it.
    fn put(
        &mut self,
        mut header: Header,
        name: &[u8],
        target: &[u8],
        mut extensions: Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        let long = |text: &[u8]| text.len() > NAME_LEN || !text.is_ascii();
        if long(name) {
            extensions.push(("path".into(), name.to_vec()));
        }
        if long(target) {
            extensions.push(("linkpath".into(), target.to_vec()));
        }
        if !extensions.is_empty() {
            extensions.sort();
            let mut body = Vec::new();
            extensions.iter().for_each(|(key, value)| pax_record(&mut body, key, value));
            let mut pax = Header::new_ustar();
            pax.set_entry_type(EntryType::XHeader);
            pax.set_mode(0o644);
            pax.set_size(body.len() as u64);
            fill(&mut pax.as_old_mut().name, b"PaxHeaders.0/extended");
            pax.set_cksum();
            self.write(pax.as_bytes())?;
            self.write(&body)?;
            self.pad(body.len() as u64)?;
        }
        fill(&mut header.as_old_mut().name, name);
        fill(&mut header.as_old_mut().linkname, target);
        header.set_cksum();
        self.write(header.as_bytes())
    }

    fn content(&mut self, full: &Path, len: u64) -> Result<()> {
        let mut file = File::open(full).map_err(at("open", full))?;
        let mut left = len;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = file.read(&mut self.buffer[..want]).map_err(at("read", full))?;
            if read == 0 {
                return Err(Error::Malformed(format!(
                    "{} has become shorter while it was read",
                    full.display()
                )));
            }
            self.out.write_all(&self.buffer[..read]).map_err(Error::io("write layer"))?;
            left -= read as u64;
        }
        self.usage.bytes += len;
        self.pad(len)
    }

    fn pad(&mut self, len: u64) -> Result<()> {
        let rest = len.next_multiple_of(RECORD_LEN) - len;
        self.write(&[0; RECORD_LEN as usize][..usize::try_from(rest).unwrap_or(0)])
    }
}

fn plain_header(metadata: &Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(u64::from(metadata.uid()).min(ID_MAX));
    header.set_gid(u64::from(metadata.gid()).min(ID_MAX));
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(if kind == EntryType::Regular { metadata.len() } else { 0 });
    header
}

fn fill(field: &mut [u8], text: &[u8]) {
    let len = field.len().min(text.len());
    field[..len].copy_from_slice(&text[..len]);
}

/// `len key=value\n`, where the length counts itself.
fn pax_record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len.to_string().len() + rest != len {
        len = len.to_string().len() + rest;
    }
    out.extend_from_slice(format!("{len} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn xattr(path: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0; XATTR_LIST_LEN_MAX];
    match rustix::fs::lgetxattr(path, name, value.as_mut_slice()) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(at("read attribute of", path)(e.into())),
    }
}

/// The attributes that belong to the file, not to overlayfs.
fn xattrs(path: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut list = vec![0u8; XATTR_LIST_LEN_MAX];
    let len = match rustix::fs::llistxattr(path, list.as_mut_slice()) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(at("list attributes of", path)(e.into())),
    };
    let mut found = Vec::new();
    for name in list.get(..len).unwrap_or_default().split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if name == "trusted.overlay.redirect" || name == "trusted.overlay.metacopy" {
            let message =
                format!("{}: this host's overlayfs uses {name}, which layers cannot carry", path.display());
            return Err(Error::Malformed(message));
        }
        if name.starts_with("trusted.overlay.") {
            continue;
        }
        if let Some(value) = xattr(path, name)? {
            found.push((name.to_owned(), value));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_lengths_count_themselves() {
        for value in ["x", "1234", "12345", &"y".repeat(90), &"z".repeat(990)] {
            let mut out = Vec::new();
            pax_record(&mut out, "k", value.as_bytes());
            let text = String::from_utf8(out).unwrap();
            let len: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(len, text.len(), "{text:?}");
            assert!(text.ends_with(&format!(" k={value}\n")));
        }
    }
}
