//! The pod network of this node.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::Context;
use net::{PodNetwork, PodNetworkConfig};

use crate::control::{Environment, nth_address};

/// Length of the prefix of one node's part of the pod addresses.
const NODE_PREFIX: u8 = 24;

/// First address and prefix length of a network.
fn range(cidr: &str) -> anyhow::Result<(Ipv4Addr, u8)> {
    let IpAddr::V4(first) = nth_address(cidr, 0)? else { anyhow::bail!("{cidr} is no IPv4 network") };
    let prefix: u8 =
        cidr.split('/').nth(1).and_then(|p| p.parse().ok()).context("a network has no prefix")?;
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    Ok((Ipv4Addr::from(u32::from(first) & mask), prefix))
}

fn config(env: &Environment) -> anyhow::Result<PodNetworkConfig> {
    let (network, prefix) = range(&env.options.cluster_cidr)?;
    Ok(PodNetworkConfig {
        cluster_id: env.paths.cluster_id.clone(),
        directory: env.paths.root.join("network"),
        cluster: (network, prefix),
        node: (network, prefix.max(NODE_PREFIX)),
        services: range(&env.options.service_cidr)?,
    })
}

/// The range of pod addresses.
pub fn pod_range(env: &Environment) -> anyhow::Result<(Ipv4Addr, u8)> {
    Ok(config(env)?.cluster)
}

/// The address that every pod reaches this node by: the bridge's.
pub fn gateway(env: &Environment) -> anyhow::Result<IpAddr> {
    let (network, _) = config(env)?.node;
    Ok(IpAddr::V4(Ipv4Addr::from(u32::from(network) + 1)))
}

/// Makes the pod network ready.
pub async fn open(env: &Environment) -> anyhow::Result<Arc<dyn cri::NetworkProvider>> {
    let config = config(env)?;
    let network = tokio::task::spawn_blocking(move || PodNetwork::open(config)).await?;
    Ok(Arc::new(net::pods::Provider(network.context("cannot make the pod network")?)))
}

/// Removes it.
pub async fn remove(env: &Environment) -> anyhow::Result<()> {
    let config = config(env)?;
    tokio::task::spawn_blocking(move || PodNetwork::remove(&config)).await??;
    proxy::Nftables::remove(&env.paths.cluster_id)?;
    Ok(())
}
