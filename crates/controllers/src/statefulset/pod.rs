//! The identity of a StatefulSet's pods: name, ordinal, labels and volumes that stay with a place in the set.

use api::k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Volume};
use api::prelude::*;

use crate::owners;

/// Label that names the pod, to select just one.
const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// Label with the ordinal.
const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";
/// Label with the name of the revision a pod was made from.
pub const REVISION_LABEL: &str = "controller-revision-hash";

/// The first ordinal.
pub fn start(set: &StatefulSet) -> i32 {
    set.spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0)
}

/// The ordinal of a pod of the set; `None` for names that are none of its own.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let number = pod.name().strip_prefix(set.name())?.strip_prefix('-')?;
    let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| number.parse().ok()).flatten()
}

/// The name of the pod with an ordinal.
pub fn name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.name())
}

/// The revision a pod was made from.
pub fn revision(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|l| l.get(REVISION_LABEL)).map(String::as_str).unwrap_or_default()
}

/// The name of a pod's claim by a template.
pub fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", template.name(), set.name())
}

/// The claims of a pod, as they are created.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let templates = set.spec.volume_claim_templates.iter().flatten();
    let made = templates.map(|template| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(set, template, ordinal));
        claim.metadata.namespace = set.metadata.namespace.clone();
        let selected = set.spec.selector.match_labels.clone().unwrap_or_default();
        claim.metadata.labels.get_or_insert_default().extend(selected);
        claim.status = None;
        claim
    });
    made.collect()
}

/// The pod with an ordinal, made from a template of some revision.
pub fn new(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let owner = owners::controller_reference(&StatefulSet::GVK, &set.metadata);
    let mut pod = crate::replicaset::plan::pod_from_template(template, set.namespace(), set.name(), owner);
    pod.metadata.generate_name = None;
    identify(set, &mut pod, ordinal);
    mount(set, &mut pod, ordinal);
    if let Some(spec) = &mut pod.spec {
        spec.hostname = pod.metadata.name.clone();
        spec.subdomain = set.spec.service_name.clone().filter(|name| !name.is_empty());
    }
    pod.metadata.labels.get_or_insert_default().insert(REVISION_LABEL.into(), revision.to_owned());
    pod
}

fn identify(set: &StatefulSet, pod: &mut Pod, ordinal: i32) {
    let name = name(set, ordinal);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(NAME_LABEL.into(), name.clone());
    labels.insert(INDEX_LABEL.into(), ordinal.to_string());
    pod.metadata.name = Some(name);
}

/// A pod with the labels of its place, if it lacks any.
pub fn identified(set: &StatefulSet, pod: &Pod, ordinal: i32) -> Option<Pod> {
    let mut wanted = pod.clone();
    identify(set, &mut wanted, ordinal);
    (wanted.metadata.labels != pod.metadata.labels).then_some(wanted)
}

/// Puts the claims in, before the template's volumes and instead of those of the same name.
fn mount(set: &StatefulSet, pod: &mut Pod, ordinal: i32) {
    let templates = set.spec.volume_claim_templates.iter().flatten();
    let mut volumes: Vec<Volume> = templates
        .map(|template| Volume {
            name: template.name().to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, template, ordinal),
                read_only: None,
            }),
            ..Default::default()
        })
        .collect();
    let Some(spec) = &mut pod.spec else { return };
    let own = spec.volumes.take().unwrap_or_default();
    let others: Vec<Volume> =
        own.into_iter().filter(|volume| volumes.iter().all(|v| v.name != volume.name)).collect();
    volumes.extend(others);
    spec.volumes = Some(volumes).filter(|v| !v.is_empty());
}
