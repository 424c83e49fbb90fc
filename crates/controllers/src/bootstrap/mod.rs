//! Bootstrap tokens: `bootstrapsigner` lets those who hold one verify the cluster, `tokencleaner` removes those that
//! have expired. Authentication by them is the API server's.

pub mod cleaner;
pub mod signer;

use api::prelude::*;
use jiff::Timestamp;
use reconcile::Scope;

/// Type of the Secrets that bootstrap tokens are.
const TYPE: &str = "bootstrap.kubernetes.io/token";

/// The Secrets that are bootstrap tokens.
fn tokens() -> Scope {
    Scope { namespace: "kube-system".into(), field_selector: format!("type={TYPE}"), ..Default::default() }
}

/// A value of a Secret as text.
fn datum(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    String::from_utf8(bytes.0.clone()).ok()
}

/// When a token ends, if ever. What cannot be read has ended.
fn expiration(secret: &Secret) -> Option<Timestamp> {
    let text = datum(secret, "expiration").filter(|t| !t.is_empty())?;
    Some(text.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}
