//! RUN: a command in a real container over the stage's file tree, and what it has changed as a layer.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cri::{ContainerConfig, EventKind, Mount, NamespaceMode, PodSandboxConfig};
use futures_util::StreamExt;
use image::Digest;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use super::job::Job;
use super::mounts::Mounts;
use super::{Event, Log};
use crate::error::{Error, Result, message};
use crate::state::{Network, RunStep};

/// Label of sandboxes that builds have made.
pub const BUILD_LABEL: &str = "ferry.dev/build";
/// Bytes of a command's output that an error repeats.
const TAIL_LEN_MAX: usize = 8 << 10;
/// Lines of that.
const TAIL_LINES_MAX: usize = 40;
/// Size of reads of the log.
const READ_LEN: usize = 64 << 10;
/// How long the end of a container's life may be waited for once its log is done.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Paths that no step may read or write, as for pods' containers.
const MASKED: [&str; 9] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
/// Paths that no step may write.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The end of what a command said.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn add(&mut self, text: &[u8]) {
        self.0.extend_from_slice(text);
        if self.0.len() > 2 * TAIL_LEN_MAX {
            self.0.drain(..self.0.len() - TAIL_LEN_MAX);
        }
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(
            self.0.get(self.0.len().saturating_sub(TAIL_LEN_MAX)..).unwrap_or(&self.0),
        );
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES_MAX);
        let shown = lines.get(from..).unwrap_or_default();
        shown.iter().map(|line| format!("  {line}\n")).collect()
    }
}

/// The payload of one line of a container's log: `time stream F text`.
fn payload(line: &[u8]) -> Option<(&[u8], bool)> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (_, _, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some((text, tag.starts_with(b"F")))
}

/// Reads a log as it grows.
struct Follower {
    file: fs::File,
    events: AsyncFd<rustix::fd::OwnedFd>,
    pending: Vec<u8>,
}

impl Follower {
    fn open(path: &Path) -> Result<Follower> {
        let failed = || Error::io::<std::io::Error>(format!("follow {}", path.display()));
        let file = fs::OpenOptions::new().create(true).append(true).read(true).open(path).map_err(failed())?;
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(Error::io("follow log"))?;
        inotify::add_watch(&events, path, inotify::WatchFlags::MODIFY).map_err(Error::io("follow log"))?;
        // SAFETY: the descriptor is owned by the result and closed with it, never before.
        let events = unsafe { AsyncFd::register(events) }.map_err(|e| failed()(e.into_parts().1))?;
        Ok(Follower { file, events, pending: Vec::new() })
    }

    /// Waits for the log to grow.
    async fn changed(&self) {
        let Ok(mut ready) = self.events.readable().await else { return };
        let mut buffer = [0u8; 4096];
        while rustix::io::read(self.events.as_fd(), &mut buffer).is_ok_and(|n| n > 0) {}
        ready.clear_ready();
    }

    /// What has come since.
    fn read(&mut self) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        let mut buffer = vec![0; READ_LEN];
        loop {
            let n = std::io::Read::read(&mut self.file, &mut buffer).map_err(Error::io("read log"))?;
            if n == 0 {
                return Ok(text);
            }
            self.pending.extend_from_slice(buffer.get(..n).unwrap_or_default());
            while let Some(end) = self.pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                if let Some((part, whole)) = payload(line.get(..end).unwrap_or_default()) {
                    text.extend_from_slice(part);
                    if whole {
                        text.push(b'\n');
                    }
                }
            }
        }
    }
}

impl Job {
    /// The sandbox of a stage for steps with this network, made when first needed.
    async fn sandbox(&self, stage: usize, network: Network) -> Result<String> {
        let mut sandboxes = self.sandboxes.lock().await;
        if let Some(id) = sandboxes.get(&(stage, network)) {
            return Ok(id.clone());
        }
        let mut config = PodSandboxConfig {
            name: format!("build-{}", self.number),
            namespace: "build".into(),
            uid: format!("build-{}-{stage}-{network:?}", self.number),
            hostname: "buildkitsandbox".into(),
            log_directory: self.work.clone(),
            ..PodSandboxConfig::default()
        };
        config.labels.insert(BUILD_LABEL.into(), self.number.to_string());
        config.security.namespaces.network = match network {
            Network::Default => NamespaceMode::Pod,
            Network::None => NamespaceMode::Container,
            Network::Host => NamespaceMode::Node,
        };
        let id = self.builder.runtime.run_pod_sandbox(config).await?;
        sandboxes.insert((stage, network), id.clone());
        Ok(id)
    }

    /// Runs the command; returns the layer of its changes and that layer's size.
    pub(super) async fn run(
        self: &std::sync::Arc<Self>,
        stage: usize,
        step: &RunStep,
        layers: &[Digest],
        log: &Log,
    ) -> Result<(Digest, u64)> {
        let builder = &self.builder;
        let config = cri::ImageConfig {
            env: step.env.iter().chain(&step.hidden_env).cloned().collect(),
            user: step.user.clone(),
            working_dir: step.directory.clone(),
            ..cri::ImageConfig::default()
        };
        let tree = builder.images.clone().stage(layers, config)?;
        let sandbox = self.sandbox(stage, step.network).await?;
        let mounts = Mounts::prepare(self, stage, &step.mounts).await?;
        let file = self.next_name("log");
        let mut container = ContainerConfig {
            name: file.clone(),
            image: tree.name().to_owned(),
            command: step.argv.clone(),
            mounts: mounts.mounts.clone(),
            envs: mounts.envs.clone(),
            log_path: PathBuf::from(&file),
            ..ContainerConfig::default()
        };
        container.security.privileged = step.insecure;
        container.security.masked_paths = MASKED.iter().map(PathBuf::from).collect();
        container.security.readonly_paths = READONLY.iter().map(PathBuf::from).collect();
        let id = builder.runtime.create_container(&sandbox, container).await?;
        let outcome = self.finish_run(&id, step, layers, &mounts, &self.work.join(&file), log).await;
        // The container itself goes with its sandbox, behind the build: the next step need not wait for that.
        mounts.release().await;
        let _ = fs::remove_file(self.work.join(&file));
        outcome
    }

    async fn finish_run(
        self: &std::sync::Arc<Self>,
        id: &str,
        step: &RunStep,
        layers: &[Digest],
        mounts: &Mounts,
        log_file: &Path,
        log: &Log,
    ) -> Result<(Digest, u64)> {
        let mut tail = Tail::default();
        let exit = self.follow(id, log_file, log, &mut tail).await.map_err(|e| match e {
            Error::Runtime(e) => match &*e {
                // What the runtime says for the kubelet's users is not about a build.
                cri::Error::RunContainer { message, exit_code } => Error::Command {
                    command: shown(&step.argv),
                    code: *exit_code,
                    output: format!("  {message}\n"),
                    hint: "",
                },
                _ => Error::Runtime(e),
            },
            e => e,
        })?;
        if exit.code != 0 {
            let hint = match (exit.oom_killed, exit.code) {
                (true, _) => " (killed because the node is out of memory)",
                (false, 126) => " (the program is there but cannot be run)",
                (false, 127) => " (the program was not found)",
                _ => "",
            };
            return Err(Error::Command {
                command: shown(&step.argv),
                code: exit.code,
                output: tail.text(),
                hint,
            });
        }
        let upper = self.builder.changes.upper(id).ok_or_else(|| message("the step's container is gone"))?;
        let (builder, hold) = (self.clone(), layers.to_vec());
        let targets = mounts.targets();
        super::blocking(move || {
            let images = &builder.builder.images;
            let lower = images.layer_paths(&hold);
            super::stubs::remove(&upper, &lower, &targets)?;
            if let Some(epoch) = builder.epoch {
                super::copy::clamp_times(&upper, epoch)?;
            }
            Ok(images.add_layer(&upper, &builder.hold)?)
        })
        .await
    }

    /// Starts the container and tells what it says until it has ended.
    async fn follow(&self, id: &str, file: &Path, log: &Log, tail: &mut Tail) -> Result<cri::ExitInfo> {
        let mut events = self.builder.runtime.events();
        let mut follower = Follower::open(file)?;
        self.builder.runtime.start_container(id).await?;
        let exit = loop {
            tokio::select! {
                () = follower.changed() => tell(&mut follower, log, tail).await?,
                event = events.next() => match event {
                    None => return Err(message("the runtime has closed")),
                    Some(event) => match event.kind {
                        EventKind::ContainerStopped(exit) if event.container_id.as_deref() == Some(id) => break exit,
                        EventKind::Lagged(_) => {
                            if let Some(exit) = self.builder.runtime.container_status(id).await?.exit {
                                break exit;
                            }
                        }
                        _ => {}
                    }
                }
            }
        };
        // The runtime writes the log before it tells the end.
        let rest = tokio::time::timeout(SETTLE_TIMEOUT, tell(&mut follower, log, tail)).await;
        rest.map_err(|_| message("nobody reads the build's output"))??;
        Ok(exit)
    }
}

async fn tell(follower: &mut Follower, log: &Log, tail: &mut Tail) -> Result<()> {
    let text = follower.read()?;
    if !text.is_empty() {
        tail.add(&text);
        log.send(Event::Output { step: log.step, text: String::from_utf8_lossy(&text).into_owned() }).await;
    }
    Ok(())
}

fn shown(argv: &[String]) -> String {
    argv.join(" ")
}

/// What a mount of the node looks like to the runtime.
pub(super) fn bind(host_path: PathBuf, target: &str, readonly: bool) -> Mount {
    Mount { container_path: target.into(), host_path, readonly, ..Mount::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_log() {
        assert_eq!(payload(b"2016-10-06T00:17:09Z stdout F a b"), Some((&b"a b"[..], true)));
        assert_eq!(payload(b"2016-10-06T00:17:09Z stderr P half"), Some((&b"half"[..], false)));
        assert_eq!(payload(b"x"), None);
    }

    #[test]
    fn tails_are_short() {
        let mut tail = Tail::default();
        (0..10_000).for_each(|n| tail.add(format!("line {n}\n").as_bytes()));
        let text = tail.text();
        assert!(text.ends_with("  line 9999\n") && text.lines().count() == TAIL_LINES_MAX);
    }
}
