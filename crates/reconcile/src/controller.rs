//! Control loops as values: a descriptor says how to build a loop, the supervisor runs the table of them.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use client::{BoxFuture, Client};
use futures_util::FutureExt;
use meta::UserInfo;
use stdx::{Clock, Random};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cached::Cached;
use crate::informer::Informer;
use crate::informers::Informers;
use crate::metrics::Queues;
use crate::queue::{Key, WorkQueue};
use crate::recorder::{EventSink, Recorder};

/// How long running reconciles may take to finish when the process stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a reconcile has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A call to the API failed.
    #[error(transparent)]
    Api(#[from] client::Error),
    /// An object cannot be read or built.
    #[error(transparent)]
    Decode(#[from] api::DecodeError),
    /// An object's selector is malformed.
    #[error("selector: {0}")]
    Selector(String),
    /// What was begun cannot go on yet; another attempt comes after a growing pause.
    #[error("{0}")]
    Unfinished(String),
    /// Several steps of one plan failed.
    #[error("{failed} of {total} steps failed, the first: {first}")]
    Partial {
        /// Steps that failed.
        failed: usize,
        /// Steps of the plan.
        total: usize,
        /// The first failure.
        #[source]
        first: Box<ControlError>,
    },
}

impl ControlError {
    /// The failed call's error, where there is one.
    pub fn api(&self) -> Option<&client::Error> {
        match self {
            ControlError::Api(error) => Some(error),
            ControlError::Partial { first, .. } => first.api(),
            _ => None,
        }
    }
}

/// What a successful reconcile wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something changes.
    Wait,
    /// Another look after this long, even if nothing changes.
    RequeueAfter(Duration),
}

/// Brings one object's surroundings to what it asks for. Level-based: gets only the key.
pub trait Reconcile: Send + Sync {
    /// Observes, plans and acts for the object called `key`, which may be gone.
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>>;
}

/// What every loop is built from.
#[derive(Clone)]
pub struct Context {
    /// Client whose transport all loops share; loops speak as themselves through [`Context::client_of`].
    pub client: Client,
    /// Shared caches.
    pub informers: Arc<Informers>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Where events go.
    pub events: EventSink,
    /// The queues of all loops, for metrics.
    pub queues: Arc<Queues>,
    /// Ends everything.
    pub cancel: CancellationToken,
}

/// The user a loop speaks as: the ServiceAccount that upstream's roles are bound to.
pub fn controller_user(name: &str) -> UserInfo {
    UserInfo::service_account("kube-system", name)
}

impl Context {
    /// A context whose caches and events go through `client`.
    pub fn new(
        client: Client,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        cancel: CancellationToken,
    ) -> Context {
        let informers = Informers::new(client.clone(), random.clone(), cancel.clone());
        let events = EventSink::start(clock.clone(), cancel.clone());
        Context { client, informers, clock, random, events, queues: Arc::default(), cancel }
    }

    /// The client of the loop `name`, e.g. `deployment-controller`.
    pub fn client_of(&self, name: &str) -> Client {
        self.client.as_user(controller_user(name)).with_user_agent(&format!("ferry/{name}"))
    }

    /// The event recorder of the loop `name`.
    pub fn recorder_of(&self, name: &'static str) -> Recorder {
        self.events.recorder(self.client_of(name), name, "")
    }
}

/// A loop, ready to run.
pub struct Controller {
    /// Keys of objects that need a look.
    pub queue: Arc<WorkQueue>,
    /// What is done with a key.
    pub reconciler: Arc<dyn Reconcile>,
    /// How many keys are in work at once.
    pub workers: usize,
    /// Caches that must be filled first.
    pub synced: Vec<BoxFuture<'static, ()>>,
    /// Further tasks of the loop; they end with the context's cancellation.
    pub tasks: Vec<BoxFuture<'static, ()>>,
}

impl Controller {
    /// A loop without caches to wait for.
    pub fn new(queue: Arc<WorkQueue>, reconciler: Arc<dyn Reconcile>, workers: usize) -> Self {
        Controller { queue, reconciler, workers, synced: Vec::new(), tasks: Vec::new() }
    }

    /// Waits for this cache before the first reconcile.
    pub fn after<T: Cached>(mut self, informer: &Arc<Informer<T>>) -> Self {
        let informer = informer.clone();
        self.synced.push(Box::pin(async move { informer.synced().await }));
        self
    }

    /// Runs this beside the workers.
    pub fn with_task(mut self, task: impl Future<Output = ()> + Send + 'static) -> Self {
        self.tasks.push(Box::pin(task));
        self
    }
}

/// A row of the table of loops.
pub struct Descriptor {
    /// Upstream's name, e.g. `deployment-controller`; also the loop's ServiceAccount.
    pub name: &'static str,
    /// Registers handlers and returns the loop.
    pub build: Box<dyn Fn(&Context) -> Controller + Send + Sync>,
}

impl Descriptor {
    /// A row.
    pub fn new(name: &'static str, build: impl Fn(&Context) -> Controller + Send + Sync + 'static) -> Self {
        Descriptor { name, build: Box::new(build) }
    }
}

/// A supervisor that could not end cleanly.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Loops were still at work when the time limit of draining had passed.
    #[error("{0} tasks were still at work after {DRAIN_TIMEOUT:?}")]
    Drain(usize),
}

/// Runs the loops until the context is cancelled, then lets running reconciles finish.
///
/// # Errors
/// [`RunError::Drain`] when they do not finish in time.
pub async fn run_all(descriptors: Vec<Descriptor>, context: Context) -> Result<(), RunError> {
    let mut tasks = JoinSet::new();
    let mut queues = Vec::new();
    for descriptor in &descriptors {
        let controller = (descriptor.build)(&context);
        context.queues.add(descriptor.name, &controller.queue);
        queues.push(controller.queue.clone());
        start(descriptor.name, controller, &context.cancel, &mut tasks);
    }
    context.cancel.cancelled().await;
    queues.iter().for_each(|queue| queue.close());
    let drained =
        tokio::time::timeout(DRAIN_TIMEOUT, async { while tasks.join_next().await.is_some() {} }).await;
    drained.map_err(|_| RunError::Drain(tasks.len()))
}

fn start(name: &'static str, controller: Controller, cancel: &CancellationToken, tasks: &mut JoinSet<()>) {
    let Controller { queue, reconciler, workers, synced, tasks: extra } = controller;
    for task in extra {
        let cancel = cancel.clone();
        tasks.spawn(async move {
            tokio::select! { () = cancel.cancelled() => {}, () = task => {} }
        });
    }
    let ready = async move {
        for cache in synced {
            cache.await;
        }
    };
    let ready = ready.shared();
    for _ in 0..workers {
        let (queue, reconciler, ready, cancel) =
            (queue.clone(), reconciler.clone(), ready.clone(), cancel.clone());
        tasks.spawn(async move {
            tokio::select! { () = cancel.cancelled() => return, () = ready => {} }
            while let Some(key) = queue.get().await {
                work(name, &queue, &*reconciler, &key).await;
                queue.done(&key);
            }
        });
    }
}

/// Reconciles one key and decides when to look again. A panic counts as a failure of that key.
async fn work(name: &str, queue: &WorkQueue, reconciler: &dyn Reconcile, key: &Key) {
    match AssertUnwindSafe(reconciler.reconcile(key)).catch_unwind().await {
        Ok(Ok(action)) => {
            queue.forget(key);
            if let Action::RequeueAfter(delay) = action {
                queue.add_after(key.clone(), delay);
            }
        }
        Ok(Err(error)) => {
            if error.api().is_some_and(client::Error::is_conflict) {
                tracing::debug!(controller = name, %key, %error, "reconcile lost a race and will retry");
            } else {
                tracing::warn!(controller = name, %key, %error, "reconcile failed and will retry");
            }
            queue.add_rate_limited(key.clone());
        }
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied();
            let text =
                text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown");
            tracing::error!(controller = name, %key, panic = text, "reconcile panicked and will retry");
            queue.add_rate_limited(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use stdx::{SystemClock, ThreadRandom};

    /// Fails, then panics, then succeeds.
    struct Flaky(Mutex<Vec<&'static str>>, CancellationToken);

    impl Reconcile for Flaky {
        fn reconcile<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
            Box::pin(async move {
                let mut log = self.0.lock();
                match log.len() {
                    0 => {
                        log.push("failed");
                        Err(ControlError::Selector("bad".into()))
                    }
                    1 => {
                        log.push("panicked");
                        drop(log);
                        panic!("as the test wants")
                    }
                    2 => {
                        log.push("again later");
                        Ok(Action::RequeueAfter(Duration::from_secs(60)))
                    }
                    _ => {
                        log.push("done");
                        self.1.cancel();
                        Ok(Action::Wait)
                    }
                }
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_panics_are_retried() {
        let cancel = CancellationToken::new();
        let handler: client::Handler = Arc::new(|_| Box::pin(std::future::pending()));
        let client = Client::new(Arc::new(client::InProcess::new(handler)), "test");
        let context = Context::new(client, SystemClock::shared(), Arc::new(ThreadRandom), cancel.clone());
        let flaky = Arc::new(Flaky(Mutex::default(), cancel));
        let (queue, reconciler) = (WorkQueue::new(), flaky.clone());
        queue.add("k");
        let built = queue.clone();
        let row = Descriptor::new("flaky", move |_| Controller::new(built.clone(), reconciler.clone(), 2));
        run_all(vec![row], context).await.unwrap();
        assert_eq!(*flaky.0.lock(), ["failed", "panicked", "again later", "done"]);
        assert_eq!(queue.failures("k"), 0);
    }
}
