//! One build: its stages as shared futures, its images, its sandboxes, and what it leaves to be cleaned up.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cri::ImageService;
use futures_util::future::{BoxFuture, FutureExt, Shared};
use image::{BaseImage, Digest, ImageHold, MadeImage, NewImage, Reference};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::stage::StageResult;
use super::tree::{Tree, open_dir, overlay};
use super::{Builder, Event, Outcome, Request, blocking};
use crate::dockerfile::{self, Variables};
use crate::error::{Error, Result, message};
use crate::pattern::Ignore;
use crate::plan::{self, Plan};
use crate::state::Network;

type SharedStage = Shared<BoxFuture<'static, Result<Arc<StageResult>>>>;

/// One build.
pub(super) struct Job {
    pub(super) builder: Arc<Builder>,
    pub(super) request: Request,
    pub(super) plan: Plan,
    pub(super) ignore: Ignore,
    pub(super) number: u64,
    /// Time of everything made, where `SOURCE_DATE_EPOCH` gives one.
    pub(super) epoch: Option<i64>,
    pub(super) hold: ImageHold,
    /// Directory of this build's own files.
    pub(super) work: PathBuf,
    pub(super) sandboxes: tokio::sync::Mutex<HashMap<(usize, Network), String>>,
    pub(super) events: mpsc::Sender<Event>,
    stages: parking_lot::Mutex<Vec<SharedStage>>,
    bases: tokio::sync::Mutex<HashMap<String, Arc<BaseImage>>>,
    next_name: AtomicU64,
    pub(super) steps: AtomicU64,
    pub(super) cached: AtomicU64,
}

/// Removes what a build leaves, however it ends.
pub(super) struct Cleanup(pub(super) Arc<Job>);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let job = self.0.clone();
        // A stage that was left half-way holds its build.
        let unfinished = std::mem::take(&mut *job.stages.lock());
        drop(unfinished);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            // Steps in flight end with their sandboxes.
            let sandboxes = std::mem::take(&mut *job.sandboxes.lock().await);
            for id in sandboxes.into_values() {
                if let Err(error) = job.builder.runtime.remove_pod_sandbox(&id).await {
                    tracing::warn!(%error, sandbox = id, "cannot remove the sandbox of a build");
                }
            }
            let work = job.work.clone();
            let _ =
                blocking(move || std::fs::remove_dir_all(&work).map_err(Error::io("remove work directory")))
                    .await;
        });
    }
}

impl Job {
    pub(super) fn new(
        builder: Arc<Builder>,
        request: Request,
        events: mpsc::Sender<Event>,
        number: u64,
    ) -> Result<Arc<Job>> {
        let in_file = |e| Error::parse(e, &request.file_name, &request.dockerfile);
        let file = dockerfile::parse(&request.dockerfile).map_err(in_file)?;
        let host = host_platform();
        if let Some(asked) = request.platform.as_deref() {
            check_platform(asked)?;
        }
        let platform = plan::platform_arguments("linux", &host);
        let plan =
            plan::plan(&file, &platform, &request.build_args, request.target.as_deref()).map_err(in_file)?;
        let epoch = match request.build_args.get("SOURCE_DATE_EPOCH").map(|text| text.parse::<i64>()) {
            None => None,
            Some(Ok(epoch)) => Some(epoch),
            Some(Err(_)) => return Err(message("SOURCE_DATE_EPOCH is not a number of seconds")),
        };
        Ok(Arc::new(Job {
            hold: builder.images.hold(),
            work: builder.images.work_dir()?,
            ignore: Ignore::parse(&request.ignore),
            builder,
            request,
            plan,
            number,
            epoch,
            sandboxes: tokio::sync::Mutex::default(),
            events,
            stages: parking_lot::Mutex::default(),
            bases: tokio::sync::Mutex::default(),
            next_name: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            cached: AtomicU64::new(0),
        }))
    }

    /// A file name that nobody else in this build uses.
    pub(super) fn next_name(&self, what: &str) -> String {
        format!("{what}-{}", self.next_name.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) async fn build(self: &Arc<Self>) -> Result<Outcome> {
        for name in &self.plan.unused {
            let text = format!("One or more build-args [{name}] were not consumed");
            let _ = self.events.send(Event::Warning { text }).await;
        }
        // Shared futures begin when somebody waits for them: stages that nobody needs never do.
        let stages = (0..self.plan.stages.len()).map(|index| {
            let job = Arc::downgrade(self);
            let made: BoxFuture<'static, Result<Arc<StageResult>>> = Box::pin(async move {
                let job = job.upgrade().ok_or_else(|| message("the build has ended"))?;
                job.make_stage(index).await.map(Arc::new)
            });
            made.shared()
        });
        *self.stages.lock() = stages.collect();
        let mut tasks = tokio::task::JoinSet::new();
        for index in &self.plan.needed {
            tasks.spawn(self.stage(*index)?);
        }
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(|e| message(format!("build task failed: {e}")))??;
        }
        let target = self.stage(self.plan.target)?.await?;
        let made = self.make_image(&target).await?;
        Ok(Outcome {
            id: made.id.to_string(),
            digest: made.manifest.to_string(),
            names: self.request.tags.iter().map(Reference::to_string).collect(),
            cached: self.cached.load(Ordering::Relaxed),
            steps: self.steps.load(Ordering::Relaxed),
        })
    }

    /// The stage of this number, begun when first waited for.
    pub(super) fn stage(&self, index: usize) -> Result<SharedStage> {
        let stage = self.stages.lock().get(index).cloned();
        stage.ok_or_else(|| message(format!("there is no build stage {index}")))
    }

    /// Layers of an earlier stage or an image, as `--from` names it in stage `stage`.
    pub(super) async fn layers_of(self: &Arc<Self>, stage: usize, name: &str) -> Result<Vec<Digest>> {
        let earlier = self.plan.stages.get(..stage).unwrap_or_default();
        let layers = match plan::find(earlier, name) {
            Some(index) => self.stage(index)?.await?.layers.clone(),
            None => self.base(name).await?.layers.clone(),
        };
        Ok(layers.into_iter().map(|layer| layer.diff_id).collect())
    }

    /// An image to build on or copy from, pulled if need be.
    pub(super) async fn base(&self, name: &str) -> Result<Arc<BaseImage>> {
        let mut bases = self.bases.lock().await;
        if let Some(known) = bases.get(name) {
            return Ok(known.clone());
        }
        let present = self.builder.images.base(name)?;
        let found = match (present, self.request.pull) {
            (Some(found), false) => found,
            (present, _) => {
                let reference: Reference = name.parse()?;
                let auth = image::credentials(&self.request.credentials, &reference);
                let request = cri::PullRequest { image: name.to_owned(), auth, progress: None };
                match (self.builder.images.pull(request).await, present) {
                    (Ok(_), _) => {}
                    // A name that no registry knows, but this node does.
                    (Err(_), Some(_)) if reference.host() == "localhost" => {}
                    (Err(error), _) => return Err(message(format!("{name}: {error}"))),
                }
                let pulled = self.builder.images.base(name)?;
                pulled.ok_or_else(|| message(format!("{name}: not found after it was pulled")))?
            }
        };
        let found = Arc::new(found);
        bases.insert(name.to_owned(), found.clone());
        Ok(found)
    }

    /// A tree of layers to read from. Blocking, briefly.
    pub(super) fn tree_of(&self, layers: &[Digest]) -> Result<Tree> {
        let mut paths = self.builder.images.layer_paths(layers);
        if paths.is_empty() {
            paths.push(self.builder.images.empty_dir()?);
        }
        Ok(Tree::new(overlay(&paths, None)?, Ignore::default(), true))
    }

    pub(super) fn context_root(&self) -> Result<PathBuf> {
        self.request.context.clone().ok_or_else(|| message("this build has no context to take files from"))
    }

    pub(super) fn context_tree(&self) -> Result<Tree> {
        Ok(Tree::new(open_dir(&self.context_root()?)?, self.ignore.clone(), false))
    }

    /// When something made now says it was made.
    pub(super) fn now(&self) -> String {
        let now =
            self.epoch.and_then(|epoch| Timestamp::from_second(epoch).ok()).unwrap_or_else(Timestamp::now);
        now.to_string()
    }

    async fn make_image(self: &Arc<Self>, stage: &StageResult) -> Result<MadeImage> {
        let mut document = stage.document.clone();
        document.remove("rootfs");
        let mut config = stage.state.config.clone();
        if !self.request.labels.is_empty() {
            let labels = config.entry("Labels").or_insert_with(|| json!({}));
            for (key, value) in &self.request.labels {
                if let Some(map) = labels.as_object_mut() {
                    map.insert(key.clone(), json!(value));
                }
            }
        }
        let created = match self.epoch {
            Some(_) => Some(self.now()),
            None => stage.created.clone(),
        };
        let history: Vec<Value> = stage
            .state
            .history
            .iter()
            .map(|h| {
                let mut entry = Map::new();
                let at = h.created.clone().or_else(|| created.clone());
                if let Some(at) = at {
                    entry.insert("created".into(), json!(at));
                }
                entry.insert("created_by".into(), json!(h.created_by));
                if h.empty {
                    entry.insert("empty_layer".into(), json!(true));
                }
                Value::Object(entry)
            })
            .collect();
        document.insert("config".into(), Value::Object(config));
        document.insert("history".into(), Value::Array(history));
        if let Some(created) = created {
            document.insert("created".into(), json!(created));
        }
        if let Some(author) = &stage.state.author {
            document.insert("author".into(), json!(author));
        }
        document.entry("architecture").or_insert_with(|| json!(host_platform()));
        document.entry("os").or_insert_with(|| json!("linux"));
        let (job, layers) = (self.clone(), stage.layers.clone());
        blocking(move || {
            let new =
                NewImage { document, layers, annotations: BTreeMap::new(), names: job.request.tags.clone() };
            Ok(job.builder.images.make_image(new, &job.hold)?)
        })
        .await
    }

    /// Globals and build arguments, as the state wants them.
    pub(super) fn arguments(&self) -> (&Variables, &Variables) {
        (&self.plan.globals, &self.request.build_args)
    }
}

/// The name of this machine's architecture.
pub(super) fn host_platform() -> String {
    match std::env::consts::ARCH {
        "x86_64" => "amd64".into(),
        "aarch64" => "arm64".into(),
        other => other.into(),
    }
}

/// Steps run on this machine, so its platform is the only one.
pub(super) fn check_platform(asked: &str) -> Result<()> {
    let host = host_platform();
    let fits = asked == "local" || {
        let mut parts = asked.split('/');
        let architecture = |text: &str| {
            matches!((text, host.as_str()), ("x86_64", "amd64") | ("aarch64", "arm64")) || text == host
        };
        parts.next() == Some("linux") && parts.next().is_none_or(architecture)
    };
    match fits {
        true => Ok(()),
        false => Err(message(format!(
            "platform {asked:?} is not this machine's (linux/{host}); images for others have to be built there"
        ))),
    }
}
