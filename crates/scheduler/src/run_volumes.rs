//! The shell's part for volumes: news of storage, and claims that have to be bound before their pod is.

use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use client::Patch;
use reconcile::{Context, Event};
use serde_json::json;
use volumes::{annotated, annotation};

use crate::pod_info::PodInfo;
use crate::run::Shell;
use crate::storage::{Change, Work};

/// Longest wait for a pod's volumes (upstream's `bindTimeoutSeconds`).
const BIND_MAX: Duration = Duration::from_secs(600);

impl Shell {
    /// Connects the informers of storage and waits for their first lists.
    pub(crate) async fn follow_storage(self: &Arc<Self>, context: &Context) {
        let volumes = context.informers.get::<PersistentVolume>();
        let classes = context.informers.get::<StorageClass>();
        let it = self.clone();
        classes.on_event(move |event| {
            it.on_storage(match event {
                Event::Deleted(class) => Change::ClassGone(class.name().to_owned()),
                event => Change::Class(event.object().clone()),
            });
        });
        let it = self.clone();
        volumes.on_event(move |event| {
            it.on_storage(match event {
                Event::Deleted(volume) => Change::VolumeGone(volume.name().to_owned()),
                event => Change::Volume(event.object().clone()),
            });
        });
        let (drivers, attachments) =
            (context.informers.get::<CSINode>(), context.informers.get::<VolumeAttachment>());
        let it = self.clone();
        drivers.on_event(move |event| {
            it.on_storage(match event {
                Event::Deleted(node) => Change::DriversGone(node.name().to_owned()),
                event => Change::Drivers(event.object().clone()),
            });
        });
        let it = self.clone();
        attachments.on_event(move |event| {
            it.on_storage(match event {
                Event::Deleted(attachment) => Change::AttachmentGone(attachment.name().to_owned()),
                event => Change::Attachment(event.object().clone()),
            });
        });
        let (kinds, rooms) =
            (context.informers.get::<CSIDriver>(), context.informers.get::<CSIStorageCapacity>());
        let it = self.clone();
        kinds.on_event(move |event| {
            it.on_storage(match event {
                Event::Deleted(driver) => Change::DriverGone(driver.name().to_owned()),
                event => Change::Driver(event.object().clone()),
            });
        });
        let it = self.clone();
        rooms.on_event(move |event| {
            it.on_storage(match event {
                Event::Deleted(room) => Change::CapacityGone(room.key()),
                event => Change::Capacity(event.object().clone()),
            });
        });
        let it = self.clone();
        self.claims.on_event(move |event| {
            it.on_storage(match event {
                Event::Deleted(claim) => Change::ClaimGone(claim.key()),
                event => Change::Claim(event.object().clone()),
            });
            it.bound.notify_waiters();
        });
        classes.synced().await;
        volumes.synced().await;
        drivers.synced().await;
        attachments.synced().await;
        kinds.synced().await;
        rooms.synced().await;
        self.claims.synced().await;
    }

    fn on_storage(&self, change: Change) {
        self.state.lock().storage_changed(change, self.clock.instant());
        self.wake.notify_one();
    }

    /// Binds what was found for a pod's claims, asks for what is to be made, and waits for both. An error says why
    /// the pod cannot have its node.
    pub(crate) async fn bind_volumes(&self, pod: &PodInfo, node: &str, work: &Work) -> Result<(), String> {
        for (volume, claim) in &work.bind {
            if let Some(bound) = volumes::bind_volume(volume, claim) {
                self.client
                    .update_typed(&bound)
                    .await
                    .map_err(|error| format!("binding volumes: {error}"))?;
            }
        }
        for claim in &work.provision {
            let patch =
                json!({"metadata": {"uid": claim.uid(), "annotations": {annotation::SELECTED_NODE: node}}});
            let outcome = self
                .client
                .patch(&PersistentVolumeClaim::GVR, claim.namespace(), claim.name(), "", &Patch::Merge(patch))
                .await;
            outcome.map_err(|error| format!("binding volumes: {error}"))?;
        }
        let bound = self.claims_bound(pod, node, work);
        match tokio::time::timeout(BIND_MAX, bound).await {
            Ok(outcome) => outcome,
            Err(_) => Err("binding volumes: context deadline exceeded".into()),
        }
    }

    async fn claims_bound(&self, pod: &PodInfo, node: &str, work: &Work) -> Result<(), String> {
        let found = work.bind.iter().map(|(_, claim)| (claim, false));
        let made = work.provision.iter().map(|claim| (claim, true));
        let mut left: Vec<_> = found.chain(made).collect();
        // What our own patch did is not in the cache at once: an annotation counts as lost when it was seen.
        let mut seen = std::collections::HashSet::new();
        loop {
            let notified = self.bound.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let mut waiting = Vec::new();
            for (claim, made) in left {
                let now = self.claims.store().get(&claim.key()).filter(|now| now.uid() == claim.uid());
                let now = now.ok_or_else(|| {
                    format!("binding volumes: persistentvolumeclaim {:?} not found", claim.name())
                })?;
                let named = now.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
                if !named.is_empty() && annotated(&now.metadata, annotation::BIND_COMPLETED).is_some() {
                    continue;
                }
                let selected = annotated(&now.metadata, annotation::SELECTED_NODE);
                if selected == Some(node) {
                    seen.insert(claim.uid());
                } else if made && seen.contains(claim.uid()) {
                    let why = "selectedNode annotation reset for PVC";
                    return Err(format!(
                        "binding volumes: provisioning failed for PVC {:?}: {why} {:?}",
                        claim.name(),
                        claim.name()
                    ));
                }
                waiting.push((claim, made));
            }
            if waiting.is_empty() {
                return Ok(());
            }
            if !self.is_wanted(pod) {
                return Err("binding volumes: pod does not exist any more".into());
            }
            left = waiting;
            notified.await;
        }
    }
}
