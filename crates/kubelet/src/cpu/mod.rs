//! The CPU manager: processors of their own for containers of Guaranteed pods that ask for whole ones.
//!
//! Which processors are taken (`take`) is pure; the state survives restarts in a file of upstream's form. Everybody
//! else shares what is left, and is told whenever that changes.

pub(crate) mod follow;
mod take;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use api::prelude::*;
use parking_lot::Mutex;
use serde_json::{Value, json};

pub use take::{Processor, read, take};

use crate::config::{Config, CpuPolicy};
use crate::resources::{self, Qos};
use crate::spec::{self, Role};
use crate::status::Verdict;

/// A set of processors.
pub type Set = BTreeSet<u32>;

/// Reads `0-3,7`; `None` for what is no such list.
pub fn parse(text: &str) -> Option<Set> {
    let mut set = Set::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty() || !text.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        // The kernel knows no larger machines.
        if first > last || last >= 8192 {
            return None;
        }
        set.extend(first..=last);
    }
    Some(set)
}

/// Writes `0-3,7`.
pub fn format(set: &Set) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in set {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => ranges.push((*cpu, *cpu)),
        }
    }
    let text = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

/// Whole processors that a container is to have for itself.
pub fn exclusive(pod: &Pod, container: &Container) -> usize {
    if resources::qos(pod) != Qos::Guaranteed {
        return 0;
    }
    let milli = resources::requests(container).get("cpu").copied().unwrap_or(0);
    if milli % 1000 == 0 { usize::try_from(milli / 1000).unwrap_or(0) } else { 0 }
}

#[derive(Debug, Default)]
struct State {
    /// Processors by pod uid and container.
    owned: BTreeMap<String, BTreeMap<String, Set>>,
    /// What everybody else shares.
    shared: Set,
}

/// The processors of the node and who has them.
#[derive(Debug)]
pub struct Manager {
    policy: CpuPolicy,
    topology: Vec<Processor>,
    /// Kept from exclusive use.
    reserved: Set,
    file: PathBuf,
    state: Mutex<State>,
}

impl Manager {
    /// The manager of a machine with these processors, as its file says.
    pub fn new(config: &Config, topology: Vec<Processor>) -> Manager {
        let all: Set = topology.iter().map(|cpu| cpu.id).collect();
        let wanted = usize::try_from((config.reserved_cpu_milli + 999) / 1000).unwrap_or(0);
        let reserved = match (config.cpu_policy, config.reserved_cpus.is_empty()) {
            (CpuPolicy::None, _) => Set::new(),
            (_, false) => config.reserved_cpus.intersection(&all).copied().collect(),
            (_, true) => take(&topology, &all, wanted).unwrap_or_default(),
        };
        let file = config.root_dir.join("cpu_manager_state");
        let manager =
            Manager { policy: config.cpu_policy, topology, reserved, file, state: Mutex::default() };
        let mut state = manager.state.lock();
        if manager.policy != CpuPolicy::None {
            state.owned = manager.saved().unwrap_or_default();
        }
        manager.share(&mut state);
        drop(state);
        manager
    }

    fn policy_name(&self) -> &'static str {
        if self.policy == CpuPolicy::None { "none" } else { "static" }
    }

    fn saved(&self) -> Option<BTreeMap<String, BTreeMap<String, Set>>> {
        let saved: Value = serde_json::from_str(&fs::read_to_string(&self.file).ok()?).ok()?;
        if saved.get("policyName")?.as_str()? != self.policy_name() {
            return None;
        }
        let all: Set = self.topology.iter().map(|cpu| cpu.id).collect();
        let mut owned = BTreeMap::new();
        for (uid, containers) in saved.get("entries")?.as_object()? {
            let mut of_pod = BTreeMap::new();
            for (name, text) in containers.as_object()? {
                let set = parse(text.as_str()?)?;
                // Processors that went offline cannot be anybody's.
                if !set.is_subset(&all) {
                    return None;
                }
                of_pod.insert(name.clone(), set);
            }
            owned.insert(uid.clone(), of_pod);
        }
        Some(owned)
    }

    /// Computes what is shared, and writes all down.
    fn share(&self, state: &mut State) {
        let taken: Set = state.owned.values().flat_map(BTreeMap::values).flatten().copied().collect();
        let strict = matches!(self.policy, CpuPolicy::Static { strict_reservation: true, .. });
        state.shared = (self.topology.iter().map(|cpu| cpu.id))
            .filter(|cpu| !(taken.contains(cpu) || strict && self.reserved.contains(cpu)))
            .collect();
        if self.policy == CpuPolicy::None {
            return;
        }
        let entries: BTreeMap<&String, BTreeMap<&String, String>> = state
            .owned
            .iter()
            .map(|(uid, of_pod)| (uid, of_pod.iter().map(|(name, set)| (name, format(set))).collect()))
            .collect();
        let saved = json!({"policyName": self.policy_name(), "defaultCpuSet": format(&state.shared),
            "entries": entries});
        let new = self.file.with_extension("new");
        let written = fs::write(&new, saved.to_string()).and_then(|()| fs::rename(&new, &self.file));
        if let Err(error) = written {
            tracing::warn!(path = %self.file.display(), %error, "the CPU manager's state could not be kept");
        }
    }

    fn refused(reason: &str, message: String) -> Verdict {
        Verdict {
            reason: reason.into(),
            message: format!("Pod was rejected: {message}"),
            ..Verdict::default()
        }
    }

    /// Sets processors apart for a pod's containers; true if that changed what is shared. Init containers' are used
    /// again by those that come after them.
    pub fn allocate(&self, pod: &Pod) -> Result<bool, Verdict> {
        let CpuPolicy::Static { full_cores_only, .. } = self.policy else { return Ok(false) };
        let mut state = self.state.lock();
        if state.owned.contains_key(pod.uid()) {
            return Ok(false);
        }
        let taken: Set = state.owned.values().flat_map(BTreeMap::values).flatten().copied().collect();
        let mut free: Set = (self.topology.iter().map(|cpu| cpu.id))
            .filter(|cpu| !taken.contains(cpu) && !self.reserved.contains(cpu))
            .collect();
        let (mut own, mut reusable) = (BTreeMap::new(), Set::new());
        for (role, container) in spec::containers(pod) {
            let wanted = exclusive(pod, &container);
            if wanted == 0 || role == Role::Ephemeral {
                continue;
            }
            let threads = take::threads_per_core(&self.topology);
            if full_cores_only && !wanted.is_multiple_of(threads) {
                return Err(Self::refused(
                    "SMTAlignmentError",
                    format!(
                        "SMT Alignment Error: requested {wanted} cpus not multiple cpus per core = {threads}"
                    ),
                ));
            }
            // What init containers have had is nobody else's while the pod lives.
            let preferred: Set = reusable.iter().copied().take(wanted).collect();
            let available: Set = free.union(&reusable).copied().collect();
            let set = match preferred.len() == wanted {
                true => Some(preferred),
                false => take(&self.topology, &available, wanted),
            };
            let set = set.ok_or_else(|| {
                let message = format!(
                    "Allocate failed due to not enough cpus available to satisfy request: requested={wanted}, \
                     available={}, which is unexpected",
                    available.len()
                );
                Self::refused("UnexpectedAdmissionError", message)
            })?;
            free.retain(|cpu| !set.contains(cpu));
            match role {
                Role::Init => reusable.extend(set.iter().copied()),
                _ => reusable.retain(|cpu| !set.contains(cpu)),
            }
            own.insert(container.name.clone(), set);
        }
        if own.is_empty() {
            return Ok(false);
        }
        state.owned.insert(pod.uid().to_owned(), own);
        self.share(&mut state);
        Ok(true)
    }

    /// Takes a pod's processors back; true if it had some.
    pub fn release(&self, uid: &str) -> bool {
        let mut state = self.state.lock();
        let had = state.owned.remove(uid).is_some();
        if had {
            self.share(&mut state);
        }
        had
    }

    /// Takes back what pods have that no longer exist.
    pub fn keep_only(&self, exists: impl Fn(&str) -> bool) {
        let mut state = self.state.lock();
        state.owned.retain(|uid, _| exists(uid));
        self.share(&mut state);
    }

    /// Processors a container runs on; empty for all of them.
    pub fn of(&self, uid: &str, container: &str) -> String {
        let state = self.state.lock();
        match (self.policy, state.owned.get(uid).and_then(|of_pod| of_pod.get(container))) {
            (CpuPolicy::None, _) => String::new(),
            (_, Some(own)) => format(own),
            (_, None) => format(&state.shared),
        }
    }

    /// Processors that are a container's own.
    pub fn own(&self, uid: &str, container: &str) -> Set {
        let state = self.state.lock();
        state.owned.get(uid).and_then(|of_pod| of_pod.get(container)).cloned().unwrap_or_default()
    }

    /// Processors that containers may get.
    pub fn allocatable(&self) -> Set {
        let all = self.topology.iter().map(|cpu| cpu.id);
        all.filter(|cpu| !self.reserved.contains(cpu)).collect()
    }

    /// How many processors could still be set apart, by NUMA node.
    pub fn free_by_node(&self) -> BTreeMap<u32, usize> {
        let state = self.state.lock();
        let mut free = BTreeMap::new();
        for cpu in &self.topology {
            let count: &mut usize = free.entry(cpu.node).or_default();
            *count += usize::from(state.shared.contains(&cpu.id) && !self.reserved.contains(&cpu.id));
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        for text in ["", "0", "0-3,7", "1,3,5-6"] {
            assert_eq!(format(&parse(text).unwrap()), text);
        }
        assert_eq!(format(&parse("3,1-2,0").unwrap()), "0-3");
        for bad in ["a", "3-1", "1,,2", "1-", "99999"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    fn pod(uid: &str, init: &[&str], cpus: &[&str]) -> Pod {
        let container = |prefix: &str, index: usize, cpu: &str| json!({"name": format!("{prefix}{index}"), "resources": {"limits": {"cpu": cpu, "memory": "1Mi"}}});
        let list = |prefix: &str, cpus: &[&str]| -> Vec<Value> {
            cpus.iter().enumerate().map(|(index, cpu)| container(prefix, index, cpu)).collect()
        };
        Pod::from_value(json!({"metadata": {"name": uid, "uid": uid},
            "spec": {"initContainers": list("i", init), "containers": list("c", cpus)}}))
        .unwrap()
    }

    fn manager(directory: &std::path::Path, full_cores_only: bool) -> Manager {
        let topology =
            (0..8).map(|id| Processor { id, core: id / 2, socket: id / 4, node: id / 4 }).collect();
        let mut config = Config::new("n", directory.to_owned());
        config.root_dir = directory.to_owned();
        config.reserved_cpu_milli = 500;
        config.cpu_policy = CpuPolicy::Static { full_cores_only, strict_reservation: false };
        Manager::new(&config, topology)
    }

    #[test]
    fn apart_and_back() {
        let directory = tempfile::tempdir().unwrap();
        let manager = manager(directory.path(), false);
        assert_eq!(manager.of("x", "c0"), "0-7");
        assert_eq!(manager.allocate(&pod("a", &[], &["2", "1500m"])), Ok(true));
        assert_eq!((manager.of("a", "c0").as_str(), manager.of("a", "c1").as_str()), ("2-3", "0-1,4-7"));
        // The one processor that is reserved is shared, but nobody's own.
        assert_eq!(manager.allocate(&pod("b", &["4"], &["3", "1"])), Ok(true));
        assert_eq!(manager.of("b", "i0"), "4-7");
        let both: Set = manager.own("b", "c0").union(&manager.own("b", "c1")).copied().collect();
        assert_eq!(both, manager.own("b", "i0"));
        let refused = manager.allocate(&pod("c", &[], &["2"])).unwrap_err();
        assert_eq!(refused.reason, "UnexpectedAdmissionError");
        assert_eq!(
            refused.message,
            "Pod was rejected: Allocate failed due to not enough cpus available to satisfy request: requested=2, \
             available=1, which is unexpected"
        );
        assert_eq!(manager.allocate(&pod("d", &[], &["500m"])), Ok(false));
        // Another life of the kubelet knows them still.
        let again = self::manager(directory.path(), false);
        assert_eq!(again.of("a", "c0"), "2-3");
        again.keep_only(|uid| uid == "a");
        assert!(again.release("a") && !again.release("b"));
        assert_eq!(again.of("b", "c0"), "0-7");
    }

    #[test]
    fn whole_cores_only() {
        let directory = tempfile::tempdir().unwrap();
        let manager = manager(directory.path(), true);
        let refused = manager.allocate(&pod("a", &[], &["3"])).unwrap_err();
        assert_eq!(
            (refused.reason.as_str(), refused.message.as_str()),
            (
                "SMTAlignmentError",
                "Pod was rejected: SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2"
            )
        );
        assert_eq!(manager.allocate(&pod("a", &[], &["2"])), Ok(true));
    }
}
