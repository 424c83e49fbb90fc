//! `service-account-controller`: every namespace has a ServiceAccount `default`.

use std::sync::Arc;

use api::prelude::*;
use client::{BoxFuture, Client};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, WorkQueue,
};

const NAME: &str = "service-account-controller";
const ACCOUNT: &str = "default";
/// Writes in flight at once: small, independent creates.
const WORKERS: usize = 4;

/// The row of `service-account-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    namespaces: Arc<Informer<Namespace>>,
    accounts: Arc<Informer<ServiceAccount>>,
}

/// Whether a namespace takes new objects.
pub(crate) fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
    !namespace.is_terminating() && phase != Some("Terminating")
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        namespaces: context.informers.get::<Namespace>(),
        accounts: context.informers.get::<ServiceAccount>(),
    });
    let to = queue.clone();
    this.namespaces.on_event(move |event| to.add(event.object().key()));
    let to = queue.clone();
    this.accounts.on_event(move |event| {
        if let Event::Deleted(account) = event
            && account.name() == ACCOUNT
        {
            to.add(account.namespace());
        }
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.namespaces).after(&this.accounts)
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let wanted = self.namespaces.store().get(key).is_some_and(|namespace| is_active(&namespace));
        if !wanted || self.accounts.store().get_in(key, ACCOUNT).is_some() {
            return Ok(Action::Wait);
        }
        let mut account = ServiceAccount::default();
        account.metadata.namespace = Some(key.to_owned());
        account.metadata.name = Some(ACCOUNT.into());
        match self.client.create_typed(&account).await {
            Err(error) if !error.is_already_exists() && !error.is_namespace_terminating() => {
                Err(error.into())
            }
            _ => Ok(Action::Wait),
        }
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
