//! `status.typeChecking` of ValidatingAdmissionPolicies: their expressions compiled against the types of the
//! kinds they match, so that whoever reads the status learns of a misspelt field before a request does.
//!
//! Flow: [`run`] follows the policies; [`warnings`] is pure: which kinds, which mistakes; the answer goes into
//! the status, once per generation (upstream's `validatingadmissionpolicy-status` controller).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use admission::dynamic::policy;
use cel::{Fields, ListKind, ObjectType, Type, structural};
use meta::Status;
use registry::{Change, ResourceDef, ResourceTable};
use schema::{Schema, Shape, TypeId, types};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use super::GROUP;
use crate::server::Server;

/// Kinds that one policy is checked against (upstream's limit).
const KINDS_MAX: usize = 10;
/// Pause after a status that could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// Fields of a built-in struct, as types of expressions.
struct Builtin(TypeId);

impl Fields for Builtin {
    fn field(&self, name: &str) -> Option<Type> {
        let schema = Schema::builtin();
        let name = cel::unescape(name)?;
        let field = schema.as_struct(self.0)?.field(&name)?;
        Some(type_of(field.ty))
    }
}

/// The type that expressions see of a built-in type. What may be a number or a text is not checked.
fn type_of(ty: TypeId) -> Type {
    let schema = Schema::builtin();
    match schema.shape(ty) {
        Shape::String | Shape::Quantity => Type::String,
        Shape::Bool => Type::Bool,
        Shape::Int32 | Shape::Int64 => Type::Int,
        Shape::Double => Type::Double,
        Shape::Bytes => Type::Bytes,
        Shape::Time | Shape::MicroTime => Type::Timestamp,
        Shape::IntOrString | Shape::Any | Shape::Free => Type::Dyn,
        Shape::List { item, kind } => {
            let kind = match kind {
                types::ListKind::Atomic => ListKind::Atomic,
                types::ListKind::Set => ListKind::Set,
                types::ListKind::Map(keys) => ListKind::Map(keys.iter().map(|k| k.to_string()).collect()),
            };
            Type::List(Arc::new(type_of(*item)), kind)
        }
        Shape::Map { item, .. } => Type::map(Type::String, type_of(*item)),
        Shape::Struct(at) => {
            let name = schema.struct_at(*at).name.to_string();
            Type::Object(ObjectType { name: name.into(), fields: Arc::new(Builtin(ty)) })
        }
    }
}

/// The type of a kind's objects.
fn object_type(def: &ResourceDef) -> Option<Type> {
    match &def.custom {
        Some(custom) => structural::type_of(&custom.open_api, true),
        None => Schema::builtin().kind(&def.group, &def.version, &def.kind).map(type_of),
    }
}

/// The rows that a policy's rules name one by one; who says `*` is not checked.
fn kinds<'a>(table: &'a ResourceTable, policy: &Value) -> Vec<&'a Arc<ResourceDef>> {
    let words = |rule: &Value, key: &str| -> Vec<String> {
        let list = rule[key].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).filter(|w| !w.contains('*')).map(String::from).collect()
    };
    let mut found: Vec<&Arc<ResourceDef>> = Vec::new();
    for rule in policy["spec"]["matchConstraints"]["resourceRules"].as_array().into_iter().flatten() {
        for group in words(rule, "apiGroups") {
            for version in words(rule, "apiVersions") {
                for resource in words(rule, "resources") {
                    let resource = resource.split('/').next().unwrap_or_default();
                    let Some(def) = table.find(&group, &version, resource) else { continue };
                    if found.len() < KINDS_MAX && !found.iter().any(|f| Arc::ptr_eq(f, def)) {
                        found.push(def);
                    }
                }
            }
        }
    }
    found.sort_by_key(|def| (def.group.clone(), def.version.clone(), def.kind.clone()));
    found
}

/// What is wrong with a policy's expressions, as `status.typeChecking.expressionWarnings`.
fn warnings(table: &ResourceTable, policy: &Value) -> Vec<Value> {
    let param = &policy["spec"]["paramKind"];
    let (group, version) = meta::gvk::split_api_version(param["apiVersion"].as_str().unwrap_or_default());
    let kind = param["kind"].as_str().unwrap_or_default();
    let params = table.find_kind(group, version, kind).and_then(|def| object_type(def));
    let mut all: Vec<(String, String)> = Vec::new();
    for def in kinds(table, policy) {
        let Some(object) = object_type(def) else { continue };
        for (field, mistake) in policy::mistakes(policy, &object, params.as_ref()) {
            let line = format!("{}, Kind={}: {mistake}\n", def.api_version(), def.kind);
            match all.iter_mut().find(|(f, _)| *f == field) {
                Some((_, text)) => text.push_str(&line),
                None => all.push((field, line)),
            }
        }
    }
    all.sort();
    all.into_iter().map(|(field, warning)| json!({"fieldRef": field, "warning": warning})).collect()
}

/// Follows the policies for as long as the server runs.
pub fn run(server: &Server) {
    let table = server.registry.table();
    let Some(def) = table.find(GROUP, "v1", "validatingadmissionpolicies").cloned() else { return };
    let changed = Arc::new(Notify::new());
    let wake = changed.clone();
    server.registry.cacher().kind(&def.storage_prefix()).observe(move |event| {
        if event.change != Change::Deleted {
            wake.notify_one();
        }
    });
    let (server, stop) = (server.clone(), server.shutdown.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = changed.notified() => {}
            }
            if let Err(error) = turn(&server, &def).await {
                tracing::warn!(%error, "the status of admission policies");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => changed.notify_one(),
                }
            }
        }
    });
}

/// Checks every policy whose generation has not been looked at.
async fn turn(server: &Server, def: &ResourceDef) -> Result<(), Status> {
    let mut seen = BTreeSet::new();
    for object in server.registry.cacher().kind(&def.storage_prefix()).snapshot(None) {
        let policy = object.to_value();
        let generation = policy["metadata"]["generation"].clone();
        if policy["status"]["observedGeneration"] == generation || !seen.insert(object.name.clone()) {
            continue;
        }
        let found = warnings(&server.registry.table(), &policy);
        let change = |current: &mut Map<String, Value>| {
            // Another generation has come meanwhile: it wakes us again.
            if current.get("metadata").map(|m| &m["generation"]) != Some(&generation) {
                return Ok(false);
            }
            let status = current.entry("status").or_insert_with(|| json!({}));
            status["observedGeneration"] = generation.clone();
            status["typeChecking"] = match found.is_empty() {
                true => json!({}),
                false => json!({"expressionWarnings": found}),
            };
            Ok(true)
        };
        match server.registry.modify(def, "", &object.name, &change).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told_by_kind_and_field() {
        let table = ResourceTable::builtin().unwrap();
        let policy = json!({"spec": {
            "matchConstraints": {"resourceRules": [
                {"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments", "replicasets", "*"]},
                {"apiGroups": ["*"], "apiVersions": ["v1"], "resources": ["pods"]}]},
            "variables": [{"name": "wanted", "expression": "object.spec.replicas"}],
            "validations": [
                {"expression": "object.spec.replicas > 1 && variables.wanted < 5"},
                {"expression": "object.foo > 1", "messageExpression": "object.metadata.name + 1"},
                {"expression": "object.spec.template.spec.containers.all(c, c.image.startsWith('x'))"},
                {"expression": "object.spec.paused"}],
        }});
        let found = warnings(&table, &policy);
        let fields: Vec<&str> = found.iter().filter_map(|w| w["fieldRef"].as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.validations[1].expression",
                "spec.validations[1].messageExpression",
                "spec.validations[3].expression"
            ]
        );
        let first = found[0]["warning"].as_str().unwrap();
        assert!(
            first.starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'foo'"),
            "{first}"
        );
        assert!(first.contains("apps/v1, Kind=ReplicaSet: ERROR"), "{first}");
        let last = found[2]["warning"].as_str().unwrap();
        assert!(last.contains("Kind=ReplicaSet") && !last.contains("Kind=Deployment"), "{last}");
        assert!(
            warnings(&table, &json!({"spec": {"validations": [{"expression": "object.foo"}]}})).is_empty()
        );
    }
}
