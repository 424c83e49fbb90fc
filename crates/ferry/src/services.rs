//! Services on this node: the proxy that programs their addresses, and the cluster DNS server.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use meta::{Gvr, UserInfo};
use serde_json::json;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use crate::config::Part;
use crate::control::{ControlPlane, Environment};
use crate::network;

const DNS_PORT: u16 = 53;

/// Starts what is enabled.
pub async fn start(env: &Environment, plane: &ControlPlane, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    if env.options.enabled(Part::Proxy) {
        let programmer = Arc::new(proxy::Nftables::new(&env.paths.cluster_id, network::pod_range(env)?));
        let (context, node) = (acting_as(&plane.context, "system:kube-proxy"), env.node_name.clone());
        tasks.spawn(async move { proxy::run(&context, &node, programmer).await });
    }
    if env.options.enabled(Part::Dns) {
        dns(env, plane, tasks).await?;
    }
    Ok(())
}

/// The shared caches, with writes and events in the name of a component.
fn acting_as(context: &reconcile::Context, user: &str) -> reconcile::Context {
    let mut context = context.clone();
    context.client = context.client.as_user(UserInfo::authenticated(user, &[]));
    context
}

/// Listens on the bridge's address and makes that the endpoint of the Service `kube-dns`.
async fn dns(env: &Environment, plane: &ControlPlane, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    let address = SocketAddr::new(network::gateway(env)?, DNS_PORT);
    let at = || format!("the cluster DNS server cannot listen on {address}");
    let udp = UdpSocket::bind(address).await.with_context(at)?;
    let tcp = TcpListener::bind(address).await.with_context(at)?;
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let config = dns::Config {
        domain: env.options.cluster_domain.clone(),
        upstreams: dns::forward::parse_resolv_conf(&resolv),
    };
    let context = plane.context.clone();
    tasks.spawn(async move {
        if let Err(error) = dns::run(&context, config, udp, tcp).await {
            tracing::error!(%error, "the cluster DNS server ended");
        }
    });
    publish(env, plane).await
}

/// The Service that pods' resolv.conf names, with this node as its endpoint.
async fn publish(env: &Environment, plane: &ControlPlane) -> anyhow::Result<()> {
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"});
    let port = |name: &str, protocol: &str| json!({"name": name, "port": DNS_PORT, "protocol": protocol});
    let ports = json!([port("dns", "UDP"), port("dns-tcp", "TCP")]);
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
        "spec": {"clusterIP": env.options.cluster_dns.to_string(), "ports": ports}});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns", "namespace": "kube-system",
            "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4", "ports": ports,
        "endpoints": [{"addresses": [network::gateway(env)?.to_string()], "conditions": {"ready": true}, "nodeName": env.node_name}]});
    for (gvr, object) in [
        (Gvr::new("", "v1", "services"), service),
        (Gvr::new("discovery.k8s.io", "v1", "endpointslices"), slice),
    ] {
        let patch = client::Patch::Apply { manager: "ferry-dns".into(), force: true, object };
        plane
            .client
            .patch(&gvr, "kube-system", "kube-dns", "", &patch)
            .await
            .context("cannot publish the cluster DNS server")?;
    }
    Ok(())
}
