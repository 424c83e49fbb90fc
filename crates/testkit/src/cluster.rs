//! One real cluster: started, used, stopped, and checked to be gone without a trace.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use client::{Client, DeleteParams, Kubeconfig, List, ListParams, Patch, WatchParams, WatchStream};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::census::census;
use crate::containerd::Containerd;
use crate::{image, kinds::gvr, process};

/// Longest wait for one state of one object: several times what the slowest case needs on a loaded machine.
pub const WAIT_MAX: Duration = Duration::from_secs(90);

/// Who runs a cluster's containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Runtime {
    /// Ferry itself.
    #[default]
    Embedded,
    /// A containerd of the cluster's own.
    Containerd,
}

/// A running cluster. Dropping it stops and removes it, and panics if anything of it is left on the host.
pub struct Cluster {
    containerd: Option<Containerd>,
    disk: Option<Disk>,
    directory: tempfile::TempDir,
    process: Mutex<Option<Child>>,
    runtime: tokio::runtime::Runtime,
    client: Client,
    port: u16,
    arguments: Vec<String>,
    namespaces: AtomicU32,
}

impl Cluster {
    /// Moves the calling thread into a fresh network namespace and starts a cluster there.
    ///
    /// # Errors
    /// When not root, when the binary is missing, or when no node gets ready.
    pub fn start() -> anyhow::Result<Cluster> {
        Self::start_with(&[])
    }

    /// The same with further arguments of `ferry up`.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_with(arguments: &[&str]) -> anyhow::Result<Cluster> {
        Self::start_on(Runtime::Embedded, arguments)
    }

    /// The same on a runtime.
    ///
    /// # Errors
    /// As [`Cluster::start`], or when the runtime does not start.
    pub fn start_on(on: Runtime, arguments: &[&str]) -> anyhow::Result<Cluster> {
        Self::start_at(on, arguments, None)
    }

    /// The same with its data on a disk of its own, of so many bytes.
    ///
    /// # Errors
    /// As [`Cluster::start`], or when the disk can't be mounted.
    pub fn start_on_disk(bytes: u64) -> anyhow::Result<Cluster> {
        Self::start_at(Runtime::Embedded, &[], Some(("", bytes)))
    }

    /// The same with its images alone on such a disk.
    ///
    /// # Errors
    /// As [`Cluster::start_on_disk`].
    pub fn start_with_image_disk(bytes: u64) -> anyhow::Result<Cluster> {
        Self::start_at(Runtime::Embedded, &[], Some(("images", bytes)))
    }

    /// Makes the cluster's disk read-only, or writable again.
    ///
    /// # Errors
    /// When it has none, or the kernel refuses.
    pub fn remount_disk(&self, read_only: bool) -> anyhow::Result<()> {
        use nix::mount::MsFlags;
        let disk = self.disk.as_ref().context("the cluster has no disk of its own")?;
        let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        nix::mount::mount(None::<&str>, &disk.0, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>)?;
        Ok(())
    }

    fn start_at(on: Runtime, arguments: &[&str], disk: Option<(&str, u64)>) -> anyhow::Result<Cluster> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "clusters are made of namespaces and mounts: run the tests as root"
        );
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .context("cannot make a network namespace")?;
        process::limit_binary();
        succeed(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        let directory = tempfile::tempdir()?;
        let archive = directory.path().join("busybox.tar");
        image::write_busybox(&archive)?;
        let data = directory.path().join("data");
        let log = directory.path().join("log");
        let disk = disk.map(|(below, bytes)| Disk::mount(&data.join(below), bytes)).transpose()?;
        let mut arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let containerd = match on {
            Runtime::Embedded => None,
            Runtime::Containerd => Some(Containerd::start(&directory.path().join("containerd"))?),
        };
        arguments.extend(containerd.iter().flat_map(Containerd::arguments));
        let (process, port) = launch(&data, &log, 0, &arguments)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let client = runtime
            .block_on(async { Kubeconfig::client(&data.join("admin.kubeconfig"), None, "testkit") })?;
        let namespaces = AtomicU32::new(0);
        let cluster = Cluster {
            containerd,
            disk,
            directory,
            process: Mutex::new(Some(process)),
            runtime,
            client,
            port,
            arguments,
            namespaces,
        };
        // From here on the cluster is stopped by its drop, whatever fails.
        match &cluster.containerd {
            Some(containerd) => containerd.import(&archive)?,
            None => drop(succeed(
                Command::new(binary()?).args(["image", "import"]).arg(&archive).arg("--data-dir").arg(&data),
            )?),
        }
        cluster.nodes_ready()?;
        Ok(cluster)
    }

    fn nodes_ready(&self) -> anyhow::Result<()> {
        self.scope("").wait_any("nodes", "", "a ready node", |node| {
            let conditions = node["status"]["conditions"].as_array();
            conditions.is_some_and(|c| c.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
        })?;
        Ok(())
    }

    /// Directory of the cluster's state.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The cluster's id, which everything it makes on the machine bears.
    pub fn id(&self) -> anyhow::Result<String> {
        let id = std::fs::read_to_string(self.data().join("cluster-id"))?.trim().to_owned();
        ensure!(!id.is_empty(), "the cluster has no id");
        Ok(id)
    }

    /// The cluster's containerd, if it has one.
    pub fn containerd(&mut self) -> Option<&mut Containerd> {
        self.containerd.as_mut()
    }

    /// Process of the server.
    pub fn pid(&self) -> Option<u32> {
        self.process.lock().as_ref().map(Child::id)
    }

    /// What the cluster logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Kills the server as a power cut would, for good: what remains is for the cluster's end to clear up.
    pub fn crash(&self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.lock().take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Kills the server as a power cut would and starts it again on the same port.
    pub fn crash_and_restart(&self) -> anyhow::Result<()> {
        self.crash()?;
        let log = self.directory.path().join("log");
        let (process, _) = launch(&self.data(), &log, self.port, &self.arguments)?;
        *self.process.lock() = Some(process);
        self.nodes_ready()
    }

    /// A new namespace for one case, with its default service account in place.
    pub fn namespace(&self, prefix: &str) -> anyhow::Result<Scope<'_>> {
        let name = format!("{prefix}-{}", self.namespaces.fetch_add(1, Ordering::Relaxed));
        let scope = self.scope(&name);
        scope.create("namespaces", json!({"metadata": {"name": name, "labels": {"made-by": "testkit"}}}))?;
        scope.wait_any("serviceaccounts", "default", "the default service account", |_| true)?;
        Ok(scope)
    }

    /// The verbs of the API within a namespace; empty for cluster-wide kinds.
    pub fn scope(&self, namespace: &str) -> Scope<'_> {
        Scope { cluster: self, namespace: namespace.to_owned() }
    }

    /// Stops the cluster, removes it and looks for anything it left behind.
    fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.lock().take() {
            let pid = nix::unistd::Pid::from_raw(process.id().cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
            let status = process.wait()?;
            ensure!(status.success(), "ferry up ended with {status}");
        }
        let id = self.id()?;
        succeed(Command::new(binary()?).args(["down", "--data-dir"]).arg(self.data()))?;
        self.disk = None;
        let left = census(&id, &self.data())?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        if let Some(containerd) = self.containerd.take() {
            containerd.stop()?;
        }
        Ok(())
    }
}

/// A disk in memory; unmounted on drop.
struct Disk(PathBuf);

impl Disk {
    fn mount(target: &Path, bytes: u64) -> anyhow::Result<Disk> {
        std::fs::create_dir_all(target)?;
        let options = format!("size={bytes}");
        nix::mount::mount(
            Some("tmpfs"),
            target,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )?;
        Ok(Disk(target.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // One that is busy is found by the census.
        let _ = nix::mount::umount(&self.0);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("cluster did not end cleanly: {error:#}\n{}", tail(&self.log()));
            if !std::thread::panicking() {
                panic!("cluster did not end cleanly: {error:#}");
            }
        }
    }
}

/// The last lines of a log, enough to see what went wrong.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// The binary under test: `FERRY_BIN`, or the one built beside this test.
///
/// # Errors
/// When there is none.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("FERRY_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    let beside = test.ancestors().skip(1).take(2).map(|d| d.join("ferry")).find(|p| p.is_file());
    beside.context("no ferry binary beside the tests: build it (`cargo build -p ferry`) or set FERRY_BIN")
}

/// Starts `ferry up` and waits until it says that its API and its node agent run; answers its port.
fn launch(data: &Path, log: &Path, port: u16, arguments: &[String]) -> anyhow::Result<(Child, u16)> {
    let log_file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    let mut process = Command::new(binary()?)
        .args(["up", "--https-port", &port.to_string(), "--data-dir"])
        .arg(data)
        // What else is on the disk of the machine must not decide about tests.
        .args(["--eviction-hard", "nodefs.available<1%,nodefs.inodesFree<1%"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .spawn()
        .context("cannot start ferry")?;
    let stdout = process.stdout.take().context("ferry has no output")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut ready = None;
    for line in lines.by_ref() {
        let line = line?;
        if let Some((_, rest)) = line.split_once("API server ready at https://127.0.0.1:") {
            ready = rest.trim().parse().ok();
        }
        if line.contains("node agent running") {
            break;
        }
    }
    let Some(port) = ready else {
        let status = process.wait()?;
        bail!(
            "ferry ended with {status} before its API was ready:\n{}",
            tail(&std::fs::read_to_string(log)?)
        );
    };
    // Nobody reads the rest; an unread pipe would stop the server once it is full.
    std::thread::spawn(move || lines.for_each(drop));
    Ok((process, port))
}

/// Runs a command that must succeed; answers its standard output.
pub fn succeed(command: &mut Command) -> anyhow::Result<String> {
    let output = process::output(command).with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A namespace of a cluster and the verbs within it. Every method blocks.
pub struct Scope<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Name of the namespace.
    pub namespace: String,
}

impl Scope<'_> {
    /// The namespace of a kind: none for the cluster-wide ones.
    fn of(&self, resource: &str) -> &str {
        const WIDE: [&str; 26] = [
            "namespaces",
            "nodes",
            "runtimeclasses",
            "storageclasses",
            "csidrivers",
            "csinodes",
            "ingressclasses",
            "priorityclasses",
            "flowschemas",
            "prioritylevelconfigurations",
            "volumeattachments",
            "tokenreviews",
            "certificatesigningrequests",
            "clustertrustbundles",
            "certificaterevocations",
            "clusterroles",
            "clusterrolebindings",
            "persistentvolumes",
            "servicecidrs",
            "customresourcedefinitions",
            "mutatingwebhookconfigurations",
            "validatingwebhookconfigurations",
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
        ];
        if WIDE.contains(&resource) { "" } else { &self.namespace }
    }

    /// Directory of the cluster's state.
    pub fn data(&self) -> PathBuf {
        self.cluster.data()
    }

    /// Lets time pass: between looks at what nobody tells of, or to see that nothing happens.
    pub fn pause(&self, time: Duration) {
        // Made inside the runtime: a timer needs one.
        self.cluster.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// POST.
    pub fn create(&self, resource: &str, object: Value) -> client::Result<Value> {
        let (gvr, c) = (gvr(resource), self.cluster);
        let object = complete(&gvr, object);
        c.runtime.block_on(c.client.create(&gvr, self.of(resource), &object))
    }

    /// GET of one.
    pub fn get(&self, resource: &str, name: &str) -> client::Result<Value> {
        let c = self.cluster;
        c.runtime.block_on(c.client.get(&gvr(resource), self.of(resource), name))
    }

    /// PUT.
    pub fn update(&self, resource: &str, object: &Value) -> client::Result<Value> {
        let c = self.cluster;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        c.runtime.block_on(c.client.update(&gvr(resource), self.of(resource), name, object))
    }

    /// PATCH with a merge patch, of the object or of a subresource if that is not empty.
    pub fn merge(
        &self,
        resource: &str,
        name: &str,
        subresource: &str,
        patch: Value,
    ) -> client::Result<Value> {
        self.patch(resource, name, subresource, &Patch::Merge(patch))
    }

    /// PATCH.
    pub fn patch(
        &self,
        resource: &str,
        name: &str,
        subresource: &str,
        patch: &Patch,
    ) -> client::Result<Value> {
        let c = self.cluster;
        c.runtime.block_on(c.client.patch(&gvr(resource), self.of(resource), name, subresource, patch))
    }

    /// DELETE of one.
    pub fn delete(&self, resource: &str, name: &str, params: &DeleteParams) -> client::Result<()> {
        let c = self.cluster;
        c.runtime.block_on(c.client.delete(&gvr(resource), self.of(resource), name, params))?;
        Ok(())
    }

    /// DELETE of all that a label selector matches.
    pub fn delete_all(&self, resource: &str, selector: &str) -> client::Result<()> {
        let c = self.cluster;
        let filter = ListParams { label_selector: selector.into(), ..Default::default() };
        let gvr = gvr(resource);
        let options = DeleteParams::default();
        let call = c.client.delete_collection(&gvr, self.of(resource), &options, &filter);
        c.runtime.block_on(call)?;
        Ok(())
    }

    /// LIST, parsed.
    pub fn list(&self, resource: &str, selector: &str) -> anyhow::Result<Vec<Value>> {
        let list =
            self.page(resource, &ListParams { label_selector: selector.into(), ..Default::default() })?;
        list.items.iter().map(|i| Ok(serde_json::from_slice(i)?)).collect()
    }

    /// LIST with every option.
    pub fn page(&self, resource: &str, params: &ListParams) -> client::Result<List> {
        let c = self.cluster;
        c.runtime.block_on(c.client.list(&gvr(resource), self.of(resource), params))
    }

    /// WATCH.
    pub fn watch(&self, resource: &str, params: &WatchParams) -> client::Result<WatchStream> {
        let c = self.cluster;
        c.runtime.block_on(c.client.watch(&gvr(resource), self.of(resource), params))
    }

    /// The next event of a watch: its kind and its object.
    pub fn next(&self, stream: &mut WatchStream) -> anyhow::Result<(client::EventKind, Value)> {
        let next =
            self.cluster.runtime.block_on(async { tokio::time::timeout(WAIT_MAX, stream.next()).await });
        let event = next.context("no event arrived")?.context("the watch ended")??;
        Ok((event.kind, serde_json::from_slice(&event.object)?))
    }

    /// GET of any path, as JSON.
    pub fn path(&self, path: &str) -> anyhow::Result<Value> {
        let c = self.cluster;
        Ok(serde_json::from_slice(&c.runtime.block_on(c.client.get_path(path))?)?)
    }

    /// Any request with a JSON body; answers the body.
    pub fn send(&self, method: http::Method, path: &str, body: &Value) -> client::Result<Value> {
        let c = self.cluster;
        let body = bytes::Bytes::from(body.to_string());
        let answer = c.runtime.block_on(c.client.write_bytes(method, path, body))?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Any request with any headers; answers code, headers and the body (of a stream only its first event).
    pub fn raw(
        &self,
        method: http::Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<bytes::Bytes>,
    ) -> anyhow::Result<(u16, http::HeaderMap, Vec<u8>)> {
        let c = self.cluster;
        let mut request = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into())?;
        c.runtime.block_on(async {
            let answer = tokio::time::timeout(WAIT_MAX, c.client.raw(request)).await??;
            let (parts, mut body) = answer.into_parts();
            let mut out = Vec::new();
            let read = async {
                while let Some(frame) = body.frame().await {
                    if let Ok(data) = frame.map_err(|e| anyhow::anyhow!("{e}"))?.into_data() {
                        out.extend_from_slice(&data);
                    }
                    if path.contains("watch") && is_event(&out) {
                        break;
                    }
                }
                anyhow::Ok(())
            };
            tokio::time::timeout(WAIT_MAX, read).await??;
            Ok((parts.status.as_u16(), parts.headers, out))
        })
    }

    /// Waits until an object is in some state; `what` says which, for the message. An empty name means any.
    pub fn wait_any(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        is: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        self.wait_event(kind, name, what, |event, object| event != client::EventKind::Deleted && is(object))
    }

    /// Waits until the named object is gone.
    pub fn wait_gone(&self, resource: &str, name: &str) -> anyhow::Result<()> {
        let field_selector = format!("metadata.name={name}");
        let params = ListParams { field_selector, ..Default::default() };
        let list = self.page(resource, &params)?;
        if list.items.is_empty() {
            return Ok(());
        }
        let rv = list.resource_version;
        self.follow(resource, name, rv, "its end", |e, _| e == client::EventKind::Deleted).map(drop)
    }

    fn wait_event(
        &self,
        resource: &str,
        name: &str,
        what: &str,
        is: impl Fn(client::EventKind, &Value) -> bool,
    ) -> anyhow::Result<Value> {
        let field_selector = if name.is_empty() { String::new() } else { format!("metadata.name={name}") };
        let list = self.page(resource, &ListParams { field_selector, ..Default::default() })?;
        for item in &list.items {
            let object: Value = serde_json::from_slice(item)?;
            if is(client::EventKind::Added, &object) {
                return Ok(object);
            }
        }
        self.follow(resource, name, list.resource_version, what, is)
    }

    fn follow(
        &self,
        resource: &str,
        name: &str,
        resource_version: String,
        what: &str,
        is: impl Fn(client::EventKind, &Value) -> bool,
    ) -> anyhow::Result<Value> {
        let field_selector = if name.is_empty() { String::new() } else { format!("metadata.name={name}") };
        let params = WatchParams { field_selector, resource_version, ..Default::default() };
        let mut stream = self.watch(resource, &params)?;
        let mut last = Value::Null;
        let wait = async {
            while let Some(event) = stream.next().await {
                let event = event?;
                last = serde_json::from_slice(&event.object)?;
                if is(event.kind, &last) {
                    return anyhow::Ok(true);
                }
            }
            Ok(false)
        };
        let reached = self.cluster.runtime.block_on(async { tokio::time::timeout(WAIT_MAX, wait).await });
        match reached {
            Ok(Ok(true)) => Ok(last),
            Ok(Err(error)) => Err(error),
            _ => bail!("{resource} {name} did not reach {what}; last seen: {}", last["status"]),
        }
    }

    /// `kubectl` in this namespace, whatever it answers.
    pub fn kubectl_raw(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(process::output(&mut self.kubectl_command(arguments))?)
    }

    /// `kubectl` in this namespace; it must succeed.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        succeed(&mut self.kubectl_command(arguments))
    }

    /// `kubectl` in this namespace, not yet started.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.cluster.data().join("admin.kubeconfig"));
        command.arg("--cache-dir").arg(self.cluster.directory.path().join("kubectl-cache"));
        command.args(["-n", &self.namespace]).args(arguments).stdin(Stdio::null());
        command
    }
}

/// Whether a stream has brought a first event: a line of JSON or a frame of protobuf.
fn is_event(bytes: &[u8]) -> bool {
    match bytes.split_first_chunk::<4>() {
        Some((length, rest)) if bytes[0] == 0 => rest.len() >= u32::from_be_bytes(*length) as usize,
        _ => bytes.contains(&b'\n'),
    }
}

/// Adds what a bare object lacks: `apiVersion` and, from the plural, `kind`.
fn complete(gvr: &meta::Gvr, mut object: Value) -> Value {
    if object.get("apiVersion").is_none() {
        let version = &gvr.version;
        object["apiVersion"] = if gvr.group.is_empty() {
            version.to_string().into()
        } else {
            format!("{}/{version}", gvr.group).into()
        };
    }
    object
}
