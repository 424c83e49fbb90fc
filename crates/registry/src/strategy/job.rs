//! Jobs and CronJobs: counts, and the labels and selector that tie pods to their Job.

use meta::{FieldError, Status};
use serde_json::{Value, json};

use super::{Context, Object, Strategy, child, pod, set_default};
use crate::allocate::Reservation;
use crate::validate::{self, workload};
use crate::write::meta_text;

fn default_job_spec(spec: &mut Object) {
    let template = child(spec, "template");
    child(template, "metadata");
    pod::default_spec(child(template, "spec"));
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        spec.insert("completions".into(), 1.into());
    }
    set_default(spec, "parallelism", 1);
}

/// Strategy of Jobs.
pub struct Job;

impl Strategy for Job {
    fn default(&self, job: &mut Object) {
        default_job_spec(child(job, "spec"));
    }

    fn prepare_create(&self, _: &Context<'_>, job: &mut Object) -> Result<Option<Reservation>, Status> {
        let (name, uid) = (meta_text(job, "name").to_owned(), meta_text(job, "uid").to_owned());
        let spec = child(job, "spec");
        if spec.get("manualSelector") == Some(&Value::Bool(true)) {
            return Ok(None);
        }
        let labels = child(child(child(spec, "template"), "metadata"), "labels");
        for prefix in ["", "batch.kubernetes.io/"] {
            labels.insert(format!("{prefix}controller-uid"), uid.as_str().into());
            labels.insert(format!("{prefix}job-name"), name.as_str().into());
        }
        let selector = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
        spec.entry("selector").or_insert(selector);
        Ok(None)
    }

    fn validate(&self, job: &Object) -> Option<Vec<FieldError>> {
        Some(workload::job(job.get("spec"), "spec"))
    }

    fn validate_update(&self, _: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        workload::job_update(new, old)
    }
}

/// Strategy of CronJobs.
pub struct CronJob;

impl Strategy for CronJob {
    fn default(&self, object: &mut Object) {
        let template = child(child(object, "spec"), "jobTemplate");
        child(template, "metadata");
        default_job_spec(child(template, "spec"));
    }

    fn validate(&self, object: &Object) -> Option<Vec<FieldError>> {
        let spec = object.get("spec").unwrap_or(&Value::Null);
        let mut errors = Vec::new();
        if spec["schedule"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required("spec.schedule", ""));
        }
        errors.extend(validate::one_of(
            &spec["concurrencyPolicy"],
            "spec.concurrencyPolicy",
            &["Allow", "Forbid", "Replace"],
        ));
        errors.extend(workload::job(spec["jobTemplate"].get("spec"), "spec.jobTemplate.spec"));
        Some(errors)
    }
}
