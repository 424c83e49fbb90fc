//! Logical lines: comments dropped, continuations joined, heredocs gathered, parser directives read.

use super::ParseError;

/// Longest Dockerfile accepted: far beyond any written by hand or machine.
pub(super) const TEXT_LEN_MAX: usize = 4 << 20;
/// Instructions that take heredocs.
const WITH_HEREDOCS: [&str; 3] = ["RUN", "COPY", "ADD"];

/// Text that stands below its instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it, and the name of the file that COPY makes of it.
    pub name: String,
    /// Whether variables in it are expanded (the word was not quoted).
    pub expand: bool,
    /// The text.
    pub content: String,
}

/// One logical line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it begins, from 1.
    pub(super) number: usize,
    /// As it stands, with continuations joined.
    pub(super) text: String,
    pub(super) heredocs: Vec<Heredoc>,
    /// The heredocs as they were written, for a shell that reads them itself.
    pub(super) raw_heredocs: String,
}

/// The lines of a file and what its head says of reading them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lines {
    pub(super) escape: char,
    pub(super) lines: Vec<Line>,
}

/// Splits a file.
pub(super) fn split(text: &str) -> Result<Lines, ParseError> {
    if text.len() > TEXT_LEN_MAX {
        return Err(ParseError::new(1, format!("the Dockerfile is larger than {TEXT_LEN_MAX} bytes")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let raw: Vec<&str> = text.lines().collect();
    let escape = directives(&raw)?;
    let mut lines = Vec::new();
    let mut at = 0;
    while at < raw.len() {
        let number = at + 1;
        let Some((text, next)) = logical(&raw, at, escape) else { break };
        at = next;
        if text.is_empty() {
            continue;
        }
        let mut line = Line { number, text, heredocs: Vec::new(), raw_heredocs: String::new() };
        at = gather_heredocs(&raw, at, &mut line)?;
        lines.push(line);
    }
    Ok(Lines { escape, lines })
}

/// Reads `# key=value` lines at the very top; the first line that is none ends them.
fn directives(raw: &[&str]) -> Result<char, ParseError> {
    let mut escape = None;
    let mut seen: Vec<String> = Vec::new();
    for (index, line) in raw.iter().enumerate() {
        let Some(body) = line.trim().strip_prefix('#') else { break };
        let Some((key, value)) = body.split_once('=') else { break };
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        if !["syntax", "escape", "check"].contains(&key.as_str()) {
            break;
        }
        if seen.contains(&key) {
            return Err(ParseError::new(index + 1, format!("only one {key} parser directive can be used")));
        }
        if key == "escape" {
            escape = match value {
                "\\" => Some('\\'),
                "`" => Some('`'),
                other => {
                    let message = format!("invalid escape token '{other}' does not match ` or \\");
                    return Err(ParseError::new(index + 1, message));
                }
            };
        }
        seen.push(key);
    }
    Ok(escape.unwrap_or('\\'))
}

/// Joins one instruction with its continuations; the second value is the first line after it.
fn logical(raw: &[&str], mut at: usize, escape: char) -> Option<(String, usize)> {
    let mut text = String::new();
    let mut begun = false;
    while let Some(line) = raw.get(at) {
        at += 1;
        let bare = line.trim_start();
        // Comments and empty lines within an instruction are as if they were not there.
        if bare.starts_with('#') || (begun && bare.is_empty()) {
            if begun {
                continue;
            }
            return Some((String::new(), at));
        }
        let line = if begun { line } else { bare };
        let trimmed = line.trim_end_matches([' ', '\t']);
        match trimmed.strip_suffix(escape) {
            Some(head) => {
                text.push_str(head);
                begun = true;
            }
            None => {
                text.push_str(line);
                return Some((text.trim_end().to_owned(), at));
            }
        }
    }
    begun.then(|| (text.trim_end().to_owned(), at))
}

fn gather_heredocs(raw: &[&str], mut at: usize, line: &mut Line) -> Result<usize, ParseError> {
    let instruction = line.text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    if !WITH_HEREDOCS.contains(&instruction.as_str()) {
        return Ok(at);
    }
    for opening in openings(&line.text) {
        let mut content = String::new();
        loop {
            let Some(next) = raw.get(at) else {
                let message = format!("unterminated heredoc {:?}", opening.name);
                return Err(ParseError::new(line.number, message));
            };
            at += 1;
            line.raw_heredocs.push('\n');
            line.raw_heredocs.push_str(next);
            let shown = if opening.strip_tabs { next.trim_start_matches('\t') } else { next };
            if shown == opening.name {
                break;
            }
            content.push_str(shown);
            content.push('\n');
        }
        line.heredocs.push(Heredoc { name: opening.name, expand: opening.expand, content });
    }
    Ok(at)
}

struct Opening {
    name: String,
    expand: bool,
    strip_tabs: bool,
}

/// The `<<NAME` words of a line, outside of quotes.
fn openings(text: &str) -> Vec<Opening> {
    let mut found = Vec::new();
    let mut quote: Option<char> = None;
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == '<' && chars.get(at + 1) == Some(&'<') && chars.get(at + 2) != Some(&'<') => {
                if let Some((opening, next)) = opening_at(&chars, at + 2) {
                    found.push(opening);
                    at = next;
                    continue;
                }
            }
            // `<<<` is a here-string of the shell.
            None if c == '<' && chars.get(at + 1) == Some(&'<') => {
                at += 3;
                continue;
            }
            None => {}
        }
        at += 1;
    }
    found
}

fn opening_at(chars: &[char], mut at: usize) -> Option<(Opening, usize)> {
    let strip_tabs = chars.get(at) == Some(&'-');
    if strip_tabs {
        at += 1;
    }
    let quote = chars.get(at).copied().filter(|c| *c == '\'' || *c == '"');
    if quote.is_some() {
        at += 1;
    }
    let name: String = chars.get(at..)?.iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    at += name.chars().count();
    if let Some(quote) = quote {
        if chars.get(at) != Some(&quote) {
            return None;
        }
        at += 1;
    }
    Some((Opening { name, expand: quote.is_none(), strip_tabs }, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<(usize, String)> {
        split(text).unwrap().lines.into_iter().map(|l| (l.number, l.text)).collect()
    }

    #[test]
    fn joins_and_drops() {
        let text = "# a comment\nFROM x\n\nRUN a \\\n  # between\n\n  && b\n  CMD c  \n";
        let want = [(2, "FROM x"), (4, "RUN a   && b"), (8, "CMD c")];
        let got = texts(text);
        assert_eq!(got.iter().map(|(n, t)| (*n, t.as_str())).collect::<Vec<_>>(), want);
    }

    #[test]
    fn the_escape_directive_counts_only_at_the_top() {
        assert_eq!(texts("# escape=`\nRUN a `\nb")[0].1, "RUN a b");
        assert_eq!(texts("FROM x\n# escape=`\nRUN a `\nUSER b").len(), 3);
        assert!(split("# escape=x\nFROM a").is_err());
        assert!(split("# syntax=a\n# syntax=b\nFROM a").is_err());
    }

    #[test]
    fn heredocs() {
        let lines = split("RUN <<-A cat <<'B'\n\tone\n\tA\n$two\nB\nCMD x").unwrap().lines;
        let doc = |name: &str, expand, content: &str| Heredoc {
            name: name.into(),
            expand,
            content: content.into(),
        };
        assert_eq!(lines[0].heredocs, [doc("A", true, "one\n"), doc("B", false, "$two\n")]);
        assert_eq!(lines[1].text, "CMD x");
        assert!(split("RUN <<A\nx").is_err());
        // Neither a here-string nor a quoted word opens one.
        assert_eq!(texts("RUN cat <<<word\nRUN echo '<<A'\nENV a=<<A").len(), 3);
    }
}
