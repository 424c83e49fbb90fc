//! The node's end: pods are ended in the order of their priorities before the machine goes down.
//!
//! Who runs the kubelet says when ([`Signal`]); an ordinary end of the kubelet leaves pods as they are. What is done is
//! a plan of groups, each with its time: pods of a lower priority first, those the node cannot do without last.

use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use reconcile::EventType;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::node::register;
use crate::spec;
use crate::status::Verdict;

/// Priority from which on pods are critical.
pub const CRITICAL: i32 = 2_000_000_000;
/// What pods are told.
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// What the node says of itself.
pub const NOT_READY: &str = "node is shutting down";

/// The way to tell a kubelet that the machine goes down, and to hear when it is done.
#[derive(Debug, Clone, Default)]
pub struct Signal {
    asked: CancellationToken,
    done: CancellationToken,
}

impl Signal {
    /// Asks for the end of all pods.
    pub fn ask(&self) {
        self.asked.cancel();
    }

    /// Whether that was asked for.
    pub fn is_asked(&self) -> bool {
        self.asked.is_cancelled()
    }

    /// Waits until pods have ended.
    pub async fn done(&self) {
        self.done.cancelled().await;
    }
}

/// How long pods of a priority, and those above it up to the next, may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// The priority.
    pub priority: i32,
    /// Seconds.
    pub seconds: i64,
}

/// The periods of a configuration: by priorities where there are some, else for critical pods and the others.
pub fn periods(by_priority: &[Period], all: Duration, critical: Duration) -> Vec<Period> {
    if !by_priority.is_empty() {
        let mut periods = by_priority.to_vec();
        periods.sort_by_key(|period| period.priority);
        return periods;
    }
    let (all, critical) = (all.as_secs() as i64, critical.as_secs() as i64);
    if all == 0 {
        return Vec::new();
    }
    let mut periods = vec![Period { priority: 0, seconds: (all - critical).max(0) }];
    if critical > 0 {
        periods.push(Period { priority: CRITICAL, seconds: critical });
    }
    periods
}

/// How long all of it takes at most.
pub fn total(periods: &[Period]) -> Duration {
    Duration::from_secs(periods.iter().map(|period| period.seconds.max(0) as u64).sum())
}

/// Pods by the period they end in, in the order of their ends. Those below the lowest end with it.
fn groups(periods: &[Period], pods: &[Arc<Pod>]) -> Vec<(Period, Vec<Arc<Pod>>)> {
    let mut groups: Vec<(Period, Vec<Arc<Pod>>)> =
        periods.iter().map(|period| (*period, Vec::new())).collect();
    for pod in pods {
        let priority = spec::spec(pod).priority.unwrap_or(0);
        let at = periods.iter().rposition(|period| period.priority <= priority).unwrap_or(0);
        if let Some((_, group)) = groups.get_mut(at) {
            group.push(pod.clone());
        }
    }
    groups.retain(|(_, group)| !group.is_empty());
    groups
}

/// Grace of a pod: its own, within its group's time.
fn grace(pod: &Pod, period: Period) -> i64 {
    spec::spec(pod).termination_grace_period_seconds.map_or(period.seconds, |own| own.min(period.seconds))
}

/// What new pods are told.
pub fn refusal() -> Verdict {
    Verdict {
        reason: "NodeShutdown".into(),
        message: "Pod was rejected: Pod was rejected as the node is shutting down.".into(),
        ..Verdict::default()
    }
}

/// Waits for the signal and ends all pods.
pub(crate) async fn follow(agent: Arc<Agent>, signal: Signal) {
    signal.asked.cancelled().await;
    let periods = agent.config.shutdown_periods.clone();
    if !periods.is_empty() {
        end_pods(&agent, &periods).await;
    }
    signal.done.cancel();
}

async fn end_pods(agent: &Arc<Agent>, periods: &[Period]) {
    tracing::info!("the machine goes down: ending pods");
    let node = register::reference(&agent.config.node_name);
    let message = "Shutdown manager detected shutdown event";
    agent.recorder.record(node, EventType::Normal, "NodeShutdown", message);
    agent.counters.shutdown_began(agent.clock.now());
    // The scheduler is told at once.
    agent.changed.notify_one();
    let pods: Vec<Arc<Pod>> = agent.admitted.lock().values().cloned().collect();
    for (period, group) in groups(periods, &pods) {
        for pod in &group {
            let verdict = Verdict {
                reason: "Terminated".into(),
                message: MESSAGE.into(),
                grace_seconds: Some(grace(pod, period)),
                disruption: true,
            };
            agent.workers.condemn(pod.uid(), verdict);
        }
        let limit = Duration::from_secs(period.seconds.max(0) as u64);
        if tokio::time::timeout(limit, ended(agent, &group)).await.is_err() {
            tracing::warn!(priority = period.priority, "some pods have not ended in their time");
        }
    }
    agent.counters.shutdown_ended(agent.clock.now());
}

/// Waits until all pods of a group have ended and that was reported.
async fn ended(agent: &Agent, group: &[Arc<Pod>]) {
    loop {
        let told = agent.ended_changed.notified();
        tokio::pin!(told);
        // From here on no word is missed.
        told.as_mut().enable();
        let over = {
            let (workers, ended) = (agent.workers.0.lock(), agent.ended.lock());
            group.iter().all(|pod| ended.contains(pod.uid()) || !workers.contains_key(pod.uid()))
        };
        if over {
            return;
        }
        told.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: i32) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "uid": name},
            "spec": {"priority": priority, "terminationGracePeriodSeconds": 30, "containers": []}});
        Arc::new(Pod::from_value(pod).unwrap())
    }

    #[test]
    fn periods_of_configurations() {
        let seconds = Duration::from_secs;
        let period = |priority, seconds| Period { priority, seconds };
        let table = [
            (vec![], 0, 0, vec![]),
            (vec![], 30, 10, vec![period(0, 20), period(CRITICAL, 10)]),
            (vec![], 30, 0, vec![period(0, 30)]),
            (vec![period(9, 1), period(3, 2)], 30, 10, vec![period(3, 2), period(9, 1)]),
        ];
        for (by_priority, all, critical, expected) in table {
            assert_eq!(periods(&by_priority, seconds(all), seconds(critical)), expected);
        }
        assert_eq!(total(&[period(0, 20), period(1, 10)]), seconds(30));
    }

    #[test]
    fn who_ends_when() {
        let periods = [Period { priority: 10, seconds: 60 }, Period { priority: 1000, seconds: 5 }];
        let pods = [pod("low", -5), pod("ten", 10), pod("middle", 999), pod("high", CRITICAL)];
        let shown: Vec<(i32, Vec<String>)> = groups(&periods, &pods)
            .into_iter()
            .map(|(period, group)| (period.priority, group.iter().map(|pod| pod.name().to_owned()).collect()))
            .collect();
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(shown, [(10, names(&["low", "ten", "middle"])), (1000, names(&["high"]))]);
        assert!(groups(&periods, &[]).is_empty());
        assert_eq!((grace(&pods[0], periods[0]), grace(&pods[3], periods[1])), (30, 5));
    }
}
