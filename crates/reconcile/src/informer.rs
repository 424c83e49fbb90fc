//! A cache with handlers: what the reflector brings goes into the store, and whoever asked is told.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use client::EventKind;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cached::Cached;
use crate::queue::Key;
use crate::reflector::Sink;
use crate::store::Store;

/// A change of the cache, after it has happened.
#[derive(Debug)]
pub enum Event<'a, T> {
    /// An object is new.
    Added(&'a Arc<T>),
    /// An object has changed; its resource version differs.
    Updated {
        /// As it was.
        old: &'a Arc<T>,
        /// As it is.
        new: &'a Arc<T>,
    },
    /// An object is gone; this is the last that was seen of it.
    Deleted(&'a Arc<T>),
}

impl<'a, T> Event<'a, T> {
    /// The object as it is, or as it was last seen.
    pub fn object(&self) -> &'a Arc<T> {
        match self {
            Event::Added(object) | Event::Deleted(object) | Event::Updated { new: object, .. } => object,
        }
    }
}

/// Called with each change, one at a time. Must be quick and must not wait: put a key into a queue.
pub type Handler<T> = Box<dyn Fn(&Event<'_, T>) + Send + Sync>;

struct Dispatch<T> {
    handlers: Vec<Handler<T>>,
    staged: Vec<Arc<T>>,
}

/// One resource, cached and watched. Made by [`crate::Informers`].
pub struct Informer<T> {
    store: Store<T>,
    /// Held while a change is applied and told, so that a new handler misses nothing and sees nothing twice.
    dispatch: Mutex<Dispatch<T>>,
    synced: watch::Sender<bool>,
}

impl<T: Cached> Default for Informer<T> {
    fn default() -> Self {
        Informer {
            store: Store::default(),
            dispatch: Mutex::new(Dispatch { handlers: Vec::new(), staged: Vec::new() }),
            synced: watch::Sender::new(false),
        }
    }
}

impl<T: Cached> Informer<T> {
    /// The cache.
    pub fn store(&self) -> &Store<T> {
        &self.store
    }

    /// Adds a handler. It is told of every object already there as added, before this returns.
    pub fn on_event(&self, handler: impl Fn(&Event<'_, T>) + Send + Sync + 'static) {
        let mut dispatch = self.dispatch.lock();
        for object in self.store.list() {
            handler(&Event::Added(&object));
        }
        dispatch.handlers.push(Box::new(handler));
    }

    /// Whether the first list has been taken in.
    pub fn has_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Resolves when the first list has been taken in.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as self, so this cannot fail.
        let _ = synced.wait_for(|done| *done).await;
    }

    fn decode(bytes: &Bytes) -> Option<Arc<T>> {
        match T::decode_cached(bytes) {
            Ok(object) => Some(Arc::new(object)),
            Err(error) => {
                tracing::warn!(%error, "an object from the API server cannot be read and is left out");
                None
            }
        }
    }

    fn put(&self, dispatch: &Dispatch<T>, object: Arc<T>) {
        let old = self.store.put(object.clone());
        let event = match &old {
            None => Event::Added(&object),
            Some(old) if old.cache_version() == object.cache_version() => return,
            Some(old) => Event::Updated { old, new: &object },
        };
        dispatch.handlers.iter().for_each(|handler| handler(&event));
    }

    fn remove(&self, dispatch: &Dispatch<T>, key: &str, last: Option<Arc<T>>) {
        let Some(old) = self.store.remove(key) else { return };
        let event = Event::Deleted(last.as_ref().unwrap_or(&old));
        dispatch.handlers.iter().for_each(|handler| handler(&event));
    }
}

impl<T: Cached> Sink for Informer<T> {
    fn stage(&self, items: &[Bytes]) {
        let objects = items.iter().filter_map(Self::decode).collect::<Vec<_>>();
        self.dispatch.lock().staged.extend(objects);
    }

    fn commit(&self) {
        let mut dispatch = self.dispatch.lock();
        let staged = std::mem::take(&mut dispatch.staged);
        let present: HashSet<Key> = staged.iter().map(|object| object.cache_key().into()).collect();
        for key in self.store.keys().iter().filter(|key| !present.contains(*key)) {
            self.remove(&dispatch, key, None);
        }
        for object in staged {
            self.put(&dispatch, object);
        }
        drop(dispatch);
        self.synced.send_replace(true);
    }

    fn apply(&self, kind: EventKind, object: &Bytes) -> String {
        let Some(object) = Self::decode(object) else { return String::new() };
        let version = object.cache_version().to_owned();
        let dispatch = self.dispatch.lock();
        match kind {
            EventKind::Added | EventKind::Modified => self.put(&dispatch, object),
            EventKind::Deleted => self.remove(&dispatch, &object.cache_key(), Some(object)),
            EventKind::Bookmark => {}
        }
        version
    }
}
