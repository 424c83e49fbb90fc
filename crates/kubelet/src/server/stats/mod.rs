//! Resource use as the summary API and as metrics: what metrics-server, Prometheus and `kubectl top` read.
//!
//! One look (`look`) is taken per request; the forms (`summary`, `metrics`, `containers`) only write it down.

mod containers;
mod look;
mod metrics;
mod summary;

use client::Body;
use http::{Response, StatusCode};

use super::{json, text};
use crate::agent::Agent;

pub use look::Rates;

fn exposition(body: String) -> Response<Body> {
    let mut response = text(StatusCode::OK, body);
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// The summary; `query` may ask for the cheap half of it.
pub(super) async fn summary(agent: &Agent, query: &str) -> Response<Body> {
    let short = query.split('&').any(|pair| pair == "only_cpu_and_memory=true");
    match look::take(agent, !short).await {
        Ok(seen) => json(&summary::write(agent, &seen, short)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// The kubelet's own metrics.
pub(super) async fn metrics(agent: &Agent) -> Response<Body> {
    exposition(metrics::own(agent).await)
}

/// Resource metrics (KEP-727): what metrics-server scrapes.
pub(super) async fn resource_metrics(agent: &Agent) -> Response<Body> {
    let seen = look::take(agent, false).await.ok();
    exposition(metrics::resource(seen.as_ref()))
}

/// Metrics of containers under cAdvisor's names.
pub(super) async fn container_metrics(agent: &Agent) -> Response<Body> {
    let seen = look::take(agent, true).await.ok();
    exposition(containers::write(agent, seen.as_ref()))
}

/// How probes went.
pub(super) fn probe_metrics(agent: &Agent) -> Response<Body> {
    exposition(metrics::probes(agent))
}
