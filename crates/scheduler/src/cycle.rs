//! One scheduling cycle: filter nodes, score what is left, choose. Pure over the cache.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use stdx::Random;

use crate::cache::Cache;
use crate::framework::{CycleState, Prepared, Refusal};
use crate::node_info::{NodeInfo, Placed};
use crate::plugins::{PLUGINS, inter_pod_affinity, topology_spread};
use crate::pod_info::PodInfo;

/// Clusters up to this size are searched whole.
const SEARCH_ALL: usize = 100;
/// At least this share of larger clusters is searched, in percent.
const SEARCH_PERCENT_MIN: usize = 5;

/// Pods that made room somewhere and wait for it, by node.
pub type Nominated = HashMap<String, Vec<Arc<PodInfo>>>;

/// Why no node will do.
#[derive(Debug, Clone, Default)]
pub struct Diagnosis {
    /// Nodes looked at.
    pub nodes: usize,
    /// Why no node was looked at closely.
    pub rejected: Option<String>,
    /// Why the search was broken off.
    pub failed: Option<String>,
    /// How many nodes were refused for each reason.
    pub reasons: BTreeMap<Cow<'static, str>, usize>,
    /// Bits of the plugins that refused.
    pub plugins: u32,
    /// Positions of nodes that could do with fewer pods on them.
    pub resolvable: Vec<usize>,
}

impl Diagnosis {
    fn note(&mut self, position: usize, plugin: usize, refusal: Refusal) {
        self.plugins |= 1 << plugin;
        if refusal.resolvable {
            self.resolvable.push(position);
        }
        for reason in refusal.reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
    }

    /// The message for people, in upstream's words. `preemption` is what came of making room.
    pub fn message(&self, preemption: &str) -> String {
        self.message_after("", preemption)
    }

    /// The message with what came of other ways to help.
    pub fn message_after(&self, helped: &str, preemption: &str) -> String {
        if let Some(why) = &self.failed {
            return why.clone();
        }
        if self.nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        let refused = match &self.rejected {
            Some(why) => why.clone(),
            None => {
                let mut parts: Vec<String> =
                    self.reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
                parts.sort();
                parts.join(", ")
            }
        };
        let mut after = Vec::new();
        if !helped.is_empty() {
            after.push(helped.to_owned());
        }
        if !preemption.is_empty() {
            after.push(format!("preemption: {preemption}"));
        }
        let mut message = format!("0/{} nodes are available: {refused}.", self.nodes);
        if !after.is_empty() {
            message.push(' ');
            message.push_str(&after.join(", "));
        }
        message
    }
}

/// What a cycle comes to.
#[derive(Debug)]
pub enum Outcome {
    /// The pod goes to the node at this position.
    Place(usize),
    /// No node will do. The state is kept for preemption.
    Nowhere(Box<Diagnosis>, Box<CycleState>),
}

/// Prepares the filters of a pod.
pub fn prepare(cache: &Cache, pod: &PodInfo) -> CycleState {
    let mut state = CycleState::default();
    for (bit, plugin) in PLUGINS.iter().enumerate() {
        match plugin.prepare_filter.map(|prepare| prepare(pod, cache, &mut state)) {
            Some(Prepared::Skip) => state.skip_filter |= 1 << bit,
            Some(Prepared::Reject(why)) => {
                state.rejected = Some((bit, why));
                break;
            }
            Some(Prepared::Run) | None => {}
        }
    }
    state
}

/// Whether all filters let a pod onto a node as it is; otherwise the plugin that does not, and why.
pub fn run_filters(state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), (usize, Refusal)> {
    for (bit, plugin) in PLUGINS.iter().enumerate() {
        if state.skip_filter & (1 << bit) != 0 {
            continue;
        }
        if let Some(filter) = plugin.filter {
            filter(state, pod, node).map_err(|refusal| (bit, refusal))?;
        }
    }
    Ok(())
}

/// Whether a pod fits on a node, also when the pods come that have made room there and count for more.
fn fits(
    cache: &Cache,
    state: &CycleState,
    pod: &PodInfo,
    node: &NodeInfo,
    nominated: &Nominated,
) -> Result<(), (usize, Refusal)> {
    let rivals = nominated.get(node.name()).map(Vec::as_slice).unwrap_or_default();
    let rivals: Vec<_> = rivals.iter().filter(|r| r.priority >= pod.priority && r.uid != pod.uid).collect();
    if !rivals.is_empty() {
        let (mut full, mut state) = (node.clone(), state.clone());
        for rival in rivals {
            let placed = Placed { info: rival.clone(), labels: u32::MAX };
            inter_pod_affinity::update(&mut state.affinity, pod, &placed, node, cache, 1);
            topology_spread::update(&mut state.spread, pod, &placed, node, 1);
            full.add(placed);
        }
        run_filters(&state, pod, &full)?;
    }
    run_filters(state, pod, node)
}

/// How many nodes that will do are enough to choose from.
fn enough(nodes: usize) -> usize {
    if nodes <= SEARCH_ALL {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(SEARCH_PERCENT_MIN);
    (nodes * percent / 100).max(SEARCH_ALL)
}

/// Finds the best node for a pod. `start` is where the search begins and is moved on, so that all nodes get
/// their turn.
pub fn schedule(
    cache: &Cache,
    pod: &PodInfo,
    nominated: &Nominated,
    start: &mut usize,
    random: &dyn Random,
) -> Outcome {
    let total = cache.nodes.len();
    let mut state = prepare(cache, pod);
    let mut diagnosis = Diagnosis { nodes: total, ..Default::default() };
    if let Some((plugin, why)) = state.rejected.take().filter(|_| total > 0) {
        diagnosis.plugins = 1 << plugin;
        diagnosis.rejected = Some(why);
        return Outcome::Nowhere(Box::new(diagnosis), Box::new(state));
    }
    let mut feasible = Vec::new();
    let enough = enough(total);
    let mut looked_at = 0;
    // A pod that has made room on a node tries that one first.
    let own = nominated.iter().find(|(_, pods)| pods.iter().any(|p| p.uid == pod.uid)).map(|(name, _)| name);
    if let Some(position) = own.and_then(|name| cache.position(name))
        && fits(cache, &state, pod, &cache.nodes[position], nominated).is_ok()
    {
        return Outcome::Place(position);
    }
    while looked_at < total && feasible.len() < enough {
        let position = (*start + looked_at) % total;
        looked_at += 1;
        match fits(cache, &state, pod, &cache.nodes[position], nominated) {
            Ok(()) => feasible.push(position),
            Err((plugin, refusal)) if refusal.fatal => {
                diagnosis.plugins = 1 << plugin;
                let name = PLUGINS.get(plugin).map_or("", |plugin| plugin.name);
                diagnosis.failed =
                    Some(format!("running {name:?} filter plugin: {}", refusal.reasons.join(", ")));
                return Outcome::Nowhere(Box::new(diagnosis), Box::new(state));
            }
            Err((plugin, refusal)) => diagnosis.note(position, plugin, refusal),
        }
    }
    if total > 0 {
        *start = (*start + looked_at) % total;
    }
    match feasible.as_slice() {
        [] => Outcome::Nowhere(Box::new(diagnosis), Box::new(state)),
        [only] => Outcome::Place(*only),
        _ => Outcome::Place(best(cache, pod, &feasible, &mut state, random)),
    }
}

/// The best of several nodes; among equals chance decides.
fn best(
    cache: &Cache,
    pod: &PodInfo,
    feasible: &[usize],
    state: &mut CycleState,
    random: &dyn Random,
) -> usize {
    let mut totals = vec![0i64; feasible.len()];
    let mut scores = vec![0i64; feasible.len()];
    for plugin in &PLUGINS {
        let Some(score) = plugin.score else { continue };
        let skip = plugin.prepare_score.is_some_and(|p| p(pod, cache, feasible, state) == Prepared::Skip);
        if skip {
            continue;
        }
        for (slot, position) in scores.iter_mut().zip(feasible) {
            *slot = score(state, pod, &cache.nodes[*position], cache);
        }
        if let Some(normalize) = plugin.normalize {
            normalize(&mut scores);
        }
        totals.iter_mut().zip(&scores).for_each(|(total, score)| *total += plugin.weight * score);
    }
    let top = totals.iter().copied().max().unwrap_or(0);
    let winners: Vec<usize> = feasible
        .iter()
        .zip(&totals)
        .filter(|(_, total)| **total == top)
        .map(|(position, _)| *position)
        .collect();
    winners[random.below(winners.len() as u64) as usize]
}
