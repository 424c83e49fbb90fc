//! What the kubelet counts of itself, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;

/// A family of counters: name and help.
type Family = (&'static str, &'static str);
/// A family of histograms: name, help and upper bounds in seconds.
type Timed = (&'static str, &'static str, &'static [f64]);

const EVICTIONS: Family = ("kubelet_evictions", "Cumulative number of pod evictions by eviction signal");
const STARTED_CONTAINERS: Family =
    ("kubelet_started_containers_total", "Cumulative number of containers started");
const STARTED_CONTAINER_ERRORS: Family =
    ("kubelet_started_containers_errors_total", "Cumulative number of errors when starting containers");
const STARTED_PODS: Family = ("kubelet_started_pods_total", "Cumulative number of pods started");
const STARTED_POD_ERRORS: Family =
    ("kubelet_started_pods_errors_total", "Cumulative number of errors when starting pods");
const REJECTIONS: Family =
    ("kubelet_admission_rejections_total", "Cumulative number pod admission rejections by the Kubelet.");
const DEVICE_REGISTRATIONS: Family = (
    "kubelet_device_plugin_registration_total",
    "Cumulative number of device plugin registrations. Broken down by resource name.",
);
const PINNING_REQUESTS: Family = (
    "kubelet_cpu_manager_pinning_requests_total",
    "The number of cpu core allocations which required pinning.",
);
const PINNING_ERRORS: Family = (
    "kubelet_cpu_manager_pinning_errors_total",
    "The number of cpu core allocations which required pinning failed.",
);
const MEMORY_REQUESTS: Family = (
    "kubelet_memory_manager_pinning_requests_total",
    "The number of memory pages allocations which required pinning.",
);
const MEMORY_ERRORS: Family = (
    "kubelet_memory_manager_pinning_errors_total",
    "The number of memory pages allocations which required pinning that failed.",
);
const TOPOLOGY_REQUESTS: Family = (
    "kubelet_topology_manager_admission_requests_total",
    "The number of admission requests where resources have to be aligned.",
);
const TOPOLOGY_ERRORS: Family = (
    "kubelet_topology_manager_admission_errors_total",
    "The number of admission request failures where resources could not be aligned.",
);
const SHUTDOWN_START: Family = (
    "kubelet_graceful_shutdown_start_time_seconds",
    "Last graceful shutdown start time since unix epoch in seconds",
);
const SHUTDOWN_END: Family = (
    "kubelet_graceful_shutdown_end_time_seconds",
    "Last graceful shutdown end time since unix epoch in seconds",
);
const SECONDS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
const FRACTIONS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const POD_START: Timed = (
    "kubelet_pod_start_duration_seconds",
    "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
    SECONDS,
);
const DEVICE_ALLOCATION: Timed = (
    "kubelet_device_plugin_alloc_duration_seconds",
    "Duration in seconds to serve a device plugin Allocation request. Broken down by resource name.",
    FRACTIONS,
);

#[derive(Debug, Default, Clone)]
struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: f64,
}

/// Counters and histograms, by family and labels.
#[derive(Debug, Default)]
pub struct Counters {
    counters: Mutex<BTreeMap<(Family, String), u64>>,
    gauges: Mutex<BTreeMap<Family, f64>>,
    timed: Mutex<BTreeMap<&'static str, (Timed, BTreeMap<String, Histogram>)>>,
}

impl Counters {
    fn add(&self, family: Family, labels: String) {
        *self.counters.lock().entry((family, labels)).or_default() += 1;
    }

    fn time(&self, family: Timed, labels: String, took: Duration) {
        let mut timed = self.timed.lock();
        let (_, all) = timed.entry(family.0).or_insert_with(|| (family, BTreeMap::new()));
        let histogram = all.entry(labels).or_default();
        histogram.counts.resize(family.2.len(), 0);
        let seconds = took.as_secs_f64();
        for (count, bound) in histogram.counts.iter_mut().zip(family.2) {
            *count += u64::from(seconds <= *bound);
        }
        histogram.total += 1;
        histogram.sum += seconds;
    }

    /// A pod was ended for this signal.
    pub fn evicted(&self, signal: &str) {
        self.add(EVICTIONS, format!("eviction_signal={signal:?}"));
    }

    /// A pod was refused for this reason.
    pub fn rejected(&self, reason: &str) {
        self.add(REJECTIONS, format!("reason={reason:?}"));
    }

    /// A container of this type was to be started.
    pub fn container_started(&self, kind: &str, error: Option<&str>) {
        self.add(STARTED_CONTAINERS, format!("container_type={kind:?}"));
        if let Some(code) = error {
            self.add(STARTED_CONTAINER_ERRORS, format!("code={code:?},container_type={kind:?}"));
        }
    }

    /// A pod's sandbox was to be made.
    pub fn pod_started(&self, failed: bool) {
        self.add(STARTED_PODS, String::new());
        if failed {
            self.add(STARTED_POD_ERRORS, String::new());
        }
    }

    /// A pod runs, so long after it was first seen.
    pub fn pod_runs(&self, took: Duration) {
        self.time(POD_START, String::new(), took);
    }

    /// A device plugin registered.
    pub fn device_registered(&self, resource: &str) {
        self.add(DEVICE_REGISTRATIONS, format!("resource_name={resource:?}"));
    }

    /// Devices were allocated by their plugin.
    pub fn devices_allocated(&self, resource: &str, took: Duration) {
        self.time(DEVICE_ALLOCATION, format!("resource_name={resource:?}"), took);
    }

    /// Processors were to be set apart.
    pub fn pinned(&self, failed: bool) {
        self.add(PINNING_REQUESTS, String::new());
        if failed {
            self.add(PINNING_ERRORS, String::new());
        }
    }

    /// Memory was to be promised.
    pub fn memory_pinned(&self, failed: bool) {
        self.add(MEMORY_REQUESTS, String::new());
        if failed {
            self.add(MEMORY_ERRORS, String::new());
        }
    }

    /// Resources were to be aligned.
    pub fn aligned(&self, failed: bool) {
        self.add(TOPOLOGY_REQUESTS, String::new());
        if failed {
            self.add(TOPOLOGY_ERRORS, String::new());
        }
    }

    fn set(&self, gauge: Family, at: jiff::Timestamp) {
        let seconds = at.as_nanosecond() as f64 / 1e9;
        self.gauges.lock().insert(gauge, seconds);
    }

    /// Pods began to be ended as the machine goes down.
    pub fn shutdown_began(&self, at: jiff::Timestamp) {
        self.set(SHUTDOWN_START, at);
    }

    /// They have ended.
    pub fn shutdown_ended(&self, at: jiff::Timestamp) {
        self.set(SHUTDOWN_END, at);
    }

    /// All of it in the text format.
    pub fn render(&self, out: &mut String) {
        let mut last = "";
        for ((family, labels), value) in &*self.counters.lock() {
            if last != family.0 {
                let _ = writeln!(out, "# HELP {} {}\n# TYPE {} counter", family.0, family.1, family.0);
                last = family.0;
            }
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let _ = writeln!(out, "{}{labels} {value}", family.0);
        }
        for (family, value) in &*self.gauges.lock() {
            let _ = writeln!(out, "# HELP {0} {1}\n# TYPE {0} gauge\n{0} {value}", family.0, family.1);
        }
        for (name, (family, all)) in &*self.timed.lock() {
            let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} histogram", family.1);
            for (labels, histogram) in all {
                let before = if labels.is_empty() { String::new() } else { format!("{labels},") };
                for (bound, count) in family.2.iter().zip(&histogram.counts) {
                    let _ = writeln!(out, "{name}_bucket{{{before}le=\"{bound}\"}} {count}");
                }
                let _ = writeln!(out, "{name}_bucket{{{before}le=\"+Inf\"}} {}", histogram.total);
                let after = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
                let _ = writeln!(out, "{name}_sum{after} {}", histogram.sum);
                let _ = writeln!(out, "{name}_count{after} {}", histogram.total);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        let counters = Counters::default();
        counters.evicted("memory.available");
        counters.evicted("memory.available");
        counters.pod_started(false);
        counters.pod_runs(Duration::from_millis(700));
        let mut out = String::new();
        counters.render(&mut out);
        for line in [
            "# TYPE kubelet_evictions counter",
            "kubelet_evictions{eviction_signal=\"memory.available\"} 2",
            "kubelet_started_pods_total 1",
            "kubelet_pod_start_duration_seconds_bucket{le=\"0.5\"} 0",
            "kubelet_pod_start_duration_seconds_bucket{le=\"1\"} 1",
            "kubelet_pod_start_duration_seconds_bucket{le=\"+Inf\"} 1",
            "kubelet_pod_start_duration_seconds_sum 0.7",
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        }
        assert!(!out.contains("_errors_total"));
    }
}
