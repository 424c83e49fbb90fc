//! One worker per pod: observes the runtime, asks the plan, acts, reports. Woken by events, never by polling.
//!
//! Long actions (pulls, hooks, graceful stops) run as tasks of their own and wake the worker when they end,
//! so that a pod's status is current whatever one of its containers waits for.

mod end;
mod probes;
mod resize;
mod start;
mod stop;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use api::prelude::*;
use client::Patch;
use cri::{ContainerFilter, ContainerState, PodSandboxFilter};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use reconcile::EventType;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::agent::{Agent, Desired, Handle};
use crate::cgroup;
use crate::make;
use crate::observed::{Memories, Observed, Waiting, restart_count};
use crate::plan::{self, BackOff};
use crate::resources;
use crate::spec::{self, PodDirs, Role, mark};
use crate::status::{self, Inputs, Verdict};
use crate::userns;
use crate::volume::Mounted;
use crate::volume::problem::Failed;

/// Wait after a failure of the API, the runtime or a volume.
const RETRY: Duration = Duration::from_secs(2);
/// Longest wait between tries to make volumes or a sandbox.
const RETRY_MAX: Duration = Duration::from_secs(120);
/// How long volumes may be missing before the pod's events list them (upstream's `podAttachAndMountTimeout`).
const MOUNT_MAX: SignedDuration = SignedDuration::from_secs(123);
/// Longest termination message of a container, in bytes (upstream's limit per container).
const MESSAGE_BYTES_MAX: usize = 4096;
/// Log bytes and lines that stand in for a termination message.
const MESSAGE_LOG_BYTES_MAX: u64 = 2048;
const MESSAGE_LOG_LINES_MAX: usize = 80;

/// What the tasks of a pod share with its worker.
#[derive(Clone)]
pub(crate) struct Context {
    pub agent: Arc<Agent>,
    pub memories: Arc<Mutex<Memories>>,
    pub kick: Arc<Notify>,
}

/// Labels or annotations.
type Metadata = Option<std::collections::BTreeMap<String, String>>;

/// A worker's state.
pub(crate) struct Worker {
    context: Context,
    dirs: PodDirs,
    start_time: Timestamp,
    /// Admitted, or found running.
    accepted: bool,
    verdict: Option<Verdict>,
    mounted: Option<Arc<Mounted>>,
    /// Since when volumes are waited for.
    unmounted_since: Option<Timestamp>,
    /// Labels and annotations as volumes show them.
    shown: Option<(Metadata, Metadata)>,
    stale: Arc<AtomicBool>,
    condemned: Arc<OnceLock<Verdict>>,
    failures: u32,
    retry_at: Option<Timestamp>,
    ops: HashMap<String, AbortHandle>,
    probes: probes::Tasks,
    /// What the pod is allocated, once it runs here.
    allocation: Option<crate::resize::Allocation>,
    /// How a change of its resources stands.
    resize: crate::resize::Progress,
    /// Status as last sent.
    reported: Option<PodStatus>,
    /// Grace the containers are being ended with, and since when.
    ending: Option<end::Ending>,
    /// Nothing runs any more and what was made has been taken away.
    cleaned: bool,
}

/// When to look again.
#[derive(Debug, Default)]
struct Next {
    at: Option<Timestamp>,
    over: bool,
}

impl Next {
    fn at(mut self, at: Timestamp) -> Self {
        self.at = Some(self.at.map_or(at, |earlier| earlier.min(at)));
        self
    }
}

/// Tells the worker of a pod what the API wants; starts it if there is none.
pub(crate) fn dispatch(agent: &Arc<Agent>, desired: Desired) {
    let uid = desired.pod.uid().to_owned();
    let mut workers = agent.workers.0.lock();
    if let Some(handle) = workers.get(&uid) {
        handle.desired.send_replace(desired);
        return;
    }
    if desired.gone {
        return;
    }
    let kick = Arc::new(Notify::new());
    let dirs = PodDirs::new(&agent.config.root_dir, &agent.config.log_dir, &desired.pod);
    let (sender, receiver) = watch::channel(desired);
    let stale = Arc::new(AtomicBool::new(false));
    let condemned = Arc::new(OnceLock::new());
    let handle =
        Handle { desired: sender, kick: kick.clone(), stale: stale.clone(), condemned: condemned.clone() };
    workers.insert(uid, handle);
    let context = Context { agent: agent.clone(), memories: Arc::default(), kick };
    let worker = Worker {
        start_time: agent.clock.now(),
        context,
        dirs,
        accepted: false,
        verdict: None,
        mounted: None,
        unmounted_since: None,
        shown: None,
        stale,
        condemned,
        failures: 0,
        retry_at: None,
        ops: HashMap::new(),
        probes: probes::Tasks::default(),
        allocation: None,
        resize: crate::resize::Progress::default(),
        reported: None,
        ending: None,
        cleaned: false,
    };
    tokio::spawn(worker.run(receiver));
}

impl Worker {
    async fn run(mut self, mut desired: watch::Receiver<Desired>) {
        loop {
            let want = desired.borrow_and_update().clone();
            let began = self.context.agent.clock.instant();
            let operation = match (want.gone || want.pod.is_terminating(), self.reported.is_some()) {
                (true, _) => "terminating",
                (false, true) => "sync",
                (false, false) => "create",
            };
            let next = self.sync(&want).await;
            let took = self.context.agent.clock.instant().duration_since(began);
            self.context.agent.counters.worked(operation, took);
            if next.over {
                break;
            }
            let wait = next.at.map(|at| self.until(at));
            tokio::select! {
                () = self.context.kick.notified() => {}
                changed = desired.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                () = sleep(wait) => {}
            }
        }
        let uid = desired.borrow().pod.uid().to_owned();
        self.context.agent.discharge(&uid);
        self.context.agent.images.release(&uid);
        self.context.agent.forget(&uid);
        self.abort_all();
    }

    fn until(&self, at: Timestamp) -> Duration {
        Duration::try_from(at.duration_since(self.now())).unwrap_or(Duration::ZERO)
    }

    fn now(&self) -> Timestamp {
        self.context.agent.clock.now()
    }

    fn after(&self, wait: Duration) -> Timestamp {
        self.now() + SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX)
    }

    fn abort_all(&mut self) {
        self.ops.drain().for_each(|(_, op)| op.abort());
        self.probes.abort_all();
    }

    /// One look at the pod, and what follows from it.
    async fn sync(&mut self, want: &Desired) -> Next {
        let pod = &want.pod;
        let observed = match self.observe(pod).await {
            Ok(observed) => observed,
            Err(error) => {
                tracing::warn!(pod = spec::describe(pod), %error, "the runtime does not answer");
                return Next::default().at(self.after(RETRY));
            }
        };
        self.note_ends(&observed);
        self.probes.follow(&self.context, pod, &observed, self.ending.is_some());
        let api_phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let over = matches!(api_phase, "Succeeded" | "Failed") && observed.running().next().is_none();
        if want.gone || pod.is_terminating() {
            return self.end(want, &observed, over).await;
        }
        // The last word on a pod that failed as a whole is how its containers ended.
        if over && (self.verdict.is_none() || self.cleaned) {
            return self.rest(pod, &observed).await;
        }
        if !self.accepted {
            self.accept(pod, &observed).await;
            if api_phase == "Failed" {
                // It was failed by an earlier life of this kubelet, which did not come to end it.
                let said = pod.status.clone().unwrap_or_default();
                let mut conditions = said.conditions.iter().flatten();
                self.verdict = Some(Verdict {
                    disruption: conditions.any(|c| {
                        c.type_ == "DisruptionTarget" && c.reason.as_deref() == Some("TerminationByKubelet")
                    }),
                    grace_seconds: None,
                    reason: said.reason.unwrap_or_default(),
                    message: said.message.unwrap_or_default(),
                });
            }
        }
        if self.verdict.is_none() {
            self.check_deadline(pod);
            self.verdict = self.verdict.take().or_else(|| self.condemned.get().cloned());
        }
        if self.verdict.is_some() {
            return self.fail_pod(want, &observed).await;
        }
        let allocated = self.allocate(pod, &observed);
        self.advance(&allocated, &observed).await
    }

    /// Lists what the runtime has of the pod.
    async fn observe(&self, pod: &Pod) -> cri::Result<Observed> {
        // What has ended by now is in what is seen next.
        self.context.memories.lock().values_mut().for_each(|memory| memory.unseen = false);
        let labels = std::collections::BTreeMap::from([(mark::POD_UID.to_owned(), pod.uid().to_owned())]);
        let runtime = &self.context.agent.runtime;
        let sandboxes = PodSandboxFilter { labels: labels.clone(), ..PodSandboxFilter::default() };
        let containers = ContainerFilter { labels, ..ContainerFilter::default() };
        let agent = &self.context.agent;
        let began = agent.clock.instant();
        let (sandboxes, containers) =
            tokio::try_join!(runtime.list_pod_sandboxes(&sandboxes), runtime.list_containers(&containers))?;
        agent.counters.listed(agent.clock.instant().duration_since(began), agent.clock.now());
        Ok(Observed::new(sandboxes, containers))
    }

    /// Reads the last words of containers that have ended.
    fn note_ends(&self, observed: &Observed) {
        let mut memories = self.context.memories.lock();
        for container in observed.containers.iter().filter(|c| c.state == ContainerState::Exited) {
            let messages = &mut memories.entry(container.name.clone()).or_default().messages;
            messages.entry(container.id.clone()).or_insert_with(|| termination_message(container));
        }
        for (name, memory) in memories.iter_mut() {
            let known = |id: &String| observed.containers.iter().any(|c| c.id == *id && c.name == *name);
            memory.messages.retain(|id, _| known(id));
            memory.probes.retain(|id, _| known(id));
        }
    }

    /// Admits the pod, unless it runs already: then it was admitted by an earlier life of this kubelet.
    async fn accept(&mut self, pod: &Arc<Pod>, observed: &Observed) {
        self.accepted = true;
        let agent = self.context.agent.clone();
        if !observed.sandboxes.is_empty() || !observed.containers.is_empty() {
            agent.adopt(pod);
            return;
        }
        let admitted = match agent.admit(pod) {
            Ok(()) => agent.apportion(pod).await,
            refused => refused,
        };
        if let Err(verdict) = admitted {
            agent.counters.rejected(&verdict.reason);
            agent.recorder.warning(
                &**pod,
                &verdict.reason,
                verdict.message.trim_start_matches("Pod was rejected: "),
            );
            self.verdict = Some(verdict);
        }
    }

    fn deadline(&self, pod: &Pod) -> Option<Timestamp> {
        let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
        let since = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        Some(since.map_or(self.start_time, |time| time.0) + SignedDuration::from_secs(seconds))
    }

    fn check_deadline(&mut self, pod: &Pod) {
        if self.deadline(pod).is_some_and(|deadline| self.now() >= deadline) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.context.agent.recorder.normal(pod, "DeadlineExceeded", message);
            self.verdict = Some(Verdict {
                reason: "DeadlineExceeded".into(),
                message: message.into(),
                ..Verdict::default()
            });
        }
    }

    /// The pod is to run: takes the next steps.
    async fn advance(&mut self, pod: &Arc<Pod>, observed: &Observed) -> Next {
        let now = self.now();
        let mut next = Next::default();
        if let Some(deadline) = self.deadline(pod) {
            next = next.at(deadline);
        }
        let steps = {
            let memories = self.context.memories.lock();
            plan::plan(pod, observed, &memories, now)
        };
        if steps.finished {
            let ended = self.stop_everything(pod, observed, spec::grace_period_seconds(pod));
            if ended {
                self.context.agent.discharge(pod.uid());
                self.clean(pod, observed).await;
            }
            return self.report(pod, observed, false, next).await;
        }
        if let Some(at) = steps.wake_at {
            next = next.at(at);
        }
        for kill in steps.kill {
            let grace = self.kill_grace(pod, &kill.name);
            self.spawn_stop(pod, &kill.name, &kill.id, grace, kill.message);
        }
        let mut observed = std::borrow::Cow::Borrowed(observed);
        if let Some(resized) = self.resize(pod, &observed, &mut next).await {
            observed = std::borrow::Cow::Owned(resized);
        }
        let wants_to_start = steps.create_sandbox.is_some() || !steps.start.is_empty();
        let stale = self.is_stale(pod, now);
        // A pod that runs already, found after a restart, has to be looked after like any other.
        let unmounted = self.mounted.is_none();
        let ready = match self.retry_at.filter(|at| now < *at) {
            Some(at) if (wants_to_start || unmounted) && !stale => {
                next = next.at(at);
                false
            }
            _ => true,
        };
        let mut starts = steps.start;
        if ready && (stale || unmounted) {
            let ips = observed.ready_sandbox().map(|sandbox| sandbox.ips.clone()).unwrap_or_default();
            if let Err(at) = self.prepare(pod, ips).await {
                next = next.at(at);
            }
        }
        if let Some(at) = self.mounted.as_ref().and_then(|mounted| mounted.refresh_at) {
            next = next.at(at);
        }
        if ready && self.mounted.is_some() {
            if let Some(attempt) = steps.create_sandbox {
                match self.make_sandbox(pod, &observed, attempt).await {
                    Ok(fresh) => {
                        let memories = self.context.memories.lock().clone();
                        let steps = plan::plan(pod, &fresh, &memories, now);
                        starts = steps.start;
                        observed = std::borrow::Cow::Owned(fresh);
                    }
                    Err(at) => next = next.at(at),
                }
            }
            for start in starts {
                self.spawn_start(pod, &observed, start);
            }
        }
        self.note_back_off(pod, &steps.back_off);
        self.report(pod, &observed, false, next).await
    }

    /// Whether volumes and environments have to be looked at again: something the pod refers to has changed,
    /// its labels have, or a token is due. What failed for lack of an object may then be tried at once.
    fn is_stale(&mut self, pod: &Pod, now: Timestamp) -> bool {
        let changed = self.stale.swap(false, Ordering::AcqRel);
        if changed {
            for memory in self.context.memories.lock().values_mut() {
                if memory.waiting.as_ref().is_some_and(|w| w.reason == "CreateContainerConfigError") {
                    memory.retry_at = None;
                }
            }
        }
        let shown = (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
        let relabelled = self.mounted.is_some() && self.shown.as_ref() != Some(&shown);
        let due = self.mounted.as_ref().and_then(|mounted| mounted.refresh_at).is_some_and(|at| now >= at);
        self.shown = Some(shown);
        (changed && self.mounted.is_some()) || relabelled || due || (changed && self.retry_at.is_some())
    }

    /// Remembers who waits in a crash loop, and says so once per end.
    fn note_back_off(&self, pod: &Pod, back_off: &[BackOff]) {
        let mut memories = self.context.memories.lock();
        for waiting in back_off {
            let memory = memories.entry(waiting.name.clone()).or_default();
            let whom = spec::describe(pod);
            let message = format!(
                "back-off {} restarting failed container={} pod={whom}",
                go_seconds(waiting.seconds),
                waiting.name
            );
            memory.waiting = Some(Waiting::new("CrashLoopBackOff", message));
            if memory.announced.as_deref() != Some(&waiting.ended) {
                memory.announced = Some(waiting.ended.clone());
                let about = spec::container_reference(pod, waiting.role, &waiting.name);
                let message = format!("Back-off restarting failed container {} in pod {whom}", waiting.name);
                self.context.agent.recorder.record(about, EventType::Warning, "BackOff", message);
            }
        }
    }

    /// Directories, volumes and the hosts file. An error is when to try again.
    async fn prepare(&mut self, pod: &Pod, ips: Vec<IpAddr>) -> Result<(), Timestamp> {
        let agent = self.context.agent.clone();
        let facts = agent.facts(ips.clone());
        let made =
            std::fs::create_dir_all(&self.dirs.root).and_then(|()| std::fs::create_dir_all(&self.dirs.logs));
        if let Err(error) = made {
            let message = format!("error making pod data directories: {error}");
            agent.recorder.warning(pod, "FailedToMakePodDataDirectories", message);
            return Err(self.fail());
        }
        let mounted = match agent.volumes.set_up(pod, &self.dirs, &facts).await {
            Ok(mounted) => mounted,
            Err(failed) => {
                self.note_unmounted(pod, &failed);
                return Err(self.fail());
            }
        };
        self.unmounted_since = None;
        self.mounted = Some(mounted);
        self.write_hosts(pod, &ips);
        if !ips.is_empty() {
            self.failures = 0;
            self.retry_at = None;
        }
        Ok(())
    }

    /// Says which volumes are missing: what failed at once, what is waited for after a while. A pod that the node
    /// has no room for is refused.
    fn note_unmounted(&mut self, pod: &Pod, failed: &Failed) {
        let recorder = &self.context.agent.recorder;
        for (reason, message) in failed.said() {
            recorder.warning(pod, reason, message);
        }
        let now = self.context.agent.clock.now();
        let since = *self.unmounted_since.get_or_insert(now);
        if failed.is_exhausted() && self.mounted.is_none() {
            let why = failed.summary("context deadline exceeded");
            let message = format!("Node has reached its volume attachment limit, rejecting pod. {why}");
            let reason = "VolumeAttachmentLimitExceeded";
            recorder.warning(pod, reason, message.clone());
            self.verdict = Some(Verdict {
                reason: reason.into(),
                message: format!("Pod was rejected: {message}"),
                disruption: false,
                grace_seconds: None,
            });
            self.context.kick.notify_one();
            return;
        }
        let overdue =
            (now.duration_since(since) >= MOUNT_MAX).then(|| "context deadline exceeded".to_owned());
        if let Some(why) = failed.unprocessed().or(overdue) {
            let message = format!("Unable to attach or mount volumes: {}", failed.summary(&why));
            recorder.warning(pod, "FailedMount", message);
            self.unmounted_since = Some(now);
        }
    }

    fn write_hosts(&self, pod: &Pod, ips: &[IpAddr]) {
        let node = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let text = make::hosts_file(pod, ips, &self.context.agent.config.cluster_domain, &node);
        let path = self.dirs.etc_hosts();
        // Written in place: it is mounted into containers as a file.
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return;
        }
        if let Err(error) = std::fs::write(&path, text) {
            tracing::warn!(pod = spec::describe(pod), %error, "the hosts file could not be written");
        }
    }

    /// Notes a failure and returns when to try again.
    fn fail(&mut self) -> Timestamp {
        self.failures = self.failures.saturating_add(1);
        let backoff = stdx::Backoff { initial: RETRY, max: RETRY_MAX };
        let at = self.after(backoff.delay(self.failures));
        self.retry_at = Some(at);
        at
    }

    /// Makes a sandbox and looks again. An error is when to try again.
    async fn make_sandbox(
        &mut self,
        pod: &Pod,
        observed: &Observed,
        attempt: u32,
    ) -> Result<Observed, Timestamp> {
        let agent = self.context.agent.clone();
        if !observed.sandboxes.is_empty() {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            agent.recorder.normal(pod, "SandboxChanged", message);
            for old in &observed.sandboxes {
                if let Err(error) = agent.runtime.stop_pod_sandbox(&old.id).await {
                    agent.recorder.warning(pod, "FailedKillPod", format!("error killing pod: {error}"));
                    return Err(self.fail());
                }
            }
        }
        if let Err(error) = agent.dra.prepare(pod).await {
            let message = format!("Failed to prepare dynamic resources: {error}");
            agent.recorder.warning(pod, "FailedPrepareDynamicResources", message);
            return Err(self.fail());
        }
        self.make_cgroups(pod);
        let node_file = std::fs::read_to_string(&agent.config.resolv_conf).unwrap_or_default();
        let mut config = make::sandbox(pod, &agent.config, &self.dirs, attempt, &node_file);
        let made = async {
            config.runtime_handler = agent.runtime_handler(pod).await?;
            if userns::has_own(pod) {
                if let Some(why) = userns::unsupported(&agent.runtime_info, &config.runtime_handler) {
                    return Err(why);
                }
                config.security.namespaces.user_ids = Some(agent.users.give(pod.uid())?);
            }
            agent.runtime.run_pod_sandbox(config).await.map_err(|error| error.to_string())
        };
        if let Err(error) = made.await {
            agent.recorder.warning(
                pod,
                "FailedCreatePodSandBox",
                format!("Failed to create pod sandbox: {error}"),
            );
            return Err(self.fail());
        }
        let fresh = match self.observe(pod).await {
            Ok(fresh) => fresh,
            Err(_) => return Err(self.after(RETRY)),
        };
        self.failures = 0;
        self.retry_at = None;
        if let Some(sandbox) = fresh.ready_sandbox() {
            self.write_hosts(pod, &sandbox.ips);
        }
        Ok(fresh)
    }

    /// Makes and weighs the pod's cgroup and its class's. Where cgroups cannot be made, pods run unweighed.
    fn make_cgroups(&self, pod: &Pod) {
        let agent = &self.context.agent;
        if agent.config.cgroup_root.is_empty() {
            return;
        }
        let path = resources::cgroup_parent(&agent.config.cgroup_root, pod);
        let mount = Path::new(cgroup::MOUNT);
        let class = resources::qos(pod);
        let of_class = {
            let admitted = agent.admitted.lock();
            resources::class_values(class, admitted.values().map(|pod| &**pod))
        };
        let pids = agent.config.pod_pids_limit.max(0);
        let own = cgroup::Values { pids, ..resources::pod_values(pod) };
        let huge = resources::pod_huge_pages(pod, agent.machine.huge_pages.iter().map(|(size, _)| *size));
        let mut made =
            cgroup::apply(mount, &path, own).and_then(|()| cgroup::limit_huge_pages(mount, &path, &huge));
        if let (true, Some((parent, _))) = (class != resources::Qos::Guaranteed, path.rsplit_once('/')) {
            made = made.and_then(|()| cgroup::apply(mount, parent, of_class));
        }
        if let Err(error) = made {
            tracing::warn!(pod = spec::describe(pod), %error, "the pod's cgroup could not be set up");
        }
    }

    /// Reports the status if it has changed.
    async fn report(&mut self, pod: &Arc<Pod>, observed: &Observed, terminated: bool, next: Next) -> Next {
        let pod = self.with_reported(pod);
        let agent = &self.context.agent;
        let new = {
            let memories = self.context.memories.lock();
            let inputs = Inputs {
                observed,
                memories: &memories,
                runtime: &agent.runtime_info,
                host_ips: agent.host_ips(),
                verdict: self.verdict.as_ref(),
                terminated,
                resize: &self.resize,
                start_time: self.start_time,
                now: agent.clock.now(),
            };
            status::pod_status(&pod, &inputs)
        };
        let old = pod.status.clone().unwrap_or_default();
        let Some(patch) = status::status_patch(&pod, &old, &new) else { return next };
        match agent
            .client
            .patch(&Pod::GVR, pod.namespace(), pod.name(), "status", &Patch::Strategic(patch))
            .await
        {
            Ok(_) => {
                let running = |status: &PodStatus| status.phase.as_deref() == Some("Running");
                if running(&new) && !running(&old) {
                    self.note_start(&pod);
                }
                self.reported = Some(new);
                next
            }
            Err(error) if error.is_not_found() || error.is_conflict() => {
                // Gone, or another pod has the name by now: the watch will tell.
                tracing::debug!(pod = spec::describe(&pod), %error, "the status found no pod");
                next
            }
            Err(error) => {
                tracing::warn!(pod = spec::describe(&pod), %error, "the status could not be reported");
                next.at(self.after(RETRY))
            }
        }
    }

    /// The pod runs now: how long that took.
    fn note_start(&self, pod: &Pod) {
        let agent = &self.context.agent;
        let now = agent.clock.now();
        let since = |at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or(Duration::ZERO);
        let created = pod.metadata.creation_timestamp.as_ref().map_or(self.start_time, |time| time.0);
        agent.counters.pod_runs(since(self.start_time), since(created), agent.images.pulling(pod.uid()));
    }

    /// The pod with the status as it was last sent: the watch may still be behind. Conditions that others
    /// set come from the API.
    fn with_reported(&self, pod: &Arc<Pod>) -> Pod {
        let mut pod = Pod::clone(pod);
        if let Some(reported) = &self.reported {
            let mut status = reported.clone();
            let conditions = status.conditions.get_or_insert_default();
            let from_api = pod.status.take().and_then(|status| status.conditions).unwrap_or_default();
            for foreign in from_api {
                if !conditions.iter().any(|own| own.type_ == foreign.type_) {
                    conditions.push(foreign);
                }
            }
            pod.status = Some(status);
        }
        pod
    }

    /// Grace of a container that is killed to be restarted: its probe's, else the pod's.
    fn kill_grace(&self, pod: &Pod, name: &str) -> i64 {
        let container = spec::find(pod, name).map(|(_, container)| container.into_owned());
        let probes =
            container.into_iter().flat_map(|container| [container.liveness_probe, container.startup_probe]);
        let own = probes.flatten().find_map(|probe| probe.termination_grace_period_seconds);
        own.unwrap_or_else(|| spec::grace_period_seconds(pod))
    }

    /// Takes dead containers of a name away beyond the latest and the one before.
    pub(crate) fn superseded(observed: &Observed, name: &str) -> Vec<String> {
        let mut all: Vec<_> = observed.containers.iter().filter(|container| container.name == name).collect();
        all.sort_by_key(|container| std::cmp::Reverse(restart_count(container)));
        let dead = all.into_iter().skip(1).filter(|container| container.state != ContainerState::Running);
        dead.map(|container| container.id.clone()).collect()
    }

    fn role(pod: &Pod, name: &str) -> Role {
        spec::find(pod, name).map_or(Role::Regular, |(role, _)| role)
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// Seconds as Go prints a duration.
fn go_seconds(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

/// The last words of a container: its message file, or the end of its log if it failed and asked for that.
fn termination_message(container: &cri::ContainerStatus) -> String {
    let file = container.annotations.get(mark::MESSAGE_FILE);
    let text = file.and_then(|file| std::fs::read(file).ok()).unwrap_or_default();
    if !text.is_empty() {
        return String::from_utf8_lossy(&text[..text.len().min(MESSAGE_BYTES_MAX)]).into_owned();
    }
    let fallback =
        container.annotations.get(mark::MESSAGE_POLICY).is_some_and(|p| p == "FallbackToLogsOnError");
    let failed = container.exit.as_ref().is_some_and(|exit| exit.code != 0);
    if !fallback || !failed {
        return String::new();
    }
    crate::server::logs::last_lines(&container.log_path, MESSAGE_LOG_LINES_MAX, MESSAGE_LOG_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::go_seconds;

    #[test]
    fn durations_are_gos() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s")] {
            assert_eq!(go_seconds(seconds), text);
        }
    }
}
