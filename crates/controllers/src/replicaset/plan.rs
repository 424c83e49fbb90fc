//! How many pods to create and which to delete: the decisions of ReplicaSets and ReplicationControllers.

use std::cmp::Ordering;
use std::collections::HashMap;

use api::prelude::*;
use jiff::Timestamp;

use crate::pods;

/// Pods created or deleted in one reconcile at most, so that one set does not starve the others.
pub const BURST_MAX: usize = 500;
/// Annotation by which a user says which pods to delete first (KEP-2255).
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What to do about the number of pods.
#[derive(Debug, Clone, PartialEq)]
pub enum Scale {
    /// It is right.
    Keep,
    /// Create this many.
    Create(usize),
    /// Delete these, by name.
    Delete(Vec<String>),
}

/// Compares what is with what is wanted. `related` are the active pods of all sets of the same owner: of
/// two pods the one on the more crowded node goes first.
pub fn scale(active: &[&Pod], replicas: i32, related: &[&Pod], now: Timestamp) -> Scale {
    let wanted = usize::try_from(replicas).unwrap_or(0);
    match active.len().cmp(&wanted) {
        Ordering::Equal => Scale::Keep,
        Ordering::Less => Scale::Create((wanted - active.len()).min(BURST_MAX)),
        Ordering::Greater => {
            let excess = (active.len() - wanted).min(BURST_MAX);
            let mut per_node: HashMap<&str, usize> = HashMap::new();
            for pod in related {
                *per_node.entry(pods::node_name(pod)).or_default() += 1;
            }
            let mut ranked = active.to_vec();
            if excess < active.len() {
                ranked.sort_by(|a, b| deletion_order(a, b, &per_node, now));
            }
            Scale::Delete(ranked[..excess].iter().map(|pod| pod.name().to_owned()).collect())
        }
    }
}

/// `Less` if `a` is to be deleted before `b`: upstream's order, from cheapest to lose to dearest.
fn deletion_order(a: &Pod, b: &Pod, per_node: &HashMap<&str, usize>, now: Timestamp) -> Ordering {
    let phase_rank = |pod: &Pod| match pods::phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let crowd = |pod: &Pod| per_node.get(pods::node_name(pod)).copied().unwrap_or_default();
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let assigned = |pod: &Pod| !pods::node_name(pod).is_empty();
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| pods::is_ready(a).cmp(&pods::is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| crowd(b).cmp(&crowd(a)))
        .then_with(|| match (pods::ready_since(a), pods::ready_since(b)) {
            (Some(a_since), Some(b_since)) => younger_first(a_since, b_since, now, a, b),
            _ => Ordering::Equal,
        })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| younger_first(created(a), created(b), now, a, b))
}

/// Younger before older, by the order of magnitude of the age, so that no pod is safe for being just a
/// little older (KEP-2185); equal magnitudes are decided by uid, which is as good as a coin.
fn younger_first(
    a_time: Option<Timestamp>,
    b_time: Option<Timestamp>,
    now: Timestamp,
    a: &Pod,
    b: &Pod,
) -> Ordering {
    let (a_time, b_time) = match (a_time, b_time) {
        (Some(a), Some(b)) if a == b => return Ordering::Equal,
        (Some(a), Some(b)) => (a, b),
        // A pod without a time has just begun.
        (a, b) => return a.is_some().cmp(&b.is_some()),
    };
    let magnitude = |since: Timestamp| {
        let age = now.duration_since(since).as_nanos().max(0);
        if age == 0 { 0 } else { i128::from(age.ilog2()) + 1 }
    };
    magnitude(a_time).cmp(&magnitude(b_time)).then_with(|| a.uid().cmp(b.uid()))
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod.metadata.annotations.as_ref().and_then(|a| a.get(DELETION_COST));
    cost.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    statuses.map(|s| s.restart_count).max().unwrap_or(0)
}

/// Counts of a set's pods, as its status reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Active pods.
    pub replicas: i32,
    /// Active pods with all labels of the template.
    pub fully_labeled: i32,
    /// Ready pods.
    pub ready: i32,
    /// Pods ready for long enough.
    pub available: i32,
    /// Pods being deleted and not finished (KEP-3973).
    pub terminating: i32,
}

/// Counts the pods of a set.
pub fn count(
    owned: &[&Pod],
    template: Option<&PodTemplateSpec>,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Counts {
    let labels = template.and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.as_ref());
    let mut counts = Counts::default();
    for pod in owned {
        if !pods::is_active(pod) {
            let leaving = pod.metadata.deletion_timestamp.is_some() && !pods::is_finished(pod);
            counts.terminating += i32::from(leaving);
            continue;
        }
        counts.replicas += 1;
        let own = pod.metadata.labels.as_ref();
        let labeled = labels.is_none_or(|l| l.iter().all(|(k, v)| own.and_then(|own| own.get(k)) == Some(v)));
        counts.fully_labeled += i32::from(labeled);
        counts.ready += i32::from(pods::is_ready(pod));
        counts.available += i32::from(pods::is_available(pod, min_ready_seconds, now));
    }
    counts
}

/// The pod a set creates from its template.
pub fn pod_from_template(
    template: &PodTemplateSpec,
    namespace: &str,
    owner_name: &str,
    owner: OwnerReference,
) -> Pod {
    let source = template.metadata.clone().unwrap_or_default();
    let mut pod = Pod { spec: template.spec.clone(), ..Default::default() };
    pod.metadata = ObjectMeta {
        generate_name: Some(format!("{owner_name}-")),
        namespace: Some(namespace.to_owned()),
        labels: source.labels,
        annotations: source.annotations,
        finalizers: source.finalizers,
        owner_references: Some(vec![owner]),
        ..Default::default()
    };
    pod
}

/// Sizes of the batches in which `total` pods are created: one, then twice as many each time while all
/// goes well, so that a set whose pods are all refused does not ask a thousand times.
pub fn slow_start_batches(total: usize) -> impl Iterator<Item = usize> {
    let mut left = total;
    let mut size = 1;
    std::iter::from_fn(move || {
        let batch = size.min(left);
        left -= batch;
        size *= 2;
        (batch > 0).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, node: &str, phase: &str, ready: bool, created: i64) -> Pod {
        Pod::from_value(json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": at(created).to_string()},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": [{
                "type": "Ready", "status": if ready { "True" } else { "False" },
                "lastTransitionTime": at(created).to_string(),
            }]},
        }))
        .unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn deleted(pods: &[Pod], replicas: i32) -> Vec<String> {
        let refs: Vec<&Pod> = pods.iter().collect();
        match scale(&refs, replicas, &refs, at(100_000)) {
            Scale::Delete(names) => names,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_cheapest_go_first() {
        let mut cheap = pod("cheap", "n3", "Running", true, 0);
        cheap.metadata.annotations = Some([(DELETION_COST.to_owned(), "-5".to_owned())].into());
        let pods = [
            pod("old", "n1", "Running", true, 0),
            pod("young", "n2", "Running", true, 90_000),
            pod("crowded", "n4", "Running", true, 1),
            pod("crowd", "n4", "Running", true, 2),
            cheap,
            pod("unready", "n5", "Running", false, 0),
            pod("pending", "n6", "Pending", false, 0),
            pod("unassigned", "", "Pending", false, 0),
        ];
        assert_eq!(
            deleted(&pods, 1),
            ["unassigned", "pending", "unready", "cheap", "crowd", "crowded", "young"]
        );
        assert_eq!(deleted(&pods, 7), ["unassigned"]);
    }

    #[test]
    fn numbers() {
        let one = pod("a", "n", "Running", true, 0);
        assert_eq!(scale(&[&one], 1, &[], at(0)), Scale::Keep);
        assert_eq!(scale(&[&one], 4, &[], at(0)), Scale::Create(3));
        assert_eq!(scale(&[], 10_000, &[], at(0)), Scale::Create(BURST_MAX));
        assert_eq!(slow_start_batches(10).collect::<Vec<_>>(), [1, 2, 4, 3]);
        assert_eq!(slow_start_batches(0).count(), 0);
    }

    #[test]
    fn counts() {
        let mut leaving = pod("l", "n", "Running", true, 0);
        leaving.metadata.deletion_timestamp = Some(Time(at(0)));
        let (ready, fresh) = (pod("r", "n", "Running", true, 0), pod("f", "n", "Running", true, 95));
        let pods = [&leaving, &ready, &fresh, &pod("u", "n", "Running", false, 0)];
        let counts = count(&pods, None, 10, at(100));
        assert_eq!(counts, Counts { replicas: 3, fully_labeled: 3, ready: 2, available: 1, terminating: 1 });
    }
}
