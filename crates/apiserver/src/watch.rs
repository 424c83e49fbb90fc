//! Watches: a stream of JSON lines that ends with the client, the timeout, or the server.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use meta::{Object, Status};
use registry::cache::{Change, Seen, Watch, watch_frame};
use registry::table::{self, IncludeObject};
use registry::{ResourceDef, ResourceTable};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::body::{Answer, BoxError};
use crate::negotiate::{Media, Shape};
use crate::server::Server;
use crate::verbs::Call;

/// Time between bookmarks.
const BOOKMARK_EVERY: Duration = Duration::from_secs(55);
/// Events joined into one write while they are there.
const JOINED_MAX: usize = 128;
/// Marks the bookmark behind the initial events (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

struct Stream {
    watch: Watch,
    initial: VecDeque<Arc<Object>>,
    /// A bookmark is owed once the initial events are out.
    initial_bookmark: bool,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    shape: Shape,
    media: Media,
    include: IncludeObject,
    table: Arc<ResourceTable>,
    gvr: (Box<str>, Box<str>, Box<str>),
    columns_sent: bool,
    server: Server,
    counted: crate::metrics::OpenWatch,
}

impl Stream {
    fn def(&self) -> Option<&Arc<ResourceDef>> {
        self.table.find(&self.gvr.0, &self.gvr.1, &self.gvr.2)
    }

    /// One event in the form of this stream.
    fn frame(&self, event: &str, object: &[u8]) -> Bytes {
        match self.media {
            Media::Protobuf => {
                let object = crate::transcode::protobuf(object).unwrap_or_default();
                schema::encode::watch_frame(event, &object).into()
            }
            _ => watch_frame(event, object),
        }
    }

    async fn frame_of(&mut self, seen: &Seen) -> Bytes {
        self.counted.sent(1);
        let object = seen.event.object.clone();
        if !self.watch.late.is_everything() {
            // What an object is to this watcher depends on fields of the version it watches.
            let before = match seen.event.previous.as_ref().filter(|_| seen.change != Change::Added) {
                Some(previous) => self.selects(previous.clone()).await,
                None => false,
            };
            let now = seen.change != Change::Deleted && self.selects(object.clone()).await;
            let change = match (before, now) {
                (false, true) => Change::Added,
                (true, true) => Change::Modified,
                (true, false) => Change::Deleted,
                (false, false) => return Bytes::new(),
            };
            return self.shaped(change, &object).await;
        }
        if self.passes(&object) {
            return match self.media {
                Media::Protobuf => seen.encoded(|| self.frame(seen.change.as_str(), &object.bytes)),
                _ => seen.frame(),
            };
        }
        self.shaped(seen.change, &object).await
    }

    /// Whether an object has the fields that are judged after conversion.
    async fn selects(&self, object: Arc<Object>) -> bool {
        let Some(def) = self.def() else { return false };
        // What cannot be converted is shown: the failure is then told.
        let selected = registry::convert::selected(def, &self.watch.late, &[object]).await;
        selected.map_or(true, |s| s.first().copied().unwrap_or(true))
    }

    async fn added(&mut self, object: &Arc<Object>) -> Bytes {
        self.counted.sent(1);
        if !self.watch.late.is_everything() && !self.selects(object.clone()).await {
            return Bytes::new();
        }
        if self.passes(object) {
            return self.frame(Change::Added.as_str(), &object.bytes);
        }
        self.shaped(Change::Added, object).await
    }

    /// Whether an object's bytes go out as they are.
    fn passes(&self, object: &Object) -> bool {
        self.shape == Shape::Object
            && self.def().is_some_and(|d| registry::convert::shows_as_is(d, &object.bytes))
    }

    async fn shaped(&mut self, change: Change, object: &Object) -> Bytes {
        let Some(def) = self.def().cloned() else { return Bytes::new() };
        let bytes = match registry::convert::shown(&def, object.bytes.clone()).await {
            Ok(bytes) => bytes,
            Err(status) => return watch_frame("ERROR", status.to_json().to_string().as_bytes()),
        };
        let tree = || serde_json::from_slice::<Value>(&bytes).unwrap_or_default();
        let value = match self.shape {
            Shape::Table => {
                let row = table::row(&def, tree(), self.include, self.server.registry.clock().now());
                let columns = (!self.columns_sent).then(|| table::column_definitions(&def));
                self.columns_sent = true;
                table::table(columns, vec![row], json!({"resourceVersion": object.revision.to_string()}))
            }
            Shape::Partial => table::partial(tree()),
            _ => return self.frame(change.as_str(), &bytes),
        };
        self.frame(change.as_str(), value.to_string().as_bytes())
    }

    fn bookmark(&self, revision: u64, end_of_initial: bool) -> Bytes {
        let Some(def) = self.def() else { return Bytes::new() };
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if end_of_initial {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let value = match self.shape {
            Shape::Table => {
                let object = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
                let row = json!({"cells": vec![Value::Null; def.columns.len()], "object": object});
                table::table(None, vec![row], json!({"resourceVersion": revision.to_string()}))
            }
            Shape::Partial => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            _ => json!({"kind": &*def.kind, "apiVersion": def.api_version(), "metadata": metadata}),
        };
        self.frame("BOOKMARK", value.to_string().as_bytes())
    }

    /// The next piece of the stream; `None` ends it.
    async fn next(&mut self) -> Option<Bytes> {
        if !self.initial.is_empty() {
            let mut out = BytesMut::new();
            for _ in 0..JOINED_MAX {
                let Some(object) = self.initial.pop_front() else { break };
                let frame = self.added(&object).await;
                out.extend_from_slice(&frame);
            }
            return Some(out.freeze());
        }
        if std::mem::take(&mut self.initial_bookmark) {
            return Some(self.bookmark(self.watch.revision, true));
        }
        let shutdown = self.server.shutdown.clone();
        tokio::select! {
            biased;
            seen = self.watch.events.recv() => {
                let first = self.frame_of(&seen?).await;
                Some(self.joined(first).await)
            }
            () = shutdown.cancelled() => None,
            () = tokio::time::sleep_until(self.deadline) => None,
            () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                // Read before looking for events: what it counts is then certainly delivered.
                let revision = self.server.registry.cacher().applied();
                match self.watch.events.try_recv() {
                    Ok(seen) => {
                        let first = self.frame_of(&seen).await;
                        Some(self.joined(first).await)
                    }
                    Err(_) => Some(self.bookmark(revision, false)),
                }
            }
        }
    }

    /// Adds the events that are already there to one write.
    async fn joined(&mut self, first: Bytes) -> Bytes {
        let Ok(second) = self.watch.events.try_recv() else { return first };
        let mut out = BytesMut::from(&first[..]);
        let mut next = Some(second);
        for _ in 0..JOINED_MAX {
            let Some(seen) = next else { break };
            out.extend_from_slice(&self.frame_of(&seen).await);
            next = self.watch.events.try_recv().ok();
        }
        if let Some(seen) = next {
            out.extend_from_slice(&self.frame_of(&seen).await);
        }
        out.freeze()
    }
}

impl Server {
    /// GET with `watch=true`.
    pub async fn watch(&self, call: &Call<'_>) -> Result<Answer, Status> {
        let options = call.list_options()?;
        let def = call.def;
        let namespace = if def.namespaced { call.info.namespace.as_str() } else { "" };
        let wanted = call.wanted()?;
        let mut watch = self.registry.watch(def, namespace, &call.info.name, &options).await?;
        let seconds = match call.query.get("timeoutSeconds").parse::<u64>() {
            Ok(n) if n > 0 => n,
            // Up to twice the least, so that clients do not all come back at once.
            _ => {
                let least = self.limits.watch_time.as_secs().max(1);
                least + self.random.below(least)
            }
        };
        let now = Instant::now();
        let stream = Stream {
            initial: std::mem::take(&mut watch.initial).into(),
            initial_bookmark: options.send_initial_events == Some(true) && options.allow_bookmarks,
            bookmarks: options.allow_bookmarks,
            next_bookmark: now + BOOKMARK_EVERY,
            deadline: now + Duration::from_secs(seconds),
            watch,
            shape: wanted.shape,
            media: wanted.media,
            include: call.include(),
            table: self.registry.table(),
            gvr: (def.group.clone(), def.version.clone(), def.resource.clone()),
            columns_sent: false,
            counted: self.metrics.watch(call.info),
            server: self.clone(),
        };
        let frames = futures_util::stream::unfold(stream, |mut stream| async move {
            let bytes = stream.next().await?;
            Some((Ok::<_, BoxError>(Frame::data(bytes)), stream))
        });
        let mut answer = http::Response::new(StreamBody::new(frames).boxed_unsync());
        let content_type = http::HeaderValue::from_static(match wanted.media {
            Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            _ => "application/json",
        });
        answer.headers_mut().insert(http::header::CONTENT_TYPE, content_type);
        Ok(answer)
    }
}
