//! Columns of tables: what `kubectl get` shows. The rows are data (`data/columns.txt`), the few cells that
//! need arithmetic are functions in `cells`.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells;
use crate::jsonpath::JsonPath;

/// Where a cell's value comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The object's name.
    Name,
    /// A value at a dotted path, or a text when absent.
    Path(Box<str>, Option<Box<str>>),
    /// Time since a time at a path.
    Age(Box<str>, Box<str>),
    /// Number of items.
    Count(Box<str>),
    /// Strings joined by commas.
    Join(Box<str>),
    /// A label selector (or map of labels) as text.
    Selector(Box<str>),
    /// A path into a custom resource, shown as its column's type.
    JsonPath(JsonPath),
    /// A function of `cells`.
    Function(cells::Cell),
}

/// One column.
#[derive(Debug, Clone)]
pub struct Column {
    /// Header.
    pub name: Box<str>,
    /// OpenAPI type of the cells.
    pub ty: Box<str>,
    /// `name` for the name column.
    pub format: Box<str>,
    /// What it shows, for people.
    pub description: Box<str>,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
    /// Where the cells come from.
    pub source: Source,
}

fn column(name: &str, ty: &str, priority: i32, source: Source) -> Column {
    Column { name: name.into(), ty: ty.into(), format: "".into(), description: "".into(), priority, source }
}

/// The column of names.
pub fn name_column() -> Column {
    Column { format: "name".into(), ..column("Name", "string", 0, Source::Name) }
}

const CREATED: &str = "metadata.creationTimestamp";

/// Name and age.
pub fn standard() -> Vec<Column> {
    let age = Source::Age(CREATED.into(), "<unknown>".into());
    vec![name_column(), column("Age", "string", 0, age)]
}

/// The columns of built-in kinds by `GROUP/KIND`.
pub fn builtin() -> HashMap<String, Vec<Column>> {
    let mut out: HashMap<String, Vec<Column>> = HashMap::new();
    let mut current = String::new();
    for line in include_str!("../data/columns.txt").lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        match line.strip_prefix("  ") {
            None => {
                current = line.strip_prefix('-').unwrap_or(line).to_owned();
                // Events lead with what happened last; their name is a wide column.
                let first = if line.ends_with("/Event") { Vec::new() } else { vec![name_column()] };
                out.insert(current.clone(), first);
            }
            Some(row) => {
                let mut parts = row.splitn(4, '|');
                let mut next = || parts.next().unwrap_or_default();
                let (name, ty, priority, source) = (next(), next(), next(), next());
                // Our own data, covered by a test: a row that does not parse shows nothing.
                if let (Some(columns), Some(source)) = (out.get_mut(&current), parse_source(source)) {
                    columns.push(column(name, ty, priority.parse().unwrap_or(0), source));
                }
            }
        }
    }
    out
}

fn parse_source(text: &str) -> Option<Source> {
    let (text, fallback) = match text.split_once('?') {
        Some((t, f)) => (t, Some(f)),
        None => (text, None),
    };
    if let Some(name) = text.strip_prefix('@') {
        return cells::by_name(name).map(Source::Function);
    }
    if text == "age" {
        return Some(Source::Age(CREATED.into(), "<unknown>".into()));
    }
    let path = |p: &str| Box::<str>::from(p.trim_start_matches('.'));
    match text.split_once(':') {
        Some(("age", p)) => Some(Source::Age(path(p), fallback.unwrap_or("<unknown>").into())),
        Some(("count", p)) => Some(Source::Count(path(p))),
        Some(("join", p)) => Some(Source::Join(path(p))),
        Some(("selector", p)) => Some(Source::Selector(path(p))),
        None if text.starts_with('.') => Some(Source::Path(path(text), fallback.map(Box::from))),
        _ => None,
    }
}

/// The value at a dotted path.
pub fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(object, |v, part| v.get(part).unwrap_or(&Value::Null))
}

impl Column {
    /// The cell of `object` in this column.
    pub fn cell(&self, object: &Value, now: Timestamp) -> Value {
        match &self.source {
            Source::Name => at(object, "metadata.name").clone(),
            Source::Path(path, fallback) => match (at(object, path), fallback) {
                (Value::Null, Some(text)) => match text.parse::<i64>() {
                    Ok(n) if *self.ty == *"integer" => n.into(),
                    _ => json!(text),
                },
                (Value::Null, None) => json!(""),
                (Value::String(s), Some(text)) if s.is_empty() => json!(text),
                (Value::Number(n), _) if *self.ty == *"string" => json!(n.to_string()),
                (Value::Bool(b), _) if *self.ty == *"string" => json!(b.to_string()),
                (v, _) => v.clone(),
            },
            Source::Age(path, fallback) => match at(object, path).as_str() {
                Some(t) => json!(age(t, now)),
                None => json!(fallback),
            },
            Source::Count(path) => match at(object, path) {
                Value::Array(a) => json!(a.len()),
                Value::Object(o) => json!(o.len()),
                _ => json!(0),
            },
            Source::Join(path) => json!(cells::joined(at(object, path))),
            Source::Selector(path) => json!(cells::selector_text(at(object, path))),
            Source::JsonPath(path) => path.cell(object, &self.ty, now),
            Source::Function(f) => f(object, now),
        }
    }
}

/// Time since `since` as upstream shortens it: `5s`, `3m20s`, `2d3h`; `<invalid>` for the future.
pub fn age(since: &str, now: Timestamp) -> String {
    match since.parse::<Timestamp>() {
        Ok(t) => human_duration((now - t).get_seconds_total()),
        Err(_) => "<unknown>".into(),
    }
}

trait SecondsTotal {
    fn get_seconds_total(&self) -> i64;
}

impl SecondsTotal for jiff::Span {
    fn get_seconds_total(&self) -> i64 {
        self.total(jiff::Unit::Second).map(|s| s as i64).unwrap_or(0)
    }
}

/// A duration in seconds as `kubectl` shows it (apimachinery duration.HumanDuration).
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    let years = days / 365;
    let pair = |big: i64, unit: &str, rest: i64, small: &str| {
        if rest == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{rest}{small}") }
    };
    match seconds {
        s if s < -1 => "<invalid>".into(),
        s if s < 0 => "0s".into(),
        s if s < 120 => format!("{s}s"),
        s if minutes < 10 => pair(minutes, "m", s % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => pair(days, "d", hours % 24, "h"),
        _ if days < 365 * 2 => format!("{days}d"),
        _ if days < 365 * 8 => pair(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (3600, "60m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (90_000, "25h"),
            (183_600, "2d3h"),
            (86_400 * 30, "30d"),
            (86_400 * 800, "2y70d"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn every_row_of_the_data_is_understood() {
        let text = include_str!("../data/columns.txt");
        let rows = text.lines().filter(|l| l.starts_with("  ")).count();
        let kinds = text
            .lines()
            .filter(|l| !l.starts_with([' ', '#']) && !l.is_empty() && !l.ends_with("/Event"))
            .count();
        let loaded: usize = builtin().values().map(Vec::len).sum();
        assert_eq!(loaded, rows + kinds);
    }
}
