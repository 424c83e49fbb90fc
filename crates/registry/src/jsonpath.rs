//! The JSONPath of printer columns: `.spec.x`, `.a['b.c']`, `.list[0]`, `.list[*].x`,
//! `.list[?(@.type=="Ready")].status`, `..x`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::columns;

/// Most steps of one path: longer ones are mistakes.
const STEPS_MAX: usize = 64;
/// Most values looked at for one cell, so that `..` cannot eat the server's time.
const VALUES_MAX: usize = 10_000;

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(Box<str>),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    Deep,
    Filter(JsonPath, Option<(Op, Operand)>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Value(Value),
    Path(JsonPath),
}

impl JsonPath {
    /// Parses a path that begins with a dot.
    pub fn parse(text: &str) -> Result<JsonPath, String> {
        let mut steps = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            if steps.len() > STEPS_MAX {
                return Err("the path is too long".into());
            }
            if let Some(after) = rest.strip_prefix('[') {
                let (step, after) = bracket(after)?;
                steps.push(step);
                rest = after;
            } else if let Some(after) = rest.strip_prefix("..") {
                steps.push(Step::Deep);
                rest = field(after, &mut steps)?;
            } else if let Some(after) = rest.strip_prefix('.') {
                rest = field(after, &mut steps)?;
            } else if steps.is_empty() {
                return Err(format!("unrecognized path {text:?}: it must begin with a dot"));
            } else {
                return Err(format!("unrecognized character in path at {rest:?}"));
            }
        }
        Ok(JsonPath(steps))
    }

    /// The values that the path leads to.
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        let mut at = vec![root];
        for step in &self.0 {
            let mut next = Vec::new();
            for value in at {
                step.apply(value, &mut next);
                if next.len() > VALUES_MAX {
                    next.truncate(VALUES_MAX);
                    break;
                }
            }
            at = next;
        }
        at
    }

    /// The first value as a cell of a column of a type.
    pub fn cell(&self, object: &Value, ty: &str, now: Timestamp) -> Value {
        let Some(value) = self.find(object).into_iter().next().filter(|v| !v.is_null()) else {
            return Value::Null;
        };
        match (ty, value) {
            ("string", Value::String(_)) => value.clone(),
            ("string", other) => json!(other.to_string()),
            ("integer", Value::Number(n)) => {
                n.as_i64().or(n.as_f64().map(|f| f as i64)).map_or(Value::Null, Value::from)
            }
            ("number", Value::Number(n)) => n.as_f64().map_or(Value::Null, Value::from),
            ("boolean", Value::Bool(_)) => value.clone(),
            ("date", Value::String(text)) => match text.parse::<Timestamp>() {
                Ok(_) => json!(columns::age(text, now)),
                Err(_) => json!("<invalid>"),
            },
            _ => Value::Null,
        }
    }
}

/// A field after a dot; a dot may be escaped by a backslash.
fn field<'t>(text: &'t str, steps: &mut Vec<Step>) -> Result<&'t str, String> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    let end = loop {
        match chars.next() {
            Some((_, '\\')) => name.extend(chars.next().map(|(_, c)| c)),
            Some((at, '.' | '[' | ' ' | ')' | '=' | '!' | '<' | '>')) => break at,
            Some((_, c)) => name.push(c),
            None => break text.len(),
        }
    };
    match name.as_str() {
        "" => {}
        "*" => steps.push(Step::All),
        _ => steps.push(Step::Field(name.into())),
    }
    Ok(&text[end..])
}

/// What is between brackets, and the rest.
fn bracket(text: &str) -> Result<(Step, &str), String> {
    if let Some(filter) = text.strip_prefix("?(") {
        let end = filter.find(")]").ok_or("unterminated filter")?;
        return Ok((parse_filter(&filter[..end])?, &filter[end + 2..]));
    }
    for quote in ['\'', '"'] {
        if let Some(quoted) = text.strip_prefix(quote) {
            let end = quoted.find(&format!("{quote}]")).ok_or("unterminated array")?;
            return Ok((Step::Field(quoted[..end].replace("\\.", ".").into()), &quoted[end + 2..]));
        }
    }
    let end = text.find(']').ok_or("unterminated array")?;
    let (inside, rest) = (text[..end].trim(), &text[end + 1..]);
    let number = |t: &str| t.trim().parse::<i64>().map_err(|_| format!("invalid array index {inside}"));
    let step = match inside.split_once(':') {
        _ if inside == "*" => Step::All,
        Some((from, to)) => {
            let bound = |t: &str| if t.trim().is_empty() { Ok(None) } else { number(t).map(Some) };
            Step::Slice(bound(from)?, bound(to)?)
        }
        None => Step::Index(number(inside)?),
    };
    Ok((step, rest))
}

fn parse_filter(text: &str) -> Result<Step, String> {
    const OPS: [(&str, Op); 6] = [
        ("==", Op::Equal),
        ("!=", Op::NotEqual),
        ("<=", Op::LessOrEqual),
        (">=", Op::GreaterOrEqual),
        ("<", Op::Less),
        (">", Op::Greater),
    ];
    let path = |t: &str| match t.trim().strip_prefix('@') {
        Some(path) => JsonPath::parse(path),
        None => Err(format!("unrecognized filter {text:?}")),
    };
    for (symbol, op) in OPS {
        if let Some((left, right)) = text.split_once(symbol) {
            let right = right.trim();
            let operand = match right.strip_prefix('@') {
                Some(other) => Operand::Path(JsonPath::parse(other)?),
                None => Operand::Value(literal(right)),
            };
            return Ok(Step::Filter(path(left)?, Some((op, operand))));
        }
    }
    Ok(Step::Filter(path(text)?, None))
}

fn literal(text: &str) -> Value {
    match text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')) {
        Some(single) => single.into(),
        None => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    }
}

impl Step {
    fn apply<'a>(&self, value: &'a Value, out: &mut Vec<&'a Value>) {
        match self {
            Step::Field(name) => out.extend(value.get(&**name)),
            Step::Index(at) => {
                out.extend(value.as_array().and_then(|list| list.get(absolute(*at, list.len()))))
            }
            Step::Slice(from, to) => {
                if let Some(list) = value.as_array() {
                    let from = from.map_or(0, |f| absolute(f, list.len())).min(list.len());
                    let to = to.map_or(list.len(), |t| absolute(t, list.len())).min(list.len());
                    out.extend(list.get(from..to).unwrap_or_default());
                }
            }
            Step::All => children(value, out),
            Step::Deep => {
                let mut left = vec![value];
                while let Some(next) = left.pop().filter(|_| out.len() < VALUES_MAX) {
                    out.push(next);
                    let start = left.len();
                    children(next, &mut left);
                    left[start..].reverse();
                }
            }
            Step::Filter(path, condition) => {
                let items = value.as_array().into_iter().flatten();
                out.extend(items.filter(|item| holds(path, condition.as_ref(), item)));
            }
        }
    }
}

fn absolute(index: i64, len: usize) -> usize {
    let index = if index < 0 { index + len as i64 } else { index };
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn children<'a>(value: &'a Value, out: &mut Vec<&'a Value>) {
    match value {
        Value::Array(list) => out.extend(list),
        Value::Object(map) => out.extend(map.values()),
        _ => {}
    }
}

fn holds(path: &JsonPath, condition: Option<&(Op, Operand)>, item: &Value) -> bool {
    let Some(left) = path.find(item).into_iter().next() else { return false };
    let Some((op, operand)) = condition else { return true };
    let right = match operand {
        Operand::Value(value) => Some(value),
        Operand::Path(path) => path.find(item).into_iter().next(),
    };
    let Some(right) = right else { return false };
    let order = match (left, right) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (a, b) if a == b => Some(std::cmp::Ordering::Equal),
        _ => None,
    };
    match op {
        Op::Equal => order.is_some_and(|o| o.is_eq()),
        Op::NotEqual => !order.is_some_and(|o| o.is_eq()),
        Op::Less => order.is_some_and(|o| o.is_lt()),
        Op::LessOrEqual => order.is_some_and(|o| o.is_le()),
        Op::Greater => order.is_some_and(|o| o.is_gt()),
        Op::GreaterOrEqual => order.is_some_and(|o| o.is_ge()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_cells() {
        let object = json!({"metadata": {"annotations": {"a.b/c": "x"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"n": 3, "f": 1.5, "b": true, "list": [{"k": "a", "v": 1}, {"k": "b", "v": 2}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        for (path, ty, wanted) in [
            (".spec.n", "integer", json!(3)),
            (".spec.n", "string", json!("3")),
            (".spec.f", "integer", json!(1)),
            (".spec.f", "number", json!(1.5)),
            (".spec.b", "boolean", json!(true)),
            (".spec.n", "boolean", json!(null)),
            (".spec.missing", "string", json!(null)),
            (r".metadata.annotations.a\.b/c", "string", json!("x")),
            (".metadata.annotations['a.b/c']", "string", json!("x")),
            (".metadata.creationTimestamp", "date", json!("60s")),
            (".metadata.annotations['a.b/c']", "date", json!("<invalid>")),
            (".status.conditions[?(@.type==\"Ready\")].status", "string", json!("True")),
            (".status.conditions[?(@.type=='Other')].status", "string", json!(null)),
            (".spec.list[?(@.v>1)].k", "string", json!("b")),
            (".spec.list[-1].k", "string", json!("b")),
            (".spec.list[*].k", "string", json!("a")),
            (".spec.list[1:].k", "string", json!("b")),
            ("..type", "string", json!("Ready")),
            (".spec.list[0]", "string", json!("{\"k\":\"a\",\"v\":1}")),
        ] {
            assert_eq!(JsonPath::parse(path).unwrap().cell(&object, ty, now), wanted, "{path} as {ty}");
        }
        for bad in ["spec", ".a[", ".a[x]", ".a[?(x)]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }
}
