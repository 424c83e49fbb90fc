//! Many hints to one: every way to take one hint of each resource is looked at, and the policy says which is best
//! and whether it is good enough. Pure.

use std::collections::BTreeSet;

use super::{Hint, Hints, Mask, Node};
use crate::config::TopologyPolicy;

/// What a policy makes of hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// Where the container is to be.
    pub hint: Hint,
    /// Whether it may run.
    pub admit: bool,
}

/// The machine and its policy.
#[derive(Debug, Clone)]
pub struct Merger<'a> {
    /// Its nodes.
    pub nodes: &'a [Node],
    /// The policy.
    pub policy: TopologyPolicy,
    /// Nodes that are near to each other are better (`prefer-closest-numa-nodes`).
    pub prefer_closest: bool,
}

impl Merger<'_> {
    fn all(&self) -> Mask {
        Mask::of(self.nodes.iter().map(|node| node.id))
    }

    /// Merges the hints of all resources.
    pub fn merge(&self, resources: &[Hints]) -> Merged {
        let lists: Vec<Vec<Hint>> = resources.iter().map(accumulate).collect();
        let lists = match self.policy {
            TopologyPolicy::SingleNumaNode => lists.into_iter().map(single).collect(),
            _ => lists,
        };
        let mut hint = self.best(&lists);
        // The whole machine says nothing.
        if self.policy == TopologyPolicy::SingleNumaNode && hint.mask == Some(self.all()) {
            hint.mask = None;
        }
        let admit = match self.policy {
            TopologyPolicy::None | TopologyPolicy::BestEffort => true,
            TopologyPolicy::Restricted | TopologyPolicy::SingleNumaNode => hint.preferred,
        };
        Merged { hint, admit }
    }

    /// The best of all permutations.
    fn best(&self, lists: &[Vec<Hint>]) -> Hint {
        let fallback = Hint { mask: Some(self.all()), preferred: false };
        // However well hints that are not preferred lie, no provider can do with fewer nodes than this.
        let least = |list: &Vec<Hint>| list.iter().filter_map(|hint| hint.mask).map(Mask::len).min();
        let wanted = lists.iter().filter_map(least).max().unwrap_or(0);
        // Hints that merge to the same are the same from there on: what is kept stays small.
        let mut merged: BTreeSet<(Mask, Option<Mask>, bool)> = BTreeSet::from([(self.all(), None, true)]);
        for list in lists {
            let mut next = BTreeSet::new();
            for (mask, first, preferred) in &merged {
                for hint in list {
                    let both = hint.mask.map_or(*mask, |own| mask.and(own));
                    // Only hints that are equal are preferred together.
                    let equal = hint.mask.is_none_or(|own| first.is_none_or(|first| first == own));
                    match *preferred && hint.preferred && equal {
                        true => next.insert((both, first.or(hint.mask), true)),
                        false => next.insert((both, None, false)),
                    };
                }
            }
            merged = next;
        }
        let candidates = merged.into_iter().filter(|(mask, ..)| !mask.is_empty());
        let candidates = candidates.map(|(mask, _, preferred)| Candidate { mask, preferred });
        let best = candidates.reduce(|best, other| self.better(best, other, wanted));
        best.map_or(fallback, |best| Hint { mask: Some(best.mask), preferred: best.preferred })
    }

    fn better(&self, current: Candidate, other: Candidate, wanted: u32) -> Candidate {
        match (current.preferred, other.preferred) {
            (false, true) => return other,
            (true, false) => return current,
            (true, true) => return self.closer(current, other),
            (false, false) => {}
        }
        let (own, others) = (current.mask.len(), other.mask.len());
        // As many nodes as are needed, or else the nearest number to it, from below at last.
        match own.cmp(&wanted) {
            std::cmp::Ordering::Greater => self.closer(current, other),
            std::cmp::Ordering::Equal if others == wanted => self.closer(current, other),
            std::cmp::Ordering::Equal => current,
            std::cmp::Ordering::Less if others > wanted => current,
            std::cmp::Ordering::Less if others > own => other,
            std::cmp::Ordering::Less if others < own => current,
            std::cmp::Ordering::Less => self.closer(current, other),
        }
    }

    /// Of two that are as good: the narrower one, or of as many nodes those nearer to each other.
    fn closer(&self, current: Candidate, other: Candidate) -> Candidate {
        if self.prefer_closest && current.mask.len() == other.mask.len() {
            let (own, others) = (self.distance(current.mask), self.distance(other.mask));
            if own != others {
                return if others < own { other } else { current };
            }
        }
        if other.mask.is_narrower_than(current.mask) { other } else { current }
    }

    /// Sum of the distances of every node to every other; those of as many nodes can be compared.
    fn distance(&self, mask: Mask) -> u64 {
        let places: Vec<usize> =
            self.nodes.iter().enumerate().filter(|(_, node)| mask.has(node.id)).map(|(at, _)| at).collect();
        let of = |from: usize, to: usize| self.nodes.get(from).and_then(|node| node.distances.get(to));
        let pairs = places.iter().flat_map(|from| places.iter().map(move |to| (*from, *to)));
        pairs.filter_map(|(from, to)| of(from, to)).map(|distance| u64::from(*distance)).sum()
    }
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    mask: Mask,
    preferred: bool,
}

fn accumulate(hints: &Hints) -> Vec<Hint> {
    match hints {
        None => vec![Hint { mask: None, preferred: true }],
        Some(list) if list.is_empty() => vec![Hint { mask: None, preferred: false }],
        Some(list) => list.clone(),
    }
}

/// Hints of one node, or of any.
fn single(list: Vec<Hint>) -> Vec<Hint> {
    let fits = |hint: &Hint| hint.preferred && hint.mask.is_none_or(|mask| mask.len() == 1);
    list.into_iter().filter(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32, distances: &[u32]) -> Node {
        Node { id, memory: 1 << 30, distances: distances.to_vec(), ..Node::default() }
    }

    fn hint(nodes: &[u32], preferred: bool) -> Hint {
        Hint { mask: Some(Mask::of(nodes.iter().copied())), preferred }
    }

    fn list(hints: &[(&[u32], bool)]) -> Hints {
        Some(hints.iter().map(|(nodes, preferred)| hint(nodes, *preferred)).collect())
    }

    #[test]
    fn policies() {
        use TopologyPolicy::{BestEffort, Restricted, SingleNumaNode};
        let nodes = [node(0, &[10, 20]), node(1, &[20, 10])];
        let one = list(&[(&[0], true), (&[1], true), (&[0, 1], false)]);
        let second = list(&[(&[1], true), (&[0, 1], false)]);
        let both = list(&[(&[0, 1], true)]);
        let table: Vec<(Vec<Hints>, TopologyPolicy, Hint, bool)> = vec![
            // Nobody cares.
            (vec![], BestEffort, hint(&[0, 1], true), true),
            (vec![None, None], Restricted, hint(&[0, 1], true), true),
            (vec![None], SingleNumaNode, Hint { mask: None, preferred: true }, true),
            // The lowest of two nodes that will do.
            (vec![one.clone(), None], BestEffort, hint(&[0], true), true),
            (vec![one.clone(), second.clone()], SingleNumaNode, hint(&[1], true), true),
            // What cannot be had.
            (vec![one.clone(), Some(vec![])], BestEffort, hint(&[0], false), true),
            (vec![one.clone(), Some(vec![])], Restricted, hint(&[0], false), false),
            (vec![Some(vec![])], SingleNumaNode, Hint { mask: None, preferred: false }, false),
            // It takes both nodes.
            (vec![both.clone()], Restricted, hint(&[0, 1], true), true),
            (vec![both.clone()], SingleNumaNode, Hint { mask: None, preferred: false }, false),
            // One wants one node and the other both: never preferred, and no wider than what both need.
            (vec![one.clone(), both.clone()], BestEffort, hint(&[0, 1], false), true),
            (vec![one.clone(), both], Restricted, hint(&[0, 1], false), false),
            // They lie on different nodes.
            (vec![list(&[(&[0], true)]), list(&[(&[1], true)])], BestEffort, hint(&[0, 1], false), true),
        ];
        for (resources, policy, expected, admit) in table {
            let merger = Merger { nodes: &nodes, policy, prefer_closest: false };
            assert_eq!(
                merger.merge(&resources),
                Merged { hint: expected, admit },
                "{policy:?} {resources:?}"
            );
        }
    }

    #[test]
    fn near_nodes() {
        let nodes = [
            node(0, &[10, 30, 20, 30]),
            node(1, &[30, 10, 30, 20]),
            node(2, &[20, 30, 10, 30]),
            node(3, &[30, 20, 30, 10]),
        ];
        let pairs = list(&[(&[0, 1], true), (&[1, 3], true), (&[0, 2], true), (&[2, 3], true)]);
        let merge = |prefer_closest| {
            let merger = Merger { nodes: &nodes, policy: TopologyPolicy::Restricted, prefer_closest };
            merger.merge(std::slice::from_ref(&pairs)).hint
        };
        assert_eq!(merge(false), hint(&[0, 1], true));
        assert_eq!(merge(true), hint(&[0, 2], true));
    }

    #[test]
    fn many_hints_stay_few() {
        let nodes: Vec<Node> = (0..8).map(|id| node(id, &[])).collect();
        let ids: Vec<u32> = (0..8).collect();
        let every = super::super::hints(super::super::combinations(&ids), 1);
        let merger = Merger { nodes: &nodes, policy: TopologyPolicy::Restricted, prefer_closest: false };
        let merged = merger.merge(&vec![every; 6]);
        assert_eq!(merged, Merged { hint: hint(&[0], true), admit: true });
    }
}
