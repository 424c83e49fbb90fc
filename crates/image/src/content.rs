//! Blobs by digest on disk: atomic, durable, checked.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};

/// Largest manifest or configuration read into memory; registries refuse manifests above 4 MiB.
pub(crate) const DOCUMENT_LEN_MAX: u64 = 8 << 20;
/// Directories below that of the store.
const DIRECTORIES: [&str; 3] = ["blobs/sha256", "layers", "tmp"];
/// Size of copy buffers.
const COPY_LEN: usize = 128 << 10;

/// The directories of a store.
#[derive(Debug)]
pub(crate) struct Content {
    root: PathBuf,
    next_temp: AtomicU64,
}

impl Content {
    /// Makes the directories and drops what an earlier process left unfinished. A read-only store that is complete
    /// is opened as it is.
    pub(crate) fn open(root: &Path) -> Result<Content> {
        match Self::prepare(root) {
            Err(Error::Io { source, .. })
                if source.kind() == io::ErrorKind::ReadOnlyFilesystem
                    && DIRECTORIES.iter().all(|dir| root.join(dir).is_dir()) =>
            {
                tracing::warn!(
                    directory = %root.display(),
                    "the image store is on a read-only file system: images that are there can be used, others cannot be pulled"
                );
            }
            made => made.map_err(|error| error.about_store(root))?,
        }
        Ok(Content { root: root.to_owned(), next_temp: AtomicU64::new(0) })
    }

    fn prepare(root: &Path) -> Result<()> {
        let temp = root.join("tmp");
        let is_used = fs::read_dir(&temp).is_ok_and(|mut entries| entries.next().is_some());
        if is_used {
            fs::remove_dir_all(&temp).map_err(Error::io("remove unfinished image content"))?;
        }
        for dir in DIRECTORIES {
            fs::create_dir_all(root.join(dir)).map_err(Error::io(format!("create {dir}")))?;
        }
        // Layers hold set-user-id programs that the node's users must not reach.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(root, private).map_err(Error::io("protect image store"))
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// A path under `tmp/` that nobody else uses.
    pub(crate) fn temp_path(&self) -> PathBuf {
        let n = self.next_temp.fetch_add(1, Ordering::Relaxed);
        self.root.join("tmp").join(format!("{}-{n}", std::process::id()))
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    pub(crate) fn size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.blob_path(digest)).ok().map(|m| m.len())
    }

    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<BufReader<File>> {
        let file = File::open(self.blob_path(digest)).map_err(Error::io(format!("open blob {digest}")))?;
        Ok(BufReader::with_capacity(COPY_LEN, file))
    }

    /// Reads a small document.
    pub(crate) fn read_document(&self, digest: &Digest) -> Result<Vec<u8>> {
        if self.size(digest).is_some_and(|n| n > DOCUMENT_LEN_MAX) {
            return Err(Error::TooLarge { what: format!("document {digest}"), limit: DOCUMENT_LEN_MAX });
        }
        fs::read(self.blob_path(digest)).map_err(Error::io(format!("read blob {digest}")))
    }

    /// Stores a small document.
    pub(crate) fn write_document(&self, bytes: &[u8]) -> Result<Digest> {
        let mut writer = self.writer()?;
        writer.write(bytes)?;
        writer.commit(None)
    }

    /// Stores everything that `reader` gives.
    pub(crate) fn ingest(&self, reader: &mut dyn Read) -> Result<(Digest, u64)> {
        let mut writer = self.writer()?;
        let mut buffer = vec![0; COPY_LEN];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => writer.write(&buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read archive")(e)),
            }
        }
        let len = writer.len;
        Ok((writer.commit(None)?, len))
    }

    /// Begins a blob.
    pub(crate) fn writer(&self) -> Result<BlobWriter<'_>> {
        let path = self.temp_path();
        let file = File::create_new(&path).map_err(Error::io("create blob"))?;
        Ok(BlobWriter { content: self, path, file, hasher: Hasher::default(), len: 0 })
    }

    /// All blobs.
    pub(crate) fn list(&self) -> Result<Vec<Digest>> {
        let dir = self.root.join("blobs/sha256");
        let entries = fs::read_dir(&dir).map_err(Error::io("list blobs"))?;
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|hex| format!("sha256:{hex}").parse().ok()).collect())
    }

    pub(crate) fn remove(&self, digest: &Digest) -> Result<()> {
        ignore_missing(fs::remove_file(self.blob_path(digest)))
            .map_err(Error::io(format!("remove blob {digest}")))
    }
}

/// Turns "no such file" into success.
pub(crate) fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a rename or creation in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io(format!("sync {}", dir.display())))
}

/// Replaces a file atomically and durably.
pub(crate) fn write_atomically(path: &Path, temp: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(temp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(temp, path)
    };
    write().map_err(Error::io(format!("write {}", path.display())))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// A blob being written; dropped without commit it leaves nothing.
pub(crate) struct BlobWriter<'a> {
    content: &'a Content,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    pub(crate) len: u64,
}

impl BlobWriter<'_> {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        self.file.write_all(bytes).map_err(Error::io("write blob"))
    }

    /// Makes the blob visible, if it is the one `expected`.
    pub(crate) fn commit(self, expected: Option<&Digest>) -> Result<Digest> {
        let digest = self.hasher.clone().finish();
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(Error::DigestMismatch { expected: expected.to_string(), actual: digest.to_string() });
        }
        let path = self.content.blob_path(&digest);
        if path.exists() {
            return Ok(digest);
        }
        self.file.sync_all().map_err(Error::io("sync blob"))?;
        fs::rename(&self.path, &path).map_err(Error::io("commit blob"))?;
        path.parent().map_or(Ok(()), sync_dir)?;
        Ok(digest)
    }
}

impl Drop for BlobWriter<'_> {
    fn drop(&mut self) {
        // After a commit the name is gone already.
        let _ = fs::remove_file(&self.path);
    }
}
