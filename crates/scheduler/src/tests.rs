//! Tables of whole cycles: nodes and pods in, decisions out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::prelude::*;
use serde_json::{Value, json};
use stdx::SeededRandom;

use crate::run::SCHEDULER_NAME;
use crate::state::{Decision, State};
use crate::storage::Change;

struct World {
    state: State,
    now: Instant,
    random: SeededRandom,
    pods: u32,
}

impl World {
    fn new() -> World {
        World { state: State::default(), now: Instant::now(), random: SeededRandom::new(1), pods: 0 }
    }

    fn node(&mut self, name: &str, zone: &str, cpu: &str, extra: Value) {
        let mut spec = json!({});
        merge(&mut spec, extra);
        let node = Node::from_value(json!({
            "metadata": {"name": name, "labels": {
                "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}},
            "spec": spec,
            "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}},
        }))
        .unwrap();
        self.state.node_changed(None, &Arc::new(node), self.now);
    }

    fn pod(&mut self, name: &str, cpu: &str, extra: Value) -> Arc<Pod> {
        self.pods += 1;
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "n", "uid": format!("{name}-{}", self.pods), "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
        });
        merge(&mut pod, extra);
        let pod = Arc::new(Pod::from_value(pod).unwrap());
        self.state.pod_changed(None, &pod, SCHEDULER_NAME, self.now);
        pod
    }

    fn decide(&mut self) -> String {
        match self.state.cycle(&[], self.now, &self.random) {
            None => "-".into(),
            Some(Decision::Bind { pod, node, volumes, .. }) => {
                let bound = volumes.bind.iter().map(|(v, c)| format!(" {}={}", c.name(), v.name()));
                let made = volumes.provision.iter().map(|c| format!(" {}=new", c.name()));
                let extra: String = bound.chain(made).collect();
                // What is bound later stays promised until then.
                if volumes.is_empty() {
                    self.state.bound(&pod.info, self.now);
                }
                node + &extra
            }
            Some(Decision::Report { message, room, .. }) => match room {
                Some(room) => {
                    let victims: Vec<_> = room.victims.iter().map(|v| v.pod.name()).collect();
                    format!("{} without {}", room.node, victims.join(","))
                }
                None => message,
            },
        }
    }

    fn place(&mut self, name: &str, cpu: &str, extra: Value) -> String {
        self.pod(name, cpu, extra);
        self.decide()
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

fn merge(target: &mut Value, extra: Value) {
    match (target, extra) {
        (Value::Object(target), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, extra) => *target = extra,
    }
}

#[test]
fn people_are_told_why() {
    let mut world = World::new();
    assert_eq!(world.place("early", "1", json!({})), "no nodes available to schedule pods");
    world.node("a", "z1", "1", json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}));
    world.node("b", "z1", "1", json!({}));
    world.node("c", "z2", "1", json!({"unschedulable": true}));
    world.wait(60);
    assert_ne!(world.decide(), "-", "a node has come");
    assert_eq!(
        world.place("big", "2", json!({})),
        "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}, 1 node(s) were unschedulable. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
    );
    assert_eq!(
        world.place(
            "picky",
            "0",
            json!({"spec": {"nodeSelector": {"no": "where"}, "preemptionPolicy": "Never",
            "tolerations": [{"operator": "Exists"}]}})
        ),
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. preemption: not eligible due to preemptionPolicy=Never."
    );
}

#[test]
fn emptier_nodes_are_better() {
    let mut world = World::new();
    world.node("a", "z1", "4", json!({}));
    world.node("b", "z1", "4", json!({}));
    let first = world.place("p1", "1", json!({}));
    let second = world.place("p2", "1", json!({}));
    assert_ne!(first, second);
    let tolerant = json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 100, "preference": {"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [first]}]}}]}}}});
    assert_eq!(world.place("p3", "1", tolerant), first);
}

#[test]
fn affinity_and_anti_affinity() {
    let mut world = World::new();
    for (node, zone) in [("a", "z1"), ("b", "z1"), ("c", "z2")] {
        world.node(node, zone, "4", json!({}));
    }
    let term =
        |key: &str, app: &str| json!([{"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}]);
    let spec = |kind: &str, term: Value| json!({"spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term}}}});
    let apart = || {
        let mut pod = spec("podAntiAffinity", term("topology.kubernetes.io/zone", "db"));
        merge(&mut pod, json!({"metadata": {"labels": {"app": "db"}}}));
        pod
    };
    let zone = |node: &str| if node == "c" { "z2" } else { "z1" };
    let (one, two) = (world.place("db1", "1", apart()), world.place("db2", "1", apart()));
    assert_ne!(zone(&one), zone(&two));
    let third = world.place("db3", "1", apart());
    assert!(
        third.starts_with("0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules."),
        "{third}"
    );
    // The unwanted newcomer has no terms of its own.
    let newcomer = world.place("db4", "1", json!({"metadata": {"labels": {"app": "db"}}}));
    assert!(newcomer.contains("3 node(s) didn't satisfy existing pods anti-affinity rules"), "{newcomer}");
    let near = |app: &str| spec("podAffinity", term("kubernetes.io/hostname", app));
    assert_eq!(world.place("near", "1", near("db")).len(), 1);
    let lonely = world.place("lonely", "1", near("nobody"));
    assert!(lonely.contains("3 node(s) didn't match pod affinity rules"), "{lonely}");
    assert_eq!(world.place("first", "1", near("x")).len(), 1, "the first of its kind may go anywhere");
}

#[test]
fn pods_are_spread() {
    let mut world = World::new();
    for (node, zone) in [("a", "z1"), ("b", "z1"), ("c", "z2")] {
        world.node(node, zone, "8", json!({}));
    }
    let spread = || {
        json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "x"}}}]}})
    };
    let mut zones = [0, 0];
    for n in 0..6 {
        let node = world.place(&format!("p{n}"), "100m", spread());
        zones[usize::from(node == "c")] += 1;
        let skew: i32 = zones[0] - zones[1];
        assert!(skew.abs() <= 1, "{zones:?}");
    }
}

#[test]
fn a_pod_waits_for_room() {
    let mut world = World::new();
    world.node("a", "z1", "1", json!({}));
    let first = world.pod("p1", "1", json!({}));
    assert_eq!(world.decide(), "a");
    assert!(world.place("p2", "1", json!({})).starts_with("0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."));
    world.wait(30);
    assert_eq!(world.decide(), "-", "nothing has changed");
    world.state.pod_gone(&first, world.now);
    assert_eq!(world.decide(), "a");
}

#[test]
fn the_cheapest_victims_go() {
    let mut world = World::new();
    for (node, priority) in [("a", 10), ("b", 5), ("c", 5)] {
        world.node(node, "z", "2", json!({}));
        let pinned =
            json!({"spec": {"priority": priority, "nodeSelector": {"kubernetes.io/hostname": node}}});
        assert_eq!(world.place(&format!("{node}1"), "1", pinned.clone()), node);
        let second = if node == "c" { "1" } else { "900m" };
        assert_eq!(world.place(&format!("{node}2"), second, pinned), node);
    }
    // On b one pod has to go; on c one too, but so it is on a, at a higher price.
    let decision = world.place("vip", "1", json!({"spec": {"priority": 1000}}));
    assert!(
        ["b without b1", "b without b2", "c without c1", "c without c2"].contains(&decision.as_str()),
        "{decision}"
    );
    let rude = world.place("meek", "1", json!({"spec": {"priority": 5}}));
    assert!(rude.contains("No preemption victims found for incoming pod"), "{rude}");
}

#[test]
fn gated_pods_and_other_schedulers_pods_do_not_queue() {
    let mut world = World::new();
    world.node("a", "z", "4", json!({}));
    assert_eq!(world.place("g", "1", json!({"spec": {"schedulingGates": [{"name": "example.com/g"}]}})), "-");
    assert_eq!(world.place("o", "1", json!({"spec": {"schedulerName": "other"}})), "-");
    assert_eq!(world.state.queue.depths(), (0, 0, 1));
    let ports =
        json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}]}]}});
    assert_eq!(world.place("h1", "0", ports.clone()), "a");
    assert!(
        world.place("h2", "0", ports).contains("node(s) didn't have free ports for the requested pod ports")
    );
}

impl World {
    fn claim(&mut self, name: &str, extra: Value) {
        let mut claim = json!({"metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "late",
                "resources": {"requests": {"storage": "1Gi"}}}});
        merge(&mut claim, extra);
        let claim = PersistentVolumeClaim::from_value(claim).unwrap();
        self.state.storage_changed(Change::Claim(Arc::new(claim)), self.now);
    }

    fn volume(&mut self, name: &str, node: &str) {
        let volume = json!({"metadata": {"name": name}, "status": {"phase": "Available"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "late", "capacity": {"storage": "2Gi"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions":
                    [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}});
        let volume = PersistentVolume::from_value(volume).unwrap();
        self.state.storage_changed(Change::Volume(Arc::new(volume)), self.now);
    }

    fn class(&mut self, name: &str, provisioner: &str) {
        let class = json!({"metadata": {"name": name}, "provisioner": provisioner,
            "volumeBindingMode": "WaitForFirstConsumer"});
        let class = StorageClass::from_value(class).unwrap();
        self.state.storage_changed(Change::Class(Arc::new(class)), self.now);
    }
}

fn using(claim: &str) -> Value {
    json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}})
}

#[test]
fn volumes_choose_nodes() {
    let mut world = World::new();
    world.node("a", "z1", "4", json!({}));
    world.node("b", "z1", "4", json!({}));
    world.class("late", "kubernetes.io/no-provisioner");
    let not = "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    let why = |reason: &str| format!("0/2 nodes are available: {reason}. {not}");
    assert_eq!(world.place("p1", "0", using("c1")), why("persistentvolumeclaim \"c1\" not found"));
    world.claim("c1", json!({}));
    world.wait(5);
    assert_eq!(world.decide(), why("2 node(s) didn't find available persistent volumes to bind"));
    world.volume("v1", "b");
    world.wait(5);
    assert_eq!(world.decide(), "b c1=v1", "a volume has come");
    world.claim("c2", json!({}));
    let second = world.place("p2", "0", using("c2"));
    assert_eq!(second, why("2 node(s) didn't find available persistent volumes to bind"), "v1 is promised");
    world.class("late", "example.com/driver");
    world.wait(5);
    assert!(world.decide().ends_with(" c2=new"));
    let selected = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "a"}}});
    world.claim("c3", selected);
    assert_eq!(world.place("p3", "0", using("c3")), "a c3=new", "made for a already");
    world.claim("c4", json!({"spec": {"storageClassName": "none"}}));
    assert_eq!(world.place("p4", "0", using("c4")), why("pod has unbound immediate PersistentVolumeClaims"));
    let bound = |volume: &str| {
        json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": volume}})
    };
    world.claim("c5", bound("v1"));
    assert_eq!(world.place("p5", "0", using("c5")), "b");
    let mut pinned = using("c5");
    merge(&mut pinned, json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "a"}}}));
    let text = world.place("p6", "0", pinned);
    assert!(text.contains("1 node(s) didn't match PersistentVolume's node affinity"), "{text}");
    world.claim("c7", bound("gone"));
    let text = world.place("p7", "0", using("c7"));
    assert!(
        text.contains("2 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"),
        "{text}"
    );
    world.claim("c8", json!({"spec": {"accessModes": ["ReadWriteOncePod"]}}));
    assert!(world.place("p8", "0", using("c8")).ends_with("c8=new"));
    let text = world.place("p9", "0", using("c8"));
    let once = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    assert!(text.contains(once), "{text}");
}

#[test]
fn nodes_take_as_many_volumes_as_their_drivers_can() {
    let mut world = World::new();
    world.node("a", "z", "8", json!({}));
    let limited = |count: i32| {
        let drivers = json!([{"name": "d", "nodeID": "a", "allocatable": {"count": count}}]);
        let node = json!({"metadata": {"name": "a"}, "spec": {"drivers": drivers}});
        Change::Drivers(Arc::new(CSINode::from_value(node).unwrap()))
    };
    world.state.storage_changed(limited(2), world.now);
    let volume = |name: &str, handle: &str| {
        let volume = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "2Gi"}, "csi": {"driver": "d", "volumeHandle": handle}}});
        Change::Volume(Arc::new(PersistentVolume::from_value(volume).unwrap()))
    };
    for (name, handle) in [("v1", "one"), ("v2", "two"), ("v3", "three")] {
        world.state.storage_changed(volume(name, handle), world.now);
        let done = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": name}});
        world.claim(&name.replace('v', "c"), done);
    }
    assert_eq!(world.place("p1", "0", using("c1")), "a");
    assert_eq!(world.place("p2", "0", using("c1")), "a", "the same volume takes no more room");
    assert_eq!(world.place("p3", "0", using("c2")), "a");
    let text = world.place("p4", "0", using("c3"));
    assert!(text.starts_with("0/1 nodes are available: 1 node(s) exceed max volume count."), "{text}");
    world.state.storage_changed(limited(3), world.now);
    world.wait(5);
    assert_eq!(world.decide(), "a", "the driver can have more");
}

#[test]
fn volumes_are_made_where_there_is_room() {
    let mut world = World::new();
    world.node("a", "z1", "4", json!({}));
    world.node("b", "z2", "4", json!({}));
    world.class("late", "d.example.com");
    let driver = |measured: bool| {
        let driver = json!({"metadata": {"name": "d.example.com"}, "spec": {"storageCapacity": measured}});
        Change::Driver(Arc::new(CSIDriver::from_value(driver).unwrap()))
    };
    let room = |name: &str, class: &str, more: Value| {
        let mut room = json!({"metadata": {"name": name, "namespace": "drivers"}, "storageClassName": class});
        merge(&mut room, more);
        Change::Capacity(Arc::new(CSIStorageCapacity::from_value(room).unwrap()))
    };
    let on = |node: &str| json!({"matchLabels": {"kubernetes.io/hostname": node}});
    world.state.storage_changed(driver(true), world.now);
    world.claim("c1", json!({}));
    let full = "0/2 nodes are available: 2 node(s) did not have enough free storage. \
                preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    assert_eq!(world.place("p1", "0", using("c1")), full);
    for (name, class, more) in [
        ("nowhere", "late", json!({"capacity": "9Gi"})),
        ("unknown", "late", json!({"nodeTopology": on("a")})),
        ("small", "late", json!({"capacity": "100Mi", "nodeTopology": on("a")})),
        (
            "in pieces",
            "late",
            json!({"capacity": "9Gi", "maximumVolumeSize": "1Mi", "nodeTopology": on("a")}),
        ),
        ("of another class", "soon", json!({"capacity": "9Gi", "nodeTopology": {}})),
    ] {
        world.state.storage_changed(room(name, class, more), world.now);
        world.wait(12);
        assert_eq!(world.decide(), full, "{name}");
    }
    world.state.storage_changed(
        room("enough", "late", json!({"capacity": "1Gi", "nodeTopology": on("b")})),
        world.now,
    );
    world.wait(12);
    assert_eq!(world.decide(), "b c1=new");
    world.state.storage_changed(Change::CapacityGone("drivers/enough".into()), world.now);
    world.claim("c2", json!({}));
    assert_eq!(world.place("p2", "0", using("c2")), full);
    // A volume that is there needs no room.
    world.volume("v1", "a");
    world.wait(12);
    assert_eq!(world.decide(), "a c2=v1");
    world.claim("c3", json!({}));
    assert_eq!(world.place("p3", "0", using("c3")), full);
    world.state.storage_changed(driver(false), world.now);
    world.wait(12);
    assert!(world.decide().ends_with(" c3=new"), "a driver that does not measure has room");
}
