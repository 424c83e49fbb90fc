//! PodSecurity: holds pods to the Pod Security Standard that the labels of their namespace name
//! (`pod-security.kubernetes.io/enforce`, `audit`, `warn`, each with a version).
//!
//! Pods are refused; whatever makes pods (Deployments, Jobs...) is only warned about, so that a mistake shows
//! where it was made.

mod checks;

use meta::Status;
use serde_json::{Map, Value};

use crate::{Cluster, Object, Plugin, Request};
use checks::{Level, problems};

const PREFIX: &str = "pod-security.kubernetes.io/";

/// The plugin.
pub struct PodSecurity;

/// What a namespace asks for in one mode.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Policy {
    level: Level,
    version: String,
}

impl Policy {
    /// What the labels of a namespace say for a mode; nonsense counts as the strictest, as upstream has it.
    fn of(labels: &Value, mode: &str) -> Policy {
        let label = |suffix: &str| labels[format!("{PREFIX}{mode}{suffix}")].as_str();
        let level = match label("") {
            None => Level::Privileged,
            Some(name) => Level::parse(name).unwrap_or(Level::Restricted),
        };
        let version = label("-version").filter(|v| is_version(v)).unwrap_or("latest").to_owned();
        Policy { level, version }
    }

    /// `restricted:latest`
    fn name(&self) -> String {
        format!("{}:{}", self.level.name(), self.version)
    }
}

fn is_version(text: &str) -> bool {
    let minor =
        text.strip_prefix("v1.").is_some_and(|m| !m.is_empty() && m.bytes().all(|b| b.is_ascii_digit()));
    minor || text == "latest"
}

/// The pod spec and metadata in an object that has pods or makes them.
fn template<'a>(request: &Request<'_>, object: &'a Object) -> Option<(&'a Value, &'a Value)> {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    match (request.group, request.resource) {
        ("", "pods") => Some((spec, object.get("metadata").unwrap_or(&Value::Null))),
        ("", "podtemplates") => object.get("template").map(|t| (&t["spec"], &t["metadata"])),
        ("batch", "cronjobs") => {
            let template = &spec["jobTemplate"]["spec"]["template"];
            Some((&template["spec"], &template["metadata"]))
        }
        ("" | "apps" | "batch", _) if spec["template"].is_object() => {
            Some((&spec["template"]["spec"], &spec["template"]["metadata"]))
        }
        _ => None,
    }
}

/// Whether an update of a pod changes nothing that the standards look at.
fn is_insignificant(request: &Request<'_>, object: &Object, old: Option<&Object>) -> bool {
    let Some(old) = old.filter(|_| request.operation == "UPDATE") else { return false };
    object.get("spec") == old.get("spec")
        && object.get("metadata").map(|m| &m["annotations"]) == old.get("metadata").map(|m| &m["annotations"])
}

fn is_looked_at(request: &Request<'_>) -> bool {
    matches!(request.operation, "CREATE" | "UPDATE")
        && (request.subresource.is_empty()
            || (request.resource, request.subresource) == ("pods", "ephemeralcontainers"))
}

fn labels(request: &Request<'_>, cluster: &dyn Cluster) -> Value {
    let namespace = cluster.get("", "namespaces", "", request.namespace);
    namespace.map_or(Value::Null, |n| n["metadata"]["labels"].clone())
}

/// `restricted:latest": reason (detail), reason (detail)`
fn describe(policy: &Policy, found: &[(String, String)]) -> String {
    let texts: Vec<String> = found
        .iter()
        .map(
            |(reason, detail)| {
                if detail.is_empty() { reason.clone() } else { format!("{reason} ({detail})") }
            },
        )
        .collect();
    format!("PodSecurity \"{}\": {}", policy.name(), texts.join(", "))
}

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Validate]
    }

    fn validate(
        &self,
        request: &Request<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
        cluster: &dyn Cluster,
    ) -> Result<(), Status> {
        let Some(object) = object.filter(|_| is_looked_at(request)) else { return Ok(()) };
        if (request.group, request.resource) == ("", "namespaces") {
            return check_labels(request, object);
        }
        if (request.group, request.resource) != ("", "pods") || is_insignificant(request, object, old) {
            return Ok(());
        }
        let policy = Policy::of(&labels(request, cluster), "enforce");
        let Some((spec, metadata)) = template(request, object) else { return Ok(()) };
        let found = problems(policy.level, spec, metadata);
        match found.is_empty() {
            true => Ok(()),
            false => Err(request.forbid(&format!("violates {}", describe(&policy, &found)))),
        }
    }

    fn warnings(
        &self,
        request: &Request<'_>,
        object: &Object,
        old: Option<&Object>,
        cluster: &dyn Cluster,
    ) -> Vec<String> {
        if !is_looked_at(request) || is_insignificant(request, object, old) {
            return Vec::new();
        }
        if (request.group, request.resource) == ("", "namespaces") {
            return warn_of_existing(request, object, old, cluster);
        }
        let Some((spec, metadata)) = template(request, object) else { return Vec::new() };
        let policy = Policy::of(&labels(request, cluster), "warn");
        let found = problems(policy.level, spec, metadata);
        match found.is_empty() {
            true => Vec::new(),
            false => vec![format!("would violate {}", describe(&policy, &found))],
        }
    }
}

/// A namespace whose labels make no sense is refused.
fn check_labels(request: &Request<'_>, namespace: &Object) -> Result<(), Status> {
    let labels = namespace.get("metadata").map_or(&Value::Null, |m| &m["labels"]);
    let mut errors = Vec::new();
    for mode in ["enforce", "audit", "warn"] {
        let (level, version) = (format!("{PREFIX}{mode}"), format!("{PREFIX}{mode}-version"));
        if let Some(value) = labels[&level].as_str().filter(|v| Level::parse(v).is_none()) {
            let field = format!("metadata.labels[{level}]");
            let why = "must be one of privileged, baseline, restricted";
            errors.push(meta::FieldError::invalid(&field, &value.into(), why));
        }
        if let Some(value) = labels[&version].as_str().filter(|v| !is_version(v)) {
            let field = format!("metadata.labels[{version}]");
            errors.push(meta::FieldError::invalid(&field, &value.into(), "must be \"latest\" or \"v1.x\""));
        }
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid("", "Namespace", request.name, &errors)),
    }
}

/// Most pods that are looked at when a namespace becomes stricter (upstream's limit).
const EXISTING_MAX: usize = 3000;

/// What runs in a namespace and would be refused under its new labels.
fn warn_of_existing(
    request: &Request<'_>,
    namespace: &Object,
    old: Option<&Object>,
    cluster: &dyn Cluster,
) -> Vec<String> {
    let of = |o: &Object| o.get("metadata").map_or(Value::Null, |m| m["labels"].clone());
    let Some(old) = old else { return Vec::new() };
    let (now, before) = (Policy::of(&of(namespace), "enforce"), Policy::of(&of(old), "enforce"));
    if now.level <= before.level && now.version == before.version {
        return Vec::new();
    }
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for pod in cluster.within("", "pods", request.name).iter().take(EXISTING_MAX) {
        let problems = problems(now.level, &pod["spec"], &pod["metadata"]);
        if problems.is_empty() {
            continue;
        }
        let reasons = problems.iter().map(|(reason, _)| reason.as_str()).collect::<Vec<_>>().join(", ");
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        match found.iter_mut().find(|(r, _)| *r == reasons) {
            Some((_, pods)) => pods.push(name),
            None => found.push((reasons, vec![name])),
        }
    }
    if found.is_empty() {
        return Vec::new();
    }
    let head = format!(
        "existing pods in namespace \"{}\" violate the new PodSecurity enforce level \"{}\"",
        request.name,
        now.name()
    );
    let lines = found.into_iter().map(|(reasons, pods)| match pods.as_slice() {
        [one] => format!("{one}: {reasons}"),
        [first, others @ ..] => {
            let n = others.len();
            format!("{first} (and {n} other pod{}): {reasons}", if n == 1 { "" } else { "s" })
        }
        [] => reasons,
    });
    std::iter::once(head).chain(lines).collect()
}

/// A member of a map; null when absent.
fn at<'a>(map: &'a Map<String, Value>, key: &str) -> &'a Value {
    map.get(key).unwrap_or(&Value::Null)
}

#[cfg(test)]
mod tests {
    use meta::UserInfo;
    use serde_json::json;

    use super::*;
    use crate::testing::{Fixed, create};

    fn world(labels: Value) -> Fixed {
        Fixed(vec![("namespaces", "", "n", json!({"metadata": {"name": "n", "labels": labels}}))])
    }

    #[test]
    fn pods_are_refused_and_their_makers_warned() {
        let world = world(
            json!({"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "baseline"}),
        );
        let user = UserInfo::anonymous();
        let spec = json!({"hostNetwork": true, "containers": [{"name": "c"}]});
        let pod = json!({"metadata": {}, "spec": spec.clone()}).as_object().unwrap().clone();
        let refused =
            PodSecurity.validate(&create("pods", "n", &user), Some(&pod), None, &world).unwrap_err();
        assert_eq!(
            refused.message,
            "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": host namespaces (hostNetwork=true), allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let request = Request { group: "apps", ..create("deployments", "n", &user) };
        let deployment = json!({"spec": {"template": {"spec": spec}}}).as_object().unwrap().clone();
        assert!(PodSecurity.validate(&request, Some(&deployment), None, &world).is_ok());
        assert_eq!(
            PodSecurity.warnings(&request, &deployment, None, &world),
            ["would violate PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"]
        );
    }

    #[test]
    fn labels_must_make_sense() {
        let user = UserInfo::anonymous();
        let namespace = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "strict"}}});
        let request = create("namespaces", "", &user);
        let error =
            PodSecurity.validate(&request, namespace.as_object(), None, &Fixed::default()).unwrap_err();
        assert!(
            error.message.contains("must be one of privileged, baseline, restricted"),
            "{}",
            error.message
        );
    }
}
