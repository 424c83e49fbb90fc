//! Named formats of strings.

use meta::names;

use crate::error::EvalError;
use crate::eval::Outcome;
use crate::library::{Impl, Opaque, text, url};
use crate::value::Value;

/// A format: its name, what is wrong with a text, and the length of a pattern that would say the same (for
/// costs).
#[derive(Debug)]
pub struct Format {
    /// Its name in expressions.
    pub name: &'static str,
    problems: fn(&str) -> Vec<String>,
    regex_size: u64,
    construct: Impl,
}

impl Format {
    /// Length of a pattern that would say the same.
    pub(crate) fn regex_size(&self) -> u64 {
        self.regex_size
    }
}

macro_rules! format {
    ($at:literal, $name:literal, $size:literal, $problems:expr) => {
        Format {
            name: $name,
            problems: $problems,
            regex_size: $size,
            construct: |_| Ok(Value::Opaque(Opaque::Format(&FORMATS[$at]))),
        }
    };
}

static FORMATS: [Format; 13] = [
    format!(0, "dns1123Label", 30, |s| names::label_problem(s).into_iter().collect()),
    format!(1, "dns1123Subdomain", 60, |s| names::subdomain_problem(s).into_iter().collect()),
    format!(2, "dns1035Label", 30, |s| names::label_1035_problem(s).into_iter().collect()),
    format!(3, "qualifiedName", 60, |s| names::qualified_name_problem(s).into_iter().collect()),
    format!(4, "dns1123LabelPrefix", 30, |s| names::label_problem(masked(s)).into_iter().collect()),
    format!(5, "dns1123SubdomainPrefix", 60, |s| names::subdomain_problem(masked(s)).into_iter().collect()),
    format!(6, "dns1035LabelPrefix", 30, |s| names::label_1035_problem(masked(s)).into_iter().collect()),
    format!(7, "labelValue", 40, |s| names::label_value_problem(s).into_iter().collect()),
    format!(8, "uri", 1024, |s| url::Url::parse(s).err().into_iter().collect()),
    format!(9, "uuid", 76, |s| when(!is_uuid(s), "does not match the UUID format")),
    format!(10, "byte", 66, |s| when(!is_base64(s), "invalid base64")),
    format!(11, "date", 121, |s| when(
        s.len() != 10 || s.parse::<jiff::civil::Date>().is_err(),
        "invalid date"
    )),
    format!(12, "datetime", 121, |s| when(crate::time::parse_timestamp(s).is_none(), "invalid datetime")),
];

pub(super) const TABLE: &[(&str, Impl)] = &[("format.named", named), ("validate", validate)];

/// `format.NAME()`.
pub(super) fn constructor(function: &str) -> Option<Impl> {
    let name = function.strip_prefix("format.")?;
    FORMATS.iter().find(|f| f.name == name).map(|f| f.construct)
}

/// The text without the dash that a generated suffix will follow.
fn masked(s: &str) -> &str {
    s.strip_suffix('-').filter(|s| !s.is_empty()).unwrap_or(s)
}

fn when(wrong: bool, why: &str) -> Vec<String> {
    if wrong { vec![why.to_owned()] } else { Vec::new() }
}

fn is_uuid(s: &str) -> bool {
    let hex: Vec<&str> = s.split('-').collect();
    let lengths: Vec<usize> = hex.iter().map(|p| p.len()).collect();
    lengths == [8, 4, 4, 4, 12] && hex.iter().all(|p| p.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_base64(s: &str) -> bool {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(s).is_ok()
}

fn named<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let [Value::String(name)] = a else { return Err(EvalError::no_overload()) };
    Ok(match FORMATS.iter().find(|f| *f.name == **name) {
        Some(format) => Value::some(Value::Opaque(Opaque::Format(format))),
        None => Value::Optional(None),
    })
}

fn validate<'a>(a: &[Value<'a>]) -> Outcome<'a> {
    let [Value::Opaque(Opaque::Format(format)), Value::String(s)] = a else {
        return Err(EvalError::no_overload());
    };
    let problems = (format.problems)(s);
    Ok(match problems.is_empty() {
        true => Value::Optional(None),
        false => Value::some(Value::list(problems.into_iter().map(text).collect())),
    })
}
