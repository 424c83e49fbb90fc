//! The way to kubelets and pods: logs, exec, attach, port-forward and proxies are tunnelled, never
//! interpreted. An upgraded connection is copied byte for byte in both directions.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use meta::{Reason, Status};
use registry::ResourceDef;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::body::{Answer, Body};
use crate::path::{Query, RequestInfo};
use crate::server::Server;

/// Longest wait for a kubelet or pod to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Port of a kubelet that does not say otherwise.
const KUBELET_PORT: u16 = 10250;
/// Annotation that names the container meant when none is given.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// How to reach kubelets: the TLS configuration with the server's own client certificate, replaced when
/// that is renewed.
#[derive(Clone)]
pub struct KubeletClient(Arc<ArcSwap<ClientConfig>>);

impl KubeletClient {
    /// A client that shows what `config` holds.
    pub fn new(config: Arc<ClientConfig>) -> Self {
        KubeletClient(Arc::new(ArcSwap::new(config)))
    }

    /// Uses another configuration from now on.
    pub fn replace(&self, config: Arc<ClientConfig>) {
        self.0.store(config);
    }
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where a request goes.
struct Upstream {
    host: String,
    port: u16,
    /// Name the server's certificate must have; none for plain HTTP.
    tls_name: Option<String>,
    path: String,
}

/// Answers log, exec, attach, portforward and proxy.
pub async fn serve(
    server: &Server,
    request: Request<Body>,
    info: &RequestInfo,
    query: &Query,
    def: &ResourceDef,
) -> Result<Answer, Status> {
    let object = server
        .registry
        .get(def, if def.namespaced { &info.namespace } else { "" }, base_name(&info.name), "")
        .await?;
    let object = object.to_value();
    let raw_query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    let upstream = match (&*def.resource, info.subresource.as_str()) {
        ("pods", "proxy") => pod_target(&object, info, &raw_query)?,
        ("services", "proxy") => service_target(server, &object, info, &raw_query)?,
        ("nodes", "proxy") => {
            let path = format!("/{}{raw_query}", info.rest);
            node_target(server, &info.name, path)?
        }
        ("pods", sub) => {
            let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
            if node.is_empty() {
                return Err(Status::bad_request(format!("pod {} does not have a host assigned", info.name)));
            }
            let mut path = match sub {
                "log" => "/containerLogs",
                "exec" => "/exec",
                "attach" => "/attach",
                _ => "/portForward",
            }
            .to_owned();
            path.push_str(&format!("/{}/{}", info.namespace, info.name));
            if sub != "portforward" {
                path.push_str(&format!("/{}", container(&object, query.get("container"), &info.name)?));
            }
            node_target(server, node, path + &raw_query)?
        }
        _ => return Err(Status::path_not_found()),
    };
    let is_log = info.subresource == "log";
    let answer = forward(server, request, upstream).await?;
    if is_log && answer.status().as_u16() >= 400 { Err(refusal(answer).await) } else { Ok(answer) }
}

/// A kubelet's refusal is a sentence; clients expect a Status.
async fn refusal(answer: Answer) -> Status {
    let code = answer.status().as_u16();
    let text = match crate::body::read(answer.into_body()).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(status) => return status,
    };
    match code {
        400 => Status::bad_request(text),
        404 => Status::new(404, Reason::NotFound, text),
        _ => Status::new(code, Reason::InternalError, text),
    }
}

/// The container meant, or the reason why none can be chosen.
fn container(pod: &Value, asked: &str, pod_name: &str) -> Result<String, Status> {
    let names = |key: &str| -> Vec<String> {
        let list = pod["spec"][key].as_array();
        list.into_iter().flatten().filter_map(|c| c["name"].as_str().map(String::from)).collect()
    };
    let (regular, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if asked.is_empty() {
        if let Some(name) = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str()
            && regular.iter().any(|r| r == name)
        {
            return Ok(name.to_owned());
        }
        return match regular.as_slice() {
            [one] => Ok(one.clone()),
            many => {
                let mut message = format!(
                    "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                    many.join(" ")
                );
                if !init.is_empty() {
                    message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                Err(Status::bad_request(message))
            }
        };
    }
    if [&regular, &init, &ephemeral].iter().any(|l| l.iter().any(|n| n == asked)) {
        return Ok(asked.to_owned());
    }
    Err(Status::bad_request(format!("container {asked} is not valid for pod {pod_name}")))
}

/// `name` of `scheme:name:port`, as proxy subresources allow it.
fn base_name(name: &str) -> &str {
    match name.split(':').collect::<Vec<_>>().as_slice() {
        [_, name, _] => name,
        [name, _] => name,
        _ => name,
    }
}

/// Scheme and port of `scheme:name:port`.
fn scheme_and_port(name: &str) -> (&str, &str) {
    match name.split(':').collect::<Vec<_>>().as_slice() {
        [scheme, _, port] => (scheme, port),
        [_, port] => ("", port),
        _ => ("", ""),
    }
}

fn node_target(server: &Server, node: &str, path: String) -> Result<Upstream, Status> {
    let table = server.registry.table();
    let nodes = table.find("", "v1", "nodes").ok_or_else(Status::path_not_found)?;
    let found =
        server.registry.current(nodes, "", node).ok_or_else(|| Status::not_found("", "nodes", node))?;
    let object = found.to_value();
    let addresses = object["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let address = ["InternalIP", "Hostname", "ExternalIP"]
        .iter()
        .find_map(|ty| addresses.iter().find(|a| a["type"] == *ty))
        .and_then(|a| a["address"].as_str())
        .ok_or_else(|| {
            Status::internal(format!("no preferred addresses found; known addresses of node {node}: []"))
        })?;
    let port = object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    let port = port.and_then(|p| u16::try_from(p).ok()).unwrap_or(KUBELET_PORT);
    Ok(Upstream { host: address.to_owned(), port, tls_name: Some(address.to_owned()), path })
}

fn pod_target(pod: &Value, info: &RequestInfo, query: &str) -> Result<Upstream, Status> {
    let (scheme, port) = scheme_and_port(&info.name);
    let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
    if ip.is_empty() {
        return Err(Status::bad_request(format!(
            "address not allowed: pod {} has no IP yet",
            base_name(&info.name)
        )));
    }
    let containers = || pod["spec"]["containers"].as_array().into_iter().flatten();
    let ports = || containers().flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let number = match port {
        "" => ports().find_map(|p| p["containerPort"].as_u64()).unwrap_or(80),
        port => match port.parse::<u64>() {
            Ok(n) => n,
            Err(_) => ports()
                .find(|p| p["name"] == port)
                .and_then(|p| p["containerPort"].as_u64())
                .ok_or_else(|| Status::bad_request(format!("pod has no port named {port:?}")))?,
        },
    };
    let port = u16::try_from(number).map_err(|_| Status::bad_request("invalid port"))?;
    let tls_name = (scheme == "https").then(|| ip.to_owned());
    Ok(Upstream { host: ip.to_owned(), port, tls_name, path: format!("/{}{query}", info.rest) })
}

/// A ready endpoint of a Service.
fn service_target(
    server: &Server,
    service: &Value,
    info: &RequestInfo,
    query: &str,
) -> Result<Upstream, Status> {
    let (scheme, asked) = scheme_and_port(&info.name);
    let name = base_name(&info.name);
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let port = match asked {
        "" => ports.first(),
        asked => ports.iter().find(|p| p["name"] == asked || p["port"].as_u64() == asked.parse().ok()),
    };
    let unavailable = || Status::unavailable(format!("no endpoints available for service {name:?}"));
    let port = port.ok_or_else(unavailable)?;
    let table = server.registry.table();
    let slices = table.find("discovery.k8s.io", "v1", "endpointslices").ok_or_else(Status::path_not_found)?;
    let all = server.registry.cacher().kind(&slices.storage_prefix()).snapshot(Some(&info.namespace));
    for slice in all.iter().filter(|s| s.label("kubernetes.io/service-name") == Some(name)) {
        let slice = slice.to_value();
        let wanted = port["name"].as_str().unwrap_or_default();
        let number = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["name"].as_str().unwrap_or_default() == wanted);
        let Some(number) = number.and_then(|p| p["port"].as_u64()).and_then(|p| u16::try_from(p).ok()) else {
            continue;
        };
        let ready =
            slice["endpoints"].as_array().into_iter().flatten().find(|e| e["conditions"]["ready"] != false);
        if let Some(address) = ready.and_then(|e| e["addresses"][0].as_str()) {
            let tls_name = (scheme == "https").then(|| address.to_owned());
            return Ok(Upstream {
                host: address.into(),
                port: number,
                tls_name,
                path: format!("/{}{query}", info.rest),
            });
        }
    }
    Err(unavailable())
}

async fn connect(server: &Server, upstream: &Upstream) -> Result<Box<dyn Stream>, Status> {
    let address = format!("{}:{}", upstream.host, upstream.port);
    let failed = |e: String| {
        Status::new(
            502,
            Reason::ServiceUnavailable,
            format!("error dialing backend: dial tcp {address}: {e}"),
        )
    };
    let tcp =
        match tokio::time::timeout(CONNECT_MAX, TcpStream::connect((upstream.host.as_str(), upstream.port)))
            .await
        {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(e)) => return Err(failed(e.to_string())),
            Err(_) => return Err(failed("i/o timeout".into())),
        };
    tcp.set_nodelay(true).ok();
    let Some(name) = &upstream.tls_name else { return Ok(Box::new(tcp)) };
    let name = match name.parse::<IpAddr>() {
        Ok(ip) => ServerName::IpAddress(ip.into()),
        Err(_) => ServerName::try_from(name.clone()).map_err(|e| failed(e.to_string()))?,
    };
    let connector = tokio_rustls::TlsConnector::from(server.kubelets.0.load_full());
    let tls = connector.connect(name, tcp).await.map_err(|e| failed(e.to_string()))?;
    Ok(Box::new(tls))
}

/// Asks the kubelet of a node as the server itself.
pub(crate) async fn ask(
    server: &Server,
    node: &str,
    request: Request<Body>,
    path: String,
) -> Result<Answer, Status> {
    forward(server, request, node_target(server, node, path)?).await
}

/// Sends a request on and its answer back, upgrading both sides where the other end agrees.
async fn forward(server: &Server, request: Request<Body>, upstream: Upstream) -> Result<Answer, Status> {
    let io = connect(server, &upstream).await?;
    forward_over(io, request, &upstream.path, &format!("{}:{}", upstream.host, upstream.port)).await
}

/// The same over a connection that is there, to `path` of `host`.
pub(crate) async fn forward_over(
    io: Box<dyn Stream>,
    mut request: Request<Body>,
    path: &str,
    host: &str,
) -> Result<Answer, Status> {
    let broken = |e: hyper::Error| {
        Status::new(502, Reason::ServiceUnavailable, format!("error talking to the backend: {e}"))
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a backend ended");
        }
    });
    let upgrades = request.headers().contains_key(header::UPGRADE);
    let near = upgrades.then(|| hyper::upgrade::on(&mut request));
    let mut onward = Request::new(std::mem::take(request.body_mut()));
    *onward.method_mut() = request.method().clone();
    *onward.uri_mut() = path.parse::<Uri>().map_err(|e| Status::bad_request(format!("invalid path: {e}")))?;
    for (name, value) in request.headers() {
        // The caller's credentials stay here.
        if *name != header::AUTHORIZATION && *name != header::HOST {
            onward.headers_mut().append(name, value.clone());
        }
    }
    let host = HeaderValue::from_str(host);
    onward.headers_mut().insert(header::HOST, host.map_err(Status::internal)?);
    let mut answer = sender.send_request(onward).await.map_err(broken)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(|b| b.map_err(Into::into).boxed_unsync()));
    }
    let Some(near) = near else {
        return Err(Status::new(
            502,
            Reason::ServiceUnavailable,
            "the backend upgraded a request that asked for none",
        ));
    };
    let far = hyper::upgrade::on(&mut answer);
    let mut switched = Response::new(crate::body::full(""));
    *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *switched.headers_mut() = answer.headers().clone();
    tokio::spawn(async move {
        let (near, far) = match tokio::try_join!(near, far) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "an upgrade failed"),
        };
        let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
        if let Err(error) = tokio::io::copy_bidirectional(&mut near, &mut far).await {
            tracing::debug!(%error, "a tunnelled connection ended");
        }
    });
    Ok(switched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_meant() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&pod, "b", "p").unwrap(), "b");
        assert_eq!(
            container(&pod, "", "p").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert!(container(&pod, "x", "p").unwrap_err().message.contains("is not valid for pod p"));
        assert_eq!(base_name("http:web:80"), "web");
        assert_eq!(scheme_and_port("web:8080"), ("", "8080"));
    }
}
