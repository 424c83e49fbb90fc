//! The type table: what is known of every field of every kind.
//!
//! Built-in types are loaded from `data/types.txt` and their defaults from `data/defaults.txt` once at
//! start (about 860 types, a few milliseconds); a custom resource builds the same [`Schema`] at run time.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::structural::Props;

/// Index of a type in its [`Schema`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(u32);

/// Identity of the items of a list (x-kubernetes-list-type).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListKind {
    /// Replaced as a whole.
    Atomic,
    /// Items are their own identity.
    Set,
    /// Items are identified by these fields.
    Map(Box<[Box<str>]>),
}

/// How strategic merge treats a field (x-kubernetes-patch-strategy).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Strategic {
    /// Lists merge instead of being replaced.
    pub merge: bool,
    /// Only the fields named by the patch are kept.
    pub retain_keys: bool,
    /// Field that identifies list items; none for lists of scalars.
    pub merge_key: Option<Box<str>>,
}

/// What values of a type look like.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are OpenAPI's and Kubernetes' own")]
pub enum Shape {
    String,
    Bool,
    Int32,
    Int64,
    Double,
    Bytes,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    /// Any JSON, kept as it is.
    Any,
    /// Any JSON whose objects are owned field by field.
    Free,
    List {
        item: TypeId,
        kind: ListKind,
    },
    Map {
        item: TypeId,
        atomic: bool,
    },
    /// An object with known fields: index into the schema's structs.
    Struct(u32),
}

/// Bits of a number of an embedded message below the number of the message within it.
pub const INNER_SHIFT: u32 = 16;

/// A field of a struct.
#[derive(Debug, Clone)]
pub struct Field {
    /// JSON name.
    pub name: Box<str>,
    /// Type of its value.
    pub ty: TypeId,
    /// Whether OpenAPI lists it as required.
    pub required: bool,
    /// Behaviour under strategic merge patch.
    pub strategic: Strategic,
    /// Value that absence stands for.
    pub default: Option<Value>,
    /// Whether absence differs from the zero value (a pointer in Go).
    pub pointer: bool,
    /// That of the embedded message around it (0 for none; the message within that one above
    /// [`INNER_SHIFT`]), and the protobuf field number. 0 when unknown.
    pub tag: (u32, u32),
}

/// An object with known fields.
#[derive(Debug, Clone)]
pub struct Struct {
    /// Full OpenAPI name, e.g. `io.k8s.api.core.v1.Pod`.
    pub name: Box<str>,
    /// Fields sorted by name.
    pub fields: Vec<Field>,
    /// Owned and replaced as a whole by server-side apply.
    pub atomic: bool,
    /// Group, version, kind where it is a top-level kind.
    pub gvk: Option<(Box<str>, Box<str>, Box<str>)>,
    /// Type of fields that are not listed; none where such fields are unknown.
    pub rest: Option<TypeId>,
}

impl Struct {
    /// The field called `name`.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let at = self.fields.binary_search_by(|f| (*f.name).cmp(name)).ok()?;
        Some(&self.fields[at])
    }

    /// The type of a field, and whether the struct does not list it.
    pub fn field_type(&self, name: &str) -> Option<(TypeId, bool)> {
        let listed = self.field(name).map(|f| (f.ty, false));
        listed.or(self.rest.map(|ty| (ty, true)))
    }
}

/// A closed set of types.
#[derive(Debug, Default)]
pub struct Schema {
    shapes: Vec<Shape>,
    interned: HashMap<Shape, TypeId>,
    structs: Vec<Struct>,
    by_name: HashMap<Box<str>, u32>,
    custom: Option<Custom>,
}

/// The kind of a custom resource among its types.
#[derive(Debug)]
pub struct Custom {
    /// Its own type.
    pub ty: TypeId,
    /// Type of its metadata.
    pub metadata: TypeId,
    /// What its author says of it.
    pub props: Props,
}

/// A line of the type data cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("type data, line {line}: {problem}")]
pub struct LoadError {
    /// Line number, from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

impl Schema {
    /// All built-in types of v1.37.
    pub fn builtin() -> &'static Arc<Schema> {
        static BUILTIN: OnceLock<Arc<Schema>> = OnceLock::new();
        BUILTIN.get_or_init(|| {
            let loaded = Schema::parse(include_str!("../data/types.txt"))
                .and_then(|s| s.with_defaults(include_str!("../data/defaults.txt")));
            match loaded {
                Ok(schema) => Arc::new(schema),
                // Our own data, checked by a test of this crate.
                Err(e) => unreachable!("built-in {e}"),
            }
        })
    }

    /// Shape of a type.
    pub fn shape(&self, ty: TypeId) -> &Shape {
        &self.shapes[ty.0 as usize]
    }

    /// The struct behind a type, if it is one.
    pub fn as_struct(&self, ty: TypeId) -> Option<&Struct> {
        match self.shape(ty) {
            Shape::Struct(at) => Some(&self.structs[*at as usize]),
            _ => None,
        }
    }

    /// A struct by the index in its shape.
    pub fn struct_at(&self, at: u32) -> &Struct {
        &self.structs[at as usize]
    }

    /// All structs, in the order of the data.
    pub fn structs(&self) -> &[Struct] {
        &self.structs
    }

    /// The type with an OpenAPI name.
    pub fn named(&self, name: &str) -> Option<TypeId> {
        let at = *self.by_name.get(name)?;
        self.interned.get(&Shape::Struct(at)).copied()
    }

    /// The type of a top-level kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        let at = self.structs.iter().position(|s| {
            s.gvk.as_ref().is_some_and(|(g, v, k)| (&**g, &**v, &**k) == (group, version, kind))
        })?;
        self.interned.get(&Shape::Struct(at as u32)).copied()
    }

    /// Whether the field numbers of a struct are known, so that it has a protobuf form.
    pub fn has_numbers(&self, ty: TypeId) -> bool {
        self.as_struct(ty).is_some_and(|s| s.fields.iter().any(|f| f.tag.1 > 0))
    }

    /// The custom resource that these types are of.
    pub fn custom(&self, ty: TypeId) -> Option<&Custom> {
        self.custom.as_ref().filter(|c| c.ty == ty)
    }

    /// Makes these the types of a custom resource.
    pub(crate) fn describe(&mut self, ty: TypeId, metadata: Option<TypeId>, props: Props) {
        self.custom = metadata.map(|metadata| Custom { ty, metadata, props });
    }

    /// The type of values nothing is known of.
    pub(crate) fn free(&mut self) -> TypeId {
        self.intern(Shape::Free)
    }

    /// Adds a struct.
    pub(crate) fn add(&mut self, s: Struct) -> TypeId {
        let at = self.structs.len() as u32;
        if !s.name.is_empty() {
            self.by_name.insert(s.name.clone(), at);
        }
        self.structs.push(s);
        self.intern(Shape::Struct(at))
    }

    /// Copies a type of another schema with everything it refers to.
    pub(crate) fn import(&mut self, from: &Schema, ty: TypeId) -> TypeId {
        match from.shape(ty) {
            Shape::List { item, kind } => {
                let item = self.import(from, *item);
                self.intern(Shape::List { item, kind: kind.clone() })
            }
            Shape::Map { item, atomic } => {
                let item = self.import(from, *item);
                self.intern(Shape::Map { item, atomic: *atomic })
            }
            Shape::Struct(at) => {
                let s = from.struct_at(*at);
                if let Some(known) = self.named(&s.name) {
                    return known;
                }
                let empty = Struct { fields: Vec::new(), ..s.clone() };
                let copy = self.add(empty);
                let fields: Vec<Field> =
                    s.fields.iter().map(|f| Field { ty: self.import(from, f.ty), ..f.clone() }).collect();
                if let Shape::Struct(at) = self.shape(copy).clone() {
                    self.structs[at as usize].fields = fields;
                }
                copy
            }
            shape => self.intern(shape.clone()),
        }
    }

    pub(crate) fn intern(&mut self, shape: Shape) -> TypeId {
        if let Some(id) = self.interned.get(&shape) {
            return *id;
        }
        let id = TypeId(self.shapes.len() as u32);
        self.shapes.push(shape.clone());
        self.interned.insert(shape, id);
        id
    }

    /// Reads type data in the format that `data/types.txt` explains.
    pub fn parse(text: &str) -> Result<Schema, LoadError> {
        let mut schema = Schema::default();
        for (package, name) in type_names(text) {
            let full = format!("{package}.{name}").into_boxed_str();
            let at = schema.structs.len() as u32;
            schema.by_name.insert(full.clone(), at);
            schema.structs.push(Struct {
                name: full,
                fields: Vec::new(),
                atomic: false,
                gvk: None,
                rest: None,
            });
            schema.intern(Shape::Struct(at));
        }
        let (mut package, mut current) = ("", None::<usize>);
        let mut next = 0;
        for (i, line) in text.lines().enumerate() {
            let fail = |problem: String| LoadError { line: i + 1, problem };
            if line.starts_with('#') || line.is_empty() {
                continue;
            }
            if let Some(p) = line.strip_prefix("package ") {
                package = p;
            } else if let Some(rest) = line.strip_prefix("type ") {
                let target = &mut schema.structs[next];
                for word in rest.split(' ').skip(1) {
                    match word.strip_prefix("kind=") {
                        Some(kind) => {
                            target.gvk = Some(parse_kind(kind).ok_or_else(|| fail(format!("kind {kind:?}")))?)
                        }
                        None if word == "atomic" => target.atomic = true,
                        None => return Err(fail(format!("unknown word {word:?}"))),
                    }
                }
                current = Some(next);
                next += 1;
            } else {
                let at = current.ok_or_else(|| fail("field outside a type".into()))?;
                let field = schema.parse_field(package, line.trim_start()).map_err(fail)?;
                schema.structs[at].fields.push(field);
            }
        }
        for s in &mut schema.structs {
            s.fields.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(schema)
    }

    fn parse_field(&mut self, package: &str, line: &str) -> Result<Field, String> {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let ty_text = words.next().ok_or("no type")?;
        let (mut kind, mut atomic, mut strategic) = (ListKind::Atomic, false, Strategic::default());
        let mut tag = (0, 0);
        for word in words {
            match word.split_once('=') {
                Some(("list", "atomic")) => kind = ListKind::Atomic,
                Some(("list", "set")) => kind = ListKind::Set,
                Some(("list", keys)) => {
                    let keys = keys.strip_prefix("map:").ok_or("list kind")?;
                    kind = ListKind::Map(keys.split(',').map(Box::from).collect());
                }
                Some(("tag", numbers)) => {
                    let numbers: Vec<u32> =
                        numbers.split('.').map(str::parse).collect::<Result<_, _>>().map_err(|_| "tag")?;
                    tag = match numbers[..] {
                        [number] => (0, number),
                        [outer, number] => (outer, number),
                        [outer, inner, number] => (outer | inner << INNER_SHIFT, number),
                        _ => return Err("tag".into()),
                    };
                }
                Some(("patch", p)) => {
                    let (strategies, key) = p.split_once(':').map_or((p, None), |(s, k)| (s, Some(k)));
                    strategic.merge = strategies.split(',').any(|s| s == "merge");
                    strategic.retain_keys = strategies.split(',').any(|s| s == "retainKeys");
                    strategic.merge_key = key.map(Box::from);
                }
                None if word == "atomic" => atomic = true,
                _ => return Err(format!("unknown word {word:?}")),
            }
        }
        let ty = self.parse_type(package, ty_text, kind, atomic)?;
        Ok(Field {
            name: name.trim_end_matches(['!', '?']).into(),
            ty,
            required: name.contains('!'),
            strategic,
            default: None,
            pointer: name.ends_with('?'),
            tag,
        })
    }

    fn parse_type(
        &mut self,
        package: &str,
        text: &str,
        kind: ListKind,
        atomic: bool,
    ) -> Result<TypeId, String> {
        let shape = match text {
            "string" => Shape::String,
            "bool" => Shape::Bool,
            "int32" => Shape::Int32,
            "int64" => Shape::Int64,
            "double" => Shape::Double,
            "bytes" => Shape::Bytes,
            "quantity" => Shape::Quantity,
            "intOrString" => Shape::IntOrString,
            "time" => Shape::Time,
            "microTime" => Shape::MicroTime,
            "any" => Shape::Any,
            _ => {
                if let Some(item) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
                    let item = self.parse_type(package, item, ListKind::Atomic, false)?;
                    Shape::List { item, kind }
                } else if let Some(item) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
                    let item = self.parse_type(package, item, ListKind::Atomic, false)?;
                    Shape::Map { item, atomic }
                } else {
                    let full = if text.contains('.') { text.to_owned() } else { format!("{package}.{text}") };
                    Shape::Struct(*self.by_name.get(&*full).ok_or_else(|| format!("unknown type {full}"))?)
                }
            }
        };
        Ok(self.intern(shape))
    }

    /// Adds defaults in the format that `data/defaults.txt` explains.
    fn with_defaults(mut self, text: &str) -> Result<Schema, LoadError> {
        let mut current: Option<u32> = None;
        for (i, line) in text.lines().enumerate() {
            let fail = |problem: String| LoadError { line: i + 1, problem };
            if line.starts_with('#') || line.is_empty() {
                continue;
            }
            if !line.starts_with(' ') {
                let at = self.by_name.get(line).ok_or_else(|| fail(format!("unknown type {line}")))?;
                current = Some(*at);
                continue;
            }
            let (name, value) = (line.trim().split_once(' ')).ok_or_else(|| fail("no value".into()))?;
            let value = serde_json::from_str(value).map_err(|e| fail(e.to_string()))?;
            let at = current.ok_or_else(|| fail("field outside a type".into()))?;
            let fields = &mut self.structs[at as usize].fields;
            let field = (fields.iter_mut().find(|f| &*f.name == name))
                .ok_or_else(|| fail(format!("unknown field {name}")))?;
            field.default = Some(value);
        }
        Ok(self)
    }
}

fn type_names(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut package = "";
    text.lines().filter_map(move |line| {
        if let Some(p) = line.strip_prefix("package ") {
            package = p;
        }
        let rest = line.strip_prefix("type ")?;
        Some((package, rest.split(' ').next().unwrap_or(rest)))
    })
}

fn parse_kind(text: &str) -> Option<(Box<str>, Box<str>, Box<str>)> {
    let mut parts = text.splitn(3, '/');
    Some((parts.next()?.into(), parts.next()?.into(), parts.next()?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_types_load() {
        let schema = Schema::builtin();
        let pod = schema.as_struct(schema.kind("", "v1", "Pod").unwrap()).unwrap();
        let spec = schema.as_struct(pod.field("spec").unwrap().ty).unwrap();
        let containers = spec.field("containers").unwrap();
        assert!(containers.required);
        assert_eq!(containers.strategic.merge_key.as_deref(), Some("name"));
        let Shape::List { item, kind } = schema.shape(containers.ty) else { panic!("not a list") };
        assert_eq!(*kind, ListKind::Map(Box::new(["name".into()])));
        let container = schema.as_struct(*item).unwrap();
        assert_eq!(
            container.field("terminationMessagePath").unwrap().default,
            Some("/dev/termination-log".into())
        );
        assert!(schema.structs().len() > 800);
    }

    #[test]
    fn mistakes_in_the_data_are_located() {
        let e = Schema::parse("package p\ntype A\n  x Missing\n").unwrap_err();
        assert_eq!(e.to_string(), "type data, line 3: unknown type p.Missing");
    }
}
