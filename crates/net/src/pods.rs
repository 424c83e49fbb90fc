//! The pod network of one node: a bridge, a pair of links per pod, masquerading for what leaves the
//! cluster, and ports of the node that lead to pods.
//!
//! A pod has a /32 address and reaches everything, its neighbours too, through the bridge's address. So the
//! node routes (and tracks) every packet, and answers of a Service take the way back that they came.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use cri::{NetworkProvider, NetworkRequest};
use parking_lot::Mutex;

use crate::ipam::{self, Ipam, Lease, Ports};
use crate::link;
use crate::netlink::{self, Socket};
use crate::nft::{
    Base, Compare, Data, Family, Hook, Load, Map, Part, Step, Transaction, Value, Verdict, endpoint,
    link_name, port_key,
};

/// Name of a pod's link inside the pod.
const INSIDE: &str = "eth0";
/// Largest packet.
const MTU: u32 = 1500;
/// Map of ports of the node that lead to pods.
const HOST_PORTS: &str = "host-ports";
/// The same for ports of one address of the node only.
const HOST_ADDRESSES: &str = "host-addresses";
/// Priority before connections are tracked: what is written in packets is what was sent.
const RAW: i32 = -300;
/// An address of this host, as the routing table classes addresses.
const LOCAL: u32 = 2;

/// What the pod network needs to know.
#[derive(Debug, Clone)]
pub struct PodNetworkConfig {
    /// Names everything: bridge, links, table.
    pub cluster_id: String,
    /// Directory of leases.
    pub directory: PathBuf,
    /// All pods' addresses: what does not leave the cluster.
    pub cluster: (Ipv4Addr, u8),
    /// This node's part of them.
    pub node: (Ipv4Addr, u8),
    /// All Services' addresses. They have a route to the bridge, so that a host without a default route
    /// reaches Services too: packets are translated before they leave.
    pub services: (Ipv4Addr, u8),
}

impl PodNetworkConfig {
    /// Name of the bridge.
    pub fn bridge(&self) -> String {
        format!("fry-{}", self.cluster_id)
    }

    fn table(&self) -> String {
        format!("ferry-{}-pods", self.cluster_id)
    }
}

/// The network could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// No address.
    #[error(transparent)]
    Address(#[from] ipam::Error),
    /// A kernel setting cannot be changed.
    #[error("cannot set {setting}: {source}")]
    Setting {
        /// Which.
        setting: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
}

/// The pod network.
#[derive(Debug)]
pub struct PodNetwork {
    config: PodNetworkConfig,
    ipam: Mutex<Ipam>,
    bridge: u32,
    host: File,
}

fn set(setting: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/net/ipv4/{setting}");
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value)
        .map_err(|source| Error::Setting { setting: format!("net.ipv4.{setting}"), source })
}

impl PodNetwork {
    /// Makes bridge and rules, or takes over what an earlier process has made. Blocks.
    pub fn open(config: PodNetworkConfig) -> Result<Arc<PodNetwork>, Error> {
        let ipam = Ipam::open(config.directory.clone(), config.node.0, config.node.1)?;
        let socket = Socket::route()?;
        let name = config.bridge();
        let bridge = link::ensure_bridge(&socket, &name, ipam.gateway(), config.node.1)?;
        link::link_route(&socket, bridge, config.services.0, config.services.1)?;
        set("ip_forward", "1")?;
        // Pods send everything to the bridge's address on purpose: no need to tell them of shorter ways.
        set(&format!("conf/{name}/send_redirects"), "0")?;
        set("conf/all/send_redirects", "0")?;
        // Ports of the node work at its loopback address too; `rules` keeps pods away from that.
        set(&format!("conf/{name}/route_localnet"), "1")?;
        let host = File::open("/proc/thread-self/ns/net")
            .map_err(|e| netlink::Error::new("opening the host's namespace", e))?;
        let network = PodNetwork { ipam: Mutex::new(ipam), bridge, host, config };
        network.rules()?;
        Ok(Arc::new(network))
    }

    /// Removes bridge, rules and leases.
    pub fn remove(config: &PodNetworkConfig) -> Result<(), Error> {
        let socket = Socket::route()?;
        if let Ok(ipam) = Ipam::open(config.directory.clone(), config.node.0, config.node.1) {
            for lease in ipam.leases().values() {
                link::remove(&socket, &lease.link)?;
            }
        }
        link::remove(&socket, &config.bridge())?;
        let mut transaction = Transaction::new(Family::Ip, &config.table());
        transaction.add_table().delete_table();
        transaction.commit("removing the pod network's table")?;
        Ok(())
    }

    /// Writes the whole table anew, in one transaction.
    fn rules(&self) -> Result<(), Error> {
        let mut t = Transaction::new(Family::Ip, &self.config.table());
        t.add_table().delete_table().add_table();
        let nat = |hook, priority| Some(Base { kind: "nat", hook, priority });
        t.add_chain("prerouting", nat(Hook::Prerouting, -100));
        t.add_chain("output", nat(Hook::Output, -100));
        t.add_chain("postrouting", nat(Hook::Postrouting, 100));
        let key = &[Part::Protocol, Part::Port];
        t.add_map(&Map { name: HOST_PORTS.into(), key, data: Data::Endpoint, timeout_ms: 0 });
        let key = &[Part::Address, Part::Protocol, Part::Port];
        t.add_map(&Map { name: HOST_ADDRESSES.into(), key, data: Data::Endpoint, timeout_ms: 0 });
        self.ipam.lock().leases().values().for_each(|lease| publish(&mut t, lease));
        let addressed = [
            Step::Load(Load::DestinationKind, 0),
            Step::Compare(0, Compare::Equal, LOCAL.to_ne_bytes().to_vec()),
            Step::Load(Load::DestinationAddress, 0),
            Step::Load(Load::Protocol, 1),
            Step::Load(Load::DestinationPort, 2),
            Step::Lookup { map: HOST_ADDRESSES.into(), key: 0, data: 0 },
            Step::DestinationNat { address: 0, port: 1 },
        ];
        let to_pod = [
            Step::Load(Load::DestinationKind, 0),
            Step::Compare(0, Compare::Equal, LOCAL.to_ne_bytes().to_vec()),
            Step::Load(Load::Protocol, 0),
            Step::Load(Load::DestinationPort, 1),
            Step::Lookup { map: HOST_PORTS.into(), key: 0, data: 0 },
            Step::DestinationNat { address: 0, port: 1 },
        ];
        for chain in ["prerouting", "output"] {
            t.add_rule(chain, &addressed);
            t.add_rule(chain, &to_pod);
        }
        self.loopback(&mut t);
        let (network, prefix) = self.config.cluster;
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0).to_be_bytes().to_vec();
        let in_cluster = |what, how| {
            [
                Step::Load(what, 0),
                Step::Mask(0, mask.clone()),
                Step::Compare(0, how, network.octets().to_vec()),
            ]
        };
        let mut leaving = in_cluster(Load::SourceAddress, Compare::Equal).to_vec();
        leaving.extend(in_cluster(Load::DestinationAddress, Compare::NotEqual));
        leaving.extend([
            Step::Load(Load::OutputLink, 0),
            Step::Compare(0, Compare::NotEqual, link_name(&self.config.bridge())),
            Step::Masquerade,
        ]);
        t.add_rule("postrouting", &leaving);
        t.commit("writing the pod network's rules")?;
        Ok(())
    }

    /// What leaves the loopback address for a pod takes the bridge's, and nobody on the bridge may name it.
    fn loopback(&self, t: &mut Transaction) {
        let of = |what| {
            [
                Step::Load(what, 0),
                Step::Mask(0, vec![255, 0, 0, 0]),
                Step::Compare(0, Compare::Equal, vec![127, 0, 0, 0]),
            ]
        };
        let on =
            |what| [Step::Load(what, 0), Step::Compare(0, Compare::Equal, link_name(&self.config.bridge()))];
        t.add_chain("raw", Some(Base { kind: "filter", hook: Hook::Prerouting, priority: RAW }));
        let mut foreign = of(Load::DestinationAddress).to_vec();
        foreign.extend(on(Load::InputLink));
        foreign.push(Step::Verdict(Verdict::Drop));
        t.add_rule("raw", &foreign);
        let mut own = of(Load::SourceAddress).to_vec();
        own.extend(on(Load::OutputLink));
        own.push(Step::Masquerade);
        t.add_rule("postrouting", &own);
    }

    fn attach_blocking(&self, request: &NetworkRequest) -> Result<Lease, Error> {
        let ports = ports(&request.port_mappings);
        let short: String = request.sandbox_id.chars().take(10).collect();
        let outside = format!("fry{short}");
        let known = self.ipam.lock().leases().contains_key(&request.sandbox_id);
        let lease = self.ipam.lock().lease(&request.sandbox_id, &outside, ports)?;
        if known && link::index(&outside).is_ok() {
            return Ok(lease);
        }
        let gateway = self.ipam.lock().gateway();
        let (host, address) = (&self.host, lease.address);
        link::within(&request.netns, || {
            let socket = Socket::route()?;
            link::make_pair(&socket, INSIDE, &outside, host, MTU)?;
            let inside = link::index(INSIDE)?;
            link::add_address(&socket, inside, address, 32)?;
            link::set_up(&socket, inside)?;
            link::default_route(&socket, inside, gateway)
        })?;
        let socket = Socket::route()?;
        link::join_bridge(&socket, link::index(&outside)?, self.bridge)?;
        if lease.has_ports() {
            let mut t = Transaction::new(Family::Ip, &self.config.table());
            publish(&mut t, &lease);
            t.commit("publishing a pod's ports")?;
        }
        Ok(lease)
    }

    fn detach_blocking(&self, sandbox_id: &str) -> Result<(), Error> {
        let Some(lease) = self.ipam.lock().leases().get(sandbox_id).cloned() else { return Ok(()) };
        if lease.has_ports() {
            let keys: Vec<Vec<u8>> = lease.ports.iter().map(|(p, host, _)| port_key(*p, *host)).collect();
            let addressed: Vec<Vec<u8>> =
                lease.addressed.iter().map(|(ip, p, host, _)| address_key(*ip, *p, *host)).collect();
            let mut t = Transaction::new(Family::Ip, &self.config.table());
            t.delete_elements(HOST_PORTS, &keys);
            t.delete_elements(HOST_ADDRESSES, &addressed);
            match t.commit("withdrawing a pod's ports") {
                Err(e) if !e.is(nix::errno::Errno::ENOENT) => return Err(e.into()),
                _ => {}
            }
        }
        link::remove(&Socket::route()?, &lease.link)?;
        self.ipam.lock().release(sandbox_id)?;
        Ok(())
    }
}

/// Where a pod's ports are published: an address of another family has none to give.
fn ports(mappings: &[cri::PortMapping]) -> Ports {
    let mut ports = Ports::default();
    for mapping in mappings.iter().filter(|mapping| mapping.host_port != 0) {
        let protocol = match mapping.protocol {
            cri::Protocol::Tcp => 6,
            cri::Protocol::Udp => 17,
            cri::Protocol::Sctp => 132,
        };
        let (host, pod) = (mapping.host_port, mapping.container_port);
        match mapping.host_ip.filter(|ip| !ip.is_unspecified()) {
            None => ports.everywhere.push((protocol, host, pod)),
            Some(IpAddr::V4(ip)) => ports.addressed.push((ip, protocol, host, pod)),
            Some(IpAddr::V6(_)) => {}
        }
    }
    ports
}

/// A key of [`HOST_ADDRESSES`].
fn address_key(address: Ipv4Addr, protocol: u8, port: u16) -> Vec<u8> {
    [address.octets().to_vec(), port_key(protocol, port)].concat()
}

/// Adds a pod's ports to the maps.
fn publish(t: &mut Transaction, lease: &Lease) {
    let to = |pod: u16| Value::Bytes(endpoint(lease.address, pod));
    let everywhere: Vec<_> =
        lease.ports.iter().map(|(protocol, host, pod)| (port_key(*protocol, *host), to(*pod))).collect();
    let addressed: Vec<_> = (lease.addressed.iter())
        .map(|(ip, protocol, host, pod)| (address_key(*ip, *protocol, *host), to(*pod)))
        .collect();
    t.add_elements(HOST_PORTS, &everywhere);
    t.add_elements(HOST_ADDRESSES, &addressed);
}

fn failed(error: impl std::error::Error) -> cri::Error {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    cri::Error::Network { message }
}

/// A weak handle is not needed: the provider lives as long as the node.
#[derive(Debug, Clone)]
pub struct Provider(pub Arc<PodNetwork>);

#[async_trait]
impl NetworkProvider for Provider {
    async fn attach(&self, request: &NetworkRequest) -> cri::Result<cri::PodNetwork> {
        let (network, request) = (self.0.clone(), request.clone());
        let attached =
            tokio::task::spawn_blocking(move || network.attach_blocking(&request)).await.map_err(failed)?;
        let lease = attached.map_err(failed)?;
        let gateway = self.0.ipam.lock().gateway();
        Ok(cri::PodNetwork {
            ips: vec![IpAddr::V4(lease.address)],
            gateway: Some(IpAddr::V4(gateway)),
            interface: INSIDE.into(),
            mac: String::new(),
            mtu: MTU,
        })
    }

    async fn detach(&self, sandbox_id: &str) -> cri::Result<()> {
        let (network, id) = (self.0.clone(), sandbox_id.to_owned());
        let detached =
            tokio::task::spawn_blocking(move || network.detach_blocking(&id)).await.map_err(failed)?;
        detached.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_ports_are_published() {
        let mapping = |host_port: u16, ip: &str| cri::PortMapping {
            protocol: cri::Protocol::Tcp,
            container_port: 80,
            host_port,
            host_ip: ip.parse().ok(),
        };
        let made = ports(&[
            mapping(0, ""),
            mapping(1, ""),
            mapping(2, "0.0.0.0"),
            mapping(3, "127.0.0.1"),
            mapping(4, "fd00::1"),
        ]);
        assert_eq!(made.everywhere, [(6, 1, 80), (6, 2, 80)]);
        assert_eq!(made.addressed, [(Ipv4Addr::LOCALHOST, 6, 3, 80)]);
        assert_eq!(address_key(Ipv4Addr::LOCALHOST, 6, 3), [127, 0, 0, 1, 6, 0, 0, 0, 0, 3, 0, 0]);
    }
}
