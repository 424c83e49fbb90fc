//! RuntimeClass: a pod that names one gets its overhead and its place (KEP-585, KEP-688).

use meta::Status;
use serde_json::Value;

use crate::{Cluster, Object, Plugin, Request, child, list};

/// The plugin.
pub struct RuntimeClass;

impl RuntimeClass {
    fn find(request: &Request<'_>, pod: &Object, cluster: &dyn Cluster) -> Result<Option<Value>, Status> {
        let name = pod.get("spec").and_then(|s| s["runtimeClassName"].as_str());
        let Some(name) = name.filter(|_| request.creates_pod()) else { return Ok(None) };
        let found = cluster.get("node.k8s.io", "runtimeclasses", "", name);
        found
            .map(Some)
            .ok_or_else(|| request.forbid(&format!("pod rejected: RuntimeClass \"{name}\" not found")))
    }
}

impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
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
        let Some(class) = Self::find(request, object, cluster)? else { return Ok(()) };
        let spec = child(object, "spec");
        if let Some(fixed) = class["overhead"]["podFixed"].as_object() {
            match spec.get("overhead").and_then(Value::as_object) {
                Some(given) if given != fixed => {
                    let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
                    return Err(request.forbid(why));
                }
                _ => drop(spec.insert("overhead".into(), fixed.clone().into())),
            }
        }
        for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
            let selector = child(spec, "nodeSelector");
            if selector.get(key).is_some_and(|v| v != value) {
                let why = format!(
                    "pod rejected: conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    value.as_str().unwrap_or_default(),
                    selector.get(key).and_then(Value::as_str).unwrap_or_default()
                );
                return Err(request.forbid(&why));
            }
            selector.insert(key.clone(), value.clone());
        }
        for toleration in class["scheduling"]["tolerations"].as_array().into_iter().flatten() {
            let tolerations = list(spec, "tolerations");
            if !tolerations.contains(toleration) {
                tolerations.push(toleration.clone());
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
        let Some(pod) = object.filter(|_| request.creates_pod()) else { return Ok(()) };
        let class = Self::find(request, pod, cluster)?;
        let overhead = pod.get("spec").map(|s| &s["overhead"]).filter(|o| o.is_object());
        match (overhead, class) {
            (Some(_), None) => Err(request.forbid(
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            )),
            (Some(given), Some(class)) if class["overhead"]["podFixed"] != *given => {
                Err(request
                    .forbid("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use meta::UserInfo;
    use serde_json::json;

    use super::*;
    use crate::testing::{Fixed, create};

    #[test]
    fn overhead_and_place_come_from_the_class() {
        let class = json!({"handler": "h", "overhead": {"podFixed": {"cpu": "10m"}},
            "scheduling": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "k"}]}});
        let world = Fixed(vec![("runtimeclasses", "", "kata", class)]);
        let user = UserInfo::anonymous();
        let request = create("pods", "n", &user);
        let admit = |spec: Value| -> Result<Value, String> {
            let mut pod = json!({"spec": spec}).as_object().unwrap().clone();
            RuntimeClass.mutate(&request, &mut pod, None, &world).map_err(|s| s.message)?;
            RuntimeClass.validate(&request, Some(&pod), None, &world).map_err(|s| s.message)?;
            Ok(pod["spec"].clone())
        };
        let spec = admit(json!({"runtimeClassName": "kata"})).unwrap();
        assert_eq!(spec["overhead"], json!({"cpu": "10m"}));
        assert_eq!((&spec["nodeSelector"]["a"], &spec["tolerations"][0]["key"]), (&json!("b"), &json!("k")));
        for (spec, why) in [
            (json!({"runtimeClassName": "no"}), "RuntimeClass \"no\" not found"),
            (json!({"runtimeClassName": "kata", "overhead": {"cpu": "1"}}), "doesn't match"),
            (json!({"overhead": {"cpu": "1"}}), "without corresponding RuntimeClass"),
            (
                json!({"runtimeClassName": "kata", "nodeSelector": {"a": "c"}}),
                "conflict: runtimeClass.scheduling.nodeSelector[a] = b",
            ),
        ] {
            let error = admit(spec).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
