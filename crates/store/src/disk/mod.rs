//! The embedded engine: a revision-keyed log in an LSM tree, an ordered index of keys in memory.
//!
//! Writes go through one writer thread (`writer`), which syncs a whole batch at once and then publishes it
//! to readers and watchers (`shared`). Values are not held in memory beyond the latest events (`ring`):
//! the registry's watch cache has the current ones.

mod index;
mod record;
mod ring;
mod shared;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use async_trait::async_trait;
use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{SetOnce, mpsc, oneshot};

use self::index::{Index, Page, Rev};
use self::ring::Ring;
use self::shared::{META_COMPACTED, Shared};
use self::writer::{QUEUE_WRITES, Request};
use crate::{
    Change, Error, KeyValue, Range, RangeResult, Revision, Stats, Store, WatchStream, Write, WriteOutcome,
};

/// Longest key in bytes. Names and namespaces of objects are at most 253 characters each.
const KEY_BYTES_MAX: usize = 4096;
/// Largest value in bytes; the API server's own limits are lower.
const VALUE_BYTES_MAX: usize = 16 << 20;
/// Items up to which a range is read on the calling task: each is a lookup in memory or in the page cache.
const INLINE_ITEMS: usize = 16;
/// Attempts to read a current range while compaction keeps dropping what was about to be read.
const RANGE_ATTEMPTS: usize = 8;
/// Files the engine keeps open.
const OPEN_FILES: usize = 128;

/// Sizes of the engine. The defaults fit the memory budget of a small node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bytes of disk blocks to cache.
    pub block_cache_bytes: u64,
    /// Bytes of writes to collect in memory before they are sorted onto disk.
    pub memtable_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { block_cache_bytes: 4 << 20, memtable_bytes: 8 << 20 }
    }
}

/// A store in a directory of this machine.
pub struct DiskStore {
    shared: Arc<Shared>,
    queue: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

impl DiskStore {
    /// Waits until a commit fails, which ends all writing to this store: why it did.
    pub async fn failed(&self) -> Error {
        self.shared.failed.wait().await.clone()
    }

    /// Opens the store in `directory`, making it if it does not exist. Blocks while it reads the log.
    /// Fails with [`Error::Locked`] while another process, or another store of this one, has it open.
    pub fn open(directory: &Path, options: Options) -> Result<DiskStore, Error> {
        let opening = |error| match error {
            fjall::Error::Locked => Error::Locked { path: directory.display().to_string() },
            other => Error::failed("opening the data directory", other),
        };
        std::fs::create_dir_all(directory).map_err(|e| Error::failed("making the data directory", e))?;
        let db = Database::builder(directory)
            .cache_size(options.block_cache_bytes)
            .worker_threads(1)
            .max_cached_files(Some(OPEN_FILES))
            .open()
            .map_err(opening)?;
        let sized = || KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes);
        let log = db.keyspace("log", sized).map_err(opening)?;
        let meta = db.keyspace("meta", sized).map_err(opening)?;
        let compacted = match meta.get(META_COMPACTED).map_err(opening)? {
            Some(bytes) => record::revision_of(&bytes)?,
            None => 0,
        };
        let index = recover(&log, compacted)?;
        let shared = Arc::new(Shared {
            db,
            log,
            meta,
            index: RwLock::new(index),
            ring: RwLock::new(Ring::default()),
            hub: Mutex::new(Vec::new()),
            failed: SetOnce::new(),
            closed: AtomicBool::new(false),
            compacting: Mutex::new(()),
            #[cfg(test)]
            fail_next_commit: AtomicBool::new(false),
        });
        // A compaction that was cut short goes on.
        shared.drop_superseded()?;
        let (sender, receiver) = mpsc::channel(QUEUE_WRITES);
        let writing = shared.clone();
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer::run(&writing, receiver))
            .map_err(|e| Error::failed("starting the writer", e))?;
        Ok(DiskStore { shared, queue: Some(sender), writer: Some(writer) })
    }

    /// Reads the values of a page; `None` when compaction has dropped one of them meanwhile.
    fn fill(shared: &Shared, page: &Page, keys_only: bool) -> Result<Option<Vec<KeyValue>>, Error> {
        let mut items = Vec::with_capacity(page.items.len());
        for (key, rev) in &page.items {
            if keys_only {
                items.push(KeyValue {
                    key: key.clone(),
                    value: Default::default(),
                    create_revision: rev.create_revision,
                    mod_revision: rev.revision,
                    version: rev.version,
                });
                continue;
            }
            match shared.key_value(key.clone(), *rev)? {
                Some(item) => items.push(item),
                None => return Ok(None),
            }
        }
        Ok(Some(items))
    }

    /// One range, on the calling thread.
    fn read_range(shared: &Shared, range: &Range, mut page: Page) -> Result<RangeResult, Error> {
        for _ in 0..RANGE_ATTEMPTS {
            if let Some(items) = Self::fill(shared, &page, range.keys_only)? {
                return Ok(RangeResult {
                    revision: page.revision,
                    items,
                    more: page.remaining > 0,
                    remaining_count: page.remaining,
                });
            }
            // Compaction overtook this snapshot: fails if a revision was asked for, starts anew if not.
            page = shared.index.read().page(&range.start, &range.end, range.limit, range.at)?;
        }
        Err(Error::Compacted { oldest: shared.index.read().compacted })
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.queue = None;
        // Ends after the batch it is working on. Then the directory can be opened again.
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        self.shared.hub.lock().clear();
        if let Err(error) = self.shared.db.persist(PersistMode::SyncAll) {
            tracing::warn!(%error, "the store could not be synced when it was closed");
        }
    }
}

/// Rebuilds the index from the log.
fn recover(log: &fjall::Keyspace, compacted: Revision) -> Result<Index, Error> {
    let mut index = Index::new(compacted);
    let mut names: std::collections::HashSet<Arc<str>> = std::collections::HashSet::new();
    for guard in log.iter() {
        let (key, bytes) = guard.into_inner().map_err(|e| Error::failed("reading the log", e))?;
        let record = record::decode(&bytes)?;
        let name = match names.get(record.key) {
            Some(name) => name.clone(),
            None => {
                let name: Arc<str> = Arc::from(record.key);
                names.insert(name.clone());
                name
            }
        };
        let revision = record::revision_of(&key)?;
        let rev = Rev { revision, create_revision: record.create_revision, version: record.version };
        index.apply(&name, rev);
    }
    Ok(index)
}

#[async_trait]
impl Store for DiskStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        for _ in 0..RANGE_ATTEMPTS {
            let Some((key, rev)) = self.shared.index.read().current(key) else { return Ok(None) };
            if let Some(found) = self.shared.key_value(key, rev)? {
                return Ok(Some(found));
            }
        }
        Err(Error::Compacted { oldest: self.shared.index.read().compacted })
    }

    async fn get_at(&self, key: &str, revision: Revision) -> Result<Option<KeyValue>, Error> {
        let found = {
            let index = self.shared.index.read();
            index.check_readable(revision)?;
            index.at(key, revision)
        };
        let Some((key, rev)) = found else { return Ok(None) };
        match self.shared.key_value(key, rev)? {
            Some(found) => Ok(Some(found)),
            None => Err(Error::Compacted { oldest: self.shared.index.read().compacted }),
        }
    }

    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        let page = self.shared.index.read().page(&range.start, &range.end, range.limit, range.at)?;
        if page.items.len() <= INLINE_ITEMS || range.keys_only {
            return Self::read_range(&self.shared, &range, page);
        }
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || Self::read_range(&shared, &range, page))
            .await
            .map_err(|e| Error::failed("reading a range", e))?
    }

    async fn write(&self, write: Write) -> Result<WriteOutcome, Error> {
        if write.key.is_empty() || write.key.len() > KEY_BYTES_MAX {
            return Err(Error::InvalidKey("a key must have 1 to 4096 bytes"));
        }
        if matches!(&write.change, Change::Put(value) if value.len() > VALUE_BYTES_MAX) {
            return Err(Error::TooLarge { limit: VALUE_BYTES_MAX });
        }
        self.shared.check_writable()?;
        let (reply, answer) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or(Error::Closed)?;
        queue.send(Request { write, reply }).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, Error> {
        self.shared.watch(prefix, from)
    }

    async fn request_progress(&self) -> Result<(), Error> {
        self.shared.publish_progress();
        Ok(())
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.shared.index.read().revision)
    }

    async fn compact(&self, upto: Revision) -> Result<(), Error> {
        self.shared.check_writable()?;
        {
            let index = self.shared.index.read();
            if upto <= index.compacted {
                return Ok(());
            }
            index.check_readable(upto)?;
        }
        let shared = self.shared.clone();
        let persisted = tokio::task::spawn_blocking(move || {
            // Durable before anything is dropped: a revision that was refused once stays refused, and the
            // current revision is never forgotten with the tombstone that held it.
            let mut batch = shared.db.batch().durability(Some(PersistMode::SyncData));
            batch.insert(&shared.meta, META_COMPACTED, record::disk_key(upto).to_vec());
            batch.commit().map_err(|e| Error::failed("noting the compacted revision", e))?;
            let mut index = shared.index.write();
            index.compacted = index.compacted.max(upto);
            Ok(())
        });
        persisted.await.map_err(|e| Error::failed("compacting", e))??;
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = shared.drop_superseded() {
                tracing::error!(%error, "compaction stopped");
            }
        });
        Ok(())
    }

    async fn stats(&self) -> Result<Stats, Error> {
        let disk_bytes = self.shared.db.disk_space().map_err(|e| Error::failed("measuring the store", e))?;
        let watchers = self.shared.hub.lock().len() as u64;
        let index = self.shared.index.read();
        Ok(Stats {
            revision: index.revision,
            compacted: index.compacted,
            keys: index.live,
            revisions: index.kept,
            disk_bytes,
            watchers,
        })
    }
}

#[cfg(test)]
mod tests;
