//! Certificates of pods for projected volumes: a key is made here, a PodCertificateRequest asks the signer for the
//! certificate, and when it is due a new pair takes the old one's place.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::ByteString;
use api::k8s_openapi::api::certificates::v1::{PodCertificateRequest, PodCertificateRequestSpec};
use api::k8s_openapi::api::core::v1::PodCertificateProjection;
use api::prelude::*;
use client::Client;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use reconcile::{Informer, Informers, Scope};
use stdx::Clock;
use tokio::sync::OnceCell;

use crate::references::Changed;
use crate::spec;

/// How long a first read may take before it counts as failed.
const FIRST_READ: Duration = Duration::from_secs(10);
/// A request that nobody has answered in this time is made again: requests are cleaned away after 15 minutes.
const ANSWER_MAX: SignedDuration = SignedDuration::from_mins(15);
/// When a certificate whose signer gives no hint is renewed, before its end.
const MARGIN: SignedDuration = SignedDuration::from_mins(30);

/// A key and its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// PKCS#8, as PEM.
    pub key: String,
    /// The chain, as PEM: the leaf first.
    pub chain: String,
    /// When to renew it.
    pub refresh_at: Timestamp,
    /// Its end.
    pub ends: Timestamp,
}

/// A request under way.
#[derive(Debug, Clone)]
struct Asked {
    name: String,
    key: String,
    at: Timestamp,
}

#[derive(Debug, Default)]
struct Slot {
    held: Option<Held>,
    asked: Option<Asked>,
    /// The signer has said no for good.
    refused: Option<String>,
}

/// What has become of a request.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Pending,
    Issued { chain: String, refresh_at: Timestamp, ends: Timestamp },
    Refused(String),
}

fn outcome(request: &PodCertificateRequest) -> Outcome {
    let status = request.status.clone().unwrap_or_default();
    for condition in status.conditions.iter().flatten().filter(|c| c.status == "True") {
        let what = match condition.type_.as_str() {
            "Denied" => "denied",
            "Failed" => "failed",
            _ => continue,
        };
        return Outcome::Refused(format!(
            "PodCertificateRequest {:?} was permanently {what}; reason: {:?}, message: {:?}",
            request.key(),
            condition.reason,
            condition.message
        ));
    }
    let issued = status.conditions.iter().flatten().any(|c| c.type_ == "Issued" && c.status == "True");
    let (Some(chain), Some(ends)) = (status.certificate_chain.filter(|_| issued), status.not_after) else {
        return Outcome::Pending;
    };
    let blocks = certificate::pem::blocks(&chain);
    let chain = blocks.iter().map(|block| certificate::pem::encode("CERTIFICATE", &block.der)).collect();
    let refresh_at = status.begin_refresh_at.map_or(ends.0 - MARGIN, |at| at.0);
    Outcome::Issued { chain, refresh_at, ends: ends.0 }
}

/// A key of a kind and an empty signing request with it. Blocks: RSA takes a while.
fn make_key(kind: &str) -> Result<(String, Vec<u8>), String> {
    use rcgen::{KeyPair, RsaKeySize};
    let failed = |error: rcgen::Error| format!("while generating a key: {error}");
    let made = match kind {
        "ECDSAP256" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        "ECDSAP384" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        "ECDSAP521" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
        "ED25519" => KeyPair::generate_for(&rcgen::PKCS_ED25519),
        "RSA3072" => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072),
        "RSA4096" => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_4096),
        other => return Err(format!("unknown key type {other:?}")),
    };
    let key = made.map_err(failed)?;
    let mut request = rcgen::CertificateParams::default();
    request.distinguished_name = rcgen::DistinguishedName::new();
    let request = request.serialize_request(&key).map_err(failed)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

/// Certificates of the node's pods.
pub struct Certificates {
    client: Client,
    node: String,
    clock: Arc<dyn Clock>,
    informers: Arc<Informers>,
    requests: OnceCell<Arc<Informer<PodCertificateRequest>>>,
    changed: Changed,
    /// By pod and place in the pod.
    slots: Mutex<HashMap<(String, String), Arc<tokio::sync::Mutex<Slot>>>>,
}

impl Certificates {
    /// None yet.
    pub fn new(
        client: Client,
        node: &str,
        clock: Arc<dyn Clock>,
        informers: Arc<Informers>,
        changed: Changed,
    ) -> Self {
        Certificates {
            client,
            node: node.to_owned(),
            clock,
            informers,
            requests: OnceCell::new(),
            changed,
            slots: Mutex::default(),
        }
    }

    async fn requests(&self) -> Result<Arc<Informer<PodCertificateRequest>>, String> {
        let requests = self.requests.get_or_init(async || {
            let scope = Scope { field_selector: format!("spec.nodeName={}", self.node), ..Scope::default() };
            let requests = self.informers.get_scoped::<PodCertificateRequest>(scope);
            let changed = self.changed.clone();
            requests.on_event(move |event| changed(&event.object().spec.pod_uid));
            requests
        });
        let requests = requests.await;
        let synced = tokio::time::timeout(FIRST_READ, requests.synced()).await;
        synced.map_err(|_| "timed out waiting for PodCertificateRequests".to_owned())?;
        Ok(requests.clone())
    }

    /// The pair that a source of a pod asks for; `slot` tells its sources apart. An error says what it waits for.
    pub async fn get(
        &self,
        pod: &Pod,
        slot: &str,
        source: &PodCertificateProjection,
    ) -> Result<Held, String> {
        let key = (pod.uid().to_owned(), slot.to_owned());
        let slot = self.slots.lock().entry(key).or_default().clone();
        let mut slot = slot.lock().await;
        let requests = self.requests().await?;
        let now = self.clock.now();
        if let Some(asked) = slot.asked.clone() {
            let found = requests.store().get_in(pod.namespace(), &asked.name);
            match found.map_or(Outcome::Pending, |request| outcome(&request)) {
                Outcome::Issued { chain, refresh_at, ends } => {
                    slot.held = Some(Held { key: asked.key, chain, refresh_at, ends });
                    slot.asked = None;
                }
                Outcome::Refused(why) => {
                    slot.refused = Some(why);
                    slot.asked = None;
                }
                Outcome::Pending if now - ANSWER_MAX > asked.at => slot.asked = None,
                Outcome::Pending => {}
            }
        }
        let due = slot.held.as_ref().is_none_or(|held| now >= held.refresh_at);
        if due && slot.asked.is_none() && slot.refused.is_none() {
            slot.asked = Some(self.ask(pod, source, now).await?);
        }
        let waits = slot.asked.as_ref().map(|asked| asked.name.clone());
        match (&slot.held, &slot.refused) {
            (Some(held), _) if now < held.ends => {
                // While the next one is on its way, the answer wakes the pod; should there be none, it is asked again.
                let refresh_at = if due { now + ANSWER_MAX } else { held.refresh_at };
                Ok(Held { refresh_at, ..held.clone() })
            }
            (_, Some(why)) => Err(why.clone()),
            _ => Err(format!(
                "waiting for PodCertificateRequest \"{}/{}\" to be issued",
                pod.namespace(),
                waits.unwrap_or_default()
            )),
        }
    }

    async fn ask(
        &self,
        pod: &Pod,
        source: &PodCertificateProjection,
        now: Timestamp,
    ) -> Result<Asked, String> {
        let kind = source.key_type.clone();
        let made = tokio::task::spawn_blocking(move || make_key(&kind)).await;
        let (key, request) = made.map_err(|error| error.to_string())??;
        let account = spec::spec(pod).service_account_name.clone().unwrap_or("default".into());
        let failed = |error: client::Error| format!("while asking for a certificate: {error}");
        let found = self.client.get_typed::<ServiceAccount>(pod.namespace(), &account).await;
        let found = found.map_err(failed)?;
        let node = self.client.get_typed::<Node>("", &self.node).await.map_err(failed)?;
        let request = PodCertificateRequest {
            metadata: ObjectMeta {
                generate_name: Some("req-".into()),
                namespace: Some(pod.namespace().to_owned()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Pod".into(),
                    name: pod.name().to_owned(),
                    uid: pod.uid().to_owned(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: PodCertificateRequestSpec {
                max_expiration_seconds: source.max_expiration_seconds,
                node_name: self.node.clone(),
                node_uid: node.uid().to_owned(),
                pod_name: pod.name().to_owned(),
                pod_uid: pod.uid().to_owned(),
                service_account_name: account,
                service_account_uid: found.uid().to_owned(),
                signer_name: source.signer_name.clone(),
                stub_pkc_s10_request: ByteString(request),
                unverified_user_annotations: source.user_annotations.clone(),
            },
            status: None,
        };
        let made = self.client.create_typed(&request).await.map_err(failed)?;
        Ok(Asked { name: made.name().to_owned(), key, at: now })
    }

    /// Forgets the pairs of a pod.
    pub fn release(&self, pod_uid: &str) {
        self.slots.lock().retain(|(uid, _), _| uid != pod_uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_of_every_kind() {
        for kind in ["ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072"] {
            let (key, request) = make_key(kind).unwrap();
            assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{kind}");
            // The verifier knows no P-521; what it can read, it has to accept.
            let read = certificate::Request::from_der(&request);
            assert!(read.is_ok() || kind == "ECDSAP521", "{kind}: {read:?}");
        }
        assert_eq!(make_key("DSA").unwrap_err(), "unknown key type \"DSA\"");
    }

    #[test]
    fn outcomes() {
        let with = |status: serde_json::Value| {
            let spec = json!({"signerName": "e.com/s", "podName": "p", "podUID": "u", "nodeName": "n", "nodeUID": "m",
                "serviceAccountName": "a", "serviceAccountUID": "b", "stubPKCS10Request": ""});
            let object = json!({"metadata": {"name": "r", "namespace": "n"}, "spec": spec, "status": status});
            outcome(&PodCertificateRequest::from_value(object).unwrap())
        };
        let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let pem = certificate::pem::encode("CERTIFICATE", b"x");
        assert_eq!(with(json!({})), Outcome::Pending);
        assert!(matches!(with(json!({"conditions": condition("Denied")})), Outcome::Refused(why)
            if why == "PodCertificateRequest \"n/r\" was permanently denied; reason: \"R\", message: \"m\""));
        let issued = json!({"conditions": condition("Issued"), "certificateChain": format!("noise\n{pem}"),
            "notAfter": "2026-01-02T00:00:00Z"});
        let Outcome::Issued { chain, refresh_at, ends } = with(issued) else { panic!("not issued") };
        assert_eq!((chain, ends.duration_since(refresh_at)), (pem, MARGIN));
    }
}
