//! The embedded runtime: a shim per pod, namespaces, cgroups, seccomp, logs; it implements `cri`.
//!
//! ```text
//! Runtime (in the node's process) --spawn--> zygote --fork--> shim (one per pod) --clone--> containers
//!         \________________ Unix socket: start, signal, exec, attach, events ____/
//! ```
//!
//! The node decides and prepares (`runtime`): it plans a container from the pod's configuration and the image's,
//! makes its cgroup and writes its specification. The shim (`shim`) owns processes, pipes, logs and exit codes and
//! survives the node. A clone of the shim becomes the container (`init`).
//!
//! **Invariant:** only single-threaded processes fork or clone: the zygote and the shims.
//!
//! **Invariant:** a container's mounts exist in its own mount namespace alone; when its last process ends they are
//! gone. The only mount on the node is each pod's `/dev/shm`.

mod capabilities;
pub mod cgroup;
mod hooks;
mod init;
mod lsm;
mod runtime;
mod seccomp;
mod shim;
mod signals;
mod spec;
mod sys;
mod userns;
mod wire;

pub use runtime::{Config, Runtime};
pub use shim::intercept;
