//! How pods and their claims are tied: names, owners, reservations. Errors are sentences for people, in upstream's
//! words.

use api::k8s_openapi::api::core::v1::PodResourceClaim;
use api::k8s_openapi::api::resource::v1::{AllocationResult, DeviceClaim, ResourceClaimConsumerReference};
use api::prelude::*;

/// A claim that a pod refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Name of the claim.
    pub name: String,
    /// Whether it must have been made for the pod.
    pub own: bool,
}

/// Why a pod's claim has no name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unnamed {
    /// It is still to be made.
    NotYet(String),
    /// The pod says neither which one nor from what to make it.
    Unsupported(String),
}

impl std::fmt::Display for Unnamed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unnamed::NotYet(why) | Unnamed::Unsupported(why) => f.write_str(why),
        }
    }
}

/// The claims a pod has in its spec.
pub fn of_pod(pod: &Pod) -> &[PodResourceClaim] {
    pod.spec.as_ref().and_then(|s| s.resource_claims.as_deref()).unwrap_or_default()
}

/// The claim behind an entry of a pod's spec; `None` if it was found that none is needed.
pub fn reference(pod: &Pod, entry: &PodResourceClaim) -> Result<Option<Reference>, Unnamed> {
    let whom = format!("pod \"{}/{}\"", pod.namespace(), pod.name());
    if let Some(name) = &entry.resource_claim_name {
        return Ok(Some(Reference { name: name.clone(), own: false }));
    }
    if entry.resource_claim_template_name.is_none() {
        let why = "none of the supported fields are set";
        return Err(Unnamed::Unsupported(format!("{whom}, spec.resourceClaim {:?}: {why}", entry.name)));
    }
    let mut statuses = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
    match statuses.find(|status| status.name == entry.name) {
        Some(status) => Ok(status.resource_claim_name.clone().map(|name| Reference { name, own: true })),
        None => Err(Unnamed::NotYet(format!("{whom}: ResourceClaim not created yet"))),
    }
}

/// Name of the claim that the scheduler made for a pod's extended resources.
pub fn extended(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?.extended_resource_claim_status.as_ref()?;
    Some(status.resource_claim_name.as_str())
}

/// Whether a claim was made for a pod; an error says why not.
pub fn check_owner(pod: &Pod, claim: &ResourceClaim) -> Result<(), String> {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    if owners.any(|owner| owner.controller == Some(true) && owner.uid == pod.uid()) {
        return Ok(());
    }
    Err(format!("ResourceClaim {} was not created for Pod {} (Pod is not owner)", claim.key(), pod.key()))
}

/// What a claim asks for.
pub fn asks(claim: &ResourceClaim) -> Option<&DeviceClaim> {
    claim.spec.as_ref()?.devices.as_ref()
}

/// Who may use a claim.
pub fn reserved_for(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|s| s.reserved_for.as_deref()).unwrap_or_default()
}

/// Whether a pod may use a claim.
pub fn is_reserved_for(claim: &ResourceClaim, uid: &str) -> bool {
    reserved_for(claim).iter().any(|consumer| consumer.uid == uid)
}

/// What was allocated for a claim.
pub fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

/// A pod as a user of claims.
pub fn consumer(pod: &Pod) -> ResourceClaimConsumerReference {
    ResourceClaimConsumerReference {
        api_group: None,
        resource: "pods".into(),
        name: pod.name().to_owned(),
        uid: pod.uid().to_owned(),
    }
}
