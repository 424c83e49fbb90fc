//! TaintNodesByCondition: a new node takes no pods until it has said that it is ready.

use meta::Status;
use serde_json::json;

use crate::{Cluster, Object, Plugin, Request, child, list};

/// The taint of a node that is not ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// The plugin.
pub struct TaintByCondition;

impl Plugin for TaintByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Mutate]
    }

    fn mutate(
        &self,
        request: &Request<'_>,
        object: &mut Object,
        _: Option<&Object>,
        _: &dyn Cluster,
    ) -> Result<(), Status> {
        if (request.group, request.resource, request.operation) != ("", "nodes", "CREATE") {
            return Ok(());
        }
        let taints = list(child(object, "spec"), "taints");
        if !taints.iter().any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule") {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}
