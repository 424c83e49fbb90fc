//! Words of an instruction: flags, quoted words, `key=value` pairs, JSON lists.

use super::ParseError;

/// Takes the leading `--name=value` (or `--name`) words off.
pub(super) fn take_flags(text: &str, escape: char) -> (Vec<(String, Option<String>)>, String) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        let (word, after) = first_word(rest, escape);
        if word == "--" {
            rest = after;
            break;
        }
        let bare = word.trim_start_matches('-');
        match bare.split_once('=') {
            Some((name, value)) => flags.push((name.to_owned(), Some(unquote(value)))),
            None => flags.push((bare.to_owned(), None)),
        }
        rest = after;
    }
    (flags, rest.to_owned())
}

fn unquote(value: &str) -> String {
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote)) {
            return inner.to_owned();
        }
    }
    value.to_owned()
}

/// The first word, quotes and escapes kept, and what comes after the blanks behind it.
pub(super) fn first_word(text: &str, escape: char) -> (String, &str) {
    let mut quote: Option<char> = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        match quote {
            _ if c == escape && quote != Some('\'') => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c.is_whitespace() => {
                return (text[..at].to_owned(), text[at..].trim_start());
            }
            None => {}
        }
    }
    (text.to_owned(), "")
}

/// All words, quotes and escapes kept.
pub(crate) fn words(text: &str, escape: char) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (word, after) = first_word(rest, escape);
        found.push(word);
        rest = after;
    }
    found
}

/// A JSON list of strings, if the text is one.
pub(super) fn json_list(text: &str) -> Option<Vec<String>> {
    if !text.trim_start().starts_with('[') {
        return None;
    }
    serde_json::from_str(text.trim()).ok()
}

/// `key=value ...`, or the old form `key value with blanks`.
pub(super) fn pairs(
    instruction: &str,
    text: &str,
    escape: char,
    line: usize,
) -> Result<Vec<(String, String)>, ParseError> {
    let (first, rest) = first_word(text.trim(), escape);
    if first.is_empty() {
        return Err(ParseError::new(line, format!("{instruction} requires at least one argument")));
    }
    if !first.contains('=') {
        if rest.is_empty() {
            return Err(ParseError::new(line, format!("{instruction} must have two arguments")));
        }
        return Ok(vec![(first, rest.to_owned())]);
    }
    words(text, escape)
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some(("", _)) => Err(ParseError::new(line, format!("{instruction} names can not be blank"))),
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(ParseError::new(
                line,
                format!("Syntax error - can't find = in {word:?}. Must be of the form: name=value"),
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_words() {
        let (flags, rest) = take_flags("--from=a --link --chmod='0644' src \"a b\" dst", '\\');
        let want = [("from", Some("a")), ("link", None), ("chmod", Some("0644"))];
        let got: Vec<_> = flags.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
        assert_eq!(got, want);
        assert_eq!(words(&rest, '\\'), ["src", "\"a b\"", "dst"]);
        assert_eq!(words(r"a\ b c", '\\'), [r"a\ b", "c"]);
    }

    #[test]
    fn pairs_new_and_old() {
        let of = |text: &str| pairs("ENV", text, '\\', 1);
        let owned = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        assert_eq!(of("a=1 b=\"x y\""), Ok(owned(&[("a", "1"), ("b", "\"x y\"")])));
        assert_eq!(of("a b c=d"), Ok(owned(&[("a", "b c=d")])));
        assert!(of("a").is_err() && of("").is_err() && of("a=1 b").is_err() && of("=x").is_err());
    }

    #[test]
    fn json() {
        assert_eq!(json_list(r#" ["a", "b c"] "#), Some(vec!["a".to_owned(), "b c".to_owned()]));
        assert_eq!(json_list("[a]"), None);
        assert_eq!(json_list("a"), None);
    }
}
