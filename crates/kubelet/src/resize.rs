//! In-place resize (KEP-1287): what a pod is allocated, whether a changed request fits, and what has to be done to
//! containers that run with other values than they are allocated.
//!
//! The worker sees the API's pod through its [`Allocation`]: a change of resources becomes part of the pod only
//! once the node has room for it. Until then the pod says why (`PodResizePending`).

use std::collections::BTreeMap;
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::ResourceRequirements;
use api::prelude::*;
use cri::{ContainerResources, ContainerState};

use crate::observed::Observed;
use crate::plan::Kill;
use crate::resources::{self, Amounts};
use crate::spec::{self, Role};

/// Resources by container.
pub type Allocation = BTreeMap<String, ResourceRequirements>;

/// Resources that can change while a container runs.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// What becomes of a request for other resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// There is room.
    Fits,
    /// There is room on the node, but others have it now.
    Deferred(String),
    /// There will never be room.
    Infeasible(String),
}

/// What has to be done to a running container.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// New values for its cgroup.
    Update {
        /// Id in the runtime.
        id: String,
        /// Name.
        name: String,
        /// The values.
        resources: ContainerResources,
    },
    /// It asks to be restarted for such a change.
    Restart(Kill),
}

/// How a pod's resize stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Reason and message of `PodResizePending`.
    pub pending: Option<(String, String)>,
    /// Message of `PodResizeInProgress`; empty while all goes well.
    pub in_progress: Option<String>,
}

fn is_resizable(role: Role) -> bool {
    matches!(role, Role::Regular | Role::Sidecar)
}

/// What the spec asks for.
pub fn of_spec(pod: &Pod) -> Allocation {
    let all = spec::containers(pod);
    let resizable = all.iter().filter(|(role, _)| is_resizable(*role));
    resizable.map(|(_, c)| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect()
}

/// What a pod that runs already was allocated: as its status says, where that knows the container.
pub fn of_status(pod: &Pod) -> Allocation {
    let mut allocation = of_spec(pod);
    let Some(status) = &pod.status else { return allocation };
    let statuses = [&status.container_statuses, &status.init_container_statuses];
    for status in statuses.into_iter().flatten().flatten() {
        let Some(own) = allocation.get_mut(&status.name) else { continue };
        let Some(known) = &status.resources else { continue };
        own.limits = known.limits.clone();
        own.requests = status.allocated_resources.clone().or_else(|| known.requests.clone());
    }
    allocation
}

/// The pod with the resources that it is allocated.
pub fn allocated(pod: &Arc<Pod>, allocation: &Allocation) -> Arc<Pod> {
    if of_spec(pod) == *allocation {
        return pod.clone();
    }
    let mut changed = Pod::clone(pod);
    let spec = changed.spec.get_or_insert_default();
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        if let Some(resources) = allocation.get(&container.name) {
            container.resources = Some(resources.clone());
        }
    }
    Arc::new(changed)
}

/// Whether the node has room for a pod beside the others on it.
pub fn judge(pod: &Pod, allocatable: &Amounts, others: &[Arc<Pod>]) -> Judgement {
    let requested = resources::pod_total(pod, resources::requests);
    for name in RESIZABLE {
        let wanted = requested.get(name).copied().unwrap_or(0);
        let capacity = allocatable.get(name).copied().unwrap_or(0);
        if wanted > capacity {
            return Judgement::Infeasible(format!(
                "Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {capacity}"
            ));
        }
    }
    for name in RESIZABLE {
        let wanted = requested.get(name).copied().unwrap_or(0);
        let capacity = allocatable.get(name).copied().unwrap_or(0);
        let of = |other: &Arc<Pod>| {
            resources::pod_total(other, resources::requests).get(name).copied().unwrap_or(0)
        };
        let used: i64 = others.iter().map(of).sum();
        if wanted + used > capacity {
            return Judgement::Deferred(format!(
                "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
            ));
        }
    }
    Judgement::Fits
}

/// The values that a resize changes.
fn values(r: &ContainerResources) -> (u64, i64, i64) {
    (r.cpu_shares, r.cpu_quota_us, r.memory_limit_bytes)
}

/// What has to be done to running containers so that they have what the pod is allocated.
pub fn actions(pod: &Pod, observed: &Observed, memory_capacity: i64) -> Vec<Action> {
    let mut actions = Vec::new();
    for (role, container) in spec::containers(pod) {
        let running = observed.latest(&container.name).filter(|s| s.state == ContainerState::Running);
        let Some(status) = running.filter(|_| is_resizable(role)) else { continue };
        let wanted = resources::container_resources(pod, &container, memory_capacity);
        let (is, to) = (values(&status.resources), values(&wanted));
        if is == to {
            continue;
        }
        let restarts = |resource: &str| {
            let mut policies = container.resize_policy.iter().flatten();
            policies.any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
        };
        let (cpu, memory) = ((is.0, is.1) != (to.0, to.1), is.2 != to.2);
        actions.push(match (cpu && restarts("cpu")) || (memory && restarts("memory")) {
            true => Action::Restart(Kill {
                id: status.id.clone(),
                name: container.name.clone(),
                message: format!("Container {} resize requires restart", container.name),
            }),
            false => {
                Action::Update { id: status.id.clone(), name: container.name.clone(), resources: wanted }
            }
        });
    }
    actions
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::tests::{container as running, observe, sandbox};

    fn pod(requests: Value, status: Value) -> Arc<Pod> {
        Arc::new(
            Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
                "spec": {"containers": [{"name": "a", "resources": {"requests": requests},
                    "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]}]},
                "status": {"containerStatuses": [status]}}))
            .unwrap(),
        )
    }

    fn status(cpu: &str) -> Value {
        json!({"name": "a", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
            "allocatedResources": {"cpu": cpu}, "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn a_pod_keeps_what_it_was_allocated() {
        let pod = pod(json!({"cpu": "2"}), status("1"));
        let before = of_status(&pod);
        let seen = allocated(&pod, &before);
        assert_eq!(resources::pod_total(&seen, resources::requests)["cpu"], 1000);
        assert!(Arc::ptr_eq(&allocated(&pod, &of_spec(&pod)), &pod));
    }

    #[test]
    fn room_on_the_node() {
        let allocatable = Amounts::from([("cpu".into(), 4000), ("memory".into(), 1 << 30)]);
        let other = pod(json!({"cpu": "3"}), status("3"));
        for (cpu, expect) in [
            ("1", Judgement::Fits),
            (
                "2",
                Judgement::Deferred(
                    "Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000"
                        .into(),
                ),
            ),
            (
                "5",
                Judgement::Infeasible(
                    "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000".into(),
                ),
            ),
        ] {
            let wants = pod(json!({"cpu": cpu}), status("1"));
            assert_eq!(judge(&wants, &allocatable, std::slice::from_ref(&other)), expect);
        }
    }

    #[test]
    fn containers_get_new_values_or_are_restarted() {
        let wanted = pod(json!({"cpu": "500m"}), status("1"));
        let mut container = running("a", "s", 0, None);
        container.resources =
            resources::container_resources(&wanted, &wanted.spec.as_ref().unwrap().containers[0], 1 << 30);
        let same = observe(vec![sandbox("s", 0, true)], vec![container.clone()]);
        assert!(actions(&wanted, &same, 1 << 30).is_empty());
        let mut slower = container.clone();
        slower.resources.cpu_shares = 2;
        let actions_of = |c| actions(&wanted, &observe(vec![sandbox("s", 0, true)], vec![c]), 1 << 30);
        assert!(
            matches!(&actions_of(slower)[..], [Action::Update { resources, .. }] if resources.cpu_shares == 512)
        );
        let mut bigger = container;
        bigger.resources.memory_limit_bytes = 1 << 20;
        assert!(
            matches!(&actions_of(bigger)[..], [Action::Restart(kill)] if kill.message.ends_with("requires restart"))
        );
    }
}
