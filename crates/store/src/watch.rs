//! The receiving end of a watch: a bounded stream of batches that ends with its reason.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::sync::mpsc;

use crate::{Error, Event, Revision};

/// Batches a watcher may fall behind before it is disconnected. A batch is one group commit, so this is
/// seconds of heavy writing; with small batches it stays within a few MiB.
pub const WATCH_BUFFER_BATCHES: usize = 1024;

/// Changes that were committed together.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The watcher has now seen everything up to this revision.
    pub revision: Revision,
    /// The changes in order; empty when only progress is told.
    pub events: Arc<[Event]>,
}

/// What a layer above the engine makes of each batch.
pub type MapBatch = Box<dyn Fn(Batch) -> Result<Batch, Error> + Send>;

/// A watch: batches of changes until it ends with an error or the store closes.
pub struct WatchStream {
    batches: mpsc::Receiver<Batch>,
    ending: Arc<OnceLock<Error>>,
    ended: bool,
    map: Option<MapBatch>,
}

impl std::fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchStream").field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// The engine's end of a watch.
#[derive(Debug)]
pub struct WatchSender {
    batches: mpsc::Sender<Batch>,
    ending: Arc<OnceLock<Error>>,
}

/// A connected pair with room for `buffer` batches.
pub fn channel(buffer: usize) -> (WatchSender, WatchStream) {
    let (sender, receiver) = mpsc::channel(buffer);
    let ending = Arc::new(OnceLock::new());
    (
        WatchSender { batches: sender, ending: ending.clone() },
        WatchStream { batches: receiver, ending, ended: false, map: None },
    )
}

impl WatchSender {
    /// Hands over a batch without waiting; false when the watch is over (the watcher has gone, or has just
    /// been disconnected because its buffer is full).
    pub fn try_send(&self, batch: Batch) -> bool {
        match self.batches.try_send(batch) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                let _ = self.ending.set(Error::SlowWatcher);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    /// Hands over a batch, waiting for room; false when the watcher has gone.
    pub async fn send(&self, batch: Batch) -> bool {
        self.batches.send(batch).await.is_ok()
    }

    /// Waits until another batch would be taken at once; false when the watcher has gone.
    pub async fn wait_for_room(&self) -> bool {
        self.batches.reserve().await.is_ok()
    }

    /// Whether the watcher has gone.
    pub fn is_closed(&self) -> bool {
        self.batches.is_closed()
    }

    /// Ends the watch with a reason, told after what is still buffered.
    pub fn end(self, reason: Error) {
        let _ = self.ending.set(reason);
    }
}

impl WatchStream {
    /// The next batch. After an error, and when the store has closed, there is nothing more.
    pub async fn next(&mut self) -> Option<Result<Batch, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The same watch with every batch passed through `map`; the first error ends it.
    pub fn mapped(mut self, map: MapBatch) -> WatchStream {
        self.map = Some(match self.map.take() {
            None => map,
            Some(inner) => Box::new(move |batch| map(inner(batch)?)),
        });
        self
    }
}

impl Stream for WatchStream {
    type Item = Result<Batch, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.batches.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(batch)) => {
                let batch = match &self.map {
                    Some(map) => map(batch),
                    None => Ok(batch),
                };
                self.ended = batch.is_err();
                Poll::Ready(Some(batch))
            }
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(self.ending.get().map(|reason| Err(reason.clone())))
            }
        }
    }
}
