//! The memory manager: which NUMA nodes the memory of Guaranteed pods' containers comes from.
//!
//! What is promised to whom is decided in `table`; the state survives restarts in a file of upstream's form.

pub mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use api::prelude::*;
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::table::{Block, Bytes, Entries, Machine, Table};
use crate::config::Config;
use crate::numa::{Hint, Hints, Mask, Node};
use crate::resources::{self, Qos};
use crate::spec::{self, Role};

/// Memory that a container of a Guaranteed pod asks for; empty where it is not the manager's business.
pub fn wanted(pod: &Pod, container: &Container) -> Bytes {
    if resources::qos(pod) != Qos::Guaranteed || has_pod_level(pod) {
        return Bytes::new();
    }
    memory_of(resources::requests(container))
}

/// Resources of the pod as a whole are not told apart by container.
fn has_pod_level(pod: &Pod) -> bool {
    spec::spec(pod).resources.as_ref().is_some_and(|r| r.requests.is_some() || r.limits.is_some())
}

fn memory_of(amounts: resources::Amounts) -> Bytes {
    let ours = amounts.into_iter().filter(|(name, _)| name == "memory" || name.starts_with("hugepages-"));
    ours.filter_map(|(name, bytes)| Some((name, u64::try_from(bytes).ok()?))).collect()
}

fn init_names(pod: &Pod) -> Vec<String> {
    let init = spec::containers(pod).into_iter().filter(|(role, _)| *role == Role::Init);
    init.map(|(_, container)| container.name.clone()).collect()
}

/// The memory of the node's NUMA nodes and who has it.
#[derive(Debug)]
pub struct Manager {
    active: bool,
    file: PathBuf,
    table: Mutex<Table>,
}

/// FNV-1a: whether the record is whole, no more.
fn sum(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn write(policy: &str, table: &Table) -> String {
    let mut saved = json!({"policyName": policy, "machineState": table.machine, "entries": table.entries});
    let checksum = sum(&saved.to_string());
    if let Some(map) = saved.as_object_mut() {
        map.insert("checksum".into(), checksum.into());
    }
    saved.to_string()
}

/// The machine and the promises of a record; `None` for one that is damaged or of another policy.
fn read(policy: &str, text: &str) -> Option<(Machine, Entries)> {
    let mut saved: Value = serde_json::from_str(text).ok()?;
    let checksum = saved.as_object_mut()?.remove("checksum")?.as_u64()?;
    if checksum != u64::from(sum(&saved.to_string())) || saved.get("policyName")?.as_str()? != policy {
        return None;
    }
    let machine = serde_json::from_value(saved.get("machineState")?.clone()).ok()?;
    Some((machine, serde_json::from_value(saved.get("entries")?.clone()).ok()?))
}

impl Manager {
    /// The manager of a machine with these nodes, as its file says.
    pub fn new(config: &Config, nodes: &[Node]) -> Manager {
        let active = config.static_memory;
        let file = config.root_dir.join("memory_manager_state");
        let machine = table::fresh(nodes, &config.reserved_memory);
        let saved = fs::read_to_string(&file).ok().filter(|_| active);
        let table = saved.and_then(|text| {
            let table = read("Static", &text).and_then(|(_, entries)| table::replay(machine.clone(), entries));
            if table.is_none() {
                tracing::warn!(path = %file.display(), "the memory manager's state does not fit and begins anew");
            }
            table
        });
        let manager = Manager {
            active,
            file,
            table: Mutex::new(table.unwrap_or(Table { machine, entries: Entries::new() })),
        };
        if active {
            manager.save(&manager.table.lock());
        }
        manager
    }

    fn save(&self, table: &Table) {
        let new = self.file.with_extension("new");
        let written = fs::write(&new, write("Static", table)).and_then(|()| fs::rename(&new, &self.file));
        if let Err(error) = written {
            tracing::warn!(path = %self.file.display(), %error, "the memory manager's state could not be kept");
        }
    }

    /// Where a container's memory could come from.
    pub fn hints(&self, pod: &Pod, container: &Container) -> Vec<Hints> {
        let wanted = wanted(pod, container);
        self.hints_for(pod, &wanted, Some(&container.name))
    }

    /// Where the memory of all of a pod's containers could come from.
    pub fn pod_hints(&self, pod: &Pod) -> Vec<Hints> {
        if resources::qos(pod) != Qos::Guaranteed || has_pod_level(pod) {
            return vec![None];
        }
        let total = memory_of(resources::pod_total(pod, resources::requests));
        self.hints_for(pod, &total, None)
    }

    fn hints_for(&self, pod: &Pod, wanted: &Bytes, container: Option<&str>) -> Vec<Hints> {
        if !self.active || wanted.is_empty() {
            return vec![None];
        }
        let table = self.table.lock();
        if let Some(of_pod) = table.entries.get(pod.uid()) {
            let own = container.map_or_else(|| of_pod.values().next(), |name| of_pod.get(name));
            if let Some(block) = own.and_then(|blocks| blocks.first()) {
                let mask = Mask::of(block.numa_affinity.iter().copied());
                return table::for_each_kind(wanted, &[Hint { mask: Some(mask), preferred: true }]);
            }
        }
        let reusable = table.reusable(pod.uid(), &init_names(pod));
        table::for_each_kind(wanted, &table.hints(wanted, &reusable))
    }

    /// Promises a container its memory; true if it was promised some now. The error is upstream's.
    pub fn allocate(&self, pod: &Pod, container: &Container, agreed: Hint) -> Result<bool, String> {
        let wanted = wanted(pod, container);
        if !self.active || wanted.is_empty() {
            return Ok(false);
        }
        let mut table = self.table.lock();
        let known = table.entries.get(pod.uid()).is_some_and(|of_pod| of_pod.contains_key(&container.name));
        if known {
            return Ok(false);
        }
        let init = init_names(pod);
        let reusable = table.reusable(pod.uid(), &init);
        table.promise(pod.uid(), &container.name, &wanted, agreed, &reusable)?;
        table.reuse(pod.uid(), &init, &container.name);
        self.save(&table);
        Ok(true)
    }

    /// Takes a pod's memory back.
    pub fn release(&self, uid: &str) {
        let mut table = self.table.lock();
        if table.release(uid) {
            self.save(&table);
        }
    }

    /// Takes back what pods have that no longer exist.
    pub fn keep_only(&self, exists: impl Fn(&str) -> bool) {
        let mut table = self.table.lock();
        let gone: Vec<String> = table.entries.keys().filter(|uid| !exists(uid)).cloned().collect();
        for uid in &gone {
            table.release(uid);
        }
        if !gone.is_empty() {
            self.save(&table);
        }
    }

    /// What a container was promised.
    pub fn blocks(&self, uid: &str, container: &str) -> Vec<Block> {
        let table = self.table.lock();
        table.entries.get(uid).and_then(|of_pod| of_pod.get(container)).cloned().unwrap_or_default()
    }

    /// NUMA nodes of a container, `0-1`; empty for all.
    pub fn nodes(&self, uid: &str, container: &str) -> String {
        let blocks = self.blocks(uid, container);
        Mask::of(blocks.into_iter().flat_map(|block| block.numa_affinity)).list()
    }

    /// What containers may be promised, by node and kind.
    pub fn allocatable(&self) -> Vec<Block> {
        let table = self.table.lock();
        let rows =
            table.machine.iter().flat_map(|(id, node)| node.memory_map.iter().map(move |row| (*id, row)));
        let rows = rows.filter(|(_, (_, row))| self.active && row.allocatable > 0);
        rows.map(|(id, (kind, row))| Block {
            numa_affinity: vec![id],
            kind: kind.clone(),
            size: row.allocatable,
        })
        .collect()
    }
}

/// What is kept on each node, as the configuration states it; summed up by kind.
pub fn reserved_total(kept: &BTreeMap<u32, Bytes>) -> Bytes {
    let mut total = Bytes::new();
    for (kind, bytes) in kept.values().flatten() {
        *total.entry(kind.clone()).or_default() += bytes;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, memory: &str) -> Pod {
        let limits = json!({"cpu": "1", "memory": memory});
        Pod::from_value(json!({"metadata": {"name": uid, "uid": uid},
            "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}]}}))
        .unwrap()
    }

    fn manager(directory: &std::path::Path, nodes: u32) -> Manager {
        let nodes: Vec<Node> = (0..nodes).map(|id| Node { id, memory: 4 << 30, ..Node::default() }).collect();
        let mut config = Config::new("n", directory.to_owned());
        config.root_dir = directory.to_owned();
        config.static_memory = true;
        config.reserved_memory = [(0, [("memory".to_owned(), 1 << 30)].into())].into();
        Manager::new(&config, &nodes)
    }

    #[test]
    fn over_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let manager = manager(directory.path(), 2);
        let any = Hint { mask: None, preferred: true };
        let first = pod("a", "2Gi");
        let container = &first.spec.as_ref().unwrap().containers[0];
        assert_eq!(manager.allocate(&first, container, any), Ok(true));
        assert_eq!(manager.allocate(&first, container, any), Ok(false));
        assert_eq!((manager.nodes("a", "c").as_str(), manager.nodes("a", "x").as_str()), ("0", ""));
        let text = fs::read_to_string(directory.path().join("memory_manager_state")).unwrap();
        let saved: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            saved["entries"]["a"]["c"],
            json!([{"numaAffinity": [0], "type": "memory", "size": 2u64 << 30}])
        );
        assert_eq!(
            saved["machineState"]["0"],
            json!({"numberOfAssignments": 1, "cells": [0], "memoryMap": {"memory": {"total": 4u64 << 30,
                "systemReserved": 1 << 30, "allocatable": 3u64 << 30, "reserved": 2u64 << 30, "free": 1 << 30}}})
        );
        let again = self::manager(directory.path(), 2);
        assert_eq!(again.blocks("a", "c"), manager.blocks("a", "c"));
        again.keep_only(|_| false);
        assert!(self::manager(directory.path(), 2).blocks("a", "c").is_empty());
        // Nobody who shares is promised anything.
        let shared =
            Pod::from_value(json!({"metadata": {"uid": "b"}, "spec": {"containers": [{"name": "c"}]}}))
                .unwrap();
        again.allocate(&shared, &shared.spec.as_ref().unwrap().containers[0], any).unwrap();
        assert!(again.blocks("b", "c").is_empty() && again.pod_hints(&shared) == [None]);
    }
}
