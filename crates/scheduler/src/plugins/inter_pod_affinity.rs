//! `InterPodAffinity`: pods that want to be near others, or far from them, and pods that others want far.

use std::collections::HashMap;

use crate::cache::Cache;
use crate::framework::{Changes, CycleState, Plugin, Prepared, Refusal, SCORE_MAX};
use crate::node_info::{NodeInfo, Placed};
use crate::pod_info::{PodInfo, PodTerm};

/// Weight of the required affinity of pods already there, as a preference of the newcomer's.
const HARD_AFFINITY_WEIGHT: i64 = 1;

/// The row.
pub const PLUGIN: Plugin = Plugin {
    prepare_filter: Some(prepare_filter),
    filter: Some(filter),
    prepare_score: Some(prepare_score),
    score: Some(score),
    normalize: Some(normalize),
    weight: 2,
    ..Plugin::named(
        "InterPodAffinity",
        Changes::NODE_ADDED
            .and(Changes::NODE_LABELS)
            .and(Changes::POD_PLACED)
            .and(Changes::POD_REMOVED)
            .and(Changes::NAMESPACE),
    )
};

/// Numbers by value of a topology key.
type Places = HashMap<String, i64>;

/// Notes of a cycle.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Per required affinity term: pods that match all of these terms.
    near: Vec<Places>,
    /// Per required anti-affinity term: pods that match it.
    far: Vec<Places>,
    /// Per topology key: pods already there that do not want the newcomer near.
    unwanted: HashMap<String, Places>,
    /// The newcomer matches its own affinity terms, so it may be the first of its kind.
    first_of_kind: bool,
    /// Per topology key: sums of preferences.
    preferences: HashMap<String, Places>,
}

fn add(places: &mut Places, value: &str, amount: i64) {
    match places.get_mut(value) {
        Some(count) => *count += amount,
        None => drop(places.insert(value.to_owned(), amount)),
    }
}

fn matches_all(terms: &[PodTerm], cache: &Cache, set: &crate::labels::LabelSet) -> bool {
    !terms.is_empty() && terms.iter().all(|term| term.matches(set, &|name| cache.namespace(name)))
}

fn prepare_filter(pod: &PodInfo, cache: &Cache, state: &mut CycleState) -> Prepared {
    let state = &mut state.affinity;
    *state = State::default();
    if cache.pods_with_terms > 0 {
        for node in cache.nodes.iter().filter(|node| !node.with_terms.is_empty()) {
            for placed in &node.with_terms {
                count_unwanted(state, pod, placed, node, cache, 1);
            }
        }
    }
    if pod.affinity.is_empty() && pod.anti_affinity.is_empty() {
        return if state.unwanted.is_empty() { Prepared::Skip } else { Prepared::Run };
    }
    let near = cache.sets.matching(|set| matches_all(&pod.affinity, cache, set));
    let far: Vec<Vec<bool>> = (pod.anti_affinity.iter())
        .map(|term| cache.sets.matching(|set| term.matches(set, &|name| cache.namespace(name))))
        .collect();
    state.near = vec![Places::new(); pod.affinity.len()];
    state.far = vec![Places::new(); pod.anti_affinity.len()];
    state.first_of_kind = matches_all(&pod.affinity, cache, &pod.labels);
    for node in &cache.nodes {
        let total = |matching: &[bool]| -> i64 {
            let counts = node.label_sets.iter().filter(|(id, _)| matching.get(**id as usize) == Some(&true));
            counts.map(|(_, count)| count.all).sum()
        };
        let near = if pod.affinity.is_empty() { 0 } else { total(&near) };
        for (term, places) in pod.affinity.iter().zip(&mut state.near).filter(|_| near > 0) {
            if let Some(value) = node.label(&term.topology_key) {
                add(places, value, near);
            }
        }
        for ((term, places), matching) in pod.anti_affinity.iter().zip(&mut state.far).zip(&far) {
            let count = total(matching);
            if let Some(value) = node.label(&term.topology_key).filter(|_| count > 0) {
                add(places, value, count);
            }
        }
    }
    Prepared::Run
}

fn count_unwanted(
    state: &mut State,
    pod: &PodInfo,
    placed: &Placed,
    node: &NodeInfo,
    cache: &Cache,
    sign: i64,
) {
    for term in &placed.info.anti_affinity {
        if let Some(value) = node.label(&term.topology_key)
            && term.matches(&pod.labels, &|name| cache.namespace(name))
        {
            add(state.unwanted.entry(term.topology_key.clone()).or_default(), value, sign);
        }
    }
}

/// Takes a pod into account that is thought away from a node (`sign` -1) or back onto it (1).
pub fn update(state: &mut State, pod: &PodInfo, placed: &Placed, node: &NodeInfo, cache: &Cache, sign: i64) {
    count_unwanted(state, pod, placed, node, cache, sign);
    if matches_all(&pod.affinity, cache, &placed.info.labels) {
        for (term, places) in pod.affinity.iter().zip(&mut state.near) {
            if let Some(value) = node.label(&term.topology_key) {
                add(places, value, sign);
            }
        }
    }
    for (term, places) in pod.anti_affinity.iter().zip(&mut state.far) {
        if let Some(value) = node.label(&term.topology_key)
            && term.matches(&placed.info.labels, &|name| cache.namespace(name))
        {
            add(places, value, sign);
        }
    }
}

fn has(places: &Places, value: Option<&str>) -> bool {
    value.and_then(|value| places.get(value)).is_some_and(|count| *count > 0)
}

fn filter(state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    let state = &state.affinity;
    let mut near = pod.affinity.iter().zip(&state.near);
    if !near.all(|(term, places)| has(places, node.label(&term.topology_key))) {
        let labelled = pod.affinity.iter().all(|term| node.label(&term.topology_key).is_some());
        let nobody = state.near.iter().all(|places| places.values().all(|count| *count <= 0));
        if !(labelled && nobody && state.first_of_kind) {
            return Err(Refusal::lasting("node(s) didn't match pod affinity rules"));
        }
    }
    let mut far = pod.anti_affinity.iter().zip(&state.far);
    if far.any(|(term, places)| has(places, node.label(&term.topology_key))) {
        return Err(Refusal::resolvable("node(s) didn't match pod anti-affinity rules"));
    }
    if state.unwanted.iter().any(|(key, places)| has(places, node.label(key))) {
        return Err(Refusal::resolvable("node(s) didn't satisfy existing pods anti-affinity rules"));
    }
    Ok(())
}

fn prepare_score(pod: &PodInfo, cache: &Cache, _: &[usize], state: &mut CycleState) -> Prepared {
    if pod.preferred_pods.is_empty() && cache.pods_with_terms == 0 {
        return Prepared::Skip;
    }
    let mut preferences: HashMap<String, Places> = HashMap::new();
    let mut prefer = |node: &NodeInfo, key: &str, amount: i64| {
        if let Some(value) = node.label(key).filter(|_| amount != 0) {
            add(preferences.entry(key.to_owned()).or_default(), value, amount);
        }
    };
    let own: Vec<(&PodTerm, Vec<bool>)> = (pod.preferred_pods.iter())
        .map(|term| (term, cache.sets.matching(|set| term.matches(set, &|name| cache.namespace(name)))))
        .collect();
    for node in &cache.nodes {
        for (term, matching) in &own {
            let counts = node.label_sets.iter().filter(|(id, _)| matching.get(**id as usize) == Some(&true));
            let count: i64 = counts.map(|(_, count)| count.all).sum();
            prefer(node, &term.topology_key, term.weight * count);
        }
        for placed in &node.with_terms {
            let theirs = placed.info.preferred_pods.iter().map(|term| (term, term.weight));
            let required = placed.info.affinity.iter().map(|term| (term, HARD_AFFINITY_WEIGHT));
            for (term, weight) in theirs.chain(required) {
                if term.matches(&pod.labels, &|name| cache.namespace(name)) {
                    prefer(node, &term.topology_key, weight);
                }
            }
        }
    }
    let outcome = if preferences.is_empty() { Prepared::Skip } else { Prepared::Run };
    state.affinity.preferences = preferences;
    outcome
}

fn score(state: &CycleState, _: &PodInfo, node: &NodeInfo, _: &Cache) -> i64 {
    let of = |(key, places): (&String, &Places)| node.label(key).and_then(|value| places.get(value)).copied();
    state.affinity.preferences.iter().filter_map(of).sum()
}

/// Scores may be negative: they are stretched between the worst and the best.
fn normalize(scores: &mut [i64]) {
    let (min, max) = scores.iter().fold((i64::MAX, i64::MIN), |(min, max), s| (min.min(*s), max.max(*s)));
    for score in scores {
        *score = if max > min { SCORE_MAX * (*score - min) / (max - min) } else { 0 };
    }
}
