//! A store that counts what is asked of another, under the names that upstream's API server has for etcd.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use parking_lot::RwLock;
use stdx::Histogram;

use crate::{
    Change, Error, Expect, KeyValue, Range, RangeResult, Revision, Stats, Store, WatchStream, Write,
    WriteOutcome,
};

/// Upper bounds of durations (upstream's).
const DURATIONS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// Most series: resources are made by users.
const SERIES_MAX: usize = 2048;

struct Meter {
    operation: &'static str,
    /// `RESOURCE.GROUP`, as keys name it.
    resource: Box<str>,
    took: Histogram,
    errors: AtomicU64,
}

/// What has been asked of a store.
#[derive(Default)]
pub struct Meters(RwLock<HashMap<&'static str, HashMap<Box<str>, Arc<Meter>>>>);

impl Meters {
    fn of(&self, operation: &'static str, key: &str) -> Option<Arc<Meter>> {
        let resource = resource_of(key);
        if let Some(found) = self.0.read().get(operation).and_then(|all| all.get(resource)) {
            return Some(found.clone());
        }
        let mut all = self.0.write();
        let known: usize = all.values().map(HashMap::len).sum();
        let of_operation = all.entry(operation).or_default();
        if known >= SERIES_MAX && !of_operation.contains_key(resource) {
            return None;
        }
        let make = || Meter {
            operation,
            resource: resource.into(),
            took: Histogram::new(DURATIONS),
            errors: AtomicU64::new(0),
        };
        Some(of_operation.entry(resource.into()).or_insert_with(|| Arc::new(make())).clone())
    }

    fn count<T>(&self, operation: &'static str, key: &str, began: Instant, done: &Result<T, Error>) {
        let Some(meter) = self.of(operation, key) else { return };
        meter.took.observe(began.elapsed().as_secs_f64());
        if done.is_err() {
            meter.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes the lines of a metrics page.
    pub fn render(&self, out: &mut String) {
        let mut all: Vec<Arc<Meter>> = self.0.read().values().flat_map(|m| m.values().cloned()).collect();
        all.sort_by(|a, b| (a.operation, &a.resource).cmp(&(b.operation, &b.resource)));
        let labels = |meter: &Meter| {
            let (resource, group) = meter.resource.split_once('.').unwrap_or((&meter.resource, ""));
            format!("group=\"{group}\",operation=\"{}\",resource=\"{resource}\"", meter.operation)
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "# HELP etcd_request_duration_seconds Etcd request latency in seconds for each operation and object type.\n# TYPE etcd_request_duration_seconds histogram"
        );
        for meter in &all {
            meter.took.render(out, "etcd_request_duration_seconds", &labels(meter));
        }
        let _ = writeln!(
            out,
            "# HELP etcd_requests_total Etcd request counts for each operation and object type.\n# TYPE etcd_requests_total counter"
        );
        for meter in &all {
            let _ = writeln!(out, "etcd_requests_total{{{}}} {}", labels(meter), meter.took.count());
        }
        let _ = writeln!(
            out,
            "# HELP etcd_request_errors_total Etcd failed request counts for each operation and object type.\n# TYPE etcd_request_errors_total counter"
        );
        for meter in &all {
            let errors = meter.errors.load(Ordering::Relaxed);
            let _ = writeln!(out, "etcd_request_errors_total{{{}}} {errors}", labels(meter));
        }
    }
}

/// The resource of a key such as `/registry/deployments.apps/default/web`.
fn resource_of(key: &str) -> &str {
    key.split('/').filter(|part| !part.is_empty()).nth(1).unwrap_or_default()
}

/// A store whose requests are counted.
pub struct Measured {
    inner: Arc<dyn Store>,
    meters: Arc<Meters>,
}

impl Measured {
    /// Counts what is asked of `inner`.
    pub fn new(inner: Arc<dyn Store>) -> Measured {
        Measured { inner, meters: Arc::default() }
    }

    /// The counts.
    pub fn meters(&self) -> &Arc<Meters> {
        &self.meters
    }
}

#[async_trait]
impl Store for Measured {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        let began = Instant::now();
        let done = self.inner.get(key).await;
        self.meters.count("get", key, began, &done);
        done
    }

    async fn get_at(&self, key: &str, revision: Revision) -> Result<Option<KeyValue>, Error> {
        let began = Instant::now();
        let done = self.inner.get_at(key, revision).await;
        self.meters.count("get", key, began, &done);
        done
    }

    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        let (began, start) = (Instant::now(), range.start.clone());
        let done = self.inner.range(range).await;
        self.meters.count("list", &start, began, &done);
        done
    }

    async fn write(&self, write: Write) -> Result<WriteOutcome, Error> {
        let operation = match (&write.change, &write.expect) {
            (Change::Delete, _) => "delete",
            (_, Expect::Absent) => "create",
            _ => "update",
        };
        let (began, key) = (Instant::now(), write.key.clone());
        let done = self.inner.write(write).await;
        self.meters.count(operation, &key, began, &done);
        done
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, Error> {
        self.inner.watch(prefix, from).await
    }

    async fn request_progress(&self) -> Result<(), Error> {
        self.inner.request_progress().await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.inner.revision().await
    }

    async fn compact(&self, upto: Revision) -> Result<(), Error> {
        self.inner.compact(upto).await
    }

    async fn stats(&self) -> Result<Stats, Error> {
        self.inner.stats().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_are_for() {
        let meters = Meters::default();
        let now = Instant::now();
        meters.count("create", "/registry/pods/default/a", now, &Ok(()));
        meters.count("create", "/registry/pods/default/b", now, &Err::<(), _>(Error::SlowWatcher));
        meters.count("list", "/registry/deployments.apps/", now, &Ok(()));
        let mut text = String::new();
        meters.render(&mut text);
        for line in [
            "etcd_requests_total{group=\"\",operation=\"create\",resource=\"pods\"} 2",
            "etcd_request_errors_total{group=\"\",operation=\"create\",resource=\"pods\"} 1",
            "etcd_requests_total{group=\"apps\",operation=\"list\",resource=\"deployments\"} 1",
            "etcd_request_duration_seconds_count{group=\"\",operation=\"create\",resource=\"pods\"} 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
