//! `persistentvolumeclaim-protection-controller` and `persistentvolume-protection-controller`: what is in use is
//! not deleted under its users. Admission gives each new claim and volume a finalizer; these take it away once
//! deletion has begun and nobody uses the object any more.

use std::sync::Arc;

use api::prelude::*;
use client::{BoxFuture, Client};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, WorkQueue,
};

const CLAIMS: &str = "pvc-protection-controller";
const VOLUMES: &str = "pv-protection-controller";
const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
const WORKERS: usize = 2;
/// Index of pods by the claims they use.
const BY_CLAIM: &str = "claim";

/// The row of `persistentvolumeclaim-protection-controller`.
pub fn claims_descriptor() -> Descriptor {
    Descriptor::new(CLAIMS, build_claims)
}

/// The row of `persistentvolume-protection-controller`.
pub fn volumes_descriptor() -> Descriptor {
    Descriptor::new(VOLUMES, build_volumes)
}

/// Keys of the claims that a pod uses. One that waits for a node uses none yet: the kubelet will not start it
/// with a claim that is going.
fn claims_of(pod: &Pod) -> Vec<String> {
    let Some(spec) = pod.spec.as_ref().filter(|s| s.node_name.as_ref().is_some_and(|n| !n.is_empty())) else {
        return Vec::new();
    };
    let names = spec.volumes.iter().flatten().filter_map(|volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|c| c.claim_name.clone());
        named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{}-{}", pod.name(), volume.name)))
    });
    names.map(|name| format!("{}/{name}", pod.namespace())).collect()
}

/// Whether only finalizers may still keep something, this one among them.
pub(crate) fn is_held(metadata: &ObjectMeta, finalizer: &str) -> bool {
    metadata.deletion_timestamp.is_some() && metadata.finalizers.iter().flatten().any(|f| f == finalizer)
}

/// Takes a finalizer away.
pub(crate) fn release(metadata: &mut ObjectMeta, finalizer: &str) {
    metadata.finalizers.iter_mut().for_each(|all| all.retain(|f| f != finalizer));
}

/// The outcome of a write; what is gone already is well.
pub(crate) fn settle<T>(outcome: client::Result<T>) -> Result<Action, ControlError> {
    match outcome {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(Action::Wait),
    }
}

struct ClaimLoop {
    client: Client,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    pods: Arc<Informer<Pod>>,
}

fn build_claims(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(ClaimLoop {
        client: context.client_of(CLAIMS),
        claims: context.informers.get::<PersistentVolumeClaim>(),
        pods: context.informers.get::<Pod>(),
    });
    this.pods.store().add_index(BY_CLAIM, claims_of);
    let to = queue.clone();
    this.claims.on_event(move |event| {
        if is_held(&event.object().metadata, CLAIM_FINALIZER) {
            to.add(event.object().key());
        }
    });
    let to = queue.clone();
    this.pods.on_event(move |event| {
        if let Event::Deleted(pod) = event {
            claims_of(pod).into_iter().for_each(|claim| to.add(claim));
        }
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.claims).after(&this.pods)
}

impl ClaimLoop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(claim) = self.claims.store().get(key) else { return Ok(Action::Wait) };
        if !is_held(&claim.metadata, CLAIM_FINALIZER) || self.is_used(key).await? {
            return Ok(Action::Wait);
        }
        let mut claim = PersistentVolumeClaim::clone(&claim);
        release(&mut claim.metadata, CLAIM_FINALIZER);
        settle(self.client.update_typed(&claim).await)
    }

    /// Whether a pod uses the claim, also one that the cache has not seen yet.
    async fn is_used(&self, key: &str) -> Result<bool, ControlError> {
        if !self.pods.store().by_index(BY_CLAIM, key).is_empty() {
            return Ok(true);
        }
        let (namespace, _) = reconcile::split_key(key);
        let (live, _) = self.client.list_typed::<Pod>(namespace, &client::ListParams::default()).await?;
        Ok(live.iter().any(|pod| claims_of(pod).iter().any(|claim| claim == key)))
    }
}

impl Reconcile for ClaimLoop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}

struct VolumeLoop {
    client: Client,
    volumes: Arc<Informer<PersistentVolume>>,
}

fn build_volumes(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(VolumeLoop {
        client: context.client_of(VOLUMES),
        volumes: context.informers.get::<PersistentVolume>(),
    });
    let to = queue.clone();
    this.volumes.on_event(move |event| {
        if is_held(&event.object().metadata, VOLUME_FINALIZER) {
            to.add(event.object().key());
        }
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.volumes)
}

impl VolumeLoop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(volume) = self.volumes.store().get(key) else { return Ok(Action::Wait) };
        let bound = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        if bound || !is_held(&volume.metadata, VOLUME_FINALIZER) {
            return Ok(Action::Wait);
        }
        let mut volume = PersistentVolume::clone(&volume);
        release(&mut volume.metadata, VOLUME_FINALIZER);
        settle(self.client.update_typed(&volume).await)
    }
}

impl Reconcile for VolumeLoop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_use_claims_once_they_have_a_node() {
        let pod = |node: &str| {
            Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": node,
                "containers": [], "volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "b", "ephemeral": {}}, {"name": "d", "emptyDir": {}}]}}))
            .unwrap()
        };
        assert_eq!(claims_of(&pod("node")), ["n/c", "n/p-b"]);
        assert!(claims_of(&pod("")).is_empty());
    }
}
