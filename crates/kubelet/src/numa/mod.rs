//! NUMA nodes: what each of them has, sets of them, and the hints by which processors, memory and devices say where
//! a container had best be.
//!
//! How hints become one (`merge`) is pure; who gives them and what follows from them is `crate::topology`.

pub mod merge;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Most NUMA nodes that sets can hold; the combinations of fewer are already more than anybody could look at.
pub const NODES_MAX: u32 = 64;

/// A set of NUMA nodes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mask(u64);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.list())
    }
}

impl Mask {
    /// The set of these nodes.
    pub fn of(nodes: impl IntoIterator<Item = u32>) -> Mask {
        Mask(nodes.into_iter().filter(|node| *node < NODES_MAX).fold(0, |bits, node| bits | 1 << node))
    }

    /// Its nodes, in order.
    pub fn nodes(self) -> impl Iterator<Item = u32> {
        (0..NODES_MAX).filter(move |node| self.has(*node))
    }

    /// How many.
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// None.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a node is in it.
    pub fn has(self, node: u32) -> bool {
        node < NODES_MAX && self.0 >> node & 1 == 1
    }

    /// What is in both.
    pub fn and(self, other: Mask) -> Mask {
        Mask(self.0 & other.0)
    }

    /// Whether all of it is in another.
    pub fn is_within(self, other: Mask) -> bool {
        self.0 & !other.0 == 0
    }

    /// Fewer nodes, or as many with lower numbers.
    pub fn is_narrower_than(self, other: Mask) -> bool {
        match self.len().cmp(&other.len()) {
            std::cmp::Ordering::Equal => self.0 < other.0,
            order => order.is_lt(),
        }
    }

    /// `0-1,3`.
    pub fn list(self) -> String {
        crate::cpu::format(&self.nodes().collect::<BTreeSet<u32>>())
    }
}

/// All sets of some of these nodes, the small ones first.
pub fn combinations(nodes: &[u32]) -> Vec<Mask> {
    let mut all: Vec<Mask> = vec![Mask::default()];
    for node in nodes {
        let with: Vec<Mask> = all.iter().map(|mask| Mask(mask.0 | Mask::of([*node]).0)).collect();
        all.extend(with);
    }
    all.retain(|mask| !mask.is_empty());
    all.sort_by_key(|mask| (mask.len(), mask.nodes().collect::<Vec<_>>()));
    all
}

/// Where something could be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    /// On these nodes; `None` for any.
    pub mask: Option<Mask>,
    /// It could not be had on fewer.
    pub preferred: bool,
}

/// Hints of one resource; `None` where it does not matter, empty where it cannot be had at all.
pub type Hints = Option<Vec<Hint>>;

/// Hints for these masks: those as small as the `least` are preferred.
pub fn hints(masks: Vec<Mask>, least: u32) -> Hints {
    Some(masks.into_iter().map(|mask| Hint { mask: Some(mask), preferred: mask.len() == least }).collect())
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Its number.
    pub id: u32,
    /// Memory, in bytes.
    pub memory: u64,
    /// Huge pages: size and how much memory there is in them, in bytes.
    pub huge_pages: Vec<(u64, u64)>,
    /// How far it is to each node, by their order.
    pub distances: Vec<u32>,
}

/// The nodes of this machine that have processors or memory.
pub fn read() -> Vec<Node> {
    read_from(Path::new("/sys/devices/system/node"))
}

fn read_from(root: &Path) -> Vec<Node> {
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let online = crate::cpu::parse(&text(&root.join("online"))).unwrap_or_default();
    let nodes = online.into_iter().filter(|id| *id < NODES_MAX).map(|id| {
        let own = root.join(format!("node{id}"));
        let meminfo = text(&own.join("meminfo"));
        let memory = meminfo.lines().find_map(|line| {
            let kib =
                line.split_once("MemTotal:")?.1.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
            Some(kib * 1024)
        });
        let mut huge_pages: Vec<(u64, u64)> = fs::read_dir(own.join("hugepages"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let size = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()? * 1024;
                let count = text(&entry.path().join("nr_hugepages")).trim().parse::<u64>().ok()?;
                Some((size, size * count))
            })
            .collect();
        huge_pages.sort_unstable();
        let distances = text(&own.join("distance"));
        let distances = distances.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        Node { id, memory: memory.unwrap_or(0), huge_pages, distances }
    });
    nodes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        let all = combinations(&[0, 1, 2]);
        let shown: Vec<String> = all.iter().map(|mask| mask.list()).collect();
        assert_eq!(shown, ["0", "1", "2", "0-1", "0,2", "1-2", "0-2"]);
        let table = [([0].as_slice(), [1].as_slice(), true), (&[1], &[0], false), (&[3], &[0, 1], true)];
        for (a, b, narrower) in table {
            assert_eq!(Mask::of(a.iter().copied()).is_narrower_than(Mask::of(b.iter().copied())), narrower);
        }
        assert!(Mask::of([1]).is_within(Mask::of([0, 1])) && !Mask::of([1, 2]).is_within(Mask::of([0, 1])));
        assert!(!Mask::of([99]).has(99));
    }

    #[test]
    fn a_machine_of_two_nodes() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("online", "0-1\n");
        for id in [0, 1] {
            write(
                &format!("node{id}/meminfo"),
                &format!("Node {id} MemTotal:       1024 kB\nNode {id} MemFree: 1 kB\n"),
            );
            write(&format!("node{id}/distance"), "10 20\n");
            write(&format!("node{id}/hugepages/hugepages-2048kB/nr_hugepages"), "3\n");
        }
        let nodes = read_from(root.path());
        assert_eq!(nodes.len(), 2);
        let expected =
            Node { id: 1, memory: 1 << 20, huge_pages: vec![(2 << 20, 6 << 20)], distances: vec![10, 20] };
        assert_eq!(nodes[1], expected);
    }

    #[test]
    fn this_machine() {
        assert!(read().iter().map(|node| node.memory).sum::<u64>() > 0);
    }
}
