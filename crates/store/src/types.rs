//! The vocabulary of the store: values with their revisions, writes with their expectation, events, errors.

use std::sync::Arc;

use bytes::Bytes;

/// Position in the one global history of a store. Strictly increasing; the first write gets 2, as in etcd,
/// so that 0 and 1 are never the revision of an object.
pub type Revision = u64;

/// A key with its value and history counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Arc<str>,
    /// The value; empty when only keys were asked for.
    pub value: Bytes,
    /// Revision of the write that created the key (anew after each deletion).
    pub create_revision: Revision,
    /// Revision of the latest write to the key.
    pub mod_revision: Revision,
    /// Number of writes since creation, 1 for a new key.
    pub version: u64,
}

/// What must hold for a write to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The key does not exist.
    Absent,
    /// The key exists and this is its `mod_revision`.
    Revision(Revision),
}

/// What a write does to its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets the value.
    Put(Bytes),
    /// Removes the key.
    Delete,
}

/// One compare-and-set write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The key; never empty.
    pub key: String,
    /// What must hold.
    pub expect: Expect,
    /// What to do.
    pub change: Change,
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The write is durable.
    Committed {
        /// Its revision.
        revision: Revision,
        /// What it replaced or deleted.
        previous: Option<KeyValue>,
    },
    /// The expectation did not hold; nothing was written.
    Conflict {
        /// What is there instead.
        current: Option<KeyValue>,
    },
}

/// A range of keys to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Range {
    /// First key, inclusive.
    pub start: String,
    /// End of the range, exclusive; empty means no end. See [`prefix_end`].
    pub end: String,
    /// Most items to return; 0 means all.
    pub limit: usize,
    /// Revision to read at; `None` means the current one.
    pub at: Option<Revision>,
    /// Leave values out.
    pub keys_only: bool,
}

impl Range {
    /// All keys beginning with `prefix`, now.
    pub fn prefix(prefix: &str) -> Self {
        Range { start: prefix.to_owned(), end: prefix_end(prefix), ..Range::default() }
    }
}

/// The smallest string greater than every string beginning with `prefix`; empty (no end) when there is none.
pub fn prefix_end(prefix: &str) -> String {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // The next scalar value; the surrogate gap is not one.
        let next = if last == '\u{D7FF}' { Some('\u{E000}') } else { char::from_u32(last as u32 + 1) };
        if let Some(next) = next {
            chars.push(next);
            return chars.into_iter().collect();
        }
    }
    String::new()
}

/// A consistent snapshot of a range.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeResult {
    /// Revision of the snapshot.
    pub revision: Revision,
    /// Items in key order.
    pub items: Vec<KeyValue>,
    /// Whether the limit cut the range short.
    pub more: bool,
    /// Number of keys of the range after the last item.
    pub remaining_count: u64,
}

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It was created or changed.
    Put,
    /// It was deleted.
    Delete,
}

/// One committed change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Revision of the write.
    pub revision: Revision,
    /// The key.
    pub key: Arc<str>,
    /// What happened.
    pub kind: EventKind,
    /// The new value; `None` for deletions.
    pub value: Option<Bytes>,
    /// The value before; `None` for creations, and where compaction has already dropped it.
    pub previous: Option<Bytes>,
    /// Revision of the write that created the key.
    pub create_revision: Revision,
    /// Revision of the write before this one; 0 for creations.
    pub previous_revision: Revision,
    /// Number of writes since creation, this one included; 0 for deletions.
    pub version: u64,
}

impl Event {
    /// Whether this change created the key.
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.version == 1
    }
}

/// Sizes and positions of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Latest revision.
    pub revision: Revision,
    /// Revision up to which history is gone.
    pub compacted: Revision,
    /// Keys that exist now.
    pub keys: u64,
    /// Revisions kept, current ones included.
    pub revisions: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Watchers that are connected now.
    pub watchers: u64,
}

/// Why the store could not answer. Cheap to clone: one disk failure is told to every later caller.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The revision is older than what is kept.
    #[error("the requested revision has been compacted; the oldest available is {oldest}")]
    Compacted {
        /// Oldest revision that can still be read or watched from.
        oldest: Revision,
    },
    /// The revision has not happened yet.
    #[error("revision {requested} is in the future; the current revision is {current}")]
    FutureRevision {
        /// Revision asked for.
        requested: Revision,
        /// Latest revision.
        current: Revision,
    },
    /// The watcher did not keep up and was disconnected; it can resume from the last revision it saw.
    #[error("the watcher fell behind and was disconnected")]
    SlowWatcher,
    /// Another process has the data directory open.
    #[error("the data directory {path} is in use by another process")]
    Locked {
        /// The directory.
        path: String,
    },
    /// The key is empty or too long.
    #[error("invalid key: {0}")]
    InvalidKey(&'static str),
    /// The value is larger than the store takes.
    #[error("the value is larger than {limit} bytes")]
    TooLarge {
        /// Most bytes.
        limit: usize,
    },
    /// Stored bytes make no sense.
    #[error("stored data is damaged: {0}")]
    Corrupt(String),
    /// The disk or the remote store failed. After a failed write the store accepts no more writes: what the
    /// disk holds is then unknown until it is opened again.
    #[error("storage failed while {doing}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The disk took no more. What it holds is unknown as after any failed write.
    #[error(
        "no space is left for the cluster's store; free some on its disk: writing goes on by itself then"
    )]
    Full,
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// A failure of the layer below.
    pub fn failed(doing: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Error::Failed { doing, source: Arc::new(source) }
    }

    /// A commit that failed: of a full disk, or otherwise.
    pub fn of_commit(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
        while let Some(error) = cause {
            let io = error.downcast_ref::<std::io::Error>();
            if io.is_some_and(|e| matches!(e.kind(), StorageFull | QuotaExceeded)) {
                return Error::Full;
            }
            cause = error.source();
        }
        Error::failed("committing a batch", source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disks_are_told_from_broken_ones() {
        let of = |kind: std::io::ErrorKind| Error::of_commit(std::io::Error::from(kind)).to_string();
        for kind in [std::io::ErrorKind::StorageFull, std::io::ErrorKind::QuotaExceeded] {
            assert!(of(kind).starts_with("no space is left for the cluster's store"), "{}", of(kind));
        }
        assert_eq!(of(std::io::ErrorKind::BrokenPipe), "storage failed while committing a batch");
        let wrapped = Error::of_commit(fjall::Error::Io(std::io::ErrorKind::StorageFull.into()));
        assert!(matches!(wrapped, Error::Full), "{wrapped}");
    }

    #[test]
    fn prefix_ends() {
        let cases =
            [("/a/", "/a0"), ("a\u{10FFFF}", "b"), ("\u{10FFFF}", ""), ("", ""), ("\u{D7FF}", "\u{E000}")];
        for (prefix, end) in cases {
            assert_eq!(prefix_end(prefix), end, "{prefix:?}");
        }
    }
}
