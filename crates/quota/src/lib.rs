//! ResourceQuota as arithmetic: what an object costs ([`charge`]), which quotas it falls under and whether it
//! fits ([`Quota`]).
//!
//! Two callers share it: admission in the API server, which charges an object before it is stored, and the
//! resource quota controller, which adds up what is there.
//!
//! **Invariant:** pure functions over JSON; no clock, no store.

mod check;
mod pod;

use std::collections::BTreeMap;

use jiff::Timestamp;
use meta::quantity::Quantity;
use serde_json::{Map, Value};

pub use check::{Quota, difference, negative_to_zero};

/// Amounts by the names quotas use.
pub type Amounts = BTreeMap<String, Quantity>;

/// What an object costs, and what scopes look at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Charge {
    /// Amounts.
    pub amounts: Amounts,
    /// For pods and claims: what scopes distinguish.
    pub traits: Traits,
}

/// What the scopes of a quota distinguish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traits {
    /// It is a pod.
    pub is_pod: bool,
    /// A pod with a deadline.
    pub terminating: bool,
    /// A pod without requests and limits.
    pub best_effort: bool,
    /// A pod's priority class.
    pub priority_class: String,
    /// A pod with affinity terms that reach into other namespaces.
    pub crosses_namespaces: bool,
    /// It is a claim.
    pub is_claim: bool,
    /// The classes of volume attributes that a claim asks for or has.
    pub volume_attributes_classes: Vec<String>,
}

/// Resources that quotas count by their bare name.
const BARE: &[&str] = &[
    "pods",
    "services",
    "persistentvolumeclaims",
    "configmaps",
    "secrets",
    "replicationcontrollers",
    "resourcequotas",
];
/// Suffix of names that stand for claims of one storage class.
const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Suffix of names that stand for devices of one device class.
const DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";

/// Name under which quotas count objects of a resource.
pub fn count_name(group: &str, resource: &str) -> String {
    if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") }
}

/// The resource that a name in a quota is about, as group and plural; `None` for names nobody counts.
pub fn resource_of(name: &str) -> Option<(&str, &str)> {
    if let Some(counted) = name.strip_prefix("count/") {
        return Some(match counted.split_once('.') {
            Some((resource, group)) => (group, resource),
            None => ("", counted),
        });
    }
    if let Some(bare) = BARE.iter().find(|b| **b == name) {
        return Some(("", bare));
    }
    if name.starts_with("services.") {
        return Some(("", "services"));
    }
    if name == "requests.storage" || name.contains(STORAGE_CLASS) {
        return Some(("", "persistentvolumeclaims"));
    }
    if name.ends_with(DEVICE_CLASS) {
        return Some(("resource.k8s.io", "resourceclaims"));
    }
    let compute = ["cpu", "memory", "ephemeral-storage"];
    let stripped = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
    let extended = name.starts_with("requests.") && pod::is_extended(stripped);
    let is_pods = compute.contains(&stripped) || name.starts_with("hugepages-");
    (is_pods || extended || stripped.starts_with("hugepages-")).then_some(("", "pods"))
}

/// Whether an operation on a resource is charged at all.
pub fn is_charged(group: &str, resource: &str, subresource: &str, operation: &str) -> bool {
    matches!(
        (group, resource, subresource, operation),
        (_, _, "", "CREATE")
            | ("", "pods", "resize", "UPDATE")
            | ("", "services" | "persistentvolumeclaims", "", "UPDATE")
            | ("resource.k8s.io", "resourceclaims", "", "UPDATE")
    )
}

/// What an object costs at a point in time (pods past their end cost nothing but their count).
pub fn charge(group: &str, resource: &str, object: &Map<String, Value>, now: Timestamp) -> Charge {
    let mut charge = Charge::default();
    let one = Quantity::from_units(1);
    charge.amounts.insert(count_name(group, resource), one);
    match (group, resource) {
        ("", "pods") => pod::charge(object, now, &mut charge),
        ("", "services") => service(object, &mut charge.amounts),
        ("", "persistentvolumeclaims") => claim(object, &mut charge),
        ("", bare) if BARE.contains(&bare) => drop(charge.amounts.insert(bare.into(), one)),
        ("resource.k8s.io", "resourceclaims") => devices(object, &mut charge.amounts),
        _ => {}
    }
    charge
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A member of an object; null when absent.
fn member<'a>(object: &'a Map<String, Value>, key: &str) -> &'a Value {
    object.get(key).unwrap_or(&Value::Null)
}

fn add(amounts: &mut Amounts, name: impl Into<String>, amount: Quantity) {
    let entry = amounts.entry(name.into()).or_insert_with(|| Quantity::from_units(0));
    *entry = entry.plus(amount);
}

fn service(object: &Map<String, Value>, amounts: &mut Amounts) {
    let spec = member(object, "spec");
    let ports = spec["ports"].as_array().map_or(0, Vec::len);
    let node_ports = match text(spec, "type") {
        "NodePort" => ports,
        "LoadBalancer" if spec["allocateLoadBalancerNodePorts"] == false => {
            let given = |p: &&Value| p["nodePort"].as_i64().unwrap_or(0) != 0;
            spec["ports"].as_array().into_iter().flatten().filter(given).count()
        }
        "LoadBalancer" => ports,
        _ => 0,
    };
    let balancers = i64::from(text(spec, "type") == "LoadBalancer");
    add(amounts, "services", Quantity::from_units(1));
    add(amounts, "services.nodeports", Quantity::from_units(node_ports as i64));
    add(amounts, "services.loadbalancers", Quantity::from_units(balancers));
}

fn claim(object: &Map<String, Value>, charge: &mut Charge) {
    let (spec, status) = (member(object, "spec"), member(object, "status"));
    let parse = |v: &Value| v.as_str().and_then(|t| Quantity::parse(t).ok());
    let annotations = &member(object, "metadata")["annotations"];
    let class = match text(annotations, "volume.beta.kubernetes.io/storage-class") {
        "" => text(spec, "storageClassName"),
        old => old,
    };
    let one = Quantity::from_units(1);
    add(&mut charge.amounts, "persistentvolumeclaims", one);
    if !class.is_empty() {
        add(&mut charge.amounts, format!("{class}{STORAGE_CLASS}persistentvolumeclaims"), one);
    }
    // A claim that is being expanded, or could not be, costs the larger of what was asked and what is allocated.
    let asked = parse(&spec["resources"]["requests"]["storage"]);
    let allocated = parse(&status["allocatedResources"]["storage"]);
    if let Some(storage) = asked.max(allocated) {
        add(&mut charge.amounts, "requests.storage", storage);
        if !class.is_empty() {
            add(&mut charge.amounts, format!("{class}{STORAGE_CLASS}requests.storage"), storage);
        }
    }
    charge.traits.is_claim = true;
    let classes = [
        text(spec, "volumeAttributesClassName"),
        text(status, "currentVolumeAttributesClassName"),
        text(&status["modifyVolumeStatus"], "targetVolumeAttributesClassName"),
    ];
    charge.traits.volume_attributes_classes =
        classes.iter().filter(|c| !c.is_empty()).map(|c| (*c).to_owned()).collect();
}

/// Devices by class: what a claim may get at the most.
fn devices(object: &Map<String, Value>, amounts: &mut Amounts) {
    let requests = member(object, "spec")["devices"]["requests"].as_array().cloned().unwrap_or_default();
    for request in &requests {
        let count = |r: &Value| match text(r, "allocationMode") {
            // As many as a claim can hold (resource.k8s.io AllocationResultsMaxSize).
            "All" => 32,
            _ => r["count"].as_i64().unwrap_or(1),
        };
        let mut most: BTreeMap<&str, i64> = BTreeMap::new();
        let alternatives = request["firstAvailable"].as_array().into_iter().flatten();
        for exact in [&request["exactly"]].into_iter().filter(|e| e.is_object()).chain(alternatives) {
            let entry = most.entry(text(exact, "deviceClassName")).or_default();
            *entry = (*entry).max(count(exact));
        }
        for (class, n) in most {
            add(amounts, format!("{class}{DEVICE_CLASS}"), Quantity::from_units(n));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn amounts(group: &str, resource: &str, object: Value) -> String {
        let Value::Object(object) = object else { unreachable!() };
        let charge = charge(group, resource, &object, "2026-01-01T00:00:00Z".parse().unwrap());
        let shown: Vec<String> = charge.amounts.iter().map(|(k, v)| format!("{k}={v}")).collect();
        shown.join(",")
    }

    #[test]
    fn what_objects_cost() {
        for (group, resource, object, cost) in [
            ("", "secrets", json!({}), "count/secrets=1,secrets=1"),
            ("apps", "deployments", json!({}), "count/deployments.apps=1"),
            (
                "",
                "services",
                json!({"spec": {"type": "NodePort", "ports": [{}, {}]}}),
                "count/services=1,services=1,services.loadbalancers=0,services.nodeports=2",
            ),
            (
                "",
                "services",
                json!({"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
                    "ports": [{}, {"nodePort": 30001}]}}),
                "count/services=1,services=1,services.loadbalancers=1,services.nodeports=1",
            ),
            (
                "",
                "persistentvolumeclaims",
                json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "10Gi"}}}}),
                "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/requests.storage=10Gi,persistentvolumeclaims=1,requests.storage=10Gi",
            ),
            (
                "resource.k8s.io",
                "resourceclaims",
                json!({"spec": {"devices": {"requests": [
                    {"name": "a", "exactly": {"deviceClassName": "gpu", "count": 2}},
                    {"name": "b", "firstAvailable": [{"deviceClassName": "gpu"}, {"deviceClassName": "tpu"}]}]}}}),
                "count/resourceclaims.resource.k8s.io=1,gpu.deviceclass.resource.k8s.io/devices=3,tpu.deviceclass.resource.k8s.io/devices=1",
            ),
        ] {
            assert_eq!(amounts(group, resource, object), cost);
        }
    }

    #[test]
    fn names_belong_to_resources() {
        for (name, resource) in [
            ("pods", Some(("", "pods"))),
            ("requests.cpu", Some(("", "pods"))),
            ("limits.memory", Some(("", "pods"))),
            ("requests.nvidia.com/gpu", Some(("", "pods"))),
            ("requests.hugepages-2Mi", Some(("", "pods"))),
            ("count/deployments.apps", Some(("apps", "deployments"))),
            ("count/widgets.example.com", Some(("example.com", "widgets"))),
            ("services.nodeports", Some(("", "services"))),
            ("gold.storageclass.storage.k8s.io/requests.storage", Some(("", "persistentvolumeclaims"))),
            ("limits.nvidia.com/gpu", None),
            ("nonsense", None),
        ] {
            assert_eq!(resource_of(name), resource, "{name}");
        }
    }
}
