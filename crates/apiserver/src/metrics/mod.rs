//! Counters of requests in Prometheus' text format, under upstream's names and labels.
//!
//! A series is found by a hash of what identifies it, so that counting allocates only for the first request of
//! its kind.

mod elsewhere;
mod plugins;
mod process;
mod webhooks;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

pub use elsewhere::{ELSEWHERE, Elsewhere, elsewhere};
pub use plugins::{Checks, MUTATING_POLICY, Plugins, VALIDATING_POLICY};
use stdx::Histogram;
pub use webhooks::Call;
use webhooks::Webhooks;

use crate::path::RequestInfo;

/// Upper bounds of request durations (upstream's).
const DURATIONS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// Upper bounds of answer sizes (upstream's).
const SIZES: &[f64] = &[1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Upper bounds of the time that admission takes (upstream's).
const STEPS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5];

/// Most series; requests for made-up resources are not counted beyond it.
const SERIES_MAX: usize = 4096;

/// The answers to one kind of request.
struct Series {
    labels: String,
    /// By code; few, so a list.
    codes: RwLock<Vec<(u16, AtomicU64)>>,
    took: Histogram,
    /// The same without the time that the client is answerable for; none for long-running requests.
    ours: Option<Histogram>,
    sizes: Histogram,
}

/// What has been asked of the server.
#[derive(Default)]
pub struct Metrics {
    hasher: RandomState,
    series: RwLock<HashMap<u64, Arc<Series>>>,
    watches: RwLock<HashMap<u64, Arc<Watches>>>,
    /// Calls of webhooks.
    pub webhooks: Webhooks,
    /// Admission plugins.
    pub plugins: Plugins,
    /// What policies have said.
    pub checks: Checks,
    steps: RwLock<HashMap<(&'static str, &'static str, bool), Arc<Histogram>>>,
    /// Requests being answered: reading and changing.
    in_flight: [AtomicI64; 2],
    /// Events of the audit log that could not be kept.
    pub audit_dropped: AtomicU64,
    /// Events of the audit log.
    pub audit_events: AtomicU64,
}

/// Watches of one resource.
pub struct Watches {
    /// Group, version, resource and scope.
    labels: [String; 4],
    /// Events sent.
    pub events: AtomicU64,
    /// Watches open.
    open: AtomicI64,
}

/// An open watch; it is counted until it is dropped.
pub struct OpenWatch(Arc<Watches>);

impl OpenWatch {
    /// Counts events that were sent.
    pub fn sent(&self, events: u64) {
        self.0.events.fetch_add(events, Ordering::Relaxed);
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request being answered; it is counted until it is dropped.
pub struct InFlight<'a>(&'a AtomicI64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The verb as metrics name it.
pub fn verb(info: &RequestInfo, apply: bool) -> &'static str {
    match (info.verb, &*info.subresource) {
        (_, "exec" | "attach" | "portforward" | "proxy") if info.is_resource => "CONNECT",
        ("get" | "head", _) => "GET",
        ("list", _) => "LIST",
        ("watch", _) => "WATCH",
        ("create" | "post", _) => "POST",
        ("update" | "put", _) => "PUT",
        ("patch", _) if apply => "APPLY",
        ("patch", _) => "PATCH",
        ("delete", _) => "DELETE",
        ("deletecollection", _) => "DELETECOLLECTION",
        _ => "other",
    }
}

fn scope(info: &RequestInfo) -> &'static str {
    match () {
        () if !info.is_resource => "",
        () if !info.name.is_empty() || info.verb == "create" => "resource",
        () if !info.namespace.is_empty() => "namespace",
        () => "cluster",
    }
}

/// Names come from URLs: only what is harmless in a label value is shown.
fn clean(s: &str) -> String {
    s.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')).collect()
}

impl Metrics {
    fn hash(&self, parts: &[&str]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for part in parts {
            hasher.write(part.as_bytes());
            hasher.write_u8(0xff);
        }
        hasher.finish()
    }

    /// Counts one request in flight.
    pub fn begin(&self, info: &RequestInfo) -> InFlight<'_> {
        let reads = matches!(info.verb, "get" | "head" | "list" | "watch");
        let count = &self.in_flight[usize::from(!reads)];
        count.fetch_add(1, Ordering::Relaxed);
        InFlight(count)
    }

    /// Counts one answered request.
    ///
    /// # Arguments
    /// `away` is the part of the time that others are answerable for: queues and webhooks.
    pub fn observe(
        &self,
        info: &RequestInfo,
        apply: bool,
        code: u16,
        (took, away): (Duration, Duration),
        size: Option<u64>,
    ) {
        let (verb, scope) = (verb(info, apply), scope(info));
        let key = self.hash(&[verb, scope, &info.group, &info.version, &info.resource, &info.subresource]);
        let found = self.series.read().get(&key).cloned();
        let series = match found {
            Some(series) => series,
            None => {
                let mut all = self.series.write();
                if all.len() >= SERIES_MAX {
                    return;
                }
                let labels = format!(
                    "component=\"apiserver\",group=\"{}\",resource=\"{}\",scope=\"{scope}\",subresource=\"{}\",verb=\"{verb}\",version=\"{}\"",
                    clean(&info.group),
                    clean(&info.resource),
                    clean(&info.subresource),
                    clean(&info.version)
                );
                let long = matches!(verb, "WATCH" | "CONNECT");
                let make = || Series {
                    labels,
                    codes: RwLock::default(),
                    took: Histogram::new(DURATIONS),
                    ours: (!long).then(|| Histogram::new(DURATIONS)),
                    sizes: Histogram::new(SIZES),
                };
                all.entry(key).or_insert_with(|| Arc::new(make())).clone()
            }
        };
        let seconds = took.as_secs_f64();
        series.took.observe(seconds);
        if let Some(ours) = &series.ours {
            ours.observe(took.saturating_sub(away).as_secs_f64());
        }
        if let Some(size) = size.filter(|_| matches!(verb, "GET" | "LIST")) {
            series.sizes.observe(size as f64);
        }
        if let Some((_, count)) = series.codes.read().iter().find(|(c, _)| *c == code) {
            count.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut codes = series.codes.write();
        match codes.iter().find(|(c, _)| *c == code) {
            Some((_, count)) => drop(count.fetch_add(1, Ordering::Relaxed)),
            None => codes.push((code, AtomicU64::new(1))),
        }
    }

    /// Counts an open watch.
    pub fn watch(&self, info: &RequestInfo) -> OpenWatch {
        let scope = scope(info);
        let key = self.hash(&[&info.group, &info.version, &info.resource, scope]);
        let found = self.watches.read().get(&key).cloned();
        let watches = found.unwrap_or_else(|| {
            let labels = [clean(&info.group), clean(&info.version), clean(&info.resource), scope.to_owned()];
            let make = || Arc::new(Watches { labels, events: AtomicU64::new(0), open: AtomicI64::new(0) });
            self.watches.write().entry(key).or_insert_with(make).clone()
        });
        watches.open.fetch_add(1, Ordering::Relaxed);
        OpenWatch(watches)
    }

    /// Counts one step of admission.
    pub fn admission(&self, step: &'static str, operation: &'static str, rejected: bool, took: Duration) {
        let key = (step, operation, rejected);
        let found = self.steps.read().get(&key).cloned();
        let histogram = found.unwrap_or_else(|| {
            self.steps.write().entry(key).or_insert_with(|| Histogram::new(STEPS).into()).clone()
        });
        histogram.observe(took.as_secs_f64());
    }

    /// The text of `/metrics`; `objects` are the numbers of stored objects by resource.
    pub fn render(&self, objects: &[(String, usize)]) -> String {
        let mut out = String::new();
        let mut all: Vec<Arc<Series>> = self.series.read().values().cloned().collect();
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        requests(&mut out, &all);
        self.others(&mut out);
        for name in ["apiserver_storage_objects", "apiserver_resource_objects"] {
            header(
                &mut out,
                name,
                "gauge",
                "Number of stored objects at the time of last check split by kind.",
            );
            for (resource, n) in objects {
                let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
                let _ = match (name, group) {
                    ("apiserver_resource_objects", _) => {
                        writeln!(out, "{name}{{group=\"{group}\",resource=\"{resource}\"}} {n}")
                    }
                    (_, "") => writeln!(out, "{name}{{resource=\"{resource}\"}} {n}"),
                    _ => writeln!(out, "{name}{{resource=\"{resource}.{group}\"}} {n}"),
                };
            }
        }
        process::render(&mut out);
        out
    }

    fn others(&self, out: &mut String) {
        header(
            out,
            "apiserver_current_inflight_requests",
            "gauge",
            "Maximal number of currently used inflight request limit of this apiserver per request kind in last second.",
        );
        for (kind, count) in ["readOnly", "mutating"].into_iter().zip(&self.in_flight) {
            let n = count.load(Ordering::Relaxed);
            let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {n}");
        }
        let mut watches: Vec<Arc<Watches>> = self.watches.read().values().cloned().collect();
        watches.sort_by(|a, b| a.labels.cmp(&b.labels));
        header(
            out,
            "apiserver_longrunning_requests",
            "gauge",
            "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way.",
        );
        for watch in &watches {
            let [group, version, resource, scope] = &watch.labels;
            let n = watch.open.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "apiserver_longrunning_requests{{component=\"apiserver\",group=\"{group}\",resource=\"{resource}\",scope=\"{scope}\",subresource=\"\",verb=\"WATCH\",version=\"{version}\"}} {n}"
            );
        }
        header(out, "apiserver_watch_events_total", "counter", "Number of events sent in watch clients");
        let mut sent: BTreeMap<&[String], u64> = BTreeMap::new();
        for watch in &watches {
            *sent.entry(&watch.labels[..3]).or_default() += watch.events.load(Ordering::Relaxed);
        }
        for (labels, n) in sent {
            let [group, version, resource] = labels else { continue };
            let _ = writeln!(
                out,
                "apiserver_watch_events_total{{group=\"{group}\",resource=\"{resource}\",version=\"{version}\"}} {n}"
            );
        }
        self.plugins.render(out);
        self.checks.render(out);
        self.webhooks.render(out);
        let name = "apiserver_admission_step_admission_duration_seconds";
        header(
            out,
            name,
            "histogram",
            "Admission sub-step latency histogram in seconds, broken out for each operation and API resource and step type (validate or admit).",
        );
        for ((step, operation, rejected), histogram) in self.steps.read().iter() {
            histogram.render(
                out,
                name,
                &format!("operation=\"{operation}\",rejected=\"{rejected}\",type=\"{step}\""),
            );
        }
        header(
            out,
            "apiserver_audit_event_total",
            "counter",
            "Counter of audit events generated and sent to the audit backend.",
        );
        let _ = writeln!(out, "apiserver_audit_event_total {}", self.audit_events.load(Ordering::Relaxed));
        header(
            out,
            "apiserver_audit_error_total",
            "counter",
            "Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by the error.",
        );
        let _ = writeln!(
            out,
            "apiserver_audit_error_total{{plugin=\"buffered\"}} {}",
            self.audit_dropped.load(Ordering::Relaxed)
        );
        header(
            out,
            "kubernetes_build_info",
            "gauge",
            "A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.",
        );
        let version = crate::endpoints::version();
        let text = |key: &str| version[key].as_str().unwrap_or_default().to_owned();
        let labels = [
            "buildDate",
            "compiler",
            "gitCommit",
            "gitTreeState",
            "gitVersion",
            "goVersion",
            "major",
            "minor",
            "platform",
        ];
        let labels: Vec<String> = labels.iter().map(|k| format!("{}=\"{}\"", snake(k), text(k))).collect();
        let _ = writeln!(out, "kubernetes_build_info{{{}}} 1", labels.join(","));
    }
}

/// The same figures in the format of OpenMetrics: counters are named without `_total`, and there is an end.
pub fn open_metrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 6);
    let mut counter = "";
    for line in text.lines() {
        let mut words = line.split(' ');
        if let (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name)) =
            (words.next(), words.next(), words.next())
        {
            if what == "TYPE" && line.ends_with(" counter") {
                counter = name;
            }
            let short = name.strip_suffix("_total").unwrap_or(name);
            let rest = line.get(2 + what.len() + 1 + name.len()..).unwrap_or_default();
            let _ = writeln!(out, "# {what} {short}{rest}");
        } else {
            // A counter of another name gets the suffix that the format asks for.
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let suffix = if name == counter && !name.ends_with("_total") { "_total" } else { "" };
            let _ = writeln!(out, "{name}{suffix}{}", line.get(name.len()..).unwrap_or_default());
        }
    }
    out.push_str("# EOF\n");
    out
}

/// The text of `/metrics/slis`: each health check's state, and that it was looked at.
pub fn slis(checks: &[(&str, &str, bool)]) -> String {
    let mut out = String::new();
    header(
        &mut out,
        "kubernetes_healthcheck",
        "gauge",
        "This metric records the result of all healthchecks.",
    );
    for (name, endpoint, fine) in checks {
        let _ = writeln!(
            out,
            "kubernetes_healthcheck{{name=\"{name}\",type=\"{endpoint}\"}} {}",
            u8::from(*fine)
        );
    }
    header(
        &mut out,
        "kubernetes_healthchecks_total",
        "counter",
        "This metric records the results of all healthcheck.",
    );
    for (name, endpoint, fine) in checks {
        let status = if *fine { "success" } else { "error" };
        let _ = writeln!(
            out,
            "kubernetes_healthchecks_total{{name=\"{name}\",status=\"{status}\",type=\"{endpoint}\"}} 1"
        );
    }
    out
}

/// `gitVersion` as `git_version`.
fn snake(name: &str) -> String {
    name.chars()
        .flat_map(|c| if c.is_ascii_uppercase() { vec!['_', c.to_ascii_lowercase()] } else { vec![c] })
        .collect()
}

fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn requests(out: &mut String, all: &[Arc<Series>]) {
    header(
        out,
        "apiserver_request_total",
        "counter",
        "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.",
    );
    for series in all {
        let mut codes: Vec<(u16, u64)> =
            series.codes.read().iter().map(|(c, n)| (*c, n.load(Ordering::Relaxed))).collect();
        codes.sort_unstable();
        for (code, n) in codes {
            let _ = writeln!(
                out,
                "apiserver_request_total{{code=\"{code}\",dry_run=\"\",{}}} {n}",
                series.labels
            );
        }
    }
    let name = "apiserver_request_duration_seconds";
    header(
        out,
        name,
        "histogram",
        "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.",
    );
    all.iter().for_each(|s| s.took.render(out, name, &format!("dry_run=\"\",{}", s.labels)));
    for name in ["apiserver_request_slo_duration_seconds", "apiserver_request_sli_duration_seconds"] {
        header(
            out,
            name,
            "histogram",
            "Response latency distribution (not counting webhook duration and priority & fairness queue wait times) in seconds for each verb, group, version, resource, subresource, scope and component.",
        );
        for series in all {
            if let Some(ours) = &series.ours {
                ours.render(out, name, &series.labels);
            }
        }
    }
    let name = "apiserver_response_sizes";
    header(
        out,
        name,
        "histogram",
        "Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component.",
    );
    let lists =
        all.iter().filter(|s| s.labels.contains("verb=\"GET\"") || s.labels.contains("verb=\"LIST\""));
    lists.for_each(|s| s.sizes.render(out, name, &s.labels));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::{Query, parse};

    #[test]
    fn requests_are_counted_under_upstreams_labels() {
        let metrics = Metrics::default();
        let info = parse(&http::Method::GET, "/api/v1/namespaces/a/pods", &Query::default());
        for code in [200, 200, 500] {
            let times = (Duration::from_millis(500), Duration::from_millis(490));
            metrics.observe(&info, false, code, times, Some(2000));
        }
        let text = metrics.render(&[("deployments.apps".into(), 3), ("pods".into(), 1)]);
        let labels = "component=\"apiserver\",group=\"\",resource=\"pods\",scope=\"namespace\",subresource=\"\",verb=\"LIST\",version=\"v1\"";
        for wanted in [
            format!("apiserver_request_total{{code=\"200\",dry_run=\"\",{labels}}} 2"),
            format!("apiserver_request_duration_seconds_bucket{{dry_run=\"\",{labels},le=\"0.025\"}} 0"),
            format!("apiserver_request_sli_duration_seconds_bucket{{{labels},le=\"0.025\"}} 3"),
            format!("apiserver_response_sizes_sum{{{labels}}} 6000"),
            "apiserver_storage_objects{resource=\"deployments.apps\"} 3".into(),
            "apiserver_resource_objects{group=\"\",resource=\"pods\"} 1".into(),
            "kubernetes_build_info{build_date=".into(),
            "process_resident_memory_bytes ".into(),
        ] {
            assert!(text.contains(&wanted), "{wanted} is not in {text}");
        }
    }

    #[test]
    fn webhooks_are_counted_by_outcome() {
        let metrics = Metrics::default();
        let call = Call {
            name: "h.example.com".into(),
            operation: "CREATE".into(),
            mutating: true,
            rejected: true,
            code: 403,
        };
        metrics.webhooks.observe(call, Duration::from_millis(30));
        let text = metrics.render(&[]);
        let labels = "name=\"h.example.com\",operation=\"CREATE\",rejected=\"true\",type=\"admit\"";
        for wanted in [
            format!("apiserver_admission_webhook_request_total{{code=\"403\",{labels}}} 1"),
            format!("apiserver_admission_webhook_admission_duration_seconds_bucket{{{labels},le=\"0.1\"}} 1"),
        ] {
            assert!(text.contains(&wanted), "{wanted} is not in {text}");
        }
    }

    #[test]
    fn what_is_open_is_counted_while_it_is() {
        let metrics = Metrics::default();
        let info = parse(&http::Method::GET, "/api/v1/pods", &Query::parse("watch=1"));
        let open = metrics.watch(&info);
        open.sent(3);
        let line = "apiserver_longrunning_requests{component=\"apiserver\",group=\"\",resource=\"pods\",scope=\"cluster\",subresource=\"\",verb=\"WATCH\",version=\"v1\"}";
        assert!(metrics.render(&[]).contains(&format!("{line} 1")));
        drop(open);
        let text = metrics.render(&[]);
        assert!(
            text.contains(&format!("{line} 0"))
                && text
                    .contains("apiserver_watch_events_total{group=\"\",resource=\"pods\",version=\"v1\"} 3")
        );
    }
}
