//! When users of a claim have to go because of what taints its devices.

use std::collections::BTreeSet;

use api::k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, DeviceTaint};
use api::prelude::*;
use jiff::{SignedDuration, Timestamp};

use crate::slices::Slices;
use crate::taints::{concerns, tolerates};

const NO_EXECUTE: &str = "NoExecute";

/// That the pods of a claim have to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// When; `None` is as soon as that is known, as a taint without a time says.
    pub at: Option<Timestamp>,
    /// Names of the rules that want it. Taints of the devices' own have none.
    pub rules: BTreeSet<String>,
}

impl Eviction {
    /// The one that comes first, for the reasons of both.
    pub fn join(self, other: Eviction) -> Eviction {
        let rules = self.rules.into_iter().chain(other.rules).collect();
        Eviction { at: self.at.zip(other.at).map(|(one, other)| one.min(other)), rules }
    }
}

/// When the users of a claim have to go; `None` for never.
pub fn eviction(slices: &Slices, claim: &ResourceClaim) -> Option<Eviction> {
    results(claim).filter_map(|result| of_result(slices, result)).reduce(Eviction::join)
}

/// The devices a claim has.
pub fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let devices = crate::claims::allocation(claim).and_then(|allocation| allocation.devices.as_ref());
    devices.into_iter().flat_map(|devices| devices.results.iter().flatten())
}

fn of_result(slices: &Slices, result: &DeviceRequestAllocationResult) -> Option<Eviction> {
    let own = slices.device(&result.driver, &result.pool, &result.device);
    let own = own.into_iter().flat_map(|device| device.taints.iter().flatten()).map(|taint| (taint, None));
    let rules = slices.rules().filter(|rule| concerns(rule, &result.driver, &result.pool, &result.device));
    let rules = rules.map(|rule| (&rule.spec.taint, Some(rule.name())));
    let all = own.chain(rules).filter(|(taint, _)| taint.effect == NO_EXECUTE);
    all.filter_map(|(taint, rule)| {
        let at = leave_at(taint, result)?;
        Some(Eviction { at, rules: rule.into_iter().map(str::to_owned).collect() })
    })
    .reduce(Eviction::join)
}

/// When a taint makes the users of a device go: `None` for never, `Some(None)` for at once.
fn leave_at(taint: &DeviceTaint, result: &DeviceRequestAllocationResult) -> Option<Option<Timestamp>> {
    let added = taint.time_added.as_ref().map(|time| time.0);
    let covering = || result.tolerations.iter().flatten().filter(|toleration| tolerates(toleration, taint));
    if covering().any(|toleration| toleration.toleration_seconds.is_none()) {
        return None;
    }
    // Of several tolerations the shortest counts.
    let seconds = covering().filter_map(|toleration| toleration.toleration_seconds).min().unwrap_or(0).max(0);
    let later = |at: Timestamp| at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
    Some(added.map(later))
}

/// How many published devices a rule is about, and how many that claims have.
pub fn selected<'a>(
    slices: &Slices,
    rule: &DeviceTaintRule,
    claims: impl Iterator<Item = &'a ResourceClaim>,
) -> (usize, usize) {
    let published =
        slices.devices().filter(|(driver, pool, device)| concerns(rule, driver, pool, device)).count();
    let used = claims.flat_map(results);
    (published, used.filter(|result| concerns(rule, &result.driver, &result.pool, &result.device)).count())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    const ADDED: &str = "2026-01-01T00:00:00Z";

    fn slice(name: &str, generation: i64, taints: Value) -> Arc<ResourceSlice> {
        let devices = json!([{"name": "a", "taints": taints}, {"name": "b"}]);
        let pool = json!({"name": "p", "generation": generation, "resourceSliceCount": 1});
        let spec = json!({"driver": "d.io", "pool": pool, "allNodes": true, "devices": devices});
        Arc::new(ResourceSlice::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
    }

    fn rule(name: &str, selector: Value, effect: &str) -> Arc<DeviceTaintRule> {
        let taint = json!({"key": "r", "effect": effect, "timeAdded": ADDED});
        let spec = json!({"deviceSelector": selector, "taint": taint});
        Arc::new(DeviceTaintRule::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
    }

    fn claim(device: &str, tolerations: Value) -> ResourceClaim {
        let result = json!({"request": "r", "driver": "d.io", "pool": "p", "device": device, "tolerations": tolerations});
        ResourceClaim::from_value(json!({"metadata": {"name": "c"}, "spec": {},
            "status": {"allocation": {"devices": {"results": [result]}}}}))
        .unwrap()
    }

    /// Seconds after the taints were added, and the rules.
    fn after(slices: &Slices, claim: &ResourceClaim) -> Option<(Option<i64>, Vec<String>)> {
        let start: Timestamp = ADDED.parse().unwrap();
        let eviction = eviction(slices, claim)?;
        Some((eviction.at.map(|at| at.duration_since(start).as_secs()), eviction.rules.into_iter().collect()))
    }

    #[test]
    fn own_taints_and_tolerations() {
        let taint =
            |key: &str, effect: &str| json!({"key": key, "value": "v", "effect": effect, "timeAdded": ADDED});
        let of = |taints: Value, tolerations: Value| {
            let mut slices = Slices::default();
            slices.set(slice("s", 1, taints));
            after(&slices, &claim("a", tolerations)).map(|(at, _)| at)
        };
        let k = || json!([taint("k", "NoExecute")]);
        let exists = |seconds: Value| json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        let table = [
            (json!([]), json!([]), None),
            (json!([taint("k", "NoSchedule"), taint("k", "None")]), json!([]), None),
            (k(), json!([]), Some(Some(0))),
            (k(), json!([exists(Value::Null)]), None),
            (k(), json!([{"operator": "Exists"}]), None),
            (k(), json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]), Some(Some(0))),
            (k(), json!([{"key": "k", "value": "w", "effect": "NoExecute"}]), Some(Some(0))),
            (k(), json!([exists(json!(30)), exists(json!(20))]), Some(Some(20))),
            (k(), json!([exists(json!(-5))]), Some(Some(0))),
            // For ever and for a while is for ever.
            (k(), json!([exists(json!(30)), exists(Value::Null)]), None),
            (
                json!([taint("k", "NoExecute"), taint("l", "NoExecute")]),
                json!([exists(json!(30))]),
                Some(Some(0)),
            ),
            (json!([{"key": "k", "effect": "NoExecute"}]), json!([]), Some(None)),
        ];
        for (taints, tolerations, want) in table {
            assert_eq!(of(taints.clone(), tolerations.clone()), want, "{taints} {tolerations}");
        }
    }

    #[test]
    fn rules_and_generations() {
        let mut slices = Slices::default();
        slices.set(slice("old", 1, json!([{"key": "k", "effect": "NoExecute", "timeAdded": ADDED}])));
        assert!(after(&slices, &claim("a", json!([]))).is_some());
        assert_eq!(after(&slices, &claim("b", json!([]))), None);
        // What an older generation says counts no more.
        slices.set(slice("new", 2, json!([])));
        assert_eq!(after(&slices, &claim("a", json!([]))), None);
        slices.set_rule(rule("one", json!({"device": "a"}), "NoExecute"));
        slices.set_rule(rule("two", json!({"driver": "d.io", "pool": "p"}), "NoExecute"));
        slices.set_rule(rule("other", json!({"driver": "e.io"}), "NoExecute"));
        slices.set_rule(rule("dry", json!({}), "None"));
        let both = Some((Some(0), vec!["one".to_owned(), "two".to_owned()]));
        assert_eq!(after(&slices, &claim("a", json!([]))), both);
        assert_eq!(after(&slices, &claim("b", json!([]))), Some((Some(0), vec!["two".to_owned()])));
        // A device that is published no more can be tainted by a rule still.
        assert_eq!(after(&slices, &claim("gone", json!([]))), Some((Some(0), vec!["two".to_owned()])));
        let claims = [claim("a", json!([])), claim("gone", json!([]))];
        assert_eq!(selected(&slices, &rule("x", json!({}), "None"), claims.iter()), (2, 2));
        assert_eq!(selected(&slices, &rule("x", json!({"device": "b"}), "None"), claims.iter()), (1, 0));
        slices.remove_rule("two");
        assert_eq!(after(&slices, &claim("b", json!([]))), None);
    }
}
