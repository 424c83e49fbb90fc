//! Types of expressions: what variables are declared as, what the checker infers, and what JSON is read as.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// How a list behaves under equality and `+` (`x-kubernetes-list-type`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListKind {
    /// Order counts.
    #[default]
    Atomic,
    /// Elements are unique and order does not count.
    Set,
    /// Elements are objects known by these fields, and order does not count.
    Map(Arc<[String]>),
}

/// A type.
#[derive(Debug, Clone)]
pub enum Type {
    /// Only `null`.
    Null,
    /// `true` or `false`.
    Bool,
    /// Signed 64 bits.
    Int,
    /// Unsigned 64 bits.
    Uint,
    /// 64-bit floating point.
    Double,
    /// Unicode text.
    String,
    /// Bytes; base64 text in JSON.
    Bytes,
    /// A point in time; RFC 3339 text in JSON.
    Timestamp,
    /// A span of time; Go's notation in JSON.
    Duration,
    /// Anything, known when it is evaluated.
    Dyn,
    /// Elements of one type.
    List(Arc<Type>, ListKind),
    /// Keys and values of one type each.
    Map(Arc<Type>, Arc<Type>),
    /// A struct with declared fields.
    Object(ObjectType),
    /// A type of a library or the host, known by its name.
    Opaque(&'static str),
    /// A value that may be absent.
    Optional(Arc<Type>),
    /// The type of types.
    Type(Arc<Type>),
    /// A type variable.
    Param(u32),
    /// What an expression that does not check has; fits everywhere, so that one mistake is reported once.
    Error,
}

/// Fields of an object type, looked up when they are needed: built-in types are large and recursive.
pub trait Fields: Send + Sync {
    /// The type of a field, by its name as it is written in expressions.
    fn field(&self, name: &str) -> Option<Type>;
}

impl Fields for BTreeMap<String, Type> {
    fn field(&self, name: &str) -> Option<Type> {
        self.get(name).cloned()
    }
}

/// A named struct. Two of them are the same when their names are.
#[derive(Clone)]
pub struct ObjectType {
    /// Its name, unique within an environment.
    pub name: Arc<str>,
    /// Its fields.
    pub fields: Arc<dyn Fields>,
}

impl fmt::Debug for ObjectType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Type {
    /// A list whose order counts.
    pub fn list(item: Type) -> Type {
        Type::List(Arc::new(item), ListKind::Atomic)
    }
    /// A map.
    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new(key), Arc::new(value))
    }
    /// An optional value.
    pub fn optional(of: Type) -> Type {
        Type::Optional(Arc::new(of))
    }
    /// An object of fields that are known now.
    pub fn object(name: &str, fields: impl IntoIterator<Item = (&'static str, Type)>) -> Type {
        let fields: BTreeMap<String, Type> = fields.into_iter().map(|(n, t)| (n.to_owned(), t)).collect();
        Type::Object(ObjectType { name: name.into(), fields: Arc::new(fields) })
    }

    /// Whether this is `dyn` or an error.
    pub(crate) fn is_loose(&self) -> bool {
        matches!(self, Type::Dyn | Type::Error)
    }

    /// Parameters of a composed type.
    pub(crate) fn params(&self) -> Vec<&Type> {
        match self {
            Type::List(t, _) | Type::Optional(t) | Type::Type(t) => vec![t],
            Type::Map(k, v) => vec![k, v],
            _ => Vec::new(),
        }
    }

    /// The same composed type around other parameters.
    pub(crate) fn with_params(&self, f: &mut dyn FnMut(&Type) -> Type) -> Type {
        match self {
            Type::List(t, kind) => Type::List(Arc::new(f(t)), kind.clone()),
            Type::Optional(t) => Type::Optional(Arc::new(f(t))),
            Type::Type(t) => Type::Type(Arc::new(f(t))),
            Type::Map(k, v) => Type::Map(Arc::new(f(k)), Arc::new(f(v))),
            other => other.clone(),
        }
    }

    /// Whether both are the same kind of type, whatever their parameters.
    pub(crate) fn same_head(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Object(a), Type::Object(b)) => a.name == b.name,
            (Type::Opaque(a), Type::Opaque(b)) => a == b,
            (Type::Param(a), Type::Param(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl PartialEq for Type {
    fn eq(&self, other: &Type) -> bool {
        self.same_head(other) && self.params() == other.params()
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Null => f.write_str("null"),
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Uint => f.write_str("uint"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Bytes => f.write_str("bytes"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Duration => f.write_str("duration"),
            Type::Dyn => f.write_str("dyn"),
            Type::List(t, _) => write!(f, "list({t})"),
            Type::Map(k, v) => write!(f, "map({k}, {v})"),
            Type::Object(o) => f.write_str(&o.name),
            Type::Opaque(name) => f.write_str(name),
            Type::Optional(t) => write!(f, "optional_type({t})"),
            Type::Type(t) => write!(f, "type({t})"),
            Type::Param(n) => write!(f, "_var{n}"),
            Type::Error => f.write_str("!error!"),
        }
    }
}

/// Substitutions of type variables, and assignability under them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mapping(BTreeMap<u32, Type>);

impl Mapping {
    fn find(&self, t: &Type) -> Option<&Type> {
        match t {
            Type::Param(n) => self.0.get(n),
            _ => None,
        }
    }

    fn bind(&mut self, var: &Type, to: Type) {
        if let Type::Param(n) = var {
            self.0.insert(*n, to);
        }
    }

    /// Replaces bound variables; unbound ones become `dyn` if asked.
    pub fn substitute(&self, t: &Type, free_to_dyn: bool) -> Type {
        if let Some(found) = self.find(t) {
            return self.substitute(found, free_to_dyn);
        }
        match t {
            Type::Param(_) if free_to_dyn => Type::Dyn,
            other => other.with_params(&mut |p| self.substitute(p, free_to_dyn)),
        }
    }

    /// Whether each of `from` can stand where `to` is wanted; what that fixes is remembered only if so.
    pub fn assign_all(&mut self, from: &[Type], to: &[Type]) -> bool {
        if from.len() != to.len() {
            return false;
        }
        let mut trial = self.clone();
        let fits = from.iter().zip(to).all(|(a, b)| trial.assignable(a, b));
        if fits {
            *self = trial;
        }
        fits
    }

    fn assignable(&mut self, from: &Type, to: &Type) -> bool {
        if matches!(to, Type::Param(_)) {
            let (valid, bound) = self.try_bind(from, to);
            if valid || bound {
                return valid;
            }
        }
        if matches!(from, Type::Param(_)) {
            return self.try_bind(to, from).0;
        }
        if from.is_loose() || to.is_loose() {
            return true;
        }
        let nullable = |t: &Type| {
            matches!(
                t,
                Type::Null
                    | Type::Opaque(_)
                    | Type::Optional(_)
                    | Type::Object(_)
                    | Type::Duration
                    | Type::Timestamp
            )
        };
        match (from, to) {
            (Type::Null, other) | (other, Type::Null) => nullable(other),
            (Type::Type(_), Type::Type(_)) => true,
            _ if !from.same_head(to) => false,
            _ => from.params().into_iter().zip(to.params()).all(|(a, b)| self.assignable(a, b)),
        }
    }

    /// Tries `t` for the variable `var`: whether it fits, and whether the variable was bound before.
    fn try_bind(&mut self, t: &Type, var: &Type) -> (bool, bool) {
        if t == var {
            return (true, true);
        }
        if let Some(bound) = self.find(var).cloned() {
            if *t == bound {
                return (true, true);
            }
            if self.assignable(t, &bound) {
                let general = if less_specific(t, &bound) { t.clone() } else { bound };
                if self.does_not_occur(var, &general) {
                    self.bind(var, general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.does_not_occur(var, t) {
            self.bind(var, t.clone());
            return (true, false);
        }
        (false, false)
    }

    fn does_not_occur(&self, var: &Type, within: &Type) -> bool {
        if var == within {
            return false;
        }
        match within {
            Type::Param(_) => self.find(within).is_none_or(|t| self.does_not_occur(var, t)),
            other => other.params().into_iter().all(|p| self.does_not_occur(var, p)),
        }
    }
}

/// Whether `a` says no more than `b`.
fn less_specific(a: &Type, b: &Type) -> bool {
    if matches!(a, Type::Dyn | Type::Param(_)) {
        return true;
    }
    if matches!(b, Type::Dyn | Type::Param(_)) {
        return false;
    }
    a.same_head(b)
        && (matches!(a, Type::Type(_))
            || a.params().into_iter().zip(b.params()).all(|(a, b)| less_specific(a, b)))
}
