//! `kube-apiserver-serving-clustertrustbundle-publisher`: the authority by which the API server is trusted, as a
//! ClusterTrustBundle. Its name ends in a digest of its content; bundles of former content go.

use std::sync::Arc;

use api::k8s_openapi::api::certificates::v1::{ClusterTrustBundle, ClusterTrustBundleSpec};
use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, Scope, WorkQueue,
};
use sha2::{Digest, Sha256};

const NAME: &str = "kube-apiserver-serving-clustertrustbundle-publisher";
const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";
/// The only key of the queue: there is one bundle.
const KEY: &str = "bundle";

/// The row of the publisher, publishing `pem`.
pub fn descriptor(pem: Arc<str>) -> Descriptor {
    Descriptor::new(NAME, move |context| build(context, pem.clone()))
}

struct Loop {
    client: Client,
    pem: Arc<str>,
    bundles: Arc<Informer<ClusterTrustBundle>>,
}

fn build(context: &Context, pem: Arc<str>) -> Controller {
    let queue = WorkQueue::new();
    let scope = Scope { field_selector: format!("spec.signerName={SIGNER}"), ..Default::default() };
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        pem,
        bundles: context.informers.get_scoped::<ClusterTrustBundle>(scope),
    });
    let to = queue.clone();
    this.bundles.on_event(move |_| to.add(KEY));
    queue.add(KEY);
    Controller::new(queue, this.clone(), 1).after(&this.bundles)
}

/// Name of the bundle with some content.
pub fn name_of(pem: &str) -> String {
    let digest: String = Sha256::digest(pem.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    format!("{}:{digest}", SIGNER.replace('/', ":"))
}

impl Loop {
    async fn sync(&self) -> Result<Action, ControlError> {
        let name = name_of(&self.pem);
        let wanted = ClusterTrustBundle {
            metadata: ObjectMeta { name: Some(name.clone()), ..Default::default() },
            spec: ClusterTrustBundleSpec {
                signer_name: Some(SIGNER.into()),
                trust_bundle: self.pem.to_string(),
            },
        };
        match self.bundles.store().get(&name) {
            None => match self.client.create_typed(&wanted).await {
                Err(error) if !error.is_already_exists() => return Err(error.into()),
                _ => {}
            },
            Some(found) if found.spec != wanted.spec => {
                let changed = ClusterTrustBundle { spec: wanted.spec, ..ClusterTrustBundle::clone(&found) };
                self.client.update_typed(&changed).await?;
            }
            Some(_) => {}
        }
        for old in self.bundles.store().list().iter().filter(|b| b.name() != name) {
            let params = DeleteParams::only_uid(old.uid());
            match self.client.delete_typed::<ClusterTrustBundle>("", old.name(), &params).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Action::Wait)
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync())
    }
}
