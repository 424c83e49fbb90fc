//! DefaultTolerationSeconds: pods stay five minutes on a node that is not ready or not reachable.

use meta::Status;
use serde_json::json;

use crate::{Cluster, Object, Plugin, Request, child, list};

/// Seconds a pod stays.
const SECONDS: i64 = 300;
/// The taints meant.
const KEYS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// The plugin.
pub struct DefaultSeconds;

impl Plugin for DefaultSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Mutate]
    }

    fn mutate(
        &self,
        request: &Request<'_>,
        object: &mut Object,
        _: Option<&Object>,
        _: &dyn Cluster,
    ) -> Result<(), Status> {
        if !request.creates_pod() {
            return Ok(());
        }
        let tolerations = list(child(object, "spec"), "tolerations");
        for key in KEYS {
            let covered = tolerations.iter().any(|t| {
                let names = t["key"].as_str().unwrap_or_default();
                let effect = t["effect"].as_str().unwrap_or_default();
                (names == key || names.is_empty()) && (effect == "NoExecute" || effect.is_empty())
            });
            if !covered {
                tolerations.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixed, create};
    use meta::UserInfo;
    use serde_json::Value;

    #[test]
    fn own_tolerations_win() {
        let user = UserInfo::anonymous();
        let mut pod = json!({"spec": {"tolerations": [{"key": KEYS[0], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}]}})
            .as_object().unwrap().clone();
        DefaultSeconds.mutate(&create("pods", "a", &user), &mut pod, None, &Fixed::default()).unwrap();
        let seconds: Vec<&Value> =
            pod["spec"]["tolerations"].as_array().unwrap().iter().map(|t| &t["tolerationSeconds"]).collect();
        assert_eq!(seconds, [&json!(2), &json!(300)]);
    }
}
