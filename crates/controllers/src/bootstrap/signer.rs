//! `bootstrapsigner`: signs the kubeconfig in the ConfigMap `kube-public/cluster-info` once with every bootstrap token
//! that is for signing, so that a machine which holds a token can tell the cluster from an impostor.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::prelude::*;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use client::{BoxFuture, Client};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, Scope, WorkQueue,
};
use stdx::Clock;

use super::{datum, expiration, tokens};

const NAME: &str = "bootstrap-signer";
const NAMESPACE: &str = "kube-public";
const CONFIG_MAP: &str = "cluster-info";
const KUBECONFIG: &str = "kubeconfig";
/// Signatures are kept under this and the token's id.
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";

/// The row of `bootstrapsigner`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    clock: Arc<dyn Clock>,
    secrets: Arc<Informer<Secret>>,
    maps: Arc<Informer<ConfigMap>>,
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let scope = Scope {
        namespace: NAMESPACE.into(),
        field_selector: format!("metadata.name={CONFIG_MAP}"),
        ..Default::default()
    };
    let this = Arc::new(Loop {
        client: context.client_of(NAME),
        clock: context.clock.clone(),
        secrets: context.informers.get_scoped::<Secret>(tokens()),
        maps: context.informers.get_scoped::<ConfigMap>(scope),
    });
    let to = queue.clone();
    this.secrets.on_event(move |_| to.add(CONFIG_MAP));
    let to = queue.clone();
    this.maps.on_event(move |_| to.add(CONFIG_MAP));
    Controller::new(queue, this.clone(), 1).after(&this.secrets).after(&this.maps)
}

/// The signature of a text with a token: a JWS (RFC 7515) whose payload is left out.
pub fn signature(text: &str, id: &str, secret: &str) -> Option<String> {
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":{id:?}}}"));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(text));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let mac = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).ok()?;
    Some(format!("{header}..{mac}"))
}

/// The data that the ConfigMap should have.
pub fn desired(
    data: &BTreeMap<String, String>,
    secrets: &[Arc<Secret>],
    now: Timestamp,
) -> BTreeMap<String, String> {
    let mut wanted = data.clone();
    wanted.retain(|key, _| !key.starts_with(SIGNATURE_PREFIX));
    let Some(kubeconfig) = data.get(KUBECONFIG) else { return wanted };
    for secret in secrets {
        let usable = datum(secret, "usage-bootstrap-signing").as_deref() == Some("true")
            && !secret.is_terminating()
            && expiration(secret).is_none_or(|until| now < until);
        let (id, key) = (datum(secret, "token-id"), datum(secret, "token-secret"));
        let (Some(id), Some(key), true) = (id, key, usable) else { continue };
        if secret.name() == format!("bootstrap-token-{id}")
            && let Some(signature) = signature(kubeconfig, &id, &key)
        {
            wanted.insert(format!("{SIGNATURE_PREFIX}{id}"), signature);
        }
    }
    wanted
}

impl Loop {
    async fn sync(&self) -> Result<Action, ControlError> {
        let Some(map) = self.maps.store().get_in(NAMESPACE, CONFIG_MAP) else { return Ok(Action::Wait) };
        let data = map.data.clone().unwrap_or_default();
        let wanted = desired(&data, &self.secrets.store().list(), self.clock.now());
        if wanted == data {
            return Ok(Action::Wait);
        }
        let changed = ConfigMap { data: Some(wanted), ..ConfigMap::clone(&map) };
        self.client.update_typed(&changed).await?;
        Ok(Action::Wait)
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync())
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;

    #[test]
    fn one_signature_for_each_token_that_signs() {
        let secret = |id: &str, signing: &str, expiration: &str| {
            let data: BTreeMap<&str, String> = [
                ("token-id", id),
                ("token-secret", "0123456789abcdef"),
                ("usage-bootstrap-signing", signing),
                ("expiration", expiration),
            ]
            .map(|(k, v)| (k, STANDARD.encode(v)))
            .into();
            let value = json!({"metadata": {"name": format!("bootstrap-token-{id}")}, "data": data});
            Arc::new(Secret::from_value(value).unwrap())
        };
        let secrets = [
            secret("aaaaaa", "true", ""),
            secret("bbbbbb", "false", ""),
            secret("cccccc", "true", "2026-01-01T00:00:00Z"),
            secret("dddddd", "true", "2027-01-01T00:00:00Z"),
        ];
        let now = "2026-06-01T00:00:00Z".parse().unwrap();
        let text = |t: &str| t.to_owned();
        let data =
            BTreeMap::from([(text(KUBECONFIG), text("x")), (text("jws-kubeconfig-zzzzzz"), text("old"))]);
        let wanted = desired(&data, &secrets, now);
        let keys: Vec<&str> = wanted.keys().map(String::as_str).collect();
        assert_eq!(keys, ["jws-kubeconfig-aaaaaa", "jws-kubeconfig-dddddd", "kubeconfig"]);
        let parts: Vec<&str> = wanted["jws-kubeconfig-aaaaaa"].split('.').collect();
        assert_eq!((parts.len(), parts[1]), (3, ""));
        assert_eq!(URL_SAFE_NO_PAD.decode(parts[0]).unwrap(), br#"{"alg":"HS256","kid":"aaaaaa"}"#);
        assert_eq!(desired(&wanted, &secrets, now), wanted);
    }
}
