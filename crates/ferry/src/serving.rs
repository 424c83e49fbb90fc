//! How the API server serves: limits, and what it writes down about requests (`--audit-*`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use apiserver::audit::log::{Log, Options};
use apiserver::audit::policy::Policy;
use apiserver::audit::{Audit, Sink};
use apiserver::server::Limits;
use clap::Args;
use stdx::Clock;

use crate::audit;

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
    /// Whether requests wait for the webhook; with blocking-strict they fail when their arrival cannot be told.
    #[arg(long, value_enum, default_value = "batch")]
    pub audit_webhook_mode: audit::Mode,
    /// Events that may wait for the webhook in batch mode.
    #[arg(long, default_value_t = 10_000)]
    pub audit_webhook_batch_buffer_size: usize,
    /// Most events sent at once in batch mode.
    #[arg(long, default_value_t = 400)]
    pub audit_webhook_batch_max_size: usize,
    /// Time that a batch waits to become full.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub audit_webhook_batch_max_wait: Duration,
    /// Pause before the second attempt to send events; the following ones are longer.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub audit_webhook_initial_backoff: Duration,
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
            let options = audit::Options {
                mode: self.audit_webhook_mode,
                queue_max: self.audit_webhook_batch_buffer_size.max(1),
                batch_max: self.audit_webhook_batch_max_size.max(1),
                wait: self.audit_webhook_batch_max_wait,
                pause: self.audit_webhook_initial_backoff,
            };
            let hook =
                audit::webhook(path, &options).with_context(|| format!("cannot use {}", path.display()))?;
            sinks.push(hook);
        }
        Ok(Some(Audit::new(policy, sinks)))
    }
}
