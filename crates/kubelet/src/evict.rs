//! Node-pressure eviction: when memory runs short, the pod that uses most beyond its request goes first.
//!
//! Choosing is pure; the loop around it only runs while there is pressure, and ends one pod at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use cri::ContainerFilter;

use crate::agent::Agent;
use crate::node::machine::{self, Pressure};
use crate::resources;
use crate::spec::{self, mark};
use crate::status::Verdict;

/// Reason in status and events.
pub const EVICTED: &str = "Evicted";
/// How often pressure is looked for, as upstream does.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// From this priority on a pod is critical and stays.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// A pod with the memory it uses, in bytes.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Working set by container name.
    pub usage: Vec<(String, i64)>,
}

impl Candidate {
    fn used(&self) -> i64 {
        self.usage.iter().map(|(_, bytes)| bytes).sum()
    }

    fn requested(&self) -> i64 {
        resources::pod_total(&self.pod, resources::requests).get("memory").copied().unwrap_or(0)
    }
}

/// Who is to go: pods over their request before others, lower priority before higher, then who is furthest
/// over. Critical pods and pods that are going anyway are left alone.
pub fn choose(candidates: &[Candidate]) -> Option<&Candidate> {
    let priority = |candidate: &Candidate| spec::spec(&candidate.pod).priority.unwrap_or(0);
    candidates
        .iter()
        .filter(|candidate| priority(candidate) < CRITICAL_PRIORITY && !candidate.pod.is_terminating())
        .max_by_key(|candidate| {
            let over = candidate.used() - candidate.requested();
            (over > 0, std::cmp::Reverse(priority(candidate)), over)
        })
}

/// Bytes as upstream writes them in messages.
fn quantity(bytes: i64) -> String {
    match bytes {
        0 => "0".into(),
        bytes if bytes % (1 << 20) == 0 => format!("{}Mi", bytes >> 20),
        bytes => format!("{}Ki", bytes >> 10),
    }
}

/// The verdict on a pod, in upstream's words.
pub fn verdict(candidate: &Candidate, threshold: i64, available: i64) -> Verdict {
    let mut message = format!(
        "The node was low on resource: memory. Threshold quantity: {}, available: {}. ",
        quantity(threshold),
        quantity(available)
    );
    for (name, used) in &candidate.usage {
        let requested = spec::find(&candidate.pod, name)
            .and_then(|(_, container)| resources::requests(&container).get("memory").copied())
            .unwrap_or(0);
        if *used > requested {
            message.push_str(&format!(
                "Container {name} was using {}, request is {}, has larger consumption of memory. ",
                quantity(*used),
                quantity(requested)
            ));
        }
    }
    Verdict { reason: EVICTED.into(), message }
}

/// Looks for pressure and ends pods while there is any. Forever.
pub(crate) async fn watch(agent: Arc<Agent>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if !Pressure::read(&agent.config).memory {
            continue;
        }
        let candidates = candidates(&agent).await;
        let Some(chosen) = choose(&candidates) else { continue };
        let bound = agent.config.eviction_hard.memory_available;
        let threshold = bound.of(agent.memory_capacity().max(0) as u64) as i64;
        let verdict = verdict(chosen, threshold, machine::memory_available());
        agent.recorder.warning(&*chosen.pod, EVICTED, verdict.message.clone());
        agent.workers.condemn(chosen.pod.uid(), verdict);
    }
}

async fn candidates(agent: &Agent) -> Vec<Candidate> {
    let filter = ContainerFilter::default();
    let containers = agent.runtime.list_containers(&filter).await.unwrap_or_default();
    let stats = agent.runtime.list_container_stats(&filter).await.unwrap_or_default();
    let mut usage: HashMap<String, Vec<(String, i64)>> = HashMap::new();
    for stat in stats {
        let uid = containers.iter().find(|c| c.id == stat.id).and_then(|c| c.labels.get(mark::POD_UID));
        if let Some(uid) = uid {
            let bytes = i64::try_from(stat.memory_working_set_bytes).unwrap_or(i64::MAX);
            usage.entry(uid.clone()).or_default().push((stat.name, bytes));
        }
    }
    let admitted = agent.admitted.lock();
    usage
        .into_iter()
        .filter_map(|(uid, usage)| Some(Candidate { pod: admitted.get(&uid)?.clone(), usage }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn candidate(name: &str, priority: i32, request: &str, used_mib: i64) -> Candidate {
        let pod =
            Pod::from_value(json!({"metadata": {"name": name}, "spec": {"priority": priority, "containers":
            [{"name": "c", "resources": {"requests": {"memory": request}}}]}}));
        Candidate { pod: Arc::new(pod.unwrap()), usage: vec![("c".into(), used_mib << 20)] }
    }

    #[test]
    fn order() {
        let cases = [
            (vec![candidate("a", 0, "100Mi", 50), candidate("b", 0, "10Mi", 20)], Some("b")),
            (vec![candidate("a", 0, "0", 50), candidate("b", 0, "0", 20)], Some("a")),
            (vec![candidate("a", 5, "0", 50), candidate("b", 0, "0", 20)], Some("b")),
            (vec![candidate("a", 0, "100Mi", 50), candidate("b", 9, "10Mi", 20)], Some("b")),
            (vec![candidate("a", CRITICAL_PRIORITY, "0", 50)], None),
        ];
        for (candidates, expected) in cases {
            assert_eq!(choose(&candidates).map(|c| c.pod.name()), expected, "{candidates:?}");
        }
    }

    #[test]
    fn words() {
        assert_eq!(
            verdict(&candidate("a", 0, "10Mi", 20), 100 << 20, 50 << 20).message,
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container c was using 20Mi, request is 10Mi, has larger consumption of memory. "
        );
    }
}
