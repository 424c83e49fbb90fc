//! A storage driver for tests: its volumes are directories, or files for block volumes, and it remembers what it was
//! asked. A volume whose name begins with `hang` is never published; one that begins with `small` cannot grow.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use parking_lot::Mutex;
use rpc::Routes;
use rpc::csi::node_server::{Node, NodeServer};
use rpc::csi::node_service_capability::{Rpc, Type as Capability, rpc::Type};
use rpc::csi::volume_capability::AccessType;
use rpc::csi::volume_usage::Unit;
use rpc::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, Topology, VolumeCapability, VolumeCondition,
    VolumeUsage,
};
use rpc::pluginregistration::registration_server::{Registration, RegistrationServer};
use rpc::pluginregistration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use rpc::tonic::{Request, Response, Status, async_trait};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// A running driver; it ends with the value.
pub struct Driver {
    /// Its name.
    pub name: String,
    calls: Arc<Mutex<Vec<Value>>>,
    stop: CancellationToken,
    servers: Vec<tokio::task::JoinHandle<()>>,
    runtime: tokio::runtime::Runtime,
}

#[derive(Clone)]
struct Service {
    name: String,
    state: PathBuf,
    calls: Arc<Mutex<Vec<Value>>>,
    /// Devices made of block volumes' files, by published path.
    devices: Arc<Mutex<HashMap<String, String>>>,
}

impl Driver {
    /// Starts a driver with its files in `state`, and makes it known to the kubelet with this root directory.
    pub fn start(name: &str, state: &Path, kubelet: &Path) -> anyhow::Result<Driver> {
        std::fs::create_dir_all(state)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let calls = Arc::new(Mutex::new(Vec::new()));
        let service = Service {
            name: name.to_owned(),
            state: state.to_owned(),
            calls: calls.clone(),
            devices: Arc::default(),
        };
        let stop = CancellationToken::new();
        let own = state.join("csi.sock");
        let registry = kubelet.join("plugins_registry").join(format!("{name}-reg.sock"));
        let routes = [
            (own, Routes::new().with(NodeServer::new(service.clone()))),
            (registry, Routes::new().with(RegistrationServer::new(service))),
        ];
        let mut servers = Vec::new();
        for (path, routes) in routes {
            let stop = stop.clone();
            servers.push(runtime.spawn(async move {
                if let Err(error) = rpc::serve(&path, routes, stop.cancelled()).await {
                    panic!("the driver cannot serve {}: {error}", path.display());
                }
            }));
        }
        Ok(Driver { name: name.to_owned(), calls, stop, servers, runtime })
    }

    /// What it was asked, in order: `call`, `volume` and more.
    pub fn calls(&self) -> Vec<Value> {
        self.calls.lock().clone()
    }

    /// The names of the calls about a volume.
    pub fn calls_about(&self, volume: &str) -> Vec<String> {
        let all = self.calls();
        let about = all.iter().filter(|call| call["volume"] == volume);
        about.map(|call| call["call"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.cancel();
        // Servers take their sockets with them.
        for server in self.servers.drain(..) {
            self.runtime.block_on(server).ok();
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String, Status> {
    let output =
        Command::new(program).args(arguments).output().map_err(|e| Status::internal(e.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(answer) } else { Err(Status::internal(said)) }
}

fn is_block(capability: Option<&VolumeCapability>) -> bool {
    matches!(capability.and_then(|c| c.access_type.as_ref()), Some(AccessType::Block(_)))
}

/// The options a volume is to be mounted with.
fn mount_flags(capability: Option<&VolumeCapability>) -> Vec<String> {
    match capability.and_then(|c| c.access_type.as_ref()) {
        Some(AccessType::Mount(mount)) => mount.mount_flags.clone(),
        _ => Vec::new(),
    }
}

fn io(error: std::io::Error) -> Status {
    Status::internal(error.to_string())
}

impl Service {
    fn note(&self, call: Value) {
        self.calls.lock().push(call);
    }

    fn is_mounted(path: &str) -> bool {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        table.lines().any(|line| line.split(' ').nth(4) == Some(path))
    }

    /// Mounts a directory somewhere, unless it is there already.
    fn mount(from: &str, to: &str) -> Result<(), Status> {
        std::fs::create_dir_all(to).map_err(io)?;
        if Self::is_mounted(to) { Ok(()) } else { run("mount", &["--bind", from, to]).map(drop) }
    }

    /// Makes a device of a volume's file and puts it at a path.
    fn publish_device(&self, volume: &str, to: &str) -> Result<(), Status> {
        if Self::is_mounted(to) {
            return Ok(());
        }
        let file = self.state.join(volume).display().to_string();
        let device = run("losetup", &["--find", "--show", &file])?.trim().to_owned();
        self.devices.lock().insert(to.to_owned(), device.clone());
        std::fs::File::create(to).map_err(io)?;
        run("mount", &["--bind", &device, to]).map(drop)
    }

    fn unmount(path: &str) -> Result<(), Status> {
        if Self::is_mounted(path) { run("umount", &[path]).map(drop) } else { Ok(()) }
    }
}

#[async_trait]
impl Registration for Service {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: self.name.clone(),
            endpoint: self.state.join("csi.sock").display().to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.note(json!({"call": "registered", "ok": status.plugin_registered, "error": status.error}));
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[async_trait]
impl Node for Service {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let asked = request.into_inner();
        self.note(json!({"call": "stage", "volume": asked.volume_id, "publish": asked.publish_context,
            "secrets": asked.secrets, "context": asked.volume_context,
            "flags": mount_flags(asked.volume_capability.as_ref())}));
        let files = self.state.join(&asked.volume_id);
        if is_block(asked.volume_capability.as_ref()) {
            return Ok(Response::new(NodeStageVolumeResponse {}));
        }
        if !files.is_dir() {
            return Err(Status::not_found(format!("no volume {}", asked.volume_id)));
        }
        Self::mount(&files.display().to_string(), &asked.staging_target_path)?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let asked = request.into_inner();
        self.note(json!({"call": "unstage", "volume": asked.volume_id}));
        Self::unmount(&asked.staging_target_path)?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let asked = request.into_inner();
        self.note(json!({"call": "publish", "volume": asked.volume_id, "publish": asked.publish_context,
            "context": asked.volume_context, "readOnly": asked.readonly, "staging": asked.staging_target_path,
            "target": asked.target_path, "block": is_block(asked.volume_capability.as_ref()),
            "flags": mount_flags(asked.volume_capability.as_ref())}));
        if asked.volume_id.starts_with("hang") {
            std::future::pending::<()>().await;
        }
        if is_block(asked.volume_capability.as_ref()) {
            self.publish_device(&asked.volume_id, &asked.target_path)?;
            return Ok(Response::new(NodePublishVolumeResponse {}));
        }
        let mut from = asked.staging_target_path.clone();
        if from.is_empty() {
            // One that lives with its pod.
            let files = self.state.join(&asked.volume_id);
            std::fs::create_dir_all(&files).map_err(io)?;
            let greeting = asked.volume_context.get("greeting").cloned().unwrap_or_default();
            std::fs::write(files.join("greeting"), greeting).map_err(io)?;
            from = files.display().to_string();
        }
        Self::mount(&from, &asked.target_path)?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let asked = request.into_inner();
        self.note(json!({"call": "unpublish", "volume": asked.volume_id}));
        Self::unmount(&asked.target_path)?;
        if let Some(device) = self.devices.lock().remove(&asked.target_path) {
            run("losetup", &["--detach", &device])?;
            std::fs::remove_file(&asked.target_path).map_err(io)?;
        } else if let Err(error) = std::fs::remove_dir(&asked.target_path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(io(error));
        }
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        if !Path::new(&request.into_inner().volume_path).exists() {
            return Err(Status::not_found("no such volume"));
        }
        let usage = |unit: Unit, total: i64| VolumeUsage {
            available: total / 4,
            total,
            used: total / 2,
            unit: unit.into(),
        };
        Ok(Response::new(NodeGetVolumeStatsResponse {
            usage: vec![usage(Unit::Bytes, 4096), usage(Unit::Inodes, 64)],
            volume_condition: Some(VolumeCondition { abnormal: true, message: "it smells".into() }),
        }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let asked = request.into_inner();
        let bytes = asked.capacity_range.map(|range| range.required_bytes).unwrap_or_default();
        self.note(json!({"call": "expand", "volume": asked.volume_id, "bytes": bytes}));
        if asked.volume_id.starts_with("small") {
            return Err(Status::out_of_range("no larger"));
        }
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let able =
            [Type::StageUnstageVolume, Type::ExpandVolume, Type::GetVolumeStats, Type::VolumeCondition];
        let capabilities = able.map(|ability| NodeServiceCapability {
            r#type: Some(Capability::Rpc(Rpc { r#type: ability.into() })),
        });
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: capabilities.to_vec() }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let segments = [(format!("topology.{}/node", self.name), "here".to_owned())].into();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: "the-node".into(),
            max_volumes_per_node: 7,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}
