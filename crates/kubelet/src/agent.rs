//! What every pod worker of a node shares: clients, caches, the runtime, and the table of workers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use api::prelude::*;
use client::Client;
use cri::RuntimeService;
use parking_lot::Mutex;
use reconcile::{Informer, Recorder};
use stdx::Clock;
use tokio::sync::{Notify, watch};

use crate::admit::{self, NodeView};
use crate::config::Config;
use crate::counters::Counters;
use crate::eviction::state::Pressure;
use crate::images::Images;
use crate::node::machine::Machine;
use crate::references::References;
use crate::resources::{self, Amounts};
use crate::status::Verdict;
use crate::volume::Volumes;

/// Where RuntimeClasses are.
const RUNTIME_CLASSES: meta::Gvr = meta::Gvr::new("node.k8s.io", "v1", "runtimeclasses");

/// What the API wants of a pod.
#[derive(Debug, Clone)]
pub struct Desired {
    /// The pod as last seen.
    pub pod: Arc<Pod>,
    /// It is no longer in the API.
    pub gone: bool,
}

/// The way to a worker.
pub struct Handle {
    /// What the API wants.
    pub desired: watch::Sender<Desired>,
    /// Wakes the worker.
    pub kick: Arc<Notify>,
    /// Something the pod refers to has changed since the worker last looked.
    pub stale: Arc<AtomicBool>,
    /// Set when the pod is to be ended for the node's sake.
    pub condemned: Arc<OnceLock<Verdict>>,
}

/// The node's shared parts.
pub struct Agent {
    /// Configuration.
    pub config: Config,
    /// API client with the node's identity.
    pub client: Client,
    /// Container runtime.
    pub runtime: Arc<dyn RuntimeService>,
    /// What the runtime has said of itself.
    pub runtime_info: cri::RuntimeInfo,
    /// Image puller.
    pub images: Images,
    /// ConfigMaps and Secrets in use.
    pub references: Arc<References>,
    /// Volumes.
    pub volumes: Volumes,
    /// Events.
    pub recorder: Recorder,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Services, for environment variables.
    pub services: Arc<Informer<Service>>,
    /// The node's own object.
    pub node: Arc<Informer<Node>>,
    /// What the machine has.
    pub machine: Machine,
    /// Workers by pod uid.
    pub workers: Arc<Workers>,
    /// Pods that were admitted and have not ended, with the resources they are allocated.
    pub admitted: Mutex<HashMap<String, Arc<Pod>>>,
    /// Uids of pods whose resize waits for room.
    pub deferred: Mutex<std::collections::HashSet<String>>,
    /// Told when a pod counts no longer.
    pub discharged: Notify,
    /// Told when the node's status is worth another look.
    pub changed: Notify,
    /// Pressure the node is under.
    pub pressure: Mutex<Pressure>,
    /// Images as seen over time.
    pub images_seen: tokio::sync::Mutex<crate::image_gc::Seen>,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Processors and whose they are.
    pub cpus: crate::cpu::Manager,
    /// NUMA nodes of the machine.
    pub numa: Vec<crate::numa::Node>,
    /// Memory of NUMA nodes and whose it is.
    pub memory: crate::memory::Manager,
    /// One pod at a time is given its shares.
    pub apportioning: tokio::sync::Mutex<()>,
    /// Pods that failed as a whole, have ended and are reported so.
    pub ended: Mutex<std::collections::HashSet<String>>,
    /// Told when there is another one.
    pub ended_changed: Notify,
    /// Whether the machine goes down.
    pub shutdown: crate::shutdown::Signal,
    /// User ids of pods and whose they are.
    pub users: crate::userns::Manager,
    /// How often probes went how, by pod uid and labels.
    pub probes: Mutex<HashMap<String, std::collections::BTreeMap<String, u64>>>,
    /// Rates of processor time.
    pub rates: crate::server::Rates,
    /// Who may use the node's server.
    pub gate: crate::server::Gate,
    /// Devices of plugins and whose they are.
    pub devices: Arc<crate::devices::Manager>,
    /// Devices of claims.
    pub dra: Arc<crate::dra::Manager>,
    /// Told when the processors that containers share have changed.
    pub shared_changed: Notify,
    /// Swap that is there to be limited.
    pub swap: Option<crate::swap::Swap>,
}

/// The table of workers.
#[derive(Default)]
pub struct Workers(pub Mutex<HashMap<String, Handle>>);

impl Workers {
    /// Wakes the worker of a pod, if there is one.
    pub fn kick(&self, uid: &str) {
        if let Some(handle) = self.0.lock().get(uid) {
            handle.kick.notify_one();
        }
    }

    /// Wakes the worker of a pod because something that the pod refers to has changed.
    pub fn kick_stale(&self, uid: &str) {
        if let Some(handle) = self.0.lock().get(uid) {
            handle.stale.store(true, Ordering::Release);
            handle.kick.notify_one();
        }
    }

    /// Tells the worker of a pod to end it.
    pub fn condemn(&self, uid: &str, verdict: Verdict) {
        if let Some(handle) = self.0.lock().get(uid) {
            let _ = handle.condemned.set(verdict);
            handle.kick.notify_one();
        }
    }

    /// Has every worker that waits after a failure try again.
    pub fn retry_all(&self) {
        for handle in self.0.lock().values() {
            handle.stale.store(true, Ordering::Release);
            handle.kick.notify_one();
        }
    }

    /// Wakes every worker.
    pub fn kick_all(&self) {
        self.0.lock().values().for_each(|handle| handle.kick.notify_one());
    }
}

impl Agent {
    /// Allocatable resources of this node.
    pub fn allocatable(&self) -> Amounts {
        let mut all = self.machine.allocatable(&self.config);
        all.extend(self.devices.amounts().into_iter().map(|(name, (_, usable))| (name, usable)));
        all
    }

    /// The runtime's handler behind a pod's RuntimeClass; empty for the default one. An error says why the pod
    /// cannot be run.
    pub async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        let name = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()).unwrap_or_default();
        if name.is_empty() {
            return Ok(String::new());
        }
        let class = self.client.get(&RUNTIME_CLASSES, "", name).await;
        let class = class.map_err(|error| format!("failed to get RuntimeClass {name}: {error}"))?;
        Ok(class.get("handler").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned())
    }

    /// Whether the machine goes down and pods with it.
    pub fn is_shutting_down(&self) -> bool {
        self.shutdown.is_asked() && !self.config.shutdown_periods.is_empty()
    }

    /// A pod has ended for good and that was reported.
    pub fn note_end(&self, uid: &str) {
        self.ended.lock().insert(uid.to_owned());
        self.ended_changed.notify_waiters();
    }

    /// A pod's worker is gone.
    pub fn forget(&self, uid: &str) {
        self.workers.0.lock().remove(uid);
        self.ended.lock().remove(uid);
        self.ended_changed.notify_waiters();
    }

    /// Pressure the node is under.
    pub fn pressure(&self) -> Pressure {
        *self.pressure.lock()
    }

    /// Notes what pressure the node is under; a change is reported at once.
    pub fn set_pressure(&self, now: Pressure) {
        if std::mem::replace(&mut *self.pressure.lock(), now) != now {
            self.changed.notify_one();
        }
    }

    /// Addresses of the node.
    pub fn host_ips(&self) -> &[IpAddr] {
        &self.config.node_ips
    }

    /// Admits a pod and counts it from now on, or says why not.
    pub fn admit(&self, pod: &Arc<Pod>) -> Result<(), Verdict> {
        if self.is_shutting_down() {
            return Err(crate::shutdown::refusal());
        }
        crate::eviction::admit::admit(pod, self.pressure())?;
        crate::security::admit_apparmor(pod, crate::security::apparmor_enabled())?;
        crate::sysctl::admit(pod, &self.config.allowed_sysctls)?;
        let own = self.node.store().get(&self.config.node_name);
        let labels = own.as_ref().and_then(|node| node.metadata.labels.clone());
        let taints = own.as_ref().and_then(|node| node.spec.as_ref()?.taints.clone());
        let view = NodeView {
            name: self.config.node_name.clone(),
            labels: labels.unwrap_or_else(|| crate::node::object::labels(&self.config)),
            taints: taints.unwrap_or_default(),
            allocatable: self.allocatable(),
            supplemental_groups_policy: self.runtime_info.supplemental_groups_policy,
        };
        let mut admitted = self.admitted.lock();
        let others: Vec<Arc<Pod>> =
            admitted.iter().filter(|(uid, _)| *uid != pod.uid()).map(|(_, pod)| pod.clone()).collect();
        let others: Vec<&Pod> = others.iter().map(|pod| &**pod).collect();
        admit::admit(pod, &view, &others)?;
        admitted.insert(pod.uid().to_owned(), pod.clone());
        Ok(())
    }

    /// Counts a pod that runs already.
    pub fn adopt(&self, pod: &Arc<Pod>) {
        self.admitted.lock().insert(pod.uid().to_owned(), pod.clone());
    }

    /// The pod no longer counts.
    pub fn discharge(&self, uid: &str) {
        let counted = self.admitted.lock().remove(uid).is_some();
        self.discharged.notify_waiters();
        self.devices.release(uid);
        self.memory.release(uid);
        self.users.release(uid);
        self.probes.lock().remove(uid);
        if self.cpus.release(uid) {
            self.shared_changed.notify_one();
        }
        self.deferred.lock().remove(uid);
        if counted {
            self.tell_deferred(uid);
        }
    }

    /// Whether there is room for a running pod with other resources.
    pub fn judge_resize(&self, pod: &Pod) -> crate::resize::Judgement {
        let admitted = self.admitted.lock();
        let others: Vec<Arc<Pod>> =
            admitted.iter().filter(|(uid, _)| *uid != pod.uid()).map(|(_, pod)| pod.clone()).collect();
        crate::resize::judge(pod, &self.allocatable(), &others)
    }

    /// Counts a pod with what it is allocated; `deferred` if it waits for more.
    pub fn note_allocation(&self, pod: &Arc<Pod>, deferred: bool) {
        let before = self.admitted.lock().insert(pod.uid().to_owned(), pod.clone());
        {
            let mut waiting = self.deferred.lock();
            match deferred {
                true => drop(waiting.insert(pod.uid().to_owned())),
                false => drop(waiting.remove(pod.uid())),
            }
        }
        let total = |pod: &Pod| resources::pod_total(pod, resources::requests);
        if before.is_some_and(|before| !Arc::ptr_eq(&before, pod) && total(&before) != total(pod)) {
            self.tell_deferred(pod.uid());
        }
    }

    /// Others may have become free: whoever waits for room looks again.
    fn tell_deferred(&self, by: &str) {
        let waiting: Vec<String> = self.deferred.lock().iter().filter(|uid| *uid != by).cloned().collect();
        waiting.iter().for_each(|uid| self.workers.kick(uid));
    }

    /// Bytes of memory of the machine.
    pub fn memory_capacity(&self) -> i64 {
        self.machine.memory_bytes
    }

    /// What the environment of a pod may refer to.
    pub fn facts(&self, pod_ips: Vec<IpAddr>) -> crate::env::Facts {
        let allocatable = self.allocatable();
        crate::env::Facts {
            node_name: self.config.node_name.clone(),
            host_ips: self.config.node_ips.clone(),
            pod_ips,
            allocatable: allocatable
                .into_iter()
                .filter(|(name, _)| name != "pods")
                .collect::<resources::Amounts>(),
        }
    }
}
