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
    /// A key is of a kind that tokens are not signed with.
    #[error("a service account key cannot be used: {0}")]
    Unusable(String),
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
    /// The token that a Secret holds. Called whenever it is used.
    fn secret_token(&self, _namespace: &str, _name: &str) -> SecretToken {
        SecretToken::None
    }
    /// The Node.
    fn node(&self, name: &str) -> Option<Found>;
    /// The bootstrap token with this id (a Secret of type `bootstrap.kubernetes.io/token` in kube-system).
    fn bootstrap_token(&self, _id: &str) -> Option<BootstrapToken> {
        None
    }
}

/// What a Secret of type `kubernetes.io/service-account-token` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretToken {
    /// No token.
    None,
    /// This one.
    Is(String),
    /// One that was marked as no longer valid.
    Invalidated,
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

/// A public key that tokens are checked with.
struct PublicKey {
    id: String,
    algorithm: Algorithm,
    decoding: DecodingKey,
    /// As the key set shows it (RFC 7517).
    shown: Value,
}

impl PublicKey {
    /// Reads the DER of a SubjectPublicKeyInfo. The key id is derived as upstream does: its SHA-256, base64url
    /// without padding.
    fn from_spki(spki: &[u8]) -> Option<PublicKey> {
        use x509_parser::prelude::FromDer;
        use x509_parser::public_key::PublicKey::{EC, RSA};
        let (_, info) = x509_parser::x509::SubjectPublicKeyInfo::from_der(spki).ok()?;
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(spki));
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match info.parsed().ok()? {
            RSA(key) => {
                let trim = |b: &[u8]| b.iter().copied().skip_while(|b| *b == 0).collect::<Vec<u8>>();
                let (n, e) = (trim(key.modulus), trim(key.exponent));
                let decoding = DecodingKey::from_rsa_raw_components(&n, &e);
                let shown = json!({"use": "sig", "kty": "RSA", "kid": id, "alg": "RS256", "n": text(&n), "e": text(&e)});
                Some(PublicKey { id, algorithm: Algorithm::RS256, decoding, shown })
            }
            EC(key) => {
                // An uncompressed point: 4, x, y.
                let data = key.data();
                let size = (data.len().checked_sub(1)?) / 2;
                let (curve, algorithm, name) = match size {
                    32 => ("P-256", Algorithm::ES256, "ES256"),
                    48 => ("P-384", Algorithm::ES384, "ES384"),
                    _ => return None,
                };
                let (x, y) = (data.get(1..=size)?, data.get(size + 1..)?);
                let shown = json!({"use": "sig", "kty": "EC", "kid": id, "crv": curve, "alg": name,
                    "x": text(x), "y": text(y)});
                Some(PublicKey { id, algorithm, decoding: DecodingKey::from_ec_der(data), shown })
            }
            _ => None,
        }
    }
}

/// Signs and checks ServiceAccount tokens.
pub struct TokenSigner {
    issuer: String,
    /// Issuers whose tokens are accepted too.
    former_issuers: Vec<String>,
    signing: EncodingKey,
    /// The first belongs to the signing key.
    keys: Vec<PublicKey>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSigner").field("issuer", &self.issuer).field("keys", &self.keys.len()).finish()
    }
}

impl TokenSigner {
    /// A signer with an ECDSA or RSA key.
    pub fn new(issuer: impl Into<String>, key: &KeyPair, clock: Arc<dyn Clock>) -> Self {
        let public: Option<PublicKey> = PublicKey::from_spki(&key.subject_public_key_info());
        let rsa = public.as_ref().is_some_and(|k| k.algorithm == Algorithm::RS256);
        let der = key.serialized_der();
        TokenSigner {
            issuer: issuer.into(),
            former_issuers: Vec::new(),
            signing: if rsa { rsa_signing_key(der) } else { EncodingKey::from_ec_der(der) },
            keys: public.into_iter().collect(),
            clock,
        }
    }

    /// Accepts tokens signed with other keys too: public or private ones of a PEM text. Keys that were in use
    /// before stay here until the last token signed with them has expired.
    pub fn with_verification_keys(mut self, pem: &str) -> Result<Self, Error> {
        for block in certificate::pem::blocks(pem) {
            let spki = match block.label.as_str() {
                "PUBLIC KEY" => block.der,
                label if label.ends_with("PRIVATE KEY") => {
                    let text = certificate::pem::encode(label, &block.der);
                    KeyPair::from_pem(&text)
                        .map_err(|e| Error::Unusable(e.to_string()))?
                        .subject_public_key_info()
                }
                _ => continue,
            };
            let key = PublicKey::from_spki(&spki)
                .ok_or_else(|| Error::Unusable("neither RSA nor ECDSA of P-256 or P-384".into()))?;
            if self.keys.iter().all(|known| known.id != key.id) {
                self.keys.push(key);
            }
        }
        Ok(self)
    }

    /// Accepts tokens of a former issuer too.
    pub fn with_former_issuer(mut self, issuer: &str) -> Self {
        self.former_issuers.push(issuer.to_owned());
        self
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
        Ok((self.sign(&claims)?, Timestamp::from_second(claims.exp).unwrap_or(Timestamp::MAX)))
    }

    fn sign(&self, claims: &impl Serialize) -> Result<String, Error> {
        let key =
            self.keys.first().ok_or_else(|| Error::Unusable("the signing key's kind is unknown".into()))?;
        let mut header = Header::new(key.algorithm);
        header.typ = None;
        header.kid = Some(key.id.clone());
        jsonwebtoken::encode(&header, claims, &self.signing).map_err(Error::Sign)
    }

    /// A token that lives as long as the Secret it is kept in (`kubernetes.io/service-account-token`).
    pub fn issue_legacy(&self, namespace: &str, account: &ObjectRef, secret: &str) -> Result<String, Error> {
        self.sign(&LegacyClaims {
            iss: LEGACY_ISSUER.into(),
            namespace: namespace.into(),
            secret: secret.into(),
            account: account.name.clone(),
            uid: account.uid.clone(),
            sub: format!("system:serviceaccount:{namespace}:{}", account.name),
        })
    }

    /// Checks signature, time and audience. [`Error::Foreign`] means another authenticator may know it.
    pub fn verify(&self, token: &str, audiences: &[String]) -> Result<Claims, Error> {
        let claims = self.verify_signature(token)?;
        self.check(&claims, audiences)?;
        Ok(claims)
    }

    /// Checks by whom the token is issued and signed.
    pub fn verify_signature(&self, token: &str) -> Result<Claims, Error> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Error::Foreign);
        }
        let issuer = unverified_issuer(token).ok_or(Error::Foreign)?;
        let ours = issuer == self.issuer || self.former_issuers.contains(&issuer);
        if !ours && issuer != LEGACY_ISSUER {
            return Err(Error::Foreign);
        }
        let header = jsonwebtoken::decode_header(token).map_err(Error::Signature)?;
        let named = |key: &&PublicKey| header.kid.as_deref().is_none_or(|kid| kid == key.id);
        let mut failed = Error::Foreign;
        for key in self.keys.iter().filter(named) {
            let mut validation = Validation::new(key.algorithm);
            // Time is checked by the injected clock; audiences by Kubernetes' rules.
            validation.validate_exp = false;
            validation.validate_aud = false;
            validation.required_spec_claims.clear();
            let verified = match ours {
                true => jsonwebtoken::decode(token, &key.decoding, &validation).map(|t| t.claims),
                false => jsonwebtoken::decode::<LegacyClaims>(token, &key.decoding, &validation)
                    .map(|t| t.claims.into_claims()),
            };
            match verified {
                Ok(claims) => return Ok(claims),
                Err(error) => failed = Error::Signature(error),
            }
        }
        Err(failed)
    }

    /// Checks time and audience of verified claims; gives the audiences in common.
    pub fn check(&self, claims: &Claims, audiences: &[String]) -> Result<Vec<String>, Error> {
        if claims.is_legacy() {
            // Made before audiences were: for the API server, whatever that is called.
            return Ok(audiences.to_vec());
        }
        let now = self.clock.now().as_second();
        if now > claims.exp + LEEWAY_SECONDS || now < claims.nbf - LEEWAY_SECONDS {
            return Err(Error::Time);
        }
        let common: Vec<String> = claims.aud.iter().filter(|a| audiences.contains(a)).cloned().collect();
        if common.is_empty() {
            return Err(Error::Audience { audiences: claims.aud.clone(), expected: audiences.to_vec() });
        }
        Ok(common)
    }

    /// The key set that lets others check tokens (RFC 7517), as served under `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        json!({"keys": self.keys.iter().map(|key| &key.shown).collect::<Vec<_>>()})
    }

    fn algorithms(&self) -> Vec<&Value> {
        let mut all: Vec<&Value> = self.keys.iter().map(|key| &key.shown["alg"]).collect();
        all.sort_by_key(|alg| alg.as_str());
        all.dedup();
        all
    }

    /// The discovery document (OpenID Connect Discovery 1.0), as served under
    /// `/.well-known/openid-configuration`.
    pub fn discovery(&self, jwks_uri: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": self.algorithms(),
        })
    }
}

/// Issuer that tokens in Secrets name.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// The claims of a token in a Secret.
#[derive(Debug, Serialize, Deserialize)]
struct LegacyClaims {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
    sub: String,
}

impl LegacyClaims {
    fn into_claims(self) -> Claims {
        let kubernetes = KubernetesClaims {
            namespace: self.namespace,
            serviceaccount: ObjectRef { name: self.account, uid: self.uid },
            secret: Some(ObjectRef { name: self.secret, uid: String::new() }),
            ..KubernetesClaims::default()
        };
        Claims { iss: self.iss, sub: self.sub, kubernetes, ..Claims::default() }
    }
}

impl Claims {
    /// Whether it is the token of a Secret.
    pub fn is_legacy(&self) -> bool {
        self.iss == LEGACY_ISSUER
    }
}

/// The issuer that a token names; nothing is verified.
fn unverified_issuer(token: &str) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<Value>(&bytes).ok()?["iss"].as_str().map(str::to_owned)
}

/// A PKCS #8 document holds the key that the signing library wants (RFC 5208: the octets at its end).
fn rsa_signing_key(pkcs8: &[u8]) -> EncodingKey {
    let inner = x509_parser::der_parser::parse_der(pkcs8)
        .ok()
        .and_then(|(_, whole)| whole.as_sequence().ok()?.get(2)?.as_slice().ok().map(<[u8]>::to_vec));
    EncodingKey::from_rsa_der(inner.as_deref().unwrap_or(pkcs8))
}

/// Checks that everything the token is bound to still exists, and makes the user of it. A token in a Secret must
/// also be the one that stands there now.
pub fn user_of(
    claims: &Claims,
    lookup: &dyn ServiceAccountLookup,
    now: Timestamp,
    token: &str,
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
        if claims.is_legacy() {
            match lookup.secret_token(namespace, &secret.name) {
                SecretToken::Is(kept) if kept == token => {}
                SecretToken::Invalidated => {
                    return Err(Error::Bound(
                        "the token in the secret has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the 'kubernetes.io/legacy-token-invalid-since' label from the secret to temporarily allow use of this token".into(),
                    ));
                }
                _ => return Err(Error::Bound("token does not match the secret's".into())),
            }
        }
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
        let user = user_of(&claims, &pod("pod-uid", None), now, "").unwrap();
        assert_eq!((user.username.as_str(), user.uid.as_str()), ("system:serviceaccount:ns:bot", "sa-uid"));
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(user.extra["authentication.kubernetes.io/credential-id"], ["JTI=id"]);
        assert!(user_of(&claims, &pod("pod-uid", Some(-30)), now, "").is_ok());
        for lookup in [pod("other", None), pod("pod-uid", Some(-90)), Fixed(None)] {
            assert!(matches!(user_of(&claims, &lookup, now, ""), Err(Error::Bound(_))));
        }
    }

    #[test]
    fn keys_that_were_in_use_before_still_verify() {
        let clock = FakeClock::at(Timestamp::from_second(1_700_000_000).unwrap());
        let (old, new) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let before = TokenSigner::new("https://old", &old, clock.clone());
        let (token, _) = before.issue(bound(), &["api".into()], 600).unwrap();
        let after = TokenSigner::new("https://new", &new, clock.clone());
        assert!(matches!(after.verify(&token, &["api".into()]), Err(Error::Foreign)));
        let after = after.with_former_issuer("https://old");
        assert!(after.verify(&token, &["api".into()]).is_err());
        let after = after.with_verification_keys(&old.public_key_pem()).unwrap();
        assert!(after.verify(&token, &["api".into()]).is_ok());
        let set = after.key_set();
        assert_eq!(set["keys"].as_array().unwrap().len(), 2);
        assert_eq!(set["keys"][1]["kid"], before.key_set()["keys"][0]["kid"]);
    }

    #[test]
    fn tokens_of_secrets() {
        struct Kept(SecretToken);
        impl ServiceAccountLookup for Kept {
            fn service_account(&self, _: &str, _: &str) -> Option<Found> {
                Some(Found { uid: "sa-uid".into(), ..Found::default() })
            }
            fn pod(&self, _: &str, _: &str) -> Option<Found> {
                None
            }
            fn secret(&self, _: &str, _: &str) -> Option<Found> {
                Some(Found::default())
            }
            fn secret_token(&self, _: &str, _: &str) -> SecretToken {
                self.0.clone()
            }
            fn node(&self, _: &str) -> Option<Found> {
                None
            }
        }
        let clock = FakeClock::at(Timestamp::from_second(1_700_000_000).unwrap());
        let signer = TokenSigner::new("https://issuer", &KeyPair::generate().unwrap(), clock.clone());
        let token = signer.issue_legacy("ns", &bound().serviceaccount, "s").unwrap();
        let claims = signer.verify(&token, &["anything".into()]).unwrap();
        let now = clock.now();
        let user = user_of(&claims, &Kept(SecretToken::Is(token.clone())), now, &token).unwrap();
        assert_eq!(user.username, "system:serviceaccount:ns:bot");
        for kept in [SecretToken::None, SecretToken::Is("other".into()), SecretToken::Invalidated] {
            assert!(matches!(user_of(&claims, &Kept(kept), now, &token), Err(Error::Bound(_))));
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
