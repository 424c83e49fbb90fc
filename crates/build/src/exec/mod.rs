//! The shell around the plan: stages side by side, steps from the cache or in the world, and the image at the end.

mod changes;
mod copy;
mod digest;
mod files;
mod job;
mod mounts;
mod run;
mod stage;
mod stubs;
mod tree;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cri::RuntimeService;
use image::{ImageStore, Reference};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use self::digest::Digests;
use self::job::Job;
use crate::error::{Result, message};

pub use self::changes::Changes;
pub use self::run::BUILD_LABEL;

/// What is to be built.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Text of the Dockerfile.
    pub dockerfile: String,
    /// Its name, for messages.
    pub file_name: String,
    /// Directory of the context; without one there is nothing to copy from.
    pub context: Option<PathBuf>,
    /// Text of the ignore file.
    pub ignore: String,
    /// Build arguments.
    pub build_args: BTreeMap<String, String>,
    /// Stage to stop at.
    pub target: Option<String>,
    /// Names for the image.
    pub tags: Vec<Reference>,
    /// Labels to add.
    pub labels: BTreeMap<String, String>,
    /// Values for RUN steps.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// Take every step anew.
    pub no_cache: bool,
    /// Ask registries for newer base images.
    pub pull: bool,
    /// Platform asked for.
    pub platform: Option<String>,
    /// Whether RUN may ask for `--security=insecure`.
    pub allow_insecure: bool,
    /// Whether RUN may ask for `--network=host`.
    pub allow_host_network: bool,
    /// Credentials: the text of a Docker configuration.
    pub credentials: String,
}

/// What a build tells as it goes.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A step has begun.
    Begin {
        /// Number of the step in this build.
        step: u64,
        /// `[stage 2/5] RUN make`.
        text: String,
    },
    /// Its command has said something.
    Output {
        /// The step.
        step: u64,
        /// What.
        text: String,
    },
    /// It is done.
    Done {
        /// The step.
        step: u64,
        /// Whether an earlier build had done it.
        cached: bool,
        /// How long it took.
        took: Duration,
    },
    /// It failed.
    Failed {
        /// The step.
        step: u64,
        /// Why, in one line.
        error: String,
    },
    /// Something that the author should know.
    Warning {
        /// What.
        text: String,
    },
}

/// A built image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Image id.
    pub id: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Its names.
    pub names: Vec<String>,
    /// Steps taken from the cache.
    pub cached: u64,
    /// Steps in all.
    pub steps: u64,
}

/// Where a step's words go.
pub(crate) struct Log {
    step: u64,
    events: mpsc::Sender<Event>,
}

impl Log {
    async fn send(&self, event: Event) {
        // Who no longer listens does not want to know.
        let _ = self.events.send(event).await;
    }
}

/// Builds images on this node.
#[derive(Debug)]
pub struct Builder {
    images: Arc<ImageStore>,
    runtime: Arc<dyn RuntimeService>,
    changes: Arc<dyn Changes>,
    digests: Digests,
    caches: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    next: AtomicU64,
}

impl Builder {
    /// A builder over the node's images and runtime.
    pub fn new(
        images: Arc<ImageStore>,
        runtime: Arc<dyn RuntimeService>,
        changes: Arc<dyn Changes>,
    ) -> Arc<Builder> {
        Arc::new(Builder {
            images,
            runtime,
            changes,
            digests: Digests::default(),
            caches: Mutex::default(),
            next: AtomicU64::new(1),
        })
    }

    /// Builds. Dropping the future ends the build; its containers are removed behind it.
    pub async fn build(self: &Arc<Self>, request: Request, events: mpsc::Sender<Event>) -> Result<Outcome> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let job = Job::new(self.clone(), request, events, number)?;
        let _cleanup = job::Cleanup(job.clone());
        let outcome = job.build().await;
        let images = self.images.clone();
        // What was done stays done, whether the whole succeeded or not.
        blocking(move || {
            images.sync_layers()?;
            Ok(images.save_cache()?)
        })
        .await?;
        outcome
    }

    /// Removes sandboxes that builds of an earlier process have left.
    pub async fn clean_up(&self) -> Result<()> {
        for sandbox in self.runtime.list_pod_sandboxes(&cri::PodSandboxFilter::default()).await? {
            if sandbox.labels.contains_key(BUILD_LABEL) {
                self.runtime.remove_pod_sandbox(&sandbox.id).await?;
            }
        }
        Ok(())
    }

    fn cache_lock(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.caches.lock();
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(name.to_owned()).or_default().clone()
    }
}

/// Runs blocking work on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(message(format!("build task failed: {e}"))),
    }
}
