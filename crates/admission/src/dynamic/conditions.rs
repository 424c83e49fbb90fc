//! Match conditions: expressions that must all hold before a webhook or policy is asked.

use cel::{Env, Meter, Program};
use serde_json::Value;

use super::scope::Scope;
use super::{items, text};

/// Most that the conditions of one webhook or policy may cost for one request.
const BUDGET: u64 = 2_500_000;

/// Compiled conditions with their sources.
#[derive(Debug, Clone, Default)]
pub struct Conditions(Vec<(String, Result<Program, String>)>);

/// What the conditions say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All hold.
    Match,
    /// One does not hold.
    NoMatch,
    /// None is false, but some failed.
    Failed(String),
}

impl Conditions {
    /// Compiles `matchConditions`.
    pub fn compile(v: &Value, env: &Env) -> Conditions {
        let compile = |c: &Value| {
            let program = env.compile(text(c, "expression")).map_err(|e| e.to_string());
            (text(c, "expression").to_owned(), program)
        };
        Conditions(items(v, "matchConditions").iter().map(compile).collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Evaluates: a false one decides, whatever else fails.
    pub fn evaluate(&self, scope: &Scope<'_>) -> Verdict {
        let mut meter = Meter::new(BUDGET);
        let mut failed = Vec::new();
        for (source, program) in &self.0 {
            let value = match program {
                Ok(program) => program.evaluate(scope, &mut meter).map_err(|e| e.to_string()),
                Err(e) => Err(e.clone()),
            };
            match value.map(|v| v.as_bool()) {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return Verdict::NoMatch,
                Ok(None) => failed.push(format!("expression '{source}' resulted in error: no such overload")),
                Err(e) => failed.push(format!("expression '{source}' resulted in error: {e}")),
            }
        }
        match failed.as_slice() {
            [] => Verdict::Match,
            [one] => Verdict::Failed(one.clone()),
            many => Verdict::Failed(format!("[{}]", many.join(", "))),
        }
    }
}
