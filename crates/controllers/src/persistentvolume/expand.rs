//! `persistentvolume-expander-controller`: claims of drivers that ask for more are handed to the driver's own
//! resizer, which an annotation names.

use std::sync::Arc;

use api::prelude::*;
use client::{BoxFuture, Client, Patch};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, Recorder, WorkQueue,
};
use serde_json::json;
use volumes::{annotated, annotation, storage};

const NAME: &str = "expand-controller";
const WORKERS: usize = 2;

/// The row of `persistentvolume-expander-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
}

/// Whether a bound claim asks for more than it has.
pub fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    let status = claim.status.as_ref();
    let bound = status.and_then(|s| s.phase.as_deref()) == Some("Bound");
    let asked = claim.spec.as_ref().and_then(|s| storage(s.resources.as_ref()?.requests.as_ref()));
    bound && asked > status.and_then(|s| storage(s.capacity.as_ref()))
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.events.recorder(context.client_of(NAME), "volume_expand", ""),
        claims: context.informers.get::<PersistentVolumeClaim>(),
        volumes: context.informers.get::<PersistentVolume>(),
    });
    let to = queue.clone();
    this.claims.on_event(move |event| {
        if wants_more(event.object()) {
            to.add(event.object().key());
        }
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.claims).after(&this.volumes)
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(claim) = self.claims.store().get(key).filter(|c| wants_more(c)) else {
            return Ok(Action::Wait);
        };
        let name = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
        let Some(volume) = self.volumes.store().get(name) else { return Ok(Action::Wait) };
        let driver = volume.spec.as_ref().and_then(|s| s.csi.as_ref()).map(|csi| csi.driver.clone());
        let made_by = annotated(&volume.metadata, annotation::PROVISIONED_BY).map(String::from);
        let Some(resizer) = driver.or(made_by) else {
            let message = "didn't find a plugin capable of expanding the volume; waiting for an external controller \
                           to process this PVC";
            self.recorder.normal(&*claim, "ExternalExpanding", message);
            return Ok(Action::Wait);
        };
        if annotated(&claim.metadata, annotation::STORAGE_RESIZER) == Some(&resizer) {
            return Ok(Action::Wait);
        }
        let patch = json!({"metadata": {"annotations": {annotation::STORAGE_RESIZER: resizer}}});
        // The controller's role covers the status of claims only, and annotations may be written there.
        let outcome = self
            .client
            .patch(
                &PersistentVolumeClaim::GVR,
                claim.namespace(),
                claim.name(),
                "status",
                &Patch::Merge(patch),
            )
            .await;
        match outcome {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
        let message = format!("waiting for an external controller to expand this PVC: {resizer}");
        tracing::debug!(claim = key, message);
        self.recorder.normal(
            &*claim,
            "ExternalExpanding",
            "waiting for an external controller to expand this PVC",
        );
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
    use super::*;

    #[test]
    fn bound_claims_may_want_more() {
        for (asked, has, phase, expected) in [
            ("2Gi", "1Gi", "Bound", true),
            ("1Gi", "1Gi", "Bound", false),
            ("1Gi", "2Gi", "Bound", false),
            ("2Gi", "1Gi", "Pending", false),
        ] {
            let claim = PersistentVolumeClaim::from_value(json!({"metadata": {"name": "c"},
                "spec": {"resources": {"requests": {"storage": asked}}},
                "status": {"phase": phase, "capacity": {"storage": has}}}))
            .unwrap();
            assert_eq!(wants_more(&claim), expected);
        }
    }
}
