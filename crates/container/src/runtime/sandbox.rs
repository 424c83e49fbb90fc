//! Sandboxes: making, watching, stopping and removing them.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cri::{EventKind, NamespaceMode, NetworkRequest, PodSandboxConfig};
use tokio::sync::watch;

use super::connection::Connection;
use super::{Container, Runtime, Sandbox, SandboxFile, blocking, lost};
use crate::spec::{ContainerRecord, ExitRecord, SANDBOX_FILE, SandboxSpec, write_json};
use crate::userns::IdRange;
use crate::wire::{Reply, Request};

/// Exit code of containers whose end nobody saw, as with containerd.
pub(super) const EXIT_UNKNOWN: i32 = 255;
/// Names of the one handler there is: the default, its own, and what RuntimeClasses for containerd call theirs.
pub(super) const HANDLERS: [&str; 3] = ["", "ferry", "runc"];
/// How long a shim may take to kill its containers and end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

fn failed(message: impl std::fmt::Display) -> cri::Error {
    cri::Error::CreateSandbox { message: message.to_string() }
}

/// The text of `/etc/resolv.conf`.
fn resolv_conf(dns: &cri::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// Host name that the pod sees: its own, or with host network the node's.
pub(super) fn hostname_of(config: &PodSandboxConfig) -> String {
    let host_network = config.security.namespaces.network == NamespaceMode::Node;
    if !config.hostname.is_empty() && !host_network {
        return config.hostname.clone();
    }
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The files that every container of the pod gets.
fn write_files(dir: &Path, config: &PodSandboxConfig) -> std::io::Result<()> {
    fs::create_dir_all(dir.join("c"))?;
    fs::write(dir.join("hostname"), format!("{}\n", hostname_of(config)))?;
    let or_empty = |path| fs::read_to_string(path).unwrap_or_default();
    let resolv = config.dns.as_ref().map_or_else(|| or_empty("/etc/resolv.conf"), resolv_conf);
    fs::write(dir.join("resolv.conf"), resolv)?;
    fs::write(dir.join("hosts"), or_empty("/etc/hosts"))
}

impl Runtime {
    pub(super) async fn run_sandbox(&self, config: PodSandboxConfig) -> cri::Result<String> {
        let id = self.new_id();
        let dir = self.run_dir.join(&id);
        // A container will want to join its cgroup soon; its wait begins now, beside everything else.
        let cgroups = self.cgroups.clone();
        drop(tokio::task::spawn_blocking(move || cgroups.warm_up()));
        write_files(&dir, &config).map_err(|e| failed(format!("create sandbox directory: {e}")))?;
        match self.run_sandbox_in(&id, &dir, config).await {
            Ok(sandbox) => {
                self.emit(&sandbox, None, self.config.clock.now(), EventKind::SandboxStarted);
                Ok(id)
            }
            Err(e) => {
                self.discard_sandbox(&id, &dir).await;
                Err(e)
            }
        }
    }

    async fn run_sandbox_in(
        &self,
        id: &str,
        dir: &Path,
        config: PodSandboxConfig,
    ) -> cri::Result<Arc<Sandbox>> {
        let namespaces = &config.security.namespaces;
        let user = match (namespaces.host_users, &namespaces.user_ids) {
            (true, _) => None,
            (false, Some(mapping)) => Some(IdRange::of(mapping).map_err(failed)?),
            (false, None) => return Err(failed("a user namespace needs a mapping of ids")),
        };
        if !HANDLERS.contains(&config.runtime_handler.as_str()) {
            let message = format!("no runtime for {:?} is configured", config.runtime_handler);
            return Err(cri::Error::Unsupported { message });
        }
        let host_network = namespaces.network == NamespaceMode::Node;
        let namespaces_network = namespaces.network.clone();
        let spec = SandboxSpec {
            id: id.to_owned(),
            hostname: hostname_of(&config),
            host_network,
            user,
            host_ipc: namespaces.ipc == NamespaceMode::Node,
            shared_pid: namespaces.pid == NamespaceMode::Pod,
            cgroup_v2_root: self.config.cgroup_v2_root.clone(),
            sysctls: config.sysctls.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        };
        let connection =
            self.zygote.spawn(dir, spec).await.map_err(|e| failed(format!("start shim: {e}")))?;
        let pid = match connection.reply().await {
            Ok((Reply::State { pid, .. }, _)) => pid,
            Ok((Reply::Failed { failure }, _)) => return Err(failed(failure)),
            Ok((other, _)) => return Err(failed(format!("unexpected answer of shim: {other:?}"))),
            Err(e) => return Err(failed(format!("shim did not start: {e}"))),
        };
        let file = SandboxFile { config, created_at: self.now_ns(), ready: true, network: None };
        write_json(&dir.join(SANDBOX_FILE), &file).map_err(|e| failed(format!("record sandbox: {e}")))?;
        let mut file = file;
        // `Container` stands for a network of its own with nothing but loopback.
        let attached = namespaces_network == NamespaceMode::Pod;
        if let (true, Some(network)) = (attached, &self.config.network) {
            let request = NetworkRequest {
                sandbox_id: id.to_owned(),
                netns: format!("/proc/{pid}/ns/net").into(),
                pod_name: file.config.name.clone(),
                pod_namespace: file.config.namespace.clone(),
                pod_uid: file.config.uid.clone(),
                port_mappings: file.config.port_mappings.clone(),
                annotations: file.config.annotations.clone(),
            };
            let attached = network.attach(&request).await;
            file.network = Some(
                attached.map_err(|e| failed(format!("failed to setup network for sandbox {id:?}: {e}")))?,
            );
            write_json(&dir.join(SANDBOX_FILE), &file).map_err(|e| failed(format!("record sandbox: {e}")))?;
        }
        let sandbox = self.register_sandbox(id, dir, file, pid);
        self.watch_shim(sandbox.clone(), connection)?;
        Ok(sandbox)
    }

    pub(super) fn register_sandbox(&self, id: &str, dir: &Path, file: SandboxFile, pid: i32) -> Arc<Sandbox> {
        let sandbox = Arc::new(Sandbox {
            id: id.to_owned(),
            dir: dir.to_owned(),
            state: parking_lot::RwLock::new(file),
            shim_pid: watch::channel(pid).0,
            stopping: tokio::sync::Mutex::default(),
        });
        self.sandboxes.write().insert(id.to_owned(), sandbox.clone());
        sandbox
    }

    /// Removes what a sandbox left that never came up.
    pub(super) async fn discard_sandbox(&self, id: &str, dir: &Path) {
        if let Some(network) = &self.config.network
            && let Err(e) = network.detach(id).await
        {
            tracing::warn!(sandbox = id, error = %e, "cannot take back the network of a failed sandbox");
        }
        self.shut_down_shim(dir).await;
        let dir = dir.to_owned();
        let _ = blocking(move || super::teardown::remove_directory(&dir)).await;
    }

    /// Tells a shim to kill everything and end, and waits for that.
    pub(super) async fn shut_down_shim(&self, dir: &Path) {
        let Ok(connection) = Connection::connect(dir) else { return };
        if connection.send(&Request::Shutdown, &[]).await.is_ok() {
            // Either its last word or the end of the connection.
            let _ = connection.reply().await;
        }
    }

    /// Follows a shim's events until it ends.
    pub(super) fn watch_shim(&self, sandbox: Arc<Sandbox>, connection: Connection) -> cri::Result<()> {
        let runtime = self.handle()?;
        let weak = Arc::downgrade(&runtime);
        drop(runtime);
        tokio::spawn(async move {
            loop {
                let reply = connection.reply().await;
                let Some(runtime) = weak.upgrade() else { return };
                match reply {
                    Ok((Reply::ContainerStarted { container, record }, _)) => {
                        if let Ok(container) = runtime.container(&container) {
                            runtime.observe(&container, record);
                        }
                    }
                    Ok((Reply::ContainerExited { container, exit }, _)) => {
                        runtime.container_exited(&container, exit)
                    }
                    Ok(_) => {}
                    Err(_) => {
                        // It lets slow listeners go, so this need not be its end.
                        if !runtime.resubscribe(&sandbox).await {
                            runtime.shim_gone(&sandbox);
                        }
                        return;
                    }
                }
            }
        });
        Ok(())
    }

    fn container_exited(&self, id: &str, exit: ExitRecord) {
        if let Ok(container) = self.container(id) {
            let mut record = container.record.borrow().clone();
            record.exit = Some(exit);
            self.observe(&container, record);
        }
    }

    /// Connects to a shim anew and catches up; false if it is gone.
    pub(super) async fn resubscribe(&self, sandbox: &Arc<Sandbox>) -> bool {
        let subscribe = async {
            let connection = Connection::connect(&sandbox.dir)?;
            connection.send(&Request::Subscribe, &[]).await?;
            let (reply, _) = connection.reply().await?;
            Ok::<_, std::io::Error>((connection, reply))
        };
        let Ok((connection, Reply::State { pid, containers })) = subscribe.await else { return false };
        sandbox.shim_pid.send_replace(pid);
        for (id, record) in containers {
            if let Ok(container) = self.container(&id) {
                self.observe(&container, record);
            }
        }
        self.watch_shim(sandbox.clone(), connection).is_ok()
    }

    /// The shim has ended, on our word or not: nothing of the pod runs any more.
    pub(super) fn shim_gone(&self, sandbox: &Arc<Sandbox>) {
        for container in self.containers_of(&sandbox.id) {
            self.settle(&container);
        }
        if sandbox.is_ready() {
            self.mark_not_ready(sandbox);
        }
        sandbox.shim_pid.send_replace(0);
    }

    /// Finds out how a container without a shim ended.
    pub(super) fn settle(&self, container: &Container) {
        let on_disk = crate::spec::read_json(&container.dir.join(crate::spec::STATE_FILE)).ok().flatten();
        let mut record: ContainerRecord = on_disk.unwrap_or_else(|| container.record.borrow().clone());
        if record.pid == 0 && record.exit.is_none() {
            return;
        }
        if record.exit.is_none() {
            let cgroup = container.file.read().cgroup.clone();
            if let Err(e) = self.cgroups.kill(&cgroup) {
                tracing::warn!(container = container.id, error = %e, "cannot kill the rest of a container");
            }
            record.exit = Some(ExitRecord {
                code: EXIT_UNKNOWN,
                oom_killed: false,
                finished_at: self.now_ns(),
                reason: "Unknown".into(),
                message: "the container's shim is gone".into(),
            });
            let _ = write_json(&container.dir.join(crate::spec::STATE_FILE), &record);
        }
        self.observe(container, record);
    }

    pub(super) fn mark_not_ready(&self, sandbox: &Sandbox) {
        let file = {
            let mut state = sandbox.state.write();
            state.ready = false;
            state.clone()
        };
        if let Err(e) = write_json(&sandbox.dir.join(SANDBOX_FILE), &file) {
            tracing::warn!(sandbox = sandbox.id, error = %e, "cannot record that the sandbox was stopped");
        }
        self.emit(sandbox, None, self.config.clock.now(), EventKind::SandboxStopped);
    }

    pub(super) async fn stop_sandbox(&self, id: &str) -> cri::Result<()> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _one = sandbox.stopping.lock().await;
        for container in self.containers_of(id) {
            self.kill_container(&container).await.ok();
        }
        if let Some(network) = &self.config.network
            && sandbox.state.read().config.security.namespaces.network == NamespaceMode::Pod
        {
            network.detach(id).await?;
        }
        // The event task sees the end of the shim and settles its containers.
        let mut pid = sandbox.shim_pid.subscribe();
        let gone = async {
            self.shut_down_shim(&sandbox.dir).await;
            let _ = pid.wait_for(|pid| *pid == 0).await;
        };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, gone).await.is_err() {
            let pid = *sandbox.shim_pid.borrow();
            tracing::warn!(sandbox = id, pid, "shim does not end, killing it");
            // Its working directory tells that the number still means our shim.
            if std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == sandbox.dir) {
                crate::sys::kill(pid, libc::SIGKILL).map_err(|e| cri::Error::io("kill shim", e))?;
            }
            let mut pid = sandbox.shim_pid.subscribe();
            let gone = pid.wait_for(|pid| *pid == 0);
            if tokio::time::timeout(SHUTDOWN_TIMEOUT, gone).await.is_err() {
                let what = format!("stopping sandbox {id:?}");
                return Err(cri::Error::Timeout { what, after: SHUTDOWN_TIMEOUT });
            }
        }
        Ok(())
    }

    pub(super) async fn remove_sandbox(&self, id: &str) -> cri::Result<()> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        self.stop_sandbox(id).await?;
        for container in self.containers_of(id) {
            self.remove_container_now(&container).await?;
        }
        let dir = sandbox.dir.clone();
        blocking(move || super::teardown::remove_directory(&dir)).await?;
        let own_cgroup = sandbox.state.read().config.cgroup_parent.is_empty();
        if own_cgroup {
            self.remove_cgroup(self.cgroup_root().join(id)).await?;
        }
        if self.sandboxes.write().remove(id).is_some() {
            self.emit(&sandbox, None, self.config.clock.now(), EventKind::SandboxDeleted);
        }
        Ok(())
    }
}

/// Sends a request that is answered with a plain yes.
pub(super) async fn tell(dir: &Path, request: &Request) -> cri::Result<()> {
    let (_, reply, _) = super::connection::ask(dir, request).await.map_err(lost("request"))?;
    match reply {
        Reply::Failed { failure } => Err(cri::Error::Internal { message: failure.message }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_lines() {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let dns = cri::DnsConfig {
            servers: strings(&["10.43.0.10"]),
            searches: strings(&["a.svc.cluster.local", "cluster.local"]),
            options: strings(&["ndots:5"]),
        };
        let want = "search a.svc.cluster.local cluster.local\nnameserver 10.43.0.10\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns), want);
        assert_eq!(resolv_conf(&cri::DnsConfig::default()), "");
    }
}
