//! Registering the node and keeping its status current.

use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};
use api::prelude::*;
use client::Patch;
use jiff::Timestamp;
use reconcile::{Event, EventType};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::object::{self, Inputs};
use crate::agent::Agent;

/// How often the node's state is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often the status is reported although nothing but its heartbeat changed.
const REPORT_SECONDS: i64 = 300;
/// Wait after a failure.
const RETRY: Duration = Duration::from_millis(500);
/// Longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(7);

/// Registers the node and reports its status, forever. `port` is that of the node's server.
pub async fn keep(agent: Arc<Agent>, port: u16, registered: tokio::sync::oneshot::Sender<()>) {
    let mut registered = Some(registered);
    let mut failures = 0;
    let patched = Arc::new(Notify::new());
    let notify = patched.clone();
    agent.node.on_event(move |event| {
        let capacity = |node: &Node| node.status.as_ref().and_then(|status| status.capacity.clone());
        if let Event::Updated { old, new } = event
            && capacity(old) != capacity(new)
        {
            notify.notify_one();
        }
    });
    let mut reported: Option<(Vec<NodeCondition>, String, Timestamp)> = None;
    loop {
        let wait = match report(&agent, port, &mut reported).await {
            Ok(()) => {
                failures = 0;
                if let Some(registered) = registered.take() {
                    let _ = registered.send(());
                }
                LOOK_EVERY
            }
            Err(error) => {
                tracing::warn!(%error, "the node's status could not be reported");
                failures += 1;
                stdx::Backoff { initial: RETRY, max: RETRY_MAX }.delay(failures)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // Somebody may have given the node something.
            () = patched.notified() => {}
            () = agent.changed.notified() => {}
        }
    }
}

/// The patch that makes `status` the node's, without the resources that are `gone`.
fn patch_of(status: &NodeStatus, gone: &[String]) -> Patch {
    let mut patch = json!({"status": status});
    for name in gone {
        patch["status"]["allocatable"][name] = Value::Null;
    }
    Patch::Strategic(patch)
}

async fn report(
    agent: &Agent,
    port: u16,
    reported: &mut Option<(Vec<NodeCondition>, String, Timestamp)>,
) -> client::Result<()> {
    let now = agent.clock.now();
    let not_ready = not_ready(agent).await;
    let images = agent.images.service().list().await.unwrap_or_default();
    let old = reported.as_ref().map(|(conditions, _, _)| conditions.clone()).unwrap_or_default();
    let devices = agent.devices.amounts();
    let mut status = object::status(&Inputs {
        config: &agent.config,
        machine: &agent.machine,
        images: &images,
        pressure: agent.pressure(),
        runtime: &agent.runtime_info,
        not_ready: not_ready.as_deref(),
        devices: &devices,
        port,
        old: &old,
        now,
    });
    let name = &agent.config.node_name;
    let own = agent.node.store().get(name).and_then(|node| node.status.clone()).unwrap_or_default();
    let mut gone = Vec::new();
    // What plugins give is counted by them, not by what somebody wrote into the node.
    let mut ours = agent.machine.capacity(&agent.config);
    ours.extend(devices.into_iter().map(|(resource, (all, _))| (resource, all)));
    for (resource, value) in object::extended(&own, &ours) {
        match (value, &mut status.allocatable) {
            (Some(value), Some(allocatable)) => drop(allocatable.insert(resource, value)),
            _ => gone.push(resource),
        }
    }
    // Heartbeats alone are no news: the lease is for that.
    let mut essence = status.clone();
    for condition in essence.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
    }
    let essence = serde_json::to_string(&essence).unwrap_or_default();
    if let Some((_, before, at)) = reported
        && *before == essence
        && gone.is_empty()
        && now.as_second() - at.as_second() < REPORT_SECONDS
    {
        return Ok(());
    }
    if reported.is_none() {
        let existing = agent.client.get_typed::<Node>("", name).await;
        match existing {
            Ok(node) => {
                let kept = node.status.and_then(|status| status.conditions).unwrap_or_default();
                status.conditions =
                    Some(object::conditions(&kept, agent.pressure(), not_ready.as_deref(), now));
                let labels = object::labels(&agent.config);
                let patch = Patch::Strategic(json!({"metadata": {"labels": labels}}));
                agent.client.patch(&Node::GVR, "", name, "", &patch).await?;
                agent.client.patch(&Node::GVR, "", name, "status", &patch_of(&status, &gone)).await?;
            }
            Err(error) if error.is_not_found() => {
                agent.client.create_typed(&object::node(&agent.config, status.clone())).await?;
                // A server may leave the status out of what it creates.
                agent.client.patch(&Node::GVR, "", name, "status", &patch_of(&status, &[])).await?;
            }
            Err(error) => return Err(error),
        }
    } else {
        agent.client.patch(&Node::GVR, "", name, "status", &patch_of(&status, &gone)).await?;
    }
    let conditions = status.conditions.unwrap_or_default();
    for reason in object::transitions(&old, &conditions) {
        let message = format!("Node {name} status is now: {reason}");
        agent.recorder.record(reference(name), EventType::Normal, reason, message);
    }
    *reported = Some((conditions, essence, now));
    Ok(())
}

/// How events refer to a node: by name, which is also its uid there.
pub fn reference(name: &str) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".into()),
        name: Some(name.to_owned()),
        uid: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

/// Why no pods can run here now.
async fn not_ready(agent: &Agent) -> Option<String> {
    if agent.is_shutting_down() {
        return Some(crate::shutdown::NOT_READY.into());
    }
    match agent.runtime.info().await {
        Ok(info) if !info.runtime_ready => Some(format!(
            "container runtime not ready: RuntimeReady=false reason:RuntimeNotReady message:{}",
            info.message
        )),
        Ok(info) if !info.network_ready => Some(format!(
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{}",
            info.message
        )),
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(%error, "the container runtime does not answer");
            Some("container runtime is down".into())
        }
    }
}
