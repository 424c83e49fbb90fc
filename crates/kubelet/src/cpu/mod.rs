//! The CPU manager: processors of their own for containers of Guaranteed pods that ask for whole ones.
//!
//! Which processors are taken (`take`) is pure; the state survives restarts in a file of upstream's form. Everybody
//! else shares what is left, and is told whenever that changes.

mod distribute;
pub(crate) mod follow;
mod take;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use api::prelude::*;
use parking_lot::Mutex;
use serde_json::{Value, json};

pub use take::{Options, Processor, read, take};

use crate::config::{Config, CpuPolicy, StaticCpus};
use crate::numa::{self, Hint, Hints, Mask};
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

/// What a pod's init containers have had and no later container has yet.
fn reusable(pod: &Pod, own: &BTreeMap<String, Set>) -> Set {
    let (mut left, mut used) = (Set::new(), Set::new());
    for (role, container) in spec::containers(pod) {
        let Some(set) = own.get(&container.name) else { continue };
        if role == Role::Init { left.extend(set) } else { used.extend(set) }
    }
    left.difference(&used).copied().collect()
}

/// Where `wanted` of the free processors could be, with all of the reusable ones.
fn hints(
    topology: &[Processor],
    free: &Set,
    reusable: &Set,
    wanted: usize,
    options: StaticCpus,
) -> Vec<Hint> {
    let nodes: BTreeSet<u32> = topology.iter().map(|cpu| cpu.node).collect();
    let sockets: BTreeSet<u32> = topology.iter().map(|cpu| cpu.socket).collect();
    let nodes: Vec<u32> = nodes.into_iter().collect();
    let within = |mask: Mask, set: &Set| {
        topology.iter().filter(|cpu| mask.has(cpu.node) && set.contains(&cpu.id)).count()
    };
    let all: Set = topology.iter().map(|cpu| cpu.id).collect();
    let usable: Set = free.union(reusable).copied().collect();
    let mut least = nodes.len() as u32;
    let mut masks = Vec::new();
    for mask in numa::combinations(&nodes) {
        if within(mask, &all) >= wanted {
            least = least.min(mask.len());
        }
        if within(mask, reusable) == reusable.len() && within(mask, &usable) >= wanted {
            masks.push(mask);
        }
    }
    let mut made = numa::hints(masks, least).unwrap_or_default();
    let per_socket = nodes.len() / sockets.len().max(1);
    if options.by_socket && per_socket > 0 {
        for hint in &mut made {
            let on: BTreeSet<u32> = topology
                .iter()
                .filter(|cpu| hint.mask.is_some_and(|mask| mask.has(cpu.node)))
                .map(|cpu| cpu.socket)
                .collect();
            hint.preferred = on.len() == (least as usize).div_ceil(per_socket);
        }
    }
    made
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
            (_, true) => take(&topology, &all, wanted, Options::default()).unwrap_or_default(),
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
        let strict = self.options().is_some_and(|options| options.strict_reservation);
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

    fn options(&self) -> Option<StaticCpus> {
        match self.policy {
            CpuPolicy::None => None,
            CpuPolicy::Static(options) => Some(options),
        }
    }

    /// Processors that are nobody's own and not kept.
    fn free(&self, state: &State) -> Set {
        let taken: Set = state.owned.values().flat_map(BTreeMap::values).flatten().copied().collect();
        let all = self.topology.iter().map(|cpu| cpu.id);
        all.filter(|cpu| !taken.contains(cpu) && !self.reserved.contains(cpu)).collect()
    }

    /// Where a container's processors could be.
    pub fn hints(&self, pod: &Pod, container: &Container) -> Hints {
        self.hints_for(pod, exclusive(pod, container), Some(&container.name))
    }

    /// Where all processors of a pod could be.
    pub fn pod_hints(&self, pod: &Pod) -> Hints {
        if resources::qos(pod) != Qos::Guaranteed {
            return None;
        }
        let wanted = resources::pod_total(pod, |container| {
            let milli = resources::requests(container).get("cpu").copied().unwrap_or(0);
            [("cpu".to_owned(), if milli % 1000 == 0 { milli } else { 0 })].into()
        });
        let milli = wanted.get("cpu").copied().unwrap_or(0);
        self.hints_for(pod, usize::try_from(milli / 1000).unwrap_or(0), None)
    }

    fn hints_for(&self, pod: &Pod, wanted: usize, container: Option<&str>) -> Hints {
        let options = self.options()?;
        if wanted == 0 {
            return None;
        }
        let state = self.state.lock();
        let own = state.owned.get(pod.uid());
        let (free, reusable) = match own.and_then(|own| own.get(container?)) {
            // It has them already.
            Some(own) if own.len() == wanted => (own.clone(), own.clone()),
            Some(_) => return Some(Vec::new()),
            None => (self.free(&state), own.map(|own| reusable(pod, own)).unwrap_or_default()),
        };
        Some(hints(&self.topology, &free, &reusable, wanted, options))
    }

    /// Sets processors apart for a container, on the nodes that all agreed on where that is possible; true if that
    /// changed what is shared. Init containers' are used again by those that come after them.
    pub fn allocate(
        &self,
        pod: &Pod,
        role: Role,
        container: &Container,
        agreed: Hint,
    ) -> Result<bool, Verdict> {
        let Some(options) = self.options() else { return Ok(false) };
        let wanted = exclusive(pod, container);
        let mut state = self.state.lock();
        let own = state.owned.get(pod.uid());
        let known = own.is_some_and(|own| own.contains_key(&container.name));
        if wanted == 0 || role == Role::Ephemeral || known {
            return Ok(false);
        }
        let reusable = own.map(|own| reusable(pod, own)).unwrap_or_default();
        let available: Set = self.free(&state).union(&reusable).copied().collect();
        let threads = take::threads_per_core(&self.topology);
        if options.full_cores_only {
            self.check_cores(wanted, threads, &available)?;
        }
        // What init containers have had is nobody else's while the pod lives.
        let preferred: Set = reusable.iter().copied().take(wanted).collect();
        let set = match preferred.len() == wanted {
            true => Some(preferred),
            false => self.choose(&available, wanted, threads, agreed, options),
        };
        let set = set.ok_or_else(|| {
            let message = format!(
                "Allocate failed due to not enough cpus available to satisfy request: requested={wanted}, \
                 available={}, which is unexpected",
                available.len()
            );
            Self::refused("UnexpectedAdmissionError", message)
        })?;
        state.owned.entry(pod.uid().to_owned()).or_default().insert(container.name.clone(), set);
        self.share(&mut state);
        Ok(true)
    }

    /// Whether only whole cores would be given.
    fn check_cores(&self, wanted: usize, threads: usize, available: &Set) -> Result<(), Verdict> {
        if !wanted.is_multiple_of(threads) {
            return Err(Self::refused(
                "SMTAlignmentError",
                format!(
                    "SMT Alignment Error: requested {wanted} cpus not multiple cpus per core = {threads}"
                ),
            ));
        }
        // Threads beside a processor that is kept do not make a core.
        let core = |id: &u32| self.topology.iter().find(|cpu| cpu.id == *id).map(|cpu| cpu.core);
        let kept: BTreeSet<u32> = self.reserved.iter().filter_map(core).collect();
        let whole = available.iter().filter(|id| core(id).is_some_and(|core| !kept.contains(&core))).count();
        if wanted > whole {
            return Err(Self::refused(
                "SMTAlignmentError",
                format!(
                    "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {whole}, \
                     requested CPUs = {wanted}, CPUs per core = {threads}"
                ),
            ));
        }
        Ok(())
    }

    fn choose(
        &self,
        available: &Set,
        wanted: usize,
        threads: usize,
        agreed: Hint,
        options: StaticCpus,
    ) -> Option<Set> {
        let unit = if options.full_cores_only { threads } else { 1 };
        let take = |from: &Set, count: usize| {
            let even = options
                .choice
                .across_nodes
                .then(|| distribute::evenly(&self.topology, from, count, unit, options.choice));
            even.flatten().or_else(|| take(&self.topology, from, count, options.choice))
        };
        let mut taken = Set::new();
        if let Some(mask) = agreed.mask {
            let sockets: BTreeSet<u32> =
                self.topology.iter().filter(|cpu| mask.has(cpu.node)).map(|cpu| cpu.socket).collect();
            let inside = |cpu: &&Processor| match options.by_socket {
                true => sockets.contains(&cpu.socket),
                false => mask.has(cpu.node),
            };
            let near: Set = self.topology.iter().filter(inside).map(|cpu| cpu.id).collect();
            let near: Set = available.intersection(&near).copied().collect();
            taken = take(&near, wanted.min(near.len()))?;
        }
        let rest: Set = available.difference(&taken).copied().collect();
        if rest.len() < wanted - taken.len() {
            return None;
        }
        if taken.len() < wanted {
            taken.extend(take(&rest, wanted - taken.len())?);
        }
        Some(taken)
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
        let topology = (0..8)
            .map(|id| Processor { id, core: id / 2, socket: id / 4, node: id / 4, cache: id / 4 })
            .collect();
        let mut config = Config::new("n", directory.to_owned());
        config.root_dir = directory.to_owned();
        config.reserved_cpu_milli = 500;
        config.cpu_policy = CpuPolicy::Static(StaticCpus { full_cores_only, ..StaticCpus::default() });
        Manager::new(&config, topology)
    }

    const ANY: Hint = Hint { mask: None, preferred: true };

    fn allocate(manager: &Manager, pod: &Pod) -> Result<bool, Verdict> {
        let mut any = false;
        for (role, container) in spec::containers(pod) {
            any |= manager.allocate(pod, role, &container, ANY)?;
        }
        Ok(any)
    }

    #[test]
    fn apart_and_back() {
        let directory = tempfile::tempdir().unwrap();
        let manager = manager(directory.path(), false);
        assert_eq!(manager.of("x", "c0"), "0-7");
        assert_eq!(allocate(&manager, &pod("a", &[], &["2", "1500m"])), Ok(true));
        assert_eq!((manager.of("a", "c0").as_str(), manager.of("a", "c1").as_str()), ("2-3", "0-1,4-7"));
        // The one processor that is reserved is shared, but nobody's own.
        assert_eq!(allocate(&manager, &pod("b", &["4"], &["3", "1"])), Ok(true));
        assert_eq!(manager.of("b", "i0"), "4-7");
        let both: Set = manager.own("b", "c0").union(&manager.own("b", "c1")).copied().collect();
        assert_eq!(both, manager.own("b", "i0"));
        let refused = allocate(&manager, &pod("c", &[], &["2"])).unwrap_err();
        assert_eq!(refused.reason, "UnexpectedAdmissionError");
        assert_eq!(
            refused.message,
            "Pod was rejected: Allocate failed due to not enough cpus available to satisfy request: requested=2, \
             available=1, which is unexpected"
        );
        assert_eq!(allocate(&manager, &pod("d", &[], &["500m"])), Ok(false));
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
        let table = [
            ("3", "requested 3 cpus not multiple cpus per core = 2"),
            // Beside the reserved one there is half a core, which is none.
            (
                "8",
                "not enough free physical CPUs: available physical CPUs = 6, requested CPUs = 8, CPUs per core = 2",
            ),
        ];
        for (cpus, message) in table {
            let refused = allocate(&manager, &pod("a", &[], &[cpus])).unwrap_err();
            assert_eq!(refused.reason, "SMTAlignmentError");
            assert_eq!(refused.message, format!("Pod was rejected: SMT Alignment Error: {message}"));
        }
        assert_eq!(allocate(&manager, &pod("a", &[], &["2"])), Ok(true));
    }

    fn shown(hints: Hints) -> Vec<(String, bool)> {
        let list = hints.unwrap().into_iter();
        list.map(|hint| (hint.mask.unwrap().list(), hint.preferred)).collect()
    }

    #[test]
    fn where_they_could_be() {
        let directory = tempfile::tempdir().unwrap();
        let manager = manager(directory.path(), false);
        let pair = |mask: &str, preferred| (mask.to_owned(), preferred);
        let hints = |pod: &Pod| manager.hints(pod, &pod.spec.as_ref().unwrap().containers[0]);
        let four = pod("a", &[], &["4"]);
        // Processor 0 is reserved.
        assert_eq!(shown(hints(&four)), [pair("1", true), pair("0-1", false)]);
        assert_eq!(shown(hints(&pod("a", &[], &["5"]))), [pair("0-1", true)]);
        assert_eq!(hints(&pod("a", &[], &["500m"])), None);
        let two = pod("b", &[], &["2", "2"]);
        assert_eq!(shown(manager.pod_hints(&two)), [pair("1", true), pair("0-1", false)]);
        // What was agreed on is kept to.
        let agreed = Hint { mask: Some(Mask::of([1])), preferred: true };
        let containers = &two.spec.as_ref().unwrap().containers;
        assert_eq!(manager.allocate(&two, Role::Regular, &containers[0], agreed), Ok(true));
        assert_eq!(manager.of("b", "c0"), "4-5");
        // It has them already.
        assert_eq!(shown(hints(&two)), [pair("1", true), pair("0-1", false)]);
        assert_eq!(shown(hints(&pod("c", &[], &["3"]))), [pair("0", true), pair("0-1", false)]);
    }
}
