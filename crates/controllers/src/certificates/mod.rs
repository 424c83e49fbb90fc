//! Certificate requests: `csrapproving`, `csrsigning` and `csrcleaner`, and the publisher of the API server's trust
//! bundle.

pub mod approving;
pub mod cleaner;
pub mod signing;
pub mod trust;

use std::time::Duration;

use api::k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// ServiceAccount that the loops speak as, as upstream's do.
const ACCOUNT: &str = "certificate-controller";

/// The cluster's authority. Its key stays where it is.
pub trait Signer: Send + Sync {
    /// Longest life of a certificate.
    fn life_max(&self) -> Duration;
    /// The certificate (PEM) for a request (PEM).
    fn sign(&self, request_pem: &str, usages: &[&str], life: Duration) -> Result<String, String>;
}

/// Whether a request has a condition that is true.
fn has(request: &CertificateSigningRequest, condition: &str) -> bool {
    let conditions = request.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == condition && c.status == "True")
}

/// Whether the certificate is there.
fn is_issued(request: &CertificateSigningRequest) -> bool {
    request.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty())
}

/// The request itself.
fn asked(request: &CertificateSigningRequest) -> Result<certificate::Request, certificate::Error> {
    certificate::Request::from_base64(&STANDARD.encode(&request.spec.request.0))
}

fn usages(request: &CertificateSigningRequest) -> Vec<&str> {
    request.spec.usages.iter().flatten().map(String::as_str).collect()
}
