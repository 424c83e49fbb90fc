//! `csrcleaner`: requests go some time after they were decided, or when nobody has decided.

use std::sync::Arc;
use std::time::Duration;

use api::k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use api::prelude::*;
use client::{BoxFuture, Client, DeleteParams};
use jiff::{SignedDuration, Timestamp};
use reconcile::{Action, Context, ControlError, Controller, Descriptor, Informer, Reconcile, WorkQueue};
use stdx::Clock;

use super::{ACCOUNT, has, is_issued};

const WORKERS: usize = 1;
/// Upstream's times: of what was decided, and of what waits.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// The row of `csrcleaner`.
pub fn descriptor() -> Descriptor {
    Descriptor::new("csrcleaner", build)
}

struct Loop {
    client: Client,
    clock: Arc<dyn Clock>,
    requests: Arc<Informer<CertificateSigningRequest>>,
}

fn build(context: &Context) -> Controller {
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        client: context.client_of(ACCOUNT),
        clock: context.clock.clone(),
        requests: context.informers.get::<CertificateSigningRequest>(),
    });
    let to = queue.clone();
    this.requests.on_event(move |event| to.add(event.object().key()));
    Controller::new(queue, this.clone(), WORKERS).after(&this.requests)
}

/// When a request may go. An approved one waits for its certificate as long as it takes.
pub fn goes_at(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let since = |condition: &str| {
        let conditions = request.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let found = conditions.into_iter().find(|c| c.type_ == condition)?;
        found.last_update_time.as_ref().map(|t| t.0)
    };
    let created = request.metadata.creation_timestamp.as_ref()?.0;
    let (from, life) = if has(request, "Denied") {
        (since("Denied").unwrap_or(created), DECIDED)
    } else if has(request, "Failed") {
        (since("Failed").unwrap_or(created), DECIDED)
    } else if has(request, "Approved") {
        if !is_issued(request) {
            return None;
        }
        (since("Approved").unwrap_or(created), DECIDED)
    } else {
        (created, PENDING)
    };
    from.checked_add(life).ok()
}

impl Loop {
    async fn sync(&self, key: &str) -> Result<Action, ControlError> {
        let Some(request) = self.requests.store().get(key) else { return Ok(Action::Wait) };
        let Some(at) = goes_at(&request) else { return Ok(Action::Wait) };
        let left = Duration::try_from(at.duration_since(self.clock.now())).unwrap_or_default();
        if !left.is_zero() {
            return Ok(Action::RequeueAfter(left));
        }
        let params = DeleteParams::only_uid(request.uid());
        match self.client.delete_typed::<CertificateSigningRequest>("", key, &params).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Action::Wait),
        }
    }
}

impl Reconcile for Loop {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Action, ControlError>> {
        Box::pin(self.sync(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn decided_requests_go_after_an_hour() {
        let request = |conditions: &[&str], certificate: &str| {
            let conditions: Vec<_> = (conditions.iter())
                .map(|c| json!({"type": c, "status": "True", "lastUpdateTime": "2026-01-01T10:00:00Z"}))
                .collect();
            let value = json!({"metadata": {"name": "c", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"request": "", "signerName": "a.b/c"},
                "status": {"conditions": conditions, "certificate": certificate}});
            goes_at(&CertificateSigningRequest::from_value(value).unwrap()).map(|t| t.to_string())
        };
        assert_eq!(request(&[], "").as_deref(), Some("2026-01-02T00:00:00Z"));
        assert_eq!(request(&["Denied"], "").as_deref(), Some("2026-01-01T11:00:00Z"));
        assert_eq!(request(&["Approved"], ""), None);
        assert_eq!(request(&["Approved"], "AAAA").as_deref(), Some("2026-01-01T11:00:00Z"));
    }
}
