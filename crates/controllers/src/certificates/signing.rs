//! `csrsigning`: signs what was approved, for the signers that are the cluster's own, if it is what they sign.

use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::ByteString;
use api::k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use api::prelude::*;
use client::{BoxFuture, Client};
use reconcile::{Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, WorkQueue};
use stdx::Clock;

use super::{ACCOUNT, Signer, asked, has, is_issued, usages};

const WORKERS: usize = 2;
/// Shortest life that is given, whatever was asked for.
const LIFE_MIN: Duration = Duration::from_secs(600);

/// The row of `csrsigning`.
pub fn descriptor(signer: Arc<dyn Signer>) -> Descriptor {
    Descriptor::new("csrsigning", move |context| build(context, signer.clone()))
}

struct Loop {
    client: Client,
    signer: Arc<dyn Signer>,
    clock: Arc<dyn Clock>,
    requests: Arc<Informer<CertificateSigningRequest>>,
}

fn build(context: &Context, signer: Arc<dyn Signer>) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(ACCOUNT),
        signer,
        clock: context.clock.clone(),
        requests: context.informers.get::<CertificateSigningRequest>(),
    });
    let to = queue.clone();
    this.requests.on_event(move |event| {
        if has(event.object(), "Approved") {
            to.add(event.object().key());
        }
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.requests)
}

/// What is to be done with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Nothing.
    Leave,
    /// It is not what its signer signs.
    Fail(String),
    /// Sign, for this long at most.
    Sign(Duration),
}

/// Decides.
pub fn plan(request: &CertificateSigningRequest, life_max: Duration) -> Plan {
    let signer = request.spec.signer_name.as_str();
    let open = has(request, "Approved") && !has(request, "Denied") && !has(request, "Failed");
    if !open || is_issued(request) || !certificate::signer::is_own(signer) {
        return Plan::Leave;
    }
    // Validation has let it in: one that does not parse was put here in some other way.
    let Ok(asked) = asked(request) else { return Plan::Leave };
    if let Some(why) = certificate::signer::refusal(signer, &asked, &usages(request)) {
        return Plan::Fail(why);
    }
    let wanted = request.spec.expiration_seconds.and_then(|s| u64::try_from(s).ok());
    Plan::Sign(wanted.map_or(life_max, |s| Duration::from_secs(s).max(LIFE_MIN)).min(life_max))
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(request) = self.requests.store().get(key) else { return Ok(Action::Wait) };
        let mut request = CertificateSigningRequest::clone(&request);
        match plan(&request, self.signer.life_max()) {
            Plan::Leave => return Ok(Action::Wait),
            Plan::Fail(why) => self.fail(&mut request, why),
            Plan::Sign(life) => {
                let pem = String::from_utf8_lossy(&request.spec.request.0).into_owned();
                match self.signer.sign(&pem, &usages(&request), life) {
                    Ok(signed) => {
                        request.status.get_or_insert_default().certificate =
                            Some(ByteString(signed.into_bytes()));
                    }
                    Err(why) => self.fail(&mut request, why),
                }
            }
        }
        self.client.update_status_typed(&request).await?;
        Ok(Action::Wait)
    }

    fn fail(&self, request: &mut CertificateSigningRequest, why: String) {
        let condition = CertificateSigningRequestCondition {
            type_: "Failed".into(),
            status: "True".into(),
            reason: Some("SignerValidationFailure".into()),
            message: Some(why),
            last_update_time: Some(Time(self.clock.now())),
            ..Default::default()
        };
        request.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;

    fn request(
        signer: &str,
        organization: &str,
        conditions: &[&str],
        seconds: Option<i32>,
    ) -> CertificateSigningRequest {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
        let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let conditions: Vec<_> = conditions.iter().map(|c| json!({"type": c, "status": "True"})).collect();
        CertificateSigningRequest::from_value(
            json!({"metadata": {"name": "c"}, "status": {"conditions": conditions},
            "spec": {"request": STANDARD.encode(pem), "signerName": signer, "expirationSeconds": seconds,
                "username": "system:node:n", "usages": ["digital signature", "client auth"]}}),
        )
        .unwrap()
    }

    #[test]
    fn what_is_signed_and_for_how_long() {
        use certificate::signer::{API_CLIENT, KUBELET_CLIENT};
        let day = Duration::from_secs(86_400);
        let wrong = Plan::Fail("subject organization is not system:nodes".into());
        for (signer, organization, conditions, seconds, expected) in [
            (API_CLIENT, "dev", &["Approved"][..], None, Plan::Sign(day)),
            (API_CLIENT, "dev", &["Approved"], Some(3600), Plan::Sign(Duration::from_secs(3600))),
            (API_CLIENT, "dev", &["Approved"], Some(1), Plan::Sign(LIFE_MIN)),
            (API_CLIENT, "dev", &["Approved"], Some(1_000_000), Plan::Sign(day)),
            (API_CLIENT, "dev", &[], None, Plan::Leave),
            (API_CLIENT, "dev", &["Approved", "Failed"], None, Plan::Leave),
            ("example.com/mine", "dev", &["Approved"], None, Plan::Leave),
            (KUBELET_CLIENT, "dev", &["Approved"], None, wrong),
            (KUBELET_CLIENT, "system:nodes", &["Approved"], None, Plan::Sign(day)),
        ] {
            assert_eq!(plan(&request(signer, organization, conditions, seconds), day), expected, "{signer}");
        }
    }

    #[test]
    fn what_is_approved_without_a_look() {
        use certificate::signer::{API_CLIENT, KUBELET_CLIENT};
        let recognized = |signer: &str, organization: &str, conditions: &[&str]| {
            let found = super::super::approving::recognized(&request(signer, organization, conditions, None));
            found.into_iter().map(|(s, _)| s).collect::<Vec<_>>()
        };
        assert_eq!(recognized(KUBELET_CLIENT, "system:nodes", &[]), ["selfnodeclient", "nodeclient"]);
        assert!(recognized(KUBELET_CLIENT, "system:nodes", &["Denied"]).is_empty());
        assert!(recognized(KUBELET_CLIENT, "dev", &[]).is_empty());
        assert!(recognized(API_CLIENT, "system:nodes", &[]).is_empty());
    }
}
