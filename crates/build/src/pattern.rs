//! Patterns of paths: those of `.dockerignore` (with `!` and `**`) and the wildcards of COPY. Pure.

/// Most lines of an ignore file that are used; more is no list written by anybody.
const PATTERNS_MAX: usize = 10_000;

/// Removes `.`, empty and `..` components; `..` never leads above the top.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Whether one component (no `/`) fits a pattern of `*`, `?`, `[a-z]` and `\`.
pub fn fits_component(pattern: &str, name: &str) -> bool {
    let (p, n): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut text) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while text < n.len() {
        let step = match p.get(at) {
            Some('*') => {
                star = Some((at + 1, text));
                at += 1;
                continue;
            }
            Some('?') => Some(at + 1),
            Some('[') => class(&p, at, n[text]),
            Some('\\') if p.get(at + 1) == Some(&n[text]) => Some(at + 2),
            Some('\\') => None,
            Some(c) if *c == n[text] => Some(at + 1),
            _ => None,
        };
        match (step, star) {
            (Some(next), _) => (at, text) = (next, text + 1),
            (None, Some((after, from))) => {
                star = Some((after, from + 1));
                (at, text) = (after, from + 1);
            }
            (None, None) => return false,
        }
    }
    p.get(at..).is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

/// The place behind a class that holds `c`.
fn class(pattern: &[char], open: usize, c: char) -> Option<usize> {
    let mut at = open + 1;
    let negated = matches!(pattern.get(at), Some('^' | '!'));
    if negated {
        at += 1;
    }
    let mut found = false;
    let first = at;
    loop {
        let low = *pattern.get(at)?;
        if low == ']' && at > first {
            break;
        }
        let low = if low == '\\' {
            at += 1;
            *pattern.get(at)?
        } else {
            low
        };
        let high = match (pattern.get(at + 1), pattern.get(at + 2)) {
            (Some('-'), Some(high)) if *high != ']' => {
                at += 2;
                *high
            }
            _ => low,
        };
        found |= (low..=high).contains(&c);
        at += 1;
    }
    (found != negated).then_some(at + 1)
}

/// Whether all of a path fits all of a pattern; `**` stands for any number of components.
fn fits(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((&"**", rest)), _) => {
            // A `**` at the end takes everything below, but not the directory itself.
            let least = usize::from(rest.is_empty());
            (least..=path.len()).any(|n| path.get(n..).is_some_and(|path| fits(rest, path)))
        }
        (Some((first, rest)), Some((name, below))) => fits_component(first, name) && fits(rest, below),
        _ => false,
    }
}

/// Whether a path fits a pattern with wildcards.
pub fn fits_path(pattern: &str, path: &str) -> bool {
    let (pattern, path) = (clean(pattern), clean(path));
    fits(&pattern.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>())
}

/// Whether a name has wildcards.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// What is left out of a context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignore {
    rules: Vec<Rule>,
    has_exceptions: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    keep: bool,
    parts: Vec<String>,
}

impl Ignore {
    /// Parses the text of a `.dockerignore`.
    pub fn parse(text: &str) -> Ignore {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().filter(|l| !l.starts_with('#')).map(str::trim).filter(|l| !l.is_empty());
        Ignore::of(lines.map(str::to_owned))
    }

    /// Of single patterns.
    pub fn of(patterns: impl IntoIterator<Item = String>) -> Ignore {
        let mut ignore = Ignore::default();
        for pattern in patterns.into_iter().take(PATTERNS_MAX) {
            let (keep, pattern) = match pattern.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, pattern.as_str()),
            };
            let cleaned = clean(pattern);
            if cleaned.is_empty() {
                continue;
            }
            ignore.has_exceptions |= keep;
            ignore.rules.push(Rule { keep, parts: cleaned.split('/').map(str::to_owned).collect() });
        }
        ignore
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a path (relative, clean) is left out: the last rule that fits it or a directory above it decides.
    pub fn hides(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        let mut hidden = false;
        for rule in &self.rules {
            if rule.keep != hidden {
                continue;
            }
            let pattern: Vec<&str> = rule.parts.iter().map(String::as_str).collect();
            if (1..=parts.len()).any(|n| parts.get(..n).is_some_and(|above| fits(&pattern, above))) {
                hidden = !rule.keep;
            }
        }
        hidden
    }

    /// Whether something below a hidden directory may show all the same.
    pub fn may_show_below(&self) -> bool {
        self.has_exceptions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        for (path, want) in [("./a//b/", "a/b"), ("../../a", "a"), ("/", ""), ("a/../b", "b")] {
            assert_eq!(clean(path), want);
        }
    }

    #[test]
    fn patterns() {
        let table = [
            ("*.go", "a.go", true),
            ("*.go", "d/a.go", false),
            ("**/*.go", "a.go", true),
            ("**/*.go", "d/e/a.go", true),
            ("d/**", "d/e/f", true),
            ("d/**", "d", false),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("a*b*c", "aXbYc", true),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
        ];
        for (pattern, path, want) in table {
            assert_eq!(fits_path(pattern, path), want, "{pattern} {path}");
        }
    }

    #[test]
    fn ignore_files() {
        let text = "# comment\n*.log\n!keep.log\n/target\n**/*.tmp\nnode_modules\ndocs/**\n!docs/a/*.md\n\n";
        let ignore = Ignore::parse(text);
        let table = [
            ("a.log", true),
            ("keep.log", false),
            ("d/a.log", false),
            ("target/x/y", true),
            ("src/target", false),
            ("d/x.tmp", true),
            ("node_modules/p/q", true),
            ("docs/a/x.md", false),
            ("docs/b/x.md", true),
            ("docs", false),
            ("Dockerfile", false),
        ];
        for (path, want) in table {
            assert_eq!(ignore.hides(path), want, "{path}");
        }
        assert!(ignore.may_show_below() && Ignore::parse("").is_empty());
        assert!(Ignore::parse("*\n!src").hides("a") && !Ignore::parse("*\n!src").hides("src/x"));
    }
}
