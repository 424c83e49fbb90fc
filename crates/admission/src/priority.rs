//! Priority: resolves a pod's priority class into its number and preemption policy.

use meta::Status;
use serde_json::{Value, json};

use crate::{Cluster, Object, Plugin, Request, child};

const GROUP: &str = "scheduling.k8s.io";

/// The plugin.
pub struct Priority;

impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Mutate]
    }

    fn mutate(
        &self,
        request: &Request<'_>,
        object: &mut Object,
        _: Option<&Object>,
        cluster: &dyn Cluster,
    ) -> Result<(), Status> {
        if !request.creates_pod() {
            return Ok(());
        }
        let spec = child(object, "spec");
        let name = spec.get("priorityClassName").and_then(Value::as_str).unwrap_or_default().to_owned();
        let class = if name.is_empty() {
            // The default class with the lowest value, should there be several.
            (cluster.all(GROUP, "priorityclasses").into_iter())
                .filter(|c| c["globalDefault"] == true)
                .min_by_key(|c| c["value"].as_i64().unwrap_or(0))
        } else {
            let found = cluster.get(GROUP, "priorityclasses", "", &name);
            Some(
                found
                    .ok_or_else(|| request.forbid(&format!("no PriorityClass with name {name} was found")))?,
            )
        };
        let (value, policy) = match &class {
            Some(c) => {
                spec.insert("priorityClassName".into(), c["metadata"]["name"].clone());
                (
                    c["value"].as_i64().unwrap_or(0),
                    c["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority"),
                )
            }
            None => (0, "PreemptLowerPriority"),
        };
        let conflict = |field: &str| {
            request.forbid(&format!("the integer value of {field} must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"))
        };
        match spec.get("priority").and_then(Value::as_i64) {
            Some(given) if given != value => return Err(conflict("priority")),
            _ => spec.insert("priority".into(), json!(value)),
        };
        if !spec.contains_key("preemptionPolicy") {
            spec.insert("preemptionPolicy".into(), policy.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixed, create};
    use meta::UserInfo;

    fn priority(spec: Value, classes: Fixed) -> Result<i64, Status> {
        let user = UserInfo::anonymous();
        let mut pod = json!({"spec": spec}).as_object().unwrap().clone();
        Priority.mutate(&create("pods", "a", &user), &mut pod, None, &classes)?;
        Ok(pod["spec"]["priority"].as_i64().unwrap())
    }

    fn classes() -> Fixed {
        Fixed(vec![
            ("priorityclasses", "", "high", json!({"metadata": {"name": "high"}, "value": 100})),
            (
                "priorityclasses",
                "",
                "usual",
                json!({"metadata": {"name": "usual"}, "value": 5, "globalDefault": true}),
            ),
        ])
    }

    #[test]
    fn classes_give_numbers() {
        assert_eq!(priority(json!({}), Fixed::default()).unwrap(), 0);
        assert_eq!(priority(json!({}), classes()).unwrap(), 5);
        assert_eq!(priority(json!({"priorityClassName": "high"}), classes()).unwrap(), 100);
        assert!(
            priority(json!({"priorityClassName": "none"}), classes())
                .unwrap_err()
                .message
                .contains("no PriorityClass with name none was found")
        );
        assert_eq!(priority(json!({"priority": 7}), classes()).unwrap_err().code, 403);
    }
}
