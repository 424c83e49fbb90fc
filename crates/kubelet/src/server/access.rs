//! Who may use the node's server beside the API server: certificates and tokens, judged by reviews that the API
//! server makes, as upstream's webhook modes do. Answers are remembered for a while.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use client::Client;
use http::{HeaderMap, Method};
use meta::{Gvr, UserInfo};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const TOKEN_REVIEWS: Gvr = Gvr::new("authentication.k8s.io", "v1", "tokenreviews");
const ACCESS_REVIEWS: Gvr = Gvr::new("authorization.k8s.io", "v1", "subjectaccessreviews");
/// Answers remembered of each kind; more are forgotten at once.
const REMEMBERED_MAX: usize = 1024;
/// How long a token's owner is remembered, and an answer yes or no: upstream's defaults.
const TOKEN_LIFE: Duration = Duration::from_secs(120);
const YES_LIFE: Duration = Duration::from_secs(300);
const NO_LIFE: Duration = Duration::from_secs(30);
/// How long a review may take.
const REVIEW_MAX: Duration = Duration::from_secs(10);

/// Who a connection's certificate says is calling.
#[derive(Debug, Clone, PartialEq)]
pub enum Peer {
    /// The API server, which may do everything: it has judged already.
    ApiServer,
    /// Somebody with a certificate of the cluster.
    User(UserInfo),
    /// Nobody known: a token may tell.
    Nobody,
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody knows who calls.
    Unauthorized,
    /// It is known, and not enough.
    Forbidden(String),
    /// It could not be found out.
    Failed(String),
}

/// Answers until when they hold.
type Remembered<T> = Mutex<HashMap<[u8; 32], (Instant, T)>>;

/// The gate.
#[derive(Debug, Default)]
pub struct Gate {
    users: Remembered<Option<UserInfo>>,
    answers: Remembered<bool>,
}

fn recall<T: Clone>(from: &Remembered<T>, key: &[u8; 32]) -> Option<T> {
    let held = from.lock();
    held.get(key).filter(|(until, _)| Instant::now() < *until).map(|(_, value)| value.clone())
}

fn remember<T>(into: &Remembered<T>, key: [u8; 32], life: Duration, value: T) {
    let mut held = into.lock();
    if held.len() >= REMEMBERED_MAX {
        let now = Instant::now();
        held.retain(|_, (until, _)| now < *until);
        if held.len() >= REMEMBERED_MAX {
            held.clear();
        }
    }
    held.insert(key, (Instant::now() + life, value));
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// The verb of a method.
fn verb(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// Subresources of `nodes` either of which opens a path.
fn subresources(path: &str) -> Vec<&'static str> {
    let below = |prefix: &str| path == prefix || path.starts_with(&format!("{prefix}/"));
    let table = [
        ("/stats", vec!["stats"]),
        ("/metrics", vec!["metrics"]),
        ("/logs", vec!["log"]),
        ("/checkpoint", vec!["checkpoint"]),
        ("/pods", vec!["pods", "proxy"]),
        ("/runningpods", vec!["pods", "proxy"]),
        ("/healthz", vec!["healthz", "proxy"]),
        ("/configz", vec!["configz", "proxy"]),
    ];
    table.into_iter().find(|(prefix, _)| below(prefix)).map_or_else(|| vec!["proxy"], |(_, list)| list)
}

async fn review(client: &Client, gvr: &Gvr, object: &Value) -> Result<Value, Refusal> {
    match tokio::time::timeout(REVIEW_MAX, client.create(gvr, "", object)).await {
        Ok(Ok(answer)) => Ok(answer.get("status").cloned().unwrap_or_default()),
        Ok(Err(error)) => Err(Refusal::Failed(error.to_string())),
        Err(_) => Err(Refusal::Failed("context deadline exceeded".into())),
    }
}

impl Gate {
    async fn owner(&self, client: &Client, token: &str) -> Result<Option<UserInfo>, Refusal> {
        let key = digest(token);
        if let Some(known) = recall(&self.users, &key) {
            return Ok(known);
        }
        let object = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let status = review(client, &TOKEN_REVIEWS, &object).await?;
        let authenticated = status.get("authenticated").and_then(Value::as_bool) == Some(true);
        let user = status.get("user").cloned().filter(|_| authenticated);
        let user = user.and_then(|user| serde_json::from_value::<UserInfo>(user).ok());
        remember(&self.users, key, TOKEN_LIFE, user.clone());
        Ok(user)
    }

    async fn allowed(&self, client: &Client, spec: Value) -> Result<bool, Refusal> {
        let key = digest(&spec.to_string());
        if let Some(known) = recall(&self.answers, &key) {
            return Ok(known);
        }
        let object =
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec});
        let status = review(client, &ACCESS_REVIEWS, &object).await?;
        let allowed = status.get("allowed").and_then(Value::as_bool) == Some(true);
        remember(&self.answers, key, if allowed { YES_LIFE } else { NO_LIFE }, allowed);
        Ok(allowed)
    }

    /// Judges a request to the node called `node`.
    pub async fn judge(
        &self,
        client: &Client,
        node: &str,
        peer: &Peer,
        (method, path, headers): (&Method, &str, &HeaderMap),
    ) -> Result<(), Refusal> {
        let user = match peer {
            Peer::ApiServer => return Ok(()),
            Peer::User(user) => user.clone(),
            Peer::Nobody => {
                let bearer = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
                let token = bearer.and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
                let Some(token) = token.filter(|token| !token.is_empty()) else {
                    return Err(Refusal::Unauthorized);
                };
                self.owner(client, token).await?.ok_or(Refusal::Unauthorized)?
            }
        };
        let (verb, subresources) = (verb(method), subresources(path));
        for subresource in &subresources {
            let spec = json!({"user": user.username, "groups": user.groups, "uid": user.uid, "extra": user.extra,
                "resourceAttributes": {"verb": verb, "version": "v1", "resource": "nodes", "name": node,
                    "subresource": subresource}});
            if self.allowed(client, spec).await? {
                return Ok(());
            }
        }
        Err(Refusal::Forbidden(format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            user.username,
            subresources.join(" ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for() {
        let table = [
            (Method::GET, "/metrics/cadvisor", "get", "metrics"),
            (Method::GET, "/stats/summary", "get", "stats"),
            (Method::GET, "/logs/x", "get", "log"),
            (Method::GET, "/pods", "get", "pods proxy"),
            (Method::POST, "/exec/n/p/c", "create", "proxy"),
            (Method::GET, "/metricsx", "get", "proxy"),
            (Method::POST, "/checkpoint/n/p/c", "create", "checkpoint"),
        ];
        for (method, path, wanted, list) in table {
            assert_eq!((verb(&method), subresources(path).join(" ").as_str()), (wanted, list), "{path}");
        }
    }

    #[test]
    fn memory_is_short() {
        let held = Remembered::default();
        for n in 0..REMEMBERED_MAX * 2 {
            remember(&held, digest(&n.to_string()), YES_LIFE, n);
        }
        assert!(held.lock().len() <= REMEMBERED_MAX);
        let last = REMEMBERED_MAX * 2 - 1;
        assert_eq!(recall(&held, &digest(&last.to_string())), Some(last));
        remember(&held, digest("x"), Duration::ZERO, 1);
        assert_eq!(recall(&held, &digest("x")), None);
    }
}
