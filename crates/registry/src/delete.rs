//! Deleting: preconditions, finalizers, graceful deletion, propagation; one object or a collection.

use bytes::Bytes;
use meta::{Object, Status};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{Change, Expect, Write, WriteOutcome};

use crate::admit::{Admit, Attributes};
use crate::read::ListOptions;
use crate::version::is_finished;
use crate::write::{Target, WriteOptions, into_map, meta_text, metadata};
use crate::{Registry, error};

/// Finalizer that makes the garbage collector delete dependents first.
pub const FINALIZER_FOREGROUND: &str = "foregroundDeletion";
/// Finalizer that makes the garbage collector orphan dependents first.
pub const FINALIZER_ORPHAN: &str = "orphan";
/// Times a deletion is tried again when the object changes under it.
const RETRIES_MAX: usize = 32;

/// meta/v1 DeleteOptions.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    /// Seconds the object may take to end; absent means the kind's own default.
    pub grace_period_seconds: Option<i64>,
    /// What must hold for the deletion.
    pub preconditions: Option<Preconditions>,
    /// Deprecated form of `propagation_policy: Orphan`.
    pub orphan_dependents: Option<bool>,
    /// `Orphan`, `Background` or `Foreground`.
    pub propagation_policy: Option<String>,
    /// `["All"]` for a dry run.
    pub dry_run: Vec<String>,
}

/// meta/v1 Preconditions.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    /// Uid the object must have.
    pub uid: Option<String>,
    /// Resource version the object must have.
    pub resource_version: Option<String>,
}

/// How a deletion ended.
#[derive(Debug)]
pub enum Deleted {
    /// The object is gone; its last version.
    Gone(Bytes),
    /// Deletion has begun; the object as it is now.
    Pending(Bytes),
}

impl DeleteOptions {
    fn check(&self) -> Result<(), Status> {
        if self.dry_run.iter().any(|d| d != "All") {
            let e = crate::write::dry_run_error(&self.dry_run);
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &[e]));
        }
        if let Some(policy) = &self.propagation_policy {
            if self.orphan_dependents.is_some() {
                let e = meta::FieldError::invalid(
                    "propagationPolicy",
                    &policy.as_str().into(),
                    "orphanDependents and deletionPropagation cannot be both set",
                );
                return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &[e]));
            }
            if !matches!(policy.as_str(), "Orphan" | "Background" | "Foreground") {
                let allowed = ["Background", "Foreground", "Orphan", "nil"];
                let e =
                    meta::FieldError::not_supported("propagationPolicy", &policy.as_str().into(), &allowed);
                return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &[e]));
            }
        }
        Ok(())
    }

    /// The finalizers after the propagation policy has been applied to them.
    fn finalizers(&self, current: &[String]) -> Vec<String> {
        let policy = match (self.propagation_policy.as_deref(), self.orphan_dependents) {
            (Some(policy), _) => Some(policy),
            (None, Some(true)) => Some("Orphan"),
            (None, Some(false)) => Some("Background"),
            (None, None) => None,
        };
        let mut out: Vec<String> = match policy {
            // Without a policy, what is already asked for stays.
            None => return current.to_vec(),
            Some(_) => current
                .iter()
                .filter(|f| *f != FINALIZER_FOREGROUND && *f != FINALIZER_ORPHAN)
                .cloned()
                .collect(),
        };
        match policy {
            Some("Orphan") => out.push(FINALIZER_ORPHAN.into()),
            Some("Foreground") => out.push(FINALIZER_FOREGROUND.into()),
            _ => {}
        }
        out
    }
}

fn finalizers(object: &Map<String, Value>) -> Vec<String> {
    let list = object.get("metadata").and_then(|m| m.get("finalizers")).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|f| f.as_str().map(String::from)).collect()
}

impl Registry {
    /// Deletes one object, or begins to.
    pub async fn delete(
        &self,
        target: Target<'_>,
        delete: &DeleteOptions,
        options: &WriteOptions<'_>,
        admit: &dyn Admit,
    ) -> Result<Deleted, Status> {
        let def = target.def;
        delete.check()?;
        for _ in 0..RETRIES_MAX {
            let current = (self.fresh_current(def, target.namespace, target.name).await?)
                .ok_or_else(|| Status::not_found(&def.group, &def.resource, target.name))?;
            let stored = into_map(current.to_value());
            let old = crate::convert::from_storage(def, stored.clone()).await?;
            check_preconditions(&target, delete, &current, &old)?;
            let attributes = Attributes {
                def,
                subresource: "",
                namespace: target.namespace,
                name: target.name,
                operation: "DELETE",
                user: options.user,
                dry_run: options.dry_run,
            };
            admit.validate(&attributes, None, Some(&old)).await?;
            let mut next = stored.clone();
            self.begin_deletion(&target, delete, &mut next);
            let shown = |object: &Map<String, Value>, revision| {
                let bytes = meta::object::encode(object);
                meta::object::with_revision(&bytes, revision).unwrap_or(bytes)
            };
            if options.dry_run {
                let done = is_finished(&next);
                let bytes = crate::convert::shown(def, shown(&next, current.revision)).await?;
                return Ok(if done { Deleted::Gone(bytes) } else { Deleted::Pending(bytes) });
            }
            if is_finished(&next) {
                let key = def.storage_key(target.namespace, target.name);
                let write = Write { key, expect: Expect::Revision(current.revision), change: Change::Delete };
                match self.store.write(write).await.map_err(|e| error::status(&e))? {
                    WriteOutcome::Committed { revision, .. } => {
                        let bytes = crate::convert::shown(def, shown(&stored, revision)).await?;
                        return Ok(Deleted::Gone(bytes));
                    }
                    WriteOutcome::Conflict { .. } => continue,
                }
            }
            if next == stored {
                return Ok(Deleted::Pending(crate::convert::shown(def, current.bytes.clone()).await?));
            }
            if let Some(bytes) = self.put(def, &current, target.namespace, target.name, next).await? {
                return Ok(Deleted::Pending(crate::convert::shown(def, bytes).await?));
            }
        }
        Err(Status::conflict(
            &def.group,
            &def.resource,
            target.name,
            "the object kept changing while it was being deleted",
        ))
    }

    /// Marks an object as being deleted: time, grace, finalizers.
    fn begin_deletion(&self, target: &Target<'_>, delete: &DeleteOptions, object: &mut Map<String, Value>) {
        let def = target.def;
        let grace = def.strategy.grace_period(object, delete.grace_period_seconds).max(0);
        let finalizers = delete.finalizers(&finalizers(object));
        let now = self.clock.now();
        let already = object.get("metadata").and_then(|m| m.get("deletionTimestamp")).is_some();
        let left = object["metadata"].get("deletionGracePeriodSeconds").and_then(Value::as_i64);
        let metadata = metadata(object);
        if finalizers.is_empty() {
            metadata.remove("finalizers");
        } else {
            metadata.insert("finalizers".into(), json!(finalizers));
        }
        // A second deletion can only shorten the grace.
        if !already || left.is_some_and(|left| grace < left) {
            let end = now + jiff::SignedDuration::from_secs(grace);
            metadata.insert("deletionTimestamp".into(), schema::time::seconds(end).into());
            metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
            if def.counts_generation && !already {
                let generation = metadata.get("generation").and_then(Value::as_i64).unwrap_or(0);
                metadata.insert("generation".into(), (generation + 1).into());
            }
        }
        def.strategy.begin_deletion(object);
    }

    /// Deletes every object of a namespace (all when empty) that the selectors match, and returns them.
    pub async fn delete_collection(
        &self,
        target: Target<'_>,
        list: &ListOptions,
        delete: &DeleteOptions,
        options: &WriteOptions<'_>,
        admit: &dyn Admit,
    ) -> Result<crate::List, Status> {
        let found = self.list(target.def, target.namespace, list).await?;
        for object in &found.items {
            let one = Target { namespace: &object.namespace, name: &object.name, ..target };
            match self.delete(one, delete, options, admit).await {
                Ok(_) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }
}

fn check_preconditions(
    target: &Target<'_>,
    delete: &DeleteOptions,
    current: &Object,
    object: &Map<String, Value>,
) -> Result<(), Status> {
    let Some(wanted) = &delete.preconditions else { return Ok(()) };
    let def = target.def;
    let conflict = |why: String| Err(Status::conflict(&def.group, &def.resource, target.name, &why));
    let uid = meta_text(object, "uid");
    if let Some(w) = wanted.uid.as_deref().filter(|w| *w != uid) {
        return conflict(format!(
            "the UID in the precondition ({w}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        ));
    }
    if let Some(w) = wanted.resource_version.as_deref().filter(|w| w.parse() != Ok(current.revision)) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({w}) does not match the ResourceVersion in record ({}). The object might have been modified",
            current.revision
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn propagation_becomes_finalizers() {
        let with =
            |policy: &str| DeleteOptions { propagation_policy: Some(policy.into()), ..Default::default() };
        let current = ["x".to_owned(), "orphan".to_owned()];
        assert_eq!(with("Foreground").finalizers(&current), ["x", "foregroundDeletion"]);
        assert_eq!(with("Background").finalizers(&current), ["x"]);
        assert_eq!(DeleteOptions::default().finalizers(&current), current);
        assert!(with("Sideways").check().is_err());
    }
}
