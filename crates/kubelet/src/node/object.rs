//! The Node object: labels, capacity, addresses, conditions. Pure.

use std::collections::BTreeMap;

use api::k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus,
};
use api::prelude::*;
use jiff::Timestamp;

use super::machine::{Machine, architecture};
use crate::config::Config;
use crate::eviction::state::Pressure;
use crate::resources::Amounts;

/// Images a Node object names at most (upstream's default).
pub const IMAGES_MAX: usize = 50;

/// Labels the node registers with.
pub fn labels(config: &Config) -> BTreeMap<String, String> {
    let own = [
        ("kubernetes.io/hostname", config.hostname.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ];
    let own = own.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    own.chain(config.node_labels.clone()).collect()
}

/// Amounts as quantities: CPU in whole processors where it is whole, memory in Ki.
pub fn quantities(amounts: &Amounts) -> BTreeMap<String, Quantity> {
    let text = |name: &str, value: i64| match name {
        "cpu" if value % 1000 == 0 => (value / 1000).to_string(),
        "cpu" => format!("{value}m"),
        "memory" if value > 0 => format!("{}Ki", value >> 10),
        name if name.starts_with("hugepages-") && value > 0 => format!("{}Mi", value >> 20),
        _ => value.to_string(),
    };
    amounts.iter().map(|(name, value)| (name.clone(), Quantity(text(name, *value)))).collect()
}

/// Resources that others than the machine gave to the node, as somebody patched them into its capacity: all
/// of each may be used. `None` where one was taken away again and must go.
pub fn extended(status: &NodeStatus, own: &Amounts) -> BTreeMap<String, Option<Quantity>> {
    let foreign = |map: &Option<BTreeMap<String, Quantity>>| -> BTreeMap<String, Option<Quantity>> {
        let entries = map.iter().flatten().filter(|(name, _)| !own.contains_key(*name));
        entries.map(|(name, value)| (name.clone(), Some(value.clone()))).collect()
    };
    let mut out = foreign(&status.allocatable);
    out.values_mut().for_each(|value| *value = None);
    out.extend(foreign(&status.capacity));
    out
}

/// Why the node is not ready, if it is not.
pub type NotReady<'a> = Option<&'a str>;

/// The conditions, with transition times kept from `old`.
pub fn conditions(
    old: &[NodeCondition],
    pressure: Pressure,
    not_ready: NotReady<'_>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let pressures = [
        (
            "MemoryPressure",
            pressure.memory,
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        (
            "DiskPressure",
            pressure.disk,
            "KubeletHasDiskPressure",
            "kubelet has disk pressure",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        (
            "PIDPressure",
            pressure.pid,
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
    ];
    let mut conditions: Vec<(&str, bool, &str, &str)> = pressures
        .into_iter()
        .map(|(kind, holds, yes, yes_message, no, no_message)| match holds {
            true => (kind, true, yes, yes_message),
            false => (kind, false, no, no_message),
        })
        .collect();
    conditions.push(match not_ready {
        None => ("Ready", true, "KubeletReady", "kubelet is posting ready status"),
        Some(why) => ("Ready", false, "KubeletNotReady", why),
    });
    conditions
        .into_iter()
        .map(|(kind, holds, reason, message)| {
            let status = if holds { "True" } else { "False" };
            let before = old.iter().find(|condition| condition.type_ == kind && condition.status == status);
            NodeCondition {
                type_: kind.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message.into()),
                last_heartbeat_time: Some(now.clone()),
                last_transition_time: before
                    .and_then(|condition| condition.last_transition_time.clone())
                    .or_else(|| Some(now.clone())),
            }
        })
        .collect()
}

/// Everything a status is made of.
pub struct Inputs<'a> {
    /// Configuration.
    pub config: &'a Config,
    /// The machine.
    pub machine: &'a Machine,
    /// Images on it.
    pub images: &'a [cri::Image],
    /// Pressure.
    pub pressure: Pressure,
    /// What the runtime has said of itself.
    pub runtime: &'a cri::RuntimeInfo,
    /// Why it is not ready.
    pub not_ready: NotReady<'a>,
    /// Devices of plugins: capacity and allocatable amounts.
    pub devices: &'a BTreeMap<String, (i64, i64)>,
    /// Port of the node's server.
    pub port: u16,
    /// Conditions as they are.
    pub old: &'a [NodeCondition],
    /// Now.
    pub now: Timestamp,
}

/// The status of the node.
pub fn status(inputs: &Inputs<'_>) -> NodeStatus {
    let config = inputs.config;
    let address = |kind: &str, address: String| NodeAddress { type_: kind.into(), address };
    let mut addresses: Vec<NodeAddress> =
        config.node_ips.iter().map(|ip| address("InternalIP", ip.to_string())).collect();
    addresses.push(address("Hostname", config.hostname.clone()));
    let (mut capacity, mut allocatable) =
        (inputs.machine.capacity(config), inputs.machine.allocatable(config));
    for (name, (all, usable)) in inputs.devices {
        capacity.insert(name.clone(), *all);
        allocatable.insert(name.clone(), *usable);
    }
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(quantities(&capacity)),
        allocatable: Some(quantities(&allocatable)),
        conditions: Some(conditions(inputs.old, inputs.pressure, inputs.not_ready, inputs.now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(inputs.port) }),
        }),
        images: Some(images(inputs.images)).filter(|images| !images.is_empty()),
        node_info: Some(inputs.machine.info.clone()),
        runtime_handlers: Some(handlers(inputs.runtime)).filter(|handlers| !handlers.is_empty()),
        features: Some(NodeFeatures {
            supplemental_groups_policy: Some(inputs.runtime.supplemental_groups_policy),
        }),
        ..NodeStatus::default()
    }
}

fn handlers(runtime: &cri::RuntimeInfo) -> Vec<NodeRuntimeHandler> {
    let one = |handler: &cri::RuntimeHandler| NodeRuntimeHandler {
        name: Some(handler.name.clone()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(handler.recursive_readonly_mounts),
            user_namespaces: Some(handler.user_namespaces),
        }),
    };
    runtime.handlers.iter().map(one).collect()
}

/// The largest images.
fn images(all: &[cri::Image]) -> Vec<ContainerImage> {
    let mut sorted: Vec<&cri::Image> = all.iter().collect();
    sorted.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.id.cmp(&b.id)));
    let images = sorted.into_iter().take(IMAGES_MAX).map(|image| ContainerImage {
        names: Some(image.repo_digests.iter().chain(&image.repo_tags).cloned().collect()),
        size_bytes: Some(image.size_bytes as i64),
    });
    images.filter(|image| image.names.as_ref().is_some_and(|names| !names.is_empty())).collect()
}

/// The object to register.
pub fn node(config: &Config, status: NodeStatus) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels(config)),
            annotations: Some(BTreeMap::from([(
                "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                "true".to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            provider_id: config.provider_id.clone(),
            taints: Some(config.register_taints.clone()).filter(|taints| !taints.is_empty()),
            ..NodeSpec::default()
        }),
        status: Some(status),
    }
}

/// Events that a change of conditions brings, as upstream names them.
pub fn transitions(old: &[NodeCondition], new: &[NodeCondition]) -> Vec<&'static str> {
    let mut events = Vec::new();
    for condition in new {
        let before = old.iter().find(|before| before.type_ == condition.type_);
        if before.is_some_and(|before| before.status == condition.status) {
            continue;
        }
        events.push(match (condition.type_.as_str(), condition.status.as_str()) {
            ("MemoryPressure", "True") => "NodeHasInsufficientMemory",
            ("MemoryPressure", _) => "NodeHasSufficientMemory",
            ("DiskPressure", "True") => "NodeHasDiskPressure",
            ("DiskPressure", _) => "NodeHasNoDiskPressure",
            ("PIDPressure", "True") => "NodeHasInsufficientPID",
            ("PIDPressure", _) => "NodeHasSufficientPID",
            ("Ready", "True") => "NodeReady",
            ("Ready", _) => "NodeNotReady",
            _ => continue,
        });
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_of_others_follow_their_capacity() {
        let amounts = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(n, v)| ((*n).to_owned(), Quantity((*v).to_owned()))).collect())
        };
        let status = NodeStatus {
            capacity: amounts(&[("cpu", "2"), ("a.io/new", "5"), ("a.io/more", "3")]),
            allocatable: amounts(&[("cpu", "1"), ("a.io/more", "2"), ("a.io/gone", "4")]),
            ..NodeStatus::default()
        };
        let found = extended(&status, &Amounts::from([("cpu".into(), 2000)]));
        let value = |v: &str| Some(Quantity(v.into()));
        let expect = [("a.io/gone", None), ("a.io/more", value("3")), ("a.io/new", value("5"))];
        assert_eq!(found, expect.map(|(n, v)| (n.to_owned(), v)).into());
    }

    #[test]
    fn conditions_and_events() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let first = conditions(&[], Pressure::default(), Some("network not ready"), at(1));
        assert_eq!(
            transitions(&[], &first),
            ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeNotReady"]
        );
        let second = conditions(&first, Pressure { disk: true, ..Pressure::default() }, None, at(9));
        assert_eq!(transitions(&first, &second), ["NodeHasDiskPressure", "NodeReady"]);
        assert_eq!(second[0].last_transition_time, Some(Time(at(1))));
        assert_eq!(second[3].last_transition_time, Some(Time(at(9))));
        assert_eq!(second[3].reason.as_deref(), Some("KubeletReady"));
    }

    #[test]
    fn quantities_read_well() {
        let amounts = Amounts::from([("cpu".into(), 2000), ("memory".into(), 4 << 20), ("pods".into(), 110)]);
        let texts: Vec<String> = quantities(&amounts).into_values().map(|quantity| quantity.0).collect();
        assert_eq!(texts, ["2", "4096Ki", "110"]);
        assert_eq!(quantities(&Amounts::from([("cpu".into(), 1900)]))["cpu"].0, "1900m");
    }
}
