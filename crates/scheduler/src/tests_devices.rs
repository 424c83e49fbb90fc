//! Tables of cycles with claims of devices.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::prelude::*;
use serde_json::{Value, json};
use stdx::SeededRandom;

use crate::devices::{Change, Cleanup};
use crate::run::SCHEDULER_NAME;
use crate::state::{Decision, State};

struct World {
    state: State,
    now: Instant,
    random: SeededRandom,
}

impl World {
    fn new() -> World {
        let mut world = World { state: State::default(), now: Instant::now(), random: SeededRandom::new(1) };
        for name in ["a", "b"] {
            let node = json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
            world.state.node_changed(None, &Arc::new(Node::from_value(node).unwrap()), world.now);
        }
        let class = json!({"metadata": {"name": "c"}, "spec": {"extendedResourceName": "x/gpu"}});
        world.tell(Change::Class(Arc::new(DeviceClass::from_value(class).unwrap())));
        world
    }

    fn tell(&mut self, change: Change) {
        self.state.devices_changed(change, self.now);
    }

    fn slice(&mut self, node: &str, devices: &[&str]) {
        let devices: Vec<Value> = devices.iter().map(|name| json!({"name": name})).collect();
        let slice = json!({"metadata": {"name": node}, "spec": {"driver": "d.io", "nodeName": node, "devices": devices,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}}});
        self.tell(Change::Slice(Arc::new(ResourceSlice::from_value(slice).unwrap())));
    }

    fn claim(&mut self, name: &str, version: u32, status: Value) {
        let claim = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "resourceVersion": version.to_string()},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}, "status": status});
        self.tell(Change::Claim(Arc::new(ResourceClaim::from_value(claim).unwrap())));
    }

    fn pod(&mut self, name: &str, claims: &[&str], resources: Value) {
        let claims: Vec<Value> = claims.iter().map(|c| json!({"name": c, "resourceClaimName": c})).collect();
        let pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"resourceClaims": claims, "containers": [{"name": "c", "resources": {"requests": resources}}]}});
        let pod = Arc::new(Pod::from_value(pod).unwrap());
        self.state.pod_changed(None, &pod, SCHEDULER_NAME, self.now);
    }

    fn decide(&mut self) -> String {
        self.now += Duration::from_secs(20);
        match self.state.cycle(&[], self.now, &self.random) {
            None => "-".into(),
            Some(Decision::Bind { node, devices, .. }) => {
                let one = |reserve: &crate::devices::Reserve| {
                    let given =
                        reserve.allocation.iter().flat_map(|a| a.devices.clone().unwrap().results.unwrap());
                    format!(
                        " {}={}",
                        reserve.claim.name(),
                        given.map(|r| r.device).collect::<Vec<_>>().join("+")
                    )
                };
                node + &devices.iter().map(one).collect::<String>()
            }
            Some(Decision::Report { message, cleanup, .. }) => match cleanup {
                Some(Cleanup::Deallocate(claim)) => format!("{message} free {}", claim.name()),
                Some(Cleanup::Delete(claim)) => format!("{message} delete {}", claim.name()),
                None => message,
            },
        }
    }
}

fn on(node: &str) -> Value {
    json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]})
}

#[test]
fn pods_wait_for_claims_and_devices() {
    let mut world = World::new();
    world.pod("p", &["c1"], json!({}));
    assert_eq!(world.decide(), "-", "its claim is not there");
    world.claim("c1", 1, json!({}));
    assert_eq!(
        world.decide(),
        "0/2 nodes are available: 2 cannot allocate all claims. still not schedulable, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    );
    assert_eq!(world.decide(), "-", "nothing has changed");
    world.slice("b", &["x"]);
    assert_eq!(world.decide(), "b c1=x");
    // Decided, not written: nobody else gets the device, or the claim.
    world.claim("c2", 2, json!({}));
    world.pod("q", &["c2"], json!({}));
    assert!(world.decide().starts_with("0/2 nodes are available: 2 cannot allocate all claims."));
    world.pod("r", &["c1"], json!({}));
    assert!(world.decide().starts_with("0/2 nodes are available: resource claim n/c1 is in the process of being allocated. no new claims to deallocate, preemption:"));
    let result = json!({"request": "r", "driver": "d.io", "pool": "b", "device": "x"});
    let written = json!({"allocation": {"devices": {"results": [result]}, "nodeSelector": on("b")},
        "reservedFor": [{"resource": "pods", "name": "p", "uid": "p"}]});
    world.claim("c1", 3, written);
    world.state.devices_settled("p", world.now);
    let next = [world.decide(), world.decide()];
    assert!(next.contains(&"b c1=".to_owned()), "the second user goes where the device is: {next:?}");
    world.claim("c1", 4, json!({}));
    assert_eq!(world.decide(), "b c2=x", "the device is free again");
}

#[test]
fn an_older_claim_does_not_undo_what_was_written() {
    let mut world = World::new();
    world.slice("a", &["x"]);
    world.claim("c1", 5, json!({"allocation": {"nodeSelector": on("a")}}));
    world.claim("c1", 4, json!({}));
    world.pod("p", &["c1"], json!({}));
    assert_eq!(world.decide(), "a c1=");
}

#[test]
fn a_claim_that_is_out_of_reach_is_made_free() {
    let mut world = World::new();
    world.claim("c1", 1, json!({"allocation": {"nodeSelector": on("gone")}}));
    world.pod("p", &["c1"], json!({}));
    let said = world.decide();
    assert!(
        said.contains(
            "2 resourceclaim not available on the node. deallocation of ResourceClaim completed, preemption:"
        ),
        "{said}"
    );
    assert!(said.ends_with("free c1"), "{said}");
}

#[test]
fn extended_resources_are_devices() {
    let mut world = World::new();
    world.slice("a", &["x", "y"]);
    world.pod("p", &[], json!({"x/gpu": "2"}));
    assert_eq!(world.decide(), "a =x+y");
    world.pod("q", &[], json!({"other/gpu": "1"}));
    assert!(world.decide().contains("2 Insufficient other/gpu"));
}

#[test]
fn mistakes_are_told() {
    let mut world = World::new();
    world.slice("a", &["x"]);
    let claim = json!({"metadata": {"name": "c1", "namespace": "n", "uid": "c1"}, "spec": {"devices": {"requests": [
        {"name": "r", "exactly": {"deviceClassName": "c", "selectors": [{"cel": {"expression": "device.attributes['d.io'].none"}}]}}]}}});
    world.tell(Change::Claim(Arc::new(ResourceClaim::from_value(claim).unwrap())));
    world.pod("p", &["c1"], json!({}));
    assert_eq!(
        world.decide(),
        "running \"DynamicResources\" filter plugin: claim n/c1: selector #0 on device d.io/a/x: CEL runtime error: no such key: none"
    );
}
