//! Jobs and CronJobs: counts, and the labels and selector that tie pods to their Job.

use meta::{FieldError, Status};
use serde_json::{Value, json};

use super::{Context, Object, Strategy, child, pod, set_default};
use crate::allocate::Reservation;
use crate::validate::{self, job as rules};
use crate::write::meta_text;

fn default_job_spec(spec: &mut Object) {
    let template = child(spec, "template");
    child(template, "metadata");
    pod::default_spec(child(template, "spec"));
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        spec.insert("completions".into(), 1.into());
    }
    set_default(spec, "parallelism", 1);
    // Where each index has its own limit, there is none for all of them.
    let limit = if spec.contains_key("backoffLimitPerIndex") { i32::MAX } else { 6 };
    set_default(spec, "backoffLimit", limit);
    // A policy judges how pods have ended, so it has to wait for that.
    let when = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    set_default(spec, "podReplacementPolicy", when);
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
        Some(rules::job(job.get("spec"), "spec"))
    }

    fn validate_update(&self, _: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        rules::job_update(new, old)
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
        if meta_text(object, "name").len() > CRON_NAME_MAX {
            let name = meta_text(object, "name").into();
            errors.push(FieldError::invalid("metadata.name", &name, "must be no more than 52 characters"));
        }
        errors.extend(schedule(spec));
        errors.extend(validate::one_of(
            &spec["concurrencyPolicy"],
            "spec.concurrencyPolicy",
            &["Allow", "Forbid", "Replace"],
        ));
        errors.extend(rules::job(spec["jobTemplate"].get("spec"), "spec.jobTemplate.spec"));
        Some(errors)
    }
}

/// Longest name of a CronJob: its Jobs append eleven characters and must fit into a label.
const CRON_NAME_MAX: usize = 52;

/// Rules for a schedule and its time zone.
fn schedule(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let text = spec["schedule"].as_str().unwrap_or_default();
    if text.is_empty() {
        errors.push(FieldError::required("spec.schedule", ""));
        return errors;
    }
    let zone_inside = text.contains("TZ");
    if let Err(why) = meta::cron::parse(text) {
        errors.push(FieldError::invalid("spec.schedule", &spec["schedule"], &why));
    }
    if zone_inside {
        let why = if spec["timeZone"].is_null() {
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
        } else {
            "cannot use both timeZone field and TZ or CRON_TZ in schedule"
        };
        errors.push(FieldError::invalid("spec.schedule", &spec["schedule"], why));
    }
    let Some(zone) = spec["timeZone"].as_str() else { return errors };
    let invalid = |why: &str| FieldError::invalid("spec.timeZone", &spec["timeZone"], why);
    if zone.is_empty() {
        errors.push(invalid("timeZone must be nil or non-empty string"));
    } else if zone.eq_ignore_ascii_case("local") {
        errors.push(invalid(
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        ));
    } else if let Err(why) = meta::cron::time_zone(zone) {
        errors.push(invalid(&why));
    }
    errors
}
