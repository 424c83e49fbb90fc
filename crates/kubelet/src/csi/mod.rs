//! Storage drivers of the node: who has registered, what they can do, and the CSINode object that tells the cluster.

mod expand;
pub mod request;
pub mod stats;
mod undo;
pub mod volume;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::storage::v1::{CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use api::prelude::*;
use client::{BoxFuture, Client, Patch};
use parking_lot::Mutex;
use rpc::Channel;
use rpc::csi::node_client::NodeClient;
use rpc::csi::node_service_capability::{self, rpc::Type};
use rpc::csi::{NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodeGetInfoResponse};
use rpc::pluginregistration::PluginInfo;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::plugins::Handler;

/// The plugin's name in directories.
pub const PLUGIN: &str = "kubernetes.io/csi";
/// Longest wait for a driver to do something (upstream's `csiTimeout`).
pub const CALL_MAX: Duration = Duration::from_secs(120);
/// How often a CSINode that others change at the same time is written before giving up.
const CONFLICTS_MAX: usize = 10;

/// A registered driver.
#[derive(Clone, Debug)]
pub struct Driver {
    /// The way to it.
    pub channel: Channel,
    /// What it can do.
    pub abilities: Vec<Type>,
    /// Has it asked again how many volumes it can have.
    look_again: Arc<Notify>,
    /// Ends with the registration.
    _follower: Arc<DropGuard>,
}

impl Driver {
    /// Whether it can do something.
    pub fn can(&self, ability: Type) -> bool {
        self.abilities.contains(&ability)
    }

    /// A client of its node service.
    pub fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }
}

/// The node's drivers.
#[derive(Clone)]
pub struct Drivers {
    client: Client,
    node: String,
    registered: Arc<Mutex<HashMap<String, Driver>>>,
}

impl Drivers {
    /// None yet.
    pub fn new(client: Client, node: &str) -> Drivers {
        Drivers { client, node: node.to_owned(), registered: Arc::default() }
    }

    /// A driver by name.
    pub fn get(&self, name: &str) -> Result<Driver, String> {
        let found = self.registered.lock().get(name).cloned();
        found.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))
    }

    /// Has a driver asked again how many volumes the node can have.
    pub fn look_again(&self, name: &str) {
        if let Some(driver) = self.registered.lock().get(name) {
            driver.look_again.notify_one();
        }
    }

    /// Keeps what the CSINode says of a driver up to date: as often as its object asks for, and when told to.
    async fn follow(self, name: String, channel: Channel, look_again: Arc<Notify>) {
        loop {
            let object = self.client.get_typed::<CSIDriver>("", &name).await.ok();
            let seconds = object.and_then(|o| o.spec.node_allocatable_update_period_seconds);
            let period = seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
            tokio::select! {
                () = look_again.notified() => {}
                () = tokio::time::sleep(period.unwrap_or_default()), if period.is_some() => {}
            }
            let mut node = NodeClient::new(channel.clone());
            let asked = tokio::time::timeout(CALL_MAX, node.node_get_info(NodeGetInfoRequest {})).await;
            let Ok(Ok(info)) = asked else { continue };
            let info = info.into_inner();
            if let Err(error) = self.change(|csi_node| add(csi_node, &name, &info)).await {
                tracing::warn!(driver = name, %error, "what a driver can have could not be written");
            }
        }
    }

    /// Makes the node's CSINode object if there is none. Drivers are added when they register.
    pub async fn publish(&self) -> Result<(), client::Error> {
        let node = self.client.get_typed::<Node>("", &self.node).await?;
        match self.client.create_typed(&self.empty(&node)).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }

    fn empty(&self, node: &Node) -> CSINode {
        CSINode {
            metadata: ObjectMeta {
                name: Some(self.node.clone()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Node".into(),
                    name: self.node.clone(),
                    uid: node.uid().to_owned(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: CSINodeSpec { drivers: Vec::new() },
            status: None,
        }
    }

    async fn take_in(&self, name: &str, endpoint: &str, socket: &Path) -> Result<(), String> {
        let endpoint = if endpoint.is_empty() { socket } else { Path::new(endpoint) };
        let driver_channel = Channel::new(PathBuf::from(endpoint));
        let mut node = NodeClient::new(driver_channel.clone());
        let info = tokio::time::timeout(CALL_MAX, node.node_get_info(NodeGetInfoRequest {})).await;
        let info = info.map_err(|_| "NodeGetInfo: context deadline exceeded".to_owned())?;
        let info = info.map_err(|status| request::say(&status))?.into_inner();
        let able = node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await;
        let able = able.map_err(|status| request::say(&status))?.into_inner();
        let abilities = able.capabilities.iter().filter_map(|c| match &c.r#type {
            Some(node_service_capability::Type::Rpc(rpc)) => Type::try_from(rpc.r#type).ok(),
            None => None,
        });
        let (stop, look_again) = (CancellationToken::new(), Arc::new(Notify::new()));
        let follower = self.clone().follow(name.to_owned(), driver_channel.clone(), look_again.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(follower));
        let driver = Driver {
            channel: driver_channel,
            abilities: abilities.collect(),
            look_again,
            _follower: Arc::new(stop.drop_guard()),
        };
        self.registered.lock().insert(name.to_owned(), driver);
        let added = self.change(|csi_node| add(csi_node, name, &info)).await;
        added.map_err(|error| format!("error updating CSINode object with CSI driver node info: {error}"))?;
        let labels = info.accessible_topology.map(|t| t.segments).unwrap_or_default();
        self.mark_node(name, &info.node_id, labels)
            .await
            .map_err(|error| format!("error updating node: {error}"))
    }

    /// What upstream keeps on the Node object itself: the driver's name for it, and where it is.
    async fn mark_node(
        &self,
        driver: &str,
        id: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<(), client::Error> {
        let node = self.client.get_typed::<Node>("", &self.node).await?;
        let key = "csi.volume.kubernetes.io/nodeid";
        let known = node.metadata.annotations.as_ref().and_then(|a| a.get(key)).cloned().unwrap_or_default();
        let mut ids: BTreeMap<String, String> = serde_json::from_str(&known).unwrap_or_default();
        ids.insert(driver.to_owned(), id.to_owned());
        let ids = serde_json::to_string(&ids).unwrap_or_default();
        let patch = Patch::Merge(json!({"metadata": {"annotations": {key: ids}, "labels": labels}}));
        self.client.patch(&Node::GVR, "", &self.node, "", &patch).await.map(drop)
    }

    async fn change(&self, change: impl Fn(&mut CSINode) -> bool) -> Result<(), client::Error> {
        let mut tries = 0;
        loop {
            let mut csi_node = match self.client.get_typed::<CSINode>("", &self.node).await {
                Ok(found) => found,
                Err(error) if error.is_not_found() => {
                    self.publish().await?;
                    self.client.get_typed::<CSINode>("", &self.node).await?
                }
                Err(error) => return Err(error),
            };
            if !change(&mut csi_node) {
                return Ok(());
            }
            tries += 1;
            match self.client.update_typed(&csi_node).await {
                Err(error) if error.is_conflict() && tries < CONFLICTS_MAX => {}
                outcome => return outcome.map(drop),
            }
        }
    }
}

/// Adds a driver, or brings it up to date. False if there is nothing to change.
fn add(csi_node: &mut CSINode, name: &str, info: &NodeGetInfoResponse) -> bool {
    let topology: Vec<String> =
        info.accessible_topology.iter().flat_map(|t| t.segments.keys().cloned()).collect();
    let most = i32::try_from(info.max_volumes_per_node).ok().filter(|most| *most > 0);
    let driver = CSINodeDriver {
        name: name.to_owned(),
        node_id: info.node_id.clone(),
        topology_keys: Some(topology).filter(|keys| !keys.is_empty()),
        allocatable: most.map(|most| VolumeNodeResources { count: Some(most) }),
    };
    let drivers = &mut csi_node.spec.drivers;
    if drivers.contains(&driver) {
        return false;
    }
    drivers.retain(|d| d.name != name);
    drivers.push(driver);
    true
}

impl Handler for Drivers {
    fn register<'a>(&'a self, plugin: &'a PluginInfo, socket: &'a Path) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let served =
                plugin.supported_versions.iter().any(|v| v.trim_start_matches('v').starts_with("1."));
            if !served {
                let versions = plugin.supported_versions.join(", ");
                return Err(format!("none of the versions specified {versions:?} are supported"));
            }
            self.take_in(&plugin.name, &plugin.endpoint, socket).await
        })
    }

    fn deregister<'a>(&'a self, name: &'a str, _: &'a Path) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.registered.lock().remove(name);
            let removed = self.change(|csi_node| {
                let before = csi_node.spec.drivers.len();
                csi_node.spec.drivers.retain(|d| d.name != name);
                csi_node.spec.drivers.len() != before
            });
            if let Err(error) = removed.await {
                tracing::warn!(driver = name, %error, "the driver could not be taken off the CSINode");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_come_and_change() {
        let mut node =
            CSINode::from_value(json!({"metadata": {"name": "n"}, "spec": {"drivers": []}})).unwrap();
        let info = NodeGetInfoResponse { node_id: "a".into(), max_volumes_per_node: 3, ..Default::default() };
        assert!(add(&mut node, "d", &info) && !add(&mut node, "d", &info));
        let moved = NodeGetInfoResponse { node_id: "b".into(), ..Default::default() };
        assert!(add(&mut node, "d", &moved));
        assert_eq!(node.spec.drivers.len(), 1);
        assert_eq!((node.spec.drivers[0].node_id.as_str(), &node.spec.drivers[0].allocatable), ("b", &None));
    }
}
