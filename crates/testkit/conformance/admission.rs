//! \[sig-api-machinery\]: webhooks and policies.

use anyhow::{Context, bail, ensure};
use client::{DeleteParams, EventKind, WatchParams};
use http::Method;
use serde_json::{Value, json};
use testkit::image::BUSYBOX;
use testkit::pods::pod;
use testkit::webhook::{Handler, Webhook, patching};
use testkit::{Case, Scope};

const API: &str = "/apis/admissionregistration.k8s.io/v1";

/// Cases share a cluster: what one configures is about its own namespace only.
fn here(s: &Scope<'_>) -> Value {
    json!({"matchLabels": {"kubernetes.io/metadata.name": s.namespace}})
}

fn rule(group: &str, resource: &str, operations: &[&str]) -> Value {
    json!({"apiGroups": [group], "apiVersions": ["*"], "resources": [resource], "operations": operations})
}

fn hook(s: &Scope<'_>, name: &str, client_config: &Value, rules: Value) -> Value {
    json!({"name": format!("{name}.k8s.io"), "clientConfig": client_config, "rules": rules, "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "namespaceSelector": here(s)})
}

fn post(s: &Scope<'_>, resource: &str, kind: &str, mut object: Value) -> anyhow::Result<Value> {
    object["apiVersion"] = "admissionregistration.k8s.io/v1".into();
    object["kind"] = kind.into();
    Ok(s.send(Method::POST, &format!("{API}/{resource}"), &object)?)
}

fn configure(s: &Scope<'_>, mutating: bool, name: &str, hooks: Vec<Value>) -> anyhow::Result<Value> {
    let (resource, kind) = kinds(mutating);
    let name = format!("{}-{name}", s.namespace);
    post(
        s,
        resource,
        kind,
        json!({"metadata": {"name": name, "labels": {"case": s.namespace}}, "webhooks": hooks}),
    )
}

fn kinds(mutating: bool) -> (&'static str, &'static str) {
    match mutating {
        true => ("mutatingwebhookconfigurations", "MutatingWebhookConfiguration"),
        false => ("validatingwebhookconfigurations", "ValidatingWebhookConfiguration"),
    }
}

/// Removes what the case configured.
fn clean(s: &Scope<'_>, resource: &str) -> anyhow::Result<()> {
    let path = format!("{API}/{resource}?labelSelector=case%3D{}", s.namespace);
    s.send(Method::DELETE, &path, &json!({}))?;
    Ok(())
}

fn refused<T: std::fmt::Debug, E: std::fmt::Display>(result: Result<T, E>, why: &str) -> anyhow::Result<()> {
    match result {
        Ok(done) => bail!("was admitted: {done:?}"),
        Err(e) => {
            let text = format!("{e:#}");
            ensure!(text.contains(why), "{text:?} does not say {why:?}");
            Ok(())
        }
    }
}

fn config(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"mutation-start": "yes"}})
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [calls(), limits(), configurations(), policies(), operations(), customs()].concat()
}

const DENY: Handler = |request| {
    let name = request["name"].as_str().unwrap_or_default();
    match name.starts_with("skip") || name == "kube-root-ca.crt" {
        true => json!({"allowed": true}),
        false => json!({"allowed": false, "status": {"message": "this webhook denies all requests"}}),
    }
};
const STAGE: Handler = |request| {
    let data = &request["object"]["data"];
    if data["mutation-stage-1"] == "yes" {
        patching(&json!([{"op": "add", "path": "/data/mutation-stage-2", "value": "yes"}]))
    } else if data["mutation-start"] == "yes" {
        patching(&json!([{"op": "add", "path": "/data/mutation-stage-1", "value": "yes"}]))
    } else {
        json!({"allowed": true})
    }
};

fn calls() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should be able to deny pod and configmap creation [Conformance]",
            run: |s| {
                let webhook = Webhook::start(DENY)?;
                let rules = json!([
                    rule("", "pods", &["CREATE"]),
                    rule("", "configmaps", &["CREATE", "UPDATE", "DELETE"])
                ]);
                configure(s, false, "deny", vec![hook(s, "deny", &webhook.client_config, rules)])?;
                let why =
                    "admission webhook \"deny.k8s.io\" denied the request: this webhook denies all requests";
                let denied = s.create("pods", pod("p", "true", |_| {}));
                refused(denied, why)?;
                refused(s.create("configmaps", config("x")), why)?;
                s.create("configmaps", config("skip-me"))?;
                refused(s.create("configmaps", config("y")), why)?;
                clean(s, "validatingwebhookconfigurations")?;
                s.create("configmaps", config("y")).map(drop)?;
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should be able to deny attaching pod [Conformance]",
            run: |s| {
                let webhook = Webhook::start(
                    |_| json!({"allowed": false, "status": {"message": "attaching to pod 'to-be-attached-pod' is not allowed"}}),
                )?;
                let rules = json!([rule("", "pods/attach", &["CONNECT"])]);
                configure(s, false, "attach", vec![hook(s, "attach", &webhook.client_config, rules)])?;
                s.create("pods", pod("to-be-attached-pod", "sleep 600", |_| {}))?;
                s.wait_any("pods", "to-be-attached-pod", "running", |p| p["status"]["phase"] == "Running")?;
                let attached = s.kubectl(&["attach", "-n", &s.namespace, "to-be-attached-pod"]);
                refused(attached, "attaching to pod 'to-be-attached-pod' is not allowed")?;
                clean(s, "validatingwebhookconfigurations")
            },
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should mutate configmap [Conformance]",
            run: |s| {
                let webhook = Webhook::start(STAGE)?;
                let rules = || json!([rule("", "configmaps", &["CREATE"])]);
                let hooks = ["stage-1", "stage-2"].map(|n| hook(s, n, &webhook.client_config, rules()));
                configure(s, true, "stages", hooks.into())?;
                let made = s.create("configmaps", config("x"))?;
                let data =
                    json!({"mutation-start": "yes", "mutation-stage-1": "yes", "mutation-stage-2": "yes"});
                ensure!(made["data"] == data, "{made}");
                clean(s, "mutatingwebhookconfigurations")
            },
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should mutate pod and apply defaults after mutation [Conformance]",
            run: |s| {
                let webhook = Webhook::start(|_| {
                    let init =
                        json!([{"name": "webhook-added-init-container", "image": "webhook-added-image"}]);
                    patching(&json!([{"op": "add", "path": "/spec/initContainers", "value": init}]))
                })?;
                let rules = json!([rule("", "pods", &["CREATE"])]);
                configure(s, true, "init", vec![hook(s, "init", &webhook.client_config, rules)])?;
                let made = s.create("pods", pod("p", "true", |_| {}))?;
                let init = &made["spec"]["initContainers"][0];
                ensure!(init["name"] == "webhook-added-init-container", "{made}");
                ensure!(init["terminationMessagePolicy"] == "File", "{init}");
                clean(s, "mutatingwebhookconfigurations")
            },
        },
    ]
}

fn limits() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should unconditionally reject operations on fail closed webhook [Conformance]",
            run: |s| {
                let webhook = Webhook::start(|_| json!({"allowed": true}))?;
                let mut config_without_ca = webhook.client_config;
                config_without_ca["caBundle"] = Value::Null;
                let rules = json!([rule("", "configmaps", &["CREATE"])]);
                configure(s, false, "closed", vec![hook(s, "closed", &config_without_ca, rules)])?;
                let why = "failed calling webhook \"closed.k8s.io\": failed to call webhook: Post \"https://127.0.0.1:";
                refused(s.create("configmaps", config("x")), why)?;
                clean(s, "validatingwebhookconfigurations")
            },
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should honor timeout [Conformance]",
            run: |s| {
                let webhook = Webhook::start(|_| {
                    // The webhook is slow on purpose: what is tested is who gives up.
                    let (_held, silence) = std::sync::mpsc::channel::<()>();
                    let _ = silence.recv_timeout(std::time::Duration::from_secs(5));
                    json!({"allowed": true})
                })?;
                for (timeout, policy, admitted) in
                    [(1, "Fail", false), (1, "Ignore", true), (10, "Fail", true)]
                {
                    let rules = json!([rule("", "configmaps", &["CREATE"])]);
                    let mut slow = hook(s, "slow", &webhook.client_config, rules);
                    slow["timeoutSeconds"] = timeout.into();
                    slow["failurePolicy"] = policy.into();
                    configure(s, false, "slow", vec![slow])?;
                    let made =
                        s.create("configmaps", config(&format!("x-{timeout}-{}", policy.to_lowercase())));
                    match admitted {
                        true => drop(made?),
                        false => refused(made, "timeout=1s\": context deadline exceeded")?,
                    }
                    clean(s, "validatingwebhookconfigurations")?;
                }
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should not be able to mutate or prevent deletion of webhook configuration objects [Conformance]",
            run: |s| {
                let webhook = Webhook::start(DENY)?;
                let rules =
                    json!([rule("admissionregistration.k8s.io", "*", &["CREATE", "UPDATE", "DELETE"])]);
                for mutating in [false, true] {
                    let mut all = hook(s, "all", &webhook.client_config, rules.clone());
                    all["namespaceSelector"] = json!({});
                    all["objectSelector"] = json!({"matchLabels": {"case": s.namespace}});
                    configure(s, mutating, "all", vec![all])?;
                }
                let plain = hook(s, "plain", &webhook.client_config, json!([]));
                let made = configure(s, false, "plain", vec![plain])?;
                ensure!(made["webhooks"][0]["name"] == "plain.k8s.io", "{made}");
                clean(s, "mutatingwebhookconfigurations")?;
                clean(s, "validatingwebhookconfigurations")
            },
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should mutate everything except 'skip-me' configmaps [Conformance]",
            run: |s| {
                let webhook = Webhook::start(STAGE)?;
                let rules = json!([rule("", "configmaps", &["CREATE"])]);
                let mut most = hook(s, "most", &webhook.client_config, rules);
                most["matchConditions"] =
                    json!([{"name": "skip-me", "expression": "object.metadata.name != 'skip-me'"}]);
                configure(s, true, "most", vec![most])?;
                let (made, skipped) =
                    (s.create("configmaps", config("x"))?, s.create("configmaps", config("skip-me"))?);
                ensure!(made["data"]["mutation-stage-1"] == "yes", "{made}");
                ensure!(skipped["data"] == json!({"mutation-start": "yes"}), "{skipped}");
                clean(s, "mutatingwebhookconfigurations")
            },
        },
    ]
}

/// Creates ten configurations, sees them, deletes them, and sees that they no longer count.
fn listing(s: &Scope<'_>, mutating: bool) -> anyhow::Result<()> {
    let webhook = Webhook::start(if mutating { STAGE } else { DENY })?;
    let (resource, _) = kinds(mutating);
    let rules = || json!([rule("", "configmaps", &["CREATE"])]);
    for i in 0..10 {
        configure(
            s,
            mutating,
            &i.to_string(),
            vec![hook(s, &format!("h-{i}"), &webhook.client_config, rules())],
        )?;
    }
    let list = s.path(&format!("{API}/{resource}?labelSelector=case%3D{}", s.namespace))?;
    ensure!(list["items"].as_array().is_some_and(|l| l.len() == 10), "{list}");
    let made = s.create("configmaps", config("x"));
    match mutating {
        true => ensure!(made?["data"]["mutation-stage-1"] == "yes"),
        false => refused(made, "denied the request")?,
    }
    clean(s, resource)?;
    ensure!(s.create("configmaps", config("y"))?["data"] == json!({"mutation-start": "yes"}));
    Ok(())
}

/// Takes CREATE out of a webhook's rules by update and puts it back by patch.
fn changing(s: &Scope<'_>, mutating: bool) -> anyhow::Result<()> {
    let webhook = Webhook::start(if mutating { STAGE } else { DENY })?;
    let (resource, _) = kinds(mutating);
    let rules = json!([rule("", "configmaps", &["CREATE"])]);
    let mut made = configure(s, mutating, "c", vec![hook(s, "c", &webhook.client_config, rules)])?;
    let acts = |name: &str| -> anyhow::Result<bool> {
        match (mutating, s.create("configmaps", config(name))) {
            (true, made) => Ok(made?["data"]["mutation-stage-1"] == "yes"),
            (false, made) => Ok(made.is_err()),
        }
    };
    ensure!(acts("a")?);
    let path = format!("{API}/{resource}/{}", made["metadata"]["name"].as_str().unwrap_or_default());
    made["webhooks"][0]["rules"][0]["operations"] = json!(["UPDATE"]);
    s.send(Method::PUT, &path, &made)?;
    ensure!(!acts("b")?, "the update did not take effect");
    let patch = json!([{"op": "replace", "path": "/webhooks/0/rules/0/operations", "value": ["CREATE"]}]);
    let headers = [("content-type", "application/json-patch+json")];
    let (code, _, body) = s.raw(Method::PATCH, &path, &headers, patch.to_string())?;
    ensure!(code == 200, "{}", String::from_utf8_lossy(&body));
    ensure!(acts("c")?, "the patch did not take effect");
    clean(s, resource)
}

/// A configuration with one condition, good or bad, comes back as it was sent or is refused.
fn conditions(s: &Scope<'_>, mutating: bool, expression: &str) -> anyhow::Result<Value> {
    let config = json!({"url": "https://example.com/"});
    let mut one = hook(s, "cond", &config, json!([rule("", "configmaps", &["CREATE"])]));
    one["matchConditions"] = json!([{"name": "one", "expression": expression}]);
    configure(s, mutating, "cond", vec![one])
}

fn match_conditions(s: &Scope<'_>, mutating: bool) -> anyhow::Result<()> {
    let (resource, _) = kinds(mutating);
    let expression = "object.metadata.namespace == 'production'";
    let mut made = conditions(s, mutating, expression)?;
    ensure!(made["webhooks"][0]["matchConditions"][0]["expression"] == expression, "{made}");
    made["webhooks"][0]["matchConditions"] =
        json!([{"name": "two", "expression": "request.kind.kind != 'Pod'"}]);
    let path = format!("{API}/{resource}/{}", made["metadata"]["name"].as_str().unwrap_or_default());
    let changed = s.send(Method::PUT, &path, &made)?;
    ensure!(changed["webhooks"][0]["matchConditions"][0]["name"] == "two", "{changed}");
    clean(s, resource)
}

fn configurations() -> Vec<Case> {
    const HEAD: &str = "compilation failed";
    vec![
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] listing mutating webhooks should work [Conformance]",
            run: |s| listing(s, true),
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] listing validating webhooks should work [Conformance]",
            run: |s| listing(s, false),
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] patching/updating a mutating webhook should work [Conformance]",
            run: |s| changing(s, true),
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] patching/updating a validating webhook should work [Conformance]",
            run: |s| changing(s, false),
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should be able to create and update mutating webhook configurations with match conditions [Conformance]",
            run: |s| match_conditions(s, true),
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should be able to create and update validating webhook configurations with match conditions [Conformance]",
            run: |s| match_conditions(s, false),
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should reject mutating webhook configurations with invalid match conditions [Conformance]",
            run: |s| refused(conditions(s, true, "... [] bad expression"), HEAD),
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should reject validating webhook configurations with invalid match conditions [Conformance]",
            run: |s| refused(conditions(s, false, "... [] bad expression"), HEAD),
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should include webhook resources in discovery documents [Conformance]",
            run: |s| {
                let found = s.path(API)?;
                for name in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
                    let resources = found["resources"].as_array().context("no resources")?;
                    ensure!(resources.iter().any(|r| r["name"] == name), "{name} is missing");
                }
                let groups = s.path("/apis")?;
                ensure!(groups.to_string().contains("\"admissionregistration.k8s.io/v1\""));
                Ok(())
            },
        },
    ]
}

fn bind(s: &Scope<'_>, mutating: bool, mut spec: Value) -> anyhow::Result<()> {
    let name = format!("{}-p", s.namespace);
    spec["policyName"] = name.as_str().into();
    spec["matchResources"] = json!({"namespaceSelector": here(s)});
    let (resource, kind) = match mutating {
        true => ("mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding"),
        false => ("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"),
    };
    post(
        s,
        resource,
        kind,
        json!({"metadata": {"name": name, "labels": {"case": s.namespace}}, "spec": spec}),
    )?;
    Ok(())
}

fn policy(s: &Scope<'_>, mutating: bool, mut spec: Value) -> anyhow::Result<Value> {
    spec["matchConstraints"] = json!({"resourceRules": [rule("apps", "deployments", &["CREATE", "UPDATE"])]});
    let (resource, kind) = match mutating {
        true => ("mutatingadmissionpolicies", "MutatingAdmissionPolicy"),
        false => ("validatingadmissionpolicies", "ValidatingAdmissionPolicy"),
    };
    let metadata = json!({"name": format!("{}-p", s.namespace), "labels": {"case": s.namespace}});
    post(s, resource, kind, json!({"metadata": metadata, "spec": spec}))
}

fn deployment(name: &str, replicas: u32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": BUSYBOX}]}}}})
}

fn clean_policies(s: &Scope<'_>, prefix: &str) -> anyhow::Result<()> {
    clean(s, &format!("{prefix}admissionpolicies"))?;
    clean(s, &format!("{prefix}admissionpolicybindings"))
}

fn mutated(s: &Scope<'_>, mutation: Value) -> anyhow::Result<Value> {
    policy(s, true, json!({"reinvocationPolicy": "Never", "mutations": [mutation]}))?;
    bind(s, true, json!({}))?;
    let made = s.create("deployments", deployment("d", 1))?;
    clean_policies(s, "mutating")?;
    s.delete("deployments", "d", &DeleteParams::default())?;
    Ok(made)
}

fn policies() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should validate against a Deployment [Conformance]",
            run: |s| {
                let validations = json!([
                    {"expression": "object.spec.replicas > 1", "messageExpression": "'wants replicas > 1, got ' + string(object.spec.replicas)"},
                    {"expression": "namespaceObject.metadata.name == request.namespace", "message": "Internal error! Other namespace should not be allowed."}]);
                policy(s, false, json!({"validations": validations}))?;
                bind(s, false, json!({"validationActions": ["Deny"]}))?;
                let why = format!(
                    "ValidatingAdmissionPolicy '{0}-p' with binding '{0}-p' denied request: wants replicas > 1, got 1",
                    s.namespace
                );
                refused(s.create("deployments", deployment("one", 1)), &why)?;
                s.create("deployments", deployment("two", 2))?;
                clean_policies(s, "validating")
            },
        },
        Case {
            name: "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should allow expressions to refer variables. [Conformance]",
            run: |s| {
                let variables = json!([{"name": "replicas", "expression": "object.spec.replicas"},
                    {"name": "oddReplicas", "expression": "variables.replicas % 2 == 1"}]);
                let validations = json!([{"expression": "variables.replicas > 1"}, {"expression": "variables.oddReplicas"}]);
                policy(s, false, json!({"variables": variables, "validations": validations}))?;
                bind(s, false, json!({"validationActions": ["Deny"]}))?;
                refused(
                    s.create("deployments", deployment("one", 1)),
                    "failed expression: variables.replicas > 1",
                )?;
                refused(
                    s.create("deployments", deployment("two", 2)),
                    "failed expression: variables.oddReplicas",
                )?;
                s.create("deployments", deployment("three", 3))?;
                clean_policies(s, "validating")
            },
        },
        Case {
            name: "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should mutate a Deployment [Conformance]",
            run: |s| {
                let expression = "Object{spec: Object.spec{replicas: 3}}";
                let made = mutated(
                    s,
                    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}),
                )?;
                ensure!(made["spec"]["replicas"] == 3, "{made}");
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should mutate a Deployment with annotations [Conformance]",
            run: |s| {
                let expression = "[JSONPatch{op: 'add', path: '/metadata/annotations', value: {'my-foo-annotation': 'myAnnotationValue'}}]";
                let made =
                    mutated(s, json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}))?;
                ensure!(
                    made["metadata"]["annotations"]["my-foo-annotation"] == "myAnnotationValue",
                    "{made}"
                );
                Ok(())
            },
        },
    ]
}

/// Every verb on one kind: discovery, create, get, list, watch, patch, update, delete, delete of a collection.
fn every_verb(
    s: &Scope<'_>,
    resource: &str,
    make: &dyn Fn(&str) -> anyhow::Result<Value>,
) -> anyhow::Result<()> {
    let found = s.path(API)?;
    let resources = found["resources"].as_array().context("no resources")?;
    ensure!(resources.iter().any(|r| r["name"] == resource), "{resource} is missing");
    let path = format!("{API}/{resource}");
    let selected = format!("{path}?labelSelector=case%3D{}", s.namespace);
    let first = make("a")?;
    let name = first["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let one = format!("{path}/{name}");
    ensure!(s.path(&one)?["metadata"]["uid"] == first["metadata"]["uid"]);
    let version = s.path(&selected)?["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let patch = json!({"metadata": {"annotations": {"patched": "true"}}}).to_string();
    let headers = [("content-type", "application/merge-patch+json")];
    let (code, _, body) = s.raw(Method::PATCH, &one, &headers, patch)?;
    ensure!(code == 200, "{}", String::from_utf8_lossy(&body));
    let mut patched = s.path(&one)?;
    ensure!(patched["metadata"]["annotations"]["patched"] == "true", "{patched}");
    patched["metadata"]["annotations"]["updated"] = "true".into();
    let updated = s.send(Method::PUT, &one, &patched)?;
    ensure!(updated["metadata"]["annotations"]["updated"] == "true", "{updated}");
    s.send(Method::DELETE, &one, &json!({}))?;
    refused(s.path(&one), "not found")?;
    let label_selector = format!("case={}", s.namespace);
    let from = WatchParams { label_selector, resource_version: version, ..Default::default() };
    let mut watch = s.watch(resource, &from)?;
    for kind in [EventKind::Modified, EventKind::Modified, EventKind::Deleted] {
        ensure!(s.next(&mut watch)?.0 == kind);
    }
    make("b")?;
    make("c")?;
    ensure!(s.path(&selected)?["items"].as_array().is_some_and(|l| l.len() == 2));
    s.send(Method::DELETE, &selected, &json!({}))?;
    ensure!(s.path(&selected)?["items"].as_array().is_some_and(Vec::is_empty));
    Ok(())
}

fn operations() -> Vec<Case> {
    fn object(s: &Scope<'_>, name: &str, spec: Value) -> Value {
        let metadata = json!({"name": format!("{}-{name}", s.namespace), "labels": {"case": s.namespace}});
        json!({"metadata": metadata, "spec": spec})
    }
    fn constraints() -> Value {
        // No such resource exists: these policies must not meet other cases.
        json!({"resourceRules": [rule("example.com", "nothings", &["CREATE"])]})
    }
    vec![
        Case {
            name: "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should support ValidatingAdmissionPolicy API operations [Conformance]",
            run: |s| {
                let spec =
                    json!({"matchConstraints": constraints(), "validations": [{"expression": "true"}]});
                let (resource, kind) = ("validatingadmissionpolicies", "ValidatingAdmissionPolicy");
                let made = post(s, resource, kind, object(s, "status", spec.clone()))?;
                let path =
                    format!("{API}/{resource}/{}", made["metadata"]["name"].as_str().unwrap_or_default());
                let condition = json!({"type": "Seen", "status": "True", "reason": "Test", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
                let status = json!({"status": {"conditions": [condition]}}).to_string();
                let headers = [("content-type", "application/merge-patch+json")];
                let (code, _, body) = s.raw(Method::PATCH, &format!("{path}/status"), &headers, status)?;
                ensure!(code == 200, "{}", String::from_utf8_lossy(&body));
                ensure!(s.path(&path)?["status"]["conditions"][0]["type"] == "Seen");
                clean(s, resource)?;
                every_verb(s, resource, &|n| post(s, resource, kind, object(s, n, spec.clone())))
            },
        },
        Case {
            name: "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should support ValidatingAdmissionPolicyBinding API operations [Conformance]",
            run: |s| {
                let spec = json!({"policyName": "nothing", "validationActions": ["Deny"]});
                let (resource, kind) =
                    ("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding");
                every_verb(s, resource, &|n| post(s, resource, kind, object(s, n, spec.clone())))
            },
        },
        Case {
            name: "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should support MutatingAdmissionPolicy API operations [Conformance]",
            run: |s| {
                let mutation = json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}});
                let spec = json!({"matchConstraints": constraints(), "mutations": [mutation], "reinvocationPolicy": "Never"});
                let (resource, kind) = ("mutatingadmissionpolicies", "MutatingAdmissionPolicy");
                every_verb(s, resource, &|n| post(s, resource, kind, object(s, n, spec.clone())))
            },
        },
        Case {
            name: "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should support MutatingAdmissionPolicyBinding API operations [Conformance]",
            run: |s| {
                let (resource, kind) = ("mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding");
                every_verb(s, resource, &|n| {
                    post(s, resource, kind, object(s, n, json!({"policyName": "nothing"})))
                })
            },
        },
    ]
}

/// A custom resource of the case's own: its group.
fn custom_kind(s: &Scope<'_>) -> anyhow::Result<String> {
    let group = format!("{}.example.com", s.namespace);
    let data = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"data": data}}});
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("things.{group}"), "labels": {"case": s.namespace}},
        "spec": {"group": group, "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]}});
    s.send(Method::POST, DEFINITIONS, &crd)?;
    let established = |v: &Value| testkit::pods::condition(v, "Established");
    s.wait_any("customresourcedefinitions", &format!("things.{group}"), "establishment", established)?;
    Ok(group)
}

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn thing(group: &str, name: &str) -> Value {
    json!({"apiVersion": format!("{group}/v1"), "kind": "Thing", "metadata": {"name": name}, "data": {"mutation-start": "yes"}})
}

fn remove_kind(s: &Scope<'_>, group: &str) -> anyhow::Result<()> {
    s.send(Method::DELETE, &format!("{DEFINITIONS}/things.{group}"), &json!({}))?;
    Ok(())
}

/// A mutated custom object, as two webhooks leave it.
fn mutated_custom(s: &Scope<'_>, handler: Handler) -> anyhow::Result<Value> {
    let group = custom_kind(s)?;
    let webhook = Webhook::start(handler)?;
    let rules = || json!([rule(&group, "things", &["CREATE"])]);
    let hooks = ["one", "two"].map(|n| hook(s, n, &webhook.client_config, rules()));
    configure(s, true, "custom", hooks.into())?;
    let path = format!("/apis/{group}/v1/namespaces/{}/things", s.namespace);
    let made = s.send(Method::POST, &path, &thing(&group, "x"))?;
    clean(s, "mutatingwebhookconfigurations")?;
    remove_kind(s, &group)?;
    Ok(made)
}

fn customs() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should mutate custom resource [Conformance]",
            run: |s| {
                let made = mutated_custom(s, STAGE)?;
                ensure!(
                    made["data"]["mutation-stage-1"] == "yes" && made["data"]["mutation-stage-2"] == "yes",
                    "{made}"
                );
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should mutate custom resource with pruning [Conformance]",
            run: |s| {
                let made = mutated_custom(s, |_| {
                    patching(
                        &json!([{"op": "add", "path": "/data/kept", "value": "yes"}, {"op": "add", "path": "/pruned", "value": "yes"}]),
                    )
                })?;
                ensure!(made["data"]["kept"] == "yes" && made.get("pruned").is_none(), "{made}");
                Ok(())
            },
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should be able to deny custom resource creation, update and deletion [Conformance]",
            run: |s| {
                let group = custom_kind(s)?;
                let path = format!("/apis/{group}/v1/namespaces/{}/things", s.namespace);
                let mut old = s.send(Method::POST, &path, &thing(&group, "old"))?;
                let webhook = Webhook::start(
                    |_| json!({"allowed": false, "status": {"message": "the custom resource contains unwanted data"}}),
                )?;
                let rules = json!([rule(&group, "things", &["CREATE", "UPDATE", "DELETE"])]);
                configure(s, false, "custom", vec![hook(s, "custom", &webhook.client_config, rules)])?;
                let why = "the custom resource contains unwanted data";
                refused(s.send(Method::POST, &path, &thing(&group, "new")), why)?;
                old["data"]["more"] = "x".into();
                refused(s.send(Method::PUT, &format!("{path}/old"), &old), why)?;
                refused(s.send(Method::DELETE, &format!("{path}/old"), &json!({})), why)?;
                clean(s, "validatingwebhookconfigurations")?;
                s.send(Method::DELETE, &format!("{path}/old"), &json!({}))?;
                remove_kind(s, &group)
            },
        },
        Case {
            name: "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should deny crd creation [Conformance]",
            run: |s| {
                let webhook = Webhook::start(
                    |_| json!({"allowed": false, "status": {"message": "the crd contains unwanted label"}}),
                )?;
                let rules = json!([rule("apiextensions.k8s.io", "customresourcedefinitions", &["CREATE"])]);
                let mut all = hook(s, "crd", &webhook.client_config, rules);
                all["namespaceSelector"] = json!({});
                all["objectSelector"] = json!({"matchLabels": {"case": s.namespace}});
                configure(s, false, "crd", vec![all])?;
                refused(custom_kind(s), "the crd contains unwanted label")?;
                clean(s, "validatingwebhookconfigurations")
            },
        },
    ]
}
