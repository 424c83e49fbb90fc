//! The topology manager: asks processors, memory and devices where a container could be, agrees on one place, and has
//! each of them give the container its share there.

use api::prelude::*;

use crate::agent::Agent;
use crate::config::TopologyPolicy;
use crate::numa::merge::Merger;
use crate::numa::{Hint, Hints, Node};
use crate::spec::{self, Role};
use crate::status::Verdict;

/// Most NUMA nodes a machine may have unless `max-allowable-numa-nodes` says otherwise: the combinations of more take
/// too long to look at.
pub const NODES_MAX_DEFAULT: i64 = 8;

/// Nobody has agreed on anything.
const UNDECIDED: Hint = Hint { mask: None, preferred: false };

fn refused(reason: &str, message: &str) -> Verdict {
    Verdict { reason: reason.into(), message: format!("Pod was rejected: {message}"), ..Verdict::default() }
}

/// The refusal of what could not be given though everything was asked before.
pub(crate) fn unexpected(why: &str) -> Verdict {
    refused("UnexpectedAdmissionError", &format!("Allocate failed due to {why}, which is unexpected"))
}

/// Why this machine cannot have its resources aligned.
pub fn too_large(policy: TopologyPolicy, nodes: &[Node], most: i64) -> Option<String> {
    (policy != TopologyPolicy::None && nodes.len() as i64 > most)
        .then(|| format!("unsupported on machines with more than {most} NUMA Nodes"))
}

impl Agent {
    fn agree(&self, hints: &[Hints]) -> Result<Hint, Verdict> {
        let config = &self.config;
        let merger = Merger {
            nodes: &self.numa,
            policy: config.topology_policy,
            prefer_closest: config.prefer_closest_nodes,
        };
        let merged = merger.merge(hints);
        match merged.admit {
            true => Ok(merged.hint),
            false => {
                Err(refused("TopologyAffinityError", "Resources cannot be allocated with Topology locality"))
            }
        }
    }

    /// Gives the containers of a pod that was admitted their devices, processors and memory, or says why it cannot.
    pub async fn apportion(&self, pod: &Pod) -> Result<(), Verdict> {
        let _turn = self.apportioning.lock().await;
        let given = self.apportion_in_turn(pod).await;
        let misaligned = given.as_ref().is_err_and(|verdict| verdict.reason == "TopologyAffinityError");
        self.counters.aligned(misaligned);
        if given.is_err() {
            self.discharge(pod.uid());
        }
        given
    }

    async fn apportion_in_turn(&self, pod: &Pod) -> Result<(), Verdict> {
        let nodes: Vec<u32> = self.numa.iter().map(|node| node.id).collect();
        let aligns = self.config.topology_policy != TopologyPolicy::None;
        let of_pod = match aligns && self.config.topology_of_pods {
            false => None,
            true => {
                let mut hints = self.devices.pod_hints(pod, &nodes);
                hints.push(self.cpus.pod_hints(pod));
                hints.extend(self.memory.pod_hints(pod));
                Some(self.agree(&hints)?)
            }
        };
        for (role, container) in spec::containers(pod) {
            if role == Role::Ephemeral {
                continue;
            }
            let hint = match (of_pod, aligns) {
                (Some(hint), _) => hint,
                (None, false) => UNDECIDED,
                (None, true) => {
                    let mut hints = self.devices.hints(pod, &container, &nodes);
                    hints.push(self.cpus.hints(pod, &container));
                    hints.extend(self.memory.hints(pod, &container));
                    self.agree(&hints)?
                }
            };
            self.give(pod, role, &container, hint).await?;
        }
        Ok(())
    }

    async fn give(&self, pod: &Pod, role: Role, container: &Container, hint: Hint) -> Result<(), Verdict> {
        let given = self.devices.allocate(self, pod, role, container, hint).await;
        given.map_err(|why| unexpected(&why))?;
        let pinned = self.cpus.allocate(pod, role, container, hint);
        if !matches!(pinned, Ok(false)) {
            self.counters.pinned(pinned.is_err());
        }
        if pinned? {
            self.shared_changed.notify_one();
        }
        let promised = self.memory.allocate(pod, container, hint);
        if !matches!(promised, Ok(false)) {
            self.counters.memory_pinned(promised.is_err());
        }
        promised.map(drop).map_err(|why| unexpected(&why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let nodes = vec![Node::default(); 9];
        assert_eq!(too_large(TopologyPolicy::None, &nodes, 8), None);
        assert_eq!(too_large(TopologyPolicy::Restricted, &nodes, 9), None);
        assert_eq!(
            too_large(TopologyPolicy::Restricted, &nodes, 8).as_deref(),
            Some("unsupported on machines with more than 8 NUMA Nodes")
        );
    }
}
