//! Strict decoding of custom resources: any JSON, with duplicates reported, metadata checked as for every
//! kind, and the rest pruned by the schema. Wrong types are validation's business, not decoding's.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::Props;
use super::prune;
use crate::decode::{DEPTH_MAX, DecodeError, Decoded, PROBLEMS_MAX, decode_value};
use crate::types::{Schema, TypeId};

/// Decodes JSON text as an object that `props` describes; `metadata` is the type of its metadata.
pub fn decode(schema: &Schema, metadata: TypeId, props: &Props, json: &[u8]) -> Result<Decoded, DecodeError> {
    let mut state = State::default();
    let mut input = serde_json::Deserializer::from_slice(json);
    let value = Seed(&mut state).deserialize(&mut input).and_then(|v| input.end().map(|()| v));
    let value = value.map_err(|e| DecodeError(e.to_string()))?;
    let mut decoded = finish(schema, metadata, props, value)?;
    decoded.problems.splice(0..0, state.problems);
    Ok(decoded)
}

/// The same for a tree, which has no duplicates any more.
pub fn finish(
    schema: &Schema,
    metadata: TypeId,
    props: &Props,
    value: Value,
) -> Result<Decoded, DecodeError> {
    let Value::Object(mut object) = value else {
        return Err(DecodeError("json: the body is not an object".into()));
    };
    let mut problems = Vec::new();
    match object.remove("metadata") {
        None | Some(Value::Null) => {}
        Some(value @ Value::Object(_)) => {
            let decoded = decode_value(schema, metadata, value)?;
            problems
                .extend(decoded.problems.into_iter().map(|p| p.replacen("field \"", "field \"metadata.", 1)));
            object.insert("metadata".into(), Value::Object(without_empty(decoded.value)));
        }
        Some(_) => {
            return Err(DecodeError(
                "json: cannot unmarshal value into Go struct field .metadata of type v1.ObjectMeta".into(),
            ));
        }
    }
    let types = Types { schema, metadata };
    types.fields(props, &mut object, "", &mut problems)?;
    let unknown = prune::prune(props, &mut object);
    problems.extend(unknown.into_iter().map(|path| format!("unknown field \"{path}\"")));
    Ok(Decoded { value: object, problems })
}

/// Metadata as its typed form writes it: what is empty is absent.
fn without_empty(mut metadata: Map<String, Value>) -> Map<String, Value> {
    metadata.retain(|_, value| match value {
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    });
    metadata
}

/// Checks the metadata of embedded objects as that of whole objects.
struct Types<'a> {
    schema: &'a Schema,
    metadata: TypeId,
}

impl Types<'_> {
    fn fields(
        &self,
        props: &Props,
        object: &mut Map<String, Value>,
        path: &str,
        problems: &mut Vec<String>,
    ) -> Result<(), DecodeError> {
        if props.embedded
            && let Some(metadata @ Value::Object(_)) = object.get_mut("metadata")
        {
            let decoded = decode_value(self.schema, self.metadata, metadata.take())?;
            let at = format!("field \"{path}.metadata.");
            problems.extend(decoded.problems.into_iter().map(|p| p.replacen("field \"", &at, 1)));
            *metadata = Value::Object(without_empty(decoded.value));
        }
        for (name, value) in object {
            let Some(field) = props.field(name) else { continue };
            let here = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            self.value(field, value, &here, problems)?;
        }
        Ok(())
    }

    fn value(
        &self,
        props: &Props,
        value: &mut Value,
        path: &str,
        problems: &mut Vec<String>,
    ) -> Result<(), DecodeError> {
        match value {
            Value::Object(object) => self.fields(props, object, path, problems),
            Value::Array(list) => {
                let Some(items) = &props.items else { return Ok(()) };
                for (i, item) in list.iter_mut().enumerate() {
                    self.value(items, item, &format!("{path}[{i}]"), problems)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[derive(Default)]
struct State {
    path: String,
    problems: Vec<String>,
    depth: usize,
}

struct Seed<'a>(&'a mut State);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        input.deserialize_any(self)
    }
}

impl Seed<'_> {
    fn enter<E: serde::de::Error>(&mut self) -> Result<(), E> {
        self.0.depth += 1;
        if self.0.depth > DEPTH_MAX { Err(E::custom("json: exceeded max depth")) } else { Ok(()) }
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }
    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Number(n.into()))
    }
    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(Value::Number(n.into()))
    }
    fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<Value, E> {
        Number::from_f64(n).map(Value::Number).ok_or_else(|| E::custom("json: a number is out of range"))
    }
    fn visit_str<E>(self, s: &str) -> Result<Value, E> {
        Ok(Value::String(s.to_owned()))
    }
    fn visit_string<E>(self, s: String) -> Result<Value, E> {
        Ok(Value::String(s))
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut input: A) -> Result<Value, A::Error> {
        self.enter()?;
        let (mut out, len) = (Vec::new(), self.0.path.len());
        loop {
            self.0.path.push_str(&format!("[{}]", out.len()));
            let next = input.next_element_seed(Seed(self.0))?;
            self.0.path.truncate(len);
            match next {
                Some(value) => out.push(value),
                None => break,
            }
        }
        self.0.depth -= 1;
        Ok(Value::Array(out))
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut input: A) -> Result<Value, A::Error> {
        self.enter()?;
        let (mut out, len) = (Map::new(), self.0.path.len());
        while let Some(name) = input.next_key::<String>()? {
            if len > 0 {
                self.0.path.push('.');
            }
            self.0.path.push_str(&name);
            if out.contains_key(&name) {
                let problem = format!("duplicate field \"{}\"", self.0.path);
                if self.0.problems.len() < PROBLEMS_MAX && !self.0.problems.contains(&problem) {
                    self.0.problems.push(problem);
                }
            }
            let value = input.next_value_seed(Seed(self.0))?;
            self.0.path.truncate(len);
            out.insert(name, value);
        }
        self.0.depth -= 1;
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn problems_are_named_as_upstream_names_them() {
        let schema = Schema::builtin();
        let metadata = schema.named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap();
        let props = Props::parse(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {"foo": {"type": "string"}}}}}));
        let body = br#"{"metadata":{"name":"a","bogus":1,"labels":{},"creationTimestamp":null},"spec":{"foo":"a","foo":"b","bar":1},"x":1}"#;
        let decoded = decode(schema, metadata, &props, body).unwrap();
        assert_eq!(
            decoded.problems,
            [
                "duplicate field \"spec.foo\"",
                "unknown field \"metadata.bogus\"",
                "unknown field \"spec.bar\"",
                "unknown field \"x\""
            ]
        );
        assert_eq!(Value::Object(decoded.value), json!({"metadata": {"name": "a"}, "spec": {"foo": "b"}}));
        let deep = format!("{}1{}", r#"{"a":"#.repeat(5000), "}".repeat(5000));
        assert!(decode(schema, metadata, &props, deep.as_bytes()).is_err());
        assert!(decode(schema, metadata, &props, b"[]").is_err());
    }
}
