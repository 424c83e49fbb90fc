//! Authorization: the configured authorizers in order, and what they see of a request.

use std::sync::Arc;

use auth::authorization::Webhook;
use auth::rbac::{Attributes, Decision};
use futures_util::FutureExt;
use meta::selector::Op;
use meta::{FieldSelector, LabelSelector};
use serde_json::{Value, json};

use crate::path::{Query, RequestInfo};
use crate::server::Server;

/// One authorizer.
#[derive(Clone)]
pub enum Authorizer {
    /// What nodes may do.
    Node,
    /// Roles and bindings.
    Rbac,
    /// Everything is allowed.
    AlwaysAllow,
    /// Another server.
    Webhook(Arc<Webhook>),
}

impl Server {
    /// What the authorizers say: the first that allows or denies decides. Without a decision the reasons are put
    /// together.
    pub async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let mut reasons = Vec::new();
        for authorizer in self.authorizers().iter() {
            let decision = match authorizer {
                Authorizer::Node => auth::node::authorize(attributes, &*self.nodes, &self.rbac),
                Authorizer::Rbac => self.rbac.authorize(attributes),
                Authorizer::AlwaysAllow => Decision::Allow(String::new()),
                Authorizer::Webhook(webhook) => match attributes.user.in_group(meta::user::GROUP_MASTERS) {
                    // Upstream's first authorizer, always: nobody locks administrators out.
                    true => Decision::Allow(String::new()),
                    false => webhook.authorize(attributes).await,
                },
            };
            match decision {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                decided => return decided,
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }

    /// The same for callers that cannot wait, such as expressions. A webhook is waited for on this thread.
    pub fn decide(&self, attributes: &Attributes<'_>) -> Decision {
        if self.authorizers().iter().any(|a| matches!(a, Authorizer::Webhook(_))) {
            return tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(self.authorize(attributes))
            });
        }
        // Nothing else ever waits.
        self.authorize(attributes).now_or_never().unwrap_or(Decision::NoOpinion(String::new()))
    }
}

/// The selectors of a request as requirements, where authorizers may go by them.
#[derive(Default)]
pub struct Selectors {
    /// Of fields.
    pub fields: Option<Value>,
    /// Of labels.
    pub labels: Option<Value>,
}

impl Selectors {
    /// Of a request. Selectors that cannot be read are left out; the verb will refuse them.
    pub fn of(info: &RequestInfo, query: &Query) -> Selectors {
        if !matches!(info.verb, "list" | "watch" | "deletecollection") {
            return Selectors::default();
        }
        let (fields, labels) = (query.get("fieldSelector"), query.get("labelSelector"));
        Selectors {
            fields: (!fields.is_empty())
                .then(|| FieldSelector::parse(fields).ok())
                .flatten()
                .map(|s| of_fields(&s)),
            labels: (!labels.is_empty())
                .then(|| LabelSelector::parse(labels).ok())
                .flatten()
                .map(|s| of_labels(&s)),
        }
    }
}

/// A field selector as requirements.
pub fn of_fields(selector: &FieldSelector) -> Value {
    let one = |r: &meta::selector::FieldRequirement| {
        let operator = if r.equal { "In" } else { "NotIn" };
        json!({"key": r.field, "operator": operator, "values": [r.value]})
    };
    selector.0.iter().map(one).collect()
}

/// A label selector as requirements; comparisons of numbers have no form there.
pub fn of_labels(selector: &LabelSelector) -> Value {
    let one = |r: &meta::selector::Requirement| match &r.op {
        Op::In(values) => Some(json!({"key": r.key, "operator": "In", "values": values})),
        Op::NotIn(values) => Some(json!({"key": r.key, "operator": "NotIn", "values": values})),
        Op::Exists => Some(json!({"key": r.key, "operator": "Exists"})),
        Op::DoesNotExist => Some(json!({"key": r.key, "operator": "DoesNotExist"})),
        Op::Gt(_) | Op::Lt(_) => None,
    };
    selector.0.iter().filter_map(one).collect()
}
