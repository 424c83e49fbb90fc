//! The page of metrics of work queues, under client-go's names.

use std::fmt::Write;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::queue::{QueueStats, WorkQueue};

/// The queues of all loops.
#[derive(Default)]
pub struct Queues(Mutex<Vec<(String, Arc<WorkQueue>)>>);

/// A counter or gauge: name, kind, words, value.
type Row = (&'static str, &'static str, &'static str, fn(&QueueStats) -> f64);

const ROWS: [Row; 5] = [
    ("workqueue_adds_total", "counter", "Total number of adds handled by workqueue", |s| s.adds as f64),
    ("workqueue_depth", "gauge", "Current depth of workqueue", |s| s.depth as f64),
    (
        "workqueue_longest_running_processor_seconds",
        "gauge",
        "How many seconds has the longest running processor for workqueue been running.",
        |s| s.longest_seconds,
    ),
    ("workqueue_retries_total", "counter", "Total number of retries handled by workqueue", |s| {
        s.retries as f64
    }),
    (
        "workqueue_unfinished_work_seconds",
        "gauge",
        "How many seconds of work has done that is in progress and hasn't been observed by work_duration. Large values indicate stuck threads. One can deduce the number of stuck threads by observing the rate at which this increases.",
        |s| s.unfinished_seconds,
    ),
];

impl Queues {
    /// Adds the queue of a loop; `deployment-controller` has the queue `deployment`.
    pub(crate) fn add(&self, controller: &str, queue: &Arc<WorkQueue>) {
        let name = controller.trim_end_matches("-controller").replace('-', "_");
        self.0.lock().push((name, queue.clone()));
    }

    /// Writes the lines of a metrics page.
    pub fn render(&self, out: &mut String) {
        let mut queues = self.0.lock().clone();
        queues.sort_by(|a, b| a.0.cmp(&b.0));
        let stats: Vec<_> = queues.iter().map(|(name, queue)| (name, queue.stats())).collect();
        // Writing to a String cannot fail.
        for (metric, kind, help, value) in ROWS {
            let _ = writeln!(out, "# HELP {metric} {help}\n# TYPE {metric} {kind}");
            for (name, stats) in &stats {
                let _ = writeln!(out, "{metric}{{name=\"{name}\"}} {}", value(stats));
            }
        }
        for (metric, help) in [
            (
                "workqueue_queue_duration_seconds",
                "How long in seconds an item stays in workqueue before being requested.",
            ),
            (
                "workqueue_work_duration_seconds",
                "How long in seconds processing an item from workqueue takes.",
            ),
        ] {
            let _ = writeln!(out, "# HELP {metric} {help}\n# TYPE {metric} histogram");
            for (name, queue) in &queues {
                let taken = if metric.contains("queue_duration") { &queue.waited } else { &queue.worked };
                taken.render(out, metric, &format!("name=\"{name}\""));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_queue_tells_of_itself() {
        let (queues, queue) = (Queues::default(), WorkQueue::new());
        queues.add("endpoint-slice-controller", &queue);
        queue.add("a");
        queue.add("b");
        let key = queue.get().await.unwrap();
        tokio::time::advance(std::time::Duration::from_secs(2)).await;
        let page = || {
            let mut out = String::new();
            queues.render(&mut out);
            out
        };
        let has = |line: &str| assert!(page().lines().any(|l| l == line), "{line} is not in\n{}", page());
        has("workqueue_adds_total{name=\"endpoint_slice\"} 2");
        has("workqueue_depth{name=\"endpoint_slice\"} 1");
        has("workqueue_unfinished_work_seconds{name=\"endpoint_slice\"} 2");
        has("workqueue_work_duration_seconds_count{name=\"endpoint_slice\"} 0");
        queue.done(&key);
        has("workqueue_work_duration_seconds_sum{name=\"endpoint_slice\"} 2");
        has("workqueue_queue_duration_seconds_count{name=\"endpoint_slice\"} 1");
    }
}
