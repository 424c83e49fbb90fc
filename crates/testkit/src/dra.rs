//! A driver of devices for tests: what it prepares is a variable and a device node by the Container Device Interface, and
//! it remembers what it was asked.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rpc::Routes;
use rpc::dra::dra_plugin_server::{DraPlugin, DraPluginServer};
use rpc::dra::{
    Device, NodePrepareResourceResponse, NodePrepareResourcesRequest, NodePrepareResourcesResponse,
    NodeUnprepareResourceResponse, NodeUnprepareResourcesRequest, NodeUnprepareResourcesResponse,
};
use rpc::pluginregistration::registration_server::{Registration, RegistrationServer};
use rpc::pluginregistration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use rpc::tonic::{Request, Response, Status, async_trait};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Where the runtime looks for files of devices.
const CDI: &str = "/var/run/cdi";

/// A running driver; it ends with the value.
pub struct Driver {
    /// Its name.
    pub name: String,
    service: Service,
    stop: CancellationToken,
    servers: Vec<tokio::task::JoinHandle<()>>,
    runtime: tokio::runtime::Runtime,
}

#[derive(Clone)]
struct Service {
    name: String,
    endpoint: PathBuf,
    calls: Arc<Mutex<Vec<Value>>>,
    /// What it answers instead of preparing.
    failure: Arc<Mutex<String>>,
    /// Claims that are prepared, by uid.
    prepared: Arc<Mutex<HashMap<String, String>>>,
}

impl Driver {
    /// Starts a driver with its socket in `state`, and makes it known to the kubelet with this root directory.
    pub fn start(name: &str, state: &Path, kubelet: &Path) -> anyhow::Result<Driver> {
        std::fs::create_dir_all(state)?;
        std::fs::create_dir_all(CDI)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let service = Service {
            name: name.to_owned(),
            endpoint: state.join("dra.sock"),
            calls: Arc::default(),
            failure: Arc::default(),
            prepared: Arc::default(),
        };
        let stop = CancellationToken::new();
        let registry = kubelet.join("plugins_registry").join(format!("{name}-reg.sock"));
        let routes = [
            (service.endpoint.clone(), Routes::new().with(DraPluginServer::new(service.clone()))),
            (registry, Routes::new().with(RegistrationServer::new(service.clone()))),
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
        Ok(Driver { name: name.to_owned(), service, stop, servers, runtime })
    }

    /// What it was asked, in order: `call`, `claim` and more.
    pub fn calls(&self) -> Vec<Value> {
        self.service.calls.lock().clone()
    }

    /// How often it was asked something about a claim (or, with an empty name, about any).
    pub fn count(&self, call: &str, claim: &str) -> usize {
        let about = |c: &&Value| c["call"] == call && (claim.is_empty() || c["claim"] == claim);
        self.calls().iter().filter(about).count()
    }

    /// Names of the claims that are prepared.
    pub fn prepared(&self) -> Vec<String> {
        self.service.prepared.lock().values().cloned().collect()
    }

    /// Answers with an error from now on; an empty one ends that.
    pub fn fail(&self, message: &str) {
        *self.service.failure.lock() = message.to_owned();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.cancel();
        // Servers take their sockets with them.
        for server in self.servers.drain(..) {
            self.runtime.block_on(server).ok();
        }
        for uid in self.service.prepared.lock().keys() {
            std::fs::remove_file(self.service.file(uid)).ok();
        }
    }
}

impl Service {
    fn file(&self, uid: &str) -> PathBuf {
        Path::new(CDI).join(format!("{}-{uid}.json", self.name))
    }

    fn write(&self, uid: &str, claim: &str) -> std::io::Result<()> {
        let edits = json!({"env": [format!("DRA_CLAIM={claim}")],
            "deviceNodes": [{"path": "/dev/from-claim", "hostPath": "/dev/null", "permissions": "rw"}]});
        let spec = json!({"cdiVersion": "0.6.0", "kind": format!("{}/claim", self.name),
            "devices": [{"name": uid, "containerEdits": edits}]});
        let new = self.file(uid).with_extension("new");
        std::fs::write(&new, spec.to_string())?;
        std::fs::rename(new, self.file(uid))
    }
}

#[async_trait]
impl Registration for Service {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".into(),
            name: self.name.clone(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec!["v1.DRAPlugin".into(), "v1beta1.DRAPlugin".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let note = json!({"call": "registered", "ok": status.plugin_registered, "error": status.error});
        self.calls.lock().push(note);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[async_trait]
impl DraPlugin for Service {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        let mut answer = NodePrepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            self.calls.lock().push(json!({"call": "prepare", "claim": claim.name, "uid": claim.uid}));
            let failure = self.failure.lock().clone();
            if failure.is_empty() {
                self.write(&claim.uid, &claim.name).map_err(|error| Status::internal(error.to_string()))?;
                self.prepared.lock().insert(claim.uid.clone(), claim.name.clone());
            }
            let device = Device {
                pool_name: "pool".into(),
                device_name: "device".into(),
                cdi_device_ids: vec![format!("{}/claim={}", self.name, claim.uid)],
                ..Device::default()
            };
            let devices = if failure.is_empty() { vec![device] } else { Vec::new() };
            answer.claims.insert(claim.uid, NodePrepareResourceResponse { devices, error: failure });
        }
        Ok(Response::new(answer))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        let mut answer = NodeUnprepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            self.calls.lock().push(json!({"call": "unprepare", "claim": claim.name, "uid": claim.uid}));
            self.prepared.lock().remove(&claim.uid);
            std::fs::remove_file(self.file(&claim.uid)).ok();
            answer.claims.insert(claim.uid, NodeUnprepareResourceResponse::default());
        }
        Ok(Response::new(answer))
    }
}
