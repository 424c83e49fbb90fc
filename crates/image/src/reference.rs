//! Image references, normalised as Docker does: `busybox` is `docker.io/library/busybox:latest`.
//!
//! Grammar: github.com/distribution/reference.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Longest repository name (with its host) that the grammar allows.
const NAME_LEN_MAX: usize = 255;
/// Longest tag that the grammar allows.
const TAG_LEN_MAX: usize = 128;
/// Host that names without one belong to.
const DEFAULT_HOST: &str = "docker.io";
/// Where that host's registry API is served.
const DEFAULT_HOST_API: &str = "registry-1.docker.io";

/// A normalised image reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Registry host with its port, `docker.io`, `localhost:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Host that serves the registry API.
    pub fn api_host(&self) -> &str {
        if self.host == DEFAULT_HOST { DEFAULT_HOST_API } else { &self.host }
    }

    /// Repository within the registry, `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag, if any. A reference with neither tag nor digest gets `latest`.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest of the manifest, if given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Host and repository, `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// `name@digest` for this repository.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// What to ask the registry for: the digest where there is one, else the tag.
    pub(crate) fn manifest_selector(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::InvalidReference(text.to_owned());
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|_| bad())?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad());
        }
        let (host, path) = match name.split_once('/') {
            Some((first, path)) if looks_like_host(first) => (first, path),
            _ => (DEFAULT_HOST, name),
        };
        let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
        let repository = if host == DEFAULT_HOST && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        let fits = host.len() + 1 + repository.len() <= NAME_LEN_MAX;
        if !fits || !is_host(host) || !repository.split('/').all(is_path_component) {
            return Err(bad());
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Reference { host: host.to_owned(), repository, tag, digest })
    }
}

fn looks_like_host(text: &str) -> bool {
    text.contains('.')
        || text.contains(':')
        || text == "localhost"
        || text.bytes().any(|c| c.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (text, None),
    };
    let port_ok = port.is_none_or(|p| p.parse::<u16>().is_ok());
    let literal = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    let name_ok = match literal {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
        }),
    };
    port_ok && name_ok
}

fn is_tag(text: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= TAG_LEN_MAX
        && word(bytes[0])
        && bytes.iter().all(|&c| word(c) || c == b'.' || c == b'-')
}

/// Lower-case letters and digits, separated by `.`, `_`, `__` or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let alnum = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    let edges = bytes.first().is_some_and(|&c| alnum(c)) && bytes.last().is_some_and(|&c| alnum(c));
    edges
        && bytes.split(|&c| alnum(c)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&c| c == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_as_docker_does() {
        let hex = "a".repeat(64);
        let digest = format!("sha256:{hex}");
        let table = [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("team/app", "docker.io/team/app:latest".to_owned()),
            ("docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("index.docker.io/team/app:2", "docker.io/team/app:2".to_owned()),
            ("localhost:5000/x", "localhost:5000/x:latest".to_owned()),
            ("localhost/x:y", "localhost/x:y".to_owned()),
            ("registry.example/a/b/c:v1", "registry.example/a/b/c:v1".to_owned()),
            (&format!("busybox@{digest}"), format!("docker.io/library/busybox@{digest}")),
            (&format!("busybox:1@{digest}"), format!("docker.io/library/busybox:1@{digest}")),
            ("[::1]:5000/x", "[::1]:5000/x:latest".to_owned()),
            ("a--b/c__d", "docker.io/a--b/c__d:latest".to_owned()),
        ];
        for (given, want) in table {
            assert_eq!(given.parse::<Reference>().unwrap().to_string(), want, "{given}");
        }
    }

    #[test]
    fn refuses_what_docker_refuses() {
        for bad in [
            "",
            "Busybox",
            "busybox:",
            "a//b",
            "a/../b",
            "-a",
            "a-",
            "a:b:c/d",
            "x@sha256:12",
            "x y",
            "a___b",
            "a..b",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
