//! ServiceAccount tokens for projected volumes: asked for once, renewed when 80 % of their life is over.

use std::collections::HashMap;
use std::sync::Arc;

use api::prelude::*;
use client::Client;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use stdx::Clock;

use crate::spec;

/// Longest time a token is kept before it is renewed, in seconds: a day, as upstream.
const REFRESH_SECONDS_MAX: i64 = 24 * 3600;

/// A token and when to renew it.
#[derive(Debug, Clone)]
pub struct Token {
    /// The token.
    pub text: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When to ask for the next.
    pub refresh_at: Timestamp,
}

/// Pod uid, audience and lifetime.
type Key = (String, String, i64);

/// Tokens by pod.
pub struct Tokens {
    client: Client,
    clock: Arc<dyn Clock>,
    cache: Mutex<HashMap<Key, Token>>,
}

/// When a token that was issued at `issued` and expires at `expires` should be renewed.
fn refresh_at(issued: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.as_second() - issued.as_second();
    let wait = (life * 8 / 10).clamp(1, REFRESH_SECONDS_MAX);
    Timestamp::from_second(issued.as_second() + wait).unwrap_or(expires)
}

impl Tokens {
    /// No tokens yet.
    pub fn new(client: Client, clock: Arc<dyn Clock>) -> Self {
        Tokens { client, clock, cache: Mutex::default() }
    }

    /// A token for the pod's ServiceAccount, bound to the pod.
    pub async fn get(&self, pod: &Pod, audience: &str, seconds: i64) -> client::Result<Token> {
        let key = (pod.uid().to_owned(), audience.to_owned(), seconds);
        let now = self.clock.now();
        let cached = self.cache.lock().get(&key).cloned();
        if let Some(token) = cached.filter(|token| now < token.refresh_at) {
            return Ok(token);
        }
        let account = spec::spec(pod).service_account_name.clone().unwrap_or("default".into());
        let audiences: Vec<&str> =
            Some(audience).filter(|audience| !audience.is_empty()).into_iter().collect();
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": audiences,
                "expirationSeconds": seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.name(), "uid": pod.uid()},
            },
        });
        let answer = self
            .client
            .create_subresource(&ServiceAccount::GVR, pod.namespace(), &account, "token", &request)
            .await?;
        let text = answer["status"]["token"].as_str().unwrap_or_default().to_owned();
        let expires = answer["status"]["expirationTimestamp"].as_str().and_then(|text| text.parse().ok());
        // A token that is extended for old clients is renewed as if it had the life that was asked for.
        let asked = Timestamp::from_second(now.as_second() + seconds).unwrap_or(now);
        let expires = expires.unwrap_or(asked);
        let token = Token { text, expires_at: expires, refresh_at: refresh_at(now, expires.min(asked)) };
        self.cache.lock().insert(key, token.clone());
        Ok(token)
    }

    /// Forgets the tokens of a pod.
    pub fn release(&self, pod_uid: &str) {
        self.cache.lock().retain(|(uid, _, _), _| uid != pod_uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        assert_eq!(refresh_at(at(0), at(3600)), at(2880));
        assert_eq!(refresh_at(at(0), at(365 * 86_400)), at(86_400));
    }
}
