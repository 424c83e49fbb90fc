//! From a client's body to an object of the resource's kind, or to what is wrong with it.

use meta::Status;
use schema::decode::{Decoded, decode, decode_value};
use serde_json::{Map, Value, json};

use crate::resource::ResourceDef;
use crate::write::FieldValidation;

/// Decodes a body as the resource's kind, checks its type and applies the rule for unknown fields.
pub fn decode_body(
    def: &ResourceDef,
    body: &[u8],
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Map<String, Value>, Status> {
    let decoded = decode(&def.schema, def.ty, body).map_err(|e| match syntax_error(body) {
        Some(why) => unrecognized(def, &why, body),
        None => cannot_handle(def, &e.0),
    })?;
    let mut object = accept(def, decoded, validation, warnings)?;
    check_type(def, &mut object)?;
    Ok(object)
}

/// Refuses an applied configuration that is no object of its type. Upstream's merge has no code for that, so
/// that clients get 500 without a reason.
pub(crate) fn refuse_untyped(def: &ResourceDef, body: &[u8]) -> Result<(), Status> {
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return Ok(()) };
    let api_version = def.api_version();
    if value["apiVersion"] != api_version.as_str() || value["kind"] != *def.kind {
        return Ok(());
    }
    // Without metadata there is nobody to speak of; decoding says what is wrong.
    if !(value["metadata"].is_object() || value["metadata"].is_null()) {
        return Ok(());
    }
    if value["metadata"].get("managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let Some(why) = schema::typed::problem(&def.schema, def.ty, &value) else { return Ok(()) };
    let text = |key: &str| value["metadata"][key].as_str().unwrap_or_default();
    let (group, version) = (&def.group, &def.version);
    let whose = format!("{}/{}; {group}/{version}, Kind={}", text("namespace"), text("name"), def.kind);
    let message = format!("failed to create typed patch object ({whose}): {why}");
    Err(Status::new(500, meta::Reason::Unknown, message))
}

/// What is wrong with text that is no JSON, in the words of Go's decoder.
fn syntax_error(body: &[u8]) -> Option<String> {
    let error = serde_json::from_slice::<serde::de::IgnoredAny>(body).err()?;
    let why = match error.classify() {
        serde_json::error::Category::Eof => "unexpected end of JSON input".to_owned(),
        _ => {
            let line = body.split(|b| *b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
            let at = line.get(error.column().saturating_sub(1)).copied().unwrap_or_default();
            format!("invalid character {:?} looking for beginning of value", char::from(at))
        }
    };
    Some(format!("couldn't get version/kind; json parse error: {why}"))
}

/// Longest beginning of a body that an error shows.
const SHOWN_BYTES_MAX: usize = 30;

/// 400 for a body that does not say what it is.
fn unrecognized(def: &ResourceDef, why: &str, body: &[u8]) -> Status {
    let (head, more) = match body.get(..SHOWN_BYTES_MAX) {
        Some(head) if body.len() > SHOWN_BYTES_MAX => (head, " ..."),
        _ => (body, ""),
    };
    let shown = match head.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(head).into_owned(),
        Some(_) => head.iter().map(|b| format!("{b:02x}")).collect(),
    };
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {why} ({shown}{more})",
        def.kind
    ))
}

/// 400 for a body that is something else: a kind we know, or one we don't.
fn wrong_kind(def: &ResourceDef, api_version: &str, kind: &str) -> Status {
    let (group, version) = meta::gvk::split_api_version(api_version);
    let why = if def.schema.kind(group, version, kind).is_some() {
        let package = |group: &str| match group.split('.').next() {
            None | Some("") => "core".to_owned(),
            Some(first) => first.to_owned(),
        };
        format!("converting ({version}.{kind}) to ({}.{}): unknown conversion", package(&def.group), def.kind)
    } else {
        format!(
            "no kind {kind:?} is registered for version {api_version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""
        )
    };
    Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {}: {why}", def.kind))
}

pub(crate) fn cannot_handle(def: &ResourceDef, why: &str) -> Status {
    Status::bad_request(format!(
        "{} in version \"{}\" cannot be handled as a {}: {why}",
        def.kind, def.version, def.kind
    ))
}

pub(crate) fn accept(
    def: &ResourceDef,
    decoded: Decoded,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Map<String, Value>, Status> {
    match validation {
        FieldValidation::Strict if !decoded.problems.is_empty() => {
            let why = format!("strict decoding error: {}", decoded.problems.join(", "));
            return Err(cannot_handle(def, &why));
        }
        FieldValidation::Warn => warnings.extend(decoded.problems),
        _ => {}
    }
    Ok(decoded.value)
}

pub(crate) fn check_type(def: &ResourceDef, object: &mut Map<String, Value>) -> Result<(), Status> {
    let api_version = def.api_version();
    let found = |o: &Map<String, Value>, key: &str| o.get(key).and_then(Value::as_str).map(String::from);
    let (version, kind) = (found(object, "apiVersion"), found(object, "kind"));
    if version.as_ref().is_some_and(|v| *v != api_version) {
        return Err(Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({api_version})",
            version.unwrap_or_default()
        )));
    }
    if kind.as_ref().is_some_and(|k| **k != *def.kind) {
        return Err(wrong_kind(def, &api_version, &kind.unwrap_or_default()));
    }
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), (*def.kind).into());
    object.entry("metadata").or_insert_with(|| json!({}));
    Ok(())
}

/// Takes an object that admission changed through decoding and defaults again.
pub fn renew(def: &ResourceDef, object: &mut Map<String, Value>) -> Result<(), Status> {
    let value = Value::Object(std::mem::take(object));
    let decoded = decode_value(&def.schema, def.ty, value).map_err(|e| cannot_handle(def, &e.0))?;
    *object = decoded.value;
    check_type(def, object)?;
    schema::omit::zeroes(&def.schema, def.ty, object);
    schema::default::apply(&def.schema, def.ty, object);
    def.strategy.default(object);
    Ok(())
}
