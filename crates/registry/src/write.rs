//! Creating and changing objects: one path for every kind.
//!
//! decode -> default -> mutate -> prepare -> validate -> admit -> record owners -> compare-and-set. An update
//! is a function from the current version to the next, run again when somebody else was faster.

use std::sync::Arc;

use bytes::Bytes;
use meta::{FieldError, Object, Status, UserInfo};
use schema::apply::{self, Writer};
use schema::decode::decode_value;
use serde_json::{Map, Value, json};
use store::{Change, Expect, Write, WriteOutcome};

use crate::admit::{Admit, Attributes};
use crate::decode::{accept, cannot_handle, check_type, decode_body, refuse_untyped};
use crate::resource::ResourceDef;
use crate::strategy::Context;
use crate::version::{
    is_finished, keep_system_metadata, place, prepare_new_metadata, restrict_to_subresource, spec_changed,
};
use crate::{Registry, error, validate};

/// Times an update is tried again after a conflict that was not the client's.
const CONFLICT_RETRIES_MAX: usize = 32;
/// Times a generated name that is taken is replaced by another.
const GENERATED_NAMES_MAX: usize = 8;
/// Characters of a generated suffix.
const SUFFIX_LEN: usize = 5;
/// Longest base of a generated name, so that base and suffix fit a label.
const GENERATED_BASE_MAX: usize = 63 - SUFFIX_LEN;

/// What becomes of unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped with a warning.
    #[default]
    Warn,
    /// Refused.
    Strict,
}

/// What a write is aimed at.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Resource.
    pub def: &'a ResourceDef,
    /// Namespace, empty for cluster scope.
    pub namespace: &'a str,
    /// Name, empty for creates (the body has it).
    pub name: &'a str,
    /// Subresource, empty for the object itself.
    pub subresource: &'a str,
}

/// Parameters of a write.
#[derive(Debug, Clone)]
pub struct WriteOptions<'a> {
    /// Who writes.
    pub user: &'a UserInfo,
    /// Nothing is stored.
    pub dry_run: bool,
    /// Owner of the written fields.
    pub field_manager: String,
    /// Treatment of unknown fields.
    pub field_validation: FieldValidation,
    /// Server-side apply takes conflicting fields.
    pub force: bool,
}

/// What is wrong with values of `dryRun`, as Go shows a list of strings.
pub fn dry_run_error(found: &[String]) -> FieldError {
    let shown: Vec<String> = found.iter().map(|f| format!("{f:?}")).collect();
    let message = format!("Unsupported value: []string{{{}}}: supported values: \"All\"", shown.join(", "));
    FieldError { reason: "FieldValueNotSupported", field: "dryRun".into(), message }
}

/// A finished write.
#[derive(Debug)]
pub struct Written {
    /// The object, with its resource version (none after a dry run of a create).
    pub bytes: Bytes,
    /// Whether it is new.
    pub created: bool,
    /// Warnings for the client.
    pub warnings: Vec<String>,
}

/// A patch body by its media type.
#[derive(Debug, Clone, Copy)]
pub enum Patch<'a> {
    /// RFC 6902.
    Json(&'a [u8]),
    /// RFC 7386.
    Merge(&'a [u8]),
    /// Kubernetes' keyed merge.
    Strategic(&'a [u8]),
    /// Server-side apply; JSON.
    Apply(&'a [u8]),
}

/// The metadata of an object; `decode_body` and `encode` see to it that there is one.
pub fn metadata(object: &mut Map<String, Value>) -> &mut Map<String, Value> {
    let entry = object.entry("metadata").or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    match entry {
        Value::Object(metadata) => metadata,
        _ => unreachable!("an object was just put here"),
    }
}

/// A string of the metadata; empty when absent.
pub fn meta_text<'a>(object: &'a Map<String, Value>, key: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or_default()
}

impl Registry {
    fn context<'a>(&'a self, options: &'a WriteOptions<'_>) -> Context<'a> {
        Context {
            now: self.clock.now(),
            random: &*self.random,
            allocators: &self.allocators,
            user: options.user,
            dry_run: options.dry_run,
        }
    }

    /// Creates an object from a decoded body.
    pub async fn create(
        &self,
        target: Target<'_>,
        object: Map<String, Value>,
        options: &WriteOptions<'_>,
        admit: &dyn Admit,
        warnings: Vec<String>,
    ) -> Result<Written, Status> {
        self.create_object(target, object, None, options, admit, warnings).await
    }

    /// Creates an object; `applied` is the configuration where it comes from server-side apply.
    async fn create_object(
        &self,
        target: Target<'_>,
        mut object: Map<String, Value>,
        applied: Option<&Map<String, Value>>,
        options: &WriteOptions<'_>,
        admit: &dyn Admit,
        mut warnings: Vec<String>,
    ) -> Result<Written, Status> {
        let def = target.def;
        place(&target, &mut object)?;
        if !meta_text(&object, "resourceVersion").is_empty() {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        schema::omit::zeroes(&def.schema, def.ty, &mut object);
        schema::default::apply(&def.schema, def.ty, &mut object);
        def.strategy.default(&mut object);
        if def.subresource("status").is_some() && !def.strategy.keeps_status_at_creation() {
            object.remove("status");
        }
        if def.strategy.tracks_owners() {
            // Before admission: what the server adds belongs to nobody, so that an applier does not take it away.
            let (now, api_version) = (schema::time::seconds(self.clock.now()), def.api_version());
            let writer = writer(options, &api_version, target.subresource, &now);
            own_new_object(def, applied, &mut object, &writer);
        }
        let name = meta_text(&object, "name").to_owned();
        let attributes = Attributes {
            def,
            subresource: target.subresource,
            namespace: target.namespace,
            name: &name,
            operation: "CREATE",
            user: options.user,
            dry_run: options.dry_run,
        };
        admit.mutate(&attributes, &mut object, None).await?;
        let generate = name.is_empty().then(|| meta_text(&object, "generateName").to_owned());
        for attempt in 0.. {
            let mut candidate = object.clone();
            if let Some(base) = generate.as_ref().filter(|b| !b.is_empty()) {
                let cut: String = base.chars().take(GENERATED_BASE_MAX).collect();
                let name = format!("{cut}{}", stdx::random_suffix(&*self.random, SUFFIX_LEN));
                metadata(&mut candidate).insert("name".into(), name.into());
            }
            let outcome =
                self.create_named(&target, candidate, options, admit, &attributes, &mut warnings).await;
            match outcome {
                Err(e)
                    if e.is_already_exists() && generate.is_some() && attempt + 1 < GENERATED_NAMES_MAX => {}
                Err(e) => return Err(e),
                Ok(bytes) => return Ok(Written { bytes, created: true, warnings }),
            }
        }
        Err(Status::internal("no free name was found"))
    }

    #[allow(clippy::too_many_arguments, reason = "one attempt of `create_object`, which holds all of these")]
    async fn create_named(
        &self,
        target: &Target<'_>,
        mut object: Map<String, Value>,
        options: &WriteOptions<'_>,
        admit: &dyn Admit,
        attributes: &Attributes<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Bytes, Status> {
        let def = target.def;
        let context = self.context(options);
        prepare_new_metadata(def, &mut object, &context);
        let reservation = def.strategy.prepare_create(&context, &mut object)?;
        if def.subresource("status").is_some() && def.custom.is_none() {
            // Upstream's objects always have one, and clients rely on it.
            object.entry("status").or_insert_with(|| json!({}));
        }
        let mut errors = validate::metadata(def, &object);
        errors.extend(
            def.strategy
                .validate_create(&object)
                .unwrap_or_else(|| schema::required::missing(&def.schema, def.ty, &object)),
        );
        add_declared(&mut errors, validate::rules::check(def, &object));
        errors.extend(def.strategy.validate_also(&object));
        let name = meta_text(&object, "name").to_owned();
        if !errors.is_empty() {
            let shown = if name.is_empty() { meta_text(&object, "generateName") } else { &name };
            return Err(Status::invalid(&def.group, &def.kind, shown, &errors));
        }
        warnings.extend(validate::warnings::of(def, &object));
        warnings.extend(def.strategy.warnings(&object));
        admit.validate(attributes, Some(&object), None).await?;
        let stored = crate::convert::to_storage(def, object).await?;
        let bytes = meta::object::encode(&stored);
        if options.dry_run {
            if self.current(def, target.namespace, &name).is_some() {
                return Err(Status::already_exists(&def.group, &def.resource, &name));
            }
            return crate::convert::shown(def, bytes).await;
        }
        let key = def.storage_key(target.namespace, &name);
        let write = Write { key, expect: Expect::Absent, change: Change::Put(bytes.clone()) };
        match self.store.write(write).await.map_err(|e| error::status(&e))? {
            WriteOutcome::Committed { revision, .. } => {
                // The allocators learn of it from the watch cache; until then the reservation holds the place.
                self.cacher.wait_for(revision).await.ok();
                drop(reservation);
                let bytes = meta::object::with_revision(&bytes, revision).unwrap_or(bytes);
                crate::convert::shown(def, bytes).await
            }
            WriteOutcome::Conflict { .. } => Err(Status::already_exists(&def.group, &def.resource, &name)),
        }
    }

    /// Replaces an object (or its subresource) by a decoded body.
    pub async fn update(
        &self,
        target: Target<'_>,
        object: Map<String, Value>,
        options: &WriteOptions<'_>,
        admit: &dyn Admit,
        mut warnings: Vec<String>,
    ) -> Result<Written, Status> {
        let mut object = object;
        place(&target, &mut object)?;
        let exists = self.fresh_current(target.def, target.namespace, target.name).await?.is_some();
        if !exists && target.subresource.is_empty() && target.def.strategy.allows_create_on_update() {
            metadata(&mut object).remove("resourceVersion");
            return self.create(target, object, options, admit, warnings).await;
        }
        let expected = meta_text(&object, "resourceVersion").to_owned();
        if exists && expected.is_empty() && target.def.guards_updates {
            // Go prints an unsigned zero so.
            let error = FieldError {
                reason: "FieldValueInvalid",
                field: "metadata.resourceVersion".into(),
                message: "Invalid value: 0x0: must be specified for an update".into(),
            };
            return Err(Status::invalid(&target.def.group, &target.def.kind, target.name, &[error]));
        }
        let uid = meta_text(&object, "uid").to_owned();
        let next = move |_: &Map<String, Value>, _: &mut Vec<String>| Ok(object.clone());
        let preconditions = Preconditions { resource_version: expected, uid };
        let bytes = self
            .guaranteed_update(&target, &preconditions, options, admit, &mut warnings, Kind::Update, &next)
            .await?;
        Ok(Written { bytes, created: false, warnings })
    }

    /// Patches an object (or its subresource). Server-side apply creates it where it does not exist.
    pub async fn patch(
        &self,
        target: Target<'_>,
        patch: Patch<'_>,
        options: &WriteOptions<'_>,
        admit: &dyn Admit,
    ) -> Result<Written, Status> {
        let def = target.def;
        let mut warnings = Vec::new();
        if let Patch::Apply(body) = patch {
            return self.apply(target, body, options, admit).await;
        }
        let validation = options.field_validation;
        let next = |current: &Map<String, Value>, warnings: &mut Vec<String>| {
            let value = patched(def, current, patch)?;
            let decoded = decode_value(&def.schema, def.ty, value).map_err(|e| cannot_handle(def, &e.0))?;
            let mut object = accept(def, decoded, validation, warnings)?;
            check_type(def, &mut object)?;
            place(&target, &mut object)?;
            Ok(object)
        };
        let none = Preconditions::default();
        let bytes =
            self.guaranteed_update(&target, &none, options, admit, &mut warnings, Kind::Patch, &next).await?;
        Ok(Written { bytes, created: false, warnings })
    }

    async fn apply(
        &self,
        target: Target<'_>,
        body: &[u8],
        options: &WriteOptions<'_>,
        admit: &dyn Admit,
    ) -> Result<Written, Status> {
        let def = target.def;
        let mut warnings = Vec::new();
        refuse_untyped(def, body)?;
        let mut config = decode_body(def, body, options.field_validation, &mut warnings)?;
        place(&target, &mut config)?;
        if config["metadata"].get("managedFields").is_some() {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        if options.field_manager.is_empty() {
            let error = FieldError::required("fieldManager", "is required for apply patch");
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
        }
        for attempt in 0.. {
            let exists = self.fresh_current(def, target.namespace, target.name).await?.is_some();
            if !exists && target.subresource.is_empty() {
                if !meta_text(&config, "uid").is_empty() {
                    return Err(Status::conflict(
                        &def.group,
                        &def.resource,
                        target.name,
                        "uid mismatch: the provided object specified uid, and no existing object was found",
                    ));
                }
                metadata(&mut config).remove("resourceVersion");
                let created = self
                    .create_object(target, config.clone(), Some(&config), options, admit, warnings.clone())
                    .await;
                match created {
                    Err(e) if e.is_already_exists() && attempt < CONFLICT_RETRIES_MAX => continue,
                    other => return other,
                }
            }
            let now = schema::time::seconds(self.clock.now());
            let api_version = def.api_version();
            let next = |current: &Map<String, Value>, _: &mut Vec<String>| {
                let writer = writer(options, &api_version, target.subresource, &now);
                apply::apply(&def.schema, def.ty, Some(current), &config, &writer, options.force)
            };
            let preconditions = Preconditions {
                resource_version: meta_text(&config, "resourceVersion").to_owned(),
                uid: meta_text(&config, "uid").to_owned(),
            };
            let bytes = self
                .guaranteed_update(&target, &preconditions, options, admit, &mut warnings, Kind::Apply, &next)
                .await?;
            return Ok(Written { bytes, created: false, warnings });
        }
        Err(Status::internal("the object kept appearing and disappearing"))
    }

    /// The current version of an object, after everything committed so far has been seen.
    pub(crate) async fn fresh_current(
        &self,
        def: &ResourceDef,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Object>>, Status> {
        self.cacher.fresh().await?;
        Ok(self.current(def, namespace, name))
    }

    /// Changes an object by a function for the server's own purposes: no admission, no ownership. `None`
    /// from the function leaves it as it is.
    pub async fn modify(
        &self,
        def: &ResourceDef,
        namespace: &str,
        name: &str,
        change: &(dyn Fn(&mut Map<String, Value>) -> Result<bool, Status> + Sync),
    ) -> Result<Bytes, Status> {
        for _ in 0..CONFLICT_RETRIES_MAX {
            let current = (self.fresh_current(def, namespace, name).await?)
                .ok_or_else(|| Status::not_found(&def.group, &def.resource, name))?;
            let mut object = into_map(current.to_value());
            if !change(&mut object)? {
                return Ok(current.bytes.clone());
            }
            if let Some(bytes) = self.put(def, &current, namespace, name, object).await? {
                return Ok(bytes);
            }
        }
        Err(Status::conflict(&def.group, &def.resource, name, MODIFIED))
    }

    /// Writes the next version of an object. `None` when somebody else was faster.
    pub(crate) async fn put(
        &self,
        def: &ResourceDef,
        current: &Object,
        namespace: &str,
        name: &str,
        next: Map<String, Value>,
    ) -> Result<Option<Bytes>, Status> {
        let done = is_finished(&next);
        let bytes = meta::object::encode(&next);
        let change = if done { Change::Delete } else { Change::Put(bytes.clone()) };
        let key = def.storage_key(namespace, name);
        let write = Write { key, expect: Expect::Revision(current.revision), change };
        match self.store.write(write).await.map_err(|e| error::status(&e))? {
            WriteOutcome::Committed { revision, .. } => {
                Ok(Some(meta::object::with_revision(&bytes, revision).unwrap_or(bytes)))
            }
            WriteOutcome::Conflict { .. } => Ok(None),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the one loop all updates share; each argument is a seam")]
    async fn guaranteed_update(
        &self,
        target: &Target<'_>,
        preconditions: &Preconditions,
        options: &WriteOptions<'_>,
        admit: &dyn Admit,
        warnings: &mut Vec<String>,
        kind: Kind,
        next: &NextFn<'_>,
    ) -> Result<Bytes, Status> {
        let def = target.def;
        for _ in 0..CONFLICT_RETRIES_MAX {
            let current = (self.fresh_current(def, target.namespace, target.name).await?)
                .ok_or_else(|| Status::not_found(&def.group, &def.resource, target.name))?;
            let mut old = crate::convert::from_storage(def, into_map(current.to_value())).await?;
            preconditions.check(def, target.name, &old, current.revision)?;
            warnings.truncate(warnings.len().min(MAX_WARNINGS));
            // A patch may test or replace the resource version, so the function still sees it.
            let mut new = next(&old, warnings)?;
            metadata(&mut old).remove("resourceVersion");
            if kind != Kind::Update {
                // A patch may pin the version it was made for.
                let pinned = Preconditions {
                    resource_version: meta_text(&new, "resourceVersion").to_owned(),
                    uid: meta_text(&new, "uid").to_owned(),
                };
                pinned.check(def, target.name, &old, current.revision)?;
            }
            let reservation = self.next_version(target, &old, &mut new, options, admit, kind).await?;
            let before = warnings.len();
            if target.subresource != "status" {
                warnings.extend(validate::warnings::of(def, &new));
            }
            warnings.extend(def.strategy.warnings(&new));
            if new == old && !is_stale(def, &current) {
                warnings.truncate(before);
                return crate::convert::shown(def, current.bytes.clone()).await;
            }
            let stored = crate::convert::to_storage(def, new).await?;
            if options.dry_run {
                let bytes = meta::object::encode(&stored);
                let shown = meta::object::with_revision(&bytes, current.revision).unwrap_or(bytes);
                return crate::convert::shown(def, shown).await;
            }
            if let Some(bytes) = self.put(def, &current, target.namespace, target.name, stored).await? {
                if let Some(held) = reservation {
                    self.cacher.fresh().await.ok();
                    drop(held);
                }
                return crate::convert::shown(def, bytes).await;
            }
            warnings.truncate(before);
            if !preconditions.resource_version.is_empty() {
                return Err(Status::conflict(&def.group, &def.resource, target.name, MODIFIED));
            }
        }
        Err(Status::conflict(&def.group, &def.resource, target.name, MODIFIED))
    }

    /// Turns what the client wants into the next version: defaults, admission, what may not change,
    /// validation, ownership.
    async fn next_version(
        &self,
        target: &Target<'_>,
        old: &Map<String, Value>,
        new: &mut Map<String, Value>,
        options: &WriteOptions<'_>,
        admit: &dyn Admit,
        kind: Kind,
    ) -> Result<Option<crate::allocate::Reservation>, Status> {
        let def = target.def;
        let context = self.context(options);
        keep_system_metadata(old, new);
        restrict_to_subresource(def, target.subresource, old, new);
        schema::omit::zeroes(&def.schema, def.ty, new);
        schema::default::apply(&def.schema, def.ty, new);
        def.strategy.default(new);
        def.strategy.default_update(new, old);
        if kind != Kind::Apply && def.strategy.tracks_owners() {
            let (now, api_version) = (schema::time::seconds(context.now), def.api_version());
            let writer = writer(options, &api_version, target.subresource, &now);
            apply::track_update(&def.schema, def.ty, Some(old), new, &writer);
        }
        let attributes = Attributes {
            def,
            subresource: target.subresource,
            namespace: target.namespace,
            name: target.name,
            operation: "UPDATE",
            user: options.user,
            dry_run: options.dry_run,
        };
        admit.mutate(&attributes, new, Some(old)).await?;
        let reservation = def.strategy.prepare_update(&context, target.subresource, new, old)?;
        if def.counts_generation && target.subresource != "status" && spec_changed(def, old, new) {
            let generation = old["metadata"].get("generation").and_then(Value::as_i64).unwrap_or(0);
            metadata(new).insert("generation".into(), (generation + 1).into());
        }
        let mut errors = validate::metadata_update(def, new, old);
        match target.subresource {
            "status" => errors.extend(def.strategy.validate_status(new, old)),
            _ => {
                errors.extend(
                    def.strategy
                        .validate(new)
                        .unwrap_or_else(|| schema::required::missing(&def.schema, def.ty, new)),
                );
                add_declared(&mut errors, validate::rules::check(def, new));
                errors.extend(def.strategy.validate_also(new));
                errors.extend(validate::rules::check_change(def, new, old));
                errors.extend(def.strategy.validate_update(target.subresource, new, old));
            }
        }
        if !errors.is_empty() {
            return Err(Status::invalid(&def.group, &def.kind, target.name, &errors));
        }
        admit.validate(&attributes, Some(new), Some(old)).await?;
        Ok(reservation)
    }
}

/// Adds the errors of declared rules where nothing else was found wrong with their field.
fn add_declared(errors: &mut Vec<FieldError>, declared: Vec<FieldError>) {
    let known = errors.len();
    for error in declared {
        if !errors[..known].iter().any(|e| e.field == error.field && e.reason == error.reason) {
            errors.push(error);
        }
    }
}

const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";
/// Most warnings collected for one response.
const MAX_WARNINGS: usize = 64;

/// From the current version to the next, with warnings for the client.
type NextFn<'a> =
    dyn Fn(&Map<String, Value>, &mut Vec<String>) -> Result<Map<String, Value>, Status> + Sync + 'a;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Update,
    Patch,
    Apply,
}

#[derive(Debug, Default)]
struct Preconditions {
    resource_version: String,
    uid: String,
}

impl Preconditions {
    fn check(
        &self,
        def: &ResourceDef,
        name: &str,
        old: &Map<String, Value>,
        revision: u64,
    ) -> Result<(), Status> {
        let uid = meta_text(old, "uid");
        if !self.uid.is_empty() && self.uid != uid {
            let why =
                format!("Precondition failed: UID in precondition: {}, UID in object meta: {uid}", self.uid);
            return Err(Status::conflict(&def.group, &def.resource, name, &why));
        }
        match self.resource_version.as_str() {
            "" | "0" => Ok(()),
            rv if rv.parse() == Ok(revision) => Ok(()),
            rv if rv.parse::<u64>().is_err() => {
                let value = rv.into();
                let error = FieldError::invalid("metadata.resourceVersion", &value, "must be a number");
                Err(Status::invalid(&def.group, &def.kind, name, &[error]))
            }
            _ => Err(Status::conflict(&def.group, &def.resource, name, MODIFIED)),
        }
    }
}

/// Whether the store holds an object in a form that is no longer written: even a change of nothing is then
/// worth a write, which is how storage is migrated.
fn is_stale(def: &ResourceDef, current: &Object) -> bool {
    let Some(custom) = &def.custom else { return false };
    current.reshaped || !crate::convert::has_version(&current.bytes, &custom.storage_api_version)
}

/// Records who owns the fields of a new object: the applier its configuration, an updater everything.
fn own_new_object(
    def: &ResourceDef,
    applied: Option<&Map<String, Value>>,
    object: &mut Map<String, Value>,
    writer: &Writer<'_>,
) {
    let Some(config) = applied else {
        return apply::track_update(&def.schema, def.ty, None, object, writer);
    };
    // Nothing is there yet, so nothing can conflict.
    if let Ok(mut owned) = apply::apply(&def.schema, def.ty, None, config, writer, true)
        && let Some(fields) = metadata(&mut owned).remove("managedFields")
    {
        metadata(object).insert("managedFields".into(), fields);
    }
}

fn writer<'a>(
    options: &'a WriteOptions<'_>,
    api_version: &'a str,
    subresource: &'a str,
    now: &'a str,
) -> Writer<'a> {
    Writer { manager: &options.field_manager, api_version, subresource, now }
}

fn patched(def: &ResourceDef, current: &Map<String, Value>, patch: Patch<'_>) -> Result<Value, Status> {
    match patch {
        Patch::Json(body) => {
            let mut value = Value::Object(current.clone());
            meta::patch::json_patch(&mut value, body)?;
            Ok(value)
        }
        Patch::Merge(body) => {
            let mut value = Value::Object(current.clone());
            meta::patch::merge_patch(&mut value, body)?;
            Ok(value)
        }
        Patch::Strategic(body) => {
            let patch: Value = serde_json::from_slice(body)
                .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
            let Value::Object(patch) = patch else {
                return Err(Status::bad_request("error decoding patch: the patch is not an object"));
            };
            let mut object = current.clone();
            schema::strategic::apply(&def.schema, def.ty, &mut object, &patch)
                .map_err(|e| Status::bad_request(e.to_string()))?;
            Ok(Value::Object(object))
        }
        Patch::Apply(_) => Err(Status::internal("apply is not a patch of the current object")),
    }
}

pub(crate) fn into_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
