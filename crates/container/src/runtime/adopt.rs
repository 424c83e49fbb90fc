//! After a restart: finding shims and containers again.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::lifecycle::CONTAINER_FILE;
use super::{Container, ContainerFile, Runtime, Sandbox, SandboxFile};
use crate::spec::{ContainerRecord, ContainerSpec, SANDBOX_FILE, SPEC_FILE, STATE_FILE, read_json};

impl Runtime {
    /// Registers what is on disk and joins the shims that live.
    pub(super) async fn adopt(&self) -> cri::Result<()> {
        let entries = fs::read_dir(&self.run_dir).map_err(|e| cri::Error::io("list sandboxes", e))?;
        for entry in entries.flatten() {
            let (dir, Ok(id)) = (entry.path(), entry.file_name().into_string()) else { continue };
            match read_json::<SandboxFile>(&dir.join(SANDBOX_FILE)) {
                Ok(Some(file)) => self.adopt_sandbox(&id, &dir, file).await,
                // Cut off while it was being made, or damaged: nobody knows of it.
                Ok(None) | Err(_) => self.discard_sandbox(&id, &dir).await,
            }
        }
        Ok(())
    }

    async fn adopt_sandbox(&self, id: &str, dir: &Path, file: SandboxFile) {
        let sandbox = self.register_sandbox(id, dir, file, 0);
        for entry in fs::read_dir(dir.join("c")).into_iter().flatten().flatten() {
            let Ok(container) = entry.file_name().into_string() else { continue };
            match self.read_container(&sandbox, &container, &entry.path()) {
                Some(container) => {
                    self.containers.write().insert(container.id.clone(), Arc::new(container));
                }
                None => {
                    let _ = super::teardown::remove_directory(&entry.path());
                }
            }
        }
        if !self.resubscribe(&sandbox).await {
            self.shim_gone(&sandbox);
        }
    }

    fn read_container(&self, sandbox: &Arc<Sandbox>, id: &str, dir: &Path) -> Option<Container> {
        let file: ContainerFile = read_json(&dir.join(CONTAINER_FILE)).ok()??;
        let spec: ContainerSpec = read_json(&dir.join(SPEC_FILE)).ok()??;
        let record: Option<ContainerRecord> = read_json(&dir.join(STATE_FILE)).ok().flatten();
        let known = record.unwrap_or_default();
        let volumes = file.config.mounts.iter().filter_map(|m| m.image.as_deref());
        let images = volumes.chain([file.image_id.as_str()]);
        let holds = images.filter_map(|name| Some(self.config.images.resolve(name).ok()??.hold)).collect();
        Some(Container {
            id: id.to_owned(),
            sandbox: sandbox.clone(),
            dir: dir.to_owned(),
            file: parking_lot::RwLock::new(file),
            process: spec.process,
            log_path: spec.log_path,
            hooks: Arc::new(spec.hooks),
            record: watch::channel(known).0,
            _images: holds,
        })
    }
}
