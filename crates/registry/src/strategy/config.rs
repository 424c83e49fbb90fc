//! Small kinds of the core: ConfigMap, Secret, ServiceAccount, Event, Lease, EndpointSlice.

use base64::Engine;
use meta::{FieldError, Status};
use serde_json::{Map, Value};

use super::{Context, Object, Strategy, child, set_default, text};
use crate::allocate::Reservation;
use crate::validate;

/// Most bytes of data in a ConfigMap or Secret.
const DATA_BYTES_MAX: usize = 1024 * 1024;

fn members<'a>(object: &'a Object, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object.get(key).and_then(Value::as_object).into_iter().flatten()
}

fn immutable_errors(new: &Object, old: &Object, fields: &[&str]) -> Vec<FieldError> {
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return Vec::new();
    }
    let what = "field is immutable when `immutable` is set";
    let mut errors: Vec<FieldError> = (fields.iter())
        .filter(|f| new.get(**f) != old.get(**f))
        .map(|f| FieldError::forbidden(*f, what))
        .collect();
    if new.get("immutable") != Some(&Value::Bool(true)) {
        errors.insert(0, FieldError::forbidden("immutable", what));
    }
    errors
}

/// Strategy of ConfigMaps.
pub struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate(&self, object: &Object) -> Option<Vec<FieldError>> {
        let (mut errors, mut total) = (Vec::new(), 0);
        for field in ["data", "binaryData"] {
            for (key, value) in members(object, field) {
                let at = format!("{field}[{key}]");
                if let Some(problem) = meta::names::config_key_problem(key) {
                    errors.push(FieldError::invalid(&at, &key.as_str().into(), &problem));
                }
                if field == "binaryData" && object.get("data").is_some_and(|d| d.get(key).is_some()) {
                    errors.push(FieldError::invalid(
                        at,
                        &key.as_str().into(),
                        "duplicate of key present in data",
                    ));
                }
                total += value.as_str().map_or(0, str::len);
            }
        }
        if total > DATA_BYTES_MAX {
            errors.push(FieldError::too_long("", DATA_BYTES_MAX));
        }
        Some(errors)
    }

    fn validate_update(&self, _: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        immutable_errors(new, old, &["data", "binaryData"])
    }
}

/// Strategy of Secrets.
pub struct Secret;

/// Keys that a type of Secret must have.
fn required_keys(ty: &str) -> &'static [&'static str] {
    match ty {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    }
}

impl Strategy for Secret {
    /// `stringData` is a write-only convenience: it becomes `data`.
    fn default(&self, object: &mut Object) {
        if let Some(Value::Object(plain)) = object.remove("stringData") {
            let data = child(object, "data");
            for (key, value) in plain {
                let encoded =
                    base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
                data.insert(key, encoded.into());
            }
        }
    }

    fn validate(&self, object: &Object) -> Option<Vec<FieldError>> {
        let (mut errors, mut total) = (Vec::new(), 0);
        for (key, value) in members(object, "data") {
            if let Some(problem) = meta::names::config_key_problem(key) {
                errors.push(FieldError::invalid(format!("data[{key}]"), &key.as_str().into(), &problem));
            }
            total += value.as_str().map_or(0, |v| v.len() / 4 * 3);
        }
        if total > DATA_BYTES_MAX {
            errors.push(FieldError::too_long("data", DATA_BYTES_MAX));
        }
        let ty = text(object, "type");
        let data = object.get("data").and_then(Value::as_object);
        for key in required_keys(ty) {
            if data.is_none_or(|d| !d.contains_key(*key)) {
                errors.push(FieldError::required(format!("data[{key}]"), ""));
            }
        }
        if ty == "kubernetes.io/basic-auth"
            && data.is_none_or(|d| !d.contains_key("username") && !d.contains_key("password"))
        {
            errors.push(FieldError::required("data[username]", ""));
            errors.push(FieldError::required("data[password]", ""));
        }
        if ty == "kubernetes.io/dockerconfigjson"
            && let Some(value) = data.and_then(|d| d.get(".dockerconfigjson")).and_then(Value::as_str)
        {
            let decoded = base64::engine::general_purpose::STANDARD.decode(value).unwrap_or_default();
            if serde_json::from_slice::<Map<String, Value>>(&decoded).is_err() {
                errors.push(FieldError::invalid(
                    "data[.dockerconfigjson]",
                    &"<secret contents redacted>".into(),
                    "unexpected end of JSON input",
                ));
            }
        }
        if ty == "kubernetes.io/service-account-token" {
            let annotations = object.get("metadata").and_then(|m| m.get("annotations"));
            if annotations.and_then(|a| a.get("kubernetes.io/service-account.name")).is_none() {
                errors.push(FieldError::required(
                    "metadata.annotations[kubernetes.io/service-account.name]",
                    "",
                ));
            }
        }
        Some(errors)
    }

    fn validate_update(&self, _: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = immutable_errors(new, old, &["data"]);
        if new.get("type") != old.get("type") {
            errors.push(FieldError::invalid(
                "type",
                &new.get("type").cloned().unwrap_or_default(),
                "field is immutable",
            ));
        }
        errors
    }
}

/// Strategy of ServiceAccounts.
pub struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn validate(&self, _: &Object) -> Option<Vec<FieldError>> {
        Some(Vec::new())
    }
}

/// Strategy of Events.
pub struct Event;

impl Strategy for Event {
    fn allows_create_on_update(&self) -> bool {
        true
    }

    fn validate(&self, event: &Object) -> Option<Vec<FieldError>> {
        let mut errors = Vec::new();
        let (about, field) = match event.get("involvedObject") {
            Some(about) => (about, "involvedObject"),
            None => (event.get("regarding").unwrap_or(&Value::Null), "regarding"),
        };
        let namespace = crate::write::meta_text(event, "namespace");
        let their_namespace = about["namespace"].as_str().unwrap_or_default();
        let fits = namespace == their_namespace || (their_namespace.is_empty() && namespace == "default");
        if !fits {
            errors.push(FieldError::invalid(
                format!("{field}.namespace"),
                &about["namespace"],
                "does not match event.namespace",
            ));
        }
        let new_style = event.get("eventTime").is_some_and(|t| !t.is_null());
        if new_style {
            for key in ["reason", "action"] {
                if text(event, key).is_empty() {
                    errors.push(FieldError::required(key, ""));
                }
            }
            let controller = if field == "regarding" { "reportingController" } else { "reportingComponent" };
            if text(event, controller).is_empty() {
                errors.push(FieldError::required("reportingController", ""));
            }
        }
        if text(event, "reason").len() > 128 {
            errors.push(FieldError::invalid("reason", &event["reason"], "can have at most 128 characters"));
        }
        Some(errors)
    }
}

/// Strategy of Leases.
pub struct Lease;

impl Strategy for Lease {
    fn allows_create_on_update(&self) -> bool {
        true
    }

    fn validate(&self, lease: &Object) -> Option<Vec<FieldError>> {
        let spec = lease.get("spec").unwrap_or(&Value::Null);
        let mut errors = Vec::new();
        if spec["leaseDurationSeconds"].as_i64().is_some_and(|n| n <= 0) {
            errors.push(FieldError::invalid(
                "spec.leaseDurationSeconds",
                &spec["leaseDurationSeconds"],
                "must be greater than 0",
            ));
        }
        if spec["leaseTransitions"].as_i64().is_some_and(|n| n < 0) {
            errors.push(FieldError::invalid(
                "spec.leaseTransitions",
                &spec["leaseTransitions"],
                "must be greater than or equal to 0",
            ));
        }
        if spec["holderIdentity"].as_str() == Some("") {
            errors.push(FieldError::required("spec.holderIdentity", "must not be empty"));
        }
        Some(errors)
    }
}

/// Strategy of EndpointSlices.
pub struct EndpointSlice;

/// Most endpoints of one slice.
const ENDPOINTS_MAX: usize = 1000;

impl Strategy for EndpointSlice {
    fn default(&self, slice: &mut Object) {
        for port in slice.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Value::Object(port) = port {
                port.entry("name").or_insert_with(|| "".into());
                set_default(port, "protocol", "TCP");
            }
        }
    }

    fn prepare_create(&self, _: &Context<'_>, slice: &mut Object) -> Result<Option<Reservation>, Status> {
        slice.entry("endpoints").or_insert_with(|| Value::Array(Vec::new()));
        Ok(None)
    }

    fn validate(&self, slice: &Object) -> Option<Vec<FieldError>> {
        let kind = slice.get("addressType").unwrap_or(&Value::Null);
        let mut errors: Vec<FieldError> =
            validate::required_one_of(kind, "addressType", &["FQDN", "IPv4", "IPv6"]).into_iter().collect();
        let endpoints = slice.get("endpoints").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if endpoints.len() > ENDPOINTS_MAX {
            errors.push(FieldError::invalid(
                "endpoints",
                &endpoints.len().into(),
                &format!("must have at most {ENDPOINTS_MAX} items"),
            ));
        }
        for (i, endpoint) in endpoints.iter().enumerate() {
            let addresses = endpoint["addresses"].as_array().map_or(&[][..], Vec::as_slice);
            if addresses.is_empty() {
                errors.push(FieldError::required(
                    format!("endpoints[{i}].addresses"),
                    "must contain at least 1 address",
                ));
            }
            for (j, address) in addresses.iter().enumerate() {
                let parsed = address.as_str().and_then(|a| a.parse::<std::net::IpAddr>().ok());
                let fits = match (kind.as_str(), parsed) {
                    (Some("IPv4"), Some(ip)) => ip.is_ipv4(),
                    (Some("IPv6"), Some(ip)) => ip.is_ipv6(),
                    (Some("IPv4" | "IPv6"), None) => false,
                    _ => true,
                };
                if !fits {
                    let family = kind.as_str().unwrap_or_default();
                    let problem = format!("must be a valid {family} address");
                    errors.push(FieldError::invalid(
                        format!("endpoints[{i}].addresses[{j}]"),
                        address,
                        &problem,
                    ));
                }
            }
        }
        let mut names = std::collections::HashSet::new();
        for (i, port) in slice.get("ports").and_then(Value::as_array).into_iter().flatten().enumerate() {
            let name = port["name"].as_str().unwrap_or_default();
            if !name.is_empty()
                && let Some(problem) = meta::names::label_problem(name)
            {
                errors.push(FieldError::invalid(format!("ports[{i}].name"), &port["name"], &problem));
            }
            if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("ports[{i}].name"), &port["name"]));
            }
            errors.extend(validate::one_of(
                &port["protocol"],
                &format!("ports[{i}].protocol"),
                &["SCTP", "TCP", "UDP"],
            ));
            errors.extend(validate::port_number(&port["port"], &format!("ports[{i}].port")));
        }
        Some(errors)
    }

    fn validate_update(&self, _: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        if new.get("addressType") == old.get("addressType") {
            return Vec::new();
        }
        vec![FieldError::invalid(
            "addressType",
            &new.get("addressType").cloned().unwrap_or_default(),
            "field is immutable",
        )]
    }
}
