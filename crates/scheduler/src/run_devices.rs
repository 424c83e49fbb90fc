//! The shell's part for devices: news of claims, slices and classes, and claims that have to be written before their
//! pod is bound.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, DeviceRequestAllocationResult};
use api::prelude::*;
use client::{DeleteParams, Patch};
use devices::{FINALIZER, Mapping, claims};
use reconcile::{Context, Event};
use serde_json::{Value, json};

use crate::devices::{Change, Cleanup, Reserve, Work};
use crate::pod_info::PodInfo;
use crate::run::Shell;

/// How often a claim that others change at the same time is written before giving up.
const CONFLICTS_MAX: usize = 5;
/// Longest wait for devices to become ready (upstream's `bindingTimeout`).
const READY_MAX: Duration = Duration::from_secs(600);

/// Claims as they were written for a pod.
pub(crate) type Written = Vec<ResourceClaim>;

impl Shell {
    /// Connects the informers of devices and waits for their first lists.
    pub(crate) async fn follow_devices(self: &Arc<Self>, context: &Context) {
        let slices = context.informers.get::<ResourceSlice>();
        let classes = context.informers.get::<DeviceClass>();
        let rules = context.informers.get::<DeviceTaintRule>();
        let it = self.clone();
        slices.on_event(move |event| {
            it.on_devices(match event {
                Event::Deleted(slice) => Change::SliceGone(slice.name().to_owned()),
                event => Change::Slice(event.object().clone()),
            });
        });
        let it = self.clone();
        classes.on_event(move |event| {
            it.on_devices(match event {
                Event::Deleted(class) => Change::ClassGone(class.name().to_owned()),
                event => Change::Class(event.object().clone()),
            });
        });
        let it = self.clone();
        rules.on_event(move |event| {
            it.on_devices(match event {
                Event::Deleted(rule) => Change::RuleGone(rule.name().to_owned()),
                event => Change::Rule(event.object().clone()),
            });
        });
        let it = self.clone();
        self.device_claims.on_event(move |event| {
            it.on_devices(match event {
                Event::Deleted(claim) => Change::ClaimGone(claim.key()),
                event => Change::Claim(event.object().clone()),
            });
            it.bound.notify_waiters();
        });
        slices.synced().await;
        classes.synced().await;
        rules.synced().await;
        self.device_claims.synced().await;
    }

    fn on_devices(&self, change: Change) {
        self.state.lock().devices_changed(change, self.clock.instant());
        self.wake.notify_one();
    }

    /// Writes what was decided for a pod's claims, and waits for devices that have to become ready. An error says
    /// why the pod cannot have its node; what was written is taken back.
    pub(crate) async fn bind_claims(&self, pod: &PodInfo, work: &Work) -> Result<Written, String> {
        let mut written = Written::new();
        for reserve in work {
            match self.bind_claim(pod, reserve).await {
                Ok(claim) => {
                    self.state.lock().cache.devices.assume(Arc::new(claim.clone()));
                    written.push(claim);
                }
                Err(why) => {
                    self.unbind_claims(pod, written).await;
                    return Err(why);
                }
            }
        }
        self.state.lock().cache.devices.settle(&pod.uid);
        let ready = tokio::time::timeout(READY_MAX, self.devices_ready(pod, &written)).await;
        match ready.unwrap_or_else(|_| Err("device binding timeout".into())) {
            Ok(()) => Ok(written),
            Err(why) => {
                self.unbind_claims(pod, written).await;
                Err(why)
            }
        }
    }

    async fn bind_claim(&self, pod: &PodInfo, reserve: &Reserve) -> Result<ResourceClaim, String> {
        let mut claim = match reserve.claim.name() {
            "" => self.create_extended(&reserve.claim).await?,
            _ => ResourceClaim::clone(&reserve.claim),
        };
        let made = reserve.claim.name().is_empty();
        let mut tries = 0;
        let written = loop {
            let key = claim.key();
            if claim.is_terminating() {
                return Err(format!("claim {key} got deleted in the meantime"));
            }
            match (&reserve.allocation, claims::allocation(&claim)) {
                (Some(_), Some(_)) => {
                    return Err(format!("claim {key} got allocated elsewhere in the meantime"));
                }
                (None, None) => return Err(format!("claim {key} got deallocated elsewhere in the meantime")),
                _ => {}
            }
            match self.write_claim(pod, reserve, claim).await {
                Ok(written) => break written,
                Err(error) if error.is_conflict() && tries < CONFLICTS_MAX => tries += 1,
                Err(error) => return Err(format!("reserve claim {key}: {error}")),
            }
            let (namespace, name) = meta_of(&key);
            let fresh = self.client.get_typed::<ResourceClaim>(namespace, name).await;
            claim = fresh.map_err(|error| format!("get claim {key}: {error}"))?;
        };
        if made {
            self.note_extended(pod, &written, &reserve.mappings).await?;
        }
        Ok(written)
    }

    async fn write_claim(
        &self,
        pod: &PodInfo,
        reserve: &Reserve,
        mut claim: ResourceClaim,
    ) -> Result<ResourceClaim, client::Error> {
        if let Some(allocation) = &reserve.allocation {
            let finalizers = claim.metadata.finalizers.get_or_insert_default();
            if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
                finalizers.push(FINALIZER.to_owned());
                claim = self.client.update_typed(&claim).await?;
            }
            let mut allocation = allocation.clone();
            let results = allocation.devices.iter().flat_map(|d| d.results.iter().flatten());
            if results.into_iter().any(|result| result.binding_conditions.is_some()) {
                allocation.allocation_timestamp = Some(Time(self.clock.now()));
            }
            claim.status.get_or_insert_default().allocation = Some(allocation);
        }
        let users = claim.status.get_or_insert_default().reserved_for.get_or_insert_default();
        if !users.iter().any(|user| user.uid == *pod.uid) {
            users.push(claims::consumer(&pod.pod));
        }
        self.client.update_status_typed(&claim).await
    }

    async fn create_extended(&self, claim: &ResourceClaim) -> Result<ResourceClaim, String> {
        let mut claim = claim.clone();
        claim.metadata.uid = None;
        let made = self.client.create_typed(&claim).await;
        made.map_err(|error| format!("create claim for extended resources {}: {error}", claim.namespace()))
    }

    /// Writes into a pod's status which claim stands behind its extended resources.
    async fn note_extended(
        &self,
        pod: &PodInfo,
        claim: &ResourceClaim,
        mappings: &[Mapping],
    ) -> Result<(), String> {
        let mappings: Vec<Value> = mappings
            .iter()
            .map(|m| json!({"containerName": m.container, "resourceName": m.resource, "requestName": m.request}))
            .collect();
        let status = json!({"extendedResourceClaimStatus":
            {"resourceClaimName": claim.name(), "requestMappings": mappings}});
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.pod.uid()}, "status": status}));
        let (namespace, name) = (pod.pod.namespace(), pod.pod.name());
        let outcome = self.client.patch(&Pod::GVR, namespace, name, "status", &patch).await;
        outcome
            .map(drop)
            .map_err(|error| format!("update pod {} ExtendedResourceClaimStatus: {error}", pod.key))
    }

    /// Waits until devices that have to become ready are.
    async fn devices_ready(&self, pod: &PodInfo, written: &Written) -> Result<(), String> {
        let mut left: HashSet<String> =
            written.iter().filter(|claim| readiness(claim) != Ok(true)).map(Typed::key).collect();
        while !left.is_empty() {
            let notified = self.bound.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            for key in left.clone() {
                let claim = self.device_claims.store().get(&key);
                let claim = claim.ok_or_else(|| format!("claim {key} got deleted in the meantime"))?;
                // What was written just now may not have been seen yet.
                if claims::allocation(&claim).is_some() && readiness(&claim)? {
                    left.remove(&key);
                }
            }
            if left.is_empty() {
                break;
            }
            if !self.is_wanted(pod) {
                return Err("pod does not exist any more".into());
            }
            notified.await;
        }
        Ok(())
    }

    /// Takes back what was written for a pod that does not get its node.
    pub(crate) async fn unbind_claims(&self, pod: &PodInfo, written: Written) {
        for claim in written {
            let outcome = match devices_extended(&claim) {
                true => self.delete_claim(&claim).await,
                false => self.unreserve(pod, &claim).await,
            };
            if let Err(error) = outcome {
                tracing::debug!(claim = claim.key(), %error, "a reservation could not be taken back");
            }
        }
    }

    async fn unreserve(&self, pod: &PodInfo, claim: &ResourceClaim) -> Result<(), client::Error> {
        let mut claim: ResourceClaim = self.client.get_typed(claim.namespace(), claim.name()).await?;
        let waits = readiness(&claim) != Ok(true);
        let Some(status) = &mut claim.status else { return Ok(()) };
        let users = status.reserved_for.get_or_insert_default();
        users.retain(|user| user.uid != *pod.uid);
        if users.is_empty() && waits {
            // Other devices may become ready sooner.
            status.allocation = None;
        }
        let written = self.client.update_status_typed(&claim).await?;
        self.state.lock().cache.devices.assume(Arc::new(written));
        Ok(())
    }

    async fn delete_claim(&self, claim: &ResourceClaim) -> Result<(), client::Error> {
        let patch = Patch::Merge(json!({"metadata": {"uid": claim.uid(), "finalizers": Value::Null}}));
        let (namespace, name) = (claim.namespace(), claim.name());
        self.client.patch(&ResourceClaim::GVR, namespace, name, "", &patch).await?;
        let params = DeleteParams::only_uid(claim.uid());
        match self.client.delete_typed::<ResourceClaim>(namespace, name, &params).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes a claim free that keeps a pod from being scheduled.
    pub(crate) async fn clean_up(&self, cleanup: &Cleanup) {
        let outcome = match cleanup {
            Cleanup::Delete(claim) => self.delete_claim(claim).await,
            Cleanup::Deallocate(claim) => {
                let mut claim = ResourceClaim::clone(claim);
                if let Some(status) = &mut claim.status {
                    (status.reserved_for, status.allocation) = (None, None);
                }
                self.client.update_status_typed(&claim).await.map(drop)
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "a claim could not be made free");
        }
    }
}

fn meta_of(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

fn devices_extended(claim: &ResourceClaim) -> bool {
    claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(devices::EXTENDED_CLAIM))
}

/// Whether all devices of a claim that have to become ready are; an error if one never will.
fn readiness(claim: &ResourceClaim) -> Result<bool, String> {
    let results = claims::allocation(claim).and_then(|a| a.devices.as_ref()?.results.as_deref());
    let mut ready = true;
    for result in results.unwrap_or_default() {
        let Some(wanted) = &result.binding_conditions else { continue };
        let statuses = claim.status.iter().flat_map(|s| s.devices.iter().flatten());
        let status = statuses.into_iter().find(|status| is_of(status, result));
        let conditions: Vec<&Condition> = status.iter().flat_map(|s| s.conditions.iter().flatten()).collect();
        let is_true = |name: &String| conditions.iter().find(|c| c.type_ == *name && c.status == "True");
        if let Some(failed) = result.binding_failure_conditions.iter().flatten().find_map(is_true) {
            return Err(format!(
                "claim {} binding failed: reason={}, message={:?}",
                claim.name(),
                failed.reason,
                failed.message
            ));
        }
        ready &= wanted.iter().all(|name| is_true(name).is_some());
    }
    Ok(ready)
}

fn is_of(status: &AllocatedDeviceStatus, result: &DeviceRequestAllocationResult) -> bool {
    status.driver == result.driver && status.pool == result.pool && status.device == result.device
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_become_ready_or_fail() {
        let claim = |conditions: Value| {
            let result = json!({"request": "r", "driver": "d", "pool": "p", "device": "x",
                "bindingConditions": ["Ready"], "bindingFailureConditions": ["Broken"]});
            let status = json!({"driver": "d", "pool": "p", "device": "x", "conditions": conditions});
            ResourceClaim::from_value(json!({"metadata": {"name": "c"}, "spec": {}, "status":
                {"allocation": {"devices": {"results": [result]}}, "devices": [status]}}))
            .unwrap()
        };
        let condition = |name: &str, status: &str| json!([{"type": name, "status": status, "reason": "Why", "message": "because", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        assert_eq!(readiness(&claim(json!([]))), Ok(false));
        assert_eq!(readiness(&claim(condition("Ready", "False"))), Ok(false));
        assert_eq!(readiness(&claim(condition("Ready", "True"))), Ok(true));
        let failed = "claim c binding failed: reason=Why, message=\"because\"";
        assert_eq!(readiness(&claim(condition("Broken", "True"))), Err(failed.into()));
    }
}
