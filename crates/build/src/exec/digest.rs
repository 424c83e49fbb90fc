//! Digests of what a step reads: names, modes and contents, so that a touched file alone changes nothing.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use image::{Digest, Hasher};
use parking_lot::Mutex;

use super::tree::{Entry, Found, Tree};
use crate::error::{Error, Result};
use crate::pattern::Ignore;

/// Most files whose digests are remembered: some ten megabytes.
const REMEMBERED_MAX: usize = 100_000;
/// Size of read buffers.
const BUFFER_LEN: usize = 128 << 10;

/// What tells that a file is as it was.
#[derive(PartialEq, Eq, Hash)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Digests of files read before.
#[derive(Default)]
pub(crate) struct Digests(Mutex<HashMap<Stamp, Digest>>);

impl std::fmt::Debug for Digests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Digests").finish_non_exhaustive()
    }
}

impl Digests {
    fn file(&self, entry: &Entry) -> Result<Digest> {
        let m = &entry.metadata;
        let stamp = Stamp {
            device: m.dev(),
            inode: m.ino(),
            len: m.len(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        };
        if let Some(known) = self.0.lock().get(&stamp) {
            return Ok(known.clone());
        }
        let context = || format!("read {}", entry.relative.display());
        let mut file = File::open(&entry.full).map_err(Error::io(context()))?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; BUFFER_LEN];
        loop {
            let read = std::io::Read::read(&mut file, &mut buffer).map_err(Error::io(context()))?;
            if read == 0 {
                break;
            }
            hasher.update(buffer.get(..read).unwrap_or_default());
        }
        let digest = hasher.finish();
        let mut known = self.0.lock();
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert(stamp, digest.clone());
        Ok(digest)
    }

    /// Digest of everything at and below what was found.
    pub(super) fn of(&self, tree: &Tree, found: &Found, exclude: &Ignore) -> Result<Digest> {
        let mut all = Hasher::default();
        tree.walk(found, exclude, &mut |entry| {
            let m = &entry.metadata;
            all.update(entry.relative.as_os_str().as_bytes());
            all.update(&[0]);
            all.update(&m.mode().to_le_bytes());
            if tree.keep_owner {
                all.update(&m.uid().to_le_bytes());
                all.update(&m.gid().to_le_bytes());
            }
            let kind = m.file_type();
            if kind.is_file() {
                all.update(self.file(entry)?.as_str().as_bytes());
            } else if kind.is_symlink() {
                let target = fs::read_link(&entry.full).map_err(Error::io("read link"))?;
                all.update(target.as_os_str().as_bytes());
            } else if kind.is_char_device() || kind.is_block_device() {
                all.update(&m.rdev().to_le_bytes());
            }
            all.update(&[0]);
            Ok(())
        })?;
        Ok(all.finish())
    }
}
