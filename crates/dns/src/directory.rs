//! What the zone is made of: Services with their endpoints, and the names of addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::prelude::*;

/// A port of a Service or an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Name; may be empty.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Number.
    pub number: u16,
}

/// An endpoint of a headless Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// First label of its name: its hostname, or its address with dashes.
    pub label: String,
    /// Address.
    pub address: IpAddr,
    /// Ports.
    pub ports: Arc<[Port]>,
    /// It has a hostname, so its address leads back to its name.
    pub named: bool,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// With addresses of its own.
    Cluster {
        /// Addresses.
        addresses: Vec<IpAddr>,
        /// Ports.
        ports: Vec<Port>,
    },
    /// Without: its endpoints stand for it.
    Headless(Vec<Endpoint>),
    /// Another name for something outside.
    External(String),
}

/// Everything the zone knows.
#[derive(Debug, Default)]
pub struct Directory {
    services: HashMap<(String, String), Entry>,
    namespaces: HashMap<String, usize>,
    /// Names below the zone by address, without the zone: `label.service.namespace.svc`.
    names: HashMap<IpAddr, Vec<String>>,
}

/// An address with dashes, as the first label of a name.
pub fn dashed(address: IpAddr) -> String {
    let text = address.to_string().replace([':', '.'], "-");
    // Labels must not begin or end with a dash.
    let text = if text.starts_with('-') { format!("0{text}") } else { text };
    if text.ends_with('-') { format!("{text}0") } else { text }
}

/// Computes the entry of a Service from it and its slices.
pub fn entry(service: &Service, slices: &[Arc<EndpointSlice>]) -> Entry {
    let spec = service.spec.clone().unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        return Entry::External(spec.external_name.unwrap_or_default());
    }
    let headless = spec.cluster_ip.as_deref() == Some("None");
    if headless {
        let publish = spec.publish_not_ready_addresses == Some(true);
        return Entry::Headless(endpoints(slices, publish));
    }
    let mut addresses = spec.cluster_ips.unwrap_or_default();
    if addresses.is_empty() {
        addresses.extend(spec.cluster_ip);
    }
    let ports = spec.ports.into_iter().flatten().map(|port| Port {
        name: port.name.unwrap_or_default(),
        protocol: port.protocol.unwrap_or("TCP".into()).to_ascii_lowercase(),
        number: u16::try_from(port.port).unwrap_or(0),
    });
    Entry::Cluster {
        addresses: addresses.iter().filter_map(|a| a.parse().ok()).collect(),
        ports: ports.collect(),
    }
}

fn endpoints(slices: &[Arc<EndpointSlice>], publish: bool) -> Vec<Endpoint> {
    let mut all: Vec<Endpoint> = Vec::new();
    for slice in slices {
        let ports: Arc<[Port]> = (slice.ports.iter().flatten())
            .map(|port| Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or("TCP".into()).to_ascii_lowercase(),
                number: port.port.and_then(|n| u16::try_from(n).ok()).unwrap_or(0),
            })
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            if !ready && !publish {
                continue;
            }
            for address in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                let hostname = endpoint.hostname.clone().filter(|h| !h.is_empty());
                all.push(Endpoint {
                    named: hostname.is_some(),
                    label: hostname.unwrap_or_else(|| dashed(address)),
                    address,
                    ports: ports.clone(),
                });
            }
        }
    }
    all
}

impl Directory {
    /// Sets or removes a Service.
    pub fn set(&mut self, namespace: &str, name: &str, entry: Option<Entry>) {
        let key = (namespace.to_owned(), name.to_owned());
        let old = match entry.clone() {
            Some(entry) => self.services.insert(key, entry),
            None => self.services.remove(&key),
        };
        for (address, full) in old.iter().flat_map(|e| reverse(e, namespace, name)) {
            if let Some(names) = self.names.get_mut(&address) {
                names.retain(|n| *n != full);
                if names.is_empty() {
                    self.names.remove(&address);
                }
            }
        }
        for (address, full) in entry.iter().flat_map(|e| reverse(e, namespace, name)) {
            self.names.entry(address).or_default().push(full);
        }
    }

    /// A namespace is new (`true`) or gone.
    pub fn set_namespace(&mut self, name: &str, present: bool) {
        if present {
            self.namespaces.insert(name.to_owned(), 1);
        } else {
            self.namespaces.remove(name);
        }
    }

    /// The Service of this name.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Entry> {
        self.services.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Whether there is such a namespace.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
    }

    /// Names below the zone that an address leads back to.
    pub fn names_of(&self, address: IpAddr) -> &[String] {
        self.names.get(&address).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Addresses of an entry and the names they lead back to.
fn reverse(entry: &Entry, namespace: &str, name: &str) -> Vec<(IpAddr, String)> {
    match entry {
        Entry::Cluster { addresses, .. } => {
            addresses.iter().map(|a| (*a, format!("{name}.{namespace}.svc"))).collect()
        }
        Entry::Headless(endpoints) => {
            let named = endpoints.iter().filter(|e| e.named);
            named.map(|e| (e.address, format!("{}.{name}.{namespace}.svc", e.label))).collect()
        }
        Entry::External(_) => Vec::new(),
    }
}
