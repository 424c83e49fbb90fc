//! The end of a pod: deletion, failure as a whole, and pods that have ended by themselves.

use std::sync::Arc;

use api::prelude::*;
use client::DeleteParams;
use cri::ContainerState;
use jiff::Timestamp;

use super::{Next, RETRY, Worker};
use crate::agent::Desired;
use crate::observed::{Memory, Observed};
use crate::spec::{self, Role};

/// How a pod is being ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    grace: i64,
    since: Timestamp,
}

impl Worker {
    /// The pod was deleted: stops it, reports its end, takes it out of the API. `over`: it had ended before.
    pub(super) async fn end(&mut self, want: &Desired, observed: &Observed, over: bool) -> Next {
        let pod = &want.pod;
        let grace = if want.gone {
            pod.metadata
                .deletion_grace_period_seconds
                .unwrap_or(1)
                .max(1)
                .min(spec::grace_period_seconds(pod))
        } else {
            spec::grace_period_seconds(pod)
        };
        if !self.stop_everything(pod, observed, grace) {
            return if want.gone {
                Next::default()
            } else {
                self.report(pod, observed, false, Next::default()).await
            };
        }
        if !self.clean(pod, observed).await {
            return Next::default().at(self.after(RETRY));
        }
        if want.gone {
            self.remove(pod, observed).await;
            return Next { over: true, ..Next::default() };
        }
        if !over {
            let failed = self.report(pod, observed, true, Next::default()).await;
            if failed.at.is_some() {
                return failed;
            }
        }
        self.remove(pod, observed).await;
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            uid: Some(pod.uid().to_owned()),
            ..DeleteParams::default()
        };
        let client = &self.context.agent.client;
        match client.delete(&Pod::GVR, pod.namespace(), pod.name(), &params).await {
            Ok(_) => Next { over: true, ..Next::default() },
            Err(error) if error.is_not_found() || error.is_conflict() => {
                Next { over: true, ..Next::default() }
            }
            Err(error) => {
                tracing::warn!(pod = spec::describe(pod), %error, "the pod could not be deleted");
                Next::default().at(self.after(RETRY))
            }
        }
    }

    /// The pod failed as a whole: stops what runs, and reports.
    pub(super) async fn fail_pod(&mut self, want: &Desired, observed: &Observed) -> Next {
        let pod = &want.pod;
        let grace = self.verdict.as_ref().and_then(|verdict| verdict.grace_seconds);
        let over =
            self.stop_everything(pod, observed, grace.unwrap_or_else(|| spec::grace_period_seconds(pod)));
        if over {
            self.context.agent.discharge(pod.uid());
            if !self.clean(pod, observed).await {
                return Next::default().at(self.after(RETRY));
            }
        }
        let next = self.report(pod, observed, true, Next::default()).await;
        if over && next.at.is_none() {
            self.context.agent.note_end(pod.uid());
        }
        next
    }

    /// The pod ended earlier; only what may be left of it is taken away.
    pub(super) async fn rest(&mut self, pod: &Arc<Pod>, observed: &Observed) -> Next {
        self.context.agent.discharge(pod.uid());
        match self.clean(pod, observed).await {
            true => Next::default(),
            false => Next::default().at(self.after(RETRY)),
        }
    }

    /// Stops every container: sidecars after all others, in reverse order. True when nothing runs.
    pub(super) fn stop_everything(&mut self, pod: &Arc<Pod>, observed: &Observed, grace: i64) -> bool {
        let now = self.now();
        let first = self.ending.is_none();
        let ending = *self.ending.get_or_insert(Ending { grace, since: now });
        if first {
            // Nothing is started any more.
            self.abort_ops();
        } else if grace < ending.grace {
            // In a hurry now: what is being stopped gently is stopped again.
            self.ending = Some(Ending { grace, since: now });
            self.abort_ops();
        }
        let ending = self.ending.unwrap_or(ending);
        let elapsed = now.as_second() - ending.since.as_second();
        let remaining = (ending.grace - elapsed).max(1);
        let running: Vec<_> = observed.running().collect();
        let busy = |worker: &Worker, name: &str| {
            worker.context.memories.lock().get(name).is_some_and(Memory::in_flight)
        };
        let mut others =
            running.iter().filter(|container| Self::role(pod, &container.name) != Role::Sidecar).peekable();
        if others.peek().is_some() {
            for container in others {
                if !busy(self, &container.name) {
                    let message = format!("Stopping container {}", container.name);
                    self.spawn_stop(pod, &container.name, &container.id, remaining, message);
                }
            }
            return false;
        }
        let order = spec::containers(pod);
        let last = order.iter().rev().find_map(|(_, spec)| running.iter().find(|c| c.name == spec.name));
        if let Some(container) = last.or(running.last()) {
            if !busy(self, &container.name) {
                let message = format!("Stopping container {}", container.name);
                self.spawn_stop(pod, &container.name, &container.id, remaining, message);
            }
            return false;
        }
        !self.context.memories.lock().values().any(Memory::in_flight)
    }

    fn abort_ops(&mut self) {
        self.ops.drain().for_each(|(_, op)| op.abort());
        for memory in self.context.memories.lock().values_mut() {
            memory.busy = false;
        }
    }

    /// Stops sandboxes and takes volumes away, once. False when it has to be tried again.
    pub(super) async fn clean(&mut self, pod: &Arc<Pod>, observed: &Observed) -> bool {
        if self.cleaned {
            return true;
        }
        let agent = self.context.agent.clone();
        for sandbox in &observed.sandboxes {
            if let Err(error) = agent.runtime.stop_pod_sandbox(&sandbox.id).await {
                agent.recorder.warning(&**pod, "FailedKillPod", format!("error killing pod: {error}"));
                return false;
            }
        }
        if let Err(error) = agent.dra.unprepare(pod.uid()).await {
            tracing::debug!(pod = spec::describe(pod), error, "claims are still prepared");
            return false;
        }
        if let Err(error) = agent.volumes.unpublish(&self.dirs).await {
            agent.recorder.warning(&**pod, "FailedUnmount", error);
            return false;
        }
        // Last words lie in the pod's directory: they have been read by now.
        let (dirs, uid) = (self.dirs.clone(), pod.uid().to_owned());
        let torn = tokio::task::spawn_blocking(move || agent.volumes.tear_down(&uid, &dirs)).await;
        match torn {
            Ok(Ok(())) => {
                self.cleaned = true;
                self.mounted = None;
                true
            }
            Ok(Err(error)) => {
                tracing::warn!(pod = spec::describe(pod), %error, "volumes could not be taken away");
                false
            }
            Err(_) => false,
        }
    }

    /// Removes sandboxes with their containers, and the logs.
    async fn remove(&mut self, pod: &Pod, observed: &Observed) {
        let runtime = &self.context.agent.runtime;
        for container in observed.containers.iter().filter(|c| c.state != ContainerState::Running) {
            if let Err(error) = runtime.remove_container(&container.id).await {
                tracing::debug!(id = container.id, %error, "a container could not be removed");
            }
        }
        for sandbox in &observed.sandboxes {
            if let Err(error) = runtime.remove_pod_sandbox(&sandbox.id).await {
                tracing::warn!(pod = spec::describe(pod), %error, "a sandbox could not be removed");
            }
        }
        let root = &self.context.agent.config.cgroup_root;
        if !root.is_empty() {
            let path = crate::resources::cgroup_parent(root, pod);
            crate::cgroup::remove(std::path::Path::new(crate::cgroup::MOUNT), &path);
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dirs.logs)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(pod = spec::describe(pod), %error, "logs could not be removed");
        }
    }
}
