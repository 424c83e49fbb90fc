//! What is to be done with a claim, and with a volume: the table of binding.

use std::sync::Arc;

use api::prelude::*;
use volumes::{annotated, annotation, is_bound_to, is_delayed};

/// What a claim is to become.
#[derive(Debug, PartialEq)]
pub enum ClaimStep {
    /// Bound to this volume, both ways.
    Bind(Arc<PersistentVolume>),
    /// It waits.
    Wait(Option<Note>),
    /// Somebody is to make a volume for it.
    Provision(String),
    /// What it was bound to is gone.
    Lose(Note),
}

/// An event.
#[derive(Debug, PartialEq)]
pub struct Note {
    /// Whether something is wrong.
    pub warning: bool,
    /// Reason.
    pub reason: &'static str,
    /// Message.
    pub message: String,
}

fn normal(reason: &'static str, message: impl Into<String>) -> Note {
    Note { warning: false, reason, message: message.into() }
}

fn warning(reason: &'static str, message: impl Into<String>) -> Note {
    Note { warning: true, reason, message: message.into() }
}

/// What there is to choose from.
pub struct View<'a> {
    /// All volumes.
    pub volumes: &'a [Arc<PersistentVolume>],
    /// The claim's class: absent if it names none, an error if it names one that does not exist.
    pub class: Option<Result<Arc<StorageClass>, String>>,
    /// A pod that uses the claim and has no node yet.
    pub waiting_pod: Option<String>,
}

/// The step for a claim.
pub fn claim(claim: &PersistentVolumeClaim, view: &View<'_>) -> ClaimStep {
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    let volume = view.volumes.iter().find(|v| v.name() == named);
    if annotated(&claim.metadata, annotation::BIND_COMPLETED).is_some() {
        return bound_claim(claim, named, volume);
    }
    if named.is_empty() {
        return unbound_claim(claim, view);
    }
    let Some(volume) = volume else { return ClaimStep::Wait(None) };
    if volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).is_none() {
        return match volumes::check(volume, claim) {
            Ok(()) => ClaimStep::Bind(volume.clone()),
            Err(why) => ClaimStep::Wait(Some(warning(
                "VolumeMismatch",
                format!("Cannot bind to requested volume {named:?}: {why}"),
            ))),
        };
    }
    if is_bound_to(volume, claim) {
        return ClaimStep::Bind(volume.clone());
    }
    let to = volume.spec.as_ref().and_then(|s| s.claim_ref.clone()).unwrap_or_default();
    let (namespace, name) = (to.namespace.unwrap_or_default(), to.name.unwrap_or_default());
    let message = format!("volume {named:?} already bound to a different claim.");
    tracing::debug!(volume = named, namespace, name, "asked for, but another claim's");
    ClaimStep::Wait(Some(warning("FailedBinding", message)))
}

fn bound_claim(
    claim: &PersistentVolumeClaim,
    named: &str,
    volume: Option<&Arc<PersistentVolume>>,
) -> ClaimStep {
    if named.is_empty() {
        let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return ClaimStep::Lose(warning("ClaimLost", message));
    }
    let Some(volume) = volume else {
        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return ClaimStep::Lose(warning("ClaimLost", message));
    };
    let to = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    if to.is_none_or(|to| to.uid.as_deref() == Some(claim.uid())) || is_bound_to(volume, claim) {
        return ClaimStep::Bind(volume.clone());
    }
    let message = "Two claims are bound to the same volume, this one is bound incorrectly";
    ClaimStep::Lose(warning("ClaimMisbound", message))
}

fn unbound_claim(claim: &PersistentVolumeClaim, view: &View<'_>) -> ClaimStep {
    let class = view.class.as_ref().and_then(|c| c.as_ref().ok());
    let delayed = is_delayed(claim, class.map(|c| &**c));
    if let Some(volume) = volumes::best_match(claim, view.volumes, None, delayed, &|_| false) {
        return ClaimStep::Bind(volume);
    }
    if delayed {
        return ClaimStep::Wait(Some(match &view.waiting_pod {
            Some(pod) => normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
            None => normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        }));
    }
    match &view.class {
        None => ClaimStep::Wait(Some(normal(
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        ))),
        Some(Err(missing)) => ClaimStep::Wait(Some(warning("ProvisioningFailed", missing.clone()))),
        // Names of upstream's own are not ours to wait for.
        Some(Ok(class)) if class.provisioner == "kubernetes.io/no-provisioner" => {
            ClaimStep::Wait(Some(warning("ProvisioningFailed", "no volume plugin matched")))
        }
        Some(Ok(class)) => ClaimStep::Provision(class.provisioner.clone()),
    }
}

/// The event that says who a claim waits for.
pub fn provisioning(provisioner: &str) -> Note {
    normal(
        "ExternalProvisioning",
        format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by \
             the system administrator. If volume creation is delayed, please verify that the provisioner is running \
             and correctly registered."
        ),
    )
}

/// What a volume is to become.
#[derive(Debug, PartialEq)]
pub enum VolumeStep {
    /// In this phase.
    Phase(&'static str),
    /// Its claim is looked at: the two are not one yet.
    Claim,
    /// Free again: its claim has gone another way.
    Unbind,
    /// Its claim is gone. What follows is up to its policy.
    Release,
}

/// The step for a volume; `claim` is the one it is promised to, if it exists.
pub fn volume(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    let Some(to) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
        return VolumeStep::Phase("Available");
    };
    let uid = to.uid.as_deref().unwrap_or_default();
    let claim = claim.filter(|c| uid.is_empty() || c.uid() == uid);
    let Some(claim) = claim else {
        return if uid.is_empty() { VolumeStep::Phase("Available") } else { VolumeStep::Release };
    };
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    match named {
        "" => VolumeStep::Claim,
        named if named == volume.name() && uid.is_empty() => VolumeStep::Claim,
        named if named == volume.name() => VolumeStep::Phase("Bound"),
        _ => {
            let made = annotated(&volume.metadata, annotation::PROVISIONED_BY).is_some();
            if made && policy(volume) == "Delete" { VolumeStep::Release } else { VolumeStep::Unbind }
        }
    }
}

/// What happens to a volume without its claim.
pub fn policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

/// What is wrong with a released volume that nobody will take care of.
pub fn stranded(volume: &PersistentVolume) -> Option<Note> {
    // A volume that was provisioned, or is a driver's, is deleted by its provisioner.
    let made = annotated(&volume.metadata, annotation::PROVISIONED_BY).is_some();
    let drivers = volume.spec.as_ref().is_some_and(|s| s.csi.is_some());
    match policy(volume) {
        "Delete" if !made && !drivers => Some(warning(
            "VolumeFailedDelete",
            format!(
                "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
                volume.name()
            ),
        )),
        "Recycle" => Some(warning("VolumeFailedRecycle", "No recycler plugin found for the volume!")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pv(name: &str, spec: Value) -> Arc<PersistentVolume> {
        let mut full = json!({"capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteOnce"]});
        for (key, value) in spec.as_object().unwrap() {
            full[key] = value.clone();
        }
        let object = json!({"metadata": {"name": name}, "spec": full, "status": {"phase": "Available"}});
        Arc::new(PersistentVolume::from_value(object).unwrap())
    }

    fn pvc(spec: Value, annotations: Value) -> PersistentVolumeClaim {
        let mut full =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        for (key, value) in spec.as_object().unwrap() {
            full[key] = value.clone();
        }
        let metadata = json!({"name": "c", "namespace": "n", "uid": "u", "annotations": annotations});
        PersistentVolumeClaim::from_value(json!({"metadata": metadata, "spec": full})).unwrap()
    }

    fn to(uid: &str) -> Value {
        json!({"claimRef": {"namespace": "n", "name": "c", "uid": uid}})
    }

    fn shown(step: &ClaimStep) -> String {
        match step {
            ClaimStep::Bind(volume) => format!("bind {}", volume.name()),
            ClaimStep::Wait(note) => note.as_ref().map_or("wait".into(), |n| format!("wait {}", n.reason)),
            ClaimStep::Provision(by) => format!("provision {by}"),
            ClaimStep::Lose(note) => format!("lose {}", note.reason),
        }
    }

    #[test]
    fn claims() {
        let class = |mode: &str, by: &str| {
            let class = json!({"metadata": {"name": "k"}, "provisioner": by, "volumeBindingMode": mode});
            Some(Ok(Arc::new(StorageClass::from_value(class).unwrap())))
        };
        let done = json!({"pv.kubernetes.io/bind-completed": "yes"});
        let chosen = json!({"volume.kubernetes.io/selected-node": "a"});
        let late = || class("WaitForFirstConsumer", "d");
        let k = || json!({"storageClassName": "k"});
        for (claimed, volumes, class, pod, expected) in [
            (pvc(json!({}), json!({})), vec![], None, None, "wait FailedBinding"),
            (pvc(json!({}), json!({})), vec![pv("v", json!({}))], None, None, "bind v"),
            (pvc(k(), json!({})), vec![], Some(Err("gone".into())), None, "wait ProvisioningFailed"),
            (pvc(k(), json!({})), vec![], class("Immediate", "d"), None, "provision d"),
            (pvc(k(), json!({})), vec![], late(), None, "wait WaitForFirstConsumer"),
            (pvc(k(), json!({})), vec![], late(), Some("p"), "wait WaitForPodScheduled"),
            (pvc(k(), chosen), vec![], late(), None, "provision d"),
            (pvc(k(), json!({})), vec![pv("v", k())], late(), None, "wait WaitForFirstConsumer"),
            (pvc(json!({"volumeName": "v"}), json!({})), vec![], None, None, "wait"),
            (pvc(json!({"volumeName": "v"}), json!({})), vec![pv("v", json!({}))], None, None, "bind v"),
            (
                pvc(json!({"volumeName": "v"}), json!({})),
                vec![pv("v", k())],
                None,
                None,
                "wait VolumeMismatch",
            ),
            (
                pvc(json!({"volumeName": "v"}), json!({})),
                vec![pv("v", to("x"))],
                None,
                None,
                "wait FailedBinding",
            ),
            (pvc(json!({"volumeName": "v"}), json!({})), vec![pv("v", to(""))], None, None, "bind v"),
            (pvc(json!({}), done.clone()), vec![], None, None, "lose ClaimLost"),
            (pvc(json!({"volumeName": "v"}), done.clone()), vec![], None, None, "lose ClaimLost"),
            (pvc(json!({"volumeName": "v"}), done.clone()), vec![pv("v", to("u"))], None, None, "bind v"),
            (pvc(json!({"volumeName": "v"}), done), vec![pv("v", to("x"))], None, None, "lose ClaimMisbound"),
        ] {
            let view = View { volumes: &volumes, class, waiting_pod: pod.map(String::from) };
            assert_eq!(shown(&claim(&claimed, &view)), expected, "{:?}", claimed.encode());
        }
    }

    #[test]
    fn volumes() {
        let claimed = |volume: &str| pvc(json!({"volumeName": volume}), json!({}));
        for (object, claim, expected) in [
            (pv("v", json!({})), None, VolumeStep::Phase("Available")),
            (pv("v", to("")), None, VolumeStep::Phase("Available")),
            (pv("v", to("u")), None, VolumeStep::Release),
            (pv("v", to("x")), Some(claimed("v")), VolumeStep::Release),
            (pv("v", to("u")), Some(pvc(json!({}), json!({}))), VolumeStep::Claim),
            (pv("v", to("u")), Some(claimed("v")), VolumeStep::Phase("Bound")),
            (pv("v", to("u")), Some(claimed("w")), VolumeStep::Unbind),
        ] {
            assert_eq!(volume(&object, claim.as_ref()), expected);
        }
        assert!(stranded(&pv("v", json!({"persistentVolumeReclaimPolicy": "Retain"}))).is_none());
        let stuck = stranded(&pv("v", json!({"persistentVolumeReclaimPolicy": "Delete"}))).unwrap();
        assert_eq!(stuck.reason, "VolumeFailedDelete");
    }
}
