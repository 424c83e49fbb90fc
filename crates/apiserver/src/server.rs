//! The filter chain: one function from request to answer, the same for sockets and in-process callers.
//!
//! panic guard -> authentication -> impersonation -> audit -> flow control -> authorization -> dispatch.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use auth::authenticate::Authenticator;
use auth::node::NodeGraph;
use auth::rbac::{Attributes, Decision, RbacIndex};
use auth::token::TokenSigner;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use http::{Request, header};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use meta::{Reason, Status, UserInfo};
use registry::Registry;
use stdx::Random;
use tokio_util::sync::CancellationToken;

use crate::authorize::{Authorizer, Selectors};
use crate::body::{self, Answer, Body};
use crate::chain::Admission;
use crate::flow::estimate::{self, Work};
use crate::kubelet::KubeletClient;
use crate::metrics::Metrics;
use crate::path::{Query, RequestInfo, parse};
use crate::verbs::Call;

/// The leaf certificate of the connection (DER), put among a request's extensions by the listener.
#[derive(Debug, Clone)]
pub struct PeerCertificate(pub Arc<[u8]>);

/// Writes lines of the page of metrics.
pub type MoreMetrics = Box<dyn Fn(&mut String) + Send + Sync>;

/// What the server is made of. Cheap to clone.
#[derive(Clone)]
pub struct Server(Arc<Parts>);

/// The parts of a server.
pub struct Parts {
    /// State and verbs.
    pub registry: Arc<Registry>,
    /// Who is calling.
    pub authenticator: Arc<Authenticator>,
    /// Issues ServiceAccount tokens.
    pub tokens: Arc<TokenSigner>,
    /// Roles and bindings.
    pub rbac: Arc<RbacIndex>,
    /// The authorizers, in order. They may change while the server runs.
    authorizers: arc_swap::ArcSwap<Vec<Authorizer>>,
    /// What nodes may read.
    pub nodes: Arc<NodeGraph>,
    /// The way to kubelets.
    pub kubelets: KubeletClient,
    /// Request counters.
    pub metrics: Metrics,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Ends watches and refuses new requests.
    pub shutdown: CancellationToken,
    /// Becomes true once the server has written what every cluster starts with.
    pub ready: std::sync::atomic::AtomicBool,
    /// Where clients reach it: host and port, once that is known.
    pub address: std::sync::OnceLock<String>,
    /// What others of this process have to say on the page of metrics.
    pub more_metrics: parking_lot::RwLock<Vec<MoreMetrics>>,
    /// What may run now.
    pub flow: Arc<crate::flow::Flow>,
    pub(crate) audit: Option<crate::audit::Audit>,
    pub(crate) limits: Limits,
    pub(crate) aggregate: crate::aggregate::Aggregate,
    pub(crate) front_proxy: Option<crate::aggregate::FrontProxy>,
    pub(crate) discovery: crate::discovery::Cache,
    pub(crate) quotas: crate::quota::Locks,
    pub(crate) webhooks: crate::webhook::Pool,
    pub(crate) dynamic: crate::dynamic::Dynamic,
    pub(crate) usage: crate::usage::Usage,
}

/// A server that may be gone: for those whom it keeps itself.
pub(crate) struct WeakServer(std::sync::Weak<Parts>);

impl WeakServer {
    /// The server, if it is still there.
    pub fn upgrade(&self) -> Option<Server> {
        self.0.upgrade().map(Server)
    }
}

impl std::ops::Deref for Server {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What a server is built from.
pub struct Config {
    /// Who may do what, in order; empty means nodes and roles.
    pub authorizers: Vec<Authorizer>,
    /// State and verbs.
    pub registry: Arc<Registry>,
    /// Who is calling.
    pub authenticator: Arc<Authenticator>,
    /// Issues ServiceAccount tokens.
    pub tokens: Arc<TokenSigner>,
    /// The way to kubelets.
    pub kubelets: KubeletClient,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Ends watches and refuses new requests.
    pub shutdown: CancellationToken,
    /// How much and how long.
    pub limits: Limits,
    /// What is written down about requests; `None` for nothing.
    pub audit: Option<crate::audit::Audit>,
    /// How the server shows itself to the servers of other groups; `None` if it cannot.
    pub front_proxy: Option<crate::aggregate::FrontProxy>,
}

/// How much is served at once, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests at once, all priority levels together.
    pub requests_in_flight: u64,
    /// Longest time of a request that is not long by nature.
    pub request_time: std::time::Duration,
    /// Shortest time of a watch without a limit of its own; it lasts up to twice as long.
    pub watch_time: std::time::Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // Upstream's: 400 that read and 200 that write, a minute, half an hour.
        let seconds = std::time::Duration::from_secs;
        Limits { requests_in_flight: 600, request_time: seconds(60), watch_time: seconds(1800) }
    }
}

impl Server {
    /// A server over `config`, with RBAC and the node graph following the registry.
    pub fn new(config: Config) -> Server {
        let (rbac, nodes) = (Arc::new(RbacIndex::new()), Arc::new(NodeGraph::new()));
        crate::follow::rbac(&config.registry, &rbac);
        crate::follow::nodes(&config.registry, &nodes);
        crate::follow::revocations(&config.registry, config.authenticator.revocations());
        let dynamic = crate::dynamic::Dynamic::new(&config.registry);
        Server(Arc::new(Parts {
            registry: config.registry,
            authenticator: config.authenticator,
            tokens: config.tokens,
            rbac,
            authorizers: arc_swap::ArcSwap::from_pointee(or_default(config.authorizers)),
            nodes,
            kubelets: config.kubelets,
            metrics: Metrics::default(),
            random: config.random,
            shutdown: config.shutdown,
            ready: false.into(),
            address: std::sync::OnceLock::new(),
            more_metrics: Default::default(),
            flow: Arc::new(crate::flow::Flow::new(config.limits.requests_in_flight)),
            audit: config.audit,
            limits: config.limits,
            aggregate: crate::aggregate::Aggregate::default(),
            front_proxy: config.front_proxy,
            discovery: crate::discovery::Cache::default(),
            quotas: crate::quota::Locks::default(),
            webhooks: crate::webhook::Pool::default(),
            dynamic,
            usage: crate::usage::Usage::default(),
        }))
    }

    /// The authorizers, in order.
    pub fn authorizers(&self) -> Arc<Vec<Authorizer>> {
        self.authorizers.load_full()
    }

    /// Takes other authorizers from now on; none means nodes and roles.
    pub fn authorize_by(&self, authorizers: Vec<Authorizer>) {
        self.authorizers.store(Arc::new(or_default(authorizers)));
    }

    pub(crate) fn downgrade(&self) -> WeakServer {
        WeakServer(Arc::downgrade(&self.0))
    }

    /// The admission chain.
    pub fn admission(&self) -> Admission {
        Admission::new(self.clone())
    }

    /// Answers one request. Never fails and never panics.
    ///
    /// Boxed, so that callers need not know the type of the whole chain.
    pub fn handle(&self, request: Request<Body>) -> BoxFuture<'static, Answer> {
        let server = self.clone();
        Box::pin(async move { server.guarded(request).await })
    }

    async fn guarded(&self, request: Request<Body>) -> Answer {
        let started = std::time::Instant::now();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let apply = crate::negotiate::content_type(request.headers()) == "application/apply-patch+yaml";
        let elsewhere = Arc::new(crate::metrics::Elsewhere::default());
        let chain = crate::metrics::ELSEWHERE.scope(elsewhere.clone(), self.chain(request));
        let guarded = AssertUnwindSafe(chain).catch_unwind().await;
        let (info, answer) = guarded.unwrap_or_else(|_| {
            tracing::error!(%method, path, "a handler panicked");
            (
                RequestInfo::default(),
                body::failure(&Status::internal("the handler of this request panicked; this is a bug")),
            )
        });
        let size = http_body::Body::size_hint(answer.body()).exact();
        let times = (started.elapsed(), elsewhere.total());
        self.metrics.observe(&info, apply, answer.status().as_u16(), times, size);
        answer
    }

    async fn chain(&self, mut request: Request<Body>) -> (RequestInfo, Answer) {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = parse(request.method(), request.uri().path(), &query);
        let socket = crate::websocket::Asked::take(&mut request, &info);
        let form = crate::transcode::Form::of(&request, &query);
        let id = crate::audit::id(request.headers());
        let certificate = request.extensions().get::<PeerCertificate>().filter(|_| info.verb == "watch");
        let facts = certificate.and_then(|certificate| auth::revocation::Facts::of(&certificate.0));
        let answer = match self.authenticate(&mut request).await {
            Ok(user) => Box::pin(self.recorded(request, &info, &query, user, &id)).await,
            Err(status) => {
                if let Some(audit) = &self.audit {
                    audit.refused(self, &request, &info, &id, &status);
                }
                body::failure(&status)
            }
        };
        let mut answer = crate::transcode::finish(answer, form).await;
        answer.headers_mut().insert("audit-id", id);
        if let Some(facts) = facts {
            // Who is no longer accepted sees nothing more either.
            let revocations = self.authenticator.revocations().clone();
            answer = answer.map(|body| {
                let frames = BodyStream::new(body);
                let ended = async move { revocations.revoked(&facts).await };
                StreamBody::new(frames.take_until(Box::pin(ended))).boxed_unsync()
            });
        }
        if let Some(socket) = socket {
            answer = socket.answer(answer);
        }
        (info, answer)
    }

    /// Answers a request and writes down what the audit policy wants.
    async fn recorded(
        &self,
        request: Request<Body>,
        info: &RequestInfo,
        query: &Query,
        user: UserInfo,
        id: &http::HeaderValue,
    ) -> Answer {
        let record = self.audit.as_ref().and_then(|audit| audit.received(self, &request, info, &user, id));
        let Some(record) = record else { return self.limited(request, info, query, user).await };
        if !record.settle().await {
            // As upstream words it, and not as a Status.
            let uri = request.uri().path_and_query().map_or("/", |p| p.as_str());
            let why = format!("Internal Server Error: {uri:?}: failed to store audit event\n");
            return record.complete(body::text(500, why)).await;
        }
        let request = match record.with_body(request).await {
            Ok(request) => request,
            Err(status) => return record.complete(body::failure(&status)).await,
        };
        let run = self.limited(request, info, query, user);
        let answer = crate::audit::TRAIL.scope(record.trail(), run).await;
        record.complete(answer).await
    }

    /// Answers a request when flow control lets it run, within its time.
    async fn limited(
        &self,
        request: Request<Body>,
        info: &RequestInfo,
        query: &Query,
        user: UserInfo,
    ) -> Answer {
        let long = info.is_long_running();
        if long && info.verb != "watch" {
            return self.authorized(request, info, query, user).await;
        }
        let time = match crate::timeout::of(query, self.limits.request_time) {
            Ok(time) => time,
            Err(status) if !long => return body::failure(&status),
            Err(_) => self.limits.request_time,
        };
        let path = request.uri().path().to_owned();
        let asked = crate::flow::Asked { info, path: &path, user: &user };
        let queued = crate::metrics::elsewhere();
        let admitted = self.flow.admit(asked, |most| self.work(info, query, most)).await;
        drop(queued);
        let permit = match admitted {
            Ok(permit) => permit,
            Err(refused) => return refused.answer(),
        };
        let _counted = self.metrics.begin(info);
        let run = self.authorized(request, info, query, user);
        let mut answer = if long {
            run.await
        } else {
            // What was begun may still be committed: the words say so to clients.
            let late = || body::failure(&crate::timeout::exceeded());
            tokio::time::timeout(time, run).await.unwrap_or_else(|_| late())
        };
        permit.mark(&mut answer);
        answer
    }

    /// The seats a request takes.
    fn work(&self, info: &RequestInfo, query: &Query, most: u64) -> Work {
        if !info.is_resource || info.verb == "get" {
            return Work::ONE;
        }
        let table = self.registry.table();
        let Some(def) = table.find(&info.group, &info.version, &info.resource).filter(|d| d.is_stored())
        else {
            return Work::ONE;
        };
        let kind = self.registry.cacher().kind(&def.storage_prefix());
        let version = query.get("resourceVersion");
        match info.verb {
            "watch" if !query.flag("sendInitialEvents") && !matches!(version, "" | "0") => Work::ONE,
            "list" | "watch" => {
                let stored = estimate::Stored { count: kind.len() as u64, bytes_each: kind.sampled_bytes() };
                let cached = info.verb == "watch"
                    || (query.get("continue").is_empty() && query.get("resourceVersionMatch") != "Exact");
                let limit = query.get("limit").parse().unwrap_or(0);
                estimate::list(stored, limit, !info.name.is_empty(), cached, most)
            }
            // A token is no object that anybody watches.
            _ if info.subresource == "token" => Work::ONE,
            _ => estimate::write(kind.watchers(&info.namespace) as u64, most),
        }
    }

    /// Who makes the request; in-process callers say it themselves.
    async fn authenticate(&self, request: &mut Request<Body>) -> Result<UserInfo, Status> {
        let known = request.extensions_mut().remove::<UserInfo>();
        let user = match known.or_else(|| proxied(&self.authenticator, request)) {
            Some(user) => user,
            None => {
                let bearer = bearer_token(request);
                let certificate = request.extensions().get::<PeerCertificate>().map(|c| c.0.clone());
                let path = request.uri().path().to_owned();
                self.authenticator.authenticate(bearer.as_deref(), certificate.as_deref(), &path).await?
            }
        };
        let acting = self.impersonate(request.headers(), user.clone()).await?;
        if acting != user {
            request.extensions_mut().insert(crate::audit::RealUser(user));
        }
        Ok(acting)
    }

    async fn authorized(
        &self,
        request: Request<Body>,
        info: &RequestInfo,
        query: &Query,
        user: UserInfo,
    ) -> Answer {
        let path = request.uri().path().to_owned();
        let selectors = Selectors::of(info, query);
        let attributes = Attributes {
            field_selector: selectors.fields.as_ref(),
            label_selector: selectors.labels.as_ref(),
            ..attributes(info, &user, &path)
        };
        match self.authorize(&attributes).await {
            Decision::Allow(reason) => crate::audit::authorized(true, &reason),
            Decision::NoOpinion(reason) | Decision::Deny(reason) => {
                crate::audit::authorized(false, &reason);
                return body::failure(&attributes.forbidden(&reason));
            }
        }
        if let Some(remote) = self.aggregate.of_path(&path) {
            return crate::aggregate::forward(self, &remote, request, &user).await;
        }
        let answered = if info.is_resource {
            let answered = self.resource(request, info, query, &user).await;
            answered.map(|mut answer| {
                body::warn(&mut answer, &deprecation(info));
                answer
            })
        } else {
            crate::endpoints::serve(self, &request, query)
        };
        answered.unwrap_or_else(|status| body::failure(&status))
    }

    /// A request for a resource, allowed already.
    async fn resource(
        &self,
        request: Request<Body>,
        info: &RequestInfo,
        query: &Query,
        user: &UserInfo,
    ) -> Result<Answer, Status> {
        let table = self.registry.table();
        let Some(def) = table.find(&info.group, &info.version, &info.resource) else {
            return Err(Status::path_not_found());
        };
        if def.namespaced && info.namespace.is_empty() && !matches!(info.verb, "list" | "watch" | "create") {
            return Err(Status::path_not_found());
        }
        if !info.subresource.is_empty() {
            return crate::subresource::serve(self, request, info, query, user, def).await;
        }
        let method = match info.verb {
            "watch" => "list",
            "create" => "post",
            "update" => "put",
            verb => verb,
        };
        // Collections and objects have methods of their own; a watch or list may be about one name.
        let misplaced = match info.verb {
            "create" => !info.name.is_empty(),
            "get" | "update" | "patch" | "delete" => info.name.is_empty(),
            _ => false,
        };
        if let Some(custom) = def.custom.as_ref().filter(|c| c.terminating && info.verb == "create") {
            let why = format!("{} not allowed while custom resource definition is terminating", info.verb);
            tracing::debug!(definition = &*custom.definition, "refused a create");
            return Err(Status { message: why, ..method_not_allowed(def) });
        }
        if misplaced || !def.serves(method) {
            return Err(method_not_allowed(def));
        }
        let answered = self.verb(request, info, query, user, def).await;
        let warning = def.custom.as_ref().and_then(|c| c.warning.as_deref());
        answered.map(|mut answer| {
            body::warn(&mut answer, &warning.map(String::from).into_iter().collect::<Vec<_>>());
            answer
        })
    }

    /// A verb on a resource that serves it.
    async fn verb(
        &self,
        request: Request<Body>,
        info: &RequestInfo,
        query: &Query,
        user: &UserInfo,
        def: &Arc<registry::ResourceDef>,
    ) -> Result<Answer, Status> {
        let (parts, body) = request.into_parts();
        let call = Call { info, query, headers: &parts.headers, user, def };
        call.wanted()?;
        match info.verb {
            "get" if &*def.group == crate::usage::GROUP => crate::usage::get(self, &call).await,
            "list" if &*def.group == crate::usage::GROUP => crate::usage::list(self, &call).await,
            "get" if !def.is_stored() => crate::reviews::component_status(self, &call),
            "list" if !def.is_stored() => crate::reviews::component_statuses(self, &call),
            "get" => self.get(&call).await,
            "list" => self.list(&call).await,
            "watch" => self.watch(&call).await,
            "create" if !def.is_stored() => {
                crate::reviews::create(self, &call, body::read(body).await?).await
            }
            "create" if def.namespaced && info.namespace.is_empty() => Err(method_not_allowed(def)),
            "create" => self.create(&call, body::read(body).await?).await,
            "update" => self.update(&call, body::read(body).await?).await,
            "patch" => self.patch(&call, body::read(body).await?).await,
            "delete" => self.delete(&call, body::read(body).await?).await,
            "deletecollection" => self.delete_collection(&call, body::read(body).await?).await,
            _ => Err(method_not_allowed(def)),
        }
    }
}

/// Resources that are served for old clients only: group, version, resource, and what clients are told.
const DEPRECATED: [(&str, &str, &str, &str); 2] = [
    ("", "v1", "componentstatuses", "v1 ComponentStatus is deprecated in v1.19+"),
    ("", "v1", "endpoints", "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
];

fn deprecation(info: &RequestInfo) -> Vec<String> {
    let asked = (&*info.group, &*info.version, &*info.resource);
    let found = DEPRECATED.iter().filter(|(g, v, r, _)| (*g, *v, *r) == asked);
    found.map(|(.., text)| (*text).to_owned()).collect()
}

/// 405 for a method that a resource does not have.
pub fn method_not_allowed(def: &registry::ResourceDef) -> Status {
    let mut status = Status::new(
        405,
        Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    );
    status.details = Some(Box::new(meta::status::Details {
        group: def.group.to_string(),
        kind: def.resource.to_string(),
        ..Default::default()
    }));
    status
}

fn or_default(authorizers: Vec<Authorizer>) -> Vec<Authorizer> {
    if authorizers.is_empty() { vec![Authorizer::Node, Authorizer::Rbac] } else { authorizers }
}

/// The caller that a proxy vouches for. Its headers are taken out: they have been understood.
fn proxied(authenticator: &Authenticator, request: &mut Request<Body>) -> Option<UserInfo> {
    let proxies = authenticator.proxies()?;
    let certificate = request.extensions().get::<PeerCertificate>()?;
    let said: Vec<(&str, &str)> = request
        .headers()
        .iter()
        .filter(|(name, _)| proxies.rules().is_about_identity(name.as_str()))
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .collect();
    let user = proxies.authenticate(&certificate.0, &said)?;
    let names: Vec<header::HeaderName> = request.headers().keys().cloned().collect();
    for name in names.iter().filter(|n| proxies.rules().is_about_identity(n.as_str())) {
        request.headers_mut().remove(name);
    }
    Some(user)
}

fn bearer_token(request: &Request<Body>) -> Option<String> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

/// What authorizers see of a request.
pub fn attributes<'a>(info: &'a RequestInfo, user: &'a UserInfo, path: &'a str) -> Attributes<'a> {
    Attributes {
        user,
        verb: info.verb,
        api_group: &info.group,
        api_version: &info.version,
        resource: &info.resource,
        subresource: &info.subresource,
        name: &info.name,
        namespace: &info.namespace,
        path,
        resource_request: info.is_resource,
        field_selector: None,
        label_selector: None,
    }
}
