//! Which EndpointSlices mirror an Endpoints object: one for each family of addresses and list of ports.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use api::k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort as OldPort};
use api::k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use api::prelude::*;

use crate::endpointslice::plan::{MANAGED_BY, Plan, SERVICE_NAME, TRIGGER_TIME, group_key};
use crate::owners;

/// Addresses mirrored per subset (upstream's `--mirroring-max-endpoints-per-subset`).
pub const ADDRESSES_MAX: usize = 1000;
/// Manager of the slices.
pub const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Label of Endpoints whose writer makes the slices too.
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation of Endpoints that only serve as a lock.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Longest generated name that still leaves room for its random end.
const PREFIX_LEN_MAX: usize = 253;

/// What has to change, and what could not be mirrored.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// Changes of slices.
    pub plan: Plan,
    /// Addresses that are none.
    pub invalid: usize,
    /// Addresses left out: those, and the ones above [`ADDRESSES_MAX`].
    pub skipped: usize,
}

/// Whether an Endpoints object is one to mirror, as far as it says itself.
pub fn should_mirror(endpoints: &Endpoints) -> bool {
    let (labels, annotations) = (&endpoints.metadata.labels, &endpoints.metadata.annotations);
    let skips = labels.as_ref().and_then(|l| l.get(SKIP_MIRROR)).is_some_and(|v| v == "true");
    !skips && !annotations.as_ref().is_some_and(|a| a.contains_key(LEADER))
}

fn mirrored_ports(ports: &[OldPort]) -> Vec<EndpointPort> {
    let one = |port: &OldPort| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or("TCP".into())),
        app_protocol: port.app_protocol.clone(),
    };
    ports.iter().map(one).collect()
}

/// The endpoint of an address, unless that is none.
fn endpoint(address: &EndpointAddress, ready: bool) -> Option<(&'static str, Endpoint)> {
    let ip: IpAddr = address.ip.parse().ok()?;
    // An IPv4 address in IPv6 clothes is an IPv4 address.
    let ip = ip.to_canonical();
    let endpoint = Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    };
    Some((if ip.is_ipv6() { "IPv6" } else { "IPv4" }, endpoint))
}

/// What tells one endpoint of a slice from another: its address and what it stands for.
fn identity(endpoint: &Endpoint) -> (String, String) {
    let uid = endpoint.target_ref.as_ref().and_then(|r| r.uid.clone()).unwrap_or_default();
    (endpoint.addresses.first().cloned().unwrap_or_default(), uid)
}

/// The endpoints of one slice, each once.
struct Group {
    family: &'static str,
    ports: Vec<EndpointPort>,
    endpoints: BTreeMap<(String, String), Endpoint>,
}

/// The groups by key, and how many addresses are none or too many.
fn wanted(endpoints: &Endpoints) -> (BTreeMap<String, Group>, usize, usize) {
    let (mut groups, mut invalid, mut skipped) = (BTreeMap::<String, Group>::new(), 0, 0);
    let mut taken: HashMap<String, usize> = HashMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = mirrored_ports(subset.ports.as_deref().unwrap_or_default());
        // Subsets with the same ports count as one.
        let count = taken.entry(group_key(&("", ports.clone()))).or_default();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(not_ready) {
            if *count >= ADDRESSES_MAX {
                skipped += 1;
                continue;
            }
            let Some((family, endpoint)) = endpoint(address, ready) else {
                invalid += 1;
                skipped += 1;
                continue;
            };
            let key = group_key(&(family, ports.clone()));
            let group = groups.entry(key).or_insert_with(|| Group {
                family,
                ports: ports.clone(),
                endpoints: BTreeMap::new(),
            });
            // Not ready trumps ready, and comes later.
            if group.endpoints.insert(identity(&endpoint), endpoint).is_none() {
                *count += 1;
            }
        }
    }
    (groups, invalid, skipped)
}

fn labels(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), endpoints.name().into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn annotations(of: &ObjectMeta) -> BTreeMap<String, String> {
    let own = of.annotations.iter().flatten();
    let kept = own.filter(|(key, _)| ![TRIGGER_TIME, LAST_APPLIED].contains(&key.as_str()));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn is_settled(slice: &EndpointSlice, group: &Group, endpoints: &Endpoints) -> bool {
    let have: BTreeMap<_, _> = slice.endpoints.iter().flatten().map(|e| (identity(e), e)).collect();
    slice.endpoints.as_ref().map_or(0, Vec::len) == group.endpoints.len()
        && group.endpoints.iter().all(|(id, wanted)| have.get(id) == Some(&wanted))
        && slice.metadata.labels.as_ref() == Some(&labels(endpoints))
        && annotations(&slice.metadata) == annotations(&endpoints.metadata)
}

/// A slice with a group's endpoints, new or in place of `old`.
fn filled(endpoints: &Endpoints, group: Group, old: Option<&EndpointSlice>) -> EndpointSlice {
    let mut metadata = old.map(|slice| slice.metadata.clone()).unwrap_or_else(|| {
        let mut prefix = format!("{}-", endpoints.name());
        if prefix.len() > PREFIX_LEN_MAX {
            prefix.pop();
        }
        ObjectMeta {
            generate_name: Some(prefix),
            namespace: endpoints.metadata.namespace.clone(),
            ..Default::default()
        }
    });
    metadata.labels = Some(labels(endpoints));
    metadata.annotations = Some(annotations(&endpoints.metadata)).filter(|a| !a.is_empty());
    metadata.owner_references =
        Some(vec![owners::controller_reference(&Endpoints::GVK, &endpoints.metadata)]);
    EndpointSlice {
        metadata,
        address_type: group.family.to_owned(),
        endpoints: Some(group.endpoints.into_values().collect()),
        ports: Some(group.ports).filter(|ports| !ports.is_empty()),
    }
}

/// Plans the slices that mirror `endpoints`; `existing` are the ones this controller made for it.
pub fn plan(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>]) -> Outcome {
    let (groups, invalid, skipped) = wanted(endpoints);
    let mut outcome = Outcome { plan: Plan::default(), invalid, skipped };
    let plan = &mut outcome.plan;
    let mut present: BTreeMap<String, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing.iter().filter(|slice| !slice.is_terminating()) {
        let family = if slice.address_type == "IPv6" { "IPv6" } else { "IPv4" };
        let key = group_key(&(family, slice.ports.clone().unwrap_or_default()));
        present.entry(key).or_default().push(slice);
    }
    let mut missing = Vec::new();
    let mut spare = Vec::new();
    for (key, group) in groups {
        let mut slices = present.remove(&key).unwrap_or_default();
        slices.sort_by(|a, b| a.name().cmp(b.name()));
        let mut slices = slices.into_iter();
        match slices.next() {
            None => missing.push(group),
            Some(slice) if is_settled(slice, &group, endpoints) => {}
            Some(slice) => plan.update.push(filled(endpoints, group, Some(slice))),
        }
        spare.extend(slices);
    }
    spare.extend(present.into_values().flatten());
    for group in missing {
        // A slice's family never changes: only one of the same can be used again.
        match spare.iter().position(|slice| slice.address_type == group.family) {
            Some(at) => plan.update.push(filled(endpoints, group, Some(spare.remove(at)))),
            None if endpoints.is_terminating() => {}
            None => plan.create.push(filled(endpoints, group, None)),
        }
    }
    plan.delete.extend(spare.into_iter().map(|slice| slice.name().to_owned()));
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn endpoints(subsets: Value) -> Endpoints {
        Endpoints::from_value(json!({"metadata": {"name": "e", "namespace": "n", "uid": "u",
            "labels": {"a": "b"}, "annotations": {LAST_APPLIED: "x", "kept": "y"}}, "subsets": subsets}))
        .unwrap()
    }

    fn named(plan: Plan) -> Vec<Arc<EndpointSlice>> {
        let name = |(n, mut slice): (usize, EndpointSlice)| {
            slice.metadata.name = Some(format!("e-{n}"));
            Arc::new(slice)
        };
        plan.create.into_iter().enumerate().map(name).collect()
    }

    #[test]
    fn subsets_become_slices() {
        let mixed = endpoints(json!([
            {"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "what"}],
             "notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 80}]},
            {"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 81, "name": "b"}]},
        ]));
        let made = plan(&mixed, &[]);
        assert_eq!((made.plan.create.len(), made.invalid, made.skipped), (3, 1, 1));
        let first = &made.plan.create[0];
        let ready: Vec<_> = first
            .endpoints
            .iter()
            .flatten()
            .map(|e| (e.addresses[0].as_str(), e.conditions.as_ref().unwrap().ready))
            .collect();
        assert_eq!(ready, [("10.0.0.1", Some(true)), ("10.0.0.2", Some(false))]);
        let labels = first.metadata.labels.as_ref().unwrap();
        assert_eq!(
            (labels["a"].as_str(), labels[MANAGED_BY].as_str(), labels[SERVICE_NAME].as_str()),
            ("b", MANAGER, "e")
        );
        assert_eq!(first.metadata.annotations.as_ref().unwrap().len(), 1);
        assert_eq!(first.metadata.owner_references.as_ref().unwrap()[0].kind, "Endpoints");
        let slices = named(made.plan);
        assert!(plan(&mixed, &slices).plan.is_empty(), "settled");
        let gone = plan(&endpoints(json!([])), &slices).plan;
        assert_eq!((gone.delete.len(), gone.create.len(), gone.update.len()), (3, 0, 0));
    }

    #[test]
    fn slices_are_used_again() {
        let before = named(
            plan(&endpoints(json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}])), &[]).plan,
        );
        let moved =
            plan(&endpoints(json!([{"addresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 80}]}])), &before)
                .plan;
        assert_eq!((moved.update.len(), moved.create.len(), moved.delete.len()), (1, 0, 0));
        let other =
            plan(&endpoints(json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 81}]}])), &before)
                .plan;
        assert_eq!((other.update.len(), other.create.len(), other.delete.len()), (1, 0, 0));
        let six =
            plan(&endpoints(json!([{"addresses": [{"ip": "fd00::1"}], "ports": [{"port": 80}]}])), &before)
                .plan;
        assert_eq!((six.update.len(), six.create.len(), six.delete.len()), (0, 1, 1));
    }

    #[test]
    fn no_more_than_a_thousand_of_a_subset() {
        let many: Vec<Value> =
            (0..1200).map(|n| json!({"ip": format!("10.0.{}.{}", n / 250, n % 250)})).collect();
        let made = plan(&endpoints(json!([{"addresses": many, "ports": [{"port": 80}]}])), &[]);
        assert_eq!(
            (made.plan.create[0].endpoints.as_ref().unwrap().len(), made.skipped, made.invalid),
            (1000, 200, 0)
        );
    }

    #[test]
    fn not_ready_trumps_ready() {
        let both = endpoints(
            json!([{"addresses": [{"ip": "10.0.0.1"}], "notReadyAddresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]),
        );
        let made = plan(&both, &[]).plan;
        let all = made.create[0].endpoints.as_ref().unwrap();
        assert_eq!((all.len(), all[0].conditions.as_ref().unwrap().ready), (1, Some(false)));
    }

    #[test]
    fn who_is_mirrored() {
        let with = |meta: Value| should_mirror(&Endpoints::from_value(json!({"metadata": meta})).unwrap());
        assert!(with(json!({"name": "e"})));
        assert!(with(json!({"labels": {SKIP_MIRROR: "false"}})));
        assert!(!with(json!({"labels": {SKIP_MIRROR: "true"}})));
        assert!(!with(json!({"annotations": {LEADER: "{}"}})));
    }
}
