//! Who may use an image that is on the node already.

use anyhow::ensure;
use client::DeleteParams;
use serde_json::{Value, json};
use testkit::pods::{has, pod};
use testkit::registry::Registry;
use testkit::{Case, Scope};

const PASSWORD: &str = "open-sesame";

/// A pull secret for a registry.
fn secret(s: &Scope<'_>, name: &str, registry: &Registry, password: &str) -> anyhow::Result<()> {
    let host = registry.reference.split('/').next().unwrap_or_default();
    let config = json!({"auths": {host: {"username": "puller", "password": password}}}).to_string();
    s.create(
        "secrets",
        json!({"metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": config}}),
    )?;
    Ok(())
}

/// A pod that reads a file of the registry's image.
fn reader(name: &str, registry: &Registry, secret: Option<&str>, policy: &str) -> Value {
    pod(name, "cat /volume/data", |spec| {
        spec["volumes"] =
            json!([{"name": "v", "image": {"reference": registry.reference, "pullPolicy": policy}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/volume"}]);
        spec["imagePullSecrets"] = secret.map(|name| json!([{"name": name}])).unwrap_or_default();
    })
}

/// Creates a pod and waits until its container waits for this reason; answers the message.
fn waits(s: &Scope<'_>, pod: Value, reasons: &[&str]) -> anyhow::Result<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    s.create("pods", pod)?;
    let waiting = |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let found = s.wait_any("pods", &name, reasons[0], |p| {
        waiting(p)["reason"].as_str().is_some_and(|reason| reasons.contains(&reason))
    })?;
    Ok(waiting(&found)["message"].as_str().unwrap_or_default().to_owned())
}

fn secret_pulled(s: &Scope<'_>) -> anyhow::Result<()> {
    let registry = Registry::start_guarded("private", &[("data", b"private data")], PASSWORD)?;
    secret(s, "good", &registry, PASSWORD)?;
    secret(s, "bad", &registry, "wrong")?;
    // Before it is there, nobody gets it without the password.
    let refused = ["ErrImagePull", "ImagePullBackOff"];
    waits(s, reader("early", &registry, None, "IfNotPresent"), &refused)?;
    ensure!(s.output(reader("first", &registry, Some("good"), "IfNotPresent"))? == "private data");
    let asked = registry.asked();
    ensure!(s.output(reader("again", &registry, Some("good"), "IfNotPresent"))? == "private data");
    ensure!(s.output(reader("offline", &registry, Some("good"), "Never"))? == "private data");
    s.wait_any("events", "", "the way in", |event| {
        let says = format!(
            "Container image {:?} already present on machine and can be accessed by the pod",
            registry.reference
        );
        event["message"] == says && event["involvedObject"]["name"] == "offline"
    })?;
    // Another secret with the same password has shown as much.
    secret(s, "same", &registry, PASSWORD)?;
    ensure!(s.output(reader("other", &registry, Some("same"), "IfNotPresent"))? == "private data");
    ensure!(registry.asked() == asked, "the registry was asked: {} and {asked}", registry.asked());
    // Now that it is there, it is still nobody's who cannot pull it.
    waits(s, reader("none", &registry, None, "IfNotPresent"), &refused)?;
    let told = waits(s, reader("wrong", &registry, Some("bad"), "IfNotPresent"), &refused)?;
    has(&told, &["401"])?;
    let never = waits(s, reader("never", &registry, None, "Never"), &["ErrImageNeverPull"])?;
    let expected =
        format!("Container image {:?} is not present with pull policy of Never", registry.reference);
    ensure!(never == expected, "{never}");
    // A secret that begins to fit lets its pod in.
    s.delete("secrets", "bad", &DeleteParams::default())?;
    secret(s, "bad", &registry, PASSWORD)?;
    ensure!(s.output(reader("mended", &registry, Some("bad"), "Never"))? == "private data");
    // What nobody has pulled here, everybody may use.
    ensure!(s.output(pod("preloaded", "echo ok", |_| ()))? == "ok\n");
    Ok(())
}

pub fn cases() -> Vec<Case> {
    vec![Case {
        name: "Ferry: an image that was pulled with a secret is for pods that have one that fits",
        run: secret_pulled,
    }]
}
