//! Node-pressure eviction: when memory, disk or process ids run short, images that nobody uses go first, then
//! pods, one at a time; pods that store more than they may go always.
//!
//! Signals and thresholds (`threshold`), their history (`state`), the order of pods (`rank`) and limits of storage
//! (`limits`) are pure. The loop looks as often as upstream's, and at once when the kernel tells of pressure.

pub mod admit;
pub mod limits;
pub mod observe;
pub mod pressure;
pub mod rank;
pub mod state;
pub mod threshold;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use cri::{ContainerFilter, ContainerStatus};
use reconcile::EventType;

use self::rank::{Candidate, ContainerUsage};
use self::state::{Observation, Observations, State};
use self::threshold::{Resource, Threshold};
use crate::agent::Agent;
use crate::cgroup;
use crate::container_gc;
use crate::image_gc;
use crate::node::register;
use crate::spec::{self, PodDirs, mark};
use crate::status::Verdict;

/// Reason in status and events.
pub const EVICTED: &str = "Evicted";
/// How often the signals are looked at, as upstream does.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Pressure that the kernel tells of is looked at this often at most: what is done about it takes time to show.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long the end of an evicted pod is awaited, as upstream does.
const END_MAX: Duration = Duration::from_secs(30);
/// Grace of a pod that goes at once, in seconds.
const GRACE_SECONDS: i64 = 1;

/// Looks at the signals and acts upon them. Forever.
pub(crate) async fn watch(agent: Arc<Agent>) {
    let mut state = State::default();
    let trigger = pressure::Trigger::memory();
    let images = match agent.images.service().fs_info().await {
        Ok(info) => info.mountpoint,
        Err(_) => agent.config.root_dir.clone(),
    };
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = trigger.fired() => {}
        }
        if let Some(uid) = look(&agent, &mut state, &images).await {
            let _ = tokio::time::timeout(END_MAX, ended(&agent, &uid)).await;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Waits until a pod counts no longer.
async fn ended(agent: &Agent, uid: &str) {
    loop {
        let told = agent.discharged.notified();
        if !agent.admitted.lock().contains_key(uid) {
            return;
        }
        told.await;
    }
}

/// What pods' cgroup has left of its limit.
fn pods_memory(agent: &Agent) -> Option<Observation> {
    let root = agent.config.cgroup_root.as_str();
    let (limit, used) = cgroup::memory(Path::new(cgroup::MOUNT), &format!("{root}/kubepods"))?;
    (!root.is_empty()).then(|| Observation { available: limit.saturating_sub(used), capacity: limit })
}

fn observe(agent: &Agent, images: &Path) -> Observations {
    observe::observe(&agent.config.root_dir, images, pods_memory(agent))
}

/// One look; the uid of the pod that was ended, if one was.
async fn look(agent: &Arc<Agent>, state: &mut State, images: &Path) -> Option<String> {
    let config = &agent.config.eviction;
    let observed = observe(agent, images);
    let urgent = state.observe(config, &observed, agent.clock.now());
    agent.set_pressure(state.pressure());
    if let Some(uid) = end_excessive(agent).await {
        return Some(uid);
    }
    let cause = urgent.first()?;
    let resource = cause.signal.resource();
    agent.recorder.record(
        register::reference(&agent.config.node_name),
        EventType::Warning,
        "EvictionThresholdMet",
        format!("Attempting to reclaim {}", resource.name()),
    );
    if matches!(resource, Resource::EphemeralStorage | Resource::Inodes) {
        container_gc::remove_unused(agent).await;
        image_gc::remove_unused(agent).await;
        if state::met(&config.thresholds, &observe(agent, images), true).is_empty() {
            return None;
        }
    }
    let pods: Vec<Arc<Pod>> = agent.admitted.lock().values().cloned().collect();
    let chosen = rank::rank(candidates(agent, pods).await, resource).into_iter().next()?;
    Some(end(agent, &chosen, cause, &urgent, &observed, resource))
}

fn end(
    agent: &Agent,
    chosen: &Candidate,
    cause: &Threshold,
    urgent: &[Threshold],
    observed: &Observations,
    resource: Resource,
) -> String {
    let message = rank::message(chosen, resource, urgent, observed);
    let grace = match cause.is_hard() {
        true => GRACE_SECONDS,
        false => agent
            .config
            .eviction
            .pod_grace_seconds_max
            .min(spec::grace_period_seconds(&chosen.pod))
            .max(GRACE_SECONDS),
    };
    agent.counters.evicted(cause.signal.name());
    condemn(agent, &chosen.pod, message, grace, Some(rank::annotations(chosen, resource)))
}

/// Ends a pod; the annotations are those of a pod that goes for the node's sake.
fn condemn(
    agent: &Agent,
    pod: &Pod,
    message: String,
    grace: i64,
    for_node: Option<BTreeMap<String, String>>,
) -> String {
    let disruption = for_node.is_some();
    let about = reconcile::object_reference(pod);
    let annotations = for_node.unwrap_or_default();
    agent.recorder.annotated(about, EventType::Warning, EVICTED, message.clone(), annotations);
    let verdict = Verdict { reason: EVICTED.into(), message, grace_seconds: Some(grace), disruption };
    agent.workers.condemn(pod.uid(), verdict);
    pod.uid().to_owned()
}

/// Ends pods that store more than they may. Only pods with limits are measured.
async fn end_excessive(agent: &Agent) -> Option<String> {
    let limited: Vec<Arc<Pod>> =
        agent.admitted.lock().values().filter(|pod| limits::is_limited(pod)).cloned().collect();
    if limited.is_empty() {
        return None;
    }
    let mut last = None;
    for candidate in candidates(agent, limited).await {
        if let Some(message) = limits::violation(&candidate).filter(|_| candidate.may_go()) {
            agent.counters.evicted("ephemeralpodfs.limit");
            last = Some(condemn(agent, &candidate.pod, message, GRACE_SECONDS, None));
        }
    }
    last
}

/// What pods use.
async fn candidates(agent: &Agent, pods: Vec<Arc<Pod>>) -> Vec<Candidate> {
    let mut all = Vec::new();
    for pod in pods {
        let labels = BTreeMap::from([(mark::POD_UID.to_owned(), pod.uid().to_owned())]);
        let filter = ContainerFilter { labels, ..ContainerFilter::default() };
        let containers = agent.runtime.list_containers(&filter).await.unwrap_or_default();
        let stats = agent.runtime.list_container_stats(&filter).await.unwrap_or_default();
        let dirs = PodDirs::new(&agent.config.root_dir, &agent.config.log_dir, &pod);
        let measured = pod.clone();
        // Counting files may take long.
        let files = tokio::task::spawn_blocking(move || (volumes(&measured, &dirs), logs(&containers)));
        let (volumes, mut logs) = files.await.unwrap_or_default();
        let units = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let containers = stats.into_iter().map(|stat| ContainerUsage {
            memory: units(stat.memory_working_set_bytes),
            rootfs: units(stat.writable_layer_bytes),
            inodes: units(stat.writable_layer_inodes),
            logs: logs.remove(&stat.name).unwrap_or(0),
            processes: units(stat.pids),
            name: stat.name,
        });
        all.push(Candidate { pod, containers: containers.collect(), volumes });
    }
    all
}

/// Bytes and files of a pod's volumes that lie on the node's own disk.
pub(crate) fn volumes(pod: &Pod, dirs: &PodDirs) -> Vec<(String, i64, i64)> {
    let spec = spec::spec(pod);
    let volumes = spec.volumes.iter().flatten();
    volumes
        .filter_map(|volume| {
            let plugin = if volume.empty_dir.is_some() {
                "kubernetes.io/empty-dir"
            } else if volume.config_map.is_some() {
                "kubernetes.io/configmap"
            } else if volume.secret.is_some() {
                "kubernetes.io/secret"
            } else if volume.projected.is_some() {
                "kubernetes.io/projected"
            } else if volume.downward_api.is_some() {
                "kubernetes.io/downward-api"
            } else {
                return None;
            };
            let (bytes, files) = observe::usage(&dirs.volume(plugin, &volume.name));
            Some((volume.name.clone(), bytes, files))
        })
        .collect()
}

/// Bytes of containers' logs by name, rotated ones included.
fn logs(containers: &[ContainerStatus]) -> HashMap<String, i64> {
    let mut directories: BTreeMap<&str, PathBuf> = BTreeMap::new();
    for container in containers {
        if let Some(directory) = container.log_path.parent() {
            directories.insert(&container.name, directory.to_owned());
        }
    }
    directories.into_iter().map(|(name, path)| (name.to_owned(), observe::usage(&path).0)).collect()
}
