//! Containers and the machine under cAdvisor's names (`/metrics/cadvisor`).

use std::collections::{BTreeMap, BTreeSet};

use api::prelude::*;
use cri::InterfaceStats;

use super::look::{ContainerUse, Seen};
use super::metrics::{Sample, family, of_time, seconds};
use crate::agent::Agent;
use crate::cpu::Processor;
use crate::resources;

/// A metric of containers: name, type, a further label, help, and the value.
type OfContainer = (&'static str, &'static str, &'static str, &'static str, fn(&ContainerUse) -> Option<f64>);

const OF_CONTAINERS: &[OfContainer] = &[
    (
        "container_cpu_usage_seconds_total",
        "counter",
        "cpu=total",
        "Cumulative cpu time consumed in seconds.",
        |c| Some(seconds(c.stats.cpu_usage_ns)),
    ),
    (
        "container_memory_usage_bytes",
        "gauge",
        "",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |c| Some(c.stats.memory_usage_bytes as f64),
    ),
    ("container_memory_working_set_bytes", "gauge", "", "Current working set in bytes.", |c| {
        Some(c.stats.memory_working_set_bytes as f64)
    }),
    ("container_memory_rss", "gauge", "", "Size of RSS in bytes.", |c| Some(c.stats.memory_rss_bytes as f64)),
    ("container_memory_cache", "gauge", "", "Number of bytes of page cache memory.", |c| {
        Some(c.stats.memory_usage_bytes.saturating_sub(c.stats.memory_rss_bytes) as f64)
    }),
    ("container_processes", "gauge", "", "Number of processes running inside the container.", |c| {
        Some(c.stats.pids as f64)
    }),
    (
        "container_fs_usage_bytes",
        "gauge",
        "device=",
        "Number of bytes that are consumed by the container on this filesystem.",
        |c| Some(c.stats.writable_layer_bytes as f64),
    ),
    ("container_spec_memory_limit_bytes", "gauge", "", "Memory limit for the container.", |c| {
        c.status.as_ref().map(|status| status.resources.memory_limit_bytes.max(0) as f64)
    }),
    ("container_spec_cpu_shares", "gauge", "", "CPU share of the container.", |c| {
        c.status.as_ref().map(|status| status.resources.cpu_shares as f64)
    }),
    ("container_spec_cpu_period", "gauge", "", "CPU period of the container.", |c| {
        c.status.as_ref().map(|s| s.resources.cpu_period_us).filter(|us| *us > 0).map(|us| us as f64)
    }),
    ("container_spec_cpu_quota", "gauge", "", "CPU quota of the container.", |c| {
        c.status.as_ref().map(|s| s.resources.cpu_quota_us).filter(|us| *us > 0).map(|us| us as f64)
    }),
    (
        "container_start_time_seconds",
        "gauge",
        "",
        "Start time of the container since unix epoch in seconds.",
        |c| c.status.as_ref().and_then(|status| status.started_at).map(of_time),
    ),
    ("container_last_seen", "gauge", "", "Last time a container was seen by the exporter", |c| {
        Some(c.stats.timestamp.as_second() as f64)
    }),
];

/// A counter of interfaces: name, help and the value.
type OfInterface = (&'static str, &'static str, fn(&InterfaceStats) -> u64);

const OF_INTERFACES: &[OfInterface] = &[
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

/// Labels of a container, or (without one) of its pod.
fn labels(agent: &Agent, pod: &Pod, container: Option<&ContainerUse>, more: &[(&str, &str)]) -> String {
    let cgroup = resources::cgroup_parent(&agent.config.cgroup_root, pod);
    let (id, image, name, container) = match container {
        Some(used) => (
            format!("{cgroup}/{}", used.stats.id),
            used.status.as_ref().map(|status| status.image.clone()).unwrap_or_default(),
            used.stats.id.clone(),
            used.stats.name.clone(),
        ),
        None => (cgroup, String::new(), String::new(), String::new()),
    };
    let mut all = BTreeMap::from([
        ("container", container.as_str()),
        ("id", &id),
        ("image", &image),
        ("name", &name),
        ("namespace", pod.namespace()),
        ("pod", pod.name()),
    ]);
    all.extend(more.iter().copied());
    all.iter().map(|(label, value)| format!("{label}={value:?}")).collect::<Vec<_>>().join(",")
}

fn about_containers(agent: &Agent, seen: &Seen, out: &mut String) {
    for (name, kind, more, help, of) in OF_CONTAINERS {
        let more: Vec<(&str, &str)> = more.split_once('=').into_iter().collect();
        let mut samples: Vec<Sample> = Vec::new();
        for used in &seen.pods {
            let at = used.containers.first().map_or(0, |c| c.stats.timestamp.as_millisecond());
            let values: Vec<(&ContainerUse, f64)> =
                used.containers.iter().filter_map(|c| Some((c, of(c)?))).collect();
            // What adds up is told of the pod, too.
            let adds = ["container_cpu_usage", "container_memory", "container_processes"];
            if adds.iter().any(|prefix| name.starts_with(prefix)) && !values.is_empty() {
                let sum = values.iter().map(|(_, value)| value).sum();
                samples.push((labels(agent, &used.pod, None, &more), sum, at));
            }
            samples.extend(values.into_iter().map(|(c, value)| {
                (labels(agent, &used.pod, Some(c), &more), value, c.stats.timestamp.as_millisecond())
            }));
        }
        family(out, name, kind, help, samples);
    }
    let mut faults: Vec<Sample> = Vec::new();
    for used in &seen.pods {
        for c in &used.containers {
            for (kind, count) in [("pgfault", c.stats.page_faults), ("pgmajfault", c.stats.major_page_faults)]
            {
                let more = [("failure_type", kind), ("scope", "container")];
                let labels = labels(agent, &used.pod, Some(c), &more);
                faults.push((labels, count as f64, c.stats.timestamp.as_millisecond()));
            }
        }
    }
    let help = "Cumulative count of memory allocation failures.";
    family(out, "container_memory_failures_total", "counter", help, faults);
    for (name, help, of) in OF_INTERFACES {
        let mut samples: Vec<Sample> = Vec::new();
        for used in &seen.pods {
            for (sandbox, interface) in
                used.sandbox.iter().flat_map(|s| s.interfaces.iter().map(move |i| (s, i)))
            {
                let labels = labels(agent, &used.pod, None, &[("interface", &interface.name)]);
                samples.push((labels, of(interface) as f64, sandbox.timestamp.as_millisecond()));
            }
        }
        family(out, name, "counter", help, samples);
    }
}

/// The whole.
pub(super) fn write(agent: &Agent, seen: Option<&Seen>) -> String {
    let mut out = String::new();
    let info = &agent.machine.info;
    let about = format!(
        "cadvisorRevision=\"\",cadvisorVersion=\"\",dockerVersion=\"\",kernelVersion={:?},osVersion={:?}",
        info.kernel_version, info.os_image
    );
    let help = "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor \
                version & cadvisor revision.";
    family(&mut out, "cadvisor_version_info", "gauge", help, vec![(about, 1.0, 0)]);
    let failed = f64::from(u8::from(seen.is_none()));
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    family(&mut out, "container_scrape_error", "gauge", help, vec![(String::new(), failed, 0)]);
    let Some(seen) = seen else { return out };
    about_containers(agent, seen, &mut out);
    let machine = format!(
        "boot_id={:?},machine_id={:?},system_uuid={:?}",
        info.boot_id, info.machine_id, info.system_uuid
    );
    let topology = crate::cpu::read();
    let count = |of: fn(&Processor) -> u32| topology.iter().map(of).collect::<BTreeSet<_>>().len() as f64;
    let of_machine = [
        ("machine_cpu_cores", "Number of logical CPU cores.", topology.len() as f64),
        ("machine_cpu_physical_cores", "Number of physical CPU cores.", count(|cpu| cpu.core)),
        ("machine_cpu_sockets", "Number of CPU sockets.", count(|cpu| cpu.socket)),
        ("machine_memory_bytes", "Amount of memory installed on the machine.", seen.memory_total as f64),
        ("machine_swap_bytes", "Amount of swap memory available on the machine.", seen.swap.0 as f64),
    ];
    for (name, help, value) in of_machine {
        family(&mut out, name, "gauge", help, vec![(machine.clone(), value, 0)]);
    }
    out
}
