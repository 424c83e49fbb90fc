//! `Status`: the one shape in which the API reports failure (meta/v1 Status), and the constructors whose
//! wording clients match on.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A field that failed, or another cause of a failure (meta/v1 StatusCause).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Machine-readable cause, e.g. `FieldValueInvalid`.
    #[serde(default)]
    pub reason: String,
    /// Sentence for people.
    #[serde(default)]
    pub message: String,
    /// Path of the field, e.g. `spec.containers[0].name`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// What a failure is about (meta/v1 StatusDetails).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Details {
    /// Name of the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Kind or resource.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Uid of the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Every cause.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// Seconds after which a retry makes sense.
    #[serde(default, rename = "retryAfterSeconds", skip_serializing_if = "is_zero")]
    pub retry_after_seconds: i32,
    /// Where a list whose snapshot is gone can go on; part of the Status' metadata.
    #[serde(skip)]
    pub continue_token: String,
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// Machine-readable reason of a failure (meta/v1 StatusReason).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are Kubernetes' own and say it all")]
pub enum Reason {
    #[serde(rename = "")]
    Unknown,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
    #[serde(other)]
    Other,
}

/// A failed request: HTTP code, reason, message and details. The error type of the whole API path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason.
    #[serde(default = "unknown")]
    pub reason: Reason,
    /// Sentence for people.
    #[serde(default)]
    pub message: String,
    /// What it is about. Boxed: errors travel in `Result`s, successes should not pay for them.
    #[serde(default)]
    pub details: Option<Box<Details>>,
}

fn unknown() -> Reason {
    Reason::Unknown
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

/// One field error as validation reports it (apimachinery `field.Error`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Machine-readable kind, e.g. `FieldValueRequired`.
    pub reason: &'static str,
    /// Path of the field.
    pub field: String,
    /// Message without the path, as `Status` causes carry it.
    pub message: String,
}

impl FieldError {
    /// A required value is missing.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::make("FieldValueRequired", field, "Required value", None, detail)
    }
    /// A value breaks a rule; `value` as Go's `%v`/`%q` would show it (strings in quotes).
    pub fn invalid(field: impl Into<String>, value: &serde_json::Value, detail: &str) -> Self {
        Self::make("FieldValueInvalid", field, "Invalid value", Some(show(value)), detail)
    }
    /// Something breaks a rule and is too large to show.
    pub fn invalid_at(field: impl Into<String>, detail: &str) -> Self {
        Self::make("FieldValueInvalid", field, "Invalid value", None, detail)
    }
    /// A list with more than `max` items.
    pub fn too_many(field: impl Into<String>, count: usize, max: usize) -> Option<Self> {
        let detail = format!("must have at most {max} item{}", if max == 1 { "" } else { "s" });
        (count > max)
            .then(|| Self::make("FieldValueTooMany", field, "Too many", Some(count.to_string()), &detail))
    }
    /// A value may not be set here.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::make("FieldValueForbidden", field, "Forbidden", None, detail)
    }
    /// A value occurs twice where it must be unique.
    pub fn duplicate(field: impl Into<String>, value: &serde_json::Value) -> Self {
        Self::make("FieldValueDuplicate", field, "Duplicate value", Some(show(value)), "")
    }
    /// A value is not one of the allowed ones.
    pub fn not_supported(field: impl Into<String>, value: &serde_json::Value, allowed: &[&str]) -> Self {
        let mut sorted: Vec<String> = allowed.iter().map(|a| format!("{a:?}")).collect();
        sorted.sort();
        let detail = format!("supported values: {}", sorted.join(", "));
        Self::make("FieldValueNotSupported", field, "Unsupported value", Some(show(value)), &detail)
    }
    /// The named thing does not exist.
    pub fn not_found(field: impl Into<String>, value: &serde_json::Value) -> Self {
        Self::make("FieldValueNotFound", field, "Not found", Some(show(value)), "")
    }
    /// A string exceeds its maximum length in bytes.
    pub fn too_long(field: impl Into<String>, max_bytes: usize) -> Self {
        let detail = format!("may not be more than {max_bytes} bytes");
        Self::make("FieldValueTooLong", field, "Too long", None, &detail)
    }
    /// A value has the wrong JSON type.
    pub fn type_invalid(field: impl Into<String>, value: &serde_json::Value, detail: &str) -> Self {
        Self::make("FieldValueTypeInvalid", field, "Invalid value", Some(show(value)), detail)
    }

    fn make(
        reason: &'static str,
        field: impl Into<String>,
        head: &str,
        value: Option<String>,
        detail: &str,
    ) -> Self {
        let mut message = head.to_owned();
        for part in [value.as_deref().unwrap_or(""), detail] {
            if !part.is_empty() {
                message.push_str(": ");
                message.push_str(part);
            }
        }
        FieldError { reason, field: field.into(), message }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Shows a value in a field error.
fn show(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "null".into(),
        other => other.to_string(),
    }
}

impl Status {
    /// A failure without details.
    pub fn new(code: u16, reason: Reason, message: impl Into<String>) -> Self {
        Status { code, reason, message: message.into(), details: None }
    }

    fn about(code: u16, reason: Reason, message: String, group: &str, kind: &str, name: &str) -> Self {
        let details =
            Details { name: name.into(), group: group.into(), kind: kind.into(), ..Default::default() };
        Status { code, reason, message, details: Some(Box::new(details)) }
    }

    /// 404 for an object; `resource` is the plural name.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(group, resource));
        Self::about(404, Reason::NotFound, message, group, resource, name)
    }

    /// 404 for a path nothing is served under.
    pub fn path_not_found() -> Self {
        Self::new(404, Reason::NotFound, "the server could not find the requested resource")
    }

    /// 409 because the name is taken.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(group, resource));
        Self::about(409, Reason::AlreadyExists, message, group, resource, name)
    }

    /// 409 because the object is not in the expected state.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(group, resource));
        Self::about(409, Reason::Conflict, message, group, resource, name)
    }

    /// 422 with every field error at once; `kind` in CamelCase.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let joined = match errors {
            [one] => one.to_string(),
            many => {
                let all: Vec<String> = many.iter().map(|e| e.to_string()).collect();
                format!("[{}]", all.join(", "))
            }
        };
        let message = format!("{} \"{name}\" is invalid: {joined}", qualified(group, kind));
        let mut status = Self::about(422, Reason::Invalid, message, group, kind, name);
        if let Some(details) = status.details.as_mut() {
            details.causes = errors
                .iter()
                .map(|e| Cause {
                    reason: e.reason.into(),
                    message: e.message.clone(),
                    field: e.field.clone(),
                })
                .collect();
        }
        status
    }

    /// 403 for an action on an object.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (_, true) => format!("{} is forbidden: {why}", qualified(group, resource)),
            _ => format!("{} \"{name}\" is forbidden: {why}", qualified(group, resource)),
        };
        Self::about(403, Reason::Forbidden, message, group, resource, name)
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, Reason::BadRequest, message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, Reason::Unauthorized, "Unauthorized")
    }

    /// 405; `resource` qualified by group where there is one.
    pub fn method_not_allowed(group: &str, resource: &str, verb: &str) -> Self {
        let message =
            format!("{verb} is not supported on resources of kind \"{}\"", qualified(group, resource));
        Self::about(405, Reason::MethodNotAllowed, message, group, resource, "")
    }

    /// 410 for a resource version that has been compacted.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, Reason::Expired, message)
    }

    /// 500; the cause chain of `error` becomes the message.
    pub fn internal(error: impl fmt::Display) -> Self {
        Self::new(500, Reason::InternalError, format!("Internal error occurred: {error}"))
    }

    /// 504: something behind the API did not answer in time.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, Reason::Timeout, message)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, Reason::ServiceUnavailable, message)
    }

    /// Whether this is a 404.
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }
    /// Whether this is a 409 because of a concurrent change.
    pub fn is_conflict(&self) -> bool {
        self.code == 409 && self.reason == Reason::Conflict
    }
    /// Whether this is a 409 because the name is taken.
    pub fn is_already_exists(&self) -> bool {
        self.code == 409 && self.reason == Reason::AlreadyExists
    }

    /// The object as it goes over the wire.
    pub fn to_json(&self) -> serde_json::Value {
        let mut value = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if self.reason != Reason::Unknown {
            value["reason"] = serde_json::to_value(self.reason).unwrap_or_default();
        }
        if let Some(details) = &self.details {
            let about = serde_json::to_value(details).unwrap_or_default();
            if !details.continue_token.is_empty() {
                value["metadata"]["continue"] = details.continue_token.as_str().into();
            }
            if about.as_object().is_some_and(|d| !d.is_empty()) || details.continue_token.is_empty() {
                value["details"] = about;
            }
        }
        value
    }
}

/// `resource.group`, or the bare name for the core group.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn wording_is_kubernetes() {
        assert_eq!(Status::not_found("", "pods", "a").message, "pods \"a\" not found");
        assert_eq!(
            Status::already_exists("apps", "deployments", "a").message,
            "deployments.apps \"a\" already exists"
        );
        let errors = [FieldError::required("spec.a", ""), FieldError::invalid("spec.b", &json!("x"), "no")];
        let status = Status::invalid("", "Pod", "p", &errors);
        assert_eq!(
            status.message,
            "Pod \"p\" is invalid: [spec.a: Required value, spec.b: Invalid value: \"x\": no]"
        );
        assert_eq!(status.to_json()["details"]["causes"][1]["field"], "spec.b");
    }

    #[test]
    fn unsupported_values_are_listed_sorted() {
        let e = FieldError::not_supported("f", &json!("z"), &["b", "a"]);
        assert_eq!(e.to_string(), "f: Unsupported value: \"z\": supported values: \"a\", \"b\"");
    }

    #[test]
    fn round_trips_through_json() {
        let status = Status::forbidden("apps", "deployments", "d", "no");
        assert_eq!(serde_json::from_value::<Status>(status.to_json()).unwrap(), status);
    }
}
