//! ServiceAccount tokens: JWTs signed with the cluster's key and bound to the objects they were issued for.
//!
//! Claims are those of Kubernetes' service account token (the private claim `kubernetes.io`), so that
//! anything which reads upstream's tokens reads these.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use meta::UserInfo;
use rcgen::{KeyPair, PublicKeyData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use stdx::Clock;

/// Shortest lifetime a TokenRequest may ask for, in seconds.
pub const EXPIRATION_SECONDS_MIN: i64 = 600;
/// Lifetime of a token whose request names none, in seconds.
pub const EXPIRATION_SECONDS_DEFAULT: i64 = 3600;
/// Longest lifetime, in seconds: 2^32, as upstream.
pub const EXPIRATION_SECONDS_MAX: i64 = 1 << 32;
/// Tokens that the kubelet asks for with exactly this lifetime are extended for old clients.
pub const EXTENDED_REQUEST_SECONDS: i64 = 3607;
/// What they are extended to: a year.
pub const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;
/// Clock difference tolerated when a token is checked, in seconds.
const LEEWAY_SECONDS: i64 = 60;
/// Largest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 64 << 10;

/// Name and uid of an object a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Name.
    pub name: String,
    /// Uid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The private claim `kubernetes.io`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KubernetesClaims {
    /// Namespace of the ServiceAccount and of everything the token is bound to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Node the pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<ObjectRef>,
    /// Pod the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<ObjectRef>,
    /// Secret the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<ObjectRef>,
    /// The ServiceAccount.
    #[serde(default)]
    pub serviceaccount: ObjectRef,
    /// Time from which the use of an extended token should be warned about, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// Every claim of a token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Claims {
    /// Audiences.
    #[serde(default, deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    /// Expiry in Unix seconds.
    #[serde(default)]
    pub exp: i64,
    /// Issue time in Unix seconds.
    #[serde(default)]
    pub iat: i64,
    /// Issuer.
    #[serde(default)]
    pub iss: String,
    /// Unique id.
    #[serde(default)]
    pub jti: String,
    /// What the token is bound to.
    #[serde(default, rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
    /// Start of validity in Unix seconds.
    #[serde(default)]
    pub nbf: i64,
    /// `system:serviceaccount:NAMESPACE:NAME`.
    #[serde(default)]
    pub sub: String,
}

/// `aud` may be one string (RFC 7519, 4.1.3).
fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(one) => vec![one],
        Value::Array(many) => many.into_iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    })
}

/// A token could not be made or is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The signing key cannot be used.
    #[error("the service account key cannot be used")]
    Key(#[source] jsonwebtoken::errors::Error),
    /// Signing failed.
    #[error("the token could not be signed")]
    Sign(#[source] jsonwebtoken::errors::Error),
    /// Not a token of this cluster: another issuer, another key, or no JWT at all.
    #[error("not a token of this cluster")]
    Foreign,
    /// The signature or the encoding is wrong.
    #[error("invalid bearer token")]
    Signature(#[source] jsonwebtoken::errors::Error),
    /// It has expired, or is not valid yet.
    #[error("service account token has expired or is not valid yet")]
    Time,
    /// It was issued for others.
    #[error("token audiences {audiences:?} is invalid for the target audiences {expected:?}")]
    Audience {
        /// Audiences of the token.
        audiences: Vec<String>,
        /// Audiences accepted.
        expected: Vec<String>,
    },
    /// An object it is bound to is gone or has been replaced.
    #[error("service account token has been invalidated: {0}")]
    Bound(String),
}

/// What is known of an object that a token may be bound to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Uid now.
    pub uid: String,
    /// When it began to be deleted.
    pub deletion_timestamp: Option<Timestamp>,
}

/// Looks up whether the objects of a token still exist, so that tokens die with them.
pub trait ServiceAccountLookup: Send + Sync {
    /// The ServiceAccount.
    fn service_account(&self, namespace: &str, name: &str) -> Option<Found>;
    /// The Pod.
    fn pod(&self, namespace: &str, name: &str) -> Option<Found>;
    /// The Secret.
    fn secret(&self, namespace: &str, name: &str) -> Option<Found>;
    /// The Node.
    fn node(&self, name: &str) -> Option<Found>;
    /// The bootstrap token with this id (a Secret of type `bootstrap.kubernetes.io/token` in kube-system).
    fn bootstrap_token(&self, _id: &str) -> Option<BootstrapToken> {
        None
    }
}

/// A token with which nodes join (the documented Secret type `bootstrap.kubernetes.io/token`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BootstrapToken {
    /// The secret half.
    pub secret: String,
    /// When it ends, if ever.
    pub expiration: Option<Timestamp>,
    /// Whether it may be used to authenticate.
    pub usage_authentication: bool,
    /// Groups beyond `system:bootstrappers`.
    pub extra_groups: Vec<String>,
}

/// Signs and checks ServiceAccount tokens.
pub struct TokenSigner {
    issuer: String,
    key_id: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    point: Vec<u8>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSigner").field("issuer", &self.issuer).field("key_id", &self.key_id).finish()
    }
}

impl TokenSigner {
    /// A signer with an ECDSA P-256 key. The key id is derived as upstream does: the SHA-256 of the public
    /// key's DER (SubjectPublicKeyInfo), base64url without padding.
    pub fn new(issuer: impl Into<String>, key: &KeyPair, clock: Arc<dyn Clock>) -> Self {
        let public = key.subject_public_key_info();
        TokenSigner {
            issuer: issuer.into(),
            key_id: URL_SAFE_NO_PAD.encode(Sha256::digest(&public)),
            signing: EncodingKey::from_ec_der(key.serialized_der()),
            verifying: DecodingKey::from_ec_der(key.public_key_raw()),
            point: key.public_key_raw().to_vec(),
            clock,
        }
    }

    /// The issuer, also the default audience.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Issues a token that lives for `seconds` from now. Returns it with its expiry.
    pub fn issue(
        &self,
        bound: KubernetesClaims,
        audiences: &[String],
        seconds: i64,
    ) -> Result<(String, Timestamp), Error> {
        let now = self.clock.now().as_second();
        let claims = Claims {
            aud: if audiences.is_empty() { vec![self.issuer.clone()] } else { audiences.to_vec() },
            exp: now + seconds,
            iat: now,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name),
            nbf: now,
            kubernetes: bound,
        };
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        let token = jsonwebtoken::encode(&header, &claims, &self.signing).map_err(Error::Sign)?;
        Ok((token, Timestamp::from_second(claims.exp).unwrap_or(Timestamp::MAX)))
    }

    /// Checks signature, time and audience. [`Error::Foreign`] means another authenticator may know it.
    pub fn verify(&self, token: &str, audiences: &[String]) -> Result<Claims, Error> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Error::Foreign);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Error::Foreign)?;
        if header.kid.as_deref().is_some_and(|kid| kid != self.key_id) {
            return Err(Error::Foreign);
        }
        let mut validation = Validation::new(Algorithm::ES256);
        // Time is checked below, by the injected clock; audiences by Kubernetes' rules.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let claims: Claims =
            jsonwebtoken::decode(token, &self.verifying, &validation).map_err(Error::Signature)?.claims;
        if claims.iss != self.issuer {
            return Err(Error::Foreign);
        }
        let now = self.clock.now().as_second();
        if now > claims.exp + LEEWAY_SECONDS || now < claims.nbf - LEEWAY_SECONDS {
            return Err(Error::Time);
        }
        if !claims.aud.iter().any(|audience| audiences.contains(audience)) {
            return Err(Error::Audience { audiences: claims.aud, expected: audiences.to_vec() });
        }
        Ok(claims)
    }

    /// The key set that lets others check tokens (RFC 7517), as served under `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let half = |from: usize| URL_SAFE_NO_PAD.encode(self.point.get(from..from + 32).unwrap_or_default());
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": half(1), "y": half(33),
        }]})
    }

    /// The discovery document (OpenID Connect Discovery 1.0), as served under
    /// `/.well-known/openid-configuration`.
    pub fn discovery(&self, jwks_uri: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

/// Checks that everything the token is bound to still exists, and makes the user of it.
pub fn user_of(
    claims: &Claims,
    lookup: &dyn ServiceAccountLookup,
    now: Timestamp,
) -> Result<UserInfo, Error> {
    let bound = &claims.kubernetes;
    let namespace = &bound.namespace;
    let check = |kind: &str, wanted: &ObjectRef, found: Option<Found>| -> Result<(), Error> {
        let found = found.ok_or_else(|| Error::Bound(format!("{kind} {:?} not found", wanted.name)))?;
        if !wanted.uid.is_empty() && wanted.uid != found.uid {
            return Err(Error::Bound(format!(
                "{kind} UID ({}) does not match claim ({})",
                found.uid, wanted.uid
            )));
        }
        match found.deletion_timestamp {
            Some(deleted) if deleted.as_second() < now.as_second() - LEEWAY_SECONDS => {
                Err(Error::Bound(format!("{kind} {:?} has been deleted", wanted.name)))
            }
            _ => Ok(()),
        }
    };
    let account = &bound.serviceaccount;
    check("service account", account, lookup.service_account(namespace, &account.name))?;
    let mut user = UserInfo::service_account(namespace, &account.name);
    user.uid = account.uid.clone();
    let mut extra = |key: &str, value: &str| {
        user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    if let Some(secret) = &bound.secret {
        check("secret", secret, lookup.secret(namespace, &secret.name))?;
    }
    if let Some(pod) = &bound.pod {
        check("pod", pod, lookup.pod(namespace, &pod.name))?;
        extra("pod-name", &pod.name);
        extra("pod-uid", &pod.uid);
    }
    if let Some(node) = &bound.node {
        // With a pod, the node only tells where it ran; a token bound to the node alone dies with it.
        if bound.pod.is_none() {
            check("node", node, lookup.node(&node.name))?;
        }
        extra("node-name", &node.name);
        extra("node-uid", &node.uid);
    }
    if !claims.jti.is_empty() {
        extra("credential-id", &format!("JTI={}", claims.jti));
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use stdx::FakeClock;

    struct Fixed(Option<Found>);

    impl ServiceAccountLookup for Fixed {
        fn service_account(&self, _: &str, _: &str) -> Option<Found> {
            Some(Found { uid: "sa-uid".into(), ..Found::default() })
        }
        fn pod(&self, _: &str, _: &str) -> Option<Found> {
            self.0.clone()
        }
        fn secret(&self, _: &str, _: &str) -> Option<Found> {
            None
        }
        fn node(&self, _: &str) -> Option<Found> {
            None
        }
    }

    fn bound() -> KubernetesClaims {
        KubernetesClaims {
            namespace: "ns".into(),
            serviceaccount: ObjectRef { name: "bot".into(), uid: "sa-uid".into() },
            pod: Some(ObjectRef { name: "p".into(), uid: "pod-uid".into() }),
            ..KubernetesClaims::default()
        }
    }

    #[test]
    fn issue_and_verify() {
        let clock = FakeClock::at(Timestamp::from_second(1_700_000_000).unwrap());
        let key = KeyPair::generate().unwrap();
        let signer = TokenSigner::new("https://issuer", &key, clock.clone());
        let (token, expires) = signer.issue(bound(), &["api".into()], 600).unwrap();
        assert_eq!(expires.as_second(), 1_700_000_600);
        let claims = signer.verify(&token, &["api".into(), "other".into()]).unwrap();
        assert_eq!(claims.sub, "system:serviceaccount:ns:bot");
        assert_eq!(claims.kubernetes, bound());
        assert!(matches!(signer.verify(&token, &["x".into()]), Err(Error::Audience { .. })));
        let mut forged = token.clone().into_bytes();
        let middle = token.find('.').unwrap() + 10;
        forged[middle] = if forged[middle] == b'A' { b'B' } else { b'A' };
        assert!(signer.verify(&String::from_utf8(forged).unwrap(), &["api".into()]).is_err());
        assert!(matches!(signer.verify("nonsense", &["api".into()]), Err(Error::Foreign)));
        let other = TokenSigner::new("https://issuer", &KeyPair::generate().unwrap(), clock.clone());
        assert!(matches!(other.verify(&token, &["api".into()]), Err(Error::Foreign)));
        clock.advance(Duration::from_secs(661));
        assert!(matches!(signer.verify(&token, &["api".into()]), Err(Error::Time)));
    }

    #[test]
    fn tokens_die_with_their_pod() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let claims = Claims { jti: "id".into(), kubernetes: bound(), ..Claims::default() };
        let pod = |uid: &str, deleted: Option<i64>| {
            let deletion_timestamp = deleted.map(|s| Timestamp::from_second(1_700_000_000 + s).unwrap());
            Fixed(Some(Found { uid: uid.into(), deletion_timestamp }))
        };
        let user = user_of(&claims, &pod("pod-uid", None), now).unwrap();
        assert_eq!((user.username.as_str(), user.uid.as_str()), ("system:serviceaccount:ns:bot", "sa-uid"));
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(user.extra["authentication.kubernetes.io/credential-id"], ["JTI=id"]);
        assert!(user_of(&claims, &pod("pod-uid", Some(-30)), now).is_ok());
        for lookup in [pod("other", None), pod("pod-uid", Some(-90)), Fixed(None)] {
            assert!(matches!(user_of(&claims, &lookup, now), Err(Error::Bound(_))));
        }
    }

    #[test]
    fn key_set_is_complete() {
        let key = KeyPair::generate().unwrap();
        let signer = TokenSigner::new("i", &key, stdx::SystemClock::shared());
        let set = signer.key_set();
        assert_eq!(set["keys"][0]["x"].as_str().unwrap().len(), 43);
        assert_eq!(set["keys"][0]["kid"].as_str().unwrap().len(), 43);
        assert_ne!(set["keys"][0]["x"], set["keys"][0]["y"]);
    }
}
