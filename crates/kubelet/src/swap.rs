//! How much containers may swap, on cgroup v2. Pure, but for the look at the machine.

use api::prelude::*;

use crate::resources::{self, Qos};
use crate::spec::{self, Role};

/// What the node has of swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swap {
    /// Bytes of swap.
    pub total: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Burstable pods may use a part of it.
    pub limited: bool,
}

impl Swap {
    /// Looks at the machine; `None` where swap is off or cannot be limited.
    pub fn read(limited: bool) -> Option<Swap> {
        if !std::path::Path::new(crate::cgroup::MOUNT).join("cgroup.controllers").exists() {
            return None;
        }
        let table = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = |name| crate::eviction::observe::memory_line(&table, name);
        let (total, memory) = (line("SwapTotal")? as i64, line("MemTotal")? as i64);
        (total > 0 && memory > 0).then_some(Swap { total, memory, limited })
    }

    /// `memory.swap.max` of a container: its share by what it requests of memory, for Burstable pods that limit
    /// it to something else; nothing for all others.
    pub fn limit(&self, pod: &Pod, role: Role, container: &Container) -> i64 {
        let requested = resources::requests(container).get("memory").copied().unwrap_or(0);
        let limit = resources::limits(container).get("memory").copied().unwrap_or(0);
        let critical = spec::spec(pod).priority.unwrap_or(0) >= crate::eviction::rank::CRITICAL_PRIORITY;
        let may =
            self.limited && !critical && role != Role::Ephemeral && resources::qos(pod) == Qos::Burstable;
        if !may || requested == 0 || requested == limit {
            return 0;
        }
        (i128::from(self.total) * i128::from(requested) / i128::from(self.memory)).min(i128::from(self.total))
            as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn shares() {
        let swap = Swap { total: 4 << 30, memory: 16 << 30, limited: true };
        let memory = |request: &str, limit: &str| json!({"requests": {"memory": request}, "limits": if limit.is_empty() { json!({}) } else { json!({"memory": limit}) }});
        let table: [(Value, i64); 4] = [
            (memory("1Gi", ""), 256 << 20),
            (memory("1Gi", "2Gi"), 256 << 20),
            (memory("1Gi", "1Gi"), 0),
            (json!({}), 0),
        ];
        for (resources, expected) in table {
            let pod = Pod::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers":
                [{"name": "c", "resources": resources}]}}))
            .unwrap();
            let container = pod.spec.as_ref().unwrap().containers[0].clone();
            assert_eq!(swap.limit(&pod, Role::Regular, &container), expected, "{resources}");
            let off = Swap { limited: false, ..swap };
            assert_eq!(off.limit(&pod, Role::Regular, &container), 0);
        }
    }
}
