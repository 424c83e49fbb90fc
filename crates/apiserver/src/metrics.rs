//! Request counters in Prometheus' text format, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;

use crate::path::RequestInfo;

/// Upper bounds of the duration buckets in seconds.
const BUCKETS: [f64; 10] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// Verb, group, version, resource, subresource.
type Key = (&'static str, String, String, String, String);

#[derive(Debug, Default)]
struct Series {
    codes: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

/// What has been asked of the server.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<BTreeMap<Key, Series>>);

/// Most series; requests for made-up resources are not counted beyond it.
const SERIES_MAX: usize = 4096;

impl Metrics {
    /// Counts one answered request.
    pub fn observe(&self, info: &RequestInfo, code: u16, took: Duration) {
        let key = (
            info.verb,
            info.group.clone(),
            info.version.clone(),
            info.resource.clone(),
            info.subresource.clone(),
        );
        let mut all = self.0.lock();
        if all.len() >= SERIES_MAX && !all.contains_key(&key) {
            return;
        }
        let series = all.entry(key).or_default();
        *series.codes.entry(code).or_default() += 1;
        let seconds = took.as_secs_f64();
        for (count, bound) in series.buckets.iter_mut().zip(BUCKETS) {
            *count += u64::from(seconds <= bound);
        }
        series.count += 1;
        series.seconds += seconds;
    }

    /// The text of `/metrics`; `objects` are the numbers of stored objects by resource.
    pub fn render(&self, objects: &[(String, usize)]) -> String {
        let mut out = String::new();
        let all = self.0.lock();
        out.push_str("# HELP apiserver_request_total Requests by verb, resource and code.\n# TYPE apiserver_request_total counter\n");
        for (key, series) in all.iter() {
            for (code, n) in &series.codes {
                let _ = writeln!(out, "apiserver_request_total{{{},code=\"{code}\"}} {n}", labels(key));
            }
        }
        out.push_str("# HELP apiserver_request_duration_seconds Time to answer.\n# TYPE apiserver_request_duration_seconds histogram\n");
        for (key, series) in all.iter() {
            let labels = labels(key);
            let name = "apiserver_request_duration_seconds";
            for (n, bound) in series.buckets.iter().zip(BUCKETS) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {n}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", series.count);
            let _ = writeln!(
                out,
                "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {}",
                series.seconds, series.count
            );
        }
        out.push_str(
            "# HELP apiserver_storage_objects Objects by resource.\n# TYPE apiserver_storage_objects gauge\n",
        );
        for (resource, n) in objects {
            let _ = writeln!(out, "apiserver_storage_objects{{resource=\"{resource}\"}} {n}");
        }
        out
    }
}

fn labels((verb, group, version, resource, subresource): &Key) -> String {
    // Names come from URLs: only what is harmless in a label value is shown.
    let clean = |s: &str| {
        s.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')).collect::<String>()
    };
    format!(
        "verb=\"{}\",group=\"{}\",version=\"{}\",resource=\"{}\",subresource=\"{}\"",
        verb.to_uppercase(),
        clean(group),
        clean(version),
        clean(resource),
        clean(subresource)
    )
}
