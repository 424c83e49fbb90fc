//! The two halves of a binding, and which claims a pod has.

use api::prelude::*;

use crate::{annotate, annotated, annotation, is_bound_to};

/// Promises a volume to a claim. `None` if it already is, by uid.
pub fn bind_volume(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<PersistentVolume> {
    let mut bound = volume.clone();
    let spec = bound.spec.get_or_insert_default();
    let promised = is_bound_to(volume, claim);
    let by_uid = spec.claim_ref.as_ref().is_some_and(|r| r.uid.as_deref() == Some(claim.uid()));
    if promised && by_uid {
        return None;
    }
    spec.claim_ref = Some(ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: Some(claim.namespace().into()),
        name: Some(claim.name().into()),
        uid: Some(claim.uid().into()),
        resource_version: Some(claim.resource_version().into()),
        ..ObjectReference::default()
    });
    if !promised {
        annotate(&mut bound.metadata, annotation::BOUND_BY_CONTROLLER, "yes");
    }
    Some(bound)
}

/// Gives a volume up again: a promise of the controller's is taken back whole, a person's keeps the name.
pub fn unbind_volume(volume: &PersistentVolume) -> PersistentVolume {
    let mut free = volume.clone();
    let ours = annotated(&volume.metadata, annotation::BOUND_BY_CONTROLLER).is_some();
    let Some(spec) = free.spec.as_mut() else { return free };
    if ours {
        spec.claim_ref = None;
        free.metadata.annotations.iter_mut().for_each(|a| {
            a.remove(annotation::BOUND_BY_CONTROLLER);
        });
    } else if let Some(to) = spec.claim_ref.as_mut() {
        to.uid = None;
        to.resource_version = None;
    }
    free
}

/// Names the volume in the claim. `None` if nothing changes.
pub fn bind_claim(claim: &PersistentVolumeClaim, volume: &str) -> Option<PersistentVolumeClaim> {
    let mut bound = claim.clone();
    let spec = bound.spec.get_or_insert_default();
    let mut changed = false;
    if spec.volume_name.as_deref() != Some(volume) {
        spec.volume_name = Some(volume.to_owned());
        annotate(&mut bound.metadata, annotation::BOUND_BY_CONTROLLER, "yes");
        changed = true;
    }
    changed |= annotate(&mut bound.metadata, annotation::BIND_COMPLETED, "yes");
    changed.then_some(bound)
}

/// Whether a claim of this class waits until a pod that uses it has a node.
pub fn is_delayed(claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> bool {
    annotated(&claim.metadata, annotation::SELECTED_NODE).is_none()
        && class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

/// Name of the claim behind a volume of a pod, and whether it is made for the pod.
pub fn claim_of(pod: &Pod, volume: &api::k8s_openapi::api::core::v1::Volume) -> Option<(String, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), false));
    }
    volume.ephemeral.as_ref().map(|_| (format!("{}-{}", pod.name(), volume.name), true))
}

/// Names of the claims that a pod uses, and whether each is made for the pod.
pub fn claim_names(pod: &Pod) -> Vec<(String, bool)> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(|volume| claim_of(pod, volume)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_binding_and_back() {
        let volume = PersistentVolume::from_value(json!({"metadata": {"name": "v"}, "spec": {}})).unwrap();
        let claim = PersistentVolumeClaim::from_value(
            json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}, "spec": {}}),
        )
        .unwrap();
        let bound = bind_volume(&volume, &claim).unwrap();
        assert!(is_bound_to(&bound, &claim) && bind_volume(&bound, &claim).is_none());
        assert_eq!(unbind_volume(&bound).encode()["spec"], json!({}));
        let mut kept = bound.clone();
        kept.metadata.annotations = None;
        let to = unbind_volume(&kept).spec.unwrap().claim_ref.unwrap();
        assert_eq!((to.name.as_deref(), to.uid), (Some("c"), None), "a person's promise stays");
        let named = bind_claim(&claim, "v").unwrap();
        assert!(annotated(&named.metadata, annotation::BOUND_BY_CONTROLLER).is_some());
        assert!(bind_claim(&named, "v").is_none());
    }
}
