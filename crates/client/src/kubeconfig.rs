//! Kubeconfig files (client-go `clientcmd/api/v1`): where clusters are, who we are, what is current.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meta::UserInfo;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::Client;
use crate::https::{FileToken, Https, HttpsConfig, StaticToken, TokenSource};
use crate::tls::{KeyPair, Trust};
use crate::transport::TransportError;

/// A kubeconfig that cannot be read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The text is not a kubeconfig.
    #[error("cannot read the kubeconfig: {0}")]
    Parse(String),
    /// Something referred to is not there.
    #[error("the kubeconfig has no {what} named {name:?}")]
    Missing {
        /// `context`, `cluster` or `user`.
        what: &'static str,
        /// The name looked for.
        name: String,
    },
    /// `*-data` is not base64.
    #[error("{field} is not base64: {source}")]
    Base64 {
        /// The field.
        field: &'static str,
        /// Where it went wrong.
        #[source]
        source: base64::DecodeError,
    },
    /// The server's URL is malformed.
    #[error("server: {0}")]
    Server(#[from] http::uri::InvalidUri),
    /// Certificates cannot be used.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Kubeconfig {
    /// Always `v1`.
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// Always `Config`.
    pub kind: String,
    /// Preferences of older clients, kept as they are.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub preferences: Value,
    /// Clusters by name.
    pub clusters: Vec<NamedCluster>,
    /// Users by name.
    pub users: Vec<NamedUser>,
    /// Contexts by name.
    pub contexts: Vec<NamedContext>,
    /// Name of the context in use.
    pub current_context: String,
}

/// A cluster under its name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NamedCluster {
    /// Name.
    pub name: String,
    /// Cluster.
    #[serde(default)]
    pub cluster: Cluster,
}

/// A user under its name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NamedUser {
    /// Name.
    pub name: String,
    /// Credentials.
    #[serde(default)]
    pub user: User,
}

/// A context under its name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NamedContext {
    /// Name.
    pub name: String,
    /// Context.
    #[serde(default)]
    pub context: Context,
}

/// Where a cluster's API server is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are those of the file format")]
pub struct Cluster {
    pub server: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tls_server_name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure_skip_tls_verify: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub certificate_authority: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub certificate_authority_data: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub proxy_url: String,
}

/// Credentials.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are those of the file format")]
pub struct User {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_certificate: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_certificate_data: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_key_data: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub token: String,
    #[serde(rename = "tokenFile", skip_serializing_if = "String::is_empty")]
    pub token_file: String,
    #[serde(rename = "as", skip_serializing_if = "String::is_empty")]
    pub impersonate: String,
    #[serde(rename = "as-uid", skip_serializing_if = "String::is_empty")]
    pub impersonate_uid: String,
    #[serde(rename = "as-groups", skip_serializing_if = "Vec::is_empty")]
    pub impersonate_groups: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub password: String,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub exec: Value,
    #[serde(rename = "auth-provider", skip_serializing_if = "Value::is_null")]
    pub auth_provider: Value,
}

/// A cluster, a user and a default namespace.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are those of the file format")]
pub struct Context {
    pub cluster: String,
    pub user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> KubeconfigError + use<> {
    let path = path.to_owned();
    move |source| KubeconfigError::Io { path, source }
}

/// Data given inline as base64, or in a file next to the kubeconfig, or not at all.
fn inline_or_file(
    field: &'static str,
    data: &str,
    file: &str,
    directory: &Path,
) -> Result<Option<Vec<u8>>, KubeconfigError> {
    if !data.is_empty() {
        return STANDARD.decode(data).map(Some).map_err(|source| KubeconfigError::Base64 { field, source });
    }
    if file.is_empty() {
        return Ok(None);
    }
    let path = directory.join(file);
    std::fs::read(&path).map(Some).map_err(io(&path))
}

impl Kubeconfig {
    /// A kubeconfig with one cluster, one user and one context, all called `name`. Certificates are PEM.
    pub fn single(name: &str, server: &str, ca: &[u8], certificate: &[u8], key: &[u8]) -> Self {
        let cluster = Cluster {
            server: server.into(),
            certificate_authority_data: STANDARD.encode(ca),
            ..Default::default()
        };
        let user = User {
            client_certificate_data: STANDARD.encode(certificate),
            client_key_data: STANDARD.encode(key),
            ..Default::default()
        };
        let context = Context { cluster: name.into(), user: name.into(), ..Default::default() };
        Kubeconfig {
            api_version: "v1".into(),
            kind: "Config".into(),
            preferences: Value::Null,
            clusters: vec![NamedCluster { name: name.into(), cluster }],
            users: vec![NamedUser { name: name.into(), user }],
            contexts: vec![NamedContext { name: name.into(), context }],
            current_context: name.into(),
        }
    }

    /// Reads YAML or JSON.
    pub fn parse(text: &str) -> Result<Self, KubeconfigError> {
        if text.trim().is_empty() {
            return Ok(Kubeconfig::default());
        }
        let options = serde_saphyr::options! {
            duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
            legacy_octal_numbers: true,
        };
        serde_saphyr::from_str_with_options(text, options).map_err(|e| KubeconfigError::Parse(e.to_string()))
    }

    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, KubeconfigError> {
        Self::parse(&std::fs::read_to_string(path).map_err(io(path))?)
    }

    /// The file as text.
    pub fn to_yaml(&self) -> Result<String, KubeconfigError> {
        serde_saphyr::to_string(self).map_err(|e| KubeconfigError::Parse(e.to_string()))
    }

    /// Writes the file, readable by its owner only, at once or not at all.
    pub fn save(&self, path: &Path) -> Result<(), KubeconfigError> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let text = self.to_yaml()?;
        let draft = path.with_extension(format!("tmp{}", std::process::id()));
        let write = || {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&draft, path)
        };
        write().map_err(io(path))
    }

    /// The context called `name`, or with `None` the current one.
    pub fn context(&self, name: Option<&str>) -> Result<&Context, KubeconfigError> {
        let name = name.unwrap_or(&self.current_context);
        let found = self.contexts.iter().find(|c| c.name == name);
        found
            .map(|c| &c.context)
            .ok_or_else(|| KubeconfigError::Missing { what: "context", name: name.into() })
    }

    /// How to reach the server of a context. Files named in the kubeconfig are relative to `directory`.
    pub fn https_config(
        &self,
        context: Option<&str>,
        directory: &Path,
    ) -> Result<HttpsConfig, KubeconfigError> {
        let context = self.context(context)?;
        let missing = |what, name: &str| KubeconfigError::Missing { what, name: name.into() };
        let cluster = self.clusters.iter().find(|c| c.name == context.cluster);
        let cluster = &cluster.ok_or_else(|| missing("cluster", &context.cluster))?.cluster;
        let mut config = HttpsConfig::new(cluster.server.parse()?);
        let ca = inline_or_file(
            "certificate-authority-data",
            &cluster.certificate_authority_data,
            &cluster.certificate_authority,
            directory,
        )?;
        config.trust = match ca {
            _ if cluster.insecure_skip_tls_verify => Trust::Anybody,
            Some(pem) => Trust::Ca(pem),
            None => Trust::System,
        };
        config.server_name = Some(cluster.tls_server_name.clone()).filter(|name| !name.is_empty());
        if context.user.is_empty() {
            return Ok(config);
        }
        let user = self.users.iter().find(|u| u.name == context.user);
        let user = &user.ok_or_else(|| missing("user", &context.user))?.user;
        let certificates = inline_or_file(
            "client-certificate-data",
            &user.client_certificate_data,
            &user.client_certificate,
            directory,
        )?;
        let key = inline_or_file("client-key-data", &user.client_key_data, &user.client_key, directory)?;
        config.certificate = certificates.zip(key).map(|(certificates, key)| KeyPair { certificates, key });
        config.token = token_source(user, directory);
        if !user.impersonate.is_empty() {
            config.impersonate = Some(UserInfo {
                username: user.impersonate.clone(),
                uid: user.impersonate_uid.clone(),
                groups: user.impersonate_groups.clone(),
                ..Default::default()
            });
        }
        Ok(config)
    }

    /// A client of a context of the kubeconfig at `path`.
    pub fn client(path: &Path, context: Option<&str>, user_agent: &str) -> Result<Client, KubeconfigError> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let config = Self::load(path)?.https_config(context, directory)?;
        Ok(Client::new(Arc::new(Https::new(&config)?), user_agent))
    }
}

/// The bearer token: inline, or from a file.
fn token_source(user: &User, directory: &Path) -> Option<Arc<dyn TokenSource>> {
    if !user.token_file.is_empty() {
        return Some(Arc::new(FileToken::new(directory.join(&user.token_file))));
    }
    if user.token.is_empty() { None } else { Some(Arc::new(StaticToken(user.token.clone()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_configs_read_back() {
        let config = Kubeconfig::single("ferry", "https://127.0.0.1:6443", b"ca", b"cert", b"key");
        let text = config.to_yaml().unwrap();
        assert!(text.contains("certificate-authority-data: Y2E="), "{text}");
        assert!(text.contains("current-context: ferry"), "{text}");
        assert_eq!(Kubeconfig::parse(&text).unwrap(), config);
        let https = config.https_config(None, Path::new("/")).unwrap();
        assert_eq!(https.server.port_u16(), Some(6443));
        assert_eq!(https.certificate.unwrap().key, b"key");
    }

    #[test]
    fn reads_what_other_tools_write() {
        let text = "apiVersion: v1\nkind: Config\npreferences: {}\nclusters:\n- name: a\n  cluster:\n    \
                    server: https://h:1/prefix\n    insecure-skip-tls-verify: true\nusers:\n- name: u\n  user:\n    \
                    token: abc\ncontexts:\n- name: c\n  context: {cluster: a, user: u, namespace: n}\n\
                    current-context: c\n";
        let config = Kubeconfig::parse(text).unwrap();
        assert_eq!(config.context(None).unwrap().namespace, "n");
        let https = config.https_config(Some("c"), Path::new("/")).unwrap();
        assert!(matches!(https.trust, Trust::Anybody));
        assert_eq!(https.token.unwrap().token().as_deref(), Some("abc"));
        let error = config.https_config(Some("x"), Path::new("/")).err().unwrap();
        assert_eq!(error.to_string(), "the kubeconfig has no context named \"x\"");
    }
}
