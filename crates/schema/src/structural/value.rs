//! Value validation: every rule of a schema that a value breaks, in the words of upstream's validator.
//!
//! With an old value, a part that did not change may stay as wrong as it was (KEP-4008): parts correspond by
//! field name, and in lists of type `map` by their keys.

use meta::FieldError;
use serde_json::Value;

use super::format;
use super::lists::keys_of;
use super::{Additional, Props};

/// Deepest nesting that is looked into; decoding does not let deeper objects in.
const DEPTH_MAX: usize = 120;

/// What a schema says of a value: errors, and how many checks passed (it chooses the best of alternatives).
#[derive(Default)]
struct Outcome {
    errors: Vec<FieldError>,
    passed: usize,
}

impl Outcome {
    fn merge(&mut self, other: Outcome) {
        self.errors.extend(other.errors);
        self.passed += other.passed;
    }
}

/// One place in the tree: its path, and the corresponding old value and list type for ratcheting.
#[derive(Clone, Copy)]
struct At<'a> {
    path: &'a str,
    old: Option<&'a Value>,
    /// The schema outside of `allOf` and its like: it says how lists correspond.
    structure: Option<&'a Props>,
    depth: usize,
}

/// Every rule of `schema` that a whole object breaks. `old` is the version before, for ratcheting.
pub fn validate(schema: &Props, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    below(schema, value, old, "")
}

/// The same for a value at a path, as the status subresource needs it.
pub fn below(schema: &Props, value: &Value, old: Option<&Value>, path: &str) -> Vec<FieldError> {
    let at = At { path: "", old, structure: Some(schema), depth: 0 };
    let mut errors = node(schema, value, at).errors;
    if !path.is_empty() {
        for error in &mut errors {
            error.field = match error.field.as_str() {
                "<nil>" | "" => path.to_owned(),
                field => format!("{path}.{field}"),
            };
        }
    }
    errors
}

/// A node whose errors are forgiven where nothing changed.
fn node(schema: &Props, value: &Value, at: At<'_>) -> Outcome {
    let mut outcome = check(schema, value, at);
    if !outcome.errors.is_empty() && at.old == Some(value) {
        outcome.errors.clear();
    }
    outcome
}

/// The name of a value's JSON type.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The field that an error names; the root has none.
fn field(path: &str) -> String {
    match path.trim_start_matches('.') {
        "" => "<nil>".to_owned(),
        path => path.to_owned(),
    }
}

fn broken(path: &str, value: &Value, rule: &str) -> FieldError {
    FieldError::invalid(field(path), value, &format!("{path} in body {rule}"))
}

fn check(schema: &Props, value: &Value, at: At<'_>) -> Outcome {
    let mut out = Outcome::default();
    if at.depth > DEPTH_MAX {
        out.errors.push(broken(at.path, &Value::Null, "is nested too deeply"));
        return out;
    }
    let path = at.path;
    if !schema.ty.is_empty() || schema.int_or_string || !format::effective(schema).is_empty() {
        let found = wrong_type(schema, value, path);
        out.passed += 1 + usize::from(found.is_none());
        out.errors.extend(found);
    }
    if value.is_null() {
        out.errors.extend(enumeration(schema, value, path));
        return out;
    }
    out.merge(combined(schema, value, at));
    out.passed += 2;
    match value {
        Value::String(text) => {
            string(schema, text, path, &mut out.errors);
            if let Some(error) = format::problem(schema, text, path) {
                out.errors.push(error);
            }
            out.passed += 2;
        }
        Value::Number(n) => {
            number(schema, n, path, &mut out.errors);
            out.passed += 2;
        }
        Value::Array(list) => array(schema, list, at, &mut out),
        _ => {}
    }
    out.errors.extend(enumeration(schema, value, path));
    out.passed += 1;
    if let Value::Object(map) = value {
        object(schema, map, at, &mut out);
    }
    out.passed += 1;
    out
}

fn wrong_type(schema: &Props, value: &Value, path: &str) -> Option<FieldError> {
    let wanted = if schema.int_or_string { "integer,string" } else { &*schema.ty };
    let format = format::effective(schema);
    let wrong = |wanted: &str, found: &str| {
        let why = format!("{path} in body must be of type {wanted}: {found:?}");
        Some(FieldError::type_invalid(field(path), &found.into(), &why))
    };
    let found = type_of(value);
    let has = |ty: &str| wanted.split(',').any(|w| w == ty);
    if value.is_null() {
        return if wanted.is_empty() || schema.nullable { None } else { wrong(wanted, "null") };
    }
    let whole = value.as_f64().is_some_and(|f| f.fract() == 0.0);
    let fits =
        has(found) || (found == "number" && whole && has("integer")) || (found == "integer" && has("number"));
    let textual = matches!(value, Value::String(_) | Value::Array(_));
    let own_format = match found {
        "integer" => "int64",
        "number" => "float64",
        _ => "",
    };
    if !textual && !format.is_empty() && !fits && own_format != format {
        return wrong(format, own_format);
    }
    let numeric = has("number") || has("integer");
    if textual && !numeric && !format.is_empty() {
        return None;
    }
    if wanted.is_empty() || fits { None } else { wrong(wanted, found) }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

fn enumeration(schema: &Props, value: &Value, path: &str) -> Option<FieldError> {
    let allowed = schema.enumeration.as_ref().filter(|a| !a.is_empty())?;
    if !value.is_null() && allowed.iter().any(|a| equal(a, value)) {
        return None;
    }
    let quoted: Vec<String> = allowed
        .iter()
        .map(|a| match a {
            Value::String(s) => format!("{s:?}"),
            other => format!("{:?}", other.to_string()),
        })
        .collect();
    Some(FieldError {
        reason: "FieldValueNotSupported",
        field: field(path),
        message: format!("Unsupported value: {value}: supported values: {}", quoted.join(", ")),
    })
}

fn string(schema: &Props, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let value = || Value::from(text);
    let length = text.chars().count() as i64;
    if let Some(max) = schema.max_length.filter(|max| length > *max) {
        errors.push(FieldError::too_long(field(path), usize::try_from(max).unwrap_or(0)));
    }
    if let Some(min) = schema.min_length.filter(|min| length < *min) {
        errors.push(broken(path, &value(), &format!("should be at least {min} chars long")));
    }
    if let Some(pattern) = &schema.pattern
        && pattern.regex.as_ref().is_some_and(|r| !r.is_match(text))
    {
        errors.push(broken(path, &value(), &format!("should match '{}'", pattern.text)));
    }
}

/// A limit as Go prints it: as an integer beside integers.
fn limit(limit: f64, n: &serde_json::Number) -> String {
    if n.is_f64() { go_float(limit) } else { format!("{}", limit as i64) }
}

/// A float as Go's `%v` prints it.
fn go_float(f: f64) -> String {
    let magnitude = f.abs();
    if f == 0.0 || (1e-4..1e21).contains(&magnitude) {
        return format!("{f}");
    }
    let text = format!("{f:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

fn number(schema: &Props, n: &serde_json::Number, path: &str, errors: &mut Vec<FieldError>) {
    let value = Value::Number(n.clone());
    let Some(f) = n.as_f64() else { return };
    if &*schema.ty == "integer"
        && &*schema.format == "int32"
        && n.as_i64().is_none_or(|i| i32::try_from(i).is_err())
    {
        let why = format!("Checked value must be of type integer with format int32 in {path}");
        errors.push(FieldError::invalid("<nil>", &"".into(), &why));
    }
    if let Some(factor) = schema.multiple_of.filter(|m| *m > 0.0) {
        let ratio = f / factor;
        if (ratio - ratio.round()).abs() > f64::EPSILON * ratio.abs().max(1.0) {
            errors.push(broken(path, &value, &format!("should be a multiple of {}", limit(factor, n))));
        }
    }
    if let Some(min) = schema.minimum {
        let low = if schema.exclusive_minimum { f <= min } else { f < min };
        if low {
            let word = if schema.exclusive_minimum { "greater than" } else { "greater than or equal to" };
            errors.push(broken(path, &value, &format!("should be {word} {}", limit(min, n))));
        }
    }
    if let Some(max) = schema.maximum {
        let high = if schema.exclusive_maximum { f >= max } else { f > max };
        if high {
            let word = if schema.exclusive_maximum { "less than" } else { "less than or equal to" };
            errors.push(broken(path, &value, &format!("should be {word} {}", limit(max, n))));
        }
    }
}

fn too_many(path: &str, actual: i64, max: i64) -> FieldError {
    let noun = if max == 1 { "item" } else { "items" };
    FieldError {
        reason: "FieldValueTooMany",
        field: field(path),
        message: format!("Too many: {actual}: must have at most {max} {noun}"),
    }
}

fn array(schema: &Props, list: &[Value], at: At<'_>, out: &mut Outcome) {
    let path = at.path;
    let items = schema.items.as_deref();
    let structure = at.structure.and_then(|s| s.items.as_deref());
    if let Some(items) = items {
        for (i, item) in list.iter().enumerate() {
            let here = format!("{path}[{i}]");
            let old = at.structure.and_then(|s| old_item(s, item, at.old));
            out.merge(node(items, item, At { path: &here, old, structure, depth: at.depth + 1 }));
        }
    }
    let size = list.len() as i64;
    if let Some(min) = schema.min_items.filter(|min| size < *min) {
        out.errors.push(broken(path, &size.into(), &format!("should have at least {min} items")));
    }
    if let Some(max) = schema.max_items.filter(|max| size > *max) {
        out.errors.push(too_many(path, size, max));
    }
    if schema.unique_items && list.iter().enumerate().any(|(i, v)| list[..i].contains(v)) {
        out.errors.push(broken(path, &"".into(), "shouldn't contain duplicates"));
    }
    out.passed += 2;
}

/// The item of the old list with the same keys; only lists of type `map` correspond item by item.
pub fn old_item<'a>(schema: &Props, item: &Value, old: Option<&'a Value>) -> Option<&'a Value> {
    if schema.list_type.as_deref() != Some("map") {
        return None;
    }
    let keys = keys_of(schema, item);
    old?.as_array()?.iter().find(|o| keys_of(schema, o) == keys)
}

fn object(schema: &Props, map: &super::Object, at: At<'_>, out: &mut Outcome) {
    let path = at.path;
    let count = map.len() as i64;
    if let Some(min) = schema.min_properties.filter(|min| count < *min) {
        out.errors.push(broken(path, &count.into(), &format!("should have at least {min} properties")));
    }
    if let Some(max) = schema.max_properties.filter(|max| count > *max) {
        out.errors.push(too_many(path, count, max));
    }
    let atomic = at.structure.is_some_and(Props::is_atomic_map);
    for (name, value) in map {
        let child = match (schema.properties.get(name.as_str()), &schema.additional) {
            (Some(property), _) => property,
            (None, Some(Additional::Of(additional))) => additional,
            (None, Some(Additional::Allowed(false))) => {
                let why = format!("{path}.{name} in body is a forbidden property");
                out.errors.push(FieldError::invalid(field(path), &name.as_str().into(), &why));
                continue;
            }
            _ => continue,
        };
        let is_property = schema.properties.contains_key(name.as_str());
        let here = if path.is_empty() && is_property { name.clone() } else { format!("{path}.{name}") };
        // The type of the whole object is not visible to ratcheting.
        let type_meta = path.is_empty() && matches!(name.as_str(), "kind" | "apiVersion");
        let old = at.old.filter(|_| !atomic && !type_meta).and_then(|o| o.get(name));
        let structure = at.structure.and_then(|s| s.field(name));
        out.merge(node(child, value, At { path: &here, old, structure, depth: at.depth + 1 }));
    }
    for name in &schema.required {
        if !map.contains_key(&**name) {
            out.errors.push(FieldError::required(field(&format!("{path}.{name}")), ""));
        }
    }
}

fn composite(path: &str, rule: &str) -> FieldError {
    FieldError::invalid("<nil>", &"".into(), &format!("{path:?} must {rule}"))
}

fn combined(schema: &Props, value: &Value, at: At<'_>) -> Outcome {
    let mut out = Outcome::default();
    let at = At { depth: at.depth + 1, ..at };
    if !schema.any_of.is_empty() {
        let mut best: Option<Outcome> = None;
        for alternative in &schema.any_of {
            let outcome = check(alternative, value, at);
            let fine = outcome.errors.is_empty();
            if fine || best.as_ref().is_none_or(|b| outcome.passed > b.passed) {
                best = Some(outcome);
            }
            if fine {
                break;
            }
        }
        let best = best.unwrap_or_default();
        if !best.errors.is_empty() {
            out.errors.push(composite(at.path, "validate at least one schema (anyOf)"));
        }
        out.merge(best);
    }
    if !schema.one_of.is_empty() {
        one_of(schema, value, at, &mut out);
    }
    if !schema.all_of.is_empty() {
        let (mut valid, mut errors) = (0, Vec::new());
        for part in &schema.all_of {
            let outcome = check(part, value, at);
            valid += usize::from(outcome.errors.is_empty());
            out.passed += outcome.passed;
            errors.extend(outcome.errors);
        }
        out.errors.extend(errors);
        if valid != schema.all_of.len() {
            let none = if valid == 0 { ". None validated" } else { "" };
            out.errors.push(composite(at.path, &format!("validate all the schemas (allOf){none}")));
        }
    }
    if let Some(not) = &schema.not
        && check(not, value, at).errors.is_empty()
    {
        out.errors.push(composite(at.path, "not validate the schema (not)"));
    }
    out.passed += 1;
    out
}

fn one_of(schema: &Props, value: &Value, at: At<'_>, out: &mut Outcome) {
    let (mut valid, mut best, mut first) = (0, None::<Outcome>, None);
    for alternative in &schema.one_of {
        let outcome = check(alternative, value, at);
        if outcome.errors.is_empty() {
            valid += 1;
            best = None;
            first = first.or(Some(outcome));
        } else if valid == 0 && best.as_ref().is_none_or(|b| outcome.passed > b.passed) {
            best = Some(outcome);
        }
    }
    if valid == 1 {
        return out.merge(first.unwrap_or_default());
    }
    let found = match valid {
        0 => "Found none valid".to_owned(),
        n => format!("Found {n} valid alternatives"),
    };
    out.errors.push(composite(at.path, &format!("validate one and only one schema (oneOf). {found}")));
    out.merge(best.unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(schema: Value, value: Value, old: Option<Value>) -> Vec<String> {
        validate(&Props::parse(&schema), &value, old.as_ref()).iter().map(|e| e.to_string()).collect()
    }

    /// A schema for `x` and a value of `x`, with what is wrong.
    #[test]
    fn rules_and_their_words() {
        for (schema, value, wanted) in [
            (
                json!({"type": "integer"}),
                json!("s"),
                "x: Invalid value: \"string\": x in body must be of type integer: \"string\"",
            ),
            (
                json!({"type": "integer"}),
                json!(1.5),
                "x: Invalid value: \"number\": x in body must be of type integer: \"number\"",
            ),
            (
                json!({"type": "string"}),
                json!(null),
                "x: Invalid value: \"null\": x in body must be of type string: \"null\"",
            ),
            (
                json!({"x-kubernetes-int-or-string": true}),
                json!(true),
                "x: Invalid value: \"boolean\": x in body must be of type integer,string: \"boolean\"",
            ),
            (
                json!({"type": "integer", "minimum": 1}),
                json!(0),
                "x: Invalid value: 0: x in body should be greater than or equal to 1",
            ),
            (
                json!({"type": "number", "maximum": 1.5, "exclusiveMaximum": true}),
                json!(1.5),
                "x: Invalid value: 1.5: x in body should be less than 1.5",
            ),
            (
                json!({"type": "integer", "multipleOf": 3}),
                json!(4),
                "x: Invalid value: 4: x in body should be a multiple of 3",
            ),
            (
                json!({"type": "string", "enum": ["b", "a"]}),
                json!("c"),
                "x: Unsupported value: \"c\": supported values: \"b\", \"a\"",
            ),
            (
                json!({"type": "string", "maxLength": 2}),
                json!("abc"),
                "x: Too long: may not be more than 2 bytes",
            ),
            (
                json!({"type": "string", "minLength": 2}),
                json!("a"),
                "x: Invalid value: \"a\": x in body should be at least 2 chars long",
            ),
            (
                json!({"type": "string", "pattern": "^a+$"}),
                json!("b"),
                "x: Invalid value: \"b\": x in body should match '^a+$'",
            ),
            (
                json!({"type": "array", "maxItems": 1}),
                json!([1, 2]),
                "x: Too many: 2: must have at most 1 item",
            ),
            (
                json!({"type": "array", "minItems": 1}),
                json!([]),
                "x: Invalid value: 0: x in body should have at least 1 items",
            ),
            (
                json!({"type": "array", "items": {"type": "string"}}),
                json!([1]),
                "x[0]: Invalid value: \"integer\": x[0] in body must be of type string: \"integer\"",
            ),
            (
                json!({"type": "object", "maxProperties": 0}),
                json!({"a": 1}),
                "x: Too many: 1: must have at most 0 items",
            ),
            (json!({"type": "object", "required": ["a"]}), json!({}), "x.a: Required value"),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                json!({"k": 1}),
                "x.k: Invalid value: \"integer\": x.k in body must be of type string: \"integer\"",
            ),
            (
                json!({"type": "string", "not": {"enum": ["a"]}}),
                json!("a"),
                "<nil>: Invalid value: \"\": \"x\" must not validate the schema (not)",
            ),
            (
                json!({"type": "string", "format": "ipv4"}),
                json!("a"),
                "x: Invalid value: \"a\": x in body must be of type ipv4: \"a\"",
            ),
        ] {
            let found =
                errors(json!({"type": "object", "properties": {"x": schema}}), json!({"x": value}), None);
            assert_eq!(found, [wanted]);
        }
    }

    #[test]
    fn alternatives() {
        let schema = json!({"type": "object", "properties": {"x": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
            "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}}});
        assert!(errors(schema.clone(), json!({"x": {"a": ""}}), None).is_empty());
        assert_eq!(
            errors(schema.clone(), json!({"x": {"a": "", "b": ""}}), None),
            [
                "<nil>: Invalid value: \"\": \"x\" must validate one and only one schema (oneOf). Found 2 valid alternatives"
            ]
        );
        assert_eq!(
            errors(schema, json!({"x": {}}), None),
            [
                "<nil>: Invalid value: \"\": \"x\" must validate one and only one schema (oneOf). Found none valid",
                "x.a: Required value"
            ]
        );
        let any = json!({"type": "object", "properties": {"x": {"anyOf": [{"minimum": 5}, {"maximum": 1}], "type": "integer"}}});
        assert_eq!(
            errors(any, json!({"x": 3}), None),
            [
                "<nil>: Invalid value: \"\": \"x\" must validate at least one schema (anyOf)",
                "x: Invalid value: 3: x in body should be greater than or equal to 5"
            ]
        );
    }

    #[test]
    fn what_did_not_change_may_stay_wrong() {
        let item = json!({"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer", "minimum": 5}}});
        let schema = json!({"type": "object", "properties": {
            "x": {"type": "integer", "minimum": 5}, "y": {"type": "string"},
            "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item},
            "atomic": {"type": "array", "items": item}}});
        let old = json!({"x": 1, "map": [{"k": "a", "v": 1}], "atomic": [{"k": "a", "v": 1}]});
        for (new, count) in [
            (json!({"x": 1, "y": "new"}), 0),
            (json!({"x": 2}), 1),
            (json!({"map": [{"k": "b", "v": 9}, {"k": "a", "v": 1}]}), 0),
            (json!({"map": [{"k": "b", "v": 1}]}), 1),
            (json!({"atomic": [{"k": "a", "v": 1}]}), 0),
            (json!({"atomic": [{"k": "a", "v": 1}, {"k": "b", "v": 9}]}), 1),
        ] {
            assert_eq!(errors(schema.clone(), new.clone(), Some(old.clone())).len(), count, "{new}");
        }
    }

    #[test]
    fn floats_as_go_prints_them() {
        for (f, text) in [(0.5, "0.5"), (5.0, "5"), (1e21, "1e+21"), (1e-7, "1e-07"), (-2.5, "-2.5")] {
            assert_eq!(go_float(f), text);
        }
    }
}
