//! Encryption at rest: a [`store::Store`] that seals the values of chosen resources on their way down and opens
//! them on their way up, so that everything above sees plain bytes and the disk never does.
//!
//! Which resources, and with what, is a list of [`Rule`]s: Ferry's own ([`keyring`]: Secrets, AES-GCM, a key that
//! is replaced from time to time) or those of an `EncryptionConfiguration` ([`config`]). Values carry the name of
//! their key in a prefix, as upstream writes it (`k8s:enc:aesgcm:v1:NAME:`).
//!
//! **Invariant:** knows keys of the store and bytes; nothing of kinds.

pub mod cipher;
pub mod config;
pub mod keyring;
mod sealed;

pub use cipher::Cipher;
pub use sealed::{Sealed, rewrite_stale};

/// Prefix of all keys of objects, as the registry lays them out: `/registry/RESOURCE[.GROUP]/...`.
const ROOT: &str = "/registry/";

/// Resources and what their values are sealed with.
#[derive(Debug, Clone)]
pub struct Rule {
    /// `resource`, `resource.group`, `*.group`, `*.` for the core group, or `*.*`.
    pub resources: Vec<String>,
    /// The first seals; all open, in order.
    pub ciphers: Vec<Cipher>,
}

/// All rules; the first that names a resource counts.
#[derive(Debug, Clone, Default)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// The ciphers for a key of the store; `None` where values stay as they are.
    fn of(&self, key: &str) -> Option<&[Cipher]> {
        let resource = key.strip_prefix(ROOT)?.split('/').next()?;
        let rule = self.0.iter().find(|r| r.resources.iter().any(|pattern| names(pattern, resource)))?;
        Some(&rule.ciphers)
    }

    /// Prefixes of the store that hold sealed values; the whole where a pattern has a wildcard.
    fn prefixes(&self) -> Vec<String> {
        let patterns = self.0.iter().flat_map(|r| &r.resources);
        if patterns.clone().any(|p| p.starts_with('*')) {
            return vec![ROOT.to_owned()];
        }
        patterns.map(|p| format!("{ROOT}{p}/")).collect()
    }
}

/// Whether a pattern names `resource[.group]`.
fn names(pattern: &str, resource: &str) -> bool {
    match pattern.strip_prefix("*.") {
        None => pattern == resource,
        Some("*") => true,
        Some("") => !resource.contains('.'),
        Some(group) => resource.split_once('.').is_some_and(|(_, g)| g == group),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, resource, expect) in [
            ("secrets", "secrets", true),
            ("secrets", "secrets.example.com", false),
            ("widgets.example.com", "widgets.example.com", true),
            ("*.apps", "deployments.apps", true),
            ("*.apps", "pods", false),
            ("*.", "pods", true),
            ("*.", "deployments.apps", false),
            ("*.*", "deployments.apps", true),
        ] {
            assert_eq!(names(pattern, resource), expect, "{pattern} {resource}");
        }
    }
}
