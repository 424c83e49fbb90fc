//! RBAC's extra rules: nobody writes a role with more rights than they have (unless they may `escalate`), nobody
//! binds such a role (unless they may `bind`), and only those who may do everything let a role aggregate others.
//!
//! Asked while an object is admitted, so that every way of writing one is covered: create, update, all kinds of
//! patches.

use auth::rbac::{Attributes as Question, Kind};
use auth::rules::{self, Rule};
use meta::user::GROUP_MASTERS;
use meta::{Status, UserInfo};
use registry::admit::Attributes;
use serde_json::{Map, Value};

use crate::server::Server;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Everything: what it takes to let a role aggregate others.
fn full_authority() -> [Rule; 2] {
    let all = || vec!["*".to_owned()];
    [
        Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
        Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
    ]
}

/// Whether a change is one that only the garbage collector needs: owners and finalizers.
fn is_bookkeeping(new: &Map<String, Value>, old: &Map<String, Value>) -> bool {
    let meaning = |object: &Map<String, Value>| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for key in ["ownerReferences", "finalizers", "managedFields", "resourceVersion", "generation"] {
                metadata.remove(key);
            }
        }
        object
    };
    meaning(new) == meaning(old)
}

impl Server {
    /// Refuses a role or binding that would give more than the caller has.
    pub async fn check_escalation(
        &self,
        request: &Attributes<'_>,
        object: &Map<String, Value>,
        old: Option<&Map<String, Value>>,
    ) -> Result<(), Status> {
        if &*request.def.group != GROUP || request.user.in_group(GROUP_MASTERS) {
            return Ok(());
        }
        let Some(kind) = Kind::from_resource(&request.def.resource) else { return Ok(()) };
        if old.is_some_and(|old| is_bookkeeping(object, old)) {
            return Ok(());
        }
        let name = registry::write::meta_text(object, "name");
        let forbidden = |why: &str| Status::forbidden(GROUP, &request.def.resource, name, why);
        let wanted = match kind {
            Kind::Role | Kind::ClusterRole => {
                if self.may(request, "escalate", &request.def.resource, name).await {
                    return Ok(());
                }
                let aggregates =
                    |o: &Map<String, Value>| o.get("aggregationRule").is_some_and(Value::is_object);
                if (aggregates(object) || old.is_some_and(aggregates))
                    && !self.lacking(request.user, "", &full_authority()).is_empty()
                {
                    return Err(forbidden("must have cluster-admin privileges to use an aggregationRule"));
                }
                rules::rules_of(&Value::Object(object.clone()))
            }
            Kind::RoleBinding | Kind::ClusterRoleBinding => {
                let reference = object.get("roleRef").cloned().unwrap_or_default();
                let role = reference["name"].as_str().unwrap_or_default().to_owned();
                let (kind, resource) = match reference["kind"].as_str() {
                    Some("ClusterRole") => (Kind::ClusterRole, "clusterroles"),
                    _ => (Kind::Role, "roles"),
                };
                if self.may(request, "bind", resource, &role).await {
                    return Ok(());
                }
                // A role that does not exist yet may come with any rights.
                let rules = self.rbac.role_rules(kind, request.namespace, &role);
                rules.ok_or_else(|| Status::not_found(GROUP, resource, &role))?
            }
        };
        let missing = self.lacking(request.user, request.namespace, &wanted);
        if missing.is_empty() {
            return Ok(());
        }
        Err(forbidden(&rules::escalation_message(&request.user.username, &request.user.groups, &missing)))
    }

    /// Whether the caller may do something to a role, whatever it contains.
    async fn may(&self, request: &Attributes<'_>, verb: &str, resource: &str, name: &str) -> bool {
        let question = Question {
            verb,
            api_group: GROUP,
            api_version: "v1",
            resource,
            name,
            namespace: request.namespace,
            resource_request: true,
            ..Question::of(request.user)
        };
        self.authorize(&question).await.is_allowed()
    }

    /// What of `wanted` a user does not hold.
    fn lacking(&self, user: &UserInfo, namespace: &str, wanted: &[Rule]) -> Vec<Rule> {
        rules::missing(&self.rbac.rules_for(user, namespace).rules, wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_only_the_garbage_collector_changes() {
        let object = |value: Value| value.as_object().cloned().unwrap_or_default();
        let old = object(json!({"metadata": {"name": "r", "finalizers": ["f"]}, "rules": []}));
        let released = object(json!({"metadata": {"name": "r", "resourceVersion": "7"}, "rules": []}));
        let widened = object(json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["*"]}]}));
        assert!(is_bookkeeping(&released, &old));
        assert!(!is_bookkeeping(&widened, &old));
    }
}
