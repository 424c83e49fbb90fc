//! Credentials of a Docker configuration (`~/.docker/config.json`) for an image. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::reference::Reference;

/// The entry of `auths` that fits the image's registry; the one for a longer path wins.
pub fn credentials(config: &str, reference: &Reference) -> Option<cri::ImageAuth> {
    let document: Value = serde_json::from_str(config).ok()?;
    let name = reference.name();
    let fits = |key: &str| {
        let bare = bare(key);
        let inside =
            name == bare || name.strip_prefix(bare.as_str()).is_some_and(|rest| rest.starts_with('/'));
        inside.then_some(bare.len())
    };
    let auths = document.get("auths")?.as_object()?;
    let (_, entry) =
        auths.iter().filter_map(|(key, entry)| Some((fits(key)?, entry))).max_by_key(|(len, _)| *len)?;
    let auth = auth_of(entry);
    let empty = auth.username.is_empty() && auth.identity_token.is_empty() && auth.registry_token.is_empty();
    (!empty).then_some(auth)
}

/// A key without scheme and version, Docker Hub's old names as its new one.
fn bare(key: &str) -> String {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let key = key.trim_end_matches("/v1").trim_end_matches("/v2");
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        key => key.to_owned(),
    }
}

fn auth_of(entry: &Value) -> cri::ImageAuth {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut auth = cri::ImageAuth {
        username: text("username"),
        password: text("password"),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
    };
    let decoded = STANDARD.decode(text("auth")).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some((username, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) {
        auth.username = username.to_owned();
        auth.password = password.trim_end_matches('\0').to_owned();
    }
    auth
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_entry_wins() {
        let encoded = STANDARD.encode("near:pw");
        let config = serde_json::json!({"auths": {
            "https://index.docker.io/v1/": {"username": "hub", "password": "x"},
            "r.io": {"username": "wide", "password": "x"},
            "r.io/team": {"auth": encoded},
            "empty.io": {}}});
        let of = |name: &str| credentials(&config.to_string(), &name.parse().unwrap()).map(|a| a.username);
        assert_eq!(of("busybox").as_deref(), Some("hub"));
        assert_eq!(of("r.io/other/x").as_deref(), Some("wide"));
        assert_eq!(of("r.io/team/x").as_deref(), Some("near"));
        assert_eq!(of("empty.io/x"), None);
        assert_eq!(of("r.io.evil/x"), None);
        assert_eq!(credentials("no json", &"r.io/x".parse().unwrap()), None);
    }
}
