//! What is noted of a pulled image: who has shown that they may have it. The forms are upstream's
//! (`ImagePulledRecord`, `ImagePullIntent`), so that a node's directory means the same to both. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Version that records are written in.
const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// Versions that can be read; they are alike.
const READABLE: [&str; 2] = [API_VERSION, "kubelet.config.k8s.io/v1alpha1"];
/// Most secrets of an image that are noted only because they match, as upstream: namespaces come and go.
const MATCHED_MAX: usize = 100;
/// Most secrets of an image at all; from there on only the newest is known, and others pull again.
const SECRETS_MAX: usize = 1000;

/// A pull that has begun and not been heard of since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Intent {
    kind: String,
    api_version: String,
    /// As the container names it.
    pub image: String,
}

impl Intent {
    /// A new one.
    pub fn new(image: &str) -> Intent {
        Intent { kind: "ImagePullIntent".into(), api_version: API_VERSION.into(), image: image.to_owned() }
    }

    /// Reads one; `None` is none.
    pub fn decode(bytes: &[u8]) -> Option<Intent> {
        let intent: Intent = serde_json::from_slice(bytes).ok()?;
        (intent.kind == "ImagePullIntent" && READABLE.contains(&intent.api_version.as_str()))
            .then_some(intent)
    }
}

/// An image that was pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    kind: String,
    api_version: String,
    /// When it last changed.
    pub last_updated_time: Timestamp,
    /// The runtime's name of it.
    pub image_ref: String,
    /// Who may have it, by the repository it was pulled from.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    credential_mapping: BTreeMap<String, Credentials>,
}

/// Who may have an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Credentials {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<Secret>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kubernetes_service_accounts: Vec<ServiceAccount>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
}

/// A pull secret, and a hash of what it holds for the image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Secret {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Hash of the credentials.
    pub credential_hash: String,
}

/// A service account whose token was shown; nothing here makes these, but they are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceAccount {
    uid: String,
    namespace: String,
    name: String,
}

impl Secret {
    fn is_same_object(&self, other: &Secret) -> bool {
        self.uid == other.uid && self.namespace == other.namespace && self.name == other.name
    }
}

impl Credentials {
    /// Everybody on the node: the credentials are the node's own, or none were needed.
    pub fn of_node() -> Credentials {
        Credentials { node_pods_accessible: true, ..Credentials::default() }
    }

    /// Whoever has this secret.
    pub fn of_secret(secret: Secret) -> Credentials {
        Credentials { kubernetes_secrets: vec![secret], ..Credentials::default() }
    }
}

/// Whether a pod may use an image, by what is noted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// It has to show that it may: by pulling.
    Unknown,
    /// It may.
    Granted,
    /// It may, and this secret of it is worth noting for others.
    GrantedBy(Secret),
}

impl Record {
    /// A record of nobody.
    pub fn new(image_ref: &str, now: Timestamp) -> Record {
        Record {
            kind: "ImagePulledRecord".into(),
            api_version: API_VERSION.into(),
            last_updated_time: whole_seconds(now),
            image_ref: image_ref.to_owned(),
            credential_mapping: BTreeMap::new(),
        }
    }

    /// Reads one; `None` is none.
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        let record: Record = serde_json::from_slice(bytes).ok()?;
        (record.kind == "ImagePulledRecord" && READABLE.contains(&record.api_version.as_str()))
            .then_some(record)
    }

    /// Whether a pod with these secrets may use the image under a repository's name.
    pub fn access(&self, repository: &str, secrets: &[Secret]) -> Access {
        let Some(known) = self.credential_mapping.get(repository) else { return Access::Unknown };
        if known.node_pods_accessible {
            return Access::Granted;
        }
        let is_room = known.kubernetes_secrets.len() < MATCHED_MAX;
        for shown in secrets {
            for noted in &known.kubernetes_secrets {
                let same_hash =
                    !noted.credential_hash.is_empty() && noted.credential_hash == shown.credential_hash;
                match (same_hash, noted.is_same_object(shown)) {
                    (true, true) => return Access::Granted,
                    (true, false) if is_room => return Access::GrantedBy(shown.clone()),
                    (true, false) => return Access::Granted,
                    // The secret was changed since: whoever may change it may have what it gave.
                    (false, true) if is_room => return Access::GrantedBy(shown.clone()),
                    (false, _) => {}
                }
            }
        }
        Access::Unknown
    }

    /// Notes who else may have the image; `false` where that was known.
    pub fn merge(&mut self, repository: &str, new: Credentials, now: Timestamp) -> bool {
        if new == Credentials::default() {
            return false;
        }
        let known = self.credential_mapping.entry(repository.to_owned()).or_default();
        if known.node_pods_accessible {
            return false;
        }
        if new.node_pods_accessible {
            *known = new;
        } else if !merge_secrets(&mut known.kubernetes_secrets, new.kubernetes_secrets) {
            return false;
        }
        self.last_updated_time = whole_seconds(now);
        true
    }
}

fn merge_secrets(known: &mut Vec<Secret>, new: Vec<Secret>) -> bool {
    let before = known.clone();
    for secret in new {
        if known.contains(&secret) {
            continue;
        }
        known.retain(|other| !other.is_same_object(&secret));
        if known.len() >= SECRETS_MAX {
            known.clear();
        }
        known.push(secret);
    }
    known.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    *known != before
}

/// As Kubernetes writes times.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(uid: &str, hash: &str) -> Secret {
        Secret { uid: uid.into(), namespace: "n".into(), name: uid.into(), credential_hash: hash.into() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_form_is_upstreams() {
        let text = r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","lastUpdatedTime":"2024-10-21T12:26:40Z","imageRef":"sha256:1","credentialMapping":{"docker.io/testing/test":{"kubernetesSecrets":[{"uid":"u","namespace":"default","name":"pull-secret","credentialHash":"h"}]}}}"#;
        let record = Record::decode(text.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        let older = text.replace("v1beta1", "v1alpha1");
        assert_eq!(Record::decode(older.as_bytes()).unwrap().credential_mapping, record.credential_mapping);
        for wrong in ["", "{}", &text.replace("v1beta1", "v9"), &text.replace("\"uid\"", "\"id\"")] {
            assert_eq!(Record::decode(wrong.as_bytes()), None, "{wrong}");
        }
        let accounts = text.replace(
            "\"kubernetesSecrets\":[{\"uid\":\"u\",\"namespace\":\"default\",\"name\":\"pull-secret\",\"credentialHash\":\"h\"}]",
            "\"kubernetesServiceAccounts\":[{\"uid\":\"u\",\"namespace\":\"n\",\"name\":\"s\"}]",
        );
        assert_eq!(serde_json::to_string(&Record::decode(accounts.as_bytes()).unwrap()).unwrap(), accounts);
        let intent = serde_json::to_string(&Intent::new("a:1")).unwrap();
        assert_eq!(
            intent,
            r#"{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1beta1","image":"a:1"}"#
        );
        assert_eq!(Intent::decode(intent.as_bytes()), Some(Intent::new("a:1")));
    }

    #[test]
    fn who_may() {
        let mut record = Record::new("sha256:1", at(0));
        assert_eq!(record.access("r.io/a", &[]), Access::Unknown);
        assert!(record.merge("r.io/a", Credentials::of_secret(secret("one", "h1")), at(1)));
        let table = [
            ("r.io/a", vec![], Access::Unknown),
            ("r.io/a", vec![secret("one", "h1")], Access::Granted),
            // Another object with the same credentials, and the same object with others.
            ("r.io/a", vec![secret("two", "h1")], Access::GrantedBy(secret("two", "h1"))),
            ("r.io/a", vec![secret("one", "h2")], Access::GrantedBy(secret("one", "h2"))),
            ("r.io/a", vec![secret("two", "h2")], Access::Unknown),
            ("r.io/a", vec![secret("two", "h2"), secret("one", "h1")], Access::Granted),
            // The same image under another name is another question.
            ("r.io/b", vec![secret("one", "h1")], Access::Unknown),
        ];
        for (repository, secrets, expected) in table {
            assert_eq!(record.access(repository, &secrets), expected, "{repository} {secrets:?}");
        }
        let mut broken = Record::new("sha256:1", at(0));
        broken.merge("r.io/a", Credentials::of_secret(secret("one", "")), at(1));
        assert_eq!(broken.access("r.io/a", &[secret("two", "")]), Access::Unknown);
        record.merge("r.io/a", Credentials::of_node(), at(2));
        assert_eq!(record.access("r.io/a", &[]), Access::Granted);
    }

    #[test]
    fn merging() {
        let mut record = Record::new("sha256:1", at(0));
        assert!(!record.merge("a", Credentials::default(), at(1)));
        assert!(record.merge("a", Credentials::of_secret(secret("b", "1")), at(2)));
        assert!(!record.merge("a", Credentials::of_secret(secret("b", "1")), at(3)));
        assert_eq!(record.last_updated_time, at(2));
        assert!(record.merge("a", Credentials::of_secret(secret("a", "2")), at(4)));
        assert!(record.merge("a", Credentials::of_secret(secret("b", "3")), at(5)));
        assert_eq!(record.credential_mapping["a"].kubernetes_secrets, [secret("a", "2"), secret("b", "3")]);
        for n in 0..SECRETS_MAX {
            record.merge("a", Credentials::of_secret(secret(&format!("x{n}"), &n.to_string())), at(6));
        }
        assert!(record.credential_mapping["a"].kubernetes_secrets.len() <= SECRETS_MAX);
        assert_eq!(record.access("a", &[secret("x999", "999")]), Access::Granted);
        assert!(record.merge("a", Credentials::of_node(), at(7)));
        assert!(!record.merge("a", Credentials::of_secret(secret("a", "2")), at(8)));
    }
}
