//! Who owns the claims of a StatefulSet: by the retention policy they go with the set, with their pod when
//! the set shrinks, or stay.

use api::prelude::*;

use crate::owners;

/// The fate of a claim, by the owner references that bring it about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    GoesWithSet,
    GoesWithPod,
}

fn fate(set: &StatefulSet, condemned: bool) -> Fate {
    let policy = set.spec.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
    let deletes = |when: Option<String>| when.as_deref() == Some("Delete");
    match (deletes(policy.when_scaled), deletes(policy.when_deleted)) {
        (true, _) if condemned => Fate::GoesWithPod,
        (_, true) => Fate::GoesWithSet,
        _ => Fate::Stays,
    }
}

/// Whether any claim of the set may have an owner.
pub fn applies(set: &StatefulSet) -> bool {
    set.spec.volume_claim_templates.as_ref().is_some_and(|t| !t.is_empty())
}

/// The claim with the owners it should have, if they are not those it has. A claim that somebody else
/// controls is left alone.
pub fn adjusted(
    set: &StatefulSet,
    pod: Option<&Pod>,
    claim: &PersistentVolumeClaim,
    condemned: bool,
) -> Option<PersistentVolumeClaim> {
    let (set_uid, pod_uid) = (set.uid(), pod.map(Typed::uid).unwrap_or_default());
    let ours = |owner: &OwnerReference| owner.uid == set_uid || (!pod_uid.is_empty() && owner.uid == pod_uid);
    let present: Vec<OwnerReference> = claim.metadata.owner_references.clone().unwrap_or_default();
    if present.iter().any(|owner| owner.controller == Some(true) && !ours(owner)) {
        return None;
    }
    let wanted = match fate(set, condemned) {
        Fate::Stays => None,
        Fate::GoesWithSet => Some(owners::controller_reference(&StatefulSet::GVK, &set.metadata)),
        Fate::GoesWithPod => pod.map(|pod| owners::controller_reference(&Pod::GVK, &pod.metadata)),
    };
    let mut owners: Vec<OwnerReference> = present.iter().filter(|owner| !ours(owner)).cloned().collect();
    owners.extend(wanted);
    if owners == present {
        return None;
    }
    let mut claim = claim.clone();
    claim.metadata.owner_references = Some(owners).filter(|o| !o.is_empty());
    Some(claim)
}

/// Whether a claim still belongs to an earlier pod of the same name and will go with it.
pub fn is_stale(claim: &PersistentVolumeClaim, pod_name: &str) -> bool {
    claim.is_terminating()
        || claim
            .metadata
            .owner_references
            .iter()
            .flatten()
            .any(|owner| owner.kind == "Pod" && owner.name == pod_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn owners_of(
        scaled: &str,
        deleted: &str,
        condemned: bool,
        before: serde_json::Value,
    ) -> Option<Vec<String>> {
        let set = StatefulSet::from_value(json!({"metadata": {"name": "s", "uid": "s"}, "spec": {
            "selector": {}, "template": {}, "serviceName": "",
            "persistentVolumeClaimRetentionPolicy": {"whenScaled": scaled, "whenDeleted": deleted}}}))
        .unwrap();
        let pod = Pod::from_value(json!({"metadata": {"name": "s-0", "uid": "p"}})).unwrap();
        let claim =
            PersistentVolumeClaim::from_value(json!({"metadata": {"name": "c", "ownerReferences": before}}))
                .unwrap();
        let adjusted = adjusted(&set, Some(&pod), &claim, condemned)?;
        Some(adjusted.metadata.owner_references.unwrap_or_default().into_iter().map(|o| o.kind).collect())
    }

    #[test]
    fn policies_become_owners() {
        let none = || json!([]);
        let owner =
            |kind: &str, uid: &str| json!([{"apiVersion": "v1", "kind": kind, "name": "x", "uid": uid}]);
        let kinds = |k: &[&str]| Some(k.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>());
        assert_eq!(owners_of("Retain", "Retain", false, none()), None);
        assert_eq!(owners_of("Retain", "Retain", true, none()), None);
        assert_eq!(owners_of("Retain", "Delete", false, none()), kinds(&["StatefulSet"]));
        assert_eq!(owners_of("Retain", "Delete", true, none()), kinds(&["StatefulSet"]));
        assert_eq!(owners_of("Delete", "Retain", false, none()), None);
        assert_eq!(owners_of("Delete", "Retain", true, none()), kinds(&["Pod"]));
        assert_eq!(owners_of("Delete", "Delete", false, none()), kinds(&["StatefulSet"]));
        assert_eq!(owners_of("Delete", "Delete", true, owner("StatefulSet", "s")), kinds(&["Pod"]));
        assert_eq!(owners_of("Delete", "Delete", false, owner("Pod", "p")), kinds(&["StatefulSet"]));
        assert_eq!(owners_of("Retain", "Retain", false, owner("Pod", "p")), kinds(&[]));
        let mut other = owner("Backup", "b");
        assert_eq!(owners_of("Retain", "Delete", false, other.clone()), kinds(&["Backup", "StatefulSet"]));
        other[0]["controller"] = true.into();
        assert_eq!(owners_of("Retain", "Delete", false, other), None);
    }
}
