//! The runtime's files: what the node writes for a shim, and what a shim records.
//!
//! ```text
//! <run>/<sandbox>/sandbox.json     the node: configuration and network
//!                 shim.sock        the shim's socket
//!                 resolv.conf, hostname, shm/
//!                 c/<container>/   spec.json (node), state.json (shim), seccomp.bpf, upper/, work/, root/
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::hooks::Hooks;

/// File of a container's specification.
pub(crate) const SPEC_FILE: &str = "spec.json";
/// File of a container's record.
pub(crate) const STATE_FILE: &str = "state.json";
/// File of a container's compiled system call filter.
pub(crate) const SECCOMP_FILE: &str = "seccomp.bpf";
/// File of the sandbox.
pub(crate) const SANDBOX_FILE: &str = "sandbox.json";
/// The shim's socket.
pub(crate) const SOCKET_FILE: &str = "shim.sock";

/// What a shim needs to know to hold a pod's namespaces.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct SandboxSpec {
    pub(crate) id: String,
    pub(crate) hostname: String,
    pub(crate) host_network: bool,
    pub(crate) host_ipc: bool,
    /// One PID namespace for all containers, with a small init of its own.
    pub(crate) shared_pid: bool,
    pub(crate) sysctls: Vec<(String, String)>,
    /// The pod's own user ids; `None` for the node's.
    #[serde(default)]
    pub(crate) user: Option<crate::userns::IdRange>,
    /// A v2 tree to use instead of what is found.
    pub(crate) cgroup_v2_root: Option<PathBuf>,
}

/// Whose processes a container sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PidMode {
    /// Its own.
    #[default]
    Private,
    /// The pod's.
    Pod,
    /// The node's.
    Node,
    /// Those of another container of the pod.
    Container(String),
}

/// Everything about one process, first or further.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ProcessSpec {
    pub(crate) argv: Vec<String>,
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
    pub(crate) cwd: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Numbers of the capabilities in the bounding set.
    pub(crate) capabilities: Vec<u8>,
    pub(crate) no_new_privs: bool,
    /// AppArmor profile; empty for none.
    #[serde(default)]
    pub(crate) apparmor: String,
    /// SELinux label; empty for none.
    #[serde(default)]
    pub(crate) selinux: String,
    pub(crate) tty: bool,
    /// `RLIMIT_*` number, soft, hard.
    pub(crate) rlimits: Vec<(u32, u64, u64)>,
    pub(crate) oom_score_adj: i32,
}

/// A bind mount from the node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MountSpec {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) readonly: bool,
    pub(crate) recursive_readonly: bool,
    pub(crate) propagation: cri::MountPropagation,
}

/// A device node to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DeviceSpec {
    pub(crate) path: PathBuf,
    pub(crate) block: bool,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// For the device cgroup: some of `rwm`.
    pub(crate) access: String,
}

/// Everything a shim needs to start a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    pub(crate) process: ProcessSpec,
    pub(crate) pid: PidMode,
    /// Layer directories, lowest first.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) readonly_rootfs: bool,
    pub(crate) privileged: bool,
    pub(crate) mounts: Vec<MountSpec>,
    /// Image volumes: layers and the path within.
    pub(crate) image_mounts: Vec<ImageMountSpec>,
    pub(crate) devices: Vec<DeviceSpec>,
    pub(crate) masked_paths: Vec<PathBuf>,
    pub(crate) readonly_paths: Vec<PathBuf>,
    /// Whether `/dev/shm` is the node's.
    pub(crate) host_ipc: bool,
    /// The container's cgroup, as a path from the root of every hierarchy.
    pub(crate) cgroup: PathBuf,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    /// Absolute; empty writes none.
    pub(crate) log_path: PathBuf,
    pub(crate) log_rotation: Option<cri::LogRotation>,
    /// Programs to be run at moments of its life.
    #[serde(default)]
    pub(crate) hooks: Hooks,
}

/// The file tree of an image, mounted read-only.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageMountSpec {
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) sub_path: PathBuf,
    pub(crate) target: PathBuf,
}

/// What a shim records of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    /// Process id on the node; 0 if it never ran.
    pub(crate) pid: i32,
    /// Nanoseconds since 1970; 0 if it never ran.
    pub(crate) started_at: i64,
    pub(crate) exit: Option<ExitRecord>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    pub(crate) code: i32,
    pub(crate) oom_killed: bool,
    /// Nanoseconds since 1970.
    pub(crate) finished_at: i64,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// Reads a JSON file; `None` where there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Replaces a JSON file atomically. Not synced: after a crash of the machine no container runs anyway.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temp = path.with_extension("tmp");
    let mut file = fs::File::create(&temp)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    drop(file);
    fs::rename(&temp, path)
}
