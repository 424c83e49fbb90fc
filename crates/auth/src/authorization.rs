//! `AuthorizationConfiguration` and the webhook authorizer: another server is asked with a SubjectAccessReview,
//! and its answers are kept for a while.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cel::{Env, Meter, Program, Type};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use stdx::Clock;

use crate::authenticate::BoxFuture;
use crate::rbac::{Attributes, Decision};

/// Answers that are kept at most (upstream's number).
const CACHE_ENTRIES: usize = 8192;
/// Requests whose attributes are longer than this in sum are not kept: they may be an attack.
const CACHED_BYTES_MAX: usize = 10_000;
/// Pause before the first repetition of a failed call, and how often it is repeated at most.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const RETRIES_MAX: u32 = 2;
/// Longest timeout of a webhook.
const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// One authorizer of the chain.
#[derive(Debug, Clone)]
pub enum Step {
    /// What nodes may do.
    Node,
    /// Roles and bindings.
    Rbac,
    /// Everything is allowed.
    AlwaysAllow,
    /// Another server.
    Webhook(Box<WebhookConfig>),
}

/// How to ask another server.
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    /// Its name in logs.
    pub name: String,
    /// Kubeconfig that says where it is.
    pub kubeconfig: PathBuf,
    /// How long approvals are kept.
    pub authorized_ttl: Duration,
    /// How long refusals are kept.
    pub unauthorized_ttl: Duration,
    /// Longest wait.
    pub timeout: Duration,
    /// Whether a failed call refuses the request.
    pub deny_on_failure: bool,
    /// Version of SubjectAccessReview: `v1` or `v1beta1`.
    pub version: String,
    /// What must hold before it is asked.
    pub conditions: Vec<(String, Program)>,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

fn refuse<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error(why.into()))
}

/// A duration in Go's notation, as far as configurations use it: `5m`, `1m30s`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let (mut total, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += match rest.get(..unit)? {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            _ => return None,
        };
        rest = rest.get(unit..)?;
    }
    (!text.is_empty()).then_some(total)
}

/// Reads an `AuthorizationConfiguration` of `apiserver.config.k8s.io`.
pub fn parse(document: &Value) -> Result<Vec<Step>, Error> {
    let version = document["apiVersion"].as_str().unwrap_or_default();
    let known =
        ["v1", "v1beta1", "v1alpha1"].iter().any(|v| version == format!("apiserver.config.k8s.io/{v}"));
    if !known || document["kind"] != "AuthorizationConfiguration" {
        return refuse(format!(
            "the file is no AuthorizationConfiguration but {version} {}",
            document["kind"]
        ));
    }
    let list = document["authorizers"].as_array().map_or(&[][..], Vec::as_slice);
    if list.is_empty() {
        return refuse("authorizers: Required value: at least one authorization mode must be defined");
    }
    let (mut steps, mut names) = (Vec::new(), Vec::new());
    for (i, authorizer) in list.iter().enumerate() {
        let path = format!("authorizers[{i}]");
        let (kind, name) = (authorizer["type"].as_str().unwrap_or_default(), authorizer["name"].as_str());
        let name = name.unwrap_or_default();
        if name.is_empty() {
            return refuse(format!("{path}.name: Required value"));
        }
        if names.contains(&name) {
            return refuse(format!("{path}.name: Duplicate value: {name:?}"));
        }
        names.push(name);
        let webhook = &authorizer["webhook"];
        if kind != "Webhook" && webhook.is_object() {
            return refuse(format!(
                "{path}.webhook: Invalid value: \"non-null\": may only be specified when type=Webhook"
            ));
        }
        steps.push(match kind {
            "Node" => Step::Node,
            "RBAC" => Step::Rbac,
            "AlwaysAllow" => Step::AlwaysAllow,
            "Webhook" => Step::Webhook(Box::new(webhook_config(name, webhook, &format!("{path}.webhook"))?)),
            "" => return refuse(format!("{path}.type: Required value")),
            other => {
                return refuse(format!(
                    "{path}.type: Unsupported value: {other:?}: supported values: \"AlwaysAllow\", \"Node\", \"RBAC\", \"Webhook\""
                ));
            }
        });
    }
    Ok(steps)
}

fn webhook_config(name: &str, webhook: &Value, path: &str) -> Result<WebhookConfig, Error> {
    let text = |key: &str| webhook[key].as_str().unwrap_or_default();
    let time = |key: &str, default: Option<Duration>| match (text(key), default) {
        ("", Some(default)) => Ok(default),
        ("", None) => refuse(format!("{path}.{key}: Required value")),
        (value, _) => match duration(value) {
            Some(time) if !time.is_zero() => Ok(time),
            _ => refuse(format!("{path}.{key}: Invalid value: {value:?}: must be greater than zero")),
        },
    };
    let cached = |key: &str, ttl: Duration| if webhook[key] == false { Duration::ZERO } else { ttl };
    let timeout = time("timeout", None)?;
    if timeout > TIMEOUT_MAX {
        return refuse(format!("{path}.timeout: Invalid value: {:?}: must be <= 30s", text("timeout")));
    }
    let version = text("subjectAccessReviewVersion");
    if !["v1", "v1beta1"].contains(&version) {
        return refuse(format!(
            "{path}.subjectAccessReviewVersion: Unsupported value: {version:?}: supported values: \"v1\", \"v1beta1\""
        ));
    }
    let deny_on_failure = match text("failurePolicy") {
        "NoOpinion" => false,
        "Deny" => true,
        "" => return refuse(format!("{path}.failurePolicy: Required value")),
        other => {
            return refuse(format!(
                "{path}.failurePolicy: Unsupported value: {other:?}: supported values: \"Deny\", \"NoOpinion\""
            ));
        }
    };
    let connection = &webhook["connectionInfo"];
    if connection["type"] != "KubeConfigFile" {
        return refuse(format!(
            "{path}.connectionInfo.type: Unsupported value: {}: supported values: \"InClusterConfig\", \"KubeConfigFile\"",
            connection["type"]
        ));
    }
    let file = connection["kubeConfigFile"].as_str().unwrap_or_default();
    if !file.starts_with('/') {
        return refuse(format!(
            "{path}.connectionInfo.kubeConfigFile: Invalid value: {file:?}: must be an absolute path"
        ));
    }
    let env = Env::new().variable("request", review_type());
    let mut conditions = Vec::new();
    for (i, condition) in webhook["matchConditions"].as_array().into_iter().flatten().enumerate() {
        let source = condition["expression"].as_str().unwrap_or_default();
        let at = format!("{path}.matchConditions[{i}].expression");
        if source.is_empty() {
            return refuse(format!("{at}: Required value"));
        }
        let program = env
            .compile(source)
            .map_err(|e| Error(format!("{at}: Invalid value: {source:?}: compilation failed: {e}")))?;
        if *program.result_type() != Type::Bool {
            return refuse(format!("{at}: Invalid value: {source:?}: must evaluate to bool"));
        }
        conditions.push((source.to_owned(), program));
    }
    if !conditions.is_empty() && text("matchConditionSubjectAccessReviewVersion") != "v1" {
        return refuse(format!(
            "{path}.matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are specified"
        ));
    }
    Ok(WebhookConfig {
        name: name.to_owned(),
        kubeconfig: file.into(),
        authorized_ttl: cached(
            "cacheAuthorizedRequests",
            time("authorizedTTL", Some(Duration::from_secs(300)))?,
        ),
        unauthorized_ttl: cached(
            "cacheUnauthorizedRequests",
            time("unauthorizedTTL", Some(Duration::from_secs(30)))?,
        ),
        timeout,
        deny_on_failure,
        version: version.to_owned(),
        conditions,
    })
}

/// Type of `request` in match conditions: the spec of a SubjectAccessReview.
fn review_type() -> Type {
    let strings = || Type::list(Type::String);
    let requirement = || {
        let field = Type::object(
            "kubernetes.SelectorRequirement",
            [("key", Type::String), ("operator", Type::String), ("values", strings())],
        );
        Type::object(
            "kubernetes.SelectorAttributes",
            [("rawSelector", Type::String), ("requirements", Type::list(field))],
        )
    };
    let resource = Type::object(
        "kubernetes.ResourceAttributes",
        [
            ("namespace", Type::String),
            ("verb", Type::String),
            ("group", Type::String),
            ("version", Type::String),
            ("resource", Type::String),
            ("subresource", Type::String),
            ("name", Type::String),
            ("fieldSelector", requirement()),
            ("labelSelector", requirement()),
        ],
    );
    let path =
        Type::object("kubernetes.NonResourceAttributes", [("path", Type::String), ("verb", Type::String)]);
    Type::object(
        "kubernetes.SubjectAccessReviewSpec",
        [
            ("resourceAttributes", resource),
            ("nonResourceAttributes", path),
            ("user", Type::String),
            ("groups", strings()),
            ("extra", Type::map(Type::String, strings())),
            ("uid", Type::String),
        ],
    )
}

/// The spec of the review that asks about a request. Empty members are left out, as Go leaves them out.
pub fn review_spec(attributes: &Attributes<'_>) -> Value {
    let filled = |members: &[(&str, &str)]| -> Value {
        let members = members.iter().filter(|(_, v)| !v.is_empty());
        Value::Object(members.map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect())
    };
    let mut spec = Map::new();
    if attributes.resource_request {
        let mut resource = filled(&[
            ("namespace", attributes.namespace),
            ("verb", attributes.verb),
            ("group", attributes.api_group),
            ("version", attributes.api_version),
            ("resource", attributes.resource),
            ("subresource", attributes.subresource),
            ("name", attributes.name),
        ]);
        for (key, requirements) in
            [("fieldSelector", attributes.field_selector), ("labelSelector", attributes.label_selector)]
        {
            if let Some(requirements) = requirements.filter(|r| r.as_array().is_some_and(|a| !a.is_empty())) {
                resource[key] = json!({"requirements": requirements});
            }
        }
        spec.insert("resourceAttributes".into(), resource);
    } else {
        let path = filled(&[("path", attributes.path), ("verb", attributes.verb)]);
        spec.insert("nonResourceAttributes".into(), path);
    }
    let user = attributes.user;
    spec.insert("user".into(), user.username.as_str().into());
    if !user.uid.is_empty() {
        spec.insert("uid".into(), user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        spec.insert("groups".into(), user.groups.clone().into());
    }
    if !user.extra.is_empty() {
        spec.insert("extra".into(), json!(user.extra));
    }
    Value::Object(spec)
}

/// Sends a review to a webhook.
pub trait Post: Send + Sync {
    /// The body of a successful answer.
    fn post(&self, body: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, String>>;
}

/// A webhook authorizer.
pub struct Webhook {
    config: WebhookConfig,
    post: Arc<dyn Post>,
    clock: Arc<dyn Clock>,
    cache: Mutex<HashMap<String, (Decision, Instant)>>,
}

impl Webhook {
    /// Asks through `post`.
    pub fn new(config: WebhookConfig, post: Arc<dyn Post>, clock: Arc<dyn Clock>) -> Webhook {
        Webhook { config, post, clock, cache: Mutex::default() }
    }

    /// The decision.
    pub async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let spec = review_spec(attributes);
        match self.is_asked(&spec) {
            Ok(true) => {}
            Ok(false) => return Decision::NoOpinion(String::new()),
            Err(why) => return self.failed(&why),
        }
        let key = spec.to_string();
        let now = self.clock.instant();
        if let Some((decision, until)) = self.cache.lock().get(&key)
            && now < *until
        {
            return decision.clone();
        }
        match self.ask(&spec).await {
            Ok(decision) => {
                if key.len() < CACHED_BYTES_MAX {
                    self.keep(key, &decision);
                }
                decision
            }
            Err(why) => self.failed(&why),
        }
    }

    /// Whether the match conditions hold: one that does not hold decides, whatever else fails.
    fn is_asked(&self, spec: &Value) -> Result<bool, String> {
        let mut failures = Vec::new();
        for (source, program) in &self.config.conditions {
            let ty = review_type();
            let variables = vec![("request", cel::Value::json(spec, &ty))];
            match program.evaluate(&variables, &mut Meter::new(cel::RUNTIME_BUDGET)).map(|v| v.as_bool()) {
                Ok(Some(true)) => {}
                Ok(_) => return Ok(false),
                Err(error) => failures
                    .push(format!("cel evaluation error: expression '{source}' resulted in error: {error}")),
            }
        }
        if failures.is_empty() { Ok(true) } else { Err(failures.join(", ")) }
    }

    fn keep(&self, key: String, decision: &Decision) {
        let ttl = match decision {
            Decision::Allow(_) => self.config.authorized_ttl,
            _ => self.config.unauthorized_ttl,
        };
        if ttl.is_zero() {
            return;
        }
        let now = self.clock.instant();
        let mut cache = self.cache.lock();
        if cache.len() >= CACHE_ENTRIES {
            cache.retain(|_, (_, until)| now < *until);
            if cache.len() >= CACHE_ENTRIES {
                cache.clear();
            }
        }
        cache.insert(key, (decision.clone(), now + ttl));
    }

    async fn ask(&self, spec: &Value) -> Result<Decision, String> {
        let mut spec = spec.clone();
        if self.config.version == "v1beta1"
            && let Some(groups) = spec.as_object_mut().and_then(|s| s.remove("groups"))
        {
            // The older version calls them so.
            spec["group"] = groups;
        }
        let review = json!({
            "kind": "SubjectAccessReview", "apiVersion": format!("authorization.k8s.io/{}", self.config.version),
            "metadata": {}, "spec": spec, "status": {"allowed": false},
        });
        let body = review.to_string().into_bytes();
        let mut attempt = 0;
        let answer = loop {
            let why = match tokio::time::timeout(self.config.timeout, self.post.post(body.clone())).await {
                Ok(Ok(answer)) => break answer,
                Ok(Err(why)) => why,
                Err(_) => return Err("context deadline exceeded".into()),
            };
            attempt += 1;
            if attempt > RETRIES_MAX {
                return Err(why);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        };
        let answer: Value = serde_json::from_slice(&answer).map_err(|e| e.to_string())?;
        let status = &answer["status"];
        let reason = status["reason"].as_str().unwrap_or_default().to_owned();
        match (status["allowed"] == true, status["denied"] == true) {
            (true, true) => Err("webhook subject access review returned both allow and deny response".into()),
            (_, true) => Ok(Decision::Deny(reason)),
            (true, _) => Ok(Decision::Allow(reason)),
            _ => Ok(Decision::NoOpinion(reason)),
        }
    }

    fn failed(&self, why: &str) -> Decision {
        tracing::error!(webhook = self.config.name, why, "the webhook authorizer could not be asked");
        match self.config.deny_on_failure {
            true => Decision::Deny(String::new()),
            false => Decision::NoOpinion(String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meta::UserInfo;
    use stdx::FakeClock;

    fn configuration(change: impl FnOnce(&mut Value)) -> Value {
        let mut webhook = json!({"timeout": "3s", "subjectAccessReviewVersion": "v1", "failurePolicy": "Deny",
            "matchConditionSubjectAccessReviewVersion": "v1", "authorizedTTL": "1m30s",
            "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "/x"},
            "matchConditions": [{"expression": "has(request.resourceAttributes)"}, {"expression": "request.user != 'root'"}]});
        change(&mut webhook);
        json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration", "authorizers": [
            {"type": "Node", "name": "node"}, {"type": "Webhook", "name": "w", "webhook": webhook}, {"type": "RBAC", "name": "rbac"}]})
    }

    fn config(change: impl FnOnce(&mut Value)) -> WebhookConfig {
        match parse(&configuration(change)).unwrap().remove(1) {
            Step::Webhook(config) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn configurations() {
        assert_eq!(config(|_| {}).authorized_ttl, Duration::from_secs(90));
        assert_eq!(config(|w| w["cacheAuthorizedRequests"] = false.into()).authorized_ttl, Duration::ZERO);
        let cases: [(&str, Value, &str); 6] = [
            ("timeout", "".into(), "timeout: Required value"),
            ("timeout", "31s".into(), "must be <= 30s"),
            ("failurePolicy", "Ignore".into(), "supported values: \"Deny\", \"NoOpinion\""),
            ("connectionInfo", json!({"type": "KubeConfigFile", "kubeConfigFile": "x"}), "absolute path"),
            ("matchConditions", json!([{"expression": "request.nothing"}]), "compilation failed"),
            ("matchConditions", json!([{"expression": "request.user"}]), "must evaluate to bool"),
        ];
        for (key, value, why) in cases {
            let error = parse(&configuration(|w| w[key] = value)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    struct Scripted(Mutex<Vec<Result<Value, String>>>, Mutex<Vec<Value>>);

    impl Post for Scripted {
        fn post(&self, body: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, String>> {
            self.1.lock().push(serde_json::from_slice(&body).unwrap());
            let answer = self.0.lock().remove(0).map(|v| json!({"status": v}).to_string().into_bytes());
            Box::pin(async move { answer })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn asks_once_and_remembers() {
        let clock = FakeClock::at(jiff::Timestamp::UNIX_EPOCH);
        let answers = vec![
            Ok(json!({"allowed": true, "reason": "friend"})),
            Err("busy".into()),
            Ok(json!({"denied": true, "reason": "foe"})),
            Err("down".into()),
            Err("down".into()),
            Err("down".into()),
        ];
        let server = Arc::new(Scripted(Mutex::new(answers), Mutex::default()));
        let webhook = Webhook::new(config(|_| {}), server.clone(), clock.clone());
        let (ann, root) = (UserInfo::authenticated("ann", &["dev"]), UserInfo::authenticated("root", &[]));
        let ask = |user, verb| Attributes {
            user,
            verb,
            resource: "pods",
            resource_request: true,
            ..Attributes::of(user)
        };
        assert_eq!(webhook.authorize(&ask(&root, "get")).await, Decision::NoOpinion(String::new()));
        for _ in 0..2 {
            assert_eq!(webhook.authorize(&ask(&ann, "get")).await, Decision::Allow("friend".into()));
        }
        assert_eq!(server.1.lock().len(), 1);
        assert_eq!(server.1.lock()[0]["spec"]["groups"], json!(["dev", "system:authenticated"]));
        clock.advance(Duration::from_secs(91));
        assert_eq!(
            webhook.authorize(&ask(&ann, "get")).await,
            Decision::Deny("foe".into()),
            "after one retry"
        );
        assert_eq!(webhook.authorize(&ask(&ann, "list")).await, Decision::Deny(String::new()), "down");
        let path = Attributes { verb: "get", path: "/x", ..Attributes::of(&ann) };
        assert_eq!(webhook.authorize(&path).await, Decision::NoOpinion(String::new()), "does not match");
    }
}
