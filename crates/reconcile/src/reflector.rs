//! List, then watch, for ever: the state machine that keeps a cache in step with the API server.
//!
//! ```text
//!            listed(rv)              progressed(rv')
//!   List ----------------> Watch(rv) ---------------> Watch(rv')
//!    ^ ^                    |  |  ^                      |
//!    | | failed(expired)    |  |  | watch_ended()        |
//!    | +--------------------+  |  +----------------------+
//!    |   failed(not expired): back-off, then the same step again
//! ```
//!
//! [`Machine`] decides and does no IO; [`run`] asks it what to do next and does that.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::{Client, EventKind, ListParams, WatchParams};
use meta::Gvr;
use serde::Deserialize;
use stdx::{Backoff, Random};
use tokio_util::sync::CancellationToken;

/// Pauses between attempts while the server cannot be reached or refuses.
const RETRY: Backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(30) };
/// A watch is renewed after a random time between this and twice this, so that servers shed load evenly.
const WATCH_SECONDS_MIN: u32 = 300;
/// Objects decoded before other tasks get their turn.
const DECODE_BATCH: usize = 256;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// List, at any version (`"0"`, from the server's cache) or the most recent (`""`).
    List {
        /// `resourceVersion` of the request.
        at: &'static str,
    },
    /// Watch from this resource version.
    Watch {
        /// `resourceVersion` of the request.
        from: String,
    },
}

/// Where the cache stands.
#[derive(Debug, Default)]
pub struct Machine {
    version: Option<String>,
    /// The server has once said that our version is too old: its cache may lag, so list consistently.
    expired: bool,
    failures: u32,
    /// Something has come since the watch began.
    progressed: bool,
}

impl Machine {
    /// What to do next.
    pub fn next(&self) -> Step {
        match &self.version {
            Some(version) => Step::Watch { from: version.clone() },
            None => Step::List { at: if self.expired { "" } else { "0" } },
        }
    }

    /// A list has come, as of `version`.
    pub fn listed(&mut self, version: String) {
        *self = Machine { version: Some(version), ..Machine::default() };
    }

    /// An event or a bookmark has come.
    pub fn progressed(&mut self, version: &str) {
        self.failures = 0;
        self.progressed = true;
        if !version.is_empty() && self.version.as_deref() != Some(version) {
            self.version = Some(version.to_owned());
        }
    }

    /// The server has closed the watch. Returns how long to pause: a watch that brought nothing may have
    /// been closed at once, and asking again at once would spin.
    pub fn watch_ended(&mut self) -> Duration {
        if std::mem::take(&mut self.progressed) {
            return Duration::ZERO;
        }
        self.failures = self.failures.saturating_add(1);
        RETRY.delay(self.failures)
    }

    /// The list or watch has failed; `expired` if with 410. Returns how long to pause.
    pub fn failed(&mut self, expired: bool) -> Duration {
        self.progressed = false;
        let first_expiry = expired && self.version.is_some();
        if expired {
            self.version = None;
            self.expired = true;
        }
        self.failures = self.failures.saturating_add(1);
        // Too old is an ordinary answer: list at once, but only once.
        if first_expiry && self.failures == 1 { Duration::ZERO } else { RETRY.delay(self.failures) }
    }
}

/// What to list and watch.
#[derive(Debug, Clone)]
pub struct Source {
    /// Resource.
    pub gvr: Gvr,
    /// Namespace; empty for all.
    pub namespace: String,
    /// Label selector as text.
    pub label_selector: String,
    /// Field selector as text.
    pub field_selector: String,
    /// Ask for metadata only.
    pub metadata_only: bool,
}

/// Where the objects go. Calls come from one task, in order.
pub trait Sink: Send + Sync {
    /// Takes in some objects of a list.
    fn stage(&self, items: &[Bytes]);
    /// The list is complete: what it did not have is gone.
    fn commit(&self);
    /// Takes in a change; returns the object's resource version.
    fn apply(&self, kind: EventKind, object: &Bytes) -> String;
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMeta,
}

#[derive(Deserialize)]
struct BookmarkMeta {
    #[serde(rename = "resourceVersion")]
    resource_version: String,
}

/// Keeps `sink` in step with the server until cancelled.
pub async fn run(
    client: Client,
    source: Source,
    sink: Arc<dyn Sink>,
    random: Arc<dyn Random>,
    cancel: CancellationToken,
) {
    let mut machine = Machine::default();
    let work = async {
        loop {
            let outcome = match machine.next() {
                Step::List { at } => list(&client, &source, &*sink, at).await.map(|version| {
                    machine.listed(version);
                    Duration::ZERO
                }),
                Step::Watch { from } => {
                    let seconds = WATCH_SECONDS_MIN + random.below(u64::from(WATCH_SECONDS_MIN)) as u32;
                    watch(&client, &source, &*sink, from, seconds, &mut machine)
                        .await
                        .map(|()| machine.watch_ended())
                }
            };
            let pause = outcome.unwrap_or_else(|error| {
                let pause = machine.failed(error.is_expired());
                tracing::debug!(resource = %source.gvr, %error, ?pause, "list or watch failed");
                // Up to half more, so that many informers do not come back in step.
                pause + Duration::from_micros(random.below(pause.as_micros() as u64 / 2))
            });
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = work => {}
    }
}

async fn list(client: &Client, source: &Source, sink: &dyn Sink, at: &str) -> client::Result<String> {
    let params = ListParams {
        label_selector: source.label_selector.clone(),
        field_selector: source.field_selector.clone(),
        resource_version: at.to_owned(),
        metadata_only: source.metadata_only,
        ..Default::default()
    };
    let list = client.list(&source.gvr, &source.namespace, &params).await?;
    for batch in list.items.chunks(DECODE_BATCH) {
        sink.stage(batch);
        tokio::task::yield_now().await;
    }
    sink.commit();
    Ok(list.resource_version)
}

async fn watch(
    client: &Client,
    source: &Source,
    sink: &dyn Sink,
    from: String,
    timeout_seconds: u32,
    machine: &mut Machine,
) -> client::Result<()> {
    let params = WatchParams {
        label_selector: source.label_selector.clone(),
        field_selector: source.field_selector.clone(),
        resource_version: from,
        bookmarks: true,
        timeout_seconds,
        metadata_only: source.metadata_only,
        ..Default::default()
    };
    let mut events = client.watch(&source.gvr, &source.namespace, &params).await?;
    while let Some(event) = events.next().await {
        let event = event?;
        if event.kind == EventKind::Bookmark {
            let bookmark: Bookmark = serde_json::from_slice(&event.object)?;
            machine.progressed(&bookmark.metadata.resource_version);
        } else {
            machine.progressed(&sink.apply(event.kind, &event.object));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch_from(version: &str) -> Step {
        Step::Watch { from: version.into() }
    }

    #[test]
    fn lists_then_watches_from_there() {
        let mut m = Machine::default();
        assert_eq!(m.next(), Step::List { at: "0" });
        m.listed("5".into());
        assert_eq!(m.next(), watch_from("5"));
        m.progressed("9");
        assert_eq!(m.watch_ended(), Duration::ZERO);
        assert_eq!(m.next(), watch_from("9"));
    }

    #[test]
    fn too_old_lists_again_at_once_but_does_not_spin() {
        let mut m = Machine::default();
        m.listed("5".into());
        assert_eq!(m.failed(true), Duration::ZERO);
        assert_eq!(m.next(), Step::List { at: "" });
        assert!(m.failed(true) > Duration::ZERO);
    }

    #[test]
    fn failures_back_off_and_progress_forgives() {
        let mut m = Machine::default();
        m.listed("5".into());
        let pauses: Vec<_> = (0..3).map(|_| m.failed(false).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400]);
        assert_eq!(m.next(), watch_from("5"), "a broken connection does not lose the place");
        m.progressed("6");
        assert_eq!(m.failed(false).as_millis(), 100);
        assert!(m.watch_ended() > Duration::ZERO, "an empty watch must not spin");
    }
}
