//! `EncryptionConfiguration` (apiserver.config.k8s.io/v1), as `--encryption-provider-config` takes it.

use base64::Engine;
use serde::Deserialize;

use crate::cipher::{Cipher, CipherError};
use crate::{Rule, Rules};

/// An encryption configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not what its type says.
    #[error("the encryption configuration cannot be understood")]
    Malformed(#[from] serde_json::Error),
    /// A rule is broken.
    #[error("{field}: {problem}")]
    Invalid {
        /// Where.
        field: String,
        /// What is wrong.
        problem: String,
    },
}

fn invalid(field: String, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { field, problem: problem.into() }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    api_version: String,
    kind: String,
    #[serde(default)]
    resources: Vec<Resources>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Provider {
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    identity: Option<serde_json::Map<String, serde_json::Value>>,
    kms: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default)]
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    #[serde(default)]
    name: String,
    #[serde(default)]
    secret: String,
}

/// Reads a configuration (as JSON; the caller has turned its YAML into that).
pub fn parse(document: serde_json::Value) -> Result<Rules, ConfigError> {
    let configuration: Configuration = serde_json::from_value(document)?;
    if configuration.kind != "EncryptionConfiguration"
        || configuration.api_version != "apiserver.config.k8s.io/v1"
    {
        let problem = format!(
            "{} {} is not EncryptionConfiguration of apiserver.config.k8s.io/v1",
            configuration.api_version, configuration.kind
        );
        return Err(invalid("kind".into(), problem));
    }
    if configuration.resources.is_empty() {
        return Err(invalid("resources".into(), "Required value: at least one resource must be specified"));
    }
    let rules = configuration.resources.into_iter().enumerate().map(|(i, r)| rule(i, r));
    Ok(Rules(rules.collect::<Result<_, _>>()?))
}

fn rule(at: usize, resources: Resources) -> Result<Rule, ConfigError> {
    let field = format!("resources[{at}]");
    if resources.resources.is_empty() {
        return Err(invalid(format!("{field}.resources"), "Required value: a resource must be specified"));
    }
    if let Some(bad) = resources.resources.iter().find(|r| r.as_str() == "*" || r.contains('/')) {
        let problem = format!("Invalid value: {bad:?}: use RESOURCE, RESOURCE.GROUP, *.GROUP, *. or *.*");
        return Err(invalid(format!("{field}.resources"), problem));
    }
    if resources.providers.is_empty() {
        return Err(invalid(format!("{field}.providers"), "Required value: a provider must be specified"));
    }
    let mut ciphers = Vec::new();
    for (i, provider) in resources.providers.into_iter().enumerate() {
        let field = format!("{field}.providers[{i}]");
        let kinds = [provider.aesgcm.is_some(), provider.aescbc.is_some(), provider.secretbox.is_some()];
        let given = kinds.into_iter().chain([provider.identity.is_some(), provider.kms.is_some()]);
        match given.filter(|given| *given).count() {
            1 => {}
            0 => return Err(invalid(field, "Required value: a provider must name its kind")),
            _ => return Err(invalid(field, "Invalid value: more than one kind in one provider")),
        }
        if provider.kms.is_some() {
            let problem = "Unsupported value: \"kms\": supported values: \"aescbc\", \"aesgcm\", \"identity\", \"secretbox\"";
            return Err(invalid(format!("{field}.kms"), problem));
        }
        if provider.identity.is_some() {
            ciphers.push(Cipher::identity());
        }
        type Make = fn(&str, Vec<u8>) -> Result<Cipher, CipherError>;
        let kinds: [(&str, Option<Keys>, Make); 3] = [
            ("aesgcm", provider.aesgcm, Cipher::aes_gcm),
            ("aescbc", provider.aescbc, Cipher::aes_cbc),
            ("secretbox", provider.secretbox, Cipher::secretbox),
        ];
        for (word, keys, make) in kinds {
            let Some(keys) = keys else { continue };
            ciphers.extend(read_keys(&format!("{field}.{word}.keys"), keys, make)?);
        }
    }
    Ok(Rule { resources: resources.resources, ciphers })
}

fn read_keys(
    field: &str,
    keys: Keys,
    make: impl Fn(&str, Vec<u8>) -> Result<Cipher, CipherError>,
) -> Result<Vec<Cipher>, ConfigError> {
    if keys.keys.is_empty() {
        return Err(invalid(field.into(), "Required value: at least one key must be specified"));
    }
    let mut names = Vec::new();
    let mut ciphers = Vec::new();
    for (i, key) in keys.keys.into_iter().enumerate() {
        if key.name.is_empty() || key.name.contains(':') {
            return Err(invalid(
                format!("{field}[{i}].name"),
                "Invalid value: a name without colons is required",
            ));
        }
        if names.contains(&key.name) {
            return Err(invalid(format!("{field}[{i}].name"), format!("Duplicate value: {:?}", key.name)));
        }
        // The secret itself never shows in an error.
        let secret = base64::engine::general_purpose::STANDARD
            .decode(&key.secret)
            .map_err(|_| invalid(format!("{field}[{i}].secret"), "secrets must be base64 encoded"))?;
        let cipher =
            make(&key.name, secret).map_err(|e| invalid(format!("{field}[{i}].secret"), e.to_string()))?;
        names.push(key.name);
        ciphers.push(cipher);
    }
    Ok(ciphers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_yaml(resources: &str) -> Result<Rules, String> {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{resources}"
        );
        parse(serde_saphyr::from_str(&text).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_configuration_as_the_documentation_shows_it() {
        let rules = parse_yaml(
            "- resources: [secrets, configmaps, widgets.example.com]
  providers:
  - aescbc: {keys: [{name: key1, secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=}]}
  - secretbox: {keys: [{name: key2, secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=}]}
  - identity: {}
",
        )
        .unwrap();
        assert_eq!(rules.of("/registry/secrets/n/x").unwrap().len(), 3);
        assert_eq!(rules.of("/registry/widgets.example.com/n/x").unwrap().len(), 3);
        assert!(rules.of("/registry/pods/n/x").is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (yaml, error) in [
            ("- {resources: [], providers: [{identity: {}}]}", "resources[0].resources: Required value"),
            (
                "- {resources: ['*'], providers: [{identity: {}}]}",
                "resources[0].resources: Invalid value: \"*\"",
            ),
            ("- {resources: [secrets], providers: []}", "resources[0].providers: Required value"),
            ("- {resources: [secrets], providers: [{}]}", "resources[0].providers[0]: Required value"),
            (
                "- {resources: [secrets], providers: [{kms: {name: x}}]}",
                "resources[0].providers[0].kms: Unsupported",
            ),
            (
                "- {resources: [secrets], providers: [{aesgcm: {keys: [{name: a, secret: AAEC}]}}]}",
                "resources[0].providers[0].aesgcm.keys[0].secret: the secret has 3 bytes",
            ),
            (
                "- {resources: [secrets], providers: [{aesgcm: {keys: [{name: a, secret: '%'}]}}]}",
                "resources[0].providers[0].aesgcm.keys[0].secret: secrets must be base64",
            ),
        ] {
            let found = parse_yaml(yaml).unwrap_err();
            assert!(found.starts_with(error), "{found}");
        }
    }
}
