//! Configuration of JWT issuers: `AuthenticationConfiguration` of `apiserver.config.k8s.io`, and the older
//! `--oidc-*` flags as the same values.

use cel::{Env, Program, Type};
use meta::FieldError;
use serde::Deserialize;
use serde_json::Value;

/// Issuers at most (upstream's limit).
const ISSUERS_MAX: usize = 64;
/// Versions of the configuration that are understood.
const VERSIONS: [&str; 3] =
    ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];

/// The whole configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Configuration {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Issuers.
    pub jwt: Vec<Jwt>,
    /// Who may come without credentials.
    pub anonymous: Option<Anonymous>,
}

/// Access without credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Anonymous {
    /// Whether there is any.
    pub enabled: bool,
    /// To these paths only; to all when empty.
    pub conditions: Vec<PathCondition>,
}

/// One path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PathCondition {
    /// The path.
    pub path: String,
}

/// One issuer and what is made of its tokens.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Jwt {
    /// The issuer.
    pub issuer: Issuer,
    /// What claims must hold.
    pub claim_validation_rules: Vec<ClaimRule>,
    /// Which claims become what.
    pub claim_mappings: Mappings,
    /// What the user that comes out must hold.
    pub user_validation_rules: Vec<UserRule>,
    /// Signing algorithms; all supported ones when empty.
    #[serde(skip)]
    pub algorithms: Vec<String>,
}

/// An issuer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Issuer {
    /// What tokens name as their issuer, and where its discovery document is unless another URL is given.
    pub url: String,
    /// Where the discovery document is.
    #[serde(rename = "discoveryURL")]
    pub discovery_url: String,
    /// PEM of the authorities that it is trusted by.
    pub certificate_authority: String,
    /// Audiences that are ours.
    pub audiences: Vec<String>,
    /// `MatchAny` where there are several.
    pub audience_match_policy: String,
    /// Which network it is reached by; all are the same here.
    pub egress_selector_type: String,
}

/// A rule on claims.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClaimRule {
    /// A claim, and the value that it must have.
    pub claim: String,
    /// Its value.
    pub required_value: String,
    /// An expression over `claims`.
    pub expression: String,
    /// What is said when it does not hold.
    pub message: String,
}

/// What becomes of the claims.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mappings {
    /// User name.
    pub username: Mapping,
    /// Groups.
    pub groups: Mapping,
    /// Unique id.
    pub uid: Mapping,
    /// Further attributes.
    pub extra: Vec<ExtraMapping>,
}

/// A claim with a prefix, or an expression.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mapping {
    /// The claim.
    pub claim: String,
    /// What is put in front.
    pub prefix: Option<String>,
    /// An expression over `claims`.
    pub expression: String,
}

/// A further attribute.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExtraMapping {
    /// Its key.
    pub key: String,
    /// An expression over `claims`.
    pub value_expression: String,
}

/// A rule on the user.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UserRule {
    /// An expression over `user`.
    pub expression: String,
    /// What is said when it does not hold.
    pub message: String,
}

/// A compiled expression with its source and message.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The program.
    pub program: Program,
    /// Its source.
    pub source: String,
    /// What is said when it does not hold.
    pub message: String,
}

/// The compiled expressions of an issuer.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    /// Rules on claims.
    pub claim_rules: Vec<Rule>,
    /// User name.
    pub username: Option<Program>,
    /// Groups.
    pub groups: Option<Program>,
    /// Unique id.
    pub uid: Option<Program>,
    /// Further attributes.
    pub extra: Vec<(String, Program)>,
    /// Rules on the user.
    pub user_rules: Vec<Rule>,
}

/// Type of `claims`.
pub fn claims_type() -> Type {
    Type::map(Type::String, Type::Dyn)
}

/// Type of `user`.
pub fn user_type() -> Type {
    let strings = || Type::list(Type::String);
    Type::object(
        "kubernetes.UserInfo",
        [
            ("username", Type::String),
            ("uid", Type::String),
            ("groups", strings()),
            ("extra", Type::map(Type::String, strings())),
        ],
    )
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is something else.
    #[error("the file is no AuthenticationConfiguration: {0}")]
    Shape(String),
    /// It breaks rules.
    #[error("{}", .0.iter().map(|e| format!("{}: {}", e.field, e.message)).collect::<Vec<_>>().join(", "))]
    Invalid(Vec<FieldError>),
}

/// Reads and checks a configuration. `own_issuer` issues the ServiceAccounts' tokens and may be nobody else's.
pub fn parse(document: Value, own_issuer: &str) -> Result<(Configuration, Vec<Programs>), Error> {
    let configuration: Configuration =
        serde_json::from_value(document).map_err(|e| Error::Shape(e.to_string()))?;
    if configuration.kind != "AuthenticationConfiguration"
        || !VERSIONS.contains(&configuration.api_version.as_str())
    {
        return Err(Error::Shape(format!("{} {}", configuration.api_version, configuration.kind)));
    }
    let programs = check(&configuration, own_issuer)?;
    Ok((configuration, programs))
}

/// Checks a configuration and compiles its expressions.
pub fn check(configuration: &Configuration, own_issuer: &str) -> Result<Vec<Programs>, Error> {
    let mut errors = Vec::new();
    if configuration.jwt.len() > ISSUERS_MAX {
        let why = format!("must have at most {ISSUERS_MAX} items");
        errors.push(FieldError::invalid("jwt", &configuration.jwt.len().into(), &why));
        return Err(Error::Invalid(errors));
    }
    let mut programs = Vec::new();
    for (i, jwt) in configuration.jwt.iter().enumerate() {
        let path = format!("jwt[{i}]");
        let others = configuration.jwt.get(..i).unwrap_or_default();
        if others.iter().any(|o| o.issuer.url == jwt.issuer.url) {
            let url = jwt.issuer.url.as_str();
            errors.push(FieldError::duplicate(format!("{path}.issuer.url"), &url.into()));
        }
        check_issuer(&jwt.issuer, own_issuer, &format!("{path}.issuer"), &mut errors);
        programs.push(Compiler { path, errors: &mut errors }.jwt(jwt));
    }
    let anonymous = configuration.anonymous.as_ref();
    if anonymous.is_some_and(|a| !a.enabled && !a.conditions.is_empty()) {
        let why = "enabled should be set to true when conditions are defined";
        errors.push(FieldError::invalid("anonymous.conditions", &"".into(), why));
    }
    if errors.is_empty() { Ok(programs) } else { Err(Error::Invalid(errors)) }
}

fn check_issuer(issuer: &Issuer, own: &str, path: &str, errors: &mut Vec<FieldError>) {
    let at = |field: &str| format!("{path}.{field}");
    if issuer.url.is_empty() {
        errors.push(FieldError::required(at("url"), ""));
    } else {
        check_url(&issuer.url, &at("url"), errors);
    }
    if issuer.url == own {
        let why = format!("URL must not overlap with disallowed issuers: [{own}]");
        errors.push(FieldError::invalid(at("url"), &own.into(), &why));
    }
    if !issuer.discovery_url.is_empty() {
        let shown = issuer.discovery_url.as_str().into();
        if issuer.discovery_url.trim_end_matches('/') == issuer.url.trim_end_matches('/') {
            let why = "discoveryURL must be different from URL";
            errors.push(FieldError::invalid(at("discoveryURL"), &shown, why));
        }
        check_url(&issuer.discovery_url, &at("discoveryURL"), errors);
    }
    if issuer.audiences.is_empty() {
        let why = format!("at least one {} is required", at("audiences"));
        errors.push(FieldError::required(at("audiences"), &why));
    }
    for (i, audience) in issuer.audiences.iter().enumerate() {
        let field = at(&format!("audiences[{i}]"));
        if audience.is_empty() {
            errors.push(FieldError::required(field, ""));
        } else if issuer.audiences.get(..i).is_some_and(|before| before.contains(audience)) {
            errors.push(FieldError::duplicate(field, &audience.as_str().into()));
        }
    }
    let policy = issuer.audience_match_policy.as_str();
    let why = match issuer.audiences.len() {
        0 | 1 if policy.is_empty() || policy == "MatchAny" => None,
        0 | 1 => Some("audienceMatchPolicy must be empty or MatchAny for single audience"),
        _ if policy == "MatchAny" => None,
        _ => Some("audienceMatchPolicy must be MatchAny for multiple audiences"),
    };
    if let Some(why) = why {
        errors.push(FieldError::invalid(at("audienceMatchPolicy"), &policy.into(), why));
    }
    let authority = &issuer.certificate_authority;
    if !authority.is_empty() && !certificate::pem::blocks(authority).iter().any(|b| b.label == "CERTIFICATE")
    {
        let why = "data does not contain any valid RSA or ECDSA certificates";
        errors.push(FieldError::invalid(at("certificateAuthority"), &"<omitted>".into(), why));
    }
    if !["", "controlplane", "cluster"].contains(&issuer.egress_selector_type.as_str()) {
        let why = "egress selector must be either controlplane or cluster";
        let shown = issuer.egress_selector_type.as_str().into();
        errors.push(FieldError::invalid(at("egressSelectorType"), &shown, why));
    }
}

fn check_url(url: &str, path: &str, errors: &mut Vec<FieldError>) {
    let mut refuse = |why: &str| errors.push(FieldError::invalid(path, &url.into(), why));
    let Some(rest) = url.strip_prefix("https://") else { return refuse("URL scheme must be https") };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        refuse("URL must not contain a username or password");
    }
    if url.contains('?') {
        refuse("URL must not contain a query");
    }
    if url.contains('#') {
        refuse("URL must not contain a fragment");
    }
}

/// Compiles the expressions of one issuer.
struct Compiler<'e> {
    path: String,
    errors: &'e mut Vec<FieldError>,
}

impl Compiler<'_> {
    fn compile(&mut self, field: &str, source: &str, user: bool, wanted: &[Type]) -> Option<Program> {
        let env = match user {
            true => Env::new().variable("user", user_type()),
            false => Env::new().variable("claims", claims_type()),
        };
        let path = format!("{}.{field}", self.path);
        match env.compile(source) {
            Err(error) => {
                let why = format!("compilation failed: {error}");
                self.errors.push(FieldError::invalid(path, &source.into(), &why));
                None
            }
            Ok(program) => {
                let result = program.result_type();
                if *result != Type::Dyn && !wanted.contains(result) {
                    let why = format!("must evaluate to {}", names(wanted));
                    self.errors.push(FieldError::invalid(path, &source.into(), &why));
                    return None;
                }
                Some(program)
            }
        }
    }

    fn refuse(&mut self, field: &str, value: &str, why: &str) {
        self.errors.push(FieldError::invalid(format!("{}.{field}", self.path), &value.into(), why));
    }

    fn require(&mut self, field: &str, why: &str) {
        self.errors.push(FieldError::required(format!("{}.{field}", self.path), why));
    }

    fn jwt(mut self, jwt: &Jwt) -> Programs {
        let mut programs = Programs::default();
        for (i, rule) in jwt.claim_validation_rules.iter().enumerate() {
            let field = format!("claimValidationRules[{i}]");
            match (rule.claim.is_empty(), rule.expression.is_empty()) {
                (true, true) => self.require(&field, "claim or expression is required"),
                (false, false) => {
                    self.refuse(&field, &rule.claim, "claim and expression can't both be set");
                }
                (false, true) if !rule.message.is_empty() => {
                    let why = "may not be specified when claim is set";
                    self.refuse(&format!("{field}.message"), &rule.message, why);
                }
                (false, true) => {}
                (true, false) if !rule.required_value.is_empty() => {
                    let why = "may not be specified when expression is set";
                    self.refuse(&format!("{field}.requiredValue"), &rule.required_value, why);
                }
                (true, false) => {
                    let at = format!("{field}.expression");
                    let program = self.compile(&at, &rule.expression, false, &[Type::Bool]);
                    let (source, message) = (rule.expression.clone(), rule.message.clone());
                    programs.claim_rules.extend(program.map(|program| Rule { program, source, message }));
                }
            }
        }
        self.mappings(&jwt.claim_mappings, &mut programs);
        for (i, rule) in jwt.user_validation_rules.iter().enumerate() {
            let field = format!("userValidationRules[{i}].expression");
            if rule.expression.is_empty() {
                self.require(&field, "");
                continue;
            }
            let program = self.compile(&field, &rule.expression, true, &[Type::Bool]);
            let (source, message) = (rule.expression.clone(), rule.message.clone());
            programs.user_rules.extend(program.map(|program| Rule { program, source, message }));
        }
        let by_email = jwt.claim_mappings.username.expression.contains("claims.email");
        let all = std::iter::once(&jwt.claim_mappings.username.expression)
            .chain(jwt.claim_validation_rules.iter().map(|r| &r.expression))
            .chain(jwt.claim_mappings.extra.iter().map(|e| &e.value_expression));
        if by_email && !all.into_iter().any(|e| e.contains("email_verified")) {
            let why = "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression";
            self.refuse("claimMappings.username.expression", &jwt.claim_mappings.username.expression, why);
        }
        programs
    }

    fn mappings(&mut self, mappings: &Mappings, programs: &mut Programs) {
        let strings = [Type::String, Type::list(Type::String), Type::list(Type::Dyn)];
        let single = [Type::String];
        let parts = [
            ("username", &mappings.username, &single[..]),
            ("groups", &mappings.groups, &strings[..]),
            ("uid", &mappings.uid, &single[..]),
        ];
        for (name, mapping, wanted) in parts {
            let field = format!("claimMappings.{name}");
            let prefixed = name != "uid";
            match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
                (false, false) => self.refuse(&field, "", "claim and expression can't both be set"),
                (true, true) if name == "username" => self.require(&field, "claim or expression is required"),
                (true, _) if mapping.prefix.is_some() => {
                    let why = "prefix can't be set when claim is not set";
                    self.refuse(&field, mapping.prefix.as_deref().unwrap_or_default(), why);
                }
                (false, true) if prefixed && mapping.prefix.is_none() => {
                    self.require(&format!("{field}.prefix"), "prefix is required when claim is set. It can be set to an empty string to disable prefixing");
                }
                (true, false) => {
                    let at = format!("{field}.expression");
                    let program = self.compile(&at, &mapping.expression, false, wanted);
                    match name {
                        "username" => programs.username = program,
                        "groups" => programs.groups = program,
                        _ => programs.uid = program,
                    }
                }
                _ => {}
            }
        }
        for (i, extra) in mappings.extra.iter().enumerate() {
            let field = format!("claimMappings.extra[{i}]");
            let key = extra.key.as_str();
            let domain = key.split('/').next().unwrap_or_default();
            if !key.contains('/') || meta::names::subdomain_problem(domain).is_some() {
                let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
                self.refuse(&format!("{field}.key"), key, why);
            } else if key != key.to_lowercase() {
                self.refuse(&format!("{field}.key"), key, "must be lowercase");
            } else if ["k8s.io", "kubernetes.io"]
                .iter()
                .any(|d| domain == *d || domain.ends_with(&format!(".{d}")))
            {
                let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
                self.refuse(&format!("{field}.key"), key, why);
            }
            if extra.value_expression.is_empty() {
                self.require(&format!("{field}.valueExpression"), "");
                continue;
            }
            let at = format!("{field}.valueExpression");
            let program = self.compile(&at, &extra.value_expression, false, &strings);
            programs.extra.extend(program.map(|p| (key.to_owned(), p)));
        }
    }
}

fn names(types: &[Type]) -> &'static str {
    match types {
        [Type::Bool] => "bool",
        [Type::String] => "string",
        _ => "string or list of strings",
    }
}
