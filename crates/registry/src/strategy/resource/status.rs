//! What may be said of an allocation, and by whom a claim may be used.

use meta::{FieldError, names};
use serde_json::Value;

use super::fields::{self, list, text};
use super::{Object, claim, part};

/// Most users of a claim.
const RESERVED_FOR_MAX: usize = 256;
/// Most devices of an allocation.
const RESULTS_MAX: usize = 32;
/// Most conditions that a device has to meet, or must not.
const BINDING_CONDITIONS_MAX: usize = 4;
/// Most addresses of a network device.
const IPS_MAX: usize = 16;
/// Most bytes of a driver's data about a device.
const DATA_BYTES_MAX: usize = 10 * 1024;

fn device_of(value: &Value) -> [&str; 3] {
    [text(&value["driver"]), text(&value["pool"]), text(&value["device"])]
}

fn results(status: &Value) -> &[Value] {
    list(&status["allocation"]["devices"]["results"])
}

/// Drops what drivers said about devices that are allocated no longer.
pub(super) fn drop_deallocated(new: &mut Object, old: &Object) {
    let now: Vec<[String; 3]> =
        results(part(new, "status")).iter().map(|r| device_of(r).map(str::to_owned)).collect();
    let gone: Vec<[&str; 3]> = results(part(old, "status")).iter().map(device_of).collect();
    let gone = |device: &Value| {
        let id = device_of(device);
        gone.contains(&id) && !now.iter().any(|kept| kept.each_ref().map(String::as_str) == id)
    };
    let Some(status) = new.get_mut("status").and_then(Value::as_object_mut) else { return };
    if let Some(devices) = status.get_mut("devices").and_then(Value::as_array_mut) {
        devices.retain(|device| !gone(device));
        if devices.is_empty() {
            status.remove("devices");
        }
    }
}

/// Every rule that a new status breaks.
pub(super) fn check(new: &Object, old: &Object) -> Vec<FieldError> {
    let (status, before) = (part(new, "status"), part(old, "status"));
    let mut errors = reservations(new, status, before);
    errors.extend(devices(status));
    let (allocation, had) = (&status["allocation"], &before["allocation"]);
    match (allocation.is_null(), had.is_null()) {
        (false, false) if allocation != had => {
            errors.push(FieldError::invalid("status.allocation", allocation, "field is immutable"));
        }
        (false, true) => {
            let names = claim::request_names(&part(new, "spec")["devices"]);
            errors.extend(check_allocation(allocation, &names));
        }
        _ => {}
    }
    errors
}

fn reservations(new: &Object, status: &Value, before: &Value) -> Vec<FieldError> {
    let users = list(&status["reservedFor"]);
    let at = "status.reservedFor";
    if let Some(error) = FieldError::too_many(at, users.len(), RESERVED_FOR_MAX) {
        return vec![error];
    }
    let (mut errors, mut seen) = (Vec::new(), Vec::new());
    for (i, user) in users.iter().enumerate() {
        for field in ["resource", "name", "uid"] {
            if text(&user[field]).is_empty() {
                errors.push(FieldError::required(format!("{at}[{i}].{field}"), ""));
            }
        }
        if seen.contains(&text(&user["uid"])) {
            errors.push(FieldError::duplicate(format!("{at}[{i}]"), &user["uid"]));
        }
        seen.push(text(&user["uid"]));
    }
    let known = list(&before["reservedFor"]);
    let deleted = part(new, "metadata")["deletionTimestamp"].is_string();
    if !users.is_empty() && status["allocation"].is_null() {
        errors.push(FieldError::forbidden(at, "may not be specified when `allocated` is not set"));
    } else if deleted && users.iter().any(|user| !known.contains(user)) {
        let why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
        errors.push(FieldError::forbidden(at, why));
    }
    errors
}

fn check_allocation(allocation: &Value, names: &[String]) -> Vec<FieldError> {
    let (mut errors, at) = (Vec::new(), "status.allocation.devices");
    let all = list(&allocation["devices"]["results"]);
    if let Some(error) = FieldError::too_many(format!("{at}.results"), all.len(), RESULTS_MAX) {
        return vec![error];
    }
    for (i, result) in all.iter().enumerate() {
        let at = format!("{at}.results[{i}]");
        errors.extend(claim::reference(&result["request"], &format!("{at}.request"), names));
        errors.extend(fields::driver(&result["driver"], &format!("{at}.driver")));
        errors.extend(pool_name(&result["pool"], &format!("{at}.pool")));
        errors.extend(fields::name(&result["device"], &format!("{at}.device"), names::label_problem));
        errors.extend(binding_conditions(result, &at));
        errors.extend(fields::tolerations(&result["tolerations"], &format!("{at}.tolerations")));
    }
    for (i, config) in list(&allocation["devices"]["config"]).iter().enumerate() {
        let at = format!("{at}.config[{i}]");
        let source = &config["source"];
        errors.extend(match text(source) {
            "" => Some(FieldError::required(format!("{at}.source"), "")),
            "FromClaim" | "FromClass" => None,
            _ => Some(FieldError::not_supported(format!("{at}.source"), source, &["FromClaim", "FromClass"])),
        });
        for (j, request) in list(&config["requests"]).iter().enumerate() {
            errors.extend(claim::reference(request, &format!("{at}.requests[{j}]"), names));
        }
        errors.extend(fields::opaque(config, &at));
    }
    errors
}

/// A pool's name: parts of a domain each, between slashes.
pub(super) fn pool_name(value: &Value, at: &str) -> Option<FieldError> {
    const POOL_MAX: usize = 253;
    let name = text(value);
    if name.is_empty() {
        return Some(FieldError::required(at, ""));
    }
    if name.len() > POOL_MAX {
        return Some(FieldError::too_long(at, POOL_MAX));
    }
    name.split('/').find_map(|part| {
        names::subdomain_problem(part).map(|why| FieldError::invalid(at, &part.into(), &why))
    })
}

/// Conditions that a device has to meet before a pod is bound, and those that say it never will.
pub(super) fn binding_conditions(value: &Value, at: &str) -> Vec<FieldError> {
    let (wanted, failed) = (list(&value["bindingConditions"]), list(&value["bindingFailureConditions"]));
    let mut errors = Vec::new();
    for (field, conditions) in [("bindingConditions", wanted), ("bindingFailureConditions", failed)] {
        let at = format!("{at}.{field}");
        errors.extend(FieldError::too_many(&at, conditions.len(), BINDING_CONDITIONS_MAX));
        for (i, condition) in conditions.iter().enumerate() {
            let why = names::qualified_name_problem(text(condition));
            errors.extend(why.map(|why| FieldError::invalid(format!("{at}[{i}]"), condition, &why)));
        }
    }
    if wanted.is_empty() != failed.is_empty() {
        let (missing, why) = match wanted.is_empty() {
            true => ("bindingConditions", "bindingConditions are required to use bindingFailureConditions"),
            false => {
                ("bindingFailureConditions", "bindingFailureConditions are required to use bindingConditions")
            }
        };
        errors.push(FieldError::invalid(format!("{at}.{missing}"), &Value::Array(Vec::new()), why));
    }
    errors
}

/// What drivers say about allocated devices.
fn devices(status: &Value) -> Vec<FieldError> {
    let allocated: Vec<[&str; 3]> = results(status).iter().map(device_of).collect();
    let (mut errors, mut seen) = (Vec::new(), Vec::new());
    for (i, device) in list(&status["devices"]).iter().enumerate() {
        let at = format!("status.devices[{i}]");
        let id = device_of(device);
        if !allocated.contains(&id) {
            let why = "must be an allocated device in the claim";
            errors.push(FieldError::invalid(&at, &id.join("/").into(), why));
        }
        let own = (id, text(&device["shareID"]));
        if seen.contains(&own) {
            errors.push(FieldError::duplicate(&at, &id.join("/").into()));
        }
        seen.push(own);
        if device["data"].to_string().len() > DATA_BYTES_MAX {
            errors.push(FieldError::too_long(format!("{at}.data"), DATA_BYTES_MAX));
        }
        let ips = list(&device["networkData"]["ips"]);
        errors.extend(FieldError::too_many(format!("{at}.networkData.ips"), ips.len(), IPS_MAX));
        for (j, ip) in ips.iter().enumerate() {
            let valid = text(ip).split_once('/').is_some_and(|(address, bits)| {
                address.parse::<std::net::IpAddr>().is_ok_and(|address| {
                    bits.parse::<u8>().is_ok_and(|bits| bits <= if address.is_ipv4() { 32 } else { 128 })
                })
            });
            if !valid {
                let why = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
                errors.push(FieldError::invalid(format!("{at}.networkData.ips[{j}]"), ip, why));
            }
        }
    }
    errors
}
