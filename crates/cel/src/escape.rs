//! Names of fields that are no identifiers of the language, and how expressions write them.

use std::borrow::Cow;

/// Words of the language and words it reserves.
const KEYWORDS: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];
const ESCAPES: [(&str, &str); 4] =
    [("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")];

/// How expressions write a field's name; `None` for names they cannot write.
pub fn escape(name: &str) -> Option<Cow<'_, str>> {
    if KEYWORDS.contains(&name) {
        return Some(Cow::Owned(format!("__{name}__")));
    }
    let first = name.chars().next()?;
    if first.is_ascii_digit() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-/".contains(c)) {
        return None;
    }
    if ESCAPES.iter().all(|(plain, _)| !name.contains(plain)) {
        return Some(Cow::Borrowed(name));
    }
    let mut out = String::with_capacity(name.len() + 16);
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        match ESCAPES.iter().find(|(plain, _)| rest.starts_with(plain)) {
            Some((plain, escaped)) => {
                out.push_str(escaped);
                rest = &rest[plain.len()..];
            }
            None => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    Some(Cow::Owned(out))
}

/// The field's name behind what an expression writes.
pub fn unescape(written: &str) -> Option<Cow<'_, str>> {
    if !written.contains("__") {
        return Some(Cow::Borrowed(written));
    }
    if let Some(word) = written.strip_prefix("__").and_then(|w| w.strip_suffix("__"))
        && KEYWORDS.contains(&word)
    {
        return Some(Cow::Owned(word.to_owned()));
    }
    let mut out = String::with_capacity(written.len());
    let mut rest = written;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("__") {
            let (plain, escaped) = ESCAPES.iter().find(|(_, e)| rest.starts_with(e))?;
            out.push_str(plain);
            rest = &rest[escaped.len()..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    Some(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways() {
        for (name, written) in [
            ("plain", "plain"),
            ("namespace", "__namespace__"),
            ("a.b", "a__dot__b"),
            ("a-b/c", "a__dash__b__slash__c"),
            ("a__b", "a__underscores__b"),
            ("a_b", "a_b"),
        ] {
            assert_eq!(escape(name).as_deref(), Some(written), "{name}");
            assert_eq!(unescape(written).as_deref(), Some(name), "{written}");
        }
        assert!(escape("a b").is_none() && escape("1a").is_none());
        assert!(unescape("a__nothing__").is_none());
    }
}
