//! Pods that use more local storage than they may: volumes, containers, pods as a whole. Pure.

use api::prelude::*;

use super::rank::Candidate;
use super::threshold::Resource;
use crate::resources;
use crate::spec;

const STORAGE: &str = "ephemeral-storage";

/// Whether anything of a pod's storage is limited: only then is it worth measuring.
pub fn is_limited(pod: &Pod) -> bool {
    let spec = spec::spec(pod);
    let mut volumes = spec.volumes.iter().flatten();
    let volume = volumes.any(|v| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some()));
    volume
        || spec::containers(pod)
            .iter()
            .any(|(_, container)| resources::limits(container).contains_key(STORAGE))
}

/// Why a pod has to go for what it stores, in upstream's words.
pub fn violation(candidate: &Candidate) -> Option<String> {
    let spec = spec::spec(&candidate.pod);
    for volume in spec.volumes.iter().flatten() {
        let Some(limit) = volume.empty_dir.as_ref().and_then(|empty| empty.size_limit.as_ref()) else {
            continue;
        };
        let most = resources::amount(STORAGE, limit);
        let used = candidate.volumes.iter().find(|(name, _, _)| *name == volume.name);
        if most > 0 && used.is_some_and(|(_, bytes, _)| *bytes > most) {
            return Some(format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                volume.name, limit.0
            ));
        }
    }
    let all = spec::containers(&candidate.pod);
    // A pod is limited as a whole where one of its containers is.
    let total = resources::pod_total(&candidate.pod, resources::limits);
    if let Some(most) = total.get(STORAGE)
        && candidate.used(Resource::EphemeralStorage) > *most
    {
        let most = super::rank::binary(*most);
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {most}. "
        ));
    }
    candidate.containers.iter().find_map(|usage| {
        let (_, container) = all.iter().find(|(_, container)| container.name == usage.name)?;
        let limit = container.resources.as_ref()?.limits.as_ref()?.get(STORAGE)?;
        let most = resources::amount(STORAGE, limit);
        (most > 0 && usage.logs + usage.rootfs > most).then(|| {
            format!("Container {} exceeded its local ephemeral storage limit {:?}. ", usage.name, limit.0)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::rank::ContainerUsage;
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn candidate(containers: Value, volumes: Value, rootfs: i64, volume: i64) -> Candidate {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": containers, "volumes": volumes}});
        let usage = |name: &str| ContainerUsage {
            name: name.into(),
            rootfs,
            logs: 1 << 20,
            ..ContainerUsage::default()
        };
        Candidate {
            pod: Arc::new(Pod::from_value(pod).unwrap()),
            containers: vec![usage("a"), usage("b")],
            volumes: vec![("v".into(), volume, 1)],
        }
    }

    #[test]
    fn who_goes_for_what() {
        let limited = |limit: &str| json!({"limits": {"ephemeral-storage": limit}});
        let plain = json!([{"name": "a"}, {"name": "b"}]);
        let one = json!([{"name": "a", "resources": limited("5Mi")}, {"name": "b"}]);
        let both =
            json!([{"name": "a", "resources": limited("5Mi")}, {"name": "b", "resources": limited("90Mi")}]);
        let small = json!([{"name": "v", "emptyDir": {"sizeLimit": "3M"}}]);
        let free = json!([{"name": "v", "emptyDir": {}}]);
        let table = [
            (plain.clone(), free.clone(), 1 << 40, 1 << 40, None),
            (plain, small.clone(), 0, 2_999_999, None),
            (
                one.clone(),
                small,
                0,
                4 << 20,
                Some("Usage of EmptyDir volume \"v\" exceeds the limit \"3M\". "),
            ),
            (
                one,
                free.clone(),
                4 << 20,
                0,
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "),
            ),
            (
                both,
                free,
                5 << 20,
                0,
                Some("Container a exceeded its local ephemeral storage limit \"5Mi\". "),
            ),
        ];
        for (containers, volumes, rootfs, volume, expected) in table {
            let candidate = candidate(containers, volumes, rootfs, volume);
            assert_eq!(violation(&candidate).as_deref(), expected, "{:?}", candidate.pod.spec);
            assert!(expected.is_none() || is_limited(&candidate.pod));
        }
    }
}
