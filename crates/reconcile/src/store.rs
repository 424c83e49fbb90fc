//! The cache of one resource: objects by key, and secondary indexes over them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

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

struct Inner<T> {
    objects: HashMap<Key, Arc<T>>,
    indexes: Vec<Index<T>>,
}

/// Objects by `namespace/name`. Readers get shared objects and never wait for IO.
pub struct Store<T> {
    inner: RwLock<Inner<T>>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Store { inner: RwLock::new(Inner { objects: HashMap::new(), indexes: Vec::new() }) }
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
        for (key, object) in &inner.objects {
            index.insert(key, object);
        }
        inner.indexes.push(index);
    }

    /// The object with this key.
    pub fn get(&self, key: &str) -> Option<Arc<T>> {
        self.inner.read().objects.get(key).cloned()
    }

    /// The object of this name in this namespace (empty for cluster scope).
    pub fn get_in(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        if namespace.is_empty() { self.get(name) } else { self.get(&format!("{namespace}/{name}")) }
    }

    /// Every object, in no particular order.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.inner.read().objects.values().cloned().collect()
    }

    /// The objects that the index `name` lists under `value`, ordered by key. Without such an index: none.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<T>> {
        let inner = self.inner.read();
        let Some(index) = inner.indexes.iter().find(|index| index.name == name) else {
            debug_assert!(false, "no index called {name}");
            return Vec::new();
        };
        let keys = index.keys.get(value).into_iter().flatten();
        keys.filter_map(|key| inner.objects.get(key).cloned()).collect()
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
        let Inner { objects, indexes } = &mut *inner;
        let key: Key = object.cache_key().into();
        let old = objects.get(&key).cloned();
        for index in indexes {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.insert(&key, &object);
        }
        objects.insert(key, object);
        old
    }

    /// Takes an object out. For informers and tests.
    pub fn remove(&self, key: &str) -> Option<Arc<T>> {
        let mut inner = self.inner.write();
        let Inner { objects, indexes } = &mut *inner;
        let (key, old) = objects.remove_entry(key)?;
        for index in indexes {
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
}
