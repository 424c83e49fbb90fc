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
const POD_START_TOTAL: Timed = (
    "kubelet_pod_start_total_duration_seconds",
    "Duration in seconds to start a pod since creation, including time to pull images and run init containers, \
     measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
    SECONDS,
);
const POD_START_SLI: Timed = (
    "kubelet_pod_start_sli_duration_seconds",
    "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod \
     creation timestamp to when all its containers are reported as started and observed via watch",
    SECONDS,
);
const POD_WORKER: Timed = (
    "kubelet_pod_worker_duration_seconds",
    "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync",
    FRACTIONS,
);
const RELIST: Timed =
    ("kubelet_pleg_relist_duration_seconds", "Duration in seconds for relisting pods in PLEG.", FRACTIONS);
const PLEG_SEEN: Family =
    ("kubelet_pleg_last_seen_seconds", "Timestamp in seconds when PLEG was last seen active.");
const RUNTIME_BUCKETS: &[f64] = &[
    0.005,
    0.0125,
    0.03125,
    0.078125,
    0.1953125,
    0.48828125,
    1.220703125,
    3.0517578125,
    7.62939453125,
    19.073486328125,
    47.6837158203125,
    119.20928955078125,
    298.0232238769531,
    745.0580596923828,
];
const RUNTIME_TIME: Timed = (
    "kubelet_runtime_operations_duration_seconds",
    "Duration in seconds of runtime operations. Broken down by operation type.",
    RUNTIME_BUCKETS,
);
const RUNTIME_OPERATIONS: Family =
    ("kubelet_runtime_operations_total", "Cumulative number of runtime operations by operation type.");
const RUNTIME_ERRORS: Family = (
    "kubelet_runtime_operations_errors_total",
    "Cumulative number of runtime operation errors by operation type.",
);
const SANDBOX_TIME: Timed = (
    "kubelet_run_podsandbox_duration_seconds",
    "Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.",
    FRACTIONS,
);
const SANDBOX_ERRORS: Family = (
    "kubelet_run_podsandbox_errors_total",
    "Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler.",
);
const STORAGE: Timed = (
    "storage_operation_duration_seconds",
    "Storage operation duration",
    &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0],
);
const IMAGE_PULL: Timed = (
    "kubelet_image_pull_duration_seconds",
    "Duration in seconds to pull an image.",
    &[1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 180.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0],
);
const DEVICE_ALLOCATION: Timed = (
    "kubelet_device_plugin_alloc_duration_seconds",
    "Duration in seconds to serve a device plugin Allocation request. Broken down by resource name.",
    FRACTIONS,
);

/// The range of an image's size, as upstream names it.
fn size_range(bytes: u64) -> &'static str {
    const RANGES: [(u64, &str); 10] = [
        (10 << 20, "0-10MB"),
        (100 << 20, "10MB-100MB"),
        (500 << 20, "100MB-500MB"),
        (1 << 30, "500MB-1GB"),
        (5 << 30, "1GB-5GB"),
        (10 << 30, "5GB-10GB"),
        (20 << 30, "10GB-20GB"),
        (30 << 30, "20GB-30GB"),
        (40 << 30, "30GB-40GB"),
        (60 << 30, "40GB-60GB"),
    ];
    RANGES.iter().find(|(most, _)| bytes <= *most).map_or("GT60GB", |(_, name)| name)
}

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

    /// A pod runs, so long after it was first seen and after it was created; pulls of images took a part of that.
    pub fn pod_runs(&self, took: Duration, since_creation: Duration, pulling: Duration) {
        self.time(POD_START, String::new(), took);
        self.time(POD_START_TOTAL, String::new(), since_creation);
        self.time(POD_START_SLI, String::new(), since_creation.saturating_sub(pulling));
    }

    /// A worker looked after its pod.
    pub fn worked(&self, operation: &str, took: Duration) {
        self.time(POD_WORKER, format!("operation_type={operation:?}"), took);
    }

    /// What the runtime has of a pod was listed.
    pub fn listed(&self, took: Duration, at: jiff::Timestamp) {
        self.time(RELIST, String::new(), took);
        self.set(PLEG_SEEN, at);
    }

    /// The runtime was asked for something.
    pub fn runtime_asked(&self, operation: &str, took: Duration, failed: bool) {
        let labels = format!("operation_type={operation:?}");
        self.time(RUNTIME_TIME, labels.clone(), took);
        self.add(RUNTIME_OPERATIONS, labels.clone());
        if failed {
            self.add(RUNTIME_ERRORS, labels);
        }
    }

    /// A sandbox was to be run.
    pub fn sandbox_run(&self, handler: &str, took: Duration, failed: bool) {
        let labels = format!("runtime_handler={handler:?}");
        self.time(SANDBOX_TIME, labels.clone(), took);
        if failed {
            self.add(SANDBOX_ERRORS, labels);
        }
        self.pod_started(failed);
    }

    /// A volume was to be mounted.
    pub fn mounted(&self, plugin: &str, took: Duration, failed: bool) {
        let status = if failed { "fail-unknown" } else { "success" };
        let labels = format!(
            "migrated=\"false\",operation_name=\"volume_mount\",status={status:?},volume_plugin={plugin:?}"
        );
        self.time(STORAGE, labels, took);
    }

    /// An image of so many bytes was pulled.
    pub fn pulled(&self, bytes: u64, took: Duration) {
        self.time(IMAGE_PULL, format!("image_size_in_bytes={:?}", size_range(bytes)), took);
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
        counters.pod_runs(
            Duration::from_millis(700),
            Duration::from_millis(2700),
            Duration::from_millis(2000),
        );
        counters.pulled(50 << 20, Duration::from_secs(3));
        counters.runtime_asked("status", Duration::from_millis(1), true);
        counters.listed(Duration::from_millis(1), jiff::Timestamp::UNIX_EPOCH);
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
            "kubelet_pod_start_total_duration_seconds_bucket{le=\"2\"} 0",
            "kubelet_pod_start_sli_duration_seconds_bucket{le=\"1\"} 1",
            "kubelet_image_pull_duration_seconds_bucket{image_size_in_bytes=\"10MB-100MB\",le=\"5\"} 1",
            "kubelet_runtime_operations_errors_total{operation_type=\"status\"} 1",
            "kubelet_pleg_last_seen_seconds 0",
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        }
        assert!(!out.contains("pods_errors_total"));
    }
}
