//! Dynamic resource allocation from end to end: claims, allocation, preparation by a driver, devices in containers, and
//! all of it undone.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use client::DeleteParams;
use serde_json::{Value, json};
use testkit::dra::Driver;
use testkit::pods::{condition, pod};
use testkit::{Case, Scope};

/// A driver of a case's own, known to the kubelet, with a class.
pub(crate) fn driver(s: &Scope<'_>) -> anyhow::Result<Driver> {
    let name = format!("{}.dra.example.com", s.namespace);
    let driver =
        Driver::start(&name, &s.data().join(format!("dra/{}", s.namespace)), &s.data().join("kubelet"))?;
    until(s, "registration", || driver.calls().iter().any(|c| c["call"] == "registered" && c["ok"] == true))?;
    let expression = format!("device.driver == \"{name}\"");
    s.create(
        "deviceclasses",
        json!({"metadata": {"name": s.namespace}, "spec":
        {"selectors": [{"cel": {"expression": expression}}]}}),
    )?;
    Ok(driver)
}

/// Publishes devices of a driver on the node.
pub(crate) fn publish(s: &Scope<'_>, driver: &Driver, devices: &[&str]) -> anyhow::Result<()> {
    let node = s.list("nodes", "")?[0]["metadata"]["name"].clone();
    let one = |name: &&str| json!({"name": name, "attributes": {"model": {"string": "a"}}});
    s.create(
        "resourceslices",
        json!({"metadata": {"name": s.namespace}, "spec": {"driver": driver.name, "nodeName": node,
        "pool": {"name": "pool", "generation": 1, "resourceSliceCount": 1},
        "devices": devices.iter().map(one).collect::<Vec<_>>()}}),
    )?;
    Ok(())
}

/// Takes away what the namespace does not, while the driver is still there.
pub(crate) fn cleanup(s: &Scope<'_>) {
    s.delete_all("pods", "").ok();
    until(s, "end of the pods", || s.list("pods", "").is_ok_and(|all| all.is_empty())).ok();
    s.delete("resourceslices", &s.namespace, &DeleteParams::default()).ok();
    s.delete("deviceclasses", &s.namespace, &DeleteParams::default()).ok();
}

fn asks(s: &Scope<'_>) -> Value {
    json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": s.namespace}}]}})
}

fn template(s: &Scope<'_>, name: &str) -> anyhow::Result<()> {
    s.create(
        "resourceclaimtemplates",
        json!({"metadata": {"name": name}, "spec": {"metadata": {"labels": {"a": "b"}},
        "spec": asks(s)}}),
    )?;
    Ok(())
}

/// A pod with a claim of its own from a template, or with one that is there.
fn user(name: &str, script: &str, template: bool, claim: &str) -> Value {
    pod(name, script, |spec| {
        let field = if template { "resourceClaimTemplateName" } else { "resourceClaimName" };
        spec["resourceClaims"] = json!([{"name": "gpu", field: claim}]);
        spec["containers"][0]["resources"] = json!({"claims": [{"name": "gpu"}]});
    })
}

pub(crate) fn until(s: &Scope<'_>, what: &str, mut holds: impl FnMut() -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        ensure!(Instant::now() < end, "no {what}");
        s.pause(Duration::from_millis(50));
    }
    Ok(())
}

/// Waits for an event about a pod with this reason and text.
fn told(s: &Scope<'_>, pod: &str, reason: &str, text: &str) -> anyhow::Result<()> {
    until(s, &format!("event {reason} about {pod} with {text:?}"), || {
        s.list("events", "").unwrap_or_default().iter().any(|e| {
            e["involvedObject"]["name"] == pod
                && e["reason"] == reason
                && e["message"].as_str().is_some_and(|m| m.contains(text))
        })
    })
}

fn inline(s: &Scope<'_>) -> anyhow::Result<()> {
    let driver = driver(s)?;
    publish(s, &driver, &["one", "two"])?;
    template(s, "t")?;
    let script = "echo claim=$DRA_CLAIM; ls -l /dev/from-claim; sleep 1000";
    let running = s.ready(user("p", script, true, "t"))?;
    let status = &running["status"]["resourceClaimStatuses"][0];
    ensure!(status["name"] == "gpu", "{status}");
    let name = status["resourceClaimName"].as_str().context("no name")?.to_owned();
    ensure!(name.starts_with("p-gpu-"), "{name}");
    let claim = s.get("resourceclaims", &name)?;
    let metadata = &claim["metadata"];
    ensure!(metadata["annotations"]["resource.kubernetes.io/pod-claim-name"] == "gpu", "{metadata}");
    ensure!(metadata["labels"]["a"] == "b" && metadata["ownerReferences"][0]["name"] == "p", "{metadata}");
    ensure!(metadata["finalizers"][0] == "resource.kubernetes.io/delete-protection", "{metadata}");
    let result = &claim["status"]["allocation"]["devices"]["results"][0];
    ensure!(
        result["driver"] == *driver.name && result["device"] == "one" && result["request"] == "r",
        "{result}"
    );
    ensure!(claim["status"]["reservedFor"][0]["name"] == "p", "{claim}");
    let log = s.logs("p", "main")?;
    ensure!(log.contains(&format!("claim={name}")) && log.contains("/dev/from-claim"), "{log}");
    ensure!(driver.prepared() == [name.clone()], "{:?}", driver.calls());
    s.delete("pods", "p", &DeleteParams::default())?;
    s.wait_gone("pods", "p")?;
    ensure!(driver.count("unprepare", &name) == 1 && driver.prepared().is_empty(), "{:?}", driver.calls());
    s.wait_gone("resourceclaims", &name)?;
    cleanup(s);
    Ok(())
}

fn shared(s: &Scope<'_>) -> anyhow::Result<()> {
    let driver = driver(s)?;
    publish(s, &driver, &["one"])?;
    s.create("resourceclaims", json!({"metadata": {"name": "c"}, "spec": asks(s)}))?;
    for name in ["a", "b"] {
        s.create("pods", user(name, "echo $DRA_CLAIM; sleep 1000", false, "c"))?;
    }
    for name in ["a", "b"] {
        s.pod_ready(name)?;
        ensure!(s.logs(name, "main")?.contains('c'), "no claim in {name}");
    }
    let claim = s.get("resourceclaims", "c")?;
    ensure!(claim["status"]["reservedFor"].as_array().map_or(0, Vec::len) == 2, "{claim}");
    ensure!(driver.count("prepare", "c") == 1, "{:?}", driver.calls());
    s.delete("pods", "a", &DeleteParams::default())?;
    s.wait_gone("pods", "a")?;
    ensure!(driver.count("unprepare", "c") == 0, "the other pod still uses it");
    s.wait_any("resourceclaims", "c", "one user", |c| {
        c["status"]["reservedFor"].as_array().map_or(0, Vec::len) == 1
    })?;
    s.delete("pods", "b", &DeleteParams::default())?;
    s.wait_gone("pods", "b")?;
    ensure!(driver.count("unprepare", "c") == 1, "{:?}", driver.calls());
    let free = s.wait_any("resourceclaims", "c", "to be free", |c| c["status"]["allocation"].is_null())?;
    ensure!(free["status"]["reservedFor"].is_null(), "{free}");
    s.wait_any("resourceclaims", "c", "no finalizer", |c| c["metadata"]["finalizers"].is_null())?;
    cleanup(s);
    Ok(())
}

fn waits(s: &Scope<'_>) -> anyhow::Result<()> {
    let driver = driver(s)?;
    template(s, "t")?;
    s.create("pods", user("p", "sleep 1000", true, "t"))?;
    told(
        s,
        "p",
        "FailedScheduling",
        "0/1 nodes are available: 1 cannot allocate all claims. still not schedulable, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    )?;
    publish(s, &driver, &["one"])?;
    s.pod_ready("p")?;
    // The only device is taken.
    s.create("pods", user("q", "sleep 1000", true, "t"))?;
    told(s, "q", "FailedScheduling", "cannot allocate all claims")?;
    s.delete("pods", "p", &DeleteParams::default())?;
    s.pod_ready("q")?;
    cleanup(s);
    Ok(())
}

fn class_appears(s: &Scope<'_>) -> anyhow::Result<()> {
    let driver = driver(s)?;
    publish(s, &driver, &["one"])?;
    s.delete("deviceclasses", &s.namespace, &DeleteParams::default())?;
    template(s, "t")?;
    s.create("pods", user("p", "sleep 1000", true, "t"))?;
    told(s, "p", "FailedScheduling", &format!("request r: device class {} does not exist", s.namespace))?;
    // Of this driver only: others' devices are not for this case.
    let expression = format!("device.driver == \"{}\"", driver.name);
    let selectors = json!([{"cel": {"expression": expression}}]);
    s.create("deviceclasses", json!({"metadata": {"name": s.namespace}, "spec": {"selectors": selectors}}))?;
    s.pod_ready("p")?;
    cleanup(s);
    Ok(())
}

fn retries(s: &Scope<'_>) -> anyhow::Result<()> {
    let driver = driver(s)?;
    publish(s, &driver, &["one"])?;
    driver.fail("the device is asleep");
    template(s, "t")?;
    s.create("pods", user("p", "sleep 1000", true, "t"))?;
    told(
        s,
        "p",
        "FailedPrepareDynamicResources",
        "Failed to prepare dynamic resources: prepare dynamic resources: NodePrepareResources failed for ResourceClaim p-gpu-",
    )?;
    told(s, "p", "FailedPrepareDynamicResources", ": the device is asleep")?;
    let waiting = s.get("pods", "p")?;
    ensure!(
        !condition(&waiting, "Ready") && waiting["status"]["phase"] == "Pending",
        "{}",
        waiting["status"]
    );
    driver.fail("");
    s.pod_ready("p")?;
    ensure!(driver.count("prepare", "") >= 2, "{:?}", driver.calls());
    cleanup(s);
    Ok(())
}

fn unused(s: &Scope<'_>) -> anyhow::Result<()> {
    let driver = driver(s)?;
    publish(s, &driver, &["one"])?;
    template(s, "t")?;
    let mut made = user("p", "echo claim=[$DRA_CLAIM]", true, "t");
    made["spec"]["containers"][0]["resources"] = json!({});
    let log = s.output(made)?;
    ensure!(log.contains("claim=[]"), "{log}");
    ensure!(driver.count("prepare", "") == 1, "{:?}", driver.calls());
    // The pod has ended by itself: what was made for it goes before it does.
    until(s, "end of its claim", || s.list("resourceclaims", "").is_ok_and(|all| all.is_empty()))?;
    ensure!(driver.count("unprepare", "") == 1, "{:?}", driver.calls());
    s.get("pods", "p")?;
    cleanup(s);
    Ok(())
}

fn missing_template(s: &Scope<'_>) -> anyhow::Result<()> {
    let driver = driver(s)?;
    publish(s, &driver, &["one"])?;
    s.create("pods", user("p", "sleep 1000", true, "t"))?;
    told(
        s,
        "p",
        "FailedResourceClaimCreation",
        "PodResourceClaim gpu: resource claim template \"t\": resourceclaimtemplate.resource.k8s.io \"t\" not found",
    )?;
    template(s, "t")?;
    s.pod_ready("p")?;
    cleanup(s);
    Ok(())
}

fn extended(s: &Scope<'_>) -> anyhow::Result<()> {
    let driver = driver(s)?;
    publish(s, &driver, &["one", "two"])?;
    let resource = format!("{}.example.com/gpu", s.namespace);
    s.merge("deviceclasses", &s.namespace, "", json!({"spec": {"extendedResourceName": resource}}))?;
    let made = pod("p", "echo claim=$DRA_CLAIM; sleep 1000", |spec| {
        spec["containers"][0]["resources"] = json!({"limits": {resource.clone(): "1"}});
    });
    let running = s.ready(made)?;
    let status = &running["status"]["extendedResourceClaimStatus"];
    let name = status["resourceClaimName"].as_str().context("no claim")?;
    ensure!(name.starts_with("p-extended-resources-"), "{status}");
    ensure!(status["requestMappings"][0]["requestName"] == "container-0-request-0", "{status}");
    ensure!(s.logs("p", "main")?.contains(&format!("claim={name}")), "{}", s.logs("p", "main")?);
    s.delete("pods", "p", &DeleteParams::default())?;
    s.wait_gone("resourceclaims", name)?;
    cleanup(s);
    Ok(())
}

fn refused(s: &Scope<'_>) -> anyhow::Result<()> {
    let bad = |devices: Value| {
        let made =
            s.create("resourceclaims", json!({"metadata": {"name": "bad"}, "spec": {"devices": devices}}));
        made.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let exact = |more: Value| {
        let mut all = json!({"deviceClassName": "c"});
        all.as_object_mut().into_iter().for_each(|a| a.extend(more.as_object().cloned().unwrap_or_default()));
        json!({"requests": [{"name": "r", "exactly": all}]})
    };
    let said = bad(exact(json!({"selectors": [{"cel": {"expression": "device.nope"}}]})));
    ensure!(said.contains("spec.devices.requests[0].exactly.selectors[0].cel.expression: Invalid value: \"device.nope\": compilation failed: ERROR: <input>:1:7: undefined field 'nope'"), "{said}");
    let said = bad(exact(json!({"count": -1})));
    ensure!(
        said.contains("spec.devices.requests[0].exactly.count: Invalid value: -1: must be greater than zero"),
        "{said}"
    );
    s.create("resourceclaims", json!({"metadata": {"name": "c"}, "spec": {"devices": exact(json!({}))}}))?;
    let changed = s.merge("resourceclaims", "c", "", json!({"spec": {"devices": {"config": []}}}));
    ensure!(changed.is_ok(), "nothing has changed");
    let changed =
        s.merge("resourceclaims", "c", "", json!({"spec": {"devices": exact(json!({"count": 2}))}}));
    let said = changed.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(said.contains("field is immutable"), "{said}");
    Ok(())
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] [DRA] kubelet [Feature:DynamicResourceAllocation] on single node supports simple pod referencing inline resource claim",
            run: inline,
        },
        Case {
            name: "[sig-node] [DRA] kubelet [Feature:DynamicResourceAllocation] on single node supports external claim referenced by multiple pods",
            run: shared,
        },
        Case { name: "Ferry: [DRA] a pod waits until there are devices and until they are free", run: waits },
        Case {
            name: "[sig-node] [DRA] kubelet [Feature:DynamicResourceAllocation] on single node retries pod scheduling after creating device class",
            run: class_appears,
        },
        Case {
            name: "[sig-node] [DRA] kubelet [Feature:DynamicResourceAllocation] must retry NodePrepareResources",
            run: retries,
        },
        Case {
            name: "[sig-node] [DRA] kubelet [Feature:DynamicResourceAllocation] must call NodePrepareResources even if not used by any container",
            run: unused,
        },
        Case { name: "Ferry: [DRA] a pod waits for the template of its claim", run: missing_template },
        Case { name: "Ferry: [DRA] extended resources may be devices of a class", run: extended },
        Case { name: "Ferry: [DRA] claims that make no sense are refused", run: refused },
    ]
}
