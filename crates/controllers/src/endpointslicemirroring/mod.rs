//! `endpointslicemirroring-controller`: Endpoints that somebody wrote by hand, for a Service without a
//! selector, become EndpointSlices, which are all that proxies and DNS read.
//!
//! Flow: Service, Endpoints and slice events -> key of the Endpoints -> [`plan::plan`] -> create, update, delete.

pub mod plan;

use std::sync::Arc;

use api::prelude::*;
use client::{BoxFuture, Client};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, Recorder, WorkQueue,
};

use crate::endpointslice::{self, execute};

/// Endpoints in work at once (upstream's default is 5).
const WORKERS: usize = 5;
const NAME: &str = "endpointslicemirroring-controller";
/// Index of slices by `namespace/endpoints`.
const BY_ENDPOINTS: &str = "mirrored";

/// The row of `endpointslicemirroring-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    recorder: Recorder,
    services: Arc<Informer<Service>>,
    endpoints: Arc<Informer<Endpoints>>,
    slices: Arc<Informer<EndpointSlice>>,
    queue: Arc<WorkQueue>,
}

fn mirror_key(slice: &EndpointSlice) -> Vec<String> {
    endpointslice::keys(slice, plan::MANAGER)
}

fn has_selector(service: &Service) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|selector| !selector.is_empty())
}

fn build(context: &Context) -> Controller {
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        recorder: context.recorder_of(NAME),
        services: context.informers.get::<Service>(),
        endpoints: context.informers.get::<Endpoints>(),
        slices: context.informers.get::<EndpointSlice>(),
        queue: WorkQueue::new(),
    });
    this.slices.store().add_index(BY_ENDPOINTS, mirror_key);
    let queue = this.queue.clone();
    this.services.on_event(move |event| {
        let matters = match event {
            Event::Updated { old, new } => has_selector(old) != has_selector(new),
            event => !has_selector(event.object()),
        };
        if matters {
            queue.add(event.object().key());
        }
    });
    let queue = this.queue.clone();
    this.endpoints.on_event(move |event| {
        let before = matches!(event, Event::Updated { old, .. } if plan::should_mirror(old));
        if before || plan::should_mirror(event.object()) {
            queue.add(event.object().key());
        }
    });
    let queue = this.queue.clone();
    this.slices.on_event(move |event| {
        mirror_key(event.object()).into_iter().for_each(|key| queue.add(key));
        if let Event::Updated { old, .. } = event {
            mirror_key(old).into_iter().for_each(|key| queue.add(key));
        }
    });
    Controller::new(this.queue.clone(), this.clone(), WORKERS)
        .after(&this.services)
        .after(&this.endpoints)
        .after(&this.slices)
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let (namespace, _) = reconcile::split_key(key);
        let existing = self.slices.store().by_index(BY_ENDPOINTS, key);
        let by_hand = self.services.store().get(key).is_some_and(|service| !has_selector(&service));
        let endpoints = self.endpoints.store().get(key).filter(|e| by_hand && plan::should_mirror(e));
        let Some(endpoints) = endpoints else {
            // Nothing to mirror any more.
            let delete = existing.iter().filter(|s| !s.is_terminating()).map(|s| s.name().to_owned());
            let plan = endpointslice::plan::Plan { delete: delete.collect(), ..Default::default() };
            execute(&self.client, namespace, plan).await?;
            return Ok(Action::Wait);
        };
        let outcome = plan::plan(&endpoints, &existing);
        // Said when something changes, not at every look.
        if !outcome.plan.is_empty() {
            self.warn(&endpoints, &outcome);
        }
        execute(&self.client, namespace, outcome.plan).await?;
        Ok(Action::Wait)
    }

    fn warn(&self, endpoints: &Endpoints, outcome: &plan::Outcome) {
        let (invalid, skipped, max) = (outcome.invalid, outcome.skipped, plan::ADDRESSES_MAX);
        if invalid > 0 {
            let message = format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
            self.recorder.warning(endpoints, "InvalidIPAddress", message);
        }
        if skipped > invalid {
            let message = format!(
                "A max of {max} addresses can be mirrored to EndpointSlices per Endpoints subset. {skipped} addresses were skipped"
            );
            self.recorder.warning(endpoints, "TooManyAddressesToMirror", message);
        }
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
