//! Revisioned key-value state: get, range, compare-and-set, watch, compact, with the embedded durable engine.
//!
//! One [`Store`] holds the state of a whole cluster. Every committed write gets the next number of one global
//! revision; a write is acknowledged only when it is durable; a watch delivers every committed change once, in
//! order, from any revision that has not been compacted. The registry is the only caller.
//!
//! **Invariant:** knows nothing of kinds, JSON or namespaces: keys are strings, values are bytes.

pub mod disk;
pub mod measured;
mod types;
mod watch;

pub use types::{
    Change, Error, Event, EventKind, Expect, KeyValue, Range, RangeResult, Revision, Stats, Write,
    WriteOutcome, prefix_end,
};
pub use watch::{Batch, MapBatch, WATCH_BUFFER_BATCHES, WatchSender, WatchStream, channel as watch_channel};

use async_trait::async_trait;

/// Durable, revisioned, watchable key-value state. Object-safe: callers hold an `Arc<dyn Store>`.
///
/// Every engine passes the same test suite.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The current value of `key`; `None` when it does not exist.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error>;

    /// The value `key` had at `revision`. Fails with [`Error::Compacted`] or [`Error::FutureRevision`].
    async fn get_at(&self, key: &str, revision: Revision) -> Result<Option<KeyValue>, Error>;

    /// A consistent snapshot of the keys in a range, in key order, at one revision. Pages taken with
    /// the same [`Range::at`] belong to the same snapshot.
    async fn range(&self, range: Range) -> Result<RangeResult, Error>;

    /// Applies one write if its expectation holds. Returns only when the write is durable; a conflict is
    /// an outcome, not an error. Deleting a key that does not exist is a conflict whatever was expected
    /// (with `current: None`), and takes no revision.
    async fn write(&self, write: Write) -> Result<WriteOutcome, Error>;

    /// Every committed change of keys beginning with `prefix` after revision `from` (exclusive), once and in
    /// order. `from` may be the current revision; a later one fails with [`Error::FutureRevision`], one before
    /// the compacted revision with [`Error::Compacted`]. A watcher that falls behind by more than
    /// [`WATCH_BUFFER_BATCHES`] batches is ended with [`Error::SlowWatcher`] and can resume from the last
    /// revision it saw.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, Error>;

    /// Sends every watcher an empty batch that tells it the current revision: once it arrives, the watcher
    /// has seen everything up to that revision.
    async fn request_progress(&self) -> Result<(), Error>;

    /// The revision of the latest committed write; 1 for a store that was never written to.
    async fn revision(&self) -> Result<Revision, Error>;

    /// Gives up all history before `upto`: superseded revisions are dropped in the background, and reads and
    /// watches before `upto` fail from now on. Compacting to an already compacted revision does nothing.
    async fn compact(&self, upto: Revision) -> Result<(), Error>;

    /// Sizes and positions, for metrics.
    async fn stats(&self) -> Result<Stats, Error>;
}
