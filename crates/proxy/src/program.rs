//! Rules into the kernel: flat nftables maps that change by elements.
//!
//! ```text
//! prerouting, output --(address . protocol . port)--> `services` --> chain "balance by N"
//!    chain: random number below N --(address . protocol . port . number)--> `endpoints` --> destination
//! ```
//! A chain exists per number of endpoints and way of masquerading, not per Service: ten thousand Services
//! are ten thousand elements and a dozen chains. Refusals happen in filter chains before translation, as
//! the kernel wants it. What a Service sends back to the pod that called it is masqueraded by the set
//! `hairpin` of (endpoint . endpoint).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use client::BoxFuture;
use net::nft::{
    Base, Compare, Data, Family, Hook, Load, Map, Part, Step, Transaction, Value, Verdict as Decision,
    address_key, endpoint, port_key,
};
use parking_lot::Mutex;

use crate::ruleset::{Change, Frontend, Masquerade, NodePort, Rule, Ruleset, Verdict};
use crate::run::{BoxError, Programmer};

/// Mark of packets that get the node's address, as kube-proxy marks them.
const MARK: u32 = 0x4000;
/// An address of this host, as the routing table classes addresses.
const LOCAL: u32 = 2;
/// Affinity entries go at latest after this; each rule sets its own shorter time.
const AFFINITY_MAX_MS: u64 = 86_400_000;

const SERVICES: &str = "services";
const ENDPOINTS: &str = "endpoints";
const NODE_PORTS: &str = "node-ports";
const NODE_ENDPOINTS: &str = "node-endpoints";
const REFUSED: &str = "refused";
const REFUSED_PORTS: &str = "refused-ports";
const HAIRPIN: &str = "hairpin";
const AFFINITY: &str = "affinity";

/// Writes one node's rules into one table.
pub struct Nftables {
    table: String,
    cluster: (Ipv4Addr, u8),
    /// Chains that the table has.
    chains: Mutex<BTreeSet<Shape>>,
}

/// What distinguishes a balancing chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    endpoints: u32,
    masquerade: u8,
    affinity_seconds: u32,
    node_port: bool,
}

impl Shape {
    fn of(rule: &Rule, node_port: bool) -> Option<Shape> {
        let Verdict::Balance(list) = &rule.verdict else { return None };
        let masquerade = match rule.masquerade {
            Masquerade::Never => 0,
            Masquerade::FromOutside => 1,
            Masquerade::Always => 2,
        };
        let endpoints = u32::try_from(v4(list).count()).unwrap_or(u32::MAX);
        let affinity_seconds = rule.affinity_seconds.unwrap_or(0);
        (endpoints > 0).then_some(Shape { endpoints, masquerade, affinity_seconds, node_port })
    }

    fn chain(self) -> String {
        let place = if self.node_port { "node" } else { "service" };
        format!("{place}-{}-{}-{}", self.endpoints, self.masquerade, self.affinity_seconds)
    }
}

fn v4(list: &[SocketAddr]) -> impl Iterator<Item = (Ipv4Addr, u16)> {
    list.iter().filter_map(|e| match e.ip() {
        IpAddr::V4(ip) => Some((ip, e.port())),
        IpAddr::V6(_) => None,
    })
}

fn frontend_key(f: &Frontend) -> Option<Vec<u8>> {
    match f.address {
        IpAddr::V4(ip) => Some(address_key(ip, f.protocol.number(), f.port)),
        IpAddr::V6(_) => None,
    }
}

fn node_port_key(p: &NodePort) -> Option<Vec<u8>> {
    (!p.v6).then(|| port_key(p.protocol.number(), p.port))
}

fn numbered(key: &[u8], n: u32) -> Vec<u8> {
    let mut out = key.to_vec();
    // numgen writes the number in the host's order.
    out.extend(n.to_ne_bytes());
    out
}

/// Every element of every map that a rule stands for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Elements(Vec<(&'static str, Vec<u8>, Value)>);

impl Elements {
    fn of(key: &[u8], rule: &Rule, node_port: bool) -> Elements {
        let (dispatch, endpoints, refused) = if node_port {
            (NODE_PORTS, NODE_ENDPOINTS, REFUSED_PORTS)
        } else {
            (SERVICES, ENDPOINTS, REFUSED)
        };
        let mut out = Vec::new();
        match (&rule.verdict, Shape::of(rule, node_port)) {
            (Verdict::Balance(list), Some(shape)) => {
                out.push((dispatch, key.to_vec(), Value::Verdict(Decision::Goto(shape.chain()))));
                for (n, (ip, port)) in v4(list).enumerate() {
                    out.push((endpoints, numbered(key, n as u32), Value::Bytes(endpoint(ip, port))));
                }
            }
            (Verdict::Drop, _) => out.push((refused, key.to_vec(), Value::Verdict(Decision::Drop))),
            _ => out.push((refused, key.to_vec(), Value::Verdict(Decision::Goto("reject".into())))),
        }
        Elements(out)
    }

    fn add(&self, t: &mut Transaction) {
        for map in MAPS {
            let of_map: Vec<(Vec<u8>, Value)> =
                self.0.iter().filter(|(m, ..)| m == map).map(|(_, k, v)| (k.clone(), v.clone())).collect();
            t.add_elements(map, &of_map);
        }
    }

    fn remove(&self, t: &mut Transaction) {
        for map in MAPS {
            let keys: Vec<Vec<u8>> =
                self.0.iter().filter(|(m, ..)| m == map).map(|(_, k, _)| k.clone()).collect();
            t.delete_elements(map, &keys);
        }
    }
}

const MAPS: &[&str] = &[SERVICES, ENDPOINTS, NODE_PORTS, NODE_ENDPOINTS, REFUSED, REFUSED_PORTS];

fn elements(rules: &Ruleset) -> Elements {
    let mut all = Vec::new();
    for (frontend, rule) in &rules.frontends {
        all.extend(frontend_key(frontend).map(|k| Elements::of(&k, rule, false).0).unwrap_or_default());
    }
    for (port, rule) in &rules.node_ports {
        all.extend(node_port_key(port).map(|k| Elements::of(&k, rule, true).0).unwrap_or_default());
    }
    Elements(all)
}

fn hairpins(rules: &Ruleset) -> BTreeSet<Ipv4Addr> {
    let all = rules.frontends.values().chain(rules.node_ports.values());
    all.filter_map(|rule| match &rule.verdict {
        Verdict::Balance(list) => Some(v4(list).map(|(ip, _)| ip).collect::<Vec<_>>()),
        _ => None,
    })
    .flatten()
    .collect()
}

fn hairpin_key(ip: Ipv4Addr) -> Vec<u8> {
    [ip.octets(), ip.octets()].concat()
}

fn shapes(rules: &Ruleset) -> BTreeSet<Shape> {
    let services = rules.frontends.values().filter_map(|r| Shape::of(r, false));
    services.chain(rules.node_ports.values().filter_map(|r| Shape::of(r, true))).collect()
}

impl Nftables {
    /// Writes into the table of a cluster; `cluster` is the range of pod addresses.
    pub fn new(cluster_id: &str, cluster: (Ipv4Addr, u8)) -> Self {
        Nftables { table: table_name(cluster_id), cluster, chains: Mutex::default() }
    }

    /// Removes the table of a cluster.
    pub fn remove(cluster_id: &str) -> Result<(), net::netlink::Error> {
        let mut t = Transaction::new(Family::Ip, &table_name(cluster_id));
        t.add_table().delete_table();
        t.commit("removing the Services' table")
    }

    fn transaction(&self) -> Transaction {
        Transaction::new(Family::Ip, &self.table)
    }

    /// The table without any Service.
    fn frame(&self, t: &mut Transaction) {
        t.add_table().delete_table().add_table();
        let base = |kind, hook, priority| Some(Base { kind, hook, priority });
        t.add_chain("refuse-prerouting", base("filter", Hook::Prerouting, -110));
        t.add_chain("refuse-output", base("filter", Hook::Output, -110));
        t.add_chain("prerouting", base("nat", Hook::Prerouting, -100));
        t.add_chain("output", base("nat", Hook::Output, -100));
        t.add_chain("postrouting", base("nat", Hook::Postrouting, 90));
        t.add_chain("reject", None);
        t.add_rule("reject", &[Step::Reject]);
        use Part::{Address, Number, Port, Protocol};
        let map = |name: &str, key, data, timeout_ms| Map { name: name.into(), key, data, timeout_ms };
        t.add_map(&map(SERVICES, &[Address, Protocol, Port], Data::Verdict, 0));
        t.add_map(&map(REFUSED, &[Address, Protocol, Port], Data::Verdict, 0));
        t.add_map(&map(NODE_PORTS, &[Protocol, Port], Data::Verdict, 0));
        t.add_map(&map(REFUSED_PORTS, &[Protocol, Port], Data::Verdict, 0));
        t.add_map(&map(ENDPOINTS, &[Address, Protocol, Port, Number], Data::Endpoint, 0));
        t.add_map(&map(NODE_ENDPOINTS, &[Protocol, Port, Number], Data::Endpoint, 0));
        t.add_map(&map(HAIRPIN, &[Address, Address], Data::Nothing, 0));
        t.add_map(&map(AFFINITY, &[Address, Protocol, Port, Address], Data::Endpoint, AFFINITY_MAX_MS));
        let service = [
            Step::Load(Load::DestinationAddress, 0),
            Step::Load(Load::Protocol, 1),
            Step::Load(Load::DestinationPort, 2),
        ];
        let node_port = [
            Step::Load(Load::DestinationKind, 0),
            Step::Compare(0, Compare::Equal, LOCAL.to_ne_bytes().to_vec()),
            Step::Load(Load::Protocol, 0),
            Step::Load(Load::DestinationPort, 1),
        ];
        for (chains, of_services, of_ports) in [
            (["refuse-prerouting", "refuse-output"], REFUSED, REFUSED_PORTS),
            (["prerouting", "output"], SERVICES, NODE_PORTS),
        ] {
            for chain in chains {
                let dispatch = |map: &str| Step::Dispatch { map: map.into(), key: 0 };
                t.add_rule(chain, &[&service[..], &[dispatch(of_services)]].concat());
                t.add_rule(chain, &[&node_port[..], &[dispatch(of_ports)]].concat());
            }
        }
        t.add_rule(
            "postrouting",
            &[
                Step::Load(Load::Mark, 0),
                Step::Mask(0, MARK.to_ne_bytes().to_vec()),
                Step::Compare(0, Compare::Equal, MARK.to_ne_bytes().to_vec()),
                Step::Masquerade,
            ],
        );
        t.add_rule(
            "postrouting",
            &[
                Step::Load(Load::SourceAddress, 0),
                Step::Load(Load::DestinationAddress, 1),
                Step::Contains { set: HAIRPIN.into(), key: 0 },
                Step::Masquerade,
            ],
        );
    }

    /// A balancing chain.
    fn chain(&self, t: &mut Transaction, shape: Shape) {
        let chain = shape.chain();
        t.add_chain(&chain, None);
        let mark = [Step::Set(15, MARK.to_ne_bytes().to_vec()), Step::SetMark(15)];
        match shape.masquerade {
            1 => {
                let mask =
                    u32::MAX.checked_shl(32 - u32::from(self.cluster.1)).unwrap_or(0).to_be_bytes().to_vec();
                let outside = [
                    Step::Load(Load::SourceAddress, 0),
                    Step::Mask(0, mask),
                    Step::Compare(0, Compare::NotEqual, self.cluster.0.octets().to_vec()),
                ];
                t.add_rule(&chain, &[&outside[..], &mark[..]].concat());
            }
            2 => {
                t.add_rule(&chain, &mark);
            }
            _ => {}
        }
        // Key of the endpoint: what was dispatched on, then the number.
        let (head, number, map): (Vec<Step>, u32, &str) = if shape.node_port {
            (vec![Step::Load(Load::Protocol, 0), Step::Load(Load::DestinationPort, 1)], 2, NODE_ENDPOINTS)
        } else {
            let head = vec![
                Step::Load(Load::DestinationAddress, 0),
                Step::Load(Load::Protocol, 1),
                Step::Load(Load::DestinationPort, 2),
            ];
            (head, 3, ENDPOINTS)
        };
        // Key of the affinity: destination, protocol, port, source. Registers 4 to 7; data in 8 and 9.
        let affinity_key = [
            Step::Load(Load::DestinationAddress, 4),
            Step::Load(Load::Protocol, 5),
            Step::Load(Load::DestinationPort, 6),
            Step::Load(Load::SourceAddress, 7),
        ];
        let timeout_ms = u64::from(shape.affinity_seconds) * 1000;
        let remember = Step::Update { map: AFFINITY.into(), key: 4, data: 8, timeout_ms };
        if shape.affinity_seconds > 0 {
            let again = [
                Step::Lookup { map: AFFINITY.into(), key: 4, data: 8 },
                remember.clone(),
                Step::DestinationNat { address: 8, port: 9 },
            ];
            t.add_rule(&chain, &[&affinity_key[..], &again[..]].concat());
        }
        let mut steps = head;
        steps.push(Step::Random { register: number, modulus: shape.endpoints });
        steps.push(Step::Lookup { map: map.into(), key: 0, data: 8 });
        if shape.affinity_seconds > 0 {
            steps.extend(affinity_key);
            steps.push(remember);
        }
        steps.push(Step::DestinationNat { address: 8, port: 9 });
        t.add_rule(&chain, &steps);
    }

    fn write_all(&self, rules: &Ruleset) -> Result<(), net::netlink::Error> {
        let mut t = self.transaction();
        self.frame(&mut t);
        let wanted = shapes(rules);
        wanted.iter().for_each(|s| self.chain(&mut t, *s));
        elements(rules).add(&mut t);
        let hairpins: Vec<_> =
            hairpins(rules).into_iter().map(|ip| (hairpin_key(ip), Value::Nothing)).collect();
        t.add_elements(HAIRPIN, &hairpins);
        t.commit("writing the rules of all Services")?;
        *self.chains.lock() = wanted;
        Ok(())
    }

    fn write_changes(
        &self,
        changes: &[Change],
        old: &Ruleset,
        new: &Ruleset,
    ) -> Result<(), net::netlink::Error> {
        let mut t = self.transaction();
        let mut chains = self.chains.lock();
        let fresh: Vec<Shape> = shapes(new).difference(&chains).copied().collect();
        fresh.iter().for_each(|s| self.chain(&mut t, *s));
        for change in changes {
            let (key, before, after, node_port) = match change {
                Change::SetFrontend(f, rule) => (frontend_key(f), old.frontends.get(f), Some(rule), false),
                Change::RemoveFrontend(f) => (frontend_key(f), old.frontends.get(f), None, false),
                Change::SetNodePort(p, rule) => (node_port_key(p), old.node_ports.get(p), Some(rule), true),
                Change::RemoveNodePort(p) => (node_port_key(p), old.node_ports.get(p), None, true),
            };
            let Some(key) = key else { continue };
            if let Some(rule) = before {
                Elements::of(&key, rule, node_port).remove(&mut t);
                if rule.affinity_seconds.is_some() {
                    // Entries may lead to endpoints that are gone: everybody chooses anew.
                    t.flush_elements(AFFINITY);
                }
            }
            if let Some(rule) = after {
                Elements::of(&key, rule, node_port).add(&mut t);
            }
        }
        let (before, after) = (hairpins(old), hairpins(new));
        let gone: Vec<_> = before.difference(&after).map(|ip| hairpin_key(*ip)).collect();
        let come: Vec<_> = after.difference(&before).map(|ip| (hairpin_key(*ip), Value::Nothing)).collect();
        t.delete_elements(HAIRPIN, &gone);
        t.add_elements(HAIRPIN, &come);
        t.commit("changing the rules of Services")?;
        chains.extend(fresh);
        Ok(())
    }
}

fn table_name(cluster_id: &str) -> String {
    format!("ferry-{cluster_id}-services")
}

impl Programmer for Nftables {
    fn replace<'a>(&'a self, rules: &'a Ruleset) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async move { Ok(self.write_all(rules)?) })
    }

    fn apply<'a>(
        &'a self,
        changes: &'a [Change],
        old: &'a Ruleset,
        new: &'a Ruleset,
    ) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async move { Ok(self.write_changes(changes, old, new)?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::Protocol;

    fn rule(verdict: Verdict) -> Rule {
        Rule {
            origin: "a/b".into(),
            verdict,
            masquerade: Masquerade::FromOutside,
            affinity_seconds: None,
            sources: Vec::new().into(),
            from_cluster: None,
        }
    }

    #[test]
    fn a_service_is_one_dispatch_and_one_element_per_endpoint() {
        let list: Vec<SocketAddr> = vec!["10.0.0.1:80".parse().unwrap(), "10.0.0.2:80".parse().unwrap()];
        let frontend = Frontend { address: "10.43.0.9".parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
        let key = frontend_key(&frontend).unwrap();
        let found = Elements::of(&key, &rule(Verdict::Balance(list.into())), false).0;
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].2, Value::Verdict(Decision::Goto("service-2-1-0".into())));
        assert_eq!(found[2].1, numbered(&key, 1));
        let refused = Elements::of(&key, &rule(Verdict::Reject), false).0;
        assert_eq!(refused, [(REFUSED, key, Value::Verdict(Decision::Goto("reject".into())))]);
    }
}
