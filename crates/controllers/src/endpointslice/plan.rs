//! Which EndpointSlices a Service needs, with as few changes to the existing ones as possible.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::ServicePort;
use api::k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use api::prelude::*;

use crate::{owners, pods};

/// Endpoints per slice (upstream's `--max-endpoints-per-slice`).
pub const ENDPOINTS_MAX: usize = 100;
/// Label that names the Service of a slice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that names the manager of a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Us.
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Label of Services without a cluster IP, passed on to slices.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Annotation that passes the time of the last change on for latency metrics.
pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Changes that bring the slices of a Service up to date.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// To create.
    pub create: Vec<EndpointSlice>,
    /// To replace.
    pub update: Vec<EndpointSlice>,
    /// To delete, by name.
    pub delete: Vec<String>,
}

impl Plan {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.create.is_empty() && self.update.is_empty() && self.delete.is_empty()
    }
}

/// The port number a Service's port leads to on a pod: a number, or the name of a container's port.
pub fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let restartable = spec.init_containers.iter().flatten();
            let restartable = restartable.filter(|c| c.restart_policy.as_deref() == Some("Always"));
            (spec.containers.iter().chain(restartable))
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| {
                    p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|p| p.container_port)
        }
    }
}

/// Address families of a Service's slices.
fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|s| s.ip_families.as_ref()).filter(|f| !f.is_empty());
    match listed {
        Some(families) => families.iter().map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect(),
        None => vec!["IPv4"],
    }
}

fn addresses<'a>(pod: &'a Pod, family: &str) -> Vec<&'a str> {
    let Some(status) = &pod.status else { return Vec::new() };
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut all: Vec<&str> = listed.collect();
    if all.is_empty() {
        all.extend(status.pod_ip.as_deref());
    }
    all.retain(|ip| !ip.is_empty() && ip.contains(':') == (family == "IPv6"));
    all
}

/// Ports of a slice for one pod: named ports may differ from pod to pod, and then slices differ too.
fn ports_for(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(pod, port)?),
                protocol: Some(port.protocol.clone().unwrap_or("TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn endpoint(service: &Service, pod: &Pod, address: &str, zone: Option<&str>) -> Endpoint {
    let spec = service.spec.as_ref();
    let publish = spec.and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let serving = pods::is_ready(pod);
    let terminating = pod.is_terminating();
    let pod_spec = pod.spec.as_ref();
    let subdomain = pod_spec.and_then(|s| s.subdomain.as_deref()).unwrap_or_default();
    // Only pods that name this Service as their subdomain have a name below it.
    let hostname = pod_spec
        .and_then(|s| s.hostname.clone())
        .filter(|h| !h.is_empty() && subdomain == service.name() && pod.namespace() == service.namespace());
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        node_name: pod_spec.and_then(|s| s.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        }),
        zone: zone.map(String::from),
        ..Default::default()
    }
}

/// Whether a pod can be an endpoint: it has an address and will not stop for good.
pub fn is_eligible(pod: &Pod) -> bool {
    let has_address = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).is_some_and(|ip| !ip.is_empty());
    has_address && !pods::is_finished(pod)
}

/// Slices of one family and one list of ports.
pub(crate) type Group = (&'static str, Vec<EndpointPort>);

/// Equal for groups that share their slices.
pub(crate) fn group_key(group: &Group) -> String {
    let ports = group.1.iter().map(|p| {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        format!("{}/{}/{}/{}", text(&p.name), p.port.unwrap_or(0), text(&p.protocol), text(&p.app_protocol))
    });
    let mut ports: Vec<String> = ports.collect();
    ports.sort();
    format!("{} {}", group.0, ports.join(","))
}

/// Plans the slices of `service`. `selected` are its pods, `zones` the zone of each node, `existing` the
/// slices this controller made for it.
pub fn plan(
    service: &Service,
    selected: &[Arc<Pod>],
    zones: &HashMap<String, String>,
    existing: &[Arc<EndpointSlice>],
) -> Plan {
    let mut wanted: BTreeMap<String, (Group, Vec<Endpoint>)> = BTreeMap::new();
    for family in families(service) {
        for pod in selected.iter().filter(|pod| is_eligible(pod)) {
            let zone = zones.get(pods::node_name(pod)).map(String::as_str);
            let group = (family, ports_for(service, pod));
            for address in addresses(pod, family) {
                let entry = wanted.entry(group_key(&group)).or_insert_with(|| (group.clone(), Vec::new()));
                entry.1.push(endpoint(service, pod, address, zone));
            }
        }
        // A Service without endpoints still has one slice, which says so.
        if !wanted.values().any(|(group, _)| group.0 == family) {
            let group = (family, Vec::new());
            wanted.insert(group_key(&group), (group, Vec::new()));
        }
    }
    let mut plan = Plan::default();
    let mut by_group: HashMap<String, Vec<Arc<EndpointSlice>>> = HashMap::new();
    for slice in existing.iter().filter(|slice| !slice.is_terminating()) {
        let family = if slice.address_type == "IPv6" { "IPv6" } else { "IPv4" };
        let key = group_key(&(family, slice.ports.clone().unwrap_or_default()));
        by_group.entry(key).or_default().push(slice.clone());
    }
    let mut spare: Vec<Arc<EndpointSlice>> = Vec::new();
    let keys: Vec<String> = by_group.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
    for key in keys {
        spare.extend(by_group.remove(&key).into_iter().flatten());
    }
    spare.sort_by(|a, b| a.name().cmp(b.name()));
    for (key, (group, endpoints)) in wanted {
        let mut present = by_group.remove(&key).unwrap_or_default();
        present.sort_by(|a, b| a.name().cmp(b.name()));
        reconcile_group(service, &group, endpoints, present, &mut spare, &mut plan);
    }
    plan.delete.extend(spare.iter().map(|slice| slice.name().to_owned()));
    plan
}

fn identity(endpoint: &Endpoint) -> (String, String) {
    let uid = endpoint.target_ref.as_ref().and_then(|r| r.uid.clone()).unwrap_or_default();
    (endpoint.addresses.first().cloned().unwrap_or_default(), uid)
}

/// Brings the slices of one group up to date: endpoints stay in their slice, gaps are filled, and what does
/// not fit goes into slices that no other group wants any more, or new ones.
fn reconcile_group(
    service: &Service,
    group: &Group,
    endpoints: Vec<Endpoint>,
    present: Vec<Arc<EndpointSlice>>,
    spare: &mut Vec<Arc<EndpointSlice>>,
    plan: &mut Plan,
) {
    let mut missing: BTreeMap<(String, String), Endpoint> =
        endpoints.into_iter().map(|e| (identity(&e), e)).collect();
    let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::new();
    for slice in present {
        let before = slice.endpoints.clone().unwrap_or_default();
        let after: Vec<Endpoint> = before.iter().filter_map(|e| missing.remove(&identity(e))).collect();
        let changed = after != before || !has_metadata_of(&slice, service);
        kept.push((slice, after, changed));
    }
    // Slices that change anyway take newcomers first, fullest first: fewer slices in the end.
    kept.sort_by(|a, b| b.2.cmp(&a.2).then(b.1.len().cmp(&a.1.len())));
    let mut newcomers: Vec<Endpoint> = missing.into_values().collect();
    for (_, endpoints, changed) in &mut kept {
        if newcomers.is_empty() || (!*changed && endpoints.len() + newcomers.len() > ENDPOINTS_MAX) {
            continue;
        }
        let room = ENDPOINTS_MAX.saturating_sub(endpoints.len()).min(newcomers.len());
        *changed |= room > 0;
        endpoints.extend(newcomers.drain(..room));
    }
    let is_empty = newcomers.is_empty() && kept.iter().all(|(_, endpoints, _)| endpoints.is_empty());
    let mut placeholder_needed = is_empty;
    for (slice, endpoints, changed) in kept {
        if endpoints.is_empty() && !std::mem::take(&mut placeholder_needed) {
            plan.delete.push(slice.name().to_owned());
        } else if changed {
            plan.update.push(filled(service, group, endpoints, Some(&slice)));
        }
    }
    let mut chunks: Vec<Vec<Endpoint>> = newcomers.chunks(ENDPOINTS_MAX).map(<[_]>::to_vec).collect();
    if placeholder_needed {
        chunks.push(Vec::new());
    }
    for chunk in chunks {
        let place = spare.iter().position(|slice| slice.address_type == group.0);
        match place.map(|place| spare.remove(place)) {
            Some(slice) => plan.update.push(filled(service, group, chunk, Some(&slice))),
            None => plan.create.push(filled(service, group, chunk, None)),
        }
    }
}

/// Labels of the slices of a Service: the Service's own and ours.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let reserved = [SERVICE_NAME, MANAGED_BY, HEADLESS];
    let own = service.metadata.labels.iter().flatten().filter(|(key, _)| !reserved.contains(&key.as_str()));
    let mut labels: BTreeMap<String, String> = own.map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.insert(SERVICE_NAME.into(), service.name().into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

fn annotations(service: &Service) -> BTreeMap<String, String> {
    let own = service.metadata.annotations.iter().flatten();
    let skipped = [TRIGGER_TIME, "kubectl.kubernetes.io/last-applied-configuration"];
    own.filter(|(k, _)| !skipped.contains(&k.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn has_metadata_of(slice: &EndpointSlice, service: &Service) -> bool {
    let have = slice.metadata.annotations.clone().unwrap_or_default();
    slice.metadata.labels.as_ref() == Some(&labels(service))
        && annotations(service).iter().all(|(key, value)| have.get(key) == Some(value))
        && owners::is_controlled_by(&slice.metadata, service.uid())
}

/// A slice with these endpoints, new or in place of `old`.
fn filled(
    service: &Service,
    group: &Group,
    endpoints: Vec<Endpoint>,
    old: Option<&EndpointSlice>,
) -> EndpointSlice {
    let mut metadata = old.map(|slice| slice.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        generate_name: Some(format!("{}-", service.name())),
        namespace: service.metadata.namespace.clone(),
        ..Default::default()
    });
    metadata.labels = Some(labels(service));
    metadata.annotations = Some(annotations(service)).filter(|a| !a.is_empty());
    metadata.owner_references = Some(vec![owners::controller_reference(&Service::GVK, &service.metadata)]);
    EndpointSlice {
        metadata,
        address_type: group.0.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(group.1.clone()).filter(|ports| !ports.is_empty()),
    }
}

/// Zones of nodes, by node name.
pub fn zones(nodes: &[Arc<Node>], of: &HashSet<&str>) -> HashMap<String, String> {
    let zone = |node: &Node| node.metadata.labels.as_ref()?.get(ZONE).cloned();
    let wanted = nodes.iter().filter(|node| of.contains(node.name()));
    wanted.filter_map(|node| Some((node.name().to_owned(), zone(node)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(extra: serde_json::Value) -> Service {
        let mut spec = json!({"selector": {"a": "b"}, "clusterIP": "10.0.0.1",
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}]});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Service::from_value(json!({"metadata": {"name": "s", "namespace": "n", "uid": "u"}, "spec": spec}))
            .unwrap()
    }

    fn pod(number: usize, port: i32, ready: bool) -> Arc<Pod> {
        Arc::new(
            Pod::from_value(json!({
                "metadata": {"name": format!("p{number}"), "namespace": "n", "uid": format!("u{number}")},
                "spec": {"nodeName": "n1", "hostname": "h", "subdomain": "s", "containers": [
                    {"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
                "status": {"phase": "Running", "podIP": format!("10.1.{}.{}", number / 250, number % 250),
                    "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
            }))
            .unwrap(),
        )
    }

    fn named(mut slices: Vec<EndpointSlice>) -> Vec<Arc<EndpointSlice>> {
        for (n, slice) in slices.iter_mut().enumerate() {
            slice.metadata.name = Some(format!("s-{n}"));
        }
        slices.into_iter().map(Arc::new).collect()
    }

    fn sizes(slices: &[EndpointSlice]) -> Vec<usize> {
        slices.iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect()
    }

    #[test]
    fn slices_are_filled_and_change_little() {
        let service = service(json!({}));
        let mut pods: Vec<_> = (0..150).map(|n| pod(n, 8080, true)).collect();
        let first = plan(&service, &pods, &HashMap::new(), &[]);
        assert_eq!(sizes(&first.create), [100, 50]);
        assert_eq!(first.create[0].ports.as_ref().unwrap()[0].port, Some(8080));
        let slices = named(first.create);
        assert!(plan(&service, &pods, &HashMap::new(), &slices).is_empty(), "settled");
        pods.push(pod(200, 8080, true));
        let more = plan(&service, &pods, &HashMap::new(), &slices);
        assert_eq!((sizes(&more.update), more.create.len(), more.delete.len()), (vec![51], 0, 0));
        pods.truncate(100);
        let fewer = plan(&service, &pods, &HashMap::new(), &slices);
        let touched = fewer.update.len() + fewer.delete.len();
        assert!(touched <= 2 && fewer.create.is_empty(), "{fewer:?}");
    }

    #[test]
    fn ports_that_differ_make_slices_that_differ() {
        let service = service(json!({}));
        let made = plan(&service, &[pod(1, 80, true), pod(2, 81, true)], &HashMap::new(), &[]);
        assert_eq!(sizes(&made.create), [1, 1]);
    }

    #[test]
    fn conditions_and_names() {
        let ready = |service: &Service, pod: Arc<Pod>| {
            let made = plan(service, &[pod], &HashMap::new(), &[]);
            let endpoint = made.create[0].endpoints.as_ref().unwrap()[0].clone();
            let c = endpoint.conditions.unwrap();
            (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap(), endpoint.hostname)
        };
        let name = Some("h".to_owned());
        assert_eq!(ready(&service(json!({})), pod(1, 80, false)), (false, false, false, name.clone()));
        let publishing = service(json!({"publishNotReadyAddresses": true}));
        assert_eq!(ready(&publishing, pod(1, 80, false)), (true, false, false, name.clone()));
        let mut leaving = Pod::clone(&pod(1, 80, true));
        leaving.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(ready(&service(json!({})), Arc::new(leaving)), (false, true, true, name));
    }

    #[test]
    fn without_pods_there_is_one_empty_slice() {
        let service = service(json!({"clusterIP": "None"}));
        let made = plan(&service, &[], &HashMap::new(), &[]);
        assert_eq!(sizes(&made.create), [0]);
        assert!(made.create[0].metadata.labels.as_ref().unwrap().contains_key(HEADLESS));
        let slices = named(made.create);
        assert!(plan(&service, &[], &HashMap::new(), &slices).is_empty());
        let filled = plan(&service, &[pod(1, 80, true)], &HashMap::new(), &slices);
        assert_eq!((sizes(&filled.update), filled.create.len(), filled.delete.len()), (vec![1], 0, 0));
    }
}
