//! Calls of admission webhooks: how many, with which codes, and how long they took.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use stdx::Histogram;

use super::header;

/// Upper bounds of durations (upstream's).
const DURATIONS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
/// Most series: webhooks are named by users.
const SERIES_MAX: usize = 1024;

/// One kind of call.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// The webhook.
    pub name: String,
    /// `CREATE` and so on.
    pub operation: String,
    /// Whether it may change the object.
    pub mutating: bool,
    /// Whether the request was refused.
    pub rejected: bool,
    /// The code of the refusal; 200 where there was none, 0 where the call failed.
    pub code: u16,
}

struct Series {
    took: Histogram,
    calls: AtomicU64,
}

/// All calls.
#[derive(Default)]
pub struct Webhooks(RwLock<BTreeMap<Call, Arc<Series>>>);

impl Webhooks {
    /// Counts one call.
    pub fn observe(&self, call: Call, took: Duration) {
        let found = self.0.read().get(&call).cloned();
        let series = match found {
            Some(series) => series,
            None => {
                let mut all = self.0.write();
                if all.len() >= SERIES_MAX {
                    return;
                }
                let make = || Series { took: Histogram::new(DURATIONS), calls: AtomicU64::new(0) };
                all.entry(call).or_insert_with(|| Arc::new(make())).clone()
            }
        };
        series.took.observe(took.as_secs_f64());
        series.calls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn render(&self, out: &mut String) {
        let all = self.0.read();
        let labels = |call: &Call| {
            let kind = if call.mutating { "admit" } else { "validating" };
            let (name, operation, rejected) = (super::clean(&call.name), &call.operation, call.rejected);
            (
                format!("name=\"{name}\",operation=\"{operation}\",rejected=\"{rejected}\",type=\"{kind}\""),
                format!(
                    "code=\"{}\",name=\"{name}\",operation=\"{operation}\",rejected=\"{rejected}\",type=\"{kind}\"",
                    call.code
                ),
            )
        };
        let name = "apiserver_admission_webhook_admission_duration_seconds";
        let help = "Admission webhook latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).";
        header(out, name, "histogram", help);
        for (call, series) in all.iter() {
            series.took.render(out, name, &labels(call).0);
        }
        let name = "apiserver_admission_webhook_request_total";
        let help = "Admission webhook request total, identified by name and broken out for each admission type (validating or mutating) and operation. Additional labels specify whether the request was rejected or not and an HTTP status code. Codes greater than 600 are truncated to 600, to keep the metrics cardinality bounded.";
        header(out, name, "counter", help);
        for (call, series) in all.iter() {
            let _ = writeln!(out, "{name}{{{}}} {}", labels(call).1, series.calls.load(Ordering::Relaxed));
        }
        let name = "apiserver_admission_webhook_rejection_count";
        let help = "Admission webhook rejection count, identified by name and broken out for each admission type (validating or admit) and operation. Additional labels specify an error type (calling_webhook_error or apiserver_internal_error if an error occurred; no_error otherwise) and optionally a non-zero rejection code if the webhook rejects the request with an HTTP status code (honored by the apiserver when the code is greater or equal to 400). Codes greater than 600 are truncated to 600, to keep the metrics cardinality bounded.";
        header(out, name, "counter", help);
        let total = |series: &Series| series.calls.load(Ordering::Relaxed);
        let kind = |call: &Call| if call.mutating { "admit" } else { "validating" };
        for (call, series) in all.iter().filter(|(call, _)| call.rejected) {
            let error = if call.code == 0 { "calling_webhook_error" } else { "no_error" };
            let _ = writeln!(
                out,
                "{name}{{error_type=\"{error}\",name=\"{}\",operation=\"{}\",rejection_code=\"{}\",type=\"{}\"}} {}",
                super::clean(&call.name),
                call.operation,
                call.code,
                kind(call),
                total(series)
            );
        }
        let name = "apiserver_admission_webhook_fail_open_count";
        let help = "Admission webhook fail open count, identified by name and broken out for each admission type (validating or mutating).";
        header(out, name, "counter", help);
        let mut open: BTreeMap<(String, &str), u64> = BTreeMap::new();
        for (call, series) in all.iter().filter(|(call, _)| !call.rejected && call.code == 0) {
            *open.entry((super::clean(&call.name), kind(call))).or_default() += total(series);
        }
        for ((webhook, kind), n) in open {
            let _ = writeln!(out, "{name}{{name=\"{webhook}\",type=\"{kind}\"}} {n}");
        }
    }
}
