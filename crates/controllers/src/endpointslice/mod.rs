//! `endpointslice-controller`: writes down which pods a Service leads to, for proxies and DNS.
//!
//! Flow: Service, pod and node events -> key of the Service -> [`plan::plan`] -> create, update, delete.

pub mod plan;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, Recorder, WorkQueue,
};

use crate::pods;

/// Services in work at once (upstream's default is 5).
const WORKERS: usize = 5;
const NAME: &str = "endpointslice-controller";
/// Index of slices by `namespace/service`.
const BY_SERVICE: &str = "service";

/// The row of `endpointslice-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    services: Arc<Informer<Service>>,
    slices: Arc<Informer<EndpointSlice>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    queue: Arc<WorkQueue>,
}

fn label<'a>(slice: &'a EndpointSlice, key: &str) -> Option<&'a str> {
    slice.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// Key of the Service of a slice that `manager` has made; none for those of others.
pub(crate) fn keys(slice: &EndpointSlice, manager: &str) -> Vec<String> {
    let ours = label(slice, plan::MANAGED_BY) == Some(manager);
    let service = label(slice, plan::SERVICE_NAME).filter(|_| ours);
    service.map(|name| format!("{}/{name}", slice.namespace())).into_iter().collect()
}

fn service_key(slice: &EndpointSlice) -> Vec<String> {
    keys(slice, plan::MANAGER)
}

/// The selector of a Service, unless it has none: then its endpoints are somebody else's business.
pub(crate) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let external = spec.type_.as_deref() == Some("ExternalName");
    spec.selector.as_ref().filter(|selector| !external && !selector.is_empty())
}

/// Whether a pod has all labels of a Service's selector.
pub(crate) fn selects(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Keys of the Services that select a pod.
pub(crate) fn services_of(services: &Informer<Service>, pod: &Pod) -> Vec<String> {
    let candidates = services.store().by_index("namespace", pod.namespace());
    let selecting = candidates.iter().filter(|s| selector(s).is_some_and(|selector| selects(selector, pod)));
    selecting.map(|service| service.key()).collect()
}

/// Whether a change of a pod can change an endpoint.
pub(crate) fn matters(old: &Pod, new: &Pod) -> bool {
    let ips = |pod: &Pod| pod.status.as_ref().map(|s| (s.pod_ip.clone(), s.pod_ips.clone()));
    let host = |pod: &Pod| pod.spec.as_ref().map(|s| (s.hostname.clone(), s.subdomain.clone()));
    pods::is_ready(old) != pods::is_ready(new)
        || old.is_terminating() != new.is_terminating()
        || pods::is_finished(old) != pods::is_finished(new)
        || pods::node_name(old) != pods::node_name(new)
        || old.metadata.labels != new.metadata.labels
        || ips(old) != ips(new)
        || host(old) != host(new)
}

/// Passes on pod events that can change endpoints, as keys of Services.
pub(crate) fn on_pod(services: &Informer<Service>, queue: &WorkQueue, event: &Event<'_, Pod>) {
    if let Event::Updated { old, new } = event {
        if !matters(old, new) {
            return;
        }
        if old.metadata.labels != new.metadata.labels {
            services_of(services, old).into_iter().for_each(|key| queue.add(key));
        }
    }
    services_of(services, event.object()).into_iter().for_each(|key| queue.add(key));
}

fn build(context: &Context) -> Controller {
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.recorder_of(NAME),
        services: context.informers.get::<Service>(),
        slices: context.informers.get::<EndpointSlice>(),
        pods: context.informers.get::<Pod>(),
        nodes: context.informers.get::<Node>(),
        queue: WorkQueue::new(),
    });
    this.services.store().add_index("namespace", reconcile::index_by_namespace::<Service>);
    this.pods.store().add_index("namespace", reconcile::index_by_namespace::<Pod>);
    this.slices.store().add_index(BY_SERVICE, service_key);
    let queue = this.queue.clone();
    this.services.on_event(move |event| queue.add(event.object().key()));
    let it = this.clone();
    this.pods.on_event(move |event| on_pod(&it.services, &it.queue, event));
    let queue = this.queue.clone();
    this.slices.on_event(move |event| {
        service_key(event.object()).into_iter().for_each(|key| queue.add(key));
        if let Event::Updated { old, .. } = event {
            service_key(old).into_iter().for_each(|key| queue.add(key));
        }
    });
    let it = this.clone();
    this.nodes.on_event(move |event| {
        // Only a node's labels matter here, and those hardly ever change.
        if let Event::Updated { old, new } = event
            && old.metadata.labels != new.metadata.labels
        {
            it.services.store().keys().into_iter().for_each(|key| it.queue.add(key));
        }
    });
    Controller::new(this.queue.clone(), this.clone(), WORKERS)
        .after(&this.services)
        .after(&this.slices)
        .after(&this.pods)
        .after(&this.nodes)
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        // Slices of a Service that is gone go with it, by owner reference.
        let Some(service) = self.services.store().get(key) else { return Ok(Action::Wait) };
        let Some(selector) = selector(&service) else { return Ok(Action::Wait) };
        if service.is_terminating() {
            return Ok(Action::Wait);
        }
        let mut selected = self.pods.store().by_index("namespace", service.namespace());
        selected.retain(|pod| selects(selector, pod));
        let on: std::collections::HashSet<&str> = selected.iter().map(|p| pods::node_name(p)).collect();
        let zones = if on.is_empty() { HashMap::new() } else { plan::zones(&self.nodes.store().list(), &on) };
        let existing = self.slices.store().by_index(BY_SERVICE, key);
        let plan = plan::plan(&service, &selected, &zones, &existing);
        let outcome = execute(&self.client, service.namespace(), plan).await;
        if let Err(error) = &outcome
            && !error.is_conflict()
        {
            let message = format!(
                "Error updating Endpoint Slices for Service {}/{}: {error}",
                service.namespace(),
                service.name()
            );
            self.recorder.warning(&*service, "FailedToUpdateEndpointSlices", message);
        }
        outcome?;
        Ok(Action::Wait)
    }
}

/// Does what a plan says in a namespace.
pub(crate) async fn execute(client: &Client, namespace: &str, plan: plan::Plan) -> client::Result<()> {
    for slice in &plan.create {
        match client.create_typed(slice).await {
            Err(error) if error.is_namespace_terminating() => return Ok(()),
            outcome => outcome.map(drop)?,
        }
    }
    for slice in &plan.update {
        client.update_typed(slice).await?;
    }
    for name in &plan.delete {
        let params = DeleteParams::default();
        match client.delete_typed::<EndpointSlice>(namespace, name, &params).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
