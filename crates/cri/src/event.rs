//! Lifecycle events: the runtime tells, nobody relists.

use futures_util::stream::BoxStream;
use jiff::Timestamp;

use crate::container::ExitInfo;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// A sandbox is ready.
    SandboxStarted,
    /// A sandbox was stopped or its shim died.
    SandboxStopped,
    /// A sandbox was removed.
    SandboxDeleted,
    /// A container was made.
    ContainerCreated,
    /// Its first process runs.
    ContainerStarted,
    /// Its first process has ended.
    ContainerStopped(ExitInfo),
    /// It was removed.
    ContainerDeleted,
    /// The listener was too slow and missed this many events: list everything once.
    Lagged(u64),
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerEvent {
    /// Sandbox it is about; empty with [`EventKind::Lagged`].
    pub sandbox_id: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Container it is about; `None` for a sandbox.
    pub container_id: Option<String>,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub kind: EventKind,
}

/// Events from now on. It ends when the runtime closes.
pub type EventStream = BoxStream<'static, ContainerEvent>;
