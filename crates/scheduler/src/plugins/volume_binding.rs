//! `VolumeBinding`: nodes from which a pod's volumes can be used, or where those can be found or made that it has
//! not got yet.

use std::collections::HashSet;
use std::sync::Arc;

use api::prelude::*;
use volumes::{annotated, annotation};

use crate::cache::Cache;
use crate::framework::{Changes, CycleState, Plugin, Prepared, Refusal};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::storage::{Room, Work};

/// The row.
pub const PLUGIN: Plugin = Plugin {
    prepare_filter: Some(prepare_filter),
    filter: Some(filter),
    ..Plugin::named("VolumeBinding", Changes::STORAGE.and(Changes::NODE_ADDED).and(Changes::NODE_LABELS))
};

const CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
const NO_MATCH: &str = "node(s) didn't find available persistent volumes to bind";
const NO_SPACE: &str = "node(s) did not have enough free storage";
const NO_VOLUME: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

/// A pod's claims, sorted out.
#[derive(Debug, Clone, Default)]
pub struct State(Option<Arc<Sorted>>);

#[derive(Debug, Default)]
struct Sorted {
    /// Volumes of claims that are bound; `None` where the volume is not there.
    bound: Vec<Option<Arc<PersistentVolume>>>,
    /// Claims that wait for a node, smallest first, with their classes.
    waiting: Vec<Waiting>,
    /// Volumes that could be bound.
    volumes: Vec<Arc<PersistentVolume>>,
    /// Of those, the ones that other pods were promised.
    taken: HashSet<String>,
}

/// A claim that waits for a node.
#[derive(Debug)]
struct Waiting {
    claim: Arc<PersistentVolumeClaim>,
    class: Arc<StorageClass>,
    /// Where its driver has room for it; `None` for a driver that does not say.
    rooms: Option<Vec<Arc<Room>>>,
}

fn prepare_filter(pod: &PodInfo, cache: &Cache, state: &mut CycleState) -> Prepared {
    if pod.claims.is_empty() {
        return Prepared::Skip;
    }
    match sort(pod, cache) {
        Ok(sorted) => {
            state.claims = State(Some(Arc::new(sorted)));
            Prepared::Run
        }
        Err(why) => Prepared::Reject(why),
    }
}

/// Looks up a pod's claims. An error says why no node will do.
fn sort(pod: &PodInfo, cache: &Cache) -> Result<Sorted, String> {
    let storage = &cache.storage;
    let mut sorted = Sorted::default();
    let mut immediate = false;
    for (key, own) in &pod.claims {
        let name = key.rsplit('/').next().unwrap_or_default();
        let Some(claim) = storage.claims.get(key) else {
            return Err(match own {
                true => format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                ),
                false => format!("persistentvolumeclaim {name:?} not found"),
            });
        };
        let mut owners = claim.metadata.owner_references.iter().flatten();
        if *own && !owners.any(|o| o.controller == Some(true) && o.uid == *pod.uid) {
            return Err(format!("PVC {key} was not created for pod {} (pod is not owner)", pod.key));
        }
        let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
            return Err(format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {named:?}"
            ));
        }
        if claim.is_terminating() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let class = storage.class_of(claim);
        let delays = class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        if !named.is_empty() && annotated(&claim.metadata, annotation::BIND_COMPLETED).is_some() {
            sorted.bound.push(storage.volumes.get(named).cloned());
        } else if let Some(class) = class.filter(|_| delays && named.is_empty()) {
            let rooms = storage.rooms_for(claim, class);
            sorted.waiting.push(Waiting { claim: claim.clone(), class: class.clone(), rooms });
        } else {
            immediate = true;
        }
    }
    if immediate {
        return Err("pod has unbound immediate PersistentVolumeClaims".into());
    }
    if !sorted.waiting.is_empty() {
        let size = |claim: &PersistentVolumeClaim| {
            claim.spec.as_ref().and_then(|s| volumes::storage(s.resources.as_ref()?.requests.as_ref()))
        };
        sorted
            .waiting
            .sort_by(|a, b| size(&a.claim).partial_cmp(&size(&b.claim)).unwrap_or(std::cmp::Ordering::Equal));
        sorted.volumes = storage.volumes.values().cloned().collect();
        sorted.volumes.sort_by(|a, b| a.name().cmp(b.name()));
        sorted.taken = storage.taken_from(&pod.uid);
    }
    Ok(sorted)
}

fn filter(state: &CycleState, _: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    let Some(sorted) = &state.claims.0 else { return Ok(()) };
    let mut reasons = Vec::new();
    if sorted.bound.iter().flatten().any(|volume| !volumes::allows_node(volume, &node.node)) {
        reasons.push(CONFLICT.into());
    }
    if let Err(why) = work_on(sorted, &node.node) {
        reasons.push(why.into());
    }
    if sorted.bound.iter().any(Option::is_none) {
        reasons.push(NO_VOLUME.into());
    }
    if reasons.is_empty() { Ok(()) } else { Err(Refusal { reasons, resolvable: false, fatal: false }) }
}

/// What is to be done for the waiting claims if the pod goes to a node. An error says why that cannot be.
fn work_on(sorted: &Sorted, node: &Node) -> Result<Work, &'static str> {
    let mut work = Work::default();
    let mut chosen: HashSet<String> = HashSet::new();
    // Volumes are looked for first: where one is missing, nothing is said of room for others.
    let mut provision = Vec::new();
    for waiting in &sorted.waiting {
        let claim = &waiting.claim;
        match annotated(&claim.metadata, annotation::SELECTED_NODE) {
            Some(selected) if selected != node.name() => return Err(NO_MATCH),
            Some(_) => {
                provision.push(waiting);
                continue;
            }
            None => {}
        }
        let taken = |name: &str| chosen.contains(name) || sorted.taken.contains(name);
        match volumes::best_match(claim, &sorted.volumes, Some(node), true, &taken) {
            Some(volume) => {
                chosen.insert(volume.name().to_owned());
                work.bind.push((volume, claim.clone()));
            }
            None => provision.push(waiting),
        }
    }
    for Waiting { claim, class, rooms } in provision {
        if !can_provision(class, node) {
            return Err(NO_MATCH);
        }
        if rooms.as_ref().is_some_and(|rooms| !rooms.iter().any(|room| room.is_on(node))) {
            return Err(NO_SPACE);
        }
        work.provision.push(claim.clone());
    }
    Ok(work)
}

/// Whether volumes of a class can be made for a node.
fn can_provision(class: &StorageClass, node: &Node) -> bool {
    let makes = !class.provisioner.is_empty() && class.provisioner != "kubernetes.io/no-provisioner";
    let labels = node.metadata.labels.as_ref();
    let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
    let allowed = topologies.is_empty()
        || topologies.iter().any(|term| {
            let mut wanted = term.match_label_expressions.iter().flatten();
            wanted.all(|e| labels.and_then(|l| l.get(&e.key)).is_some_and(|v| e.values.contains(v)))
        });
    makes && allowed
}

/// What is to be done before a pod is bound to the node that was chosen for it.
pub fn work(cache: &Cache, pod: &PodInfo, node: &Node) -> Work {
    if pod.claims.is_empty() {
        return Work::default();
    }
    sort(pod, cache).ok().and_then(|sorted| work_on(&sorted, node).ok()).unwrap_or_default()
}
