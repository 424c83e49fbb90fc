//! `serviceaccount-token-controller`: fills the Secrets in which somebody wants a token of a ServiceAccount, and
//! removes them with their account.

use std::sync::Arc;

use api::k8s_openapi::ByteString;
use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams};
use reconcile::{
    Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, Scope, WorkQueue,
};

const NAME: &str = "serviceaccount-token-controller";
const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const WORKERS: usize = 2;
/// Index of Secrets by the account they are of.
const BY_ACCOUNT: &str = "account";

/// Issues tokens. The key stays where it is.
pub trait Issuer: Send + Sync {
    /// A token of an account (name and uid), kept in a Secret.
    fn issue(&self, namespace: &str, account: (&str, &str), secret: &str) -> Result<String, String>;
}

/// The row of the controller; `ca` goes into each Secret beside the token.
pub fn descriptor(issuer: Arc<dyn Issuer>, ca: Arc<str>) -> Descriptor {
    Descriptor::new(NAME, move |context| build(context, issuer.clone(), ca.clone()))
}

struct Loop {
    client: Client,
    issuer: Arc<dyn Issuer>,
    ca: Arc<str>,
    secrets: Arc<Informer<Secret>>,
    accounts: Arc<Informer<ServiceAccount>>,
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> &'a str {
    let annotations = secret.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(key)).map_or("", String::as_str)
}

fn account_key(secret: &Secret) -> String {
    format!("{}/{}", secret.namespace(), annotation(secret, ACCOUNT_NAME))
}

fn build(context: &Context, issuer: Arc<dyn Issuer>, ca: Arc<str>) -> Controller {
    let queue = WorkQueue::new();
    let scope = Scope { field_selector: format!("type={TYPE}"), ..Default::default() };
    let this = Arc::new(Loop {
        // Upstream's runs with all rights too: it writes Secrets anywhere.
        client: context.client.with_user_agent(&format!("ferry/{NAME}")),
        issuer,
        ca,
        secrets: context.informers.get_scoped::<Secret>(scope),
        accounts: context.informers.get::<ServiceAccount>(),
    });
    this.secrets.store().add_index(BY_ACCOUNT, |secret| vec![account_key(secret)]);
    let to = queue.clone();
    this.secrets.on_event(move |event| to.add(event.object().key()));
    let (to, it) = (queue.clone(), this.clone());
    this.accounts.on_event(move |event| {
        let all = it.secrets.store().by_index(BY_ACCOUNT, &event.object().key());
        all.iter().for_each(|secret| to.add(secret.key()));
    });
    Controller::new(queue, this.clone(), WORKERS).after(&this.secrets).after(&this.accounts)
}

/// What is to be done with a Secret.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// Nothing.
    Leave,
    /// Its account is gone or is another one now.
    Delete,
    /// Something is missing.
    Fill,
}

/// Decides; `uid` is that of the account, if there is one.
pub fn plan(secret: &Secret, uid: Option<&str>, ca: &str) -> Plan {
    let known = annotation(secret, ACCOUNT_UID);
    let Some(uid) = uid else { return Plan::Delete };
    if !known.is_empty() && known != uid {
        return Plan::Delete;
    }
    let value = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|b| b.0.as_slice());
    let complete = value("token").is_some_and(|t| !t.is_empty())
        && value("ca.crt") == Some(ca.as_bytes())
        && value("namespace") == Some(secret.namespace().as_bytes())
        && known == uid;
    if complete || secret.is_terminating() { Plan::Leave } else { Plan::Fill }
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(secret) = self.secrets.store().get(key) else { return Ok(Action::Wait) };
        let account = self.accounts.store().get(&account_key(&secret));
        let mut uid = account.map(|a| a.uid().to_owned());
        if uid.is_none() && !annotation(&secret, ACCOUNT_NAME).is_empty() {
            // The cache may be behind: nothing is deleted on its word alone.
            let live = self
                .client
                .get_typed::<ServiceAccount>(secret.namespace(), annotation(&secret, ACCOUNT_NAME));
            match live.await {
                Ok(found) => uid = Some(found.uid().to_owned()),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        match plan(&secret, uid.as_deref(), &self.ca) {
            Plan::Leave => {}
            Plan::Delete => {
                let params = DeleteParams::only_uid(secret.uid());
                match self.client.delete_typed::<Secret>(secret.namespace(), secret.name(), &params).await {
                    Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error.into()),
                    _ => {}
                }
            }
            Plan::Fill => self.fill(&secret, &uid.unwrap_or_default()).await?,
        }
        Ok(Action::Wait)
    }

    async fn fill(&self, secret: &Secret, uid: &str) -> Result<(), ControlError> {
        let mut filled = secret.clone();
        let account = (annotation(secret, ACCOUNT_NAME), uid);
        let data = filled.data.get_or_insert_default();
        if data.get("token").is_none_or(|t| t.0.is_empty()) {
            match self.issuer.issue(secret.namespace(), account, secret.name()) {
                Ok(token) => drop(data.insert("token".into(), ByteString(token.into_bytes()))),
                Err(why) => {
                    tracing::error!(why, secret = secret.key(), "no token could be issued");
                    return Ok(());
                }
            }
        }
        data.insert("ca.crt".into(), ByteString(self.ca.as_bytes().to_vec()));
        data.insert("namespace".into(), ByteString(secret.namespace().as_bytes().to_vec()));
        filled.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.into(), uid.to_owned());
        match self.client.update_typed(&filled).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_follow_their_account() {
        let secret = |uid: &str, data: serde_json::Value| {
            Secret::from_value(json!({"metadata": {"name": "s", "namespace": "n", "annotations":
                {ACCOUNT_NAME: "bot", ACCOUNT_UID: uid}}, "data": data}))
            .unwrap()
        };
        let full = json!({"token": "dA==", "ca.crt": "Y2E=", "namespace": "bg=="});
        for (secret, account, expected) in [
            (secret("u", full.clone()), Some("u"), Plan::Leave),
            (secret("", full.clone()), Some("u"), Plan::Fill),
            (secret("u", json!({})), Some("u"), Plan::Fill),
            (secret("u", full.clone()), Some("v"), Plan::Delete),
            (secret("u", full), None, Plan::Delete),
        ] {
            assert_eq!(plan(&secret, account, "ca"), expected);
        }
    }
}
