//! Revoked client certificates: by serial number, or everything a user was issued before a moment.
//!
//! The list is fed object by object (`CertificateRevocation` of `auth.ferry.dev/v1`) and asked for every request
//! that a client certificate makes, so that it ends the use of connections which are open already.

use std::collections::HashMap;

use jiff::Timestamp;
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Certificates begin this much before they are issued; a moment of revocation means the moment of issue.
const BACKDATE_SECONDS: i64 = 300;

/// What identifies a client certificate to the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Serial number in lower case hexadecimal, without leading zeros.
    pub serial: String,
    /// Common name.
    pub user: String,
    /// When it was issued.
    pub issued: Timestamp,
}

impl Facts {
    /// Reads a certificate (DER).
    pub fn of(der: &[u8]) -> Option<Facts> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let user = certificate.subject().iter_common_name().find_map(|n| n.as_str().ok())?.to_owned();
        let hex: String = certificate.raw_serial().iter().map(|b| format!("{b:02x}")).collect();
        let begins = certificate.validity().not_before.timestamp();
        let issued = Timestamp::from_second(begins.saturating_add(BACKDATE_SECONDS)).ok()?;
        Some(Facts { serial: normal(&hex), user, issued })
    }
}

/// A serial number as the list compares it: `0A:1b`, `0x0a1b` and `A1B` are the same.
fn normal(serial: &str) -> String {
    let serial = serial.trim().to_ascii_lowercase();
    let digits: String = serial.trim_start_matches("0x").chars().filter(char::is_ascii_hexdigit).collect();
    digits.trim_start_matches('0').to_owned()
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    serial_numbers: Vec<String>,
    users: Vec<RevokedUser>,
    reason: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RevokedUser {
    name: String,
    #[serde(deserialize_with = "moment")]
    issued_before: Option<Timestamp>,
}

fn moment<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|t| t.parse().map_err(serde::de::Error::custom)).transpose()
}

/// One object of the list.
#[derive(Debug)]
struct Entry {
    spec: Spec,
    serials: Vec<String>,
    since: Timestamp,
}

/// The list.
#[derive(Debug)]
pub struct Revocations {
    entries: RwLock<HashMap<String, Entry>>,
    changed: watch::Sender<()>,
}

impl Default for Revocations {
    fn default() -> Self {
        Revocations { entries: RwLock::default(), changed: watch::channel(()).0 }
    }
}

impl Revocations {
    /// Adds or replaces an object. What cannot be read revokes nothing; validation keeps that out.
    pub fn upsert(&self, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let spec = Spec::deserialize(&object["spec"]).unwrap_or_default();
        let since = object["metadata"]["creationTimestamp"].as_str().and_then(|t| t.parse().ok());
        let serials = spec.serial_numbers.iter().map(|s| normal(s)).collect();
        let entry = Entry { spec, serials, since: since.unwrap_or(Timestamp::UNIX_EPOCH) };
        self.entries.write().insert(name, entry);
        self.changed.send_replace(());
    }

    /// Removes an object.
    pub fn remove(&self, name: &str) {
        self.entries.write().remove(name);
    }

    /// Returns once a certificate is revoked.
    pub async fn revoked(&self, facts: &Facts) {
        let mut changed = self.changed.subscribe();
        while self.refusal(facts).is_none() {
            if changed.changed().await.is_err() {
                // Without a list nothing is revoked any more.
                return std::future::pending().await;
            }
        }
    }

    /// Why and since when a certificate is revoked; `None` when it is not.
    pub fn refusal(&self, facts: &Facts) -> Option<String> {
        let entries = self.entries.read();
        let (name, entry, moment) = entries.iter().find_map(|(name, entry)| {
            if entry.serials.contains(&facts.serial) {
                return Some((name, entry, entry.since));
            }
            let by_user = |u: &&RevokedUser| {
                u.name == facts.user && u.issued_before.is_none_or(|before| facts.issued < before)
            };
            let user = entry.spec.users.iter().find(by_user)?;
            Some((name, entry, user.issued_before.unwrap_or(entry.since)))
        })?;
        let why = if entry.spec.reason.is_empty() { "" } else { ": " };
        Some(format!(
            "the client certificate of user {:?} (serial {}) was revoked at {moment} by CertificateRevocation {name:?}{why}{}",
            facts.user, facts.serial, entry.spec.reason
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn whoever_waits_learns_of_it() {
        let list = std::sync::Arc::new(Revocations::default());
        let facts = Facts { serial: "1".into(), user: "bob".into(), issued: Timestamp::UNIX_EPOCH };
        let waiting = {
            let list = list.clone();
            tokio::spawn(async move { list.revoked(&facts).await })
        };
        tokio::task::yield_now().await;
        list.upsert(&json!({"metadata": {"name": "other"}, "spec": {"users": [{"name": "eve"}]}}));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        list.upsert(&json!({"metadata": {"name": "left"}, "spec": {"users": [{"name": "bob"}]}}));
        waiting.await.unwrap();
    }

    #[test]
    fn by_serial_and_by_user() {
        let list = Revocations::default();
        list.upsert(&json!({"metadata": {"name": "lost", "creationTimestamp": "2026-05-01T10:00:00Z"},
            "spec": {"serialNumbers": ["0A:1B:FF"], "reason": "laptop lost"}}));
        list.upsert(&json!({"metadata": {"name": "left", "creationTimestamp": "2026-05-01T10:00:00Z"},
            "spec": {"users": [{"name": "bob", "issuedBefore": "2026-04-01T00:00:00Z"}, {"name": "eve"}]}}));
        let facts = |serial: &str, user: &str, issued: &str| Facts {
            serial: normal(serial),
            user: user.into(),
            issued: issued.parse().unwrap(),
        };
        for (facts, expected) in [
            (facts("a1bff", "ann", "2026-01-01T00:00:00Z"), Some("at 2026-05-01T10:00:00Z")),
            (facts("0xa1bfe", "ann", "2026-01-01T00:00:00Z"), None),
            (facts("1", "bob", "2026-03-31T23:59:59Z"), Some("at 2026-04-01T00:00:00Z")),
            (facts("1", "bob", "2026-04-01T00:00:00Z"), None),
            (facts("1", "eve", "2027-04-01T00:00:00Z"), Some("by CertificateRevocation \"left\"")),
        ] {
            let refusal = list.refusal(&facts);
            match expected {
                None => assert_eq!(refusal, None),
                Some(part) => assert!(refusal.clone().is_some_and(|r| r.contains(part)), "{refusal:?}"),
            }
        }
        list.remove("lost");
        assert_eq!(list.refusal(&facts("a1bff", "ann", "2026-01-01T00:00:00Z")), None);
    }
}
