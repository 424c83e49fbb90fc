//! The one writer: drains the queue of writes into one synced batch, publishes it, acknowledges it.
//!
//! Group commit without lingering: while one batch is being synced the next one collects in the queue.

use std::collections::HashMap;
use std::sync::Arc;

use fjall::PersistMode;
use tokio::sync::{mpsc, oneshot};

use super::index::Rev;
use super::record;
use super::shared::Shared;
use crate::{Change, Error, Event, EventKind, Expect, KeyValue, Revision, Write, WriteOutcome};

/// Writes that may wait for the writer; callers beyond that wait for a place.
pub const QUEUE_WRITES: usize = 4096;
/// Writes that are committed together at most: bounds the memory of a batch and the delay of its first write.
const BATCH_WRITES: usize = 1024;
/// Value bytes that are committed together at most.
const BATCH_BYTES: usize = 8 << 20;

/// A write and whom to tell.
pub struct Request {
    pub write: Write,
    pub reply: oneshot::Sender<Result<WriteOutcome, Error>>,
}

/// A batch in the making: what it will write, and the answers that wait for it.
struct Pending {
    next: Revision,
    events: Vec<Event>,
    /// Latest pending event of each key, as a position in `events`.
    latest: HashMap<Arc<str>, usize>,
    bytes: usize,
}

/// Runs until every sender is gone.
pub fn run(shared: &Shared, mut queue: mpsc::Receiver<Request>) {
    let mut replies = Vec::new();
    while let Some(first) = queue.blocking_recv() {
        let mut pending = Pending::new(shared.index.read().revision + 1);
        let mut request = Some(first);
        while let Some(Request { write, reply }) = request.take() {
            let outcome = shared.check_writable().and_then(|()| pending.add(shared, write));
            replies.push((reply, outcome));
            if replies.len() < BATCH_WRITES && pending.bytes < BATCH_BYTES {
                request = queue.try_recv().ok();
            }
        }
        let committed = commit(shared, pending.events);
        for (reply, outcome) in replies.drain(..) {
            // A caller that has gone does not undo its write.
            let _ = reply.send(match &committed {
                Ok(()) => outcome,
                Err(error) => Err(error.clone()),
            });
        }
    }
}

/// Makes events durable, then visible. A failure ends all writing: what the disk holds is then unknown.
fn commit(shared: &Shared, events: Vec<Event>) -> Result<(), Error> {
    if events.is_empty() {
        return Ok(());
    }
    let mut batch = shared.db.batch().durability(Some(PersistMode::SyncData));
    for event in &events {
        batch.insert(&shared.log, record::disk_key(event.revision), record::encode(event));
    }
    let mut committed = batch.commit();
    #[cfg(test)]
    if shared.fail_next_commit.load(std::sync::atomic::Ordering::Acquire) {
        committed = Err(fjall::Error::Io(std::io::Error::other("injected")));
    }
    if let Err(source) = std::mem::replace(&mut committed, Ok(())) {
        let error = Error::of_commit(source);
        tracing::error!(%error, "the store accepts no more writes");
        // Only this thread commits, and it did not come here before: nothing is set yet.
        let _ = shared.failed.set(error.clone());
        return Err(error);
    }
    shared.publish(&events.into());
    Ok(())
}

impl Pending {
    fn new(next: Revision) -> Self {
        Pending { next, events: Vec::new(), latest: HashMap::new(), bytes: 0 }
    }

    /// What `key` will be once the pending events are committed.
    fn current(&self, shared: &Shared, key: &str) -> Result<Option<KeyValue>, Error> {
        if let Some(&position) = self.latest.get(key) {
            let event = &self.events[position];
            return Ok(event.value.clone().map(|value| KeyValue {
                key: event.key.clone(),
                value,
                create_revision: event.create_revision,
                mod_revision: event.revision,
                version: event.version,
            }));
        }
        let Some((key, rev)) = shared.index.read().current(key) else { return Ok(None) };
        stored(shared, key, rev).map(Some)
    }

    /// Judges one write and adds it to the batch if its expectation holds.
    fn add(&mut self, shared: &Shared, write: Write) -> Result<WriteOutcome, Error> {
        let current = self.current(shared, &write.key)?;
        let holds = match (write.expect, &current) {
            (Expect::Any, _) | (Expect::Absent, None) => true,
            (Expect::Revision(revision), Some(current)) => current.mod_revision == revision,
            _ => false,
        };
        if !holds || (write.change == Change::Delete && current.is_none()) {
            return Ok(WriteOutcome::Conflict { current });
        }
        let revision = self.next;
        let (kind, value) = match write.change {
            Change::Put(value) => (EventKind::Put, Some(value)),
            Change::Delete => (EventKind::Delete, None),
        };
        let event = Event {
            revision,
            key: current.as_ref().map_or_else(|| Arc::from(write.key), |current| current.key.clone()),
            kind,
            create_revision: current.as_ref().map_or(revision, |current| current.create_revision),
            previous_revision: current.as_ref().map_or(0, |current| current.mod_revision),
            version: if kind == EventKind::Put { current.as_ref().map_or(0, |c| c.version) + 1 } else { 0 },
            previous: current.as_ref().map(|current| current.value.clone()),
            value,
        };
        self.bytes += event.key.len() + event.value.as_ref().map_or(0, bytes::Bytes::len);
        self.latest.insert(event.key.clone(), self.events.len());
        self.events.push(event);
        self.next += 1;
        Ok(WriteOutcome::Committed { revision, previous: current })
    }
}

/// Reads the current value of a key, which compaction never drops.
fn stored(shared: &Shared, key: Arc<str>, rev: Rev) -> Result<KeyValue, Error> {
    shared
        .key_value(key, rev)?
        .ok_or_else(|| Error::Corrupt(format!("the value of revision {} is missing", rev.revision)))
}
