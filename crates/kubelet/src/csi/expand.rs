//! Volumes that have been made larger: the node's part, which makes the file system as large, and says so in the
//! claim's status.

use api::prelude::*;
use client::Patch;
use rpc::csi::{CapacityRange, NodeExpandVolumeRequest};
use rpc::tonic::Code;
use serde_json::{Value, json};

use super::request;
use super::volume::{CsiVolumes, Publish, ask};
use crate::volume::problem::Problem;

/// How a claim's growth stands on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing to be done here.
    Rest,
    /// To be done, now or again.
    Wanted,
    /// It cannot be done: it is tried no more until somebody asks for another size.
    Infeasible,
}

fn state(claim: &PersistentVolumeClaim) -> State {
    let status = claim.status.as_ref();
    let of_node =
        status.and_then(|s| s.allocated_resource_statuses.as_ref()?.get("storage")).map(String::as_str);
    let mut conditions = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    let pending = conditions.any(|c| c.type_ == "FileSystemResizePending" && c.status == "True");
    match of_node {
        Some("NodeResizePending" | "NodeResizeInProgress") => State::Wanted,
        Some("NodeResizeInfeasible" | "NodeResizeFailed") => State::Infeasible,
        Some(_) => State::Rest,
        None if pending => State::Wanted,
        None => State::Rest,
    }
}

/// What the status becomes when the node begins.
fn begun() -> Value {
    json!({"status": {"allocatedResourceStatuses": {"storage": "NodeResizeInProgress"}}})
}

/// What it becomes when the volume cannot be made that large, in upstream's words.
fn failed(claim: &PersistentVolumeClaim, infeasible: bool, why: &str) -> Value {
    let now = if infeasible { "NodeResizeInfeasible" } else { "NodeResizeInProgress" };
    let kept = claim.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let mut conditions: Vec<Value> = kept
        .iter()
        .filter(|c| c.type_ != "NodeResizeError")
        .map(|c| serde_json::to_value(c).unwrap_or_default())
        .collect();
    conditions.push(json!({"type": "NodeResizeError", "status": "True", "message": why}));
    json!({"status": {"allocatedResourceStatuses": {"storage": now}, "conditions": conditions}})
}

/// What it becomes when the volume is that large.
fn done(claim: &PersistentVolumeClaim, capacity: &Quantity) -> Value {
    let over = ["FileSystemResizePending", "Resizing", "NodeResizeError", "ControllerResizeError"];
    let kept = claim.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let left: Vec<_> = kept.into_iter().filter(|c| !over.contains(&c.type_.as_str())).collect();
    let conditions = if left.is_empty() { Value::Null } else { json!(left) };
    json!({"status": {"capacity": {"storage": capacity}, "conditions": conditions,
        "allocatedResourceStatuses": Value::Null}})
}

impl CsiVolumes {
    /// Lets the driver make a file system as large as its volume has become.
    pub(super) async fn expand(&self, publish: &Publish<'_>) -> Result<(), Problem> {
        let Publish { wanted, source, driver, capability, staging, target, .. } = publish;
        let (claim, name) = (wanted.claim, wanted.volume.name());
        let capacity = wanted.volume.spec.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage"));
        let Some(capacity) = capacity.filter(|_| state(claim) == State::Wanted) else { return Ok(()) };
        let what = |why: String| Problem::during("FileSystemResizeFailed", "NodeExpandVolume", name, why);
        self.claim_status(claim, begun()).await.map_err(what)?;
        let secrets = self.secrets(source.node_expand_secret_ref.as_ref(), "NodeExpandSecretRef").await;
        let expand = NodeExpandVolumeRequest {
            volume_id: source.volume_handle.clone(),
            volume_path: target.display().to_string(),
            capacity_range: Some(CapacityRange {
                required_bytes: volumes::quantity(capacity).value(),
                ..CapacityRange::default()
            }),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some((*capability).clone()),
            secrets: secrets.map_err(what)?,
        };
        if let Err(status) = ask(driver.node().node_expand_volume(expand)).await {
            let infeasible =
                matches!(status.code(), Code::InvalidArgument | Code::OutOfRange | Code::NotFound);
            let why = request::say(&status);
            let said = format!("NodeExpandVolume.NodeExpandVolume failed for volume {name:?} : {why}");
            self.recorder.warning(wanted.pod, "VolumeResizeFailed", said.clone());
            self.recorder.warning(claim, "VolumeResizeFailed", said);
            self.claim_status(claim, failed(claim, infeasible, &why)).await.map_err(what)?;
            // A volume that is in use, or too large a wish, is no reason to keep the pod from running.
            return match infeasible || status.code() == Code::FailedPrecondition {
                true => Ok(()),
                false => Err(what(why)),
            };
        }
        self.claim_status(claim, done(claim, capacity)).await.map_err(what)?;
        let said = format!("MountVolume.NodeExpandVolume succeeded for volume {name:?} {}", self.node);
        self.recorder.normal(wanted.pod, "FileSystemResizeSuccessful", said.clone());
        self.recorder.normal(claim, "FileSystemResizeSuccessful", said);
        Ok(())
    }

    async fn claim_status(&self, claim: &PersistentVolumeClaim, change: Value) -> Result<(), String> {
        let patch = Patch::Merge(change);
        let patched = self
            .client
            .patch(&PersistentVolumeClaim::GVR, claim.namespace(), claim.name(), "status", &patch)
            .await;
        patched.map(drop).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(status: Value) -> PersistentVolumeClaim {
        PersistentVolumeClaim::from_value(json!({"metadata": {"name": "c"}, "status": status})).unwrap()
    }

    #[test]
    fn the_nodes_part() {
        let pending = json!([{"type": "FileSystemResizePending", "status": "True"}]);
        let with =
            |state: &str| json!({"allocatedResourceStatuses": {"storage": state}, "conditions": pending});
        for (status, expected) in [
            (json!({}), State::Rest),
            (json!({"conditions": pending}), State::Wanted),
            (with("NodeResizePending"), State::Wanted),
            (with("NodeResizeInProgress"), State::Wanted),
            (with("NodeResizeInfeasible"), State::Infeasible),
            (with("ControllerResizeInProgress"), State::Rest),
        ] {
            assert_eq!(state(&claim(status.clone())), expected, "{status}");
        }
    }

    #[test]
    fn what_the_claim_says() {
        let conditions = json!([{"type": "FileSystemResizePending", "status": "True"}, {"type": "Mine", "status": "True"}]);
        let before = claim(json!({"conditions": conditions}));
        let done = done(&before, &Quantity("2Gi".into()));
        assert_eq!(done["status"]["conditions"], json!([{"type": "Mine", "status": "True"}]));
        assert_eq!(done["status"]["capacity"]["storage"], "2Gi");
        let failed = failed(&before, true, "no");
        assert_eq!(failed["status"]["allocatedResourceStatuses"]["storage"], "NodeResizeInfeasible");
        assert_eq!(failed["status"]["conditions"][2]["message"], "no");
    }
}
