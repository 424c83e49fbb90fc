//! What the scheduler knows of devices: claims, slices, classes, and what it has decided about them.

use std::collections::HashMap;
use std::sync::Arc;

use api::k8s_openapi::api::resource::v1::AllocationResult;
use api::prelude::*;
use devices::{Mapping, Selectors, Slices, Taken, claims};

/// One claim to be written before a pod is bound.
#[derive(Debug, Clone)]
pub struct Reserve {
    /// The claim. One for extended resources does not exist yet and has no name.
    pub claim: Arc<ResourceClaim>,
    /// What is to be allocated for it; `None` if it is allocated already.
    pub allocation: Option<AllocationResult>,
    /// Containers that use the requests of a claim for extended resources.
    pub mappings: Vec<Mapping>,
}

/// What is to happen to claims of devices before their pod is bound.
pub type Work = Vec<Reserve>;

/// What may help a pod that fits nowhere: a claim that nobody uses is made free.
#[derive(Debug, Clone)]
pub enum Cleanup {
    /// Devices are to be taken back.
    Deallocate(Arc<ResourceClaim>),
    /// A claim for extended resources that an earlier try has left.
    Delete(Arc<ResourceClaim>),
}

/// A piece of news.
#[derive(Debug, Clone)]
pub enum Change {
    /// A claim as it is now.
    Claim(Arc<ResourceClaim>),
    /// A claim is gone.
    ClaimGone(String),
    /// A slice as it is now.
    Slice(Arc<ResourceSlice>),
    /// A slice is gone.
    SliceGone(String),
    /// A class as it is now.
    Class(Arc<DeviceClass>),
    /// A class is gone.
    ClassGone(String),
    /// A rule that taints devices, as it is now.
    Rule(Arc<DeviceTaintRule>),
    /// Such a rule is gone.
    RuleGone(String),
}

/// Whom news may help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Nobody.
    Nothing,
    /// Pods that use the claim with this key.
    Claim(String),
    /// Every pod that waits for devices.
    Devices,
}

/// Classes, by name and by the extended resources they stand behind.
#[derive(Debug, Clone, Default)]
pub struct Classes(HashMap<String, Arc<DeviceClass>>);

impl Classes {
    /// The class of this name.
    pub fn get(&self, name: &str) -> Option<Arc<DeviceClass>> {
        self.0.get(name).cloned()
    }

    /// The class behind an extended resource: of several the newest.
    pub fn behind(&self, resource: &str) -> Option<&DeviceClass> {
        if let Some(class) = self.0.values().find(|class| devices::implicit_name(class.name()) == resource) {
            return Some(class);
        }
        let names = |class: &&Arc<DeviceClass>| {
            class.spec.as_ref().and_then(|s| s.extended_resource_name.as_deref()) == Some(resource)
        };
        let newest = self.0.values().filter(names).max_by(|a, b| {
            let created = |class: &DeviceClass| class.metadata.creation_timestamp.as_ref().map(|t| t.0);
            created(a).cmp(&created(b)).then_with(|| b.name().cmp(a.name()))
        });
        newest.map(|class| &**class)
    }
}

/// The picture.
#[derive(Debug, Default)]
pub struct Devices {
    /// Slices and rules that taint devices.
    pub slices: Arc<Slices>,
    /// Classes.
    pub classes: Arc<Classes>,
    /// Compiled selectors.
    pub selectors: Arc<Selectors>,
    claims: HashMap<String, Arc<ResourceClaim>>,
    /// Decided and not yet written: by the claim's uid, with the pod's.
    pending: HashMap<String, (String, AllocationResult)>,
    /// What claims have; made anew after a change.
    taken: Option<Arc<Taken>>,
}

fn revision(claim: &ResourceClaim) -> u64 {
    claim.resource_version().parse().unwrap_or(0)
}

impl Devices {
    /// A claim by key.
    pub fn claim(&self, key: &str) -> Option<&Arc<ResourceClaim>> {
        self.claims.get(key)
    }

    /// All claims.
    pub fn claims(&self) -> impl Iterator<Item = &Arc<ResourceClaim>> {
        self.claims.values()
    }

    /// Takes news in. Returns whom they may help.
    pub fn take_in(&mut self, change: Change) -> News {
        match change {
            Change::Claim(claim) => self.set_claim(claim),
            Change::ClaimGone(key) => {
                self.taken = None;
                let old = self.claims.remove(&key);
                match old.is_some_and(|old| claims::allocation(&old).is_some()) {
                    true => News::Devices,
                    false => News::Nothing,
                }
            }
            Change::Slice(slice) => {
                Arc::make_mut(&mut self.slices).set(slice);
                News::Devices
            }
            Change::SliceGone(name) => {
                Arc::make_mut(&mut self.slices).remove(&name);
                // What is left of the pool may be whole now.
                News::Devices
            }
            Change::Class(class) => {
                Arc::make_mut(&mut self.classes).0.insert(class.name().to_owned(), class);
                News::Devices
            }
            Change::ClassGone(name) => {
                Arc::make_mut(&mut self.classes).0.remove(&name);
                News::Nothing
            }
            Change::Rule(rule) => {
                Arc::make_mut(&mut self.slices).set_rule(rule);
                News::Devices
            }
            Change::RuleGone(name) => {
                Arc::make_mut(&mut self.slices).remove_rule(&name);
                News::Devices
            }
        }
    }

    fn set_claim(&mut self, claim: Arc<ResourceClaim>) -> News {
        let key = claim.key();
        let old = self.claims.get(&key).filter(|old| old.uid() == claim.uid()).cloned();
        // What we have written ourselves is known before it is seen.
        if old.as_ref().is_some_and(|old| revision(old) > revision(&claim)) {
            return News::Nothing;
        }
        self.taken = None;
        self.claims.insert(key.clone(), claim.clone());
        let Some(old) = old else { return News::Claim(key) };
        let had = claims::allocation(&old).is_some();
        match (had && claims::allocation(&claim).is_none(), old.status != claim.status) {
            (true, _) => News::Devices,
            (false, true) => News::Claim(key),
            (false, false) => News::Nothing,
        }
    }

    /// A claim as it was just written.
    pub fn assume(&mut self, claim: Arc<ResourceClaim>) {
        self.set_claim(claim);
    }

    /// Whether an allocation is decided that is not written yet.
    pub fn is_pending(&self, uid: &str) -> bool {
        self.pending.contains_key(uid)
    }

    /// Notes what was decided for a pod.
    pub fn reserve(&mut self, pod: &str, work: &Work) {
        for reserve in work {
            if let Some(allocation) = &reserve.allocation {
                self.taken = None;
                let claim = reserve.claim.uid().to_owned();
                self.pending.insert(claim, (pod.to_owned(), allocation.clone()));
            }
        }
    }

    /// A pod's claims are written, or will not be. True if there were any.
    pub fn settle(&mut self, pod: &str) -> bool {
        let before = self.pending.len();
        self.pending.retain(|_, (owner, _)| owner != pod);
        let any = self.pending.len() != before;
        if any {
            self.taken = None;
        }
        any
    }

    /// What claims have, written or decided.
    pub fn taken(&self) -> Arc<Taken> {
        if let Some(taken) = &self.taken {
            return taken.clone();
        }
        let mut taken = Taken::default();
        let written = self.claims.values().filter(|claim| !self.pending.contains_key(claim.uid()));
        written.filter_map(|claim| claims::allocation(claim)).for_each(|allocation| taken.add(allocation));
        self.pending.values().for_each(|(_, allocation)| taken.add(allocation));
        Arc::new(taken)
    }

    /// Keeps what claims have for the cycles to come.
    pub fn refresh(&mut self) {
        self.taken = Some(self.taken());
    }
}
