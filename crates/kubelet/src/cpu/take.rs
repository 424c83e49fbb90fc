//! Which processors to take: whole sockets before whole cores before single threads, the fullest first. Pure.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::Set;

/// A logical processor and where it sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// Its number.
    pub id: u32,
    /// Its core, unique on the machine.
    pub core: u32,
    /// Its socket.
    pub socket: u32,
    /// Its NUMA node.
    pub node: u32,
    /// The last-level cache it shares.
    pub cache: u32,
}

/// How processors are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Equal parts of each NUMA node where one is not enough.
    pub across_nodes: bool,
    /// One thread of each core before the second of any.
    pub across_cores: bool,
    /// Those that share a last-level cache.
    pub by_cache: bool,
}

/// The processors of this machine that are online.
pub fn read() -> Vec<Processor> {
    let root = Path::new("/sys/devices/system/cpu");
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let number = |path: &Path| text(path).trim().parse::<u32>().ok();
    let online = super::parse(&text(&root.join("online"))).unwrap_or_default();
    let mut cores: BTreeMap<(u32, u32), u32> = BTreeMap::new();
    online
        .into_iter()
        .map(|id| {
            let own = root.join(format!("cpu{id}"));
            let socket = number(&own.join("topology/physical_package_id")).unwrap_or(0);
            let core = number(&own.join("topology/core_id")).unwrap_or(id);
            let next = cores.len() as u32;
            let core = *cores.entry((socket, core)).or_insert(next);
            let entries = fs::read_dir(&own).into_iter().flatten().flatten();
            let node = entries
                .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
                .next();
            let shared = text(&own.join("cache/index3/shared_cpu_list"));
            // A cache is known by the first processor that has it; without one the node stands in.
            let cache = super::parse(&shared).and_then(|set| set.first().copied());
            let node = node.unwrap_or(0);
            Processor { id, core, socket, node, cache: cache.unwrap_or(node) }
        })
        .collect()
}

/// Threads of the largest core.
pub fn threads_per_core(topology: &[Processor]) -> usize {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    topology.iter().for_each(|cpu| *counts.entry(cpu.core).or_default() += 1);
    counts.into_values().max().unwrap_or(1)
}

/// Units of processors that are free as a whole and still fit, taken the larger ones first.
fn take_whole(topology: &[Processor], free: &Set, wanted: usize, units: &[fn(&Processor) -> u32]) -> Set {
    let mut taken = Set::new();
    for unit in units {
        let mut members: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for cpu in topology {
            members.entry(unit(cpu)).or_default().push(cpu.id);
        }
        let mut whole: Vec<Vec<u32>> = members
            .into_values()
            .filter(|ids| ids.iter().all(|id| free.contains(id) && !taken.contains(id)))
            .collect();
        // Cores of the socket that has least to give come first: large holes stay whole.
        whole.sort_by_key(|ids| {
            let first = ids.first().copied().unwrap_or(0);
            (left_beside(topology, free, &taken, first), first)
        });
        for ids in whole {
            if taken.len() + ids.len() <= wanted {
                taken.extend(ids);
            }
        }
    }
    taken
}

/// What is free of the smallest group of a shared cache that has `wanted`.
fn of_one_cache(topology: &[Processor], free: &Set, wanted: usize) -> Option<Set> {
    let mut groups: BTreeMap<u32, Set> = BTreeMap::new();
    for cpu in topology.iter().filter(|cpu| free.contains(&cpu.id)) {
        groups.entry(cpu.cache).or_default().insert(cpu.id);
    }
    groups.into_values().filter(|group| group.len() >= wanted).min_by_key(Set::len)
}

/// Takes `wanted` of the `free` processors.
pub fn take(topology: &[Processor], free: &Set, wanted: usize, options: Options) -> Option<Set> {
    if free.len() < wanted {
        return None;
    }
    if options.across_cores {
        return Some(one_of_each_core(topology, free, wanted));
    }
    let large: [fn(&Processor) -> u32; 2] = [|cpu| cpu.node, |cpu| cpu.socket];
    let mut taken = take_whole(topology, free, wanted, &large);
    if options.by_cache {
        let rest: Set = free.difference(&taken).copied().collect();
        let caches = take_whole(topology, &rest, wanted - taken.len(), &[|cpu| cpu.cache]);
        taken.extend(caches);
        let rest: Set = free.difference(&taken).copied().collect();
        let missing = wanted - taken.len();
        if let Some(group) = of_one_cache(topology, &rest, missing).filter(|_| missing > 0) {
            taken.extend(take_small(topology, &group, missing));
            return Some(taken);
        }
    }
    let rest: Set = free.difference(&taken).copied().collect();
    let missing = wanted - taken.len();
    taken.extend(take_small(topology, &rest, missing));
    (taken.len() == wanted).then_some(taken)
}

/// Whole cores, then threads of cores that are in use already, then of sockets with least left.
fn take_small(topology: &[Processor], free: &Set, wanted: usize) -> Set {
    let mut taken = take_whole(topology, free, wanted, &[|cpu| cpu.core]);
    let mut rest: Vec<u32> = free.difference(&taken).copied().collect();
    rest.sort_by_key(|id| {
        let core = topology.iter().find(|cpu| cpu.id == *id).map(|cpu| cpu.core);
        let siblings = topology.iter().filter(|cpu| Some(cpu.core) == core && free.contains(&cpu.id)).count();
        (siblings, left_beside(topology, free, &taken, *id), *id)
    });
    let missing = wanted.saturating_sub(taken.len());
    taken.extend(rest.into_iter().take(missing));
    taken
}

fn one_of_each_core(topology: &[Processor], free: &Set, wanted: usize) -> Set {
    let mut cores: BTreeMap<u32, u32> = BTreeMap::new();
    let mut order: Vec<(u32, u32, u32)> = Vec::new();
    for cpu in topology.iter().filter(|cpu| free.contains(&cpu.id)) {
        let turn = cores.entry(cpu.core).or_default();
        order.push((*turn, cpu.core, cpu.id));
        *turn += 1;
    }
    order.sort_unstable();
    order.into_iter().take(wanted).map(|(_, _, id)| id).collect()
}

/// How many processors of the socket of `id` are free yet.
fn left_beside(topology: &[Processor], free: &Set, taken: &Set, id: u32) -> usize {
    let socket = topology.iter().find(|cpu| cpu.id == id).map(|cpu| cpu.socket);
    let beside = topology.iter().filter(|cpu| Some(cpu.socket) == socket);
    beside.filter(|cpu| free.contains(&cpu.id) && !taken.contains(&cpu.id)).count()
}

#[cfg(test)]
mod tests {
    use super::super::{format, parse};
    use super::*;

    #[test]
    fn what_is_taken() {
        // Two sockets of two cores of two threads.
        let topology: Vec<Processor> = (0..8)
            .map(|id| Processor { id, core: id / 2, socket: id / 4, node: id / 4, cache: id / 4 })
            .collect();
        let table = [
            ("0-7", 1, "0"),
            ("0-7", 2, "0-1"),
            ("0-7", 4, "0-3"),
            ("0-7", 6, "0-5"),
            ("1-7", 2, "2-3"),
            ("1-7", 4, "4-7"),
            ("1-7", 1, "1"),
            ("1-7", 3, "1-3"),
            ("1,3,4-7", 2, "4-5"),
            ("1,3,5,7", 3, "1,3,5"),
            ("0-7", 8, "0-7"),
        ];
        for (free, wanted, expected) in table {
            let taken = take(&topology, &parse(free).unwrap(), wanted, Options::default()).unwrap();
            assert_eq!(format(&taken), expected, "{wanted} of {free}");
        }
        assert_eq!(take(&topology, &parse("0-2").unwrap(), 4, Options::default()), None);
        assert_eq!(threads_per_core(&topology), 2);
    }

    #[test]
    fn other_ways() {
        // One socket of two caches of four cores of two threads.
        let topology: Vec<Processor> =
            (0..16).map(|id| Processor { id, core: id / 2, socket: 0, node: 0, cache: id / 8 }).collect();
        let cache = Options { by_cache: true, ..Options::default() };
        let cores = Options { across_cores: true, ..Options::default() };
        let table = [
            (cache, "6-15", 4, "8-11"),
            (cache, "2-15", 6, "2-7"),
            (cache, "4-15", 8, "8-15"),
            (cache, "4-15", 10, "4-5,8-15"),
            (cache, "4-7,12-15", 6, "4-7,12-13"),
            (cores, "0-15", 4, "0,2,4,6"),
            (cores, "0-3", 3, "0-2"),
        ];
        for (options, free, wanted, expected) in table {
            let taken = take(&topology, &parse(free).unwrap(), wanted, options).unwrap();
            assert_eq!(format(&taken), expected, "{wanted} of {free} {options:?}");
        }
    }

    #[test]
    fn this_machine() {
        let topology = read();
        assert!(!topology.is_empty());
        assert_eq!(topology.len(), std::thread::available_parallelism().unwrap().get().max(topology.len()));
    }
}
