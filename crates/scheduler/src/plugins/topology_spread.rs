//! `PodTopologySpread`: pods of a kind are spread over zones, nodes or other places.

use std::collections::HashMap;

use crate::cache::Cache;
use crate::framework::{Changes, CycleState, Plugin, Prepared, Refusal, SCORE_MAX};
use crate::node_info::{NodeInfo, Placed};
use crate::pod_info::{PodInfo, Spread, tolerates};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Marks nodes that do not take part in scoring.
const IGNORED: i64 = i64::MIN;
/// Spreading of controllers' pods without constraints of their own: topology key and skew (KEP-1258).
const DEFAULTS: [(&str, i64); 2] = [(HOSTNAME, 3), (ZONE, 5)];

/// The row.
pub const PLUGIN: Plugin = Plugin {
    prepare_filter: Some(prepare_filter),
    filter: Some(filter),
    prepare_score: Some(prepare_score),
    score: Some(score),
    normalize: Some(normalize),
    weight: 2,
    ..Plugin::named(
        "PodTopologySpread",
        Changes::NODE_ADDED
            .and(Changes::NODE_LABELS)
            .and(Changes::NODE_TAINTS)
            .and(Changes::POD_PLACED)
            .and(Changes::POD_REMOVED),
    )
};

/// A constraint that forbids nodes, with what it counted.
#[derive(Debug, Clone)]
struct Hard {
    constraint: Spread,
    counts: HashMap<String, i64>,
    /// 1 if the newcomer itself counts.
    own: i64,
}

impl Hard {
    fn least(&self) -> i64 {
        if self.counts.len() < self.constraint.min_domains {
            return 0;
        }
        self.counts.values().copied().min().unwrap_or(0)
    }
}

/// A constraint that makes nodes better or worse, with what it counted.
#[derive(Debug, Clone)]
struct Soft {
    key: String,
    max_skew: i64,
    counts: HashMap<String, i64>,
    /// Larger the more places there are, so that many places do not drown few.
    weight: f64,
    required_label: bool,
}

/// Notes of a cycle.
#[derive(Debug, Clone, Default)]
pub struct State {
    hard: Vec<Hard>,
    /// The least count of each, kept beside so that filtering a node is cheap.
    least: Vec<i64>,
    soft: Vec<Soft>,
}

fn is_place(constraint: &Spread, pod: &PodInfo, node: &NodeInfo) -> bool {
    let forbids = |taint: &&api::k8s_openapi::api::core::v1::Taint| {
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
            && !pod.tolerations().iter().any(|t| tolerates(t, taint))
    };
    (!constraint.honor_affinity || pod.allows_node(&node.node))
        && (!constraint.honor_taints || !node.taints().iter().any(|taint| forbids(&taint)))
}

fn prepare_filter(pod: &PodInfo, cache: &Cache, state: &mut CycleState) -> Prepared {
    let state = &mut state.spread;
    *state = State::default();
    let required: Vec<&Spread> = pod.spread.iter().filter(|c| c.required).collect();
    if required.is_empty() {
        return Prepared::Skip;
    }
    for constraint in &required {
        let matching = cache.sets.matching(|set| constraint.counts(set, &pod.labels.namespace));
        let mut counts: HashMap<String, i64> = HashMap::new();
        for node in &cache.nodes {
            // A node that lacks any of the labels is nowhere.
            let labelled = required.iter().all(|c| node.label(&c.topology_key).is_some());
            let value = node.label(&constraint.topology_key).filter(|_| labelled);
            let Some(value) = value.filter(|_| is_place(constraint, pod, node)) else { continue };
            let present = node.label_sets.iter().filter(|(id, _)| matching.get(**id as usize) == Some(&true));
            let present: i64 = present.map(|(_, count)| count.staying).sum();
            match counts.get_mut(value) {
                Some(count) => *count += present,
                None => drop(counts.insert(value.to_owned(), present)),
            }
        }
        let own = i64::from(constraint.counts(&pod.labels, &pod.labels.namespace));
        let hard = Hard { constraint: (*constraint).clone(), counts, own };
        state.least.push(hard.least());
        state.hard.push(hard);
    }
    Prepared::Run
}

/// Takes a pod into account that is thought away from a node (`sign` -1) or back onto it (1).
pub fn update(state: &mut State, pod: &PodInfo, placed: &Placed, node: &NodeInfo, sign: i64) {
    for (hard, least) in state.hard.iter_mut().zip(&mut state.least) {
        let counts = hard.constraint.counts(&placed.info.labels, &pod.labels.namespace);
        if !counts || !is_place(&hard.constraint, pod, node) {
            continue;
        }
        if let Some(count) = node.label(&hard.constraint.topology_key).and_then(|v| hard.counts.get_mut(v)) {
            *count += sign;
        }
        *least = hard.least();
    }
}

fn filter(state: &CycleState, _: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    const MISMATCH: &str = "node(s) didn't match pod topology spread constraints";
    for (hard, least) in state.spread.hard.iter().zip(&state.spread.least) {
        let Some(value) = node.label(&hard.constraint.topology_key) else {
            return Err(Refusal::lasting(format!("{MISMATCH} (missing required label)")));
        };
        let count = hard.counts.get(value).copied().unwrap_or(0);
        if count + hard.own - least > hard.constraint.max_skew {
            return Err(Refusal::resolvable(MISMATCH));
        }
    }
    Ok(())
}

fn prepare_score(pod: &PodInfo, cache: &Cache, feasible: &[usize], state: &mut CycleState) -> Prepared {
    let wanted: Vec<&Spread> = pod.spread.iter().filter(|c| !c.required).collect();
    let soft = &mut state.spread.soft;
    soft.clear();
    if !wanted.is_empty() {
        for constraint in wanted {
            let matching = cache.sets.matching(|set| constraint.counts(set, &pod.labels.namespace));
            let present = |node: &NodeInfo| {
                let sets =
                    node.label_sets.iter().filter(|(id, _)| matching.get(**id as usize) == Some(&true));
                sets.map(|(_, count)| count.staying).sum()
            };
            let is_place = |node: &NodeInfo| is_place(constraint, pod, node);
            soft.push(count(
                cache,
                feasible,
                &constraint.topology_key,
                constraint.max_skew,
                true,
                is_place,
                present,
            ));
        }
    } else if let Some(controller) = &pod.controller
        && pod.spread.is_empty()
    {
        for (key, skew) in DEFAULTS {
            let present = |node: &NodeInfo| node.by_controller.get(controller).copied().unwrap_or(0);
            soft.push(count(cache, feasible, key, skew, false, |_| true, present));
        }
        soft.retain(|constraint| !constraint.counts.is_empty());
    }
    if soft.is_empty() { Prepared::Skip } else { Prepared::Run }
}

fn count(
    cache: &Cache,
    feasible: &[usize],
    key: &str,
    max_skew: i64,
    required_label: bool,
    is_place: impl Fn(&NodeInfo) -> bool,
    present: impl Fn(&NodeInfo) -> i64,
) -> Soft {
    let mut counts: HashMap<String, i64> = HashMap::new();
    let values = feasible.iter().filter_map(|at| cache.nodes[*at].label(key));
    for value in values {
        if !counts.contains_key(value) {
            counts.insert(value.to_owned(), 0);
        }
    }
    // Places that are nodes need only the nodes that may be chosen.
    let one_node_each = key == HOSTNAME && counts.len() == feasible.len();
    let mut take = |node: &NodeInfo| {
        if let Some(total) = node.label(key).and_then(|value| counts.get_mut(value))
            && is_place(node)
        {
            *total += present(node);
        }
    };
    if one_node_each {
        feasible.iter().for_each(|at| take(&cache.nodes[*at]));
    } else {
        cache.nodes.iter().for_each(&mut take);
    }
    let weight = (counts.len() as f64 + 2.0).ln();
    Soft { key: key.to_owned(), max_skew, counts, weight, required_label }
}

fn score(state: &CycleState, _: &PodInfo, node: &NodeInfo, _: &Cache) -> i64 {
    let mut total = 0.0;
    for soft in &state.spread.soft {
        match node.label(&soft.key) {
            Some(value) => {
                let count = soft.counts.get(value).copied().unwrap_or(0);
                total += count as f64 * soft.weight + (soft.max_skew - 1) as f64;
            }
            None if soft.required_label => return IGNORED,
            None => {}
        }
    }
    total.round() as i64
}

/// The fewer pods of the kind, the better; nodes that are nowhere are worst.
fn normalize(scores: &mut [i64]) {
    let counted = scores.iter().copied().filter(|score| *score != IGNORED);
    let (min, max) = counted.fold((i64::MAX, 0), |(min, max), s| (min.min(s), max.max(s)));
    for score in scores {
        *score = match (*score, max) {
            (IGNORED, _) => 0,
            (_, 0) => SCORE_MAX,
            (score, max) => SCORE_MAX * (max + min - score) / max,
        };
    }
}
