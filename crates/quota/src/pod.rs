//! What a pod costs: requests and limits of its containers together, as the scheduler sees them.

use jiff::Timestamp;
use meta::quantity::Quantity;
use serde_json::{Map, Value};

use crate::{Amounts, Charge, add, member, text};

/// Adds what a pod costs; one that has ended, or should have, costs nothing more.
pub(crate) fn charge(object: &Map<String, Value>, now: Timestamp, charge: &mut Charge) {
    let spec = member(object, "spec");
    charge.traits.is_pod = true;
    charge.traits.terminating = spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0);
    charge.traits.best_effort = is_best_effort(spec);
    charge.traits.priority_class = text(spec, "priorityClassName").to_owned();
    charge.traits.crosses_namespaces = crosses_namespaces(&spec["affinity"]);
    if has_ended(object, now) {
        return;
    }
    let (requests, limits) = (total(spec, "requests"), total(spec, "limits"));
    add(&mut charge.amounts, "pods", Quantity::from_units(1));
    for (name, amount) in &requests {
        match name.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                add(&mut charge.amounts, name.clone(), *amount);
                add(&mut charge.amounts, format!("requests.{name}"), *amount);
            }
            huge if huge.starts_with("hugepages-") => {
                add(&mut charge.amounts, huge, *amount);
                add(&mut charge.amounts, format!("requests.{huge}"), *amount);
            }
            extended if is_extended(extended) => {
                add(&mut charge.amounts, format!("requests.{extended}"), *amount);
            }
            _ => {}
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            add(&mut charge.amounts, format!("limits.{name}"), *amount);
        }
    }
}

/// Whether a resource is one of a vendor: a name with a domain that is not Kubernetes' own.
pub(crate) fn is_extended(name: &str) -> bool {
    name.contains('/')
        && !name.contains("kubernetes.io/")
        && !name.starts_with("requests.")
        && !name.starts_with("limits.")
}

fn has_ended(object: &Map<String, Value>, now: Timestamp) -> bool {
    if matches!(text(member(object, "status"), "phase"), "Succeeded" | "Failed") {
        return true;
    }
    let metadata = member(object, "metadata");
    let Ok(deleted) = text(metadata, "deletionTimestamp").parse::<Timestamp>() else { return false };
    // The timestamp is when the grace period ends.
    metadata["deletionGracePeriodSeconds"].is_i64() && now > deleted
}

/// Requests or limits of a container.
fn of_container(container: &Value, kind: &str) -> Amounts {
    let amounts = container["resources"][kind].as_object().into_iter().flatten();
    amounts.filter_map(|(name, v)| Some((name.clone(), Quantity::parse(v.as_str()?).ok()?))).collect()
}

fn raise(to: &mut Amounts, amounts: &Amounts) {
    for (name, amount) in amounts {
        let entry = to.entry(name.clone()).or_insert(*amount);
        *entry = (*entry).max(*amount);
    }
}

fn sum(mut left: Amounts, right: &Amounts) -> Amounts {
    right.iter().for_each(|(name, amount)| add(&mut left, name.clone(), *amount));
    left
}

/// Requests or limits of a pod: its containers and sidecars together, or the most that its init containers need
/// at any moment; what the pod itself says counts instead; overhead on top.
fn total(spec: &Value, kind: &str) -> Amounts {
    let list = |key: &str| spec[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut running = Amounts::new();
    let mut most = Amounts::new();
    let mut sidecars = Amounts::new();
    for container in list("initContainers") {
        let amounts = of_container(container, kind);
        if container["restartPolicy"] == "Always" {
            sidecars = sum(sidecars, &amounts);
            raise(&mut most, &sidecars);
        } else {
            raise(&mut most, &sum(amounts, &sidecars));
        }
    }
    for container in list("containers") {
        running = sum(running, &of_container(container, kind));
    }
    let mut total = sum(running, &sidecars);
    raise(&mut total, &most);
    for (name, amount) in of_container(spec, kind) {
        total.insert(name, amount);
    }
    for (name, amount) in spec["overhead"].as_object().into_iter().flatten() {
        let Some(amount) = amount.as_str().and_then(|t| Quantity::parse(t).ok()) else { continue };
        // Overhead limits nothing that was not limited.
        if kind == "requests" || total.get(name).is_some_and(|t| !t.is_zero()) {
            add(&mut total, name.clone(), amount);
        }
    }
    total
}

fn is_best_effort(spec: &Value) -> bool {
    let containers =
        ["containers", "initContainers"].iter().flat_map(|k| spec[*k].as_array().into_iter().flatten());
    !containers.chain([spec]).any(|c| {
        ["requests", "limits"].iter().any(|kind| {
            let amounts = of_container(c, kind);
            ["cpu", "memory"].iter().any(|name| amounts.get(*name).is_some_and(|q| !q.is_zero()))
        })
    })
}

fn crosses_namespaces(affinity: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = &affinity[*kind];
        let required =
            terms["requiredDuringSchedulingIgnoredDuringExecution"].as_array().into_iter().flatten();
        let preferred =
            terms["preferredDuringSchedulingIgnoredDuringExecution"].as_array().into_iter().flatten();
        required.chain(preferred.map(|p| &p["podAffinityTerm"])).any(|term| {
            term["namespaces"].as_array().is_some_and(|n| !n.is_empty())
                || term["namespaceSelector"].is_object()
        })
    })
}

/// Containers that leave out what a quota on CPU or memory makes compulsory: `requests.cpu for: a,b; ...`.
pub(crate) fn missing(object: &Map<String, Value>, required: &[&str]) -> Option<String> {
    const COMPULSORY: [&str; 6] =
        ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
    let spec = member(object, "spec");
    let mut parts = Vec::new();
    for name in COMPULSORY.iter().filter(|c| required.contains(c)) {
        let (kind, resource) = name.split_once('.').unwrap_or(("requests", name));
        let containers =
            ["containers", "initContainers"].iter().flat_map(|k| spec[*k].as_array().into_iter().flatten());
        let mut without: Vec<&str> = containers
            .filter(|c| c["resources"][kind].get(resource).is_none())
            .map(|c| text(c, "name"))
            .collect();
        without.sort_unstable();
        if !without.is_empty() {
            parts.push(format!("{name} for: {}", without.join(",")));
        }
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::tests::amounts;

    #[test]
    fn pods() {
        let container =
            |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}});
        for (object, cost) in [
            (json!({"spec": {"containers": [{}]}}), "count/pods=1,pods=1"),
            (
                json!({"spec": {"containers": [container("100m"), container("200m")],
                    "initContainers": [container("250m")]}}),
                "count/pods=1,cpu=300m,limits.cpu=300m,pods=1,requests.cpu=300m",
            ),
            (
                json!({"spec": {"containers": [container("100m")], "overhead": {"cpu": "10m", "memory": "1Mi"},
                    "initContainers": [container("250m")]}}),
                "count/pods=1,cpu=260m,limits.cpu=260m,memory=1Mi,pods=1,requests.cpu=260m,requests.memory=1Mi",
            ),
            (
                json!({"spec": {"containers": [{"resources": {"requests": {"example.com/gpu": "2", "hugepages-2Mi": "4Mi"}}}]}}),
                "count/pods=1,hugepages-2Mi=4Mi,pods=1,requests.example.com/gpu=2,requests.hugepages-2Mi=4Mi",
            ),
            (
                json!({"spec": {"containers": [container("1")]}, "status": {"phase": "Failed"}}),
                "count/pods=1",
            ),
            (
                json!({"spec": {"containers": [container("1")]}, "metadata": {
                    "deletionTimestamp": "2025-12-31T23:00:00Z", "deletionGracePeriodSeconds": 30}}),
                "count/pods=1",
            ),
        ] {
            assert_eq!(amounts("", "pods", object.clone()), cost, "{object}");
        }
    }
}
