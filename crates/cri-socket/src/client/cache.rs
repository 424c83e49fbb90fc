//! Statuses by id, asked for once per state: the protocol's lists leave out addresses, ends and logs, and a
//! worker lists its pod every time it is woken.

use std::collections::HashMap;

use cri::{ContainerState, ContainerStatus, PodSandboxState, PodSandboxStatus};
use parking_lot::Mutex;

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Cache {
    containers: Mutex<HashMap<String, ContainerStatus>>,
    sandboxes: Mutex<HashMap<String, PodSandboxStatus>>,
}

impl Cache {
    /// A container's status, if it was seen in this state.
    pub(super) fn container(&self, id: &str, state: ContainerState) -> Option<ContainerStatus> {
        self.containers.lock().get(id).filter(|status| status.state == state).cloned()
    }

    /// A sandbox's status, if it was seen in this state.
    pub(super) fn sandbox(&self, id: &str, state: PodSandboxState) -> Option<PodSandboxStatus> {
        self.sandboxes.lock().get(id).filter(|status| status.state == state).cloned()
    }

    /// The sandbox of a container.
    pub(super) fn sandbox_of(&self, container: &str) -> Option<String> {
        self.containers.lock().get(container).map(|status| status.sandbox_id.clone())
    }

    /// The pod's uid of a sandbox.
    pub(super) fn uid_of(&self, sandbox: &str) -> Option<String> {
        self.sandboxes.lock().get(sandbox).map(|status| status.uid.clone())
    }

    /// Keeps what was told. A container that the runtime has lost is asked for again.
    pub(super) fn keep_container(&self, status: &ContainerStatus) {
        if status.state != ContainerState::Unknown {
            self.containers.lock().insert(status.id.clone(), status.clone());
        }
    }

    /// Keeps what was told.
    pub(super) fn keep_sandbox(&self, status: &PodSandboxStatus) {
        self.sandboxes.lock().insert(status.id.clone(), status.clone());
    }

    /// Something about a container has changed, or it is gone.
    pub(super) fn forget_container(&self, id: &str) {
        self.containers.lock().remove(id);
    }

    /// A sandbox is gone with its containers.
    pub(super) fn forget_sandbox(&self, id: &str) {
        self.sandboxes.lock().remove(id);
        self.containers.lock().retain(|_, status| status.sandbox_id != id);
    }

    /// Containers that were running when last looked at.
    pub(super) fn running(&self) -> Vec<ContainerStatus> {
        let containers = self.containers.lock();
        containers.values().filter(|status| status.state == ContainerState::Running).cloned().collect()
    }
}
