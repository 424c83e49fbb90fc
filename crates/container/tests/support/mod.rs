//! A runtime of its own for each test, with a busybox image, and what tests ask of it all the time.
#![allow(dead_code)]

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use container::{Config, Runtime};
use cri::{
    ContainerConfig, ContainerEvent, ContainerState, ContainerStatus, EventKind, NamespaceMode,
    PodSandboxConfig, RuntimeService,
};
use futures_util::StreamExt;
use image::{Digest, ImageStore, ImportOptions, StoreConfig};

/// How long anything here may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A runtime with its data directory.
pub struct Node {
    pub runtime: Arc<Runtime>,
    pub data: tempfile::TempDir,
    pub cluster: String,
}

fn tar(entries: &[(&str, u32, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, data) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(*mode);
        header.set_size(data.len() as u64);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        builder.append_data(&mut header, path, *data).unwrap();
    }
    for (path, target) in links {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, path, target).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A docker-archive of a busybox image in two layers; the upper hides `/hidden`.
pub fn busybox_archive() -> Vec<u8> {
    let busybox = fs::read("/bin/busybox").unwrap();
    let applets = [
        "sh", "cat", "echo", "ls", "sleep", "id", "env", "stat", "mount", "umount", "unshare", "touch", "ps",
        "true", "false", "kill", "hostname", "tty", "stty", "dd", "head", "tail", "mknod", "ping", "nc",
        "ip", "grep", "seq", "wc", "mkdir", "readlink", "df", "nproc", "sysctl", "test", "printf", "chmod",
        "chown", "date", "yes", "tr",
    ];
    let names: Vec<String> = applets.iter().map(|a| format!("bin/{a}")).collect();
    let links: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "busybox")).collect();
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n";
    let group = b"root:x:0:\nweb:x:34:\nlogs:x:50:web\n";
    let base = tar(
        &[
            ("bin/", 0o755, b""),
            ("bin/busybox", 0o755, &busybox),
            ("etc/", 0o755, b""),
            ("etc/passwd", 0o644, passwd),
            ("etc/group", 0o644, group),
            ("etc/plain", 0o644, b"not a program"),
            ("hidden", 0o644, b"from below"),
            ("tmp/", 0o1777, b""),
            ("root/", 0o700, b""),
        ],
        &links,
    );
    let top = tar(&[(".wh.hidden", 0o644, b""), ("shown", 0o644, b"from above")], &[]);
    let ids = [Digest::of(&base), Digest::of(&top)];
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["PATH=/bin","FROM=image"],"Cmd":["sh"],"StopSignal":"SIGTERM"}},"rootfs":{{"type":"layers","diff_ids":["{}","{}"]}}}}"#,
        ids[0], ids[1]
    );
    let manifest = r#"[{"Config":"c.json","RepoTags":["busybox:test"],"Layers":["0.tar","1.tar"]}]"#;
    tar(
        &[
            ("0.tar", 0o644, &base),
            ("1.tar", 0o644, &top),
            ("c.json", 0o644, config.as_bytes()),
            ("manifest.json", 0o644, manifest.as_bytes()),
        ],
        &[],
    )
}

/// The program that can be a shim.
pub fn shim_program() -> PathBuf {
    // target/debug/deps/test-hash -> target/debug/examples/shim
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples/shim")
}

pub async fn open(data: &Path, cluster: &str) -> Arc<Runtime> {
    open_with(data, cluster, None).await
}

/// With a v2 tree in place of the machine's default.
pub async fn open_with(data: &Path, cluster: &str, cgroup_v2_root: Option<PathBuf>) -> Arc<Runtime> {
    let images = ImageStore::open(StoreConfig {
        root: data.join("images"),
        insecure_registries: Vec::new(),
        registries: Default::default(),
        ca_file: None,
        silence_max: StoreConfig::SILENCE_MAX,
        clock: stdx::SystemClock::shared(),
    })
    .unwrap();
    if images.resolve("busybox:test").unwrap().is_none() {
        images.clone().import(Cursor::new(busybox_archive()), ImportOptions::default()).await.unwrap();
    }
    Runtime::open(Config {
        data_dir: data.to_owned(),
        cluster_id: cluster.to_owned(),
        images,
        network: None,
        clock: stdx::SystemClock::shared(),
        random: Arc::new(stdx::ThreadRandom),
        cgroup_v2_root,
        self_exe: shim_program(),
        cdi: cdi::Registry::new([data.join("cdi")]),
    })
    .await
    .unwrap()
}

impl Node {
    pub async fn new() -> Node {
        let data = tempfile::Builder::new().prefix("ferry-rt-").tempdir().unwrap();
        let cluster = format!(
            "t{}",
            data.path().file_name().unwrap().to_str().unwrap().trim_start_matches("ferry-rt-")
        );
        Node { runtime: open(data.path(), &cluster).await, data, cluster }
    }

    /// A node that uses the second, v2 tree of a hybrid machine; `None` where there is none.
    pub async fn with_v2() -> Option<Node> {
        let root = PathBuf::from("/sys/fs/cgroup/unified");
        if !root.join("cgroup.procs").exists() {
            return None;
        }
        let data = tempfile::Builder::new().prefix("ferry-rt-").tempdir().unwrap();
        let cluster = format!("u{}", std::process::id());
        Some(Node { runtime: open_with(data.path(), &cluster, Some(root)).await, data, cluster })
    }

    /// Runs the body, destroys everything, checks that nothing is left; then lets the body's panic out.
    pub async fn run(body: impl AsyncFnOnce(&Node)) {
        Node::new().await.run_on(body).await;
    }

    /// [`Node::run`] on this node.
    pub async fn run_on(self, body: impl AsyncFnOnce(&Node)) {
        use futures_util::FutureExt;
        let node = self;
        let result = std::panic::AssertUnwindSafe(body(&node)).catch_unwind().await;
        node.runtime.destroy_all().await.unwrap();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
        node.assert_clean();
    }

    /// No mount, cgroup, directory or process is left.
    pub fn assert_clean(&self) {
        let data = self.data.path().canonicalize().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(data.to_str().unwrap()), "mounts left");
        assert!(!data.join("run").exists(), "files left");
        let root = self.runtime.cgroup_root();
        assert!(self.runtime.cgroups().processes(&root).unwrap().is_empty());
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
            let dir = hierarchy.unwrap().path().join(root.strip_prefix("/").unwrap());
            assert!(!dir.exists(), "{} left", dir.display());
        }
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let cwd = fs::read_link(process.path().join("cwd")).unwrap_or_default();
            assert!(!cwd.starts_with(&data), "process {:?} left in {}", process.file_name(), cwd.display());
        }
    }

    pub fn pod(&self) -> PodSandboxConfig {
        PodSandboxConfig {
            name: "pod".into(),
            namespace: "default".into(),
            uid: "uid-1".into(),
            hostname: "pod-host".into(),
            log_directory: self.data.path().join("logs"),
            dns: Some(cri::DnsConfig { servers: vec!["10.43.0.10".into()], ..Default::default() }),
            ..Default::default()
        }
    }

    pub async fn sandbox(&self) -> String {
        self.runtime.run_pod_sandbox(self.pod()).await.unwrap()
    }

    /// Creates and starts a container.
    pub async fn start(&self, sandbox: &str, config: ContainerConfig) -> String {
        let id = self.runtime.create_container(sandbox, config).await.unwrap();
        self.runtime.start_container(&id).await.unwrap();
        id
    }

    /// Runs a script to its end in a fresh container of the sandbox: exit code, log lines without stamps.
    pub async fn script(&self, sandbox: &str, config: ContainerConfig) -> (i32, Vec<String>) {
        let id = self.start(sandbox, config).await;
        let exit = self.exit(&id).await.exit.unwrap();
        (exit.code, self.log(&id).await)
    }

    /// Waits for a container's end.
    pub async fn exit(&self, id: &str) -> ContainerStatus {
        let mut events = self.runtime.events();
        loop {
            let status = self.runtime.container_status(id).await.unwrap();
            if status.state == ContainerState::Exited {
                return status;
            }
            next(&mut events).await;
        }
    }

    /// Lines of a container's log: `stdout F text`.
    pub async fn log(&self, id: &str) -> Vec<String> {
        let status = self.runtime.container_status(id).await.unwrap();
        let text = fs::read_to_string(status.log_path).unwrap_or_default();
        text.lines().filter_map(|l| l.split_once(' ')).map(|(_, rest)| rest.to_owned()).collect()
    }

    /// Runs a command in a running container: exit code, stdout, stderr.
    pub async fn exec(&self, id: &str, command: &[&str]) -> (i32, String, String) {
        let command: Vec<String> = command.iter().map(|s| (*s).to_owned()).collect();
        let out = self.runtime.exec_sync(id, &command, PATIENCE).await.unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).trim_end().to_owned();
        (out.exit_code, text(&out.stdout), text(&out.stderr))
    }

    /// Waits until a line is in the log.
    pub async fn wait_for_log(&self, id: &str, line: &str) {
        let wait = async {
            while !self.log(id).await.iter().any(|l| l.contains(line)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
    }
}

pub async fn next(events: &mut cri::EventStream) -> ContainerEvent {
    tokio::time::timeout(PATIENCE, events.next()).await.expect("an event").expect("open")
}

/// Waits for an event of a container.
pub async fn wait_for(
    events: &mut cri::EventStream,
    id: &str,
    wanted: impl Fn(&EventKind) -> bool,
) -> ContainerEvent {
    loop {
        let event = next(events).await;
        if event.container_id.as_deref() == Some(id) && wanted(&event.kind) {
            return event;
        }
    }
}

/// A container that runs a shell script.
pub fn shell(script: &str) -> ContainerConfig {
    ContainerConfig {
        name: "c".into(),
        image: "busybox:test".into(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        log_path: format!("{:x}.log", fastrand(script)).into(),
        ..Default::default()
    }
}

/// A log name that differs between scripts and calls.
fn fastrand(script: &str) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(script)
}

/// Puts all processes of the pod into one namespace.
pub fn share_pids(config: &mut ContainerConfig) {
    config.security.namespaces.pid = NamespaceMode::Pod;
}
