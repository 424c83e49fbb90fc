//! `root-ca-certificate-publisher`: every namespace has a ConfigMap `kube-root-ca.crt`, by which pods trust
//! the API server.

use std::sync::Arc;

use api::prelude::*;
use client::{BoxFuture, Client};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Event, Informer, Reconcile, Scope, WorkQueue,
};

use crate::serviceaccount::is_active;

const NAME: &str = "root-ca-cert-publisher";
const CONFIG_MAP: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
/// Writes in flight at once: small, independent creates.
const WORKERS: usize = 4;

/// The row of `root-ca-cert-publisher`, publishing `pem`.
pub fn descriptor(pem: Arc<str>) -> Descriptor {
    Descriptor::new(NAME, move |context| build(context, pem.clone()))
}

struct Loop {
    client: Client,
    pem: Arc<str>,
    namespaces: Arc<Informer<Namespace>>,
    maps: Arc<Informer<ConfigMap>>,
}

fn build(context: &Context, pem: Arc<str>) -> Controller {
    let queue = WorkQueue::new();
    // Only our own ConfigMaps: the others can be large and are of no interest.
    let scope = Scope { field_selector: format!("metadata.name={CONFIG_MAP}"), ..Default::default() };
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        pem,
        namespaces: context.informers.get::<Namespace>(),
        maps: context.informers.get_scoped::<ConfigMap>(scope),
    });
    let to = queue.clone();
    this.namespaces.on_event(move |event| to.add(event.object().key()));
    let to = queue.clone();
    this.maps.on_event(move |event| {
        if !matches!(event, Event::Added(_)) {
            to.add(event.object().namespace());
        }
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.namespaces).after(&this.maps)
}

/// The ConfigMap a namespace should have, if the present one is not it.
pub fn desired(namespace: &str, pem: &str, present: Option<&ConfigMap>) -> Option<ConfigMap> {
    let has_pem = |map: &ConfigMap| {
        map.data.as_ref().is_some_and(|data| data.len() == 1 && data.get(KEY).is_some_and(|v| v == pem))
    };
    if present.is_some_and(has_pem) {
        return None;
    }
    let mut map = present.cloned().unwrap_or_default();
    map.metadata.namespace = Some(namespace.to_owned());
    map.metadata.name = Some(CONFIG_MAP.into());
    let annotations = map.metadata.annotations.get_or_insert_default();
    annotations.insert("kubernetes.io/description".into(), DESCRIPTION.into());
    map.data = Some([(KEY.to_owned(), pem.to_owned())].into());
    Some(map)
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        if !self.namespaces.store().get(key).is_some_and(|namespace| is_active(&namespace)) {
            return Ok(Action::Wait);
        }
        let present = self.maps.store().get_in(key, CONFIG_MAP);
        let Some(map) = desired(key, &self.pem, present.as_deref()) else { return Ok(Action::Wait) };
        let outcome = match present {
            Some(_) => self.client.update_typed(&map).await,
            None => self.client.create_typed(&map).await,
        };
        match outcome {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tampering_is_repaired() {
        let mut map = desired("n", "pem", None).unwrap();
        assert!(desired("n", "pem", Some(&map)).is_none());
        map.data.as_mut().unwrap().insert("extra".into(), "x".into());
        assert_eq!(desired("n", "pem", Some(&map)).unwrap().data.unwrap().len(), 1);
        assert!(desired("n", "other", Some(&map)).is_some());
    }
}
