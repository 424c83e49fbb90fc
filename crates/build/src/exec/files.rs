//! COPY, ADD and WORKDIR: keys from what is read, layers from what is written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{Digest, ImageStore};
use serde_json::{Value, json};

use super::blocking;
use super::copy::{Target, clamp_times};
use super::job::Job;
use super::stage::{Made, Making, chain, key};
use super::tree::{Found, Tree, overlay};
use crate::dockerfile::{Instruction, RunMount, RunMountKind};
use crate::error::{Error, Result, message};
use crate::pattern::{Ignore, clean};
use crate::state::{CopySource, CopyStep};

/// A file from a URL, on disk.
struct Fetched {
    path: PathBuf,
    name: String,
    digest: Digest,
}

/// A destination without its leading `/`.
fn relative(path: &str) -> PathBuf {
    PathBuf::from(clean(path))
}

impl Job {
    pub(super) async fn copy_cached(
        self: &Arc<Self>,
        making: &Making,
        step: &CopyStep,
        instruction: &Instruction,
    ) -> Result<Made> {
        let from = match &step.from {
            Some(name) => Some(self.layers_of(making.index, name).await?),
            None => None,
        };
        let fetched = self.fetch(step).await?;
        let (job, copy, layers) = (self.clone(), step.clone(), making.layers());
        let read = blocking(move || {
            let tree = job.source(&copy, from.as_deref())?;
            let sources = job.sources_key(&copy, tree.as_ref(), from.as_deref(), &fetched)?;
            let below = if copy.link { Value::Null } else { json!(chain(&layers).as_str()) };
            let key = key(&json!([
                "copy",
                below,
                sources,
                copy.destination,
                copy.into_directory,
                copy.chown,
                copy.chmod,
                copy.link,
                copy.parents,
                copy.unpack,
                copy.unpack_urls,
                job.epoch
            ]));
            if let Some(made) = job.known(&key) {
                return Ok((key, Some(made), None));
            }
            let layer = job.copy_layer(&copy, tree.as_ref(), &fetched, &layers)?;
            Ok((key, None, Some(layer)))
        });
        match read.await? {
            (_, Some(made), _) => Ok(made),
            (key, None, Some((layer, size))) => Ok(self.keep(key, Some(layer), size, &instruction.text)),
            (_, None, None) => Err(message("nothing was copied")),
        }
    }

    /// The tree that a step's paths are in; `None` where it has none.
    fn source(&self, step: &CopyStep, from: Option<&[Digest]>) -> Result<Option<Tree>> {
        if !step.sources.iter().any(|s| matches!(s, CopySource::Path(_))) {
            return Ok(None);
        }
        match from {
            Some(layers) => self.tree_of(layers).map(Some),
            None => self.context_tree().map(Some),
        }
    }

    async fn fetch(&self, step: &CopyStep) -> Result<Vec<Fetched>> {
        let mut fetched = Vec::new();
        for source in &step.sources {
            let CopySource::Url(url) = source else { continue };
            let file = self.builder.images.download(url).await?;
            let digest = file.digest.clone();
            if let Some(want) = step.checksum.as_deref().filter(|want| *want != digest.as_str()) {
                let _ = std::fs::remove_file(&file.path);
                return Err(message(format!("digest mismatch {digest}: {want} (of {url})")));
            }
            fetched.push(Fetched { path: file.path, name: file.name, digest });
        }
        Ok(fetched)
    }

    fn sources_key(
        &self,
        step: &CopyStep,
        tree: Option<&Tree>,
        from: Option<&[Digest]>,
        fetched: &[Fetched],
    ) -> Result<Value> {
        let exclude = Ignore::of(step.exclude.clone());
        let mut parts = Vec::new();
        let mut fetched = fetched.iter();
        for source in &step.sources {
            match source {
                CopySource::Text { name, content } => parts.push(json!(["text", name, content])),
                CopySource::Url(_) => {
                    parts.extend(fetched.next().map(|f| json!(["url", f.name, f.digest.as_str()])));
                }
                CopySource::Path(path) => {
                    let Some(tree) = tree else { continue };
                    parts.push(self.path_key(tree, path, &exclude, &step.exclude, from)?);
                }
            }
        }
        Ok(json!(parts))
    }

    /// What a path holds. Layers never change, so their answer is kept.
    fn path_key(
        &self,
        tree: &Tree,
        path: &str,
        exclude: &Ignore,
        patterns: &[String],
        from: Option<&[Digest]>,
    ) -> Result<Value> {
        let images = &self.builder.images;
        let memo = from.map(|layers| key(&json!(["content", chain(layers).as_str(), path, patterns])));
        if let Some(record) = memo.as_deref().and_then(|memo| images.cached(memo)) {
            return Ok(json!(["path", record.value]));
        }
        let mut found_parts = Vec::new();
        for found in tree.find(path)? {
            let digest = self.builder.digests.of(tree, &found, exclude)?;
            found_parts.push(json!([found.path, digest.as_str()]));
        }
        let value = Digest::of(json!(found_parts).to_string().as_bytes()).to_string();
        if let Some(memo) = memo {
            images.remember(memo, images.record(None, value.clone(), 0, "content"));
        }
        Ok(json!(["path", value]))
    }

    /// An empty layer to be filled, over what is below it.
    fn with_layer(
        &self,
        layers: &[Digest],
        fill: impl FnOnce(&mut Target) -> Result<bool>,
    ) -> Result<Option<(Digest, u64)>> {
        let work = self.work.join(self.next_name("layer"));
        let (upper, inner) = (work.join("upper"), work.join("work"));
        for dir in [&work, &upper, &inner] {
            std::fs::create_dir(dir).map_err(Error::io("create layer"))?;
        }
        let images = &self.builder.images;
        let mut below = images.layer_paths(layers);
        if below.is_empty() {
            below.push(images.empty_dir()?);
        }
        let mut target = Target::new(overlay(&below, Some((&upper, &inner)))?);
        let changed = fill(&mut target)?;
        target.finish()?;
        drop(target);
        let made = match changed {
            false => None,
            true => {
                if let Some(epoch) = self.epoch {
                    clamp_times(&upper, epoch)?;
                }
                Some(images.add_layer(&upper, &self.hold)?)
            }
        };
        let _ = std::fs::remove_dir_all(&work);
        Ok(made)
    }

    pub(super) fn make_directory(&self, layers: &[Digest], path: &str) -> Result<Option<(Digest, u64)>> {
        let path = relative(path);
        self.with_layer(layers, |target| {
            if target.is_directory(&path) {
                return Ok(false);
            }
            target.directory(&path)?;
            Ok(true)
        })
    }

    fn copy_layer(
        &self,
        step: &CopyStep,
        tree: Option<&Tree>,
        fetched: &[Fetched],
        layers: &[Digest],
    ) -> Result<(Digest, u64)> {
        let owner = step.chown.as_deref().map(|owner| self.owner(owner, layers)).transpose()?;
        // A linked layer does not look at what is below.
        let below = if step.link { &[] } else { layers };
        let layer = self.with_layer(below, |target| {
            target.owner = owner;
            target.chmod = step.chmod;
            let destination = relative(&step.destination);
            if step.into_directory {
                target.directory(&destination)?;
            }
            let exclude = Ignore::of(step.exclude.clone());
            let mut fetched = fetched.iter();
            for source in &step.sources {
                let into = step.into_directory || target.is_directory(&destination);
                let place = |name: &str| if into { destination.join(name) } else { destination.clone() };
                match source {
                    CopySource::Text { name, content } => {
                        target.write(&place(name), content.as_bytes(), 0o644)?
                    }
                    CopySource::Url(_) => {
                        let Some(file) = fetched.next() else { continue };
                        if step.unpack_urls && extract(target, &file.path, &destination)? {
                            continue;
                        }
                        let content = std::fs::read(&file.path).map_err(Error::io("read download"))?;
                        target.write(&place(&file.name), &content, 0o600)?;
                    }
                    CopySource::Path(pattern) => {
                        let Some(tree) = tree else { continue };
                        for found in tree.find(pattern)? {
                            copy_found(target, tree, &found, step, pattern, &exclude)?;
                        }
                    }
                }
            }
            Ok(true)
        })?;
        layer.ok_or_else(|| message("nothing was copied"))
    }

    /// `user[:group]`, looked up in the stage's own files.
    fn owner(&self, owner: &str, layers: &[Digest]) -> Result<(u32, u32)> {
        let paths = self.builder.images.layer_paths(layers);
        let read = |path: &str| ImageStore::read_text(&paths, Path::new(path));
        let (passwd, group) = (read("etc/passwd")?, read("etc/group")?);
        let found = image::resolve_user(owner, &passwd, &group).map_err(|e| message(e.to_string()))?;
        // A number alone is the group's, too.
        let alone = !owner.contains(':') && owner.bytes().all(|b| b.is_ascii_digit());
        Ok((found.uid, if alone { found.uid } else { found.gid }))
    }

    /// What a RUN step's mounts depend on.
    pub(super) async fn mounts_key(self: &Arc<Self>, stage: usize, mounts: &[RunMount]) -> Result<Value> {
        let mut parts = Vec::new();
        for mount in mounts {
            match &mount.kind {
                RunMountKind::Bind { from, source, .. } => {
                    let layers = match from {
                        Some(name) => Some(self.layers_of(stage, name).await?),
                        None => None,
                    };
                    let (job, source) = (self.clone(), source.clone());
                    let content = blocking(move || {
                        let tree = match &layers {
                            Some(layers) => job.tree_of(layers)?,
                            None => job.context_tree()?,
                        };
                        job.path_key(&tree, &source, &Ignore::default(), &[], layers.as_deref())
                    });
                    parts.push(json!([mount.target, content.await?]));
                }
                // Caches, memory and secrets are not part of what a step is.
                RunMountKind::Cache { id, .. } => parts.push(json!([mount.target, "cache", id])),
                RunMountKind::Tmpfs { .. } => parts.push(json!([mount.target, "tmpfs"])),
                RunMountKind::Secret { id, env, .. } => parts.push(json!([mount.target, "secret", id, env])),
            }
        }
        Ok(json!(parts))
    }

    /// A copy of a part of a tree, at `content` in a new directory.
    pub(super) async fn copy_out(self: &Arc<Self>, tree: Tree, path: String) -> Result<PathBuf> {
        let dir = self.work.join(self.next_name("copy"));
        blocking(move || {
            std::fs::create_dir(&dir).map_err(Error::io("create copy"))?;
            let mut target = Target::new(super::tree::open_dir(&dir)?);
            for found in tree.find(&path)? {
                if found.metadata.is_dir() {
                    target.directory(Path::new("content"))?;
                }
                target.copy(&tree, &found, &Ignore::default(), Path::new("content"), false)?;
            }
            target.finish()?;
            Ok(dir)
        })
        .await
    }
}

fn copy_found(
    target: &mut Target,
    tree: &Tree,
    found: &Found,
    step: &CopyStep,
    pattern: &str,
    exclude: &Ignore,
) -> Result<()> {
    let destination = relative(&step.destination);
    if step.parents {
        // `/./` in the source says where the kept part begins.
        let kept = match pattern.split_once("/./") {
            Some((before, _)) => found.path.strip_prefix(&clean(before)).unwrap_or(&found.path),
            None => &found.path,
        };
        let kept = Path::new(kept.trim_start_matches('/'));
        return match found.metadata.is_dir() {
            true => target.copy(tree, found, exclude, &destination.join(kept), true),
            false => {
                let dir = destination.join(kept.parent().unwrap_or(Path::new("")));
                target.copy(tree, found, exclude, &dir, true)
            }
        };
    }
    if step.unpack && found.metadata.is_file() && extract(target, &tree.path_of(found), &destination)? {
        return Ok(());
    }
    target.copy(tree, found, exclude, &destination, step.into_directory)
}

/// Unpacks an archive into a directory; false where the file is none.
fn extract(target: &Target, file: &Path, destination: &Path) -> Result<bool> {
    if !image::is_archive(file)? {
        return Ok(false);
    }
    let directory = target.directory(destination)?;
    image::extract_archive(file, directory)?;
    Ok(true)
}
