//! Structural schemas: every field has one type outside of `allOf`, `anyOf`, `oneOf` and `not`, and what is
//! inside of those only restricts values.

use meta::FieldError;
use schema::structural::{Additional, Props, compile};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Every way in which a schema is not structural.
pub fn validate(props: &Props, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    invariants(props, Level::Root, path, &mut errors);
    for (name, part) in nested(props) {
        complete(part, Some(props), path, &format!("{path}.{name}"), &mut errors);
    }
    errors.sort_by_key(|e| e.to_string());
    errors
}

/// The parts that only restrict values, with their paths.
fn nested(props: &Props) -> Vec<(String, &Props)> {
    let mut out = Vec::new();
    for (name, list) in [("allOf", &props.all_of), ("anyOf", &props.any_of), ("oneOf", &props.one_of)] {
        out.extend(list.iter().enumerate().map(|(i, p)| (format!("{name}[{i}]"), p)));
    }
    out.extend(props.not.iter().map(|p| ("not".to_owned(), &**p)));
    out
}

/// Whether a list of alternatives is just "an integer or a string".
fn is_int_or_string(list: &[Props]) -> bool {
    let only = |ty: &str| Props { ty: ty.into(), ..Default::default() };
    list == [only("integer"), only("string")]
}

fn invariants(props: &Props, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let required = |field: &str, why: &str| FieldError::required(format!("{path}.{field}"), why);
    let forbidden = |field: &str, why: &str| FieldError::forbidden(format!("{path}.{field}"), why);
    if &*props.ty == "array" && props.items.is_none() {
        errors.push(required("items", "must be specified"));
    }
    if let Some(items) = &props.items {
        invariants(items, Level::Item, &format!("{path}.items"), errors);
    }
    for (name, property) in &props.properties {
        // Metadata of a whole object is implicit and judged below.
        if !(level == Level::Root && &**name == "metadata") {
            invariants(property, Level::Field, &format!("{path}.properties[{name}]"), errors);
        }
    }
    if props.additional.is_some() && level == Level::Root {
        errors.push(forbidden("additionalProperties", "must not be used at the root"));
    }
    if let Some(Additional::Of(additional)) = &props.additional {
        invariants(additional, Level::Field, &format!("{path}.additionalProperties"), errors);
    }
    if props.int_or_string && props.preserve {
        let why = "must be false if x-kubernetes-int-or-string is true";
        errors.push(FieldError::invalid(
            format!("{path}.x-kubernetes-preserve-unknown-fields"),
            &true.into(),
            why,
        ));
    }
    if props.int_or_string && props.embedded {
        let why = "must be false if x-kubernetes-int-or-string is true";
        errors.push(FieldError::invalid(format!("{path}.x-kubernetes-embedded-resource"), &true.into(), why));
    }
    restrictions(props, path, errors);
    if props.embedded && &*props.ty != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match &*props.ty {
            "" => required("type", why),
            ty => FieldError::invalid(format!("{path}.type"), &ty.into(), why),
        });
    } else if props.ty.is_empty() && !props.int_or_string && !props.preserve {
        errors.push(required(
            "type",
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        ));
    }
    if props.embedded && props.additional.is_some() {
        errors.push(forbidden(
            "additionalProperties",
            "must not be used if x-kubernetes-embedded-resource is set",
        ));
    }
    if level == Level::Root && !props.ty.is_empty() && &*props.ty != "object" {
        let ty = (&*props.ty).into();
        errors.push(FieldError::invalid(format!("{path}.type"), &ty, "must be object at the root"));
    }
    type_meta(props, level, path, errors);
    if props.embedded && !props.preserve && props.properties.is_empty() {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(required("properties", why));
    }
}

fn type_meta(props: &Props, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    if level != Level::Root && !props.embedded {
        return;
    }
    for (name, wanted) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
        if let Some(found) = props.properties.get(name).filter(|f| &*f.ty != wanted) {
            let why = format!("must be {wanted}");
            errors.push(FieldError::invalid(
                format!("{path}.properties[{name}].type"),
                &(&*found.ty).into(),
                &why,
            ));
        }
    }
    if let Some(metadata) = props.properties.get("metadata").filter(|_| level == Level::Root) {
        let only_names = metadata.properties.keys().all(|k| matches!(&**k, "name" | "generateName"));
        let bare =
            Props { ty: metadata.ty.clone(), properties: metadata.properties.clone(), ..Default::default() };
        if !only_names || *metadata != (Props { default: metadata.default.clone(), ..bare }) {
            let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.push(FieldError::forbidden(format!("{path}.properties[metadata]"), why));
        }
    }
}

/// What only restricts values may not say anything structural.
fn restrictions(props: &Props, path: &str, errors: &mut Vec<FieldError>) {
    for (i, part) in props.any_of.iter().enumerate().filter(|_| !is_int_or_string(&props.any_of)) {
        restriction(part, false, &format!("{path}.anyOf[{i}]"), errors);
    }
    for (i, part) in props.all_of.iter().enumerate() {
        let skip = i == 0 && is_int_or_string(&part.any_of);
        restriction(part, skip, &format!("{path}.allOf[{i}]"), errors);
    }
    for (i, part) in props.one_of.iter().enumerate() {
        restriction(part, false, &format!("{path}.oneOf[{i}]"), errors);
    }
    if let Some(not) = &props.not {
        restriction(not, false, &format!("{path}.not"), errors);
    }
    if let Some(pattern) = &props.pattern
        && let Err(problem) = compile(&pattern.text)
    {
        let why = format!("must be a valid regular expression, but isn't: error parsing regexp: {problem}");
        errors.push(FieldError::invalid(format!("{path}.pattern"), &(&*pattern.text).into(), &why));
    }
}

fn restriction(props: &Props, skip_any_of: bool, path: &str, errors: &mut Vec<FieldError>) {
    if skip_any_of {
        restrictions(&Props { any_of: Vec::new(), ..props.clone() }, path, errors);
    } else {
        restrictions(props, path, errors);
    }
    if let Some(items) = &props.items {
        restriction(items, false, &format!("{path}.items"), errors);
    }
    for (name, property) in &props.properties {
        restriction(property, false, &format!("{path}.properties[{name}]"), errors);
    }
    let says = [
        (!props.ty.is_empty(), "type", "empty"),
        (props.additional.is_some(), "additionalProperties", "undefined"),
        (props.default.is_some(), "default", "undefined"),
        (props.title, "title", "empty"),
        (props.description, "description", "empty"),
        (props.nullable, "nullable", "false"),
        (props.preserve, "x-kubernetes-preserve-unknown-fields", "false"),
        (props.embedded, "x-kubernetes-embedded-resource", "false"),
        (props.int_or_string, "x-kubernetes-int-or-string", "false"),
        (!props.list_keys.is_empty(), "x-kubernetes-list-map-keys", "empty"),
        (props.list_type.is_some(), "x-kubernetes-list-type", "undefined"),
        (props.map_type.is_some(), "x-kubernetes-map-type", "undefined"),
        (!props.rules.is_empty(), "x-kubernetes-validations", "empty"),
    ];
    for (_, field, wanted) in says.into_iter().filter(|(said, ..)| *said) {
        errors.push(FieldError::forbidden(
            format!("{path}.{field}"),
            &format!("must be {wanted} to be structural"),
        ));
    }
    if props.properties.contains_key("metadata") {
        let why = "must not be specified in a nested context";
        errors.push(FieldError::forbidden(format!("{path}.properties[metadata]"), why));
    }
}

/// Every field that is restricted is also specified.
fn complete(part: &Props, structure: Option<&Props>, at: &str, path: &str, errors: &mut Vec<FieldError>) {
    let Some(structure) = structure else {
        errors.push(FieldError::required(at, &format!("because it is defined in {path}")));
        return;
    };
    for (name, inner) in nested(part) {
        complete(inner, Some(structure), at, &format!("{path}.{name}"), errors);
    }
    if let Some(items) = &part.items {
        complete(items, structure.items.as_deref(), &format!("{at}.items"), &format!("{path}.items"), errors);
    }
    for (name, property) in &part.properties {
        let key = format!("properties[{name}]");
        let found = structure.properties.get(name);
        complete(property, found, &format!("{at}.{key}"), &format!("{path}.{key}"), errors);
    }
}
