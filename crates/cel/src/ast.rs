//! The syntax tree, with macros already expanded.

use std::sync::Arc;

/// Number of a node; positions, types and overloads are kept beside the tree under it.
pub(crate) type Id = usize;

/// A node.
#[derive(Debug, Clone)]
pub(crate) struct Expr {
    pub id: Id,
    pub kind: Kind,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Literal(Literal),
    Ident(String),
    /// `operand.field`, or `has(operand.field)` when it only tests.
    Select {
        operand: Box<Expr>,
        field: String,
        test: bool,
    },
    Call {
        function: String,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    /// Elements, and whether each was written `?element`.
    List(Vec<(Expr, bool)>),
    Map(Vec<Entry>),
    Struct {
        name: String,
        fields: Vec<Field>,
    },
    Fold(Box<Fold>),
}

/// `key: value` of a map; optional when written `?key: value`.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

/// `field: value` of a struct.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub id: Id,
    pub name: String,
    pub value: Expr,
    pub optional: bool,
}

/// What a macro over a range becomes: an accumulator stepped over the elements while a condition holds.
#[derive(Debug, Clone)]
pub(crate) struct Fold {
    pub range: Expr,
    pub var: String,
    pub var2: Option<String>,
    pub accu: String,
    pub init: Expr,
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

/// A constant.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

/// The accumulator of the standard macros; users cannot write this name.
pub(crate) const ACCU: &str = "@result";

impl Expr {
    /// `a.b.c` if the node is nothing but names.
    pub fn qualified_name(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.clone()),
            Kind::Select { operand, field, test: false } => {
                Some(format!("{}.{field}", operand.qualified_name()?))
            }
            _ => None,
        }
    }
}

impl Expr {
    /// Calls `f` for each node directly below.
    pub fn each_child_mut(&mut self, f: &mut dyn FnMut(&mut Expr)) {
        match &mut self.kind {
            Kind::Literal(_) | Kind::Ident(_) => {}
            Kind::Select { operand, .. } => f(operand),
            Kind::Call { target, args, .. } => target.as_deref_mut().into_iter().chain(args).for_each(f),
            Kind::List(items) => items.iter_mut().for_each(|(e, _)| f(e)),
            Kind::Map(entries) => entries.iter_mut().for_each(|e| {
                f(&mut e.key);
                f(&mut e.value);
            }),
            Kind::Struct { fields, .. } => fields.iter_mut().for_each(|e| f(&mut e.value)),
            Kind::Fold(fold) => {
                let Fold { range, init, condition, step, result, .. } = &mut **fold;
                [range, init, condition, step, result].into_iter().for_each(f);
            }
        }
    }
}

impl Expr {
    /// Calls `f` for each node directly below.
    pub fn each_child(&self, f: &mut dyn FnMut(&Expr)) {
        match &self.kind {
            Kind::Literal(_) | Kind::Ident(_) => {}
            Kind::Select { operand, .. } => f(operand),
            Kind::Call { target, args, .. } => target.as_deref().into_iter().chain(args).for_each(f),
            Kind::List(items) => items.iter().for_each(|(e, _)| f(e)),
            Kind::Map(entries) => entries.iter().for_each(|e| {
                f(&e.key);
                f(&e.value);
            }),
            Kind::Struct { fields, .. } => fields.iter().for_each(|e| f(&e.value)),
            Kind::Fold(fold) => {
                let Fold { range, init, condition, step, result, .. } = &**fold;
                [range, init, condition, step, result].into_iter().for_each(f);
            }
        }
    }
}
