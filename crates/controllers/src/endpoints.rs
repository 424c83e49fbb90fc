//! `endpoint-controller`: the older Endpoints object of each Service, for clients that still read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset};
use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams};
use reconcile::{Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, WorkQueue};

use crate::endpointslice::plan::{HEADLESS, is_eligible, target_port};
use crate::endpointslice::{on_pod, selector, selects};
use crate::pods;

const WORKERS: usize = 5;
const NAME: &str = "endpoint-controller";
/// Addresses per object (upstream's limit); more are cut off and the annotation says so.
const ADDRESSES_MAX: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";

/// The row of `endpoint-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    services: Arc<Informer<Service>>,
    endpoints: Arc<Informer<Endpoints>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue>,
}

fn build(context: &Context) -> Controller {
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        services: context.informers.get::<Service>(),
        endpoints: context.informers.get::<Endpoints>(),
        pods: context.informers.get::<Pod>(),
        queue: WorkQueue::new(),
    });
    this.services.store().add_index("namespace", reconcile::index_by_namespace::<Service>);
    this.pods.store().add_index("namespace", reconcile::index_by_namespace::<Pod>);
    let queue = this.queue.clone();
    this.services.on_event(move |event| queue.add(event.object().key()));
    let queue = this.queue.clone();
    this.endpoints.on_event(move |event| queue.add(event.object().key()));
    let it = this.clone();
    this.pods.on_event(move |event| on_pod(&it.services, &it.queue, event));
    Controller::new(this.queue.clone(), this.clone(), WORKERS)
        .after(&this.services)
        .after(&this.endpoints)
        .after(&this.pods)
}

/// Addresses of one list of ports.
#[derive(Default)]
struct Subset {
    ready: Vec<EndpointAddress>,
    not_ready: Vec<EndpointAddress>,
    ports: Vec<EndpointPort>,
}

/// The subsets of a Service: pods with equal ports together, ready ones apart from the others.
pub fn subsets(service: &Service, selected: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let spec = service.spec.clone().unwrap_or_default();
    let publish = spec.publish_not_ready_addresses == Some(true);
    let mut subsets: BTreeMap<String, Subset> = BTreeMap::new();
    let mut sorted: Vec<&Arc<Pod>> = selected.iter().filter(|p| is_eligible(p)).collect();
    sorted.sort_by(|a, b| a.name().cmp(b.name()));
    for pod in sorted.into_iter().take(ADDRESSES_MAX) {
        if pod.is_terminating() && !publish {
            continue;
        }
        let Some(ip) = pod.status.as_ref().and_then(|s| s.pod_ip.clone()) else { continue };
        let ports: Vec<EndpointPort> = (spec.ports.iter().flatten())
            .filter_map(|port| {
                Some(EndpointPort {
                    name: port.name.clone(),
                    port: target_port(pod, port)?,
                    protocol: Some(port.protocol.clone().unwrap_or("TCP".into())),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect();
        if ports.is_empty() && spec.ports.as_ref().is_some_and(|ports| !ports.is_empty()) {
            continue;
        }
        let pod_spec = pod.spec.as_ref();
        let in_subdomain = pod_spec.and_then(|s| s.subdomain.as_deref()) == Some(service.name());
        let address = EndpointAddress {
            ip,
            hostname: pod_spec.and_then(|s| s.hostname.clone()).filter(|h| in_subdomain && !h.is_empty()),
            node_name: pod_spec.and_then(|s| s.node_name.clone()),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".into()),
                namespace: pod.metadata.namespace.clone(),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
                ..Default::default()
            }),
        };
        let subset = subsets.entry(format!("{ports:?}")).or_default();
        subset.ports = ports;
        if publish || pods::is_ready(pod) {
            subset.ready.push(address);
        } else {
            subset.not_ready.push(address);
        }
    }
    fn present<T>(list: Vec<T>) -> Option<Vec<T>> {
        if list.is_empty() { None } else { Some(list) }
    }
    let finished = subsets.into_values().map(|mut subset| {
        subset.ready.sort_by(|a, b| a.ip.cmp(&b.ip));
        subset.not_ready.sort_by(|a, b| a.ip.cmp(&b.ip));
        EndpointSubset {
            addresses: present(subset.ready),
            not_ready_addresses: present(subset.not_ready),
            ports: present(subset.ports),
        }
    });
    finished.collect()
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let (namespace, name) = reconcile::split_key(key);
        let present = self.endpoints.store().get(key);
        let Some(service) = self.services.store().get(key) else {
            let ours = |e: &Endpoints| {
                e.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|by| by == NAME)
            };
            if present.is_some_and(|e| ours(&e) && !e.is_terminating()) {
                match self.client.delete_typed::<Endpoints>(namespace, name, &DeleteParams::default()).await {
                    Err(error) if !error.is_not_found() => return Err(error.into()),
                    _ => {}
                }
            }
            return Ok(Action::Wait);
        };
        let Some(selector) = selector(&service) else { return Ok(Action::Wait) };
        let mut selected = self.pods.store().by_index("namespace", namespace);
        selected.retain(|pod| selects(selector, pod));
        let wanted = desired(&service, &selected, present.as_deref());
        let outcome = match &present {
            Some(old) if old.subsets == wanted.subsets && old.metadata == wanted.metadata => {
                return Ok(Action::Wait);
            }
            Some(_) => self.client.update_typed(&wanted).await,
            None => self.client.create_typed(&wanted).await,
        };
        match outcome {
            Err(error) if error.is_namespace_terminating() => Ok(Action::Wait),
            outcome => outcome.map(|_| Action::Wait).map_err(Into::into),
        }
    }
}

fn desired(service: &Service, selected: &[Arc<Pod>], present: Option<&Endpoints>) -> Endpoints {
    let mut endpoints = present.cloned().unwrap_or_default();
    let meta = &mut endpoints.metadata;
    meta.namespace = service.metadata.namespace.clone();
    meta.name = service.metadata.name.clone();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.into(), NAME.into());
    if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    meta.labels = Some(labels);
    let mut annotations = meta.annotations.take().unwrap_or_default();
    if selected.len() > ADDRESSES_MAX {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    meta.annotations = Some(annotations).filter(|a| !a.is_empty());
    endpoints.subsets = Some(subsets(service, selected)).filter(|s| !s.is_empty());
    endpoints
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_and_not_ready_are_apart() {
        let service = Service::from_value(json!({"metadata": {"name": "s", "namespace": "n"},
            "spec": {"selector": {"a": "b"}, "ports": [{"port": 80, "targetPort": 8080}]}}))
        .unwrap();
        let pod = |name: &str, ip: &str, ready: &str| {
            Arc::new(
                Pod::from_value(
                    json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"containers": []},
                "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}}),
                )
                .unwrap(),
            )
        };
        let subsets = subsets(&service, &[pod("a", "10.0.0.2", "True"), pod("b", "10.0.0.1", "False")]);
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "10.0.0.2");
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip, "10.0.0.1");
        assert_eq!(subsets[0].ports.as_ref().unwrap()[0].port, 8080);
    }
}
