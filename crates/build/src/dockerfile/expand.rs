//! Variables in instructions: `$x`, `${x}` and the shell's modifiers, with the shell's quotes.

use std::collections::BTreeMap;

/// Longest result of an expansion: keeps variables that hold variables from growing without end.
const EXPANDED_LEN_MAX: usize = 1 << 20;

/// Names and values in force.
pub type Variables = BTreeMap<String, String>;

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// `${x` without its end, or with an unknown modifier.
    #[error("failed to process {word:?}: {why}")]
    Syntax {
        /// The word.
        word: String,
        /// What is wrong.
        why: String,
    },
    /// `${x:?message}` of a variable that is not set.
    #[error("failed to process {word:?}: {name}: {message}")]
    Required {
        /// The word.
        word: String,
        /// The variable.
        name: String,
        /// What the author wants said.
        message: String,
    },
}

/// Expands one word: quotes are removed, variables replaced (but not between single quotes).
pub fn expand(word: &str, variables: &Variables, escape: char) -> Result<String, ExpandError> {
    let chars: Vec<char> = word.chars().collect();
    let mut expander = Expander { word, chars: &chars, at: 0, variables, escape, keep_quotes: false };
    expander.until(None)
}

/// Expands variables alone: quotes stay, as in the text of a heredoc.
pub(crate) fn expand_text(text: &str, variables: &Variables, escape: char) -> Result<String, ExpandError> {
    let chars: Vec<char> = text.chars().collect();
    let mut expander = Expander { word: text, chars: &chars, at: 0, variables, escape, keep_quotes: true };
    expander.until(None)
}

struct Expander<'a> {
    word: &'a str,
    chars: &'a [char],
    at: usize,
    variables: &'a Variables,
    escape: char,
    keep_quotes: bool,
}

impl Expander<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn syntax(&self, why: impl Into<String>) -> ExpandError {
        ExpandError::Syntax { word: self.word.to_owned(), why: why.into() }
    }

    /// Up to the closing character, which is consumed.
    fn until(&mut self, end: Option<char>) -> Result<String, ExpandError> {
        let mut out = String::new();
        while let Some(c) = self.peek() {
            if Some(c) == end {
                self.at += 1;
                return Ok(out);
            }
            match c {
                '\'' if !self.keep_quotes => self.single_quoted(&mut out)?,
                '"' if !self.keep_quotes => self.double_quoted(&mut out)?,
                '$' => {
                    let value = self.dollar()?;
                    out.push_str(&value);
                }
                c if c == self.escape => {
                    self.at += 1;
                    match self.peek() {
                        Some(next) if self.keep_quotes && next != '$' && next != self.escape => {
                            out.push(c);
                            out.push(next);
                        }
                        Some(next) => out.push(next),
                        // A lone escape at the end stands for itself.
                        None => out.push(c),
                    }
                    self.at += 1;
                }
                c => {
                    out.push(c);
                    self.at += 1;
                }
            }
            if out.len() > EXPANDED_LEN_MAX {
                return Err(self.syntax("the result is too long"));
            }
        }
        match end {
            None => Ok(out),
            Some(end) => Err(self.syntax(format!("unexpected end of statement while looking for {end:?}"))),
        }
    }

    fn single_quoted(&mut self, out: &mut String) -> Result<(), ExpandError> {
        self.at += 1;
        while let Some(c) = self.peek() {
            self.at += 1;
            if c == '\'' {
                return Ok(());
            }
            out.push(c);
        }
        Err(self.syntax("unexpected end of statement while looking for matching single-quote"))
    }

    fn double_quoted(&mut self, out: &mut String) -> Result<(), ExpandError> {
        self.at += 1;
        while let Some(c) = self.peek() {
            match c {
                '"' => {
                    self.at += 1;
                    return Ok(());
                }
                '$' => {
                    let value = self.dollar()?;
                    out.push_str(&value);
                }
                c if c == self.escape => {
                    self.at += 1;
                    match self.peek() {
                        Some(next) if next == '"' || next == '$' || next == self.escape => out.push(next),
                        Some(next) => out.extend([c, next]),
                        None => out.push(c),
                    }
                    self.at += 1;
                }
                c => {
                    out.push(c);
                    self.at += 1;
                }
            }
        }
        Err(self.syntax("unexpected end of statement while looking for matching double-quote"))
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            let fits = c.is_ascii_alphabetic() || c == '_' || (c.is_ascii_digit() && !name.is_empty());
            if !fits {
                break;
            }
            name.push(c);
            self.at += 1;
        }
        name
    }

    fn dollar(&mut self) -> Result<String, ExpandError> {
        self.at += 1;
        match self.peek() {
            Some('{') => {
                self.at += 1;
                self.braced()
            }
            _ => {
                let name = self.name();
                if name.is_empty() {
                    return Ok("$".to_owned());
                }
                Ok(self.variables.get(&name).cloned().unwrap_or_default())
            }
        }
    }

    fn braced(&mut self) -> Result<String, ExpandError> {
        let name = self.name();
        if name.is_empty() {
            return Err(self.syntax("bad substitution"));
        }
        let value = self.variables.get(&name).cloned();
        let Some(c) = self.peek() else { return Err(self.syntax("missing '}'")) };
        self.at += 1;
        match c {
            '}' => Ok(value.unwrap_or_default()),
            ':' => {
                let modifier = self.peek().ok_or_else(|| self.syntax("missing ':' in substitution"))?;
                self.at += 1;
                self.conditional(modifier, &name, value.filter(|v| !v.is_empty()))
            }
            '-' | '+' | '?' => self.conditional(c, &name, value),
            '#' | '%' => {
                let greedy = self.peek() == Some(c);
                if greedy {
                    self.at += 1;
                }
                let pattern = self.until(Some('}'))?;
                Ok(trim(&value.unwrap_or_default(), &pattern, c == '#', greedy))
            }
            '/' => {
                let all = self.peek() == Some('/');
                if all {
                    self.at += 1;
                }
                let pattern = self.until(Some('/'))?;
                let replacement = self.until(Some('}'))?;
                Ok(replace(&value.unwrap_or_default(), &pattern, &replacement, all))
            }
            other => Err(self.syntax(format!("unsupported modifier ({other}) in substitution"))),
        }
    }

    fn conditional(
        &mut self,
        modifier: char,
        name: &str,
        set: Option<String>,
    ) -> Result<String, ExpandError> {
        let word = self.until(Some('}'))?;
        match modifier {
            '-' => Ok(set.unwrap_or(word)),
            '+' => Ok(set.map_or_else(String::new, |_| word)),
            '?' => set.ok_or_else(|| ExpandError::Required {
                word: self.word.to_owned(),
                name: name.to_owned(),
                message: if word.is_empty() { "not allowed to be unset".to_owned() } else { word },
            }),
            other => Err(self.syntax(format!("unsupported modifier ({other}) in substitution"))),
        }
    }
}

/// Whether a shell pattern (`*`, `?`) matches all of `text`.
fn matches(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some('?') => (p, t) = (p + 1, t + 1),
            Some('\\') if pattern.get(p + 1) == Some(&text[t]) => (p, t) = (p + 2, t + 1),
            Some(c) if *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

fn trim(value: &str, pattern: &str, from_start: bool, greedy: bool) -> String {
    let (text, pattern): (Vec<char>, Vec<char>) = (value.chars().collect(), pattern.chars().collect());
    let mut lengths: Vec<usize> = (0..=text.len()).collect();
    if greedy {
        lengths.reverse();
    }
    for len in lengths {
        let (cut, rest) = match from_start {
            true => (&text[..len], &text[len..]),
            false => (&text[text.len() - len..], &text[..text.len() - len]),
        };
        if matches(&pattern, cut) {
            return rest.iter().collect();
        }
    }
    value.to_owned()
}

fn replace(value: &str, pattern: &str, replacement: &str, all: bool) -> String {
    let (text, pattern): (Vec<char>, Vec<char>) = (value.chars().collect(), pattern.chars().collect());
    let mut out = String::new();
    let mut at = 0;
    while at < text.len() {
        // The longest match at this place, as in a shell.
        match (at + 1..=text.len()).rev().find(|end| matches(&pattern, &text[at..*end])) {
            Some(end) => {
                out.push_str(replacement);
                at = end;
                if !all {
                    break;
                }
            }
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out.extend(&text[at..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let set = [("a", "one"), ("empty", ""), ("path", "/x/y/z.tar.gz")];
        let variables: Variables = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let table = [
            ("plain", "plain"),
            ("$a", "one"),
            ("x${a}y", "xoney"),
            ("$none.", "."),
            ("${none:-two}", "two"),
            ("${empty:-two}", "two"),
            ("${empty-two}", ""),
            ("${a:+set}", "set"),
            ("${none:+set}", ""),
            ("${none:-${a}}", "one"),
            ("${path#*/}", "x/y/z.tar.gz"),
            ("${path##*/}", "z.tar.gz"),
            ("${path%.*}", "/x/y/z.tar"),
            ("${path%%.*}", "/x/y/z"),
            ("${path/x/w}", "/w/y/z.tar.gz"),
            ("${path//[/]/-}", "/x/y/z.tar.gz"),
            ("${path//?/-}", "-------------"),
            ("'$a'", "$a"),
            ("\"$a b\"", "one b"),
            ("\\$a", "$a"),
            ("\"\\$a\\n\"", "$a\\n"),
            ("$", "$"),
            ("a$ b", "a$ b"),
        ];
        for (word, want) in table {
            assert_eq!(expand(word, &variables, '\\').as_deref(), Ok(want), "{word}");
        }
        for bad in ["${a", "${}", "'a", "\"a", "${a:*b}", "${a^b}"] {
            assert!(matches!(expand(bad, &variables, '\\'), Err(ExpandError::Syntax { .. })), "{bad}");
        }
        let required = expand("${none:?tell me}", &variables, '\\').unwrap_err();
        assert_eq!(required.to_string(), "failed to process \"${none:?tell me}\": none: tell me");
        assert_eq!(expand("`$a\\b", &variables, '`').as_deref(), Ok("$a\\b"));
    }

    #[test]
    fn texts_keep_their_quotes() {
        let variables = Variables::from([("a".to_owned(), "one".to_owned())]);
        assert_eq!(expand_text("'$a' \"\\$a\" \\n", &variables, '\\').as_deref(), Ok("'one' \"$a\" \\n"));
    }
}
