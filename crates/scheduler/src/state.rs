//! Cache and queue together, and what events and cycles do to them. Still no IO.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use api::k8s_openapi::api::core::v1::PodResourceClaimStatus;
use api::prelude::*;
use stdx::Random;

use crate::cache::Cache;
use crate::cycle::{self, Nominated, Outcome};
use crate::devices;
use crate::framework::Changes;
use crate::plugins::{dynamic_resources, scheduling_gates, volume_binding};
use crate::pod_info::PodInfo;
use crate::preemption::{self, Budget, Room, Verdict};
use crate::queue::{Queue, Queued};
use crate::storage::{Change, Work};

/// What is to be done after a cycle.
#[derive(Debug)]
pub enum Decision {
    /// Bind the pod, which is assumed there already.
    Bind {
        /// The pod.
        pod: Queued,
        /// Name of the node.
        node: String,
        /// What is to be bound or made first.
        volumes: Work,
        /// Claims of devices that are to be written first.
        devices: devices::Work,
    },
    /// Tell people that the pod fits nowhere.
    Report {
        /// The pod.
        pod: Arc<PodInfo>,
        /// Why, in upstream's words.
        message: String,
        /// Room to make.
        room: Option<Room>,
        /// A claim to be made free.
        cleanup: Option<devices::Cleanup>,
        /// Whether something is wrong that has nothing to do with room.
        failed: bool,
    },
}

/// The scheduler's whole memory.
#[derive(Default)]
pub struct State {
    /// Nodes and pods on them.
    pub cache: Cache,
    /// Pods that want a node.
    pub queue: Queue,
    nominated: Nominated,
    /// Pods that are not tried before their claims are there.
    held: HashMap<Arc<str>, Arc<PodInfo>>,
    start: usize,
}

/// Whether a pod has come to its end and uses nothing any more.
fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// What of a pending pod can change whether it can be scheduled.
fn same_wish(old: &Pod, new: &Pod) -> bool {
    old.spec == new.spec
        && old.metadata.labels == new.metadata.labels
        && old.is_terminating() == new.is_terminating()
        && old.metadata.annotations == new.metadata.annotations
        && claim_names(old) == claim_names(new)
}

/// The claims that were made for a pod.
fn claim_names(pod: &Pod) -> Option<&Vec<PodResourceClaimStatus>> {
    pod.status.as_ref()?.resource_claim_statuses.as_ref()
}

impl State {
    /// A pod is new or has changed. Returns a message if its gates keep it out of the queue.
    pub fn pod_changed(
        &mut self,
        old: Option<&Pod>,
        pod: &Arc<Pod>,
        scheduler: &str,
        now: Instant,
    ) -> Option<String> {
        if is_finished(pod) {
            self.pod_gone(pod, now);
            return None;
        }
        self.held.remove(pod.uid());
        let node = node_of(pod);
        if !node.is_empty() {
            self.queue.remove(pod.uid());
            self.unnominate(pod.uid());
            let known = self.cache.is_placed(pod.uid());
            self.cache.set_pod(pod.clone(), node);
            let relabelled = old.is_some_and(|old| old.metadata.labels != pod.metadata.labels);
            let shrunk = old.is_some_and(|old| old.spec != pod.spec && node_of(old) == node);
            if !known || relabelled || shrunk {
                let info = PodInfo::new(pod.clone());
                let changes =
                    if shrunk { Changes::POD_PLACED | Changes::POD_REMOVED } else { Changes::POD_PLACED };
                self.queue.changed(changes, now, |waiting| concerns(waiting, &info));
            }
            return None;
        }
        let named = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or(scheduler);
        if named != scheduler || pod.is_terminating() {
            self.queue.remove(pod.uid());
            return None;
        }
        // An assumed pod that is not yet seen bound is not to be scheduled twice.
        let held = dynamic_resources::blocked(&self.cache, &PodInfo::new(pod.clone())).is_some();
        if self.cache.is_placed(pod.uid()) || (!held && old.is_some_and(|old| same_wish(old, pod))) {
            return None;
        }
        let info = Arc::new(PodInfo::new(pod.clone()));
        match scheduling_gates::blocked(&info) {
            Some(why) => {
                self.queue.gate(info.uid.clone());
                Some(why)
            }
            None if held => {
                self.queue.gate(info.uid.clone());
                self.held.insert(info.uid.clone(), info);
                None
            }
            None => {
                self.queue.add(info, now);
                None
            }
        }
    }

    /// A pod is gone or finished.
    pub fn pod_gone(&mut self, pod: &Pod, now: Instant) {
        self.queue.remove(pod.uid());
        self.held.remove(pod.uid());
        self.unnominate(pod.uid());
        if let Some(info) = self.cache.remove_pod(pod.uid()) {
            self.queue.changed(Changes::POD_REMOVED, now, |waiting| frees(waiting, &info));
        }
    }

    /// A node is new or has changed.
    pub fn node_changed(&mut self, old: Option<&Node>, node: &Arc<Node>, now: Instant) {
        self.cache.set_node(node.clone());
        let changes = match old {
            None => Changes::NODE_ADDED,
            Some(old) => node_changes(old, node),
        };
        if changes == Changes::NONE {
            return;
        }
        let cache = &self.cache;
        // A node that the pod cannot ever go to is no reason to try again, but spreading counts nodes.
        self.queue.changed(changes, now, |waiting| {
            let fits_alone = || {
                cache.node(node.name()).is_none_or(|info| {
                    waiting.allows_node(&info.node)
                        && waiting.requests.milli_cpu <= info.allocatable.milli_cpu
                })
            };
            !waiting.spread.is_empty() || fits_alone()
        });
    }

    /// A node is gone.
    pub fn node_gone(&mut self, name: &str, now: Instant) {
        self.cache.remove_node(name);
        // One place less can even out a spread.
        self.queue.changed(Changes::NODE_LABELS, now, |waiting| !waiting.spread.is_empty());
    }

    /// A namespace is new or has changed.
    pub fn namespace_changed(&mut self, namespace: &Arc<Namespace>, now: Instant) {
        let old = self.cache.namespaces.insert(namespace.name().to_owned(), namespace.clone());
        if old.is_some_and(|old| old.metadata.labels != namespace.metadata.labels) {
            self.queue.changed(Changes::NAMESPACE, now, |_| true);
        }
    }

    /// A claim, a volume or a class is new, has changed or is gone.
    pub fn storage_changed(&mut self, change: Change, now: Instant) {
        let key = change.claim();
        if self.cache.storage.take_in(change) {
            self.queue.changed(Changes::STORAGE, now, |waiting| match &key {
                Some(key) => waiting.claims.iter().any(|(claim, _)| claim == key),
                None => !waiting.claims.is_empty(),
            });
        }
    }

    /// Claims of devices, slices, classes or rules have changed.
    pub fn devices_changed(&mut self, change: devices::Change, now: Instant) {
        let news = self.cache.devices.take_in(change);
        if news == devices::News::Nothing {
            return;
        }
        let cache = &self.cache;
        let ready =
            |(_, info): &(&Arc<str>, &Arc<PodInfo>)| dynamic_resources::blocked(cache, info).is_none();
        let free: Vec<Arc<str>> = self.held.iter().filter(ready).map(|(uid, _)| uid.clone()).collect();
        for info in free.iter().filter_map(|uid| self.held.remove(uid)) {
            self.queue.add(info, now);
        }
        self.queue.changed(Changes::DEVICES, now, |waiting| match &news {
            devices::News::Claim(key) => dynamic_resources::uses(waiting, key),
            _ => true,
        });
    }

    /// Runs one cycle, if a pod waits for one.
    pub fn cycle(&mut self, budgets: &[Budget], now: Instant, random: &dyn Random) -> Option<Decision> {
        let pod = self.queue.pop(now)?;
        let info = pod.info.clone();
        if !::devices::claims::of_pod(&info.pod).is_empty() {
            self.cache.devices.refresh();
        }
        match cycle::schedule(&self.cache, &info, &self.nominated, &mut self.start, random) {
            Outcome::Place(position) => {
                let node = self.cache.nodes[position].name().to_owned();
                let volumes = volume_binding::work(&self.cache, &info, &self.cache.nodes[position].node);
                self.cache.storage.assume(&info.uid, &volumes);
                let chosen = &self.cache.nodes[position];
                let devices = dynamic_resources::work(&self.cache, &info, chosen, random);
                self.cache.devices.reserve(&info.uid, &devices);
                self.cache.assume(info, &node);
                Some(Decision::Bind { pod, node, volumes, devices })
            }
            Outcome::Nowhere(diagnosis, _) if diagnosis.failed.is_some() => {
                self.queue.failed(pod, now);
                let message = diagnosis.message("");
                Some(Decision::Report { pod: info, message, room: None, cleanup: None, failed: true })
            }
            Outcome::Nowhere(diagnosis, state) => {
                let (cleanup, said) = dynamic_resources::cleanup(&self.cache, &info, &state);
                let offset = random.below(diagnosis.resolvable.len() as u64) as usize;
                let verdict = if diagnosis.nodes == 0 {
                    Verdict::None(String::new())
                } else {
                    preemption::find_room(&self.cache, &info, &state, &diagnosis, budgets, offset)
                };
                let refused_by = diagnosis.plugins;
                self.queue.unschedulable(pod, refused_by, now);
                let (message, room) = match verdict {
                    Verdict::Room(room) => {
                        self.nominate(&info, &room.node);
                        (diagnosis.message(""), Some(room))
                    }
                    Verdict::None(why) => (diagnosis.message_after(said, &why), None),
                };
                Some(Decision::Report { pod: info, message, room, cleanup, failed: false })
            }
        }
    }

    /// A pod could not be bound.
    pub fn bind_failed(&mut self, pod: Queued, now: Instant) {
        self.cache.forget(&pod.info.uid);
        self.cache.storage.settle(&pod.info.uid);
        self.devices_settled(&pod.info.uid, now);
        let info = pod.info.clone();
        self.queue.failed(pod, now);
        self.queue.changed(Changes::POD_REMOVED, now, |waiting| frees(waiting, &info));
    }

    /// A pod has been bound.
    pub fn bound(&mut self, pod: &PodInfo, now: Instant) {
        self.unnominate(&pod.uid);
        self.cache.storage.settle(&pod.uid);
        self.devices_settled(&pod.uid, now);
        self.queue.changed(Changes::POD_PLACED, now, |waiting| concerns(waiting, pod));
    }

    /// What was decided about a pod's claims is written, or will not be.
    pub fn devices_settled(&mut self, uid: &str, now: Instant) {
        if self.cache.devices.settle(uid) {
            self.queue.changed(Changes::DEVICES, now, |_| true);
        }
    }

    fn nominate(&mut self, info: &Arc<PodInfo>, node: &str) {
        self.unnominate(&info.uid);
        self.nominated.entry(node.to_owned()).or_default().push(info.clone());
    }

    fn unnominate(&mut self, uid: &str) {
        if self.nominated.is_empty() {
            return;
        }
        self.nominated.retain(|_, pods| {
            pods.retain(|pod| &*pod.uid != uid);
            !pods.is_empty()
        });
    }
}

/// Whether a pod coming to a node can help a waiting one: only through affinity or spreading.
fn concerns(waiting: &PodInfo, placed: &PodInfo) -> bool {
    let namespaces = |_: &str| None;
    waiting.affinity.iter().any(|term| term.matches(&placed.labels, &namespaces))
        || waiting.spread.iter().any(|s| s.counts(&placed.labels, &waiting.labels.namespace))
        // Namespace selectors cannot be judged without the namespaces.
        || !waiting.affinity.is_empty() && waiting.labels.namespace != placed.labels.namespace
}

/// Whether a pod leaving a node can help a waiting one.
fn frees(waiting: &PodInfo, gone: &PodInfo) -> bool {
    let (wanted, freed) = (&waiting.requests, &gone.requests);
    let resources = (wanted.milli_cpu > 0 && freed.milli_cpu > 0)
        || (wanted.memory > 0 && freed.memory > 0)
        || (wanted.ephemeral_storage > 0 && freed.ephemeral_storage > 0)
        || wanted.scalar.keys().any(|name| freed.scalar.contains_key(name));
    // A place in the number of pods is always freed, and so may be what affinity or spreading wants.
    resources
        || wanted.is_zero()
        || waiting.has_pod_terms()
        || gone.has_pod_terms()
        || !waiting.spread.is_empty()
        || waiting.claims.iter().any(|claim| gone.claims.contains(claim))
        || !waiting.host_ports.is_empty()
}

fn node_changes(old: &Node, new: &Node) -> Changes {
    let mut changes = Changes::NONE;
    let allocatable = |node: &Node| node.status.as_ref().and_then(|s| s.allocatable.clone());
    let gates = |node: &Node| node.spec.as_ref().map(|s| (s.taints.clone(), s.unschedulable));
    if allocatable(old) != allocatable(new) {
        changes = changes | Changes::NODE_ALLOCATABLE;
    }
    if old.metadata.labels != new.metadata.labels {
        changes = changes | Changes::NODE_LABELS;
    }
    if gates(old) != gates(new) {
        changes = changes | Changes::NODE_TAINTS;
    }
    changes
}
