//! What a Job's policies say: whether the failure of a pod is counted, ends the Job or its index, and whether
//! enough indexes have succeeded.

use api::k8s_openapi::api::batch::v1::{
    PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement as ExitCodes, SuccessPolicy,
};
use api::k8s_openapi::api::core::v1::ContainerStatus;
use api::prelude::*;

use super::indexes::Indexes;

/// What the failure of a pod means for its Job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It counts towards the limits.
    Count,
    /// It is as if it had not been.
    Ignore,
    /// The Job has failed, with the reason for people.
    FailJob(String),
    /// The pod's index has failed.
    FailIndex,
}

/// Judges a failed pod: the first rule that matches decides, and what no rule matches counts. Indexes only
/// fail one by one where the Job limits failures per index.
pub fn judge(policy: Option<&PodFailurePolicy>, per_index: bool, pod: &Pod) -> Verdict {
    for (place, rule) in policy.iter().flat_map(|p| p.rules.iter().enumerate()) {
        let why = match (&rule.on_exit_codes, &rule.on_pod_conditions) {
            (Some(codes), _) => exit_of(pod, codes).map(|(name, code)| {
                let pod = format!("{}/{}", pod.namespace(), pod.name());
                format!("Container {name} for pod {pod} failed with exit code {code}")
            }),
            (None, Some(patterns)) => {
                let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
                let matching = conditions.filter(|c| {
                    let wanted = |status: &Option<String>| status.as_deref().unwrap_or("True") == c.status;
                    patterns.iter().any(|p| p.type_ == c.type_ && wanted(&p.status))
                });
                let kind = matching.map(|c| c.type_.as_str()).next();
                kind.map(|kind| format!("Pod {}/{} has condition {kind}", pod.namespace(), pod.name()))
            }
            (None, None) => None,
        };
        match (why, rule.action.as_str()) {
            (Some(why), action @ "FailJob") => {
                return Verdict::FailJob(format!("{why} matching {action} rule at index {place}"));
            }
            (Some(_), "Ignore") => return Verdict::Ignore,
            (Some(_), "Count") => return Verdict::Count,
            (Some(_), "FailIndex") if per_index => return Verdict::FailIndex,
            _ => {}
        }
    }
    Verdict::Count
}

/// The first container whose exit code meets the requirement, and the code.
fn exit_of<'a>(pod: &'a Pod, wanted: &ExitCodes) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let meets = |container: &'a ContainerStatus| {
        let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
        let named = wanted.container_name.as_ref().is_none_or(|name| *name == container.name);
        let listed = wanted.values.contains(&code);
        let holds = match wanted.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        (code != 0 && named && holds).then_some((container.name.as_str(), code))
    };
    let mains = status.container_statuses.iter().flatten();
    mains.chain(status.init_container_statuses.iter().flatten()).find_map(meets)
}

/// The first rule of a success policy that the succeeded indexes meet, in words.
pub fn succeeded(policy: Option<&SuccessPolicy>, completions: i32, done: &Indexes) -> Option<String> {
    if done.is_empty() {
        return None;
    }
    let rules = policy?.rules.iter();
    let met = rules.map(|rule| match &rule.succeeded_indexes {
        Some(text) => {
            let wanted = Indexes::parse(text, completions);
            let have = wanted.overlap(done);
            !wanted.is_empty()
                && (have == wanted.len() || rule.succeeded_count.is_some_and(|count| have >= count))
        }
        None => rule.succeeded_count.is_some_and(|count| done.len() >= count),
    });
    met.enumerate().find(|(_, met)| *met).map(|(place, _)| format!("Matched rules at index {place}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn verdict(rules: Value, per_index: bool) -> Verdict {
        let job = Job::from_value(json!({"metadata": {"name": "j"},
            "spec": {"template": {}, "podFailurePolicy": {"rules": rules}}}))
        .unwrap();
        let exit = |name: &str, code: i32| {
            json!({"name": name, "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": code}}})
        };
        let pod = Pod::from_value(
            json!({"metadata": {"name": "p", "namespace": "n"}, "status": {"phase": "Failed",
            "conditions": [{"type": "DisruptionTarget", "status": "True"}],
            "containerStatuses": [exit("side", 0), exit("main", 42)]}}),
        )
        .unwrap();
        judge(job.spec.unwrap().pod_failure_policy.as_ref(), per_index, &pod)
    }

    #[test]
    fn failures() {
        let codes = |action: &str, operator: &str, values: Value| {
            json!({"action": action,
            "onExitCodes": {"operator": operator, "values": values}})
        };
        let condition = |action: &str| {
            json!({"action": action,
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]})
        };
        let job = |why: &str| Verdict::FailJob(why.into());
        for (rules, per_index, wanted) in [
            (json!([]), false, Verdict::Count),
            (
                json!([codes("FailJob", "In", json!([1, 42]))]),
                false,
                job("Container main for pod n/p failed with exit code 42 matching FailJob rule at index 0"),
            ),
            (json!([codes("FailJob", "In", json!([1]))]), false, Verdict::Count),
            (json!([codes("Ignore", "NotIn", json!([1]))]), false, Verdict::Ignore),
            (
                json!([codes("FailJob", "In", json!([3])), condition("FailJob")]),
                false,
                job("Pod n/p has condition DisruptionTarget matching FailJob rule at index 1"),
            ),
            (json!([condition("Ignore"), codes("FailJob", "In", json!([42]))]), false, Verdict::Ignore),
            (json!([condition("Count"), codes("FailJob", "In", json!([42]))]), false, Verdict::Count),
            (json!([codes("FailIndex", "In", json!([42]))]), true, Verdict::FailIndex),
            (json!([codes("FailIndex", "In", json!([42])), condition("Ignore")]), false, Verdict::Ignore),
        ] {
            assert_eq!(verdict(rules.clone(), per_index), wanted, "{rules}");
        }
        let side = json!([{"action": "Ignore", "onExitCodes": {"containerName": "side", "operator": "NotIn", "values": [1]}}]);
        assert_eq!(verdict(side, false), Verdict::Count, "an exit code of zero matches nothing");
    }

    #[test]
    fn successes() {
        for (rules, done, wanted) in [
            (json!([{"succeededIndexes": "0-2"}]), "0,1", None),
            (json!([{"succeededIndexes": "0-2"}]), "0-4", Some("Matched rules at index 0")),
            (
                json!([{"succeededIndexes": "0-2", "succeededCount": 1}]),
                "2",
                Some("Matched rules at index 0"),
            ),
            (
                json!([{"succeededIndexes": "0"}, {"succeededCount": 2}]),
                "3,4",
                Some("Matched rules at index 1"),
            ),
            (json!([{"succeededCount": 0}]), "", None),
        ] {
            let job = Job::from_value(json!({"metadata": {"name": "j"},
                "spec": {"template": {}, "successPolicy": {"rules": rules}}}))
            .unwrap();
            let policy = job.spec.unwrap().success_policy;
            let met = succeeded(policy.as_ref(), 5, &Indexes::parse(done, 5));
            assert_eq!(met.as_deref(), wanted, "{rules} {done}");
        }
    }
}
