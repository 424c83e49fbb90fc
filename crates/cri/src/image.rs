//! Images: pulling, listing, removing.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Who pulls.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ImageAuth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Refresh token sent to the token server instead of a password.
    pub identity_token: String,
    /// Bearer token sent to the registry as it is.
    pub registry_token: String,
}

impl Debug for ImageAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageAuth").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How far a pull has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullProgress {
    /// The manifest is known; these are its layers and their sizes in bytes.
    Resolved {
        /// Digest of the manifest.
        digest: String,
        /// Digest and size of each layer.
        layers: Vec<(String, u64)>,
    },
    /// Bytes of a layer that have arrived.
    Downloading {
        /// Digest of the layer.
        layer: String,
        /// Bytes so far.
        current: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A layer is being unpacked.
    Unpacking {
        /// Digest of the layer.
        layer: String,
    },
    /// A layer is there.
    Done {
        /// Digest of the layer.
        layer: String,
    },
}

/// Called from the pull with its progress; must return quickly.
pub type PullProgressFn = Arc<dyn Fn(PullProgress) + Send + Sync>;

/// An image to pull.
#[derive(Clone, Default)]
pub struct PullRequest {
    /// Reference, as written in the pod.
    pub image: String,
    /// Credentials to try; `None` is anonymous.
    pub auth: Option<ImageAuth>,
    /// Where progress goes.
    pub progress: Option<PullProgressFn>,
}

impl Debug for PullRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullRequest")
            .field("image", &self.image)
            .field("auth", &self.auth)
            .finish_non_exhaustive()
    }
}

/// What was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullResult {
    /// Image id: digest of its configuration.
    pub image_id: String,
    /// `name@sha256:...`.
    pub repo_digest: String,
    /// Size of the content, bytes (compressed, as in upstream's "Image size" event text).
    pub size_bytes: u64,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Digest of its configuration, `sha256:...`.
    pub id: String,
    /// References with a tag.
    pub repo_tags: Vec<String>,
    /// References with a digest.
    pub repo_digests: Vec<String>,
    /// Size of the content, bytes.
    pub size_bytes: u64,
    /// Numeric user it runs as, where its configuration gives one.
    pub uid: Option<u32>,
    /// User name it runs as, where its configuration gives one.
    pub username: String,
    /// Whether it is kept by garbage collection.
    pub pinned: bool,
    /// When it was added to the store.
    pub added_at: Option<Timestamp>,
}

/// What an image says of the container to make from it (OCI image configuration).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Program and leading arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or program without an entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers.
    pub user: String,
    /// Working directory.
    pub working_dir: String,
    /// Signal that stops it.
    pub stop_signal: Option<String>,
    /// Paths meant to be volumes.
    pub volumes: Vec<PathBuf>,
    /// Ports it says it listens on, `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// An image and what it says.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageStatus {
    /// The image.
    pub image: Image,
    /// Its configuration.
    pub config: ImageConfig,
}

/// Use of the file system that holds the images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsInfo {
    /// When it was measured.
    pub timestamp: Timestamp,
    /// Directory of the store.
    pub mountpoint: PathBuf,
    /// Bytes used by images.
    pub used_bytes: u64,
    /// Files used by images.
    pub inodes_used: u64,
    /// Size of the file system, bytes.
    pub capacity_bytes: u64,
    /// Free to unprivileged users, bytes.
    pub available_bytes: u64,
    /// Files of the file system.
    pub inodes: u64,
    /// Free files.
    pub inodes_free: u64,
}

/// The image half of CRI.
#[async_trait]
pub trait ImageService: Send + Sync + Debug {
    /// Fetches an image and makes it ready for containers. Concurrent pulls of one reference are one pull.
    async fn pull(&self, request: PullRequest) -> Result<PullResult>;

    /// The image of this reference or id, `None` if absent.
    async fn status(&self, image: &str) -> Result<Option<ImageStatus>>;

    /// All images.
    async fn list(&self) -> Result<Vec<Image>>;

    /// Removes an image with all its references and what no other image needs. Idempotent.
    async fn remove(&self, image: &str) -> Result<()>;

    /// Use of the file system.
    async fn fs_info(&self) -> Result<FsInfo>;
}
