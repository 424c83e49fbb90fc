//! Who is let in and what they may do: the options of identity, and what the control plane is given of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use apiserver::Server;
use apiserver::authorize::Authorizer;
use apiserver::lookup::RegistryLookup;
use auth::authenticate::{AnonymousAccess, Authenticator, BoxFuture, Configured, TokenAuthenticator};
use auth::authorization::{self, Post, Step, Webhook};
use auth::oidc::config::{ClaimRule, Configuration, Issuer, Jwt, Mapping, Mappings};
use auth::oidc::{Fetch, Oidc, config};
use auth::pki::{CERTIFICATE_LIFE, Pki};
use auth::request_header::RequestHeaders;
use auth::token::{ObjectRef, TokenSigner};
use clap::Args;
use client::tls::Trust;
use client::{Client, Https, HttpsConfig, Kubeconfig, Method};
use registry::Registry;
use serde_json::Value;
use stdx::Clock;

use crate::reload::Followed;

/// Longest wait for a document of an issuer.
const FETCH_MAX: Duration = Duration::from_secs(30);

/// Options of authentication and authorization, under upstream's names.
#[derive(Debug, Clone, Default, Args)]
pub struct IdentityOptions {
    /// AuthenticationConfiguration: issuers of tokens, and who may come without credentials.
    #[arg(long, conflicts_with = "oidc_issuer_url")]
    pub authentication_config: Option<PathBuf>,
    /// AuthorizationConfiguration: the authorizers in order, webhooks among them.
    #[arg(long)]
    pub authorization_config: Option<PathBuf>,
    /// Whether requests without credentials are let through as system:anonymous.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, conflicts_with = "authentication_config")]
    pub anonymous_auth: bool,
    /// CSV file of static tokens: token,user,uid,"group1,group2".
    #[arg(long)]
    pub token_auth_file: Option<PathBuf>,
    /// URL of the OpenID issuer whose tokens are accepted.
    #[arg(long, requires = "oidc_client_id")]
    pub oidc_issuer_url: Option<String>,
    /// Audience that its tokens must be for.
    #[arg(long)]
    pub oidc_client_id: Option<String>,
    /// PEM of the authorities that the issuer is trusted by; the system's by default.
    #[arg(long)]
    pub oidc_ca_file: Option<PathBuf>,
    /// Claim that becomes the user name.
    #[arg(long, default_value = "sub")]
    pub oidc_username_claim: String,
    /// Prefix of user names; the issuer's URL and # unless the claim is email. - for none.
    #[arg(long)]
    pub oidc_username_prefix: Option<String>,
    /// Claim that becomes the groups.
    #[arg(long)]
    pub oidc_groups_claim: Option<String>,
    /// Prefix of groups.
    #[arg(long, default_value = "")]
    pub oidc_groups_prefix: String,
    /// Claims that tokens must have, with their values.
    #[arg(long, value_name = "KEY=VALUE")]
    pub oidc_required_claim: Vec<String>,
    /// Signing algorithms that are accepted.
    #[arg(long, value_delimiter = ',', default_value = "RS256")]
    pub oidc_signing_algs: Vec<String>,
    /// Issuer of ServiceAccount tokens; given again, tokens of those issuers are accepted too.
    #[arg(long)]
    pub service_account_issuer: Vec<String>,
    /// PEM of further keys, public or private, by which ServiceAccount tokens are verified.
    #[arg(long)]
    pub service_account_key_file: Vec<PathBuf>,
    /// PEM of the private key that signs ServiceAccount tokens; one of the cluster's own by default.
    #[arg(long)]
    pub service_account_signing_key_file: Option<PathBuf>,
    /// Audiences of the API server; the issuer by default.
    #[arg(long, value_delimiter = ',')]
    pub api_audiences: Vec<String>,
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn document(text: &str) -> anyhow::Result<Value> {
    Ok(serde_saphyr::from_str(text)?)
}

/// The signer of ServiceAccount tokens.
pub fn tokens(
    options: &IdentityOptions,
    domain: &str,
    pki: &Pki,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<TokenSigner> {
    let default = format!("https://kubernetes.default.svc.{domain}");
    let issuer = options.service_account_issuer.first().cloned().unwrap_or(default);
    let key = match &options.service_account_signing_key_file {
        Some(path) => {
            auth::pki::key_from_pem(&read(path)?).with_context(|| format!("cannot use {}", path.display()))?
        }
        None => pki.service_account_key()?,
    };
    let mut signer = TokenSigner::new(issuer, &key, clock);
    for path in &options.service_account_key_file {
        signer = signer
            .with_verification_keys(&read(path)?)
            .with_context(|| format!("cannot use {}", path.display()))?;
    }
    let former = options.service_account_issuer.iter().skip(1);
    Ok(former.fold(signer, |signer, issuer| signer.with_former_issuer(issuer)))
}

/// A file to follow and its text that is in effect.
pub type File = (Followed, String);

/// The authenticator with everything that is configured, and the file that configures it.
pub fn authenticator(
    options: &IdentityOptions,
    pki: &Pki,
    tokens: &Arc<TokenSigner>,
    registry: &Arc<Registry>,
    clock: &Arc<dyn Clock>,
    proxies: RequestHeaders,
) -> anyhow::Result<(Arc<Authenticator>, Option<File>)> {
    let verifier = auth::tls::client_verifier(pki.ca_der())?;
    let lookup = RegistryLookup::new(registry.clone());
    let audiences = options.api_audiences.clone();
    let mut all = Authenticator::new(Some(verifier), tokens.clone(), lookup, audiences, clock.clone());
    if let Some(path) = &options.token_auth_file {
        all = all.with_static_tokens(&read(path)?)?;
    }
    let all = Arc::new(all.with_proxies(proxies));
    let Some(path) = &options.authentication_config else {
        let configuration = from_flags(options)?;
        let programs = config::check(&configuration, tokens.issuer()).context("--oidc-*")?;
        all.configure(configured(configuration, programs, options.anonymous_auth, clock));
        return Ok((all, None));
    };
    let of = all.clone();
    let (anonymous, clock, issuer) = (options.anonymous_auth, clock.clone(), tokens.issuer().to_owned());
    let apply = move |text: &str| -> anyhow::Result<()> {
        let (configuration, programs) = config::parse(document(text)?, &issuer)?;
        of.configure(configured(configuration, programs, anonymous, &clock));
        Ok(())
    };
    let text = read(path)?;
    apply(&text).with_context(|| format!("cannot use {}", path.display()))?;
    let followed = Followed { kind: "authentication", path: path.clone(), apply: Box::new(apply) };
    Ok((all, Some((followed, text))))
}

/// What a configuration comes to.
fn configured(
    configuration: Configuration,
    programs: Vec<config::Programs>,
    anonymous: bool,
    clock: &Arc<dyn Clock>,
) -> Configured {
    let anonymous = match configuration.anonymous {
        None if anonymous => AnonymousAccess::All,
        Some(a) if a.enabled && a.conditions.is_empty() => AnonymousAccess::All,
        Some(a) if a.enabled => AnonymousAccess::Paths(a.conditions.into_iter().map(|c| c.path).collect()),
        _ => AnonymousAccess::None,
    };
    let fetch: Arc<dyn Fetch> = Arc::new(Issuers);
    let one = |(jwt, programs)| {
        Arc::new(Oidc::new(jwt, programs, fetch.clone(), clock.clone())) as Arc<dyn TokenAuthenticator>
    };
    Configured { others: configuration.jwt.into_iter().zip(programs).map(one).collect(), anonymous }
}

/// The `--oidc-*` options as a configuration.
fn from_flags(options: &IdentityOptions) -> anyhow::Result<Configuration> {
    let Some(url) = &options.oidc_issuer_url else { return Ok(Configuration::default()) };
    let claim = options.oidc_username_claim.clone();
    let prefix = match options.oidc_username_prefix.as_deref() {
        Some("-") => String::new(),
        Some(prefix) => prefix.to_owned(),
        None if claim == "email" => String::new(),
        None => format!("{url}#"),
    };
    let mut rules = Vec::new();
    for required in &options.oidc_required_claim {
        let Some((claim, value)) = required.split_once('=') else {
            bail!("--oidc-required-claim {required}: expected KEY=VALUE");
        };
        rules.push(ClaimRule { claim: claim.into(), required_value: value.into(), ..Default::default() });
    }
    let groups = options.oidc_groups_claim.as_ref().map(|claim| Mapping {
        claim: claim.clone(),
        prefix: Some(options.oidc_groups_prefix.clone()),
        ..Default::default()
    });
    let ca = options.oidc_ca_file.as_deref().map(read).transpose()?.unwrap_or_default();
    let jwt = Jwt {
        issuer: Issuer {
            url: url.clone(),
            certificate_authority: ca,
            audiences: options.oidc_client_id.iter().cloned().collect(),
            ..Default::default()
        },
        claim_validation_rules: rules,
        claim_mappings: Mappings {
            username: Mapping { claim, prefix: Some(prefix), ..Default::default() },
            groups: groups.unwrap_or_default(),
            ..Default::default()
        },
        algorithms: options.oidc_signing_algs.clone(),
        ..Default::default()
    };
    Ok(Configuration { jwt: vec![jwt], ..Default::default() })
}

/// Gives the server the authorizers that are configured; the file to follow, if there is one.
pub fn authorization(
    options: &IdentityOptions,
    server: &Server,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Option<File>> {
    let Some(path) = &options.authorization_config else { return Ok(None) };
    let (of, clock) = (server.clone(), clock.clone());
    let apply = move |text: &str| -> anyhow::Result<()> {
        of.authorize_by(authorizers(text, &clock)?);
        Ok(())
    };
    let text = read(path)?;
    apply(&text).with_context(|| format!("cannot use {}", path.display()))?;
    let followed = Followed { kind: "authorization", path: path.clone(), apply: Box::new(apply) };
    Ok(Some((followed, text)))
}

/// The authorizers in order.
fn authorizers(text: &str, clock: &Arc<dyn Clock>) -> anyhow::Result<Vec<Authorizer>> {
    let steps = authorization::parse(&document(text)?)?;
    let one = |step| {
        Ok(match step {
            Step::Node => Authorizer::Node,
            Step::Rbac => Authorizer::Rbac,
            Step::AlwaysAllow => Authorizer::AlwaysAllow,
            Step::Webhook(webhook) => {
                let post = Arc::new(Review::new(&webhook.kubeconfig)?);
                Authorizer::Webhook(Arc::new(Webhook::new(*webhook, post, clock.clone())))
            }
        })
    };
    steps.into_iter().map(one).collect()
}

/// Documents of issuers over HTTPS.
struct Issuers;

impl Fetch for Issuers {
    fn get<'a>(&'a self, url: &'a str, ca: &'a str) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        Box::pin(async move {
            let uri: http::Uri = url.parse().map_err(|e| format!("{url}: {e}"))?;
            if uri.scheme_str() != Some("https") {
                return Err(format!("{url}: not https"));
            }
            let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
            let origin = format!("https://{}", uri.authority().map_or("", |a| a.as_str()));
            let origin = origin.parse().map_err(|e| format!("{url}: {e}"))?;
            let trust = if ca.is_empty() { Trust::System } else { Trust::Ca(ca.as_bytes().to_vec()) };
            let https = HttpsConfig { trust, ..HttpsConfig::new(origin) };
            let https = Https::new(&https).map_err(|e| e.to_string())?;
            let client = Client::new(Arc::new(https), "ferry");
            let fetched = tokio::time::timeout(FETCH_MAX, client.get_path(&path)).await;
            match fetched {
                Ok(Ok(bytes)) => Ok(bytes.to_vec()),
                Ok(Err(error)) => Err(format!("Get {url:?}: {error}")),
                Err(_) => Err(format!("Get {url:?}: context deadline exceeded")),
            }
        })
    }
}

/// The way to a webhook authorizer: the server of a kubeconfig, at exactly the path that it names.
struct Review {
    client: Client,
    path: String,
}

impl Review {
    fn new(path: &Path) -> anyhow::Result<Review> {
        let unusable = || format!("cannot use {}", path.display());
        let directory = path.parent().unwrap_or(Path::new("."));
        let https = Kubeconfig::load(path).with_context(unusable)?;
        let mut https = https.https_config(None, directory).with_context(unusable)?;
        let path = https.server.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let authority = https.server.authority().map_or("", |a| a.as_str());
        https.server = format!("https://{authority}").parse().with_context(unusable)?;
        let transport = Https::new(&https).with_context(unusable)?;
        Ok(Review { client: Client::new(Arc::new(transport), "kube-apiserver"), path })
    }
}

impl Post for Review {
    fn post(&self, body: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            let answer = self.client.write_bytes(Method::POST, &self.path, body.into()).await;
            answer.map(|bytes| bytes.to_vec()).map_err(|e| e.to_string())
        })
    }
}

/// The authority as the controllers see it.
pub struct Authority {
    /// Signs certificates.
    pub pki: Arc<Pki>,
    /// Signs tokens.
    pub tokens: Arc<TokenSigner>,
}

impl controllers::certificates::Signer for Authority {
    fn life_max(&self) -> Duration {
        CERTIFICATE_LIFE
    }
    fn sign(&self, request_pem: &str, usages: &[&str], life: Duration) -> Result<String, String> {
        self.pki.sign_request(request_pem, usages, life).map_err(|e| e.to_string())
    }
}

impl controllers::tokens::Issuer for Authority {
    fn issue(&self, namespace: &str, (name, uid): (&str, &str), secret: &str) -> Result<String, String> {
        let account = ObjectRef { name: name.to_owned(), uid: uid.to_owned() };
        self.tokens.issue_legacy(namespace, &account, secret).map_err(|e| e.to_string())
    }
}
