//! How many pods the controllers of some pods want together, asked of whatever they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use api::k8s_openapi::api::core::v1::ReplicationController;
use api::prelude::*;
use client::Client;
use client::discovery::RestMapper;
use meta::{Gvk, Gvr};
use reconcile::Informer;

use crate::owners;

/// Where sizes come from.
pub struct Scales {
    client: Client,
    sets: Arc<Informer<ReplicaSet>>,
    deployments: Arc<Informer<Deployment>>,
    stateful: Arc<Informer<StatefulSet>>,
    controllers: Arc<Informer<ReplicationController>>,
    /// What is served, as of the last look for a kind that was unknown.
    resources: Mutex<Option<Arc<RestMapper>>>,
}

/// What is known of the size.
#[derive(Debug, Default, PartialEq)]
pub struct Total {
    /// Pods wanted by all controllers.
    pub pods: i32,
    /// Pods without a controller: nobody knows how many of them there should be.
    pub unmanaged: Vec<String>,
}

impl Scales {
    /// Reads caches where there are some, and asks with `client` about the rest.
    pub fn new(client: Client, informers: &reconcile::Informers) -> Self {
        Scales {
            client,
            sets: informers.get(),
            deployments: informers.get(),
            stateful: informers.get(),
            controllers: informers.get(),
            resources: Mutex::default(),
        }
    }

    /// Waits for the caches.
    pub async fn synced(self: Arc<Self>) {
        self.sets.synced().await;
        self.deployments.synced().await;
        self.stateful.synced().await;
        self.controllers.synced().await;
    }

    /// The size of all controllers of `pods`, each counted once.
    ///
    /// # Errors
    /// What users read in the budget's condition.
    pub async fn total(&self, pods: &[Arc<Pod>]) -> Result<Total, String> {
        let mut total = Total::default();
        let mut sizes: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            let Some(owner) = owners::controller_of(&pod.metadata) else {
                total.unmanaged.push(pod.name().to_owned());
                continue;
            };
            if sizes.contains_key(&owner.uid) {
                continue;
            }
            let size = match self.cached(pod.namespace(), owner) {
                Some((uid, _)) if sizes.contains_key(&uid) => continue,
                Some((uid, size)) => Some((uid, size)),
                None => self.asked(pod.namespace(), owner).await?,
            };
            let Some((uid, size)) = size else {
                return Err(format!("found no controllers for pod {:?}", pod.name()));
            };
            sizes.insert(uid, size);
        }
        total.pods = sizes.values().fold(0, |sum, size| sum.saturating_add(*size));
        Ok(total)
    }

    /// The uid and size of a controller of a kind that is cached; of a ReplicaSet's Deployment instead of it.
    fn cached(&self, namespace: &str, owner: &OwnerReference) -> Option<(String, i32)> {
        let same = |uid: &str| uid == owner.uid;
        match (owner.api_version.as_str(), owner.kind.as_str()) {
            ("apps/v1", "ReplicaSet") => {
                let set = self.sets.store().get_in(namespace, &owner.name).filter(|s| same(s.uid()))?;
                let above = owners::controller_of(&set.metadata).filter(|o| o.kind == "Deployment");
                let Some(above) = above else {
                    return Some((owner.uid.clone(), set.spec.replicas.unwrap_or(1)));
                };
                let found = self.deployments.store().get_in(namespace, &above.name);
                let found = found.filter(|d| d.uid() == above.uid)?;
                Some((above.uid.clone(), found.spec.replicas.unwrap_or(1)))
            }
            ("apps/v1", "StatefulSet") => {
                let set = self.stateful.store().get_in(namespace, &owner.name).filter(|s| same(s.uid()))?;
                Some((owner.uid.clone(), set.spec.replicas.unwrap_or(1)))
            }
            ("v1", "ReplicationController") => {
                let found = self.controllers.store().get_in(namespace, &owner.name);
                let found = found.filter(|c| same(c.uid()))?;
                let replicas = found.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
                Some((owner.uid.clone(), replicas))
            }
            _ => None,
        }
    }

    /// The size of a controller of any other kind, by its scale.
    async fn asked(&self, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>, String> {
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let gvk = Gvk {
            group: group.to_owned().into(),
            version: version.to_owned().into(),
            kind: owner.kind.clone().into(),
        };
        let gvr = self.resource(&gvk).await?;
        let path = match gvr.group.is_empty() {
            true => {
                format!("/api/{}/namespaces/{namespace}/{}/{}/scale", gvr.version, gvr.resource, owner.name)
            }
            false => format!(
                "/apis/{}/{}/namespaces/{namespace}/{}/{}/scale",
                gvr.group, gvr.version, gvr.resource, owner.name
            ),
        };
        let scale = match self.client.get_path(&path).await {
            Ok(bytes) => serde_json::from_slice::<serde_json::Value>(&bytes).map_err(|e| e.to_string())?,
            Err(error) if error.is_not_found() => {
                return match self.client.get_metadata(&gvr, namespace, &owner.name).await {
                    Ok(_) => {
                        Err(format!("{gvr} does not implement the scale subresource", gvr = named(&gvr)))
                    }
                    Err(error) if error.is_not_found() => Ok(None),
                    Err(error) => Err(error.to_string()),
                };
            }
            Err(error) => return Err(error.to_string()),
        };
        let uid = scale.pointer("/metadata/uid").and_then(serde_json::Value::as_str).unwrap_or_default();
        let size = scale.pointer("/spec/replicas").and_then(serde_json::Value::as_i64).unwrap_or(0);
        Ok((uid == owner.uid).then(|| (owner.uid.clone(), i32::try_from(size).unwrap_or(i32::MAX))))
    }

    async fn resource(&self, gvk: &Gvk) -> Result<Gvr, String> {
        let known = self.resources.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(found) = known.as_ref().and_then(|known| known.by_kind(gvk)) {
            return Ok(found.gvr.clone());
        }
        let fresh = Arc::new(RestMapper::discover(&self.client).await.map_err(|e| e.to_string())?);
        *self.resources.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(fresh.clone());
        let missing = || {
            let version = gvk.api_version();
            format!("no matches for kind {:?} in version {version:?}", gvk.kind)
        };
        fresh.by_kind(gvk).map(|found| found.gvr.clone()).ok_or_else(missing)
    }
}

fn named(gvr: &Gvr) -> String {
    if gvr.group.is_empty() { gvr.resource.to_string() } else { format!("{}.{}", gvr.resource, gvr.group) }
}
