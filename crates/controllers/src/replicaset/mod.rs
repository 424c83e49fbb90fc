//! `replicaset-controller` and `replication-controller`: keep the number of pods of a set at what it asks
//! for, adopting pods that match and releasing those that no longer do.
//!
//! Flow: pod and set events -> key of the set -> claim pods -> [`plan::scale`] -> create or delete ->
//! status. Expectations keep a set from being scaled again before its cache shows the last scaling.

pub mod plan;
mod view;

use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::core::v1::ReplicationController;
use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams};
use futures_util::future::join_all;
use meta::Gvr;
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, Recorder, WorkQueue,
};
use stdx::Clock;

use self::plan::Scale;
use self::view::{Failure, Replicating};
use crate::follow::Follow;
use crate::{owners, pods};

/// Sets in work at once (upstream's `--concurrent-replicaset-syncs` is 5; work here is mostly waiting).
const WORKERS: usize = 8;

static PODS: Gvr = Pod::GVR;

/// The row of `replicaset-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new("replicaset-controller", |context| build::<ReplicaSet>(context, "replicaset-controller"))
}

/// The row of `replication-controller`.
pub fn replication_controller_descriptor() -> Descriptor {
    let name = "replication-controller";
    Descriptor::new(name, move |context| build::<ReplicationController>(context, name))
}

struct Loop<T: Replicating> {
    client: Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    sets: Arc<Informer<T>>,
    pods: Arc<Informer<Pod>>,
    follow: Arc<Follow<T>>,
}

fn build<T: Replicating>(context: &Context, name: &'static str) -> Controller {
    let (queue, sets, pods) =
        (WorkQueue::new(), context.informers.get::<T>(), context.informers.get::<Pod>());
    owners::add_indexes(&sets);
    let this = Arc::new(Loop::<T> {
        client: context.client_of(name),
        recorder: context.recorder_of(name),
        clock: context.clock.clone(),
        follow: Follow::start(&sets, &pods, &queue, T::selector),
        sets,
        pods,
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.sets).after(&this.pods)
}

impl<T: Replicating> Loop<T> {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(set) = self.sets.store().get(key) else { return Ok(Action::Wait) };
        let selector = set.selector()?;
        // Read before the cache: what comes in between only makes us look again.
        let trusted = self.follow.expectations.satisfied(key, self.clock.instant());
        let owned = owners::claim(&self.client, &self.pods, &T::GVK, set.meta(), &selector, None).await?;
        let mut outcome = Ok(());
        let mut failure = None;
        if trusted && !set.is_terminating() {
            let active: Vec<&Pod> = owned.iter().map(|p| &**p).filter(|p| pods::is_active(p)).collect();
            let related = self.related_pods(&*set);
            let related: Vec<&Pod> = related.iter().map(|p| &**p).collect();
            let scale = plan::scale(&active, set.replicas(), &related, self.clock.now());
            if let Err((why, error)) = self.execute(key, &*set, &owned, scale).await {
                failure = Some(Failure { reason: why, message: error.to_string() });
                outcome = Err(error);
            }
        }
        let now = self.clock.now();
        let refs: Vec<&Pod> = owned.iter().map(|p| &**p).collect();
        let counts = plan::count(&refs, set.template(), set.min_ready_seconds(), now);
        if let Some(updated) = set.with_status(counts, failure.as_ref(), &Time(now)) {
            match self.client.update_status_typed(&updated).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        outcome?;
        if counts.ready != counts.available && set.min_ready_seconds() > 0 {
            return Ok(Action::RequeueAfter(next_available(&refs, set.min_ready_seconds(), now)));
        }
        Ok(Action::Wait)
    }

    /// Active pods of all sets that have the same controller as this one.
    fn related_pods(&self, set: &T) -> Vec<Arc<Pod>> {
        let siblings = match owners::controller_of(set.meta()) {
            Some(owner) => self.sets.store().by_index(owners::CONTROLLER, &owner.uid),
            None => Vec::new(),
        };
        let own = std::iter::once(set.uid().to_owned());
        let uids = own.chain(siblings.iter().map(|s| s.uid().to_owned()).filter(|uid| uid != set.uid()));
        let of = |uid: String| self.pods.store().by_index(owners::CONTROLLER, &uid);
        uids.flat_map(of).filter(|pod| pods::is_active(pod)).collect()
    }

    async fn execute(
        &self,
        key: &str,
        set: &T,
        owned: &[Arc<Pod>],
        scale: Scale,
    ) -> Result<(), (&'static str, ControlError)> {
        match scale {
            Scale::Keep => Ok(()),
            Scale::Create(count) => self.create(key, set, count).await.map_err(|e| ("FailedCreate", e)),
            Scale::Delete(names) => {
                let doomed = owned.iter().filter(|pod| names.iter().any(|n| n == pod.name()));
                self.delete(key, set, doomed.cloned().collect()).await.map_err(|e| ("FailedDelete", e))
            }
        }
    }

    async fn create(&self, key: &str, set: &T, count: usize) -> Result<(), ControlError> {
        let Some(template) = set.template() else { return Ok(()) };
        let owner = owners::controller_reference(&T::GVK, set.meta());
        let pod = plan::pod_from_template(template, set.namespace(), set.name(), owner).encode();
        self.follow.expectations.expect_creations(key, count, self.clock.instant());
        let mut asked = 0;
        for batch in plan::slow_start_batches(count) {
            asked += batch;
            let requests = (0..batch).map(|_| self.client.create(&PODS, set.namespace(), &pod));
            let mut first_error = None;
            for answer in join_all(requests).await {
                match answer {
                    Ok(created) => {
                        let name = created["metadata"]["name"].as_str().unwrap_or_default();
                        self.recorder.normal(set, "SuccessfulCreate", format!("Created pod: {name}"));
                    }
                    Err(error) => {
                        self.follow.expectations.creation_observed(key);
                        if !error.is_namespace_terminating() {
                            self.recorder.warning(set, "FailedCreate", format!("Error creating: {error}"));
                        }
                        first_error.get_or_insert(error);
                    }
                }
            }
            if let Some(error) = first_error {
                (asked..count).for_each(|_| self.follow.expectations.creation_observed(key));
                // Nothing can be created there any more, and nothing needs to be.
                return if error.is_namespace_terminating() { Ok(()) } else { Err(error.into()) };
            }
        }
        Ok(())
    }

    async fn delete(&self, key: &str, set: &T, doomed: Vec<Arc<Pod>>) -> Result<(), ControlError> {
        let uids = doomed.iter().map(|pod| pod.uid().to_owned());
        self.follow.expectations.expect_deletions(key, uids, self.clock.instant());
        let requests = doomed.iter().map(|pod| async move {
            let params = DeleteParams::only_uid(pod.uid());
            self.client.delete_typed::<Pod>(pod.namespace(), pod.name(), &params).await
        });
        let mut first_error = None;
        for (pod, answer) in doomed.iter().zip(join_all(requests).await) {
            match answer {
                Ok(()) => {
                    let message = format!("Deleted pod: {}", pod.name());
                    self.recorder.normal(set, "SuccessfulDelete", message);
                }
                Err(error) => {
                    self.follow.expectations.deletion_observed(key, pod.uid());
                    if !error.is_not_found() {
                        self.recorder.warning(set, "FailedDelete", format!("Error deleting: {error}"));
                        first_error.get_or_insert(error);
                    }
                }
            }
        }
        first_error.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// How long until the next ready pod has been ready for long enough.
fn next_available(owned: &[&Pod], min_ready_seconds: i32, now: jiff::Timestamp) -> Duration {
    let needed = Duration::from_secs(min_ready_seconds.max(0) as u64);
    let waits = owned.iter().filter_map(|pod| pods::ready_since(pod)?).map(|since| {
        let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        needed.saturating_sub(age)
    });
    // A millisecond more, so that the comparison falls on the right side.
    waits.filter(|wait| !wait.is_zero()).min().unwrap_or(needed) + Duration::from_millis(1)
}

impl<T: Replicating> Reconcile for Loop<T> {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
