//! Looks up, in the watch cache, the objects that ServiceAccount tokens are bound to.

use std::sync::Arc;

use auth::token::{BootstrapToken, Found, SecretToken, ServiceAccountLookup};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use registry::Registry;
use serde_json::{Map, Value, json};

/// A lookup over the registry.
pub struct RegistryLookup(Arc<Registry>);

impl RegistryLookup {
    /// Looks things up in `registry`.
    pub fn new(registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(RegistryLookup(registry))
    }

    fn object(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<meta::Object>> {
        let table = self.0.table();
        self.0.current(table.find("", "v1", resource)?, namespace, name)
    }

    fn find(&self, resource: &str, namespace: &str, name: &str) -> Option<Found> {
        let object = self.object(resource, namespace, name)?;
        // Asked at every use of a token: only what is wanted is read.
        let head: Head = serde_json::from_slice(&object.bytes).ok()?;
        let deletion_timestamp = head.metadata.deletion_timestamp.and_then(|t| t.parse().ok());
        Some(Found { uid: head.metadata.uid, deletion_timestamp })
    }

    /// Notes that a Secret's token was used: once a day, and not in the way of the request.
    fn note_use(&self, namespace: &str, name: &str, last: Option<&str>) {
        let today = self.0.clock().now().strftime("%Y-%m-%d").to_string();
        if last == Some(today.as_str()) || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (registry, namespace, name) = (self.0.clone(), namespace.to_owned(), name.to_owned());
        tokio::spawn(async move {
            let table = registry.table();
            let Some(secrets) = table.find("", "v1", "secrets") else { return };
            let change = |secret: &mut Map<String, Value>| {
                let labels = registry::write::metadata(secret).entry("labels").or_insert_with(|| json!({}));
                let differs = labels[LAST_USED] != *today;
                labels[LAST_USED] = today.as_str().into();
                Ok(differs)
            };
            if let Err(error) = registry.modify(secrets, &namespace, &name, &change).await {
                tracing::warn!(%error, namespace, name, "the use of a Secret's token was not noted");
            }
        });
    }
}

/// Label of Secrets whose token was used.
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// Label of Secrets whose token is refused.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Type of the Secrets that bootstrap tokens are.
const BOOTSTRAP_TYPE: &str = "bootstrap.kubernetes.io/token";

#[derive(serde::Deserialize)]
struct Head {
    metadata: HeadMetadata,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMetadata {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    deletion_timestamp: Option<String>,
}

/// A value of a Secret.
fn datum(secret: &Value, key: &str) -> Option<String> {
    let bytes = STANDARD.decode(secret["data"][key].as_str()?).ok()?;
    String::from_utf8(bytes).ok()
}

/// The bootstrap token that a Secret is; `None` for one that is malformed or being deleted.
pub fn bootstrap_token_of(secret: &Value, id: &str) -> Option<BootstrapToken> {
    if secret["type"] != BOOTSTRAP_TYPE || secret["metadata"]["deletionTimestamp"].is_string() {
        return None;
    }
    if datum(secret, "token-id")? != id {
        return None;
    }
    // What cannot be read has expired.
    let expiration =
        datum(secret, "expiration").map(|text| text.parse().unwrap_or(jiff::Timestamp::UNIX_EPOCH));
    let groups: Vec<String> = datum(secret, "auth-extra-groups")
        .map(|text| text.split(',').map(|g| g.trim().to_owned()).filter(|g| !g.is_empty()).collect())
        .unwrap_or_default();
    if groups.iter().any(|g| !is_bootstrap_group(g)) {
        return None;
    }
    Some(BootstrapToken {
        secret: datum(secret, "token-secret")?,
        expiration,
        usage_authentication: datum(secret, "usage-bootstrap-authentication").as_deref() == Some("true"),
        extra_groups: groups,
    })
}

/// Whether a group is one that bootstrap tokens may bring: `system:bootstrappers:` and lower case words.
fn is_bootstrap_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = |c: u8| word(c) || c == b':' || c == b'-';
    let bytes = rest.as_bytes();
    bytes.iter().all(|c| inner(*c)) && bytes.last().is_some_and(|c| word(*c)) && bytes.len() <= 256
}

impl ServiceAccountLookup for RegistryLookup {
    fn service_account(&self, namespace: &str, name: &str) -> Option<Found> {
        self.find("serviceaccounts", namespace, name)
    }
    fn pod(&self, namespace: &str, name: &str) -> Option<Found> {
        self.find("pods", namespace, name)
    }
    fn secret(&self, namespace: &str, name: &str) -> Option<Found> {
        self.find("secrets", namespace, name)
    }
    fn secret_token(&self, namespace: &str, name: &str) -> SecretToken {
        let Some(secret) = self.object("secrets", namespace, name) else { return SecretToken::None };
        if secret.label(INVALID_SINCE).is_some() {
            return SecretToken::Invalidated;
        }
        match datum(&secret.to_value(), "token") {
            Some(token) => {
                self.note_use(namespace, name, secret.label(LAST_USED));
                SecretToken::Is(token)
            }
            None => SecretToken::None,
        }
    }
    fn node(&self, name: &str) -> Option<Found> {
        self.find("nodes", "", name)
    }
    fn bootstrap_token(&self, id: &str) -> Option<BootstrapToken> {
        let secret = self.object("secrets", "kube-system", &format!("bootstrap-token-{id}"))?;
        bootstrap_token_of(&secret.to_value(), id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_tokens_are_secrets_of_a_certain_form() {
        let secret = |change: &dyn Fn(&mut Value)| {
            let text = |t: &str| Value::from(STANDARD.encode(t));
            let mut data = json!({"token-id": text("abcdef"), "token-secret": text("0123456789abcdef"),
                "usage-bootstrap-authentication": text("true"),
                "auth-extra-groups": text("system:bootstrappers:a,system:bootstrappers:b:c")});
            change(&mut data);
            json!({"type": BOOTSTRAP_TYPE, "metadata": {"name": "bootstrap-token-abcdef"}, "data": data})
        };
        let good = bootstrap_token_of(&secret(&|_| {}), "abcdef").unwrap();
        assert_eq!(good.extra_groups.len(), 2);
        assert!(good.usage_authentication && good.expiration.is_none());
        assert!(bootstrap_token_of(&secret(&|_| {}), "bbbbbb").is_none());
        let group = |d: &mut Value| d["auth-extra-groups"] = STANDARD.encode("system:masters").into();
        assert!(bootstrap_token_of(&secret(&group), "abcdef").is_none());
        let odd = |d: &mut Value| d["expiration"] = STANDARD.encode("soon").into();
        let expiration = bootstrap_token_of(&secret(&odd), "abcdef").unwrap().expiration;
        assert_eq!(expiration, Some(jiff::Timestamp::UNIX_EPOCH));
    }
}
