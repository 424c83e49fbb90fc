//! \[sig-scheduling\]: where pods may go, and whom they push aside; \[sig-node\]: taints that evict.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use client::{DeleteParams, EventKind, ListParams, WatchParams};
use serde_json::{Value, json};
use testkit::pods::{has, pod};
use testkit::{Case, Scope};

/// A pod that stays.
fn stays(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    pod(name, "exec sleep 600", change)
}

/// The only node.
fn node(s: &Scope<'_>) -> anyhow::Result<Value> {
    s.list("nodes", "")?.into_iter().next().context("no node")
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// What a case changed about the node; it ends with the value.
struct Change<'a> {
    scope: &'a Scope<'a>,
    node: String,
    subresource: &'static str,
    undo: Value,
}

impl<'a> Change<'a> {
    fn make(
        scope: &'a Scope<'a>,
        subresource: &'static str,
        patch: Value,
        undo: Value,
    ) -> anyhow::Result<Self> {
        let node = name_of(&node(scope)?).to_owned();
        scope.merge("nodes", &node, subresource, patch)?;
        Ok(Change { scope, node, subresource, undo })
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let undo = std::mem::take(&mut self.undo);
        if let Err(error) = self.scope.merge("nodes", &self.node, self.subresource, undo) {
            eprintln!("the node stays changed: {error}");
        }
    }
}

/// Gives the node so much of a resource of the case's own, which the node must let pods use.
fn lend<'a>(s: &'a Scope<'a>, amount: &str) -> anyhow::Result<(Change<'a>, String)> {
    let resource = format!("scheduling.k8s.io/{}", s.namespace);
    let capacity = |value: Value| json!({"status": {"capacity": {&resource: value}}});
    let change = Change::make(s, "status", capacity(amount.into()), capacity(Value::Null))?;
    s.wait_any("nodes", &change.node, "the resource", |n| n["status"]["allocatable"][&resource] == amount)?;
    Ok((change, resource))
}

/// Priorities of the case's own, by name.
fn priorities<'a>(s: &'a Scope<'a>, values: &[(&str, i32)]) -> anyhow::Result<Priorities<'a>> {
    for (name, value) in values {
        let name = format!("{}-{name}", s.namespace);
        s.create("priorityclasses", json!({"metadata": {"name": name}, "value": value}))?;
    }
    Ok(Priorities {
        scope: s,
        names: values.iter().map(|(name, _)| format!("{}-{name}", s.namespace)).collect(),
    })
}

struct Priorities<'a> {
    scope: &'a Scope<'a>,
    names: Vec<String>,
}

impl Drop for Priorities<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = self.scope.delete("priorityclasses", name, &DeleteParams::default()) {
                eprintln!("priority class {name} stays: {error}");
            }
        }
    }
}

/// The spec of a pod with a priority that takes so much of a resource.
fn takes(spec: &mut Value, class: &str, resource: &str, amount: &str) {
    spec["priorityClassName"] = class.into();
    let amounts = json!({resource: amount});
    spec["containers"][0]["resources"] = json!({"requests": amounts, "limits": amounts});
}

fn is_scheduled(p: &Value) -> bool {
    p["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty())
}

/// Waits until the scheduler has said that a pod fits nowhere, in its status and in an event.
fn is_refused(s: &Scope<'_>, name: &str, why: &str) -> anyhow::Result<()> {
    let refused = s.wait_any("pods", name, "a refusal", |p| {
        let conditions = p["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .iter()
            .any(|c| c["type"] == "PodScheduled" && c["status"] == "False" && c["reason"] == "Unschedulable")
    })?;
    ensure!(!is_scheduled(&refused), "{refused}");
    has(&refused["status"]["conditions"].to_string(), &["0/1 nodes are available", why])?;
    s.wait_any("events", "", "FailedScheduling", |e| {
        e["reason"] == "FailedScheduling" && e["involvedObject"]["name"] == name
    })?;
    Ok(())
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [predicates(), preemption(), taints()].concat()
}

fn predicates() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-scheduling] SchedulerPredicates [Serial] validates resource limits of pods that are allowed to run [Conformance]",
            run: limits,
        },
        Case {
            name: "[sig-scheduling] SchedulerPredicates [Serial] validates that NodeSelector is respected if not matching [Conformance]",
            run: |s| {
                s.create(
                    "pods",
                    stays("restricted", |spec| spec["nodeSelector"] = json!({"label": "nonempty"})),
                )?;
                is_refused(s, "restricted", "1 node(s) didn't match Pod's node affinity/selector")
            },
        },
        Case {
            name: "[sig-scheduling] SchedulerPredicates [Serial] validates that NodeSelector is respected if matching [Conformance]",
            run: |s| {
                let key = format!("kubernetes.io/e2e-{}", s.namespace);
                let labels = |value: Value| json!({"metadata": {"labels": {&key: value}}});
                let change = Change::make(s, "", labels("42".into()), labels(Value::Null))?;
                let made =
                    s.ready(stays("with-labels", |spec| spec["nodeSelector"] = json!({&key: "42"})))?;
                ensure!(made["spec"]["nodeName"] == change.node.as_str(), "{made}");
                Ok(())
            },
        },
        Case {
            name: "[sig-scheduling] SchedulerPredicates [Serial] validates that there exists conflict between pods with same hostPort and protocol but one using 0.0.0.0 hostIP [Conformance]",
            run: |s| {
                let binds = |ip: &str| json!([{"hostPort": 54322, "containerPort": 8080, "protocol": "TCP", "hostIP": ip}]);
                let first =
                    s.ready(stays("pod4", |spec| spec["containers"][0]["ports"] = binds("0.0.0.0")))?;
                let host = first["status"]["hostIP"].as_str().context("no host IP")?;
                s.create("pods", stays("pod5", |spec| spec["containers"][0]["ports"] = binds(host)))?;
                is_refused(s, "pod5", "1 node(s) didn't have free ports for the requested pod ports")
            },
        },
    ]
}

/// Most of what is left of the processors, and then half of what was left.
fn limits(s: &Scope<'_>) -> anyhow::Result<()> {
    let milli = |value: &Value| -> anyhow::Result<i64> {
        Ok(value.as_str().map(meta::Quantity::parse).transpose()?.map_or(0, |q| q.milli_value()))
    };
    let node = node(s)?;
    let mut left = milli(&node["status"]["allocatable"]["cpu"])?;
    for p in s.path("/api/v1/pods")?["items"].as_array().into_iter().flatten() {
        let ended = p["status"]["phase"] == "Succeeded" || p["status"]["phase"] == "Failed";
        for c in p["spec"]["containers"].as_array().into_iter().flatten().filter(|_| !ended) {
            left -= milli(&c["resources"]["requests"]["cpu"])?;
        }
    }
    ensure!(left > 10, "only {left}m of the processors are left");
    let wants = |name: &str, milli: i64| {
        stays(name, |spec| {
            let amounts = json!({"cpu": format!("{milli}m")});
            spec["containers"][0]["resources"] = json!({"requests": amounts, "limits": amounts});
        })
    };
    s.ready(wants("filler", left * 7 / 10))?;
    s.create("pods", wants("additional", left / 2))?;
    is_refused(s, "additional", "1 Insufficient cpu")
}

fn preemption() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-scheduling] SchedulerPreemption [Serial] validates basic preemption works [Conformance]",
            run: |s| preempts(s, &s.namespace, "preemptor-pod", None),
        },
        Case {
            name: "[sig-scheduling] SchedulerPreemption [Serial] validates lower priority pod preemption by critical pod [Conformance]",
            run: |s| preempts(s, "kube-system", "critical-pod", Some("system-cluster-critical")),
        },
        Case {
            name: "[sig-scheduling] SchedulerPreemption [Serial] validates pod disruption condition is added to the preempted pod [Conformance]",
            run: disrupted,
        },
        Case {
            name: "[sig-scheduling] SchedulerPreemption [Serial] PreemptionExecutionPath runs ReplicaSets to verify preemption running path [Conformance]",
            run: path,
        },
    ]
}

/// Two pods take four of five; who comes then with the highest priority pushes the lowest aside, nobody else.
fn preempts(s: &Scope<'_>, namespace: &str, name: &str, class: Option<&str>) -> anyhow::Result<()> {
    let (_change, resource) = lend(s, "5")?;
    let classes = priorities(s, &[("low", 1), ("medium", 100), ("high", 1000)])?;
    for (name, class) in [("low", &classes.names[0]), ("medium", &classes.names[1])] {
        s.ready(stays(name, |spec| takes(spec, class, &resource, "2")))?;
    }
    let class = class.unwrap_or(&classes.names[2]);
    let place = s.cluster.scope(namespace);
    let outcome = place.ready(stays(name, |spec| takes(spec, class, &resource, "2")));
    if namespace != s.namespace {
        let now = DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
        place.delete("pods", name, &now)?;
        place.wait_gone("pods", name)?;
    }
    ensure!(outcome?["spec"]["nodeName"].is_string());
    let victims = s.list("pods", "app=low")?;
    ensure!(victims.iter().all(|p| p["metadata"]["deletionTimestamp"].is_string()), "{victims:?}");
    let other = s.get("pods", "medium")?;
    ensure!(other["metadata"]["deletionTimestamp"].is_null(), "{other}");
    Ok(())
}

fn disrupted(s: &Scope<'_>) -> anyhow::Result<()> {
    let (_change, resource) = lend(s, "1")?;
    let classes = priorities(s, &[("low", 1), ("high", 1000)])?;
    let mut victim = stays("victim-pod", |spec| takes(spec, &classes.names[0], &resource, "1"));
    victim["metadata"]["finalizers"] = json!(["example.com/test-finalizer"]);
    s.ready(victim)?;
    s.create("pods", stays("preemptor-pod", |spec| takes(spec, &classes.names[1], &resource, "1")))?;
    let seen = s.wait_any("pods", "victim-pod", "its end", |p| {
        let all = p["status"]["conditions"].as_array().cloned().unwrap_or_default();
        p["metadata"]["deletionTimestamp"].is_string() && all.iter().any(|c| c["type"] == "DisruptionTarget")
    });
    s.merge("pods", "victim-pod", "", json!({"metadata": {"finalizers": null}}))?;
    let seen = seen?;
    let all = seen["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let condition = all.into_iter().find(|c| c["type"] == "DisruptionTarget").unwrap_or_default();
    ensure!(condition["status"] == "True" && condition["reason"] == "PreemptionByScheduler", "{condition}");
    s.pod_ready("preemptor-pod")?;
    Ok(())
}

/// How long nothing more may be pushed aside, to see that nothing is.
const SETTLED: Duration = Duration::from_secs(3);

/// Three ReplicaSets fill the node; a fourth priority pushes aside the lower two, once each.
fn path(s: &Scope<'_>) -> anyhow::Result<()> {
    let (_change, resource) = lend(s, "1k")?;
    let classes = priorities(s, &[("p1", 1), ("p2", 2), ("p3", 3), ("p4", 4)])?;
    let start = s.page("pods", &ListParams::default())?.resource_version;
    let mut stream = s.watch("pods", &WatchParams { resource_version: start, ..Default::default() })?;
    for (i, amount) in ["200", "300", "450"].iter().enumerate() {
        let label = json!({"name": format!("pod{}", i + 1)});
        let mut template = stays("template", |spec| takes(spec, &classes.names[i], &resource, amount));
        template["spec"]["restartPolicy"] = "Always".into();
        let set = format!("rs-pod{}", i + 1);
        s.create(
            "replicasets",
            json!({"kind": "ReplicaSet", "metadata": {"name": set}, "spec": {"replicas": 1,
            "selector": {"matchLabels": label},
            "template": {"metadata": {"labels": label}, "spec": template["spec"]}}}),
        )?;
        s.wait_any("replicasets", &set, "its pod", |r| r["status"]["availableReplicas"] == 1)?;
    }
    s.create("pods", stays("pod4", |spec| takes(spec, &classes.names[3], &resource, "500")))?;
    s.wait_any("pods", "pod4", "a node", is_scheduled)?;
    s.pause(SETTLED);
    s.create("pods", stays("marker", |_| ()))?;
    let mut seen = [0, 0, 0];
    loop {
        let (kind, p) = s.next(&mut stream)?;
        if kind != EventKind::Added {
            continue;
        }
        match name_of(&p) {
            "marker" => break,
            name => {
                for (i, count) in seen.iter_mut().enumerate() {
                    *count += i32::from(name.starts_with(&format!("rs-pod{}-", i + 1)));
                }
            }
        }
    }
    ensure!(seen == [2, 2, 1], "pods made by the ReplicaSets: {seen:?}");
    Ok(())
}

const TAINT: &str = "kubernetes.io/e2e-evict-taint-key";

/// Taints the node so that pods without a toleration must leave it.
fn taint<'a>(s: &'a Scope<'a>) -> anyhow::Result<Change<'a>> {
    let before = node(s)?["spec"]["taints"].clone();
    let mut after = before.as_array().cloned().unwrap_or_default();
    after.push(json!({"key": TAINT, "value": "evictTaintVal", "effect": "NoExecute"}));
    Change::make(s, "", json!({"spec": {"taints": after}}), json!({"spec": {"taints": before}}))
}

/// A pod that may stay so long on the tainted node.
fn tolerant(name: &str, seconds: u64) -> Value {
    stays(name, |spec| {
        spec["terminationGracePeriodSeconds"] = 0.into();
        spec["tolerations"] = json!([{"key": TAINT, "operator": "Equal", "value": "evictTaintVal",
            "effect": "NoExecute", "tolerationSeconds": seconds}]);
    })
}

fn taints() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] NoExecuteTaintManager Single Pod [Serial] removing taint cancels eviction [Disruptive] [Conformance]",
            run: |s| {
                let before = s.ready(tolerant("taint-eviction-3", 5))?;
                let taint = taint(s)?;
                s.pause(Duration::from_secs(2));
                drop(taint);
                s.pause(Duration::from_secs(5));
                let after = s.get("pods", "taint-eviction-3")?;
                ensure!(after["metadata"]["uid"] == before["metadata"]["uid"], "another pod");
                ensure!(after["metadata"]["deletionTimestamp"].is_null(), "{after}");
                Ok(())
            },
        },
        Case {
            name: "[sig-node] NoExecuteTaintManager Multiple Pods [Serial] evicts pods with minTolerationSeconds [Disruptive] [Conformance]",
            run: |s| {
                s.ready(tolerant("taint-eviction-b1", 2))?;
                s.ready(tolerant("taint-eviction-b2", 6))?;
                let began = Instant::now();
                let _taint = taint(s)?;
                s.wait_gone("pods", "taint-eviction-b1")?;
                let first = began.elapsed();
                ensure!(first >= Duration::from_secs(2), "evicted after {first:?}");
                let other = s.get("pods", "taint-eviction-b2")?;
                ensure!(other["metadata"]["deletionTimestamp"].is_null(), "evicted together after {first:?}");
                s.wait_gone("pods", "taint-eviction-b2")?;
                let second = began.elapsed();
                ensure!(second >= Duration::from_secs(6), "evicted after {second:?}");
                Ok(())
            },
        },
    ]
}
