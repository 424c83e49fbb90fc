//! Extended resources that classes of devices stand behind: requests of containers as requests of a claim.

use std::collections::BTreeMap;

use api::k8s_openapi::api::resource::v1::{DeviceRequest, ExactDeviceRequest};
use api::prelude::*;
use meta::Quantity;

/// Annotation of the claim that the scheduler makes for a pod's extended resources.
pub const EXTENDED_CLAIM: &str = "resource.kubernetes.io/extended-resource-claim";
/// Domain of the names that classes have as resources.
const PREFIX: &str = "deviceclass.resource.kubernetes.io/";

/// The resource that stands for a class whatever it says itself.
pub fn implicit_name(class: &str) -> String {
    format!("{PREFIX}{class}")
}

/// Which request of the claim a container's resource is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The container.
    pub container: String,
    /// The resource.
    pub resource: String,
    /// The request.
    pub request: String,
}

fn asked(container: &Container, resource: &str) -> i64 {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let amount = requests.and_then(|r| r.get(resource)).and_then(|q| Quantity::parse(&q.0).ok());
    amount.map_or(0, |q| q.value())
}

/// Requests for a pod's extended resources, given the class behind each, and which containers they are for. Init
/// containers that end use what those after them have, and share the largest request beyond that.
pub fn extended_requests(
    pod: &Pod,
    classes: &BTreeMap<String, String>,
) -> (Vec<DeviceRequest>, Vec<Mapping>) {
    let Some(spec) = &pod.spec else { return (Vec::new(), Vec::new()) };
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let all: Vec<&Container> = init.iter().chain(&spec.containers).collect();
    let ends = |i: usize, c: &Container| i < init.len() && c.restart_policy.as_deref() != Some("Always");
    let (mut requests, mut mappings) = (Vec::new(), Vec::new());
    for (resource, class) in classes {
        let mut lasting: Vec<(usize, DeviceRequest)> = Vec::new();
        for (i, container) in all.iter().enumerate().filter(|(i, c)| !ends(*i, c)) {
            let (request, own) = one(i, container, resource, class, &[]);
            lasting.extend(request.map(|request| (i, request)));
            mappings.extend(own);
        }
        let mut passing: Vec<DeviceRequest> = Vec::new();
        let mut of_passing: Vec<Mapping> = Vec::new();
        for (i, container) in all.iter().enumerate().filter(|(i, c)| ends(*i, c)) {
            let later: Vec<&DeviceRequest> =
                lasting.iter().filter(|(at, _)| *at >= i).map(|(_, request)| request).collect();
            let (request, own) = one(i, container, resource, class, &later);
            passing.extend(request);
            of_passing.extend(own);
        }
        // Of equals the first.
        let largest = passing.iter().rev().max_by_key(|request| count(request)).cloned();
        if let Some(largest) = largest {
            for mapping in &mut of_passing {
                if passing.iter().any(|request| request.name == mapping.request) {
                    mapping.request.clone_from(&largest.name);
                }
            }
            requests.push(largest);
        }
        requests.extend(lasting.into_iter().map(|(_, request)| request));
        mappings.extend(of_passing);
    }
    requests.sort_by(|a, b| a.name.cmp(&b.name));
    (requests, mappings)
}

fn count(request: &DeviceRequest) -> i64 {
    request.exactly.as_ref().and_then(|exact| exact.count).unwrap_or(1)
}

/// What one container needs of one resource beyond what it may use of others.
fn one(
    index: usize,
    container: &Container,
    resource: &str,
    class: &str,
    reusable: &[&DeviceRequest],
) -> (Option<DeviceRequest>, Vec<Mapping>) {
    let (mut left, mut mappings) = (asked(container, resource), Vec::new());
    let map = |request: &str| Mapping {
        container: container.name.clone(),
        resource: resource.to_owned(),
        request: request.to_owned(),
    };
    for request in reusable {
        if left <= 0 {
            break;
        }
        left -= count(request);
        mappings.push(map(&request.name));
    }
    if left <= 0 {
        return (None, mappings);
    }
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let place = requests.into_iter().flatten().position(|(name, _)| name == resource).unwrap_or(0);
    let name = format!("container-{index}-request-{place}");
    mappings.push(map(&name));
    let exact = ExactDeviceRequest {
        device_class_name: class.to_owned(),
        allocation_mode: Some("ExactCount".into()),
        count: Some(left),
        ..ExactDeviceRequest::default()
    };
    (Some(DeviceRequest { name, exactly: Some(exact), first_available: None }), mappings)
}
