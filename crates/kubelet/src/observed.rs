//! What the runtime reports of one pod, and what the kubelet remembers of its containers: the input of
//! plans and statuses.

use std::collections::HashMap;
use std::time::Duration;

use cri::{ContainerState, ContainerStatus, PodSandboxState, PodSandboxStatus};
use jiff::Timestamp;

use crate::spec::mark;

/// Restart delays of a crashing container: 10 s, doubling to 5 minutes.
pub const CRASH_BACKOFF_INITIAL: Duration = Duration::from_secs(10);
/// Longest delay.
pub const CRASH_BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Sandboxes and containers of a pod, newest first.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Sandboxes.
    pub sandboxes: Vec<PodSandboxStatus>,
    /// Containers of all sandboxes.
    pub containers: Vec<ContainerStatus>,
}

impl Observed {
    /// Sorts what the runtime listed.
    pub fn new(mut sandboxes: Vec<PodSandboxStatus>, mut containers: Vec<ContainerStatus>) -> Self {
        sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created_at)));
        containers
            .sort_by_key(|container| std::cmp::Reverse((restart_count(container), container.created_at)));
        Observed { sandboxes, containers }
    }

    /// The newest sandbox if it is up.
    pub fn ready_sandbox(&self) -> Option<&PodSandboxStatus> {
        self.sandboxes.first().filter(|sandbox| sandbox.state == PodSandboxState::Ready)
    }

    /// The latest container of this name, in whatever sandbox.
    pub fn latest(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The one before the latest.
    pub fn previous(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().filter(|container| container.name == name).nth(1)
    }

    /// The latest container of this name in this sandbox.
    pub fn in_sandbox(&self, name: &str, sandbox: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|container| container.name == name && container.sandbox_id == sandbox)
    }

    /// Containers that run.
    pub fn running(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.containers.iter().filter(|container| container.state == ContainerState::Running)
    }
}

/// How often a container was restarted before this one, as it was marked when it was made.
pub fn restart_count(container: &ContainerStatus) -> u32 {
    container
        .annotations
        .get(mark::RESTART_COUNT)
        .and_then(|count| count.parse().ok())
        .unwrap_or(container.attempt)
}

/// A reason and message for a container that waits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Waiting {
    /// Reason in CamelCase.
    pub reason: String,
    /// Message.
    pub message: String,
}

impl Waiting {
    /// A waiting state.
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Waiting { reason: reason.to_owned(), message: message.into() }
    }
}

/// What probes say of a running container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProbeState {
    /// Readiness; without a probe true once it runs.
    pub ready: bool,
    /// Startup; without a probe true once it runs.
    pub started: bool,
    /// Why it must be restarted, as the Killing event says.
    pub must_restart: Option<String>,
}

/// Back-off of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashBackoff {
    delay: Duration,
    updated: Timestamp,
}

impl CrashBackoff {
    fn expired(&self, event: Timestamp) -> bool {
        event.duration_since(self.updated)
            > jiff::SignedDuration::try_from(CRASH_BACKOFF_MAX * 2).unwrap_or_default()
    }

    /// The back-off after a container that finished at `finished` is started again at `now`.
    pub fn next(current: Option<CrashBackoff>, finished: Timestamp, now: Timestamp) -> CrashBackoff {
        let delay = match current {
            Some(backoff) if !backoff.expired(finished) => (backoff.delay * 2).min(CRASH_BACKOFF_MAX),
            _ => CRASH_BACKOFF_INITIAL,
        };
        CrashBackoff { delay, updated: now }
    }

    /// Whether a container that finished at `finished` must still wait at `now`: the whole delay and until when.
    pub fn wait(&self, finished: Timestamp, now: Timestamp) -> Option<(Duration, Timestamp)> {
        if self.expired(finished) {
            return None;
        }
        let until = finished + jiff::SignedDuration::try_from(self.delay).unwrap_or_default();
        (now < until).then_some((self.delay, until))
    }
}

/// What the kubelet remembers of a container between looks.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Something is being done to it: pulled and started, or stopped.
    pub busy: bool,
    /// That has ended, but perhaps after the runtime was last looked at: what was seen may be what was before.
    pub unseen: bool,
    /// Why it does not run, when it has not come to run.
    pub waiting: Option<Waiting>,
    /// When to try again after a failure that left no container behind.
    pub retry_at: Option<Timestamp>,
    /// Restart back-off.
    pub backoff: Option<CrashBackoff>,
    /// What probes say, by container id.
    pub probes: HashMap<String, ProbeState>,
    /// Termination messages, by container id.
    pub messages: HashMap<String, String>,
    /// Container that finished when back-off was last announced, so that it is announced once per exit.
    pub announced: Option<String>,
}

impl Memory {
    /// What is being done to the container has ended.
    pub fn ended(&mut self) {
        self.busy = false;
        self.unseen = true;
    }

    /// Whether what was seen of the container may have been overtaken by what is being done to it. The end of that
    /// wakes the worker, which then looks anew.
    pub fn in_flight(&self) -> bool {
        self.busy || self.unseen
    }
}

/// Memories by container name.
pub type Memories = HashMap<String, Memory>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_backoff_doubles_and_is_forgotten() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let first = CrashBackoff::next(None, at(0), at(0));
        assert_eq!(first.wait(at(1), at(5)), Some((Duration::from_secs(10), at(11))));
        assert_eq!(first.wait(at(1), at(11)), None);
        let mut backoff = first;
        let mut now = 11;
        let mut delays = Vec::new();
        for _ in 0..7 {
            backoff = CrashBackoff::next(Some(backoff), at(now), at(now));
            delays.push(backoff.delay.as_secs());
            now += 1;
        }
        assert_eq!(delays, [20, 40, 80, 160, 300, 300, 300]);
        // Ran for more than ten minutes: starts anew.
        assert_eq!(backoff.wait(at(now + 700), at(now + 700)), None);
        assert_eq!(CrashBackoff::next(Some(backoff), at(now + 700), at(now + 700)).delay.as_secs(), 10);
    }
}
