//! Webhooks, compiled from their configurations, and what they answer.

use std::time::Duration;

use meta::{Reason, Status};
use serde_json::{Map, Value};

use super::conditions::{Conditions, Verdict};
use super::rules::Matcher;
use super::scope::{self, Inputs, Scope};
use super::{Resource, Subject, World, items, review, text};

/// Seconds a webhook has to answer when it does not say.
const TIMEOUT_SECONDS: u64 = 10;

/// One webhook of a configuration.
#[derive(Debug, Clone)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// The configuration it is in.
    pub configuration: String,
    /// Where it is.
    pub client_config: Value,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether a failed call admits.
    pub ignore: bool,
    /// Whether it is asked again when a later one changed the object.
    pub reinvoke: bool,
    side_effects: bool,
    matcher: Matcher,
    conditions: Conditions,
}

/// What a webhook answered.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Changes to the object: a JSON patch.
    pub patch: Option<Vec<u8>>,
    /// For the client.
    pub warnings: Vec<String>,
    /// For the audit log.
    pub annotations: Vec<(String, String)>,
}

impl Hook {
    /// The webhooks of a configuration, in their order.
    pub fn all(configuration: &Value) -> Vec<Hook> {
        let env = scope::env();
        let name = text(&configuration["metadata"], "name");
        let hook = |v: &Value| Hook {
            name: text(v, "name").to_owned(),
            configuration: name.to_owned(),
            client_config: v["clientConfig"].clone(),
            timeout: Duration::from_secs(v["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT_SECONDS)),
            ignore: text(v, "failurePolicy") == "Ignore",
            reinvoke: text(v, "reinvocationPolicy") == "IfNeeded",
            side_effects: !matches!(text(v, "sideEffects"), "None" | "NoneOnDryRun"),
            matcher: Matcher::webhook(v),
            conditions: Conditions::compile(v, &env),
        };
        items(configuration, "webhooks").iter().map(hook).collect()
    }

    /// Whether it wants to see the request, and as which version. `convert` gives the objects in a version.
    pub fn wants<'a>(
        &self,
        subject: &Subject<'a>,
        world: &dyn World,
        convert: &dyn Fn(&Resource<'_>) -> super::policy::Versioned,
    ) -> Result<Option<Resource<'a>>, Status> {
        if subject.configures_webhooks() {
            return Ok(None);
        }
        let Some(resource) = self.matcher.matches(subject, world)? else { return Ok(None) };
        if self.conditions.is_empty() {
            return Ok(Some(resource));
        }
        let objects = convert(&resource);
        let request = review::request(subject, &resource);
        let scope = Scope::new(Inputs {
            object: objects.0.as_ref(),
            old: objects.1.as_ref(),
            request: &request,
            namespace: None,
            params: None,
            authorizer: world.authorizer(),
            variables: &[],
        });
        match self.conditions.evaluate(&scope) {
            Verdict::Match => Ok(Some(resource)),
            Verdict::NoMatch => Ok(None),
            Verdict::Failed(_) if self.ignore => Ok(None),
            Verdict::Failed(why) => Err(subject.forbid(&why)),
        }
    }

    /// Refuses a dry run to a webhook that may leave traces.
    pub fn check_dry_run(&self, subject: &Subject<'_>) -> Result<(), Status> {
        match subject.dry_run && self.side_effects {
            true => Err(Status::bad_request(format!(
                "admission webhook {:?} does not support dry run",
                self.name
            ))),
            false => Ok(()),
        }
    }

    /// What a failed call means: nothing for those that are ignored.
    pub fn failed(&self, why: &str) -> Result<(), Status> {
        if self.ignore {
            return Ok(());
        }
        Err(Status::internal(format!("failed calling webhook {:?}: {why}", self.name)))
    }

    /// Reads an answer: refusals are errors of their own, answers that are none are `Err(Err(why))`.
    pub fn read(&self, uid: &str, body: &[u8], may_patch: bool) -> Result<Answer, Result<Status, String>> {
        let invalid = |why: String| Err(Err(format!("received invalid webhook response: {why}")));
        let Ok(review) = serde_json::from_slice::<Value>(body) else {
            return Err(Err("failed to call webhook: the response is not JSON".into()));
        };
        let api_version = text(&review, "apiVersion");
        if text(&review, "kind") != "AdmissionReview"
            || !matches!(api_version, "admission.k8s.io/v1" | "admission.k8s.io/v1beta1")
        {
            let kind = text(&review, "kind");
            let (group, version) = meta::gvk::split_api_version(api_version);
            return invalid(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {group}/{version}, Kind={kind}"
            ));
        }
        let Some(response) = review.get("response").filter(|r| r.is_object()) else {
            return invalid("webhook response was absent".into());
        };
        if text(response, "uid") != uid && api_version == "admission.k8s.io/v1" {
            return invalid(format!("expected response.uid={uid:?}, got {:?}", text(response, "uid")));
        }
        if response["allowed"] != true {
            return Err(Ok(self.refusal(&response["status"])));
        }
        let mut answer = Answer::default();
        answer
            .warnings
            .extend(items(response, "warnings").iter().filter_map(|w| w.as_str().map(String::from)));
        for (key, value) in response["auditAnnotations"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            answer.annotations.push((format!("{}/{key}", self.name), value));
        }
        let patch = text(response, "patch");
        if patch.is_empty() {
            return Ok(answer);
        }
        if !may_patch {
            return invalid("webhook response.patch is not allowed in a validating webhook".into());
        }
        if text(response, "patchType") != "JSONPatch" && api_version == "admission.k8s.io/v1" {
            return invalid(format!(
                "webhook returned invalid response.patchType of {:?}",
                text(response, "patchType")
            ));
        }
        use base64::Engine;
        match base64::engine::general_purpose::STANDARD.decode(patch) {
            Ok(bytes) => answer.patch = Some(bytes),
            Err(e) => return invalid(format!("response.patch is not base64: {e}")),
        }
        Ok(answer)
    }

    /// The Status of a refusal, made to look like one.
    fn refusal(&self, given: &Value) -> Status {
        let denied = format!("admission webhook {:?} denied the request", self.name);
        let message = match (text(given, "message"), text(given, "reason")) {
            ("", "") => format!("{denied} without explanation"),
            ("", reason) => format!("{denied}: {reason}"),
            (message, _) => format!("{denied}: {message}"),
        };
        let code =
            given["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c));
        let reason = serde_json::from_value(given["reason"].clone()).unwrap_or(Reason::Unknown);
        let details = serde_json::from_value(given["details"].clone()).ok().map(Box::new);
        Status { code: code.unwrap_or(400), reason, message, details }
    }
}

/// Applies a webhook's patch.
pub fn patch(object: &mut Map<String, Value>, patch: &[u8]) -> Result<(), Status> {
    let mut value = Value::Object(std::mem::take(object));
    let outcome = meta::patch::json_patch(&mut value, patch);
    if let Value::Object(map) = value {
        *object = map;
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(response: Value) -> Result<Answer, Result<Status, String>> {
        let hook =
            &Hook::all(&json!({"metadata": {"name": "c"}, "webhooks": [{"name": "h.example.com"}]}))[0];
        let body =
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        hook.read("u", body.to_string().as_bytes(), true)
    }

    #[test]
    fn answers() {
        assert!(read(json!({"uid": "u", "allowed": true})).is_ok());
        let patched =
            read(json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"})).unwrap();
        assert_eq!(patched.patch.unwrap(), b"[]");
        for (response, message) in [
            (
                json!({"uid": "u", "allowed": false, "status": {"message": "no"}}),
                "admission webhook \"h.example.com\" denied the request: no",
            ),
            (
                json!({"uid": "u", "allowed": false}),
                "admission webhook \"h.example.com\" denied the request without explanation",
            ),
        ] {
            let status = read(response).unwrap_err().unwrap();
            assert_eq!((status.code, status.message.as_str()), (400, message));
        }
        let wrong = read(json!({"uid": "v", "allowed": true})).unwrap_err().unwrap_err();
        assert_eq!(wrong, "received invalid webhook response: expected response.uid=\"u\", got \"v\"");
    }
}
