//! Distinct label sets of pods, numbered. Pods of one controller share theirs, so affinity and spreading
//! match a few sets per cycle instead of every pod of the cluster.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Number of a label set.
pub type SetId = u32;

/// A namespace and the labels of pods in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelSet {
    /// Namespace.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Slot {
    set: Arc<LabelSet>,
    users: usize,
}

/// The table of sets in use.
#[derive(Debug, Default)]
pub struct LabelSets {
    ids: HashMap<Arc<LabelSet>, SetId>,
    slots: Vec<Option<Slot>>,
    free: Vec<SetId>,
}

impl LabelSets {
    /// The number of a set, counting one more user.
    pub fn acquire(&mut self, set: LabelSet) -> SetId {
        if let Some(id) = self.ids.get(&set) {
            if let Some(slot) = &mut self.slots[*id as usize] {
                slot.users += 1;
            }
            return *id;
        }
        let set = Arc::new(set);
        let slot = Some(Slot { set: set.clone(), users: 1 });
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id as usize] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as SetId
            }
        };
        self.ids.insert(set, id);
        id
    }

    /// One user less; a set without users loses its number.
    pub fn release(&mut self, id: SetId) {
        let Some(entry) = self.slots.get_mut(id as usize) else { return };
        let Some(slot) = entry else { return };
        slot.users -= 1;
        if slot.users == 0 {
            self.ids.remove(&slot.set);
            *entry = None;
            self.free.push(id);
        }
    }

    /// For every number whether its set matches; unused numbers do not.
    pub fn matching(&self, matches: impl Fn(&LabelSet) -> bool) -> Vec<bool> {
        self.slots.iter().map(|slot| slot.as_ref().is_some_and(|slot| matches(&slot.set))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shared_and_reused() {
        let set = |value: &str| LabelSet {
            namespace: "n".into(),
            labels: [("app".to_owned(), value.to_owned())].into(),
        };
        let mut sets = LabelSets::default();
        let (a, b) = (sets.acquire(set("a")), sets.acquire(set("b")));
        assert_eq!(sets.acquire(set("a")), a);
        sets.release(a);
        assert_eq!(sets.matching(|s| s.labels["app"] == "a"), [true, false]);
        sets.release(a);
        assert_eq!(sets.matching(|_| true), [false, true]);
        assert_eq!(sets.acquire(set("c")), a);
        assert_ne!(a, b);
    }
}
