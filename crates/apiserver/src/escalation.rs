//! RBAC's two extra rules: nobody writes a role with more rights than they have (unless they may
//! `escalate`), and nobody binds such a role (unless they may `bind`).

use auth::rbac::{Attributes, Kind};
use auth::rules;
use meta::Status;
use meta::user::GROUP_MASTERS;
use serde_json::{Map, Value};

use crate::server::Server;
use crate::verbs::Call;

const GROUP: &str = "rbac.authorization.k8s.io";

impl Server {
    /// Refuses a role or binding that would give more than the caller has.
    pub async fn check_escalation(&self, call: &Call<'_>, object: &Map<String, Value>) -> Result<(), Status> {
        if &*call.def.group != GROUP || call.user.in_group(GROUP_MASTERS) {
            return Ok(());
        }
        let Some(kind) = Kind::from_resource(&call.def.resource) else { return Ok(()) };
        let namespace = call.info.namespace.as_str();
        let name = registry::write::meta_text(object, "name");
        let (verb, wanted, resource, about) = match kind {
            Kind::Role | Kind::ClusterRole => {
                let role = Value::Object(object.clone());
                ("escalate", rules::rules_of(&role), call.def.resource.to_string(), name.to_owned())
            }
            Kind::RoleBinding | Kind::ClusterRoleBinding => {
                let reference = object.get("roleRef").cloned().unwrap_or_default();
                let role = reference["name"].as_str().unwrap_or_default().to_owned();
                let (kind, resource) = match reference["kind"].as_str() {
                    Some("ClusterRole") => (Kind::ClusterRole, "clusterroles"),
                    _ => (Kind::Role, "roles"),
                };
                let rules = self.rbac.role_rules(kind, namespace, &role).unwrap_or_default();
                ("bind", rules, resource.to_owned(), role)
            }
        };
        let attributes = Attributes {
            user: call.user,
            verb,
            api_group: GROUP,
            api_version: "v1",
            resource: &resource,
            subresource: "",
            name: &about,
            namespace,
            path: "",
            resource_request: true,
            field_selector: None,
            label_selector: None,
        };
        if self.decide(&attributes).is_allowed() {
            return Ok(());
        }
        let held = self.rbac.rules_for(call.user, namespace).rules;
        let missing = rules::missing(&held, &wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let why = rules::escalation_message(&call.user.username, &call.user.groups, &missing);
        Err(Status::forbidden(GROUP, &call.def.resource, name, &why))
    }
}
