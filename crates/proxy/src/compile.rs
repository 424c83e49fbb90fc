//! From one Service and its EndpointSlices to its part of the ruleset. Pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::ServicePort;
use api::k8s_openapi::api::discovery::v1::Endpoint;
use api::prelude::*;

use crate::ruleset::{Cidr, Frontend, HealthCheck, Masquerade, NodePort, Protocol, Rule, Ruleset, Verdict};

/// Services with this label are somebody else's business.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// Session affinity that does not say how long (three hours).
const AFFINITY_SECONDS: i32 = 10_800;

/// The node the rules are for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Name of the node.
    pub node: String,
    /// Zone of the node; empty if not known.
    pub zone: String,
}

/// An endpoint of one port.
#[derive(Debug, Clone)]
struct Candidate {
    address: SocketAddr,
    ready: bool,
    serving_while_leaving: bool,
    local: bool,
    /// Hints name this node or its zone.
    near_node: Option<bool>,
    near_zone: Option<bool>,
}

/// Adds the rules of a Service to `rules`.
pub fn compile(service: &Service, slices: &[Arc<EndpointSlice>], place: &Place, rules: &mut Ruleset) {
    let Some(spec) = &service.spec else { return };
    let elsewhere = service.metadata.labels.as_ref().is_some_and(|l| l.contains_key(OTHER_PROXY));
    let addresses = cluster_addresses(service);
    if elsewhere || addresses.is_empty() || spec.type_.as_deref() == Some("ExternalName") {
        return;
    }
    for port in spec.ports.iter().flatten() {
        for v6 in [false, true] {
            let of_family = addresses.iter().filter(|a| a.is_ipv6() == v6).copied().collect::<Vec<_>>();
            if !of_family.is_empty() {
                compile_port(service, port, slices, place, &of_family, rules);
            }
        }
    }
}

fn cluster_addresses(service: &Service) -> Vec<IpAddr> {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|s| s.cluster_ips.clone()).unwrap_or_default();
    let single = spec.and_then(|s| s.cluster_ip.clone());
    let all = if listed.is_empty() { single.into_iter().collect() } else { listed };
    // "None" does not parse, as it should.
    all.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Addresses from outside: external ones and those of load balancers that send packets on unchanged.
fn outside_addresses(service: &Service, v6: bool) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let parse = |text: &String| text.parse::<IpAddr>().ok().filter(|a| a.is_ipv6() == v6);
    let spec = service.spec.as_ref();
    let external = spec.iter().flat_map(|s| s.external_ips.iter().flatten()).filter_map(parse).collect();
    let ingress = service.status.iter().flat_map(|s| s.load_balancer.iter());
    let ingress = ingress.flat_map(|lb| lb.ingress.iter().flatten());
    let unchanged = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
    (external, unchanged.filter_map(|i| i.ip.as_ref()).filter_map(parse).collect())
}

fn compile_port(
    service: &Service,
    port: &ServicePort,
    slices: &[Arc<EndpointSlice>],
    place: &Place,
    addresses: &[IpAddr],
    rules: &mut Ruleset,
) {
    let (Some(spec), Some(protocol)) = (&service.spec, Protocol::parse(port.protocol.as_deref())) else {
        return;
    };
    let v6 = addresses[0].is_ipv6();
    let candidates = candidates(port, slices, place, v6);
    let everywhere = near(&usable(&candidates, |_| true));
    let here = usable(&candidates, |c| c.local);
    let anybody = !candidates.is_empty() && !usable(&candidates, |_| true).is_empty();
    let inside_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let outside_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let cluster = verdict(&everywhere, anybody);
    let local = verdict(&here, anybody);
    let affinity = affinity_seconds(service);
    let name = port.name.as_deref().unwrap_or_default();
    let rule = Rule {
        origin: format!("{}:{name}", service.key()).into(),
        verdict: if inside_local { local.clone() } else { cluster.clone() },
        masquerade: Masquerade::FromOutside,
        affinity_seconds: affinity,
        sources: Arc::new([]),
        from_cluster: None,
    };
    let Ok(number) = u16::try_from(port.port) else { return };
    for address in addresses {
        rules.frontends.insert(Frontend { address: *address, protocol, port: number }, rule.clone());
    }
    let outside = Rule {
        verdict: if outside_local { local } else { cluster.clone() },
        masquerade: if outside_local { Masquerade::Never } else { Masquerade::Always },
        from_cluster: outside_local.then_some(cluster),
        ..rule
    };
    let (external, balanced) = outside_addresses(service, v6);
    for address in external {
        rules.frontends.insert(Frontend { address, protocol, port: number }, outside.clone());
    }
    let ranges = spec.load_balancer_source_ranges.iter().flatten().filter_map(|text| text.parse().ok());
    let sources: Arc<[Cidr]> = ranges.filter(|c: &Cidr| c.address.is_ipv6() == v6).collect();
    for address in balanced {
        let rule = Rule { sources: sources.clone(), ..outside.clone() };
        rules.frontends.insert(Frontend { address, protocol, port: number }, rule);
    }
    if let Some(node_port) = port.node_port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0) {
        rules.node_ports.insert(NodePort { v6, protocol, port: node_port }, outside);
    }
    if let Some(check) = spec.health_check_node_port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0) {
        let local_endpoints = candidates.iter().filter(|c| c.local && c.ready).count();
        let entry = rules.health_checks.entry(check).or_insert_with(|| HealthCheck {
            namespace: service.namespace().to_owned(),
            name: service.name().to_owned(),
            local_endpoints,
        });
        entry.local_endpoints = entry.local_endpoints.max(local_endpoints);
    }
}

fn affinity_seconds(service: &Service) -> Option<u32> {
    let spec = service.spec.as_ref().filter(|s| s.session_affinity.as_deref() == Some("ClientIP"))?;
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    u32::try_from(config.and_then(|c| c.timeout_seconds).unwrap_or(AFFINITY_SECONDS)).ok()
}

/// The endpoints of one port in one address family.
fn candidates(port: &ServicePort, slices: &[Arc<EndpointSlice>], place: &Place, v6: bool) -> Vec<Candidate> {
    let name = port.name.as_deref().unwrap_or_default();
    let family = if v6 { "IPv6" } else { "IPv4" };
    let mut all = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == family) {
        let Some(number) = slice.ports.iter().flatten().find_map(|p| {
            let same = p.name.as_deref().unwrap_or_default() == name
                && Protocol::parse(p.protocol.as_deref()) == Protocol::parse(port.protocol.as_deref());
            p.port.filter(|_| same).and_then(|n| u16::try_from(n).ok())
        }) else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            all.extend(candidate(endpoint, number, place));
        }
    }
    all.sort_by_key(|c| c.address);
    all.dedup_by_key(|c| c.address);
    all
}

fn candidate(endpoint: &Endpoint, port: u16, place: &Place) -> Option<Candidate> {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let leaving = conditions.terminating.unwrap_or(false);
    let hints = endpoint.hints.as_ref();
    let nodes = hints.and_then(|h| h.for_nodes.as_ref()).filter(|n| !n.is_empty());
    let zones = hints.and_then(|h| h.for_zones.as_ref()).filter(|z| !z.is_empty());
    Some(Candidate {
        address: SocketAddr::new(endpoint.addresses.first()?.parse().ok()?, port),
        ready,
        serving_while_leaving: leaving && conditions.serving.unwrap_or(ready),
        local: endpoint.node_name.as_deref() == Some(&place.node),
        near_node: nodes.map(|nodes| nodes.iter().any(|n| n.name == place.node)),
        near_zone: zones.map(|zones| zones.iter().any(|z| z.name == place.zone)),
    })
}

/// Ready endpoints; where there are none, those that still serve while they leave (KEP-1669).
fn usable(candidates: &[Candidate], wanted: impl Fn(&Candidate) -> bool) -> Vec<Candidate> {
    let pick = |good: fn(&Candidate) -> bool| -> Vec<Candidate> {
        candidates.iter().filter(|c| good(c) && wanted(c)).cloned().collect()
    };
    let ready = pick(|c| c.ready);
    if ready.is_empty() { pick(|c| c.serving_while_leaving) } else { ready }
}

/// Endpoints that hints want for this node, else for its zone, else all: hints only count when every
/// endpoint has them and some are for here.
fn near(candidates: &[Candidate]) -> Vec<Candidate> {
    for hint in [(|c: &Candidate| c.near_node) as fn(&Candidate) -> Option<bool>, |c| c.near_zone] {
        let all_hinted = candidates.iter().all(|c| hint(c).is_some());
        let near: Vec<Candidate> = candidates.iter().filter(|c| hint(c) == Some(true)).cloned().collect();
        if all_hinted && !near.is_empty() {
            return near;
        }
    }
    candidates.to_vec()
}

/// Nobody at all is a refusal; somebody, but not here, is silence: another node may be asked.
fn verdict(candidates: &[Candidate], anybody: bool) -> Verdict {
    match (candidates.is_empty(), anybody) {
        (false, _) => Verdict::Balance(candidates.iter().map(|c| c.address).collect()),
        (true, true) => Verdict::Drop,
        (true, false) => Verdict::Reject,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::Change;
    use serde_json::{Value, json};

    fn service(extra: Value) -> Service {
        let mut spec =
            json!({"clusterIP": "10.43.0.5", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Service::from_value(json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}}}))
        .unwrap()
    }

    /// Endpoints by last byte of the address, node and conditions: `r`eady, `t`erminating but serving, `x` not.
    fn slice(endpoints: &[(u8, &str, char)]) -> Vec<Arc<EndpointSlice>> {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|(byte, node, state)| {
                json!({"addresses": [format!("10.42.0.{byte}")], "nodeName": node, "conditions":
                    {"ready": *state == 'r', "serving": *state != 'x', "terminating": *state == 't'}})
            })
            .collect();
        let slice = json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]});
        vec![Arc::new(EndpointSlice::from_value(slice).unwrap())]
    }

    fn show(verdict: &Verdict) -> String {
        match verdict {
            Verdict::Balance(list) => list
                .iter()
                .map(|a| a.to_string().replace("10.42.0.", "").replace(":8080", ""))
                .collect::<Vec<_>>()
                .join(","),
            other => format!("{other:?}"),
        }
    }

    fn rules(service: &Service, slices: &[Arc<EndpointSlice>]) -> Ruleset {
        let mut rules = Ruleset::default();
        compile(service, slices, &Place { node: "me".into(), zone: "z".into() }, &mut rules);
        rules
    }

    /// Verdicts of the cluster address, the load balancer's address, and the node port.
    fn verdicts(extra: Value, endpoints: &[(u8, &str, char)]) -> [String; 3] {
        let rules = rules(&service(extra), &slice(endpoints));
        let of = |text: &str| {
            let key = Frontend { address: text.parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
            show(&rules.frontends[&key].verdict)
        };
        let port = NodePort { v6: false, protocol: Protocol::Tcp, port: 30080 };
        [of("10.43.0.5"), of("192.0.2.9"), show(&rules.node_ports[&port].verdict)]
    }

    #[test]
    fn policies() {
        let (me, other) = ((1, "me", 'r'), (2, "other", 'r'));
        let local = || json!({"externalTrafficPolicy": "Local"});
        for (extra, endpoints, expected) in [
            (json!({}), vec![me, other], ["1,2", "1,2", "1,2"]),
            (json!({}), vec![], ["Reject", "Reject", "Reject"]),
            (local(), vec![me, other], ["1,2", "1", "1"]),
            (local(), vec![other], ["2", "Drop", "Drop"]),
            (local(), vec![], ["Reject", "Reject", "Reject"]),
            (json!({"internalTrafficPolicy": "Local"}), vec![other], ["Drop", "2", "2"]),
            (json!({}), vec![(1, "me", 't'), (2, "other", 'x')], ["1", "1", "1"]),
            (json!({}), vec![(1, "me", 't'), other], ["2", "2", "2"]),
        ] {
            assert_eq!(verdicts(extra.clone(), &endpoints), expected, "{extra} {endpoints:?}");
        }
    }

    #[test]
    fn sources_affinity_and_masquerading() {
        let extra = json!({"sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["198.51.100.0/24", "nonsense"], "healthCheckNodePort": 31000});
        let rules = rules(&service(extra), &slice(&[(1, "me", 'r'), (2, "other", 'r')]));
        let inside = &rules.frontends.values().next().unwrap();
        assert_eq!((inside.affinity_seconds, inside.masquerade), (Some(10_800), Masquerade::FromOutside));
        let outside = rules.frontends.values().nth(1).unwrap();
        assert_eq!((outside.sources.len(), outside.masquerade), (1, Masquerade::Never));
        assert_eq!(show(outside.from_cluster.as_ref().unwrap()), "1,2");
        assert_eq!(rules.health_checks[&31000].local_endpoints, 1);
    }

    #[test]
    fn one_change_is_one_element() {
        let (a, b) = (slice(&[(1, "me", 'r')]), slice(&[(1, "me", 'r'), (2, "x", 'r')]));
        let (old, new) = (rules(&service(json!({})), &a), rules(&service(json!({})), &b));
        assert_eq!(new.diff(&old).len(), 3);
        assert!(new.diff(&new).is_empty());
        assert!(
            Ruleset::default()
                .diff(&old)
                .iter()
                .all(|c| matches!(c, Change::RemoveFrontend(_) | Change::RemoveNodePort(_)))
        );
    }

    #[test]
    fn headless_and_foreign_services_have_no_rules() {
        let mut foreign = service(json!({}));
        foreign.metadata.labels = Some([(OTHER_PROXY.to_owned(), "x".to_owned())].into());
        assert_eq!(rules(&foreign, &[]), Ruleset::default());
        assert_eq!(rules(&service(json!({"clusterIP": "None"})), &[]), Ruleset::default());
    }
}
