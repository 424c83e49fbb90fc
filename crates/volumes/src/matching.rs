//! Which volume a claim gets: the smallest that fits.

use std::sync::Arc;

use api::k8s_openapi::api::core::v1::{PersistentVolumeClaimSpec, PersistentVolumeSpec};
use api::prelude::*;
use meta::selector::LabelSelector as Selector;

use crate::NodeTerm;

/// A quantity as a number; nothing for text that is none.
pub fn quantity(quantity: &Quantity) -> meta::Quantity {
    meta::Quantity::parse(&quantity.0).unwrap_or(meta::Quantity::from_units(0))
}

/// The `storage` entry of a list of resources.
pub fn storage(list: Option<&std::collections::BTreeMap<String, Quantity>>) -> Option<meta::Quantity> {
    list?.get("storage").map(quantity)
}

fn requested(spec: &PersistentVolumeClaimSpec) -> Option<meta::Quantity> {
    storage(spec.resources.as_ref()?.requests.as_ref())
}

/// Whether a volume is promised to a claim, by name or already by uid.
pub fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(to) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return false };
    let uid = to.uid.as_deref().unwrap_or_default();
    to.name.as_deref() == Some(claim.name())
        && to.namespace.as_deref() == Some(claim.namespace())
        && (uid.is_empty() || uid == claim.uid())
}

/// Whether a volume can be used from a node.
pub fn allows_node(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required.as_ref());
    required.is_none_or(|r| r.node_selector_terms.iter().any(|term| NodeTerm::compile(term).matches(node)))
}

/// Why a volume that was asked for by name will not do for a claim.
pub fn check(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), &'static str> {
    let (Some(has), Some(wants)) = (&volume.spec, &claim.spec) else {
        return Err("requested PV is too small");
    };
    if storage(has.capacity.as_ref()) < requested(wants) {
        return Err("requested PV is too small");
    }
    if text(&has.storage_class_name) != text(&wants.storage_class_name) {
        return Err("storageClassName does not match");
    }
    if text(&has.volume_attributes_class_name) != text(&wants.volume_attributes_class_name) {
        return Err("volumeAttributesClassName does not match");
    }
    if mode(&has.volume_mode) != mode(&wants.volume_mode) {
        return Err("incompatible volumeMode");
    }
    if !offers_modes(has, wants) {
        return Err("incompatible accessMode");
    }
    Ok(())
}

fn text(field: &Option<String>) -> &str {
    field.as_deref().unwrap_or_default()
}

fn mode(field: &Option<String>) -> &str {
    field.as_deref().unwrap_or("Filesystem")
}

fn offers_modes(has: &PersistentVolumeSpec, wants: &PersistentVolumeClaimSpec) -> bool {
    let offered = has.access_modes.as_deref().unwrap_or_default();
    wants.access_modes.iter().flatten().all(|mode| offered.contains(mode))
}

fn selected(volume: &PersistentVolume, wants: &PersistentVolumeClaimSpec) -> bool {
    let Some(selector) = &wants.selector else { return true };
    let compiled = serde_json::to_value(selector).ok().and_then(|json| Selector::from_json(&json).ok());
    let labels = volume.metadata.labels.as_ref();
    compiled.is_some_and(|s| s.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str)))
}

/// The volume a claim gets: the one promised to it, else the smallest that fits. With a node, one that can be used
/// from there; without, a claim that is `delayed` gets only what it was promised. Volumes in `taken` are others'
/// by decisions that are not written yet.
pub fn best_match(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    node: Option<&Node>,
    delayed: bool,
    taken: &dyn Fn(&str) -> bool,
) -> Option<Arc<PersistentVolume>> {
    let wants = claim.spec.as_ref()?;
    let mut best: Option<(meta::Quantity, &Arc<PersistentVolume>)> = None;
    for volume in volumes {
        let Some(has) = &volume.spec else { continue };
        let promised = is_bound_to(volume, claim);
        let others = has.claim_ref.is_some() && !promised;
        if others || volume.is_terminating() || taken(volume.name()) {
            continue;
        }
        let Some(capacity) = storage(has.capacity.as_ref()) else { continue };
        let fits = requested(wants).is_none_or(|r| capacity >= r)
            && mode(&has.volume_mode) == mode(&wants.volume_mode)
            && text(&has.volume_attributes_class_name) == text(&wants.volume_attributes_class_name);
        if !fits {
            continue;
        }
        let reachable = node.is_none_or(|node| allows_node(volume, node));
        if promised {
            return reachable.then(|| volume.clone());
        }
        let available = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available");
        let suits = (node.is_some() || !delayed)
            && available
            && reachable
            && selected(volume, wants)
            && text(&has.storage_class_name) == text(&wants.storage_class_name)
            && offers_modes(has, wants);
        if suits && best.as_ref().is_none_or(|(least, _)| capacity < *least) {
            best = Some((capacity, volume));
        }
    }
    best.map(|(_, volume)| volume.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
        let mut spec = json!({"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let object = json!({"metadata": {"name": name, "labels": {"disk": name}}, "spec": spec,
            "status": {"phase": "Available"}});
        Arc::new(PersistentVolume::from_value(object).unwrap())
    }

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut spec =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let metadata = json!({"name": "c", "namespace": "n", "uid": "u"});
        PersistentVolumeClaim::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn the_smallest_that_fits() {
        let on = |node: &str| {
            json!({"required": {"nodeSelectorTerms": [{"matchExpressions":
            [{"key": "host", "operator": "In", "values": [node]}]}]}})
        };
        let volumes = [
            volume("small", "1Gi", json!({})),
            volume("large", "50Gi", json!({})),
            volume("right", "6Gi", json!({})),
            volume("block", "5Gi", json!({"volumeMode": "Block"})),
            volume("many", "7Gi", json!({"accessModes": ["ReadWriteOnce", "ReadWriteMany"]})),
            volume("fast", "5Gi", json!({"storageClassName": "fast"})),
            volume("theirs", "5Gi", json!({"claimRef": {"namespace": "n", "name": "other"}})),
            volume("here", "8Gi", json!({"storageClassName": "local", "nodeAffinity": on("a")})),
            volume("there", "8Gi", json!({"storageClassName": "far", "nodeAffinity": on("b")})),
            volume("kept", "9Gi", json!({"claimRef": {"namespace": "n", "name": "kept", "uid": ""}})),
        ];
        let node = Node::from_value(json!({"metadata": {"name": "a", "labels": {"host": "a"}}})).unwrap();
        for (wants, node, delayed, expected) in [
            (json!({}), None, false, "right"),
            (json!({}), None, true, "-"),
            (json!({}), Some(&node), true, "right"),
            (json!({"volumeMode": "Block"}), None, false, "block"),
            (json!({"accessModes": ["ReadWriteMany"]}), None, false, "many"),
            (json!({"storageClassName": "fast"}), None, false, "fast"),
            (json!({"storageClassName": "local"}), Some(&node), true, "here"),
            (json!({"storageClassName": "far"}), Some(&node), true, "-"),
            (json!({"selector": {"matchLabels": {"disk": "large"}}}), None, false, "large"),
            (json!({"resources": {"requests": {"storage": "1Ti"}}}), None, false, "-"),
        ] {
            let found = best_match(&claim(wants.clone()), &volumes, node, delayed, &|_| false);
            assert_eq!(found.as_ref().map_or("-", |v| v.name()), expected, "{wants}");
        }
        let mut kept = claim(json!({}));
        kept.metadata.name = Some("kept".into());
        let found = best_match(&kept, &volumes, None, true, &|_| false);
        assert_eq!(found.unwrap().name(), "kept", "promised ones go first");
        assert_eq!(
            best_match(&claim(json!({})), &volumes, None, false, &|n| n == "right").unwrap().name(),
            "many"
        );
    }

    #[test]
    fn volumes_asked_for_by_name_are_checked() {
        for (has, wants, expected) in [
            (json!({}), json!({}), Ok(())),
            (json!({"capacity": {"storage": "1Gi"}}), json!({}), Err("requested PV is too small")),
            (json!({"storageClassName": "a"}), json!({}), Err("storageClassName does not match")),
            (json!({}), json!({"volumeMode": "Block"}), Err("incompatible volumeMode")),
            (json!({}), json!({"accessModes": ["ReadOnlyMany"]}), Err("incompatible accessMode")),
        ] {
            assert_eq!(check(&volume("v", "5Gi", has), &claim(wants)), expected);
        }
    }
}
