//! The status of a pod, as upstream's kubelet reports it: a pure function of spec and observation.

use std::net::IpAddr;

use api::k8s_openapi::api::core::v1::{
    ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus as ApiStatus, ContainerUser, HostIP, LinuxContainerUser, PodCondition, PodIP,
    VolumeMountStatus,
};
use api::prelude::*;
use cri::{ContainerState, ContainerStatus};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::observed::{Memories, Memory, Observed, Waiting, restart_count};
use crate::resources;
use crate::spec::{self, Role};

/// A pod that was refused or ended for a reason of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Reason, such as `OutOfcpu`, `Evicted`, `DeadlineExceeded`.
    pub reason: String,
    /// Message.
    pub message: String,
    /// Grace its containers are ended with, if not the pod's own.
    pub grace_seconds: Option<i64>,
    /// It is the node's need that ends it.
    pub disruption: bool,
}

/// Everything a status is made of beside the pod.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// What the runtime reports.
    pub observed: &'a Observed,
    /// What the kubelet remembers.
    pub memories: &'a Memories,
    /// The runtime; its name is the scheme of container ids.
    pub runtime: &'a cri::RuntimeInfo,
    /// Addresses of the node.
    pub host_ips: &'a [IpAddr],
    /// Set when the pod failed as a whole.
    pub verdict: Option<&'a Verdict>,
    /// The pod has been told to end and nothing of it runs any more.
    pub terminated: bool,
    /// How a change of its resources stands.
    pub resize: &'a crate::resize::Progress,
    /// When the kubelet first saw it.
    pub start_time: Timestamp,
    /// Now.
    pub now: Timestamp,
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned()).filter(|value| !value.is_empty())
}

/// API times have whole seconds.
fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

fn container_id(runtime: &str, status: &ContainerStatus) -> String {
    format!("{runtime}://{}", status.id)
}

fn terminated(runtime: &str, status: &ContainerStatus, memory: Option<&Memory>) -> ContainerStateTerminated {
    let exit = status.exit.as_ref();
    let from_process = memory.and_then(|memory| memory.messages.get(&status.id));
    ContainerStateTerminated {
        exit_code: exit.map_or(137, |exit| exit.code),
        reason: Some(exit.map_or("ContainerStatusUnknown".to_owned(), |exit| exit.reason.clone())),
        message: from_process
            .cloned()
            .filter(|m| !m.is_empty())
            .or_else(|| exit.and_then(|e| text(&e.message))),
        started_at: status.started_at.map(time),
        finished_at: exit.map(|exit| time(exit.finished_at)),
        container_id: Some(container_id(runtime, status)),
        signal: None,
    }
}

fn waiting(waiting: &Waiting) -> ApiState {
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: text(&waiting.reason),
            message: text(&waiting.message),
        }),
        ..ApiState::default()
    }
}

fn ended(runtime: &str, status: &ContainerStatus, memory: Option<&Memory>) -> ApiState {
    ApiState { terminated: Some(terminated(runtime, status, memory)), ..ApiState::default() }
}

/// The status of one container.
fn container_status(role: Role, container: &Container, inputs: &Inputs<'_>, pending: &Waiting) -> ApiStatus {
    let memory = inputs.memories.get(&container.name);
    let latest = inputs.observed.latest(&container.name);
    let previous = inputs.observed.previous(&container.name);
    let remembered = memory.and_then(|memory| memory.waiting.as_ref());
    let mut state;
    let mut last_state = previous
        .filter(|p| p.state == ContainerState::Exited)
        .map(|p| ended(&inputs.runtime.name, p, memory));
    match latest.map(|status| (status, status.state)) {
        None => state = Some(waiting(remembered.unwrap_or(pending))),
        Some((status, ContainerState::Running)) => {
            let running = ContainerStateRunning { started_at: status.started_at.map(time) };
            state = Some(ApiState { running: Some(running), ..ApiState::default() });
        }
        Some((_, ContainerState::Created)) => state = Some(waiting(remembered.unwrap_or(pending))),
        Some((status, ContainerState::Exited | ContainerState::Unknown)) => match remembered {
            // It is to run again but cannot yet: its end becomes the last state.
            Some(remembered) if !inputs.terminated => {
                last_state = Some(ended(&inputs.runtime.name, status, memory));
                state = Some(waiting(remembered));
            }
            _ => state = Some(ended(&inputs.runtime.name, status, memory)),
        },
    }
    if inputs.terminated
        && latest.is_none_or(|status| status.state == ContainerState::Created)
        && inputs.verdict.is_none()
    {
        state = state.filter(|state| state.waiting.is_none()).or_else(|| Some(never_ran(latest.is_some())));
    }
    let running = latest.filter(|status| status.state == ContainerState::Running);
    let probes = running.and_then(|status| memory?.probes.get(&status.id));
    let succeeded = latest.and_then(|status| status.exit.as_ref()).is_some_and(|exit| exit.code == 0);
    let ready = match role {
        Role::Init => succeeded,
        Role::Ephemeral => false,
        _ => probes.is_some_and(|probes| probes.ready),
    };
    let started = match role {
        Role::Init | Role::Ephemeral => running.is_some(),
        _ => probes.is_some_and(|probes| probes.started),
    };
    let resources = container.resources.clone().filter(|_| role != Role::Ephemeral && latest.is_some());
    ApiStatus {
        name: container.name.clone(),
        image: latest.map(|s| s.image.clone()).or_else(|| container.image.clone()).unwrap_or_default(),
        image_id: latest.map(|status| status.image_ref.clone()).unwrap_or_default(),
        container_id: latest.map(|status| container_id(&inputs.runtime.name, status)),
        restart_count: latest.map_or(0, |status| restart_count(status) as i32),
        ready,
        started: (role != Role::Ephemeral).then_some(started),
        state,
        last_state: Some(last_state.unwrap_or_default()),
        allocated_resources: resources.as_ref().and_then(|resources| resources.requests.clone()),
        resources,
        user: running.and_then(|status| status.user.as_ref()).map(user),
        volume_mounts: volume_mounts(container, inputs.runtime.recursive_readonly_mounts),
        ..ApiStatus::default()
    }
}

fn user((uid, gid, groups): &(u32, u32, Vec<u32>)) -> ContainerUser {
    let groups: Vec<i64> = groups.iter().map(|group| i64::from(*group)).collect();
    ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: i64::from(*uid),
            gid: i64::from(*gid),
            supplemental_groups: Some(groups).filter(|groups| !groups.is_empty()),
        }),
    }
}

fn volume_mounts(container: &Container, recursive: bool) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.iter().flatten().map(|mount| {
        let read_only = mount.read_only == Some(true);
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| match mount.recursive_read_only.as_deref() {
                Some("Enabled") => "Enabled".to_owned(),
                Some("IfPossible") if recursive => "Enabled".to_owned(),
                _ => "Disabled".to_owned(),
            }),
            ..VolumeMountStatus::default()
        }
    });
    Some(mounts.collect::<Vec<_>>()).filter(|mounts| !mounts.is_empty())
}

/// The end of a container of a pod that was ended before it ran.
fn never_ran(created: bool) -> ApiState {
    let reason = if created { "ContainerStatusUnknown" } else { "ContainerCannotRun" };
    let terminated = ContainerStateTerminated {
        exit_code: 137,
        reason: Some(reason.into()),
        message: Some("The container could not be located when the pod was terminated".into()),
        ..ContainerStateTerminated::default()
    };
    ApiState { terminated: Some(terminated), ..ApiState::default() }
}

/// Whether initialisation is complete, with the init containers that are not done.
fn initialization(pod: &Pod, init: &[ApiStatus]) -> (bool, Vec<String>) {
    let incomplete: Vec<String> = init
        .iter()
        .filter(|status| {
            let sidecar = spec::find(pod, &status.name).is_some_and(|(role, _)| role == Role::Sidecar);
            if sidecar { status.started != Some(true) } else { !status.ready }
        })
        .map(|status| status.name.clone())
        .collect();
    (incomplete.is_empty(), incomplete)
}

/// The phase.
fn phase(pod: &Pod, init: &[ApiStatus], regular: &[ApiStatus], inputs: &Inputs<'_>) -> &'static str {
    if inputs.verdict.is_some() {
        return "Failed";
    }
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let terminated = |status: &ApiStatus| status.state.as_ref().and_then(|state| state.terminated.clone());
    let failed_init = init.iter().any(|status| {
        let sidecar = spec::find(pod, &status.name).is_some_and(|(role, _)| role == Role::Sidecar);
        !sidecar && terminated(status).is_some_and(|end| end.exit_code != 0) && policy == "Never"
    });
    if failed_init {
        return "Failed";
    }
    let (mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in regular {
        let state = status.state.clone().unwrap_or_default();
        if state.running.is_some() {
            running += 1;
        } else if let Some(end) = state.terminated {
            stopped += 1;
            succeeded += usize::from(end.exit_code == 0);
        } else if status.last_state.as_ref().is_some_and(|last| last.terminated.is_some()) {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    // A pod that was told to end keeps nothing alive: what was stopped has ended for good.
    let final_end = inputs.terminated && (stopped > 0 || waiting > 0) && running == 0;
    if final_end {
        return if succeeded == regular.len() { "Succeeded" } else { "Failed" };
    }
    let (initialized, _) = initialization(pod, init);
    if !initialized && running + stopped == 0 {
        return "Pending";
    }
    match (waiting, running, stopped) {
        (1.., _, _) | (0, 0, 0) => "Pending",
        (0, 1.., _) => "Running",
        // What ended is not the end while sidecars are still being stopped.
        _ if policy == "Always" || inputs.observed.running().next().is_some() => "Running",
        _ if stopped == succeeded => "Succeeded",
        _ if policy == "Never" => "Failed",
        _ => "Running",
    }
}

fn condition(kind: &str, holds: bool, reason: &str, message: String) -> PodCondition {
    PodCondition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: text(reason),
        message: text(&message),
        ..PodCondition::default()
    }
}

/// Conditions of a resize: they are there as long as it is.
const RESIZE_PENDING: &str = "PodResizePending";
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

/// The conditions a kubelet sets.
fn conditions(pod: &Pod, status: &PodStatus, inputs: &Inputs<'_>) -> Vec<PodCondition> {
    let phase = status.phase.as_deref().unwrap_or_default();
    let init = status.init_container_statuses.as_deref().unwrap_or_default();
    let regular = status.container_statuses.as_deref().unwrap_or_default();
    let (initialized, incomplete) = initialization(pod, init);
    // Once a regular container has run, initialisation is over, whatever has become of sidecars since.
    let begun = |state: &Option<ApiState>| {
        state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    let initialized =
        initialized || regular.iter().any(|status| begun(&status.state) || begun(&status.last_state));
    let list = |names: &[String]| format!("[{}]", names.join(" "));
    let initialized = match (phase, initialized) {
        ("Succeeded", _) => condition("Initialized", true, "PodCompleted", String::new()),
        (_, true) => condition("Initialized", true, "", String::new()),
        (_, false) => {
            let message = format!("containers with incomplete status: {}", list(&incomplete));
            condition("Initialized", false, "ContainersNotInitialized", message)
        }
    };
    let sidecars =
        init.iter().filter(|s| spec::find(pod, &s.name).is_some_and(|(role, _)| role == Role::Sidecar));
    let unready: Vec<String> =
        sidecars.chain(regular).filter(|status| !status.ready).map(|status| status.name.clone()).collect();
    let containers_ready = match phase {
        "Succeeded" => condition("ContainersReady", false, "PodCompleted", String::new()),
        "Failed" => condition("ContainersReady", false, "PodFailed", String::new()),
        _ if unready.is_empty() && !regular.is_empty() => {
            condition("ContainersReady", true, "", String::new())
        }
        _ => {
            let message = format!("containers with unready status: {}", list(&unready));
            condition("ContainersReady", false, "ContainersNotReady", message)
        }
    };
    let mut ready = PodCondition { type_: "Ready".into(), ..containers_ready.clone() };
    if ready.status == "True" {
        let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_ref()).into_iter().flatten();
        let existing =
            pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let open = gates.filter_map(|gate| {
            match existing.iter().find(|condition| condition.type_ == gate.condition_type) {
                None => Some(format!(
                    "corresponding condition of pod readiness gate {:?} does not exist.",
                    gate.condition_type
                )),
                Some(found) if found.status != "True" => Some(format!(
                    "the status of pod readiness gate {:?} is not \"True\", but {}",
                    gate.condition_type, found.status
                )),
                Some(_) => None,
            }
        });
        let open: Vec<String> = open.collect();
        if !open.is_empty() {
            ready = condition("Ready", false, "ReadinessGatesNotReady", open.join(", "));
        }
    }
    let has_sandbox = inputs
        .observed
        .ready_sandbox()
        .is_some_and(|sandbox| !sandbox.ips.is_empty() || spec::spec(pod).host_network == Some(true));
    let sandbox = condition("PodReadyToStartContainers", has_sandbox, "", String::new());
    let scheduled = condition("PodScheduled", true, "", String::new());
    let mut all = vec![sandbox, initialized, ready, containers_ready, scheduled];
    if let Some((reason, message)) = &inputs.resize.pending {
        all.push(condition(RESIZE_PENDING, true, reason, message.clone()));
    }
    if let Some(problem) = &inputs.resize.in_progress {
        let reason = if problem.is_empty() { "" } else { "Error" };
        all.push(condition(RESIZE_IN_PROGRESS, true, reason, problem.clone()));
    }
    if let Some(verdict) = inputs.verdict.filter(|verdict| verdict.disruption) {
        all.push(condition("DisruptionTarget", true, "TerminationByKubelet", verdict.message.clone()));
    }
    all
}

/// Keeps transition times of conditions that did not change, and conditions that others set.
fn merge_conditions(new: Vec<PodCondition>, pod: &Pod, now: Timestamp) -> Vec<PodCondition> {
    let old = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let generation = pod.metadata.generation;
    new.into_iter()
        .map(|mut condition| {
            let before = old.iter().find(|before| before.type_ == condition.type_);
            let unchanged = before.filter(|before| before.status == condition.status);
            condition.last_transition_time =
                unchanged.and_then(|before| before.last_transition_time.clone()).or_else(|| Some(time(now)));
            condition.observed_generation = generation;
            condition
        })
        .collect()
}

/// The whole status.
pub fn pod_status(pod: &Pod, inputs: &Inputs<'_>) -> PodStatus {
    let all = spec::containers(pod);
    let has_init = all.iter().any(|(role, _)| matches!(role, Role::Init | Role::Sidecar));
    let mut status = PodStatus::default();
    let creating = Waiting::new("ContainerCreating", "");
    let initializing = Waiting::new("PodInitializing", "");
    let of = |wanted: &[Role], pending: &Waiting| -> Vec<ApiStatus> {
        let chosen = all.iter().filter(|(role, _)| wanted.contains(role));
        chosen.map(|(role, container)| container_status(*role, container, inputs, pending)).collect()
    };
    let init = of(&[Role::Init, Role::Sidecar], &initializing);
    let regular = of(&[Role::Regular], if has_init { &initializing } else { &creating });
    let ephemeral = of(&[Role::Ephemeral], &creating);
    status.phase = Some(phase(pod, &init, &regular, inputs).into());
    let some = |list: Vec<ApiStatus>| Some(list).filter(|list| !list.is_empty());
    // A pod that was refused has no containers to speak of.
    let refused = inputs.verdict.is_some()
        && inputs.observed.containers.is_empty()
        && inputs.observed.sandboxes.is_empty();
    if !refused {
        status.init_container_statuses = some(init);
        status.container_statuses = some(regular);
        status.ephemeral_container_statuses = some(ephemeral);
    }
    if let Some(verdict) = inputs.verdict {
        status.reason = text(&verdict.reason);
        status.message = text(&verdict.message);
    }
    status.qos_class = Some(resources::qos(pod).name().into());
    status.start_time = Some(
        pod.status
            .as_ref()
            .and_then(|status| status.start_time.clone())
            .unwrap_or_else(|| time(inputs.start_time)),
    );
    status.observed_generation = pod.metadata.generation;
    set_addresses(pod, &mut status, inputs);
    if !refused {
        status.conditions = Some(merge_conditions(conditions(pod, &status, inputs), pod, inputs.now));
    }
    status
}

fn set_addresses(pod: &Pod, status: &mut PodStatus, inputs: &Inputs<'_>) {
    let texts = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>();
    let hosts = texts(inputs.host_ips);
    status.host_ip = hosts.first().cloned();
    status.host_ips =
        Some(hosts.into_iter().map(|ip| HostIP { ip }).collect()).filter(|l: &Vec<HostIP>| !l.is_empty());
    let pods = if spec::spec(pod).host_network == Some(true) {
        texts(inputs.host_ips)
    } else {
        match inputs.observed.sandboxes.first() {
            Some(sandbox) => texts(&sandbox.ips),
            None => Vec::new(),
        }
    };
    let old = pod.status.as_ref().and_then(|status| status.pod_ips.clone());
    if pods.is_empty() {
        // The address is kept in the status of a pod that has ended.
        status.pod_ip = old.as_ref().and_then(|ips| ips.first()).map(|ip| ip.ip.clone());
        status.pod_ips = old;
    } else {
        status.pod_ip = pods.first().cloned();
        status.pod_ips = Some(pods.into_iter().map(|ip| PodIP { ip }).collect());
    }
}

/// The strategic merge patch that turns `old` into `new`; `None` when nothing changes. Conditions merge by
/// type, so those that others set are left alone; addresses that are gone are deleted by name.
pub fn status_patch(pod: &Pod, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let (Ok(Value::Object(before)), Ok(Value::Object(mut after))) =
        (serde_json::to_value(old), serde_json::to_value(new))
    else {
        return None;
    };
    let conditions_of = |status: &PodStatus| status.conditions.clone().unwrap_or_default();
    let old_conditions = conditions_of(old);
    let changed: Vec<PodCondition> =
        conditions_of(new).into_iter().filter(|condition| !old_conditions.contains(condition)).collect();
    after.remove("conditions");
    let mut patch = serde_json::Map::new();
    for (key, value) in &after {
        if before.get(key) != Some(value) {
            patch.insert(key.clone(), value.clone());
        }
    }
    // Only what a kubelet owns may be taken away.
    for key in [
        "message",
        "reason",
        "initContainerStatuses",
        "containerStatuses",
        "ephemeralContainerStatuses",
        "podIP",
        "podIPs",
    ] {
        if before.contains_key(key) && !after.contains_key(key) {
            patch.insert(key.to_owned(), Value::Null);
        }
    }
    for key in ["podIPs", "hostIPs"] {
        let Some(Value::Array(list)) = patch.get_mut(key) else { continue };
        let gone = before.get(key).and_then(Value::as_array).into_iter().flatten();
        let gone: Vec<Value> = gone.filter(|ip| !list.contains(ip)).cloned().collect();
        list.extend(gone.into_iter().map(|ip| json!({"$patch": "delete", "ip": ip["ip"]})));
    }
    let kept = conditions_of(new);
    let over: Vec<&PodCondition> = (old_conditions.iter())
        .filter(|c| [RESIZE_PENDING, RESIZE_IN_PROGRESS].contains(&c.type_.as_str()))
        .filter(|c| !kept.iter().any(|k| k.type_ == c.type_))
        .collect();
    if !changed.is_empty() || !over.is_empty() {
        let mut list: Vec<Value> =
            over.iter().map(|c| json!({"$patch": "delete", "type": c.type_})).collect();
        for condition in changed {
            let mut value = serde_json::to_value(&condition).unwrap_or_default();
            let before = old_conditions.iter().find(|before| before.type_ == condition.type_);
            for (key, was, is) in [
                ("reason", before.and_then(|b| b.reason.as_ref()), condition.reason.as_ref()),
                ("message", before.and_then(|b| b.message.as_ref()), condition.message.as_ref()),
            ] {
                if was.is_some() && is.is_none() {
                    value[key] = Value::Null;
                }
            }
            list.push(value);
        }
        patch.insert("conditions".into(), Value::Array(list));
    }
    (!patch.is_empty()).then(|| json!({"metadata": {"uid": pod.uid()}, "status": patch}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::ProbeState;
    use crate::plan::tests::{at, container, observe, pod, sandbox};

    fn runtime() -> &'static cri::RuntimeInfo {
        static RUNTIME: std::sync::LazyLock<cri::RuntimeInfo> =
            std::sync::LazyLock::new(|| cri::RuntimeInfo {
                name: "ferry".into(),
                recursive_readonly_mounts: true,
                ..cri::RuntimeInfo::default()
            });
        &RUNTIME
    }

    fn inputs<'a>(observed: &'a Observed, memories: &'a Memories) -> Inputs<'a> {
        Inputs {
            observed,
            memories,
            runtime: runtime(),
            host_ips: &[],
            verdict: None,
            terminated: false,
            resize: &crate::resize::Progress { pending: None, in_progress: None },
            start_time: at(0),
            now: at(100),
        }
    }

    fn ready(names: &[(&str, &str)]) -> Memories {
        let state = ProbeState { ready: true, started: true, must_restart: None };
        let memory =
            |id: &str| Memory { probes: [(id.to_owned(), state.clone())].into(), ..Memory::default() };
        names.iter().map(|(name, id)| (name.to_string(), memory(id))).collect()
    }

    fn summary(status: &PodStatus) -> String {
        let conditions = status.conditions.iter().flatten();
        let conditions: Vec<String> = conditions
            .map(|c| {
                format!(
                    "{}={}{}",
                    c.type_,
                    c.status,
                    c.reason.as_ref().map(|r| format!("({r})")).unwrap_or_default()
                )
            })
            .collect();
        format!("{} {}", status.phase.as_deref().unwrap_or_default(), conditions.join(" "))
    }

    #[test]
    fn the_life_of_a_pod() {
        let pod = pod("Always", json!([]), &["a"]);
        let up = vec![sandbox("s", 0, true)];
        let none = Memories::new();
        let table = [
            (
                observe(vec![], vec![]),
                none.clone(),
                "Pending PodReadyToStartContainers=False Initialized=True Ready=False(ContainersNotReady) ContainersReady=False(ContainersNotReady) PodScheduled=True",
            ),
            (
                observe(up.clone(), vec![container("a", "s", 0, None)]),
                none.clone(),
                "Running PodReadyToStartContainers=True Initialized=True Ready=False(ContainersNotReady) ContainersReady=False(ContainersNotReady) PodScheduled=True",
            ),
            (
                observe(up.clone(), vec![container("a", "s", 0, None)]),
                ready(&[("a", "a0")]),
                "Running PodReadyToStartContainers=True Initialized=True Ready=True ContainersReady=True PodScheduled=True",
            ),
            (
                observe(up, vec![container("a", "s", 0, Some(1))]),
                none,
                "Running PodReadyToStartContainers=True Initialized=True Ready=False(ContainersNotReady) ContainersReady=False(ContainersNotReady) PodScheduled=True",
            ),
        ];
        for (observed, memories, expected) in table {
            assert_eq!(summary(&pod_status(&pod, &inputs(&observed, &memories))), expected);
        }
    }

    #[test]
    fn ends() {
        let none = Memories::new();
        let cases = [
            ("Never", vec![0], "Succeeded"),
            ("Never", vec![1], "Failed"),
            ("Never", vec![0, 1], "Failed"),
            ("OnFailure", vec![0, 0], "Succeeded"),
            ("OnFailure", vec![0, 1], "Running"),
            ("Always", vec![0], "Running"),
        ];
        for (policy, codes, expected) in cases {
            let names = &["a", "b"][..codes.len()];
            let pod = pod(policy, json!([]), names);
            let containers =
                names.iter().zip(&codes).map(|(name, code)| container(name, "s", 0, Some(*code)));
            let observed = observe(vec![sandbox("s", 0, true)], containers.collect());
            let status = pod_status(&pod, &inputs(&observed, &none));
            assert_eq!(status.phase.as_deref(), Some(expected), "{policy} {codes:?}");
        }
        let pod = pod("Always", json!([]), &["a"]);
        let observed = observe(vec![sandbox("s", 0, false)], vec![container("a", "s", 0, Some(0))]);
        let over = Inputs { terminated: true, ..inputs(&observed, &none) };
        assert_eq!(summary(&pod_status(&pod, &over)).split(' ').next(), Some("Succeeded"));
    }

    #[test]
    fn initialisation_shows() {
        let pod = pod("Always", json!([{"name": "i"}]), &["a"]);
        let observed = observe(vec![sandbox("s", 0, true)], vec![container("i", "s", 0, None)]);
        let none = Memories::new();
        let status = pod_status(&pod, &inputs(&observed, &none));
        assert!(summary(&status).starts_with("Pending "));
        let waiting =
            status.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
        let initialized = &status.conditions.as_ref().unwrap()[1];
        assert_eq!(initialized.message.as_deref(), Some("containers with incomplete status: [i]"));
        assert_eq!(initialized.reason.as_deref(), Some("ContainersNotInitialized"));
    }

    #[test]
    fn a_crash_loop_shows_the_last_end() {
        let pod = pod("Always", json!([]), &["a"]);
        let mut memories = Memories::new();
        memories.insert(
            "a".into(),
            Memory {
                waiting: Some(Waiting::new(
                    "CrashLoopBackOff",
                    "back-off 10s restarting failed container=a pod=p_n(u)",
                )),
                messages: [("a2".to_owned(), "bye".to_owned())].into(),
                ..Memory::default()
            },
        );
        let observed = observe(vec![sandbox("s", 0, true)], vec![container("a", "s", 2, Some(3))]);
        let status = pod_status(&pod, &inputs(&observed, &memories));
        let a = &status.container_statuses.unwrap()[0];
        assert_eq!(a.restart_count, 2);
        assert_eq!(
            a.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(),
            Some("CrashLoopBackOff")
        );
        let last = a.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!((last.exit_code, last.message.as_deref()), (3, Some("bye")));
        assert_eq!(last.container_id.as_deref(), Some("ferry://a2"));
        assert_eq!(status.phase.as_deref(), Some("Running"));
    }

    #[test]
    fn refusals() {
        let pod = pod("Always", json!([]), &["a"]);
        let verdict =
            Verdict { reason: "OutOfcpu".into(), message: "Pod was rejected".into(), ..Verdict::default() };
        let (observed, none) = (Observed::default(), Memories::new());
        let status = pod_status(&pod, &Inputs { verdict: Some(&verdict), ..inputs(&observed, &none) });
        assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("OutOfcpu")));
        assert!(status.container_statuses.is_none());
    }

    #[test]
    fn patches_are_minimal() {
        let pod = pod("Always", json!([]), &["a"]);
        let observed = observe(vec![sandbox("s", 0, true)], vec![container("a", "s", 0, None)]);
        let none = Memories::new();
        let first = pod_status(&pod, &inputs(&observed, &none));
        assert!(status_patch(&pod, &first, &first).is_none());
        let memories = ready(&[("a", "a0")]);
        let mut later = pod.clone();
        later.status = Some(first.clone());
        let second = pod_status(&later, &inputs(&observed, &memories));
        let patch = status_patch(&later, &first, &second).unwrap();
        let status = patch["status"].as_object().unwrap();
        assert_eq!(status.keys().collect::<Vec<_>>(), ["conditions", "containerStatuses"]);
        let kinds: Vec<_> =
            status["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["Ready", "ContainersReady"]);
        assert_eq!(status["conditions"][0]["reason"], Value::Null);
        let mut moved = second.clone();
        moved.pod_ips = Some(vec![PodIP { ip: "10.42.0.9".into() }]);
        let patch = status_patch(&later, &second, &moved).unwrap();
        assert_eq!(
            patch["status"]["podIPs"],
            json!([{"ip": "10.42.0.9"}, {"$patch": "delete", "ip": "10.42.0.2"}])
        );
    }
}
