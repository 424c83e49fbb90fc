//! Events of a runtime behind a socket.
//!
//! Three sources: what this process itself has just done, which is known at once; the runtime's own stream
//! where it has one (containerd from 1.7, CRI-O); and otherwise a look at everything each second, which is
//! what upstream's kubelet does. While nobody listens nothing is asked.

use std::collections::HashMap;
use std::sync::Weak;
use std::time::Duration;

use cri::{
    ContainerEvent, ContainerState, ContainerStatus, EventKind, EventStream, ExitInfo, RuntimeService,
};
use futures_util::StreamExt;
use jiff::Timestamp;
use rpc::cri as pb;
use rpc::tonic::{Code, Streaming};
use tokio::sync::broadcast::error::RecvError;

use super::Remote;
use crate::POD_UID_LABEL;
use crate::convert::timestamp;

/// Between two looks at a runtime without events: upstream's relisting period.
const RELIST_PERIOD: Duration = Duration::from_secs(1);
/// Before a lost runtime is asked for its events again.
const RETRY: Duration = Duration::from_secs(1);

/// What was seen at the last look: containers with their sandbox, pod and state, sandboxes with pod and state.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Seen {
    containers: HashMap<String, (String, String, pb::ContainerState)>,
    sandboxes: HashMap<String, (String, pb::PodSandboxState)>,
}

/// A change between two looks.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Container { id: String, sandbox: String, uid: String, now: Option<pb::ContainerState> },
    Sandbox { id: String, uid: String, now: Option<pb::PodSandboxState> },
}

impl Seen {
    fn new(sandboxes: Vec<pb::PodSandbox>, containers: Vec<pb::Container>) -> Seen {
        let sandboxes: HashMap<_, _> = sandboxes
            .into_iter()
            .map(|item| {
                let state = item.state();
                (item.id, (item.metadata.unwrap_or_default().uid, state))
            })
            .collect();
        let containers = containers.into_iter().map(|item| {
            let state = item.state();
            let labelled = item.labels.get(POD_UID_LABEL).cloned();
            let of_sandbox = || sandboxes.get(&item.pod_sandbox_id).map(|(uid, _)| uid.clone());
            let uid = labelled.or_else(of_sandbox).unwrap_or_default();
            (item.id, (item.pod_sandbox_id, uid, state))
        });
        Seen { containers: containers.collect(), sandboxes }
    }

    /// What has changed since `before`, what went away last.
    fn changes(&self, before: &Seen) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, (uid, state)) in &self.sandboxes {
            if before.sandboxes.get(id).is_none_or(|(_, was)| was != state) {
                changes.push(Change::Sandbox { id: id.clone(), uid: uid.clone(), now: Some(*state) });
            }
        }
        for (id, (sandbox, uid, state)) in &self.containers {
            if before.containers.get(id).is_none_or(|(_, _, was)| was != state) {
                let (sandbox, uid) = (sandbox.clone(), uid.clone());
                changes.push(Change::Container { id: id.clone(), sandbox, uid, now: Some(*state) });
            }
        }
        for (id, (sandbox, uid, _)) in &before.containers {
            if !self.containers.contains_key(id) {
                let (sandbox, uid) = (sandbox.clone(), uid.clone());
                changes.push(Change::Container { id: id.clone(), sandbox, uid, now: None });
            }
        }
        for (id, (uid, _)) in &before.sandboxes {
            if !self.sandboxes.contains_key(id) {
                changes.push(Change::Sandbox { id: id.clone(), uid: uid.clone(), now: None });
            }
        }
        changes
    }
}

/// Follows the runtime until it is dropped.
pub(super) async fn follow(remote: Weak<Remote>) {
    loop {
        let Some(mut client) = remote.upgrade().map(|remote| remote.runtime.clone()) else { return };
        // A server may say nothing before its first event.
        let asked = client.get_container_events(pb::GetEventsRequest {});
        tokio::pin!(asked);
        let early = tokio::time::timeout(RETRY, &mut asked).await;
        let Some(this) = remote.upgrade() else { return };
        let answer = match early {
            Ok(answer) => answer,
            Err(_) => {
                this.tell_lost();
                drop(this);
                asked.await
            }
        };
        match answer {
            Ok(stream) => forward(&remote, stream.into_inner()).await,
            Err(status) if status.code() == Code::Unimplemented => return relist(&remote).await,
            Err(status) => tracing::debug!(%status, "the runtime's events are not to be had"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn forward(remote: &Weak<Remote>, mut stream: Streaming<pb::ContainerEventResponse>) {
    if let Some(this) = remote.upgrade() {
        this.tell_lost();
    }
    while let Ok(Some(event)) = stream.message().await {
        let Some(this) = remote.upgrade() else { return };
        let sandbox = event.pod_sandbox_status.clone().unwrap_or_default();
        let uid = sandbox.metadata.unwrap_or_default().uid;
        let about_sandbox = event.container_id == sandbox.id;
        use pb::ContainerEventType::{
            ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
        };
        let kind = match (event.container_event_type(), about_sandbox) {
            (ContainerCreatedEvent, true) => continue,
            (ContainerStartedEvent, true) => EventKind::SandboxStarted,
            (ContainerStoppedEvent, true) => EventKind::SandboxStopped,
            (ContainerDeletedEvent, true) => EventKind::SandboxDeleted,
            (ContainerCreatedEvent, false) => EventKind::ContainerCreated,
            (ContainerStartedEvent, false) => EventKind::ContainerStarted,
            (ContainerStoppedEvent, false) => {
                let of = event.containers_statuses.iter().find(|status| status.id == event.container_id);
                EventKind::ContainerStopped(exit_of(of))
            }
            (ContainerDeletedEvent, false) => EventKind::ContainerDeleted,
        };
        if about_sandbox {
            this.tell_sandbox(&sandbox.id, &uid, kind);
        } else {
            this.tell_container(&sandbox.id, &uid, &event.container_id, kind);
        }
    }
}

fn exit_of(status: Option<&pb::ContainerStatus>) -> ExitInfo {
    let status = status.cloned().unwrap_or_default();
    ExitInfo {
        code: status.exit_code,
        oom_killed: status.reason == "OOMKilled",
        finished_at: timestamp(status.finished_at),
        reason: status.reason,
        message: status.message,
    }
}

/// Looks at everything each second and tells what has changed.
async fn relist(remote: &Weak<Remote>) {
    let mut before: Option<Seen> = None;
    let mut ticks = tokio::time::interval(RELIST_PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(this) = remote.upgrade() else { return };
        if this.events.receiver_count() == 0 {
            before = None;
            continue;
        }
        match this.survey().await {
            Ok((sandboxes, containers)) => {
                let seen = Seen::new(sandboxes, containers);
                match &before {
                    Some(before) => this.tell_changes(seen.changes(before)).await,
                    // Nothing to compare with, or the runtime was away: who listens looks for himself.
                    None => this.tell_lost(),
                }
                before = Some(seen);
            }
            Err(error) => {
                if before.take().is_some() {
                    tracing::warn!(%error, "the container runtime does not answer");
                }
            }
        }
    }
}

impl Remote {
    pub(super) fn listen(&self) -> EventStream {
        let receiver = self.events.subscribe();
        futures_util::stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(RecvError::Lagged(missed)) => Some((lagged(missed), receiver)),
                Err(RecvError::Closed) => None,
            }
        })
        .boxed()
    }

    fn tell(&self, sandbox: &str, uid: &str, container: Option<&str>, kind: EventKind) {
        // Nobody may be listening.
        let _ = self.events.send(ContainerEvent {
            sandbox_id: sandbox.to_owned(),
            pod_uid: uid.to_owned(),
            container_id: container.map(str::to_owned),
            at: Timestamp::now(),
            kind,
        });
    }

    pub(super) fn tell_sandbox(&self, id: &str, uid: &str, kind: EventKind) {
        self.tell(id, uid, None, kind);
    }

    pub(super) fn tell_container(&self, sandbox: &str, uid: &str, id: &str, kind: EventKind) {
        self.tell(sandbox, uid, Some(id), kind);
    }

    /// Something may have been missed.
    fn tell_lost(&self) {
        let _ = self.events.send(lagged(0));
    }

    async fn tell_changes(&self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Sandbox { id, uid, now } => {
                    let kind = match now {
                        Some(pb::PodSandboxState::SandboxReady) => EventKind::SandboxStarted,
                        Some(pb::PodSandboxState::SandboxNotready) => EventKind::SandboxStopped,
                        None => {
                            self.cache.forget_sandbox(&id);
                            EventKind::SandboxDeleted
                        }
                    };
                    self.tell_sandbox(&id, &uid, kind);
                }
                Change::Container { id, sandbox, uid, now } => {
                    let kind = match now {
                        Some(pb::ContainerState::ContainerCreated) => EventKind::ContainerCreated,
                        Some(pb::ContainerState::ContainerRunning) => EventKind::ContainerStarted,
                        Some(_) => match self.container_status(&id).await.ok().and_then(|s| s.exit) {
                            Some(exit) => EventKind::ContainerStopped(exit),
                            None => EventKind::ContainerStopped(exit_of(None)),
                        },
                        None => {
                            self.cache.forget_container(&id);
                            EventKind::ContainerDeleted
                        }
                    };
                    self.tell_container(&sandbox, &uid, &id, kind);
                }
            }
        }
    }

    /// A container has changed through a call of ours.
    pub(super) async fn changed(&self, id: &str, kind: EventKind) {
        if let Ok(status) = self.container_status(id).await {
            let uid = status.labels.get(POD_UID_LABEL).cloned().unwrap_or_default();
            self.tell_container(&status.sandbox_id, &uid, id, kind);
        }
    }

    /// Tells of a container's end, if it has ended.
    pub(super) async fn announce(&self, id: &str) {
        if let Ok(ContainerStatus { state: ContainerState::Exited, exit: Some(exit), .. }) =
            self.container_status(id).await
        {
            self.changed(id, EventKind::ContainerStopped(exit)).await;
        }
    }
}

fn lagged(missed: u64) -> ContainerEvent {
    ContainerEvent {
        sandbox_id: String::new(),
        pod_uid: String::new(),
        container_id: None,
        at: Timestamp::UNIX_EPOCH,
        kind: EventKind::Lagged(missed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str, state: pb::ContainerState) -> pb::Container {
        pb::Container { id: id.into(), pod_sandbox_id: "s".into(), state: state.into(), ..Default::default() }
    }

    fn sandbox(state: pb::PodSandboxState) -> pb::PodSandbox {
        let metadata = Some(pb::PodSandboxMetadata { uid: "u".into(), ..Default::default() });
        pb::PodSandbox { id: "s".into(), metadata, state: state.into(), ..Default::default() }
    }

    #[test]
    fn changes_between_looks() {
        use pb::ContainerState::{ContainerExited, ContainerRunning};
        use pb::PodSandboxState::{SandboxNotready, SandboxReady};
        let of = |now| Change::Container { id: "c".into(), sandbox: "s".into(), uid: "u".into(), now };
        let of_sandbox = |now| Change::Sandbox { id: "s".into(), uid: "u".into(), now };
        let empty = Seen::default();
        let running = Seen::new(vec![sandbox(SandboxReady)], vec![container("c", ContainerRunning)]);
        let ended = Seen::new(vec![sandbox(SandboxNotready)], vec![container("c", ContainerExited)]);
        assert_eq!(running.changes(&empty), [of_sandbox(Some(SandboxReady)), of(Some(ContainerRunning))]);
        assert_eq!(running.changes(&running), []);
        assert_eq!(ended.changes(&running), [of_sandbox(Some(SandboxNotready)), of(Some(ContainerExited))]);
        assert_eq!(empty.changes(&ended), [of(None), of_sandbox(None)]);
    }
}
