//! The memory of each NUMA node and who was promised how much of it. Pure.
//!
//! A node serves either containers that fit into one node or one group of nodes whose containers need all of them,
//! never both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::numa::{self, Hint, Hints, Mask, Node};

/// Bytes by `memory` or `hugepages-2Mi`.
pub type Bytes = BTreeMap<String, u64>;

/// One kind of memory of a node, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// What there is.
    pub total: u64,
    /// What is kept from containers.
    pub system_reserved: u64,
    /// The rest.
    pub allocatable: u64,
    /// What containers were promised.
    pub reserved: u64,
    /// What they were not.
    pub free: u64,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// How many promises count on it.
    pub number_of_assignments: u64,
    /// By kind.
    pub memory_map: BTreeMap<String, Row>,
    /// The group it is in.
    pub cells: Vec<u32>,
}

/// A promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// Of these nodes.
    pub numa_affinity: Vec<u32>,
    /// Kind of memory.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes.
    pub size: u64,
}

impl Block {
    fn mask(&self) -> Mask {
        Mask::of(self.numa_affinity.iter().copied())
    }
}

/// Promises by pod uid and container.
pub type Entries = BTreeMap<String, BTreeMap<String, Vec<Block>>>;

/// All nodes.
pub type Machine = BTreeMap<u32, NodeState>;

/// Nodes and promises.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Nodes.
    pub machine: Machine,
    /// Promises.
    pub entries: Entries,
}

/// The machine with nothing promised; `kept` is what is kept from containers, by node.
pub fn fresh(nodes: &[Node], kept: &BTreeMap<u32, Bytes>) -> Machine {
    let of = |node: &Node| {
        let kept = |kind: &str| kept.get(&node.id).and_then(|of| of.get(kind)).copied().unwrap_or(0);
        let row = |total: u64, huge: u64, system_reserved: u64| {
            let allocatable = total.saturating_sub(system_reserved).saturating_sub(huge);
            Row { total, system_reserved, allocatable, reserved: 0, free: allocatable }
        };
        let huge: u64 = node.huge_pages.iter().map(|(_, bytes)| bytes).sum();
        let mut memory_map: BTreeMap<String, Row> = node
            .huge_pages
            .iter()
            .map(|(size, bytes)| {
                let kind = format!("hugepages-{}", crate::node::machine::binary(*size as i64));
                let row = row(*bytes, 0, kept(&kind));
                (kind, row)
            })
            .collect();
        memory_map.insert("memory".into(), row(node.memory, huge, kept("memory")));
        (node.id, NodeState { number_of_assignments: 0, memory_map, cells: vec![node.id] })
    };
    nodes.iter().map(of).collect()
}

/// Puts promises that were made before on a fresh machine; `None` where they do not fit it.
pub fn replay(machine: Machine, entries: Entries) -> Option<Table> {
    let mut table = Table { machine, entries: Entries::new() };
    for block in entries.values().flat_map(BTreeMap::values).flatten() {
        let known =
            |id: &u32| table.machine.get(id).is_some_and(|node| node.memory_map.contains_key(&block.kind));
        if block.numa_affinity.is_empty() || !block.numa_affinity.iter().all(known) {
            return None;
        }
        if table.take(block.mask(), &block.kind, block.size) > 0 {
            return None;
        }
    }
    table.entries = entries;
    Some(table)
}

impl Table {
    fn free(&self, mask: Mask, kind: &str) -> u64 {
        self.sum(mask, kind, |row| row.free)
    }

    fn sum(&self, mask: Mask, kind: &str, of: fn(&Row) -> u64) -> u64 {
        let nodes = mask.nodes().filter_map(|id| self.machine.get(&id));
        nodes.filter_map(|node| node.memory_map.get(kind)).map(of).sum()
    }

    /// Takes bytes of these nodes, the first ones first; what is left that nobody had.
    fn take(&mut self, mask: Mask, kind: &str, mut bytes: u64) -> u64 {
        let cells: Vec<u32> = mask.nodes().collect();
        for id in &cells {
            let Some(node) = self.machine.get_mut(id) else { continue };
            node.number_of_assignments += 1;
            node.cells.clone_from(&cells);
            let Some(row) = node.memory_map.get_mut(kind) else { continue };
            let some = bytes.min(row.free);
            row.free -= some;
            row.reserved += some;
            bytes -= some;
        }
        bytes
    }

    fn give_back(&mut self, block: &Block) {
        let mut bytes = block.size;
        for id in &block.numa_affinity {
            let Some(node) = self.machine.get_mut(id) else { continue };
            node.number_of_assignments = node.number_of_assignments.saturating_sub(1);
            if node.number_of_assignments == 0 {
                node.cells = vec![*id];
            }
            let Some(row) = node.memory_map.get_mut(&block.kind) else { continue };
            let some = bytes.min(row.reserved);
            row.reserved -= some;
            row.free += some;
            bytes -= some;
        }
    }

    /// Takes back what a pod was promised; true if there was something.
    pub fn release(&mut self, uid: &str) -> bool {
        let Some(of_pod) = self.entries.remove(uid) else { return false };
        of_pod.values().flatten().for_each(|block| self.give_back(block));
        true
    }

    /// Whether these nodes may be used together.
    fn may_group(&self, mask: Mask) -> bool {
        let cells: Vec<u32> = mask.nodes().collect();
        cells.iter().filter_map(|id| self.machine.get(id)).all(|node| match (cells.len(), node.cells.len()) {
            (1, group) => group == 1,
            (_, _) if node.number_of_assignments == 0 => true,
            (_, 1) => false,
            _ => Mask::of(node.cells.iter().copied()) == mask,
        })
    }

    /// Where so much could be had; `reusable` is what the pod's init containers leave, by nodes and kind.
    pub fn hints(&self, wanted: &Bytes, reusable: &Reusable) -> Vec<Hint> {
        let nodes: Vec<u32> = self.machine.keys().copied().collect();
        let mut least = nodes.len() as u32;
        let mut masks = Vec::new();
        for mask in numa::combinations(&nodes) {
            let enough =
                |(kind, bytes): (&String, &u64)| self.sum(mask, kind, |row| row.allocatable) >= *bytes;
            if !wanted.iter().all(enough) {
                continue;
            }
            least = least.min(mask.len());
            let left = |kind: &String| reusable.get(&(mask, kind.clone())).copied().unwrap_or(0);
            let free = |(kind, bytes): (&String, &u64)| self.free(mask, kind) + left(kind) >= *bytes;
            if self.may_group(mask) && wanted.iter().all(free) {
                masks.push(mask);
            }
        }
        numa::hints(masks, least).unwrap_or_default()
    }

    /// Promises a container memory, on the nodes that all agreed on or else on those that are best.
    pub fn promise(
        &mut self,
        uid: &str,
        container: &str,
        wanted: &Bytes,
        agreed: Hint,
        reusable: &Reusable,
    ) -> Result<(), &'static str> {
        let hints = self.hints(wanted, reusable);
        let mut best = agreed;
        let mut mask = match agreed.mask {
            Some(mask) => mask,
            None => {
                let own = best_of(hints.iter().copied()).ok_or(
                    "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is \
                     available",
                )?;
                if !own.0.preferred && best.preferred {
                    return Err("[memorymanager] failed to find the default preferred hint");
                }
                best = own.0;
                own.1
            }
        };
        if !wanted.iter().all(|(kind, bytes)| self.free(mask, kind) >= *bytes) {
            // What all agreed on may be less than memory needs: the smallest set that holds it will do.
            let around =
                hints.iter().copied().filter(|hint| hint.mask.is_some_and(|own| mask.is_within(own)));
            let wider = best_of(around)
                .ok_or("[memorymanager] failed to find NUMA nodes to extend the current topology hint")?;
            if !wider.0.preferred && best.preferred {
                return Err("[memorymanager] failed to find the extended preferred hint");
            }
            mask = wider.1;
        }
        if mask.len() > 1 && !self.may_group(mask) {
            return Err("[memorymanager] preferred hint violates NUMA node allocation");
        }
        let mut blocks = Vec::new();
        for (kind, bytes) in wanted {
            let left = reusable.get(&(mask, kind.clone())).copied().unwrap_or(0);
            self.take(mask, kind, bytes.saturating_sub(left));
            blocks.push(Block { numa_affinity: mask.nodes().collect(), kind: kind.clone(), size: *bytes });
        }
        self.entries.entry(uid.to_owned()).or_default().insert(container.to_owned(), blocks);
        Ok(())
    }

    /// Counts what a container uses again as its own and no longer its init containers'.
    pub fn reuse(&mut self, uid: &str, init: &[String], container: &str) {
        let Some(of_pod) = self.entries.get_mut(uid) else { return };
        let used = of_pod.get(container).cloned().unwrap_or_default();
        for block in used {
            let mut bytes = block.size;
            for name in init.iter().take_while(|name| *name != container) {
                for own in of_pod.get_mut(name).into_iter().flatten() {
                    if own.kind == block.kind && own.numa_affinity == block.numa_affinity {
                        let some = bytes.min(own.size);
                        own.size -= some;
                        bytes -= some;
                    }
                }
            }
        }
    }

    /// What init containers of a pod leave to those that come after them.
    pub fn reusable(&self, uid: &str, init: &[String]) -> Reusable {
        let mut left = Reusable::new();
        let Some(of_pod) = self.entries.get(uid) else { return left };
        for block in init.iter().filter_map(|name| of_pod.get(name)).flatten() {
            *left.entry((block.mask(), block.kind.clone())).or_default() += block.size;
        }
        left
    }
}

/// Bytes by nodes and kind.
pub type Reusable = BTreeMap<(Mask, String), u64>;

/// Preferred ones first, then the narrowest.
fn best_of(hints: impl Iterator<Item = Hint>) -> Option<(Hint, Mask)> {
    let hints = hints.filter_map(|hint| Some((hint, hint.mask?)));
    hints.reduce(|best, other| {
        let better = match (best.0.preferred, other.0.preferred) {
            (false, true) => true,
            (true, false) => false,
            _ => other.1.is_narrower_than(best.1),
        };
        if better { other } else { best }
    })
}

/// Hints for each kind of memory, as all of them want to be together.
pub fn for_each_kind(wanted: &Bytes, hints: &[Hint]) -> Vec<Hints> {
    wanted.keys().map(|_| Some(hints.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn node(id: u32) -> Node {
        Node { id, memory: 10 * GIB, huge_pages: vec![(2 << 20, GIB)], distances: Vec::new() }
    }

    fn table(count: u32) -> Table {
        let nodes: Vec<Node> = (0..count).map(node).collect();
        let kept = BTreeMap::from([(0, Bytes::from([("memory".to_owned(), GIB)]))]);
        Table { machine: fresh(&nodes, &kept), entries: Entries::new() }
    }

    fn memory(gib: u64) -> Bytes {
        [("memory".to_owned(), gib * GIB)].into()
    }

    fn any() -> Hint {
        Hint { mask: None, preferred: true }
    }

    fn shown(hints: &[Hint]) -> Vec<(String, bool)> {
        hints.iter().map(|hint| (hint.mask.unwrap().list(), hint.preferred)).collect()
    }

    fn pairs(list: &[(&str, bool)]) -> Vec<(String, bool)> {
        list.iter().map(|(mask, preferred)| (mask.to_string(), *preferred)).collect()
    }

    #[test]
    fn what_there_is() {
        let table = table(2);
        let row = |id: u32, kind: &str| table.machine[&id].memory_map[kind];
        assert_eq!((row(0, "memory").allocatable, row(1, "memory").allocatable), (8 * GIB, 9 * GIB));
        assert_eq!(row(1, "hugepages-2Mi").free, GIB);
    }

    #[test]
    fn hints_and_groups() {
        let mut table = table(2);
        let none = Reusable::new();
        let small = table.hints(&memory(8), &none);
        assert_eq!(shown(&small), pairs(&[("0", true), ("1", true), ("0-1", false)]));
        assert_eq!(shown(&table.hints(&memory(9), &none)), pairs(&[("1", true), ("0-1", false)]));
        assert_eq!(shown(&table.hints(&memory(17), &none)), pairs(&[("0-1", true)]));
        assert!(table.hints(&memory(18), &none).is_empty());
        // One node is used for itself: no group with it.
        table.promise("a", "c", &memory(5), any(), &none).unwrap();
        assert_eq!(table.machine[&0].memory_map["memory"].reserved, 5 * GIB);
        assert!(table.hints(&memory(12), &none).is_empty());
        assert_eq!(shown(&table.hints(&memory(4), &none)), pairs(&[("1", true)]));
        assert_eq!(
            table.promise("b", "c", &memory(12), any(), &none),
            Err(
                "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available"
            )
        );
        assert!(table.release("a") && !table.release("a"));
        // A group: nothing for itself on its nodes.
        table.promise("g", "c", &memory(12), any(), &none).unwrap();
        assert_eq!(table.machine[&1].cells, [0, 1]);
        assert_eq!(shown(&table.hints(&memory(2), &none)), pairs(&[("0-1", false)]));
        assert_eq!(
            table.promise("h", "c", &memory(2), any(), &none),
            Err("[memorymanager] failed to find the default preferred hint")
        );
        let wide = Hint { mask: None, preferred: false };
        table.promise("h", "c", &memory(2), wide, &none).unwrap();
        assert_eq!(table.machine[&0].number_of_assignments, 2);
        table.release("g");
        table.release("h");
        assert_eq!(table, self::table(2));
    }

    #[test]
    fn what_was_agreed_on() {
        let mut table = table(2);
        let none = Reusable::new();
        let on = |node: u32, preferred| Hint { mask: Some(Mask::of([node])), preferred };
        table.promise("a", "c", &memory(1), on(1, true), &none).unwrap();
        assert_eq!(table.entries["a"]["c"][0].numa_affinity, [1]);
        table.release("a");
        // More than that node has: extended, unless the narrow place was a must.
        assert_eq!(
            table.promise("a", "c", &memory(18), on(1, true), &none),
            Err("[memorymanager] failed to find NUMA nodes to extend the current topology hint")
        );
        table.promise("a", "c", &memory(16), on(1, false), &none).unwrap();
        assert_eq!(table.entries["a"]["c"][0].numa_affinity, [0, 1]);
    }

    #[test]
    fn init_containers_leave_theirs() {
        let mut table = table(1);
        let init = ["i".to_owned()];
        table.promise("a", "i", &memory(6), any(), &Reusable::new()).unwrap();
        let left = table.reusable("a", &init);
        table.promise("a", "c", &memory(7), any(), &left).unwrap();
        table.reuse("a", &init, "c");
        assert_eq!(table.machine[&0].memory_map["memory"].reserved, 7 * GIB);
        assert_eq!((table.entries["a"]["i"][0].size, table.entries["a"]["c"][0].size), (0, 7 * GIB));
        assert!(table.reusable("a", &init).values().all(|bytes| *bytes == 0));
        let entries = table.entries.clone();
        assert_eq!(replay(self::table(1).machine, entries.clone()), Some(table.clone()));
        let mut huge = entries;
        huge.get_mut("a").unwrap().get_mut("c").unwrap()[0].size = 99 * GIB;
        assert_eq!(replay(self::table(1).machine, huge), None);
        table.release("a");
        assert_eq!(table, self::table(1));
    }
}
