//! NamespaceLifecycle: nothing is created in a namespace that does not exist or is going away, and the
//! namespaces that hold the cluster together cannot be deleted.

use meta::Status;
use meta::status::Cause;

use crate::{Cluster, Object, Plugin, Request};

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The plugin.
pub struct Lifecycle;

impl Plugin for Lifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Mutate, crate::Step::Validate]
    }

    fn mutate(
        &self,
        request: &Request<'_>,
        _: &mut Object,
        _: Option<&Object>,
        cluster: &dyn Cluster,
    ) -> Result<(), Status> {
        if request.operation != "CREATE" || request.namespace.is_empty() || request.resource == "namespaces" {
            return Ok(());
        }
        // Reviews ask about a namespace, they do not put anything into it.
        if request.resource == "localsubjectaccessreviews" {
            return Ok(());
        }
        let Some(namespace) = cluster.get("", "namespaces", "", request.namespace) else {
            return Err(Status::not_found("", "namespaces", request.namespace));
        };
        if namespace["metadata"]["deletionTimestamp"].is_null()
            && namespace["status"]["phase"] != "Terminating"
        {
            return Ok(());
        }
        let why = format!(
            "unable to create new content in namespace {} because it is being terminated",
            request.namespace
        );
        let mut status = request.forbid(&why);
        if let Some(details) = status.details.as_mut() {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {} is being terminated", request.namespace),
                field: "metadata.namespace".into(),
            });
        }
        Err(status)
    }

    fn validate(
        &self,
        request: &Request<'_>,
        _: Option<&Object>,
        _: Option<&Object>,
        _: &dyn Cluster,
    ) -> Result<(), Status> {
        let deletes = request.operation == "DELETE" && request.resource == "namespaces";
        if deletes && IMMORTAL.contains(&request.name) {
            return Err(request.forbid("this namespace may not be deleted"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixed, create};
    use meta::UserInfo;
    use serde_json::{Value, json};

    fn outcome(namespace: Option<Value>) -> Result<(), Status> {
        let cluster = Fixed(namespace.map(|n| vec![("namespaces", "", "a", n)]).unwrap_or_default());
        let user = UserInfo::anonymous();
        Lifecycle.mutate(&create("configmaps", "a", &user), &mut Object::new(), None, &cluster)
    }

    #[test]
    fn needs_a_living_namespace() {
        assert_eq!(outcome(None).unwrap_err().message, "namespaces \"a\" not found");
        assert!(outcome(Some(json!({"status": {"phase": "Active"}}))).is_ok());
        let dying = outcome(Some(json!({"status": {"phase": "Terminating"}}))).unwrap_err();
        assert_eq!(dying.code, 403);
        assert!(dying.message.contains("because it is being terminated"));
    }
}
