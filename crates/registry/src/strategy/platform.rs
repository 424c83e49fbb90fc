//! Small kinds of the platform: priorities, autoscalers, registered APIs, ingresses.

use meta::FieldError;
use serde_json::{Value, json};

use super::{Object, Strategy, child};
use crate::write::meta_text;

/// Highest value of a priority that users may define.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;
/// The classes that the server itself makes.
const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// Strategy of PriorityClasses.
pub struct PriorityClass;

impl Strategy for PriorityClass {
    fn default(&self, object: &mut Object) {
        super::set_default(object, "preemptionPolicy", "PreemptLowerPriority");
    }

    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        let (mut errors, name) = (Vec::new(), meta_text(object, "name"));
        let value = object.get("value").and_then(Value::as_i64).unwrap_or(0);
        if name.starts_with("system-") {
            if !SYSTEM_CLASSES.contains(&(name, value)) {
                let why =
                    "priority class names with 'system-' prefix are reserved for system use only. error: ";
                let why = match SYSTEM_CLASSES.iter().find(|(n, _)| *n == name) {
                    Some((_, right)) => format!("{why}value of {name} PriorityClass must be {right}"),
                    None => format!("{why}{name} is not a known system priority class"),
                };
                errors.push(FieldError::forbidden("metadata.name", &why));
            }
        } else if value > USER_PRIORITY_MAX {
            let why = format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
            errors.push(FieldError::forbidden("value", &why));
        }
        errors
    }
}

/// Strategy of HorizontalPodAutoscalers, in the version that asks.
pub struct Autoscaler;

/// Share of the requested processor time that an autoscaler without metrics aims at.
const CPU_PERCENT_DEFAULT: i64 = 80;

impl Strategy for Autoscaler {
    fn default(&self, object: &mut Object) {
        let v2 = object.get("apiVersion").is_some_and(|v| v == "autoscaling/v2");
        let spec = child(object, "spec");
        super::set_default(spec, "minReplicas", 1);
        let none = spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty);
        if v2 && none {
            let target = json!({"type": "Utilization", "averageUtilization": CPU_PERCENT_DEFAULT});
            spec.insert(
                "metrics".into(),
                json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]),
            );
        }
        let Some(behavior) = spec.get_mut("behavior").and_then(Value::as_object_mut) else { return };
        for (direction, policies) in [
            (
                "scaleUp",
                json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
            ),
            ("scaleDown", json!([{"type": "Percent", "value": 100, "periodSeconds": 15}])),
        ] {
            let rules = child(behavior, direction);
            super::set_default(rules, "selectPolicy", "Max");
            if direction == "scaleUp" {
                super::set_default(rules, "stabilizationWindowSeconds", 0);
            }
            super::set_default(rules, "policies", policies);
        }
    }

    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        super::autoscaler::check(object.get("spec").unwrap_or(&Value::Null))
    }
}

/// Strategy of APIServices: their name is what they serve.
pub struct RegisteredApi;

impl Strategy for RegisteredApi {
    // That of the core group ends with a dot.
    fn name_problem(&self, name: &str) -> Option<String> {
        meta::names::path_segment_problem(name)
    }

    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        let spec = object.get("spec").cloned().unwrap_or_default();
        let (group, version) =
            (spec["group"].as_str().unwrap_or_default(), spec["version"].as_str().unwrap_or_default());
        let (name, wanted) = (meta_text(object, "name"), format!("{version}.{group}"));
        let mut errors = Vec::new();
        if name != wanted {
            let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
            errors.push(FieldError::invalid("metadata.name", &name.into(), &why));
        }
        let secured = spec["caBundle"].as_str().is_some_and(|b| !b.is_empty());
        if secured && spec["insecureSkipTLSVerify"] == true {
            let why = "may not be true if caBundle is present";
            errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", &true.into(), why));
        }
        errors
    }
}

/// Strategy of Ingresses.
pub struct Ingress;

impl Strategy for Ingress {
    fn warnings(&self, object: &Object) -> Vec<String> {
        let annotations = object.get("metadata").and_then(|m| m.get("annotations"));
        match annotations.and_then(|a| a.get("kubernetes.io/ingress.class")) {
            Some(_) => vec![
                "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"
                    .into(),
            ],
            None => Vec::new(),
        }
    }
}
