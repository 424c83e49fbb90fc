//! Tainted devices: pods that must go because of them, and what the rules say that taint them.

use anyhow::ensure;
use client::DeleteParams;
use serde_json::{Value, json};
use testkit::pods::pod;
use testkit::{Case, Scope};

use crate::dra::{cleanup, driver, publish, until};

const KEY: &str = "example.com/broken";

fn claim(s: &Scope<'_>, name: &str, tolerations: Value) -> anyhow::Result<()> {
    let exactly = json!({"deviceClassName": s.namespace, "tolerations": tolerations});
    let spec = json!({"devices": {"requests": [{"name": "r", "exactly": exactly}]}});
    s.create("resourceclaims", json!({"metadata": {"name": name}, "spec": spec}))?;
    Ok(())
}

/// A pod with a claim that runs until it is told to go.
fn user(s: &Scope<'_>, name: &str) -> anyhow::Result<Value> {
    s.ready(pod(name, "sleep 1000", |spec| {
        spec["resourceClaims"] = json!([{"name": "c", "resourceClaimName": name}]);
        spec["containers"][0]["resources"] = json!({"claims": [{"name": "c"}]});
    }))
}

fn told(s: &Scope<'_>, name: &str, message: &str) -> anyhow::Result<()> {
    until(s, message, || {
        let events = s.list("events", "").unwrap_or_default();
        events.iter().any(|event| {
            event["involvedObject"]["name"] == name
                && event["reason"] == "DeviceTaintManagerEviction"
                && event["message"] == message
        })
    })
}

fn is_going(s: &Scope<'_>, name: &str) -> anyhow::Result<()> {
    told(s, name, "Marking for deletion")?;
    s.wait_gone("pods", name)
}

/// A driver taints its devices: those who do not tolerate that go, at once or after a while.
fn by_slice(s: &Scope<'_>) -> anyhow::Result<()> {
    let driver = driver(s)?;
    publish(s, &driver, &["one", "two", "three"])?;
    let tolerates = |more: Value| {
        let mut all = json!({"key": KEY, "operator": "Exists", "effect": "NoExecute"});
        all.as_object_mut().into_iter().for_each(|a| a.extend(more.as_object().cloned().unwrap_or_default()));
        json!([all])
    };
    claim(s, "strict", json!([]))?;
    claim(s, "patient", tolerates(json!({"tolerationSeconds": 600})))?;
    claim(s, "immune", tolerates(json!({})))?;
    for name in ["strict", "patient", "immune"] {
        user(s, name)?;
    }
    let mut slice = s.get("resourceslices", &s.namespace)?;
    for device in slice["spec"]["devices"].as_array_mut().into_iter().flatten() {
        device["taints"] = json!([{"key": KEY, "effect": "NoExecute"}]);
    }
    let devices = slice["spec"]["devices"].clone();
    s.merge("resourceslices", &s.namespace, "", json!({"spec": {"devices": devices}}))?;
    is_going(s, "strict")?;
    for name in ["patient", "immune"] {
        let stays = s.get("pods", name)?;
        ensure!(stays["metadata"].get("deletionTimestamp").is_none(), "{name} goes too");
    }
    // The device works again before the other one's time is over.
    for device in slice["spec"]["devices"].as_array_mut().into_iter().flatten() {
        device["taints"] = json!([]);
    }
    let devices = slice["spec"]["devices"].clone();
    s.merge("resourceslices", &s.namespace, "", json!({"spec": {"devices": devices}}))?;
    told(s, "patient", "Cancelling deletion")?;
    cleanup(s);
    Ok(())
}

fn condition(s: &Scope<'_>) -> Value {
    let rule = s.get("devicetaintrules", &s.namespace).unwrap_or_default();
    rule.pointer("/status/conditions/0").cloned().unwrap_or_default()
}

/// An administrator taints devices: first to see what would be, then in earnest.
fn by_rule(s: &Scope<'_>) -> anyhow::Result<()> {
    let driver = driver(s)?;
    publish(s, &driver, &["one", "two"])?;
    claim(s, "a", json!([]))?;
    user(s, "a")?;
    let spec = |effect: &str| json!({"deviceSelector": {"driver": driver.name}, "taint": {"key": KEY, "effect": effect}});
    s.create("devicetaintrules", json!({"metadata": {"name": s.namespace}, "spec": spec("None")}))?;
    let would = "2 published devices selected. 1 allocated device selected. 1 pod would be evicted in 1 namespace if the \
                 effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to \
                 trigger an update.";
    until(s, "a dry run", || condition(s)["message"] == would)?;
    let said = condition(s);
    ensure!(
        (&said["type"], &said["status"], &said["reason"])
            == (&"EvictionInProgress".into(), &"False".into(), &"NoEffect".into()),
        "{said}"
    );
    s.merge("devicetaintrules", &s.namespace, "", json!({"spec": spec("NoExecute")}))?;
    is_going(s, "a")?;
    until(s, "the end of the eviction", || {
        let said = condition(s);
        said["reason"] == "Completed" && said["message"] == "1 pod evicted since starting the controller."
    })?;
    ensure!(condition(s)["observedGeneration"] == 2, "{}", condition(s));
    s.delete("devicetaintrules", &s.namespace, &DeleteParams::default())?;
    cleanup(s);
    Ok(())
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "Ferry: [DRA] pods go when a driver taints their devices", run: by_slice },
        Case { name: "Ferry: [DRA] pods go when a rule taints their devices", run: by_rule },
    ]
}
