//! `tokencleaner`: removes bootstrap tokens the moment they expire.

use std::sync::Arc;
use std::time::Duration;

use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams};
use reconcile::{Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, WorkQueue};
use stdx::Clock;

use super::{expiration, tokens};

const NAME: &str = "token-cleaner";

/// The row of `tokencleaner`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    clock: Arc<dyn Clock>,
    secrets: Arc<Informer<Secret>>,
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        clock: context.clock.clone(),
        secrets: context.informers.get_scoped::<Secret>(tokens()),
    });
    let to = queue.clone();
    this.secrets.on_event(move |event| to.add(event.object().key()));
    Controller::new(queue, this.clone(), 1).after(&this.secrets)
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(secret) = self.secrets.store().get(key) else { return Ok(Action::Wait) };
        let Some(at) = expiration(&secret) else { return Ok(Action::Wait) };
        let left = Duration::try_from(at.duration_since(self.clock.now())).unwrap_or_default();
        if !left.is_zero() {
            return Ok(Action::RequeueAfter(left));
        }
        let params = DeleteParams::only_uid(secret.uid());
        match self.client.delete_typed::<Secret>(secret.namespace(), secret.name(), &params).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
            _ => Ok(Action::Wait),
        }
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
