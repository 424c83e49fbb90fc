//! What the kernel has to know, as a value: flat maps from addresses to endpoints.
//!
//! Each map is one map of the packet filter, so that a change of one Service is a change of a few elements
//! and not of chains. [`Ruleset::diff`] computes exactly those.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Reads the API's spelling; absent means TCP.
    pub fn parse(text: Option<&str>) -> Option<Protocol> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// IANA's number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// Where packets for a Service go: an address of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Address.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// A port that is open on every address of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePort {
    /// Whether IPv6 is meant.
    pub v6: bool,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// What becomes of packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// They go to one of these, by chance.
    Balance(Arc<[SocketAddr]>),
    /// They are refused, with an ICMP message or a reset: nobody serves.
    Reject,
    /// They are dropped: somebody serves, but not here.
    Drop,
}

/// Whose packets get the node's address as their source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masquerade {
    /// Packets from outside of the pod network: their answers must come back through this node.
    FromOutside,
    /// All: they come through a node that need not be the endpoint's.
    Always,
    /// None, so that endpoints see who is calling (`externalTrafficPolicy: Local`).
    Never,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `namespace/name:port` of the Service, for people.
    pub origin: Arc<str>,
    /// What becomes of packets.
    pub verdict: Verdict,
    /// Whose packets get the node's address. Whoever is sent back to itself always does.
    pub masquerade: Masquerade,
    /// For how many seconds a client stays with its endpoint.
    pub affinity_seconds: Option<u32>,
    /// Only these sources may come in (`loadBalancerSourceRanges`); empty for all.
    pub sources: Arc<[Cidr]>,
    /// What becomes of packets from pods and from the node itself, where that differs: they may use every
    /// endpoint even where packets from outside only use those of this node.
    pub from_cluster: Option<Verdict>,
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// First address.
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub prefix: u8,
}

impl std::str::FromStr for Cidr {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = text.trim().split_once('/').ok_or(())?;
        let (address, prefix): (IpAddr, u8) = (address.parse().map_err(drop)?, prefix.parse().map_err(drop)?);
        let most = if address.is_ipv4() { 32 } else { 128 };
        if prefix > most { Err(()) } else { Ok(Cidr { address, prefix }) }
    }
}

/// Everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Rules of addresses of Services: cluster, external and load balancer addresses.
    pub frontends: BTreeMap<Frontend, Rule>,
    /// Rules of ports of the node.
    pub node_ports: BTreeMap<NodePort, Rule>,
    /// Ports at which the node tells load balancers how many endpoints of a Service it has.
    pub health_checks: BTreeMap<u16, HealthCheck>,
}

/// What a health check port tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
}

/// One element to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets the rule of an address.
    SetFrontend(Frontend, Rule),
    /// Removes the rule of an address.
    RemoveFrontend(Frontend),
    /// Sets the rule of a node port.
    SetNodePort(NodePort, Rule),
    /// Removes the rule of a node port.
    RemoveNodePort(NodePort),
}

impl Ruleset {
    /// The changes that make `old` this. Removals come first, so that an element that moves is free.
    pub fn diff(&self, old: &Ruleset) -> Vec<Change> {
        let mut changes = Vec::new();
        let gone = old.frontends.keys().filter(|key| !self.frontends.contains_key(key));
        changes.extend(gone.map(|key| Change::RemoveFrontend(*key)));
        let gone = old.node_ports.keys().filter(|key| !self.node_ports.contains_key(key));
        changes.extend(gone.map(|key| Change::RemoveNodePort(*key)));
        let new = self.frontends.iter().filter(|(key, rule)| old.frontends.get(key) != Some(rule));
        changes.extend(new.map(|(key, rule)| Change::SetFrontend(*key, rule.clone())));
        let new = self.node_ports.iter().filter(|(key, rule)| old.node_ports.get(key) != Some(rule));
        changes.extend(new.map(|(key, rule)| Change::SetNodePort(*key, rule.clone())));
        changes
    }

    /// UDP endpoints that packets may still be sent to by flows the kernel remembers, though no rule of this
    /// leads there any more: their entries of connection tracking have to go.
    pub fn stale_udp(&self, old: &Ruleset) -> Vec<(Frontend, SocketAddr)> {
        let endpoints = |rule: Option<&Rule>| match rule.map(|r| &r.verdict) {
            Some(Verdict::Balance(list)) => list.to_vec(),
            _ => Vec::new(),
        };
        let udp = old.frontends.iter().filter(|(key, _)| key.protocol == Protocol::Udp);
        udp.flat_map(|(key, rule)| {
            let left = endpoints(self.frontends.get(key));
            let gone = endpoints(Some(rule)).into_iter().filter(move |e| !left.contains(e));
            gone.map(|endpoint| (*key, endpoint)).collect::<Vec<_>>()
        })
        .collect()
    }
}
