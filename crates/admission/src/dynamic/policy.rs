//! ValidatingAdmissionPolicies and their bindings, compiled, and what they say of a request.

use cel::{Env, Meter, Program, RUNTIME_BUDGET, Type};
use meta::status::Cause;
use meta::{LabelSelector, Reason, Status};
use serde_json::Value;

use super::conditions::{Conditions, Verdict};
use super::rules::Matcher;
use super::scope::{self, Inputs, Scope, Variables};
use super::{Resource, Subject, World, items, review, text};

/// Longest message that an expression may give, in bytes.
const MESSAGE_MAX: usize = 5 * 1024;
/// Longest value of an audit annotation, in bytes.
const ANNOTATION_MAX: usize = 10 * 1024;

/// A policy without its bindings: the part that validating and mutating policies share.
#[derive(Debug, Clone)]
pub struct Base {
    /// Name.
    pub name: String,
    /// Whether errors are ignored.
    pub ignore: bool,
    /// Which requests it is about.
    pub matcher: Matcher,
    /// What else must hold.
    pub conditions: Conditions,
    /// Its variables.
    pub variables: Variables,
    /// `apiVersion` and `kind` of its parameters.
    pub param_kind: Option<(String, String)>,
    /// What does not compile.
    pub errors: Vec<String>,
}

/// One rule of a policy.
#[derive(Debug, Clone)]
struct Validation {
    expression: String,
    program: Program,
    message: String,
    message_program: Option<Program>,
    reason: String,
}

/// A compiled validating policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What it shares with mutating ones.
    pub base: Base,
    validations: Vec<Validation>,
    annotations: Vec<(String, Program)>,
}

/// A binding of a policy.
#[derive(Debug, Clone)]
pub struct Binding {
    /// Name.
    pub name: String,
    /// The policy it binds.
    pub policy: String,
    matcher: Matcher,
    param: Option<ParamRef>,
    actions: Vec<String>,
}

#[derive(Debug, Clone)]
struct ParamRef {
    name: String,
    namespace: String,
    selector: Option<LabelSelector>,
    allow_missing: bool,
}

/// What policies say besides refusing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// For the client.
    pub warnings: Vec<String>,
    /// For the audit log.
    pub annotations: Vec<(String, String)>,
    /// For the counters.
    pub checks: Vec<Check>,
}

/// One validation under one binding, and what it led to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Check {
    /// The policy.
    pub policy: String,
    /// The binding.
    pub binding: String,
    /// `allow`, `deny`, `warn` or `audit`.
    pub action: &'static str,
    /// What went wrong with the expression, as metrics name it; `no_error` mostly.
    pub error: &'static str,
}

/// Compiles, noting what does not.
pub(super) fn compile(
    env: &Env,
    v: &Value,
    key: &str,
    at: &str,
    errors: &mut Vec<String>,
) -> Option<Program> {
    match env.compile(text(v, key)) {
        Ok(program) => Some(program),
        Err(e) => {
            errors.push(format!("{at}: compilation error: compilation failed: {e}"));
            None
        }
    }
}

impl Base {
    /// Compiles what all policies have; also the environment of their expressions.
    pub fn compile(policy: &Value) -> (Base, Env) {
        let spec = &policy["spec"];
        let param_kind = spec.get("paramKind").filter(|k| k.is_object());
        let mut env = scope::policy_env(param_kind.is_some());
        let conditions = Conditions::compile(spec, &env);
        let (mut variables, mut errors) = (Variables::new(), Vec::new());
        for (i, variable) in items(spec, "variables").iter().enumerate() {
            let env = scope::with_variables(&env, &variables);
            let at = format!("spec.variables[{i}].expression");
            if let Some(program) = compile(&env, variable, "expression", &at, &mut errors) {
                variables.push((text(variable, "name").to_owned(), program));
            }
        }
        env = scope::with_variables(&env, &variables);
        let base = Base {
            name: text(&policy["metadata"], "name").to_owned(),
            ignore: text(spec, "failurePolicy") == "Ignore",
            matcher: Matcher::policy(&spec["matchConstraints"]),
            conditions,
            variables,
            param_kind: param_kind.map(|k| (text(k, "apiVersion").to_owned(), text(k, "kind").to_owned())),
            errors,
        };
        (base, env)
    }

    /// The parameters a binding gives, or why there are none. One absent parameter for policies without.
    pub fn params(
        &self,
        binding: &Binding,
        subject: &Subject<'_>,
        world: &dyn World,
    ) -> Result<Vec<Option<Value>>, String> {
        let Some((api_version, kind)) = &self.param_kind else { return Ok(vec![None]) };
        let Some(namespaced) = world.scope(api_version, kind) else {
            return Err(format!(
                "failed to find resource referenced by paramKind: '{api_version}, Kind={kind}'"
            ));
        };
        let Some(reference) = &binding.param else { return Ok(vec![None]) };
        let namespace = match (namespaced, reference.namespace.as_str(), subject.namespace) {
            (false, "", _) => "",
            (false, _, _) => {
                return Err("cannot use namespaced paramRef for cluster-scoped paramKind".into());
            }
            (true, "", "") => {
                return Err(
                    "cannot use namespaced paramKind for cluster-scoped resource without paramRef.namespace"
                        .into(),
                );
            }
            (true, "", own) => own,
            (true, named, _) => named,
        };
        let name = (!reference.name.is_empty()).then_some(reference.name.as_str());
        let mut found = world.params(api_version, kind, namespace, name);
        if let Some(selector) = &reference.selector {
            found.retain(|p| selector.matches_with(|k| p["metadata"]["labels"][k].as_str()));
        }
        if found.is_empty() {
            if reference.allow_missing {
                return Ok(if name.is_some() { vec![None] } else { Vec::new() });
            }
            return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
        }
        Ok(found.into_iter().map(Some).collect())
    }
}

impl Binding {
    /// Reads a binding.
    pub fn from_json(binding: &Value) -> Binding {
        let spec = &binding["spec"];
        let param = spec.get("paramRef").filter(|p| p.is_object()).map(|p| ParamRef {
            name: text(p, "name").to_owned(),
            namespace: text(p, "namespace").to_owned(),
            selector: p.get("selector").and_then(|s| LabelSelector::from_json(s).ok()),
            allow_missing: text(p, "parameterNotFoundAction") == "Allow",
        });
        Binding {
            name: text(&binding["metadata"], "name").to_owned(),
            policy: text(spec, "policyName").to_owned(),
            matcher: spec.get("matchResources").map_or_else(Matcher::everything, Matcher::binding),
            param,
            actions: items(spec, "validationActions")
                .iter()
                .filter_map(|a| a.as_str().map(String::from))
                .collect(),
        }
    }

    /// Whether it binds its policy for this request.
    pub fn matches(&self, subject: &Subject<'_>, world: &dyn World) -> Result<bool, Status> {
        self.matcher.matches(subject, world).map(|m| m.is_some())
    }
}

/// What the compiler says of a policy's expressions where the type of its objects (and parameters) is known: the
/// field and the mistakes in it. Variables that do not compile are not reported: upstream does not either.
pub fn mistakes(policy: &Value, object: &Type, params: Option<&Type>) -> Vec<(String, String)> {
    let spec = &policy["spec"];
    let mut env = scope::policy_env(spec["paramKind"].is_object())
        .variable("object", object.clone())
        .variable("oldObject", object.clone());
    if let Some(params) = params {
        env = env.variable("params", params.clone());
    }
    let mut variables = Variables::new();
    for variable in items(spec, "variables") {
        if let Ok(program) = scope::with_variables(&env, &variables).compile(text(variable, "expression")) {
            variables.push((text(variable, "name").to_owned(), program));
        }
    }
    let env = scope::with_variables(&env, &variables);
    let mut found = Vec::new();
    for (i, validation) in items(spec, "validations").iter().enumerate() {
        for key in ["expression", "messageExpression"] {
            let expression = text(validation, key);
            if let (false, Err(error)) = (expression.is_empty(), env.compile(expression)) {
                found.push((format!("spec.validations[{i}].{key}"), error.0));
            }
        }
    }
    found
}

/// Objects in the version a policy knows: converted once by the caller.
pub type Versioned = (Option<serde_json::Map<String, Value>>, Option<serde_json::Map<String, Value>>);

impl Policy {
    /// Compiles a policy.
    pub fn compile(policy: &Value) -> Policy {
        let (mut base, env) = Base::compile(policy);
        let messages = env.clone();
        let mut validations = Vec::new();
        for (i, v) in items(&policy["spec"], "validations").iter().enumerate() {
            let at = format!("spec.validations[{i}].expression");
            let Some(program) = compile(&env, v, "expression", &at, &mut base.errors) else { continue };
            if !matches!(program.result_type(), Type::Bool | Type::Dyn) {
                base.errors.push(format!("{at}: must evaluate to bool"));
                continue;
            }
            let at = format!("spec.validations[{i}].messageExpression");
            let message_program = match text(v, "messageExpression") {
                "" => None,
                _ => compile(&messages, v, "messageExpression", &at, &mut base.errors),
            };
            validations.push(Validation {
                expression: text(v, "expression").trim().to_owned(),
                program,
                message: text(v, "message").trim().to_owned(),
                message_program,
                reason: text(v, "reason").to_owned(),
            });
        }
        let mut annotations = Vec::new();
        for (i, a) in items(&policy["spec"], "auditAnnotations").iter().enumerate() {
            let at = format!("spec.auditAnnotations[{i}].valueExpression");
            if let Some(program) = compile(&env, a, "valueExpression", &at, &mut base.errors) {
                annotations.push((text(a, "key").to_owned(), program));
            }
        }
        Policy { base, validations, annotations }
    }

    /// What the policy with its bindings says of a request; `convert` gives the objects in a version.
    pub fn review(
        &self,
        bindings: &[Binding],
        subject: &Subject<'_>,
        world: &dyn World,
        convert: &dyn Fn(&Resource<'_>) -> Versioned,
        report: &mut Report,
    ) -> Result<(), Status> {
        let name = &self.base.name;
        let configured = |binding: Option<&Binding>, why: &str| {
            if self.base.ignore {
                return Ok(());
            }
            match binding {
                Some(b) => Err(deny(
                    subject,
                    name,
                    Some(&b.name),
                    &format!("failed to configure binding: {why}"),
                    "",
                )),
                None => Err(deny(subject, name, None, &format!("failed to configure policy: {why}"), "")),
            }
        };
        let resource = match self.base.matcher.matches(subject, world) {
            Ok(Some(resource)) => resource,
            Ok(None) => return Ok(()),
            Err(e) => return configured(None, &e.message),
        };
        let objects = convert(&resource);
        let namespace = match subject.asked.kind {
            ("", "v1", "Namespace") => None,
            _ => Some(subject.namespace).filter(|n| !n.is_empty()).and_then(|n| world.namespace(n)),
        };
        let mut first = Ok(());
        for binding in bindings.iter().filter(|b| b.policy == *name) {
            match binding.matches(subject, world) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(e) => {
                    first = first.and(configured(Some(binding), &e.message));
                    continue;
                }
            }
            let params = match self.base.params(binding, subject, world) {
                Ok(params) => params,
                Err(why) => {
                    first = first.and(configured(Some(binding), &why));
                    continue;
                }
            };
            for param in &params {
                let check = |action, error| Check {
                    policy: name.clone(),
                    binding: binding.name.clone(),
                    action,
                    error,
                };
                let (said, passed) = self.judge(
                    subject,
                    &resource,
                    world,
                    &objects,
                    namespace.as_ref(),
                    param.as_ref(),
                    report,
                );
                report.checks.extend((0..passed).map(|_| check("allow", "no_error")));
                for (message, reason) in said {
                    for action in &binding.actions {
                        let counted = match action.as_str() {
                            "Deny" => "deny",
                            "Warn" => "warn",
                            _ => "audit",
                        };
                        report.checks.push(check(counted, error_type(&message)));
                        match action.as_str() {
                            "Deny" => first = first.and(Err(deny(subject, name, Some(&binding.name), &message, &reason))),
                            "Warn" => report.warnings.push(format!(
                                "Validation failed for ValidatingAdmissionPolicy '{name}' with binding '{}': {message}",
                                binding.name
                            )),
                            _ => report.annotations.push((
                                "validation.policy.admission.k8s.io/validation_failure".into(),
                                serde_json::json!([{"message": message, "policy": name, "binding": binding.name, "validationActions": binding.actions}]).to_string(),
                            )),
                        }
                    }
                }
            }
        }
        first
    }

    /// Messages and reasons of what does not hold, and how many validations do.
    #[allow(clippy::too_many_arguments, reason = "what an evaluation sees")]
    fn judge(
        &self,
        subject: &Subject<'_>,
        resource: &Resource<'_>,
        world: &dyn World,
        objects: &Versioned,
        namespace: Option<&Value>,
        params: Option<&Value>,
        report: &mut Report,
    ) -> (Vec<(String, String)>, usize) {
        let failed = |why: String| if self.base.ignore { Vec::new() } else { vec![(why, String::new())] };
        if let Some(error) = self.base.errors.first() {
            return (failed(error.clone()), 0);
        }
        let request = review::request(subject, resource);
        let scope = Scope::new(Inputs {
            object: objects.0.as_ref(),
            old: objects.1.as_ref(),
            request: &request,
            namespace,
            params,
            authorizer: world.authorizer(),
            variables: &self.base.variables,
        });
        match self.base.conditions.evaluate(&scope) {
            Verdict::Match => {}
            Verdict::NoMatch => return (Vec::new(), 0),
            Verdict::Failed(why) => return (failed(why), 0),
        }
        let mut meter = Meter::new(RUNTIME_BUDGET);
        let (mut out, mut passed) = (Vec::new(), 0);
        for validation in &self.validations {
            match validation.program.evaluate(&scope, &mut meter) {
                Ok(value) if value.as_bool() == Some(true) => passed += 1,
                Ok(_) => out.push((validation.message(&scope, &mut meter), validation.reason.clone())),
                Err(e) => {
                    let why = format!("expression '{}' resulted in error: {e}", validation.expression);
                    out.extend(failed(why));
                }
            }
        }
        for (key, program) in &self.annotations {
            match program.evaluate(&scope, &mut meter) {
                Ok(value) => {
                    if let Some(value) = value.as_str().map(str::trim).filter(|v| !v.is_empty()) {
                        let end =
                            (0..=value.len().min(ANNOTATION_MAX)).rev().find(|i| value.is_char_boundary(*i));
                        let value = value[..end.unwrap_or(0)].to_owned();
                        report.annotations.push((format!("{}/{key}", self.base.name), value));
                    }
                }
                Err(e) => out.extend(failed(e.to_string())),
            }
        }
        (out, passed)
    }
}

/// The kind of error that a message tells of.
fn error_type(message: &str) -> &'static str {
    match () {
        () if message.starts_with("expression '") && message.contains("' resulted in error: ") => {
            "invalid_error"
        }
        () if message.starts_with("compilation error: ") => "compile_error",
        () => "no_error",
    }
}

impl Validation {
    /// The message: of the expression if it gives one line of text, else the fixed one, else the expression.
    fn message(&self, scope: &Scope<'_>, meter: &mut Meter) -> String {
        let computed = self.message_program.as_ref().and_then(|p| p.evaluate(scope, meter).ok());
        let computed = computed.as_ref().and_then(|v| v.as_str()).map(str::trim).unwrap_or_default();
        if !computed.is_empty() && computed.len() <= MESSAGE_MAX && !computed.contains('\n') {
            return computed.to_owned();
        }
        match self.message.as_str() {
            "" => format!("failed expression: {}", self.expression),
            message => message.to_owned(),
        }
    }
}

/// The refusal of a policy.
fn deny(subject: &Subject<'_>, policy: &str, binding: Option<&str>, why: &str, reason: &str) -> Status {
    let message = match binding {
        Some(b) => format!("ValidatingAdmissionPolicy '{policy}' with binding '{b}' denied request: {why}"),
        None => format!("ValidatingAdmissionPolicy '{policy}' denied request: {why}"),
    };
    let mut status = subject.forbid(&message);
    (status.reason, status.code) = match reason {
        "Forbidden" => (Reason::Forbidden, 403),
        "Unauthorized" => (Reason::Unauthorized, 401),
        "RequestEntityTooLarge" => (Reason::RequestEntityTooLarge, 413),
        _ => (Reason::Invalid, 422),
    };
    if let Some(details) = status.details.as_mut() {
        details.causes.push(Cause { reason: String::new(), message, field: String::new() });
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use cel::{AuthorizationRequest, Decision};
    use meta::UserInfo;
    use serde_json::json;

    struct Fixed;
    impl cel::Authorizer for Fixed {
        fn authorize(&self, r: &AuthorizationRequest) -> Decision {
            Decision { allowed: r.verb == "get", ..Default::default() }
        }
    }
    impl World for Fixed {
        fn namespace(&self, name: &str) -> Option<Value> {
            Some(json!({"metadata": {"name": name, "labels": {"env": "prod"}}}))
        }
        fn scope(&self, _: &str, kind: &str) -> Option<bool> {
            (kind == "ConfigMap").then_some(true)
        }
        fn params(&self, _: &str, _: &str, _: &str, name: Option<&str>) -> Vec<Value> {
            match name {
                Some("limits") => vec![json!({"metadata": {"name": "limits"}, "data": {"max": "3"}})],
                _ => Vec::new(),
            }
        }
        fn authorizer(&self) -> &dyn cel::Authorizer {
            self
        }
    }

    /// What a policy of this spec and binding says of a Deployment with five replicas.
    fn said(spec: Value, binding: Value) -> (Result<(), Status>, Report) {
        let user = UserInfo::authenticated("alice", &[]);
        let object = json!({"metadata": {"name": "d"}, "spec": {"replicas": 5}});
        let asked = Resource {
            group: "apps",
            version: "v1",
            resource: "deployments",
            kind: ("apps", "v1", "Deployment"),
        };
        let subject = Subject {
            asked,
            equivalents: &[],
            subresource: "",
            namespaced: true,
            namespace: "ns",
            name: "d",
            operation: "CREATE",
            user: &user,
            dry_run: false,
            object: object.as_object(),
            old: None,
        };
        let mut spec = spec;
        spec["matchConstraints"] = json!({"resourceRules": [
            {"apiGroups": ["apps"], "apiVersions": ["*"], "resources": ["deployments"], "operations": ["CREATE"]}]});
        let policy = Policy::compile(&json!({"metadata": {"name": "p"}, "spec": spec}));
        let mut spec = binding;
        spec["policyName"] = "p".into();
        let binding = Binding::from_json(&json!({"metadata": {"name": "b"}, "spec": spec}));
        let mut report = Report::default();
        let convert = |_: &Resource<'_>| (object.as_object().cloned(), None);
        let outcome = policy.review(&[binding], &subject, &Fixed, &convert, &mut report);
        (outcome, report)
    }

    fn denial(spec: Value) -> String {
        said(spec, json!({"validationActions": ["Deny"]})).0.err().map(|e| e.message).unwrap_or_default()
    }

    #[test]
    fn denials_in_the_reference_words() {
        let head = "deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: ";
        for (spec, why) in [
            (
                json!({"validations": [{"expression": "object.spec.replicas <= 3"}]}),
                "failed expression: object.spec.replicas <= 3",
            ),
            (
                json!({"validations": [{"expression": "object.spec.replicas <= 3", "message": "too many"}]}),
                "too many",
            ),
            (
                json!({"validations": [{"expression": "variables.n <= 3", "messageExpression": "'got ' + string(variables.n)"}],
                    "variables": [{"name": "n", "expression": "object.spec.replicas"}]}),
                "got 5",
            ),
            (
                json!({"validations": [{"expression": "object.spec.missing > 3"}]}),
                "expression 'object.spec.missing > 3' resulted in error: no such key: missing",
            ),
            (
                json!({"validations": [{"expression": "authorizer.requestResource.check('delete').allowed()", "message": "no"}]}),
                "no",
            ),
            (
                json!({"validations": [{"expression": "namespaceObject.metadata.labels.env != 'prod'", "message": "prod"}]}),
                "prod",
            ),
        ] {
            assert_eq!(denial(spec.clone()), format!("{head}{why}"), "{spec}");
        }
    }

    #[test]
    fn what_admits() {
        for spec in [
            json!({"validations": [{"expression": "request.userInfo.username == 'alice'"}]}),
            json!({"validations": [{"expression": "object.spec.missing > 3"}], "failurePolicy": "Ignore"}),
            json!({"validations": [{"expression": "false"}], "matchConditions": [{"name": "n", "expression": "request.operation == 'DELETE'"}]}),
            json!({"validations": [{"expression": "oldObject == null"}]}),
        ] {
            assert_eq!(denial(spec.clone()), "", "{spec}");
        }
    }

    #[test]
    fn parameters_reasons_and_actions() {
        let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "validations": [{"expression": "object.spec.replicas <= int(params.data.max)", "message": "m", "reason": "Forbidden"}]});
        let named = |name: &str, action: &str| json!({"validationActions": [action], "paramRef": {"name": name, "parameterNotFoundAction": "Deny"}});
        let status = said(spec.clone(), named("limits", "Deny")).0.unwrap_err();
        assert_eq!((status.code, status.reason), (403, Reason::Forbidden));
        let status = said(spec.clone(), named("none", "Deny")).0.unwrap_err();
        assert!(status.message.ends_with("failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"), "{}", status.message);
        let (outcome, report) = said(spec, named("limits", "Warn"));
        assert!(outcome.is_ok());
        assert_eq!(
            report.warnings,
            ["Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': m"]
        );
    }
}
