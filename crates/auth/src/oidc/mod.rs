//! OpenID Connect: tokens of other issuers, by the keys they publish.
//!
//! Keys are fetched when a token names one that is not known yet, at most every few seconds, and kept. What a token
//! says becomes a user by the configured claims or expressions.

pub mod config;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use meta::UserInfo;
use parking_lot::RwLock;
use serde_json::{Map, Value};
use stdx::Clock;

use crate::authenticate::{BoxFuture, TokenAuthenticator};
use config::{Jwt, Mapping, Programs, Rule};

/// Shortest time between two fetches of an issuer's keys: unknown key ids must not become load for it.
const FETCH_EVERY: Duration = Duration::from_secs(10);
/// Keys are fetched anew after this long even if they would still do: revoked keys disappear from the set.
const KEYS_LIFE: Duration = Duration::from_secs(3600);
/// Clock difference tolerated, in seconds (upstream's library tolerates none for `exp`, five minutes for `nbf`).
const NOT_BEFORE_LEEWAY_SECONDS: i64 = 300;
/// Algorithms that are accepted unless the configuration says which. Symmetric ones never are.
const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Fetches documents of issuers over HTTPS.
pub trait Fetch: Send + Sync {
    /// The body of a successful answer. `ca` is PEM; empty for the system's authorities.
    fn get<'a>(&'a self, url: &'a str, ca: &'a str) -> BoxFuture<'a, Result<Vec<u8>, String>>;
}

#[derive(Default)]
struct Keys {
    set: Option<JwkSet>,
    tried: Option<Instant>,
}

/// The authenticator of one issuer.
pub struct Oidc {
    jwt: Jwt,
    programs: Programs,
    fetch: Arc<dyn Fetch>,
    clock: Arc<dyn Clock>,
    keys: RwLock<Keys>,
    fetching: tokio::sync::Mutex<()>,
}

impl Oidc {
    /// For an issuer of a checked configuration.
    pub fn new(jwt: Jwt, programs: Programs, fetch: Arc<dyn Fetch>, clock: Arc<dyn Clock>) -> Oidc {
        let (keys, fetching) = (RwLock::default(), tokio::sync::Mutex::default());
        Oidc { jwt, programs, fetch, clock, keys, fetching }
    }

    /// Whether the token says that this issuer has issued it; nothing is verified yet.
    fn is_ours(&self, token: &str) -> bool {
        let payload = token.split('.').nth(1).unwrap_or_default();
        use base64::Engine;
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
        let claims: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        claims["iss"] == *self.jwt.issuer.url
    }

    async fn user(&self, token: &str) -> Result<UserInfo, String> {
        let header = jsonwebtoken::decode_header(token).map_err(|e| format!("malformed jwt: {e}"))?;
        let named = |a: &Algorithm| self.jwt.algorithms.iter().any(|n| *n == format!("{a:?}"));
        let allowed =
            ALGORITHMS.contains(&header.alg) && (self.jwt.algorithms.is_empty() || named(&header.alg));
        if !allowed {
            return Err(format!("oidc: signing algorithm {:?} is not allowed", header.alg));
        }
        let claims = self.verified(token, header.alg, header.kid.as_deref()).await?;
        self.check_times_and_audience(&claims)?;
        let user = self.mapped(&claims)?;
        self.check_user(&user)?;
        Ok(user)
    }

    /// The claims, if a key of the issuer has signed them.
    async fn verified(&self, token: &str, alg: Algorithm, kid: Option<&str>) -> Result<Value, String> {
        let mut keys = self.candidates(kid, alg);
        let stale = || {
            let tried = self.keys.read().tried;
            tried.is_none_or(|at| self.clock.instant().saturating_duration_since(at) > KEYS_LIFE)
        };
        if keys.is_empty() || stale() {
            self.refresh().await?;
            keys = self.candidates(kid, alg);
        }
        let mut validation = Validation::new(alg);
        // Times by the injected clock, audiences by the configuration: below.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let verified =
            keys.iter().find_map(|key| jsonwebtoken::decode::<Value>(token, key, &validation).ok());
        let data = verified
            .ok_or("oidc: verify token: failed to verify signature: failed to verify id token signature")?;
        Ok(data.claims)
    }

    fn candidates(&self, kid: Option<&str>, alg: Algorithm) -> Vec<DecodingKey> {
        let keys = self.keys.read();
        let set = keys.set.iter().flat_map(|set| set.keys.iter());
        set.filter(|jwk| kid.is_none() || jwk.common.key_id.as_deref() == kid)
            .filter_map(|jwk| DecodingKey::from_jwk(jwk).ok())
            .filter(|key| key.family().algorithms().contains(&alg))
            .collect()
    }

    /// Fetches the keys, unless that was tried a moment ago.
    async fn refresh(&self) -> Result<(), String> {
        let asked = self.clock.instant();
        let _one = self.fetching.lock().await;
        let tried = self.keys.read().tried;
        let recent = |at: Instant| at >= asked || asked.saturating_duration_since(at) < FETCH_EVERY;
        if tried.is_some_and(recent) {
            return Ok(());
        }
        self.keys.write().tried = Some(self.clock.instant());
        let issuer = &self.jwt.issuer;
        let discovery = match issuer.discovery_url.as_str() {
            "" => format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/')),
            url => url.to_owned(),
        };
        let get = async |url: &str| {
            let bytes = self.fetch.get(url, &issuer.certificate_authority).await;
            bytes.map_err(|e| {
                format!("oidc: authenticator for issuer {:?} is not initialized: {e}", issuer.url)
            })
        };
        let document: Value = serde_json::from_slice(&get(&discovery).await?)
            .map_err(|e| format!("oidc: the discovery document is no JSON: {e}"))?;
        if document["issuer"] != *issuer.url {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {:?} got {}",
                issuer.url, document["issuer"]
            ));
        }
        let uri = document["jwks_uri"].as_str().ok_or("oidc: the discovery document names no jwks_uri")?;
        let mut set: Value = serde_json::from_slice(&get(uri).await?)
            .map_err(|e| format!("oidc: the key set is no JSON: {e}"))?;
        // Keys of kinds that are not understood are no reason to ignore the others.
        if let Some(keys) = set["keys"].as_array_mut() {
            keys.retain(|key| serde_json::from_value::<jsonwebtoken::jwk::Jwk>(key.clone()).is_ok());
        }
        let set =
            serde_json::from_value(set).map_err(|e| format!("oidc: the key set cannot be read: {e}"))?;
        self.keys.write().set = Some(set);
        Ok(())
    }

    fn check_times_and_audience(&self, claims: &Value) -> Result<(), String> {
        let now = self.clock.now().as_second();
        #[allow(clippy::cast_possible_truncation, reason = "times fit; what does not has expired")]
        let time = |key: &str| claims[key].as_i64().or_else(|| claims[key].as_f64().map(|f| f as i64));
        match time("exp") {
            Some(exp) if now < exp => {}
            _ => return Err("oidc: verify token: oidc: token is expired".into()),
        }
        if time("nbf").is_some_and(|nbf| now + NOT_BEFORE_LEEWAY_SECONDS < nbf) {
            return Err("oidc: verify token: current time is before the nbf (not before) time".into());
        }
        let audiences: Vec<&str> = match &claims["aud"] {
            Value::String(one) => vec![one],
            Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let ours = &self.jwt.issuer.audiences;
        match audiences.iter().any(|a| ours.iter().any(|o| o == a)) {
            true => Ok(()),
            false => {
                Err(format!("oidc: verify token: oidc: expected audience in {ours:?} got {audiences:?}"))
            }
        }
    }

    /// The user that the claims make.
    fn mapped(&self, claims: &Value) -> Result<UserInfo, String> {
        let mappings = &self.jwt.claim_mappings;
        for rule in self.jwt.claim_validation_rules.iter().filter(|r| !r.claim.is_empty()) {
            let found = claims[&rule.claim].as_str();
            let found = found
                .ok_or_else(|| format!("oidc: required claim {} not present in ID token", rule.claim))?;
            if found != rule.required_value {
                return Err(format!(
                    "oidc: required claim {} value does not match. Got = {found}, want = {}",
                    rule.claim, rule.required_value
                ));
            }
        }
        for rule in &self.programs.claim_rules {
            let value = evaluate(&rule.program, "claims", claims, &config::claims_type());
            hold(rule, value, "oidc: error evaluating claim validation expression")?;
        }
        let username = match &self.programs.username {
            Some(program) => text(program, claims, "username")?,
            None => self.username(claims)?,
        };
        if username.is_empty() {
            return Err("oidc: username is empty".into());
        }
        let groups = match &self.programs.groups {
            Some(program) => strings(&evaluate(program, "claims", claims, &config::claims_type())?),
            None => prefixed(&mappings.groups, claims),
        };
        let uid = match &self.programs.uid {
            Some(program) => text(program, claims, "uid")?,
            None if mappings.uid.claim.is_empty() => String::new(),
            None => claims[&mappings.uid.claim].as_str().unwrap_or_default().to_owned(),
        };
        let mut extra = BTreeMap::new();
        for (key, program) in &self.programs.extra {
            let values = strings(&evaluate(program, "claims", claims, &config::claims_type())?);
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        Ok(UserInfo { username, uid, groups, extra })
    }

    /// The user name by a claim. A mail address must be verified if the issuer says anything about it.
    fn username(&self, claims: &Value) -> Result<String, String> {
        let mapping = &self.jwt.claim_mappings.username;
        let name = claims[&mapping.claim]
            .as_str()
            .ok_or_else(|| format!("oidc: parse username claims {:?}: claim not present", mapping.claim))?;
        if mapping.claim == "email" && claims.get("email_verified").is_some_and(|v| *v != true) {
            return Err("oidc: email not verified".into());
        }
        Ok(format!("{}{name}", mapping.prefix.as_deref().unwrap_or_default()))
    }

    fn check_user(&self, user: &UserInfo) -> Result<(), String> {
        if self.programs.user_rules.is_empty() {
            return Ok(());
        }
        let mut value = Map::new();
        value.insert("username".into(), user.username.as_str().into());
        value.insert("uid".into(), user.uid.as_str().into());
        value.insert("groups".into(), user.groups.clone().into());
        value.insert("extra".into(), serde_json::to_value(&user.extra).unwrap_or_default());
        let value = Value::Object(value);
        for rule in &self.programs.user_rules {
            let result = evaluate(&rule.program, "user", &value, &config::user_type());
            hold(rule, result, "oidc: error evaluating user info validation rule")?;
        }
        Ok(())
    }
}

fn prefixed(mapping: &Mapping, claims: &Value) -> Vec<String> {
    if mapping.claim.is_empty() {
        return Vec::new();
    }
    let prefix = mapping.prefix.as_deref().unwrap_or_default();
    strings(&claims[&mapping.claim]).into_iter().map(|group| format!("{prefix}{group}")).collect()
}

/// One string or several; empty ones are dropped.
fn strings(value: &Value) -> Vec<String> {
    let all = match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => many.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };
    all.into_iter().filter(|s| !s.is_empty()).collect()
}

fn evaluate(program: &cel::Program, name: &str, value: &Value, ty: &cel::Type) -> Result<Value, String> {
    let variables = vec![(name, cel::Value::json(value, ty))];
    let mut meter = cel::Meter::new(cel::RUNTIME_BUDGET);
    let result = program.evaluate(&variables, &mut meter).map_err(|e| format!("oidc: {e}"))?;
    result.to_json().map_err(|e| format!("oidc: {e}"))
}

fn text(program: &cel::Program, claims: &Value, what: &str) -> Result<String, String> {
    match evaluate(program, "claims", claims, &config::claims_type())? {
        Value::String(text) => Ok(text),
        _ => Err(format!("oidc: error evaluating {what} claim expression: must return a string")),
    }
}

fn hold(rule: &Rule, value: Result<Value, String>, wrapped: &str) -> Result<(), String> {
    match value.map_err(|e| format!("{wrapped}: {e}"))? {
        Value::Bool(true) => Ok(()),
        _ if rule.message.is_empty() => {
            Err(format!("{wrapped}: validation expression '{}' failed", rule.source))
        }
        _ => Err(format!("{wrapped}: validation expression '{}' failed: {}", rule.source, rule.message)),
    }
}

impl TokenAuthenticator for Oidc {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Option<Result<UserInfo, String>>> {
        Box::pin(async move {
            if !self.is_ours(token) {
                return None;
            }
            Some(self.user(token).await)
        })
    }
}

#[cfg(test)]
mod tests;
