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

/// Requests for a pod's extended resources, given the class behind each. Init containers that end leave theirs to
/// those that come after.
pub fn extended_requests(
    pod: &Pod,
    classes: &BTreeMap<String, String>,
) -> (Vec<DeviceRequest>, Vec<Mapping>) {
    let Some(spec) = &pod.spec else { return (Vec::new(), Vec::new()) };
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let all: Vec<&Container> = init.iter().chain(&spec.containers).collect();
    let ends = |i: usize| i < init.len() && all[i].restart_policy.as_deref() != Some("Always");
    let (mut requests, mut mappings): (Vec<DeviceRequest>, Vec<Mapping>) = (Vec::new(), Vec::new());
    for (resource, class) in classes {
        let first = requests.len();
        // Those that stay have devices of their own; what they have is there for init containers before them.
        for (i, container) in all.iter().enumerate().filter(|(i, _)| !ends(*i)) {
            own(&mut requests, &mut mappings, i, container, resource, class, &[]);
        }
        for (i, container) in all.iter().enumerate().filter(|(i, _)| ends(*i)) {
            let later = requests[first..].iter().filter(|r| position(&r.name).is_none_or(|at| at > i || ends(at)));
            let reusable: Vec<DeviceRequest> = later.cloned().collect();
            own(&mut requests, &mut mappings, i, container, resource, class, &reusable);
        }
    }
    requests.sort_by(|a, b| a.name.cmp(&b.name));
    (requests, mappings)
}

/// The container of a request, from its name.
fn position(request: &str) -> Option<usize> {
    request.strip_prefix("container-")?.split('-').next()?.parse().ok()
}

fn own(
    requests: &mut Vec<DeviceRequest>,
    mappings: &mut Vec<Mapping>,
    index: usize,
    container: &Container,
    resource: &str,
    class: &str,
    reusable: &[DeviceRequest],
) {
    let mut left = asked(container, resource);
    let mut map = |request: &str| {
        mappings.push(Mapping {
            container: container.name.clone(),
            resource: resource.to_owned(),
            request: request.to_owned(),
        });
    };
    for request in reusable {
        if left <= 0 {
            return;
        }
        left -= request.exactly.as_ref().and_then(|exact| exact.count).unwrap_or(1);
        map(&request.name);
    }
    if left <= 0 {
        return;
    }
    let names = container.resources.iter().flat_map(|r| r.requests.iter().flatten()).map(|(name, _)| name);
    let place = names.into_iter().position(|name| name == resource).unwrap_or(0);
    let name = format!("container-{index}-request-{place}");
    map(&name);
    requests.push(DeviceRequest {
        name,
        exactly: Some(ExactDeviceRequest {
            device_class_name: class.to_owned(),
            allocation_mode: Some("ExactCount".into()),
            count: Some(left),
            ..ExactDeviceRequest::default()
        }),
        first_available: None,
    });
}
