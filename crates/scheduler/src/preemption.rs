//! Making room: which pods of lower priority have to go so that a pod that fits nowhere fits somewhere
//! (upstream's `DefaultPreemption`).

use std::cmp::Reverse;
use std::sync::Arc;

use api::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use api::prelude::*;
use jiff::Timestamp;

use crate::cache::Cache;
use crate::cycle::{Diagnosis, run_filters};
use crate::framework::CycleState;
use crate::node_info::{NodeInfo, Placed};
use crate::plugins::{inter_pod_affinity, topology_spread};
use crate::pod_info::PodInfo;

/// At least this share of the nodes that may do is tried, in percent, and at least this many.
const TRY_PERCENT: usize = 10;
const TRY_MIN: usize = 100;

/// Room that can be made.
#[derive(Debug, Clone)]
pub struct Room {
    /// Name of the node.
    pub node: String,
    /// Pods that have to go.
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of them go against a disruption budget.
    pub violations: usize,
}

/// What came of looking for room.
#[derive(Debug)]
pub enum Verdict {
    /// Room can be made.
    Room(Room),
    /// None can; this is what people are told.
    None(String),
}

/// A budget with its selector.
#[derive(Debug, Clone)]
pub struct Budget {
    namespace: String,
    selector: meta::LabelSelector,
    allowed: i32,
}

impl Budget {
    /// Reads a budget; `None` if its selector is malformed or selects nothing.
    pub fn new(pdb: &PodDisruptionBudget) -> Option<Budget> {
        let selector = pdb.spec.as_ref()?.selector.as_ref()?;
        Some(Budget {
            namespace: pdb.namespace().to_owned(),
            selector: meta::LabelSelector::from_json(&serde_json::to_value(selector).ok()?).ok()?,
            allowed: pdb.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0),
        })
    }

    fn covers(&self, pod: &PodInfo) -> bool {
        let labels = &pod.labels;
        self.namespace == labels.namespace
            && self.selector.matches_with(|key| labels.labels.get(key).map(String::as_str))
    }
}

/// Whether a pod may make room at all; otherwise what people are told.
fn eligibility(cache: &Cache, pod: &PodInfo) -> Result<(), &'static str> {
    let spec = pod.pod.spec.as_ref();
    if spec.and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = pod.pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
    if let Some(node) = nominated.and_then(|name| cache.node(name)) {
        let leaving =
            |placed: &Placed| placed.info.priority < pod.priority && placed.info.pod.is_terminating();
        if node.pods.iter().any(leaving) {
            return Err("not eligible due to a terminating pod on the nominated node.");
        }
    }
    Ok(())
}

/// Looks for the node where room costs least.
pub fn find_room(
    cache: &Cache,
    pod: &PodInfo,
    state: &CycleState,
    diagnosis: &Diagnosis,
    budgets: &[Budget],
    offset: usize,
) -> Verdict {
    if let Err(why) = eligibility(cache, pod) {
        return Verdict::None(why.into());
    }
    let hopeless = diagnosis.nodes - diagnosis.resolvable.len();
    let enough = (diagnosis.resolvable.len() * TRY_PERCENT / 100).max(TRY_MIN);
    let mut rooms = Vec::new();
    let candidates = diagnosis.resolvable.len();
    for turn in 0..candidates {
        let node = &cache.nodes[diagnosis.resolvable[(offset + turn) % candidates]];
        rooms.extend(room_on(cache, pod, state, node, budgets));
        // Room that breaks no budget is worth having without a look at the rest.
        if rooms.len() >= enough && rooms.iter().any(|room: &Room| room.violations == 0) {
            break;
        }
    }
    match rooms.into_iter().min_by_key(cost) {
        Some(room) => Verdict::Room(room),
        None => {
            let mut parts = Vec::new();
            if candidates > 0 {
                parts.push(format!("{candidates} No preemption victims found for incoming pod"));
            }
            if hopeless > 0 {
                parts.push(format!("{hopeless} Preemption is not helpful for scheduling"));
            }
            parts.sort();
            Verdict::None(format!("0/{} nodes are available: {}.", diagnosis.nodes, parts.join(", ")))
        }
    }
}

/// What room costs, most important first: broken budgets, the highest priority lost, the sum of priorities,
/// the number of pods, and of equals those that have run the shortest.
fn cost(room: &Room) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
    let highest = room.victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
    let sum = room.victims.iter().map(|v| i64::from(v.priority) - i64::from(i32::MIN)).sum();
    let oldest = room.victims.iter().filter(|v| v.priority == highest).map(|v| started(v)).min();
    (room.violations, highest, sum, room.victims.len(), Reverse(oldest.unwrap_or(Timestamp::MAX)))
}

fn started(pod: &PodInfo) -> Timestamp {
    let start = pod.pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    start.map_or(Timestamp::MAX, |t| t.0)
}

/// The fewest pods that have to leave a node so that the newcomer fits, if that can be.
fn room_on(
    cache: &Cache,
    pod: &PodInfo,
    state: &CycleState,
    node: &NodeInfo,
    budgets: &[Budget],
) -> Option<Room> {
    let mut lower: Vec<Placed> =
        node.pods.iter().filter(|p| p.info.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        return None;
    }
    let (mut trial, mut state) = (node.clone(), state.clone());
    let shift = |trial: &mut NodeInfo, state: &mut CycleState, placed: &Placed, sign: i64| {
        inter_pod_affinity::update(&mut state.affinity, pod, placed, node, cache, sign);
        topology_spread::update(&mut state.spread, pod, placed, node, sign);
        if sign > 0 {
            trial.add(placed.clone());
        } else {
            trial.remove(&placed.info.uid);
        }
    };
    for placed in &lower {
        shift(&mut trial, &mut state, placed, -1);
    }
    run_filters(&state, pod, &trial).ok()?;
    // Who counts for most, or has run for longest, gets back first; breaking budgets comes last.
    lower.sort_by_key(|p| (Reverse(p.info.priority), started(&p.info)));
    let mut allowed: Vec<i32> = budgets.iter().map(|b| b.allowed).collect();
    let breaks = |placed: &Placed, allowed: &mut [i32]| {
        let mut broken = false;
        for (budget, left) in budgets.iter().zip(allowed.iter_mut()).filter(|(b, _)| b.covers(&placed.info)) {
            *left -= 1;
            broken |= *left < 0 && budget.allowed >= 0;
        }
        broken
    };
    let (breaking, harmless): (Vec<Placed>, Vec<Placed>) =
        lower.into_iter().partition(|p| breaks(p, &mut allowed));
    let mut room = Room { node: node.name().to_owned(), victims: Vec::new(), violations: 0 };
    for (placed, violates) in breaking.iter().map(|p| (p, true)).chain(harmless.iter().map(|p| (p, false))) {
        shift(&mut trial, &mut state, placed, 1);
        if run_filters(&state, pod, &trial).is_err() {
            shift(&mut trial, &mut state, placed, -1);
            room.violations += usize::from(violates);
            room.victims.push(placed.info.clone());
        }
    }
    (!room.victims.is_empty()).then_some(room)
}
