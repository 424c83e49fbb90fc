//! Certificate requests and trust bundles: who asks is what the server saw, and nobody changes what was asked.

use certificate::signer::{self, USAGES};
use meta::{FieldError, Status};
use serde_json::{Value, json};

use super::{Context, Object, Strategy, child, set_default};
use crate::allocate::Reservation;
use crate::write::meta_text;

/// Shortest life that a request may ask for, in seconds.
const SECONDS_MIN: i64 = 600;
/// Longest domain of a signer's name, and its longest whole.
const SIGNER_DOMAIN_MAX: usize = 253;
const SIGNER_MAX: usize = SIGNER_DOMAIN_MAX + 253 + 63 + 2;
/// Longest life that a pod's certificate may have by default, and the limits of what may be asked.
const POD_SECONDS_DEFAULT: i64 = 86_400;
const POD_SECONDS: std::ops::RangeInclusive<i64> = 3_600..=91 * 86_400;

/// What is wrong with a signer's name.
fn signer_name(path: &str, value: &Value) -> Vec<FieldError> {
    let name = value.as_str().unwrap_or_default();
    if name.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, rest] = parts.as_slice() else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return vec![FieldError::invalid(path, value, why)];
    };
    let mut errors = Vec::new();
    if domain.len() > SIGNER_DOMAIN_MAX {
        errors.push(FieldError::too_long(path, SIGNER_DOMAIN_MAX));
    }
    let labels: Vec<&str> = domain.split('.').collect();
    for label in &labels {
        if let Some(problem) = meta::names::label_problem(label) {
            let why = format!("validating label {label:?}: {problem}");
            errors.push(FieldError::invalid(path, &(*domain).into(), &why));
        }
    }
    if labels.len() < 2 {
        let why = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(path, &(*domain).into(), why));
    }
    for label in rest.split('.') {
        if let Some(problem) = meta::names::subdomain_problem(label) {
            let why = format!("validating label {label:?}: {problem}");
            errors.push(FieldError::invalid(path, &(*rest).into(), &why));
        }
    }
    if name.len() > SIGNER_MAX {
        errors.push(FieldError::too_long(path, SIGNER_MAX));
    }
    errors
}

fn conditions(object: &Object) -> Vec<Value> {
    object.get("status").and_then(|s| s["conditions"].as_array().cloned()).unwrap_or_default()
}

fn text<'a>(object: &'a Object, part: &str, key: &str) -> &'a str {
    object.get(part).and_then(|p| p.get(key)).and_then(Value::as_str).unwrap_or_default()
}

/// What is wrong with conditions: `exclusive` ones are true if they are there, and never together.
fn conditions_problems(object: &Object, exclusive: &[&str], always_true: &[&str]) -> Vec<FieldError> {
    let (mut errors, mut seen) = (Vec::new(), Vec::new());
    for (i, condition) in conditions(object).into_iter().enumerate() {
        let at = |field: &str| format!("status.conditions[{i}].{field}");
        let kind = condition["type"].as_str().unwrap_or_default().to_owned();
        if kind.is_empty() {
            errors.push(FieldError::required(at("type"), ""));
        }
        let allowed: &[&str] =
            if always_true.contains(&&*kind) { &["True"] } else { &["False", "True", "Unknown"] };
        match condition["status"].as_str().unwrap_or_default() {
            "" => errors.push(FieldError::required(at("status"), "")),
            status if !allowed.contains(&status) => {
                errors.push(FieldError::not_supported(at("status"), &condition["status"], allowed));
            }
            _ => {}
        }
        let other = seen.iter().find(|s: &&String| exclusive.contains(&s.as_str()) && **s != kind);
        if exclusive.contains(&&*kind) && other.is_some() {
            let why = format!("{} conditions are mutually exclusive", exclusive.join(" and "));
            errors.push(FieldError::invalid(at("type"), &kind.as_str().into(), &why));
        }
        if seen.contains(&kind) {
            errors.push(FieldError::duplicate(at("type"), &kind.as_str().into()));
        }
        seen.push(kind);
    }
    errors
}

/// Strategy of CertificateSigningRequests.
pub struct SigningRequest;

const APPROVAL: [&str; 2] = ["Approved", "Denied"];
const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];

impl SigningRequest {
    fn of_kind(object: &Object, kind: &str) -> Vec<Value> {
        conditions(object).into_iter().filter(|c| c["type"] == kind).collect()
    }
}

impl Strategy for SigningRequest {
    fn default(&self, object: &mut Object) {
        if let Some(list) = object.get_mut("status").and_then(|s| s["conditions"].as_array_mut()) {
            for condition in list.iter_mut().filter_map(Value::as_object_mut) {
                set_default(condition, "status", "True");
            }
        }
    }

    fn prepare_create(
        &self,
        context: &Context<'_>,
        object: &mut Object,
    ) -> Result<Option<Reservation>, Status> {
        let spec = child(object, "spec");
        let user = serde_json::to_value(context.user).unwrap_or_default();
        for member in ["username", "uid", "groups", "extra"] {
            spec.remove(member);
            match user.get(member) {
                None | Some(Value::Null) => {}
                Some(Value::String(s)) if s.is_empty() => {}
                Some(Value::Array(a)) if a.is_empty() => {}
                Some(Value::Object(o)) if o.is_empty() => {}
                Some(value) => drop(spec.insert(member.into(), value.clone())),
            }
        }
        object.remove("status");
        Ok(None)
    }

    fn prepare_update(
        &self,
        context: &Context<'_>,
        subresource: &str,
        new: &mut Object,
        old: &Object,
    ) -> Result<Option<Reservation>, Status> {
        if let Some(spec) = old.get("spec") {
            new.insert("spec".into(), spec.clone());
        }
        match subresource {
            "approval" => {
                // Only conditions come through `approval`.
                let decided = conditions(new);
                let status = old.get("status").cloned().unwrap_or_else(|| json!({}));
                new.insert("status".into(), status);
                child(new, "status").insert("conditions".into(), Value::Array(decided));
            }
            "status" => {
                // Decisions that a client of `status` has not seen are kept; others are validation's business.
                let mut all = conditions(new);
                let unseen: Vec<Value> = (APPROVAL.iter())
                    .filter(|kind| Self::of_kind(new, kind).is_empty())
                    .flat_map(|kind| Self::of_kind(old, kind))
                    .collect();
                all.splice(0..0, unseen);
                if !all.is_empty() {
                    child(new, "status").insert("conditions".into(), Value::Array(all));
                }
            }
            _ => return Ok(None),
        }
        let now = schema::time::seconds(context.now);
        let before = conditions(old);
        let list = new.get_mut("status").and_then(|s| s["conditions"].as_array_mut());
        for condition in list.into_iter().flatten().filter_map(Value::as_object_mut) {
            let was = before.iter().find(|c| Some(&c["type"]) == condition.get("type"));
            set_default(condition, "lastUpdateTime", now.as_str());
            if !condition.get("lastTransitionTime").is_some_and(Value::is_string) {
                let same = was.filter(|w| Some(&w["status"]) == condition.get("status"));
                let since = same.and_then(|w| w["lastTransitionTime"].as_str()).unwrap_or(&now);
                condition.insert("lastTransitionTime".into(), since.into());
            }
        }
        Ok(None)
    }

    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        let spec = object.get("spec").cloned().unwrap_or_default();
        let mut errors = Vec::new();
        let request = spec["request"].as_str().unwrap_or_default();
        if !request.is_empty()
            && let Err(problem) = certificate::Request::from_base64(request)
        {
            errors.push(FieldError::invalid("spec.request", &spec["request"], &problem.to_string()));
        }
        let usages = spec["usages"].as_array().map_or(&[][..], Vec::as_slice);
        for (i, usage) in usages.iter().enumerate() {
            if !usage.as_str().is_some_and(|u| USAGES.contains(&u)) {
                errors.push(FieldError::not_supported(format!("spec.usages[{i}]"), usage, &USAGES));
            }
            if usages.get(..i).is_some_and(|before| before.contains(usage)) {
                errors.push(FieldError::duplicate(format!("spec.usages[{i}]"), usage));
            }
        }
        if spec["signerName"] == signer::LEGACY_UNKNOWN {
            let why = "the legacy signerName is not allowed via this API version";
            errors.push(FieldError::invalid("spec.signerName", &spec["signerName"], why));
        } else {
            errors.extend(signer_name("spec.signerName", &spec["signerName"]));
        }
        if spec["expirationSeconds"].as_i64().is_some_and(|s| s < SECONDS_MIN) {
            let why = format!("may not specify a duration less than {SECONDS_MIN} seconds (10 minutes)");
            errors.push(FieldError::invalid("spec.expirationSeconds", &spec["expirationSeconds"], &why));
        }
        errors.extend(conditions_problems(object, &APPROVAL, &FINAL));
        errors
    }

    fn validate_update(&self, subresource: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        if subresource.is_empty() { Vec::new() } else { changed(subresource, new, old) }
    }

    fn validate_status(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = conditions_problems(new, &APPROVAL, &FINAL);
        errors.extend(changed("status", new, old));
        if let Some(problem) = certificate::chain_problem(text(new, "status", "certificate")) {
            let shown = "<certificate data>".into();
            errors.push(FieldError::invalid("status.certificate", &shown, &problem));
        }
        errors
    }

    fn name_problem(&self, name: &str) -> Option<String> {
        meta::names::path_segment_problem(name)
    }
}

/// What a subresource of a request may not change.
fn changed(subresource: &str, new: &Object, old: &Object) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut refuse = |what: &str, kind: &str| {
        let why = format!("updates may not {what} a condition of type {kind:?}");
        errors.push(FieldError::forbidden("status.conditions", &why));
    };
    for kind in FINAL {
        let (now, before) = (SigningRequest::of_kind(new, kind), SigningRequest::of_kind(old, kind));
        if now.len() < before.len() {
            refuse("remove", kind);
        } else if subresource == "status" && APPROVAL.contains(&kind) {
            if now.len() > before.len() {
                refuse("add", kind);
            } else if now != before {
                refuse("modify", kind);
            }
        }
    }
    let certificate = |o: &Object| text(o, "status", "certificate").to_owned();
    let (now, before) = (certificate(new), certificate(old));
    if now != before {
        let problem = match subresource {
            "status" if before.is_empty() => return errors,
            "status" => "updates may not modify existing certificate content",
            _ => "updates may not set certificate content",
        };
        errors.push(FieldError::forbidden("status.certificate", problem));
    }
    errors
}

/// Strategy of ClusterTrustBundles.
pub struct TrustBundle;

impl Strategy for TrustBundle {
    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        let spec = object.get("spec").cloned().unwrap_or_default();
        let (name, mut errors) = (meta_text(object, "name"), Vec::new());
        match spec["signerName"].as_str().unwrap_or_default() {
            "" => {
                if name.contains(':') {
                    let why = "ClusterTrustBundle without signer name must not have \":\" in its name";
                    errors.push(FieldError::invalid("metadata.name", &name.into(), why));
                }
            }
            signer => {
                errors.extend(signer_name("spec.signerName", &spec["signerName"]));
                let prefix = format!("{}:", signer.replace('/', ":"));
                if !name.starts_with(&prefix) {
                    let why = format!(
                        "ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}"
                    );
                    errors.push(FieldError::invalid("metadata.name", &name.into(), &why));
                }
            }
        }
        if let Some(problem) =
            certificate::trust_bundle_problem(spec["trustBundle"].as_str().unwrap_or_default())
        {
            let shown = "<value omitted>".into();
            errors.push(FieldError::invalid("spec.trustBundle", &shown, &problem));
        }
        errors
    }

    fn name_problem(&self, name: &str) -> Option<String> {
        // `domain:path:name`: a bundle of a signer has colons where the signer's name has a slash.
        let last = name.rsplit(':').next().unwrap_or(name);
        meta::names::subdomain_problem(last).or_else(|| meta::names::path_segment_problem(name))
    }
}

/// Strategy of PodCertificateRequests.
pub struct PodRequest;

const OUTCOMES: [&str; 3] = ["Issued", "Denied", "Failed"];

impl Strategy for PodRequest {
    fn default(&self, object: &mut Object) {
        set_default(child(object, "spec"), "maxExpirationSeconds", POD_SECONDS_DEFAULT);
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Object) -> Result<Option<Reservation>, Status> {
        object.remove("status");
        Ok(None)
    }

    fn validate_also(&self, object: &Object) -> Vec<FieldError> {
        let spec = object.get("spec").cloned().unwrap_or_default();
        let mut errors = signer_name("spec.signerName", &spec["signerName"]);
        let asked = &spec["maxExpirationSeconds"];
        let seconds = asked.as_i64().unwrap_or(0);
        if seconds < *POD_SECONDS.start() {
            let why = format!("must be greater than or equal to {}", POD_SECONDS.start());
            errors.push(FieldError::invalid("spec.maxExpirationSeconds", asked, &why));
        } else if seconds > *POD_SECONDS.end() {
            let why = format!("must be less than or equal to {}", POD_SECONDS.end());
            errors.push(FieldError::invalid("spec.maxExpirationSeconds", asked, &why));
        }
        errors
    }

    fn validate_status(&self, new: &Object, old: &Object) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let outcomes: Vec<(usize, Value)> = (conditions(new).into_iter().enumerate())
            .filter(|(_, c)| c["type"].as_str().is_some_and(|t| OUTCOMES.contains(&t)))
            .collect();
        for (i, condition) in &outcomes {
            if condition["status"] != "True" {
                let path = format!("status.conditions[{i}].status");
                errors.push(FieldError::not_supported(path, &condition["status"], &["True"]));
            }
        }
        if let Some((i, second)) = outcomes.get(1) {
            let why = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            errors.push(FieldError::invalid(format!("status.conditions[{i}].type"), &second["type"], why));
        }
        if conditions(old).iter().any(|c| c["type"].as_str().is_some_and(|t| OUTCOMES.contains(&t)))
            && new.get("status") != old.get("status")
        {
            errors.push(FieldError::invalid("status", &"".into(), "field is immutable"));
        }
        let issued = outcomes.iter().any(|(_, c)| c["type"] == "Issued");
        if !issued && !text(new, "status", "certificateChain").is_empty() {
            let why = "certificateChain may be set only when an Issued condition is present";
            errors.push(FieldError::forbidden("status.certificateChain", why));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }

    #[test]
    fn names_of_signers() {
        for (name, problems) in [
            ("example.com/signer", 0),
            ("kubernetes.io/kube-apiserver-client", 0),
            ("example.com", 1),
            ("a.b/c/d", 1),
            ("com/signer", 1),
            ("Example.com/x", 1),
            ("example.com/X", 1),
            ("", 1),
        ] {
            assert_eq!(signer_name("spec.signerName", &name.into()).len(), problems, "{name}");
        }
    }

    #[test]
    fn what_subresources_may_change() {
        let with = |kinds: &[&str], certificate: &str| {
            let list: Vec<Value> = kinds.iter().map(|k| json!({"type": k, "status": "True"})).collect();
            let value = json!({"status": {"conditions": list, "certificate": certificate}});
            value.as_object().cloned().unwrap_or_default()
        };
        for (subresource, old, new, expected) in [
            ("approval", with(&[], ""), with(&["Approved"], ""), None),
            (
                "approval",
                with(&["Approved"], ""),
                with(&[], ""),
                Some("remove a condition of type \"Approved\""),
            ),
            ("status", with(&[], ""), with(&["Approved"], ""), Some("add a condition of type \"Approved\"")),
            ("status", with(&["Failed"], ""), with(&[], ""), Some("remove a condition of type \"Failed\"")),
            ("status", with(&["Approved"], ""), with(&["Approved", "Failed"], ""), None),
            ("status", with(&[], ""), with(&[], "x"), None),
            ("status", with(&[], "x"), with(&[], "y"), Some("modify existing certificate content")),
            ("approval", with(&[], ""), with(&[], "y"), Some("set certificate content")),
        ] {
            let errors = messages(&changed(subresource, &new, &old));
            match expected {
                None => assert!(errors.is_empty(), "{errors:?}"),
                Some(part) => assert!(errors.len() == 1 && errors[0].contains(part), "{errors:?}"),
            }
        }
        let both = conditions_problems(&with(&["Approved", "Denied"], ""), &APPROVAL, &FINAL);
        assert!(messages(&both)[0].contains("Approved and Denied conditions are mutually exclusive"));
    }
}
