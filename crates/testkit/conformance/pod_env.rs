//! \[sig-node\]: what containers are told (environment, arguments, paths, sysctls), probes that leave them alone,
//! runtime classes, and objects that are only API.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use testkit::pods::{condition, has, pod};
use testkit::{Case, Scope};

fn stays(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    pod(name, "while :; do sleep 1; done", change)
}

/// Variables of every key of a source, with prefixes of all kinds.
fn prefixed(s: &Scope<'_>, kind: &str) -> anyhow::Result<()> {
    let log = s.output(pod("env", "env", |spec| {
        let all = ["", "p_", "p-", "$_", "_", "1-", "prefix.with.dots."];
        let from: Vec<Value> = all.iter().map(|p| json!({"prefix": p, kind: {"name": "c"}})).collect();
        spec["containers"][0]["envFrom"] = from.into();
        // Directly: a shell hands on only names that it could have itself.
        spec["containers"][0]["command"] = json!(["env"]);
    }))?;
    has(
        &log,
        &[
            "\ndata-1=value-1\n",
            "p_data-1=value-1",
            "p-data-1=value-1",
            "$_data-1=value-1",
            "_data-1=value-1",
            "1-data-1=value-1",
            "prefix.with.dots.data-1=value-1",
        ],
    )
}

/// A probe that has nothing to complain of: for a while nothing is restarted.
fn undisturbed(s: &Scope<'_>, script: &str, probe: Value) -> anyhow::Result<()> {
    s.create(
        "pods",
        pod("probed", script, |spec| {
            spec["restartPolicy"] = "Always".into();
            spec["containers"][0]["livenessProbe"] = probe;
        }),
    )?;
    s.pod_ready("probed")?;
    s.pause(Duration::from_secs(5));
    let p = s.get("pods", "probed")?;
    ensure!(p["status"]["containerStatuses"][0]["restartCount"] == 0, "{}", p["status"]);
    Ok(())
}

/// A pod with a path of a volume made from its environment.
fn sub_path(name: &str, script: &str, expression: &str, value: &str) -> Value {
    pod(name, script, |spec| {
        spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
        let c = &mut spec["containers"][0];
        c["env"] = json!([{"name": "POD", "value": value}]);
        c["volumeMounts"] = json!([
            {"name": "v", "mountPath": "/sub", "subPathExpr": expression}, {"name": "v", "mountPath": "/all"}]);
    })
}

/// A pod whose path is refused stays without its container.
fn path_refused(s: &Scope<'_>, expression: &str, value: &str) -> anyhow::Result<()> {
    s.create("pods", sub_path("refused", "true", expression, value))?;
    s.wait_any("pods", "refused", "a refusal", |p| {
        let waiting = &p["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["reason"] == "CreateContainerConfigError"
    })?;
    Ok(())
}

fn runtime_class(s: &Scope<'_>, name: &str, overhead: Value) -> client::Result<Value> {
    let mut class = json!({"metadata": {"name": name, "labels": {"case": s.namespace}}, "handler": "runc"});
    if overhead.is_object() {
        class["overhead"] = json!({"podFixed": overhead});
    }
    s.create("runtimeclasses", class)
}

fn with_class(name: &str) -> Value {
    pod("classy", "true", |spec| spec["runtimeClassName"] = name.into())
}

/// The cases of this group.
pub fn cases() -> Vec<Case> {
    [environments(), kernels(), paths(), probes(), classes(), objects()].concat()
}

fn environments() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] ConfigMap should be consumable as environment variable names with various prefixes [Conformance]",
            run: |s| {
                s.create("configmaps", json!({"metadata": {"name": "c"}, "data": {"data-1": "value-1"}}))?;
                prefixed(s, "configMapRef")
            },
        },
        Case {
            name: "[sig-node] Secrets should be consumable as environment variable names variable names with various prefixes [Conformance]",
            run: |s| {
                s.create("secrets", json!({"metadata": {"name": "c"}, "stringData": {"data-1": "value-1"}}))?;
                prefixed(s, "secretRef")
            },
        },
        Case {
            name: "[sig-node] ConfigMap should update ConfigMap successfully [NodeConformance] [Conformance]",
            run: |s| {
                let mut made = s.create("configmaps", json!({"metadata": {"name": "c"}}))?;
                made["data"] = json!({"data": "value"});
                s.update("configmaps", &made)?;
                ensure!(s.get("configmaps", "c")?["data"] == json!({"data": "value"}));
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Secrets should patch a secret [Conformance]",
            run: |s| {
                s.create(
                    "secrets",
                    json!({"metadata": {"name": "x", "labels": {"t": "s"}}, "stringData": {"key": "value"}}),
                )?;
                let data = json!({"metadata": {"labels": {"t": "patched"}}, "data": {"key": "dmFsdWUx"}});
                s.patch("secrets", "x", "", &client::Patch::Strategic(data))?;
                ensure!(s.list("secrets", "t=patched")?.len() == 1);
                s.delete_all("secrets", "t=patched")?;
                ensure!(s.list("secrets", "t=patched")?.is_empty());
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Downward API should provide default limits.cpu/memory from node allocatable [NodeConformance] [Conformance]",
            run: |s| {
                let env = ["limits.cpu", "limits.memory"].iter().map(|r| {
                    json!({"name": r.replace('.', "_").to_uppercase(), "valueFrom": {"resourceFieldRef": {"resource": r}}})
                });
                let env: Vec<Value> = env.collect();
                let log = s.output(pod("env", "env", |spec| spec["containers"][0]["env"] = env.into()))?;
                for name in ["LIMITS_CPU=", "LIMITS_MEMORY="] {
                    let value = log.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
                    ensure!(value.parse::<u64>().is_ok_and(|n| n > 0), "{name}{value}");
                }
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Downward API should provide hostIPs as an env var [NodeConformance] [Conformance]",
            run: |s| {
                let env =
                    json!([{"name": "HOST_IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIPs"}}}]);
                let log = s.output(pod("env", "env", |spec| spec["containers"][0]["env"] = env))?;
                has(&log, &["HOST_IPS=10."])
            },
        },
        Case {
            name: "[sig-node] Variable Expansion should allow substituting values in a container's command [NodeConformance] [Conformance]",
            run: |s| expansion(s, "command"),
        },
        Case {
            name: "[sig-node] Variable Expansion should allow substituting values in a container's args [NodeConformance] [Conformance]",
            run: |s| expansion(s, "args"),
        },
    ]
}

fn kernels() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Security Context should support pod.Spec.SecurityContext.RunAsUser And pod.Spec.SecurityContext.RunAsGroup [LinuxOnly] [Conformance]",
            run: |s| {
                let log = s.output(pod("id", "id", |spec| {
                    spec["securityContext"] = json!({"runAsUser": 1001, "runAsGroup": 2002})
                }))?;
                has(&log, &["uid=1001", "gid=2002"])
            },
        },
        Case {
            name: "[sig-node] Sysctls [LinuxOnly] [NodeConformance] should support sysctls [Environment:NotInUserNS] [Conformance]",
            run: |s| {
                let log = s.output(pod("sysctl", "cat /proc/sys/kernel/shm_rmid_forced", |spec| {
                    spec["securityContext"] =
                        json!({"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]});
                }))?;
                ensure!(log.trim() == "1", "{log}");
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Sysctls [LinuxOnly] [NodeConformance] should reject invalid sysctls [Conformance]",
            run: |s| {
                let refused = s.create("pods", pod("sysctl", "true", |spec| {
                    spec["securityContext"] = json!({"sysctls": [
                        {"name": "foo-", "value": "bar"}, {"name": "kernel.shmmax", "value": "100000000"},
                        {"name": "safe-and-unsafe", "value": "100000000"}, {"name": "bar..", "value": "42"}]});
                }));
                let text = refused.err().map(|e| e.to_string()).unwrap_or_default();
                has(&text, &["Invalid value: \"foo-\"", "Invalid value: \"bar..\""])?;
                ensure!(!text.contains("safe-and-unsafe") && !text.contains("kernel.shmmax"), "{text}");
                Ok(())
            },
        },
    ]
}

fn expansion(s: &Scope<'_>, field: &str) -> anyhow::Result<()> {
    let log = s.output(pod("expand", "", |spec| {
        let c = &mut spec["containers"][0];
        c["env"] = json!([{"name": "TEST", "value": "value"}, {"name": "OUT", "value": "$(TEST)-composed"}]);
        match field {
            "command" => c["command"] = json!(["sh", "-c", "echo is $(OUT) $$(OUT) $(MISSING)"]),
            _ => {
                c["command"] = json!(["echo"]);
                c["args"] = json!(["is $(OUT) $$(OUT) $(MISSING)"]);
            }
        }
    }))?;
    // A shell would run what is left of `$(MISSING)`.
    has(&log, &["is value-composed"])?;
    if field == "args" {
        has(&log, &["$(OUT) $(MISSING)"])?;
    }
    Ok(())
}

fn paths() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Variable Expansion should allow substituting values in a volume subpath [Conformance]",
            run: |s| {
                let log = s.output(sub_path("sub", "touch /sub/file; ls /all/$POD", "$(POD)", "foo"))?;
                has(&log, &["file"])
            },
        },
        Case {
            name: "[sig-node] Variable Expansion should fail substituting values in a volume subpath with backticks [Conformance]",
            run: |s| path_refused(s, "$(POD)", "..foo`hostname`/../.."),
        },
        Case {
            name: "[sig-node] Variable Expansion should fail substituting values in a volume subpath with absolute path [Conformance]",
            run: |s| path_refused(s, "$(POD)", "/tmp"),
        },
        Case {
            name: "[sig-node] Variable Expansion should verify that a failing subpath expansion can be modified during the lifecycle of a container [Slow] [Conformance]",
            run: |s| {
                s.create("pods", pod("late", "touch /sub/file; sleep 600", |spec| {
                    spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
                    let c = &mut spec["containers"][0];
                    c["env"] = json!([{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['mysubpath']"}}}]);
                    c["volumeMounts"] = json!([{"name": "v", "mountPath": "/sub", "subPathExpr": "$(NAME)"}]);
                }))?;
                // An absent annotation is an empty path, which is the volume itself; a bad one is refused.
                s.merge("pods", "late", "", json!({"metadata": {"annotations": {"mysubpath": "mypath"}}}))?;
                s.pod_ready("late").map(drop)
            },
        },
        Case {
            name: "[sig-node] Variable Expansion should succeed in writing subpaths in container [Conformance]",
            run: |s| {
                s.ready(sub_path(
                    "sub",
                    "touch /sub/mypath.txt; while :; do sleep 1; done",
                    "$(POD)",
                    "mypath",
                ))?;
                s.kubectl(&["exec", "sub", "--", "test", "-f", "/all/mypath/mypath.txt"]).map(drop)
            },
        },
    ]
}

fn probes() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Probing container should *not* be restarted with a exec \"cat /tmp/health\" liveness probe [NodeConformance] [Conformance]",
            run: |s| {
                let probe = json!({"exec": {"command": ["cat", "/tmp/health"]}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1});
                undisturbed(s, "echo ok > /tmp/health; sleep 600", probe)
            },
        },
        Case {
            name: "[sig-node] Probing container should *not* be restarted with a /healthz http liveness probe [NodeConformance] [Conformance]",
            run: |s| {
                let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1});
                undisturbed(s, "mkdir /w; echo ok > /w/healthz; exec httpd -f -p 8080 -h /w", probe)
            },
        },
        Case {
            name: "[sig-node] Probing container should *not* be restarted with a tcp:8080 liveness probe [NodeConformance] [Conformance]",
            run: |s| {
                let probe = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1});
                undisturbed(s, "mkdir /w; exec httpd -f -p 8080 -h /w", probe)
            },
        },
        Case {
            name: "[sig-node] Probing container should have monotonically increasing restart count [NodeConformance] [Conformance]",
            run: |s| {
                s.create(
                    "pods",
                    pod("probed", "sleep 1; exit 1", |spec| spec["restartPolicy"] = "Always".into()),
                )?;
                let mut last = 0;
                for wanted in 1..=2 {
                    let p = s.wait_any("pods", "probed", "a restart", |p| {
                        p["status"]["containerStatuses"][0]["restartCount"]
                            .as_u64()
                            .is_some_and(|n| n >= wanted)
                    })?;
                    let count =
                        p["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default();
                    ensure!(count > last, "{count} after {last}");
                    last = count;
                }
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Probing container with readiness probe should not be ready before initial delay and never restart [NodeConformance] [Conformance]",
            run: |s| {
                let p = s.ready(stays("probed", |spec| {
                    spec["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["true"]}, "initialDelaySeconds": 3, "periodSeconds": 1});
                }))?;
                let time = |path: &Value| path.as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
                let started = time(&p["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]);
                let conditions = p["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let ready = conditions
                    .iter()
                    .find(|c| c["type"] == "Ready")
                    .and_then(|c| time(&c["lastTransitionTime"]));
                let waited = started.zip(ready).map(|(s, r)| r.duration_since(s).as_secs());
                // Times in statuses have whole seconds.
                ensure!(waited.is_some_and(|w| w >= 2), "ready after {waited:?}s: {}", p["status"]);
                ensure!(p["status"]["containerStatuses"][0]["restartCount"] == 0);
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Probing container with readiness probe that fails should never be ready and never restart [NodeConformance] [Conformance]",
            run: |s| {
                s.create(
                    "pods",
                    stays("probed", |spec| {
                        spec["containers"][0]["readinessProbe"] =
                            json!({"exec": {"command": ["false"]}, "periodSeconds": 1});
                    }),
                )?;
                s.wait_any("pods", "probed", "its start", |p| p["status"]["phase"] == "Running")?;
                s.pause(Duration::from_secs(4));
                let p = s.get("pods", "probed")?;
                ensure!(
                    !condition(&p, "Ready") && p["status"]["containerStatuses"][0]["restartCount"] == 0,
                    "{}",
                    p["status"]
                );
                Ok(())
            },
        },
    ]
}

fn classes() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] RuntimeClass should reject a Pod requesting a non-existent RuntimeClass [NodeConformance] [Conformance]",
            run: |s| {
                let refused = s.create("pods", with_class("nonexistent"));
                has(
                    &refused.err().map(|e| e.to_string()).unwrap_or_default(),
                    &["RuntimeClass \"nonexistent\" not found"],
                )
            },
        },
        Case {
            name: "[sig-node] RuntimeClass should reject a Pod requesting a deleted RuntimeClass [NodeConformance] [Conformance]",
            run: |s| {
                let name = format!("{}-gone", s.namespace);
                runtime_class(s, &name, Value::Null)?;
                s.delete("runtimeclasses", &name, &client::DeleteParams::default())?;
                s.wait_gone("runtimeclasses", &name)?;
                let refused = s.create("pods", with_class(&name));
                has(&refused.err().map(|e| e.to_string()).unwrap_or_default(), &["not found"])
            },
        },
        Case {
            name: "[sig-node] RuntimeClass should schedule a Pod requesting a RuntimeClass without PodOverhead [NodeConformance] [Conformance]",
            run: |s| {
                let name = format!("{}-plain", s.namespace);
                runtime_class(s, &name, Value::Null)?;
                let made = s.create("pods", with_class(&name))?;
                ensure!(made["spec"]["overhead"].is_null(), "{made}");
                let ended = s.pod_ended("classy")?;
                s.delete("runtimeclasses", &name, &client::DeleteParams::default())?;
                ensure!(ended["status"]["phase"] == "Succeeded", "{}", ended["status"]);
                Ok(())
            },
        },
        Case {
            name: "[sig-node] RuntimeClass should schedule a Pod requesting a RuntimeClass and initialize its Overhead [NodeConformance] [Conformance]",
            run: |s| {
                let name = format!("{}-over", s.namespace);
                runtime_class(s, &name, json!({"cpu": "10m", "memory": "1Mi"}))?;
                let made = s.create("pods", with_class(&name))?;
                ensure!(made["spec"]["overhead"] == json!({"cpu": "10m", "memory": "1Mi"}), "{made}");
                let ended = s.pod_ended("classy")?;
                s.delete("runtimeclasses", &name, &client::DeleteParams::default())?;
                ensure!(ended["status"]["phase"] == "Succeeded", "{}", ended["status"]);
                Ok(())
            },
        },
    ]
}

fn objects() -> Vec<Case> {
    vec![
        Case {
            name: "[sig-node] Lease lease API should be available [Conformance]",
            run: |s| {
                let lease = |name: &str| {
                    json!({"metadata": {"name": name, "labels": {"l": "x"}}, "spec": {"holderIdentity": "holder", "leaseDurationSeconds": 30,
                        "leaseTransitions": 0, "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:05.000000Z"}})
                };
                let mut made = s.create("leases", lease("a"))?;
                made["spec"]["leaseTransitions"] = 1.into();
                let updated = s.update("leases", &made)?;
                ensure!(updated["spec"]["leaseTransitions"] == 1);
                let patched = s.merge(
                    "leases",
                    "a",
                    "",
                    json!({"spec": {"holderIdentity": "other", "leaseTransitions": 2}}),
                )?;
                ensure!(
                    patched["spec"]["holderIdentity"] == "other"
                        && patched["spec"]["renewTime"] == "2026-01-01T00:00:05.000000Z",
                    "{patched}"
                );
                s.create("leases", lease("b"))?;
                ensure!(s.list("leases", "l=x")?.len() == 2);
                s.delete_all("leases", "l=x")?;
                ensure!(s.list("leases", "l=x")?.is_empty());
                Ok(())
            },
        },
        Case {
            name: "[sig-node] PodTemplates should delete a collection of pod templates [Conformance]",
            run: |s| {
                for name in ["a", "b", "c"] {
                    s.create("podtemplates", template(name))?;
                }
                ensure!(s.list("podtemplates", "set=t")?.len() == 3);
                s.delete_all("podtemplates", "set=t")?;
                ensure!(s.list("podtemplates", "set=t")?.is_empty());
                Ok(())
            },
        },
        Case {
            name: "[sig-node] PodTemplates should replace a pod template [Conformance]",
            run: |s| {
                let mut made = s.create("podtemplates", template("a"))?;
                made["metadata"]["annotations"] = json!({"updated": "true"});
                let updated = s.update("podtemplates", &made)?;
                ensure!(updated["metadata"]["annotations"]["updated"] == "true");
                Ok(())
            },
        },
        Case {
            name: "[sig-node] Node Lifecycle should run through the lifecycle of a node [Conformance]",
            run: |s| {
                let name = format!("fake-{}", s.namespace);
                let made = s.create("nodes", json!({"metadata": {"name": name, "labels": {"fake": s.namespace}}, "spec": {"unschedulable": true},
                    "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}))?;
                ensure!(made["metadata"]["name"] == name.as_str());
                ensure!(s.list("nodes", &format!("fake={}", s.namespace))?.len() == 1);
                s.merge("nodes", &name, "", json!({"metadata": {"labels": {"patched": "yes"}}}))?;
                let status = s.merge("nodes", &name, "status", json!({"status": {"phase": "Terminated"}}))?;
                ensure!(
                    status["status"]["phase"] == "Terminated"
                        && status["metadata"]["labels"]["patched"] == "yes",
                    "{status}"
                );
                s.delete_all("nodes", &format!("fake={}", s.namespace))?;
                s.wait_gone("nodes", &name)
            },
        },
    ]
}

fn template(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"set": "t"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}})
}
