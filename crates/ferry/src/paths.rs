//! What is where below the data directory, and the identity of the cluster it belongs to.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Name of the local socket in the data directory.
pub const SOCKET: &str = "ferry.sock";

/// The data directory.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The directory itself.
    pub root: PathBuf,
    /// Eight letters and digits that name everything this cluster makes on the host.
    pub cluster_id: String,
}

impl Paths {
    /// Opens the data directory, making it if need be.
    pub fn open_or_create(root: &Path) -> anyhow::Result<Paths> {
        let at = || format!("cannot use the data directory {}", root.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root).with_context(at)?;
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).with_context(at)?;
        let root = root.canonicalize().with_context(at)?;
        let file = root.join("cluster-id");
        let cluster_id = match fs::read_to_string(&file) {
            Ok(id) => id.trim().to_owned(),
            Err(_) => {
                let id = stdx::random_suffix(&stdx::ThreadRandom, 8);
                auth::pki::write(&file, &id)?;
                id
            }
        };
        Ok(Paths { root, cluster_id })
    }

    /// The embedded store.
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }
    /// Images.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }
    /// Volumes of the class `local-path`.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }
    /// The local socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join(SOCKET)
    }
    /// Certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }
    /// The administrator's kubeconfig.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.root.join("admin.kubeconfig")
    }
}
