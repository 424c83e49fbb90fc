//! Drivers of devices as they come and go. While none of a driver's processes can be reached, what it has published for
//! the node is taken away after a while: pods must not be sent to devices that nobody prepares.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams, ListParams};
use parking_lot::Mutex;
use rpc::Channel;
use rpc::pluginregistration::PluginInfo;
use tokio::task::AbortHandle;

use super::driver::Version;
use crate::plugins::Handler;

/// How long a driver may be away before its slices go (upstream's `defaultWipingDelay`).
const AWAY_MAX: Duration = Duration::from_secs(30);
/// Pauses between tries to delete slices, and to reach a driver again.
const RETRY: stdx::Backoff = stdx::Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(300) };
/// Pauses between tries to reach a driver whose connection has broken.
const RECONNECT: stdx::Backoff =
    stdx::Backoff { initial: Duration::from_millis(500), max: Duration::from_secs(10) };

/// One process of a driver.
#[derive(Debug)]
struct Plugin {
    /// The socket on which it registered.
    registered: PathBuf,
    channel: Channel,
    version: Version,
    connected: bool,
    watch: AbortHandle,
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// The node's drivers of devices.
pub struct Drivers {
    client: Client,
    node: String,
    /// Processes by driver, the latest last.
    plugins: Mutex<HashMap<String, Vec<Plugin>>>,
    /// Slices that are to go, by driver.
    wipes: Mutex<HashMap<String, AbortHandle>>,
    /// Told when a driver has come.
    came: Box<dyn Fn() + Send + Sync>,
}

impl Drivers {
    /// None yet. `came` is called when one registers.
    pub fn new(client: Client, node: &str, came: impl Fn() + Send + Sync + 'static) -> Drivers {
        Drivers {
            client,
            node: node.to_owned(),
            plugins: Mutex::default(),
            wipes: Mutex::default(),
            came: Box::new(came),
        }
    }

    /// The way to a driver: of several processes the latest that can be reached.
    pub fn get(&self, name: &str) -> Result<(Channel, Version), String> {
        let plugins = self.plugins.lock();
        let all = plugins.get(name).map(Vec::as_slice).unwrap_or_default();
        let best = all.iter().rev().find(|plugin| plugin.connected).or(all.last());
        let best = best.ok_or_else(|| format!("DRA driver {name} is not registered"))?;
        Ok((best.channel.clone(), best.version))
    }

    /// Deletes the node's slices, of one driver or of all, however long it takes.
    pub async fn wipe(&self, driver: &str) {
        let mut selector = format!("spec.nodeName={}", self.node);
        if !driver.is_empty() {
            selector.push_str(&format!(",spec.driver={driver}"));
        }
        let params = ListParams { field_selector: selector, ..ListParams::default() };
        let mut failures = 0;
        loop {
            let options = DeleteParams::default();
            match self.client.delete_collection(&ResourceSlice::GVR, "", &options, &params).await {
                Ok(_) => return,
                Err(error) if error.is_not_found() => return,
                Err(error) => tracing::debug!(driver, %error, "slices could not be deleted"),
            }
            failures += 1;
            tokio::time::sleep(RETRY.delay(failures)).await;
        }
    }

    /// Sees to it that the slices of a driver go or stay.
    fn judge(self: &Arc<Self>, driver: &str) {
        let here =
            self.plugins.lock().get(driver).is_some_and(|all| all.iter().any(|plugin| plugin.connected));
        let mut wipes = self.wipes.lock();
        if here {
            if let Some(wipe) = wipes.remove(driver) {
                wipe.abort();
            }
        } else if !wipes.contains_key(driver) {
            let (it, name) = (self.clone(), driver.to_owned());
            let task = tokio::spawn(async move {
                tokio::time::sleep(AWAY_MAX).await;
                it.wipe(&name).await;
                it.wipes.lock().remove(&name);
            });
            wipes.insert(driver.to_owned(), task.abort_handle());
        }
    }

    fn connected(self: &Arc<Self>, driver: &str, registered: &Path, connected: bool) {
        if let Some(all) = self.plugins.lock().get_mut(driver) {
            all.iter_mut().filter(|p| p.registered == registered).for_each(|p| p.connected = connected);
        }
        self.judge(driver);
    }

    /// Follows the connection to a driver.
    async fn watch(self: Arc<Self>, driver: String, registered: PathBuf, channel: Channel) {
        let mut failures = 0;
        loop {
            match channel.connected().await {
                Ok(lost) => {
                    failures = 0;
                    self.connected(&driver, &registered, true);
                    lost.await;
                    self.connected(&driver, &registered, false);
                }
                Err(error) => {
                    tracing::debug!(driver, %error, "a driver of devices cannot be reached");
                    failures += 1;
                    tokio::time::sleep(RECONNECT.delay(failures)).await;
                }
            }
        }
    }
}

/// Takes drivers in.
pub struct Registrar(pub Arc<Drivers>);

impl Handler for Registrar {
    fn register<'a>(&'a self, plugin: &'a PluginInfo, socket: &'a Path) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let name = plugin.name.clone();
            let endpoint = if plugin.endpoint.is_empty() { socket } else { Path::new(&plugin.endpoint) };
            let version = Version::of(&plugin.supported_versions).map_err(|why| {
                let endpoint = endpoint.display();
                format!("invalid supported gRPC versions of DRA driver plugin {name} at endpoint {endpoint}: {why}")
            })?;
            let channel = Channel::new(endpoint);
            {
                let mut plugins = self.0.plugins.lock();
                let all = plugins.entry(name.clone()).or_default();
                all.retain(|old| old.registered != socket);
                if all.iter().any(|old| old.channel.path() == endpoint) {
                    let endpoint = endpoint.display();
                    return Err(format!(
                        "endpoint {endpoint} already registered for DRA driver plugin {name}"
                    ));
                }
                let watch = self.0.clone().watch(name.clone(), socket.to_owned(), channel.clone());
                let watch = tokio::spawn(watch).abort_handle();
                let registered = socket.to_owned();
                all.push(Plugin { registered, channel, version, connected: false, watch });
            }
            tracing::info!(driver = name, "a driver of devices registered");
            self.0.judge(&name);
            (self.0.came)();
            Ok(())
        })
    }

    fn deregister<'a>(&'a self, name: &'a str, socket: &'a Path) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            {
                let mut plugins = self.0.plugins.lock();
                if let Some(all) = plugins.get_mut(name) {
                    all.retain(|plugin| plugin.registered != socket);
                    if all.is_empty() {
                        plugins.remove(name);
                    }
                }
            }
            self.0.judge(name);
        })
    }
}
