//! Label and field selectors: parsing with upstream's error texts, and matching.

use std::fmt;

/// The selector text cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

/// How a requirement compares the value of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Value is one of these; `=` and `==` are sets of one.
    In(Vec<String>),
    /// Key absent, or value none of these.
    NotIn(Vec<String>),
    /// Key present.
    Exists,
    /// Key absent.
    DoesNotExist,
    /// Value is an integer greater than this.
    Gt(i64),
    /// Value is an integer less than this.
    Lt(i64),
}

/// One requirement of a selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// Condition on its value.
    pub op: Op,
}

/// A conjunction of requirements; the empty selector matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelSelector(pub Vec<Requirement>);

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        match (&self.op, value) {
            (Op::In(set), Some(v)) => set.iter().any(|s| s == v),
            (Op::In(_), None) => false,
            (Op::NotIn(set), Some(v)) => !set.iter().any(|s| s == v),
            (Op::NotIn(_), None) => true,
            (Op::Exists, v) => v.is_some(),
            (Op::DoesNotExist, v) => v.is_none(),
            (Op::Gt(n), Some(v)) => v.parse::<i64>().is_ok_and(|v| v > *n),
            (Op::Lt(n), Some(v)) => v.parse::<i64>().is_ok_and(|v| v < *n),
            (Op::Gt(_) | Op::Lt(_), None) => false,
        }
    }
}

impl LabelSelector {
    /// Whether every object matches.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object whose labels `get` looks up matches.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|r| r.matches(get(&r.key)))
    }

    /// Parses the query-string form, e.g. `app in (a,b),!legacy,tier!=db`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut requirements = Vec::new();
        for part in split_outside_parentheses(text) {
            let part = part.trim();
            if part.is_empty() {
                if text.trim().is_empty() {
                    continue;
                }
                return Err(ParseError("found ',', expected: identifier after ','".into()));
            }
            requirements.push(parse_requirement(part)?);
        }
        Ok(LabelSelector(requirements))
    }

    /// From the object form (meta/v1 LabelSelector as JSON): matchLabels and matchExpressions.
    pub fn from_json(value: &serde_json::Value) -> Result<Self, ParseError> {
        let mut requirements = Vec::new();
        if let Some(labels) = value.get("matchLabels").and_then(|v| v.as_object()) {
            for (key, v) in labels {
                let v = v.as_str().unwrap_or_default().to_owned();
                requirements.push(Requirement { key: key.clone(), op: Op::In(vec![v]) });
            }
        }
        for e in value.get("matchExpressions").and_then(|v| v.as_array()).into_iter().flatten() {
            let text = |name: &str| e.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
            let values: Vec<String> = (e.get("values").and_then(|v| v.as_array()).into_iter().flatten())
                .filter_map(|v| v.as_str().map(String::from))
                .collect();
            let op = match text("operator").as_str() {
                "In" => Op::In(values),
                "NotIn" => Op::NotIn(values),
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::DoesNotExist,
                other => return Err(ParseError(format!("{other:?} is not a valid label selector operator"))),
            };
            requirements.push(Requirement { key: text("key"), op });
        }
        Ok(LabelSelector(requirements))
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match &r.op {
                Op::In(v) if v.len() == 1 => write!(f, "{}={}", r.key, v[0])?,
                Op::In(v) => write!(f, "{} in ({})", r.key, v.join(","))?,
                Op::NotIn(v) if v.len() == 1 => write!(f, "{}!={}", r.key, v[0])?,
                Op::NotIn(v) => write!(f, "{} notin ({})", r.key, v.join(","))?,
                Op::Exists => f.write_str(&r.key)?,
                Op::DoesNotExist => write!(f, "!{}", r.key)?,
                Op::Gt(n) => write!(f, "{}>{n}", r.key)?,
                Op::Lt(n) => write!(f, "{}<{n}", r.key)?,
            }
        }
        Ok(())
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0u32, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_requirement(part: &str) -> Result<Requirement, ParseError> {
    if let Some(key) = part.strip_prefix('!') {
        return requirement(key.trim(), Op::DoesNotExist);
    }
    for (token, make) in [
        ("!=", (|v| Op::NotIn(vec![v])) as fn(String) -> Op),
        ("==", |v| Op::In(vec![v])),
        ("=", |v| Op::In(vec![v])),
    ] {
        if let Some((key, value)) = part.split_once(token)
            && !key.contains('(')
        {
            let value = value.trim();
            check_value(value)?;
            return requirement(key.trim(), make(value.to_owned()));
        }
    }
    for (token, make) in [(">", Op::Gt as fn(i64) -> Op), ("<", Op::Lt)] {
        if let Some((key, value)) = part.split_once(token) {
            let number = value.trim().parse().map_err(|_| {
                ParseError(format!("for 'Gt', 'Lt' operators, the value must be an integer: {value:?}"))
            })?;
            return requirement(key.trim(), make(number));
        }
    }
    let mut words = part.splitn(2, char::is_whitespace);
    let (key, rest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().trim());
    if rest.is_empty() {
        return requirement(key, Op::Exists);
    }
    let (negative, list) = match (rest.strip_prefix("notin"), rest.strip_prefix("in")) {
        (Some(list), _) => (true, list),
        (None, Some(list)) => (false, list),
        _ => {
            return Err(ParseError(format!(
                "unable to parse requirement: found '{rest}', expected: in, notin, =, ==, !=, gt, lt"
            )));
        }
    };
    let inner = (list.trim().strip_prefix('(').and_then(|l| l.strip_suffix(')'))).ok_or_else(|| {
        ParseError(format!("unable to parse requirement: found '{}', expected: '('", list.trim()))
    })?;
    let values: Vec<String> = inner.split(',').map(|v| v.trim().to_owned()).collect();
    for v in &values {
        check_value(v)?;
    }
    requirement(key, if negative { Op::NotIn(values) } else { Op::In(values) })
}

fn requirement(key: &str, op: Op) -> Result<Requirement, ParseError> {
    if let Some(problem) = crate::names::qualified_name_problem(key) {
        return Err(ParseError(format!(
            "unable to parse requirement: <nil>: Invalid value: {key:?}: {problem}"
        )));
    }
    Ok(Requirement { key: key.to_owned(), op })
}

fn check_value(value: &str) -> Result<(), ParseError> {
    match crate::names::label_value_problem(value) {
        Some(problem) => Err(ParseError(format!(
            "unable to parse requirement: values[0]: Invalid value: {value:?}: {problem}"
        ))),
        None => Ok(()),
    }
}

/// A conjunction of field comparisons, e.g. `spec.nodeName=a,status.phase!=Running`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSelector(pub Vec<FieldRequirement>);

/// One comparison of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRequirement {
    /// Field path, e.g. `metadata.name`.
    pub field: String,
    /// Value to compare with.
    pub value: String,
    /// Whether they must be equal or must differ.
    pub equal: bool,
}

impl FieldSelector {
    /// Whether every object matches.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Parses the query-string form; `\` escapes `,`, `=` and itself.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut out = Vec::new();
        for term in split_unescaped(text, ',').into_iter().filter(|t| !t.is_empty()) {
            let invalid = || ParseError(format!("invalid selector: {text:?}; can't understand {term:?}"));
            let (at, len, equal) = find_operator(term).ok_or_else(invalid)?;
            out.push(FieldRequirement {
                field: term[..at].to_owned(),
                value: unescape(&term[at + len..]),
                equal,
            });
        }
        Ok(FieldSelector(out))
    }

    /// Whether an object whose fields `get` looks up matches; a missing field counts as empty.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|r| (get(&r.field).unwrap_or_default() == r.value) == r.equal)
    }

    /// The value that `field` must have, if the selector pins it.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|r| r.equal && r.field == field).map(|r| r.value.as_str())
    }
}

fn split_unescaped(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == separator => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn find_operator(term: &str) -> Option<(usize, usize, bool)> {
    let at = term.find(['=', '!'])?;
    match &term[at..] {
        t if t.starts_with("!=") => Some((at, 2, false)),
        t if t.starts_with("==") => Some((at, 2, true)),
        t if t.starts_with('=') => Some((at, 1, true)),
        _ => None,
    }
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut escaped = false;
    for c in value.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            escaped = false;
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels: std::collections::HashMap<&str, &str> = labels.iter().copied().collect();
        LabelSelector::parse(selector).unwrap().matches_with(|k| labels.get(k).copied())
    }

    #[test]
    fn label_selectors() {
        let labels = [("app", "web"), ("n", "5")];
        for yes in [
            "",
            "app=web",
            "app==web",
            "app in (web, db)",
            "!x",
            "x!=1",
            "app",
            "n>4",
            "n<6",
            "x notin (a),app=web",
        ] {
            assert!(matches(yes, &labels), "{yes}");
        }
        for no in ["app=db", "app notin (web)", "!app", "x", "n>5", "app in (db)"] {
            assert!(!matches(no, &labels), "{no}");
        }
        for bad in ["a=b=c d", "app in web", "a,,b", "-x=1", "app=a b"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(LabelSelector::parse("a==b, c in (d,e)").unwrap().to_string(), "a=b,c in (d,e)");
    }

    #[test]
    fn field_selectors() {
        let s = FieldSelector::parse("spec.nodeName=a,status.phase!=Failed,x=a\\,b").unwrap();
        assert!(s.matches_with(|f| match f {
            "spec.nodeName" => Some("a"),
            "x" => Some("a,b"),
            _ => None,
        }));
        assert_eq!(s.exact("spec.nodeName"), Some("a"));
        assert!(FieldSelector::parse("nonsense").is_err());
    }
}
