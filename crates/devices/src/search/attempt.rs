//! One attempt to find devices for all claims at once. What is chosen so far is kept here and taken back step by
//! step.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::k8s_openapi::api::resource::v1::Device;
use api::prelude::*;
use meta::Quantity;

use super::request::{Place, Request, Wanted};
use super::{Failure, Inventory};
use crate::capacity::{self, Amounts};
use crate::constraint::Constraint;
use crate::pools::Pool;
use crate::{DeviceId, RESULTS_MAX, claims, taints};

/// Most devices looked at. The search is exhaustive, and a claim must not hold the scheduler up.
const STEPS_MAX: u64 = 500_000;

/// A device for a request.
#[derive(Debug)]
pub(crate) struct Chosen<'a> {
    /// Position of the request in its claim.
    pub request: usize,
    /// Position of the alternative.
    pub way: usize,
    /// The slice it is from.
    pub slice: &'a ResourceSlice,
    /// The device.
    pub device: &'a Device,
    /// What is consumed of a shared device.
    pub consumed: Option<Amounts>,
}

/// Why a branch of the search ended.
enum End {
    /// A solution.
    Found,
    /// None here.
    Nothing,
    /// None here because results would be too many.
    TooMany,
}

/// Counter set and counter.
type CounterKey<'a> = (&'a str, &'a str);

/// Where in the search we are.
#[derive(Clone, Copy)]
struct Position {
    claim: usize,
    request: usize,
    /// The alternative, once it is decided which.
    way: Option<usize>,
    /// Devices chosen for the request.
    chosen: usize,
}

pub(super) struct Attempt<'a> {
    inventory: Inventory<'a>,
    node: &'a Node,
    pools: &'a [Pool<'a>],
    claims: &'a [Arc<ResourceClaim>],
    wanted: &'a [Wanted<'a>],
    constraints: Vec<Vec<Constraint<'a>>>,
    chosen: Vec<Vec<Chosen<'a>>>,
    /// Claims that have chosen a device for themselves.
    owners: HashMap<Place, Vec<usize>>,
    /// Parts of shared devices that are chosen.
    shares: HashMap<Place, Vec<Amounts>>,
    /// Counters left by those who have devices already, by pool.
    available: HashMap<usize, BTreeMap<CounterKey<'a>, Quantity>>,
    /// Counters consumed by what is chosen, by pool.
    consumed: HashMap<usize, BTreeMap<CounterKey<'a>, Quantity>>,
    /// What selectors say of devices does not change.
    selected: HashMap<(usize, usize, usize, Place), bool>,
    steps: u64,
}

fn id_of(pool: &Pool<'_>, device: &Device) -> DeviceId {
    DeviceId::new(pool.driver, pool.name, &device.name)
}

impl<'a> Attempt<'a> {
    pub fn new(
        inventory: Inventory<'a>,
        node: &'a Node,
        pools: &'a [Pool<'a>],
        claims: &'a [Arc<ResourceClaim>],
        wanted: &'a [Wanted<'a>],
    ) -> Result<Attempt<'a>, Failure> {
        let mut constraints = Vec::new();
        for claim in claims {
            let own =
                claims::asks(claim).into_iter().flat_map(|devices| devices.constraints.iter().flatten());
            let own = own.enumerate().map(|(i, constraint)| {
                Constraint::new(constraint).ok_or_else(|| {
                    let key = claim.key();
                    let why = "empty constraint (unsupported constraint type?)";
                    Failure::Claim(format!("claim {key}, constraint #{i}: {why}"))
                })
            });
            constraints.push(own.collect::<Result<Vec<_>, _>>()?);
        }
        Ok(Attempt {
            inventory,
            node,
            pools,
            claims,
            wanted,
            constraints,
            chosen: claims.iter().map(|_| Vec::new()).collect(),
            owners: HashMap::new(),
            shares: HashMap::new(),
            available: HashMap::new(),
            consumed: HashMap::new(),
            selected: HashMap::new(),
            steps: 0,
        })
    }

    /// Whether there is a solution.
    pub fn run(&mut self) -> Result<bool, Failure> {
        let start = Position { claim: 0, request: 0, way: None, chosen: 0 };
        Ok(matches!(self.step(start, Place::default())?, End::Found))
    }

    /// The devices of each claim.
    pub fn into_chosen(self) -> Vec<Vec<Chosen<'a>>> {
        self.chosen
    }

    /// Goes on from a position; devices before `from` were looked at for this request.
    fn step(&mut self, at: Position, from: Place) -> Result<End, Failure> {
        let Some(wanted) = self.wanted.get(at.claim) else { return Ok(End::Found) };
        let Some(ways) = wanted.get(at.request) else {
            let next = Position { claim: at.claim + 1, request: 0, way: None, chosen: 0 };
            // Another choice for this claim does not make the next one smaller.
            return Ok(match self.step(next, Place::default())? {
                End::TooMany => End::Nothing,
                end => end,
            });
        };
        let Some(way) = at.way else {
            let mut end = End::TooMany;
            for way in 0..ways.len() {
                match self.step(Position { way: Some(way), ..at }, Place::default())? {
                    End::Found => return Ok(End::Found),
                    End::Nothing => end = End::Nothing,
                    End::TooMany => {}
                }
            }
            return Ok(end);
        };
        let Some(request) = ways.get(way) else { return Ok(End::Nothing) };
        if request.all.as_ref().is_some_and(Vec::is_empty) {
            return Ok(End::Nothing);
        }
        if at.chosen >= request.count {
            let next = Position { request: at.request + 1, way: None, chosen: 0, ..at };
            return self.step(next, Place::default());
        }
        let total = self.chosen[at.claim].len().saturating_add(request.count - at.chosen);
        if total > RESULTS_MAX {
            return Ok(End::TooMany);
        }
        match &request.all {
            Some(all) => match all.get(at.chosen) {
                Some(place) => self.place(at, way, request, *place, true),
                None => Ok(End::Nothing),
            },
            None => self.look(at, way, request, from),
        }
    }

    /// Tries one device after the other.
    fn look(
        &mut self,
        at: Position,
        way: usize,
        request: &'a Request<'a>,
        from: Place,
    ) -> Result<End, Failure> {
        for p in from.pool..self.pools.len() {
            let pool = &self.pools[p];
            if pool.incomplete || pool.invalid {
                continue;
            }
            let first = if p == from.pool { from.slice } else { 0 };
            for s in first..pool.slices.len() {
                let devices = pool.slices[s].spec.devices.as_deref().unwrap_or_default();
                let first = if (p, s) == (from.pool, from.slice) { from.device } else { 0 };
                for d in first..devices.len() {
                    match self.place(at, way, request, Place { pool: p, slice: s, device: d }, false)? {
                        End::Nothing => {}
                        end => return Ok(end),
                    }
                }
            }
        }
        Ok(End::Nothing)
    }

    /// Tries a device and goes on with it. `must`: it is this one or none.
    fn place(
        &mut self,
        at: Position,
        way: usize,
        request: &'a Request<'a>,
        place: Place,
        must: bool,
    ) -> Result<End, Failure> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(Failure::TooLong);
        }
        let (pools, of) = (self.pools, self.claims);
        let found = pools.get(place.pool).and_then(|pool| Some((pool, *pool.slices.get(place.slice)?)));
        let Some((pool, slice)) = found else { return Ok(End::Nothing) };
        let Some(device) = slice.spec.devices.as_ref().and_then(|d| d.get(place.device)) else {
            return Ok(End::Nothing);
        };
        if !self.is_free(at.claim, request, place, pool, device) {
            return Ok(End::Nothing);
        }
        let key = (at.claim, at.request, way, place);
        let selected = match self.selected.get(&key) {
            Some(known) => *known,
            None => {
                let claim = of[at.claim].key();
                let selected = request.selects(self.inventory, self.node, &claim, slice, device)?;
                self.selected.insert(key, selected);
                selected
            }
        };
        if !selected || !self.has_capacity(request, place, pool, device) {
            return Ok(End::Nothing);
        }
        let rules = self.inventory.slices.rules();
        let rules = rules.filter(|rule| taints::concerns(rule, pool.driver, pool.name, &device.name));
        if taints::keep_off(device, rules.map(|rule| &rule.spec.taint), request.tolerations) {
            return Ok(End::Nothing);
        }
        let shared = device.allow_multiple_allocations == Some(true);
        let counted = !(shared && self.has_shares(place, pool, device));
        if counted && !self.consume(place.pool, device) {
            return Ok(End::Nothing);
        }
        if !self.constrain(at.claim, request, pool.driver, device) {
            if counted {
                self.give_back(place.pool, device);
            }
            if must {
                let (key, id) = (of[at.claim].key(), id_of(pool, device));
                return Err(Failure::Claim(format!(
                    "claim {key}, request {}: cannot add device {id} because a claim constraint would not be satisfied",
                    request.alternative.unwrap_or(request.name)
                )));
            }
            return Ok(End::Nothing);
        }
        let consumed = shared.then(|| capacity::consumed(request.capacity, device));
        match &consumed {
            Some(amounts) => self.shares.entry(place).or_default().push(amounts.clone()),
            None => self.owners.entry(place).or_default().push(at.claim),
        }
        self.chosen[at.claim].push(Chosen { request: at.request, way, slice, device, consumed });
        let next = Position { way: Some(way), chosen: at.chosen + 1, ..at };
        let end = self.step(next, Place { device: place.device + 1, ..place })?;
        if matches!(end, End::Found) {
            return Ok(End::Found);
        }
        self.chosen[at.claim].pop();
        let (list, owner) = (self.shares.get_mut(&place), self.owners.get_mut(&place));
        match shared {
            true => drop(list.and_then(Vec::pop)),
            false => drop(owner.and_then(Vec::pop)),
        }
        for constraint in &mut self.constraints[at.claim] {
            constraint.remove(request.name, request.alternative);
        }
        if counted {
            self.give_back(place.pool, device);
        }
        Ok(end)
    }

    /// Whether nobody has the device, or the request does not mind.
    fn is_free(
        &self,
        claim: usize,
        request: &Request<'_>,
        place: Place,
        pool: &Pool<'_>,
        device: &Device,
    ) -> bool {
        let owners = self.owners.get(&place).map(Vec::as_slice).unwrap_or_default();
        match request.is_admin() {
            true => !owners.contains(&claim),
            false => owners.is_empty() && !self.inventory.taken.whole.contains(&id_of(pool, device)),
        }
    }

    fn has_shares(&self, place: Place, pool: &Pool<'_>, device: &Device) -> bool {
        self.shares.get(&place).is_some_and(|shares| !shares.is_empty())
            || self.inventory.taken.capacity.contains_key(&id_of(pool, device))
    }

    fn has_capacity(&self, request: &Request<'_>, place: Place, pool: &Pool<'_>, device: &Device) -> bool {
        let before = self.inventory.taken.capacity.get(&id_of(pool, device));
        let now = self.shares.get(&place).into_iter().flatten();
        let others: Vec<&Amounts> = before.into_iter().chain(now).collect();
        capacity::suffices(request.capacity, device, &others)
    }

    fn constrain(&mut self, claim: usize, request: &Request<'_>, driver: &str, device: &'a Device) -> bool {
        let constraints = &mut self.constraints[claim];
        for i in 0..constraints.len() {
            if !constraints[i].add(request.name, request.alternative, driver, device) {
                constraints[..i].iter_mut().for_each(|c| c.remove(request.name, request.alternative));
                return false;
            }
        }
        true
    }

    /// What is left of a pool's counters beside what is allocated.
    fn counters_left(&mut self, index: usize) {
        if self.available.contains_key(&index) {
            return;
        }
        let pool = &self.pools[index];
        let mut left: BTreeMap<CounterKey<'a>, Quantity> = BTreeMap::new();
        for (set, counters) in &pool.counters {
            for (name, counter) in &counters.counters {
                left.insert((*set, name.as_str()), amount(&counter.value.0));
            }
        }
        for slice in pool.slices.iter().chain(&pool.elsewhere) {
            for device in slice.spec.devices.iter().flatten() {
                if self.inventory.taken.any(&id_of(pool, device)) {
                    for (key, used) in uses(device) {
                        if let Some(value) = left.get_mut(&key) {
                            *value = value.minus(used);
                        }
                    }
                }
            }
        }
        self.available.insert(index, left);
    }

    /// Consumes a device's counters, unless there is not enough left.
    fn consume(&mut self, pool: usize, device: &'a Device) -> bool {
        if device.consumes_counters.as_ref().is_none_or(Vec::is_empty) {
            return true;
        }
        self.counters_left(pool);
        let consumed = self.consumed.entry(pool).or_default();
        for (key, used) in uses(device) {
            let before = consumed.entry(key).or_insert_with(|| Quantity::from_units(0));
            *before = before.plus(used);
        }
        let Some(left) = self.available.get(&pool) else { return false };
        let short = uses(device).any(|(key, _)| left.get(&key) < consumed.get(&key));
        if short {
            self.give_back(pool, device);
        }
        !short
    }

    fn give_back(&mut self, pool: usize, device: &'a Device) {
        let Some(consumed) = self.consumed.get_mut(&pool) else { return };
        for (key, used) in uses(device) {
            if let Some(value) = consumed.get_mut(&key) {
                *value = value.minus(used);
            }
        }
    }
}

fn amount(text: &str) -> Quantity {
    Quantity::parse(text).unwrap_or_else(|_| Quantity::from_units(0))
}

/// The counters a device uses.
fn uses(device: &Device) -> impl Iterator<Item = (CounterKey<'_>, Quantity)> {
    let sets = device.consumes_counters.iter().flatten();
    sets.flat_map(|set| {
        let own = set.counters.iter();
        own.map(|(name, counter)| ((set.counter_set.as_str(), name.as_str()), amount(&counter.value.0)))
    })
}
