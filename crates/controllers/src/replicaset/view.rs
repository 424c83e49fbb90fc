//! ReplicaSet and ReplicationController as one shape, so that one loop serves both.

use api::k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use api::k8s_openapi::api::core::v1::{
    ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use api::prelude::*;
use meta::LabelSelector;
use reconcile::ControlError;

use super::plan::Counts;
use crate::owners;

/// Whether the last attempt to create or delete pods failed, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// `FailedCreate` or `FailedDelete`.
    pub reason: &'static str,
    /// The first error.
    pub message: String,
}

/// What the loop needs to know of a set.
pub trait Replicating: Typed {
    /// Number of pods wanted.
    fn replicas(&self) -> i32;
    /// Seconds a pod must be ready to be available.
    fn min_ready_seconds(&self) -> i32;
    /// The selector, compiled.
    fn selector(&self) -> Result<LabelSelector, ControlError>;
    /// The template of pods.
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// The object with a new status, or `None` if the status would stay as it is.
    fn with_status(&self, counts: Counts, failure: Option<&Failure>, now: &Time) -> Option<Self>;
}

impl Replicating for ReplicaSet {
    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }
    fn min_ready_seconds(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }
    fn selector(&self) -> Result<LabelSelector, ControlError> {
        owners::compile(&self.spec.selector)
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.template.as_ref()
    }
    fn with_status(&self, counts: Counts, failure: Option<&Failure>, now: &Time) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let mut conditions = old.conditions.clone().unwrap_or_default();
        let place = conditions.iter().position(|c| c.type_.as_deref() == Some("ReplicaFailure"));
        match (failure, place) {
            (None, Some(place)) => drop(conditions.remove(place)),
            (Some(failure), None) => conditions.push(ReplicaSetCondition {
                type_: Some("ReplicaFailure".into()),
                status: Some("True".into()),
                reason: Some(failure.reason.into()),
                message: Some(failure.message.clone()),
                last_transition_time: Some(now.clone()),
            }),
            _ => {}
        }
        let status = ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled).filter(|n| *n != 0),
            ready_replicas: Some(counts.ready).filter(|n| *n != 0),
            available_replicas: Some(counts.available).filter(|n| *n != 0),
            terminating_replicas: Some(counts.terminating),
            observed_generation: self.metadata.generation,
            conditions: Some(conditions).filter(|c| !c.is_empty()),
        };
        (Some(&status) != self.status.as_ref()).then(|| ReplicaSet { status: Some(status), ..self.clone() })
    }
}

impl Replicating for ReplicationController {
    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }
    fn selector(&self) -> Result<LabelSelector, ControlError> {
        let labels = self.spec.as_ref().and_then(|s| s.selector.clone());
        owners::compile(&api::prelude::LabelSelector { match_labels: labels, ..Default::default() })
    }
    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }
    fn with_status(&self, counts: Counts, failure: Option<&Failure>, now: &Time) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let mut conditions = old.conditions.clone().unwrap_or_default();
        let place = conditions.iter().position(|c| c.type_ == "ReplicaFailure");
        match (failure, place) {
            (None, Some(place)) => drop(conditions.remove(place)),
            (Some(failure), None) => conditions.push(ReplicationControllerCondition {
                type_: "ReplicaFailure".into(),
                status: "True".into(),
                reason: Some(failure.reason.into()),
                message: Some(failure.message.clone()),
                last_transition_time: Some(now.clone()),
            }),
            _ => {}
        }
        let status = ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: Some(counts.fully_labeled).filter(|n| *n != 0),
            ready_replicas: Some(counts.ready).filter(|n| *n != 0),
            available_replicas: Some(counts.available).filter(|n| *n != 0),
            observed_generation: self.metadata.generation,
            conditions: Some(conditions).filter(|c| !c.is_empty()),
        };
        (Some(&status) != self.status.as_ref())
            .then(|| ReplicationController { status: Some(status), ..self.clone() })
    }
}
