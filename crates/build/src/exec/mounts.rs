//! What a RUN step sees beside its tree: caches, secrets, memory, and files of the context, stages or images.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::{EnvVar, Mount};
use image::{Digest, StagedTree};
use rustix::mount as rm;

use super::job::Job;
use super::run::bind;
use super::tree::{Tree, open_dir};
use crate::dockerfile::{RunMount, RunMountKind, Sharing};
use crate::error::{Error, Result, message};
use crate::pattern::{Ignore, clean};

/// Most private copies of one cache mount.
const PRIVATE_MAX: usize = 64;

/// The mounts of one step; [`Mounts::release`] takes back what they need.
#[derive(Default)]
pub(super) struct Mounts {
    pub(super) mounts: Vec<Mount>,
    pub(super) envs: Vec<EnvVar>,
    /// Keep the names of stages' trees.
    staged: Vec<StagedTree>,
    /// Held while a cache is used alone.
    locks: Vec<tokio::sync::OwnedMutexGuard<()>>,
    /// To be unmounted and removed.
    memory: Vec<PathBuf>,
    /// To be removed.
    copies: Vec<PathBuf>,
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for path in self.memory.drain(..) {
            let _ = rm::unmount(&path, rm::UnmountFlags::DETACH);
            let _ = fs::remove_dir(&path);
        }
    }
}

impl Mounts {
    pub(super) async fn prepare(job: &Arc<Job>, stage: usize, wanted: &[RunMount]) -> Result<Mounts> {
        let mut mounts = Mounts::default();
        for mount in wanted {
            match &mount.kind {
                RunMountKind::Bind { from, source, writable } => {
                    mounts.bind(job, stage, mount, from.as_deref(), source, *writable).await?;
                }
                RunMountKind::Cache { .. } => mounts.cache(job, stage, mount).await?,
                RunMountKind::Tmpfs { size } => {
                    let path = mounts.memory(job, *size)?;
                    mounts.mounts.push(bind(path, &mount.target, false));
                }
                RunMountKind::Secret { .. } => mounts.secret(job, mount)?,
            }
        }
        Ok(mounts)
    }

    /// Where things are mounted.
    pub(super) fn targets(&self) -> Vec<PathBuf> {
        self.mounts.iter().map(|m| m.container_path.clone()).collect()
    }

    /// Takes back what was made for the step.
    pub(super) async fn release(mut self) {
        let copies = std::mem::take(&mut self.copies);
        let _ = super::blocking(move || {
            copies.iter().for_each(|path| drop(fs::remove_dir_all(path)));
            Ok(())
        })
        .await;
    }

    async fn bind(
        &mut self,
        job: &Arc<Job>,
        stage: usize,
        mount: &RunMount,
        from: Option<&str>,
        source: &str,
        writable: bool,
    ) -> Result<()> {
        let path = clean(source);
        let Some(from) = from else {
            let root = job.context_root()?;
            // Ignored files must not show, and changes must not reach the context.
            if job.ignore.is_empty() && !writable {
                let tree = Tree::new(open_dir(&root)?, Ignore::default(), false);
                tree.find(&path)?;
                self.mounts.push(bind(root.join(&path), &mount.target, true));
                return Ok(());
            }
            let copy = job.copy_out(job.context_tree()?, path).await?;
            self.copies.push(copy.clone());
            self.mounts.push(bind(copy.join("content"), &mount.target, !writable));
            return Ok(());
        };
        let layers = job.layers_of(stage, from).await?;
        if writable {
            let copy = job.copy_out(job.tree_of(&layers)?, path).await?;
            self.copies.push(copy.clone());
            self.mounts.push(bind(copy.join("content"), &mount.target, false));
            return Ok(());
        }
        let tree = job.builder.images.clone().stage(&layers, cri::ImageConfig::default())?;
        self.mounts.push(Mount {
            container_path: mount.target.clone().into(),
            readonly: true,
            image: Some(tree.name().to_owned()),
            image_sub_path: path,
            ..Mount::default()
        });
        self.staged.push(tree);
        Ok(())
    }

    async fn cache(&mut self, job: &Arc<Job>, stage: usize, mount: &RunMount) -> Result<()> {
        let RunMountKind::Cache { id, sharing, readonly, mode, uid, gid, from, source } = &mount.kind else {
            return Ok(());
        };
        let name = Digest::of(id.as_bytes()).hex().get(..32).unwrap_or_default().to_owned();
        let (name, lock) = match sharing {
            Sharing::Shared => (name, None),
            Sharing::Locked => {
                let lock = job.builder.cache_lock(&name).lock_owned().await;
                (name, Some(lock))
            }
            Sharing::Private => {
                let names = (0..PRIVATE_MAX).map(|n| format!("{name}-{n}"));
                let mut free =
                    names.filter_map(|n| Some((job.builder.cache_lock(&n).try_lock_owned().ok()?, n)));
                let (lock, name) =
                    free.next().ok_or_else(|| message("too many users of a private cache mount"))?;
                (name, Some(lock))
            }
        };
        let path = job.builder.images.mounts_dir().join(&name);
        if !path.exists() {
            let failed = || Error::io::<std::io::Error>(format!("create cache mount {id:?}"));
            fs::create_dir_all(job.builder.images.mounts_dir()).map_err(failed())?;
            let from_tree = match from {
                Some(from) => Some(job.tree_of(&job.layers_of(stage, from).await?)?),
                None => None,
            };
            match from_tree {
                Some(tree) => {
                    let copy = job.copy_out(tree, clean(source)).await?;
                    fs::rename(copy.join("content"), &path).map_err(failed())?;
                    let _ = fs::remove_dir_all(copy);
                }
                None => fs::create_dir_all(&path).map_err(failed())?,
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).map_err(failed())?;
            std::os::unix::fs::chown(&path, Some(*uid), Some(*gid)).map_err(failed())?;
        }
        self.locks.extend(lock);
        self.mounts.push(bind(path, &mount.target, *readonly));
        Ok(())
    }

    /// A file system in memory.
    fn memory(&mut self, job: &Job, size: u64) -> Result<PathBuf> {
        let path = job.work.join(job.next_name("memory"));
        fs::create_dir(&path).map_err(Error::io("create mount point"))?;
        let options = if size == 0 { String::new() } else { format!("size={size}") };
        let options = std::ffi::CString::new(options).unwrap_or_default();
        let flags = rm::MountFlags::NOSUID | rm::MountFlags::NODEV;
        rm::mount("tmpfs", &path, "tmpfs", flags, options.as_c_str()).map_err(Error::io("mount tmpfs"))?;
        self.memory.push(path.clone());
        Ok(path)
    }

    fn secret(&mut self, job: &Job, mount: &RunMount) -> Result<()> {
        let RunMountKind::Secret { id, env, required, mode, uid, gid } = &mount.kind else { return Ok(()) };
        let Some(value) = job.request.secrets.get(id) else {
            return match required {
                true => {
                    Err(message(format!("secret {id}: not found (give it with --secret id={id},src=FILE)")))
                }
                false => Ok(()),
            };
        };
        if let Some(name) = env {
            let value = String::from_utf8(value.clone())
                .map_err(|_| message(format!("secret {id}: is not text and cannot be a variable")))?;
            self.envs.push(EnvVar { name: name.clone(), value });
        }
        if mount.target.is_empty() {
            return Ok(());
        }
        // Never on a disk.
        let path = self.memory(job, 0)?.join("secret");
        let failed = || Error::io::<std::io::Error>(format!("write secret {id}"));
        fs::write(&path, value).map_err(failed())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).map_err(failed())?;
        std::os::unix::fs::chown(Path::new(&path), Some(*uid), Some(*gid)).map_err(failed())?;
        self.mounts.push(bind(path, &mount.target, true));
        Ok(())
    }
}
