//! How the API server serves: limits, and what it writes down about requests (`--audit-*`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use apiserver::audit::log::{Log, Options};
use apiserver::audit::policy::Policy;
use apiserver::audit::{Audit, Sink};
use apiserver::server::Limits;
use bytes::Bytes;
use clap::Args;
use client::{Client, Https, Kubeconfig};
use stdx::Clock;
use tokio::sync::mpsc;

/// Events that may wait for the webhook (upstream's buffer).
const QUEUE_MAX: usize = 10_000;
/// Bytes that may wait for the webhook.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Events sent at once (upstream's).
const BATCH_MAX: usize = 400;
/// Time that a batch waits to become full (upstream's).
const BATCH_WAIT: Duration = Duration::from_secs(30);
/// Longest time of one call.
const CALL_MAX: Duration = Duration::from_secs(30);
/// Attempts to send a batch, and the pause before the second; the following ones double.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Reads a duration as Go writes it.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    apiserver::timeout::parse(text).ok_or_else(|| format!("invalid duration {text:?}"))
}

/// Options of serving.
#[derive(Debug, Clone, Args)]
pub struct Serving {
    /// Requests that only read, at once.
    #[arg(long, default_value_t = 400)]
    pub max_requests_inflight: u32,
    /// Requests that change something, at once; all priority levels share the sum of both.
    #[arg(long, default_value_t = 200)]
    pub max_mutating_requests_inflight: u32,
    /// Longest time of a request that is not long by nature.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub request_timeout: Duration,
    /// Shortest time of a watch without a limit of its own, in seconds.
    #[arg(long, default_value_t = 1800)]
    pub min_request_timeout: u64,
    /// Time that history is kept for watches and pages; 0 keeps all of it.
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub etcd_compaction_interval: Duration,
    /// Audit policy; without one nothing is written down.
    #[arg(long)]
    pub audit_policy_file: Option<PathBuf>,
    /// File of the audit log; `-` for the standard output.
    #[arg(long)]
    pub audit_log_path: Option<PathBuf>,
    /// Days that old audit logs are kept; 0 for ever.
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxage: u64,
    /// Old audit logs kept; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxbackup: usize,
    /// Megabytes at which an audit log is put aside.
    #[arg(long, default_value_t = 100)]
    pub audit_log_maxsize: u64,
    /// Kubeconfig of a webhook that audit events are sent to.
    #[arg(long)]
    pub audit_webhook_config_file: Option<PathBuf>,
}

impl Serving {
    /// The limits.
    pub fn limits(&self) -> Limits {
        Limits {
            requests_in_flight: u64::from(self.max_requests_inflight)
                + u64::from(self.max_mutating_requests_inflight),
            request_time: self.request_timeout,
            watch_time: Duration::from_secs(self.min_request_timeout),
        }
    }

    /// The audit, if any is wanted. Must be called within the runtime.
    pub fn audit(&self, clock: &Arc<dyn Clock>) -> anyhow::Result<Option<Audit>> {
        let wanted = self.audit_log_path.is_some() || self.audit_webhook_config_file.is_some();
        let Some(path) = &self.audit_policy_file else {
            ensure!(!wanted, "audit logs and webhooks need --audit-policy-file");
            return Ok(None);
        };
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let policy =
            Policy::parse(&text).with_context(|| format!("loading audit policy file {}", path.display()))?;
        let mut sinks: Vec<Arc<dyn Sink>> = Vec::new();
        if let Some(path) = &self.audit_log_path {
            let options = Options {
                path: path.clone(),
                age_max: (self.audit_log_maxage > 0)
                    .then(|| Duration::from_secs(self.audit_log_maxage * 86_400)),
                backups_max: self.audit_log_maxbackup,
                size_max: self.audit_log_maxsize << 20,
            };
            let log = Log::open(options, clock.clone())
                .with_context(|| format!("cannot write {}", path.display()))?;
            sinks.push(Arc::new(log));
        }
        if let Some(path) = &self.audit_webhook_config_file {
            let hook = Webhook::start(path).with_context(|| format!("cannot use {}", path.display()))?;
            sinks.push(Arc::new(hook));
        }
        Ok(Some(Audit::new(policy, sinks)))
    }
}

/// Sends events to a webhook, many at a time.
struct Webhook {
    queue: mpsc::Sender<Bytes>,
    waiting: Arc<AtomicUsize>,
}

impl Webhook {
    fn start(kubeconfig: &Path) -> anyhow::Result<Webhook> {
        let directory = kubeconfig.parent().unwrap_or(Path::new("."));
        let mut config = Kubeconfig::load(kubeconfig)?.https_config(None, directory)?;
        // The URL is the whole address of the webhook, not a prefix.
        let path = config.server.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let mut parts = config.server.clone().into_parts();
        parts.path_and_query = Some("/".parse()?);
        config.server = http::Uri::from_parts(parts)?;
        let client = Client::new(Arc::new(Https::new(&config)?), "kube-apiserver-audit");
        let (queue, events) = mpsc::channel(QUEUE_MAX);
        let waiting = Arc::new(AtomicUsize::new(0));
        tokio::spawn(send_all(client, path, events, waiting.clone()));
        Ok(Webhook { queue, waiting })
    }
}

impl Sink for Webhook {
    fn write(&self, event: &Bytes) -> bool {
        if self.waiting.load(Ordering::Relaxed) + event.len() > QUEUE_BYTES_MAX {
            return false;
        }
        let sent = self.queue.try_send(event.clone()).is_ok();
        if sent {
            self.waiting.fetch_add(event.len(), Ordering::Relaxed);
        }
        sent
    }
}

async fn send_all(
    client: Client,
    path: String,
    mut events: mpsc::Receiver<Bytes>,
    waiting: Arc<AtomicUsize>,
) {
    while let Some(first) = events.recv().await {
        let mut batch = vec![first];
        let fill = async {
            while batch.len() < BATCH_MAX {
                match events.recv().await {
                    Some(event) => batch.push(event),
                    None => return,
                }
            }
        };
        let _ = tokio::time::timeout(BATCH_WAIT, fill).await;
        let mut body =
            br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#.to_vec();
        for (i, event) in batch.iter().enumerate() {
            if i > 0 {
                body.push(b',');
            }
            body.extend_from_slice(event);
        }
        body.extend_from_slice(b"]}");
        let size: usize = batch.iter().map(Bytes::len).sum();
        send(&client, &path, body.into()).await;
        waiting.fetch_sub(size, Ordering::Relaxed);
    }
}

/// Sends one batch; one that does not get through after some attempts is given up.
async fn send(client: &Client, path: &str, body: Bytes) {
    let mut pause = FIRST_PAUSE;
    for attempt in 1..=ATTEMPTS {
        let call = client.write_bytes(http::Method::POST, path, body.clone());
        match tokio::time::timeout(CALL_MAX, call).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => tracing::warn!(%error, attempt, "the audit webhook refused a batch"),
            Err(_) => tracing::warn!(attempt, "the audit webhook does not answer"),
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}
