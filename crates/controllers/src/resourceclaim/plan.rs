//! Decisions about claims: which ones a pod lacks, whose reservations still count, and what is no longer needed.

use api::k8s_openapi::api::core::v1::PodResourceClaim;
use api::k8s_openapi::api::resource::v1::ResourceClaimConsumerReference;
use api::prelude::*;
use devices::{FINALIZER, POD_CLAIM, claims};

use crate::pods;

/// Longest start of a generated name: a hyphen and five characters follow.
const BASE_MAX: usize = 57;

/// Whether a pod will not run any more: it has ended, or is deleted before it had a node.
pub fn is_done(pod: &Pod) -> bool {
    pods::is_finished(pod) || (pod.is_terminating() && pods::node_name(pod).is_empty())
}

/// Keys of the claims a pod refers to, as far as they are known.
pub fn claim_keys(pod: &Pod) -> Vec<String> {
    let named = claims::of_pod(pod).iter().filter_map(|entry| claims::reference(pod, entry).ok().flatten());
    let names = named.map(|reference| reference.name).chain(claims::extended(pod).map(str::to_owned));
    names.map(|name| format!("{}/{name}", pod.namespace())).collect()
}

/// Keys of the templates a pod refers to.
pub fn template_keys(pod: &Pod) -> Vec<String> {
    let names = claims::of_pod(pod).iter().filter_map(|entry| entry.resource_claim_template_name.as_ref());
    names.map(|name| format!("{}/{name}", pod.namespace())).collect()
}

/// The pod that a claim was made for: its name and uid.
pub fn owner(claim: &ResourceClaim) -> Option<(&str, &str)> {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    let owner = owners.find(|o| o.controller == Some(true) && o.kind == "Pod" && o.api_version == "v1")?;
    Some((&owner.name, &owner.uid))
}

/// Whether a claim was made for this entry of its owner's spec.
pub fn is_for(claim: &ResourceClaim, entry: &PodResourceClaim) -> bool {
    claim.metadata.annotations.as_ref().and_then(|a| a.get(POD_CLAIM)) == Some(&entry.name)
}

/// The start of the name of a pod's claim. What is too long is cut from both parts alike.
fn base(pod: &str, entry: &str) -> String {
    let whole = format!("{pod}-{entry}-");
    if whole.len() <= BASE_MAX {
        return whole;
    }
    let cut = |text: &str| text.get(..text.len() * BASE_MAX / whole.len()).unwrap_or(text).to_owned();
    format!("{}-{}", cut(pod), cut(entry))
}

/// A claim made from a template for an entry of a pod's spec.
pub fn claim(pod: &Pod, entry: &PodResourceClaim, template: &ResourceClaimTemplate) -> ResourceClaim {
    let template = template.spec.clone().unwrap_or_default();
    let given = template.metadata.unwrap_or_default();
    let mut annotations = given.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM.to_owned(), entry.name.clone());
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(base(pod.name(), &entry.name)),
            namespace: Some(pod.namespace().to_owned()),
            labels: given.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Pod".into(),
                name: pod.name().to_owned(),
                uid: pod.uid().to_owned(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// What is to be done with a claim once it is known whose reservations still count.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Its status is to be written: reservations have gone, or the allocation.
    Status(Box<ResourceClaim>),
    /// Its finalizer is to go.
    Release(Box<ResourceClaim>),
}

/// The next step for a claim. `freed`: its devices have just been given back.
pub fn step(claim: &ResourceClaim, valid: Vec<ResourceClaimConsumerReference>, freed: bool) -> Option<Step> {
    let reserved = claims::reserved_for(claim).len();
    let mut finalizers = claim.metadata.finalizers.iter().flatten();
    let kept = finalizers.any(|finalizer| finalizer == FINALIZER);
    let mut next = Box::new(claim.clone());
    if valid.len() < reserved {
        let status = next.status.get_or_insert_default();
        // Devices go back when the last user has gone, so that the next one may have others.
        if valid.is_empty() && kept {
            status.allocation = None;
        }
        status.reserved_for = Some(valid).filter(|users| !users.is_empty());
        return Some(Step::Status(next));
    }
    if !kept || !valid.is_empty() {
        return None;
    }
    if claims::allocation(claim).is_none() {
        // The scheduler adds the finalizer before it writes what it has allocated.
        if !freed && !claim.is_terminating() {
            return None;
        }
        next.metadata.finalizers.iter_mut().for_each(|list| list.retain(|f| f != FINALIZER));
        return Some(Step::Release(next));
    }
    if claim.is_terminating() {
        next.status.get_or_insert_default().allocation = None;
        return Some(Step::Status(next));
    }
    // Allocated and not used yet: somebody did that on purpose, or is about to use it.
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: Value) -> Pod {
        let mut all = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}});
        all.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        Pod::from_value(all).unwrap()
    }

    #[test]
    fn names_are_cut() {
        assert_eq!(base("pod", "gpu"), "pod-gpu-");
        let long = base(&"p".repeat(60), &"c".repeat(40));
        assert_eq!(long, format!("{}-{}", "p".repeat(33), "c".repeat(22)));
    }

    #[test]
    fn claims_from_templates() {
        let entry: PodResourceClaim = PodResourceClaim { name: "gpu".into(), ..PodResourceClaim::default() };
        let template = ResourceClaimTemplate::from_value(json!({"metadata": {"name": "t"}, "spec": {
            "metadata": {"labels": {"a": "b"}, "annotations": {"x": "y"}},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}}}))
        .unwrap();
        let made = claim(&pod(json!({})), &entry, &template);
        assert!(is_for(&made, &entry) && owner(&made) == Some(("p", "u")));
        assert_eq!(made.metadata.annotations.unwrap().len(), 2);
        assert_eq!(made.metadata.generate_name.as_deref(), Some("p-gpu-"));
        assert!(made.spec.unwrap().devices.unwrap().requests.is_some());
    }

    #[test]
    fn pods_that_are_done() {
        for (value, done) in [
            (json!({"status": {"phase": "Running"}}), false),
            (json!({"status": {"phase": "Succeeded"}}), true),
            (json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}}), true),
            (
                json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"containers": [], "nodeName": "x"}}),
                false,
            ),
        ] {
            assert_eq!(is_done(&pod(value.clone())), done, "{value}");
        }
    }

    #[test]
    fn steps() {
        let user = |uid: &str| json!({"resource": "pods", "name": uid, "uid": uid});
        let of = |finalizer: bool, deleted: bool, allocated: bool, users: &[&str]| {
            let mut value = json!({"metadata": {"name": "c"}, "spec": {}, "status": {
                "reservedFor": users.iter().map(|u| user(u)).collect::<Vec<_>>()}});
            if finalizer {
                value["metadata"]["finalizers"] = json!([FINALIZER]);
            }
            if deleted {
                value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            if allocated {
                value["status"]["allocation"] = json!({});
            }
            ResourceClaim::from_value(value).unwrap()
        };
        let shown = |claim: ResourceClaim, left: usize| {
            let valid = claims::reserved_for(&claim)[..left].to_vec();
            match step(&claim, valid, false) {
                None => "-".to_owned(),
                Some(Step::Release(_)) => "release".into(),
                Some(Step::Status(next)) => {
                    format!("{} {}", claims::reserved_for(&next).len(), claims::allocation(&next).is_some())
                }
            }
        };
        assert_eq!(shown(of(true, false, true, &["a", "b"]), 2), "-");
        assert_eq!(shown(of(true, false, true, &["a", "b"]), 1), "1 true");
        assert_eq!(shown(of(true, false, true, &["a"]), 0), "0 false");
        assert_eq!(shown(of(false, false, true, &["a"]), 0), "0 true", "somebody else's allocation");
        assert_eq!(shown(of(true, true, false, &[]), 0), "release");
        assert_eq!(shown(of(true, false, false, &[]), 0), "-", "about to be allocated");
        assert!(matches!(step(&of(true, false, false, &[]), Vec::new(), true), Some(Step::Release(_))));
        assert_eq!(shown(of(true, false, true, &[]), 0), "-");
        assert_eq!(shown(of(true, true, true, &[]), 0), "0 false");
    }
}
