//! Devices of claims (dynamic resource allocation): drivers prepare them before a pod starts and are told when the last
//! pod has ended; containers get what drivers name by the Container Device Interface.
//!
//! What is prepared for whom is decided in `state`; its record outlives the kubelet.

pub mod driver;
pub mod plugins;
pub mod state;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use client::Client;
use devices::claims;
use parking_lot::Mutex;

use self::plugins::Drivers;
use self::state::{Claim, Device, OfDriver, State};

/// Name of the record.
const RECORD: &str = "dra_manager_state";
/// Pause between tries to give back what pods had that are gone.
const GIVE_BACK_RETRY: stdx::Backoff =
    stdx::Backoff { initial: Duration::from_secs(2), max: Duration::from_secs(60) };

/// The claims in use on the node.
pub struct Manager {
    client: Client,
    record: PathBuf,
    state: Mutex<State>,
    /// Drivers.
    pub drivers: Arc<Drivers>,
    /// One pod at a time is prepared or given back.
    turn: tokio::sync::Mutex<()>,
}

/// Requests of a claim that a container uses; none for all.
type Wanted = BTreeMap<String, Vec<String>>;

impl Manager {
    /// The manager whose record is in `directory`.
    pub fn new(client: Client, directory: &std::path::Path, drivers: Arc<Drivers>) -> Manager {
        let record = directory.join(RECORD);
        let saved = std::fs::read_to_string(&record).ok();
        let state = saved.as_deref().and_then(|text| {
            let read = State::read(text);
            if read.is_none() {
                tracing::warn!("the record of claims is damaged and begins anew");
            }
            read
        });
        let state = Mutex::new(state.unwrap_or_default());
        Manager { client, record, state, drivers, turn: tokio::sync::Mutex::default() }
    }

    fn save(&self) -> Result<(), String> {
        let text = self.state.lock().write();
        let new = self.record.with_extension("new");
        let kept = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &self.record));
        kept.map_err(|error| format!("checkpoint ResourceClaim cache: {error}"))
    }

    /// Has everything prepared that a pod's claims name. An error says why the pod cannot start.
    pub async fn prepare(&self, pod: &Pod) -> Result<(), String> {
        if claims::of_pod(pod).is_empty() && claims::extended(pod).is_none() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        self.prepare_all(pod).await.map_err(|why| format!("prepare dynamic resources: {why}"))
    }

    async fn prepare_all(&self, pod: &Pod) -> Result<(), String> {
        let mut found = Vec::new();
        for entry in claims::of_pod(pod) {
            let reference = claims::reference(pod, entry).map_err(|why| why.to_string())?;
            if let Some(reference) = reference {
                found.push(self.look_up(pod, &reference.name, reference.own).await?);
            }
        }
        if let Some(name) = claims::extended(pod) {
            found.push(self.look_up(pod, name, false).await?);
        }
        // Nothing is noted before it is clear that all drivers are there: a pod that cannot be prepared must not
        // need them to be deleted either.
        for driver in found.iter().flat_map(|claim| claim.drivers.keys()) {
            self.drivers.get(driver)?;
        }
        let mut waiting = Vec::new();
        {
            let mut state = self.state.lock();
            for claim in found {
                if state.reference(&claim, pod.uid())? {
                    waiting.push(claim);
                }
            }
        }
        self.save()?;
        for (driver, own) in by_driver(&waiting) {
            let (channel, version) = self.drivers.get(&driver)?;
            let outcomes = driver::prepare(&channel, version, &own).await;
            let outcomes = outcomes.map_err(|why| format!("NodePrepareResources: {why}"))?;
            driver::check("NodePrepareResources", &own, &outcomes)?;
            let mut state = self.state.lock();
            for claim in &own {
                if let Some(Ok(devices)) = outcomes.get(&claim.uid) {
                    state.add(&claim.namespace, &claim.name, &driver, devices.clone());
                }
            }
        }
        waiting.iter().for_each(|claim| self.state.lock().set_prepared(&claim.namespace, &claim.name));
        self.save()
    }

    /// A claim as it is to be prepared.
    async fn look_up(&self, pod: &Pod, name: &str, own: bool) -> Result<Claim, String> {
        let claim = self.client.get_typed::<ResourceClaim>(pod.namespace(), name).await;
        let claim = claim.map_err(|error| format!("fetch ResourceClaim {name}: {error}"))?;
        if own {
            claims::check_owner(pod, &claim)?;
        }
        if !claims::is_reserved_for(&claim, pod.uid()) {
            return Err(format!(
                "pod {} ({}) is not allowed to use ResourceClaim {name} ({})",
                pod.name(),
                pod.uid(),
                claim.uid()
            ));
        }
        let allocation = claims::allocation(&claim);
        let allocation = allocation.ok_or_else(|| format!("ResourceClaim {name}: not allocated"))?;
        let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
        Ok(Claim {
            uid: claim.uid().to_owned(),
            name: name.to_owned(),
            namespace: pod.namespace().to_owned(),
            drivers: results.map(|result| (result.driver.clone(), OfDriver::default())).collect(),
            ..Claim::default()
        })
    }

    /// Gives back what a pod had, as far as nobody else uses it.
    pub async fn unprepare(&self, uid: &str) -> Result<(), String> {
        if self.state.lock().of_pod(uid).is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        self.unprepare_all(uid).await.map_err(|why| format!("unprepare dynamic resources: {why}"))
    }

    async fn unprepare_all(&self, uid: &str) -> Result<(), String> {
        let last = self.state.lock().leave(uid);
        for (driver, own) in by_driver(&last) {
            let (channel, version) = self.drivers.get(&driver)?;
            let outcomes = driver::unprepare(&channel, version, &own).await;
            let outcomes = outcomes.map_err(|why| format!("NodeUnprepareResources: {why}"))?;
            driver::check("NodeUnprepareResources", &own, &outcomes)?;
        }
        last.iter().for_each(|claim| self.state.lock().forget(claim));
        self.save()
    }

    /// Gives back what pods had that are gone, however long it takes for their drivers to come.
    pub async fn keep_only(&self, exists: impl Fn(&str) -> bool) {
        let pods = self.state.lock().pods();
        let mut left: Vec<String> = pods.into_iter().filter(|uid| !exists(uid)).collect();
        let mut failures = 0;
        while !left.is_empty() {
            let mut again = Vec::new();
            for uid in left {
                if let Err(error) = self.unprepare(&uid).await {
                    tracing::debug!(uid, error, "claims of a pod that is gone are still prepared");
                    again.push(uid);
                }
            }
            left = again;
            if !left.is_empty() {
                failures += 1;
                tokio::time::sleep(GIVE_BACK_RETRY.delay(failures)).await;
            }
        }
    }

    /// The prepared devices of a container by claim, with their drivers. An error says that a claim is not prepared.
    pub fn devices(
        &self,
        pod: &Pod,
        container: &Container,
    ) -> Result<Vec<(String, Vec<(String, Device)>)>, String> {
        let state = self.state.lock();
        let mut all = Vec::new();
        for (name, requests) in wanted(pod, container)? {
            let claim = state.get(pod.namespace(), &name).ok_or_else(|| {
                let namespace = pod.namespace();
                format!(
                    "internal error: unable to get claim info for ResourceClaim {name} in namespace {namespace}"
                )
            })?;
            let mut own: Vec<(String, Device)> = Vec::new();
            for (driver, device) in requests.iter().flat_map(|request| claim.devices(request)) {
                if !own.iter().any(|(d, known)| d == driver && known == device) {
                    own.push((driver.to_owned(), device.clone()));
                }
            }
            all.push((name, own));
        }
        Ok(all)
    }

    /// Gives a container the devices of its claims.
    pub fn fit(
        &self,
        pod: &Pod,
        container: &Container,
        config: &mut cri::ContainerConfig,
    ) -> Result<(), String> {
        for (_, devices) in self.devices(pod, container)? {
            for id in devices.into_iter().flat_map(|(_, device)| device.cdi_device_ids) {
                if !config.cdi_devices.contains(&id) {
                    config.cdi_devices.push(id);
                }
            }
        }
        Ok(())
    }
}

/// The claims that each driver has devices of.
fn by_driver(all: &[Claim]) -> BTreeMap<String, Vec<Claim>> {
    let mut sorted: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
    for claim in all {
        for driver in claim.drivers.keys() {
            sorted.entry(driver.clone()).or_default().push(claim.clone());
        }
    }
    sorted
}

/// The claims a container uses, with the requests; an empty one stands for all.
fn wanted(pod: &Pod, container: &Container) -> Result<Wanted, String> {
    let mut wanted = Wanted::new();
    let uses = container.resources.iter().flat_map(|r| r.claims.iter().flatten());
    for used in uses {
        let Some(entry) = claims::of_pod(pod).iter().find(|entry| entry.name == used.name) else { continue };
        let reference = claims::reference(pod, entry).map_err(|why| why.to_string())?;
        if let Some(reference) = reference {
            wanted.entry(reference.name).or_default().push(used.request.clone().unwrap_or_default());
        }
    }
    let status = pod.status.as_ref().and_then(|status| status.extended_resource_claim_status.as_ref());
    for mapping in status.iter().flat_map(|status| &status.request_mappings) {
        if mapping.container_name == container.name
            && let Some(status) = status
        {
            wanted.entry(status.resource_claim_name.clone()).or_default().push(mapping.request_name.clone());
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_containers_use() {
        let pod = Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
            "resourceClaims": [{"name": "a", "resourceClaimName": "c"}, {"name": "b", "resourceClaimTemplateName": "t"}],
            "containers": [
                {"name": "one", "resources": {"claims": [{"name": "a"}, {"name": "b", "request": "r"}]}},
                {"name": "two", "resources": {}}, {"name": "three"}]},
            "status": {"resourceClaimStatuses": [{"name": "b", "resourceClaimName": "p-b-1"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "p-ext", "requestMappings": [
                    {"containerName": "three", "resourceName": "x/gpu", "requestName": "container-2-request-0"}]}}}))
        .unwrap();
        let shown: Vec<String> = pod
            .spec
            .as_ref()
            .unwrap()
            .containers
            .iter()
            .map(|c| format!("{:?}", wanted(&pod, c).unwrap()))
            .collect();
        assert_eq!(
            shown,
            [r#"{"c": [""], "p-b-1": ["r"]}"#, "{}", r#"{"p-ext": ["container-2-request-0"]}"#]
        );
    }
}
