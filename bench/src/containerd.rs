//! A containerd of the measurement's own, where it is installed: the same cluster's pods on it are the peer of
//! the embedded runtime's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::{Options, image};

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running containerd; killed on drop, after the cluster that used it is gone.
pub struct Peer {
    directory: TempDir,
    daemon: Child,
}

impl Peer {
    /// Starts one with the measured image in it; `None` where containerd is not installed.
    pub fn start(options: &Options) -> anyhow::Result<Option<Peer>> {
        if Command::new("containerd").arg("--version").output().is_err() {
            return Ok(None);
        }
        let parent = options.directory.clone().unwrap_or_else(std::env::temp_dir);
        let directory = tempfile::Builder::new().prefix("ferry-bench-containerd-").tempdir_in(parent)?;
        let at = |name: &str| directory.path().join(name);
        for name in ["conf", "bin"] {
            std::fs::create_dir(at(name))?;
        }
        std::fs::write(at("config.toml"), configuration(directory.path()))?;
        let daemon = Command::new("containerd")
            .arg("--config")
            .arg(at("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(at("log"))?)
            .spawn()
            .context("cannot start containerd")?;
        let peer = Peer { directory, daemon };
        let until = Instant::now() + PATIENCE;
        while !peer.ctr(&["version"]).output()?.status.success() {
            ensure!(Instant::now() < until, "containerd does not answer");
        }
        for (file, write) in [("pods.tar", image::write as fn(&Path) -> _), ("pause.tar", image::write_pause)]
        {
            let archive = peer.directory.path().join(file);
            write(&archive)?;
            let imported = peer.ctr(&["images", "import"]).arg(&archive).output()?;
            ensure!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
        }
        Ok(Some(peer))
    }

    /// What its processes have on their command lines.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("containerd.sock")
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]).args(arguments);
        command
    }

    /// Arguments that make a cluster use it.
    pub fn arguments(&self) -> Vec<String> {
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        vec![
            format!("--container-runtime-endpoint=unix://{}", self.socket().display()),
            format!("--cni-conf-dir={}", at("conf")),
            format!("--cni-bin-dir={}", at("bin")),
        ]
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // One that has died already is no less gone.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn configuration(directory: &Path) -> String {
    let at = |name: &str| directory.join(name).display().to_string();
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{conf}"
    bin_dir = "{bin}"
"#,
        root = at("root"),
        state = at("state"),
        socket = at("containerd.sock"),
        pause = image::PAUSE,
        conf = at("conf"),
        bin = at("bin"),
    )
}
