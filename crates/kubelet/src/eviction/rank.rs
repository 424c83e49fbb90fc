//! Who is to go, and what is said of it. Pure.

use std::cmp::Reverse;
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
                sum(|c| c.rootfs + c.logs) + self.volumes.iter().map(|(_, bytes, _)| bytes).sum::<i64>()
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
        let used = match resource {
            Resource::Memory => container.memory,
            Resource::EphemeralStorage => container.rootfs + container.logs,
            Resource::Inodes | Resource::Pids => continue,
        };
        let requested = spec::find(&candidate.pod, &container.name)
            .and_then(|(_, found)| resources::requests(&found).get(resource.name()).copied())
            .unwrap_or(0);
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
