//! The node's HTTPS server, for the API server and whom it lets: logs, pods, metrics, statistics, and the way to exec,
//! attach and port-forward.

mod access;
pub mod logs;
mod node_logs;
mod stats;

pub use access::{Gate, Peer};
pub use stats::Rates;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use api::prelude::*;
use bytes::Bytes;
use client::{Body, body};
use cri::{ContainerState, PodSandboxFilter};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::config::ServerConfig;
use crate::observed::Observed;
use crate::spec::mark;
use streaming::{Handler, Operation, Session};

/// Connections at once: the API server multiplexes, so more are a mistake.
const CONNECTIONS_MAX: usize = 1024;

/// A server that is bound but not yet serving.
pub struct Server {
    listener: TcpListener,
    config: ServerConfig,
    agent: Arc<Agent>,
    streaming: Option<Handler>,
}

impl Server {
    /// Binds the server. `streaming` answers exec, attach and port-forward.
    pub async fn bind(
        config: ServerConfig,
        agent: Arc<Agent>,
        streaming: Option<Handler>,
    ) -> std::io::Result<Server> {
        Ok(Server { listener: TcpListener::bind(config.listen).await?, config, agent, streaming })
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `cancel`.
    pub async fn serve(self, cancel: CancellationToken) {
        let acceptor = TlsAcceptor::from(self.config.tls.clone());
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    continue;
                }
            };
            let (acceptor, peer) = (acceptor.clone(), self.config.peer.clone());
            let (agent, streaming, cancel) = (self.agent.clone(), self.streaming.clone(), cancel.clone());
            tokio::spawn(async move {
                let _place = place;
                let _ = stream.set_nodelay(true);
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first().cloned());
                let peer = Arc::new(peer(leaf.as_deref()));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (agent, streaming, peer) = (agent.clone(), streaming.clone(), peer.clone());
                    async move { Ok::<_, Infallible>(guarded(&agent, streaming.as_ref(), &peer, request).await) }
                });
                let server = auto::Builder::new(TokioExecutor::new());
                let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
                tokio::select! {
                    () = cancel.cancelled() => {}
                    outcome = connection => {
                        if let Err(error) = outcome {
                            tracing::debug!(%error, "a connection to the node's server ended");
                        }
                    }
                }
            });
        }
    }
}

/// An answer of plain text.
fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(body::full(text.into()));
    *response.status_mut() = status;
    response
}

/// An answer of JSON.
fn json(value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(body::full(Bytes::from(value.to_string())));
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// Answers whoever may ask.
async fn guarded(
    agent: &Arc<Agent>,
    streaming: Option<&Handler>,
    peer: &Peer,
    request: Request<Incoming>,
) -> Response<Body> {
    let what = (request.method(), request.uri().path(), request.headers());
    match agent.gate.judge(&agent.client, &agent.config.node_name, peer, what).await {
        Ok(()) => route(agent, streaming, request).await,
        Err(access::Refusal::Unauthorized) => text(StatusCode::UNAUTHORIZED, "Unauthorized"),
        Err(access::Refusal::Forbidden(why)) => text(StatusCode::FORBIDDEN, why),
        Err(access::Refusal::Failed(why)) => {
            tracing::warn!(why, "it could not be found out who may use the node's server");
            text(StatusCode::INTERNAL_SERVER_ERROR, "Authorization error")
        }
    }
}

/// The path decides.
async fn route(
    agent: &Arc<Agent>,
    streaming: Option<&Handler>,
    request: Request<Incoming>,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let debugging = ["exec", "attach", "portForward", "containerLogs", "runningpods", "logs"];
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    if !agent.config.debugging_handlers && debugging.contains(&first) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n");
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    match parts[..] {
        ["healthz"] if reading => text(StatusCode::OK, "ok"),
        ["pods"] if reading => json(&pods(agent)),
        ["runningpods"] if reading => match running_pods(agent).await {
            Ok(list) => json(&list),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        ["logs", ..] if reading => {
            if !agent.config.system_logs {
                return text(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n");
            }
            let name = path.trim_start_matches('/').strip_prefix("logs").unwrap_or_default();
            let name = logs::decode(name.trim_start_matches('/').trim_end_matches('/'));
            let query = request.uri().query().unwrap_or_default();
            node_logs::serve(&name, query, agent.config.system_log_query).await
        }
        ["debug", "flags", "v"] => verbosity(agent, request).await,
        ["configz"] if reading => json(&crate::configuration::effective(&agent.config)),
        ["metrics"] if reading => stats::metrics(agent).await,
        ["metrics", "resource"] if reading => stats::resource_metrics(agent).await,
        ["metrics", "cadvisor"] if reading => stats::container_metrics(agent).await,
        ["metrics", "probes"] if reading => stats::probe_metrics(agent),
        ["stats", "summary"] => stats::summary(agent, request.uri().query().unwrap_or_default()).await,
        ["checkpoint", namespace, pod, container] if *request.method() == Method::POST => {
            let query = request.uri().query().unwrap_or_default();
            checkpoint(agent, namespace, pod, container, query)
        }
        ["containerLogs", namespace, pod, container] if reading => {
            container_logs(agent, namespace, pod, container, request.uri().query().unwrap_or_default()).await
        }
        ["exec", namespace, pod, container] => {
            stream(agent, streaming, Operation::Exec, (namespace, pod, Some(container)), request).await
        }
        ["attach", namespace, pod, container] => {
            stream(agent, streaming, Operation::Attach, (namespace, pod, Some(container)), request).await
        }
        ["portForward", namespace, pod] => {
            stream(agent, streaming, Operation::PortForward, (namespace, pod, None), request).await
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

/// Longest body of a request that sets a number.
const NUMBER_BYTES_MAX: usize = 64;

/// Sets how much is logged.
async fn verbosity(agent: &Agent, request: Request<Incoming>) -> Response<Body> {
    use http_body_util::{BodyExt, Limited};
    if *request.method() != Method::PUT {
        return text(StatusCode::NOT_ACCEPTABLE, "unsupported http method\n");
    }
    let Ok(bytes) = Limited::new(request.into_body(), NUMBER_BYTES_MAX).collect().await else {
        return text(StatusCode::BAD_REQUEST, "error reading request body\n");
    };
    let bytes = bytes.to_bytes();
    let asked = String::from_utf8_lossy(&bytes);
    let level =
        asked.parse::<i32>().map_err(|_| format!("strconv.ParseInt: parsing {asked:?}: invalid syntax"));
    let set = match (&agent.config.verbosity, level) {
        (_, Err(why)) => Err(why),
        (Some(set), Ok(level)) => set(level),
        (None, Ok(_)) => Err("this kubelet's log level is its caller's".into()),
    };
    match set {
        Ok(()) => text(StatusCode::OK, format!("successfully set klog.logging.verbosity to {asked}")),
        Err(why) => {
            let message = format!("failed set klog.logging.verbosity {asked}: {why}\n");
            text(StatusCode::BAD_REQUEST, message)
        }
    }
}

/// No runtime of Ferry's can write a container down: after the checks of upstream's the answer is its.
fn checkpoint(agent: &Agent, namespace: &str, name: &str, container: &str, query: &str) -> Response<Body> {
    let Some(pod) = find_pod(agent, namespace, name) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    if crate::spec::find(&pod, container).is_none() {
        return text(StatusCode::NOT_FOUND, format!("container {container} does not exist"));
    }
    // The last one counts.
    let timeout = query.split('&').rev().find_map(|pair| match pair.split_once('=') {
        Some(("timeout", value)) => Some(value),
        None if pair == "timeout" => Some(""),
        _ => None,
    });
    if timeout.is_some_and(|text| text.parse::<i64>().is_err()) {
        return text(StatusCode::NOT_FOUND, "cannot parse value of timeout parameter");
    }
    let why = "rpc error: code = Unimplemented desc = method CheckpointContainer not implemented";
    let message = format!("checkpointing of {namespace}/{name}/{container} failed ({why})");
    text(StatusCode::INTERNAL_SERVER_ERROR, message)
}

/// The pods that the runtime runs, as far as it knows them.
async fn running_pods(agent: &Agent) -> cri::Result<serde_json::Value> {
    let running = cri::ContainerFilter { state: Some(ContainerState::Running), ..Default::default() };
    let every = PodSandboxFilter::default();
    let (sandboxes, containers) =
        tokio::try_join!(agent.runtime.list_pod_sandboxes(&every), agent.runtime.list_containers(&running))?;
    let items: Vec<_> = sandboxes
        .iter()
        .filter(|sandbox| sandbox.state == cri::PodSandboxState::Ready)
        .map(|sandbox| {
            let own = containers.iter().filter(|container| container.sandbox_id == sandbox.id);
            let own: Vec<_> = own
                .map(|c| serde_json::json!({"name": c.name, "image": c.image_id, "resources": {}}))
                .collect();
            serde_json::json!({"metadata": {"name": sandbox.name, "namespace": sandbox.namespace,
                "uid": sandbox.uid}, "spec": {"containers": own}, "status": {}})
        })
        .collect();
    Ok(serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// The pods of this node as a list.
fn pods(agent: &Agent) -> serde_json::Value {
    let workers = agent.workers.0.lock();
    let items: Vec<_> = workers.values().map(|handle| handle.desired.borrow().pod.encode()).collect();
    serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// The pod of this name.
fn find_pod(agent: &Agent, namespace: &str, name: &str) -> Option<Arc<Pod>> {
    let workers = agent.workers.0.lock();
    let pods = workers.values().map(|handle| handle.desired.borrow().pod.clone());
    // Of a pod and its successor of the same name the one that is not being deleted is meant.
    pods.filter(|pod| pod.namespace() == namespace && pod.name() == name)
        .min_by_key(|pod| pod.is_terminating())
}

async fn observe(agent: &Agent, pod: &Pod) -> cri::Result<Observed> {
    let labels: std::collections::BTreeMap<_, _> = [(mark::POD_UID.to_owned(), pod.uid().to_owned())].into();
    let sandboxes = PodSandboxFilter { labels: labels.clone(), ..PodSandboxFilter::default() };
    let containers = cri::ContainerFilter { labels, ..cri::ContainerFilter::default() };
    let (sandboxes, containers) = tokio::try_join!(
        agent.runtime.list_pod_sandboxes(&sandboxes),
        agent.runtime.list_containers(&containers)
    )?;
    Ok(Observed::new(sandboxes, containers))
}

async fn container_logs(
    agent: &Agent,
    namespace: &str,
    name: &str,
    container: &str,
    query: &str,
) -> Response<Body> {
    let Some(pod) = find_pod(agent, namespace, name) else {
        return text(StatusCode::NOT_FOUND, format!("pod {name:?} does not exist"));
    };
    if crate::spec::find(&pod, container).is_none() {
        let message = format!("container {container:?} not found in pod {name:?}");
        return text(StatusCode::NOT_FOUND, message);
    }
    let options = match logs::Options::parse(query) {
        Ok(options) => options,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let observed = match observe(agent, &pod).await {
        Ok(observed) => observed,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let wanted = if options.previous { observed.previous(container) } else { observed.latest(container) };
    let Some(status) = wanted else {
        let message = match options.previous {
            true => format!("previous terminated container {container:?} in pod {name:?} not found"),
            false => format!(
                "container {container:?} in pod {name:?} is waiting to start: {}",
                waiting_reason(&pod, container)
            ),
        };
        return text(StatusCode::BAD_REQUEST, message);
    };
    let following = options.follow && status.state == ContainerState::Running;
    let ended = following.then(|| logs::Ended::new(agent.runtime.clone(), status.id.clone()));
    logs::serve(status.log_path.clone(), options, ended, agent.clock.now())
}

/// Why a container has not run, for the message of its missing log.
fn waiting_reason(pod: &Pod, container: &str) -> String {
    let status = pod.status.as_ref();
    let lists = [
        status.and_then(|s| s.container_statuses.as_ref()),
        status.and_then(|s| s.init_container_statuses.as_ref()),
    ];
    let mut all = lists.into_iter().flatten().flatten();
    let found = all.find(|status| status.name == container);
    let waiting = found.and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone());
    waiting.unwrap_or("ContainerCreating".into())
}

async fn stream(
    agent: &Arc<Agent>,
    handler: Option<&Handler>,
    operation: Operation,
    (namespace, name, container): (&str, &str, Option<&str>),
    request: Request<Incoming>,
) -> Response<Body> {
    let Some(handler) = handler else {
        return text(StatusCode::NOT_IMPLEMENTED, "streaming is not available on this node");
    };
    let Some(pod) = find_pod(agent, namespace, name) else {
        return text(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let observed = match observe(agent, &pod).await {
        Ok(observed) => observed,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let Some(sandbox) = observed.ready_sandbox() else {
        return text(StatusCode::NOT_FOUND, format!("pod not found ({:?})", format!("{name}_{namespace}")));
    };
    let mut container_id = None;
    let mut container_tty = false;
    if let Some(container) = container {
        let Some(status) = observed.latest(container).filter(|c| c.state == ContainerState::Running) else {
            return text(StatusCode::NOT_FOUND, format!("container not found ({container:?})"));
        };
        container_id = Some(status.id.clone());
        container_tty = crate::spec::find(&pod, container).is_some_and(|(_, spec)| spec.tty == Some(true));
    }
    handler(Session {
        operation,
        sandbox_id: sandbox.id.clone(),
        container_id,
        container_tty,
        runtime: agent.runtime.clone(),
        request,
    })
    .await
}
