//! From credentials to a user: client certificates, ServiceAccount tokens, bootstrap and static tokens.
//!
//! No credentials at all make the anonymous user; wrong ones are refused with 401.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use meta::{Status, UserInfo};
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest, Sha256};
use stdx::Clock;
use x509_parser::prelude::FromDer;

use crate::request_header::RequestHeaders;
use crate::revocation::{Facts, Revocations};
pub use crate::token::{BootstrapToken, Found, ServiceAccountLookup};
use crate::token::{Claims, Error as TokenError, TokenSigner, user_of};

/// How long the verification of a credential is remembered. What it is bound to is looked up every time.
const CACHE_TTL: Duration = Duration::from_secs(10);
/// Credentials remembered at most: about 1 KiB each.
const CACHE_ENTRIES: usize = 4096;
/// Key of the extra attribute that identifies a credential in audit logs.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// A future that can be sent.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Further kinds of bearer tokens: other issuers, other servers.
pub trait TokenAuthenticator: Send + Sync {
    /// The user of a token; `None` when it is none of this authenticator's.
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Option<Result<UserInfo, String>>>;
}

/// Which requests may come without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnonymousAccess {
    /// None.
    None,
    /// All.
    All,
    /// Those to certain paths.
    Paths(Vec<String>),
}

/// What an AuthenticationConfiguration says: it may change while the server runs.
#[derive(Clone)]
pub struct Configured {
    /// Who is asked about tokens that are not our own.
    pub others: Vec<Arc<dyn TokenAuthenticator>>,
    /// Which requests may come without credentials.
    pub anonymous: AnonymousAccess,
}

/// Turns credentials into users.
pub struct Authenticator {
    certificates: Option<Arc<dyn ClientCertVerifier>>,
    tokens: Arc<TokenSigner>,
    lookup: Arc<dyn ServiceAccountLookup>,
    audiences: Vec<String>,
    static_tokens: HashMap<String, UserInfo>,
    configured: ArcSwap<Configured>,
    proxies: Option<RequestHeaders>,
    revocations: Arc<Revocations>,
    clock: Arc<dyn Clock>,
    cache: Mutex<Cache>,
}

/// A credential that was found good.
#[derive(Clone)]
enum Verified {
    /// A certificate's user, and what it may be revoked by.
    Certificate(UserInfo, Facts),
    /// A token of our own; what it is bound to must be looked up again.
    Token(Box<Claims>),
}

/// Verified credentials by hash.
#[derive(Default)]
struct Cache {
    entries: HashMap<[u8; 32], (Verified, Instant)>,
}

impl Cache {
    fn get(&self, key: &[u8; 32], now: Instant) -> Option<Verified> {
        let (verified, since) = self.entries.get(key)?;
        (now.saturating_duration_since(*since) < CACHE_TTL).then(|| verified.clone())
    }

    fn insert(&mut self, key: [u8; 32], verified: Verified, now: Instant) {
        if self.entries.len() >= CACHE_ENTRIES {
            self.entries.retain(|_, (_, since)| now.saturating_duration_since(*since) < CACHE_TTL);
            if self.entries.len() >= CACHE_ENTRIES {
                self.entries.clear();
            }
        }
        self.entries.insert(key, (verified, now));
    }
}

/// The file of static tokens does not parse.
#[derive(Debug, thiserror::Error)]
#[error("static tokens, line {line}: expected token,user,uid[,\"group,...\"]")]
pub struct StaticTokenError {
    /// Line number from 1.
    pub line: usize,
}

impl Authenticator {
    /// An authenticator for certificates that `certificates` accepts (none when absent) and tokens of
    /// `tokens`. Tokens must be for one of `audiences`; empty means the issuer.
    pub fn new(
        certificates: Option<Arc<dyn ClientCertVerifier>>,
        tokens: Arc<TokenSigner>,
        lookup: Arc<dyn ServiceAccountLookup>,
        audiences: Vec<String>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let audiences = if audiences.is_empty() { vec![tokens.issuer().to_owned()] } else { audiences };
        Authenticator {
            certificates,
            tokens,
            lookup,
            audiences,
            static_tokens: HashMap::new(),
            configured: ArcSwap::from_pointee(Configured {
                others: Vec::new(),
                anonymous: AnonymousAccess::All,
            }),
            proxies: None,
            revocations: Arc::default(),
            clock,
            cache: Mutex::default(),
        }
    }

    /// Accepts the tokens of a file in upstream's `--token-auth-file` format: CSV of token, user name, uid
    /// and an optional quoted list of groups.
    pub fn with_static_tokens(mut self, csv: &str) -> Result<Self, StaticTokenError> {
        self.static_tokens = parse_static_tokens(csv)?;
        Ok(self)
    }

    /// Asks others too about tokens that are not our own, and says who may come without credentials (by default
    /// all may, as `system:anonymous`). Requests under way are judged by what was said before.
    pub fn configure(&self, configured: Configured) {
        self.configured.store(Arc::new(configured));
    }

    /// Believes proxies who show the certificate of one.
    pub fn with_proxies(mut self, proxies: RequestHeaders) -> Self {
        self.proxies = Some(proxies);
        self
    }

    /// Which proxies are believed, if any.
    pub fn proxies(&self) -> Option<&RequestHeaders> {
        self.proxies.as_ref()
    }

    /// The list of revoked certificates, to be kept in step with the API.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// The audiences of this API server.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Who makes a request for `path`: by the client certificate (DER of the leaf) if there is one, else by the
    /// bearer token, else anonymous. 401 for credentials that are not accepted.
    pub async fn authenticate(
        &self,
        bearer: Option<&str>,
        peer_cert: Option<&[u8]>,
        path: &str,
    ) -> Result<UserInfo, Status> {
        let mut refused = false;
        if let Some(der) = peer_cert {
            match self.authenticate_certificate(der)? {
                Some(user) => return Ok(user),
                None => refused = true,
            }
        }
        if let Some(token) = bearer.map(str::trim).filter(|token| !token.is_empty()) {
            return match self.review_token(token, &self.audiences).await {
                Ok((user, _)) => Ok(user),
                Err(why) => {
                    tracing::debug!(why, "token refused");
                    Err(Status::unauthorized())
                }
            };
        }
        let anonymous = match &self.configured.load().anonymous {
            AnonymousAccess::All => true,
            AnonymousAccess::None => false,
            AnonymousAccess::Paths(paths) => paths.iter().any(|p| p == path),
        };
        if anonymous && !refused { Ok(UserInfo::anonymous()) } else { Err(Status::unauthorized()) }
    }

    /// The user of a client certificate: CN is the name, every O a group. `None` when it is not accepted; 401
    /// with the reason when it has been revoked.
    pub fn authenticate_certificate(&self, der: &[u8]) -> Result<Option<UserInfo>, Status> {
        let Some((user, facts)) = self.verified_certificate(der) else { return Ok(None) };
        match self.revocations.refusal(&facts) {
            None => Ok(Some(user)),
            Some(why) => {
                tracing::info!(why, "refused");
                let mut status = Status::unauthorized();
                status.message = format!("{}: {why}", status.message);
                Err(status)
            }
        }
    }

    fn verified_certificate(&self, der: &[u8]) -> Option<(UserInfo, Facts)> {
        let verifier = self.certificates.as_ref()?;
        let hash: [u8; 32] = Sha256::digest(der).into();
        let now = self.clock.instant();
        if let Some(Verified::Certificate(user, facts)) = self.cache.lock().get(&hash, now) {
            return Some((user, facts));
        }
        let seconds = u64::try_from(self.clock.now().as_second()).unwrap_or(0);
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        if let Err(error) = verifier.verify_client_cert(&CertificateDer::from(der), &[], time) {
            tracing::debug!(%error, "client certificate refused");
            return None;
        }
        let (user, facts) = (certificate_user(der, &hash)?, Facts::of(der)?);
        self.cache.lock().insert(hash, Verified::Certificate(user.clone(), facts.clone()), now);
        Some((user, facts))
    }

    /// The user of any kind of token for one of `audiences`, with the audiences both have in common. The error is
    /// what TokenReview says.
    pub async fn review_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), String> {
        let own = match self.authenticate_token(token, audiences) {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        if matches!(own, TokenError::Foreign) {
            for other in &self.configured.load_full().others {
                let Some(outcome) = other.authenticate(token).await else { continue };
                let common: Vec<String> =
                    self.audiences.iter().filter(|a| audiences.contains(a)).cloned().collect();
                return match outcome {
                    Ok(_) if common.is_empty() => Err(format!(
                        "token audiences {:?} is invalid for the target audiences {audiences:?}",
                        self.audiences
                    )),
                    Ok(user) => Ok((with_authenticated(user), common)),
                    Err(why) => Err(format!("[invalid bearer token, {why}]")),
                };
            }
            return Err("invalid bearer token".into());
        }
        Err(format!("[invalid bearer token, {own}]"))
    }

    /// The user of a token that needs nobody else to be judged (ServiceAccounts', bootstrap and static tokens).
    pub fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), TokenError> {
        if let Some(user) = self.static_tokens.get(token) {
            return Ok((with_authenticated(user.clone()), audiences.to_vec()));
        }
        if let Some(user) = self.bootstrap_user(token) {
            return Ok((user, audiences.to_vec()));
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let now = self.clock.instant();
        let known = self.cache.lock().get(&hash, now);
        let claims = match known {
            Some(Verified::Token(claims)) => *claims,
            _ => {
                let claims = self.tokens.verify_signature(token)?;
                self.cache.lock().insert(hash, Verified::Token(Box::new(claims.clone())), now);
                claims
            }
        };
        let common = self.tokens.check(&claims, audiences)?;
        let user = user_of(&claims, &*self.lookup, self.clock.now(), token)?;
        Ok((user, common))
    }

    /// The user of a bootstrap token `ID.SECRET` (6 and 16 characters).
    fn bootstrap_user(&self, token: &str) -> Option<UserInfo> {
        let (id, secret) = token.split_once('.')?;
        let shape = |text: &str, len: usize| {
            text.len() == len && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        if !shape(id, 6) || !shape(secret, 16) {
            return None;
        }
        let known = self.lookup.bootstrap_token(id)?;
        let alive = known.expiration.is_none_or(|until: Timestamp| self.clock.now() < until);
        if !known.usage_authentication || !alive || !equal_in_constant_time(&known.secret, secret) {
            return None;
        }
        let mut user = UserInfo { username: format!("system:bootstrap:{id}"), ..UserInfo::default() };
        user.groups.push("system:bootstrappers".into());
        user.groups.extend(known.extra_groups);
        Some(with_authenticated(user))
    }
}

/// Compares secrets without telling by the time taken how much of them agrees.
fn equal_in_constant_time(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differing, (x, y)| differing | (x ^ y)) == 0
}

fn with_authenticated(mut user: UserInfo) -> UserInfo {
    if !user.in_group(meta::user::GROUP_AUTHENTICATED) {
        user.groups.push(meta::user::GROUP_AUTHENTICATED.into());
    }
    user
}

/// Name and groups of a certificate's subject.
fn certificate_user(der: &[u8], sha256: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let text =
        |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().map(str::to_owned).ok();
    let username = subject.iter_common_name().find_map(text).filter(|name| !name.is_empty())?;
    let groups = subject.iter_organization().filter_map(text).collect();
    let id: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut user = UserInfo { username, groups, ..UserInfo::default() };
    user.extra.insert(CREDENTIAL_ID.into(), vec![format!("X509SHA256={id}")]);
    Some(with_authenticated(user))
}

fn parse_static_tokens(csv: &str) -> Result<HashMap<String, UserInfo>, StaticTokenError> {
    let mut tokens = HashMap::new();
    for (number, line) in csv.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.splitn(4, ',').map(str::trim);
        let (Some(token), Some(username), Some(uid)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(StaticTokenError { line: number + 1 });
        };
        if token.is_empty() || username.is_empty() {
            return Err(StaticTokenError { line: number + 1 });
        }
        let groups = fields.next().unwrap_or_default().trim_matches('"');
        let groups = groups.split(',').map(str::trim).filter(|group| !group.is_empty());
        let user = UserInfo {
            username: username.into(),
            uid: uid.into(),
            groups: groups.map(str::to_owned).collect(),
            ..UserInfo::default()
        };
        tokens.insert(token.to_owned(), user);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Pki;
    use crate::token::{KubernetesClaims, ObjectRef};
    use stdx::FakeClock;

    struct Lookup;
    impl ServiceAccountLookup for Lookup {
        fn service_account(&self, _: &str, name: &str) -> Option<Found> {
            (name == "bot").then(|| Found { uid: "u".into(), ..Found::default() })
        }
        fn pod(&self, _: &str, _: &str) -> Option<Found> {
            None
        }
        fn secret(&self, _: &str, _: &str) -> Option<Found> {
            None
        }
        fn node(&self, _: &str) -> Option<Found> {
            None
        }
        fn bootstrap_token(&self, id: &str) -> Option<BootstrapToken> {
            (id == "abcdef").then(|| BootstrapToken {
                secret: "0123456789abcdef".into(),
                usage_authentication: true,
                ..BootstrapToken::default()
            })
        }
    }

    fn setup() -> (tempfile::TempDir, Pki, Arc<TokenSigner>, Authenticator, Arc<FakeClock>) {
        let directory = tempfile::tempdir().unwrap();
        let clock = FakeClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        let pki = Pki::open_or_create(directory.path(), clock.clone()).unwrap();
        let signer = Arc::new(TokenSigner::new("iss", &pki.service_account_key().unwrap(), clock.clone()));
        let verifier = crate::tls::client_verifier(pki.ca_der()).unwrap();
        let authenticator =
            Authenticator::new(Some(verifier), signer.clone(), Arc::new(Lookup), vec![], clock.clone());
        (directory, pki, signer, authenticator, clock)
    }

    fn der(pem: &str) -> Vec<u8> {
        use rustls::pki_types::pem::PemObject;
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
    }

    #[tokio::test]
    async fn certificates() {
        let (_directory, pki, _, authenticator, clock) = setup();
        let issued = pki.issue_client("ann", &["dev", "ops"]).unwrap();
        let user = authenticator.authenticate(None, Some(&der(&issued.cert_pem)), "/").await.unwrap();
        assert_eq!(user.username, "ann");
        assert_eq!(user.groups, ["dev", "ops", "system:authenticated"]);
        assert!(user.extra[CREDENTIAL_ID][0].starts_with("X509SHA256="));
        let elsewhere = tempfile::tempdir().unwrap();
        let foreign = Pki::open_or_create(elsewhere.path(), clock.clone()).unwrap();
        let foreign = der(&foreign.issue_client("ann", &["system:masters"]).unwrap().cert_pem);
        assert_eq!(authenticator.authenticate(None, Some(&foreign), "/").await.unwrap_err().code, 401);
        let serving = der(&pki.issue_server("ann", &crate::pki::Names::default()).unwrap().cert_pem);
        assert_eq!(authenticator.authenticate(None, Some(&serving), "/").await.unwrap_err().code, 401);
        clock.advance(Duration::from_secs(400 * 86_400));
        assert_eq!(
            authenticator.authenticate(None, Some(&der(&issued.cert_pem)), "/").await.unwrap_err().code,
            401
        );
    }

    #[tokio::test]
    async fn tokens_and_anonymity() {
        let (_directory, _, signer, authenticator, _) = setup();
        let authenticator = authenticator.with_static_tokens("tok,tom,7,\"a,b\"\n").unwrap();
        assert_eq!(authenticator.authenticate(None, None, "/").await.unwrap(), UserInfo::anonymous());
        assert_eq!(authenticator.authenticate(Some("junk"), None, "/").await.unwrap_err().code, 401);
        let tom = authenticator.authenticate(Some("tok"), None, "/").await.unwrap();
        assert_eq!((tom.username.as_str(), tom.groups.len()), ("tom", 3));
        let joiner = authenticator.authenticate(Some("abcdef.0123456789abcdef"), None, "/").await.unwrap();
        assert_eq!(joiner.username, "system:bootstrap:abcdef");
        assert_eq!(
            authenticator.authenticate(Some("abcdef.0123456789abcdee"), None, "/").await.unwrap_err().code,
            401
        );
        let claims = |name: &str| KubernetesClaims {
            namespace: "n".into(),
            serviceaccount: ObjectRef { name: name.into(), uid: "u".into() },
            ..KubernetesClaims::default()
        };
        let (token, _) = signer.issue(claims("bot"), &[], 3600).unwrap();
        for _ in 0..2 {
            let bot = authenticator.authenticate(Some(&token), None, "/").await.unwrap();
            assert_eq!(bot.username, "system:serviceaccount:n:bot");
        }
        let (gone, _) = signer.issue(claims("gone"), &[], 3600).unwrap();
        assert_eq!(authenticator.authenticate(Some(&gone), None, "/").await.unwrap_err().code, 401);
        let (vault, _) = signer.issue(claims("bot"), &["vault".into()], 3600).unwrap();
        assert_eq!(authenticator.authenticate(Some(&vault), None, "/").await.unwrap_err().code, 401);
        let (_, common) = authenticator.authenticate_token(&vault, &["vault".into(), "x".into()]).unwrap();
        assert_eq!(common, ["vault"]);
        authenticator.configure(Configured { others: vec![], anonymous: AnonymousAccess::None });
        assert_eq!(authenticator.authenticate(None, None, "/").await.unwrap_err().code, 401);
    }

    #[test]
    fn static_token_files() {
        assert_eq!(parse_static_tokens("# c\n\na,b,c\n").unwrap().len(), 1);
        assert_eq!(parse_static_tokens("a,b\n").unwrap_err().line, 1);
    }
}
