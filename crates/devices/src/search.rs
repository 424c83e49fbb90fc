//! The search for an allocation on one node: claim by claim, request by request, device by device, going back where
//! it cannot go on. The first solution is taken.

mod attempt;
mod request;

use std::sync::Arc;

use api::prelude::*;

use self::attempt::Attempt;
use crate::outcome;
use crate::pools;
use crate::selectors::Selectors;
use crate::{Slices, Taken};
use api::k8s_openapi::api::resource::v1::AllocationResult;

/// What there is to allocate from.
#[derive(Clone, Copy)]
pub struct Inventory<'a> {
    /// Slices and taint rules.
    pub slices: &'a Slices,
    /// What claims have already.
    pub taken: &'a Taken,
    /// Classes by name.
    pub class: &'a dyn Fn(&str) -> Option<Arc<DeviceClass>>,
    /// Compiled selectors.
    pub selectors: &'a Selectors,
}

/// Why no allocation was found, beyond there being none. In upstream's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Something is wrong with a claim or a class: no other node will do either.
    Claim(String),
    /// Something is wrong with what is published for the node.
    Node(String),
    /// The search was given up.
    TooLong,
}

/// Allocates devices for claims on a node: one result per claim, or `None` if they cannot all have theirs. New
/// shares of devices are named by `share`.
pub fn allocate(
    inventory: Inventory<'_>,
    node: &Node,
    claims: &[Arc<ResourceClaim>],
    share: &mut dyn FnMut() -> String,
) -> Result<Option<Vec<AllocationResult>>, Failure> {
    let pools = pools::gather(inventory.slices, node);
    let invalid = pools.iter().any(|pool| pool.invalid);
    let mut wanted = Vec::with_capacity(claims.len());
    for claim in claims {
        wanted.push(request::of_claim(inventory, node, &pools, claim)?);
    }
    let mut attempt = Attempt::new(inventory, node, &pools, claims, &wanted)?;
    if attempt.run()? {
        let chosen = attempt.into_chosen();
        let made = claims.iter().zip(&wanted).zip(&chosen);
        let made = made.map(|((claim, wanted), chosen)| outcome::result(claim, wanted, chosen, node, share));
        return Ok(Some(made.collect()));
    }
    match invalid {
        true => Err(Failure::Node("invalid resource pools were encountered".into())),
        false => Ok(None),
    }
}

pub(crate) use attempt::Chosen;
pub(crate) use request::{Request, Wanted};
