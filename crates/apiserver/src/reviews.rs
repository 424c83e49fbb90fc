//! Resources without storage: reviews that are answered and forgotten, bindings, component statuses.

use auth::rbac::{Attributes, Decision};
use bytes::Bytes;
use meta::{FieldError, Status, UserInfo};
use registry::{FieldValidation, table};
use serde_json::{Map, Value, json};

use crate::authorize::Authorizer;
use crate::body::{self, Answer};
use crate::negotiate::{self, Shape};
use crate::server::Server;
use crate::verbs::Call;

/// POST to a resource without storage.
pub async fn create(server: &Server, call: &Call<'_>, body: Bytes) -> Result<Answer, Status> {
    let body = negotiate::body_as_json(call.headers, body)?;
    let mut warnings = Vec::new();
    let mut object = registry::decode::decode_body(call.def, &body, FieldValidation::Warn, &mut warnings)?;
    match (&*call.def.group, &*call.def.resource) {
        ("", "bindings") => {
            let name = registry::write::meta_text(&object, "name").to_owned();
            return crate::subresource::bind(server, call, &name, &object).await;
        }
        ("authentication.k8s.io", "selfsubjectreviews") => {
            object.insert("status".into(), json!({"userInfo": call.user}));
        }
        ("authentication.k8s.io", "tokenreviews") => token_review(server, call, &mut object).await?,
        ("authorization.k8s.io", "selfsubjectrulesreviews") => rules_review(server, call, &mut object)?,
        ("authorization.k8s.io", _) => access_review(server, call, &mut object).await?,
        _ => return Err(crate::server::method_not_allowed(call.def)),
    }
    object
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
        .map(|m| m.insert("creationTimestamp".into(), Value::Null));
    let mut answer = body::json(201, &Value::Object(object));
    body::warn(&mut answer, &warnings);
    Ok(answer)
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(String::from)).collect()
}

async fn token_review(
    server: &Server,
    call: &Call<'_>,
    review: &mut Map<String, Value>,
) -> Result<(), Status> {
    let spec = review.get("spec").cloned().unwrap_or_default();
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    if !call.info.namespace.is_empty() {
        return Err(Status::bad_request(format!(
            "namespace is not allowed on this type: {}",
            call.info.namespace
        )));
    }
    let audiences = strings(&spec["audiences"]);
    let wanted = if audiences.is_empty() { server.authenticator.audiences().to_vec() } else { audiences };
    let status = match server.authenticator.review_token(token, &wanted).await {
        Ok((user, audiences)) => json!({"authenticated": true, "user": user, "audiences": audiences}),
        Err(error) => json!({"user": {}, "error": error}),
    };
    review.insert("status".into(), status);
    Ok(())
}

/// The user a review asks about: the caller for the `self` ones.
fn subject(call: &Call<'_>, spec: &Value) -> Result<UserInfo, Status> {
    if call.def.resource.starts_with("self") {
        return Ok(call.user.clone());
    }
    let user = UserInfo {
        username: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: strings(&spec["groups"]),
        extra: serde_json::from_value(spec["extra"].clone()).unwrap_or_default(),
    };
    if user.username.is_empty() && user.groups.is_empty() {
        let error =
            FieldError::invalid("spec.user", &"".into(), "at least one of user or group must be specified");
        return Err(Status::invalid(&call.def.group, &call.def.kind, "", &[error]));
    }
    Ok(user)
}

async fn access_review(
    server: &Server,
    call: &Call<'_>,
    review: &mut Map<String, Value>,
) -> Result<(), Status> {
    let spec = review.get("spec").cloned().unwrap_or_default();
    let user = subject(call, &spec)?;
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() == path.is_object() {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        let error = FieldError::invalid("spec.resourceAttributes", resource, why);
        return Err(Status::invalid(&call.def.group, &call.def.kind, "", &[error]));
    }
    let text = |v: &'_ Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
    let is_resource = resource.is_object();
    let asked = if is_resource { resource } else { path };
    let (verb, group, version) = (text(asked, "verb"), text(asked, "group"), text(asked, "version"));
    let (kind, sub, name) = (text(asked, "resource"), text(asked, "subresource"), text(asked, "name"));
    let mut namespace = text(asked, "namespace");
    if &*call.def.resource == "localsubjectaccessreviews" {
        if namespace != call.info.namespace {
            let why = "must match metadata.namespace";
            let error = FieldError::invalid("spec.resourceAttributes.namespace", &namespace.into(), why);
            return Err(Status::invalid(&call.def.group, &call.def.kind, "", &[error]));
        }
        namespace = call.info.namespace.clone();
    }
    let path = text(asked, "path");
    let fields = selector(call, resource, "fieldSelector")?;
    let labels = selector(call, resource, "labelSelector")?;
    let attributes = Attributes {
        user: &user,
        verb: &verb,
        api_group: &group,
        api_version: &version,
        resource: &kind,
        subresource: &sub,
        name: &name,
        namespace: &namespace,
        path: &path,
        resource_request: is_resource,
        field_selector: fields.as_ref(),
        label_selector: labels.as_ref(),
    };
    let status = match server.authorize(&attributes).await {
        Decision::Deny(reason) if reason.is_empty() => json!({"allowed": false, "denied": true}),
        Decision::Deny(reason) => json!({"allowed": false, "denied": true, "reason": reason}),
        Decision::Allow(reason) => json!({"allowed": true, "reason": reason}),
        Decision::NoOpinion(reason) if reason.is_empty() => json!({"allowed": false}),
        Decision::NoOpinion(reason) => json!({"allowed": false, "reason": reason}),
    };
    review.insert("status".into(), status);
    Ok(())
}

/// The requirements of a selector in a review: given as such, or as text.
fn selector(call: &Call<'_>, resource: &Value, key: &str) -> Result<Option<Value>, Status> {
    let given = &resource[key];
    let (raw, requirements) = (given["rawSelector"].as_str().unwrap_or_default(), &given["requirements"]);
    let listed = requirements.as_array().is_some_and(|r| !r.is_empty());
    let path = format!("spec.resourceAttributes.{key}");
    let invalid = |errors: &[FieldError]| Status::invalid(&call.def.group, &call.def.kind, "", errors);
    if !given.is_object() {
        return Ok(None);
    }
    match (raw.is_empty(), listed) {
        (true, false) => Err(invalid(&[FieldError::required(
            format!("{path}.requirements"),
            "when fieldSelector or labelSelector is specified, requirements or rawSelector is required",
        )])),
        (false, true) => {
            let why = "may not specified at the same time as requirements";
            Err(invalid(&[FieldError::invalid(format!("{path}.rawSelector"), &raw.into(), why)]))
        }
        (true, true) => {
            let mut errors = Vec::new();
            for (i, requirement) in requirements.as_array().into_iter().flatten().enumerate() {
                if requirement["key"].as_str().unwrap_or_default().is_empty() {
                    errors.push(FieldError::required(
                        format!("{path}.requirements[{i}].key"),
                        "must be specified",
                    ));
                }
                let values = requirement["values"].as_array().map_or(0, Vec::len);
                let at = format!("{path}.requirements[{i}].values");
                match requirement["operator"].as_str().unwrap_or_default() {
                    "In" | "NotIn" if values == 0 => {
                        errors.push(FieldError::required(
                            at,
                            "must be specified when `operator` is 'In' or 'NotIn'",
                        ));
                    }
                    "Exists" | "DoesNotExist" if values > 0 => {
                        errors.push(FieldError::forbidden(
                            at,
                            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                        ));
                    }
                    "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                    other => {
                        let why = "not a valid selector operator";
                        errors.push(FieldError::invalid(
                            format!("{path}.requirements[{i}].operator"),
                            &other.into(),
                            why,
                        ));
                    }
                }
            }
            if errors.is_empty() { Ok(Some(requirements.clone())) } else { Err(invalid(&errors)) }
        }
        // A text that cannot be read is left out, as upstream leaves it out: fewer rights follow from that.
        (false, false) => Ok(match key {
            "fieldSelector" => meta::FieldSelector::parse(raw).ok().map(|s| crate::authorize::of_fields(&s)),
            _ => meta::LabelSelector::parse(raw).ok().map(|s| crate::authorize::of_labels(&s)),
        }),
    }
}

fn rules_review(server: &Server, call: &Call<'_>, review: &mut Map<String, Value>) -> Result<(), Status> {
    let namespace = review.get("spec").and_then(|s| s["namespace"].as_str()).unwrap_or_default().to_owned();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let rules = server.rbac.rules_for(call.user, &namespace);
    let (mut resource, mut other) = (Vec::new(), Vec::new());
    for rule in &rules.rules {
        let value = json!(rule);
        if value["nonResourceURLs"].as_array().is_some_and(|l| !l.is_empty()) {
            other.push(json!({"verbs": value["verbs"], "nonResourceURLs": value["nonResourceURLs"]}));
        } else {
            resource.push(value);
        }
    }
    let mut errors: Vec<String> = rules.errors.clone();
    for authorizer in server.authorizers().iter() {
        match authorizer {
            Authorizer::Node if auth::node::node_name(call.user).is_some() => {
                errors.push("node authorizer does not support user rule resolution".into());
            }
            Authorizer::Webhook(_) => {
                errors.push("webhook authorizer does not support user rule resolution".into());
            }
            _ => {}
        }
    }
    let mut status =
        json!({"resourceRules": resource, "nonResourceRules": other, "incomplete": !errors.is_empty()});
    if !errors.is_empty() {
        status["evaluationError"] = errors.join(", ").into();
    }
    review.insert("status".into(), status);
    Ok(())
}

/// The component statuses that old clients ask for: everything is in this one process, so if it answers it
/// is healthy.
const COMPONENTS: [&str; 3] = ["controller-manager", "etcd-0", "scheduler"];

fn component(name: &str) -> Value {
    json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name},
        "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]})
}

/// GET of one component status.
pub fn component_status(server: &Server, call: &Call<'_>) -> Result<Answer, Status> {
    let name = call.info.name.as_str();
    let found = COMPONENTS.iter().find(|known| **known == name);
    let object = component(found.ok_or_else(|| Status::not_found("", "componentstatuses", name))?);
    Ok(match call.wanted()?.shape {
        Shape::Table => components(server, call, vec![object]),
        Shape::Partial => body::json(200, &table::partial(object)),
        _ => body::json(200, &object),
    })
}

/// GET of all component statuses.
pub fn component_statuses(server: &Server, call: &Call<'_>) -> Result<Answer, Status> {
    let items: Vec<Value> = COMPONENTS.iter().map(|c| component(c)).collect();
    let list = |kind: &str, version: &str, items: Vec<Value>| {
        body::json(200, &json!({"kind": kind, "apiVersion": version, "metadata": {}, "items": items}))
    };
    Ok(match call.wanted()?.shape {
        Shape::Table => components(server, call, items),
        Shape::Partial => {
            let items = items.into_iter().map(table::partial).collect();
            list("PartialObjectMetadataList", "meta.k8s.io/v1", items)
        }
        _ => list("ComponentStatusList", "v1", items),
    })
}

fn components(server: &Server, call: &Call<'_>, items: Vec<Value>) -> Answer {
    let now = server.registry.clock().now();
    let rows = items.into_iter().map(|item| table::row(call.def, item, call.include(), now)).collect();
    let columns = table::column_definitions(call.def);
    body::json(200, &table::table(Some(columns), rows, json!({})))
}
