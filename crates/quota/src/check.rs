//! A ResourceQuota: what falls under it, and whether something more fits.

use meta::quantity::Quantity;
use serde_json::{Map, Value};

use crate::{Amounts, Charge, Traits, pod, text};

/// One requirement on the scope of what is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Selector {
    scope: String,
    operator: String,
    values: Vec<String>,
}

/// A quota with what is used of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Its name.
    pub name: String,
    /// The limits; what the status says where it does, as upstream's admission looks at it.
    pub hard: Amounts,
    /// What is used, as far as is known.
    pub used: Amounts,
    selectors: Vec<Selector>,
}

fn amounts(value: &Value) -> Amounts {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(k, v)| Some((k.clone(), Quantity::parse(v.as_str()?).ok()?))).collect()
}

impl Quota {
    /// Reads a ResourceQuota; `hard` of its spec.
    pub fn of_spec(object: &Value) -> Quota {
        let spec = &object["spec"];
        let strings = |v: &Value| -> Vec<String> {
            v.as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
        };
        let plain = strings(&spec["scopes"]);
        let mut selectors: Vec<Selector> = plain
            .into_iter()
            .map(|scope| Selector { scope, operator: "Exists".into(), values: Vec::new() })
            .collect();
        for expression in spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten() {
            selectors.push(Selector {
                scope: text(expression, "scopeName").into(),
                operator: text(expression, "operator").into(),
                values: strings(&expression["values"]),
            });
        }
        Quota {
            name: text(&object["metadata"], "name").into(),
            hard: amounts(&spec["hard"]),
            used: amounts(&object["status"]["used"]),
            selectors,
        }
    }

    /// Reads a ResourceQuota with the limits that are in force: those of its status.
    pub fn of_status(object: &Value) -> Quota {
        Quota { hard: amounts(&object["status"]["hard"]), ..Quota::of_spec(object) }
    }

    /// Whether something of these traits is counted, leaving aside what.
    fn selects(&self, traits: &Traits) -> bool {
        self.selectors.iter().all(|s| s.matches(traits))
    }

    /// The part of a charge that falls under this quota; empty when none does.
    pub fn share(&self, charge: &Charge) -> Amounts {
        if !self.selects(&charge.traits) {
            return Amounts::new();
        }
        let counted = charge.amounts.iter().filter(|(name, _)| self.hard.contains_key(*name));
        counted.map(|(name, amount)| (name.clone(), *amount)).collect()
    }

    /// What a pod must say under this quota and does not.
    pub fn missing(&self, pod: &Map<String, Value>, traits: &Traits) -> Option<String> {
        if !traits.is_pod || !self.selects(traits) {
            return None;
        }
        let names: Vec<&str> = self.hard.keys().map(String::as_str).collect();
        pod::missing(pod, &names).map(|what| format!("failed quota: {}: must specify {what}", self.name))
    }

    /// Why `more` does not fit, in the words users know; `None` if it fits.
    pub fn exceeded(&self, more: &Amounts) -> Option<String> {
        let mut over = more.iter().filter(|(name, amount)| {
            let Some(hard) = self.hard.get(*name) else { return false };
            let used = self.used_of(name);
            // What does not grow is never refused, even over a limit that was lowered.
            !amount.is_zero() && !amount.is_negative() && used.plus(**amount) > *hard
        });
        let first = over.next()?;
        let names: Vec<&str> = std::iter::once(first).chain(over).map(|(name, _)| name.as_str()).collect();
        let show = |of: &dyn Fn(&str) -> Quantity| -> String {
            names.iter().map(|n| format!("{n}={}", of(n))).collect::<Vec<_>>().join(",")
        };
        let requested = show(&|n| more.get(n).copied().unwrap_or(Quantity::from_units(0)));
        let limited = show(&|n| self.hard.get(n).copied().unwrap_or(Quantity::from_units(0)));
        Some(format!(
            "exceeded quota: {}, requested: {requested}, used: {}, limited: {limited}",
            self.name,
            show(&|n| self.used_of(n)),
        ))
    }

    fn used_of(&self, name: &str) -> Quantity {
        self.used.get(name).copied().unwrap_or(Quantity::from_units(0))
    }

    /// What is used once `more` is there; only names the quota limits.
    #[must_use]
    pub fn with(&self, more: &Amounts) -> Amounts {
        let mut used = self.used.clone();
        used.retain(|name, _| self.hard.contains_key(name));
        for (name, amount) in more {
            used.insert(name.clone(), self.used_of(name).plus(*amount));
        }
        used
    }
}

impl Selector {
    fn matches(&self, traits: &Traits) -> bool {
        let pod = traits.is_pod;
        match self.scope.as_str() {
            "Terminating" => pod && traits.terminating,
            "NotTerminating" => pod && !traits.terminating,
            "BestEffort" => pod && traits.best_effort,
            "NotBestEffort" => pod && !traits.best_effort,
            "CrossNamespacePodAffinity" => pod && traits.crosses_namespaces,
            "PriorityClass" if pod => self.matches_any(std::slice::from_ref(&traits.priority_class)),
            "VolumeAttributesClass" if traits.is_claim => self.matches_any(&traits.volume_attributes_classes),
            _ => false,
        }
    }

    fn matches_any(&self, values: &[String]) -> bool {
        let mut values = values.iter().filter(|v| !v.is_empty());
        match self.operator.as_str() {
            "Exists" => values.next().is_some(),
            "DoesNotExist" => values.next().is_none(),
            "In" => values.any(|v| self.values.contains(v)),
            "NotIn" => !values.any(|v| self.values.contains(v)),
            _ => false,
        }
    }
}

/// `new - old`, name by name.
#[must_use]
pub fn difference(new: &Amounts, old: &Amounts) -> Amounts {
    let zero = Quantity::from_units(0);
    let mut out = new.clone();
    for (name, amount) in old {
        let entry = out.entry(name.clone()).or_insert(zero);
        *entry = entry.minus(*amount);
    }
    out
}

/// Amounts without those below zero: admission only ever charges; giving back is the controller's work.
#[must_use]
pub fn negative_to_zero(amounts: &Amounts) -> Amounts {
    amounts.iter().filter(|(_, a)| !a.is_negative() && !a.is_zero()).map(|(n, a)| (n.clone(), *a)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::charge;

    fn cost(pod: &Value) -> Charge {
        charge("", "pods", pod.as_object().unwrap(), "2026-01-01T00:00:00Z".parse().unwrap())
    }

    fn pod(cpu: &str, extra: Value) -> Value {
        let mut pod =
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        pod["spec"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        pod
    }

    #[test]
    fn refusals_say_what_was_asked_used_and_limited() {
        let quota = Quota::of_status(&json!({"metadata": {"name": "q"},
            "status": {"hard": {"requests.cpu": "1", "pods": "5"}, "used": {"requests.cpu": "800m", "pods": "1"}}}));
        let charge = cost(&pod("300m", json!({})));
        let share = quota.share(&charge);
        assert_eq!(
            quota.exceeded(&share).unwrap(),
            "exceeded quota: q, requested: requests.cpu=300m, used: requests.cpu=800m, limited: requests.cpu=1"
        );
        let fits = quota.share(&cost(&pod("200m", json!({}))));
        assert_eq!(quota.exceeded(&fits), None);
        assert_eq!(quota.with(&fits)["requests.cpu"].to_string(), "1");
        let bare = json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}]}});
        assert_eq!(
            quota.missing(bare.as_object().unwrap(), &cost(&bare).traits).unwrap(),
            "failed quota: q: must specify requests.cpu for: a,b"
        );
    }

    #[test]
    fn scopes_choose() {
        let best_effort = json!({"spec": {"containers": [{}]}});
        let urgent = pod("1", json!({"priorityClassName": "high", "activeDeadlineSeconds": 10}));
        let selector = |operator: &str, values: Value| {
            json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values}]}})
        };
        for (spec, expect) in [
            (json!({}), (true, true)),
            (json!({"scopes": ["BestEffort"]}), (true, false)),
            (json!({"scopes": ["NotBestEffort"]}), (false, true)),
            (json!({"scopes": ["Terminating"]}), (false, true)),
            (json!({"scopes": ["NotTerminating", "BestEffort"]}), (true, false)),
            (json!({"scopes": ["CrossNamespacePodAffinity"]}), (false, false)),
            (selector("Exists", json!([])), (false, true)),
            (selector("DoesNotExist", json!([])), (true, false)),
            (selector("In", json!(["high"])), (false, true)),
            (selector("NotIn", json!(["high"])), (true, false)),
        ] {
            let mut object = json!({"metadata": {"name": "q"}, "spec": spec});
            object["spec"]["hard"] = json!({"pods": "1"});
            let quota = Quota::of_spec(&object);
            let counts = |p: &Value| !quota.share(&cost(p)).is_empty();
            assert_eq!((counts(&best_effort), counts(&urgent)), expect, "{object}");
        }
    }
}
