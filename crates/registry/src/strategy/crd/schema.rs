//! Rules of a definition's schemas: what OpenAPI v3 allows here, structure, lists, and defaults.

use meta::FieldError;
use schema::structural::{Additional, Props, lists, prune, value};
use serde_json::Value;

use super::{expressions, structural};

/// Types a schema may have.
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// Deepest schema that is looked into; decoding does not let deeper ones in.
const DEPTH_MAX: usize = 100;
/// What the root may say where the status is a subresource, in upstream's names.
const ROOT_FIELDS: [(&str, &str); 22] = [
    ("description", "Description"),
    ("type", "Type"),
    ("format", "Format"),
    ("title", "Title"),
    ("maximum", "Maximum"),
    ("exclusiveMaximum", "ExclusiveMaximum"),
    ("minimum", "Minimum"),
    ("exclusiveMinimum", "ExclusiveMinimum"),
    ("maxLength", "MaxLength"),
    ("minLength", "MinLength"),
    ("pattern", "Pattern"),
    ("maxItems", "MaxItems"),
    ("minItems", "MinItems"),
    ("uniqueItems", "UniqueItems"),
    ("multipleOf", "MultipleOf"),
    ("required", "Required"),
    ("items", "Items"),
    ("properties", "Properties"),
    ("externalDocs", "ExternalDocs"),
    ("example", "Example"),
    ("x-kubernetes-preserve-unknown-fields", "XPreserveUnknownFields"),
    ("x-kubernetes-validations", "XValidations"),
];

/// Every rule that the schema of a version breaks.
pub fn validate(schema: &Value, version: &Value, path: &str, unchanged: bool) -> Vec<FieldError> {
    let Value::Object(root) = schema else { return Vec::new() };
    let here = format!("{path}.openAPIV3Schema");
    let mut errors = Vec::new();
    if version["subresources"]["status"].is_object() {
        if schema["type"].as_str().is_some_and(|t| t != "object") {
            let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
            errors.push(FieldError::invalid(format!("{here}.type"), &schema["type"], why));
        } else if root.keys().any(|k| !ROOT_FIELDS.iter().any(|(name, _)| name == k)) {
            let names: Vec<&str> = ROOT_FIELDS.iter().map(|(_, name)| *name).collect();
            let why = format!(
                "only {} fields are allowed at the root of the schema if the status subresource is enabled",
                format_args!("[{}]", names.join(" "))
            );
            errors.push(FieldError::invalid(here.clone(), schema, &why));
        }
    }
    if schema["nullable"] == true {
        errors.push(FieldError::forbidden(format!("{here}.nullable"), "nullable cannot be true at the root"));
    }
    let props = Props::parse(schema);
    let found = structural::validate(&props, &here);
    if found.is_empty() {
        defaults(&props, &here, false, &mut errors);
    }
    errors.extend(found);
    let context = Context { root: true, meta: false, no_defaults: None, depth: 0 };
    node(schema, &here, &context, &mut errors);
    if errors.is_empty() {
        // Of a schema that is wrong, types cannot be told.
        errors.extend(expressions::validate(schema, &here, unchanged));
    }
    errors
}

/// Where in the tree a schema is.
#[derive(Clone)]
struct Context {
    root: bool,
    /// Inside of the metadata of an object.
    meta: bool,
    /// Why defaults are forbidden here.
    no_defaults: Option<String>,
    depth: usize,
}

fn text<'a>(schema: &'a Value, key: &str) -> &'a str {
    schema[key].as_str().unwrap_or_default()
}

fn node(schema: &Value, path: &str, context: &Context, errors: &mut Vec<FieldError>) {
    if !schema.is_object() || context.depth > DEPTH_MAX {
        return;
    }
    standard(schema, path, context, errors);
    lists_and_maps(schema, path, errors);
    rules(schema, path, errors);
    let inner = Context { root: false, depth: context.depth + 1, ..context.clone() };
    let additional = &schema["additionalProperties"];
    let has_properties = schema["properties"].as_object().is_some_and(|p| !p.is_empty());
    if has_properties && !additional.is_null() && *additional != Value::Bool(true) {
        let why = "additionalProperties and properties are mutual exclusive";
        errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), why));
    }
    let mut below = inner.clone();
    if context.meta {
        below.no_defaults = Some("inside additionalProperties applying to object metadata".into());
    }
    node(additional, &format!("{path}.additionalProperties"), &below, errors);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let mut below = inner.clone();
        let is_meta = matches!(name.as_str(), "metadata" | "kind" | "apiVersion");
        if (context.root || schema["x-kubernetes-embedded-resource"] == true) && is_meta {
            below.meta = true;
            if context.root {
                below.no_defaults = Some(format!("in top-level {name}"));
            }
        }
        node(property, &format!("{path}.properties[{name}]"), &below, errors);
    }
    node(&schema["items"], &format!("{path}.items"), &inner, errors);
    node(&schema["not"], &format!("{path}.not"), &inner, errors);
    for key in ["allOf", "anyOf", "oneOf"] {
        for (i, part) in schema[key].as_array().into_iter().flatten().enumerate() {
            node(part, &format!("{path}.{key}[{i}]"), &inner, errors);
        }
    }
}

fn standard(schema: &Value, path: &str, context: &Context, errors: &mut Vec<FieldError>) {
    let mut forbid =
        |field: &str, why: &str| errors.push(FieldError::forbidden(format!("{path}.{field}"), why));
    if let Some(reason) = context.no_defaults.as_ref().filter(|_| !schema["default"].is_null()) {
        forbid("default", &format!("must not be set {reason}"));
    }
    for field in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        let set = match &schema[field] {
            Value::Null => false,
            Value::Object(map) => field == "dependencies" || field == "additionalItems" || !map.is_empty(),
            _ => true,
        };
        if set {
            forbid(field, &format!("{field} is not supported"));
        }
    }
    if schema["items"].is_array() {
        forbid("items", "items must be a schema object and not an array");
    }
    if schema["uniqueItems"] == true {
        forbid(
            "uniqueItems",
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        );
    }
    if context.meta && schema["x-kubernetes-embedded-resource"] == true {
        forbid("x-kubernetes-embedded-resource", "must not be used inside of resource meta");
    }
    match text(schema, "type") {
        "null" => forbid("type", "type cannot be set to null, use nullable as an alternative"),
        ty if !ty.is_empty() && !TYPES.contains(&ty) => {
            errors.push(FieldError::not_supported(format!("{path}.type"), &ty.into(), &TYPES));
        }
        _ => {}
    }
    if schema["x-kubernetes-preserve-unknown-fields"] == false {
        let field = format!("{path}.x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(field, &false.into(), "must be true or undefined"));
    }
}

fn lists_and_maps(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let ty = text(schema, "type");
    for (key, wanted, allowed) in [
        ("x-kubernetes-map-type", "object", &["atomic", "granular"][..]),
        ("x-kubernetes-list-type", "array", &["atomic", "map", "set"]),
    ] {
        let Some(found) = schema[key].as_str() else { continue };
        let why = format!("must be {wanted} if {key} is specified");
        if ty.is_empty() {
            errors.push(FieldError::required(format!("{path}.type"), &why));
        } else if ty != wanted {
            errors.push(FieldError::invalid(format!("{path}.type"), &ty.into(), &why));
        }
        if !allowed.contains(&found) {
            errors.push(FieldError::not_supported(format!("{path}.{key}"), &found.into(), allowed));
        }
    }
    let items = &schema["items"];
    let list_type = text(schema, "x-kubernetes-list-type");
    let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if list_type == "set" {
        let atomic = "must be atomic as item of a list with x-kubernetes-list-type=set";
        if text(items, "type") == "array" && !matches!(text(items, "x-kubernetes-list-type"), "" | "atomic") {
            let field = format!("{path}.items.x-kubernetes-list-type");
            errors.push(FieldError::invalid(field, &items["x-kubernetes-list-type"], atomic));
        }
        if text(items, "type") == "object" && text(items, "x-kubernetes-map-type") != "atomic" {
            let field = format!("{path}.items.x-kubernetes-map-type");
            errors.push(FieldError::invalid(field, &items["x-kubernetes-map-type"], atomic));
        }
    }
    if !keys.is_empty() && list_type != "map" {
        let (field, why) = (
            format!("{path}.x-kubernetes-list-type"),
            "must be map if x-kubernetes-list-map-keys is non-empty",
        );
        errors.push(match list_type {
            "" => FieldError::required(field, why),
            other => FieldError::invalid(field, &other.into(), why),
        });
    }
    if matches!(list_type, "map" | "set") && items["nullable"] == true {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.push(FieldError::forbidden(format!("{path}.items.nullable"), &why));
    }
    if list_type == "map" {
        map_keys(schema, &keys, path, errors);
    }
}

fn map_keys(schema: &Value, keys: &[&str], path: &str, errors: &mut Vec<FieldError>) {
    let items = &schema["items"];
    if keys.is_empty() {
        let why = "must not be empty if x-kubernetes-list-type is map";
        errors.push(FieldError::required(format!("{path}.x-kubernetes-list-map-keys"), why));
    }
    if !items.is_object() {
        let why = "must have a schema if x-kubernetes-list-type is map";
        errors.push(FieldError::required(format!("{path}.items"), why));
        return;
    }
    if text(items, "type") != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(format!("{path}.items.type"), &text(items, "type").into(), why));
        return;
    }
    let required: Vec<&str> =
        items["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (i, key) in keys.iter().enumerate() {
        let all = &schema["x-kubernetes-list-map-keys"];
        let (list, property) = (format!("{path}.x-kubernetes-list-map-keys"), &items["properties"][*key]);
        let at = format!("{path}.items.properties[{key}]");
        if keys[..i].contains(key) {
            errors.push(FieldError::invalid(list.clone(), all, "must not contain duplicate entries"));
        }
        if !property.is_object() {
            errors.push(FieldError::invalid(list, all, "entries must all be names of item properties"));
            continue;
        }
        if matches!(text(property, "type"), "array" | "object") {
            let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.push(FieldError::invalid(format!("{at}.type"), &items["type"], why));
        }
        if !required.contains(key) && property["default"].is_null() {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(format!("{at}.default"), why));
        }
        if property["nullable"] == true {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(format!("{at}.nullable"), why));
        }
    }
}

/// What a rule of `x-kubernetes-validations` must say, apart from its expressions.
fn rules(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    const REASONS: [&str; 4] =
        ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    for (i, rule) in schema["x-kubernetes-validations"].as_array().into_iter().flatten().enumerate() {
        let here = |field: &str| format!("{path}.x-kubernetes-validations[{i}].{field}");
        let (expression, message) = (text(rule, "rule").trim(), text(rule, "message"));
        let broken = |t: &str| t.contains(['\n', '\r']);
        if expression.is_empty() {
            errors.push(FieldError::required(here("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.push(FieldError::invalid(
                here("message"),
                &message.into(),
                "must be non-empty if specified",
            ));
        } else if broken(message.trim()) {
            errors.push(FieldError::invalid(
                here("message"),
                &message.into(),
                "must not contain line breaks",
            ));
        } else if broken(expression) && message.trim().is_empty() {
            let why = "message must be specified if rule contains line breaks";
            errors.push(FieldError::required(here("message"), why));
        }
        let in_place = text(rule, "messageExpression");
        if !in_place.is_empty() && in_place.trim().is_empty() {
            let why = "messageExpression must be non-empty if specified";
            errors.push(FieldError::required(here("messageExpression"), why));
        }
        if let Some(reason) = rule["reason"].as_str().filter(|r| !REASONS.contains(r)) {
            errors.push(FieldError::not_supported(here("reason"), &reason.into(), &REASONS));
        }
        let field = text(rule, "fieldPath");
        if !field.is_empty() && field.trim().is_empty() {
            errors.push(FieldError::invalid(
                here("fieldPath"),
                &field.into(),
                "must be non-empty if specified",
            ));
        } else if broken(field) {
            errors.push(FieldError::invalid(
                here("fieldPath"),
                &field.into(),
                "must not contain line breaks",
            ));
        } else if !field.is_empty() && !field_exists(schema, field) {
            errors.push(FieldError::invalid(here("fieldPath"), &field.into(), "must be a valid path"));
        }
    }
}

/// Whether a path such as `.spec.x` or `.map['key']` leads to a field of the schema.
fn field_exists(schema: &Value, path: &str) -> bool {
    let mut at = Props::parse(schema);
    let plain = path.replace("['", ".").replace("']", "");
    plain.starts_with('.')
        && plain.trim_start_matches('.').split('.').all(|part| match at.field(part).cloned() {
            Some(next) => {
                at = next;
                true
            }
            None => false,
        })
}

/// Defaults must be pruned and valid.
fn defaults(props: &Props, path: &str, inside_meta: bool, errors: &mut Vec<FieldError>) {
    if let Some(default) = &props.default {
        let here = format!("{path}.default");
        let mut pruned = default.clone();
        if !inside_meta && !prune::prune_value(props, &mut pruned).is_empty() {
            errors.push(FieldError::invalid(here.clone(), default, "must not have unknown fields"));
        }
        let mut found = value::validate(props, default, None);
        if let Value::Object(object) = default {
            found.extend(lists::embedded(props, object));
        }
        for mut error in found {
            error.field = match error.field.as_str() {
                "<nil>" => here.clone(),
                field if field.starts_with('[') => format!("{here}{field}"),
                field => format!("{here}.{field}"),
            };
            errors.push(error);
        }
    }
    if let Some(items) = &props.items {
        defaults(items, &format!("{path}.items"), inside_meta, errors);
    }
    if let Some(Additional::Of(additional)) = &props.additional {
        defaults(additional, &format!("{path}.additionalProperties"), inside_meta, errors);
    }
    for (name, property) in &props.properties {
        let meta = inside_meta || (props.embedded && matches!(&**name, "metadata" | "apiVersion" | "kind"));
        defaults(property, &format!("{path}.properties[{name}]"), meta, errors);
    }
}
