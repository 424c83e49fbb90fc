//! `ephemeral-volume-controller`: makes the claims of pods' generic ephemeral volumes, owned by the pod so that they
//! end with it.

use std::sync::Arc;

use api::k8s_openapi::api::core::v1::Volume;
use api::prelude::*;
use client::{BoxFuture, Client};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, Recorder, WorkQueue,
};

const NAME: &str = "ephemeral-volume-controller";
const WORKERS: usize = 4;
/// Index of pods by the claims made for them.
const BY_CLAIM: &str = "ephemeral-claims";

/// The row of `ephemeral-volume-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
}

fn volumes_of(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let all = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    all.iter().filter(|volume| volume.ephemeral.is_some())
}

fn claim_name(pod: &Pod, volume: &Volume) -> String {
    format!("{}-{}", pod.name(), volume.name)
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.events.recorder(context.client_of(NAME), "ephemeral_volume", ""),
        pods: context.informers.get::<Pod>(),
        claims: context.informers.get::<PersistentVolumeClaim>(),
    });
    this.pods.store().add_index(BY_CLAIM, |pod| {
        volumes_of(pod).map(|volume| format!("{}/{}", pod.namespace(), claim_name(pod, volume))).collect()
    });
    let to = queue.clone();
    this.pods.on_event(move |event| {
        let pod = event.object();
        if !matches!(event, Event::Deleted(_)) && volumes_of(pod).next().is_some() {
            to.add(pod.key());
        }
    });
    let (to, it) = (queue.clone(), this.clone());
    this.claims.on_event(move |event| {
        if let Event::Deleted(claim) = event {
            it.pods.store().by_index(BY_CLAIM, &claim.key()).iter().for_each(|pod| to.add(pod.key()));
        }
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.pods).after(&this.claims)
}

/// The claim of a volume.
fn claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    let given = template.metadata.clone().unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(claim_name(pod, volume)),
            namespace: Some(pod.namespace().to_owned()),
            labels: given.labels,
            annotations: given.annotations,
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Pod".into(),
                name: pod.name().to_owned(),
                uid: pod.uid().to_owned(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    })
}

/// Whether a claim was made for a pod.
fn is_for(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.any(|owner| owner.controller == Some(true) && owner.uid == pod.uid())
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(pod) = self.pods.store().get(key) else { return Ok(Action::Wait) };
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if pod.is_terminating() || matches!(phase, Some("Succeeded" | "Failed")) {
            return Ok(Action::Wait);
        }
        for volume in volumes_of(&pod) {
            let name = claim_name(&pod, volume);
            if let Some(found) = self.claims.store().get_in(pod.namespace(), &name) {
                if is_for(&found, &pod) {
                    continue;
                }
                let problem = format!(
                    "PVC {}/{name} was not created for pod {key} (pod is not owner)",
                    pod.namespace()
                );
                self.recorder.warning(
                    &*pod,
                    "FailedBinding",
                    format!("ephemeral volume {}: {problem}", volume.name),
                );
                return Err(ControlError::Unfinished(problem));
            }
            let Some(claim) = claim(&pod, volume) else { continue };
            match self.client.create_typed(&claim).await {
                Ok(_) => {}
                Err(error) if error.is_already_exists() || error.is_namespace_terminating() => {}
                Err(error) => {
                    let message = format!("ephemeral volume {}: create PVC {name}: {error}", volume.name);
                    self.recorder.warning(&*pod, "FailedBinding", message);
                    return Err(error.into());
                }
            }
        }
        Ok(Action::Wait)
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_belong_to_their_pod() {
        let pod = Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate":
                {"metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}}}]}}))
        .unwrap();
        let volume = volumes_of(&pod).next().unwrap();
        let made = claim(&pod, volume).unwrap();
        assert_eq!((made.name(), made.namespace()), ("p-v", "n"));
        assert!(is_for(&made, &pod) && made.metadata.labels.is_some());
        let other = PersistentVolumeClaim { metadata: ObjectMeta::default(), ..made };
        assert!(!is_for(&other, &pod));
    }
}
