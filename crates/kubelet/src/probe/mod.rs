//! Probes: one task per probe of a running container; results go to the pod's worker.

pub mod network;

use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::core::v1::Probe;
use api::prelude::*;
use cri::RuntimeService;

use crate::spec;

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Restart when it fails; nothing else is probed before it succeeds.
    Startup,
    /// Restart when it fails.
    Liveness,
    /// Traffic only while it succeeds.
    Readiness,
}

impl Kind {
    /// As events name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// The result of one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Success,
    /// Not well, and why.
    Failure(String),
    /// It could not be tried.
    Unknown(String),
}

/// Counts tries against the thresholds. Pure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    successes: i32,
    failures: i32,
}

impl Counter {
    /// Takes a try in; `Some` once a threshold is reached.
    pub fn count(&mut self, success: bool, probe: &Probe) -> Option<bool> {
        let (run, threshold) = match success {
            true => {
                self.failures = 0;
                (&mut self.successes, probe.success_threshold.unwrap_or(1))
            }
            false => {
                self.successes = 0;
                (&mut self.failures, probe.failure_threshold.unwrap_or(3))
            }
        };
        *run = run.saturating_add(1);
        (*run >= threshold.max(1)).then_some(success)
    }
}

/// What a probe is aimed at.
#[derive(Clone)]
pub struct Target {
    /// Runtime, for exec probes.
    pub runtime: Arc<dyn RuntimeService>,
    /// Id of the container.
    pub container_id: String,
    /// Its spec.
    pub container: Arc<Container>,
    /// Address of the pod.
    pub host: String,
}

/// Seconds of a probe's field as a duration, at least one second.
pub fn seconds(value: Option<i32>, default: i32) -> Duration {
    Duration::from_secs(value.filter(|seconds| *seconds > 0).unwrap_or(default) as u64)
}

impl Target {
    /// Tries once.
    pub async fn probe(&self, probe: &Probe) -> Outcome {
        let timeout = seconds(probe.timeout_seconds, 1);
        if let Some(exec) = &probe.exec {
            return self.exec(exec.command.as_deref().unwrap_or_default(), timeout).await;
        }
        if let Some(action) = &probe.http_get {
            let request = match network::HttpProbe::new(action, &self.container, &self.host) {
                Ok(request) => request,
                Err(message) => return Outcome::Unknown(message),
            };
            return match network::http(&request, timeout).await {
                Ok(()) => Outcome::Success,
                Err(message) => Outcome::Failure(message),
            };
        }
        if let Some(action) = &probe.tcp_socket {
            let host =
                action.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| self.host.clone());
            return match spec::resolve_port(&action.port, &self.container) {
                Err(message) => Outcome::Unknown(message),
                Ok(port) => match network::tcp(&host, port, timeout).await {
                    Ok(_) => Outcome::Success,
                    Err(message) => Outcome::Failure(message),
                },
            };
        }
        if let Some(action) = &probe.grpc {
            let service = action.service.as_deref().unwrap_or_default();
            let Ok(port) = u16::try_from(action.port) else {
                return Outcome::Unknown(format!("invalid port number: {}", action.port));
            };
            return match network::grpc(&self.host, port, service, timeout).await {
                Ok(()) => Outcome::Success,
                Err(message) => Outcome::Failure(message),
            };
        }
        Outcome::Unknown(format!("missing probe handler for {}", self.container.name))
    }

    async fn exec(&self, command: &[String], timeout: Duration) -> Outcome {
        match self.runtime.exec_sync(&self.container_id, command, timeout).await {
            Ok(output) if output.exit_code == 0 => Outcome::Success,
            Ok(output) => {
                let mut text = output.stdout.to_vec();
                text.extend_from_slice(&output.stderr);
                Outcome::Failure(network::shorten(&text))
            }
            Err(error @ cri::Error::Timeout { .. }) => Outcome::Failure(error.to_string()),
            Err(cri::Error::Exec { message, .. }) => Outcome::Failure(message),
            Err(error) => Outcome::Unknown(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut counter = Counter::default();
        let tries = [true, false, true, true, true, false, false, false, false, true];
        let results: Vec<_> = tries.iter().map(|success| counter.count(*success, &probe)).collect();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(results, [None, None, None, yes, yes, None, None, no, no, None]);
        assert_eq!(Counter::default().count(true, &Probe::default()), yes);
    }
}
