//! `clusterrole-aggregation-controller`: the rules of an aggregated ClusterRole are the union of the rules of
//! the ClusterRoles its selectors match.

use std::sync::Arc;

use api::k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use api::prelude::*;
use client::{BoxFuture, Client, Patch};
use reconcile::{Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, WorkQueue};
use serde_json::json;

use crate::owners;

const NAME: &str = "clusterrole-aggregation-controller";

/// The row of `clusterrole-aggregation-controller`.
pub fn descriptor() -> Descriptor {
    Descriptor::new(NAME, build)
}

struct Loop {
    client: Client,
    roles: Arc<Informer<ClusterRole>>,
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this =
        Arc::new(Loop { client: context.client_of(NAME), roles: context.informers.get::<ClusterRole>() });
    let (to, it) = (queue.clone(), this.clone());
    // Any role may be part of any aggregated one.
    this.roles.on_event(move |event| {
        if event.object().aggregation_rule.is_some() {
            to.add(event.object().key());
        }
        let all = it.roles.store().list();
        all.iter().filter(|role| role.aggregation_rule.is_some()).for_each(|role| to.add(role.key()));
    });
    Controller::new(queue, this.clone(), 1).after(&this.roles)
}

/// The rules an aggregated role should have: each rule once, roles in order of name.
///
/// # Errors
/// For a malformed selector.
pub fn union(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Result<Vec<PolicyRule>, ControlError> {
    let mut sorted: Vec<&Arc<ClusterRole>> = all.iter().filter(|other| other.name() != role.name()).collect();
    sorted.sort_by(|a, b| a.name().cmp(b.name()));
    let mut rules: Vec<PolicyRule> = Vec::new();
    let selectors =
        role.aggregation_rule.iter().flat_map(|rule| rule.cluster_role_selectors.iter().flatten());
    for selector in selectors {
        let selector = owners::compile(selector)?;
        for other in sorted.iter().filter(|other| owners::matches(&selector, &other.metadata)) {
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Ok(rules)
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(role) = self.roles.store().get(key) else { return Ok(Action::Wait) };
        if role.aggregation_rule.is_none() {
            return Ok(Action::Wait);
        }
        let rules = union(&role, &self.roles.store().list())?;
        if role.rules.as_deref().unwrap_or_default() == rules {
            return Ok(Action::Wait);
        }
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": role.resource_version()}, "rules": rules
        }));
        match self.client.patch(&ClusterRole::GVR, "", key, "", &patch).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Action::Wait),
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

    #[test]
    fn rules_are_joined_once_and_in_order() {
        let role = |name: &str, verb: &str| {
            Arc::new(
                ClusterRole::from_value(json!({"metadata": {"name": name, "labels": {"to": "view"}},
                    "rules": [{"verbs": [verb], "resources": ["pods"], "apiGroups": [""]}]}))
                .unwrap(),
            )
        };
        let view = ClusterRole::from_value(json!({"metadata": {"name": "view"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]}}))
        .unwrap();
        let rules = union(&view, &[role("b", "list"), role("a", "get"), role("c", "get")]).unwrap();
        let verbs: Vec<_> = rules.iter().flat_map(|r| r.verbs.iter().map(String::as_str)).collect();
        assert_eq!(verbs, ["get", "list"]);
    }
}
