//! A runtime and an API server of a few lines each, to run a whole kubelet against.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, BoxFuture, Client, InProcess, body};
use cri::*;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

#[derive(Debug, Default)]
struct State {
    sandboxes: Vec<PodSandboxStatus>,
    containers: Vec<ContainerStatus>,
    configs: BTreeMap<String, ContainerConfig>,
    stopped: Vec<String>,
    logs: BTreeMap<String, std::path::PathBuf>,
    next: u32,
}

/// Containers that exist on paper. They run until told to end.
#[derive(Debug)]
pub struct FakeRuntime {
    state: Mutex<State>,
    events: broadcast::Sender<ContainerEvent>,
}

impl FakeRuntime {
    pub fn new() -> Arc<Self> {
        Arc::new(FakeRuntime { state: Mutex::default(), events: broadcast::channel(256).0 })
    }

    fn tell(&self, sandbox_id: &str, pod_uid: &str, container_id: Option<&str>, kind: EventKind) {
        let _ = self.events.send(ContainerEvent {
            sandbox_id: sandbox_id.into(),
            pod_uid: pod_uid.into(),
            container_id: container_id.map(str::to_owned),
            at: Timestamp::now(),
            kind,
        });
    }

    /// Ends the running container of this name with a code.
    pub fn exit(&self, name: &str, code: i32) {
        let (sandbox, id, uid, exit) = {
            let mut state = self.state.lock();
            let container = state
                .containers
                .iter_mut()
                .find(|container| container.name == name && container.state == ContainerState::Running)
                .expect("a running container of that name");
            let exit = ExitInfo {
                code,
                oom_killed: false,
                finished_at: Timestamp::now(),
                reason: if code == 0 { "Completed" } else { "Error" }.into(),
                message: String::new(),
            };
            container.state = ContainerState::Exited;
            container.exit = Some(exit.clone());
            let uid = container.labels["io.kubernetes.pod.uid"].clone();
            (container.sandbox_id.clone(), container.id.clone(), uid, exit)
        };
        self.tell(&sandbox, &uid, Some(&id), EventKind::ContainerStopped(exit));
    }

    /// The latest configuration of a container of this name.
    pub fn config(&self, name: &str) -> Option<ContainerConfig> {
        let state = self.state.lock();
        state
            .configs
            .values()
            .filter(|config| config.name == name)
            .max_by_key(|config| config.attempt)
            .cloned()
    }

    /// Log file of the latest container of this name.
    pub fn log_path(&self, name: &str) -> std::path::PathBuf {
        let state = self.state.lock();
        state.containers.iter().rfind(|container| container.name == name).unwrap().log_path.clone()
    }

    /// Names of containers in the order they were stopped.
    pub fn stopped(&self) -> Vec<String> {
        self.state.lock().stopped.clone()
    }

    /// Number of sandboxes and containers that exist.
    pub fn left(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.sandboxes.len(), state.containers.len())
    }
}

#[async_trait]
impl RuntimeService for FakeRuntime {
    async fn info(&self) -> Result<RuntimeInfo> {
        Ok(RuntimeInfo {
            name: "fake".into(),
            version: "1".into(),
            runtime_ready: true,
            network_ready: true,
            message: String::new(),
            cgroup_v2: true,
            ..RuntimeInfo::default()
        })
    }
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<String> {
        let mut state = self.state.lock();
        state.next += 1;
        let id = format!("sandbox{}", state.next);
        state.logs.insert(id.clone(), config.log_directory.clone());
        state.sandboxes.push(PodSandboxStatus {
            id: id.clone(),
            name: config.name,
            namespace: config.namespace,
            uid: config.uid,
            attempt: config.attempt,
            state: PodSandboxState::Ready,
            created_at: Timestamp::now(),
            ips: vec!["127.0.0.1".parse().unwrap()],
            namespaces: config.security.namespaces,
            runtime_handler: config.runtime_handler,
            labels: config.labels,
            annotations: config.annotations,
        });
        Ok(id)
    }
    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        for sandbox in self.state.lock().sandboxes.iter_mut().filter(|sandbox| sandbox.id == id) {
            sandbox.state = PodSandboxState::NotReady;
        }
        Ok(())
    }
    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock();
        state.sandboxes.retain(|sandbox| sandbox.id != id);
        state.containers.retain(|container| container.sandbox_id != id);
        Ok(())
    }
    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        let state = self.state.lock();
        let found = state.sandboxes.iter().find(|sandbox| sandbox.id == id).cloned();
        found.ok_or_else(|| Error::SandboxNotFound { id: id.into() })
    }
    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> Result<Vec<PodSandboxStatus>> {
        let state = self.state.lock();
        let fits = |s: &&PodSandboxStatus| filter.labels.iter().all(|(k, v)| s.labels.get(k) == Some(v));
        Ok(state.sandboxes.iter().filter(fits).cloned().collect())
    }
    async fn pod_sandbox_stats(&self, id: &str) -> Result<PodSandboxStats> {
        Err(Error::SandboxNotFound { id: id.into() })
    }
    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        let mut state = self.state.lock();
        state.next += 1;
        let id = format!("container{}", state.next);
        let log_directory = state.logs.get(sandbox_id).cloned().unwrap_or_default();
        state.containers.push(ContainerStatus {
            id: id.clone(),
            sandbox_id: sandbox_id.into(),
            name: config.name.clone(),
            attempt: config.attempt,
            state: ContainerState::Created,
            created_at: Timestamp::now(),
            started_at: None,
            exit: None,
            pid: None,
            image: config.image.clone(),
            image_id: "sha256:0".into(),
            image_ref: "image@sha256:0".into(),
            user: None,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            log_path: log_directory.join(&config.log_path),
            resources: config.resources.clone(),
            stop_signal: "SIGTERM".into(),
        });
        state.configs.insert(id.clone(), config);
        Ok(id)
    }
    async fn start_container(&self, id: &str) -> Result<()> {
        let (sandbox, uid) = {
            let mut state = self.state.lock();
            let container = state.containers.iter_mut().find(|container| container.id == id).unwrap();
            container.state = ContainerState::Running;
            container.started_at = Some(Timestamp::now());
            (container.sandbox_id.clone(), container.labels["io.kubernetes.pod.uid"].clone())
        };
        self.tell(&sandbox, &uid, Some(id), EventKind::ContainerStarted);
        Ok(())
    }
    async fn stop_container(&self, id: &str, _timeout: Duration) -> Result<()> {
        let running = {
            let mut state = self.state.lock();
            let found = state.containers.iter().find(|c| c.id == id && c.state == ContainerState::Running);
            let name = found.map(|container| container.name.clone());
            state.stopped.extend(name.clone());
            name
        };
        if let Some(name) = running {
            self.exit(&name, 0);
        }
        Ok(())
    }
    async fn remove_container(&self, id: &str) -> Result<()> {
        self.state.lock().containers.retain(|container| container.id != id);
        Ok(())
    }
    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let state = self.state.lock();
        let found = state.containers.iter().find(|container| container.id == id).cloned();
        found.ok_or_else(|| Error::ContainerNotFound { id: id.into() })
    }
    async fn list_containers(&self, filter: &ContainerFilter) -> Result<Vec<ContainerStatus>> {
        let state = self.state.lock();
        let fits = |c: &&ContainerStatus| filter.labels.iter().all(|(k, v)| c.labels.get(k) == Some(v));
        Ok(state.containers.iter().filter(fits).cloned().collect())
    }
    async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        Err(Error::ContainerNotFound { id: id.into() })
    }
    async fn list_container_stats(&self, _: &ContainerFilter) -> Result<Vec<ContainerStats>> {
        Ok(Vec::new())
    }
    async fn update_container_resources(&self, _: &str, _: &ContainerResources) -> Result<()> {
        Ok(())
    }
    async fn reopen_container_log(&self, _: &str) -> Result<()> {
        Ok(())
    }
    fn events(&self) -> EventStream {
        let receiver = self.events.subscribe();
        stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await.ok()?, receiver)) })
            .boxed()
    }
    async fn exec_sync(&self, _: &str, command: &[String], _: Duration) -> Result<ExecOutput> {
        let exit_code = command.first().and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok(ExecOutput { stdout: Bytes::from_static(b"said"), exit_code, ..ExecOutput::default() })
    }
    async fn exec(&self, _: ExecRequest) -> Result<StreamSession> {
        Err(Error::Unsupported { message: "exec".into() })
    }
    async fn attach(&self, _: AttachRequest) -> Result<StreamSession> {
        Err(Error::Unsupported { message: "attach".into() })
    }
    async fn port_forward(&self, _: &str, _: u16) -> Result<Box<dyn Duplex>> {
        Err(Error::Unsupported { message: "port forward".into() })
    }
}

#[async_trait]
impl ImageService for FakeRuntime {
    async fn pull(&self, request: PullRequest) -> Result<PullResult> {
        if request.image.starts_with("missing") {
            return Err(Error::ImagePull { image: request.image, message: "not found".into() });
        }
        Ok(PullResult { image_id: "sha256:0".into(), repo_digest: "image@sha256:0".into(), size_bytes: 5 })
    }
    async fn status(&self, image: &str) -> Result<Option<ImageStatus>> {
        let image = Image {
            id: "sha256:0".into(),
            repo_tags: vec![image.into()],
            repo_digests: vec![],
            size_bytes: 5,
            uid: None,
            username: String::new(),
            pinned: false,
            added_at: None,
        };
        let missing = image.repo_tags[0].starts_with("missing");
        Ok((!missing).then(|| ImageStatus { image, config: ImageConfig::default() }))
    }
    async fn list(&self) -> Result<Vec<Image>> {
        Ok(Vec::new())
    }
    async fn remove(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn fs_info(&self) -> Result<FsInfo> {
        Err(Error::Unsupported { message: "fs".into() })
    }
}

/// Objects by path, watches by collection: enough of an API server for a kubelet.
pub struct FakeApi {
    objects: Mutex<BTreeMap<String, Value>>,
    version: Mutex<u64>,
    changes: broadcast::Sender<(String, &'static str, Value)>,
}

impl FakeApi {
    pub fn new() -> Arc<Self> {
        Arc::new(FakeApi {
            objects: Mutex::default(),
            version: Mutex::new(1),
            changes: broadcast::channel(1024).0,
        })
    }

    pub fn client(self: &Arc<Self>) -> Client {
        let api = self.clone();
        let handler = Arc::new(move |request: Request<Body>| -> BoxFuture<'static, Response<Body>> {
            let api = api.clone();
            Box::pin(async move { api.answer(request).await })
        });
        Client::new(Arc::new(InProcess::new(handler)), "test")
    }

    /// Puts an object at a path, telling watchers.
    pub fn put(&self, path: &str, mut object: Value) -> Value {
        let mut objects = self.objects.lock();
        let kind = if objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        let mut version = self.version.lock();
        *version += 1;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        objects.insert(path.into(), object.clone());
        let _ = self.changes.send((path.into(), kind, object.clone()));
        object
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.objects.lock().get(path).cloned()
    }

    pub fn delete(&self, path: &str) {
        if let Some(object) = self.objects.lock().remove(path) {
            let _ = self.changes.send((path.into(), "DELETED", object));
        }
    }

    /// Messages of events with this reason.
    pub fn events(&self, reason: &str) -> Vec<String> {
        let objects = self.objects.lock();
        let events =
            objects.iter().filter(|(path, event)| path.contains("/events/") && event["reason"] == reason);
        events.map(|(_, event)| event["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Waits until a condition on the object at a path holds.
    pub async fn until(
        &self,
        path: &str,
        what: &str,
        holds: impl Fn(Option<&Value>) -> bool,
    ) -> Option<Value> {
        let mut changes = self.changes.subscribe();
        let wait = async {
            loop {
                let object = self.get(path);
                if holds(object.as_ref()) {
                    return object;
                }
                let _ = changes.recv().await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), wait).await {
            Ok(object) => object,
            Err(_) => panic!("never {what}: {:#}", self.get(path).unwrap_or_default()),
        }
    }

    fn selected(object: &Value, selector: &str) -> bool {
        selector.split(',').filter_map(|term| term.split_once('=')).all(|(field, wanted)| {
            let pointer = format!("/{}", field.replace('.', "/"));
            object.pointer(&pointer).and_then(Value::as_str) == Some(wanted)
        })
    }

    fn watch(
        &self,
        query: &str,
        selector: String,
        inside: impl Fn(&str) -> bool + Clone + Send + 'static,
    ) -> Response<Body> {
        let receiver = self.changes.subscribe();
        let from: u64 = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("resourceVersion="))
            .and_then(|version| version.parse().ok())
            .unwrap_or(0);
        let version = |object: &Value| {
            object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0)
        };
        let line = |kind: &str, object: &Value| {
            Bytes::from(format!("{}\n", json!({"type": kind, "object": object})))
        };
        // What changed between the list and this subscription.
        let missed: Vec<Bytes> = self
            .objects
            .lock()
            .iter()
            .filter(|(path, object)| {
                inside(path) && Self::selected(object, &selector) && version(object) > from
            })
            .map(|(_, object)| line("MODIFIED", object))
            .collect();
        let live = stream::unfold(receiver, move |mut receiver| {
            let (inside, selector) = (inside.clone(), selector.clone());
            async move {
                loop {
                    let (path, kind, object) = receiver.recv().await.ok()?;
                    if inside(&path) && Self::selected(&object, &selector) {
                        let line = Bytes::from(format!("{}\n", json!({"type": kind, "object": object})));
                        return Some((line, receiver));
                    }
                }
            }
        });
        let frames = stream::iter(missed).chain(live).map(|line| Ok::<_, body::BoxError>(Frame::data(line)));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }

    async fn answer(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let query = head.uri.query().unwrap_or_default().replace("%3D", "=").replace("%3d", "=");
        let selector =
            query.split('&').find_map(|pair| pair.strip_prefix("fieldSelector=")).unwrap_or("").to_owned();
        let input: Value =
            serde_json::from_slice(&body::collect(body, 1 << 20).await.unwrap()).unwrap_or_default();
        let respond = |code: u16, value: &Value| {
            let mut response = Response::new(body::full(value.to_string()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            response
        };
        let not_found = json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "not found"});
        // `/namespaces/x/pods` is below `/pods` as far as a watch of all namespaces goes.
        let collection = path.rsplit('/').next().unwrap_or_default().to_owned();
        let inside = {
            let path = path.clone();
            move |object: &str| {
                object.starts_with(&format!("{path}/"))
                    || (!path.contains("/namespaces/") && object.contains(&format!("/{collection}/")))
            }
        };
        match head.method {
            Method::GET if query.contains("watch=true") => self.watch(&query, selector, inside),
            Method::GET => match self.get(&path) {
                Some(object) => respond(200, &object),
                None if inside(&format!("{path}/x")) && Self::is_collection(&path) => {
                    let objects = self.objects.lock();
                    let items: Vec<&Value> = objects
                        .iter()
                        .filter(|(path, object)| inside(path) && Self::selected(object, &selector))
                        .map(|(_, object)| object)
                        .collect();
                    let version = self.version.lock().to_string();
                    respond(200, &json!({"metadata": {"resourceVersion": version}, "items": items}))
                }
                None => respond(404, &not_found),
            },
            Method::POST if path.ends_with("/token") => {
                let expires = Timestamp::now() + jiff::SignedDuration::from_hours(1);
                respond(201, &json!({"status": {"token": "the-token", "expirationTimestamp": expires}}))
            }
            Method::POST => {
                let name = input["metadata"]["name"].as_str().unwrap_or_default();
                let object = self.put(&format!("{path}/{name}"), input.clone());
                respond(201, &object)
            }
            Method::PATCH => {
                let path = path.trim_end_matches("/status");
                let Some(mut object) = self.get(path) else { return respond(404, &not_found) };
                merge(&mut object, &input);
                respond(200, &self.put(path, object))
            }
            Method::DELETE => {
                self.delete(&path);
                respond(200, &json!({}))
            }
            _ => respond(405, &json!({"code": 405})),
        }
    }

    fn is_collection(path: &str) -> bool {
        let plural = ["pods", "nodes", "services", "configmaps", "secrets", "events", "leases"];
        plural.contains(&path.rsplit('/').next().unwrap_or_default())
    }
}

/// Merges a patch in; conditions by type, as a strategic merge does.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else if key == "conditions" && target[key].is_array() {
            for condition in value.as_array().unwrap() {
                let list = target[key].as_array_mut().unwrap();
                match list.iter_mut().find(|old| old["type"] == condition["type"]) {
                    Some(old) => merge(old, condition),
                    None => list.push(condition.clone()),
                }
            }
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}
