//! `job-controller`: runs pods until enough of them have succeeded, or too many have failed.
//!
//! Flow: Job and pod events -> key of the Job -> [`plan::plan`] -> status, then finalizers, deletions and
//! creations. The status is written before a finalizer goes, so that no pod is lost from the counts.

mod backoff;
mod indexes;
pub mod plan;
mod policy;

use std::sync::Arc;

use api::k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector};
use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams, Patch};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, Recorder, WorkQueue,
};
use serde_json::json;
use stdx::Clock;

use self::plan::{INDEX, NewPod, Plan, TRACKING, is_tracked};
use crate::follow::Follow;
use crate::owners;

const NAME: &str = "job-controller";
/// Jobs in work at once (upstream's default is 5).
const WORKERS: usize = 5;

/// The row of `job-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    clock: Arc<dyn Clock>,
    jobs: Arc<Informer<Job>>,
    pods: Arc<Informer<Pod>>,
    follow: Arc<Follow<Job>>,
}

fn build(context: &Context) -> Controller {
    let (queue, jobs, pods) =
        (WorkQueue::new(), context.informers.get::<Job>(), context.informers.get::<Pod>());
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.recorder_of(NAME),
        clock: context.clock.clone(),
        follow: Follow::start(&jobs, &pods, &queue, selector_of),
        jobs,
        pods,
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.jobs).after(&this.pods)
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(job) = self.jobs.store().get(key) else {
            return self.release_orphans(key).await;
        };
        let managed_elsewhere = job.spec.as_ref().and_then(|s| s.managed_by.as_deref());
        if managed_elsewhere.is_some_and(|by| by != "kubernetes.io/job-controller") {
            return Ok(Action::Wait);
        }
        let trusted = self.follow.expectations.satisfied(key, self.clock.instant());
        let selector = selector_of(&job)?;
        let strays = owners::claims(&self.pods, &job.metadata, &selector).release;
        let tracking = Some(TRACKING);
        let owned =
            owners::claim(&self.client, &self.pods, &Job::GVK, &job.metadata, &selector, tracking).await?;
        // Who is no longer ours need not wait to be counted.
        for pod in strays.iter().filter(|pod| is_tracked(pod)) {
            self.release(pod.namespace(), pod.name()).await?;
        }
        let mut plan = plan::plan(&job, &owned, trusted, self.clock.now());
        let mut job = Job::clone(&job);
        if job.status.as_ref() != Some(&plan.status) {
            job.status = Some(std::mem::take(&mut plan.status));
            match self.client.update_status_typed(&job).await {
                Err(error) if error.is_not_found() => return Ok(Action::Wait),
                updated => job = updated?,
            }
        }
        for notice in plan.notices.drain(..) {
            match notice.warning {
                false => self.recorder.normal(&job, &notice.reason, notice.message),
                true => self.recorder.warning(&job, &notice.reason, notice.message),
            }
        }
        self.execute(key, &job, plan).await
    }

    async fn execute(&self, key: &str, job: &Job, plan: Plan) -> Result<Action, ControlError> {
        for name in &plan.release {
            self.release(job.namespace(), name).await?;
        }
        for name in &plan.delete {
            match self.client.delete_typed::<Pod>(job.namespace(), name, &DeleteParams::default()).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                Err(_) => {}
                Ok(()) => self.recorder.normal(job, "SuccessfulDelete", format!("Deleted pod: {name}")),
            }
        }
        if !plan.create.is_empty() {
            self.follow.expectations.expect_creations(key, plan.create.len(), self.clock.instant());
            for (done, new) in plan.create.iter().enumerate() {
                match self.client.create_typed(&pod_of(job, new)).await {
                    Ok(pod) => {
                        let message = format!("Created pod: {}", pod.name());
                        self.recorder.normal(job, "SuccessfulCreate", message);
                    }
                    Err(error) => {
                        (done..plan.create.len())
                            .for_each(|_| self.follow.expectations.creation_observed(key));
                        if error.is_namespace_terminating() {
                            return Ok(Action::Wait);
                        }
                        self.recorder.warning(job, "FailedCreate", format!("Error creating: {error}"));
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(plan.wait.map_or(Action::Wait, Action::RequeueAfter))
    }

    /// Takes our finalizer off a pod.
    async fn release(&self, namespace: &str, name: &str) -> Result<(), ControlError> {
        let patch =
            Patch::Strategic(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [TRACKING]}}));
        match self.client.patch(&Pod::GVR, namespace, name, "", &patch).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Pods of a Job that is gone need not be counted any more.
    async fn release_orphans(&self, key: &str) -> Result<Action, ControlError> {
        let (namespace, name) = reconcile::split_key(key);
        let of_job = |pod: &Pod| {
            owners::controller_of(&pod.metadata).is_some_and(|o| o.kind == "Job" && o.name == name)
                && pod.namespace() == namespace
                && is_tracked(pod)
        };
        for pod in self.pods.store().list().iter().filter(|pod| of_job(pod)) {
            self.release(namespace, pod.name()).await?;
        }
        Ok(Action::Wait)
    }
}

fn selector_of(job: &Job) -> Result<meta::LabelSelector, ControlError> {
    owners::compile(&job.spec.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default())
}

/// Longest name a suffix is generated for (upstream's `MaxGeneratedNameLength`).
const GENERATED_NAME_MAX: usize = 58;

/// A pod of a Job.
fn pod_of(job: &Job, new: &NewPod) -> Pod {
    let owner = owners::controller_reference(&Job::GVK, &job.metadata);
    let template = job.spec.clone().unwrap_or_default().template;
    let mut pod = crate::replicaset::plan::pod_from_template(&template, job.namespace(), job.name(), owner);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if finalizers.iter().all(|f| f != TRACKING) {
        finalizers.push(TRACKING.into());
    }
    let Some(index) = new.index else { return pod };
    let tail = format!("-{index}-");
    let head: String = job.name().chars().take(GENERATED_NAME_MAX.saturating_sub(tail.len())).collect();
    pod.metadata.generate_name = Some(head + &tail);
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if let Some((counted, ignored)) = new.failures {
        annotations.insert(backoff::FAILURES.into(), counted.to_string());
        if ignored > 0 {
            annotations.insert(backoff::IGNORED.into(), ignored.to_string());
        }
    }
    pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{}-{index}", job.name()));
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            let environment = container.env.get_or_insert_default();
            if environment.iter().all(|v| v.name != INDEX_VARIABLE) {
                environment.push(index_variable());
            }
        }
    }
    pod
}

const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";

/// The variable that tells a container its index.
fn index_variable() -> EnvVar {
    let field_path = format!("metadata.labels['{INDEX}']");
    let field_ref = Some(ObjectFieldSelector { field_path, ..Default::default() });
    let value_from = Some(EnvVarSource { field_ref, ..Default::default() });
    EnvVar { name: INDEX_VARIABLE.into(), value_from, ..Default::default() }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
