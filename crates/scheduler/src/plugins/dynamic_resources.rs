//! `DynamicResources`: nodes from which the devices of a pod's claims can be used, or where those can be allocated
//! that it has not got yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::k8s_openapi::api::resource::v1::{AllocationResult, DeviceClaim, ResourceClaimSpec};
use api::prelude::*;
use devices::{EXTENDED_CLAIM, Failure, Inventory, Mapping, Selectors, Slices, Taken, claims};
use stdx::Random;

use crate::cache::Cache;
use crate::devices::{Classes, Cleanup, Devices, Reserve, Work};
use crate::framework::{Changes, CycleState, Plugin, Prepared, Refusal};
use crate::node_info::NodeInfo;
use crate::pod_info::{NodeTerm, PodInfo};

/// Name of the plugin.
pub const NAME: &str = "DynamicResources";

/// The row.
pub const PLUGIN: Plugin = Plugin {
    prepare_filter: Some(prepare_filter),
    filter: Some(filter),
    ..Plugin::named(NAME, Changes::DEVICES.and(Changes::NODE_ADDED).and(Changes::NODE_LABELS))
};

/// A pod's claims, sorted out.
#[derive(Debug, Clone, Default)]
pub struct State(Option<Arc<Sorted>>);

#[derive(Debug, Default)]
struct Sorted {
    claims: Vec<Arc<ResourceClaim>>,
    /// Where allocated claims can be used, by their positions.
    places: Vec<(usize, Vec<NodeTerm>)>,
    /// Claims without an allocation.
    waiting: Vec<Arc<ResourceClaim>>,
    /// Extended resources that classes stand behind, with the classes' names.
    extended: BTreeMap<String, String>,
    /// A claim for extended resources that an earlier try has left.
    stale: Option<Arc<ResourceClaim>>,
    slices: Arc<Slices>,
    classes: Arc<Classes>,
    selectors: Arc<Selectors>,
    taken: Arc<Taken>,
}

impl State {
    /// Whether a class of devices stands behind a resource that a node does not offer otherwise.
    pub fn stands_behind(&self, resource: &str, offered: i64) -> bool {
        offered == 0 && self.0.as_ref().is_some_and(|sorted| sorted.extended.contains_key(resource))
    }
}

/// Why a pod need not be tried yet: its claims are not there. In upstream's words.
pub fn blocked(cache: &Cache, pod: &PodInfo) -> Option<String> {
    of_pod(&cache.devices, pod).err()
}

/// The claims of a pod.
fn of_pod(devices: &Devices, pod: &PodInfo) -> Result<Vec<Arc<ResourceClaim>>, String> {
    let mut found = Vec::new();
    for entry in claims::of_pod(&pod.pod) {
        let reference = claims::reference(&pod.pod, entry).map_err(|why| why.to_string())?;
        let Some(reference) = reference else { continue };
        let name = &reference.name;
        let claim = devices.claim(&format!("{}/{name}", pod.pod.namespace()));
        let claim = claim.ok_or_else(|| format!("resourceclaim.resource.k8s.io {name:?} not found"))?;
        if claim.is_terminating() {
            return Err(format!("resourceclaim {name:?} is being deleted"));
        }
        if reference.own {
            claims::check_owner(&pod.pod, claim)?;
        }
        found.push(claim.clone());
    }
    Ok(found)
}

/// Whether a pod uses a claim.
pub fn uses(pod: &PodInfo, key: &str) -> bool {
    let named = |entry| claims::reference(&pod.pod, entry).ok().flatten().map(|reference| reference.name);
    let mut names = claims::of_pod(&pod.pod).iter().filter_map(named);
    names.any(|name| key.strip_prefix(pod.pod.namespace()).and_then(|k| k.strip_prefix('/')) == Some(&name))
}

fn prepare_filter(pod: &PodInfo, cache: &Cache, state: &mut CycleState) -> Prepared {
    match sort(pod, &cache.devices) {
        Ok(sorted) if sorted.claims.is_empty() && sorted.extended.is_empty() => Prepared::Skip,
        Ok(sorted) => {
            state.devices = State(Some(Arc::new(sorted)));
            Prepared::Run
        }
        Err(why) => Prepared::Reject(why),
    }
}

/// Extended resources of a pod that classes stand behind.
fn extended(pod: &PodInfo, classes: &Classes) -> BTreeMap<String, String> {
    let wanted = pod.requests.scalar.iter().filter(|(name, amount)| **amount > 0 && name.contains('/'));
    wanted.filter_map(|(name, _)| Some((name.clone(), classes.behind(name)?.name().to_owned()))).collect()
}

/// Looks up a pod's claims. An error says why no node will do.
fn sort(pod: &PodInfo, devices: &Devices) -> Result<Sorted, String> {
    let extended = extended(pod, &devices.classes);
    if claims::of_pod(&pod.pod).is_empty() && extended.is_empty() {
        return Ok(Sorted::default());
    }
    let found = of_pod(devices, pod)?;
    let mut sorted = Sorted {
        slices: devices.slices.clone(),
        classes: devices.classes.clone(),
        selectors: devices.selectors.clone(),
        taken: devices.taken(),
        ..Sorted::default()
    };
    for (i, claim) in found.iter().enumerate() {
        if let Some(allocation) = claims::allocation(claim) {
            if let Some(selector) = &allocation.node_selector {
                let terms = selector.node_selector_terms.iter().map(NodeTerm::compile).collect();
                sorted.places.push((i, terms));
            }
            continue;
        }
        if devices.is_pending(claim.uid()) {
            return Err(format!("resource claim {} is in the process of being allocated", claim.key()));
        }
        check_classes(claim, &devices.classes)?;
        sorted.waiting.push(claim.clone());
    }
    if !extended.is_empty() {
        let left = devices.claims().find(|claim| {
            let annotations = claim.metadata.annotations.as_ref();
            annotations.and_then(|a| a.get(EXTENDED_CLAIM)).is_some_and(|v| v == "true")
                && claims::check_owner(&pod.pod, claim).is_ok()
        });
        sorted.stale = left.cloned();
        sorted.extended = extended;
    }
    sorted.claims = found;
    Ok(sorted)
}

fn check_classes(claim: &ResourceClaim, classes: &Classes) -> Result<(), String> {
    let check = |request: String, class: &str| match (class, classes.get(class)) {
        ("", _) => Err(format!("request {request}: unsupported request type")),
        (_, Some(_)) => Ok(()),
        (_, None) => Err(format!("request {request}: device class {class} does not exist")),
    };
    for request in claims::asks(claim).into_iter().flat_map(|asks| asks.requests.iter().flatten()) {
        match &request.exactly {
            Some(exact) => check(request.name.clone(), &exact.device_class_name)?,
            None => {
                for sub in request.first_available.iter().flatten() {
                    check(format!("{}/{}", request.name, sub.name), &sub.device_class_name)?;
                }
            }
        }
    }
    Ok(())
}

impl Sorted {
    /// What has to be allocated if the pod goes to a node; last, where there is one, the claim for extended
    /// resources, with the containers that use it.
    fn wanted(&self, pod: &PodInfo, node: &NodeInfo) -> (Vec<Arc<ResourceClaim>>, Vec<Mapping>) {
        let mut all = self.waiting.clone();
        let offered = |name: &str| node.allocatable.scalar.get(name).copied().unwrap_or(0);
        let classes: BTreeMap<String, String> = self
            .extended
            .iter()
            .filter(|(name, _)| offered(name) == 0)
            .map(|(n, c)| (n.clone(), c.clone()))
            .collect();
        let (requests, mappings) = match classes.is_empty() {
            true => (Vec::new(), Vec::new()),
            false => devices::extended_requests(&pod.pod, &classes),
        };
        if !requests.is_empty() {
            let asks = DeviceClaim { requests: Some(requests), ..DeviceClaim::default() };
            all.push(Arc::new(ResourceClaim {
                metadata: extended_metadata(&pod.pod),
                spec: Some(ResourceClaimSpec { devices: Some(asks) }),
                status: None,
            }));
        }
        (all, mappings)
    }

    fn allocate(
        &self,
        node: &Node,
        wanted: &[Arc<ResourceClaim>],
        share: &mut dyn FnMut() -> String,
    ) -> Result<Option<Vec<AllocationResult>>, Failure> {
        let class = |name: &str| self.classes.get(name);
        let inventory =
            Inventory { slices: &self.slices, taken: &self.taken, class: &class, selectors: &self.selectors };
        devices::allocate(inventory, node, wanted, share)
    }

    /// Whether allocated claims can be used from a node.
    fn reachable(&self, node: &Node) -> bool {
        self.places.iter().all(|(_, terms)| terms.iter().any(|term| term.matches(node)))
    }
}

/// Metadata of the claim for a pod's extended resources. Its uid stands in until it exists.
fn extended_metadata(pod: &Pod) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(pod.namespace().to_owned()),
        generate_name: Some(format!("{}-extended-resources-", pod.name())),
        uid: Some(format!("extended-{}", pod.uid())),
        annotations: Some([(EXTENDED_CLAIM.to_owned(), "true".to_owned())].into()),
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            controller: Some(true),
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    }
}

fn filter(state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    let Some(sorted) = &state.devices.0 else { return Ok(()) };
    if sorted.stale.is_some() {
        return Err(Refusal::lasting("cannot schedule extended resource claim"));
    }
    let (wanted, _) = sorted.wanted(pod, node);
    if !wanted.is_empty() {
        match sorted.allocate(&node.node, &wanted, &mut String::new) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(Refusal::lasting("cannot allocate all claims")),
            Err(Failure::Node(why)) => return Err(Refusal::lasting(why)),
            Err(Failure::TooLong) => return Err(Refusal::lasting("timed out trying to allocate devices")),
            Err(Failure::Claim(why)) => return Err(Refusal::fatal(why)),
        }
    }
    match sorted.reachable(&node.node) {
        true => Ok(()),
        false => Err(Refusal::lasting("resourceclaim not available on the node")),
    }
}

/// What is to be written before a pod is bound to the node that was chosen for it.
pub fn work(cache: &Cache, pod: &PodInfo, node: &NodeInfo, random: &dyn Random) -> Work {
    let Ok(sorted) = sort(pod, &cache.devices) else { return Work::new() };
    let (wanted, mappings) = sorted.wanted(pod, node);
    let mut share = || uuid(random);
    let allocated = sorted.allocate(&node.node, &wanted, &mut share).ok().flatten().unwrap_or_default();
    let fresh = wanted.into_iter().zip(allocated).map(|(claim, allocation)| {
        let made = claim.name().is_empty();
        let mappings = if made { mappings.clone() } else { Vec::new() };
        Reserve { claim, allocation: Some(allocation), mappings }
    });
    let known = sorted.claims.iter().filter(|claim| claims::allocation(claim).is_some());
    let known = known.filter(|claim| !claims::is_reserved_for(claim, &pod.uid));
    let known = known.map(|claim| Reserve { claim: claim.clone(), allocation: None, mappings: Vec::new() });
    fresh.chain(known).collect()
}

/// What may help a pod that fits nowhere, and what people are told of it.
pub fn cleanup(cache: &Cache, pod: &PodInfo, state: &CycleState) -> (Option<Cleanup>, &'static str) {
    if claims::of_pod(&pod.pod).is_empty() && state.devices.0.is_none() {
        return (None, "");
    }
    let Some(sorted) = &state.devices.0 else { return (None, "no new claims to deallocate") };
    if let Some(stale) = &sorted.stale {
        return (Some(Cleanup::Delete(stale.clone())), "deletion of ResourceClaim completed");
    }
    let free = |claim: &ResourceClaim| claims::reserved_for(claim).iter().all(|user| user.uid == *pod.uid);
    let out_of_reach = |terms: &[NodeTerm]| {
        cache.nodes.iter().any(|node| !terms.iter().any(|term| term.matches(&node.node)))
    };
    for (i, terms) in &sorted.places {
        if let Some(claim) = sorted.claims.get(*i).filter(|claim| free(claim) && out_of_reach(terms)) {
            return (Some(Cleanup::Deallocate(claim.clone())), "deallocation of ResourceClaim completed");
        }
    }
    (None, "still not schedulable")
}

/// A random UUID (version 4).
fn uuid(random: &dyn Random) -> String {
    let (high, low) = (random.below(u64::MAX), random.below(u64::MAX));
    let high = (high & !0xf000) | 0x4000;
    let low = (low & !(0b11 << 62)) | (0b10 << 62);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}
