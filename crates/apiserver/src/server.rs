//! The filter chain: one function from request to answer, the same for sockets and in-process callers.
//!
//! panic guard -> authentication -> impersonation -> in-flight limits -> authorization -> dispatch.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use auth::authenticate::Authenticator;
use auth::node::NodeGraph;
use auth::rbac::{Attributes, Decision, RbacIndex};
use auth::token::TokenSigner;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, header};
use meta::{Reason, Status, UserInfo};
use registry::Registry;
use stdx::Random;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::authorize::{Authorizer, Selectors};
use crate::body::{self, Answer, Body};
use crate::chain::Admission;
use crate::kubelet::KubeletClient;
use crate::metrics::Metrics;
use crate::path::{Query, RequestInfo, parse};
use crate::verbs::Call;

/// Requests that only read, at once (upstream's default).
const READS_IN_FLIGHT_MAX: usize = 400;
/// Requests that write, at once (upstream's default).
const WRITES_IN_FLIGHT_MAX: usize = 200;

/// The leaf certificate of the connection (DER), put among a request's extensions by the listener.
#[derive(Debug, Clone)]
pub struct PeerCertificate(pub Arc<[u8]>);

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
    /// The authorizers, in order.
    pub authorizers: Vec<Authorizer>,
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
    pub(crate) reads: Semaphore,
    pub(crate) writes: Semaphore,
    pub(crate) discovery: crate::discovery::Cache,
    pub(crate) quotas: crate::quota::Locks,
    pub(crate) webhooks: crate::webhook::Pool,
    pub(crate) dynamic: crate::dynamic::Dynamic,
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
}

impl Server {
    /// A server over `config`, with RBAC and the node graph following the registry.
    pub fn new(config: Config) -> Server {
        let (rbac, nodes) = (Arc::new(RbacIndex::new()), Arc::new(NodeGraph::new()));
        crate::follow::rbac(&config.registry, &rbac);
        crate::follow::nodes(&config.registry, &nodes);
        crate::follow::revocations(&config.registry, config.authenticator.revocations());
        let authorizers = match config.authorizers.is_empty() {
            true => vec![Authorizer::Node, Authorizer::Rbac],
            false => config.authorizers,
        };
        let dynamic = crate::dynamic::Dynamic::new(&config.registry);
        Server(Arc::new(Parts {
            registry: config.registry,
            authenticator: config.authenticator,
            tokens: config.tokens,
            rbac,
            authorizers,
            nodes,
            kubelets: config.kubelets,
            metrics: Metrics::default(),
            random: config.random,
            shutdown: config.shutdown,
            ready: false.into(),
            reads: Semaphore::new(READS_IN_FLIGHT_MAX),
            writes: Semaphore::new(WRITES_IN_FLIGHT_MAX),
            discovery: crate::discovery::Cache::default(),
            quotas: crate::quota::Locks::default(),
            webhooks: crate::webhook::Pool::default(),
            dynamic,
        }))
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
        let guarded = AssertUnwindSafe(self.chain(request)).catch_unwind().await;
        let (info, answer) = guarded.unwrap_or_else(|_| {
            tracing::error!(%method, path, "a handler panicked");
            (
                RequestInfo::default(),
                body::failure(&Status::internal("the handler of this request panicked; this is a bug")),
            )
        });
        self.metrics.observe(&info, answer.status().as_u16(), started.elapsed());
        answer
    }

    async fn chain(&self, mut request: Request<Body>) -> (RequestInfo, Answer) {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = parse(request.method(), request.uri().path(), &query);
        let form = crate::transcode::Form::of(&request, &query);
        let answer = match self.authenticate(&mut request).await {
            Ok(user) => self.authorized(request, &info, &query, user).await,
            Err(status) => body::failure(&status),
        };
        let answer = crate::transcode::finish(answer, form).await;
        (info, answer)
    }

    /// Who makes the request; in-process callers say it themselves.
    async fn authenticate(&self, request: &mut Request<Body>) -> Result<UserInfo, Status> {
        let user = match request.extensions_mut().remove::<UserInfo>() {
            Some(user) => user,
            None => {
                let bearer = bearer_token(request);
                let certificate = request.extensions().get::<PeerCertificate>().map(|c| c.0.clone());
                let path = request.uri().path().to_owned();
                self.authenticator.authenticate(bearer.as_deref(), certificate.as_deref(), &path).await?
            }
        };
        self.impersonate(request.headers(), user).await
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
        if let Decision::NoOpinion(reason) | Decision::Deny(reason) = self.authorize(&attributes).await {
            return body::failure(&attributes.forbidden(&reason));
        }
        let _permit = match self.permit(info) {
            Ok(permit) => permit,
            Err(status) => return body::failure(&status),
        };
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

    /// A place among the requests in flight. Long-running requests need none.
    fn permit(&self, info: &RequestInfo) -> Result<Option<tokio::sync::SemaphorePermit<'_>>, Status> {
        let long = info.verb == "watch"
            || matches!(info.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy");
        if long || !info.is_resource {
            return Ok(None);
        }
        let pool = if matches!(info.verb, "get" | "list") { &self.reads } else { &self.writes };
        pool.try_acquire().map(Some).map_err(|_| {
            let mut status = Status::new(
                429,
                Reason::TooManyRequests,
                "The server has received too many requests and has asked us to try again later",
            );
            status.details =
                Some(Box::new(meta::status::Details { retry_after_seconds: 1, ..Default::default() }));
            status
        })
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
        def: &registry::ResourceDef,
    ) -> Result<Answer, Status> {
        let (parts, body) = request.into_parts();
        let call = Call { info, query, headers: &parts.headers, user, def };
        call.wanted()?;
        match info.verb {
            "get" if !def.is_stored() => crate::reviews::component_status(&info.name),
            "list" if !def.is_stored() => Ok(crate::reviews::component_statuses()),
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
