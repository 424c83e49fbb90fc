//! What flow control shows: metrics under upstream's names, and the tables of
//! `/debug/api_priority_and_fairness`.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use super::{CANCELLED, DISPATCHED, Flow, REFUSED, TIMED_OUT};

/// Columns aligned as upstream's tab writer does: comma, and spaces to the widest cell.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.len() + 2).max().unwrap_or(0).max(8);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            let last = i + 1 == row.len();
            let _ = match last {
                true => write!(out, "{cell}"),
                false => write!(out, "{:<1$}", format!("{cell},"), widths[i]),
            };
        }
        out.push('\n');
    }
    out
}

fn row<const N: usize>(cells: [String; N]) -> Vec<String> {
    cells.into()
}

fn head(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|c| (*c).to_owned()).collect()
}

impl Flow {
    /// One of the tables of `/debug/api_priority_and_fairness`; `None` if there is none of that name. `ago` writes
    /// the time so many seconds ago.
    pub fn dump(&self, which: &str, details: bool, ago: &dyn Fn(f64) -> String) -> Option<String> {
        match which {
            "dump_priority_levels" => Some(self.dump_levels()),
            "dump_queues" => Some(self.dump_queues()),
            "dump_requests" => Some(self.dump_requests(details, ago)),
            _ => None,
        }
    }

    fn dump_levels(&self) -> String {
        let mut rows = vec![head(&[
            "PriorityLevelName",
            "ActiveQueues",
            "IsIdle",
            "IsQuiescing",
            "WaitingRequests",
            "ExecutingRequests",
            "DispatchedRequests",
            "RejectedRequests",
            "TimedoutRequests",
            "CancelledRequests",
        ])];
        for (_, level) in &self.0.rules.load().levels {
            let q = level.queues.lock();
            let count = |at: usize| level.counts[at].load(Ordering::Relaxed).to_string();
            rows.push(row([
                level.name.clone(),
                q.queues.iter().filter(|q| !q.waiting.is_empty()).count().to_string(),
                q.is_idle().to_string(),
                "false".into(),
                q.waiting.to_string(),
                q.executing.to_string(),
                count(DISPATCHED),
                count(REFUSED),
                count(TIMED_OUT),
                count(CANCELLED),
            ]));
        }
        table(&rows)
    }

    fn dump_queues(&self) -> String {
        let mut rows = vec![head(&[
            "PriorityLevelName",
            "Index",
            "PendingRequests",
            "ExecutingRequests",
            "SeatsInUse",
            "NextDispatchR",
            "InitialSeatsSum",
            "MaxSeatsSum",
            "TotalWorkSum",
        ])];
        for (_, level) in &self.0.rules.load().levels {
            for (i, q) in level.queues.lock().queues.iter().enumerate() {
                let initial: u64 = q.waiting.iter().map(|w| w.item.work.initial).sum();
                let most: u64 = q.waiting.iter().map(|w| w.seats).sum();
                rows.push(row([
                    level.name.clone(),
                    i.to_string(),
                    q.waiting.len().to_string(),
                    q.executing.to_string(),
                    q.seats.to_string(),
                    format!("{:.8}ss", q.next),
                    initial.to_string(),
                    most.to_string(),
                    format!("{:.8}ss", most as f64 * 0.003),
                ]));
            }
        }
        table(&rows)
    }

    fn dump_requests(&self, details: bool, ago: &dyn Fn(f64) -> String) -> String {
        let mut names = vec![
            "PriorityLevelName",
            "FlowSchemaName",
            "QueueIndex",
            "RequestIndexInQueue",
            "FlowDistingsher",
            "ArriveTime",
            "InitialSeats",
            "FinalSeats",
            "AdditionalLatency",
        ];
        if details {
            names.push("WaitingSeconds");
        }
        let (mut rows, now) = (vec![head(&names)], self.0.now());
        for (_, level) in &self.0.rules.load().levels {
            for (i, q) in level.queues.lock().queues.iter().enumerate() {
                for (j, w) in q.waiting.iter().enumerate() {
                    let waited = now - w.arrived;
                    let mut cells = vec![
                        level.name.clone(),
                        w.item.schema.config.name.clone(),
                        i.to_string(),
                        j.to_string(),
                        w.item.flow.clone(),
                        ago(waited),
                        w.item.work.initial.to_string(),
                        w.item.work.last.to_string(),
                        format!("{}s", w.item.work.extra_seconds),
                    ];
                    if details {
                        cells.push(format!("{waited:.3}"));
                    }
                    rows.push(cells);
                }
            }
        }
        table(&rows)
    }

    /// `apiserver_flowcontrol_*`.
    pub fn metrics(&self) -> String {
        let mut out = String::new();
        let stats = self.0.stats.lock();
        let mut family = |name: &str, kind: &str, help: &str, lines: &dyn Fn(&mut String, &str)| {
            let name = format!("apiserver_flowcontrol_{name}");
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            lines(&mut out, &name);
        };
        let labels =
            |level: &str, schema: &str| format!("flow_schema=\"{schema}\",priority_level=\"{level}\"");
        family(
            "rejected_requests_total",
            "counter",
            "Number of requests rejected by API Priority and Fairness subsystem",
            &|out, name| {
                for ((level, schema), s) in stats.iter() {
                    for (why, n) in s.refused.lock().iter() {
                        let _ = writeln!(
                            out,
                            "{name}{{{},reason=\"{}\"}} {n}",
                            labels(level, schema),
                            why.as_str()
                        );
                    }
                }
            },
        );
        family(
            "dispatched_requests_total",
            "counter",
            "Number of requests executed by API Priority and Fairness subsystem",
            &|out, name| {
                for ((level, schema), s) in stats.iter() {
                    let _ = writeln!(
                        out,
                        "{name}{{{}}} {}",
                        labels(level, schema),
                        s.dispatched.load(Ordering::Relaxed)
                    );
                }
            },
        );
        family(
            "current_executing_requests",
            "gauge",
            "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem",
            &|out, name| {
                for ((level, schema), s) in stats.iter() {
                    let _ = writeln!(
                        out,
                        "{name}{{{}}} {}",
                        labels(level, schema),
                        s.executing.load(Ordering::Relaxed)
                    );
                }
            },
        );
        family(
            "current_executing_seats",
            "gauge",
            "Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem",
            &|out, name| {
                for ((level, schema), s) in stats.iter() {
                    let _ = writeln!(
                        out,
                        "{name}{{{}}} {}",
                        labels(level, schema),
                        s.seats.load(Ordering::Relaxed)
                    );
                }
            },
        );
        family(
            "request_wait_duration_seconds",
            "histogram",
            "Length of time a request spent waiting in its queue",
            &|out, name| {
                for ((level, schema), s) in stats.iter() {
                    s.waited.render(out, name, &format!("execute=\"true\",{}", labels(level, schema)));
                }
            },
        );
        family(
            "request_execution_seconds",
            "histogram",
            "Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem",
            &|out, name| {
                for ((level, schema), s) in stats.iter() {
                    s.ran.render(out, name, &labels(level, schema));
                }
            },
        );
        drop(stats);
        let rules = self.0.rules.load();
        type Figure = fn(&super::Level) -> u64;
        let figures: [(&str, &str, Figure); 6] = [
            (
                "current_inqueue_requests",
                "Number of requests currently pending in queues of the API Priority and Fairness subsystem",
                |l| l.queues.lock().waiting,
            ),
            (
                "nominal_limit_seats",
                "Nominal number of execution seats configured for each priority level",
                |l| l.bounds.lock().nominal,
            ),
            (
                "lower_limit_seats",
                "Configured lower bound on number of execution seats available to each priority level",
                |l| l.bounds.lock().lower,
            ),
            (
                "upper_limit_seats",
                "Configured upper bound on number of execution seats available to each priority level",
                |l| l.bounds.lock().upper,
            ),
            (
                "current_limit_seats",
                "current derived number of execution seats available to each priority level",
                |l| l.queues.lock().limit(),
            ),
            ("demand_seats_smoothed", "Smoothed seat demands", |l| *l.smoothed.lock() as u64),
        ];
        for (name, help, figure) in figures {
            family(name, "gauge", help, &|out, name| {
                for (_, level) in &rules.levels {
                    let _ = writeln!(out, "{name}{{priority_level=\"{}\"}} {}", level.name, figure(level));
                }
            });
        }
        out
    }
}
