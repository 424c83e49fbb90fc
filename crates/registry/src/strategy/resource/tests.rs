use serde_json::{Value, json};

use super::*;

fn object(value: Value) -> Object {
    value.as_object().unwrap().clone()
}

fn shown(errors: Vec<FieldError>) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn claim_errors(devices: Value) -> Vec<String> {
    let mut claim = object(json!({"spec": {"devices": devices}}));
    Claim.default(&mut claim);
    shown(Claim.validate_also(&claim))
}

#[test]
fn claims() {
    let exact = |more: Value| {
        let mut all = json!({"deviceClassName": "c"});
        all.as_object_mut().unwrap().extend(object(more));
        json!({"requests": [{"name": "r", "exactly": all}]})
    };
    assert!(claim_errors(exact(json!({}))).is_empty());
    let at = "spec.devices.requests[0]";
    let cases = [
        (json!({"requests": [{"name": "r"}]}), format!("{at}: Required value: exactly one of `exactly` or `firstAvailable` is required")),
        (exact(json!({"count": -1})), format!("{at}.exactly.count: Invalid value: -1: must be greater than zero")),
        (exact(json!({"allocationMode": "All", "count": 1})), format!("{at}.exactly.count: Invalid value: 1: must not be specified when allocationMode is 'All'")),
        (exact(json!({"selectors": [{}]})), format!("{at}.exactly.selectors[0].cel: Required value")),
        (
            exact(json!({"selectors": [{"cel": {"expression": "device.nope"}}]})),
            format!("{at}.exactly.selectors[0].cel.expression: Invalid value: \"device.nope\": compilation failed: ERROR: <input>:1:7: undefined field 'nope'\n | device.nope\n | ......^"),
        ),
        (
            exact(json!({"selectors": [{"cel": {"expression": "1"}}]})),
            format!("{at}.exactly.selectors[0].cel.expression: Invalid value: \"1\": must evaluate to bool or the unknown type, not int"),
        ),
        (
            json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}], "constraints": [{"requests": ["x"], "matchAttribute": "d/a"}]}),
            "spec.devices.constraints[0].requests[0]: Invalid value: \"x\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'".into(),
        ),
        (
            json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}], "constraints": [{"matchAttribute": "a"}]}),
            "spec.devices.constraints[0].matchAttribute: Invalid value: \"a\": a fully qualified name must be a domain and a name separated by a slash".into(),
        ),
        (
            json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}], "config": [{}]}),
            "spec.devices.config[0].opaque: Required value".into(),
        ),
    ];
    for (devices, expected) in cases {
        assert_eq!(claim_errors(devices.clone()), [expected], "{devices}");
    }
}

#[test]
fn claims_are_completed() {
    let mut claim = object(json!({"spec": {"devices": {"requests": [
        {"name": "r", "exactly": {"deviceClassName": "c", "tolerations": [{"key": "k"}]}},
        {"name": "s", "firstAvailable": [{"name": "a", "deviceClassName": "c", "allocationMode": "All"}]},
        {"name": "t", "deviceClassName": "c"}]}}}));
    Claim.default(&mut claim);
    let requests = &claim["spec"]["devices"]["requests"];
    assert_eq!(requests[0]["exactly"]["count"], 1);
    assert_eq!(requests[2]["allocationMode"], "ExactCount", "the form of the first beta");
    assert_eq!(requests[0]["exactly"]["tolerations"][0]["operator"], "Equal");
    assert!(requests[1]["firstAvailable"][0].get("count").is_none());
}

#[test]
fn statuses() {
    let spec = json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}});
    let result = json!({"request": "r", "driver": "d.io", "pool": "p", "device": "x"});
    let allocation = json!({"devices": {"results": [result]}});
    let user = json!({"resource": "pods", "name": "p", "uid": "u"});
    let of = |status: Value| object(json!({"metadata": {}, "spec": spec, "status": status}));
    let errors = |new: Value, old: Value| shown(status::check(&of(new), &of(old)));
    assert!(errors(json!({"allocation": allocation, "reservedFor": [user]}), json!({})).is_empty());
    assert_eq!(
        errors(json!({"reservedFor": [user]}), json!({})),
        ["status.reservedFor: Forbidden: may not be specified when `allocated` is not set"]
    );
    let mut other = allocation.clone();
    other["devices"]["results"][0]["device"] = "y".into();
    assert!(
        errors(json!({"allocation": other}), json!({"allocation": allocation}))[0]
            .ends_with("field is immutable")
    );
    let mut foreign = allocation.clone();
    foreign["devices"]["results"][0]["request"] = "z".into();
    assert!(
        errors(json!({"allocation": foreign}), json!({}))[0]
            .starts_with("status.allocation.devices.results[0].request: Invalid value: \"z\"")
    );
    let about = json!([{"driver": "d.io", "pool": "p", "device": "y"}]);
    assert_eq!(
        errors(json!({"allocation": allocation, "devices": about}), json!({})),
        ["status.devices[0]: Invalid value: \"d.io/p/y\": must be an allocated device in the claim"]
    );
    let known = json!([{"driver": "d.io", "pool": "p", "device": "x"}]);
    let mut new = of(json!({"devices": known}));
    status::drop_deallocated(&mut new, &of(json!({"allocation": allocation, "devices": known})));
    assert!(new["status"].get("devices").is_none());
}

#[test]
fn slices() {
    let errors = |spec: Value| shown(slice::check(&spec));
    let pool = json!({"name": "p", "generation": 0, "resourceSliceCount": 1});
    let with = |devices: Value| json!({"driver": "d.io", "pool": pool, "nodeName": "n", "devices": devices});
    assert!(
        errors(with(
            json!([{"name": "x", "attributes": {"a": {"int": 1}, "d.io/b": {"version": "1.2.3-rc.1+b"}}}])
        ))
        .is_empty()
    );
    let cases = [
        (
            json!({"pool": pool}),
            "spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
        ),
        (
            json!({"pool": pool, "nodeName": "n", "allNodes": true}),
            "spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set",
        ),
        (
            with(json!([{"name": "x", "attributes": {"a": {}}}])),
            "spec.devices[0].attributes[a]: Invalid value: \"\": exactly one value must be specified",
        ),
        (
            with(json!([{"name": "x", "attributes": {"a": {"version": "1.2"}}}])),
            "spec.devices[0].attributes[a].version: Invalid value: \"1.2\": must be a string compatible with semver.org spec 2.0.0",
        ),
        (
            with(json!([{"name": "x", "taints": [{"key": "k", "effect": "Odd"}]}])),
            "spec.devices[0].taints[0].effect: Unsupported value: \"Odd\": supported values: \"NoExecute\", \"NoSchedule\", \"None\"",
        ),
        (
            with(
                json!([{"name": "x", "capacity": {"m": {"value": "1Gi", "requestPolicy": {"default": "1"}}}}]),
            ),
            "spec.devices[0].capacity[m].requestPolicy: Forbidden: allowMultipleAllocations must be true",
        ),
        (
            with(json!([{"name": "x", "bindingConditions": ["A"]}])),
            "spec.devices[0].bindingFailureConditions: Invalid value: []: bindingFailureConditions are required to use bindingConditions",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(errors(spec.clone()), [expected], "{spec}");
    }
    let shared = |policy: Value| {
        with(
            json!([{"name": "x", "allowMultipleAllocations": true, "capacity": {"m": {"value": "4Gi", "requestPolicy": policy}}}]),
        )
    };
    assert!(
        errors(shared(json!({"default": "1Gi", "validRange": {"min": "1Gi", "step": "1Gi"}}))).is_empty()
    );
    assert!(
        errors(shared(json!({"default": "1Gi", "validRange": {"min": "2Gi"}})))[0]
            .ends_with("default is less than min: 2Gi")
    );
    assert!(
        errors(shared(json!({"default": "3Gi", "validValues": ["1Gi", "2Gi"]})))[0]
            .ends_with("default value is not valid according to the requestPolicy")
    );
}

#[test]
fn what_is_off_is_dropped() {
    let mut claim = object(
        json!({"spec": {"devices": {"requests": [{"name": "r", "exactly": {"derivedAttributes": []}}],
        "config": [{"opaque": {"parameters": {"strings": ["kept"]}}}]}}}),
    );
    drop_disabled(&mut claim, None);
    assert!(claim["spec"]["devices"]["requests"][0]["exactly"].get("derivedAttributes").is_none());
    let mut slice = object(json!({"spec": {"devices": [{"attributes": {"strings": {"strings": ["x"]}}}]}}));
    drop_disabled(&mut slice, None);
    assert_eq!(slice["spec"]["devices"][0]["attributes"], json!({"strings": {}}));
    assert_eq!(claim["spec"]["devices"]["config"][0]["opaque"]["parameters"]["strings"][0], "kept");
}
