//! Device plugins (`deviceplugin/v1beta1`): they register on a socket, tell of their devices, and say what a
//! container needs that is given some.
//!
//! What is there and what is taken is decided in `state`; a record (`checkpoint`) outlives the kubelet.

mod checkpoint;
pub mod pod_resources;
pub mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::prelude::*;
use parking_lot::Mutex;
use rpc::deviceplugin as v1beta1;
use rpc::deviceplugin::device_plugin_client::DevicePluginClient;
use rpc::deviceplugin::registration_server::{Registration, RegistrationServer};
use rpc::tonic::{Request, Response, Status, async_trait};
use rpc::{Channel, Routes};
use stdx::Clock;
use tokio_util::sync::CancellationToken;

use self::state::{Device, Given, OfPod, State};
use crate::agent::Agent;
use crate::numa::{Hint, Hints};
use crate::resources;
use crate::spec::Role;

/// Version of the protocol.
const VERSION: &str = "v1beta1";
/// Name of the kubelet's socket.
pub const SOCKET: &str = "kubelet.sock";
/// Name of the record.
const CHECKPOINT: &str = "kubelet_internal_checkpoint";
/// How long a plugin may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Most resources that plugins may register: what more would be a mistake.
const RESOURCES_MAX: usize = 256;

/// A plugin as it registered.
#[derive(Debug, Clone)]
struct Plugin {
    client: DevicePluginClient<Channel>,
    options: v1beta1::DevicePluginOptions,
}

/// The devices of the node.
#[derive(Debug)]
pub struct Manager {
    directory: PathBuf,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    plugins: Mutex<BTreeMap<String, Plugin>>,
}

impl Manager {
    /// The manager whose sockets and record are in `directory`.
    pub fn new(directory: PathBuf, clock: Arc<dyn Clock>) -> Manager {
        let saved = fs::read_to_string(directory.join(CHECKPOINT)).ok();
        let state = saved.as_deref().and_then(|text| {
            let read = checkpoint::read(text);
            if read.is_none() {
                tracing::warn!("the record of devices is damaged and begins anew");
            }
            read
        });
        Manager { directory, clock, state: Mutex::new(state.unwrap_or_default()), plugins: Mutex::default() }
    }

    fn save(&self) {
        let text = checkpoint::write(&self.state.lock());
        let file = self.directory.join(CHECKPOINT);
        let new = self.directory.join(format!("{CHECKPOINT}.new"));
        if let Err(error) = fs::write(&new, text).and_then(|()| fs::rename(&new, &file)) {
            tracing::warn!(path = %file.display(), %error, "the record of devices could not be kept");
        }
    }

    /// Capacity and allocatable amounts of plugins' resources.
    pub fn amounts(&self) -> BTreeMap<String, (i64, i64)> {
        let mut state = self.state.lock();
        state.expire(self.clock.now());
        state.amounts()
    }

    /// What the containers of a pod were given.
    pub fn given(&self, uid: &str) -> OfPod {
        self.state.lock().given.get(uid).cloned().unwrap_or_default()
    }

    /// Healthy devices by resource, with their NUMA nodes.
    pub fn healthy(&self) -> BTreeMap<String, Vec<(String, Vec<i64>)>> {
        let state = self.state.lock();
        let of = |resource: &state::Resource| {
            let healthy = resource.devices.iter().filter(|(_, device)| device.healthy);
            healthy.map(|(id, device)| (id.clone(), device.nodes.clone())).collect()
        };
        state.resources.iter().map(|(name, resource)| (name.clone(), of(resource))).collect()
    }

    /// Takes a pod's devices back.
    pub fn release(&self, uid: &str) {
        if self.state.lock().given.remove(uid).is_some() {
            self.save();
        }
    }

    /// Takes back what pods have that no longer exist.
    pub fn keep_only(&self, exists: impl Fn(&str) -> bool) {
        let before = {
            let mut state = self.state.lock();
            let before = state.given.len();
            state.given.retain(|uid, _| exists(uid));
            before != state.given.len()
        };
        if before {
            self.save();
        }
    }

    /// Whether a resource is (or was) a plugin's.
    fn knows(&self, name: &str) -> bool {
        let state = self.state.lock();
        state.resources.contains_key(name) || state.former.contains(name)
    }

    /// Devices a container asks for, by resource.
    fn wants(&self, container: &Container) -> Vec<(String, usize)> {
        let limits = resources::limits(container).into_iter();
        let own = limits.filter(|(name, count)| name.contains('/') && *count > 0 && self.knows(name));
        own.map(|(name, count)| (name, usize::try_from(count).unwrap_or(usize::MAX))).collect()
    }

    /// Where a container's devices are, resource by resource.
    pub fn hints(&self, pod: &Pod, container: &Container, nodes: &[u32]) -> Vec<Hints> {
        let wants = self.wants(container);
        let state = self.state.lock();
        let given = |name: &str| state.given.get(pod.uid())?.get(&container.name)?.get(name).cloned();
        wants
            .into_iter()
            .map(|(name, wanted)| match given(&name) {
                Some(given) if given.ids.len() != wanted => Some(Vec::new()),
                // They are the container's already.
                Some(given) => state.hints(&name, wanted, &given.ids, nodes),
                None => state.hints(&name, wanted, &state.reusable(pod, &name), nodes),
            })
            .collect()
    }

    /// Where the devices of all of a pod's containers are.
    pub fn pod_hints(&self, pod: &Pod, nodes: &[u32]) -> Vec<Hints> {
        let total = resources::pod_total(pod, resources::limits);
        let wants = total.into_iter().filter(|(name, count)| name.contains('/') && *count > 0);
        let wants: Vec<_> = wants.filter(|(name, _)| self.knows(name)).collect();
        let state = self.state.lock();
        let hints = wants.into_iter().map(|(name, count)| {
            let wanted = usize::try_from(count).unwrap_or(usize::MAX);
            state.hints(&name, wanted, &state.reusable(pod, &name), nodes)
        });
        hints.collect()
    }

    /// Gives a container the devices it asks for, near to where all agreed on. The error is upstream's.
    pub async fn allocate(
        &self,
        agent: &Agent,
        pod: &Pod,
        role: Role,
        container: &Container,
        agreed: Hint,
    ) -> Result<(), String> {
        let wants = self.wants(container);
        if wants.is_empty() || role == Role::Ephemeral {
            return Ok(());
        }
        for (name, wanted) in wants {
            let reusable = {
                let state = self.state.lock();
                let of_pod = state.given.get(pod.uid());
                if of_pod.and_then(|of_pod| of_pod.get(&container.name)?.get(&name)).is_some() {
                    continue;
                }
                state.reusable(pod, &name)
            };
            let given = self.give(agent, &name, wanted, &reusable, agreed).await?;
            let mut state = self.state.lock();
            let of_pod = state.given.entry(pod.uid().to_owned()).or_default();
            of_pod.entry(container.name.clone()).or_default().insert(name, given);
        }
        self.save();
        Ok(())
    }

    fn plugin(&self, name: &str) -> Result<Plugin, String> {
        let found = self.plugins.lock().get(name).cloned();
        found.ok_or_else(|| format!("cannot allocate unregistered device {name}"))
    }

    async fn give(
        &self,
        agent: &Agent,
        name: &str,
        wanted: usize,
        reusable: &BTreeSet<String>,
        agreed: Hint,
    ) -> Result<Given, String> {
        let choice = {
            let state = self.state.lock();
            let choice = state.choose(name, wanted, reusable)?;
            state.narrow(name, wanted, choice, agreed.mask)
        };
        let mut plugin = self.plugin(name)?;
        let mut preferred = Vec::new();
        if plugin.options.get_preferred_allocation_available && choice.must.len() < wanted {
            let request = v1beta1::PreferredAllocationRequest {
                container_requests: vec![v1beta1::ContainerPreferredAllocationRequest {
                    available_device_i_ds: choice.available.iter().cloned().collect(),
                    must_include_device_i_ds: choice.must.iter().cloned().collect(),
                    allocation_size: i32::try_from(wanted).unwrap_or(i32::MAX),
                }],
            };
            let answer = in_time(plugin.client.get_preferred_allocation(request)).await?;
            let first = answer.container_responses.into_iter().next();
            preferred = first.map(|first| first.device_i_ds).unwrap_or_default();
        }
        let ids = self.state.lock().pick(name, wanted, &choice, &preferred);
        let request = v1beta1::AllocateRequest {
            container_requests: vec![v1beta1::ContainerAllocateRequest {
                devices_ids: ids.iter().cloned().collect(),
            }],
        };
        let began = Instant::now();
        let answer = in_time(plugin.client.allocate(request)).await?;
        agent.counters.devices_allocated(name, began.elapsed());
        let response = answer.container_responses.into_iter().next();
        let response = response.ok_or_else(|| "no containers return in allocation response".to_owned())?;
        Ok(Given { ids, response })
    }

    /// Asks plugins that want it to make a container's devices ready.
    pub async fn before_start(&self, uid: &str, container: &str) -> Result<(), String> {
        for (name, given) in self.given(uid).remove(container).unwrap_or_default() {
            let Ok(mut plugin) = self.plugin(&name) else { continue };
            if plugin.options.pre_start_required {
                let request =
                    v1beta1::PreStartContainerRequest { devices_ids: given.ids.into_iter().collect() };
                let ready = in_time(plugin.client.pre_start_container(request)).await;
                ready.map_err(|error| {
                    format!("device plugin PreStartContainer rpc failed with err: {error}")
                })?;
            }
        }
        Ok(())
    }

    /// Does to a container what its devices' plugins want.
    pub fn fit(&self, uid: &str, config: &mut cri::ContainerConfig) {
        for given in self.given(uid).remove(&config.name).unwrap_or_default().into_values() {
            fit(config, given.response);
        }
    }

    /// Follows a plugin until it goes or another registers in its place.
    async fn follow(self: Arc<Manager>, agent: Arc<Agent>, name: String, generation: u64, plugin: Plugin) {
        let mut client = plugin.client;
        match client.list_and_watch(v1beta1::Empty {}).await {
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    let told = match stream.message().await {
                        Ok(Some(told)) => told,
                        Ok(None) => break,
                        Err(error) => {
                            tracing::info!(resource = name, %error, "a device plugin is gone");
                            break;
                        }
                    };
                    let devices = told.devices.into_iter().map(|device| {
                        let nodes = device.topology.map(|topology| topology.nodes).unwrap_or_default();
                        let nodes = nodes.into_iter().map(|node| node.id).collect();
                        (device.id, Device { healthy: device.health == "Healthy", nodes })
                    });
                    if !self.state.lock().update(&name, generation, devices.collect()) {
                        return;
                    }
                    self.save();
                    agent.changed.notify_one();
                }
            }
            Err(error) => {
                tracing::warn!(resource = name, %error, "a device plugin does not tell of its devices")
            }
        }
        self.state.lock().lost(&name, generation, self.clock.now());
        agent.changed.notify_one();
    }
}

async fn in_time<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_MAX, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(format!("rpc error: code = {:?} desc = {}", status.code(), status.message())),
        Err(_) => Err("rpc error: code = DeadlineExceeded desc = context deadline exceeded".into()),
    }
}

/// Does to a container what a plugin wants. What the pod itself says of a variable or path wins.
fn fit(config: &mut cri::ContainerConfig, wanted: v1beta1::ContainerAllocateResponse) {
    for (name, value) in wanted.envs {
        if !config.envs.iter().any(|env| env.name == name) {
            config.envs.push(cri::EnvVar { name, value });
        }
    }
    for mount in wanted.mounts {
        let container_path = PathBuf::from(mount.container_path);
        if !config.mounts.iter().any(|own| own.container_path == container_path) {
            config.mounts.push(cri::Mount {
                container_path,
                host_path: mount.host_path.into(),
                readonly: mount.read_only,
                ..cri::Mount::default()
            });
        }
    }
    for device in wanted.devices {
        let container_path = PathBuf::from(device.container_path);
        if !config.devices.iter().any(|own| own.container_path == container_path) {
            config.devices.push(cri::Device {
                container_path,
                host_path: device.host_path.into(),
                permissions: device.permissions,
            });
        }
    }
    for device in wanted.cdi_devices {
        if !config.cdi_devices.contains(&device.name) {
            config.cdi_devices.push(device.name);
        }
    }
    for (key, value) in wanted.annotations {
        config.annotations.entry(key).or_insert(value);
    }
}

/// Whether a resource's name is one that plugins may have.
fn is_extended(name: &str) -> bool {
    let Some((domain, rest)) = name.split_once('/') else { return false };
    !domain.is_empty()
        && !rest.is_empty()
        && !rest.contains('/')
        && domain != "kubernetes.io"
        && !domain.ends_with(".kubernetes.io")
        && !name.starts_with("requests.")
        && name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/".contains(&b))
}

struct Registrar {
    agent: Arc<Agent>,
}

#[async_trait]
impl Registration for Registrar {
    async fn register(
        &self,
        request: Request<v1beta1::RegisterRequest>,
    ) -> Result<Response<v1beta1::Empty>, Status> {
        let request = request.into_inner();
        let name = request.resource_name;
        if request.version != VERSION {
            return Err(Status::unknown(format!(
                "requested API version {:?} is not supported by kubelet. Supported version is [{VERSION:?}]",
                request.version
            )));
        }
        if !is_extended(&name) {
            return Err(Status::unknown(format!("the ResourceName {name:?} is invalid")));
        }
        // A name, not a path: the socket lies beside ours.
        if request.endpoint.is_empty() || request.endpoint.contains('/') || request.endpoint.starts_with('.')
        {
            return Err(Status::invalid_argument(format!("the Endpoint {:?} is invalid", request.endpoint)));
        }
        let manager = self.agent.devices.clone();
        {
            let plugins = manager.plugins.lock();
            if plugins.len() >= RESOURCES_MAX && !plugins.contains_key(&name) {
                return Err(Status::resource_exhausted("too many device plugins"));
            }
        }
        let channel = Channel::new(manager.directory.join(&request.endpoint));
        let client = DevicePluginClient::new(channel).max_decoding_message_size(rpc::MESSAGE_BYTES_MAX);
        let plugin = Plugin { client, options: request.options.unwrap_or_default() };
        self.agent.counters.device_registered(&name);
        let generation = manager.state.lock().register(&name);
        manager.plugins.lock().insert(name.clone(), plugin.clone());
        tracing::info!(resource = name, "a device plugin registered");
        tokio::spawn(manager.follow(self.agent.clone(), name, generation, plugin));
        Ok(Response::new(v1beta1::Empty {}))
    }
}

/// Removes sockets of earlier lives: plugins see that and register again.
fn clear(directory: &Path) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    for entry in fs::read_dir(directory)?.flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| !kind.is_dir());
        if is_file && entry.file_name() != CHECKPOINT {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Serves the socket on which plugins register, and the one that tells of pods' resources.
pub(crate) async fn serve(agent: Arc<Agent>, cancel: CancellationToken) {
    let directory = agent.devices.directory.clone();
    let lister = agent.config.root_dir.join("pod-resources");
    if let Err(error) = clear(&directory).and_then(|()| fs::create_dir_all(&lister)) {
        tracing::warn!(directory = %directory.display(), %error, "there will be no device plugins");
        return;
    }
    let routes = Routes::new().with(RegistrationServer::new(Registrar { agent: agent.clone() }));
    let (here, there) = (directory.join(SOCKET), lister.join(SOCKET));
    let served = tokio::join!(
        rpc::serve(&here, routes, cancel.clone().cancelled_owned()),
        rpc::serve(&there, pod_resources::routes(agent), cancel.cancelled_owned()),
    );
    for error in [served.0.err(), served.1.err()].into_iter().flatten() {
        tracing::warn!(%error, "a socket of the kubelet could not be served");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["nvidia.com/gpu", "example.com/a-b.c"] {
            assert!(is_extended(good), "{good}");
        }
        for bad in
            ["cpu", "kubernetes.io/x", "a.kubernetes.io/x", "requests.x/y", "x/", "/y", "a/b/c", "a/b c"]
        {
            assert!(!is_extended(bad), "{bad}");
        }
    }

    #[test]
    fn what_the_pod_says_wins() {
        let env = |name: &str, value: &str| cri::EnvVar { name: name.into(), value: value.into() };
        let mut config = cri::ContainerConfig { envs: vec![env("A", "own")], ..Default::default() };
        let wanted = v1beta1::ContainerAllocateResponse {
            envs: [("A".to_owned(), "theirs".to_owned()), ("B".to_owned(), "2".to_owned())].into(),
            mounts: vec![v1beta1::Mount {
                container_path: "/m".into(),
                host_path: "/h".into(),
                read_only: true,
            }],
            devices: vec![v1beta1::DeviceSpec {
                container_path: "/dev/x".into(),
                host_path: "/dev/null".into(),
                permissions: "rw".into(),
            }],
            annotations: [("k".to_owned(), "v".to_owned())].into(),
            cdi_devices: vec![v1beta1::CdiDevice { name: "vendor.com/class=x".into() }],
        };
        fit(&mut config, wanted.clone());
        fit(&mut config, wanted);
        assert_eq!(config.envs, [env("A", "own"), env("B", "2")]);
        assert_eq!((config.mounts.len(), config.devices.len()), (1, 1));
        assert_eq!(config.cdi_devices, ["vendor.com/class=x"]);
        assert!(config.mounts[0].readonly && config.annotations["k"] == "v");
    }
}
