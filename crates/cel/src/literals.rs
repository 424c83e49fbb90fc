//! Literals that a function would refuse whenever it runs: durations, timestamps and patterns are checked
//! when the expression is compiled.

use crate::ast::{Expr, Kind, Literal};
use crate::error::Mistake;
use crate::time;

/// Notes every such literal.
pub(crate) fn check(e: &Expr, positions: &[usize], out: &mut Vec<Mistake>) {
    if let Kind::Call { function, target, args } = &e.kind {
        let wanted: Option<(&Expr, fn(&str) -> bool)> = match (function.as_str(), target, &args[..]) {
            ("duration", None, [arg]) => Some((arg, |s| time::parse_duration(s).is_some())),
            ("timestamp", None, [arg]) => Some((arg, |s| time::parse_timestamp(s).is_some())),
            ("matches", Some(_), [arg]) | ("matches", None, [_, arg]) => {
                Some((arg, |s| regex::Regex::new(s).is_ok()))
            }
            _ => None,
        };
        if let Some((arg, valid)) = wanted
            && let Kind::Literal(Literal::String(text)) = &arg.kind
            && !valid(text)
        {
            let at = positions.get(arg.id).copied().unwrap_or(0);
            out.push(Mistake { at, message: format!("invalid {function} argument") });
        }
    }
    e.each_child(&mut |child| check(child, positions, out));
}
