//! Refuses configurations of webhooks and policies that cannot work: their expressions need the language, which
//! the registry does not speak.

use meta::Status;
use serde_json::Value;

use crate::dynamic::validation;
use crate::{Cluster, Object, Plugin, Request};

const GROUP: &str = "admissionregistration.k8s.io";

/// The plugin.
pub struct Rules;

impl Plugin for Rules {
    fn name(&self) -> &'static str {
        "AdmissionConfigurationRules"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Validate]
    }

    fn validate(
        &self,
        request: &Request<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
        _: &dyn Cluster,
    ) -> Result<(), Status> {
        let Some(object) = object.filter(|_| request.group == GROUP && request.subresource.is_empty()) else {
            return Ok(());
        };
        // What was once accepted stays as long as it is not touched.
        let part = |o: &Object| o.get("spec").or_else(|| o.get("webhooks")).cloned();
        if old.is_some_and(|old| part(old) == part(object)) {
            return Ok(());
        }
        let errors = validation::errors(request.kind, &Value::Object(object.clone()));
        match errors.is_empty() {
            true => Ok(()),
            false => Err(Status::invalid(GROUP, request.kind, request.name, &errors)),
        }
    }
}
