//! The Common Expression Language as Kubernetes speaks it: compile once against declared variables, evaluate
//! often against JSON that is viewed where it lies.
//!
//! An [`Env`] declares variables; [`Env::compile`] parses, checks types and gives a [`Program`], or the errors in
//! upstream's words. [`Program::evaluate`] runs it under a budget. [`structural`] reads types and sizes from the
//! structural schema of a custom resource; [`device`] is the environment of device selectors.
//!
//! **Invariant:** knows nothing of admission, of custom resources or of the server.

mod ast;
mod check;
mod compare;
mod cost;
mod decls;
pub mod device;
mod error;
mod escape;
mod estimate;
mod eval;
mod fold;
mod lexer;
mod library;
mod literals;
mod macros;
mod output;
mod parser;
pub mod structural;
mod time;
mod types;
mod value;

use std::sync::Arc;

pub use cost::Meter;
pub use error::{CompileError, EvalError};
pub use escape::{escape, unescape};
pub use estimate::{Cost, Sizes};
pub use eval::Activation;
pub use library::{AuthorizationRequest, Authorizer, Decision, authorizer, resource_check};
pub use types::{Fields, ListKind, ObjectType, Type};
pub use value::{Host, Key, List, Map, Text, Value};

/// Most that one evaluation may cost (upstream's `PerCallLimit`).
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// Most that all evaluations for one request or object may cost (upstream's `RuntimeCELCostBudget`).
pub const RUNTIME_BUDGET: u64 = 10_000_000;

/// Finds a struct that expressions may construct.
pub type Structures = fn(&str) -> Option<Type>;

/// What expressions may refer to.
#[derive(Clone, Default)]
pub struct Env {
    variables: Vec<(String, Type)>,
    structures: Option<Structures>,
    bindings: bool,
}

impl Env {
    /// An environment without variables.
    pub fn new() -> Env {
        Env::default()
    }

    /// With a variable more.
    #[must_use]
    pub fn variable(mut self, name: &str, ty: Type) -> Env {
        self.variables.retain(|(n, _)| n != name);
        self.variables.push((name.to_owned(), ty));
        self
    }

    /// With structs that may be constructed.
    #[must_use]
    pub fn structures(mut self, find: Structures) -> Env {
        self.structures = Some(find);
        self
    }

    /// With the macro `cel.bind(name, value, expression)`.
    #[must_use]
    pub fn bindings(mut self) -> Env {
        self.bindings = true;
        self
    }

    /// Compiles an expression.
    pub fn compile(&self, source: &str) -> Result<Program, CompileError> {
        let mut parsed = parser::parse(source, self.bindings).map_err(|m| CompileError::new(source, m))?;
        let checked = check::check(&mut parsed, self).map_err(|m| CompileError::new(source, m))?;
        Ok(Program::new(parsed, checked))
    }
}

impl check::Scope for Env {
    fn variable(&self, name: &str) -> Option<Type> {
        self.variables.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone())
    }
    fn structure(&self, name: &str) -> Option<Type> {
        self.structures.and_then(|find| find(name))
    }
}

/// A compiled expression. Cheap to clone, and shared between threads.
#[derive(Debug, Clone)]
pub struct Program(Arc<Compiled>);

#[derive(Debug)]
struct Compiled {
    root: ast::Expr,
    nodes: Vec<eval::Node>,
    checked: check::Checked,
}

impl Program {
    fn new(parsed: parser::Parsed, checked: check::Checked) -> Program {
        let mut nodes: Vec<eval::Node> = (0..parsed.positions.len())
            .map(|id| eval::Node {
                overload: match checked.overloads.get(id).map(Vec::as_slice) {
                    Some([only]) => only,
                    _ => "",
                },
                run: None,
                constant: false,
            })
            .collect();
        prepare(&parsed.root, &mut nodes);
        Program(Arc::new(Compiled { root: parsed.root, nodes, checked }))
    }

    /// The type of the result.
    pub fn result_type(&self) -> &Type {
        &self.0.checked.types[self.0.root.id]
    }

    /// The least and the most that an evaluation may cost, if values are no larger than `sizes` says.
    pub fn estimate(&self, sizes: &dyn Sizes) -> Cost {
        estimate::estimate(&self.0.root, &self.0.checked, sizes)
    }

    /// Whether the expression refers to a variable.
    pub fn uses(&self, variable: &str) -> bool {
        uses(&self.0.root, variable)
    }

    /// Evaluates within what is left on the meter.
    pub fn evaluate<'a>(
        &self,
        variables: &dyn Activation<'a>,
        meter: &mut Meter,
    ) -> Result<Value<'a>, EvalError> {
        eval::Evaluator { nodes: &self.0.nodes, variables, meter }.eval(&self.0.root, None)
    }
}

/// Finds what each call runs, and which aggregates are constant.
fn prepare(e: &ast::Expr, nodes: &mut [eval::Node]) {
    let mut constant = true;
    e.each_child(&mut |child| {
        prepare(child, nodes);
        constant &= nodes[child.id].constant;
    });
    match &e.kind {
        ast::Kind::Call { function, .. } => {
            nodes[e.id].run = library::implementation(function);
        }
        ast::Kind::Literal(_) => nodes[e.id].constant = true,
        ast::Kind::List(items) => nodes[e.id].constant = constant && items.iter().all(|(_, opt)| !opt),
        ast::Kind::Map(entries) => nodes[e.id].constant = constant && entries.iter().all(|e| !e.optional),
        _ => {}
    }
}

fn uses(e: &ast::Expr, variable: &str) -> bool {
    if matches!(&e.kind, ast::Kind::Ident(name) if name == variable) {
        return true;
    }
    let mut found = false;
    e.each_child(&mut |child| found |= uses(child, variable));
    found
}
