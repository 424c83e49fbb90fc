//! The part of the configuration that is about processors, memory and where they lie: policies, their options and
//! whether these go together, in upstream's words. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Configuration;
use crate::config::{Config, CpuPolicy, StaticCpus, TopologyPolicy};
use crate::memory::reserved_total;
use crate::memory::table::Bytes;

/// Options of the static CPU policy, and whether they have to be let in by the gate of options that are young.
const CPU_OPTIONS: [(&str, bool); 6] = [
    ("align-by-socket", true),
    ("distribute-cpus-across-cores", true),
    ("distribute-cpus-across-numa", false),
    ("full-pcpus-only", false),
    ("prefer-align-cpus-by-uncorecache", false),
    ("strict-cpu-reservation", false),
];
/// The gate.
const CPU_GATE: &str = "CPUManagerPolicyAlphaOptions";
const CLOSEST: &str = "prefer-closest-numa-nodes";
const NODES_MAX: &str = "max-allowable-numa-nodes";

/// What Go takes for a boolean.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn has(options: &BTreeMap<String, String>, name: &str) -> bool {
    options.get(name).and_then(|text| boolean(text)) == Some(true)
}

/// Memory that the file keeps on each NUMA node.
fn reserved(configuration: &Configuration) -> Vec<(u32, Vec<(String, u64)>)> {
    let list = configuration.value("reservedMemory").and_then(Value::as_array);
    let of = |item: &Value| {
        let node = item.get("numaNode").and_then(Value::as_u64).unwrap_or(0);
        let limits = item.get("limits").and_then(Value::as_object).into_iter().flatten();
        let limits = limits.map(|(kind, text)| {
            let amount = meta::Quantity::parse(text.as_str().unwrap_or_default()).map_or(0, |q| q.value());
            (kind.clone(), u64::try_from(amount).unwrap_or(0))
        });
        (u32::try_from(node).unwrap_or(u32::MAX), limits.collect())
    };
    list.into_iter().flatten().map(of).collect()
}

/// Puts it into a kubelet's configuration.
pub(super) fn apply(configuration: &Configuration, config: &mut Config) {
    if configuration.text("cpuManagerPolicy") == "static" {
        let options = configuration.map("cpuManagerPolicyOptions");
        config.cpu_policy = CpuPolicy::Static(StaticCpus {
            full_cores_only: has(&options, "full-pcpus-only"),
            strict_reservation: has(&options, "strict-cpu-reservation"),
            by_socket: has(&options, "align-by-socket"),
            choice: crate::cpu::Options {
                across_nodes: has(&options, "distribute-cpus-across-numa"),
                across_cores: has(&options, "distribute-cpus-across-cores"),
                by_cache: has(&options, "prefer-align-cpus-by-uncorecache"),
            },
        });
    }
    config.topology_policy = match configuration.text("topologyManagerPolicy") {
        "best-effort" => TopologyPolicy::BestEffort,
        "restricted" => TopologyPolicy::Restricted,
        "single-numa-node" => TopologyPolicy::SingleNumaNode,
        _ => TopologyPolicy::None,
    };
    config.topology_of_pods = configuration.text("topologyManagerScope") == "pod";
    let options = configuration.map("topologyManagerPolicyOptions");
    config.prefer_closest_nodes = has(&options, CLOSEST);
    if let Some(most) = options.get(NODES_MAX).and_then(|text| text.parse().ok()) {
        config.numa_nodes_max = most;
    }
    config.static_memory = configuration.text("memoryManagerPolicy") == "Static";
    for (node, limits) in reserved(configuration) {
        config.reserved_memory.entry(node).or_default().extend(limits);
    }
}

/// Options that exclude each other.
const CPU_CONFLICTS: [(&str, &str); 4] = [
    ("full-pcpus-only", "distribute-cpus-across-cores"),
    ("distribute-cpus-across-numa", "distribute-cpus-across-cores"),
    ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-cores"),
    ("prefer-align-cpus-by-uncorecache", "distribute-cpus-across-numa"),
];

fn check_cpus(configuration: &Configuration, problems: &mut Vec<String>) {
    let options = configuration.map("cpuManagerPolicyOptions");
    let gate = configuration.value("featureGates").and_then(|gates| gates.get(CPU_GATE)?.as_bool());
    for (name, value) in &options {
        match CPU_OPTIONS.iter().find(|(known, _)| known == name) {
            None => problems.push(format!("unknown CPU Manager Policy option: {name:?}")),
            Some((_, true)) if gate != Some(true) => problems.push(format!(
                "CPU Manager Policy Alpha-level Options not enabled, but option {name:?} provided"
            )),
            Some(_) if boolean(value).is_none() => problems.push(format!(
                "bad value for option {name:?}: strconv.ParseBool: parsing {value:?}: invalid syntax"
            )),
            Some(_) => {}
        }
    }
    for (one, other) in CPU_CONFLICTS {
        if has(&options, one) && has(&options, other) {
            problems
                .push(format!("static policy options {one} and {other} can not be used at the same time"));
        }
    }
    if has(&options, "align-by-socket") && configuration.text("topologyManagerPolicy") == "single-numa-node" {
        problems.push(
            "Topolgy manager single-numa-node policy is incompatible with CPUManager align-by-socket policy option"
                .into(),
        );
    }
}

fn check_topology(configuration: &Configuration, problems: &mut Vec<String>) {
    for (name, value) in configuration.map("topologyManagerPolicyOptions") {
        match name.as_str() {
            CLOSEST => {
                if boolean(&value).is_none() {
                    problems.push(format!(
                        "bad value for option {name:?}: strconv.ParseBool: parsing {value:?}: invalid syntax"
                    ));
                }
            }
            NODES_MAX => match value.parse::<i64>() {
                Err(_) => problems.push(format!(
                    "unable to convert policy option to integer {name:?}: strconv.Atoi: parsing {value:?}: invalid syntax"
                )),
                Ok(most) if most < crate::topology::NODES_MAX_DEFAULT => problems.push(format!(
                    "the minimum value of {name:?} should not be less than {}",
                    crate::topology::NODES_MAX_DEFAULT
                )),
                Ok(most) if most > i64::from(crate::numa::NODES_MAX) => problems.push(format!(
                    "the value of {name:?} should not be more than {}",
                    crate::numa::NODES_MAX
                )),
                Ok(_) => {}
            },
            _ => problems.push(format!("unknown Topology Manager Policy option: {name:?}")),
        }
    }
}

fn check_memory(configuration: &Configuration, problems: &mut Vec<String>) {
    let policy = configuration.text("memoryManagerPolicy");
    if !["None", "Static"].contains(&policy) {
        problems.push(format!("unknown policy: {policy:?}"));
    }
    let mut seen: Vec<(u32, String)> = Vec::new();
    let mut kept: BTreeMap<u32, Bytes> = BTreeMap::new();
    for (node, limits) in reserved(configuration) {
        for (kind, bytes) in limits {
            if kind != "memory" && !kind.starts_with("hugepages-") {
                problems.push(format!(
                    "the limit type {kind:?} for NUMA node {node} is not supported, only [memory hugepages-<HugePageSize>] \
                     is accepted"
                ));
            }
            if bytes == 0 {
                problems.push(format!(
                    "reserved memory may not be zero for NUMA node {node} and resource {kind:?}"
                ));
            }
            if seen.contains(&(node, kind.clone())) {
                problems.push(format!(
                    "the reserved memory has a duplicate value for NUMA node {node} and resource {kind:?}"
                ));
            }
            kept.entry(node).or_default().insert(kind.clone(), bytes);
            seen.push((node, kind));
        }
    }
    if policy != "Static" {
        return;
    }
    let total = reserved_total(&kept);
    let memory = total.get("memory").copied().unwrap_or(0);
    let eviction = configuration
        .eviction()
        .map(|eviction| eviction.kept(crate::eviction::threshold::Signal::MemoryAvailable, i64::MAX));
    let of_node = configuration.reserved().get("memory").copied().unwrap_or(0) + eviction.unwrap_or(0);
    let shown = |bytes: i64| crate::eviction::rank::binary(bytes);
    let kinds =
        std::iter::once("memory").chain(total.keys().map(String::as_str).filter(|kind| *kind != "memory"));
    let mut differ = false;
    for kind in kinds {
        let bytes = i64::try_from(total.get(kind).copied().unwrap_or(0)).unwrap_or(i64::MAX);
        let wanted = if kind == "memory" { of_node } else { 0 };
        if bytes != wanted {
            differ = true;
            problems.push(format!(
                "the total amount {:?} of type {kind:?} is not equal to the value {:?} determined by Node Allocatable \
                 feature",
                shown(bytes),
                shown(wanted)
            ));
        }
    }
    if memory == 0 && !differ {
        problems.push("[memorymanager] you should specify the system reserved memory".into());
    }
}

/// What is wrong with it.
pub(super) fn check(configuration: &Configuration, problems: &mut Vec<String>) {
    check_cpus(configuration, problems);
    check_topology(configuration, problems);
    check_memory(configuration, problems);
}

#[cfg(test)]
mod tests {
    use super::super::{API_VERSION, Error, KIND};
    use super::*;
    use serde_json::json;

    fn decode(more: &Value) -> Result<Configuration, Error> {
        let mut document = json!({"apiVersion": API_VERSION, "kind": KIND});
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Configuration::decode(document)
    }

    #[test]
    fn what_makes_no_sense() {
        let table = [
            (json!({"memoryManagerPolicy": "x"}), "unknown policy: \"x\""),
            (
                json!({"memoryManagerPolicy": "Static"}),
                "the total amount \"0\" of type \"memory\" is not equal to the value \"100Mi\" determined by Node \
                 Allocatable feature",
            ),
            (
                json!({"memoryManagerPolicy": "Static", "evictionHard": {"memory.available": "0"}}),
                "[memorymanager] you should specify the system reserved memory",
            ),
            (
                json!({"memoryManagerPolicy": "Static",
                    "reservedMemory": [{"numaNode": 0, "limits": {"memory": "100Mi", "hugepages-2Mi": "4Mi"}}]}),
                "the total amount \"4Mi\" of type \"hugepages-2Mi\" is not equal to the value \"0\" determined by Node \
                 Allocatable feature",
            ),
            (
                json!({"cpuManagerPolicy": "static", "reservedSystemCPUs": "0", "cpuManagerPolicyOptions":
                    {"align-by-socket": "true"}, "topologyManagerPolicy": "single-numa-node",
                    "featureGates": {"CPUManagerPolicyAlphaOptions": true}}),
                "Topolgy manager single-numa-node policy is incompatible with CPUManager align-by-socket policy option",
            ),
            (
                json!({"memoryManagerPolicy": "Static", "kubeReserved": {"memory": "100Mi"},
                    "reservedMemory": [{"numaNode": 0, "limits": {"memory": "1Gi"}}]}),
                "the total amount \"1Gi\" of type \"memory\" is not equal to the value \"200Mi\" determined by Node \
                 Allocatable feature",
            ),
            (
                json!({"reservedMemory": [{"numaNode": 1, "limits": {"cpu": "1"}}]}),
                "the limit type \"cpu\" for NUMA node 1 is not supported, only [memory hugepages-<HugePageSize>] is accepted",
            ),
            (
                json!({"reservedMemory": [{"numaNode": 1, "limits": {"memory": "0"}}]}),
                "reserved memory may not be zero for NUMA node 1 and resource \"memory\"",
            ),
            (
                json!({"cpuManagerPolicyOptions": {"align-by-socket": "true"}}),
                "CPU Manager Policy Alpha-level Options not enabled, but option \"align-by-socket\" provided",
            ),
            (json!({"cpuManagerPolicyOptions": {"x": "true"}}), "unknown CPU Manager Policy option: \"x\""),
            (
                json!({"cpuManagerPolicyOptions": {"full-pcpus-only": "yes"}}),
                "bad value for option \"full-pcpus-only\": strconv.ParseBool: parsing \"yes\": invalid syntax",
            ),
            (
                json!({"topologyManagerPolicyOptions": {"max-allowable-numa-nodes": "4"}}),
                "the minimum value of \"max-allowable-numa-nodes\" should not be less than 8",
            ),
        ];
        for (more, expected) in table {
            let found = decode(&more).unwrap_err();
            assert_eq!(found, Error::Invalid(vec![format!("invalid configuration: {expected}")]), "{more}");
        }
    }

    #[test]
    fn what_it_says() {
        let file = decode(&json!({"memoryManagerPolicy": "Static", "kubeReserved": {"memory": "924Mi", "cpu": "1"},
            "reservedMemory": [{"numaNode": 0, "limits": {"memory": "1Gi"}}],
            "cpuManagerPolicy": "static", "featureGates": {"CPUManagerPolicyAlphaOptions": true},
            "cpuManagerPolicyOptions": {"align-by-socket": "true", "distribute-cpus-across-numa": "1"},
            "topologyManagerPolicy": "restricted", "topologyManagerScope": "pod",
            "topologyManagerPolicyOptions": {"prefer-closest-numa-nodes": "true", "max-allowable-numa-nodes": "16"}}))
        .unwrap();
        let mut config = Config::new("n", "/d".into());
        file.apply(&mut config);
        assert_eq!(file.idle, Vec::<String>::new());
        let CpuPolicy::Static(cpus) = config.cpu_policy else { panic!("{:?}", config.cpu_policy) };
        assert!(cpus.by_socket && cpus.choice.across_nodes && !cpus.full_cores_only);
        assert!(config.topology_of_pods && config.prefer_closest_nodes && config.static_memory);
        assert_eq!((config.topology_policy, config.numa_nodes_max), (TopologyPolicy::Restricted, 16));
        assert_eq!(config.reserved_memory[&0]["memory"], 1 << 30);
    }
}
