//! Making sure an image is there before a container is made: pull policy, credentials, back-off.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::prelude::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cri::{ImageAuth, ImageService, ImageStatus, PullRequest};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use reconcile::{EventType, Recorder};
use serde_json::Value;
use stdx::{Backoff, Clock, KeyedBackoff};
use tokio::sync::Semaphore;

use crate::counters::Counters;
use crate::credentials::{self, Providers};
use crate::observed::Waiting;
use crate::pulled::{self, Pulled};
use crate::spec::{self, Role};

/// Back-off between failed pulls of one image for one pod.
const PULL_BACKOFF: Backoff = Backoff { initial: Duration::from_secs(10), max: Duration::from_secs(300) };
/// Pulls at once: more only fight for the same network.
pub const PULLS_AT_ONCE: usize = 4;

/// An image could not be had; try again at `retry_at`.
#[derive(Debug, Clone)]
pub struct NotPresent {
    /// What the container's status says.
    pub waiting: Waiting,
    /// When to try again.
    pub retry_at: Timestamp,
}

/// Pulls images.
pub struct Images {
    service: Arc<dyn ImageService>,
    clock: Arc<dyn Clock>,
    backoff: Mutex<KeyedBackoff<(String, String)>>,
    /// Why the last pull of an image for a pod failed.
    failures: Mutex<HashMap<(String, String), String>>,
    pulls: Semaphore,
    providers: Arc<Providers>,
    counters: Arc<Counters>,
    /// Who may use what is there.
    pulled: Pulled,
    /// When the first pull for a pod began and the last one ended.
    pulling: Mutex<HashMap<String, (Instant, Instant)>>,
}

/// What may be shown to a registry, and the secret it is from; the node's own is from none.
#[derive(Debug, Clone, PartialEq)]
struct Credential {
    auth: Option<ImageAuth>,
    secret: Option<pulled::Secret>,
}

/// A pull that is noted to run; ends the note unless the pull has succeeded, also when its task is dropped.
struct Unfinished<'a> {
    pulled: &'a Pulled,
    image: &'a str,
    is_done: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.pulled.failed(self.image);
        }
    }
}

/// Pull policy: as given, else `Always` for `latest` and no tag.
fn pull_policy(container: &Container) -> &str {
    container.image_pull_policy.as_deref().unwrap_or_else(|| {
        let image = container.image.as_deref().unwrap_or_default();
        let name = image.rsplit('/').next().unwrap_or_default();
        let tagged = name.contains('@') || name.rsplit_once(':').is_some_and(|(_, tag)| tag != "latest");
        if tagged { "IfNotPresent" } else { "Always" }
    })
}

/// A duration as Go prints it, in whole milliseconds.
fn go_duration(duration: Duration) -> String {
    match duration {
        d if d.as_secs() >= 1 => {
            let text = format!("{:.3}", d.as_secs_f64());
            format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
        }
        d => format!("{}ms", d.as_millis()),
    }
}

impl Images {
    /// A puller over `service`, with this many pulls at once.
    pub fn new(
        service: Arc<dyn ImageService>,
        clock: Arc<dyn Clock>,
        parallel: usize,
        providers: Arc<Providers>,
        counters: Arc<Counters>,
        pulled: Pulled,
    ) -> Self {
        Images {
            service,
            clock,
            backoff: Mutex::new(KeyedBackoff::new(PULL_BACKOFF)),
            failures: Mutex::default(),
            pulls: Semaphore::new(parallel.max(1)),
            providers,
            counters,
            pulled,
            pulling: Mutex::default(),
        }
    }

    /// Takes note of what pulls of an earlier process have brought.
    pub async fn recover(&self) {
        match self.service.list().await {
            Ok(images) => self.pulled.recover(&images, self.clock.now()),
            Err(error) => tracing::warn!(%error, "images could not be listed; unfinished pulls stay noted"),
        }
    }

    /// Forgets who may use images that are not among these ids, which were there at `until`.
    pub fn forget_others(&self, ids: &[String], until: Timestamp) {
        self.pulled.prune(ids, until);
    }

    /// The service behind.
    pub fn service(&self) -> &Arc<dyn ImageService> {
        &self.service
    }

    /// Makes sure the image of a container is there, by its pull policy. `secrets` are the pod's pull secrets.
    pub async fn ensure(
        &self,
        pod: &Pod,
        role: Role,
        container: &Container,
        secrets: &[Arc<Secret>],
        recorder: &Recorder,
    ) -> Result<ImageStatus, NotPresent> {
        let image = container.image.clone().unwrap_or_default();
        let about = || spec::container_reference(pod, role, &container.name);
        let policy = pull_policy(container);
        let present = self.service.status(&image).await;
        let fail = |reason: &str, message: String, retry: Duration| NotPresent {
            waiting: Waiting::new(reason, message),
            retry_at: self.clock.now() + SignedDuration::try_from(retry).unwrap_or(SignedDuration::MAX),
        };
        let present = match present {
            Ok(present) => present,
            Err(error @ cri::Error::InvalidImageName { .. }) => {
                let message = format!("Failed to apply default image tag {image:?}: {error}");
                recorder.record(about(), EventType::Warning, "InspectFailed", message.clone());
                recorder.record(about(), EventType::Warning, "Failed", "Error: InvalidImageName");
                return Err(fail("InvalidImageName", message, PULL_BACKOFF.max));
            }
            Err(error) => {
                let message = format!("Failed to inspect image {image:?}: {error}");
                recorder.record(about(), EventType::Warning, "InspectFailed", message.clone());
                return Err(fail("ImageInspectError", message, PULL_BACKOFF.initial));
            }
        };
        let credentials: Vec<Credential> =
            secrets.iter().flat_map(|secret| credentials_for(&image, secret)).collect();
        let shown = || credentials.iter().filter_map(|c| c.secret.clone()).collect::<Vec<_>>();
        let may_use = |status: &ImageStatus| {
            !self.pulled.must_pull(&image, &status.image.id, &shown(), self.clock.now())
        };
        match (present, policy) {
            (Some(status), "IfNotPresent" | "Never") if may_use(&status) => {
                let message = format!(
                    "Container image {image:?} already present on machine and can be accessed by the pod"
                );
                recorder.record(about(), EventType::Normal, "Pulled", message);
                Ok(status)
            }
            // Whether it is there is not for everybody to know.
            (_, "Never") => {
                let message = format!("Container image {image:?} is not present with pull policy of Never");
                recorder.record(about(), EventType::Warning, "ErrImageNeverPull", message.clone());
                recorder.record(about(), EventType::Warning, "Failed", "Error: ErrImageNeverPull");
                Err(fail("ErrImageNeverPull", message, PULL_BACKOFF.initial))
            }
            _ => self.pull(pod, role, container, &image, credentials, recorder).await,
        }
    }

    async fn pull(
        &self,
        pod: &Pod,
        role: Role,
        container: &Container,
        image: &str,
        credentials: Vec<Credential>,
        recorder: &Recorder,
    ) -> Result<ImageStatus, NotPresent> {
        let about = || spec::container_reference(pod, role, &container.name);
        let key = (pod.uid().to_owned(), image.to_owned());
        let remaining = self.backoff.lock().remaining(&key, self.clock.instant());
        if !remaining.is_zero() {
            let message = format!("Back-off pulling image {image:?}");
            recorder.record(about(), EventType::Normal, "BackOff", message.clone());
            recorder.record(about(), EventType::Warning, "Failed", "Error: ImagePullBackOff");
            return Err(self.back_off(&key, message, remaining));
        }
        if let Err(error) = self.pulled.begin(image) {
            let why = format!("failed to record image pull intent: {error}");
            recorder.record(about(), EventType::Warning, "Failed", format!("Error: {why}"));
            let message = format!("Failed to record image pull intent for container image {image:?}: {why}");
            let delay = self.fail(&key, message.clone());
            let retry_at = self.clock.now() + SignedDuration::try_from(delay).unwrap_or_default();
            return Err(NotPresent { waiting: Waiting::new("ErrImagePull", message), retry_at });
        }
        let mut noted = Unfinished { pulled: &self.pulled, image, is_done: false };
        recorder.record(about(), EventType::Normal, "Pulling", format!("Pulling image {image:?}"));
        let waited = self.clock.instant();
        let permit = self.pulls.acquire().await;
        let begun = self.clock.instant();
        let outcome = self.pull_with(image, credentials).await;
        drop(permit);
        let outcome = match outcome {
            Ok((size, who)) => match self.service.status(image).await {
                Ok(Some(status)) => {
                    noted.is_done = true;
                    self.pulled.succeeded(image, &status.image.id, who, self.clock.now());
                    Ok((size, status))
                }
                Ok(None) => Err(cri::Error::ImageNotFound { image: image.to_owned() }),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        match outcome {
            Ok((size, status)) => {
                self.backoff.lock().forget(&key);
                self.failures.lock().remove(&key);
                let now = self.clock.instant();
                let message = format!(
                    "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {size} bytes.",
                    go_duration(now.duration_since(begun)),
                    go_duration(now.duration_since(waited)),
                );
                recorder.record(about(), EventType::Normal, "Pulled", message);
                self.counters.pulled(size, now.duration_since(begun));
                let mut pulling = self.pulling.lock();
                pulling.entry(pod.uid().to_owned()).or_insert((waited, now)).1 = now;
                Ok(status)
            }
            Err(error) => {
                let message = format!("Failed to pull image {image:?}: {error}");
                recorder.record(about(), EventType::Warning, "Failed", message.clone());
                let reason = match error.reason() {
                    "Unknown" | "NotFound" => "ErrImagePull",
                    reason => reason,
                };
                recorder.record(about(), EventType::Warning, "Failed", format!("Error: {reason}"));
                let delay = self.fail(&key, error.to_string());
                // Looked at again soon, to show that it now waits.
                let shown = Duration::from_secs(1).min(delay);
                Err(NotPresent {
                    waiting: Waiting::new(reason, error.to_string()),
                    retry_at: self.clock.now() + SignedDuration::try_from(shown).unwrap_or_default(),
                })
            }
        }
    }

    fn fail(&self, key: &(String, String), why: String) -> Duration {
        let now: Instant = self.clock.instant();
        let mut backoff = self.backoff.lock();
        backoff.collect_garbage(now);
        self.failures.lock().insert(key.clone(), why);
        backoff.fail(key, now)
    }

    fn back_off(&self, key: &(String, String), message: String, remaining: Duration) -> NotPresent {
        let why = self.failures.lock().get(key).cloned();
        let message = match why {
            Some(why) => format!("{message}: ErrImagePull: {why}"),
            None => message,
        };
        NotPresent {
            waiting: Waiting::new("ImagePullBackOff", message),
            retry_at: self.clock.now() + SignedDuration::try_from(remaining).unwrap_or(SignedDuration::MAX),
        }
    }

    /// Tries every credential that fits, none where there are none; answers the size and who has access by it.
    async fn pull_with(
        &self,
        image: &str,
        mut credentials: Vec<Credential>,
    ) -> cri::Result<(u64, pulled::Credentials)> {
        let of_node = self.providers.credentials(image, self.clock.now()).await.into_iter();
        credentials.extend(of_node.map(|auth| Credential { auth: Some(auth), secret: None }));
        if credentials.is_empty() {
            credentials.push(Credential { auth: None, secret: None });
        }
        let mut errors: Vec<cri::Error> = Vec::new();
        for Credential { auth, secret } in credentials {
            match self.service.pull(PullRequest { image: image.to_owned(), auth, progress: None }).await {
                Ok(result) => {
                    let who =
                        secret.map_or_else(pulled::Credentials::of_node, pulled::Credentials::of_secret);
                    return Ok((result.size_bytes, who));
                }
                Err(error) if errors.iter().any(|other| other.to_string() == error.to_string()) => {}
                Err(error) => errors.push(error),
            }
        }
        Err(aggregate(image, errors))
    }

    /// How long pulls for a pod took, from the first one's begin to the last one's end.
    pub fn pulling(&self, pod_uid: &str) -> Duration {
        self.pulling.lock().get(pod_uid).map_or(Duration::ZERO, |(from, to)| to.duration_since(*from))
    }

    /// Forgets what is remembered of a pod.
    pub fn release(&self, pod_uid: &str) {
        self.pulling.lock().remove(pod_uid);
        self.failures.lock().retain(|(uid, _), _| uid != pod_uid);
    }
}

/// Different failures of a pull, as one.
fn aggregate(image: &str, mut errors: Vec<cri::Error>) -> cri::Error {
    match errors.len() {
        0 => cri::Error::ImageNotFound { image: image.to_owned() },
        1 => errors.swap_remove(0),
        _ => {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            cri::Error::Internal { message: format!("[{}]", texts.join(", ")) }
        }
    }
}

/// The registry host and path of an image, the default registry spelled out.
pub(crate) fn repository(image: &str) -> String {
    let name = image.split('@').next().unwrap_or_default();
    let name = match name.rsplit_once(':') {
        Some((before, after)) if !after.contains('/') => before,
        _ => name,
    };
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

/// Credentials of a pull secret for an image (`kubernetes.io/dockerconfigjson` or the older `dockercfg`),
/// the most specific first.
fn credentials_for(image: &str, secret: &Secret) -> Vec<Credential> {
    let Some(data) = &secret.data else { return Vec::new() };
    let parse = |key: &str| data.get(key).and_then(|bytes| serde_json::from_slice::<Value>(&bytes.0).ok());
    let auths = match (parse(".dockerconfigjson"), parse(".dockercfg")) {
        (Some(config), _) => config.get("auths").cloned(),
        (None, old) => old,
    };
    let Some(Value::Object(auths)) = auths else { return Vec::new() };
    let repository = repository(image);
    let mut fitting: BTreeMap<std::cmp::Reverse<usize>, Vec<ImageAuth>> = BTreeMap::new();
    for (registry, entry) in &auths {
        let bare = credentials::bare(registry);
        let fits = credentials::matches(&bare, &repository);
        if fits {
            fitting.entry(std::cmp::Reverse(bare.len())).or_default().push(auth_of(entry));
        }
    }
    let meta = &secret.metadata;
    let of_secret = |auth: ImageAuth| Credential {
        secret: Some(pulled::Secret {
            uid: meta.uid.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            credential_hash: pulled::hash(&auth),
        }),
        auth: Some(auth),
    };
    fitting.into_values().flatten().map(of_secret).collect()
}

fn auth_of(entry: &Value) -> ImageAuth {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut auth = ImageAuth {
        username: text("username"),
        password: text("password"),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
    };
    let encoded = STANDARD.decode(text("auth")).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some((username, password)) = encoded.as_deref().and_then(|text| text.split_once(':')) {
        auth.username = username.to_owned();
        auth.password = password.trim_end_matches('\0').to_owned();
    }
    auth
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policies() {
        let cases = [
            ("a", None, "Always"),
            ("a:latest", None, "Always"),
            ("host:5000/a", None, "Always"),
            ("a:1", None, "IfNotPresent"),
            ("a@sha256:0", None, "IfNotPresent"),
            ("a", Some("Never"), "Never"),
        ];
        for (image, policy, expected) in cases {
            let container = Container {
                image: Some(image.into()),
                image_pull_policy: policy.map(str::to_owned),
                ..Container::default()
            };
            assert_eq!(pull_policy(&container), expected, "{image}");
        }
    }

    #[test]
    fn failures_of_a_pull_are_one() {
        let pull = |message: &str| cri::Error::ImagePull { image: "i".into(), message: message.into() };
        let one = aggregate("i", vec![pull("a")]);
        assert_eq!(one.to_string(), pull("a").to_string());
        let two = aggregate("i", vec![pull("a"), pull("b")]).to_string();
        assert_eq!(two, format!("[{}, {}]", pull("a"), pull("b")));
        assert!(matches!(aggregate("i", Vec::new()), cri::Error::ImageNotFound { .. }));
    }

    #[test]
    fn repositories() {
        let cases = [
            ("nginx", "docker.io/library/nginx"),
            ("a/b:1", "docker.io/a/b"),
            ("r.io:5000/a:1", "r.io:5000/a"),
            ("localhost/a@sha256:0", "localhost/a"),
        ];
        for (image, expected) in cases {
            assert_eq!(repository(image), expected);
        }
    }

    #[test]
    fn credentials_fit_the_most_specific_registry_first() {
        let config = json!({"auths": {
            "https://r.io/v2/": {"username": "wide", "password": "x"},
            "r.io/team": {"auth": STANDARD.encode("near:pw")},
            "other.io": {"username": "no"}}});
        let secret =
            Secret::from_value(json!({"data": {".dockerconfigjson": STANDARD.encode(config.to_string())}}))
                .unwrap();
        let names: Vec<_> = credentials_for("r.io/team/app:1", &secret)
            .into_iter()
            .filter_map(|c| Some(c.auth?.username))
            .collect();
        assert_eq!(names, ["near", "wide"]);
        assert!(credentials_for("r.io.evil/team", &secret).is_empty());
        let wild = json!({"auths": {"*.r.io": {"username": "any", "password": "x"}}});
        let secret =
            Secret::from_value(json!({"data": {".dockerconfigjson": STANDARD.encode(wild.to_string())}}))
                .unwrap();
        assert_eq!(credentials_for("a.r.io/x", &secret).len(), 1);
        assert!(credentials_for("r.io/x", &secret).is_empty());
    }

    #[test]
    fn durations() {
        assert_eq!(go_duration(Duration::from_millis(250)), "250ms");
        assert_eq!(go_duration(Duration::from_millis(1500)), "1.5s");
        assert_eq!(go_duration(Duration::from_secs(3)), "3s");
    }
}
