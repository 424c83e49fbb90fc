//! Pods: defaults, what may change after creation, graceful deletion.

use meta::{FieldError, Quantity, Status};
use serde_json::{Value, json};

use super::{Context, Object, Strategy, child, set_default, text};
use crate::allocate::Reservation;
use crate::validate;

/// Strategy of Pods.
pub struct PodStrategy;

/// Fills in the conditional defaults of a pod spec; shared by everything with a pod template.
pub fn default_spec(spec: &mut Object) {
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Value::Object(container) = container {
                default_container(container, host_network);
            }
        }
    }
    let account = text(spec, "serviceAccountName").to_owned();
    let deprecated = text(spec, "serviceAccount").to_owned();
    match (account.is_empty(), deprecated.is_empty()) {
        (false, _) => drop(spec.insert("serviceAccount".into(), account.into())),
        (true, false) => drop(spec.insert("serviceAccountName".into(), deprecated.into())),
        (true, true) => {}
    }
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(volume) = volume
            && volume.len() == 1
        {
            volume.insert("emptyDir".into(), json!({}));
        }
    }
}

fn default_container(container: &mut Object, host_network: bool) {
    let image = text(container, "image").to_owned();
    set_default(container, "imagePullPolicy", if wants_latest(&image) { "Always" } else { "IfNotPresent" });
    if host_network {
        for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if let (Some(number), Value::Object(port)) = (port.get("containerPort").cloned(), port) {
                port.entry("hostPort").or_insert(number);
            }
        }
    }
    if let Some(Value::Object(resources)) = container.get_mut("resources")
        && let Some(Value::Object(limits)) = resources.get("limits").cloned()
    {
        let requests = child(resources, "requests");
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

/// Whether an image reference has no tag and no digest, or the tag `latest`.
fn wants_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    match image.rsplit('/').next().and_then(|last| last.split_once(':')) {
        Some((_, tag)) => tag == "latest",
        None => true,
    }
}

/// The QoS class by upstream's rules: every container with equal limits and requests of cpu and memory is
/// Guaranteed, none with any is BestEffort.
pub fn qos_class(spec: &Object) -> &'static str {
    let containers = ["containers", "initContainers"]
        .iter()
        .filter_map(|l| spec.get(*l).and_then(Value::as_array))
        .flatten();
    let (mut any, mut all) = (false, true);
    for container in containers {
        let amount = |kind: &str, name: &str| {
            let text = container["resources"][kind][name].as_str()?;
            Quantity::parse(text).ok().filter(|q| !q.is_zero())
        };
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount("requests", name), amount("limits", name));
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && request == limit;
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

impl Strategy for PodStrategy {
    fn default(&self, pod: &mut Object) {
        default_spec(child(pod, "spec"));
    }

    fn prepare_create(&self, _: &Context<'_>, pod: &mut Object) -> Result<Option<Reservation>, Status> {
        let class = qos_class(child(pod, "spec"));
        let gated = pod["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty());
        let mut status = json!({"phase": "Pending", "qosClass": class});
        if gated {
            status["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates"}]);
        }
        pod.insert("status".into(), status);
        Ok(None)
    }

    fn prepare_update(
        &self,
        _: &Context<'_>,
        subresource: &str,
        new: &mut Object,
        old: &Object,
    ) -> Result<Option<Reservation>, Status> {
        if subresource == "status"
            && let Some(class) = old.get("status").and_then(|s| s.get("qosClass"))
        {
            child(new, "status").insert("qosClass".into(), class.clone());
        }
        if subresource.is_empty()
            && old["spec"].get("ephemeralContainers") != new["spec"].get("ephemeralContainers")
        {
            match old["spec"].get("ephemeralContainers") {
                Some(v) => drop(child(new, "spec").insert("ephemeralContainers".into(), v.clone())),
                None => drop(child(new, "spec").remove("ephemeralContainers")),
            }
        }
        Ok(None)
    }

    fn validate(&self, pod: &Object) -> Option<Vec<FieldError>> {
        Some(validate::pod::pod(pod))
    }

    fn validate_update(&self, subresource: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        validate::pod::pod_update(subresource, new, old)
    }

    fn warnings(&self, pod: &Object) -> Vec<String> {
        pod.get("spec")
            .and_then(Value::as_object)
            .map(|s| validate::pod::warnings(s, "spec"))
            .unwrap_or_default()
    }

    fn grace_period(&self, pod: &Object, asked: Option<i64>) -> i64 {
        let spec = &pod["spec"];
        let phase = pod.get("status").and_then(|s| s["phase"].as_str()).unwrap_or_default();
        // Nothing runs, so there is nothing to wait for.
        if spec["nodeName"].as_str().unwrap_or_default().is_empty() || matches!(phase, "Succeeded" | "Failed")
        {
            return 0;
        }
        let own = spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
        match asked.unwrap_or(own) {
            // Negative asks for the least there is.
            n if n < 0 => 1,
            n => n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, latest) in [
            ("busybox", true),
            ("busybox:latest", true),
            ("busybox:1", false),
            ("r:5000/b", true),
            ("r:5000/b:1", false),
            ("b@sha256:abc", false),
        ] {
            assert_eq!(wants_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn qos() {
        let spec =
            |resources: Value| json!({"containers": [{"resources": resources}]}).as_object().unwrap().clone();
        assert_eq!(qos_class(&spec(json!({}))), "BestEffort");
        assert_eq!(qos_class(&spec(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let full = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&spec(json!({"requests": full, "limits": full}))), "Guaranteed");
    }

    #[test]
    fn requests_default_to_limits() {
        let mut spec = json!({"containers": [{"image": "a", "resources": {"limits": {"cpu": "1"}}}], "volumes": [{"name": "v"}]})
            .as_object().unwrap().clone();
        default_spec(&mut spec);
        assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], "1");
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
    }
}
