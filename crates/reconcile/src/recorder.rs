//! Events (core/v1): components say what happened to an object; one task per process writes it down.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use api::prelude::*;
use client::{Client, Patch};
use serde_json::json;
use stdx::Clock;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::correlate::{Correlator, Observation, Write};

/// Observations waiting to be written; more are dropped, as events are a courtesy and must never hold up
/// those who report them.
const QUEUE_MAX: usize = 1000;
/// Writes in flight at once: events must not crowd out the work they tell of.
const WRITES_MAX: usize = 8;

/// Type of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// Information.
    Normal,
    /// Something may be wrong.
    Warning,
}

/// What an event is about: a reference to `object`.
pub fn object_reference<T: Typed>(object: &T) -> ObjectReference {
    let present = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
    ObjectReference {
        api_version: Some(T::GVK.api_version()),
        kind: Some(T::GVK.kind.into_owned()),
        namespace: present(object.namespace()),
        name: present(object.name()),
        uid: present(object.uid()),
        resource_version: present(object.resource_version()),
        field_path: None,
    }
}

/// The writing end, shared by every recorder of a process.
#[derive(Clone)]
pub struct EventSink(mpsc::Sender<(Client, Observation)>);

impl EventSink {
    /// Starts the task that writes. Needs a tokio runtime.
    pub fn start(clock: Arc<dyn Clock>, cancel: CancellationToken) -> EventSink {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = write_all(receiver, clock) => {}
            }
        });
        EventSink(sender)
    }

    /// A recorder for `component` on `host` (empty for components that run anywhere), writing as `client`.
    pub fn recorder(&self, client: Client, component: &str, host: &str) -> Recorder {
        Recorder { sink: self.clone(), client, component: component.into(), host: host.into() }
    }
}

/// Records events of one component.
#[derive(Clone)]
pub struct Recorder {
    sink: EventSink,
    client: Client,
    component: Arc<str>,
    host: Arc<str>,
}

impl Recorder {
    /// Records that something happened to `object`. Never waits.
    pub fn record(&self, object: ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        self.annotated(object, kind, reason, message, BTreeMap::new());
    }

    /// The same with annotations, for programs.
    pub fn annotated(
        &self,
        object: ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
        annotations: BTreeMap<String, String>,
    ) {
        let observation = Observation {
            object,
            kind: match kind {
                EventType::Normal => "Normal",
                EventType::Warning => "Warning",
            },
            reason: reason.into(),
            message: message.into(),
            component: self.component.to_string(),
            host: self.host.to_string(),
            annotations,
        };
        if self.sink.0.try_send((self.client.clone(), observation)).is_err() {
            tracing::debug!(reason, "an event was dropped: too many are waiting");
        }
    }

    /// Records a `Normal` event about `object`.
    pub fn normal<T: Typed>(&self, object: &T, reason: &str, message: impl Into<String>) {
        self.record(object_reference(object), EventType::Normal, reason, message);
    }

    /// Records a `Warning` event about `object`.
    pub fn warning<T: Typed>(&self, object: &T, reason: &str, message: impl Into<String>) {
        self.record(object_reference(object), EventType::Warning, reason, message);
    }
}

/// Writes what comes in, some at once; writes of one event stay in order.
async fn write_all(mut receiver: mpsc::Receiver<(Client, Observation)>, clock: Arc<dyn Clock>) {
    let mut correlator = Correlator::default();
    let mut writes: JoinSet<String> = JoinSet::new();
    let mut in_flight: HashSet<String> = HashSet::new();
    while let Some((client, observation)) = receiver.recv().await {
        let write = correlator.observe(observation, clock.now());
        let (Write::Create(event) | Write::Count(event)) = &write else { continue };
        let key = event.key();
        while writes.len() >= WRITES_MAX || in_flight.contains(&key) {
            match writes.join_next().await {
                Some(Ok(done)) => drop(in_flight.remove(&done)),
                // A write that panicked no longer runs; which one it was is not known.
                Some(Err(_)) | None => in_flight.clear(),
            }
        }
        in_flight.insert(key.clone());
        writes.spawn(async move {
            put(&client, write).await;
            key
        });
    }
}

async fn put(client: &Client, write: Write) {
    let outcome = match write {
        Write::Drop => return,
        Write::Create(event) => client.create_typed(&*event).await.map(drop),
        Write::Count(event) => match count(client, &event).await {
            // It has expired: write it anew, keeping the count.
            Err(error) if error.is_not_found() => client.create_typed(&*event).await.map(drop),
            outcome => outcome,
        },
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "an event could not be written");
    }
}

async fn count(client: &Client, event: &Event) -> client::Result<()> {
    let patch = Patch::Merge(json!({
        "count": event.count,
        "lastTimestamp": event.last_timestamp,
        "message": event.message,
    }));
    client.patch(&Event::GVR, event.namespace(), event.name(), "", &patch).await.map(drop)
}
