use std::collections::BTreeMap;
use std::sync::Arc;

use api::prelude::*;
use serde_json::{Value, json};

use crate::*;

fn node(name: &str) -> Node {
    Node::from_value(json!({"metadata": {"name": name, "labels": {"zone": "a"}}})).unwrap()
}

fn slice(name: &str, spec: Value) -> Arc<ResourceSlice> {
    let mut all = json!({"driver": "d.io", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    Arc::new(ResourceSlice::from_value(json!({"metadata": {"name": name}, "spec": all})).unwrap())
}

fn devices(names: &[&str]) -> Value {
    let one = |(i, name): (usize, &&str)| {
        let kind = if i % 2 == 0 { "even" } else { "odd" };
        json!({"name": name, "attributes": {"index": {"int": i}, "kind": {"string": kind}, "numa": {"int": i / 2}}})
    };
    names.iter().enumerate().map(one).collect()
}

fn claim(name: &str, devices: Value) -> Arc<ResourceClaim> {
    let value =
        json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": {"devices": devices}});
    Arc::new(ResourceClaim::from_value(value).unwrap())
}

fn exactly(name: &str, more: Value) -> Value {
    let mut all = json!({"deviceClassName": "any"});
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"name": name, "exactly": all})
}

fn cel(expression: &str) -> Value {
    json!([{"cel": {"expression": expression}}])
}

struct World {
    slices: Slices,
    taken: Taken,
    classes: BTreeMap<String, Arc<DeviceClass>>,
    selectors: Selectors,
}

impl World {
    fn new(slices: &[Arc<ResourceSlice>]) -> World {
        let class = |name: &str, spec: Value| {
            let made = DeviceClass::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
            (name.to_owned(), Arc::new(made))
        };
        let config = json!([{"opaque": {"driver": "d.io", "parameters": {"a": 1}}}]);
        let odd = cel("device.attributes['d.io'].kind == 'odd'");
        let broken = cel("device.attributes['d.io'].none == 1");
        let classes = [
            class("any", json!({})),
            class("odd", json!({"selectors": odd})),
            class("configured", json!({"config": config})),
            class("broken", json!({"selectors": broken})),
        ];
        let mut world = World {
            slices: Slices::default(),
            taken: Taken::default(),
            classes: classes.into(),
            selectors: Selectors::default(),
        };
        slices.iter().for_each(|slice| world.slices.set(slice.clone()));
        world
    }

    fn allocate(
        &self,
        on: &str,
        claims: &[Arc<ResourceClaim>],
    ) -> Result<Option<Vec<api::k8s_openapi::api::resource::v1::AllocationResult>>, Failure> {
        let class = |name: &str| self.classes.get(name).cloned();
        let inventory =
            Inventory { slices: &self.slices, taken: &self.taken, class: &class, selectors: &self.selectors };
        let mut shares = 0;
        let mut share = || {
            shares += 1;
            format!("share-{shares}")
        };
        allocate(inventory, &node(on), claims, &mut share)
    }

    /// `request=device` of every result, claims apart by `|`.
    fn shown(&self, on: &str, claims: &[Arc<ResourceClaim>]) -> String {
        match self.allocate(on, claims) {
            Err(Failure::Claim(why)) => format!("claim: {why}"),
            Err(Failure::Node(why)) => format!("node: {why}"),
            Err(Failure::TooLong) => "too long".into(),
            Ok(None) => "none".into(),
            Ok(Some(results)) => {
                let one = |result: &api::k8s_openapi::api::resource::v1::AllocationResult| {
                    let list = result.devices.clone().unwrap().results.unwrap();
                    list.iter().map(|r| format!("{}={}", r.request, r.device)).collect::<Vec<_>>().join(" ")
                };
                results.iter().map(one).collect::<Vec<_>>().join(" | ")
            }
        }
    }
}

fn local(names: &[&str]) -> World {
    World::new(&[slice("s", json!({"nodeName": "n1", "devices": devices(names)}))])
}

#[test]
fn requests() {
    let world = local(&["a", "b", "c", "d"]);
    let cases = [
        (json!({"requests": [exactly("r", json!({}))]}), "r=a"),
        (json!({"requests": [exactly("r", json!({"count": 3}))]}), "r=a r=b r=c"),
        (json!({"requests": [exactly("r", json!({"count": 5}))]}), "none"),
        (json!({"requests": [exactly("r", json!({"allocationMode": "All"}))]}), "r=a r=b r=c r=d"),
        (
            json!({"requests": [exactly("r", json!({"deviceClassName": "odd", "allocationMode": "All"}))]}),
            "r=b r=d",
        ),
        (
            json!({"requests": [exactly("r", json!({"selectors": cel("device.attributes['d.io'].index > 1")}))]}),
            "r=c",
        ),
        // The first takes the only one that the second can have, and has to give it back.
        (
            json!({"requests": [exactly("x", json!({})),
                exactly("y", json!({"selectors": cel("device.attributes['d.io'].index == 0")}))]}),
            "x=b y=a",
        ),
        (
            json!({"requests": [exactly("x", json!({"count": 2}))],
                "constraints": [{"matchAttribute": "d.io/kind"}]}),
            "x=a x=c",
        ),
        (
            json!({"requests": [exactly("x", json!({"count": 2})), exactly("y", json!({"count": 2}))],
                "constraints": [{"matchAttribute": "d.io/numa", "requests": ["y"]}]}),
            "x=a x=b y=c y=d",
        ),
        (
            json!({"requests": [exactly("x", json!({"count": 2}))],
                "constraints": [{"distinctAttribute": "d.io/numa"}]}),
            "x=a x=c",
        ),
        (
            json!({"requests": [exactly("x", json!({}))], "constraints": [{"matchAttribute": "d.io/none"}]}),
            "none",
        ),
        (
            json!({"requests": [{"name": "r", "firstAvailable": [
                {"name": "big", "deviceClassName": "any", "count": 5},
                {"name": "small", "deviceClassName": "odd", "count": 2}]}]}),
            "r/small=b r/small=d",
        ),
        (
            json!({"requests": [exactly("r", json!({"deviceClassName": "missing"}))]}),
            "claim: claim n/c, request r: could not retrieve device class missing: deviceclass.resource.k8s.io \"missing\" not found",
        ),
        (
            json!({"requests": [exactly("r", json!({"deviceClassName": "broken"}))]}),
            "claim: class broken: selector #0 on device d.io/p/a: CEL runtime error: no such key: none",
        ),
        (
            json!({"requests": [exactly("r", json!({"count": 33}))]}),
            "claim: claim n/c: number of requested devices 33 exceeds the claim limit of 32",
        ),
    ];
    for (asked, expected) in cases {
        assert_eq!(world.shown("n1", &[claim("c", asked.clone())]), expected, "{asked}");
    }
    assert_eq!(world.shown("n2", &[claim("c", json!({"requests": [exactly("r", json!({}))]}))]), "none");
}

#[test]
fn several_claims_share_what_there_is() {
    let world = local(&["a", "b"]);
    let one = |name: &str| claim(name, json!({"requests": [exactly("r", json!({}))]}));
    assert_eq!(world.shown("n1", &[one("c1"), one("c2")]), "r=a | r=b");
    assert_eq!(world.shown("n1", &[one("c1"), one("c2"), one("c3")]), "none");
}

#[test]
fn what_is_taken_is_taken_but_not_from_administrators() {
    let mut world = local(&["a", "b"]);
    let first = world.allocate("n1", &[claim("c", json!({"requests": [exactly("r", json!({}))]}))]);
    world.taken.add(&first.unwrap().unwrap()[0]);
    let ask = |more: Value| claim("c2", json!({"requests": [exactly("r", more)]}));
    assert_eq!(world.shown("n1", &[ask(json!({}))]), "r=b");
    assert_eq!(world.shown("n1", &[ask(json!({"allocationMode": "All"}))]), "none");
    let admin = json!({"allocationMode": "All", "adminAccess": true});
    assert_eq!(world.shown("n1", &[ask(admin.clone())]), "r=a r=b");
    let given = world.allocate("n1", &[ask(admin)]).unwrap().unwrap();
    let before = world.taken.whole.len();
    world.taken.add(&given[0]);
    assert_eq!(world.taken.whole.len(), before);
}

#[test]
fn pools_have_to_be_whole() {
    let part = |name: &str, generation: i64, count: i64, device: &str| {
        slice(
            name,
            json!({"nodeName": "n1", "devices": devices(&[device]),
            "pool": {"name": "p", "generation": generation, "resourceSliceCount": count}}),
        )
    };
    let one = [claim("c", json!({"requests": [exactly("r", json!({}))]}))];
    let all = [claim("c", json!({"requests": [exactly("r", json!({"allocationMode": "All"}))]}))];
    let half = World::new(&[part("s1", 1, 2, "a")]);
    assert_eq!(half.shown("n1", &one), "none");
    assert_eq!(
        half.shown("n1", &all),
        "node: claim n/c, request r: asks for all devices, but resource pool d.io/p is currently being updated"
    );
    let whole = World::new(&[part("s1", 1, 2, "a"), part("s2", 1, 2, "b")]);
    assert_eq!(whole.shown("n1", &all), "r=a r=b");
    let newer = World::new(&[part("s1", 1, 1, "a"), part("s2", 2, 1, "b")]);
    assert_eq!(newer.shown("n1", &all), "r=b", "the older generation does not count");
    let twice = World::new(&[part("s1", 1, 2, "a"), part("s2", 1, 2, "a")]);
    assert_eq!(twice.shown("n1", &one), "node: invalid resource pools were encountered");
}

#[test]
fn places() {
    let term = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]});
    let per_device = json!([{"name": "x", "nodeName": "n1"}, {"name": "y", "allNodes": true}]);
    let cases = [
        (
            json!({"nodeName": "n1", "devices": devices(&["a"])}),
            json!({"nodeSelectorTerms": [{"matchFields":
            [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]}),
        ),
        (json!({"allNodes": true, "devices": devices(&["a"])}), Value::Null),
        (json!({"nodeSelector": term, "devices": devices(&["a"])}), term.clone()),
        (
            json!({"perDeviceNodeSelection": true, "devices": per_device}),
            json!({"nodeSelectorTerms": [{"matchFields":
            [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]}),
        ),
    ];
    for (spec, expected) in cases {
        let world = World::new(&[slice("s", spec.clone())]);
        let claims = [claim("c", json!({"requests": [exactly("r", json!({}))]}))];
        let result = world.allocate("n1", &claims).unwrap().unwrap().remove(0);
        assert_eq!(
            result.node_selector.map_or(Value::Null, |s| serde_json::to_value(s).unwrap()),
            expected,
            "{spec}"
        );
    }
}

#[test]
fn taints_and_rules() {
    let tainted = json!([{"name": "a", "taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]},
        {"name": "b", "taints": [{"key": "k", "effect": "None"}]}]);
    let mut world = World::new(&[slice("s", json!({"nodeName": "n1", "devices": tainted}))]);
    let ask = |more: Value| [claim("c", json!({"requests": [exactly("r", more)]}))];
    assert_eq!(world.shown("n1", &ask(json!({}))), "r=b");
    let tolerant = json!({"tolerations": [{"key": "k", "operator": "Equal", "value": "v"}]});
    assert_eq!(world.shown("n1", &ask(tolerant.clone())), "r=a");
    let rule = json!({"metadata": {"name": "x"}, "spec": {"deviceSelector": {"driver": "d.io", "device": "b"},
        "taint": {"key": "z", "effect": "NoExecute"}}});
    world.slices.set_rule(Arc::new(DeviceTaintRule::from_value(rule).unwrap()));
    assert_eq!(world.shown("n1", &ask(json!({}))), "none");
    world.slices.remove_rule("x");
    assert_eq!(world.shown("n1", &ask(json!({}))), "r=b");
}

#[test]
fn counters_are_shared() {
    let counters = slice(
        "c",
        json!({"allNodes": true, "sharedCounters": [{"name": "set", "counters": {"mem": {"value": "40Gi"}}}],
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 2}}),
    );
    let part = |name: &str, amount: &str| {
        json!({"name": name,
        "consumesCounters": [{"counterSet": "set", "counters": {"mem": {"value": amount}}}]})
    };
    let parts = slice(
        "s",
        json!({"nodeName": "n1", "devices": [part("a", "30Gi"), part("b", "20Gi"), part("c", "20Gi")],
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 2}}),
    );
    let mut world = World::new(&[counters, parts]);
    let ask = |count: i64| [claim("c", json!({"requests": [exactly("r", json!({"count": count}))]}))];
    assert_eq!(world.shown("n1", &ask(2)), "r=b r=c");
    assert_eq!(world.shown("n1", &ask(3)), "none");
    let first = world.allocate("n1", &ask(1)).unwrap().unwrap();
    world.taken.add(&first[0]);
    assert_eq!(world.shown("n1", &ask(1)), "none", "10Gi are left");
}

#[test]
fn capacity_is_shared() {
    let policy = json!({"default": "1Gi", "validRange": {"min": "1Gi", "step": "1Gi"}});
    let device = json!([{"name": "a", "allowMultipleAllocations": true,
        "capacity": {"mem": {"value": "4Gi", "requestPolicy": policy}}}]);
    let mut world = World::new(&[slice("s", json!({"nodeName": "n1", "devices": device}))]);
    let ask = |amount: &str| {
        [claim("c", json!({"requests": [exactly("r", json!({"capacity": {"requests": {"mem": amount}}}))]}))]
    };
    let given = world.allocate("n1", &ask("1500Mi")).unwrap().unwrap().remove(0);
    let result = given.devices.as_ref().unwrap().results.as_ref().unwrap()[0].clone();
    assert_eq!(result.consumed_capacity.unwrap()["mem"].0, "2Gi");
    assert_eq!(result.share_id.as_deref(), Some("share-1"));
    world.taken.add(&given);
    assert_eq!(world.shown("n1", &ask("2Gi")), "r=a");
    assert_eq!(world.shown("n1", &ask("3Gi")), "none");
    assert_eq!(
        world.shown("n1", &[claim("c", json!({"requests": [exactly("r", json!({"count": 2}))]}))]),
        "none",
        "a request gets a device once"
    );
    let two = json!({"requests": [exactly("x", json!({})), exactly("y", json!({}))]});
    assert_eq!(world.shown("n1", &[claim("c", two)]), "x=a y=a");
}

#[test]
fn configuration_of_classes_and_claims() {
    let world = local(&["a", "b"]);
    let opaque = |n: i64| json!({"driver": "d.io", "parameters": {"n": n}});
    let asked = json!({"requests": [exactly("x", json!({"deviceClassName": "configured"})), exactly("y", json!({}))],
        "config": [{"requests": ["y"], "opaque": opaque(1)}, {"opaque": opaque(2)}, {"requests": ["x", "y"], "opaque": opaque(3)}]});
    let result = world.allocate("n1", &[claim("c", asked)]).unwrap().unwrap().remove(0);
    let config = result.devices.unwrap().config.unwrap();
    let shown: Vec<_> =
        config.iter().map(|c| format!("{} {:?}", c.source, c.requests.clone().unwrap_or_default())).collect();
    assert_eq!(shown, ["FromClass [\"x\"]", "FromClaim [\"y\"]", "FromClaim []", "FromClaim []"]);
}

#[test]
fn the_search_has_an_end() {
    let names: Vec<String> = (0..40).map(|i| format!("d{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let world = local(&names);
    let impossible = json!({"requests": [exactly("x", json!({"count": 20})), exactly("y", json!({"count": 12,
        "selectors": cel("device.attributes['d.io'].index == 0")}))]});
    assert_eq!(world.shown("n1", &[claim("c", impossible)]), "too long");
}

#[test]
fn names_of_claims() {
    let pod = |status: Value| {
        Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [],
            "resourceClaims": [{"name": "own", "resourceClaimTemplateName": "t"}, {"name": "given", "resourceClaimName": "c"}, {"name": "odd"}]},
            "status": status}))
        .unwrap()
    };
    let shown = |pod: &Pod| -> Vec<String> {
        let one = |entry| match claims::reference(pod, entry) {
            Ok(Some(reference)) => format!("{} {}", reference.name, reference.own),
            Ok(None) => "-".into(),
            Err(why) => why.to_string(),
        };
        claims::of_pod(pod).iter().map(one).collect()
    };
    let odd = "pod \"n/p\", spec.resourceClaim \"odd\": none of the supported fields are set";
    assert_eq!(shown(&pod(json!({}))), ["pod \"n/p\": ResourceClaim not created yet", "c false", odd]);
    let named = json!({"resourceClaimStatuses": [{"name": "own", "resourceClaimName": "p-own-x"}]});
    assert_eq!(shown(&pod(named)), ["p-own-x true", "c false", odd]);
    assert_eq!(shown(&pod(json!({"resourceClaimStatuses": [{"name": "own"}]})))[0], "-");
}

#[test]
fn containers_with_extended_resources() {
    let container = |name: &str, amount: &str| json!({"name": name, "resources": {"requests": {"cpu": "1", "x/gpu": amount}}});
    let mut sidecar = container("side", "1");
    sidecar["restartPolicy"] = "Always".into();
    let pod = Pod::from_value(json!({"metadata": {"name": "p"}, "spec": {
        "initContainers": [container("i1", "2"), sidecar, container("i2", "4"), container("i3", "9")],
        "containers": [container("c", "3")]}}))
    .unwrap();
    let (requests, mappings) = extended_requests(&pod, &[("x/gpu".to_owned(), "gpu".to_owned())].into());
    let shown: Vec<_> = requests
        .iter()
        .map(|r| format!("{}={}", r.name, r.exactly.as_ref().unwrap().count.unwrap()))
        .collect();
    assert_eq!(shown, ["container-1-request-1=1", "container-3-request-1=6", "container-4-request-1=3"]);
    let shown: Vec<_> = mappings.iter().map(|m| format!("{}:{}", m.container, &m.request[10..11])).collect();
    assert_eq!(shown, ["side:1", "c:4", "i1:1", "i1:4", "i2:4", "i2:3", "i3:4", "i3:3"]);
}
