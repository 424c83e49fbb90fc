//! `SchedulingGates`: pods with gates do not even queue (KEP-3521).

use crate::pod_info::PodInfo;

/// Name of the plugin.
pub const NAME: &str = "SchedulingGates";

/// Why a pod may not queue, in upstream's words.
pub fn blocked(pod: &PodInfo) -> Option<String> {
    let gates = pod.pod.spec.as_ref()?.scheduling_gates.as_ref()?;
    let names: Vec<&str> = gates.iter().map(|gate| gate.name.as_str()).collect();
    if names.is_empty() { None } else { Some(format!("waiting for scheduling gates: [{}]", names.join(" "))) }
}
