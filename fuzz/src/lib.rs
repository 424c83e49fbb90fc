//! What the targets share: which kind an input is about, and objects to change.

use schema::{Schema, TypeId};
use serde_json::{Map, Value};

/// Kinds with every sort of field: the first byte of an input chooses.
const KINDS: &[(&str, &str, &str)] = &[
    ("", "v1", "Pod"),
    ("apps", "v1", "Deployment"),
    ("", "v1", "Service"),
    ("", "v1", "Secret"),
    ("batch", "v1", "Job"),
    ("networking.k8s.io", "v1", "Ingress"),
    ("", "v1", "Node"),
    ("", "v1", "PersistentVolume"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
    ("autoscaling", "v2", "HorizontalPodAutoscaler"),
    ("events.k8s.io", "v1", "Event"),
    ("policy", "v1", "PodDisruptionBudget"),
    ("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy"),
];

/// A Pod with most kinds of merging in it.
pub const POD: &str = include_str!("../seeds/pod.json");

/// The kind that an input is about, and the rest of the input.
pub fn kind(input: &[u8]) -> Option<(TypeId, &[u8])> {
    let (first, rest) = input.split_first()?;
    let (group, version, kind) = KINDS[usize::from(*first) % KINDS.len()];
    Some((Schema::builtin().kind(group, version, kind)?, rest))
}

/// The Pod as a value.
pub fn pod() -> Map<String, Value> {
    serde_json::from_str(POD).unwrap_or_default()
}
