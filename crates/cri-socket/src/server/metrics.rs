//! Metrics of sandboxes and containers under cAdvisor's names, from one table.

use cri::{ContainerStats, ContainerStatus, PodSandboxStats};
use rpc::cri as pb;

use crate::convert::{nanoseconds, value};

/// A metric of containers.
struct OfContainer {
    name: &'static str,
    help: &'static str,
    kind: pb::MetricType,
    of: fn(&ContainerStats) -> Option<u64>,
}

/// Labels of a container's metrics.
const LABELS: &[&str] = &["id", "name", "image"];
/// Labels of a network's metrics.
const NETWORK_LABELS: &[&str] = &["id", "interface"];
const NANOSECONDS: u64 = 1_000_000_000;

const CONTAINER: &[OfContainer] = &[
    OfContainer {
        name: "container_cpu_usage_seconds_total",
        help: "Cumulative cpu time consumed in seconds.",
        kind: pb::MetricType::Counter,
        of: |stats| Some(stats.cpu_usage_ns / NANOSECONDS),
    },
    OfContainer {
        name: "container_memory_usage_bytes",
        help: "Current memory usage in bytes, including all memory regardless of when it was accessed",
        kind: pb::MetricType::Gauge,
        of: |stats| Some(stats.memory_usage_bytes),
    },
    OfContainer {
        name: "container_memory_working_set_bytes",
        help: "Current working set in bytes.",
        kind: pb::MetricType::Gauge,
        of: |stats| Some(stats.memory_working_set_bytes),
    },
    OfContainer {
        name: "container_memory_rss",
        help: "Size of RSS in bytes.",
        kind: pb::MetricType::Gauge,
        of: |stats| Some(stats.memory_rss_bytes),
    },
    OfContainer {
        name: "container_processes",
        help: "Number of processes running inside the container.",
        kind: pb::MetricType::Gauge,
        of: |stats| Some(stats.pids),
    },
    OfContainer {
        name: "container_fs_usage_bytes",
        help: "Number of bytes that are consumed by the container on this filesystem.",
        kind: pb::MetricType::Gauge,
        of: |stats| Some(stats.writable_layer_bytes),
    },
    OfContainer {
        name: "container_spec_memory_available_bytes",
        help: "Memory left below the container's limit in bytes.",
        kind: pb::MetricType::Gauge,
        of: |stats| stats.memory_available_bytes,
    },
];

/// A metric of a sandbox's interfaces.
type OfInterface = (&'static str, &'static str, fn(&cri::InterfaceStats) -> u64);

const NETWORK: &[OfInterface] = &[
    ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| i.rx_bytes),
    (
        "container_network_receive_errors_total",
        "Cumulative count of errors encountered while receiving",
        |i| i.rx_errors,
    ),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| i.tx_bytes),
    (
        "container_network_transmit_errors_total",
        "Cumulative count of errors encountered while transmitting",
        |i| i.tx_errors,
    ),
];

/// What there is.
pub(super) fn descriptors() -> Vec<pb::MetricDescriptor> {
    let describe = |name: &str, help: &str, labels: &[&str]| pb::MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: labels.iter().map(|label| (*label).to_owned()).collect(),
    };
    let container = CONTAINER.iter().map(|metric| describe(metric.name, metric.help, LABELS));
    container.chain(NETWORK.iter().map(|(name, help, _)| describe(name, help, NETWORK_LABELS))).collect()
}

/// A container's.
pub(super) fn container(stats: &ContainerStats, status: &ContainerStatus) -> pb::ContainerMetrics {
    let metrics = CONTAINER.iter().filter_map(|metric| {
        Some(pb::Metric {
            name: metric.name.to_owned(),
            timestamp: nanoseconds(stats.timestamp),
            metric_type: metric.kind.into(),
            label_values: vec![status.id.clone(), status.name.clone(), status.image.clone()],
            value: value((metric.of)(stats)?),
        })
    });
    pb::ContainerMetrics { container_id: status.id.clone(), metrics: metrics.collect() }
}

/// A sandbox's, with those of its containers.
pub(super) fn sandbox(
    stats: &PodSandboxStats,
    container_metrics: Vec<pb::ContainerMetrics>,
) -> pb::PodSandboxMetrics {
    let of_interface = |interface: &cri::InterfaceStats| {
        let labels = vec![stats.id.clone(), interface.name.clone()];
        let values: Vec<_> = NETWORK.iter().map(|(name, _, of)| (*name, of(interface))).collect();
        values.into_iter().map(move |(name, number)| pb::Metric {
            name: name.to_owned(),
            timestamp: nanoseconds(stats.timestamp),
            metric_type: pb::MetricType::Counter.into(),
            label_values: labels.clone(),
            value: value(number),
        })
    };
    let metrics = stats.interfaces.iter().flat_map(of_interface).collect();
    pb::PodSandboxMetrics { pod_sandbox_id: stats.id.clone(), metrics, container_metrics }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_described_with_its_labels() {
        let described = descriptors();
        let stats = PodSandboxStats {
            id: "s".into(),
            timestamp: jiff::Timestamp::UNIX_EPOCH,
            cpu_usage_ns: 0,
            memory_usage_bytes: 0,
            memory_working_set_bytes: 0,
            memory_rss_bytes: 0,
            pids: 0,
            interfaces: vec![cri::InterfaceStats { name: "eth0".into(), tx_bytes: 7, ..Default::default() }],
        };
        let made = sandbox(&stats, Vec::new()).metrics;
        assert_eq!(made.len(), NETWORK.len());
        for metric in &made {
            let known = described.iter().find(|known| known.name == metric.name).unwrap();
            assert_eq!(known.label_keys.len(), metric.label_values.len(), "{}", metric.name);
        }
        assert_eq!(made[2].value, value(7));
    }
}
