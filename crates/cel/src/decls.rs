//! The table of functions (`data/functions.txt`) as the checker uses it.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::types::Type;

/// One overload of a function.
#[derive(Debug)]
pub(crate) struct Overload {
    pub id: &'static str,
    pub member: bool,
    pub args: Vec<Type>,
    pub result: Type,
}

/// Names of the types that libraries and hosts add.
pub(crate) const OPAQUE: [&str; 11] = [
    "net.IP",
    "net.CIDR",
    "kubernetes.URL",
    "kubernetes.Quantity",
    "kubernetes.Semver",
    "kubernetes.NamedFormat",
    "kubernetes.authorization.Authorizer",
    "kubernetes.authorization.PathCheck",
    "kubernetes.authorization.GroupCheck",
    "kubernetes.authorization.ResourceCheck",
    "kubernetes.authorization.Decision",
];

static FUNCTIONS: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(|| {
    let mut out: HashMap<&'static str, Vec<Overload>> = HashMap::new();
    for line in include_str!("../data/functions.txt").lines().filter(|l| !l.starts_with('#')) {
        let mut words = line.split(' ');
        let (Some(name), Some(id), Some(args), Some(result)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let args = if args == "-" { Vec::new() } else { split(args, ',').into_iter().map(parse).collect() };
        let overload = Overload {
            id: id.trim_start_matches('.'),
            member: id.starts_with('.'),
            args,
            result: parse(result),
        };
        out.entry(name).or_default().push(overload);
    }
    out
});

/// The overloads of a function; empty when there is no such function.
pub(crate) fn overloads(name: &str) -> &'static [Overload] {
    FUNCTIONS.get(name).map_or(&[], Vec::as_slice)
}

/// Every function's name, for the test that each has an implementation.
#[cfg(test)]
pub(crate) fn names() -> Vec<&'static str> {
    FUNCTIONS.keys().copied().collect()
}

/// The type an identifier names.
pub(crate) fn type_named(name: &str) -> Option<Type> {
    let dyn_list = || Type::list(Type::Dyn);
    Some(match name {
        "list" => dyn_list(),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "null_type" => Type::Null,
        "type" => Type::Type(Type::Dyn.into()),
        "optional_type" => Type::optional(Type::Dyn),
        "google.protobuf.Timestamp" => Type::Timestamp,
        "google.protobuf.Duration" => Type::Duration,
        "bool" | "int" | "uint" | "double" | "string" | "bytes" => parse(name),
        _ => Type::Opaque(OPAQUE.iter().find(|o| **o == name)?),
    })
}

/// Splits at a separator that is not inside angle brackets.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut out, mut depth, mut start) = (Vec::new(), 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            c if c == separator && depth == 0 => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

fn parse(text: &str) -> Type {
    let inner = |prefix: &str| text.strip_prefix(prefix).and_then(|t| t.strip_suffix('>'));
    if let Some(item) = inner("list<") {
        return Type::list(parse(item));
    }
    if let Some(item) = inner("optional<") {
        return Type::optional(parse(item));
    }
    if let Some(item) = inner("type<") {
        return Type::Type(parse(item).into());
    }
    if let Some(both) = inner("map<")
        && let [key, value] = split(both, ';')[..]
    {
        return Type::map(parse(key), parse(value));
    }
    match text {
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        _ if text.len() == 1 => Type::Param(u32::from(text.as_bytes()[0])),
        _ => OPAQUE.iter().find(|o| **o == text).map_or(Type::Dyn, |o| Type::Opaque(o)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads() {
        let shown = |name: &str| -> Vec<String> {
            let show = |o: &Overload| {
                let args: Vec<String> = o.args.iter().map(Type::to_string).collect();
                format!("{} {} -> {}", o.id, args.join(" "), o.result)
            };
            overloads(name).iter().map(show).collect()
        };
        assert_eq!(shown("getQuery"), ["url_get_query kubernetes.URL -> map(string, list(string))"]);
        assert_eq!(shown("_[_]").len(), 4);
        assert!(overloads("nothing").is_empty());
    }
}
