//! Credentials for registries: how their patterns fit images, and programs of the node's owner that give them
//! (`--image-credential-provider-config`, `credentialprovider.kubelet.k8s.io/v1`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cri::ImageAuth;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::images::repository;

/// How long a provider may take, as upstream.
const PROVIDER_TIMEOUT: Duration = Duration::from_secs(60);
/// Most that a provider may answer.
const ANSWER_LEN_MAX: usize = 1 << 20;
/// Most answers remembered.
const CACHED_MAX: usize = 1000;
/// The version of the protocol that is spoken.
const API_VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";

/// A registry's key without scheme and version; Docker Hub's old names as its new one.
pub fn bare(key: &str) -> String {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let key = key.trim_end_matches("/v1").trim_end_matches("/v2");
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        key => key.to_owned(),
    }
}

/// Whether a pattern fits a repository (`host[:port]/path`): as many labels in the host, each fitting (`*` stands
/// for any characters of one), the same port, and the path begins with the pattern's.
pub fn matches(pattern: &str, repository: &str) -> bool {
    let split = |text: &str| {
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        let (name, port) = host.split_once(':').unwrap_or((host, ""));
        (name.to_owned(), port.to_owned(), path.to_owned())
    };
    let (want, want_port, want_path) = split(pattern);
    let (name, port, path) = split(repository);
    let (want_labels, labels): (Vec<&str>, Vec<&str>) =
        (want.split('.').collect(), name.split('.').collect());
    let inside = path.strip_prefix(want_path.as_str());
    want_labels.len() == labels.len()
        && want_port == port
        && want_labels.iter().zip(&labels).all(|(pattern, label)| label_fits(pattern, label))
        && (want_path.is_empty() || inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

fn label_fits(pattern: &str, label: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == label };
    let Some(rest) = label.strip_prefix(head) else { return false };
    (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| label_fits(tail, rest)))
}

/// The file of `--image-credential-provider-config`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    kind: String,
    api_version: String,
    providers: Vec<Provider>,
}

/// One program.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Debug, Clone, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

/// What is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

/// Answers by what they are good for, and until when.
type Answers = HashMap<String, (Timestamp, Vec<(String, ImageAuth)>)>;

/// The node's credential providers.
#[derive(Debug, Default)]
pub struct Providers {
    directory: PathBuf,
    providers: Vec<(Provider, SignedDuration)>,
    answers: Mutex<Answers>,
}

impl Providers {
    /// Reads a configuration (the document, parsed) for programs in `directory`.
    pub fn new(document: Value, directory: &Path) -> Result<Providers, Invalid> {
        let invalid = |message: String| Invalid(message);
        let file: File = serde_json::from_value(document).map_err(|e| invalid(e.to_string()))?;
        let known =
            ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];
        if file.kind != "CredentialProviderConfig" || !known.contains(&file.api_version.as_str()) {
            return Err(invalid(format!(
                "no kind \"{}\" is registered for version \"{}\"",
                file.kind, file.api_version
            )));
        }
        if file.providers.is_empty() {
            return Err(invalid("at least 1 item in plugins is required".into()));
        }
        let mut providers = Vec::new();
        for provider in file.providers {
            let name = &provider.name;
            if name.is_empty() || name.contains('/') || name == "." || name == ".." || name.contains(' ') {
                return Err(invalid(format!(
                    "providers.name: Invalid value: {name:?}: provider name must be a file name"
                )));
            }
            if provider.match_images.is_empty() {
                return Err(invalid(format!(
                    "providers.matchImages: Required value: at least 1 item in matchImages is required (of {name})"
                )));
            }
            if provider.api_version != API_VERSION {
                return Err(invalid(format!(
                    "providers.apiVersion: Unsupported value: {:?}: supported values: {API_VERSION:?}",
                    provider.api_version
                )));
            }
            if !directory.join(name).is_file() {
                return Err(invalid(format!(
                    "plugin binary executable {} did not exist",
                    directory.join(name).display()
                )));
            }
            let duration = duration(&provider.default_cache_duration).ok_or_else(|| {
                invalid(format!(
                    "providers.defaultCacheDuration: Invalid value: {:?}",
                    provider.default_cache_duration
                ))
            })?;
            providers.push((provider, duration));
        }
        Ok(Providers { directory: directory.to_owned(), providers, answers: Mutex::default() })
    }

    /// Credentials for an image from all providers that know its registry, the most specific first.
    pub async fn credentials(&self, image: &str, now: Timestamp) -> Vec<ImageAuth> {
        let repository = repository(image);
        let mut found: Vec<(String, ImageAuth)> = Vec::new();
        for (provider, default_duration) in &self.providers {
            if !provider.match_images.iter().any(|pattern| matches(&bare(pattern), &repository)) {
                continue;
            }
            match self.ask(provider, *default_duration, image, &repository, now).await {
                Ok(answer) => found.extend(answer),
                Err(message) => tracing::warn!(provider = provider.name, image, message, "no credentials"),
            }
        }
        found.retain(|(pattern, _)| matches(pattern, &repository));
        found.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.len()));
        found.into_iter().map(|(_, auth)| auth).collect()
    }

    async fn ask(
        &self,
        provider: &Provider,
        default_duration: SignedDuration,
        image: &str,
        repository: &str,
        now: Timestamp,
    ) -> Result<Vec<(String, ImageAuth)>, String> {
        let host = repository.split('/').next().unwrap_or_default();
        let keys = [image, host, "<global>"].map(|key| format!("{} {key}", provider.name));
        for key in &keys {
            if let Some((until, answer)) = self.answers.lock().get(key)
                && *until > now
            {
                return Ok(answer.clone());
            }
        }
        let output = run(&self.directory.join(&provider.name), provider, image).await?;
        let answer: Value =
            serde_json::from_slice(&output).map_err(|e| format!("its answer is no JSON: {e}"))?;
        let (answers, key_type, lasts) = understand(&answer, default_duration)?;
        let key = match key_type.as_str() {
            "Image" => 0,
            "Registry" => 1,
            "Global" => 2,
            other => {
                return Err(format!(
                    "credential provider plugin did not return a valid cacheKeyType: {other:?}"
                ));
            }
        };
        if let (Some(key), true) = (keys.get(key), lasts > SignedDuration::ZERO) {
            let mut known = self.answers.lock();
            known.retain(|_, (until, _)| *until > now);
            if known.len() < CACHED_MAX {
                known.insert(key.clone(), (now + lasts, answers.clone()));
            }
        }
        Ok(answers)
    }
}

async fn run(program: &Path, provider: &Provider, image: &str) -> Result<Vec<u8>, String> {
    let mut child = tokio::process::Command::new(program)
        .args(&provider.args)
        .envs(provider.env.iter().map(|v| (&v.name, &v.value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("cannot start it: {e}"))?;
    let request = json!({"kind": "CredentialProviderRequest", "apiVersion": API_VERSION, "image": image});
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input may answer all the same.
        let _ = stdin.write_all(request.to_string().as_bytes()).await;
    }
    let output = tokio::time::timeout(PROVIDER_TIMEOUT, child.wait_with_output()).await;
    let output = output.map_err(|_| "it took too long".to_owned())?.map_err(|e| e.to_string())?;
    match output.status.success() {
        true if output.stdout.len() <= ANSWER_LEN_MAX => Ok(output.stdout),
        true => Err("its answer is too long".into()),
        false => Err(format!("error execing credential provider plugin: {}", output.status)),
    }
}

type Understood = (Vec<(String, ImageAuth)>, String, SignedDuration);

fn understand(answer: &Value, default_duration: SignedDuration) -> Result<Understood, String> {
    let text =
        |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    if text(answer, "kind") != "CredentialProviderResponse" || text(answer, "apiVersion") != API_VERSION {
        return Err("its answer is no CredentialProviderResponse of the version asked for".into());
    }
    let auths: BTreeMap<String, Value> = answer
        .get("auth")
        .cloned()
        .map(serde_json::from_value)
        .transpose()
        .map_err(|e| e.to_string())?
        .unwrap_or_default();
    let auths = auths.into_iter().map(|(pattern, auth)| {
        let auth = ImageAuth {
            username: text(&auth, "username"),
            password: text(&auth, "password"),
            ..ImageAuth::default()
        };
        (bare(&pattern), auth)
    });
    let lasts = match answer.get("cacheDuration").and_then(Value::as_str) {
        Some(given) => duration(given).ok_or_else(|| format!("invalid cacheDuration {given:?}"))?,
        None => default_duration,
    };
    Ok((auths.collect(), text(answer, "cacheKeyType"), lasts))
}

/// Go's durations in whole hours, minutes and seconds: `1h30m`.
fn duration(text: &str) -> Option<SignedDuration> {
    if text == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut seconds = 0i64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest.get(..digits)?.parse().ok()?;
        let unit = match rest.get(digits..=digits)? {
            "h" => 3600,
            "m" => 60,
            "s" => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
        rest = rest.get(digits + 1..)?;
    }
    (!text.is_empty()).then(|| SignedDuration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn patterns() {
        let table = [
            ("r.io", "r.io/a", true),
            ("r.io", "r.io.evil/a", false),
            ("*.r.io", "a.r.io/x", true),
            ("*.r.io", "r.io/x", false),
            ("*.r.io", "a.b.r.io/x", false),
            ("a*.r.io", "abc.r.io/x", true),
            ("a*c.r.io", "abd.r.io/x", false),
            ("r.io:5000", "r.io:5000/x", true),
            ("r.io", "r.io:5000/x", false),
            ("r.io/team", "r.io/team/app", true),
            ("r.io/team", "r.io/teammate", false),
        ];
        for (pattern, repository, want) in table {
            assert_eq!(matches(pattern, repository), want, "{pattern} {repository}");
        }
    }

    fn config(name: &str) -> Value {
        json!({"kind": "CredentialProviderConfig", "apiVersion": "kubelet.config.k8s.io/v1", "providers": [
            {"name": name, "matchImages": ["*.r.io"], "defaultCacheDuration": "10m", "apiVersion": API_VERSION,
             "args": ["from-args"], "env": [{"name": "P", "value": "from-env"}]}]})
    }

    #[tokio::test]
    async fn programs_are_asked_once_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let (program, runs) = (dir.path().join("helper"), dir.path().join("runs"));
        let script = format!(
            "#!/bin/sh\ncat >> {0}; echo >> {0}\necho '{{\"kind\": \"CredentialProviderResponse\", \"apiVersion\": \
             \"{API_VERSION}\", \"cacheKeyType\": \"Registry\", \"auth\": {{\"*.r.io\": {{\"username\": \"'$1'\", \
             \"password\": \"'$P'\"}}}}}}'\n",
            runs.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let providers = Providers::new(config("helper"), dir.path()).unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = providers.credentials("a.r.io/x:1", at(0)).await;
        assert_eq!((first[0].username.as_str(), first[0].password.as_str()), ("from-args", "from-env"));
        providers.credentials("a.r.io/other", at(500)).await;
        assert!(providers.credentials("other.io/x", at(500)).await.is_empty());
        let asked = || std::fs::read_to_string(&runs).unwrap().lines().count();
        assert_eq!(asked(), 1);
        providers.credentials("a.r.io/other", at(601)).await;
        assert_eq!(asked(), 2);
        assert!(std::fs::read_to_string(&runs).unwrap().contains("\"image\":\"a.r.io/x:1\""));
    }

    #[test]
    fn mistakes() {
        let dir = tempfile::tempdir().unwrap();
        let error = |document| Providers::new(document, dir.path()).unwrap_err().to_string();
        assert!(error(config("none")).ends_with("did not exist"));
        assert!(error(config("../x")).contains("must be a file name"));
        assert!(error(json!({"kind": "X", "apiVersion": "v1", "providers": []})).starts_with("no kind"));
        assert_eq!(duration("1h30m"), Some(SignedDuration::from_secs(5400)));
        assert_eq!(duration("x"), None);
    }
}
