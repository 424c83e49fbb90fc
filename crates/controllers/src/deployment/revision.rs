//! Revisions of a Deployment: which ReplicaSet has its template, what a new one is called and annotated with.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::k8s_openapi::api::apps::v1::ReplicaSetSpec;
use api::prelude::*;

use crate::owners;

/// Label that keeps the pods of one revision apart from those of another.
pub const HASH_LABEL: &str = "pod-template-hash";
/// Number of a revision.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier numbers of a revision that was rolled back to.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's size when the ReplicaSet was last sized.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The most pods there could be then.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of a Deployment that its ReplicaSets do not inherit.
const NOT_INHERITED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
];

/// Longest revision history kept, in characters (upstream's limit).
const HISTORY_MAX: usize = 2000;

/// An annotation of an object.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The revision number of a ReplicaSet; 0 without one.
pub fn revision_of(set: &ReplicaSet) -> i64 {
    annotation(&set.metadata, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Whether two templates make the same pods: equal but for the hash label.
fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let normal = |template: &PodTemplateSpec| {
        let mut meta = template.metadata.clone().unwrap_or_default();
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
        }
        meta.labels = meta.labels.filter(|labels| !labels.is_empty());
        meta.annotations = meta.annotations.filter(|annotations| !annotations.is_empty());
        meta.creation_timestamp = None;
        meta
    };
    a.spec == b.spec && normal(a) == normal(b)
}

/// Whether a ReplicaSet was made from the Deployment's present template.
pub fn has_template_of(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let wanted = Some(&deployment.spec.template);
    let have = set.spec.template.as_ref();
    wanted.zip(have).is_some_and(|(wanted, have)| same_template(wanted, have))
}

/// The ReplicaSet of the present template and all others, oldest first. Of several the oldest is the one.
pub fn split(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    let mut sorted = sets.to_vec();
    sorted.sort_by(|a, b| age_order(a, b));
    let place = sorted.iter().position(|set| has_template_of(set, deployment));
    let new = place.map(|place| sorted.remove(place));
    (new, sorted)
}

/// Older before younger, then by name.
pub fn age_order(a: &ReplicaSet, b: &ReplicaSet) -> std::cmp::Ordering {
    let created = |set: &ReplicaSet| set.metadata.creation_timestamp.as_ref().map(|t| t.0);
    created(a).cmp(&created(b)).then_with(|| a.name().cmp(b.name()))
}

/// The hash of a template: FNV-32a of its JSON, in the alphabet of generated names, so that no word comes out.
pub fn template_hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash: u32 = 0x811c_9dc5;
    let json = serde_json::to_vec(template).unwrap_or_default();
    let salt = collision_count.map(i32::to_le_bytes);
    for byte in json.iter().chain(salt.iter().flatten()) {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    hash.to_string().bytes().map(|b| ALPHABET[usize::from(b) % ALPHABET.len()] as char).collect()
}

/// Sizes noted on a ReplicaSet, to tell later whether the Deployment was resized since.
pub fn size_annotations(replicas: i32, surge: i32) -> [(String, String); 2] {
    [(DESIRED.into(), replicas.to_string()), (MAX.into(), replicas.saturating_add(surge).to_string())]
}

/// Annotations that the ReplicaSet of the present template lacks: inherited ones and the revision number.
pub fn missing_annotations(
    deployment: &Deployment,
    set: Option<&ReplicaSet>,
    new_revision: i64,
) -> BTreeMap<String, String> {
    let have = |key: &str| set.and_then(|set| annotation(&set.metadata, key));
    let mut missing: BTreeMap<String, String> = (deployment.metadata.annotations.iter().flatten())
        .filter(|(key, value)| !NOT_INHERITED.contains(&key.as_str()) && have(key) != Some(value.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let old_revision = have(REVISION);
    if set.map_or(0, revision_of) < new_revision {
        missing.insert(REVISION.into(), new_revision.to_string());
        if let Some(old) = old_revision.filter(|old| !old.is_empty()) {
            let mut history: Vec<&str> =
                have(REVISION_HISTORY).unwrap_or_default().split(',').filter(|h| !h.is_empty()).collect();
            history.push(old);
            while history.iter().map(|h| h.len() + 1).sum::<usize>() > HISTORY_MAX {
                history.remove(0);
            }
            missing.insert(REVISION_HISTORY.into(), history.join(","));
        }
    }
    missing
}

/// The ReplicaSet of the present template, to be created with `replicas` pods.
pub fn new_replica_set(deployment: &Deployment, replicas: i32, surge: i32, revision: i64) -> ReplicaSet {
    let spec = deployment.spec.clone();
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    let mut annotations = missing_annotations(deployment, None, revision);
    annotations.extend(size_annotations(spec.replicas.unwrap_or(1), surge));
    let metadata = ObjectMeta {
        name: Some(format!("{}-{hash}", deployment.name())),
        namespace: deployment.metadata.namespace.clone(),
        labels: template.metadata.as_ref().and_then(|m| m.labels.clone()),
        annotations: Some(annotations),
        owner_references: Some(vec![owners::controller_reference(&Deployment::GVK, &deployment.metadata)]),
        ..Default::default()
    };
    let spec = ReplicaSetSpec {
        replicas: Some(replicas),
        min_ready_seconds: spec.min_ready_seconds.filter(|n| *n != 0),
        selector,
        template: Some(template),
    };
    ReplicaSet { metadata, spec, status: None }
}

/// ReplicaSets beyond the history limit that can go: oldest revisions first, none that has or wants pods.
pub fn expired(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Vec<String> {
    let limit = deployment.spec.revision_history_limit.unwrap_or(10);
    // "Keep everything" is spelled as the largest number.
    if limit == i32::MAX {
        return Vec::new();
    }
    let mut alive: Vec<&Arc<ReplicaSet>> = old.iter().filter(|set| !set.is_terminating()).collect();
    let excess = alive.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    alive.sort_by(|a, b| revision_of(a).cmp(&revision_of(b)).then_with(|| age_order(a, b)));
    let idle = |set: &&&Arc<ReplicaSet>| {
        let status = set.status.clone().unwrap_or_default();
        status.replicas == 0
            && set.spec.replicas == Some(0)
            && set.metadata.generation <= status.observed_generation
    };
    alive[..excess].iter().filter(idle).map(|set| set.name().to_owned()).collect()
}
