//! One call to a webhook.

use std::time::Instant;

use admission::dynamic::policy::Versioned;
use admission::dynamic::webhook::{Answer, Hook};
use admission::dynamic::{Resource, Subject, review};
use bytes::Bytes;
use meta::Status;

use crate::metrics;
use crate::server::Server;
use crate::webhook::{self, ClientConfig};

/// Larger codes count as this one: they are the webhooks' to choose.
const CODE_MAX: u16 = 600;

/// Asks a webhook. `None` when the call failed and that is to be ignored.
pub async fn ask(
    server: &Server,
    hook: &Hook,
    subject: &Subject<'_>,
    resource: &Resource<'_>,
    objects: &Versioned,
    may_patch: bool,
) -> Result<Option<Answer>, Status> {
    hook.check_dry_run(subject)?;
    let uid = uuid(server);
    let body = review::review(subject, resource, &uid, objects.0.as_ref(), objects.1.as_ref());
    let failed = |why: &str| {
        tracing::warn!(webhook = hook.name, configuration = hook.configuration, why, "a webhook failed");
        hook.failed(why).map(|()| None)
    };
    let config = match ClientConfig::from_json(&hook.client_config) {
        Ok(config) => config,
        Err(e) => return failed(&format!("could not get REST client: {e}")),
    };
    let began = Instant::now();
    let called = {
        let _away = metrics::elsewhere();
        webhook::call(server, &config, hook.timeout, Bytes::from(body.to_string())).await
    };
    let read = match called {
        Ok(answer) => hook.read(&uid, &answer, may_patch),
        Err(e) => Err(Err(format!("failed to call webhook: {e}"))),
    };
    let (code, outcome) = match read {
        Ok(answer) => (200, Ok(Some(answer))),
        Err(Ok(refusal)) => (refusal.code, Err(refusal)),
        Err(Err(why)) => (0, failed(&why)),
    };
    let call = metrics::Call {
        name: hook.name.clone(),
        operation: subject.operation.to_owned(),
        mutating: may_patch,
        rejected: outcome.is_err(),
        code: code.min(CODE_MAX),
    };
    server.metrics.webhooks.observe(call, began.elapsed());
    outcome
}

/// A random UUID (version 4).
fn uuid(server: &Server) -> String {
    let half = || u128::from(server.random.below(u64::MAX));
    let bits = (half() << 64 | half()) & !(0xf << 76) & !(0x3 << 62) | (4 << 76) | (2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
