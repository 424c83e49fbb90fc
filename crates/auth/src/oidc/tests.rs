//! Tokens of an issuer whose documents come from a table.

use parking_lot::Mutex;
use rcgen::{KeyPair, PublicKeyData};
use serde_json::json;
use stdx::FakeClock;

use super::*;

struct Documents(Mutex<Vec<(String, Value)>>, Mutex<usize>);

impl Fetch for Documents {
    fn get<'a>(&'a self, url: &'a str, _: &'a str) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        *self.1.lock() += 1;
        let found = self.0.lock().iter().find(|(u, _)| u == url).map(|(_, v)| v.to_string().into_bytes());
        Box::pin(async move { found.ok_or_else(|| "404".to_owned()) })
    }
}

fn jwk(key: &KeyPair, kid: &str) -> Value {
    use base64::Engine;
    let text = |b: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(b);
    let raw = key.der_bytes();
    json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid, "x": text(&raw[1..33]), "y": text(&raw[33..])})
}

fn token(key: &KeyPair, kid: &str, claims: &Value) -> String {
    let mut header = jsonwebtoken::Header::new(Algorithm::ES256);
    header.kid = Some(kid.into());
    let key = jsonwebtoken::EncodingKey::from_ec_der(key.serialized_der());
    jsonwebtoken::encode(&header, claims, &key).unwrap()
}

fn issuer(jwt: Value, documents: &Arc<Documents>, clock: &Arc<FakeClock>) -> Oidc {
    let document = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [jwt]});
    let (mut configuration, mut programs) = config::parse(document, "https://own").unwrap();
    Oidc::new(configuration.jwt.remove(0), programs.remove(0), documents.clone(), clock.clone())
}

fn documents(key: &KeyPair) -> Arc<Documents> {
    Arc::new(Documents(
        Mutex::new(vec![
            (
                "https://i/.well-known/openid-configuration".into(),
                json!({"issuer": "https://i", "jwks_uri": "https://i/keys"}),
            ),
            ("https://i/keys".into(), json!({"keys": [{"kty": "odd"}, jwk(key, "one")]})),
        ]),
        Mutex::default(),
    ))
}

const NOW: i64 = 1_700_000_000;

fn base(changes: Value) -> Value {
    let mut claims = json!({"iss": "https://i", "aud": "ferry", "exp": NOW + 60, "sub": "ann", "email": "ann@x",
        "email_verified": true, "groups": ["dev", "ops"], "level": "5"});
    for (key, value) in changes.as_object().cloned().unwrap_or_default() {
        claims[key] = value;
    }
    claims
}

#[tokio::test]
async fn claims_become_users() {
    let (key, clock) =
        (KeyPair::generate().unwrap(), FakeClock::at(jiff::Timestamp::from_second(NOW).unwrap()));
    let documents = documents(&key);
    let by_claims = json!({"issuer": {"url": "https://i", "audiences": ["ferry"]},
        "claimValidationRules": [{"claim": "level", "requiredValue": "5"}],
        "claimMappings": {"username": {"claim": "sub", "prefix": "i:"}, "groups": {"claim": "groups", "prefix": "g:"}}});
    let by_expressions = json!({"issuer": {"url": "https://i", "audiences": ["ferry", "b"], "audienceMatchPolicy": "MatchAny"},
        "claimValidationRules": [{"expression": "claims.email_verified == true", "message": "unverified"}],
        "claimMappings": {
            "username": {"expression": "claims.email.split('@')[0]"},
            "groups": {"expression": "claims.groups.map(g, 'x-' + g)"},
            "uid": {"expression": "claims.sub"},
            "extra": [{"key": "example.org/level", "valueExpression": "claims.level"}]},
        "userValidationRules": [{"expression": "!user.username.startsWith('system:')", "message": "reserved"}]});
    let (plain, mapped) = (issuer(by_claims, &documents, &clock), issuer(by_expressions, &documents, &clock));
    let user = plain.user(&token(&key, "one", &base(json!({})))).await.unwrap();
    assert_eq!((user.username.as_str(), &*user.groups), ("i:ann", &["g:dev".to_owned(), "g:ops".into()][..]));
    let user = mapped.user(&token(&key, "one", &base(json!({})))).await.unwrap();
    assert_eq!((user.username.as_str(), user.uid.as_str()), ("ann", "ann"));
    assert_eq!(user.groups, ["x-dev", "x-ops"]);
    assert_eq!(user.extra["example.org/level"], ["5"]);
    for (oidc, changes, why) in [
        (&plain, json!({"exp": NOW}), "expired"),
        (&plain, json!({"nbf": NOW + 301}), "not before"),
        (&plain, json!({"aud": ["other"]}), "expected audience"),
        (&plain, json!({"level": "6"}), "required claim level value does not match. Got = 6, want = 5"),
        (&mapped, json!({"email_verified": false}), "unverified"),
        (&mapped, json!({"email": "system:x@y"}), "reserved"),
    ] {
        let refused = oidc.user(&token(&key, "one", &base(changes))).await.unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    assert!(plain.authenticate(&token(&key, "one", &json!({"iss": "https://else"}))).await.is_none());
}

#[tokio::test]
async fn unknown_keys_are_fetched_but_not_in_a_storm() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let clock = FakeClock::at(jiff::Timestamp::from_second(NOW).unwrap());
    let documents = documents(&key);
    let oidc = issuer(
        json!({"issuer": {"url": "https://i", "audiences": ["ferry"]}, "claimMappings": {"username": {"claim": "sub", "prefix": ""}}}),
        &documents,
        &clock,
    );
    let (old, new) = (token(&key, "one", &base(json!({}))), token(&other, "two", &base(json!({}))));
    for _ in 0..3 {
        assert!(oidc.user(&old).await.is_ok());
        assert!(oidc.user(&new).await.is_err());
    }
    assert_eq!(*documents.1.lock(), 2, "discovery and keys, once");
    documents.0.lock()[1].1 = json!({"keys": [jwk(&key, "one"), jwk(&other, "two")]});
    clock.advance(Duration::from_secs(11));
    assert!(oidc.user(&new).await.is_ok(), "the key was rotated in");
    assert_eq!(*documents.1.lock(), 4);
    let forged = token(&KeyPair::generate().unwrap(), "one", &base(json!({})));
    assert!(oidc.user(&forged).await.unwrap_err().contains("failed to verify signature"));
}

#[test]
fn what_is_wrong_with_a_configuration() {
    let jwt = |issuer: Value, mappings: Value| json!({"issuer": issuer, "claimMappings": mappings});
    let good = json!({"url": "https://i", "audiences": ["a"]});
    let name = json!({"username": {"claim": "sub", "prefix": ""}});
    for (jwt, why) in [
        (jwt(json!({"audiences": ["a"]}), name.clone()), "jwt[0].issuer.url: Required value"),
        (jwt(json!({"url": "http://i", "audiences": ["a"]}), name.clone()), "URL scheme must be https"),
        (jwt(json!({"url": "https://own", "audiences": ["a"]}), name.clone()), "must not overlap"),
        (jwt(json!({"url": "https://i", "audiences": ["a", "b"]}), name.clone()), "MatchAny for multiple"),
        (jwt(good.clone(), json!({})), "claim or expression is required"),
        (jwt(good.clone(), json!({"username": {"claim": "sub"}})), "prefix is required"),
        (jwt(good.clone(), json!({"username": {"expression": "claims."}})), "compilation failed"),
        (jwt(good.clone(), json!({"username": {"expression": "1"}})), "must evaluate to string"),
        (
            jwt(good.clone(), json!({"username": {"expression": "claims.email"}})),
            "email_verified must be used",
        ),
        (
            jwt(
                good,
                json!({"username": {"claim": "sub", "prefix": ""}, "extra": [{"key": "kubernetes.io/x", "valueExpression": "'a'"}]}),
            ),
            "reserved",
        ),
    ] {
        let document = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [jwt]});
        let error = config::parse(document, "https://own").unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
