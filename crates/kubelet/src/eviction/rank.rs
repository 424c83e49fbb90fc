//! Who is to go, and what is said of it. Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use api::prelude::*;

use super::state::Observations;
use super::threshold::{Resource, Threshold};
use crate::resources;
use crate::spec;

/// From this priority on a pod is critical and stays.
pub const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What a container uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Its name.
    pub name: String,
    /// Working set, bytes.
    pub memory: i64,
    /// Bytes of its writable layer.
    pub rootfs: i64,
    /// Files of its writable layer.
    pub inodes: i64,
    /// Bytes of its logs.
    pub logs: i64,
    /// Processes.
    pub processes: i64,
}

/// A pod with what it uses.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its containers.
    pub containers: Vec<ContainerUsage>,
    /// Bytes and files of its local volumes, by name.
    pub volumes: Vec<(String, i64, i64)>,
}

impl Candidate {
    /// How much of something the pod uses.
    pub fn used(&self, resource: Resource) -> i64 {
        let sum = |of: fn(&ContainerUsage) -> i64| self.containers.iter().map(of).sum::<i64>();
        match resource {
            Resource::Memory => sum(|c| c.memory),
            Resource::Pids => sum(|c| c.processes),
            Resource::EphemeralStorage => {
                // What lies in memory is the containers' memory.
                let on_disk = self.volumes.iter().filter(|(name, _, _)| !in_memory(&self.pod, name));
                sum(|c| c.rootfs + c.logs) + on_disk.map(|(_, bytes, _)| bytes).sum::<i64>()
            }
            Resource::Inodes => {
                sum(|c| c.inodes) + self.volumes.iter().map(|(_, _, files)| files).sum::<i64>()
            }
        }
    }

    fn requested(&self, resource: Resource) -> i64 {
        let total = resources::pod_total(&self.pod, resources::requests);
        total.get(resource.name()).copied().unwrap_or(0)
    }

    fn priority(&self) -> i32 {
        spec::spec(&self.pod).priority.unwrap_or(0)
    }

    /// Whether the node's needs may end it.
    pub fn may_go(&self) -> bool {
        self.priority() < CRITICAL_PRIORITY && !self.pod.is_terminating()
    }
}

/// Pods in the order in which they go: those over their request first, then lower priority, then who is furthest
/// over. Process ids are not requested: there priority and number decide.
pub fn rank(mut candidates: Vec<Candidate>, resource: Resource) -> Vec<Candidate> {
    candidates.retain(Candidate::may_go);
    candidates.sort_by_cached_key(|candidate| {
        let over = candidate.used(resource) - candidate.requested(resource);
        let exceeds = resource != Resource::Pids && over > 0;
        (Reverse(exceeds), candidate.priority(), Reverse(over), candidate.pod.key())
    });
    candidates
}

/// Bytes as a quantity with the largest binary suffix that loses nothing.
pub fn binary(bytes: i64) -> String {
    let suffixes = [(50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")];
    let fits = |shift: &u32| bytes != 0 && bytes % (1i64 << shift) == 0;
    match suffixes.iter().find(|(shift, _)| fits(shift)) {
        Some((shift, suffix)) => format!("{}{suffix}", bytes >> shift),
        None => bytes.to_string(),
    }
}

fn quantity(resource: Resource, value: i64) -> String {
    match resource {
        Resource::Memory | Resource::EphemeralStorage => binary(value),
        Resource::Inodes | Resource::Pids => value.to_string(),
    }
}

/// Whether a volume's files lie in memory.
fn in_memory(pod: &Pod, name: &str) -> bool {
    let spec = spec::spec(pod);
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == name);
    let medium = volume.and_then(|volume| volume.empty_dir.as_ref()?.medium.as_deref());
    medium.is_some_and(|medium| !medium.is_empty())
}

/// What a container uses of what runs short, and what it has asked for; `None` where that is not told apart.
fn of_container(candidate: &Candidate, usage: &ContainerUsage, resource: Resource) -> Option<(i64, i64)> {
    let used = match resource {
        Resource::Memory => usage.memory,
        Resource::EphemeralStorage => usage.rootfs + usage.logs,
        Resource::Inodes | Resource::Pids => return None,
    };
    let requested = spec::find(&candidate.pod, &usage.name)
        .and_then(|(_, found)| resources::requests(&found).get(resource.name()).copied());
    Some((used, requested.unwrap_or(0)))
}

/// What the event of a pod that goes carries for programs: who used more than asked for, and of what.
pub fn annotations(candidate: &Candidate, resource: Resource) -> BTreeMap<String, String> {
    let over: Vec<(&str, String)> = candidate
        .containers
        .iter()
        .filter_map(|usage| {
            let (used, requested) = of_container(candidate, usage, resource)?;
            (used > requested).then(|| (usage.name.as_str(), quantity(resource, used)))
        })
        .collect();
    let join = |of: fn(&(&str, String)) -> String| over.iter().map(of).collect::<Vec<_>>().join(",");
    let mut annotations = BTreeMap::from([("starved_resource".to_owned(), resource.name().to_owned())]);
    if !over.is_empty() {
        annotations.insert("offending_containers".into(), join(|(name, _)| (*name).to_owned()));
        annotations.insert("offending_containers_usage".into(), join(|(_, used)| used.clone()));
    }
    annotations
}

/// What is said of a pod that goes, in upstream's words.
pub fn message(
    candidate: &Candidate,
    resource: Resource,
    thresholds: &[Threshold],
    observed: &Observations,
) -> String {
    let mut message = format!("The node was low on resource: {}. ", resource.name());
    let cause = thresholds.iter().find(|threshold| threshold.signal.resource() == resource);
    if let Some((threshold, seen)) =
        cause.and_then(|threshold| Some((threshold, observed.get(&threshold.signal)?)))
    {
        message.push_str(&format!(
            "Threshold quantity: {}, available: {}. ",
            quantity(resource, threshold.value.of(seen.capacity) as i64),
            // The kernel's table of memory has no finer grain.
            match resource {
                Resource::Memory | Resource::EphemeralStorage => binary(seen.available as i64 >> 10 << 10),
                _ => seen.available.to_string(),
            }
        ));
    }
    for container in &candidate.containers {
        let Some((used, requested)) = of_container(candidate, container, resource) else { continue };
        if used > requested {
            message.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {}. ",
                container.name,
                quantity(resource, used),
                quantity(resource, requested),
                resource.name(),
            ));
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::super::state::Observation;
    use super::super::threshold::{Eviction, Signal};
    use super::*;
    use serde_json::json;

    fn candidate(name: &str, priority: i32, request: &str, used_mib: i64) -> Candidate {
        let pod =
            Pod::from_value(json!({"metadata": {"name": name}, "spec": {"priority": priority, "containers":
            [{"name": "c", "resources": {"requests": {"memory": request, "ephemeral-storage": request}}}]}}));
        let usage = ContainerUsage {
            name: "c".into(),
            memory: used_mib << 20,
            logs: used_mib << 20,
            processes: used_mib,
            ..ContainerUsage::default()
        };
        Candidate { pod: Arc::new(pod.unwrap()), containers: vec![usage], volumes: Vec::new() }
    }

    #[test]
    fn what_programs_are_told() {
        let told = |request: &str, resource| annotations(&candidate("a", 0, request, 20), resource);
        let pairs = |list: &[(&str, &str)]| {
            list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let over = [
            ("starved_resource", "memory"),
            ("offending_containers", "c"),
            ("offending_containers_usage", "20Mi"),
        ];
        assert_eq!(told("10Mi", Resource::Memory), pairs(&over));
        assert_eq!(told("30Mi", Resource::Memory), pairs(&[("starved_resource", "memory")]));
    }

    #[test]
    fn memory_is_no_storage() {
        let mut with = candidate("a", 0, "0", 0);
        let volumes = json!([{"name": "m", "emptyDir": {"medium": "Memory"}}, {"name": "d", "emptyDir": {}}]);
        let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [], "volumes": volumes}});
        with.pod = Arc::new(Pod::from_value(pod).unwrap());
        with.volumes = vec![("m".into(), 100, 1), ("d".into(), 7, 1)];
        assert_eq!(with.used(Resource::EphemeralStorage), 7);
    }

    #[test]
    fn order() {
        let memory = Resource::Memory;
        let cases = [
            (memory, vec![candidate("a", 0, "100Mi", 50), candidate("b", 0, "10Mi", 20)], "b a"),
            (memory, vec![candidate("a", 0, "0", 50), candidate("b", 0, "0", 20)], "a b"),
            (memory, vec![candidate("a", 5, "0", 50), candidate("b", 0, "0", 20)], "b a"),
            (memory, vec![candidate("a", 0, "100Mi", 50), candidate("b", 9, "10Mi", 20)], "b a"),
            (memory, vec![candidate("a", CRITICAL_PRIORITY, "0", 50)], ""),
            (
                Resource::EphemeralStorage,
                vec![candidate("a", 0, "60Mi", 50), candidate("b", 9, "10Mi", 20)],
                "b a",
            ),
            (Resource::Pids, vec![candidate("a", 1, "0", 50), candidate("b", 0, "1Gi", 20)], "b a"),
            (Resource::Pids, vec![candidate("a", 0, "0", 5), candidate("b", 0, "0", 20)], "b a"),
        ];
        for (resource, candidates, expected) in cases {
            let ranked = rank(candidates.clone(), resource);
            let names: Vec<&str> = ranked.iter().map(|c| c.pod.name()).collect();
            assert_eq!(names.join(" "), expected, "{candidates:?}");
        }
    }

    #[test]
    fn words() {
        let seen = Observation { available: (50 << 20) + 5, capacity: 1 << 40 };
        let observed = Observations::from([(Signal::MemoryAvailable, seen)]);
        let thresholds = Eviction::default().thresholds;
        let memory: Vec<_> = thresholds.into_iter().filter(|t| t.signal == Signal::MemoryAvailable).collect();
        assert_eq!(
            message(&candidate("a", 0, "10Mi", 20), Resource::Memory, &memory, &observed),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container c was using 20Mi, request is 10Mi, has larger consumption of memory. "
        );
        assert_eq!(
            message(&candidate("a", 0, "10Mi", 20), Resource::Pids, &[], &observed),
            "The node was low on resource: pids. "
        );
        assert_eq!([0, 1536, 1 << 30].map(binary), ["0", "1536", "1Gi"]);
    }
}
