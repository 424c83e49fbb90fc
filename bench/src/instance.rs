//! A running `ferry up`: started on free ports and a data directory of its own, stopped and removed on drop.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::{Client, Kubeconfig, WatchParams, WatchStream};
use meta::Gvr;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Options;

/// Longest wait for anything that normally takes a second or less.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a stopping instance may take before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// How often a question without a watch (readyz, an admission that is not ready yet) is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// Nodes.
pub const NODES: Gvr = Gvr::new("", "v1", "nodes");
/// Pods.
pub const PODS: Gvr = Gvr::new("", "v1", "pods");
/// Namespaces.
pub const NAMESPACES: Gvr = Gvr::new("", "v1", "namespaces");

/// Where an instance lives: a copy of the binary (so that its processes can be told from others by their
/// executable), the data directory, the log.
pub struct Home {
    directory: TempDir,
    log_level: String,
    arguments: Vec<String>,
    started_once: bool,
}

impl Home {
    /// A place for a cluster that does not exist yet.
    pub fn new(options: &Options) -> anyhow::Result<Self> {
        let parent = options.directory.clone().unwrap_or_else(std::env::temp_dir);
        let directory = tempfile::Builder::new().prefix("ferry-bench-").tempdir_in(parent)?;
        std::fs::copy(&options.ferry, directory.path().join("ferry"))
            .with_context(|| format!("cannot copy {}", options.ferry.display()))?;
        let log_level = options.log_level.clone();
        Ok(Home { directory, log_level, arguments: Vec::new(), started_once: false })
    }

    /// With further arguments of `ferry up`.
    pub fn with_arguments(mut self, arguments: Vec<String>) -> Self {
        self.arguments = arguments;
        self
    }

    /// The binary that is measured.
    pub fn binary(&self) -> PathBuf {
        self.directory.path().join("ferry")
    }

    /// A directory for files of the measurement itself, on the same file system as the data.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("ferry.log")
    }

    /// Starts the cluster and returns when `/readyz` says 200.
    pub async fn start(&mut self) -> anyhow::Result<Instance<'_>> {
        self.started_once = true;
        let log = File::options().create(true).append(true).open(self.log())?;
        let started = Instant::now();
        let mut child = Command::new(self.binary())
            .args(["up", "--https-port", "0", "--cluster-cidr", "10.52.0.0/16"])
            .args(["--service-cidr", "10.53.0.0/16", "--cluster-dns", "10.53.0.10"])
            .args(["--log-level", &self.log_level, "--data-dir"])
            .arg(self.data())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot start the binary")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (lines, mut said) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        let mut instance = Instance { child, home: self, started, ready_after: Duration::ZERO, client: None };
        let ready = async {
            while let Some(line) = said.recv().await {
                if line.contains("API server ready at") {
                    return true;
                }
            }
            false
        };
        if !tokio::time::timeout(PATIENCE, ready).await.unwrap_or(false) {
            bail!("the API server did not come up:\n{}", instance.log_tail());
        }
        let client = instance.connect()?;
        let healthy = async {
            while client.get_path("/readyz").await.is_err() {
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        tokio::time::timeout(PATIENCE, healthy).await.context("/readyz never said 200")?;
        instance.ready_after = started.elapsed();
        instance.client = Some(client);
        Ok(instance)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.started_once {
            return;
        }
        let done = Command::new(self.binary()).arg("down").arg("--data-dir").arg(self.data()).output();
        match done {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!("`ferry down` failed: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln!("cannot run `ferry down`: {error}"),
        }
    }
}

/// A running cluster.
pub struct Instance<'a> {
    child: Child,
    home: &'a Home,
    /// When the process was started.
    pub started: Instant,
    /// How long until `/readyz` said 200.
    pub ready_after: Duration,
    client: Option<Client>,
}

impl Instance<'_> {
    /// The place it runs in.
    pub fn home(&self) -> &Home {
        self.home
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An administrator's client with connections of its own.
    pub fn connect(&self) -> anyhow::Result<Client> {
        let path = self.home.data().join("admin.kubeconfig");
        Ok(Kubeconfig::client(&path, None, "bench")?)
    }

    /// The client that was used to wait for readiness.
    pub fn client(&self) -> anyhow::Result<&Client> {
        self.client.as_ref().context("the instance is not ready")
    }

    /// Waits until the node is Ready.
    pub async fn node_ready(&self) -> anyhow::Result<()> {
        let mut watch = self.client()?.watch(&NODES, "", &WatchParams::default()).await?;
        let ready = wait_for(&mut watch, |node| {
            let conditions = node["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
        });
        ready.await.with_context(|| format!("the node never became Ready:\n{}", self.log_tail()))
    }

    /// Imports the image that pods run.
    pub async fn import_image(&self) -> anyhow::Result<()> {
        let archive = self.home.path().join("busybox.tar");
        crate::image::write(&archive)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = tokio::process::Command::new(self.home.binary())
                .args(["image", "import", "--data-dir"])
                .arg(self.home.data())
                .arg(&archive)
                .output()
                .await?;
            if output.status.success() {
                return Ok(());
            }
            // The node's local socket opens a moment after the API server.
            if Instant::now() > deadline {
                bail!("cannot import the image: {}", String::from_utf8_lossy(&output.stderr));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Makes a namespace.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.client()?.create(&NAMESPACES, "", &object).await?;
        Ok(())
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.home.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

impl Drop for Instance<'_> {
    fn drop(&mut self) {
        let pid = self.child.id() as libc::pid_t;
        // SAFETY: the process is our child and not waited for yet, so the number is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let (stopped, waiting) = mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            if waiting.recv_timeout(STOP_PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the instance did not stop within {STOP_PATIENCE:?}; killing it");
                // SAFETY: as above; the wait below cannot return before this or the process's own end.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        });
        let _ = self.child.wait();
        drop(stopped);
        let _ = watchdog.join();
    }
}

/// Reads a watch until an object is as wanted.
pub async fn wait_for(watch: &mut WatchStream, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
    let search = async {
        while let Some(event) = watch.next().await {
            if wanted(&serde_json::from_slice(&event?.object)?) {
                return Ok(());
            }
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(PATIENCE, search).await.context("gave up waiting")?
}
