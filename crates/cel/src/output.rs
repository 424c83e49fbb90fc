//! Values back to JSON.

use serde_json::Value as Json;

use crate::error::EvalError;
use crate::time;
use crate::value::{Key, Map, Value};

/// Deepest nesting turned back into JSON.
const DEPTH_MAX: usize = 128;

impl Value<'_> {
    /// The value as JSON.
    pub fn to_json(&self) -> Result<Json, EvalError> {
        to_json(self, DEPTH_MAX)
    }
}

fn to_json(value: &Value<'_>, depth: usize) -> Result<Json, EvalError> {
    use base64::Engine;
    let Some(depth) = depth.checked_sub(1) else {
        return Err(EvalError::failed("the value is nested too deeply"));
    };
    Ok(match value {
        Value::Null | Value::Optional(None) => Json::Null,
        Value::Bool(b) => Json::Bool(*b),
        Value::Int(n) => Json::from(*n),
        Value::Uint(n) => Json::from(*n),
        Value::Double(d) => Json::from(*d),
        Value::String(s) => Json::from(&**s),
        Value::Bytes(b) => Json::from(base64::engine::general_purpose::STANDARD.encode(b)),
        Value::Timestamp(t) => Json::from(time::show_timestamp(*t)),
        Value::Duration(d) => Json::from(time::show_duration(*d)),
        Value::Optional(Some(inner)) => to_json(inner, depth)?,
        Value::List(list) => Json::Array(list.iter().map(|v| to_json(&v, depth)).collect::<Result<_, _>>()?),
        Value::Map(Map::Json(map, _)) => Json::Object((*map).clone()),
        Value::Map(map) => {
            let mut out = serde_json::Map::new();
            for (key, value) in map.iter() {
                let key = match (Key::of(&key), map) {
                    (Some(Key::String(s)), Map::Struct(..)) => {
                        crate::escape::unescape(&s).map_or_else(|| s.to_string(), |s| s.into_owned())
                    }
                    (Some(key), _) => crate::eval::show_key(&key),
                    (None, _) => return Err(EvalError::failed("unsupported key type")),
                };
                out.insert(key, to_json(&value, depth)?);
            }
            Json::Object(out)
        }
        other => {
            let why = format!("unable to convert a value of type {} to JSON", other.type_name());
            return Err(EvalError::failed(why));
        }
    })
}
