//! The watch cache: the current version of every object, and a fan-out of changes to any number of watchers.
//!
//! One task follows the store's single stream of commits and updates one [`KindCache`] per storage prefix.
//! An object is parsed once per version; GET, LIST and every WATCH then share its bytes. Reads that must be
//! consistent ask the store for its revision and wait until the cache has applied it.
//!
//! **Invariant:** events reach observers and watchers in commit order, and `applied` moves only after them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use meta::{FieldSelector, LabelSelector, Object, Status};
use parking_lot::{Mutex, RwLock};
use store::{EventKind, Range, Revision, Store};
use tokio::sync::{mpsc, watch};

use crate::resource::ROOT;

/// Events kept per kind for watchers that start a little in the past; older ones come from the store.
const RECENT_MAX: usize = 256;
/// Events a watcher may lag behind before it is cut off; its client then resumes from its last version.
pub const WATCHER_BUFFER: usize = 2048;
/// Longest wait for the cache to reach a revision before the client is told to retry.
pub const FRESH_WAIT_MAX: Duration = Duration::from_secs(3);

/// Objects looked at to know how large those of a kind are.
const SAMPLED: usize = 8;

/// What a watch event tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The object is new to the watcher.
    Added,
    /// The object changed.
    Modified,
    /// The object is gone from the watcher's view.
    Deleted,
}

impl Change {
    /// The `type` of the watch event.
    pub fn as_str(self) -> &'static str {
        match self {
            Change::Added => "ADDED",
            Change::Modified => "MODIFIED",
            Change::Deleted => "DELETED",
        }
    }
}

/// One committed change of one object.
#[derive(Debug)]
pub struct CacheEvent {
    /// What happened in the store.
    pub change: Change,
    /// The new version; for deletions the last version, at the revision of the deletion.
    pub object: Arc<Object>,
    /// The version before.
    pub previous: Option<Arc<Object>>,
    frame: OnceLock<Bytes>,
    encoded: OnceLock<Bytes>,
}

impl CacheEvent {
    fn new(change: Change, object: Arc<Object>, previous: Option<Arc<Object>>) -> Arc<Self> {
        Arc::new(CacheEvent { change, object, previous, frame: OnceLock::new(), encoded: OnceLock::new() })
    }
}

/// One event as one watcher sees it: leaving the selection shows as a deletion.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The event.
    pub event: Arc<CacheEvent>,
    /// What it is to this watcher.
    pub change: Change,
}

impl Seen {
    /// The event as a line of a JSON watch stream; shared by all watchers that see it the same way.
    pub fn frame(&self) -> Bytes {
        let make = || watch_frame(self.change.as_str(), &self.event.object.bytes);
        if self.change == self.event.change { self.event.frame.get_or_init(make).clone() } else { make() }
    }
}

impl Seen {
    /// The event in another form (protobuf), made by `make`; shared like [`Seen::frame`].
    pub fn encoded(&self, make: impl Fn() -> Bytes) -> Bytes {
        if self.change == self.event.change { self.event.encoded.get_or_init(make).clone() } else { make() }
    }
}

/// A line of a JSON watch stream.
pub fn watch_frame(ty: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(ty.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}

/// Which objects a reader wants.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this namespace.
    pub namespace: Option<Box<str>>,
    /// Label selector.
    pub labels: LabelSelector,
    /// Field selector.
    pub fields: FieldSelector,
    /// Fields that only the version asked for has: judged by the reader, after conversion.
    pub late: FieldSelector,
}

impl Filter {
    /// Whether an object is wanted.
    pub fn matches(&self, object: &Object) -> bool {
        self.namespace.as_ref().is_none_or(|ns| *ns == object.namespace)
            && (self.fields.is_everything() || self.fields.matches_with(|f| object.field(f)))
            && (self.labels.is_everything() || self.labels.matches_with(|l| object.label(l)))
    }

    fn sees(&self, event: &CacheEvent) -> Option<Change> {
        let before = event.previous.as_ref().is_some_and(|p| self.matches(p));
        let now = event.change != Change::Deleted && self.matches(&event.object);
        match (before, now) {
            (false, true) => Some(Change::Added),
            (true, true) => Some(Change::Modified),
            (true, false) => Some(Change::Deleted),
            (false, false) => None,
        }
    }
}

/// Turns the stored form of an object into the form it is shown in.
pub type Shape = Arc<dyn Fn(&Bytes) -> Bytes + Send + Sync>;

/// How objects of one prefix are read from the store.
#[derive(Clone, Default)]
pub struct Reader {
    /// Paths that field selectors may ask for.
    pub selectable: Arc<[Arc<str>]>,
    /// How custom resources get the defaults of today's schema, once per version of an object.
    pub shape: Option<Shape>,
}

impl Reader {
    /// The object that the store holds as `stored`.
    pub fn read(&self, stored: &Bytes, revision: Revision) -> Option<Object> {
        let Some(shape) = &self.shape else { return Object::at_revision(stored, revision, &self.selectable) };
        let shown = shape(stored);
        let mut object = Object::at_revision(&shown, revision, &self.selectable)?;
        object.reshaped = shown != *stored;
        Some(object)
    }
}

struct Watcher {
    filter: Filter,
    sender: mpsc::Sender<Seen>,
}

type Observer = Box<dyn Fn(&CacheEvent) + Send + Sync>;

#[derive(Default)]
struct KindState {
    /// By the part of the key behind the prefix: `namespace/name` or `name`.
    objects: BTreeMap<Box<str>, Arc<Object>>,
    recent: VecDeque<Arc<CacheEvent>>,
    /// Every event after this revision is in `recent`.
    recent_after: Revision,
    watchers: Vec<Watcher>,
}

impl KindState {
    /// The objects of a namespace (or all), in key order.
    fn range<'a>(&'a self, namespace: Option<&str>) -> impl Iterator<Item = &'a Arc<Object>> {
        let start = namespace.map(|ns| format!("{ns}/")).unwrap_or_default();
        let from = (std::ops::Bound::Included(start.as_str()), std::ops::Bound::Unbounded);
        let range = self.objects.range::<str, _>(from);
        range.take_while(move |(key, _)| key.starts_with(&start)).map(|(_, object)| object)
    }
}

/// The objects under one storage prefix.
pub struct KindCache {
    prefix: Box<str>,
    reader: RwLock<Reader>,
    state: RwLock<KindState>,
    observers: RwLock<Vec<Observer>>,
}

impl KindCache {
    fn new(prefix: &str, reader: Reader, recent_after: Revision) -> Arc<Self> {
        Arc::new(KindCache {
            prefix: prefix.into(),
            reader: RwLock::new(reader),
            state: RwLock::new(KindState { recent_after, ..Default::default() }),
            observers: RwLock::default(),
        })
    }

    /// The current version of an object, by the part of its key behind the prefix.
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.state.read().objects.get(key).cloned()
    }

    /// How its objects are read.
    pub fn reader(&self) -> Reader {
        self.reader.read().clone()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of an object, about: the mean of a few.
    pub fn sampled_bytes(&self) -> u64 {
        let state = self.state.read();
        let (count, bytes) = (state.objects.values().take(SAMPLED))
            .fold((0u64, 0u64), |(n, sum), o| (n + 1, sum + o.bytes.len() as u64));
        bytes.checked_div(count).unwrap_or(0)
    }

    /// Number of watchers that may see what happens in a namespace.
    pub fn watchers(&self, namespace: &str) -> usize {
        let state = self.state.read();
        let sees = |w: &&Watcher| w.filter.namespace.as_ref().is_none_or(|ns| **ns == *namespace);
        state.watchers.iter().filter(sees).count()
    }

    /// All objects of a namespace (or all), in key order.
    pub fn snapshot(&self, namespace: Option<&str>) -> Vec<Arc<Object>> {
        self.state.read().range(namespace).cloned().collect()
    }

    /// The first `limit` objects of a namespace (or of all), and how many there are: who wants a page does not
    /// pay for the rest.
    pub fn first(&self, namespace: Option<&str>, limit: usize) -> (Vec<Arc<Object>>, usize) {
        let state = self.state.read();
        let total = match namespace {
            None => state.objects.len(),
            Some(_) => state.range(namespace).count(),
        };
        (state.range(namespace).take(limit).cloned().collect(), total)
    }

    /// Calls `observer` with every current object (as an addition) and then with every change, in order and
    /// before the change becomes visible to consistent reads. It must be quick and must not call back.
    pub fn observe(&self, observer: impl Fn(&CacheEvent) + Send + Sync + 'static) {
        let state = self.state.write();
        for object in state.objects.values() {
            observer(&CacheEvent {
                change: Change::Added,
                object: object.clone(),
                previous: None,
                frame: OnceLock::new(),
                encoded: OnceLock::new(),
            });
        }
        self.observers.write().push(Box::new(observer));
    }

    fn load(&self, key: &str, object: Object) {
        self.state.write().objects.insert(key.into(), Arc::new(object));
    }

    fn apply(&self, event: &store::Event) {
        let Some(key) = event.key.strip_prefix(&*self.prefix) else { return };
        let reader = self.reader.read();
        let mut state = self.state.write();
        let previous = state.objects.get(key).cloned();
        let change = match (event.kind, &event.value, &previous) {
            (EventKind::Put, Some(value), before) => {
                let Some(object) = reader.read(value, event.revision) else {
                    tracing::error!(key = %event.key, "the store holds an object that cannot be read");
                    return;
                };
                let object = Arc::new(object);
                state.objects.insert(key.into(), object.clone());
                let kind = if before.is_some() { Change::Modified } else { Change::Added };
                CacheEvent::new(kind, object, previous)
            }
            (_, _, Some(before)) => {
                let last = event.previous.as_ref().and_then(|p| reader.read(p, event.revision));
                state.objects.remove(key);
                let object = last.map_or_else(|| before.clone(), Arc::new);
                CacheEvent::new(Change::Deleted, object, previous)
            }
            (_, _, None) => return,
        };
        self.observers.read().iter().for_each(|observe| observe(&change));
        state.watchers.retain(|w| match w.filter.sees(&change) {
            None => !w.sender.is_closed(),
            Some(seen) => w.sender.try_send(Seen { event: change.clone(), change: seen }).is_ok(),
        });
        state.recent.push_back(change);
        if state.recent.len() > RECENT_MAX
            && let Some(dropped) = state.recent.pop_front()
        {
            state.recent_after = dropped.object.revision;
        }
    }
}

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the current objects as additions.
    Now,
    /// With the changes after a revision.
    After(Revision),
}

/// A running watch.
pub struct Watch {
    /// Current objects, to be sent as additions first.
    pub initial: Vec<Arc<Object>>,
    /// Revision of `initial`, or where the watch began.
    pub revision: Revision,
    /// Fields that the reader judges after conversion.
    pub late: FieldSelector,
    /// Changes from there on. Ends when the watcher is cut off.
    pub events: mpsc::Receiver<Seen>,
}

/// All kinds' caches.
pub struct Cacher {
    store: Arc<dyn Store>,
    kinds: RwLock<HashMap<Box<str>, Arc<KindCache>>>,
    applied: watch::Sender<Revision>,
    follower: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Cacher {
    /// Loads everything from the store and begins to follow it. `selectable` gives each known prefix with
    /// the fields its objects can be selected by.
    pub async fn start(
        store: Arc<dyn Store>,
        selectable: Vec<(String, Vec<Arc<str>>)>,
    ) -> Result<Arc<Cacher>, store::Error> {
        let loaded = store.range(Range::prefix(ROOT)).await?;
        let kinds = selectable
            .into_iter()
            .map(|(prefix, fields)| {
                let reader = Reader { selectable: fields.into(), shape: None };
                (prefix.as_str().into(), KindCache::new(&prefix, reader, loaded.revision))
            })
            .collect();
        let (applied, _) = watch::channel(loaded.revision);
        let cacher =
            Arc::new(Cacher { store, kinds: RwLock::new(kinds), applied, follower: Mutex::default() });
        for item in &loaded.items {
            let Some(kind) = cacher.kind_of_key(&item.key, loaded.revision) else { continue };
            let key = &item.key[kind.prefix.len()..];
            let read = kind.reader.read().read(&item.value, item.mod_revision);
            match read {
                Some(object) => kind.load(key, object),
                None => tracing::error!(key = %item.key, "the store holds an object that cannot be read"),
            }
        }
        let weak = Arc::downgrade(&cacher);
        let store = cacher.store.clone();
        let follower = tokio::spawn(follow(weak, store, loaded.revision));
        *cacher.follower.lock() = Some(follower);
        Ok(cacher)
    }

    /// The cache of a prefix; made when first asked for.
    pub fn kind(&self, prefix: &str) -> Arc<KindCache> {
        if let Some(kind) = self.kinds.read().get(prefix) {
            return kind.clone();
        }
        let revision = *self.applied.borrow();
        let mut kinds = self.kinds.write();
        kinds
            .entry(prefix.into())
            .or_insert_with(|| KindCache::new(prefix, Reader::default(), revision))
            .clone()
    }

    /// Reads the objects of a prefix in another way from now on, and ends its watches: clients come back and
    /// see everything in the new form.
    pub async fn reshape(&self, prefix: &str, reader: Reader) -> Result<(), Status> {
        let kind = self.kind(prefix);
        // The stored form is in the store only; what changes meanwhile comes through the follower.
        *kind.reader.write() = reader.clone();
        let loaded = self.store.range(Range::prefix(prefix)).await.map_err(|e| crate::error::status(&e))?;
        let mut state = kind.state.write();
        for item in &loaded.items {
            let Some(key) = item.key.strip_prefix(prefix) else { continue };
            let same = state.objects.get(key).is_some_and(|o| o.revision == item.mod_revision);
            if same && let Some(object) = reader.read(&item.value, item.mod_revision) {
                state.objects.insert(key.into(), Arc::new(object));
            }
        }
        state.watchers.clear();
        state.recent.clear();
        state.recent_after = state.recent_after.max(self.applied());
        Ok(())
    }

    /// Number of objects per prefix, for metrics.
    pub fn counts(&self) -> Vec<(Box<str>, usize)> {
        self.kinds.read().iter().map(|(prefix, kind)| (prefix.clone(), kind.len())).collect()
    }

    fn kind_of_key(&self, key: &str, revision: Revision) -> Option<Arc<KindCache>> {
        let rest = key.strip_prefix(ROOT)?;
        let prefix = &key[..ROOT.len() + rest.find('/')? + 1];
        if let Some(kind) = self.kinds.read().get(prefix) {
            return Some(kind.clone());
        }
        let kind = KindCache::new(prefix, Reader::default(), revision);
        Some(self.kinds.write().entry(prefix.into()).or_insert(kind).clone())
    }

    /// The revision up to which the cache is complete.
    pub fn applied(&self) -> Revision {
        *self.applied.borrow()
    }

    /// Waits until the cache holds everything committed so far and returns that revision.
    pub async fn fresh(&self) -> Result<Revision, Status> {
        let revision = self.store.revision().await.map_err(|e| crate::error::status(&e))?;
        self.wait_for(revision).await?;
        Ok(revision)
    }

    /// Waits until the cache has applied `revision`.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), Status> {
        if self.applied() >= revision {
            return Ok(());
        }
        let mut applied = self.applied.subscribe();
        let waited = tokio::time::timeout(FRESH_WAIT_MAX, applied.wait_for(|a| *a >= revision)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => Err(crate::error::too_large_resource_version(revision, self.applied())),
        }
    }

    /// Begins a watch of one prefix.
    pub async fn watch(&self, prefix: &str, filter: Filter, start: Start) -> Result<Watch, Status> {
        let kind = self.kind(prefix);
        let (sender, events) = mpsc::channel(WATCHER_BUFFER);
        let late = filter.late.clone();
        let from = {
            let mut state = kind.state.write();
            let applied = self.applied();
            match start {
                Start::Now => {
                    let initial = state.objects.values().filter(|o| filter.matches(o)).cloned().collect();
                    state.watchers.push(Watcher { filter, sender });
                    return Ok(Watch { initial, revision: applied, late, events });
                }
                Start::After(from) if from >= state.recent_after => {
                    let missed = state.recent.iter().filter(|e| e.object.revision > from);
                    let missed: Vec<Seen> = missed
                        .filter_map(|e| Some(Seen { event: e.clone(), change: filter.sees(e)? }))
                        .collect();
                    // The ring is smaller than the buffer, so these fit.
                    missed.into_iter().for_each(|seen| drop(sender.try_send(seen)));
                    state.watchers.push(Watcher { filter, sender });
                    return Ok(Watch { initial: Vec::new(), revision: from, late, events });
                }
                Start::After(from) => from,
            }
        };
        // Further back than the ring reaches: this watcher follows the store itself.
        let stream = self.store.watch(prefix, from).await.map_err(|e| crate::error::watch_status(&e))?;
        let reader = kind.reader.read().clone();
        tokio::spawn(replay(stream, filter, reader, sender));
        Ok(Watch { initial: Vec::new(), revision: from, late, events })
    }
}

impl Drop for Cacher {
    fn drop(&mut self) {
        if let Some(follower) = self.follower.lock().take() {
            follower.abort();
        }
    }
}

/// Applies every commit to the caches, for as long as the cacher lives.
async fn follow(cacher: std::sync::Weak<Cacher>, store: Arc<dyn Store>, mut from: Revision) {
    loop {
        let mut stream = match store.watch(ROOT, from).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::error!(%error, "cannot follow the store");
                return;
            }
        };
        while let Some(batch) = stream.next().await {
            let batch = match batch {
                Ok(batch) => batch,
                Err(store::Error::SlowWatcher) => break,
                Err(error) => {
                    tracing::error!(%error, "cannot follow the store");
                    return;
                }
            };
            let Some(cacher) = cacher.upgrade() else { return };
            for event in batch.events.iter() {
                if let Some(kind) = cacher.kind_of_key(&event.key, event.revision.saturating_sub(1)) {
                    kind.apply(event);
                }
            }
            from = from.max(batch.revision);
            cacher.applied.send_replace(from);
        }
        if cacher.strong_count() == 0 {
            return;
        }
    }
}

/// Feeds one watcher straight from the store's history.
async fn replay(mut stream: store::WatchStream, filter: Filter, reader: Reader, sender: mpsc::Sender<Seen>) {
    loop {
        let batch = tokio::select! {
            batch = stream.next() => batch,
            () = sender.closed() => return,
        };
        let Some(Ok(batch)) = batch else { return };
        for e in batch.events.iter() {
            let read = |bytes: &Bytes, revision| reader.read(bytes, revision).map(Arc::new);
            let previous = e.previous.as_ref().and_then(|p| read(p, e.previous_revision));
            let (change, current) = match (&e.value, &previous) {
                (Some(value), None) => (Change::Added, read(value, e.revision)),
                (Some(value), Some(_)) => (Change::Modified, read(value, e.revision)),
                (None, _) => (Change::Deleted, e.previous.as_ref().and_then(|p| read(p, e.revision))),
            };
            let Some(object) = current else { continue };
            let event = CacheEvent::new(change, object, previous);
            if let Some(change) = filter.sees(&event)
                && sender.send(Seen { event, change }).await.is_err()
            {
                return;
            }
        }
    }
}
