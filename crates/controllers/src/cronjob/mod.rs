//! `cronjob-controller`: starts Jobs at the times of a schedule and clears old ones away.
//!
//! Flow: CronJob and Job events, and the clock -> key -> [`plan::plan`] -> old Jobs go -> a Job starts -> status.

pub mod plan;

use std::sync::Arc;

use api::k8s_openapi::api::batch::v1::CronJob;
use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams, Propagation};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, EventType, Informer, Reconcile, Recorder,
    WorkQueue, object_reference,
};
use stdx::Clock;

use self::plan::{Note, Plan};
use crate::owners;

const NAME: &str = "cronjob-controller";
/// CronJobs in work at once (upstream's default is 5).
const WORKERS: usize = 5;

/// The row of `cronjob-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    crons: Arc<Informer<CronJob>>,
    jobs: Arc<Informer<Job>>,
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.recorder_of(NAME),
        clock: context.clock.clone(),
        crons: context.informers.get::<CronJob>(),
        jobs: context.informers.get::<Job>(),
    });
    owners::add_indexes(&this.jobs);
    let to = queue.clone();
    this.crons.on_event(move |event| to.add(event.object().key()));
    let to = queue.clone();
    this.jobs.on_event(move |event| {
        let job = event.object();
        let owner = owners::controller_of(&job.metadata).filter(|owner| owner.kind == "CronJob");
        if let Some(owner) = owner {
            to.add(format!("{}/{}", job.namespace(), owner.name));
        }
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.crons).after(&this.jobs)
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(cached) = self.crons.store().get(key) else { return Ok(Action::Wait) };
        let jobs = self.jobs.store().by_index(owners::CONTROLLER, cached.uid());
        let listed = |cron: &CronJob| {
            let active = cron.status.iter().flat_map(|s| s.active.iter().flatten());
            active.filter_map(|a| a.uid.clone()).collect::<Vec<_>>()
        };
        // Where status and Jobs disagree one of the caches may be behind: the server knows.
        let known = listed(&cached);
        let unlisted = |job: &Arc<Job>| plan::end_of(job).is_none() && !known.iter().any(|u| u == job.uid());
        let unseen = known.iter().any(|uid| !jobs.iter().any(|job| job.uid() == uid));
        let (mut cron, mut jobs) = (CronJob::clone(&cached), jobs);
        if unseen || jobs.iter().any(unlisted) {
            cron = match self.client.get_typed::<CronJob>(cached.namespace(), cached.name()).await {
                Err(error) if error.is_not_found() => return Ok(Action::Wait),
                fresh => fresh?,
            };
            jobs = self.with_active(&cron, jobs).await?;
        }
        let plan = plan::plan(&cron, &jobs, self.clock.now());
        self.execute(cron, plan).await
    }

    /// The Jobs, and those of the status that the cache lacks though they exist.
    async fn with_active(
        &self,
        cron: &CronJob,
        mut jobs: Vec<Arc<Job>>,
    ) -> Result<Vec<Arc<Job>>, ControlError> {
        for active in cron.status.iter().flat_map(|s| s.active.iter().flatten()) {
            if jobs.iter().any(|job| Some(job.uid()) == active.uid.as_deref()) {
                continue;
            }
            let name = active.name.as_deref().unwrap_or_default();
            match self.client.get_typed::<Job>(cron.namespace(), name).await {
                Ok(job) if Some(job.uid()) == active.uid.as_deref() => jobs.push(Arc::new(job)),
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(jobs)
    }

    async fn execute(&self, cron: CronJob, plan: Plan) -> Result<Action, ControlError> {
        for Note(kind, reason, text) in plan.notes {
            self.recorder.record(object_reference(&cron), kind, reason, text);
        }
        let mut status = plan.status;
        for job in &plan.expire {
            self.delete(&cron, job.name()).await?;
        }
        for running in &plan.replace {
            self.delete(&cron, running.name.as_deref().unwrap_or_default()).await?;
            if let Some(active) = &mut status.active {
                active.retain(|a| a.uid != running.uid);
            }
        }
        let mut outcome = Ok(());
        if let Some(scheduled) = plan.start {
            match self.start(&cron, scheduled).await {
                Ok(Some(job)) => {
                    status.active.get_or_insert_default().push(plan::reference(&job));
                    status.last_schedule_time = Some(Time(scheduled));
                }
                Ok(None) => {}
                Err(error) => outcome = Err(error),
            }
        }
        status.active = status.active.filter(|a| !a.is_empty());
        let before = cron.status.clone().unwrap_or_default();
        if before != status {
            let updated = CronJob { status: Some(status), ..cron };
            match self.client.update_status_typed(&updated).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        outcome?;
        Ok(plan.wait.map_or(Action::Wait, Action::RequeueAfter))
    }

    /// Starts the Job of a time; `None` if nothing of ours came of it. One that is there already and ours was
    /// started before a crash and counts.
    async fn start(&self, cron: &CronJob, scheduled: jiff::Timestamp) -> Result<Option<Job>, ControlError> {
        let wanted = plan::job(cron, scheduled);
        match self.client.create_typed(&wanted).await {
            Ok(job) => {
                self.recorder.normal(cron, "SuccessfulCreate", format!("Created job {}", job.name()));
                Ok(Some(job))
            }
            Err(error) if error.is_namespace_terminating() => Ok(None),
            Err(error) if error.is_already_exists() => {
                let present = self.client.get_typed::<Job>(cron.namespace(), wanted.name()).await?;
                Ok(owners::is_controlled_by(&present.metadata, cron.uid()).then_some(present))
            }
            Err(error) => {
                self.recorder.warning(cron, "FailedCreate", format!("Error creating job: {error}"));
                Err(error.into())
            }
        }
    }

    async fn delete(&self, cron: &CronJob, name: &str) -> Result<(), ControlError> {
        let params = DeleteParams { propagation: Some(Propagation::Background), ..Default::default() };
        match self.client.delete_typed::<Job>(cron.namespace(), name, &params).await {
            Ok(()) => self.recorder.normal(cron, "SuccessfulDelete", format!("Deleted job {name}")),
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                let text = format!("Deleted job: {error}");
                self.recorder.record(object_reference(cron), EventType::Warning, "FailedDelete", text);
                return Err(error.into());
            }
        }
        Ok(())
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
