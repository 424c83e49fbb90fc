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
            Processor { id, core, socket, node: node.unwrap_or(0) }
        })
        .collect()
}

/// Threads of the largest core.
pub fn threads_per_core(topology: &[Processor]) -> usize {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    topology.iter().for_each(|cpu| *counts.entry(cpu.core).or_default() += 1);
    counts.into_values().max().unwrap_or(1)
}

/// Takes `wanted` of the `free` processors.
pub fn take(topology: &[Processor], free: &Set, wanted: usize) -> Option<Set> {
    if free.len() < wanted {
        return None;
    }
    let mut taken = Set::new();
    // Units that are free as a whole, the larger ones first.
    let units: [fn(&Processor) -> u32; 3] = [|cpu| cpu.node, |cpu| cpu.socket, |cpu| cpu.core];
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
    let mut rest: Vec<u32> = free.difference(&taken).copied().collect();
    // Threads of cores that are in use already, then of sockets with least left.
    rest.sort_by_key(|id| {
        let core = topology.iter().find(|cpu| cpu.id == *id).map(|cpu| cpu.core);
        let siblings = topology.iter().filter(|cpu| Some(cpu.core) == core && free.contains(&cpu.id)).count();
        (siblings, left_beside(topology, free, &taken, *id), *id)
    });
    let missing = wanted.saturating_sub(taken.len());
    taken.extend(rest.into_iter().take(missing));
    (taken.len() == wanted).then_some(taken)
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
        let topology: Vec<Processor> =
            (0..8).map(|id| Processor { id, core: id / 2, socket: id / 4, node: id / 4 }).collect();
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
            let taken = take(&topology, &parse(free).unwrap(), wanted).unwrap();
            assert_eq!(format(&taken), expected, "{wanted} of {free}");
        }
        assert_eq!(take(&topology, &parse("0-2").unwrap(), 4), None);
        assert_eq!(threads_per_core(&topology), 2);
    }

    #[test]
    fn this_machine() {
        let topology = read();
        assert!(!topology.is_empty());
        assert_eq!(topology.len(), std::thread::available_parallelism().unwrap().get().max(topology.len()));
    }
}
