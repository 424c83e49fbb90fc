//! Leader election on a Lease: of several processes one works, another takes over when it falls silent.
//!
//! Clocks of different machines are never compared: a lease has expired when its record has not changed
//! for its duration as measured here (client-go's rule).

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::prelude::*;
use client::Client;
use jiff::Timestamp;
use k8s_lease::LeaseSpec;
use stdx::{Clock, Random};
use tokio_util::sync::CancellationToken;

use api::k8s_openapi::api::coordination::v1 as k8s_lease;

/// Durations of an election; client-go's defaults.
#[derive(Debug, Clone, Copy)]
pub struct LeaderConfig {
    /// Others wait this long after the last renewal.
    pub lease_duration: Duration,
    /// The leader gives up when it could not renew for this long.
    pub renew_deadline: Duration,
    /// Time between attempts.
    pub retry_period: Duration,
}

impl Default for LeaderConfig {
    fn default() -> Self {
        LeaderConfig {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// What to do about a lease.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Nobody holds it: create it.
    Create(LeaseSpec),
    /// It is ours, or free: write this.
    Update(LeaseSpec),
    /// Somebody else holds it.
    Wait,
}

/// Decides about a lease. `last_change` is when this process first saw the present record.
pub fn decide(
    lease: Option<&LeaseSpec>,
    identity: &str,
    last_change: Instant,
    instant: Instant,
    now: Timestamp,
    config: &LeaderConfig,
) -> Decision {
    let mine = |acquired: MicroTime, transitions: i32| LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(config.lease_duration.as_secs() as i32),
        acquire_time: Some(acquired),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions),
        ..Default::default()
    };
    let Some(spec) = lease else { return Decision::Create(mine(MicroTime(now), 0)) };
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let transitions = spec.lease_transitions.unwrap_or_default();
    if holder == identity {
        let acquired = spec.acquire_time.clone().unwrap_or(MicroTime(now));
        return Decision::Update(mine(acquired, transitions));
    }
    let duration = Duration::from_secs(spec.lease_duration_seconds.unwrap_or_default().max(0) as u64);
    let expired = instant.saturating_duration_since(last_change) >= duration;
    if holder.is_empty() || expired {
        return Decision::Update(mine(MicroTime(now), transitions.saturating_add(1)));
    }
    Decision::Wait
}

/// Takes part in the election of one lease.
pub struct LeaderElector {
    /// Client to read and write the lease with.
    pub client: Client,
    /// Namespace of the lease.
    pub namespace: String,
    /// Name of the lease.
    pub name: String,
    /// Who we are; unique among candidates.
    pub identity: String,
    /// Durations.
    pub config: LeaderConfig,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness, to spread attempts.
    pub random: Arc<dyn Random>,
}

/// What was seen of the lease.
struct Observed {
    record: Option<LeaseSpec>,
    at: Instant,
}

impl LeaderElector {
    /// Waits for leadership, runs `work` while it lasts, and gives the lease back when cancelled. `work`
    /// gets a token that is cancelled when leadership is lost. Returns when that happens, or on `cancel`.
    pub async fn lead<F: Future<Output = ()> + Send>(
        &self,
        cancel: CancellationToken,
        work: impl FnOnce(CancellationToken) -> F,
    ) {
        let mut observed = Observed { record: None, at: self.clock.instant() };
        while !self.attempt(&mut observed).await {
            let spread = self.random.below(self.config.retry_period.as_millis() as u64);
            let pause = self.config.retry_period + Duration::from_millis(spread);
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
        let term = cancel.child_token();
        tracing::info!(lease = %self.name, identity = %self.identity, "became leader");
        let guard = term.clone();
        tokio::select! {
            () = work(term.clone()) => {}
            () = self.keep(&mut observed) => tracing::warn!(lease = %self.name, "lost leadership"),
        }
        guard.cancel();
        if cancel.is_cancelled() {
            self.release(&observed).await;
        }
    }

    /// Renews until that has failed for the renew deadline.
    async fn keep(&self, observed: &mut Observed) {
        let mut renewed = self.clock.instant();
        while self.clock.instant().saturating_duration_since(renewed) < self.config.renew_deadline {
            tokio::time::sleep(self.config.retry_period).await;
            let attempt = tokio::time::timeout(self.config.renew_deadline, self.attempt(observed)).await;
            if attempt == Ok(true) {
                renewed = self.clock.instant();
            }
        }
    }

    /// Tries once to get or keep the lease.
    async fn attempt(&self, observed: &mut Observed) -> bool {
        let outcome = self.try_attempt(observed).await;
        outcome.unwrap_or_else(|error| {
            tracing::debug!(lease = %self.name, %error, "an attempt to hold the lease failed");
            false
        })
    }

    async fn try_attempt(&self, observed: &mut Observed) -> client::Result<bool> {
        let lease = match self.client.get_typed::<Lease>(&self.namespace, &self.name).await {
            Ok(lease) => Some(lease),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        let record = lease.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let instant = self.clock.instant();
        if observed.record != record {
            *observed = Observed { record: record.clone(), at: instant };
        }
        let decision =
            decide(record.as_ref(), &self.identity, observed.at, instant, self.clock.now(), &self.config);
        let written = match decision {
            Decision::Wait => return Ok(false),
            Decision::Create(spec) => {
                let mut lease = Lease { spec: Some(spec), ..Default::default() };
                lease.metadata.namespace = Some(self.namespace.clone());
                lease.metadata.name = Some(self.name.clone());
                self.client.create_typed(&lease).await?
            }
            Decision::Update(spec) => {
                let lease = Lease { spec: Some(spec), ..lease.unwrap_or_default() };
                self.client.update_typed(&lease).await?
            }
        };
        *observed = Observed { record: written.spec, at: self.clock.instant() };
        Ok(true)
    }

    /// Gives the lease back, so that a successor need not wait for it to expire.
    async fn release(&self, observed: &Observed) {
        let release = async {
            let mut lease = self.client.get_typed::<Lease>(&self.namespace, &self.name).await?;
            let ours = lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()) == Some(&self.identity);
            if ours && observed.record.is_some() {
                let spec = lease.spec.get_or_insert_default();
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
                spec.renew_time = Some(MicroTime(self.clock.now()));
                self.client.update_typed(&lease).await?;
            }
            Ok::<_, client::Error>(())
        };
        if let Ok(Err(error)) = tokio::time::timeout(self.config.retry_period, release).await {
            tracing::debug!(%error, "the lease could not be given back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions() {
        let (config, start, now) = (LeaderConfig::default(), Instant::now(), Timestamp::UNIX_EPOCH);
        let held = |holder: &str| LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            acquire_time: Some(MicroTime(now)),
            lease_transitions: Some(3),
            ..Default::default()
        };
        let after = |lease: Option<&LeaseSpec>, seconds| {
            decide(lease, "me", start, start + Duration::from_secs(seconds), now, &config)
        };
        assert!(matches!(after(None, 0), Decision::Create(s) if s.lease_transitions == Some(0)));
        assert_eq!(after(Some(&held("other")), 14), Decision::Wait);
        assert!(
            matches!(after(Some(&held("other")), 15), Decision::Update(s) if s.lease_transitions == Some(4))
        );
        assert!(matches!(after(Some(&held("")), 0), Decision::Update(s) if s.lease_transitions == Some(4)));
        assert!(matches!(after(Some(&held("me")), 0), Decision::Update(s) if s.lease_transitions == Some(3)));
    }
}
