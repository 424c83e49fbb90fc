//! LimitRanger: gives containers the requests and limits that a namespace's LimitRanges name as defaults, and
//! refuses pods and claims outside their bounds.

use std::collections::BTreeMap;

use meta::Status;
use meta::quantity::Quantity;
use serde_json::{Map, Value};

use crate::{Cluster, Object, Plugin, Request, child, list};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The plugin.
pub struct LimitRanger;

type Amounts = BTreeMap<String, Quantity>;

impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Mutate, crate::Step::Validate]
    }

    fn mutate(
        &self,
        request: &Request<'_>,
        object: &mut Object,
        _: Option<&Object>,
        cluster: &dyn Cluster,
    ) -> Result<(), Status> {
        if request.creates_pod() {
            let mut notes = Vec::new();
            for range in cluster.within("", "limitranges", request.namespace) {
                set_defaults(&range, object, &mut notes);
            }
            if !notes.is_empty() {
                let text = format!("LimitRanger plugin set: {}", notes.join("; "));
                child(child(object, "metadata"), "annotations").insert(ANNOTATION.into(), text.into());
            }
        }
        Ok(())
    }

    fn validate(
        &self,
        request: &Request<'_>,
        object: Option<&Object>,
        _: Option<&Object>,
        cluster: &dyn Cluster,
    ) -> Result<(), Status> {
        let Some(object) = object.filter(|_| request.group.is_empty()) else { return Ok(()) };
        let check: fn(&Value, &Object) -> Vec<String> = match (request.resource, request.subresource) {
            ("pods", "") if request.operation == "CREATE" => pod_problems,
            ("pods", "resize") => pod_problems,
            ("persistentvolumeclaims", "") => claim_problems,
            _ => return Ok(()),
        };
        for range in cluster.within("", "limitranges", request.namespace) {
            let problems = check(&range, object);
            match problems.as_slice() {
                [] => {}
                [one] => return Err(request.forbid(one)),
                many => return Err(request.forbid(&format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

/// The limits of a LimitRange that are about containers, pods or claims.
fn limits_of<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    range["spec"]["limits"].as_array().into_iter().flatten().filter(move |l| l["type"] == kind)
}

fn amounts(value: &Value) -> Amounts {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(k, v)| Some((k.clone(), Quantity::parse(v.as_str()?).ok()?))).collect()
}

/// Fills in what containers do not say, and notes what was filled in.
fn set_defaults(range: &Value, pod: &mut Object, notes: &mut Vec<String>) {
    let mut defaults = [("requests", Map::new()), ("limits", Map::new())];
    for limit in limits_of(range, "Container") {
        for ((_, into), key) in defaults.iter_mut().zip(["defaultRequest", "default"]) {
            into.extend(limit[key].as_object().cloned().unwrap_or_default());
        }
    }
    for container in list(child(pod, "spec"), "containers").iter_mut().filter_map(Value::as_object_mut) {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let resources = child(container, "resources");
        for ((kind, defaults), word) in defaults.iter().zip(["request", "limit"]) {
            let mut set = Vec::new();
            for (resource, amount) in defaults {
                let own = child(resources, kind);
                if !own.contains_key(resource) {
                    own.insert(resource.clone(), amount.clone());
                    set.push(resource.as_str());
                }
            }
            if !set.is_empty() {
                notes.push(format!("{} {word} for container {name}", set.join(", ")));
            }
        }
    }
}

/// Every bound that a pod breaks, in upstream's words.
fn pod_problems(range: &Value, pod: &Object) -> Vec<String> {
    let mut problems = Vec::new();
    let containers: Vec<(Amounts, Amounts)> = (pod.get("spec").and_then(|s| s["containers"].as_array()))
        .into_iter()
        .flatten()
        .map(|c| (amounts(&c["resources"]["requests"]), amounts(&c["resources"]["limits"])))
        .collect();
    for limit in range["spec"]["limits"].as_array().into_iter().flatten() {
        match limit["type"].as_str() {
            Some("Container") => containers.iter().for_each(|c| check(limit, "Container", c, &mut problems)),
            Some("Pod") => {
                let sums = (
                    sum(containers.iter().map(|c| &c.0).collect()),
                    sum(containers.iter().map(|c| &c.1).collect()),
                );
                check(limit, "Pod", &sums, &mut problems);
            }
            _ => {}
        }
    }
    problems
}

/// The sum of what all of them name.
fn sum(all: Vec<&Amounts>) -> Amounts {
    let Some((first, others)) = all.split_first() else { return Amounts::new() };
    let add = |name: &String, start: Quantity| {
        others.iter().try_fold(start, |total, one| Some(total.plus(*one.get(name)?)))
    };
    first.iter().filter_map(|(name, amount)| Some((name.clone(), add(name, *amount)?))).collect()
}

fn check(limit: &Value, kind: &str, (requests, limits): &(Amounts, Amounts), problems: &mut Vec<String>) {
    for (name, bound) in amounts(&limit["min"]) {
        let head = format!("minimum {name} usage per {kind} is {bound}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => problems.push(format!("{head}.  No request is specified")),
            (Some(r), _) if *r < bound => problems.push(format!("{head}, but request is {r}")),
            (_, Some(l)) if *l < bound => problems.push(format!("{head}, but limit is {l}")),
            _ => {}
        }
    }
    for (name, bound) in amounts(&limit["max"]) {
        let head = format!("maximum {name} usage per {kind} is {bound}");
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => problems.push(format!("{head}.  No limit is specified")),
            (_, Some(l)) if *l > bound => problems.push(format!("{head}, but limit is {l}")),
            (Some(r), _) if *r > bound => problems.push(format!("{head}, but request is {r}")),
            _ => {}
        }
    }
    for (name, bound) in amounts(&limit["maxLimitRequestRatio"]) {
        let head = format!("{name} max limit to request ratio per {kind} is {bound}");
        let (request, limit) = (requests.get(&name), limits.get(&name));
        match (request.filter(|q| !q.is_zero()), limit.filter(|q| !q.is_zero())) {
            (None, _) => problems.push(format!("{head}, but no request is specified or request is 0")),
            (_, None) => problems.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(r), Some(l)) => {
                let ratio = l.milli_value() as f64 / r.milli_value() as f64;
                if ratio * 1000.0 > bound.milli_value() as f64 {
                    problems.push(format!("{head}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

/// Every bound that a claim breaks.
fn claim_problems(range: &Value, claim: &Object) -> Vec<String> {
    let requests = claim.get("spec").map(|s| amounts(&s["resources"]["requests"])).unwrap_or_default();
    let mut problems = Vec::new();
    for limit in limits_of(range, "PersistentVolumeClaim") {
        for (name, bound) in amounts(&limit["min"]) {
            match requests.get(&name) {
                Some(r) if *r < bound => problems.push(format!(
                    "minimum {name} usage per PersistentVolumeClaim is {bound}, but request is {r}"
                )),
                _ => {}
            }
        }
        for (name, bound) in amounts(&limit["max"]) {
            match requests.get(&name) {
                Some(r) if *r > bound => problems.push(format!(
                    "maximum {name} usage per PersistentVolumeClaim is {bound}, but request is {r}"
                )),
                _ => {}
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use meta::UserInfo;
    use serde_json::json;

    use super::*;
    use crate::testing::{Fixed, create};

    fn range(limit: Value) -> Fixed {
        Fixed(vec![(
            "limitranges",
            "n",
            "r",
            json!({"metadata": {"name": "r", "namespace": "n"}, "spec": {"limits": [limit]}}),
        )])
    }

    fn admit(cluster: &Fixed, resource: &str, object: Value) -> Result<Value, String> {
        let user = UserInfo::anonymous();
        let request = create(resource, "n", &user);
        let Value::Object(mut object) = object else { unreachable!() };
        LimitRanger.mutate(&request, &mut object, None, cluster).unwrap();
        LimitRanger.validate(&request, Some(&object), None, cluster).map_err(|s| s.message)?;
        Ok(Value::Object(object))
    }

    #[test]
    fn defaults_are_set_and_noted() {
        let cluster = range(json!({"type": "Container", "default": {"cpu": "500m", "memory": "500Mi"},
            "defaultRequest": {"cpu": "100m"}}));
        let pod = json!({"metadata": {}, "spec": {"containers": [
            {"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "1"}}}]}});
        let pod = admit(&cluster, "pods", pod).unwrap();
        let first = &pod["spec"]["containers"][0]["resources"];
        assert_eq!(
            *first,
            json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m", "memory": "500Mi"}})
        );
        assert_eq!(pod["spec"]["containers"][1]["resources"]["limits"]["cpu"], "1");
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; cpu request for container b; memory limit for container b"
        );
    }

    #[test]
    fn bounds_are_kept() {
        let pod = |requests: Value, limits: Value| json!({"metadata": {}, "spec": {"containers": [{"name": "a", "resources": {"requests": requests, "limits": limits}}]}});
        for (limit, requests, limits, problem) in [
            (
                json!({"min": {"cpu": "100m"}}),
                json!({"cpu": "50m"}),
                json!({}),
                "minimum cpu usage per Container is 100m, but request is 50m",
            ),
            (
                json!({"min": {"cpu": "100m"}}),
                json!({}),
                json!({}),
                "minimum cpu usage per Container is 100m.  No request is specified",
            ),
            (
                json!({"max": {"memory": "1Gi"}}),
                json!({}),
                json!({"memory": "2Gi"}),
                "maximum memory usage per Container is 1Gi, but limit is 2Gi",
            ),
            (
                json!({"max": {"cpu": "1", "memory": "1Gi"}}),
                json!({}),
                json!({}),
                "[maximum cpu usage per Container is 1.  No limit is specified, maximum memory usage per Container is 1Gi.  No limit is specified]",
            ),
            (
                json!({"maxLimitRequestRatio": {"cpu": "2"}}),
                json!({"cpu": "1"}),
                json!({"cpu": "3"}),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ),
            (
                json!({"min": {"cpu": "100m"}, "max": {"cpu": "1"}}),
                json!({"cpu": "100m"}),
                json!({"cpu": "1"}),
                "",
            ),
        ] {
            let mut rule = limit;
            rule["type"] = "Container".into();
            let found = admit(&range(rule), "pods", pod(requests, limits)).err().unwrap_or_default();
            let expect = if problem.is_empty() {
                String::new()
            } else {
                format!("pods \"x\" is forbidden: {problem}")
            };
            assert_eq!(found, expect);
        }
        let claims = range(json!({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}));
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        assert!(
            admit(&claims, "persistentvolumeclaims", claim("2Gi"))
                .unwrap_err()
                .ends_with("is 1Gi, but request is 2Gi")
        );
        assert!(admit(&claims, "persistentvolumeclaims", claim("1Gi")).is_ok());
    }
}
