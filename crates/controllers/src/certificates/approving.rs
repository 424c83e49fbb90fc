//! `csrapproving`: approves the client certificates of kubelets for those who may ask for them.

use std::sync::Arc;

use api::k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use api::prelude::*;
use client::{BoxFuture, Client};
use meta::Gvr;
use reconcile::{Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, WorkQueue};
use serde_json::{Value, json};

use super::{ACCOUNT, asked, has, is_issued, usages};

const WORKERS: usize = 2;
const REVIEWS: Gvr = Gvr::new("authorization.k8s.io", "v1", "subjectaccessreviews");

/// The row of `csrapproving`.
pub fn descriptor() -> Descriptor {
    Descriptor::new("csrapproving", build)
}

struct Loop {
    client: Client,
    requests: Arc<Informer<CertificateSigningRequest>>,
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(ACCOUNT),
        requests: context.informers.get::<CertificateSigningRequest>(),
    });
    let to = queue.clone();
    this.requests.on_event(move |event| to.add(event.object().key()));
    Controller::new(queue, this.clone(), WORKERS).after(&this.requests)
}

/// Permissions (subresources to create) of which one is enough, with what an approval by it says. None for what
/// is none of our business.
pub fn recognized(request: &CertificateSigningRequest) -> Vec<(&'static str, &'static str)> {
    let decided = has(request, "Approved") || has(request, "Denied") || is_issued(request);
    if decided || request.spec.signer_name != certificate::signer::KUBELET_CLIENT {
        return Vec::new();
    }
    let Ok(asked) = asked(request) else { return Vec::new() };
    if certificate::signer::kubelet_client(&asked, &usages(request)).is_some() {
        return Vec::new();
    }
    let mut found = Vec::new();
    if request.spec.username.as_deref() == Some(&*asked.common_name) {
        let text = "Auto approving self kubelet client certificate after SubjectAccessReview.";
        found.push(("selfnodeclient", text));
    }
    found.push(("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."));
    found
}

/// The question whether the one who asks may have the certificate without anybody looking.
fn review(request: &CertificateSigningRequest, subresource: &str) -> Value {
    let spec = &request.spec;
    json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {
        "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
        "resourceAttributes": {"group": "certificates.k8s.io", "resource": "certificatesigningrequests",
            "verb": "create", "subresource": subresource}}})
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(request) = self.requests.store().get(key) else { return Ok(Action::Wait) };
        for (subresource, message) in recognized(&request) {
            let answer = self.client.create(&REVIEWS, "", &review(&request, subresource)).await?;
            if answer["status"]["allowed"] != true {
                continue;
            }
            let mut approved = request.encode();
            let condition =
                json!({"type": "Approved", "status": "True", "reason": "AutoApproved", "message": message});
            match approved["status"]["conditions"].as_array_mut() {
                Some(list) => list.push(condition),
                None => approved["status"]["conditions"] = json!([condition]),
            }
            let gvr = CertificateSigningRequest::GVR;
            self.client.update_subresource(&gvr, "", key, "approval", &approved).await?;
            break;
        }
        Ok(Action::Wait)
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}
