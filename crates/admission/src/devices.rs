//! Administrative access to devices that others use: only in namespaces that an administrator has marked for it.
//!
//! Upstream says this among the rules of the kind, so it is told as one.

use meta::{FieldError, Status};
use serde_json::Value;

use crate::{Cluster, Object, Plugin, Request};

/// Label of namespaces whose claims may have administrative access.
const LABEL: &str = "resource.kubernetes.io/admin-access";

/// Refuses claims and templates with administrative access elsewhere.
pub struct AdminAccess;

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Where administrative access is asked for.
fn asked(devices: &Value, at: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (i, request) in list(&devices["requests"]).iter().enumerate() {
        if request["exactly"]["adminAccess"] == true {
            paths.push(format!("{at}.requests[{i}].exactly.adminAccess"));
        } else if request["adminAccess"] == true {
            paths.push(format!("{at}.requests[{i}].adminAccess"));
        }
    }
    paths
}

/// Where administrative access is given.
fn given(object: &Object) -> Vec<String> {
    let results = object.get("status").map(|status| list(&status["allocation"]["devices"]["results"]));
    let results = results.unwrap_or_default().iter().enumerate();
    let admin = results.filter(|(_, result)| result["adminAccess"] == true);
    admin.map(|(i, _)| format!("status.allocation.devices.results[{i}].adminAccess")).collect()
}

impl Plugin for AdminAccess {
    fn name(&self) -> &'static str {
        "DRAAdminAccess"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Validate]
    }

    fn validate(
        &self,
        request: &Request<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
        cluster: &dyn Cluster,
    ) -> Result<(), Status> {
        let Some(object) = object.filter(|_| request.group == "resource.k8s.io") else { return Ok(()) };
        let spec = object.get("spec").unwrap_or(&Value::Null);
        let paths = match (request.resource, request.subresource, request.operation) {
            ("resourceclaims", "", "CREATE") => asked(&spec["devices"], "spec.devices"),
            ("resourceclaimtemplates", "", "CREATE") => asked(&spec["spec"]["devices"], "spec.spec.devices"),
            // What was given before may stay.
            ("resourceclaims", "status", "UPDATE") if old.is_none_or(|old| given(old).is_empty()) => {
                given(object)
            }
            _ => return Ok(()),
        };
        if paths.is_empty() {
            return Ok(());
        }
        let namespace = cluster.get("", "namespaces", "", request.namespace).unwrap_or_default();
        if namespace["metadata"]["labels"][LABEL] == "true" {
            return Ok(());
        }
        let why =
            format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
        let errors: Vec<FieldError> =
            paths.into_iter().map(|path| FieldError::forbidden(path, &why)).collect();
        let kind =
            if request.resource == "resourceclaims" { "ResourceClaim" } else { "ResourceClaimTemplate" };
        Err(Status::invalid(request.group, kind, request.name, &errors))
    }
}

#[cfg(test)]
mod tests {
    use meta::UserInfo;
    use serde_json::json;

    use super::*;
    use crate::testing::{Fixed, create};

    #[test]
    fn only_in_marked_namespaces() {
        let user = UserInfo::authenticated("u", &[]);
        let of =
            |labels: Value| Fixed(vec![("namespaces", "", "n", json!({"metadata": {"labels": labels}}))]);
        let mut request = create("resourceclaims", "n", &user);
        request.group = "resource.k8s.io";
        let claim = |admin: bool| {
            let value = json!({"spec": {"devices": {"requests": [{"name": "r", "exactly": {"adminAccess": admin}}]}}});
            value.as_object().unwrap().clone()
        };
        let judge =
            |claim: &Object, cluster: &Fixed| AdminAccess.validate(&request, Some(claim), None, cluster);
        assert!(judge(&claim(false), &of(json!({}))).is_ok());
        assert!(judge(&claim(true), &of(json!({LABEL: "true"}))).is_ok());
        let refused = judge(&claim(true), &of(json!({}))).unwrap_err().to_json().to_string();
        assert!(refused.contains("spec.devices.requests[0].exactly.adminAccess: Forbidden: admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace"), "{refused}");
    }
}
