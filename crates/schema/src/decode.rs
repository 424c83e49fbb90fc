//! Strict decoding: JSON to a tree that holds only known fields with values of the right type.
//!
//! One pass over the input, driven by the type table. Unknown and duplicate fields are dropped and
//! reported (the `fieldValidation` parameter decides what becomes of the report), `null` means absent,
//! quantities and times come out in canonical form. A value of the wrong type ends decoding with the
//! sentence that upstream's decoder has for it.

use std::fmt;

use meta::Quantity;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::types::{Schema, Shape, Struct, TypeId};

/// Deepest nesting accepted, so that hostile input cannot exhaust the stack.
pub const DEPTH_MAX: usize = 100;
/// Most problems reported per object; more tell nobody anything.
pub const PROBLEMS_MAX: usize = 100;

/// The input is not JSON, or has a value of the wrong type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

/// A decoded object and what was wrong with the input without being fatal.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The object, pruned.
    pub value: Map<String, Value>,
    /// `unknown field "spec.x"` and `duplicate field "spec.y"`, in order of appearance.
    pub problems: Vec<String>,
}

/// Decodes JSON text as `ty`.
pub fn decode(schema: &Schema, ty: TypeId, json: &[u8]) -> Result<Decoded, DecodeError> {
    if let Some(custom) = schema.custom(ty) {
        return crate::structural::decode::decode(schema, custom.metadata, &custom.props, json);
    }
    let mut input = serde_json::Deserializer::from_slice(json);
    let decoded = run(schema, ty, &mut input)?;
    input.end().map_err(|e| DecodeError(syntax(&e)))?;
    Ok(decoded)
}

/// Decodes a JSON tree as `ty`: the result of a patch goes through the same checks as a body.
pub fn decode_value(schema: &Schema, ty: TypeId, value: Value) -> Result<Decoded, DecodeError> {
    if let Some(custom) = schema.custom(ty) {
        return crate::structural::decode::finish(schema, custom.metadata, &custom.props, value);
    }
    run(schema, ty, value)
}

fn run<'de, D: Deserializer<'de>>(schema: &Schema, ty: TypeId, input: D) -> Result<Decoded, DecodeError>
where
    D::Error: fmt::Display,
{
    let mut state = State { path: String::new(), owner: String::new(), problems: Vec::new(), depth: 0 };
    let value =
        Seed { schema, ty, state: &mut state }.deserialize(input).map_err(|e| DecodeError(syntax(&e)))?;
    match value {
        Some(Value::Object(value)) => Ok(Decoded { value, problems: state.problems }),
        _ => Err(DecodeError("json: the body is not an object".into())),
    }
}

/// serde_json appends the position to custom errors; upstream's sentences have none.
fn syntax(e: &impl fmt::Display) -> String {
    let text = e.to_string();
    match text.find(" at line ") {
        Some(at) if text.starts_with("json: ") => text[..at].to_owned(),
        _ => text,
    }
}

struct State {
    path: String,
    /// Name of the struct being decoded, for error sentences.
    owner: String,
    problems: Vec<String>,
    depth: usize,
}

impl State {
    fn report(&mut self, what: &str) {
        let line = format!("{what} field \"{}\"", self.path.trim_start_matches('.'));
        if self.problems.len() < PROBLEMS_MAX && !self.problems.contains(&line) {
            self.problems.push(line);
        }
    }

    /// Runs `f` with the path extended, and restores it.
    fn within<T>(&mut self, part: fmt::Arguments<'_>, f: impl FnOnce(&mut Self) -> T) -> T {
        let len = self.path.len();
        // Writing to a String cannot fail.
        let _ = fmt::Write::write_fmt(&mut self.path, part);
        let result = f(self);
        self.path.truncate(len);
        result
    }
}

struct Seed<'a> {
    schema: &'a Schema,
    ty: TypeId,
    state: &'a mut State,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    /// `None` for null: absent.
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        input.deserialize_any(self)
    }
}

impl Seed<'_> {
    fn mismatch<E: serde::de::Error>(&self, found: &str) -> E {
        let wanted = match self.schema.shape(self.ty) {
            Shape::String | Shape::Bytes => "string",
            Shape::Bool => "bool",
            Shape::Int32 => "int32",
            Shape::Int64 => "int64",
            Shape::Double => "float64",
            Shape::Quantity => "resource.Quantity",
            Shape::IntOrString => "intstr.IntOrString",
            Shape::Time | Shape::MicroTime => "string",
            Shape::Any | Shape::Free => "object",
            Shape::List { .. } => "[]",
            Shape::Map { .. } => "map[string]",
            Shape::Struct(at) => {
                let s = self.schema.struct_at(*at);
                return E::custom(format!(
                    "json: cannot unmarshal {found} into Go struct field {}{} of type {}",
                    self.state.owner,
                    self.state.path,
                    go_name(s)
                ));
            }
        };
        E::custom(format!(
            "json: cannot unmarshal {found} into Go struct field {}{} of type {wanted}",
            self.state.owner, self.state.path
        ))
    }

    fn number<E: serde::de::Error>(&self, n: Number) -> Result<Option<Value>, E> {
        let fits = match self.schema.shape(self.ty) {
            Shape::Int32 => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            Shape::IntOrString => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            Shape::Int64 => n.as_i64().is_some(),
            Shape::Double | Shape::Any | Shape::Free => true,
            Shape::Quantity => {
                return match Quantity::parse(&n.to_string()) {
                    Ok(q) => Ok(Some(Value::String(q.to_string()))),
                    Err(e) => Err(E::custom(format!("json: {e}"))),
                };
            }
            _ => return Err(self.mismatch("number")),
        };
        // Go accepts 3.0 nowhere an integer is wanted; neither do we.
        if fits { Ok(Some(Value::Number(n))) } else { Err(self.mismatch(&format!("number {n}"))) }
    }

    fn text<E: serde::de::Error>(&self, s: String) -> Result<Option<Value>, E> {
        let s = match self.schema.shape(self.ty) {
            Shape::String | Shape::IntOrString | Shape::Any | Shape::Free => s,
            Shape::Bytes => {
                if !is_base64(&s) {
                    return Err(E::custom(format!(
                        "json: illegal base64 data at input byte {}",
                        bad_base64_at(&s)
                    )));
                }
                s
            }
            Shape::Quantity => match Quantity::parse(&s) {
                Ok(q) => q.to_string(),
                Err(e) => return Err(E::custom(format!("json: {e}"))),
            },
            Shape::Time => match s.parse::<jiff::Timestamp>() {
                Ok(t) => crate::time::seconds(t),
                Err(_) => return Err(self.bad_time(&s)),
            },
            Shape::MicroTime => match s.parse::<jiff::Timestamp>() {
                Ok(t) => crate::time::micros(t),
                Err(_) => return Err(self.bad_time(&s)),
            },
            _ => return Err(self.mismatch("string")),
        };
        Ok(Some(Value::String(s)))
    }

    fn bad_time<E: serde::de::Error>(&self, s: &str) -> E {
        E::custom(format!(
            "json: parsing time {s:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {s:?} as \"2006\""
        ))
    }

    fn enter<E: serde::de::Error>(&mut self) -> Result<(), E> {
        self.state.depth += 1;
        if self.state.depth > DEPTH_MAX {
            return Err(E::custom("json: exceeded max depth"));
        }
        Ok(())
    }

    fn object<'de, A: MapAccess<'de>>(&mut self, mut input: A) -> Result<Map<String, Value>, A::Error> {
        let schema = self.schema;
        let mut out = Map::new();
        match schema.shape(self.ty) {
            Shape::Struct(at) => {
                let s = schema.struct_at(*at);
                let owner = std::mem::replace(&mut self.state.owner, short_name(s).to_owned());
                while let Some(name) = input.next_key::<String>()? {
                    let known = s.field(&name);
                    let duplicate = known.is_some() && out.contains_key(&name);
                    let value = self.state.within(format_args!(".{name}"), |state| {
                        if duplicate {
                            state.report("duplicate");
                        }
                        match known {
                            Some(field) => input.next_value_seed(Seed { schema, ty: field.ty, state }),
                            None => {
                                state.report("unknown");
                                input.next_value::<serde::de::IgnoredAny>().map(|_| None)
                            }
                        }
                    })?;
                    if let Some(value) = value {
                        out.insert(name, value);
                    }
                }
                self.state.owner = owner;
            }
            Shape::Map { item, .. } => {
                while let Some(name) = input.next_key::<String>()? {
                    let seen = out.contains_key(&name);
                    let value = self.state.within(format_args!(".{name}"), |state| {
                        if seen {
                            state.report("duplicate");
                        }
                        input.next_value_seed(Seed { schema, ty: *item, state })
                    })?;
                    // Go's zero value stands for null in a map.
                    let value = value.or_else(|| match schema.shape(*item) {
                        Shape::String | Shape::Bytes => Some(Value::String(String::new())),
                        Shape::Any => Some(Value::Null),
                        _ => None,
                    });
                    if let Some(value) = value {
                        out.insert(name, value);
                    }
                }
            }
            Shape::Any | Shape::Free => {
                while let Some(name) = input.next_key::<String>()? {
                    let seed = Seed { schema, ty: self.ty, state: self.state };
                    let value = input.next_value_seed(seed)?;
                    out.insert(name, value.unwrap_or_default());
                }
            }
            _ => return Err(self.mismatch("object")),
        }
        Ok(out)
    }

    fn array<'de, A: SeqAccess<'de>>(&mut self, mut input: A) -> Result<Vec<Value>, A::Error> {
        let schema = self.schema;
        let item = match schema.shape(self.ty) {
            Shape::List { item, .. } => *item,
            Shape::Any | Shape::Free => self.ty,
            _ => return Err(self.mismatch("array")),
        };
        let mut out = Vec::new();
        loop {
            let next = self.state.within(format_args!("[{}]", out.len()), |state| {
                input.next_element_seed(Seed { schema, ty: item, state })
            })?;
            match next {
                Some(value) => out.push(value.unwrap_or(match schema.shape(item) {
                    Shape::Struct(_) | Shape::Map { .. } => Value::Object(Map::new()),
                    Shape::String => Value::String(String::new()),
                    _ => Value::Null,
                })),
                None => return Ok(out),
            }
        }
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_none<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_bool<E: serde::de::Error>(self, b: bool) -> Result<Self::Value, E> {
        match self.schema.shape(self.ty) {
            Shape::Bool | Shape::Any | Shape::Free => Ok(Some(Value::Bool(b))),
            _ => Err(self.mismatch("bool")),
        }
    }
    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Self::Value, E> {
        self.number(n.into())
    }
    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Self::Value, E> {
        self.number(n.into())
    }
    fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<Self::Value, E> {
        match Number::from_f64(n) {
            Some(n) => self.number(n),
            None => Err(self.mismatch("number")),
        }
    }
    fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<Self::Value, E> {
        self.text(s.to_owned())
    }
    fn visit_string<E: serde::de::Error>(self, s: String) -> Result<Self::Value, E> {
        self.text(s)
    }
    fn visit_map<A: MapAccess<'de>>(mut self, input: A) -> Result<Self::Value, A::Error> {
        self.enter()?;
        let out = self.object(input)?;
        self.state.depth -= 1;
        Ok(Some(Value::Object(out)))
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, input: A) -> Result<Self::Value, A::Error> {
        self.enter()?;
        let out = self.array(input)?;
        self.state.depth -= 1;
        Ok(Some(Value::Array(out)))
    }
}

/// `Pod` of `io.k8s.api.core.v1.Pod`.
pub(crate) fn short_name(s: &Struct) -> &str {
    s.name.rsplit('.').next().unwrap_or(&s.name)
}

/// `v1.Pod` of `io.k8s.api.core.v1.Pod`, as Go prints types.
fn go_name(s: &Struct) -> String {
    let mut parts = s.name.rsplitn(3, '.');
    let (name, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("{package}.{name}")
}

fn bad_base64_at(s: &str) -> usize {
    let fine = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/' | b'=' | b'\n' | b'\r');
    s.bytes().position(|c| !fine(c)).unwrap_or(s.len())
}

fn is_base64(s: &str) -> bool {
    use base64::Engine;
    if s.bytes().any(|c| matches!(c, b'\n' | b'\r')) {
        let joined: String = s.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        return base64::engine::general_purpose::STANDARD.decode(joined).is_ok();
    }
    base64::engine::general_purpose::STANDARD.decode(s).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(body: &str) -> Result<Decoded, DecodeError> {
        let schema = Schema::builtin();
        decode(schema, schema.kind("", "v1", "Pod").unwrap(), body.as_bytes())
    }

    #[test]
    fn prunes_and_reports() {
        let d = pod(r#"{"metadata":{"name":"a","name":"b","creationTimestamp":null},"spec":{"containers":[{"name":"c","bogus":1}],"x":{"y":1}}}"#).unwrap();
        assert_eq!(
            d.problems,
            [
                "duplicate field \"metadata.name\"",
                "unknown field \"spec.containers[0].bogus\"",
                "unknown field \"spec.x\""
            ]
        );
        assert_eq!(
            Value::Object(d.value),
            json!({"metadata":{"name":"b"},"spec":{"containers":[{"name":"c"}]}})
        );
    }

    #[test]
    fn canonical_values() {
        let d = pod(r#"{"metadata":{"deletionTimestamp":"2026-01-02T03:04:05.6+01:00"},"spec":{"containers":[{"resources":{"limits":{"cpu":0.5,"memory":"1024Mi"}}}]}}"#).unwrap();
        assert_eq!(d.value["metadata"]["deletionTimestamp"], "2026-01-02T02:04:05Z");
        assert_eq!(
            d.value["spec"]["containers"][0]["resources"]["limits"],
            json!({"cpu":"500m","memory":"1Gi"})
        );
    }

    #[test]
    fn wrong_types_are_named() {
        for (body, message) in [
            (
                r#"{"spec":{"containers":"x"}}"#,
                "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []",
            ),
            (
                r#"{"spec":{"terminationGracePeriodSeconds":"x"}}"#,
                "json: cannot unmarshal string into Go struct field PodSpec.spec.terminationGracePeriodSeconds of type int64",
            ),
            (
                r#"{"spec":[]}"#,
                "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec",
            ),
            (
                r#"{"spec":{"priority":3000000000}}"#,
                "json: cannot unmarshal number 3000000000 into Go struct field PodSpec.spec.priority of type int32",
            ),
        ] {
            assert_eq!(pod(body).unwrap_err().0, message);
        }
        assert!(pod("{").is_err());
        assert!(pod("[]").is_err());
        assert!(pod("{} x").is_err());
        let deep = format!("{}1{}", r#"{"a":"#.repeat(5000), "}".repeat(5000));
        assert!(pod(&format!(r#"{{"metadata":{{"managedFields":[{{"fieldsV1":{deep}}}]}}}}"#)).is_err());
    }
}
