//! A look in Prometheus' text format: resource metrics, probes, and the kubelet's own.

use std::collections::BTreeMap;
use std::fmt::Write;

use api::prelude::*;
use cri::{ContainerFilter, ContainerState, ContainerStats, PodSandboxFilter, PodSandboxState};
use jiff::Timestamp;

use super::look::{ContainerUse, PodUse, Seen};
use crate::agent::Agent;
use crate::csi::stats::Figures;

/// A sample: labels, value and when it was true, in milliseconds (0 for now).
pub(super) type Sample = (String, f64, i64);

/// Writes a family; nothing where it has no samples.
pub(super) fn family(out: &mut String, name: &str, kind: &str, help: &str, samples: Vec<Sample>) {
    if samples.is_empty() {
        return;
    }
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value, at) in samples {
        let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
        let _ = match at {
            0 => writeln!(out, "{name}{labels} {value}"),
            at => writeln!(out, "{name}{labels} {value} {at}"),
        };
    }
}

pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

pub(super) fn of_time(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1e3
}

fn of_containers(seen: &Seen, timed: bool, of: impl Fn(&ContainerUse) -> Option<f64>) -> Vec<Sample> {
    let all = seen.pods.iter().flat_map(|used| used.containers.iter().map(move |c| (&used.pod, c)));
    all.filter_map(|(pod, c)| {
        let (namespace, pod) = (pod.namespace(), pod.name());
        let labels = format!("container={:?},namespace={namespace:?},pod={pod:?}", c.stats.name);
        Some((labels, of(c)?, if timed { c.stats.timestamp.as_millisecond() } else { 0 }))
    })
    .collect()
}

fn of_pods(seen: &Seen, of: impl Fn(&ContainerStats) -> f64) -> Vec<Sample> {
    let one = |used: &PodUse| {
        let labels = format!("namespace={:?},pod={:?}", used.pod.namespace(), used.pod.name());
        let at = used.containers.first().map_or(0, |c| c.stats.timestamp.as_millisecond());
        (labels, used.containers.iter().map(|c| of(&c.stats)).sum(), at)
    };
    seen.pods.iter().map(one).collect()
}

/// `/metrics/resource`
pub(super) fn resource(seen: Option<&Seen>) -> String {
    let mut out = String::new();
    if let Some(seen) = seen {
        let node = |value: f64| vec![(String::new(), value, seen.at.as_millisecond())];
        let cpu = |stat: &ContainerStats| seconds(stat.cpu_usage_ns);
        let working = |stat: &ContainerStats| stat.memory_working_set_bytes as f64;
        let used = seen.memory_total.saturating_sub(seen.memory_available);
        let swap = seen.swap.0.saturating_sub(seen.swap.1);
        let families = [
            (
                "container_cpu_usage_seconds_total",
                "Cumulative cpu time consumed by the container in core-seconds",
                of_containers(seen, true, |c| Some(cpu(&c.stats))),
            ),
            (
                "container_memory_working_set_bytes",
                "Current working set of the container in bytes",
                of_containers(seen, true, |c| Some(working(&c.stats))),
            ),
            (
                "container_start_time_seconds",
                "Start time of the container since unix epoch in seconds",
                of_containers(seen, false, |c| c.status.as_ref()?.started_at.map(of_time)),
            ),
            (
                "node_cpu_usage_seconds_total",
                "Cumulative cpu time consumed by the node in core-seconds",
                node(seconds(seen.cpu_ns)),
            ),
            ("node_memory_working_set_bytes", "Current working set of the node in bytes", node(used as f64)),
            (
                "node_swap_usage_bytes",
                "Current swap usage of the node in bytes. Reported only on non-windows systems",
                node(swap as f64),
            ),
            (
                "pod_cpu_usage_seconds_total",
                "Cumulative cpu time consumed by the pod in core-seconds",
                of_pods(seen, cpu),
            ),
            (
                "pod_memory_working_set_bytes",
                "Current working set of the pod in bytes",
                of_pods(seen, working),
            ),
        ];
        for (name, help, samples) in families {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            family(&mut out, name, kind, help, samples);
        }
    }
    let failed = f64::from(u8::from(seen.is_none()));
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    for name in ["resource_scrape_error", "scrape_error"] {
        family(&mut out, name, "gauge", help, vec![(String::new(), failed, 0)]);
    }
    out
}

/// `/metrics/probes`
pub(super) fn probes(agent: &Agent) -> String {
    let mut samples: Vec<Sample> = Vec::new();
    for (uid, counts) in &*agent.probes.lock() {
        samples.extend(
            counts.iter().map(|(labels, count)| (format!("{labels},pod_uid={uid:?}"), *count as f64, 0)),
        );
    }
    samples.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out = String::new();
    let help = "Cumulative number of a liveness, readiness or startup probe for a container by result.";
    family(&mut out, "prober_probe_total", "counter", help, samples);
    out
}

/// `/metrics`
pub(super) async fn own(agent: &Agent) -> String {
    let mut out = String::new();
    let node = vec![(format!("node={:?}", agent.config.node_name), 1.0, 0)];
    family(&mut out, "kubelet_node_name", "gauge", "The node's name. The count is always 1.", node);
    if let Ok(sandboxes) = agent.runtime.list_pod_sandboxes(&PodSandboxFilter::default()).await {
        let ready = sandboxes.iter().filter(|sandbox| sandbox.state == PodSandboxState::Ready).count();
        let help = "Number of pods that have a running pod sandbox";
        family(&mut out, "kubelet_running_pods", "gauge", help, vec![(String::new(), ready as f64, 0)]);
    }
    if let Ok(containers) = agent.runtime.list_containers(&ContainerFilter::default()).await {
        let mut states: BTreeMap<&str, f64> = BTreeMap::new();
        for container in containers {
            let state = match container.state {
                ContainerState::Created => "created",
                ContainerState::Running => "running",
                ContainerState::Exited => "exited",
                ContainerState::Unknown => "unknown",
            };
            *states.entry(state).or_default() += 1.0;
        }
        let samples = states.into_iter().map(|(state, n)| (format!("container_state={state:?}"), n, 0));
        let help = "Number of containers currently running";
        family(&mut out, "kubelet_running_containers", "gauge", help, samples.collect());
    }
    let desired = agent.workers.0.lock().len() as f64;
    let help = "The number of pods the kubelet is being instructed to run. static is true if the pod is not from \
                the apiserver.";
    let samples = vec![("static=\"\"".to_owned(), desired, 0), ("static=\"true\"".to_owned(), 0.0, 0)];
    family(&mut out, "kubelet_desired_pods", "gauge", help, samples);
    volumes(agent, &mut out).await;
    agent.counters.render(&mut out);
    out
}

/// A figure of a volume: name, help and the value.
type OfVolume = (&'static str, &'static str, fn(&Figures) -> Option<u64>);

const OF_VOLUMES: &[OfVolume] = &[
    ("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", |f| {
        f.bytes.map(|bytes| bytes.available)
    }),
    ("kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume", |f| {
        f.bytes.map(|bytes| bytes.total)
    }),
    (
        "kubelet_volume_stats_health_status_abnormal",
        "Abnormal volume health status. The count is either 1 or 0. 1 indicates the volume is unhealthy, 0 indicates volume is healthy",
        |f| f.abnormal.map(u64::from),
    ),
    ("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", |f| {
        f.inodes.map(|inodes| inodes.total)
    }),
    ("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", |f| {
        f.inodes.map(|inodes| inodes.available)
    }),
    ("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", |f| {
        f.inodes.map(|inodes| inodes.used)
    }),
    ("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", |f| {
        f.bytes.map(|bytes| bytes.used)
    }),
];

/// Figures of volumes that claims stand behind.
async fn volumes(agent: &Agent, out: &mut String) {
    let pods: Vec<_> = agent.admitted.lock().values().cloned().collect();
    let mut found: BTreeMap<String, Figures> = BTreeMap::new();
    for pod in pods {
        for of in agent.volumes.figures(&pod).await {
            let labels = format!("namespace={:?},persistentvolumeclaim={:?}", pod.namespace(), of.claim);
            found.insert(labels, of.figures);
        }
    }
    for (name, help, value) in OF_VOLUMES {
        let sample =
            |(labels, figures): (&String, &Figures)| Some((labels.clone(), value(figures)? as f64, 0));
        family(out, name, "gauge", help, found.iter().filter_map(sample).collect());
    }
}
