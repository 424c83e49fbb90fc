//! Stopping a container: preStop hook, signal, grace. Lifecycle hooks.

use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::core::v1::LifecycleHandler;
use api::prelude::*;
use reconcile::EventType;

use super::{Context, Worker};
use crate::probe::network;
use crate::spec;

/// Least grace after a preStop hook has used it up, in seconds (upstream's minimum).
const GRACE_AFTER_HOOK_MIN: i64 = 2;

impl Worker {
    /// Starts to stop a container; the worker is woken when it has ended.
    pub(super) fn spawn_stop(&mut self, pod: &Arc<Pod>, name: &str, id: &str, grace: i64, message: String) {
        {
            let mut memories = self.context.memories.lock();
            let memory = memories.entry(name.to_owned()).or_default();
            if memory.busy {
                return;
            }
            memory.busy = true;
        }
        let context = self.context.clone();
        let about = spec::container_reference(pod, Self::role(pod, name), name);
        context.agent.recorder.record(about, EventType::Normal, "Killing", message);
        let (pod, name, id) = (pod.clone(), name.to_owned(), id.to_owned());
        let key = name.clone();
        let task = tokio::spawn(async move {
            stop(&context, &pod, &name, &id, grace).await;
            if let Some(memory) = context.memories.lock().get_mut(&name) {
                memory.ended();
            }
            context.kick.notify_one();
        });
        self.ops.insert(key, task.abort_handle());
    }
}

/// Stops a container gently.
pub(super) async fn stop(context: &Context, pod: &Pod, name: &str, id: &str, grace: i64) {
    let agent = &context.agent;
    let begun = agent.clock.instant();
    let found = spec::find(pod, name);
    let hook = found.as_ref().and_then(|(_, container)| container.lifecycle.as_ref()?.pre_stop.clone());
    let mut remaining = grace;
    if let (Some(hook), Some((role, container)), true) = (hook, &found, grace > 0) {
        let host = pod_address(context, pod).await;
        let limit = Duration::from_secs(grace as u64);
        let outcome = tokio::time::timeout(limit, run_hook(context, &hook, container, id, &host)).await;
        let failed = match outcome {
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                tracing::debug!(pod = spec::describe(pod), name, error, "preStop hook failed");
                true
            }
            // It had the whole grace: nothing to report.
            Err(_) => false,
        };
        if failed {
            let about = spec::container_reference(pod, *role, name);
            agent.recorder.record(about, EventType::Warning, "FailedPreStopHook", "PreStopHook failed");
        }
        let used = agent.clock.instant().duration_since(begun).as_secs() as i64;
        remaining = (grace - used).max(GRACE_AFTER_HOOK_MIN);
    }
    let timeout = Duration::from_secs(remaining.max(0) as u64);
    if let Err(error) = agent.runtime.stop_container(id, timeout).await
        && !error.is_not_found()
    {
        tracing::warn!(pod = spec::describe(pod), name, %error, "a container could not be stopped");
        let message = format!("error killing pod: {error}");
        agent.recorder.warning(pod, "FailedKillPod", message);
    }
}

/// Address that hooks and probes of a pod go to.
pub(super) async fn pod_address(context: &Context, pod: &Pod) -> String {
    if spec::spec(pod).host_network == Some(true) {
        let ip = context.agent.host_ips().first();
        return ip.map_or("127.0.0.1".to_owned(), |ip| ip.to_string());
    }
    let labels = [(spec::mark::POD_UID.to_owned(), pod.uid().to_owned())].into();
    let filter = cri::PodSandboxFilter { labels, ..cri::PodSandboxFilter::default() };
    let sandboxes = context.agent.runtime.list_pod_sandboxes(&filter).await.unwrap_or_default();
    let newest = sandboxes.into_iter().max_by_key(|sandbox| sandbox.attempt);
    newest.and_then(|sandbox| sandbox.ips.first().map(|ip| ip.to_string())).unwrap_or_default()
}

/// Runs a lifecycle hook; an error is a sentence.
pub(super) async fn run_hook(
    context: &Context,
    hook: &LifecycleHandler,
    container: &Container,
    id: &str,
    host: &str,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let output = context.agent.runtime.exec_sync(id, &command, Duration::ZERO).await;
        let output = output.map_err(|error| error.to_string())?;
        return match output.exit_code {
            0 => Ok(()),
            code => Err(format!(
                "command '{}' exited with {code}: {}",
                command.join(" "),
                network::shorten(&[&output.stdout[..], &output.stderr[..]].concat())
            )),
        };
    }
    if let Some(action) = &hook.http_get {
        let probe = network::HttpProbe::new(action, container, host)?;
        return network::http(&probe, Duration::from_secs(24 * 3600)).await;
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    // tcpSocket is accepted by the API for the sake of old objects and has never done anything.
    match hook.tcp_socket {
        Some(_) => Ok(()),
        None => Err("invalid handler: no action".into()),
    }
}
