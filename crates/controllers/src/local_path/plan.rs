//! What volume a claim gets on this node's disk, and when one has had its day.

use std::path::{Path, PathBuf};

use api::k8s_openapi::api::core::v1::{
    LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolumeSpec,
    VolumeNodeAffinity,
};
use api::prelude::*;
use volumes::{LOCAL_PROVISIONER, annotation, storage};

/// Keeps a volume's object until its directory is gone, whatever order things are deleted in.
pub const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";

/// Why a claim gets no volume.
#[derive(Debug, PartialEq)]
pub struct Problem {
    /// The words for people.
    pub why: String,
    /// Trying again is of no use.
    pub lasting: bool,
}

impl Problem {
    /// One that stays.
    pub fn lasting(why: String) -> Problem {
        Problem { why, lasting: true }
    }
    /// One that may pass.
    pub fn passing(why: String) -> Problem {
        Problem { why, lasting: false }
    }
}

/// Name of a claim's volume.
pub fn name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.uid())
}

/// Where its files are. The names of the claim are for people who look.
pub fn directory(root: &Path, claim: &PersistentVolumeClaim) -> PathBuf {
    root.join(format!("{}_{}_{}", name(claim), claim.namespace(), claim.name()))
}

/// Where a volume's files are.
pub fn path(volume: &PersistentVolume) -> Option<&Path> {
    Some(Path::new(&volume.spec.as_ref()?.local.as_ref()?.path))
}

/// What is left to do for a volume that has had its day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its claim is gone: files and object go.
    Everything,
    /// It was deleted by hand and its files are to be kept: only the object goes.
    Object,
}

/// Whether a volume has had its day.
pub fn end(volume: &PersistentVolume) -> Option<End> {
    let delete =
        volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
    let released = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Released");
    let held = volume.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
    match (delete, volume.is_terminating()) {
        (true, terminating) if released && (held || !terminating) => Some(End::Everything),
        (false, true) if held => Some(End::Object),
        _ => None,
    }
}

/// The claim that this one is to start as a copy of.
pub fn source(claim: &PersistentVolumeClaim) -> Result<Option<String>, Problem> {
    let Some(spec) = &claim.spec else { return Ok(None) };
    let (kind, name) = match (&spec.data_source_ref, &spec.data_source) {
        (Some(from), _) => (from.kind.as_str(), from.name.clone()),
        (None, Some(from)) => (from.kind.as_str(), from.name.clone()),
        (None, None) => return Ok(None),
    };
    match kind {
        "PersistentVolumeClaim" => Ok(Some(name)),
        other => Err(Problem::lasting(format!("{LOCAL_PROVISIONER} cannot start a volume from a {other}"))),
    }
}

/// Whether a claim may be a copy of another.
pub fn check_clone(claim: &PersistentVolumeClaim, source: &PersistentVolumeClaim) -> Result<(), Problem> {
    let size = |c: &PersistentVolumeClaim| {
        c.spec.as_ref().and_then(|s| storage(s.resources.as_ref()?.requests.as_ref()))
    };
    let had = source.status.as_ref().and_then(|s| storage(s.capacity.as_ref()));
    if size(claim) < had.or(size(source)) {
        let why =
            "error, new PVC request must be greater than or equal in size to the specified PVC data source";
        return Err(Problem::lasting(why.into()));
    }
    Ok(())
}

/// The volume of a claim.
pub fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    directory: &Path,
    host: &str,
) -> Result<PersistentVolume, Problem> {
    let spec = claim.spec.clone().unwrap_or_default();
    if spec.selector.is_some() {
        return Err(Problem::lasting("claim Selector is not supported".into()));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(Problem::lasting(format!("{LOCAL_PROVISIONER} makes no volumes of mode Block")));
    }
    let mut capacity = spec.resources.and_then(|r| r.requests).unwrap_or_default();
    capacity.retain(|name, _| name == "storage");
    let term = NodeSelectorTerm {
        match_expressions: Some(vec![NodeSelectorRequirement {
            key: "kubernetes.io/hostname".into(),
            operator: "In".into(),
            values: Some(vec![host.to_owned()]),
        }]),
        ..NodeSelectorTerm::default()
    };
    let volume = PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name(claim)),
            annotations: Some([(annotation::PROVISIONED_BY.to_owned(), LOCAL_PROVISIONER.to_owned())].into()),
            finalizers: Some(vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: Some(capacity),
            access_modes: spec.access_modes,
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                namespace: Some(claim.namespace().into()),
                name: Some(claim.name().into()),
                uid: Some(claim.uid().into()),
                resource_version: Some(claim.resource_version().into()),
                ..ObjectReference::default()
            }),
            local: Some(LocalVolumeSource { path: directory.display().to_string(), fs_type: None }),
            mount_options: class.mount_options.clone(),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            persistent_volume_reclaim_policy: Some(class.reclaim_policy.clone().unwrap_or("Delete".into())),
            storage_class_name: spec.storage_class_name,
            volume_attributes_class_name: spec.volume_attributes_class_name,
            volume_mode: spec.volume_mode,
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    };
    Ok(volume)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "local-path",
            "resources": {"requests": {"storage": "1Gi"}}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let metadata = json!({"name": "c", "namespace": "n", "uid": "u"});
        PersistentVolumeClaim::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn volumes_of_claims() {
        let class =
            json!({"metadata": {"name": "local-path"}, "provisioner": "p", "reclaimPolicy": "Retain"});
        let class = StorageClass::from_value(class).unwrap();
        let claimed = claim(json!({}));
        let at = directory(Path::new("/d"), &claimed);
        let made = volume(&claimed, &class, &at, "host").unwrap();
        assert_eq!(path(&made), Some(Path::new("/d/pvc-u_n_c")));
        assert!(volumes::is_bound_to(&made, &claimed) && volumes::check(&made, &claimed).is_ok());
        let spec = made.spec.unwrap();
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
        for (more, why) in [
            (json!({"selector": {}}), "claim Selector is not supported"),
            (json!({"volumeMode": "Block"}), "local.ferry.dev makes no volumes of mode Block"),
        ] {
            assert_eq!(volume(&claim(more), &class, &at, "host").unwrap_err().why, why);
        }
    }

    #[test]
    fn copies() {
        let from = |kind: &str| claim(json!({"dataSource": {"kind": kind, "name": "s"}}));
        assert_eq!(source(&claim(json!({}))), Ok(None));
        assert_eq!(source(&from("PersistentVolumeClaim")), Ok(Some("s".into())));
        assert!(source(&from("VolumeSnapshot")).unwrap_err().lasting);
        let larger = claim(json!({"resources": {"requests": {"storage": "2Gi"}}}));
        assert!(
            check_clone(&larger, &claim(json!({}))).is_ok()
                && check_clone(&claim(json!({})), &larger).is_err()
        );
    }

    #[test]
    fn the_end_of_volumes() {
        for (policy, phase, finalizers, deleted, expected) in [
            ("Delete", "Released", json!([FINALIZER]), false, Some(End::Everything)),
            ("Delete", "Released", json!([FINALIZER]), true, Some(End::Everything)),
            ("Delete", "Released", json!([]), true, None),
            ("Delete", "Bound", json!([FINALIZER]), true, None),
            ("Retain", "Released", json!([FINALIZER]), false, None),
            ("Retain", "Released", json!([FINALIZER]), true, Some(End::Object)),
        ] {
            let mut object = json!({"metadata": {"name": "v", "finalizers": finalizers},
                "spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": phase}});
            if deleted {
                object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            let volume = PersistentVolume::from_value(object).unwrap();
            assert_eq!(end(&volume), expected, "{policy} {phase} {deleted}");
        }
    }
}
