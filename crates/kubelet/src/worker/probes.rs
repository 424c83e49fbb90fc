//! The probes of a pod's running containers: started with the container, ended with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::core::v1::Probe;
use api::prelude::*;
use cri::{ContainerState, ContainerStatus};
use reconcile::EventType;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::Context;
use crate::observed::{Observed, ProbeState};
use crate::probe::{Counter, Kind, Outcome, Target, seconds};
use crate::spec::{self, Role};

/// Probe tasks by container id.
#[derive(Default)]
pub(super) struct Tasks {
    running: HashMap<String, Vec<(Kind, AbortHandle)>>,
}

/// One probe of one container.
struct Task {
    context: Context,
    pod: Arc<Pod>,
    role: Role,
    kind: Kind,
    probe: Probe,
    target: Target,
    /// How long the container has run when the task begins.
    age: Duration,
    started: watch::Sender<bool>,
}

impl Tasks {
    /// Ends every probe.
    pub(super) fn abort_all(&mut self) {
        self.running.drain().flat_map(|(_, tasks)| tasks).for_each(|(_, task)| task.abort());
    }

    /// Starts probes of containers that have come to run and ends those of others. A pod that is being ended
    /// keeps only its readiness probes.
    pub(super) fn follow(&mut self, context: &Context, pod: &Arc<Pod>, observed: &Observed, ending: bool) {
        let runs = |id: &String| observed.running().any(|container| container.id == *id);
        self.running.retain(|id, tasks| {
            let keep = runs(id);
            tasks
                .iter()
                .filter(|(kind, _)| !keep || (ending && *kind != Kind::Readiness))
                .for_each(|(_, t)| t.abort());
            keep
        });
        for container in observed.containers.iter().filter(|c| c.state == ContainerState::Running) {
            let busy = context.memories.lock().get(&container.name).is_some_and(|memory| memory.busy);
            if ending || busy || self.running.contains_key(&container.id) {
                continue;
            }
            let Some((role, found)) = spec::find(pod, &container.name) else { continue };
            if matches!(role, Role::Init | Role::Ephemeral) {
                continue;
            }
            let tasks = begin(context, pod, role, Arc::new(found.into_owned()), container, observed);
            self.running.insert(container.id.clone(), tasks);
        }
    }
}

/// What the API knows of this very container: it was probed by an earlier life of this kubelet.
fn remembered(pod: &Pod, id: &str) -> Option<(bool, bool)> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let mut all = lists.into_iter().flatten().flatten();
    let wanted = format!("://{id}");
    let found =
        all.find(|status| status.container_id.as_deref().is_some_and(|known| known.ends_with(&wanted)))?;
    Some((found.ready, found.started == Some(true)))
}

fn begin(
    context: &Context,
    pod: &Arc<Pod>,
    role: Role,
    container: Arc<Container>,
    status: &ContainerStatus,
    observed: &Observed,
) -> Vec<(Kind, AbortHandle)> {
    let (was_ready, was_started) = remembered(pod, &status.id).unwrap_or_default();
    let state = ProbeState {
        started: container.startup_probe.is_none() || was_started,
        ready: match (&container.startup_probe, &container.readiness_probe) {
            (None, None) => true,
            _ => was_ready,
        },
        must_restart: None,
    };
    let (started, _) = watch::channel(state.started);
    let fully_started = state.started;
    {
        let mut memories = context.memories.lock();
        memories.entry(container.name.clone()).or_default().probes.insert(status.id.clone(), state);
    }
    let host_network = spec::spec(pod).host_network == Some(true);
    let ips = observed
        .sandboxes
        .iter()
        .find(|s| s.id == status.sandbox_id)
        .map(|s| s.ips.clone())
        .unwrap_or_default();
    let host = if host_network { context.agent.host_ips().first().copied() } else { ips.first().copied() };
    let host = host.map_or_else(|| "127.0.0.1".to_owned(), |ip| ip.to_string());
    let now = context.agent.clock.now();
    let age = status
        .started_at
        .map_or(Duration::ZERO, |at| Duration::try_from(now.duration_since(at)).unwrap_or_default());
    let mut tasks = Vec::new();
    for (kind, probe) in [
        (Kind::Startup, &container.startup_probe),
        (Kind::Liveness, &container.liveness_probe),
        (Kind::Readiness, &container.readiness_probe),
    ] {
        let Some(probe) = probe.clone() else { continue };
        if kind == Kind::Startup && fully_started {
            continue;
        }
        let task = Task {
            context: context.clone(),
            pod: pod.clone(),
            role,
            kind,
            probe,
            target: Target {
                runtime: context.agent.runtime.clone(),
                container_id: status.id.clone(),
                container: container.clone(),
                host: host.clone(),
            },
            age,
            started: started.clone(),
        };
        tasks.push((kind, tokio::spawn(task.run()).abort_handle()));
    }
    // Whoever has a startup probe but no readiness probe is ready once started.
    tasks
}

impl Task {
    async fn run(self) {
        if self.kind != Kind::Startup {
            let mut started = self.started.subscribe();
            if started.wait_for(|done| *done).await.is_err() {
                return;
            }
        }
        let delay = Duration::from_secs(self.probe.initial_delay_seconds.unwrap_or(0).max(0) as u64);
        tokio::time::sleep(delay.saturating_sub(self.age)).await;
        let mut ticks = tokio::time::interval(seconds(self.probe.period_seconds, 10));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut counter = Counter::default();
        loop {
            ticks.tick().await;
            let outcome = self.target.probe(&self.probe).await;
            self.note(match &outcome {
                Outcome::Success => "successful",
                Outcome::Failure(_) => "failed",
                Outcome::Unknown(_) => "unknown",
            });
            let success = match &outcome {
                Outcome::Success => true,
                Outcome::Failure(message) => {
                    self.warn(format!("{} probe failed: {message}", self.kind.name()));
                    false
                }
                Outcome::Unknown(message) => {
                    self.warn(format!(
                        "{} probe errored and resulted in unknown state: {message}",
                        self.kind.name()
                    ));
                    continue;
                }
            };
            if let Some(result) = counter.count(success, &self.probe)
                && self.settle(result)
            {
                return;
            }
        }
    }

    /// Counts a probe for the metrics.
    fn note(&self, result: &str) {
        let labels = format!(
            "container={:?},namespace={:?},pod={:?},probe_type={:?},result={result:?}",
            self.target.container.name,
            self.pod.namespace(),
            self.pod.name(),
            self.kind.name()
        );
        let mut probes = self.context.agent.probes.lock();
        *probes.entry(self.pod.uid().to_owned()).or_default().entry(labels).or_default() += 1;
    }

    fn warn(&self, message: String) {
        let about = spec::container_reference(&self.pod, self.role, &self.target.container.name);
        self.context.agent.recorder.record(about, EventType::Warning, "Unhealthy", message);
    }

    /// Takes a result in; true when this probe has nothing more to say of this container.
    fn settle(&self, result: bool) -> bool {
        let container = &self.target.container;
        let mut changed = false;
        let mut done = false;
        {
            let mut memories = self.context.memories.lock();
            let Some(memory) = memories.get_mut(&container.name) else { return true };
            let Some(state) = memory.probes.get_mut(&self.target.container_id) else { return true };
            match (self.kind, result) {
                (Kind::Readiness, ready) => {
                    changed = state.ready != ready;
                    state.ready = ready;
                }
                (Kind::Startup, true) => {
                    state.started = true;
                    state.ready = state.ready || container.readiness_probe.is_none();
                    changed = true;
                    done = true;
                }
                (Kind::Liveness, true) => {}
                (kind, false) => {
                    let name = kind.name().to_lowercase();
                    let message =
                        format!("Container {} failed {name} probe, will be restarted", container.name);
                    state.must_restart = Some(message);
                    changed = true;
                    done = true;
                }
            }
        }
        if self.kind == Kind::Startup && result {
            self.started.send_replace(true);
        }
        if changed {
            self.context.kick.notify_one();
        }
        done
    }
}
