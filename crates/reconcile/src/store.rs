//! The cache of one resource: objects by key, and secondary indexes over them.
//!
//! Structs with a place for every field are large: a Pod takes 16 KB where its JSON takes two. So only as many
//! as are in use stay whole; the rest are packed ([`Cached::pack`]) and read again when somebody asks. Which
//! are in use a clock tells: its hand packs what nobody has asked for since it last came by.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::Typed;
use parking_lot::RwLock;

use crate::cached::Cached;
use crate::queue::Key;

/// Computes the values under which an index lists an object.
pub type IndexFn<T> = fn(&T) -> Vec<String>;

/// Values of an object's namespace: for [`Store::by_index`].
pub fn index_by_namespace<T: Typed>(object: &T) -> Vec<String> {
    vec![object.namespace().to_owned()]
}

/// The uid of an object's controller, the owner reference with `controller: true`.
pub fn index_by_controller<T: Typed>(object: &T) -> Vec<String> {
    let owners = object.meta().owner_references.iter().flatten();
    owners.filter(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone()).collect()
}

/// Splits a key into namespace (empty for cluster scope) and name.
pub fn split_key(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

struct Index<T> {
    name: &'static str,
    values_of: IndexFn<T>,
    keys: HashMap<String, BTreeSet<Key>>,
}

impl<T> Index<T> {
    fn insert(&mut self, key: &Key, object: &T) {
        for value in (self.values_of)(object) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, key: &Key, object: &T) {
        for value in (self.values_of)(object) {
            if let Entry::Occupied(mut entry) = self.keys.entry(value) {
                entry.get_mut().remove(key);
                if entry.get().is_empty() {
                    entry.remove();
                }
            }
        }
    }
}

/// Objects of a kind that stay whole. More than a small cluster has of any kind.
const WHOLE_MAX: usize = 1024;

enum Kept<T> {
    Whole {
        object: Arc<T>,
        /// Somebody has asked for it since the clock's hand came by.
        used: AtomicBool,
    },
    Packed(Box<[u8]>),
}

impl<T: Cached> Kept<T> {
    fn whole(object: Arc<T>) -> Self {
        Kept::Whole { object, used: AtomicBool::new(true) }
    }

    /// The object. What was packed from an object can be read as one.
    fn object(&self) -> Option<Arc<T>> {
        match self {
            Kept::Whole { object, used } => {
                used.store(true, Ordering::Relaxed);
                Some(object.clone())
            }
            Kept::Packed(bytes) => T::decode_cached(bytes).map(Arc::new).ok(),
        }
    }
}

struct Inner<T> {
    objects: HashMap<Key, Kept<T>>,
    indexes: Vec<Index<T>>,
    /// Keys of whole objects (and of some that are gone or packed by now), in the order of the clock.
    clock: VecDeque<Key>,
    whole: usize,
}

impl<T: Cached> Inner<T> {
    fn keep(&mut self, key: Key, object: Arc<T>) {
        let before = self.objects.insert(key.clone(), Kept::whole(object));
        if !matches!(before, Some(Kept::Whole { .. })) {
            self.whole += 1;
            self.clock.push_back(key);
        }
        self.pack();
    }

    /// Moves the hand until few enough are whole, but at most once around.
    fn pack(&mut self) {
        for _ in 0..self.clock.len() {
            if self.whole <= WHOLE_MAX {
                return;
            }
            let Some(key) = self.clock.pop_front() else { return };
            let Some(kept) = self.objects.get_mut(&key) else { continue };
            let Kept::Whole { object, used } = kept else { continue };
            if used.swap(false, Ordering::Relaxed) {
                self.clock.push_back(key);
            } else if let Some(packed) = object.pack() {
                *kept = Kept::Packed(packed);
                self.whole -= 1;
            } else {
                self.clock.push_back(key);
            }
        }
    }

    fn take(&mut self, key: &str) -> Option<(Key, Arc<T>)> {
        let (key, kept) = self.objects.remove_entry(key)?;
        if matches!(kept, Kept::Whole { .. }) {
            self.whole -= 1;
            // Names of objects that come and go would pile up here.
            if self.clock.len() > 2 * (self.whole + WHOLE_MAX) {
                let Inner { objects, clock, .. } = self;
                clock.retain(|key| matches!(objects.get(key), Some(Kept::Whole { .. })));
            }
        }
        Some((key, kept.object()?))
    }
}

/// Objects by `namespace/name`. Readers get shared objects and never wait for IO.
pub struct Store<T> {
    inner: RwLock<Inner<T>>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        let (objects, indexes, clock) = (HashMap::new(), Vec::new(), VecDeque::new());
        Store { inner: RwLock::new(Inner { objects, indexes, clock, whole: 0 }) }
    }
}

impl<T: Cached> Store<T> {
    /// Adds an index unless there is one of this name. Objects already there are indexed at once.
    pub fn add_index(&self, name: &'static str, values_of: IndexFn<T>) {
        let mut inner = self.inner.write();
        if inner.indexes.iter().any(|index| index.name == name) {
            return;
        }
        let mut index = Index { name, values_of, keys: HashMap::new() };
        for (key, kept) in &inner.objects {
            if let Some(object) = kept.object() {
                index.insert(key, &object);
            }
        }
        inner.indexes.push(index);
    }

    /// The object with this key.
    pub fn get(&self, key: &str) -> Option<Arc<T>> {
        let packed = match self.inner.read().objects.get(key)? {
            Kept::Whole { object, used } => {
                used.store(true, Ordering::Relaxed);
                return Some(object.clone());
            }
            kept @ Kept::Packed(_) => kept.object()?,
        };
        // Who is asked for once is asked for again. Another version may have come in between.
        let mut inner = self.inner.write();
        if let Some((key, Kept::Packed(_))) = inner.objects.get_key_value(key) {
            let key = key.clone();
            inner.keep(key, packed);
        }
        inner.objects.get(key)?.object()
    }

    /// The object of this name in this namespace (empty for cluster scope).
    pub fn get_in(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        if namespace.is_empty() { self.get(name) } else { self.get(&format!("{namespace}/{name}")) }
    }

    /// Every object, in no particular order.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.inner.read().objects.values().filter_map(Kept::object).collect()
    }

    /// The objects that the index `name` lists under `value`, ordered by key. Without such an index: none.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<T>> {
        let inner = self.inner.read();
        let Some(index) = inner.indexes.iter().find(|index| index.name == name) else {
            debug_assert!(false, "no index called {name}");
            return Vec::new();
        };
        let keys = index.keys.get(value).into_iter().flatten();
        keys.filter_map(|key| inner.objects.get(key)?.object()).collect()
    }

    /// Every key, in no particular order.
    pub fn keys(&self) -> Vec<Key> {
        self.inner.read().objects.keys().cloned().collect()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.inner.read().objects.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts an object in, and returns the one it replaces. For informers and tests.
    pub fn put(&self, object: Arc<T>) -> Option<Arc<T>> {
        let mut inner = self.inner.write();
        let key: Key = object.cache_key().into();
        let old = inner.objects.get(&key).and_then(Kept::object);
        for index in &mut inner.indexes {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.insert(&key, &object);
        }
        inner.keep(key, object);
        old
    }

    /// Takes an object out. For informers and tests.
    pub fn remove(&self, key: &str) -> Option<Arc<T>> {
        let mut inner = self.inner.write();
        let (key, old) = inner.take(key)?;
        for index in &mut inner.indexes {
            index.remove(&key, &old);
        }
        Some(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::prelude::*;

    fn pod(namespace: &str, name: &str, node: &str) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some(namespace.into());
        pod.metadata.name = Some(name.into());
        pod.spec = Some(PodSpec { node_name: Some(node.into()), ..Default::default() });
        Arc::new(pod)
    }

    fn by_node(pod: &Pod) -> Vec<String> {
        pod.spec.iter().filter_map(|spec| spec.node_name.clone()).collect()
    }

    #[test]
    fn indexes_follow_changes() {
        let store = Store::default();
        store.put(pod("a", "x", "n1"));
        store.add_index("node", by_node);
        store.add_index("namespace", index_by_namespace);
        store.put(pod("b", "y", "n1"));
        let on = |node: &str| store.by_index("node", node).iter().map(|p| p.key()).collect::<Vec<_>>();
        assert_eq!(on("n1"), ["a/x", "b/y"]);
        assert!(store.put(pod("a", "x", "n2")).is_some());
        assert_eq!((on("n1"), on("n2")), (vec!["b/y".to_owned()], vec!["a/x".to_owned()]));
        assert!(store.remove("a/x").is_some());
        assert!(on("n2").is_empty());
        assert_eq!(store.by_index("namespace", "b").len(), 1);
        assert_eq!(store.len(), 1);
        assert!(store.get_in("b", "y").is_some());
    }

    #[test]
    fn what_nobody_asks_for_is_packed_and_comes_back_whole() {
        let store = Store::default();
        store.add_index("node", by_node);
        for n in 0..3 * WHOLE_MAX {
            store.put(pod("a", &format!("p{n}"), &format!("n{}", n % 2)));
            store.get("a/p0");
        }
        let packed = |key: &str| matches!(store.inner.read().objects[key], Kept::Packed(_));
        assert!(store.inner.read().whole <= WHOLE_MAX);
        assert!(!packed("a/p0") && packed("a/p7"));
        let back = store.get("a/p7").unwrap();
        assert_eq!(back, pod("a", "p7", "n1"));
        assert!(!packed("a/p7"));
        assert_eq!(
            (store.list().len(), store.by_index("node", "n1").len()),
            (3 * WHOLE_MAX, 3 * WHOLE_MAX / 2)
        );
        assert_eq!(store.put(pod("a", "p9", "n0")), Some(pod("a", "p9", "n1")));
        assert!(store.remove("a/p11").is_some());
        assert_eq!(store.by_index("node", "n1").len(), 3 * WHOLE_MAX / 2 - 2);
        for key in store.keys() {
            store.remove(&key);
        }
        let inner = store.inner.read();
        assert_eq!((inner.objects.len(), inner.whole), (0, 0));
        assert!(inner.clock.len() <= 2 * WHOLE_MAX);
    }
}
