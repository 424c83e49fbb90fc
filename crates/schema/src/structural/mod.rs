//! Schemas of custom resources (JSONSchemaProps) and their interpreters: strict decoding, pruning, defaults,
//! value validation with ratcheting, and the types that server-side apply needs.
//!
//! One [`Props`] tree serves as structure (`properties`, `items`, `additionalProperties`) and, below
//! `allOf`, `anyOf`, `oneOf` and `not`, as value validation only.

pub mod decode;
pub mod format;
pub mod lists;
pub mod prune;
pub mod types;
pub mod value;

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

/// Largest compiled size of one pattern: hostile patterns must not eat the server's memory.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// `additionalProperties`.
#[derive(Debug, Clone, PartialEq)]
pub enum Additional {
    /// `true` or `false`.
    Allowed(bool),
    /// Every value has this schema.
    Of(Box<Props>),
}

/// A pattern with its compiled form; none when it does not compile.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// As written.
    pub text: Box<str>,
    /// Compiled.
    pub regex: Option<Regex>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// One rule of `x-kubernetes-validations`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rule {
    /// CEL expression that must hold.
    pub rule: Box<str>,
    /// Text for those who break it.
    pub message: Box<str>,
    /// CEL expression that makes the text.
    pub message_expression: Box<str>,
    /// Machine-readable reason.
    pub reason: Option<Box<str>>,
    /// Field to blame, relative to the schema's own.
    pub field_path: Box<str>,
    /// Whether the rule also runs when there is no old value.
    pub optional_old_self: Option<bool>,
}

/// A JSONSchemaProps.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs, reason = "the names are JSON schema's own")]
pub struct Props {
    pub ty: Box<str>,
    pub format: Box<str>,
    pub properties: BTreeMap<Box<str>, Props>,
    pub additional: Option<Additional>,
    pub items: Option<Box<Props>>,
    pub required: Vec<Box<str>>,
    pub default: Option<Value>,
    pub nullable: bool,
    pub title: bool,
    pub description: bool,
    pub enumeration: Option<Vec<Value>>,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub multiple_of: Option<f64>,
    pub max_length: Option<i64>,
    pub min_length: Option<i64>,
    pub pattern: Option<Pattern>,
    pub max_items: Option<i64>,
    pub min_items: Option<i64>,
    pub unique_items: bool,
    pub max_properties: Option<i64>,
    pub min_properties: Option<i64>,
    pub all_of: Vec<Props>,
    pub any_of: Vec<Props>,
    pub one_of: Vec<Props>,
    pub not: Option<Box<Props>>,
    pub embedded: bool,
    pub int_or_string: bool,
    pub preserve: bool,
    pub list_type: Option<Box<str>>,
    pub list_keys: Vec<Box<str>>,
    pub map_type: Option<Box<str>>,
    pub rules: Vec<Rule>,
}

impl Props {
    /// Reads a schema. What has the wrong type counts as absent: decoding has complained already.
    pub fn parse(value: &Value) -> Props {
        let text = |key: &str| Box::<str>::from(value.get(key).and_then(Value::as_str).unwrap_or_default());
        let option = |key: &str| value.get(key).and_then(Value::as_str).map(Box::<str>::from);
        let flag = |key: &str| value.get(key) == Some(&Value::Bool(true));
        let float = |key: &str| value.get(key).and_then(Value::as_f64);
        let int = |key: &str| value.get(key).and_then(Value::as_i64);
        let one = |key: &str| value.get(key).filter(|v| v.is_object()).map(|v| Box::new(Props::parse(v)));
        let many = |key: &str| -> Vec<Props> {
            value.get(key).and_then(Value::as_array).into_iter().flatten().map(Props::parse).collect()
        };
        Props {
            ty: text("type"),
            format: text("format"),
            properties: (value.get("properties").and_then(Value::as_object).into_iter().flatten())
                .map(|(name, v)| (name.as_str().into(), Props::parse(v)))
                .collect(),
            additional: match value.get("additionalProperties") {
                Some(Value::Bool(allowed)) => Some(Additional::Allowed(*allowed)),
                Some(schema @ Value::Object(_)) => Some(Additional::Of(Box::new(Props::parse(schema)))),
                _ => None,
            },
            items: one("items"),
            required: strings(value.get("required")),
            default: value.get("default").filter(|v| !v.is_null()).cloned(),
            nullable: flag("nullable"),
            title: !text("title").is_empty(),
            description: !text("description").is_empty(),
            enumeration: value.get("enum").and_then(Value::as_array).cloned(),
            maximum: float("maximum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            minimum: float("minimum"),
            exclusive_minimum: flag("exclusiveMinimum"),
            multiple_of: float("multipleOf"),
            max_length: int("maxLength"),
            min_length: int("minLength"),
            pattern: option("pattern").filter(|p| !p.is_empty()).map(Pattern::new),
            max_items: int("maxItems"),
            min_items: int("minItems"),
            unique_items: flag("uniqueItems"),
            max_properties: int("maxProperties"),
            min_properties: int("minProperties"),
            all_of: many("allOf"),
            any_of: many("anyOf"),
            one_of: many("oneOf"),
            not: one("not"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            list_type: option("x-kubernetes-list-type"),
            list_keys: strings(value.get("x-kubernetes-list-map-keys")),
            map_type: option("x-kubernetes-map-type"),
            rules: (value.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten())
                .map(Rule::parse)
                .collect(),
        }
    }

    /// The schema of a field of an object.
    pub fn field(&self, name: &str) -> Option<&Props> {
        self.properties.get(name).or(match &self.additional {
            Some(Additional::Of(schema)) => Some(schema),
            _ => None,
        })
    }

    /// Whether fields that the schema does not name are kept.
    fn keeps(&self, name: &str) -> bool {
        self.preserve
            || self.properties.contains_key(name)
            || match &self.additional {
                Some(Additional::Allowed(_) | Additional::Of(_)) => true,
                None => false,
            }
    }

    /// Whether any part of the tree has what `wanted` looks for.
    pub fn any(&self, wanted: &dyn Fn(&Props) -> bool) -> bool {
        let additional = match &self.additional {
            Some(Additional::Of(schema)) => Some(schema),
            _ => None,
        };
        wanted(self)
            || self.properties.values().any(|p| p.any(wanted))
            || [&self.items, &self.not].into_iter().flatten().chain(additional).any(|p| p.any(wanted))
            || [&self.all_of, &self.any_of, &self.one_of].into_iter().flatten().any(|p| p.any(wanted))
    }

    /// Whether the object is one unit for server-side apply and for old values.
    pub fn is_atomic_map(&self) -> bool {
        self.map_type.as_deref() == Some("atomic")
    }
}

impl Rule {
    fn parse(value: &Value) -> Rule {
        let text = |key: &str| Box::<str>::from(value.get(key).and_then(Value::as_str).unwrap_or_default());
        Rule {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: value.get("reason").and_then(Value::as_str).map(Box::from),
            field_path: text("fieldPath"),
            optional_old_self: value.get("optionalOldSelf").and_then(Value::as_bool),
        }
    }
}

impl Pattern {
    fn new(text: Box<str>) -> Pattern {
        Pattern { regex: compile(&text).ok(), text }
    }
}

/// Compiles a pattern written for Go's regexp.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    regex::RegexBuilder::new(&from_go(pattern)).size_limit(PATTERN_BYTES_MAX).build().map_err(|e| {
        e.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })
}

/// Go's classes are ASCII, and Go knows no set operations inside brackets.
fn from_go(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars().peekable();
    let mut in_class = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('d') => out.push_str("[0-9]"),
                Some('D') => out.push_str("[^0-9]"),
                Some('w') => out.push_str("[0-9A-Za-z_]"),
                Some('W') => out.push_str("[^0-9A-Za-z_]"),
                Some('s') => out.push_str(r"[\t\n\f\r ]"),
                Some('S') => out.push_str(r"[^\t\n\f\r ]"),
                Some('b') if !in_class => out.push_str(r"(?-u:\b)"),
                Some('B') if !in_class => out.push_str(r"(?-u:\B)"),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            '[' if !in_class => {
                in_class = true;
                out.push('[');
                if chars.peek() == Some(&'^') {
                    out.extend(chars.next());
                }
                // A bracket right at the beginning is a member of the class.
                if chars.peek() == Some(&']') {
                    chars.next();
                    out.push_str(r"\]");
                }
            }
            '[' if chars.peek() == Some(&':') => out.push('['),
            '[' => out.push_str(r"\["),
            ']' => {
                // `[:alpha:]` closes itself; everything else closes the class.
                in_class = in_class && out.ends_with(':');
                out.push(']');
            }
            '&' | '~' if in_class => out.extend(['\\', c]),
            '-' if in_class && chars.peek() == Some(&'-') => out.push_str(r"\-"),
            other => out.push(other),
        }
    }
    out
}

fn strings(value: Option<&Value>) -> Vec<Box<str>> {
    let list = value.and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(Box::from).collect()
}

/// An object as everything here sees it.
pub type Object = Map<String, Value>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_go() {
        for (pattern, yes, no) in [
            (r"^\d{4}$", "1234", "١٢٣٤"),
            (r"^[\w-]+$", "a-b_1", "é"),
            (r"^[[a]+$", "[a", "b"),
            (r"^[]a]+$", "]a", "b"),
            (r"^[[:alpha:]]+$", "abc", "1"),
            (r"^a&&b$", "a&&b", "a"),
            (r"^[&&a]$", "&", "b"),
            (r"\bfoo\b", "a foo b", "afoo"),
        ] {
            let regex = compile(pattern).unwrap();
            assert!(regex.is_match(yes), "{pattern} {yes}");
            assert!(!regex.is_match(no), "{pattern} {no}");
        }
        assert!(compile("(").is_err());
    }
}
