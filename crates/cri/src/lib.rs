//! The container runtime interface: traits and types between the kubelet and any runtime.
//!
//! The Rust shape of CRI v1 (`k8s.io/cri-api/pkg/apis/runtime/v1`). The kubelet holds an
//! `Arc<dyn RuntimeService>` and an `Arc<dyn ImageService>` and knows nothing of who implements them: the
//! embedded runtime (crates `container` and `image`) or a remote one. Two things differ from the gRPC API on
//! purpose: exec, attach and port-forward return live streams instead of URLs, and lifecycle events are the
//! primary source of change, so nobody has to relist.
//!
//! **Invariant:** no implementation lives here, and nothing of the Kubernetes API either.

mod container;
mod error;
mod event;
mod image;
mod network;
mod runtime;
mod sandbox;
mod stream;

pub use container::{
    ApparmorProfile, Capabilities, ContainerConfig, ContainerFilter, ContainerResources,
    ContainerSecurityContext, ContainerState, ContainerStats, ContainerStatus, Device, EnvVar, ExitInfo,
    HugepageLimit, LogRotation, Mount, MountPropagation, Rlimit, SelinuxOptions, Ulimits,
};
pub use error::{Error, Result};
pub use event::{ContainerEvent, EventKind, EventStream};
pub use image::{
    FsInfo, Image, ImageAuth, ImageConfig, ImageService, ImageStatus, PullProgress, PullProgressFn,
    PullRequest, PullResult,
};
pub use network::{NetworkProvider, NetworkRequest, PodNetwork};
pub use runtime::{RuntimeHandler, RuntimeInfo, RuntimeService};
pub use sandbox::{
    DnsConfig, IdMapping, InterfaceStats, NamespaceMode, NamespaceOptions, PodSandboxConfig,
    PodSandboxFilter, PodSandboxSecurityContext, PodSandboxState, PodSandboxStats, PodSandboxStatus,
    PortMapping, Protocol, SeccompProfile,
};
pub use stream::{
    AttachRequest, BoxRead, BoxWrite, Duplex, ExecOutput, ExecRequest, ExitFuture, StreamSession,
    TerminalSize,
};
