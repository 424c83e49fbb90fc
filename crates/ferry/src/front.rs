//! Proxies: how the API server shows itself to the servers of aggregated groups, and which proxies in front of it are
//! believed (`--requestheader-*`).

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use apiserver::aggregate::FrontProxy;
use auth::pki::Pki;
use auth::request_header::{RequestHeaders, Rules};
use clap::Args;
use rustls::server::danger::ClientCertVerifier;

use crate::control::Environment;

/// Common name of the server's own certificate as a proxy.
const OWN_NAME: &str = "front-proxy-client";

/// Options of proxies, under upstream's names.
#[derive(Debug, Clone, Args)]
pub struct FrontOptions {
    /// PEM of the authorities of proxies that may say in headers who is calling; beside Ferry's own.
    #[arg(long, value_name = "FILE")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of such proxies; empty for whoever those authorities have signed.
    #[arg(long, value_delimiter = ',', default_value = OWN_NAME, value_name = "NAMES")]
    pub requestheader_allowed_names: Vec<String>,
    /// Headers of the user's name.
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-User", value_name = "NAMES")]
    pub requestheader_username_headers: Vec<String>,
    /// Headers of the user's id.
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-Uid", value_name = "NAMES")]
    pub requestheader_uid_headers: Vec<String>,
    /// Headers of groups.
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-Group", value_name = "NAMES")]
    pub requestheader_group_headers: Vec<String>,
    /// How headers of further attributes begin.
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-Extra-", value_name = "PREFIXES")]
    pub requestheader_extra_headers_prefix: Vec<String>,
    /// Certificate that the server shows to the servers of aggregated groups; one of Ferry's own by default.
    #[arg(long, requires = "proxy_client_key_file", value_name = "FILE")]
    pub proxy_client_cert_file: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "proxy_client_cert_file", value_name = "FILE")]
    pub proxy_client_key_file: Option<PathBuf>,
}

/// What the options come to.
pub struct Front {
    /// How the server shows itself.
    pub proxy: FrontProxy,
    /// Who is believed.
    pub headers: RequestHeaders,
    /// The authorities whose certificates clients may show: the cluster's and the proxies'.
    pub clients: Arc<dyn ClientCertVerifier>,
}

fn read(path: &std::path::Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

impl FrontOptions {
    /// Which proxies are believed. `own` says whether the server's own certificate is one of theirs.
    fn rules(&self, own: bool) -> anyhow::Result<Rules> {
        let named = |names: &[String]| names.iter().filter(|n| !n.is_empty()).cloned().collect::<Vec<_>>();
        let rules = Rules {
            allowed_names: named(&self.requestheader_allowed_names),
            username: named(&self.requestheader_username_headers),
            uid: named(&self.requestheader_uid_headers),
            group: named(&self.requestheader_group_headers),
            extra_prefix: named(&self.requestheader_extra_headers_prefix),
        };
        let mut rules = rules;
        ensure!(!rules.username.is_empty(), "requestheader-username-headers: at least one is needed");
        if own && !rules.allowed_names.is_empty() && !rules.allowed_names.iter().any(|n| n == OWN_NAME) {
            rules.allowed_names.push(OWN_NAME.to_owned());
        }
        Ok(rules)
    }
}

/// Makes what the options say. Ferry's own certificate is of an authority that signs nothing else, so that nobody else
/// can speak for others.
pub fn front(env: &Environment, pki: &Pki) -> anyhow::Result<Front> {
    let options = &env.options.front;
    let own = Pki::open_or_create(&env.paths.pki().join("front-proxy"), env.clock.clone())?;
    let mut ca_pem = String::new();
    let given = (&options.proxy_client_cert_file, &options.proxy_client_key_file);
    let identity = match given {
        (Some(certificate), Some(key)) => client::tls::KeyPair {
            certificates: read(certificate)?.into_bytes(),
            key: read(key)?.into_bytes(),
        },
        _ => {
            let issued = own.stored_client(OWN_NAME, OWN_NAME, &[])?;
            client::tls::KeyPair {
                certificates: issued.cert_pem.into_bytes(),
                key: issued.key_pem.into_bytes(),
            }
        }
    };
    if let Some(path) = &options.requestheader_client_ca_file {
        ca_pem.push_str(&read(path)?);
        if !ca_pem.ends_with('\n') {
            ca_pem.push('\n');
        }
    }
    // Those behind this server have to believe the certificate that it shows.
    let shows_own = given.0.is_none();
    if shows_own || ca_pem.is_empty() {
        ca_pem.push_str(own.ca_pem());
    }
    let rules = options.rules(shows_own)?;
    let authorities = auth::tls::authorities(&ca_pem).context("--requestheader-client-ca-file")?;
    let proxies = auth::tls::client_verifier_of(authorities.clone())?;
    let of_cluster = auth::tls::authorities(pki.ca_pem())?;
    let clients = auth::tls::client_verifier_of(of_cluster.into_iter().chain(authorities).collect())?;
    let tls = move |ca: &[u8], anybody: bool| {
        let trust = match (anybody, ca.is_empty()) {
            (true, _) => client::tls::Trust::Anybody,
            (false, true) => client::tls::Trust::System,
            (false, false) => client::tls::Trust::Ca(ca.to_vec()),
        };
        client::tls::client_config(&trust, Some(&identity), &[]).map_err(|e| e.to_string())
    };
    let headers = RequestHeaders::new(rules.clone(), proxies, env.clock.clone());
    let client_ca_pem = pki.ca_pem().to_owned();
    Ok(Front { proxy: FrontProxy { ca_pem, rules, client_ca_pem, tls: Box::new(tls) }, headers, clients })
}
