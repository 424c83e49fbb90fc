//! What is wrong with configurations of webhooks and policies: fields and expressions that do not compile.

use cel::{Env, Type};
use meta::{FieldError, LabelSelector, names};
use serde_json::Value;

use super::mutation::structures;
use super::scope::{self, Variables};
use super::{items, text};

/// Most match conditions of one webhook or policy.
const CONDITIONS_MAX: usize = 64;
/// Seconds a webhook may take.
const TIMEOUT_SECONDS: std::ops::RangeInclusive<i64> = 1..=30;
/// Verbs of rules.
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

/// Every rule that an object of this kind breaks; nothing for other kinds.
pub fn errors(kind: &str, object: &Value) -> Vec<FieldError> {
    let mut e = Errors(Vec::new());
    match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => e.configuration(object),
        "ValidatingAdmissionPolicy" => e.validating_policy(&object["spec"]),
        "MutatingAdmissionPolicy" => e.mutating_policy(&object["spec"]),
        "ValidatingAdmissionPolicyBinding" => e.binding(&object["spec"], true),
        "MutatingAdmissionPolicyBinding" => e.binding(&object["spec"], false),
        _ => {}
    }
    e.0
}

struct Errors(Vec<FieldError>);

impl Errors {
    fn required(&mut self, at: String, why: &str) {
        self.0.push(FieldError::required(at, why));
    }

    fn invalid(&mut self, at: String, value: &Value, why: &str) {
        self.0.push(FieldError::invalid(at, value, why));
    }

    fn one_of(&mut self, v: &Value, key: &str, at: &str, allowed: &[&str]) {
        let value = &v[key];
        if value.as_str().is_some_and(|s| !allowed.contains(&s)) {
            self.0.push(FieldError::not_supported(format!("{at}{key}"), value, allowed));
        }
    }

    fn selector(&mut self, v: &Value, at: String) {
        if !v.is_object() {
            return;
        }
        if let Err(e) = LabelSelector::from_json(v) {
            self.invalid(at.clone(), v, &e.to_string());
        }
        for (key, value) in v["matchLabels"].as_object().into_iter().flatten() {
            if let Some(problem) = names::qualified_name_problem(key) {
                self.invalid(format!("{at}.matchLabels"), &key.as_str().into(), &problem);
            }
            if let Some(problem) = names::label_value_problem(value.as_str().unwrap_or_default()) {
                self.invalid(format!("{at}.matchLabels"), value, &problem);
            }
        }
        for (i, e) in items(v, "matchExpressions").iter().enumerate() {
            let at = format!("{at}.matchExpressions[{i}]");
            let (operator, given) = (text(e, "operator"), !items(e, "values").is_empty());
            match operator {
                "In" | "NotIn" if !given => {
                    self.required(
                        format!("{at}.values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    );
                }
                "Exists" | "DoesNotExist" if given => self.0.push(FieldError::forbidden(
                    format!("{at}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                )),
                _ => {}
            }
            if let Some(problem) = names::qualified_name_problem(text(e, "key")) {
                self.invalid(format!("{at}.key"), &e["key"], &problem);
            }
        }
    }

    fn rules(&mut self, rules: &[Value], at: &str) {
        for (i, rule) in rules.iter().enumerate() {
            let at = format!("{at}[{i}]");
            for key in ["operations", "apiGroups", "apiVersions", "resources"] {
                let list = items(rule, key);
                if list.is_empty() {
                    self.required(format!("{at}.{key}"), "");
                }
                if key != "resources" && list.len() > 1 && list.iter().any(|v| v == "*") {
                    let why = format!("if '*' is present, must not specify other {}", plural(key));
                    self.invalid(format!("{at}.{key}"), &rule[key], &why);
                }
                for (j, v) in list.iter().enumerate() {
                    if key != "apiGroups" && v == "" {
                        self.required(format!("{at}.{key}[{j}]"), "");
                    }
                }
            }
            for (j, operation) in items(rule, "operations").iter().enumerate() {
                if operation.as_str().is_some_and(|o| !o.is_empty() && !OPERATIONS.contains(&o)) {
                    self.0.push(FieldError::not_supported(
                        format!("{at}.operations[{j}]"),
                        operation,
                        &OPERATIONS,
                    ));
                }
            }
            self.one_of(rule, "scope", &format!("{at}."), &["*", "Cluster", "Namespaced"]);
        }
    }

    fn expression(
        &mut self,
        env: &Env,
        v: &Value,
        key: &str,
        at: &str,
        wanted: &[Type],
    ) -> Option<cel::Program> {
        let source = text(v, key);
        let at = format!("{at}.{key}");
        if source.trim().is_empty() {
            self.required(at, &format!("{key} is not specified"));
            return None;
        }
        match env.compile(source) {
            Err(e) => {
                self.invalid(at, &v[key], &format!("compilation failed: {e}"));
                None
            }
            Ok(program) => {
                let found = program.result_type();
                if !wanted.is_empty() && *found != Type::Dyn && !wanted.contains(found) {
                    let kinds: Vec<String> = wanted.iter().map(Type::to_string).collect();
                    self.invalid(at, &v[key], &format!("must evaluate to {}", kinds.join(" or ")));
                }
                Some(program)
            }
        }
    }

    fn conditions(&mut self, v: &Value, env: &Env, at: &str) {
        let list = items(v, "matchConditions");
        if list.len() > CONDITIONS_MAX {
            let why = format!("must have at most {CONDITIONS_MAX} items");
            self.0.push(FieldError {
                reason: "FieldValueTooMany",
                field: at.to_owned(),
                message: format!("Too many: {}: {why}", list.len()),
            });
            return;
        }
        let mut seen = std::collections::HashSet::new();
        for (i, condition) in list.iter().enumerate() {
            let at = format!("{at}[{i}]");
            self.expression(env, condition, "expression", &at, &[Type::Bool]);
            match text(condition, "name") {
                "" => self.required(format!("{at}.name"), ""),
                name => {
                    if let Some(problem) = names::qualified_name_problem(name) {
                        self.invalid(format!("{at}.name"), &condition["name"], &problem);
                    }
                    if !seen.insert(name) {
                        self.0.push(FieldError::duplicate(format!("{at}.name"), &condition["name"]));
                    }
                }
            }
        }
    }

    fn configuration(&mut self, object: &Value) {
        let env = scope::env();
        let mut seen = std::collections::HashSet::new();
        for (i, hook) in items(object, "webhooks").iter().enumerate() {
            let at = format!("webhooks[{i}]");
            let name = text(hook, "name");
            if name.is_empty() {
                self.required(format!("{at}.name"), "");
            } else if let Some(problem) = names::subdomain_problem(name) {
                self.invalid(format!("{at}.name"), &hook["name"], &problem);
            } else if name.split('.').count() < 3 {
                let why = "should be a domain with at least three segments separated by dots";
                self.invalid(format!("{at}.name"), &hook["name"], why);
            }
            if !seen.insert(name) {
                self.0.push(FieldError::duplicate(format!("{at}.name"), &hook["name"]));
            }
            self.hook(hook, &at);
            self.conditions(hook, &env, &format!("{at}.matchConditions"));
        }
    }

    fn hook(&mut self, hook: &Value, at: &str) {
        self.rules(items(hook, "rules"), &format!("{at}.rules"));
        let versions = items(hook, "admissionReviewVersions");
        if versions.is_empty() {
            let why = "must specify one of v1, v1beta1";
            self.required(format!("{at}.admissionReviewVersions"), why);
        } else if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
            let why = "must include at least one of v1, v1beta1";
            self.invalid(format!("{at}.admissionReviewVersions"), &hook["admissionReviewVersions"], why);
        }
        let dotted = format!("{at}.");
        self.one_of(hook, "failurePolicy", &dotted, &["Fail", "Ignore"]);
        self.one_of(hook, "matchPolicy", &dotted, &["Equivalent", "Exact"]);
        self.one_of(hook, "reinvocationPolicy", &dotted, &["IfNeeded", "Never"]);
        match text(hook, "sideEffects") {
            "" => self.required(format!("{at}.sideEffects"), "must specify one of None, NoneOnDryRun"),
            _ => self.one_of(hook, "sideEffects", &dotted, &["None", "NoneOnDryRun"]),
        }
        if let Some(seconds) = hook["timeoutSeconds"].as_i64()
            && !TIMEOUT_SECONDS.contains(&seconds)
        {
            let why = "the timeout value must be between 1 and 30 seconds";
            self.invalid(format!("{at}.timeoutSeconds"), &hook["timeoutSeconds"], why);
        }
        self.selector(&hook["namespaceSelector"], format!("{at}.namespaceSelector"));
        self.selector(&hook["objectSelector"], format!("{at}.objectSelector"));
        self.client(&hook["clientConfig"], &format!("{at}.clientConfig"));
    }

    fn client(&mut self, config: &Value, at: &str) {
        let (url, service) = (&config["url"], &config["service"]);
        if url.is_string() == service.is_object() {
            return self.required(at.to_owned(), "exactly one of url or service is required");
        }
        if let Some(address) = url.as_str() {
            const FORM: &str = "; desired format: https://host[/path]";
            let field = format!("{at}.url");
            match address.split_once("://") {
                Some(("https", rest)) => {
                    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
                    if host.is_empty() {
                        self.invalid(field.clone(), url, &format!("host must be specified{FORM}"));
                    }
                    if host.contains('@') {
                        self.invalid(field.clone(), url, "user information is not permitted in the URL");
                    }
                    for (mark, what) in [
                        ('#', "fragments are not permitted in the URL"),
                        ('?', "query parameters are not permitted in the URL"),
                    ] {
                        if rest.contains(mark) {
                            self.invalid(field.clone(), url, what);
                        }
                    }
                }
                other => {
                    let scheme = Value::from(other.map(|o| o.0).unwrap_or_default());
                    self.invalid(field, &scheme, &format!("'https' is the only allowed URL scheme{FORM}"));
                }
            }
            return;
        }
        for (key, what) in
            [("name", "service name is required"), ("namespace", "service namespace is required")]
        {
            if text(service, key).is_empty() {
                self.required(format!("{at}.service.{key}"), what);
            }
        }
        if let Some(port) = service["port"].as_i64()
            && !(1..=65_535).contains(&port)
        {
            let why = "port is not valid: must be between 1 and 65535, inclusive";
            self.invalid(format!("{at}.service.port"), &service["port"], why);
        }
    }

    fn resources(&mut self, v: &Value, at: &str, rules_required: bool) {
        if rules_required && items(v, "resourceRules").is_empty() {
            self.required(format!("{at}.resourceRules"), "");
        }
        self.rules(items(v, "resourceRules"), &format!("{at}.resourceRules"));
        self.rules(items(v, "excludeResourceRules"), &format!("{at}.excludeResourceRules"));
        self.one_of(v, "matchPolicy", &format!("{at}."), &["Equivalent", "Exact"]);
        self.selector(&v["namespaceSelector"], format!("{at}.namespaceSelector"));
        self.selector(&v["objectSelector"], format!("{at}.objectSelector"));
    }

    /// What both kinds of policies have; the environment of their expressions.
    fn policy(&mut self, spec: &Value) -> Env {
        self.one_of(spec, "failurePolicy", "spec.", &["Fail", "Ignore"]);
        match &spec["matchConstraints"] {
            Value::Object(_) => self.resources(&spec["matchConstraints"], "spec.matchConstraints", true),
            _ => self.required("spec.matchConstraints".into(), ""),
        }
        let param_kind = &spec["paramKind"];
        if param_kind.is_object() {
            for key in ["apiVersion", "kind"] {
                if text(param_kind, key).is_empty() {
                    self.required(format!("spec.paramKind.{key}"), "");
                }
            }
        }
        let env = scope::policy_env(param_kind.is_object());
        self.conditions(spec, &env, "spec.matchConditions");
        let mut variables = Variables::new();
        for (i, v) in items(spec, "variables").iter().enumerate() {
            let at = format!("spec.variables[{i}]");
            let name = text(v, "name");
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() {
                self.required(format!("{at}.name"), "name is not specified");
            } else if !name.chars().all(word) || name.starts_with(|c: char| c.is_ascii_digit()) {
                self.invalid(format!("{at}.name"), &v["name"], "name is not a valid CEL identifier");
            } else if variables.iter().any(|(n, _)| n == name) {
                self.0.push(FieldError::duplicate(format!("{at}.name"), &v["name"]));
            }
            let env = scope::with_variables(&env, &variables);
            if let Some(program) = self.expression(&env, v, "expression", &at, &[]) {
                variables.push((name.to_owned(), program));
            }
        }
        scope::with_variables(&env, &variables)
    }

    fn validating_policy(&mut self, spec: &Value) {
        let env = self.policy(spec);
        let (validations, annotations) = (items(spec, "validations"), items(spec, "auditAnnotations"));
        if validations.is_empty() && annotations.is_empty() {
            let why = "validations or auditAnnotations must contain at least one item";
            self.required("spec.validations".into(), why);
            self.required("spec.auditAnnotations".into(), why);
        }
        for (i, v) in validations.iter().enumerate() {
            let at = format!("spec.validations[{i}]");
            self.expression(&env, v, "expression", &at, &[Type::Bool]);
            if v.get("messageExpression").is_some_and(|m| m != "") {
                self.expression(&env, v, "messageExpression", &at, &[Type::String]);
            }
            if text(v, "message").contains('\n') && !text(v, "message").trim().is_empty() {
                self.invalid(format!("{at}.message"), &v["message"], "message must not contain line breaks");
            }
            let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
            self.one_of(v, "reason", &format!("{at}."), &reasons);
        }
        for (i, a) in annotations.iter().enumerate() {
            let at = format!("spec.auditAnnotations[{i}]");
            if let Some(problem) = names::qualified_name_problem(text(a, "key")) {
                self.invalid(format!("{at}.key"), &a["key"], &problem);
            }
            self.expression(&env, a, "valueExpression", &at, &[Type::String, Type::Null]);
        }
    }

    fn mutating_policy(&mut self, spec: &Value) {
        let env = self.policy(spec).structures(structures);
        match text(spec, "reinvocationPolicy") {
            "" => self.required("spec.reinvocationPolicy".into(), ""),
            _ => self.one_of(spec, "reinvocationPolicy", "spec.", &["IfNeeded", "Never"]),
        }
        let mutations = items(spec, "mutations");
        if mutations.is_empty() {
            self.required("spec.mutations".into(), "mutations must contain at least one item");
        }
        for (i, m) in mutations.iter().enumerate() {
            let at = format!("spec.mutations[{i}]");
            let (key, other, wanted) = match text(m, "patchType") {
                "ApplyConfiguration" => ("applyConfiguration", "jsonPatch", structures("Object")),
                "JSONPatch" => ("jsonPatch", "applyConfiguration", structures("JSONPatch").map(Type::list)),
                "" => {
                    self.required(format!("{at}.patchType"), "");
                    continue;
                }
                _ => {
                    self.one_of(m, "patchType", &format!("{at}."), &["ApplyConfiguration", "JSONPatch"]);
                    continue;
                }
            };
            if m[other].is_object() {
                let why = format!("must not be specified when patchType is {}", text(m, "patchType"));
                self.invalid(format!("{at}.{other}"), &m[other], &why);
            }
            if !m[key].is_object() {
                let why = format!("must be specified when patchType is {}", text(m, "patchType"));
                self.required(format!("{at}.{key}"), &why);
                continue;
            }
            let wanted: Vec<Type> = wanted.into_iter().collect();
            self.expression(&env, &m[key], "expression", &format!("{at}.{key}"), &wanted);
        }
    }

    fn binding(&mut self, spec: &Value, validating: bool) {
        match text(spec, "policyName") {
            "" => self.required("spec.policyName".into(), ""),
            name => {
                if let Some(problem) = names::subdomain_problem(name) {
                    self.invalid("spec.policyName".into(), &spec["policyName"], &problem);
                }
            }
        }
        let param = &spec["paramRef"];
        if param.is_object() {
            let (named, selected) = (!text(param, "name").is_empty(), param["selector"].is_object());
            if named == selected {
                let why = if named {
                    "name and selector are mutually exclusive"
                } else {
                    "one of name or selector must be specified"
                };
                self.0.push(match named {
                    true => FieldError::forbidden("spec.paramRef.name", why),
                    false => FieldError::required("spec.paramRef", why),
                });
            }
            self.selector(&param["selector"], "spec.paramRef.selector".into());
            match text(param, "parameterNotFoundAction") {
                "" => self.required("spec.paramRef.parameterNotFoundAction".into(), ""),
                _ => self.one_of(param, "parameterNotFoundAction", "spec.paramRef.", &["Allow", "Deny"]),
            }
        }
        if spec["matchResources"].is_object() {
            self.resources(&spec["matchResources"], "spec.matchResources", false);
        }
        if !validating {
            return;
        }
        let actions = items(spec, "validationActions");
        if actions.is_empty() {
            self.required("spec.validationActions".into(), "at least one validation action is required");
        }
        for (i, action) in actions.iter().enumerate() {
            if !["Audit", "Deny", "Warn"].iter().any(|a| action == a) {
                let at = format!("spec.validationActions[{i}]");
                self.0.push(FieldError::not_supported(at, action, &["Audit", "Deny", "Warn"]));
            }
            if actions[..i].contains(action) {
                self.0.push(FieldError::duplicate(format!("spec.validationActions[{i}]"), action));
            }
        }
        if actions.iter().any(|a| a == "Deny") && actions.iter().any(|a| a == "Warn") {
            let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
            self.invalid("spec.validationActions".into(), &spec["validationActions"], why);
        }
    }
}

fn plural(key: &str) -> &'static str {
    match key {
        "operations" => "operations",
        "apiGroups" => "API groups",
        _ => "API versions",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(kind: &str, object: Value) -> Vec<String> {
        errors(kind, &object).iter().map(|e| e.to_string()).collect()
    }

    fn hook() -> Value {
        json!({"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": "https://h/x"},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]})
    }

    #[test]
    fn webhooks() {
        let with = |path: &str, value: Value| {
            let mut hook = hook();
            hook[path] = value;
            fields("MutatingWebhookConfiguration", json!({"webhooks": [hook]}))
        };
        assert!(with("name", "a.b.c".into()).is_empty());
        for (path, value, expected) in [
            (
                "name",
                json!("a"),
                "webhooks[0].name: Invalid value: \"a\": should be a domain with at least three segments separated by dots",
            ),
            (
                "timeoutSeconds",
                json!(31),
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ),
            (
                "sideEffects",
                json!("Some"),
                "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
            ),
            (
                "clientConfig",
                json!({}),
                "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
            ),
            (
                "matchConditions",
                json!([{"name": "n", "expression": "x"}]),
                "webhooks[0].matchConditions[0].expression: Invalid value: \"x\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'x' (in container '')\n | x\n | ^",
            ),
            (
                "matchConditions",
                json!([{"name": "n", "expression": "1"}]),
                "webhooks[0].matchConditions[0].expression: Invalid value: \"1\": must evaluate to bool",
            ),
        ] {
            assert_eq!(with(path, value), [expected]);
        }
    }

    #[test]
    fn policies_and_bindings() {
        let constraints = json!({"resourceRules": hook()["rules"]});
        let policy = |validations: Value| {
            fields(
                "ValidatingAdmissionPolicy",
                json!({"spec": {"matchConstraints": constraints, "validations": validations}}),
            )
        };
        assert!(policy(json!([{"expression": "object.spec.x > 1"}])).is_empty());
        assert_eq!(
            policy(json!([{"expression": "1"}])),
            ["spec.validations[0].expression: Invalid value: \"1\": must evaluate to bool"]
        );
        assert_eq!(policy(json!([])).len(), 2);
        let binding = |spec: Value| fields("ValidatingAdmissionPolicyBinding", json!({"spec": spec}));
        assert!(binding(json!({"policyName": "p", "validationActions": ["Deny"]})).is_empty());
        assert_eq!(binding(json!({"validationActions": ["Deny", "Warn"]})).len(), 2);
    }
}
