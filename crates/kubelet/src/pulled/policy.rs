//! Which images need a look at a pod's credentials before the pod may use what is on the node already
//! (`imagePullCredentialsVerificationPolicy`). Pure.

use crate::images::repository;

/// When credentials are looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Verification {
    /// Never: whoever names an image that is there may use it.
    Never,
    /// For images that this kubelet has pulled.
    #[default]
    NotPreloaded,
    /// For images that are not in a list.
    NotListed(Vec<Pattern>),
    /// Always.
    Always,
}

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// This repository.
    Exact(String),
    /// Repositories that begin so; ends in `/`.
    Below(String),
}

/// A pattern that cannot be used, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It has space around it.
    #[error("leading/trailing spaces are not allowed: {0}")]
    Spaces(String),
    /// It is empty.
    #[error("the supplied pattern is too short: {0}")]
    Short(String),
    /// A star elsewhere than at the end.
    #[error("not a valid wildcard pattern, only patterns ending with '/*' are allowed: {0}")]
    Star(String),
    /// Nothing before the star.
    #[error("at least registry hostname is required")]
    Host,
    /// It is no image's name.
    #[error("failed to parse as an image name: invalid reference format")]
    Name,
    /// It is not a whole name, or more than a name.
    #[error("neither tag nor digest is accepted in an image reference: {0}")]
    Tagged(String),
}

impl Pattern {
    /// Reads an entry.
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        if text != text.trim() {
            return Err(PatternError::Spaces(text.to_owned()));
        }
        let below = text.ends_with("/*");
        let rest = if below { text.strip_suffix('*').unwrap_or(text) } else { text };
        if rest.is_empty() {
            return Err(PatternError::Short(text.to_owned()));
        }
        if rest.contains('*') {
            return Err(PatternError::Star(text.to_owned()));
        }
        match (below, rest) {
            (true, "/") => Err(PatternError::Host),
            (true, _) => Ok(Pattern::Below(rest.to_owned())),
            (false, _) if !is_name(rest) => Err(PatternError::Name),
            // Short names have to be spelled out, as what they are compared with is.
            (false, _) if repository(rest) != rest => Err(PatternError::Tagged(text.to_owned())),
            (false, _) => Ok(Pattern::Exact(rest.to_owned())),
        }
    }

    fn fits(&self, repository: &str) -> bool {
        match self {
            Pattern::Exact(name) => name == repository,
            Pattern::Below(prefix) => repository.starts_with(prefix.as_str()),
        }
    }
}

/// Whether a text has the characters of a reference in the order that they may have.
fn is_name(text: &str) -> bool {
    let (name, digest) = text.split_once('@').unwrap_or((text, "sha256:0"));
    let plain = |part: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-:".contains(c);
        ends(part.chars().next()) && ends(part.chars().last()) && part.chars().all(inside)
    };
    digest.contains(':') && name.split('/').all(plain)
}

impl Verification {
    /// Whether a pod's credentials count for an image that is there.
    pub fn is_required(&self, image: &str, pulled_here: bool) -> bool {
        match self {
            Verification::Never => false,
            Verification::NotPreloaded => pulled_here,
            Verification::NotListed(patterns) => {
                let repository = repository(image);
                !patterns.iter().any(|pattern| pattern.fits(&repository))
            }
            Verification::Always => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let table = [
            ("r.io/team/app", Ok(Pattern::Exact("r.io/team/app".into()))),
            ("r.io:5000/app", Ok(Pattern::Exact("r.io:5000/app".into()))),
            ("r.io/team/*", Ok(Pattern::Below("r.io/team/".into()))),
            (" r.io/a", Err("leading/trailing spaces are not allowed:  r.io/a")),
            ("", Err("the supplied pattern is too short: ")),
            ("/*", Err("at least registry hostname is required")),
            (
                "r.io/*/app",
                Err("not a valid wildcard pattern, only patterns ending with '/*' are allowed: r.io/*/app"),
            ),
            ("r.io/a:1", Err("neither tag nor digest is accepted in an image reference: r.io/a:1")),
            ("busybox", Err("neither tag nor digest is accepted in an image reference: busybox")),
            ("r.io/a?", Err("failed to parse as an image name: invalid reference format")),
        ];
        for (text, expected) in table {
            let found = Pattern::parse(text).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn what_is_looked_at() {
        let listed = Verification::NotListed(vec![
            Pattern::Exact("docker.io/library/busybox".into()),
            Pattern::Below("r.io/team/".into()),
        ]);
        let table = [
            (Verification::Never, "a", true, false),
            (Verification::NotPreloaded, "a", true, true),
            (Verification::NotPreloaded, "a", false, false),
            (Verification::Always, "a", false, true),
            (listed.clone(), "busybox:1", true, false),
            (listed.clone(), "r.io/team/app@sha256:0", true, false),
            (listed.clone(), "r.io/teams/app", true, true),
            (listed, "r.io/busybox", false, true),
        ];
        for (policy, image, pulled_here, expected) in table {
            assert_eq!(policy.is_required(image, pulled_here), expected, "{policy:?} {image}");
        }
    }
}
