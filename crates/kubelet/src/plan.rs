//! What to do next with a pod: a pure function of its spec and of what the runtime reports.
//!
//! The worker calls it after every event and executes what comes out. Level-based: whatever was forgotten
//! comes out again.

use api::prelude::*;
use cri::ContainerState;
use jiff::Timestamp;

use crate::observed::{CrashBackoff, Memories, Memory, Observed};
use crate::spec::{self, Role, mark};

/// A container to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Name.
    pub name: String,
    /// Part in the pod.
    pub role: Role,
    /// Restarts so far.
    pub restart_count: u32,
    /// Back-off to remember when it is started.
    pub backoff: Option<CrashBackoff>,
}

/// A container to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// Id in the runtime.
    pub id: String,
    /// Name.
    pub name: String,
    /// Sentence of the Killing event.
    pub message: String,
}

/// A container that waits before it is restarted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackOff {
    /// Name.
    pub name: String,
    /// Part in the pod.
    pub role: Role,
    /// The whole delay, in seconds.
    pub seconds: u64,
    /// Id of the container that ended.
    pub ended: String,
}

/// The next steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// A new sandbox is needed, with this attempt number. What runs in older ones is in `kill`.
    pub create_sandbox: Option<u32>,
    /// Containers to start now.
    pub start: Vec<Start>,
    /// Containers to stop now.
    pub kill: Vec<Kill>,
    /// Containers held back.
    pub back_off: Vec<BackOff>,
    /// When to look again although nothing happens.
    pub wake_at: Option<Timestamp>,
    /// Nothing will run in this pod any more: end sidecars and sandbox.
    pub finished: bool,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// Whether a container that ended with `exit_code` is to run again.
fn restarts(pod: &Pod, container: &Container, role: Role, exit_code: i32) -> bool {
    if role == Role::Ephemeral {
        return false;
    }
    if role == Role::Sidecar {
        return true;
    }
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        if rule.action == "Restart" && listed == (codes.operator == "In") {
            return true;
        }
    }
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    match container.restart_policy.as_deref().unwrap_or(of_pod) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        // An init container of a pod that always restarts is done when it succeeds.
        _ => role != Role::Init || exit_code != 0,
    }
}

/// Whether the last run of a container, if any, leaves it to be started.
fn wants_start(pod: &Pod, container: &Container, role: Role, observed: &Observed) -> bool {
    match observed.latest(&container.name) {
        None => true,
        Some(status) => match status.state {
            ContainerState::Running => false,
            ContainerState::Created | ContainerState::Unknown => true,
            ContainerState::Exited => {
                restarts(pod, container, role, status.exit.as_ref().map_or(137, |exit| exit.code))
            }
        },
    }
}

/// Whether all regular containers of a pod have ended for good, or its initialisation has.
pub fn is_finished(pod: &Pod, observed: &Observed, memories: &Memories) -> bool {
    let busy = memories.values().any(Memory::in_flight);
    if busy {
        return false;
    }
    let all = spec::containers(pod);
    let init_failed = all.iter().filter(|(role, _)| *role == Role::Init).any(|(role, container)| {
        observed
            .latest(&container.name)
            .and_then(|status| status.exit.as_ref())
            .is_some_and(|exit| exit.code != 0 && !restarts(pod, container, *role, exit.code))
    });
    if init_failed {
        return true;
    }
    let mut regular = all.iter().filter(|(role, _)| *role == Role::Regular).peekable();
    regular.peek().is_some()
        && regular.all(|(role, container)| {
            observed.latest(&container.name).is_some_and(|status| status.state == ContainerState::Exited)
                && !wants_start(pod, container, *role, observed)
        })
}

/// The next steps for a pod that is to run.
pub fn plan(pod: &Pod, observed: &Observed, memories: &Memories, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if is_finished(pod, observed, memories) {
        plan.finished = true;
        return plan;
    }
    let Some(sandbox) = observed.ready_sandbox() else {
        return replace_sandbox(pod, observed, memories);
    };
    let sandbox = sandbox.id.clone();
    let all = spec::containers(pod);
    let mut scheduler = Scheduler { pod, observed, memories, now, sandbox: &sandbox, plan: &mut plan };
    let begun = all.iter().any(|(role, container)| {
        *role == Role::Regular && observed.in_sandbox(&container.name, &sandbox).is_some()
    });
    let mut initialized = true;
    for (role, container) in all.iter().filter(|(role, _)| matches!(role, Role::Init | Role::Sidecar)) {
        let done = match role {
            Role::Sidecar => scheduler.sidecar(container),
            // Once a regular container exists, initialisation has happened, whatever was cleaned up since.
            _ if begun => true,
            _ => scheduler.init(container),
        };
        if !done && !begun {
            initialized = false;
            break;
        }
    }
    if initialized {
        for (role, container) in all.iter().filter(|(role, _)| *role == Role::Regular) {
            scheduler.keep_running(*role, container);
        }
    }
    for (role, container) in all.iter().filter(|(role, _)| *role == Role::Ephemeral) {
        if observed.latest(&container.name).is_none() {
            scheduler.start(*role, container);
        }
    }
    plan
}

/// There is no sandbox that is up: end what runs in old ones and, if something is left to run, make a new one.
fn replace_sandbox(pod: &Pod, observed: &Observed, memories: &Memories) -> Plan {
    let mut plan = Plan::default();
    if memories.values().any(Memory::in_flight) {
        return plan;
    }
    for container in observed.running() {
        plan.kill.push(Kill {
            id: container.id.clone(),
            name: container.name.clone(),
            message: "Pod sandbox changed, it will be killed and re-created.".into(),
        });
    }
    if !plan.kill.is_empty() {
        return plan;
    }
    let never = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) == Some("Never");
    let attempt = observed.sandboxes.first().map_or(0, |sandbox| sandbox.attempt + 1);
    let ran_before = attempt > 0 && !observed.containers.is_empty();
    let anything = spec::containers(pod)
        .iter()
        .any(|(role, container)| *role == Role::Regular && wants_start(pod, container, *role, observed));
    if (never && ran_before) || !anything {
        plan.finished = true;
    } else {
        plan.create_sandbox = Some(attempt);
    }
    plan
}

struct Scheduler<'a> {
    pod: &'a Pod,
    observed: &'a Observed,
    memories: &'a Memories,
    now: Timestamp,
    sandbox: &'a str,
    plan: &'a mut Plan,
}

impl Scheduler<'_> {
    fn memory(&self, name: &str) -> Option<&Memory> {
        self.memories.get(name)
    }

    /// An init container; whether it has succeeded.
    fn init(&mut self, container: &Container) -> bool {
        let Some(status) = self.observed.in_sandbox(&container.name, self.sandbox) else {
            self.start(Role::Init, container);
            return false;
        };
        match (status.state, status.exit.as_ref().map(|exit| exit.code)) {
            (ContainerState::Exited, Some(0)) => return true,
            (ContainerState::Running, _) => {}
            _ => self.start(Role::Init, container),
        }
        false
    }

    /// A sidecar; whether what follows may start.
    fn sidecar(&mut self, container: &Container) -> bool {
        self.keep_running(Role::Sidecar, container);
        let Some(status) = self.observed.in_sandbox(&container.name, self.sandbox) else { return false };
        status.state == ContainerState::Running
            && self
                .memory(&container.name)
                .and_then(|memory| memory.probes.get(&status.id))
                .is_some_and(|probes| probes.started)
    }

    /// A container that should run: starts it, restarts it, or kills it so that it is restarted.
    fn keep_running(&mut self, role: Role, container: &Container) {
        let status = self.observed.in_sandbox(&container.name, self.sandbox);
        let Some(status) = status.filter(|status| status.state == ContainerState::Running) else {
            if role == Role::Sidecar || wants_start(self.pod, container, role, self.observed) {
                self.start(role, container);
            }
            return;
        };
        let memory = self.memory(&container.name);
        if memory.is_some_and(Memory::in_flight) {
            return;
        }
        let failed =
            memory.and_then(|m| m.probes.get(&status.id)).and_then(|probes| probes.must_restart.clone());
        let hash = spec::container_hash(container);
        let changed = status.annotations.get(mark::HASH).is_some_and(|marked| *marked != hash);
        let message = match (changed, failed) {
            (true, _) => format!("Container {} definition changed, will be restarted", container.name),
            (false, Some(message)) => message,
            (false, None) => return,
        };
        self.plan.kill.push(Kill { id: status.id.clone(), name: container.name.clone(), message });
    }

    /// Starts a container unless it is being started, or has to wait.
    fn start(&mut self, role: Role, container: &Container) {
        let memory = self.memory(&container.name).cloned().unwrap_or_default();
        if memory.in_flight() {
            return;
        }
        if let Some(at) = memory.retry_at
            && self.now < at
        {
            self.plan.wake(at);
            return;
        }
        let latest = self.observed.latest(&container.name);
        let mut start = Start { name: container.name.clone(), role, restart_count: 0, backoff: None };
        if let Some(latest) = latest {
            start.restart_count = crate::observed::restart_count(latest) + 1;
            // Of a container that was made but never started nothing is known to have failed.
            let finished = latest.exit.as_ref().map(|exit| exit.finished_at);
            if let Some(finished) = finished.filter(|_| latest.state == ContainerState::Exited) {
                if let Some((delay, until)) =
                    memory.backoff.and_then(|backoff| backoff.wait(finished, self.now))
                {
                    self.plan.wake(until);
                    self.plan.back_off.push(BackOff {
                        name: start.name,
                        role,
                        seconds: delay.as_secs(),
                        ended: latest.id.clone(),
                    });
                    return;
                }
                start.backoff = Some(CrashBackoff::next(memory.backoff, finished, self.now));
            }
        }
        self.plan.start.push(start);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::observed::ProbeState;
    use cri::{ContainerStatus, ExitInfo, PodSandboxState, PodSandboxStatus};
    use serde_json::{Value, json};

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    pub(crate) fn pod(policy: &str, init: Value, containers: &[&str]) -> Pod {
        let containers: Vec<Value> =
            containers.iter().map(|name| json!({"name": name, "image": "i"})).collect();
        Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"restartPolicy": policy, "initContainers": init, "containers": containers}}))
        .unwrap()
    }

    pub(crate) fn sandbox(id: &str, attempt: u32, ready: bool) -> PodSandboxStatus {
        PodSandboxStatus {
            id: id.into(),
            name: "p".into(),
            namespace: "n".into(),
            uid: "u".into(),
            attempt,
            state: if ready { PodSandboxState::Ready } else { PodSandboxState::NotReady },
            created_at: at(1),
            ips: vec!["10.42.0.2".parse().unwrap()],
            namespaces: Default::default(),
            runtime_handler: String::new(),
            labels: Default::default(),
            annotations: Default::default(),
        }
    }

    /// `exit` of `None` means running.
    pub(crate) fn container(name: &str, sandbox: &str, attempt: u32, exit: Option<i32>) -> ContainerStatus {
        ContainerStatus {
            id: format!("{name}{attempt}"),
            sandbox_id: sandbox.into(),
            name: name.into(),
            attempt,
            state: if exit.is_some() { ContainerState::Exited } else { ContainerState::Running },
            created_at: at(2),
            started_at: Some(at(3)),
            exit: exit.map(|code| ExitInfo {
                code,
                oom_killed: false,
                finished_at: at(10),
                reason: if code == 0 { "Completed" } else { "Error" }.into(),
                message: String::new(),
            }),
            pid: None,
            image: "i".into(),
            image_id: "sha256:1".into(),
            image_ref: "i@sha256:1".into(),
            user: None,
            labels: Default::default(),
            annotations: Default::default(),
            log_path: Default::default(),
            resources: Default::default(),
            stop_signal: "SIGTERM".into(),
        }
    }

    pub(crate) fn observe(sandboxes: Vec<PodSandboxStatus>, containers: Vec<ContainerStatus>) -> Observed {
        Observed::new(sandboxes, containers)
    }

    fn started(name: &str, id: &str) -> Memories {
        let probes = ProbeState { ready: true, started: true, must_restart: None };
        Memories::from([(
            name.into(),
            Memory { probes: [(id.to_owned(), probes)].into(), ..Memory::default() },
        )])
    }

    fn starts(plan: &Plan) -> Vec<(&str, u32)> {
        plan.start.iter().map(|start| (start.name.as_str(), start.restart_count)).collect()
    }

    #[test]
    fn a_new_pod_gets_a_sandbox_then_its_containers() {
        let pod = pod("Always", json!([]), &["a", "b"]);
        let none = Memories::new();
        assert_eq!(plan(&pod, &Observed::default(), &none, at(0)).create_sandbox, Some(0));
        let up = observe(vec![sandbox("s", 0, true)], vec![]);
        assert_eq!(starts(&plan(&pod, &up, &none, at(0))), [("a", 0), ("b", 0)]);
    }

    #[test]
    fn a_start_that_ended_after_the_look_is_not_repeated() {
        let pod = pod("Always", json!([]), &["a"]);
        // Seen before it was created, and as if it had ended; it runs by now.
        for containers in [vec![], vec![container("a", "s", 0, Some(1))]] {
            let stale = observe(vec![sandbox("s", 0, true)], containers);
            let mut memory = Memory { busy: true, ..Memory::default() };
            memory.ended();
            let mut memories = Memories::from([("a".to_owned(), memory)]);
            let held = plan(&pod, &stale, &memories, at(11));
            assert!(held.start.is_empty() && !held.finished);
            memories.values_mut().for_each(|memory| memory.unseen = false);
            assert_eq!(plan(&pod, &stale, &memories, at(11)).start.len(), 1);
        }
    }

    #[test]
    fn restart_policies() {
        let cases = [
            ("Always", 0, true),
            ("Always", 1, true),
            ("OnFailure", 0, false),
            ("OnFailure", 1, true),
            ("Never", 0, false),
            ("Never", 1, false),
        ];
        for (policy, code, restarted) in cases {
            let pod = pod(policy, json!([]), &["a"]);
            let observed = observe(vec![sandbox("s", 0, true)], vec![container("a", "s", 0, Some(code))]);
            let plan = plan(&pod, &observed, &Memories::new(), at(11));
            assert_eq!(starts(&plan) == [("a", 1)], restarted, "{policy} {code}");
            assert_eq!(plan.finished, !restarted, "{policy} {code}");
        }
    }

    #[test]
    fn a_crashing_container_waits() {
        let pod = pod("Always", json!([]), &["a"]);
        let observed = observe(vec![sandbox("s", 0, true)], vec![container("a", "s", 1, Some(1))]);
        let backoff = CrashBackoff::next(None, at(5), at(5));
        let memory = Memory { backoff: Some(backoff), ..Memory::default() };
        let memories = Memories::from([("a".to_owned(), memory)]);
        let waiting = plan(&pod, &observed, &memories, at(12));
        assert_eq!(
            (waiting.back_off[0].seconds, waiting.wake_at, waiting.start.len()),
            (10, Some(at(20)), 0)
        );
        assert_eq!(starts(&plan(&pod, &observed, &memories, at(20))), [("a", 2)]);
    }

    #[test]
    fn init_containers_run_in_order() {
        let pod = pod("Never", json!([{"name": "i1"}, {"name": "i2"}]), &["a"]);
        let with = |containers| observe(vec![sandbox("s", 0, true)], containers);
        let next = |containers| {
            let plan = plan(&pod, &with(containers), &Memories::new(), at(11));
            (starts(&plan).iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(), plan.finished)
        };
        assert_eq!(next(vec![]), (vec!["i1".into()], false));
        assert_eq!(next(vec![container("i1", "s", 0, None)]), (vec![], false));
        assert_eq!(next(vec![container("i1", "s", 0, Some(0))]), (vec!["i2".into()], false));
        let both = vec![container("i1", "s", 0, Some(0)), container("i2", "s", 0, Some(0))];
        assert_eq!(next(both), (vec!["a".into()], false));
        assert_eq!(next(vec![container("i1", "s", 0, Some(1))]), (vec![], true));
        // Cleaned up, but a regular container shows that initialisation is over.
        assert_eq!(next(vec![container("a", "s", 0, None)]), (vec![], false));
    }

    #[test]
    fn sidecars_gate_and_are_kept() {
        let pod = pod("Never", json!([{"name": "s1", "restartPolicy": "Always"}]), &["a"]);
        let with = |containers| observe(vec![sandbox("s", 0, true)], containers);
        let running = with(vec![container("s1", "s", 0, None)]);
        assert!(plan(&pod, &running, &Memories::new(), at(1)).start.is_empty(), "not started yet");
        assert_eq!(starts(&plan(&pod, &running, &started("s1", "s10"), at(1))), [("a", 0)]);
        let crashed = with(vec![container("s1", "s", 0, Some(1)), container("a", "s", 0, None)]);
        assert_eq!(starts(&plan(&pod, &crashed, &Memories::new(), at(11))), [("s1", 1)]);
        let over = with(vec![container("s1", "s", 0, None), container("a", "s", 0, Some(0))]);
        assert!(plan(&pod, &over, &Memories::new(), at(11)).finished);
    }

    #[test]
    fn failed_probes_and_changed_images_kill() {
        let pod = pod("Always", json!([]), &["a"]);
        let mut running = container("a", "s", 0, None);
        let mut memories = started("a", "a0");
        memories.get_mut("a").unwrap().probes.get_mut("a0").unwrap().must_restart = Some("failed".into());
        let kill =
            plan(&pod, &observe(vec![sandbox("s", 0, true)], vec![running.clone()]), &memories, at(1)).kill;
        assert_eq!(kill[0].message, "failed");
        running.annotations.insert(mark::HASH.into(), "other".into());
        let kill =
            plan(&pod, &observe(vec![sandbox("s", 0, true)], vec![running]), &Memories::new(), at(1)).kill;
        assert_eq!(kill[0].message, "Container a definition changed, will be restarted");
    }

    #[test]
    fn a_lost_sandbox_is_replaced_once_nothing_runs_in_it() {
        let pod = pod("Always", json!([]), &["a"]);
        let lost = observe(vec![sandbox("s", 0, false)], vec![container("a", "s", 0, None)]);
        let first = plan(&pod, &lost, &Memories::new(), at(1));
        assert_eq!((first.kill.len(), first.create_sandbox), (1, None));
        let stopped = observe(vec![sandbox("s", 0, false)], vec![container("a", "s", 0, Some(137))]);
        assert_eq!(plan(&pod, &stopped, &Memories::new(), at(1)).create_sandbox, Some(1));
        let never = self::pod("Never", json!([]), &["a", "b"]);
        assert!(plan(&never, &stopped, &Memories::new(), at(1)).finished);
    }
}
