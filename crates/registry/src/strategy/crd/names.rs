//! Rules of a definition outside its schemas: names, versions, conversion, subresources, columns.

use meta::{FieldError, names};
use serde_json::{Value, json};

use super::super::{Object, text};
use super::{approval, is_protected_group, is_true, schema, versions};
use crate::write::meta_text;

/// Types a printer column may have.
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
/// Formats a printer column may have.
const COLUMN_FORMATS: [&str; 9] =
    ["byte", "date", "date-time", "double", "float", "int32", "int64", "password", "uuid"];
/// Most selectable fields of a version.
const SELECTABLE_MAX: usize = 8;
/// Longest deprecation warning.
const WARNING_MAX: usize = 256;

fn at<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// The name of a definition follows from what it defines.
pub fn object_name(crd: &Object) -> Vec<FieldError> {
    let spec = crd.get("spec").cloned().unwrap_or_default();
    let wanted = format!("{}.{}", at(&spec, "/names/plural"), at(&spec, "/group"));
    let name = meta_text(crd, "name");
    if name == wanted {
        return Vec::new();
    }
    vec![FieldError::invalid("metadata.name", &name.into(), "must be spec.names.plural+\".\"+spec.group")]
}

/// Rules for `spec`.
pub fn spec(crd: &Object, old: Option<&Object>) -> Vec<FieldError> {
    let spec = crd.get("spec").cloned().unwrap_or_default();
    let mut errors = group_and_scope(&spec);
    if spec["preserveUnknownFields"] == true && old.is_none_or(|o| o["spec"]["preserveUnknownFields"] != true)
    {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", &true.into(), why));
    }
    for (i, version) in versions(crd).enumerate() {
        if !version["schema"]["openAPIV3Schema"].is_object() {
            errors.push(FieldError::required(format!("spec.versions[{i}].schema.openAPIV3Schema"), ""));
        }
    }
    let all = json!(versions(crd).map(|v| v["name"].clone()).collect::<Vec<_>>());
    let hoisted = Hoisted::of(crd);
    for (i, version) in versions(crd).enumerate() {
        let here = format!("spec.versions[{i}]");
        errors.extend(version_rules(version, &here));
        if i == 0 || !hoisted.schema {
            let path = if hoisted.schema { "spec.validation".to_owned() } else { format!("{here}.schema") };
            let found = &version["schema"]["openAPIV3Schema"];
            let unchanged = old.is_some_and(|o| {
                versions(o).any(|v| v["name"] == version["name"] && v["schema"]["openAPIV3Schema"] == *found)
            });
            errors.extend(schema::validate(found, version, &path, unchanged));
        }
        if i == 0 || !hoisted.subresources {
            let path = if hoisted.subresources {
                "spec.subresources".to_owned()
            } else {
                format!("{here}.subresources")
            };
            errors.extend(scale(&version["subresources"]["scale"], &format!("{path}.scale")));
        }
        if i == 0 || !hoisted.columns {
            let path = if hoisted.columns {
                "spec.additionalPrinterColumns".to_owned()
            } else {
                format!("{here}.additionalPrinterColumns")
            };
            errors.extend(columns(&version["additionalPrinterColumns"], &path));
        }
        if i == 0 || !hoisted.selectable {
            let path = if hoisted.selectable {
                "spec.selectableFields".to_owned()
            } else {
                format!("{here}.selectableFields")
            };
            errors.extend(selectable(version, &path));
        }
    }
    let mut seen: Vec<&str> = versions(crd).map(|v| at(v, "/name")).collect();
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    if seen.len() != count {
        errors.push(FieldError::invalid("spec.versions", &all, "must contain unique version names"));
    }
    if versions(crd).filter(|v| v["storage"] == true).count() != 1 {
        errors.push(FieldError::invalid(
            "spec.versions",
            &all,
            "must have exactly one version marked as storage version",
        ));
    }
    errors.extend(naming(&spec["names"], "spec.names"));
    errors.extend(conversion(&spec["conversion"]));
    errors
}

/// What all versions share is judged once, and errors name the place where older clients see it.
struct Hoisted {
    schema: bool,
    subresources: bool,
    columns: bool,
    selectable: bool,
}

impl Hoisted {
    fn of(crd: &Object) -> Hoisted {
        let same = |key: &str| {
            let first = versions(crd).next().map(|v| &v[key]);
            versions(crd).all(|v| Some(&v[key]) == first)
        };
        Hoisted {
            schema: same("schema"),
            subresources: same("subresources"),
            columns: same("additionalPrinterColumns"),
            selectable: same("selectableFields"),
        }
    }
}

fn group_and_scope(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let group = at(spec, "/group");
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if let Some(problem) = names::subdomain_problem(group) {
        errors.push(FieldError::invalid("spec.group", &group.into(), &problem));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid(
            "spec.group",
            &group.into(),
            "should be a domain with at least one dot",
        ));
    }
    match at(spec, "/scope") {
        "" => errors.push(FieldError::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        other => {
            errors.push(FieldError::not_supported("spec.scope", &other.into(), &["Cluster", "Namespaced"]))
        }
    }
    errors
}

fn version_rules(version: &Value, here: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(problem) = names::label_1035_problem(at(version, "/name")) {
        errors.push(FieldError::invalid(format!("{here}.name"), &version["name"], &problem));
    }
    if let Some(warning) = version["deprecationWarning"].as_str() {
        let path = format!("{here}.deprecationWarning");
        let mut wrong = |why: &str| errors.push(FieldError::invalid(path.clone(), &warning.into(), why));
        if version["deprecated"] != true {
            wrong("can only be set for deprecated versions");
        } else if warning.len() > WARNING_MAX {
            wrong("must be <= 256 characters long");
        } else if warning.is_empty() {
            wrong("must not be an empty string");
        } else if let Some(i) = warning.char_indices().find(|(_, c)| c.is_control()).map(|(i, _)| i) {
            wrong(&format!(
                "must only contain printable UTF-8 characters; non-printable character found at index {i}"
            ));
        }
    }
    errors
}

fn naming(found: &Value, here: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for key in ["plural", "singular", "kind", "listKind"] {
        let (value, path) = (at(found, &format!("/{key}")), format!("{here}.{key}"));
        let mixed = matches!(key, "kind" | "listKind");
        if value.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else if let Some(problem) =
            names::label_1035_problem(&if mixed { value.to_lowercase() } else { value.to_owned() })
        {
            let why = if mixed {
                format!("may have mixed case, but should otherwise match: {problem}")
            } else {
                problem
            };
            errors.push(FieldError::invalid(path, &value.into(), &why));
        }
    }
    for key in ["shortNames", "categories"] {
        for (i, name) in found[key].as_array().into_iter().flatten().enumerate() {
            if let Some(problem) = names::label_1035_problem(name.as_str().unwrap_or_default()) {
                errors.push(FieldError::invalid(format!("{here}.{key}[{i}]"), name, &problem));
            }
        }
    }
    if !at(found, "/kind").is_empty() && at(found, "/kind") == at(found, "/listKind") {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(format!("{here}.listKind"), &found["listKind"], why));
    }
    errors
}

fn conversion(found: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let here = "spec.conversion";
    let webhook = &found["webhook"];
    let accepted = webhook["conversionReviewVersions"].as_array().cloned().unwrap_or_default();
    match at(found, "/strategy") {
        "Webhook" => {
            client_config(&webhook["clientConfig"], &format!("{here}.webhookClientConfig"), &mut errors);
            let path = format!("{here}.conversionReviewVersions");
            if accepted.is_empty() {
                errors.push(FieldError::required(path.clone(), ""));
            } else if !accepted.iter().any(|v| v == "v1" || v == "v1beta1") {
                let why = "must include at least one of v1, v1beta1";
                errors.push(FieldError::invalid(path.clone(), &json!(accepted), why));
            }
            for (i, version) in accepted.iter().enumerate() {
                if accepted[..i].contains(version) {
                    errors.push(FieldError::invalid(format!("{path}[{i}]"), version, "duplicate version"));
                } else if let Some(problem) = names::label_1035_problem(version.as_str().unwrap_or_default())
                {
                    errors.push(FieldError::invalid(format!("{path}[{i}]"), version, &problem));
                }
            }
        }
        "None" => {
            if webhook["clientConfig"].is_object() {
                let why = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden(format!("{here}.webhookClientConfig"), why));
            }
            if !accepted.is_empty() {
                let why = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden(format!("{here}.conversionReviewVersions"), why));
            }
        }
        "" => errors.push(FieldError::required(format!("{here}.strategy"), "")),
        other => {
            errors.push(FieldError::not_supported(
                format!("{here}.strategy"),
                &other.into(),
                &["None", "Webhook"],
            ));
        }
    }
    errors
}

fn client_config(config: &Value, here: &str, errors: &mut Vec<FieldError>) {
    if !config.is_object() {
        errors.push(FieldError::required(here, "required when strategy is set to Webhook"));
        return;
    }
    match (config["url"].as_str(), config["service"].is_object()) {
        (Some(url), false) => {
            let path = format!("{here}.url");
            let why = match url.split_once("://") {
                None => Some("url must be a valid URL: scheme is missing".to_owned()),
                Some((scheme, _)) if scheme != "https" => Some(format!(
                    "'https' is the only allowed URL scheme; desired format: https://host[/path], got {scheme:?}"
                )),
                Some((_, rest)) if rest.starts_with('/') || rest.is_empty() => {
                    Some("host must be specified; desired format: https://host[/path]".to_owned())
                }
                Some((_, rest)) if rest.contains('#') => {
                    Some("fragments are not permitted in the URL".to_owned())
                }
                Some((_, rest)) if rest.contains('?') => {
                    Some("query parameters are not permitted in the URL".to_owned())
                }
                Some((_, rest)) if rest.split('/').next().unwrap_or_default().contains('@') => {
                    Some("user information is not permitted in the URL".to_owned())
                }
                _ => None,
            };
            errors.extend(why.map(|why| FieldError::invalid(path, &url.into(), &why)));
        }
        (None, true) => {
            let service = &config["service"];
            for key in ["name", "namespace"] {
                if at(service, &format!("/{key}")).is_empty() {
                    let why = format!("service {key} is required");
                    errors.push(FieldError::required(format!("{here}.service.{key}"), &why));
                }
            }
            let port = service["port"].as_i64().unwrap_or(443);
            if !(1..=65_535).contains(&port) {
                let why = "port is not valid: must be between 1 and 65535, inclusive";
                errors.push(FieldError::invalid(format!("{here}.service.port"), &port.into(), why));
            }
            if let Some(path) = service["path"].as_str().filter(|p| !p.starts_with('/')) {
                let why = "must start with a '/'";
                errors.push(FieldError::invalid(format!("{here}.service.path"), &path.into(), why));
            }
        }
        _ => errors.push(FieldError::required(here, "exactly one of url or service is required")),
    }
}

fn simple_path(path: &str, here: String, roots: &[&str], errors: &mut Vec<FieldError>) {
    if !path.starts_with('.') {
        errors.push(FieldError::invalid(here, &path.into(), "must be a simple json path starting with ."));
    } else if !roots.is_empty() && !roots.iter().any(|r| path.starts_with(&format!(".{r}."))) {
        let why = match roots {
            [one] => format!("should be a json path under .{one}"),
            _ => "should be a json path under either .spec or .status".to_owned(),
        };
        errors.push(FieldError::invalid(here, &path.into(), &why));
    }
}

fn scale(found: &Value, here: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !found.is_object() {
        return errors;
    }
    for (key, root) in [("specReplicasPath", "spec"), ("statusReplicasPath", "status")] {
        match at(found, &format!("/{key}")) {
            "" => errors.push(FieldError::required(format!("{here}.{key}"), "")),
            path => simple_path(path, format!("{here}.{key}"), &[root], &mut errors),
        }
    }
    match at(found, "/labelSelectorPath") {
        "" => {}
        path => simple_path(path, format!("{here}.labelSelectorPath"), &["spec", "status"], &mut errors),
    }
    errors
}

fn columns(found: &Value, here: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, column) in found.as_array().into_iter().flatten().enumerate() {
        let here = format!("{here}[{i}]");
        if at(column, "/name").is_empty() {
            errors.push(FieldError::required(format!("{here}.name"), ""));
        }
        let types = format!("must be one of {}", COLUMN_TYPES.join(","));
        match at(column, "/type") {
            "" => errors.push(FieldError::required(format!("{here}.type"), &types)),
            ty if !COLUMN_TYPES.contains(&ty) => {
                errors.push(FieldError::invalid(format!("{here}.type"), &ty.into(), &types));
            }
            _ => {}
        }
        let format = at(column, "/format");
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            let why = format!("must be one of {}", COLUMN_FORMATS.join(","));
            errors.push(FieldError::invalid(format!("{here}.format"), &format.into(), &why));
        }
        match at(column, "/jsonPath") {
            "" => errors.push(FieldError::required(format!("{here}.JSONPath"), "")),
            path => simple_path(path, format!("{here}.JSONPath"), &[], &mut errors),
        }
    }
    errors
}

fn selectable(version: &Value, here: &str) -> Vec<FieldError> {
    let (mut errors, mut seen) = (Vec::new(), Vec::new());
    for (i, field) in version["selectableFields"].as_array().into_iter().flatten().enumerate() {
        let (path, at_path) = (at(field, "/jsonPath"), format!("{here}[{i}].jsonPath"));
        let mut wrong = |why: &str| errors.push(FieldError::invalid(at_path.clone(), &path.into(), why));
        if path.is_empty() {
            errors.push(FieldError::required(at_path, ""));
            continue;
        }
        let mut found = &version["schema"]["openAPIV3Schema"];
        for part in path.trim_start_matches('.').split('.') {
            found = &found["properties"][part];
        }
        let is_metadata = path.starts_with(".metadata");
        if !path.starts_with('.') || (found.is_null() && !is_metadata) {
            wrong("is an invalid path: does not refer to a valid field");
            continue;
        }
        if is_metadata {
            wrong("must not point to fields in metadata");
        }
        if !matches!(found["type"].as_str(), Some("string" | "boolean" | "integer")) {
            wrong(
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            );
        }
        if seen.contains(&path) {
            errors.push(FieldError::duplicate(at_path, &path.into()));
        } else {
            seen.push(path);
        }
    }
    if seen.len() > SELECTABLE_MAX {
        errors.push(FieldError {
            reason: "FieldValueTooMany",
            field: here.to_owned(),
            message: format!("Too many: {}: must have at most {SELECTABLE_MAX} items", seen.len()),
        });
    }
    errors
}

/// What may not change, and what may not once the definition is established.
pub fn immutable(new: &Object, old: &Object) -> Vec<FieldError> {
    let fixed: &[&str] = if is_true(old, "Established") {
        &["/spec/scope", "/spec/names/kind", "/spec/group", "/spec/names/plural"]
    } else {
        &["/spec/group", "/spec/names/plural"]
    };
    let value = |o: &Object, path: &str| Value::Object(o.clone()).pointer(path).cloned().unwrap_or_default();
    let mut errors = Vec::new();
    for path in fixed {
        let now = value(new, path);
        if now != value(old, path) {
            let field = path.trim_start_matches('/').replace('/', ".");
            errors.push(FieldError::invalid(field, &now, "field is immutable"));
        }
    }
    errors
}

/// A version that objects may be stored in cannot go.
pub fn stored_versions(crd: &Object) -> Vec<FieldError> {
    let stored = crd.get("status").and_then(|s| s.get("storedVersions")).cloned().unwrap_or_default();
    let here = "status.storedVersions";
    let list = stored.as_array().cloned().unwrap_or_default();
    if list.is_empty() {
        return vec![FieldError::invalid(here, &json!([]), "must have at least one stored version")];
    }
    let mut errors = Vec::new();
    if let Some(storage) = versions(crd).find(|v| v["storage"] == true && !list.contains(&v["name"])) {
        let why = format!("must have the storage version {}", at(storage, "/name"));
        errors.push(FieldError::invalid(here, &stored, &why));
    }
    for (i, version) in list.iter().enumerate() {
        if !versions(crd).any(|v| v["name"] == *version) {
            let name = version.as_str().unwrap_or_default();
            let why = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
            );
            errors.push(FieldError::invalid(format!("{here}[{i}]"), version, &why));
        }
    }
    errors
}

/// Groups of the Kubernetes project need an approval; what was there before may stay.
pub fn approval_rules(crd: &Object, old: Option<&Object>) -> Vec<FieldError> {
    let group = crd.get("spec").and_then(Value::as_object).map_or("", |s| text(s, "group"));
    if !is_protected_group(group) {
        return Vec::new();
    }
    let (state, reason) = approval(crd);
    if old.is_some_and(|o| approval(o).0 == state) {
        return Vec::new();
    }
    let path = format!("metadata.annotations[{}]", super::APPROVAL);
    match state {
        "MissingAnnotation" => vec![FieldError::required(path, &reason)],
        "InvalidAnnotation" => {
            let found = crd["metadata"]["annotations"][super::APPROVAL].clone();
            vec![FieldError::invalid(path, &found, &reason)]
        }
        _ => Vec::new(),
    }
}
