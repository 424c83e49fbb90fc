//! `ttl-after-finished-controller`: deletes Jobs some time after they have finished, if they ask for it.

use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams, Propagation};
use jiff::{SignedDuration, Timestamp};
use reconcile::{Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, WorkQueue};
use stdx::Clock;

const NAME: &str = "ttl-after-finished-controller";
const WORKERS: usize = 5;

/// The row of `ttl-after-finished-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    clock: Arc<dyn Clock>,
    jobs: Arc<Informer<Job>>,
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        clock: context.clock.clone(),
        jobs: context.informers.get::<Job>(),
    });
    let to = queue.clone();
    this.jobs.on_event(move |event| {
        if expires_at(event.object()).is_some() {
            to.add(event.object().key());
        }
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.jobs)
}

/// When a Job may go: `None` while it runs, or if it stays.
pub fn expires_at(job: &Job) -> Option<Timestamp> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let end = conditions
        .iter()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    let at = end.last_transition_time.as_ref()?.0;
    if job.is_terminating() { None } else { at.checked_add(SignedDuration::from_secs(i64::from(ttl))).ok() }
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(job) = self.jobs.store().get(key) else { return Ok(Action::Wait) };
        let Some(at) = expires_at(&job) else { return Ok(Action::Wait) };
        let left = Duration::try_from(at.duration_since(self.clock.now())).unwrap_or_default();
        if !left.is_zero() {
            return Ok(Action::RequeueAfter(left));
        }
        let params = DeleteParams {
            propagation: Some(Propagation::Foreground),
            uid: Some(job.uid().to_owned()),
            resource_version: Some(job.resource_version().to_owned()),
            ..Default::default()
        };
        match self.client.delete_typed::<Job>(job.namespace(), job.name(), &params).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Action::Wait),
        }
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_finished_jobs_with_a_ttl_expire() {
        let job = |ttl: Option<i32>, condition: &str| {
            Job::from_value(
                json!({"metadata": {"name": "j"}, "spec": {"ttlSecondsAfterFinished": ttl, "template": {}},
                "status": {"conditions": [{"type": condition, "status": "True",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}),
            )
            .unwrap()
        };
        let at = |job: Job| expires_at(&job).map(|t| t.to_string());
        assert_eq!(at(job(Some(60), "Complete")).as_deref(), Some("2026-01-01T00:01:00Z"));
        assert_eq!(at(job(None, "Complete")), None);
        assert_eq!(at(job(Some(60), "Suspended")), None);
    }
}
