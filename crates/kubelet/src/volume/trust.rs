//! Trust anchors of the cluster for projected volumes, followed from the first pod on that has any.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use api::k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use api::prelude::*;
use meta::selector::LabelSelector as Selector;
use parking_lot::Mutex;
use reconcile::{Informer, Informers};
use tokio::sync::OnceCell;

use crate::references::Changed;

/// How long a first read may take before it counts as failed.
const FIRST_READ: Duration = Duration::from_secs(10);

/// The bundles, and whom to tell of changes.
pub struct TrustBundles {
    informers: Arc<Informers>,
    bundles: OnceCell<Arc<Informer<ClusterTrustBundle>>>,
    pods: Arc<Mutex<HashSet<String>>>,
    changed: Changed,
}

/// Anchors as PEM, each once, in an order that does not depend on where they came from.
fn anchors<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let all: BTreeSet<Vec<u8>> = texts.flat_map(certificate::pem::blocks).map(|block| block.der).collect();
    all.iter().map(|der| certificate::pem::encode("CERTIFICATE", der)).collect()
}

/// What a source asks for, of these bundles.
fn choose(
    bundles: &[Arc<ClusterTrustBundle>],
    source: &ClusterTrustBundleProjection,
) -> Result<String, String> {
    let optional = source.optional == Some(true);
    if let Some(name) = &source.name {
        return match bundles.iter().find(|bundle| bundle.name() == name) {
            Some(bundle) => Ok(anchors([bundle.spec.trust_bundle.as_str()].into_iter())),
            None if optional => Ok(String::new()),
            None => Err(format!(
                "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {name:?} not found"
            )),
        };
    }
    // Without a selector none is meant; an empty one means all.
    let selector = source.label_selector.as_ref().and_then(|selector| {
        serde_json::to_value(selector).ok().and_then(|json| Selector::from_json(&json).ok())
    });
    let signer = source.signer_name.as_deref().unwrap_or_default();
    let chosen: Vec<&str> = bundles
        .iter()
        .filter(|bundle| {
            let labels = bundle.metadata.labels.as_ref();
            let label = |key: &str| labels.and_then(|l| l.get(key)).map(String::as_str);
            bundle.spec.signer_name.as_deref() == Some(signer)
                && selector.as_ref().is_some_and(|selector| selector.matches_with(label))
        })
        .map(|bundle| bundle.spec.trust_bundle.as_str())
        .collect();
    if chosen.is_empty() && !optional {
        return Err("combination of signerName and labelSelector matched zero ClusterTrustBundles".into());
    }
    Ok(anchors(chosen.into_iter()))
}

impl TrustBundles {
    /// None are followed yet.
    pub fn new(informers: Arc<Informers>, changed: Changed) -> Self {
        TrustBundles { informers, bundles: OnceCell::new(), pods: Arc::default(), changed }
    }

    /// The anchors that a source of a pod asks for, as PEM.
    pub async fn anchors(
        &self,
        pod_uid: &str,
        source: &ClusterTrustBundleProjection,
    ) -> Result<String, String> {
        self.pods.lock().insert(pod_uid.to_owned());
        let bundles = self.bundles.get_or_init(async || {
            let bundles = self.informers.get::<ClusterTrustBundle>();
            let (told, changed) = (self.pods.clone(), self.changed.clone());
            bundles.on_event(move |_| {
                let pods: Vec<String> = told.lock().iter().cloned().collect();
                pods.iter().for_each(|uid| changed(uid));
            });
            bundles
        });
        let bundles = bundles.await;
        if tokio::time::timeout(FIRST_READ, bundles.synced()).await.is_err() {
            return Err("timed out waiting for ClusterTrustBundles".into());
        }
        choose(&bundles.store().list(), source)
    }

    /// The pod needs none any more.
    pub fn release(&self, pod_uid: &str) {
        self.pods.lock().remove(pod_uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pem(text: &[u8]) -> String {
        certificate::pem::encode("CERTIFICATE", text)
    }

    fn source(value: Value) -> ClusterTrustBundleProjection {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn bundles_are_chosen() {
        let bundle = |name: &str, signer: Option<&str>, tier: &str, text: String| {
            let spec = json!({"signerName": signer, "trustBundle": text});
            let value = json!({"metadata": {"name": name, "labels": {"tier": tier}}, "spec": spec});
            Arc::new(ClusterTrustBundle::from_value(value).unwrap())
        };
        let all = [
            bundle("plain", None, "a", format!("text around\n{}{}", pem(b"two"), pem(b"one"))),
            bundle("s:a", Some("e.com/s"), "a", pem(b"three") + &pem(b"two")),
            bundle("s:b", Some("e.com/s"), "b", pem(b"two")),
        ];
        let by_signer = json!({"path": "p", "signerName": "e.com/s", "labelSelector": {}});
        for (wanted, expected) in [
            (json!({"path": "p", "name": "plain"}), Ok(pem(b"one") + &pem(b"two"))),
            (by_signer, Ok(pem(b"three") + &pem(b"two"))),
            (
                json!({"path": "p", "signerName": "e.com/s", "labelSelector": {"matchLabels": {"tier": "b"}}}),
                Ok(pem(b"two")),
            ),
            (json!({"path": "p", "name": "none", "optional": true}), Ok(String::new())),
            (json!({"path": "p", "signerName": "e.com/s", "optional": true}), Ok(String::new())),
            (
                json!({"path": "p", "signerName": "e.com/s"}),
                Err("combination of signerName and labelSelector matched zero ClusterTrustBundles".to_owned()),
            ),
        ] {
            assert_eq!(choose(&all, &source(wanted.clone())), expected, "{wanted}");
        }
        assert!(
            choose(&all, &source(json!({"path": "p", "name": "none"}))).unwrap_err().contains("not found")
        );
    }
}
