//! Answers of the cluster's zone: a pure function from a question and the directory.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::directory::{Directory, Endpoint, Entry, Port, dashed};

/// Seconds an answer may be kept: short, for Services change.
pub const TTL: u32 = 5;
/// Version of the specification, as `dns-version` tells it.
const VERSION: &str = "1.1.0";

/// What the zone says to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// These records; further ones come along without being asked for.
    Found {
        /// Answers.
        answers: Vec<Record>,
        /// Addresses of what the answers name.
        additionals: Vec<Record>,
    },
    /// The name exists but has nothing of this type.
    NoData,
    /// The name does not exist.
    NoName,
    /// Not in this zone: somebody else has to be asked.
    Elsewhere,
}

/// The zone.
#[derive(Debug, Clone)]
pub struct Zone {
    /// Domain of the cluster in lower case, without the last dot.
    domain: String,
    origin: Name,
}

impl Zone {
    /// The zone of a domain such as `cluster.local`.
    ///
    /// # Errors
    /// When the domain is not a name.
    pub fn new(domain: &str) -> Result<Zone, hickory_proto::ProtoError> {
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        Ok(Zone { origin: Name::from_str(&format!("{domain}."))?, domain })
    }

    /// The record that says who speaks for the zone and how long not to ask again.
    pub fn soa(&self, serial: u32) -> Record {
        let under = |label: &str| Name::from_str(&format!("{label}.{}.", self.domain)).unwrap_or_default();
        let soa = SOA::new(under("ns.dns"), under("hostmaster"), serial, 7200, 1800, 86400, TTL);
        Record::from_rdata(self.origin.clone(), TTL, RData::SOA(soa))
    }

    fn name(&self, below: &str) -> Option<Name> {
        Name::from_str(&format!("{below}.{}.", self.domain)).ok()
    }

    /// Answers a question. `name` is as it was asked; answers repeat its spelling.
    pub fn answer(&self, directory: &Directory, name: &Name, kind: RecordType, serial: u32) -> Answer {
        let lower = name.to_ascii().to_ascii_lowercase();
        let lower = lower.trim_end_matches('.');
        if lower == self.domain {
            return self.apex(name, kind, serial);
        }
        if let Some(below) = lower.strip_suffix(&self.domain).and_then(|rest| rest.strip_suffix('.')) {
            let labels: Vec<&str> = below.split('.').collect();
            return self.below(directory, name, &labels, kind);
        }
        match reverse_address(lower) {
            Some(address) => self.reverse(directory, name, address, kind),
            None => Answer::Elsewhere,
        }
    }

    fn apex(&self, name: &Name, kind: RecordType, serial: u32) -> Answer {
        let data = match kind {
            RecordType::SOA => return found(vec![self.soa(serial)]),
            RecordType::NS => match self.name("ns.dns") {
                Some(target) => RData::NS(NS(target)),
                None => return Answer::NoData,
            },
            _ => return Answer::NoData,
        };
        found(vec![Record::from_rdata(name.clone(), TTL, data)])
    }

    /// Names below the domain, last label first in the match.
    fn below(&self, directory: &Directory, name: &Name, labels: &[&str], kind: RecordType) -> Answer {
        match labels {
            ["dns-version"] if kind == RecordType::TXT => {
                let data = RData::TXT(TXT::new(vec![VERSION.to_owned()]));
                found(vec![Record::from_rdata(name.clone(), TTL, data)])
            }
            ["dns-version" | "svc" | "pod"] => Answer::NoData,
            [namespace, "svc" | "pod"] if directory.has_namespace(namespace) => Answer::NoData,
            [label, namespace, "pod"] if directory.has_namespace(namespace) => pod(name, label, kind),
            [service, namespace, "svc"] => match directory.service(namespace, service) {
                Some(entry) => self.service(name, entry, kind, &format!("{service}.{namespace}.svc")),
                None => Answer::NoName,
            },
            [label, service, namespace, "svc"] => match directory.service(namespace, service) {
                Some(Entry::Headless(endpoints)) if !label.starts_with('_') => {
                    let matching = endpoints.iter().filter(|e| e.label == *label).map(|e| e.address);
                    addresses(name, &matching.collect::<Vec<_>>(), kind)
                }
                // A protocol label alone exists where a port below it does.
                Some(_) if matches!(*label, "_tcp" | "_udp" | "_sctp") => Answer::NoData,
                _ => Answer::NoName,
            },
            [port, protocol, service, namespace, "svc"] => {
                let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_'))
                else {
                    return Answer::NoName;
                };
                let matches = |p: &Port| p.name == port && p.protocol == protocol;
                match directory.service(namespace, service) {
                    Some(entry) => {
                        self.ports(name, entry, kind, &format!("{service}.{namespace}.svc"), &matches)
                    }
                    None => Answer::NoName,
                }
            }
            _ => Answer::NoName,
        }
    }

    fn service(&self, name: &Name, entry: &Entry, kind: RecordType, below: &str) -> Answer {
        if kind == RecordType::SRV {
            return self.ports(name, entry, kind, below, &|_| true);
        }
        match entry {
            Entry::Cluster { addresses: list, .. } => addresses(name, list, kind),
            Entry::Headless(endpoints) => {
                if endpoints.is_empty() {
                    return Answer::NoName;
                }
                addresses(name, &endpoints.iter().map(|e| e.address).collect::<Vec<_>>(), kind)
            }
            Entry::External(target) => {
                // The rest of the way is the client's, or the server's before it answers.
                match Name::from_str(&format!("{}.", target.trim_end_matches('.'))) {
                    Ok(target) => {
                        found(vec![Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target)))])
                    }
                    Err(_) => Answer::NoData,
                }
            }
        }
    }

    fn ports(
        &self,
        name: &Name,
        entry: &Entry,
        kind: RecordType,
        below: &str,
        wanted: &dyn Fn(&Port) -> bool,
    ) -> Answer {
        let mut answers = Vec::new();
        let mut additionals = Vec::new();
        let mut add = |target: &Name, port: &Port| {
            let data = RData::SRV(SRV::new(0, 100, port.number, target.clone()));
            let record = Record::from_rdata(name.clone(), TTL, data);
            if !answers.contains(&record) {
                answers.push(record);
            }
        };
        match entry {
            Entry::Cluster { addresses: list, ports } => {
                let Some(target) = self.name(below) else { return Answer::NoData };
                ports.iter().filter(|p| wanted(p)).for_each(|port| add(&target, port));
                additionals.extend(list.iter().map(|a| address_record(&target, *a)));
            }
            Entry::Headless(endpoints) => {
                for Endpoint { label, address, ports, .. } in endpoints {
                    let Some(target) = self.name(&format!("{label}.{below}")) else { continue };
                    let mut any = false;
                    for port in ports.iter().filter(|p| wanted(p)) {
                        add(&target, port);
                        any = true;
                    }
                    if any {
                        additionals.push(address_record(&target, *address));
                    }
                }
            }
            Entry::External(_) => return Answer::NoName,
        }
        match (answers.is_empty(), kind) {
            (true, _) => Answer::NoName,
            (false, RecordType::SRV) => Answer::Found { answers, additionals },
            (false, _) => Answer::NoData,
        }
    }

    fn reverse(&self, directory: &Directory, name: &Name, address: IpAddr, kind: RecordType) -> Answer {
        let names = directory.names_of(address);
        if names.is_empty() {
            return Answer::Elsewhere;
        }
        if kind != RecordType::PTR {
            return Answer::NoData;
        }
        let targets = names.iter().filter_map(|below| self.name(below));
        found(targets.map(|t| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(t)))).collect())
    }
}

fn found(answers: Vec<Record>) -> Answer {
    Answer::Found { answers, additionals: Vec::new() }
}

fn address_record(name: &Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    };
    Record::from_rdata(name.clone(), TTL, data)
}

fn addresses(name: &Name, list: &[IpAddr], kind: RecordType) -> Answer {
    if list.is_empty() {
        return Answer::NoName;
    }
    let wanted = |address: &&IpAddr| match kind {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        _ => false,
    };
    let records: Vec<Record> = list.iter().filter(wanted).map(|a| address_record(name, *a)).collect();
    if records.is_empty() { Answer::NoData } else { found(records) }
}

/// A pod's name is its address; whether there is such a pod is not looked at (`pods insecure`).
fn pod(name: &Name, label: &str, kind: RecordType) -> Answer {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    let v6 = || label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6);
    match v4.or_else(|_| v6()) {
        Ok(address) if dashed(address) == label => addresses(name, &[address], kind),
        _ => Answer::NoName,
    }
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut parts: Vec<&str> = rest.split('.').collect();
        parts.reverse();
        return parts.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut digits = Vec::with_capacity(32);
    for part in rest.split('.') {
        digits.push(u128::from_str_radix(part, 16).ok().filter(|_| part.len() == 1)?);
    }
    if digits.len() != 32 {
        return None;
    }
    let bits = digits.iter().rev().fold(0, |bits, digit| bits << 4 | digit);
    Some(IpAddr::V6(Ipv6Addr::from(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::entry;
    use api::prelude::*;
    use serde_json::json;
    use std::sync::Arc;

    fn directory() -> Directory {
        let mut directory = Directory::default();
        directory.set_namespace("n", true);
        let service = |spec| Service::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap();
        let web = service(json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7", "fd00::7"],
            "ports": [{"name": "http", "port": 80}]}));
        directory.set("n", "web", Some(entry(&web, &[])));
        let slice = EndpointSlice::from_value(json!({"metadata": {}, "addressType": "IPv4",
            "ports": [{"name": "db", "port": 5432, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.42.0.1"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.42.0.2"], "conditions": {"ready": true}},
                {"addresses": ["10.42.0.3"], "conditions": {"ready": false}}]}))
        .unwrap();
        let db = service(json!({"clusterIP": "None"}));
        directory.set("n", "db", Some(entry(&db, &[Arc::new(slice)])));
        let out = service(json!({"type": "ExternalName", "externalName": "example.com"}));
        directory.set("n", "out", Some(entry(&out, &[])));
        directory
    }

    fn ask(name: &str, kind: RecordType) -> String {
        let zone = Zone::new("cluster.local").unwrap();
        match zone.answer(&directory(), &Name::from_str(name).unwrap(), kind, 1) {
            Answer::Found { answers, .. } => {
                answers.iter().map(|r| r.data.to_string()).collect::<Vec<_>>().join(" | ")
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn the_specification() {
        use RecordType as T;
        for (name, kind, answer) in [
            ("web.n.svc.cluster.local.", T::A, "10.43.0.7"),
            ("WEB.n.svc.Cluster.local.", T::AAAA, "fd00::7"),
            ("web.n.svc.cluster.local.", T::TXT, "NoData"),
            ("_http._tcp.web.n.svc.cluster.local.", T::SRV, "0 100 80 web.n.svc.cluster.local."),
            ("_http._udp.web.n.svc.cluster.local.", T::SRV, "NoName"),
            ("x.web.n.svc.cluster.local.", T::A, "NoName"),
            ("db.n.svc.cluster.local.", T::A, "10.42.0.1 | 10.42.0.2"),
            ("db-0.db.n.svc.cluster.local.", T::A, "10.42.0.1"),
            ("10-42-0-2.db.n.svc.cluster.local.", T::A, "10.42.0.2"),
            (
                "_db._tcp.db.n.svc.cluster.local.",
                T::SRV,
                "0 100 5432 db-0.db.n.svc.cluster.local. | 0 100 5432 10-42-0-2.db.n.svc.cluster.local.",
            ),
            ("out.n.svc.cluster.local.", T::A, "example.com."),
            ("1-2-3-4.n.pod.cluster.local.", T::A, "1.2.3.4"),
            ("1-2-3-4.gone.pod.cluster.local.", T::A, "NoName"),
            ("n.svc.cluster.local.", T::A, "NoData"),
            ("m.svc.cluster.local.", T::A, "NoName"),
            ("nothing.n.svc.cluster.local.", T::A, "NoName"),
            ("7.0.43.10.in-addr.arpa.", T::PTR, "web.n.svc.cluster.local."),
            ("1.0.42.10.in-addr.arpa.", T::PTR, "db-0.db.n.svc.cluster.local."),
            ("2.0.42.10.in-addr.arpa.", T::PTR, "Elsewhere"),
            ("dns-version.cluster.local.", T::TXT, "1.1.0"),
            ("cluster.local.", T::NS, "ns.dns.cluster.local."),
            ("example.com.", T::A, "Elsewhere"),
            ("notcluster.local.", T::A, "Elsewhere"),
        ] {
            assert_eq!(ask(name, kind), answer, "{name} {kind}");
        }
    }

    #[test]
    fn reverse_names() {
        let long = format!("7{}.0.0.d.f.ip6.arpa", ".0".repeat(27));
        assert_eq!(reverse_address(&long), Some("fd00::7".parse().unwrap()));
        assert_eq!(reverse_address("1.2.in-addr.arpa"), None);
        let mut directory = directory();
        directory.set("n", "web", None);
        assert!(directory.names_of("10.43.0.7".parse().unwrap()).is_empty());
    }
}
