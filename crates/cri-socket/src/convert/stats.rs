//! Resource use.

use cri::{ContainerStats, ContainerStatus, InterfaceStats, PodSandboxStats, PodSandboxStatus};
use rpc::cri as pb;

use super::{nanoseconds, timestamp, value, value_of};

/// A container's use.
pub fn container_to(stats: &ContainerStats, of: &ContainerStatus, mountpoint: &str) -> pb::ContainerStats {
    let at = nanoseconds(stats.timestamp);
    pb::ContainerStats {
        attributes: Some(pb::ContainerAttributes {
            id: stats.id.clone(),
            metadata: Some(pb::ContainerMetadata { name: of.name.clone(), attempt: of.attempt }),
            labels: of.labels.clone(),
            annotations: of.annotations.clone(),
        }),
        cpu: Some(cpu(at, stats.cpu_usage_ns)),
        memory: Some(pb::MemoryUsage {
            timestamp: at,
            working_set_bytes: value(stats.memory_working_set_bytes),
            available_bytes: stats.memory_available_bytes.and_then(value),
            usage_bytes: value(stats.memory_usage_bytes),
            rss_bytes: value(stats.memory_rss_bytes),
            page_faults: value(stats.page_faults),
            major_page_faults: value(stats.major_page_faults),
            psi: None,
        }),
        writable_layer: Some(pb::FilesystemUsage {
            timestamp: at,
            fs_id: Some(pb::FilesystemIdentifier { mountpoint: mountpoint.to_owned() }),
            used_bytes: value(stats.writable_layer_bytes),
            inodes_used: value(stats.writable_layer_inodes),
        }),
        swap: Some(pb::SwapUsage { timestamp: at, ..Default::default() }),
        io: None,
    }
}

fn cpu(timestamp: i64, used: u64) -> pb::CpuUsage {
    pb::CpuUsage { timestamp, usage_core_nano_seconds: value(used), ..Default::default() }
}

/// A container's use, in this sandbox.
pub fn container_from(stats: pb::ContainerStats, sandbox_id: &str) -> ContainerStats {
    let attributes = stats.attributes.unwrap_or_default();
    let cpu = stats.cpu.unwrap_or_default();
    let memory = stats.memory.unwrap_or_default();
    let layer = stats.writable_layer.unwrap_or_default();
    ContainerStats {
        id: attributes.id,
        sandbox_id: sandbox_id.to_owned(),
        name: attributes.metadata.map(|metadata| metadata.name).unwrap_or_default(),
        timestamp: timestamp(cpu.timestamp.max(memory.timestamp)),
        cpu_usage_ns: value_of(cpu.usage_core_nano_seconds),
        memory_usage_bytes: value_of(memory.usage_bytes),
        memory_working_set_bytes: value_of(memory.working_set_bytes),
        memory_rss_bytes: value_of(memory.rss_bytes),
        memory_available_bytes: memory.available_bytes.map(|value| value.value).filter(|bytes| *bytes != 0),
        page_faults: value_of(memory.page_faults),
        major_page_faults: value_of(memory.major_page_faults),
        pids: 0,
        writable_layer_bytes: value_of(layer.used_bytes),
        writable_layer_inodes: value_of(layer.inodes_used),
    }
}

fn interface_to(stats: &InterfaceStats) -> pb::NetworkInterfaceUsage {
    pb::NetworkInterfaceUsage {
        name: stats.name.clone(),
        rx_bytes: value(stats.rx_bytes),
        rx_errors: value(stats.rx_errors),
        tx_bytes: value(stats.tx_bytes),
        tx_errors: value(stats.tx_errors),
    }
}

fn interface_from(stats: pb::NetworkInterfaceUsage) -> InterfaceStats {
    InterfaceStats {
        name: stats.name,
        rx_bytes: value_of(stats.rx_bytes),
        rx_errors: value_of(stats.rx_errors),
        tx_bytes: value_of(stats.tx_bytes),
        tx_errors: value_of(stats.tx_errors),
    }
}

/// A sandbox's use with that of its containers.
pub fn sandbox_to(
    stats: &PodSandboxStats,
    of: &PodSandboxStatus,
    containers: Vec<pb::ContainerStats>,
) -> pb::PodSandboxStats {
    let at = nanoseconds(stats.timestamp);
    pb::PodSandboxStats {
        attributes: Some(pb::PodSandboxAttributes {
            id: stats.id.clone(),
            metadata: super::sandbox::item_to(of).metadata,
            labels: of.labels.clone(),
            annotations: of.annotations.clone(),
        }),
        linux: Some(pb::LinuxPodSandboxStats {
            cpu: Some(cpu(at, stats.cpu_usage_ns)),
            memory: Some(pb::MemoryUsage {
                timestamp: at,
                working_set_bytes: value(stats.memory_working_set_bytes),
                usage_bytes: value(stats.memory_usage_bytes),
                rss_bytes: value(stats.memory_rss_bytes),
                ..Default::default()
            }),
            network: Some(pb::NetworkUsage {
                timestamp: at,
                default_interface: stats.interfaces.first().map(interface_to),
                interfaces: stats.interfaces.iter().skip(1).map(interface_to).collect(),
            }),
            process: Some(pb::ProcessUsage { timestamp: at, process_count: value(stats.pids) }),
            containers,
            io: None,
        }),
    }
}

/// A sandbox's use.
pub fn sandbox_from(stats: pb::PodSandboxStats) -> PodSandboxStats {
    let linux = stats.linux.unwrap_or_default();
    let cpu = linux.cpu.unwrap_or_default();
    let memory = linux.memory.unwrap_or_default();
    let network = linux.network.unwrap_or_default();
    let interfaces = network.default_interface.into_iter().chain(network.interfaces);
    PodSandboxStats {
        id: stats.attributes.map(|attributes| attributes.id).unwrap_or_default(),
        timestamp: timestamp(cpu.timestamp),
        cpu_usage_ns: value_of(cpu.usage_core_nano_seconds),
        memory_usage_bytes: value_of(memory.usage_bytes),
        memory_working_set_bytes: value_of(memory.working_set_bytes),
        memory_rss_bytes: value_of(memory.rss_bytes),
        pids: value_of(linux.process.and_then(|process| process.process_count)),
        interfaces: interfaces.map(interface_from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandboxes_survive_both_ways() {
        let interface = |name: &str| InterfaceStats { name: name.into(), rx_bytes: 1, ..Default::default() };
        let stats = PodSandboxStats {
            id: "s".into(),
            timestamp: timestamp(1),
            cpu_usage_ns: 2,
            memory_usage_bytes: 3,
            memory_working_set_bytes: 4,
            memory_rss_bytes: 5,
            pids: 6,
            interfaces: vec![interface("eth0"), interface("eth1")],
        };
        let status = super::super::sandbox::status_from(pb::PodSandboxStatus::default());
        assert_eq!(sandbox_from(sandbox_to(&stats, &status, Vec::new())), stats);
    }
}
