//! What is written into a claim's status: devices, configuration, and from where they can be used.

use api::k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use api::k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult,
    OpaqueDeviceConfiguration,
};
use api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use api::prelude::*;

use crate::claims;
use crate::search::{Chosen, Request, Wanted};

/// The result for one claim.
pub(crate) fn result(
    claim: &ResourceClaim,
    wanted: &Wanted<'_>,
    chosen: &[Chosen<'_>],
    node: &Node,
    share: &mut dyn FnMut() -> String,
) -> AllocationResult {
    let results = chosen.iter().filter_map(|chosen| {
        let request = wanted.get(chosen.request)?.get(chosen.way)?;
        let tolerations = request.tolerations.to_vec();
        let amounts = chosen.consumed.as_ref().filter(|amounts| !amounts.is_empty());
        Some(DeviceRequestAllocationResult {
            request: request.full_name(),
            driver: chosen.slice.spec.driver.clone(),
            pool: chosen.slice.spec.pool.name.clone(),
            device: chosen.device.name.clone(),
            admin_access: request.is_admin().then_some(true),
            tolerations: Some(tolerations).filter(|list| !list.is_empty()),
            binding_conditions: chosen.device.binding_conditions.clone(),
            binding_failure_conditions: chosen.device.binding_failure_conditions.clone(),
            share_id: chosen.consumed.as_ref().map(|_| share()),
            consumed_capacity: amounts
                .map(|amounts| amounts.iter().map(|(n, q)| (n.clone(), Quantity(q.to_string()))).collect()),
            skip_node_operations: None,
        })
    });
    let used = used(wanted, chosen);
    let config = configuration(claim, &used);
    AllocationResult {
        allocation_timestamp: None,
        devices: Some(DeviceAllocationResult {
            results: Some(results.collect()),
            config: Some(config).filter(|config| !config.is_empty()),
        }),
        node_selector: node_selector(chosen, node),
    }
}

/// The way that was chosen for each request. A request for nothing takes its first.
fn used<'w, 'a>(wanted: &'w Wanted<'a>, chosen: &[Chosen<'_>]) -> Vec<&'w Request<'a>> {
    let way = |request: usize| chosen.iter().find(|c| c.request == request).map_or(0, |c| c.way);
    wanted.iter().enumerate().filter_map(|(i, ways)| ways.get(way(i))).collect()
}

fn configuration(claim: &ResourceClaim, used: &[&Request<'_>]) -> Vec<DeviceAllocationConfiguration> {
    let mut config: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut of_class: Vec<(&str, std::ops::Range<usize>)> = Vec::new();
    for request in used {
        let class = request.class.name();
        if let Some((_, range)) = of_class.iter().find(|(name, _)| *name == class) {
            for entry in config.get_mut(range.clone()).into_iter().flatten() {
                entry.requests.get_or_insert_default().push(request.full_name());
            }
            continue;
        }
        let start = config.len();
        let own = request.class.spec.iter().flat_map(|spec| spec.config.iter().flatten());
        config.extend(own.map(|entry| one("FromClass", vec![request.full_name()], entry.opaque.clone())));
        of_class.push((class, start..config.len()));
    }
    for entry in claims::asks(claim).into_iter().flat_map(|devices| devices.config.iter().flatten()) {
        let requests = entry.requests.clone().unwrap_or_default();
        if requests.is_empty() || used.iter().any(|request| is_named(request, &requests)) {
            config.push(one("FromClaim", requests, entry.opaque.clone()));
        }
    }
    for entry in &mut config {
        let requests = entry.requests.take().unwrap_or_default();
        if !used.iter().all(|request| is_named(request, &requests)) {
            entry.requests = Some(requests).filter(|requests| !requests.is_empty());
        }
    }
    config
}

fn is_named(request: &Request<'_>, names: &[String]) -> bool {
    names.iter().any(|name| *name == request.name || *name == request.full_name())
}

fn one(
    source: &str,
    requests: Vec<String>,
    opaque: Option<OpaqueDeviceConfiguration>,
) -> DeviceAllocationConfiguration {
    DeviceAllocationConfiguration { source: source.to_owned(), requests: Some(requests), opaque }
}

/// Where devices can be used; `None` for everywhere.
fn node_selector(chosen: &[Chosen<'_>], node: &Node) -> Option<NodeSelector> {
    let mut term = NodeSelectorTerm::default();
    for chosen in chosen {
        let (spec, device) = (&chosen.slice.spec, chosen.device);
        let (name, selector) = match spec.per_device_node_selection {
            Some(true) => (&device.node_name, &device.node_selector),
            _ => (&spec.node_name, &spec.node_selector),
        };
        if name.as_ref().is_some_and(|name| !name.is_empty()) || device.binds_to_node == Some(true) {
            let only = NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.name().to_owned()]),
            };
            let term = NodeSelectorTerm { match_fields: Some(vec![only]), match_expressions: None };
            return Some(NodeSelector { node_selector_terms: vec![term] });
        }
        // Validation lets only one term through.
        if let Some(own) = selector.as_ref().and_then(|selector| selector.node_selector_terms.first()) {
            add(&mut term.match_fields, &own.match_fields);
            add(&mut term.match_expressions, &own.match_expressions);
        }
    }
    let any = term.match_fields.is_some() || term.match_expressions.is_some();
    any.then(|| NodeSelector { node_selector_terms: vec![term] })
}

fn add(to: &mut Option<Vec<NodeSelectorRequirement>>, from: &Option<Vec<NodeSelectorRequirement>>) {
    for requirement in from.iter().flatten() {
        let list = to.get_or_insert_default();
        if !list.contains(requirement) {
            list.push(requirement.clone());
        }
    }
}
