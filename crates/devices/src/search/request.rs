//! Requests of claims, looked up and checked before the search: their classes, how many devices they need, and which
//! ones where they want all.

use std::sync::Arc;

use api::k8s_openapi::api::resource::v1::{
    CapacityRequirements, Device, DeviceRequest, DeviceSelector, DeviceToleration,
};
use api::prelude::*;

use super::{Failure, Inventory};
use crate::pools::{Pool, device_reaches};
use crate::selectors::view;
use crate::{DeviceId, RESULTS_MAX, capacity, claims};

/// A device by its place in the pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Place {
    /// Of the pool.
    pub pool: usize,
    /// Of the slice in the pool.
    pub slice: usize,
    /// Of the device in the slice.
    pub device: usize,
}

/// One way to satisfy a request.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Name of the request.
    pub name: &'a str,
    /// Name of the alternative, where the request has several.
    pub alternative: Option<&'a str>,
    /// Its class.
    pub class: Arc<DeviceClass>,
    /// Whether it is for administration, which does not take devices from others.
    pub admin: Option<bool>,
    /// Taints it tolerates.
    pub tolerations: &'a [DeviceToleration],
    /// Capacity it asks for.
    pub capacity: Option<&'a CapacityRequirements>,
    selectors: &'a [DeviceSelector],
    /// How many devices it needs.
    pub count: usize,
    /// Those it needs, if it wants all there are.
    pub all: Option<Vec<Place>>,
}

/// The requests of a claim, each with its alternatives in order of preference.
pub(crate) type Wanted<'a> = Vec<Vec<Request<'a>>>;

impl Request<'_> {
    /// How results name it.
    pub fn full_name(&self) -> String {
        match self.alternative {
            Some(alternative) => format!("{}/{alternative}", self.name),
            None => self.name.to_owned(),
        }
    }

    /// Whether it is for administration.
    pub fn is_admin(&self) -> bool {
        self.admin == Some(true)
    }

    fn own_name(&self) -> &str {
        self.alternative.unwrap_or(self.name)
    }

    /// Whether class and selectors let a device through, and it is for the node.
    pub fn selects(
        &self,
        inventory: Inventory<'_>,
        node: &Node,
        claim: &str,
        slice: &ResourceSlice,
        device: &Device,
    ) -> Result<bool, Failure> {
        let of_class =
            self.class.spec.as_ref().and_then(|spec| spec.selectors.as_deref()).unwrap_or_default();
        let class = format!("class {}", self.class.name());
        if !matches(inventory, of_class, &class, slice, device)?
            || !matches(inventory, self.selectors, &format!("claim {claim}"), slice, device)?
        {
            return Ok(false);
        }
        Ok(slice.spec.per_device_node_selection != Some(true) || device_reaches(device, node))
    }
}

fn matches(
    inventory: Inventory<'_>,
    selectors: &[DeviceSelector],
    whose: &str,
    slice: &ResourceSlice,
    device: &Device,
) -> Result<bool, Failure> {
    for (i, selector) in selectors.iter().enumerate() {
        let source = selector.cel.as_ref().map(|cel| cel.expression.as_str()).unwrap_or_default();
        let compiled = inventory.selectors.get(source);
        let compiled = compiled
            .map_err(|why| Failure::Claim(format!("{whose}: selector #{i}: CEL compile error: {why}")))?;
        let outcome = view(&slice.spec.driver, device).and_then(|device| compiled.matches(&device));
        let matched = outcome.map_err(|why| {
            let id = DeviceId::new(&slice.spec.driver, &slice.spec.pool.name, &device.name);
            Failure::Claim(format!("{whose}: selector #{i} on device {id}: CEL runtime error: {why}"))
        })?;
        if !matched {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Looks up everything about the requests of a claim.
pub(crate) fn of_claim<'a>(
    inventory: Inventory<'_>,
    node: &Node,
    pools: &[Pool<'_>],
    claim: &'a ResourceClaim,
) -> Result<Wanted<'a>, Failure> {
    let requests = claims::asks(claim).into_iter().flat_map(|devices| devices.requests.iter().flatten());
    let mut wanted = Vec::new();
    let mut least = 0usize;
    for request in requests {
        let mut ways = ways(inventory, claim, request)?;
        for (way, mode) in &mut ways {
            count(inventory, node, pools, claim, way, mode)?;
        }
        let ways: Vec<Request<'a>> = ways.into_iter().map(|(way, _)| way).collect();
        least = least.saturating_add(ways.iter().map(|way| way.count).min().unwrap_or(0));
        wanted.push(ways);
    }
    if least > RESULTS_MAX {
        let key = claim.key();
        return Err(Failure::Claim(format!(
            "claim {key}: number of requested devices {least} exceeds the claim limit of {RESULTS_MAX}"
        )));
    }
    Ok(wanted)
}

/// How many devices a request asks for.
enum Mode {
    Exact(i64),
    All,
    Unknown(String),
}

fn mode(name: Option<&str>, count: Option<i64>) -> Mode {
    match name.unwrap_or_default() {
        "" | "ExactCount" => Mode::Exact(count.unwrap_or(1)),
        "All" => Mode::All,
        other => Mode::Unknown(other.to_owned()),
    }
}

fn ways<'a>(
    inventory: Inventory<'_>,
    claim: &ResourceClaim,
    request: &'a DeviceRequest,
) -> Result<Vec<(Request<'a>, Mode)>, Failure> {
    let key = claim.key();
    let class = |request: &str, name: &str| {
        match name {
        "" => Err(Failure::Claim(format!(
            "claim {key}, request {request}: missing device class name (unsupported request type?)"
        ))),
        name => (inventory.class)(name).ok_or_else(|| {
            Failure::Claim(format!(
                "claim {key}, request {request}: could not retrieve device class {name}: deviceclass.resource.k8s.io {name:?} not found"
            ))
        }),
    }
    };
    if let Some(exact) = &request.exactly {
        let own = Request {
            name: &request.name,
            alternative: None,
            class: class(&request.name, &exact.device_class_name)?,
            admin: exact.admin_access,
            tolerations: exact.tolerations.as_deref().unwrap_or_default(),
            capacity: exact.capacity.as_ref(),
            selectors: exact.selectors.as_deref().unwrap_or_default(),
            count: 0,
            all: None,
        };
        return Ok(vec![(own, mode(exact.allocation_mode.as_deref(), exact.count))]);
    }
    let mut all = Vec::new();
    for sub in request.first_available.iter().flatten() {
        let own = Request {
            name: &request.name,
            alternative: Some(&sub.name),
            class: class(&sub.name, &sub.device_class_name)?,
            admin: None,
            tolerations: sub.tolerations.as_deref().unwrap_or_default(),
            capacity: sub.capacity.as_ref(),
            selectors: sub.selectors.as_deref().unwrap_or_default(),
            count: 0,
            all: None,
        };
        all.push((own, mode(sub.allocation_mode.as_deref(), sub.count)));
    }
    Ok(all)
}

/// Fills in how many devices are needed, and which ones if it is all of them.
fn count(
    inventory: Inventory<'_>,
    node: &Node,
    pools: &[Pool<'_>],
    claim: &ResourceClaim,
    request: &mut Request<'_>,
    mode: &Mode,
) -> Result<(), Failure> {
    let key = claim.key();
    let say = |why: String| Failure::Claim(format!("claim {key}, request {}: {why}", request.own_name()));
    match mode {
        Mode::Unknown(name) => Err(say(format!("unsupported count mode {name}"))),
        Mode::Exact(count) => {
            request.count = usize::try_from(*count).unwrap_or(usize::MAX);
            Ok(())
        }
        Mode::All => {
            let mut places = Vec::new();
            for (p, pool) in pools.iter().enumerate() {
                let id = format!("{}/{}", pool.driver, pool.name);
                let state = match (pool.incomplete, pool.invalid) {
                    (true, _) => "being updated",
                    (_, true) => "invalid",
                    _ => "",
                };
                if !state.is_empty() {
                    return Err(Failure::Node(format!(
                        "claim {key}, request {}: asks for all devices, but resource pool {id} is currently {state}",
                        request.own_name()
                    )));
                }
                for (s, slice) in pool.slices.iter().enumerate() {
                    for (d, device) in slice.spec.devices.iter().flatten().enumerate() {
                        if request.selects(inventory, node, &key, slice, device)?
                            && capacity::suffices(request.capacity, device, &[])
                        {
                            places.push(Place { pool: p, slice: s, device: d });
                        }
                    }
                }
            }
            request.count = places.len();
            request.all = Some(places);
            Ok(())
        }
    }
}
