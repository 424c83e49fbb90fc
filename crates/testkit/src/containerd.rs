//! A containerd of a test's own: state, socket and network plugins below one directory, nothing shared with the
//! host's.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::cluster::{succeed, tail};
use crate::image;

/// How long it may take to answer.
const START_MAX: Duration = Duration::from_secs(30);

/// Version of the containerd that is installed, as far as it says what it can do.
///
/// # Errors
/// When there is none, or it does not say.
pub fn version() -> anyhow::Result<(u32, u32)> {
    let said = succeed(Command::new("containerd").arg("--version"))?;
    // "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", or with a "v".
    let word = said.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v');
    let mut numbers = word.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("containerd does not tell its version: {said}"),
    }
}

/// A running containerd. Dropping it without [`Containerd::stop`] kills it and what it runs.
#[derive(Debug)]
pub struct Containerd {
    directory: PathBuf,
    process: Option<Child>,
}

impl Containerd {
    /// Starts one below `directory`, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When it is not installed or does not answer.
    pub fn start(directory: &Path) -> anyhow::Result<Containerd> {
        for name in ["root", "state", "cni/conf", "cni/bin"] {
            std::fs::create_dir_all(directory.join(name))?;
        }
        std::fs::write(directory.join("config.toml"), configuration(directory))?;
        let mut containerd = Containerd { directory: directory.to_owned(), process: None };
        containerd.resume()?;
        let pause = directory.join("pause.tar");
        image::write_pause(&pause)?;
        containerd.import(&pause)?;
        Ok(containerd)
    }

    /// Starts it again after [`Containerd::interrupt`].
    ///
    /// # Errors
    /// When it does not answer.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.directory.join("log"))?;
        let process = Command::new("containerd")
            .arg("--config")
            .arg(self.directory.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start containerd; it comes in Debian's package of that name")?;
        self.process = Some(process);
        let until = Instant::now() + START_MAX;
        while !self.ctr(&["version"]).output()?.status.success() {
            if Instant::now() > until {
                let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                bail!("containerd does not answer:\n{}", tail(&log));
            }
        }
        Ok(())
    }

    /// Kills the daemon; containers go on.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn interrupt(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]).args(arguments);
        command
    }

    /// Arguments that make `ferry up` use it.
    pub fn arguments(&self) -> Vec<String> {
        let below = |name: &str| self.directory.join(name).display().to_string();
        vec![
            format!("--container-runtime-endpoint=unix://{}", self.socket().display()),
            format!("--cni-conf-dir={}", below("cni/conf")),
            format!("--cni-bin-dir={}", below("cni/bin")),
        ]
    }

    /// Imports a docker archive.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub fn import(&self, archive: &Path) -> anyhow::Result<()> {
        succeed(self.ctr(&["images", "import"]).arg(archive))?;
        Ok(())
    }

    /// Ends it; nothing must be running in it any more.
    ///
    /// # Errors
    /// When containers or their shims are left.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let containers = succeed(&mut self.ctr(&["containers", "list", "--quiet"]))?;
        let left = self.shims()?;
        if let Some(mut process) = self.process.take() {
            let pid = nix::unistd::Pid::from_raw(process.id().cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
            process.wait()?;
        }
        ensure!(containers.trim().is_empty(), "containers are left in containerd: {containers}");
        ensure!(left.is_empty(), "shims of containerd are left: {left:?}");
        Ok(())
    }

    /// Processes of its shims.
    fn shims(&self) -> anyhow::Result<Vec<i32>> {
        let socket = self.socket().display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line);
            let pid = entry.file_name().to_string_lossy().parse();
            if let (true, Ok(pid)) = (line.contains("containerd-shim") && line.contains(&socket), pid) {
                found.push(pid);
            }
        }
        Ok(found)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // The end after a failure: what cannot be killed is gone already.
        for pid in self.shims().unwrap_or_default() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// Its configuration. Without CAP_SYS_RESOURCE, `oom_score_adj` cannot be lowered.
fn configuration(directory: &Path) -> String {
    let below = |name: &str| directory.join(name).display().to_string();
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
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
        root = below("root"),
        state = below("state"),
        socket = below("containerd.sock"),
        pause = image::PAUSE,
        conf = below("cni/conf"),
        bin = below("cni/bin"),
    )
}
