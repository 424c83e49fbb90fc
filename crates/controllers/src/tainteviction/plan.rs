//! When a pod has to leave its node because of `NoExecute` taints.

use api::k8s_openapi::api::core::v1::{Taint, Toleration};
use jiff::{SignedDuration, Timestamp};

/// Whether a toleration covers a taint (core/v1 `Toleration.ToleratesTaint`).
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    let (ours, theirs) =
        (toleration.value.as_deref().unwrap_or_default(), taint.value.as_deref().unwrap_or_default());
    let numbers = || Some((theirs.parse::<i64>().ok()?, ours.parse::<i64>().ok()?));
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "" | "Equal" => ours == theirs,
        "Lt" => numbers().is_some_and(|(taint, limit)| taint < limit),
        "Gt" => numbers().is_some_and(|(taint, limit)| taint > limit),
        _ => false,
    }
}

/// When the pod has to leave: `None` for never. `since` is when an undated taint was first seen.
pub fn leave_at(tolerations: &[Toleration], taints: &[Taint], since: Timestamp) -> Option<Timestamp> {
    let mut earliest: Option<Timestamp> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let added = taint.time_added.as_ref().map_or(since, |t| t.0);
        let covering: Vec<&Toleration> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if covering.is_empty() {
            return Some(added);
        }
        // Of several tolerations of one taint the shortest counts; without seconds it is for ever.
        if let Some(seconds) = covering.iter().filter_map(|t| t.toleration_seconds).min() {
            let at = added.checked_add(SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX);
            earliest = Some(earliest.map_or(at, |e| e.min(at)));
        }
    }
    earliest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_shortest_toleration_counts() {
        let taints: Vec<Taint> = serde_json::from_value(json!([
            {"key": "a", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"},
            {"key": "b", "value": "v", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"},
            {"key": "c", "effect": "NoSchedule"},
        ]))
        .unwrap();
        let since: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let after = |tolerations: serde_json::Value| {
            let tolerations: Vec<Toleration> = serde_json::from_value(tolerations).unwrap();
            leave_at(&tolerations, &taints, since).map(|at| at.duration_since(since).as_secs())
        };
        assert_eq!(after(json!([])), Some(0));
        assert_eq!(after(json!([{"operator": "Exists"}])), None);
        assert_eq!(after(json!([{"key": "a", "operator": "Exists"}])), Some(0));
        assert_eq!(
            after(json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 300},
                         {"key": "b", "value": "v", "tolerationSeconds": 30}])),
            Some(30)
        );
        assert_eq!(after(json!([{"key": "b", "value": "w"}, {"key": "a"}])), Some(0));
    }
}
