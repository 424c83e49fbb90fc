//! Audit: who did what and when, as the policy wants it.
//!
//! A [`Record`] follows one request: written at its arrival, when a long answer begins, and at the end, whichever
//! way it ends. Sinks take events without waiting; what they cannot take is counted as dropped.

pub mod log;
pub mod policy;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::BodyExt;
use meta::{Status, UserInfo};
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::policy::{Decision, Level, Policy, Stage};
use crate::body::{self, Answer, Body, BoxError};
use crate::negotiate;
use crate::path::RequestInfo;
use crate::server::Server;

/// Longest `Audit-ID` taken from a client (upstream's limit).
const ID_MAX: usize = 64;
/// Longest user agent written down (upstream's limit).
const AGENT_MAX: usize = 1024;
/// Largest answer written down; larger ones show without their object.
const ANSWER_BYTES_MAX: usize = 10 << 20;
/// Most annotations of one event.
const ANNOTATIONS_MAX: usize = 64;

/// Address of the peer, among a request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddress(pub IpAddr);

/// Who really asks, among the extensions of a request that impersonates somebody.
#[derive(Debug, Clone)]
pub struct RealUser(pub UserInfo);

/// What the steps of the chain say of a request for its record.
pub type Trail = Arc<Mutex<BTreeMap<String, String>>>;

tokio::task_local! {
    /// The trail of the request at hand.
    pub static TRAIL: Trail;
}

/// Adds an annotation to the record of the request at hand, if there is one.
pub fn annotate(key: &str, value: &str) {
    let _ = TRAIL.try_with(|trail| {
        let mut trail = trail.lock();
        if trail.len() < ANNOTATIONS_MAX {
            trail.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        }
    });
}

/// Says how authorization decided.
pub fn authorized(allowed: bool, reason: &str) {
    annotate("authorization.k8s.io/decision", if allowed { "allow" } else { "forbid" });
    annotate("authorization.k8s.io/reason", reason);
}

/// Takes events.
pub trait Sink: Send + Sync {
    /// Takes an event in JSON without waiting; whether it could.
    fn write(&self, event: &Bytes) -> bool;

    /// Takes an event while the request waits; whether it could. `None` for sinks that nobody waits for.
    fn deliver<'a>(&'a self, _event: &'a Bytes) -> Option<BoxFuture<'a, bool>> {
        None
    }

    /// Whether a request whose arrival cannot be told is refused.
    fn is_strict(&self) -> bool {
        false
    }

    /// Whether requests wait for this sink.
    fn blocks(&self) -> bool {
        false
    }
}

/// An event and a sink that has not got it yet.
type Owed = (Arc<dyn Sink>, Bytes);

/// A policy and where its events go.
pub struct Audit {
    policy: Policy,
    sinks: Vec<Arc<dyn Sink>>,
}

/// The request's id: the client's, or a new one.
pub fn id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get("audit-id").filter(|v| !v.is_empty() && v.len() <= ID_MAX && v.to_str().is_ok());
    given.cloned().unwrap_or_else(|| {
        let id = uuid::Uuid::new_v4().to_string();
        HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static(""))
    })
}

fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
}

/// Where a request comes from: what proxies say, then the peer.
fn sources(request: &Request<Body>) -> Vec<String> {
    let headers = request.headers();
    let forwarded = text(headers, "x-forwarded-for");
    let mut all: Vec<String> =
        forwarded.split(',').filter_map(|a| a.trim().parse::<IpAddr>().ok()).map(|a| a.to_string()).collect();
    let others = [
        text(headers, "x-real-ip").trim().parse::<IpAddr>().ok(),
        request.extensions().get::<PeerAddress>().map(|p| p.0),
    ];
    for address in others.into_iter().flatten().map(|a| a.to_string()) {
        if all.last() != Some(&address) {
            all.push(address);
        }
    }
    if all.is_empty() {
        // The server's own parts ask in-process.
        all.push("127.0.0.1".into());
    }
    all
}

/// What every event of a request says.
fn base(
    server: &Server,
    request: &Request<Body>,
    info: &RequestInfo,
    id: &HeaderValue,
    level: Level,
) -> Value {
    let uri = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let now = schema::time::micros(server.registry.clock().now());
    let agent: String = text(request.headers(), "user-agent").chars().take(AGENT_MAX).collect();
    let mut event = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": level.as_str(),
        "auditID": id.to_str().unwrap_or_default(), "requestURI": uri, "verb": info.verb,
        "user": {}, "sourceIPs": sources(request), "requestReceivedTimestamp": now,
    });
    if !agent.is_empty() {
        event["userAgent"] = agent.into();
    }
    if info.is_resource {
        let mut object = json!({"resource": info.resource, "apiVersion": info.version});
        let parts = [
            ("namespace", &info.namespace),
            ("name", &info.name),
            ("apiGroup", &info.group),
            ("subresource", &info.subresource),
        ];
        for (key, value) in parts.into_iter().filter(|(_, v)| !v.is_empty()) {
            object[key] = value.as_str().into();
        }
        event["objectRef"] = object;
    }
    event
}

impl Audit {
    /// Writes down what `policy` wants into all `sinks`.
    pub fn new(policy: Policy, sinks: Vec<Arc<dyn Sink>>) -> Audit {
        Audit { policy, sinks }
    }

    /// Gives an event to the sinks; to those that requests wait for only if nobody waits, else it is `owed` to them.
    fn write(&self, server: &Server, event: &Value, mut owed: Option<&mut Vec<Owed>>) {
        let bytes = Bytes::from(event.to_string());
        server.metrics.audit_events.fetch_add(1, Ordering::Relaxed);
        for sink in &self.sinks {
            match &mut owed {
                Some(owed) if sink.blocks() => owed.push((sink.clone(), bytes.clone())),
                _ if sink.write(&bytes) => {}
                _ => drop(server.metrics.audit_dropped.fetch_add(1, Ordering::Relaxed)),
            }
        }
    }

    /// A request whose sender is not known.
    pub fn refused(
        &self,
        server: &Server,
        request: &Request<Body>,
        info: &RequestInfo,
        id: &HeaderValue,
        why: &Status,
    ) {
        let Some(decision) = self.policy.decide(None, info, request.uri().path()) else { return };
        if decision.omit.contains(&Stage::ResponseStarted) {
            return;
        }
        let mut event = base(server, request, info, id, decision.level);
        event["stage"] = Stage::ResponseStarted.as_str().into();
        event["stageTimestamp"] = event["requestReceivedTimestamp"].clone();
        event["responseStatus"] = json!({"metadata": {}, "status": "Failure", "reason": "Unauthorized",
            "message": format!("Authentication failed, attempted: {}", attempted(request.headers())), "code": why.code});
        self.write(server, &event, None);
    }

    /// A request has arrived. `None` if nothing is to be written down about it.
    pub fn received(
        &self,
        server: &Server,
        request: &Request<Body>,
        info: &RequestInfo,
        user: &UserInfo,
        id: &HeaderValue,
    ) -> Option<Arc<Record>> {
        let real = request.extensions().get::<RealUser>().map(|r| &r.0);
        let decision = self.policy.decide(Some(real.unwrap_or(user)), info, request.uri().path())?;
        let mut event = base(server, request, info, id, decision.level);
        event["user"] = serde_json::to_value(real.unwrap_or(user)).unwrap_or_default();
        if real.is_some() {
            event["impersonatedUser"] = serde_json::to_value(user).unwrap_or_default();
        }
        let received = event["requestReceivedTimestamp"].clone();
        let record = Arc::new(Record {
            server: server.clone(),
            decision,
            event: Mutex::new(event),
            trail: Trail::default(),
            long: info.is_long_running(),
            resource: info.is_resource,
            done: AtomicBool::new(false),
            owed: Mutex::default(),
        });
        record.stage(Stage::RequestReceived, Some(received), true);
        Some(record)
    }
}

/// The kinds of credentials that a request shows.
fn attempted(headers: &HeaderMap) -> String {
    match text(headers, "authorization").split(' ').next().unwrap_or_default().to_lowercase().as_str() {
        "" => "no auth methods".into(),
        method => method.to_owned(),
    }
}

/// One request on its way.
pub struct Record {
    server: Server,
    decision: Decision,
    event: Mutex<Value>,
    trail: Trail,
    long: bool,
    resource: bool,
    done: AtomicBool,
    owed: Mutex<Vec<Owed>>,
}

impl Record {
    /// Where the chain's steps leave annotations.
    pub fn trail(&self) -> Trail {
        self.trail.clone()
    }

    /// Waits for the sinks that want requests to wait; whether the request may go on.
    pub async fn settle(&self) -> bool {
        let owed = std::mem::take(&mut *self.owed.lock());
        let mut fine = true;
        for (sink, event) in owed {
            let Some(delivery) = sink.deliver(&event) else { continue };
            if !delivery.await {
                self.server.metrics.audit_dropped.fetch_add(1, Ordering::Relaxed);
                fine &= !sink.is_strict();
            }
        }
        fine
    }

    /// Notes a stage; `waits` says whether somebody will [`Self::settle`] it.
    fn stage(&self, stage: Stage, at: Option<Value>, waits: bool) {
        if self.decision.omit.contains(&stage) {
            return;
        }
        let mut event = self.event.lock();
        let now = || schema::time::micros(self.server.registry.clock().now()).into();
        event["stage"] = stage.as_str().into();
        event["stageTimestamp"] = at.unwrap_or_else(now);
        let trail = self.trail.lock();
        if !trail.is_empty() {
            event["annotations"] = json!(*trail);
        }
        if let Some(audit) = &self.server.audit {
            audit.write(&self.server, &event, waits.then_some(&mut *self.owed.lock()));
        }
    }

    /// An object as it is written down.
    fn object(&self, bytes: &[u8]) -> Option<Value> {
        let mut value: Value = serde_json::from_slice(bytes).ok()?;
        if self.decision.omit_managed_fields {
            let forget = |object: &mut Value| {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("managedFields");
                }
            };
            forget(&mut value);
            value.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(forget);
        }
        Some(value)
    }

    /// Writes down what is sent, where the policy wants that.
    pub async fn with_body(&self, request: Request<Body>) -> Result<Request<Body>, Status> {
        if self.decision.level < Level::Request || !self.resource || self.long {
            return Ok(request);
        }
        let (parts, sent) = request.into_parts();
        let bytes = body::read(sent).await?;
        if !bytes.is_empty()
            && let Ok(json) = negotiate::body_as_json(&parts.headers, bytes.clone())
            && let Some(object) = self.object(&json)
        {
            self.event.lock()["requestObject"] = object;
        }
        Ok(Request::from_parts(parts, body::full(bytes)))
    }

    /// The answer is there: written down now, or when it ends if it is a long one.
    pub async fn complete(self: Arc<Self>, answer: Answer) -> Answer {
        let code = answer.status().as_u16();
        self.event.lock()["responseStatus"] = json!({"metadata": {}, "code": code});
        if self.long {
            self.stage(Stage::ResponseStarted, None, true);
            self.settle().await;
            let (parts, inner) = answer.into_parts();
            return Answer::from_parts(parts, Followed { inner, record: self }.boxed_unsync());
        }
        let wants_object = self.decision.level == Level::RequestResponse && self.resource;
        let answer =
            if wants_object || code >= 400 { self.with_answer(answer, wants_object).await } else { answer };
        self.end(Stage::ResponseComplete, true);
        self.settle().await;
        answer
    }

    async fn with_answer(&self, answer: Answer, wants_object: bool) -> Answer {
        let (parts, inner) = answer.into_parts();
        // Everything that is not long is made in memory or streamed from there: it cannot fail.
        let bytes = inner.collect().await.map(|c| c.to_bytes()).unwrap_or_default();
        if bytes.len() <= ANSWER_BYTES_MAX
            && let Some(object) = self.object(&bytes)
        {
            let mut event = self.event.lock();
            if object["kind"] == "Status" {
                let mut status = object.clone();
                if let Some(map) = status.as_object_mut() {
                    map.remove("kind");
                    map.remove("apiVersion");
                }
                event["responseStatus"] = status;
            }
            if wants_object {
                event["responseObject"] = object;
            }
        }
        Answer::from_parts(parts, body::full(bytes))
    }

    fn end(&self, stage: Stage, waits: bool) {
        if !self.done.swap(true, Ordering::Relaxed) {
            self.stage(stage, None, waits);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Not complete: the handler panicked, or the client went away.
        if self.done.load(Ordering::Relaxed) {
            return;
        }
        if std::thread::panicking() {
            self.event.lock()["responseStatus"] = json!({"metadata": {}, "status": "Failure", "code": 500,
                "reason": "InternalError", "message": "APIServer panic'd"});
            return self.end(Stage::Panic, false);
        }
        self.end(Stage::ResponseComplete, false);
    }
}

/// A body whose end is written down.
struct Followed {
    inner: Body,
    record: Arc<Record>,
}

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.record.end(Stage::ResponseComplete, false);
    }
}
