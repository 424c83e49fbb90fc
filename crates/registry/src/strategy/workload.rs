//! Kinds with a pod template: Deployment, ReplicaSet, StatefulSet, DaemonSet, ReplicationController,
//! PodTemplate.

use meta::FieldError;
use serde_json::{Value, json};

use super::{Object, Strategy, child, pod, set_default, text};
use crate::validate::{self, workload};

fn default_template(owner: &mut Object) {
    let template = child(owner, "template");
    child(template, "metadata");
    pod::default_spec(child(template, "spec"));
}

fn rolling(spec: &mut Object, key: &str, parameters: Value) {
    let strategy = child(spec, key);
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        for (name, value) in parameters.as_object().into_iter().flatten() {
            rolling.entry(name.as_str()).or_insert_with(|| value.clone());
        }
    }
}

fn warn(owner: &Object, path: &str) -> Vec<String> {
    let spec = owner.get("template").and_then(|t| t.get("spec")).and_then(Value::as_object);
    spec.map(|s| validate::pod::warnings(s, &format!("{path}template.spec"))).unwrap_or_default()
}

macro_rules! workload {
    ($name:ident, $doc:literal, $validate:path, $update:path, $default:expr) => {
        #[doc = $doc]
        pub struct $name;

        impl Strategy for $name {
            fn default(&self, object: &mut Object) {
                let spec = child(object, "spec");
                default_template(spec);
                let extra: fn(&mut Object) = $default;
                extra(spec);
            }
            fn validate(&self, object: &Object) -> Option<Vec<FieldError>> {
                Some($validate(object))
            }
            fn validate_update(&self, _: &str, new: &Object, old: &Object) -> Vec<FieldError> {
                $update(new, old)
            }
            fn warnings(&self, object: &Object) -> Vec<String> {
                object.get("spec").and_then(Value::as_object).map(|s| warn(s, "spec.")).unwrap_or_default()
            }
        }
    };
}

workload!(Deployment, "Strategy of Deployments.", workload::deployment, workload::selector_update, |spec| {
    rolling(spec, "strategy", json!({"maxUnavailable": "25%", "maxSurge": "25%"}));
});
workload!(ReplicaSet, "Strategy of ReplicaSets.", workload::replica_set, workload::selector_update, |_| {});
workload!(DaemonSet, "Strategy of DaemonSets.", workload::daemon_set, workload::selector_update, |spec| {
    rolling(spec, "updateStrategy", json!({"maxUnavailable": 1, "maxSurge": 0}));
});
workload!(
    StatefulSet,
    "Strategy of StatefulSets.",
    workload::stateful_set,
    workload::stateful_set_update,
    |spec| {
        rolling(spec, "updateStrategy", json!({"partition": 0}));
        for claim in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten()
        {
            if let Value::Object(claim) = claim {
                set_default(claim, "apiVersion", "v1");
                set_default(claim, "kind", "PersistentVolumeClaim");
                let status = child(claim, "status");
                set_default(status, "phase", "Pending");
            }
        }
    }
);

/// Strategy of ReplicationControllers: selector and labels default to the template's labels.
pub struct ReplicationController;

impl Strategy for ReplicationController {
    fn default(&self, object: &mut Object) {
        let spec = child(object, "spec");
        default_template(spec);
        let labels = spec["template"]["metadata"].get("labels").cloned();
        if let Some(labels) = labels {
            spec.entry("selector").or_insert_with(|| labels.clone());
            child(object, "metadata").entry("labels").or_insert(labels);
        }
    }
    fn validate(&self, object: &Object) -> Option<Vec<FieldError>> {
        Some(workload::replication_controller(object))
    }
    fn warnings(&self, object: &Object) -> Vec<String> {
        object.get("spec").and_then(Value::as_object).map(|s| warn(s, "spec.")).unwrap_or_default()
    }
}

/// Strategy of PodTemplates.
pub struct PodTemplate;

impl Strategy for PodTemplate {
    fn default(&self, object: &mut Object) {
        default_template(object);
    }
    fn validate(&self, object: &Object) -> Option<Vec<FieldError>> {
        Some(validate::pod::template(object.get("template"), "template", &["Always", "OnFailure", "Never"]))
    }
    fn warnings(&self, object: &Object) -> Vec<String> {
        warn(object, "")
    }
}
