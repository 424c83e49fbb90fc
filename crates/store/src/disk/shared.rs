//! What the writer, the readers and the watchers of a disk store share, and the two ways to change it:
//! publishing a committed batch, and compaction.
//!
//! Lock order: hub, index, ring. Publishing holds the hub throughout, so whoever registers a watch sees
//! either everything of a batch or nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use fjall::{Database, Keyspace, PersistMode};
use parking_lot::{Mutex, RwLock};
use tokio::sync::SetOnce;

use super::index::{Index, Rev};
use super::record;
use super::ring::Ring;
use crate::watch::{Batch, WatchSender, WatchStream, channel};
use crate::{Error, Event, KeyValue, Revision, WATCH_BUFFER_BATCHES};

/// Keys whose history one step of a compaction looks at: bounds the time the index is locked to about a
/// millisecond.
const COMPACTION_KEYS: usize = 4096;
/// Revisions that catching up reads from disk at a time.
const CATCH_UP_REVISIONS: usize = 1024;
/// Key of the compacted revision in the meta keyspace.
pub const META_COMPACTED: &str = "compacted";

/// State of a disk store.
pub struct Shared {
    pub db: Database,
    /// revision -> record
    pub log: Keyspace,
    /// positions that must survive
    pub meta: Keyspace,
    pub index: RwLock<Index>,
    pub ring: RwLock<Ring>,
    pub hub: Mutex<Vec<Watcher>>,
    /// The failure that ended writing, told to every later writer.
    pub failed: SetOnce<Error>,
    pub closed: AtomicBool,
    /// One compaction at a time.
    pub compacting: Mutex<()>,
    #[cfg(test)]
    pub fail_next_commit: AtomicBool,
}

/// A connected watcher.
pub struct Watcher {
    prefix: Arc<str>,
    sender: WatchSender,
}

impl Shared {
    /// The error that ended writing, if any.
    pub fn check_writable(&self) -> Result<(), Error> {
        match self.failed.get() {
            Some(error) => Err(error.clone()),
            None if self.closed.load(Ordering::Acquire) => Err(Error::Closed),
            None => Ok(()),
        }
    }

    /// The value written at `revision`; `None` when compaction has dropped it.
    pub fn value(&self, revision: Revision) -> Result<Option<Bytes>, Error> {
        if let Some(value) = self.ring.read().value(revision) {
            return Ok(Some(value));
        }
        let found =
            self.log.get(record::disk_key(revision)).map_err(|e| Error::failed("reading a value", e))?;
        // A copy: a slice would keep the whole block of its neighbours in memory.
        found.map(|bytes| Ok(Bytes::copy_from_slice(record::decode(&bytes)?.value))).transpose()
    }

    /// The key and value of an index entry; `None` when compaction has dropped it meanwhile.
    pub fn key_value(&self, key: Arc<str>, rev: Rev) -> Result<Option<KeyValue>, Error> {
        let value = self.value(rev.revision)?;
        Ok(value.map(|value| KeyValue {
            key,
            value,
            create_revision: rev.create_revision,
            mod_revision: rev.revision,
            version: rev.version,
        }))
    }

    /// Makes committed events visible: to readers, then to watchers.
    pub fn publish(&self, events: &Arc<[Event]>) {
        let Some(last) = events.last() else { return };
        let mut hub = self.hub.lock();
        {
            let mut index = self.index.write();
            for event in events.iter() {
                index.apply_event(event);
            }
        }
        {
            let mut ring = self.ring.write();
            for event in events.iter() {
                ring.push(event.clone());
            }
        }
        hub.retain(|watcher| watcher.offer(events, last.revision));
    }

    /// Tells every watcher the current revision.
    pub fn publish_progress(&self) {
        let mut hub = self.hub.lock();
        let revision = self.index.read().revision;
        let nothing: Arc<[Event]> = Arc::new([]);
        hub.retain(|watcher| watcher.sender.try_send(Batch { revision, events: nothing.clone() }));
    }

    /// Starts a watch. One that is far behind is served from disk by a task of its own until it has caught up.
    pub fn watch(self: &Arc<Self>, prefix: &str, from: Revision) -> Result<WatchStream, Error> {
        let mut hub = self.hub.lock();
        let latest = {
            let index = self.index.read();
            index.check_readable(from)?;
            index.revision
        };
        let (sender, stream) = channel(WATCH_BUFFER_BATCHES);
        let prefix: Arc<str> = Arc::from(prefix);
        let ring = self.ring.read();
        if ring.covers(from, latest) {
            let events = ring.after(from, &prefix);
            let watcher = Watcher { prefix, sender };
            if events.is_empty() || watcher.sender.try_send(Batch { revision: latest, events: events.into() })
            {
                hub.push(watcher);
            }
        } else {
            drop(ring);
            drop(hub);
            tokio::spawn(catch_up(Arc::downgrade(self), Watcher { prefix, sender }, from));
        }
        Ok(stream)
    }

    /// Moves a watcher that has seen everything up to `from` over to the hub if the ring covers the rest.
    fn join_hub(&self, watcher: Watcher, from: Revision) -> Option<Watcher> {
        let mut hub = self.hub.lock();
        let latest = self.index.read().revision;
        let ring = self.ring.read();
        if !ring.covers(from, latest) {
            return Some(watcher);
        }
        let events = ring.after(from, &watcher.prefix);
        if events.is_empty() || watcher.sender.try_send(Batch { revision: latest, events: events.into() }) {
            hub.push(watcher);
        }
        None
    }

    /// Reads the next events after `from` from disk. The batch's revision is how far was read.
    fn read_history(&self, prefix: &str, from: Revision) -> Result<Batch, Error> {
        let latest = self.index.read().revision;
        let mut events = Vec::new();
        let mut revision = from;
        for guard in
            self.log.range(record::disk_key(from + 1)..=record::disk_key(latest)).take(CATCH_UP_REVISIONS)
        {
            let (key, bytes) = guard.into_inner().map_err(|e| Error::failed("reading history", e))?;
            revision = record::revision_of(&key)?;
            let record = record::decode(&bytes)?;
            if !record.key.starts_with(prefix) {
                continue;
            }
            let previous = match record.previous_revision {
                0 => None,
                previous => self.value(previous)?,
            };
            events.push(record.to_event(revision, previous));
        }
        if revision == from {
            // Nothing is left on disk after it: compaction can only have dropped what it checks below.
            revision = latest;
        }
        // Compaction may have run while reading: then events may be missing above.
        let compacted = self.index.read().compacted;
        if from < compacted {
            return Err(Error::Compacted { oldest: compacted });
        }
        Ok(Batch { revision, events: events.into() })
    }

    /// Drops superseded revisions up to the compacted revision, in bounded steps.
    pub fn drop_superseded(&self) -> Result<(), Error> {
        let _one = self.compacting.lock();
        let mut resume = None;
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Ok(());
            }
            let step = self.index.write().drop_superseded(resume.as_ref(), COMPACTION_KEYS);
            self.remove_from_disk(&step.revisions)?;
            resume = step.resume;
            if resume.is_none() {
                return Ok(());
            }
        }
    }

    /// Removes records. Needs no sync: if it is lost, the next opening finds them superseded again.
    pub fn remove_from_disk(&self, revisions: &[Revision]) -> Result<(), Error> {
        let mut batch = self.db.batch().durability(Some(PersistMode::Buffer));
        for revision in revisions {
            batch.remove(&self.log, record::disk_key(*revision));
        }
        batch.commit().map_err(|e| Error::failed("dropping compacted revisions", e))
    }
}

impl Watcher {
    /// Hands over what concerns this watcher; false when it has gone.
    fn offer(&self, events: &Arc<[Event]>, revision: Revision) -> bool {
        let matching = events.iter().filter(|event| event.key.starts_with(&*self.prefix)).count();
        let events = match matching {
            0 => return !self.sender.is_closed(),
            n if n == events.len() => events.clone(),
            _ => events.iter().filter(|event| event.key.starts_with(&*self.prefix)).cloned().collect(),
        };
        self.sender.try_send(Batch { revision, events })
    }
}

/// Serves a watcher from disk until the ring covers the rest. Waits for a slow watcher instead of
/// disconnecting it: nothing piles up meanwhile.
async fn catch_up(store: std::sync::Weak<Shared>, mut watcher: Watcher, mut from: Revision) {
    loop {
        let Some(shared) = store.upgrade() else { return };
        if shared.closed.load(Ordering::Acquire) {
            return;
        }
        let prefix = watcher.prefix.clone();
        let reader = shared.clone();
        let read = tokio::task::spawn_blocking(move || reader.read_history(&prefix, from)).await;
        let batch = match read {
            Ok(Ok(batch)) => batch,
            Ok(Err(error)) => return watcher.sender.end(error),
            Err(join) => return watcher.sender.end(Error::failed("reading history", join)),
        };
        from = batch.revision;
        drop(shared);
        if !batch.events.is_empty() && !watcher.sender.send(batch).await {
            return;
        }
        // Room for the batch that completes the hand-over.
        if !watcher.sender.wait_for_room().await {
            return;
        }
        let Some(shared) = store.upgrade() else { return };
        match shared.join_hub(watcher, from) {
            None => return,
            Some(behind) => watcher = behind,
        }
    }
}
