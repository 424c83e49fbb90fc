//! `AdmissionReview`: the question, as webhooks get it and as expressions see it under `request`.

use serde_json::{Map, Value, json};

use super::{Resource, Subject};

/// The `request` without its uid and objects.
pub fn request(subject: &Subject<'_>, as_resource: &Resource<'_>) -> Map<String, Value> {
    let kind = |r: &Resource<'_>| json!({"group": r.kind.0, "version": r.kind.1, "kind": r.kind.2});
    let resource = |r: &Resource<'_>| json!({"group": r.group, "version": r.version, "resource": r.resource});
    let mut out = Map::new();
    let mut set = |key: &str, value: Value| out.insert(key.to_owned(), value);
    set("kind", kind(as_resource));
    set("resource", resource(as_resource));
    set("requestKind", kind(&subject.asked));
    set("requestResource", resource(&subject.asked));
    if !subject.subresource.is_empty() {
        set("subResource", subject.subresource.into());
        set("requestSubResource", subject.subresource.into());
    }
    if !subject.name.is_empty() {
        set("name", subject.name.into());
    }
    if !subject.namespace.is_empty() {
        set("namespace", subject.namespace.into());
    }
    set("operation", subject.operation.into());
    set("userInfo", user(subject));
    set("dryRun", subject.dry_run.into());
    let options = match subject.operation {
        "CREATE" => "CreateOptions",
        "UPDATE" => "UpdateOptions",
        "DELETE" => "DeleteOptions",
        _ => return out,
    };
    let mut options = json!({"kind": options, "apiVersion": "meta.k8s.io/v1"});
    if subject.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    out.insert("options".into(), options);
    out
}

fn user(subject: &Subject<'_>) -> Value {
    let user = subject.user;
    let mut out = json!({"username": user.username, "groups": user.groups});
    if !user.uid.is_empty() {
        out["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        out["extra"] = json!(user.extra);
    }
    out
}

/// The whole question; `object` and `old` in the version of `as_resource`.
pub fn review(
    subject: &Subject<'_>,
    as_resource: &Resource<'_>,
    uid: &str,
    object: Option<&Map<String, Value>>,
    old: Option<&Map<String, Value>>,
) -> Value {
    let mut request = request(subject, as_resource);
    request.insert("uid".into(), uid.into());
    let shown = |o: Option<&Map<String, Value>>| o.map_or(Value::Null, |o| Value::Object(o.clone()));
    request.insert("object".into(), shown(object));
    request.insert("oldObject".into(), shown(old));
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
}
