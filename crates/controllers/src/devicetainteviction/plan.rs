//! When a pod has to go because of its devices' taints, and what a rule's status says of it.

use std::collections::BTreeSet;

use api::prelude::*;
use devices::{Eviction, Slices, claims};

use crate::pods;

/// Most of what a rule's condition needs to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Published devices that the rule is about.
    pub published: usize,
    /// Devices of claims that the rule is about.
    pub allocated: usize,
    /// Pods that have to go, or would have to.
    pub pending: usize,
    /// How many namespaces they are in.
    pub namespaces: usize,
    /// Pods that were made to go.
    pub evicted: usize,
}

/// When a pod has to go; `None` for never.
pub fn eviction<C: std::ops::Deref<Target = ResourceClaim>>(
    slices: &Slices,
    pod: &Pod,
    claim_of: impl Fn(&str, &str) -> Option<C>,
) -> Option<Eviction> {
    if pods::node_name(pod).is_empty() || pod.is_terminating() || pods::is_finished(pod) {
        return None;
    }
    let named = claims::of_pod(pod).iter().filter_map(|entry| claims::reference(pod, entry).ok().flatten());
    let named = named.map(|reference| (reference.name, reference.own));
    let all = named.chain(claims::extended(pod).map(|name| (name.to_owned(), true)));
    all.filter_map(|(name, own)| {
        let claim = claim_of(pod.namespace(), &name)?;
        if (own && claims::check_owner(pod, &claim).is_err()) || !claims::is_reserved_for(&claim, pod.uid()) {
            return None;
        }
        devices::eviction(slices, &claim)
    })
    .reduce(Eviction::join)
}

/// Pods that a rule makes go, and their namespaces.
pub fn pending<'a>(
    rule: &str,
    evictions: impl Iterator<Item = (&'a Pod, Eviction)>,
) -> (usize, BTreeSet<&'a str>) {
    let concerned = evictions.filter(|(_, eviction)| eviction.rules.contains(rule));
    let of: Vec<&str> = concerned.map(|(pod, _)| pod.namespace()).collect();
    (of.len(), of.into_iter().collect())
}

fn some(count: usize, one: &str, many: &str) -> String {
    let what = if count == 1 { one } else { many };
    format!("{count} {what}")
}

/// The condition `EvictionInProgress` of a rule: status, reason and message.
pub fn condition(effect: &str, counts: &Counts) -> (bool, &'static str, String) {
    let namespaces = some(counts.namespaces, "namespace", "different namespaces");
    let (going, reason, mut message) = match effect {
        "NoExecute" if counts.pending > 0 => {
            let pods = some(counts.pending, "pod needs", "pods need");
            (true, "PodsPendingEviction", format!("{pods} to be evicted in {namespaces}."))
        }
        "NoExecute" if counts.evicted > 0 => (false, "Completed", String::new()),
        "NoExecute" => (false, "NotStarted", String::new()),
        "None" => {
            let published = some(counts.published, "published device", "published devices");
            let allocated = some(counts.allocated, "allocated device", "allocated devices");
            let pods = some(counts.pending, "pod", "pods");
            let message = format!(
                "{published} selected. {allocated} selected. {pods} would be evicted in {namespaces} if the effect was \
                 NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an \
                 update."
            );
            (false, "NoEffect", message)
        }
        _ => (false, "OtherEffect", "Eviction only happens for the NoExecute effect.".to_owned()),
    };
    if counts.evicted > 0 {
        let space = if message.is_empty() { "" } else { " " };
        let pods = some(counts.evicted, "pod", "pods");
        message.push_str(&format!("{space}{pods} evicted since starting the controller."));
    }
    (going, reason, message)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn conditions() {
        let counts = |published, allocated, pending, namespaces, evicted| Counts {
            published,
            allocated,
            pending,
            namespaces,
            evicted,
        };
        let table = [
            ("NoExecute", counts(0, 0, 0, 0, 0), (false, "NotStarted", "")),
            (
                "NoExecute",
                counts(0, 0, 1, 1, 0),
                (true, "PodsPendingEviction", "1 pod needs to be evicted in 1 namespace."),
            ),
            (
                "NoExecute",
                counts(0, 0, 2, 2, 1),
                (
                    true,
                    "PodsPendingEviction",
                    "2 pods need to be evicted in 2 different namespaces. 1 pod evicted since starting the controller.",
                ),
            ),
            (
                "NoExecute",
                counts(0, 0, 0, 0, 2),
                (false, "Completed", "2 pods evicted since starting the controller."),
            ),
            (
                "None",
                counts(1, 2, 1, 1, 0),
                (
                    false,
                    "NoEffect",
                    "1 published device selected. 2 allocated devices selected. 1 pod would be evicted in 1 namespace \
                     if the effect was NoExecute. This information will not be updated again. Recreate the \
                     DeviceTaintRule to trigger an update.",
                ),
            ),
            (
                "NoSchedule",
                counts(0, 0, 0, 0, 0),
                (false, "OtherEffect", "Eviction only happens for the NoExecute effect."),
            ),
        ];
        for (effect, counts, (going, reason, message)) in table {
            assert_eq!(
                condition(effect, &counts),
                (going, reason, message.to_owned()),
                "{effect} {counts:?}"
            );
        }
    }

    #[test]
    fn pods_that_have_to_go() {
        let mut slices = Slices::default();
        let rule = json!({"metadata": {"name": "rule"}, "spec": {"deviceSelector": {},
            "taint": {"key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}}});
        slices.set_rule(Arc::new(DeviceTaintRule::from_value(rule).unwrap()));
        let claim = |users: Value, owner: &str| {
            let result = json!({"request": "r", "driver": "d.io", "pool": "p", "device": "a"});
            let owner =
                json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": owner, "controller": true}]);
            ResourceClaim::from_value(json!({"metadata": {"name": "c", "namespace": "n", "ownerReferences": owner},
                "spec": {}, "status": {"reservedFor": users, "allocation": {"devices": {"results": [result]}}}}))
            .unwrap()
        };
        let mine = || json!([{"resource": "pods", "name": "p", "uid": "u"}]);
        let pod = |node: &str, entry: Value, status: Value| {
            Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
                "spec": {"nodeName": node, "containers": [], "resourceClaims": [entry]}, "status": status}))
            .unwrap()
        };
        let named = || json!({"name": "e", "resourceClaimName": "c"});
        let made = || json!({"name": "e", "resourceClaimTemplateName": "t"});
        let known = || json!({"resourceClaimStatuses": [{"name": "e", "resourceClaimName": "c"}]});
        let table = [
            ("runs", pod("node", named(), json!({})), claim(mine(), "x"), true),
            ("waits", pod("", named(), json!({})), claim(mine(), "x"), false),
            ("has ended", pod("node", named(), json!({"phase": "Succeeded"})), claim(mine(), "x"), false),
            ("is not a user", pod("node", named(), json!({})), claim(json!([]), "x"), false),
            ("has its own", pod("node", made(), known()), claim(mine(), "u"), true),
            ("has another's", pod("node", made(), known()), claim(mine(), "x"), false),
            ("has none yet", pod("node", made(), json!({})), claim(mine(), "u"), false),
        ];
        for (what, pod, claim, want) in table {
            let found = eviction(&slices, &pod, |namespace, name| {
                (namespace == "n" && name == "c").then(|| Arc::new(claim.clone()))
            });
            assert_eq!(found.is_some(), want, "{what}");
            let evictions = found.into_iter().map(|eviction| (&pod, eviction));
            let (count, namespaces) = pending("rule", evictions);
            assert_eq!((count, namespaces.len()), (usize::from(want), usize::from(want)), "{what}");
        }
    }
}
