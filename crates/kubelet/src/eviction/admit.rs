//! Pods that come while the node is under pressure. Pure.

use api::prelude::*;

use super::EVICTED;
use super::rank::CRITICAL_PRIORITY;
use super::state::Pressure;
use crate::resources::{self, Qos};
use crate::spec;
use crate::status::Verdict;

/// Critical pods are let in always; where only memory is short, pods that asked for some, or tolerate it, too.
pub fn admit(pod: &Pod, pressure: Pressure) -> Result<(), Verdict> {
    let names =
        [(pressure.memory, "MemoryPressure"), (pressure.disk, "DiskPressure"), (pressure.pid, "PIDPressure")];
    let holding: Vec<&str> = names.iter().filter(|(holds, _)| *holds).map(|(_, name)| *name).collect();
    let spec = spec::spec(pod);
    if holding.is_empty() || spec.priority.unwrap_or(0) >= CRITICAL_PRIORITY {
        return Ok(());
    }
    if holding == ["MemoryPressure"] {
        let tolerated = spec.tolerations.iter().flatten().any(|toleration| {
            let key = toleration.key.as_deref().unwrap_or_default();
            let effect = toleration.effect.as_deref().unwrap_or_default();
            let exists = toleration.operator.as_deref() == Some("Exists");
            (effect.is_empty() || effect == "NoSchedule")
                && ((key.is_empty() && exists)
                    || (key == "node.kubernetes.io/memory-pressure"
                        && (exists || toleration.value.as_deref().unwrap_or_default().is_empty())))
        });
        if tolerated || resources::qos(pod) != Qos::BestEffort {
            return Ok(());
        }
    }
    let message = format!("Pod was rejected: The node had condition: [{}]. ", holding.join(" "));
    Err(Verdict { reason: EVICTED.into(), message, ..Verdict::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn who_is_let_in() {
        let pod = |spec: Value| Pod::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        let plain = || pod(json!({"containers": [{"name": "c"}]}));
        let burstable =
            || pod(json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}}}]}));
        let tolerant = || {
            pod(json!({"containers": [{"name": "c"}], "tolerations":
                [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}]}))
        };
        let critical = || pod(json!({"containers": [{"name": "c"}], "priority": CRITICAL_PRIORITY}));
        let memory = Pressure { memory: true, ..Pressure::default() };
        let both = Pressure { disk: true, ..memory };
        let refused = "Pod was rejected: The node had condition: [MemoryPressure DiskPressure]. ";
        let table = [
            (plain(), Pressure::default(), None),
            (plain(), memory, Some("Pod was rejected: The node had condition: [MemoryPressure]. ")),
            (burstable(), memory, None),
            (tolerant(), memory, None),
            (critical(), both, None),
            (burstable(), both, Some(refused)),
            (tolerant(), both, Some(refused)),
        ];
        for (pod, pressure, expected) in table {
            let verdict = admit(&pod, pressure).err();
            assert_eq!(verdict.as_ref().map(|v| v.message.as_str()), expected, "{:?} {pressure:?}", pod.spec);
            assert!(verdict.is_none_or(|v| v.reason == "Evicted" && !v.disruption));
        }
    }
}
