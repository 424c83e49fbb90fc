//! Registry authentication: basic, and the token protocol of distribution.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;

use super::transport::Transport;
use super::{read_limited, unavailable};
use crate::error::{Error, Result};

/// Longest answer of a token server.
const TOKEN_LEN_MAX: u64 = 1 << 20;

/// What a registry asks for in `WWW-Authenticate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password.
    Basic,
    /// A token from the server at `realm`.
    Bearer { realm: String, service: String, scope: String },
}

impl Challenge {
    /// Parses one header value (RFC 7235); `None` for schemes we do not speak.
    pub(super) fn parse(value: &str) -> Option<Challenge> {
        let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (String::new(), String::new(), String::new());
        for (key, value) in parameters(rest) {
            match key.as_str() {
                "realm" => realm = value,
                "service" => service = value,
                "scope" => scope = value,
                _ => {}
            }
        }
        (!realm.is_empty()).then_some(Challenge::Bearer { realm, service, scope })
    }
}

/// `key="value"` pairs; values may hold commas.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    while let Some((key, rest)) = text.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        pairs.push((key, value.to_owned()));
        text = rest;
    }
    pairs
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The header that answers the challenge; `None` where there are no credentials for it.
pub(super) async fn authorization(
    transport: &Transport,
    challenge: &Challenge,
    auth: Option<&cri::ImageAuth>,
    default_scope: &str,
) -> Result<Option<HeaderValue>> {
    if let Some(token) = auth.map(|a| a.registry_token.as_str()).filter(|t| !t.is_empty()) {
        return secret(format!("Bearer {token}")).map(Some);
    }
    let basic = auth.filter(|a| !a.username.is_empty()).map(basic);
    let (realm, service, scope) = match challenge {
        Challenge::Basic => return basic.transpose(),
        Challenge::Bearer { realm, service, scope } => (realm, service, scope),
    };
    let scope = if scope.is_empty() { default_scope.to_owned() } else { scope.clone() };
    let identity = auth.map(|a| a.identity_token.as_str()).filter(|t| !t.is_empty());
    let response = match identity {
        Some(identity) => {
            let form = format!(
                "grant_type=refresh_token&client_id=ferry&service={}&scope={}&refresh_token={}",
                encode(service),
                encode(&scope),
                encode(identity)
            );
            transport.post_form(realm, form).await?
        }
        None => {
            let separator = if realm.contains('?') { '&' } else { '?' };
            let url = format!("{realm}{separator}service={}&scope={}", encode(service), encode(&scope));
            let mut headers = HeaderMap::new();
            if let Some(basic) = basic {
                headers.insert(header::AUTHORIZATION, basic?);
            }
            transport.get(&url, headers).await?
        }
    };
    let status = response.status;
    if status.is_server_error() {
        return Err(unavailable(realm, format!("failed to fetch oauth token: {status}")));
    }
    if !status.is_success() {
        let message = format!("failed to fetch oauth token: unexpected status: {status}");
        return Err(Error::Denied { reference: String::new(), message });
    }
    let body = read_limited(response, realm, TOKEN_LEN_MAX).await?;
    let answer: TokenAnswer = serde_json::from_slice(&body)
        .map_err(|e| Error::Protocol { url: realm.clone(), message: format!("token: {e}") })?;
    let token = answer.token.or(answer.access_token).filter(|t| !t.is_empty());
    token.map(|token| secret(format!("Bearer {token}"))).transpose()
}

impl Error {
    /// Fills in whose credentials were refused.
    pub(super) fn for_reference(self, name: &str) -> Error {
        match self {
            Error::Denied { message, .. } => Error::Denied { reference: name.to_owned(), message },
            other => other,
        }
    }
}

fn basic(auth: &cri::ImageAuth) -> Result<HeaderValue> {
    secret(format!("Basic {}", STANDARD.encode(format!("{}:{}", auth.username, auth.password))))
}

fn secret(text: String) -> Result<HeaderValue> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| Error::Malformed("registry credentials hold characters that no header can".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Percent-encodes a query value.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_challenges() {
        let value =
            r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push""#;
        let want = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: "reg".into(),
            scope: "repository:a/b:pull,push".into(),
        };
        assert_eq!(Challenge::parse(value), Some(want));
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer service=x"), None);
    }

    #[test]
    fn encodes_queries() {
        assert_eq!(encode("repository:a/b:pull"), "repository%3Aa%2Fb%3Apull");
    }
}
