//! What can be wrong with an expression: mistakes found when it is compiled, and errors of an evaluation.

use std::fmt;

/// One mistake in a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// Byte offset.
    pub at: usize,
    pub message: String,
}

/// An expression that does not compile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(
    /// Every mistake, each with the line it is in and a mark under the place.
    pub String,
);

/// Longest line shown with a mistake.
const SNIPPET_MAX: usize = 16_384;

impl CompileError {
    pub(crate) fn new(source: &str, mut mistakes: Vec<Mistake>) -> CompileError {
        mistakes.sort_by_key(|m| m.at);
        let shown: Vec<String> = mistakes.iter().map(|m| show(source, m)).collect();
        CompileError(shown.join("\n"))
    }
}

fn show(source: &str, mistake: &Mistake) -> String {
    let at = (0..=mistake.at.min(source.len())).rev().find(|i| source.is_char_boundary(*i)).unwrap_or(0);
    let before = &source[..at];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let line = source[line_start..].lines().next().unwrap_or_default();
    let number = before.matches('\n').count() + 1;
    let column = source[line_start..at].chars().count();
    let mut out = format!("ERROR: <input>:{number}:{}: {}", column + 1, mistake.message);
    if line.len() <= SNIPPET_MAX {
        let wide = |c: char, narrow, wide| if c.len_utf8() > 1 { wide } else { narrow };
        let line = line.replace('\t', " ");
        let dots: String = line.chars().take(column).map(|c| wide(c, '.', '\u{ff0e}')).collect();
        let mark = line.chars().nth(column).map_or('^', |c| wide(c, '^', '\u{ff3e}'));
        out.push_str(&format!("\n | {line}\n | {dots}{mark}"));
    }
    out
}

/// Why an evaluation gave no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EvalError {
    /// An error of the language; `&&`, `||` and the macros may absorb it.
    Failed(String),
    /// The budget is used up; nothing absorbs it.
    CostExceeded,
}

impl EvalError {
    /// A value that the operation does not take.
    pub(crate) fn no_overload() -> EvalError {
        EvalError::Failed("no such overload".into())
    }
    /// A key or field that is not there.
    pub(crate) fn no_such_key(key: impl fmt::Display) -> EvalError {
        EvalError::Failed(format!("no such key: {key}"))
    }
    /// Any other error.
    pub fn failed(why: impl Into<String>) -> EvalError {
        EvalError::Failed(why.into())
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EvalError::Failed(why) => f.write_str(why),
            EvalError::CostExceeded => f.write_str("operation cancelled: actual cost limit exceeded"),
        }
    }
}

impl std::error::Error for EvalError {}
