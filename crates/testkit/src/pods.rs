//! Pods as the cases need them: run to the end and read what they printed.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::cluster::Scope;
use crate::image::BUSYBOX;

/// A container of the test image that runs a shell script.
pub fn container(name: &str, script: &str) -> Value {
    json!({"name": name, "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]})
}

/// A pod that runs `script` once; `change` sees its spec and may alter it. The container is the first.
pub fn pod(name: &str, script: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = json!({
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container("main", script)],
    });
    change(&mut spec);
    json!({"kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec})
}

/// Whether a condition of an object is true.
pub fn condition(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|c| c.iter().any(|c| c["type"] == kind && c["status"] == "True"))
}

impl Scope<'_> {
    /// Creates a pod and waits until it is ready.
    pub fn ready(&self, pod: Value) -> anyhow::Result<Value> {
        let created = self.create("pods", pod)?;
        self.pod_ready(created["metadata"]["name"].as_str().unwrap_or_default())
    }

    /// Waits until a pod is ready.
    pub fn pod_ready(&self, name: &str) -> anyhow::Result<Value> {
        self.wait_any("pods", name, "readiness", |p| condition(p, "Ready"))
    }

    /// Waits until a pod has ended, well or not.
    pub fn pod_ended(&self, name: &str) -> anyhow::Result<Value> {
        let ended = |p: &Value| p["status"]["phase"] == "Succeeded" || p["status"]["phase"] == "Failed";
        self.wait_any("pods", name, "an end", ended)
    }

    /// Creates a pod, waits until it succeeded and answers what its first container printed.
    pub fn output(&self, pod: Value) -> anyhow::Result<String> {
        let created = self.create("pods", pod)?;
        let name = created["metadata"]["name"].as_str().unwrap_or_default();
        let first = created["spec"]["containers"][0]["name"].as_str().unwrap_or_default();
        let ended = self.pod_ended(name)?;
        let log = self.logs(name, first)?;
        ensure!(ended["status"]["phase"] == "Succeeded", "pod failed: {}\n{log}", ended["status"]);
        Ok(log)
    }

    /// What a container printed.
    pub fn logs(&self, pod: &str, container: &str) -> anyhow::Result<String> {
        self.kubectl(&["logs", pod, "-c", container]).context("cannot read the log")
    }

    /// Runs a script once in a pod of its own and answers its output.
    pub fn script(&self, name: &str, script: &str) -> anyhow::Result<String> {
        self.output(pod(name, script, |_| ()))
    }
}

/// Fails unless `text` holds every one of `parts`.
pub fn has(text: &str, parts: &[&str]) -> anyhow::Result<()> {
    parts.iter().try_for_each(|part| {
        ensure!(text.contains(part), "no {part:?} in:\n{text}");
        Ok(())
    })
}
