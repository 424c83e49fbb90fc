//! The webhook of the audit log: events go out many at a time while requests go on, or one by one while they wait.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use apiserver::audit::Sink;
use bytes::Bytes;
use clap::ValueEnum;
use client::{BoxFuture, Client, Https, Kubeconfig};
use tokio::sync::mpsc;

/// Bytes that may wait for the webhook.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Longest time of one call.
const CALL_MAX: Duration = Duration::from_secs(30);
/// Attempts to send events (upstream's).
const ATTEMPTS: u32 = 5;

/// Whether requests wait for the webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Events are collected and sent together.
    Batch,
    /// Requests wait until their events are sent; what cannot be sent is dropped.
    Blocking,
    /// The same, and a request whose arrival cannot be told fails.
    BlockingStrict,
}

/// How events are sent.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether requests wait.
    pub mode: Mode,
    /// Events that may wait.
    pub queue_max: usize,
    /// Most events sent at once.
    pub batch_max: usize,
    /// Time that a batch waits to become full.
    pub wait: Duration,
    /// Pause before the second attempt.
    pub pause: Duration,
}

/// The way to the webhook.
#[derive(Clone)]
struct Remote {
    client: Client,
    path: String,
    pause: Duration,
}

/// The sink of a webhook that a kubeconfig names. Must be called within the runtime.
pub fn webhook(kubeconfig: &Path, options: &Options) -> anyhow::Result<Arc<dyn Sink>> {
    let directory = kubeconfig.parent().unwrap_or(Path::new("."));
    let mut config = Kubeconfig::load(kubeconfig)?.https_config(None, directory)?;
    // The URL is the whole address of the webhook, not a prefix.
    let path = config.server.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let mut parts = config.server.clone().into_parts();
    parts.path_and_query = Some("/".parse()?);
    config.server = http::Uri::from_parts(parts)?;
    let client = Client::new(Arc::new(Https::new(&config)?), "kube-apiserver-audit");
    let remote = Remote { client, path, pause: options.pause };
    if options.mode != Mode::Batch {
        return Ok(Arc::new(Blocking { remote, strict: options.mode == Mode::BlockingStrict }));
    }
    let (queue, events) = mpsc::channel(options.queue_max);
    let waiting = Arc::new(AtomicUsize::new(0));
    tokio::spawn(send_all(remote, options.clone(), events, waiting.clone()));
    Ok(Arc::new(Batched { queue, waiting }))
}

/// Sends events together.
struct Batched {
    queue: mpsc::Sender<Bytes>,
    waiting: Arc<AtomicUsize>,
}

impl Sink for Batched {
    fn write(&self, event: &Bytes) -> bool {
        if self.waiting.load(Ordering::Relaxed) + event.len() > QUEUE_BYTES_MAX {
            return false;
        }
        // Counted first: it may be taken out before this goes on.
        self.waiting.fetch_add(event.len(), Ordering::Relaxed);
        let sent = self.queue.try_send(event.clone()).is_ok();
        if !sent {
            self.waiting.fetch_sub(event.len(), Ordering::Relaxed);
        }
        sent
    }
}

/// Sends events one by one, while requests wait.
struct Blocking {
    remote: Remote,
    strict: bool,
}

impl Sink for Blocking {
    /// For events of requests that nobody waits for any more.
    fn write(&self, event: &Bytes) -> bool {
        let (remote, event) = (self.remote.clone(), event.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return false };
        runtime.spawn(async move { remote.send(&[event]).await });
        true
    }

    fn deliver<'a>(&'a self, event: &'a Bytes) -> Option<BoxFuture<'a, bool>> {
        Some(Box::pin(self.remote.send(std::slice::from_ref(event))))
    }

    fn is_strict(&self) -> bool {
        self.strict
    }

    fn blocks(&self) -> bool {
        true
    }
}

async fn send_all(
    remote: Remote,
    options: Options,
    mut events: mpsc::Receiver<Bytes>,
    waiting: Arc<AtomicUsize>,
) {
    while let Some(first) = events.recv().await {
        let mut batch = vec![first];
        let fill = async {
            while batch.len() < options.batch_max {
                match events.recv().await {
                    Some(event) => batch.push(event),
                    None => return,
                }
            }
        };
        let _ = tokio::time::timeout(options.wait, fill).await;
        let size: usize = batch.iter().map(Bytes::len).sum();
        remote.send(&batch).await;
        waiting.fetch_sub(size, Ordering::Relaxed);
    }
}

/// The list that is sent.
fn list(events: &[Bytes]) -> Bytes {
    let mut body = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#.to_vec();
    for (i, event) in events.iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        body.extend_from_slice(event);
    }
    body.extend_from_slice(b"]}");
    body.into()
}

impl Remote {
    /// Sends events; what does not get through after some attempts is given up. Whether it got through.
    async fn send(&self, events: &[Bytes]) -> bool {
        let (body, mut pause) = (list(events), self.pause);
        for attempt in 1..=ATTEMPTS {
            let call = self.client.write_bytes(http::Method::POST, &self.path, body.clone());
            match tokio::time::timeout(CALL_MAX, call).await {
                Ok(Ok(_)) => return true,
                Ok(Err(error)) => {
                    tracing::warn!(%error, attempt, "the audit webhook refused events");
                    // Who understands the request and does not want it will not want it later either.
                    if error.status().is_some_and(|s| (400..500).contains(&s.code) && s.code != 429) {
                        return false;
                    }
                }
                Err(_) => tracing::warn!(attempt, "the audit webhook does not answer"),
            }
            if attempt < ATTEMPTS {
                tokio::time::sleep(pause).await;
                pause += pause / 2;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_json() {
        let both = [Bytes::from_static(br#"{"a":1}"#), Bytes::from_static(br#"{"b":2}"#)];
        let value: serde_json::Value = serde_json::from_slice(&list(&both)).unwrap();
        assert_eq!((value["kind"].as_str(), value["items"][1]["b"].as_i64()), (Some("EventList"), Some(2)));
    }

    #[tokio::test]
    async fn a_full_queue_drops() {
        let (queue, mut events) = mpsc::channel(1);
        let batched = Batched { queue, waiting: Arc::default() };
        let event = Bytes::from_static(b"{}");
        assert!(batched.write(&event) && !batched.write(&event));
        assert_eq!(batched.waiting.load(Ordering::Relaxed), 2);
        events.recv().await.unwrap();
        assert!(!batched.write(&Bytes::from(vec![0; QUEUE_BYTES_MAX + 1])));
    }
}
