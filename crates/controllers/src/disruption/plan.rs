//! How many of a budget's pods may be disrupted now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use api::prelude::*;
use jiff::{SignedDuration, Timestamp};

use crate::deployment::sizes::scaled;
use crate::pods;

/// Time an evicted pod has for its deletion to begin; after that the eviction no longer counts.
pub const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);
/// Condition of a budget: whether it has room.
const ALLOWED: &str = "DisruptionAllowed";

/// Whether a budget needs to know the size of its pods' controllers: all but a plain `minAvailable` number.
pub fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.clone().unwrap_or_default();
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// Pods expected and healthy pods wanted. `scale` is the size of the controllers together.
pub fn expected(budget: &PodDisruptionBudget, pods: usize, scale: i32) -> (i32, i32) {
    let spec = budget.spec.clone().unwrap_or_default();
    match (spec.max_unavailable, spec.min_available) {
        (Some(unavailable), _) => {
            (scale, scale.saturating_sub(scaled(Some(&unavailable), scale, true)).max(0))
        }
        (None, Some(IntOrString::Int(wanted))) => (i32::try_from(pods).unwrap_or(i32::MAX), wanted),
        (None, percent @ Some(_)) => (scale, scaled(percent.as_ref(), scale, true)),
        (None, None) => (i32::try_from(pods).unwrap_or(i32::MAX), 0),
    }
}

/// The new status and the time until an eviction that has not become a deletion stops to count.
pub fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    scale: i32,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let old = budget.status.clone().unwrap_or_default();
    let evicted: BTreeMap<String, Time> = old.disrupted_pods.clone().unwrap_or_default();
    let expires = |at: &Time| at.0.saturating_add(DELETION_TIMEOUT).unwrap_or(at.0);
    // Evictions that still have to show as deletions.
    let pending: BTreeMap<String, Time> = evicted
        .into_iter()
        .filter(|(name, at)| {
            let pod = pods.iter().find(|pod| pod.name() == name);
            expires(at) > now && pod.is_some_and(|pod| !pod.is_terminating())
        })
        .collect();
    let wait =
        pending.values().map(|at| Duration::try_from(expires(at).duration_since(now)).unwrap_or_default());
    let wait = wait.min();
    let healthy =
        |pod: &&Arc<Pod>| !pod.is_terminating() && !pending.contains_key(pod.name()) && pods::is_ready(pod);
    let current = i32::try_from(pods.iter().filter(healthy).count()).unwrap_or(i32::MAX);
    let (count, desired) = expected(budget, pods.len(), scale);
    let allowed = if count <= 0 { 0 } else { current.saturating_sub(desired).max(0) };
    let mut status = PodDisruptionBudgetStatus {
        conditions: old.conditions,
        current_healthy: Some(current),
        desired_healthy: Some(desired),
        disrupted_pods: Some(pending).filter(|p| !p.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(count),
        observed_generation: budget.metadata.generation,
    };
    let (value, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    condition(&mut status, budget, value, reason, "", now);
    (status, wait)
}

/// The status when the pods cannot be counted: nothing is allowed.
pub fn failed(budget: &PodDisruptionBudget, why: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    status.current_healthy.get_or_insert(0);
    status.desired_healthy.get_or_insert(0);
    status.expected_pods.get_or_insert(0);
    condition(&mut status, budget, "False", "SyncFailed", why, now);
    status
}

fn condition(
    status: &mut PodDisruptionBudgetStatus,
    budget: &PodDisruptionBudget,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().find(|c| c.type_ == ALLOWED && c.status == value);
    let condition = Condition {
        type_: ALLOWED.into(),
        status: value.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: budget.metadata.generation,
        last_transition_time: old.map_or(Time(now), |c| c.last_transition_time.clone()),
    };
    match conditions.iter_mut().find(|c| c.type_ == ALLOWED) {
        Some(place) => *place = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn budget(spec: Value, evicted: Value) -> PodDisruptionBudget {
        PodDisruptionBudget::from_value(json!({"metadata": {"name": "b", "generation": 3}, "spec": spec,
            "status": {"disruptedPods": evicted}}))
        .unwrap()
    }

    fn pod(name: &str, ready: bool, leaving: bool) -> Arc<Pod> {
        let mut metadata = json!({"name": name, "uid": name});
        if leaving {
            metadata["deletionTimestamp"] = at(0).to_string().into();
        }
        let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" }});
        Arc::new(
            Pod::from_value(json!({"metadata": metadata, "status": {"conditions": [condition]}})).unwrap(),
        )
    }

    /// Expected, desired, healthy, allowed.
    fn numbers(spec: Value, pods: &[Arc<Pod>], scale: i32) -> (i32, i32, i32, i32) {
        let (s, _) = status(&budget(spec, json!({})), pods, scale, at(0));
        let n = |v: Option<i32>| v.unwrap();
        (n(s.expected_pods), n(s.desired_healthy), n(s.current_healthy), n(s.disruptions_allowed))
    }

    #[test]
    fn budgets_add_up() {
        let three = [pod("a", true, false), pod("b", true, false), pod("c", false, false)];
        assert_eq!(numbers(json!({"minAvailable": 1}), &three, 0), (3, 1, 2, 1));
        assert_eq!(numbers(json!({"minAvailable": 5}), &three, 0), (3, 5, 2, 0));
        assert_eq!(numbers(json!({"minAvailable": "50%"}), &three, 3), (3, 2, 2, 0));
        assert_eq!(numbers(json!({"maxUnavailable": 1}), &three, 3), (3, 2, 2, 0));
        assert_eq!(numbers(json!({"maxUnavailable": "30%"}), &three, 10), (10, 7, 2, 0));
        assert_eq!(numbers(json!({"maxUnavailable": 9}), &three, 3), (3, 0, 2, 2));
        assert_eq!(numbers(json!({"minAvailable": 0}), &[], 0), (0, 0, 0, 0));
        assert!(needs_scale(&budget(json!({"maxUnavailable": 1}), json!({}))));
        assert!(!needs_scale(&budget(json!({"minAvailable": 1}), json!({}))));
    }

    #[test]
    fn evictions_count_until_they_are_stale() {
        let evicted = json!({"a": at(0).to_string(), "b": at(0).to_string(), "gone": at(0).to_string()});
        let budget = budget(json!({"minAvailable": 1}), evicted);
        let pods = [pod("a", true, false), pod("b", true, true), pod("c", true, false)];
        let (early, wait) = status(&budget, &pods, 0, at(30));
        assert_eq!(early.disrupted_pods.unwrap().into_keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!((early.current_healthy, wait), (Some(1), Some(Duration::from_secs(90))));
        let (late, wait) = status(&budget, &pods, 0, at(120));
        assert_eq!((late.disrupted_pods, late.current_healthy, wait), (None, Some(2), None));
    }

    #[test]
    fn conditions_keep_their_time() {
        let mut budget = budget(json!({"minAvailable": 0}), json!({}));
        let pods = [pod("a", true, false)];
        budget.status = Some(status(&budget, &pods, 0, at(0)).0);
        let later = status(&budget, &pods, 0, at(50)).0;
        assert_eq!(budget.status.as_ref(), Some(&later));
        let failed = failed(&budget, "no", at(60));
        let condition = &failed.conditions.unwrap()[0];
        assert_eq!((condition.reason.as_str(), condition.last_transition_time.0), ("SyncFailed", at(60)));
        assert_eq!(failed.disruptions_allowed, Some(0));
    }
}
