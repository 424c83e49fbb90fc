//! What volume a claim gets on this node's disk, and when one has had its day.

use std::path::{Path, PathBuf};

use api::k8s_openapi::api::core::v1::{
    LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolumeSpec,
    VolumeNodeAffinity,
};
use api::prelude::*;
use volumes::{LOCAL_PROVISIONER, annotation, storage};

use super::files::Form;

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

/// What a claim is to start as a copy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Another claim's volume as it is.
    Claim(String),
    /// A volume as it was.
    Snapshot(String),
}

/// What a claim is to start as a copy of, if anything.
pub fn source(claim: &PersistentVolumeClaim) -> Result<Option<Source>, Problem> {
    let Some(spec) = &claim.spec else { return Ok(None) };
    let (group, kind, name) = match (&spec.data_source_ref, &spec.data_source) {
        (Some(from), _) => (&from.api_group, from.kind.as_str(), from.name.clone()),
        (None, Some(from)) => (&from.api_group, from.kind.as_str(), from.name.clone()),
        (None, None) => return Ok(None),
    };
    match (group.as_deref().unwrap_or_default(), kind) {
        ("", "PersistentVolumeClaim") => Ok(Some(Source::Claim(name))),
        ("snapshot.storage.k8s.io", "VolumeSnapshot") => Ok(Some(Source::Snapshot(name))),
        (_, other) => {
            Err(Problem::lasting(format!("{LOCAL_PROVISIONER} cannot start a volume from a {other}")))
        }
    }
}

/// Bytes that a claim asks for.
pub fn bytes(claim: &PersistentVolumeClaim) -> u64 {
    let asked = claim.spec.as_ref().and_then(|s| storage(s.resources.as_ref()?.requests.as_ref()));
    asked.map_or(0, |asked| u64::try_from(asked.value()).unwrap_or(0))
}

/// What a claim's volume is on the disk.
pub fn form(claim: &PersistentVolumeClaim) -> Form {
    match claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref()) {
        Some("Block") => Form::Disk(bytes(claim)),
        _ => Form::Directory,
    }
}

/// Refuses a claim that asks for more than the whole disk has.
pub fn check_size(claim: &PersistentVolumeClaim, disk: Option<u64>, node: &str) -> Result<(), Problem> {
    let asked = bytes(claim);
    match disk {
        Some(disk) if asked > disk => Err(Problem::lasting(format!(
            "{asked} bytes are asked for, but the disk of node {node} has {disk}"
        ))),
        _ => Ok(()),
    }
}

/// Whether a claim may start as a copy of a snapshot of this size and mode.
pub fn check_restore(claim: &PersistentVolumeClaim, size: Option<i64>, mode: &str) -> Result<(), Problem> {
    if size.is_some_and(|size| u64::try_from(size).is_ok_and(|size| bytes(claim) < size)) {
        let (asked, has) = (bytes(claim), size.unwrap_or(0));
        let why =
            format!("requested volume size {asked} is less than the size {has} for the source snapshot");
        return Err(Problem::lasting(why));
    }
    let own = claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref()).unwrap_or("Filesystem");
    if !mode.is_empty() && mode != own {
        return Err(Problem::lasting(format!(
            "requested volume mode {own} modifies the mode of the source snapshot, which is {mode}"
        )));
    }
    Ok(())
}

/// Whether a claim may be a copy of another.
pub fn check_clone(claim: &PersistentVolumeClaim, source: &PersistentVolumeClaim) -> Result<(), Problem> {
    let size = |c: &PersistentVolumeClaim| {
        c.spec.as_ref().and_then(|s| storage(s.resources.as_ref()?.requests.as_ref()))
    };
    let had = source.status.as_ref().and_then(|s| storage(s.capacity.as_ref()));
    let mode = |c: &PersistentVolumeClaim| {
        c.spec.as_ref().and_then(|s| s.volume_mode.clone()).unwrap_or("Filesystem".into())
    };
    if mode(claim) != mode(source) {
        let why = "the source PVC and destination PVCs must have the same volumeMode";
        return Err(Problem::lasting(why.into()));
    }
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
        let refused = volume(&claim(json!({"selector": {}})), &class, &at, "host").unwrap_err();
        assert_eq!(refused.why, "claim Selector is not supported");
        assert_eq!(form(&claimed), Form::Directory);
        assert_eq!(form(&claim(json!({"volumeMode": "Block"}))), Form::Disk(1 << 30));
        assert_eq!(check_size(&claimed, Some(1 << 30), "n"), Ok(()));
        assert!(check_size(&claimed, Some(1 << 29), "n").unwrap_err().lasting);
    }

    #[test]
    fn copies() {
        let from = |kind: &str| claim(json!({"dataSource": {"kind": kind, "name": "s"}}));
        assert_eq!(source(&claim(json!({}))), Ok(None));
        assert_eq!(source(&from("PersistentVolumeClaim")), Ok(Some(Source::Claim("s".into()))));
        assert!(source(&from("Other")).unwrap_err().lasting);
        let group = "snapshot.storage.k8s.io";
        let restored =
            claim(json!({"dataSource": {"apiGroup": group, "kind": "VolumeSnapshot", "name": "s"}}));
        assert_eq!(source(&restored), Ok(Some(Source::Snapshot("s".into()))));
        for (size, mode, fine) in [
            (None, "", true),
            (Some(1 << 30), "Filesystem", true),
            (Some(2 << 30), "", false),
            (None, "Block", false),
        ] {
            assert_eq!(check_restore(&restored, size, mode).is_ok(), fine, "{size:?} {mode}");
        }
        let larger = claim(json!({"resources": {"requests": {"storage": "2Gi"}}}));
        assert!(
            check_clone(&larger, &claim(json!({}))).is_ok()
                && check_clone(&claim(json!({})), &larger).is_err()
                && check_clone(&claim(json!({"volumeMode": "Block"})), &claim(json!({}))).is_err()
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
