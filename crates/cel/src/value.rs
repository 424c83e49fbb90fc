//! Values. JSON is viewed where it lies, through its declared type; only what an expression makes is owned.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value as Json;

use crate::cost::Meter;
use crate::error::EvalError;
use crate::escape;
use crate::library::Opaque;
use crate::time;
use crate::types::{ListKind, Type};

/// Text, borrowed from the input or shared.
#[derive(Clone)]
pub enum Text<'a> {
    /// Part of the input.
    Borrowed(&'a str),
    /// Made by an expression or a constant in it.
    Shared(Arc<str>),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Text::Borrowed(s) => s,
            Text::Shared(s) => s,
        }
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// A value.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// A bool.
    Bool(bool),
    /// An int.
    Int(i64),
    /// A uint.
    Uint(u64),
    /// A double.
    Double(f64),
    /// A string.
    String(Text<'a>),
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// A timestamp.
    Timestamp(Timestamp),
    /// A duration in nanoseconds.
    Duration(i64),
    /// A list.
    List(List<'a>),
    /// A map or an object.
    Map(Map<'a>),
    /// An optional value.
    Optional(Option<Rc<Value<'a>>>),
    /// A type, by its name.
    Type(Arc<str>),
    /// A value of a library.
    Opaque(Opaque<'a>),
    /// An object of the host whose fields are computed when they are asked for.
    Host(Rc<dyn Host<'a> + 'a>),
}

/// An object of the host.
pub trait Host<'a>: fmt::Debug {
    /// A field; absent if there is none of this name.
    fn field(&self, name: &str, meter: &mut Meter) -> Option<Result<Value<'a>, EvalError>>;
}

/// A list: JSON as it is, or elements that were made.
#[derive(Debug, Clone)]
pub enum List<'a> {
    /// JSON with the type of its elements.
    Json(&'a [Json], Arc<Type>, ListKind),
    /// Elements.
    Made(Rc<Vec<Value<'a>>>),
}

/// A map: JSON as it is, or entries that were made.
#[derive(Debug, Clone)]
pub enum Map<'a> {
    /// JSON with its type: a map, an object or `dyn`.
    Json(&'a serde_json::Map<String, Json>, Type),
    /// Entries.
    Made(Rc<BTreeMap<Key<'a>, Value<'a>>>),
    /// Maps by domain; what a domain that is not there leads to is an empty map rather than an error.
    Domains(Rc<BTreeMap<Key<'a>, Value<'a>>>),
    /// A struct that was constructed: its name and the fields that were set.
    Struct(Arc<str>, Rc<BTreeMap<Key<'a>, Value<'a>>>),
}

/// A key of a map that was made. Numbers that are equal are the same key.
#[derive(Debug, Clone)]
pub enum Key<'a> {
    /// A bool.
    Bool(bool),
    /// An int, or a uint that fits.
    Int(i64),
    /// A uint beyond any int.
    Uint(u64),
    /// A string.
    String(Text<'a>),
}

impl Key<'_> {
    fn rank(&self) -> u8 {
        match self {
            Key::Bool(_) => 0,
            Key::Int(_) => 1,
            Key::Uint(_) => 2,
            Key::String(_) => 3,
        }
    }
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Key::Bool(a), Key::Bool(b)) => a.cmp(b),
            (Key::Int(a), Key::Int(b)) => a.cmp(b),
            (Key::Uint(a), Key::Uint(b)) => a.cmp(b),
            (Key::String(a), Key::String(b)) => (**a).cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}
impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Key<'_> {}

impl<'a> Key<'a> {
    /// A value as a key, if it can be one.
    pub(crate) fn of(value: &Value<'a>) -> Option<Key<'a>> {
        Some(match value {
            Value::Bool(b) => Key::Bool(*b),
            Value::Int(n) => Key::Int(*n),
            Value::Uint(n) => i64::try_from(*n).map_or(Key::Uint(*n), Key::Int),
            Value::Double(d) if d.fract() == 0.0 && d.abs() < 9e18 => Key::Int(*d as i64),
            Value::String(s) => Key::String(s.clone()),
            _ => return None,
        })
    }

    pub(crate) fn value(&self) -> Value<'a> {
        match self {
            Key::Bool(b) => Value::Bool(*b),
            Key::Int(n) => Value::Int(*n),
            Key::Uint(n) => Value::Uint(*n),
            Key::String(s) => Value::String(s.clone()),
        }
    }
}

impl<'a> Value<'a> {
    /// JSON seen as a type.
    pub fn json(json: &'a Json, ty: &Type) -> Value<'a> {
        match (json, ty) {
            (Json::Null, _) => Value::Null,
            (Json::Bool(b), _) => Value::Bool(*b),
            (Json::Number(n), Type::Double) => Value::Double(n.as_f64().unwrap_or_default()),
            (Json::Number(n), _) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Value::Int(n),
                (None, Some(n)) => Value::Uint(n),
                _ => Value::Double(n.as_f64().unwrap_or_default()),
            },
            (Json::String(s), ty) => match ty {
                Type::Timestamp => match time::parse_timestamp(s).or_else(|| date(s)) {
                    Some(t) => Value::Timestamp(t),
                    None => Value::text(s),
                },
                Type::Duration => time::parse_duration(s).map_or(Value::text(s), Value::Duration),
                Type::Bytes => {
                    use base64::Engine;
                    match base64::engine::general_purpose::STANDARD.decode(s) {
                        Ok(bytes) => Value::Bytes(bytes.into()),
                        Err(_) => Value::text(s),
                    }
                }
                _ => Value::text(s),
            },
            (Json::Array(items), Type::List(item, kind)) => {
                Value::List(List::Json(items, item.clone(), kind.clone()))
            }
            (Json::Array(items), _) => Value::List(List::Json(items, Arc::new(Type::Dyn), ListKind::Atomic)),
            (Json::Object(map), Type::Object(_) | Type::Map(..)) => Value::Map(Map::Json(map, ty.clone())),
            (Json::Object(map), _) => Value::Map(Map::Json(map, Type::Dyn)),
        }
    }

    /// An object that is a JSON map, seen as a type.
    pub fn object(map: &'a serde_json::Map<String, Json>, ty: &Type) -> Value<'a> {
        Value::Map(Map::Json(map, ty.clone()))
    }

    /// Borrowed text.
    pub fn text(s: &'a str) -> Value<'a> {
        Value::String(Text::Borrowed(s))
    }

    /// Text that was made.
    pub fn owned_text(s: impl Into<Arc<str>>) -> Value<'a> {
        Value::String(Text::Shared(s.into()))
    }

    /// A list that was made.
    pub fn list(items: Vec<Value<'a>>) -> Value<'a> {
        Value::List(List::Made(Rc::new(items)))
    }

    /// A present optional.
    pub(crate) fn some(value: Value<'a>) -> Value<'a> {
        Value::Optional(Some(Rc::new(value)))
    }

    /// Whether this is `true`.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    /// The name of the value's type.
    pub fn type_name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::List(_) => "list",
            Value::Map(Map::Struct(name, _)) => return Cow::Owned(name.to_string()),
            Value::Map(Map::Json(_, Type::Object(o))) => return Cow::Owned(o.name.to_string()),
            Value::Map(_) | Value::Host(_) => "map",
            Value::Optional(_) => "optional_type",
            Value::Type(_) => "type",
            Value::Opaque(o) => o.type_name(),
        })
    }

    /// Number of elements, code points, bytes or entries; 1 for what has no size.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Value::String(s) => s.chars().count() as u64,
            Value::Bytes(b) => b.len() as u64,
            Value::List(l) => l.len() as u64,
            Value::Map(Map::Struct(..)) => 1,
            Value::Map(m) => m.len() as u64,
            Value::Opaque(o) => o.size(),
            _ => 1,
        }
    }
}

fn date(s: &str) -> Option<Timestamp> {
    let day: jiff::civil::Date = s.parse().ok()?;
    day.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|z| z.timestamp())
}

impl<'a> List<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            List::Json(items, ..) => items.len(),
            List::Made(items) => items.len(),
        }
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// One element.
    pub fn get(&self, index: usize) -> Option<Value<'a>> {
        match self {
            List::Json(items, ty, _) => items.get(index).map(|i| Value::json(i, ty)),
            List::Made(items) => items.get(index).cloned(),
        }
    }
    /// Every element.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Value<'a>> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }
    pub(crate) fn kind(&self) -> &ListKind {
        match self {
            List::Json(_, _, kind) => kind,
            List::Made(_) => &ListKind::Atomic,
        }
    }
}

impl<'a> Map<'a> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        match self {
            Map::Json(map, _) => map.len(),
            Map::Made(map) | Map::Domains(map) | Map::Struct(_, map) => map.len(),
        }
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value under a field name as it is written in expressions.
    pub fn field(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Map::Json(map, ty @ Type::Object(object)) => {
                let declared = object.fields.field(name)?;
                let json = match map.get(name) {
                    Some(json) => json,
                    None => map.get(&*escape::unescape(name)?)?,
                };
                let _ = ty;
                Some(Value::json(json, &declared))
            }
            Map::Json(map, ty) => map.get(name).map(|json| Value::json(json, value_type(ty))),
            Map::Made(_) | Map::Domains(_) | Map::Struct(..) => {
                self.get(&Key::String(Text::Shared(name.into())))
            }
        }
    }

    /// The value under a key.
    pub(crate) fn get(&self, key: &Key<'_>) -> Option<Value<'a>> {
        match (self, key) {
            (Map::Json(..), Key::String(s)) => self.field(s),
            (Map::Json(..), _) => None,
            // A key borrowed for less long is as good for looking up.
            (Map::Made(map) | Map::Struct(_, map), key) => lookup(map, key),
            (Map::Domains(map), key) => {
                Some(lookup(map, key).unwrap_or_else(|| Value::Map(Map::Made(Rc::default()))))
            }
        }
    }

    /// Every key with its value.
    pub fn iter(&self) -> Box<dyn Iterator<Item = (Value<'a>, Value<'a>)> + '_> {
        match self {
            Map::Json(map, ty @ Type::Object(_)) => {
                let _ = ty;
                let map: &'a serde_json::Map<String, Json> = map;
                Box::new(map.keys().filter_map(move |k| {
                    let escaped = escape::escape(k)?;
                    let value = self.field(&escaped)?;
                    Some((Value::text(k), value))
                }))
            }
            Map::Json(map, ty) => {
                let (map, ty): (&'a serde_json::Map<String, Json>, _) = (map, value_type(ty));
                Box::new(map.iter().map(move |(k, v)| (Value::text(k), Value::json(v, ty))))
            }
            Map::Made(map) | Map::Domains(map) | Map::Struct(_, map) => {
                Box::new(map.iter().map(|(k, v)| (k.value(), v.clone())))
            }
        }
    }
}

fn lookup<'a>(map: &BTreeMap<Key<'a>, Value<'a>>, key: &Key<'_>) -> Option<Value<'a>> {
    let owned: Key<'a> = match key {
        Key::Bool(b) => Key::Bool(*b),
        Key::Int(n) => Key::Int(*n),
        Key::Uint(n) => Key::Uint(*n),
        Key::String(s) => Key::String(Text::Shared(Arc::from(&**s))),
    };
    map.get(&owned).cloned()
}

fn value_type(ty: &Type) -> &Type {
    match ty {
        Type::Map(_, value) => value,
        _ => &Type::Dyn,
    }
}
