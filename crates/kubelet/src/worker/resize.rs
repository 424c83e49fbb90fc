//! The worker's part in in-place resize: it decides what the pod is allocated and brings running containers there.

use std::path::Path;
use std::sync::Arc;

use api::prelude::*;

use super::{Next, RETRY, Worker};
use crate::cgroup;
use crate::observed::Observed;
use crate::resize::{self, Action, Judgement};
use crate::resources;
use crate::spec;

impl Worker {
    /// The pod as it is allocated. A request for other resources is granted here, or noted as pending.
    pub(super) fn allocate(&mut self, pod: &Arc<Pod>, observed: &Observed) -> Arc<Pod> {
        let agent = self.context.agent.clone();
        let wanted = resize::of_spec(pod);
        let current = self.allocation.take().unwrap_or_else(|| match observed.containers.is_empty() {
            true => wanted.clone(),
            false => resize::of_status(pod),
        });
        self.resize.pending = None;
        let granted = match current == wanted {
            true => current,
            false => match agent.judge_resize(pod) {
                Judgement::Fits => wanted,
                Judgement::Deferred(why) => {
                    self.resize.pending = Some(("Deferred".into(), why));
                    current
                }
                Judgement::Infeasible(why) => {
                    self.resize.pending = Some(("Infeasible".into(), why));
                    current
                }
            },
        };
        let deferred = self.resize.pending.as_ref().is_some_and(|(reason, _)| reason == "Deferred");
        let allocated = resize::allocated(pod, &granted);
        agent.note_allocation(&allocated, deferred);
        self.allocation = Some(granted);
        allocated
    }

    /// Gives running containers the values that they are allocated. Answers what the runtime has afterwards, if
    /// anything was changed.
    pub(super) async fn resize(
        &mut self,
        pod: &Arc<Pod>,
        observed: &Observed,
        next: &mut Next,
    ) -> Option<Observed> {
        let agent = self.context.agent.clone();
        let actions = resize::actions(pod, observed, agent.memory_capacity());
        if actions.is_empty() {
            self.resize.in_progress = None;
            return None;
        }
        self.resize.in_progress = Some(String::new());
        // The pod's own limits must not stand in the way of its containers'.
        self.weigh_pod(pod, false);
        for action in actions {
            match action {
                Action::Restart(kill) => {
                    let grace = self.kill_grace(pod, &kill.name);
                    self.spawn_stop(pod, &kill.name, &kill.id, grace, kill.message);
                }
                Action::Update { id, name, resources } => {
                    if let Err(error) = agent.runtime.update_container_resources(&id, &resources).await {
                        let message = format!("failed to resize container {name}: {error}");
                        tracing::warn!(pod = spec::describe(pod), message, "a resize failed");
                        self.resize.in_progress = Some(message);
                        *next = std::mem::take(next).at(self.after(RETRY));
                    }
                }
            }
        }
        self.weigh_pod(pod, true);
        let fresh = self.observe(pod).await.ok()?;
        if resize::actions(pod, &fresh, agent.memory_capacity()).is_empty() {
            self.resize.in_progress = None;
        }
        Some(fresh)
    }

    /// Sets the values of the pod's cgroup, with or without its limits.
    fn weigh_pod(&mut self, pod: &Pod, limited: bool) {
        let agent = &self.context.agent;
        if agent.config.cgroup_root.is_empty() {
            return;
        }
        let path = resources::cgroup_parent(&agent.config.cgroup_root, pod);
        let mut values = resources::pod_values(pod);
        if !limited {
            (values.cpu_quota_us, values.memory_bytes) = (0, 0);
        }
        if let Err(error) = cgroup::apply(Path::new(cgroup::MOUNT), &path, values) {
            let message = format!("failed to resize the pod's cgroup: {error}");
            tracing::warn!(pod = spec::describe(pod), message, "a resize failed");
            self.resize.in_progress = Some(message);
        }
    }
}
