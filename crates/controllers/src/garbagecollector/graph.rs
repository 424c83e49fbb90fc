//! Who owns whom: the graph of all objects by uid, and what a change in it makes worth a look.
//!
//! No IO: events in, uids to examine out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api::prelude::DecodeError;
use meta::Gvr;
use reconcile::Cached;
use serde::Deserialize;

/// Finalizer of an object that waits for its dependents to go (foreground deletion).
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents are to be released first.
pub const ORPHAN: &str = "orphan";

/// Uid of an object, shared by all who mention it.
pub type Uid = Arc<str>;

/// A reference to an owner.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// `apiVersion` of the owner.
    pub api_version: String,
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// Uid of the owner.
    pub uid: String,
    /// Whether the owner waits for this object in foreground deletion.
    #[serde(default)]
    pub block_owner_deletion: bool,
}

/// What the collector keeps of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Uid.
    pub uid: Uid,
    /// Namespace; empty for cluster scope.
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// Resource version.
    pub version: Box<str>,
    /// Owners.
    pub owners: Box<[Owner]>,
    /// Deletion has begun.
    pub deleting: bool,
    /// It waits for its dependents.
    pub foreground: bool,
    /// Its dependents are to be released.
    pub orphaning: bool,
}

#[derive(Deserialize)]
struct Wire {
    metadata: WireMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMeta {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    owner_references: Vec<Owner>,
    #[serde(default)]
    finalizers: Vec<String>,
    deletion_timestamp: Option<serde::de::IgnoredAny>,
}

impl Cached for Item {
    fn decode_cached(json: &[u8]) -> Result<Self, DecodeError> {
        let wire: Wire = serde_json::from_slice(json)
            .map_err(|source| DecodeError { kind: "PartialObjectMetadata", source })?;
        let meta = wire.metadata;
        let has = |finalizer: &str| meta.finalizers.iter().any(|f| f == finalizer);
        Ok(Item {
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphaning: has(ORPHAN),
            uid: meta.uid.into(),
            namespace: meta.namespace.into(),
            name: meta.name.into(),
            version: meta.resource_version.into(),
            owners: meta.owner_references.into(),
        })
    }
    fn cache_key(&self) -> String {
        if self.namespace.is_empty() {
            self.name.to_string()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }
    fn cache_version(&self) -> &str {
        &self.version
    }
}

impl Item {
    /// Whether it is being deleted and waits for its dependents.
    pub fn waits_for_dependents(&self) -> bool {
        self.deleting && self.foreground
    }
}

/// An object in the graph.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its resource.
    pub gvr: Arc<Gvr>,
    /// What is known of it.
    pub item: Arc<Item>,
}

/// How an owner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It exists.
    Solid,
    /// It exists, is being deleted, and waits for its dependents.
    Waiting,
    /// It does not exist.
    Absent,
}

/// What is to become of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It stays as it is.
    Keep,
    /// It stays, without these owners.
    Disown(Vec<String>),
    /// It goes. If `foreground`, its own dependents go first.
    Delete {
        /// Foreground deletion.
        foreground: bool,
    },
}

/// Decides about an object by how its owners stand.
pub fn judge(item: &Item, standings: &[Standing], has_dependents: bool) -> Verdict {
    if item.owners.is_empty() {
        return Verdict::Keep;
    }
    if standings.contains(&Standing::Solid) {
        let loose = item.owners.iter().zip(standings).filter(|(_, s)| **s != Standing::Solid);
        let loose: Vec<String> = loose.map(|(owner, _)| owner.uid.clone()).collect();
        return if loose.is_empty() { Verdict::Keep } else { Verdict::Disown(loose) };
    }
    let waited_for = standings.contains(&Standing::Waiting) && has_dependents;
    Verdict::Delete { foreground: waited_for || (item.foreground && !item.deleting) }
}

/// The graph.
#[derive(Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
    /// Dependents by the uid of their owner, which may be unknown.
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    /// The object of this uid.
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The known dependents of an object.
    pub fn dependents(&self, uid: &str) -> Vec<Node> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.nodes.get(uid)).cloned().collect()
    }

    /// Dependents for which an object in foreground deletion has to wait.
    pub fn blocking(&self, uid: &str) -> Vec<Node> {
        let blocks = |node: &Node| node.item.owners.iter().any(|o| o.uid == uid && o.block_owner_deletion);
        self.dependents(uid).into_iter().filter(blocks).collect()
    }

    /// How an owner stands as far as the graph knows; `None` if the API has to be asked. A namespaced owner
    /// must be in the dependent's namespace.
    pub fn standing(&self, dependent: &Item, owner: &Owner) -> Option<Standing> {
        let node = self.nodes.get(owner.uid.as_str())?;
        let elsewhere = !node.item.namespace.is_empty() && node.item.namespace != dependent.namespace;
        if elsewhere || *node.item.name != *owner.name {
            return None;
        }
        Some(if node.item.waits_for_dependents() { Standing::Waiting } else { Standing::Solid })
    }

    /// An object is new or has changed. Returns what is worth a look.
    pub fn upsert(&mut self, gvr: &Arc<Gvr>, item: Arc<Item>) -> Vec<Uid> {
        let mut look = Vec::new();
        let uid = item.uid.clone();
        let old = self.nodes.insert(uid.clone(), Node { gvr: gvr.clone(), item: item.clone() });
        let old_owners = old.as_ref().map(|node| node.item.owners.clone()).unwrap_or_default();
        let owners_changed = old.is_none() || old_owners != item.owners;
        if owners_changed {
            for owner in &old_owners {
                self.unlink(&owner.uid, &uid);
                // Whoever waited for this object may wait no longer.
                if self.nodes.get(owner.uid.as_str()).is_some_and(|n| n.item.waits_for_dependents()) {
                    look.push(owner.uid.as_str().into());
                }
            }
            for owner in &item.owners {
                self.dependents.entry(owner.uid.as_str().into()).or_default().insert(uid.clone());
            }
            if item.owners.iter().any(|owner| self.standing(&item, owner) != Some(Standing::Solid)) {
                look.push(uid.clone());
            }
        }
        let was = |f: fn(&Item) -> bool| old.as_ref().is_some_and(|node| f(&node.item));
        if item.deleting && item.orphaning {
            look.push(uid.clone());
        }
        if item.waits_for_dependents() {
            look.push(uid.clone());
            if !was(Item::waits_for_dependents) {
                look.extend(self.dependents.get(&uid).into_iter().flatten().cloned());
            }
        }
        look
    }

    /// An object is gone. Returns what is worth a look.
    pub fn remove(&mut self, uid: &str) -> Vec<Uid> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        let mut look: Vec<Uid> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for owner in &node.item.owners {
            self.unlink(&owner.uid, uid);
            if self.nodes.get(owner.uid.as_str()).is_some_and(|n| n.item.waits_for_dependents()) {
                look.push(owner.uid.as_str().into());
            }
        }
        look
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(dependent);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(uid: &str, owners: &[(&str, bool)], finalizer: &str, deleting: bool) -> Arc<Item> {
        let owners: Vec<_> = owners
            .iter()
            .map(|(uid, block)| {
                serde_json::json!({"apiVersion": "v1", "kind": "K", "name": uid, "uid": uid,
                    "blockOwnerDeletion": block})
            })
            .collect();
        let mut meta = serde_json::json!({"uid": uid, "name": uid, "namespace": "n", "ownerReferences": owners,
            "resourceVersion": "1", "finalizers": [finalizer]});
        if deleting {
            meta["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        let json = serde_json::to_vec(&serde_json::json!({"metadata": meta})).unwrap();
        Arc::new(Item::decode_cached(&json).unwrap())
    }

    fn texts(mut uids: Vec<Uid>) -> Vec<String> {
        uids.sort();
        uids.dedup();
        uids.iter().map(|uid| uid.to_string()).collect()
    }

    #[test]
    fn changes_that_are_worth_a_look() {
        let gvr = Arc::new(Gvr::new("", "v1", "k"));
        let mut graph = Graph::default();
        assert_eq!(
            texts(graph.upsert(&gvr, item("pod", &[("set", true)], "", false))),
            ["pod"],
            "owner unknown"
        );
        assert!(graph.upsert(&gvr, item("set", &[], "", false)).is_empty());
        assert!(graph.upsert(&gvr, item("pod", &[("set", true)], "", false)).is_empty(), "nothing new");
        let deleting = item("set", &[], FOREGROUND, true);
        assert_eq!(texts(graph.upsert(&gvr, deleting)), ["pod", "set"]);
        assert_eq!(graph.blocking("set").len(), 1);
        assert_eq!(texts(graph.remove("pod")), ["set"], "nobody left to wait for");
        assert!(graph.blocking("set").is_empty());
        graph.upsert(&gvr, item("other", &[("set", false)], "", false));
        assert_eq!(texts(graph.remove("set")), ["other"]);
    }

    #[test]
    fn owners_elsewhere_do_not_count() {
        let gvr = Arc::new(Gvr::new("", "v1", "k"));
        let mut graph = Graph::default();
        let mut elsewhere = Item::clone(&item("set", &[], "", false));
        elsewhere.namespace = "other".into();
        graph.upsert(&gvr, Arc::new(elsewhere));
        let pod = item("pod", &[("set", true)], "", false);
        assert_eq!(graph.standing(&pod, &pod.owners[0]), None);
        assert_eq!(texts(graph.upsert(&gvr, pod)), ["pod"]);
    }

    #[test]
    fn verdicts() {
        use Standing::{Absent, Solid, Waiting};
        let two = item("x", &[("a", true), ("b", true)], "", false);
        let delete = |foreground| Verdict::Delete { foreground };
        for (standings, dependents, verdict) in [
            ([Solid, Solid], false, Verdict::Keep),
            ([Solid, Absent], false, Verdict::Disown(vec!["b".into()])),
            ([Waiting, Solid], true, Verdict::Disown(vec!["a".into()])),
            ([Absent, Absent], true, delete(false)),
            ([Waiting, Absent], true, delete(true)),
            ([Waiting, Absent], false, delete(false)),
        ] {
            assert_eq!(judge(&two, &standings, dependents), verdict, "{standings:?}");
        }
        assert_eq!(judge(&item("y", &[], "", false), &[], true), Verdict::Keep);
    }
}
