//! Processors of several NUMA nodes in equal parts (`distribute-cpus-across-numa`). Pure.

use std::collections::BTreeMap;

use super::Set;
use super::take::{Options, Processor, take};
use crate::numa;

/// Takes `wanted` of the `free` processors from as few nodes as it takes, the same number from each, in units of
/// `unit`; where there is a choice, the way that leaves the nodes most alike. `None` where no nodes have such parts.
pub(super) fn evenly(
    topology: &[Processor],
    free: &Set,
    wanted: usize,
    unit: usize,
    options: Options,
) -> Option<Set> {
    if wanted == 0 || unit == 0 {
        return None;
    }
    let mut left: BTreeMap<u32, Set> = BTreeMap::new();
    for cpu in topology {
        let of = left.entry(cpu.node).or_default();
        if free.contains(&cpu.id) {
            of.insert(cpu.id);
        }
    }
    let nodes: Vec<u32> = left.keys().copied().collect();
    let mut best: Option<(f64, Vec<(u32, usize)>)> = None;
    let mut least = u32::MAX;
    for mask in numa::combinations(&nodes).into_iter() {
        if mask.len() > least {
            break;
        }
        let Some(parts) = parts(&left, &mask.nodes().collect::<Vec<_>>(), wanted, unit) else { continue };
        least = mask.len();
        let score = spread(&left, &parts);
        if best.as_ref().is_none_or(|(lowest, _)| score < *lowest) {
            best = Some((score, parts));
        }
    }
    let mut taken = Set::new();
    for (node, count) in best?.1 {
        let own = left.get(&node)?;
        taken.extend(take(topology, own, count, Options { across_nodes: false, ..options })?);
    }
    Some(taken)
}

/// How many of each node; units that do not divide go to those that have most left.
fn parts(left: &BTreeMap<u32, Set>, nodes: &[u32], wanted: usize, unit: usize) -> Option<Vec<(u32, usize)>> {
    let each = wanted / nodes.len().max(1) / unit * unit;
    if each == 0 && nodes.len() > 1 {
        return None;
    }
    let has = |node: &u32| left.get(node).map_or(0, Set::len);
    if nodes.iter().any(|node| has(node) < each) || nodes.iter().map(has).sum::<usize>() < wanted {
        return None;
    }
    let mut parts: Vec<(u32, usize)> = nodes.iter().map(|node| (*node, each)).collect();
    let mut missing = wanted - each * nodes.len();
    while missing > 0 {
        let step = unit.min(missing);
        let most = parts.iter_mut().filter(|(node, count)| has(node) >= *count + step);
        // The first of those that are alike.
        let most = most.rev().max_by_key(|(node, count)| has(node) - *count)?;
        most.1 += step;
        missing -= step;
    }
    Some(parts)
}

/// How unlike the nodes are in what they have left.
fn spread(left: &BTreeMap<u32, Set>, parts: &[(u32, usize)]) -> f64 {
    let taken = |node: &u32| parts.iter().find(|(id, _)| id == node).map_or(0, |(_, count)| *count);
    let rest: Vec<f64> =
        left.iter().map(|(node, own)| own.len().saturating_sub(taken(node)) as f64).collect();
    let mean = rest.iter().sum::<f64>() / rest.len().max(1) as f64;
    rest.iter().map(|count| (count - mean).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::{format, parse};
    use super::*;

    #[test]
    fn equal_parts() {
        // Two nodes of four cores of two threads.
        let topology: Vec<Processor> = (0..16)
            .map(|id| Processor { id, core: id / 2, socket: id / 8, node: id / 8, cache: id / 8 })
            .collect();
        let table = [
            // It fits into one.
            ("0-15", 4, 1, Some("0-3")),
            ("0-15", 8, 1, Some("0-7")),
            ("0-15", 10, 1, Some("0-4,8-12")),
            ("0-15", 12, 2, Some("0-5,8-13")),
            ("0-15", 10, 2, Some("0-5,8-11")),
            // The fuller one gives more.
            ("2-15", 11, 1, Some("2-6,8-13")),
            // One that leaves both alike.
            ("2-15", 2, 1, Some("8-9")),
            ("0-15", 17, 1, None),
        ];
        for (free, wanted, unit, expected) in table {
            let taken = evenly(&topology, &parse(free).unwrap(), wanted, unit, Options::default());
            assert_eq!(taken.map(|set| format(&set)).as_deref(), expected, "{wanted} of {free} by {unit}");
        }
    }
}
